"""What stands in the rows and columns of a similarity matrix, once it is seen to fit."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from contaccum_lite.core.bank import MemoryBank


def num_vectors(vectors) -> int:
    return 0 if vectors is None else len(vectors)


def rows_and_columns(
    queries, passages, query_bank, passage_bank, hard_negatives, bank_hard_negatives
) -> tuple[Tensor, Tensor]:
    """All queries and all passages, each under the other.

    Raises `ValueError` for what does not fit.
    """
    vectors = {
        "queries": queries,
        "query_bank": query_bank,
        "passages": passages,
        "passage_bank": passage_bank,
        "hard_negatives": hard_negatives,
        "bank_hard_negatives": bank_hard_negatives,
    }
    vectors = {name: value for name, value in vectors.items() if value is not None}
    for name, value in vectors.items():
        vectors[name] = value.vectors if isinstance(value, MemoryBank) else value
    if not isinstance(queries, Tensor) or queries.ndim != 2:
        raise ValueError(
            f"queries is {_shape(queries)}: expected a tensor (number, length of a vector)."
        )
    check_vectors(vectors, queries.shape[1])
    _check_counts(queries, passages, query_bank, passage_bank)
    rows = [value for name, value in vectors.items() if name in ("queries", "query_bank")]
    columns = [value for name, value in vectors.items() if name not in ("queries", "query_bank")]
    return torch.cat(rows), torch.cat(columns)


def _check_counts(queries, passages, query_bank, passage_bank) -> None:
    """Raise `ValueError` where a query has no passage: of this batch, or of a bank."""
    if len(queries) != len(passages) or not len(queries):
        raise ValueError(
            f"{len(queries)} queries and {len(passages)} passages: expected one passage per query, "
            "and at least one."
        )
    past_queries, past_passages = num_vectors(query_bank), num_vectors(passage_bank)
    if past_queries not in (0, past_passages):
        raise ValueError(
            f"query_bank holds {past_queries} vectors and passage_bank {past_passages}: "
            "the positive of a past query is the past passage in the same place, so give both "
            "banks the same number, or no query bank."
        )


def check_temperature(temperature: float | Tensor) -> None:
    """Raise `ValueError` for a temperature that scores cannot be divided by."""
    if not isinstance(temperature, (Real, Tensor)) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature!r}: it must be a number above 0.")


def check_vectors(vectors: dict[str, Tensor], length: int) -> None:
    """Raise `ValueError` where one of these, by name, is not a tensor of vectors of this length."""
    for name, value in vectors.items():
        if not isinstance(value, Tensor) or value.ndim != 2 or value.shape[1] != length:
            raise ValueError(
                f"{name} is {_shape(value)}: expected a tensor (number, {length}), "
                f"where {length} is the length of a query."
            )


def checked_mask(mask: Tensor, scores: Tensor) -> Tensor:
    """The mask. Raises `ValueError` where it does not fit the scores."""
    if not isinstance(mask, Tensor) or mask.shape != scores.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {_shape(mask)}: expected {_shape(scores)} of torch.bool, a row for each "
            "query and a column for each passage, True where an entry is left out."
        )
    return mask


def _shape(value) -> str:
    """What to call an argument in an error: its shape, or its type where it is no tensor."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"

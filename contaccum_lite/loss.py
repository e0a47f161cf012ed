"""InfoNCE over a batch and its banks: the readable reference, and its gradients derived by hand.

Rows of the similarity matrix are [local queries ; query bank], columns are [local passages ; passage bank ; local hard
negatives ; banked hard negatives]. Row i's positive is column i. Nothing here knows of towers or training.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from .bank import MemoryBank


class Contrast(NamedTuple):
    """The loss of one similarity matrix, and what it asks of the local vectors."""

    loss: Tensor  # ()
    d_queries: Tensor  # (N_local, d): equation 8
    d_passages: Tensor  # (N_local, d): equation 9
    d_hard: Tensor | None  # (N_hard, d): equation 9 without its positive term
    scores: Tensor  # (rows, columns), masked entries at -inf
    weights: Tensor  # (rows, columns): ∂loss/∂scores = (softmax - identity) / rows


def similarity_matrix(
    queries,
    passages,
    query_bank=None,
    passage_bank=None,
    hard_negatives=None,
    *,
    bank_hard_negatives=None,
    temperature: float = 1.0,
) -> Tensor:
    """Scores q·p/τ of every query with every passage: (N_local + N_q, N_local + N_p (+ hard negatives)).

    queries, passages: (N_local, d). query_bank, passage_bank, bank_hard_negatives: a `MemoryBank`, an (N, d) tensor or
    None. hard_negatives: (N_hard, d) or None. One product of raw vectors: no softmax in it (equation 7, read as its code
    does; notebook 01). Raises `ValueError` for shapes that do not fit.
    """
    check_temperature(temperature)
    rows, columns = _rows_and_columns(
        queries, passages, query_bank, passage_bank, hard_negatives, bank_hard_negatives
    )
    return rows @ columns.T / temperature


def info_nce(
    queries,
    passages,
    query_bank=None,
    passage_bank=None,
    hard_negatives=None,
    temperature: float = 1.0,
    *,
    bank_hard_negatives=None,
    mask: Tensor | None = None,
) -> Tensor:
    """The mean over all rows, local and memory, of -log softmax at the row's positive: equations 1, 4 and 7; a scalar.

    Arguments as in `similarity_matrix`; `mask` (rows, columns) is True where an entry is left out. Autograd works through
    it. Raises `ValueError` for shapes that do not fit. Notebook 01.
    """
    scores = similarity_matrix(
        queries,
        passages,
        query_bank,
        passage_bank,
        hard_negatives,
        bank_hard_negatives=bank_hard_negatives,
        temperature=temperature,
    )
    if mask is not None:
        _check_mask(mask, scores)
        scores = scores.masked_fill(mask, -torch.inf)
    positives = torch.arange(len(scores), device=scores.device)
    return torch.nn.functional.cross_entropy(scores, positives)


def info_nce_gradients(
    queries,
    passages,
    query_bank=None,
    passage_bank=None,
    hard_negatives=None,
    temperature: float = 1.0,
    *,
    bank_hard_negatives=None,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """(d_queries, d_passages) of `info_nce` by equations 8 and 9, without autograd; with hard negatives also d_hard.

    Same arguments as `info_nce`; each gradient has the shape of what it belongs to. Notebook 04.
    """
    found = contrast(
        queries,
        passages,
        query_bank,
        passage_bank,
        hard_negatives,
        temperature,
        bank_hard_negatives=bank_hard_negatives,
        mask=mask,
    )
    return found[1:3] if hard_negatives is None else found[1:4]


@torch.no_grad()
def contrast(
    queries,
    passages,
    query_bank=None,
    passage_bank=None,
    hard_negatives=None,
    temperature: float = 1.0,
    *,
    bank_hard_negatives=None,
    mask: Tensor | None = None,
) -> Contrast:
    """Loss and gradients of `info_nce` in one go: what every training method calls.

    With S the row-wise softmax and n the number of rows:
        ∂loss/∂q_l = -(p_l - Σ_j S_lj p_j) / nτ     over all columns j      (equation 8)
        ∂loss/∂p_l = -(q_l - Σ_i S_il q_i) / nτ     over all rows i         (equation 9)
    """
    check_temperature(temperature)
    rows, columns = _rows_and_columns(
        queries, passages, query_bank, passage_bank, hard_negatives, bank_hard_negatives
    )
    scores = rows @ columns.T / temperature
    if mask is not None:
        _check_mask(mask, scores)
        scores.masked_fill_(mask, -torch.inf)
    highest = scores.amax(dim=1, keepdim=True)
    weights = (scores - highest).exp_()
    total = weights.sum(dim=1, keepdim=True)
    loss = (total.log() + highest).squeeze(1).sub_(scores.diagonal()).mean()
    weights /= total  # S, (rows, columns)
    weights.diagonal().sub_(1)  # each row's positive pulls
    weights /= len(rows)  # the mean over all rows
    local = len(queries)
    hard = slice(
        local + _count(passage_bank), local + _count(passage_bank) + _count(hard_negatives)
    )
    return Contrast(
        loss,
        weights[:local] @ columns / temperature,
        weights[:, :local].T @ rows / temperature,
        None if hard_negatives is None else weights[:, hard].T @ rows / temperature,
        scores,
        weights,
    )


def duplicate_mask(query_keys: Tensor, passage_keys: Tensor, rows: int) -> Tensor | None:
    """(rows, columns), True where column j is row i's own stale self or a copy of its passage; None where there is none.

    query_keys, passage_keys: (columns,) numbers that are equal where two columns belong to the same query or hold the same
    text; a hard negative's query key is -1. Row i is the query of column i, whose positive stays.
    """
    if not (_repeats(query_keys[query_keys >= 0]) or _repeats(passage_keys)):
        return None
    same = passage_keys[:rows, None] == passage_keys
    same |= query_keys[:rows, None] == query_keys
    same.fill_diagonal_(False)
    return same


def joint_keys(query_keys: Tensor, passage_keys: Tensor) -> Tensor | None:
    """One number per pair that is equal just where two pairs share their query or their passage; None where no such number exists.

    Pairs join queries to passages. Where every one of these joints has an end that no other joint has (so that no chain is
    longer than two), those that share an end share one end, and its number will do.
    """
    joints = torch.stack([query_keys, passage_keys]).unique(dim=1)
    of_query, of_passage = (
        torch.bincount(side, minlength=int(side.max()) + 1 if len(side) else 0) for side in joints
    )
    if not ((of_query[joints[0]] == 1) | (of_passage[joints[1]] == 1)).all():
        return None
    return torch.where(of_passage[passage_keys] > 1, passage_keys, query_keys + len(of_passage))


def check_temperature(temperature: float | Tensor) -> None:
    """Raise `ValueError` for a temperature that scores cannot be divided by."""
    if not isinstance(temperature, (Real, Tensor)) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature!r}: it must be a number above 0.")


def check_vectors(parts: dict[str, Tensor], length: int) -> None:
    """Raise `ValueError` where one of these, by name, is not a tensor of vectors of this length."""
    for name, part in parts.items():
        if not isinstance(part, Tensor) or part.ndim != 2 or part.shape[1] != length:
            raise ValueError(
                f"{name} is {_shape(part)}: expected a tensor (number, {length}), "
                f"where {length} is the length of a query."
            )


def _check_mask(mask: Tensor, scores: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.shape != scores.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {_shape(mask)}: expected {_shape(scores)} of torch.bool, a row "
            "for each query and a column for each passage, True where an entry is "
            "left out."
        )


def _shape(value) -> str:
    """What to call an argument in an error: its shape, or its type where it is no tensor."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _repeats(keys: Tensor) -> bool:
    return len(set(keys.tolist())) < len(keys)  # faster than sorting, up to some thousands


def _count(vectors) -> int:
    return 0 if vectors is None else len(vectors)


def _rows_and_columns(
    queries, passages, query_bank, passage_bank, hard_negatives, bank_hard_negatives
) -> tuple[Tensor, Tensor]:
    parts = {
        "queries": queries,
        "passages": passages,
        "query_bank": query_bank,
        "passage_bank": passage_bank,
        "hard_negatives": hard_negatives,
        "bank_hard_negatives": bank_hard_negatives,
    }
    parts = {
        name: p.vectors if isinstance(p, MemoryBank) else p
        for name, p in parts.items()
        if p is not None
    }
    if not isinstance(queries, Tensor) or queries.ndim != 2:
        raise ValueError(
            f"queries is {_shape(queries)}: expected a tensor (number, length of a vector)."
        )
    check_vectors(parts, queries.shape[1])
    if len(queries) != len(passages) or not len(queries):
        raise ValueError(
            f"{len(queries)} queries and {len(passages)} passages: expected one passage per query, and at least one."
        )
    past_queries, past_passages = _count(parts.get("query_bank")), _count(parts.get("passage_bank"))
    if past_queries not in (0, past_passages):
        raise ValueError(
            f"query_bank holds {past_queries} vectors and passage_bank {past_passages}: the positive of a past query "
            "is the past passage in the same place, so give both banks the same number, or no query bank."
        )
    rows = [parts[name] for name in ("queries", "query_bank") if name in parts]
    columns = [
        parts[name]
        for name in ("passages", "passage_bank", "hard_negatives", "bank_hard_negatives")
        if name in parts
    ]
    return torch.cat(rows), torch.cat(columns)

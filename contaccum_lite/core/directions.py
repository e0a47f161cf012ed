"""Directions: the same vectors used more often, with gradients by hand.

Beside the scores of queries with passages, S = rows @ columns.T / τ, there are those of queries
with queries and of passages with passages. They cost no encoding. Whatever enters the loss, the
gradient is still grad_scores @ columns and grad_scores.T @ rows, summed over the blocks.
Notebook 10.

    "query"   each query's row of S                                       (core/loss.py)
    "both"    that, and each passage against the queries: the transposed S, over the pairs whose
              query is here; the mean of the two losses (as in CLIP)
    "all"     for each pair, one softmax over S, queries with queries, passage with queries, and
              passage with passages; the positive is in it once (GTE's improved loss,
              arXiv 2308.03281)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from contaccum_lite.core import shapes
from contaccum_lite.core.loss import LossAndGradients, info_nce_with_gradients, softmax_loss
from contaccum_lite.core.masks import Objective


class _Blocks(NamedTuple):
    """A loss by its derivatives with respect to the three kinds of scores."""

    loss: Tensor
    scores: Tensor  # (R, C): queries with passages
    grad_scores: Tensor  # (R, C): its derivative, all places where such a score stands together
    grad_query_query: Tensor | None = None  # (R, R)
    grad_passage_passage: Tensor | None = None  # (R, C)


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
    directions: str = "query",
    objectives: tuple[Objective, ...] = (softmax_loss, softmax_loss),
) -> LossAndGradients:
    """Loss and gradients of the local vectors over these directions.

    Arguments as in `info_nce_with_gradients`. directions: "query", "both" or "all". objectives: of
    the query rows, and of the passage rows of "both". `scores` and `grad_scores` of the result are
    those of queries with passages, wherever such a score stands. A banked passage without its query
    is a column and never a row. Hard negatives are columns for passages too in "all".
    """
    if directions == "query":
        return info_nce_with_gradients(
            queries,
            passages,
            query_bank,
            passage_bank,
            hard_negatives,
            temperature,
            bank_hard_negatives=bank_hard_negatives,
            mask=mask,
            objective=objectives[0],
        )
    shapes.check_temperature(temperature)
    rows, columns = shapes.rows_and_columns(
        queries, passages, query_bank, passage_bank, hard_negatives, bank_hard_negatives
    )
    if mask is None:
        mask = torch.zeros(len(rows), len(columns), dtype=torch.bool, device=rows.device)
    shapes.checked_mask(mask, torch.empty(len(rows), len(columns), device="meta"))
    blocks = _both if directions == "both" else _all
    result = blocks(rows, columns, temperature, mask, objectives)
    grad_rows, grad_columns = _gradients(result, rows, columns, temperature)
    num_local = len(queries)
    first_hard = num_local + shapes.num_vectors(passage_bank)
    hard = slice(first_hard, first_hard + shapes.num_vectors(hard_negatives))
    return LossAndGradients(
        result.loss,
        grad_rows[:num_local],
        grad_columns[:num_local],
        None if hard_negatives is None else grad_columns[hard],
        result.scores,
        result.grad_scores,
    )


def _both(rows, columns, temperature, mask, objectives) -> _Blocks:
    """The mean of two losses: each query's over the passages, each passage's over the queries."""
    scores = (rows @ columns.T).div_(temperature).masked_fill_(mask, -torch.inf)
    num_pairs = len(rows)
    transposed = scores[:, :num_pairs].T.contiguous()  # duplicates are so in both directions
    loss, grad_scores = objectives[0](scores)
    passage_loss, grad_transposed = objectives[1](transposed)
    grad_scores[:, :num_pairs] += grad_transposed.T
    grad_scores /= 2
    return _Blocks((loss + passage_loss) / 2, scores, grad_scores)


def _all(rows, columns, temperature, mask, objectives) -> _Blocks:
    """One loss over four blocks side by side; a pair's positive stands in the first alone."""
    num_pairs, num_columns = mask.shape
    of_pairs = mask[:, :num_pairs].clone().fill_diagonal_(True)  # a vector is not its own negative
    of_passages = mask.clone().fill_diagonal_(True)
    own_passages = columns[:num_pairs]
    blocks = [
        (rows @ columns.T).div_(temperature).masked_fill_(mask, -torch.inf),
        (rows @ rows.T).div_(temperature).masked_fill_(of_pairs, -torch.inf),
        (own_passages @ rows.T).div_(temperature).masked_fill_(of_pairs, -torch.inf),
        (own_passages @ columns.T).div_(temperature).masked_fill_(of_passages, -torch.inf),
    ]
    scores = torch.cat(blocks, 1)
    loss, grad = objectives[0](scores)
    sizes = [num_columns, num_pairs, num_pairs, num_columns]
    grad_scores, query_query, passage_query, passage_passage = grad.split(sizes, 1)
    grad_scores = grad_scores.clone()
    grad_scores[:, :num_pairs] += passage_query.T
    return _Blocks(loss, scores[:, :num_columns], grad_scores, query_query, passage_passage)


def _gradients(blocks: _Blocks, rows, columns, temperature) -> tuple[Tensor, Tensor]:
    """∂loss/∂rows (R, d) and ∂loss/∂columns (C, d): equations 8 and 9, for each block."""
    grad_rows = blocks.grad_scores @ columns
    grad_columns = blocks.grad_scores.T @ rows
    if blocks.grad_query_query is not None:
        grad_rows += (blocks.grad_query_query + blocks.grad_query_query.T) @ rows
    if blocks.grad_passage_passage is not None:
        num_pairs = len(rows)
        grad_columns += blocks.grad_passage_passage.T @ columns[:num_pairs]
        grad_columns[:num_pairs] += blocks.grad_passage_passage @ columns
    return grad_rows / temperature, grad_columns / temperature

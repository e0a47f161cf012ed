"""InfoNCE over a batch and its banks, with gradients derived by hand.

Rows of the similarity matrix are [local queries ; query bank]. Columns are [local passages ;
passage bank ; local hard negatives ; banked hard negatives]. Row i's positive is column i.

One idea carries the whole library. Whatever the method, with grad_scores = ∂loss/∂scores:

    ∂loss/∂rows    = grad_scores @ columns / τ          (equation 8)
    ∂loss/∂columns = grad_scores.T @ rows / τ           (equation 9)

So a method is only what stands in the rows and columns of its matrix, and an objective is only a
function from scores to (loss, grad_scores): `softmax_loss` here, others in core/objectives.py.
Nothing here knows encoders.

Reading path 2 of 9. Before: minimal.py. After: core/bank.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from contaccum_lite.core import shapes
from contaccum_lite.core.masks import Objective
from contaccum_lite.core.masks import duplicate_mask as duplicate_mask  # can be had here, too


class LossAndGradients(NamedTuple):
    """The loss of one similarity matrix, and its gradients with respect to the local vectors."""

    loss: Tensor  # ()
    grad_queries: Tensor  # (N_local, d): equation 8
    grad_passages: Tensor  # (N_local, d): equation 9
    grad_hard_negatives: Tensor | None  # (N_hard, d): equation 9 without its positive term
    scores: Tensor | None  # (rows, columns), masked entries at -inf
    grad_scores: Tensor | None  # (rows, columns): ∂loss/∂scores = (softmax - identity) / rows
    matrix: Callable | None = None  # returns (scores, grad_scores) where both are None above

    @property
    def gradients(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients with respect to the local queries, passages and hard negatives."""
        return self.grad_queries, self.grad_passages, self.grad_hard_negatives


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
    """Scores q·p/τ of every query with every passage: raw dot products, no softmax in it.

    Args:
        queries: (N_local, d). passages: (N_local, d).
        query_bank, passage_bank, bank_hard_negatives: a `MemoryBank`, an (N, d) tensor or None.
        hard_negatives: (N_hard, d) or None.
        temperature: τ, above 0.

    Returns (N_local + N_q, N_local + N_p (+ hard negatives)). Raises `ValueError` for shapes that
    do not fit. Equation 7, read as the paper's code does; notebook 01.
    """
    shapes.check_temperature(temperature)
    rows, columns = shapes.rows_and_columns(
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
    """The mean over all rows, local and memory, of -log softmax at the row's positive.

    Arguments as in `similarity_matrix`; mask (rows, columns) is True where an entry is left out.
    Returns a scalar, which autograd can differentiate. Raises `ValueError` for wrong shapes.
    Equations 1, 4 and 7; notebook 01.
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
        scores = scores.masked_fill(shapes.checked_mask(mask, scores), -torch.inf)
    positives = torch.arange(len(scores), device=scores.device)
    return torch.nn.functional.cross_entropy(scores, positives)


def info_nce_gradients(*args, **kwargs) -> tuple[Tensor, ...]:
    """(grad_queries, grad_passages) of `info_nce` by equations 8 and 9, without autograd.

    Same arguments as `info_nce`. Each gradient has the shape of its vectors; with hard negatives,
    theirs is the third. Notebook 04.
    """
    gradients = info_nce_with_gradients(*args, **kwargs).gradients
    return tuple(gradient for gradient in gradients if gradient is not None)


@torch.no_grad()
def info_nce_with_gradients(
    queries,
    passages,
    query_bank=None,
    passage_bank=None,
    hard_negatives=None,
    temperature: float = 1.0,
    *,
    bank_hard_negatives=None,
    mask: Tensor | None = None,
    objective: Objective | None = None,
) -> LossAndGradients:
    """Loss and gradients of `info_nce` in one pass: what every training method calls.

    Same arguments as `info_nce`; objective: another function than `softmax_loss`. Banked vectors
    get no gradient, but they are in both sums below: banked passages in equation 8, banked queries
    in equation 9. With S the row-wise softmax and n the number of rows:
        ∂loss/∂q_l = -(p_l - Σ_j S_lj p_j) / nτ     over all columns j      (equation 8)
        ∂loss/∂p_l = -(q_l - Σ_i S_il q_i) / nτ     over all rows i         (equation 9)
    """
    shapes.check_temperature(temperature)
    rows, columns = shapes.rows_and_columns(
        queries, passages, query_bank, passage_bank, hard_negatives, bank_hard_negatives
    )
    scores = rows @ columns.T / temperature
    if mask is not None:
        scores.masked_fill_(shapes.checked_mask(mask, scores), -torch.inf)
    loss, grad_scores = (objective or softmax_loss)(scores)

    num_local = len(queries)
    first_hard = num_local + shapes.num_vectors(passage_bank)
    hard = slice(first_hard, first_hard + shapes.num_vectors(hard_negatives))
    return LossAndGradients(
        loss,
        grad_scores[:num_local] @ columns / temperature,  # equation 8
        grad_scores[:, :num_local].T @ rows / temperature,  # equation 9
        None if hard_negatives is None else grad_scores[:, hard].T @ rows / temperature,
        scores,
        grad_scores,
    )


def softmax_loss(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, ∂loss/∂scores): the mean of -log softmax at each row's positive, and its gradient.

    scores: (rows, columns), positives on the diagonal. The gradient is (softmax - identity) / rows.
    """
    highest = scores.amax(dim=1, keepdim=True)
    softmax = (scores - highest).exp_()
    total = softmax.sum(dim=1, keepdim=True)
    loss = (total.log() + highest).squeeze(1).sub_(scores.diagonal()).mean()
    softmax /= total
    grad_scores = softmax
    grad_scores.diagonal().sub_(1)  # each row's positive pulls
    grad_scores /= len(scores)  # the mean over all rows, memory rows too
    return loss, grad_scores

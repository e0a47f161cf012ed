"""From vectors to a loss by other objectives, directions and masks than InfoNCE's, for autograd.

ContAccumLoss keeps to it where its `objective`, `directions` or `mask_margin` are not the default.
The functions from scores to (loss, ∂loss/∂scores) are those of core/objectives.py; the gradient of
the scores with respect to the vectors is autograd's, whatever the similarity function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from contaccum_lite.core.masks import Objective, with_margin
from contaccum_lite.core.objectives import STATELESS
from contaccum_lite.core.settings import Settings

Similarity = Callable[[Tensor, Tensor], Tensor]
#: of `Settings`, those that ContAccumLoss has too
NAMES = ("objective", "directions", "mask_margin")


def check(objective: str, directions: str, mask_margin: float | None) -> None:
    """Raise `ValueError` for values that `Settings` does not take, or that need a run."""
    Settings(objective=objective, directions=directions, mask_margin=mask_margin)
    if objective not in STATELESS:
        raise ValueError(
            f"objective is {objective!r}, which keeps numbers of its own from one micro-batch to "
            f"the next, as a `cl.Run` does: choose one of {', '.join(STATELESS)}."
        )


class KnownGradient(torch.autograd.Function):
    """A loss whose gradient with respect to a tensor is known already."""

    @staticmethod
    def forward(ctx, tensor, loss, gradient):
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, None, None


def loss_of(
    rows: Tensor,
    columns: Tensor,
    similarity: Similarity,
    mask: Tensor | None,
    objective: str,
    directions: str,
    mask_margin: float | None,
) -> Tensor:
    """The loss of rows (R, d) with columns (C, d), as `core.directions.contrast` defines it.

    similarity: (n, d) and (m, d) vectors to (n, m) scores, times the scale. mask: (R, C), True
    where an entry is left out.
    """
    if mask is None:
        mask = torch.zeros(len(rows), len(columns), dtype=torch.bool, device=rows.device)
    function = STATELESS[objective]
    if mask_margin is not None:
        function = with_margin(function, mask_margin)
    scores = similarity(rows, columns).masked_fill(mask, -torch.inf)
    if directions == "query":
        return _apply(function, scores)
    if directions == "both":
        transposed = scores[:, : len(rows)].T
        return (_apply(function, scores) + _apply(function, transposed)) / 2
    own_passages = columns[: len(rows)]
    of_pairs = mask[:, : len(rows)].clone().fill_diagonal_(True)  # none is its own negative
    of_passages = mask.clone().fill_diagonal_(True)
    blocks = [
        scores,
        similarity(rows, rows).masked_fill(of_pairs, -torch.inf),
        similarity(own_passages, rows).masked_fill(of_pairs, -torch.inf),
        similarity(own_passages, columns).masked_fill(of_passages, -torch.inf),
    ]
    return _apply(function, torch.cat(blocks, 1))


def _apply(function: Objective, scores: Tensor) -> Tensor:
    loss, gradient = function(scores.detach().clone())
    return KnownGradient.apply(scores, loss, gradient)

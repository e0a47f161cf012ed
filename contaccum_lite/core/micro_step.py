"""What a micro-batch and an update did, to be looked at: losses, matrix, gradient norms."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from contaccum_lite.core.loss import LossAndGradients


class Layout(NamedTuple):
    """Whose rows and columns a similarity matrix has.

    [local ; memory] pairs, then hard negatives.
    """

    local: int  # rows and columns before this are of this micro-batch, the later ones of the banks
    row_ids: Tensor  # (rows,) training pairs
    column_ids: Tensor  # (columns,) training pairs; from `hard_from` on, passages
    hard_from: int


class MicroStep:
    """What one micro-batch did: its loss, its matrix, and where it stands in its update.

    `scores` and `grad_scores` (∂loss/∂scores) are (rows, columns). Where the incremental softmax
    never makes them, they can be had only if the learner was `observed`.
    """

    def __init__(self, update: int, index: int, of: int, result: LossAndGradients, layout: Layout):
        self.update, self.index, self.of = update, index, of  # micro-batch `index` of `of`, from 0
        self.loss = result.loss.item()
        self.local, self.row_ids, self.column_ids, self.hard_from = layout
        self._matrix: Any = result.matrix or (result.scores, result.grad_scores)

    @property
    def has_matrix(self) -> bool:
        return callable(self._matrix) or self._matrix[0] is not None

    @property
    def scores(self) -> Tensor:
        return self._made_matrix()[0]

    @property
    def grad_scores(self) -> Tensor:
        return self._made_matrix()[1]

    weights = grad_scores  # its name in earlier versions

    def _made_matrix(self) -> tuple[Tensor, Tensor]:
        if not self.has_matrix:
            raise RuntimeError(
                "this micro-batch's matrix was not made, because similarity is 'incremental': set "
                "run.learner.observed = True before the update, or similarity='full'."
            )
        if callable(self._matrix):
            self._matrix = self._matrix()
        return self._matrix


class Update(NamedTuple):
    """What one weight update did. Gradient norms are of the whole update, before clipping."""

    step: int  # from 1
    loss: float  # mean over its micro-batches
    grad_norm_query: float
    grad_norm_passage: float
    grad_norm_ratio: float  # passage / query
    negatives: int  # columns but its own positive that a query had in the last micro-batch
    seconds: float


def grad_norm(parameters: list[nn.Parameter]) -> float:
    """‖∂loss/∂weights‖₂ of these parameters; 0 where they have no gradient."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients)) if gradients else 0.0

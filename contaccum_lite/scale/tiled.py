"""InfoNCE in tiles: exact, and the matrix of scores is never held as a whole.

What a row needs of its scores is one number, their log-sum-exp, and that can be added up tile by
tile. A second pass makes each tile again, turns it into its share of the softmax, and adds what it
gives to the gradients. Memory grows with rows + columns, time by the second product. Notebook 08;
the idea is that of Inf-CL (arXiv 2410.17243) and of FlashAttention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from contaccum_lite.core import shapes
from contaccum_lite.core.gradients import Embeddings
from contaccum_lite.core.hooks import Extension
from contaccum_lite.core.loss import LossAndGradients
from contaccum_lite.core.masks import keys_of

TILE = 512  # rows and columns of a tile

#: (rows, columns) of a tile as slices -> a mask of the tile, True where a score is left out
TileMask = Callable[[slice, slice], Tensor]


def attach_tiles(run) -> None:
    """The loss in tiles, where the settings of a run ask for it."""
    if run.settings.similarity == "tiled":
        run.learner.extensions.append(TiledLoss(run))


@torch.no_grad()
def tiled_info_nce(
    queries,
    passages,
    query_bank=None,
    passage_bank=None,
    hard_negatives=None,
    temperature: float = 1.0,
    *,
    bank_hard_negatives=None,
    mask: Tensor | TileMask | None = None,
    decoupled: bool = False,
    margin: float | None = None,
    tile: int = TILE,
) -> LossAndGradients:
    """As `info_nce_with_gradients`, by tiles; `scores` and `grad_scores` are not made.

    mask: (rows, columns), or a function that gives the mask of a tile. decoupled: leave the
    positive out of the denominator. margin: leave out columns whose score is above the positive's
    by more. tile: rows and columns of a tile. Raises `ValueError` for a tile below 1 and for shapes
    that do not fit.
    """
    shapes.check_temperature(temperature)
    if tile < 1:
        raise ValueError(f"tile is {tile}: it must be 1 or more rows and columns.")
    rows, columns = shapes.rows_and_columns(
        queries, passages, query_bank, passage_bank, hard_negatives, bank_hard_negatives
    )
    mask = _mask_of_tiles(mask, rows, columns)
    tiles = _Tiles(rows, columns, temperature, mask, decoupled, margin, tile)
    num_local = len(queries)
    first_hard = num_local + shapes.num_vectors(passage_bank)
    num_hard = shapes.num_vectors(hard_negatives)
    grad_queries = torch.zeros_like(rows[:num_local])
    grad_columns = torch.zeros_like(columns[: first_hard + num_hard])
    loss = rows.new_zeros(())
    for row_slice in tiles.slices(len(rows)):
        loss += tiles.add_rows(row_slice, grad_queries, grad_columns)
    scale = 1 / (len(rows) * temperature)
    grad_hard = grad_columns[first_hard:] * scale if num_hard else None
    grad_passages = grad_columns[:num_local] * scale
    return LossAndGradients(
        loss / len(rows), grad_queries * scale, grad_passages, grad_hard, None, None
    )


def _mask_of_tiles(mask, rows: Tensor, columns: Tensor) -> TileMask | None:
    """A mask as a function of a tile. Raises `ValueError` where a whole one does not fit."""
    if mask is None or callable(mask) and not isinstance(mask, Tensor):
        return mask
    scores = torch.empty(len(rows), len(columns), device="meta")  # a shape without its memory
    checked = shapes.checked_mask(mask, scores)
    return lambda row_slice, column_slice: checked[row_slice, column_slice]


class _Tiles:
    """The scores of rows (R, d) with columns (C, d), a tile at a time."""

    def __init__(self, rows, columns, temperature, mask, decoupled, margin, size):
        self.rows, self.columns, self.temperature = rows, columns, temperature
        self.mask, self.decoupled, self.margin, self.size = mask, decoupled, margin, size
        self.positives = (rows * columns[: len(rows)]).sum(1) / temperature

    def slices(self, count: int) -> Iterator[slice]:
        """0 to count, `size` numbers at a time."""
        for first in range(0, count, self.size):
            yield slice(first, min(first + self.size, count))

    def of_rows(self, row_slice: slice) -> Iterator[tuple[slice, Tensor]]:
        """The tiles of these rows: (columns, scores), -inf where a score is left out."""
        for column_slice in self.slices(len(self.columns)):
            scores = self.rows[row_slice] @ self.columns[column_slice].T
            scores /= self.temperature
            is_own = _own_columns(row_slice, column_slice, scores.device)
            if self.mask is not None:
                scores.masked_fill_(self.mask(row_slice, column_slice), -torch.inf)
            if self.margin is not None:
                above = scores > self.positives[row_slice, None] + self.margin
                scores.masked_fill_(above & ~is_own, -torch.inf)
            if self.decoupled:
                scores.masked_fill_(is_own, -torch.inf)
            yield column_slice, scores

    def log_sums(self, row_slice: slice) -> Tensor:
        """(rows,): the log-sum-exp of each row's scores. First pass."""
        log_sums = self.rows.new_full((row_slice.stop - row_slice.start,), -torch.inf)
        for _, scores in self.of_rows(row_slice):
            log_sums = torch.logaddexp(log_sums, scores.logsumexp(1))
        return log_sums

    def add_rows(self, row_slice: slice, grad_queries: Tensor, grad_columns: Tensor) -> Tensor:
        """The sum of these rows' losses; what they give is added to both gradients. Second pass.

        grad_queries: (N_local, d), of the first rows. grad_columns: of the first columns, up to the
        last one with a gradient. Both without the factor 1 / (rows · τ).
        """
        first, log_sums = row_slice.start, self.log_sums(row_slice)
        has_columns = log_sums > -torch.inf
        loss = (log_sums - self.positives[row_slice])[has_columns].sum()
        log_sums = torch.where(has_columns, log_sums, torch.inf)
        of_local = slice(first, max(first, min(len(grad_queries), row_slice.stop)))
        num_local = of_local.stop - first
        for column_slice, scores in self.of_rows(row_slice):
            softmax = scores.sub_(log_sums[:, None]).exp_()
            grad_queries[of_local] += softmax[:num_local] @ self.columns[column_slice]
            num_columns = max(0, min(column_slice.stop, len(grad_columns)) - column_slice.start)
            with_gradient = slice(column_slice.start, column_slice.start + num_columns)
            grad_columns[with_gradient] += softmax[:, :num_columns].T @ self.rows[row_slice]
        pull = has_columns.to(self.rows.dtype)[:, None]  # each row's positive pulls
        grad_queries[of_local] -= (pull * self.columns[row_slice])[:num_local]
        in_gradient = min(row_slice.stop, len(grad_columns)) - first
        pulls = (pull * self.rows[row_slice])[:in_gradient]
        grad_columns[first : first + in_gradient] -= pulls
        return loss


def _own_columns(rows: slice, columns: slice, device) -> Tensor:
    """True where a tile's column is its row's positive."""
    row_numbers = torch.arange(rows.start, rows.stop, device=device)
    return row_numbers[:, None] == torch.arange(columns.start, columns.stop, device=device)


class TiledLoss(Extension):
    """A run's loss by `tiled_info_nce`, whatever its banks."""

    name = "tiles"

    def __init__(self, run):
        self.learner = run.learner

    def bank_loss(self, embeddings, batch, step: int) -> LossAndGradients:
        learner, settings = self.learner, self.learner.settings
        layout = learner.layout(batch, step, True)
        memory = Embeddings(*(learner.read_bank(bank, step) for bank in learner.banks))
        with_queries = len(layout.row_ids) > layout.local
        result = tiled_info_nce(
            embeddings.queries,
            embeddings.passages,
            memory.queries if with_queries else None,
            memory.passages,
            embeddings.hard_negatives,
            settings.temperature,
            bank_hard_negatives=memory.hard_negatives,
            mask=self._mask(layout),
            decoupled=settings.objective == "decoupled",
            margin=settings.mask_margin,
        )
        if learner.observed:
            memory_copy = Embeddings(*(v if v is None else v.clone() for v in memory))

            def matrix():
                full = learner.full_matrix_loss(embeddings, memory_copy, layout)
                return full.scores, full.grad_scores

            result = result._replace(matrix=matrix)
        return result

    def _mask(self, layout) -> TileMask | None:
        """Duplicates, tile by tile; None where there are none."""
        learner = self.learner
        if not learner.settings.mask_duplicates:
            return None
        query_keys, passage_keys = keys_of(layout, learner.keys)
        device = learner.settings.device

        def mask(rows: slice, columns: slice) -> Tensor:
            same = passage_keys[rows, None] == passage_keys[columns]
            same |= query_keys[rows, None] == query_keys[columns]
            return same.to(device) & ~_own_columns(rows, columns, device)

        return mask

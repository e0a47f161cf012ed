"""The loss of a micro-batch against the banks of a ContAccumLoss, without the bank × bank block.

The same loss and gradients as those of the whole matrix. Scores among banked vectors do not change
while they are in the bank, so a banked row needs only one number of them, which `BankedSums` keeps:
O(N·B·d) for a micro-batch instead of O(N²·d).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from contaccum_lite.integrations.rows_to_loss import KnownGradient
from contaccum_lite.scale.banked_sums import BankedSums, block_strides

_SHORTEST = 1e-12  # of a vector that is divided by its length, as in torch's normalize


class Kind(NamedTuple):
    """What sums of one kind have in common: sums of another kind are other numbers."""

    length: int  # of the vectors that are compared: of the banked ones, the first numbers
    divides: bool  # whether vectors are divided by their length before they are compared
    scale: float
    masks: bool  # whether copies of a row's query or passage are left out
    hard_negatives: bool  # whether banked hard negatives are compared


class _Pending(NamedTuple):
    """What a micro-batch's comparison has left for when it enters the banks."""

    banked: Tensor  # (B, N): scores with the banked pairs, by slot
    local: Tensor  # (B, B): scores with the micro-batch's own pairs
    positives: Tensor  # (B,): scores with their own passages
    entering: Tensor  # (N,): of each banked row, log-sum-exp over the new columns


class BankedSoftmax:
    """Loss of micro-batches against the banks of `loss`, all as vectors of one kind.

    Its owner calls `contrast`, then enqueues the micro-batch, and calls `settle` when no other loss
    will compare that micro-batch any more.
    """

    def __init__(self, loss, kind: Kind):
        self.loss, self.kind = loss, kind
        vectors = loss.vectors
        like = {"dtype": vectors.dtype, "device": vectors.device}
        size, columns, _ = vectors.shape
        strides = block_strides(size, columns * kind.length)
        self.sums = BankedSums(size, self._scores, strides, **like)
        self.positives = torch.zeros(size, **like)
        self.factors = torch.ones(size, columns, **like)  # 1/length of each banked vector
        self._pending: _Pending | None = None
        count = len(loss)
        self._set_factors(torch.arange(count, device=vectors.device))
        self.sums.fill(self._oldest, count)
        products = (self._bank(0) * self._bank(1)).sum(1) * self.factors[:count, :2].prod(1)
        self.positives[:count] = products * kind.scale

    @property
    def _oldest(self) -> int:
        return (int(self.loss.position[0]) - len(self.loss)) % len(self.loss.vectors)

    def _bank(self, column: int, slots: Tensor | None = None) -> Tensor:
        """(N, length): one column of the banked vectors, not yet divided by their length."""
        vectors = self.loss.vectors[: len(self.loss)] if slots is None else self.loss.vectors[slots]
        return vectors[:, column, : self.kind.length]

    def _set_factors(self, slots: Tensor) -> None:
        if self.kind.divides:
            lengths = self.loss.vectors[slots, :, : self.kind.length].norm(dim=-1)
            self.factors[slots] = 1 / lengths.clamp(min=_SHORTEST)

    def _scores(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Scores of banked queries with banked pairs, by slots, for `sums`."""
        keys = self.loss.keys
        queries = self._bank(0, rows) * self.factors[rows, :1] * self.kind.scale
        by_column = []
        for column in self._pair_columns():
            scores = queries @ self._bank(column, columns).T * self.factors[columns, column]
            if self.kind.masks:
                same = keys[rows, 1][:, None] == keys[columns, column]
                if column == 1:
                    same |= keys[rows, 0][:, None] == keys[columns, 0]
                    same &= rows[:, None] != columns
                scores = scores.masked_fill_(same, -torch.inf)
            by_column.append(scores)
        return _together(by_column)

    def _pair_columns(self) -> range:
        """The columns of the data that are compared when they are banked."""
        return range(1, self.loss.vectors.shape[1] if self.kind.hard_negatives else 2)

    def contrast(self, vectors: Tensor, keys: Tensor) -> Tensor:
        """The loss of (B, columns, length) vectors with the banks as they are."""
        if self.kind.divides:
            vectors = normalize(vectors, dim=-1)
        with torch.no_grad():
            loss, gradient = self._contrast(vectors.detach(), keys)
        return KnownGradient.apply(vectors, loss, gradient)

    def _contrast(self, vectors: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient with respect to the vectors."""
        gradient = torch.zeros_like(vectors)
        banked_scores, local_scores = self._local_rows_scores(vectors, keys)
        losses = self._add_local_rows(gradient, vectors, banked_scores, local_scores)
        entering, banked_losses = self._add_banked_rows(gradient, vectors, keys)
        if self._pending is None:  # else another layer's vectors are compared
            pairs = self._pair_columns()
            banked = _together([banked_scores[column] for column in pairs])
            local = _together([local_scores[column] for column in pairs])
            self._pending = _Pending(banked, local, local_scores[1].diagonal(), entering)
        rows = len(vectors) + len(self.loss)
        return (losses + banked_losses) / rows, gradient * (self.kind.scale / rows)

    def _local_rows_scores(self, vectors: Tensor, keys: Tensor) -> tuple[dict, dict]:
        """(B, N) and (B, B) scores of the local queries, by column of the data."""
        count = len(self.loss)
        queries = vectors[:, 0] * self.kind.scale
        bank_keys = self.loss.keys[:count]
        banked, local = {}, {}
        for column in range(1, vectors.shape[1]):
            local[column] = queries @ vectors[:, column].T
            self._mask(local[column], keys, keys, column)
            if column in self._pair_columns():
                banked[column] = queries @ self._bank(column).T * self.factors[:count, column]
                self._mask(banked[column], keys, bank_keys, column, own=False)
        return banked, local

    def _mask(self, scores, row_keys, column_keys, column: int, own: bool = True) -> None:
        """Leave out copies of a row's passage, and in the first column other pairs' copies.

        own: row i's positive is column i of these scores.
        """
        if not self.kind.masks:
            return
        same = row_keys[:, 1][:, None] == column_keys[:, column]
        if column == 1:
            same |= row_keys[:, 0][:, None] == column_keys[:, 0]
            if own:
                same.fill_diagonal_(False)
        scores.masked_fill_(same, -torch.inf)

    def _add_local_rows(self, gradient, vectors, banked: dict, local: dict) -> Tensor:
        """Add the local rows' gradients. Returns the sum of their losses."""
        count = len(self.loss)
        total = torch.cat([*local.values(), *banked.values()], 1).logsumexp(1, keepdim=True)
        for column, scores in local.items():
            weights = (scores - total).exp_()
            if column == 1:
                weights.diagonal().sub_(1)
            gradient[:, 0] += weights @ vectors[:, column]
            gradient[:, column] += weights.T @ vectors[:, 0]
        for column, scores in banked.items():
            weights = (scores - total).exp_() * self.factors[:count, column]
            gradient[:, 0] += weights @ self._bank(column)
        return (total.squeeze(1) - local[1].diagonal()).sum()

    def _add_banked_rows(self, gradient, vectors, keys) -> tuple[Tensor, Tensor]:
        """Add the gradients that the banked rows give to the local passages and hard negatives.

        Returns the log-sum-exp of each row over the columns that will enter the banks, and the sum
        of the rows' losses.
        """
        count = len(self.loss)
        factors, queries = self.factors[:count, 0], self._bank(0)
        scores = {}  # (B, N) by column: a row is a local text, a column a banked query
        for column in range(1, vectors.shape[1]):
            texts = vectors[:, column] * self.kind.scale
            scores[column] = (texts @ queries.T).mul_(factors)
            self._mask_banked_rows(scores[column], keys, column)
        total = torch.logaddexp(_log_sum(scores.values()), self.sums.totals())
        entering = _log_sum([scores[column] for column in self._pair_columns()])
        for column, column_scores in scores.items():
            weights = column_scores.sub_(total).exp_().mul_(factors)
            gradient[:, column].addmm_(weights, queries)
        return entering, (total - self.positives[:count]).sum()

    def _mask_banked_rows(self, scores: Tensor, keys: Tensor, column: int) -> None:
        """Leave out what `_mask` does, where the banked queries are the columns of the scores."""
        if not self.kind.masks:
            return
        bank_keys = self.loss.keys[: len(self.loss)]
        same = keys[:, column][:, None] == bank_keys[:, 1]
        if column == 1:
            same |= keys[:, 0][:, None] == bank_keys[:, 0]
        scores.masked_fill_(same, -torch.inf)

    def settle(self) -> bool:
        """The micro-batch is in the banks now. False where it was not compared here."""
        if self._pending is None:
            return False
        (banked, local, positives, entering), self._pending = self._pending, None
        batch, count, size = len(local), banked.shape[1], len(self.loss.vectors)
        new = min(batch, size)
        oldest = self.sums.first_slot + self.sums.start
        first = oldest % size if count == size else 0
        stay = min(count + new, size) - new
        by_age = torch.cat([banked[:, first:], banked[:, :first]], 1)[:, count - stay :]
        slots = self.sums.slots(self.sums.written, self.sums.written + new)
        self.positives[slots] = positives[batch - new :]
        self._set_factors(slots)
        self.sums.enter(torch.cat([by_age, local[:, batch - new :]], 1)[batch - new :], entering)
        return True


def _log_sum(scores) -> Tensor:
    """(columns,): log-sum-exp over the rows of several matrices."""
    return torch.cat(list(scores)).logsumexp(0)


def _together(scores: list[Tensor]) -> Tensor:
    """Log-sum-exp of each pair's column and those of its hard negatives: (rows, pairs)."""
    return scores[0] if len(scores) == 1 else torch.stack(scores).logsumexp(0)

"""Log-sum-exp of each banked row over the columns in its bank, in less memory than the bank.

Columns leave a bank at the old end and come in at the new one. What row i needs is one sum over the
columns that are in the bank now:

    older   over the columns that came with row i or before it, and are still there
    newer   over the columns that have come since: each micro-batch adds its own

A log-sum-exp cannot give back a column: its large terms would swallow the small ones. So `older` is
kept as sums from the new end, one for each moment at which columns leave: N²/B numbers, or the
bank's own size many times over. Without them, scores must be computed again. Here they are, once:

    coarse sums   of all columns from every s-th one on: N/s numbers a row
    fine sums     of the s columns that leave next: s numbers a row, computed again from the banks
                  each time a block of s columns begins to leave

With s = √N that is 2·√N numbers a row, and one more product of (N, d) and (d, B) per micro-batch:
N·s scores for every s columns that leave. More levels need still less memory: a row keeps L·N^(1/L)
numbers, for L − 1 products. Nothing is ever subtracted, and micro-batches may be of any sizes.

What must be paid: at any moment, each row's sums at all later moments are independent numbers (any
values of them can occur, for each new moment adds a score of its own). A structure that never looks
at the vectors again must hold them all, N²/2B numbers; one that holds fewer must compute scores
again. docs/costs.md has memory and time of both. Notebook 08 derives the full table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

_ROWS = 1024  # rows whose scores are computed together
_MANY_ROWS = 64


def block_strides(size: int, numbers: int) -> list[int]:
    """Columns between two sums, level by level, so that a row keeps at most `numbers` of them.

    As few levels as can be, at least two; where no number of levels is enough, those that keep the
    fewest.
    """
    best = [1]
    for levels in range(2, 2 + max(1, size.bit_length())):
        root = size ** (1 / levels)
        ratio = 2 ** max(1, round(torch.tensor(root).log2().item()))
        strides = [ratio**level for level in range(levels - 1, -1, -1)]
        if best == [1] or _numbers(size, strides) < _numbers(size, best):
            best = strides
        if _numbers(size, best) <= numbers:
            break
    return best


def _numbers(size: int, strides: list[int]) -> int:
    """Sums that a row keeps."""
    fine = sum(coarse // fine for coarse, fine in zip(strides, strides[1:]))
    return -(-size // strides[0]) + 1 + fine


class SumsSnapshot(NamedTuple):
    """What `BankedSums.restore` takes back."""

    written: int
    first_slot: int
    newer: Tensor
    covers: Tensor
    coarse: list[tuple[slice, Tensor]]  # of the rows that will be overwritten


class BankedSums:
    """Of each banked row, the log-sum-exp of its scores with the banked columns.

    Args:
        size: rows and columns of the bank (N_memory).
        scores_of: (row slots, column slots) to the scores of these banked rows with these banked
            columns, (rows, columns); -inf where a column is left out. Equal each time.
        strides: from `block_strides`; the last is 1.
        dtype, device: of the scores.

    The owner calls `fill` once, then for each micro-batch `totals`, `enter`, and writes the bank.
    """

    def __init__(
        self,
        size: int,
        scores_of: Callable[[Tensor, Tensor], Tensor],
        strides: list[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.size, self.scores_of, self.strides = size, scores_of, strides
        self.written = 0  # columns so far; column c is the c-th of them
        self.first_slot = 0  # the slot of column 0
        like = {"dtype": dtype, "device": device}
        counts = [-(-size // strides[0]) + 1]
        counts += [coarse // fine for coarse, fine in zip(strides, strides[1:])]
        self.levels = [torch.full((count, size), -torch.inf, **like) for count in counts]
        self.blocks = [-1] * len(strides)  # the first column of the block that a level is for
        self.newer = torch.full((size,), -torch.inf, **like)
        # `older` is over the columns before this one
        self.covers = torch.zeros(size, dtype=torch.int64, device=device)

    @property
    def bytes(self) -> int:
        """Memory of the sums."""
        tensors = [*self.levels, self.newer, self.covers]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def start(self) -> int:
        """The oldest column in the bank."""
        return max(0, self.written - self.size)

    def slots(self, first: int, end: int) -> Tensor:
        """The slots of these columns."""
        columns = torch.arange(first, end, device=self.newer.device)
        return (columns + self.first_slot) % self.size

    def fill(self, oldest_slot: int, count: int) -> None:
        """Start again from a bank that holds `count` pairs, the oldest in this slot."""
        self.written, self.first_slot = count, oldest_slot
        self.blocks = [-1] * len(self.strides)
        self.newer.fill_(-torch.inf)
        slots = self.slots(0, count)
        for rows in slots.split(_ROWS) if count else ():
            self._write_rows(rows, self.scores_of(rows, slots))

    def totals(self) -> Tensor:
        """(rows in the bank,): the sums over all columns in the bank, by slot."""
        rows = min(self.written, self.size)
        total, start, end = self.newer[:rows], self.start, self.start + 2 * self.size
        for level, stride in enumerate(self.strides):
            first = -(-start // stride) * stride  # the first sum of this level from `start` on
            if first < end:
                if level:
                    self._refresh(level, end)
                total = torch.logaddexp(total, self.levels[level][self._entry(level, first), :rows])
            if first == start:
                break
            end = first
        return total

    def enter(self, scores: Tensor, entering: Tensor | None) -> None:
        """Take in a micro-batch, before its owner writes it into the banks.

        scores: (new rows, columns), the oldest column first, the new ones last. entering: (rows in
        the bank,), the log-sum-exp of each over the new columns; None where the bank is empty.
        """
        new, rows = len(scores), min(self.written, self.size)
        if entering is not None:
            torch.logaddexp(self.newer[:rows], entering, out=self.newer[:rows])
        slots = self.slots(self.written, self.written + new)
        self.written += new
        self.newer[slots] = -torch.inf
        self._write_rows(slots, scores)

    def _write_rows(self, rows: Tensor, scores: Tensor) -> None:
        """Write `older` of these rows. scores: (rows, all columns in the bank), oldest first."""
        start = self.start
        self.covers[rows] = self.written
        first = -(-start // self.strides[0])
        sums = _sums_from(scores, start, self.strides[0])  # from block start // stride on
        sums = sums[first - start // self.strides[0] :]
        sums = pad(sums, (0, 0, 0, 1), value=-torch.inf)  # and after the last column
        entries = (first + torch.arange(len(sums), device=rows.device)) % len(self.levels[0])
        self.levels[0][entries[:, None], rows] = sums
        for level in range(1, len(self.strides)):
            length = self.strides[level - 1]
            block = start // length * length
            if self.blocks[level] == block:
                self._write_block(level, rows, scores[:, : block + length - start])

    def _refresh(self, level: int, end: int) -> None:
        """Compute a level's sums for the block that ends at `end`, if they are another block's."""
        block = end - self.strides[level - 1]
        if self.blocks[level] == block:
            return
        last = min(end, self.written)
        columns = torch.arange(self.start, last, device=self.newer.device)
        column_slots = self.slots(self.start, last)
        for rows in self.slots(self.start, self.written).split(_ROWS):
            scores = self.scores_of(rows, column_slots)
            covers = self.covers[rows]
            if int(covers.min()) < last:  # columns that are in `newer` of these rows
                scores = scores.masked_fill(columns >= covers[:, None], -torch.inf)
            self._write_block(level, rows, scores)
        self.blocks[level] = block

    def _write_block(self, level: int, rows: Tensor, scores: Tensor) -> None:
        """scores: (rows, columns from the oldest one to the end of the block)."""
        stride = self.strides[level]
        sums = _sums_from(scores, self.start, stride)
        first = self._entry(level, self.start)
        self.levels[level][first : first + len(sums), rows] = sums
        self.levels[level][first + len(sums) :, rows] = -torch.inf

    def _entry(self, level: int, column: int) -> int:
        """Where a level keeps its sum from this column on."""
        return column // self.strides[level] % len(self.levels[level])

    # --- taking back, saving ---------------------------------------------------------------------

    def snapshot(self, count: int) -> SumsSnapshot:
        """What `restore` needs to take back the entering of up to `count` pairs in all."""
        slot = (self.first_slot + self.written) % self.size
        coarse = []
        for slots, _ in ring(slot, min(count, self.size), self.size):
            coarse.append((slots, self.levels[0][:, slots].clone()))
        return SumsSnapshot(
            self.written, self.first_slot, self.newer.clone(), self.covers.clone(), coarse
        )

    def restore(self, snapshot: SumsSnapshot) -> None:
        """Return to the snapshot. The finer sums will be computed again from the banks."""
        self.written, self.first_slot = snapshot.written, snapshot.first_slot
        self.newer.copy_(snapshot.newer)
        self.covers.copy_(snapshot.covers)
        for slots, sums in snapshot.coarse:
            self.levels[0][:, slots] = sums
        self.blocks = [-1] * len(self.strides)

    def state_dict(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        state = {f"level_{level}": sums for level, sums in enumerate(self.levels)}
        numbers = [self.written, self.first_slot, *self.strides, *self.blocks]
        return state | {
            "newer": self.newer,
            "covers": self.covers,
            "numbers": torch.tensor(numbers),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> bool:
        """Continue as the one that gave this state; False where it is of another shape."""
        levels = len(self.strides)
        names = [f"level_{level}" for level in range(levels)]
        if "numbers" not in state or len(state["numbers"]) != 2 + 2 * levels:
            return False
        numbers = state["numbers"].tolist()
        same_size = state["newer"].shape == self.newer.shape
        if not same_size or numbers[2 : 2 + levels] != self.strides:
            return False
        self.levels = [state[name].to(self.levels[0]).clone() for name in names]
        self.newer = state["newer"].to(self.newer).clone()
        self.covers = state["covers"].to(self.covers).clone()
        self.written, self.first_slot = numbers[:2]
        self.blocks = numbers[2 + levels :]
        return True


def _sums_from(scores: Tensor, start: int, stride: int) -> Tensor:
    """(blocks, rows): sums of each row from the first column of each block of `stride` columns on.

    scores: (rows, columns), of which the first is column `start`. The first block may have begun
    before it.
    """
    count = scores.shape[1]
    before = start % stride
    after = -(before + count) % stride
    padded = pad(scores, (before, after), value=-torch.inf)
    blocks = padded.reshape(len(scores), -1, stride)
    blocks = blocks.logsumexp(2) if stride > 1 else blocks[:, :, 0]
    if blocks.is_cuda or len(blocks) < _MANY_ROWS:
        return blocks.flip(1).logcumsumexp(1).flip(1).T
    sums = blocks.T.contiguous()  # on a processor, five times as fast row by row
    for column in range(len(sums) - 2, -1, -1):
        torch.logaddexp(sums[column], sums[column + 1], out=sums[column])
    return sums


def ring(start: int, count: int, size: int) -> Iterator[tuple[slice, slice]]:
    """`count` slots of a ring from `start` on, as one slice or two.

    Each comes with the slice of what goes there.
    """
    first = min(count, size - start)
    yield slice(start, start + first), slice(0, first)
    if count > first:
        yield slice(0, count - first), slice(first, count)

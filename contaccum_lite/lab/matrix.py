"""The similarity matrix of the last micro-batch as a picture."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from contaccum_lite.lab import stills
from contaccum_lite.lab.grid import LARGEST, Grid, colours, strongest
from contaccum_lite.lab.view import View
from contaccum_lite.utils.text import short

#: (row is local, column is local) -> what an entry of the matrix carries gradient to.
CARRIES = {
    (True, True): "both towers",
    (True, False): "the query tower only",
    (False, True): "the passage tower only",
    (False, False): "neither tower: both vectors are memories",
}
_LEGENDS = {
    "score": ["negative", "positive"],
    "softmax weight": ["≤ 0.0001", "1"],
    "gradient weight": ["pulls together", "pushes apart"],
}
_SMALLEST = 1e-4  # softmax weight that is still told from 0 by its colour


class Block(NamedTuple):
    """Rows or columns of the matrix that come from one source."""

    name: str
    start: int
    end: int
    side: str  # "row" or "column"


class MatrixView(View):
    """The last micro-batch's scores, softmax weights or gradient weights. Notebook 01."""

    title, wide = "Similarity matrix", (5.2, 5.4)
    KINDS = {
        "score": "q·p/τ",
        "softmax weight": "how much of a query's softmax falls on a passage",
        "gradient weight": "∂loss/∂score: below 0 pulls together, above 0 pushes apart",
    }

    def __init__(self, lab, kind: str = "softmax weight"):
        super().__init__(lab)
        self.grid = self.widget = Grid(
            title=self.title,
            talks="rows",
            empty="press Play or Step to see the first micro-batch",
            width=440,
        )
        self._drawn = None  # (micro-batch, kind)
        self.kind = kind
        self.grid.observe(lambda change: lab.soon(self.tell), "at")
        self.grid.observe(lambda change: lab.soon(self.rank), "picked")

    @property
    def kind(self) -> str:
        """What an entry shows: one of `KINDS`."""
        return self._kind

    @kind.setter
    def kind(self, kind: str) -> None:
        if kind not in self.KINDS:
            raise ValueError(f"kind is {kind!r}: choose one of {', '.join(self.KINDS)}.")
        self._kind = kind
        self.draw()

    def data(self) -> dict | None:
        """The numbers of the picture, or None before the first micro-batch.

        values (rows, columns) of this kind, nan where an entry is left out; local, hard_from; row
        and column ids.
        """
        micro = self.lab.micro
        if micro is None:
            return None
        if self.kind == "score":
            values = micro.scores
        elif self.kind == "softmax weight":
            values = softmax(micro)
        else:
            values = micro.grad_scores
        return dict(
            kind=self.kind,
            values=torch.where(micro.scores == -torch.inf, torch.nan, values),
            local=micro.local,
            hard_from=micro.hard_from,
            row_ids=micro.row_ids,
            column_ids=micro.column_ids,
        )

    def scale(self) -> int:
        """Rows and columns that share a byte of `cells`."""
        return 1 if self.lab.micro is None else -(-max(self.lab.micro.scores.shape) // LARGEST)

    def cells(self) -> np.ndarray:
        """The values as bytes of colour, (rows, columns).

        Of more than a canvas has room for, each block's strongest value.
        """
        micro, scale = self.lab.micro, self.scale()
        if micro is None:
            return np.zeros((0, 0), dtype=np.uint8)
        cells = self._colour_numbers(micro, scale).clamp_(1, 255).round_().to(torch.uint8).cpu()
        present = micro.scores.cpu() != -torch.inf
        cells[~strongest(present, scale)] = 0
        if self.kind == "gradient weight":
            first_row = -(-micro.local // scale)
            for start, end in self._frozen_columns():
                cells[first_row:, -(-start // scale) : -(-end // scale)] = 0
        return cells.numpy()

    def _colour_numbers(self, micro, scale: int) -> Tensor:
        """Numbers of colours before rounding: logarithmic, linear, or a square root."""
        if self.kind == "softmax weight":
            weights = strongest(softmax(micro), scale).clamp(min=_SMALLEST)
            return weights.log_().mul_(254 / -math.log(_SMALLEST)).add_(255)
        if self.kind == "score":
            scores = strongest(micro.scores.nan_to_num(neginf=0), scale)
            return scores.mul(127 / (float(scores.abs().max()) or 1.0)).add_(128)
        strength = strongest(micro.grad_scores, scale) * len(micro.grad_scores)
        return strength.abs().sqrt_().copysign_(strength).mul_(127).add_(128)

    def _frozen_columns(self) -> list[tuple[int, int]]:
        """The columns that are memories, as (start, end)."""
        micro = self.lab.micro
        return [
            (micro.local, micro.hard_from),
            (self._hard_bank_from(), micro.scores.shape[1]),
        ]

    def _hard_bank_from(self) -> int:
        """The first column of the hard negatives' bank."""
        micro = self.lab.micro
        local_hard = micro.local * self.lab.training.settings.hard_negatives
        return min(micro.hard_from + local_hard, micro.scores.shape[1])

    def blocks(self) -> list[Block]:
        """The matrix's blocks that are not empty, rows first."""
        micro = self.lab.micro
        if micro is None:
            return []
        rows, columns = micro.scores.shape
        hard_bank = self._hard_bank_from()
        blocks = [
            Block("local", 0, micro.local, "row"),
            Block("query bank", micro.local, rows, "row"),
            Block("local", 0, micro.local, "column"),
            Block("passage bank", micro.local, micro.hard_from, "column"),
            Block("hard", micro.hard_from, hard_bank, "column"),
            Block("hard bank", hard_bank, columns, "column"),
        ]
        return [block for block in blocks if block.end > block.start]

    def draw(self, words: bool = True) -> None:
        """Send the matrix as it is now, and with `words` what is said of it."""
        micro = self.lab.micro
        with self.grid.hold_sync():
            if self._drawn is None or self._drawn[0] is not micro or self._drawn[1] != self.kind:
                self._drawn = micro, self.kind
                palette = "magnitude" if self.kind == "softmax weight" else "signed"
                self.grid.show(
                    self.cells(),
                    scale=self.scale(),
                    shape=(0, 0) if micro is None else tuple(micro.scores.shape),
                    blocks=[tuple(block) for block in self.blocks()],
                    diagonal=0 if micro is None else len(micro.scores),
                    legend=_LEGENDS[self.kind],
                    colours=colours(palette).tobytes(),
                    title=f"{self.title}: {self.kind}",
                )
            if words:
                self.grid.sentence = self.sentence
                self.tell()
                self.rank()

    @property
    def sentence(self) -> str:
        micro = self.lab.micro
        if micro is None:
            return "No micro-batch yet."
        rows, columns = micro.scores.shape
        positives = softmax(micro).diagonal()
        is_first = micro.scores.diagonal() >= micro.scores.amax(1)
        settings = self.lab.training.settings
        knowing_nothing = ""
        if (settings.objective, settings.directions) == ("info_nce", "query"):
            knowing_nothing = f"; knowing nothing would be log {columns} = {math.log(columns):.2f}"
        return (
            f"Update {micro.update + 1}, micro-batch {micro.index + 1} of {micro.of}: {rows} rows "
            f"({self._sum('row')}) by {columns} columns ({self._sum('column')}). A query gives its "
            f"own passage {float(positives.mean()):.0%} of its softmax on average and ranks it "
            f"first in {float(is_first.float().mean()):.0%} of the rows; {self.carrying():.0%} of "
            f"the entries carry gradient. Loss {micro.loss:.2f}{knowing_nothing}."
        )

    def _sum(self, side: str) -> str:
        """A side's blocks with their sizes, as a sum."""
        blocks = [block for block in self.blocks() if block.side == side]
        return " + ".join(f"{block.end - block.start} {block.name}" for block in blocks)

    def carrying(self) -> float:
        """The share of entries through which a gradient flows to a tower."""
        micro = self.lab.micro
        rows, columns = micro.scores.shape
        frozen_columns = sum(end - start for start, end in self._frozen_columns())
        return 1 - (rows - micro.local) * frozen_columns / (rows * columns)

    def carries(self, row: int, column: int) -> str:
        """Where the gradient of this entry goes, in words."""
        micro = self.lab.micro
        if micro.scores[row, column] == -torch.inf:
            return "none: the entry is left out, as a copy of the row's own pair"
        is_frozen = any(start <= column < end for start, end in self._frozen_columns())
        return CARRIES[row < micro.local, not is_frozen]

    def _block_name(self, side: str, index: int) -> str:
        for block in self.blocks():
            if block.side == side and block.start <= index < block.end:
                return block.name
        raise IndexError(f"{side} {index}")

    def _passage(self, column: int):
        """The passage of a column: hard negatives are numbered by passage, others by pair."""
        micro, pairs = self.lab.micro, self.lab.pairs
        number = int(micro.column_ids[column])
        if column < micro.hard_from:
            number = pairs.row_of[pairs.train[number].passage_id]
        return pairs.passages[number]

    def tell(self) -> None:
        """Put the entry under the cursor into words."""
        if len(self.grid.at) == 2 and self.lab.micro is not None:
            self.grid.told = self.describe(*self.grid.at)
        else:
            self.grid.told = (
                "Point at an entry, or use the arrow keys: its texts, its number and where its "
                "gradient goes. Click a row, or press Enter: its ranking."
            )

    def describe(self, row: int, column: int) -> str:
        """Both texts of an entry, its numbers, and where its gradient goes."""
        micro, passage = self.lab.micro, self._passage(column)
        query = self.lab.pairs.train[int(micro.row_ids[row])].query
        positive = ", its own passage" if row == column else ""
        return (
            f"row {row} ({self._block_name('row', row)}) × column {column} "
            f"({self._block_name('column', column)}{positive}): score "
            f"{float(micro.scores[row, column]):.2f}, softmax "
            f"{float(softmax(micro, row)[column]):.4f}, gradient weight "
            f"{float(micro.grad_scores[row, column]):+.5f}; "
            f"gradient goes to {self.carries(row, column)}\n"
            f"query: {short(query, 160)}\n"
            f"passage: {short(passage.title, 80)} — {short(passage.text, 160)}"
        )

    def rank(self) -> None:
        """Put the picked row's ranking into words."""
        picked = self.grid.picked
        self.grid.ranking = self.ranking(picked[0]) if picked and self.lab.micro is not None else ""

    def ranking(self, row: int, most: int = 3) -> str:
        """The rank of a row's own passage, and at most `most` passages above it."""
        micro = self.lab.micro
        scores = micro.scores[row]
        order = scores.argsort(descending=True, stable=True).tolist()
        num_above = order.index(row)
        sentence = (
            f"Row {row} ranks its own passage {num_above + 1} of "
            f"{int((scores > -torch.inf).sum())}, with "
            f"{float(softmax(micro, row)[row]):.1%} of its softmax. "
        )
        if not num_above:
            return sentence + "Nothing is above it."
        above = []
        for column in order[: min(num_above, most)]:
            passage = self._passage(column)
            above.append(f"{short(passage.title or passage.id, 60)} ({float(scores[column]):.2f})")
        more = f" and {num_above - most} more" if num_above > most else ""
        return f"{sentence}Above it: {'; '.join(above)}{more}."

    def still(self, figure) -> None:
        stills.grid(figure.subplots(), self.grid)


def softmax(micro, row: int | None = None) -> Tensor:
    """The softmax of each row of a MicroStep, (rows, columns), or of one row, (columns,).

    Of its scores, whatever the objective makes of them.
    """
    scores = micro.scores if row is None else micro.scores[row]
    return scores.softmax(-1)

"""Pictures for notebooks: a matrix, lines, points, and a slider over any of them.

Each has its data, a sentence computed from it, and a still picture for where nothing runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import ipywidgets as w
import numpy as np
import torch
from torch import Tensor

from contaccum_lite.lab import stills
from contaccum_lite.lab.grid import Grid, colours
from contaccum_lite.utils.text import without_halves

LARGEST_WITH_NUMBERS = 8  # rows or columns up to which a still matrix has its numbers in the cells


class Picture:
    """A still picture with a `sentence`, and the live `widget` if there is one."""

    widget = None
    size = (6.4, 3.2)  # of the still picture, in inches

    def png(self) -> bytes:
        """The picture as it is now, with its sentence."""
        figure = stills.new(*self.size)
        self.still(figure)
        return stills.png(figure, self.sentence)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return stills.bundle(self.widget, self.png(), self.sentence)


class MatrixPicture(Picture):
    """Any matrix as coloured cells; the cell under the cursor tells its value.

    Args:
        values: (rows, columns) numbers; true and false are shown as 1 and 0.
        title: stands above. says: what the matrix shows; the sentence adds the numbers.
        signed: blue and orange about zero (the default if a value is negative), or colours from 0.
        local: the row and the column at which the memory begins; None draws no borders.
        rows, columns: what they are called in the sentence.
        most: where the scale of colours ends, the largest value if not given. Pictures that are
            compared need the same.

    Raises `ValueError` if values is not a matrix.
    """

    def __init__(
        self,
        values,
        title: str,
        says: str = "",
        *,
        signed: bool | None = None,
        local: int | None = None,
        rows: str = "queries",
        columns: str = "passages",
        most: float | None = None,
    ):
        self.values = torch.as_tensor(values).detach().double()
        if self.values.ndim != 2:
            raise ValueError(
                f"values has shape {tuple(self.values.shape)}: a picture of a matrix needs two "
                "dimensions."
            )
        self.title, self.says = without_halves(title), without_halves(says)
        self.rows, self.columns = without_halves(rows), without_halves(columns)
        self.local = local
        self.signed = bool((self.values < 0).any()) if signed is None else signed
        height, width = self.values.shape
        self.size = min(4.6, 1.4 + 0.45 * width), min(4.2, 1.2 + 0.45 * height)
        self.grid = self.widget = Grid(title=self.title, width=min(420, 60 + 40 * width))
        self.grid.observe(lambda change: self._tell(), "at")
        self._fill(most or float(self.values.abs().max()) or 1.0)
        self._tell()

    def _fill(self, most: float) -> None:
        """Give the grid its cells, on a scale of colours that ends at `most`."""
        if self.signed:
            cells = 128 + self.values * (127 / most)
            legend = [f"−{most:.3g}", f"{most:.3g}, 0 between"]
        else:
            cells = 1 + self.values * (254 / most)
            legend = ["0", f"{most:.3g}"]
        blocks = []
        if self.local is not None:
            blocks = blocks_of(self.local, *self.values.shape, "memory", "memory")
        self.grid.show(
            cells.clamp(1, 255).round().to(torch.uint8).numpy(),
            colours=colours("signed" if self.signed else "magnitude").tobytes(),
            legend=legend,
            blocks=blocks,
            sentence=self.sentence,
        )

    @property
    def sentence(self) -> str:
        """What the matrix shows, its shape, its range and its mean."""
        height, width = self.values.shape
        low, high, mean = self.values.min(), self.values.max(), self.values.mean()
        introduction = f"{self.says}: " if self.says else ""
        return (
            f"{introduction}{height} {self.rows} by {width} {self.columns}, "
            f"from {low:.3g} to {high:.3g}, mean {mean:.3g}."
        )

    def _tell(self) -> None:
        if len(self.grid.at) != 2:
            self.grid.told = "Point at an entry, or use the arrow keys."
            return
        row, column = self.grid.at
        self.grid.told = f"row {row}, column {column}: {self.values[row, column]:.4g}"

    def still(self, figure) -> None:
        """Draw the matrix on a matplotlib figure."""
        axis = figure.subplots()
        stills.grid(axis, self.grid)
        if max(self.values.shape) > LARGEST_WITH_NUMBERS:
            return
        box = dict(facecolor="white", alpha=0.7, linewidth=0, pad=1)
        style = dict(ha="center", va="center", fontsize=9, color="black", bbox=box)
        for row, line in enumerate(self.values.tolist()):
            for column, value in enumerate(line):
                if math.isfinite(value):
                    axis.text(column, row, f"{value:.2g}", **style)


def blocks_of(local: int, rows: int, columns: int, row_memory: str, column_memory: str) -> list:
    """The named blocks of a matrix whose memory begins at row and column `local`, for a `Grid`.

    row_memory, column_memory: the names of the memory's rows and columns.
    """
    blocks = [
        ("local", 0, local, "row"),
        ("local", 0, local, "column"),
        (column_memory, local, columns, "column"),
        (row_memory, local, rows, "row"),
    ]
    return [(name, start, end, side) for name, start, end, side in blocks if end > start]


class LinesPicture(Picture):
    """Lines over a common x.

    Args:
        lines: {name: (x, y)}, x and y equally many numbers.
        title, x, y: of the picture and its axes.
        log, log_x: whether y and x have a logarithmic scale.
        ends: how the sentence shows numbers, as in "{:.1%}"; with three digits if not given.

    Raises `ValueError` if lines is empty.
    """

    def __init__(
        self,
        lines: dict,
        title: str,
        x: str,
        y: str,
        *,
        log: bool = False,
        log_x: bool = False,
        ends: str | None = None,
    ):
        if not lines:
            raise ValueError("lines is empty: give {name: (x, y)}.")
        self.lines = {
            name: (list(map(float, xs)), list(map(float, ys))) for name, (xs, ys) in lines.items()
        }
        self.title, self.x, self.y, self.log, self.log_x, self.ends = title, x, y, log, log_x, ends

    @property
    def sentence(self) -> str:
        """The range of x, and each line's first, last and highest value."""
        first = min(min(xs) for xs, _ in self.lines.values())
        last = max(max(xs) for xs, _ in self.lines.values())
        ranges = {(xs[0], xs[-1]) for xs, _ in self.lines.values()}
        of_each = "; ".join(self._course(name, with_range=len(ranges) > 1) for name in self.lines)
        return f"{self.y} over {self.x} {first:g} to {last:g}: {of_each}."

    def _course(self, name: str, with_range: bool) -> str:
        """One line in words; with_range adds between which x it runs."""
        xs, ys = self.lines[name]
        text = f"{name} from {self._number(ys[0])} to {self._number(ys[-1])}"
        if with_range:
            text += f" (at {xs[0]:g} and {xs[-1]:g})"
        highest = max(ys)
        if highest > max(ys[0], ys[-1]):
            text += f", highest {self._number(highest)} at {xs[ys.index(highest)]:g}"
        return text

    def _number(self, y: float) -> str:
        if self.ends:
            return self.ends.format(y)
        return f"{y:,.0f}" if abs(y) >= 1000 else f"{y:.3g}"

    def still(self, figure) -> None:
        """Draw the lines on a matplotlib figure."""
        axis = figure.subplots()
        stills.lines(axis, self.lines, self.title, self.x, self.y, self.log, self.log_x)


class PointsPicture(Picture):
    """Named points; the sentence names the highest and the leftmost.

    points: {name: (x, y) or (x, y, spread of y)}. title, x, y: of the picture and its axes. log_x:
    whether x has a logarithmic scale. Raises `ValueError` if points is empty.
    """

    size = (7.6, 4.2)

    def __init__(self, points: dict, title: str, x: str, y: str, *, log_x: bool = False):
        if not points:
            raise ValueError("points is empty: give {name: (x, y)}.")
        self.points = {}
        for name, (across, up, *spread) in points.items():
            self.points[name] = (float(across), float(up), float(spread[0]) if spread else 0.0)
        self.title, self.x, self.y, self.log_x = title, x, y, log_x

    @property
    def sentence(self) -> str:
        """The highest and the leftmost point, then all of them."""
        highest = max(self.points, key=lambda name: self.points[name][1])
        leftmost = min(self.points, key=lambda name: self.points[name][0])
        each = "; ".join(f"{name} {y:.3g} at {x:.3g}" for name, (x, y, _) in self.points.items())
        return (
            f"{self.y} over {self.x}, {len(self.points)} points: highest {highest}, "
            f"leftmost {leftmost}. {each}."
        )

    def still(self, figure) -> None:
        """Draw the points on a matplotlib figure."""
        axis = figure.subplots()
        stills.points(axis, self.points, self.title, self.x, self.y, self.log_x)


class Slide:
    """A slider, and the picture that it makes.

    make: a function from the slider's value to a picture. The one keyword is the slider's name with
    its values: `Slide(lambda t: MatrixPicture(…), temperature=[0.5, 1, 2])`. Raises `ValueError` if
    there is another number of sliders.
    """

    def __init__(self, make: Callable, **slider):
        if len(slider) != 1:
            raise ValueError(
                f"Slide got {', '.join(slider) or 'no slider'}: give one, as in "
                "temperature=[0.5, 1, 2]."
            )
        self.make = make
        self.name, values = slider.popitem()
        values = list(values)
        self.slider = w.SelectionSlider(
            options=[(f"{value:g}", value) for value in values],
            value=values[len(values) // 2],
            description=self.name,
            style=dict(description_width="8em"),
            layout=dict(width="28em"),
        )
        self.place = w.VBox([])
        self.widget = w.VBox([self.slider, self.place])
        self.slider.observe(lambda change: self.draw(), "value")
        self.draw()

    def draw(self) -> None:
        """Make the picture for the slider's value. A matrix goes to the canvas that is there."""
        self.picture = self.make(self.slider.value)
        before = self.place.children
        after = self.picture.widget
        if before and isinstance(before[0], Grid) and isinstance(after, Grid):
            _repaint(before[0], after)
            after.close()
            return
        if after is None:
            layout = dict(max_width="620px")
            after = w.Image(value=self.picture.png(), format="png", layout=layout)
        self.place.children = (after,)
        for widget in before:
            widget.close()

    @property
    def sentence(self) -> str:
        """The slider's value and the picture's sentence."""
        return f"{self.name} {self.slider.value:g}. {self.picture.sentence}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        return stills.bundle(self.widget, self.picture.png(), self.sentence)


def _repaint(grid: Grid, source: Grid) -> None:
    """Give a grid the cells and texts of another one, in one message."""
    traits = ("rows", "columns", "cells", "colours", "legend", "blocks", "sentence", "title")
    with grid.hold_sync():
        for name in traits:
            setattr(grid, name, getattr(source, name))
        grid.frame += 1


def same(*values, tolerance: float = 1e-10) -> str:
    """Say that numbers or tensors are equal.

    values: numbers or tensors of one shape, compared in float64. tolerance: how far one may be from
    the first. Raises `AssertionError` with the difference where they are not equal, in values or in
    shape. Used under each identity of notebooks 01 to 04.
    """
    first = _float64(values[0])
    largest = 0.0
    for value in map(_float64, values[1:]):
        assert value.shape == first.shape, (
            f"shapes {tuple(first.shape)} and {tuple(value.shape)} are not the same."
        )
        if value.numel():
            difference = (value - first).abs().nan_to_num(nan=torch.inf)
            largest = max(largest, float(difference.max()))
    assert largest <= tolerance, (
        f"not the same: the largest difference is {largest:.3g}, allowed is {tolerance:g}."
    )
    limit = np.format_float_scientific(tolerance, trim="-")
    return f"the same {len(values)} times: no difference is above {limit}"


def _float64(value) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach()

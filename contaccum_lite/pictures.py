"""Pictures for notebooks: a matrix, some lines, and a slider over either. Each has its data, a sentence and a still picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from . import stills
from .grid import Grid, colours
from .stills import bundle, without_halves


class MatrixPicture:
    """Any matrix as coloured cells: `values` (rows, columns); true and false are shown as 1 and 0.

    signed: blue and orange about zero; otherwise from 0 to the largest. local: where a border is drawn between local and memory.
    says: what it shows; the sentence adds the numbers. most: where the scale of colours ends, for pictures to be compared; the largest value, if not said.
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
                f"values has shape {tuple(self.values.shape)}: a picture of a matrix needs two dimensions."
            )
        texts = map(without_halves, (title, says, rows, columns))
        (self.title, self.says, self.rows, self.columns), self.local = texts, local
        self.signed = bool((self.values < 0).any()) if signed is None else signed
        self.grid = self.widget = Grid(
            title=self.title, width=min(420, 60 + 40 * self.values.shape[1])
        )
        self.grid.observe(lambda change: self._tell(), "at")
        most = most or float(self.values.abs().max()) or 1.0
        places = 128 + self.values * (127 / most) if self.signed else 1 + self.values * (254 / most)
        blocks = (
            []
            if local is None
            else [
                ("local", 0, local, "row"),
                ("local", 0, local, "column"),
                ("memory", local, self.values.shape[1], "column"),
                ("memory", local, self.values.shape[0], "row"),
            ]
        )
        self.grid.show(
            places.clamp(1, 255).round().to(torch.uint8).numpy(),
            colours=colours("signed" if self.signed else "magnitude").tobytes(),
            legend=[f"−{most:.3g}", f"{most:.3g}, 0 between"]
            if self.signed
            else ["0", f"{most:.3g}"],
            blocks=[b for b in blocks if b[2] > b[1]],
            sentence=self.sentence,
        )
        self._tell()

    @property
    def sentence(self) -> str:
        v = self.values
        return (
            f"{self.says + ': ' if self.says else ''}{v.shape[0]} {self.rows} by {v.shape[1]} {self.columns}, from {float(v.min()):.3g} to {float(v.max()):.3g}, "
            f"mean {float(v.mean()):.3g}."
        )

    def _tell(self) -> None:
        at = self.grid.at
        self.grid.told = (
            f"row {at[0]}, column {at[1]}: {float(self.values[at[0], at[1]]):.4g}"
            if len(at) == 2
            else "Point at an entry, or use the arrow keys."
        )

    def png(self) -> bytes:
        figure = stills.new(
            min(4.6, 1.4 + 0.45 * self.values.shape[1]), min(4.2, 1.2 + 0.45 * self.values.shape[0])
        )
        stills.grid(figure.subplots(), self.grid)
        return stills.png(figure, self.sentence)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return bundle(self.widget, self.png(), self.sentence)


class LinesPicture:
    """Lines over a common x: `lines` is {name: (x, y)}. ends: how the sentence's numbers are shown, as in "{:.1%}"; with three digits, if not said."""

    widget = None

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
        show = (
            self.ends.format
            if self.ends
            else lambda y: f"{y:,.0f}" if abs(y) >= 1000 else f"{y:.3g}"
        )
        own = (
            len({(xs[0], xs[-1]) for xs, _ in self.lines.values()}) > 1
        )  # lines of different lengths say theirs
        peak = lambda xs, ys: (
            f", highest {show(max(ys))} at {xs[ys.index(max(ys))]:g}"
            if max(ys) > max(ys[0], ys[-1])
            else ""
        )
        parts = [
            f"{name} from {show(ys[0])} to {show(ys[-1])}{f' (at {xs[0]:g} and {xs[-1]:g})' if own else ''}{peak(xs, ys)}"
            for name, (xs, ys) in self.lines.items()
        ]
        every = [x for xs, _ in self.lines.values() for x in xs]
        return f"{self.y} over {self.x} {min(every):g} to {max(every):g}: {'; '.join(parts)}."

    def png(self) -> bytes:
        figure = stills.new(6.4, 3.2)
        stills.lines(
            figure.subplots(), self.lines, self.title, self.x, self.y, self.log, self.log_x
        )
        return stills.png(figure, self.sentence)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return bundle(self.widget, self.png(), self.sentence)


class PointsPicture:
    """Named points: `points` is {name: (x, y) or (x, y, spread)}; the sentence names the highest and the leftmost."""

    widget = None

    def __init__(self, points: dict, title: str, x: str, y: str, *, log_x: bool = False):
        if not points:
            raise ValueError("points is empty: give {name: (x, y)}.")
        self.points = {name: tuple(map(float, (*at, 0.0)[:3])) for name, at in points.items()}
        self.title, self.x, self.y, self.log_x = title, x, y, log_x

    @property
    def sentence(self) -> str:
        best, left = (
            max(self.points, key=lambda n: self.points[n][1]),
            min(self.points, key=lambda n: self.points[n][0]),
        )
        each = "; ".join(f"{name} {y:.3g} at {x:.3g}" for name, (x, y, _) in self.points.items())
        return f"{self.y} over {self.x}, {len(self.points)} points: highest {best}, leftmost {left}. {each}."

    def png(self) -> bytes:
        figure = stills.new(7.6, 4.2)
        axis = figure.subplots()
        stills.points(axis, self.points, self.title, self.x, self.y, self.log_x)
        return stills.png(figure, self.sentence)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return bundle(self.widget, self.png(), self.sentence)


class Slide:
    """A slider, and the picture that it makes: `Slide(lambda t: MatrixPicture(…), temperature=[0.5, 1, 2])`."""

    def __init__(self, make: Callable, **slider):
        import ipywidgets as w

        if len(slider) != 1:
            raise ValueError(
                f"Slide got {', '.join(slider) or 'no slider'}: give one, as in temperature=[0.5, 1, 2]."
            )
        ((self.name, values),) = slider.items()
        self.make, middle = make, list(values)[len(list(values)) // 2]
        self.slider = w.SelectionSlider(
            options=[(f"{v:g}", v) for v in values],
            value=middle,
            description=self.name,
            style=dict(description_width="8em"),
            layout=dict(width="28em"),
        )
        self.place = w.VBox([])
        self.widget = w.VBox([self.slider, self.place])
        self.slider.observe(lambda change: self.draw(), "value")
        self.draw()

    def draw(self) -> None:
        """Make the picture anew."""
        import ipywidgets as w

        self.picture = self.make(self.slider.value)
        old = self.place.children
        if (
            isinstance(getattr(self.picture, "widget", None), Grid)
            and old
            and isinstance(old[0], Grid)
        ):
            with old[0].hold_sync():  # the same canvas goes on
                new = self.picture.grid
                for name in (
                    "rows",
                    "columns",
                    "cells",
                    "colours",
                    "legend",
                    "blocks",
                    "sentence",
                    "title",
                ):
                    setattr(old[0], name, getattr(new, name))
                old[0].frame += 1
            new.close()
            return
        self.place.children = (
            self.picture.widget
            or w.Image(value=self.picture.png(), format="png", layout=dict(max_width="620px")),
        )
        for widget in old:
            widget.close()

    @property
    def sentence(self) -> str:
        return f"{self.name} {self.slider.value:g}. {self.picture.sentence}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        return bundle(self.widget, self.picture.png(), self.sentence)


def same(*values, tolerance: float = 1e-10) -> str:
    """That these numbers or tensors are equal, in words; raises `AssertionError` with the difference where they are not.

    A shape that differs is a difference. Used under each identity of notebooks 01 to 04.
    """
    first, worst = torch.as_tensor(values[0], dtype=torch.float64).detach(), 0.0
    for other in values[1:]:
        other = torch.as_tensor(other, dtype=torch.float64).detach()
        assert other.shape == first.shape, (
            f"shapes {tuple(first.shape)} and {tuple(other.shape)} are not the same."
        )
        worst = max(
            worst,
            float((other - first).abs().nan_to_num(nan=torch.inf).max()) if other.numel() else 0.0,
        )
    assert worst <= tolerance, (
        f"not the same: the largest difference is {worst:.3g}, allowed is {tolerance:g}."
    )
    return f"the same {len(values)} times: no difference is above {np.format_float_scientific(tolerance, trim='-')}"

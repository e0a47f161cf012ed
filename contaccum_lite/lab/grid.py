"""A canvas of coloured cells for the notebook: one byte a cell, fast enough for a million."""

from __future__ import annotations

import base64
import zlib
from functools import cache
from pathlib import Path
from uuid import uuid4

import anywidget
import numpy as np
import torch
import traitlets

_HERE = Path(__file__).parent
#: Rows or columns beyond which blocks of cells share a byte: a canvas has no room for more.
LARGEST = 720
#: cividis in 255 steps, as each channel's differences: matplotlib takes a second to be imported.
_CIVIDIS = (
    "c-oCp2@b#@2rIak>_PkgYqp7?f=9Me3K)YC1(u*A9VxMb)QnVh2Ta)z(UslqWs5cV$1+bDyC9P9dD>wJ"
    "^i>T1i(Lm72n=%7;G1Ml<6PbJ@G(-pNM2WH!sSJPr~HDaiD{3^PZJXgVqQsoJI#HE<DD0JX{OB5Tt#u4"
    "++u<}4}JkekwYH"
)


class Grid(anywidget.AnyWidget):
    """`cells` as a table of colours, with borders, marks, a cursor and a sentence below.

    cells: rows × columns bytes; 0 is an absent cell, 1 to 255 are a position in `colours`. The page
    answers each `beat` in `beaten` when it has drawn, says in `shown` whether it is in view,
    and puts the cursor into `at` and a clicked row into `picked`. The texts about the cursor
    (`told`) and about the row (`ranking`) come from Python.
    """

    _esm = _HERE / "grid.js"
    _css = _HERE / "grid.css"
    title = traitlets.Unicode().tag(sync=True)
    sentence = traitlets.Unicode().tag(sync=True)
    told = traitlets.Unicode().tag(sync=True)
    ranking = traitlets.Unicode().tag(sync=True)
    talks = traitlets.Unicode(
        "cells", help="'rows' where a row can be picked, '' where nothing is told"
    ).tag(sync=True)
    empty = traitlets.Unicode(help="what stands in place of no cells").tag(sync=True)
    width = traitlets.Int(420, help="the most, in CSS pixels").tag(sync=True)
    cells = traitlets.Bytes(b"").tag(sync=True)
    rows = traitlets.Int(0).tag(sync=True)
    columns = traitlets.Int(0).tag(sync=True)
    scale = traitlets.Int(1, help="rows and columns that share a byte of `cells`").tag(sync=True)
    colours = traitlets.Bytes(b"").tag(sync=True)
    legend = traitlets.List(help="the names of the colours' two ends").tag(sync=True)
    blocks = traitlets.List(help="(name, first, past the last, 'row' or 'column')").tag(sync=True)
    diagonal = traitlets.Int(0, help="how many cells of the diagonal are marked").tag(sync=True)
    marks = traitlets.List(help="(row, column) of cells with a frame").tag(sync=True)
    at = traitlets.List().tag(sync=True, echo_update=False)
    picked = traitlets.List().tag(sync=True, echo_update=False)
    frame = traitlets.Int(0).tag(sync=True)
    beat = traitlets.Int(0).tag(sync=True)
    window = traitlets.Int(
        5, help="beats that may be on their way; the page answers each of so many"
    ).tag(sync=True)
    beaten = traitlets.Int(0).tag(sync=True, echo_update=False)
    shown = traitlets.Bool(True).tag(sync=True, echo_update=False)
    patient = traitlets.Bool(
        False, help="its pictures wait a moment for another grid's, to be painted with them"
    ).tag(sync=True)
    key = traitlets.Unicode(help="the same in all views of this widget").tag(sync=True)

    @traitlets.default("key")
    def _new_key(self):
        return uuid4().hex

    def show(
        self, cells: np.ndarray, *, scale: int = 1, shape: tuple[int, int] | None = None, **more
    ) -> None:
        """Send one frame: the uint8 cells and whatever else changed, in one message.

        scale, shape: where one byte stands for `scale` × `scale` cells of a table of this shape
        (`strongest`). more: other traits.
        """
        rows, columns = cells.shape if shape is None else shape
        if "at" not in more and self.at and (self.at[0] >= rows or self.at[1] >= columns):
            more["at"] = []
        if self.picked and self.picked[0] >= rows:
            more["picked"] = []
        with self.hold_sync():
            self.rows, self.columns, self.scale, self.cells = rows, columns, scale, cells.tobytes()
            for name, value in more.items():
                setattr(self, name, value)
            self.frame += 1


def strongest(values: torch.Tensor, scale: int) -> torch.Tensor:
    """Of each `scale` × `scale` block of a (rows, columns) matrix, the value of the largest size.

    Of bools, whether any holds.
    """
    if scale == 1:
        return values
    array = values.cpu().numpy()
    if array.dtype == bool:
        return torch.from_numpy(_reduce_blocks(array, scale, np.logical_or))
    high, low = (_reduce_blocks(array, scale, reduce) for reduce in (np.maximum, np.minimum))
    return torch.from_numpy(np.where(high >= -low, high, low))


def _reduce_blocks(values: np.ndarray, scale: int, ufunc) -> np.ndarray:
    """Each block's `ufunc`; blocks at the edges may have fewer rows or columns.

    Down first, which runs along memory: faster than `ufunc.reduceat`.
    """
    for axis in (0, 1):
        before = (slice(None),) * axis
        reduced = values[(*before, slice(0, None, scale))].copy()
        for first in range(1, scale):
            lines = values[(*before, slice(first, None, scale))]
            inside = reduced[: lines.shape[0], : lines.shape[1]]
            ufunc(inside, lines, out=inside)
        values = reduced
    return values


@cache
def colours(name: str) -> np.ndarray:
    """(256, 4) RGBA bytes; number 0 is transparent.

    name: "signed" (blue, light grey for zero at 128, orange) or "magnitude" (cividis).
    """
    if name not in ("signed", "magnitude"):
        raise ValueError(f"colours {name!r}: choose 'signed' or 'magnitude'.")
    table = np.zeros((256, 4), dtype=np.uint8)
    table[1:, 3] = 255
    if name == "magnitude":
        steps = np.frombuffer(zlib.decompress(base64.b85decode(_CIVIDIS)), dtype=np.uint8)
        table[1:, :3] = steps.reshape(3, 255).T.cumsum(0, dtype=np.uint8)
        return table
    blue, grey, orange = np.array([0x154C8C, 0xE4E4E4, 0xC85A00])[:, None] >> (16, 8, 0) & 255
    value = np.linspace(-1, 1, 255)[:, None]
    end = np.where(value < 0, blue, orange)
    table[1:, :3] = (grey + (end - grey) * abs(value)).round()
    return table

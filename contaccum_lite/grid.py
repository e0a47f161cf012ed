"""A canvas of coloured cells for the notebook: fast enough for a million of them, because it is sent one byte a cell."""

from __future__ import annotations

from functools import cache, reduce
from pathlib import Path
from uuid import uuid4

import anywidget
import numpy as np
import traitlets

_HERE = Path(__file__).parent


LARGEST = 720   # rows or columns that are sent one by one


class Grid(anywidget.AnyWidget):
    """`cells` as a table of colours with borders, marks, a cursor (mouse or arrow keys) and a sentence below.

    cells: rows × columns bytes; 0 is an absent cell, 1 to 255 are a place in `colours`. The page answers each `beat` in
    `beaten` when it has drawn, says in `shown` whether any part is in view, and puts the cursor into `at` and a clicked row
    into `picked`. What is told of the cursor (`told`) and of the row (`ranking`) comes from Python.
    """

    _esm = _HERE / "grid.js"
    _css = _HERE / "grid.css"
    title = traitlets.Unicode().tag(sync=True)
    sentence = traitlets.Unicode().tag(sync=True)
    told = traitlets.Unicode().tag(sync=True)
    ranking = traitlets.Unicode().tag(sync=True)
    talks = traitlets.Unicode("cells", help="'rows' where a row can be picked, '' where nothing is told").tag(sync=True)
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
    window = traitlets.Int(3, help="beats that may be on their way; the page answers each of so many").tag(sync=True)
    beaten = traitlets.Int(0).tag(sync=True, echo_update=False)
    shown = traitlets.Bool(True).tag(sync=True, echo_update=False)
    key = traitlets.Unicode(help="the same in all views of this widget").tag(sync=True)

    @traitlets.default("key")
    def _new_key(self):
        return uuid4().hex

    def show(self, cells: np.ndarray, **more) -> None:
        """One frame: the (rows, columns) uint8 cells and whatever else changed, in one message.

        Of more cells than the screen has room for, each block of `scale` × `scale` is sent as the one farthest from the middle colour.
        """
        if "at" not in more and self.at and (self.at[0] >= cells.shape[0] or self.at[1] >= cells.shape[1]):
            more["at"] = []
        if self.picked and self.picked[0] >= cells.shape[0]:
            more["picked"] = []
        with self.hold_sync():
            self.rows, self.columns = cells.shape
            self.scale = max(1, -(-max(cells.shape) // LARGEST))
            self.cells = (cells if self.scale == 1 else _extremes(cells, self.scale)).tobytes()
            for name, value in more.items():
                setattr(self, name, value)
            self.frame += 1


def _extremes(cells: np.ndarray, scale: int) -> np.ndarray:
    """Each block's byte that is farthest from the middle."""
    rows, columns = cells.shape
    padded = np.pad(cells, ((0, -rows % scale), (0, -columns % scale)), mode="edge")
    parts = [padded[r::scale, c::scale] for r in range(scale) for c in range(scale)]
    high, low = reduce(np.maximum, parts), reduce(np.minimum, parts)
    return np.where(high >= 255 - low, high, low)          # high − 128 ≥ 127 − low, without leaving the bytes


@cache
def colours(name: str) -> np.ndarray:
    """(256, 4) RGBA bytes; number 0 is transparent. "signed": blue, light grey for zero at 128, orange; "magnitude": cividis."""
    table = np.zeros((256, 4), dtype=np.uint8)
    table[1:, 3] = 255
    place = np.linspace(-1, 1, 255)[:, None]
    if name == "signed":
        low, middle, high = (np.array(c) for c in ((0x15, 0x4C, 0x8C), (0xE4, 0xE4, 0xE4), (0xC8, 0x5A, 0x00)))
        table[1:, :3] = np.where(place < 0, middle + (low - middle) * -place, middle + (high - middle) * place).round()
    elif name == "magnitude":
        from matplotlib import colormaps
        table[1:, :3] = (colormaps["cividis"](np.linspace(0, 1, 255))[:, :3] * 255).round()
    else:
        raise ValueError(f"colours {name!r}: choose 'signed' or 'magnitude'.")
    return table

"""Several matrices beside each other, on one scale of colours. Notebook 10."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from contaccum_lite.course.plots import Picture
from contaccum_lite.lab import stills
from contaccum_lite.lab.grid import colours
from contaccum_lite.utils.text import without_halves


class PanelsPicture(Picture):
    """Matrices of signed numbers, each in a panel of its own, all on one scale of colours.

    panels: {name: (rows, columns) numbers}, nan where an entry is not there. says: what an entry
    is. local: the row and the column at which the memory begins, {name: number}, where a panel has
    a memory. across: panels in a row. most: where the scale of colours ends, the largest number if
    not given. Blue is below zero, orange above, white not there. Raises `ValueError` if panels is
    empty or one of them is no matrix.
    """

    def __init__(
        self,
        panels: dict,
        says: str,
        *,
        local: dict[str, int] | None = None,
        across: int = 3,
        most: float | None = None,
    ):
        if not panels:
            raise ValueError("panels is empty: give {name: (rows, columns) numbers}.")
        self.panels: dict[str, Tensor] = {}
        for name, values in panels.items():
            matrix = torch.as_tensor(values).detach().double()
            if matrix.ndim != 2:
                raise ValueError(
                    f"panel {name!r} has shape {tuple(matrix.shape)}: a picture of a matrix needs "
                    "two dimensions."
                )
            self.panels[without_halves(name)] = matrix
        self.says, self.local, self.across = without_halves(says), local or {}, across
        largest = max(float(values.nan_to_num().abs().max()) for values in self.panels.values())
        self.most = most or largest or 1.0
        self.down = -(-len(self.panels) // across)
        self.size = 2.5 * min(across, len(self.panels)), 2.35 * self.down

    @property
    def sentence(self) -> str:
        """Each panel's size, and its lowest and highest number."""
        each = "; ".join(f"{name}, {_in_words(values)}" for name, values in self.panels.items())
        return f"{self.says}: {each}."

    def still(self, figure) -> None:
        """Draw the panels on a matplotlib figure."""
        table = np.frombuffer(colours("signed").tobytes(), dtype=np.uint8).reshape(256, 4) / 255
        axes = np.ravel(figure.subplots(self.down, self.across, squeeze=False))
        for axis in axes[len(self.panels) :]:
            axis.set_axis_off()
        for axis, (name, values) in zip(axes, self.panels.items()):
            cells = (128 + values.nan_to_num() * (127 / self.most)).round().clamp(1, 255)
            image = table[cells.long().numpy()].copy()
            image[values.isnan().numpy()] = 1.0  # white: not there
            axis.imshow(image, interpolation="nearest", aspect="equal")
            height, width = values.shape
            for column in range(1, width):
                axis.axvline(column - 0.5, color="white", linewidth=0.5)
            for row in range(1, height):
                axis.axhline(row - 0.5, color="white", linewidth=0.5)
            border = self.local.get(name)
            if border is not None and border < width:
                axis.axvline(border - 0.5, color="black", linewidth=1.2)
            if border is not None and border < height:
                axis.axhline(border - 0.5, color="black", linewidth=1.2)
            axis.set(xticks=[], yticks=[])
            axis.set_title(stills.literal(name), fontsize=9)


def _in_words(values: Tensor) -> str:
    """A panel's size, how many entries it has, the lowest and the highest."""
    rows, columns = values.shape
    number = int((~values.isnan()).sum())
    low, high = float(values.nan_to_num().min()), float(values.nan_to_num().max())
    entries = "" if number == rows * columns else f" with {number} entries"
    return f"{rows} by {columns}{entries}, from {low:.2g} to {high:.2g}"

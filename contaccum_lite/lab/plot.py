"""A few panels of lines for the notebook, small enough to be sent and drawn while training runs."""

from __future__ import annotations

from pathlib import Path

import anywidget
import numpy as np
import traitlets

_HERE = Path(__file__).parent


class Plot(anywidget.AnyWidget):
    """Lines in panels, with a legend and the values under the pointer.

    panels: (key, title, whether the y axis is logarithmic, name of the x axis), in their order.
    lines: as `show` sends them. The page says in `drawn` which frame it has drawn last, so that
    nobody sends it more than it can draw.
    """

    _esm = _HERE / "plot.js"
    _css = _HERE / "plot.css"
    panels = traitlets.List().tag(sync=True)
    lines = traitlets.List().tag(sync=True)
    band = traitlets.List(help="(panel, low, high): a strip in which a line should stay").tag(
        sync=True
    )
    hidden = traitlets.List(help="panels that are left out").tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)
    drawn = traitlets.Int(0).tag(sync=True, echo_update=False)

    @property
    def answered(self) -> bool:
        """Whether the page has drawn the last frame."""
        return self.drawn >= self.frame

    def show(self, lines: list[dict]) -> None:
        """Send all lines in one message, with their points as little-endian doubles.

        lines: dicts with panel, name, x, y, color, dash ("solid", "dash", "dot", "dashdot" or
        "longdash"), width in pixels, ghost (drawn pale), legend, and markers.
        """
        with self.hold_sync():
            self.lines = [
                {**line, "x": _doubles(line["x"]), "y": _doubles(line["y"])} for line in lines
            ]
            self.frame += 1


def _doubles(values) -> bytes:
    return np.asarray(values, dtype="<f8").tobytes()

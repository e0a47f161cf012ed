"""What makes a lab one screen: its height, views that can be enlarged, and a tour."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

_HERE = Path(__file__).parent
#: (what is lit up, title, text) of each step
STEPS = (
    (
        "matrix",
        "The similarity matrix",
        "Each row is a query, each column a passage. The diagonal holds each query's own passage; "
        "every other entry of a row is a negative. Training makes the diagonal win.",
    ),
    (
        "matrix",
        "Local and memory",
        "The words at the borders say which rows and columns are local (encoded just now, with "
        "gradient) and which are memory (vectors from earlier micro-batches, without gradient).",
    ),
    (
        "banks",
        "The two memory banks",
        "Past queries on one side, past passages on the other. Bright slots are new. The marked "
        "slot is the next to be overwritten: first in, first out.",
    ),
    (
        "curves",
        "The curves",
        "Loss, the gradient norms of both towers and their ratio, and MRR@10 on the test queries. "
        "A ratio near 1 means that both towers learn at the same pace.",
    ),
    (
        "sliders",
        "What you can change",
        "K is the number of micro-batches in an update, N_local the pairs in a micro-batch, "
        "N_memory the vectors in each bank. “More controls” has the rest.",
    ),
    (
        "buttons",
        "Your turn",
        "Play trains until you pause. The next two buttons do one micro-batch or one update. Stop "
        "ends training, and Reset starts a new run; the old one stays as a thin line.",
    ),
)


_WITHOUT_NORMS = "The loss of each update, and MRR@10 on the test queries from time to time."


def steps(hide=()) -> list[tuple]:
    """The tour of a lab in which these panels are hidden."""
    if not {"norms", "ratio"} <= {*hide}:
        return list(STEPS)
    return [(at, title, _WITHOUT_NORMS if at == "curves" else text) for at, title, text in STEPS]


class Guide(anywidget.AnyWidget):
    """Gives the lab that it stands in the height of the screen, and explains it.

    Each view gets a button that enlarges it; Escape brings it back. steps: (what is lit up, title,
    text) of a tour that starts by itself on a browser's first visit, and never again; without steps
    there is none.
    """

    _esm = _HERE / "guide.js"
    _css = _HERE / "guide.css"
    steps = traitlets.List().tag(sync=True)

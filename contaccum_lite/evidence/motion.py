"""The cause over training: what the bank and the gradients do in the four cells of the 2 × 2.

From the `motion` and the norms of the ledger's records. `tools/figures.py` draws the lines;
docs/evidence.md shows them.
"""

from __future__ import annotations

from statistics import mean
from typing import NamedTuple

from contaccum_lite.evidence.ledger import CELLS
from contaccum_lite.evidence.records import RunRecords


class Panel(NamedTuple):
    """One measure over training. key: of a moment of `motion`, or of a record; log: its scale."""

    key: str
    title: str
    log: bool


PANELS = (
    Panel("shift", "shift of the bank, cloud widths", True),
    Panel("frozen", "softmax on frozen columns", False),
    Panel("collapse", "‖mean passage‖ ÷ mean ‖passage‖", False),
    Panel("norm_query", "gradient norm, query tower", True),
    Panel("norm_passage", "gradient norm, passage tower", True),
)
Line = tuple[list[float], list[float]]


def line(book: RunRecords, name: str, key: str) -> Line:
    """A measure of a run over training: updates, and means over the seeds."""
    runs = book.of(name)
    if key.startswith("norm"):
        twentieth = runs[0]["updates"] / len(runs[0][key])
        updates = [twentieth * (i + 0.5) for i in range(len(runs[0][key]))]
        return updates, [mean(values) for values in zip(*(r[key] for r in runs))]
    updates = [moment["update"] for moment in runs[0]["motion"]]
    moments = zip(*(r["motion"] for r in runs))
    return updates, [mean(moment[key] for moment in of_seeds) for of_seeds in moments]


def lines(book: RunRecords) -> dict[str, dict[str, Line]]:
    """Key of a panel -> cell of the 2 × 2 -> its line."""
    return {
        panel.key: {words: line(book, name, panel.key) for words, name in CELLS.items()}
        for panel in PANELS
    }


def sentence(book: RunRecords) -> str:
    """The figure in words: of each cell the largest of what is of the bank, and where norms go."""
    measured = lines(book)
    phrases = []
    for cell in CELLS:
        largest = {key: max(measured[key][cell][1]) for key in ("shift", "frozen", "collapse")}
        falls = {
            tower: measured[f"norm_{tower}"][cell][1][-1] / measured[f"norm_{tower}"][cell][1][0]
            for tower in ("query", "passage")
        }
        phrases.append(
            f"{cell[0].upper()}{cell[1:]}: shift up to {largest['shift']:.2g}, frozen share up to "
            f"{largest['frozen']:.2f}, collapse up to {largest['collapse']:.2f}; the query tower's "
            f"gradient ends at {falls['query']:.2g} and the passage tower's at "
            f"{falls['passage']:.2g} of where it began"
        )
    stale = book.of(CELLS["stale"])
    return (
        f"Five measures over {stale[0]['updates']} updates, in the four cells of the two "
        f"interventions, means over {len(stale)} seeds. {'. '.join(phrases)}."
    )

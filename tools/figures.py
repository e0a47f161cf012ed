"""The figures of docs/evidence.md, drawn from records: docs/images/*.png, and each with its sentence as alternative text.

python -m tools.figures     draws them all again
"""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image

from contaccum_lite.evidence import motion, predictor, run
from contaccum_lite.evidence.records import RunRecords
from contaccum_lite.lab.stills import LINES
from tools.docs import ROOT, write_table

IMAGES = ROOT / "docs" / "images"
SMALLEST_TEXT = 9  # points
WIDTH = 8.5  # inches, so that a page shows it at about its size
START_COLOURS = {"pretrained": "#0072B2", "random": "#D55E00"}
START_WORDS = {"pretrained": "fine-tuned", "random": "from random weights"}
MARKERS = dict(zip(predictor.VARIED, "os^vDP*X"))


def new_figure(height: float) -> Figure:
    """An empty figure that belongs to no window."""
    figure = Figure(figsize=(WIDTH, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_predictor(cells: list[predictor.Cell]) -> Figure:
    """Shift against the share of the control, coloured by start, marked by what was varied."""
    figure = new_figure(7.2)
    axis = figure.subplots()
    for start, varied in dict.fromkeys((c.start, c.varied) for c in cells):
        members = [c for c in cells if (c.start, c.varied) == (start, varied)]
        axis.scatter(
            [c.shift for c in members],
            [c.share for c in members],
            color=START_COLOURS[start],
            marker=MARKERS[varied],
            s=42,
            alpha=0.75,
            linewidths=0,
            label=f"{START_WORDS[start]}: {varied}",
        )
    for level in predictor.LEVELS[1:3]:
        axis.axvline(level, color="#7A7A7A", linestyle="--", linewidth=1)
    axis.set_xscale("log")
    axis.set_xlabel(
        "largest shift of the bank's mean while its vectors live, in widths of the cloud"
    )
    axis.set_ylabel("MRR@10 as a share of the control (push removed)")
    axis.set_ylim(-0.05, None)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=SMALLEST_TEXT, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_motion(book: RunRecords) -> Figure:
    """The five measures of the cause over training, a line for each cell of the 2 × 2."""
    figure = new_figure(5.2)
    *axes, last = figure.subplots(2, 3).flat
    last.set_axis_off()
    measured = motion.lines(book)
    for axis, panel in zip(axes, motion.PANELS):
        for (cell, (updates, values)), style in zip(measured[panel.key].items(), LINES):
            colour, dash, marker = style
            axis.plot(updates, values, dash, color=colour, marker=marker, markersize=4, label=cell)
        axis.set_title(panel.title, fontsize=SMALLEST_TEXT)
        axis.set_yscale("log" if panel.log else "linear")
        axis.set_xlabel("update", fontsize=SMALLEST_TEXT)
        axis.tick_params(labelsize=SMALLEST_TEXT, which="both")
        axis.spines[["top", "right"]].set_visible(False)
        if panel.log:
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
        else:
            axis.set_ylim(0, 1.05)
    handles = axes[0].get_lines()
    last.legend(handles=handles, fontsize=SMALLEST_TEXT + 1, loc="center", frameon=False)
    return figure


def figures() -> dict[str, tuple[Figure, str]]:
    """The name of each figure, which is that of its file and its marks -> it and its sentence."""
    cells = run.predictor_cells()
    drawn = {"failure-figure": (draw_predictor(cells), predictor.sentence(cells))}
    for start, book in run.ledger_books().items():
        drawn[f"motion-{start}"] = draw_motion(book), motion.sentence(book)
    return drawn


def embedded(name: str, sentence: str) -> str:
    """How a page of docs shows a figure."""
    return f"![{sentence}](images/{name}.png)"


def write_figures() -> None:
    """Write every image, in few colours so that it is small, and into the pages its sentence."""
    IMAGES.mkdir(exist_ok=True)
    for name, (figure, sentence) in figures().items():
        full = io.BytesIO()
        figure.savefig(full, format="png", dpi=110)
        image = Image.open(full).convert("RGB").quantize(64, dither=Image.Dither.NONE)
        image.save(IMAGES / f"{name}.png", optimize=True)
        write_table(name, embedded(name, sentence))


if __name__ == "__main__":
    write_figures()

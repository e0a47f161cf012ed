"""Still pictures by matplotlib, for where nothing runs, and the one output that serves all readers."""

from __future__ import annotations

import base64
import io
import re
import textwrap
from itertools import cycle

import numpy as np

from .settings import PRESETS

STYLES = {method: preset["line"] for method, preset in PRESETS.items()}
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (9, 3))}
#: Lines of any picture, in turn: colour, dash, mark.
LINES = list(
    zip(
        ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A7A7A", "#8F5BD0"],
        ["-", "--", ":", "-.", "-", "--"],
        "os^Dvx",
    )
)


def bundle(widget, png: bytes, sentence: str) -> tuple[dict, dict]:
    """One output for all readers: the live widget, a picture where no kernel runs, and the sentence."""
    sentence = without_halves(sentence)
    data, metadata = (
        {"text/plain": sentence, "image/png": base64.b64encode(png).decode()},
        {"image/png": {"alt": sentence}},
    )
    if widget is not None:
        live = widget._repr_mimebundle_()
        live = live[0] if isinstance(live, tuple) else live
        data["application/vnd.jupyter.widget-view+json"] = live[
            "application/vnd.jupyter.widget-view+json"
        ]
    return data, metadata


def literal(text: str) -> str:
    """Text that matplotlib takes for text: a dollar begins no formula, and no control character asks for a glyph."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", without_halves(text)).replace("$", r"\$")


def without_halves(text: str) -> str:
    """Text that can be drawn and sent: with a sign for each half of a surrogate pair."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def label(name: str) -> str:
    """A line's name for a legend, as `literal`."""
    name = literal(name)
    return f" {name}" if name.startswith("_") else name  # matplotlib would leave it out


def new(width: float, height: float):
    """An empty figure that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure, sentence: str) -> bytes:
    """The figure with its sentence below, as few colours as keep it small."""
    width, height = figure.get_size_inches()
    caption = textwrap.fill(sentence, int(width * 13.5))
    lines = caption.count("\n") + 1
    more = 0.16 * lines + 0.1
    figure.set_size_inches(width, height + more)
    figure.get_layout_engine().set(rect=(0, more / (height + more), 1, height / (height + more)))
    figure.text(
        0.01, 0.05 / (height + more), literal(caption), fontsize=8.5, va="bottom", color="#333333"
    )
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=80)
    from PIL import Image

    small = Image.open(out).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, format="png", optimize=True)
    return out.getvalue()


def grid(axis, grid) -> None:
    """A `Grid` as it stands."""
    axis.set_title(literal(grid.title), fontsize=10, pad=16 if grid.blocks else 6)
    axis.set(xticks=[], yticks=[])
    if not grid.rows:
        axis.spines[:].set_linestyle((0, (4, 4)))
        axis.text(
            0.5,
            0.5,
            literal(textwrap.fill(grid.empty, 28)),
            ha="center",
            va="center",
            fontsize=9,
            transform=axis.transAxes,
        )
        return
    table = np.frombuffer(grid.colours, dtype=np.uint8).reshape(256, 4)
    cells = np.frombuffer(grid.cells, dtype=np.uint8).reshape(-(-grid.rows // grid.scale), -1)
    edges = (-0.5, grid.columns - 0.5, grid.rows - 0.5, -0.5)
    tall = max(1.0, 0.15 * grid.columns / grid.rows)
    axis.imshow(table[cells], interpolation="nearest", aspect=tall, extent=edges)
    if grid.columns < 50:
        for n in range(1, grid.columns):
            axis.axvline(n - 0.5, color="white", linewidth=0.5)
        for n in range(1, grid.rows):
            axis.axhline(n - 0.5, color="white", linewidth=0.5)
    for name, start, end, side in grid.blocks:
        place = start - 0.5
        if start:
            (axis.axvline if side == "column" else axis.axhline)(
                place, color="white", linewidth=2.4
            )
            (axis.axvline if side == "column" else axis.axhline)(
                place, color="black", linewidth=1.2
            )
        if (end - start) / (grid.columns if side == "column" else grid.rows) > 0.15:
            at, away = (
                (((start + end) / 2 - 0.5, -0.5), (0, 3))
                if side == "column"
                else ((-0.5, (start + end) / 2 - 0.5), (-3, 0))
            )
            axis.annotate(
                name,
                at,
                xytext=away,
                textcoords="offset points",
                fontsize=8,
                ha="center" if side == "column" else "right",
                va="bottom" if side == "column" else "center",
                rotation=0 if side == "column" else 90,
                annotation_clip=False,
            )
    for row, column in grid.marks:
        axis.add_patch(_box(column, row))


def _box(column: int, row: int):
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2)


def curves(figure, lines: list[dict], panels: dict) -> None:
    """Lines of a `CurvesView` in its panels."""
    axes = dict(zip(panels, np.ravel(figure.subplots(2, 3))))
    for panel, (title, log) in panels.items():
        axes[panel].set_title(title, fontsize=9.5)
        axes[panel].set_yscale("log" if log else "linear")
        axes[panel].spines[["top", "right"]].set_visible(False)
        axes[panel].tick_params(labelsize=8)
    legend = np.ravel(figure.axes)[-1]
    legend.set_axis_off()
    handles = []
    for line in lines:
        if line["x"]:
            (drawn,) = axes[line["panel"]].plot(
                line["x"],
                line["y"],
                color=line["color"],
                linestyle=_DASHES[line["dash"]],
                linewidth=line["width"] * 0.75,
                alpha=0.7 if line["ghost"] else 1,
                marker="." if line.get("markers") else None,
                label=label(line["name"]),
            )
            if line["panel"] == "top20":
                handles.append(drawn)
            if line["panel"] == "norms":
                axes["norms"].legend(frameon=False, fontsize=7.5)
    axes["ratio"].axhspan(0.5, 2, color="#009E73", alpha=0.1)
    for panel, (
        _,
        log,
    ) in panels.items():  # after the lines: which numbers are written follows their range
        if log:
            plain(axes[panel].yaxis)
    for panel in ("loss", "top20", "mass"):
        axes[panel].set_ylim(bottom=0)
    if handles:
        legend.legend(handles=handles, loc="center left", frameon=False, fontsize=8.5)


def plain(axis, places=()) -> None:
    """Numbers as they are written, in place of powers of ten, on a logarithmic axis; at these places, if they are few."""
    from matplotlib.ticker import LogLocator, NullFormatter

    places = sorted(set(map(float, places)))
    low, high = axis.get_view_interval()
    axis.set_major_locator(
        LogLocator(10, subs=(1.0,) if places or high > 1e4 * low else (1.0, 2.0, 5.0), numticks=6)
    )
    if 0 < len(places) <= 12:
        axis.set_ticks(places)
    axis.set_major_formatter(_written)
    axis.set_minor_formatter(NullFormatter())


def _written(value: float, _=None) -> str:
    return f"{value:,.6g}" if value < 1e6 else f"{value:g}"


def lines(axis, lines: dict, title: str, x: str, y: str, log: bool, log_x: bool) -> None:
    """Named lines, each with a dash and a mark of its own."""
    for (name, (xs, ys)), (color, dash, mark) in zip(lines.items(), cycle(LINES)):
        axis.plot(
            xs,
            ys,
            color=color,
            linestyle=dash,
            marker=mark if len(xs) < 20 else None,
            markersize=5,
            linewidth=2,
            label=label(name),
        )
    axis.set_title(literal(title), fontsize=10)
    axis.set_xlabel(literal(x), fontsize=9)
    axis.set_ylabel(literal(y), fontsize=9)
    axis.set_yscale("log" if log else "linear")
    axis.set_xscale("log" if log_x else "linear")
    if log_x:
        plain(axis.xaxis, [x for xs, _ in lines.values() for x in xs])
    if log:
        plain(axis.yaxis)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=8.5)


def points(axis, places: dict, title: str, x: str, y: str, log_x: bool) -> None:
    """Numbered points with bars for their spread, and their names in a list beside them: names near each other would overlap."""
    for number, (name, (across, up, spread)) in enumerate(places.items(), 1):
        axis.errorbar(
            across,
            up,
            yerr=spread or None,
            fmt="o",
            color="#0072B2",
            ecolor="#B0B0B0",
            markersize=5,
        )
        axis.plot([], [], " ", label=literal(f"{number} {name}"))
    axis.set_title(literal(title), fontsize=10)
    axis.set_xlabel(literal(x), fontsize=9)
    axis.set_ylabel(literal(y), fontsize=9)
    if log_x:
        axis.set_xscale("symlog", linthresh=1)
        axis.xaxis.set_major_formatter(_written)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.legend(
        frameon=False,
        fontsize=8,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        handlelength=0,
        markerscale=0,
    )
    axis.figure.canvas.draw()  # where the points lie is known only now
    at = (
        axis.transData.transform([(across, up) for across, up, _ in places.values()])
        * 72
        / axis.figure.dpi
    )
    for number, (down, (across, up, _)) in enumerate(zip(apart(at), places.values()), 1):
        axis.annotate(
            str(number),
            (across, up),
            textcoords="offset points",
            xytext=(16, down - 3),
            fontsize=9,
            arrowprops=dict(arrowstyle="-", color="#B0B0B0", linewidth=0.6, shrinkA=0, shrinkB=2),
        )


def apart(at: np.ndarray, near: float = 22.0, height: float = 10.0) -> list[float]:
    """How far up (points of type) each label must move so that labels of points with nearly the same x, (n, 2) in points, do not overlap."""
    moved = [0.0] * len(at)
    for group in (
        sorted(np.flatnonzero(np.abs(at[:, 0] - x) < near), key=lambda n: at[n, 1])
        for x in at[:, 0]
    ):
        ends = [at[n, 1] for n in group]
        for _ in range(50):  # push neighbours apart, each by half of what is missing
            for k in range(len(ends) - 1):
                missing = max(0.0, height - (ends[k + 1] - ends[k]))
                ends[k], ends[k + 1] = ends[k] - missing / 2, ends[k + 1] + missing / 2
        for n, end in zip(group, ends):
            moved[n] = end - at[n, 1]
    return moved


def beside(target, yours) -> bytes:
    """A target and an answer side by side, and their difference."""
    parts = (np.atleast_2d(np.asarray(part, dtype=float)) for part in (target, yours))
    target, yours = (part.clip(-1e30, 1e30) for part in parts)  # so that differences are finite
    figure = new(7.2, 2.6)
    most = max(np.abs(target).max(), np.abs(yours).max(), 1e-12)
    for axis, part, title in zip(
        figure.subplots(1, 3),
        (target, yours, yours - target),
        ("expected", "yours", "yours − expected"),
    ):
        image = axis.imshow(part, cmap="PuOr_r", vmin=-most, vmax=most, aspect="equal")
        axis.set_title(title, fontsize=9.5)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=figure.axes, fraction=0.025)
    return png(figure, "")


# --- the four methods --------------------------------------------------------------------------------------------------

#: What an entry of the similarity matrix carries gradient to: colour and legend.
GRADIENTS = {
    "both": ("#1F4E79", "both towers"),
    "query": ("#7FB2E5", "query tower only"),
    "passage": ("#F0A04B", "passage tower only"),
    "none": ("#D9D9D9", "neither (frozen)"),
    "absent": ("#FFFFFF", "not computed"),
}


def methods_figure():
    """The similarity matrices of four methods at N_total 4, N_local 2, K 2, N_memory 4, each entry coloured by where its gradient goes."""
    from matplotlib.patches import Patch, Rectangle

    def kind(method, row, column):
        if method == "GradAccum" and row // 2 != column // 2:
            return "absent"
        local = 4 if method in ("DPR, the big batch", "GradAccum") else 2
        return {
            (True, True): "both",
            (True, False): "query",
            (False, True): "passage",
            (False, False): "none",
        }[row < local, column < local]

    shapes = {
        "DPR, the big batch": (4, 4),
        "GradAccum": (4, 4),
        "pre-batch": (2, 6),
        "ContAccum": (6, 6),
    }
    notes = {
        "DPR, the big batch": "3 negatives per query\nall 4 pairs in memory at once",
        "GradAccum": "1 negative per query\n2 pairs in memory, twice",
        "pre-batch": "5 negatives per query\na bank of 4 past passages",
        "ContAccum": "5 negatives per query\nbanks of 4 past queries and passages",
    }
    figure = new(11, 3.6)
    axes = figure.subplots(1, 4)
    for axis, (method, (rows, columns)) in zip(axes, shapes.items()):
        for row in range(rows):
            for column in range(columns):
                color = GRADIENTS[kind(method, row, column)][0]
                axis.add_patch(
                    Rectangle(
                        (column, -row - 1),
                        1,
                        1,
                        facecolor=color,
                        edgecolor="#888888",
                        linewidth=0.6,
                    )
                )
                if row == column:
                    axis.text(
                        column + 0.5,
                        -row - 0.5,
                        "+",
                        ha="center",
                        va="center",
                        color="white" if color == "#1F4E79" else "black",
                        fontsize=13,
                    )
        if columns == 6:
            axis.plot([2, 2], [0, -rows], color="black", linewidth=1.6)
        if rows == 6:
            axis.plot([0, 6], [-2, -2], color="black", linewidth=1.6)
        axis.set(xlim=(-0.2, 6.2), ylim=(-6.2, 0.2), aspect="equal", xticks=[], yticks=[])
        axis.set_title(method, fontsize=12)
        axis.spines[:].set_visible(False)
        axis.text(0, -rows - 0.3, notes[method], va="top", fontsize=8.5)
    axes[0].set_ylabel("queries", fontsize=9)
    figure.legend(
        handles=[
            Patch(facecolor=c, edgecolor="#888888", label=text) for c, text in GRADIENTS.values()
        ],
        loc="lower center",
        ncols=5,
        frameon=False,
        fontsize=9,
        title="An entry's gradient goes to (+ is the positive; columns are passages)",
        title_fontsize=9,
    )
    figure.get_layout_engine().set(rect=(0, 0.14, 1, 0.86))
    return figure

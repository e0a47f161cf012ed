"""Still pictures by matplotlib, for where nothing runs, and one output for all readers."""

from __future__ import annotations

import base64
import html
import io
import re
import textwrap
from itertools import cycle

import numpy as np

from contaccum_lite.lab.hosts import no_widgets_because, widget_view
from contaccum_lite.utils.text import without_halves

_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (9, 3))}
#: Lines of any picture, in turn: colour, dash, marker.
LINES = [
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", ":", "^"),
    ("#CC79A7", "-.", "D"),
    ("#7A7A7A", "-", "v"),
    ("#8F5BD0", "--", "x"),
]


def bundle(widget, png: bytes, sentence: str) -> tuple[dict, dict]:
    """One output for all readers: the live widget, a picture for no kernel, the sentence.

    Where no widget can live, the picture and the sentence come with a line that says why.
    """
    sentence = without_halves(sentence)
    picture = base64.b64encode(png).decode()
    data = {"text/plain": sentence, "image/png": picture}
    metadata = {"image/png": {"alt": sentence}}
    if widget is None:
        return data, metadata
    reason = no_widgets_because()
    if reason:
        image = f'<img alt="{html.escape(sentence)}" src="data:image/png;base64,{picture}">'
        data["text/plain"] = _with_reason(sentence, reason)
        data["text/html"] = f"{image}<p>{html.escape(reason)}</p>"
        return data, metadata
    view, view_metadata = widget_view(widget)
    return data | view, metadata | view_metadata


def worded(widget, sentence: str) -> dict | tuple[dict, dict]:
    """The output of a widget that has no picture: live, and its sentence for where nothing runs."""
    sentence = without_halves(sentence)
    reason = no_widgets_because()
    if reason:
        return {"text/plain": _with_reason(sentence, reason)}
    view, metadata = widget_view(widget)
    data = {"text/plain": sentence, **view}
    return (data, metadata) if metadata else data


def _with_reason(sentence: str, reason: str) -> str:
    """The sentence, and the line why there is no widget, once."""
    return sentence if reason in sentence else f"{sentence}\n{reason}"


def literal(text: str) -> str:
    """Text that matplotlib shows as it is: no dollar begins a formula, and no control character."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", without_halves(text)).replace("$", r"\$")


def label(name: str) -> str:
    """A line's name for a legend, as `literal`."""
    name = literal(name)
    return f" {name}" if name.startswith("_") else name  # matplotlib would leave it out


HEADROOM = 0.12  # inches above a picture, without which its titles are cut
DOTS = 100  # per inch: 9 points are then 12.5 pixels, and a page shows pixels


def new(width: float, height: float):
    """An empty figure that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure, sentence: str) -> bytes:
    """The figure with its sentence below, in few colours so that it is small."""
    from PIL import Image

    width, height = figure.get_size_inches()
    caption = textwrap.fill(sentence, int(width * 12.6))
    margin = 0.17 * (caption.count("\n") + 1) + 0.1
    total = height + margin + HEADROOM
    figure.set_size_inches(width, total)
    figure.get_layout_engine().set(rect=(0, margin / total, 1, height / total))
    figure.text(0.01, 0.05 / total, literal(caption), fontsize=9, va="bottom", color="#333333")
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=DOTS)
    image = Image.open(full).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def waiting(titles: list[str], sentence: str) -> bytes:
    """Empty frames with these titles and a sentence below: a lab before its first micro-batch.

    Drawn without matplotlib, which takes a second or two to be imported and to draw this.
    """
    from PIL import Image, ImageDraw, ImageFont

    width, high, edge = 784, 220, 16
    wide = (width - edge) // len(titles) - edge
    large, small = ImageFont.load_default(15), ImageFont.load_default(13)
    caption = textwrap.wrap(plain_letters(sentence), 118)
    image = Image.new("RGB", (width, high + 70 + 18 * len(caption)), "white")
    draw = ImageDraw.Draw(image)
    for number, title in enumerate(titles):
        left = edge + number * (wide + edge)
        draw.text((left, edge), title, fill="#111111", font=large)
        draw.rectangle((left, edge + 26, left + wide, edge + 26 + high), outline="#8A8A8A")
        draw.text((left + 12, edge + high // 2), "nothing yet: press Play", "#666666", small)
    for number, row in enumerate(caption):
        draw.text((edge, high + 56 + 18 * number), row, fill="#333333", font=small)
    file = io.BytesIO()
    image.quantize(64).save(file, format="png", optimize=True)
    return file.getvalue()


def plain_letters(text: str) -> str:
    """Text without what a small font has no letters for."""
    text = "".join(character if character.isprintable() else " " for character in text)
    return without_halves(text).replace("“", '"').replace("”", '"').replace("÷", "/")


def grid(axis, grid) -> None:
    """A `Grid` as it stands."""
    width = axis.figure.bbox.width / axis.figure.dpi  # inches
    title = literal(textwrap.fill(grid.title, max(16, int(12 * width))))
    axis.set_title(title, fontsize=10, pad=16 if grid.blocks else 6)
    axis.set(xticks=[], yticks=[])
    if not grid.rows:
        axis.spines[:].set_linestyle((0, (4, 4)))
        text = literal(textwrap.fill(grid.empty, 28))
        center = dict(ha="center", va="center", transform=axis.transAxes)
        axis.text(0.5, 0.5, text, fontsize=9, **center)
        return
    table = np.frombuffer(grid.colours, dtype=np.uint8).reshape(256, 4)
    cells = np.frombuffer(grid.cells, dtype=np.uint8).reshape(-(-grid.rows // grid.scale), -1)
    edges = (-0.5, grid.columns - 0.5, grid.rows - 0.5, -0.5)
    tall = max(1.0, 0.15 * grid.columns / grid.rows)
    axis.imshow(table[cells], interpolation="nearest", aspect=tall, extent=edges)
    if grid.columns < 50:
        for column in range(1, grid.columns):
            axis.axvline(column - 0.5, color="white", linewidth=0.5)
        for row in range(1, grid.rows):
            axis.axhline(row - 0.5, color="white", linewidth=0.5)
    for name, start, end, side in grid.blocks:
        _block(axis, name, start, end, side, grid.columns if side == "column" else grid.rows)
    for row, column in grid.marks:
        _frame(axis, row, column)


def _block(axis, name: str, start: int, end: int, side: str, total: int) -> None:
    """The border before a block of rows or columns, and its name if there is room."""
    draw_line = axis.axvline if side == "column" else axis.axhline
    if start:
        draw_line(start - 0.5, color="white", linewidth=2.4)
        draw_line(start - 0.5, color="black", linewidth=1.2)
    if (end - start) / total <= 0.15:
        return
    middle = (start + end) / 2 - 0.5
    style = dict(textcoords="offset points", fontsize=9, annotation_clip=False)
    if side == "column":
        axis.annotate(name, (middle, -0.5), xytext=(0, 3), ha="center", va="bottom", **style)
    else:
        style |= dict(ha="right", va="center", rotation=90)
        axis.annotate(name, (-0.5, middle), xytext=(-3, 0), **style)


def _frame(axis, row: int, column: int) -> None:
    from matplotlib.patches import Rectangle

    corner = (column - 0.5, row - 0.5)
    axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#D55E00", linewidth=2))


def curve_rows(panels) -> int:
    """How many rows these panels and their legend take, three to a row."""
    return 1 if len(panels) < 3 else 2


def curves(figure, lines: list[dict], panels: dict) -> None:
    """Lines of a `CurvesView` in its panels."""
    *axes, legend = np.ravel(figure.subplots(curve_rows(panels), 3))
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    axes = dict(zip(panels, axes))
    for panel, axis in axes.items():
        _dress_panel(axis, *panels[panel])
    for line in lines:
        if line["x"] and line["panel"] in axes:
            _curve(axes[line["panel"]], line)
    for panel, axis in axes.items():
        _finish_panel(axis, panel)
    legend.set_axis_off()
    runs = axes["mrr"].lines if "mrr" in axes else []
    if runs:
        legend.legend(handles=list(runs), loc="center left", frameon=False, fontsize=9)


def _dress_panel(axis, title: str, is_log: bool, x: str) -> None:
    axis.set_title(title, fontsize=9.5)
    axis.set_yscale("log" if is_log else "linear")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel(x, fontsize=9)
    axis.tick_params(labelsize=9)


def _finish_panel(axis, panel: str) -> None:
    """What is drawn after the lines, whose range decides which numbers an axis has."""
    if panel == "ratio":
        axis.axhspan(0.5, 2, color="#009E73", alpha=0.1)
    if axis.get_yscale() == "log":
        plain(axis.yaxis)
    else:
        axis.set_ylim(bottom=0)
    if panel == "norms" and axis.lines:
        axis.legend(frameon=False, fontsize=9)


def _curve(axis, line: dict) -> None:
    axis.plot(
        line["x"],
        line["y"],
        color=line["color"],
        linestyle=_DASHES[line["dash"]],
        linewidth=line["width"] * 0.75,
        alpha=0.7 if line["ghost"] else 1,
        marker="." if line.get("markers") else None,
        label=label(line["name"]),
    )


def plain(axis, values=()) -> None:
    """Plain numbers on a logarithmic axis, at these values if they are few."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = sorted(set(map(float, values)))
    low, high = axis.get_view_interval()
    digits = (1.0,) if values or high > 1e4 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(10, subs=digits, numticks=6))
    if 0 < len(values) <= 12:
        axis.set_ticks(values)
    axis.set_major_formatter(_format_number)
    axis.set_minor_formatter(NullFormatter())


def _format_number(value: float, position=None) -> str:
    return f"{value:,.6g}" if value < 1e6 else f"{value:g}"


def _titles(axis, title: str, x: str, y: str) -> None:
    axis.set_title(literal(title), fontsize=10)
    axis.set_xlabel(literal(x), fontsize=9)
    axis.set_ylabel(literal(y), fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)


def lines(axis, lines: dict, title: str, x: str, y: str, log: bool, log_x: bool) -> None:
    """Named lines, {name: (x, y)}, each with its own dash and marker."""
    for (name, (xs, ys)), (color, dash, marker) in zip(lines.items(), cycle(LINES)):
        style = dict(color=color, linestyle=dash, linewidth=2, markersize=5)
        axis.plot(xs, ys, marker=marker if len(xs) < 20 else None, label=label(name), **style)
    _titles(axis, title, x, y)
    axis.set_yscale("log" if log else "linear")
    axis.set_xscale("log" if log_x else "linear")
    values = {float(value) for xs, _ in lines.values() for value in xs}
    if log_x:
        plain(axis.xaxis, values)
    elif len(values) <= 10 and all(value.is_integer() for value in values):
        axis.set_xticks(sorted(values))  # no query is number 0.5
    if log:
        plain(axis.yaxis)
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=9)


def points(axis, points: dict, title: str, x: str, y: str, log_x: bool) -> None:
    """Numbered points with error bars, {name: (x, y, spread)}, and a list of their names.

    Names beside the points would overlap.
    """
    style = dict(fmt="o", color="#0072B2", ecolor="#B0B0B0", markersize=5)
    for number, (name, (across, up, spread)) in enumerate(points.items(), 1):
        axis.errorbar(across, up, yerr=spread or None, **style)
        axis.plot([], [], " ", label=literal(f"{number} {name}"))
    _titles(axis, title, x, y)
    if log_x:
        axis.set_xscale("symlog", linthresh=1)
        axis.xaxis.set_major_formatter(_format_number)
    beside = dict(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=0, markerscale=0)
    axis.legend(frameon=False, fontsize=9, **beside)
    axis.figure.canvas.draw()  # where the points lie is known only now
    data = [(across, up) for across, up, _ in points.values()]
    positions = axis.transData.transform(data) * 72 / axis.figure.dpi
    line = dict(arrowstyle="-", color="#B0B0B0", linewidth=0.6, shrinkA=0, shrinkB=2)
    style = dict(textcoords="offset points", fontsize=9, arrowprops=line)
    for number, (point, move) in enumerate(zip(data, apart(positions)), 1):
        axis.annotate(str(number), point, xytext=(16, move - 3), **style)


def apart(at: np.ndarray, near: float = 22.0, height: float = 10.0) -> list[float]:
    """How far up each label must move so that labels do not overlap.

    at: (n, 2), the points in points of type; only labels less than `near` apart in x can overlap.
    height: of a label.
    """
    moves = [0.0] * len(at)
    for x in at[:, 0]:
        neighbours = np.flatnonzero(np.abs(at[:, 0] - x) < near)
        group = sorted(neighbours, key=lambda n: at[n, 1])
        heights = [at[n, 1] for n in group]
        for _ in range(50):  # push neighbours apart, each by half of what is missing
            for k in range(len(heights) - 1):
                missing = max(0.0, height - (heights[k + 1] - heights[k]))
                heights[k] -= missing / 2
                heights[k + 1] += missing / 2
        for n, moved_to in zip(group, heights):
            moves[n] = moved_to - at[n, 1]
    return moves


def beside(target, yours) -> bytes:
    """A target and an answer beside each other, and their difference."""
    limit = 1e30  # so that differences are finite
    target, yours = (
        np.atleast_2d(np.asarray(values, dtype=float)).clip(-limit, limit)
        for values in (target, yours)
    )
    figure = new(7.2, 2.6)
    most = max(np.abs(target).max(), np.abs(yours).max(), 1e-12)
    pictures = {"expected": target, "yours": yours, "yours − expected": yours - target}
    for axis, (title, values) in zip(figure.subplots(1, 3), pictures.items()):
        image = axis.imshow(values, cmap="PuOr_r", vmin=-most, vmax=most, aspect="equal")
        axis.set_title(title, fontsize=9.5)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=figure.axes, fraction=0.025)
    return png(figure, "")


# --- the four methods --------------------------------------------------------------------------

#: What an entry of the similarity matrix carries gradient to: colour and legend.
GRADIENTS = {
    "both": ("#1F4E79", "both towers"),
    "query": ("#7FB2E5", "query tower only"),
    "passage": ("#F0A04B", "passage tower only"),
    "none": ("#D9D9D9", "neither (frozen)"),
    "absent": ("#FFFFFF", "not computed"),
}
#: method -> (rows, columns, how many of them are local, text below its matrix)
_MATRICES = {
    "DPR, the big batch": (4, 4, 4, "3 negatives per query\nall 4 pairs in memory at once"),
    "GradAccum": (4, 4, 4, "1 negative per query\n2 pairs in memory, twice"),
    "pre-batch": (2, 6, 2, "5 negatives per query\na bank of 4 past passages"),
    "ContAccum": (6, 6, 2, "5 negatives per query\nbanks of 4 past queries and passages"),
}


def methods_figure():
    """The similarity matrices of four methods, each entry coloured by where its gradient goes.

    At N_total 4, N_local 2, K 2 and N_memory 4.
    """
    from matplotlib.patches import Patch

    figure = new(11, 3.6)
    axes = figure.subplots(1, 4)
    for axis, (method, (rows, columns, local, note)) in zip(axes, _MATRICES.items()):
        for row in range(rows):
            for column in range(columns):
                across_batches = row // 2 != column // 2
                kind = "absent" if method == "GradAccum" and across_batches else ""
                _entry(axis, row, column, kind or _gradient(row < local, column < local))
        if columns == 6:
            axis.plot([2, 2], [0, -rows], color="black", linewidth=1.6)
        if rows == 6:
            axis.plot([0, 6], [-2, -2], color="black", linewidth=1.6)
        axis.set(xlim=(-0.2, 6.2), ylim=(-6.2, 0.2), aspect="equal", xticks=[], yticks=[])
        axis.set_title(method, fontsize=12)
        axis.spines[:].set_visible(False)
        axis.text(0, -rows - 0.3, note, va="top", fontsize=10)
    axes[0].set_ylabel("queries", fontsize=10)
    handles = [
        Patch(facecolor=c, edgecolor="#888888", label=text) for c, text in GRADIENTS.values()
    ]
    title = "An entry's gradient goes to (+ is the positive; columns are passages)"
    style = dict(loc="lower center", ncols=5, frameon=False, fontsize=10, title_fontsize=10)
    figure.legend(handles=handles, title=title, **style)
    figure.get_layout_engine().set(rect=(0, 0.14, 1, 0.82))
    return figure


def _gradient(query_is_local: bool, passage_is_local: bool) -> str:
    if query_is_local:
        return "both" if passage_is_local else "query"
    return "passage" if passage_is_local else "none"


def _entry(axis, row: int, column: int, kind: str) -> None:
    from matplotlib.patches import Rectangle

    color = GRADIENTS[kind][0]
    style = dict(facecolor=color, edgecolor="#888888", linewidth=0.6)
    axis.add_patch(Rectangle((column, -row - 1), 1, 1, **style))
    if row == column:
        style = dict(ha="center", va="center", color="white" if kind == "both" else "black")
        axis.text(column + 0.5, -row - 0.5, "+", fontsize=13, **style)

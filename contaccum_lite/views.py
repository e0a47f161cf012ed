"""Pictures: they observe, and compute nothing that trains. Each shows live, stands still where nothing runs, and has a sentence."""

from __future__ import annotations

import base64
import html
import io
import re
import time

from .lab import NAMES

#: Okabe and Ito's colours, which the common colour-blindnesses tell apart, with a dash of its own for each method.
STYLES = {"dpr": ("#666666", "solid"), "grad_accum": ("#0072B2", "dash"), "pre_batch": ("#D55E00", "dot"), "contaccum": ("#009E73", "solid"),
          "grad_cache": ("#56B4E9", "dashdot"), "momentum": ("#CC79A7", "dash")}
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
LONGEST_TEXT = 400


def plain_text(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text of a data set as HTML that shows just that text: escaped, without control characters, shortened with its length said."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]", "", text)
    more = f" … ({len(text):,} characters)" if len(text) > longest else ""
    return html.escape(text[:longest]).replace("$", "&#36;") + more


def bundle(widget, png: bytes, sentence: str) -> tuple[dict, dict]:
    """One output for all readers: the live widget, a picture where no kernel runs, and the sentence."""
    from ipywidgets import Widget  # noqa: F401  (registers the display of widgets)

    data, metadata = {"text/plain": sentence, "image/png": base64.b64encode(png).decode()}, {"image/png": {"alt": sentence}}
    if widget is not None:
        live = widget._repr_mimebundle_()
        live = live[0] if isinstance(live, tuple) else live
        data["application/vnd.jupyter.widget-view+json"] = live["application/vnd.jupyter.widget-view+json"]
    return data, metadata


# --- the race ----------------------------------------------------------------------------------------------------------

class RaceView:
    """Live curves of a `Race`: Top@20 and the gradient-norm ratio over updates, at most five frames a second."""

    def __init__(self, race):
        import ipywidgets
        from IPython.display import display

        self.race, self._drawn = race, 0.0
        self.figure = race_figure(race)
        self.words = ipywidgets.HTML(_paragraph(race.summary))
        self.widget = ipywidgets.VBox([self.figure, self.words])
        self.handle = display(*[_Bundle(self)], display_id=True)

    def refresh(self) -> None:
        """Draw what is new, unless the last frame was drawn just now."""
        if time.monotonic() - self._drawn < 0.2:
            return
        with self.figure.batch_update():
            for trace, (_, _, x, y) in zip(self.figure.data, race_lines(self.race)):
                trace.x, trace.y = x, y
        self.words.value = _paragraph(self.race.summary)
        self._drawn = time.monotonic()

    def finish(self) -> None:
        """Draw the last frame and put the picture beside it that stays."""
        self._drawn = 0.0
        self.refresh()
        if self.handle is not None:
            self.handle.update(_Bundle(self))


class _Bundle:
    def __init__(self, view):
        self.view = view

    def _repr_mimebundle_(self, include=None, exclude=None):
        return bundle(self.view.widget, race_png(self.view.race), self.view.race.summary)


def race_lines(race) -> list[tuple[str, str, list, list]]:
    """(method, panel, x, y) of every line in a race's picture: the data behind it."""
    lines = []
    for method, run in race.runs.items():
        lines.append((method, "top20", [u for u, _ in race.top20[method]], [100 * t for _, t in race.top20[method]]))
        width = max(1, race.updates // 40)
        ratios = [u.grad_norm_ratio for u in run.history]
        groups = [ratios[i:i + width] for i in range(0, len(ratios), width)]
        lines.append((method, "ratio", [i * width + len(g) for i, g in enumerate(groups)], [sorted(g)[len(g) // 2] for g in groups]))
    return lines


def race_figure(race):
    """The race as one plotly FigureWidget of two panels."""
    from plotly.graph_objects import FigureWidget
    from plotly.subplots import make_subplots

    figure = FigureWidget(make_subplots(rows=1, cols=2, subplot_titles=("Top@20 on the test questions, %", "gradient norm: passage ÷ query tower")))
    for method, panel, x, y in race_lines(race):
        color, dash = STYLES.get(method, ("#999999", "solid"))
        figure.add_scatter(x=x, y=y, mode="lines", name=NAMES[method], legendgroup=method, showlegend=panel == "top20",
                           line=dict(color=color, dash=dash, width=3), row=1, col=1 if panel == "top20" else 2)
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_yaxes(type="log", row=1, col=2)
    figure.update_xaxes(title="updates", range=[0, race.updates])
    figure.update_layout(height=340, margin=dict(l=40, r=10, t=40, b=40), legend=dict(orientation="h", y=-0.2),
                         modebar=dict(remove=["sendChartToCloud"]))
    return figure


def race_png(race) -> bytes:
    """The race as a still picture with its sentence below."""
    figure, axes = _subplots(2)
    for method, panel, x, y in race_lines(race):
        color, dash = STYLES.get(method, ("#999999", "solid"))
        axes[int(panel == "ratio")].plot(x, y, color=color, linestyle=_DASHES[dash], linewidth=2.2, label=NAMES[method] if panel == "top20" else None)
    axes[0].set(title="Top@20 on the test questions, %", xlabel="updates", xlim=(0, race.updates), ylim=(0, None))
    axes[1].set(title="gradient norm: passage ÷ query tower", xlabel="updates", xlim=(0, race.updates), yscale="log")
    axes[1].axhspan(0.5, 2, color="#009E73", alpha=0.08)
    axes[0].legend(frameon=False, fontsize=9)
    return _png(figure, race.summary)


# --- search ------------------------------------------------------------------------------------------------------------

class SearchBox:
    """A box that searches the passages with one or more runs as they are now, side by side. Text found is shown live only."""

    def __init__(self, runs: dict, query: str = "remove whitespace from a string", k: int = 5):
        import ipywidgets

        self.runs, self.k = runs, k
        self.box = ipywidgets.Text(value=query, description="search", continuous_update=False, layout=dict(width="32em"))
        self.found = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([self.box, self.found])
        self.box.observe(self._search, "value")
        self._search()

    def _search(self, change=None) -> None:
        if self.box.value.strip():
            self.hits = {method: run.search(self.box.value, self.k) for method, run in self.runs.items()}
            self.found.value = "<div style='display:flex;gap:2em;line-height:1.35'>" + "".join(map(self._column, self.hits)) + "</div>"

    def _column(self, method: str) -> str:
        rows = "".join(f"<li><b>{plain_text(h.title or h.id, 120)}</b> <small>{h.score:.1f}</small><br>{plain_text(h.passage, 160)}</li>"
                       for h in self.hits[method])
        return f"<div style='flex:1;min-width:0;overflow-wrap:anywhere'><b>{NAMES.get(method, method)}</b><ol>{rows}</ol></div>"

    @property
    def sentence(self) -> str:
        """What was found, by name only."""
        firsts = "; ".join(f"{NAMES.get(m, m)} finds {', '.join(h.title or h.id for h in hits[:3])}" for m, hits in self.hits.items())
        return f"For “{self.box.value}” {firsts}."

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = self.widget._repr_mimebundle_()
        return {**(data[0] if isinstance(data, tuple) else data), "text/plain": self.sentence}


class Card:
    """A pair to read: its text appears live only, its name always."""

    def __init__(self, pair):
        import ipywidgets

        self.pair = pair
        self.widget = ipywidgets.HTML(
            f"<p><b>query</b> &nbsp; {plain_text(pair.query)}</p><p><b>passage</b> &nbsp; <i>{plain_text(pair.title)}</i><br>"
            f"<span style='white-space:pre-wrap;line-height:1.35'>{plain_text(pair.passage)}</span></p>")

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = self.widget._repr_mimebundle_()
        return {**(data[0] if isinstance(data, tuple) else data), "text/plain": f"The pair of {self.pair.title}: run this cell to read its text."}


# --- the four methods --------------------------------------------------------------------------------------------------

#: What an entry of the similarity matrix carries gradient to: colour and legend.
GRADIENTS = {"both": ("#1F4E79", "both towers"), "query": ("#7FB2E5", "query tower only"), "passage": ("#F0A04B", "passage tower only"),
             "none": ("#D9D9D9", "neither (frozen)"), "absent": ("#FFFFFF", "not computed")}


def methods_figure():
    """The similarity matrices of four methods at N_total 4, N_local 2, K 2, N_memory 4, each entry coloured by where its gradient goes."""
    from matplotlib.patches import Patch, Rectangle

    def kind(method, row, column):
        if method == "GradAccum" and row // 2 != column // 2:
            return "absent"
        local = 4 if method in ("DPR, the big batch", "GradAccum") else 2
        return {(True, True): "both", (True, False): "query", (False, True): "passage", (False, False): "none"}[row < local, column < local]

    shapes = {"DPR, the big batch": (4, 4), "GradAccum": (4, 4), "pre-batch": (2, 6), "ContAccum": (6, 6)}
    notes = {"DPR, the big batch": "3 negatives per query\nall 4 pairs in memory at once", "GradAccum": "1 negative per query\n2 pairs in memory, twice",
             "pre-batch": "5 negatives per query\na bank of 4 past passages", "ContAccum": "5 negatives per query\nbanks of 4 past queries and passages"}
    figure, axes = _subplots(4, width=11, height=3.6)
    for axis, (method, (rows, columns)) in zip(axes, shapes.items()):
        for row in range(rows):
            for column in range(columns):
                color = GRADIENTS[kind(method, row, column)][0]
                axis.add_patch(Rectangle((column, -row - 1), 1, 1, facecolor=color, edgecolor="#888888", linewidth=0.6))
                if row == column:
                    axis.text(column + 0.5, -row - 0.5, "+", ha="center", va="center", color="white" if color == "#1F4E79" else "black", fontsize=13)
        if columns == 6:
            axis.plot([2, 2], [0, -rows], color="black", linewidth=1.6)
        if rows == 6:
            axis.plot([0, 6], [-2, -2], color="black", linewidth=1.6)
        axis.set(xlim=(-0.2, 6.2), ylim=(-6.2, 0.2), aspect="equal", xticks=[], yticks=[])
        axis.set_title(method, fontsize=12)
        axis.spines[:].set_visible(False)
        axis.text(0, -rows - 0.3, notes[method], va="top", fontsize=8.5)
    axes[0].set_ylabel("queries", fontsize=9)
    figure.legend(handles=[Patch(facecolor=c, edgecolor="#888888", label=text) for c, text in GRADIENTS.values()], loc="lower center",
                  ncols=5, frameon=False, fontsize=9, title="An entry's gradient goes to (+ is the positive; columns are passages)", title_fontsize=9)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    return figure


# --- still pictures ----------------------------------------------------------------------------------------------------

def _subplots(columns: int, width: float = 9.6, height: float = 3.4):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure, sentence: str) -> bytes:
    import textwrap

    caption = textwrap.fill(sentence, 125)
    figure.tight_layout(rect=(0, 0.04 + 0.055 * (caption.count("\n") + 1), 1, 1))
    figure.text(0.01, 0.015, caption, fontsize=8.5, va="bottom", color="#333333")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90)
    return out.getvalue()


def _paragraph(sentence: str) -> str:
    return f"<p role='status'>{html.escape(sentence)}</p>"

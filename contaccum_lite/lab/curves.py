"""The curves of a lab: loss, gradient norms and their ratio, MRR@10, similarity mass by age."""

from __future__ import annotations

import html
import math
import textwrap

import ipywidgets
import numpy as np
from plotly.graph_objects import FigureWidget
from plotly.subplots import make_subplots

from contaccum_lite.diagnostics import measure
from contaccum_lite.lab import stills
from contaccum_lite.lab.history import GHOSTS, format_scores
from contaccum_lite.lab.style import STYLES
from contaccum_lite.lab.view import View, paragraph
from contaccum_lite.utils.text import without_halves

#: panel -> (title, y axis is logarithmic)
PANELS = {
    "loss": ("loss; dashed: log N", False),
    "norms": ("gradient norms: query –, passage - -", True),
    "ratio": ("passage ÷ query gradient norm", True),
    "mrr": ("MRR@10 of the test queries, %", False),
    "mass": ("similarity mass by age, updates", False),
}
_GREY, _BLUE, _ORANGE, _GREEN = "#8A8A8A", "#0072B2", "#D55E00", "#009E73"
LOG_AXES = {f"yaxis{n}": panel for n, (panel, (_, log)) in enumerate(PANELS.items(), 1) if log}
_MAX_POINTS = 200  # of a line


class CurvesView(View):
    """Loss, gradient norms, their ratio, MRR@10 and similarity mass by age.

    Earlier runs are thin lines; MRR@10 before the first update is a dotted one. Notebooks 04 and
    05.
    """

    title, wide = "Curves", (9.6, 5.2)

    def __init__(self, lab):
        super().__init__(lab)
        self._drawn = self.lines()
        self.figure = _figure(self._drawn)
        self.figure.behind = lambda: lab.soon(self.figure.resend)
        self.words = ipywidgets.HTML(paragraph(self.sentence))
        # In a box a figure takes the whole width.
        self.widget = ipywidgets.VBox([self.figure, self.words])
        self.widget.add_class("ccl-curves")  # its text takes the theme's colour (grid.css)

    def data(self) -> dict[str, dict]:
        """{run's name: its numbers by update}; the last is the run under way."""
        return {name: _numbers(track) for name, track in self.lab.tracks()}

    def lines(self) -> list[dict]:
        """What is drawn, always in the same order: `GHOSTS` earlier runs, then the present one.

        Where there are fewer earlier runs, the first lines are empty.
        """
        tracks = self.lab.tracks()
        missing = [("", None)] * (GHOSTS + 1 - len(tracks))
        lines = []
        for number, (name, track) in enumerate([*missing, *tracks]):
            lines += _run_lines(name, track, ghost=number < GHOSTS)
        run, history = self.lab.training, self.lab.training.history
        steps = [u.step for u in history]
        uniform = [math.log(u.negatives + 1) for u in history]
        query = [u.grad_norm_query for u in history]
        passage = [u.grad_norm_passage for u in history]
        mass = measure.similarity_mass(run) if history else {}
        ages, masses = list(mass), list(mass.values())
        return [
            *lines,
            _start_line(self.lab.track, lines),
            _line("loss", "log N: knowing nothing", steps, uniform, _GREY, "dash", 1.5),
            _line("norms", "query tower", steps, query, _BLUE, "solid", 2),
            _line("norms", "passage tower", steps, passage, _ORANGE, "dash", 2),
            _line("mass", "similarity mass", ages, masses, _GREEN, "solid", 2) | {"markers": True},
        ]

    def draw(self) -> None:
        """Bring the figure's lines up to date, in one message."""
        lines = self.lines()
        with self.figure.batch_update():
            for trace, line, drawn in zip(self.figure.data, lines, self._drawn):
                if line != drawn:
                    _update_trace(trace, line, is_other_run=line["name"] != drawn["name"])
            for name, panel in LOG_AXES.items():
                ticks = _ticks(lines, panel)
                if self.figure.layout[name].tickvals != ticks["tickvals"]:
                    self.figure.layout[name].update(ticks)
        self._drawn = lines
        self.words.value = paragraph(self.sentence)

    @property
    def sentence(self) -> str:
        earlier = _describe_earlier(self.lab.tracks()[:-1])
        run, micro, accuracy = self.lab.training, self.lab.micro, self.lab.track.accuracy
        score = f" {accuracy[0].upper()}{accuracy[1:]}." if accuracy else ""
        if not run.history:
            return f"No update yet: no curve.{score}{earlier}"
        last = run.history[-1]
        columns = last.negatives + 1
        short = ""
        local_batch = micro and self.lab.track.value_at("local_batch", micro.update)
        if micro is not None and 0 < micro.local < local_batch:
            short = f"; the last micro-batch of an epoch has {micro.local} pairs"
        return (
            f"After update {last.step}: loss {last.loss:.2f} (log {columns} = "
            f"{math.log(columns):.2f}{short}); gradient norms {last.grad_norm_query:.3g} (query "
            f"tower) and {last.grad_norm_passage:.3g} (passage tower), ratio "
            f"{last.grad_norm_ratio:.2f}.{score}{earlier}"
        )

    def still(self, figure) -> None:
        stills.curves(figure, self.lines(), PANELS)


def _numbers(track) -> dict:
    history = track.run.history
    return dict(
        loss=[u.loss for u in history],
        ratio=[u.grad_norm_ratio for u in history],
        norms=[(u.grad_norm_query, u.grad_norm_passage) for u in history],
        mrr=track.mrr,
        top20=track.top20,
    )


def _run_lines(name: str, track, ghost: bool) -> list[dict]:
    """A run's loss, ratio and MRR@10; empty without a track."""
    history, mrr, method = [], [], None
    if track is not None:
        history, mrr, method = track.run.history, track.mrr, track.run.settings.method
    style = *STYLES.get(method, (_GREY, "solid")), 1.2 if ghost else 3, ghost
    steps = [u.step for u in history]
    updates, scores = [update for update, _ in mrr], [100 * score for _, score in mrr]
    return [
        _line("loss", name, steps, [u.loss for u in history], *style),
        _line("ratio", name, steps, [u.grad_norm_ratio for u in history], *style),
        _line("mrr", name, updates, scores, *style) | {"markers": not ghost},
    ]


def _start_line(track, lines: list[dict]) -> dict:
    """MRR@10 before the first update, as wide as the curves; empty until it is computed."""
    name, x, y = "", [], []
    if track.before is not None:
        ends = [line["x"][-1] for line in lines if line["panel"] == "mrr" and line["x"]]
        name, x, y = track.before_words, [0, max([1, *ends])], [100 * track.before["mrr@10"]] * 2
    return _line("mrr", name, x, y, _GREY, "dot", 1.2)


def _update_trace(trace, line: dict, is_other_run: bool) -> None:
    trace.x, trace.y = np.array(line["x"], dtype=float), np.array(line["y"], dtype=float)
    if is_other_run:
        trace.name, trace.showlegend = _label(line["name"]), _in_legend(line)
        trace.line.color, trace.line.dash = line["color"], line["dash"]


def _in_legend(line: dict) -> bool:
    return line["panel"] == "mrr" and bool(line["name"])


def _describe_earlier(ghosts) -> str:
    if not ghosts:
        return ""
    runs = []
    for name, track in ghosts:
        result = f"{track.run.step_count} updates"
        if track.scores:
            update, scores = track.scores[-1]
            result = f"{format_scores(scores)} after {update} updates"
        runs.append(f"{name}, {result}")
    return f" Earlier runs: {'; '.join(runs)}."


def _line(panel, name, x, y, color, dash, width, ghost=False) -> dict:
    """A line of at most about 200 points: of longer ones, the median of each group."""
    if panel != "mass" and len(x) > _MAX_POINTS:
        size = math.ceil(len(x) / _MAX_POINTS)
        starts = range(0, len(x), size)
        x = [x[min(start + size, len(x)) - 1] for start in starts]
        groups = [sorted(y[start : start + size]) for start in starts]
        y = [group[len(group) // 2] for group in groups]
    return dict(panel=panel, name=name, x=x, y=y, color=color, dash=dash, width=width, ghost=ghost)


def _ticks(lines: list[dict], panel: str) -> dict:
    """Plain numbers for a panel's logarithmic axis, where plotly's own are single digits.

    1, 2 and 5 times each power of ten, or over many powers only these.
    """
    y = [value for line in lines if line["panel"] == panel for value in line["y"] if value > 0]
    digits = (1, 2, 5) if y and max(y) < 3000 * min(y) else (1,)
    ticks = tuple(float(f"{digit}e{power}") for power in range(-9, 10) for digit in digits)
    return dict(tickvals=ticks, ticktext=tuple(f"{tick:g}" for tick in ticks))


def _label(name: str) -> str:
    """A run's name for plotly, which reads tags: escaped, and broken into short lines."""
    return "<br>".join(html.escape(row) for row in textwrap.wrap(without_halves(name), 34))


class LiveFigure(FigureWidget):
    """A FigureWidget with at most one update on its way, and none before the page has drawn it.

    A page answers each drawing with what it drew. Nothing here reads that; it says that the page is
    ready for more (`answered`). What changes before stays here (`stale`), and `behind()` is called
    when it can be sent. This overrides private methods of plotly 6.
    """

    answered = stale = fitted = False

    def get_state(self, key=None, drop_defaults=False):
        """The state now, not at the start: a page that is loaded again gets this."""
        if key is None:
            self.answered = self.stale = self.fitted = False
        state = super().get_state(key, drop_defaults)
        for name, attribute in (("_widget_data", "_data"), ("_widget_layout", "_layout")):
            if name in state and hasattr(self, "_widget_layout") and hasattr(self, attribute):
                state[name] = self.trait_metadata(name, "to_json")(getattr(self, attribute), self)
        return state

    def set_state(self, sync_data):
        """Take a message of the page: an answer, and otherwise nothing that is needed here."""
        # The answer about the layout comes too early, from a figure that is still empty.
        if "_js2py_traceDeltas" in sync_data:
            self.answered = True
            if not self.fitted:  # it was drawn before it was laid out, as wide as plotly guesses
                self.fitted = True
                self._send_relayout_msg({"autosize": True})
            if self.stale:
                self.behind()
        others = {name: v for name, v in sync_data.items() if not name.startswith("_js2py")}
        super().set_state(others)

    def behind(self) -> None:
        """Called when the page can be sent what it has missed."""

    def resend(self) -> None:
        """Send all lines as they are now."""
        if not self.answered:
            return
        self.stale, lines = False, self._data
        traces = {key: [line.get(key) for line in lines] for key in ("x", "y", "showlegend")}
        traces["name"] = [line.get("name", "") for line in lines]
        for key in ("color", "dash"):
            traces[f"line.{key}"] = [line["line"][key] for line in lines]
        layout = {}
        for name in LOG_AXES:
            for key in ("tickvals", "ticktext"):
                layout[f"{name}.{key}"] = self._layout[name][key]
        self._send_update_msg(traces, layout, list(range(len(lines))))

    def _send_update_msg(self, *arguments, **more):
        if not self.answered:
            self.stale = True
            return
        self.answered = False
        super()._send_update_msg(*arguments, **more)


def _figure(lines: list[dict]) -> LiveFigure:
    """One figure of all panels."""
    figure = make_subplots(
        rows=2,
        cols=3,
        subplot_titles=[title for title, _ in PANELS.values()],
        horizontal_spacing=0.07,
        vertical_spacing=0.16,
    )
    cells = {panel: dict(row=n // 3 + 1, col=n % 3 + 1) for n, panel in enumerate(PANELS)}
    for line in lines:
        figure.add_scatter(
            x=np.array(line["x"], dtype=float),
            y=np.array(line["y"], dtype=float),
            name=_label(line["name"]),
            mode="lines+markers" if line.get("markers") else "lines",
            showlegend=_in_legend(line),
            line=dict(color=line["color"], dash=line["dash"], width=line["width"]),
            opacity=0.55 if line["ghost"] else 1,
            **cells[line["panel"]],
        )
    for panel, (_, log) in PANELS.items():
        axis = dict(type="linear", rangemode="tozero")
        if log:
            axis = dict(type="log", **_ticks(lines, panel))
        figure.update_yaxes(**cells[panel], **axis)
    figure.add_hrect(y0=0.5, y1=2, row=1, col=3, fillcolor=_GREEN, opacity=0.12, line_width=0)
    figure.update_xaxes(title="updates", row=2, col=1)
    figure.update_xaxes(gridcolor="rgba(128,128,128,.25)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.25)", zeroline=False)
    figure.update_annotations(font_size=12)
    figure.update_layout(
        template="none",
        height=430,
        margin=dict(l=40, r=10, t=30, b=40),
        legend=dict(x=0.71, y=0.42, xanchor="left", yanchor="top"),
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font=dict(color="#808080"),
        uirevision="kept",
        autosize=True,
    )
    live = LiveFigure(figure)  # with all lines: what is sent before the page draws it would be lost
    config = {"responsive": True, "displayModeBar": False}
    live._config = config  # noqa: SLF001 (a plotly widget has no public name for it)
    return live

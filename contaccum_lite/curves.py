"""The curves of a lab: loss, gradient norms and their ratio, Top@20, similarity mass by age; earlier runs as thin lines."""

from __future__ import annotations

import html
import math
import textwrap

import numpy as np
from plotly.graph_objects import FigureWidget
from plotly.subplots import make_subplots

from . import measure, stills
from .lab import GHOSTS
from .stills import STYLES
from .views import View, paragraph

#: panel -> (title, y axis is logarithmic)
PANELS = {
    "loss": ("loss; dashed: log N", False),
    "norms": ("gradient norms: query –, passage - -", True),
    "ratio": ("passage ÷ query gradient norm", True),
    "top20": ("Top@20, % of test queries", False),
    "mass": ("similarity mass by age, updates", False),
}
_GREY = "#8A8A8A"
LOG_AXES = {f"yaxis{n}": panel for n, (panel, (_, log)) in enumerate(PANELS.items(), 1) if log}


class CurvesView(View):
    """Loss, both gradient norms, their ratio, Top@20 and similarity mass by age; earlier runs as thin lines. Notebooks 04 and 05."""

    title, wide = "Curves", (9.6, 5.2)

    def __init__(self, lab):
        import ipywidgets

        super().__init__(lab)
        self._drawn = self.lines()
        self.figure = _figure(self._drawn)
        self.figure.behind = lambda: lab.soon(self.figure.resend)
        self.words = ipywidgets.HTML(paragraph(self.sentence))
        self.widget = ipywidgets.VBox(
            [self.figure, self.words]
        )  # in a box a figure takes the whole width
        self.widget.add_class("ccl-curves")  # its text takes the theme's colour (grid.css)

    def data(self) -> dict[str, dict]:
        """{run's name: its numbers by update}, whole; the last is the run under way."""
        return {
            name: dict(
                loss=[u.loss for u in track.run.history],
                ratio=[u.grad_norm_ratio for u in track.run.history],
                norms=[(u.grad_norm_query, u.grad_norm_passage) for u in track.run.history],
                top20=list(track.top20),
            )
            for name, track in self.lab.tracks()
        }

    def lines(self) -> list[dict]:
        """What is drawn, always in the same order: GHOSTS earlier runs (empty where there are fewer), then the present one."""
        tracks = self.lab.tracks()
        found = []
        for place in range(GHOSTS + 1):
            number = place - (GHOSTS + 1 - len(tracks))
            name, track = tracks[number] if number >= 0 else ("", None)
            found += self._of(name, track, ghost=place < GHOSTS)
        run, history = self.lab.training, self.lab.training.history
        at = [u.step for u in history]
        found.append(
            _line(
                "loss",
                "log N: knowing nothing",
                at,
                [math.log(u.negatives + 1) for u in history],
                _GREY,
                "dash",
                1.5,
            )
        )
        found.append(
            _line(
                "norms",
                "query tower",
                at,
                [u.grad_norm_query for u in history],
                "#0072B2",
                "solid",
                2,
            )
        )
        found.append(
            _line(
                "norms",
                "passage tower",
                at,
                [u.grad_norm_passage for u in history],
                "#D55E00",
                "dash",
                2,
            )
        )
        mass = measure.similarity_mass(run) if run.history else {}
        found.append(
            _line("mass", "similarity mass", list(mass), list(mass.values()), "#009E73", "solid", 2)
            | {"markers": True}
        )
        return found

    def _of(self, name: str, track, ghost: bool) -> list[dict]:
        history = track.run.history if track else []
        color, dash = (
            STYLES.get(track.run.settings.method, (_GREY, "solid")) if track else (_GREY, "solid")
        )
        at, wide = [u.step for u in history], 1.2 if ghost else 3
        return [
            _line("loss", name, at, [u.loss for u in history], color, dash, wide, ghost),
            _line(
                "ratio", name, at, [u.grad_norm_ratio for u in history], color, dash, wide, ghost
            ),
            _line(
                "top20",
                name,
                [u for u, _ in track.top20] if track else [],
                [100 * v for _, v in track.top20] if track else [],
                color,
                dash,
                wide,
                ghost,
            )
            | {"markers": not ghost},
        ]

    def draw(self) -> None:
        """Bring the figure's lines up to date, in one message."""
        lines = self.lines()
        with self.figure.batch_update():
            for trace, line, drawn in zip(self.figure.data, lines, self._drawn):
                if line == drawn:
                    continue
                trace.x, trace.y = (
                    np.array(line["x"], dtype=np.float64),
                    np.array(line["y"], dtype=np.float64),
                )
                if line["name"] != drawn["name"]:
                    trace.name, trace.showlegend = (
                        _label(line["name"]),
                        line["panel"] == "top20" and bool(line["name"]),
                    )
                    trace.line.color, trace.line.dash = line["color"], line["dash"]
            for name, panel in LOG_AXES.items():
                if self.figure.layout[name].tickvals != (ticks := _ticks(lines, panel))["tickvals"]:
                    self.figure.layout[name].update(ticks)
        self._drawn = lines
        self.words.value = paragraph(self.sentence)

    @property
    def sentence(self) -> str:
        tracks = self.lab.tracks()
        run, track = self.lab.training, self.lab.track
        if not run.history:
            return "No update yet: no curve." + _earlier(tracks[:-1])
        last = run.history[-1]
        seen = (
            f" Top@20 {track.top20[-1][1]:.1%} after update {track.top20[-1][0]}."
            if track.top20
            else ""
        )
        micro = self.lab.micro
        short = (
            f"; the last micro-batch of an epoch has {micro.local} pairs"
            if micro is not None and 0 < micro.local < run.settings.local_batch
            else ""
        )
        return (
            f"After update {last.step}: loss {last.loss:.2f} (log {last.negatives + 1} = {math.log(last.negatives + 1):.2f}{short}); gradient norms "
            f"{last.grad_norm_query:.3g} (query tower) and {last.grad_norm_passage:.3g} (passage tower), ratio {last.grad_norm_ratio:.2f}."
            + seen
            + _earlier(tracks[:-1])
        )

    def still(self, figure) -> None:
        stills.curves(figure, self.lines(), PANELS)


def _earlier(ghosts) -> str:
    if not ghosts:
        return ""
    return (
        " Earlier runs: "
        + "; ".join(
            f"{name}, Top@20 {track.top20[-1][1]:.1%} after {track.top20[-1][0]} updates"
            if track.top20
            else f"{name}, {track.run.step_count} updates"
            for name, track in ghosts
        )
        + "."
    )


def _line(panel, name, x, y, color, dash, wide, ghost=False) -> dict:
    """A line of at most about 200 points: of longer ones, the median of each group."""
    if panel != "mass" and len(x) > 200:
        width = math.ceil(len(x) / 200)
        x = [x[min(i + width, len(x)) - 1] for i in range(0, len(x), width)]
        y = [sorted(y[i : i + width])[len(y[i : i + width]) // 2] for i in range(0, len(y), width)]
    return dict(panel=panel, name=name, x=x, y=y, color=color, dash=dash, width=wide, ghost=ghost)


def _ticks(lines: list[dict], panel: str) -> dict:
    """Plain numbers for a panel's logarithmic axis (plotly's own are single digits): 1, 2, 5 to each power of ten, or over many only the powers."""
    y = [value for line in lines if line["panel"] == panel for value in line["y"] if value > 0]
    digits = (1, 2, 5) if y and max(y) < 3000 * min(y) else (1,)
    ticks = tuple(float(f"{digit}e{power}") for power in range(-9, 10) for digit in digits)
    return dict(tickvals=ticks, ticktext=tuple(f"{tick:g}" for tick in ticks))


def _label(name: str) -> str:
    """A run's name for plotly, which reads tags: escaped, and broken into short lines."""
    return "<br>".join(html.escape(part) for part in textwrap.wrap(stills.without_halves(name), 34))


class LiveFigure(FigureWidget):
    """A FigureWidget that has at most one update on its way, and none before the page has drawn the figure.

    A page answers each drawing with what it drew. Nothing here reads that; it says that the page is ready for more
    (`answered`). What changes before stays here, and `behind()` is called when it can be sent.
    """

    answered = stale = fitted = False

    def get_state(self, key=None, drop_defaults=False):
        """As it is now, not as it was made: that is what a page gets that is loaded again."""
        if key is None:
            self.answered = self.stale = self.fitted = False
        state = super().get_state(key, drop_defaults)
        for name, own in (("_widget_data", "_data"), ("_widget_layout", "_layout")):
            if name in state and hasattr(self, "_widget_layout") and hasattr(self, own):
                state[name] = self.trait_metadata(name, "to_json")(getattr(self, own), self)
        return state

    def set_state(self, sync_data):
        """Take a message of the page: an answer, and otherwise nothing that is needed here."""
        if (
            "_js2py_traceDeltas" in sync_data
        ):  # (the one of the layout comes too early, from a figure still empty)
            self.answered = True
            if not self.fitted:  # it was drawn before it had a place, and as wide as plotly guesses
                self.fitted = True
                self._send_relayout_msg({"autosize": True})
            if self.stale:
                self.behind()
        super().set_state(
            {name: value for name, value in sync_data.items() if not name.startswith("_js2py")}
        )

    def behind(self) -> None:
        """Called when the page can be sent what it has missed."""

    def resend(self) -> None:
        """Send all lines as they are now."""
        if not self.answered:
            return
        self.stale, lines = False, self._data
        self._send_update_msg(
            {
                "x": [line.get("x") for line in lines],
                "y": [line.get("y") for line in lines],
                "name": [line.get("name", "") for line in lines],
                "showlegend": [line.get("showlegend") for line in lines],
                "line.color": [line["line"]["color"] for line in lines],
                "line.dash": [line["line"]["dash"] for line in lines],
            },
            {
                f"{name}.{key}": self._layout[name][key]
                for name in LOG_AXES
                for key in ("tickvals", "ticktext")
            },
            list(range(len(lines))),
        )

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
    where = {panel: (n // 3 + 1, n % 3 + 1) for n, panel in enumerate(PANELS)}
    for line in lines:
        row, col = where[line["panel"]]
        figure.add_scatter(
            x=np.array(line["x"], dtype=np.float64),
            y=np.array(line["y"], dtype=np.float64),
            name=_label(line["name"]),
            row=row,
            col=col,
            mode="lines+markers" if line.get("markers") else "lines",
            showlegend=line["panel"] == "top20" and bool(line["name"]),
            line=dict(color=line["color"], dash=line["dash"], width=line["width"]),
            opacity=0.55 if line["ghost"] else 1,
        )
    for panel, (_, log) in PANELS.items():
        row, col = where[panel]
        figure.update_yaxes(
            row=row,
            col=col,
            **(
                dict(type="log", **_ticks(lines, panel))
                if log
                else dict(type="linear", rangemode="tozero")
            ),
        )
    figure.add_hrect(y0=0.5, y1=2, row=1, col=3, fillcolor="#009E73", opacity=0.12, line_width=0)
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
    live = LiveFigure(figure)  # made whole: what is sent before the page has drawn it would be lost
    live._config = {"responsive": True, "displayModeBar": False}
    return live

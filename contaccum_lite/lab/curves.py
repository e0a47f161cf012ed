"""The curves of a lab: loss, gradient norms and their ratio, MRR@10, similarity mass by age."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ipywidgets

from contaccum_lite.diagnostics import measure
from contaccum_lite.lab import stills
from contaccum_lite.lab.fields import PANELS
from contaccum_lite.lab.history import GHOSTS, format_scores
from contaccum_lite.lab.plot import Plot
from contaccum_lite.lab.style import STYLES
from contaccum_lite.lab.view import View, paragraph
from contaccum_lite.utils.text import without_halves

_GREY, _BLUE, _ORANGE, _GREEN = "#8A8A8A", "#0072B2", "#D55E00", "#009E73"
_MAX_POINTS = 200  # of a line


class CurvesView(View):
    """Loss, gradient norms, their ratio, MRR@10 and similarity mass by age.

    Earlier runs are thin lines; MRR@10 before the first update is a dotted one. Notebooks 04 and
    05.
    """

    title, wide = "Curves", (9.6, 5.2)

    def __init__(self, lab):
        super().__init__(lab)
        self.plot = Plot(
            panels=[(key, *panel) for key, panel in PANELS.items()],
            band=["ratio", 0.5, 2.0],  # where neither tower's gradient drowns the other's
        )
        self.words = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([self.plot, self.words])
        self.draw()

    @property
    def panels(self) -> dict[str, tuple]:
        """The panels that are not hidden."""
        return {name: panel for name, panel in PANELS.items() if name not in self.lab.hide}

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
        """Bring the lines and the sentence up to date."""
        hidden = self.plot.hidden = [panel for panel in PANELS if panel in self.lab.hide]
        self.plot.show([_sendable(line, hidden) for line in self.lines()])
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
        norms = ""
        if not {"norms", "ratio"} <= {*self.lab.hide}:
            norms = (
                f"; gradient norms {last.grad_norm_query:.3g} (query tower) and "
                f"{last.grad_norm_passage:.3g} (passage tower), ratio {last.grad_norm_ratio:.2f}"
            )
        return (
            f"After update {last.step}: loss {last.loss:.2f} (log {columns} = "
            f"{math.log(columns):.2f}{short}){norms}.{score}{earlier}"
        )

    def still(self, figure) -> None:
        stills.curves(figure, self.lines(), self.panels)


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


def _sendable(line: dict, hidden: Sequence[str] = ()) -> dict:
    """A line as a `Plot` takes it: with a name that can be sent, and whether the legend has it."""
    in_legend = _in_legend(line) and not (line["panel"] == "norms" and "norms" in hidden)
    return {**line, "name": without_halves(line["name"]), "legend": in_legend}


def _in_legend(line: dict) -> bool:
    return line["panel"] in ("mrr", "norms") and bool(line["name"] and line["x"])


def _describe_earlier(ghosts) -> str:
    if not ghosts:
        return ""
    runs, shown = [], ghosts if len(ghosts) <= 3 else ghosts[-1:]
    for name, track in shown:
        result = f"{track.run.step_count} updates"
        if track.scores:
            update, scores = track.scores[-1]
            result = f"{format_scores(scores)} after {update} updates"
        runs.append(f"{name}, {result}")
    words = "Earlier runs" if shown is ghosts else f"The last of {len(ghosts)} earlier runs"
    return f" {words}: {'; '.join(runs)}."


def _line(panel, name, x, y, color, dash, width, ghost=False) -> dict:
    """A line of at most about 200 points: of longer ones, the median of each group."""
    if panel != "mass" and len(x) > _MAX_POINTS:
        size = math.ceil(len(x) / _MAX_POINTS)
        starts = range(0, len(x), size)
        x = [x[min(start + size, len(x)) - 1] for start in starts]
        groups = [sorted(y[start : start + size]) for start in starts]
        y = [group[len(group) // 2] for group in groups]
    return dict(panel=panel, name=name, x=x, y=y, color=color, dash=dash, width=width, ghost=ghost)

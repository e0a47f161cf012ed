"""Predictions that commit: say first, then slide, and read what the difference means. Nothing leaves the machine."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets

from .search import plain

#: What was committed on this machine, by name of the prediction.
_answers: dict[str, object] = {}
_HERE = Path(__file__).parent


def answers(line: str | None = None) -> str:
    """All committed predictions in one line, to keep somewhere: `answers(line)` in a later session brings them back.

    Raises `ValueError` for a line that was not made so; nothing is changed then.
    """
    if line is not None:
        try:
            found = json.loads(line)
            assert isinstance(found, dict) and all(isinstance(name, str) for name in found)
        except (ValueError, AssertionError):
            raise ValueError(f"{line[:80]!r} holds no predictions: expected the line that answers() gave, as in '{{\"01.a\": \"B\"}}'.") from None
        _answers.update(found)
    return json.dumps(_answers, ensure_ascii=False)


class Sketch(anywidget.AnyWidget):
    """A field to draw a curve in with the mouse, or with the arrow keys: `points` are (x, y) from left to right."""

    _esm = _HERE / "sketch.js"
    x = traitlets.List([0.0, 1.0]).tag(sync=True)
    y = traitlets.List([0.0, 1.0]).tag(sync=True)
    x_name = traitlets.Unicode().tag(sync=True)
    y_name = traitlets.Unicode().tag(sync=True)
    points = traitlets.List().tag(sync=True)
    truth = traitlets.List(help="what it was, drawn beside it").tag(sync=True)
    locked = traitlets.Bool(False).tag(sync=True)


class Predict:
    """A question to answer before the slider unlocks.

    name: of the prediction, kept with its answer. Give one of options (texts), number (low, high) or curve (a dict of x, y:
    ranges, x_name, y_name). truth: what it is, or a function that finds out when the prediction is committed. reply: option ->
    sentence, or a function of (yours, truth) that gives one; it names the misconception and where it comes from. then: a lab,
    slide or widget that stays hidden until the prediction is committed.
    """

    def __init__(self, name: str, question: str, *, options=None, number=None, curve=None, truth=None, reply=None, then=None):
        import ipywidgets as w

        if sum(kind is not None for kind in (options, number, curve)) != 1:
            raise ValueError(f"prediction {name}: give one of options, number and curve.")
        self.name, self.question, self._truth, self._reply, self.then = name, question, truth, reply, then
        if options is not None:
            self.field = w.RadioButtons(options=list(options), value=None, layout=dict(width="auto"))
        elif number is not None:
            self.field = w.FloatSlider(min=number[0], max=number[1], value=number[0], step=(number[1] - number[0]) / 100, layout=dict(width="26em"), tooltip=question)
        else:
            self.field = Sketch(**curve)
        self.button = w.Button(description="Commit", icon="check", tooltip="your answer can not be changed afterwards",
                               layout=dict(width="auto", align_self="flex-start"))
        self.said = w.HTML()
        self.below = w.VBox([])
        self.widget = w.VBox([w.HTML(f"<p><b>Predict.</b> {html.escape(plain(question))}</p>"), self.field, self.button, self.said, self.below])
        self.button.on_click(lambda _: self.commit())
        self.field.observe(lambda _: None if self.committed else setattr(self.said, "value", ""), "points" if curve is not None else "value")
        if name in _answers:
            self._put(_answers[name])
            self._reveal()

    @property
    def committed(self) -> bool:
        """Whether an answer stands."""
        return self.name in _answers

    @property
    def value(self):
        """What is chosen now."""
        return self.field.points if isinstance(self.field, Sketch) else self.field.value

    def _put(self, value) -> None:
        if isinstance(self.field, Sketch):
            self.field.points = value
        else:
            self.field.value = value

    def commit(self, value=None) -> None:
        """Let the answer stand (or this value), show what it was, and unlock what comes next."""
        if self.committed:
            return
        if value is not None:
            self._put(value)
        if self.value in (None, []):
            self.said.value = "<p role='alert'>Choose first: a guess is enough.</p>"
            return
        _answers[self.name] = self.value
        self._reveal()

    @property
    def sentence(self) -> str:
        """The reply, once committed."""
        if not self.committed:
            return f"Predict: {self.question} (run this cell to answer)"
        yours, truth = _answers[self.name], self.truth
        reply = self._reply(yours, truth) if callable(self._reply) else (self._reply or {}).get(yours, "")
        if isinstance(self.field, Sketch):
            return f"Your curve stays, dashed, beside what it was. {reply}".strip()
        found = "" if truth is None else ", and so it is" if yours == truth else f"; it is “{_text(truth)}”"
        return f"You said “{_text(yours)}”{found}. {reply}".strip()

    @property
    def truth(self):
        """What it is; None where nothing was given."""
        if isinstance(self._truth, Callable):
            self._truth = self._truth()
        return self._truth

    def _reveal(self) -> None:
        self.field.disabled = self.button.disabled = True
        if isinstance(self.field, Sketch):
            self.field.locked, self.field.truth = True, [list(map(float, point)) for point in self.truth or []]
        right = not isinstance(self.field, Sketch) and self.truth is not None and self.value == self.truth
        self.said.value = f"<p role='status'>{'✓ ' if right else ''}{html.escape(plain(self.sentence))}</p>" + self._scale()
        if self.then is not None:
            next_one = getattr(self.then, "views", self.then)
            self.below.children = (getattr(next_one, "widget", next_one),)

    def _scale(self) -> str:
        """A number and its truth as two marks on one line: the ghost of the prediction."""
        if not hasattr(self.field, "step") or self.truth is None:
            return ""
        low, high = self.field.min, self.field.max
        mark = lambda value, colour, name: (f"<span title='{name}' style='position:absolute;left:{100 * min(1, max(0, (value - low) / (high - low))):.1f}%;"
                                            f"top:-5px;width:3px;height:14px;background:{colour}'></span>")
        return ("<div style='position:relative;width:26em;height:4px;background:#8886;margin:10px 0 14px' role='img' "
                f"aria-label='{html.escape(self.sentence)}'>{mark(self.value, '#8A8A8A', 'yours')}{mark(self.truth, '#D55E00', 'what it is')}</div>"
                "<small>grey: yours · orange: what it is</small>")

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = self.widget._repr_mimebundle_()
        data = {**(data[0] if isinstance(data, tuple) else data), "text/plain": self.sentence}
        if not hasattr(self.then, "_repr_mimebundle_"):
            return data
        after, metadata = self.then._repr_mimebundle_()      # where nothing runs, the picture of what comes next
        return {**data, "image/png": after["image/png"], "text/plain": f"{self.sentence} {after['text/plain']}"}, metadata


def _text(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

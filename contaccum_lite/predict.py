"""Predictions that commit: say first, then slide, and read what the difference means. Nothing leaves the machine."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable
from numbers import Real
from pathlib import Path

import anywidget
import traitlets

from .check import said
from .search import plain
from .stills import without_halves

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
        except (ValueError, TypeError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError(
                f"{line!r:.80} holds no predictions: expected the line that answers() gave, "
                'as in \'{"01.a": "B"}\'.'
            )
        _answers.update(found)
    text = json.dumps(_answers, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode()


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

    def __init__(
        self,
        name: str,
        question: str,
        *,
        options=None,
        number=None,
        curve=None,
        truth=None,
        reply=None,
        then=None,
    ):
        import ipywidgets as w

        if not isinstance(name, str):
            raise ValueError(f"a prediction's name is {_short(name)}: give a text, as in '01.a'.")
        if sum(kind is not None for kind in (options, number, curve)) != 1:
            raise ValueError(f"prediction {name}: give one of options, number and curve.")
        self.name, self.question, self.then = name, question, then
        self._truth, self._find = (None, truth) if callable(truth) else (truth, None)
        self._reply = reply
        try:
            self.field = _field(question, options, number, curve)
        except (TypeError, ValueError, traitlets.TraitError) as error:
            raise ValueError(f"prediction {name}: {error}") from None
        self._sentence = f"Predict: {question} (run this cell to answer)"
        self._shown = False  # whether what it was is on the page
        self.button = w.Button(
            description="Commit",
            icon="check",
            tooltip="your answer can not be changed afterwards",
            layout=dict(width="auto", align_self="flex-start"),
        )
        self.said = w.HTML()
        self.below = w.VBox([])
        asked = w.HTML(f"<p><b>Predict.</b> {_escaped(question)}</p>")
        self.widget = w.VBox([asked, self.field, self.button, self.said, self.below])
        self.button.on_click(lambda _: self.commit())
        self.field.observe(self._forget_alert, "value" if curve is None else "points")
        if name in _answers:
            self._bring_back()

    def _forget_alert(self, change) -> None:
        if not self.committed:
            self.said.value = ""

    def _bring_back(self) -> None:
        """Show an earlier answer; one that does not fit the question any more is forgotten."""
        if refusal := self._put(_answers[self.name]):
            del _answers[self.name]
            self._alert(f"Your earlier answer does not fit: {refusal} Answer again.")
        else:
            _answers[self.name] = self.value
            self._reveal()

    @property
    def committed(self) -> bool:
        """Whether an answer stands."""
        return self.name in _answers

    @property
    def value(self):
        """What is chosen now."""
        return self.field.points if isinstance(self.field, Sketch) else self.field.value

    def _put(self, value) -> str:
        """Choose this value; why it cannot be chosen, or nothing."""
        if isinstance(self.field, Sketch):
            if not _is_curve(value):
                return f"{_short(value)} is no curve, which is a list of points [x, y]."
            self.field.points = [[float(x), float(y)] for x, y in value]
        elif hasattr(self.field, "step"):
            low, high = self.field.min, self.field.max
            if not _is_number(value) or not low <= value <= high:
                return f"{_short(value)} is no number from {low:g} to {high:g}."
            self.field.value = float(value)
        else:
            try:
                fits = value is not None
                self.field.value = value
            except Exception:  # whatever comes of comparing it with the options
                fits = False
            if not fits:
                return f"{_short(value)} is none of the options."
        return ""

    def commit(self, value=None) -> None:
        """Let the answer stand (or this value), show what it was, and unlock what comes next.

        Where the function that finds out what it was raises, or the one that replies, the answer
        stands all the same, and the button tries again.
        """
        if self.committed:
            if not self._shown:  # it failed before, or answers() has brought it in the meantime
                self._bring_back()
            return
        refusal = "" if value is None else self._put(value)
        nothing = self.value is None or isinstance(self.field, Sketch) and not self.value
        if refusal or nothing:
            self._alert(refusal or "Choose first: a guess is enough.")
            return
        _answers[self.name] = self.value
        self._reveal()

    def _alert(self, text: str) -> None:
        self.said.value = f"<p role='alert'>{_escaped(text)}</p>"

    @property
    def sentence(self) -> str:
        """The reply, once committed."""
        return self._sentence

    @property
    def truth(self):
        """What it is; None where nothing was given."""
        if self._find is not None:
            self._truth, self._find = self._find(), None
        return self._truth

    def _reveal(self) -> None:
        """Show what it was beside the answer, which stands from now on, and what comes next."""
        self.button.disabled, self.button.description = True, "Commit"
        if isinstance(self.field, Sketch):
            self.field.locked = True
        else:
            self.field.disabled = True
        try:
            self._sentence, self.said.value = self._found()
            self._shown = True
        except BaseException as error:
            self._sentence = (
                f"Your answer stands, but the reply to it failed ({said(error)}): press Try again."
            )
            self._alert(self._sentence)
            self.button.description, self.button.disabled = "Try again", False
            if isinstance(error, KeyboardInterrupt):
                raise
        self._unlock()

    def _unlock(self) -> None:
        """Put what comes next below, or say why it cannot be shown."""
        if self.then is None:
            return
        try:
            following = getattr(self.then, "views", self.then)
            self.below.children = (getattr(following, "widget", following),)
        except Exception as error:
            self.said.value += (
                f"<p role='alert'>What comes next cannot be shown ({_escaped(said(error))}).</p>"
            )

    def _found(self) -> tuple[str, str]:
        """The reply as a sentence, and as HTML."""
        yours, truth = _answers[self.name], self.truth
        if isinstance(self.field, Sketch):
            self.field.truth = _points(truth)
        reply = self._reply_to(yours, truth)
        right = not isinstance(self.field, Sketch) and truth is not None and bool(yours == truth)
        if isinstance(self.field, Sketch):
            sentence = f"Your curve stays, dashed, beside what it was. {reply}"
        else:
            known = (
                "" if truth is None else ", and so it is" if right else f"; it is “{_text(truth)}”"
            )
            sentence = f"You said “{_text(yours)}”{known}. {reply}"
        sentence = without_halves(sentence).strip()
        mark = "✓ " if right else ""
        return sentence, f"<p role='status'>{mark}{_escaped(sentence)}</p>" + self._scale(
            truth, sentence
        )

    def _reply_to(self, yours, truth) -> str:
        """What the author says to this answer; a table of replies is for options."""
        if callable(self._reply):
            reply = self._reply(yours, truth)
        else:
            reply = None if isinstance(self.field, Sketch) else (self._reply or {}).get(yours)
        return "" if reply is None else str(reply)

    def _scale(self, truth, sentence: str) -> str:
        """A number and its truth as two marks on one line: the ghost of the prediction."""
        if not hasattr(self.field, "step") or not _is_number(truth):
            return ""
        marks = self._mark(self.value, "#8A8A8A", "yours") + self._mark(
            truth, "#D55E00", "what it is"
        )
        return (
            "<div style='position:relative;width:26em;height:4px;background:#8886;"
            "margin:10px 0 14px' role='img' "
            f"aria-label='{html.escape(sentence)}'>{marks}</div>"
            "<small>grey: yours · orange: what it is</small>"
        )

    def _mark(self, value: float, colour: str, name: str) -> str:
        low, high = self.field.min, self.field.max
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return (
            f"<span title='{name}' style='position:absolute;left:{100 * share:.1f}%;"
            f"top:-5px;width:3px;height:14px;background:{colour}'></span>"
        )

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = self.widget._repr_mimebundle_()
        data = {**(data[0] if isinstance(data, tuple) else data), "text/plain": self.sentence}
        return _with_picture(data, self.then)


def _field(question: str, options, number, curve):
    """The widget that an answer is given with."""
    import ipywidgets as w

    if options is not None:
        options = list(options)
        if not options:
            raise ValueError("options is empty: give two or more texts.")
        return w.RadioButtons(options=options, value=None, layout=dict(width="auto"))
    if number is not None:
        if len(number) != 2 or not all(map(_is_number, number)) or not number[0] < number[1]:
            raise ValueError(
                f"number is {_short(number)}: give the least and the most, as in (0, 10)."
            )
        low, high = map(float, number)
        step, layout = (high - low) / 100, dict(width="26em")
        return w.FloatSlider(
            min=low, max=high, value=low, step=step, layout=layout, tooltip=question
        )
    return Sketch(**curve)


def _with_picture(data: dict, then) -> tuple[dict, dict] | dict:
    """This output with the picture and the words of what comes next, for where nothing runs."""
    try:
        after, metadata = then._repr_mimebundle_()
        return {
            **data,
            "image/png": after["image/png"],
            "text/plain": f"{data['text/plain']} {after['text/plain']}",
        }, metadata
    except Exception:  # it has none, as a plain widget, or cannot be drawn now
        return data


def _is_number(value) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond floats
        return False


def _is_curve(value) -> bool:
    """Whether this is a list of points, and not an empty one."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(
            isinstance(point, (list, tuple)) and len(point) == 2 and all(map(_is_number, point))
            for point in value
        )
    )


def _points(truth) -> list[list[float]]:
    """The points of what a curve was, without those that are nowhere."""
    points = [[float(x), float(y)] for x, y in ([] if truth is None else truth)]
    return [point for point in points if all(map(math.isfinite, point))]


def _text(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _short(value) -> str:
    """A value in few words, whatever it is."""
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]} …"


def _escaped(text: str) -> str:
    return html.escape(plain(without_halves(text)))

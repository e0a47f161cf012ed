"""Predictions that commit: say first, then slide, and read what the difference means.

Nothing leaves the machine.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Callable
from numbers import Real
from pathlib import Path

import anywidget
import ipywidgets as w
import traitlets

from contaccum_lite.course.check import describe_error
from contaccum_lite.lab.hosts import tooltip
from contaccum_lite.lab.stills import bundle, worded
from contaccum_lite.utils.text import plain, without_halves

#: What was committed on this machine, by name of the prediction.
_answers: dict[str, object] = {}
#: Names of the predictions that were asked since the kernel started.
_asked: set[str] = set()
#: What waits for a prediction, by its name: called once, when its answer stands.
_waiting: dict[str, list[Callable[[], None]]] = {}


def is_open(name: str) -> bool:
    """Whether what waits for this prediction may be shown: it was answered, or never asked."""
    return name in _answers or name not in _asked


def when_committed(name: str, show: Callable[[], None]) -> None:
    """Call `show` when this prediction's answer stands."""
    _waiting.setdefault(name, []).append(show)


def _open_what_waits(name: str) -> None:
    for show in _waiting.pop(name, []):
        show()


def answers(line: str | None = None) -> str:
    """All committed predictions in one line, to keep somewhere.

    line: what `answers()` returned in an earlier session, to bring its predictions back. Raises
    `ValueError` for another line, and changes nothing then.
    """
    if line is not None:
        try:
            earlier = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            earlier = None
        if not isinstance(earlier, dict):
            raise ValueError(
                f"{line!r:.80} holds no predictions: expected the line that answers() gave, "
                'as in \'{"01.a": "B"}\'.'
            )
        _answers.update(earlier)
        for name in earlier:
            _open_what_waits(name)
    text = json.dumps(_answers, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode()


# --- the widgets that an answer is given with: each can choose a value, and lock ------------------


class _Field:
    """What the fields have in common."""

    changes = "value"  # the trait that holds the answer

    @property
    def answer(self):
        """What is chosen now."""
        return getattr(self, self.changes)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is chosen yet."""
        return self.answer is None

    def lock(self) -> None:
        """Let nothing change any more."""
        self.disabled = True


class Sketch(_Field, anywidget.AnyWidget):
    """A field to draw a curve in with the mouse or the arrow keys.

    `points` are (x, y) from left to right.
    """

    _esm = Path(__file__).parent / "sketch.js"
    x = traitlets.List([0.0, 1.0]).tag(sync=True)
    y = traitlets.List([0.0, 1.0]).tag(sync=True)
    x_name = traitlets.Unicode().tag(sync=True)
    y_name = traitlets.Unicode().tag(sync=True)
    points = traitlets.List().tag(sync=True)
    truth = traitlets.List(help="what it was, drawn beside it").tag(sync=True)
    locked = traitlets.Bool(False).tag(sync=True)
    changes = "points"

    @property
    def is_empty(self) -> bool:
        """Whether nothing is drawn yet."""
        return not self.points

    def choose(self, value) -> None:
        """Draw these points. Raises `ValueError` if they are no curve."""
        if not _is_curve(value):
            raise ValueError(f"{_short(value)} is no curve, which is a list of points [x, y].")
        self.points = [[float(x), float(y)] for x, y in value]

    def lock(self) -> None:
        """Let nothing change any more."""
        self.locked = True


class _Options(_Field, w.RadioButtons):
    """One of several texts."""

    def choose(self, value) -> None:
        """Choose this option. Raises `ValueError` if it is none."""
        if value is not None:
            try:
                self.value = value
                return
            except Exception:  # whatever comes of comparing it with the options
                pass
        raise ValueError(f"{_short(value)} is none of the options.")


class _Number(_Field, w.FloatSlider):
    """A number within a range. Where the slider starts is no answer: it must move once."""

    def __init__(self, **traits):
        super().__init__(**traits)
        self.touched = False
        self.observe(self._touch, "value")

    def _touch(self, change) -> None:
        self.touched = True

    @property
    def is_empty(self) -> bool:
        """Whether the slider has not moved yet."""
        return not self.touched

    def choose(self, value) -> None:
        """Choose this number. Raises `ValueError` if it is none, or not within the range."""
        if not _is_number(value) or not self.min <= value <= self.max:
            raise ValueError(f"{_short(value)} is no number from {self.min:g} to {self.max:g}.")
        self.value = float(value)
        self.touched = True

    def marks(self, truth: float, sentence: str) -> str:
        """The answer and the truth as two marks on one line, as HTML."""
        marks = self._mark(self.value, "#8A8A8A", "yours")
        marks += self._mark(truth, "#D55E00", "what it is")
        return (
            "<div style='position:relative;width:26em;height:4px;background:#8886;"
            "margin:10px 0 14px' role='img' "
            f"aria-label='{html.escape(sentence)}'>{marks}</div>"
            "<small>grey: yours · orange: what it is</small>"
        )

    def _mark(self, value: float, colour: str, name: str) -> str:
        share = (value - self.min) / (self.max - self.min)
        percent = 100 * min(1.0, max(0.0, share))
        return (
            f"<span title='{name}' style='position:absolute;left:{percent:.1f}%;"
            f"top:-5px;width:3px;height:14px;background:{colour}'></span>"
        )


def _make_field(question: str, options, number, curve) -> Sketch | _Options | _Number:
    """The widget for this kind of answer. Raises `ValueError` if it cannot be made."""
    if options is not None:
        options = list(options)
        if not options:
            raise ValueError("options is empty: give two or more texts.")
        return _Options(options=options, value=None, layout=dict(width="auto"))
    if number is None:
        return Sketch(**curve)
    if len(number) != 2 or not all(map(_is_number, number)) or not number[0] < number[1]:
        raise ValueError(f"number is {_short(number)}: give the least and the most, as in (0, 10).")
    low, high = map(float, number)
    step, layout = (high - low) / 100, dict(width="26em")
    return _Number(min=low, max=high, value=low, step=step, layout=layout, **tooltip(question))


class Predict:
    """A question to answer before the slider unlocks.

    Args:
        name: of the prediction, kept with its answer. question: a text.
        options: texts to choose from. number: (low, high). curve: a dict of x and y, which are
            ranges, x_name and y_name. Give one of the three.
        truth: what it is, or a function that finds out when the prediction is committed.
        reply: {option: sentence}, or a function of (answer, truth) that returns a sentence. It
            names the misconception and where it comes from.
        then: a lab, slide or widget that stays hidden until the prediction is committed.

    Raises `ValueError` for a question that cannot be asked.
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
        if not isinstance(name, str):
            raise ValueError(f"a prediction's name is {_short(name)}: give a text, as in '01.a'.")
        if sum(kind is not None for kind in (options, number, curve)) != 1:
            raise ValueError(f"prediction {name}: give one of options, number and curve.")
        self.name, self.question, self.then = name, question, then
        self._truth, self._reply = truth, reply
        self._truth_is_known = not callable(truth)
        try:
            self.field = _make_field(question, options, number, curve)
        except (TypeError, ValueError, traitlets.TraitError) as error:
            raise ValueError(f"prediction {name}: {error}") from None
        self._sentence = f"Predict: {question} (run this cell to answer)"
        self._shown = False  # whether the reply is on the page
        self.button = w.Button(
            description="Commit",
            icon="check",
            tooltip="your answer can not be changed afterwards",
            layout=dict(width="auto", align_self="flex-start"),
        )
        self.said = w.HTML()
        self.below = w.VBox([])
        heading = w.HTML(f"<p><b>Predict.</b> {_escaped(question)}</p>")
        self.widget = w.VBox([heading, self.field, self.button, self.said, self.below])
        self.button.on_click(lambda _: self.commit())
        self.field.observe(self._forget_alert, self.field.changes)
        _asked.add(name)
        if name in _answers:
            self._bring_back()

    @property
    def committed(self) -> bool:
        """Whether an answer stands."""
        return self.name in _answers

    @property
    def value(self):
        """What is chosen now."""
        return self.field.answer

    @property
    def sentence(self) -> str:
        """The reply, once committed."""
        return self._sentence

    @property
    def truth(self):
        """What it is; None if nothing was given."""
        if not self._truth_is_known:
            self._truth = self._truth()
            self._truth_is_known = True
        return self._truth

    def commit(self, value=None) -> None:
        """Let the answer stand (or this value), show what it was, and unlock what comes next.

        If the function that finds the truth raises, or the one that replies, the answer stands all
        the same, and the button tries again.
        """
        if self.committed:
            if not self._shown:  # it failed before, or answers() has brought it in the meantime
                self._bring_back()
            return
        if value is not None:
            try:
                self.field.choose(value)
            except ValueError as refusal:
                self._alert(str(refusal))
                return
        if self.field.is_empty:
            self._alert("Choose first: a guess is enough.")
            return
        self._reveal()

    def _bring_back(self) -> None:
        """Show an earlier answer; one that does not fit the question any more is forgotten."""
        try:
            self.field.choose(_answers[self.name])
        except ValueError as refusal:
            del _answers[self.name]
            self._alert(f"Your earlier answer does not fit: {refusal} Answer again.")
        else:
            self._reveal()

    def _alert(self, text: str) -> None:
        self.said.value = f"<p role='alert'>{_escaped(text)}</p>"

    def _forget_alert(self, change) -> None:
        if not self.committed:
            self.said.value = ""

    def _reveal(self) -> None:
        """Keep the answer, lock the field, and show the reply and what comes next."""
        _answers[self.name] = self.value
        self.button.disabled, self.button.description = True, "Commit"
        self.field.lock()
        try:
            self._show_reply()
        except BaseException as error:
            self._sentence = (
                f"Your answer stands, but the reply to it failed ({describe_error(error)}): "
                "press Try again."
            )
            self._alert(self._sentence)
            self.button.description, self.button.disabled = "Try again", False
            if isinstance(error, KeyboardInterrupt):
                raise
        self._unlock()
        _open_what_waits(self.name)

    def _show_reply(self) -> None:
        """Show the truth beside the answer, and the author's reply."""
        answer, truth = self.value, self.truth
        mark = marks = ""
        if isinstance(self.field, Sketch):
            self.field.truth = _finite_points(truth)
            text = "Your curve stays, dashed, beside what it was."
        else:
            text = f"You said “{_text(answer)}”"
            if truth is None:
                text += "."
            elif answer == truth:
                text += ", and so it is."
                mark = "✓ "
            else:
                text += f"; it is “{_text(truth)}”."
        sentence = without_halves(f"{text} {self._reply_to(answer, truth)}").strip()
        if isinstance(self.field, _Number) and _is_number(truth):
            marks = self.field.marks(truth, sentence)
        self._sentence = sentence
        self.said.value = f"<p role='status'>{mark}{_escaped(sentence)}</p>{marks}"
        self._shown = True

    def _reply_to(self, answer, truth) -> str:
        """What the author says to this answer; a table of replies is for options."""
        if callable(self._reply):
            reply = self._reply(answer, truth)
        elif isinstance(self.field, Sketch):
            reply = None
        else:
            reply = (self._reply or {}).get(answer)
        return "" if reply is None else str(reply)

    def _unlock(self) -> None:
        """Put what comes next below, or say why it cannot be shown."""
        if self.then is None:
            return
        try:
            following = getattr(self.then, "views", self.then)
            self.below.children = (getattr(following, "widget", following),)
        except Exception as error:
            self.said.value += (
                "<p role='alert'>What comes next cannot be shown "
                f"({_escaped(describe_error(error))}).</p>"
            )

    def _repr_mimebundle_(self, include=None, exclude=None):
        """The question as a widget, with the picture and the words of what comes next."""
        try:
            following, of_following = self.then._repr_mimebundle_()
            png, words = base64.b64decode(following["image/png"]), following["text/plain"]
        except Exception:  # it has no picture, as a plain widget, or cannot be drawn now
            return worded(self.widget, self.sentence)
        data, metadata = bundle(self.widget, png, f"{self.sentence} {words}")
        return data, metadata | {"image/png": of_following["image/png"]}


def _is_number(value) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond floats
        return False


def _is_point(value) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))


def _is_curve(value) -> bool:
    """Whether this is a list of points, and not an empty one."""
    return isinstance(value, list) and len(value) > 0 and all(map(_is_point, value))


def _finite_points(truth) -> list[list[float]]:
    """The points of what a curve was, without those that are not finite."""
    if truth is None:
        return []
    points = [[float(x), float(y)] for x, y in truth]
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

"""Exercises that answer: `check("04.2", my_function)` tries the function on drawn cases and says what it found.

A wrong answer is compared with the slips that people make, so that the reply can name the one that was made. The exercises
themselves stand in `exercises.py`. Notebooks 01 to 04.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

CASES = 12
TOLERANCE = 1e-8


class Slip(NamedTuple):
    """A wrong answer that people give: the function that gives it, and the sentence that helps."""

    says: str
    wrong: Callable


class Exercise(NamedTuple):
    """What `check` needs to know of an exercise."""

    asks: str                       # what the function must return, in a sentence
    draw: Callable                  # (random generator, number of the case) -> its arguments, float64
    right: Callable                 # the reference
    slips: tuple[Slip, ...]
    read: Callable = lambda answer, arguments: answer     # what of the answer is compared: for a surrogate loss, its gradient


class Verdict:
    """What was found: `passed`, the `sentence`, and where values differ the picture of the target beside the answer."""

    def __init__(self, passed: bool, sentence: str, target: Tensor | None = None, yours: Tensor | None = None):
        self.passed, self.sentence, self.target, self.yours = passed, sentence, target, yours

    def __bool__(self):
        return self.passed

    def __repr__(self):
        return ("✓ " if self.passed else "✗ ") + self.sentence

    def _repr_mimebundle_(self, include=None, exclude=None):
        said = html.escape(repr(self))
        shown = f"<p role='status'>{said}</p>"
        if self.target is not None:
            import base64

            from . import stills
            picture = base64.b64encode(stills.beside(self.target, self.yours)).decode()
            shown += f"<img alt='expected and yours side by side. {said}' src='data:image/png;base64,{picture}'>"
        return {"text/plain": repr(self), "text/html": shown}


def check(name: str, answer: Callable) -> Verdict:
    """Try a student's function on drawn cases of exercise `name`, and say what was found.

    An exception inside the function, a wrong type or a wrong shape is said in a sentence. Raises `ValueError` for an unknown
    exercise or something that is no function.
    """
    from .exercises import EXERCISES

    if name not in EXERCISES:
        raise ValueError(f"there is no exercise {name!r}: the exercises are {', '.join(EXERCISES)}.")
    if not callable(answer):
        raise ValueError(f"check was given a {type(answer).__name__}: give it the function itself, as in check({name!r}, my_function), "
                         "without calling it.")
    exercise, seen = EXERCISES[name], []
    for number in range(CASES):
        arguments = exercise.draw(torch.Generator().manual_seed(1000 + number), number)
        target = _tensor(exercise.read(exercise.right(*_copies(arguments)), arguments))
        given = _copies(arguments)
        try:
            found = answer(*given)
            yours = None if found is None else exercise.read(found, given)
        except NotImplementedError:
            return Verdict(False, "not written yet: fill in the blank, then run this cell again.")
        except Exception as error:
            return Verdict(False, f"your function stopped in case {number + 1} of {CASES}{_where(error)}: {type(error).__name__}: {error}")
        wrong = _form(yours, target, exercise)
        if wrong:
            return Verdict(False, f"case {number + 1} of {CASES}, {_shapes(arguments)}: {wrong}")
        if changed := [n for n, (a, b) in enumerate(zip(given, arguments)) if torch.is_tensor(a) and not torch.equal(a, b)]:
            return Verdict(False, f"your function changed its argument number {changed[0] + 1} in place: work on a copy.")
        seen.append((arguments, target, _tensor(yours)))
        if not _same(seen[-1][2], target):
            return _wrong(exercise, seen, number, answer)
    sizes = sorted({_shapes(arguments) for arguments, _, _ in seen}, key=len)
    return Verdict(True, f"right on {CASES} drawn cases to {TOLERANCE:g}, from {sizes[0]} to {sizes[-1]}.")


def _wrong(exercise: Exercise, seen: list, number: int, answer: Callable) -> Verdict:
    """The reply to wrong values: the slip that gives just these, or where they differ most."""
    arguments, target, yours = seen[-1]
    slip = next((s.says for s in exercise.slips if all(_equals(s, exercise, *case) for case in seen)), None)
    difference = (yours.double() - target.double()).abs()
    where = [int(i) for i in torch.unravel_index(difference.nan_to_num(nan=torch.inf).argmax(), difference.shape)] if target.ndim else []
    place = f" at {where}" if where else ""
    at = tuple(where)
    say = slip or f"right shape, wrong values; the largest difference is{place}: yours {yours[at].item():.6g}, expected {target[at].item():.6g}."
    return Verdict(False, f"case {number + 1} of {CASES}, {_shapes(arguments)}: {say}", *((target, yours) if target.ndim else (None, None)))


def _equals(slip: Slip, exercise: Exercise, arguments, target: Tensor, yours: Tensor) -> bool:
    try:
        given = _copies(arguments)
        return _same(_tensor(exercise.read(slip.wrong(*given), given)), yours)
    except Exception:
        return False


def _form(yours, target: Tensor, exercise: Exercise) -> str:
    """What is wrong with the type or shape of an answer, or nothing."""
    if yours is None:
        return "your function returned None: is a `return` missing?"
    if not isinstance(yours, (Tensor, int, float, bool)):
        return f"your function returned a {type(yours).__name__}; expected {'a tensor' if target.ndim else 'a number'}: {exercise.asks}"
    found = _tensor(yours)
    if found.shape != target.shape:
        return f"your answer has shape {tuple(found.shape)}, expected {tuple(target.shape)}: {exercise.asks}"
    if not found.double().isfinite().all():
        return "your answer has a nan or an infinity in it: is there a log of 0, or an exp of something large?"
    return ""


def _tensor(value) -> Tensor:
    """A number as a float64 tensor, a tensor as it is."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=TOLERANCE, atol=TOLERANCE)


def _copies(arguments) -> list:
    return [a.clone() if torch.is_tensor(a) else a for a in arguments]


def _shapes(arguments) -> str:
    return ", ".join(f"{' × '.join(map(str, a.shape))}" if torch.is_tensor(a) and a.ndim else f"{float(a):g}" for a in arguments)


def _where(error: Exception) -> str:
    """The line of the student's own code, if it is known."""
    trace, line = error.__traceback__.tb_next, None
    while trace is not None:
        if "contaccum_lite" not in trace.tb_frame.f_code.co_filename and "site-packages" not in trace.tb_frame.f_code.co_filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f", in its cell's line {line}" if line else ""

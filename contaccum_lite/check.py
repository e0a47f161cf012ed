"""Exercises that answer: `check("04.2", my_function)` tries the function on drawn cases and says what it found.

A wrong answer is compared with the slips that people make, so that the reply can name the one that was made. The exercises
themselves stand in `exercises.py`. Notebooks 01 to 04.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .search import one_line
from .stills import without_halves

CASES = 12


class Near(NamedTuple):
    """How near an answer must be."""

    absolute: float
    relative: float


EXACT, ROUGH = (
    Near(1e-8, 1e-8),
    Near(1e-5, 1.3e-6),
)  # the second is what PyTorch's own tests ask of float32
#: By the number format of an answer; in less than float32 right and wrong look the same.
TOLERANCES = {torch.float64: EXACT, torch.float32: ROUGH}
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Slip(NamedTuple):
    """A wrong answer that people give: the function that gives it, and the sentence that helps."""

    says: str
    wrong: Callable


class Exercise(NamedTuple):
    """What `check` needs to know of an exercise."""

    asks: str  # what the function must return, in a sentence
    draw: Callable  # (random generator, number of the case) -> its arguments, float64
    right: Callable  # the reference
    slips: tuple[Slip, ...]
    read: Callable = lambda answer, arguments: (
        answer
    )  # what of the answer is compared: for a surrogate loss, its gradient


class Verdict:
    """What was found: `passed`, the `sentence`, and where values differ the picture of the target beside the answer."""

    def __init__(
        self, passed: bool, sentence: str, target: Tensor | None = None, yours: Tensor | None = None
    ):
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


class Unfit(Exception):
    """An answer of which no numbers can be compared; its text says why."""


def check(name: str, answer: Callable) -> Verdict:
    """Try a student's function on drawn cases of exercise `name`, and say what was found.

    An exception inside the function, a wrong type or a wrong shape is said in a sentence. Raises `ValueError` for an unknown
    exercise or something that is no function.
    """
    from .exercises import EXERCISES

    if not isinstance(name, str) or name not in EXERCISES:
        raise ValueError(
            f"there is no exercise {name!r:.80}: the exercises are {', '.join(EXERCISES)}."
        )
    if not callable(answer):
        raise ValueError(
            f"check was given a {type(answer).__name__}: give it the function itself, as in "
            f"check({name!r}, my_function), without calling it."
        )
    with torch.enable_grad(), torch.device("cpu"):  # whatever a function before this one has set
        return _tried(EXERCISES[name], answer)


def _tried(exercise: Exercise, answer: Callable) -> Verdict:
    seen, tolerance = [], EXACT
    for number, (arguments, target) in enumerate(_cases(exercise), 1):
        case, given = f"case {number} of {CASES}", _copies(arguments)
        try:
            returned = answer(*given)
        except KeyboardInterrupt:  # it is the student who stops it
            raise
        except BaseException as error:
            if isinstance(error, NotImplementedError) and not error.args:
                return Verdict(
                    False, "not written yet: fill in the blank, then run this cell again."
                )
            return Verdict(False, f"your function stopped in {case}{_where(error)}: {said(error)}")
        try:
            yours, exactness = _numbers(exercise, returned, given, target)
        except Unfit as error:
            return Verdict(False, f"{case}, {_shapes(arguments)}: {error}")
        as_they_were = list(map(_as_it_was, given, arguments))
        if not all(as_they_were):
            changed = f"its argument number {as_they_were.index(False) + 1}"
            return Verdict(False, f"your function changed {changed} in place: work on a copy.")
        seen.append((arguments, target, yours))
        tolerance = max(tolerance, exactness)
        if not _same(yours, target, exactness):
            return _wrong(exercise, seen, case, tolerance)
    sizes = sorted({_shapes(arguments) for arguments, _, _ in seen}, key=len)
    less = " Your answer is in float32, which keeps 7 digits: in float64 it is compared to "
    less = f"{less}{EXACT.absolute:g}." if tolerance == ROUGH else ""
    return Verdict(
        True,
        f"right on {CASES} drawn cases to {tolerance.absolute:g}, "
        f"from {sizes[0]} to {sizes[-1]}.{less}",
    )


def _cases(exercise: Exercise) -> list[tuple[tuple, Tensor]]:
    """(arguments, right answer in float64) of all cases, the same each time."""
    cases = []
    for number in range(CASES):
        arguments = exercise.draw(torch.Generator().manual_seed(1000 + number), number)
        cases.append((arguments, _target(exercise, exercise.right, _copies(arguments))))
    return cases


def _target(exercise: Exercise, function: Callable, arguments: list) -> Tensor:
    """What a function of ours answers, in float64."""
    answer = exercise.read(function(*arguments), arguments)
    return torch.as_tensor(answer, dtype=torch.float64).detach()


def _wrong(exercise: Exercise, seen: list, case: str, tolerance: Near) -> Verdict:
    """The reply to wrong values: the slip that gives just these, or where they differ most."""
    arguments, target, yours = seen[-1]
    says = next(
        (slip.says for slip in exercise.slips if _is(slip, exercise, seen, tolerance)), None
    )
    if says is None:
        says = "right shape, wrong values; the largest difference is"
        if all(_same(theirs, right, ROUGH) for _, right, theirs in seen):
            says = (
                "right to the 7 digits of float32, but not to those of float64, in which your "
                "answer is: make what it is computed from in float64, as by "
                "torch.zeros(n, d, dtype=torch.float64). The largest difference is"
            )
        says += _largest_difference(yours, target)
    return Verdict(
        False,
        f"{case}, {_shapes(arguments)}: {says}",
        *((target, yours) if target.ndim else (None, None)),
    )


def _largest_difference(yours: Tensor, target: Tensor) -> str:
    """Where two answers differ most, and both numbers there, which look different."""
    largest = int((yours - target).abs().argmax())
    place = [int(index) for index in np.unravel_index(largest, target.shape)]
    for digits in (6, 9, 12, 17):
        mine, expected = (f"{part[tuple(place)].item():.{digits}g}" for part in (yours, target))
        if mine != expected:
            break
    return f"{f' at {place}' if place else ''}: yours {mine}, expected {expected}."


def _is(slip: Slip, exercise: Exercise, seen: list, tolerance: Near) -> bool:
    """Whether all answers so far are this slip's."""
    try:
        return all(
            _same(_target(exercise, slip.wrong, _copies(arguments)), yours, tolerance)
            for arguments, _, yours in seen
        )
    except Exception:
        return False


# --- what a function returned ---------------------------------------------------------------------


def _numbers(exercise: Exercise, returned, given: list, target: Tensor) -> tuple[Tensor, Near]:
    """The numbers of an answer in float64, and how near they must be.

    Raises `Unfit` with what is wrong with its kind or shape.
    """
    try:
        exactness = _exactness(returned, target, exercise)
        answer = _read(exercise, returned, given)
        if answer is not returned:
            exactness = max(exactness, _exactness(answer, target, exercise))
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else ()
        if shape != tuple(target.shape):
            raise Unfit(
                f"your answer has shape {shape}, expected {tuple(target.shape)}: {exercise.asks}"
            )
        numbers = _plain(answer)
    except Unfit:
        raise
    except Exception as error:
        raise Unfit(
            f"your answer cannot be read ({said(error)}); expected {_kind(target)}: {exercise.asks}"
        ) from None
    if not numbers.isfinite().all():
        raise Unfit(
            "your answer has a nan or an infinity in it: is there a log of 0, or an exp of "
            "something large?"
        )
    return numbers, exactness


def _exactness(value, target: Tensor, exercise: Exercise) -> Near:
    """How near an answer of this kind must be. Raises `Unfit` for one that cannot be compared."""
    if value is None:
        raise Unfit("your function returned None: is a `return` missing?")
    if isinstance(value, (bool, int, float)):
        return EXACT
    if isinstance(value, (np.number, np.bool_)):
        value = torch.as_tensor(value)
    if not isinstance(value, Tensor):
        raise Unfit(
            f"your function returned a {type(value).__name__:.60}; expected {_kind(target)}: "
            f"{exercise.asks}"
        )
    if value.is_complex():
        raise Unfit(
            f"your answer is complex ({value.dtype}); expected real numbers: {exercise.asks}"
        )
    if value.layout != torch.strided:
        raise Unfit(
            f"your answer is a sparse tensor ({value.layout}): return all its entries, as its "
            "to_dense() does."
        )
    if value.is_meta:
        raise Unfit(
            "your answer is on the device 'meta', where a tensor has a shape and no numbers: "
            "compute it on 'cpu'."
        )
    if value.dtype not in (*TOLERANCES, *WHOLE):
        raise Unfit(
            f"your answer is in {value.dtype}, which keeps too few digits to tell right from "
            "wrong: compute in torch.float64."
        )
    return TOLERANCES.get(value.dtype, EXACT)


def _read(exercise: Exercise, returned, given: list):
    """What of an answer is compared: the answer, or for a surrogate loss its gradient."""
    try:
        return exercise.read(returned, given)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise Unfit(
            f"no gradient can be taken of your answer ({said(error)}); expected {exercise.asks}"
        ) from None


def _plain(value) -> Tensor:
    """Numbers as float64 on the CPU, without graph or subclass."""
    if not isinstance(value, Tensor):
        return torch.tensor(value, dtype=torch.float64, device="cpu")
    return torch.from_numpy(value.detach().cpu().to(torch.float64).numpy(force=True).copy())


def _kind(target: Tensor) -> str:
    return "a tensor" if target.ndim else "a number"


def _same(a: Tensor, b: Tensor, tolerance: Near) -> bool:
    return a.shape == b.shape and torch.allclose(
        a, b, rtol=tolerance.relative, atol=tolerance.absolute
    )


def _copies(arguments) -> list:
    return [a.clone() if torch.is_tensor(a) else a for a in arguments]


def _as_it_was(given, argument) -> bool:
    """Whether a function left its argument alone."""
    try:
        return (
            not torch.is_tensor(argument)
            or given.dtype == argument.dtype
            and torch.equal(given, argument)
        )
    except Exception:  # it is elsewhere now, or of another layout
        return False


def _shapes(arguments) -> str:
    return ", ".join(
        f"{' × '.join(map(str, a.shape))}" if torch.is_tensor(a) and a.ndim else f"{float(a):g}"
        for a in arguments
    )


def said(error: BaseException) -> str:
    """An exception in a line."""
    try:
        text = one_line(without_halves(str(error)[:2000]))
    except Exception:  # it may be the student's own class
        text = "(its message cannot be read)"
    return f"{type(error).__name__:.60}: {text[:300]}{' …' * (len(text) > 300)}"


def _where(error: BaseException) -> str:
    """The line of the student's own code, if it is known."""
    trace, line = error.__traceback__.tb_next, None
    while trace is not None:
        if (
            "contaccum_lite" not in trace.tb_frame.f_code.co_filename
            and "site-packages" not in trace.tb_frame.f_code.co_filename
        ):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f", in its cell's line {line}" if line else ""

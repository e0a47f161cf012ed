"""Exercises that answer: `check("04.2", my_function)` tries the function on cases, and explains.

A wrong answer is compared with the slips that people make, so that the reply can name the one that
was made. The exercises themselves are in `exercises/`. Notebooks 01 to 04 and 07 to 10.
"""

from __future__ import annotations

import ast
import base64
import html
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from contaccum_lite.course.exercise import Exercise, Unreadable, copies
from contaccum_lite.course.exercises import EXERCISES
from contaccum_lite.lab import stills
from contaccum_lite.utils.text import one_line, without_halves

CASES = 12

#: The last function that passed, by name of its exercise.
_passed: dict[str, Callable] = {}


class Tolerance(NamedTuple):
    """How near an answer must be. Of two, the looser one is the larger."""

    atol: float
    rtol: float


EXACT = Tolerance(1e-8, 1e-8)
FLOAT32 = Tolerance(1e-5, 1.3e-6)  # what PyTorch's own tests ask of float32

#: By the number format of an answer. In less than float32, right and wrong look the same.
TOLERANCES = {torch.float64: EXACT, torch.float32: FLOAT32, torch.bool: EXACT}
TOLERANCES |= dict.fromkeys((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64), EXACT)


class Verdict:
    """The result of a check, which is true if the function passed.

    `passed`, the `sentence` that explains it, and for wrong values `target` and `yours`, which are
    drawn side by side. `arguments` are those of the case that failed, and `arguments_by_name` has
    them by name, to try it by hand: `my_function(**verdict.arguments_by_name)`.
    """

    def __init__(
        self,
        passed: bool,
        sentence: str,
        target: Tensor | None = None,
        yours: Tensor | None = None,
        arguments=(),
        names=(),
    ):
        self.passed, self.sentence, self.target, self.yours = passed, sentence, target, yours
        self.arguments = copies(arguments)
        self.arguments_by_name = dict(zip(names, self.arguments))

    def __bool__(self):
        return self.passed

    def __repr__(self):
        return ("✓ " if self.passed else "✗ ") + self.sentence

    def _repr_mimebundle_(self, include=None, exclude=None):
        text = html.escape(repr(self))
        shown = f"<p role='status'>{text}</p>"
        if self.target is not None:
            png = base64.b64encode(stills.beside(self.target, self.yours)).decode()
            alt = f"expected and yours side by side. {text}"
            shown += f"<img alt='{alt}' src='data:image/png;base64,{png}'>"
        return {"text/plain": repr(self), "text/html": shown}


class Failed(Exception):
    """A function that fails in a case; the text is the verdict's sentence."""


class WrongShape(Unreadable):
    """An answer of another shape; its numbers may be those of a slip."""

    def __init__(self, sentence: str, value):
        super().__init__(sentence)
        self.value = value


class Case(NamedTuple):
    """One case of an exercise."""

    name: str
    arguments: tuple
    target: Tensor  # the right answer, float64
    names: tuple[str, ...]  # of the arguments, as the student calls them

    def __str__(self) -> str:
        return ", ".join([self.name, *filter(None, map(_size, self.names, self.arguments))])


def _size(name: str, argument) -> str:
    """An argument in few words: its shape, number or how many there are; nothing for an object."""
    if isinstance(argument, Tensor) and argument.ndim:
        return f"{name} {tuple(argument.shape)}"
    if isinstance(argument, (Tensor, int, float)):
        return f"{name} = {float(argument):g}"
    return f"{name} of {len(argument)}" if isinstance(argument, list) else ""


def check(name: str, answer: Callable) -> Verdict:
    """Try a student's function on random cases of an exercise, the same each time.

    name: of the exercise, as in "04.2". answer: the function. An exception inside it, or an answer
    of a wrong type or shape, becomes a sentence of the verdict. Raises `ValueError` for an unknown
    exercise or something that is no function.
    """
    _check_name(name)
    if not callable(answer):
        raise ValueError(
            f"check was given a {type(answer).__name__}: give it the function itself, as in "
            f"check({name!r}, my_function), without calling it."
        )
    with torch.enable_grad(), torch.device("cpu"):  # whatever a function before this one has set
        verdict = _try_all_cases(EXERCISES[name], answer)
    if verdict.passed:
        _passed[name] = answer
        return verdict
    blanks = _unfilled_blanks(answer)
    if blanks:
        sentence = f"not written yet: fill in {', '.join(blanks)}, then run this cell again."
        return Verdict(False, sentence)
    return verdict


def _unfilled_blanks(function: Callable) -> list[str]:
    """The statements of a function that are still a blank, such as `...` and `loss = ...`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # its source cannot be had, or is part of a line
        return []
    return [
        f"`{ast.unparse(statement)}`"
        for statement in ast.walk(tree)
        if isinstance(statement, ast.stmt) and _is_dots(getattr(statement, "value", None))
    ]


def _is_dots(node) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def last_passed(name: str) -> Callable | None:
    """The last function that passed `check(name, …)` in this session; None if none has.

    Raises `ValueError` for an unknown exercise.
    """
    _check_name(name)
    return _passed.get(name)


def _check_name(name: str) -> None:
    if not isinstance(name, str) or name not in EXERCISES:
        raise ValueError(
            f"there is no exercise {name!r:.80}: the exercises are {', '.join(EXERCISES)}."
        )


def _try_all_cases(exercise: Exercise, function: Callable) -> Verdict:
    names = _names_of_arguments(exercise, function)
    cases = [_make_case(exercise, number, names) for number in range(CASES)]
    answers, tolerance = [], EXACT
    for case in cases:
        try:
            answer, case_tolerance = _try(exercise, function, case)
        except Failed as failure:
            return Verdict(False, str(failure), arguments=case.arguments, names=names)
        answers.append(answer)
        tolerance = max(tolerance, case_tolerance)
        if not _close(answer, case.target, case_tolerance):
            tried = list(zip(cases, answers))
            sentence = f"{case}: {_explain_values(exercise, tried, tolerance)}"
            if case.target.ndim == 0:
                return Verdict(False, sentence, arguments=case.arguments, names=names)
            return Verdict(False, sentence, case.target, answer, case.arguments, names)
    sentence = f"right on {CASES} drawn cases, to {tolerance.atol:g}."
    if tolerance == FLOAT32:
        sentence += (
            " Your answer is in float32, which keeps 7 digits: in float64 it is compared to "
            f"{EXACT.atol:g}."
        )
    return Verdict(True, sentence)


def _names_of_arguments(exercise: Exercise, function: Callable) -> tuple[str, ...]:
    """The arguments' names: the student's own, or the reference's where those cannot be had."""
    expected = tuple(inspect.signature(exercise.reference).parameters)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # a function that is not written in Python
        return expected
    own = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    return own if len(own) == len(expected) else expected


def _make_case(exercise: Exercise, number: int, names: tuple[str, ...]) -> Case:
    arguments = exercise.make_case(torch.Generator().manual_seed(1000 + number), number)
    copied = copies(arguments)
    target = _float64(exercise, exercise.reference(*copied), copied)
    return Case(f"case {number + 1} of {CASES}", arguments, target, names)


def _float64(exercise: Exercise, answer, arguments) -> Tensor:
    """The numbers of an answer of ours, in float64."""
    numbers = exercise.compare_on(answer, arguments)
    return torch.as_tensor(numbers, dtype=torch.float64).detach()


def _try(exercise: Exercise, function: Callable, case: Case) -> tuple[Tensor, Tolerance]:
    """The function's numbers in one case, and how near they must be. Raises `Failed`."""
    arguments = copies(case.arguments)
    try:
        returned = function(*arguments)
    except KeyboardInterrupt:  # the student stops it
        raise
    except BaseException as error:
        raise Failed(_explain_stop(exercise, case, error)) from None
    try:
        numbers = _read_numbers(exercise, returned, arguments, case.target)
    except WrongShape as error:
        sentence = _explain_shape(exercise, case, error)
        raise Failed(f"{case}: {sentence}") from None
    except Unreadable as error:
        raise Failed(f"{case}: {error}") from None
    if exercise.in_place:
        return numbers
    for number, (before, after) in enumerate(zip(case.arguments, arguments), 1):
        if not _unchanged(before, after):
            raise Failed(
                f"your function changed its argument number {number} in place, "
                f"{case.names[number - 1]}: work on a copy."
            )
    return numbers


def _explain_stop(exercise: Exercise, case: Case, error: BaseException) -> str:
    """What a function that raised an error is told: a blank is left, or where it stopped."""
    if isinstance(error, NotImplementedError) and not error.args:
        return "not written yet: fill in the blank, then run this cell again."
    if type(error) in (TypeError, AttributeError) and re.search(r"\bellipsis\b", str(error)):
        return "not written yet: a `...` is still in it. Fill in each, then run this cell again."
    sentence = f"your function stopped in {case.name}{_line_of(error)}: {describe_error(error)}"
    return f"{sentence} {exercise.when_stopped}".rstrip()


# --- wrong values ---------------------------------------------------------------------------------


def _explain_values(exercise: Exercise, tried: list, tolerance: Tolerance) -> str:
    """The slip that gives just these values, or where they differ most from the right ones.

    tried: (case, answer) of the cases so far, of which the last answer is wrong.
    """
    feedback = _find_slip(exercise, tried, tolerance)
    if feedback is not None:
        return feedback
    case, answer = tried[-1]
    difference = _largest_difference(answer, case.target)
    if all(_close(answer, case.target, FLOAT32) for case, answer in tried):
        return (
            "right to the 7 digits of float32, but not to those of float64, in which your "
            "answer is: make what it is computed from in float64, as by "
            f"torch.zeros(n, d, dtype=torch.float64). The largest difference is{difference}"
        )
    return f"right shape, wrong values; the largest difference is{difference}"


def _explain_shape(exercise: Exercise, case: Case, error: WrongShape) -> str:
    """The slip that gives an answer of this wrong shape, or what shape was expected."""
    try:
        answer = _plain_tensor(error.value)
    except Exception:  # it is no number and no plain tensor
        return str(error)
    feedback = _find_slip(exercise, [(case, answer)], FLOAT32)
    return feedback or str(error)


def _find_slip(exercise: Exercise, tried: list, tolerance: Tolerance) -> str | None:
    """The feedback of the first slip that gives all answers so far."""
    agreeing = None
    try:
        for case, answer in tried:
            arguments = copies(case.arguments)
            feedbacks = [
                slip.feedback
                for slip in exercise.slips(*arguments)
                if _close(_float64(exercise, slip.answer, arguments), answer, tolerance)
            ]
            agreeing = [text for text in feedbacks if agreeing is None or text in agreeing]
    except Exception:  # the student's function has changed a setting of PyTorch
        return None
    return agreeing[0] if agreeing else None


def _largest_difference(yours: Tensor, target: Tensor) -> str:
    """Where two answers differ most, and both numbers, with enough digits to look different."""
    largest = int((yours - target).abs().argmax())
    index = [int(position) for position in np.unravel_index(largest, target.shape)]
    mine, expected = yours.flatten()[largest].item(), target.flatten()[largest].item()
    for digits in (6, 9, 12, 17):
        if f"{mine:.{digits}g}" != f"{expected:.{digits}g}":
            break
    at = f" at {index}" if index else ""
    return f"{at}: yours {mine:.{digits}g}, expected {expected:.{digits}g}."


# --- what a function returned ---------------------------------------------------------------------


def _read_numbers(
    exercise: Exercise, returned, arguments: list, target: Tensor
) -> tuple[Tensor, Tolerance]:
    """The numbers of an answer in float64, and how near they must be. Raises `Unreadable`."""
    try:
        tolerance = EXACT if exercise.in_place else _tolerance_for(returned, target, exercise)
        value = _compared_value(exercise, returned, arguments)
        if value is not returned:
            tolerance = max(tolerance, _tolerance_for(value, target, exercise))
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        if shape != tuple(target.shape):
            raise WrongShape(
                f"your answer has shape {shape}, expected {tuple(target.shape)}: {exercise.prompt}",
                value,
            )
        numbers = _plain_tensor(value)
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(
            f"your answer cannot be read ({describe_error(error)}); expected {_kind(target)}: "
            f"{exercise.prompt}"
        ) from None
    if not numbers.isfinite().all():
        raise Unreadable(
            "your answer has a nan or an infinity in it: is there a division by 0, a log of 0 or "
            "of a negative number, or an exp of something large?"
        )
    return numbers, tolerance


def _tolerance_for(value, target: Tensor, exercise: Exercise) -> Tolerance:
    """How near an answer of this kind must be. Raises `Unreadable` if it cannot be compared."""
    if value is None:
        raise Unreadable("your function returned None: is a `return` missing?")
    if isinstance(value, (bool, int, float)):
        return EXACT
    if isinstance(value, (np.number, np.bool_)):
        value = torch.as_tensor(value)
    if not isinstance(value, Tensor):
        raise Unreadable(
            f"your function returned a {type(value).__name__:.60}; expected {_kind(target)}: "
            f"{exercise.prompt}"
        )
    if value.is_complex():
        raise Unreadable(
            f"your answer is complex ({value.dtype}); expected real numbers: {exercise.prompt}"
        )
    if value.layout != torch.strided:
        raise Unreadable(
            f"your answer is a sparse tensor ({value.layout}): return all its entries, as its "
            "to_dense() does."
        )
    if value.is_meta:
        raise Unreadable(
            "your answer is on the device 'meta', where a tensor has a shape and no numbers: "
            "compute it on 'cpu'."
        )
    if value.dtype not in TOLERANCES:
        raise Unreadable(
            f"your answer is in {value.dtype}, which keeps too few digits to tell right from "
            "wrong: compute in torch.float64."
        )
    return TOLERANCES[value.dtype]


def _compared_value(exercise: Exercise, returned, arguments: list):
    """What of an answer is compared: the answer itself, or a surrogate loss's gradient."""
    try:
        return exercise.compare_on(returned, arguments)
    except KeyboardInterrupt:
        raise
    except Unreadable:
        raise
    except BaseException as error:
        raise Unreadable(
            f"no gradient can be taken of your answer ({describe_error(error)}); "
            f"expected {exercise.prompt}"
        ) from None


def _plain_tensor(value) -> Tensor:
    """Numbers as float64 on the CPU, without graph or subclass."""
    if not isinstance(value, Tensor):
        return torch.tensor(value, dtype=torch.float64, device="cpu")
    return torch.from_numpy(value.detach().cpu().to(torch.float64).numpy(force=True).copy())


def _kind(target: Tensor) -> str:
    return "a tensor" if target.ndim else "a number"


def _close(a: Tensor, b: Tensor, tolerance: Tolerance) -> bool:
    if a.shape != b.shape:
        return False
    return torch.allclose(a, b, rtol=tolerance.rtol, atol=tolerance.atol)


def _unchanged(before, after) -> bool:
    if not torch.is_tensor(before):
        return True
    try:
        return before.dtype == after.dtype and torch.equal(before, after)
    except Exception:  # it is on another device now, or of another layout
        return False


def describe_error(error: BaseException) -> str:
    """An exception's type and message in one line, at most about 360 characters."""
    try:
        text = one_line(without_halves(str(error)[:2000]))
    except Exception:  # it may be the student's own class
        text = "(its message cannot be read)"
    ellipsis = " …" if len(text) > 300 else ""
    return f"{type(error).__name__:.60}: {text[:300]}{ellipsis}"


def _line_of(error: BaseException) -> str:
    """The line of the student's own code that raised, if it is known."""
    line = None
    traceback = error.__traceback__.tb_next  # the first frame is ours
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if "contaccum_lite" not in filename and "site-packages" not in filename:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f", in its cell's line {line}" if line else ""

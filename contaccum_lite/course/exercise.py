"""What an exercise is: what it asks, its right answer, and the slips that people make."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Slip(NamedTuple):
    """A wrong answer that people give, and the sentence that helps them."""

    feedback: str
    answer: object


def whole_answer(answer, arguments):
    """Compare the answer itself."""
    return answer


class Exercise(NamedTuple):
    """What `check` needs to know of an exercise."""

    prompt: str  # what the student's function must return, in a sentence
    make_case: Callable  # (random generator, number of the case) -> its arguments, in float64
    reference: Callable  # (*arguments) -> the right answer
    slips: Callable  # (*arguments) -> a list of `Slip`, always in one order
    compare_on: Callable = whole_answer  # (answer, arguments) -> the numbers that are compared

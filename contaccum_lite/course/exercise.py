"""What an exercise is: what it asks, its right answer, and the slips that people make."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

from torch import nn


class Unreadable(Exception):
    """An answer of which no numbers can be compared; the text says why."""


class Slip(NamedTuple):
    """A wrong answer that people give, and the sentence that helps them."""

    feedback: str
    answer: object


def whole_answer(answer, arguments):
    """Compare the answer itself."""
    return answer


def copies(arguments) -> list:
    """Copies of an exercise's arguments; an optimizer's copy moves the copies of its towers."""
    copied = copy.deepcopy(list(arguments))
    for before, after in zip(arguments, copied):
        if isinstance(before, nn.Module):
            for old, new in zip(before.parameters(), after.parameters()):
                new.grad = None if old.grad is None else old.grad.clone()  # deepcopy leaves it out
    return copied


class Exercise(NamedTuple):
    """What `check` needs to know of an exercise."""

    prompt: str  # what the student's function must return, in a sentence
    make_case: Callable  # (random generator, number of the case) -> its arguments, in float64
    reference: Callable  # (*arguments) -> the right answer
    slips: Callable  # (*arguments) -> a list of `Slip`, always in one order
    compare_on: Callable = whole_answer  # (answer, arguments) -> the numbers that are compared
    in_place: bool = False  # the function changes its arguments, of which `compare_on` reads
    when_stopped: str = ""  # said where the function raises: what usually makes it stop

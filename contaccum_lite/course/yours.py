"""`yours`: the student's own function in the cells that follow its exercise."""

from __future__ import annotations

import functools
from collections.abc import Callable

from contaccum_lite.course.check import check, last_passed
from contaccum_lite.course.exercises import EXERCISES

YOURS, REFERENCE = "yours", "the reference"


class Yours:
    """A function to go on with, and whose it is. Calling it calls the function.

    name: of the exercise. function: the student's or the reference solution. owner: "yours" or
    "the reference". sentence: whose it is and why, for a picture's title.
    """

    def __init__(self, name: str, function: Callable, owner: str, sentence: str):
        self.name, self.function, self.owner, self.sentence = name, function, owner, sentence
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)

    def __repr__(self):
        return self.sentence

    def title(self, text: str) -> str:
        """A picture's title that ends with whose function made it."""
        return f"{text} (by {'your function' if self.owner == YOURS else self.owner})"


def yours(name: str, function: Callable | None = None) -> Yours:
    """The student's function if it passes its check, else the reference solution.

    name: of the exercise, as in "04.4". function: the student's; None is the last one that passed
    `check` under this name since the kernel started. Returns a `Yours`, which is called as the
    function is, and says in `owner` and `sentence` whose it is. Raises `ValueError` for an unknown
    exercise or something that is no function.
    """
    if function is None:
        function = last_passed(name)
        if function is None:
            return _reference(name, f"no function of yours has passed {name} yet")
    verdict = check(name, function)
    if verdict.passed:
        return Yours(name, function, YOURS, f"{name}: your function, which passed its check.")
    return _reference(name, f"yours does not pass {name} yet")


def _reference(name: str, reason: str) -> Yours:
    function = EXERCISES[name].reference
    return Yours(name, function, REFERENCE, f"{name}: the reference solution, because {reason}.")

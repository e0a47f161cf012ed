"""`cl.yours`: the student's function where it passed, else the reference, and it says which."""

import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.course import check
from contaccum_lite.course.exercises import EXERCISES

GRADIENTS = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def nothing_passed_yet(monkeypatch):
    monkeypatch.setattr(check, "_passed", {})


def without_mean(gradients):
    """Mine."""
    without_mean.calls = getattr(without_mean, "calls", 0) + 1
    return gradients - gradients.mean(0)


def blank(gradients):
    raise NotImplementedError


def test_a_function_that_passes_is_the_students_own():
    function = cl.yours("04.4", without_mean)
    assert function.owner == "yours"
    assert function.sentence == "04.4: your function, which passed its check."
    assert function.title("The ratio") == "The ratio (by your function)"
    calls = without_mean.calls
    assert torch.equal(function(GRADIENTS), GRADIENTS - GRADIENTS.mean(0))
    assert without_mean.calls == calls + 1
    assert function.__name__ == "without_mean" and function.__doc__ == "Mine."


@pytest.mark.parametrize("function", [blank, lambda g: g - g.mean(), lambda g: 1 / 0])
def test_any_other_is_the_reference_and_says_so(function):
    function = cl.yours("04.4", function)
    assert function.owner == "the reference"
    assert repr(function) == ("04.4: the reference solution, because yours does not pass 04.4 yet.")
    assert function.title("The ratio") == "The ratio (by the reference)"
    assert function.function is EXERCISES["04.4"].reference


def test_without_a_function_the_last_that_passed_is_taken():
    assert cl.yours("04.4").owner == "the reference"
    assert "no function of yours has passed 04.4 yet" in cl.yours("04.4").sentence
    cl.check("04.4", blank)
    assert cl.yours("04.4").owner == "the reference"
    cl.check("04.4", without_mean)
    cl.check("04.4", blank)  # a later try does not take away what passed
    assert cl.yours("04.4").function is without_mean
    assert cl.yours("04.3").owner == "the reference"


def test_what_is_no_exercise_or_no_function_is_refused():
    with pytest.raises(ValueError, match="there is no exercise '99.9'"):
        cl.yours("99.9")
    with pytest.raises(ValueError, match="there is no exercise '99.9'"):
        cl.yours("99.9", without_mean)
    with pytest.raises(ValueError, match="give it the function itself"):
        cl.yours("04.4", GRADIENTS)


def test_the_failing_arguments_can_be_had():
    seen = []

    def wrong(gradients):
        seen.append(gradients.clone())
        return gradients

    verdict = cl.check("04.4", wrong)
    assert len(verdict.arguments) == 1 and torch.equal(verdict.arguments[0], seen[-1])
    assert torch.equal(cl.check("04.4", blank).arguments[0], seen[0])
    assert cl.check("04.4", without_mean).arguments == []

"""Every check notices an argument that is ignored.

The mutants: the reference solution with one argument exchanged for something of its own (the same
in every case, or made from the argument's shape alone). No mutant may pass.
"""

import inspect

import pytest
import torch
from torch import nn

import contaccum_lite as cl
from contaccum_lite.course.check import CASES
from contaccum_lite.course.exercise import copies
from contaccum_lite.course.exercises import EXERCISES

torch.set_num_threads(1)


def first_case(exercise):
    return list(exercise.make_case(torch.Generator().manual_seed(1000), 0))


def constants(argument, first):
    """Functions from an argument to what a student who ignores it may have in its place."""
    if torch.is_tensor(argument) and argument.is_floating_point():
        noise = torch.Generator().manual_seed(7)
        return [
            torch.zeros_like,
            torch.ones_like,
            lambda x: torch.randn(x.shape, generator=noise, dtype=x.dtype),
            lambda x: x.detach()[:1].expand_as(x) if len(x) else x + 1,
        ]
    if torch.is_tensor(argument):
        return [
            torch.zeros_like,
            torch.ones_like,
            lambda x: torch.arange(len(x)),
            lambda x: x[:1].expand_as(x),
        ]
    if isinstance(argument, (int, float)):
        return [lambda x: first, lambda x: 0, lambda x: 1, lambda x: 2, lambda x: 2 * x + 1]
    if isinstance(argument, list):
        return [lambda x: x[:1], lambda x: x[::-1], lambda x: x[-1:] * len(x)]
    if isinstance(argument, nn.Module):
        return [lambda x: copies([x])[0]]
    return [lambda x: torch.optim.SGD([p for g in x.param_groups for p in g["params"]], lr=0.1)]


def mutants(name):
    """(name of the argument, number of the constant, the function that ignores it)."""
    exercise = EXERCISES[name]
    names = list(inspect.signature(exercise.reference).parameters)
    first = first_case(exercise)
    assert len(first) == len(names)
    for position, argument_name in enumerate(names):
        for number, constant in enumerate(constants(first[position], first[position])):

            def mutant(*arguments, position=position, constant=constant):
                changed = list(arguments)
                changed[position] = constant(changed[position])
                return exercise.reference(*changed)

            yield argument_name, number, mutant


@pytest.mark.parametrize("name", EXERCISES)
def test_an_argument_that_is_ignored_is_noticed(name):
    by_values = {}
    for argument, number, mutant in mutants(name):
        verdict = cl.check(name, mutant)
        assert not verdict.passed, f"{name} passes without {argument}, constant {number}"
        stopped = "your function stopped" in verdict.sentence
        by_values[argument] = by_values.get(argument, False) or not stopped
    assert all(by_values.values()), by_values  # not only because the function broke


@pytest.mark.parametrize("name", EXERCISES)
def test_no_two_arguments_can_be_exchanged(name):
    """Two arguments of one kind, given in the other order, do not pass."""
    exercise = EXERCISES[name]
    first = first_case(exercise)
    for one in range(len(first)):
        for other in range(one + 1, len(first)):
            if type(first[one]) is not type(first[other]):
                continue

            def exchanged(*arguments, one=one, other=other):
                changed = list(arguments)
                changed[one], changed[other] = changed[other], changed[one]
                return exercise.reference(*changed)

            symmetric = (name, one, other) in SYMMETRIC
            assert cl.check(name, exchanged).passed == symmetric, (name, one, other)


#: Sums and products do not mind the order of their terms.
SYMMETRIC = {
    ("02.3", 0, 1),
    ("03.2", 0, 1),
    ("08.1", 0, 1),
    ("09.2", 1, 2),
    ("09.3", 0, 1),
    ("09.3", 0, 2),
    ("09.3", 1, 2),
}


@pytest.mark.parametrize("name", EXERCISES)
def test_the_cases_differ_and_are_the_same_each_time(name):
    exercise = EXERCISES[name]
    shapes = set()
    for number in range(CASES):
        a, b = (
            exercise.make_case(torch.Generator().manual_seed(1000 + number), number)
            for _ in range(2)
        )
        for x, y in zip(a, b):
            if torch.is_tensor(x):
                assert torch.equal(x, y)
        shapes.add(tuple(tuple(x.shape) if torch.is_tensor(x) else str(x)[:20] for x in a))
    assert len(shapes) > 2


def test_what_students_do_most_gets_its_sentence():
    says = lambda name, function: cl.check(name, function).sentence
    assert "return one number, such as the sum" in says("02.3", lambda v, g: v * g)
    assert "return one number, such as the sum" in says("02.3", lambda v, g: g)

    def plain_slice(bank, position, new):
        bank = bank.clone()
        bank[position : position + len(new)] = new
        return bank

    assert "After it comes slot 0" in says("03.1", plain_slice)

    def flat(queries, passages, temperature):
        softmax = (queries @ passages.T / temperature).softmax(1)
        return -(passages - softmax @ passages)

    assert "missing both 1/N and 1/τ" in says("04.1", flat)

"""Exercises of notebook 03: the memory bank."""

from __future__ import annotations

import torch

from contaccum_lite.course.exercise import Exercise, Slip
from contaccum_lite.course.exercises.random_cases import randint, randn


def ring_case(random, number):
    """A bank (size, 2), the next slot to write, new vectors; the first case goes past the end."""
    size, num_new = randint(random, 4, 8), randint(random, 1, 3)
    bank = randn(random, size, 2)
    if number == 0:
        return bank, size - 2, randn(random, 3, 2)
    return bank, randint(random, 0, size - 1), randn(random, num_new, 2)


def enqueue(bank, position, new):
    bank = bank.clone()
    bank[(position + torch.arange(len(new))) % len(bank)] = new
    return bank


def enqueue_slips(bank, position, new):
    before, after = bank[:position], bank[position + len(new) :]
    return [
        Slip(
            "always from slot 0: the next slot to be written is `position`.", enqueue(bank, 0, new)
        ),
        Slip(
            "appended at the end and the first dropped: right order, wrong slots; the ring writes "
            "in place.",
            torch.cat([bank, new])[len(new) :],
        ),
        Slip(
            "no way round the end: slot numbers are taken modulo the size.",
            torch.cat([before, new[: len(bank) - position], after]),
        ),
        Slip(
            "one slot too far: the first new vector goes to `position` itself.",
            enqueue(bank, position + 1, new),
        ),
    ]


def sizes_case(random, number):
    return randint(random, 1, 16), randint(random, 1, 256), number % 3


def num_negatives(local, memory, hard):
    return (1 + hard) * (local + memory) - 1


def num_negatives_slips(local, memory, hard):
    return [
        Slip(
            "the hard negatives are missing: every pair in the batch and in the bank brings its "
            "own.",
            local + memory - 1,
        ),
        Slip(
            "the banked hard negatives are missing: the bank keeps those too.",
            local + memory - 1 + hard * local,
        ),
        Slip("a query's own passage is not a negative: one less.", (1 + hard) * (local + memory)),
    ]


def ids_case(random, number):
    """Ids of the rows and of the columns; the rows come first among the columns."""
    rows, memory = randint(random, 2, 4), randint(random, 1, 4)
    columns = torch.randint(0, 6, (rows + memory,), generator=random)
    if number == 0:
        rows, columns = 2, torch.tensor([0, 1, 0, 2])
    return columns[:rows], columns


def duplicates(rows, columns):
    mask = rows[:, None] == columns
    mask.fill_diagonal_(False)
    return mask


def duplicates_slips(rows, columns):
    mask = duplicates(rows, columns)
    return [
        Slip(
            "the diagonal too: there stands the positive itself, which must stay.",
            rows[:, None] == columns,
        ),
        Slip("turned round: True is for what is left out.", ~mask),
        Slip(
            "only the first copy: an id may stand in the bank more than once.",
            mask & (mask.cumsum(1) == 1),
        ),
        Slip(
            "nothing is left out: compare the rows' ids with all columns' ids.",
            torch.zeros_like(mask),
        ),
    ]


EXERCISES = {
    "03.1": Exercise(
        "the bank after the new vectors were written, of the bank's shape.",
        ring_case,
        enqueue,
        enqueue_slips,
        when_stopped="(Do the new vectors go past the last slot? After it comes slot 0.)",
    ),
    "03.2": Exercise(
        "negatives per local query once the bank is full: one number.",
        sizes_case,
        num_negatives,
        num_negatives_slips,
    ),
    "03.3": Exercise(
        "True where the column holds the row's own pair a second time, rows × columns.",
        ids_case,
        duplicates,
        duplicates_slips,
    ),
}

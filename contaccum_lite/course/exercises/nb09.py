"""Exercises of notebook 09: take it home."""

from __future__ import annotations

import torch

from contaccum_lite.course.exercise import Exercise, Slip
from contaccum_lite.course.exercises.random_cases import randint


def process_case(random, number):
    return randint(random, 0, 5), randint(random, 1, 6)


def positive_columns(rank, local):
    return torch.arange(local) + rank * local


def positive_columns_slips(rank, local):
    return [
        Slip(
            "the offset of this process is missing: every process would claim the first one's "
            "passages.",
            torch.arange(local),
        ),
        Slip(
            "the offset is the rank alone: each process before it holds `local` passages.",
            torch.arange(local) + rank,
        ),
        Slip("counted from 1: process 0 begins at column 0.", positive_columns(rank + 1, local)),
    ]


def index_case(random, number):
    return 10 ** randint(random, 5, 8), 64 * randint(random, 2, 16), randint(random, 1, 4)


def index_gigabytes(passages, dim, width):
    return passages * (dim * width + 8) / 1e9


def index_gigabytes_slips(passages, dim, width):
    return [
        Slip("the ids are missing: 8 bytes a vector.", passages * dim * width / 1e9),
        Slip("in GiB: a gigabyte is 10⁹ bytes here.", passages * (dim * width + 8) / 2**30),
        Slip(
            "an id for each number: there is one for each vector.",
            passages * dim * (width + 8) / 1e9,
        ),
    ]


def encoding_case(random, number):
    passages = 10 ** randint(random, 5, 8)
    tokens = 2 ** randint(random, 5, 8)
    weights = 1e6 * randint(random, 20, 300)
    return passages, tokens, weights, 10.0 ** randint(random, 10, 14)


def encoding_hours(passages, tokens, weights, flops):
    return 2 * weights * tokens * passages / flops / 3600


def encoding_hours_slips(passages, tokens, weights, flops):
    hours = encoding_hours(passages, tokens, weights, flops)
    return [
        Slip("one operation for each weight: it is a multiplication and an addition.", hours / 2),
        Slip("those are seconds.", hours * 3600),
        Slip("6 for each weight and token is training: encoding has no backward pass.", hours * 3),
    ]


EXERCISES = {
    "09.1": Exercise(
        "the columns of this process's positives, `local` whole numbers.",
        process_case,
        positive_columns,
        positive_columns_slips,
    ),
    "09.2": Exercise(
        "gigabytes of 10⁹ bytes: a number.", index_case, index_gigabytes, index_gigabytes_slips
    ),
    "09.3": Exercise("hours: a number.", encoding_case, encoding_hours, encoding_hours_slips),
}

"""Exercises of notebook 06: how a ledger decides."""

from __future__ import annotations

import torch

from contaccum_lite.course.exercise import Exercise, Slip
from contaccum_lite.course.exercises.random_cases import randint, randn


def seeds_case(random, number):
    """MRR@10 in percent of two methods, one number a seed; both move with the seed."""
    n = randint(random, 5, 9)  # with 4, two of the slips below give one number: √4 = 2
    of_seed = 2 * randn(random, n)
    first = 35 + of_seed + 0.3 * randn(random, n)
    return first, 34 + of_seed + 0.3 * randn(random, n)


def student_t(n: int) -> float:
    """Student's t: 95 % of the means of n numbers lie within so many standard errors."""
    from scipy.special import stdtrit  # here: it takes a tenth of a second to load

    return float(stdtrit(n - 1, 0.975))


def paired_interval(first, second):
    differences = first - second
    n = len(differences)
    half = student_t(n) * differences.std() / n**0.5
    return torch.stack([differences.mean(), half])


def paired_interval_slips(first, second):
    differences = first - second
    n = len(differences)
    mean, spread, t = differences.mean(), differences.std(), student_t(n)
    unpaired = t * ((first.var() + second.var()) / n).sqrt()
    population = differences.std(correction=0)
    return [
        Slip(
            "as if the seeds of the two had nothing to do with each other: take the differences "
            "first, and then their spread.",
            torch.stack([mean, unpaired]),
        ),
        Slip(
            "that is the spread of one difference: the mean of n of them is √n times surer.",
            torch.stack([mean, t * spread]),
        ),
        Slip(
            "1.96 is for a spread that is known. Here it is estimated from a few seeds: take t.",
            torch.stack([mean, 1.96 * spread / n**0.5]),
        ),
        Slip(
            "divide the squares by n − 1, not by n (correction=1), where the mean is estimated "
            "from the same numbers.",
            torch.stack([mean, t * population / n**0.5]),
        ),
        Slip(
            "the other way round: the first minus the second.",
            torch.stack([-mean, t * spread / n**0.5]),
        ),
        Slip(
            "half of the interval, please: from the mean to one of its ends.",
            torch.stack([mean, 2 * t * spread / n**0.5]),
        ),
    ]


EXERCISES = {
    "06.1": Exercise(
        "a tensor of two numbers: the mean difference, and half of its 95 % interval.",
        seeds_case,
        paired_interval,
        paired_interval_slips,
    ),
}

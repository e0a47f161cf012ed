"""Exercises of notebook 07: old vectors."""

from __future__ import annotations

import torch

from contaccum_lite.course.exercise import Exercise, Slip
from contaccum_lite.course.exercises.random_cases import rand, randint, randn


def drift_case(random, number):
    """The same passages' vectors (N, d), now and some updates ago."""
    n, d = randint(random, 2, 6), randint(random, 2, 5)
    now = randn(random, n, d) * (0.5 + rand(random, n, 1))
    return now, now + 0.5 * randn(random, n, d)


def relative_drift(now, then):
    return (((now - then) ** 2).sum(1) / (now**2).sum(1)).mean()


def relative_drift_slips(now, then):
    moved = ((now - then) ** 2).sum(1)
    lengths = (now**2).sum(1)
    return [
        Slip(
            "norms, not their squares: D is a ratio of squared norms.",
            (moved.sqrt() / lengths.sqrt()).mean(),
        ),
        Slip(
            "divided by the vectors of then: D is relative to what they are now.",
            (moved / (then**2).sum(1)).mean(),
        ),
        Slip(
            "one ratio of two sums: take each passage's ratio first, then their mean.",
            moved.sum() / lengths.sum(),
        ),
        Slip("a sum over passages: take the mean.", (moved / lengths).sum()),
    ]


def two_scores_case(random, number):
    rows, columns = randint(random, 2, 5), randint(random, 3, 7)
    return 2 * randn(random, rows, columns), 2 * randn(random, rows, columns)


def softmax_kl(fresh, stale):
    return (fresh.softmax(1) * (fresh.log_softmax(1) - stale.log_softmax(1))).sum(1).mean()


def softmax_kl_slips(fresh, stale):
    log_ratio = fresh.log_softmax(1) - stale.log_softmax(1)
    over_rows = fresh.softmax(0) * (fresh.log_softmax(0) - stale.log_softmax(0))
    return [
        Slip(
            "the other way round: the fresh softmax is the truth, so it weighs the logs.",
            softmax_kl(stale, fresh),
        ),
        Slip(
            "weighed by the stale softmax: the fresh one is the truth, so it weighs the logs.",
            (stale.softmax(1) * log_ratio).sum(1).mean(),
        ),
        Slip("a sum over rows: take the mean.", softmax_kl(fresh, stale) * len(fresh)),
        Slip(
            "a mean over all entries: add up the columns of a row, then take the mean over rows.",
            softmax_kl(fresh, stale) / fresh.shape[1],
        ),
        Slip(
            "the softmax runs over the columns of a row (dim 1), not over rows.",
            over_rows.sum(1).mean(),
        ),
        Slip(
            "the scores are not normalised: take log_softmax, not the scores.",
            (fresh.softmax(1) * (fresh - stale)).sum(1).mean(),
        ),
    ]


def stale_case(random, number):
    """Stale vectors (N, d), their ages (N,), and the same passages' vectors now (N, d)."""
    n, d = randint(random, 3, 7), randint(random, 2, 4)
    age = torch.randint(1, 9, (n,), generator=random).double()
    stale = randn(random, n, d)
    return stale, age, stale + age[:, None] * randn(random, d) + 0.3 * randn(random, n, d)


def drift_per_update(stale, age, target):
    return (age[:, None] * (target - stale)).sum(0) / (age**2).sum()


def drift_per_update_slips(stale, age, target):
    drift = target - stale
    return [
        Slip(
            "the mean drift, whatever the age: a new vector would be moved as far as an old one.",
            drift.mean(0),
        ),
        Slip(
            "the mean of each pair's own speed: least squares trusts the old pairs more, as their "
            "age is squared below.",
            (drift / age[:, None]).mean(0),
        ),
        Slip(
            "divided by the sum of ages: below stands the sum of their squares.",
            (age[:, None] * drift).sum(0) / age.sum(),
        ),
        Slip("the sign: it leads from stale to now.", -drift_per_update(stale, age, target)),
    ]


EXERCISES = {
    "07.1": Exercise(
        "the mean over passages of the squared move over the squared norm: a number.",
        drift_case,
        relative_drift,
        relative_drift_slips,
    ),
    "07.2": Exercise(
        "KL(fresh ‖ stale) of the two softmaxes of each row, as a mean over rows: a number.",
        two_scores_case,
        softmax_kl,
        softmax_kl_slips,
    ),
    "07.3": Exercise(
        "the drift per update, one vector of d numbers, that fits best in the sense of least "
        "squares.",
        stale_case,
        drift_per_update,
        drift_per_update_slips,
    ),
}

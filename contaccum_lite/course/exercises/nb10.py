"""Exercises of notebook 10: the field."""

from __future__ import annotations

import torch

from contaccum_lite.core.masks import above_margin
from contaccum_lite.core.objectives import decoupled_loss
from contaccum_lite.course.exercise import Exercise, Slip
from contaccum_lite.course.exercises.random_cases import rand, randint, randn


def scores_case(random, number):
    """Scores of N queries with N passages, already divided by the temperature."""
    n = randint(random, 3, 6)
    return (2 * randn(random, n, n),)


def decoupled_gradient(scores):
    return decoupled_loss(scores)[1]


def decoupled_gradient_slips(scores):
    right = decoupled_gradient(scores)
    n = len(scores)
    identity = torch.eye(n, dtype=scores.dtype)
    softmax = scores.softmax(1)
    return [
        Slip(
            "that is InfoNCE's gradient: the positive is still in its row's denominator.",
            (softmax - identity) / n,
        ),
        Slip("missing 1/N: the loss is a mean over the rows.", right * n),
        Slip("the sign is turned round: this points uphill.", -right),
        Slip(
            "the positive's own derivative is missing: −s_ii is in the loss, and gives −1 on the "
            "diagonal.",
            right + identity / n,
        ),
        Slip(
            "the denominator still has the positive: the entries beside the diagonal must add up "
            "to 1 in each row, before the mean.",
            (softmax * (1 - identity) - identity) / n,
        ),
        Slip(
            "softmax over columns: a query's weights over its negatives sum to 1 along its row.",
            decoupled_gradient(scores.T).T,
        ),
    ]


def remembered_case(random, number):
    """Scores of N queries with N local passages, and u of each pair's earlier visits, (N,)."""
    n = randint(random, 3, 6)
    return randn(random, n, n), 0.3 + 3 * rand(random, n)


def sogclr_gradient(scores, u):
    n = len(scores)
    weights = (scores - scores.diagonal()[:, None]).exp() / ((n - 1) * u[:, None])
    weights = weights.fill_diagonal_(0)
    return (weights - weights.sum(1).diag()) / n


def sogclr_gradient_slips(scores, u):
    right = sogclr_gradient(scores, u)
    n = len(scores)
    identity = torch.eye(n, dtype=scores.dtype)
    own_pull = right - right.diagonal().diag()
    no_positive = scores.exp() * (1 - identity) / ((n - 1) * u[:, None])
    over_columns = (scores - scores.diagonal()[:, None]).exp() * (1 - identity) / ((n - 1) * u)
    return [
        Slip(
            "−1 on the diagonal, as in the decoupled loss: here the positive pulls by what its "
            "row's negatives push, so that the row sums to zero whatever u is.",
            own_pull - identity / n,
        ),
        Slip(
            "the positive's own derivative is missing: s_ii is in every term of its row.", own_pull
        ),
        Slip(
            "the positive's score is not subtracted: u is a mean of exp(s_ij − s_ii).",
            (no_positive - no_positive.sum(1).diag()) / n,
        ),
        Slip("missing 1/N: the loss is a mean over the rows.", right * n),
        Slip("u is a mean over the N − 1 negatives: the normaliser is (N − 1) u.", right * (n - 1)),
        Slip(
            "u by column: u_i belongs to row i, as u[:, None].",
            (over_columns - over_columns.sum(1).diag()) / n,
        ),
        Slip("the sign is turned round: this points uphill.", -right),
    ]


def margin_case(random, number):
    """Scores of N queries with [N local | memory] passages, and a margin."""
    n, memory = randint(random, 3, 5), randint(random, 2, 6)
    return 2 * randn(random, n, n + memory), float(0.2 + rand(random))


def margin_mask_slips(scores, margin):
    positives = scores.diagonal()[:, None]
    largest = scores.amax(1, keepdim=True)
    below = (scores < positives - margin).fill_diagonal_(False)
    return [
        Slip(
            "turned round: these are the columns far below the positive, which are safe negatives.",
            below,
        ),
        Slip(
            "the margin has the wrong sign: a column may be up to `margin` above the positive.",
            above_margin(scores, -margin),
        ),
        Slip(
            "compared with 0: what is high or low, only the row's own positive can say.",
            (scores > margin).fill_diagonal_(False),
        ),
        Slip(
            "the margin is left out: every hard negative would go, too.", above_margin(scores, 0.0)
        ),
        Slip(
            "compared with the row's highest score: compare with its positive, on the diagonal.",
            scores > largest - margin,
        ),
        Slip(
            "these are the columns that stay: True where one is left out.",
            ~above_margin(scores, margin),
        ),
    ]


EXERCISES = {
    "10.1": Exercise(
        "∂loss/∂scores of the decoupled loss, of the scores' shape.",
        scores_case,
        decoupled_gradient,
        decoupled_gradient_slips,
    ),
    "10.2": Exercise(
        "∂loss/∂scores with u as a constant, of the scores' shape.",
        remembered_case,
        sogclr_gradient,
        sogclr_gradient_slips,
    ),
    "10.3": Exercise(
        "True where a column is left out, of the scores' shape.",
        margin_case,
        above_margin,
        margin_mask_slips,
    ),
}

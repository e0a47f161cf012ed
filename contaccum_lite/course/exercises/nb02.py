"""Exercises of notebook 02: accumulation and GradCache."""

from __future__ import annotations

import torch
from torch import Tensor

from contaccum_lite.course.exercise import Exercise, Slip, Unreadable
from contaccum_lite.course.exercises.random_cases import rand, randint, randn


def micro_batches_case(random, number):
    local = randint(random, 2, 4)
    return local * randint(random, 2, 4), local


def computed_entries(total, local):
    micro_batch = torch.arange(total) // local
    return micro_batch[:, None] == micro_batch


def computed_entries_slips(total, local):
    in_first = torch.arange(total) < local
    return [
        Slip(
            "these are the entries that are lost: turn it round.", ~computed_entries(total, local)
        ),
        Slip(
            "only the diagonal: a query also meets the other passages of its own micro-batch.",
            torch.eye(total, dtype=torch.bool),
        ),
        Slip(
            "only the first micro-batch: each has its own block on the diagonal.",
            in_first[:, None] & in_first,
        ),
        Slip(
            "everything: that is the big batch, which is what GradAccum does not have.",
            torch.ones(total, total, dtype=torch.bool),
        ),
    ]


def scores_case(random, number):
    total, local = micro_batches_case(random, number)
    return 2 * randn(random, total, total), local


def accumulated_loss(scores, local):
    losses = []
    for first in range(0, len(scores), local):
        micro_batch = scores[first : first + local, first : first + local]
        losses.append(-micro_batch.log_softmax(1).diagonal().mean())
    return torch.stack(losses).mean()


def accumulated_loss_slips(scores, local):
    other_columns = []
    for first in range(0, len(scores), local):
        log_softmax = scores[first : first + local].log_softmax(1)
        other_columns.append(-log_softmax[:, :local].diagonal().mean())
    return [
        Slip(
            "this is the loss of the big batch: a micro-batch's softmax runs over its own columns "
            "only.",
            -scores.log_softmax(1).diagonal().mean(),
        ),
        Slip(
            "missing 1/K: the micro-batches' losses are summed, not averaged.",
            accumulated_loss(scores, local) * (len(scores) // local),
        ),
        Slip(
            "the mean of the other blocks' scores crept in: cut rows and columns alike, "
            "s[i:i + local, i:i + local].",
            torch.stack(other_columns).mean(),
        ),
    ]


def surrogate_case(random, number):
    n, d = randint(random, 2, 5), randint(random, 2, 4)
    return randn(random, n, d).requires_grad_(), randn(random, n, d)


def surrogate(vectors, gradient):
    return (vectors * gradient).sum()


def surrogate_slips(vectors, gradient):
    return [
        Slip(
            "missing factor: a mean divides the gradient by the number of entries; use the sum.",
            (vectors * gradient).mean(),
        ),
        Slip(
            "this is half the square of the vectors' difference from the gradient: its derivative "
            "is v − g.",
            ((vectors - gradient) ** 2).sum() / 2,
        ),
        Slip("the sign is turned round.", -surrogate(vectors, gradient)),
    ]


def gradient_of_surrogate(answer, arguments):
    """∂surrogate/∂vectors, which is what GradCache needs of it."""
    if isinstance(answer, Tensor) and answer.ndim:
        raise Unreadable(
            f"no gradient can be taken of an answer of shape {tuple(answer.shape)}: return one "
            "number, such as the sum of all entries."
        )
    return torch.autograd.grad(answer, arguments[0])[0]


def replay_case(random, number):
    """Inputs (N, d), the dropout masks of two passes (N, d), ∂loss/∂vectors (N, e)."""
    n, d, e = randint(random, 3, 6), randint(random, 2, 4), randint(random, 2, 4)
    first, second = (0.5 + rand(random, n, d) for _ in range(2))
    return randn(random, n, d), first, second, randn(random, n, e)


def replay_error(inputs, first_mask, second_mask, gradient):
    right = (inputs * first_mask).T @ gradient
    forgotten = (inputs * second_mask).T @ gradient
    return (forgotten - right).norm() / right.norm()


def replay_error_slips(inputs, first_mask, second_mask, gradient):
    right = (inputs * first_mask).T @ gradient
    forgotten = (inputs * second_mask).T @ gradient
    without_dropout = inputs.T @ gradient
    difference = forgotten - right
    return [
        Slip(
            "not relative yet: divide by the norm of the right gradient.",
            difference.norm(),
        ),
        Slip(
            "divided by the wrong gradient's norm: the right one is that of the first pass, whose "
            "vectors the loss has seen.",
            difference.norm() / forgotten.norm(),
        ),
        Slip(
            "norms only: two gradients of one norm can point in different directions, so take "
            "the norm of their difference.",
            forgotten.norm() / right.norm(),
        ),
        Slip("squared: take the root.", (difference.norm() / right.norm()) ** 2),
        Slip(
            "that is the same mask in both passes: GradCache as it should be, with an error of 0.",
            torch.zeros((), dtype=torch.float64),
        ),
        Slip(
            "compared with no dropout at all: the first pass had its mask, too.",
            (forgotten - without_dropout).norm() / without_dropout.norm(),
        ),
    ]


EXERCISES = {
    "02.1": Exercise(
        "True where GradAccum computes the entry, total × total.",
        micro_batches_case,
        computed_entries,
        computed_entries_slips,
    ),
    "02.2": Exercise(
        "the mean of the micro-batches' losses, one number.",
        scores_case,
        accumulated_loss,
        accumulated_loss_slips,
    ),
    "02.3": Exercise(
        "a number whose gradient with respect to the vectors is the given gradient.",
        surrogate_case,
        surrogate,
        surrogate_slips,
        compare_on=gradient_of_surrogate,
    ),
    "02.4": Exercise(
        "the norm of the gradient's error, divided by the norm of the right gradient: a number.",
        replay_case,
        replay_error,
        replay_error_slips,
    ),
}

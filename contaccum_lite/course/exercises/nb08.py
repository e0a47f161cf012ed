"""Exercises of notebook 08: cost, and the incremental softmax."""

from __future__ import annotations

import torch

from contaccum_lite.course.exercise import Exercise, Slip
from contaccum_lite.course.exercises.random_cases import randint, randn


def bank_case(random, number):
    return 2 ** randint(random, 5, 14), 64 * randint(random, 1, 12)


def bank_gib(size, dim):
    return size * dim * 2 * 4 / 2**30


def bank_gib_slips(size, dim):
    return [
        Slip(
            "that is one bank: there are two, of queries and of passages.", size * dim * 4 / 2**30
        ),
        Slip("numbers, not bytes: a float32 has four.", size * dim * 2 / 2**30),
        Slip("GB of 10⁹ bytes; the paper's figures are GiB, of 2³⁰.", size * dim * 8 / 1e9),
        Slip("bytes: divide by 2³⁰.", size * dim * 8),
    ]


def blocks_case(random, number):
    return (2 * randn(random, randint(random, 2, 4), randint(random, 5, 7)),)


def suffix_sums(blocks):
    return blocks.flip(1).logcumsumexp(1).flip(1).T


def suffix_sums_slips(blocks):
    return [
        Slip(
            "from the wrong end: that is what has come up to block t; what is left when the older "
            "ones have gone starts at t.",
            blocks.logcumsumexp(1).T,
        ),
        Slip(
            "those are sums of logs: add the exps (logcumsumexp).",
            blocks.flip(1).cumsum(1).flip(1).T,
        ),
        Slip(
            "that is the newest-first order: turn it round again.", blocks.flip(1).logcumsumexp(1).T
        ),
        Slip("each block alone: add up all the newer ones too.", blocks.T.clone()),
    ]


def banked_rows_case(random, number):
    """What the bank gives each of N rows (N,), scores with B local columns (B, N), positives (N,).

    The bank's share contains the positives' scores.
    """
    local, n = randint(random, 1, 3), randint(random, 2, 6)
    positives = 2 * randn(random, n)
    others = 2 * randn(random, randint(random, 1, 4), n)
    from_bank = torch.cat([others, positives[None]]).logsumexp(0)
    return from_bank, 2 * randn(random, local, n), positives


def banked_losses(from_bank, scores, positives):
    return torch.logaddexp(from_bank, scores.logsumexp(0)) - positives


def banked_losses_slips(from_bank, scores, positives):
    from_local = scores.logsumexp(0)
    return [
        Slip(
            "what the bank gives the row is missing: its softmax runs over the bank's columns too.",
            from_local - positives,
        ),
        Slip("the local columns are missing.", from_bank - positives),
        Slip(
            "the sign is turned round: the log-sum-exp minus the positive's score.",
            -banked_losses(from_bank, scores, positives),
        ),
        Slip(
            "log-sum-exps do not add: exp both, add, and take the log, which is logaddexp.",
            from_bank + from_local - positives,
        ),
        Slip(
            "the positive's score is not subtracted: this is the log of the softmax's denominator "
            "alone.",
            torch.logaddexp(from_bank, from_local),
        ),
        Slip(
            "the scores themselves were added: take their exp first (logsumexp over the local "
            "columns).",
            torch.logaddexp(from_bank, scores.sum(0)) - positives,
        ),
    ]


def micro_batch_case(random, number):
    return 2 ** randint(random, 1, 4), 2 ** randint(random, 6, 12), 64 * randint(random, 1, 12)


def multiply_adds(b, n, d):
    return (2 * b * (b + n) + b * b + 2 * b * n) * d


def multiply_adds_slips(b, n, d):
    return [
        Slip(
            "that is the whole matrix: banked rows × banked columns need no product.",
            ((b + n) ** 2 + 2 * b * (b + n)) * d,
        ),
        Slip(
            "those are the scores of the whole matrix: banked rows × banked columns need no "
            "product, and the gradients do.",
            (b + n) ** 2 * d,
        ),
        Slip("the scores alone: the gradients are products too.", (b * (b + n) + b * n) * d),
        Slip(
            "the banked rows are missing: they are scored with the local columns, and pull at "
            "them.",
            2 * b * (b + n) * d + b * b * d,
        ),
        Slip(
            "the local passages' gradient from the local rows is missing: b·b weights more.",
            2 * b * (b + n) * d + 2 * b * n * d,
        ),
        Slip("each entry is a product of d numbers.", multiply_adds(b, n, 1)),
    ]


EXERCISES = {
    "08.1": Exercise("GiB of a dual bank: a number.", bank_case, bank_gib, bank_gib_slips),
    "08.2": Exercise(
        "(T, rows): entry [t, i] is the log-sum-exp of row i's blocks from t to the newest.",
        blocks_case,
        suffix_sums,
        suffix_sums_slips,
    ),
    "08.3": Exercise(
        "the loss of each banked row, (N,).", banked_rows_case, banked_losses, banked_losses_slips
    ),
    "08.4": Exercise(
        "multiply-adds of one micro-batch: a number.",
        micro_batch_case,
        multiply_adds,
        multiply_adds_slips,
    ),
}

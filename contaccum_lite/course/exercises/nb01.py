"""Exercises of notebook 01: contrast."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import normalize

from contaccum_lite.course.exercise import Exercise, Slip
from contaccum_lite.course.exercises.random_cases import rand, randint, randn, temperature


def row_case(random, number):
    scores = 2 * randn(random, randint(random, 2, 8))
    return scores, randint(random, 0, len(scores) - 1)


def row_loss(scores, positive):
    return scores.logsumexp(0) - scores[positive]


def row_loss_slips(scores, positive):
    negatives = torch.cat([scores[:positive], scores[positive + 1 :]])
    return [
        Slip("this is the probability itself: take minus its log.", scores.softmax(0)[positive]),
        Slip(
            "this is the log of the softmax: the loss is minus that, so that a good score gives a "
            "small loss.",
            scores.log_softmax(0)[positive],
        ),
        Slip(
            "the positive is missing from the sum below: it runs over all passages, the positive "
            "too.",
            negatives.logsumexp(0) - scores[positive],
        ),
        Slip(
            "the scores have not been put through exp before they were summed.",
            -(scores[positive] / scores.sum()).abs().log(),
        ),
        Slip(
            "this is always the loss of passage 0: the query's own passage is number `positive`.",
            row_loss(scores, 0),
        ),
    ]


def similarity_case(random, number):
    n, d = randint(random, 2, 5), randint(random, 2, 4)
    return randn(random, n, d), randn(random, n + number % 2, d), temperature(random)


def similarity(queries, passages, temperature):
    return queries @ passages.T / temperature


def similarity_slips(queries, passages, temperature):
    products = queries @ passages.T
    cosines = normalize(queries) @ normalize(passages).T
    return [
        Slip(
            "transposed: rows are queries, columns are passages.",
            passages @ queries.T / temperature,
        ),
        Slip(
            "multiplied by the temperature: a low temperature makes differences larger, so divide.",
            products * temperature,
        ),
        Slip("the temperature is missing.", products),
        Slip("this is the cosine: vectors are not scaled to norm 1 here.", cosines / temperature),
    ]


def square_scores_case(random, number):
    n = randint(random, 2, 7)
    return (2 * randn(random, n, n),)


def batch_loss(scores):
    return -scores.log_softmax(1).diagonal().mean()


def batch_loss_slips(scores):
    negatives = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), -torch.inf)
    return [
        Slip(
            "softmax over columns: each query (row) chooses among passages, so its row must sum "
            "to 1.",
            -scores.log_softmax(0).diagonal().mean(),
        ),
        Slip(
            "missing 1/N: this is the sum over the rows, not their mean.",
            -scores.log_softmax(1).diagonal().sum(),
        ),
        Slip(
            "a double softmax: the softmax of a softmax. That is how equations 1 and 4 read if "
            "taken literally; one is meant.",
            -scores.softmax(1).log_softmax(1).diagonal().mean(),
        ),
        Slip("the sign is turned round: the loss is minus the log.", -batch_loss(scores)),
        Slip(
            "the mean of both directions, as CLIP has it: here only queries choose, so take the "
            "rows alone.",
            (batch_loss(scores) + batch_loss(scores.T)) / 2,
        ),
        Slip(
            "the positive is missing from the sum below: it runs over all passages of the row, "
            "the positive too.",
            (negatives.logsumexp(1) - scores.diagonal()).mean(),
        ),
    ]


def information_case(random, number):
    return float(rand(random) * 3), randint(random, 2, 500)


def information(loss, n):
    return math.log(n) - loss


def information_slips(loss, n):
    return [
        Slip("turned round: a smaller loss proves more information.", loss - math.log(n)),
        Slip(
            "log(n − 1) counts negatives only: the positive is one of the n.",
            math.log(n - 1) - loss,
        ),
        Slip(
            "the loss is in nats: use the natural log, not the one to base 2.", math.log2(n) - loss
        ),
    ]


EXERCISES = {
    "01.1": Exercise(
        "minus the log of the softmax at the positive, one number.",
        row_case,
        row_loss,
        row_loss_slips,
    ),
    "01.2": Exercise(
        "row i, column j: query i · passage j, divided by the temperature.",
        similarity_case,
        similarity,
        similarity_slips,
    ),
    "01.3": Exercise(
        "the mean over rows of minus the log of the softmax at the diagonal, one number.",
        square_scores_case,
        batch_loss,
        batch_loss_slips,
    ),
    "01.4": Exercise(
        "how many nats of mutual information a loss among n passages proves, one number.",
        information_case,
        information,
        information_slips,
    ),
}

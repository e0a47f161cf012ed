"""Exercises of notebook 04: gradients by hand, and the imbalance."""

from __future__ import annotations

from contaccum_lite.course.exercise import Exercise, Slip
from contaccum_lite.course.exercises.random_cases import batch, randint, randn, temperature


def grad_queries(queries, passages, temperature):
    softmax = (queries @ passages.T / temperature).softmax(1)
    return -(passages - softmax @ passages) / (len(queries) * temperature)


def grad_queries_slips(queries, passages, temperature):
    right = grad_queries(queries, passages, temperature)
    n = len(queries)
    over_columns = (queries @ passages.T / temperature).softmax(0)
    return [
        Slip("the sign is turned round: this points uphill.", -right),
        Slip("missing 1/N: the loss is a mean over the rows.", right * n),
        Slip(
            "missing 1/τ: the scores were divided by the temperature, and so is their derivative "
            "(the paper has τ = 1).",
            right * temperature,
        ),
        Slip(
            "the softmax is that of Z: divide the scores by τ inside it, too.",
            -(passages - (queries @ passages.T).softmax(1) @ passages) / (n * temperature),
        ),
        Slip(
            "softmax over columns: a query's weights over the passages sum to 1 along its row.",
            -(passages - over_columns @ passages) / (n * temperature),
        ),
        Slip(
            "missing both 1/N and 1/τ: the loss is a mean over the rows, and the scores were "
            "divided by the temperature.",
            right * n * temperature,
        ),
        Slip(
            "the mean over the passages is without its weights: each is weighted by the softmax.",
            -(passages - passages.mean(0)) / (n * temperature),
        ),
    ]


def grad_passages(queries, passages, temperature):
    softmax = (queries @ passages.T / temperature).softmax(1)
    return -(queries - softmax.T @ queries) / (len(queries) * temperature)


def grad_passages_slips(queries, passages, temperature):
    right = grad_passages(queries, passages, temperature)
    n = len(queries)
    scores = queries @ passages.T / temperature
    softmax, over_columns = scores.softmax(1), scores.softmax(0)
    return [
        Slip("the sign is turned round: this points uphill.", -right),
        Slip(
            "missing both 1/N and 1/τ: the loss is a mean over the rows, and the scores were "
            "divided by the temperature.",
            right * n * temperature,
        ),
        Slip(
            "transposed: passage l gathers its column of the softmax, over all queries i.",
            -(queries - softmax @ queries) / (n * temperature),
        ),
        Slip(
            "this is the last line of Appendix A as printed, with q_l inside the sum: it must be "
            "q_i.",
            -(queries - softmax.sum(0)[:, None] * queries) / (n * temperature),
        ),
        Slip("missing 1/N: the loss is a mean over the rows.", right * n),
        Slip(
            "missing 1/τ: the scores were divided by the temperature, and so is their derivative.",
            right * temperature,
        ),
        Slip(
            "these are sums of passages: equation 9 adds up queries.",
            -(passages - softmax.T @ passages) / (n * temperature),
        ),
        Slip(
            "the softmax is that of Z: divide the scores by τ inside it, too.",
            -(queries - (queries @ passages.T).softmax(1).T @ queries) / (n * temperature),
        ),
        Slip(
            "softmax over columns: the same softmax as in equation 8, over each row, read down a "
            "column.",
            -(queries - over_columns.T @ queries) / (n * temperature),
        ),
    ]


def one_sided_case(random, number):
    """Scores of local queries with [local | memory] passages, the queries, a temperature."""
    n, memory, d = randint(random, 2, 5), randint(random, 1, 6), randint(random, 2, 4)
    return randn(random, n, n + memory), randn(random, n, d), temperature(random)


def common_push(scores, queries, temperature):
    memory_mass = scores.softmax(1)[:, len(scores) :].sum(1)
    return -(memory_mass[:, None] * queries).sum(0) / (len(scores) * temperature)


def common_push_slips(scores, queries, temperature):
    right = common_push(scores, queries, temperature)
    n = len(scores)
    local_mass = scores.softmax(1)[:, :n].sum(1)
    return [
        Slip(
            "the sign is turned round: the sum is minus the memory's mass times the queries.",
            -right,
        ),
        Slip(
            "that is the mass of the local columns: what the memory has taken is the rest of each "
            "row.",
            -(local_mass[:, None] * queries).sum(0) / (n * temperature),
        ),
        Slip("missing 1/N: the loss is a mean over the rows.", right * n),
        Slip("missing 1/τ.", right * temperature),
        Slip("n is the number of rows, not of columns.", right * n / scores.shape[1]),
        Slip(
            "the scores are divided by τ already: do not divide them again.",
            common_push(scores / temperature, queries, temperature),
        ),
    ]


def gradients_case(random, number):
    return (randn(random, randint(random, 2, 6), randint(random, 2, 5)) + 1,)


def without_common_part(gradients):
    return gradients - gradients.mean(0)


def without_common_part_slips(gradients):
    return [
        Slip(
            "mean over the wrong axis: what the passages have in common is the mean over passages "
            "(rows), one vector.",
            gradients - gradients.mean(1, keepdim=True),
        ),
        Slip(
            "the mean over everything is one number: the common part is a vector, one number per "
            "dimension.",
            gradients - gradients.mean(),
        ),
        Slip(
            "that is the common part itself: subtract it.", gradients.mean(0).expand_as(gradients)
        ),
        Slip(
            "the sum, not the mean: each passage carries one share of it.",
            gradients - gradients.sum(0),
        ),
    ]


EXERCISES = {
    "04.1": Exercise(
        "∂loss/∂queries, of the queries' shape: equation 8.",
        batch,
        grad_queries,
        grad_queries_slips,
    ),
    "04.2": Exercise(
        "∂loss/∂passages, of the passages' shape: equation 9.",
        batch,
        grad_passages,
        grad_passages_slips,
    ),
    "04.3": Exercise(
        "the sum of the local passages' gradients, one vector of dimension d.",
        one_sided_case,
        common_push,
        common_push_slips,
    ),
    "04.4": Exercise(
        "the gradients without what they have in common, of the same shape.",
        gradients_case,
        without_common_part,
        without_common_part_slips,
    ),
}

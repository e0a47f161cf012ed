"""The exercises of notebooks 01 to 04 and 07 to 09: what is asked, the reference, and the slips that people make."""

from __future__ import annotations

import torch

from .check import Exercise, Slip


def _normal(draw, *shape):
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def _number(draw, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=draw))


def _temperature(draw) -> float:
    return float(0.3 + 2 * torch.rand((), generator=draw, dtype=torch.float64))


def _vectors(draw, number):
    """Queries and passages, in equal number, and a temperature."""
    n, d = _number(draw, 2, 6), _number(draw, 2, 5)
    return _normal(draw, n, d), _normal(draw, n, d), _temperature(draw)


def _scores(draw, number):
    n = _number(draw, 2, 7)
    return (2 * _normal(draw, n, n),)


def _softmax(queries, passages, temperature, dim=1):
    return (queries @ passages.T / temperature).softmax(dim)


def _equation_8(queries, passages, temperature):
    return -(passages[: len(queries)] - _softmax(queries, passages, temperature) @ passages) / (
        len(queries) * temperature
    )


def _equation_9(queries, passages, temperature):
    return -(queries - _softmax(queries, passages, temperature).T @ queries) / (
        len(queries) * temperature
    )


def _kept_rows(draw, number):
    """What the bank gives each of N rows, their scores with B local columns, and their positives' scores, which the bank's part contains."""
    b, n = _number(draw, 1, 3), _number(draw, 2, 6)
    positives = 2 * _normal(draw, n)
    others = 2 * _normal(draw, _number(draw, 1, 4), n)
    return torch.cat([others, positives[None]]).logsumexp(0), 2 * _normal(draw, b, n), positives


def _kept_losses(kept, scores, positives):
    return torch.logaddexp(kept, scores.logsumexp(0)) - positives


def _moved(draw, number):
    """The same passages' vectors, now and some updates ago."""
    n, d = _number(draw, 2, 6), _number(draw, 2, 5)
    now = _normal(draw, n, d) * (0.5 + torch.rand(n, 1, generator=draw, dtype=torch.float64))
    return now, now + 0.5 * _normal(draw, n, d)


def _drift(now, then):
    return ((now - then) ** 2).sum(1).div((now**2).sum(1)).mean()


def _two_scores(draw, number):
    rows, columns = _number(draw, 2, 5), _number(draw, 3, 7)
    return 2 * _normal(draw, rows, columns), 2 * _normal(draw, rows, columns)


def _kl(fresh, stale):
    return (fresh.softmax(1) * (fresh.log_softmax(1) - stale.log_softmax(1))).sum(1).mean()


def _aged(draw, number):
    """Stale vectors, their ages, and the same passages' vectors now."""
    n, d = _number(draw, 3, 7), _number(draw, 2, 4)
    age = torch.randint(1, 9, (n,), generator=draw).double()
    stale = _normal(draw, n, d)
    return stale, age, stale + age.unsqueeze(1) * _normal(draw, d) + 0.3 * _normal(draw, n, d)


def _speed(stale, age, target):
    return (age.unsqueeze(1) * (target - stale)).sum(0) / (age**2).sum()


def _suffix_sums(blocks):
    return blocks.flip(1).logcumsumexp(1).flip(1).T


def _incremental_products(b, n, d):
    return (2 * b * (b + n) + b * b + 2 * b * n) * d


def _blocks(total: int, local: int):
    block = torch.arange(total) // local
    return block[:, None] == block


def _accumulated(scores, local):
    return torch.stack(
        [
            -part.log_softmax(1).diagonal().mean()
            for part in (scores[i : i + local, i : i + local] for i in range(0, len(scores), local))
        ]
    ).mean()


def _batch_and_blocks(draw, number):
    local = _number(draw, 2, 4)
    total = local * _number(draw, 2, 4)
    return total, local


def _scores_and_local(draw, number):
    total, local = _batch_and_blocks(draw, number)
    return 2 * _normal(draw, total, total), local


def _ring(bank, position, new):
    bank = bank.clone()
    bank[(position + torch.arange(len(new))) % len(bank)] = new
    return bank


def _ring_case(draw, number):
    size, new = _number(draw, 4, 8), _number(draw, 1, 3)
    return (
        _normal(draw, size, 2),
        size - 2 if number == 0 else _number(draw, 0, size - 1),
        _normal(draw, new if number else 3, 2),
    )


def _ids(draw, number):
    rows, more = _number(draw, 2, 4), _number(draw, 1, 4)
    columns = torch.randint(0, 6, (rows + more,), generator=draw)
    if number == 0:
        columns = torch.tensor([0, 1, 0, 2])
        rows = 2
    return columns[:rows], columns


def _same_id(rows, columns):
    same = rows[:, None] == columns
    same.fill_diagonal_(False)
    return same


def _frozen(draw, number):
    """Scores of local queries with [local | memory] passages, the queries, a temperature."""
    n, memory, d = _number(draw, 2, 5), _number(draw, 1, 6), _number(draw, 2, 4)
    return _normal(draw, n, n + memory), _normal(draw, n, d), _temperature(draw)


def _push(scores, queries, temperature):
    mass = scores.softmax(1)[:, len(scores) :].sum(1)
    return -(mass[:, None] * queries).sum(0) / (len(scores) * temperature)


def _gradient_of(surrogate, arguments):
    """∂surrogate/∂vectors, which is what GradCache needs of it."""
    return torch.autograd.grad(surrogate, arguments[0])[0]


def _surrogate_case(draw, number):
    n, d = _number(draw, 2, 5), _number(draw, 2, 4)
    return _normal(draw, n, d).requires_grad_(), _normal(draw, n, d)


EXERCISES: dict[str, Exercise] = {
    "01.1": Exercise(
        "minus the log of the softmax at the positive, one number.",
        lambda draw, number: (2 * _normal(draw, _number(draw, 2, 8)), 0),
        lambda scores, positive: scores.logsumexp(0) - scores[positive],
        (
            Slip(
                "this is the probability itself: take minus its log.", lambda s, i: s.softmax(0)[i]
            ),
            Slip(
                "this is the log of the softmax: the loss is minus that, so that a good score gives a small loss.",
                lambda s, i: s.log_softmax(0)[i],
            ),
            Slip(
                "the positive is missing from the sum below: it runs over all passages, the positive too.",
                lambda s, i: torch.cat([s[:i], s[i + 1 :]]).logsumexp(0) - s[i],
            ),
            Slip(
                "the scores have not been put through exp before they were summed.",
                lambda s, i: -(s[i] / s.sum()).abs().log(),
            ),
        ),
    ),
    "01.2": Exercise(
        "row i, column j: query i · passage j, divided by the temperature.",
        lambda draw, number: (
            _normal(draw, n := _number(draw, 2, 5), d := _number(draw, 2, 4)),
            _normal(draw, n + number % 2, d),
            _temperature(draw),
        ),
        lambda queries, passages, temperature: queries @ passages.T / temperature,
        (
            Slip(
                "transposed: rows are queries, columns are passages.", lambda q, p, t: p @ q.T / t
            ),
            Slip(
                "multiplied by the temperature: a low temperature makes differences larger, so divide.",
                lambda q, p, t: q @ p.T * t,
            ),
            Slip("the temperature is missing.", lambda q, p, t: q @ p.T),
            Slip(
                "this is the cosine: vectors are not brought to length 1 here.",
                lambda q, p, t: (
                    torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(p).T / t
                ),
            ),
        ),
    ),
    "01.3": Exercise(
        "the mean over rows of minus the log of the softmax at the diagonal, one number.",
        _scores,
        lambda scores: -scores.log_softmax(1).diagonal().mean(),
        (
            Slip(
                "softmax over columns: each query (row) chooses among passages, so its row must sum to 1.",
                lambda s: -s.log_softmax(0).diagonal().mean(),
            ),
            Slip(
                "missing 1/N: this is the sum over the rows, not their mean.",
                lambda s: -s.log_softmax(1).diagonal().sum(),
            ),
            Slip(
                "a double softmax: the softmax of a softmax. That is how equations 1 and 4 read if taken literally; one is meant.",
                lambda s: -s.softmax(1).log_softmax(1).diagonal().mean(),
            ),
            Slip(
                "the sign is turned round: the loss is minus the log.",
                lambda s: s.log_softmax(1).diagonal().mean(),
            ),
        ),
    ),
    "01.4": Exercise(
        "how many nats of mutual information a loss among n passages proves, one number.",
        lambda draw, number: (
            float(torch.rand((), generator=draw, dtype=torch.float64) * 3),
            _number(draw, 2, 500),
        ),
        lambda loss, n: torch.log(torch.tensor(float(n), dtype=torch.float64)) - loss,
        (
            Slip(
                "turned round: a smaller loss proves more information.",
                lambda loss, n: loss - torch.log(torch.tensor(float(n), dtype=torch.float64)),
            ),
            Slip(
                "log(n − 1) counts negatives only: the positive is one of the n.",
                lambda loss, n: torch.log(torch.tensor(n - 1.0, dtype=torch.float64)) - loss,
            ),
            Slip(
                "the loss is in nats: use the natural log, not the one to base 2.",
                lambda loss, n: torch.log2(torch.tensor(float(n), dtype=torch.float64)) - loss,
            ),
        ),
    ),
    "02.1": Exercise(
        "True where GradAccum computes the entry, total × total.",
        _batch_and_blocks,
        _blocks,
        (
            Slip(
                "these are the entries that are lost: turn it round.",
                lambda total, local: ~_blocks(total, local),
            ),
            Slip(
                "only the diagonal: a query also meets the other passages of its own micro-batch.",
                lambda total, local: torch.eye(total, dtype=torch.bool),
            ),
            Slip(
                "only the first micro-batch: each has its own block on the diagonal.",
                lambda total, local: (
                    (torch.arange(total)[:, None] < local) & (torch.arange(total) < local)
                ),
            ),
            Slip(
                "everything: that is the big batch, which is what GradAccum does not have.",
                lambda total, local: torch.ones(total, total, dtype=torch.bool),
            ),
        ),
    ),
    "02.2": Exercise(
        "the mean of the micro-batches' losses, one number.",
        _scores_and_local,
        _accumulated,
        (
            Slip(
                "this is the loss of the big batch: a micro-batch's softmax runs over its own columns only.",
                lambda s, local: -s.log_softmax(1).diagonal().mean(),
            ),
            Slip(
                "missing 1/K: the micro-batches' losses are summed, not averaged.",
                lambda s, local: _accumulated(s, local) * (len(s) // local),
            ),
            Slip(
                "the mean of the other blocks' scores crept in: cut rows and columns alike, s[i:i + local, i:i + local].",
                lambda s, local: torch.stack(
                    [
                        -s[i : i + local].log_softmax(1)[:, :local].diagonal().mean()
                        for i in range(0, len(s), local)
                    ]
                ).mean(),
            ),
        ),
    ),
    "02.3": Exercise(
        "a number whose gradient with respect to the vectors is the given gradient.",
        _surrogate_case,
        lambda vectors, gradient: (vectors * gradient).sum(),
        (
            Slip(
                "missing factor: a mean divides the gradient by the number of entries; use the sum.",
                lambda v, g: (v * g).mean(),
            ),
            Slip(
                "this is half the square of the vectors' difference from the gradient: its derivative is v − g.",
                lambda v, g: ((v - g) ** 2).sum() / 2,
            ),
            Slip("the sign is turned round.", lambda v, g: -(v * g).sum()),
        ),
        _gradient_of,
    ),
    "03.1": Exercise(
        "the bank after the new vectors were written, of the bank's shape.",
        _ring_case,
        _ring,
        (
            Slip(
                "always from slot 0: the next slot to be written is `position`.",
                lambda b, p, new: _ring(b, 0, new),
            ),
            Slip(
                "appended at the end and the first dropped: right order, wrong slots; the ring writes in place.",
                lambda b, p, new: torch.cat([b, new])[len(new) :],
            ),
            Slip(
                "no way round the end: slot numbers are taken modulo the size.",
                lambda b, p, new: torch.cat([b[:p], new[: len(b) - p], b[p + len(new) :]]),
            ),
            Slip(
                "one slot too far: the first new vector goes to `position` itself.",
                lambda b, p, new: _ring(b, p + 1, new),
            ),
        ),
    ),
    "03.2": Exercise(
        "negatives per local query once the bank is full: one number.",
        lambda draw, number: (_number(draw, 1, 16), _number(draw, 1, 256), number % 3),
        lambda local, memory, hard: torch.tensor((1 + hard) * (local + memory) - 1),
        (
            Slip(
                "the hard negatives are missing: every pair in the batch and in the bank brings its own.",
                lambda b, n, h: b + n - 1,
            ),
            Slip(
                "the banked hard negatives are missing: the bank keeps those too.",
                lambda b, n, h: b + n - 1 + h * b,
            ),
            Slip(
                "a query's own passage is not a negative: one less.",
                lambda b, n, h: (1 + h) * (b + n),
            ),
        ),
    ),
    "03.3": Exercise(
        "True where the column holds the row's own pair a second time, rows × columns.",
        _ids,
        _same_id,
        (
            Slip(
                "the diagonal too: there stands the positive itself, which must stay.",
                lambda r, c: r[:, None] == c,
            ),
            Slip("turned round: True is for what is left out.", lambda r, c: ~_same_id(r, c)),
            Slip(
                "only the first copy: an id may stand in the bank more than once.",
                lambda r, c: (m := _same_id(r, c)) & (m.cumsum(1) == 1),
            ),
            Slip(
                "nothing is left out: compare the rows' ids with all columns' ids.",
                lambda r, c: torch.zeros(len(r), len(c), dtype=torch.bool),
            ),
        ),
    ),
    "04.1": Exercise(
        "∂loss/∂queries, of the queries' shape: equation 8.",
        _vectors,
        _equation_8,
        (
            Slip(
                "the sign is turned round: this points uphill.",
                lambda q, p, t: -_equation_8(q, p, t),
            ),
            Slip(
                "missing 1/N: the loss is a mean over the rows.",
                lambda q, p, t: _equation_8(q, p, t) * len(q),
            ),
            Slip(
                "missing 1/τ: the scores were divided by the temperature, and so is their derivative (the paper has τ = 1).",
                lambda q, p, t: _equation_8(q, p, t) * t,
            ),
            Slip(
                "softmax over columns: a query's weights over the passages sum to 1 along its row.",
                lambda q, p, t: -(p - _softmax(q, p, t, 0) @ p) / (len(q) * t),
            ),
            Slip(
                "the mean over the passages is without its weights: each is weighted by the softmax.",
                lambda q, p, t: -(p - p.mean(0)) / (len(q) * t),
            ),
        ),
    ),
    "04.2": Exercise(
        "∂loss/∂passages, of the passages' shape: equation 9.",
        _vectors,
        _equation_9,
        (
            Slip(
                "transposed: passage l gathers its column of the softmax, over all queries i.",
                lambda q, p, t: -(q - _softmax(q, p, t) @ q) / (len(q) * t),
            ),
            Slip(
                "this is the last line of Appendix A as printed, with q_l inside the sum: it must be q_i.",
                lambda q, p, t: -(q - _softmax(q, p, t).sum(0)[:, None] * q) / (len(q) * t),
            ),
            Slip(
                "missing 1/N: the loss is a mean over the rows.",
                lambda q, p, t: _equation_9(q, p, t) * len(q),
            ),
            Slip(
                "missing 1/τ: the scores were divided by the temperature, and so is their derivative.",
                lambda q, p, t: _equation_9(q, p, t) * t,
            ),
            Slip(
                "softmax over columns: the same softmax as in equation 8, over each row, read down a column.",
                lambda q, p, t: -(q - _softmax(q, p, t, 0).T @ q) / (len(q) * t),
            ),
        ),
    ),
    "04.3": Exercise(
        "the sum of the local passages' gradients, one vector of length d.",
        _frozen,
        _push,
        (
            Slip(
                "the sign is turned round: the sum is minus the memory's mass times the queries.",
                lambda s, q, t: -_push(s, q, t),
            ),
            Slip(
                "that is the mass of the local columns: what the memory has taken is the rest of each row.",
                lambda s, q, t: (
                    -((s.softmax(1)[:, : len(s)].sum(1))[:, None] * q).sum(0) / (len(s) * t)
                ),
            ),
            Slip(
                "missing 1/N: the loss is a mean over the rows.",
                lambda s, q, t: _push(s, q, t) * len(s),
            ),
            Slip("missing 1/τ.", lambda s, q, t: _push(s, q, t) * t),
        ),
    ),
    "04.4": Exercise(
        "the gradients without what they have in common, of the same shape.",
        lambda draw, number: (_normal(draw, _number(draw, 2, 6), _number(draw, 2, 5)) + 1,),
        lambda gradients: gradients - gradients.mean(0),
        (
            Slip(
                "mean over the wrong axis: what the passages have in common is the mean over passages (rows), one vector.",
                lambda g: g - g.mean(1, keepdim=True),
            ),
            Slip(
                "the mean over everything is one number: the common part is a vector, one number per dimension.",
                lambda g: g - g.mean(),
            ),
            Slip("that is the common part itself: subtract it.", lambda g: g.mean(0).expand_as(g)),
            Slip(
                "the sum, not the mean: each passage carries one share of it.",
                lambda g: g - g.sum(0),
            ),
        ),
    ),
    "07.1": Exercise(
        "the mean over passages of the squared move over the squared length: a number.",
        _moved,
        _drift,
        (
            Slip(
                "lengths, not their squares: D is a ratio of squared lengths.",
                lambda now, then: (now - then).norm(dim=1).div(now.norm(dim=1)).mean(),
            ),
            Slip(
                "divided by the vectors of then: D is relative to what they are now.",
                lambda now, then: ((now - then) ** 2).sum(1).div((then**2).sum(1)).mean(),
            ),
            Slip(
                "one ratio of two sums: take each passage's ratio first, then their mean.",
                lambda now, then: ((now - then) ** 2).sum() / (now**2).sum(),
            ),
            Slip(
                "a sum over passages: take the mean.",
                lambda now, then: ((now - then) ** 2).sum(1).div((now**2).sum(1)).sum(),
            ),
        ),
    ),
    "07.2": Exercise(
        "KL(fresh ‖ stale) of the two softmaxes of each row, as a mean over rows: a number.",
        _two_scores,
        _kl,
        (
            Slip(
                "the other way round: the fresh softmax is the truth, so it weighs the logs.",
                lambda fresh, stale: _kl(stale, fresh),
            ),
            Slip(
                "weighed by the stale softmax: the fresh one is the truth, so it weighs the logs.",
                lambda fresh, stale: (
                    (stale.softmax(1) * (fresh.log_softmax(1) - stale.log_softmax(1))).sum(1).mean()
                ),
            ),
            Slip(
                "a sum over rows: take the mean.",
                lambda fresh, stale: _kl(fresh, stale) * len(fresh),
            ),
            Slip(
                "the softmax runs over the columns of a row (dim 1), not over rows.",
                lambda fresh, stale: (
                    (fresh.softmax(0) * (fresh.log_softmax(0) - stale.log_softmax(0))).sum(1).mean()
                ),
            ),
            Slip(
                "the scores are not normalised: take log_softmax, not the scores.",
                lambda fresh, stale: (fresh.softmax(1) * (fresh - stale)).sum(1).mean(),
            ),
        ),
    ),
    "07.3": Exercise(
        "the drift per update, one vector of d numbers, that fits best in the sense of least squares.",
        _aged,
        _speed,
        (
            Slip(
                "the mean drift, whatever the age: a new vector would be moved as far as an old one.",
                lambda stale, age, target: (target - stale).mean(0),
            ),
            Slip(
                "the mean of each pair's own speed: least squares trusts the old pairs more, as their age is squared below.",
                lambda stale, age, target: ((target - stale) / age.unsqueeze(1)).mean(0),
            ),
            Slip(
                "divided by the sum of ages: below stands the sum of their squares.",
                lambda stale, age, target: (age.unsqueeze(1) * (target - stale)).sum(0) / age.sum(),
            ),
            Slip(
                "the sign: it leads from stale to now.",
                lambda stale, age, target: -_speed(stale, age, target),
            ),
        ),
    ),
    "08.1": Exercise(
        "GiB of a dual bank: a number.",
        lambda draw, number: (2 ** _number(draw, 5, 14), 64 * _number(draw, 1, 12)),
        lambda size, dim: size * dim * 2 * 4 / 2**30,
        (
            Slip(
                "that is one bank: there are two, of queries and of passages.",
                lambda n, d: n * d * 4 / 2**30,
            ),
            Slip("numbers, not bytes: a float32 has four.", lambda n, d: n * d * 2 / 2**30),
            Slip(
                "GB of 10⁹ bytes; the paper's figures are GiB, of 2³⁰.",
                lambda n, d: n * d * 8 / 1e9,
            ),
            Slip("bytes: divide by 2³⁰.", lambda n, d: n * d * 8),
        ),
    ),
    "08.2": Exercise(
        "(T, rows): entry [t, i] is the log-sum-exp of row i's blocks from t to the newest.",
        lambda draw, number: (2 * _normal(draw, _number(draw, 2, 4), _number(draw, 5, 7)),),
        _suffix_sums,
        (
            Slip(
                "from the wrong end: that is what has come up to block t; what is left when the older ones have gone starts at t.",
                lambda x: x.logcumsumexp(1).T,
            ),
            Slip(
                "those are sums of logs: add the exps (logcumsumexp).",
                lambda x: x.flip(1).cumsum(1).flip(1).T,
            ),
            Slip(
                "that is the newest-first order: turn it round again.",
                lambda x: x.flip(1).logcumsumexp(1).T,
            ),
            Slip("each block alone: add up all the newer ones too.", lambda x: x.T.clone()),
        ),
    ),
    "08.3": Exercise(
        "the loss of each banked row, (N,).",
        _kept_rows,
        _kept_losses,
        (
            Slip(
                "what the bank gives the row is missing: its softmax runs over the bank's columns too.",
                lambda k, s, p: s.logsumexp(0) - p,
            ),
            Slip("the local columns are missing.", lambda k, s, p: k - p),
            Slip(
                "log-sum-exps do not add: exp both, add, and take the log, which is logaddexp.",
                lambda k, s, p: k + s.logsumexp(0) - p,
            ),
            Slip(
                "the positive's score is not subtracted: this is the log of the softmax's denominator alone.",
                lambda k, s, p: torch.logaddexp(k, s.logsumexp(0)),
            ),
            Slip(
                "the scores themselves were added: take their exp first (logsumexp over the local columns).",
                lambda k, s, p: torch.logaddexp(k, s.sum(0)) - p,
            ),
        ),
    ),
    "08.4": Exercise(
        "multiply-adds of one micro-batch: a number.",
        lambda draw, number: (
            2 ** _number(draw, 1, 4),
            2 ** _number(draw, 6, 12),
            64 * _number(draw, 1, 12),
        ),
        _incremental_products,
        (
            Slip(
                "that is the whole matrix: banked rows × banked columns need no product.",
                lambda b, n, d: ((b + n) ** 2 + 2 * b * (b + n)) * d,
            ),
            Slip(
                "those are the scores of the whole matrix: banked rows × banked columns need no product, and the gradients do.",
                lambda b, n, d: (b + n) ** 2 * d,
            ),
            Slip(
                "the scores alone: the gradients are products too.",
                lambda b, n, d: (b * (b + n) + b * n) * d,
            ),
            Slip(
                "the banked rows are missing: they are scored with the local columns, and pull at them.",
                lambda b, n, d: 2 * b * (b + n) * d + b * b * d,
            ),
            Slip(
                "each entry is a product of d numbers.",
                lambda b, n, d: 2 * b * (b + n) + b * b + 2 * b * n,
            ),
        ),
    ),
    "09.1": Exercise(
        "the columns of this process's positives, `local` whole numbers.",
        lambda draw, number: (_number(draw, 0, 5), _number(draw, 1, 6)),
        lambda rank, local: torch.arange(local) + rank * local,
        (
            Slip(
                "the offset of this process is missing: every process would claim the first one's passages.",
                lambda rank, local: torch.arange(local),
            ),
            Slip(
                "the offset is the rank alone: each process before it holds `local` passages.",
                lambda rank, local: torch.arange(local) + rank,
            ),
            Slip(
                "counted from 1: process 0 begins at column 0.",
                lambda rank, local: torch.arange(local) + (rank + 1) * local,
            ),
        ),
    ),
    "09.2": Exercise(
        "gigabytes of 10⁹ bytes: a number.",
        lambda draw, number: (
            10 ** _number(draw, 5, 8),
            64 * _number(draw, 2, 16),
            _number(draw, 1, 4),
        ),
        lambda passages, dim, width: passages * (dim * width + 8) / 1e9,
        (
            Slip(
                "the ids are missing: 8 bytes a vector.",
                lambda passages, dim, width: passages * dim * width / 1e9,
            ),
            Slip(
                "in GiB: a gigabyte is 10⁹ bytes here.",
                lambda passages, dim, width: passages * (dim * width + 8) / 2**30,
            ),
            Slip(
                "an id for each number: there is one for each vector.",
                lambda passages, dim, width: passages * dim * (width + 8) / 1e9,
            ),
        ),
    ),
    "09.3": Exercise(
        "hours: a number.",
        lambda draw, number: (
            10 ** _number(draw, 5, 8),
            2 ** _number(draw, 5, 8),
            1e6 * _number(draw, 20, 300),
            10.0 ** _number(draw, 10, 14),
        ),
        lambda passages, tokens, weights, flops: 2 * weights * tokens * passages / flops / 3600,
        (
            Slip(
                "one operation for each weight: it is a multiplication and an addition.",
                lambda passages, tokens, weights, flops: weights * tokens * passages / flops / 3600,
            ),
            Slip(
                "those are seconds.",
                lambda passages, tokens, weights, flops: 2 * weights * tokens * passages / flops,
            ),
            Slip(
                "6 for each weight and token is training: encoding has no backward pass.",
                lambda passages, tokens, weights, flops: (
                    6 * weights * tokens * passages / flops / 3600
                ),
            ),
        ),
    ),
}

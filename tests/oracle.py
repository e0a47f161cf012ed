"""Oracles: the equations as plain loops over Python numbers.

Nothing of the library is in them.
"""

import math


def info_nce_loop(
    queries,
    passages,
    past_queries=(),
    past_passages=(),
    hard=(),
    past_hard=(),
    temperature=1.0,
    left_out=(),
):
    """Mean over rows of -log softmax at column i, the row's positive.

    `left_out` holds (row, column) pairs.
    """
    rows = [list(map(float, v)) for part in (queries, past_queries) for v in part]
    columns = [
        list(map(float, v)) for part in (passages, past_passages, hard, past_hard) for v in part
    ]
    total = 0.0
    for i, q in enumerate(rows):
        scores = {
            j: sum(a * b for a, b in zip(q, p)) / temperature
            for j, p in enumerate(columns)
            if (i, j) not in left_out
        }
        top = max(scores.values())
        log_sum = top + math.log(math.fsum(math.exp(s - top) for s in scores.values()))
        total += log_sum - scores[i]
    return total / len(rows)


def softmax_loop(scores):
    top = max(scores)
    parts = [math.exp(s - top) for s in scores]
    return [p / math.fsum(parts) for p in parts]


class FifoLoop:
    """A bank as a list: newest last, the oldest fall out."""

    def __init__(self, size):
        self.size, self.items = size, []

    def write(self, items):
        self.items = (self.items + list(items))[-self.size :] if self.size else []

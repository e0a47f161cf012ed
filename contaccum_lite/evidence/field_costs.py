"""What the field's methods cost, and how well a margin finds false negatives.

Time and memory are measured with one micro-batch in memory at a time, which is what the methods are
for; the ledger's runs, for speed alone, encode an update's micro-batches together.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from contaccum_lite.core.masks import above_margin
from contaccum_lite.core.run import Run
from contaccum_lite.core.settings import Settings
from contaccum_lite.data.types import Pairs, Passage
from contaccum_lite.diagnostics.measure import tensor_memory
from contaccum_lite.evidence.field import BASELINE_FIELDS, METHODS, kept_bytes

WARM_UP = 6  # updates, until the largest bank is full
ROUNDS = 8

MARGINS = (-0.5, 0.0, 0.1, 0.5, 1.0, 2.0)  # of scores divided by the temperature; cosine × 8
MASK_ROWS = 512
MASK_UPDATES = (0, 25, 50, 100, 200, 399)


def costs(pairs: Pairs) -> list[dict]:
    """Time per update as a multiple of GradAccum's, peak of tensors, bytes kept, encodes.

    Each round times one update of every method, so that a slow moment of the machine is shared.
    """
    runs = {}
    for name, fields in {**BASELINE_FIELDS, **METHODS}.items():
        runs[name] = Run(pairs, Settings.preset(updates=400, **fields))
        for _ in range(WARM_UP):
            runs[name].step()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.process_time()
            run.step()
            times[name].append(time.process_time() - start)
    records = []
    for name, run in runs.items():
        ratios = [a / b for a, b in zip(times[name], times["GradAccum"])]
        before, peak = dict(run.encodes), tensor_memory(run.step)
        encodes = {k: n - before.get(k, 0) for k, n in run.encodes.items() if n != before.get(k)}
        records.append(
            {
                "name": name,
                "time": statistics.median(ratios) + _renewal(run, times["GradAccum"]),
                "peak": peak,
                "kept": kept_bytes(run),
                "encodes": encodes,
            }
        )
    return records


def _renewal(run: Run, base: list[float]) -> float:
    """What clustering the queries once an epoch adds to the time of an update."""
    clusters = run.learner.extension("clusters")
    if clusters is None:
        return 0.0
    start = time.process_time()
    clusters.renew(0)
    seconds = time.process_time() - start
    return seconds / run.sampler.updates_per_epoch / statistics.median(base)


def near_copy(text: str, rng: np.random.Generator) -> str:
    """The text without a random fifth of its words."""
    return " ".join(word for word in text.split() if rng.random() > 0.2)


def mask_quality(pairs: Pairs, updates: tuple[int, ...] = MASK_UPDATES) -> list[dict]:
    """How many planted false negatives a margin leaves out, and how many other columns with them.

    python-docs has no two training pairs with the same text, so they are planted: each of 512
    queries is scored with its own passage, the own passages of the others, and near copies of all.
    The truth is the near copy of its own passage. By the scores of a ContAccum run with a bank of
    128 at some updates, and by those that the towers had before the first one (a guide).
    """
    run = Run(pairs, Settings.preset("contaccum", memory_size=128, updates=400))
    rng = np.random.default_rng(0)
    chosen = [pairs.train[i] for i in rng.choice(len(pairs.train), MASK_ROWS, replace=False)]
    queries = [pair.query for pair in chosen]
    passages = [Passage(pair.passage_id, pair.title, pair.passage) for pair in chosen]
    passages += [p._replace(text=near_copy(p.text, rng)) for p in passages]
    records = []
    for step in range(max(updates) + 1):
        if step in updates:
            retriever = run.retriever
            scores = retriever.encode_queries(queries) @ retriever.encode_passages(passages).T
            records += _mask_records(torch.from_numpy(scores) / run.settings.temperature, step)
        run.step()
    return records


def _mask_records(scores: torch.Tensor, step: int) -> list[dict]:
    """For each margin: the share of near copies masked, and of all other columns.

    scores: (n, 2n): the positives on the diagonal, their near copies n columns later.
    """
    count = len(scores)
    records = []
    for margin in MARGINS:
        mask = above_margin(scores, margin)
        copies = int(mask[:, count:].diagonal().sum())
        others = int(mask.sum()) - copies
        share = others / (count * (2 * count - 2))
        record = {"update": step, "margin": margin, "recall": copies / count, "others": share}
        records.append(record)
    return records

"""How stale is stale: drift of vectors, what it does to the softmax and to the gradient. Notebook 07."""

from __future__ import annotations

import torch
from torch import Tensor

from .methods import Encoded


def softmax_gap(fresh: Tensor, other: Tensor, top: int = 20) -> dict[str, float]:
    """How far the softmax of `other` scores is from that of `fresh` ones, as means over rows. Both (rows, N), divided by τ.

    kl: KL(fresh ‖ other) in nats; tv: total variation; overlap: the share of the fresh top 20 that the other has in its own; mass: what
    the other's top 20 hold of the fresh softmax, over what its own top 20 hold; bound: h²/2, where h is half the range
    of the scores' error, which no KL exceeds (it is the integral of (1 − t)·Var_t of the error, and a variance is at most h²).
    """
    if fresh.shape != other.shape or fresh.ndim != 2:
        raise ValueError(
            f"softmax_gap got scores of {tuple(fresh.shape)} and {tuple(other.shape)}: expected two of (rows, N)."
        )
    p, q = fresh.double().log_softmax(1), other.double().log_softmax(1)
    top = min(top, fresh.shape[1])
    best, found = fresh.topk(top, 1).indices, other.topk(top, 1).indices
    error = other.double() - fresh.double()
    half = (error.amax(1) - error.amin(1)) / 2
    shared = (best.unsqueeze(2) == found.unsqueeze(1)).any(2).double().mean(1)
    return {
        "kl": float((p.exp() * (p - q)).sum(1).mean()),
        "tv": float((p.exp() - q.exp()).abs().sum(1).mean() / 2),
        "overlap": float(shared.mean()),
        "mass": float((p.exp().gather(1, found).sum(1) / p.exp().gather(1, best).sum(1)).mean()),
        "bound": float((half**2 / 2).mean()),
    }


@torch.no_grad()
def cache_gap(run, count: int = 128) -> dict[str, dict[str, float]]:
    """`softmax_gap` of the run's cache as it is stored ("stale") and as it is used ("corrected"), against all passages encoded now.

    Over the first `count` training queries. Changes nothing in the run and counts no encoding.
    """
    learner, cache = run.learner, run.learner.cache
    if not cache:
        raise ValueError(
            "the run has no cache yet: use a method with one, and make updates past bank_warmup."
        )
    queries = learner.encode_texts(
        learner.query_tower,
        cache.all_queries,
        torch.arange(min(count, len(cache.positive))).numpy(),
    )
    scores = lambda vectors: queries @ vectors.T / run.settings.temperature
    fresh = scores(learner.encode_rows(torch.arange(len(cache.table)), None))
    return {
        "stale": softmax_gap(fresh, scores(cache.table.vectors)),
        "corrected": softmax_gap(fresh, scores(cache.corrected(run.step_count))),
    }


class DriftProbe:
    """A fixed set of a run's passages, looked at again and again: `drift(lag)` says how far their vectors move within `lag` updates."""

    def __init__(self, run, count: int = 256, seed: int = 0):
        rows = torch.randperm(len(run.feed.rows), generator=torch.Generator().manual_seed(seed))[
            :count
        ]
        self.run, self.batch = run, run.feed.micro_batch(run.feed.rows[rows.numpy()])
        self.seen: dict[int, Tensor] = {}

    def look(self) -> Tensor:
        """Note the vectors as the passage tower makes them now, (count, d)."""
        self.seen[self.run.step_count] = found = self.run.learner.encode_texts(
            self.run.passage_tower, self.batch.passage_tokens[: len(self.batch.pair_ids)]
        )
        return found

    def drift(self, lag: int) -> dict[int, float]:
        """D(t; lag) by t: the mean of ‖g_t − g_(t−lag)‖² / ‖g_t‖², wherever it was looked at both times."""
        far = lambda new, old: float(((new - old) ** 2).sum(1).div((new**2).sum(1)).mean())
        return {
            t: far(new, self.seen[t - lag]) for t, new in self.seen.items() if t - lag in self.seen
        }


def gradient_error(run) -> dict[int, tuple[float, float]]:
    """By the age of banked vectors: (cosine, relative error) of the towers' gradient with them as stored, against them encoded now.

    For each age, the next micro-batch is contrasted with the banked pairs of that age alone; 1 and 0 are no error. Changes nothing.
    """
    learner, bank = run.learner, run.passage_bank
    batch = run.feed.batches(run.step_count % run.feed.updates_per_epoch)[0]
    parameters = [p for tower in learner.towers for p in tower.parameters() if p.requires_grad]
    before = [getattr(tower, "in_place", None) for tower in learner.towers]
    for tower in learner.towers:
        tower.in_place = False  # gradients are to come back here, not to be added where they belong
    try:
        with torch.no_grad():
            banked = run.feed.micro_batch(bank.ids.numpy())
            now = learner.encode_fresh(banked) if len(bank) else None

        def gradient(queries: Tensor, passages: Tensor, ids: Tensor) -> Tensor:
            vectors = learner.encode_fresh(batch)
            found = learner._whole(
                Encoded(vectors.queries.detach(), vectors.passages.detach(), None),
                [queries, passages, passages[:0]],
                torch.cat([batch.pair_ids, ids]),
                ids[:0],
                len(batch.pair_ids) + len(queries),
            )
            parts = torch.autograd.grad(
                [vectors.queries, vectors.passages],
                parameters,
                [found.d_queries, found.d_passages],
                allow_unused=True,
            )
            return torch.cat([part.flatten() for part in parts if part is not None])

        errors = {}
        ages = bank.ages(run.step_count)
        for age in ages.unique().tolist():
            slots = (ages == age).nonzero().flatten()
            rows = slots[:0] if not len(learner.query_bank) else slots
            stale = gradient(learner.query_bank.vectors[rows], bank.vectors[slots], bank.ids[slots])
            fresh = gradient(now.queries[rows], now.passages[slots], bank.ids[slots])
            errors[age] = (
                float(torch.cosine_similarity(stale, fresh, dim=0)),
                float((stale - fresh).norm() / fresh.norm()),
            )
        return errors
    finally:
        for tower, value in zip(learner.towers, before):
            if value is None:
                del tower.in_place
            else:
                tower.in_place = value

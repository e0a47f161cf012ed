"""How stale is stale: drift of vectors, what it does to the softmax and to the gradient.

Notebook 07.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from contaccum_lite.core.gradients import Embeddings
from contaccum_lite.core.micro_step import Layout
from contaccum_lite.diagnostics.measure import next_micro_batch
from contaccum_lite.encoders.encode import autograd_sees_all, encode_to_tensor, without_noise


def softmax_gap(fresh: Tensor, other: Tensor, top: int = 20) -> dict[str, float]:
    """How far the softmax of `other` scores is from that of `fresh` ones, as means over rows.

    fresh, other: (rows, N), divided by τ.

    kl: KL(fresh ‖ other) in nats; tv: total variation; overlap: the share of the fresh top 20 that
    the other has in its own; mass: what the other's top 20 hold of the fresh softmax, over what its
    own top 20 hold; bound: h²/2, where h is half the range of the scores' error, which no KL
    exceeds (it is the integral of (1 − t)·Var_t of the error, and a variance is at most h²).
    """
    if fresh.shape != other.shape or fresh.ndim != 2:
        raise ValueError(
            f"softmax_gap got scores of {tuple(fresh.shape)} and {tuple(other.shape)}: "
            "expected two of (rows, N)."
        )
    p, q = fresh.double().log_softmax(1), other.double().log_softmax(1)
    top = min(top, fresh.shape[1])
    fresh_top, other_top = fresh.topk(top, 1).indices, other.topk(top, 1).indices
    error = other.double() - fresh.double()
    half = (error.amax(1) - error.amin(1)) / 2
    shared = (fresh_top.unsqueeze(2) == other_top.unsqueeze(1)).any(2).double().mean(1)
    mass = p.exp().gather(1, other_top).sum(1) / p.exp().gather(1, fresh_top).sum(1)
    return {
        "kl": float((p.exp() * (p - q)).sum(1).mean()),
        "tv": float((p.exp() - q.exp()).abs().sum(1).mean() / 2),
        "overlap": float(shared.mean()),
        "mass": float(mass.mean()),
        "bound": float((half**2 / 2).mean()),
    }


@torch.no_grad()
def cache_gap(run, count: int = 128) -> dict[str, dict[str, float]]:
    """`softmax_gap` of the run's cache against all passages encoded now.

    "stale": as it is stored; "corrected": as it is used. Over the first `count` training queries.
    Changes nothing in the run and counts no encoding.
    """
    cache = run.learner.extension("cache")
    if not cache:
        raise ValueError(
            "the run has no cache yet: use a method with one, and make updates past bank_warmup."
        )
    queries = query_vectors(run, count)
    temperature = run.settings.temperature
    fresh = queries @ passage_vectors(run).T / temperature
    stale = queries @ cache.table.vectors.T / temperature
    corrected = queries @ cache.corrected(run.step_count).T / temperature
    return {"stale": softmax_gap(fresh, stale), "corrected": softmax_gap(fresh, corrected)}


def passage_vectors(run, rows=None) -> Tensor:
    """These passages (all, if none are named) as the passage tower sees them now, (n, d)."""
    rows = None if rows is None else rows.numpy()
    return encode_to_tensor(run.passage_tower, run.sampler.passages, run.settings, rows)


def query_vectors(run, count: int) -> Tensor:
    """The first `count` training queries as the query tower sees them now, (n, d)."""
    rows = np.arange(min(count, len(run.sampler.queries)))
    return encode_to_tensor(run.query_tower, run.sampler.queries, run.settings, rows)


class DriftProbe:
    """A fixed set of a run's passages, looked at again and again.

    `drift(lag)` says how far their vectors move within `lag` updates.
    """

    def __init__(self, run, count: int = 256, seed: int = 0):
        rng = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(run.sampler.rows), generator=rng)[:count]
        self.run, self.batch = run, run.sampler.micro_batch(run.sampler.rows[rows.numpy()])
        self.seen: dict[int, Tensor] = {}

    def look(self) -> Tensor:
        """Note the vectors as the passage tower makes them now, (count, d)."""
        vectors = self.run.learner.encode_without_noise(self.batch).passages
        self.seen[self.run.step_count] = vectors
        return vectors

    def drift(self, lag: int) -> dict[int, float]:
        """D(t; lag) by t: the mean of ‖g_t − g_(t−lag)‖² / ‖g_t‖².

        Where it was looked at both times.
        """
        drift = {}
        for step, new in self.seen.items():
            if step - lag in self.seen:
                change = ((new - self.seen[step - lag]) ** 2).sum(1)
                drift[step] = float(change.div((new**2).sum(1)).mean())
        return drift


@torch.no_grad()
def bank_motion(run, count: int = 512) -> dict[str, float]:
    """How far a run's passages have moved while they lay in the bank. Notebooks 04 and 07.

    "collapse": ‖mean passage‖ / mean ‖passage‖, encoded now; 1 is one vector for all. With a bank
    also "drift": the mean of ‖now − stored‖² / ‖now‖²; "shift": ‖mean(now) − mean(stored)‖ over the
    mean distance of the passages from their mean, which is how far the cloud has moved in units of
    its own width; "frozen": the share of the next micro-batch's softmax on the bank's columns.
    Without a bank, the first `count` pairs are encoded. Changes nothing in the run.
    """
    bank, learner = run.passage_bank, run.learner
    ids = bank.ids.numpy() if len(bank) else run.sampler.rows[:count]
    now = learner.encode_without_noise(run.sampler.micro_batch(ids, hard_negatives=False)).passages
    center = now.mean(0)
    motion = {"collapse": float(center.norm() / now.norm(dim=1).mean())}
    if not len(bank):
        return motion
    stored = learner.read_bank(bank, run.step_count)
    width = (now - center).norm(dim=1).mean()
    local = learner.encode_without_noise(next_micro_batch(run))
    columns = torch.cat([local.passages, stored])
    weights = (local.queries @ columns.T / run.settings.temperature).softmax(1)
    change = ((now - stored) ** 2).sum(1) / (now**2).sum(1)
    motion["drift"] = float(change.mean())
    motion["shift"] = float((center - stored.mean(0)).norm() / width)
    motion["frozen"] = float(weights[:, len(local.passages) :].sum(1).mean())
    return motion


def gradient_error(run) -> dict[int, tuple[float, float]]:
    """By the age of banked vectors: (cosine, relative error) of the towers' gradient.

    With the vectors as stored, against the vectors encoded now. For each age, the next micro-batch
    is compared with the banked pairs of that age alone; 1 and 0 are no error. Changes nothing.
    """
    learner, bank, query_bank = run.learner, run.passage_bank, run.query_bank
    if not len(bank):
        return {}
    now = learner.encode_without_noise(run.sampler.micro_batch(bank.ids.numpy()))
    errors, ages = {}, bank.ages(run.step_count)
    for age in ages.unique().tolist():
        slots = (ages == age).nonzero().flatten()
        rows = slots if len(query_bank) else slots[:0]
        ids = bank.ids[slots]
        stale = _gradient(run, query_bank.vectors[rows], bank.vectors[slots], ids)
        fresh = _gradient(run, now.queries[rows], now.passages[slots], ids)
        cosine = torch.cosine_similarity(stale, fresh, dim=0)
        errors[age] = float(cosine), float((stale - fresh).norm() / fresh.norm())
    return errors


def _gradient(run, queries: Tensor, passages: Tensor, ids: Tensor) -> Tensor:
    """The towers' gradient of the next micro-batch against these banked vectors, in one piece."""
    learner = run.learner
    batch = next_micro_batch(run)
    parameters = [p for tower in learner.towers for p in tower.parameters() if p.requires_grad]
    with without_noise(*learner.towers), autograd_sees_all(*learner.towers):
        vectors = learner.encode(batch, purpose=None)
        pair_ids = torch.cat([batch.pair_ids, ids])
        num_rows = len(batch.pair_ids) + len(queries)
        layout = Layout(len(batch.pair_ids), pair_ids[:num_rows], pair_ids, len(pair_ids))
        local = Embeddings(vectors.queries.detach(), vectors.passages.detach(), None)
        memory = Embeddings(queries, passages, passages[:0])
        result = learner.full_matrix_loss(local, memory, layout)
        gradients = torch.autograd.grad(
            [vectors.queries, vectors.passages],
            parameters,
            [result.grad_queries, result.grad_passages],
            allow_unused=True,
        )
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])

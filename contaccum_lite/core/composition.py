"""Batch composition: micro-batches of pairs whose queries lie near each other.

A negative teaches more the nearer it is. Chosen by chance, few of a micro-batch's negatives are
near; drawn from one cluster of queries, all are, at no memory (TAS-B, arXiv 2104.06967; ours
clusters the queries by the query tower as it is now). An epoch still has each pair once. More of
the negatives are false, too: see `mask_margin`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from contaccum_lite.core.hooks import Extension
from contaccum_lite.encoders.encode import encode_to_tensor

_ITERATIONS = 10  # of k-means
_ASSIGNED_TOGETHER = 65536  # vectors


def kmeans(vectors: Tensor, clusters: int, rng: torch.Generator) -> Tensor:
    """The cluster of each vector, (n,): Lloyd's k-means, ten steps from vectors drawn at random.

    vectors: (n, d). clusters: at most n are made. A cluster that no vector is nearest to stays
    where it is.
    """
    clusters = min(clusters, len(vectors))
    centres = vectors[torch.randperm(len(vectors), generator=rng)[:clusters].to(vectors.device)]
    for _ in range(_ITERATIONS):
        labels = nearest(vectors, centres)
        sums = torch.zeros_like(centres).index_add_(0, labels, vectors)
        counts = torch.bincount(labels, minlength=clusters)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return nearest(vectors, centres)


def nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    """The index of each vector's nearest centre, (n,)."""
    half_norms = centres.square().sum(1) / 2
    labels = []
    for some in vectors.split(_ASSIGNED_TOGETHER):
        labels.append((some @ centres.T - half_norms).argmax(1))
    return torch.cat(labels)


def order_by_cluster(
    order: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """The same pairs in another order, whose micro-batches are each of one cluster.

    order: (n,) pairs, shuffled. labels: (n,) their clusters. size: of a micro-batch. Each cluster
    is cut into micro-batches; what is left of the clusters fills micro-batches of neighbours in
    number, and the shortest comes last.
    """
    by_cluster = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[by_cluster])) + 1
    batches, rest = [], []
    for members in np.split(by_cluster, starts):
        num_batches = len(members) // size
        batches += np.split(members[: num_batches * size], num_batches) if num_batches else []
        rest.append(members[num_batches * size :])
    left = np.concatenate(rest)
    num_batches = len(left) // size
    batches += np.split(left[: num_batches * size], num_batches) if num_batches else []
    shuffled = [batches[i] for i in rng.permutation(len(batches))]
    return order[np.concatenate([*shuffled, left[num_batches * size :]])]


class ClusterBatches(Extension):
    """The clusters of a run's training queries, and the order of an epoch by them."""

    name = "clusters"

    def __init__(self, run):
        self.learner, self.sampler = run.learner, run.sampler
        self.labels = torch.zeros(0, dtype=torch.int64)  # of each training pair, once made
        self.made_in = -1  # the epoch that they were made in

    def renew(self, epoch: int) -> None:
        """Cluster the training queries by the query tower as it is now."""
        learner, settings = self.learner, self.learner.settings
        vectors = encode_to_tensor(learner.query_tower, self.sampler.queries, settings)
        learner.encodes["cluster"] += len(vectors)
        rng = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        self.labels = kmeans(vectors, settings.clusters, rng).cpu()
        self.made_in = epoch

    def __call__(self, order: np.ndarray, epoch: int) -> np.ndarray:
        """An epoch's order of pairs, from its shuffle."""
        every = self.learner.settings.cluster_every
        if not len(self.labels) or (every and epoch - self.made_in >= every):
            self.renew(epoch)
        rng = np.random.default_rng([self.learner.settings.seed, epoch, 1])
        labels = self.labels.numpy()[order]
        return order_by_cluster(order, labels, self.sampler.micro_batch_size, rng)

    def state_dict(self) -> dict[str, Tensor]:
        return {"labels": self.labels, "made_in": torch.tensor(self.made_in)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.labels, self.made_in = state["labels"].cpu(), int(state["made_in"])


def attach_clusters(run) -> None:
    """Micro-batches by cluster, where the settings of a run ask for them."""
    if run.settings.batch_by == "cluster":
        clusters = ClusterBatches(run)
        run.learner.extensions.append(clusters)
        run.sampler.compose = clusters

"""The other ways to an update's gradient: GradCache, and all micro-batches in one forward pass.

GradCache (Gao et al., 2021) gives the exact gradient of the big batch with the graph of one
micro-batch in memory at a time. It encodes everything twice, and in between contrasts all vectors
at once: with each other and, where there is a bank, with those of earlier updates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from contaccum_lite.core.gradients import (
    Embeddings,
    Learner,
    MicroBatch,
    MicroStep,
    accumulate_gradients,
    backward,
)
from contaccum_lite.core.settings import PRESETS
from contaccum_lite.encoders.tokens import pad_and_concat


def compute_gradients(
    learner: Learner, batches: list[MicroBatch], step: int
) -> Iterator[MicroStep]:
    """Add this update's gradient to the towers, one MicroStep at a time, as the settings say."""
    for extension in learner.extensions:
        batches = extension.begin_update(batches, step)
    if PRESETS[learner.settings.method]["algorithm"] == "grad_cache":
        return grad_cache(learner, batches, step)
    if learner.settings.one_forward and not learner.has_dropout:
        return accumulate_in_one_forward(learner, batches, step)
    return accumulate_gradients(learner, batches, step)


# --- GradCache, in its three phases ---------------------------------------------------------------


def grad_cache(learner: Learner, batches: list[MicroBatch], step: int) -> Iterator[MicroStep]:
    """GradCache: the big batch's gradient in two passes over its micro-batches."""
    embeddings = forward_without_graph(learner, batches, step)
    result, layout, gradients = build_gradient_cache(learner, embeddings, batches, step)
    last = len(batches) - 1
    for index in [last, *range(last)]:  # the kept graph first: it is gone before the next is made
        forward_backward(learner, embeddings, gradients[index], batches[index], step, index)
        yield MicroStep(step, index, len(batches), result, layout)


def forward_without_graph(
    learner: Learner, batches: list[MicroBatch], step: int
) -> list[Embeddings]:
    """Phase 1: the vectors of every micro-batch.

    The last one keeps its graph, so it is encoded once.
    """
    shards = [learner.group.shard(batch) for batch in batches]
    last = len(batches) - 1
    embeddings = [] if learner.has_dropout else encode_by_length(learner, shards[:last])
    for index in range(len(embeddings), len(batches)):
        with learner.replayable_rng(step, index), torch.set_grad_enabled(index == last):
            embeddings.append(learner.encode(shards[index]))
    return embeddings


def build_gradient_cache(learner: Learner, embeddings: list[Embeddings], batches, step: int):
    """Phase 2: the loss of all vectors at once, and its gradient with respect to each of them.

    Returns (loss and gradients, the matrix's layout, the gradients of each micro-batch's vectors).
    """
    gathered = []
    for local, batch in zip(embeddings, batches):
        gathered.append(learner.group.all_gather(local.detach(), batch))
    big_batch = MicroBatch(
        torch.cat([batch.pair_ids for batch in batches]),
        torch.cat([batch.hard_ids for batch in batches]),
        torch.empty(0),
        torch.empty(0),
    )
    result, layout = learner.compute_loss(concat_embeddings(gathered), big_batch, step)
    if learner.settings.has_bank:  # only after the loss: the bank holds earlier updates alone
        for local, batch in zip(gathered, batches):
            learner.enqueue(local, batch, step)
    gradients = split_embeddings(Embeddings(*result.gradients), batches)
    return result, layout, gradients


def forward_backward(
    learner: Learner,
    embeddings: list,
    gradients: Embeddings,
    batch: MicroBatch,
    step: int,
    index: int,
) -> None:
    """Phase 3: encode a micro-batch again, under the same noise, and carry its gradients back."""
    if index != len(embeddings) - 1:
        with learner.replayable_rng(step, index):
            embeddings[index] = learner.encode(learner.group.shard(batch))
    local = learner.group.local_slice(tuple(gradients), batch)
    backward(embeddings[index], local, learner.loss_scale.value)
    embeddings[index] = None


@torch.no_grad()
def encode_by_length(learner: Learner, batches: list[MicroBatch]) -> list[Embeddings]:
    """Vectors without graph, where no noise is drawn.

    Texts of like length are encoded together, with less padding.
    """
    if not any(len(batch.pair_ids) for batch in batches):
        return [learner.encode(batch) for batch in batches]
    joined = concat_micro_batches(learner, batches)
    learner.encodes["train"] += len(joined.passage_tokens)
    queries = _encode_sorted(learner, learner.query_tower, joined.query_tokens)
    columns = _encode_sorted(learner, learner.passage_tower, joined.passage_tokens)
    num_pairs = len(joined.pair_ids)
    hard = columns[num_pairs:] if len(columns) > num_pairs else None
    return split_embeddings(Embeddings(queries, columns[:num_pairs], hard), batches)


def _encode_sorted(learner: Learner, tower, tokens: Tensor) -> Tensor:
    lengths = (tokens != getattr(tower, "pad", 0)).sum(1).clamp_min(1)
    order = lengths.argsort()
    batches = []
    for rows in order.split(learner.settings.local_batch):
        batches.append(learner.encode_tokens(tower, tokens[rows, : int(lengths[rows].max())]))
    vectors = torch.cat(batches)
    return torch.empty_like(vectors).index_copy_(0, order.to(vectors.device), vectors)


# --- one forward pass -----------------------------------------------------------------------------


def accumulate_in_one_forward(
    learner: Learner, batches: list[MicroBatch], step: int
) -> Iterator[MicroStep]:
    """As `accumulate_gradients`, all micro-batches encoded at once and carried back at once.

    The gradient is the same, because the weights do not change within an update. The graph in
    memory is that of the whole batch.
    """
    shards = [learner.group.shard(batch) for batch in batches]
    all_embeddings = learner.encode(concat_micro_batches(learner, shards))
    gradients, last = [], len(batches) - 1
    local_embeddings = split_embeddings(all_embeddings, shards)
    for index, (local, batch) in enumerate(zip(local_embeddings, batches)):
        embeddings = learner.group.all_gather(local.detach(), batch)
        result, layout = learner.compute_loss(embeddings, batch, step, 1 / len(batches))
        if learner.gradient_hook is not None:
            result = learner.gradient_hook(result)
        gradients.append(Embeddings(*learner.group.local_slice(result.gradients, batch)))
        learner.enqueue(embeddings, batch, step)
        if index == last:
            scale = learner.loss_scale.value / len(batches)
            backward(all_embeddings, concat_embeddings(gradients), scale)
        yield MicroStep(step, index, len(batches), result, layout)


# --- joining and splitting ------------------------------------------------------------------------


def concat_micro_batches(learner: Learner, batches: list[MicroBatch]) -> MicroBatch:
    """These micro-batches as one: all pairs, then all hard negatives."""
    positives, negatives = [], []
    for batch in batches:
        positives.append(batch.passage_tokens[: len(batch.pair_ids)])
        negatives.append(batch.passage_tokens[len(batch.pair_ids) :])
    query_pad, passage_pad = (
        getattr(tower, "pad", 0) for tower in (learner.query_tower, learner.passage_tower)
    )
    return MicroBatch(
        torch.cat([batch.pair_ids for batch in batches]),
        torch.cat([batch.hard_ids for batch in batches]),
        pad_and_concat([batch.query_tokens for batch in batches], query_pad),
        pad_and_concat([*positives, *negatives], passage_pad),
    )


def concat_embeddings(embeddings: list[Embeddings]) -> Embeddings:
    """The vectors of several micro-batches as those of one."""
    queries, passages, hard = zip(*embeddings)
    return Embeddings(
        torch.cat(queries), torch.cat(passages), None if hard[0] is None else torch.cat(hard)
    )


def split_embeddings(embeddings: Embeddings, batches: list[MicroBatch]) -> list[Embeddings]:
    """The vectors of each of these micro-batches."""
    num_pairs = [len(batch.pair_ids) for batch in batches]
    num_hard = [len(batch.hard_ids) for batch in batches]
    queries = embeddings.queries.split(num_pairs)
    passages = embeddings.passages.split(num_pairs)
    hard = [None] * len(batches)
    if embeddings.hard_negatives is not None:
        hard = embeddings.hard_negatives.split(num_hard)
    return [Embeddings(*vectors) for vectors in zip(queries, passages, hard)]

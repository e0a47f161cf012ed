"""How one weight update gets its gradient. Two ways cover every method:

    accumulated   one micro-batch after the other, each with what the banks hold: DPR (K = 1), GradAccum, pre-batch,
                  ContAccum, momentum
    cached        GradCache: the big batch's gradient, in two passes over the micro-batches

Both call `loss.contrast` and carry its gradients into the towers by the chain rule, so that a method is nothing but what
stands in the rows and columns of its similarity matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .bank import MemoryBank
from .loss import Contrast, contrast, duplicate_mask
from .settings import Settings
from .towers import copy_of, has_dropout


class MicroBatch(NamedTuple):
    """Some pairs, as token ids and keys."""

    pair_ids: Tensor          # (B,) rows of the training pairs
    hard_ids: Tensor          # (B·h,) rows of the passages that are their hard negatives
    query_tokens: Tensor      # (B, L)
    passage_tokens: Tensor    # (B + B·h, L): positives, then hard negatives


class MicroStep(NamedTuple):
    """What one micro-batch did: its matrix, whose rows and columns they are, and where it stands in its update."""

    update: int
    index: int                # k of K, from 0
    of: int
    loss: float
    scores: Tensor            # (rows, columns)
    weights: Tensor           # (rows, columns): the gradient weight of each entry
    local: int                # rows and columns before this are of this micro-batch, the later ones of the banks
    row_ids: Tensor           # (rows,) training pairs
    column_ids: Tensor        # (columns,) training pairs; from `hard_from` on, passages
    hard_from: int


class Encoded(NamedTuple):
    queries: Tensor           # (B, d)
    passages: Tensor          # (B, d)
    hard: Tensor | None       # (B·h, d)

    def present(self) -> list[Tensor]:
        return [part for part in self if part is not None]


@dataclass
class Learner:
    """The towers and banks that a method works on, and the keys by which duplicates are known."""

    settings: Settings
    query_tower: nn.Module
    passage_tower: nn.Module
    query_keys: Tensor        # per training pair
    passage_keys: Tensor      # per training pair
    text_keys: Tensor         # per passage
    adjust: Callable | None = None   # an intervention: a Contrast -> the one whose gradients go into the towers (notebook 04)

    def __post_init__(self):
        s = self.settings
        dtype = getattr(torch, s.dtype)
        self.banks = [MemoryBank(size, self.query_tower.dim, dtype, s.device) for size in self._sizes()]
        self.slow_towers = [copy_of(t).eval().requires_grad_(False) for t in self.towers] if s.momentum else []
        self.noisy = any(has_dropout(tower) for tower in self.towers)

    @property
    def towers(self) -> list[nn.Module]:
        return [self.query_tower] if self.query_tower is self.passage_tower else [self.query_tower, self.passage_tower]

    @property
    def query_bank(self) -> MemoryBank:
        return self.banks[0]

    @property
    def passage_bank(self) -> MemoryBank:
        return self.banks[1]

    @property
    def hard_bank(self) -> MemoryBank:
        return self.banks[2]

    def _sizes(self) -> tuple[int, int, int]:
        """Slots of the query, passage and hard-negative bank."""
        s = self.settings
        size = s.memory_size * s.passage_bank
        return size * s.query_bank, size, size * s.hard_negatives * s.bank_hard_negatives

    def resize(self) -> None:
        """Bring the banks to the size that the settings say; the newest vectors stay."""
        for bank, size in zip(self.banks, self._sizes()):
            if bank.size != size:
                bank.resize(size)

    def encode(self, batch: MicroBatch, query_tower=None, passage_tower=None) -> Encoded:
        """The vectors of a micro-batch by these towers (the learner's own if none are given)."""
        device, pairs = self.settings.device, len(batch.pair_ids)
        queries = (query_tower or self.query_tower)(batch.query_tokens.to(device))
        columns = (passage_tower or self.passage_tower)(batch.passage_tokens.to(device))
        return Encoded(queries, columns[:pairs], columns[pairs:] if len(columns) > pairs else None)

    @contextmanager
    def noise(self, update: int, index: int):
        """Dropout noise that depends on nothing but the seed, the update and the micro-batch: drawn again, it is the same."""
        if not self.noisy:
            yield
            return
        device = torch.device(self.settings.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed((self.settings.seed * 1_000_003 + update) * 4099 + index)
            yield

    def contrast(self, vectors: Encoded, pair_ids: Tensor, hard_ids: Tensor, update: int, banks: bool) -> tuple[Contrast, dict]:
        """The loss and gradients of these vectors against themselves and, if asked, against what the banks hold."""
        s = self.settings
        banks = banks and update >= s.bank_warmup
        kept_passages = self.passage_bank if banks else MemoryBank(0, self.passage_bank.dim)
        kept_queries = self.query_bank if banks and not self.query_bank_dropped(update) else None
        kept_hard = self.hard_bank.vectors if banks and len(self.hard_bank) else None
        columns = torch.cat([pair_ids, kept_passages.ids])
        hard = torch.cat([hard_ids, self.hard_bank.ids]) if kept_hard is not None else hard_ids
        rows = len(pair_ids) + (len(kept_queries) if kept_queries is not None else 0)
        found = contrast(vectors.queries.detach(), vectors.passages.detach(),
                         kept_queries.vectors if kept_queries is not None else None,
                         kept_passages.vectors if len(kept_passages) else None,
                         vectors.hard.detach() if vectors.hard is not None else None,
                         s.temperature, bank_hard_negatives=kept_hard,
                         mask=self.mask(columns, hard, rows) if s.mask_duplicates else None)
        return found, dict(local=len(pair_ids), row_ids=columns[:rows], column_ids=torch.cat([columns, hard]), hard_from=len(columns))

    def mask(self, columns: Tensor, hard: Tensor, rows: int) -> Tensor | None:
        """Which entries are a row's own stale self or a copy of its passage (`loss.duplicate_mask`)."""
        queries = torch.cat([self.query_keys[columns], torch.full((len(hard),), -1)])
        mask = duplicate_mask(queries, torch.cat([self.passage_keys[columns], self.text_keys[hard]]), rows)
        return mask if mask is None else mask.to(self.settings.device)

    def query_bank_dropped(self, update: int) -> bool:
        """Whether the query bank is out of use at this update (Appendix D)."""
        return not self.query_bank.size or (
            self.settings.drop_query_bank_at is not None and update >= self.settings.drop_query_bank_at)

    @torch.no_grad()
    def remember(self, batch: MicroBatch, vectors: Encoded, update: int) -> None:
        """Write a micro-batch into the banks, after its loss: it never meets itself there."""
        if not self.passage_bank.size or update < self.settings.bank_warmup:
            return
        if self.slow_towers:
            vectors = self.encode(batch, self.slow_towers[0], self.slow_towers[-1])
        if not self.query_bank_dropped(update):
            self.query_bank.write(batch.pair_ids, vectors.queries, update)
        self.passage_bank.write(batch.pair_ids, vectors.passages, update)
        if self.hard_bank.size:
            self.hard_bank.write(batch.hard_ids, vectors.hard, update)

    @torch.no_grad()
    def after_update(self, update: int) -> None:
        """What the banks and the slow towers do once the weights have moved."""
        if not self.settings.past_encoder:
            for bank in self.banks:
                bank.clear()
        if self.query_bank_dropped(update + 1):
            self.query_bank.clear()
        keep = self.settings.momentum
        for slow, tower in zip(self.slow_towers, self.towers):
            torch._foreach_lerp_(list(slow.parameters()), list(tower.parameters()), 1 - keep)


def gradient(learner: Learner, batches: list[MicroBatch], update: int) -> Iterator[MicroStep]:
    """Add this update's gradient to the towers, one MicroStep at a time, by the method that the settings name."""
    way = cached_gradient if learner.settings.method == "grad_cache" else accumulated_gradient
    return way(learner, batches, update)


def accumulated_gradient(learner: Learner, batches: list[MicroBatch], update: int) -> Iterator[MicroStep]:
    """DPR, GradAccum, pre-batch, ContAccum, momentum: each micro-batch with the banks as they stand, then into the banks.

    The update's loss is the mean of the micro-batches' losses (equation 4; the last update of an epoch may have fewer than K).
    """
    for k, batch in enumerate(batches):
        with learner.noise(update, k):
            vectors = learner.encode(batch)
        found, places = learner.contrast(vectors, batch.pair_ids, batch.hard_ids, update, banks=True)
        if learner.adjust is not None:
            found = learner.adjust(found)
        _backward(vectors, found[1:4], 1 / len(batches))
        learner.remember(batch, vectors, update)
        yield MicroStep(update, k, len(batches), found.loss.item(), found.scores, found.weights, **places)


def cached_gradient(learner: Learner, batches: list[MicroBatch], update: int) -> Iterator[MicroStep]:
    """GradCache: the exact gradient of the big batch, with the graph of one micro-batch in memory at a time.

    1. encode every micro-batch, keeping vectors but no graph; 2. contrast all of them at once; 3. encode each again under
    the same noise and carry its vectors' gradients into the towers. The last micro-batch of pass 1 keeps its graph, so it
    is encoded once.
    """
    vectors, last = [], len(batches) - 1
    for k, batch in enumerate(batches):
        with learner.noise(update, k), torch.set_grad_enabled(k == last):
            vectors.append(learner.encode(batch))
    whole = Encoded(*(None if parts[0] is None else torch.cat([p.detach() for p in parts]) for parts in zip(*vectors)))
    found, places = learner.contrast(whole, torch.cat([b.pair_ids for b in batches]), torch.cat([b.hard_ids for b in batches]),
                                     update, banks=False)
    pieces = [None if gradient is None else gradient.split([len(part) for part in parts])
              for gradient, parts in zip(found[1:4], zip(*vectors))]
    for k in [last, *range(last)]:  # the kept graph first: it is gone before the next one is made
        if k != last:
            with learner.noise(update, k):
                vectors[k] = learner.encode(batches[k])
        _backward(vectors[k], [None if piece is None else piece[k] for piece in pieces], 1.0)
        vectors[k] = None
        yield MicroStep(update, k, len(batches), found.loss.item(), found.scores, found.weights, **places)


def _backward(vectors: Encoded, gradients: list[Tensor | None], scale: float) -> None:
    """The chain rule from the vectors into the towers: ∂loss/∂weights = Σ ∂loss/∂vector · ∂vector/∂weights."""
    torch.autograd.backward(vectors.present(), [gradient * scale for gradient in gradients if gradient is not None])

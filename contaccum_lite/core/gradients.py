"""How one weight update gets its gradient: accumulation over micro-batches.

DPR, GradAccum, pre-batch negatives and ContAccum are this one loop. They differ only in how many
micro-batches there are and in what their banks keep. `compute_gradients` in core/grad_cache.py
chooses between this, GradCache, and one forward pass for all micro-batches.

Reading path 5 of 9. Before: encoders/bag.py. After: core/batches.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from contaccum_lite.core.bank import DualBank, MemoryBank
from contaccum_lite.core.directions import contrast
from contaccum_lite.core.hooks import Extension, NoLossScale, SingleProcess
from contaccum_lite.core.loss import LossAndGradients
from contaccum_lite.core.masks import layout_mask
from contaccum_lite.core.micro_step import Layout, MicroStep
from contaccum_lite.core.objectives import bound_objectives
from contaccum_lite.core.settings import Settings
from contaccum_lite.data.duplicates import DuplicateKeys
from contaccum_lite.encoders.encode import encode, has_dropout, without_noise


class MicroBatch(NamedTuple):
    """Some pairs, as token ids and ids."""

    pair_ids: Tensor  # (B,) rows of the training pairs
    hard_ids: Tensor  # (B·h,) rows of the passages that are their hard negatives
    query_tokens: Tensor  # (B, L)
    passage_tokens: Tensor  # (B + B·h, L): positives, then hard negatives


class Embeddings(NamedTuple):
    """The vectors of a micro-batch."""

    queries: Tensor  # (B, d)
    passages: Tensor  # (B, d)
    hard_negatives: Tensor | None  # (B·h, d)

    def detach(self) -> Embeddings:
        hard = None if self.hard_negatives is None else self.hard_negatives.detach()
        return Embeddings(self.queries.detach(), self.passages.detach(), hard)


class Learner:
    """Two encoders, a dual bank, a loss and a count of what was encoded: what a method works on.

    Args:
        settings: of the run. query_tower, passage_tower: the encoders, possibly one and the same.
        keys: numbers that are equal for equal texts. group: the processes that share the run; with
            one process, its methods return what they are given.
    """

    def __init__(self, settings: Settings, query_tower, passage_tower, keys, group=None):
        self.settings = settings
        self.query_tower, self.passage_tower = query_tower, passage_tower
        self.keys: DuplicateKeys = keys
        self.group = group or SingleProcess()
        self.banks = DualBank(settings, query_tower.dim)
        self.query_bank, self.passage_bank, self.hard_bank = self.banks
        # passages encoded so far, by purpose: "train", "refresh", "probe"
        self.encodes: Counter = Counter()
        self.has_dropout = any(has_dropout(tower) for tower in self.towers)
        self.loss_scale = NoLossScale()
        self.extensions: list[Extension] = []
        self.gradient_hook: Callable | None = None  # changes a LossAndGradients (notebook 04)
        self.fixed_ids = torch.zeros(0, dtype=torch.int64)  # passages that are always columns
        self.observed = False  # True: a `MicroStep` has its matrix with incremental softmax too

    @property
    def towers(self) -> list[nn.Module]:
        if self.query_tower is self.passage_tower:
            return [self.query_tower]
        return [self.query_tower, self.passage_tower]

    def extension(self, name: str) -> Extension | None:
        """The extension of this name, such as "cache" or "softmax"; None where the run has none."""
        for extension in self.extensions:
            if extension.name == name:
                return extension
        return None

    def query_bank_dropped(self, step: int) -> bool:
        """Whether the query bank is out of use at this update (Appendix D)."""
        drop_at = self.settings.drop_query_bank_at
        return not self.query_bank.size or (drop_at is not None and step >= drop_at)

    # --- encoding ---------------------------------------------------------------------------------

    def encode(
        self, batch: MicroBatch, purpose: str | None = "train", towers: list | None = None
    ) -> Embeddings:
        """The vectors of a micro-batch; its passages are counted under this purpose, if any.

        towers: (query, passage) encoders in place of the learner's own.
        """
        num_pairs = len(batch.pair_ids)
        if not num_pairs:  # a short last micro-batch left no pair for this process
            empty = self.passage_bank.vectors[:0]
            return Embeddings(empty, empty, empty if self.settings.hard_negatives else None)
        if purpose:
            self.encodes[purpose] += len(batch.passage_tokens)
        towers = towers or self.towers
        queries = self.encode_tokens(towers[0], batch.query_tokens)
        columns = self.encode_tokens(towers[-1], batch.passage_tokens)
        hard = columns[num_pairs:] if len(columns) > num_pairs else None
        return Embeddings(queries, columns[:num_pairs], hard)

    def encode_tokens(self, tower: nn.Module, tokens: Tensor) -> Tensor:
        """(B, L) token ids -> (B, d)."""
        return encode(tower, tokens.to(self.settings.device), self.settings)

    @torch.no_grad()
    def encode_without_noise(self, batch: MicroBatch, purpose: str | None = None) -> Embeddings:
        """As `encode`, without graph and dropout, as in search."""
        with without_noise(*self.towers):
            return self.encode(batch, purpose)

    @contextmanager
    def replayable_rng(self, step: int, index: int):
        """Dropout noise from seed, update and micro-batch alone, so that it can be drawn again."""
        if not self.has_dropout:
            yield
            return
        device = torch.device(self.settings.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed = (self.settings.seed * 1_000_003 + step) * 4099 + index
            torch.manual_seed(seed + (self.group.rank << 48))
            yield

    # --- the loss ---------------------------------------------------------------------------------

    def compute_loss(
        self, embeddings: Embeddings, batch: MicroBatch, step: int, share: float = 1.0
    ) -> tuple[LossAndGradients, Layout]:
        """(Loss and gradients by equation 7, layout) of a micro-batch with itself and the banks.

        From N_memory 256 on, scale/incremental_softmax.py gets the same numbers with less work.
        """
        embeddings = embeddings.detach()  # the gradients are by hand: no graph is needed
        use_banks = step >= self.settings.bank_warmup
        layout = self.layout(batch, step, use_banks)
        for extension in self.extensions if use_banks else ():
            result = extension.bank_loss(embeddings, batch, step)
            if result is not None:
                return result, layout
        memory = Embeddings(*(self.read_bank(bank, step) for bank in self.banks))  # past vectors
        result = self.full_matrix_loss(embeddings, memory if use_banks else None, layout)
        for extension in self.extensions:
            extension.after_loss(share)
        return result, layout

    def layout(self, batch: MicroBatch, step: int, use_banks: bool) -> Layout:
        """Which pair each row and each column of this micro-batch's matrix belongs to."""
        pair_ids, hard_ids, num_rows = batch.pair_ids, batch.hard_ids, len(batch.pair_ids)
        if use_banks:
            pair_ids = torch.cat([pair_ids, self.passage_bank.ids])
            hard_ids = torch.cat([hard_ids, self.hard_bank.ids, self.fixed_ids])
            num_rows += 0 if self.query_bank_dropped(step) else len(self.query_bank)
        columns = torch.cat([pair_ids, hard_ids])
        return Layout(len(batch.pair_ids), pair_ids[:num_rows], columns, len(pair_ids))

    def read_bank(self, bank: MemoryBank, step: int) -> Tensor:
        """A bank's vectors for the loss, (n, d): as stored, or corrected by an extension."""
        for extension in self.extensions:
            vectors = extension.read_bank(bank, step)
            if vectors is not None:
                return vectors
        return bank.vectors

    def full_matrix_loss(
        self, embeddings: Embeddings, memory: Embeddings | None, layout: Layout
    ) -> LossAndGradients:
        """Loss and gradients over the full matrix, whose rows and columns core/loss.py joins."""
        past_queries = past_passages = past_hard = None
        if memory is not None:
            past_queries, past_passages, past_hard = (
                v if v is not None and len(v) else None for v in memory
            )
        if len(layout.row_ids) == layout.local:  # no memory rows: no query bank, or it is dropped
            past_queries = None
        return contrast(
            embeddings.queries,
            embeddings.passages,
            past_queries,
            past_passages,
            embeddings.hard_negatives,
            self.settings.temperature,
            bank_hard_negatives=past_hard,
            mask=self.duplicate_mask(layout),
            directions=self.settings.directions,
            objectives=bound_objectives(self, layout),
        )

    def duplicate_mask(self, layout: Layout) -> Tensor | None:
        """What core/masks.py leaves out of this matrix, (rows, columns); None: nothing."""
        return layout_mask(self, layout)

    # --- the banks --------------------------------------------------------------------------------

    @torch.no_grad()
    def enqueue(self, embeddings: Embeddings, batch: MicroBatch, step: int) -> None:
        """Write a micro-batch into the banks. After its loss, so it is never its own negative."""
        for extension in self.extensions:
            embeddings = extension.before_enqueue(embeddings, batch, step)
        if step >= self.settings.bank_warmup:
            self.banks.enqueue(embeddings, batch, step, not self.query_bank_dropped(step))
        for extension in self.extensions:
            extension.after_enqueue()

    def end_update(self, step: int) -> None:
        """What happens to the banks once the weights have moved."""
        if not self.settings.past_encoder:
            self.banks.clear()
        if self.query_bank_dropped(step + 1):
            self.query_bank.clear()
        for extension in self.extensions:
            extension.end_update(step)


def accumulate_gradients(
    learner: Learner, batches: list[MicroBatch], step: int
) -> Iterator[MicroStep]:
    """Add an update's gradient to the towers: DPR (K = 1), GradAccum, pre-batch, ContAccum.

    Each micro-batch is compared with itself and with the banks as they stand, and only then goes
    into the banks. The update's loss is the mean of its micro-batches' losses (equation 4). Yields
    a `MicroStep` after each. The weights do not move here: core/trainer.py moves them.
    """
    for index, batch in enumerate(batches):
        with learner.replayable_rng(step, index):
            local = learner.encode(learner.group.shard(batch))  # with its graph
        embeddings = learner.group.all_gather(local, batch)  # the vectors of all processes
        result, layout = learner.compute_loss(embeddings, batch, step, 1 / len(batches))
        if learner.gradient_hook is not None:
            result = learner.gradient_hook(result)
        gradients = learner.group.local_slice(result.gradients, batch)
        backward(local, gradients, learner.loss_scale.value / len(batches))
        learner.enqueue(embeddings, batch, step)
        yield MicroStep(step, index, len(batches), result, layout)


def backward(embeddings: Embeddings, gradients: tuple[Tensor | None, ...], scale: float) -> None:
    """The chain rule into the towers: ∂loss/∂weights = Σ ∂loss/∂vector · ∂vector/∂weights."""
    pairs = [(v, g) for v, g in zip(embeddings, gradients) if v is not None and g is not None]
    pairs = [(v, g) for v, g in pairs if v.requires_grad]  # a tower held still has no graph
    if len(embeddings.queries):
        torch.autograd.backward([v for v, _ in pairs], [g * scale for _, g in pairs])

"""Banks that are never stale: all their texts are encoded again before each update.

An intervention, not a method: it costs what the banks are there to save. With it, the effect of
stale vectors is removed and everything else stays. Notebook 04.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from contaccum_lite.core.bank import MemoryBank
from contaccum_lite.core.hooks import Extension
from contaccum_lite.encoders.encode import without_noise


def attach_bank_refresh(run) -> None:
    """Fresh banks, where the settings of a run ask for them."""
    if run.settings.refresh_banks:
        run.learner.extensions.append(BankRefresh(run))


class BankRefresh(Extension):
    """What is in the banks at the start of an update, encoded by the towers as they are now."""

    name = "refresh"

    def __init__(self, run):
        self.learner, self.sampler = run.learner, run.sampler
        self._fresh: dict[int, Tensor] = {}  # id() of a bank -> its vectors, encoded now

    def begin_update(self, batches: list, step: int) -> list:
        banks, learner = self.learner.banks, self.learner
        self._fresh = {}
        if len(banks.passage_bank):
            ids = banks.passage_bank.ids.numpy()
            batch = self.sampler.micro_batch(ids, hard_negatives=False)
            fresh = learner.encode_without_noise(batch, purpose="refresh")
            self._fresh[id(banks.query_bank)] = fresh.queries
            self._fresh[id(banks.passage_bank)] = fresh.passages
        if len(banks.hard_bank):
            self._fresh[id(banks.hard_bank)] = self._encode_hard_negatives()
        return batches

    @torch.no_grad()
    def _encode_hard_negatives(self) -> Tensor:
        rows = np.searchsorted(self.sampler.tokenized_rows, self.learner.hard_bank.ids.numpy())
        self.learner.encodes["refresh"] += len(rows)
        tower = self.learner.towers[-1]
        with without_noise(tower):
            return self.learner.encode_tokens(tower, self.sampler.passages[rows])

    def read_bank(self, bank: MemoryBank, step: int) -> Tensor | None:
        fresh = self._fresh.get(id(bank))
        if fresh is None or not len(bank):
            return None
        is_older = bank.ages(step) > 0  # a slot that this update has written is fresh already
        vectors = bank.vectors.clone()
        slots = is_older.nonzero().flatten()
        vectors[slots] = fresh[slots]
        return vectors

    def end_update(self, step: int) -> None:
        self._fresh = {}

    def abandon_update(self) -> None:
        self._fresh = {}

"""A dual bank whose vectors are corrected for their age when they are read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contaccum_lite.core.bank import MemoryBank
from contaccum_lite.core.hooks import Extension
from contaccum_lite.staleness.correctors import OnlineCorrector


def attach_bank_corrector(run) -> None:
    """A corrector for the banks of a run whose settings ask for one."""
    if run.settings.has_bank and run.settings.corrector != "identity":
        run.learner.extensions.append(BankCorrector(run))


class BankCorrector(Extension):
    """Correctors for a dual bank, one for each tower.

    Before each update some banked pairs are encoded again; from them both correctors learn. In
    neither paper: a FIFO bank holds vectors of all ages at once, so its correctors look at the age
    and leave what is new as it is. The bank keeps raw vectors; what enters the loss is corrected.
    """

    name = "correction"

    def __init__(self, run):
        self.learner, self.sampler = run.learner, run.sampler
        settings, dim = run.settings, run.passage_tower.dim
        self.correctors = nn.ModuleList(OnlineCorrector(settings, dim, True) for _ in range(2))
        self._snapshot = None

    def begin_update(self, batches: list, step: int) -> list:
        self._snapshot = [corrector.snapshot() for corrector in self.correctors]
        self.learn(step)
        return batches

    def learn(self, step: int) -> None:
        """Encode some banked pairs again and fit both correctors."""
        passage_bank, settings = self.learner.passage_bank, self.learner.settings
        if not len(passage_bank):
            return
        rng = torch.Generator().manual_seed((settings.seed * 1_000_003 + step) * 4099 + 4098)
        slots = torch.randperm(len(passage_bank), generator=rng)[: settings.probes]
        batch = self.sampler.micro_batch(passage_bank.ids[slots].numpy(), hard_negatives=False)
        fresh = self.learner.encode_without_noise(batch, purpose="probe")
        banks = self.learner.query_bank, passage_bank
        for corrector, bank, vectors in zip(self.correctors, banks, fresh[:2]):
            if len(bank) == len(passage_bank):
                ids, ages = passage_bank.ids[slots], passage_bank.ages(step)[slots]
                corrector.observe(ids, bank.vectors[slots], ages, vectors, step)
                corrector.fit()

    def read_bank(self, bank: MemoryBank, step: int) -> Tensor | None:
        if not len(bank):
            return None
        of_queries = bank is self.learner.query_bank
        corrector = self.correctors[0 if of_queries else 1]
        return corrector(bank.vectors, bank.ages(step))

    def abandon_update(self) -> None:
        if self._snapshot is not None:
            for corrector, stored in zip(self.correctors, self._snapshot):
                corrector.restore(stored)
        self._snapshot = None

    def end_update(self, step: int) -> None:
        self._snapshot = None

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.correctors.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.correctors.load_state_dict(state)

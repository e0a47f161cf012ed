"""Momentum encoders, as in MoCo: slowly moving copies of the encoders fill the banks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contaccum_lite.core.hooks import Extension
from contaccum_lite.encoders.encode import clone_encoder


def attach_momentum_encoders(run) -> None:
    """Momentum encoders for a run whose settings ask for them."""
    if run.settings.momentum:
        run.learner.extensions.append(MomentumEncoders(run))


class MomentumEncoders(Extension):
    """Copies of the encoders that follow them slowly.

    They keep `momentum` of themselves at each update and take the rest from the encoders.
    """

    name = "momentum"

    def __init__(self, run):
        self.learner = run.learner
        copies = [
            clone_encoder(tower).eval().requires_grad_(False) for tower in self.learner.towers
        ]
        self.encoders = nn.ModuleList(copies)

    def before_enqueue(self, embeddings, batch, step: int):
        """What goes into the banks is what the copies make of the micro-batch."""
        learner = self.learner
        if not learner.passage_bank.size or step < learner.settings.bank_warmup:
            return embeddings
        shard = learner.group.shard(batch)
        local = learner.encode(shard, "momentum", towers=list(self.encoders))
        return learner.group.all_gather(local, batch)

    @torch.no_grad()
    def end_update(self, step: int) -> None:
        share = 1 - self.learner.settings.momentum
        for copy, tower in zip(self.encoders, self.learner.towers):
            for slow, weight in zip(copy.parameters(), tower.parameters()):
                slow.lerp_(weight, share)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.encoders.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.encoders.load_state_dict(state)

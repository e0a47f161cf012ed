"""Trainer: encoders, banks, optimiser and data order under one seed, one weight update at a time.

Reading path 7 of 9. Before: core/batches.py. After: core/settings.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch

from contaccum_lite.core.batches import BatchSampler
from contaccum_lite.core.grad_cache import compute_gradients
from contaccum_lite.core.gradients import Learner
from contaccum_lite.core.hooks import SingleProcess
from contaccum_lite.core.micro_step import MicroStep, Update, grad_norm
from contaccum_lite.core.settings import Settings
from contaccum_lite.data.types import Pairs
from contaccum_lite.encoders.make import make_towers
from contaccum_lite.utils.devices import check_device
from contaccum_lite.utils.signals import defer_sigint

#: Functions that attach an optional feature where a run's settings ask; scale/attach.py has them.
EXTENSIONS: list[Callable[[Trainer], None]] = []


class UpdateCancelled(RuntimeError):
    """An update that was under way is undone, because something else moved the run."""


class Trainer:
    """One training run: `run.step()` makes one weight update. Users have it as `cl.Run`.

    Args:
        pairs: from `load_pairs`. settings: a `Settings`, or left out with its fields as keywords.
        towers: a (query tower, passage tower) of your own, in place of those the settings make.
        accelerator: from `scale.processes.accelerator_here()`, where several processes make this
            run together; every one of them calls the same methods in the same order.
    """

    process_group_type: type = SingleProcess  # scale.attach: what an accelerator's processes do

    def __init__(
        self,
        pairs: Pairs,
        settings: Settings | None = None,
        *,
        towers=None,
        accelerator=None,
        **fields,
    ):
        if settings is not None and fields:
            settings = settings.replace(**fields)
        self.pairs = pairs
        self.settings = settings = settings or Settings(**fields)
        check_device(settings.device)
        query_tower, passage_tower = towers or make_towers(settings, pairs)
        group = SingleProcess()
        if accelerator is not None:
            group = self.process_group_type(accelerator, settings.device)
        self.sampler = BatchSampler(pairs, settings, query_tower, group.world_size)
        keys = self.sampler.keys(pairs)
        self.learner = Learner(settings, query_tower.train(), passage_tower.train(), keys, group)
        self.learner.group.broadcast_parameters(self.learner.towers)
        for attach in EXTENSIONS:
            attach(self)
        for tower in self.learner.towers:
            if hasattr(tower, "accumulate_embedding_grad"):
                setattr(tower, "accumulate_embedding_grad", True)
        self._trained = [
            [p for p in tower.parameters() if p.requires_grad] for tower in self.learner.towers
        ]
        parameters = [p for of_tower in self._trained for p in of_tower]
        for extension in self.learner.extensions:
            parameters += extension.parameters()
        self.optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, eps=1e-8, weight_decay=0.0, fused=True
        )
        self.history: list[Update] = []
        self.step_count = 0
        self._snapshot: list | None = None  # of the banks, while an update is under way

    @property
    def query_tower(self):
        return self.learner.query_tower

    @property
    def passage_tower(self):
        return self.learner.passage_tower

    @property
    def query_bank(self):
        return self.learner.query_bank

    @property
    def passage_bank(self):
        return self.learner.passage_bank

    # --- training ---------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Update]:
        while self.step_count < self.settings.updates:
            yield self.step()

    def step(self) -> Update:
        """Make one weight update. Raises `RuntimeError` when all have been made."""
        for _ in self.micro_steps():
            pass
        return self.history[-1]

    def micro_steps(self) -> Iterator[MicroStep]:
        """Make one weight update; yields each micro-batch's `MicroStep` once it is in the banks.

        The weights move after the last one. Left halfway (Stop in the lab, Ctrl-C, an exception, a
        new step), the update is undone: weights and banks are as before it.
        """
        self.cancel_update()
        if self.step_count >= self.settings.updates:
            raise RuntimeError(
                f"all {self.settings.updates} updates of this run have been made: "
                "set updates higher in a new run."
            )
        start, losses = time.perf_counter(), []
        batches = self.sampler.batches(self.step_count)
        self._snapshot = snapshot = self.learner.banks.snapshot(batches)
        try:
            for micro in compute_gradients(self.learner, batches, self.step_count):
                losses.append(micro.loss)
                yield micro
                if self._snapshot is not snapshot:
                    raise UpdateCancelled(
                        "this update was undone, because another step, a save or a change came "
                        "in between."
                    )
            made = self._apply_gradients(losses, micro, start)
        finally:
            if self._snapshot is snapshot:
                self.cancel_update()
        if not made:
            yield from self.micro_steps()  # fp16 overflowed: again, with half the scale

    def cancel_update(self) -> None:
        """Undo what an unfinished update, if any, did to banks and gradients."""
        if self._snapshot is not None:
            self.optimizer.zero_grad(set_to_none=False)
            self.learner.banks.restore(self._snapshot)
            for extension in self.learner.extensions:
                extension.abandon_update()
            self._snapshot = None

    def _apply_gradients(self, losses: list[float], micro: MicroStep, start: float) -> bool:
        """Clip, and move the weights. Returns False, and moves nothing, where fp16 overflowed."""
        learner = self.learner
        learner.loss_scale.unscale(learner.towers)
        learner.group.all_reduce_gradients(learner.towers)
        loss = math.fsum(losses) / len(losses)
        query, passage = grad_norm(self._trained[0]), grad_norm(self._trained[-1])
        norm = query if len(self._trained) == 1 else math.hypot(query, passage)
        if math.isfinite(loss) and not math.isfinite(norm) and learner.loss_scale.backoff():
            return False
        if not math.isfinite(loss + norm):
            raise FloatingPointError(
                f"update {self.step_count + 1}: the loss is {loss} and the gradient's norm {norm}. "
                "The weights are as before it; lower learning_rate or raise temperature."
            )
        with defer_sigint():
            self._clip(norm)
            self.optimizer.param_groups[0]["lr"] = self.learning_rate(self.step_count)
            self.optimizer.step()
            learner.end_update(self.step_count)
            learner.loss_scale.update()
            self.step_count += 1
            ratio = passage / query if query else math.inf
            negatives = len(micro.column_ids) - 1
            seconds = time.perf_counter() - start
            metrics = Update(self.step_count, loss, query, passage, ratio, negatives, seconds)
            self.history.append(metrics)
            self._snapshot = None
            self.optimizer.zero_grad(set_to_none=False)
        return True

    def _clip(self, norm: float) -> None:
        """One global gradient clip over both towers."""
        if self.settings.clip_norm:
            parameters = [p for of_tower in self._trained for p in of_tower]
            total_norm = torch.tensor(norm, dtype=torch.float64)
            torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.clip_norm, total_norm)

    def learning_rate(self, step: int) -> float:
        """The learning rate of update `step` (from 0): linear warm-up, then linear decay to 0."""
        s = self.settings
        if step < s.warmup:
            return s.learning_rate * (step + 1) / s.warmup
        return s.learning_rate * (s.updates - step) / max(1, s.updates - s.warmup)

"""Where optional features take part in training, from outside.

`Extension` is the base class of the passage cache, the bank corrector, the incremental softmax and
the momentum encoders; `SingleProcess` is what several processes replace. None of them is needed to
understand the method.
"""

from __future__ import annotations

from torch import Tensor, nn


class Extension:
    """A feature that joins a run's updates. Every method may be left as it is.

    In the order in which they are called: `begin_update` once, then for each micro-batch
    `bank_loss`, `read_bank`, `after_loss`, `before_enqueue` and `after_enqueue`, then `end_update`
    or `abandon_update`.
    """

    name = ""  # of its tensors in a checkpoint
    note = ""  # what it does otherwise than asked for, in a sentence
    keeps_scores = False  # whether it keeps scores in place of computing the whole matrix again

    def begin_update(self, batches: list, step: int) -> list:
        """Prepare update `step`; returns its micro-batches, which it may change."""
        return batches

    def bank_loss(self, embeddings, batch, step: int):
        """The loss against the banks by another way than the full matrix, or None."""
        return None

    def read_bank(self, bank, step: int) -> Tensor | None:
        """The bank's vectors as they should enter the loss, or None: as they are stored."""
        return None

    def after_loss(self, share: float) -> None:
        """A micro-batch's full matrix has become a loss, which is this share of its update's."""

    def before_enqueue(self, embeddings, batch, step: int):
        """See what a micro-batch has encoded; returns the vectors that go into the banks."""
        return embeddings

    def after_enqueue(self) -> None:
        """The banks have been written."""

    def end_update(self, step: int) -> None:
        """The weights have moved."""

    def abandon_update(self) -> None:
        """Be again as before `begin_update`; the banks are already."""

    def parameters(self) -> list[nn.Parameter]:
        """Numbers of its own that the run's optimiser moves; it adds their gradients itself."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


class SingleProcess:
    """One process, which has every micro-batch to itself: `scale.processes` has its counterpart."""

    rank, world_size = 0, 1

    def shard(self, batch):
        """The pairs of a micro-batch that this process encodes."""
        return batch

    def all_gather(self, embeddings, batch):
        """The vectors of the whole micro-batch, from those of each process's shard."""
        return embeddings

    def local_slice(self, gradients: tuple, batch) -> tuple:
        """Of the gradients of the whole micro-batch's vectors, those of this process's shard."""
        return gradients

    def broadcast_parameters(self, towers: list[nn.Module]) -> None:
        """Give every process the same weights."""

    def all_reduce_gradients(self, towers: list[nn.Module]) -> None:
        """Make every tower's gradient the sum of all processes' gradients."""


class NoLossScale:
    """Gradients of full precision need no loss scale: `scale.precision` has one for fp16."""

    value = 1.0  # the towers' gradients are this many times too large

    def unscale(self, towers: list[nn.Module]) -> None:
        """Divide the towers' gradients by it."""

    def backoff(self) -> bool:
        """After an overflow: a smaller scale; False where there is none."""
        return False

    def update(self) -> None:
        """An update was made without overflow."""

    def state(self) -> list:
        return [1.0, 0]

    def load_state(self, state: list | None) -> None:
        pass

"""A large batch computed exactly by GradCache, and banks of earlier updates.

    loss = CachedContAccumLoss(model, memory_size=1024, mini_batch_size=8)

`ContAccumLoss` remembers vectors of the same update, which its weights have just computed, and of
earlier ones. Here the update's own batch is `per_device_train_batch_size` large and exact: all its
texts are encoded twice, `mini_batch_size` at a time, so that nothing in it is stale. Only earlier
updates are remembered. It is built on sentence-transformers' `CachedLossMixin` (6.1 or later) and
inherits what that cannot do: DeepSpeed, AdaptiveLayerLoss. docs/sentence-transformers.md says when
to take which.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

try:
    from sentence_transformers.base.losses.gradcache import (
        CachedLossMixin,
        has_static_embedding_input,
    )
except ImportError:
    raise ImportError(
        "CachedContAccumLoss needs sentence-transformers 6.1 or later: "
        'pip install --upgrade "sentence-transformers>=6.1", or take ContAccumLoss.'
    ) from None

from contaccum_lite.integrations.sentence_transformers import ContAccumLoss, check_columns


class CachedContAccumLoss(CachedLossMixin, ContAccumLoss):
    """InfoNCE over a large batch, computed exactly in little memory, and banks of earlier batches.

    Args:
        model: a `SentenceTransformer`.
        memory_size: pairs in the banks (N_memory), of earlier batches only. With 0 it is
            CachedMultipleNegativesRankingLoss.
        mini_batch_size: texts encoded at a time; it decides the memory, and nothing else.
        mini_batch_num_tokens: in its place, the tokens of the texts encoded at a time.
        show_progress_bar: whether encoding a batch shows its progress.
        options: those of `ContAccumLoss`, from `query_bank` to `name`.

    Raises `ValueError` for settings or data that do not fit. Equation 7; the GradCache paper's
    section 3.
    """

    def __init__(
        self,
        model,
        memory_size: int,
        *,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
        **options: Any,
    ):
        super().__init__(model, memory_size, **options)
        _check_mini_batch(mini_batch_size, "mini_batch_size")
        if mini_batch_num_tokens is not None:
            _check_mini_batch(mini_batch_num_tokens, "mini_batch_num_tokens")
        if isinstance(model, torch.nn.Sequential) and has_static_embedding_input(model):
            raise ValueError(
                "the model begins with a StaticEmbedding, whose texts are not rows that can be "
                "encoded a few at a time: take ContAccumLoss, or MultipleNegativesRankingLoss."
            )
        self.mini_batch_size = mini_batch_size
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar
        self._batch_keys: Tensor | None = None
        self._full: list[list[Tensor]] = []  # by column, the mini-batches' vectors in full length
        self._entering: tuple[Tensor, Tensor] | None = None  # vectors and keys, for the banks

    def forward(self, sentence_features, labels: Tensor | None = None) -> Tensor:
        features = list(sentence_features)
        check_columns(features)
        if self._pending_batch(features) is not None:
            raise ValueError(
                "CachedContAccumLoss was called a second time with the same batch, before the "
                "backward pass of the first, as AdaptiveLayerLoss does: its gradients are computed "
                "in that backward pass. Take ContAccumLoss there."
            )
        self._batch_keys = self._text_keys(features)  # before the model: it may change the features
        self._full, self._entering = [], None
        if self._uses_banks:
            self._end_last_batch()
        loss = self.forward_cached(features, labels)
        if self._entering is not None:
            self._pending = self._enqueue(*self._entering, self._batch_keys)
            self._await_backward(features, loss)
        self._full, self._entering = [], None
        return loss

    def embed_minibatch_iter(self, *args, **fields):
        """As the mixin's; the first pass's vectors are kept, for the banks."""
        keeps = not fields.get("with_grad", False) and self._uses_banks
        column: list[Tensor] = []
        if keeps:
            self._full.append(column)
        for vectors, state in super().embed_minibatch_iter(*args, **fields):
            if keeps:
                column.append(vectors.detach())
            yield vectors, state

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of the whole batch, from its mini-batches' embeddings."""
        embeddings = [torch.cat(mini_batches) for mini_batches in reps]
        vectors, keys, masks = self._gathered(embeddings, self._batch_keys)
        if self._uses_banks and self._entering is None:
            full = [torch.cat(mini_batches) for mini_batches in self._full]
            self._entering = self._gathered(full, None)[0], keys
            self._init_banks(self._entering[0])
        with torch.autocast(vectors.device.type, enabled=False):
            loss = self._contrast(vectors, keys, masks, self._is_cut)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    @property
    def _is_cut(self) -> bool:
        """Whether a MatryoshkaLoss cuts the vectors: it puts itself around `calculate_loss`."""
        return "calculate_loss" in vars(self)

    def get_config_dict(self) -> dict[str, Any]:
        return super().get_config_dict() | {
            "mini_batch_size": self.mini_batch_size,
            "mini_batch_num_tokens": self.mini_batch_num_tokens,
        }


def _check_mini_batch(value: Any, name: str) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}: expected a whole number, 1 or more.")

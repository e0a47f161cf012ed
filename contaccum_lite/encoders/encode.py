"""Token ids in, vectors out: the few functions that work on any encoder."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from contaccum_lite.encoders.tokens import Tokens

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: What transformers' configurations call the rates of dropout that no layer of its own holds.
_DROPOUT_RATES = (
    "attention_probs_dropout_prob",
    "attention_dropout",
    "dropout",
    "dropout_rate",
    "hidden_dropout",
    "activation_dropout",
    "attn_pdrop",
    "encoder_layerdrop",
    "layerdrop",
    "drop_path_rate",
)


def encode(tower: nn.Module, ids: Tensor, settings) -> Tensor:
    """The vectors (B, d) of token ids (B, L), in `settings.dtype`.

    `settings.precision` says what the layers inside calculate with.
    """
    if settings.precision == "fp32":
        return tower(ids)
    dtype = AUTOCAST_DTYPES[settings.precision]
    with torch.autocast(torch.device(settings.device).type, dtype=dtype):
        vectors = tower(ids)
    return vectors.to(getattr(torch, settings.dtype))


def encode_batches(
    tower: nn.Module,
    tokens: Tokens,
    settings,
    rows: np.ndarray | None = None,
    batch_size: int = 256,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """(indices into `rows`, their vectors) of these texts, a batch at a time.

    Without dropout and without a graph. Texts of similar length share a batch, which needs less
    padding.
    """
    rows = np.arange(len(tokens)) if rows is None else rows
    order = np.argsort(tokens.lengths[rows], kind="stable")
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        with torch.no_grad(), without_noise(tower):
            vectors = encode(tower, tokens[rows[indices]].to(settings.device), settings)
        yield indices, vectors


def encode_to_numpy(tower: nn.Module, tokens: Tokens, settings) -> np.ndarray:
    """The vectors of all texts as one array of float32, (texts, d)."""
    embeddings = np.empty((len(tokens), tower.dim), dtype=np.float32)
    for rows, vectors in encode_batches(tower, tokens, settings):
        embeddings[rows] = vectors.float().cpu().numpy()
    return embeddings


def encode_to_tensor(tower: nn.Module, tokens: Tokens, settings, rows=None) -> Tensor:
    """The vectors of the texts in these rows, (n, d), without dropout and without a graph."""
    indices, vectors = zip(*encode_batches(tower, tokens, settings, rows), strict=True)
    vectors = torch.cat(vectors)
    order = torch.from_numpy(np.concatenate(indices)).to(vectors.device)
    return torch.empty_like(vectors).index_copy_(0, order, vectors)


@contextmanager
def without_noise(*towers: nn.Module) -> Iterator[None]:
    """Turn dropout off in these towers, so that a text always has the same vector."""
    modes = [(layer, layer.training) for tower in towers for layer in tower.modules()]
    try:
        for tower in towers:
            tower.eval()
        yield
    finally:
        for layer, training in modes:
            layer.training = training


@contextmanager
def autograd_sees_all(*towers: nn.Module) -> Iterator[None]:
    """Let `torch.autograd.grad` see every weight: in a run, a `BagTower` adds some in place."""
    accumulating = [tower for tower in towers if getattr(tower, "accumulate_embedding_grad", False)]
    try:
        for tower in accumulating:
            tower.accumulate_embedding_grad = False
        yield
    finally:
        for tower in accumulating:
            tower.accumulate_embedding_grad = True


def clone_encoder(tower: nn.Module) -> nn.Module:
    """A tower with weights of its own and the same tokenizer."""
    return copy.deepcopy(tower, {id(tower.tokenizer): tower.tokenizer})


def has_dropout(tower: nn.Module) -> bool:
    """Whether this tower draws noise while it trains."""
    for layer in tower.modules():
        if "Dropout" in type(layer).__name__ and getattr(layer, "p", 0):
            return True
        config = getattr(layer, "config", None)
        if any(getattr(config, name, 0) for name in _DROPOUT_RATES):
            return True
    return False

"""The small encoder: text in, one vector out, fast enough on one core to train under a slider.

Reading path 4 of 9. Before: core/bank.py. After: core/gradients.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from contaccum_lite.encoders.bag_files import load_bag_tower, save_bag_tower
from contaccum_lite.encoders.sparse_embedding import embed_adding_grad
from contaccum_lite.encoders.tokens import Tokens, encode_texts, tokenizer_hash


class UnitNorm(nn.Module):
    """Vectors scaled to length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1)


class BagTower(nn.Module):
    """Token embedding -> learned attention pooling -> residual MLP -> LayerNorm. Notebook 00.

    It knows no word order. Its vectors have a norm of about √dim.

    Args:
        tokenizer: a `tokenizers.Tokenizer` that pads with token 0.
        dim: numbers in a vector.
        ending: what follows the MLP: "layernorm", "none", "unit" (length 1), or "pooled", which
            leaves out the MLP too. Another raises `ValueError`.
    """

    ENDINGS = ("layernorm", "none", "unit", "pooled")
    pad = 0
    accumulate_embedding_grad = False  # set by a run: see `SparseGradEmbedding`

    def __init__(self, tokenizer, dim: int = 64, ending: str = "layernorm"):
        super().__init__()
        if ending not in self.ENDINGS:
            raise ValueError(f"ending is {ending!r}: choose one of {', '.join(self.ENDINGS)}.")
        self.tokenizer, self.dim, self.ending = tokenizer, dim, ending
        self.tokenizer_hash = tokenizer_hash(tokenizer)
        self.embedding = nn.Embedding(tokenizer.get_vocab_size(), dim)
        # small compared with a step of Adam, so that even rare words move
        nn.init.normal_(self.embedding.weight, std=0.25)
        self.attention = nn.Parameter(torch.randn(dim) / dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        norms = {"layernorm": nn.LayerNorm(dim), "none": nn.Identity(), "unit": UnitNorm()}
        self.norm = norms.get(ending)

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors (B, dim) of these token ids (B, L), padded with 0."""
        if self.accumulate_embedding_grad and torch.is_grad_enabled():
            tokens = embed_adding_grad(self.embedding.weight, ids)  # (B, L, dim)
        else:
            tokens = self.embedding(ids)
        scores = (tokens @ self.attention).masked_fill(ids == self.pad, -1e4)  # (B, L)
        pooled = torch.bmm(scores.softmax(-1).unsqueeze(1), tokens).squeeze(1)  # (B, dim)
        if self.ending == "pooled":
            return pooled
        return self.norm(pooled + self.mlp(pooled))

    def tokenize(
        self, texts: Sequence[str], titles: Sequence[str] | None = None, length: int = 64
    ) -> Tokens:
        """The token ids of each text, its title first, cut to `length` tokens."""
        if titles is not None:
            texts = [f"{title} {text}" for title, text in zip(titles, texts)]

        def encode(batch: list[str]) -> list[list[int]]:
            encodings = self.tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            return [encoding.ids[:length] for encoding in encodings]

        return encode_texts(encode, [texts], length, self.pad, self.embedding.num_embeddings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, tokenizer.json and model.safetensors into the folder."""
        save_bag_tower(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> BagTower:
        """The tower that `save_pretrained` wrote; another folder raises `ValueError`."""
        return load_bag_tower(cls, folder)

"""Text to token ids, and token ids to padded tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

_BATCH = 256  # texts given to a tokenizer at a time: its working memory is that of all of them


class Tokens:
    """Token ids of many texts, end to end in one array, so that short texts take little memory.

    `tokens[rows]` is those texts as a padded tensor (rows, longest of them).
    """

    def __init__(self, rows: Iterable[Sequence[int]], pad: int):
        self.pad = pad
        rows = [np.asarray(row, dtype=np.int32) for row in rows]
        self.offsets = np.cumsum([0, *map(len, rows)])
        self.values = np.concatenate([np.zeros(0, dtype=np.int32), *rows])

    def __len__(self):
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens in each text."""
        return np.diff(self.offsets)

    def __getitem__(self, rows) -> Tensor:
        rows = np.asarray(rows, dtype=np.int64)
        return self.spans(rows, 0, self.offsets[rows + 1] - self.offsets[rows])

    def spans(self, rows: np.ndarray, first, lengths: np.ndarray) -> Tensor:
        """Of each of these texts, `lengths` tokens from its token number `first` on, padded."""
        starts = self.offsets[rows] + first
        columns = np.arange(max(lengths.max(initial=0), 1))
        is_token = columns < lengths[:, None]  # (rows, longest)
        padded = np.full(is_token.shape, self.pad, dtype=np.int64)
        padded[is_token] = self.values[(starts[:, None] + columns)[is_token]]
        return torch.from_numpy(padded)


def pad_and_concat(batches: Sequence[Tensor], pad: int) -> Tensor:
    """Padded token ids, (n, L) each, one under the other: (sum of n, longest L)."""
    longest = max(batch.shape[1] for batch in batches)
    padded = []
    for batch in batches:
        padded.append(nn.functional.pad(batch, (0, longest - batch.shape[1]), value=pad))
    return torch.cat(padded)


def encode_texts(
    encode: Callable, columns: list[Sequence[str]], length: int, pad: int, vocab_size: float
) -> Tokens:
    """The token ids that a tokenizer gives to texts.

    Args:
        encode: of a list of texts from each column, the token ids of each row.
        columns: the texts; or the titles, and the texts.
        length: tokens at most, to which `encode` cuts; of far longer texts, it gets the beginning.
        pad: the token that fills shorter rows.
        vocab_size: the number of embeddings. A token id beyond it raises `ValueError`.
    """
    columns = [_truncate_texts(column, length) for column in columns]
    rows = []
    for start in range(0, len(columns[0]), _BATCH):
        rows += encode(*(column[start : start + _BATCH] for column in columns))
    tokens = Tokens(rows, pad)
    highest = tokens.values.max(initial=0)
    if highest >= vocab_size:
        raise ValueError(
            f"the tokenizer gives a token the number {highest}, and the tower has "
            f"embeddings for 0 to {vocab_size - 1}: give a tower and the tokenizer that it "
            "was trained with."
        )
    return tokens


def _truncate_texts(texts: Sequence[str], length: int) -> list[str]:
    """Texts without what is far beyond `length` tokens, for which a tokenizer takes time too."""
    short = []
    for text in texts:
        if len(text) > 16 * length:
            text = " ".join(text[: 40 * length].split())[: 16 * length]
        short.append(text)
    return short


def tokenizer_hash(tokenizer) -> str:
    """A hash of what a tokenizer does: tokenizers of the same hash give the same token ids."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]


def tokenize_split(pairs, tower, settings, split: str) -> Tokens:
    """Token ids of the "train", "test" or "dev" queries, or of all "passages".

    They are kept in `pairs.memo`: runs on the same pairs share them.
    """
    of_passages = split == "passages"
    length = settings.passage_tokens if of_passages else settings.query_tokens
    key = ("tokens", split, length, tower.tokenizer_hash)
    if key not in pairs.memo:
        if of_passages:
            pairs.memo[key] = tokenize_passages(tower, pairs.passages, settings)
        else:
            queries = [pair.query for pair in getattr(pairs, split)]
            pairs.memo[key] = tower.tokenize(queries, length=length)
    return pairs.memo[key]


def tokenize_passages(tower, passages: Sequence, settings) -> Tokens:
    """Token ids of passages, the title first."""
    texts = [passage.text for passage in passages]
    titles = [passage.title for passage in passages]
    return tower.tokenize(texts, titles, settings.passage_tokens)

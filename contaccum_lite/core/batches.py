"""Which pairs make an update: a new shuffle each epoch, from the seed alone, for every method.

Reading path 6 of 9. Before: core/gradients.py. After: core/trainer.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from contaccum_lite.core.cursor import Cursor
from contaccum_lite.core.gradients import MicroBatch
from contaccum_lite.core.settings import Settings
from contaccum_lite.data.duplicates import DuplicateKeys
from contaccum_lite.data.types import Pairs
from contaccum_lite.encoders.tokens import Tokens, tokenize_passages, tokenize_split

SMALL_CORPUS = 100_000  # passages up to which all token ids are kept


class BatchSampler:
    """The micro-batches of every update.

    The last update of an epoch takes what is left, so that every pair is seen once an epoch. Of a
    large corpus, only the passages that training can meet are tokenized. With several processes, a
    micro-batch here is that of all of them together.
    """

    def __init__(self, pairs: Pairs, settings: Settings, tower, world_size: int = 1):
        self.settings, self.world_size, self.cursor = settings, world_size, Cursor()
        rows, self.note = list(range(len(pairs.train))), ""
        if settings.hard_negatives:
            rows, self.note = pairs.with_hard_negatives()
        self.rows = np.array(rows, dtype=np.int64)
        if not len(self.rows):
            raise ValueError(f"{pairs.name} has no pair to train on{self._advice()}")
        self.positives = np.array([pairs.row_of[pair.passage_id] for pair in pairs.train])
        self.hard_negatives = []
        if settings.hard_negatives:
            for pair in pairs.train:
                self.hard_negatives.append([pairs.row_of[p.id] for p in pair.hard_negatives])
        self.queries = tokenize_split(pairs, tower, settings, "train")
        self.tokenized_rows, self.passages = self._tokenize(pairs, tower)
        self.compose: Callable | None = None  # another order of an epoch (core/composition.py)
        self._epoch = -1
        self._order = self._hard_draws = np.empty(0)  # of this epoch

    def _advice(self) -> str:
        if self.settings.hard_negatives:
            return " that has a hard negative: set hard_negatives=0."
        return ": give a source with training pairs."

    def _tokenize(self, pairs: Pairs, tower) -> tuple[np.ndarray, Tokens]:
        """(rows of the corpus, their tokens) of all passages that training can meet."""
        if len(pairs.passages) <= SMALL_CORPUS:
            all_rows = np.arange(len(pairs.passages))
            return all_rows, tokenize_split(pairs, tower, self.settings, "passages")
        hard = [np.array(rows) for rows in self.hard_negatives if rows]
        met = np.unique(np.concatenate([self.positives, *hard]))
        return met, tokenize_passages(tower, [pairs.passages[row] for row in met], self.settings)

    @property
    def micro_batch_size(self) -> int:
        return self.settings.local_batch * self.world_size

    @property
    def batch_size(self) -> int:
        return self.settings.total_batch * self.world_size

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def keys(self, pairs: Pairs) -> DuplicateKeys:
        """Numbers by which equal queries and equal passages of these pairs are recognised."""
        queries: dict[str, int] = {}
        texts: dict[str, int] = {}
        text_keys = torch.full((len(pairs.passages),), -1)
        met = [pairs.passages[row].text for row in self.tokenized_rows]
        text_keys[self.tokenized_rows] = torch.tensor(
            [texts.setdefault(text, len(texts)) for text in met]
        )
        query_keys = [queries.setdefault(pair.query, len(queries)) for pair in pairs.train]
        passage_keys = text_keys[torch.from_numpy(self.positives)]
        return DuplicateKeys(torch.tensor(query_keys), passage_keys, text_keys)

    def batches(self, update: int) -> list[MicroBatch]:
        """The micro-batches of this update: up to K, each of up to N_local pairs (× processes)."""
        epoch, first = self.locate(update)
        self._shuffle(epoch)
        rows = self._order[first : first + self.batch_size]
        size = self.micro_batch_size
        starts = range(0, len(rows), size)
        return [self.micro_batch(rows[start : start + size]) for start in starts]

    def locate(self, update: int) -> tuple[int, int]:
        """(epoch, pairs of it that are taken before this update)."""
        return self.cursor.locate(update, len(self.rows), self.batch_size)

    def _shuffle(self, epoch: int) -> None:
        """Draw an epoch's order of pairs, and which of its hard negatives each pair gets."""
        if self._epoch != epoch:
            rng = np.random.default_rng([self.settings.seed, epoch])
            self._order = rng.permutation(self.rows)
            if self.compose is not None:
                self._order = self.compose(self._order, epoch)
            self._hard_draws = rng.random((len(self.positives), self.settings.hard_negatives))
            self._epoch = epoch

    def micro_batch(self, rows: np.ndarray, hard_negatives: bool = True) -> MicroBatch:
        """The training pairs of these rows (B,), with this epoch's draw of hard negatives."""
        if self._epoch < 0:
            self._shuffle(0)
        hard = []
        if self.hard_negatives and hard_negatives:
            for row in rows:
                candidates = self.hard_negatives[row]
                hard += [candidates[int(u * len(candidates))] for u in self._hard_draws[row]]
        hard_rows = np.array(hard, dtype=np.int64)
        corpus_rows = np.concatenate([self.positives[rows], hard_rows])
        passage_tokens = self.passages[np.searchsorted(self.tokenized_rows, corpus_rows)]
        ids = torch.from_numpy(np.asarray(rows)), torch.from_numpy(hard_rows)
        return MicroBatch(*ids, self.queries[rows], passage_tokens)

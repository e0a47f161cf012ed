"""A passage tower that is held still, and then the whole corpus as columns.

Only the query tower learns, so a passage's vector never changes: every passage can be a negative of
every query at the cost of one encoding, and nothing is stale (ADORE, arXiv 2104.08051; LiT,
arXiv 2111.07991). What the passage tower does not know, it does not learn. The corpus holds the
passages that test queries look for, as it does when one searches; no test query is seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contaccum_lite.core.bank import MemoryBank
from contaccum_lite.core.hooks import Extension
from contaccum_lite.encoders.encode import encode_to_tensor


def attach_corpus_columns(run) -> None:
    """Hold the passage tower still, and make the corpus columns, where a run's settings say so."""
    if run.settings.train_towers == "query":
        run.passage_tower.requires_grad_(False)
    if run.settings.corpus_columns:
        if len(run.sampler.tokenized_rows) < len(run.pairs.passages):
            raise ValueError(
                f"corpus_columns is True, and {run.pairs.name} has {len(run.pairs.passages)} "
                "passages: a column is made of each for up to 100000."
            )
        run.learner.extensions.append(CorpusColumns(run))


class CorpusColumns(Extension):
    """The vectors of all passages, encoded once, as columns of every matrix."""

    name = "corpus"

    def __init__(self, run):
        self.learner, self.tokens = run.learner, run.sampler.passages
        self.vectors: Tensor | None = None  # (passages, d), once made

    def begin_update(self, batches: list, step: int) -> list:
        learner = self.learner
        if self.vectors is None:
            tower, settings = learner.passage_tower, learner.settings
            self._hold(encode_to_tensor(tower, self.tokens, settings))
            learner.encodes["refresh"] += len(self.tokens)
        return batches

    def _hold(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.learner.fixed_ids = torch.arange(len(vectors))

    def read_bank(self, bank: MemoryBank, step: int) -> Tensor | None:
        """They stand where banked hard negatives stand; there are none of these."""
        return self.vectors if bank is self.learner.hard_bank else None

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.vectors is None else {"vectors": self.vectors}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if "vectors" in state:
            self._hold(state["vectors"])

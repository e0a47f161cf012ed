"""Train with the functions of the spine: the student's own ContAccum on a real run's data.

All but the method comes from a `Run` that never makes a step: towers, data order, optimizer and
learning rate. So the weights must be those of that `Run`, and `compare` says whether they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from contaccum_lite.core.run import Run
from contaccum_lite.core.settings import Settings
from contaccum_lite.course.exercises import spine
from contaccum_lite.data.types import Pairs
from contaccum_lite.encoders.encode import encode_to_tensor
from contaccum_lite.encoders.tokens import tokenize_split

TOLERANCE = 1e-6


class MyContAccum:
    """A training run whose update, measure and search are given as functions.

    Args:
        pairs: from `load_pairs`. settings: a `Settings` of "contaccum" or "grad_accum", or left out
            with its fields as keywords.
        update, mrr, search: the functions of spine.7, spine.8 and spine.9; left out, the
            references.

    `mask_duplicates` is always False: the spine has no mask, as the paper's released code has none.
    Raises `ValueError` for settings that the spine does not have.
    """

    def __init__(
        self,
        pairs: Pairs,
        settings: Settings | None = None,
        *,
        update: Callable = spine.update,
        mrr: Callable = spine.mrr,
        search: Callable = spine.search,
        **fields,
    ):
        fields["mask_duplicates"] = False
        settings = settings.replace(**fields) if settings else Settings(**fields)
        _check_settings(settings)
        self.pairs, self.settings = pairs, settings
        self._update, self._mrr, self._search = update, mrr, search
        self._run = Run(pairs, settings)
        dim, dtype = self.query_tower.dim, getattr(torch, settings.dtype)
        self.query_bank = torch.zeros(0, dim, dtype=dtype)
        self.passage_bank = torch.zeros(0, dim, dtype=dtype)
        self.step_count = 0

    @property
    def query_tower(self):
        return self._run.query_tower

    @property
    def passage_tower(self):
        return self._run.passage_tower

    def step(self) -> None:
        """Make one weight update with the function `update`."""
        settings, optimizer = self.settings, self._run.optimizer
        optimizer.param_groups[0]["lr"] = self._run.learning_rate(self.step_count)
        micro_batches = []
        for batch in self._run.sampler.batches(self.step_count):
            micro_batches.append((batch.query_tokens, batch.passage_tokens))
        self.query_bank, self.passage_bank = self._update(
            self.query_tower,
            self.passage_tower,
            optimizer,
            micro_batches,
            self.query_bank,
            self.passage_bank,
            settings.memory_size,
            settings.temperature,
            settings.clip_norm or torch.inf,
        )
        self.step_count += 1

    def train(self) -> MyContAccum:
        """Make all updates of the settings; returns itself."""
        while self.step_count < self.settings.updates:
            self.step()
        return self

    def compare(self, updates: int = 10) -> Comparison:
        """Make this many updates here and in a new `Run`, and compare all weights.

        Returns a `Comparison`, which is true where no weight differs by more than 1e-6. Raises
        `ValueError` where updates have been made here already.
        """
        if self.step_count:
            raise ValueError(
                f"{self.step_count} updates have been made: compare a new MyContAccum, from its "
                "first update on."
            )
        theirs = Run(self.pairs, self.settings)
        for _ in range(updates):
            self.step()
            theirs.step()
        difference = 0.0
        mine = [*self.query_tower.parameters(), *self.passage_tower.parameters()]
        expected = [*theirs.query_tower.parameters(), *theirs.passage_tower.parameters()]
        for a, b in zip(mine, expected):
            difference = max(difference, float((a - b).detach().abs().max()))
        return Comparison(updates, difference)

    # --- the measure, and search ------------------------------------------------------------------

    def evaluate(self, split: str = "test") -> float:
        """MRR@10 of the queries of "test" or "dev" among all passages, by the function `mrr`."""
        examples = {"test": self.pairs.test, "dev": self.pairs.dev}.get(split)
        if not examples:
            raise ValueError(f"{self.pairs.name} has no {split!r} pairs to evaluate on.")
        tokens = tokenize_split(self.pairs, self.query_tower, self.settings, split)
        queries = encode_to_tensor(self.query_tower, tokens, self.settings)
        positives = torch.tensor([self.pairs.row_of[pair.passage_id] for pair in examples])
        with torch.no_grad():
            return float(self._mrr(queries @ self._passages().T, positives, 10))

    def search(self, query: str, k: int = 5) -> list[str]:
        """The names of the k nearest passages to this text, by the function `search`."""
        tokens = self.query_tower.tokenize([query], length=self.settings.query_tokens)
        vector = encode_to_tensor(self.query_tower, tokens, self.settings)[0]
        with torch.no_grad():
            rows = self._search(vector, self._passages(), k)
        passages = [self.pairs.passages[int(row)] for row in rows]
        return [passage.title or passage.id for passage in passages]

    def _passages(self) -> Tensor:
        """The vectors of all passages, (passages, d)."""
        tokens = tokenize_split(self.pairs, self.passage_tower, self.settings, "passages")
        return encode_to_tensor(self.passage_tower, tokens, self.settings)


class Comparison:
    """Whether two runs have the same weights: true if so; `difference` is the largest."""

    def __init__(self, updates: int, difference: float):
        self.updates, self.difference = updates, difference

    def __bool__(self):
        return self.difference <= TOLERANCE

    def __repr__(self):
        if self:
            return (
                f"✓ after {self.updates} updates no weight differs from cl.Run's by more than "
                f"{TOLERANCE:g}."
            )
        return (
            f"✗ after {self.updates} updates a weight differs from cl.Run's by "
            f"{self.difference:.3g}: check each function of the spine, and train in float64 "
            "(dtype='float64')."
        )


#: What the spine has; a setting of another value would be ignored.
_FIXED = {
    "past_encoder": True,
    "drop_query_bank_at": None,
    "bank_warmup": 0,
    "hard_negatives": 0,
    "momentum": 0.0,
    "shared": False,
    "precision": "fp32",
    "device": "cpu",
}


def _check_settings(settings: Settings) -> None:
    """Raise `ValueError` for settings that the functions of the spine do not read."""
    if settings.method not in ("contaccum", "grad_accum"):
        raise ValueError(
            f"method is {settings.method!r}: the spine is 'contaccum', or 'grad_accum' for banks "
            "of size 0."
        )
    if settings.memory_size and not settings.query_bank:
        raise ValueError("query_bank is False: the spine has both banks. Leave it out.")
    for name, value in _FIXED.items():
        if getattr(settings, name) != value:
            raise ValueError(
                f"{name} is {getattr(settings, name)!r}, and the spine has {name}={value!r} only: "
                "leave it out."
            )

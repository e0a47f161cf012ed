"""A passage, a pair of query and passage, and the data set that a run trains on.

Reading path 9 of 9. Before: core/settings.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from contaccum_lite.data.fingerprints import hash_pairs, hash_passages


class Passage(NamedTuple):
    """A text to be searched. Two passages of the same title and text are one passage."""

    id: str
    title: str
    text: str


class Pair(NamedTuple):
    """A query and the passage that answers it."""

    id: str
    query: str
    passage: str
    title: str = ""
    hard_negatives: tuple[Passage, ...] = ()
    answers: tuple[str, ...] = ()  # strings, any of which makes a passage right (as in DPR's files)
    passage_id: str = ""
    relevant: dict[str, int] | None = None  # {passage id: grade}, where several passages answer

    @property
    def grades(self) -> dict[str, int]:
        """{passage id: grade} of every passage that answers the query."""
        return self.relevant or {self.passage_id: 1}


@dataclass(frozen=True)
class Pairs:
    """A data set: pairs to train on, pairs to test on, and all passages that a search ranks."""

    name: str
    train: Sequence[Pair]
    test: Sequence[Pair]
    passages: Sequence[Passage]
    dev: Sequence[Pair] = ()  # neither trained nor tested on: choose settings by them
    notes: tuple[str, ...] = ()  # sentences on what was left out while reading
    memo: dict = field(default_factory=dict, repr=False, compare=False)  # token ids, for all runs

    def __repr__(self):
        notes = "".join(f"\n  {note}" for note in self.notes)
        return (
            f"Pairs({self.name!r}: {len(self.train):,} to train on, {len(self.test):,} to test on, "
            f"{len(self.passages):,} passages){notes}"
        )

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Passage id -> its row in `passages`."""
        return {passage.id: row for row, passage in enumerate(self.passages)}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the training pairs: runs resume only on the same pairs."""
        return hash_pairs(self.train)

    @cached_property
    def hard_negatives_fingerprint(self) -> str:
        """A hash of the hard negatives' texts, of which `fingerprint` covers only the ids."""
        negatives = {p.id: p for pair in self.train for p in pair.hard_negatives}
        return hash_passages(negatives.values())

    @cached_property
    def passages_fingerprint(self) -> str:
        """A hash of all passages."""
        return hash_passages(self.passages)

    def with_hard_negatives(self) -> tuple[list[int], str]:
        """(rows of `train` with a hard negative, a sentence on the others, if there are any)."""
        rows = [row for row, pair in enumerate(self.train) if pair.hard_negatives]
        total, dropped = len(self.train), len(self.train) - len(rows)
        note = f"{dropped:,} of {total:,} training pairs have no hard negative and are left out."
        return rows, note if dropped else ""

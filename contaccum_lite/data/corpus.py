"""From records to pairs: each passage once, which hard negatives stay, which pairs are held out."""

from __future__ import annotations

import hashlib
from pathlib import Path

from contaccum_lite.data.types import Pair, Pairs, Passage

MARGIN = 3.0  # of cross-encoder scores, as in the paper's code


class Corpus:
    """Every passage once: the same title and text give the same `Passage`."""

    def __init__(self):
        self._by_text: dict[tuple[str, str], Passage] = {}

    @property
    def passages(self) -> list[Passage]:
        return list(self._by_text.values())

    def add(self, title: str, text: str) -> Passage:
        """The passage of this title and text; a new one has its row as its id."""
        key = (title, text)
        if key not in self._by_text:
            self._by_text[key] = Passage(str(len(self._by_text)), title, text)
        return self._by_text[key]


def filter_hard_negatives(
    positive_scores: list[float | None],
    negatives: list[tuple[Passage, float | None]],
    margin: float = MARGIN,
) -> list[Passage]:
    """The negatives whose cross-encoder score is at least `margin` *below* the lowest positive's.

    Those without a score stay. This is what the paper's code does; its text (Section 4) says
    "higher", which would keep the unlabelled positives.
    """
    known = [score for score in positive_scores if score is not None]
    if not known:
        return [passage for passage, _ in negatives]
    highest = min(known) - margin
    return [passage for passage, score in negatives if score is None or score <= highest]


def to_pairs(
    name: str,
    train: list[Pair],
    test: list[Pair] | None,
    corpus: Corpus,
    test_pairs: int,
    path: Path,
    notes: tuple[str, ...] = (),
) -> Pairs:
    """The data set of what was read.

    Without test pairs of their own, `test_pairs` of the training pairs, but at most a fifth, are
    held out by a hash of the question.
    """
    if not train:
        raise ValueError(f"{path}: found no pair of a query and a passage; expected at least one.")
    if test is None:
        held_out = _held_out(train, min(test_pairs, len(train) // 5))
        test = [pair for pair in train if pair.id in held_out]
        train = [pair for pair in train if pair.id not in held_out]
    return Pairs(name, train, test, corpus.passages, notes=notes)


def _held_out(pairs: list[Pair], room: int) -> set[str]:
    """The ids of up to `room` pairs; pairs of one question stay together."""
    ids_of: dict[str, list[str]] = {}
    for pair in pairs:
        ids_of.setdefault(pair.query, []).append(pair.id)
    held_out = set()
    for query in sorted(ids_of, key=lambda query: hashlib.sha256(query.encode()).digest()):
        if len(ids_of[query]) <= room:
            held_out.update(ids_of[query])
            room -= len(ids_of[query])
    return held_out

"""A small made-up corpus of which every fact is known."""

from __future__ import annotations

import random
from itertools import combinations

from contaccum_lite.data.mining import HARD_NEGATIVES
from contaccum_lite.data.types import Pair, Pairs, Passage


def toy_pairs(train: int = 512, test: int = 128, seed: int = 0, progress: bool = False) -> Pairs:
    """Invented text for tests and first steps.

    A query names three concepts, and so does its passage. Each concept has a word for queries and
    another for passages, so that nothing matches until a retriever has learnt the words. A hard
    negative shares two of the three concepts. Made in under 0.1 s, the same for the same seed.
    Raises `ValueError` for more than 5,000 pairs in all.
    """
    if not (train > 1 and test >= 0 and train + test <= 5_000):
        raise ValueError(
            f"toy pairs: {train} to train on and {test} to test on; "
            "there are words for 2 to 5000 in all."
        )
    rng = random.Random(seed)
    words = _make_words(rng)
    query_words, passage_words, filler = words[0:80:2], words[1:80:2], words[100:]

    triples: dict[tuple[int, ...], None] = {}  # of concepts; a dict, for its order
    while len(triples) < train + test:
        triples[tuple(sorted(rng.sample(range(len(query_words)), 3)))] = None
    queries, passages = [], []
    for row, triple in enumerate(triples):
        queries.append(" ".join(query_words[concept] for concept in rng.sample(triple, 3)))
        body = [passage_words[concept] for concept in triple] + rng.choices(filler, k=9)
        rng.shuffle(body)
        passages.append(Passage(f"p{row}", f"toy.{row}", " ".join(body)))

    pairs = []
    for passage, query, rows in zip(passages, queries, _hard_rows(list(triples), train)):
        negatives = tuple(passages[row] for row in rows)
        pair = Pair(
            passage.title, query, passage.text, passage.title, negatives, passage_id=passage.id
        )
        pairs.append(pair)
    return Pairs("toy", pairs[:train], pairs[train:], passages)


def _make_words(rng: random.Random) -> list[str]:
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    return list(dict.fromkeys("".join(rng.choices(syllables, k=3)) for _ in range(400)))


def _hard_rows(triples: list[tuple[int, ...]], train: int) -> list[list[int]]:
    """The training rows of each triple's hard negatives: those that share two concepts with it."""
    rows_with: dict[tuple[int, ...], list[int]] = {}
    for row, triple in enumerate(triples):
        for two in combinations(triple, 2):
            rows_with.setdefault(two, []).append(row)
    hard_rows = []
    for row, triple in enumerate(triples):
        similar = [other for two in combinations(triple, 2) for other in rows_with[two]]
        hard = [other for other in similar if other != row and other < train][:HARD_NEGATIVES]
        next_row = (row + 1) % train
        if not hard and next_row != row:
            hard = [next_row]
        hard_rows.append(hard)
    return hard_rows

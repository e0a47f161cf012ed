"""Hard negatives by BM25, and pairs cropped from passages."""

from __future__ import annotations

import random
from collections.abc import Sequence

from contaccum_lite.data.python_docs import normalize_text
from contaccum_lite.data.types import Pair, Pairs, Passage

HARD_NEGATIVES = 4  # mined per training pair of python-docs


def mine_hard_negatives(
    queries: Sequence[str], passages: Sequence[Passage], count: int
) -> list[list[int]]:
    """The `count` best passages for each query by BM25, as indices.

    Passage i answers query i: it is left out, and so is a copy of its text.
    """
    import bm25s

    if len(passages) < 2:
        return [[] for _ in queries]
    documents = [f"{passage.title} {passage.text}" for passage in passages]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(documents, show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(queries), show_progress=False)
    depth = min(count + 4, len(passages))
    all_rows, all_scores = index.retrieve(tokens, k=depth, show_progress=False)
    texts = [normalize_text(passage.text) for passage in passages]
    negatives = []
    for answer, rows, scores in zip(texts, all_rows, all_scores):
        mined = [int(row) for row, score in zip(rows, scores) if score > 0 and texts[row] != answer]
        negatives.append(mined[:count])
    return negatives


def crop_pairs(pairs: Pairs, seed: int = 0) -> Pairs:
    """Unsupervised pre-training pairs: two random crops of every training passage.

    A crop has a fifth to a half of the passage's words. What is searched and tested stays as in
    `pairs`; the crops' own passages are added to what is searched.
    """
    rng = random.Random(seed)
    train, crops = [], []
    for pair in pairs.train:
        words = f"{pair.title} {pair.passage}".split()
        passage = Passage(f"crop.{pair.id}", "", _crop(words, rng))
        crops.append(passage)
        query = _crop(words, rng)
        train.append(Pair(passage.id, query, passage.text, passage_id=passage.id))
    name = f"{pairs.name}, random crops"
    return Pairs(name, train, pairs.test, [*pairs.passages, *crops], pairs.dev, pairs.notes)


def _crop(words: list[str], rng: random.Random) -> str:
    length = max(3, int(len(words) * rng.uniform(0.2, 0.5)))
    first = rng.randrange(max(1, len(words) - length + 1))
    return " ".join(words[first : first + length])

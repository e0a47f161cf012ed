"""Pairs of a query and the passage that answers it, and where they come from.

load_pairs("toy")            generated, seeded, at once
load_pairs("python-docs")    the documentation of the installed packages: real text, built once, then cached
load_pairs("dpr:FILE")       DPR's JSON             (also .gz)
load_pairs("beir:FOLDER")    BEIR's corpus.jsonl, queries.jsonl, qrels/*.tsv
load_pairs("jsonl:FILE")     one {"query": …, "passage": …} a line (also .gz)
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

TEST_PAIRS = 1000
HARD_NEGATIVES = 4  # mined per training pair of python-docs


class Passage(NamedTuple):
    """A text that can be found. Two passages of the same title and text are one passage."""

    id: str
    title: str
    text: str


class Pair(NamedTuple):
    """A query and the passage that answers it; `relevant` grades every passage that answers it, by id."""

    id: str
    query: str
    passage: str
    title: str = ""
    hard_negatives: tuple[Passage, ...] = ()
    answers: tuple[str, ...] = ()
    passage_id: str = ""
    relevant: dict[str, int] | None = None


@dataclass(frozen=True)
class Pairs:
    """A data set: pairs to train on, pairs to test on, and all passages that a search looks through.

    `dev` holds pairs that are neither trained on nor tested on: choose settings by them. `notes` says in sentences what
    was left out while reading.
    """

    name: str
    train: Sequence[Pair]
    test: Sequence[Pair]
    passages: Sequence[Passage]
    dev: Sequence[Pair] = ()
    notes: tuple[str, ...] = ()
    memo: dict = field(
        default_factory=dict, repr=False, compare=False
    )  # token tables, shared by runs on the same pairs

    def __repr__(self):
        said = "".join(f"\n  {note}" for note in self.notes)
        return (
            f"Pairs({self.name!r}: {len(self.train):,} to train on, {len(self.test):,} to test on, "
            f"{len(self.passages):,} passages){said}"
        )

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Passage id → its row in `passages`."""
        return {passage.id: row for row, passage in enumerate(self.passages)}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the training pairs, with their hard negatives by id.

        Runs resume only on the same pairs, and the vocabulary is kept in the cache under it.
        """
        digest = hashlib.sha256()
        for pair in self.train:
            for text in (
                pair.id,
                pair.query,
                pair.title,
                pair.passage,
                *(h.id for h in pair.hard_negatives),
            ):
                digest.update(text.encode() + b"\0")
        return digest.hexdigest()[:16]

    @cached_property
    def hard_negatives_fingerprint(self) -> str:
        """A hash of the hard negatives' texts, which `fingerprint` does not cover."""
        return _digest({h.id: h for pair in self.train for h in pair.hard_negatives}.values())

    @cached_property
    def passages_fingerprint(self) -> str:
        """A hash of all passages: a cache of passages holds those of the test pairs too."""
        return _digest(self.passages)

    def with_hard_negatives(self) -> tuple[list[int], str]:
        """Rows of `train` that have a hard negative, and a sentence on those that have none (empty if all have one)."""
        rows = [row for row, pair in enumerate(self.train) if pair.hard_negatives]
        dropped = len(self.train) - len(rows)
        return (
            rows,
            f"{dropped:,} of {len(self.train):,} training pairs have no hard negative and are left out."
            if dropped
            else "",
        )


def _digest(passages: Iterable[Passage]) -> str:
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(json.dumps(passage).encode())
    return digest.hexdigest()[:16]


def load_pairs(source: str, **options) -> Pairs:
    """Pairs from a source: "python-docs", "toy", "dpr:FILE", "beir:FOLDER" or "jsonl:FILE".

    Options are the reader's: `test=FILE` names a test file for dpr and jsonl (left out: up to 1,000 pairs are held out,
    by a hash of the question); `margin=3.0` is the cross-encoder rule for hard negatives that come with scores;
    `progress=False` hides the bar. Raises `ValueError` that says what was found, where, and what was expected.
    """
    from . import formats
    from .settings import check_text

    check_text(source, "the source", "rename the file in UTF-8")
    kind, colon, place = source.partition(":")
    if not colon:
        makers = {"python-docs": python_docs_pairs, "toy": toy_pairs}
        if kind in makers:
            return makers[kind](**options)
    if not colon or kind not in formats.READERS:
        raise ValueError(
            f"no pairs called {source!r}: choose 'python-docs', 'toy', 'dpr:FILE', 'beir:FOLDER' or 'jsonl:FILE'."
        )
    if not place:
        raise ValueError(f"{source!r} names no file: write '{kind}:' and then a path.")
    return formats.READERS[kind](Path(place), **options)


# --- python-docs -------------------------------------------------------------------------------------------------------


def python_docs_pairs(progress: bool = True) -> Pairs:
    """(summary → explanation) pairs from the documentation of the installed packages; built once, then read from a cache.

    The query is a docstring's first paragraph, the passage the rest of it, the title its qualified name. 1,000 pairs are
    held out for the test by a hash of the name; 4 hard negatives per training pair are mined by BM25. Notebook 00.
    """
    from . import pydocs

    reader = Path(
        pydocs.__file__
    ).read_bytes()  # a change of the reader makes a new corpus, as a change of what it reads does
    key = hashlib.sha256(
        json.dumps([pydocs.versions(), HARD_NEGATIVES]).encode() + reader
    ).hexdigest()[:16]
    stored = cached_json(
        f"python-docs-{key}.json", lambda: _build_python_docs(progress), _check_python_docs
    )
    passages = [Passage(str(row), title, text) for row, (title, _, text, _) in enumerate(stored)]
    groups: dict[str, list[Pair]] = {"train": [], "held out": []}
    ranks = {}
    for passage, (title, summary, text, negatives) in zip(passages, stored):
        ranks[title] = pydocs.held_out_rank(title)
        group = groups["train" if ranks[title] is None else "held out"]
        group.append(
            Pair(
                title,
                summary,
                text,
                title,
                tuple(passages[row] for row in negatives),
                passage_id=passage.id,
            )
        )
    held_out = sorted(groups["held out"], key=lambda pair: ranks[pair.id])
    return Pairs(
        "python-docs", groups["train"], held_out[:TEST_PAIRS], passages, held_out[TEST_PAIRS:]
    )


def _check_python_docs(stored) -> None:
    """Refuse what `_build_python_docs` cannot have made."""
    if not isinstance(stored, list) or not stored:
        raise ValueError("expected a list of entries")
    for entry in stored:
        if not isinstance(entry, list) or [type(value) for value in entry] != [str, str, str, list]:
            raise ValueError("expected three texts and a list in each entry")
        if not all(type(row) is int and 0 <= row < len(stored) for row in entry[3]):
            raise ValueError("expected rows of entries as negatives")


def _build_python_docs(progress: bool) -> list:
    """[title, summary, explanation, rows of its hard negatives] for each pair: what the cache holds."""
    from . import pydocs

    found = pydocs.read_docs(lambda files: _bar(files, "reading documentation", progress))
    train = [row for row, (name, _, _) in enumerate(found) if pydocs.held_out_rank(name) is None]
    mined = mine_hard_negatives(
        [found[row][1] for row in train],
        [Passage("", found[row][0], found[row][2]) for row in train],
        HARD_NEGATIVES,
    )
    negatives = {row: [train[n] for n in chosen] for row, chosen in zip(train, mined)}
    return [[*entry, negatives.get(row, [])] for row, entry in enumerate(found)]


def mine_hard_negatives(
    queries: Sequence[str], passages: Sequence[Passage], count: int
) -> list[list[int]]:
    """For query i the `count` best passages by BM25 that are neither passage i nor a copy of its text, as indices."""
    import bm25s

    from .pydocs import normal

    if len(passages) < 2:
        return [[] for _ in queries]
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize([f"{p.title} {p.text}" for p in passages], show_progress=False),
        show_progress=False,
    )
    tokens = bm25s.tokenize(list(queries), show_progress=False)
    rows, scores = index.retrieve(tokens, k=min(count + 4, len(passages)), show_progress=False)
    texts = [normal(passage.text) for passage in passages]
    return [
        [int(row) for row, score in zip(*best) if score > 0 and texts[row] != texts[i]][:count]
        for i, best in enumerate(zip(rows, scores))
    ]


# --- toy ---------------------------------------------------------------------------------------------------------------


def toy_pairs(train: int = 512, test: int = 128, seed: int = 0, progress: bool = False) -> Pairs:
    """Invented text for tests and first steps: a query names three things in one tongue, its passage in another.

    Each thing has a word for queries and another for passages, so that nothing matches until a retriever has learnt the
    words. A hard negative shares two of the three things. Made in under 0.1 s, the same for the same seed.
    """
    draw = random.Random(seed)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    words = list(dict.fromkeys("".join(draw.choices(syllables, k=3)) for _ in range(400)))
    things = [(words[i], words[i + 1]) for i in range(0, 80, 2)]
    filler = words[100:]
    if not (train > 1 and test >= 0 and train + test <= 5_000):
        raise ValueError(
            f"toy pairs: {train} to train on and {test} to test on; there are words for 2 to 5000 in all."
        )

    triples: dict[tuple, int] = {}
    while len(triples) < train + test:
        triples.setdefault(tuple(sorted(draw.sample(range(len(things)), 3))), len(triples))
    sharing: dict[tuple, list[int]] = {}
    for a, b, c in triples:
        for two in ((a, b), (a, c), (b, c)):
            sharing.setdefault(two, []).append(triples[a, b, c])

    queries, passages = [], []
    for row, triple in enumerate(triples):
        queries.append(" ".join(things[t][0] for t in draw.sample(triple, 3)))
        body = [things[t][1] for t in triple] + draw.choices(filler, k=9)
        draw.shuffle(body)
        passages.append(Passage(f"p{row}", f"toy.{row}", " ".join(body)))
    pairs = []
    for (a, b, c), row in triples.items():
        near = [
            r for two in ((a, b), (a, c), (b, c)) for r in sharing[two] if r != row and r < train
        ]
        hard = near[:HARD_NEGATIVES] or [(row + 1) % train]
        pairs.append(
            Pair(
                f"toy.{row}",
                queries[row],
                passages[row].text,
                passages[row].title,
                tuple(passages[r] for r in hard if r != row),
                passage_id=passages[row].id,
            )
        )
    return Pairs("toy", pairs[:train], pairs[train:], passages)


def crop_pairs(pairs: Pairs, seed: int = 0) -> Pairs:
    """Unsupervised pre-training pairs: two random crops, a fifth to a half of its words each, of every training passage.

    What is searched and tested stays as in `pairs`; the crops' own passages are added to what is searched.
    """
    draw, train, crops = random.Random(seed), [], []

    def crop(words: list[str]) -> str:
        length = max(3, int(len(words) * draw.uniform(0.2, 0.5)))
        first = draw.randrange(max(1, len(words) - length + 1))
        return " ".join(words[first : first + length])

    for pair in pairs.train:
        words = f"{pair.title} {pair.passage}".split()
        crops.append(Passage(f"crop.{pair.id}", "", crop(words)))
        train.append(
            Pair(f"crop.{pair.id}", crop(words), crops[-1].text, "", (), passage_id=crops[-1].id)
        )
    return Pairs(
        f"{pairs.name}, random crops",
        train,
        pairs.test,
        [*pairs.passages, *crops],
        pairs.dev,
        pairs.notes,
    )


# --- the cache ---------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where built corpora and vocabularies are kept: $CONTACCUM_LITE_CACHE, or the user's cache folder."""
    from platformdirs import user_cache_path

    named = os.environ.get("CONTACCUM_LITE_CACHE")
    return Path(named) if named else user_cache_path("contaccum_lite")


def cached_json(name: str, build, check=lambda value: None):
    """The JSON value kept in the cache under this name, or what `build()` gives, which is then kept.

    A file that cannot be read, or whose value `check` refuses by a ValueError, is built again;
    a folder that cannot be written to is done without.
    """
    path = cache_folder() / name
    try:
        value = json.loads(path.read_bytes())
        check(value)
        return value
    except (OSError, ValueError, RecursionError):
        value = build()
    try:
        write_atomically(path, json.dumps(value, ensure_ascii=False).encode())
    except OSError:
        pass
    return value


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = (
        path.parent / f".{path.name}-{secrets.token_hex(4)}"
    )  # with the rights of any other file, unlike mkstemp's
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _bar(items, label: str, show: bool):
    if not show:
        return items
    from tqdm.auto import tqdm

    return tqdm(items, desc=label, unit="file", leave=False)

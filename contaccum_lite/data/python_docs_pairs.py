"""The data set "python-docs": pairs made of the docstrings that `python_docs` reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import contaccum_lite.data.python_docs as python_docs
from contaccum_lite.data.mining import HARD_NEGATIVES, mine_hard_negatives
from contaccum_lite.data.types import Pair, Pairs, Passage
from contaccum_lite.utils.files import cached_json

TEST_PAIRS = 1000


def python_docs_pairs(progress: bool = True) -> Pairs:
    """(summary → explanation) pairs from the documentation of the installed packages.

    The query is a docstring's first paragraph, the passage the rest of it, the title its qualified
    name. 1,000 pairs are held out for the test by a hash of the name; 4 hard negatives per training
    pair are mined by BM25. The pairs are built once, then read from a cache. Notebook 00.
    """
    # another reader makes another corpus, as other packages do
    source_code = Path(python_docs.__file__).read_bytes()
    versions = json.dumps([python_docs.versions(), HARD_NEGATIVES]).encode()
    key = hashlib.sha256(versions + source_code).hexdigest()[:16]
    entries = cached_json(
        f"python-docs-{key}.json", lambda: _build_python_docs(progress), _check_python_docs
    )
    passages = [Passage(str(row), title, text) for row, (title, _, text, _) in enumerate(entries)]
    train, held_out = [], []
    for passage, (title, summary, text, negatives) in zip(passages, entries):
        hard_negatives = tuple(passages[row] for row in negatives)
        pair = Pair(title, summary, text, title, hard_negatives, passage_id=passage.id)
        rank = python_docs.held_out_rank(title)
        if rank is None:
            train.append(pair)
        else:
            held_out.append((rank, pair))
    held_out = [pair for _, pair in sorted(held_out, key=lambda ranked: ranked[0])]
    test, dev = held_out[:TEST_PAIRS], held_out[TEST_PAIRS:]
    return Pairs("python-docs", train, test, passages, dev)


def _build_python_docs(progress: bool) -> list[list]:
    """[title, summary, explanation, rows of its hard negatives] for each pair: what is cached."""
    docs = python_docs.read_docs(lambda files: _progress_bar(files) if progress else files)
    train = [row for row, (name, _, _) in enumerate(docs) if _is_trained_on(name)]
    summaries = [docs[row][1] for row in train]
    passages = [Passage("", docs[row][0], docs[row][2]) for row in train]
    negatives = {}
    for row, mined in zip(train, mine_hard_negatives(summaries, passages, HARD_NEGATIVES)):
        negatives[row] = [train[index] for index in mined]
    return [[*entry, negatives.get(row, [])] for row, entry in enumerate(docs)]


def _is_trained_on(name: str) -> bool:
    return python_docs.held_out_rank(name) is None


def _progress_bar(files: list):
    from tqdm.auto import tqdm

    return tqdm(files, desc="reading documentation", unit="file", leave=False)


def _check_python_docs(entries) -> None:
    """Refuse what `_build_python_docs` cannot have made."""
    if not isinstance(entries, list) or not entries:
        raise ValueError("expected a list of entries")
    for entry in entries:
        if not isinstance(entry, list) or [type(value) for value in entry] != [str, str, str, list]:
            raise ValueError("expected three texts and a list in each entry")
        if not all(type(row) is int and 0 <= row < len(entries) for row in entry[3]):
            raise ValueError("expected rows of entries as negatives")

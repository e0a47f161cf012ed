"""The capstone's held-out pairs: documentation that "python-docs" leaves out.

"python-docs" has public names only: of those, every pair is trained on, or is a dev or test pair
that notebooks look at. So these pairs are of private names (one part of the name begins with an
underscore), from the same files of the same packages, by the same rules. Pairs that share a summary
or an explanation with any pair of "python-docs" are left out. A hash of the name chooses 1,000.
Nothing here changes "python-docs": its training pairs, and so vocabulary and pretrained start, are
the same.
"""

from __future__ import annotations

import ast
import dataclasses
import gc
import hashlib
import json
from pathlib import Path

from contaccum_lite.data import python_docs
from contaccum_lite.data.python_docs import normalize_text, split_docstring
from contaccum_lite.data.types import Pair, Pairs, Passage
from contaccum_lite.utils.files import cached_json

HELD_OUT_PAIRS = 1000


def with_held_out_pairs(pairs: Pairs) -> Pairs:
    """ "python-docs" with 1,000 other pairs to test on, and their passages among those searched.

    pairs: from `load_pairs("python-docs")`. Training and dev pairs are the same ones. The pairs are
    built once, in about 20 seconds, then read from a cache. Raises `ValueError` for other pairs.
    """
    if pairs.name != "python-docs":
        raise ValueError(
            f'the pairs are {pairs.name!r}: the held-out pairs belong to load_pairs("python-docs").'
        )
    sources = [Path(module).read_bytes() for module in (python_docs.__file__, __file__)]
    versions = json.dumps([python_docs.versions(), pairs.fingerprint]).encode()
    key = hashlib.sha256(b"\0".join([versions, *sources])).hexdigest()[:16]
    entries = cached_json(f"held-out-{key}.json", lambda: _build(pairs), _check)
    held_out, passages = [], []
    for row, (name, summary, explanation) in enumerate(entries):
        passage = Passage(f"held-out-{row}", name, explanation)
        passages.append(passage)
        held_out.append(Pair(name, summary, explanation, name, passage_id=passage.id))
    return dataclasses.replace(
        pairs, test=held_out, passages=[*pairs.passages, *passages], memo=_start_of(pairs)
    )


def _start_of(pairs: Pairs) -> dict:
    """What was made of the training pairs: not of the passages, which are others now."""
    memo = {}
    for key, value in pairs.memo.items():
        is_vocabulary = isinstance(key, tuple) and key[0] == "vocabulary"
        if is_vocabulary or (isinstance(key, str) and key.startswith("start-")):
            memo[key] = value
    return memo


def _build(pairs: Pairs) -> list[list[str]]:
    """[name, summary, explanation] of the 1,000 private names with the lowest hash."""
    known = {("explanation", normalize_text(passage.text)) for passage in pairs.passages}
    for pair in (*pairs.train, *pairs.dev, *pairs.test):
        known.add(("summary", normalize_text(pair.query)))
    chosen = []
    for name, docstring in sorted(_private_docstrings(), key=_rank):
        summary_and_rest = split_docstring(docstring, name)
        if summary_and_rest is None:
            continue
        summary, explanation = summary_and_rest
        keys = {
            ("summary", normalize_text(summary)),
            ("explanation", normalize_text(explanation)),
        }
        if keys.isdisjoint(known):
            known |= keys
            chosen.append([name, summary, explanation])
        if len(chosen) == HELD_OUT_PAIRS:
            break
    return chosen


def _rank(entry: tuple[str, str]) -> tuple[bytes, str]:
    """By a hash of the name; of one name's docstrings, by the text."""
    name, docstring = entry
    return hashlib.sha256(f"held out: {name}".encode()).digest(), docstring


def _private_docstrings() -> set[tuple[str, str]]:
    """(qualified name, docstring) of all private names, but those with two underscores."""
    collecting = gc.isenabled()
    gc.disable()  # syntax trees have no cycles
    try:
        docstrings = set()
        for file in python_docs.source_files():
            tree = python_docs.parse_source(file.path.read_bytes())
            if tree is None:
                continue
            own = ast.get_docstring(tree, clean=False)
            for name, docstring in python_docs.definitions(tree.body, file.module, own):
                if docstring and not python_docs.is_public(name) and "__" not in name:
                    docstrings.add((name, docstring))
        return docstrings
    finally:
        if collecting:
            gc.enable()


def _check(entries) -> None:
    """Refuse what `_build` cannot have made."""
    if not isinstance(entries, list) or not entries:
        raise ValueError("expected a list of entries")
    for entry in entries:
        if not isinstance(entry, list) or [type(value) for value in entry] != [str] * 3:
            raise ValueError("expected three texts in each entry")

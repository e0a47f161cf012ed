"""Hashes by which a run or a cache recognises the data that it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable


def hash_pairs(pairs: Iterable) -> str:
    """A hash of the pairs' ids and texts, and of the ids of their hard negatives."""
    digest = hashlib.sha256()
    for pair in pairs:
        negatives = [negative.id for negative in pair.hard_negatives]
        for text in (pair.id, pair.query, pair.title, pair.passage, *negatives):
            digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def hash_passages(passages: Iterable) -> str:
    """A hash of the passages: their ids, titles and texts."""
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(json.dumps(passage).encode())
    return digest.hexdigest()[:16]

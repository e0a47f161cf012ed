"""Exact search through FAISS, and the measures of a ranking."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .settings import check_text, shown

TOP = (1, 5, 20, 100)


class Hit(NamedTuple):
    """A passage that a search found. It shows its name and score; its text is in `passage`."""

    score: float
    id: str
    title: str
    passage: str

    def __repr__(self):
        return f"{self.score:8.2f}  {one_line(self.title or self.id)}"


class Hits(list):
    """Hits, best first, shown one a line."""

    def __repr__(self):
        return "\n".join(map(repr, self)) or "(nothing found)"


#: Joiners of letters, which Persian, the scripts of India and emoji are written with.
_JOINERS = "\u200c\u200d"
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def acts(character: str) -> bool:
    """Whether a terminal would act on this character instead of showing it.

    That is a control character other than tab and newline, a mark that is not seen (such as one of
    the direction of writing), another separator of lines, or half of a surrogate pair.
    """
    if character in "\t\n" or character in _JOINERS:
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


class _Shown(dict):
    """What `plain` shows for a character, by its number: made when it is first met."""

    def __missing__(self, number: int) -> str:
        character = chr(number)
        if acts(character):
            instead = {"Zl": "\n", "Zp": "\n", "Cs": "\ufffd"}
            character = instead.get(unicodedata.category(character), "")
        self[number] = character
        return character


_SHOWN = _Shown()


def plain(text: str) -> str:
    """Text of a data set without terminal codes and control characters, for where it is printed."""
    return _TERMINAL_CODE.sub("", text).translate(_SHOWN)


def one_line(text: str) -> str:
    """`plain` text in one line."""
    return " ".join(plain(text).split())


def check_query(query: str, k: int) -> None:
    """Raise `ValueError` where no search can be made for this query and this number of hits."""
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"the query is {shown(query)}: it must be a text.")
    check_text(query, "the query")
    if k < 1:
        raise ValueError(f"k is {k}: it must be 1 or more.")


def rank(queries: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k passages of the highest inner product for each query, exactly: (scores, rows), each (queries, k), best first."""
    import faiss

    index = faiss.IndexFlatIP(passages.shape[1])
    index.add(np.ascontiguousarray(passages, dtype=np.float32))
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    return ranked(*index.search(queries, min(k, len(passages))))


def ranked(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What FAISS gave. Raises `ValueError` where it could not rank: there it gives the row -1."""
    bad = (rows < 0) | ~np.isfinite(scores)
    if bad.any():
        raise ValueError(
            f"query {int(bad.any(1).argmax()) + 1} and a passage have a score that is "
            "not finite: their vectors are not finite, or too long. Make them again "
            "with towers that are trained at a lower learning_rate."
        )
    return scores, rows


def finite(vectors: np.ndarray, name: Callable[[int], str]) -> np.ndarray:
    """The vectors, (n, d). Raises `ValueError` where one is not finite; name(row) is its text's."""
    good = np.isfinite(vectors).all(1)
    if not good.all():
        raise ValueError(
            f"the vector of {name(int(good.argmin()))} is not finite: the towers' "
            "weights are damaged, or their training diverged. Take an earlier "
            "checkpoint, or train again with a lower learning_rate."
        )
    return vectors


def ranking_measures(rows: np.ndarray, relevant: Sequence[dict[int, int]]) -> dict[str, float]:
    """top@1, 5, 20, 100, mrr@10, ndcg@10 and recall@100 in [0, 1], the mean over queries.

    rows: (queries, k) passages, best first, k ≥ 100 or all there are; relevant: per query {row: grade above 0}.
    top@k is DPR's: whether one of the first k is relevant.
    """
    if not len(rows):
        raise ValueError("no test queries: nothing to measure.")
    grades = np.zeros(rows.shape)
    for place, (found, wanted) in enumerate(zip(rows, relevant)):
        for row, grade in wanted.items():
            grades[place, found == row] = grade
    hit = grades > 0  # (queries, k)
    first = np.where(hit.any(1), hit.argmax(1), rows.shape[1] + 10**9)
    measures = {f"top@{k}": float((first < k).mean()) for k in TOP}
    measures["mrr@10"] = float(np.where(first < 10, 1 / (first + 1), 0).mean())
    discounts = 1 / np.log2(np.arange(10) + 2)
    gained = (grades[:, :10] * discounts[: grades.shape[1]]).sum(1)
    ideal = [
        sum(g * d for g, d in zip(sorted(wanted.values(), reverse=True), discounts))
        for wanted in relevant
    ]
    measures["ndcg@10"] = float(np.mean([g / i if i else 0.0 for g, i in zip(gained, ideal)]))
    measures["recall@100"] = float(
        np.mean(
            [h[:100].sum() / len(wanted) if wanted else 0.0 for h, wanted in zip(hit, relevant)]
        )
    )
    return measures


def answer_measures(
    rows: np.ndarray, answers: Sequence[Sequence[str]], texts: Sequence[str]
) -> dict[str, float]:
    """answer_top@k: whether one of the first k passages contains an answer string, as DPR defines it (`has_answer`)."""
    known: dict[int, list[str]] = {}
    first = np.full(len(rows), 10**9)
    for place, (found, wanted) in enumerate(zip(rows, answers)):
        patterns = [words for words in map(_words, wanted) if words]
        for position, row in enumerate(found[: max(TOP)]):
            if row not in known:
                known[row] = _words(texts[row])
            if any(_contains(known[row], words) for words in patterns):
                first[place] = position
                break
    return {f"answer_top@{k}": float((first < k).mean()) for k in TOP}


def has_answer(answers: Sequence[str], text: str) -> bool:
    """Whether an answer occurs in the text as a run of whole words, case and Unicode composition aside (DPR's rule)."""
    words = _words(text)
    return any(_contains(words, pattern) for pattern in map(_words, answers) if pattern)


_WORD = re.compile(r"[\w\u0300-\u036f]+|[^\w\s]")


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFD", text).lower())


def _contains(words: list[str], pattern: list[str]) -> bool:
    n = len(pattern)
    return any(
        words[start] == pattern[0] and words[start : start + n] == pattern
        for start in range(len(words) - n + 1)
    )

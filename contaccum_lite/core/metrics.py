"""Exact search, and the metrics of a ranking."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from contaccum_lite.utils.text import check_text, one_line, shown

CUTOFFS = (1, 5, 20, 100)
_NEVER = 10**9  # the rank of what was not found


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


def exact_search(
    queries: np.ndarray, passages: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k passages of the highest inner product for each query, exactly.

    Returns (scores, rows), each (queries, k), best first.
    """
    import faiss

    index = faiss.IndexFlatIP(passages.shape[1])
    index.add(np.ascontiguousarray(passages, dtype=np.float32))
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    return check_ranking(*index.search(queries, min(k, len(passages))))


def check_ranking(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What FAISS gave. Raises `ValueError` where it could not rank: there it gives the row -1."""
    bad = (rows < 0) | ~np.isfinite(scores)
    if bad.any():
        raise ValueError(
            f"query {int(bad.any(1).argmax()) + 1} and a passage have a score that is not finite: "
            "their vectors are not finite, or too long. Make them again with towers that are "
            "trained at a lower learning_rate."
        )
    return scores, rows


def check_finite(vectors: np.ndarray, name: Callable[[int], str]) -> np.ndarray:
    """The vectors, (n, d). Raises `ValueError` where one is not finite; name(row) is its text's."""
    good = np.isfinite(vectors).all(1)
    if not good.all():
        raise ValueError(
            f"the vector of {name(int(good.argmin()))} is not finite: the towers' weights are "
            "damaged, or their training diverged. Take an earlier checkpoint, or train again with "
            "a lower learning_rate."
        )
    return vectors


def check_query(query: str, k: int) -> None:
    """Raise `ValueError` where no search can be made for this query and this number of hits."""
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"the query is {shown(query)}: it must be a text.")
    check_text(query, "the query")
    if k < 1:
        raise ValueError(f"k is {k}: it must be 1 or more.")


def retrieval_metrics(rows: np.ndarray, qrels: Sequence[dict[int, int]]) -> dict[str, float]:
    """top@1, 5, 20, 100, mrr@10, ndcg@10 and recall@100 in [0, 1], the mean over queries.

    rows: (queries, k) passages, best first, k ≥ 100 or all there are. qrels: for each query, {row:
    grade above 0}. top@k is DPR's: whether one of the first k is relevant.
    """
    if not len(rows):
        raise ValueError("no test queries: nothing to measure.")
    grades = np.zeros(rows.shape)  # (queries, k)
    for query, relevant in enumerate(qrels):
        for row, grade in relevant.items():
            grades[query, rows[query] == row] = grade
    is_relevant = grades > 0
    first = np.where(is_relevant.any(1), is_relevant.argmax(1), _NEVER)
    metrics = {f"top@{k}": float((first < k).mean()) for k in CUTOFFS}
    metrics["mrr@10"] = float(np.where(first < 10, 1 / (first + 1), 0).mean())
    metrics["ndcg@10"] = float(np.mean(_ndcg(grades, qrels)))
    metrics["recall@100"] = float(np.mean(_recall(is_relevant, qrels)))
    return metrics


def _ndcg(grades: np.ndarray, qrels: Sequence[dict[int, int]]) -> list[float]:
    """NDCG@10 of each query."""
    discounts = 1 / np.log2(np.arange(10) + 2)
    gains = (grades[:, :10] * discounts[: grades.shape[1]]).sum(1)
    ndcg = []
    for gain, relevant in zip(gains, qrels):
        best_first = sorted(relevant.values(), reverse=True)
        ideal = sum(grade * discount for grade, discount in zip(best_first, discounts))
        ndcg.append(gain / ideal if ideal else 0.0)
    return ndcg


def _recall(is_relevant: np.ndarray, qrels: Sequence[dict[int, int]]) -> list[float]:
    """Recall@100 of each query."""
    counts = is_relevant[:, :100].sum(1)
    return [count / len(relevant) if relevant else 0.0 for count, relevant in zip(counts, qrels)]


def answer_metrics(
    rows: np.ndarray, answers: Sequence[Sequence[str]], text_of: Callable[[int], str]
) -> dict[str, float]:
    """answer_top@k: whether one of the first k passages contains an answer string, as in DPR.

    rows: (queries, k) passages, best first. text_of: row -> the passage's text.
    """
    words_of: dict[int, list[str]] = {}
    first = np.full(len(rows), _NEVER)
    for query, strings in enumerate(answers):
        patterns = [words for words in map(_words, strings) if words]
        for rank, row in enumerate(rows[query, : max(CUTOFFS)]):
            if row not in words_of:
                words_of[row] = _words(text_of(row))
            if any(_contains(words_of[row], pattern) for pattern in patterns):
                first[query] = rank
                break
    return {f"answer_top@{k}": float((first < k).mean()) for k in CUTOFFS}


def has_answer(answers: Sequence[str], text: str) -> bool:
    """Whether an answer occurs in the text as a run of whole words.

    Case and Unicode composition do not count (DPR's rule).
    """
    words = _words(text)
    return any(_contains(words, pattern) for pattern in map(_words, answers) if pattern)


_WORD = re.compile(r"[\w\u0300-\u036f]+|[^\w\s]")


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFD", text).lower())


def _contains(words: list[str], pattern: list[str]) -> bool:
    for start in range(len(words) - len(pattern) + 1):
        if words[start : start + len(pattern)] == pattern:
            return True
    return False

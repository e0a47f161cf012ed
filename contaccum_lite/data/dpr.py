"""Reads DPR's retriever files (nq-train.json and the like)."""

from __future__ import annotations

from pathlib import Path

from contaccum_lite.data.corpus import MARGIN, Corpus, filter_hard_negatives, to_pairs
from contaccum_lite.data.records import RecordLocation, iter_json_array
from contaccum_lite.data.types import Pair, Pairs, Passage


def read_dpr(
    path: Path,
    test: str | None = None,
    test_pairs: int = 1000,
    margin: float = MARGIN,
    progress: bool = True,
) -> Pairs:
    """Pairs from a list of {question, answers, positive_ctxs, negative_ctxs, hard_negative_ctxs}.

    The first positive is the passage, as in the paper's code. Questions without a positive are left
    out, and counted in a note. The corpus is every context in the files: a rank is within it, not
    within Wikipedia. Options: see `load_pairs`. Raises `ValueError` for a broken file.
    """
    corpus = Corpus()
    train, dropped = _read_file(path, corpus, margin)
    test_set = None
    if test:
        test_set, dropped_of_test = _read_file(Path(test), corpus, margin)
        dropped += dropped_of_test
    notes = ()
    if dropped:
        notes = (f"{dropped:,} questions have no positive passage and are left out.",)
    return to_pairs(f"dpr:{path.name}", train, test_set, corpus, test_pairs, path, notes)


def _read_file(path: Path, corpus: Corpus, margin: float) -> tuple[list[Pair], int]:
    """The pairs of a file, and how many questions have none."""
    pairs = []
    dropped = 0
    for row, record in enumerate(iter_json_array(path)):
        location = RecordLocation(path, f"record {row}")
        pair = _read_pair(record, str(row), location, corpus, margin)
        if pair is None:
            dropped += 1
        else:
            pairs.append(pair)
    return pairs, dropped


def _read_pair(
    record, pair_id: str, location: RecordLocation, corpus: Corpus, margin: float
) -> Pair | None:
    expected = "an object with question, answers and positive_ctxs"
    location.require(isinstance(record, dict), record, expected)
    question = location.get_str(record, "question")
    answers = location.get_list(record, "answers", str, required=False)
    positives = _read_contexts(record, "positive_ctxs", location, corpus, required=True)
    negatives = _read_contexts(record, "hard_negative_ctxs", location, corpus)
    _read_contexts(record, "negative_ctxs", location, corpus)  # they are only searched through
    if not positives:
        return None
    passage = positives[0][0]
    relevant = {positive.id: 1 for positive, _ in positives}
    hard_negatives = filter_hard_negatives([score for _, score in positives], negatives, margin)
    return Pair(
        pair_id,
        question,
        passage.text,
        passage.title,
        tuple(negative for negative in hard_negatives if negative.id not in relevant),
        tuple(answers),
        passage.id,
        relevant,
    )


def _read_contexts(
    record: dict, key: str, location: RecordLocation, corpus: Corpus, required: bool = False
) -> list[tuple[Passage, float | None]]:
    """(passage, cross-encoder score) of each context under this key."""
    contexts = []
    for index, context in enumerate(location.get_list(record, key, dict, required=required)):
        inner = location.child(f"{key}[{index}]")
        title = inner.get_str(context, "title", allow_empty=True, required=False)
        passage = corpus.add(title, inner.get_str(context, "text"))
        contexts.append((passage, inner.get_number(context, "ce_score")))
    return contexts

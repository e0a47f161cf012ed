"""Reads pairs from JSON lines: one object with a query and a passage on each line."""

from __future__ import annotations

from pathlib import Path

from contaccum_lite.data.corpus import MARGIN, Corpus, filter_hard_negatives, to_pairs
from contaccum_lite.data.records import RecordLocation, iter_jsonl
from contaccum_lite.data.types import Pair, Pairs, Passage
from contaccum_lite.utils.text import truncated_repr


def read_jsonl(
    path: Path,
    test: str | None = None,
    test_pairs: int = 1000,
    margin: float = MARGIN,
    progress: bool = True,
) -> Pairs:
    """Pairs from lines of {query, passage}.

    Optional keys are id, title, answers, hard_negatives and score. A hard negative is a string, or
    an object with passage and, optionally, title and score (then `margin` applies). Options: see
    `load_pairs`. Raises `ValueError` for a broken file.
    """
    corpus = Corpus()
    train = _read_file(path, path.name, corpus, margin)
    test_set = None
    if test:
        test_path = Path(test)
        prefix = str(test_path) if test_path.name == path.name else test_path.name
        test_set = _read_file(test_path, prefix, corpus, margin)
    return to_pairs(f"jsonl:{path.name}", train, test_set, corpus, test_pairs, path)


def _read_file(path: Path, prefix: str, corpus: Corpus, margin: float) -> list[Pair]:
    """The pairs of one file; a pair without an id gets the prefix and its line."""
    pairs = []
    line_of: dict[str, int] = {}
    for line, location, record in iter_jsonl(path, "an object with query and passage"):
        pair = _read_pair(record, location, corpus, margin, default_id=f"{prefix}:{line}")
        if pair.id in line_of:
            raise location.error(
                f"the id {truncated_repr(pair.id)}, which {path.name}, "
                f"line {line_of[pair.id]} has too",
                "an id of its own",
            )
        line_of[pair.id] = line
        pairs.append(pair)
    return pairs


def _read_pair(
    record: dict, location: RecordLocation, corpus: Corpus, margin: float, default_id: str
) -> Pair:
    pair_id = location.get_id(record, "id", default_id)
    query = location.get_str(record, "query")
    passage = _read_passage(record, location, corpus)
    negatives = []
    items = location.get_list(record, "hard_negatives", str, dict, required=False)
    for index, item in enumerate(items):
        inner = location.child(f"hard_negatives[{index}]")
        negative = item if isinstance(item, dict) else {"passage": item}
        negatives.append(
            (_read_passage(negative, inner, corpus), inner.get_number(negative, "score"))
        )
    score = location.get_number(record, "score")
    hard_negatives = filter_hard_negatives([score], negatives, margin)
    answers = location.get_list(record, "answers", str, required=False)
    return Pair(
        pair_id,
        query,
        passage.text,
        passage.title,
        tuple(negative for negative in hard_negatives if negative.id != passage.id),
        tuple(answers),
        passage.id,
    )


def _read_passage(record: dict, location: RecordLocation, corpus: Corpus) -> Passage:
    title = location.get_str(record, "title", allow_empty=True, required=False)
    return corpus.add(title, location.get_str(record, "passage"))

"""Reads a BEIR folder: corpus.jsonl, queries.jsonl, qrels/*.tsv."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from contaccum_lite.data.corpus import MARGIN, filter_hard_negatives
from contaccum_lite.data.records import (
    RecordLocation,
    find_file,
    is_id,
    is_number,
    iter_jsonl,
    iter_lines,
    split_tsv,
)
from contaccum_lite.data.types import Pair, Pairs, Passage
from contaccum_lite.utils.text import truncated_repr

_QRELS_COLUMNS = ["query-id", "corpus-id", "score"]

#: query id -> {passage id: grade}
Qrels = dict[str, dict[str, int]]


def read_beir(folder: Path, margin: float = MARGIN, progress: bool = True) -> Pairs:
    """Pairs from corpus.jsonl, queries.jsonl, qrels/train.tsv and qrels/test.tsv (or dev.tsv).

    Each file may be a .gz. There is one training pair per (query, relevant passage), and one test
    pair per query, with the grades of all its passages. hard_negatives.jsonl, if it is there, holds
    {"qid": …, "neg": [ids] or {"bm25": [ids], …}, "scores": {id: score}} on each line; with scores,
    the cross-encoder rule applies (`filter_hard_negatives`). Raises `ValueError` for a broken file.
    """
    passages: dict[str, Passage] = {}
    for location, passage_id, record in _read_texts(folder, "corpus.jsonl", passages):
        title = location.get_str(record, "title", allow_empty=True, required=False)
        text = location.get_str(record, "text", allow_empty=True)
        passages[passage_id] = Passage(passage_id, title, text)
    queries: dict[str, str] = {}
    for location, query_id, record in _read_texts(folder, "queries.jsonl", queries):
        queries[query_id] = location.get_str(record, "text")

    qrels = _read_all_qrels(folder, queries, passages)
    train_qrels = qrels.get("train", {})
    negatives = _read_hard_negatives(folder, train_qrels, queries, passages, margin)
    train = []
    for query_id, grades in train_qrels.items():
        for passage_id in grades:
            pair = _make_pair(
                f"{query_id}-{passage_id}",
                queries[query_id],
                passages[passage_id],
                grades,
                negatives.get(query_id, ()),
            )
            train.append(pair)
    notes = ()
    if not train:
        notes = (
            f"{folder.name} has no qrels/train.tsv with a relevant passage: "
            "it can be searched, not trained on.",
        )
    dev = _evaluation_pairs(qrels.get("dev", {}), queries, passages)
    test = _evaluation_pairs(qrels.get("test", {}), queries, passages)
    if "test" not in qrels:
        dev, test = [], dev
    return Pairs(f"beir:{folder.name}", train, test, list(passages.values()), dev, notes)


def _read_texts(folder: Path, name: str, known: dict) -> Iterator[tuple[RecordLocation, str, dict]]:
    """(location, _id, object) of each line; an _id that is in `known` by then is an error."""
    path = find_file(folder, name)
    if path is None:
        raise ValueError(
            f"{folder}: found no {name} (or {name}.gz); "
            "expected BEIR's corpus.jsonl, queries.jsonl and qrels/*.tsv."
        )
    for _, location, record in iter_jsonl(path, "an object with _id and text"):
        text_id = location.get_str(record, "_id")
        if text_id in known:
            raise location.error(
                f"the _id {truncated_repr(text_id)}, which an earlier line has too",
                "an _id of its own",
            )
        yield location, text_id, record


def _make_pair(
    pair_id: str,
    query: str,
    passage: Passage,
    grades: dict[str, int],
    negatives: Iterable[Passage] = (),
) -> Pair:
    return Pair(
        pair_id,
        query,
        passage.text,
        passage.title,
        tuple(negative for negative in negatives if negative.id not in grades),
        passage_id=passage.id,
        relevant=grades,
    )


def _evaluation_pairs(
    qrels: Qrels, queries: dict[str, str], passages: dict[str, Passage]
) -> list[Pair]:
    """One pair per query, with the passage of the highest grade."""
    pairs = []
    for query_id, grades in qrels.items():
        best = max(grades, key=grades.get)
        pairs.append(_make_pair(query_id, queries[query_id], passages[best], grades))
    return pairs


# --- qrels ---------------------------------------------------------------------------------------


def _read_all_qrels(
    folder: Path, queries: dict[str, str], passages: dict[str, Passage]
) -> dict[str, Qrels]:
    """The judgements of each split for which there is a file."""
    qrels = {}
    for split in ("train", "test", "dev"):
        path = find_file(folder, f"qrels/{split}.tsv")
        if path is not None:
            qrels[split] = _read_qrels(path, queries, passages)
    if not qrels:
        raise ValueError(
            f"{folder}: found no qrels/train.tsv, qrels/test.tsv or qrels/dev.tsv; "
            "expected at least one of them."
        )
    return qrels


def _read_qrels(path: Path, queries: dict[str, str], passages: dict[str, Passage]) -> Qrels:
    """The grades above 0. The columns are in BEIR's order, or in that of a header."""
    qrels: Qrels = {}
    all_grades: dict[tuple[str, str], int] = {}
    columns = _QRELS_COLUMNS
    for line, location, text in iter_lines(path):
        if not text.strip():
            continue
        fields = split_tsv(text, location)
        if line == 1 and _is_header(fields):
            valid = sorted(fields) == sorted(_QRELS_COLUMNS)
            location.require(valid, fields, f"the columns {', '.join(_QRELS_COLUMNS)}")
            columns = fields
            continue
        expected = "three columns with tabs between them: query-id, corpus-id, score"
        location.require(len(fields) == 3, text, expected)
        row = dict(zip(columns, fields))
        query_id, passage_id = row["query-id"], row["corpus-id"]
        grade = _to_grade(row["score"], location)
        _require_known("id", query_id, queries, "queries.jsonl", location)
        _require_known("id", passage_id, passages, "corpus.jsonl", location)
        first = all_grades.setdefault((query_id, passage_id), grade)
        if first != grade:
            raise location.error(
                f"the score {grade} for {truncated_repr(query_id)} and "
                f"{truncated_repr(passage_id)}, which have the score {first} on an earlier line",
                "one score for each query and passage",
            )
        if grade > 0:
            qrels.setdefault(query_id, {})[passage_id] = grade
    return qrels


def _is_header(fields: list[str]) -> bool:
    return fields[-1] == "score" or "query-id" in fields or "corpus-id" in fields


def _to_grade(score: str, location: RecordLocation) -> int:
    if not re.fullmatch(" *[+-]?[0-9]{1,9} *", score):
        expected = "a whole number (of up to nine digits)"
        raise location.error(f"the score {truncated_repr(score)}", expected)
    return int(score)


def _require_known(key: str, value: str, known: dict, file: str, location: RecordLocation) -> None:
    if value not in known:
        raise location.error(
            f"the {key} {truncated_repr(value)}, which is not in {file}", f"an id that {file} has"
        )


# --- hard negatives ------------------------------------------------------------------------------


def _read_hard_negatives(
    folder: Path,
    train_qrels: Qrels,
    queries: dict[str, str],
    passages: dict[str, Passage],
    margin: float,
) -> dict[str, list[Passage]]:
    """The hard negatives of each query in hard_negatives.jsonl, if there is such a file."""
    path = find_file(folder, "hard_negatives.jsonl")
    if path is None:
        return {}
    hard_negatives: dict[str, list[Passage]] = {}
    for _, location, record in iter_jsonl(path, "an object with qid and neg"):
        query_id = location.get_id(record, "qid")
        _require_known("qid", query_id, queries, "queries.jsonl", location)
        if query_id in hard_negatives:
            raise location.error(
                f"the qid {truncated_repr(query_id)}, which an earlier line has too",
                "one line for each qid",
            )
        ids = _negative_ids(record.get("neg"), location)
        scores = record.get("scores") or {}
        valid = isinstance(scores, dict) and all(map(is_number, scores.values()))
        location.require(valid, scores, "scores as {id: number}")
        for negative_id in ids:
            _require_known("negative", negative_id, passages, "corpus.jsonl", location)
        positive_scores = [scores.get(name) for name in train_qrels.get(query_id, {})]
        negatives = [(passages[name], scores.get(name)) for name in ids]
        hard_negatives[query_id] = filter_hard_negatives(positive_scores, negatives, margin)
    return hard_negatives


def _negative_ids(value, location: RecordLocation) -> list[str]:
    """The passage ids in a list, or in lists by name; each once."""
    lists = list(value.values()) if isinstance(value, dict) else [value]
    valid = all(isinstance(ids, list) and all(map(is_id, ids)) for ids in lists)
    location.require(valid, value, "a list of passage ids, or lists by name")
    return list(dict.fromkeys(str(passage_id) for ids in lists for passage_id in ids))

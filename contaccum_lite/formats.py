"""Readers of the field's files: DPR's JSON, BEIR's folder, and one pair a line.

Files are read as a stream and every text is kept once. A file that is not as it should be raises `ValueError`, and its
sentence says the file, the place, what was found and what was expected.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import itertools
import json
import re
import reprlib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .data import Pair, Pairs, Passage

MARGIN = 3.0
_CHUNK = 1 << 20  # bytes read at a time
_LONGEST_RECORD = 1 << 28  # characters after which a record that has not ended is taken for broken
_SPACE = re.compile(r"[ \t\r\n]*")


# --- DPR ---------------------------------------------------------------------------------------------------------------


def read_dpr(
    path: Path,
    test: str | None = None,
    test_pairs: int = 1000,
    margin: float = MARGIN,
    progress: bool = True,
) -> Pairs:
    """DPR's retriever JSON: a list of {question, answers, positive_ctxs, negative_ctxs, hard_negative_ctxs}.

    The first positive is the passage, as in the paper's code. Questions without a positive are left out, and counted.
    The corpus is every context in the files: rank within it, not within Wikipedia. `margin`: see `keep_hard_negatives`.
    """
    corpus, dropped = _Corpus(), 0
    sets = []
    for file in [path, *([Path(test)] if test else [])]:
        pairs = []
        for row, record in enumerate(_json_array(file)):
            pair = _dpr_pair(record, row, _Place(file, f"record {row}"), corpus, margin)
            pairs.append(pair)
        sets.append([pair for pair in pairs if pair])
        dropped += sum(pair is None for pair in pairs)
    notes = [f"{dropped:,} questions have no positive passage and are left out."] if dropped else []
    return _finish(f"dpr:{path.name}", sets, corpus, test_pairs, notes, path)


def _dpr_pair(record, row: int, place: _Place, corpus: _Corpus, margin: float) -> Pair | None:
    place.expect(
        isinstance(record, dict), record, "an object with question, answers and positive_ctxs"
    )
    question = place.text(record, "question")
    answers = place.list_of(record, "answers", str, needed=False)
    positives, negatives, scores = [], [], []
    for key, into in (
        ("positive_ctxs", positives),
        ("hard_negative_ctxs", negatives),
        ("negative_ctxs", []),
    ):
        for number, context in enumerate(
            place.list_of(record, key, dict, needed=key == "positive_ctxs")
        ):
            inner = place.inside(f"{key}[{number}]")
            passage = corpus.add(
                inner.text(context, "title", empty=True, needed=False), inner.text(context, "text")
            )
            into.append((passage, inner.number(context, "ce_score")))
    if not positives:
        return None
    (passage, score), grades = positives[0], {found.id: 1 for found, _ in positives}
    kept = keep_hard_negatives([s for _, s in positives], negatives, margin)
    return Pair(
        str(row),
        question,
        passage.text,
        passage.title,
        tuple(p for p in kept if p.id not in grades),
        tuple(answers),
        passage.id,
        grades,
    )


def keep_hard_negatives(
    positive_scores: list, negatives: list[tuple], margin: float = MARGIN
) -> list[Passage]:
    """The negatives whose cross-encoder score is at least `margin` *below* the lowest positive's; those without scores stay.

    This is what the paper's code does; its text (Section 4) says "higher", which would keep the unlabelled positives.
    """
    known = [score for score in positive_scores if score is not None]
    return [
        p for p, score in negatives if score is None or not known or score <= min(known) - margin
    ]


# --- one pair a line ---------------------------------------------------------------------------------------------------


def read_jsonl(
    path: Path,
    test: str | None = None,
    test_pairs: int = 1000,
    margin: float = MARGIN,
    progress: bool = True,
) -> Pairs:
    """One JSON object a line: query, passage; optional id, title, answers, hard_negatives, score.

    A hard negative is a string, or an object with passage and, optionally, title and score (then `margin` applies).
    """
    corpus = _Corpus()
    sets = [_jsonl_pairs(path, corpus, margin, path.name)]
    if test:
        test = Path(test)
        prefix = str(test) if test.name == path.name else test.name
        sets.append(_jsonl_pairs(test, corpus, margin, prefix))
    return _finish(f"jsonl:{path.name}", sets, corpus, test_pairs, [], path)


def _jsonl_pairs(path: Path, corpus: _Corpus, margin: float, prefix: str) -> list[Pair]:
    """The pairs of one file; those without an id get the prefix and their line."""
    pairs, lines = [], {}
    for line, record in _json_lines(path):
        place = _Place(path, f"line {line}")
        pair = _jsonl_pair(record, place, corpus, margin, default_id=f"{prefix}:{line}")
        first = lines.setdefault(pair.id, line)
        if first != line:
            raise place.error(
                f"the id {_short(pair.id)}, which {path.name}, line {first} has too",
                "an id of its own",
            )
        pairs.append(pair)
    return pairs


def _jsonl_pair(record, place: _Place, corpus: _Corpus, margin: float, default_id: str) -> Pair:
    place.expect(isinstance(record, dict), record, "an object with query and passage")
    name = place.name(record, "id", default_id)
    query = place.text(record, "query")
    passage = corpus.add(
        place.text(record, "title", empty=True, needed=False), place.text(record, "passage")
    )
    negatives = []
    for number, negative in enumerate(
        place.list_of(record, "hard_negatives", (str, dict), needed=False)
    ):
        inner = place.inside(f"hard_negatives[{number}]")
        negative = negative if isinstance(negative, dict) else {"passage": negative}
        found = corpus.add(
            inner.text(negative, "title", empty=True, needed=False), inner.text(negative, "passage")
        )
        negatives.append((found, inner.number(negative, "score")))
    kept = keep_hard_negatives([place.number(record, "score")], negatives, margin)
    answers = place.list_of(record, "answers", str, needed=False)
    kept = tuple(p for p in kept if p.id != passage.id)
    return Pair(name, query, passage.text, passage.title, kept, tuple(answers), passage.id)


# --- BEIR --------------------------------------------------------------------------------------------------------------


def read_beir(folder: Path, margin: float = MARGIN, progress: bool = True) -> Pairs:
    """BEIR's folder: corpus.jsonl, queries.jsonl, qrels/train.tsv and qrels/test.tsv (or dev.tsv); each may be .gz.

    One training pair per (query, relevant passage); one test pair per query, with the grades of all its passages.
    hard_negatives.jsonl, if it is there, holds {"qid": …, "neg": [ids] or {"bm25": [ids], …}, "scores": {id: score}} a
    line; with scores, the cross-encoder rule applies (`keep_hard_negatives`).
    """
    corpus, queries = _Corpus(), {}
    for place, name, record in _beir_records(_find(folder, "corpus.jsonl"), corpus.by_id):
        title = place.text(record, "title", empty=True, needed=False)
        corpus.add(title, place.text(record, "text", empty=True), name)
    for place, name, record in _beir_records(_find(folder, "queries.jsonl"), queries):
        queries[name] = place.text(record, "text")
    found = {
        split: file
        for split in ("train", "test", "dev")
        if (file := _find(folder, f"qrels/{split}.tsv", needed=False))
    }
    if not found:
        raise ValueError(
            f"{folder}: found no qrels/train.tsv, qrels/test.tsv or qrels/dev.tsv; expected at least one of them."
        )
    qrels = {split: _read_qrels(file, queries, corpus) for split, file in found.items()}
    negatives = _read_beir_negatives(folder, qrels.get("train", {}), queries, corpus, margin)
    train = [
        _beir_pair(
            name, queries, grades, [corpus.by_id[p]], negatives.get(name, ()), suffix=f"-{p}"
        )
        for name, grades in qrels.get("train", {}).items()
        for p in grades
    ]
    tested = {
        split: [
            _beir_pair(name, queries, grades, [corpus.by_id[p] for p in grades], ())
            for name, grades in qrels[split].items()
        ]
        for split in ("test", "dev")
        if split in qrels
    }
    test = tested.get("test", tested.get("dev", []))
    dev = tested.get("dev", []) if "test" in tested else []
    notes = (
        []
        if train
        else [
            f"{folder.name} has no qrels/train.tsv with a relevant passage: it can be searched, not trained on."
        ]
    )
    return Pairs(f"beir:{folder.name}", train, test, corpus.passages, dev, tuple(notes))


def _beir_records(path: Path, known: dict) -> Iterator[tuple[_Place, str, dict]]:
    """(place, _id, object) of each line; an _id that is among the `known` by then is an error."""
    for line, record in _json_lines(path):
        place = _Place(path, f"line {line}")
        place.expect(isinstance(record, dict), record, "an object with _id and text")
        name = place.text(record, "_id")
        if name in known:
            raise place.error(
                f"the _id {_short(name)}, which an earlier line has too", "an _id of its own"
            )
        yield place, name, record


def _beir_pair(
    name: str,
    queries: dict,
    grades: dict,
    positives: list[Passage],
    negatives: Iterable[Passage],
    suffix="",
) -> Pair:
    best = max(positives, key=lambda p: grades[p.id])
    return Pair(
        name + suffix,
        queries[name],
        best.text,
        best.title,
        tuple(p for p in negatives if p.id not in grades),
        passage_id=best.id,
        relevant=grades,
    )


def _read_qrels(path: Path, queries: dict, corpus: _Corpus) -> dict[str, dict[str, int]]:
    """query id → {passage id: grade}, grades above 0 only.

    The columns are in BEIR's order, or in that of a header.
    """
    grades: dict[str, dict[str, int]] = {}
    seen: dict[tuple[str, str], int] = {}
    columns = _QRELS
    for line, raw in _lines(path):
        place = _Place(path, f"line {line}")
        if not raw.strip():
            continue
        fields = _fields(raw, place)
        if line == 1 and (fields[-1] == "score" or set(_QRELS[:2]) & set(fields)):
            named = sorted(fields) == sorted(_QRELS)
            place.expect(named, fields, f"the columns {', '.join(_QRELS)}")
            columns = fields
            continue
        place.expect(
            len(fields) == 3,
            raw,
            "three columns with tabs between them: query-id, corpus-id, score",
        )
        query, passage, score = map(dict(zip(columns, fields)).get, _QRELS)
        grade = _grade(score, place)
        for known, name, file in (
            (queries, query, "queries.jsonl"),
            (corpus.by_id, passage, "corpus.jsonl"),
        ):
            if name not in known:
                raise place.error(
                    f"the id {_short(name)}, which is not in {file}", f"an id that {file} has"
                )
        if seen.setdefault((query, passage), grade) != grade:
            raise place.error(
                f"the score {grade} for {_short(query)} and {_short(passage)}, which have the "
                f"score {seen[query, passage]} on an earlier line",
                "one score for each query and passage",
            )
        if grade > 0:
            grades.setdefault(query, {})[passage] = grade
    return grades


_QRELS = ["query-id", "corpus-id", "score"]


def _grade(score: str, place: _Place) -> int:
    if not re.fullmatch(" *[+-]?[0-9]{1,9} *", score):
        raise place.error(f"the score {_short(score)}", "a whole number (of up to nine digits)")
    return int(score)


def _read_beir_negatives(
    folder: Path, train: dict, queries: dict, corpus: _Corpus, margin: float
) -> dict[str, list[Passage]]:
    path = _find(folder, "hard_negatives.jsonl", needed=False)
    kept: dict[str, list[Passage]] = {}
    for line, record in _json_lines(path) if path else ():
        place = _Place(path, f"line {line}")
        place.expect(isinstance(record, dict), record, "an object with qid and neg")
        query = place.name(record, "qid")
        if query not in queries:
            raise place.error(
                f"the qid {_short(query)}, which is not in queries.jsonl",
                "an id that queries.jsonl has",
            )
        if query in kept:
            raise place.error(
                f"the qid {_short(query)}, which an earlier line has too", "one line for each qid"
            )
        lists = record.get("neg")
        lists = list(lists.values()) if isinstance(lists, dict) else [lists]
        fine = all(isinstance(ids, list) and all(map(_is_name, ids)) for ids in lists)
        place.expect(fine, record.get("neg"), "a list of passage ids, or lists by name")
        names = list(dict.fromkeys(str(name) for ids in lists for name in ids))
        scores = record.get("scores") or {}
        fine = isinstance(scores, dict) and all(map(_is_number, scores.values()))
        place.expect(fine, scores, "scores as {id: number}")
        if unknown := [name for name in names if name not in corpus.by_id]:
            raise place.error(
                f"the negative {_short(unknown[0])}, which is not in corpus.jsonl",
                "an id that corpus.jsonl has",
            )
        positives = [scores.get(name) for name in train.get(query, {})]
        kept[query] = keep_hard_negatives(
            positives, [(corpus.by_id[n], scores.get(n)) for n in names], margin
        )
    return kept


#: What reads the part of a source before its colon.
READERS = {"dpr": read_dpr, "beir": read_beir, "jsonl": read_jsonl}


# --- passages alone ----------------------------------------------------------------------------------------------------


def read_passages(source: str) -> Iterator[Passage]:
    """The passages of a corpus, one by one: a .jsonl or .tsv file (also .gz), or all those of a source of `load_pairs`.

    A .jsonl line is BEIR's: _id (or id), text (or passage), optional title. A .tsv line is DPR's:
    id, text, optional title, in this order or in that of a first line with these names. A file is
    read as a stream, so a corpus may be larger than memory.
    """
    from .data import load_pairs

    kind, colon, _ = source.partition(":")
    if not colon or kind not in READERS:  # a path may have a colon: "C:\\corpus.tsv"
        path = Path(source)
        ending = Path(path.stem if _is_packed(path) else path.name).suffix.lower()
        if ending == ".jsonl":
            return _jsonl_passages(path)
        if ending == ".tsv":
            return _tsv_passages(path)
    try:
        return iter(load_pairs(source, progress=False).passages)
    except ValueError as error:
        if str(error).startswith("no pairs called"):
            raise ValueError(
                f"no passages called {source!r}: give a .jsonl or .tsv file (or .gz), or a source of pairs as 'beir:FOLDER'."
            ) from None
        raise


def _jsonl_passages(path: Path) -> Iterator[Passage]:
    for line, record in _json_lines(path):
        place = _Place(path, f"line {line}")
        place.expect(isinstance(record, dict), record, "an object with _id and text")
        name = place.name(record, "_id" if "_id" in record else "id", default=str(line))
        yield Passage(
            name,
            place.text(record, "title", empty=True, needed=False),
            place.text(
                record,
                "passage" if "text" not in record and "passage" in record else "text",
                empty=True,
            ),
        )


def _tsv_passages(path: Path) -> Iterator[Passage]:
    columns = None
    for line, raw in _lines(path):
        place = _Place(path, f"line {line}")
        if line == 1 and "\r" in raw and not raw.endswith("\n"):
            raise place.error(
                "lines that end in a carriage return alone", "lines that end in a line feed"
            )
        fields = _fields(raw, place)
        header = _header(fields, place)
        if header or fields == [""]:
            columns = header or columns
            continue
        if columns is None:
            place.expect(len(fields) in (2, 3), raw, _TSV_COLUMNS)
            columns = _TSV_NAMES[: len(fields)]
        if len(fields) != len(columns):
            raise place.error(
                f"{len(fields)} columns in {_short(raw)}", f"{len(columns)}, as in the lines above"
            )
        passage = dict(zip(columns, fields))
        yield Passage(passage["id"], passage.get("title", ""), passage["text"])


_TSV_NAMES = ("id", "text", "title")
_LONGEST_HEADER = 200  # characters; most lines of a corpus are longer, and need no look
_TSV_COLUMNS = "an id, a text and, optionally, a title, with tabs between them"


def _header(fields: list[str], place: _Place) -> list[str] | None:
    """The names of the columns, in any order, if these fields are names."""
    if sum(map(len, fields)) > _LONGEST_HEADER:
        return None
    names = [name.strip().lower() for name in fields]
    names = [{"_id": "id", "passage": "text"}.get(name, name) for name in names]
    if fields[0] != "id" and len({"id", "text", "title"} & set(names)) < 2:
        return None
    fine = sorted(names) in (["id", "text"], ["id", "text", "title"])
    place.expect(fine, fields, "columns that are called id, text and, optionally, title")
    return names


_QUOTED = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"(?=\t|\Z)')
_CLOSED = re.compile(r'"[^"\t]*+(?:""[^"\t]*+)*+"')


def _fields(raw: str, place: _Place) -> list[str]:
    """The fields of a line with tabs between them.

    Some writers quote fields as csv does (DPR's psgs_w100.tsv), others never quote. A field in
    quotes whose inner quotes are doubled was quoted; in any other field, a quote is text. A field
    that begins with a quote which nothing closes is an error: it may be the first line of a quoted
    one, or a stray quote.
    """
    line = raw.removesuffix("\n").removesuffix("\r")
    if '"' not in line:
        return line.split("\t")
    fields, start = [], 0
    while start <= len(line):
        if quoted := _QUOTED.match(line, start):
            fields.append(quoted[1].replace('""', '"'))
            end = quoted.end()
        else:
            tab = line.find("\t", start)
            end = tab if tab >= 0 else len(line)
            if line.startswith('"', start) and not _CLOSED.match(line, start):
                raise place.error(
                    "a field that begins with a quote and does not end with one: "
                    f"{_short(line[start:])}",
                    "each field on one line, its quotes doubled if it is in quotes; "
                    "give texts with line breaks as .jsonl",
                )
            fields.append(line[start:end])
        start = end + 1
    return fields


# --- what they share ---------------------------------------------------------------------------------------------------


class _Corpus:
    """Every passage once: the same title and text give the same Passage."""

    def __init__(self):
        self.passages: list[Passage] = []
        self.by_id: dict[str, Passage] = {}
        self._known: dict[tuple[str, str], Passage] = {}

    def add(self, title: str, text: str, name: str | None = None) -> Passage:
        passage = None if name is not None else self._known.get((title, text))
        if passage is None:
            passage = Passage(str(len(self.passages)) if name is None else name, title, text)
            self.passages.append(passage)
            self.by_id[passage.id] = passage
            if name is None:
                self._known[title, text] = passage
        return passage


class _Place:
    """A place in a file, and the checks that name it."""

    def __init__(self, file: Path, where: str):
        self.file, self.where = file, where

    def inside(self, part: str) -> _Place:
        return _Place(self.file, f"{self.where}, {part}")

    def error(self, found: str, expected: str) -> ValueError:
        return ValueError(f"{self.file}, {self.where}: found {found}; expected {expected}.")

    def expect(self, fine: bool, found, expected: str) -> None:
        if not fine:
            raise self.error(_short(found), expected)

    def text(self, record: dict, key: str, empty: bool = False, needed: bool = True) -> str:
        if key not in record and not needed:
            return ""
        if key not in record:
            raise self.error(
                f"no key {key!r} among {_short(list(record))}", f"a text under {key!r}"
            )
        value = record[key]
        if value is None and empty:
            return ""
        self.expect(isinstance(value, str), value, f"a text under {key!r}")
        self.expect(bool(empty or value.strip()), value, f"a text under {key!r} that is not empty")
        self.expect_characters(value, key)
        return value

    def name(self, record: dict, key: str, default: str | None = None) -> str:
        """An id: a text or a whole number."""
        if key not in record and default is None:
            raise self.error(f"no key {key!r} among {_short(list(record))}", f"an id under {key!r}")
        value = record.get(key, default)
        self.expect(_is_name(value), value, f"a string or a whole number as {key}")
        self.expect_characters(str(value), key)
        return str(value)

    def expect_characters(self, text: str, key: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.error(
                f"half of a surrogate pair under {key!r}", "characters that exist"
            ) from None

    def list_of(self, record: dict, key: str, kind, needed: bool = True) -> list:
        if key not in record and not needed:
            return []
        if key not in record:
            raise self.error(
                f"no key {key!r} among {_short(list(record))}", f"a list under {key!r}"
            )
        value = record[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join({str: "texts", dict: "objects"}[k] for k in kinds)
        self.expect(
            isinstance(value, list) and all(isinstance(v, kinds) for v in value),
            value,
            f"a list of {names} under {key!r}",
        )
        for text in value:
            if isinstance(text, str):
                self.expect_characters(text, key)
        return value

    def number(self, record: dict, key: str) -> float | None:
        value = record.get(key)
        self.expect(value is None or _is_number(value), value, f"a number under {key!r}")
        return value


def _is_name(value) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _is_number(value) -> bool:
    """Whether this is a number to calculate with: no NaN, no infinity, no integer beyond floats."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and -1e300 < value < 1e300


def _finish(
    name: str,
    sets: list[list[Pair]],
    corpus: _Corpus,
    test_pairs: int,
    notes: list[str],
    path: Path,
) -> Pairs:
    """Pairs from what was read; without a test file, up to a fifth is held out by a hash of the question."""
    if not sets[0]:
        raise ValueError(f"{path}: found no pair of a query and a passage; expected at least one.")
    if len(sets) == 2:
        return Pairs(name, sets[0], sets[1], corpus.passages, notes=tuple(notes))
    held = _held_out(sets[0], test_pairs)
    return Pairs(
        name,
        [p for p in sets[0] if p.id not in held],
        [p for p in sets[0] if p.id in held],
        corpus.passages,
        notes=tuple(notes),
    )


def _held_out(pairs: list[Pair], most: int) -> set[str]:
    """The ids of up to `most` pairs, and of a fifth of all; pairs of one question stay together."""
    questions: dict[str, list[str]] = {}
    for pair in pairs:
        questions.setdefault(pair.query, []).append(pair.id)
    room, held = min(most, len(pairs) // 5), set()
    for query in sorted(questions, key=lambda query: hashlib.sha256(query.encode()).digest()):
        if len(questions[query]) <= room:
            held |= set(questions[query])
            room -= len(questions[query])
    return held


def _find(folder: Path, name: str, needed: bool = True) -> Path | None:
    for path in (folder / name, folder / (name + ".gz")):
        if path.is_file():
            return path
    if needed:
        raise ValueError(
            f"{folder}: found no {name} (or {name}.gz); expected BEIR's corpus.jsonl, queries.jsonl and qrels/*.tsv."
        )
    return None


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked if it is a .gz; what goes wrong on the way becomes a sentence."""
    try:
        with gzip.open(path) if _is_packed(path) else open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise ValueError(f"{path}: found no such file; expected a file to read.") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: found a folder; expected a file.") from None
    except EOFError:
        raise ValueError(
            f"{path}: found a gzip file that breaks off; expected it whole: fetch it again."
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: found bytes that are not gzip ({error}); expected a .gz file."
        ) from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of a text file."""
    line = 0
    with _opened(path) as file:
        for line, raw in enumerate(file, 1):
            try:
                # a byte order mark may be in any line: files may have been put one after another
                yield line, raw.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise _Place(path, f"line {line}").error(
                    f"the byte 0x{raw[error.start]:02x}, which is not UTF-8", "text in UTF-8"
                ) from None
    if not line:
        raise ValueError(f"{path}: found an empty file; expected at least one line.")


def _json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """(line number, value) of each line that is not blank."""
    for line, text in _lines(path):
        if text.strip():
            place = _Place(path, f"line {line}")
            try:
                yield line, _DECODER.decode(text)
            except json.JSONDecodeError as error:
                raise place.error(f"{error.msg} at column {error.colno}", _ONE_OBJECT) from None
            except _KeyTwice as error:
                raise place.error(str(error), "every key once") from None
            except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
                raise place.error("JSON that no reader takes", _ONE_OBJECT) from None


class _KeyTwice(ValueError):
    """An object with a key twice, of which a reader would have to choose one value."""


def _object(items: list[tuple[str, object]]) -> dict:
    """A JSON object of these keys and values."""
    record = dict(items)
    if len(record) < len(items):
        counts = Counter(key for key, _ in items)
        raise _KeyTwice(f"the key {_short(counts.most_common(1)[0][0])} twice in one object")
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_ONE_OBJECT = "one JSON object on each line"


def _json_array(path: Path) -> Iterator[object]:
    """The items of a JSON list, one by one: no more of the file is held than the longest item.

    Python's own decoder on a sliding buffer, because `ijson` takes memory by the square of the nesting (a file of "[[[[…"
    of 100 kB takes it all) and quietly mends broken characters.
    """
    with _opened(path) as file:
        text = _JsonText(path, file)
        if text.next_sign() != "[":
            raise text.no_list()
        text.start += 1
        sign = text.next_sign()
        while sign != "]":
            yield text.item()
            text.row += 1
            sign = text.next_sign()
            if sign not in ("]", ","):
                raise text.error(f"no comma before {text.here()}" if sign else "it breaks off")
            if sign == ",":
                text.start += 1
        text.start += 1
        if text.next_sign():
            raise _Place(path, f"record {text.row}").error(
                f"{text.here()} after the end of the list",
                "one list and nothing after it: put the records of all files into one list",
            )


class _JsonText:
    """The text of a JSON file, held a piece at a time; `start` is where it is read next."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.row = path, 0
        self.buffer, self.start = "", 0
        self.pieces = codecs.iterdecode(iter(lambda: file.read(_CHUNK), b""), "utf-8-sig")

    def error(self, reason: str) -> ValueError:
        place = _Place(self.path, f"record {self.row}")
        return place.error(f"JSON that cannot be read ({reason})", "a list of records")

    def no_list(self) -> ValueError:
        if not self.next_sign():
            return ValueError(f"{self.path}: found an empty file; expected a JSON list of records.")
        return ValueError(
            f"{self.path}: found a file that starts with {self.here()}; expected a JSON list ('[')."
        )

    def here(self) -> str:
        return _short(self.buffer[self.start : self.start + 12])

    def more(self) -> bool:
        """Read as much again as is held, so that a long item is begun few times; False at the end."""
        held = len(self.buffer) - self.start
        try:
            piece = "".join(itertools.islice(self.pieces, 1 + held // _CHUNK))
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise self.error(f"the byte 0x{byte:02x}, which is not UTF-8") from None
        self.buffer, self.start = self.buffer[self.start :] + piece, 0
        return bool(piece)

    def next_sign(self) -> str:
        """The next character that is not white space; none at the end of the file."""
        while True:
            self.start = _SPACE.match(self.buffer, self.start).end()
            if self.start < len(self.buffer):
                return self.buffer[self.start]
            if not self.more():
                return ""

    def item(self) -> object:
        """The value that starts here."""
        self.next_sign()
        while True:
            try:
                item, end = _DECODER.raw_decode(self.buffer, self.start)
                length = end - self.start
                # "1" may go on as "1e-5" in the next piece
                if end < len(self.buffer) - 2 or not self.more():
                    self.start += length
                    return item
                continue
            except json.JSONDecodeError as error:
                self._expect_unfinished(error)
            except _KeyTwice as error:
                raise self.error(str(error)) from None
            except RecursionError:
                raise self.error("it is nested too deep") from None
            except ValueError:
                raise self.error("a number of too many digits") from None
            if not self.more():
                raise self.error("it breaks off")

    def _expect_unfinished(self, error: json.JSONDecodeError) -> None:
        """Raise where the item is broken, and not only cut by the end of what is held."""
        cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.buffer) - 16
        if not cut or len(self.buffer) - self.start > _LONGEST_RECORD:
            near = _short(self.buffer[error.pos : error.pos + 12])
            raise self.error(f"{error.msg} at {near}") from None


def _short(value) -> str:
    """A value in an error: its beginning, with no control characters.

    Of a large or deep value, no more is looked at.
    """
    text = _BEGINNING.repr(value)
    return f"{text[:60]}…" if len(text) > 60 else text


class _Beginning(reprlib.Repr):
    """`repr` of a value's beginning: of long and deep values, what comes later is left out."""

    def __init__(self):
        super().__init__()
        self.maxlist = self.maxdict = 20
        self.maxlong = self.maxother = 100

    def repr_str(self, text: str, level: int) -> str:
        return repr(text[:61])

    def repr_dict(self, record: dict, level: int) -> str:
        if level <= 0:
            return "{...}"
        shown = []
        for key, value in itertools.islice(record.items(), self.maxdict):
            shown.append(f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}")
        return "{" + ", ".join(shown) + (", ...}" if len(record) > self.maxdict else "}")


_BEGINNING = _Beginning()

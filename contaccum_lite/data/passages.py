"""Reads a corpus: passages alone, without queries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from contaccum_lite.data.load import READERS, load_pairs
from contaccum_lite.data.records import (
    RecordLocation,
    is_gzipped,
    iter_jsonl,
    iter_lines,
    split_tsv,
)
from contaccum_lite.data.types import Passage
from contaccum_lite.utils.text import truncated_repr

_TSV_COLUMNS = ["id", "text", "title"]
_TSV_EXPECTED = "an id, a text and, optionally, a title, with tabs between them"
_LONGEST_HEADER = 200  # characters; most lines of a corpus are longer, and cannot be a header


def read_passages(source: str) -> Iterator[Passage]:
    """The passages of a corpus, one by one.

    Args:
        source: a .jsonl or .tsv file (also .gz), or a source of `load_pairs`, for its passages.
            A .jsonl line is BEIR's: _id (or id), text (or passage), optional title. A .tsv line is
            DPR's: id, text, optional title, in this order or in that of a header with these names.

    A file is read as a stream, so a corpus may be larger than memory. Raises `ValueError` for a
    source that is not there or a broken file.
    """
    kind, colon, _ = source.partition(":")
    if not colon or kind not in READERS:  # a path may have a colon: "C:\\corpus.tsv"
        path = Path(source)
        unpacked_name = path.stem if is_gzipped(path) else path.name
        suffix = Path(unpacked_name).suffix.lower()
        if suffix == ".jsonl":
            return _iter_jsonl_passages(path)
        if suffix == ".tsv":
            return _iter_tsv_passages(path)
    try:
        return iter(load_pairs(source, progress=False).passages)
    except ValueError as error:
        if str(error).startswith("no pairs called"):
            raise ValueError(
                f"no passages called {source!r}: give a .jsonl or .tsv file (or .gz), "
                "or a source of pairs as 'beir:FOLDER'."
            ) from None
        raise


def _iter_jsonl_passages(path: Path) -> Iterator[Passage]:
    for line, location, record in iter_jsonl(path, "an object with _id and text"):
        id_key = "_id" if "_id" in record else "id"
        text_key = "passage" if "passage" in record and "text" not in record else "text"
        yield Passage(
            location.get_id(record, id_key, default=str(line)),
            location.get_str(record, "title", allow_empty=True, required=False),
            location.get_str(record, text_key, allow_empty=True),
        )


def _iter_tsv_passages(path: Path) -> Iterator[Passage]:
    columns = None
    for line, location, text in iter_lines(path):
        if line == 1 and "\r" in text and not text.endswith("\n"):
            raise location.error(
                "lines that end in a carriage return alone", "lines that end in a line feed"
            )
        fields = split_tsv(text, location)
        header = _read_header(fields, location)
        if header is not None:
            columns = header
            continue
        if fields == [""]:
            continue
        if columns is None:
            location.require(len(fields) in (2, 3), text, _TSV_EXPECTED)
            columns = _TSV_COLUMNS[: len(fields)]
        if len(fields) != len(columns):
            raise location.error(
                f"{len(fields)} columns in {truncated_repr(text)}",
                f"{len(columns)}, as in the lines above",
            )
        passage = dict(zip(columns, fields))
        yield Passage(passage["id"], passage.get("title", ""), passage["text"])


def _read_header(fields: list[str], location: RecordLocation) -> list[str] | None:
    """The names of the columns, in any order; None where these fields are no header."""
    if sum(map(len, fields)) > _LONGEST_HEADER:
        return None
    lowered = [field.strip().lower() for field in fields]
    names = [{"_id": "id", "passage": "text"}.get(name, name) for name in lowered]
    if fields[0] != "id" and len(set(_TSV_COLUMNS).intersection(names)) < 2:
        return None
    valid = sorted(names) in (["id", "text"], ["id", "text", "title"])
    location.require(valid, fields, "columns that are called id, text and, optionally, title")
    return names

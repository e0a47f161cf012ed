"""What the readers share: lines and JSON records as streams, and errors that say where.

A file that is not as it should be raises `ValueError`. Its sentence names the file and the record,
says what was found there, and says what was expected.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from contaccum_lite.utils.text import truncated_repr

CHUNK_BYTES = 1 << 20  # read at a time
_LONGEST_RECORD = 1 << 28  # characters after which a record that has not ended counts as broken
_SPACE = re.compile(r"[ \t\r\n]*")
_JSON_LINE = "one JSON object on each line"


class RecordLocation:
    """Where a record is in a file, with checks whose errors say so."""

    def __init__(self, file: Path, description: str):
        self.file, self.description = file, description

    def child(self, name: str) -> RecordLocation:
        """The location of a value inside this record."""
        return RecordLocation(self.file, f"{self.description}, {name}")

    def error(self, actual: str, expected: str) -> ValueError:
        return ValueError(f"{self.file}, {self.description}: found {actual}; expected {expected}.")

    def require(self, valid: bool, value, expected: str) -> None:
        """Raise `ValueError` about this value unless it is valid."""
        if not valid:
            raise self.error(truncated_repr(value), expected)

    def get_str(
        self, record: dict, key: str, allow_empty: bool = False, required: bool = True
    ) -> str:
        """The text under this key; "" where it is not required and not there."""
        if not self._has(record, key, "a text", required):
            return ""
        value = record[key]
        if value is None and allow_empty:
            return ""
        self.require(isinstance(value, str), value, f"a text under {key!r}")
        has_text = allow_empty or bool(value.strip())
        self.require(has_text, value, f"a text under {key!r} that is not empty")
        self._require_characters(value, key)
        return value

    def get_id(self, record: dict, key: str, default: str | None = None) -> str:
        """The id under this key: a text or a whole number."""
        self._has(record, key, "an id", required=default is None)
        value = record.get(key, default)
        self.require(is_id(value), value, f"a string or a whole number as {key}")
        self._require_characters(str(value), key)
        return str(value)

    def get_list(
        self, record: dict, key: str, *types: type, required: bool = True
    ) -> list[str | dict]:
        """The list under this key, of values of these types: `str`, `dict` or both."""
        if not self._has(record, key, "a list", required):
            return []
        value = record[key]
        names = " or ".join({str: "texts", dict: "objects"}[t] for t in types)
        valid = isinstance(value, list) and all(isinstance(item, types) for item in value)
        self.require(valid, value, f"a list of {names} under {key!r}")
        for item in value:
            if isinstance(item, str):
                self._require_characters(item, key)
        return value

    def get_number(self, record: dict, key: str) -> float | None:
        """The number under this key, if there is one."""
        value = record.get(key)
        self.require(value is None or is_number(value), value, f"a number under {key!r}")
        return value

    def _has(self, record: dict, key: str, kind: str, required: bool) -> bool:
        if required and key not in record:
            keys = truncated_repr(list(record))
            raise self.error(f"no key {key!r} among {keys}", f"{kind} under {key!r}")
        return key in record

    def _require_characters(self, text: str, key: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.error(
                f"half of a surrogate pair under {key!r}", "characters that exist"
            ) from None


def is_id(value) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether this is a number to calculate with: no NaN, no infinity, no integer beyond floats."""
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return numeric and -1e300 < value < 1e300


# --- lines ---------------------------------------------------------------------------------------


def is_gzipped(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def find_file(folder: Path, name: str) -> Path | None:
    """The file of this name in the folder, or its .gz."""
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open the file, unpacked if it is a .gz; a failure to read it becomes a `ValueError`."""
    try:
        with gzip.open(path) if is_gzipped(path) else open(path, "rb") as file:
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


def iter_lines(path: Path) -> Iterator[tuple[int, RecordLocation, str]]:
    """(number from 1, location, text) of each line of a text file."""
    number = 0
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            location = RecordLocation(path, f"line {number}")
            try:
                # any line may have a byte order mark: files may have been concatenated
                text = line.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise location.error(
                    f"the byte 0x{byte:02x}, which is not UTF-8", "text in UTF-8"
                ) from None
            yield number, location, text
    if number == 0:
        raise ValueError(f"{path}: found an empty file; expected at least one line.")


_QUOTED_FIELD = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"(?=\t|\Z)')
_CLOSED_QUOTE = re.compile(r'"[^"\t]*+(?:""[^"\t]*+)*+"')


def split_tsv(line: str, location: RecordLocation) -> list[str]:
    """The fields of a line with tabs between them.

    Some writers quote fields as csv does (DPR's psgs_w100.tsv), others never quote. A field in
    quotes whose inner quotes are doubled was quoted; in any other field, a quote is text. A field
    that begins with a quote which nothing closes is an error: it may be the first line of a quoted
    one, or a stray quote.
    """
    line = line.removesuffix("\n").removesuffix("\r")
    if '"' not in line:
        return line.split("\t")
    fields, start = [], 0
    while start <= len(line):
        quoted = _QUOTED_FIELD.match(line, start)
        if quoted:
            fields.append(quoted[1].replace('""', '"'))
            end = quoted.end()
        else:
            tab = line.find("\t", start)
            end = tab if tab >= 0 else len(line)
            if line.startswith('"', start) and not _CLOSED_QUOTE.match(line, start):
                raise location.error(
                    "a field that begins with a quote and does not end with one: "
                    f"{truncated_repr(line[start:])}",
                    "each field on one line, its quotes doubled if it is in quotes; "
                    "give texts with line breaks as .jsonl",
                )
            fields.append(line[start:end])
        start = end + 1
    return fields


# --- JSON ----------------------------------------------------------------------------------------


class _DuplicateKey(ValueError):
    """An object has one key twice, so that a reader would have to choose a value."""


def _to_object(items: list[tuple[str, object]]) -> dict:
    record = dict(items)
    if len(record) < len(items):
        key = Counter(key for key, _ in items).most_common(1)[0][0]
        raise _DuplicateKey(f"the key {truncated_repr(key)} twice in one object")
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_to_object)


def iter_jsonl(path: Path, expected: str) -> Iterator[tuple[int, RecordLocation, dict]]:
    """(line number, location, object) of each line that is not blank; `expected` describes one."""
    for number, location, line in iter_lines(path):
        if not line.strip():
            continue
        try:
            record = _DECODER.decode(line)
        except json.JSONDecodeError as error:
            raise location.error(f"{error.msg} at column {error.colno}", _JSON_LINE) from None
        except _DuplicateKey as error:
            raise location.error(str(error), "every key once") from None
        except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
            raise location.error("JSON that no reader takes", _JSON_LINE) from None
        location.require(isinstance(record, dict), record, expected)
        yield number, location, record


def iter_json_array(path: Path) -> Iterator[object]:
    """The items of a JSON list, one by one: no more of the file is held than the longest item.

    Python's own decoder reads a sliding buffer. `ijson` would not do: its memory grows with the
    square of the nesting (100 kB of "[[[[…" take all of it), and it replaces broken characters.
    """
    with _open(path) as file:
        text = _JsonBuffer(path, file)
        text.read_opening()
        character = text.peek()
        while character != "]":
            yield text.read_item()
            text.row += 1
            character = text.peek()
            if character not in ("]", ","):
                reason = f"no comma before {text.preview()}" if character else "it breaks off"
                raise text.error(reason)
            if character == ",":
                text.start += 1
        text.start += 1
        text.require_end()


class _JsonBuffer:
    """The text of a JSON file, read a chunk at a time; `start` is the next index to read."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.row = path, 0
        self.buffer, self.start = "", 0
        self.chunks = codecs.iterdecode(iter(lambda: file.read(CHUNK_BYTES), b""), "utf-8-sig")

    def error(self, reason: str) -> ValueError:
        location = RecordLocation(self.path, f"record {self.row}")
        return location.error(f"JSON that cannot be read ({reason})", "a list of records")

    def preview(self, start: int | None = None) -> str:
        """The next characters, for an error."""
        start = self.start if start is None else start
        return truncated_repr(self.buffer[start : start + 12])

    def read_more(self) -> bool:
        """Read as much again as is held, so that a long item is tried few times.

        Returns False at the end of the file.
        """
        held = len(self.buffer) - self.start
        try:
            text = "".join(itertools.islice(self.chunks, 1 + held // CHUNK_BYTES))
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise self.error(f"the byte 0x{byte:02x}, which is not UTF-8") from None
        self.buffer, self.start = self.buffer[self.start :] + text, 0
        return bool(text)

    def peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            self.start = _SPACE.match(self.buffer, self.start).end()
            if self.start < len(self.buffer):
                return self.buffer[self.start]
            if not self.read_more():
                return ""

    def read_opening(self) -> None:
        """Read the bracket that opens the list."""
        character = self.peek()
        if not character:
            raise ValueError(f"{self.path}: found an empty file; expected a JSON list of records.")
        if character != "[":
            raise ValueError(
                f"{self.path}: found a file that starts with {self.preview()}; "
                "expected a JSON list ('[')."
            )
        self.start += 1

    def require_end(self) -> None:
        """Refuse what follows the list: it may be another list, of a file put after this one."""
        if self.peek():
            raise RecordLocation(self.path, f"record {self.row}").error(
                f"{self.preview()} after the end of the list",
                "one list and nothing after it: put the records of all files into one list",
            )

    def read_item(self) -> object:
        """The value that starts here."""
        self.peek()
        while True:
            try:
                item, end = _DECODER.raw_decode(self.buffer, self.start)
            except json.JSONDecodeError as error:
                self._require_unfinished(error)
                if not self.read_more():
                    raise self.error("it breaks off") from None
                continue
            except _DuplicateKey as error:
                raise self.error(str(error)) from None
            except RecursionError:
                raise self.error("it is nested too deep") from None
            except ValueError:
                raise self.error("a number of too many digits") from None
            length = end - self.start
            # "1" may continue as "1e-5" in the next chunk
            if end < len(self.buffer) - 2 or not self.read_more():
                self.start += length
                return item

    def _require_unfinished(self, error: json.JSONDecodeError) -> None:
        """Raise where the item is broken, and not only cut by the end of what is held."""
        cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.buffer) - 16
        if not cut or len(self.buffer) - self.start > _LONGEST_RECORD:
            raise self.error(f"{error.msg} at {self.preview(error.pos)}") from None

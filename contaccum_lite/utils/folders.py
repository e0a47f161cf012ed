"""Folders that the library writes into: one process at a time, and only its own files.

What is in a run's or an index's folder is known by its exact name. Everything else in there is
the user's and is never deleted or overwritten.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from contaccum_lite.utils.text import one_line, truncated_repr

LOCK = ".contaccum.lock"
DAMAGED = "It is damaged: restore it from a copy, or make it again in another folder."
_TYPES = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into this folder, which is made if it is not there.

    Raises `ValueError` at once where another process is writing. At the end, the lock file is
    removed, and so is a folder that was made here and is still empty. Readers need no lock. A
    process that is killed leaves its lock file behind, but the file locks nothing.
    """
    from filelock import FileLock, Timeout

    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"{folder} holds something else (it is a file): give a new or an empty folder."
        )
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    lock = FileLock(path, is_singleton=True)  # one for each process, which may enter twice
    try:
        lock.acquire(timeout=0)
        try:
            yield
        finally:
            if lock.lock_counter == 1:
                with suppress(OSError):  # Windows removes it after the release
                    path.unlink()
            lock.release()
    except Timeout:
        raise ValueError(
            f"{folder} is in use: another process is writing into it. Wait until "
            "that one has ended, or give another folder."
        ) from None
    finally:
        with suppress(OSError):  # a folder that is not empty stays
            for parent in new:
                parent.rmdir()


def is_temporary(name: str, target: str) -> bool:
    """Whether this is the name under which a process writes `target` before it renames it."""
    return re.fullmatch(rf"\.{re.escape(target)}-[0-9a-f]{{8}}", name) is not None


# --- what was written is still there ------------------------------------------------------------


def digests_of(folder: Path, skip: str = "") -> dict[str, str]:
    """The SHA-256 of every file under the folder but `skip`, by its path from there."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != skip:
            with open(path, "rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def check_digests(folder: Path, digests: dict[str, str], skip: str = "") -> None:
    """Raise `ValueError` where a file under the folder, but `skip`, is not there as it was written.

    Only files that are found there are read: a name in `digests` may point anywhere.
    """
    actual = digests_of(folder, skip) if digests else {}
    for name, digest in digests.items():
        if name == skip:
            continue
        if name not in actual:
            raise ValueError(f"{folder} has no file {short(name)} any more. {DAMAGED}")
        if actual[name] != digest:
            raise ValueError(f"{folder / name} is not as it was written. {DAMAGED}")


def check_record(
    path: Path, record: dict, needed: dict[str, type], optional: dict[str, type]
) -> None:
    """Raise `ValueError` where a JSON file of ours lacks a value or has one of another type."""
    for name, kind in {**needed, **optional}.items():
        if name not in record:
            if name in needed:
                raise ValueError(f"{path} has no {name!r}. {DAMAGED}")
        elif type(record[name]) is not kind:
            raise ValueError(
                f"{path} has {short(record[name])} as {name!r}: expected {_TYPES[kind]}. {DAMAGED}"
            )


def short(value) -> str:
    """A value as an error message shows it: in one line, and not long."""
    return one_line(truncated_repr(value))

"""Files: a cache, and writing that is all or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path


def cache_folder() -> Path:
    """The folder of built corpora and vocabularies: $CONTACCUM_LITE_CACHE, or the user's cache."""
    from platformdirs import user_cache_path

    folder = os.environ.get("CONTACCUM_LITE_CACHE")
    return Path(folder) if folder else user_cache_path("contaccum_lite")


def cached_json(name: str, build, check=lambda value: None):
    """The JSON value in the cache under this name, or what `build()` returns, which is then cached.

    A value is built again where its file cannot be read or `check` raises a `ValueError` about it.
    Where the cache cannot be written to, nothing is cached.
    """
    path = cache_folder() / name
    try:
        value = json.loads(path.read_bytes())
        check(value)
        return value
    except (OSError, ValueError, RecursionError):
        value = build()
    with contextlib.suppress(OSError):
        write_atomically(path, json.dumps(value, ensure_ascii=False).encode())
    return value


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # it has the access rights of any other file, unlike mkstemp's
    temporary = path.parent / f".{path.name}-{secrets.token_hex(4)}"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fsync_tree(folder: Path) -> None:
    """Write the folder and every file under it through to the disk."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or os.name == "posix":  # elsewhere a folder cannot be opened
            handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

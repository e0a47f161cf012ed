"""A corpus in shards on disk, and exact search through it.

For corpora whose vectors do not fit in memory.

    index.json         what it was made with, and how many passages it holds once it is finished
    query_tower/       so that a search needs nothing else
    shard-00000/       vectors.npy (read by memory map) · passages.jsonl · starts.npy, where each
                       passage's line starts · digest.txt, of the passages

A shard is written under another name and takes its own when it is complete: a build that was killed
resumes with the next one. Notebook 09.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from contaccum_lite.core.metrics import Hits, check_ranking
from contaccum_lite.core.retriever import Retriever
from contaccum_lite.core.settings import Settings
from contaccum_lite.data.types import Pair, Pairs, Passage
from contaccum_lite.encoders.make import load_tower
from contaccum_lite.utils.files import fsync_tree, write_atomically
from contaccum_lite.utils.folders import (
    DAMAGED,
    alone_in,
    check_digests,
    check_record,
    digests_of,
    is_temporary,
    short,
)
from contaccum_lite.utils.text import one_line

SHARD = 50_000  # passages in a shard
_BLOCK = 32_768  # vectors that a search compares at a time
_FORMAT = 1
_SHARD = re.compile(r"shard-(\d{5,})")
_NEEDED = dict(
    run=str,
    towers=str,
    source=str,
    shard=int,
    dtype=str,
    dim=int,
    pooling=str,
    query_tokens=int,
    passage_tokens=int,
    precision=str,
)
_OPTIONAL = dict(passages=int, finished=bool, digests=dict)


# --- exact search, shard by shard -----------------------------------------------------------------


def search_shards(
    queries: np.ndarray, shards: Iterable[np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors of the highest inner product over all shards, exactly.

    Returns (scores, rows), each (queries, ≤ k), best first.

    queries: (queries, d) float32. shards: (n, d) arrays of float32 or float16, memory-mapped or
    made as they are asked for; rows count on from one to the next. At any time no more than a part
    of one shard and k results per query are held. Of equal scores the lower row comes first.
    """
    import faiss

    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    first = 0
    for shard in shards:
        for start in range(0, len(shard), _BLOCK):
            block = np.ascontiguousarray(shard[start : start + _BLOCK], dtype=np.float32)
            nearest = faiss.knn(
                queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT
            )
            block_scores, block_rows = check_ranking(*nearest)
            scores = np.concatenate([scores, block_scores], 1)
            rows = np.concatenate([rows, block_rows + (first + start)], 1)
            best = np.lexsort((rows, -scores), axis=1)[:, :k]
            scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        first += len(shard)
    return scores, rows


# --- on disk --------------------------------------------------------------------------------------


class Index:
    """An index that `build` finished: `search(query)` finds passages.

    Raises `ValueError` for a folder that holds none.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.about = _about(self.folder)
        if self.about is None:
            raise ValueError(
                f"{folder} holds no index: expected a folder that `contaccum index` wrote."
            )
        if not self.about.get("finished"):
            raise ValueError(
                f"{folder} holds an index that is not finished ({len(_shards(self.folder))} "
                "shards so far): run `contaccum index` again, as before."
            )
        self.shards = _shards(self.folder)
        self.starts = np.cumsum([0, *map(len, self.vectors())])
        self._retriever = None
        if len(self) != self.about["passages"]:
            raise ValueError(
                f"{folder} should hold {self.about['passages']:,} passages, and its shards hold "
                f"{len(self):,}: make it anew."
            )
        self._line_starts = [
            _array(shard / "starts.npy", _WHOLE, (int(rows),))
            for shard, rows in zip(self.shards, np.diff(self.starts))
        ]

    def __len__(self):
        return int(self.starts[-1])

    def __repr__(self):
        return (
            f"Index({str(self.folder)!r}, {len(self):,} passages of {self.about['dim']} numbers "
            f"in {len(self.shards)} shards)"
        )

    def vectors(self) -> Iterator[np.ndarray]:
        """Each shard's vectors, by memory map."""
        for number, shard in enumerate(self.shards):
            rows = min(self.about["shard"], self.about["passages"] - number * self.about["shard"])
            yield _array(shard / "vectors.npy", (self.about["dtype"],), (rows, self.about["dim"]))

    def rank(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows) of the k best passages for each query vector, exactly."""
        return search_shards(queries, self.vectors(), k)

    def passage(self, row: int) -> Passage:
        """The passage of this row, read from its shard."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        starts = self._line_starts[number]
        path, row = self.shards[number] / "passages.jsonl", int(row - self.starts[number])
        columns = None
        try:
            end = int(starts[row + 1]) if row + 1 < len(starts) else path.stat().st_size
            with open(path, "rb") as file:
                file.seek(int(starts[row]))
                line = file.readline()
            if len(line) == end - int(starts[row]):
                columns = json.loads(line)
        except (OSError, ValueError, RecursionError):
            pass
        if not _is_passage(columns):
            raise ValueError(
                f"{path} or starts.npy beside it is not as it was written: passage "
                f"{row} cannot be read. {DAMAGED}"
            )
        return Passage(*columns)

    def qrels(self, pair: Pair, pairs: Pairs, ranking: np.ndarray) -> dict[int, int]:
        """{row: grade} of the passages that answer a pair's query, known by their title and text.

        The index may be of another corpus than the pairs' own. A passage that was not found gets a
        row that does not exist, so that it is counted.
        """
        row_of = {}
        for row in reversed(ranking):  # of equal passages, the best row counts
            row_of[self.passage(int(row))[1:]] = int(row)
        grades = {}
        for number, (name, grade) in enumerate(pair.grades.items()):
            title_and_text = pairs.passages[pairs.row_of[name]][1:]
            grades[row_of.get(title_and_text, -1 - number)] = grade
        return grades

    def check_towers(self, retriever: Retriever) -> None:
        """Raise `ValueError` where the index was made by other towers."""
        made_by = self.about["dim"], self.about["towers"]
        if made_by != (retriever.dim, retriever.fingerprint):
            raise ValueError(
                f"{self.folder} was made by other towers ({one_line(self.about['run'])}): make an "
                "index with this run."
            )

    @property
    def retriever(self) -> Retriever:
        """The query tower that is kept beside the shards."""
        if self._retriever is None:
            path, about = self.folder / "query_tower", self.about
            check_digests(path, about.get("digests", {}))
            if not path.is_dir():  # a name alone would be looked up on the hub
                raise ValueError(f"{self.folder} has no folder 'query_tower'. {DAMAGED}")
            tower = load_tower(path, about["pooling"]).eval()
            settings = Settings(query_tokens=about["query_tokens"])
            self._retriever = Retriever(tower, None, settings, about["run"])
        return self._retriever

    def search(self, query: str, k: int = 5) -> Hits:
        """The k passages nearest to the query: hits with score, id, title, passage."""
        return self.retriever.search(query, k, self)


def build(
    run: str | Path,
    passages: Callable[[], Iterable[Passage]] | Sequence[Passage],
    folder: str | Path,
    *,
    source: str = "",
    shard: int = SHARD,
    dtype: str = "float32",
    device: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Index:
    """Encode passages by a saved run's passage tower into an index.

    A build that was interrupted resumes after its last complete shard.

    run: a folder that `Run.save` wrote. passages: a list, or a function that gives them anew as a
    stream, of which one shard is held at a time. dtype: "float32", or "float16" for half the disk.
    progress: called with the passages done. Raises `ValueError` where the folder holds something
    else, or an index made with another run, other passages or another shard size. The passages of a
    finished index are compared too. Where another process is making the index, this one is refused.
    """
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype is {dtype!r}: choose 'float32' or 'float16'.")
    if shard < 1:
        raise ValueError(f"shard is {shard}: it must be 1 or more passages.")
    folder, retriever = Path(folder), Retriever.load(run, device)
    about = _record(retriever, source, shard, dtype)
    with alone_in(folder):
        before = _about(folder)
        _check_same(folder, before, about)
        stream = iter(passages() if callable(passages) else passages)
        start = next(stream, None)  # what cannot be read says so before anything is written
        if start is None:
            raise ValueError(
                f"{source or 'the source'} has no passages: there is nothing to index."
            )
        if before is None:
            _write_folder(folder / "query_tower", retriever.query_tower.save_pretrained)
            about["digests"] = digests_of(folder / "query_tower")
            write_atomically(folder / "index.json", json.dumps(about, indent=1).encode())
        finished = before is not None and before.get("finished", False)
        stream = itertools.chain([start], stream)
        done = _write_shards(folder, retriever, stream, about, finished, progress)
        if not finished:
            about = {**(before or about), "passages": done, "finished": True}
            write_atomically(folder / "index.json", json.dumps(about, indent=1).encode())
        return Index(folder)


def _record(retriever: Retriever, source: str, shard: int, dtype: str) -> dict:
    """What index.json says from the start."""
    settings = retriever.settings
    return {
        "format": _FORMAT,
        "run": retriever.name,
        "towers": retriever.fingerprint,
        "source": source,
        "shard": shard,
        "dtype": dtype,
        "dim": retriever.dim,
        "pooling": settings.pooling,
        "query_tokens": settings.query_tokens,
        "passage_tokens": settings.passage_tokens,
        "precision": settings.precision,
    }


def _check_same(folder: Path, before: dict | None, about: dict) -> None:
    """Raise `ValueError` where the folder holds something else, or an index made otherwise."""
    if before is None:
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ValueError(
                f"{folder} holds other files: give a new or an empty folder for the index."
            )
        return
    for name, value in about.items():
        if before[name] != value:
            raise ValueError(
                f"{folder} holds an index made with another {name} "
                f"({short(before[name])}, now {short(value)}): give another folder."
            )


def _write_shards(
    folder: Path,
    retriever: Retriever,
    stream: Iterator[Passage],
    about: dict,
    finished: bool,
    progress: Callable[[int], None],
) -> int:
    """Write the shards that are not there yet, compare the others; how many passages there are."""
    source, done = about["source"] or "those given", 0
    begun = "is finished, and holds" if finished else "was begun with"
    for number in itertools.count():
        passages = list(itertools.islice(stream, about["shard"]))
        if not passages:
            break
        lines = [_line(passage) for passage in passages]
        path = folder / f"shard-{number:05d}"
        if path.is_dir():
            if _digest(lines) != _read_digest(path):
                raise ValueError(
                    f"{folder} {begun} other passages than {source} (shard {number} "
                    "differs): give another folder."
                )
        elif finished:
            raise ValueError(
                f"{folder} {begun} fewer passages than {source} (there is no "
                f"{path.name}): give another folder."
            )
        else:
            vectors = _as_type(retriever.encode_passages(passages), about["dtype"], passages)
            _write_folder(path, partial(_write_shard, vectors=vectors, lines=lines))
        done += len(passages)
        progress(done)
    for path in _shards(folder)[number:]:
        raise ValueError(
            f"{folder} {begun} more passages than {source} ({path.name} is beyond the "
            "end): give another folder."
        )
    return done


def _line(passage: Passage) -> bytes:
    return json.dumps(list(passage), ensure_ascii=False).encode() + b"\n"


def _as_type(vectors: np.ndarray, dtype: str, passages: Sequence[Passage]) -> np.ndarray:
    """The vectors as they are stored. Raises `ValueError` where float16 cannot hold one."""
    with np.errstate(over="ignore"):
        stored = vectors.astype(dtype)
    good = np.isfinite(stored).all(1)
    if not good.all():
        raise ValueError(
            f"the vector of passage {short(passages[int(good.argmin())].id)} has a "
            "number above 65,504, the largest of float16: choose --dtype float32."
        )
    return stored


def _write_shard(folder: Path, vectors: np.ndarray, lines: list[bytes]) -> None:
    np.save(folder / "vectors.npy", vectors, allow_pickle=False)
    starts = np.cumsum([0, *map(len, lines)], dtype=np.int64)[:-1]
    np.save(folder / "starts.npy", starts, allow_pickle=False)
    with open(folder / "passages.jsonl", "wb") as file:
        file.writelines(lines)
    (folder / "digest.txt").write_text(_digest(lines))


def _read_digest(shard: Path) -> str:
    path = shard / "digest.txt"
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}). {DAMAGED}") from None


def _digest(lines: list[bytes]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def _write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """A folder that is there complete or not at all.

    It is filled under another name, brought to the disk, and renamed.
    """
    if folder.is_dir():
        return
    for old in folder.parent.iterdir():  # what a killed build left
        if is_temporary(old.name, folder.name):
            shutil.rmtree(old, ignore_errors=True)
    new = folder.parent / f".{folder.name}-{secrets.token_hex(4)}"
    try:
        new.mkdir()
        write(new)
        fsync_tree(new)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _about(folder: Path) -> dict | None:
    """What index.json says; None where there is none. Raises `ValueError` for a damaged one."""
    path = folder / "index.json"
    try:
        about = json.loads(path.read_bytes())
        version = about["format"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}): "
            "expected what `contaccum index` wrote."
        ) from None
    if version != _FORMAT:
        raise ValueError(
            f"{folder} was made in format {short(version)}; this version reads format {_FORMAT}."
        )
    check_record(path, about, _NEEDED, _OPTIONAL)
    wrong = [
        name for name in ("shard", "dim", "query_tokens", "passages") if about.get(name, 1) < 1
    ]
    if about["dtype"] not in ("float32", "float16"):
        wrong.append("dtype")
    if about.get("finished") and "passages" not in about:
        wrong.append("passages")
    if wrong:
        raise ValueError(
            f"{path} has {short(about.get(wrong[0]))} as {wrong[0]!r}, which no index "
            f"has. {DAMAGED}"
        )
    return about


def _shards(folder: Path) -> list[Path]:
    """The folders of shards, in order; what else is there is not ours."""
    numbers = {}
    for path in folder.iterdir():
        match = _SHARD.fullmatch(path.name)
        if match and path.is_dir():
            numbers[path] = int(match[1])
    return sorted(numbers, key=numbers.get)


_WHOLE = ("int64", "int32")  # the second one is of older versions, on Windows


def _array(path: Path, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """A file's array by memory map. Raises `ValueError` where it is not of this type and shape."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # the bytes of a header can be anything, and so can the error
        raise ValueError(f"{path} cannot be read ({type(error).__name__}). {DAMAGED}") from error
    if array.dtype not in dtypes or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{path} holds {array.shape} numbers of {array.dtype}: expected {shape} "
            f"of {dtypes[0]}. {DAMAGED}"
        )
    return array


def _is_passage(columns) -> bool:
    return (
        isinstance(columns, list)
        and len(columns) == 3
        and all(isinstance(column, str) for column in columns)
    )


# --- evaluation -----------------------------------------------------------------------------------


class StreamedCorpus:
    """All passages of a data set, encoded a shard at a time when they are ranked.

    No vector is kept.
    """

    def __init__(self, retriever: Retriever, pairs: Pairs, shard: int, progress: Callable):
        self.retriever, self.pairs, self.shard, self.progress = retriever, pairs, shard, progress

    def rank(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows) of the k best passages for each query vector, exactly."""
        return search_shards(queries, self._shards(), k)

    def _shards(self) -> Iterator[np.ndarray]:
        passages = self.pairs.passages
        for start in range(0, len(passages), self.shard):
            yield self.retriever.encode_passages(passages[start : start + self.shard])
            self.progress(min(start + self.shard, len(passages)))

    def passage(self, row: int) -> Passage:
        return self.pairs.passages[row]

    def qrels(self, pair: Pair, pairs: Pairs, ranking: np.ndarray) -> dict[int, int]:
        """{row: grade} of the passages that answer a pair's query."""
        return {pairs.row_of[name]: grade for name, grade in pair.grades.items()}


def evaluate(
    retriever: Retriever,
    pairs: Pairs,
    split: str = "test",
    index: Index | None = None,
    shard: int = SHARD,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
    """The metrics of `Run.evaluate`, over all passages of `pairs` or over an index.

    All passages are encoded a shard at a time.

    An index may be of another corpus than the pairs' own (all of Wikipedia): then a passage counts
    as relevant where its title and text are those of a relevant one, and answer strings are looked
    for as DPR does.
    """
    if index is None:
        return retriever.evaluate(pairs, split, StreamedCorpus(retriever, pairs, shard, progress))
    index.check_towers(retriever)
    return retriever.evaluate(pairs, split, index)

"""A corpus in shards on disk, and exact search through it: for corpora whose vectors do not fit in memory.

    index.json         what it was made with, and how many passages it holds once it is finished
    query_tower/       so that a search needs nothing else
    shard-00000/       vectors.npy (read by memory map) · passages.jsonl · starts.npy, where each passage's line starts

A shard is written under another name and takes its own when it is whole: a build that was killed goes on with the next one.
Notebook 09.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .data import Pair, Pairs, Passage, write_atomically
from .search import Hit, Hits, answer_measures, ranking_measures, TOP
from .settings import Settings
from .towers import array_of, load_tower
from .train import check_device, sync, while_it_stands

SHARD = 50_000          # passages in a shard
_BLOCK = 32_768         # vectors that a search compares at a time
_FORMAT = 1


# --- towers of a saved run ---------------------------------------------------------------------------------------------

class Retriever:
    """Two towers without their data: texts in, vectors out. `Retriever.load(folder)` takes those of a saved run."""

    def __init__(self, query_tower, passage_tower, settings: Settings, name: str = "a run"):
        self.query_tower, self.passage_tower, self.settings, self.name = query_tower, passage_tower, settings, name

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> Retriever:
        """The towers that `Run.save` wrote; device: where to encode, left out where the run trained."""
        import torch

        def load(state, place):
            settings = Settings.preset(**{**state["settings"], **({"device": device} if device else {})})
            check_device(settings)
            towers = [load_tower(place / name, settings.pooling) for name in ("query_tower", "passage_tower")[:2 - settings.shared]]
            towers = [tower.to(device=settings.device, dtype=getattr(torch, settings.dtype)) for tower in towers]
            return cls(towers[0], towers[-1], settings, f"{state['pairs']}, {state['step']} updates")
        return while_it_stands(folder, load)

    @property
    def dim(self) -> int:
        return self.query_tower.dim

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, d) float32."""
        tower = self.query_tower
        return self._vectors(tower, tower.tokenize(list(texts), length=self.settings.query_tokens))

    def passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """(passages, d) float32."""
        tower = self.passage_tower
        return self._vectors(tower, tower.tokenize([p.text for p in passages], [p.title for p in passages], self.settings.passage_tokens))

    def _vectors(self, tower, tokens) -> np.ndarray:
        return array_of(tower, tokens, self.settings)

    @property
    def fingerprint(self) -> str:
        """A hash of the weights."""
        digest = hashlib.sha256()
        for tower in (self.query_tower, self.passage_tower):
            for name, tensor in sorted(tower.state_dict().items()):
                digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


# --- exact search, shard by shard --------------------------------------------------------------------------------------

def search_shards(queries: np.ndarray, shards: Iterable[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors of the highest inner product over all shards, exactly: (scores, rows), each (queries, ≤ k), best first.

    queries: (queries, d) float32. shards: (n, d) arrays of float32 or float16, memory-mapped or made as they are asked for;
    rows count on from one to the next. At any time no more than a part of one shard and k results per query are held. Of equal
    scores the lower row comes first.
    """
    import faiss

    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    first = 0
    for shard in shards:
        for start in range(0, len(shard), _BLOCK):
            block = np.ascontiguousarray(shard[start:start + _BLOCK], dtype=np.float32)
            found, places = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            scores, rows = np.concatenate([scores, found], 1), np.concatenate([rows, places + (first + start)], 1)
            best = np.lexsort((rows, -scores), axis=1)[:, :k]
            scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        first += len(shard)
    return scores, rows


# --- on disk -----------------------------------------------------------------------------------------------------------

class Index:
    """An index that `build` finished: `search(query)` finds passages. Raises `ValueError` for a folder that holds none."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.about = _about(self.folder)
        if self.about is None:
            raise ValueError(f"{folder} holds no index: expected a folder that `contaccum index` wrote.")
        if not self.about.get("finished"):
            raise ValueError(f"{folder} holds an index that is not finished ({len(_shards(self.folder))} shards so far): run `contaccum index` again, as before.")
        self.shards = _shards(self.folder)
        self.starts = np.cumsum([0, *(len(vectors) for vectors in self.vectors())])
        self._tower = None
        if len(self) != self.about["passages"]:
            raise ValueError(f"{folder} should hold {self.about['passages']:,} passages, and its shards hold {len(self):,}: make it anew.")

    def __len__(self):
        return int(self.starts[-1])

    def __repr__(self):
        return f"Index({str(self.folder)!r}, {len(self):,} passages of {self.about['dim']} numbers in {len(self.shards)} shards)"

    def vectors(self) -> Iterator[np.ndarray]:
        """Each shard's vectors, by memory map."""
        for shard in self.shards:
            yield np.load(shard / "vectors.npy", mmap_mode="r", allow_pickle=False)

    def rank(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows) of the k best passages for each query vector, exactly."""
        return search_shards(queries, self.vectors(), k)

    def passage(self, row: int) -> Passage:
        """The passage of this row, read from its shard."""
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        starts = np.load(self.shards[shard] / "starts.npy", mmap_mode="r", allow_pickle=False)
        with open(self.shards[shard] / "passages.jsonl", "rb") as file:
            file.seek(int(starts[row - self.starts[shard]]))
            return Passage(*json.loads(file.readline()))

    def encode(self, queries: Sequence[str]) -> np.ndarray:
        """(queries, d) by the query tower that is kept beside the shards."""
        if self._tower is None:
            self._tower = load_tower(self.folder / "query_tower", self.about["pooling"]).eval()
        tokens = self._tower.tokenize(list(queries), length=self.about["query_tokens"])
        return array_of(self._tower, tokens, Settings())

    def search(self, query: str, k: int = 5) -> Hits:
        """The k passages nearest to the query: hits with score, id, title, passage."""
        if not isinstance(query, str) or not query.strip():
            raise ValueError(f"the query is {query!r}: it must be a text.")
        if k < 1:
            raise ValueError(f"k is {k}: it must be 1 or more.")
        scores, rows = self.rank(self.encode([query]), k)
        return Hits(Hit(float(score), *self.passage(int(row))) for score, row in zip(scores[0], rows[0]))


def build(run: str | Path, passages: Callable[[], Iterable[Passage]] | Sequence[Passage], folder: str | Path, *, source: str = "", shard: int = SHARD,
          dtype: str = "float32", device: str | None = None, progress: Callable[[int], None] = lambda done: None) -> Index:
    """Encode passages by a saved run's passage tower into an index; one that was broken off goes on after its last whole shard.

    run: a folder that `Run.save` wrote. passages: a list, or a function that gives them anew as a stream, of which one shard is held
    at a time. dtype: "float32", or "float16" for half the disk. progress: called with the passages done. Raises `ValueError` where
    the folder holds something else, or an index made with another run, other passages or another shard size.
    """
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype is {dtype!r}: choose 'float32' or 'float16'.")
    if shard < 1:
        raise ValueError(f"shard is {shard}: it must be 1 or more passages.")
    folder, retriever = Path(folder), Retriever.load(run, device)
    s = retriever.settings
    about = dict(format=_FORMAT, run=retriever.name, towers=retriever.fingerprint, source=source, shard=shard, dtype=dtype, dim=retriever.dim, pooling=s.pooling,
                 query_tokens=s.query_tokens, passage_tokens=s.passage_tokens, precision=s.precision)
    before = _about(folder)
    if before is None and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(f"{folder} holds other files: give a new or an empty folder for the index.")
    if before is not None:
        different = [name for name in about if before.get(name) != about[name]]
        if different:
            raise ValueError(f"{folder} holds an index made with another {different[0]} ({before.get(different[0])!r}, now {about[different[0]]!r}): give another folder.")
        if before.get("finished"):
            return Index(folder)
    stream = iter(passages() if callable(passages) else passages)
    start = next(stream, None)                     # a source that cannot be read says so before anything is written
    if start is None:
        raise ValueError(f"{source or 'the source'} has no passages: there is nothing to index.")
    if before is None:
        _place(folder / "query_tower", retriever.query_tower.save_pretrained)
        write_atomically(folder / "index.json", json.dumps(about, indent=1).encode())
    stream, done = itertools.chain([start], stream), 0
    for number in itertools.count():
        part = list(itertools.islice(stream, shard))
        if not part:
            break
        lines = [json.dumps(list(passage), ensure_ascii=False).encode() + b"\n" for passage in part]
        place = folder / f"shard-{number:05d}"
        if place.is_dir():
            if _digest(lines) != (place / "digest.txt").read_text():
                raise ValueError(f"{folder} was begun with other passages than {source or 'those given'} (shard {number} differs): give another folder.")
        else:
            _place(place, lambda new: _write_shard(new, retriever.passages(part).astype(dtype), lines))
        done += len(part)
        progress(done)
    for path in _shards(folder)[number:]:
        raise ValueError(f"{folder} was begun with more passages than {source or 'those given'} ({path.name} is beyond the end): give another folder.")
    write_atomically(folder / "index.json", json.dumps({**about, "passages": done, "finished": True}, indent=1).encode())
    return Index(folder)


def _write_shard(folder: Path, vectors: np.ndarray, lines: list[bytes]) -> None:
    np.save(folder / "vectors.npy", vectors, allow_pickle=False)
    np.save(folder / "starts.npy", np.cumsum([0, *map(len, lines)])[:-1], allow_pickle=False)
    with open(folder / "passages.jsonl", "wb") as file:
        file.writelines(lines)
    (folder / "digest.txt").write_text(_digest(lines))


def _digest(lines: list[bytes]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def _place(folder: Path, write: Callable[[Path], None]) -> None:
    """A folder that is there whole or not at all: filled under another name, brought to the disk, and renamed."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.glob(f".{folder.name}-*"):        # what a killed build left
        shutil.rmtree(old, ignore_errors=True)
    new = folder.parent / f".{folder.name}-{secrets.token_hex(4)}"
    try:
        new.mkdir()
        write(new)
        sync(new)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
        raise


def _about(folder: Path) -> dict | None:
    path = folder / "index.json"
    try:
        about = json.loads(path.read_bytes())
        fine = about["format"] == _FORMAT
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}): expected what `contaccum index` wrote.") from None
    if not fine:
        raise ValueError(f"{folder} was made in format {about['format']!r}; this version reads format {_FORMAT}.")
    return about


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*"))


# --- evaluation --------------------------------------------------------------------------------------------------------

def evaluate(retriever: Retriever, pairs: Pairs, split: str = "test", index: Index | None = None, shard: int = SHARD,
             progress: Callable[[int], None] = lambda done: None) -> dict[str, float]:
    """The measures of `Run.evaluate`, by a saved run's towers, over all passages of `pairs` a shard at a time, or over an index.

    An index may be of another corpus than the pairs' own (all of Wikipedia): then a passage counts as relevant where its title and
    text are those of a relevant one, and answer strings are looked for as DPR does.
    """
    asked = {"test": pairs.test, "dev": pairs.dev}.get(split)
    if not asked:
        raise ValueError(f"{pairs.name} has no {split!r} pairs to evaluate on.")
    queries = retriever.queries([pair.query for pair in asked])
    if index is None:
        texts = pairs.passages
        _, rows = search_shards(queries, _encoded(retriever, texts, shard, progress), max(TOP))
        relevant = [{pairs.row_of[name]: grade for name, grade in _grades(pair).items()} for pair in asked]
    else:
        if index.about["dim"] != retriever.dim or index.about["towers"] != retriever.fingerprint:
            raise ValueError(f"{index.folder} was made by other towers ({index.about['run']}): make an index with this run.")
        _, rows = index.rank(queries, max(TOP))
        texts = {int(row): index.passage(int(row)) for row in np.unique(rows)}
        relevant = [_rows_of(pair, found, pairs, texts) for pair, found in zip(asked, rows)]
    measures = ranking_measures(rows, relevant)
    if any(pair.answers for pair in asked):
        measures |= answer_measures(rows, [pair.answers for pair in asked], _Texts(texts))
    return measures


def _encoded(retriever: Retriever, passages: Sequence[Passage], shard: int, progress: Callable[[int], None]) -> Iterator[np.ndarray]:
    for start in range(0, len(passages), shard):
        yield retriever.passages(passages[start:start + shard])
        progress(min(start + shard, len(passages)))


def _grades(pair: Pair) -> dict[str, int]:
    return pair.relevant or {pair.passage_id: 1}


def _rows_of(pair: Pair, found: np.ndarray, pairs: Pairs, texts: dict[int, Passage]) -> dict[int, int]:
    """The pair's grades by row of the index; a relevant passage that was not found gets a row that does not exist, so that it is counted."""
    row_of = {texts[int(row)][1:]: int(row) for row in reversed(found)}
    wanted = [(pairs.passages[pairs.row_of[name]][1:], grade) for name, grade in _grades(pair).items()]
    return {row_of.get(text, -1 - n): grade for n, (text, grade) in enumerate(wanted)}


class _Texts:
    """The texts of passages, by row."""

    def __init__(self, passages):
        self.passages = passages

    def __getitem__(self, row):
        return self.passages[int(row)].text

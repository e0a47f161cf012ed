"""Index and search a million passages inside 4 GB, by a small tower on one core.

    python -m benchmarks.million                  a million passages, an address space of 4 GB
    python -m benchmarks.million 20000 4          so many passages, so many GB

Passages are made as they are read, so nothing is stored but the index, in a temporary folder. The record lies in
benchmarks/records/million.json.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from contaccum_lite.evidence.records import write_records
from tools import docs

RECORD = docs.RECORDS / "million.json"


def passages(count: int) -> Iterator:
    """Synthetic passages of 20 to 60 words out of 20,000, the same each time."""
    from contaccum_lite.data.types import Passage

    draw = random.Random(0)
    words = [
        "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 9)))
        for _ in range(20_000)
    ]
    for n in range(count):
        yield Passage(
            f"p{n}",
            f"{words[n % 20_000]} {n}",
            " ".join(draw.choices(words, k=draw.randint(20, 60))),
        )


def measure(count: int, gigabytes: float, folder: Path) -> dict:
    """Build and search in this process, whose address space is held to so many GB; says what it took."""
    resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 1e9),) * 2)
    import torch
    from tqdm import tqdm

    import contaccum_lite as cl
    from contaccum_lite.scale import index

    torch.set_num_threads(1)
    pairs = cl.load_pairs("toy")
    run = cl.Run(pairs, cl.Settings(updates=1))
    run.step()
    run.save(folder / "run")
    with tqdm(total=count, unit="passage", disable=None) as bar:
        began = time.perf_counter()
        made = index.build(
            folder / "run",
            lambda: passages(count),
            folder / "index",
            source=f"{count} synthetic passages",
            progress=lambda done: bar.update(done - bar.n),
        )
        seconds = time.perf_counter() - began
    peak = cl.peak_memory()
    queries = made.retriever.encode_queries([p.text for p in passages(100)])
    began = time.perf_counter()
    made.rank(queries, 100)
    search = time.perf_counter() - began
    began = time.perf_counter()
    made.search(pairs.test[0].query, 5)
    one = time.perf_counter() - began
    size = lambda name: sum(
        path.stat().st_size for path in (folder / "index").glob(f"shard-*/{name}")
    )
    return dict(
        passages=count,
        limit_gb=gigabytes,
        shards=len(made.shards),
        dim=made.about["dim"],
        index_seconds=seconds,
        passages_per_second=count / seconds,
        peak_mb_index=peak,
        peak_mb=cl.peak_memory(),
        vectors_mb=size("vectors.npy") / 1e6,
        texts_mb=size("passages.jsonl") / 1e6,
        queries=len(queries),
        search_seconds=search,
        one_query_seconds=one,
    )


def main() -> None:
    count, gigabytes = (
        int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000,
        float(sys.argv[2]) if len(sys.argv) > 2 else 4.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        record = {
            key: float(f"{value:.4g}") if isinstance(value, float) else value
            for key, value in measure(count, gigabytes, Path(folder)).items()
        }
    print(json.dumps(record, indent=1))
    if count == 1_000_000:
        write_records(RECORD, record)


if __name__ == "__main__":
    main()

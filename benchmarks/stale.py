"""Run the second paper's part of the ledger: stale caches, correctors, and what they cost to keep.

    python -m benchmarks.stale             run what is not yet recorded, judge, write the README
    python -m benchmarks.stale --fresh     run everything anew

Records lie in benchmarks/records/stale.json; stopped at any moment, it goes on from there.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

from contaccum_lite import stale

from .ledger import _short
from .regime import README, between

RECORDS = Path(__file__).parent / "records" / "stale.json"


def one(job: tuple[str, int]) -> dict | list[dict]:
    """One run, or one seed's curves, in a process of its own with one thread."""
    import torch

    import contaccum_lite as cl

    torch.set_num_threads(1)
    global _PAIRS
    _PAIRS = globals().get("_PAIRS") or cl.load_pairs("python-docs", progress=False)
    name, seed = job
    return stale.curves(seed, _PAIRS) if name == "curves" else stale.train(name, seed, _PAIRS)


def known() -> dict[str, list[dict]]:
    """The records that are there and still stand for what `RUNS` says."""
    found = json.loads(RECORDS.read_text()) if RECORDS.is_file() else {"runs": [], "curves": []}
    found["runs"] = [
        r
        for r in found["runs"]
        if r["name"] in stale.RUNS
        and r["settings"] == stale.RUNS[r["name"]].settings.replace(seed=r["seed"]).share()
    ]
    return found


def save(found: dict[str, list[dict]]) -> None:
    """A crash leaves the records of before."""
    order = list(stale.RUNS)
    found["runs"].sort(key=lambda r: (order.index(r["name"]), r["seed"]))
    found["curves"].sort(key=lambda r: r["seed"])
    part = RECORDS.with_suffix(".part")
    part.write_text(
        "{"
        + ",\n".join(
            f'"{kind}": [\n' + ",\n".join(json.dumps(_short(r)) for r in records) + "\n]"
            for kind, records in found.items()
        )
        + "}\n"
    )
    part.replace(RECORDS)


def main() -> None:
    from tqdm import tqdm

    found = {"runs": [], "curves": []} if "--fresh" in sys.argv else known()
    done = {(r["name"], r["seed"]) for r in found["runs"]} | {
        ("curves", r["seed"]) for r in found["curves"]
    }
    jobs = [
        (name, seed)
        for seed in stale.SEEDS
        for name in ["curves", *stale.RUNS]
        if (name, seed) not in done
    ]
    if jobs:
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            for made in tqdm(
                pool.imap_unordered(one, jobs), total=len(jobs), desc="runs", smoothing=0
            ):
                found["curves" if isinstance(made, list) else "runs"] += (
                    made if isinstance(made, list) else [made]
                )
                save(found)
    for mark, text in (
        ("stale-runs", stale.runs_table(found["runs"])),
        ("stale", stale.table(found["runs"], found["curves"])),
    ):
        print(text, end="\n\n")
        between(README, mark, text)


if __name__ == "__main__":
    main()

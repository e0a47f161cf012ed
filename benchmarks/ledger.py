"""Run the ledger: every claim of the paper at the scale of this machine.

    python -m benchmarks.ledger            run what is not yet recorded (about 19 minutes on two cores), judge, write the README
    python -m benchmarks.ledger --fresh    run everything anew
    python -m benchmarks.ledger --quick    a few runs at a quarter of their length (under 90 s), which show the signs; nothing is written

Records lie in benchmarks/records/ledger.json, one per run with its share line; stopped at any moment, it goes on from there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path

from contaccum_lite import ledger

from .cost import RECORDS as COST
from .regime import README, between

RECORDS = Path(__file__).parent / "records" / "ledger.json"
QUICK = ("DPR 128", "GradAccum 8", "ContAccum 8", "w/o M_q", "w/o M_q, common part removed")


def one(job: tuple[str, int, int]) -> dict:
    """One run, in a process of its own with one thread."""
    import torch

    import contaccum_lite as cl

    torch.set_num_threads(1)
    global _PAIRS
    _PAIRS = globals().get("_PAIRS") or cl.load_pairs("python-docs", progress=False)
    name, seed, shorter = job
    return ledger.train(name, seed, _PAIRS, shorter)


def known(fresh: bool = False) -> list[dict]:
    """The records that are there and still stand for what `RUNS` says."""
    records = json.loads(RECORDS.read_text()) if RECORDS.is_file() and not fresh else []
    stands = lambda r: (
        r["name"] in ledger.RUNS
        and r["settings"] == ledger.RUNS[r["name"]].settings.replace(seed=r["seed"]).share()
    )
    return [r for r in records if stands(r)]


def cost() -> dict[str, list[dict]]:
    return json.loads(COST.read_text())


def run(jobs: list[tuple[str, int, int]], records: list[dict], keep: bool) -> list[dict]:
    """Records with those of these jobs added; kept on disk as they come."""
    from tqdm import tqdm

    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for record in tqdm(
            pool.imap_unordered(one, jobs), total=len(jobs), desc="runs", smoothing=0
        ):
            records.append(record)
            if keep:
                save(records)
    return records


def save(records: list[dict]) -> None:
    """Write the records, in the order of `RUNS`; a crash leaves those of before."""
    order = {(name, seed): place for place, (name, seed, _) in enumerate(everything())}
    part = RECORDS.with_suffix(".part")
    part.write_text(
        "[\n"
        + ",\n".join(
            json.dumps(_short(r))
            for r in sorted(records, key=lambda r: order[r["name"], r["seed"]])
        )
        + "\n]\n"
    )
    part.replace(RECORDS)


def _short(value):
    """Numbers to six figures."""
    if isinstance(value, dict):
        return {key: _short(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_short(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def everything() -> list[tuple[str, int, int]]:
    return [(name, seed, 1) for name, plan in ledger.RUNS.items() for seed in plan.seeds]


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--fresh", action="store_true")
    options.add_argument("--quick", action="store_true")
    given = options.parse_args()
    if given.quick:
        records = run([(name, 0, 4) for name in QUICK], [], keep=False)
        for r in sorted(records, key=lambda r: QUICK.index(r["name"])):
            print(
                f"{r['name']:32s} Top@20 {100 * r['top@20']:5.1f}   ratio in the middle {r['trace'][len(r['trace']) // 2]:6.1f}"
            )
        return
    records = known(given.fresh)
    done = {(r["name"], r["seed"]) for r in records}
    if todo := [job for job in everything() if job[:2] not in done]:
        todo.sort(key=lambda job: -ledger.RUNS[job[0]].settings.updates)  # the long ones first
        records = run(todo, records, keep=True)
    save(records)
    text = ledger.table(records, cost())
    print(text)
    between(README, "ledger", text)


if __name__ == "__main__":
    main()

"""Run a ledger: what is not yet recorded is run, and the table is made from the records.

    python -m contaccum_lite.evidence.run ledger            the paper's claims (about 19 minutes)
    python -m contaccum_lite.evidence.run ledger --quick    a few runs at a quarter of their length
                                                            (under 90 s), which show the signs;
                                                            nothing is written
    python -m contaccum_lite.evidence.run stale             the second paper's claims

With --fresh everything is run again. Each record is written to `contaccum_lite/evidence/records`
as it comes: stopped at any moment, a ledger resumes from there.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm

from contaccum_lite.data.load import load_pairs
from contaccum_lite.evidence import ledger, records, runs, stale_claims

QUICK = ("DPR 128", "GradAccum 8", "ContAccum 8", "w/o M_q", "w/o M_q, common part removed")
CURVES = "curves"  # in place of a run's name: one seed's `stale_claims.curves`


@functools.cache
def _pairs():
    torch.set_num_threads(1)
    return load_pairs("python-docs", progress=False)


def run_of_ledger(job: tuple[str, int, int]) -> dict:
    """A record of `runs.train`, in a process of one thread. job: name, seed, step_divisor."""
    name, seed, step_divisor = job
    return runs.train(name, seed, _pairs(), step_divisor)


def run_of_stale(job: tuple[str, int]) -> dict | list[dict]:
    """A record of `stale_claims.train`, or those of one seed's curves, in one thread."""
    name, seed = job
    if name == CURVES:
        return stale_claims.curves(seed, _pairs())
    return stale_claims.train(name, seed, _pairs())


def in_processes(act: Callable, jobs: list[tuple]) -> Iterator:
    """The results of `act` on these jobs as they come, from two processes."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.imap_unordered(act, jobs)
        yield from tqdm(results, total=len(jobs), desc="runs", smoothing=0)


def known_ledger() -> list[dict]:
    """The paper's records that still stand for what `runs.RUNS` says."""
    return records.still_planned(records.read_records(records.LEDGER, []), runs.RUNS)


def planned_ledger() -> list[tuple[str, int, int]]:
    """All jobs of the paper's ledger, in the order of its records."""
    return [(name, seed, 1) for name, spec in runs.RUNS.items() for seed in spec.seeds]


def update_ledger(fresh: bool = False) -> list[dict]:
    """Run what the paper's ledger lacks, or all of it, and give its records."""
    results = [] if fresh else known_ledger()
    done = {(r["name"], r["seed"]) for r in results}
    jobs = [job for job in planned_ledger() if job[:2] not in done]
    jobs.sort(key=lambda job: -runs.RUNS[job[0]].settings.updates)  # the long ones first
    order = {job[:2]: number for number, job in enumerate(planned_ledger())}
    for record in in_processes(run_of_ledger, jobs) if jobs else ():
        results.append(record)
        results.sort(key=lambda r: order[r["name"], r["seed"]])
        records.write_record_lines(records.LEDGER, results)
    return results


def known_stale() -> dict[str, list[dict]]:
    """The second paper's records that still stand for what `stale_claims.RUNS` says."""
    results = records.read_records(records.STALE, {"runs": [], CURVES: []})
    results["runs"] = records.still_planned(results["runs"], stale_claims.RUNS)
    return results


def update_stale(fresh: bool = False) -> dict[str, list[dict]]:
    """Run what the second paper's ledger lacks, or all of it, and give its records."""
    results = {"runs": [], CURVES: []} if fresh else known_stale()
    done = {(r["name"], r["seed"]) for r in results["runs"]}
    done |= {(CURVES, r["seed"]) for r in results[CURVES]}
    names = [CURVES, *stale_claims.RUNS]
    jobs = [(name, seed) for seed in stale_claims.SEEDS for name in names]
    jobs = [job for job in jobs if job not in done]
    order = {name: number for number, name in enumerate(stale_claims.RUNS)}
    for result in in_processes(run_of_stale, jobs) if jobs else ():
        if isinstance(result, list):
            results[CURVES] += result
        else:
            results["runs"].append(result)
        results["runs"].sort(key=lambda r: (order[r["name"]], r["seed"]))
        results[CURVES].sort(key=lambda r: r["seed"])
        records.write_record_lines(records.STALE, results)
    return results


def ledger_tables(results: list[dict] | None = None) -> dict[str, str]:
    """The paper's table by its mark in the docs, from these records or those on disk."""
    results = known_ledger() if results is None else results
    cost = records.read_records(records.COST)
    if not results or not cost:
        raise ValueError(
            "the records of the ledger's runs are not here: they come with the package, in "
            f"{records.FOLDER}; install it again."
        )
    return {"ledger": ledger.table(results, cost)}


def stale_tables(results: dict[str, list[dict]] | None = None) -> dict[str, str]:
    """The second paper's tables by their marks in the docs, from these records or those on disk."""
    results = known_stale() if results is None else results
    return {
        "stale-runs": stale_claims.runs_table(results["runs"]),
        "stale": stale_claims.table(results["runs"], results[CURVES]),
    }


def quick() -> None:
    """Print what a few short runs show."""
    short_runs = list(in_processes(run_of_ledger, [(name, 0, 4) for name in QUICK]))
    for r in sorted(short_runs, key=lambda r: QUICK.index(r["name"])):
        ratio = r["trace"][len(r["trace"]) // 2]
        print(f"{r['name']:32s} Top@20 {100 * r['top@20']:5.1f}   ratio in the middle {ratio:6.1f}")


def main(arguments: list[str] | None = None) -> dict[str, str]:
    """The command. Gives the tables that it printed, by their marks in the docs."""
    parser = argparse.ArgumentParser(
        prog="python -m contaccum_lite.evidence.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("which", choices=("ledger", "stale"))
    parser.add_argument("--fresh", action="store_true", help="run everything again")
    parser.add_argument("--quick", action="store_true", help="ledger: a few short runs")
    options = parser.parse_args(arguments)
    if options.quick:
        quick()
        return {}
    if options.which == "ledger":
        tables = ledger_tables(update_ledger(options.fresh))
    else:
        tables = stale_tables(update_stale(options.fresh))
    print("\n\n".join(tables.values()))
    return tables


if __name__ == "__main__":
    main()

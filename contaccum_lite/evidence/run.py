"""Run a ledger: what is not yet recorded is run, and the tables are made from the records.

    python -m contaccum_lite.evidence.run ledger            the paper's claims, in both regimes:
                                                            fine-tuned, then from random weights
    python -m contaccum_lite.evidence.run pretrained        one of the two regimes alone
    python -m contaccum_lite.evidence.run failure           when a one-sided bank fails
    python -m contaccum_lite.evidence.run corrected         the two papers together
    python -m contaccum_lite.evidence.run negatives         when stale hard negatives cost accuracy
    python -m contaccum_lite.evidence.run stale             the second paper's claims, in both
                                                            regimes
    python -m contaccum_lite.evidence.run field             the field: every way to train when the
                                                            batch does not fit (--processes 1: half
                                                            the load; --quick: a few short runs)

With --quick each of these makes a few runs at a quarter of their length (under 90 s), which show
the signs, and writes nothing. With --fresh everything is run again. Each record is written to
`contaccum_lite/evidence/records` as it comes: stopped at any moment, a study resumes from there.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm

from contaccum_lite.core.settings import Settings
from contaccum_lite.data.load import load_pairs
from contaccum_lite.evidence import (
    field,
    field_claims,
    field_costs,
    ledger,
    predictor,
    records,
    regime,
    runs,
    stale_claims,
    studies,
)
from contaccum_lite.evidence.runs import RunSpec

#: what `--quick` runs of each regime of the ledger
QUICK = ("DPR 128", "GradAccum 8", "ContAccum 8", "w/o M_q", "w/o M_q, common part removed")
#: and of the other studies
QUICK_OF = {
    "failure": tuple(
        f"{start}: {kind}, N_memory {size}, rate 0.005"
        for start, size in (("pretrained", 512), ("random", 128))
        for kind in ("w/o M_q", studies.CONTROL, "ContAccum")
    ),
    "corrected": tuple(
        f"{bank}, {words}, N_memory 512, rate 0.01"
        for bank in studies.BANKS
        for words in ("as stored", "ridge, 32 probes", "fresh")
    ),
    "negatives": tuple(
        f"pretrained: {words}, top_k, rate 0.02"
        for words in ("stale", "corrected by ridge", "fresh every 10")
    ),
    "stale": ("in-batch", "stale cache", "corrected, ridge", "corrected, MLP"),
}
SHORTER = 4  # how many times shorter a run of `--quick` is
CURVES = "curves"  # in place of a run's name: one seed's `stale_claims.curves`
#: study -> name -> what is run
PLANS: dict[str, dict[str, RunSpec]] = {
    **runs.RUNS,
    "failure": studies.failure_plan(),
    "corrected": studies.corrected_plan(),
    "negatives": studies.negatives_plan(),
}


@functools.cache
def _pairs():
    torch.set_num_threads(1)
    return load_pairs("python-docs", progress=False)


def run_of_study(job: tuple[str, str, int, int]) -> dict:
    """A record of `runs.train`, in one thread. job: study, name, seed, step_divisor."""
    study, name, seed, step_divisor = job
    return runs.train(name, seed, _pairs(), PLANS[study][name], step_divisor)


def run_of_stale(job: tuple[str, str, int, int]) -> dict | list[dict]:
    """A record of `stale_claims.train`, or those of one seed's curves, in one thread.

    job: start, name, seed, step_divisor.
    """
    start, name, seed, step_divisor = job
    if name == CURVES:
        return stale_claims.curves(seed, _pairs(), start=start)
    return stale_claims.train(name, seed, _pairs(), step_divisor, start)


def in_processes(act: Callable, jobs: list[tuple], processes: int = 2) -> Iterator:
    """The results of `act` on these jobs as they come, from two processes."""
    _pairs()  # what is built is in the cache before two processes look for it
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        results = pool.imap_unordered(act, jobs)
        yield from tqdm(results, total=len(jobs), desc="runs", smoothing=0)


def known_records(study: str) -> list[dict]:
    """The records of a study that still stand for what its plan says."""
    return records.still_planned(records.read_records(records.STUDIES[study], []), PLANS[study])


def planned(study: str) -> list[tuple[str, int]]:
    """(name, seed) of all runs of a study, in the order of its records."""
    return [(name, seed) for name, spec in PLANS[study].items() for seed in spec.seeds]


def update_study(study: str, fresh: bool = False) -> list[dict]:
    """Run what a study's records lack, or all of it, and give its records."""
    results = [] if fresh else known_records(study)
    done = {(r["name"], r["seed"]) for r in results}
    missing = [run for run in planned(study) if run not in done]
    missing.sort(key=lambda run: -PLANS[study][run[0]].settings.updates)  # the long ones first
    order = {run: number for number, run in enumerate(planned(study))}
    jobs = [(study, name, seed, 1) for name, seed in missing]
    for record in in_processes(run_of_study, jobs) if jobs else ():
        results.append(record)
        results.sort(key=lambda r: order[r["name"], r["seed"]])
        records.write_record_lines(records.STUDIES[study], results)
    return results


def known_stale(start: str) -> dict[str, list[dict]]:
    """The second paper's records of a start that still stand for what `stale_claims` plans."""
    results = records.read_records(records.STALES[start], {"runs": [], CURVES: []})
    results["runs"] = records.still_planned(results["runs"], stale_claims.PLANS[start])
    return results


def update_stale(start: str, fresh: bool = False) -> dict[str, list[dict]]:
    """Run what the second paper's ledger lacks from a start, or all of it; give its records."""
    results = {"runs": [], CURVES: []} if fresh else known_stale(start)
    jobs = _missing_stale(start, results)
    order = {name: number for number, name in enumerate(stale_claims.PLANS[start])}
    for result in in_processes(run_of_stale, jobs) if jobs else ():
        if isinstance(result, list):
            results[CURVES] += result
        else:
            results["runs"].append(result)
        results["runs"].sort(key=lambda r: (order[r["name"]], r["seed"]))
        results[CURVES].sort(key=lambda r: r["seed"])
        records.write_record_lines(records.STALES[start], results)
    return results


def _missing_stale(start: str, results: dict[str, list[dict]]) -> list[tuple[str, str, int, int]]:
    """The jobs of `run_of_stale` whose records are not there."""
    done = {(r["name"], r["seed"]) for r in results["runs"]}
    done |= {(CURVES, r["seed"]) for r in results[CURVES]}
    names = (CURVES, *stale_claims.PLANS[start])
    planned = [(name, seed) for seed in stale_claims.SEEDS for name in names]
    return [(start, *run, 1) for run in planned if run not in done]


def run_of_field(job: tuple[str, int, int]) -> dict:
    """A record of `field.train`, in one thread. job: name, seed, step_divisor."""
    name, seed, step_divisor = job
    return field.train(name, seed, _pairs(), field.plan()[name], step_divisor)


def known_field() -> dict[str, list[dict]]:
    """The field's records that still stand for what its plan says."""
    results = records.read_records(records.FIELD, {"runs": [], "costs": [], "masks": []})
    results["runs"] = records.still_planned(results["runs"], field.plan())
    return results


def update_field(fresh: bool = False, processes: int = 2) -> dict[str, list[dict]]:
    """Run what the field's ledger lacks, or all of it, and give its records."""
    results = {"runs": [], "costs": [], "masks": []} if fresh else known_field()
    baselines = known_records("pretrained")
    order = {name: number for number, name in enumerate(field.plan())}
    while jobs := field.next_runs(field.with_baselines(results["runs"], baselines)):
        jobs = [(name, seed, 1) for name, seed in jobs]
        for record in in_processes(run_of_field, jobs, processes):
            results["runs"].append(record)
            results["runs"].sort(key=lambda r: (order[r["name"]], r["seed"]))
            records.write_record_lines(records.FIELD, results)
    if not results["masks"]:
        results["masks"] = field_costs.mask_quality(_pairs())
    if not results["costs"]:
        results["costs"] = field_costs.costs(_pairs())
    records.write_record_lines(records.FIELD, results)
    return results


def field_tables(results: dict[str, list[dict]] | None = None) -> dict[str, str]:
    """The field's tables by their marks in the docs, from these records or those on disk."""
    results = known_field() if results is None else results
    return field_claims.tables(results, known_records("pretrained"))


def quick_field(processes: int) -> None:
    """Print what a few short runs of the field show."""
    jobs = [(name, 0, 4) for name in ("GradAccum", "DPR 128", *field.QUICK)]
    for r in in_processes(run_of_field, jobs, processes):
        print(f"{r['name']:32s} MRR@10 {100 * r['mrr@10']:5.1f}")


def ledger_books() -> dict[str, records.RunRecords]:
    """The records of the paper's ledger, of both starts. Raises `ValueError` where they are not."""
    books = {}
    for start in runs.STARTS:
        results = known_records(start)
        if not results:
            raise ValueError(
                "the records of the ledger's runs are not here: they come with the package, in "
                f"{records.FOLDER}; install it again."
            )
        books[start] = records.RunRecords(results, start)
    return books


def ledger_tables() -> dict[str, str]:
    """The tables of the paper's ledger by their marks in the docs, from the records."""
    books, cost = ledger_books(), records.read_records(records.COST)
    tables = {"ledger": ledger.table(books, cost)}
    for start, book in books.items():
        tables[f"regime-{start}"] = regime.main_table(book)
        tables[f"rates-{start}"] = regime.rate_table(book)
        tables[f"figure3-{start}"] = regime.figure3_table(book)
        tables[f"cause-{start}"] = regime.cause_table(book)
        tables[f"defaults-{start}"] = regime.chosen_defaults(book)
    tables["halves-pretrained"] = regime.cause_sentence(books["pretrained"])
    return tables


def predictor_cells() -> list[predictor.Cell]:
    """The cells of the figure of what predicts that a one-sided bank fails."""
    return predictor.cells(known_records("failure"), known_records("corrected"))


def failure_tables() -> dict[str, str]:
    """The table of the study "failure", and what its cells say, from the records."""
    members = predictor_cells()
    return {
        "failure": predictor.table(members),
        "failure-words": predictor.words(members),
        "failure-controls": predictor.control_words(known_records("failure")),
    }


def corrected_tables() -> dict[str, str]:
    """The table of the two papers together, from the records."""
    book = studies.corrected_book(known_records("corrected"), known_records("pretrained"))
    cost = records.read_records(records.CORRECTOR_COST)
    return {
        "corrected": studies.corrected_table(book, cost),
        "corrected-words": studies.corrected_words(book),
    }


#: our own studies -> what makes their tables from the records, by their marks in the docs
OWN_TABLES: dict[str, Callable[[], dict[str, str]]] = {
    "failure": failure_tables,
    "corrected": corrected_tables,
    "negatives": lambda: {"negatives": studies.negatives_table(known_records("negatives"))},
}


def study_tables(which: str) -> dict[str, str]:
    """The tables of one of our own studies, or of the ledger."""
    return OWN_TABLES.get(which, ledger_tables)()


def stale_books() -> dict[str, dict[str, list[dict]]]:
    """Of each start: the second paper's records, as lists of "runs" and "curves"."""
    return {start: known_stale(start) for start in runs.STARTS}


def stale_tables() -> dict[str, str]:
    """The second paper's tables by their marks in the docs, from the records."""
    books = stale_books()
    tables = {
        f"stale-runs-{start}": stale_claims.runs_table(b["runs"]) for start, b in books.items()
    }
    return tables | {"stale": stale_claims.table_of_regimes(books)}


def quick(which: str) -> list[str]:
    """What a few short runs of a study show: a line for each, sorted by start."""
    if which == "stale":
        act, names = run_of_stale, QUICK_OF[which]
        jobs = [(start, name, 0, SHORTER) for start in runs.STARTS for name in names]
    else:
        act, studies_of = run_of_study, STUDIES_OF.get(which, (which,))
        names = QUICK_OF.get(which, QUICK)
        jobs = [(study, name, 0, SHORTER) for study in studies_of for name in names]
    lines = {}
    for record in in_processes(act, jobs):
        start = Settings.parse(record["settings"]).start
        lines[start, names.index(record["name"])] = _quick_line(start, record)
    return [lines[key] for key in sorted(lines)]


def _quick_line(start: str, record: dict) -> str:
    """One short run in words."""
    name = record["name"].removeprefix(f"{start}: ")
    text = f"{start:10s}  {name:62s} MRR@10 {100 * record['mrr@10']:5.1f}"
    if record.get("gap"):
        text += f"   KL of the cache {record['gap']['corrected']['kl']:.3f}"
    if "trace" in record:
        ratio = record["trace"][len(record["trace"]) // 2]
        text += f"   ratio in the middle {ratio:6.1f}"
    return text


STUDIES_OF = {"ledger": runs.STARTS, **{study: (study,) for study in OWN_TABLES}}


def main(arguments: list[str] | None = None) -> dict[str, str]:
    """The command. Gives the tables that it printed, by their marks in the docs."""
    parser = argparse.ArgumentParser(
        prog="python -m contaccum_lite.evidence.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("which", choices=(*STUDIES_OF, *runs.STARTS, "stale", "field"))
    parser.add_argument("--processes", type=int, default=2, help="field: runs at the same time")
    parser.add_argument("--fresh", action="store_true", help="run everything again")
    parser.add_argument("--quick", action="store_true", help="a few short runs")
    options = parser.parse_args(arguments)
    if options.quick and options.which == "field":
        quick_field(options.processes)
        return {}
    if options.quick:
        print("\n".join(quick(options.which)))
        return {}
    if options.which == "stale":
        for start in runs.STARTS:
            update_stale(start, options.fresh)
        tables = stale_tables()
    elif options.which == "field":
        tables = field_tables(update_field(options.fresh, options.processes))
    else:
        for study in STUDIES_OF.get(options.which, (options.which,)):
            update_study(study, options.fresh)
        tables = study_tables(options.which)
    print("\n\n".join(tables.values()))
    return tables


if __name__ == "__main__":
    main()

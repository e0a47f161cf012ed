"""The third ledger: the field's ways to train when the batch does not fit, in one fair race.

The plan was written before it was run. Every run sees the same 51,200 pairs from the same
pretrained start, N_local 8 and K 16 unless its name says otherwise.

1.  Race at the shared rate: five paired seeds of each.
2.  Tune: each method at three learning rates with two seeds, and at 0.001 where 0.002 is its best;
    MRR@10 of the dev pairs chooses its own rate, at which five seeds are run. The baselines' runs
    are those of the first ledger, which has all four rates with five seeds: tuned at least as hard.
3.  Confirm: the method with 8 pairs in memory that is best by the dev pairs is run again with five
    fresh seeds, beside the strongest baselines.
4.  Once the later methods are tuned too, the best of all methods with 8 pairs by the dev pairs is
    confirmed on the same fresh seeds, and so are those that are best by the test pairs.
5.  From random weights, some at the shared rate: does the start change the order?

`python -m contaccum_lite.evidence.run field` runs what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from statistics import mean

from contaccum_lite.core.run import Run
from contaccum_lite.data.types import Pairs
from contaccum_lite.evidence.records import RunRecords
from contaccum_lite.evidence.runs import MEASURES, SHARED_RATE, RunSpec, at_rate, run_spec

FIRST_RATES = (0.002, 0.005, 0.01)
LOW_RATE = 0.001  # tried where the lowest of the first is best
TUNING_SEEDS = (0, 1)
RACE_SEEDS = range(5)
FRESH_SEEDS = range(5, 10)
QUICK = ("decoupled", "SogCLR", "ContAccum 128, decoupled")

#: our name -> the first ledger's, whose records stand for it
BASELINES = {
    "GradAccum": "GradAccum 8",
    "DPR 128": "DPR 128",
    "GradCache": "GradCache 8",
    "passage bank 512": "w/o M_q",
    "ContAccum 512": "ContAccum 8",
    "ContAccum 128": "ContAccum N_memory 128 K 16",
}
#: the baselines' settings; "ContAccum 128" is among the methods
BASELINE_FIELDS: dict[str, dict] = {
    "GradAccum": dict(method="grad_accum"),
    "DPR 128": dict(method="dpr"),
    "GradCache": dict(method="grad_cache"),
    "passage bank 512": dict(method="pre_batch"),
    "ContAccum 512": dict(method="contaccum"),
}
_BANK = dict(method="contaccum", memory_size=128)
#: what is searched, in the order in which it is run: one change to GradAccum, and combinations
SEARCHED: dict[str, dict] = {
    "decoupled": dict(method="grad_accum", objective="decoupled"),
    "SogCLR": dict(method="sogclr"),
    "ContAccum 128": _BANK,
    "ContAccum 128, decoupled": dict(objective="decoupled", **_BANK),
    "DPR 128, decoupled": dict(method="dpr", objective="decoupled"),
    "all directions": dict(method="grad_accum", directions="all"),
    "ContAccum 128, SogCLR": dict(objective="sogclr", **_BANK),
    "clusters": dict(method="grad_accum", batch_by="cluster"),
    "ContAccum 128, all, decoupled": dict(objective="decoupled", directions="all", **_BANK),
}
#: raced too, after the confirmation
LATER: dict[str, dict] = {
    "sigmoid": dict(method="grad_accum", objective="sigmoid"),
    "query tower only": dict(method="query_only", local_batch=128, accumulation_steps=1),
    "GradCache, bank 128": dict(method="grad_cache_bank", memory_size=128),
    "clusters, decoupled": dict(method="grad_accum", objective="decoupled", batch_by="cluster"),
    "ContAccum 128, margin 0.8": dict(mask_margin=0.8, **_BANK),
    "both directions": dict(method="grad_accum", directions="both"),
    "DPR 128, all, decoupled": dict(method="dpr", directions="all", objective="decoupled"),
    # planned once the race at the shared rate had shown what clusters give
    "ContAccum 128, clusters": dict(batch_by="cluster", **_BANK),
    "DPR 128, clusters": dict(method="dpr", batch_by="cluster"),
    "clusters, SogCLR": dict(method="sogclr", batch_by="cluster"),
}
METHODS = {**SEARCHED, **LATER}
#: run with fresh seeds beside the winner
RIVALS = ("DPR 128", "clusters", "ContAccum 128", "GradAccum")
#: what is best by the test pairs with 8 pairs and with 128, and the exact batch with a bank
LATE_RIVALS = ("ContAccum 128, clusters", "GradCache, bank 128", "DPR 128, clusters")
#: raced from random weights too
FROM_RANDOM = (
    *("GradAccum", "DPR 128", "ContAccum 128", "GradCache, bank 128", "decoupled", "SogCLR"),
    *("all directions", "sigmoid", "clusters", "ContAccum 128, clusters"),
)
#: those that hold 128 pairs at once; all others hold 8
WHOLE_BATCH = (
    "DPR 128",
    "DPR 128, decoupled",
    "DPR 128, all, decoupled",
    "DPR 128, clusters",
    "query tower only",
)


def plan() -> dict[str, RunSpec]:
    """All runs that could be needed, by name."""
    runs = {}
    for name, fields in {**METHODS, **BASELINE_FIELDS}.items():
        for rate in (LOW_RATE, *FIRST_RATES):
            seeds = range(FRESH_SEEDS.stop)
            runs[at_rate(name, rate)] = run_spec(seeds=seeds, learning_rate=rate, **fields)
    for name in FROM_RANDOM:
        fields = {**METHODS, **BASELINE_FIELDS}[name]
        runs[from_random(name)] = run_spec(start="random", learning_rate=SHARED_RATE, **fields)
    return runs


def from_random(name: str) -> str:
    """The name of a method's runs from random weights."""
    return f"{name}, from random weights"


def with_baselines(records: list[dict], ledger: list[dict]) -> list[dict]:
    """The field's records and, under the field's names, the first ledger's."""
    ours = {theirs: name for name, theirs in BASELINES.items()}
    renamed = []
    for record in ledger:
        name, comma, rate = record["name"].partition(", rate ")
        if name in ours:
            renamed.append({**record, "name": ours[name] + comma + rate})
    known = {(r["name"], r["seed"]) for r in records}
    return [*records, *(r for r in renamed if (r["name"], r["seed"]) not in known)]


# --- what is run next -----------------------------------------------------------------------------


def next_runs(records: list[dict]) -> list[tuple[str, int]]:
    """(name, seed) of the runs that can be made now, in the order of the plan; none at its end.

    records: `with_baselines`. What is run depends on what the tuning runs gave, so call it again.
    """
    done = {(r["name"], r["seed"]) for r in records}

    def missing(runs: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        return [run for run in runs if run not in done]

    runs = missing(_race(SEARCHED) + _tuned(SEARCHED, records))
    if not runs:
        runs = missing(_confirming(records))
    runs += missing(_race(LATER) + _tuned(LATER, records))
    runs += missing(_race(map(from_random, FROM_RANDOM)))
    if not runs:
        runs = missing(_confirming_late(records))
    return list(dict.fromkeys(runs))


def _race(names: Iterable[str]) -> list[tuple[str, int]]:
    return [(name, seed) for name in names for seed in RACE_SEEDS]


def _tuned(names: Iterable[str], records: list[dict]) -> list[tuple[str, int]]:
    return [run for name in names for run in _runs_of(name, records)]


def _runs_of(name: str, records: list[dict]) -> list[tuple[str, int]]:
    """The tuning runs of a method, or, where these are made, those of the race too."""
    done = {(r["name"], r["seed"]) for r in records}
    tuning = [(at_rate(name, rate), seed) for rate in FIRST_RATES for seed in TUNING_SEEDS]
    if not is_tuned(name, records):
        return tuning
    if own_rate(name, records) == FIRST_RATES[0]:
        lower = [(at_rate(name, LOW_RATE), seed) for seed in TUNING_SEEDS]
        if not done.issuperset(lower):
            return lower
    rates = dict.fromkeys((SHARED_RATE, own_rate(name, records)))
    return [(at_rate(name, rate), seed) for rate in rates for seed in RACE_SEEDS]


def is_tuned(name: str, records: list[dict]) -> bool:
    """Whether the runs that choose a method's own rate are made."""
    done = {(r["name"], r["seed"]) for r in records}
    tuning = {(at_rate(name, rate), seed) for rate in FIRST_RATES for seed in TUNING_SEEDS}
    return tuning <= done


def own_rate(name: str, records: list[dict]) -> float:
    """The rate of the highest MRR@10 of the dev pairs, over the tuning seeds."""
    quality = {}
    for rate in (LOW_RATE, *FIRST_RATES):
        run = at_rate(name, rate)
        of_rate = [r for r in records if r["name"] == run and r["seed"] in TUNING_SEEDS]
        if of_rate:
            quality[rate] = mean(r["dev mrr@10"] for r in of_rate)
    return max(quality, key=quality.__getitem__)


def at_own_rate(name: str, records: list[dict]) -> str:
    """The name of a method's runs at its own rate."""
    return at_rate(name, own_rate(name, records))


def winner(records: list[dict], among: Iterable[str] = (*BASELINES, *SEARCHED)) -> str:
    """The method with 8 pairs in memory that is best by the dev pairs, over the race's seeds."""
    book = RunRecords(records)
    names = [name for name in among if name not in WHOLE_BATCH]
    dev = {n: mean(book.values(at_own_rate(n, records), "dev mrr@10", RACE_SEEDS)) for n in names}
    return max(dev, key=dev.__getitem__)


def _confirming(records: list[dict]) -> list[tuple[str, int]]:
    names = dict.fromkeys([winner(records), *RIVALS])
    return [(at_own_rate(name, records), seed) for name in names for seed in FRESH_SEEDS]


def late_winner(records: list[dict]) -> str:
    """As `winner`, among all methods. Raises `KeyError` or `ValueError` before all are tuned."""
    if not all(is_tuned(name, records) for name in LATER):
        raise ValueError("not all later methods are tuned yet")
    return winner(records, (*BASELINES, *METHODS))


def _confirming_late(records: list[dict]) -> list[tuple[str, int]]:
    names = dict.fromkeys([late_winner(records), *LATE_RIVALS])
    return [(at_own_rate(name, records), seed) for name in names for seed in FRESH_SEEDS]


# --- one run --------------------------------------------------------------------------------------


def train(name: str, seed: int, pairs: Pairs, spec: RunSpec, step_divisor: int = 1) -> dict:
    """Run a spec and give its record. step_divisor: divides its updates."""
    settings = spec.settings
    settings = settings.replace(
        seed=seed,
        updates=settings.updates // step_divisor,
        warmup=settings.warmup // step_divisor,
    )
    run = Run(pairs, settings)
    start = time.process_time()
    for _ in run:
        pass
    seconds = time.process_time() - start
    twentieth = max(1, len(run.history) // 20)
    ratios = [update.grad_norm_ratio for update in run.history[::twentieth]]
    return {
        "name": name,
        "seed": seed,
        "settings": run.settings.share(),
        "pairs": pairs.name,
        "updates": run.step_count,
        "negatives": max(update.negatives for update in run.history),
        "trace": ratios,
        "encodes": run.encodes,
        "kept": kept_bytes(run),
        "cpu seconds": seconds,
        "dev mrr@10": run.evaluate("dev")["mrr@10"],
        **{key: value for key, value in run.evaluate().items() if key in MEASURES},
    }


def kept_bytes(run: Run) -> int:
    """Bytes that a method keeps between updates beside towers and optimiser: banks and tables."""
    tensors = [bank.slots for bank in run.learner.banks]
    for extension in run.learner.extensions:
        tensors += extension.state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

"""The second paper's part of the ledger: stale caches and correctors, and what the records say.

We could read the abstract of Monath et al. (ICML 2024) and secondary sources: the claims are the
abstract's; which runs test them, and everything on ridge, write-back and the corrected dual bank,
is ours. `python -m contaccum_lite.evidence.run stale` runs it; notebook 07 shows it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from statistics import mean

import torch

from contaccum_lite.core.run import Run
from contaccum_lite.core.settings import Settings
from contaccum_lite.data.types import Pairs
from contaccum_lite.evidence.claims import (
    Claim,
    Outcome,
    Verdict,
    claims_table,
    claims_with,
    not_significant,
    outcome_of,
    printed,
)
from contaccum_lite.evidence.ledger import REGIMES, cell
from contaccum_lite.evidence.records import PairedDifference, RunRecords, markdown_table
from contaccum_lite.evidence.runs import STARTS, RunSpec
from contaccum_lite.staleness.correctors import make_corrector
from contaccum_lite.staleness.drift import cache_gap, passage_vectors, query_vectors, softmax_gap

SEEDS = range(5)
NUM_PROBES = 8  # random moments of a run's second half at which the cache's softmax is compared


_BANK = dict(memory_size=512, bank_warmup=100)


def plan(start: str) -> dict[str, RunSpec]:
    """All runs of the second paper's ledger, from this start of the towers."""

    def spec(method: str, **fields) -> RunSpec:
        if method != "dpr":
            fields["accumulation_steps"] = 1
        return RunSpec(Settings.preset(method, local_batch=32, start=start, **fields), SEEDS)

    return {
        "in-batch": spec("dpr"),
        "uniform": spec("stale_cache", selection="uniform"),
        "static negatives": spec("static_negatives"),
        "stale cache": spec("stale_cache"),
        "stale, write-back": spec("stale_cache", write_back=True),
        "refreshed, R 100": spec("refreshed_cache", cache_refresh=100),
        "refreshed, R 25": spec("refreshed_cache", cache_refresh=25),
        "corrected, ridge": spec("corrected_cache", corrector="ridge"),
        "corrected, MLP": spec("corrected_cache"),
        "corrected, MLP and 32 probes": spec("corrected_cache", probes=32),
        "corrected, MLP, R 100": spec("corrected_cache", cache_refresh=100),
        "oracle": spec("oracle_cache"),
        "momentum": spec("momentum", **_BANK),
        "ContAccum": spec("contaccum", **_BANK),
        "ContAccum, corrected": spec("contaccum_corrected", probes=32, **_BANK),
    }


PLANS = {start: plan(start) for start in STARTS}
RUNS = PLANS["random"]


def train(name: str, seed: int, pairs: Pairs, step_divisor: int = 1, start: str = "random") -> dict:
    """Run one of `PLANS[start]` and make its record. step_divisor: divides its updates."""
    settings = PLANS[start][name].settings
    updates = settings.updates // step_divisor
    settings = settings.replace(
        seed=seed,
        updates=updates,
        warmup=settings.warmup // step_divisor,
        bank_warmup=settings.bank_warmup // step_divisor,
    )
    run = Run(pairs, settings)
    cache = run.learner.extension("cache")
    probes = random.Random(seed).sample(range(updates // 2, updates), min(NUM_PROBES, updates // 4))
    gaps, bank_errors = _measure_while_training(run, probes)
    kinds = gaps[0] if gaps else {}
    return {
        "name": name,
        "seed": seed,
        "settings": run.settings.share(),
        "pairs": pairs.name,
        "shorter": step_divisor,
        "passages": len(pairs.passages),
        "encodes": run.encodes,
        "coverage": cache.coverage if cache else 0.0,
        "gap": {kind: _mean_by_key([gap[kind] for gap in gaps]) for kind in kinds},
        "seconds": sum(update.seconds for update in run.history),
        "bank": _mean_by_key(bank_errors),
        **{key: value for key, value in run.evaluate().items() if key in ("top@20", "mrr@10")},
    }


def _measure_while_training(run: Run, probes: list[int]) -> tuple[list[dict], list[dict]]:
    """Train to the end; the gap of the cache and the error of the bank after these updates."""
    gaps, bank_errors = [], []
    for update in run:
        if update.step not in probes:
            continue
        if run.learner.extension("cache"):  # before it is refreshed for the next update, if it is
            gaps.append(cache_gap(run))
        if len(run.passage_bank):
            bank_errors.append(bank_error(run))
    return gaps, bank_errors


def _mean_by_key(numbers: list[dict[str, float]]) -> dict[str, float]:
    keys = numbers[0] if numbers else ()
    return {key: mean(item[key] for item in numbers) for key in keys}


@torch.no_grad()
def bank_error(run: Run) -> dict[str, float]:
    """‖c − g‖²/‖g‖² of the passage bank's oldest quarter, as stored and as it enters the loss."""
    bank, learner = run.passage_bank, run.learner
    oldest = bank.order()[: len(bank) // 4]
    batch = run.sampler.micro_batch(bank.ids[oldest].numpy())
    fresh = learner.encode_without_noise(batch).passages
    used = learner.read_bank(bank, run.step_count)

    def error(vectors):
        squares = ((vectors[oldest] - fresh) ** 2).sum(1)
        return float((squares / (fresh**2).sum(1)).mean())

    return {"stale": error(bank.vectors), "used": error(used)}


# --- error by number of pairs, size of the corrector, and staleness ---------------------------

EVAL_STEP, CACHE_STEPS = 300, (275, 200, 100)  # of 400 updates of DPR with 128
TRAIN_PAIR_COUNTS = (32, 128, 512, 2048)
#: name -> (kind for `make_corrector`, attributes that it gets)
FAMILIES = {
    "identity": ("identity", {}),
    "mean shift": ("mean_shift", {}),
    "moments": ("moments", {}),
    "Procrustes": ("procrustes", {}),
    "ridge": ("ridge", {}),
    "kernel": ("kernel", {}),
    "MLP of 16": ("mlp", dict(width=16, steps=300)),
    "MLP of 512": ("mlp", dict(width=512, steps=300)),
}


def curves(
    seed: int,
    pairs: Pairs,
    now: int = EVAL_STEP,
    cached=CACHE_STEPS,
    counts=TRAIN_PAIR_COUNTS,
    families=FAMILIES,
    start: str = "random",
) -> list[dict]:
    """KL to the fresh softmax after correction, for each staleness, number of pairs and corrector.

    One run of DPR from this start. The cache of each update in `cached` is corrected at update
    `now`, by a corrector fitted to so many random pairs.
    """
    run = Run(pairs, Settings.preset("dpr", seed=seed, start=start))
    caches = {}
    while run.step_count < now:
        if run.step_count in cached:
            caches[run.step_count] = passage_vectors(run)
        run.step()
    fresh = passage_vectors(run)
    queries = query_vectors(run, 128) / run.settings.temperature
    order = torch.randperm(len(fresh), generator=torch.Generator().manual_seed(seed))
    records = []
    for step in cached:
        stale, age = caches[step], now - step
        ages = torch.full((len(stale),), age)
        for count in counts:
            rows = order[:count]
            for name, family in families.items():
                corrector = _corrector(family, seed)
                corrector.fit(stale[rows], torch.full((count,), age), fresh[rows])
                gap = softmax_gap(queries @ fresh.T, queries @ corrector(stale, ages).T)
                record = dict(seed=seed, staleness=age, pairs=count, corrector=name)
                records.append({**record, "kl": gap["kl"], "overlap": gap["overlap"]})
    return records


def _corrector(family: tuple[str, dict], seed: int):
    kind, attributes = family
    corrector = make_corrector(kind, seed=seed)
    for name, value in attributes.items():
        setattr(corrector, name, value)
    return corrector


# --- what the records say ---------------------------------------------------------------------


class CacheRunRecords(RunRecords):
    """`RunRecords` whose values are also what is said of a run's cache and bank.

    Keys: "kl", "overlap" and so on, of the cache as it is used, "stale kl" … of it as it is stored;
    "bank stale" and "bank used"; "passes": what cache and corrector encode, over the corpus.
    """

    def value(self, record, key):
        kind, _, measure = key.rpartition(" ")
        if key == "passes":
            counts = record["encodes"].items()
            return sum(n for purpose, n in counts if purpose != "train") / record["passages"]
        if measure in ("kl", "tv", "overlap", "mass", "bound"):
            return record["gap"][kind or "corrected"][measure]
        if kind == "bank":
            return record["bank"][measure]
        return super().value(record, key)

    def mean(self, name: str, key: str) -> float:
        """The mean of `values` over all seeds."""
        return mean(self.values(name, key))


def judge_softmax(records: CacheRunRecords) -> Verdict:
    """The corrected cache's softmax is nearer to the fresh one by at least half."""
    gap = records.difference("corrected, MLP", "stale cache", "kl")
    names = ("stale cache", "corrected, ridge", "corrected, MLP", "oracle")
    figures = ", ".join(
        f"{name} {records.mean(name, 'kl'):.3f} ({records.mean(name, 'overlap'):.2f})"
        for name in names
    )
    figures = f"KL (top-20 overlap): {figures}"
    if not gap.is_negative:
        sentence = gap.by_sign(
            "The corrected softmax is farther from the fresh one than the stale softmax is.",
            "",
            "The difference between the corrected and the stale softmax in their distance to the "
            f"fresh one is {not_significant(gap)}.",
        )
        outcome = Outcome.FAILS_HERE if gap.is_positive else Outcome.UNDECIDED
        return Verdict(outcome, figures, sentence)
    left = records.mean("corrected, MLP", "kl") / records.mean("stale cache", "kl")
    sentence = (
        "The corrected softmax is nearer to the fresh one than the stale softmax is; "
        f"{left:.0%} of the distance is left"
    )
    if left < 0.5:
        return Verdict(Outcome.HOLDS, figures, f"{sentence}.")
    return Verdict(Outcome.HOLDS_IF, figures, f"{sentence}: nearer, not near.")


def judge_no_refresh(records: CacheRunRecords) -> Verdict:
    """A corrected cache that is never refreshed is as accurate as one that always is."""
    gap = records.difference("corrected, MLP", "oracle")
    stale = records.difference("stale cache", "oracle")
    passes = records.mean("corrected, MLP", "passes")
    always, often = (
        records.mean(name, "passes") / passes for name in ("oracle", "refreshed, R 25")
    )
    figures = (
        f"MRR@10 {gap} to the oracle, {often:.0f} (R 25) to {always:.0f} (each update) times fewer "
        f"passes; the stale cache itself {stale}"
    )
    if gap.mean <= -1 or gap.is_negative:
        return Verdict(Outcome.FAILS_HERE, figures, "Something is lost without a refresh.")
    if stale.is_negative:
        return Verdict(Outcome.HOLDS, figures, "Nothing is lost without a refresh.")
    sentence = (
        "Nothing is lost without a refresh, but nothing is lost by the stale cache either: "
        "there is no gap to close here."
    )
    return Verdict(Outcome.HOLDS_IF, figures, sentence)


def judge_ridge(records: CacheRunRecords) -> Verdict:
    """The network's cache is nearer to the fresh softmax than a ridge regression's."""
    kl = records.difference("corrected, MLP", "corrected, ridge", "kl")
    accuracy = records.difference("corrected, MLP", "corrected, ridge")
    sentence = kl.by_sign(
        "The line is nearer to the fresh softmax than the network.",
        "The network is nearer to the fresh softmax than a line.",
        f"The difference between network and line is {not_significant(kl)}.",
    )
    figures = f"KL {kl.mean:+.4f} ± {kl.ci_half_width:.4f}, MRR@10 {accuracy}"
    return Verdict(_outcome_if_lower(kl), figures, sentence)


def _outcome_if_lower(difference) -> Outcome:
    """For a claim that a difference is negative."""
    return difference.by_sign(Outcome.FAILS_HERE, Outcome.HOLDS, Outcome.UNDECIDED)


def judge_write_back(records: CacheRunRecords) -> Verdict:
    """The network's cache is nearer to the fresh softmax than one with write-back."""
    kl = records.difference("corrected, MLP", "stale, write-back", "kl")
    accuracy = records.difference("corrected, MLP", "stale, write-back")
    coverage = records.mean("stale, write-back", "coverage")
    comparison = kl.by_sign(
        "the network is farther",
        "the network is nearer",
        f"the difference is {not_significant(kl)}",
    )
    return Verdict(
        _outcome_if_lower(kl),
        f"KL {kl.mean:+.3f} ± {kl.ci_half_width:.3f}, MRR@10 {accuracy}; coverage {coverage:.2f}",
        f"Writing back what was encoded anyway reaches {coverage:.0%} of this corpus; "
        f"{comparison}.",
    )


def judge_fresh_negatives(records: CacheRunRecords) -> Verdict:
    """Negatives by fresh scores are above those by a stale cache's."""
    gap = records.difference("oracle", "stale cache")
    hard = records.difference("stale cache", "in-batch")
    uniform = records.difference("stale cache", "uniform")
    sentence = gap.by_sign(
        "Negatives chosen by fresh scores are better.",
        "Negatives chosen by fresh scores are worse.",
        "The difference between negatives chosen by fresh scores and by those of a stale cache is "
        f"{not_significant(gap)}.",
    )
    if hard.is_positive:
        detail = "uniform ones are not significantly worse than hard ones"
        if uniform.is_positive:
            detail = "hard ones bring more than uniform ones"
        step = "is the larger step" if hard.mean > 2 * gap.mean else "is a step of its own"
        sentence += f" Having more negatives at all {step}, and {detail}."
    means = f"{records.format_mean('oracle')} and {records.format_mean('stale cache')}"
    figures = f"{means}: {gap}; stale over in-batch: {hard}; over uniform: {uniform}"
    return Verdict(outcome_of(gap), figures, sentence)


def judge_corrected_bank(records: CacheRunRecords) -> Verdict:
    """ContAccum with a corrected bank is above ContAccum."""
    name = "ContAccum, corrected"
    gap = records.difference(name, "ContAccum")
    stale, used = records.mean(name, "bank stale"), records.mean(name, "bank used")
    nearer = "nearer" if used < stale else "no nearer"
    accuracy = gap.by_sign(
        "accuracy rises", "accuracy falls", f"the change in accuracy is {not_significant(gap)}"
    )
    return Verdict(
        outcome_of(gap),
        f"{records.format_mean(name)} and {records.format_mean('ContAccum')}: {gap}; "
        f"error of the oldest quarter {stale:.2g} → {used:.2g}",
        f"The bank's vectors come {nearer} to fresh, and {accuracy}.",
    )


def judge_generalisation(curve: list[dict]) -> Callable[[RunRecords], Verdict]:
    """With few pairs a large network is worse than none, with many better. curve: of `curves`.

    Each is judged by the difference of their KL, paired over seeds.
    """
    return lambda records: _judge_curve(curve)


def _judge_curve(curve: list[dict]) -> Verdict:
    few, many = min(r["pairs"] for r in curve), max(r["pairs"] for r in curve)
    ages = sorted({r["staleness"] for r in curve})
    with_few = {age: _network_minus_none(curve, few, age) for age in ages}
    with_many = {age: _network_minus_none(curve, many, age) for age in ages}
    worse = [age for age in ages if with_few[age].is_positive]
    better = [age for age in ages if with_many[age].is_negative]
    figures = [
        f"{age} updates old: none {mean(_kl(curve, 'identity', few, age)):.2g}, {few} pairs "
        f"{_signed(with_few[age])}, {many} pairs {_signed(with_many[age])}"
        for age in ages
    ]
    outcome = Outcome.HOLDS_IF if worse and better else Outcome.FAILS_HERE
    if worse == better == ages:
        outcome = Outcome.HOLDS
    return Verdict(
        outcome,
        f"KL, and a network of 512 minus none: {'; '.join(figures)}",
        f"With {few} pairs a large network is significantly worse than none at "
        f"{', '.join(map(str, worse)) or 'no'} updates of staleness; "
        f"with {many} it is better at {', '.join(map(str, better)) or 'none'}.",
    )


def _kl(curve: list[dict], corrector: str, pairs: int, age: int) -> list[float]:
    """The KL of a point of the curve, by seed."""
    key = (corrector, pairs, age)
    same = [r for r in curve if (r["corrector"], r["pairs"], r["staleness"]) == key]
    return [r["kl"] for r in sorted(same, key=lambda r: r["seed"])]


def _network_minus_none(curve: list[dict], pairs: int, age: int) -> PairedDifference:
    network, none = (_kl(curve, name, pairs, age) for name in ("MLP of 512", "identity"))
    return PairedDifference([a - b for a, b in zip(network, none, strict=True)])


def _signed(difference: PairedDifference) -> str:
    """A small paired difference with half of its interval."""
    return f"{difference.mean:+.2g} ± {difference.ci_half_width:.1g}"


def claims(curve: list[dict]) -> list[Claim]:
    """All claims on stale vectors. curve: the records of `curves`."""
    mlp, stale = "corrected, MLP", "stale cache"
    judges = {
        "softmax": ((stale, "corrected, ridge", mlp, "oracle"), judge_softmax),
        "no refresh": ((mlp, "oracle", "refreshed, R 25"), judge_no_refresh),
        "generalisation": ((), judge_generalisation(curve)),
        "fresh": (("oracle", stale, "in-batch", "uniform"), judge_fresh_negatives),
        "ridge": ((mlp, "corrected, ridge"), judge_ridge),
        "write-back": ((mlp, "stale, write-back"), judge_write_back),
        "corrected bank": (("ContAccum, corrected", "ContAccum"), judge_corrected_bank),
    }
    return claims_with("staleness", judges)


def table(records: list[dict], curve: list[dict]) -> str:
    """The claims with their verdicts, in Markdown, made from the records of one start."""
    return claims_table(claims(curve), CacheRunRecords(records))


def verdicts(results: dict[str, list[dict]]) -> list[Verdict]:
    """The verdict of each claim. results: of one start, lists of "runs" and "curves"."""
    book = CacheRunRecords(results["runs"])
    return [claim.judge(book) for claim in claims(results["curves"])]


def table_of_regimes(books: dict[str, dict[str, list[dict]]]) -> str:
    """The claims with a column of verdicts for each start, in Markdown. books: start -> results."""
    columns = [verdicts(results) for results in books.values()]
    rows = [
        [claim["statement"], claim["section"], claim["paper"], *map(cell, judged)]
        for claim, *judged in zip(printed("staleness"), *columns)
    ]
    header = ["claim", "place", "paper", *(REGIMES[start] for start in books)]
    return markdown_table(header, rows)


def counts(books: dict[str, dict[str, list[dict]]]) -> dict[str, Counter]:
    """How many claims have which verdict, by regime."""
    return {
        REGIMES[start]: Counter(v.verdict for v in verdicts(results))
        for start, results in books.items()
    }


def runs_table(records: list[dict]) -> str:
    """Each preset in Markdown: what it encodes, how far its softmax is from fresh, its accuracy."""
    runs = CacheRunRecords(records)
    recorded = {record["name"] for record in records}
    rows = []
    for name in (name for name in RUNS if name in recorded):
        trained = mean(r["encodes"]["train"] / r["passages"] for r in runs.of(name))
        kl = overlap = ""
        if all(r["gap"] for r in runs.of(name)):
            kl, overlap = f"{runs.mean(name, 'kl'):.3g}", f"{runs.mean(name, 'overlap'):.3g}"
        passes, mrr10 = f"{runs.mean(name, 'passes'):.1f}", runs.format_mean(name)
        top20 = runs.format_mean(name, "top@20")
        rows.append([name, passes, f"{trained:.1f}", kl, overlap, top20, mrr10])
    header = [
        "run",
        "encoded for the cache, in passes over the corpus",
        "encoded in training",
        "KL",
        "top-20 overlap",
        "Top@20",
        "MRR@10",
    ]
    return markdown_table(header, rows)

"""The tables of `benchmarks/regime.py`: the methods side by side, made from its records and from nothing else."""

from __future__ import annotations

from statistics import mean, median, stdev

from contaccum_lite.core.presets import with_start
from contaccum_lite.core.settings import Settings
from contaccum_lite.evidence.records import read_records
from tools import docs

RECORDS = docs.RECORDS / "regime.json"
METHODS = {
    "dpr": "DPR, one batch of 128",
    "grad_accum": "GradAccum, 8 × 16",
    "pre_batch": "pre-batch, passage bank of 128",
    "contaccum": "ContAccum, dual bank of 128",
}
SEEDS = range(5)
RATES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)


def known() -> dict:
    """settings → record, of all that was recorded."""
    return {
        Settings(**with_start(record["settings"])): record for record in read_records(RECORDS, [])
    }


def plan() -> list:
    """The settings of every run: five seeds at those of the course, two at each learning rate."""
    chosen = [Settings.preset(m, seed=seed, start="random") for m in METHODS for seed in SEEDS]
    return list(
        dict.fromkeys(
            chosen + [rated(m, rate, seed) for m in METHODS for rate in RATES for seed in range(2)]
        )
    )


def rated(method: str, rate: float, seed: int):
    return Settings.preset(method, seed=seed, start="random", learning_rate=rate)


def of(known: dict, method: str, rate: float | None = None, seeds=SEEDS) -> list[dict]:
    return [
        known[
            rated(method, rate, seed)
            if rate
            else Settings.preset(method, seed=seed, start="random")
        ]
        for seed in seeds
    ]


def top20(record: dict, split: str = "measures") -> float:
    return 100 * record[split]["top@20"]


def main_table(known: dict) -> str:
    rows = [
        "| method | Top@20, mean ± sd | each seed | gradient-norm ratio, first → middle → last |",
        "|---|---|---|---|",
    ]
    for method, name in METHODS.items():
        found = of(known, method)
        scores = [top20(r) for r in found]
        ratio = " → ".join(
            f"{median(r['ratio'][part] for r in found):.1f}" for part in ("first", "middle", "last")
        )
        rows.append(
            f"| {name} | {mean(scores):.1f} ± {stdev(scores):.1f} | {' '.join(f'{s:.1f}' for s in scores)} | {ratio} |"
        )
    return "\n".join(rows)


def rate_table(known: dict) -> str:
    rows = [
        "| learning rate | " + " | ".join(METHODS.values()) + " |",
        "|---" * (len(METHODS) + 1) + "|",
    ]
    for rate in RATES:
        cells = [f"{mean(top20(r) for r in of(known, m, rate, range(2))):.1f}" for m in METHODS]
        rows.append(f"| {rate} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def claims(known: dict) -> dict[str, tuple[float, bool]]:
    """What the course promises of this regime: name → (figure, whether it holds)."""
    score = {m: mean(top20(r) for r in of(known, m)) for m in METHODS}
    middle = {m: [r["ratio"]["middle"] for r in of(known, m)] for m in METHODS}
    everywhere = [
        r["ratio"][part] for r in of(known, "contaccum") for part in ("first", "middle", "last")
    ]
    return {
        "ContAccum above GradAccum, points (at least 2)": (
            d := score["contaccum"] - score["grad_accum"],
            d >= 2,
        ),
        "ContAccum below DPR with the big batch, points (at most 2)": (
            d := score["dpr"] - score["contaccum"],
            d <= 2,
        ),
        "pre-batch below ContAccum, points (at least 10)": (
            d := score["contaccum"] - score["pre_batch"],
            d >= 10,
        ),
        "pre-batch's ratio in the middle, lowest seed (above 3)": (
            d := min(middle["pre_batch"]),
            d > 3,
        ),
        "ContAccum's ratio, lowest (at least 0.5)": (d := min(everywhere), d >= 0.5),
        "ContAccum's ratio, highest (at most 2)": (d := max(everywhere), d <= 2),
    }


def sentence(known: dict) -> str:
    """What the learning rate does to each method, in words made from the records."""

    def at(method, rate, split="measures"):
        return mean(top20(r, split) for r in of(known, method, rate, range(2)))

    best = {m: max(RATES, key=lambda rate: at(m, rate, "dev")) for m in METHODS}
    own = ", ".join(
        f"{name.split(',')[0]} {at(m, best[m]):.1f} (at {best[m]})" for m, name in METHODS.items()
    )
    low = best["pre_batch"]
    return (
        f"Each method at its own best rate, by the dev pairs: {own}. So a one-sided bank is not bad at every rate: at {low} pre-batch "
        f"has {at('pre_batch', low):.1f} where GradAccum has {at('grad_accum', low):.1f} and ContAccum {at('contaccum', low):.1f}. What "
        f"the imbalance does here is to narrow the range in which training works; a stale dual bank narrows it too, at the upper end "
        f"(ContAccum at {RATES[-1]}: {at('contaccum', RATES[-1]):.1f})."
    )

"""The methods side by side on python-docs: quality and balance, over seeds and learning rates.

    python -m benchmarks.regime            run what is not yet recorded, print the tables, write them into README.md
    python -m benchmarks.regime --fresh    run everything anew (about 10 minutes on two cores)

Records lie in benchmarks/records/regime.json, one per run, with all of its settings; the tables are made from them and from
nothing else. The learning rate of the course is the one at which ContAccum does best on the dev pairs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median, stdev

HERE = Path(__file__).parent
RECORDS = HERE / "records" / "regime.json"
README = HERE.parent / "README.md"
METHODS = {
    "dpr": "DPR, one batch of 128",
    "grad_accum": "GradAccum, 8 × 16",
    "pre_batch": "pre-batch, passage bank of 128",
    "contaccum": "ContAccum, dual bank of 128",
}
SEEDS = range(5)
RATES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)


def plan() -> list:
    """The settings of every run: five seeds at those of the course, two at each learning rate."""
    import contaccum_lite as cl

    chosen = [cl.Settings.preset(m, seed=seed) for m in METHODS for seed in SEEDS]
    return list(
        dict.fromkeys(
            chosen + [rated(m, rate, seed) for m in METHODS for rate in RATES for seed in range(2)]
        )
    )


def rated(method: str, rate: float, seed: int):
    import contaccum_lite as cl

    return cl.Settings.preset(method, seed=seed, learning_rate=rate)


def train(settings) -> dict:
    """One run, measured: all in the record comes from it."""
    import torch

    torch.set_num_threads(1)
    import contaccum_lite as cl

    run = cl.Run(cl.load_pairs("python-docs", progress=False), settings)
    ratios = [update.grad_norm_ratio for update in run]
    part, middle = len(ratios) // 20, len(ratios) // 2  # a twentieth of the run: 20 of 400 updates
    spans = dict(
        first=ratios[:part], middle=ratios[middle - part : middle + part], last=ratios[-part:]
    )
    return dict(
        settings=asdict(settings),
        measures=run.evaluate(),
        dev=run.evaluate("dev"),
        ratio={name: median(span) for name, span in spans.items()},
        loss=mean(u.loss for u in run.history[-part:]),
    )


def records(fresh: bool) -> dict:
    """settings → record, from the file or by running."""
    from tqdm import tqdm

    import contaccum_lite as cl

    known = [] if fresh or not RECORDS.is_file() else json.loads(RECORDS.read_text())
    known = {cl.Settings(**record["settings"]): record for record in known}
    todo = [settings for settings in plan() if settings not in known]
    if todo:
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            for record in tqdm(pool.imap_unordered(train, todo), total=len(todo), desc="runs"):
                known[cl.Settings(**record["settings"])] = record
    known = {settings: known[settings] for settings in plan()}
    RECORDS.parent.mkdir(exist_ok=True)
    RECORDS.write_text(json.dumps(list(known.values()), indent=1) + "\n")
    return known


def of(known: dict, method: str, rate: float | None = None, seeds=SEEDS) -> list[dict]:
    import contaccum_lite as cl

    return [
        known[rated(method, rate, seed) if rate else cl.Settings.preset(method, seed=seed)]
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget the records and run everything"
    )
    known = records(parser.parse_args().fresh)
    text = f"{main_table(known)}\n\n{sentence(known)}\n\n{rate_table(known)}"
    print(text, "\n")
    for name, (figure, holds) in claims(known).items():
        print(f"{'holds' if holds else 'DOES NOT HOLD':14} {figure:7.2f}  {name}")
    between(README, "regime", text)


def between(path: Path, name: str, text: str) -> None:
    """Put text between the marks `<!-- name -->` and `<!-- /name -->` of a file."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if path.is_file() and start in (whole := path.read_text()):
        head, rest = whole.split(start)
        path.write_text(f"{head}{start}\n{text}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()

"""The methods side by side on python-docs: quality and balance, over seeds and learning rates.

    python -m benchmarks.regime            run what is not yet recorded, print the tables, write them into README.md
    python -m benchmarks.regime --fresh    run everything anew (about 10 minutes on two cores)

Records lie in benchmarks/records/regime.json, one per run, with all of its settings; the tables are made from them and from
nothing else. The learning rate of the course is the one at which ContAccum does best on the dev pairs.
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import asdict
from statistics import mean, median

import torch
from tqdm import tqdm

import contaccum_lite as cl
from contaccum_lite.core.presets import with_start
from contaccum_lite.evidence.records import write_records
from tools import regime
from tools.docs import write_table


def train(settings) -> dict:
    """One run, measured: all in the record comes from it."""
    torch.set_num_threads(1)
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
    known = {} if fresh else regime.known()
    todo = [settings for settings in regime.plan() if settings not in known]
    if todo:
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            for record in tqdm(pool.imap_unordered(train, todo), total=len(todo), desc="runs"):
                known[cl.Settings(**with_start(record["settings"]))] = record
    known = {settings: known[settings] for settings in regime.plan()}
    write_records(regime.RECORDS, list(known.values()))
    return known


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget the records and run everything"
    )
    known = records(parser.parse_args().fresh)
    tables = {
        "regime": regime.main_table(known),
        "regime-rates": f"{regime.sentence(known)}\n\n{regime.rate_table(known)}",
    }
    for name, text in tables.items():
        print(text, "\n")
        write_table(name, text)
    for name, (figure, holds) in regime.claims(known).items():
        print(f"{'holds' if holds else 'DOES NOT HOLD':14} {figure:7.2f}  {name}")


if __name__ == "__main__":
    main()

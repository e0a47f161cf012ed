"""The field's confirmed methods on other pairs: the capstone's held-out ones, which chose nothing.

    python -m benchmarks.field_held_out            30 runs (5 minutes on one core), and the table
    python -m benchmarks.field_held_out --table    the table again, from the record

Fresh seeds alone do not undo a choice that was made by the test pairs: they are judged by the same
queries. The record is benchmarks/records/field_held_out.json.
"""

from __future__ import annotations

import json
import sys
from statistics import mean, stdev

import torch

from contaccum_lite.core.run import Run
from contaccum_lite.data.load import load_pairs
from contaccum_lite.data.python_docs_held_out import with_held_out_pairs
from contaccum_lite.evidence import field
from contaccum_lite.evidence.records import PairedDifference, markdown_table
from tools.docs import RECORDS, write_table

RECORD = RECORDS / "field_held_out.json"
#: runs of `field.plan`, each at the rate that the dev pairs choose for it
NAMES = (
    *("DPR 128", "ContAccum 512, rate 0.002", "ContAccum 128", "GradCache, bank 128"),
    *("clusters", "ContAccum 128, clusters"),
)


def measure() -> dict[str, list[float]]:
    """{run: MRR@10 in percent of the held-out pairs, by fresh seed}."""
    torch.set_num_threads(1)
    pairs, found = with_held_out_pairs(load_pairs("python-docs")), {}
    for name in NAMES:
        found[name] = []
        for seed in field.FRESH_SEEDS:
            run = Run(pairs, field.plan()[name].settings.replace(seed=seed))
            list(run)
            found[name].append(100 * run.evaluate()["mrr@10"])
    return found


def table(found: dict[str, list[float]]) -> str:
    rows = []
    for name, values in found.items():
        gaps = PairedDifference([a - b for a, b in zip(values, found["DPR 128"])])
        gap = f"{gaps.mean:+.1f} ± {gaps.ci_half_width:.1f}" if name != "DPR 128" else ""
        rows.append([name, f"{mean(values):.1f} ± {stdev(values):.1f}", gap])
    return markdown_table(["run", "MRR@10, held-out pairs", "minus DPR 128"], rows)


if __name__ == "__main__":
    if "--table" not in sys.argv:
        RECORD.write_text(json.dumps(measure(), indent=1) + "\n")
    write_table("field-held-out", table(json.loads(RECORD.read_text())))

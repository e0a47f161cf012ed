"""The methods side by side, from the ledger's records and from nothing else."""

from __future__ import annotations

from statistics import mean, median

from contaccum_lite.evidence.ledger import CELLS
from contaccum_lite.evidence.records import RunRecords, markdown_table
from contaccum_lite.evidence.runs import (
    GRID,
    GRID_STEPS,
    RATED,
    RATES,
    SHARED_RATE,
    at_rate,
    figure3,
)

LABELS = {
    "DPR 8": "DPR, batch 8",
    "DPR 32": "DPR, batch 32",
    "DPR 128": "DPR, batch 128",
    "GradAccum 8": "GradAccum, 8 × 16",
    "GradCache 8": "GradCache, 8 × 16",
    "ContAccum 8": "ContAccum, dual bank",
    "w/o M_q": "passage bank alone",
    "w/o past": "ContAccum, no past encoder",
}


def before(book: RunRecords, key: str) -> str:
    """A measure of the towers before fine-tuning, in per cent."""
    values = [100 * r["before"][key] for r in book.of("DPR 128")]
    return f"{mean(values):.1f}"


def main_table(book: RunRecords) -> str:
    """Each method at the shared rate and, by the dev pairs, at its own."""
    rows = [["before fine-tuning", *(before(book, k) for k in ("mrr@10", "top@20", "top@1"))]]
    rows[0] += ["", "", ""]
    for name in RATED:
        own = book.own_rate(name)
        rate = book.settings(own).learning_rate
        ratio = median(book.values(name, "ratio"))
        measures = [book.format_mean(name, key) for key in ("mrr@10", "top@20", "top@1")]
        rows.append([LABELS[name], *measures, f"{ratio:.1f}", book.format_mean(own), f"{rate:g}"])
    header = ["method", f"MRR@10 at {SHARED_RATE:g}", "Top@20", "Top@1", "gradient-norm ratio"]
    return markdown_table([*header, "MRR@10 at its own rate", "that rate"], rows)


def rate_table(book: RunRecords) -> str:
    """MRR@10 of each method at each learning rate."""
    rates = RATES[book.start]
    rows = []
    for name, label in LABELS.items():
        rows.append([label, *(book.format_mean(at_rate(name, rate)) for rate in rates)])
    return markdown_table(["MRR@10 by learning rate", *map("{:g}".format, rates)], rows)


def figure3_table(book: RunRecords) -> str:
    """MRR@10 by K and N_memory, at each rate that was run."""
    rows = []
    for k in GRID_STEPS:
        for n in (0, *GRID[book.start]):
            cells = []
            for rate in (0.002, SHARED_RATE):
                name = figure3(book.start, n, k, rate)
                is_run = (name, 0) in book.records
                cells.append(book.format_mean(name) if is_run else "–")
            if cells != ["–", "–"]:
                rows.append([k, n, *cells])
    return markdown_table(["K", "N_memory", "MRR@10 at 0.002", f"at {SHARED_RATE:g}"], rows)


def cause_table(book: RunRecords) -> str:
    """The 2 × 2 of the cause: MRR@10, and the gradient-norm ratio, of each cell."""
    names = {"stale": "", **{words: f", {words}" for words in CELLS if words != "stale"}}
    names["push removed"] = ", common part removed"
    bases = {
        "passage bank alone": "w/o M_q",
        "… at rate 0.01": "w/o M_q, rate 0.01",
        "… at τ 1": "w/o M_q, τ 1",
        "dual bank": "ContAccum 8",
    }
    rows = []
    for label, base in bases.items():
        if all((base + words, 0) in book.records for words in names.values()):
            cells = []
            for words in names.values():
                ratio = median(book.values(base + words, "ratio"))
                cells.append(f"{book.format_mean(base + words)} (ratio {ratio:.1f})")
            rows.append([label, *cells])
    return markdown_table(["MRR@10", *names], rows)


def cause_sentence(book: RunRecords) -> str:
    """The first row of the 2 × 2, in words."""
    cells = [f"{words} {book.format_mean(name)}" for words, name in CELLS.items()]
    return f"MRR@10 of the passage bank alone: {', '.join(cells)}."


def chosen_defaults(book: RunRecords) -> str:
    """What the dev pairs choose, by a rule that was written before the runs.

    The shared rate is that with the highest mean of the methods' dev MRR@10. N_memory is, at that
    rate and K 16, the largest that is not significantly below the best (paired over the seeds).
    """
    key = "dev mrr@10"
    by_rate = {}
    for rate in RATES[book.start]:
        by_rate[rate] = mean(mean(book.values(at_rate(name, rate), key)) for name in RATED)
    rate = max(by_rate, key=lambda r: by_rate[r])
    cells = {n: figure3(book.start, n, 16) for n in GRID[book.start]}
    best = max(cells.values(), key=lambda name: mean(book.values(name, key)))
    fitting = []
    for n, name in cells.items():
        if name == best or not book.difference(name, best, key).is_negative:
            fitting.append(n)
    rates = ", ".join(f"{r:g}: {value:.1f}" for r, value in by_rate.items())
    sizes = ", ".join(f"{n}: {mean(book.values(name, key)):.1f}" for n, name in cells.items())
    return (
        f"Dev MRR@10, mean over the methods, by rate: {rates}. The highest is at {rate:g}. "
        f"ContAccum at {SHARED_RATE:g}, K 16, by N_memory: {sizes}. The largest that is not "
        f"significantly below the best: {max(fitting)}."
    )

"""Does the shift of a bank predict its harm? The cells of two studies as a table, points and words.

The *shift* is how far the mean of the banked passages has moved since they were stored, in widths
of their cloud (`staleness.drift.bank_motion`): the largest of a run's moments. *Harm* is what
MRR@10 lacks to the control: a passage bank alone of the same size, rate, start and seed, whose
common push is removed. `tools/figures.py` draws the points; docs/evidence.md shows all of it.
"""

from __future__ import annotations

import math
from statistics import mean
from typing import NamedTuple

from contaccum_lite.core.settings import Settings
from contaccum_lite.evidence.records import RunRecords, markdown_table
from contaccum_lite.evidence.studies import CONTROL, CONTROLS, VARIANT_RATES, VARIANTS

BESIDE = ("DPR 128", CONTROL, "bank fresh", "with M_q")  # kinds of run that are no cells
PLAIN, DUAL = "plain map", "dual bank"
#: what was varied, in the order of the table and the figure
VARIED = (PLAIN, DUAL, *VARIANTS, "corrected dual bank", "corrected passage bank")
LEVELS = (0.0, 0.3, 1.0, 3.0, math.inf)  # of the shift
FEWEST_CELLS = 5  # for a rank correlation
NO_HARM, GRAVE = 0.85, 0.67  # shares of the control: above the first, and below the second


class Cell(NamedTuple):
    """One setting of a bank, as means over its seeds.

    varied: one of `VARIED`; name: of its runs, without the start; shift: the largest of the run;
    ratio: the largest gradient-norm ratio; share: MRR@10 over the control's; of_dpr: over that of
    DPR 128, or None where that was not run.
    """

    start: str
    varied: str
    name: str
    shift: float
    ratio: float
    share: float
    of_dpr: float | None


def largest_shift(record: dict) -> float:
    """The largest of a run's measured shifts of its bank."""
    return max(moment.get("shift", 0.0) for moment in record["motion"])


class _Origin(NamedTuple):
    """What a run is a cell of. control, dpr: the names of the runs that it is compared with."""

    start: str
    varied: str
    name: str
    control: str
    dpr: str


def _origin(record: dict) -> _Origin | None:
    """Where a record belongs; None for the controls, DPR, and banks as stored or fresh.

    Of the study "corrected" only the corrected banks are cells: the bank as stored is a cell of
    the study "failure", and a fresh bank has no shift.
    """
    start, colon, name = record["name"].partition(": ")
    kind, _, words = name.partition(", ")
    if colon:
        variant = words.rpartition(", N_memory")[0]
        varied = DUAL if kind == "ContAccum" else variant or PLAIN
        if kind in BESIDE:
            return None
    else:
        settings, start, name = Settings.parse(record["settings"]), "pretrained", record["name"]
        if settings.corrector == "identity":
            return None
        varied = "corrected dual bank"
        if not name.startswith("dual bank"):
            varied = "corrected passage bank"
        words = f"N_memory {settings.memory_size}, rate {settings.learning_rate:g}"
    rate = words.rpartition(", ")[2]
    return _Origin(start, varied, name, f"{start}: {CONTROL}, {words}", f"{start}: DPR 128, {rate}")


def cells(failure: list[dict], corrected: list[dict]) -> list[Cell]:
    """All cells of both studies, each run paired by seed with its control.

    failure, corrected: the records of the studies of these names.
    """
    by_name = {(r["name"], r["seed"]): r for r in failure}
    groups: dict[_Origin, list[dict]] = {}
    for record in (*failure, *corrected):
        origin = _origin(record)
        if origin and (origin.control, record["seed"]) in by_name:
            groups.setdefault(origin, []).append(record)
    results = [_cell(origin, members, by_name) for origin, members in groups.items()]
    return sorted(results, key=lambda c: (c.start, VARIED.index(c.varied)))


def _cell(origin: _Origin, members: list[dict], by_name: dict) -> Cell:
    """The means over the seeds of one cell. members: its records."""

    def mean_share(other: str) -> float:
        return mean(r["mrr@10"] / by_name[other, r["seed"]]["mrr@10"] for r in members)

    has_dpr = origin.varied in (PLAIN, DUAL) and (origin.dpr, 0) in by_name
    return Cell(
        origin.start,
        origin.varied,
        origin.name,
        shift=mean(largest_shift(r) for r in members),
        ratio=mean(max(r["trace"]) for r in members),
        share=mean_share(origin.control),
        of_dpr=mean_share(origin.dpr) if has_dpr else None,
    )


def rank_correlation(members: list[Cell], key: str, share: str = "share") -> float:
    """Spearman's correlation of a number of cells with their share; −1 orders all."""
    from scipy.stats import spearmanr

    numbers = [[getattr(c, field) for c in members] for field in (key, share)]
    return float(spearmanr(*numbers).statistic)


def table(members: list[Cell]) -> str:
    """The share of the control by the level of the shift, for each thing that was varied."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in members:
        groups.setdefault((cell.start, cell.varied), []).append(cell)
    rows = [[*key, *_row(group)] for key, group in groups.items()]
    header = ["start", "varied; MRR@10 as a share of the control's (cells)"]
    for low, high in zip(LEVELS, LEVELS[1:]):
        header.append(f"shift {low:g} to {high:g}" if high < math.inf else f"above {low:g}")
    return markdown_table([*header, "rank correlation with the shift", "with the ratio"], rows)


def _row(group: list[Cell]) -> list[str]:
    """The shares at each level of the shift, and both rank correlations where cells suffice."""
    row = []
    for low, high in zip(LEVELS, LEVELS[1:]):
        shares = [c.share for c in group if low <= c.shift < high]
        row.append(_span(shares) if shares else "–")
    for key in ("shift", "ratio"):
        is_enough = len(group) >= FEWEST_CELLS
        row.append(f"{rank_correlation(group, key):+.2f}" if is_enough else "–")
    return row


def _span(shares: list[float]) -> str:
    lowest, highest = min(shares), max(shares)
    if len(shares) == 1:
        return f"{lowest:.0%} (1)"
    return f"{lowest:.0%} to {highest:.0%} ({len(shares)})"


def words(members: list[Cell]) -> str:
    """What orders the cells, and which of them refute that the shift is a law."""
    plain = [c for c in members if c.varied == PLAIN]
    with_dpr = [c for c in plain if c.of_dpr is not None]
    both = lambda group, share="share": " and ".join(
        f"{rank_correlation(group, key, share):+.2f}" for key in ("shift", "ratio")
    )
    orders = (
        f"Rank correlation with the share of the control, of the shift and of the largest "
        f"gradient-norm ratio: in the {len(plain)} cells of the plain map {both(plain)}, in all "
        f"{len(members)} cells {both(members)}. With DPR 128 in place of the control, in the "
        f"{len(with_dpr)} cells where it was run: {both(with_dpr, 'of_dpr')}."
    )
    harmed = [c for c in members if c.shift < LEVELS[1] and c.share < NO_HARM]
    spared = [c for c in members if c.shift > LEVELS[2] and c.share > GRAVE]
    return (
        f"{orders} Against a law: with a shift below {LEVELS[1]:g}, "
        f"{_listed(harmed, f'below {NO_HARM:.0%}')}; with a shift above {LEVELS[2]:g}, "
        f"{_listed(spared, f'above {GRAVE:.0%}')}."
    )


def _listed(members: list[Cell], limit: str) -> str:
    """These cells in words. limit: of the share, that all of them cross."""
    each = [f"{c.start}, {c.name} (shift {c.shift:.2f}, {c.share:.0%})" for c in members]
    if not each:
        return f"no cell is {limit}"
    return f"{len(each)} {'cell is' if len(each) == 1 else 'cells are'} {limit}: {'; '.join(each)}"


def control_words(failure: list[dict]) -> str:
    """Where the control is no cure: without a last layer, and with a large bank at a high rate."""
    book = RunRecords(failure)
    low, high = VARIANT_RATES[0], VARIANT_RATES[-1]
    bare, unit = (_beside_words(book, words, low) for words in CONTROLS)
    by_size = []
    for size in (128, 512, 1024, 2048):
        control = f"pretrained: {CONTROL}, N_memory {size}, rate {high:g}"
        by_size.append(f"N_memory {size} {book.format_mean(control)}")
    return (
        f"MRR@10 without a last layer, at {low:g}: {bare}. The same with vectors of length 1: "
        f"{unit}. Of the control at {high:g}, with its last layer: {', '.join(by_size)}."
    )


def _beside_words(book: RunRecords, words: str, rate: float) -> str:
    """The MRR@10 of a passage bank and of what was run beside it, for an output layer."""
    name = f"{words}, N_memory 512, rate {rate:g}"
    labels = {
        "stale": f"w/o M_q, {name}",
        CONTROL: f"{CONTROL}, {name}",
        "bank fresh": f"bank fresh, {name}",
        "with a query bank": f"with M_q, {name}",
        "DPR 128": f"DPR 128, {words}, rate {rate:g}",
    }
    means = [f"{word} {book.format_mean(f'pretrained: {run}')}" for word, run in labels.items()]
    return ", ".join(means)


def sentence(members: list[Cell]) -> str:
    """The figure in words, for those who do not see it."""
    phrases = []
    for start, varied in (("pretrained", PLAIN), ("random", PLAIN), ("pretrained", DUAL)):
        group = sorted(
            (c for c in members if (c.start, c.varied) == (start, varied)), key=lambda c: c.shift
        )
        first, last = group[0], group[-1]
        phrases.append(
            f"{varied} from a {start} start, {first.share:.0%} at the smallest shift, "
            f"{first.shift:.2g}, and {last.share:.0%} at the largest, {last.shift:.2g}"
        )
    return (
        f"{len(members)} points, each a setting of a bank: how far the bank's mean shifted, in "
        "widths of the cloud, against MRR@10 as a share of the same bank's with the push removed. "
        f"{'; '.join(phrases)}. In all, {_listed_count(members)}."
    )


def _listed_count(members: list[Cell]) -> str:
    """How many cells are harmed, below and above the first level of the shift."""
    low = [c.share < NO_HARM for c in members if c.shift < LEVELS[1]]
    high = [c.share < NO_HARM for c in members if c.shift >= LEVELS[1]]
    return (
        f"{sum(low)} of {len(low)} points with a shift below {LEVELS[1]:g} and {sum(high)} of "
        f"{len(high)} above it are below {NO_HARM:.0%}"
    )

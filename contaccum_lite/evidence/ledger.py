"""The ledger: every claim of the paper, and the verdicts that the records give.

There are two regimes, fine-tuned from a pretrained start and from random weights, and in each two
verdicts: at one learning rate for all, and at each method's own. MRR@10 decides. No verdict is
written by hand. `python -m contaccum_lite.evidence.run ledger` runs it; notebook 06 shows it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from statistics import mean, median

from contaccum_lite.evidence.claims import (
    Claim,
    Outcome,
    Verdict,
    claims_with,
    not_significant,
    outcome_of,
    printed,
)
from contaccum_lite.evidence.records import (
    DECIDES,
    PairedDifference,
    RunRecords,
    markdown_table,
)
from contaccum_lite.evidence.runs import (
    ABLATIONS,
    GRID,
    GRID_STEPS,
    RATES,
    RUNS,
    SHARED_RATE,
    STARTS,
    at_rate,
    figure3,
)

Judge = Callable[[RunRecords], Verdict]
#: the runs of Figure 6 and the ages, in updates, that they are read at
MASS = {
    "ContAccum N_memory 32 K 1": (1, 2, 4),
    "ContAccum N_memory 512 K 4": (2, 4, 8),
    "ContAccum N_memory 256 K 4, rate 0.001": (1, 3, 6),
}
NO_LOSS = 1.0  # points of MRR@10 within which an intervention counts as a full cure
GIB = 2**30
REGIMES = {"pretrained": "fine-tuned from a pretrained start", "random": "from random weights"}


# --- Table 1 ----------------------------------------------------------------------------------


def judge_higher(name: str, other: str, key: str = DECIDES) -> Judge:
    """The judge of "`name` is above `other`"."""

    def judge(records: RunRecords) -> Verdict:
        gap = records.difference(name, other, key)
        paired = f"(paired over {len(gap.differences)} seeds)"
        sentence = gap.by_sign(
            f"{name} is above {other} {paired}.",
            f"{name} is below {other} {paired}.",
            f"The difference between {name} and {other} is {not_significant(gap)}.",
        )
        figures = f"{records.format_mean(name, key)} and {records.format_mean(other, key)}: {gap}"
        return Verdict(outcome_of(gap), figures, sentence)

    return judge


def judge_both_limits(records: RunRecords) -> Verdict:
    """The same accuracy at N_local 8 and 32: less than half of what changes for GradAccum."""
    ours = records.difference("ContAccum 32", "ContAccum 8")
    base = records.difference("GradAccum 32", "GradAccum 8")
    holds = abs(ours.mean) < abs(base.mean) / 2 and base.is_positive
    words = "less than half as much as" if holds else "about as much as"
    return Verdict(
        Outcome.HOLDS if holds else Outcome.FAILS_HERE,
        f"ContAccum {ours}, GradAccum {base}",
        f"The step from N_local 8 to 32 changes ContAccum {words} GradAccum.",
    )


def judge_gap_grows(records: RunRecords) -> Verdict:
    """The gap over GradAccum at N_local 8 is larger than that at 32."""
    small = records.difference("ContAccum 8", "GradAccum 8")
    large = records.difference("ContAccum 32", "GradAccum 32")
    growth = PairedDifference([a - b for a, b in zip(small.differences, large.differences)])
    sentence = growth.by_sign(
        "The gap over GradAccum is larger with less memory.",
        "The gap over GradAccum is smaller with less memory.",
        f"The change of the gap over GradAccum is {not_significant(growth)}.",
    )
    figures = f"{small} at N_local 8, {large} at 32: {growth}"
    return Verdict(outcome_of(growth), figures, sentence)


def judge_batch_size(records: RunRecords) -> Verdict:
    """8, 32 and 128 pairs in one batch: each step up is a gain."""
    steps = records.difference("DPR 32", "DPR 8"), records.difference("DPR 128", "DPR 32")
    outcome = Outcome.UNDECIDED
    if all(step.is_positive for step in steps):
        outcome = Outcome.HOLDS
    elif any(step.is_negative for step in steps):
        outcome = Outcome.FAILS_HERE
    sentences = {
        Outcome.HOLDS: "Each step up in batch size is a gain, at the same number of pairs seen.",
        Outcome.UNDECIDED: "Not every step up is statistically significant.",
        Outcome.FAILS_HERE: "A smaller batch, which makes 16 times as many updates, is better.",
    }
    return Verdict(
        outcome,
        ", ".join(records.format_mean(f"DPR {size}") for size in (8, 32, 128)),
        sentences[outcome],
    )


# --- Table 2 ----------------------------------------------------------------------------------


def judge_largest_drop(hard: str) -> Judge:
    """The judge of "removing M_q costs most". hard: "" or ", hard"."""

    def judge(records: RunRecords) -> Verdict:
        drops = {
            name: records.difference(f"{name}{hard}", f"ContAccum 8{hard}")
            for name in ("w/o M_q", "w/o past", "w/o GradAccum")
        }
        worst = min(drops, key=lambda name: drops[name].mean)
        figures = ", ".join(f"{name} {drop}" for name, drop in drops.items())
        if worst == "w/o M_q":
            outcome = Outcome.HOLDS if drops[worst].is_negative else Outcome.UNDECIDED
            return Verdict(outcome, figures, "The largest loss comes from w/o M_q.")
        excess = records.difference(f"{worst}{hard}", f"w/o M_q{hard}")
        if excess.is_negative:
            sentence = f"{worst} costs more than w/o M_q."
            return Verdict(Outcome.FAILS_HERE, figures, sentence)
        sentence = f"The difference between {worst} and w/o M_q is {not_significant(excess)}."
        return Verdict(Outcome.UNDECIDED, figures, sentence)

    return judge


def judge_removal(name: str, hard: str = "") -> Judge:
    """The judge of "what this ablation removes helps". hard: "" or ", hard"."""
    full, without = f"ContAccum 8{hard}", f"{name}{hard}"

    def judge(records: RunRecords) -> Verdict:
        gap = records.difference(full, without)
        effect = gap.by_sign("costs accuracy", "helps here", "costs nothing here")
        return Verdict(
            Outcome.HOLDS if gap.is_positive else Outcome.FAILS_HERE,
            f"{records.format_mean(full)} and {records.format_mean(without)}: {gap}",
            f"Removing {name.removeprefix('w/o ')} {effect}.",
        )

    return judge


def judge_consistency(records: RunRecords) -> Verdict:
    """Each ablation does with hard negatives what it does without."""
    effects = {}
    for name in ABLATIONS:
        for hard in ("", ", hard"):
            gap = records.difference(name + hard, f"ContAccum 8{hard}")
            effects[name + hard] = gap.by_sign("helps", "costs", "not significant")
    differ = [name for name in ABLATIONS if effects[name] != effects[f"{name}, hard"]]
    figures = "; ".join(
        f"{name}: {effects[name]}, with hard negatives {effects[f'{name}, hard']}"
        for name in ABLATIONS
    )
    if differ:
        sentence = f"The effect is not the same with hard negatives for {', '.join(differ)}."
        return Verdict(Outcome.FAILS_HERE, figures, sentence)
    sentence = "Each removal has the same effect with hard negatives and without."
    return Verdict(Outcome.HOLDS, figures, sentence)


# --- Figures 3 to 7 ---------------------------------------------------------------------------


def judge_accumulation(records: RunRecords) -> Verdict:
    """At the same bank and the same pairs seen, K 16 against K 1: over all cells that were run."""
    gaps = {}
    for n in (0, *GRID[records.start]):
        names = [figure3(records.start, n, k) for k in (16, 1)]
        if all((name, 0) in records.records for name in names):
            gaps[n] = records.difference(*names)
    figures = ", ".join(f"N_memory {n}: {gap}" for n, gap in gaps.items())
    helps = [n for n, gap in gaps.items() if gap.is_positive]
    if len(helps) == len(gaps):
        sentence = "K 16 is above K 1 with every bank."
        return Verdict(Outcome.HOLDS, figures, sentence)
    if helps:
        sizes = ", ".join(map(str, helps))
        sentence = f"K 16 is above K 1 with N_memory {sizes}, and not with the others."
        return Verdict(Outcome.HOLDS_IF, figures, sentence)
    sentence = "At the same number of pairs seen, K 16 is above K 1 with none of these banks."
    return Verdict(Outcome.FAILS_HERE, figures, sentence)


def judge_grid(records: RunRecords) -> Verdict:
    """Figure 3: each cell is above GradAccum with the same K."""
    start, gaps, rows = records.start, {}, []
    for k in GRID_STEPS:
        for n in GRID[start]:
            if (figure3(start, n, k), 0) in records.records:
                gaps[k, n] = records.difference(figure3(start, n, k), figure3(start, 0, k))
        gains = [f"{gap.mean:+.1f} (N_memory {n})" for (j, n), gap in gaps.items() if j == k]
        rows.append(f"K {k}: {', '.join(gains)}")
    figures = "; ".join(rows)
    worse = [f"N_memory {n}, K {k}" for (k, n), gap in gaps.items() if not gap.is_positive]
    if not worse:
        sentence = "Above accumulation alone in every cell of the grid."
        return Verdict(Outcome.HOLDS, figures, sentence)
    return Verdict(
        Outcome.FAILS_HERE if 2 * len(worse) > len(gaps) else Outcome.HOLDS_IF,
        figures,
        f"Not above accumulation alone at {'; '.join(worse)}: a bank that spans many updates is "
        "stale at this learning rate.",
    )


def judge_levelling(records: RunRecords) -> Verdict:
    """Figure 3: at K 16 the last step in N_memory brings no more than the first."""
    sizes = GRID[records.start]
    accuracy = {n: mean(records.values(figure3(records.start, n, 16))) for n in sizes}
    gains = [accuracy[large] - accuracy[small] for small, large in zip(sizes, sizes[1:])]
    levels_off = -1 <= gains[-1] <= gains[0]
    outcome = Outcome.FAILS_HERE
    if gains[0] > 0:
        outcome = Outcome.HOLDS if levels_off else Outcome.HOLDS_IF
    sentence = "At K 16 it does not level off."
    if levels_off:
        sentence = "At K 16 the gain levels off."
    elif gains[-1] < -1:
        peak = max(accuracy, key=lambda n: accuracy[n])
        sentence = (
            f"At K 16 it rises up to N_memory {peak} and then falls: too large a bank is stale."
        )
    figures = ", ".join(f"N_memory {n}: {value:.1f}" for n, value in accuracy.items())
    return Verdict(outcome, figures, sentence)


def judge_update_time(cost: list[dict]) -> Judge:
    """Figure 4. cost: the "update" records of benchmarks/cost.py."""

    def judge(records: RunRecords) -> Verdict:
        seconds, base = {}, {}
        for r in cost:
            if (r["shape"][:8], r["device"], r["total"]) == ("6 layers", "cpu", 64):
                seconds[r["way"]] = r["seconds"]
                base[r["way"]] = r.get("base")  # GradAccum in the same turns, if in others
        ways = ("kept", "whole", "grad_cache")
        kept, whole, cached = (seconds[w] / (base[w] or seconds["grad_accum"]) for w in ways)
        outcome = Outcome.FAILS_HERE
        if kept < cached:
            outcome = Outcome.HOLDS if whole < cached else Outcome.HOLDS_IF
        return Verdict(
            outcome,
            f"ContAccum {kept:.2f} (whole matrix {whole:.2f}), GradCache {cached:.2f}, "
            "times GradAccum",
            "At N_memory 8192 on one core ContAccum is faster than GradCache only when "
            "bank × bank scores are not computed again.",
        )

    return judge


def judge_imbalance(records: RunRecords) -> Verdict:
    """Figure 5: the ratio grows beyond 2 without M_q, and stays below 2 with it and for DPR."""
    ours, dpr = records.values("ContAccum 8", "ratio"), records.values("DPR 128", "ratio")
    ratios = {}  # by learning rate: the middle of the run, its last twentieth, its highest
    for rate, name in records.rates("w/o M_q").items():
        ratios[rate] = [median(records.values(name, key)) for key in ("ratio", "last", "most")]
    figures = ", ".join(f"{r:g}: {middle:.1f}" for r, (middle, _, _) in ratios.items())
    figures = f"pre-batch by rate {figures}; ContAccum {median(ours):.1f}, DPR {median(dpr):.1f}"
    grown = [rate for rate, (middle, _, most) in ratios.items() if middle > 2 or most > 5]
    near_one = max(ours) < 2 and max(dpr) < 2
    if near_one and SHARED_RATE in grown:
        sentence = "Without a query bank the ratio leaves 1; with one it stays near DPR's."
        return Verdict(Outcome.HOLDS, figures, sentence)
    if near_one and grown:
        rates = ", ".join(f"{rate:g}" for rate in grown)
        sentence = f"Without a query bank the ratio leaves 1 at the rates {rates} only."
        return Verdict(Outcome.HOLDS_IF, figures, sentence)
    return Verdict(Outcome.FAILS_HERE, figures, "The ratio does not grow without a query bank.")


def judge_mass(records: RunRecords) -> Verdict:
    """Figure 6: banked passages against the same ones encoded now, by age, early in the run.

    A difference counts if it is significant and at least a tenth of the control.
    """
    figures, differ = [], []
    for name, age in ((name, age) for name, ages in MASS.items() for age in ages):
        label = f"{name.removeprefix('ContAccum ')} (MRR@10 {mean(records.values(name)):.0f})"
        label = f"{label}, age {age}"
        control, gap = _mass_of_age(records.of(name), str(age))
        figures.append(f"{label}: {control + gap.mean:.2f} (now {control:.2f})")
        if (gap.is_positive or gap.is_negative) and abs(gap.mean) > control / 10:
            differ.append(label)
    outcome, ending = Outcome.HOLDS_IF, f"a difference at {', '.join(differ)}, and none elsewhere"
    if not differ:
        outcome, ending = Outcome.HOLDS, "no difference"
    elif len(differ) == len(figures):
        outcome, ending = Outcome.FAILS_HERE, "a difference everywhere"
    return Verdict(
        outcome,
        "; ".join(figures),
        "As a share of the mass of a passage of this batch, an eighth into the run, where vectors "
        f"move most. Against the same passages encoded now, there is {ending}.",
    )


def _mass_of_age(runs: list[dict], age: str) -> tuple[float, PairedDifference]:
    """The mass of passages of an age encoded now, and by how much the banked ones differ."""
    banked = [run["early mass"][age] for run in runs]
    fresh = [run["early control"][age] for run in runs]
    return mean(fresh), PairedDifference([a - b for a, b in zip(banked, fresh)])


def judge_dropped_bank(records: RunRecords) -> Verdict:
    """Figure 7: at the paper's three moments, and one before; by ratio or by lost accuracy."""
    shares = ("5%", "25%", "50%", "75%")
    ratio = {s: median(records.values(f"M_q dropped at {s}", "most")) for s in shares}
    gaps = {s: records.difference(f"M_q dropped at {s}", "ContAccum 8") for s in shares}
    figures = "; ".join(f"at {s}: ratio up to {ratio[s]:.1f}, {gaps[s]}" for s in shares)
    arises = [s for s in shares if ratio[s] > 3 or gaps[s].is_negative]
    balanced = [s for s in shares if s not in arises]
    if not arises:
        return Verdict(Outcome.FAILS_HERE, figures, "It arises at none of these moments.")
    outcome = Outcome.HOLDS if set(balanced) <= {"5%"} else Outcome.HOLDS_IF
    if not balanced:
        return Verdict(outcome, figures, "It arises at all of these moments.")
    sentence = (
        f"It arises when M_q is dropped at {', '.join(arises)} of the run, but not at "
        f"{', '.join(balanced)}."
    )
    return Verdict(outcome, figures, sentence)


# --- Sections 3 and 6, Table 3 ----------------------------------------------------------------


CELLS = {
    "stale": "w/o M_q",
    "push removed": "w/o M_q, common part removed",
    "bank fresh": "w/o M_q, bank fresh",
    "both": "w/o M_q, both",
}


def _cells(records: RunRecords) -> str:
    """The 2 × 2 of the cause, in words."""
    means = [f"{words} {records.format_mean(name)}" for words, name in CELLS.items()]
    return ", ".join(means)


def judge_cause(records: RunRecords) -> Verdict:
    """The harm stays as long as the numbers of representations differ."""
    gaps = [records.difference(CELLS[c], "w/o M_q") for c in ("push removed", "bank fresh")]
    cured = [gap for gap in gaps if gap.is_positive]
    outcome = Outcome.HOLDS
    sentence = "With the numbers as they are, neither intervention ends the harm."
    if cured:
        outcome = Outcome.FAILS_HERE if len(cured) == 2 else Outcome.HOLDS_IF
        words = "each of two interventions ends" if len(cured) == 2 else "one of two ends"
        sentence = f"With the same numbers of representations, {words} the harm."
    return Verdict(outcome, _cells(records), sentence)


def judge_half(cell: str, cause: str) -> Judge:
    """The judge of "without this half of the cause there is no harm". cell: of the 2 × 2."""

    def judge(records: RunRecords) -> Verdict:
        harm = records.difference("w/o M_q", "w/o M_q, both")
        left = records.difference(CELLS[cell], "w/o M_q, both")
        figures = f"stale and pushed {harm}, {cell} {left} (against both interventions)"
        if not harm.is_negative:
            return Verdict(Outcome.UNDECIDED, figures, "Here a passage bank alone does no harm.")
        if left.is_negative and left.mean < -NO_LOSS:
            return Verdict(Outcome.FAILS_HERE, figures, f"Harm is left without {cause}.")
        return Verdict(
            Outcome.HOLDS, figures, f"Without {cause}, a passage bank alone does no harm."
        )

    return judge


def judge_fresh_banks(records: RunRecords) -> Verdict:
    """Where no vector is stale, a query bank adds nothing."""
    fresh = records.difference("ContAccum 8, bank fresh", "w/o M_q, bank fresh")
    stale = records.difference("ContAccum 8", "w/o M_q")
    figures = f"dual bank minus passage bank alone: stale {stale}, fresh {fresh}"
    if not stale.is_positive:
        return Verdict(
            Outcome.UNDECIDED, figures, "Here the query bank helps with stale vectors neither."
        )
    if not fresh.is_positive or fresh.mean < NO_LOSS:
        sentence = "With fresh banks the query bank makes no difference."
        return Verdict(Outcome.HOLDS, figures, sentence)
    if fresh.mean < stale.mean / 4:
        sentence = (
            "With fresh banks less than a quarter of the difference is left, and not nothing."
        )
        return Verdict(Outcome.HOLDS_IF, figures, sentence)
    sentence = "The query bank makes a difference with fresh banks too."
    return Verdict(Outcome.FAILS_HERE, figures, sentence)


def judge_norms(records: RunRecords) -> Verdict:
    """Which tower's gradient makes the ratio: each norm against its own at the start of the run."""
    lowest, highest = {}, {}
    for tower in ("query", "passage"):
        traces = [r[f"norm_{tower}"] for r in records.of("w/o M_q")]
        lowest[tower] = median(min(trace) / trace[0] for trace in traces)
        highest[tower] = median(max(trace) / trace[0] for trace in traces)
    ratio = median(records.values("w/o M_q", "most"))
    figures = (
        f"as multiples of the first twentieth: query tower down to {lowest['query']:.2g}, passage "
        f"tower up to {highest['passage']:.2g}; ratio up to {ratio:.0f}"
    )
    if ratio < 3:
        return Verdict(Outcome.UNDECIDED, figures, "Here the ratio does not grow.")
    if 1 / lowest["query"] > highest["passage"]:
        sentence = "The query tower's gradient falls by more than the passage tower's grows."
        return Verdict(Outcome.HOLDS, figures, sentence)
    sentence = "The passage tower's gradient grows by more than the query tower's falls."
    return Verdict(Outcome.FAILS_HERE, figures, sentence)


def judge_negatives(records: RunRecords) -> Verdict:
    """N_local + N_memory − 1 negatives, with hard negatives and without."""
    names = ("GradAccum 8", "ContAccum 8", "ContAccum 8, hard")
    counts = {name: int(records.values(name, "negatives")[0]) for name in names}
    expected = 8 + records.settings("ContAccum 8").memory_size - 1
    outcome = Outcome.FAILS_HERE
    if counts["ContAccum 8"] == expected:
        same = counts["ContAccum 8, hard"] == expected
        outcome = Outcome.HOLDS if same else Outcome.HOLDS_IF
    return Verdict(
        outcome,
        ", ".join(f"{name}: {count}" for name, count in counts.items()),
        "N_local + N_memory − 1 without hard negatives; with their bank it is "
        f"2·(N_local + N_memory) − 1 = {counts['ContAccum 8, hard']}.",
    )


def judge_memory(cost: list[dict]) -> Judge:
    """Equation 11. cost: the "memory" records of benchmarks/cost.py."""

    def judge(records: RunRecords) -> Verdict:
        largest = max(cost, key=lambda r: r["size"])
        vectors_only = largest["whole"] <= 1.5 * largest["banks"]
        outcome = Outcome.HOLDS if vectors_only else Outcome.HOLDS_IF
        for r in cost:
            bytes_agree = r["banks"] == r["size"] * 768 * 2 * 4
            if not bytes_agree or round(r["banks"] / GIB, 4) != r["theory"]:
                outcome = Outcome.FAILS_HERE
        banks, whole, kept = (largest[key] / GIB for key in ("banks", "whole", "kept"))
        sentence = "The vectors take what equation 11 says"
        if not vectors_only:
            sentence += ", once Table 3's last row is read as 2048"
            sentence += "; the similarity matrix comes on top of it"
        return Verdict(
            outcome,
            f"N_memory {largest['size']}: banks {banks:.4f} GiB; with the matrix {whole:.4f}, "
            f"incremental {kept:.4f}",
            f"{sentence}.",
        )

    return judge


def _elsewhere(records: RunRecords, variant: str) -> tuple[PairedDifference, str, str]:
    """Pre-batch against ContAccum in a variant: log of the ratios' quotient, figures, accuracy."""
    names = f"w/o M_q, {variant}", f"ContAccum 8, {variant}"
    seeds = records.seeds(*names)
    one_sided, ours = (records.values(name, "ratio", seeds) for name in names)
    log_quotient = PairedDifference([math.log(a / b) for a, b in zip(one_sided, ours)])
    gap = records.difference(*names)
    means = " and ".join(records.format_mean(name) for name in names)
    figures = (
        f"ratio: pre-batch {median(one_sided):.1f}, ContAccum {median(ours):.1f}; "
        f"MRR@10 {means}: {gap}"
    )
    accuracy = gap.by_sign(
        "Pre-batch is above ContAccum.",
        "Pre-batch is below ContAccum.",
        f"Its difference to ContAccum in accuracy is {not_significant(gap)}.",
    )
    if gap.is_negative and not log_quotient.is_positive:
        accuracy = f"All the same, p{accuracy[1:]}"
    return log_quotient, figures, accuracy


def judge_one_encoder(records: RunRecords) -> Verdict:
    """Section 6, open: with one shared encoder."""
    _, figures, accuracy = _elsewhere(records, "one encoder")
    sentence = "The ratio cannot tell: one tower has one gradient, and its ratio to itself is 1."
    return Verdict(Outcome.UNDECIDED, figures, f"{sentence} {accuracy}")


def judge_pretraining(records: RunRecords) -> Verdict:
    """Section 6, open: with random crops of passages as pairs."""
    log_quotient, figures, accuracy = _elsewhere(records, "crops")
    if log_quotient.is_positive:
        times = math.exp(log_quotient.mean)
        sentence = f"By the ratio it arises on random crops, {times:.1f} times ContAccum's."
        return Verdict(Outcome.ARISES, figures, f"{sentence} {accuracy}")
    sentence = "By the ratio it does not arise on random crops."
    return Verdict(Outcome.DOES_NOT_ARISE, figures, f"{sentence} {accuracy}")


# --- all of them ------------------------------------------------------------------------------


def claims(cost: dict[str, list[dict]], start: str = "pretrained") -> list[Claim]:
    """All claims, in the order of the paper; then our own on the cause.

    cost: the records that judge Figure 4 and Table 3. start: of the towers; a claim that was not
    run from there is left out.
    """
    ablations = ("ContAccum 8", "w/o M_q", "w/o past", "w/o GradAccum")
    both_limits = ("ContAccum 8", "ContAccum 32", "GradAccum 8", "GradAccum 32")
    all_ablations = (*ablations, "w/o M_q, past")
    hard = lambda names: tuple(f"{name}, hard" for name in names)
    cells = {(n, k): figure3(start, n, k) for n in (0, *GRID[start]) for k in GRID_STEPS}
    cells = {cell: name for cell, name in cells.items() if name in RUNS[start]}
    row = tuple(name for (n, k), name in cells.items() if k == 16 and n)
    columns = tuple(name for (n, k), name in cells.items() if k != 4 and (n, 1) in cells)
    dropped = tuple(name for name in RUNS[start] if name.startswith("M_q dropped"))
    encoder, crops = ((f"w/o M_q, {v}", f"ContAccum 8, {v}") for v in ("one encoder", "crops"))
    cause = tuple(CELLS.values())
    one_sided = tuple(at_rate("w/o M_q", rate) for rate in RATES[start])
    fresh = ("ContAccum 8", "w/o M_q", "ContAccum 8, bank fresh", "w/o M_q, bank fresh")
    judges = {
        "negatives": (("GradAccum 8", "ContAccum 8", "ContAccum 8, hard"), judge_negatives),
        "cause": (cause, judge_cause),
        "batch": (("DPR 8", "DPR 32", "DPR 128"), judge_batch_size),
        "both limits": (both_limits, judge_both_limits),
        "gap grows": (both_limits, judge_gap_grows),
        "M_q most": (ablations, judge_largest_drop("")),
        "M_q most, hard": (hard(ablations), judge_largest_drop(", hard")),
        "consistent": ((*all_ablations, *hard(all_ablations)), judge_consistency),
        "GradAccum helps": (columns, judge_accumulation),
        "whole grid": (tuple(cells.values()), judge_grid),
        "levels off": (row, judge_levelling),
        "faster": ((), judge_update_time(cost["update"])),
        "imbalance": ((*one_sided, "ContAccum 8", "DPR 128"), judge_imbalance),
        "similarity mass": (tuple(MASS), judge_mass),
        "dropped": ((*dropped, "ContAccum 8"), judge_dropped_bank),
        "memory": ((), judge_memory(cost["memory"])),
        "one encoder": (encoder, judge_one_encoder),
        "pre-training": (crops, judge_pretraining),
        "push": (cause, judge_half("push removed", "a push that nothing cancels")),
        "stale": (cause, judge_half("bank fresh", "vectors that stay behind")),
        "fresh banks": (fresh, judge_fresh_banks),
        "norms": (("w/o M_q", "ContAccum 8"), judge_norms),
    }
    for name, pair in {
        "above DPR": ("ContAccum 8", "DPR 128"),
        "above GradAccum": ("ContAccum 8", "GradAccum 8"),
        "above GradCache": ("ContAccum 8", "GradCache 8"),
        "64 beats 128": ("ContAccum N_memory 128 K 8", "DPR 128"),
    }.items():
        judges[name] = (pair, judge_higher(*pair))
    past = ("ContAccum 8", "w/o past")
    judges["past helps"] = (past, judge_removal("w/o past"))
    judges["past helps, hard"] = (hard(past), judge_removal("w/o past", ", hard"))
    accumulation = hard(("ContAccum 8", "w/o GradAccum"))
    judges["GradAccum helps, hard"] = (accumulation, judge_removal("w/o GradAccum", ", hard"))
    everything = claims_with("contaccum", judges)
    return [claim for claim in everything if set(claim.runs) <= set(RUNS[start])]


def has_own_rates(claim: Claim, records: RunRecords) -> bool:
    """Whether each of a claim's runs was made at more than one rate."""
    rates = [len(records.rates(name)) for name in claim.runs]
    return bool(rates) and min(rates) > 1


def verdicts(records: RunRecords, cost: dict[str, list[dict]]) -> dict[str, tuple]:
    """Claim -> (its verdict at the shared rate; at own rates, or None where only one was run)."""
    own, judged = records.at_own_rates(), {}
    for claim in claims(cost, records.start):
        second = claim.judge(own) if has_own_rates(claim, records) else None
        judged[claim.name] = claim.judge(records), second
    return judged


def table(books: dict[str, RunRecords], cost: dict[str, list[dict]]) -> str:
    """The ledger of both regimes as a table in Markdown. books: the records of each start."""
    judged = {start: verdicts(book, cost) for start, book in books.items()}
    by_name = {c.name: c for start in STARTS for c in claims(cost, start)}
    rows = []
    for printed_claim in printed("contaccum"):
        claim = by_name[printed_claim["name"]]
        row = [claim.statement, claim.section, claim.paper]
        for start in STARTS:
            shared, own = judged[start].get(claim.name, (None, None))
            row += [cell(shared), cell(own)]
        rows.append(row)
    header = ["claim", "place", "paper"]
    for start in STARTS:
        header += [f"{REGIMES[start]}, rate {SHARED_RATE:g}", "each at its own rate"]
    return markdown_table(header, rows)


def cell(verdict: Verdict | None) -> str:
    """A verdict with its figures in one cell of a table; a dash where there is none."""
    if verdict is None:
        return "–"
    return f"**{verdict.verdict}** {verdict.ours}. {verdict.sentence}"


def counts(books: dict[str, RunRecords], cost: dict[str, list[dict]]) -> dict[str, Counter]:
    """How many claims have which verdict, by regime and column."""
    counted = {}
    for start, book in books.items():
        shared, own = zip(*verdicts(book, cost).values())
        counted[f"{REGIMES[start]}, one rate for all"] = Counter(v.verdict for v in shared)
        counted[f"{REGIMES[start]}, each at its own rate"] = Counter(v.verdict for v in own if v)
    return counted

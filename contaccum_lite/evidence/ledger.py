"""The ledger: every claim of the paper, and the verdict that the records give.

No verdict is written by hand. `python -m contaccum_lite.evidence.run ledger` runs all of it;
notebook 06 shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean, median

from contaccum_lite.evidence.claims import (
    Claim,
    Outcome,
    Verdict,
    claims_table,
    claims_with,
    not_significant,
    outcome_of,
)
from contaccum_lite.evidence.records import PairedDifference, RunRecords
from contaccum_lite.evidence.runs import ABLATIONS, RUNS

Judge = Callable[[RunRecords], Verdict]
#: the runs of Figure 6 and the ages that they are read at: their banks span four and eight updates
MASS = {"ContAccum N_memory 32 K 1": (1, 2, 4), "ContAccum N_memory 256 K 4, rate 0.001": (1, 3, 6)}
GIB = 2**30


def figure3(n: int, k: int) -> str:
    """The run of a cell of Figure 3."""
    course = {(128, 16): "ContAccum 8", (128, 1): "w/o GradAccum"}
    return course.get((n, k), f"ContAccum N_memory {n} K {k}")


# --- Table 1 ----------------------------------------------------------------------------------


def judge_higher(name: str, other: str, key: str = "top@20") -> Judge:
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
    ending = ", and the order is not the paper's."
    if outcome is Outcome.HOLDS:
        ending = "; the larger batch is better all the same."
    return Verdict(
        outcome,
        ", ".join(records.format_mean(f"DPR {size}") for size in (8, 32, 128)),
        "With the same pairs seen and one learning rate for all, a smaller batch makes 16 times "
        f"as many updates{ending}",
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


def judge_grid(records: RunRecords) -> Verdict:
    """Figure 3: each cell is above GradAccum with the same K."""
    base = {1: "DPR 8", 4: "GradAccum K 4", 16: "GradAccum 8"}
    cells = [(k, n) for k in base for n in (32, 128, 512) if figure3(n, k) in RUNS]
    gaps = {(k, n): records.difference(figure3(n, k), base[k]) for k, n in cells}
    rows = []
    for k in base:
        gains = [f"{gaps[k, n].mean:+.1f} (N_memory {n})" for j, n in cells if j == k]
        rows.append(f"K {k}: {', '.join(gains)}")
    figures = "; ".join(rows)
    worse = [f"N_memory {n}, K {k}" for (k, n), gap in gaps.items() if not gap.is_positive]
    if not worse:
        sentence = "Above accumulation alone in every cell of the grid."
        return Verdict(Outcome.HOLDS, figures, sentence)
    return Verdict(
        Outcome.FAILS_HERE if 2 * len(worse) > len(cells) else Outcome.HOLDS_IF,
        figures,
        f"Not above accumulation alone at {'; '.join(worse)}: a bank that spans many updates is "
        "stale at this learning rate.",
    )


def judge_levelling(records: RunRecords) -> Verdict:
    """Figure 3: from N_memory 128 to 512 at K 16 no more is gained than from 32 to 128."""
    top20 = {n: mean(records.values(figure3(n, 16))) for n in (32, 128, 512)}
    first, second = top20[128] - top20[32], top20[512] - top20[128]
    levels_off = -1 <= second <= first
    outcome = Outcome.FAILS_HERE
    if first > 0:
        outcome = Outcome.HOLDS if levels_off else Outcome.HOLDS_IF
    sentence = "At K 16 it does not level off."
    if levels_off:
        sentence = "At K 16 the gain levels off."
    elif second < -1:
        sentence = "At K 16 it rises up to N_memory 128 and then falls: too large a bank is stale."
    figures = ", ".join(f"N_memory {n}: {value:.1f}" for n, value in top20.items())
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
    names = ("w/o M_q", "ContAccum 8", "DPR 128")
    one_sided, ours, dpr = (records.values(name, "ratio") for name in names)
    final = records.values("w/o M_q", "last")
    grows = all(last > middle > 2 for last, middle in zip(final, one_sided))
    figures = (
        f"middle: pre-batch {median(one_sided):.0f} "
        f"(at most {max(records.values('w/o M_q', 'most')):.0f}), "
        f"ContAccum {median(ours):.1f}, DPR {median(dpr):.1f}"
    )
    if grows and max(ours) < 2 and max(dpr) < 2:
        sentence = "Without a query bank the ratio grows throughout; with one it stays near DPR's."
        return Verdict(Outcome.HOLDS, figures, sentence)
    higher = min(one_sided) > 2 * max(ours)
    outcome = Outcome.HOLDS_IF if higher else Outcome.FAILS_HERE
    return Verdict(outcome, figures, "The ratio is higher without a query bank.")


def judge_mass(records: RunRecords) -> Verdict:
    """Figure 6: banked passages against the same ones encoded now, by age.

    A difference counts if it is significant and at least a tenth of the control.
    """
    figures, differ = [], []
    for name, ages in MASS.items():
        rate = f"rate {RUNS[name].settings.learning_rate:g}"
        for age in map(str, ages):
            pairs = [(r["mass"][age], r["control"][age]) for r in records.of(name)]
            gap = PairedDifference([banked - fresh for banked, fresh in pairs])
            control = mean(fresh for _, fresh in pairs)
            figures.append(f"{rate}, age {age}: {control + gap.mean:.2f} (control {control:.2f})")
            significant = gap.is_positive or gap.is_negative
            if significant and abs(gap.mean) > control / 10:
                differ.append(f"age {age} at a {rate}")
    if not differ:
        outcome, ending = Outcome.HOLDS, "no difference"
    elif len(differ) == len(figures):
        outcome, ending = Outcome.FAILS_HERE, f"a difference at {', '.join(differ)}"
    else:
        outcome, ending = (
            Outcome.HOLDS_IF,
            f"a difference at {', '.join(differ)}, and none elsewhere",
        )
    return Verdict(
        outcome,
        "; ".join(figures),
        "As a share of the mass of a passage of this batch. Against the same passages encoded now, "
        f"there is {ending}.",
    )


def judge_dropped_bank(records: RunRecords) -> Verdict:
    """Figure 7: the imbalance arises at the paper's three moments; and at one before them."""
    shares = ("5%", "25%", "50%", "75%")
    ratio = {s: mean(records.values(f"M_q dropped at {s}", "last")) for s in shares}
    gaps = {s: records.difference(f"M_q dropped at {s}", "ContAccum 8") for s in shares}
    figures = "; ".join(f"at {s}: last ratio {ratio[s]:.1f}, Top@20 {gaps[s]}" for s in shares)
    arises = [s for s in shares if ratio[s] > 3]
    balanced = [s for s in shares if s not in arises]
    if not arises:
        return Verdict(Outcome.FAILS_HERE, figures, "It arises at none of these moments.")
    outcome = Outcome.HOLDS if set(balanced) <= {"5%"} else Outcome.HOLDS_IF
    if not balanced:
        return Verdict(outcome, figures, "It arises at all of these moments.")
    sentence = (
        f"In a run of 400 updates, it arises when M_q is dropped at {', '.join(arises)} of the "
        f"run, but not at {', '.join(balanced)}."
    )
    return Verdict(outcome, figures, sentence)


# --- Sections 3 and 6, Table 3 ----------------------------------------------------------------


def judge_cause(records: RunRecords) -> Verdict:
    """The imbalance stays as long as the numbers of representations differ."""
    removed = "w/o M_q, common part removed"
    before, after = records.values("w/o M_q", "ratio"), records.values(removed, "ratio")
    gap = records.difference(removed, "w/o M_q")
    figures = f"ratio {median(before):.0f} → {median(after):.2f}, Top@20 {gap}"
    if max(after) > 2:
        sentence = "The imbalance stays when the common part is removed."
        return Verdict(Outcome.HOLDS, figures, sentence)
    return Verdict(
        Outcome.FAILS_HERE,
        figures,
        "With the same numbers of representations, removing the common part of the local "
        "passages' gradients ends the imbalance: the number is not the cause, the uncancelled "
        "sum is.",
    )


def judge_negatives(records: RunRecords) -> Verdict:
    """N_local + N_memory − 1 negatives, with hard negatives and without."""
    names = ("GradAccum 8", "ContAccum 8", "ContAccum 8, hard")
    counts = {name: int(records.values(name, "negatives")[0]) for name in names}
    outcome = Outcome.FAILS_HERE
    if counts["ContAccum 8"] == 8 + 128 - 1:
        same = counts["ContAccum 8, hard"] == 8 + 128 - 1
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
        f"Top@20 {means}: {gap}"
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


def claims(cost: dict[str, list[dict]]) -> list[Claim]:
    """All claims, in the order of the paper. cost: the records that judge Figure 4 and Table 3."""
    ablations = ("ContAccum 8", "w/o M_q", "w/o past", "w/o GradAccum")
    both_limits = ("ContAccum 8", "ContAccum 32", "GradAccum 8", "GradAccum 32")
    all_ablations = (*ablations, "w/o M_q, past")
    hard = lambda names: tuple(f"{name}, hard" for name in names)
    grid = tuple(n for n in RUNS if n.startswith("ContAccum N_memory") and not n.endswith("K 8"))
    grid_bases = ("ContAccum 8", "w/o GradAccum", "DPR 8", "GradAccum K 4", "GradAccum 8")
    dropped = tuple(name for name in RUNS if name.startswith("M_q dropped"))
    encoder, crops = ((f"w/o M_q, {v}", f"ContAccum 8, {v}") for v in ("one encoder", "crops"))
    judges = {
        "negatives": (("GradAccum 8", "ContAccum 8", "ContAccum 8, hard"), judge_negatives),
        "cause": (("w/o M_q", "w/o M_q, common part removed"), judge_cause),
        "batch": (("DPR 8", "DPR 32", "DPR 128"), judge_batch_size),
        "both limits": (both_limits, judge_both_limits),
        "gap grows": (both_limits, judge_gap_grows),
        "M_q most": (ablations, judge_largest_drop("")),
        "M_q most, hard": (hard(ablations), judge_largest_drop(", hard")),
        "consistent": ((*all_ablations, *hard(all_ablations)), judge_consistency),
        "whole grid": ((*grid, *grid_bases), judge_grid),
        "levels off": ((*grid, "ContAccum 8"), judge_levelling),
        "faster": ((), judge_update_time(cost["update"])),
        "imbalance": (("w/o M_q", "ContAccum 8", "DPR 128"), judge_imbalance),
        "similarity mass": (tuple(MASS), judge_mass),
        "dropped": ((*dropped, "ContAccum 8"), judge_dropped_bank),
        "memory": ((), judge_memory(cost["memory"])),
        "one encoder": (encoder, judge_one_encoder),
        "pre-training": (crops, judge_pretraining),
    }
    for name, pair in {
        "above DPR": ("ContAccum 8", "DPR 128"),
        "above GradAccum": ("ContAccum 8", "GradAccum 8"),
        "above GradCache": ("ContAccum 8", "GradCache 8"),
        "64 beats 128": ("ContAccum N_memory 128 K 8", "DPR 128"),
    }.items():
        judges[name] = (pair, judge_higher(*pair))
    for name, removed in {"past helps": "w/o past", "GradAccum helps": "w/o GradAccum"}.items():
        pair = ("ContAccum 8", removed)
        judges[name] = (pair, judge_removal(removed))
        judges[f"{name}, hard"] = (hard(pair), judge_removal(removed, ", hard"))
    return claims_with("contaccum", judges)


def table(records: list[dict], cost: dict[str, list[dict]]) -> str:
    """The ledger as a table in Markdown, made from the records."""
    return claims_table(claims(cost), RunRecords(records))

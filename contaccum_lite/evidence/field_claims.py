"""What the records of the field say: its claims with their verdicts, its table, what to take.

No figure and no verdict is written by hand. `python -m contaccum_lite.evidence.run field`.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

from contaccum_lite.evidence import field
from contaccum_lite.evidence.claims import Claim, Outcome, Verdict, claims_with, outcome_of
from contaccum_lite.evidence.ledger import judge_higher
from contaccum_lite.evidence.records import PairedDifference, RunRecords, markdown_table
from contaccum_lite.evidence.runs import SHARED_RATE

NOT_RUN = "not run yet"
Judge = Callable[[RunRecords], Verdict]


class FieldRecords:
    """The field's records with the baselines', at the shared rate and at own rates.

    records: the field's. ledger: the first ledger's, fine-tuned. costs: of `field_costs.costs`.
    """

    def __init__(self, records: list[dict], ledger: list[dict], costs: list[dict]):
        self.records = field.with_baselines(records, ledger)
        self.race = [r for r in self.records if r["seed"] in field.RACE_SEEDS]
        self.fresh = [r for r in self.records if r["seed"] in field.FRESH_SEEDS]
        self.costs = {cost["name"]: cost for cost in costs}
        self.shared = RunRecords(self._complete(self.race))
        self.own = RunRecords(self._at_own_rates())

    @property
    def names(self) -> list[str]:
        """The methods that were raced, in the order of the plan."""
        raced = {name for name, _ in self.shared.records}
        names = dict.fromkeys([*field.BASELINES, *field.METHODS])
        return [name for name in names if name in raced]

    def _complete(self, records: list[dict]) -> list[dict]:
        """Only the runs that were made with all seeds of the race."""
        seeds: dict[str, set] = {}
        for record in records:
            seeds.setdefault(record["name"], set()).add(record["seed"])
        complete = {name for name, of_name in seeds.items() if len(of_name) == 5}
        return [r for r in records if r["name"] in complete]

    def _at_own_rates(self) -> list[dict]:
        """Each method's runs at its own rate under its plain name, where tuning is complete."""
        records = []
        for name in dict.fromkeys([*field.BASELINES, *field.METHODS]):
            if field.is_tuned(name, self.records):
                run = field.at_own_rate(name, self.records)
                of_run = [r for r in self.race if r["name"] == run]
                records += [{**r, "name": name} for r in self._complete(of_run)]
        return records

    def own_rate(self, name: str) -> float | None:
        """A method's own rate, None where tuning is not complete."""
        tuned = (name, 0) in self.own.records
        return field.own_rate(name, self.records) if tuned else None


# --- judges ---------------------------------------------------------------------------------------


def judge_gain_shrinks(records: RunRecords) -> Verdict:
    """The decoupled loss's gain at 8 pairs is larger than at 128."""
    small = records.difference("decoupled", "GradAccum")
    large = records.difference("DPR 128, decoupled", "DPR 128")
    change = PairedDifference([a - b for a, b in zip(small.differences, large.differences)])
    sentence = change.by_sign(
        "It gives more, or costs less, in a batch of 8.",
        "It gives less, or costs more, in a batch of 8.",
        "The difference of the two gains is not statistically significant.",
    )
    return Verdict(outcome_of(change), f"{small} at 8, {large} at 128: {change}", sentence)


def judge_not_below(name: str, other: str) -> Judge:
    """The judge of "`name`, with 8 pairs in memory, is as good as `other`"."""

    def judge(records: RunRecords) -> Verdict:
        gap = records.difference(name, other)
        outcome = gap.by_sign(Outcome.HOLDS, Outcome.FAILS_HERE, Outcome.UNDECIDED)
        whole = records.difference(other, "GradAccum").mean
        share = records.difference(name, "GradAccum").mean / whole
        sentence = f"It closes {share:.0%} of the gap between GradAccum and {other}."
        if outcome == Outcome.UNDECIDED and gap.ci_half_width < 1:
            outcome = Outcome.HOLDS
            sentence += " No difference of a point is left."
        figures = f"{records.format_mean(name)} and {records.format_mean(other)}: {gap}"
        return Verdict(outcome, figures, sentence)

    return judge


def judge_add_up(records: RunRecords) -> Verdict:
    """ContAccum with the decoupled loss is above ContAccum, and above DPR with 128 pairs."""
    over = records.difference("ContAccum 128, decoupled", "ContAccum 128")
    dpr = records.difference("ContAccum 128, decoupled", "DPR 128")
    outcome = Outcome.UNDECIDED
    if over.is_positive and dpr.is_positive:
        outcome = Outcome.HOLDS
    elif over.is_negative or dpr.is_negative:
        outcome = Outcome.FAILS_HERE
    figures = f"{over} over ContAccum 128, {dpr} over DPR 128"
    sentences = {
        Outcome.HOLDS: "Bank and objective add up.",
        Outcome.FAILS_HERE: "With a bank, the plain softmax is as good or better.",
        Outcome.UNDECIDED: "Not both differences are statistically significant.",
    }
    return Verdict(outcome, figures, sentences[outcome])


def claims() -> list[Claim]:
    """All claims of the field."""
    pairs = {
        "decoupled": ("decoupled", "GradAccum"),
        "sogclr over decoupled": ("SogCLR", "decoupled"),
        "sigmoid": ("sigmoid", "GradAccum"),
        "both": ("both directions", "GradAccum"),
        "all": ("all directions", "GradAccum"),
        "clusters": ("clusters", "GradAccum"),
        "margin": ("ContAccum 128, margin 0.8", "ContAccum 128"),
        "query tower": ("query tower only", "GradAccum"),
        "grad cache bank": ("GradCache, bank 128", "ContAccum 128"),
    }
    judges = {name: (both, judge_higher(*both)) for name, both in pairs.items()}
    judges["shrinks"] = (("decoupled", "DPR 128, decoupled"), judge_gain_shrinks)
    judges["sogclr"] = (("SogCLR", "DPR 128"), judge_not_below("SogCLR", "DPR 128"))
    judges["clusters suffice"] = (("clusters", "DPR 128"), judge_not_below("clusters", "DPR 128"))
    judges["add up"] = (("ContAccum 128, decoupled", "ContAccum 128", "DPR 128"), judge_add_up)
    return claims_with("field", judges)


def judged(claim: Claim, records: RunRecords) -> Verdict | None:
    """The verdict, or None where its runs are not all made."""
    try:
        return claim.judge(records)
    except (KeyError, ValueError):
        return None


def claims_table(book: FieldRecords) -> str:
    """The claims of the field's papers with two verdicts each, in Markdown."""
    rows = []
    for claim in claims():
        row = [claim.statement, claim.section, claim.paper]
        for records in (book.shared, book.own):
            verdict = judged(claim, records)
            row += [NOT_RUN, "", ""] if verdict is None else _cells(verdict)
        rows.append(row)
    shared = [f"ours at {SHARED_RATE:g}", "verdict", ""]
    header = ["claim", "place", "their figure", *shared, "ours at own rates", "verdict", ""]
    return markdown_table(header, rows)


def _cells(verdict: Verdict) -> list[str]:
    return [verdict.ours, f"**{verdict.verdict}**", verdict.sentence]


# --- tables ---------------------------------------------------------------------------------------


def main_table(book: FieldRecords) -> str:
    """Each method: accuracy at the shared and at its own rate, and what it costs."""
    rows = []
    for name in book.names:
        row = [name, book.shared.format_mean(name), book.shared.format_mean(name, "top@20")]
        row.append("" if name == "DPR 128" else _difference(book.shared, name, "DPR 128"))
        rate = book.own_rate(name)
        if rate is None:
            row += [NOT_RUN, "", ""]
        else:
            over = "" if name == "DPR 128" else _difference(book.own, name, "DPR 128")
            row += [book.own.format_mean(name), f"{rate:g}", over]
        rows.append([*row, *_cost_cells(book.costs.get(name), book)])
    header = [
        "method",
        f"MRR@10 at {SHARED_RATE:g}",
        "Top@20",
        "minus DPR 128",
        "MRR@10 at its own rate",
        "that rate",
        "minus DPR 128",
        "kept between updates",
        "peak within one",
        "encoded per update",
        "time",
    ]
    return markdown_table(header, rows)


def _difference(records: RunRecords, name: str, other: str) -> str:
    try:
        return str(records.difference(name, other))
    except KeyError:
        return NOT_RUN


def _cost_cells(cost: dict | None, book: FieldRecords) -> list[str]:
    """Memory in kB, texts encoded in an update, time as a multiple of GradAccum's."""
    if cost is None:
        return [NOT_RUN, "", "", ""]
    encodes = " + ".join(f"{count} {purpose}" for purpose, count in cost["encodes"].items())
    base = book.costs["GradAccum"]["time"]
    kilobytes = [f"{cost[key] / 1000:,.0f} kB" for key in ("kept", "peak")]
    return [*kilobytes, encodes.replace(" train", ""), f"{cost['time'] / base:.2f}"]


def mask_table(records: list[dict]) -> str:
    """What a margin finds of planted false negatives, in Markdown. records: `mask_quality`'s."""
    margins = sorted({r["margin"] for r in records})
    rows = []
    for update in sorted({r["update"] for r in records}):
        cells = []
        for margin in margins:
            [r] = [r for r in records if (r["update"], r["margin"]) == (update, margin)]
            cells.append(f"{r['recall']:.0%}, {_precision(r):.0%}, {127 * r['others']:.1f}")
        rows.append([update, *cells])
    header = ["recall, precision, other columns lost", *(f"m = {m:g}" for m in margins)]
    return markdown_table([f"{header[0]}, at update", *header[1:]], rows)


def _precision(record: dict) -> float:
    """Of what is masked, the planted share, if one of a row's 128 columns is planted."""
    masked = record["recall"] + 127 * record["others"]
    return record["recall"] / masked if masked else 1.0


def confirmation(book: FieldRecords) -> str:
    """The winners of both searches on fresh seeds, beside their rivals, in Markdown."""
    names = list(field.RIVALS)
    try:
        winners = [field.winner(book.records)]
        try:
            winners.append(field.late_winner(book.records))
            names += field.LATE_RIVALS
        except (KeyError, ValueError):
            pass  # the later methods are not tuned yet
        records, rows = RunRecords(book.fresh), []
        beside = [*dict.fromkeys(winners), "DPR 128"]
        for name in dict.fromkeys([*winners, *names]):
            run = field.at_own_rate(name, book.records)
            row = [name, run, records.format_mean(run)]
            for other in beside:
                gap = records.difference(run, field.at_own_rate(other, book.records))
                row.append("" if name == other else str(gap))
            rows.append(row)
    except (KeyError, ValueError):
        return "The confirmation on fresh seeds is not run yet."
    header = ["method", "run", "MRR@10, fresh seeds", *(f"minus {other}" for other in beside)]
    return markdown_table(header, rows)


def choice_table(book: FieldRecords) -> str:
    """Which to take: for each budget, the best by the dev pairs among what fits it.

    At the shared rate, where all methods have five seeds.
    """
    rows = []
    for words, fits in _BUDGETS.items():
        names = [name for name in book.names if fits(name)]
        if not names:
            continue
        dev = {name: mean(book.shared.values(name, "dev mrr@10")) for name in names}
        best = max(dev, key=dev.__getitem__)
        others = sorted(names, key=dev.__getitem__, reverse=True)[1:3]
        gain = _difference(book.shared, best, "GradAccum") if best != "GradAccum" else "–"
        row = [words, best, book.shared.format_mean(best), gain, "; ".join(others) or "–"]
        rows.append(row)
    header = ["what you have", "take", f"MRR@10 at {SHARED_RATE:g}", "minus GradAccum", "then"]
    return markdown_table(header, rows)


def _small(name: str) -> bool:
    return name not in field.WHOLE_BATCH


def _has_bank(name: str) -> bool:
    return "ContAccum" in name or "bank" in name


def _by_pair(name: str) -> bool:
    return "SogCLR" in name or "clusters" in name


_BUDGETS: dict[str, Callable[[str], bool]] = {
    "8 pairs in memory, and nothing kept": lambda name: (
        _small(name) and not _has_bank(name) and not _by_pair(name) and name != "GradCache"
    ),
    "the same, and time to encode each text twice": lambda name: (
        _small(name) and not _has_bank(name) and not _by_pair(name)
    ),
    "8 pairs, and a number or a cluster for each pair": lambda name: (
        _small(name) and not _has_bank(name) and _by_pair(name)
    ),
    "8 pairs, and a bank": lambda name: _small(name) and _has_bank(name) and not _by_pair(name),
    "8 pairs, and all of that": _small,
    "128 pairs in memory": lambda name: name in field.WHOLE_BATCH,
}


def tables(records: dict[str, list[dict]], ledger: list[dict]) -> dict[str, str]:
    """The field's tables by their marks in the docs. records: of field.json."""
    book = FieldRecords(records["runs"], ledger, records["costs"])
    return {
        "field": main_table(book),
        "field-claims": claims_table(book),
        "field-choice": choice_table(book),
        "field-confirmation": confirmation(book),
        "field-masks": mask_table(records["masks"]),
    }

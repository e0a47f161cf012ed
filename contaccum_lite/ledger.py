"""The ledger: every claim of the paper, what was run for it, and the verdict that the records give.

`RUNS` says what is run, `train` runs one of them into a record, `CLAIMS` judge the records. No verdict is written by hand.
`python -m benchmarks.ledger` runs all of it; notebook 06 and the README show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean, median, stdev
from typing import NamedTuple

import torch

from . import measure
from .data import Pairs, crop_pairs
from .loss import Contrast
from .settings import Settings
from .train import Run

PAIRS_SEEN = (
    400 * 128
)  # of every run, whatever its batch: as in the paper, where methods share their epochs
SEEDS = range(5)
HOLDS, ONLY, NOT, OPEN = "holds", "holds only when", "does not hold here", "not decided"
#: two-sided 95 % of Student's t, by the number of paired seeds
_STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 8: 2.36, 10: 2.26}


# --- what is run -------------------------------------------------------------------------------------------------------


class Planned(NamedTuple):
    """A run of the ledger, but for its seed. `text`: "docs" or "crops"; `adjust`: the intervention of notebook 04."""

    settings: Settings
    seeds: range
    text: str = "docs"
    adjust: bool = False


def planned(
    method: str, seeds=SEEDS, text: str = "docs", adjust: bool = False, **fields
) -> Planned:
    """A run on the course's settings that sees as many pairs as all others; warm-up is a twentieth of its updates."""
    settings = Settings.preset(method, **fields)
    updates = fields.get("updates", PAIRS_SEEN // settings.total_batch)
    return Planned(
        settings.replace(
            updates=updates,
            warmup=fields.get("warmup", updates // 20),
            one_forward=method not in ("dpr", "grad_cache"),
        ),
        seeds,
        text,
        adjust,
    )


def _runs() -> dict[str, Planned]:
    wide = dict(local_batch=32, accumulation_steps=4)
    runs = {
        "DPR 8": planned("dpr", local_batch=8),
        "DPR 32": planned("dpr", local_batch=32),
        "DPR 128": planned("dpr"),
        "GradAccum 8": planned("grad_accum"),
        "GradAccum 32": planned("grad_accum", **wide),
        "GradCache 8": planned("grad_cache"),
        "GradCache 32": planned("grad_cache", **wide),
        "ContAccum 8": planned("contaccum"),
        "ContAccum 32": planned("contaccum", **wide),
    }
    parts = {
        "w/o M_q": "pre_batch",
        "w/o past": "contaccum_no_past",
        "w/o M_q, past": "pre_batch_no_past",
        "w/o GradAccum": "contaccum_no_accum",
    }
    runs |= {name: planned(method) for name, method in parts.items()}
    hard = dict(hard_negatives=1)
    runs["ContAccum 8, hard"] = planned("contaccum", **hard)
    runs |= {f"{name}, hard": planned(method, **hard) for name, method in parts.items()}
    runs |= {
        f"M_q dropped at {share:.0%}": planned("contaccum", drop_query_bank_at=int(400 * share))
        for share in (0.05, 0.25, 0.5, 0.75)
    }
    runs["w/o M_q, common part removed"] = planned("pre_batch", adjust=True)
    runs |= {
        f"{name}, one encoder": planned(method, shared=True)
        for name, method in (("w/o M_q", "pre_batch"), ("ContAccum 8", "contaccum"))
    }
    runs |= {
        f"{name}, crops": planned(method, text="crops")
        for name, method in (
            ("DPR 128", "dpr"),
            ("w/o M_q", "pre_batch"),
            ("ContAccum 8", "contaccum"),
        )
    }
    runs |= {
        f"ContAccum N_memory {n} K {k}": planned("contaccum", memory_size=n, accumulation_steps=k)
        for k, n in ((1, 32), (4, 32), (4, 128), (4, 512), (16, 32), (16, 512))
    }  # with K 1 and 128 it is w/o GradAccum, with K 16 and 128 the course's
    runs["ContAccum N_memory 128 K 8"] = planned("contaccum", accumulation_steps=8)
    runs["ContAccum N_memory 256 K 4, rate 0.001"] = planned(
        "contaccum", memory_size=256, accumulation_steps=4, learning_rate=0.001
    )  # eight updates deep, and it learns
    runs["GradAccum K 4"] = planned("grad_accum", accumulation_steps=4)
    for (
        name,
        method,
    ) in REGIME.items():  # where each trains, one seed each (rates of the four: benchmarks.regime)
        for tau in (2.0, 32.0):
            runs[f"regime: {name}, τ {tau:g}"] = planned(method, range(1), temperature=tau)
        for rate in (0.001, 0.005):
            if method in ("pre_batch", "contaccum"):
                runs[f"regime: {name}, N_memory 512, rate {rate:g}"] = planned(
                    method, range(1), memory_size=512, learning_rate=rate
                )
        if method in ("pre_batch", "contaccum"):
            runs[f"regime: {name}, bank from update 100"] = planned(
                method, range(1), bank_warmup=100
            )
            runs[f"regime: {name}, N_memory 8"] = planned(method, range(1), memory_size=8)
        for pooling, updates in (
            (("cls", 100), ("mean", 200)) if method in ("dpr", "contaccum") else ()
        ):  # the slow ones
            runs[f"regime: {name}, small BERT, {pooling}, {updates} updates"] = planned(
                method,
                range(1),
                tower="bert",
                learning_rate=0.001,
                updates=updates,
                pooling=pooling,
            )
        for updates in (100, 800):
            runs[f"regime: {name}, {updates} updates"] = planned(method, range(1), updates=updates)
        for warmup in (0, 100):
            runs[f"regime: {name}, warm-up {warmup}"] = planned(method, range(1), warmup=warmup)
    for size in (8, 32):  # the small batches at other rates than the course's
        for rate in (0.001, 0.01):
            runs[f"regime: DPR {size}, rate {rate:g}"] = planned(
                "dpr", range(1), local_batch=size, learning_rate=rate
            )
    return runs


REGIME = {
    "DPR 128": "dpr",
    "GradAccum 8": "grad_accum",
    "w/o M_q": "pre_batch",
    "ContAccum 8": "contaccum",
}
RUNS = _runs()


def without_common_part(found: Contrast) -> Contrast:
    """The intervention of notebook 04: the local passages' gradients lose what they have in common."""
    return found._replace(d_passages=found.d_passages - found.d_passages.mean(0))


def train(name: str, seed: int, pairs: Pairs, shorter: int = 1) -> dict:
    """Run one of `RUNS` and say what came of it; `shorter` divides its updates, for a quick look."""
    plan = RUNS[name]
    if plan.text == "crops":
        pairs = pairs.memo.setdefault("crops", crop_pairs(pairs))
    fields = dict(
        seed=seed, updates=plan.settings.updates // shorter, warmup=plan.settings.warmup // shorter
    )
    if plan.settings.drop_query_bank_at is not None:
        fields["drop_query_bank_at"] = plan.settings.drop_query_bank_at // shorter
    run = Run(pairs, plan.settings.replace(**fields))
    run.learner.adjust = without_common_part if plan.adjust else None
    half = run.settings.updates // 2
    mass, control = {}, {}
    for update in run:
        if (
            update.step == half
        ):  # equation 10, in the middle of training, over as many batches as pass by
            mass, control = _masses(run, 0), _masses(run, 1)
    ratios = [update.grad_norm_ratio for update in run.history]
    part = max(1, len(ratios) // 20)
    trace = [median(ratios[i : i + part]) for i in range(0, len(ratios), part)]
    negatives = max(update.negatives for update in run.history)
    return dict(
        name=name,
        seed=seed,
        settings=run.settings.share(),
        pairs=pairs.name,
        shorter=shorter,
        updates=run.step_count,
        negatives=negatives,
        loss=mean(u.loss for u in run.history[-part:]),
        log_n=math.log(negatives + 1),
        trace=trace,
        seconds=sum(u.seconds for u in run.history),
        smaller_query=mean(u.grad_norm_query < u.grad_norm_passage for u in run.history),
        mass=mass,
        control=control,
        **{
            key: value
            for key, value in run.evaluate().items()
            if key in ("top@20", "top@100", "mrr@10")
        },
    )


def _masses(run: Run, fresh: int, micro_batches: int = 16) -> dict[str, float]:
    """`similarity_mass` of the next update's micro-batches, as shares of the mass of age 0, by age."""
    if not len(run.passage_bank):
        return {}
    feed, batches = run.feed, run.feed.batches(run.step_count)[:micro_batches]
    found = []
    for batch in batches:
        run.feed = _Only(feed, batch)
        try:
            found.append(measure.similarity_mass(run, fresh=bool(fresh)))
        finally:
            run.feed = feed
    ages = sorted(set.intersection(*(set(one) for one in found)))
    return {
        str(age): mean(one[age] for one in found) / mean(one[0] for one in found) for age in ages
    }


class _Only:
    """A feed whose next micro-batch is this one."""

    def __init__(self, feed, batch):
        self._feed, self._batch = feed, batch

    def batches(self, update):
        return [self._batch]

    def __getattr__(self, name):
        return getattr(self._feed, name)


# --- what the records say ----------------------------------------------------------------------------------------------


class Book:
    """Records of runs, by name and seed."""

    def __init__(self, records: list[dict]):
        self.records = {(r["name"], r["seed"]): r for r in records}

    def seeds(self, *names: str) -> list[int]:
        """The seeds that all of these were run with."""
        found = [{seed for name, seed in self.records if name == wanted} for wanted in names]
        if not (both := sorted(set.intersection(*found))):
            raise KeyError(
                f"no seed was run for all of {', '.join(names)}: run `python -m benchmarks.ledger`."
            )
        return both

    def values(self, name: str, key: str = "top@20", seeds=None) -> list[float]:
        """A number of each seed's run: a measure in per cent, or "ratio" (the median of its middle half), "last", "most"."""
        records = [self.records[name, seed] for seed in seeds or self.seeds(name)]
        kinds = {
            "ratio": lambda r: median(r["trace"][len(r["trace"]) // 4 : -len(r["trace"]) // 4]),
            "last": lambda r: r["trace"][-1],
            "most": lambda r: max(r["trace"]),
        }
        return [
            kinds[key](r) if key in kinds else 100 * r[key] if "@" in key else r[key]
            for r in records
        ]

    def said(self, name: str, key: str = "top@20") -> str:
        """Mean and spread over seeds."""
        found = self.values(name, key)
        return f"{mean(found):.1f}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "")

    def gap(self, one: str, two: str, key: str = "top@20") -> Gap:
        """How much higher `one` is than `two`, paired by seed."""
        seeds = self.seeds(one, two)
        return Gap(
            [a - b for a, b in zip(self.values(one, key, seeds), self.values(two, key, seeds))]
        )


class Gap(NamedTuple):
    """Differences of paired seeds."""

    each: list[float]

    @property
    def mean(self) -> float:
        return mean(self.each)

    @property
    def margin(self) -> float:
        """Half of the 95 % interval of the mean."""
        n = len(self.each)
        if n < 2:
            return math.inf
        return _STUDENT.get(n, 2.0 if n > 10 else 2.57) * stdev(self.each) / math.sqrt(n)

    @property
    def above(self) -> bool:
        return self.mean - self.margin > 0

    @property
    def below(self) -> bool:
        return self.mean + self.margin < 0

    def __str__(self):
        return (
            f"{self.mean:+.1f} ± {self.margin:.1f}" if len(self.each) > 1 else f"{self.mean:+.1f}"
        )


class Verdict(NamedTuple):
    """Of one claim: the verdict, our figures, and a sentence."""

    verdict: str
    ours: str
    sentence: str


class Claim(NamedTuple):
    """What the paper says, where, its figures, the runs that test it, and the judge of their records."""

    name: str
    place: str
    says: str
    paper: str
    runs: tuple[str, ...]
    judge: Callable[[Book], Verdict]

    def settings(self) -> list[str]:
        """What was run, as share lines."""
        return [RUNS[name].settings.share() for name in self.runs]


def _higher(one: str, two: str, key: str = "top@20") -> Callable[[Book], Verdict]:
    """`one` above `two`."""

    def judge(book: Book) -> Verdict:
        gap = book.gap(one, two, key)
        verdict = HOLDS if gap.above else NOT if gap.below else OPEN
        words = "above" if gap.above else "below" if gap.below else "not told apart from"
        return Verdict(
            verdict,
            f"{book.said(one, key)} and {book.said(two, key)}: {gap}",
            f"{one} is {words} {two} over {len(gap.each)} paired seeds.",
        )

    return judge


def _same_at_both(book: Book) -> Verdict:
    ours, dpr = book.gap("ContAccum 32", "ContAccum 8"), book.gap("GradAccum 32", "GradAccum 8")
    verdict = HOLDS if abs(ours.mean) < abs(dpr.mean) / 2 and dpr.above else NOT
    return Verdict(
        verdict,
        f"ContAccum {ours}, GradAccum {dpr}",
        "The step from N_local 8 to 32 changes ContAccum "
        + (
            "less than half as much as GradAccum."
            if verdict == HOLDS
            else "about as much as GradAccum."
        ),
    )


def _gap_grows(book: Book) -> Verdict:
    small, large = book.gap("ContAccum 8", "GradAccum 8"), book.gap("ContAccum 32", "GradAccum 32")
    more = Gap([a - b for a, b in zip(small.each, large.each)])
    return Verdict(
        HOLDS if more.above else NOT if more.below else OPEN,
        f"{small} at N_local 8, {large} at 32: {more}",
        "The gap over GradAccum is "
        + ("larger" if more.above else "smaller" if more.below else "not told apart")
        + " with less memory.",
    )


def _grows_with_batch(book: Book) -> Verdict:
    one, two = book.gap("DPR 32", "DPR 8"), book.gap("DPR 128", "DPR 32")
    fixed = f"{book.said('DPR 8')}, {book.said('DPR 32')}, {book.said('DPR 128')}"
    return Verdict(
        HOLDS if one.above and two.above else NOT if one.below or two.below else OPEN,
        fixed,
        "With the same pairs seen and one learning rate for all, a smaller batch makes 16 times as many updates"
        + (
            "; the larger batch is better all the same."
            if one.above and two.above
            else ", and the order is not the paper's."
        ),
    )


def _largest_drop(hard: str) -> Callable[[Book], Verdict]:
    def judge(book: Book) -> Verdict:
        drops = {
            name: book.gap(f"{name}{hard}", f"ContAccum 8{hard}")
            for name in ("w/o M_q", "w/o past", "w/o GradAccum")
        }
        worst = min(drops, key=lambda name: drops[name].mean)
        ours, apart = (
            ", ".join(f"{name} {gap}" for name, gap in drops.items()),
            book.gap(f"{worst}{hard}", f"w/o M_q{hard}"),
        )
        if worst == "w/o M_q":
            return Verdict(
                HOLDS if drops[worst].below else OPEN, ours, "The largest loss comes from w/o M_q."
            )
        return Verdict(
            NOT if apart.below else OPEN,
            ours,
            f"{worst} costs "
            + (
                "more than w/o M_q."
                if apart.below
                else "as much as w/o M_q: the two are not told apart."
            ),
        )

    return judge


def _drop(part: str, hard: str = "") -> Callable[[Book], Verdict]:
    def judge(book: Book) -> Verdict:
        gap = book.gap(f"ContAccum 8{hard}", f"{part}{hard}")
        return Verdict(
            HOLDS if gap.above else NOT,
            f"{book.said(f'ContAccum 8{hard}')} and {book.said(f'{part}{hard}')}: {gap}",
            f"Taking {part[4:]} away "
            + (
                "costs accuracy."
                if gap.above
                else "costs nothing here."
                if not gap.below
                else "helps here."
            ),
        )

    return judge


def _consistent(book: Book) -> Verdict:
    parts = ("w/o M_q", "w/o past", "w/o M_q, past", "w/o GradAccum")
    side = lambda gap: "helps" if gap.above else "costs" if gap.below else "not told apart"
    found = [
        {name: side(book.gap(name + hard, f"ContAccum 8{hard}")) for name in parts}
        for hard in ("", ", hard")
    ]
    differ = [name for name in parts if found[0][name] != found[1][name]]
    return Verdict(
        NOT if differ else HOLDS,
        "; ".join(
            f"{name}: {found[0][name]}, with hard negatives {found[1][name]}" for name in parts
        ),
        f"Without hard negatives it is otherwise for {', '.join(differ)}."
        if differ
        else "What each removal does, it does with hard negatives and without.",
    )


def figure3(n: int, k: int) -> str:
    """The run of a cell of Figure 3."""
    return {(128, 16): "ContAccum 8", (128, 1): "w/o GradAccum"}.get(
        (n, k), f"ContAccum N_memory {n} K {k}"
    )


def _bank_helps(book: Book) -> Verdict:
    cells = [(n, k) for k in (1, 4, 16) for n in (32, 128, 512) if figure3(n, k) in RUNS]
    base = {1: "DPR 8", 4: "GradAccum K 4", 16: "GradAccum 8"}
    gaps = {(n, k): book.gap(figure3(n, k), base[k]) for n, k in cells}
    worse = [f"N_memory {n}, K {k}" for (n, k), gap in gaps.items() if not gap.above]
    ours = "; ".join(
        f"K {k}: "
        + ", ".join(f"{gap.mean:+.1f} (N_memory {n})" for (n, of), gap in gaps.items() if of == k)
        for k in base
    )
    if not worse:
        return Verdict(HOLDS, ours, "Above accumulation alone in every cell of the grid.")
    return Verdict(
        NOT if 2 * len(worse) > len(cells) else ONLY,
        ours,
        f"Not above accumulation alone at {'; '.join(worse)}: a bank that spans many updates is stale at this learning rate.",
    )


def _converges(book: Book) -> Verdict:
    cells = {
        n: mean(book.values("ContAccum 8" if n == 128 else f"ContAccum N_memory {n} K 16"))
        for n in (32, 128, 512)
    }
    first, second = cells[128] - cells[32], cells[512] - cells[128]
    return Verdict(
        HOLDS if first > 0 and -1 <= second <= first else ONLY if first > 0 else NOT,
        ", ".join(f"N_memory {n}: {v:.1f}" for n, v in cells.items()),
        "At K 16 the gain levels off."
        if -1 <= second <= first
        else "At K 16 it rises up to N_memory 128 and then falls: too large a bank is stale."
        if second < -1
        else "At K 16 it does not level off.",
    )


def _faster(cost: list[dict]) -> Callable[[Book], Verdict]:
    def judge(book: Book) -> Verdict:
        here = [
            r
            for r in cost
            if r["shape"].startswith("6 layers") and r["device"] == "cpu" and r["total"] == 64
        ]
        accumulated = next(r["seconds"] for r in here if r["way"] == "grad_accum")
        found = {
            r["way"]: r["seconds"] / r.get("base", accumulated) for r in here
        }  # base: GradAccum of the same turns, where they were others
        kept, whole, cached = (found[way] for way in ("kept", "whole", "grad_cache"))
        return Verdict(
            HOLDS if kept < cached and whole < cached else ONLY if kept < cached else NOT,
            f"ContAccum {kept:.2f} (whole matrix {whole:.2f}), GradCache {cached:.2f}, times GradAccum",
            "At N_memory 8192 on one core ContAccum is faster than GradCache only when bank × bank scores are not computed again.",
        )

    return judge


def _memory(cost: list[dict]) -> Callable[[Book], Verdict]:
    def judge(book: Book) -> Verdict:
        largest = max(cost, key=lambda r: r["size"])
        gib = {kind: largest[kind] / 2**30 for kind in ("banks", "whole", "kept")}
        exact = all(
            r["banks"] == r["size"] * 768 * 2 * 4 and round(r["banks"] / 2**30, 4) == r["theory"]
            for r in cost
        )
        more = gib["whole"] > 1.5 * gib["banks"]
        return Verdict(
            NOT if not exact else ONLY if more else HOLDS,
            f"N_memory {largest['size']}: banks {gib['banks']:.4f} GiB; with the matrix {gib['whole']:.4f}, incremental {gib['kept']:.4f}",
            "The vectors take what equation 11 says"
            + (
                ", once Table 3's last row is read as 2048; the similarity matrix comes on top of it."
                if more
                else "."
            ),
        )

    return judge


def _imbalance(book: Book) -> Verdict:
    pre, ours, dpr = (book.values(name, "ratio") for name in ("w/o M_q", "ContAccum 8", "DPR 128"))
    grows = all(last > middle > 2 for last, middle in zip(book.values("w/o M_q", "last"), pre))
    balanced = max(ours) < 2 and max(dpr) < 2
    return Verdict(
        HOLDS if grows and balanced else ONLY if min(pre) > 2 * max(ours) else NOT,
        f"middle: pre-batch {median(pre):.0f} (at most {max(book.values('w/o M_q', 'most')):.0f}), ContAccum {median(ours):.1f}, DPR {median(dpr):.1f}",
        "Without a query bank the ratio grows throughout; with one it stays near DPR's."
        if grows and balanced
        else "The ratio is higher without a query bank.",
    )


#: the runs of Figure 6 and the ages that they are read at: their banks span four and eight updates
MASS = {"ContAccum N_memory 32 K 1": (1, 2, 4), "ContAccum N_memory 256 K 4, rate 0.001": (1, 3, 6)}


def _mass(book: Book) -> Verdict:
    """Stale against the control, by age and paired by seed; a difference counts where it is told apart from 0 and is a tenth of the control."""
    parts, differ = [], []
    for name, ages in MASS.items():
        records, rate = (
            [book.records[name, seed] for seed in book.seeds(name)],
            f"rate {RUNS[name].settings.learning_rate:g}",
        )
        for age in ages:
            gap = Gap([r["mass"][str(age)] - r["control"][str(age)] for r in records])
            control = mean(r["control"][str(age)] for r in records)
            parts.append(f"{rate}, age {age}: {control + gap.mean:.2f} (control {control:.2f})")
            differ += (
                [f"age {age} at a {rate}"]
                if (gap.above or gap.below) and abs(gap.mean) > control / 10
                else []
            )
    verdict = NOT if len(differ) == len(parts) else ONLY if differ else HOLDS
    return Verdict(
        verdict,
        "; ".join(parts),
        "As a share of the mass of a passage of this batch. Against the same passages encoded now, "
        + (
            f"there is a difference at {', '.join(differ)}"
            + (", and none elsewhere." if verdict == ONLY else ".")
            if differ
            else "there is no difference."
        ),
    )


def _dropped(book: Book) -> Verdict:
    shares = ("5%", "25%", "50%", "75%")  # the paper's three moments, and one before them
    after = {share: mean(book.values(f"M_q dropped at {share}", "last")) for share in shares}
    gaps = {share: book.gap(f"M_q dropped at {share}", "ContAccum 8") for share in shares}
    arises = [share for share in shares if after[share] > 3]
    verdict = HOLDS if set(shares[1:]) <= set(arises) else ONLY if arises else NOT
    return Verdict(
        verdict,
        "; ".join(
            f"at {share}: last ratio {after[share]:.1f}, Top@20 {gaps[share]}" for share in shares
        ),
        f"Of a run of 400 updates: it arises when the bank goes at {', '.join(arises)} of the run, and not at {', '.join(s for s in shares if s not in arises)}."
        if 0 < len(arises) < 4
        else "It arises at all of these moments."
        if arises
        else "It arises at none of these moments.",
    )


def _cause(book: Book) -> Verdict:
    pre, removed = (
        book.values("w/o M_q", "ratio"),
        book.values("w/o M_q, common part removed", "ratio"),
    )
    gap = book.gap("w/o M_q, common part removed", "w/o M_q")
    number_alone = max(removed) > 2
    return Verdict(
        HOLDS if number_alone else NOT,
        f"ratio {median(pre):.0f} → {median(removed):.2f}, Top@20 {gap}",
        "With the same numbers of representations, taking away the common part of the local passages' gradients ends the imbalance: the number is not the cause, the uncancelled "
        "sum is."
        if not number_alone
        else "The imbalance stays when the common part is taken away.",
    )


def _negatives(book: Book) -> Verdict:
    found = {
        name: int(book.values(name, "negatives")[0])
        for name in ("GradAccum 8", "ContAccum 8", "ContAccum 8, hard")
    }
    right = found["ContAccum 8"] == 8 + 128 - 1
    return Verdict(
        ONLY if right and found["ContAccum 8, hard"] != 135 else HOLDS if right else NOT,
        ", ".join(f"{name}: {n}" for name, n in found.items()),
        f"N_local + N_memory − 1 without hard negatives; with their bank it is 2·(N_local + N_memory) − 1 = {found['ContAccum 8, hard']}.",
    )


def _elsewhere(which: str) -> Callable[[Book], Verdict]:
    def judge(book: Book) -> Verdict:
        seeds = book.seeds(f"w/o M_q, {which}", f"ContAccum 8, {which}")
        pre, ours = (
            book.values(f"{name}, {which}", "ratio", seeds) for name in ("w/o M_q", "ContAccum 8")
        )
        more = Gap([math.log(a / b) for a, b in zip(pre, ours)])
        gap = book.gap(f"w/o M_q, {which}", f"ContAccum 8, {which}")
        harm = "All the same, " if gap.below and not more.above else ""
        harm += f"pre-batch is {'below' if gap.below else 'above' if gap.above else 'not told apart from'} ContAccum."
        figures = f"ratio: pre-batch {median(pre):.1f}, ContAccum {median(ours):.1f}; Top@20 {book.said(f'w/o M_q, {which}')} and {book.said(f'ContAccum 8, {which}')}: {gap}"
        if which == "one encoder":
            return Verdict(
                OPEN,
                figures,
                f"The ratio cannot tell: one tower has one gradient, and its ratio to itself is 1. {harm}",
            )
        return Verdict(
            "arises" if more.above else "does not arise",
            figures,
            (
                f"By the ratio it arises on random crops, {math.exp(more.mean):.1f} times ContAccum's. "
                if more.above
                else "By the ratio it does not arise on random crops. "
            )
            + harm,
        )

    return judge


def claims(cost: dict[str, list[dict]]) -> list[Claim]:
    """All of them, in the order of the paper. cost: the records of `benchmarks.cost`, which judge Figure 4 and Table 3."""
    abl = ("ContAccum 8", "w/o M_q", "w/o past", "w/o GradAccum")
    hard, five = tuple(f"{name}, hard" for name in abl), (*abl, "w/o M_q, past")
    grid = tuple(
        name for name in RUNS if name.startswith("ContAccum N_memory") and not name.endswith("K 8")
    )
    return [
        Claim(
            "negatives",
            "Section 3.2",
            "A query has N_local + N_memory − 1 negatives.",
            "135 at 8 + 128",
            ("GradAccum 8", "ContAccum 8", "ContAccum 8, hard"),
            _negatives,
        ),
        Claim(
            "cause",
            "Section 3.3",
            "The imbalance is caused by the difference in the number of representations.",
            "",
            ("w/o M_q", "w/o M_q, common part removed"),
            _cause,
        ),
        Claim(
            "batch",
            "Table 1",
            "A larger batch is better.",
            "72.2 → 77.0 → 79.4",
            ("DPR 8", "DPR 32", "DPR 128"),
            _grows_with_batch,
        ),
        Claim(
            "above DPR",
            "Table 1",
            "ContAccum with N_local 8 is above DPR with 128.",
            "80.1 and 79.4",
            ("ContAccum 8", "DPR 128"),
            _higher("ContAccum 8", "DPR 128"),
        ),
        Claim(
            "above GradAccum",
            "Table 1",
            "ContAccum is above GradAccum.",
            "80.1 and 77.1",
            ("ContAccum 8", "GradAccum 8"),
            _higher("ContAccum 8", "GradAccum 8"),
        ),
        Claim(
            "above GradCache",
            "Table 1",
            "ContAccum is above GradCache.",
            "80.1 and 79.5",
            ("ContAccum 8", "GradCache 8"),
            _higher("ContAccum 8", "GradCache 8"),
        ),
        Claim(
            "both limits",
            "Table 1",
            "ContAccum is the same at both memory limits.",
            "80.1 and 80.6",
            ("ContAccum 8", "ContAccum 32", "GradAccum 8", "GradAccum 32"),
            _same_at_both,
        ),
        Claim(
            "gap grows",
            "Table 1",
            "Its gap over GradAccum is larger with less memory.",
            "3.0 and 2.7",
            ("ContAccum 8", "ContAccum 32", "GradAccum 8", "GradAccum 32"),
            _gap_grows,
        ),
        Claim("M_q most", "Table 2", "Removing M_q costs most.", "−4.0", abl, _largest_drop("")),
        Claim(
            "M_q most, hard",
            "Table 2",
            "The same with hard negatives.",
            "−8.0",
            hard,
            _largest_drop(", hard"),
        ),
        Claim(
            "past helps",
            "Table 2",
            "Representations of past encoders help.",
            "76.3 and 73.4",
            ("ContAccum 8", "w/o past"),
            _drop("w/o past"),
        ),
        Claim(
            "past helps, hard",
            "Table 2",
            "The same with hard negatives.",
            "78.8 and 76.5",
            ("ContAccum 8, hard", "w/o past, hard"),
            _drop("w/o past", ", hard"),
        ),
        Claim(
            "GradAccum helps",
            "Table 2",
            "Accumulation helps.",
            "76.3 and 74.1",
            ("ContAccum 8", "w/o GradAccum"),
            _drop("w/o GradAccum"),
        ),
        Claim(
            "GradAccum helps, hard",
            "Table 2",
            "The same with hard negatives.",
            "78.8 and 76.7",
            ("ContAccum 8, hard", "w/o GradAccum, hard"),
            _drop("w/o GradAccum", ", hard"),
        ),
        Claim(
            "consistent",
            "Table 2",
            "The trends are the same with hard negatives and without.",
            "not in the table itself",
            (*five, *(f"{name}, hard" for name in five)),
            _consistent,
        ),
        Claim(
            "whole grid",
            "Figure 3",
            "ContAccum is above GradAccum for every N_memory and K.",
            "every cell",
            (*grid, "ContAccum 8", "w/o GradAccum", "DPR 8", "GradAccum K 4", "GradAccum 8"),
            _bank_helps,
        ),
        Claim(
            "64 beats 128",
            "Figure 3",
            "N_total 64 and N_memory 128 are above DPR with 128.",
            "above",
            ("ContAccum N_memory 128 K 8", "DPR 128"),
            _higher("ContAccum N_memory 128 K 8", "DPR 128"),
        ),
        Claim(
            "levels off",
            "Figure 3",
            "The gain levels off with N_memory.",
            "levels off",
            (*grid, "ContAccum 8"),
            _converges,
        ),
        Claim(
            "faster",
            "Figure 4",
            "One update is faster than GradCache's.",
            "1.26 and 1.93",
            (),
            _faster(cost["update"]),
        ),
        Claim(
            "imbalance",
            "Figure 5",
            "Without M_q the gradient-norm ratio grows, up to 30; with it, it stays near 1.",
            "30 and 1",
            ("w/o M_q", "ContAccum 8", "DPR 128"),
            _imbalance,
        ),
        Claim(
            "similarity mass",
            "Figure 6, equation 10",
            "Passages of up to six updates ago weigh as much as those of now.",
            "no significant difference",
            tuple(MASS),
            _mass,
        ),
        Claim(
            "dropped",
            "Figure 7",
            "The imbalance arises whenever M_q is dropped.",
            "at all three moments",
            (*(n for n in RUNS if n.startswith("M_q dropped")), "ContAccum 8"),
            _dropped,
        ),
        Claim(
            "memory",
            "Table 3, equation 11",
            "A dual bank takes N_memory · d · 2 · 4 bytes.",
            "0.0117 theoretical, 0.042 actual",
            (),
            _memory(cost["memory"]),
        ),
        Claim(
            "one encoder",
            "Section 6, open",
            "Does the imbalance arise with one shared encoder?",
            "asked",
            ("w/o M_q, one encoder", "ContAccum 8, one encoder"),
            _elsewhere("one encoder"),
        ),
        Claim(
            "pre-training",
            "Section 6, open",
            "Does it arise in unsupervised pre-training?",
            "asked",
            ("w/o M_q, crops", "ContAccum 8, crops"),
            _elsewhere("crops"),
        ),
    ]


def table(records: list[dict], cost: dict[str, list[dict]]) -> str:
    """The ledger as a table in Markdown, made from the records."""
    book, rows = Book(records), ["| claim | place | paper | ours | verdict | |", "|---" * 6 + "|"]
    for claim in claims(cost):
        found = claim.judge(book)
        rows.append(
            f"| {claim.says} | {claim.place} | {claim.paper} | {found.ours} | **{found.verdict}** | {found.sentence} |"
        )
    return "\n".join(rows)

"""The second paper's part of the ledger: what is run on stale caches and correctors, and what the records say.

Of Monath et al. (ICML 2024) we could read the abstract and secondary sources: the claims are the abstract's; which runs test them,
and everything on ridge, write-back and the corrected dual bank, is ours. `python -m benchmarks.stale` runs it; notebook 07 shows it.
"""

from __future__ import annotations

import random
from statistics import mean

import torch

from .corrector import make_corrector
from .data import Pairs
from .drift import cache_gap, softmax_gap
from .ledger import HOLDS, NOT, ONLY, OPEN, Book, Claim, Planned, Verdict
from .settings import Settings
from .train import Run

SEEDS = range(5)
LOOKS = 8  # random moments of the second half of a run at which the cache's softmax is compared
_BATCH = dict(local_batch=32, accumulation_steps=1)


def _planned(method: str, **fields) -> Planned:
    return Planned(
        Settings.preset(
            method,
            **{
                **({} if method == "dpr" else {"accumulation_steps": 1}),
                "local_batch": 32,
                **fields,
            },
        ),
        SEEDS,
    )


RUNS = {
    "in-batch": _planned("dpr"),
    "uniform": _planned("stale_cache", selection="uniform"),
    "static negatives": _planned("static_negatives"),
    "stale cache": _planned("stale_cache"),
    "stale, write-back": _planned("stale_cache", write_back=True),
    "refreshed, R 100": _planned("refreshed_cache", cache_refresh=100),
    "refreshed, R 25": _planned("refreshed_cache", cache_refresh=25),
    "corrected, ridge": _planned("corrected_cache", corrector="ridge"),
    "corrected, MLP": _planned("corrected_cache"),
    "corrected, MLP and 32 probes": _planned("corrected_cache", probes=32),
    "corrected, MLP, R 100": _planned("corrected_cache", cache_refresh=100),
    "oracle": _planned("oracle_cache"),
    "momentum": _planned("momentum", memory_size=512, bank_warmup=100),
    "ContAccum": _planned("contaccum", memory_size=512, bank_warmup=100),
    "ContAccum, corrected": _planned(
        "contaccum_corrected", memory_size=512, bank_warmup=100, probes=32
    ),
}


def train(name: str, seed: int, pairs: Pairs, shorter: int = 1) -> dict:
    """Run one of `RUNS` and say what came of it; `shorter` divides its updates."""
    plan = RUNS[name].settings
    updates = plan.updates // shorter
    run = Run(
        pairs,
        plan.replace(
            seed=seed,
            updates=updates,
            warmup=plan.warmup // shorter,
            bank_warmup=plan.bank_warmup // shorter,
        ),
    )
    moments = sorted(
        random.Random(seed).sample(range(updates // 2, updates), min(LOOKS, updates // 4))
    )
    gaps, banks = [], []
    for update in run:
        if update.step in moments:  # before the cache is renewed for the next update, if it is
            gaps += [cache_gap(run)] if run.learner.cache else []
            banks += [_bank_error(run)] if len(run.passage_bank) else []
    found = (
        {
            kind: {key: mean(gap[kind][key] for gap in gaps) for key in gaps[0][kind]}
            for kind in gaps[0]
        }
        if gaps
        else {}
    )
    return dict(
        name=name,
        seed=seed,
        settings=run.settings.share(),
        pairs=pairs.name,
        shorter=shorter,
        passages=len(pairs.passages),
        encodes=run.encodes,
        coverage=run.learner.cache.coverage if run.learner.cache else 0.0,
        gap=found,
        seconds=sum(u.seconds for u in run.history),
        bank={kind: mean(one[kind] for one in banks) for kind in ("stale", "used")}
        if banks
        else {},
        **{key: value for key, value in run.evaluate().items() if key in ("top@20", "mrr@10")},
    )


@torch.no_grad()
def _bank_error(run) -> dict[str, float]:
    """‖c − g‖²/‖g‖² of the oldest quarter of the passage bank, as it is stored and as it enters the loss."""
    bank, learner = run.passage_bank, run.learner
    old = bank.order()[: len(bank) // 4]
    now = learner.encode_fresh(run.feed.micro_batch(bank.ids[old].numpy())).passages
    used = (
        learner.correction.read(1, len(bank), run.step_count)[old]
        if learner.correction
        else bank.vectors[old]
    )
    far = lambda vectors: float(((vectors - now) ** 2).sum(1).div((now**2).sum(1)).mean())
    return {"stale": far(bank.vectors[old]), "used": far(used)}


# --- error by number of pairs, size of the corrector, and staleness ------------------------------------------------------

NOW, CACHED = 300, (275, 200, 100)  # of 400 updates of DPR with 128
COUNTS = (32, 128, 512, 2048)
FAMILIES = {
    "identity": ("identity", {}),
    "mean shift": ("mean_shift", {}),
    "moments": ("moments", {}),
    "Procrustes": ("procrustes", {}),
    "ridge": ("ridge", {}),
    "kernel": ("kernel", {}),
    "MLP of 16": ("mlp", dict(width=16, steps=300)),
    "MLP of 512": ("mlp", dict(width=512, steps=300)),
}


def curves(
    seed: int, pairs: Pairs, now: int = NOW, cached=CACHED, counts=COUNTS, families=FAMILIES
) -> list[dict]:
    """KL to the fresh softmax after correction, for each staleness, number of pairs and corrector.

    One run of DPR; the cache of each moment in `cached` is corrected at update `now` by a corrector fitted to so many random pairs.
    """
    run = Run(pairs, Settings.preset("dpr", seed=seed))
    rows, kept = torch.arange(len(pairs.passages)), {}
    run.learner.passages = run.feed.passages
    while run.step_count < now:
        if run.step_count in cached:
            kept[run.step_count] = run.learner.encode_rows(rows, None)
        run.step()
    fresh = run.learner.encode_rows(rows, None)
    queries = (
        run.learner.encode_texts(run.query_tower, run.feed.queries, rows[:128].numpy())
        / run.settings.temperature
    )
    order, found = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)), []
    for then in cached:
        stale = kept[then]
        for count in counts:
            some = order[:count]
            for name in families:
                corrector = _made(families[name], seed)
                corrector.fit(stale[some], torch.full((count,), now - then), fresh[some])
                gap = softmax_gap(
                    queries @ fresh.T,
                    queries @ corrector(stale, torch.full((len(stale),), now - then)).T,
                )
                found.append(
                    dict(
                        seed=seed,
                        staleness=now - then,
                        pairs=count,
                        corrector=name,
                        kl=gap["kl"],
                        overlap=gap["overlap"],
                    )
                )
    return found


def _made(family, seed: int):
    made = make_corrector(family[0], seed=seed)
    for name, value in family[1].items():
        setattr(made, name, value)
    return made


# --- what the records say -----------------------------------------------------------------------------------------------


class StaleBook(Book):
    """A `Book` whose values are also "kl", "overlap" (of the cache as it is used), "stale kl", "stale overlap", and "passes" over the corpus."""

    def values(self, name, key="top@20", seeds=None):
        records = [self.records[name, seed] for seed in seeds or self.seeds(name)]
        if key == "passes":  # what is encoded for the cache and the corrector, over the corpus
            return [
                sum(n for purpose, n in r["encodes"].items() if purpose != "train") / r["passages"]
                for r in records
            ]
        if key.split()[-1] in ("kl", "tv", "overlap", "mass", "bound"):
            kind = "stale" if key.startswith("stale ") else "corrected"
            return [r["gap"][kind][key.split()[-1]] for r in records]
        if key.startswith("bank "):
            return [r["bank"][key[5:]] for r in records]
        return super().values(name, key, seeds)


def _near_fresh(book: StaleBook) -> Verdict:
    gap = book.gap("corrected, MLP", "stale cache", "kl")
    figures = ", ".join(
        f"{name} {mean(book.values(name, 'kl')):.3f} ({mean(book.values(name, 'overlap')):.2f})"
        for name in ("stale cache", "corrected, ridge", "corrected, MLP", "oracle")
    )
    left = mean(book.values("corrected, MLP", "kl")) / mean(book.values("stale cache", "kl"))
    verdict = (HOLDS if left < 0.5 else ONLY) if gap.below else NOT if gap.above else OPEN
    nearer = f"The corrected softmax is nearer to the fresh one than the stale softmax is; {left:.0%} of the distance is left"
    return Verdict(
        verdict,
        f"KL (top-20 overlap): {figures}",
        f"{nearer}: nearer, not near."
        if verdict == ONLY
        else f"{nearer}."
        if gap.below
        else "The corrected softmax is "
        + ("farther from" if gap.above else "not told apart by its distance to")
        + " the fresh one than the stale softmax is.",
    )


def _no_refresh(book: StaleBook) -> Verdict:
    gap = book.gap("corrected, MLP", "oracle")
    saved = mean(book.values("oracle", "passes")) / mean(book.values("corrected, MLP", "passes"))
    often = mean(book.values("refreshed, R 25", "passes")) / mean(
        book.values("corrected, MLP", "passes")
    )
    same = abs(gap.mean) < 1 and not gap.below
    stale = book.gap("stale cache", "oracle")
    verdict = HOLDS if same and stale.below else ONLY if same else NOT
    return Verdict(
        verdict,
        f"Top@20 {gap} to the oracle, {often:.0f} (R 25) to {saved:.0f} (each update) times fewer passes; the stale cache itself {stale}",
        ("Nothing is lost without a refresh" if same else "Something is lost without a refresh")
        + (
            ", but nothing is lost by the stale cache either: there is no gap to close here."
            if same and not stale.below
            else "."
        ),
    )


def _ridge(book: StaleBook) -> Verdict:
    kl, top = (
        book.gap("corrected, MLP", "corrected, ridge", "kl"),
        book.gap("corrected, MLP", "corrected, ridge"),
    )
    words = (
        "The network is nearer to the fresh softmax than a line"
        if kl.below
        else "The line is nearer to the fresh softmax than the network"
        if kl.above
        else "Network and line are not told apart"
    )
    return Verdict(
        HOLDS if kl.below else NOT if kl.above else OPEN,
        f"KL {kl.mean:+.4f} ± {kl.margin:.4f}, Top@20 {top}",
        words + ".",
    )


def _write_back(book: StaleBook) -> Verdict:
    kl, top = (
        book.gap("corrected, MLP", "stale, write-back", "kl"),
        book.gap("corrected, MLP", "stale, write-back"),
    )
    coverage = mean(book.values("stale, write-back", "coverage"))
    return Verdict(
        HOLDS if kl.below else NOT if kl.above else OPEN,
        f"KL {kl.mean:+.3f} ± {kl.margin:.3f}, Top@20 {top}; coverage {coverage:.2f}",
        f"Putting back what was encoded anyway touches {coverage:.0%} of this corpus; the network is {'nearer' if kl.below else 'farther' if kl.above else 'not told apart'}.",
    )


def _fresh_negatives(book: StaleBook) -> Verdict:
    gap, hard, uniform = (
        book.gap("oracle", "stale cache"),
        book.gap("stale cache", "in-batch"),
        book.gap("stale cache", "uniform"),
    )
    more = "That there are more negatives is the larger step" + (
        ", and here uniform ones bring as much as hard ones."
        if not uniform.above
        else ", and hard ones bring more than uniform ones."
    )
    return Verdict(
        HOLDS if gap.above else NOT if gap.below else OPEN,
        f"{book.said('oracle')} and {book.said('stale cache')}: {gap}; stale over in-batch: {hard}; over uniform: {uniform}",
        "Negatives chosen by fresh scores are "
        + (
            "better. "
            if gap.above
            else "worse. "
            if gap.below
            else "not told apart from those of a stale cache. "
        )
        + (more if hard.above else ""),
    )


def _corrected_bank(book: StaleBook) -> Verdict:
    gap = book.gap("ContAccum, corrected", "ContAccum")
    stale, used = (
        mean(book.values("ContAccum, corrected", f"bank {kind}")) for kind in ("stale", "used")
    )
    return Verdict(
        HOLDS if gap.above else NOT if gap.below else OPEN,
        f"{book.said('ContAccum, corrected')} and {book.said('ContAccum')}: {gap}; error of the oldest quarter {stale:.2g} → {used:.2g}",
        "The bank's vectors come "
        + ("nearer" if used < stale else "no nearer")
        + " to fresh, and accuracy "
        + (
            "rises."
            if gap.above
            else "falls."
            if gap.below
            else "is not told apart: a null result."
        ),
    )


def _generalises(curve: list[dict]):
    def judge(book) -> Verdict:
        kl = lambda corrector, pairs, staleness: mean(
            r["kl"]
            for r in curve
            if (r["corrector"], r["pairs"], r["staleness"]) == (corrector, pairs, staleness)
        )
        stalenesses, few, many = (
            sorted({r["staleness"] for r in curve}),
            min(r["pairs"] for r in curve),
            max(r["pairs"] for r in curve),
        )
        worse = [s for s in stalenesses if kl("MLP of 512", few, s) > kl("identity", few, s)]
        better = [s for s in stalenesses if kl("MLP of 512", many, s) < kl("identity", many, s)]
        figures = "; ".join(
            f"{s} updates old: none {kl('identity', few, s):.2g}, {few} pairs {kl('MLP of 512', few, s):.2g}, {many} pairs {kl('MLP of 512', many, s):.2g}"
            for s in stalenesses
        )
        return Verdict(
            HOLDS if worse == better == stalenesses else ONLY if worse and better else NOT,
            f"KL with a network of 512: {figures}",
            f"With {few} pairs a large network is worse than none at {', '.join(map(str, worse)) or 'no'} updates of staleness; with {many} it is better at {', '.join(map(str, better)) or 'none'}.",
        )

    return judge


def claims(curve: list[dict]) -> list[Claim]:
    """All of them; curve: the records of `curves`."""
    return [
        Claim(
            "softmax",
            "Monath et al., abstract",
            "A corrected cache gives an accurate softmax.",
            "accurate approximation",
            ("stale cache", "corrected, ridge", "corrected, MLP", "oracle"),
            _near_fresh,
        ),
        Claim(
            "no refresh",
            "Monath et al., abstract",
            "No target is embedded again, and the result is matched.",
            "4–80 times less re-embedding",
            ("corrected, MLP", "oracle", "refreshed, R 25"),
            _no_refresh,
        ),
        Claim(
            "generalisation",
            "Monath et al., theory",
            "Size of the network, staleness and number of pairs decide its error.",
            "statement not read",
            (),
            _generalises(curve),
        ),
        Claim(
            "fresh",
            "ours",
            "Fresh hard negatives are better than stale ones.",
            "",
            ("oracle", "stale cache", "in-batch", "uniform"),
            _fresh_negatives,
        ),
        Claim(
            "ridge",
            "ours",
            "The network is better than a ridge regression.",
            "",
            ("corrected, MLP", "corrected, ridge"),
            _ridge,
        ),
        Claim(
            "write-back",
            "ours",
            "The network is better than writing back what was encoded anyway.",
            "",
            ("corrected, MLP", "stale, write-back"),
            _write_back,
        ),
        Claim(
            "corrected bank",
            "ours",
            "Correcting ContAccum's banks raises accuracy.",
            "",
            ("ContAccum, corrected", "ContAccum"),
            _corrected_bank,
        ),
    ]


def table(records: list[dict], curve: list[dict]) -> str:
    """The claims with their verdicts, in Markdown, made from the records."""
    book, rows = (
        StaleBook(records),
        ["| claim | place | paper | ours | verdict | |", "|---" * 6 + "|"],
    )
    for claim in claims(curve):
        found = claim.judge(book)
        rows.append(
            f"| {claim.says} | {claim.place} | {claim.paper} | {found.ours} | **{found.verdict}** | {found.sentence} |"
        )
    return "\n".join(rows)


def runs_table(records: list[dict]) -> str:
    """Every preset: what it encodes, how far its softmax is from the fresh one, what it finds."""
    book = StaleBook(records)
    rows = [
        "| run | encoded for the cache, in passes over the corpus | encoded in training | KL | top-20 overlap | Top@20 | MRR@10 |",
        "|---" * 7 + "|",
    ]
    for name in dict.fromkeys(
        name for name in RUNS if any(name == known for known, _ in book.records)
    ):
        trained = (
            mean(book.records[name, seed]["encodes"]["train"] for seed in book.seeds(name))
            / next(iter(book.records.values()))["passages"]
        )
        cached = all(book.records[name, seed]["gap"] for seed in book.seeds(name))
        kl, overlap = (
            f"{mean(book.values(name, key)):.3g}" if cached else "" for key in ("kl", "overlap")
        )
        rows.append(
            f"| {name} | {mean(book.values(name, 'passes')):.1f} | {trained:.1f} | {kl} | {overlap} | {book.said(name)} | {book.said(name, 'mrr@10')} |"
        )
    return "\n".join(rows)

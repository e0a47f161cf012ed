"""What the ledger of ContAccum runs, and how one run becomes a record.

There are two regimes: towers fine-tuned from a pretrained start, and towers from random weights.
Every run sees as many pairs, whatever its batch, as in the paper, where methods share their epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean, median
from typing import NamedTuple

from contaccum_lite.core.loss import LossAndGradients
from contaccum_lite.core.run import Run
from contaccum_lite.core.settings import Settings
from contaccum_lite.data.mining import crop_pairs
from contaccum_lite.data.types import Pairs
from contaccum_lite.diagnostics import measure
from contaccum_lite.staleness.drift import bank_motion

STARTS = ("pretrained", "random")
PAIRS_SEEN = 400 * 128  # of every run
SEEDS = range(5)
MEASURES = ("top@1", "top@20", "top@100", "mrr@10")
MASS_BATCHES = 16  # micro-batches over which equation 10 is averaged
NUM_MOMENTS = 6  # of a run, at which its bank's motion is measured
SHARED_RATE = 0.005
RATES = {"pretrained": (0.001, 0.002, 0.005, 0.01), "random": (0.001, 0.002, 0.005, 0.01, 0.02)}


class RunSpec(NamedTuple):
    """A run but for its seed.

    corpus: "docs" or "crops" of it; gradient_hook: the intervention of notebook 04, or None.
    """

    settings: Settings
    seeds: range = SEEDS
    corpus: str = "docs"
    gradient_hook: Callable | None = None


def without_common_part(result: LossAndGradients) -> LossAndGradients:
    """The intervention of notebook 04: local passages' gradients lose their common part."""
    return result._replace(grad_passages=result.grad_passages - result.grad_passages.mean(0))


def run_spec(method: str, seeds=SEEDS, corpus="docs", gradient_hook=None, **fields) -> RunSpec:
    """A run of `PAIRS_SEEN` pairs; a twentieth of it is warm-up. fields: of `Settings`."""
    settings = Settings.preset(method, **fields)
    updates = fields.get("updates", PAIRS_SEEN // settings.total_batch)
    settings = settings.replace(
        updates=updates,
        warmup=fields.get("warmup", updates // 20),
        one_forward=method not in ("dpr", "grad_cache"),
    )
    return RunSpec(settings, seeds, corpus, gradient_hook)


#: Table 2: what is removed -> the preset without it
ABLATIONS = {
    "w/o M_q": "pre_batch",
    "w/o past": "contaccum_no_past",
    "w/o M_q, past": "pre_batch_no_past",
    "w/o GradAccum": "contaccum_no_accum",
}
#: the methods whose hyperparameters are varied
REGIME = {
    "DPR 128": "dpr",
    "GradAccum 8": "grad_accum",
    "w/o M_q": "pre_batch",
    "ContAccum 8": "contaccum",
}
#: the methods that are run at every rate, so that each can be judged at its own best one
RATED = {
    "DPR 8": dict(method="dpr", local_batch=8),
    "DPR 32": dict(method="dpr", local_batch=32),
    "DPR 128": dict(method="dpr"),
    "GradAccum 8": dict(method="grad_accum"),
    "GradCache 8": dict(method="grad_cache"),
    "ContAccum 8": dict(method="contaccum"),
    "w/o M_q": dict(method="pre_batch"),
    "w/o past": dict(method="contaccum_no_past"),
}


def at_rate(name: str, rate: float) -> str:
    """The name of a run at another learning rate than the shared one."""
    return name if rate == SHARED_RATE else f"{name}, rate {rate:g}"


def plan(start: str) -> dict[str, RunSpec]:
    """All runs of a regime. The smallest set of five seeds is that of each name."""
    parts = [_main_runs, _cause_runs, _rate_runs, _grid_runs]
    if start == "random":
        parts += [_crop_runs, _regime_runs]
    runs: dict[str, RunSpec] = {}
    for part in parts:
        runs |= part(start)
    return runs


def _main_runs(start: str) -> dict[str, RunSpec]:
    """Tables 1 and 2, Figure 7, and the open question of one encoder."""
    wide = dict(local_batch=32, accumulation_steps=4)
    runs = {
        "DPR 8": run_spec("dpr", start=start, local_batch=8),
        "DPR 32": run_spec("dpr", start=start, local_batch=32),
        "DPR 128": run_spec("dpr", start=start),
        "GradAccum 8": run_spec("grad_accum", start=start),
        "GradAccum 32": run_spec("grad_accum", start=start, **wide),
        "GradCache 8": run_spec("grad_cache", start=start),
        "GradCache 32": run_spec("grad_cache", start=start, **wide),
        "ContAccum 8": run_spec("contaccum", start=start),
        "ContAccum 32": run_spec("contaccum", start=start, **wide),
    }
    for name, method in ABLATIONS.items():
        runs[name] = run_spec(method, start=start)
    for name, method in {"ContAccum 8": "contaccum", **ABLATIONS}.items():
        runs[f"{name}, hard"] = run_spec(method, start=start, hard_negatives=1)
    for share in (0.05, 0.25, 0.5, 0.75):
        runs[f"M_q dropped at {share:.0%}"] = run_spec(
            "contaccum", start=start, drop_query_bank_at=int(400 * share)
        )
    for name in ("w/o M_q", "ContAccum 8"):
        runs[f"{name}, one encoder"] = run_spec(REGIME[name], start=start, shared=True)
    return runs


#: The two interventions on the cause: what is added to a run's name -> what is done to it.
INTERVENTIONS = {
    ", common part removed": dict(gradient_hook=without_common_part),
    ", bank fresh": dict(refresh_banks=True),
    ", both": dict(gradient_hook=without_common_part, refresh_banks=True),
}


def _cause_runs(start: str) -> dict[str, RunSpec]:
    """The 2 × 2: banks stale or fresh, common push left in or removed; and the same elsewhere."""
    bases = {
        "w/o M_q": dict(method="pre_batch"),
        "ContAccum 8": dict(method="contaccum"),
        "w/o M_q, τ 1": dict(method="pre_batch", temperature=1.0),
    }
    if start == "pretrained":
        bases["w/o M_q, rate 0.01"] = dict(method="pre_batch", learning_rate=0.01)
    runs = {}
    for base, fields in bases.items():
        for words, intervention in {"": {}, **INTERVENTIONS}.items():
            runs[base + words] = run_spec(start=start, **fields, **intervention)
    for name in ("DPR 128", "ContAccum 8"):
        runs[f"{name}, τ 1"] = run_spec(REGIME[name], start=start, temperature=1.0)
    return runs


def _rate_runs(start: str) -> dict[str, RunSpec]:
    """Each method at every learning rate."""
    runs = {}
    for name, fields in RATED.items():
        for rate in RATES[start]:
            runs[at_rate(name, rate)] = run_spec(start=start, learning_rate=rate, **fields)
    return runs


GRID = {"pretrained": (32, 128, 512, 2048), "random": (32, 128, 512)}  # of N_memory
GRID_STEPS = (1, 4, 16)  # of K


def figure3(start: str, n: int, k: int, rate: float = SHARED_RATE) -> str:
    """The name of a cell of Figure 3; N_memory 0 is accumulation alone."""
    names = {(0, 1): "DPR 8", (0, 4): "GradAccum K 4", (0, 16): "GradAccum 8"}
    usual = Settings(start=start).memory_size
    names |= {(usual, 16): "ContAccum 8", (usual, 1): "w/o GradAccum"}
    return at_rate(names.get((n, k), f"ContAccum N_memory {n} K {k}"), rate)


def _grid_runs(start: str) -> dict[str, RunSpec]:
    """Figures 3 and 6; of a pretrained start also at the rate at which vectors move less."""
    runs = {}
    rates = (0.002, SHARED_RATE) if start == "pretrained" else (SHARED_RATE,)
    for rate in rates:
        for k in GRID_STEPS:
            fields = dict(start=start, accumulation_steps=k, learning_rate=rate)
            for n in GRID[start]:
                if n <= 512 or k == 16:
                    name = figure3(start, n, k, rate)
                    runs[name] = run_spec("contaccum", memory_size=n, **fields)
            if k == 4:
                runs[figure3(start, 0, k, rate)] = run_spec("grad_accum", **fields)
        fields = dict(start=start, accumulation_steps=8, learning_rate=rate)
        name = at_rate("ContAccum N_memory 128 K 8", rate)
        runs[name] = run_spec("contaccum", memory_size=128, **fields)
    runs["ContAccum N_memory 256 K 4, rate 0.001"] = run_spec(
        "contaccum", start=start, memory_size=256, accumulation_steps=4, learning_rate=0.001
    )  # its bank spans eight updates, and it learns
    return runs


def _crop_runs(start: str) -> dict[str, RunSpec]:
    """The open question of unsupervised pre-training."""
    runs = {}
    for name in ("DPR 128", "w/o M_q", "ContAccum 8"):
        runs[f"{name}, crops"] = run_spec(REGIME[name], start=start, corpus="crops")
    return runs


def _regime_runs(start: str) -> dict[str, RunSpec]:
    """Where each method trains and where it does not, one seed each."""
    runs = {}

    def add(name, method, **fields):
        runs[f"regime: {name}"] = run_spec(method, range(1), start=start, **fields)

    for name, method in REGIME.items():
        for tau in (2.0, 32.0):
            add(f"{name}, τ {tau:g}", method, temperature=tau)
        if method in ("pre_batch", "contaccum"):
            for rate in (0.001, 0.005):
                large = dict(memory_size=512, learning_rate=rate)
                add(f"{name}, N_memory 512, rate {rate:g}", method, **large)
            add(f"{name}, bank from update 100", method, bank_warmup=100)
            add(f"{name}, N_memory 8", method, memory_size=8)
        if method in ("dpr", "contaccum"):  # the slow ones
            for pooling, updates in (("cls", 100), ("mean", 200)):
                bert = dict(tower="bert", learning_rate=0.001, updates=updates, pooling=pooling)
                add(f"{name}, small BERT, {pooling}, {updates} updates", method, **bert)
        for updates in (100, 800):
            add(f"{name}, {updates} updates", method, updates=updates)
        for warmup in (0, 100):
            add(f"{name}, warm-up {warmup}", method, warmup=warmup)
    return runs


RUNS = {start: plan(start) for start in STARTS}


def train(name: str, seed: int, pairs: Pairs, spec: RunSpec, step_divisor: int = 1) -> dict:
    """Run a spec and give its record. step_divisor: divides its updates."""
    if spec.corpus == "crops":
        pairs = pairs.memo.setdefault("crops", crop_pairs(pairs))
    run = Run(pairs, _shortened(spec.settings, step_divisor).replace(seed=seed))
    run.learner.gradient_hook = spec.gradient_hook
    updates, motion, masses = run.settings.updates, [], {}
    before = _accuracy(run) if spec.settings.method == "dpr" else {}
    moments = {max(1, updates * (2 * i + 1) // (2 * NUM_MOMENTS)) for i in range(NUM_MOMENTS)}
    for update in run:
        if update.step in moments:
            motion.append({"update": update.step, **bank_motion(run)})
        for words, moment in {"": updates // 2, "early ": updates // 8}.items():
            if update.step == moment:
                masses[f"{words}mass"] = _mass_by_age(run, fresh=False)
                masses[f"{words}control"] = _mass_by_age(run, fresh=True)
    return {
        "name": name,
        "seed": seed,
        "settings": run.settings.share(),
        "pairs": pairs.name,
        "shorter": step_divisor,
        "updates": run.step_count,
        **_training_numbers(run.history),
        **masses,
        "motion": motion,
        "encodes": run.encodes,
        "before": before,
        "dev mrr@10": run.evaluate("dev")["mrr@10"],
        **_accuracy(run),
    }


def _accuracy(run: Run) -> dict[str, float]:
    return {key: value for key, value in run.evaluate().items() if key in MEASURES}


def _shortened(settings: Settings, divisor: int) -> Settings:
    divided = ("updates", "warmup", "bank_warmup")
    fields = {name: getattr(settings, name) // divisor for name in divided}
    if settings.drop_query_bank_at is not None:
        fields["drop_query_bank_at"] = settings.drop_query_bank_at // divisor
    return settings.replace(**fields)


def _training_numbers(history) -> dict:
    """What a record says of its updates: traces are medians of each twentieth of them."""
    twentieth = max(1, len(history) // 20)

    def trace(name: str) -> list[float]:
        values = [getattr(update, name) for update in history]
        return [median(values[i : i + twentieth]) for i in range(0, len(values), twentieth)]

    negatives = max(update.negatives for update in history)
    return dict(
        negatives=negatives,
        loss=mean(update.loss for update in history[-twentieth:]),
        log_n=math.log(negatives + 1),
        trace=trace("grad_norm_ratio"),
        norm_query=trace("grad_norm_query"),
        norm_passage=trace("grad_norm_passage"),
        seconds=sum(update.seconds for update in history),
        smaller_query=mean(u.grad_norm_query < u.grad_norm_passage for u in history),
    )


def _mass_by_age(run: Run, fresh: bool) -> dict[str, float]:
    """`similarity_mass` of the next micro-batches, as shares of the mass of age 0, by age."""
    if not len(run.passage_bank):
        return {}
    batches = run.sampler.batches(run.step_count)[:MASS_BATCHES]
    masses = [measure.similarity_mass(run, fresh, batch) for batch in batches]
    mean_at = lambda age: mean(mass[age] for mass in masses)
    ages = sorted(set.intersection(*(set(mass) for mass in masses)))
    return {str(age): mean_at(age) / mean_at(0) for age in ages}

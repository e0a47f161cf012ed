"""What the ledger of ContAccum runs, and how one run becomes a record.

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

PAIRS_SEEN = 400 * 128  # of every run
SEEDS = range(5)
MEASURES = ("top@20", "top@100", "mrr@10")
MASS_BATCHES = 16  # micro-batches over which equation 10 is averaged


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
    fields = {"start": "random", **fields}
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
#: the methods whose hyperparameters are varied, one seed each (rates: benchmarks/regime.py)
REGIME = {
    "DPR 128": "dpr",
    "GradAccum 8": "grad_accum",
    "w/o M_q": "pre_batch",
    "ContAccum 8": "contaccum",
}


def _main_runs() -> dict[str, RunSpec]:
    """Tables 1 and 2, Figure 7, and Section 6's open questions."""
    wide = dict(local_batch=32, accumulation_steps=4)
    runs = {
        "DPR 8": run_spec("dpr", local_batch=8),
        "DPR 32": run_spec("dpr", local_batch=32),
        "DPR 128": run_spec("dpr"),
        "GradAccum 8": run_spec("grad_accum"),
        "GradAccum 32": run_spec("grad_accum", **wide),
        "GradCache 8": run_spec("grad_cache"),
        "GradCache 32": run_spec("grad_cache", **wide),
        "ContAccum 8": run_spec("contaccum"),
        "ContAccum 32": run_spec("contaccum", **wide),
    }
    for name, method in ABLATIONS.items():
        runs[name] = run_spec(method)
    for name, method in {"ContAccum 8": "contaccum", **ABLATIONS}.items():
        runs[f"{name}, hard"] = run_spec(method, hard_negatives=1)
    for share in (0.05, 0.25, 0.5, 0.75):
        runs[f"M_q dropped at {share:.0%}"] = run_spec(
            "contaccum", drop_query_bank_at=int(400 * share)
        )
    runs["w/o M_q, common part removed"] = run_spec("pre_batch", gradient_hook=without_common_part)
    for name in ("w/o M_q", "ContAccum 8"):
        runs[f"{name}, one encoder"] = run_spec(REGIME[name], shared=True)
    for name in ("DPR 128", "w/o M_q", "ContAccum 8"):
        runs[f"{name}, crops"] = run_spec(REGIME[name], corpus="crops")
    return runs


def _grid_runs() -> dict[str, RunSpec]:
    """Figures 3 and 6. With K 1 and 128 it is w/o GradAccum, with K 16 and 128 the course's."""
    runs = {}
    for k, n in ((1, 32), (4, 32), (4, 128), (4, 512), (16, 32), (16, 512), (8, 128)):
        spec = run_spec("contaccum", memory_size=n, accumulation_steps=k)
        runs[f"ContAccum N_memory {n} K {k}"] = spec
    runs["ContAccum N_memory 256 K 4, rate 0.001"] = run_spec(
        "contaccum", memory_size=256, accumulation_steps=4, learning_rate=0.001
    )  # its bank spans eight updates, and it learns
    runs["GradAccum K 4"] = run_spec("grad_accum", accumulation_steps=4)
    return runs


def _regime_runs() -> dict[str, RunSpec]:
    """Where each method trains and where it does not."""
    runs = {}

    def add(name, method, **fields):
        runs[f"regime: {name}"] = run_spec(method, range(1), **fields)

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
    for size in (8, 32):
        for rate in (0.001, 0.01):
            add(f"DPR {size}, rate {rate:g}", "dpr", local_batch=size, learning_rate=rate)
    return runs


RUNS = {**_main_runs(), **_grid_runs(), **_regime_runs()}


def train(name: str, seed: int, pairs: Pairs, step_divisor: int = 1) -> dict:
    """Run one of `RUNS` and give its record. step_divisor: divides its updates."""
    spec = RUNS[name]
    if spec.corpus == "crops":
        pairs = pairs.memo.setdefault("crops", crop_pairs(pairs))
    run = Run(pairs, _shortened(spec.settings, step_divisor).replace(seed=seed))
    run.learner.gradient_hook = spec.gradient_hook
    mass, control = {}, {}
    for update in run:
        if update.step == run.settings.updates // 2:
            mass = _mass_by_age(run, fresh=False)
            control = _mass_by_age(run, fresh=True)
    return {
        "name": name,
        "seed": seed,
        "settings": run.settings.share(),
        "pairs": pairs.name,
        "shorter": step_divisor,
        "updates": run.step_count,
        **_training_numbers(run.history),
        "mass": mass,
        "control": control,
        **{key: value for key, value in run.evaluate().items() if key in MEASURES},
    }


def _shortened(settings: Settings, divisor: int) -> Settings:
    fields = dict(updates=settings.updates // divisor, warmup=settings.warmup // divisor)
    if settings.drop_query_bank_at is not None:
        fields["drop_query_bank_at"] = settings.drop_query_bank_at // divisor
    return settings.replace(**fields)


def _training_numbers(history) -> dict:
    """What a record says of its updates. trace: the median norm ratio of each twentieth of them."""
    ratios = [update.grad_norm_ratio for update in history]
    twentieth = max(1, len(ratios) // 20)
    negatives = max(update.negatives for update in history)
    return dict(
        negatives=negatives,
        loss=mean(update.loss for update in history[-twentieth:]),
        log_n=math.log(negatives + 1),
        trace=[median(ratios[i : i + twentieth]) for i in range(0, len(ratios), twentieth)],
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

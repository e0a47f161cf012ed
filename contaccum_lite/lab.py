"""What a notebook plays with: the state and the player. Nothing here draws; `views` does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from .data import Pairs
from .settings import PRESETS, Settings
from .train import Run

NAMES = {"dpr": "DPR", "grad_accum": "GradAccum", "grad_cache": "GradCache", "pre_batch": "pre-batch", "contaccum": "ContAccum",
         "contaccum_no_past": "ContAccum, no past", "pre_batch_no_past": "pre-batch, no past",
         "contaccum_no_accum": "ContAccum, K = 1", "momentum": "momentum"}


class Race:
    """Several methods trained side by side on the same pairs, from the same weights, with the same batches.

    methods: names of `PRESETS`. updates: how many weight updates each makes. every: updates between two looks at Top@20.
    Other fields are of every `Settings`, but where a method fixes them; DPR takes the whole N_local × K as its one batch. `run()` trains and draws; a Ctrl-C (■ in a notebook) stops it
    between two updates and `run()` goes on from there. `runs[method]` is each `Run`. Notebook 00.
    """

    def __init__(self, pairs: Pairs, methods=("dpr", "grad_accum", "pre_batch", "contaccum"), updates: int = 150, every: int = 30, **fields):
        self.pairs, self.every = pairs, every
        self.runs = {method: Run(pairs, self._settings(method, dict(fields, updates=updates))) for method in methods}
        self.top20: dict[str, list[tuple[int, float]]] = {method: [] for method in methods}
        self.seconds = dict.fromkeys(methods, 0.0)
        self.updates = updates

    @staticmethod
    def _settings(method: str, fields: dict) -> Settings:
        whole = Settings(**{name: value for name, value in fields.items() if name != "memory_size"})
        own = {name: value for name, value in fields.items() if name not in PRESETS.get(method, {}).get("fixes", {})}
        return Settings.preset(method, **({**own, "local_batch": whole.total_batch} if method == "dpr" else own))

    def steps(self) -> Iterator[int]:
        """Advance all runs by one update at a time; yields how many each has made."""
        while (done := min(run.step_count for run in self.runs.values())) < self.updates:
            for method, run in self.runs.items():
                if run.step_count == done:
                    if not self.top20[method]:
                        self._look(method)
                    began = time.perf_counter()
                    run.step()
                    self.seconds[method] += time.perf_counter() - began
                    if run.step_count % self.every == 0 or run.step_count == self.updates:
                        self._look(method)
            yield done + 1

    def _look(self, method: str) -> None:
        run = self.runs[method]
        self.top20[method].append((run.step_count, run.evaluate()["top@20"]))

    def run(self, draw: bool = True) -> None:
        """Train to the end, with live curves; stopped by an interrupt, it says so and can be called again."""
        if draw:
            from .views import RaceView
            view = RaceView(self)
        try:
            for _ in self.steps():
                if draw:
                    view.refresh()
        except KeyboardInterrupt:
            pass
        if draw:
            view.finish()

    def what_we_saw(self) -> str:
        """The race's lessons as Markdown, each with its number."""
        score = {m: self.top20[m][-1][1] for m in self.runs}
        ratio = {m: _middle(run) for m, run in self.runs.items()}
        return "\n".join([
            f"- **Accumulation lost negatives.** GradAccum saw the same pairs as DPR in the same order, with "
            f"{_negatives(self.runs['grad_accum'])} negatives per query in place of {_negatives(self.runs['dpr'])}: "
            f"Top@20 {score['grad_accum']:.1%} against {score['dpr']:.1%}.",
            f"- **A dual bank gave them back.** ContAccum had {_negatives(self.runs['contaccum'])} negatives with "
            f"{self.runs['contaccum'].settings.local_batch} pairs in memory: {score['contaccum']:.1%}.",
            f"- **A passage bank alone went wrong.** Pre-batch has the same negatives: {score['pre_batch']:.1%}. Its passage tower's "
            f"gradient was {ratio['pre_batch']:.0f} times the query tower's in the middle of training; ContAccum's was {ratio['contaccum']:.1f} times."])

    @property
    def summary(self) -> str:
        """What the race shows, in a sentence made from its numbers."""
        done = min(run.step_count for run in self.runs.values())
        if not done:
            return f"{len(self.runs)} methods at the start: no update made yet."
        best = sorted(((self.top20[m][-1][1], m) for m in self.runs), reverse=True)
        found = ", ".join(f"{NAMES[m]} {score:.0%}" for score, m in best)
        ratios = ", ".join(f"{NAMES[m]} {run.history[-1].grad_norm_ratio:.1f}" for m, run in self.runs.items())
        stopped = "" if done == self.updates else f" (stopped; {self.updates} are planned)"
        return (f"After {done} updates{stopped}, test questions whose passage is among the first 20 of {len(self.pairs.passages):,}: "
                f"{found}. Gradient norm of the passage tower over the query tower's: {ratios}.")

    def table(self) -> str:
        """The race as a Markdown table, made from its numbers."""
        rows = ["| method | pairs in memory at once | negatives per query | Top@20 | gradient-norm ratio, middle | seconds |", "|---" * 6 + "|"]
        for method, run in self.runs.items():
            score = self.top20[method][-1][1] if self.top20[method] else float("nan")
            rows.append(f"| {NAMES[method]} | {run.settings.local_batch} | {_negatives(run)} | {score:.1%} | {_middle(run):.1f} "
                        f"| {self.seconds[method]:.1f} |")
        return "\n".join(rows)


def _negatives(run: Run) -> int:
    """The negatives of a query once the bank is full, in a whole micro-batch."""
    return max((u.negatives for u in run.history), default=0)


def _middle(run: Run) -> float:
    """The median gradient-norm ratio of the middle third of a run's updates."""
    third = len(run.history) // 3
    return median([u.grad_norm_ratio for u in run.history[third:len(run.history) - third]] or [float("nan")])

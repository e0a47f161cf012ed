"""Processor time of one update with a corrected bank, measured for `benchmarks/correctors.py`."""

from __future__ import annotations

import time
from statistics import median

import torch

import contaccum_lite as cl
from contaccum_lite.evidence.runs import RATED
from contaccum_lite.evidence.studies import REFERENCES, corrected_methods, corrected_plan

RATE = 0.005
TOWERS = {
    "bag of words": dict(start="pretrained"),
    "small transformer": dict(tower="bert", start="random"),
}
ROUNDS = {"bag of words": 15, "small transformer": 5}
BASE = "GradAccum 8"
WHAT = (
    "one weight update of N_local 8 and K 16 on python-docs, banks full, one thread; seconds is the median of time.process_time, "
    f"times the median of the same over {BASE}'s in the same round"
)


def settings_of(name: str, tower: str) -> cl.Settings:
    """The settings of a row of the table, encoded micro-batch by micro-batch, as where memory is short."""
    if name in REFERENCES:
        settings = cl.Settings.preset(**RATED[name])
    else:
        settings = corrected_plan()[f"{name}, rate {RATE:g}"].settings
    fields = dict(start="pretrained", one_forward=False, learning_rate=RATE) | TOWERS[tower]
    return settings.replace(**fields)


def full_run(pairs, settings: cl.Settings) -> cl.Run:
    """A run whose banks are full."""
    run = cl.Run(pairs, settings)
    for _ in range(-(-settings.memory_size // settings.total_batch) + 1):
        run.step()
    return run


def in_turns(runs: dict[str, cl.Run], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of an update of each run, in each round."""
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()
            run.step()
            seconds[name].append(time.process_time() - began)
    return seconds


def over_base(seconds: dict[str, list[float]], base: str) -> dict[str, float]:
    """The median over rounds of each run's seconds over the base's in the same round."""
    return {
        name: median(own / of_base for own, of_base in zip(values, seconds[base]))
        for name, values in seconds.items()
    }


def measure(tower: str, rounds: int, pairs: cl.Pairs) -> list[dict]:
    """A record for each row of the table, with this tower, in one thread."""
    torch.set_num_threads(1)
    runs = {name: full_run(pairs, settings_of(name, tower)) for name in corrected_methods()}
    seconds = in_turns(runs, rounds)
    times = over_base(seconds, BASE)
    return [
        dict(
            tower=tower, name=name, seconds=median(seconds[name]), times=times[name], rounds=rounds
        )
        for name in runs
    ]

"""Runs as a lab keeps them: their curves, what tells them apart, and what can be said of them."""

from __future__ import annotations

import dataclasses
import re
from statistics import median
from urllib.parse import parse_qsl

from .search import one_line
from .settings import PRESETS, Settings
from .train import Run

NAMES = {method: preset["name"] for method, preset in PRESETS.items()}
_FIELDS = {f.name: f for f in dataclasses.fields(Settings)}


class Track:
    """A run as curves show it: `run`, its Top@20 as (update, value) pairs, and the changes made to it while it ran."""

    def __init__(self, run: Run):
        self.run, self.start = run, run.settings
        self.top20: list[tuple[int, float]] = []
        self.changes: list[
            tuple[int, str, float]
        ] = []  # (updates made, field, value) of sliders that moved while it ran
        self.seconds = 0.0  # spent in training: no evaluation, no drawing

    def share(self) -> str:
        """The run in one line: its settings at the start, and `then=update:field:value,…` where a slider moved."""
        then = ",".join(f"{step}:{name}:{value}" for step, name, value in self.changes)
        return self.start.share() + (f"&then={then}" if then else "")

    def change(self, name: str, value) -> None:
        """Change the run, and remember it; what raises changes nothing."""
        self.run.change(**{name: value})
        self.note(name, value)

    def note(self, name: str, value) -> None:
        """Remember a change. Of several at rest, the last is enough; of the banks' sizes also the smallest, which forgot the most."""
        step = self.run.step_count
        same = [v for s, n, v in self.changes if (s, n) == (step, name)]
        self.changes = [c for c in self.changes if c[:2] != (step, name)]
        if name == "memory_size" and same and min(same) < value:
            self.changes.append((step, name, min(same)))
        self.changes.append((step, name, value))

    @property
    def negatives(self) -> int:
        """The most negatives that a query had."""
        return max((update.negatives for update in self.run.history), default=0)

    @property
    def middle_ratio(self) -> float:
        """The median gradient-norm ratio of the middle third of its updates."""
        third = len(self.run.history) // 3
        return median(
            [u.grad_norm_ratio for u in self.run.history[third : len(self.run.history) - third]]
            or [float("nan")]
        )


def names(tracks: list[Track]) -> list[str]:
    """What tells these runs apart, for each of them: the method, then each setting that not all have in common."""
    lines = [
        {
            **dict(parse_qsl(track.start.share())),
            "then": "".join(
                f", from update {step + 1} {symbol(name)} {word(name, value)}"
                for step, name, value in track.changes[-2:]
            ),
        }
        for track in tracks
    ]
    differ = {
        key for line in lines for key in line if any(other.get(key) != line[key] for other in lines)
    } - {
        "method",
        "then",
        "one_forward",
        "similarity",
    }  # the last two change the time and nothing else
    differ = [name for name in _FIELDS if name in differ]
    found = []
    for track, line in zip(tracks, lines):
        fixed = PRESETS[track.start.method]["fixes"]
        more = [f"{symbol(n)} {word(n, getattr(track.start, n))}" for n in differ if n not in fixed]
        found.append(", ".join([NAMES[track.start.method], *more]) + line["then"])
    return [
        name if found.count(name) == 1 else f"{name} ({found[:place].count(name) + 1})"
        for place, name in enumerate(found)
    ]


def symbol(name: str) -> str:
    """A setting as pictures name it."""
    return _FIELDS[name].metadata["symbol"] or name.replace("_", " ")


def word(name: str, value) -> str:
    """Its value."""
    return (
        NAMES[value]
        if name == "method"
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def cell(text: str) -> str:
    """Text for a cell of a Markdown table: what would be markup is written as its number."""
    # An underscore within a word, as in N_memory, is no markup.
    marks = r"[\\`*<>&|\[\]$~]|(?<![^\W_])_|_(?![^\W_])"
    return re.sub(marks, lambda mark: f"&#{ord(mark[0])};", one_line(text))


def table(tracks: list[tuple[str, Track]]) -> str:
    """Named runs as a Markdown table, made from their numbers."""
    rows = [
        "| run | updates | pairs in memory at once | negatives per query | Top@20 | gradient-norm ratio, middle | seconds of training |",
        "|---" * 7 + "|",
    ]
    for name, track in tracks:
        score = f"{track.top20[-1][1]:.1%}" if track.top20 else "not yet"
        rows.append(
            f"| {cell(name)} | {track.run.step_count} | {track.run.settings.local_batch} | {track.negatives} | {score} "
            f"| {track.middle_ratio:.1f} | {track.seconds:.1f} |"
        )
    return "\n".join(rows)


def what_we_saw(tracks: list[tuple[str, Track]]) -> str:
    """The lessons of a race as Markdown, each with its number. Raises `ValueError` before `race()`."""
    found = {
        track.run.settings.method: track for _, track in tracks if track.top20 and track.run.history
    }
    if not {"dpr", "grad_accum", "pre_batch", "contaccum"} <= set(found):
        raise ValueError(
            f"the lab has run {', '.join(found) or 'nothing'}: call lab.race() first, which runs all four methods."
        )
    score = {method: track.top20[-1][1] for method, track in found.items()}
    return "\n".join(
        [
            f"- **Accumulation lost negatives.** GradAccum saw the same pairs as DPR in the same order, with "
            f"{found['grad_accum'].negatives} negatives per query in place of {found['dpr'].negatives}: "
            f"Top@20 {score['grad_accum']:.1%} against {score['dpr']:.1%}.",
            f"- **A dual bank gave them back.** ContAccum had {found['contaccum'].negatives} negatives with "
            f"{found['contaccum'].run.settings.local_batch} pairs in memory: {score['contaccum']:.1%}.",
            f"- **A passage bank alone went wrong.** Pre-batch has the same negatives: {score['pre_batch']:.1%}. Its passage tower's "
            f"gradient was {found['pre_batch'].middle_ratio:.0f} times the query tower's in the middle of training; ContAccum's was "
            f"{found['contaccum'].middle_ratio:.1f} times.",
        ]
    )

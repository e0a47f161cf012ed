"""Runs as a lab remembers them: their curves, their names, and what can be said of them."""

from __future__ import annotations

import re
from collections import Counter
from statistics import median
from urllib.parse import parse_qsl

from contaccum_lite.core.presets import PRESETS
from contaccum_lite.core.run import Run
from contaccum_lite.lab.fields import BEFORE, FIELDS, NAMES, format_value, symbol
from contaccum_lite.lab.share_line import Change
from contaccum_lite.utils.text import one_line

GHOSTS = 6  # earlier runs that a lab remembers
#: Settings that change the time and nothing else: no name says them.
_UNNAMED = ("method", "one_forward", "similarity")


class Track:
    """A run as curves show it.

    `scores` has (update, {"mrr@10": …, "top@20": …, "top@1": …}) pairs, each score in [0, 1]; the
    first is of update 0, the towers as they start. `mrr` and `top20` are one score each, derived.
    `changes` has the sliders and switches that moved while it ran, `seconds` the time spent in
    training, without evaluation and drawing.
    """

    def __init__(self, run: Run):
        self.run = run
        self.start = run.settings
        self.scores: list[tuple[int, dict[str, float]]] = []
        self.changes: list[Change] = []
        self.seconds = 0.0

    def change(self, name: str, value) -> None:
        """Change the run, and remember it; what raises changes nothing."""
        self.run.change(**{name: value})
        self.record_change(name, value)

    def record_change(self, name: str, value) -> None:
        """Remember a change. Of several at rest, as few as make the same run again.

        The last is enough, but for what the banks do at once: of their sizes also one that made
        them forget, or move, and of the query bank's switch each turn that no later one repeats.
        """
        step = self.run.step_count
        before = self.value_at(name, step - 1)
        earlier = [change.value for change in self.changes if change[:2] == (step, name)]
        self.changes = [change for change in self.changes if change[:2] != (step, name)]
        if name == "query_bank":
            turns = [*earlier, value]
            values = turns if len(turns) < 4 else turns[:2]
        elif name == "memory_size" and earlier and min(earlier) < min(before, value):
            values = [min(earlier), value]
        elif name == "memory_size" and earlier and value == before:
            values = [max(earlier), value]
        else:
            values = [value] if value != before else []
        self.changes += [Change(step, name, value) for value in values]

    def value_at(self, name: str, update: int):
        """What a setting was in this update, counted from 0."""
        value = getattr(self.start, name)
        for change in self.changes:
            if change.name == name and change.step <= update:
                value = change.value
        return value

    @property
    def mrr(self) -> list[tuple[int, float]]:
        """(update, MRR@10) pairs: the measure that decides."""
        return [(update, scores["mrr@10"]) for update, scores in self.scores]

    @property
    def top20(self) -> list[tuple[int, float]]:
        """(update, Top@20) pairs."""
        return [(update, scores["top@20"]) for update, scores in self.scores]

    @property
    def before(self) -> dict[str, float] | None:
        """The scores before the first update; None until they are computed."""
        return dict(self.scores).get(0)

    @property
    def before_words(self) -> str:
        """The towers before the first update: "before fine-tuning" or "untrained"."""
        return BEFORE[self.start.start]

    @property
    def accuracy(self) -> str:
        """The last MRR@10 and Top@20, and those before the first update; "" until computed."""
        if not self.scores:
            return ""
        update, scores = self.scores[-1]
        if update == 0:
            return f"{self.before_words} {format_scores(scores)}"
        words = f"{format_scores(scores)} after update {update}"
        if self.before is not None:
            mrr, top20 = self.before["mrr@10"], self.before["top@20"]
            words += f", {self.before_words} {mrr:.1%} and {top20:.1%}"
        return words

    @property
    def negatives(self) -> int:
        """The most negatives that a query had."""
        return max((update.negatives for update in self.run.history), default=0)

    @property
    def middle_ratio(self) -> float:
        """The median gradient-norm ratio of the middle third of its updates."""
        history = self.run.history
        third = len(history) // 3
        ratios = [update.grad_norm_ratio for update in history[third : len(history) - third]]
        return median(ratios or [float("nan")])


def format_scores(scores: dict[str, float]) -> str:
    """The measure that decides, and the one beside it: "MRR@10 41.2% and Top@20 60.1%"."""
    return f"MRR@10 {scores['mrr@10']:.1%} and Top@20 {scores['top@20']:.1%}"


def names(tracks: list[Track]) -> list[str]:
    """A name for each run: its method, then each setting that not all have in common."""
    lines = [dict(parse_qsl(track.start.share())) for track in tracks]
    differing = []
    for name in FIELDS:
        values = {line.get(name) for line in lines}
        if len(values) > 1 and name not in _UNNAMED:
            differing.append(name)
    labels = [_label(track, differing) for track in tracks]
    total, so_far = Counter(labels), Counter()
    numbered = []
    for label in labels:
        so_far[label] += 1
        numbered.append(label if total[label] == 1 else f"{label} ({so_far[label]})")
    return numbered


def _label(track: Track, differing: list[str]) -> str:
    settings = track.start
    items = [NAMES[settings.method]]
    for name in differing:
        if name not in PRESETS[settings.method]["fixed"]:
            items.append(f"{symbol(name)} {format_value(name, getattr(settings, name))}")
    for step, name, value in track.changes[-2:]:
        change = f"{symbol(name)} {format_value(name, value)}"
        if name == "query_bank":
            change = "query bank on" if value else "query bank off"
        items.append(f"from update {step + 1} {change}")
    return ", ".join(items)


def cell(text: str) -> str:
    """Text for a cell of a Markdown table: what would be markup is written as its number."""
    # An underscore within a word, as in N_memory, is no markup.
    marks = r"[\\`*<>&|\[\]$~]|(?<![^\W_])_|_(?![^\W_])"
    return re.sub(marks, lambda mark: f"&#{ord(mark[0])};", one_line(text))


def table(tracks: list[tuple[str, Track]]) -> str:
    """Named runs as a Markdown table, made from their numbers."""
    rows = [
        "| run | updates | pairs in memory at once | negatives per query "
        "| MRR@10 before fine-tuning | MRR@10 | Top@20 "
        "| gradient-norm ratio, middle | seconds of training |",
        "|---" * 9 + "|",
    ]
    for name, track in tracks:
        run = track.run
        before = mrr = top20 = "not yet"
        if track.before is not None:
            before = f"{track.before['mrr@10']:.1%}"
        if track.scores and track.scores[-1][0]:
            mrr, top20 = f"{track.mrr[-1][1]:.1%}", f"{track.top20[-1][1]:.1%}"
        rows.append(
            f"| {cell(name)} | {run.step_count} | {run.settings.local_batch} | {track.negatives} "
            f"| {before} | {mrr} | {top20} | {track.middle_ratio:.1f} | {track.seconds:.1f} |"
        )
    return "\n".join(rows)


def what_we_saw(tracks: list[tuple[str, Track]]) -> str:
    """The lessons of a race as Markdown, each with its number.

    Raises `ValueError` before `race()`.
    """
    by_method = {}
    for _, track in tracks:
        if track.scores and track.run.history:
            by_method[track.run.settings.method] = track
    if not {"dpr", "grad_accum", "pre_batch", "contaccum"} <= set(by_method):
        raise ValueError(
            f"the lab has run {', '.join(by_method) or 'nothing'}: call lab.race() first, "
            "which runs all four methods."
        )
    score = {name: format_scores(track.scores[-1][1]) for name, track in by_method.items()}
    contaccum, pre_batch = by_method["contaccum"], by_method["pre_batch"]
    return (
        f"{_lesson_of_the_start(contaccum)}"
        "- **Accumulation lost negatives.** GradAccum saw the same pairs as DPR in the same "
        f"order, with {by_method['grad_accum'].negatives} negatives per query in place of "
        f"{by_method['dpr'].negatives}: {score['grad_accum']}, against {score['dpr']}.\n"
        f"- **A dual bank gave them back.** ContAccum had {contaccum.negatives} negatives with "
        f"{contaccum.run.settings.local_batch} pairs in memory: {score['contaccum']}.\n"
        f"- **A passage bank alone {_verdict(by_method)}.** Pre-batch has the same negatives: "
        f"{score['pre_batch']}. Its passage tower's gradient was {pre_batch.middle_ratio:.1f} "
        "times the query tower's in the middle of training; ContAccum's was "
        f"{contaccum.middle_ratio:.1f} times."
    )


def _lesson_of_the_start(track: Track) -> str:
    if track.before is None:
        return ""
    words = f"{track.before_words[0].upper()}{track.before_words[1:]}"
    return f"- **All began with the same towers.** {words}: {format_scores(track.before)}.\n"


def _verdict(by_method: dict[str, Track]) -> str:
    """How pre-batch's last MRR@10 compares with those of no bank and of two."""
    last = {method: track.mrr[-1][1] for method, track in by_method.items()}
    if last["pre_batch"] < last["grad_accum"]:
        return "was worse than no bank"
    if last["pre_batch"] < last["contaccum"]:
        return "was not enough"
    return "was enough here"

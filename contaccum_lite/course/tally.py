"""`tally`: the predictions of a class, from the lines that its students paste."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from numbers import Real

import numpy as np

from contaccum_lite.course.plots import Picture
from contaccum_lite.lab import stills
from contaccum_lite.utils.text import one_line, short, shown, without_halves

BINS = 8  # of a histogram of numbers
_LONGEST = 60  # characters of an option that are drawn
_LONGEST_LINE = 100_000  # characters of a pasted line that are read
_MOST_BARS = 12


class Tally(Picture):
    """A class's answers: `counts` is {question: {answer: students}}, `lines` how many were read.

    Options have a bar each, numbers a bar for each range, drawn curves are counted.
    """

    def __init__(self, answers: dict[str, list], lines: int, skipped: int):
        self.lines, self.skipped = lines, skipped
        self.counts = {name: _count(values) for name, values in sorted(answers.items())}
        bars = sum(len(bars) for bars in self.counts.values())
        self.size = (7.2, max(1.0, 0.6 * len(self.counts) + 0.32 * bars))

    @property
    def sentence(self) -> str:
        sentences = [f"{self.lines} lines of answers."]
        for name, bars in self.counts.items():
            total = sum(bars.values())
            answer, most = max(bars.items(), key=lambda bar: bar[1])
            sentences.append(f"{name}: {most} of {total} say “{answer}”.")
        if self.skipped:
            sentences.append(f"{self.skipped} lines held no answers.")
        return " ".join(sentences)

    def __repr__(self):
        lines = [f"{self.lines} lines of answers."]
        for name, bars in self.counts.items():
            lines.append(name)
            lines += [f"  {count:3}  {answer}" for answer, count in bars.items()]
        return "\n".join(lines)

    def still(self, figure) -> None:
        if not self.counts:
            figure.text(0.5, 0.5, "no answers yet", ha="center", fontsize=10)
            return
        heights = [len(bars) + 1 for bars in self.counts.values()]
        grid = dict(squeeze=False, gridspec_kw={"height_ratios": heights}, sharex=True)
        axes = figure.subplots(len(self.counts), 1, **grid)[:, 0]
        for axis, (name, bars) in zip(axes, self.counts.items()):
            labels = [stills.label(answer) for answer in bars]
            rows = np.arange(len(bars))
            drawn = axis.barh(rows, list(bars.values()), color="#0072B2", height=0.7)
            axis.bar_label(drawn, padding=3, fontsize=9)
            axis.set_yticks(rows, labels, fontsize=9)
            axis.invert_yaxis()
            axis.set_title(stills.literal(name), fontsize=10, loc="left")
            axis.spines[["top", "right", "bottom"]].set_visible(False)
            axis.xaxis.set_visible(False)
            axis.margins(x=0.08)


def tally(text: str, *names: str) -> Tally:
    """The answers of a class as bars, a question below the other.

    text: pasted lines, each from a student's `cl.answers()`; what stands before it, such as a name
    in a chat, is left out. names: the questions to draw; none is all. Each line counts once. Raises
    `ValueError` for what is no text.
    """
    if not isinstance(text, str):
        raise ValueError(f"{shown(text)} is no text: paste the lines that answers() gave.")
    answers, lines, skipped = defaultdict(list), 0, 0
    for line in text.splitlines():
        line_answers = _read(line)
        if line_answers is None:
            skipped += bool(line.strip())
            continue
        lines += 1
        for name, value in line_answers.items():
            name = short(one_line(name), _LONGEST)
            if not names or name in names:
                answers[name].append(value)
    return Tally(answers, lines, skipped)


def _read(line: str) -> dict | None:
    """The answers in a pasted line, or None."""
    begin, end = line.find("{"), line.rfind("}")
    if begin < 0 or end < begin or len(line) > _LONGEST_LINE:
        return None
    try:
        value = json.loads(line[begin : end + 1])
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_number(value) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond floats
        return False


def _count(values: list) -> dict[str, int]:
    """The bars of one question, {answer: students}."""
    numbers = [float(value) for value in values if _is_number(value)]
    words = Counter(_words(value) for value in values if not _is_number(value))
    bars = _ranges(numbers) if numbers else {}
    for answer, count in words.most_common(_MOST_BARS):
        bars[answer] = count
    rest = sum(words.values()) - sum(count for _, count in words.most_common(_MOST_BARS))
    if rest:
        bars["other answers"] = bars.get("other answers", 0) + rest
    return bars


def _ranges(numbers: list[float]) -> dict[str, int]:
    """Numbers counted in ranges of one width; a few different ones, each by itself."""
    different = sorted(set(numbers))
    if len(different) <= BINS:
        return {f"{value:.4g}": numbers.count(value) for value in different}
    counts, edges = np.histogram(numbers, BINS)
    labels = [f"{low:.3g} to {high:.3g}" for low, high in zip(edges, edges[1:])]
    return dict(zip(labels, counts.tolist()))


def _words(value) -> str:
    """An answer that is no number, in a few words."""
    if isinstance(value, list):
        return "a drawn curve"
    return short(one_line(without_halves(str(value))), _LONGEST) or "(empty)"

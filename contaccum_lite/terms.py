"""Equation, code and matrix side by side: a term of an equation lights up the entries that it sums over."""

from __future__ import annotations

import inspect
from typing import NamedTuple

import numpy as np

from . import loss, stills
from .grid import Grid, colours
from .stills import bundle


class Term(NamedTuple):
    """A term of an equation: how it reads, which entries it sums over, and the line of `loss.contrast` that computes it."""

    reads: str
    says: str
    entries: object  # (row is local, column is local, on the diagonal) as arrays -> which entries, bool array
    code: str  # a piece of the line


TERMS: dict[str, Term] = {
    "7": Term(
        "S = Q·Pᵀ/τ",
        "every query with every passage",
        lambda r, c, d: r | ~r,
        "scores = rows @ columns.T / temperature",
    ),
    "7, the positives": Term(
        "S_ii",
        "each row's own passage, which its loss pulls up",
        lambda r, c, d: d,
        "scores.diagonal()",
    ),
    "8, first term": Term(
        "−p_l / nτ",
        "what pulls query l towards its own passage",
        lambda r, c, d: d & r,
        "weights.diagonal().sub_(1)",
    ),
    "8, second term": Term(
        "+ Σ_j S_lj p_j / nτ",
        "what pushes query l from all passages, local and memory",
        lambda r, c, d: r & (c | ~c),
        "weights[:local] @ columns / temperature",
    ),
    "9, first term": Term(
        "−q_l / nτ",
        "what pulls passage l towards its own query",
        lambda r, c, d: d & c,
        "weights.diagonal().sub_(1)",
    ),
    "9, second term": Term(
        "+ Σ_i S_il q_i / nτ",
        "what pushes passage l from all queries, local and memory",
        lambda r, c, d: c & (r | ~r),
        "weights[:, :local].T @ rows / temperature",
    ),
    "9, its memory rows": Term(
        "+ Σ_{i in M_q} S_il q_i / nτ",
        "the part of it that is gone when there is no query bank",
        lambda r, c, d: c & ~r,
        "weights[:, :local].T @ rows / temperature",
    ),
    "frozen": Term(
        "(no gradient)",
        "memory with memory: in the loss, and in no gradient",
        lambda r, c, d: ~r & ~c,
        "scores = rows @ columns.T / temperature",
    ),
}


class EquationView:
    """Choose a term; its entries light up, and the line of code that computes it is shown. Notebook 04."""

    def __init__(self, local: int = 4, memory: int = 8, term: str = "7", query_bank: bool = True):
        import ipywidgets as w

        if local < 1 or memory < 0:
            raise ValueError(
                f"local is {local} and memory {memory}: expected at least 1 local pair and 0 or more memories."
            )
        self.local, self.memory, self.query_bank = local, memory, query_bank
        self.grid = Grid(title="the entries that it sums over", width=330, talks="")
        self.choice = w.ToggleButtons(
            options=[(f"({name}) {t.reads}", name) for name, t in TERMS.items()],
            value=term,
            style=dict(button_width="29em"),
        )
        self.bank = w.Checkbox(value=query_bank, description="with a query bank", indent=False)
        self.code = w.HTML()
        self.widget = w.VBox([self.choice, self.bank, self.grid, self.code])
        self.choice.observe(lambda change: self.draw(), "value")
        self.bank.observe(lambda change: self.draw(), "value")
        self.draw()

    @property
    def term(self) -> str:
        """The name of the term that is shown."""
        return self.choice.value

    def data(self) -> np.ndarray:
        """Which entries the term sums over, (rows, columns), bool."""
        rows, columns = self.local + self.memory * self.bank.value, self.local + self.memory
        r, c = np.arange(rows)[:, None] < self.local, np.arange(columns)[None, :] < self.local
        diagonal = np.arange(rows)[:, None] == np.arange(columns)[None, :]
        return np.broadcast_to(TERMS[self.term].entries(r, c, diagonal), (rows, columns)).astype(
            bool
        )

    def line(self) -> tuple[int, str]:
        """(number in loss.py, text) of the line that computes the term."""
        source, first = inspect.getsourcelines(loss.contrast)
        number = next(
            n
            for n, text in enumerate(source)
            if TERMS[self.term].code in text and '"""' not in text
        )
        return first + number, source[number].strip()

    def draw(self) -> None:
        """Light the entries of the term that is chosen."""
        import html

        lit = self.data()
        blocks = [
            ("local", 0, self.local, "row"),
            ("local", 0, self.local, "column"),
            ("passage bank", self.local, lit.shape[1], "column"),
        ]
        blocks += [("query bank", self.local, lit.shape[0], "row")] if self.bank.value else []
        self.grid.show(
            np.where(lit, 230, 118).astype(np.uint8),
            colours=colours("signed").tobytes(),
            sentence=self.sentence,
            blocks=[b for b in blocks if b[2] > b[1]],
            diagonal=min(lit.shape),
        )
        number, text = self.line()
        self.code.value = f"<p>loss.py, line {number}: <code>{html.escape(text)}</code></p>"

    @property
    def sentence(self) -> str:
        lit, term = self.data(), TERMS[self.term]
        if not lit.any():
            return f"({self.term}) {term.reads}: {term.says}. It sums over no entry here: there is no query bank."
        return f"({self.term}) {term.reads}: {term.says}. It sums over {int(lit.sum())} of {lit.size} entries."

    def png(self) -> bytes:
        figure = stills.new(4.2, 4.0)
        stills.grid(figure.subplots(), self.grid)
        return stills.png(figure, self.sentence)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return bundle(self.widget, self.png(), self.sentence)

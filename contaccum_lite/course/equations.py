"""Equation, code and matrix side by side.

A term of an equation lights up the entries that it sums over. Equations 7 to 9; notebook 04.
"""

from __future__ import annotations

import html
import inspect
from typing import NamedTuple

import ipywidgets as w
import numpy as np

from contaccum_lite.core import loss
from contaccum_lite.course.plots import Picture, blocks_of
from contaccum_lite.lab import stills
from contaccum_lite.lab.grid import Grid, colours

#: Numbers of colours for entries that the term sums over, and for the others.
LIT, UNLIT = 230, 118


class Term(NamedTuple):
    """A term of an equation."""

    formula: str
    description: str
    code: str  # a piece of the line of core/loss.py that computes it


SCORES = "scores = rows @ columns.T / temperature"
POSITIVES = "grad_scores.diagonal().sub_(1)"
GRAD_PASSAGES = "grad_scores[:, :num_local].T @ rows / temperature"

TERMS = {
    "7": Term("Z = Q·Pᵀ/τ", "every query with every passage", SCORES),
    "7, the positives": Term(
        "S_ii", "each row's own passage, which its loss pulls up", "scores.diagonal()"
    ),
    "8, first term": Term("−p_l / nτ", "what pulls query l towards its own passage", POSITIVES),
    "8, second term": Term(
        "+ Σ_j S_lj p_j / nτ",
        "what pushes query l from all passages, local and memory",
        "grad_scores[:num_local] @ columns / temperature",
    ),
    "9, first term": Term("−q_l / nτ", "what pulls passage l towards its own query", POSITIVES),
    "9, second term": Term(
        "+ Σ_i S_il q_i / nτ",
        "what pushes passage l from all queries, local and memory",
        GRAD_PASSAGES,
    ),
    "9, its memory rows": Term(
        "+ Σ_{i in M_q} S_il q_i / nτ",
        "the part of it that is gone when there is no query bank",
        GRAD_PASSAGES,
    ),
    "frozen": Term("(no gradient)", "memory with memory: in the loss, and in no gradient", SCORES),
}


class EquationView(Picture):
    """Choose a term; its entries light up, and the line of code that computes it is shown.

    Args:
        local: how many local pairs, at least 1. memory: how many pairs in the banks.
        term: the name of the term that is shown first, one of `TERMS`.
        query_bank: whether there is a query bank at first.

    Raises `ValueError` for other numbers. Equations 7 to 9; notebook 04.
    """

    size = (4.2, 4.0)

    def __init__(self, local: int = 4, memory: int = 8, term: str = "7", query_bank: bool = True):
        if local < 1 or memory < 0:
            raise ValueError(
                f"local is {local} and memory {memory}: expected at least 1 local pair and 0 or "
                "more memories."
            )
        self.local, self.memory, self.query_bank = local, memory, query_bank
        self.grid = Grid(title="the entries that it sums over", width=330, talks="")
        self.choice = w.ToggleButtons(
            options=[(f"({name}) {shown.formula}", name) for name, shown in TERMS.items()],
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
        rows = self.local + self.memory * self.bank.value
        columns = self.local + self.memory
        everything = np.ones((rows, columns), dtype=bool)
        diagonal = np.eye(rows, columns, dtype=bool)
        local_rows = everything.copy()
        local_rows[self.local :] = False
        local_columns = everything.copy()
        local_columns[:, self.local :] = False
        return {
            "7": everything,
            "7, the positives": diagonal,
            "8, first term": diagonal & local_rows,
            "8, second term": local_rows,
            "9, first term": diagonal & local_columns,
            "9, second term": local_columns,
            "9, its memory rows": local_columns & ~local_rows,
            "frozen": ~local_rows & ~local_columns,
        }[self.term]

    def line(self) -> tuple[int, str]:
        """(number in core/loss.py, text) of the line that computes the term."""
        code = TERMS[self.term].code
        lines = inspect.getsource(loss).splitlines()
        number = next(number for number, line in enumerate(lines, 1) if code in line)
        return number, lines[number - 1].strip()

    def draw(self) -> None:
        """Light the entries of the chosen term."""
        lit = self.data()
        self.grid.show(
            np.where(lit, LIT, UNLIT).astype(np.uint8),
            colours=colours("signed").tobytes(),
            sentence=self.sentence,
            blocks=blocks_of(self.local, *lit.shape, "query bank", "passage bank"),
            diagonal=min(lit.shape),
        )
        number, text = self.line()
        self.code.value = f"<p>loss.py, line {number}: <code>{html.escape(text)}</code></p>"

    @property
    def sentence(self) -> str:
        """What the term means, and how many entries it sums over."""
        lit, term = self.data(), TERMS[self.term]
        meaning = f"({self.term}) {term.formula}: {term.description}."
        if not lit.any():
            return f"{meaning} It sums over no entry here: there is no query bank."
        return f"{meaning} It sums over {int(lit.sum())} of {lit.size} entries."

    def still(self, figure) -> None:
        """Draw the matrix on a matplotlib figure."""
        stills.grid(figure.subplots(), self.grid)

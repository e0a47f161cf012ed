"""Numbers of the answers at the ends of the notebooks are in that notebook's outputs or in docs/evidence.md."""

import json
import re

from test_gate import BOOKS
from test_project import ROOT

ENDS = ("**Answer.**", "**The course's question", "**When is a bank worth")


def unsupported(book, evidence):
    """Numbers with a decimal point in an answer that no kept output and no page has."""
    kept = json.dumps([c.get("outputs", "") for c in book.cells], ensure_ascii=False)
    texts = [c.source for c in book.cells if c.cell_type == "markdown"]
    answers = [p for text in texts for p in text.split("\n\n") if p.startswith(ENDS)]
    assert answers
    return [
        number
        for number in re.findall(r"\d+\.\d+", " ".join(answers))
        if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", kept + evidence)
    ]


def test_answers_quote_what_was_measured():
    evidence = (ROOT / "docs" / "evidence.md").read_text()
    assert {name: bad for name, book in BOOKS.items() if (bad := unsupported(book, evidence))} == {}
    book = BOOKS["00_start_here"]
    cell = next(c for c in book.cells if "**Answer.**" in c.source)
    before, cell.source = cell.source, cell.source.replace("34.4", "98.7")
    assert unsupported(book, evidence) == ["98.7"]
    cell.source = before

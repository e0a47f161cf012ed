"""The tables of the documentation: each is a file in docs/tables, written by the code that measures it.

A page shows a table between the marks `<!-- name -->` and `<!-- /name -->`.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDE = ROOT / "notebooks" / "INSTRUCTOR.md"
RECORDS = ROOT / "benchmarks" / "records"
TABLES = ROOT / "docs" / "tables"
VERDICTS = ("holds", "arises", "holds only when", "does not hold here", "not decided")


def pages() -> list[Path]:
    """The pages that may show a table of docs/tables."""
    return [README, *sorted((ROOT / "docs").glob("*.md"))]


def write_table(name: str, text: str) -> None:
    """Write docs/tables/NAME.md, and the table into every page that has its marks."""
    (TABLES / f"{name}.md").write_text(text + "\n")
    insert(name, text)


def insert(name: str, text: str) -> None:
    """Put text between the marks of this name, wherever they stand."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    for path in (*pages(), GUIDE):
        content = path.read_text()
        if start in content:
            head, rest = content.split(start)
            path.write_text(f"{head}{start}\n{text}\n{end}{rest.split(end)[1]}")


def verdict_counts() -> str:
    """How many claims have which verdict, counted in the two ledgers as they are written."""
    rows = ["| claims of | " + " | ".join(VERDICTS) + " |", "|---" * (len(VERDICTS) + 1) + "|"]
    for name, paper in (
        ("ledger", "ContAccum (Kim, Lee and Kang, 2024)"),
        ("stale", "corrector networks (Monath et al., 2024), and ours on stale caches"),
    ):
        table = (TABLES / f"{name}.md").read_text()
        counts = Counter(re.findall(r"\| \*\*(.+?)\*\* \|", table))
        if unknown := counts.keys() - set(VERDICTS):
            raise ValueError(f"{name}.md has the verdict {unknown.pop()!r}: add it to VERDICTS.")
        rows.append(f"| {paper} | " + " | ".join(str(counts[v]) for v in VERDICTS) + " |")
    return "\n".join(rows)

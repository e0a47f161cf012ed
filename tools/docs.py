"""The tables of the documentation: each is a file in docs/tables, written by the code that measures it.

A page shows a table between the marks `<!-- name -->` and `<!-- /name -->`.
"""

from __future__ import annotations

from pathlib import Path

from contaccum_lite.evidence import ledger, run, stale_claims
from contaccum_lite.evidence.records import COST, markdown_table, read_records

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDE = ROOT / "notebooks" / "INSTRUCTOR.md"
RECORDS = ROOT / "benchmarks" / "records"
TABLES = ROOT / "docs" / "tables"
VERDICTS = (
    "holds",
    "arises",
    "does not arise",
    "holds only when",
    "does not hold here",
    "not decided",
)


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
    """How many claims of the ledgers have which verdict, by regime."""
    counts = {
        f"ContAccum, {words}": counted
        for words, counted in ledger.counts(run.ledger_books(), read_records(COST)).items()
    }
    for words, counted in stale_claims.counts(run.stale_books()).items():
        counts[f"corrector networks and stale caches, {words}"] = counted
    rows = []
    for words, counted in counts.items():
        if unknown := counted.keys() - set(VERDICTS):
            raise ValueError(f"{words}: add the verdict {unknown.pop()!r} to VERDICTS.")
        rows.append([words, *(counted[verdict] for verdict in VERDICTS)])
    return markdown_table(["claims of", *VERDICTS], rows)

"""Run the ledger of the second paper's claims: stale caches, correctors, and what they cost to keep, and write its tables into the docs.

python -m benchmarks.stale [options]     as `python -m contaccum_lite.evidence.run stale`
"""

from __future__ import annotations

import sys

from contaccum_lite.evidence import run
from tools.docs import verdict_counts, write_table


def main(arguments: list[str]) -> None:
    for mark, text in run.main(["stale", *arguments]).items():
        write_table(mark, text)
    if "--quick" not in arguments:
        write_table("verdicts", verdict_counts())


if __name__ == "__main__":
    main(sys.argv[1:])

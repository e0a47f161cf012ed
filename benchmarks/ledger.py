"""Run the ledger of the paper's claims, and write its tables into the docs.

python -m benchmarks.ledger [options]     as `python -m contaccum_lite.evidence.run ledger`
"""

from __future__ import annotations

import sys

from contaccum_lite.evidence import run
from tools.docs import verdict_counts, write_table


def main(arguments: list[str]) -> None:
    for mark, text in run.main(["ledger", *arguments]).items():
        write_table(mark, text)
    write_table("verdicts", verdict_counts())


if __name__ == "__main__":
    main(sys.argv[1:])

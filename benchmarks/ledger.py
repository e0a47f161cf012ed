"""Run the ledger of the paper's claims and our own studies, and write their tables and figures into the docs.

python -m benchmarks.ledger [ledger|pretrained|random|failure|corrected|negatives|field] [options]

As `python -m contaccum_lite.evidence.run`; without a name it is the ledger, in both regimes.
"""

from __future__ import annotations

import sys

from contaccum_lite.evidence import run
from tools.docs import verdict_counts, write_table
from tools.figures import write_figures


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        arguments = ["ledger", *arguments]
    for mark, text in run.main(arguments).items():
        write_table(mark, text)
    if "--quick" not in arguments:
        write_table("verdicts", verdict_counts())
        write_figures()


if __name__ == "__main__":
    main(sys.argv[1:])

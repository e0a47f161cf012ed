"""What a corrected bank costs: processor time of one update, as a multiple of GradAccum's.

    python -m benchmarks.correctors           both towers (some minutes on one core), into contaccum_lite/evidence/records/corrector-cost.json
    python -m benchmarks.correctors --quick   two rounds of the bag of words; nothing is written

Every row of the table of the two papers together makes an update in turn, in one process with one thread, its banks full. Time is the
processor's (`time.process_time`), so another program on the machine hardly changes it. What is kept is the median over rounds of a
row's time over GradAccum's in the same round.
"""

from __future__ import annotations

import sys

from contaccum_lite import load_pairs
from contaccum_lite.evidence.records import CORRECTOR_COST, write_records
from tools.correctors import ROUNDS, WHAT, measure


def main(arguments: list[str]) -> None:
    quick = "--quick" in arguments
    pairs = load_pairs("python-docs", progress=False)
    updates = []
    for tower, rounds in {"bag of words": 2}.items() if quick else ROUNDS.items():
        of_tower = measure(tower, rounds, pairs)
        for r in of_tower:
            print(f"{r['tower']:18s} {r['name']:60s} {r['times']:6.2f}", flush=True)
        updates += of_tower
    if not quick:
        write_records(CORRECTOR_COST, dict(what=WHAT, updates=updates))


if __name__ == "__main__":
    main(sys.argv[1:])

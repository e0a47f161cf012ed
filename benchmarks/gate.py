"""Every notebook from top to bottom, each in a process of its own with the network cut (`tools/notebooks.py`).

    python -m benchmarks.gate [names …]    measure all notebooks, or those named, and write the tables into notebooks/INSTRUCTOR.md
    python -m benchmarks.gate --tables     write the tables from the records, and measure nothing
    python -m benchmarks.gate --sweep      all in order, with OMP_NUM_THREADS 1 and 2 and random kernel seeds; outputs must be those kept

Records lie in benchmarks/records/gate.json.
"""

from __future__ import annotations

import os
import random
import sys

import nbformat

from contaccum_lite.evidence.records import write_records
from tools import notebooks
from tools.docs import insert
from tools.lesson import plan_table


def write(records: dict) -> None:
    """The tables of the guide."""
    insert("gate", notebooks.table(records))
    for path in notebooks.notebooks():
        book = nbformat.read(path, as_version=4)
        insert(f"plan {path.stem[:2]}", plan_table(book, records["notebooks"].get(path.stem)))


def sweep() -> list[str]:
    """All notebooks in order, twice; the faults found."""
    faults = []
    for threads in (1, 2):
        for path in notebooks.notebooks():
            seed = random.randrange(2**31)
            found = notebooks.run(path, threads, seed)
            says = found["error"] or "; ".join(
                [f"cell {n} says something else" for n in found["differs"]]
                + [f"asked for {host}" for host in found["asked"]]
            )
            print(
                f"{path.stem}, {threads} thread{'s' * (threads > 1)}, seed {seed}: {says or 'as kept'}",
                flush=True,
            )
            faults += [f"{path.stem}: {says}"] if says else []
    return faults


def main(given: list[str]) -> None:
    if given == ["--sweep"]:
        raise SystemExit(1 if sweep() else 0)
    records = notebooks.known()
    for path in [] if given == ["--tables"] else notebooks.notebooks(given):
        found = notebooks.run(path)
        records["notebooks"][path.stem] = found
        print(
            f"{path.stem}: {found['error'] or str(found['seconds']) + ' s, ' + str(found['memory']) + ' MB'}",
            flush=True,
        )
        records |= dict(cores=os.cpu_count(), installed=notebooks.installed())
        write_records(notebooks.RECORDS, records)
    write(records)


if __name__ == "__main__":
    main(sys.argv[1:])

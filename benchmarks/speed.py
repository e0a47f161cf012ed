"""Updates per second and peak memory of every method, and the memory of notebook 00's kernel.

    python -m benchmarks.speed             prints the tables and writes them into README.md (about 4 minutes on one core)

Each measurement is a process of its own with one thread; the methods take turns, and medians of three rounds are shown.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from tools.docs import write_table

ROUNDS, WARM, TIMED = 3, 30, 60
#: N_total is 128 for all but the two that are defined by a smaller one.
SETTINGS = [
    "method=dpr",
    "method=grad_accum",
    "method=grad_cache",
    "method=pre_batch",
    "method=contaccum",
    "method=momentum",
    "method=contaccum&hard_negatives=1",
    "method=contaccum&memory_size=1024",
    "method=contaccum_no_accum",
    "method=dpr&local_batch=8",
]

CHILD = """
import json, sys, time, torch
torch.set_num_threads(1)
import contaccum_lite as cl
run = cl.Run(cl.load_pairs("python-docs", progress=False), cl.Settings.parse(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    run.step()
began = time.perf_counter()
for _ in range(int(sys.argv[3])):
    run.step()
print(json.dumps([int(sys.argv[3]) / (time.perf_counter() - began), cl.peak_memory()]))
"""

NOTEBOOK = """
import json, sys, nbformat, time
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
notebook.cells.append(nbformat.v4.new_code_cell("cl.peak_memory()"))
began = time.perf_counter()
NotebookClient(notebook, timeout=600, resources={"metadata": {"path": "notebooks"}}).execute()
print(json.dumps([time.perf_counter() - began, float(notebook.cells[-1].outputs[0]["data"]["text/plain"])]))
"""


def child(code: str, *arguments) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    found = {line: [] for line in SETTINGS}
    for _ in range(ROUNDS):
        for line in SETTINGS:
            found[line].append(child(CHILD, line, WARM, TIMED))
    speed = {line: median(s for s, _ in rounds) for line, rounds in found.items()}
    rows = [
        "| settings | updates per second | seconds for 400 updates | time, GradAccum = 1 | peak memory, MB |",
        "|---" * 5 + "|",
    ]
    for line, rounds in found.items():
        rows.append(
            f"| `{line}` | {speed[line]:.0f} | {400 / speed[line]:.1f} | {speed['method=grad_accum'] / speed[line]:.2f} "
            f"| {median(m for _, m in rounds):.0f} |"
        )
    notebooks = [child(NOTEBOOK, path) for path in sorted(Path("notebooks").glob("00*.ipynb"))]
    words = f"Notebook 00 from top to bottom: {notebooks[0][0]:.0f} s, its kernel's peak memory {notebooks[0][1]:.0f} MB."
    text = "\n".join(rows) + "\n\n" + words
    print(text)
    write_table("speed", text)


if __name__ == "__main__":
    main()

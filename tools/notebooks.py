"""A notebook from top to bottom, in a process of its own with the network cut: seconds, peak memory, first picture, size.

Seconds are the processor's, of the kernel and its one thread: what a clock shows where nothing else runs, and what stays right where
something does. The clock's own are recorded as `wall`. The network is cut by a guard in the kernel, which also notes who asks for it,
and, where the system permits, by a network namespace of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import distribution
from pathlib import Path

import nbformat

from contaccum_lite.evidence.records import read_records
from tools import docs, lesson
from tools.docs import ROOT
from tools.links import is_setup

RECORDS = docs.RECORDS / "gate.json"
LIMITS = dict(
    memory=1000, first_picture=15, installed=2500, kilobytes=300
)  # MB, s, MB, kB: what Binder guarantees, and what a class waits for

#: Read by every Python that the kernel starts. 127.* and ::1 are the kernel's own sockets.
GUARD = """
import os, socket
def _refused(address):
    host = address[0] if isinstance(address, tuple) else None
    return isinstance(host, str) and host not in ("::1", "localhost", "0.0.0.0", "") and not host.startswith("127.")
def _cut(name, real):
    def guarded(*arguments, **more):
        address = arguments[1] if name != "getaddrinfo" else (arguments[0], 0)
        if _refused(address):
            with open(os.environ["NETWORK_LOG"], "a") as log:
                log.write(f"{address[0]}\\n")
            raise OSError(f"the network is cut: {address[0]}")
        return real(*arguments, **more)
    return guarded
socket.socket.connect = _cut("connect", socket.socket.connect)
socket.socket.connect_ex = _cut("connect_ex", socket.socket.connect_ex)
socket.getaddrinfo = _cut("getaddrinfo", socket.getaddrinfo)
"""
SEED = "import random as _r, numpy as _n, torch as _t; _r.seed({0}); _n.random.seed({0}); _t.manual_seed({0}); del _r, _n, _t"


def notebooks(names=()) -> list[Path]:
    """All notebooks in order, or those whose name begins with one of these."""
    return [
        path
        for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
        if not names or path.stem.startswith(tuple(names))
    ]


def known() -> dict:
    """What was measured of the notebooks."""
    return read_records(RECORDS, {"notebooks": {}})


# --- one notebook, in this process -------------------------------------------------------------------------------------


def execute(path: Path, seed: int | None = None) -> dict:
    """Run a notebook: seconds in all and by cell, the peak memory of its kernel and what that starts in MB, when its first picture was there, what differs from what is kept."""
    import psutil
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    kept, notebook = nbformat.read(path, as_version=4), nbformat.read(path, as_version=4)
    extra = [] if seed is None else [nbformat.v4.new_code_cell(SEED.format(seed))]
    peak = nbformat.v4.new_code_cell("print(__import__('contaccum_lite').peak_memory())")
    notebook.cells = [*extra, *notebook.cells, peak]
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}
    )
    found = dict(
        seconds=None,
        wall=None,
        cells=[],
        memory=None,
        first_picture=None,
        kilobytes=round(path.stat().st_size / 1000),
        error="",
    )
    began, used = time.perf_counter(), 0.0
    try:
        with client.setup_kernel():
            kernel = psutil.Process(client.km.provisioner.pid)
            most = watch(kernel)
            for number, cell in enumerate(notebook.cells):
                client.execute_cell(cell, number)
                before, used = (
                    used,
                    sum(kernel.cpu_times()[:4]),
                )  # its own, and that of processes that it has waited for
                if cell is not peak and number >= len(extra) and not is_setup(cell):
                    found["cells"].append(round(used - before, 2))
                if found["first_picture"] is None and any(
                    "image/png" in o.get("data", {}) for o in cell.get("outputs", [])
                ):
                    found["first_picture"] = round(used, 1)
            found |= dict(
                seconds=round(used, 1),
                wall=round(time.perf_counter() - began, 1),
                memory=round(max(float(peak.outputs[0].text), most["MB"])),
            )
    except CellExecutionError as error:
        found["error"] = next(
            line
            for line in reversed(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines())
            if re.search(r"\w", line)
        )[:300]
    return found | dict(
        differs=differing(kept.cells, notebook.cells[len(extra) : -1]) if not found["error"] else []
    )


def watch(process) -> dict[str, float]:
    """The most MB that a process and those that it starts hold together, looked at four times a second while it lives: what each has
    for itself, and once what the largest shares with others (the code of PyTorch, above all)."""
    import psutil

    most = {"MB": 0.0}

    def look():
        while process.is_running():
            own, shared = 0, 0
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    found = one.memory_full_info()
                    own, shared = own + found.uss, max(shared, found.rss - found.uss)
            most["MB"] = max(most["MB"], (own + shared) / 1e6)
            time.sleep(0.25)

    def quietly():
        with contextlib.suppress(psutil.Error):
            look()

    threading.Thread(target=quietly, daemon=True).start()
    return most


def differing(kept, made) -> list[int]:
    """The numbers of the cells that say something else than what is kept; not those that are marked as different each time."""
    return [
        n
        for n, (old, new) in enumerate(zip(kept, made))
        if old.cell_type == "code"
        and "nbval-ignore-output" not in old.metadata.get("tags", [])
        and said(old) != said(new)
    ]


def said(cell) -> dict[str, str]:
    """All text of a cell's outputs, by kind; pictures and widgets are not compared."""
    found: dict[str, str] = {}
    for output in cell.outputs:
        if output.output_type == "stream":
            found[output.name] = found.get(output.name, "") + output.text
        for kind, text in output.get("data", {}).items():
            if kind.startswith("text/"):
                found[kind] = found.get(kind, "") + text
    found.pop("stderr", None)
    return found


# --- a process of its own ----------------------------------------------------------------------------------------------


def namespace() -> list[str]:
    """The words before a command that give it a network of nothing but itself, where the system permits that."""
    words = ["unshare", "--map-root-user", "--net"]
    if (
        shutil.which("unshare")
        and subprocess.run([*words, "true"], capture_output=True).returncode == 0
    ):
        return words
    return []


def loopback() -> None:
    """Switch on the new namespace's way to itself, over which a kernel is spoken to."""
    import fcntl
    import socket
    import struct

    with socket.socket() as any_socket:
        fcntl.ioctl(
            any_socket, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40)
        )  # SIOCSIFFLAGS: up and running


def run(path: Path, threads: int = 1, seed: int | None = None) -> dict:
    """`execute` in a process and a kernel of its own, with so many threads and no network; `asked` are the hosts that it asked for."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(GUARD)
        log = Path(folder) / "network"
        log.write_text("")
        alone = namespace()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "NETWORK_LOG": str(log),
            "PYTHONHASHSEED": "random" if seed is None else str(seed % 2**32),
        }
        done = subprocess.run(
            [
                *alone,
                sys.executable,
                "-m",
                "tools.notebooks",
                str(path),
                str(seed),
                str(int(bool(alone))),
            ],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            return dict(
                error=(done.stderr.strip().splitlines() or ["it ended without a word"])[-1],
                differs=[],
                asked=[],
            )
        return json.loads(done.stdout.splitlines()[-1]) | dict(
            asked=sorted(set(log.read_text().split()))
        )


def installed() -> float:
    """MB of all that binder/requirements.txt installs, by the files of the packages in this environment."""
    names = [
        line.split("==")[0]
        for line in (ROOT / "binder" / "requirements.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    ]
    sizes = [
        path.stat().st_size
        for name in names
        for file in distribution(name).files or ()
        if (path := Path(file.locate())).is_file()
    ]
    return round(sum(sizes) / 1e6)


# --- what is written ---------------------------------------------------------------------------------------------------


def table(records: dict) -> str:
    """The table of the guide, from the records alone."""
    rows = [
        "| notebook | class minutes | seconds of computing | first picture after, s | peak memory, MB | file, kB |",
        "|---" * 6 + "|",
    ]
    for path in notebooks():
        if (r := records["notebooks"].get(path.stem)) and not r["error"]:
            notebook = nbformat.read(path, as_version=4)
            rows.append(
                f"| [{lesson.title(notebook)}]({path.name}) | {lesson.header_minutes(notebook)} | {r['seconds']:.0f} | {r['first_picture'] or '–'} | {r['memory']} | {r['kilobytes']} |"
            )
    done = [r for r in records["notebooks"].values() if not r["error"]]
    if done:
        rows += [
            "",
            f"Seconds of the processor, of one thread (in 09 with the processes that it starts), on a machine of {records['cores']} cores, network cut, python-docs collected before. All notebooks one after the other: {sum(r['seconds'] for r in done) / 60:.0f} minutes. "
            f"{_peak(records)} What `binder/requirements.txt` installs takes {records['installed'] / 1000:.1f} GB.",
        ]
    return "\n".join(rows)


def _peak(records: dict) -> str:
    """What the notebooks hold, against what a Binder session is promised."""
    most = max(r["memory"] for r in records["notebooks"].values() if not r["error"])
    return f"A Binder session is promised 1 GB and ended at 2 GB: all stay at or below {most} MB."


def main(path: str, seed: str, own_network: str) -> None:
    """What `run` starts."""
    if own_network == "1":
        loopback()
    print(json.dumps(execute(Path(path), None if seed == "None" else int(seed))))


if __name__ == "__main__":
    main(*sys.argv[1:])

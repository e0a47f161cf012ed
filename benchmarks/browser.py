"""The lab in a real browser: slider to picture, Stop, frames a second, what the views cost, memory over time.

    python -m benchmarks.browser               first picture, slider to picture, Stop, rates: medians of three runs (10 minutes)
    python -m benchmarks.browser --old FOLDER  the same, in turns with another version of the package, its figures beside these
    python -m benchmarks.browser 10            memory over 10 minutes of play

FOLDER is a checkout of that version (git worktree add FOLDER COMMIT). Each prints its table and writes it into README.md. JupyterLab and Chromium on this machine; times are taken in the page (from the key or click to the frame after the picture),
medians of several. The rate with views and without is measured in turns, in one kernel with one thread.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import nbformat

from tools import browser
from tools.docs import ROOT, write_table

ROUNDS = int(os.environ.get("ROUNDS", "3"))  # runs of each version, in turns

CELLS = [
    """
import time, torch
import contaccum_lite as cl
torch.set_num_threads(1)
pairs = cl.load_pairs("python-docs", progress=False)
def scripts():
    import ipywidgets
    return sum(len(str(w._esm)) for w in ipywidgets.Widget.widgets.values() if hasattr(w, "_esm")) / 1e6
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
""",
    """
lab = cl.Lab(pairs, updates=1_000_000, every=1_000_000)
lab
""",
]

#: In the page: how long from an event to the frame after this canvas, or this text, has changed. (A canvas is painted within a
#: frame, so the next one comes after it; a text is changed between two, so the one after the next.)
WATCH = """([selector, number, attribute, event]) => { window.took = []; let began = null;
  document.addEventListener(event, () => { began = performance.now(); }, true);
  const node = document.querySelectorAll(selector)[number];
  new MutationObserver(() => { if (began === null) return; const start = began; began = null;
    const done = () => window.took.push(performance.now() - start);
    requestAnimationFrame(attribute ? done : () => requestAnimationFrame(done)); })
    .observe(node, attribute ? { attributes: true, attributeFilter: [attribute] } : { childList: true, subtree: true, characterData: true }); }"""


class Bench:
    def __init__(self, page):
        self.page, self.cells = page, 2

    def value(self, expression: str):
        """What this Python expression is in the notebook's kernel."""
        self.page.page.evaluate(
            """source => { const book = jupyterapp.shell.currentWidget.content;
            book.activeCellIndex = book.widgets.length - 1; book.widgets[book.widgets.length - 1].model.sharedModel.setSource(source); }""",
            expression,
        )
        self.page.page.evaluate("jupyterapp.commands.execute('notebook:run-cell')")
        self.page.idle(120)
        return json.loads(
            self.page.page.evaluate("""() => { const cells = jupyterapp.shell.currentWidget.content.widgets;
            const outputs = cells[cells.length - 1].model.outputs; return outputs.get(outputs.length - 1).data['text/plain']; }""")
        )

    def watch(self, selector, number, attribute, event):
        self.page.page.evaluate(WATCH, [selector, number, attribute, event])

    def took(self, act, times: int = 22) -> float:
        """Median milliseconds of what `watch` watches, over these acts; the first two warm up."""
        for n in range(times):
            act(n)
            self.page.page.wait_for_function(f"window.took.length > {n}")
            self.page.page.wait_for_timeout(250)
        return median(self.page.page.evaluate("window.took")[2:])

    def frames(self, seconds: float) -> float:
        """Pictures of the matrix a second."""
        count = "() => Number(document.querySelector('.ccl-cells').dataset.frame)"
        before = self.page.page.evaluate(count)
        self.page.page.wait_for_timeout(seconds * 1000)
        return (self.page.page.evaluate(count) - before) / seconds


def reload(page) -> None:
    page.page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    page.page.wait_for_timeout(1500)
    page.page.goto(page.page.url.split("?")[0])
    page.ready()
    page.page.wait_for_selector(".ccl-cells")
    page.scroll(1)
    page.page.wait_for_timeout(3000)


#: In the page: run a cell, and how long until its lab's matrix has been painted.
SHOW = """number => new Promise(done => { const began = performance.now();
  const seen = () => { const canvas = document.querySelector('.ccl-cells');
    if (canvas && canvas.dataset.frame !== undefined) requestAnimationFrame(() => done(performance.now() - began)); else requestAnimationFrame(seen); };
  jupyterapp.shell.currentWidget.content.activeCellIndex = number;
  jupyterapp.commands.execute('notebook:run-cell'); seen(); })"""


def start(page) -> float:
    """Open the notebook with a new kernel, and run its cells; seconds until the first lab of the kernel is seen."""
    page.open("bench.ipynb")
    page.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    page.ready()
    page.page.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    page.run_cell(0)
    page.idle(120)
    page.page.wait_for_timeout(1000)
    shown = page.page.evaluate(SHOW, 1)
    page.idle(120)
    return shown / 1000


def times(bench, page, shown: float) -> list[tuple[str, float, str]]:
    """(what, number, its format) of latencies and rates."""
    rows = [
        ("from the start of a lab's cell to its picture, the kernel's first lab", shown, "{:.1f} s")
    ]
    rows.append(("scripts of all widgets on the page", bench.value("scripts()"), "{:.1f} MB"))
    bench.value("(lab.run(10), 0)[-1]")
    for memory in (128, 512):
        bench.value(f"(setattr(lab, 'memory_size', {memory}), lab.run(9), 0)[-1]")
        page.scroll(1)
        page.page.wait_for_timeout(500)
        bench.watch(".ccl-cells", 0, "data-frame", "click")
        kinds = ["score", "softmax weight"]
        matrix = bench.took(lambda n: page.buttons(kinds[n % 2]).first.click())
        reload(page)
        bench.watch(".ccl-cells", 1, "data-frame", "keydown")
        handle = page.page.locator(
            ".widget-slider:has(label:text-is('N_memory')) .noUi-handle"
        ).first
        handle.focus()
        bank = bench.took(
            lambda n: page.page.keyboard.press("ArrowLeft" if n % 2 == 0 else "ArrowRight")
        )
        rows.append(
            (f"switch to another matrix of {memory + 8}², to its picture", matrix, "{:.0f} ms")
        )
        rows.append((f"key on N_memory = {memory}, to the picture of the banks", bank, "{:.0f} ms"))
        reload(page)
    bench.value("(setattr(lab, 'memory_size', 128), lab.run(2), 0)[-1]")
    page.scroll(1)
    page.page.wait_for_timeout(500)
    bench.watch("button.jupyter-button", 0, None, "click")
    stops = []
    for _ in range(8):
        page.buttons("Play").first.click()
        page.page.wait_for_timeout(900)
        page.page.evaluate("window.took = []")
        page.buttons("Stop").first.click()
        page.page.wait_for_function("window.took.length > 0")
        stops.append(page.page.evaluate("window.took[0]"))
        page.page.wait_for_timeout(700)
    rows.append(("Stop, to the button that says Play again", median(stops), "{:.0f} ms"))
    plain, played, rates = [], [], []
    for _ in range(7):
        plain.append(
            bench.value(
                "(lambda other, began: (other.run(100), 100 / (time.perf_counter() - began))[1])"
                "(cl.Lab(pairs, updates=1_000_000, every=1_000_000), time.perf_counter())"
            )
        )
        page.scroll(1)
        page.buttons("Play").first.click()
        page.page.wait_for_timeout(1000)
        one = bench.value("[lab.training.step_count, time.perf_counter()]")
        page.scroll(1)
        rates.append(bench.frames(5))
        two = bench.value("[lab.training.step_count, time.perf_counter()]")
        played.append((two[0] - one[0]) / (two[1] - one[1]))
        page.scroll(1)
        page.buttons("Stop").first.click()
        page.page.wait_for_timeout(700)
    share = median(b / a for a, b in zip(plain[1:], played[1:]))
    rows.append(("pictures of the matrix a second, while it trains", median(rates[1:]), "{:.1f}"))
    rows.append(
        ("updates a second with all views, over those of the same run without", share, "{:.0%}")
    )
    return rows


def in_words(runs: list[list[tuple]]) -> dict[str, str]:
    """{what: the median over runs, in words}."""
    words = {}
    for same in zip(*runs):
        what, _, form = same[0]
        words[what] = form.format(median(number for _, number, _ in same))
    return words


def memory(bench, page, minutes: float) -> list[tuple[str, str]]:
    """Memory of kernel and page after the first minute and after the last."""
    rows = []
    heap = page.page.context.new_cdp_session(page.page)
    used = lambda: (
        heap.send("HeapProfiler.collectGarbage"),
        heap.send("Runtime.getHeapUsage")["usedSize"] / 1e6,
    )[1]
    page.buttons("Play").first.click()
    page.page.wait_for_timeout(60_000)
    before = bench.value("rss()"), used()
    page.scroll(1)
    page.page.wait_for_timeout((minutes - 1) * 60_000)
    after = bench.value("rss()"), used()
    rows.append(
        (
            f"memory of the kernel after 1 and {minutes:g} minutes of play",
            f"{before[0]:.0f} and {after[0]:.0f} MB",
        )
    )
    rows.append(
        (
            f"memory of the page after 1 and {minutes:g} minutes of play",
            f"{before[1]:.0f} and {after[1]:.0f} MB",
        )
    )
    page.scroll(1)
    page.buttons("Stop").first.click()
    return rows


def measure(package: Path, minutes: float = 0) -> list[tuple]:
    """Rows of `times`, or of `memory` over these minutes, with the package in this folder."""
    folder = Path(tempfile.mkdtemp())
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(s.strip()) for s in (*CELLS, "0")]
    )
    notebook.metadata.kernelspec = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    nbformat.write(notebook, folder / "bench.ipynb")
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    with (
        browser.server(folder, PYTHONPATH=path) as address,
        browser.browser(address, width=1366, height=1400) as page,
    ):
        bench = Bench(page)
        shown = start(page)
        page.scroll(1)
        page.page.wait_for_timeout(2000)
        rows = memory(bench, page, minutes) if minutes else times(bench, page, shown)
        if page.errors:
            print(f"{package}: the page complained: {page.errors}", file=sys.stderr)
    return rows


def main(arguments: list[str]) -> None:
    if arguments and arguments[0] != "--old":
        rows = measure(ROOT, float(arguments[0]))
        table = [f"| {what} | {number} |" for what, number in rows]
        text = "\n".join(["| in the browser | |", "|---|---|", *table])
        print(text)
        write_table("browser-memory", text)
        return
    old = Path(arguments[1]).resolve() if arguments else None
    new_runs, old_runs = [], []
    for _ in range(ROUNDS):
        if old:
            old_runs.append(measure(old))
        new_runs.append(measure(ROOT))
    new, before = in_words(new_runs), in_words(old_runs) if old else {}
    head = ["| in the browser | before | now |", "|---|---|---|"]
    table = [f"| {what} | {before[what]} | {now} |" for what, now in new.items() if old]
    if not old:
        head = ["| in the browser | |", "|---|---|"]
        table = [f"| {what} | {now} |" for what, now in new.items()]
    text = "\n".join([*head, *table])
    print(text)
    write_table("browser", text)


if __name__ == "__main__":
    main(sys.argv[1:])

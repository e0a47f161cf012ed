"""The lab in a real browser: slider to picture, Stop, frames a second, what the views cost, memory over time.

    python -m benchmarks.browser               slider to picture, Stop, rates (3 minutes)
    python -m benchmarks.browser 10            memory over 10 minutes of play

Each prints its table and writes it into README.md. JupyterLab and Chromium on this machine; times are taken in the page (from the key or click to the frame after the picture),
medians of several. The rate with views and without is measured in turns, in one kernel with one thread.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import median

import nbformat

from tools import browser
from tools.docs import write_table

CELLS = [
    """
import time, torch
import contaccum_lite as cl
torch.set_num_threads(1)
pairs = cl.load_pairs("python-docs", progress=False)
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
""",
    """
lab = cl.Lab(pairs, updates=1_000_000, every=1_000_000)
lab.run(10)
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


def times(bench, page) -> list[tuple[str, str]]:
    """Latencies and rates."""
    rows = []
    for memory in (128, 256, 512, 1024):
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
            (f"switch to another matrix of {memory + 8}², to its picture", f"{matrix:.0f} ms")
        )
        rows.append((f"key on N_memory = {memory}, to the picture of the banks", f"{bank:.0f} ms"))
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
    rows.append(("Stop, to the button that says Play again", f"{median(stops):.0f} ms"))
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
    rows.append(("pictures of the matrix a second, while it trains", f"{median(rates[1:]):.1f}"))
    rows.append(
        ("updates a second with all views, over those of the same run without", f"{share:.0%}")
    )
    return rows


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


def main(minutes: float = 0) -> None:
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
    with browser.server(folder) as address, browser.browser(address, height=1400) as page:
        bench = Bench(page)
        page.open("bench.ipynb")
        page.run_all()
        page.scroll(1)
        page.page.wait_for_timeout(2000)
        rows = memory(bench, page, minutes) if minutes else times(bench, page)
        assert not page.errors, page.errors
    text = "\n".join(
        ["| in the browser | |", "|---|---|", *(f"| {what} | {found} |" for what, found in rows)]
    )
    print(text)
    write_table("browser-memory" if minutes else "browser", text)


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 0)

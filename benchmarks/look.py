"""Pictures of every notebook as it stands in JupyterLab after Run All, light and dark, at two widths: to be looked at.

    python -m benchmarks.look [names …]    run all notebooks, or those named, in a browser; pictures into build/look
    python -m benchmarks.look lab          the picture of the lab in README.md, notebooks/images/lab.png

One picture for each screen, NAME-THEME-WIDTH-PAGE.png. It says what it met on the way: cells that failed, what the browser's console
complained of, and whatever is wider than its place: code (which then scrolls sideways), pictures, tables.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from PIL import Image

from tools import browser
from tools.docs import ROOT
from tools.notebooks import notebooks

OUT, WIDTHS, HEIGHT, THEMES = ROOT / "build" / "look", (1280, 1920), 1500, ("Light", "Dark")
SETTINGS = {"@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"}}
#: In the page: what is wider than its place, by cell.
WIDE = """() => { const found = [];
  document.querySelectorAll('.jp-Notebook .jp-Cell').forEach((cell, n) => {
    for (const node of cell.querySelectorAll('.cm-scroller, .jp-RenderedHTMLCommon, .jp-OutputArea-output, pre, img'))
      if (node.checkVisibility() && (node.scrollWidth > node.clientWidth + 2 && node.clientWidth > 0 || node.getBoundingClientRect().right > cell.getBoundingClientRect().right + 2)) {
        found.push(`cell ${n}: ${node.className || node.tagName} needs ${node.scrollWidth}, has ${node.clientWidth}`); break; } });
  return found; }"""


def turn(page, number: int) -> bool:
    """Scroll to a screen; whether there is one so far down (asked anew each time: a notebook's height follows theme and width)."""
    return page.page.evaluate(f"""() => {{ const panel = document.querySelector('.jp-WindowedPanel-outer'), to = {number} * (panel.clientHeight - 50);
      const last = [...panel.querySelectorAll('.jp-Cell')].at(-1);          // below the last cell there is only room to scroll
      if (to > last.getBoundingClientRect().bottom - panel.getBoundingClientRect().top + panel.scrollTop) return false;
      panel.scrollTop = to; return true; }}""")


def pictures(stem: str) -> list[Path]:
    """The pictures of a notebook that are there, by their exact names: nothing else is removed."""
    name = re.compile(rf"{stem[:2]}-(light|dark)-\d+-\d+\.png")
    return [path for path in OUT.iterdir() if name.fullmatch(path.name)]


def look(page, stem: str) -> list[str]:
    """Run one notebook and photograph it; what was met on the way."""
    page.errors.clear()
    page.open(f"notebooks/{stem}.ipynb")
    page.run_all(600)
    page.page.wait_for_timeout(2000)
    found = [
        f"cell {n} failed"
        for n in page.page.evaluate(
            "() => [...document.querySelectorAll('.jp-Notebook .jp-Cell')].flatMap((cell, n) => cell.querySelector('.jp-RenderedText[data-mime-type*=\"error\"], .jp-RenderedText[data-mime-type*=\"stderr\"]') ? [n] : [])"
        )
    ]
    for width in WIDTHS:
        page.page.set_viewport_size(dict(width=width, height=HEIGHT))
        for theme in THEMES:
            page.page.evaluate(
                "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})",
                f"JupyterLab {theme}",
            )
            page.page.wait_for_timeout(1500)
            number = -1
            while turn(page, number := number + 1):
                page.page.wait_for_timeout(350)
                page.page.screenshot(
                    path=OUT / f"{stem[:2]}-{theme.lower()}-{width}-{number:02d}.png"
                )
            if theme == THEMES[0]:
                found += [f"at {width}: {what}" for what in page.page.evaluate(WIDE)]
    page.page.evaluate(
        "jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})"
    )
    return found + [f"console: {error[:200]}" for error in page.errors]


LAB = """import torch
import contaccum_lite as cl

torch.set_num_threads(1)
lab = cl.Lab(cl.load_pairs("python-docs", progress=False), memory_size=128, updates=100)
lab.run(60)
lab"""


def photograph_lab() -> None:
    """The first screen of a lab after 60 updates, on a laptop's screen."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LAB)])
    book.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        nbformat.write(book, folder / "lab.ipynb")
        searched = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with (
            browser.server(folder, PYTHONPATH=searched) as address,
            browser.browser(address, 1366, 768) as page,
        ):
            page.open("lab.ipynb")
            page.page.evaluate("jupyterapp.shell.collapseLeft()")
            page.run_all()
            page.page.locator(".ccl-enlarge").first.wait_for()
            lab = page.page.locator(".ccl-first")
            lab.evaluate("lab => lab.scrollIntoView({ block: 'start' })")
            page.page.wait_for_timeout(1500)
            shot = Image.open(io.BytesIO(lab.screenshot())).convert("RGB")
            small = shot.quantize(192, dither=Image.Dither.NONE)
            small.save(ROOT / "notebooks" / "images" / "lab.png", optimize=True)


def main(names: list[str]) -> None:
    if names == ["lab"]:
        return photograph_lab()
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(ROOT / "notebooks", folder / "notebooks")
        for name, value in SETTINGS.items():
            path = folder / "settings" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))
        searched = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with browser.server(
            folder, JUPYTERLAB_SETTINGS_DIR=str(folder / "settings"), PYTHONPATH=searched
        ) as address:
            for path in notebooks(names):
                for old in pictures(path.stem):
                    old.unlink()
                with browser.browser(address, WIDTHS[0], HEIGHT) as page:
                    found = look(page, path.stem)
                print(
                    f"{path.stem}: {len(pictures(path.stem))} pictures; "
                    + ("; ".join(found) or "nothing met"),
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:])

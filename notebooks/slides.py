"""Slides cut from the notebooks' own cells, into build/slides: `python notebooks/slides.py [names …]`

A slide for each section and each picture; exercises' hints and the references stay out. No notebook is changed. Each page stands alone:
arrow keys, space, Home and End move, and the address keeps the place.
"""

import copy
import html
import re
import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
OUT = HERE.parent / "build" / "slides"
LONGEST = 8  # lines of code that a slide has room for
STYLE = """
body { margin: 0; font: 1.35rem/1.4 system-ui, sans-serif; color: #1b1b1b; background: #fff; }
section { box-sizing: border-box; height: 100vh; overflow: auto; padding: 3vh 6vw 8vh; }
section[hidden] { display: none; }
section > * { max-width: 100ch; }
img { max-width: 100%; max-height: 68vh; }
math { font-size: 1.2em; }
pre { font-size: .8em; line-height: 1.35; white-space: pre-wrap; margin: .3em 0; }
table { border-collapse: collapse; font-size: .8em; } td, th { border: 1px solid #999; padding: .2em .6em; }
.prompt, .jp-InputPrompt, .jp-OutputPrompt, .anchor-link, .jp-Cell-inputCollapser, .jp-OutputCollapser { display: none; }
.highlight { background: #f4f4f4; padding: .3em .8em; }
#place { position: fixed; right: 1em; bottom: .5em; color: #5a5a5a; font-size: .9rem; }
"""
MOVE = """
const slides = [...document.querySelectorAll("section")], at = () => Math.min(slides.length, Math.max(1, Number(location.hash.slice(1)) || 1));
const show = () => { slides.forEach((slide, n) => { slide.hidden = n + 1 !== at(); }); document.getElementById("place").textContent = `${at()} / ${slides.length}`; };
const steps = { ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1, Home: -1e6, End: 1e6 };
addEventListener("keydown", (event) => { if (event.key in steps) { location.hash = Math.min(slides.length, Math.max(1, at() + steps[event.key])); event.preventDefault(); } });
addEventListener("hashchange", show);
show();
"""


def cut(notebook):
    """A copy whose cells say what they are on slides: "slide" begins one, "subslide" one below it, "-" goes on, "skip" stays out."""
    made = nbformat.v4.new_notebook(metadata=copy.deepcopy(notebook.metadata))
    for cell in notebook.cells:
        parts = (
            re.split(r"^(?=##+ )", cell.source, flags=re.M)
            if cell.cell_type == "markdown"
            else [cell.source]
        )
        for part in filter(str.strip, parts):
            one = copy.deepcopy(cell)
            one.source, one.metadata["slideshow"] = (
                re.sub(r"<details>.*?</details>", "", part, flags=re.S).strip(),
                {"slide_type": kind(cell, part)},
            )
            one.id = f"slide-{len(made.cells)}"
            if one.cell_type == "code" and len(one.source.splitlines()) > LONGEST:
                one.metadata["tags"] = [*one.metadata.get("tags", []), "code-too-long"]
            made.cells.append(one)
    for cell in made.cells:
        if not cell.source:
            cell.metadata["slideshow"] = {"slide_type": "skip"}
    return made


def kind(cell, source: str) -> str:
    """What a cell, or a part of one, is on slides."""
    if source.startswith("## References") or "set-up" in cell.metadata.get("tags", []):
        return "skip"
    if source.startswith(("# ", "## ")):
        return "slide"
    if source.startswith("### ") or any(
        o.get("data", {}).keys() & {"image/png", "text/markdown"} for o in cell.get("outputs", [])
    ):
        return "subslide"
    if cell.cell_type == "code" and not cell.outputs and re.match(r"(import|from) ", source):
        return "skip"
    return "-"


def groups(notebook) -> list[list]:
    """The cells of each slide."""
    found = []
    for cell in cut(notebook).cells:
        kind = cell.metadata["slideshow"]["slide_type"]
        if kind in ("slide", "subslide"):
            found.append([])
        if kind != "skip" and found:
            found[-1].append(cell)
    return found


def slides(notebook) -> str:
    """The notebook as a page of slides; code that is too long is left out, its output is not."""
    from pages import exporter
    from pygments.formatters import HtmlFormatter
    from traitlets.config import Config

    made = exporter(
        template_name="basic",
        config=Config(
            {"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"code-too-long"}}}
        ),
    )
    bodies = [
        made.from_notebook_node(
            nbformat.v4.new_notebook(cells=cells), resources={"metadata": {"path": str(HERE)}}
        )[0]
        for cells in groups(notebook)
    ]
    name = html.escape(notebook.cells[0].source.splitlines()[0].lstrip("# "))
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{name}</title><style>{STYLE}{HtmlFormatter().get_style_defs('.highlight')}</style>"
        + "".join(
            f"<section aria-label='slide {n}'>{body}</section>" for n, body in enumerate(bodies, 1)
        )
        + f"<div id='place' role='status'></div><script>{MOVE}</script>"
    )


def main(names: list[str]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for path in sorted(HERE.glob("[0-9]*.ipynb")):
        if not names or path.stem.startswith(tuple(names)):
            (OUT / f"{path.stem}.html").write_text(slides(nbformat.read(path, as_version=4)))
            print(path.stem)


if __name__ == "__main__":
    main(sys.argv[1:])

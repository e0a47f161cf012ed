"""Slides cut from the notebooks' own cells, into build/slides: `python notebooks/slides.py [names …] [--reveal URL]`

A slide for each section and each picture; exercises' hints and the references stay out. No notebook is changed. The slides are shown by
reveal.js, which is loaded from unpkg.com unless --reveal gives another address, as of a copy beside them.
"""

import copy
import re
import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
OUT = HERE.parent / "build" / "slides"
REVEAL = "https://unpkg.com/reveal.js@4.6.1"
LONGEST = 8        # lines of code that a slide has room for


def cut(notebook):
    """A copy whose cells say what they are on slides: "slide" begins one, "subslide" one below it, "-" goes on, "skip" stays out."""
    made = nbformat.v4.new_notebook(metadata=copy.deepcopy(notebook.metadata))
    for cell in notebook.cells:
        parts = re.split(r"^(?=##+ )", cell.source, flags=re.M) if cell.cell_type == "markdown" else [cell.source]
        for part in filter(str.strip, parts):
            one = copy.deepcopy(cell)
            one.source, one.metadata["slideshow"] = re.sub(r"<details>.*?</details>", "", part, flags=re.S).strip(), {"slide_type": kind(cell, part)}
            one.pop("id", None)
            if one.cell_type == "code" and len(one.source.splitlines()) > LONGEST:
                one.metadata["tags"] = [*one.metadata.get("tags", []), "code-too-long"]
            made.cells.append(one)
    for cell in made.cells:
        if not cell.source:
            cell.metadata["slideshow"] = {"slide_type": "skip"}
    return made


def kind(cell, source: str) -> str:
    """What a cell, or a part of one, is on slides."""
    if source.startswith("## References"):
        return "skip"
    if source.startswith(("# ", "## ")):
        return "slide"
    if source.startswith("### ") or any("image/png" in o.get("data", {}) for o in cell.get("outputs", [])):
        return "subslide"
    if cell.cell_type == "code" and not cell.outputs and re.match(r"(import|from) ", source):
        return "skip"
    return "-"


def slides(notebook, reveal: str = REVEAL) -> str:
    """The notebook as a page of slides; code that is too long is left out, its output is not."""
    from nbconvert import SlidesExporter
    from traitlets.config import Config

    exporter = SlidesExporter(config=Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"code-too-long"}}}), embed_images=True)
    exporter.reveal_url_prefix, exporter.reveal_scroll, exporter.require_js_url = reveal, True, ""
    return exporter.from_notebook_node(cut(notebook), resources={"metadata": {"path": str(HERE)}})[0]


def main(given: list[str]) -> None:
    reveal = given[given.index("--reveal") + 1] if "--reveal" in given else REVEAL
    names = [word for word in given if word not in ("--reveal", reveal)]
    OUT.mkdir(parents=True, exist_ok=True)
    for path in sorted(HERE.glob("[0-9]*.ipynb")):
        if not names or path.stem.startswith(tuple(names)):
            (OUT / f"{path.stem}.html").write_text(slides(nbformat.read(path, as_version=4), reveal))
            print(OUT / f"{path.stem}.html")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Badges, Binder links and the notebooks' set-up cell, all from one place: `make links REPO=owner/name`

    python -m tools.links [owner/name]      write the name into pyproject.toml and from there everywhere
    python -m tools.links --check           name what was forgotten

The one place is `Repository` in pyproject.toml's project.urls. Run it again after a notebook has been written anew.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
PLACEHOLDER = "OWNER/REPOSITORY"
TAG = "set-up"  # of the notebooks' cell that only Colab runs
PAGES = ("*.md", "CITATION.cff", "pyproject.toml", "docs/*.md", "notebooks/*.md")
_NAME = r"[A-Za-z0-9][\w.-]*/[\w.-]*\w"
#: addresses that always mean this repository, of whatever name
_OURS = re.compile(
    rf"((?:mybinder\.org/v2/gh|colab\.research\.google\.com/github)/)({_NAME})(?=[/)\s?\"])"
)
_LAUNCH = re.compile(r" Or open it in \[Colab\]\([^)]*\) or on \[Binder\]\([^)]*\)\.$", re.M)

SETUP = """\
#@title Set-up: on Colab this fetches the course; elsewhere it does nothing
#@markdown The texts come from the packages installed here, so numbers differ a little from those kept.
#@markdown If Play stands still, run `lab.run(25); lab` in a cell of its own, again and again.
import os, sys

if "google.colab" in sys.modules:
    address, folder = "https://github.com/{name}", "/content/course"
    if not os.path.isdir(folder):
        get_ipython().system(f"git clone -q --depth 1 {{address}} {{folder}}")
    get_ipython().system(f"pip install -q '{{folder}}[widgets]'")
    os.chdir(f"{{folder}}/notebooks")
    sys.path.insert(0, folder)"""


def repository(root: Path = ROOT) -> str:
    """The owner and name in pyproject.toml, as "owner/name"."""
    urls = tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]
    return urls["Repository"].removeprefix("https://github.com/")


def is_setup(cell) -> bool:
    """Whether this is the cell that only Colab runs."""
    return TAG in cell.metadata.get("tags", [])


def without_launch(text: str) -> str:
    """A header without its links to Colab and Binder."""
    return _LAUNCH.sub("", text)


def launch_words(name: str, notebook: str) -> str:
    """The end of a header's Launch line. notebook: its file name."""
    colab = f"https://colab.research.google.com/github/{name}/blob/main/notebooks/{notebook}"
    binder = f"https://mybinder.org/v2/gh/{name}/HEAD?urlpath=lab/tree/notebooks/{notebook}"
    return f" Or open it in [Colab]({colab}) or on [Binder]({binder})."


def setup_cell(name: str):
    """The cell that fetches the course on Colab: folded there and in JupyterLab."""
    cell = nbformat.v4.new_code_cell(SETUP.format(name=name), id=TAG)
    cell.metadata = nbformat.from_dict(
        {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": [TAG]}
    )
    return cell


def prepare(notebook, name: str, file: str) -> None:
    """Give a notebook its links in the header and, behind it, its set-up cell."""
    header = without_launch(notebook.cells[0].source).splitlines()
    header = [
        line + launch_words(name, file) if line.startswith("- **Launch** ") else line
        for line in header
    ]
    notebook.cells[0].source = "\n".join(header)
    others = [cell for cell in notebook.cells[1:] if not is_setup(cell)]
    notebook.cells = [notebook.cells[0], setup_cell(name), *others]


def renamed(text: str, old: str, new: str) -> str:
    """A text with this repository's addresses under its new name; others' addresses stay."""
    text = _OURS.sub(lambda match: match[1] + new, text)
    for name in (old, PLACEHOLDER):
        text = re.sub(rf"(github\.com/){re.escape(name)}(?![\w-])", rf"\g<1>{new}", text)
    return text


def write(name: str, root: Path = ROOT) -> None:
    """Write owner/name everywhere. Raises `ValueError` for a name that is none."""
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"{name!r} is no repository: give owner/name, as in ada/course.")
    old = repository(root)
    for path in _pages(root):
        _write_if_changed(path, renamed(path.read_text(), old, name))
    for path in _notebooks(root):
        notebook = nbformat.read(path, as_version=4)
        prepare(notebook, name, path.name)
        _write_if_changed(path, nbformat.writes(notebook) + "\n")


def forgotten(root: Path = ROOT) -> list[str]:
    """Files whose addresses are not those of the repository, and notebooks without set-up or links."""
    name, found = repository(root), []
    for path in [*_pages(root), *_notebooks(root)]:
        strays = {match[2] for match in _OURS.finditer(path.read_text())} - {name}
        if name != PLACEHOLDER and PLACEHOLDER in path.read_text():
            strays.add(PLACEHOLDER)
        found += [f"{path.relative_to(root)} leads to {stray}" for stray in sorted(strays)]
    for path in _notebooks(root):
        notebook = nbformat.read(path, as_version=4)
        before = nbformat.writes(notebook)
        prepare(notebook, name, path.name)
        if nbformat.writes(notebook) != before:
            found.append(f"{path.relative_to(root)} has another set-up cell or other links")
    return found


def _pages(root: Path) -> list[Path]:
    return sorted({path for pattern in PAGES for path in root.glob(pattern)})


def _notebooks(root: Path) -> list[Path]:
    return sorted((root / "notebooks").glob("[0-9]*.ipynb"))


def _write_if_changed(path: Path, text: str) -> None:
    if path.read_text() != text:
        path.write_text(text)


def main(words: list[str]) -> None:
    if words == ["--check"]:
        sys.exit("\n".join(forgotten()) or None)
    write(words[0] if words and words[0] else repository())


if __name__ == "__main__":
    main(sys.argv[1:])

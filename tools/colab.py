"""What Colab makes of the course: notebooks 00 to 06 on its packages, and what adding the package to them changes.

    python -m tools.colab [names …]      in an environment with Colab's packages (`make colab`): run the notebooks there
    python -m tools.colab --resolve      ask pip what `pip install .[widgets]` changes of Colab's packages; installs nothing

binder/colab-freeze.txt has Colab's versions.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import nbformat
from packaging.requirements import Requirement

from contaccum_lite.lab.hosts import WIDGET_VIEW

ROOT = Path(__file__).parent.parent
FREEZE = ROOT / "binder" / "colab-freeze.txt"
NAMES = ("00", "01", "02", "03", "04", "05", "06")
STACK = ("ipywidgets", "ipykernel", "ipython")  # of these, the very versions
MAY_CHANGE = ("plotly",)
#: last statements of cells that show a widget
_SHOWS = re.compile(
    r"(lab|figure3|race\.race\(\))$|(guess|drift)\(|cl\.(Predict|Card|SearchBox|Slide|MatrixPicture|EquationView|Again|HeatMap)\("
)


def freeze() -> dict[str, str]:
    """{package: version} of Colab."""
    lines = FREEZE.read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def broken_pins(requirements: list[str]) -> list[str]:
    """Requirements that Colab's versions do not meet."""
    pins = freeze()
    broken = []
    for line in requirements:
        requirement = Requirement(line)
        pinned = pins.get(requirement.name)
        if pinned is not None and pinned not in requirement.specifier:
            broken.append(line)
    return broken


def resolve(extra: str = "widgets") -> dict[str, tuple[str, str]]:
    """{package: (Colab's version, pip's)} of what installing this package on Colab would change.

    Raises `RuntimeError` with pip's last lines where there is no way to install it.
    """
    pins = freeze()
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder) / "pins.txt", Path(folder) / "report.json"
        lines = [f"{name}=={pin}\n" for name, pin in pins.items() if name not in MAY_CHANGE]
        constraints.write_text("".join(lines))
        words = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", report]
        command = [sys.executable, "-m", "pip", *words, "-c", constraints, f"{ROOT}[{extra}]"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError("\n".join(done.stderr.splitlines()[-8:]))
        installed = json.loads(report.read_text())["install"]
    chosen = {
        re.sub("[_.]", "-", item["metadata"]["name"].lower()): item["metadata"]["version"]
        for item in installed
    }
    return {
        name: (pin, chosen[name])
        for name, pin in pins.items()
        if name in chosen and chosen[name].split("+")[0] != pin
    }


def shows_widget(source: str) -> bool:
    """Whether a cell ends with something that has a widget."""
    try:
        last = ast.parse(source).body[-1]
    except (SyntaxError, IndexError):
        return False
    return isinstance(last, ast.Expr) and bool(_SHOWS.match(ast.unparse(last)))


def faults(notebook, widget_models) -> list[str]:
    """What went wrong in a notebook that was run: errors, and widgets that no page could show.

    widget_models: ids of the widgets that the kernel has opened.
    """
    found = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        views = []
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"cell {number}: {output.ename}: {output.evalue}")
            if output.get("name") == "stderr" and "Traceback" in output.text:
                found.append(f"cell {number}: {output.text.splitlines()[-1]}")
            if WIDGET_VIEW in output.get("data", {}):
                views.append(output.data[WIDGET_VIEW]["model_id"])
        if shows_widget(cell.source) and not views:
            found.append(f"cell {number} shows no widget: {cell.source.splitlines()[-1]}")
        found += [
            f"cell {number}: a widget was not opened" for v in views if v not in widget_models
        ]
    return found


def run(path: Path) -> list[str]:
    """Run a notebook from the top; its faults."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=300, resources=resources, allow_errors=True)
    client.execute()
    return faults(notebook, client.widget_state)


def main(names: list[str]) -> None:
    if names == ["--resolve"]:
        changes = resolve()
        print(f"On Python {sys.version.split()[0]}, {FREEZE.name} with contaccum-lite[widgets]:")
        for name, (theirs, new) in changes.items():
            print(f"  {name} {theirs} becomes {new}")
        sys.exit(bool(changes.keys() - set(MAY_CHANGE)))
    for name, pin in freeze().items():
        here = version(name).split("+")[0]
        if here == pin:
            continue
        print(f"{name} is {here} here and {pin} on Colab")
        if name in STACK:
            sys.exit(f"{name} must be Colab's: use `make colab`.")
    failed = False
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        if path.stem.startswith(tuple(names or NAMES)):
            found = run(path)
            failed = failed or bool(found)
            print(path.name, "; ".join(found) or "runs, with its widgets", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Run notebooks from the top, keep their outputs, drop what should not be kept: `make notebooks`.

    python notebooks/run.py [names …]     all of them, or those named

Widget state goes (5 MB a notebook), and with it times, paths and anything else that differs from run to run. Pictures that
the notebooks and the README share are drawn here too.
"""

import re
import sys
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient

HERE = Path(__file__).parent
LARGEST = 300_000  # bytes


def clean(notebook) -> None:
    """Leave only what a reader needs: no widget state, no timestamps, no messages of the machine."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")
            ]
            for output in cell.outputs:
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)


def execute(notebook) -> float:
    """Run all cells; the processor's seconds of the kernel and of what it waited for, which other work on the machine does not change."""
    client, made = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": HERE}}), 0
    with client.setup_kernel():
        kernel = psutil.Process(client.km.provisioner.pid)
        for number, cell in enumerate(notebook.cells):
            if "set-up" in cell.metadata.get("tags", []):
                continue  # it does nothing but on Colab
            made += cell.cell_type == "code"
            client.execute_cell(cell, number, execution_count=made)
        return sum(kernel.cpu_times()[:4])


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    seconds = execute(notebook)
    clean(notebook)
    notebook.cells[0].source = re.sub(
        r"(?:SECONDS|\d+ seconds) of computing",
        f"{-(-int(seconds) // 10) * 10} seconds of computing",
        notebook.cells[0].source,
    )
    nbformat.write(notebook, path)
    size = path.stat().st_size
    print(f"{path.name}: {seconds:.0f} s, {size // 1000} kB")
    if size > LARGEST:
        sys.exit(f"{path.name} is larger than {LARGEST // 1000} kB")


def pictures() -> None:
    from contaccum_lite.lab import stills

    (HERE / "images").mkdir(exist_ok=True)
    stills.methods_figure().savefig(HERE / "images" / "methods.png", dpi=110)


if __name__ == "__main__":
    pictures()
    for path in sorted(HERE.glob("[0-9]*.ipynb")):
        if not sys.argv[1:] or path.stem in sys.argv[1:] or path.name in sys.argv[1:]:
            run(path)

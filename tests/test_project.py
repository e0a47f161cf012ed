"""The repository itself: pins, links, notebooks' form."""

import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from tools import regime
from tools.docs import TABLES, pages

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def pins(path):
    return dict(
        line.split("==")
        for line in path.read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )


def test_binder_has_the_pins_of_requirements():
    ours, binder = pins(ROOT / "requirements.txt"), pins(ROOT / "binder" / "requirements.txt")
    assert binder.items() <= ours.items()
    assert ours["torch"] == "2.13.0"
    assert {"pytest", "hypothesis", "nbval"} <= ours.keys() - binder.keys()
    for needed in (
        "torch",
        "jupyterlab",
        "ipykernel",
        "ipywidgets",
        "plotly",
        "faiss-cpu",
        "transformers",
    ):
        assert needed in binder


def test_the_installed_versions_are_the_pins():
    from importlib.metadata import version

    for name in ("torch", "transformers", "faiss-cpu", "plotly"):
        assert version(name).split("+")[0] == pins(ROOT / "requirements.txt")[name]


def test_links_within_the_repository_lead_somewhere():
    folders = (ROOT, ROOT / "docs", ROOT / "docs" / "tables", ROOT / "notebooks")
    texts = {path: path.read_text() for folder in folders for path in folder.glob("*.md")}
    texts |= {
        path: "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
        for path in NOTEBOOKS
    }
    for path, text in texts.items():
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_keeps_pictures_and_no_state(path, docs):
    raw = path.read_text()
    notebook = nbformat.read(path, 4)
    assert "widgets" not in notebook.metadata and len(raw) < 300_000
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert any(c.outputs for c in code)
    assert not any(o.output_type == "error" for c in code for o in c.outputs)
    assert not any(
        o.output_type == "stream" and o.name == "stderr" for c in code for o in c.outputs
    )
    assert "![](" not in raw and str(Path.home()) + "/" not in raw
    for c in code:
        for o in c.outputs:
            if "image/png" in o.get("data", {}):
                assert len(o.metadata["image/png"]["alt"]) > 30


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_text_of_others_is_kept(path, docs):
    """No line of eight words of a passage or a query stands in a notebook's outputs."""
    kept = re.sub(
        r"\s+",
        " ",
        json.dumps(
            [c.get("outputs", []) for c in nbformat.read(path, 4).cells], ensure_ascii=False
        ),
    )
    for pair in (*docs.train, *docs.test):
        for text in (pair.query, pair.passage):
            words = text.split()[:8]
            assert len(words) < 8 or " ".join(words) not in kept, pair.title


def test_regime_tables_are_those_of_the_records():
    known = regime.known()
    assert set(known) == set(regime.plan())
    assert regime.main_table(known) + "\n" == (TABLES / "regime.md").read_text()
    rates = (TABLES / "regime-rates.md").read_text()
    assert f"{regime.sentence(known)}\n\n{regime.rate_table(known)}\n" == rates
    assert all(holds for _, holds in regime.claims(known).values())


def table_faults(texts):
    """Tables that a page shows otherwise than docs/tables has them, or that no page shows."""
    faults, shown = [], set()
    for page, text in texts.items():
        for name, table in re.findall(r"<!-- ([\w-]+) -->\n(.*?)\n<!-- /\1 -->", text, re.DOTALL):
            path = TABLES / f"{name}.md"
            shown.add(path)
            if not path.exists() or path.read_text() != table + "\n":
                faults.append(f"{page}: {name}")
    return faults + sorted(path.name for path in set(TABLES.glob("*.md")) - shown)


def test_pages_show_the_tables_as_they_are_written():
    texts = {page.name: page.read_text() for page in pages()}
    assert table_faults(texts) == []
    texts["costs.md"] = texts["costs.md"].replace("| cpu | 768 | 512 |", "| cpu | 768 | 513 |")
    assert table_faults(texts) == ["costs.md: cost-similarity"]


def test_the_readme_is_short_and_shows_python_at_once():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 170
    assert lines.index("```python") < 45


def test_benchmarks_and_tests_do_not_import_each_other():
    imported = r"^\s*(?:from|import) ({})\b"
    for folder, other in (
        ("benchmarks", r"tests|test_\w+"),
        ("tools", r"tests|test_\w+|benchmarks"),
    ):
        for path in (ROOT / folder).glob("*.py"):
            assert not re.findall(imported.format(other), path.read_text(), re.M), path
    for path in (ROOT / "tests").glob("*.py"):
        assert not re.findall(imported.format("benchmarks"), path.read_text(), re.M), path
    assert re.findall(imported.format("benchmarks"), "    from benchmarks import gate", re.M)


def test_records_come_with_the_package(tmp_path):
    """A wheel has them, with the scripts and styles of the widgets, and works from any folder."""
    import subprocess
    import sys
    import zipfile

    copied = tmp_path / "source"
    shutil.copytree(ROOT / "contaccum_lite", copied / "contaccum_lite")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copied)
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(copied)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    for path in (ROOT / "contaccum_lite").rglob("*"):
        if path.suffix in (".py", ".js", ".css", ".json"):
            assert (tmp_path / "installed" / path.relative_to(ROOT)).is_file(), path
    ledger = subprocess.run(
        [sys.executable, "-m", "contaccum_lite", "ledger"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert ledger.returncode == 0, ledger.stderr
    assert "| claim |" in ledger.stdout

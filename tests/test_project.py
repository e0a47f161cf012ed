"""The repository itself: pins, links, notebooks' form."""

import html
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from contaccum_lite.data.types import Pair
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


def links(text):
    """Where the links of a text lead within the repository."""
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    return [target for target in targets if not target.startswith("http")]


def test_links_within_the_repository_lead_somewhere():
    folders = (ROOT, ROOT / "docs", ROOT / "docs" / "tables", ROOT / "notebooks")
    texts = {path: path.read_text() for folder in folders for path in folder.glob("*.md")}
    texts |= {
        path: "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
        for path in NOTEBOOKS
    }
    found = [(path, target) for path, text in texts.items() for target in links(text)]
    assert len(found) > 50
    for path, target in found:
        folder = (
            TABLES.parent if path.parent == TABLES else path.parent
        )  # a table is shown on a page
        assert (folder / target).exists(), f"{path.name} links to {target}"


def outputs_of(notebook):
    return [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_keeps_outputs_and_no_state(path):
    raw = path.read_text()
    notebook = nbformat.read(path, 4)
    assert "widgets" not in notebook.metadata and len(raw) < 300_000
    outputs = outputs_of(notebook)
    assert outputs
    assert not any(o.output_type == "error" for o in outputs)
    assert not any(o.output_type == "stream" and o.name == "stderr" for o in outputs)
    assert str(Path.home()) + "/" not in raw


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_picture_of_a_notebook_is_described(path):
    outputs = outputs_of(nbformat.read(path, 4))
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert pictures
    for picture in pictures:
        assert len(picture.metadata["image/png"]["alt"]) > 30
    assert "![](" not in path.read_text()


def strings(value):
    """Every text within lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def words_of(outputs):
    """What a reader of these outputs sees, on one line.

    Tags, entities and ends of lines are gone.
    """
    texts = (html.unescape(re.sub(r"<[^>]*>", " ", text)) for text in strings(outputs))
    return " ".join(" ".join(texts).split())


def kept_texts(outputs, pairs):
    """The titles of pairs of which the outputs have the beginning.

    The first eight words of a query or a passage are its beginning.
    """
    shown = words_of(outputs)
    beginnings = ((p.title, t.split()[:8]) for p in pairs for t in (p.query, p.passage))
    return [title for title, words in beginnings if len(words) == 8 and " ".join(words) in shown]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_text_of_others_is_kept(path, docs):
    outputs = [cell.get("outputs", []) for cell in nbformat.read(path, 4).cells]
    assert kept_texts(outputs, [*docs.train, *docs.test]) == []


@pytest.mark.parametrize(
    "shown",
    [
        "Say 'a < b' and \"go on\" to the end",
        "Say 'a < b'\nand \"go on\"\n  to the end",
        "<p>Say <em>&#x27;a &lt; b&#x27;</em> and &quot;go on&quot;<br>to the end</p>",
    ],
    ids=["plain", "wrapped", "html"],
)
def test_a_text_of_others_is_found_however_it_is_written(shown):
    text = "Say 'a < b' and \"go on\" to the end"
    outputs = [[{"data": {"text/html": shown}, "metadata": {}}]]
    assert kept_texts(outputs, [Pair("a", text, "other", "a title")]) == ["a title"]


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

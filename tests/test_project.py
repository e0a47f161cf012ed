"""The repository itself: pins, links, notebooks' form."""

import json
import re
from pathlib import Path

import nbformat
import pytest

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
    texts = {path: path.read_text() for path in ROOT.glob("*.md")}
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
    assert any(c.outputs for c in code) and not any(
        o.output_type == "error" for c in code for o in c.outputs
    )
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


def test_readme_tables_are_those_of_the_records():
    from benchmarks import regime
    import contaccum_lite as cl

    known = {cl.Settings(**r["settings"]): r for r in json.loads(regime.RECORDS.read_text())}
    assert set(known) == set(regime.plan())
    readme = (ROOT / "README.md").read_text()
    assert (
        regime.main_table(known) in readme
        and regime.rate_table(known) in readme
        and regime.sentence(known) in readme
    )
    assert all(holds for _, holds in regime.claims(known).values())

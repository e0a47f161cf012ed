"""Colab: links and set-up cells from one place, and what adding the package changes there."""

import shutil
import subprocess
import sys
import tomllib
import types

import nbformat
import pytest

from tools import colab, links
from test_project import NOTEBOOKS, ROOT


@pytest.fixture
def copied(tmp_path):
    """The repository's pages and notebooks, to write to."""
    for path in [*links._pages(ROOT), *NOTEBOOKS]:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def texts(folder):
    return {path: path.read_text() for path in [*links._pages(folder), *links._notebooks(folder)]}


# --- one place ------------------------------------------------------------------------------------


def test_nothing_was_forgotten():
    assert links.forgotten() == []


def test_a_name_is_written_everywhere(copied):
    links.write("ada/dense-course", copied)
    assert links.repository(copied) == "ada/dense-course"
    assert links.forgotten(copied) == []
    for path, text in texts(copied).items():
        assert links.PLACEHOLDER not in text, path
    readme = (copied / "README.md").read_text()
    assert readme.count("/ada/dense-course/") == 2
    links.write("grace/c", copied)  # from one name to the next
    for path, text in texts(copied).items():
        assert "dense-course" not in text, path
    links.write(links.PLACEHOLDER, copied)
    for path, text in texts(copied).items():
        assert text == (ROOT / path.relative_to(copied)).read_text(), path


def test_links_of_others_stay(copied):
    page = copied / "docs" / "index.md"
    page.write_text(
        "[GradCache](https://github.com/luyug/GradCache) https://github.com/OWNER/REPOSITORY/issues\n"
    )
    links.write("ada/course", copied)
    assert page.read_text() == (
        "[GradCache](https://github.com/luyug/GradCache) https://github.com/ada/course/issues\n"
    )


def test_what_was_forgotten_is_found(copied):
    links.write("ada/course", copied)
    page = copied / "docs" / "lab.md"
    page.write_text("[Binder](https://mybinder.org/v2/gh/bob/other/HEAD)")
    (copied / "docs" / "costs.md").write_text("https://github.com/OWNER/REPOSITORY")
    path = copied / "notebooks" / NOTEBOOKS[3].name
    notebook = nbformat.read(path, 4)
    del notebook.cells[1]
    nbformat.write(notebook, path)
    header = copied / "notebooks" / NOTEBOOKS[4].name
    header.write_text(header.read_text().replace("ada/course/blob", "eve/course/blob"))
    found = links.forgotten(copied)
    assert "docs/lab.md leads to bob/other" in found
    assert f"docs/costs.md leads to {links.PLACEHOLDER}" in found
    assert f"notebooks/{path.name} has another set-up cell or other links" in found
    assert f"notebooks/{header.name} leads to eve/course" in found
    assert len(found) == 5  # the header is named twice
    links.write("ada/course", copied)
    assert links.forgotten(copied) == []


@pytest.mark.parametrize(
    "name", ["ada", "ada/", "/course", "https://github.com/ada/course", "a b/c"]
)
def test_what_is_no_repository_is_refused(name, copied):
    before = texts(copied)
    with pytest.raises(ValueError, match="give owner/name"):
        links.write(name, copied)
    assert texts(copied) == before


def test_make_links_hands_the_name_over():
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    command = ["make", "-n", "links", "REPO=ada/course"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "tools.links ada/course" in done.stdout


# --- the set-up cell ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_has_one_set_up_cell_behind_its_header(path):
    cells = nbformat.read(path, 4).cells
    assert [n for n, cell in enumerate(cells) if links.is_setup(cell)] == [1]
    assert cells[1].outputs == [] and cells[1].execution_count is None
    assert cells[1].source == links.SETUP.format(name=links.repository())
    assert cells[1].metadata["cellView"] == "form"


class Shell:
    """Takes down what the cell asks the shell to do."""

    def __init__(self):
        self.commands = []

    def system(self, command):
        self.commands.append(command)


@pytest.fixture
def source():
    return links.SETUP.format(name="ada/course")


def test_elsewhere_the_set_up_cell_does_nothing(source, capsys, monkeypatch):
    shell = Shell()
    path = list(sys.path)
    exec(source, {"get_ipython": lambda: shell})
    assert shell.commands == []
    assert sys.path == path
    assert capsys.readouterr() == ("", "")


def test_on_colab_the_set_up_cell_fetches_and_installs(source, monkeypatch):
    import os

    shell, entered, path = Shell(), [], list(sys.path)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(os, "chdir", entered.append)
    monkeypatch.setattr(os.path, "isdir", lambda folder: False)
    monkeypatch.setattr(sys, "path", path)
    exec(source, {"get_ipython": lambda: shell})
    assert shell.commands == [
        "git clone -q --depth 1 https://github.com/ada/course /content/course",
        "pip install -q '/content/course[widgets]'",
    ]
    assert entered == ["/content/course/notebooks"]
    assert sys.path[0] == "/content/course"
    monkeypatch.setattr(os.path, "isdir", lambda folder: True)  # after a restart of the kernel
    shell.commands.clear()
    exec(source, {"get_ipython": lambda: shell})
    assert shell.commands == ["pip install -q '/content/course[widgets]'"]


# --- what it changes on Colab ---------------------------------------------------------------------


def requirements(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + project["optional-dependencies"][extra]


def test_the_extra_for_colab_asks_for_nothing_but_another_plotly():
    assert [line.split(">")[0] for line in colab.broken_pins(requirements("widgets"))] == ["plotly"]
    replaced = [line.split(">")[0] for line in colab.broken_pins(requirements("lab"))]
    assert {"ipykernel", "ipywidgets"} <= set(replaced)  # so no one may install that extra there


def test_the_extra_for_colab_has_what_the_lab_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {line.split(">")[0] for line in project["optional-dependencies"]["widgets"]}
    assert names == {"ipywidgets", "anywidget", "plotly", "matplotlib"}


def test_the_freeze_has_the_stack():
    pins = colab.freeze()
    assert (pins["ipywidgets"], pins["ipykernel"], pins["ipython"]) == ("7.7.1", "6.17.1", "7.34.0")
    assert "anywidget" in pins and "torch" in pins


def test_what_pip_would_change_is_read_from_its_report(monkeypatch):
    asked = []

    def run(command, **more):
        asked.append(command)
        report = command[command.index("--report") + 1]
        rows = [
            ("plotly", "7.1.0"),
            ("Jupyter_Client", "7.4.9"),
            ("torch", "2.11.0+cpu"),
            ("numpy", "2.2.0"),
        ]
        install = ",".join(
            f'{{"metadata": {{"name": "{name}", "version": "{version}"}}}}'
            for name, version in rows
        )
        with open(report, "w") as file:
            file.write(f'{{"install": [{install}]}}')
        pins = open(command[command.index("-c") + 1]).read()
        assert "ipykernel==6.17.1" in pins and "plotly" not in pins
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert colab.resolve() == {"plotly": ("5.24.1", "7.1.0"), "numpy": ("2.1.3", "2.2.0")}
    assert "--dry-run" in asked[0] and asked[0][-1].endswith("[widgets]")
    monkeypatch.setattr(
        subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", "no such thing")
    )
    with pytest.raises(RuntimeError, match="no such thing"):
        colab.resolve()


# --- what is looked for in a run ------------------------------------------------------------------


def ran(source, *outputs):
    cell = nbformat.v4.new_code_cell(source)
    cell.outputs = [nbformat.from_dict(output) for output in outputs]
    return nbformat.v4.new_notebook(cells=[cell])


def view(model_id):
    data = {colab.WIDGET_VIEW: {"model_id": model_id}, "text/plain": "a lab"}
    return {"output_type": "execute_result", "data": data, "metadata": {}, "execution_count": 1}


def test_faults_of_a_run():
    assert colab.faults(ran("lab", view("a")), {"a": {}}) == []
    assert colab.faults(ran("lab"), {}) == ["cell 0 shows no widget: lab"]
    assert colab.faults(ran("lab", view("a")), {}) == ["cell 0: a widget was not opened"]
    error = {"output_type": "error", "ename": "NameError", "evalue": "x", "traceback": []}
    assert colab.faults(ran("x", error), {}) == ["cell 0: NameError: x"]
    words = "Traceback (most recent call last):\n  File\nValueError: y"
    printed = {"output_type": "stream", "name": "stderr", "text": words}
    assert colab.faults(ran("1", printed), {}) == ["cell 0: ValueError: y"]


def test_cells_that_show_widgets_are_known():
    shown = {
        path.stem[:2]: [
            n
            for n, cell in enumerate(nbformat.read(path, 4).cells)
            if cell.cell_type == "code" and colab.shows_widget(cell.source)
        ]
        for path in NOTEBOOKS
        if path.stem.startswith(colab.NAMES)
    }
    assert all(shown.values())
    assert len(shown) == 7
    assert not colab.shows_widget("lab = cl.Lab(pairs)")
    assert not colab.shows_widget("")
    assert not colab.shows_widget("%matplotlib inline")
    assert colab.shows_widget("lab.run(3)\nlab")


def test_where_the_stack_is_another_no_notebook_is_run(monkeypatch, capsys):
    monkeypatch.setattr(colab, "version", lambda name: "8.1.9" if name == "ipywidgets" else "0")
    with pytest.raises(SystemExit, match="ipywidgets must be Colab's|ipykernel must be Colab's"):
        colab.main([])

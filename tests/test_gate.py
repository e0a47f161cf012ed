"""The gate: what the course promises, one test a promise.

Each looks for faults, and each finds the fault that is planted here.
"""

import copy
import json
import os
import re
import stat
import sys
from importlib.metadata import packages_distributions

import nbformat
import pytest

import contaccum_lite as cl
from tools import cost, lesson, links, notebooks as gate
from contaccum_lite.evidence.records import COST, read_records
from contaccum_lite.lab.lab import Lab
from test_project import NOTEBOOKS, ROOT, pins

BOOKS = {path.stem: nbformat.read(path, 4) for path in NOTEBOOKS}
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in (ROOT, ROOT / "docs", ROOT / "notebooks")
    for path in folder.glob("*.md")
}
GUIDE = TEXTS["notebooks/INSTRUCTOR.md"]
PAGES = "\n".join(TEXTS[f"{name}.md"] for name in ("README", "docs/evidence", "docs/costs"))
FOUND = gate.known()
WIDEST = 106  # characters of a code line


def each(faults):
    """All notebooks' faults, with their names."""
    return [f"{name}: {fault}" for name, book in BOOKS.items() for fault in faults(book)]


def changed(name, cell, old, new, output=False):
    """A copy of a notebook with a fault planted in a cell's source or outputs."""
    book = copy.deepcopy(next(b for n, b in BOOKS.items() if n.startswith(name)))
    where = [
        c
        for c in book.cells
        if old in (json.dumps(c.get("outputs", ""), ensure_ascii=False) if output else c.source)
    ]
    assert where, "the fault could not be planted"
    if output:
        where[cell].outputs = nbformat.from_dict(
            json.loads(json.dumps(where[cell].outputs, ensure_ascii=False).replace(old, new))
        )
    else:
        where[cell].source = where[cell].source.replace(old, new)
    return book


# --- form -----------------------------------------------------------------------------------------


def header(book):
    """A title and five lines, each beginning with its own words."""
    lines = book.cells[0].source.splitlines()
    found = [] if re.fullmatch(r"# \d\d · \S.*", lines[0]) else [f"its title is {lines[0]!r}"]
    found += [
        f"the header has no line {words!r}"
        for words in lesson.HEADER
        if sum(line.startswith(f"- **{words}** ") for line in lines) != 1
    ]
    return found + ([] if len(lines) == 7 else [f"the header has {len(lines) - 2} lines"])


def ending(book):
    """What we saw, what is not true in general, references."""
    text = "\n".join(c.source for c in book.cells if c.cell_type == "markdown")
    at = [
        text.find(mark)
        for mark in ("## What we saw", "**What is not true in general.**", "## References\n\n- ")
    ]
    return [] if -1 < at[0] < at[1] < at[2] else [f"its ending is {at}"]


def exercises(book):
    """Each ★ has minutes, a blank with its check, two hints and a solution."""
    found = []
    for n, cell in enumerate(book.cells):
        for stars, number, minutes in re.findall(
            r"^### (★+) (\d\d\.\d|spine\.\d)[^\n]*?(\(\d+ minutes\))?$", cell.source, re.M
        ):
            blank, after = book.cells[n + 1].source, book.cells[n + 2].source
            if not minutes:
                found.append(f"{number} says no minutes")
            empty = "raise NotImplementedError" in blank or "= ...  " in blank  # or a faded example
            if not empty or f'cl.check("{number}"' not in blank:
                found.append(f"{number} has no blank with its check")
            if (
                after.count("<summary>Hint") != 2
                or after.count("<summary>Solution</summary>\n\n```python") != 1
                or after.count("<details>") != after.count("</details>")
            ):
                found.append(f"{number} has not two hints and a solution")
    return found


def pictures(book):
    """Every picture has words: outputs in their metadata, text in its link."""
    found = [
        f"cell {n} has a picture without words"
        for n, c in enumerate(book.cells)
        for o in c.get("outputs", [])
        if "image/png" in o.get("data", {})
        and len(o.metadata.get("image/png", {}).get("alt", "")) < 30
    ]
    return found + [
        f"cell {n} links a picture without words"
        for n, c in enumerate(book.cells)
        if c.cell_type == "markdown" and re.search(r"!\[.{0,29}\]\(", c.source)
    ]


def cells(book):
    """Short cells, and lines that a screen shows whole.

    Of the cells whose code is shown, half have at most six lines. The screen has 1280 pixels, with
    JupyterLab's list of files on it.
    """
    shown = [
        c.source
        for c in book.cells
        if c.cell_type == "code" and not c.metadata.get("jupyter", {}).get("source_hidden")
    ]
    lines = sorted(len([line for line in source.splitlines() if line.strip()]) for source in shown)
    found = [
        f"cell {n} has a line of {len(line)} characters: {line.strip()[:40]}…"
        for n, c in enumerate(book.cells)
        if c.cell_type == "code"
        for line in c.source.splitlines()
        if len(line) > WIDEST
    ]
    return found + (
        []
        if lines[len(lines) // 2] <= 6 and lines[-1] <= 20
        else [f"code cells have {lines} lines"]
    )


def folded(book):
    """A prediction's code is folded, and its first line gives nothing away.

    JupyterLab still shows that line.
    """
    found = [
        f"cell {n}'s first line is {c.source.splitlines()[0]!r}"
        for n, c in enumerate(book.cells)
        if c.metadata.get("jupyter", {}).get("source_hidden")
        and not c.source.startswith("# Predict")
        and not links.is_setup(c)
    ]
    return found + [
        f"cell {n} predicts in plain sight"
        for n, c in enumerate(book.cells)
        if c.cell_type == "code"
        and re.search(r'cl\.Predict\("', c.source)
        and not c.metadata.get("jupyter", {}).get("source_hidden")
    ]


def leftovers(book):
    """Nothing of the machine, no widget state, no error, no warning."""
    raw = json.dumps([c.get("outputs", []) for c in book.cells])
    found = [
        f"a path, {match}"
        for match in re.findall(
            r"(?:/home/|/root/|/Users/|/tmp/|/opt/|\b[A-Z]:\\\\Users)[^\s\"\\]*", raw
        )
    ]
    found += ["widget state"] * (
        "widgets" in book.metadata or "application/vnd.jupyter.widget-view+json" in raw
    )
    return found + [
        f"{o.output_type} in cell {n}"
        for n, c in enumerate(book.cells)
        for o in c.get("outputs", [])
        if o.output_type == "error" or o.get("name") == "stderr"
    ]


@pytest.mark.parametrize(
    "faults, plants",
    [
        (
            header,
            [
                ("01", 0, "**Launch**", "**Start**"),
                ("02", 0, "# 02 · ", "## 02 "),
                ("03", 0, "- **You need**", "- It is long.\n- **You need**"),
            ],
        ),
        (
            ending,
            [
                ("00", 0, "**What is not true in general.**", "So it is."),
                ("04", 0, "## References", "## Literature"),
            ],
        ),
        (
            exercises,
            [
                ("01", 0, "<summary>Hint 2</summary>", "<summary>More</summary>"),
                ("02", 0, "(4 minutes)", ""),
                ("03", 0, 'cl.check("spine.6"', 'cl.check("spine.5"'),
                ("03", 0, "...  ", "1"),
            ],
        ),
        (
            pictures,
            [
                ("00", 0, '"alt": "', '"none": "', True),
                (
                    "00",
                    0,
                    "(images/methods.png)",
                    "(images/methods.png) ![a matrix](images/methods.png)",
                ),
            ],
        ),
        (
            cells,
            [
                ("08", 0, "theirs = {", "a = 1\n" * 30 + "theirs = {"),
                ("08", 0, "theirs = {", "theirs = {" + 100 * " "),
            ],
        ),
        (
            folded,
            [
                ("05", 0, "# Predict before you unfold this: the code knows the answer.\n", ""),
                ("05", 0, "def tried(line):", 'cl.Predict("a")'),
            ],
        ),
        (
            leftovers,
            [
                ("03", 0, "after write", "/home/me/after write", True),
                ("03", 0, '"stdout"', '"stderr"', True),
            ],
        ),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_form_of_the_notebooks(faults, plants):
    assert each(faults) == []
    for plant in plants:
        assert faults(changed(*plant)), plant


# --- links ----------------------------------------------------------------------------------------


def anchors(text):
    """The addresses of a text's headings, as GitHub makes them, and of its named places."""
    headings = {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.M)
    }
    return headings | set(re.findall(r'<a id="([^"]+)">', text))


def broken(name, text):
    """Links within the repository, to a file or a heading, that lead nowhere."""
    found, folder = [], (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, heading = target.partition("#")
        if target.startswith("http"):
            continue
        path = folder / file if file else ROOT / name
        if not path.exists():
            found.append(target)
        elif heading and heading not in anchors(text if path == ROOT / name else path.read_text()):
            found.append(target)
    return found


def test_links_lead_somewhere():
    assert {name: bad for name, text in TEXTS.items() if (bad := broken(name, text))} == {}
    assert broken(
        "notebooks/INSTRUCTOR.md",
        "[a](NOTATION.md) [b](NOWHERE.md) [c](#here) [d](http://x) [e](NOTATION.md#nowhere)\n# here",
    ) == ["NOWHERE.md", "NOTATION.md#nowhere"]


# --- times, memory, sizes -------------------------------------------------------------------------


def times(book, record):
    """Seconds of computing or class minutes that are far off what the header promises.

    Seconds: measured above 1.3 times of it, or below a third. Minutes: a third off the plan, which is
    an estimate.
    """
    said, class_time = lesson.header_seconds(book), lesson.header_minutes(book)
    planned = sum(map(lesson.minutes, lesson.sections(book, record.get("cells") or ())))
    found = (
        [f"{record['seconds']} s measured, {said} promised"]
        if record["seconds"]
        and not record["seconds"] / 1.3 <= said <= max(60, 3 * record["seconds"] + 10)
        else []
    )
    return found + (
        [f"{planned:.0f} minutes planned, {class_time} promised"]
        if not planned / 1.34 <= class_time <= 1.34 * planned
        else []
    )


def limits(record, name=""):
    """What Binder guarantees, and what a class waits for."""
    waits = not name or name.startswith(
        "00"
    )  # a class waits for the first notebook; in others a picture may come after a training
    return [
        f"{what} is {record[what]}, the limit is {most}"
        for what, most in gate.LIMITS.items()
        if (record.get(what) or 0) > most and (waits or what != "first_picture")
    ]


def measured():
    """The notebooks that the gate has measured, with their records."""
    return {
        name: (book, FOUND["notebooks"][name])
        for name, book in BOOKS.items()
        if not FOUND["notebooks"].get(name, {"error": True})["error"]
    }


def test_times_in_headers_are_those_measured():
    assert len(measured()) >= 8
    assert [
        f"{name}: {fault}"
        for name, (book, record) in measured().items()
        for fault in times(book, record)
    ] == []
    book, record = measured()["02_accumulate"]
    assert times(book, record | {"seconds": 1.4 * lesson.header_seconds(book)})
    assert times(changed("02", 0, "60 minutes", "15 minutes"), record)
    assert times(changed("02", 0, "60 minutes", "99 minutes"), record)


def test_memory_and_size_are_within_the_limits():
    assert [
        f"{name}: {fault}"
        for name, (_, record) in measured().items()
        for fault in limits(record, name)
    ] + limits(FOUND) == []
    assert [r["asked"] for _, r in measured().values()] == [[]] * len(
        measured()
    )  # nobody asked for a network
    assert len(limits({"memory": 1001, "first_picture": 16}, "09_take_home")) == 1
    assert (
        len(limits({"memory": 1001, "first_picture": 16, "kilobytes": 301, "installed": 2501})) == 4
    )


def stale_tables(text):
    """Marks of the guide whose table is not what the records say."""
    wanted = {"gate": gate.table(FOUND)} | {
        f"plan {name[:2]}": lesson.plan_table(book, FOUND["notebooks"].get(name))
        for name, book in BOOKS.items()
    }
    return [
        mark
        for mark, table in wanted.items()
        if f"<!-- {mark} -->\n{table}\n<!-- /{mark} -->" not in text
    ]


def test_the_guide_has_what_the_records_say():
    known = {f"plan {name[:2]}" for name in BOOKS} - {f"plan {name[:2]}" for name in measured()}
    assert set(stale_tables(GUIDE)) <= known | ({"gate"} if known else set()), (
        "run python -m benchmarks.gate --tables"
    )
    assert stale_tables(re.sub(r"(In all )\d+", r"\g<1>7", GUIDE)) != stale_tables(GUIDE)


def unguided(text):
    """What a teacher needs and the guide lacks.

    For each notebook what to say, to ask and to cut, and what to answer; versions of the course.
    """
    parts = {
        name[:2]: (re.findall(rf"^## {name[:2]} · .*?(?=^## |\Z)", text, re.M | re.S) or [""])[0]
        for name in BOOKS
    }
    found = [
        f"{number} has no {words!r}"
        for number, part in parts.items()
        for words in ("Say.", "Ask.", "Cut.", "If they say …")
        if f"**{words}" not in part
    ]
    return found + [
        f"no course of {length}"
        for length in ("One hour", "Half a day", "Two weeks")
        if f"**{length}**" not in text
    ]


def test_the_guide_has_what_a_teacher_needs():
    assert unguided(GUIDE) == []
    for planted, fault in (
        (GUIDE.replace("**Ask.", "**Tell.", 1), "00 has no 'Ask.'"),
        (GUIDE.replace("## 09 · ", "## 9 · "), "09 has no 'Say.'"),
        (GUIDE.replace("**Half a day**", "**A day**"), "no course of Half a day"),
    ):
        assert fault in unguided(planted), fault


# --- share lines ----------------------------------------------------------------------------------


def lines_of(text):
    """Everything in backticks or quotes that looks like a share line."""
    return re.findall(r"[`\"]((?:\w+=[^`\"\s&]*)(?:&\w+=[^`\"\s&]*)*)[`\"]", text)


def unreadable(lines, toy):
    """Share lines that a lab cannot load."""
    lab, found = Lab(toy, updates=1, dim=8), []
    for line in dict.fromkeys(lines):
        if line.split("=")[0] in {
            *cl.Settings.__dataclass_fields__,
            "then",
            "hide",
        } and not re.search(r"[{…]|=$", line):
            try:
                lab.load(line)
            except ValueError as error:
                found.append(f"{line}: {error}")
    return found


def test_share_lines_can_be_loaded(toy):
    texts = [*TEXTS.values(), *("\n".join(c.source for c in book.cells) for book in BOOKS.values())]
    lines = [line for text in texts for line in lines_of(text)]
    table = GUIDE.split("| experiment | line |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) >= 20
    assert all(len(lines_of(row)) == 1 for row in table)
    assert len(lines) > 40
    assert unreadable(lines, toy) == []
    assert (
        unreadable(
            lines_of(
                "`method=contacum&updates=3` and `memory_size=64&then=3:color:4`, `hide=nothing`"
            ),
            toy,
        )
        != []
        != unreadable(["seed=x"], toy)
    )
    assert (
        len(
            unreadable(
                [
                    "method=contacum",
                    "memory_size=64&then=3:color:4",
                    "seed=3&hide=nothing",
                    "seed=3",
                ],
                toy,
            )
        )
        == 3
    )


# --- README and docs ------------------------------------------------------------------------------


def page_faults(text):
    """Figures of the README and the docs that no record has.

    Records are also the notebooks' kept outputs.
    """
    found = [
        mark
        for mark, table in cost.tables(read_records(COST)).items()
        if f"<!-- {mark} -->\n{table}\n<!-- /{mark} -->" not in text
    ]
    for name, book in BOOKS.items():
        row = re.search(rf"\[{name[:2]} [^\]]*\]\(notebooks/{name}\.ipynb\) \|.*\| (\d+) \|", text)
        if not row or int(row[1]) != lesson.header_minutes(book):
            found.append(f"{name}: minutes")
    saw = "".join(
        o.data["text/markdown"]
        for c in BOOKS["04_imbalance"].cells
        for o in c.get("outputs", [])
        if "text/markdown" in o.get("data", {})
    )
    ratio = {
        k: (float(r), float(t))
        for k, r, t in re.findall(r"- (.+?): ratio ([\d.]+), MRR@10 ([\d.]+)%", saw)
    }
    before, after = ratio["pre-batch"], ratio["pre-batch, common part taken away"]
    said = (
        f"brings the ratio from {before[0]:.0f} back to {after[0]} and MRR@10 from {before[1]}% to {after[1]}% "
        f"(150 updates, seed 0; ContAccum {ratio['ContAccum'][1]}%)"
    )
    return found + (
        [] if said in " ".join(text.split()) else ["what taking the common part away does"]
    )


def test_figures_of_the_pages_are_those_of_the_records():
    assert page_faults(PAGES) == []
    for old, new in (
        ("| 50 |\n| [02", "| 44 |\n| [02"),
        ("to 0.84 and", "to 0.94 and"),
        ("| cpu | 768 | 512 |", "| cpu | 768 | 513 |"),
    ):
        assert old in PAGES, old
        assert page_faults(PAGES.replace(old, new)), old


# --- Binder ---------------------------------------------------------------------------------------


def binder_faults(folder):
    """What would keep repo2docker from building, or a class from starting."""
    have, found = pins(folder / "requirements.txt"), []
    found += [
        f"{name} is not pinned"
        for name in ("ipykernel", "jupyterlab", "torch", "anywidget", "ipywidgets", "plotly")
        if name not in have
    ]
    found += [
        f"{name} may not be run"
        for name in ("start", "postBuild")
        if not (folder / name).stat().st_mode & stat.S_IXUSR
        or not (folder / name).read_text().startswith("#!")
    ]
    found += ["no Python that repo2docker knows"] * (
        not re.fullmatch(r"python-3\.1[1-4]\n?", (folder / "runtime.txt").read_text())
    )
    lines = (folder / "requirements.txt").read_text().splitlines()
    found += [
        f"{line!r} is no pin"
        for line in lines
        if line
        and not re.match(
            r"#|--extra-index-url https://download\.pytorch\.org/whl/cpu$|[\w.\-]+==[\w.]+$", line
        )
    ]
    return found + ["start does not hand over"] * (
        'exec "$@"' not in (folder / "start").read_text()
    )


def not_on_binder(book, have):
    """Modules that a notebook imports and that Binder does not install."""
    code = "\n".join(c.source for c in book.cells if c.cell_type == "code")
    named = {
        m
        for line in re.findall(r"^\s*import (.+)$", code, re.M)
        for m in re.findall(r"[\w.]+", re.sub(r" as \w+", "", line))
    }
    modules = (
        {m.split(".")[0] for m in named | set(re.findall(r"^\s*from ([\w.]+) import", code, re.M))}
        - set(sys.stdlib_module_names)
        - {"contaccum_lite"}
    )
    return sorted(
        m
        for m in modules
        if not {re.sub("[._]", "-", d.lower()) for d in packages_distributions().get(m, [m])}
        & {re.sub("[._]", "-", h) for h in have}
    )


def test_what_notebooks_import_is_on_binder():
    have = pins(ROOT / "binder" / "requirements.txt")
    assert {
        name: missing for name, book in BOOKS.items() if (missing := not_on_binder(book, have))
    } == {}
    assert not_on_binder(
        changed("00", 0, "import torch", "import torch, pytest as p\nfrom nowhere.x import y"), have
    ) == ["nowhere", "pytest"]


def test_binder_can_build(tmp_path):
    assert binder_faults(ROOT / "binder") == []
    for name in ("requirements.txt", "start", "postBuild", "runtime.txt"):
        (tmp_path / name).write_text((ROOT / "binder" / name).read_text())
    assert len(binder_faults(tmp_path)) == 2  # a copy may not be run
    for name in ("start", "postBuild"):
        os.chmod(tmp_path / name, 0o755)
    (tmp_path / "runtime.txt").write_text("python-2.7")
    (tmp_path / "requirements.txt").write_text("torch>=2\n-e ..\n")
    assert len(binder_faults(tmp_path)) == 9


# --- run, alone and cut off -----------------------------------------------------------------------


def test_a_notebook_runs_without_a_network(tmp_path):
    """The fastest one, by the sweep's own means; and one that asks for a host is caught."""
    path = ROOT / "notebooks" / "06_ledger.ipynb"
    found = gate.run(path, threads=2, seed=11)
    assert (found["error"], found["asked"], found["differs"]) == ("", [], [])
    assert found["memory"] < gate.LIMITS["memory"]
    asks = [
        "import contaccum_lite as cl",
        "import urllib.request\ntry:\n    urllib.request.urlopen('http://example.org')\nexcept OSError:\n    print('none')",
        "import os\nprint(os.environ['OMP_NUM_THREADS'])",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in asks])
    book.cells[2].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    book.cells[1].outputs = [nbformat.v4.new_output("stream", text="none\n")]
    nbformat.write(book, tmp_path / "asks.ipynb")
    found = gate.run(tmp_path / "asks.ipynb", threads=2, seed=11)
    assert (found["asked"], found["differs"]) == (["example.org"], [2])
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]),
        tmp_path / "stops.ipynb",
    )
    assert "ZeroDivisionError" in gate.run(tmp_path / "stops.ipynb")["error"]

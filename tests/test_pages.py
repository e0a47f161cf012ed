"""The pages for where no kernel runs.

The recorded lab in one file, from the disk, with sliders that move; the course as HTML.
"""

import base64
import copy
import gzip
import importlib.util
import json
import re
import sys

import nbformat
import pytest

from tools import browser
import contaccum_lite as cl
from test_project import ROOT


def script(name):
    """A script of the notebooks' folder, as a module."""
    sys.path.insert(0, str(ROOT / "notebooks"))  # as it is where the script itself is run
    spec = importlib.util.spec_from_file_location(name, ROOT / "notebooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages, slides = script("pages"), script("slides")
HOSTILE = "</script><img src=x onerror=alert(1)> $x$ \x1b[31m"


@pytest.fixture(scope="module")
def harmful(toy):
    """Toy pairs whose names mean harm."""
    return cl.data.Pairs(
        toy.name, [pair._replace(title=HOSTILE) for pair in toy.train], toy.test, toy.passages
    )


@pytest.fixture(scope="module")
def recorded(harmful):
    return pages.record(harmful, updates=10, dim=8, accumulation_steps=2, memory_size=32)


def unpacked(page, name):
    return gzip.decompress(base64.b64decode(re.search(rf'id="{name}">([^<]*)<', page)[1])).decode()


@pytest.fixture
def lab(harmful):
    """A lab as it was when the fifth update was recorded."""
    lab = cl.Lab(harmful, updates=10, dim=8, accumulation_steps=2, memory_size=32, every=2)
    lab.run(5)
    return lab


def test_four_methods_are_recorded(recorded):
    names = [method["name"] for method in recorded["methods"]]
    assert names == ["DPR", "GradAccum", "pre-batch", "ContAccum"]


def test_frames_are_those_of_the_runs(recorded, lab):
    frame = next(f for f in recorded["methods"][3]["frames"] if f["update"] == 5)
    view = lab.views
    assert frame["says"] == dict(
        matrix=view.matrix.sentence, banks=view.banks.sentence, curves=view.curves.sentence
    )
    assert base64.b64decode(frame["cells"]["softmax weight"]) == view.matrix.grid.cells
    assert frame["shape"] == [40, 40]
    assert frame["local"] == 8
    assert frame["banks"]["passage"]["ages"] == view.banks.data()["passage"]["ages"]
    assert base64.b64decode(frame["banks"]["query"]["cells"]) == view.banks.grids["query"].cells


def test_curves_are_those_of_the_runs(recorded, lab):
    curve = recorded["methods"][3]["curves"]
    assert curve["loss"][1][:5] == [round(u.loss, 4) for u in lab.training.history]
    assert len(curve["ratio"][0]) == 10
    assert curve["mrr"][0][-1] == 10


def test_of_a_long_run_some_updates_are_recorded():
    assert pages.moments(3) == [1, 2, 3]
    assert pages.moments(150)[-1] == 150
    assert len(pages.moments(150)) == 16


@pytest.fixture(scope="module")
def page_of_lab(recorded):
    return pages.lab_page(recorded)


def test_the_page_is_one_small_file(page_of_lab):
    assert len(page_of_lab.encode()) < pages.LARGEST
    written = re.sub(r'<script type="text/plain".*?</script>', "", page_of_lab, flags=re.S)
    assert not re.search(r"(?:src|href)=[\"']?(?!data:)", written)
    assert "plotly.js v" in unpacked(page_of_lab, "plotly")[:300]


def test_the_page_has_the_frames(recorded, page_of_lab):
    packed = json.loads(unpacked(page_of_lab, "recorded"))
    assert packed["methods"][0]["frames"] == recorded["methods"][0]["frames"]


def test_names_on_the_page_are_packed_and_tame(page_of_lab):
    assert "onerror" not in page_of_lab
    assert "onerror" in unpacked(page_of_lab, "recorded")
    assert "\x1b" not in unpacked(page_of_lab, "recorded")


def test_the_page_has_no_text_of_others(toy, page_of_lab):
    packed = unpacked(page_of_lab, "recorded")
    texts = {pair.query for pair in toy.train} | {pair.passage for pair in toy.train}
    assert [text for text in texts if text in packed] == []


def test_a_page_that_is_too_large_is_refused(recorded, monkeypatch):
    monkeypatch.setattr(pages, "LARGEST", 1000)
    with pytest.raises(ValueError, match="record fewer frames"):
        pages.lab_page(recorded)


def test_the_course_links_to_itself(tmp_path):
    titles = pages.course(tmp_path, "0[01]_*.ipynb")
    assert len(titles) == len(list(tmp_path.glob("*.html"))) == 2
    assert titles[0] == (
        "00_start_here",
        "00 · Start here",
    )
    first = (tmp_path / "00_start_here.html").read_text()
    assert first.count("data:image/png;base64") >= 2
    assert "images/methods.png" not in first
    assert "require.min.js" not in first
    assert 'href="NOTATION.html#' in first and 'NOTATION.md"' not in first


def test_the_first_page_leads_to_all_others(tmp_path):
    titles = [("00_start_here", "00 · Start here"), ("x", "<b>")]
    documents = pages.documents(tmp_path)
    page = pages.face(titles, documents)
    assert 'href="00_start_here.html"' in page and "race four methods" in page
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert "ContAccum, dual bank" in page and "before fine-tuning" in page
    assert all(f'href="{to}"' in page and (tmp_path / to).is_file() for to, _ in documents)
    assert "@" not in re.sub(r"@\d+|<style>.*?</style>", "", page, flags=re.S)
    assert not re.search(r"<(script|link|img|iframe)[^>]*https?:", page)  # no network


def test_links_of_documents_lead_to_pages_or_are_words(tmp_path):
    pages.documents(tmp_path)
    known = set(pages.all_pages().values()) | {"index.html"}
    for path in tmp_path.glob("*.html"):
        for target in re.findall(r'<a href="([^"#]+)', path.read_text()):
            assert target in known or target.startswith("http"), (path.name, target)
    followed = pages.followed(
        '<a href="no.md">a</a> <a href="../docs/lab.md#x">b</a>', {"lab.md": "L"}
    )
    assert followed == 'a <a href="L#x">b</a>'


@pytest.mark.skipif(
    browser.CHROMIUM is None,
    reason="no Chromium found: install the package chromium, or name it in $CHROMIUM",
)
def test_formulas_are_set_without_a_network(tmp_path):
    pages.course(tmp_path, "04_*.ipynb")
    book = nbformat.read(ROOT / "notebooks" / "04_imbalance.ipynb", 4)
    (tmp_path / "slides.html").write_text(slides.slides(book))
    with browser.browser("") as page:
        asked = []
        page.page.on("request", lambda request: asked.append(request.url))
        for name in ("04_imbalance", "slides"):
            page.page.goto((tmp_path / f"{name}.html").as_uri())
            formulas = page.page.locator("math")
            assert formulas.count() >= 5
            assert "∂" in "".join(formulas.all_text_contents())
            page.page.wait_for_timeout(300)
            assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
            assert page.errors == []
            assert not re.search(
                r"\\(frac|sum|partial|tau)", page.page.locator("body").inner_text()
            )
        page.page.goto((tmp_path / "04_imbalance.html").as_uri())
        assert (
            page.page.locator("math[display=block]").first.bounding_box()["height"] > 25
        )  # a fraction is two lines high


@pytest.fixture
def book():
    return nbformat.read(ROOT / "notebooks" / "01_contrast.ipynb", 4)


def test_slides_change_no_notebook(book):
    before = copy.deepcopy(book)
    slides.groups(book)
    slides.slides(book)
    assert book == before


def test_slides_begin_with_the_headings(book):
    texts = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    headings = [line for text in texts for line in text.splitlines() if re.match("#+ ", line)]
    firsts = [cells[0] for cells in slides.groups(book)]
    lines = [cell.source.splitlines()[0] for cell in firsts if cell.cell_type == "markdown"]
    begun = [line for line in lines if line.startswith("#")]
    assert begun
    assert begun == [line for line in headings if line != "## References"]


def test_slides_have_the_pictures_and_no_solutions(book):
    page = slides.slides(book)
    assert page.count("<section") == len(slides.groups(book)) > 10
    assert "<details>" not in page
    assert "1807.03748" not in page
    pictures = [
        out
        for cell in book.cells
        for out in cell.get("outputs", [])
        if "image/png" in out.get("data", {})
    ]
    assert page.count("data:image/png") >= len(pictures) >= 4


@pytest.mark.skipif(
    browser.CHROMIUM is None,
    reason="no Chromium found: install the package chromium, or name it in $CHROMIUM",
)
def test_the_recorded_lab_plays_from_the_disk(recorded, tmp_path):
    (tmp_path / "lab.html").write_text(pages.lab_page(recorded))
    with browser.browser("") as page:
        asked = []
        page.page.on("request", lambda request: asked.append(request.url))
        page.page.goto((tmp_path / "lab.html").as_uri())
        page.page.wait_for_selector("body[data-ready=yes]")
        said = lambda: page.page.locator("[role=status]").all_text_contents()
        look = lambda name: page.page.locator(f"#{name}").evaluate("plot => plot.innerHTML")
        first, matrix, line = said(), look("matrix"), look("lines")
        assert "Update 1," in first[0] and len(first) == 3
        page.page.get_by_role("slider", name="update").focus()
        for _ in range(4):
            page.page.keyboard.press("ArrowRight")
        page.page.wait_for_timeout(300)
        assert said() != first
        assert "Update 5," in said()[0]
        assert look("matrix") != matrix
        assert look("lines") != line
        assert page.page.locator("#matrix").get_attribute("aria-label").endswith(said()[0])
        assert "after update 5 of 10, ContAccum" == page.page.locator("#update").get_attribute(
            "aria-valuetext"
        )
        page.page.locator("#method").select_option("pre-batch")
        page.page.locator("#kind").select_option("gradient weight")
        page.page.wait_for_timeout(200)
        assert "No query bank" in said()[1]
        assert "gradient weight" in page.page.locator("#matrix").get_attribute("aria-label")
        box = page.page.locator("#matrix .plot, #matrix .nsewdrag").first.bounding_box()
        page.page.mouse.move(box["x"] + 60, box["y"] + 60)
        page.page.mouse.move(box["x"] + 64, box["y"] + 64)
        page.page.locator("#told", has_text="<img src=x").wait_for()
        page.page.get_by_role("button", name="Play").click()
        page.page.locator("#update[aria-valuetext^='after update 10 of 10']").wait_for()
        page.shot("page-lab")
        assert page.errors == [] and page.page.locator("img[src=x]").count() == 0
        assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []

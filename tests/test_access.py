"""Access: what all can see and hear, and a lab that a teacher has made smaller.

Colours that all can tell apart, and names for all controls. One JupyterLab for all tests.
"""

import itertools
import re

import nbformat
import pytest

from tools import browser
import contaccum_lite as cl
from colour_vision import apart, contrast, lab as seen, SEEN
from contaccum_lite.lab import curves, stills, style
from contaccum_lite.lab.grid import colours
from contaccum_lite.lab.fields import HIDEABLE
from contaccum_lite.lab.lab import Lab
from test_project import ROOT

WHITE, DARK = "#ffffff", "#111111"  # JupyterLab's papers
TOLD_APART = 15  # CIELAB; 2.3 is just noticeable


# --- colours --------------------------------------------------------------------------------------


def alike(styles):
    """Pairs of (colour, dash) that share a dash and that some eyes cannot tell apart."""
    return [
        (a, b)
        for a, b in itertools.combinations(styles, 2)
        if styles[a][1] == styles[b][1] and apart(styles[a][0], styles[b][0]) < TOLD_APART
    ]


def faint(found):
    """Colours that vanish on white or on JupyterLab's dark paper."""
    return [colour for colour in found if min(contrast(colour, WHITE), contrast(colour, DARK)) < 3]


def test_every_method_has_a_line_of_its_own():
    assert set(style.STYLES) == set(cl.PRESETS)
    assert len(set(style.STYLES.values())) == len(style.STYLES)
    assert alike(style.STYLES) == []
    assert (
        faint(
            [c for c, _ in style.STYLES.values()] + [curves._GREY, "#0072B2", "#D55E00", "#009E73"]
        )
        == []
    )
    lines = {n: (c, (dash, mark)) for n, (c, dash, mark) in enumerate(stills.LINES)}
    assert alike({n: (c, dash) for n, (c, (dash, _)) in lines.items()}) == []
    assert faint([c for c, _ in lines.values()]) == []
    # colours of an earlier version, which these checks refuse
    assert alike({"dpr": ("#7A7A7A", "solid"), "contaccum": ("#009E73", "solid")})
    assert faint(["#56B4E9"])


def test_values_of_a_heat_map_can_be_read_by_all():
    for sight in SEEN:
        light = [seen(c, sight)[0] for c in colours("magnitude")[1:, :3]]
        # lighter is more
        assert all(b > a - 0.3 for a, b in zip(light, light[8:]))
        assert light[-1] - light[0] > 60
    signed = colours("signed")[:, :3]
    assert apart(signed[1], signed[255]) > 40
    assert min(apart(signed[1], signed[128]), apart(signed[128], signed[255])) > 25
    parts = [color for color, _ in stills.GRADIENTS.values()]
    assert min(apart(a, b) for a, b in itertools.combinations(parts, 2)) > 7
    with pytest.raises(AssertionError):
        assert apart("#D55E00", "#8C7A00") > TOLD_APART  # a pair that protanopes confuse


def test_numbers_on_the_map_stand_out(toy):
    figure3 = cl.HeatMap(Lab(toy, updates=1), steps=(1,), sizes=tuple(range(0, 480, 2)))
    figure3.merge(";".join(f"1,{n},0={n / 5:g}" for n in figure3.sizes))
    for button in figure3.buttons.values():
        assert contrast(button.style.button_color, button.style.text_color) > 4.5, (
            button.style.button_color
        )


# --- class mode -----------------------------------------------------------------------------------


def taught(toy):
    """A lab whose teacher left two controls out."""
    return Lab(toy, updates=3, accumulation_steps=2, hide=("temperature", "seed"))


def shown(lab):
    """The names of the controls that are seen."""
    parts = {
        **lab.views.controls,
        **lab.views.buttons,
        "kind": lab.views.kind,
        "line": lab.views.line,
    }
    return {name for name, part in parts.items() if part.layout.display != "none"}


def test_a_teacher_leaves_controls_out(toy):
    lab = taught(toy)
    assert not shown(lab) & {"temperature", "seed"}
    assert {"method", "play", "line", "race"} <= shown(lab)


def test_a_share_line_says_what_is_left_out(toy):
    line = "method=contaccum&start=pretrained&accumulation_steps=2&updates=3&hide=temperature,seed"
    assert taught(toy).share() == line


def test_a_line_leaves_controls_out(toy):
    lab = taught(toy)
    lab.load("method=grad_accum&updates=2&hide=race,banks,line")
    assert "race" not in shown(lab)
    assert "seed" in shown(lab)
    assert lab.views.banks.widget.layout.display == "none"
    assert lab.settings.method == "grad_accum"


def test_a_line_that_says_nothing_of_controls_leaves_them(toy):
    lab = taught(toy)
    lab.load("updates=2")
    assert lab.hide == ("temperature", "seed")
    assert not shown(lab) & {"temperature", "seed"}


def test_a_line_shows_all_controls_again(toy):
    lab = taught(toy)
    lab.load("updates=2&hide=")
    assert lab.hide == ()
    assert {"temperature", "seed", "race", "line"} <= shown(lab)


@pytest.mark.parametrize(
    "line, words",
    [("seed=3&hide=colour", "hide has 'colour'"), ("seed=x&hide=race", "seed is 'x'")],
)
def test_a_refused_line_leaves_controls_and_settings(toy, line, words):
    lab = taught(toy)
    before = lab.settings
    with pytest.raises(ValueError, match=words):
        lab.load(line)
    assert lab.hide == ("temperature", "seed")
    assert lab.settings == before


def test_what_can_be_left_out_is_in_the_lab(toy):
    views = taught(toy).views
    others = {"kind", "line", "matrix", "banks", "curves", "search"}
    panels = {panel[0] for panel in views.curves.plot.panels}
    assert set(HIDEABLE) <= {*views.controls, *views.buttons, *others, *panels}


def test_curves_can_be_left_out_one_by_one(toy):
    lab = Lab(toy, updates=3, accumulation_steps=2, hide=("norms", "ratio", "mass"))
    lab.run(2)
    curves, guide = lab.views.curves, lab.views.guide
    lab.views.draw()
    assert curves.plot.hidden == ["norms", "ratio", "mass"] and [*curves.panels] == ["loss", "mrr"]
    assert not any(line["legend"] for line in curves.plot.lines if line["panel"] == "norms")
    assert "gradient norm" not in lab.views.sentence and "gradient" not in str(guide.steps[3])
    small = lab.views.png()
    lab.load(lab.share().split("&hide=")[0] + "&hide=")
    lab.run(2)
    assert curves.plot.hidden == [] and "gradient norms" in curves.sentence
    assert lab.views.png() != small
    assert "ratio" in str(Lab(toy, hide=("search",)).views.guide.steps[3])
    assert "play" not in HIDEABLE
    with pytest.raises(ValueError, match="hide has 'tau'.*temperature"):
        Lab(toy, hide="tau")


def test_a_lab_with_controls_left_out_runs_as_its_line_says(toy):
    lab, again = taught(toy), Lab(toy)
    again.load(lab.share())
    lab.run()
    again.run()
    assert len(lab.training.history) == 3
    assert [u.loss for u in again.training.history] == [u.loss for u in lab.training.history]


# --- in the browser -------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(
    browser.CHROMIUM is None,
    reason="no Chromium found: install the package chromium, or name it in $CHROMIUM",
)
HOSTILE = (
    "<img src=x onerror=alert(1)><script>alert(2)</script> $x^2$ \\\\(y\\\\) \\x1b[31mred\\x1b[0m"
)
CELLS = [
    "import torch\nimport contaccum_lite as cl\ntorch.set_num_threads(1)\ntoy = cl.load_pairs('toy')",
    "lab = cl.Lab(toy, updates=50, dim=8, hide=('temperature',))\nlab.run(2)\nlab",
    f"text = '{HOSTILE}'\ncl.Predict('a', text, options=['a', 'b'], truth='b', reply={{'b': text}})",
    "figure3 = cl.HeatMap(lab, steps=(1,), sizes=(0, 8), pairs_seen=64)\nfigure3._merge_field(text)\nfigure3",
    "again = cl.Again('none', 'run')\nagain.say(text)\nagain",
    "lab.message = text\ncl.MatrixPicture(torch.eye(3), text, text)",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("access")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    book.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(book, folder / "access.ipynb")
    with browser.server(folder, PYTHONPATH=str(ROOT)) as address, browser.browser(address) as page:
        page.open("access.ipynb")
        page.run_all()
        yield page


def nodes(page):
    """(role, name) of all that a screen reader meets."""
    found = page.page.context.new_cdp_session(page.page).send("Accessibility.getFullAXTree")[
        "nodes"
    ]
    return [
        (n["role"]["value"], n.get("name", {}).get("value", "").strip())
        for n in found
        if not n.get("ignored") and "role" in n
    ]


@needs_chromium
def test_a_screen_reader_hears_every_control_and_sentence(page):
    assert page.page.locator(".jp-OutputArea [role=slider]").count() >= 6
    heard = nodes(page)
    controls = page.page.locator(".jp-OutputArea").locator(
        "button, select, input, textarea, [role=slider], [role=application]"
    )
    bare = controls.evaluate_all("""all => all.filter(node => node.checkVisibility() && node.type !== 'hidden').filter(node => !(node.getAttribute('aria-label') ||
        node.getAttribute('aria-labelledby') || node.textContent.trim() || (node.labels && node.labels.length && node.labels[0].textContent.trim()) || node.title)).map(node => node.outerHTML.slice(0, 200))""")
    assert bare == []
    names = [name for role, name in heard if role == "slider"]
    assert {"K", "N_memory", "N_local", "learning rate"} <= set(names), names
    assert any(
        role == "application" and name.startswith("Similarity matrix") for role, name in heard
    )
    said = page.page.locator("[role=status]").all_text_contents()
    assert any("rows" in text and "columns" in text for text in said)
    assert any("After update 2" in text for text in said)
    assert (
        page.page.locator(".widget-slider:has(label:text-is('τ'))").count() == 0
        or not page.page.locator(".widget-slider:has(label:text-is('τ'))").first.is_visible()
    )


@needs_chromium
@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_text_stands_out_in_light_and_dark(page, theme):
    page.page.evaluate(
        "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme
    )
    page.page.wait_for_timeout(1200)
    paper = page.page.evaluate(
        "getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor"
    )
    inks = page.page.locator(
        ".ccl-plot text, .ccl-caption, .ccl-lab p, .ccl-sentence, .ccl-told, .widget-label, span[role=status]"
    ).evaluate_all(
        "all => [...new Set(all.filter(n => n.checkVisibility() && n.textContent.trim()).map(n => n.tagName === 'text' ? getComputedStyle(n).fill : getComputedStyle(n).color))]"
    )
    numbers = lambda text: [float(n) for n in re.findall(r"[\d.]+", text)[:3]]
    low = {
        ink: round(contrast(numbers(ink), numbers(paper)), 2)
        for ink in inks
        if contrast(numbers(ink), numbers(paper)) < 4.5
    }
    page.shot(f"access-{theme.split()[-1].lower()}")
    assert len(inks) > 0 and low == {}


@needs_chromium
def test_hostile_text_is_text_wherever_it_is_said(page):
    shown = page.page.locator(".jp-OutputArea").evaluate_all(
        "areas => areas.map(area => area.innerText).join(' ')"
    )
    assert shown.count("<img src=x onerror=alert(1)><script>alert(2)</script>") >= 5
    assert "\x1b" not in shown
    assert "$x^2$" in shown
    assert (
        page.page.locator(
            ".jp-OutputArea img[src='x'], .jp-OutputArea .MathJax, .jp-OutputArea mjx-container, .jp-OutputArea script"
        ).count()
        == 0
    )
    page.page.locator(".widget-radio label").last.click()
    page.buttons("Commit").first.click()
    page.page.get_by_text("You said “b”, and so it is.").wait_for()
    assert (
        page.page.locator(".jp-OutputArea img[src='x'], .jp-OutputArea mjx-container").count() == 0
    )
    assert page.errors == []  # a dialog would stand here

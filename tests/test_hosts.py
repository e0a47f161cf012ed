"""Notebook hosts that differ: ipywidgets 7 and 8, Colab, and pages where no widget can live.

These tests pass with ipywidgets 7.7.1 too: `make colab` runs them there.
"""

import base64
import json
import re
import sys
import types
from pathlib import Path

import ipywidgets
import pytest

import contaccum_lite as cl
from contaccum_lite.lab import hosts, page_drive, stills

ROOT = Path(__file__).parent.parent
SMALL = dict(updates=12, dim=8, accumulation_steps=2, memory_size=16)
#: how the output of a widget reads, of ipywidgets 7 and of 8
FORM = {"version_major": 2, "version_minor": 0}


def data_of(shown):
    """The data of an output, without its metadata."""
    output = shown._repr_mimebundle_()
    return output[0] if isinstance(output, tuple) else output


def metadata_of(shown):
    return shown._repr_mimebundle_()[1]


@pytest.fixture
def lab(toy):
    lab = cl.Lab(toy, **SMALL)
    yield lab
    lab.close()


@pytest.fixture
def shown(lab, toy):
    """Everything that a notebook shows as a widget."""
    return {
        "lab": (lab, lab.views.widget),
        "matrix": (lab.views.matrix, lab.views.matrix.widget),
        "search": (lab.views.search, lab.views.search.widget),
        "map": (heat := cl.HeatMap(lab, steps=(1,), sizes=(0,), pairs_seen=8), heat.widget),
        "card": (card := cl.Card(toy.test[0]), card.widget),
        "rerun": (button := cl.Again("timeit", "x"), button.widget),
        "predict": (asked := cl.Predict("hosts.a", "?", options=["a"]), asked.widget),
        "predict then": (
            asked := cl.Predict("hosts.b", "?", options=["a"], then=lab),
            asked.widget,
        ),
        "slide": (
            slide := cl.Slide(lambda t: cl.MatrixPicture([[t]], "x"), temperature=[1, 2]),
            slide.widget,
        ),
        "equations": (view := cl.EquationView(2, 4), view.widget),
    }


# --- one output for ipywidgets 7 and 8 ------------------------------------------------------------


def test_each_output_names_its_widget(shown):
    for name, (display, widget) in shown.items():
        view = data_of(display)[hosts.WIDGET_VIEW]
        assert view == {**FORM, "model_id": widget.model_id}, name
        assert len(data_of(display)["text/plain"]) > 3, name


@pytest.mark.skipif(not hasattr(ipywidgets.Widget, "_repr_mimebundle_"), reason="ipywidgets 7")
def test_the_output_is_that_of_ipywidgets_8():
    button = ipywidgets.Button()
    theirs = button._repr_mimebundle_()
    assert hosts.widget_view(button) == ({hosts.WIDGET_VIEW: theirs[hosts.WIDGET_VIEW]}, {})


def test_the_output_needs_nothing_that_ipywidgets_7_lacks():
    class Seven:
        """What the output reads of a widget of ipywidgets 7."""

        model_id = "abc"

        def _ipython_display_(self):
            raise AssertionError("this would show it twice")

    data, metadata = stills.bundle(Seven(), b"png", "A sentence.")
    assert data[hosts.WIDGET_VIEW] == {**FORM, "model_id": "abc"}
    assert base64.b64decode(data["image/png"]) == b"png"
    assert metadata == {"image/png": {"alt": "A sentence."}}
    assert stills.worded(Seven(), "A sentence.")[hosts.WIDGET_VIEW]["model_id"] == "abc"


def test_a_tooltip_has_the_name_that_is_installed(monkeypatch, lab):
    name = "description_tooltip" if ipywidgets.__version__.startswith("7.") else "tooltip"
    assert hosts.tooltip("help") == {name: "help"}
    slider = lab.views.controls["memory_size"]
    assert getattr(slider, name) == cl.Settings.__dataclass_fields__["memory_size"].metadata["help"]
    without = type("DOMWidget", (ipywidgets.Widget,), {})
    monkeypatch.setattr(ipywidgets, "DOMWidget", without)
    assert hosts.tooltip("help") == {"description_tooltip": "help"}


def test_text_on_a_map_can_be_read_where_its_colour_is_fixed(lab, monkeypatch):
    from contaccum_lite.lab import sweep

    heat = cl.HeatMap(lab, steps=(1,), sizes=(0, 8), pairs_seen=8)
    heat.found = {(1, 0): {0: 10.0}, (1, 8): {0: 20.0}}
    style = type(heat.buttons[1, 0].style)
    monkeypatch.setattr(style, "has_trait", lambda self, name: name != "text_color")
    heat.draw()
    low, high = (heat.buttons[1, n].style.button_color for n in (0, 8))
    assert low == sweep._button_colors(sweep._LIGHT)[0] != high
    assert sweep._button_colors(sweep._LIGHT)[1] == "#000000"
    assert sweep._button_colors(0.0)[1] == "#ffffff"


# --- where no widget can live ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment, words",
    [
        ({hosts.SWITCH: "off"}, f"because {hosts.SWITCH} is off"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, "because Kaggle's page"),
    ],
    ids=["switch", "kaggle"],
)
def test_a_still_picture_says_why(environment, words, shown, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert words in hosts.no_widgets_because()
    for name, (display, _) in shown.items():
        data = data_of(display)
        assert hosts.WIDGET_VIEW not in data, name
        assert data["text/plain"].count(words) == 1, name
    data = data_of(shown["lab"][0])
    assert "no update made yet" in data["text/plain"]
    assert data["text/html"].startswith("<img alt=")
    assert data["image/png"] in data["text/html"]
    assert words in data["text/html"].replace("&#x27;", "'")


def test_the_switch_overrides_the_host(monkeypatch, lab):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setenv(hosts.SWITCH, "on")
    assert hosts.WIDGET_VIEW in data_of(lab)
    monkeypatch.setenv(hosts.SWITCH, "perhaps")
    with pytest.raises(ValueError, match="set it to 'on' or to 'off'"):
        hosts.no_widgets_because()


def test_cell_by_cell_works_without_widgets(lab, monkeypatch):
    monkeypatch.setenv(hosts.SWITCH, "off")
    lab.run(5)
    first = data_of(lab)
    lab.run(5)
    second = data_of(lab)
    assert "update 5 of 12" in first["text/plain"]
    assert "update 10 of 12" in second["text/plain"]
    assert first["image/png"] != second["image/png"]


def test_a_picture_without_a_widget_says_nothing_of_widgets(monkeypatch):
    monkeypatch.setenv(hosts.SWITCH, "off")
    data = data_of(cl.LinesPicture({"a": ([1, 2], [3, 4])}, "a", "x", "y"))
    assert "text/html" not in data
    assert hosts.SWITCH not in data["text/plain"]


# --- Colab ----------------------------------------------------------------------------------------


@pytest.fixture
def colab(monkeypatch):
    """The modules that a kernel of Colab has; `calls` counts how often its manager was asked for."""
    output = types.ModuleType("google.colab.output")
    output.calls = 0
    output._widgets = types.SimpleNamespace(_installed_url=None)

    def enable_custom_widget_manager():
        output.calls += 1
        output._widgets._installed_url = "https://example.org/manager.js"

    output.enable_custom_widget_manager = enable_custom_widget_manager
    package = types.ModuleType("google.colab")
    package.output = output
    monkeypatch.setitem(sys.modules, "google.colab", package)
    monkeypatch.setitem(sys.modules, "google.colab.output", output)
    return output


def test_on_colab_an_output_names_the_manager_of_widgets(colab, shown):
    assert hosts.in_colab()
    for name, (display, _) in shown.items():
        assert hosts.WIDGET_VIEW in data_of(display), name
        view = metadata_of(display)[hosts.WIDGET_VIEW]
        assert view["colab"]["custom_widget_manager"]["url"] == "https://example.org/manager.js"
    assert colab.calls > 0
    assert metadata_of(shown["lab"][0])["image/png"]["alt"]


def test_elsewhere_nothing_is_said_of_colab(lab):
    assert not hosts.in_colab()
    assert list(metadata_of(lab)) == ["image/png"]
    assert lab.views.drive is None


class FakePage:
    """A page that hears only what is sent while one of its messages is handled.

    It answers each frame that it hears, one after the other, as the real one does.
    """

    def __init__(self, lab, monkeypatch):
        self.grid, self.answers = lab.views.matrix.grid, []
        self.handling, self.lost, self.heard = False, 0, 0
        send = ipywidgets.Widget._send

        def count(widget, message, buffers=None):
            self.lost += not self.handling
            self.heard += self.handling
            return send(widget, message, buffers)

        monkeypatch.setattr(ipywidgets.Widget, "_send", count)
        self.grid.observe(self._on_frame, "beat")
        self.send(self.grid.set_state, {"beaten": self.grid.beat})  # it has drawn the lab

    def _on_frame(self, change):
        if self.handling and change.new % self.grid.window == 0:
            self.answers.append(change.new)

    def send(self, action, *arguments):
        """The kernel handles a message of the page."""
        self.handling = True
        try:
            action(*arguments)
        finally:
            self.handling = False

    def answer(self):
        """Answer the frame that was drawn last."""
        beat = self.answers[-1]
        self.answers.clear()
        self.send(self.grid.set_state, {"beaten": beat})

    def answer_all(self, most=500):
        """Answer until nothing more comes; how many answers it took."""
        for number in range(most):
            if not self.answers:
                return number
            self.answer()
        raise AssertionError("it never ends")


@pytest.fixture
def driven(colab, lab, monkeypatch):
    """A lab on Colab, and the page that shows it."""
    monkeypatch.setattr(page_drive, "SLICE_S", 0.0)  # one piece of work for each answer
    data_of(lab)
    return lab, FakePage(lab, monkeypatch)


def test_on_colab_answers_of_the_page_drive_the_training(driven):
    lab, page = driven
    page.send(lab.views.buttons["play"].click)
    assert lab.playing
    assert lab._task is None
    first = lab.training.step_count
    assert page.answers, "no frame for the page to answer"
    answers = page.answer_all()
    assert answers > 10
    assert first < lab.training.step_count == 12
    assert not lab.playing
    assert page.lost == 0
    assert lab.track.scores[-1][0] == 12
    assert "update 12 of 12" in lab.views.progress.value


def test_a_driven_run_is_that_of_run(driven, toy):
    lab, page = driven
    page.send(lab.views.buttons["play"].click)
    page.answer_all()
    other = cl.Lab(toy, **SMALL)
    other.run()
    assert [u.loss for u in lab.training.history] == [u.loss for u in other.training.history]
    assert lab.track.scores == other.track.scores


def test_stop_is_heard_between_two_answers(driven):
    lab, page = driven
    page.send(lab.views.buttons["play"].click)
    while lab.training.step_count < 3:
        page.answer()
    page.send(lab.views.buttons["stop"].click)
    assert not lab.playing
    page.answer_all()
    assert lab.training.step_count == 3
    assert lab.views.buttons["play"].description == "Play"


def test_after_a_lost_answer_play_goes_on(driven):
    lab, page = driven
    page.send(lab.views.buttons["play"].click)
    page.answer()
    page.answers.clear()  # the page was hidden, or the answer is lost
    page.send(lab.views.buttons["play"].click)  # pause
    assert not lab.playing
    lab.views._last_sent -= 10  # some seconds later
    page.send(lab.views.buttons["play"].click)
    page.answer_all()
    assert lab.training.step_count == 12


def test_a_frame_more_is_not_sent_while_one_is_on_its_way(driven):
    lab, page = driven
    page.send(lab.views.buttons["play"].click)
    beat = page.grid.beat
    for _ in range(3):
        page.send(lab.views.drive.train_slice)
    assert page.grid.beat == beat


def test_a_pace_is_kept_by_the_page_too(driven, monkeypatch):
    lab, page = driven
    clock = types.SimpleNamespace(now=0.0, slept=[])
    monkeypatch.setattr(page_drive, "SLICE_S", 0.1)
    monkeypatch.setattr(
        page_drive,
        "time",
        types.SimpleNamespace(
            perf_counter=lambda: clock.now,
            sleep=lambda seconds: (
                clock.slept.append(seconds),
                setattr(clock, "now", clock.now + seconds),
            ),
        ),
    )
    lab.pace = 4.0
    page.send(lab.views.buttons["play"].click)
    while lab.training.step_count < 2:
        page.answer()
    assert max(clock.slept) <= 0.1
    # an evaluation and four micro-batches: at most a quarter of a second for each piece of work
    assert 0.75 <= clock.now <= 1.75


def test_an_error_in_a_driven_run_is_said(driven, monkeypatch):
    lab, page = driven
    page.send(lab.views.buttons["play"].click)
    page.answer()

    def fails():
        raise MemoryError("no room")

    monkeypatch.setattr(type(lab.training), "micro_steps", lambda self: fails())
    page.answer_all()
    assert not lab.playing
    assert "no room" in lab.message
    assert "no room" in lab.views.message.value


def test_a_keyboard_interrupt_stops_a_driven_run(driven, monkeypatch):
    lab, page = driven
    page.send(lab.views.buttons["play"].click)

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(lab, "_do_next_work", interrupted)
    page.answer()
    assert not lab.playing


def test_closing_ends_the_drive(driven):
    lab, page = driven
    page.send(lab.views.buttons["play"].click)
    step, grid = lab.training.step_count, lab.views.matrix.grid
    lab.close()
    assert lab.drive is None
    grid.beaten += 1
    assert lab.training.step_count == step


def test_binder_prepares_the_tower_that_a_lab_starts_from(toy, tmp_path, monkeypatch):
    """postBuild's Python, on toy pairs in a cache of its own; then a lab adds no file to it."""
    build = (ROOT / "binder" / "postBuild").read_text()
    source = re.search(r"<<'END'\n(.*)\nEND", build, re.S)[1]
    monkeypatch.setenv("CONTACCUM_LITE_CACHE", str(tmp_path))
    exec(source.replace('"python-docs"', '"toy"'), {})
    prepared = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert any(name.startswith("start-") for name in prepared)
    cl.Lab(cl.load_pairs("toy")).close()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == prepared


def test_the_page_on_vs_code_has_what_its_settings_have():
    settings = json.loads((ROOT / ".vscode" / "settings.json").read_text())
    (line,) = (f'"{name}": {json.dumps(value)}' for name, value in settings.items())
    assert line in (ROOT / "docs" / "lab.md").read_text()

"""The lab as one widget: controls, views, and when to draw them."""

from __future__ import annotations

import html
import time

from .curves import CurvesView
from .lab import Lab
from .settings import PRESETS, Settings
from .stills import bundle, new, png
from .tracks import NAMES
from .search import plain
from .views import BanksView, MatrixView, SearchBox

FRAMES = 9  # the most pictures per second: the page's work slows training where cores are few
WORDS = 0.4  # the least seconds between two sentences: sooner no one reads
CURVES = 1.0  # the least seconds between two pictures of the curves, which cost the page most
SHARE = 8  # a picture that took t is followed by at least 8·t of training
PATIENCE = 5.0  # seconds after which a page that does not answer is sent a frame again

_FIELDS = Settings.__dataclass_fields__
_WIDE = dict(width="330px")


class LabView:
    """Buttons and sliders of a `Lab`, its views below, and the pace at which they are drawn.

    While it plays, a frame is sent only when the page has drawn the one before, at most `FRAMES` a second, and so rarely that
    training keeps most of the time: a slow page drops frames and never holds training up. Notebook 00.
    """

    def __init__(self, lab: Lab):
        import ipywidgets

        self.lab = lab
        self.matrix, self.banks, self.curves = MatrixView(lab), BanksView(lab), CurvesView(lab)
        self.search = SearchBox(lab)
        self.frames = 0
        self._due = self._words_due = self._curves_due = self._sent = 0.0
        self._setting = self._later = self._refused = None
        self._make_controls(ipywidgets)
        self._lay_out(ipywidgets)
        lab.observe(self._frame, "ticks")
        lab.observe(self._follow, list(self.controls))
        lab.observe(self._say, ["message", "playing"])
        lab.observe(self._rest, "playing")
        lab.observe(self._leave_out, "hide")
        self._leave_out()
        self.draw()

    # --- controls ------------------------------------------------------------------------------------------------------

    def _make_controls(self, w) -> None:
        button = lambda text, icon, tip, do: self._button(w, text, icon, tip, do)
        lab = self.lab
        self.buttons = {
            "play": button("Play", "play", "train until you pause or stop", self._play),
            "micro": button(
                "1 micro-batch",
                "step-forward",
                "do one micro-batch",
                lambda: lab.step("micro-batch"),
            ),
            "update": button("1 update", "fast-forward", "do one weight update", lab.step),
            "stop": button("Stop", "stop", "end training; an update under way is undone", lab.stop),
            "reset": button(
                "Reset",
                "undo",
                "start a new run with what the sliders say; this one stays as a ghost",
                lab.reset,
            ),
            "race": button(
                "Race four methods",
                "flag-checkered",
                "DPR, GradAccum, pre-batch and ContAccum one after the other",
                self._race,
            ),
        }
        self.controls = {
            "method": w.Dropdown(
                options=[(f"{NAMES[m]}: {PRESETS[m]['says']}", m) for m in PRESETS],
                value=lab.method,
                description="method",
                layout=dict(width="620px", max_width="100%"),
            )
        }
        for name, field in _FIELDS.items():
            if field.metadata["slider"]:
                self.controls[name] = self._slider(w, name, field)
        self.controls["pace"] = w.Dropdown(
            options=[
                ("as fast as it can", 0.0),
                ("20 micro-batches a second", 20.0),
                ("4 a second", 4.0),
                ("1 a second", 1.0),
            ],
            value=0.0,
            description="pace",
            layout=_WIDE,
        )
        for name, control in self.controls.items():
            control.observe(
                lambda change, name=name: lab.soon(self._set, name, change.new), "value"
            )
        self.kind = w.ToggleButtons(
            options=list(MatrixView.KINDS),
            value=self.matrix.kind,
            tooltips=list(MatrixView.KINDS.values()),
            style=dict(button_width="11em"),
            layout=dict(margin="0 0 4px 14px"),
        )
        self.kind.observe(
            lambda change: lab.soon(setattr, self.matrix, "kind", change.new), "value"
        )
        self.line = w.Text(
            value=lab.share(),
            description="share line",
            continuous_update=False,
            layout=dict(width="700px"),
            tooltip="this run in one line; paste another and press Enter",
        )
        self.line.observe(lambda change: lab.soon(self._load, change.new), "value")
        self.progress, self.message = w.HTML(), w.HTML()

    def _button(self, w, text, icon, tip, do):
        made = w.Button(description=text, icon=icon, tooltip=tip, layout=dict(width="auto"))
        made.on_click(lambda _: self.lab.soon(self._try, do))
        return made

    def _slider(self, w, name, field):
        choices, value = field.metadata["slider"], getattr(self.lab, name)
        common = dict(
            value=value,
            description=field.metadata["symbol"] or name.replace("_", " "),
            tooltip=field.metadata["help"],
            layout=_WIDE,
            style=dict(description_width="90px"),
        )
        if isinstance(choices, range):
            return w.IntSlider(min=min(choices[0], value), max=max(choices[-1], value), **common)
        return w.SelectionSlider(options=_with(choices, value), **common)

    def _set(self, name: str, value) -> None:
        """A control was moved: the lab takes its value, or says why not."""
        if getattr(self.lab, name) == value:
            return
        said, self._setting = self.lab.message, name
        try:
            setattr(self.lab, name, value)
            if said == self._refused and said == self.lab.message:
                self.lab.message = ""  # what was refused before is over
        except Exception as error:  # a value that does not fit, or no memory for it
            self.lab.message = self._refused = str(error)
            self._setting = None
            self._bring(name)
        finally:
            self._setting = None
        self._enable()

    def _follow(self, change) -> None:
        """A trait of the lab was set elsewhere: the control follows."""
        if change.name != self._setting:
            self._bring(change.name)

    def _bring(self, name: str) -> None:
        control, value = self.controls[name], getattr(self.lab, name)
        if name == "pace" and value not in [v for _, v in control.options]:
            control.options = [*control.options, (f"{value:g} a second", value)]
        elif hasattr(control, "max"):
            control.max, control.min = max(control.max, value), min(control.min, value)
        elif name != "method" and value not in (known := [v for _, v in control.options]):
            control.options = _with(known, value)
        control.value = value
        self._enable()

    def _enable(self) -> None:
        for name, control in self.controls.items():
            control.disabled = name in _FIELDS and self.lab.fixed(name)

    def _play(self) -> None:
        self.lab.pause() if self.lab.playing else self.lab.play()

    def _race(self) -> None:
        self.lab.line_up()
        self.lab.play()

    def _load(self, line: str) -> None:
        if line.strip() != self.lab.share():
            self._try(lambda: self.lab.load(line))

    def _try(self, do) -> None:
        try:
            do()
        except (
            Exception
        ) as error:  # shown to who pressed the button; the kernel's log has no reader
            self.lab.message = str(error)

    # --- layout --------------------------------------------------------------------------------------------------------

    def _lay_out(self, w) -> None:
        wrap = dict(flex_flow="row wrap", align_items="center")
        sliders = [self.controls[name] for name in self.controls if name not in ("method", "pace")]
        self.widget = w.VBox(
            [
                w.HBox([*self.buttons.values(), self.progress], layout=wrap),
                self.message,
                w.HBox([self.controls["method"], self.controls["pace"]], layout=wrap),
                w.HBox(sliders, layout=wrap),
                w.HBox(
                    [
                        w.VBox([self.kind, self.matrix.widget], layout=dict(flex="1 1 460px")),
                        w.VBox([self.banks.widget], layout=dict(flex="1 1 440px")),
                    ],
                    layout=dict(flex_flow="row wrap", align_items="flex-start"),
                ),
                self.curves.widget,
                self.search.widget,
                self.line,
            ]
        )

    def _leave_out(self, change=None) -> None:
        """Take what the lab hides off the page (and out of what a keyboard or a screen reader reaches), and put the rest back."""
        views = {
            "matrix": self.matrix.widget,
            "banks": self.banks.widget,
            "curves": self.curves.widget,
            "search": self.search.widget,
        }
        for name, part in {
            **self.controls,
            **self.buttons,
            **views,
            "kind": self.kind,
            "line": self.line,
        }.items():
            part.layout.display = "none" if name in self.lab.hide else None

    # --- drawing -------------------------------------------------------------------------------------------------------

    def _frame(self, change=None) -> None:
        """Draw, if it is time to; at rest it always is."""
        if not (self.lab.playing or self.lab.waiting):
            self.draw()
            for view in (self.matrix, self.banks, self.curves):
                view.settle()
            return
        now = time.perf_counter()
        if now < self._due:
            return
        grid = self.matrix.grid
        behind = (
            grid.beat - grid.beaten >= grid.window and not self.lab.waiting
        )  # inside `run` no answer can be heard
        if behind and now - self._sent < PATIENCE:
            return
        if self.lab.waiting:
            self.draw()
            self._due = time.perf_counter() + max(0.25, SHARE * (time.perf_counter() - now))
            return
        words = now >= self._words_due
        if words:
            self._words_due = now + WORDS
            self._say()
        if any(grid.shown for grid in self.banks.grids.values()) and (
            words or self.lab.pace or self.frames % 2 == 0
        ):
            self.banks.draw(
                words
            )  # at full speed every other frame: nobody sees which micro-batch it was
        self._beat(self.matrix.grid.shown, words)
        between = time.perf_counter()
        if between >= self._curves_due and self.curves.figure.answered:
            self.curves.draw()
            self._curves_due = time.perf_counter() + max(
                CURVES, 2 * SHARE * (time.perf_counter() - between)
            )
        self._due = max(now + 1 / FRAMES, between + SHARE * (between - now))

    def draw(self) -> None:
        """Draw everything as it is now; the curves, which cost the page most, a moment after what a slider has just changed."""
        self.banks.draw()
        self._beat(True, True)
        self._say()
        if self._later is not None:
            self._later.cancel()
        loop = self.lab._loop
        if loop is None or not loop.is_running() or self.lab.waiting:
            self.curves.draw()
        else:
            self._later = loop.call_later(0.15, self.curves.draw)

    def _beat(self, matrix: bool, words: bool) -> None:
        """End a frame: with the matrix, if it is in view, goes the beat that the page answers."""
        self.frames += 1
        self._sent = time.perf_counter()
        with self.matrix.grid.hold_sync():
            if matrix:
                self.matrix.draw(words)
            self.matrix.grid.beat += 1

    def _say(self, change=None) -> None:
        """Where it stands, and what it wants you to know."""
        lab, run = self.lab, self.lab.training
        place = (
            f", micro-batch {lab.micro.index + 1} of {lab.micro.of}"
            if lab.micro is not None and lab._under_way
            else ""
        )
        rate = (
            f" · {run.step_count / lab.track.seconds:.0f} updates a second"
            if run.step_count and lab.track.seconds and not lab.pace
            else ""
        )
        self.progress.value = f"<span role='status'>&nbsp; update {run.step_count} of {run.settings.updates}{place}{rate}</span>"
        self.message.value = (
            f"<p role='alert' style='line-height:1.35'>{html.escape(plain(lab.message))}</p>"
            if lab.message
            else ""
        )
        play = self.buttons["play"]
        play.description, play.icon = ("Pause", "pause") if lab.playing else ("Play", "play")
        if not lab.playing:
            self.line.value = lab.share()

    def _rest(self, change) -> None:
        """When the player comes to rest, what is found is brought up to date; a moment later, so that Stop is not kept waiting."""
        if not change.new and self.lab._loop is not None:
            self.lab._loop.call_later(
                0.4, lambda: self.lab.playing or self.lab._views is not self or self.search.search()
            )

    @property
    def sentence(self) -> str:
        """All views in words."""
        return " ".join(
            [self.lab.summary, self.matrix.sentence, self.banks.sentence, self.curves.sentence]
        )

    def png(self) -> bytes:
        """All views as one still picture."""
        figure = new(9.8, 8.6)
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.05])
        left, right = top.subfigures(1, 2, width_ratios=[1.1, 1])
        self.matrix.still(left)
        self.banks.still(right)
        self.curves.still(bottom)
        return png(figure, self.lab.summary + " " + self.matrix.sentence)

    def bundle(self) -> tuple[dict, dict]:
        """One output for all readers."""
        self.draw()
        data, metadata = bundle(self.widget, self.png(), self.lab.summary)
        metadata["image/png"]["alt"] = self.sentence
        return data, metadata

    def close(self) -> None:
        """Let go of the lab and end the widgets."""
        self.lab.unobserve(self._frame, "ticks")
        self.lab.unobserve(self._follow, list(self.controls))
        self.lab.unobserve(self._say, ["message", "playing"])
        self.lab.unobserve(self._rest, "playing")
        self.lab.unobserve(self._leave_out, "hide")
        if self._later is not None:
            self._later.cancel()
        _close(self.widget)


def _close(widget) -> None:
    """End a widget and all that is in it: a page that is loaded again asks the kernel for every widget that is left."""
    for part in (
        *getattr(widget, "children", ()),
        getattr(widget, "style", None),
        widget.layout if hasattr(widget, "keys") and "layout" in widget.keys else None,
    ):
        if hasattr(part, "comm"):
            _close(part)
    widget.close()


def _with(choices, value) -> list[tuple[str, float]]:
    """Labelled choices of a slider, among them the value that it has."""
    return [(f"{choice:g}", choice) for choice in sorted({*choices, value})]

"""The lab as one widget: controls, views, and when to draw them."""

from __future__ import annotations

import html
import time

import ipywidgets as widgets

from contaccum_lite.lab.banks import BanksView
from contaccum_lite.lab.controls import Controls
from contaccum_lite.lab.curves import CurvesView
from contaccum_lite.lab.fields import VIEWS
from contaccum_lite.lab.guide import Guide, steps
from contaccum_lite.lab.hosts import in_colab
from contaccum_lite.lab.matrix import MatrixView
from contaccum_lite.lab.page_drive import PageDrive
from contaccum_lite.lab.search_box import SearchBox
from contaccum_lite.lab.startup import import_compiler_soon
from contaccum_lite.lab.stills import bundle, curve_rows, new, png, waiting
from contaccum_lite.utils.text import plain

MAX_FPS = 16  # the page's work slows training where cores are few
MIN_TEXT_INTERVAL_S = 0.4  # sooner no one reads
MIN_CURVE_INTERVAL_S = 1.0  # the curves cost the page most
TRAIN_TO_DRAW_RATIO = 10  # a picture that took t is followed by at least 10·t of training
ACK_TIMEOUT_S = 5.0  # after this, a page that does not answer is sent a frame again

#: Controls that are always seen; the others are folded away.
FIRST = (
    *("method", "accumulation_steps", "local_batch", "memory_size", "learning_rate"),
    *("query_bank",),
)


class LabWidget:
    """Buttons and sliders of a `Lab`, its views below, and the pace at which they are drawn.

    While it plays, a frame is sent only when the page has drawn the one before, at most `MAX_FPS` a
    second, and so rarely that training keeps most of the time: a slow page drops frames and never
    delays training. Notebook 00.
    """

    def __init__(self, lab):
        self.lab = lab
        self.closed = False
        self.matrix, self.banks, self.curves = MatrixView(lab), BanksView(lab), CurvesView(lab)
        self.search = SearchBox(lab)
        self.panel = Controls(lab)
        self.buttons, self.controls = self.panel.buttons, self.panel.controls
        self.line = self.panel.line
        self.kind = widgets.ToggleButtons(
            options=list(MatrixView.KINDS),
            value=self.matrix.kind,
            tooltips=list(MatrixView.KINDS.values()),
            style={"button_width": "auto"},
        )
        self.panel.bind(self.kind, lambda kind: setattr(self.matrix, "kind", kind))
        self.progress, self.message = widgets.HTML(), widgets.HTML()
        self.reset_now = widgets.Button(
            description="Reset now",
            icon="undo",
            tooltip="start a new run with what the sliders say",
        )
        self.reset_now.on_click(lambda _: self.buttons["reset"].click())
        self.fold = widgets.ToggleButton(description="More controls", icon="chevron-down")
        self.fold.add_class("ccl-fold")
        self.fold.observe(self._on_fold, "value")
        self.guide = Guide(steps=steps(lab.hide) if lab.tour else [])
        self.widget = self._layout()
        self.frames = 0
        self._next_frame = self._next_text = self._next_curves = self._last_sent = 0.0
        self._delayed_draw = None
        self._observers = [
            (self._on_tick, "ticks"),
            (self._update_status, ["message", "playing"]),
            (self._on_stopped, "playing"),
            (self._apply_hidden, "hide"),
        ]
        for observer, traits in self._observers:
            lab.observe(observer, traits)
        self._apply_hidden()
        self.drive = PageDrive(self) if in_colab() else None
        self.draw()

    def _layout(self):
        """Buttons and the first sliders on top, the views beside each other below them."""
        folded = [control for name, control in self.controls.items() if name not in FIRST]
        self.more = _box(widgets.HBox, "ccl-more", [*folded, self.line])
        first = [self.controls[name] for name in FIRST if name in self.controls]
        self.matrix_column = _box(widgets.VBox, "ccl-view-matrix", [self.kind, self.matrix.widget])
        self.banks.widget.add_class("ccl-view-banks")
        self.curves.widget.add_class("ccl-view-curves")
        columns = [self.matrix_column, self.banks.widget, self.curves.widget]
        buttons = [*self.buttons.values(), self.progress, self.guide]
        self.message_row = _box(widgets.HBox, "ccl-message", [self.reset_now, self.message])
        first_screen = [
            _box(widgets.HBox, "ccl-view-buttons", buttons),
            _box(widgets.HBox, "ccl-view-sliders", [*first, self.fold]),
            self.more,
            self.message_row,
            _box(widgets.Box, "ccl-views", columns),
        ]
        self._on_fold()
        screen = _box(widgets.VBox, "ccl-first", first_screen)
        return _box(widgets.VBox, "ccl-lab", [screen, self.search.widget])

    def _on_fold(self, change=None) -> None:
        """Show the controls that are seldom used, or fold them away."""
        is_open = self.fold.value
        self.more.layout.display = None if is_open else "none"
        self.fold.description = "Fewer controls" if is_open else "More controls"
        self.fold.icon = "chevron-up" if is_open else "chevron-down"

    def _apply_hidden(self, change=None) -> None:
        """Take what the lab hides off the page, also for screen readers; show the rest."""
        hideable = {**self.controls, **self.buttons, "kind": self.kind, "line": self.line}
        for name in VIEWS:
            hideable[name] = getattr(self, name).widget
        for name, widget in hideable.items():
            widget.layout.display = "none" if name in self.lab.hide else None
        self.matrix_column.layout.display = self.matrix.widget.layout.display
        folded = {*self.controls, "line"} - {*FIRST}
        self.fold.layout.display = "none" if folded <= {*self.lab.hide} else None
        if change is not None:
            self.curves.draw()

    # --- drawing ------------------------------------------------------------------------------

    def _on_tick(self, change=None) -> None:
        """Draw, if it is time to; at rest it always is."""
        if not (self.lab.playing or self.lab.waiting):
            self.draw()
            for view in (self.matrix, self.banks, self.curves):
                view.settle()
            return
        now = time.perf_counter()
        if now < self._next_frame:
            return
        if self.lab.waiting:  # inside `run` no answer of the page can be heard
            self.draw()
            seconds = time.perf_counter() - now
            self._next_frame = now + seconds + max(0.25, TRAIN_TO_DRAW_RATIO * seconds)
        elif not self._page_is_behind() or now - self._last_sent >= ACK_TIMEOUT_S:
            self._draw_while_playing(now)

    def _page_is_behind(self) -> bool:
        grid = self.matrix.grid
        return grid.beat - grid.beaten >= grid.window

    def draw_unless_behind(self) -> None:
        """Draw a frame while it plays, if the page has drawn the last one."""
        if not self._page_is_behind():
            self._draw_while_playing(time.perf_counter())

    def _draw_while_playing(self, now: float) -> None:
        with_text = now >= self._next_text
        if with_text:
            self._next_text = now + MIN_TEXT_INTERVAL_S
            self._update_status()
        # At full speed every other frame: nobody sees which micro-batch it was.
        with_banks = with_text or self.lab.pace or self.frames % 2 == 0
        if with_banks and any(grid.shown for grid in self.banks.grids.values()):
            self.banks.draw(with_text)
        self._send_frame(self.matrix.grid.shown, with_text)
        after_grids = time.perf_counter()
        if after_grids >= self._next_curves and self.curves.plot.answered:
            self.curves.draw()
            end = time.perf_counter()
            rest = 2 * TRAIN_TO_DRAW_RATIO * (end - after_grids)
            self._next_curves = end + max(MIN_CURVE_INTERVAL_S, rest)
        rest = TRAIN_TO_DRAW_RATIO * (after_grids - now)
        self._next_frame = max(now + 1 / MAX_FPS, after_grids + rest)

    def draw(self) -> None:
        """Draw everything as it is now.

        The curves, which cost the page most, come a moment after what a slider has just changed.
        """
        self.banks.draw()
        self._send_frame(True, True)
        self._update_status()
        if self._delayed_draw is not None:
            self._delayed_draw.cancel()
            self._delayed_draw = None
        if not self.lab.waiting:
            self._delayed_draw = self.lab.call_later(0.15, self.curves.draw)
        if self._delayed_draw is None:
            self.curves.draw()

    def _send_frame(self, with_matrix: bool, with_text: bool) -> None:
        """End a frame: with the matrix, if it is in view, goes the beat that the page answers."""
        self.frames += 1
        self._last_sent = time.perf_counter()
        with self.matrix.grid.hold_sync():
            if with_matrix:
                self.matrix.draw(with_text)
            self.matrix.grid.beat += 1

    def _update_status(self, change=None) -> None:
        """Say where training stands, and show the lab's message."""
        lab, run, micro = self.lab, self.lab.training, self.lab.micro
        status = f"update {run.step_count} of {run.settings.updates}"
        if micro is not None and lab.mid_update:
            status += f", micro-batch {micro.index + 1} of {micro.of}"
        if run.step_count and lab.track.seconds and not lab.pace:
            status += f" · {run.step_count / lab.track.seconds:.0f} updates a second"
        self.progress.value = f"<span role='status'>&nbsp; {status}</span>"
        text = html.escape(plain(lab.message))
        alert = f"<p role='alert' style='line-height:1.35'>{text}</p>"
        self.message.value = alert if lab.message else ""
        self._say_what_waits()
        play = self.buttons["play"]
        play.description, play.icon = ("Pause", "pause") if lab.playing else ("Play", "play")
        if not lab.playing:
            self.line.value = lab.share()

    def _say_what_waits(self) -> None:
        """Mark the controls that wait for a reset, with a Reset button beside the words."""
        waits = set(getattr(self.lab, "needs_reset", self.lab.pending))
        self.reset_now.layout.display = None if waits else "none"
        self.message_row.layout.display = None if self.lab.message else "none"
        for name, control in self.controls.items():
            if name in waits:
                control.add_class("ccl-waits")
            else:
                control.remove_class("ccl-waits")

    def _on_stopped(self, change) -> None:
        """When the player stops, search again; a moment later, so that Stop is not delayed."""
        if not change.new and self.lab.call_later(0.4, self._search_at_rest) is None:
            self._search_at_rest()

    def _search_at_rest(self) -> None:
        if not self.lab.playing and not self.closed:
            self.search.search()

    # --- output -------------------------------------------------------------------------------

    @property
    def sentence(self) -> str:
        """All views in words."""
        views = (self.matrix, self.banks, self.curves)
        return " ".join([self.lab.summary, *(view.sentence for view in views)])

    def png(self) -> bytes:
        """All views that are not hidden, as one still picture."""
        if self.lab.micro is None and not self.lab.training.history:
            return waiting([self.matrix.title, self.banks.title, self.curves.title], self.sentence)
        bands = self._bands()
        low = 2.5 if curve_rows(self.curves.panels) == 1 else 4.3
        heights = [low if band == ["curves"] else 4.3 for band in bands]
        figure = new(9.8, sum(heights))
        ratios = dict(height_ratios=heights, squeeze=False)
        subfigures = figure.subfigures(len(bands), 1, **ratios)[:, 0]
        for subfigure, names in zip(subfigures, bands, strict=True):
            parts = subfigure.subfigures(1, len(names), squeeze=False)[0]
            for part, name in zip(parts, names, strict=True):
                getattr(self, name).still(part)
        return png(figure, self.lab.summary + " " + self.matrix.sentence)

    def _bands(self) -> list[list[str]]:
        """The views of the still picture, by row."""
        bands = [["matrix", "banks"], ["curves"]]
        shown = [[name for name in band if name not in self.lab.hide] for band in bands]
        return [band for band in shown if band] or [["matrix"]]

    def bundle(self) -> tuple[dict, dict]:
        """One output for all readers."""
        self.draw()
        data, metadata = bundle(self.widget, self.png(), self.lab.summary)
        metadata["image/png"]["alt"] = self.sentence
        self.lab.call_later(0.5, import_compiler_soon)
        return data, metadata

    def close(self) -> None:
        """Stop observing the lab and close the widgets."""
        self.closed = True
        self.panel.close()
        if self.drive is not None:
            self.drive.close()
        for observer, traits in self._observers:
            self.lab.unobserve(observer, traits)
        if self._delayed_draw is not None:
            self._delayed_draw.cancel()
        close_widget(self.widget)


def _box(kind, name: str, children):
    """A box with a class of guide.css."""
    box = kind(children)
    box.add_class(name)
    return box


def close_widget(widget) -> None:
    """Close a widget and all that is in it.

    A page that is loaded again asks the kernel for every widget that is left.
    """
    has_layout = hasattr(widget, "keys") and "layout" in widget.keys
    inner = [*getattr(widget, "children", ()), getattr(widget, "style", None)]
    if has_layout:
        inner.append(widget.layout)
    for item in inner:
        if hasattr(item, "comm"):
            close_widget(item)
    widget.close()

"""Buttons and sliders of a lab, bound to its traits both ways."""

from __future__ import annotations

import ipywidgets as widgets

from contaccum_lite.core.presets import PRESETS
from contaccum_lite.lab.fields import CHOICES, FIELDS, NAMES, SLIDERS, SWITCHES
from contaccum_lite.lab.hosts import tooltip

_LAYOUT = {"width": "auto"}  # guide.css gives each its room
OFF = "off"  # in place of None, which a Dropdown takes for no choice
_PACES = [
    ("as fast as it can", 0.0),
    ("20 micro-batches a second", 20.0),
    ("4 a second", 4.0),
    ("1 a second", 1.0),
]


class Controls:
    """`buttons`, `controls` (by trait) and the share line of a lab.

    A control that moves sets the lab's trait, or says why not and moves back; a trait that is set
    elsewhere moves its control.
    """

    def __init__(self, lab):
        self.lab = lab
        self._setting: str | None = None  # the trait that a control is setting now
        self._refusal: str | None = None  # the last message about a refused value
        self.buttons = {
            "play": self._button("Play", "play", "train until you pause or stop", self._play),
            "micro": self._button(
                "1 micro-batch",
                "step-forward",
                "do one micro-batch",
                lambda: lab.step("micro-batch"),
            ),
            "update": self._button("1 update", "fast-forward", "do one weight update", lab.step),
            "stop": self._button(
                "Stop", "stop", "end training; an update under way is undone", lab.stop
            ),
            "reset": self._button(
                "Reset",
                "undo",
                "start a new run with what the sliders say; this one stays as a ghost",
                lab.reset,
            ),
            "race": self._button(
                "Race four methods",
                "flag-checkered",
                "DPR, GradAccum, pre-batch and ContAccum one after the other",
                self._race,
            ),
        }
        method = widgets.Dropdown(
            options=[(f"{NAMES[name]}: {PRESETS[name]['description']}", name) for name in PRESETS],
            value=lab.method,
            description="method",
            layout=_LAYOUT,
        )
        pace = widgets.Dropdown(options=_PACES, value=0.0, description="pace", layout=_LAYOUT)
        choices = {name: self._choice(name) for name in CHOICES}
        sliders = {name: self._slider(name) for name in SLIDERS}
        switches = {name: self._switch(name) for name in SWITCHES}
        self.controls = {"method": method, **choices, **sliders, **switches, "pace": pace}
        for name, control in self.controls.items():
            self.bind(control, lambda v, name=name: self.set(name, None if v == OFF else v))
        self.line = widgets.Text(
            value=lab.share(),
            description="share line",
            continuous_update=False,
            layout=_LAYOUT,
            **tooltip("this run in one line; paste another and press Enter"),
        )
        self.bind(self.line, self._load)
        lab.observe(self._on_trait_changed, list(self.controls))

    def close(self) -> None:
        """Stop following the lab."""
        self.lab.unobserve(self._on_trait_changed, list(self.controls))

    def bind(self, control, action) -> None:
        """Call `action(value)` on the training thread when the control's value changes."""
        control.observe(lambda change: self.lab.soon(action, change.new), "value")

    def _button(self, text: str, icon: str, help: str, action):
        button = widgets.Button(description=text, icon=icon, tooltip=help, layout={"width": "auto"})
        button.on_click(lambda _: self.lab.soon(self._report_errors, action))
        return button

    def _choice(self, name: str):
        value = getattr(self.lab, name)
        return widgets.Dropdown(
            options=_choices_including(name, value),
            value=OFF if value is None else value,
            description=name.replace("_", " "),
            **tooltip(FIELDS[name].metadata["help"]),
            layout=_LAYOUT,
        )

    def _slider(self, name: str):
        metadata, value = FIELDS[name].metadata, getattr(self.lab, name)
        choices = metadata["slider"]
        options = dict(
            value=value,
            description=metadata["symbol"] or name.replace("_", " "),
            **tooltip(metadata["help"]),
            layout=_LAYOUT,
            style={"description_width": "90px"},
        )
        if isinstance(choices, range):
            low, high = min(choices[0], value), max(choices[-1], value)
            return widgets.IntSlider(min=low, max=high, **options)
        return widgets.SelectionSlider(options=_options_including(choices, value), **options)

    def _switch(self, name: str):
        return widgets.Checkbox(
            value=getattr(self.lab, name),
            description=name.replace("_", " "),
            **tooltip(FIELDS[name].metadata["help"]),
            indent=False,
            layout={"width": "auto"},
        )

    def set(self, name: str, value) -> None:
        """A control was moved: the lab takes its value, or `message` says why not."""
        if getattr(self.lab, name) == value:
            return
        message, self._setting = self.lab.message, name
        try:
            setattr(self.lab, name, value)
            if message == self._refusal == self.lab.message:
                self.lab.message = ""  # what was refused before is over
        except Exception as error:  # a value that does not fit, or no memory for it
            self.lab.message = self._refusal = str(error)
            self._sync_control(name)
        finally:
            self._setting = None
        self._disable_fixed()

    def _on_trait_changed(self, change) -> None:
        if change.name != self._setting:
            self._sync_control(change.name)

    def _sync_control(self, name: str) -> None:
        """Show the lab's value, also where it is none of the control's choices."""
        control, value = self.controls[name], getattr(self.lab, name)
        if hasattr(control, "max"):
            control.max, control.min = max(control.max, value), min(control.min, value)
        elif name in CHOICES:
            if value not in CHOICES[name].values():
                control.options = _choices_including(name, value)
            value = OFF if value is None else value
        elif name not in ("method", *SWITCHES):
            known = [choice for _, choice in control.options]
            if value not in known and name == "pace":
                control.options = [*control.options, (f"{value:g} a second", value)]
            elif value not in known:
                control.options = _options_including(known, value)
        control.value = value
        self._disable_fixed()

    def _disable_fixed(self) -> None:
        for name, control in self.controls.items():
            control.disabled = name in FIELDS and self.lab.fixed(name)

    def _play(self) -> None:
        if self.lab.playing:
            self.lab.pause()
        else:
            self.lab.play()

    def _race(self) -> None:
        self.lab.line_up()
        self.lab.play()

    def _load(self, line: str) -> None:
        if line.strip() != self.lab.share():
            self._report_errors(lambda: self.lab.load(line))

    def _report_errors(self, action) -> None:
        try:
            action()
        except Exception as error:  # for who pressed the button: the kernel's log has no reader
            self.lab.message = str(error)


def _choices_including(name: str, value) -> list[tuple[str, object]]:
    """The choices of a list, among them the value that it has."""
    choices = [(words, OFF if c is None else c) for words, c in CHOICES[name].items()]
    return choices if value in CHOICES[name].values() else [*choices, (f"{value:g}", value)]


def _options_including(choices, value) -> list[tuple[str, float]]:
    """Labelled choices of a slider, among them the value that it has."""
    return [(f"{choice:g}", choice) for choice in sorted({*choices, value})]

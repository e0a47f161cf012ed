"""The settings as a lab knows them: which can change, which can be hidden, their names."""

from __future__ import annotations

import dataclasses

from contaccum_lite.core.presets import PRESETS
from contaccum_lite.core.settings import Settings

FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
#: A run under way can take these, at its next update.
LIVE_FIELDS = ("learning_rate", "memory_size", "accumulation_steps", "local_batch", "query_bank")
#: Other fields' defaults depend on these.
FIELDS_THAT_SET_DEFAULTS = ("method", "tower", "dim", "start")
#: Some of the live ones follow from these: while one waits for Reset, sliders are of the next run.
FIELDS_THAT_SET_LIVE_ONES = ("method", "tower", "start")
SLIDERS = tuple(name for name, field in FIELDS.items() if field.metadata["slider"])
SWITCHES = ("query_bank",)  # on or off by hand
#: setting -> {words: value} of those that are chosen from a list
CHOICES: dict[str, dict] = {
    "start": {"pretrained on crops": "pretrained", "random weights": "random"},
    "objective": {
        "InfoNCE: softmax": "info_nce",
        "decoupled: without the positive": "decoupled",
        "SogCLR: a remembered normaliser": "sogclr",
        "sigmoid: each score alone": "sigmoid",
    },
    "directions": {
        "each query: passages": "query",
        "and each passage: queries": "both",
        "all four pairings": "all",
    },
    "mask_margin": {
        "off": None,
        "above the positive": 0.0,
        "above the positive + 1": 1.0,
        "above the positive + 3": 3.0,
    },
}
BUTTONS = ("micro", "update", "stop", "reset", "race")  # without Play, which always stays
VIEWS = ("matrix", "banks", "curves", "search")
#: panel of the curves -> (title, y axis is logarithmic, name of the x axis)
PANELS = {
    "loss": ("loss; dashed: log N", False, "update"),
    "norms": ("gradient norms", True, "update"),
    "ratio": ("ratio, passage ÷ query", True, "update"),
    "mrr": ("MRR@10, %", False, "update"),
    "mass": ("similarity mass", False, "age"),
}
_CONTROLS = ("method", *CHOICES, *SLIDERS, *SWITCHES, "pace", *BUTTONS, "kind")
#: What a teacher can leave out of a lab: its settings' controls, buttons, views and curves.
HIDEABLE = (*_CONTROLS, *VIEWS, *PANELS, "line")
NAMES = {method: preset["name"] for method, preset in PRESETS.items()}
#: start -> how a sentence names a run that starts so
START_WORDS = {
    "pretrained": "fine-tuned from a pretrained start",
    "random": "trained from random weights",
}
#: start -> how pictures name the towers before the first update
BEFORE = {"pretrained": "before fine-tuning", "random": "untrained"}


def validate_hidden(names) -> tuple[str, ...]:
    """Return one name or several as a tuple.

    Raises `ValueError` for a name that is not in `HIDEABLE`.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    if unknown := [name for name in names if name not in HIDEABLE]:
        raise ValueError(f"hide has {unknown[0]!r}: what can be left out is {', '.join(HIDEABLE)}.")
    return names


def symbol(name: str) -> str:
    """A setting as pictures name it: the paper's symbol, or its name."""
    return FIELDS[name].metadata["symbol"] or name.replace("_", " ")


def format_value(name: str, value) -> str:
    """A setting's value as pictures write it."""
    if name == "method":
        return NAMES[value]
    return f"{value:g}" if isinstance(value, float) else str(value)

"""A run as one line of text: its settings, sliders that moved while it ran, what is hidden."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl

from contaccum_lite.core.fields import read
from contaccum_lite.core.settings import Settings
from contaccum_lite.lab.fields import FIELDS, LIVE_FIELDS, validate_hidden


class Change(NamedTuple):
    """A slider that moved, or a switch that was turned, while a run trained."""

    step: int  # updates made before it
    name: str
    value: float | bool


class ShareLine(NamedTuple):
    """What a share line says; `hide` is None where it says nothing of it."""

    settings: Settings
    changes: dict[int, list[tuple[str, float | bool]]]  # updates made -> [(field, value)]
    hide: tuple[str, ...] | None


def format_share_line(settings: Settings, changes: list[Change] = (), hide=()) -> str:
    """The settings, then `then=update:field:value,…` and `hide=name,…` where there are any."""
    line = settings.share()
    if changes:
        line += "&then=" + ",".join(f"{step}:{name}:{value}" for step, name, value in changes)
    if hide:
        line += f"&hide={','.join(hide)}"
    return line


def parse_share_line(line: str) -> ShareLine:
    """Read what `format_share_line` wrote. Raises `ValueError` for what it cannot read."""
    if not isinstance(line, str):
        raise ValueError(
            f"line is {line!r:.80}: expected a text that share() gave, as in "
            "'method=contaccum&memory_size=64'."
        )
    line = line.strip().lstrip("?")
    options = dict(parse_qsl(line, keep_blank_values=True))
    items = [item for item in line.split("&") if not item.startswith(("then=", "hide="))]
    settings = Settings.parse("&".join(items))
    hide = None
    if "hide" in options:
        hide = validate_hidden(filter(None, options["hide"].split(",")))
    changes = {}
    for text in filter(None, options.get("then", "").split(",")):
        step, name, value = _parse_change(text, settings)
        changes.setdefault(step, []).append((name, value))
    return ShareLine(settings, changes, hide)


def _parse_change(text: str, settings: Settings) -> Change:
    match = re.fullmatch(r"(\d{1,8}):(\w+)(?::([^:]*))?", text)
    if not match or match[2] not in LIVE_FIELDS:
        raise ValueError(
            f"then={text!r} is no change of a run: expected update:field:value, where "
            f"field is one of {', '.join(LIVE_FIELDS)}."
        )
    name = match[2]
    value = read(FIELDS[name], match[3] or "")
    return Change(int(match[1]), name, getattr(settings.replace(**{name: value}), name))

"""A field of `Settings`: its default, what it is for, its range, its symbol and its slider."""

from __future__ import annotations

import dataclasses
from numbers import Integral, Real

from contaccum_lite.utils.text import check_text, shown

MANY = 10_000_000

_NUMBERS = {"int": Integral, "float": Real}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
}


@dataclasses.dataclass(frozen=True)
class MethodDefault:
    """A default that holds unless the method, the tower or the start has another."""

    value: object


def setting(default, help, low=None, high=None, symbol=None, slider=None, choices=None):
    """A field of `Settings`.

    With a `MethodDefault` it is None until the method, the tower or the start fills it in.

    help: what it is for. low, high: what is allowed. choices: all that is allowed. symbol: the
    paper's. slider: what can be chosen by hand in a lab, a range or a tuple; without it, no slider.
    """
    later = isinstance(default, MethodDefault)
    metadata = {
        "default": default.value if later else default,
        "help": help,
        "low": low,
        "high": high,
        "symbol": symbol,
        "slider": slider,
        "choices": choices,
    }
    return dataclasses.field(default=None if later else default, metadata=metadata)


def type_name(field) -> str:
    """ "int", "float", "str" or "bool"."""
    return str(field.type).split(" |")[0]


def is_optional(field) -> bool:
    return "None" in str(field.type)


def checked(field, value):
    """The value in its field's type and range.

    Raises `ValueError`: what was given, what is allowed.
    """
    kind, choices = type_name(field), field.metadata["choices"]
    if value is None and is_optional(field):
        return None
    is_number = isinstance(value, _NUMBERS.get(kind, ())) and not isinstance(value, bool)
    if not is_number and type(value).__name__ != kind:
        raise ValueError(
            f"{field.name} is {shown(value)}, a {type(value).__name__}: "
            f"it must be {_KINDS[kind]}, {range_of(field)}."
        )
    if choices and value not in choices:
        raise ValueError(f"{field.name} is {shown(value)}: choose one of {', '.join(choices)}.")
    if is_number:
        return _checked_number(field, value)
    if kind == "str":
        _check_not_empty(field, value)
        check_text(value, field.name)
    return value


def _checked_number(field, value) -> int | float:
    if not field.metadata["low"] <= value <= field.metadata["high"]:
        raise ValueError(f"{field.name} is {shown(value)}: it must be {range_of(field)}.")
    return int(value) if type_name(field) == "int" else float(value)


def _check_not_empty(field, text: str) -> None:
    if not text:
        raise ValueError(f"{field.name} is empty: {field.metadata['help']}.")


def range_of(field) -> str:
    """What is allowed, in words."""
    low, high, choices = (field.metadata[name] for name in ("low", "high", "choices"))
    if choices:
        return f"one of {', '.join(choices)}"
    return f"from {low} to {high}" if low is not None else field.metadata["help"]


def read(field, text: str):
    """A value of the field's type from text.

    Raises `ValueError`: what was given, what is allowed.
    """
    kind = type_name(field)
    if is_optional(field) and text in ("None", "none", ""):
        return None
    try:
        if kind == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError):
        raise ValueError(
            f"{field.name} is {shown(text)}: it must be {_KINDS[kind]}, {range_of(field)}."
        ) from None

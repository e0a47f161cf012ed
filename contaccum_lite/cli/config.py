"""Settings as YAML: `--config FILE`, and the settings.yaml of a run's folder."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml
from yaml.composer import ComposerError

from contaccum_lite.core.fields import read
from contaccum_lite.core.settings import Settings, fields_in_order
from contaccum_lite.utils.files import write_atomically
from contaccum_lite.utils.text import shown

FIELDS = {field.name: field for field in fields_in_order()}
_EXAMPLE = "give settings as in 'local_batch: 8', one a line."
# What PyYAML raises for a value that does not fit its tag: !!int x, the date 2026-13-01.
_BAD_VALUE = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)


def explicit_settings(args: argparse.Namespace) -> dict:
    """The settings that the user gave: those of --config, overridden by the options."""
    from_file = read_config(Path(args.config)) if args.config else {}
    options = {name: value for name, value in vars(args).items() if name in FIELDS}
    return from_file | options


def read_config(path: Path) -> dict:
    """Settings from a YAML file. Raises `ValueError` that says what is wrong in which file."""
    fields = _read_yaml(path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a {type(fields).__name__}: {_EXAMPLE}")
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        raise ValueError(
            f"{path}: {shown(unknown[0])} is not a setting: "
            f"the settings are {', '.join(sorted(FIELDS))}."
        )
    try:
        return {name: _read_value(name, value) for name, value in fields.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_value(name: str, value):
    """A text is read as an option's: YAML takes 2e-5 for one."""
    return read(FIELDS[name], value) if isinstance(value, str) else value


class _Loader(yaml.SafeLoader):
    """A loader without aliases: with them, a short file can be a value of any size."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(
                problem="an alias, *name, where a value is expected",
                problem_mark=self.peek_event().start_mark,
            )
        return super().compose_node(parent, index)


def _read_yaml(path: Path):
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): give a YAML file of settings."
        ) from None
    except RecursionError:
        raise ValueError(
            f"{path} has values inside values, too deep to be read: {_EXAMPLE}"
        ) from None
    except ComposerError as error:
        raise ValueError(f"{path} is not YAML of settings ({error}): {_EXAMPLE}") from None
    except (yaml.YAMLError, *_BAD_VALUE) as error:
        raise ValueError(f"{path} is not YAML ({error}): {_EXAMPLE}") from None


def write_config(folder: Path, settings: Settings) -> None:
    """Write all settings into the folder's settings.yaml, which --config reads."""
    values = {name: getattr(settings, name) for name in FIELDS}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_atomically(folder / "settings.yaml", f"# {settings.share()}\n{text}".encode())


def check_unedited(path: Path, saved: Settings) -> None:
    """Raise `ValueError` where a run's settings.yaml was edited: the run keeps its settings."""
    if not path.is_file():
        return
    fields = read_config(path)
    try:
        written = Settings(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for name in FIELDS:
        value, edited = getattr(saved, name), getattr(written, name)
        if value != edited:
            raise ValueError(
                f"{path} says {name} {edited!r}, and the run was begun with {value!r}, which it "
                f"keeps: write {value!r} there to go on, or give the file as --config and another "
                "folder as --out to begin a new run."
            )

"""What torchrun or `accelerate launch` says of this process, in the environment."""

from __future__ import annotations

import os

from contaccum_lite.utils.text import shown


def world_size() -> int:
    """How many processes train together; 1 without a launcher."""
    return _environment_number("WORLD_SIZE", 1)


def is_main_process() -> bool:
    """Whether this process prints and writes logs: the first of several, or the only one."""
    return world_size() < 2 or _environment_number("RANK", 0) == 0


def _environment_number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"the environment has {name}={shown(text)}: it must be a whole number, "
            "as torchrun has it."
        ) from None

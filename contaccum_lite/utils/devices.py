"""Which devices are here."""

from __future__ import annotations

import torch

from contaccum_lite.utils.text import shown


def check_device(name: str) -> torch.device:
    """The device of this name. Raises `ValueError` where it is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {shown(name)}: choose 'cpu', 'cuda' or 'cuda:1'.") from None
    if device.type == "cpu":
        return device
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    kind = torch.accelerator.current_accelerator().type if count else None
    if device.type != kind:
        choices = f"'cpu' or {kind!r}" if kind else "'cpu'"
        raise ValueError(
            f"device is {name!r}, and PyTorch finds no {device.type.upper()} device here: "
            f"choose {choices}."
        )
    if (device.index or 0) >= count:
        last = f"{kind}:{count - 1}"
        raise ValueError(
            f"device is {name!r}, and the last one here is {last!r}: choose it or one before it."
        )
    return device

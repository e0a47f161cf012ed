"""The file of a ContAccumLoss's banks in a checkpoint: what it must hold, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

BANKS = ("position", "vectors", "keys")  # the tensors of the banks, and of their file
_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_banks(file: Path) -> tuple[dict[str, Tensor], str]:
    """The banks in a file, and the number of the training that wrote it ("" without one)."""
    try:
        with safe_open(file, "pt") as content:
            marks = content.metadata() or {}
            banks = {name: content.get_tensor(name) for name in content.keys()}
    except OSError as error:
        raise ValueError(
            f"{file.parent} holds no banks ({error}): expected {file.name}, which a trainer with "
            "callbacks=[loss.callback] writes into its checkpoints."
        ) from None
    except SafetensorError as error:
        reason = repr(str(error)[:200])  # with text of the file in it
        raise ValueError(
            f"{file} cannot be read ({reason}): it is damaged, or no file of banks. "
            "Give another checkpoint."
        ) from None
    fault = fault_of(banks)
    if fault:
        raise ValueError(
            f"{file} holds no banks of a ContAccumLoss: {fault}. Give another checkpoint."
        )
    if not {"training", "digest"} & set(marks):  # written before there were marks
        return banks, ""
    if marks.get("digest") != digest_of(banks):
        raise ValueError(
            f"{file} is damaged: its banks are not those that were written. "
            "Give another checkpoint."
        )
    return banks, marks.get("training", "")


def digest_of(banks: dict[str, Tensor]) -> str:
    """A hash of the banks: types, shapes and values."""
    digest = hashlib.sha256()
    for name in BANKS:
        digest.update(f"{name} {_kind(banks[name])} ".encode())
        digest.update(banks[name].flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def fault_of(banks: dict[str, Tensor], size: int | None = None) -> str | None:
    """Why these tensors are not banks of a ContAccumLoss (of `size` pairs), or None."""
    if set(banks) != set(BANKS):
        return f"expected the tensors {', '.join(BANKS)} and no others"
    position, vectors, keys = (banks[name] for name in BANKS)
    fault = _fault_of_types(position, vectors, keys)
    if fault:
        return fault
    if size is not None and size != len(vectors):
        return f"they are of {len(vectors)} pairs, and this loss has {size}"
    return _fault_of_position(*position.tolist(), vectors)


def _fault_of_types(position: Tensor, vectors: Tensor, keys: Tensor) -> str | None:
    """Why these tensors have not the number types and shapes of banks, or None."""
    if vectors.ndim != 3 or vectors.shape[1] < 2 or vectors.dtype not in _PRECISIONS:
        return f"vectors are {_kind(vectors)}, expected floating-point numbers (pairs, columns, d)"
    if keys.shape != vectors.shape[:2] or keys.dtype != torch.int64:
        return f"keys are {_kind(keys)}, expected int64 {tuple(vectors.shape[:2])}"
    if position.shape != (2,) or position.dtype != torch.int64:
        return f"position is {_kind(position)}, expected int64 (2,)"
    return None


def _fault_of_position(start: int, count: int, vectors: Tensor) -> str | None:
    """Banks that are not full were filled from their beginning."""
    size = len(vectors)
    full = count == size and 0 <= start < max(1, size)
    filling = 0 <= start == count < size
    if not (full or filling):
        return f"position is {[start, count]}, which no banks of {size} pairs have"
    return f"it says {count} pairs of no length" if count and not vectors.numel() else None

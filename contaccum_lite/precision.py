"""Number formats and memory of real training: autocast, loss scaling, checkpointed activations, compiled encoders.

Weights, banks, loss and gradients stay in `settings.dtype`; only what happens inside a tower changes its format. Notebook 09.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .settings import Settings

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
BACKEND = "inductor"  # of torch.compile


def encode(tower: nn.Module, ids: Tensor, settings: Settings) -> Tensor:
    """The tower's vectors of these token ids, (B, L) -> (B, d) in `settings.dtype`; what is inside runs as `settings.precision` says."""
    if settings.precision == "fp32":
        return tower(ids)
    with torch.autocast(torch.device(settings.device).type, dtype=FORMATS[settings.precision]):
        vectors = tower(ids)
    return vectors.to(getattr(torch, settings.dtype))


def prepare(towers: list[nn.Module], settings: Settings) -> None:
    """Switch on what the settings ask of the towers. Raises `ValueError` for what these towers or this machine cannot do."""
    on_cuda = torch.device(settings.device).type == "cuda"
    if settings.precision == "fp16" and not on_cuda:
        raise ValueError(
            f"precision is 'fp16' and device is {settings.device!r}: half precision with loss scaling needs a CUDA device; choose 'bf16' or 'fp32'."
        )
    if settings.precision != "fp32" and settings.dtype != "float32":
        raise ValueError(
            f"precision is {settings.precision!r} and dtype is {settings.dtype!r}: autocast leaves {settings.dtype} alone; set dtype to 'float32'."
        )
    for tower in towers:
        for name in ("activation_checkpointing", "compile"):
            if getattr(settings, name) and not hasattr(tower, "model"):
                raise ValueError(
                    f"{name} is True, but a tower of kind {type(tower).__name__} has no layers that it would help: set {name} to False, "
                    "or give a transformers encoder as tower."
                )
        if settings.activation_checkpointing:
            _checkpoint(tower.model)
        if settings.compile:
            _compile(tower, settings)


def _checkpoint(model: nn.Module) -> None:
    options = {"use_reentrant": False}
    if hasattr(
        model, "activation_checkpointing_enable"
    ):  # its name in newer versions of transformers
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _compile(tower: nn.Module, settings: Settings) -> None:
    from .towers import has_dropout

    if settings.method == "grad_cache" and has_dropout(tower):
        # its two passes, one without and one with a graph, are compiled apart and may draw their noise in another order
        raise ValueError(
            "compile is True, the method 'grad_cache', and the encoder has dropout: a compiled encoder does not promise the same noise in both "
            "passes; set compile to False, or the encoder's dropout to 0."
        )
    tower.model.compile(dynamic=True, backend=BACKEND)


class LossScale:
    """By what a half-precision update's gradients are multiplied on their way through the towers, so that the small ones are not lost.

    A power of two, so that the way back is exact. An update whose gradients overflow is taken back and made again with half
    of it; after `patience` updates without overflow it doubles. Always 1 for other formats.
    """

    patience = 2000

    def __init__(self, precision: str):
        self.value, self.fine = (2.0**16 if precision == "fp16" else 1.0), 0
        self.moves = precision == "fp16"

    def undo(self, towers: list[nn.Module]) -> None:
        """Divide the towers' gradients by it."""
        if self.value != 1:
            gradients = [
                p.grad for tower in towers for p in tower.parameters() if p.grad is not None
            ]
            torch._foreach_mul_(gradients, 1 / self.value)

    def halve(self) -> bool:
        """Half of it from now on; False where there is nothing left to halve."""
        if self.value <= 1:
            return False
        self.value, self.fine = self.value / 2, 0
        return True

    def went_well(self) -> None:
        """An update was made."""
        if self.moves:
            self.fine += 1
            if self.fine >= self.patience and self.value < 2.0**24:
                self.value, self.fine = self.value * 2, 0

"""Number formats and memory of real training.

Autocast, loss scaling, checkpointed activations, compiled encoders. Weights, banks, loss and
gradients stay in `settings.dtype`; only what happens inside a tower changes its format.
Notebook 09.
"""

from __future__ import annotations

import torch
from torch import nn

from contaccum_lite.core.hooks import NoLossScale
from contaccum_lite.core.settings import Settings
from contaccum_lite.encoders.encode import has_dropout

BACKEND = "inductor"  # of torch.compile


def configure_precision(run) -> None:
    """Switch on what the settings ask of the towers.

    Raises `ValueError` for what these towers or this machine cannot do.
    """
    settings = run.settings
    _check_formats(settings)
    for tower in run.learner.towers:
        for name in ("activation_checkpointing", "compile"):
            if getattr(settings, name) and not hasattr(tower, "model"):
                raise ValueError(
                    f"{name} is True, but a tower of kind {type(tower).__name__} has no layers "
                    f"that it would help: set {name} to False, or give a transformers encoder as "
                    "tower."
                )
        if settings.activation_checkpointing:
            _checkpoint_activations(tower.model)
        if settings.compile:
            _compile(tower, settings)
    if settings.precision == "fp16":
        run.learner.loss_scale = LossScale()


def _check_formats(settings: Settings) -> None:
    on_cuda = torch.device(settings.device).type == "cuda"
    if settings.precision == "fp16" and not on_cuda:
        raise ValueError(
            f"precision is 'fp16' and device is {settings.device!r}: half precision with loss "
            "scaling needs a CUDA device; choose 'bf16' or 'fp32'."
        )
    if settings.precision != "fp32" and settings.dtype != "float32":
        raise ValueError(
            f"precision is {settings.precision!r} and dtype is {settings.dtype!r}: autocast leaves "
            f"{settings.dtype} alone; set dtype to 'float32'."
        )


def _checkpoint_activations(model: nn.Module) -> None:
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # in newer versions of transformers
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _compile(tower: nn.Module, settings: Settings) -> None:
    if settings.method == "grad_cache" and has_dropout(tower):
        # its two passes, one without and one with a graph, are compiled separately and may draw
        # their noise in another order
        raise ValueError(
            "compile is True, the method 'grad_cache', and the encoder has dropout: a compiled "
            "encoder does not promise the same noise in both passes; set compile to False, or the "
            "encoder's dropout to 0."
        )
    tower.model.compile(dynamic=True, backend=BACKEND)


class LossScale(NoLossScale):
    """Gradients in fp16 are multiplied by it, so that small ones do not underflow.

    A power of two, so that the way back is exact. An update whose gradients overflow is undone and
    made again with half of it, which PyTorch's own GradScaler would skip. After `growth_interval`
    updates without overflow it doubles.
    """

    growth_interval = 2000

    def __init__(self):
        self.value, self.growth_tracker = 2.0**16, 0

    def unscale(self, towers: list[nn.Module]) -> None:
        for tower in towers:
            for p in tower.parameters():
                if p.grad is not None:
                    p.grad.mul_(1 / self.value)

    def backoff(self) -> bool:
        if self.value <= 1:
            return False
        self.value, self.growth_tracker = self.value / 2, 0
        return True

    def update(self) -> None:
        self.growth_tracker += 1
        if self.growth_tracker >= self.growth_interval and self.value < 2.0**24:
            self.value, self.growth_tracker = self.value * 2, 0

    def state(self) -> list:
        return [self.value, self.growth_tracker]

    def load_state(self, state: list | None) -> None:
        self.value, self.growth_tracker = state or (1.0, 0)  # older runs have none

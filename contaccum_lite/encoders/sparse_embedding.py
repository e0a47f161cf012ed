"""An embedding whose backward pass touches only the rows that were read."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SparseGradEmbedding(torch.autograd.Function):
    """An embedding that adds its gradient to `weight.grad` in place.

    PyTorch's own makes a table of zeros of the whole vocabulary for each micro-batch, and adds it:
    with K small micro-batches that is most of an update's time. Here only the rows of the tokens in
    the batch are touched, and `weight.grad` stays dense, as optimizers and clipping expect it.

    Autograd does not see the result (`torch.autograd.grad` returns None for the weight), so this is
    used only where a run collects `.grad`.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, ids: Tensor) -> Tensor:
        """The rows (..., dim) of the weight (vocabulary, dim) for token ids (...)."""
        ctx.weight, ctx.ids = weight, ids
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        weight = ctx.weight
        if weight.requires_grad:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad.index_add_(0, ctx.ids.flatten(), grad_output.flatten(0, -2))
        return None, None


embed_adding_grad = SparseGradEmbedding.apply

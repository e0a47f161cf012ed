"""Random arguments for exercises: all from one generator, so that a case is the same each time."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def randn(random: Generator, *shape: int) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def rand(random: Generator, *shape: int) -> Tensor:
    """Numbers from 0 to 1 in float64."""
    return torch.rand(shape, generator=random, dtype=torch.float64)


def randint(random: Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (1,), generator=random))


def temperature(random: Generator) -> float:
    """A temperature from 0.3 to 2.3."""
    return float(0.3 + 2 * rand(random))


def batch(random: Generator, number: int) -> tuple[Tensor, Tensor, float]:
    """Queries (N, d), passages (N, d), a temperature."""
    n, d = randint(random, 2, 6), randint(random, 2, 5)
    return randn(random, n, d), randn(random, n, d), temperature(random)

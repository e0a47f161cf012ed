"""Numbers read off a run: gradient norms, where the softmax puts its weight, memory."""

from __future__ import annotations

import re
import sys
import weakref
from pathlib import Path

import torch
from torch import Tensor, nn

from .settings import shown


def grad_norm(tower: nn.Module) -> float:
    """‖∂loss/∂weights‖₂ of one tower; 0 where it has no gradient."""
    gradients = [p.grad for p in tower.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0


def grad_norm_ratio(run) -> float:
    """GradNormRatio of the run's last update: ‖passage tower's gradient‖₂ / ‖query tower's gradient‖₂ (Section 5.5).

    1 is balance; a clip of one global norm scales both and leaves it as it is. Raises `ValueError` before the first update.
    """
    if not run.history:
        raise ValueError("the run has made no update yet: call run.step() first.")
    return run.history[-1].grad_norm_ratio


@torch.no_grad()
def similarity_mass(run, fresh: bool = False) -> dict[int, float]:
    """Equation 10: how much of the next batch's softmax falls on a passage, on average, by the passage's age in updates.

    Scores of the next micro-batch's queries with its own passages (age 0) and with the passage bank; softmax over all of
    them, each query's own positive and its duplicates left out, summed over the passages of an age and divided by their
    number. The printed formula has no softmax in it; its text does, and so has this. fresh: the control, with the bank's
    passages encoded anew by the tower as it is now; only where the two differ does age do anything. Changes nothing in the run.
    """
    batch = run.feed.batches(run.step_count % run.feed.updates_per_epoch)[0]
    vectors = run.learner.encode_fresh(batch)
    bank = run.learner.passage_bank
    kept = bank.vectors
    if fresh and len(bank):
        kept = run.learner.encode_fresh(run.feed.micro_batch(bank.ids.numpy())).passages
    columns = torch.cat([batch.pair_ids, bank.ids])
    scores = vectors.queries @ torch.cat([vectors.passages, kept]).T / run.settings.temperature
    mask = run.learner.mask(columns, columns[:0], len(batch.pair_ids))
    scores = scores if mask is None else scores.masked_fill(mask, -torch.inf)
    scores.fill_diagonal_(-torch.inf)
    mass = scores.softmax(1).mean(0).cpu()  # (columns,)
    ages = torch.cat(
        [torch.zeros(len(batch.pair_ids), dtype=torch.int64), bank.ages(run.step_count)]
    )
    return {int(age): float(mass[ages == age].mean()) for age in ages.unique()}


def activation_memory(run, pairs: int) -> int:
    """How many bytes autograd keeps for the backward pass of one batch of so many pairs, without the weights. Notebook 02."""
    kept, weights = (
        {},
        {
            p.untyped_storage().data_ptr()
            for tower in run.learner.towers
            for p in tower.parameters()
        },
    )

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    if not 1 <= pairs <= len(run.feed.rows):
        raise ValueError(
            f"pairs is {pairs}: it must be from 1 to {len(run.feed.rows)}, the pairs to train on."
        )
    batch = run.feed.micro_batch(run.feed.rows[:pairs])
    noise = run.learner.noise(run.step_count, 0)  # as in training: dropout keeps its masks
    with noise, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        vectors = run.learner.encode(
            batch, purpose=None
        )  # kept alive, so that no storage is used twice
    del vectors
    return sum(kept.values())


def tensor_memory(function) -> int:
    """The most bytes of tensors made by function() that are alive at one moment, the backward pass included. Notebook 08.

    Counted by storage as tensors are made and dropped, so the same on every machine; what a kernel takes inside itself is not seen.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    alive: dict[int, int] = {}
    found = dict(now=0, most=0)

    def gone(key):
        found["now"] -= alive.pop(key)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            given = {
                t.untyped_storage()._cdata
                for t in tree_leaves((args, kwargs))
                if isinstance(t, Tensor)
            }
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    key = storage._cdata
                    if key not in alive and key not in given:
                        alive[key] = storage.nbytes()
                        found["now"] += alive[key]
                        weakref.finalize(storage, gone, key)
            found["most"] = max(found["most"], found["now"])
            return out

    with Watch():
        function()
    return found["most"]


def finite_differences(function, x: Tensor, step: float = 1e-6) -> Tensor:
    """∂function/∂x by central differences, of x's shape: slow, and needs no calculus. x: float64; function gives a number."""
    x, gradient = x.detach().clone(), torch.zeros_like(x)
    for place in range(x.numel()):
        moved = x.flatten().clone()
        moved[place] += step
        up = function(moved.view_as(x))
        moved[place] -= 2 * step
        gradient.view(-1)[place] = (up - function(moved.view_as(x))) / (2 * step)
    return gradient


def peak_memory() -> float:
    """The most memory that this process has held, in MB."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    if sys.platform.startswith(
        "linux"
    ):  # getrusage would count what the parent held when it started this process
        return (
            int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6
        )
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def cap_memory(size: str | int, device: str = "cpu") -> int:
    """Let this process hold no more memory than this, from now on: "11GB", "512MiB" or a number of bytes; returns the bytes.

    On a GPU by PyTorch's share of the device's memory, as the paper does it. On the CPU (Linux) by the address space, which may
    still grow by what the cap leaves above the memory that is held now. Beyond it PyTorch raises `RuntimeError`, Python `MemoryError`.
    Raises `ValueError` for a size that cannot be read, or that is less than is held or more than there can be. Notebook 09.
    """
    cap = _bytes(size)
    if device_here(device).type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        if cap > total:
            raise ValueError(
                f"the memory cap is {size}, and {device} has {total / 1e9:.1f} GB: give a smaller cap."
            )
        torch.cuda.set_per_process_memory_fraction(cap / total, torch.device(device))
        return cap
    if not sys.platform.startswith("linux"):
        raise ValueError(
            f"the memory cap of a process can be set on Linux or on a CUDA device, and this is {sys.platform} with device {device!r}: leave it out."
        )
    import resource

    space, held = (
        int(pages) * resource.getpagesize()
        for pages in Path("/proc/self/statm").read_text().split()[:2]
    )
    if cap <= held:
        raise ValueError(
            f"the memory cap is {size}, and the process holds {held / 1e9:.2f} GB before it has begun: give a larger cap."
        )
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = space + cap - held
    if limit > sys.maxsize:
        raise ValueError(_TOO_LARGE.format(shown(size)))
    resource.setrlimit(
        resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )
    return cap


_TOO_LARGE = "the memory cap is {}, more than a process can hold: give a smaller cap, as in 11GB."


def device_here(name: str) -> torch.device:
    """The device of this name. Raises `ValueError` where it is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {shown(name)}: choose 'cpu', 'cuda' or 'cuda:1'.") from None
    if device.type == "cpu":
        return device
    there = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    kind = torch.accelerator.current_accelerator().type if there else None
    if device.type != kind:
        choices = f"'cpu' or {kind!r}" if kind else "'cpu'"
        wanted = device.type.upper()
        raise ValueError(
            f"device is {name!r}, and PyTorch finds no {wanted} device here: choose {choices}."
        )
    if (device.index or 0) >= there:
        last = f"{kind}:{there - 1}"
        raise ValueError(
            f"device is {name!r}, and the last one here is {last!r}: choose it or one before it."
        )
    return device


def _bytes(size: str | int) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT])(i?)B\s*", str(size), re.IGNORECASE)
    if found:
        number, unit, binary = found.groups()
        count = float(number) * (1024 if binary else 1000) ** ("KMGT".index(unit.upper()) + 1)
        if count > sys.maxsize:
            raise ValueError(_TOO_LARGE.format(shown(size)))
        return int(count)
    if isinstance(size, int) and size > 0:
        return size
    raise ValueError(
        f"the memory cap is {shown(size)}: write a number and a unit, as in 11GB or 512MiB."
    )

"""Numbers read off a run: gradient norms, where the softmax puts its weight, memory."""

from __future__ import annotations

import re
import sys
import weakref
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contaccum_lite.core.gradients import MicroBatch
from contaccum_lite.core.micro_step import Layout
from contaccum_lite.utils.devices import check_device
from contaccum_lite.utils.text import shown


def grad_norm_ratio(run) -> float:
    """GradNormRatio of the last update: ‖passage gradient‖₂ / ‖query gradient‖₂ (Section 5.5).

    The norms are of each tower's whole gradient. 1 is balance; a clip of one global norm scales
    both and leaves it as it is. Raises `ValueError` before the first update.
    """
    if not run.history:
        raise ValueError("the run has made no update yet: call run.step() first.")
    return run.history[-1].grad_norm_ratio


def next_micro_batch(run) -> MicroBatch:
    """The first micro-batch of the run's next update.

    After the first epoch, of the update that stands in its place there.
    """
    first = run.sampler.cursor.update
    since = (run.step_count - first) % run.sampler.updates_per_epoch
    return run.sampler.batches(first + since)[0]


@torch.no_grad()
def similarity_mass(run, fresh: bool = False, batch: MicroBatch | None = None) -> dict[int, float]:
    """Equation 10: a batch's softmax weight on a passage, by the passage's age in updates.

    Scores of the next micro-batch's queries (or of `batch`) with its own passages (age 0) and with
    the passage bank; softmax over all of them, each query's own positive and its duplicates left
    out. A passage's mass is its mean weight over the queries that it is not left out for, so a
    uniform softmax gives every age the same. The mean over the passages of an age. The printed
    formula has no softmax in it; its text does, and so has this. Notebook 07.

    fresh: the control, with the bank's passages encoded again by the tower as it is now; only where
    the two differ does age do anything. Changes nothing in the run.
    """
    batch = next_micro_batch(run) if batch is None else batch
    learner, bank = run.learner, run.passage_bank
    vectors = learner.encode_without_noise(batch)
    banked = bank.vectors
    if fresh and len(bank):
        banked = learner.encode_without_noise(run.sampler.micro_batch(bank.ids.numpy())).passages
    num_local = len(batch.pair_ids)
    columns = torch.cat([batch.pair_ids, bank.ids])
    scores = vectors.queries @ torch.cat([vectors.passages, banked]).T / run.settings.temperature
    mask = learner.duplicate_mask(Layout(num_local, batch.pair_ids, columns, len(columns)))
    scores = scores if mask is None else scores.masked_fill(mask, -torch.inf)
    scores.fill_diagonal_(-torch.inf)
    compared = (scores > -torch.inf).sum(0)  # queries for which a passage is not left out
    mass = (scores.softmax(1).sum(0) / compared).cpu()  # (columns,)
    ages = torch.cat([torch.zeros(num_local, dtype=torch.int64), bank.ages(run.step_count)])
    is_negative = compared.cpu() > 0  # a passage of every query of the batch has no mass
    return {
        int(age): float(mass[(ages == age) & is_negative].mean())
        for age in ages[is_negative].unique()
    }


def activation_memory(run, pairs: int) -> int:
    """Bytes that autograd keeps for one batch's backward pass, without the weights. Notebook 02.

    pairs: of the batch. Raises `ValueError` if there are not so many pairs to train on.
    """
    if not 1 <= pairs <= len(run.sampler.rows):
        raise ValueError(
            f"pairs is {pairs}: it must be from 1 to {len(run.sampler.rows)}, "
            "the pairs to train on."
        )
    batch = run.sampler.micro_batch(run.sampler.rows[:pairs])
    weights = set()
    for tower in run.learner.towers:
        weights |= {weight.untyped_storage().data_ptr() for weight in tower.parameters()}
    saved = {}  # bytes by storage

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    noise = run.learner.replayable_rng(run.step_count, 0)  # as in training: dropout keeps its masks
    with noise, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        vectors = run.learner.encode(batch, purpose=None)  # alive, so no storage is used twice
    del vectors
    return sum(saved.values())


def tensor_memory(function) -> int:
    """The most bytes of tensors made by function() that are alive at one moment. Notebook 08.

    The backward pass is included. Counted by storage as tensors are made and freed, so the same on
    every machine; what a kernel allocates inside itself is not counted.
    """
    with _TensorMemory() as memory:
        function()
    return memory.peak


class _TensorMemory(TorchDispatchMode):
    """Counts the bytes of storages that operations make, until they are freed."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, int] = {}  # bytes by storage
        self.current = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        arguments = {_storage_key(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            key = _storage_key(storage)
            if key not in self.alive and key not in arguments:
                self.alive[key] = storage.nbytes()
                self.current += self.alive[key]
                weakref.finalize(storage, self._freed, key)
        self.peak = max(self.peak, self.current)
        return out

    def _freed(self, key: int) -> None:
        self.current -= self.alive.pop(key)


def _storages(tree) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage_key(storage: torch.UntypedStorage) -> int:
    return storage._cdata  # data_ptr is 0 for every empty storage


def finite_differences(function, x: Tensor, step: float = 1e-6) -> Tensor:
    """∂function/∂x by central differences, of x's shape: slow, and needs no calculus.

    x: float64; function(x): a number.
    """
    x, gradient = x.detach().clone(), torch.zeros_like(x)
    for index in range(x.numel()):
        moved = x.flatten().clone()
        moved[index] += step
        up = function(moved.view_as(x))
        moved[index] -= 2 * step
        gradient.view(-1)[index] = (up - function(moved.view_as(x))) / (2 * step)
    return gradient


def peak_memory() -> float:
    """The most memory that this process has held, in MB."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    if sys.platform.startswith("linux"):
        # getrusage would count what the parent held when it started this process
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def cap_memory(size: str | int, device: str = "cpu") -> int:
    """Limit the memory of this process from now on, and return the limit in bytes. Notebook 09.

    size: "11GB", "512MiB" or a number of bytes. On a GPU this is PyTorch's share of the device's
    memory, as the paper does it. On the CPU (Linux) it is the address space, which may still grow
    by what the limit leaves above the memory that is held now. Beyond it PyTorch raises
    `RuntimeError`, Python `MemoryError`. Raises `ValueError` for a size that cannot be read, or
    that is less than is held or more than there can be.
    """
    cap = _bytes(size)
    if check_device(device).type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        if cap > total:
            raise ValueError(
                f"the memory cap is {size}, and {device} has {total / 1e9:.1f} GB: "
                "give a smaller cap."
            )
        torch.cuda.set_per_process_memory_fraction(cap / total, torch.device(device))
        return cap
    if not sys.platform.startswith("linux"):
        raise ValueError(
            "the memory cap of a process can be set on Linux or on a CUDA device, "
            f"and this is {sys.platform} with device {device!r}: leave it out."
        )
    import resource

    space, held = (
        int(pages) * resource.getpagesize()
        for pages in Path("/proc/self/statm").read_text().split()[:2]
    )
    if cap <= held:
        raise ValueError(
            f"the memory cap is {size}, and the process holds {held / 1e9:.2f} GB "
            "before it has begun: give a larger cap."
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


def _bytes(size: str | int) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT])(i?)B\s*", str(size), re.IGNORECASE)
    if match:
        number, unit, binary = match.groups()
        count = float(number) * (1024 if binary else 1000) ** ("KMGT".index(unit.upper()) + 1)
        if count > sys.maxsize:
            raise ValueError(_TOO_LARGE.format(shown(size)))
        return int(count)
    if isinstance(size, int) and size > 0:
        return size
    raise ValueError(
        f"the memory cap is {shown(size)}: write a number and a unit, as in 11GB or 512MiB."
    )

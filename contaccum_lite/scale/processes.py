"""One run on many processes, through Hugging Face accelerate.

`torchrun` or `accelerate launch` starts them:

    run = cl.Run(pairs, settings, accelerator=processes.accelerator_here(settings.device))

Every process holds the towers, the optimiser and the banks whole, and draws the same data order
from the seed. Of each micro-batch of N_local · processes pairs it encodes its own shard. The
vectors of all shards are gathered, and every process compares the same micro-batch with the same
banks. It carries back the gradients of its own vectors; before the weight update, and only then,
the towers' gradients are added up. So the steps are those of one process with a micro-batch that
many times as large, to rounding, for every method. Notebook 09.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

import torch
from torch import nn

from contaccum_lite.core.gradients import Embeddings, MicroBatch
from contaccum_lite.core.hooks import SingleProcess
from contaccum_lite.core.loss import info_nce

_BUCKET = 2**25  # numbers that are added up at a time: a second copy of them is made


def accelerator_here(device: str = "cpu", hours: float = 6.0):
    """The `accelerate.Accelerator` of this process where a launcher has started several, or None.

    device: as in `Settings`: 'cpu' takes gloo even where there is a GPU. hours: how long a process
    waits for the others, the first one's evaluation included. With 'cuda', each process has the GPU
    of its own number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import Accelerator, InitProcessGroupKwargs

    on_cpu = torch.device(device).type == "cpu"
    timeout = InitProcessGroupKwargs(timeout=timedelta(hours=hours))
    return Accelerator(cpu=on_cpu, kwargs_handlers=[timeout])


def leave() -> None:
    """End this process's part in the group, as a script's last step; nothing where there is none.

    A thread of gloo may still hold tensors of the last sum. It needs Python's lock to let them go,
    and aborts the process where Python is at its exit ("terminate called without an active
    exception"): so it is given a moment. Destroying the group does not wait for that thread once
    torch._dynamo, which every optimiser imports, holds the group too.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(0.5)


class ProcessGroup(SingleProcess):
    """This process's share of a run that several make together.

    Towers are kept whole on every process (accelerate's plain data parallelism). Raises
    `ValueError` for a configuration that shards them (FSDP, DeepSpeed) and for one on another kind
    of device.
    """

    def __init__(self, accelerator, device: str):
        kind, run_device = accelerator.distributed_type.value, torch.device(device)
        if kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
            raise ValueError(
                f"accelerate is configured for {kind}: a Run keeps its towers whole on every "
                "process and cannot shard them. Launch it with plain data parallelism, or train "
                "with contaccum_lite.sentence_transformers.ContAccumLoss, whose trainer takes that "
                "configuration."
            )
        here = accelerator.device
        if here.type != run_device.type or run_device.index not in (None, here.index):
            raise ValueError(
                f"device is {device!r} and accelerate works on {str(here)!r}: make it by "
                "accelerator_here(settings.device), with device 'cpu' or 'cuda' (without a number)."
            )
        self.accelerator = accelerator
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes

    def shard_bounds(self, batch: MicroBatch) -> tuple[list[int], list[int]]:
        """Where each process's pairs begin, and its hard negatives; the last entry is the end.

        Shards differ by one pair at most; of the hard negatives each has the share it has of the
        pairs.
        """
        num_pairs, num_hard = len(batch.pair_ids), len(batch.hard_ids)
        pairs = [num_pairs * rank // self.world_size for rank in range(self.world_size + 1)]
        return pairs, [num_hard * bound // max(1, num_pairs) for bound in pairs]

    def _local_slices(self, batch: MicroBatch) -> tuple[slice, slice]:
        """This process's pairs and hard negatives."""
        pairs, hard = self.shard_bounds(batch)
        first, last = self.rank, self.rank + 1
        return slice(pairs[first], pairs[last]), slice(hard[first], hard[last])

    def shard(self, batch: MicroBatch) -> MicroBatch:
        pairs, hard = self._local_slices(batch)
        positives, negatives = batch.passage_tokens.tensor_split([len(batch.pair_ids)])
        tokens = torch.cat([positives[pairs], negatives[hard]])
        return MicroBatch(
            batch.pair_ids[pairs], batch.hard_ids[hard], batch.query_tokens[pairs], tokens
        )

    @torch.no_grad()
    def all_gather(self, embeddings: Embeddings, batch: MicroBatch) -> Embeddings:
        """One gather per micro-batch, without a graph: the gradients come by hand."""
        pairs, hard = (torch.tensor(bounds).diff().tolist() for bounds in self.shard_bounds(batch))
        rows = [2 * num_pairs + num_hard for num_pairs, num_hard in zip(pairs, hard)]
        local = torch.cat([vectors for vectors in embeddings.detach() if vectors is not None])
        # a gather needs shards of one length: shorter ones are padded
        padded = nn.functional.pad(local, (0, 0, 0, max(rows) - len(local)))
        shards = []
        for rank, vectors in enumerate(self.accelerator.gather(padded).split(max(rows))):
            sizes = [pairs[rank], pairs[rank], hard[rank]]
            queries, passages, negatives = vectors[: rows[rank]].split(sizes)
            shards.append(Embeddings(queries, passages, negatives if len(batch.hard_ids) else None))
        return concat_by_role(shards)

    def local_slice(self, gradients: tuple, batch: MicroBatch) -> tuple:
        pairs, hard = self._local_slices(batch)
        slices = zip(gradients, (pairs, pairs, hard))
        return tuple(None if gradient is None else gradient[rows] for gradient, rows in slices)

    def broadcast_parameters(self, towers: list[nn.Module]) -> None:
        """The first process's weights for all."""
        from accelerate.utils import broadcast

        for tower in towers:
            for weight in tower.state_dict().values():
                weight.copy_(broadcast(weight.contiguous()))

    @torch.no_grad()
    def all_reduce_gradients(self, towers: list[nn.Module]) -> None:
        """Sums, not means: each process has carried back another part of the same loss."""
        parameters = [p for tower in towers for p in tower.parameters() if p.requires_grad]
        for bucket in _buckets(parameters):
            for p in bucket:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            flat = torch.cat([p.grad.flatten() for p in bucket])
            sums = self.accelerator.reduce(flat, "sum").split([p.numel() for p in bucket])
            for p, total in zip(bucket, sums):
                p.grad.copy_(total.view_as(p))


def concat_by_role(shards: list[Embeddings], by_role: bool = True) -> Embeddings:
    """The vectors of a micro-batch from each process's.

    All queries, all passages, all hard negatives.

    by_role=False makes a mistake that is easily made, so that it can be shown: each process's
    passages and hard negatives are joined as they come, and the joined columns are cut after as
    many as there are queries. On one process that is right. On more, the queries of all but the
    first have another one's hard negative, or passage, for their positive. Notebook 09.
    """
    queries, passages, hard = zip(*shards)
    queries, passages = torch.cat(queries), torch.cat(passages)
    if hard[0] is None:
        return Embeddings(queries, passages, None)
    if by_role:
        return Embeddings(queries, passages, torch.cat(hard))
    columns = torch.cat([vectors for shard in shards for vectors in shard[1:]])
    return Embeddings(queries, *columns.tensor_split([len(queries)]))


def gathered_info_nce(
    shards: list[Embeddings], temperature: float = 1.0, by_role: bool = True
) -> float:
    """InfoNCE of what several processes hold, joined as in `concat_by_role`.

    It shows the mistake.
    """
    queries, passages, hard = concat_by_role(shards, by_role)
    return float(info_nce(queries, passages, hard_negatives=hard, temperature=temperature))


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters in groups of one number format and some size."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for p in parameters:
        if not buckets or size + p.numel() > _BUCKET or buckets[-1][0].dtype != p.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(p)
        size += p.numel()
    return buckets

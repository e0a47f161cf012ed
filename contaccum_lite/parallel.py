"""One run on many processes, through Hugging Face accelerate: `torchrun` or `accelerate launch` starts them.

    run = cl.Run(pairs, settings, accelerator=parallel.accelerator_here(settings.device))

Every process holds the towers, the optimiser and the banks whole, and draws the same data order from the seed. Of each micro-batch
of N_local · processes pairs it encodes its own part, the vectors of all parts are gathered, and every process contrasts the same
whole micro-batch with the same banks. It carries back the gradients of its own vectors; before the weight update, and only
then, the towers' gradients are added up. So the steps are those of one process with a micro-batch that many times as large, to
rounding, for every method. Notebook 09.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from torch import Tensor, nn

from .loss import info_nce
from .methods import Alone, Encoded, MicroBatch
from .settings import Settings

_BUCKET = 2**25  # numbers that are added up at a time: a second copy of them is made


def accelerator_here(device: str = "cpu", hours: float = 6.0):
    """The `accelerate.Accelerator` of this process where a launcher has started several, otherwise None.

    device: as in `Settings`: 'cpu' takes gloo even where there is a GPU. hours: how long a process waits for the others, the
    first one's evaluation included. With 'cuda', each process has the GPU of its own number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import Accelerator, InitProcessGroupKwargs

    return Accelerator(
        cpu=torch.device(device).type == "cpu",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=hours))],
    )


class Among(Alone):
    """This process's part in a run that several make together; a `Run` with an accelerator has one.

    Towers are kept whole on every process (accelerate's plain data parallelism). Raises `ValueError` for a configuration that
    shards them (FSDP, DeepSpeed) and for one that is on another kind of device than the settings.
    """

    def __init__(self, accelerator, settings: Settings):
        kind, wanted = accelerator.distributed_type.value, torch.device(settings.device)
        if kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
            raise ValueError(
                f"accelerate is configured for {kind}: a Run keeps its towers whole on every process and cannot shard them. Launch it with plain "
                "data parallelism, or train with contaccum_lite.sentence_transformers.ContAccumLoss, whose trainer takes that configuration."
            )
        if accelerator.device.type != wanted.type or wanted.index not in (
            None,
            accelerator.device.index,
        ):
            raise ValueError(
                f"device is {settings.device!r} and accelerate works on {str(accelerator.device)!r}: make it by "
                f"accelerator_here(settings.device), with device 'cpu' or 'cuda' (without a number)."
            )
        self.accelerator, self.rank, self.world = (
            accelerator,
            accelerator.process_index,
            accelerator.num_processes,
        )

    def _bounds(self, count: int) -> list[int]:
        """Where each process's part of `count` pairs begins, and where the last one ends; parts differ by one at most."""
        return [count * rank // self.world for rank in range(self.world + 1)]

    def _parts(self, batch: MicroBatch) -> tuple[list[int], list[int]]:
        """Bounds of each process's pairs, and of its hard negatives: a share of them as large as its share of the pairs."""
        pairs, hard = len(batch.pair_ids), len(batch.hard_ids)
        bounds = self._bounds(pairs)
        return bounds, [hard * place // max(1, pairs) for place in bounds]

    def part(self, batch: MicroBatch) -> MicroBatch:
        pairs = len(batch.pair_ids)
        mine, hard = (slice(*of[self.rank : self.rank + 2]) for of in self._parts(batch))
        return MicroBatch(
            batch.pair_ids[mine],
            batch.hard_ids[hard],
            batch.query_tokens[mine],
            torch.cat([batch.passage_tokens[:pairs][mine], batch.passage_tokens[pairs:][hard]]),
        )

    @torch.no_grad()
    def together(self, vectors: Encoded, batch: MicroBatch) -> Encoded:
        """One gather per micro-batch, without a graph: the gradients come by hand."""
        sizes = [
            (end - start, last - first)
            for (start, end), (first, last) in zip(*(zip(of, of[1:]) for of in self._parts(batch)))
        ]
        mine = torch.cat([part.detach() for part in vectors.present()])
        rows = max(
            2 * pairs + hard for pairs, hard in sizes
        )  # a shorter part is filled up, for a gather needs equal ones
        filled = nn.functional.pad(mine, (0, 0, 0, rows - len(mine)))
        found = self.accelerator.gather(filled).split(rows)
        return in_order(
            [
                _kinds(part, pairs, hard, len(batch.hard_ids) > 0)
                for part, (pairs, hard) in zip(found, sizes)
            ]
        )

    def own(self, gradients: list[Tensor | None], batch: MicroBatch) -> list[Tensor | None]:
        mine, hard = (slice(*of[self.rank : self.rank + 2]) for of in self._parts(batch))
        return [
            None if gradient is None else gradient[place]
            for gradient, place in zip(gradients, (mine, mine, hard))
        ]

    def start(self, towers: list[nn.Module]) -> None:
        """The first process's weights for all."""
        from accelerate.utils import broadcast

        for tower in towers:
            for weight in tower.state_dict().values():
                weight.copy_(broadcast(weight.contiguous()))

    @torch.no_grad()
    def add_up(self, towers: list[nn.Module]) -> None:
        """Sums, not means: each process has carried back another part of the same loss."""
        parameters = [p for tower in towers for p in tower.parameters() if p.requires_grad]
        for bucket in _buckets(parameters):
            flat = torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket]
            )
            for p, summed in zip(
                bucket, self.accelerator.reduce(flat, "sum").split([p.numel() for p in bucket])
            ):
                p.grad = (
                    summed.view_as(p).clone() if p.grad is None else p.grad.copy_(summed.view_as(p))
                )


def in_order(parts: list[Encoded], by_kind: bool = True) -> Encoded:
    """The vectors of a whole micro-batch from each process's: all queries, all passages, all hard negatives.

    by_kind=False makes a mistake that is easily made, so that it can be shown: each process's passages and hard negatives are
    joined as they come, and the joined columns are cut after as many as there are queries. On one process that is right; on more,
    the queries of all but the first have another one's hard negative, or passage, for their positive. Notebook 09.
    """
    queries, passages, hard = (None if kind[0] is None else torch.cat(kind) for kind in zip(*parts))
    if by_kind or hard is None:
        return Encoded(queries, passages, hard)
    columns = torch.cat([torch.cat([part.passages, part.hard]) for part in parts])
    return Encoded(queries, columns[: len(queries)], columns[len(queries) :])


def loss_of(parts: list[Encoded], temperature: float = 1.0, by_kind: bool = True) -> float:
    """InfoNCE of what several processes hold, put together as in `in_order`: the number that shows the mistake."""
    whole = in_order(parts, by_kind)
    return float(
        info_nce(whole.queries, whole.passages, hard_negatives=whole.hard, temperature=temperature)
    )


def _kinds(rows: Tensor, pairs: int, hard: int, any_hard: bool) -> Encoded:
    """One process's (queries, passages, hard negatives) from its rows, of which the last may be filling."""
    queries, passages, negatives = rows[: 2 * pairs + hard].split([pairs, pairs, hard])
    return Encoded(queries, passages, negatives if any_hard else None)


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

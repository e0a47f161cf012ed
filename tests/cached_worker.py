"""What tests have two processes do with CachedContAccumLoss: `torchrun --nproc_per_node 2 cached_worker.py OUT ddp|fsdp|matryoshka`."""

import os
import sys
from functools import partial
from pathlib import Path

import torch

import parallel_worker as worker
import sharded_worker as sharded
import test_sentence_transformers as single


def train(out: Path, kind: str, world: int) -> dict[str, torch.Tensor]:
    """Weights and banks after six updates; `matryoshka` is ContAccumLoss inside MatryoshkaLoss."""
    from contaccum_lite.integrations.cached import CachedContAccumLoss
    from contaccum_lite.integrations.sentence_transformers import ContAccumLoss
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    fields, trainer_class = dict(save_strategy="no"), single.SentenceTransformerTrainer
    if kind == "fsdp" or kind.startswith("zero"):
        fields |= sharded.configuration(kind)
    if kind == "matryoshka":
        single.ContAccumLoss = ContAccumLoss

        def around(model, arguments, loss, **others):
            return trainer_class(
                model, arguments, loss=MatryoshkaLoss(model, loss, [32, 16]), **others
            )

        single.SentenceTransformerTrainer = around
    else:
        single.ContAccumLoss = partial(CachedContAccumLoss, mini_batch_size=2)
    try:
        _, model, loss = worker.train_triples(out, out / f"cached-{kind}-{world}", world, **fields)
    finally:
        single.ContAccumLoss, single.SentenceTransformerTrainer = ContAccumLoss, trainer_class
    weights = [sharded.whole(p, kind) for n, p in model.named_parameters() if "pooler" not in n]
    return {"weights": torch.cat(weights)} | loss.bank_state()


def main(out: Path, kind: str) -> None:
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    if kind == "fsdp":
        sharded.allow_fsdp_on_the_processor()
    if kind.startswith("zero"):
        sharded.allow_deepspeed_on_the_processor()
    found = train(out, kind, 2)
    if torch.distributed.get_rank() == 0:
        save_file(found, out / f"cached-{kind}.safetensors")
    torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # gloo's threads still hold tensors of sharded towers: Python's own exit may abort

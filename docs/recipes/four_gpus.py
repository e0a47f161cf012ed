"""Four GPUs: the micro-batches of all of them are one, and the banks are the same on each.

    torchrun --nproc_per_node 4 docs/recipes/four_gpus.py your/encoder train.jsonl out
    torchrun --nproc_per_node 4 docs/recipes/four_gpus.py your/encoder train.jsonl out BertLayer

The first line is DDP; the second is FSDP2, which shards the model by this layer.

To resume, also on another number of processes, give the line again with the same `out`:
per_device_train_batch_size · processes should stay the same, so that a micro-batch does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

from contaccum_lite.integrations.sentence_transformers import ContAccumLoss

MICRO_BATCH = 32  # pairs of all processes together


def main(encoder: str, pairs: str, out: str, sharded_layer: str = "", **changes) -> ContAccumLoss:
    """Train, and write the model to `out`/final. changes: of the trainer's arguments."""
    model = SentenceTransformer(encoder)
    loss = ContAccumLoss(model, memory_size=4096)
    settings = dict(
        per_device_train_batch_size=MICRO_BATCH // int(os.environ.get("WORLD_SIZE", "1")),
        gradient_accumulation_steps=8,  # one update: 256 pairs
        learning_rate=2e-5,
        warmup_steps=100,
        num_train_epochs=1,
        bf16=True,
        save_steps=500,
        dataloader_drop_last=True,
        report_to=[],
    )
    if sharded_layer:
        layers = {"version": 2, "transformer_layer_cls_to_wrap": [sharded_layer]}
        settings |= dict(fsdp=True, fsdp_config=layers, save_strategy="no")
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(out, **settings | changes),
        train_dataset=load_dataset("json", data_files=pairs, split="train"),
        loss=loss,
        callbacks=[loss.callback],
    )
    trainer.train(resume_from_checkpoint=any(Path(out).glob("checkpoint-*")))
    save(trainer, model, encoder, f"{out}/final")
    return loss


def save(trainer, model, encoder: str, folder: str) -> None:
    """Write the model once; shards are put together first."""
    weights = {}
    for name, value in model.state_dict().items():
        weights[name] = value.full_tensor() if hasattr(value, "full_tensor") else value
    if trainer.is_world_process_zero():
        whole = SentenceTransformer(encoder, device="cpu")
        whole.load_state_dict(weights)
        whole.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])

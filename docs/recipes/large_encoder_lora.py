"""A 7B encoder on one card: LoRA, bf16, gradient checkpointing, micro-batches of 2 pairs, a bank.

    python docs/recipes/large_encoder_lora.py your/7b-encoder train.jsonl out

Needs `pip install peft`. Checkpoints hold the adapters and the banks alone.
"""

from __future__ import annotations

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig, TaskType
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

from contaccum_lite.integrations.sentence_transformers import ContAccumLoss


def main(
    encoder: str, pairs: str, out: str, target_modules: str | list[str] = "all-linear", **changes
) -> ContAccumLoss:
    """Train adapters, and write them to `out`/final. changes: of the trainer's arguments."""
    weights = {"torch_dtype": torch.bfloat16}  # the frozen ones
    model = SentenceTransformer(encoder, model_kwargs=weights)
    model.max_seq_length = 512
    adapter = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=target_modules,
    )
    model.add_adapter(adapter)
    # banks: 1024 · 2 columns · 4096 · 4 bytes = 34 MB, and no activations
    loss = ContAccumLoss(model, memory_size=1024, scale=50.0)
    settings = dict(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=32,  # one update: 64 pairs
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=True,
        learning_rate=1e-4,
        warmup_steps=50,
        num_train_epochs=1,
        save_steps=200,
        report_to=[],
    )
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(out, **settings | changes),
        train_dataset=load_dataset("json", data_files=pairs, split="train"),
        loss=loss,
        callbacks=[loss.callback],
    )
    trainer.train()
    model.save_pretrained(f"{out}/final")
    return loss


if __name__ == "__main__":
    main(*sys.argv[1:])

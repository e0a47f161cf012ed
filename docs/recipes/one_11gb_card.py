"""One card of 11 GB, BERT-base: micro-batches of 8 pairs, K 16, N_memory 2048, bf16 or fp16.

python docs/recipes/one_11gb_card.py bert-base-uncased train.jsonl out
"""

from __future__ import annotations

import sys

import torch
from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

from contaccum_lite.integrations.sentence_transformers import ContAccumLoss


def main(encoder: str, pairs: str, out: str, **changes) -> ContAccumLoss:
    """Train, and write the model to `out`/final. changes: of the trainer's arguments."""
    model = SentenceTransformer(encoder)
    model.max_seq_length = 256
    loss = ContAccumLoss(model, memory_size=2048)  # banks: 2048 · 2 columns · 768 · 4 bytes = 13 MB
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    settings = dict(
        per_device_train_batch_size=8,
        gradient_accumulation_steps=16,  # one update: 128 pairs
        learning_rate=2e-5,
        warmup_steps=100,
        max_grad_norm=2.0,
        num_train_epochs=3,
        bf16=has_bf16,
        fp16=torch.cuda.is_available() and not has_bf16,  # cards before Ampere
        save_steps=500,
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

"""A laptop without a GPU: micro-batches of 8 pairs, and 512 pairs in memory.

    python docs/recipes/laptop.py your/encoder train.jsonl out

train.jsonl: one object a line, with the texts "anchor" and "positive", and "negative" if you have
"""

from __future__ import annotations

import sys

from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

from contaccum_lite.integrations.sentence_transformers import ContAccumLoss


def main(encoder: str, pairs: str, out: str, **changes) -> ContAccumLoss:
    """Train, and write the model to `out`/final. changes: of the trainer's arguments."""
    model = SentenceTransformer(encoder, device="cpu")
    model.max_seq_length = 64
    loss = ContAccumLoss(model, memory_size=512)
    settings = dict(
        per_device_train_batch_size=8,
        gradient_accumulation_steps=8,  # one update: 64 pairs, 8 of them in memory at a time
        learning_rate=2e-5,
        warmup_steps=20,
        num_train_epochs=1,
        save_steps=200,
        use_cpu=True,
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

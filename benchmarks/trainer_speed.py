"""ContAccumLoss beside sentence-transformers' own losses, in its trainer, on the same data, at the same memory.

    python -m benchmarks.trainer_speed                   python-docs, a BERT of 6 layers of 384: all rows (an hour on one core)
    python -m benchmarks.trainer_speed --small           the toy pairs, a tiny BERT, two rounds: some minutes, to see that it runs
    python -m benchmarks.trainer_speed --table           nothing is measured: the table again, from the records

Every way trains in a process of its own, so that its peak memory is its own, with one thread; ways take turns over the rounds.
"At the same memory" means that 8 pairs are encoded at a time, with gradients; MNRL with its whole batch at once is shown for the
memory that this takes. All see the same pairs in the same order, 64 pairs an update, and MRR@10 is that of the test pairs after
them. Medians; ratios are to MNRL with gradient accumulation. Records lie in benchmarks/records/trainer_speed.json.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median

import torch

import contaccum_lite as cl
from contaccum_lite.core.metrics import exact_search, retrieval_metrics
from contaccum_lite.encoders.transformer import TransformerTower
from contaccum_lite.encoders.vocabulary import vocabulary_for
from tools.docs import RECORDS, write_table

RECORD = RECORDS / "trainer_speed.json"
LOCAL, TOTAL = 8, 64
SIZES = {
    "full": dict(
        pairs="python-docs", dim=384, layers=6, heads=12, updates=60, rounds=3, memory=8192
    ),
    "small": dict(pairs="toy", dim=32, layers=1, heads=4, updates=4, rounds=2, memory=512),
}
WAYS = {
    "MNRL, accumulated": (LOCAL, TOTAL // LOCAL),
    "MNRL, whole batch at once": (TOTAL, 1),
    "CachedMNRL": (TOTAL, 1),
    "ContAccumLoss, N_memory 128": (LOCAL, TOTAL // LOCAL),
    "ContAccumLoss, N_memory 512": (LOCAL, TOTAL // LOCAL),
    "ContAccumLoss, large bank": (LOCAL, TOTAL // LOCAL),
    "CachedContAccumLoss, N_memory 512": (TOTAL, 1),
}
BASE = "MNRL, accumulated"


def loss_of(way: str, model, size: dict):
    """(loss, callbacks) of one way."""
    from sentence_transformers.sentence_transformer import losses

    from contaccum_lite.integrations.cached import CachedContAccumLoss
    from contaccum_lite.integrations.sentence_transformers import ContAccumLoss

    if way.startswith("MNRL"):
        return losses.MultipleNegativesRankingLoss(model), []
    if way == "CachedMNRL":
        return losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=LOCAL), []
    memory = size["memory"] if "large" in way else int(way.split()[-1])
    if way.startswith("Cached"):
        loss = CachedContAccumLoss(model, memory, mini_batch_size=LOCAL)
    else:
        loss = ContAccumLoss(model, memory)
    return loss, [loss.callback]


def encoder(pairs, size: dict, folder: str):
    """A small BERT with the same weights each time, as a SentenceTransformer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(0)
    shape = dict(layers=size["layers"], heads=size["heads"])
    tower = TransformerTower.small_bert(vocabulary_for(pairs), size["dim"], pooling="mean", **shape)
    tower.save_pretrained(folder)
    body = Transformer(folder, max_seq_length=64)
    return SentenceTransformer(modules=[body, Pooling(size["dim"], "mean")], device="cpu")


def in_order(dataset, batch_size, drop_last, **_):
    return torch.utils.data.BatchSampler(range(len(dataset)), batch_size, drop_last)


def train(way: str, name: str) -> dict:
    """Train one way in this process: seconds an update, peak memory, MRR@10 on the test pairs."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(time.perf_counter())

    torch.set_num_threads(1)
    size, times = SIZES[name], []
    pairs = cl.load_pairs(size["pairs"])
    local, steps = WAYS[way]
    needed = TOTAL * size["updates"]
    chosen = [pairs.train[number % len(pairs.train)] for number in range(needed)]
    data = Dataset.from_dict(
        {
            "anchor": [pair.query for pair in chosen],
            "positive": [f"{pair.title} {pair.passage}" for pair in chosen],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        model = encoder(pairs, size, folder)
        loss, callbacks = loss_of(way, model, size)
        arguments = SentenceTransformerTrainingArguments(
            f"{folder}/out",
            per_device_train_batch_size=local,
            gradient_accumulation_steps=steps,
            max_steps=size["updates"],
            learning_rate=5e-4,
            batch_sampler=in_order,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=1,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = SentenceTransformerTrainer(
            model, arguments, train_dataset=data, loss=loss, callbacks=[*callbacks, Clock()]
        )
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = median(later - earlier for earlier, later in zip(times, times[1:]))
    return dict(way=way, seconds=seconds, peak=peak, mrr=test_mrr(model, pairs))


def test_mrr(model, pairs) -> float:
    encode = lambda texts: model.encode(texts, convert_to_numpy=True, batch_size=64)
    queries = encode([pair.query for pair in pairs.test])
    passages = encode([f"{passage.title} {passage.text}" for passage in pairs.passages])
    _, rows = exact_search(queries, passages, 100)
    relevant = [{pairs.row_of[pair.passage_id]: 1} for pair in pairs.test]
    return float(retrieval_metrics(rows, relevant)["mrr@10"])


def measure(name: str) -> dict:
    """Every way in every round, each in a process of its own."""
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for turn in range(SIZES[name]["rounds"]):
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.trainer_speed", "--one", way, name]
            said = subprocess.run(command, capture_output=True, text=True)
            if said.returncode:
                raise RuntimeError(
                    f"{way} ended with status {said.returncode}:\n{said.stderr[-2000:]}"
                )
            found[way].append(json.loads(said.stdout.splitlines()[-1]))
            print(turn + 1, json.dumps(found[way][-1]), flush=True)
    return dict(size=SIZES[name], rounds=found)


def table(record: dict) -> str:
    """Markdown: medians over the rounds, and ratios to MNRL with accumulation."""
    middle = {
        way: {key: median(row[key] for row in rows) for key in ("seconds", "peak", "mrr")}
        for way, rows in record["rounds"].items()
    }
    base = middle[BASE]
    lines = [
        "| loss | pairs at a time | updates per second | time, MNRL accumulated = 1 | peak memory, MB | memory ÷ | MRR@10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, row in middle.items():
        at_once = WAYS[way][0] if way.startswith("MNRL") else LOCAL
        label = way.replace("large bank", f"N_memory {record['size']['memory']}")
        cells = [label, str(at_once), f"{1 / row['seconds']:.3g}"]
        cells += [f"{row['seconds'] / base['seconds']:.2f}", f"{row['peak']:.0f}"]
        cells += [f"{row['peak'] / base['peak']:.2f}", f"{100 * row['mrr']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: list[str]) -> None:
    if words[:1] == ["--one"]:
        print(json.dumps(train(*words[1:])))
    elif words == ["--small"]:
        print(table(measure("small")))
    elif words in ([], ["--table"]):
        if not words:
            RECORD.write_text(json.dumps(measure("full"), indent=1) + "\n")
        write_table("trainer-speed", table(json.loads(RECORD.read_text())))
    else:
        raise SystemExit("python -m benchmarks.trainer_speed [--small | --table]")


if __name__ == "__main__":
    main(sys.argv[1:])

"""ContAccumLoss beside sentence-transformers' own losses, in its trainer, on the same data, at the same memory.

    python -m benchmarks.trainer_speed             both encoders, all rows (about 20 minutes on one core)
    python -m benchmarks.trainer_speed --small     the toy pairs, a tiny BERT, two rounds: some minutes, to see that it runs
    python -m benchmarks.trainer_speed --table     nothing is measured: the tables again, from the records

Two encoders: a BERT of 4 layers of 256 from random weights, for time and memory as they are in practice (a few updates, so its
MRR@10 says nothing and is not measured), and a StaticEmbedding, which costs almost nothing, for MRR@10 after 51,200 pairs and for
the time that the losses take themselves. Every way trains in a process of its own, so that its peak memory is its own, with one
thread; ways take turns over the rounds, each round with its own seed. "At the same memory" means that 8 pairs are encoded at a
time, with gradients; MNRL with its whole batch at once is shown for the memory that this takes. All see the same pairs in the same
order, 64 pairs an update. With the BERT, banks are full of random vectors from the start, so that their time is that of full
banks. Medians; ratios are to MNRL with gradient accumulation. Records lie in benchmarks/records/trainer_speed.json.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from statistics import mean, median, stdev

import torch

import contaccum_lite as cl
from contaccum_lite.core.metrics import exact_search, retrieval_metrics
from contaccum_lite.encoders.transformer import TransformerTower
from contaccum_lite.encoders.vocabulary import vocabulary_for
from tools.docs import RECORDS, write_table

RECORD = RECORDS / "trainer_speed.json"
LOCAL, TOTAL = 8, 64
SIZES = {
    "BERT": dict(pairs="python-docs", layers=4, heads=4, dim=256, updates=8, rounds=3, filled=True),
    "static": dict(pairs="python-docs", dim=64, updates=800, rounds=3, filled=False),
    "small": dict(pairs="toy", layers=1, heads=4, dim=32, updates=4, rounds=2, filled=True),
}
WAYS = {
    "MNRL, accumulated": (LOCAL, TOTAL // LOCAL),
    "MNRL, whole batch at once": (TOTAL, 1),
    "CachedMNRL": (TOTAL, 1),
    "ContAccumLoss, N_memory 128": (LOCAL, TOTAL // LOCAL),
    "ContAccumLoss, N_memory 512": (LOCAL, TOTAL // LOCAL),
    "ContAccumLoss, N_memory 8192": (LOCAL, TOTAL // LOCAL),
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
    memory = int(way.split()[-1])
    if way.startswith("Cached"):
        loss = CachedContAccumLoss(model, memory, mini_batch_size=LOCAL)
    else:
        loss = ContAccumLoss(model, memory)
    if size["filled"]:
        vectors = torch.randn(memory, 2, size["dim"], generator=torch.Generator().manual_seed(0))
        keys = torch.arange(2 * memory).reshape(memory, 2)
        banks = {"vectors": vectors, "keys": keys, "position": torch.tensor([0, memory])}
        loss.load_state_dict(banks, strict=False)
    return loss, [loss.callback]


def encoder(pairs, size: dict, folder: str, seed: int):
    """A SentenceTransformer with random weights, the same ones for each seed."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Pooling,
        StaticEmbedding,
        Transformer,
    )

    torch.manual_seed(seed)
    vocabulary = vocabulary_for(pairs)
    if "layers" not in size:
        return SentenceTransformer(
            modules=[StaticEmbedding(vocabulary, embedding_dim=size["dim"])], device="cpu"
        )
    shape = dict(layers=size["layers"], heads=size["heads"])
    tower = TransformerTower.small_bert(vocabulary, size["dim"], pooling="mean", **shape)
    tower.save_pretrained(folder)
    body = Transformer(folder, max_seq_length=64)
    return SentenceTransformer(modules=[body, Pooling(size["dim"], "mean")], device="cpu")


def in_order(dataset, batch_size, drop_last, **_):
    return torch.utils.data.BatchSampler(range(len(dataset)), batch_size, drop_last)


def train(way: str, name: str, seed: int) -> dict:
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
        model = encoder(pairs, size, folder, seed)
        loss, callbacks = loss_of(way, model, size)
        arguments = SentenceTransformerTrainingArguments(
            f"{folder}/out",
            per_device_train_batch_size=local,
            gradient_accumulation_steps=steps,
            max_steps=size["updates"],
            learning_rate=5e-4 if "layers" in size else 2e-2,
            batch_sampler=in_order,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=seed,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = SentenceTransformerTrainer(
            model, arguments, train_dataset=data, loss=loss, callbacks=[*callbacks, Clock()]
        )
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = median(later - earlier for earlier, later in zip(times, times[1:]))
    mrr = None if "layers" in size else test_mrr(model, pairs)
    return dict(way=way, seed=seed, seconds=seconds, peak=peak, mrr=mrr)


def test_mrr(model, pairs) -> float:
    encode = lambda texts: model.encode(texts, convert_to_numpy=True, batch_size=64)
    queries = encode([pair.query for pair in pairs.test])
    passages = encode([f"{passage.title} {passage.text}" for passage in pairs.passages])
    _, rows = exact_search(queries, passages, 100)
    relevant = [{pairs.row_of[pair.passage_id]: 1} for pair in pairs.test]
    return float(retrieval_metrics(rows, relevant)["mrr@10"])


def measure(name: str) -> dict:
    """Every way in every round, each in a process of its own."""
    is_static = "layers" not in SIZES[name]  # whose texts no Cached loss can encode a few at a time
    ways = [way for way in WAYS if not (is_static and way.startswith("Cached"))]
    found: dict[str, list[dict]] = {way: [] for way in ways}
    for turn in range(SIZES[name]["rounds"]):
        for way in ways:
            command = [
                sys.executable,
                "-m",
                "benchmarks.trainer_speed",
                "--one",
                way,
                name,
                str(turn),
            ]
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
        way: {key: median(row[key] for row in rows) for key in ("seconds", "peak")}
        for way, rows in record["rounds"].items()
    }
    scores = {way: [row["mrr"] for row in rows] for way, rows in record["rounds"].items()}
    base = middle[BASE]
    header = [
        *("loss", "pairs at a time", "updates per second", "time, MNRL accumulated = 1"),
        *("peak memory, MB", "memory ÷"),
    ]
    if None not in scores[BASE]:
        header.append("MRR@10")
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for way, row in middle.items():
        at_once = WAYS[way][0] if way.startswith("MNRL") else LOCAL
        cells = [way, str(at_once), f"{1 / row['seconds']:.3g}"]
        cells += [f"{row['seconds'] / base['seconds']:.2f}", f"{row['peak']:.0f}"]
        cells += [f"{row['peak'] / base['peak']:.2f}"]
        if None not in scores[way]:
            cells += [f"{100 * mean(scores[way]):.1f} ± {100 * stdev(scores[way]):.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: list[str]) -> None:
    if words[:1] == ["--one"]:
        way, name, seed = words[1:]
        print(json.dumps(train(way, name, int(seed))))
    elif words == ["--small"]:
        print(table(measure("small")))
    elif words in ([], ["--table"]):
        if not words:
            record = {name: measure(name) for name in ("BERT", "static")}
            RECORD.write_text(json.dumps(record, indent=1) + "\n")
        for name, record in json.loads(RECORD.read_text()).items():
            write_table(f"trainer-speed-{name.lower()}", table(record))
    else:
        raise SystemExit("python -m benchmarks.trainer_speed [--small | --table]")


if __name__ == "__main__":
    main(sys.argv[1:])

"""What tests/test_parallel.py has several processes do.

`torchrun --nproc_per_node N parallel_worker.py OUT FOLDER`.
"""

import os
import sys
from pathlib import Path

import torch

import contaccum_lite as cl
from contaccum_lite.scale import processes as parallel
from contaccum_lite.data.types import Pairs
from contaccum_lite.data.toy import toy_pairs
from contaccum_lite.core.gradients import Embeddings

UPDATES = 10
SMALL = dict(
    dtype="float64",
    dim=8,
    learning_rate=0.0005,
    warmup=2,
    temperature=1.0,
    passage_tokens=16,
    query_tokens=8,
    updates=40,
    clip_norm=0.5,
)


def pairs():
    """49 pairs, some of which share a passage or a query.

    With 8 to a micro-batch, an epoch ends with one of a single pair.
    """
    made = toy_pairs(49, 8)
    rows = list(made.train)
    for a, b in ((0, 9), (3, 20), (5, 41)):
        rows[b] = rows[b]._replace(
            passage=rows[a].passage, title=rows[a].title, passage_id=rows[a].passage_id
        )
    rows[12] = rows[12]._replace(query=rows[1].query)
    return Pairs("crowded", rows, made.test, made.passages)


def jobs():
    """name -> settings for a micro-batch of 8 on one process."""

    def job(method, **fields):
        fixes = cl.PRESETS[method]["fixed"]
        preset = cl.Settings(method=method)
        cached = (
            {"hard_negatives": 0, "bank_warmup": 2}
            if preset.cache_negatives or preset.corpus_columns
            else {}
        )  # a cache gives its hard negatives itself, and the whole corpus holds them
        fields = {
            **SMALL,
            "local_batch": 8,
            "hard_negatives": 1,
            "accumulation_steps": 3,
            "memory_size": 20,
            **cached,
            **fields,
        }
        return cl.Settings.preset(
            method, **{name: value for name, value in fields.items() if name not in fixes}
        )

    found = {method: job(method) for method in cl.PRESETS}
    found["grad_accum, no hard negatives"] = job("grad_accum", hard_negatives=0)
    found["contaccum, two hard negatives, none banked"] = job(
        "contaccum", hard_negatives=2, bank_hard_negatives=False
    )
    found["contaccum, unmasked, shared"] = job("contaccum", mask_duplicates=False, shared=True)
    found["contaccum, incremental"] = job("contaccum", similarity="incremental")
    found["pre_batch, incremental"] = job("pre_batch", similarity="incremental")
    found["contaccum, one forward"] = job("contaccum", one_forward=True)
    found["contaccum, query bank dropped"] = job("contaccum", drop_query_bank_at=5)
    found["contaccum, bert"] = job("contaccum", tower="bert")
    found["grad_cache, bert"] = job("grad_cache", tower="bert")
    for objective in ("decoupled", "sogclr", "sigmoid"):
        for directions in ("query", "both", "all"):
            found[f"contaccum, {objective}, {directions}"] = job(
                "contaccum", objective=objective, directions=directions, mask_margin=3.0
            )
    found["contaccum, clusters"] = job("contaccum", batch_by="cluster", clusters=3)
    found["contaccum, guide"] = job("contaccum", mask_margin=0.0, mask_guide="start")
    found["contaccum, tiled"] = job("contaccum", similarity="tiled", objective="decoupled")
    for name in ("contaccum, bert", "grad_cache, bert"):
        found[name] = found[name].replace(updates=UPDATES)
    return found


def without_noise(run):
    """Dropout off: each process draws its own."""
    for tower in run.learner.towers:
        tower.eval()
    run.learner.has_dropout = False
    return run


def trace(run, updates=UPDATES) -> dict[str, torch.Tensor]:
    """Everything that some updates did: losses, gradients' norms, weights, banks."""
    for _ in range(updates):
        run.step()
    found = {
        "history": torch.tensor([update[1:4] for update in run.history], dtype=torch.float64),
        "weights": torch.cat(
            [
                p.detach().flatten()
                for tower in [
                    *run.learner.towers,
                    *getattr(run.learner.extension("momentum"), "encoders", []),
                ]
                for p in tower.parameters()
            ]
        ),
    }
    for n, bank in enumerate(run.learner.banks):
        found |= {f"bank.{n}.{name}": value for name, value in bank.state_dict().items()}
    return {name: value.contiguous().clone() for name, value in found.items()}


class Sums(torch.nn.Module):
    """A model for ContAccumLoss: a text's vector is the sum of its tokens'."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(50, 6, dtype=torch.float64)

    def forward(self, features):
        return {
            "sentence_embedding": (
                self.table(features["input_ids"]) * features["attention_mask"][..., None]
            ).sum(1)
        }


def sentence_loss(world=1, rank=0) -> dict[str, torch.Tensor]:
    """Six micro-batches of 8 triples through ContAccumLoss.

    The gradients are averaged over processes, as DistributedDataParallel does.
    """
    from contaccum_lite.integrations.sentence_transformers import ContAccumLoss

    model, draw, found = Sums(), torch.Generator().manual_seed(1), {}
    loss = ContAccumLoss(model, 20)
    for step in range(6):
        batch = torch.randint(1, 50, (8, 3, 3), generator=draw)
        batch[5, 1], batch[6, 0] = (
            batch[1, 1],
            batch[0, 0],
        )  # copies, of pairs that another process has
        mine = batch[rank * 8 // world : (rank + 1) * 8 // world]
        model.zero_grad()
        value = loss(
            [
                {"input_ids": mine[:, n], "attention_mask": torch.ones_like(mine[:, n])}
                for n in range(3)
            ],
            None,
        )
        value.backward()
        if world > 1:
            torch.distributed.all_reduce(model.table.weight.grad)
        found |= {
            f"sentences/{step}.loss": value.detach(),
            f"sentences/{step}.gradient": model.table.weight.grad / world,
        }
    return found | {f"sentences/bank.{name}": value for name, value in loss.bank_state().items()}


def train_triples(out: Path, to: Path, world=1, loss_fields={}, **fields):
    """(trainer, model, loss) after six updates of SentenceTransformerTrainer.

    A micro-batch has 8 triples, and the updates go over an epoch's end.
    """
    import test_sentence_transformers as single
    from datasets import Dataset

    chosen = toy_pairs().train[:96]
    data = Dataset.from_dict(
        {
            "anchor": [p.query for p in chosen],
            "positive": [p.passage for p in chosen],
            "negative": [p.hard_negatives[0].text for p in chosen],
        }
    )
    model = single.sentence_transformer(str(out / "bert"))
    loss = single.ContAccumLoss(model, 20, **loss_fields)
    arguments = single.arguments(
        to,
        **dict(
            per_device_train_batch_size=8 // world,
            max_steps=6,
            batch_sampler=single._in_order,
            save_strategy="steps",
            save_steps=6,
        )
        | fields,
    )
    trainer = single.SentenceTransformerTrainer(
        model, arguments, train_dataset=data, loss=loss, callbacks=[loss.callback]
    )
    trainer.train()
    return trainer, model, loss


def trained(out: Path, world=1) -> dict[str, torch.Tensor]:
    """Weights (float32) and banks after `train_triples`."""
    import test_sentence_transformers as single

    _, model, loss = train_triples(out, out / f"trained-{world}", world)
    return {
        "trained/weights": single.weights(model),
        **{f"trained/bank.{name}": value for name, value in loss.bank_state().items()},
    }


class Unshifted(parallel.ProcessGroup):
    """The planted mistake.

    Each process takes its rows' positives from the first process's passages.
    """

    def all_gather(self, vectors, batch):
        whole = super().all_gather(vectors, batch)
        bounds = self.shard_bounds(batch)[0]
        first = torch.tensor(
            [
                n - bounds[rank]
                for rank in range(self.world_size)
                for n in range(bounds[rank], bounds[rank + 1])
            ]
        )
        return Embeddings(whole.queries, whole.passages[first], whole.hard_negatives)


class Halved(parallel.ProcessGroup):
    """The other one: passages and hard negatives gathered as they come."""

    def all_gather(self, vectors, batch):
        concat, parallel.concat_by_role = (
            parallel.concat_by_role,
            lambda parts: concat(parts, by_role=False),
        )
        try:
            return super().all_gather(vectors, batch)
        finally:
            parallel.concat_by_role = concat


def main(out: Path) -> None:
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    accelerator, data = parallel.accelerator_here(), pairs()
    world, rank, found = accelerator.num_processes, accelerator.process_index, {}
    wanted = sys.argv[2].split("|") if len(sys.argv) > 2 else jobs()
    calls, gather, reduce = [], accelerator.gather, accelerator.reduce
    accelerator.gather = lambda *args: (calls.append("gather"), gather(*args))[1]
    accelerator.reduce = lambda *args: (calls.append("reduce"), reduce(*args))[1]
    for name in wanted:
        settings = jobs()[name]
        mine = settings.replace(local_batch=settings.local_batch // world)
        run = without_noise(cl.Run(data, mine, accelerator=accelerator))
        calls.clear()
        found |= {f"{name}/{key}": value for key, value in trace(run).items()}
        assert calls.count("reduce") == UPDATES, (
            name,
            calls.count("reduce"),
        )  # one sum per update, GradCache too
        if name == "contaccum":
            run.save(out / f"saved-{world}")
            accelerator.wait_for_everyone()
            again = cl.Run.load(out / f"saved-{world}", data, accelerator)
            found |= {f"resumed/{key}": value for key, value in trace(again, 4).items()}
            found["resumed/measures"] = torch.tensor(
                list(again.evaluate().values()), dtype=torch.float64
            )
            for wrong in (Unshifted, Halved):
                run = cl.Run(data, mine, accelerator=accelerator)
                run.learner.group = wrong(accelerator, mine.device)
                found |= {f"{wrong.__name__}/{key}": value for key, value in trace(run).items()}
    if world == 2:
        found |= sentence_loss(world, rank) | trained(out, world)
    save_file(found, out / f"of-{world}-{rank}.safetensors")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # as in sharded_worker.py

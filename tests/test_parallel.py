"""Several processes against one: the same steps, in float64.

Started by torchrun once for all methods (tests/parallel_worker.py).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import contaccum_lite as cl
import parallel_worker as worker
from contaccum_lite.scale import processes as parallel
from contaccum_lite.core.gradients import Embeddings

pytest.importorskip("accelerate")
single = pytest.importorskip("test_sentence_transformers")
HERE, TIGHT = Path(__file__).parent, 1e-10
FOUR = [*cl.PRESETS, "contaccum, incremental"]


def launch(world, out, *arguments, script="parallel_worker.py"):
    searched = filter(None, [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH")])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(searched),
        "DS_ACCELERATOR": "cpu",
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(world),
            str(HERE / script),
            str(out),
            *arguments,
        ],
        env=environment,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{1: …, (2, rank): …, (4, rank): …}: what processes did.

    What 2 and 4 did, and what one does with the whole micro-batch.
    """
    out = tmp_path_factory.mktemp("parallel")
    single.small_bert(cl.load_pairs("toy"), 32, out / "bert")
    processes = {2: launch(2, out)}
    data, one = worker.pairs(), {}
    for name, settings in worker.jobs().items():
        run = worker.without_noise(cl.Run(data, settings))
        one |= {f"{name}/{key}": value for key, value in worker.trace(run).items()}
        if name == "contaccum":
            one |= {f"resumed/{key}": value for key, value in worker.trace(run, 4).items()}
            one["resumed/measures"] = torch.tensor(
                list(run.evaluate().values()), dtype=torch.float64
            )
    found = {1: one | worker.sentence_loss() | worker.trained(out)}
    found["files"] = out
    for world in (2, 4):
        if world == 4:
            processes[4] = launch(4, out, "|".join(FOUR))
        said, _ = processes[world].communicate(timeout=240)
        assert processes[world].returncode == 0, said
        found |= {
            (world, rank): load_file(out / f"of-{world}-{rank}.safetensors")
            for rank in range(world)
        }
    return found


def furthest(some, other, name):
    keys = [key for key in some if key.startswith(f"{name}/")]
    assert len(keys) > 10 and {key for key in other if key.startswith(f"{name}/")} == set(keys)
    return max(
        float((some[key].double() - other[key].double()).abs().max()) if some[key].numel() else 0.0
        for key in keys
    )


def test_an_epoch_of_the_worker_ends_with_one_pair():
    run = cl.Run(worker.pairs(), worker.jobs()["contaccum"])
    sizes, _ = run.learner.extension("softmax").schedule.at(0)
    assert sizes.tolist() == [8] * 6 + [1]  # of two processes, one has none; 3 updates an epoch


@pytest.mark.parametrize("name", list(worker.jobs()))
def test_two_processes_take_the_steps_of_one(found, name):
    assert furthest(found[1], found[2, 0], name) < TIGHT
    history = found[1][f"{name}/history"]
    assert len(history) == worker.UPDATES and history[:, 1].median() > 1e-2


@pytest.mark.parametrize("name", FOUR)
def test_four_processes_take_the_steps_of_one(found, name):
    assert furthest(found[1], found[4, 0], name) < TIGHT


@pytest.mark.parametrize("world", [2, 4])
def test_every_process_has_the_same_weights_and_banks(found, world):
    for rank in range(1, world):
        assert found[world, rank].keys() == found[world, 0].keys()
        for name, value in found[world, rank].items():
            assert torch.equal(value, found[world, 0][name]), name


@pytest.mark.parametrize("world", [2, 4])
def test_saved_by_one_and_resumed_by_all(found, world):
    assert furthest(found[1], found[world, 0], "resumed") < TIGHT


def test_the_loss_for_sentence_transformers_gathers_with_gradients(found):
    assert furthest(found[1], found[2, 0], "sentences") < TIGHT
    assert found[1]["sentences/5.gradient"].norm() > 1e-3
    assert found[1]["sentences/bank.position"].tolist() == [8, 20]


def test_the_trainer_of_sentence_transformers_takes_the_same_steps_on_two(found):
    """Its float32, its sampler, its DistributedDataParallel, its accumulation.

    And the banks are in the checkpoint, once.
    """
    one, two = found[1], found[2, 0]
    for name in ("weights", "bank.position", "bank.keys", "bank.vectors"):
        assert (
            one[f"trained/{name}"].double() - two[f"trained/{name}"].double()
        ).abs().max() < 1e-4, name
    start = single.weights(single.sentence_transformer(str(found["files"] / "bert")))
    assert (one["trained/weights"] - start).abs().max() > 3e-3
    assert [
        path.name for path in (found["files"] / "trained-2" / "checkpoint-6").glob("contaccum*")
    ] == ["contaccum.safetensors"]


@pytest.mark.parametrize("kind", ["fsdp", "zero2", "zero3"])
def test_the_trainer_takes_the_same_steps_on_towers_in_shards(found, kind):
    """accelerate's FSDP, and DeepSpeed where it is installed.

    Weights and banks of one process, to float32.
    """
    if kind != "fsdp":
        pytest.importorskip("deepspeed")
    process = launch(2, found["files"], kind, script="sharded_worker.py")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    sharded, one = load_file(found["files"] / f"{kind}.safetensors"), found[1]
    assert (found["files"] / f"{kind}.txt").read_text() == (
        "FSDP" if kind == "fsdp" else "DEEPSPEED"
    )
    for name in ("weights", "bank.position", "bank.keys", "bank.vectors"):
        assert (one[f"trained/{name}"].double() - sharded[name].double()).abs().max() < 1e-4, name
    if kind != "zero2":  # stage 2 shards gradients and the optimiser, not the weights
        assert sharded["kept"] < 0.6 * len(sharded["weights"])
    assert sharded["emptied"] == 0  # without past encoders, by the trainer's own sign


@pytest.mark.parametrize("mistake", ["Unshifted", "Halved"])
def test_wrong_positives_would_be_seen(found, mistake):
    right = {key.replace("contaccum/", f"{mistake}/", 1): value for key, value in found[1].items()}
    assert furthest(right, found[2, 0], mistake) > 1e-3


# --- in one process -------------------------------------------------------------------------------


def test_the_mistake_costs_what_the_loss_says():
    torch.manual_seed(0)
    passages = torch.nn.functional.normalize(torch.randn(8, 16, dtype=torch.float64), dim=1) * 8
    hard = torch.nn.functional.normalize(torch.randn(8, 16, dtype=torch.float64), dim=1) * 8
    parts = [
        Embeddings(passages[n : n + 4], passages[n : n + 4], hard[n : n + 4]) for n in (0, 4)
    ]  # perfect vectors
    assert parallel.gathered_info_nce(parts) < 1e-3
    assert parallel.gathered_info_nce(parts, by_role=False) > 10
    assert parallel.gathered_info_nce(parts[:1]) == parallel.gathered_info_nce(
        parts[:1], by_role=False
    )  # on one process it is right


def test_one_process_has_no_accelerator(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert parallel.accelerator_here() is None


class Pretended:
    """As much of an Accelerator as `ProcessGroup` looks at."""

    def __init__(self, kind="MULTI_CPU", device="cpu", index=0, number=2):
        from accelerate import DistributedType

        self.distributed_type, self.device = DistributedType(kind), torch.device(device)
        self.process_index, self.num_processes = index, number


@pytest.mark.parametrize(
    "pretended, says",
    [
        (dict(kind="FSDP"), "configured for FSDP"),
        (dict(kind="DEEPSPEED"), "configured for DEEPSPEED"),
        (dict(device="cuda:1"), "device is 'cpu' and accelerate works on 'cuda:1'"),
    ],
)
def test_what_it_cannot_do_it_says(toy, pretended, says):
    with pytest.raises(ValueError, match=says):
        cl.Run(toy, local_batch=4, accelerator=Pretended(**pretended))


def test_parts_are_even_and_whole(toy):
    run = cl.Run(toy, local_batch=7, accumulation_steps=1, hard_negatives=2)
    batch = run.sampler.batches(0)[0]
    parts = [
        parallel.ProcessGroup(Pretended(index=rank, number=3), run.settings.device).shard(batch)
        for rank in range(3)
    ]
    assert [len(part.pair_ids) for part in parts] == [2, 2, 3]
    assert torch.equal(torch.cat([part.pair_ids for part in parts]), batch.pair_ids)
    assert torch.equal(torch.cat([part.hard_ids for part in parts]), batch.hard_ids)
    for part in parts:
        again = run.sampler.micro_batch(part.pair_ids.numpy())
        assert torch.equal(again.hard_ids, part.hard_ids)
        assert torch.equal(
            part.passage_tokens[:, : again.passage_tokens.shape[1]], again.passage_tokens
        )


def test_the_command_line_trains_on_two_processes_what_one_does(tmp_path):
    """The same losses in float64, one checkpoint and one log, written by the first process."""
    options = "train toy --accumulation-steps 2 --memory-size 16 --updates 6 --warmup 1 --dim 16 --dtype float64 --save-every 4".split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    start = lambda words, out, local: subprocess.Popen(
        [
            sys.executable,
            "-m",
            *words,
            *options,
            "--local-batch",
            str(local),
            "--out",
            str(tmp_path / out),
        ],
        env=environment,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    both = [
        start(
            "torch.distributed.run --standalone --nproc_per_node 2 -m contaccum_lite".split(),
            "two",
            4,
        ),
        start(["contaccum_lite"], "one", 8),
    ]
    for process in both:
        said, _ = process.communicate(timeout=180)
        assert process.returncode == 0, said
    losses = {
        out: [
            json.loads(line)["loss"]
            for line in (tmp_path / out / "log.jsonl").read_text().splitlines()
            if "loss" in json.loads(line)
        ]
        for out in ("one", "two")
    }
    assert len(losses["one"]) == len(losses["two"]) == 6
    assert max(abs(a - b) for a, b in zip(*losses.values())) < TIGHT
    weights = [
        load_file(next((tmp_path / out).glob("update-*")) / "passage_tower" / "model.safetensors")
        for out in ("one", "two")
    ]
    assert all(
        torch.allclose(weights[0][name], weights[1][name], atol=TIGHT) for name in weights[0]
    )

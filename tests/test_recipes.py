"""The scripts of docs/recipes, at toy size."""

import json
import math

import pytest
import torch

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")

from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

import contaccum_lite as cl
from recipe_worker import RECIPES, main, recipe
from test_sentence_transformers import sentence_transformer, small_bert

SMALL = dict(max_steps=2, use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a small encoder and a file of pairs."""
    out = tmp_path_factory.mktemp("recipes")
    sentence_transformer(small_bert(cl.load_pairs("toy"), 32, out / "bert")).save(
        str(out / "encoder")
    )
    lines = [
        json.dumps({"anchor": pair.query, "positive": pair.passage})
        for pair in cl.load_pairs("toy").train[:320]
    ]
    (out / "pairs.jsonl").write_text("\n".join(lines))
    return out


def change(files, folder):
    """How far a recipe's model is from the encoder that it began with."""
    one, other = (SentenceTransformer(str(folder_)) for folder_ in (files / "encoder", folder))
    pairs = zip(one.named_parameters(), other.parameters())
    return max((p - q).abs().max().item() for (name, p), q in pairs if "pooler" not in name)


def texts_in(loss):
    return len(loss.keys[: len(loss), 0].unique())


@pytest.mark.parametrize("name, pairs", [("laptop", 128), ("one_11gb_card", 256)])
def test_a_recipe_trains(files, tmp_path, name, pairs):
    loss = recipe(name).main(
        str(files / "encoder"), str(files / "pairs.jsonl"), str(tmp_path), **SMALL
    )
    assert len(loss) == pairs and texts_in(loss) > 0.5 * pairs
    assert change(files, tmp_path / "final") > 1e-7
    assert loss.vectors.dtype == torch.float32


def test_the_large_encoders_recipe_trains_adapters(files, tmp_path):
    pytest.importorskip("peft")
    loss = recipe("large_encoder_lora").main(
        str(files / "encoder"), str(files / "pairs.jsonl"), str(tmp_path), **SMALL
    )
    assert len(loss) == 2 * 2 * 32 and loss.vectors.dtype == torch.float32
    saved = load_file(tmp_path / "final" / "adapter_model.safetensors")
    assert saved and all("lora" in key for key in saved)
    assert math.isfinite(sum(value.abs().sum().item() for value in saved.values()))
    assert not all(value.eq(0).all() for key, value in saved.items() if "lora_B" in key)


def run_processes(files, folder, kind, steps):
    from test_parallel import launch

    process = launch(2, files, folder, kind, str(steps), script="recipe_worker.py")
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said


@pytest.mark.processes
def test_a_training_goes_on_with_another_number_of_processes(files):
    """Two processes, then one: the banks and the order of the pairs are kept."""
    main(files, "one", "ddp", 4)
    run_processes(files, "two-then-one", "ddp", 2)
    first = load_file(files / "two-then-one" / "checkpoint-2" / "contaccum.safetensors")
    main(files, "two-then-one", "ddp", 4)
    banks = [
        load_file(files / folder / "checkpoint-4" / "contaccum.safetensors")
        for folder in ("one", "two-then-one")
    ]
    assert first["position"].tolist() == [128, 128]
    assert torch.equal(banks[0]["keys"], banks[1]["keys"])
    assert (banks[0]["vectors"] - banks[1]["vectors"]).abs().max() < 1e-4
    one, other = (
        SentenceTransformer(str(files / folder / "final")) for folder in ("one", "two-then-one")
    )
    for (name, p), q in zip(one.named_parameters(), other.parameters()):
        assert "pooler" in name or (p - q).abs().max() < 1e-4, name
    assert change(files, files / "one" / "final") > 1e-3


@pytest.mark.processes
def test_the_recipe_of_four_gpus_in_shards(files):
    run_processes(files, "sharded", "fsdp", 3)
    assert change(files, files / "sharded" / "final") > 1e-3
    assert json.loads((files / "sharded.json").read_text()) == 3 * 2 * 32


def test_the_page_shows_each_recipe():
    page = (RECIPES.parent / "recipes.md").read_text()
    for file in RECIPES.glob("*.py"):
        assert f"(recipes/{file.name})" in page

"""The recipe of four GPUs on processors: `torchrun --nproc_per_node 2 recipe_worker.py OUT FOLDER ddp|fsdp STEPS`."""

import json
import os
import sys
from pathlib import Path

import sharded_worker as sharded

RECIPES = Path(__file__).parent.parent / "docs" / "recipes"
CHANGES = dict(bf16=False, use_cpu=True, learning_rate=2e-3, save_steps=2, disable_tqdm=True)
CHANGES |= dict(dataloader_pin_memory=False, warmup_steps=0, gradient_accumulation_steps=2)
CHANGES |= dict(lr_scheduler_type="constant")


def recipe(name: str):
    """A module of docs/recipes."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(out: Path, folder: str, kind: str, steps: int) -> None:
    import torch

    torch.set_num_threads(1)
    if kind == "fsdp":
        sharded.allow_fsdp_on_the_processor()
    changes = CHANGES | dict(max_steps=steps)
    files = [str(out / "encoder"), str(out / "pairs.jsonl"), str(out / folder)]
    loss = recipe("four_gpus").main(*files, "BertLayer" if kind == "fsdp" else "", **changes)
    if int(os.environ.get("RANK", "0")) == 0:
        (out / f"{folder}.json").write_text(json.dumps(len(loss)))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads still hold tensors of sharded towers: Python's own exit may abort

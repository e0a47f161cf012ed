"""What tests have two processes do with the trainer: `torchrun --nproc_per_node 2 sharded_worker.py OUT fsdp|zero2|zero3|apart`.

With towers in shards (tests/test_parallel.py), or with banks of each process's own (`apart`, tests/test_sentence_transformers.py).
accelerate shards on accelerators alone. Here it is told that gloo on processors is one, so that its configuration, the trainer
and the loss can be tried together on any machine.
"""

import contextlib
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

import parallel_worker as worker
import test_sentence_transformers as single


def allow_fsdp_on_the_processor() -> None:
    begin = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **fields):
        begin(self, *args, fsdp_plugin=fsdp_plugin, **fields)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def allow_deepspeed_on_the_processor() -> None:
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_CPU)


def configuration(kind: str) -> dict:
    """The trainer's arguments, as its users give them."""
    if kind == "fsdp":
        return dict(
            fsdp=True,
            fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]},
            save_strategy="no",
        )
    return dict(
        use_cpu=False,
        deepspeed={
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_optimization": {"stage": int(kind[-1])},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )


def whole(p: torch.nn.Parameter, kind: str) -> torch.Tensor:
    """A parameter put together from its shards."""
    if hasattr(p, "full_tensor"):
        return p.detach().full_tensor().flatten()
    with contextlib.ExitStack() as open_:
        if kind == "zero3":
            import deepspeed

            open_.enter_context(deepspeed.zero.GatheredParameters([p]))
        return p.detach().clone().flatten()


def resumed_apart(out: Path) -> None:
    """Each process has banks of its own.

    It takes them back from a checkpoint in another folder.
    """
    from datasets import Dataset
    from transformers import set_seed

    chosen = single.cl.load_pairs("toy").train[:96]
    data = Dataset.from_dict(
        {"anchor": [p.query for p in chosen], "positive": [p.passage for p in chosen]}
    )
    apart = dict(
        per_device_train_batch_size=4,
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        batch_sampler=single._in_order,
    )
    losses = []
    for folder, resume in (("A", None), ("B", str(out / "A" / "checkpoint-2"))):
        set_seed(0)
        _, _, loss = single.train(
            str(out / "bert"),
            data,
            out / folder,
            dict(gather_across_devices=False),
            resume,
            **apart,
        )
        losses.append(loss)
        torch.distributed.barrier()
    assert single.same_banks(*losses) and len(losses[0]) == 20
    firsts = [torch.zeros_like(losses[0].vectors) for _ in range(2)]
    torch.distributed.all_gather(firsts, losses[0].vectors)
    assert not torch.equal(*firsts)
    torch.distributed.destroy_process_group()


def main(out: Path, kind: str) -> None:
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    if kind == "apart":
        return resumed_apart(out)
    (allow_fsdp_on_the_processor if kind == "fsdp" else allow_deepspeed_on_the_processor)()
    trainer, model, loss = worker.train_triples(
        out, out / f"trained-{kind}", 2, **configuration(kind)
    )
    found = {f"bank.{name}": value for name, value in loss.bank_state().items()}
    found["weights"] = torch.cat(
        [whole(p, kind) for name, p in model.named_parameters() if "pooler" not in name]
    )
    found["kept"] = torch.tensor(
        [p.numel() if kind != "fsdp" else p.to_local().numel() for p in model.parameters()]
    ).sum()
    _, _, forgetful = worker.train_triples(
        out,
        out / f"forgetful-{kind}",
        2,
        dict(past_encoder=False),
        **configuration(kind) | dict(max_steps=2, save_strategy="no"),
    )
    found["emptied"] = torch.tensor(len(forgetful))
    if trainer.accelerator.is_main_process:
        save_file(found, out / f"{kind}.safetensors")
        (out / f"{kind}.txt").write_text(trainer.accelerator.distributed_type.value)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # gloo's threads still hold tensors of sharded towers: Python's own exit may abort

"""What tests/test_parallel.py has two processes do with towers in shards: `torchrun --nproc_per_node 2 sharded_worker.py OUT fsdp|zero2|zero3`.

accelerate shards on accelerators alone. Here it is told that gloo on processors is one, so that its configuration, the trainer
and the loss can be tried together on any machine.
"""

import contextlib
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
        return dict(fsdp=True, fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}, save_strategy="no")
    return dict(use_cpu=False, deepspeed={"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
                                          "zero_optimization": {"stage": int(kind[-1])}, "zero_allow_untested_optimizer": True,
                                          "zero_force_ds_cpu_optimizer": False})


def whole(p: torch.nn.Parameter, kind: str) -> torch.Tensor:
    """A parameter put together from its shards."""
    if hasattr(p, "full_tensor"):
        return p.detach().full_tensor().flatten()
    with contextlib.ExitStack() as open_:
        if kind == "zero3":
            import deepspeed
            open_.enter_context(deepspeed.zero.GatheredParameters([p]))
        return p.detach().clone().flatten()


def main(out: Path, kind: str) -> None:
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    (allow_fsdp_on_the_processor if kind == "fsdp" else allow_deepspeed_on_the_processor)()
    trainer, model, loss = worker.train_triples(out, out / f"trained-{kind}", 2, **configuration(kind))
    found = {f"bank.{name}": value for name, value in loss.bank_state().items()}
    found["weights"] = torch.cat([whole(p, kind) for name, p in model.named_parameters() if "pooler" not in name])
    found["kept"] = torch.tensor([p.numel() if kind != "fsdp" else p.to_local().numel() for p in model.parameters()]).sum()
    _, _, forgetful = worker.train_triples(out, out / f"forgetful-{kind}", 2, dict(past_encoder=False), **configuration(kind) | dict(max_steps=2, save_strategy="no"))
    found["emptied"] = torch.tensor(len(forgetful))
    if trainer.accelerator.is_main_process:
        save_file(found, out / f"{kind}.safetensors")
        (out / f"{kind}.txt").write_text(trainer.accelerator.distributed_type.value)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

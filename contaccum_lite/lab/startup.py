"""What shows a lab sooner: PyTorch's compiler, which a lab never uses, is imported behind it."""

from __future__ import annotations

import importlib
import sys
import threading
from contextlib import contextmanager

import torch

_COMPILER = "torch._dynamo"
_WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
_MARK = "__dynamo_disable"  # where PyTorch keeps what it calls once the compiler is imported


@contextmanager
def without_compiler():
    """Make optimizers inside without importing PyTorch's compiler, which takes about a second.

    An optimizer's methods import it when they are first called, only to ask it to leave them alone.
    Inside, they are called as they are. Where PyTorch does this differently, nothing happens.
    """
    functions = []
    if _COMPILER not in sys.modules:
        methods = [getattr(torch.optim.Optimizer, name, None) for name in _WRAPPED]
        functions = [method.__wrapped__ for method in methods if hasattr(method, "__wrapped__")]
        functions = [function for function in functions if not hasattr(function, _MARK)]
    for function in functions:
        setattr(function, _MARK, function)
    try:
        yield
    finally:
        for function in functions:
            delattr(function, _MARK)


def import_compiler_soon() -> threading.Thread | None:
    """Import the compiler on another thread, before the first update asks for it."""
    if _COMPILER in sys.modules:
        return None
    thread = threading.Thread(target=importlib.import_module, args=(_COMPILER,), daemon=True)
    thread.start()
    return thread

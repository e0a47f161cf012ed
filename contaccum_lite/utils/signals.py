"""Holding back a Ctrl-C while something must be finished."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager


@contextmanager
def defer_sigint():
    """Hold a Ctrl-C back until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held_back, previous = [], signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *args: held_back.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if held_back and callable(previous):
            previous(*held_back[0])

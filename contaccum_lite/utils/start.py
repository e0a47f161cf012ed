"""Ctrl-C while the command line loads: one line and exit status 130, as later.

`contaccum` and `python -m contaccum_lite` import this package, and PyTorch with it, before the
first line of `cli.main` runs.
"""

import os
import signal
import sys
import threading
from pathlib import Path


def quiet_interrupts() -> None:
    """In the command line, let Ctrl-C end the process without a traceback."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if _is_command_line() and in_main_thread and usual:
        signal.signal(signal.SIGINT, _stop)


def usual_interrupts() -> None:
    """Let Ctrl-C be what it was before `quiet_interrupts`."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command_line() -> bool:
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    looks_for_module = program == "-m"  # what `python -m` calls itself until then
    return looks_for_module or Path(program).stem == "contaccum"


def _stop(*_) -> None:
    os.write(2, b"contaccum: stopped.\n")
    os._exit(130)  # nothing has begun

"""A button that runs a benchmark again and shows what it prints."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import ipywidgets as w

from contaccum_lite.lab.stills import worded
from contaccum_lite.utils.text import plain_text

NUM_LINES = 12  # that a button shows of what it runs
WIDTH = 140  # characters of a line that are shown
#: the folder that contains the package: there the process finds it, wherever the notebook runs
ROOT = Path(__file__).resolve().parents[2]
_STYLE = "line-height:1.35;white-space:pre-wrap"


class RerunButton:
    """A button that runs a module again beside the notebook, shows its last lines, and can stop it.

    Nothing runs until it is pressed. module: as after `python -m`, with its options; label: the
    button's words. Notebook 06.
    """

    def __init__(self, module: str, label: str):
        self.module, self.label = module, label
        self.task: asyncio.Task | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.stopped = False
        self.button = w.Button(
            description=label,
            icon="refresh",
            layout=dict(width="auto", align_self="flex-start"),
            tooltip=f"python -m {module}",
        )
        self.words = w.HTML()
        self.widget = w.VBox([self.button, self.words])
        self.button.on_click(lambda _: self.stop() if self.task else self.start())

    def start(self) -> None:
        """Run it in the background. Raises `RuntimeError` where no event loop runs."""
        loop = asyncio.get_running_loop()
        self.button.description, self.button.icon = "Stop", "stop"
        self.task = loop.create_task(self._run())

    def stop(self) -> None:
        """End it and all that it started, now; what it has recorded stays."""
        if self.process is None or self.process.returncode is not None:
            return
        self.stopped = True
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGTERM)
            else:
                self.process.terminate()

    def say(self, *lines: str) -> None:
        """Show lines of what it prints, as text: without a terminal's colours and commands."""
        text = "\n".join(plain_text(line[-WIDTH:]) for line in lines)
        self.words.value = f"<pre role='status' style='{_STYLE}'>{text}</pre>"

    async def _run(self) -> None:
        self.stopped = False
        try:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *self.module.split(),
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
            shown = await self._show_output(self.process.stdout)
            code = await self.process.wait()
            ending = "done" if code == 0 else f"ended with {code}"
            self.say(*shown, "stopped" if self.stopped else ending)
        finally:
            self.stop()
            self.task, self.process = None, None
            self.button.description, self.button.icon = self.label, "refresh"

    async def _show_output(self, stream: asyncio.StreamReader) -> list[str]:
        """Show the last lines as they come; gives those that were shown last."""
        lines, shown, unfinished = [], [], ""
        while output := await stream.read(4096):
            *finished, unfinished = (unfinished + output.decode(errors="replace")).split("\n")
            lines = [*lines, *map(_overwritten, finished)][-NUM_LINES:]
            if not self.stopped:  # what it prints while it is being ended is of no use
                shown = [line for line in (*lines, _overwritten(unfinished)) if line.strip()]
                self.say(*shown)
        return shown

    def _repr_mimebundle_(self, include=None, exclude=None):
        return worded(self.widget, f"{self.label}: python -m {self.module}")


def _overwritten(line: str) -> str:
    """What a terminal shows of a line that returns to its start, as a progress bar does."""
    return line.rstrip("\r").split("\r")[-1]


Again = RerunButton  # its name in earlier versions

"""What a training writes down: log.jsonl, and TensorBoard's files where it is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from contaccum_lite.cli.processes import is_main_process
from contaccum_lite.diagnostics.measure import peak_memory
from contaccum_lite.utils.files import write_atomically


class MetricsLog:
    """log.jsonl: a line per update and per evaluation. TensorBoard gets the same numbers.

    Args:
        folder: the run's. step: updates in its checkpoint. Lines of later updates are dropped,
            because those updates are made again.

    Only the main process writes.
    """

    def __init__(self, folder: Path, step: int):
        self.path = folder / "log.jsonl"
        self.step = step  # updates that are logged
        self.evaluated_steps: set[int] = set()
        self.file = self.tensorboard = None
        if not is_main_process():
            return
        self._truncate_after(step)
        self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(folder / "tensorboard", purge_step=step + 1)
        except ImportError:  # it is optional
            pass

    def _truncate_after(self, step: int) -> None:
        """Drop the lines of later updates, and those that are not whole."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        valid = []
        for line in lines:
            try:
                values = json.loads(line)
                if not line.endswith(b"\n") or values["step"] > step:
                    continue
                valid.append(line)
                if "evaluation" in values:
                    self.evaluated_steps.add(values["step"])
            except (ValueError, KeyError, TypeError, RecursionError):
                pass
        if valid != lines:
            write_atomically(self.path, b"".join(valid))

    def log_updates(self, run) -> None:
        """Log the updates since the last call, with learning rate and peak memory."""
        for update in run.history[self.step :]:
            metrics = update._asdict()
            metrics["learning_rate"] = run.learning_rate(update.step - 1)
            metrics["memory_mb"] = peak_memory_mb(run.settings.device)
            self._write(metrics)
            del metrics["step"]
            self._add_scalars("train", metrics, update.step)
            self.step = update.step

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Log an evaluation after this update; once, even if the run is started again."""
        if step in self.evaluated_steps:
            return
        self.evaluated_steps.add(step)
        self._write({"step": step, "evaluation": metrics})
        self._add_scalars("evaluation", metrics, step)

    def _write(self, values: dict) -> None:
        if self.file is not None:
            values = {name: _finite(value) for name, value in values.items()}
            self.file.write(json.dumps(values).encode() + b"\n")

    def _add_scalars(self, group: str, metrics: dict[str, float], step: int) -> None:
        if self.tensorboard is not None:
            for name, value in metrics.items():
                self.tensorboard.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Close the files."""
        for writer in (self.file, self.tensorboard):
            if writer is not None:
                writer.close()


def _finite(value):
    """None for nan and the infinities, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def peak_memory_mb(device: str) -> float:
    """The most memory held so far, in MB: by the GPU's tensors, or by the process."""
    if torch.device(device).type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return round(peak_memory(), 1)

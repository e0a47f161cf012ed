"""`contaccum train`: to the end or until a signal, and on from a checkpoint."""

from __future__ import annotations

import argparse
import signal
from contextlib import nullcontext
from pathlib import Path

from contaccum_lite.cli.config import check_unedited, explicit_settings, write_config
from contaccum_lite.cli.log import MetricsLog
from contaccum_lite.cli.options import load_pairs_from
from contaccum_lite.cli.processes import is_main_process, world_size
from contaccum_lite.cli.terminal import print_error, print_info, progress_bar, silence_libraries
from contaccum_lite.core.checkpoint import other_files, read_run, saved_settings
from contaccum_lite.core.retriever import Retriever
from contaccum_lite.core.run import Run
from contaccum_lite.core.settings import Settings
from contaccum_lite.data.types import Pairs
from contaccum_lite.diagnostics import measure
from contaccum_lite.scale import index, processes
from contaccum_lite.utils.devices import check_device
from contaccum_lite.utils.folders import alone_in
from contaccum_lite.utils.signals import defer_sigint
from contaccum_lite.utils.text import one_line, shown


def train(args: argparse.Namespace) -> int:
    """Train to the end or until a signal. The folder always holds a whole checkpoint."""
    folder = Path(args.out)
    with alone_in(folder) if is_main_process() else nullcontext():
        return _train_in(folder, args)


def _train_in(folder: Path, args: argparse.Namespace) -> int:
    """Train in a folder that no other run is writing into."""
    silence_libraries()
    explicit = explicit_settings(args)
    resuming = (folder / "run.json").is_file()
    if args.resume and not resuming:
        raise ValueError(f"{folder} holds no run to go on with: leave --resume out to begin one.")
    settings = _resolve_settings(folder, explicit, resuming)
    if args.memory_cap:
        measure.cap_memory(args.memory_cap, settings.device)
    run = make_run(load_pairs_from(args), settings, folder, resuming)
    if not resuming:
        run.save(folder)  # from now on there is a run to resume, and a full disk is noticed
    log = MetricsLog(folder, run.step_count)
    if is_main_process() and not (resuming and (folder / "settings.yaml").is_file()):
        write_config(folder, run.settings)
    _introduce(run, resuming)
    try:
        return _Training(args, run, log, folder).train()
    finally:
        log.close()
        processes.leave()


def _resolve_settings(folder: Path, explicit: dict, resuming: bool) -> Settings:
    """The settings to train with: those of the run in the folder, or new ones.

    Raises `ValueError` where the folder holds something else, or a run with other settings.
    """
    foreign = other_files(folder, resuming)
    if foreign:
        raise ValueError(
            f"{folder} holds something else ({one_line(foreign[0])}): give a new or an "
            "empty folder as --out."
        )
    if not resuming:
        settings = Settings(**explicit)
    else:
        settings = saved_settings(folder, read_run(folder)[0])
        check_unedited(folder / "settings.yaml", settings)
        _check_same(folder, settings, explicit)
    check_device(settings.device)
    return settings


def _check_same(folder: Path, saved: Settings, explicit: dict) -> None:
    for name, value in explicit.items():
        saved_value = getattr(saved, name)
        if value is not None and saved_value != value:
            raise ValueError(
                f"{folder} holds a run with {name} {saved_value!r}, and {shown(value)} is given: "
                "give another folder as --out to begin a new run, or leave "
                f"{name} out to go on with this one."
            )


def make_run(pairs: Pairs, settings: Settings, folder: Path, resuming: bool) -> Run:
    """The run to train, new or from the folder, with the processes that a launcher has started."""
    accelerator = None
    if world_size() > 1:
        try:
            accelerator = processes.accelerator_here(settings.device)
        except ImportError:
            raise ValueError(
                f"WORLD_SIZE is {world_size()}, and accelerate is not installed: "
                'pip install "contaccum-lite[scale]", or start it without torchrun.'
            ) from None
    if resuming:
        return Run.load(folder, pairs, accelerator)
    return Run(pairs, settings, accelerator=accelerator)


def _introduce(run: Run, resuming: bool) -> None:
    """Print the pairs, what the run leaves out, and its settings."""
    print_info(repr(run.pairs))
    for note in run.notes:
        print_info(note)
    start = f"goes on after update {run.step_count}" if resuming else "begins"
    print_info(f"{start}, {run.settings.updates} updates in all: {run.settings.share()}")


class _Training:
    """A run's updates, logged, evaluated and saved on the way."""

    def __init__(self, args: argparse.Namespace, run: Run, log: MetricsLog, folder: Path):
        self.run, self.log, self.folder = run, log, folder
        self.save_every, self.evaluate_every = args.save_every, args.evaluate_every
        self.resume_command = args.shell_command
        self.updates = run.settings.updates
        self.saved_step = run.step_count
        self.terminated = False
        self.evaluates = bool(run.pairs.test) and is_main_process()

    def train(self) -> int:
        """Make all updates, and return the exit status: 130 or 143 after a signal, which saves."""
        # A scheduler sends SIGTERM some seconds before SIGKILL.
        previous_handler = signal.signal(signal.SIGTERM, self._terminate)
        try:
            self._make_updates()
            self._finish()
            return 0
        except KeyboardInterrupt:
            self._save_stopped()
            return 143 if self.terminated else 130
        except Exception as error:
            error.add_note(f"the run stands as it was saved after update {self.saved_step}")
            raise
        finally:
            signal.signal(signal.SIGTERM, previous_handler)

    def _terminate(self, *_) -> None:
        self.terminated = True

    def _make_updates(self) -> None:
        with progress_bar(self.updates, self.run.step_count) as bar:
            while self.run.step_count < self.updates:
                update = self.run.step()
                with defer_sigint():
                    self.log.log_updates(self.run)
                loss, ratio = f"{update.loss:.3f}", f"{update.grad_norm_ratio:.2f}"
                bar.set_postfix(loss=loss, ratio=ratio, refresh=False)
                bar.update()
                self._evaluate_and_save(update.step)
                if self.terminated:
                    raise KeyboardInterrupt

    def _evaluate_and_save(self, step: int) -> None:
        """Evaluate and save after this update, where it is time."""
        is_last = step == self.updates
        if self.evaluates and not is_last and _is_due(step, self.evaluate_every):
            self.log.log_evaluation(step, self._evaluate())
        if is_last or _is_due(step, self.save_every):
            self.run.save(self.folder)
            self.saved_step = step

    def _finish(self) -> None:
        if self.evaluates:  # the other processes need not wait for it
            metrics = self._evaluate()
            self.log.log_evaluation(self.run.step_count, metrics)
            print_info(", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
        print_info(f"all {self.updates} updates are made; the run is in {self.folder}")

    def _evaluate(self) -> dict[str, float]:
        """As `Run.evaluate`, but without holding all vectors of a large corpus in memory."""
        run = self.run
        if len(run.pairs.passages) <= index.SHARD:
            return run.evaluate()
        retriever = Retriever(run.query_tower, run.passage_tower, run.settings)
        return index.evaluate(retriever, run.pairs)

    def _save_stopped(self) -> None:
        with defer_sigint():  # a second Ctrl-C waits until it is saved
            self.log.log_updates(self.run)
            self.run.save(self.folder)
        if is_main_process():
            print_error(
                f"contaccum: stopped after update {self.run.step_count} of {self.updates}, and "
                f"saved. Go on with: {self.resume_command}"
            )


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0

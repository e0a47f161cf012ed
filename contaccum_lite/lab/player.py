"""Trains the runs of a lab piece by piece: play, pause, stop, step, and a queue of methods."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import traitlets

from contaccum_lite.core.fields import checked
from contaccum_lite.core.micro_step import MicroStep
from contaccum_lite.core.presets import TOWERS
from contaccum_lite.core.run import Run
from contaccum_lite.core.settings import Settings
from contaccum_lite.core.trainer import UpdateCancelled
from contaccum_lite.data.types import Pairs
from contaccum_lite.encoders.pretraining import must_pretrain
from contaccum_lite.lab.fields import (
    FIELDS,
    FIELDS_THAT_SET_LIVE_ONES,
    LIVE_FIELDS,
    NAMES,
    format_value,
    symbol,
)
from contaccum_lite.lab.history import GHOSTS, Track
from contaccum_lite.lab.state import LabState, chosen_in

EVENT_LOOP_YIELDS = 10  # a message of the page goes through several passes before it is heard
YIELD_INTERVAL_S = 0.01  # between two looks at the buttons, between micro-batches
#: What decides the towers of a run and its scores before the first update.
_TOWER_FIELDS = (
    *("tower", "start", "shared", "pooling", "dim", "ending", "seed", "dtype", "device"),
    *("precision", "activation_checkpointing", "compile", "query_tokens", "passage_tokens"),
)
RACE = ("dpr", "grad_accum", "pre_batch", "contaccum")
BANKS_BEGIN_EMPTY = (
    "The query bank is on again: both banks begin empty and fill in step, because a past query "
    "needs its own past passage in the same slot."
)
_ONE_BATCH = "DPR takes all pairs of an update, N_local × K, as one batch"


class Player(LabState):
    """A `LabState` with the run that it trains, the runs before it and those that are queued."""

    playing = traitlets.Bool(False, help="whether it trains by itself now")
    pace = traitlets.Float(
        0.0,
        min=0.0,
        max=1000.0,
        help="micro-batches per second while it plays; 0 is as fast as it can",
    )
    message = traitlets.Unicode("", help="what the lab wants you to know, in words")
    needs_reset = traitlets.Tuple(help="settings that wait for Reset, by name")
    ghosts = traitlets.List(help="earlier runs, the newest last")
    ticks = traitlets.Int(0, help="pieces of work done: what pictures watch")

    def __init__(
        self, pairs: Pairs, settings: Settings | None = None, *, every=25, hide=(), **fields
    ):
        if every < 1:
            raise ValueError(f"every is {every}: it must be 1 or more updates.")
        if settings is None:
            settings = Settings(**fields)
        elif fields:
            settings = settings.replace(**fields)
        chosen = [name for name, value in fields.items() if value is not None]
        super().__init__(settings, chosen, hide)
        self.pairs = pairs
        self.every = every
        self.waiting = False  # inside `run` or `step`, where no button can be heard
        self.mid_update = False  # between the first and the last micro-batch of an update
        self.track: Track | None = None
        self._queue: list[Settings] = []
        self._scheduled_changes: dict[int, list] = {}  # updates made -> [(field, value)]
        self._task: asyncio.Task | None = None
        #: trains a slice while it plays, in place of a task in the background (`PageDrive`)
        self.drive: Callable[[], None] | None = None
        self._thread = threading.get_ident()
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._start_run(self._new_track(settings))

    @property
    def training(self) -> Run:
        """The run that is being trained."""
        return self.track.run

    @property
    def micro(self) -> MicroStep | None:
        """The last micro-batch, as long as its matrix can be had."""
        if self._micro is None or not self._micro.has_matrix:
            return None
        return self._micro

    @property
    def done(self) -> bool:
        """Whether all updates of the run, and of those queued behind it, have been made."""
        return self.training.step_count >= self.training.settings.updates and not self._queue

    # --- play, stop, step ---------------------------------------------------------------------

    def play(self) -> None:
        """Train by itself, in the background of the notebook, until `pause()`, `stop()` or the end.

        On Colab the page's answers drive it. Raises `RuntimeError` where no event loop runs (plain
        Python): use `run(updates)` there.
        """
        if self.drive is None and (self._loop is None or self._loop.is_closed()):
            raise RuntimeError(
                "nothing can play here, because no event loop runs: call lab.run(updates), "
                "which does the same work at once."
            )
        if self.playing or self._say_if_done():
            return
        self.playing = True
        if self.drive is not None:
            self.drive()
        else:
            self._task = self._loop.create_task(self._play())

    async def _play(self) -> None:
        try:
            last_yield = time.perf_counter()
            while self.playing:
                kind = self._do_next_work()
                if kind is None:
                    break
                if self.pace and kind == "micro-batch":
                    await asyncio.sleep(1 / self.pace)
                elif time.perf_counter() - last_yield > YIELD_INTERVAL_S:
                    for _ in range(EVENT_LOOP_YIELDS):
                        await asyncio.sleep(0)
                    last_yield = time.perf_counter()
        except Exception:
            pass  # `message` says it: a task's exception has no reader
        finally:
            if self._task is None or self._task is asyncio.current_task():
                self.playing, self._task = False, None
                self.ticks += 1  # a last picture

    def train_for(self, seconds: float) -> None:
        """Train for so many seconds before returning, at least one piece of work, while it plays.

        At the end of the run it plays no longer.
        """
        end = time.perf_counter() + seconds
        try:
            while self.playing:
                if self._do_next_work() is None:
                    self.pause()
                elif time.perf_counter() >= end:
                    return
        except KeyboardInterrupt:
            self.stop()
        except Exception:
            self.ticks += 1  # `message` says it: no one sees an exception in a page's answer

    def pause(self) -> None:
        """Pause between two micro-batches; `play()` and `step()` resume."""
        task, self._task = self._task, None
        self.playing = False
        if task is not None:
            task.cancel()
        self.ticks += 1

    def stop(self) -> None:
        """End training now. An update under way is undone: weights and banks are as before it."""
        self.pause()
        self._cancel_update()
        self._queue = []
        self._apply_changes()
        self.ticks += 1

    def step(self, kind: str = "update") -> None:
        """Do one weight update, or finish the one under way.

        kind: "update", or "micro-batch" to do one micro-batch.
        """
        if kind not in ("update", "micro-batch"):
            raise ValueError(f"kind is {kind!r}: a step is an 'update' or a 'micro-batch'.")
        self.pause()
        if self._say_if_done():
            return
        self.waiting = True
        try:
            work = self._do_next_work()
            while work not in (None, "update"):
                if work == kind and self._micro.index + 1 < self._micro.of:
                    break
                work = self._do_next_work()
        finally:
            self.waiting = False
            self.ticks += 1

    def run(self, updates: int | None = None) -> None:
        """Do this many updates before returning; None is all that are left.

        A Ctrl-C (■ in a notebook) stops it between two micro-batches; call it again to resume. An
        exception in training is raised here.
        """
        self.pause()
        end = float("inf") if updates is None else self.training.step_count + updates
        self.waiting = True
        try:
            while self.training.step_count < end or self._evaluation_due:
                if self._do_next_work() is None:
                    break
        except KeyboardInterrupt:
            self._cancel_update()
            self.message = f"Interrupted after update {self.training.step_count}."
        finally:
            self.waiting = False
            self.ticks += 1

    def _say_if_done(self) -> bool:
        if self.done:
            updates = self.training.settings.updates
            self.message = f"All {updates} updates are made. Press Reset for a new run."
        return self.done

    # --- runs one after the other -------------------------------------------------------------

    def reset(self, settings: Settings | None = None) -> None:
        """Start a new run with what the sliders say, or these settings.

        The last one stays as a ghost. Raises what `Run` raises for settings of which no run can be
        made here, and changes nothing then.
        """
        if settings is None:
            self._restart(self._new_track(self.settings), self._overrides)
        else:
            self._restart(self._new_track(settings), chosen_in(settings))

    def line_up(self, methods=RACE) -> None:
        """Queue these methods; playing goes through them all.

        Each has what the sliders say, except for what it fixes or does not allow. Raises
        `ValueError` for what is no method, and changes nothing then.
        """
        queue = []
        for method in methods:
            queue.append(self._resolve_defaults("method", checked(FIELDS["method"], method)))
        if not queue:
            raise ValueError(
                "methods is empty: give one or more, as in lab.line_up(['dpr', 'contaccum'])."
            )
        self._restart(self._new_track(queue[0]), self._overrides)
        self._queue = queue[1:]
        self._say_queue()

    def race(self, methods=RACE) -> None:
        """Train these methods one after the other before returning.

        All start from the same weights and see the same batches.
        """
        self.line_up(methods)
        self.run()

    def close(self) -> None:
        """Stop. No task is left."""
        self.pause()
        self._cancel_update()

    def _new_track(self, settings: Settings, like: Track | None = None) -> Track:
        """A run of which every micro-batch's matrix can be looked at.

        like: one that has made no update, whose towers are taken over where they are the same.
        """
        message, towers = self.message, {}
        if like is not None and _have_same_towers(like.run.settings, settings):
            towers = {"towers": (like.run.query_tower, like.run.passage_tower)}
        try:
            if not towers and must_pretrain(settings, self.pairs):
                self.message = (
                    f"Pre-training the towers for d = {settings.dim} on random crops of the "
                    "passages: this takes some seconds, once."
                )
            track = Track(Run(self.pairs, settings, **towers))
        except BaseException:
            self.message = message
            raise
        if towers:
            track.scores = like.scores
        track.run.learner.observed = True
        return track

    def _restart(self, track: Track, overrides: dict) -> None:
        """Switch to a run that was made before, so that nothing can fail here."""
        playing = self.playing
        self.pause()
        self._cancel_update()
        self._scheduled_changes, self._queue = {}, []
        self._overrides = overrides
        self._set_traits(track.run.settings)
        self._start_run(track)
        if playing:
            self.play()

    def _start_run(self, track: Track) -> None:
        """Train this run from now on."""
        if self.track is not None and self.training.step_count:
            self.ghosts = [*self.ghosts, self.track][-GHOSTS:]
        self.track, self._micro = track, None
        self._work_iterator = self._work()
        self.mid_update = False
        self.message = ""
        self._say_pending()
        self.ticks += 1

    def _remake_run(self) -> None:
        """Make a run that has made no update again, with what the sliders say.

        So do those that are queued behind it. Changes that a loaded line has in store stay, unless
        they no longer fit.
        """
        settings = self.settings
        if settings == self.training.settings:
            return
        changes = _changes_that_fit(self._scheduled_changes, settings)
        queue = [self._resolve_defaults("method", queued.method) for queued in self._queue]
        became_dpr = settings.method == "dpr" != self.training.settings.method
        self._restart(self._new_track(settings, like=self.track), self._overrides)
        self._scheduled_changes, self._queue = changes, queue
        if queue:
            self._say_queue()
        elif became_dpr:
            self.message = (
                f"{_ONE_BATCH}: N_local = {settings.local_batch}, K = 1, so {settings.local_batch} "
                "pairs are in memory at once."
            )

    def _say_queue(self) -> None:
        methods = [self.training.settings.method, *(queued.method for queued in self._queue)]
        self.message = f"In a row: {', '.join(NAMES[method] for method in methods)}."

    def _start_next_in_queue(self) -> None:
        track = self._new_track(self._queue[0])
        self._set_traits(self._queue.pop(0))
        self._start_run(track)

    # --- work ---------------------------------------------------------------------------------

    def _work(self) -> Iterator[str]:
        """Train the run, piece by piece: "look", "micro-batch" or "update"."""
        run, track = self.training, self.track
        while True:
            if self._evaluation_due:
                yield from self._evaluate(run, track)
            if run.step_count >= run.settings.updates:
                return
            self._apply_changes()
            self.mid_update = True
            try:
                for self._micro in run.micro_steps():
                    yield "micro-batch"
            except UpdateCancelled:
                continue
            finally:
                self.mid_update = False
            yield "update"

    def _evaluate(self, run: Run, track: Track) -> Iterator[str]:
        """Evaluate the run in pieces of work; runs with one start share its scores at update 0."""
        key = _start_key(run) if run.step_count == 0 else None
        scores = self.pairs.memo.get(key)
        if scores is None:
            for _ in run.encode_passages():
                yield "look"
            scores = run.evaluate()
            if key is not None:
                self.pairs.memo[key] = scores
        track.scores.append((run.step_count, dict(scores)))
        yield "look"

    def _do_next_work(self) -> str | None:
        """Do the next piece of work and return its kind, or None at the end."""
        start = time.perf_counter()
        try:
            kind = next(self._work_iterator, None)
            if kind is None and self._queue:
                self._start_next_in_queue()
                kind = "look"
        except Exception as error:
            self.playing = False
            self._cancel_update()
            update = self.training.step_count + 1
            self.message = f"Training stopped at update {update}: {error or type(error).__name__}"
            self.ticks += 1
            raise
        if kind != "look":
            self.track.seconds += time.perf_counter() - start
        self.ticks += 1
        return kind

    def _cancel_update(self) -> None:
        """Undo the update that is under way; its last micro-batch can still be looked at."""
        self._work_iterator.close()
        self._work_iterator, self.mid_update = self._work(), False

    @property
    def _evaluation_due(self) -> bool:
        """Whether the run must be evaluated before the next update."""
        step, evaluations = self.training.step_count, self.track.scores
        if step % self.every and step != self.training.settings.updates:
            return False
        return not evaluations or evaluations[-1][0] < step

    # --- changes to the run under way ---------------------------------------------------------

    @property
    def pending(self) -> dict[str, tuple]:
        """{field: (what the run has, what the sliders say)} of all that waits for a reset."""
        current, chosen = self.training.settings, self.settings
        pending = {}
        for name in FIELDS:
            pair = getattr(current, name), getattr(chosen, name)
            if pair[0] != pair[1] and not self.can_change(name):
                pending[name] = pair
        return pending

    def can_change(self, name: str) -> bool:
        """Whether the run under way can take what the sliders say of this field."""
        current = self.training.settings
        if name != "learning_rate":
            follows = name == "similarity" and name not in self._overrides
            if not (name in LIVE_FIELDS or follows) or self._sliders_are_of_the_next_run:
                return False
            of_batch = name in ("accumulation_steps", "local_batch")
            if not (current.passage_bank or of_batch):
                return False
        try:
            current.replace(**{name: getattr(self, name)})
        except ValueError:  # it does not fit another setting of the run, for which a reset waits
            return False
        return True

    @property
    def _sliders_are_of_the_next_run(self) -> bool:
        """Whether a choice waits for a reset that brings its own values of what can change."""
        current = self.training.settings
        return any(getattr(self, n) != getattr(current, n) for n in FIELDS_THAT_SET_LIVE_ONES)

    def apply_settings(self) -> None:
        """Let the run take what was chosen, and say what waits for a reset.

        A run that has made no update is made again. One that is at rest takes what it can at once,
        one under way at its next update.
        """
        if not self.training.step_count:
            self._remake_run()
        elif not self.playing and not self.mid_update:
            self._apply_changes()
        self._say_pending()

    def _say_pending(self) -> None:
        pending = self.pending
        self.needs_reset = tuple(pending)
        if pending:
            old = [f"{symbol(n)} = {format_value(n, value)}" for n, (value, _) in pending.items()]
            new = [f"{symbol(n)} = {format_value(n, value)}" for n, (_, value) in pending.items()]
            self.message = (
                f"Press Reset to train with {', '.join(new)}. "
                f"Until then this run goes on with {', '.join(old)}."
            )
            if "method" in pending and self.method == "dpr":
                self.message += f" {_ONE_BATCH}."
        elif self.message.startswith("Press Reset"):
            self.message = ""

    def _apply_changes(self) -> None:
        """Between two updates, give the run what a loaded line and the sliders want of it."""
        for name, value in self._scheduled_changes.pop(self.training.step_count, []):
            self._change_run(name, value)
            self._set_slider(name, value)
        for name in LIVE_FIELDS:
            if self.can_change(name):
                self._change_run(name, getattr(self, name))

    def _change_run(self, name: str, value) -> None:
        """Change the run under way; where memory runs out, the slider goes back."""
        before = getattr(self.training.settings, name)
        if value == before:
            return
        try:
            self.track.change(name, value)
        except BaseException:
            self._set_slider(name, before)
            raise
        if name == "query_bank" and value:
            self.message = BANKS_BEGIN_EMPTY
        elif self.message == BANKS_BEGIN_EMPTY:
            self.message = ""
        self.ticks += 1

    def _set_slider(self, name: str, value) -> None:
        """Move a slider, if it is of this run and the others allow it."""
        if name != "learning_rate" and self._sliders_are_of_the_next_run:
            return
        try:
            settings = self.settings.replace(**{name: value})
        except ValueError:
            return
        self._remember(name, value)
        self._set_traits(settings)

    # --- threads ------------------------------------------------------------------------------

    def soon(self, action: Callable, *arguments) -> None:
        """Schedule `action` on the training thread.

        Widget callbacks may arrive on another thread, in the middle of a step.
        """
        loop = self._loop
        if loop is None or loop.is_closed() or threading.get_ident() == self._thread:
            action(*arguments)
        else:
            loop.call_soon_threadsafe(action, *arguments)

    def call_later(self, seconds: float, action: Callable) -> asyncio.TimerHandle | None:
        """Schedule `action` after some seconds.

        Return None without an event loop, or where the page would not hear of what it does.
        """
        if self.drive is not None or self._loop is None or not self._loop.is_running():
            return None
        return self._loop.call_later(seconds, action)


def _have_same_towers(settings: Settings, other: Settings) -> bool:
    """Whether runs of these settings start from the same towers, which nothing has wrapped."""
    if settings.compile or settings.activation_checkpointing:
        return False
    return all(getattr(settings, name) == getattr(other, name) for name in _TOWER_FIELDS)


def _changes_that_fit(changes: dict[int, list], settings: Settings) -> dict[int, list]:
    """Those of a loaded line's changes that a run of these settings can take."""
    fitting: dict[int, list] = {}
    for step, of_step in changes.items():
        for name, value in of_step:
            with suppress(ValueError):
                settings.replace(**{name: value})
                fitting.setdefault(step, []).append((name, value))
    return fitting


def _start_key(run: Run) -> tuple | None:
    """Where `pairs.memo` has the scores of these towers; None for an encoder from a folder.

    By their weights, which say more than settings do, and by how they read and end. Of a large
    encoder the hash alone would keep Stop waiting.
    """
    settings = run.settings
    if settings.tower not in TOWERS:
        return None
    names = ("tower", "ending", "pooling", "query_tokens", "passage_tokens", "device", "precision")
    reading = [getattr(settings, name) for name in names]
    return ("scores at the start", run.retriever.fingerprint, *reading)

"""What a notebook plays with: the state and the player. Nothing here draws; `views` does."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from urllib.parse import parse_qsl

import traitlets

from .data import Pairs
from .methods import MicroStep
from .settings import PRESETS, Settings, checked
from .tracks import NAMES, Track, names, symbol, table, what_we_saw, word
from .train import Run, TakenBack

LIVE = ("learning_rate", "memory_size")   # settings that a run under way can take
PASSES = 10                               # of the event loop at each look: a message of the page goes through several before it is heard
BREATH = 0.01                             # seconds between two looks at the buttons, between micro-batches
GHOSTS = 6                                # earlier runs that are kept
_FIELDS = {f.name: f for f in dataclasses.fields(Settings)}
_SHAPES = ("method", "tower", "dim")      # settings on which other settings' defaults depend
#: What a teacher can leave out of a lab: its settings' controls, its buttons and its views.
HIDEABLE = ("method", *(n for n, f in _FIELDS.items() if f.metadata["slider"]), "pace", "micro", "update", "stop", "reset", "race", "kind", "matrix", "banks",
            "curves", "search", "line")


class Setting(traitlets.TraitType):
    """A trait with the default and the range of a field of `Settings`."""

    def __init__(self, field):
        super().__init__(field.metadata["default"], help=field.metadata["help"], allow_none=True)
        self.field = field

    def validate(self, lab, value):
        return checked(self.field, value)


_Traits = type("_Traits", (traitlets.HasTraits,), {name: Setting(f) for name, f in _FIELDS.items()})


class Lab(_Traits):
    """A retriever to train by hand: choose, play, look, stop. `lab` as the last line of a cell shows it.

    Every field of `Settings` is a trait of the lab, with its range: `lab.memory_size = 256`. A new learning rate or memory
    size holds from the next update on; any other change waits for `reset()`, and `message` says so. pairs: from `load_pairs`.
    settings or **fields: where it starts. every: updates between two looks at Top@20. hide: names of controls and views that
    are left out (`HIDEABLE`). `training` is the `Run`; `ghosts` are the earlier ones. Notebooks 00 and 05.
    """

    playing = traitlets.Bool(False, help="whether it trains by itself now")
    pace = traitlets.Float(0.0, min=0.0, max=1000.0, help="micro-batches per second while it plays; 0 is as fast as it can")
    message = traitlets.Unicode("", help="what the lab wants you to know, in words")
    ghosts = traitlets.List(help="earlier runs, the newest last")
    ticks = traitlets.Int(0, help="pieces of work done: what pictures watch")
    hide = traitlets.Tuple(help="controls and views that are left out")

    def __init__(self, pairs: Pairs, settings: Settings | None = None, *, every: int = 25, hide=(), **fields):
        super().__init__()
        if every < 1:
            raise ValueError(f"every is {every}: it must be 1 or more updates.")
        self.pairs, self.every, self.hide = pairs, every, hideable(hide)
        self._micro = None
        self.waiting = False           # inside `run`, where no button can be heard
        self._settling, self._task, self._plan, self._script = False, None, [], {}
        self._views = self._on_close = None
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._thread = threading.get_ident()
        start = Settings(**fields) if settings is None else settings.replace(**fields) if fields else settings
        default = _default(start)
        self._own = {n: getattr(start, n) for n in _FIELDS if getattr(start, n) != getattr(default, n)} | dict(fields)
        self._show(start)
        self._begin()
        _one_per_cell(self)

    @traitlets.validate("hide")
    def _hideable(self, proposal):
        return hideable(proposal["value"])

    # --- settings ------------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """What the sliders say: the settings of the next run."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return Settings(**fields if "similarity" in self._own else fields | {"similarity": None})   # which follows the others

    @property
    def pending(self) -> dict[str, tuple]:
        """{field: (what the run has, what the sliders say)} of all that waits for a reset."""
        now, wanted = self.training.settings, self.settings
        return {n: (getattr(now, n), getattr(wanted, n)) for n in _FIELDS
                if getattr(now, n) != getattr(wanted, n) and not self._can_change(n)}

    def fixed(self, name: str) -> bool:
        """Whether the method leaves no choice of this field."""
        return name in PRESETS[self.method]["fixes"]

    def _can_change(self, name: str) -> bool:
        follows = name == "memory_size" or name == "similarity" and name not in self._own
        return name == "learning_rate" or follows and self.training.settings.passage_bank and self.method == self.training.settings.method

    def _show(self, settings: Settings) -> None:
        """Bring all traits to these settings."""
        self._settling = True
        try:
            with self.hold_trait_notifications():
                for name in _FIELDS:
                    setattr(self, name, getattr(settings, name))
        finally:
            self._settling = False

    @traitlets.validate(*_FIELDS)
    def _fits(self, proposal):
        name, value = proposal["trait"].name, proposal["value"]
        if not self._settling and name not in _SHAPES:
            Settings(**{**{n: getattr(self, n) for n in _FIELDS}, name: value})
        return value

    @traitlets.observe(*_FIELDS)
    def _chosen(self, change):
        if self._settling:
            return
        if change.name in _SHAPES:
            self._show(self._settle(change.name, change.new))
        elif self.method == "dpr" and change.name == "local_batch":
            self._own["local_batch"] = max(1, change.new // self._own.get("accumulation_steps", _FIELDS["accumulation_steps"].metadata["default"]))
        else:
            self._own[change.name] = change.new
            self._show(self.settings)
        if not self.playing and not self._under_way:
            self._take_changes()
        self._say_pending()

    def _settle(self, name: str, value) -> Settings:
        """The settings after a change of method, tower or dim: what was chosen stays, what was a default follows.

        DPR takes the whole N_local × K as its one batch, so that every method sees the same pairs in an update.
        """
        self._own[name] = value
        own = {n: v for n, v in self._own.items() if n not in PRESETS[self.method]["fixes"]}
        if self.method == "dpr":
            plain = {n: v for n, v in self._own.items() if n in ("local_batch", "accumulation_steps")}
            own["local_batch"] = Settings(**plain).total_batch
        return Settings(**{**own, "method": self.method})

    def _say_pending(self) -> None:
        if waiting := self.pending:
            new = ", ".join(f"{symbol(n)} = {word(n, to)}" for n, (_, to) in waiting.items())
            old = ", ".join(f"{symbol(n)} = {word(n, was)}" for n, (was, _) in waiting.items())
            self.message = f"Press Reset to train with {new}. Until then this run goes on with {old}."
        elif self.message.startswith("Press Reset"):
            self.message = ""

    # --- training ------------------------------------------------------------------------------------------------------

    @property
    def training(self) -> Run:
        """The run that is being trained."""
        return self.track.run

    @property
    def micro(self) -> MicroStep | None:
        """The last micro-batch, as long as its matrix can be had."""
        return self._micro if self._micro is not None and self._micro.there else None

    @property
    def done(self) -> bool:
        """Whether all updates of the run, and of those lined up behind it, have been made."""
        return self.training.step_count >= self.training.settings.updates and not self._plan

    def play(self) -> None:
        """Train by itself, in the background of the notebook, until `pause()`, `stop()` or the end.

        Raises `RuntimeError` where no event loop runs (plain Python): `run(updates)` does the same work there.
        """
        if self._loop is None or self._loop.is_closed():
            raise RuntimeError("nothing can play here, because no event loop runs: call lab.run(updates), which does the same work at once.")
        if self.playing:
            return
        if self.done:
            self.message = f"All {self.training.settings.updates} updates are made. Press Reset for a new run."
            return
        self.playing = True
        self._task = self._loop.create_task(self._play())

    async def _play(self) -> None:
        kind = None
        try:
            heard = time.perf_counter()
            while self.playing and (kind := self._advance()) is not None:
                if self.pace and kind == "micro-batch":
                    await asyncio.sleep(1 / self.pace)
                elif time.perf_counter() - heard > BREATH:
                    for _ in range(PASSES):
                        await asyncio.sleep(0)
                    heard = time.perf_counter()
        except Exception:
            pass                       # _advance has put it into words
        finally:
            if self._task is None or self._task is asyncio.current_task():
                self.playing, self._task = False, None
                self.ticks += 1        # a last picture

    def pause(self) -> None:
        """Hold where it is, between two micro-batches; `play()` and `step()` go on from there."""
        task, self._task = self._task, None
        self.playing = False
        if task is not None:
            task.cancel()
        self.ticks += 1

    def stop(self) -> None:
        """End training now: an update that was under way is undone, so the weights and banks are those after a whole update."""
        self.pause()
        self._rewind()
        self._plan = []
        self._take_changes()
        self.ticks += 1

    def step(self, kind: str = "update") -> None:
        """Do one weight update, or go on to the end of the one under way; `step("micro-batch")` does one micro-batch."""
        if kind not in ("update", "micro-batch"):
            raise ValueError(f"kind is {kind!r}: a step is an 'update' or a 'micro-batch'.")
        self.pause()
        if self.done:
            self.message = f"All {self.training.settings.updates} updates are made. Press Reset for a new run."
            return
        self.waiting = True
        try:
            while (did := self._advance()) not in (None, "update"):
                if did == kind and self._micro.index + 1 < self._micro.of:
                    break
        finally:
            self.waiting = False
            self.ticks += 1

    def run(self, updates: int | None = None) -> None:
        """Do so many updates (all that are left, if not said) before it returns; what a cell calls where no one presses buttons.

        A Ctrl-C (■ in a notebook) stops it between two micro-batches; called again, it goes on from there. An exception in
        training is raised here.
        """
        self.pause()
        end = None if updates is None else self.training.step_count + updates
        self.waiting = True
        try:
            while (end is None or self.training.step_count < end or self._due) and self._advance() is not None:
                pass
        except KeyboardInterrupt:
            self._rewind()
            self.message = f"Interrupted after update {self.training.step_count}."
        finally:
            self.waiting = False
            self.ticks += 1

    def reset(self, settings: Settings | None = None) -> None:
        """Start a new run with what the sliders say (or these settings); the one before stays as a ghost."""
        playing = self.playing
        self.pause()
        self._rewind()
        self._script, self._plan = {}, []
        if settings is not None:
            self._own = {n: getattr(settings, n) for n in _FIELDS if getattr(settings, n) != getattr(_default(settings), n)}
            self._show(settings)
        self._begin()
        if playing:
            self.play()

    def line_up(self, methods=("dpr", "grad_accum", "pre_batch", "contaccum")) -> None:
        """Put these methods in a row, each with what the sliders say but for what the method fixes; playing goes through them all."""
        own, first = dict(self._own), True
        for method in methods:
            self.method = method
            if first:
                self.reset()
                first = False
            else:
                self._plan.append(self.settings)
        self._own = own
        self._show(self.training.settings)
        self.message = f"In a row: {', '.join(NAMES[m] for m in methods)}."

    def race(self, methods=("dpr", "grad_accum", "pre_batch", "contaccum")) -> None:
        """Train these methods one after the other before it returns; all start from the same weights and see the same batches."""
        self.line_up(methods)
        self.run()

    def close(self) -> None:
        """Stop, and take the pictures away. No task is left."""
        views, self._views = self._views, None
        if views is not None:
            views.close()
        self.pause()
        self._rewind()

    def _begin(self) -> None:
        """A new run with what the sliders say."""
        run = Run(self.pairs, self.settings)
        if getattr(self, "track", None) is not None and self.track.run.step_count:
            self.ghosts = [*self.ghosts, self.track][-GHOSTS:]
        self.track, self._micro = Track(run), None
        self._work = self._train()
        self._under_way = False
        self.message = ""
        self.ticks += 1

    def _rewind(self) -> None:
        """Forget the update that is under way; what was seen of it stays to be seen."""
        _ = self.micro
        self._work.close()
        self._work, self._under_way = self._train(), False

    def _advance(self) -> str | None:
        """Do the next piece of work; what it was ("micro-batch", "update", "look"), or None at the end."""
        began = time.perf_counter()
        try:
            kind = next(self._work, None)
        except Exception as error:
            self.playing = False
            self._rewind()
            self.message = f"Training stopped at update {self.training.step_count + 1}: {error or type(error).__name__}"
            self.ticks += 1
            raise
        if kind != "look":
            self.track.seconds += time.perf_counter() - began
        if kind is None and self._plan:
            self._show(self._plan.pop(0))
            self._begin()
            kind = "look"
        self.ticks += 1
        return kind

    @property
    def _due(self) -> bool:
        """Whether Top@20 is to be looked at before the next update."""
        run, seen = self.training, self.track.top20
        return (run.step_count % self.every == 0 or run.step_count == run.settings.updates) and (not seen or seen[-1][0] < run.step_count)

    def _train(self) -> Iterator[str]:
        """The work that is left in this run, piece by piece; between two pieces a button can be heard."""
        run, track = self.training, self.track
        while True:
            if self._due:
                for _ in run.encode_passages():
                    yield "look"
                track.top20.append((run.step_count, run.evaluate()["top@20"]))
                yield "look"
            if run.step_count >= run.settings.updates:
                return
            self._take_changes()
            self._under_way = True
            try:
                for self._micro in run.micro_steps():
                    yield "micro-batch"
            except TakenBack:
                continue
            finally:
                self._under_way = False
            yield "update"

    def _take_changes(self) -> None:
        """Between two updates: what the sliders, or the line that was loaded, want of the run under way."""
        run = self.training
        for name, value in self._script.pop(run.step_count, []):
            self._own[name] = value
            self._show(self.settings.replace(**{name: value}))
            self._change()
        self._change()

    def _change(self) -> None:
        run = self.training
        for name in LIVE:
            value = getattr(self, name)
            if self._can_change(name) and value != getattr(run.settings, name):
                _ = self.micro                               # its matrix is made while the banks are as they were
                run.change(**{name: value})
                self.track.note(name, value)
                self.ticks += 1

    # --- in words ------------------------------------------------------------------------------------------------------

    def share(self) -> str:
        """The run under way in one line, with the sliders that moved while it ran; `load` makes it again, bit for bit."""
        return self.track.share() + (f"&hide={','.join(self.hide)}" if self.hide else "")

    def load(self, line: str) -> None:
        """Reset to the run of a line that `share()` made. Raises `ValueError` for a line that it cannot read, and changes nothing then.

        `hide=` and names in it leave those controls and views out of the lab, as `hide` does; without it they stay as they are.
        """
        plain = "&".join(part for part in line.strip().lstrip("?").split("&") if not part.startswith(("then=", "hide=")))
        settings, script = Settings.parse(plain), {}
        hide = dict(parse_qsl(line.strip().lstrip("?"), keep_blank_values=True)).get("hide")
        hide = self.hide if hide is None else hideable(filter(None, hide.split(",")))
        for change in filter(None, dict(parse_qsl(line.strip().lstrip("?"))).get("then", "").split(",")):
            step, name, value = [*change.split(":"), "", ""][:3]
            if not step.isdigit() or name not in LIVE:
                raise ValueError(f"then={change!r} is no change of a run: expected update:field:value, where field is one of {', '.join(LIVE)}.")
            changed = Settings.parse(f"{plain}&{name}={value}") if f"{name}=" not in plain else \
                Settings.parse("&".join(p for p in plain.split("&") if not p.startswith(f"{name}=")) + f"&{name}={value}")
            script.setdefault(int(step), []).append((name, getattr(changed, name)))
        self.hide = hide
        self.reset(settings)
        self._script = script
        self._take_changes()

    @property
    def summary(self) -> str:
        """The lab in a sentence made from its numbers."""
        run, update = self.training, self.training.step_count
        name = names([*self.ghosts, self.track])[-1] if self.ghosts else NAMES[run.settings.method]
        if not run.history:
            return f"{name}: no update made yet; {run.settings.updates} are planned."
        last = run.history[-1]
        seen = f", Top@20 {self.track.top20[-1][1]:.1%} after update {self.track.top20[-1][0]}" if self.track.top20 else ""
        return (f"{name}: update {update} of {run.settings.updates}, loss {last.loss:.2f}, {last.negatives} negatives per query, "
                f"gradient norm of the passage tower {last.grad_norm_ratio:.2f} times the query tower's{seen}.")

    def tracks(self) -> list[tuple[str, Track]]:
        """(name, track) of the ghosts and, last, of the run under way; a name says what differs."""
        tracks = [*self.ghosts, self.track]
        return list(zip(names(tracks), tracks))

    def table(self) -> str:
        """All runs as a Markdown table, made from their numbers."""
        return table(self.tracks())

    def what_we_saw(self) -> str:
        """The lessons of a race as Markdown, each with its number. Raises `ValueError` before `race()`."""
        return what_we_saw(self.tracks())

    # --- the outside ---------------------------------------------------------------------------------------------------

    def soon(self, action: Callable, *arguments) -> None:
        """Do it on the thread that trains. A button's callback may come on another one, and must not meet a step halfway."""
        if self._loop is None or threading.get_ident() == self._thread or self._loop.is_closed():
            action(*arguments)
        else:
            self._loop.call_soon_threadsafe(action, *arguments)

    @property
    def views(self):
        """The lab's pictures (`panel.LabView`), made when first asked for."""
        if self._views is None:
            from .panel import LabView
            self._views = LabView(self)
        return self._views

    def _repr_mimebundle_(self, include=None, exclude=None):
        return self.views.bundle()


def hideable(names) -> tuple[str, ...]:
    """These names, if a lab has such controls and views; else a `ValueError` that says which it has."""
    names = (names,) if isinstance(names, str) else tuple(names)
    if unknown := [name for name in names if name not in HIDEABLE]:
        raise ValueError(f"hide has {unknown[0]!r}: what can be left out is {', '.join(HIDEABLE)}.")
    return names


def _default(settings: Settings) -> Settings:
    return Settings(method=settings.method, tower=settings.tower, dim=settings.dim)


_labs: dict[str, list] = {}   # notebook cell -> [its execution, its labs]


def _one_per_cell(lab: Lab) -> None:
    """A cell that is run again ends the labs that it made before; those of other cells go on."""
    cell, execution = _cell()
    if cell is None:
        return
    known = _labs.setdefault(cell, [execution, []])
    if known[0] != execution:
        for old in known[1]:
            if old() is not None:
                old().close()
        known[:] = [execution, []]
    known[1].append(weakref.ref(lab))


def _cell() -> tuple[str | None, str | None]:
    """Which notebook cell is running, and which run of it this is; (None, None) elsewhere."""
    try:
        from IPython import get_ipython
        parent = get_ipython().kernel.get_parent("shell")
        return parent["metadata"]["cellId"], parent["header"]["msg_id"]
    except (ImportError, AttributeError, KeyError, TypeError):
        return None, None

"""What a notebook plays with: the state and the player. Nothing here draws; `views` does."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from urllib.parse import parse_qsl

import traitlets

from .data import Pairs
from .methods import MicroStep
from .settings import PRESETS, Settings, checked, read
from .tracks import NAMES, Track, names, symbol, table, what_we_saw, word
from .train import Run, TakenBack

LIVE = ("learning_rate", "memory_size")  # settings that a run under way can take
PASSES = 10  # of the event loop at each look: a message of the page goes through several before it is heard
BREATH = 0.01  # seconds between two looks at the buttons, between micro-batches
GHOSTS = 6  # earlier runs that are kept
_FIELDS = {f.name: f for f in dataclasses.fields(Settings)}
_SHAPES = ("method", "tower", "dim")  # settings on which other settings' defaults depend
#: What a teacher can leave out of a lab: its settings' controls, its buttons and its views.
HIDEABLE = (
    "method",
    *(n for n, f in _FIELDS.items() if f.metadata["slider"]),
    "pace",
    "micro",
    "update",
    "stop",
    "reset",
    "race",
    "kind",
    "matrix",
    "banks",
    "curves",
    "search",
    "line",
)


class Refused(ValueError, traitlets.TraitError):
    """A value that a lab does not take. (traitlets takes a group of changes back for its own.)"""


class Setting(traitlets.TraitType):
    """A trait with the default and the range of a field of `Settings`.

    None is the default, but for method, tower and dim, on which the defaults of others depend.
    """

    def __init__(self, field):
        super().__init__(
            field.metadata["default"],
            help=field.metadata["help"],
            allow_none=field.name not in _SHAPES,
        )
        self.field = field

    def validate(self, lab, value):
        try:
            return checked(self.field, value)
        except ValueError as error:
            raise Refused(*error.args) from None


_Traits = type("_Traits", (traitlets.HasTraits,), {name: Setting(f) for name, f in _FIELDS.items()})


class Lab(_Traits):
    """A retriever to train by hand: choose, play, look, stop. `lab` as the last line of a cell shows it.

    Every field of `Settings` is a trait of the lab, with its range: `lab.memory_size = 256`. A new learning rate or memory
    size holds from the next update on; any other change waits for `reset()`, and `message` says so. pairs: from `load_pairs`.
    settings or **fields: where it starts. every: updates between two looks at Top@20. hide: names of controls and views that
    are left out (`HIDEABLE`). `training` is the `Run`; `ghosts` are the earlier ones. Notebooks 00 and 05.
    """

    playing = traitlets.Bool(False, help="whether it trains by itself now")
    pace = traitlets.Float(
        0.0,
        min=0.0,
        max=1000.0,
        help="micro-batches per second while it plays; 0 is as fast as it can",
    )
    message = traitlets.Unicode("", help="what the lab wants you to know, in words")
    ghosts = traitlets.List(help="earlier runs, the newest last")
    ticks = traitlets.Int(0, help="pieces of work done: what pictures watch")
    hide = traitlets.Tuple(help="controls and views that are left out")

    def __init__(
        self, pairs: Pairs, settings: Settings | None = None, *, every: int = 25, hide=(), **fields
    ):
        super().__init__()
        if every < 1:
            raise ValueError(f"every is {every}: it must be 1 or more updates.")
        self.pairs, self.every, self.hide = pairs, every, hideable(hide)
        self._micro = None
        self.waiting = False  # inside `run`, where no button can be heard
        self._settling, self._task, self._plan, self._script = False, None, [], {}
        self._views = self._on_close = None
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._thread = threading.get_ident()
        start = (
            Settings(**fields)
            if settings is None
            else settings.replace(**fields)
            if fields
            else settings
        )
        self._own = _chosen_in(start, [name for name, value in fields.items() if value is not None])
        self._show(start)
        self._begin(Track(Run(pairs, start)))
        _one_per_cell(self)

    @traitlets.validate("hide")
    def _hideable(self, proposal):
        return hideable(proposal["value"])

    # --- settings ------------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """What the sliders say: the settings of the next run."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return Settings(
            **fields if "similarity" in self._own else fields | {"similarity": None}
        )  # which follows the others

    @property
    def pending(self) -> dict[str, tuple]:
        """{field: (what the run has, what the sliders say)} of all that waits for a reset."""
        now, wanted = self.training.settings, self.settings
        return {
            n: (getattr(now, n), getattr(wanted, n))
            for n in _FIELDS
            if getattr(now, n) != getattr(wanted, n) and not self._can_change(n)
        }

    def fixed(self, name: str) -> bool:
        """Whether the method leaves no choice of this field."""
        return name in PRESETS[self.method]["fixes"]

    def _can_change(self, name: str) -> bool:
        """Whether the run under way can take what the sliders say of this field."""
        now = self.training.settings
        follows = name == "memory_size" or name == "similarity" and name not in self._own
        has_bank = now.passage_bank and self.method == now.method
        if name != "learning_rate" and not (follows and has_bank):
            return False
        try:
            now.replace(**{name: getattr(self, name)})
        except ValueError:  # it does not fit another setting of the run, for which a reset waits
            return False
        return True

    def _show(self, settings: Settings) -> None:
        """Bring all traits to these settings."""
        self._settling = True
        try:
            with self.hold_trait_notifications():
                for name in _FIELDS:
                    setattr(self, name, getattr(settings, name))
        finally:
            self._settling = False
        self._shown = settings

    @traitlets.validate(*_FIELDS)
    def _fits(self, proposal):
        name, value = proposal["trait"].name, proposal["value"]
        if not self._settling and name not in _SHAPES:
            try:
                Settings(**{**{n: getattr(self, n) for n in _FIELDS}, name: value})
            except ValueError as error:
                raise Refused(*error.args) from None
        return value

    @traitlets.observe(*_FIELDS)
    def _chosen(self, change):
        """A setting was chosen: others follow, and a run at rest takes it.

        Where that fails, all is as before.
        """
        if self._settling:
            return
        own, shown = dict(self._own), self._shown
        try:
            self._remember(change.name, change.new)
            shape = change.name in _SHAPES
            self._show(self._settled(change.name, change.new) if shape else self.settings)
            if not self.playing and not self._under_way:
                self._take_changes()
        except BaseException:
            self._own = own
            self._show(shown)
            raise
        self._say_pending()

    def _remember(self, name: str, value) -> None:
        """Keep what was chosen, for the methods to come; None is no choice."""
        self._own.pop(name, None)
        if value is not None and name == "local_batch" and self.method == "dpr":
            value = _local_part(self._own, value)
        if value is not None:
            self._own[name] = value

    def _settled(self, name: str, value) -> Settings:
        """The settings after a change of method, tower or dim: what was chosen stays, what was a default follows.

        DPR takes the whole N_local × K as its one batch, so that every method sees the same pairs in an update.
        """
        method = value if name == "method" else self.method
        own = {n: v for n, v in self._own.items() if n not in PRESETS[method]["fixes"]}
        if method == "dpr":
            plain = {
                n: v for n, v in self._own.items() if n in ("local_batch", "accumulation_steps")
            }
            total = min(Settings(**plain).total_batch, _FIELDS["local_batch"].metadata["high"])
            own["local_batch"] = total if name == "method" else self.local_batch
        return _that_fit({**own, "method": method, name: value})

    def _say_pending(self) -> None:
        if waiting := self.pending:
            new = ", ".join(f"{symbol(n)} = {word(n, to)}" for n, (_, to) in waiting.items())
            old = ", ".join(f"{symbol(n)} = {word(n, was)}" for n, (was, _) in waiting.items())
            self.message = (
                f"Press Reset to train with {new}. Until then this run goes on with {old}."
            )
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
            raise RuntimeError(
                "nothing can play here, because no event loop runs: call lab.run(updates), which does the same work at once."
            )
        if self.playing:
            return
        if self.done:
            self.message = (
                f"All {self.training.settings.updates} updates are made. Press Reset for a new run."
            )
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
            pass  # _advance has put it into words
        finally:
            if self._task is None or self._task is asyncio.current_task():
                self.playing, self._task = False, None
                self.ticks += 1  # a last picture

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
            self.message = (
                f"All {self.training.settings.updates} updates are made. Press Reset for a new run."
            )
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
            while (
                end is None or self.training.step_count < end or self._due
            ) and self._advance() is not None:
                pass
        except KeyboardInterrupt:
            self._rewind()
            self.message = f"Interrupted after update {self.training.step_count}."
        finally:
            self.waiting = False
            self.ticks += 1

    def reset(self, settings: Settings | None = None) -> None:
        """Start a new run with what the sliders say, or these settings.

        The one before stays as a ghost.
        Raises what `Run` raises for settings of which no run can be made here, and changes nothing
        then.
        """
        track = Track(Run(self.pairs, self.settings if settings is None else settings))
        self._restart(track, self._own if settings is None else _chosen_in(settings))

    def _restart(self, track: Track, own: dict) -> None:
        """Go over to a new run, which is made before, so that nothing here can fail.

        own: what of its settings was chosen.
        """
        playing = self.playing
        self.pause()
        self._rewind()
        self._script, self._plan = {}, []
        self._own = own
        self._show(track.run.settings)
        self._begin(track)
        if playing:
            self.play()

    def line_up(self, methods=("dpr", "grad_accum", "pre_batch", "contaccum")) -> None:
        """Put these methods in a row; playing goes through them all.

        Each has what the sliders say but for what it fixes or cannot have. Raises `ValueError` for
        what is no method, and changes nothing then.
        """
        plan = [self._settled("method", checked(_FIELDS["method"], method)) for method in methods]
        if not plan:
            raise ValueError(
                "methods is empty: give one or more, as in lab.line_up(['dpr', 'contaccum'])."
            )
        self._restart(Track(Run(self.pairs, plan[0])), self._own)
        self._plan = plan[1:]
        self.message = f"In a row: {', '.join(NAMES[settings.method] for settings in plan)}."

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

    def _begin(self, track: Track) -> None:
        """Train a new run from now on."""
        if getattr(self, "track", None) is not None and self.track.run.step_count:
            self.ghosts = [*self.ghosts, self.track][-GHOSTS:]
        self.track, self._micro = track, None
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
            if kind is None and self._plan:
                self._go_to_next()
                kind = "look"
        except Exception as error:
            self.playing = False
            self._rewind()
            self.message = f"Training stopped at update {self.training.step_count + 1}: {error or type(error).__name__}"
            self.ticks += 1
            raise
        if kind != "look":
            self.track.seconds += time.perf_counter() - began
        self.ticks += 1
        return kind

    def _go_to_next(self) -> None:
        """The next run of those that are lined up."""
        track = Track(Run(self.pairs, self._plan[0]))
        self._show(self._plan.pop(0))
        self._begin(track)

    @property
    def _due(self) -> bool:
        """Whether Top@20 is to be looked at before the next update."""
        run, seen = self.training, self.track.top20
        return (run.step_count % self.every == 0 or run.step_count == run.settings.updates) and (
            not seen or seen[-1][0] < run.step_count
        )

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
        for name, value in self._script.pop(self.training.step_count, []):
            self._change(name, value)
            self._bring(name, value)
        for name in LIVE:
            if self._can_change(name):
                self._change(name, getattr(self, name))

    def _change(self, name: str, value) -> None:
        """Change the run under way; where that fails, for want of memory, the slider goes back."""
        before = getattr(self.training.settings, name)
        if value == before:
            return
        _ = self.micro  # its matrix is made while the banks are as they were
        try:
            self.track.change(name, value)
        except BaseException:
            self._bring(name, before)
            raise
        self.ticks += 1

    def _bring(self, name: str, value) -> None:
        """Move a slider, if what the others say leaves room for it."""
        try:
            settings = self.settings.replace(**{name: value})
        except ValueError:
            return
        self._remember(name, value)
        self._show(settings)

    # --- in words ------------------------------------------------------------------------------------------------------

    def share(self) -> str:
        """The run under way in one line, with the sliders that moved while it ran; `load` makes it again, bit for bit."""
        return self.track.share() + (f"&hide={','.join(self.hide)}" if self.hide else "")

    def load(self, line: str) -> None:
        """Reset to the run of a line that `share()` made. Raises `ValueError` for a line that it cannot read, and changes nothing then.

        `hide=` and names in it leave those controls and views out of the lab, as `hide` does; without it they stay as they are.
        """
        settings, hide, script = self._read(line)
        track, own = Track(Run(self.pairs, settings)), _chosen_in(settings)
        for name, value in script.pop(0, []):
            track.change(name, value)
            own[name] = value
        self.hide = hide
        self._restart(track, own)
        self._script = script

    def _read(self, line: str) -> tuple[Settings, tuple[str, ...], dict[int, list[tuple]]]:
        """Of a line: settings, what it hides, {updates made: [(field, value)]} of what changes."""
        if not isinstance(line, str):
            raise ValueError(
                f"line is {line!r:.80}: expected a text that share() gave, as in "
                "'method=contaccum&memory_size=64'."
            )
        line, script = line.strip().lstrip("?"), {}
        more = dict(parse_qsl(line, keep_blank_values=True))
        parts = (part for part in line.split("&") if not part.startswith(("then=", "hide=")))
        settings = Settings.parse("&".join(parts))
        hide = hideable(filter(None, more["hide"].split(","))) if "hide" in more else self.hide
        for change in filter(None, more.get("then", "").split(",")):
            match = re.fullmatch(r"(\d{1,8}):(\w+)(?::([^:]*))?", change)
            if not match or match[2] not in LIVE:
                raise ValueError(
                    f"then={change!r} is no change of a run: expected update:field:value, where "
                    f"field is one of {', '.join(LIVE)}."
                )
            name, value = match[2], read(_FIELDS[match[2]], match[3] or "")
            value = getattr(settings.replace(**{name: value}), name)
            script.setdefault(int(match[1]), []).append((name, value))
        return settings, hide, script

    @property
    def summary(self) -> str:
        """The lab in a sentence made from its numbers."""
        run, update = self.training, self.training.step_count
        name = names([*self.ghosts, self.track])[-1] if self.ghosts else NAMES[run.settings.method]
        if not run.history:
            return f"{name}: no update made yet; {run.settings.updates} are planned."
        last = run.history[-1]
        seen = (
            f", Top@20 {self.track.top20[-1][1]:.1%} after update {self.track.top20[-1][0]}"
            if self.track.top20
            else ""
        )
        return (
            f"{name}: update {update} of {run.settings.updates}, loss {last.loss:.2f}, {last.negatives} negatives per query, "
            f"gradient norm of the passage tower {last.grad_norm_ratio:.2f} times the query tower's{seen}."
        )

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


def _chosen_in(settings: Settings, also=()) -> dict:
    """{field: value} of what differs from the method's defaults, and of these fields as well."""
    default = Settings(method=settings.method, tower=settings.tower, dim=settings.dim)
    usual = dataclasses.replace(default, similarity=settings.replace(similarity=None).similarity)
    own = {
        n: getattr(settings, n)
        for n in _FIELDS
        if n in also or getattr(settings, n) != getattr(usual, n)
    }
    if settings.method == "dpr" and "local_batch" in own:
        own["local_batch"] = _local_part(own, own["local_batch"])
    return own


def _local_part(own: dict, total: int) -> int:
    """The N_local that other methods have for DPR's one batch, which is N_local × K."""
    default = _FIELDS["accumulation_steps"].metadata["default"]
    return max(1, total // own.get("accumulation_steps", default))


def _that_fit(own: dict) -> Settings:
    """Settings of these choices, but for those that cannot stand beside the method's.

    A cache, for one, gives the hard negatives itself. Of two choices that exclude each other, the
    earlier one is taken.
    """
    fitting = {name: own.pop(name) for name in _SHAPES if name in own}
    fitting = {**fitting, **own} if _is_whole({**fitting, **own}) else fitting
    for _ in own:  # a choice may need one that comes after it
        for name, value in own.items():
            if name not in fitting and _is_whole({**fitting, name: value}):
                fitting[name] = value
    return Settings(**fitting)


def _is_whole(fields: dict) -> bool:
    try:
        Settings(**fields)
    except ValueError:
        return False
    return True


_labs: dict[str, list] = {}  # notebook cell -> [its execution, its labs]


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

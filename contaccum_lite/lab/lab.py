"""The lab: a player with its pictures, share line and summary. What a notebook calls."""

from __future__ import annotations

from contaccum_lite.core.settings import Settings
from contaccum_lite.data.types import Pairs
from contaccum_lite.lab import cell_registry
from contaccum_lite.lab.fields import NAMES, START_WORDS
from contaccum_lite.lab.history import Track, names, table, what_we_saw
from contaccum_lite.lab.player import Player
from contaccum_lite.lab.share_line import format_share_line, parse_share_line
from contaccum_lite.lab.startup import without_compiler
from contaccum_lite.lab.state import chosen_in
from contaccum_lite.lab.widget import LabWidget


class Lab(Player):
    """A retriever to train by hand: choose, play, look, stop.

    `lab` as the last line of a cell shows it. Every field of `Settings` is a
    trait of the lab, with its range: `lab.memory_size = 256`. Before the first update, every choice
    takes hold at once. In a run under way, K, N_local, N_memory, the learning rate and the query
    bank's switch hold from the next update on; any other change waits for `reset()`: `message` says
    so, and `needs_reset` has its name.
    `training` is the `Run`; `ghosts` are the earlier ones. Notebooks 00 and 05.

    pairs: from `load_pairs`. settings or **fields: where it starts. every: updates between two
    evaluations, of which the first comes before the first update. hide: names of controls and views
    that are left out (`HIDEABLE`). tour: whether a first-time visitor is shown around. Raises
    `ValueError` for a value out of range.
    """

    def __init__(
        self,
        pairs: Pairs,
        settings: Settings | None = None,
        *,
        every: int = 25,
        hide=(),
        tour: bool = True,
        **fields,
    ):
        self._views: LabWidget | None = None
        self.tour = tour
        super().__init__(pairs, settings, every=every, hide=hide, **fields)
        cell_registry.register(self)

    def _new_track(self, settings: Settings, **options) -> Track:
        with without_compiler():
            return super()._new_track(settings, **options)

    @property
    def views(self) -> LabWidget:
        """The lab's pictures, made when first asked for."""
        if self._views is None:
            self._views = LabWidget(self)
        return self._views

    def _repr_mimebundle_(self, include=None, exclude=None):
        return self.views.bundle()

    def close(self) -> None:
        """Stop, and take the pictures away. No task is left."""
        views, self._views = self._views, None
        if views is not None:
            views.close()
        super().close()

    def share(self) -> str:
        """The run under way in one line, with the sliders and switches that moved while it ran.

        `load` makes it again, bit for bit.
        """
        return format_share_line(self.track.start, self.track.changes, self.hide)

    def load(self, line: str) -> None:
        """Reset to the run of a line that `share()` made.

        `hide=` and names in it leave those controls and views out of the lab, as `hide` does;
        without it they stay as they are. Raises `ValueError` for a line that it cannot read, and
        changes nothing then.
        """
        settings, changes, hide = parse_share_line(line)
        track, overrides = self._new_track(settings), chosen_in(settings)
        for name, value in changes.pop(0, []):
            track.change(name, value)
            overrides[name] = value
        if hide is not None:
            self.hide = hide
        self._restart(track, overrides)
        self._scheduled_changes = changes

    @property
    def summary(self) -> str:
        """The lab in a sentence made from its numbers."""
        run = self.training
        name = self.tracks()[-1][0] if self.ghosts else NAMES[run.settings.method]
        name += f", {START_WORDS[run.settings.start]}"
        if not run.history:
            return f"{name}: no update made yet; {run.settings.updates} are planned."
        last = run.history[-1]
        summary = (
            f"{name}: update {run.step_count} of {run.settings.updates}, loss {last.loss:.2f}, "
            f"{last.negatives} negatives per query"
        )
        if "ratio" not in self.hide:
            summary += (
                f", gradient norm of the passage tower {last.grad_norm_ratio:.2f} times the query "
                "tower's"
            )
        if self.track.scores:
            summary += f", {self.track.accuracy}"
        return summary + "."

    def tracks(self) -> list[tuple[str, Track]]:
        """(name, track) of the ghosts and, last, of the run under way; a name says what differs."""
        tracks = [*self.ghosts, self.track]
        return list(zip(names(tracks), tracks))

    def table(self) -> str:
        """All runs as a Markdown table, made from their numbers."""
        return table(self.tracks())

    def what_we_saw(self) -> str:
        """The lessons of a race as Markdown, each with its number.

        Raises `ValueError` before `race()`.
        """
        return what_we_saw(self.tracks())

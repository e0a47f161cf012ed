"""`Story`: the animated matrix. Micro-batches arrive, are scored, and slide into the banks."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import anywidget
import traitlets

from contaccum_lite.course.plots import Picture
from contaccum_lite.lab.stills import GRADIENTS

PHASES = ("arrives", "is scored", "learns", "is stored")
_HERE = Path(__file__).parent
_LARGEST = 16  # rows or columns that still have room for their numbers


class Vector(NamedTuple):
    """A row or a column of the matrix at one moment."""

    pair: int  # its number, from 1
    slot: int  # its row or column: local ones first, then the bank's slots
    fresh: bool  # computed in this micro-batch, so that a gradient reaches its encoder
    scored: bool  # its entries are there


class Moment(NamedTuple):
    """One moment of the story: the rows, the columns, and a sentence."""

    micro_batch: int  # from 1
    phase: str  # one of PHASES
    rows: list[Vector]
    columns: list[Vector]
    sentence: str


class StoryCanvas(anywidget.AnyWidget):
    """The moments on a canvas, with play, pause, a slider and the arrow keys.

    `at` is the time, in moments from 0, and lies between two of them while it plays.
    """

    _esm = _HERE / "story.js"
    _css = _HERE / "story.css"
    moments = traitlets.List().tag(sync=True)
    local = traitlets.Int().tag(sync=True)
    memory = traitlets.Int().tag(sync=True)
    query_bank = traitlets.Bool(True).tag(sync=True)
    colours = traitlets.List(help="(name, colour, what it says) of the entries").tag(sync=True)
    at = traitlets.Float(0.0).tag(sync=True)
    playing = traitlets.Bool(False).tag(sync=True)


class Story(Picture):
    """Micro-batches that arrive, are scored, learn, and slide into the banks, as an animation.

    Args:
        local_batch: N_local. memory_size: N_memory, a multiple of it. micro_batches: how many.
        query_bank: False shows pre-batch negatives, whose matrix has local rows only.

    `moments` are its data. The still picture is a strip of six of them, and `sentence` says what it
    shows. Raises `ValueError` for sizes that do not fit. Notebook 03.
    """

    size = (10.5, 2.7)

    def __init__(
        self,
        local_batch: int = 2,
        memory_size: int = 4,
        micro_batches: int = 3,
        *,
        query_bank: bool = True,
    ):
        _check_sizes(local_batch, memory_size, micro_batches)
        self.local, self.memory, self.query_bank = local_batch, memory_size, query_bank
        self.moments = list(self._moments(micro_batches))
        self.widget = StoryCanvas(
            moments=[_plain(moment) for moment in self.moments],
            local=local_batch,
            memory=memory_size,
            query_bank=query_bank,
            colours=[(name, *GRADIENTS[name]) for name in ("both", "query", "passage", "none")],
        )

    def _moments(self, micro_batches: int):
        """The moments, four a micro-batch; a bank's slot holds what was last written into it."""
        bank: dict[int, int] = {}  # slot of the bank -> pair
        for number in range(micro_batches):
            pairs = range(number * self.local + 1, (number + 1) * self.local + 1)
            local = dict(enumerate(pairs))
            for phase in PHASES[:3]:
                scored = phase != "arrives"
                yield self._moment(number, phase, local, bank, scored)
            replaced = []
            for pair in pairs:
                slot = (pair - 1) % self.memory
                if slot in bank:
                    replaced.append(bank[slot])
                bank[slot] = pair
            yield self._moment(number, "is stored", {}, bank, True, list(pairs), replaced)

    def _moment(self, number, phase, local, bank, scored, stored=(), replaced=()) -> Moment:
        columns = [Vector(pair, slot, True, scored) for slot, pair in local.items()]
        rows = list(columns)
        for slot, pair in sorted(bank.items()):
            vector = Vector(pair, self.local + slot, False, True)
            columns.append(vector)
            if self.query_bank:
                rows.append(vector)
        sentence = self._say(number + 1, phase, rows, columns, stored, replaced)
        return Moment(number + 1, phase, rows, columns, sentence)

    def _say(self, number, phase, rows, columns, stored, replaced) -> str:
        """What happens at a moment, with its numbers."""
        pairs = [vector.pair for vector in columns if vector.fresh]
        banked = len(columns) - len(pairs)
        if phase == "arrives":
            hold = f"hold {banked} frozen pairs" if banked else "are empty"
            return f"Pairs {_names(pairs)} are encoded. The banks {hold}."
        if phase == "is scored":
            return (
                f"{len(rows)} queries × {len(columns)} passages are {len(rows) * len(columns)} "
                f"entries: {_who_learns(rows, columns)}."
            )
        if phase == "learns":
            return (
                f"The gradient goes back along the coloured entries, to the texts of pairs "
                f"{_names(pairs)} alone. Banked vectors are constants."
            )
        over = f", over the oldest, pairs {_names(replaced)}" if replaced else ""
        return (
            f"Pairs {_names(stored)} move into the banks{over}. They turn grey: from now on they "
            "are constants."
        )

    @property
    def sentence(self) -> str:
        """What the strip shows."""
        full = max(self.moments, key=lambda moment: len(moment.rows) * len(moment.columns))
        return (
            f"{self.moments[-1].micro_batch} micro-batches of {self.local} pairs, and banks of "
            f"{self.memory}. Each micro-batch is scored with itself and the banks, then its "
            f"vectors move into the banks and turn grey. In the largest matrix are "
            f"{len(full.rows) * len(full.columns)} entries: "
            f"{_who_learns(full.rows, full.columns)}."
        )

    def strip(self) -> list[Moment]:
        """The six moments of the still picture: scored and stored, of three micro-batches."""
        shown = [moment for moment in self.moments if moment.phase in ("is scored", "is stored")]
        return shown[-6:]

    def still(self, figure) -> None:
        from matplotlib.patches import Patch

        moments = self.strip()
        strip, key = figure.subfigures(2, 1, height_ratios=(6, 1.2))
        axes = strip.subplots(1, len(moments), squeeze=False)[0]
        for axis, moment in zip(axes, moments):
            self._draw(axis, moment)
        handles = []
        for name in ("both", "query", "passage", "none"):
            colour, words = GRADIENTS[name]
            handles.append(Patch(facecolor=colour, edgecolor="#888888", label=words))
        style = dict(loc="center", ncols=4, frameon=False, fontsize=9, title_fontsize=9)
        key.legend(handles=handles, title="An entry's gradient goes to", **style)

    def _draw(self, axis, moment: Moment) -> None:
        """One moment on an axis of matplotlib."""
        from matplotlib.patches import Rectangle

        across = self.local + self.memory
        down = across if self.query_bank else self.local
        for row in moment.rows:
            for column in moment.columns:
                kind = entry_kind(row.fresh, column.fresh)
                box = Rectangle(
                    (column.slot, row.slot), 1, 1, facecolor=GRADIENTS[kind][0], edgecolor="white"
                )
                axis.add_patch(box)
                if row.pair == column.pair:
                    colour = "white" if kind == "both" else "black"
                    center = dict(ha="center", va="center", color=colour, fontsize=9)
                    axis.text(column.slot + 0.5, row.slot + 0.5, "+", **center)
        for vector in moment.columns:
            axis.text(vector.slot + 0.5, -0.15, f"p{vector.pair}", ha="center", fontsize=9)
        for vector in moment.rows:
            axis.text(-0.15, vector.slot + 0.6, f"q{vector.pair}", ha="right", fontsize=9)
        border = dict(color="#444444", linewidth=1.2)
        axis.plot([self.local, self.local], [0, down], **border)
        if self.query_bank:
            axis.plot([0, across], [self.local, self.local], **border)
        axis.add_patch(Rectangle((0, 0), across, down, fill=False, edgecolor="#888888"))
        axis.set(xlim=(-1.1, across + 0.1), ylim=(across + 0.1, -1.0), aspect="equal")
        axis.set_axis_off()
        axis.set_title(f"{moment.micro_batch} {moment.phase}", fontsize=10, pad=6)


def entry_kind(query_is_fresh: bool, passage_is_fresh: bool) -> str:
    """What an entry's gradient reaches: a name in `stills.GRADIENTS`."""
    if query_is_fresh:
        return "both" if passage_is_fresh else "query"
    return "passage" if passage_is_fresh else "none"


def count_entries(rows: list[Vector], columns: list[Vector]) -> dict[str, int]:
    """How many entries teach both towers, the query tower, the passage tower, neither."""
    counts = dict.fromkeys(("both", "query", "passage", "none"), 0)
    for row in rows:
        for column in columns:
            counts[entry_kind(row.fresh, column.fresh)] += 1
    return counts


def _who_learns(rows: list[Vector], columns: list[Vector]) -> str:
    """ "4 teach both towers, 8 the query tower only, 16 neither"."""
    phrases = []
    for kind, count in count_entries(rows, columns).items():
        if count:
            words = (
                GRADIENTS[kind][1].replace("query", "the query").replace("passage", "the passage")
            )
            phrases.append(f"{count} teach {words}" if not phrases else f"{count} {words}")
    return ", ".join(phrases)


def _names(pairs) -> str:
    """ "5 and 6"."""
    pairs = [str(pair) for pair in pairs]
    return pairs[0] if len(pairs) == 1 else f"{', '.join(pairs[:-1])} and {pairs[-1]}"


def _plain(moment: Moment) -> dict:
    """A moment as the page reads it."""
    return {
        "title": f"Micro-batch {moment.micro_batch} {moment.phase}",
        "phase": moment.phase,
        "rows": [list(vector) for vector in moment.rows],
        "columns": [list(vector) for vector in moment.columns],
        "sentence": moment.sentence,
    }


def _check_sizes(local_batch: int, memory_size: int, micro_batches: int) -> None:
    for name, value in (("local_batch", local_batch), ("micro_batches", micro_batches)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r:.40}: give a whole number from 1.")
    if not isinstance(memory_size, int) or memory_size < local_batch or memory_size % local_batch:
        raise ValueError(
            f"memory_size is {memory_size!r:.40}, no multiple of local_batch {local_batch}: choose "
            f"{local_batch} or {2 * local_batch}."
        )
    if local_batch + memory_size > _LARGEST or micro_batches > _LARGEST:
        raise ValueError(
            f"{local_batch} + {memory_size} rows in {micro_batches} micro-batches: the picture has "
            f"room for {_LARGEST} of each."
        )

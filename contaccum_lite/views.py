"""Pictures: they observe, and compute nothing that trains. Each shows live, stands still where nothing runs, and has a sentence."""

from __future__ import annotations

import html
import math

import numpy as np
import torch

from . import stills
from .grid import LARGEST, Grid, colours, strongest
from .search import plain
from .stills import bundle, without_halves
from .tracks import NAMES

LONGEST_TEXT = 400
#: What an entry of the similarity matrix carries gradient to.
CARRIES = {
    (True, True): "both towers",
    (True, False): "the query tower only",
    (False, True): "the passage tower only",
    (False, False): "neither tower: both vectors are memories",
}


def short(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text of a data set as one line without control characters, shortened with its length said."""
    clean = plain(without_halves(text[: 10 * longest]))
    return clean[:longest] + (f" … ({len(text):,} characters)" if len(text) > longest else "")


def plain_text(text: str, longest: int = LONGEST_TEXT) -> str:
    """`short` text as HTML that shows just that text."""
    return html.escape(short(text, longest)).replace("$", "&#36;")


class View:
    """A picture of a lab: `data()` as plain numbers, `sentence`, `widget`, `still` on matplotlib axes."""

    title, wide = "", (6.0, 4.0)

    def __init__(self, lab):
        self.lab, self.output = lab, None

    def show(self) -> None:
        """Show it here and now, before a cell trains; the still picture beside it is made anew when the training ends."""
        from IPython.display import display

        self.output = display(self, display_id=True)

    def settle(self) -> None:
        """Make the still picture anew where `show` put one."""
        if self.output is not None:
            self.output.update(self)

    def png(self) -> bytes:
        """The picture as it is now, with its sentence."""
        figure = stills.new(*self.wide)
        self.still(figure)
        return stills.png(figure, self.sentence)

    def _repr_mimebundle_(self, include=None, exclude=None):
        self.draw()
        return bundle(self.widget, self.png(), self.sentence)


# --- the similarity matrix ---------------------------------------------------------------------------------------------


class MatrixView(View):
    """The last micro-batch's similarity matrix, as "score", "softmax weight" or "gradient weight". Notebook 01."""

    title, wide = "Similarity matrix", (5.2, 5.4)
    KINDS = {
        "score": "q·p/τ",
        "softmax weight": "how much of a query's softmax falls on a passage",
        "gradient weight": "∂loss/∂score: below 0 pulls together, above 0 pushes apart",
    }

    def __init__(self, lab, kind: str = "softmax weight"):
        super().__init__(lab)
        self.grid = self.widget = Grid(
            title=self.title,
            talks="rows",
            empty="press Play or Step to see the first micro-batch",
            width=440,
        )
        self._kind, self._drawn = kind, None
        self.kind = kind
        self.grid.observe(lambda change: lab.soon(self.tell), "at")
        self.grid.observe(lambda change: lab.soon(self.rank), "picked")

    @property
    def kind(self) -> str:
        return self._kind

    @kind.setter
    def kind(self, kind: str) -> None:
        if kind not in self.KINDS:
            raise ValueError(f"kind is {kind!r}: choose one of {', '.join(self.KINDS)}.")
        self._kind = kind
        self.draw()

    def data(self) -> dict | None:
        """values (rows, columns) of this kind, nan where an entry is left out; local, hard_from; row and column ids; None at the start."""
        micro = self.lab.micro
        if micro is None:
            return None
        values = {
            "score": lambda: micro.scores,
            "gradient weight": lambda: micro.weights,
            "softmax weight": lambda: softmax(micro),
        }[self.kind]()
        return dict(
            kind=self.kind,
            values=torch.where(micro.scores == -torch.inf, torch.nan, values),
            local=micro.local,
            hard_from=micro.hard_from,
            row_ids=micro.row_ids,
            column_ids=micro.column_ids,
        )

    def scale(self) -> int:
        """Rows and columns that share a byte of `cells`."""
        return 1 if self.lab.micro is None else -(-max(self.lab.micro.scores.shape) // LARGEST)

    def cells(self) -> np.ndarray:
        """The values as bytes of colour, (rows, columns); of more than a canvas has room for, each block's strongest."""
        micro, scale = self.lab.micro, self.scale()
        if micro is None:
            return np.zeros((0, 0), dtype=np.uint8)
        left_out = micro.scores.cpu() == -torch.inf
        if self.kind == "softmax weight":
            places = (
                strongest(softmax(micro), scale)
                .clamp(min=1e-4)
                .log_()
                .mul_(254 / 4 / math.log(10))
                .add_(255)
            )
        elif self.kind == "score":
            scores = strongest(micro.scores.nan_to_num(neginf=0), scale)
            places = scores.mul(127 / (float(scores.abs().max()) or 1.0)).add_(128)
        else:
            strength = strongest(micro.weights, scale) * len(micro.weights)
            places = strength.abs().sqrt_().copysign_(strength).mul_(127).add_(128)
        cells = places.clamp_(1, 255).round_().to(torch.uint8).cpu()
        cells[left_out if scale == 1 else ~strongest(~left_out, scale)] = 0
        if self.kind == "gradient weight":
            for start, end in self._frozen():
                cells[-(-micro.local // scale) :, -(-start // scale) : -(-end // scale)] = 0
        return cells.numpy()

    def _frozen(self) -> list[tuple[int, int]]:
        """The columns that are memories, as (start, end)."""
        micro = self.lab.micro
        return [
            (micro.local, micro.hard_from),
            (micro.hard_from + self._local_hard(), micro.scores.shape[1]),
        ]

    def _local_hard(self) -> int:
        micro = self.lab.micro
        return min(
            micro.local * self.lab.training.settings.hard_negatives,
            micro.scores.shape[1] - micro.hard_from,
        )

    def blocks(self) -> list[tuple[str, int, int, str]]:
        """(name, start, end, "row" or "column") of the matrix's blocks."""
        micro = self.lab.micro
        if micro is None:
            return []
        rows, columns, hard = *micro.scores.shape, micro.hard_from + self._local_hard()
        found = [
            ("local", 0, micro.local, "row"),
            ("query bank", micro.local, rows, "row"),
            ("local", 0, micro.local, "column"),
            ("passage bank", micro.local, micro.hard_from, "column"),
            ("hard", micro.hard_from, hard, "column"),
            ("hard bank", hard, columns, "column"),
        ]
        return [block for block in found if block[2] > block[1]]

    def draw(self, words: bool = True) -> None:
        """Send the matrix as it is now, and what is said of it."""
        ends = {
            "score": ["negative", "positive"],
            "softmax weight": ["≤ 0.0001", "1"],
            "gradient weight": ["pulls together", "pushes apart"],
        }[self.kind]
        palette = colours("magnitude" if self.kind == "softmax weight" else "signed").tobytes()
        with self.grid.hold_sync():
            if (
                self._drawn is None
                or self._drawn[0] is not self.lab.micro
                or self._drawn[1] != self._kind
            ):
                self._drawn = self.lab.micro, self._kind
                self.grid.show(
                    self.cells(),
                    scale=self.scale(),
                    shape=(0, 0) if self.lab.micro is None else tuple(self.lab.micro.scores.shape),
                    blocks=self.blocks(),
                    diagonal=0 if self.lab.micro is None else len(self.lab.micro.scores),
                    legend=ends,
                    colours=palette,
                    title=f"{self.title}: {self.kind}",
                )
            if words:
                self.grid.sentence = self.sentence
                self.tell()
                self.rank()

    @property
    def sentence(self) -> str:
        micro = self.lab.micro
        if micro is None:
            return "No micro-batch yet."
        rows, columns = micro.scores.shape
        parts = lambda side: " + ".join(
            f"{end - start} {name}" for name, start, end, which in self.blocks() if which == side
        )
        own = micro.weights.diagonal() * rows + 1  # each row's softmax at its positive
        first = float((micro.scores.diagonal() >= micro.scores.amax(1)).float().mean())
        return (
            f"Update {micro.update + 1}, micro-batch {micro.index + 1} of {micro.of}: {rows} rows ({parts('row')}) by {columns} columns "
            f"({parts('column')}). A query gives its own passage {float(own.mean()):.0%} of its softmax on average and ranks it first in "
            f"{first:.0%} of the rows; {self.carrying():.0%} of the entries carry gradient. Loss {micro.loss:.2f}; knowing nothing "
            f"would be log {columns} = {math.log(columns):.2f}."
        )

    def carrying(self) -> float:
        """The share of entries through which a gradient flows to a tower."""
        micro = self.lab.micro
        rows, columns = micro.scores.shape
        frozen = (rows - micro.local) * sum(end - start for start, end in self._frozen())
        return 1 - frozen / (rows * columns)

    def carries(self, row: int, column: int) -> str:
        """Where the gradient of this entry goes, in words."""
        micro = self.lab.micro
        if micro.scores[row, column] == -torch.inf:
            return "none: the entry is left out, as a copy of the row's own pair"
        return CARRIES[
            row < micro.local, not any(start <= column < end for start, end in self._frozen())
        ]

    def _name(self, side: str, place: int) -> str:
        return next(
            name
            for name, start, end, which in self.blocks()
            if which == side and start <= place < end
        )

    def _passage(self, column: int):
        micro, pairs = self.lab.micro, self.lab.pairs
        number = int(micro.column_ids[column])
        return pairs.passages[
            number if column >= micro.hard_from else pairs.row_of[pairs.train[number].passage_id]
        ]

    def tell(self) -> None:
        """Put what is under the cursor into words."""
        at = self.grid.at
        self.grid.told = (
            self.describe(*at)
            if len(at) == 2 and self.lab.micro is not None
            else "Point at an entry, or use the arrow keys: its texts, its number and where its gradient goes. Click a row, or press Enter: its ranking."
        )

    def describe(self, row: int, column: int) -> str:
        """Both texts of an entry, its numbers, and where its gradient goes."""
        micro, passage = self.lab.micro, self._passage(column)
        query = self.lab.pairs.train[int(micro.row_ids[row])].query
        positive = ", its own passage" if row == column else ""
        return (
            f"row {row} ({self._name('row', row)}) × column {column} ({self._name('column', column)}{positive}): score "
            f"{float(micro.scores[row, column]):.2f}, softmax {float(softmax(micro, row)[column]):.4f}, gradient weight "
            f"{float(micro.weights[row, column]):+.5f}; gradient goes to {self.carries(row, column)}\n"
            f"query: {short(query, 160)}\npassage: {short(passage.title, 80)} — {short(passage.text, 160)}"
        )

    def rank(self) -> None:
        """Put the picked row's ranking into words."""
        picked = self.grid.picked
        self.grid.ranking = self.ranking(picked[0]) if picked and self.lab.micro is not None else ""

    def ranking(self, row: int, most: int = 3) -> str:
        """Where a row's own passage stands, and what stands above it."""
        micro = self.lab.micro
        scores = micro.scores[row]
        order = scores.argsort(descending=True, stable=True).tolist()
        place = order.index(row)
        above = "; ".join(
            f"{short(self._passage(c).title or self._passage(c).id, 60)} ({float(scores[c]):.2f})"
            for c in order[: min(place, most)]
        )
        more = f" and {place - most} more" if place > most else ""
        return (
            f"Row {row} ranks its own passage {place + 1} of {int((scores > -torch.inf).sum())}, with {float(softmax(micro, row)[row]):.1%} of its softmax. "
            + (f"Above it: {above}{more}." if place else "Nothing is above it.")
        )

    def still(self, figure) -> None:
        stills.grid(figure.subplots(), self.grid)


def softmax(micro, row: int | None = None):
    """Each row's softmax of a MicroStep, (rows, columns), or one row's, (columns,): its gradient weights without the positive's."""
    if row is not None:
        found = micro.weights[row] * len(micro.weights)
        found[row] += 1
        return found
    found = micro.weights * len(micro.weights)
    found.diagonal().add_(1)
    return found


# --- the banks ---------------------------------------------------------------------------------------------------------


class BanksView(View):
    """Both banks slot by slot, one row of cells per micro-batch: age in updates, and the next slot to be written. Notebook 03."""

    title, wide = "Memory banks", (5.2, 4.2)

    def __init__(self, lab):
        import ipywidgets

        super().__init__(lab)
        self.grids = {
            "query": Grid(title="Query bank", empty="no query bank", width=215, patient=True),
            "passage": Grid(title="Passage bank", empty="no passage bank", width=215, patient=True),
        }
        for name, grid in self.grids.items():
            grid.observe(lambda change, name=name: lab.soon(self.tell, name), "at")
        self.words = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([ipywidgets.HBox(list(self.grids.values())), self.words])
        self.draw()

    def bank(self, name: str):
        return self.lab.training.query_bank if name == "query" else self.lab.training.passage_bank

    def data(self) -> dict[str, dict]:
        """Per bank: size, filled, ids and ages by slot, and the next slot to be written."""
        step = self._step()
        return {
            name: dict(
                size=(bank := self.bank(name)).size,
                filled=len(bank),
                ids=bank.ids.tolist(),
                ages=bank.ages(step).tolist(),
                next_slot=bank.next_slot,
            )
            for name in self.grids
        }

    def _step(self) -> int:
        """The update from which ages count: the one under way, or the last one made."""
        micro = self.lab.micro
        return self.lab.training.step_count if micro is None else micro.update

    def across(self, size: int) -> int:
        """Cells in a row: whole micro-batches, so many that the picture is at most about twice as high as wide."""
        local = min(self.lab.training.settings.local_batch, max(1, size))
        return local * max(1, math.ceil(math.sqrt(size / 1.5) / local)) if size else 1

    def oldest(self, size: int) -> int:
        """The age, in updates, at which an entry is written over when every update is whole."""
        return max(1, math.ceil(size / self.lab.training.settings.total_batch))

    def cells(self, name: str) -> np.ndarray:
        """Bytes of colour by slot, the newest the brightest: age in updates, those of the update under way in micro-batches of it."""
        bank = self.bank(name)
        if not bank.size:
            return np.zeros((0, 0), dtype=np.uint8)
        across = self.across(bank.size)
        cells = np.zeros(math.ceil(bank.size / across) * across, dtype=np.uint8)
        written = np.empty(len(bank))
        written[bank.order().numpy()] = np.arange(len(bank))[::-1]  # pairs written since
        ages = (
            written
            // self.lab.training.settings.local_batch
            / self.lab.training.settings.accumulation_steps
        )
        cells[: len(bank)] = np.clip(255 - 230 * ages / self.oldest(bank.size), 1, 255)
        return cells.reshape(-1, across)

    def draw(self, words: bool = True) -> None:
        """Send both banks as they are now, and what is said of them."""
        for name, grid in self.grids.items():
            bank = self.bank(name)
            across = self.across(bank.size)
            with grid.hold_sync():
                grid.show(
                    self.cells(name),
                    colours=colours("magnitude").tobytes(),
                    marks=[divmod(bank.next_slot, across)] if bank.size else [],
                    legend=[_old(self.oldest(bank.size)), "new"] if bank.size else [],
                    empty=f"this method keeps no {name} bank"
                    if not bank.size and not self._kept(name)
                    else "N_memory is 0",
                )
                if words:
                    grid.sentence = self.one(name)
                    self.tell(name)
        if words:
            self.words.value = paragraph(self.compare())

    def _kept(self, name: str) -> bool:
        return getattr(self.lab.training.settings, f"{name}_bank")

    def one(self, name: str) -> str:
        """A bank in a sentence."""
        bank = self.bank(name)
        if not bank.size:
            return f"No {name} bank."
        if not len(bank):
            return f"{bank.size} slots, all empty; slot 0 is written next."
        ages = bank.ages(self._step())
        return (
            f"{len(bank)} of {bank.size} slots hold a {name}, {_old(int(ages.min()), int(ages.max()))}; "
            f"slot {bank.next_slot} is written next{', over the oldest' if len(bank) == bank.size else ''}."
        )

    def compare(self) -> str:
        """What the two banks mean together."""
        queries, passages = len(self.lab.training.query_bank), len(self.lab.training.passage_bank)
        if not self.bank("passage").size:
            return "Nothing is remembered: a query's negatives are its own micro-batch."
        if not self.bank("query").size:
            return (
                f"For the next micro-batch's matrix {passages} past passages are kept as columns, and no past query as a row: the gradient of the "
                "query tower sees them, that of the passage tower has no such counterpart."
            )
        return f"For the next micro-batch's matrix {queries} past queries are kept as rows and {passages} past passages as columns: slot for slot the same pairs."

    @property
    def sentence(self) -> str:
        return " ".join(
            [
                f"Query bank: {self.one('query')}",
                f"Passage bank: {self.one('passage')}",
                self.compare(),
            ]
        )

    def tell(self, name: str) -> None:
        """Put the slot under the cursor into words."""
        grid = self.grids[name]
        grid.told = (
            self.describe(name, grid.at[0] * grid.columns + grid.at[1])
            if len(grid.at) == 2
            else "Point at a slot: what it holds."
            if self.bank(name).size
            else ""
        )

    def describe(self, name: str, slot: int) -> str:
        """What a slot holds."""
        bank = self.bank(name)
        if slot >= bank.size:
            return f"no slot {slot}: the bank has {bank.size}."
        following = ", the next to be written" if slot == bank.next_slot else ""
        if slot >= len(bank):
            return f"slot {slot}: empty{following}."
        pair = self.lab.pairs.train[int(bank.ids[slot])]
        text = (
            short(pair.query, 120)
            if name == "query"
            else f"{short(pair.title, 60)} — {short(pair.passage, 120)}"
        )
        return f"slot {slot}, {_old(int(bank.ages(self._step())[slot]))}{following}\n{text}"

    def still(self, figure) -> None:
        for axis, grid in zip(figure.subplots(1, 2), self.grids.values()):
            stills.grid(axis, grid)


def _old(first: int, last: int | None = None) -> str:
    """An age in updates, or a range of them, in words."""
    if last in (None, first):
        return "of this update" if first == 0 else f"{first} update{'s' * (first > 1)} old"
    return f"{first} to {last} update{'s' * (last > 1)} old"


# --- search ------------------------------------------------------------------------------------------------------------


class SearchBox:
    """A box that searches the passages with one or more runs as they are now, side by side. Text found is shown live only.

    runs: {name: Run}, or a lab, whose run under way is asked.
    """

    def __init__(self, runs, query: str = "remove whitespace from a string", k: int = 5):
        import ipywidgets

        self.lab, self.k, self.hits = (None if isinstance(runs, dict) else runs), k, {}
        self.runs, self.refusal = runs, ""
        self.box = ipywidgets.Text(
            value=query, description="search", continuous_update=False, layout=dict(width="32em")
        )
        self.found = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([self.box, self.found])
        self.box.observe(
            lambda change: self.lab.soon(self.search) if self.lab else self.search(), "value"
        )
        self.search()

    def search(self) -> None:
        """Ask again, with the towers as they are now."""
        runs = {self.lab.tracks()[-1][0]: self.lab.training} if self.lab else self.runs
        self.found.value = self.refusal = ""
        if not self.box.value.strip():
            return
        try:
            query = self.box.value
            self.hits = {name: run.search(query, self.k) for name, run in runs.items()}
        except Exception as error:  # shown to who typed it; the kernel's log has no reader
            self.hits, self.refusal = {}, short(str(error))
            self.found.value = f"<p role='alert'>{plain_text(self.refusal)}</p>"
            return
        columns = "".join(map(self._column, self.hits))
        self.found.value = f"<div style='display:flex;gap:2em;line-height:1.35'>{columns}</div>"

    def _column(self, name: str) -> str:
        rows = "".join(
            f"<li><b>{plain_text(h.title or h.id, 120)}</b> <small>{h.score:.1f}</small><br>{plain_text(h.passage, 160)}</li>"
            for h in self.hits[name]
        )
        after = f" <small>after update {self.lab.training.step_count}</small>" if self.lab else ""
        return f"<div style='flex:1;min-width:0;overflow-wrap:anywhere'><b>{plain_text(NAMES.get(name, name))}</b>{after}<ol>{rows}</ol></div>"

    @property
    def sentence(self) -> str:
        """What was found, by name only."""
        if self.refusal:
            return self.refusal
        firsts = "; ".join(
            f"{NAMES.get(m, m)} finds {', '.join(short(h.title or h.id, 120) for h in hits[:3])}"
            for m, hits in self.hits.items()
        )
        return f"For “{short(self.box.value, 120)}” {firsts}."

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = self.widget._repr_mimebundle_()
        return {**(data[0] if isinstance(data, tuple) else data), "text/plain": self.sentence}


class Card:
    """A pair to read: its text appears live only, its name always."""

    def __init__(self, pair):
        import ipywidgets

        self.pair = pair
        self.widget = ipywidgets.HTML(
            f"<p><b>query</b> &nbsp; {plain_text(pair.query)}</p><p><b>passage</b> &nbsp; <i>{plain_text(pair.title)}</i><br>"
            f"<span style='white-space:pre-wrap;line-height:1.35'>{plain_text(pair.passage)}</span></p>"
        )

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = self.widget._repr_mimebundle_()
        return {
            **(data[0] if isinstance(data, tuple) else data),
            "text/plain": f"The pair of {short(self.pair.title, 120)}: run this cell to read its text.",
        }


def paragraph(sentence: str) -> str:
    """A view's sentence as HTML, read out when it changes."""
    return f"<p role='status' style='line-height:1.35'>{html.escape(plain(sentence))}</p>"

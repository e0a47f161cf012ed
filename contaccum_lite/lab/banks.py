"""The banks as strips of cells, each coloured by its age."""

from __future__ import annotations

import math

import ipywidgets
import numpy as np

from contaccum_lite.core.presets import PRESETS
from contaccum_lite.lab import stills
from contaccum_lite.lab.grid import Grid, colours
from contaccum_lite.lab.view import View, paragraph
from contaccum_lite.utils.text import short


class BanksView(View):
    """Both banks slot by slot, one row of cells per micro-batch: age, and the slot written next.

    Notebook 03.
    """

    title, wide = "Memory banks", (5.2, 4.2)

    def __init__(self, lab):
        super().__init__(lab)
        self.grids = {
            "query": Grid(title="Query bank", empty="no query bank", width=215, patient=True),
            "passage": Grid(title="Passage bank", empty="no passage bank", width=215, patient=True),
        }
        for name, grid in self.grids.items():
            grid.observe(lambda change, name=name: lab.soon(self.tell, name), "at")
        self.words = ipywidgets.HTML()
        pair = ipywidgets.HBox(list(self.grids.values()))
        pair.add_class("ccl-bank-pair")
        self.widget = ipywidgets.VBox([pair, self.words])
        self.draw()

    def bank(self, name: str):
        """The "query" or the "passage" bank of the run."""
        return self.lab.training.query_bank if name == "query" else self.lab.training.passage_bank

    def data(self) -> dict[str, dict]:
        """Per bank: size, filled, ids and ages by slot, and the next slot to be written."""
        step, data = self._step(), {}
        for name in self.grids:
            bank = self.bank(name)
            data[name] = dict(
                size=bank.size,
                filled=len(bank),
                ids=bank.ids.tolist(),
                ages=bank.ages(step).tolist(),
                write_ptr=bank.write_ptr,
            )
        return data

    def _step(self) -> int:
        """The update from which ages count: the one under way, or the last one made."""
        micro = self.lab.micro
        return self.lab.training.step_count if micro is None else micro.update

    def across(self, size: int) -> int:
        """Cells in a row: whole micro-batches, the picture at most about twice as high as wide."""
        if not size:
            return 1
        local = min(self.lab.training.settings.local_batch, size)
        return local * max(1, math.ceil(math.sqrt(size / 1.5) / local))

    def oldest(self, size: int) -> int:
        """The age, in updates, at which an entry is overwritten when every update is full."""
        return max(1, math.ceil(size / self.lab.training.settings.total_batch))

    def cells(self, name: str) -> np.ndarray:
        """Bytes of colour by slot, (rows, cells in a row): the newest is the brightest.

        The colour is the age in updates, within an update in micro-batches.
        """
        bank, settings = self.bank(name), self.lab.training.settings
        if not bank.size:
            return np.zeros((0, 0), dtype=np.uint8)
        across = self.across(bank.size)
        cells = np.zeros(math.ceil(bank.size / across) * across, dtype=np.uint8)
        written_since = np.empty(len(bank))  # pairs, by slot
        written_since[bank.order().numpy()] = np.arange(len(bank))[::-1]
        ages = written_since // settings.local_batch / settings.accumulation_steps
        cells[: len(bank)] = np.clip(255 - 230 * ages / self.oldest(bank.size), 1, 255)
        return cells.reshape(-1, across)

    def draw(self, words: bool = True) -> None:
        """Send both banks as they are now, and with `words` what is said of them."""
        palette = colours("magnitude").tobytes()
        for name, grid in self.grids.items():
            bank = self.bank(name)
            marks, legend, empty = [], [], "N_memory is 0"
            if bank.size:
                marks = [divmod(bank.write_ptr, self.across(bank.size))]
                legend = [_format_age(self.oldest(bank.size)), "new"]
            elif not getattr(self.lab.training.settings, f"{name}_bank"):
                fixed = f"{name}_bank" in PRESETS[self.lab.training.settings.method]["fixed"]
                reason = f"this method keeps no {name} bank", f"the {name} bank is switched off"
                empty = reason[not fixed]
            with grid.hold_sync():
                cells = self.cells(name)
                grid.show(cells, colours=palette, marks=marks, legend=legend, empty=empty)
                if words:
                    grid.sentence = self.one(name)
                    self.tell(name)
        if words:
            self.words.value = paragraph(self.compare())

    def one(self, name: str) -> str:
        """A bank in a sentence."""
        bank = self.bank(name)
        if not bank.size:
            return f"No {name} bank."
        if not len(bank):
            return f"{bank.size} slots, all empty; slot 0 is written next."
        ages = bank.ages(self._step())
        over = ", over the oldest" if len(bank) == bank.size else ""
        return (
            f"{len(bank)} of {bank.size} slots hold a {name}, "
            f"{_format_age(int(ages.min()), int(ages.max()))}; "
            f"slot {bank.write_ptr} is written next{over}."
        )

    def compare(self) -> str:
        """What the two banks mean for the next matrix."""
        query, passage = self.bank("query"), self.bank("passage")
        if not passage.size:
            return "Nothing is remembered: a query's negatives are its own micro-batch."
        if not query.size:
            return (
                f"For the next micro-batch's matrix {len(passage)} past passages are kept as "
                "columns, and no past query as a row: the gradient of the query tower sees them, "
                "that of the passage tower has no such counterpart."
            )
        return (
            f"For the next micro-batch's matrix {len(query)} past queries are kept as rows and "
            f"{len(passage)} past passages as columns: slot for slot the same pairs."
        )

    @property
    def sentence(self) -> str:
        query, passage = self.one("query"), self.one("passage")
        return f"Query bank: {query} Passage bank: {passage} {self.compare()}"

    def tell(self, name: str) -> None:
        """Put the slot under the cursor into words."""
        grid = self.grids[name]
        if len(grid.at) == 2:
            row, column = grid.at
            grid.told = self.describe(name, row * grid.columns + column)
        else:
            grid.told = "Point at a slot: what it holds." if self.bank(name).size else ""

    def describe(self, name: str, slot: int) -> str:
        """What a slot holds."""
        bank = self.bank(name)
        if slot >= bank.size:
            return f"no slot {slot}: the bank has {bank.size}."
        following = ", the next to be written" if slot == bank.write_ptr else ""
        if slot >= len(bank):
            return f"slot {slot}: empty{following}."
        pair = self.lab.pairs.train[int(bank.ids[slot])]
        text = short(pair.query, 120)
        if name == "passage":
            text = f"{short(pair.title, 60)} — {short(pair.passage, 120)}"
        age = _format_age(int(bank.ages(self._step())[slot]))
        return f"slot {slot}, {age}{following}\n{text}"

    def still(self, figure) -> None:
        for axis, grid in zip(figure.subplots(1, 2), self.grids.values()):
            stills.grid(axis, grid)


def _format_age(first: int, last: int | None = None) -> str:
    """An age in updates, or a range of them, in words."""
    if last in (None, first):
        return "of this update" if first == 0 else f"{first} update{'s' * (first > 1)} old"
    return f"{first} to {last} update{'s' * (last > 1)} old"

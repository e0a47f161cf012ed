"""Figure 3 as a map that fills: MRR@10 by K and N_memory, from runs and from pasted lines."""

from __future__ import annotations

import html
import re
from statistics import mean

import ipywidgets
import numpy as np

from contaccum_lite.core.settings import Settings
from contaccum_lite.lab import stills
from contaccum_lite.lab.fields import BEFORE
from contaccum_lite.lab.grid import colours
from contaccum_lite.lab.hosts import tooltip
from contaccum_lite.lab.stills import bundle
from contaccum_lite.lab.view import paragraph
from contaccum_lite.utils.text import plain

#: share of the scale of colours above which text on them is black
_LIGHT = 0.5


class HeatMap:
    """A button for each K (rows) and N_memory (columns): press one to load its run into the lab.

    It plays, and the cell fills. Runs of the lab that end are entered; `line` is all results, as
    text to paste elsewhere, and `merge(text)` takes in the lines of others. `fill()` trains all
    empty cells at once, where no one presses buttons. All cells start as the lab does when the map
    is made: pretrained or random. Notebook 05.

    A line has MRR@10 in per cent. A line of an earlier version looks the same but has Top@20, of
    runs from random weights: do not merge it here.

    steps: values of K. sizes: values of N_memory. pairs_seen: the budget of each cell, the same for
    all: K · N_local · updates.
    """

    def __init__(self, lab, steps=(1, 4, 16), sizes=(0, 32, 128, 512), pairs_seen: int = 12_800):
        self.lab, self.pairs_seen = lab, pairs_seen
        self.steps, self.sizes = tuple(steps), tuple(sizes)
        self.start = lab.start
        #: seed -> MRR@10 in per cent before the first update, of runs in this lab
        self.before: dict[int, float] = {}
        #: (K, N_memory) -> seed -> MRR@10 in per cent
        self.found: dict[tuple[int, int], dict[int, float]] = {}
        self.buttons = {(k, n): self._button(k, n) for k in self.steps for n in self.sizes}
        self.grid = self._layout()
        self.words = ipywidgets.HTML()
        self.text = ipywidgets.Textarea(
            description="results",
            layout={"width": "640px", "height": "4.5em"},
            continuous_update=False,
            **tooltip(
                "copy this line to others; paste theirs below it and leave the field to merge"
            ),
        )
        self.text.observe(lambda change: lab.soon(self._merge_field, change.new), "value")
        self.widget = ipywidgets.VBox([self.grid, self.words, self.text])
        lab.observe(self._on_tick, "ticks")
        self.draw()

    def _button(self, k: int, n: int):
        button = ipywidgets.Button(
            layout={"width": "7.5em", "height": "2.4em"},
            tooltip=f"load K {k}, N_memory {n} into the lab and play",
        )
        button.on_click(lambda _: self.lab.soon(self._press, k, n))
        return button

    def _layout(self):
        cells = [ipywidgets.HTML("<b>MRR@10, %</b>")]
        for n in self.sizes:
            note = " (GradAccum)" if n == 0 else ""
            cells.append(ipywidgets.HTML(f"<b>N_memory<br>{n}</b>{note}"))
        for k in self.steps:
            cells.append(ipywidgets.HTML(f"<b>K {k}</b>"))
            cells += [self.buttons[k, n] for n in self.sizes]
        columns = f"7em repeat({len(self.sizes)}, 8em)"
        layout = {"grid_template_columns": columns, "grid_gap": "2px"}
        return ipywidgets.GridBox(cells, layout=layout)

    # --- runs ---------------------------------------------------------------------------------

    def settings(self, k: int, n: int, seed: int | None = None) -> Settings:
        """The settings of a cell: the lab's, with this K and N_memory, and its budget's updates.

        N_memory 0 is GradAccum.
        """
        current = self.lab.settings
        local_batch = 8 if self.lab.method == "dpr" else current.local_batch
        updates = max(1, self.pairs_seen // (local_batch * k))
        common = dict(
            local_batch=local_batch,
            accumulation_steps=k,
            updates=updates,
            warmup=updates // 20,
            seed=current.seed if seed is None else seed,
            start=self.start,
            learning_rate=current.learning_rate,
            one_forward=True,
        )
        if n == 0:
            return Settings.preset("grad_accum", **common)
        return Settings.preset("contaccum", memory_size=n, **common)

    def load(self, k: int, n: int, play: bool = False) -> None:
        """Start a cell's run in the lab."""
        self.lab.reset(self.settings(k, n))
        if play and not self.lab.playing:
            self.lab.play()

    def _press(self, k: int, n: int) -> None:
        try:
            self.load(k, n, play=True)
        except Exception as error:  # for who pressed it: the kernel's log has no reader
            self._say_error(error)

    def fill(self, seeds=None) -> None:
        """Train every cell that is empty, one after the other, before returning.

        MRR@10 is computed only before and at the end of each. seeds: the lab's, if not said.
        """
        every, self.lab.every = self.lab.every, 10**9
        try:
            for seed in seeds or [self.lab.seed]:
                for cell in self.buttons:
                    if seed not in self.found.get(cell, {}):
                        self.lab.reset(self.settings(*cell, seed))
                        self.lab.run()
        finally:
            self.lab.every = every

    def _on_tick(self, change) -> None:
        """Enter the lab's run when it has ended and belongs to a cell."""
        track, settings = self.lab.track, self.lab.training.settings
        has_ended = track.scores and track.scores[-1][0] >= settings.updates
        if not has_ended or track.changes or settings.method not in ("contaccum", "grad_accum"):
            return
        memory_size = settings.memory_size if settings.method == "contaccum" else 0
        cell = settings.accumulation_steps, memory_size
        if cell not in self.buttons:
            return
        expected = self.settings(*cell, settings.seed)
        if settings != expected.replace(learning_rate=settings.learning_rate):
            return
        if track.before is not None:
            self.before[settings.seed] = 100 * track.before["mrr@10"]
        if self._enter(cell, settings.seed, round(100 * track.mrr[-1][1], 2)):
            self.draw()

    def _enter(self, cell: tuple[int, int], seed: int, value: float) -> bool:
        """Enter a result; whether it is new."""
        results = self.found.setdefault(cell, {})
        is_new = results.get(seed) != value
        results[seed] = value
        return is_new

    # --- as text ------------------------------------------------------------------------------

    @property
    def line(self) -> str:
        """All results: `K,N_memory,seed=MRR@10` in per cent, separated by semicolons."""
        entries = []
        for (k, n), by_seed in sorted(self.found.items()):
            entries += [f"{k},{n},{seed}={value:g}" for seed, value in sorted(by_seed.items())]
        return ";".join(entries)

    def merge(self, text: str) -> int:
        """Take in lines that others have copied, and return how many entries were new.

        A line of an earlier version has Top@20 and is not converted: leave it out. Raises
        `ValueError` for what it cannot read, and takes in nothing then.
        """
        entries = [self._parse_entry(entry) for entry in re.split(r"[;\s]+", text) if entry]
        new = sum([self._enter(*entry) for entry in entries])
        self.draw()
        return new

    def _parse_entry(self, text: str) -> tuple[tuple[int, int], int, float]:
        match = re.fullmatch(r"(\d{1,4}),(\d{1,7}),(\d{1,10})=(\d{1,3}(?:\.\d{1,4})?)", text)
        if not match or float(match[4]) > 100:
            raise ValueError(
                f"{text[:60]!r} is no entry: expected K,N_memory,seed=MRR@10 as in 16,512,0=32.4."
            )
        cell = int(match[1]), int(match[2])
        if cell not in self.buttons:
            raise ValueError(
                f"{text[:60]!r} is of K {cell[0]}, N_memory {cell[1]}, which is no cell: "
                f"K is one of {self.steps}, N_memory one of {self.sizes}."
            )
        return cell, int(match[3]), float(match[4])

    def _merge_field(self, text: str) -> None:
        if text.strip() == self.line:
            return
        try:
            message = f"{self.merge(text)} new entries. {self.sentence}"
            self.words.value = f"<p role='status'>{html.escape(message)}</p>"
        except ValueError as error:
            self._say_error(error)

    def _say_error(self, error: Exception) -> None:
        self.words.value = f"<p role='alert'>{html.escape(plain(str(error)))}</p>"

    # --- as a picture -------------------------------------------------------------------------

    def data(self) -> np.ndarray:
        """Mean MRR@10 in per cent, (K, N_memory); nan where nothing has run."""
        data = np.full((len(self.steps), len(self.sizes)), np.nan)
        for (k, n), by_seed in self.found.items():
            data[self.steps.index(k), self.sizes.index(n)] = mean(by_seed.values())
        return data

    @property
    def sentence(self) -> str:
        """What the map shows, from its numbers."""
        if not self.found:
            return f"No cell has run yet; each sees {self.pairs_seen:,} pairs."
        data = self.data()
        k, n = np.unravel_index(np.nanargmax(data), data.shape)
        runs = sum(map(len, self.found.values()))
        sentence = (
            f"{int((~np.isnan(data)).sum())} of {data.size} cells have run, {runs} runs of "
            f"{self.pairs_seen:,} pairs each. Best: K {self.steps[k]}, "
            f"N_memory {self.sizes[n]}, MRR@10 {data[k, n]:.1f}%."
        )
        if self.before:
            before = f"{BEFORE[self.start]}: {mean(self.before.values()):.1f}%"
            sentence += f" {before[0].upper()}{before[1:]}."
        first = data[:, 0]
        base = [f"K {k} {v:.1f}%" for k, v in zip(self.steps, first) if not np.isnan(v)]
        if base and self.sizes[0] == 0:
            sentence += f" Without a bank: {', '.join(base)}."
        return sentence

    def draw(self) -> None:
        """Bring the buttons up to date: number, and colour from the smallest to the largest."""
        data = self.data()
        known = data[~np.isnan(data)]
        low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
        for (cell, button), value in zip(self.buttons.items(), data.ravel()):
            style = button.style
            if np.isnan(value):
                button.description, style.button_color, style.text_color = "run", None, None
                continue
            seeds = len(self.found[cell])
            button.description = f"{value:.1f}" + (f" ({seeds})" if seeds > 1 else "")
            share = (value - low) / max(high - low, 1e-9)
            if not style.has_trait(
                "text_color"
            ):  # ipywidgets 7: text is black, so colours are light
                share = _LIGHT + (1 - _LIGHT) * share
            style.button_color, style.text_color = _button_colors(share)
        self.words.value = paragraph(self.sentence)
        if self.line:
            self.text.value = self.line

    def png(self) -> bytes:
        figure, data = stills.new(5.6, 2.8), self.data()
        axis = figure.subplots()
        axis.imshow(data, cmap="cividis", aspect="auto")
        axis.set_xticks(range(len(self.sizes)), self.sizes)
        axis.set_yticks(range(len(self.steps)), self.steps)
        axis.set(xlabel="N_memory (0 is GradAccum)", ylabel="K", title="MRR@10, %")
        middle = (np.nanmin(data) + np.nanmax(data)) / 2 if self.found else 0.5
        for (row, column), value in np.ndenumerate(data):
            if not np.isnan(value):
                color = "black" if value > middle else "white"
                style = dict(ha="center", va="center", fontsize=9, color=color)
                axis.text(column, row, f"{value:.1f}", **style)
        return stills.png(figure, self.sentence)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return bundle(self.widget, self.png(), self.sentence)


def _button_colors(share: float) -> tuple[str, str]:
    """A button's colour for a share from 0 to 1, and the text colour that contrasts with it."""
    red, green, blue = (int(value) for value in colours("magnitude")[int(20 + 235 * share), :3])
    luminance = np.dot((0.2126, 0.7152, 0.0722), (np.array([red, green, blue]) / 255) ** 2.2)
    # At a luminance of 0.179 black and white contrast alike.
    return f"#{red:02x}{green:02x}{blue:02x}", "#000000" if luminance > 0.179 else "#ffffff"

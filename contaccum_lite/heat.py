"""Figure 3 as a map that fills: Top@20 for each K and N_memory, from the runs of a lab and from pasted lines."""

from __future__ import annotations

import asyncio
import contextlib
import html
import os
import re
import signal
import sys
from pathlib import Path
from statistics import mean

import numpy as np

from . import stills
from .grid import colours
from .stills import bundle
from .search import plain
from .views import plain_text

LINES = 12  # that a button shows of what it runs


class HeatMap:
    """A button for each K (rows) and N_memory (columns); press one to load its run into the lab, play, and see the cell fill.

    pairs_seen: the budget of each cell, so that all see the same: K · N_local · updates. Runs of the lab that end are entered;
    `line` is what was found, as text to paste elsewhere, and `merge(text)` takes the lines of others in. `fill()` trains all empty
    cells at once, where no one presses buttons. Notebook 05.
    """

    def __init__(self, lab, steps=(1, 4, 16), sizes=(0, 32, 128, 512), pairs_seen: int = 12_800):
        import ipywidgets as w

        self.lab, self.steps, self.sizes, self.pairs_seen = (
            lab,
            tuple(steps),
            tuple(sizes),
            pairs_seen,
        )
        self.found: dict[
            tuple[int, int], dict[int, float]
        ] = {}  # (K, N_memory) -> seed -> Top@20 in per cent
        self.buttons = {
            (k, n): w.Button(
                layout=dict(width="7.5em", height="2.4em"),
                tooltip=f"load K {k}, N_memory {n} into the lab and play",
            )
            for k in self.steps
            for n in self.sizes
        }
        for (k, n), button in self.buttons.items():
            button.on_click(lambda _, k=k, n=n: lab.soon(self._press, k, n))
        head = [
            w.HTML("<b>Top@20, %</b>"),
            *(
                w.HTML(f"<b>N_memory<br>{n}</b>" + (" (GradAccum)" if n == 0 else ""))
                for n in self.sizes
            ),
        ]
        rows = [
            cell
            for k in self.steps
            for cell in (w.HTML(f"<b>K {k}</b>"), *(self.buttons[k, n] for n in self.sizes))
        ]
        self.grid = w.GridBox(
            [*head, *rows],
            layout=dict(
                grid_template_columns=f"7em repeat({len(self.sizes)}, 8em)", grid_gap="2px"
            ),
        )
        self.words = w.HTML()
        self.text = w.Textarea(
            description="results",
            layout=dict(width="640px", height="4.5em"),
            continuous_update=False,
            tooltip="copy this line to others; paste theirs below it and leave the field to merge",
        )
        self.text.observe(lambda change: lab.soon(self._merge_field, change.new), "value")
        self.widget = w.VBox([self.grid, self.words, self.text])
        lab.observe(self._look, "ticks")
        self.draw()

    # --- runs ----------------------------------------------------------------------------------------------------------

    def settings(self, k: int, n: int, seed: int | None = None):
        """The settings of a cell: the lab's, with this K and N_memory, and as many updates as the budget has; N_memory 0 is GradAccum."""
        from .settings import Settings

        now = self.lab.settings
        local = 8 if self.lab.method == "dpr" else now.local_batch
        updates = max(1, self.pairs_seen // (local * k))
        common = dict(
            local_batch=local,
            accumulation_steps=k,
            updates=updates,
            warmup=updates // 20,
            seed=now.seed if seed is None else seed,
            learning_rate=now.learning_rate,
            one_forward=True,
        )
        return (
            Settings.preset("contaccum", memory_size=n, **common)
            if n
            else Settings.preset("grad_accum", **common)
        )

    def load(self, k: int, n: int, play: bool = False) -> None:
        """Start a cell's run in the lab."""
        self.lab.reset(self.settings(k, n))
        if play and not self.lab.playing:
            self.lab.play()

    def _press(self, k: int, n: int) -> None:
        try:
            self.load(k, n, play=True)
        except Exception as error:  # shown to who pressed it; the kernel's log has no reader
            self._refuse(error)

    def fill(self, seeds=None) -> None:
        """Train every cell that is empty, one after the other, before it returns; Top@20 is looked at only at the end of each."""
        every, self.lab.every = self.lab.every, 10**9
        try:
            for seed in seeds or [self.lab.seed]:
                for cell in self.buttons:
                    if seed not in self.found.get(cell, {}):
                        self.lab.reset(self.settings(*cell, seed))
                        self.lab.run()
        finally:
            self.lab.every = every

    def _look(self, change) -> None:
        """Enter the lab's run when it has ended and belongs to a cell."""
        run, track = self.lab.training, self.lab.track
        s = run.settings
        if (
            run.step_count < s.updates
            or not track.top20
            or track.top20[-1][0] < s.updates
            or track.changes
        ):
            return
        cell = s.accumulation_steps, s.memory_size if s.method == "contaccum" else 0
        if (
            s.method in ("contaccum", "grad_accum")
            and cell in self.buttons
            and s == self.settings(*cell, s.seed).replace(learning_rate=s.learning_rate)
        ):
            value = round(100 * track.top20[-1][1], 2)
            if self.found.get(cell, {}).get(s.seed) != value:
                self.found.setdefault(cell, {})[s.seed] = value
                self.draw()

    # --- as text -------------------------------------------------------------------------------------------------------

    @property
    def line(self) -> str:
        """All that was found: `K,N_memory,seed=Top@20` in per cent, parted by semicolons."""
        return ";".join(
            f"{k},{n},{seed}={value:g}"
            for (k, n), by_seed in sorted(self.found.items())
            for seed, value in sorted(by_seed.items())
        )

    def merge(self, text: str) -> int:
        """Take in lines that others have copied; how many entries were new. Raises `ValueError` for what it cannot read, and takes in nothing."""
        entries = []
        for part in filter(None, re.split(r"[;\s]+", text)):
            match = re.fullmatch(r"(\d{1,4}),(\d{1,7}),(\d{1,10})=(\d{1,3}(?:\.\d{1,4})?)", part)
            if not match or float(match[4]) > 100:
                raise ValueError(
                    f"{part[:60]!r} is no entry: expected K,N_memory,seed=Top@20 as in 16,128,0=52.4."
                )
            cell = int(match[1]), int(match[2])
            if cell not in self.buttons:
                raise ValueError(
                    f"{part[:60]!r} is of K {cell[0]}, N_memory {cell[1]}, which is no cell: K is one of {self.steps}, N_memory one of {self.sizes}."
                )
            entries.append((cell, int(match[3]), float(match[4])))
        new = 0
        for cell, seed, value in entries:
            new += self.found.get(cell, {}).get(seed) != value
            self.found.setdefault(cell, {})[seed] = value
        self.draw()
        return new

    def _merge_field(self, text: str) -> None:
        if text.strip() == self.line:
            return
        try:
            new = self.merge(text)
            self.words.value = (
                f"<p role='status'>{new} new entries. {html.escape(self.sentence)}</p>"
            )
        except ValueError as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        self.words.value = f"<p role='alert'>{html.escape(plain(str(error)))}</p>"

    # --- as a picture --------------------------------------------------------------------------------------------------

    def data(self) -> np.ndarray:
        """Mean Top@20 in per cent, (K, N_memory); nan where nothing has run."""
        return np.array(
            [
                [
                    mean(self.found[k, n].values()) if self.found.get((k, n)) else np.nan
                    for n in self.sizes
                ]
                for k in self.steps
            ]
        )

    @property
    def sentence(self) -> str:
        """What the map shows, from its numbers."""
        if not self.found:
            return f"No cell has run yet; each sees {self.pairs_seen:,} pairs."
        data = self.data()
        k, n = np.unravel_index(np.nanargmax(data), data.shape)
        base = [
            f"K {self.steps[row]} {data[row, 0]:.1f}%"
            for row in range(len(self.steps))
            if self.sizes[0] == 0 and not np.isnan(data[row, 0])
        ]
        return (
            f"{int((~np.isnan(data)).sum())} of {data.size} cells have run, {sum(map(len, self.found.values()))} runs of {self.pairs_seen:,} pairs each. Best: K {self.steps[k]}, "
            f"N_memory {self.sizes[n]}, {data[k, n]:.1f}%."
            + (f" Without a bank: {', '.join(base)}." if base else "")
        )

    def draw(self) -> None:
        """Bring the buttons up to date: the number, and a colour between the smallest and the largest of all."""
        data, table = self.data(), colours("magnitude")
        known = data[~np.isnan(data)]
        low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
        for (k, n), button in self.buttons.items():
            value = data[self.steps.index(k), self.sizes.index(n)]
            if np.isnan(value):
                button.description, button.style.button_color, button.style.text_color = (
                    "run",
                    None,
                    None,
                )
                continue
            place = int(20 + 235 * (value - low) / max(high - low, 1e-9))
            red, green, blue = (int(c) for c in table[place, :3])
            button.description = f"{value:.1f}" + (
                f" ({len(self.found[k, n])})" if len(self.found[k, n]) > 1 else ""
            )
            button.style.button_color = f"#{red:02x}{green:02x}{blue:02x}"
            light = sum(
                part * (c / 255) ** 2.2
                for part, c in zip((0.2126, 0.7152, 0.0722), (red, green, blue))
            )
            button.style.text_color = (
                "#000000" if light > 0.179 else "#ffffff"
            )  # where both stand out alike
        self.words.value = f"<p role='status'>{html.escape(self.sentence)}</p>"
        if self.line:
            self.text.value = self.line

    def png(self) -> bytes:
        figure, data = stills.new(5.6, 2.8), self.data()
        axis = figure.subplots()
        axis.imshow(data, cmap="cividis", aspect="auto")
        axis.set(
            xticks=range(len(self.sizes)),
            yticks=range(len(self.steps)),
            xlabel="N_memory (0 is GradAccum)",
            ylabel="K",
            title="Top@20, %",
        )
        axis.set_xticklabels(self.sizes)
        axis.set_yticklabels(self.steps)
        low, high = (np.nanmin(data), np.nanmax(data)) if self.found else (0, 1)
        for row, column in np.ndindex(data.shape):
            value = data[row, column]
            axis.text(
                column,
                row,
                "" if np.isnan(value) else f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=9,
                color="black" if np.isnan(value) or value > (low + high) / 2 else "white",
            )
        return stills.png(figure, self.sentence)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return bundle(self.widget, self.png(), self.sentence)


class Again:
    """A button that runs a module of this repository anew beside the notebook, shows its last lines, and can be stopped.

    Nothing runs until it is pressed. module: as after `python -m`, with its options.
    """

    def __init__(self, module: str, says: str):
        import ipywidgets as w

        self.module, self.says, self.task, self.process, self.halted = (
            module,
            says,
            None,
            None,
            False,
        )
        self.button = w.Button(
            description=says,
            icon="refresh",
            layout=dict(width="auto", align_self="flex-start"),
            tooltip=f"python -m {module}",
        )
        self.words = w.HTML()
        self.widget = w.VBox([self.button, self.words])
        self.button.on_click(lambda _: self.stop() if self.task else self.start())

    def start(self) -> None:
        """Run it in the background. Raises `RuntimeError` where no event loop runs."""
        loop = asyncio.get_running_loop()
        self.button.description, self.button.icon = "Stop", "stop"
        self.task = loop.create_task(self._run())

    def stop(self) -> None:
        """End it and all that it started, now; what it has recorded stays."""
        if self.process is not None and self.process.returncode is None:
            self.halted = True
            with contextlib.suppress(ProcessLookupError):
                if hasattr(os, "killpg"):
                    os.killpg(self.process.pid, signal.SIGTERM)
                else:
                    self.process.terminate()

    def say(self, *lines: str) -> None:
        """Show lines of what it prints, as text: without a terminal's colours and commands."""
        self.words.value = f"<pre role='status' style='line-height:1.35;white-space:pre-wrap'>{chr(10).join(plain_text(line[-140:]) for line in lines)}</pre>"

    async def _run(self) -> None:
        try:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *self.module.split(),
                cwd=Path(__file__).parent.parent,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
            lines, shown, last, self.halted = [], [], "", False
            while part := await self.process.stdout.read(4096):
                *whole, last = (last + part.decode(errors="replace")).split("\n")
                lines = [*lines, *(line.rstrip("\r").split("\r")[-1] for line in whole)][-LINES:]
                if not self.halted:  # what it prints while it falls is of no use
                    shown = [
                        line for line in (*lines, last.rstrip("\r").split("\r")[-1]) if line.strip()
                    ]
                    self.say(*shown)
            code = await self.process.wait()
            self.say(
                *shown, "stopped" if self.halted else "done" if code == 0 else f"ended with {code}"
            )
        finally:
            self.stop()
            self.task, self.process = None, None
            self.button.description, self.button.icon = self.says, "refresh"

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = self.widget._repr_mimebundle_()
        return {
            **(data[0] if isinstance(data, tuple) else data),
            "text/plain": f"{self.says}: python -m {self.module}",
        }

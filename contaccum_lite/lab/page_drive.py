"""Training that the page drives with its answers, where nothing from the background arrives."""

from __future__ import annotations

import time

SLICE_S = 0.12  # of training for each answer: a button is heard between two of them


class PageDrive:
    """Trains a slice for each answer of the page, in place of a task in the background.

    Each frame is sent while a message of the page is handled, which every host delivers. The page
    answers a frame when it has drawn it, and that answer asks for the next slice.

    view: the `LabWidget` of the lab. Its matrix counts frames in `beat`, and the page its answers
    in `beaten`.
    """

    def __init__(self, view):
        self.view, self.lab, self.grid = view, view.lab, view.matrix.grid
        self._next_micro_batch = 0.0  # on the clock; with a pace
        self.grid.window = 1  # the page answers each frame
        self.grid.observe(self._on_answer, "beaten")
        self.lab.drive = self.train_slice

    def close(self) -> None:
        """Drive no longer."""
        self.grid.unobserve(self._on_answer, "beaten")
        self.lab.drive = None

    def _on_answer(self, change) -> None:
        self.lab.soon(self.train_slice)

    def train_slice(self) -> None:
        """Train a slice if the lab plays, and let at least one frame be on its way to the page."""
        if not self.lab.playing:
            return
        if self.lab.pace:
            self._train_paced()
        else:
            self.lab.train_for(SLICE_S)
        if self.lab.playing:
            self.view.draw_unless_behind()

    def _train_paced(self) -> None:
        """Wait for the next micro-batch's time, no longer than a slice, and do it if it is due."""
        wait = self._next_micro_batch - time.perf_counter()
        if wait > 0:
            time.sleep(min(wait, SLICE_S))
        if wait <= SLICE_S:
            self._next_micro_batch = time.perf_counter() + 1 / self.lab.pace
            self.lab.train_for(0)

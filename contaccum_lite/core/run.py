"""Run: a trainer, a retriever and a checkpoint behind one name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from contaccum_lite.core import checkpoint
from contaccum_lite.core.cursor import Cursor
from contaccum_lite.core.metrics import Hits
from contaccum_lite.core.micro_step import Update
from contaccum_lite.core.retriever import PairsCorpus, Retriever
from contaccum_lite.core.trainer import Trainer
from contaccum_lite.data.types import Pairs
from contaccum_lite.utils.signals import defer_sigint
from contaccum_lite.utils.text import one_line


class Run(Trainer):
    """One training run. `for update in run` trains it to its end; `run.step()` makes one update.

    Args:
        pairs: from `load_pairs`.
        settings: a `Settings`, or left out with its fields as keywords.
        towers: a (query tower, passage tower) of your own, in place of those the settings make.
        accelerator: from `scale.processes.accelerator_here()`, where several processes make this
            run together; every one of them calls the same methods in the same order.

    All randomness comes from `settings.seed`, so the same settings on the same pairs give the same
    run. An update that is interrupted is undone: the next step makes it again.
    """

    def __init__(self, pairs: Pairs, settings=None, *, towers=None, accelerator=None, **fields):
        super().__init__(pairs, settings, towers=towers, accelerator=accelerator, **fields)
        self.corpus = PairsCorpus(self)

    def __repr__(self):
        made = f"{self.step_count} of {self.settings.updates} updates made"
        return f"Run({self.settings.share()!r} on {one_line(self.pairs.name)}, {made})"

    # --- what it knows ----------------------------------------------------------------------------

    @property
    def retriever(self) -> Retriever:
        """The towers as they are now, to encode texts and to search with."""
        return Retriever(self.query_tower, self.passage_tower, self.settings, self.pairs.name)

    @property
    def encodes(self) -> dict[str, int]:
        """How many passages have been encoded so far, by purpose.

        "train", "refresh" of a cache, "probe" for a corrector, "momentum".
        """
        return dict(self.learner.encodes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the data, or is computed otherwise than asked for, in sentences."""
        notes = [*self.pairs.notes, self.sampler.note]
        notes += [extension.note for extension in self.learner.extensions]
        if self.settings.one_forward and self.learner.has_dropout:
            notes.append("Each micro-batch is encoded by itself: dropout draws its noise for each.")
        return tuple(note for note in notes if note)

    @property
    def similarity(self) -> str:
        """ "incremental" or "full": how the similarity matrix is computed; `notes` may say why."""
        keeps = any(extension.keeps_scores for extension in self.learner.extensions)
        return "incremental" if keeps else "full"

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """Metrics in [0, 1] of the queries' ranking of all passages: top@1, 5, 20, 100, mrr@10, ….

        Where the pairs carry answer strings, answer_top@k too. Banks and noise are not touched.
        split: "test" or "dev".
        """
        return self.retriever.evaluate(self.pairs, split, self.corpus)

    def search(self, query: str, k: int = 5) -> Hits:
        """The k passages nearest to the query now: hits with score, id, title, passage."""
        return self.retriever.search(query, k, self.corpus)

    def encode_passages(self) -> Iterator[int]:
        """Encode every passage for the next search or evaluation, a batch at a time.

        Yields how many are done: a player takes a breath between two batches.
        """
        return self.corpus.encode()

    def set_history(self, history: list) -> None:
        """The updates of a saved run."""
        self.history = [Update(*update) for update in history]
        self.step_count = len(history)

    # --- changing it on the way -------------------------------------------------------------------

    def change(
        self,
        learning_rate: float | None = None,
        memory_size: int | None = None,
        accumulation_steps: int | None = None,
        local_batch: int | None = None,
        query_bank: bool | None = None,
    ) -> None:
        """From the next update on, train with other values of these settings.

        An update under way is undone. Updates take their pairs from the place in the epoch where
        the last one ended, N_local × K at a time; the learning rate's schedule stays in updates.
        The banks keep their newest vectors. Without its query bank, the loss is that of pre-batch
        negatives; switched on again, both banks begin empty and fill in step, because a past query
        needs its past passage in the same slot.

        Raises `ValueError` for a value out of range or that the method does not allow, and
        `MemoryError` where memory runs out; nothing is changed then.
        """
        changes = {
            "learning_rate": learning_rate,
            "memory_size": memory_size,
            "accumulation_steps": accumulation_steps,
            "local_batch": local_batch,
            "query_bank": query_bank,
        }
        changes = {name: value for name, value in changes.items() if value is not None}
        settings = self.settings.replace(**changes)
        self.cancel_update()
        try:
            banks = self.learner.banks.resized(settings)
        except (MemoryError, RuntimeError) as error:  # PyTorch says it as a RuntimeError
            raise MemoryError(
                f"memory_size is {settings.memory_size}, and there is no memory for banks of this "
                f"size ({error}): choose a smaller one."
            ) from None
        epoch, position = self.sampler.locate(self.step_count)
        with defer_sigint():
            self.learner.banks.adopt(banks)
            self.settings = self.learner.settings = self.sampler.settings = settings
            self.set_place(epoch, position)

    def set_place(self, epoch: int, position: int) -> None:
        """Let the next update begin after this many pairs of this epoch's shuffle."""
        sampler = self.sampler
        sampler.cursor = Cursor.at(self.step_count, epoch, position, sampler.batch_size)

    # --- save and resume --------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write all that the run needs to resume into the folder: safetensors and JSON.

        A crash at any moment leaves the folder with the state saved before or with this one, never
        a mixture. An update under way is undone first. Of several processes, the first one writes.
        An earlier run in the folder is replaced; files that no run wrote stay. Raises `ValueError`
        where run.json is another kind of file, or another process is writing here.
        """
        self.cancel_update()
        if self.learner.group.rank == 0:
            checkpoint.save(self, folder)

    @classmethod
    def load(cls, folder: str | Path, pairs: Pairs, accelerator=None) -> Run:
        """The run as it was saved; it continues bit for bit as if it had not stopped.

        pairs: those it was trained on.
        """

        def make_run(settings, towers):
            return cls(pairs, settings, towers=towers, accelerator=accelerator)

        return checkpoint.load(folder, pairs, make_run)

"""Run: towers, banks, optimiser and data order under one seed, one weight update at a time."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from . import measure, search
from .cache import BankCorrection, Cache
from .data import Pairs, Passage, write_atomically
from .folders import (
    DAMAGED,
    LOCK,
    alone_in,
    check_digests,
    check_record,
    digests_of,
    is_temporary,
    short,
)
from .methods import Alone, Learner, MicroBatch, MicroStep, gradient
from .precision import prepare
from .settings import Settings
from .towers import Tokens, array_of, load_tower, make_towers, vectors_of

_FORMAT = 1
_STATE = re.compile(r"update-\d{6,}-[0-9a-f]{8}")  # the folder of a saved state
_TRIES = 100  # a reader's, while a training process replaces what it reads
_NEEDED = dict(state=str, settings=dict, step=int, pairs=str, fingerprint=str, history=list)
_OPTIONAL = dict(loss_scale=list, encodes=dict, digests=dict)  # not in every older run
_SMALL_CORPUS = 100_000  # passages up to which all token ids are kept


class TakenBack(RuntimeError):
    """An update that was under way is undone, because something else moved the run."""


class Update(NamedTuple):
    """What one weight update did. Gradient norms are of the whole update, before clipping."""

    step: int  # from 1
    loss: float  # mean over its micro-batches
    grad_norm_query: float
    grad_norm_passage: float
    grad_norm_ratio: float  # passage / query
    negatives: (
        int  # columns other than its own positive that a local query had in the last micro-batch
    )
    seconds: float


class Feed:
    """Which pairs make update u: a new shuffle each epoch from the seed alone, the same for every method.

    The last update of an epoch takes what is left, so that every pair is seen once an epoch. Of a large corpus, only the
    passages that training can meet are tokenized.
    """

    def __init__(self, pairs: Pairs, settings: Settings, tower, world: int = 1):
        self.settings = settings
        self.local, self.total = (
            settings.local_batch * world,
            settings.total_batch * world,
        )  # of all processes together
        rows, self.note = (
            pairs.with_hard_negatives()
            if settings.hard_negatives
            else (range(len(pairs.train)), "")
        )
        self.rows = np.array(rows, dtype=np.int64)
        if not len(self.rows):
            raise ValueError(
                f"{pairs.name} has no pair to train on"
                + (
                    " that has a hard negative: set hard_negatives=0."
                    if settings.hard_negatives
                    else ": give a source with training pairs."
                )
            )
        self.positive = np.array([pairs.row_of[pair.passage_id] for pair in pairs.train])
        self.hard = (
            [[pairs.row_of[p.id] for p in pair.hard_negatives] for pair in pairs.train]
            if settings.hard_negatives
            else []
        )
        self.queries = tokens_of(pairs, tower, settings, "train")
        if len(pairs.passages) <= _SMALL_CORPUS:
            self.met = np.arange(len(pairs.passages))
            self.passages = tokens_of(pairs, tower, settings, "passages")
        else:
            self.met = np.unique(
                np.concatenate([self.positive, *map(np.array, filter(None, self.hard))])
            )
            self.passages = _tokenize_passages(
                tower, [pairs.passages[row] for row in self.met], settings
            )
        self.sizes = np.array(
            [
                min(self.local, len(chosen) - start)
                for first in range(0, len(self.rows), self.total)
                for chosen in [self.rows[first : first + self.total]]
                for start in range(0, len(chosen), self.local)
            ]
        )
        self._epoch = (-1, None, None)

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(len(self.rows) / self.total)

    def keys(self, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Numbers that are equal for equal texts: of each training pair's query and passage, and of each passage."""
        queries, texts = {}, {}
        text_keys = torch.full((len(pairs.passages),), -1)
        text_keys[self.met] = torch.tensor(
            [texts.setdefault(pairs.passages[row].text, len(texts)) for row in self.met]
        )
        query_keys = torch.tensor(
            [queries.setdefault(pair.query, len(queries)) for pair in pairs.train]
        )
        return query_keys, text_keys[torch.from_numpy(self.positive)], text_keys

    def batches(self, update: int) -> list[MicroBatch]:
        """The micro-batches of this update, up to K of up to N_local pairs (times the number of processes)."""
        epoch, place = divmod(update, self.updates_per_epoch)
        if self._epoch[0] != epoch:
            draw = np.random.default_rng([self.settings.seed, epoch])
            self._epoch = (
                epoch,
                draw.permutation(self.rows),
                draw.random((len(self.positive), self.settings.hard_negatives)),
            )
        chosen = self._epoch[1][place * self.total : (place + 1) * self.total]
        return [
            self.micro_batch(chosen[start : start + self.local])
            for start in range(0, len(chosen), self.local)
        ]

    def micro_batch(self, rows: np.ndarray) -> MicroBatch:
        """These training pairs as a micro-batch, with the hard negatives that this epoch drew for them."""
        if self._epoch[0] < 0:
            self.batches(0)
        hard = np.array(
            [self.hard[r][int(u * len(self.hard[r]))] for r in rows for u in self._epoch[2][r]]
            if self.hard
            else [],
            dtype=np.int64,
        )
        passages = np.searchsorted(self.met, np.concatenate([self.positive[rows], hard]))
        return MicroBatch(
            torch.from_numpy(rows),
            torch.from_numpy(hard),
            self.queries[rows],
            self.passages[passages],
        )


class Run:
    """One training run. `for update in run` trains it to its end; `run.step()` makes one weight update.

    pairs: from `load_pairs`. settings: a `Settings`, or left out with its fields as keywords. towers: a (query tower,
    passage tower) of your own, in place of those the settings make. All randomness comes from `settings.seed`, so the same
    settings on the same pairs give the same run. An update that is interrupted is taken back: the next step makes it anew.
    accelerator: from `parallel.accelerator_here()`, where several processes make this run together; every one of them calls
    the same methods in the same order.
    """

    def __init__(
        self,
        pairs: Pairs,
        settings: Settings | None = None,
        *,
        towers=None,
        accelerator=None,
        **fields,
    ):
        if settings is not None and fields:
            settings = settings.replace(**fields)
        self.pairs = pairs
        self.settings = s = settings or Settings(**fields)
        check_device(s)
        query_tower, passage_tower = towers or make_towers(s, pairs)
        prepare([query_tower] if query_tower is passage_tower else [query_tower, passage_tower], s)
        share = Alone() if accelerator is None else _among(accelerator, s)
        self.feed = Feed(pairs, s, query_tower, share.world)
        self.learner = Learner(
            s, query_tower.train(), passage_tower.train(), *self.feed.keys(pairs), share=share
        )
        share.start([*self.learner.towers, *self.learner.slow_towers])
        self._make_stale()
        for tower in self.learner.towers:
            if hasattr(tower, "in_place"):
                tower.in_place = True
        parameters = [
            p for tower in self.learner.towers for p in tower.parameters() if p.requires_grad
        ]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=s.learning_rate, eps=1e-8, weight_decay=0.0, fused=True
        )
        self.history: list[Update] = []
        self.step_count = 0
        self._marks = None  # what takes back an update that is under way
        self._turn = 0
        self._index = (None, None)

    def _make_stale(self) -> None:
        """The cache and the correctors that the settings ask for."""
        s, learner = self.settings, self.learner
        if s.cache_negatives:
            if len(self.feed.met) < len(self.pairs.passages):
                raise ValueError(
                    f"cache_negatives is {s.cache_negatives}, and {self.pairs.name} has {len(self.pairs.passages)} passages: a cache of all of them is made for up to {_SMALL_CORPUS}."
                )
            learner.passages = self.feed.passages
            learner.cache = Cache(learner, torch.from_numpy(self.feed.positive), self.feed.queries)
        if s.has_bank and s.corrector != "identity":
            learner.correction = BankCorrection(learner, self.feed.micro_batch)

    @property
    def encodes(self) -> dict[str, int]:
        """How many passages have been encoded so far, by purpose: "train", "refresh" of a cache, "probe" for a corrector, "momentum"."""
        return dict(self.learner.encodes)

    def __repr__(self):
        name = search.one_line(self.pairs.name)
        return (
            f"Run({self.settings.share()!r} on {name}, {self.step_count} of "
            f"{self.settings.updates} updates made)"
        )

    @property
    def query_tower(self):
        return self.learner.query_tower

    @property
    def passage_tower(self):
        return self.learner.passage_tower

    @property
    def query_bank(self):
        return self.learner.query_bank

    @property
    def passage_bank(self):
        return self.learner.passage_bank

    @property
    def _stale(self) -> list:
        return [part for part in (self.learner.cache, self.learner.correction) if part is not None]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the data, or is computed otherwise than asked for, in sentences."""
        full = self.learner.full_because
        asked = self.settings.similarity == "incremental" and full
        return (
            *self.pairs.notes,
            *filter(
                None,
                [
                    self.feed.note,
                    f"The whole similarity matrix is computed: {full}." if asked else "",
                    "Each micro-batch is encoded by itself: dropout draws its noise for each."
                    if self.settings.one_forward and self.learner.noisy
                    else "",
                ],
            ),
        )

    @property
    def similarity(self) -> str:
        """ "incremental" or "full": how the similarity matrix is computed (`notes` says why where it is not as asked)."""
        return "full" if self.learner.full_because else "incremental"

    # --- training ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Update]:
        while self.step_count < self.settings.updates:
            yield self.step()

    def step(self) -> Update:
        """Make one weight update. Raises `RuntimeError` when all have been made."""
        for _ in self.micro_steps():
            pass
        return self.history[-1]

    def micro_steps(self) -> Iterator[MicroStep]:
        """Make one weight update, handing out each micro-batch's `MicroStep` on the way; the banks have just taken it in.

        Left halfway (an exception, Ctrl-C, a new step), the update is taken back: weights and banks are as before it.
        """
        self._take_back()
        if self.step_count >= self.settings.updates:
            raise RuntimeError(
                f"all {self.settings.updates} updates of this run have been made: set updates higher in a new run."
            )
        began, update = time.perf_counter(), self.step_count
        batches = self.feed.batches(update)
        self._marks = [
            (bank, bank.mark(sum(map(len, ids))))
            for bank, ids in zip(
                self.learner.banks,
                (
                    [b.pair_ids for b in batches],
                    [b.pair_ids for b in batches],
                    [b.hard_ids for b in batches],
                ),
            )
        ]
        if not self.learner.full_because:
            self.learner.softmax.expect(
                self.feed.sizes,
                update % self.feed.updates_per_epoch * self.settings.accumulation_steps,
            )
            self._marks.append(
                (
                    self.learner.softmax,
                    self.learner.softmax.mark(sum(len(b.pair_ids) for b in batches)),
                )
            )
        self._marks += [(stale, stale.mark()) for stale in self._stale]
        self._turn = turn = self._turn + 1
        losses = []
        try:
            for micro in gradient(self.learner, batches, update):
                losses.append(micro.loss)
                yield micro
                if turn != self._turn:
                    raise TakenBack(
                        "this update was taken back, because another step, a save or a change came in between."
                    )
            made = self._commit(losses, micro, began)
        finally:
            if turn == self._turn:
                self._take_back()
        if not made:
            yield from self.micro_steps()  # half precision overflowed: the same update with half the loss scale

    def _commit(self, losses: list[float], micro: MicroStep, began: float) -> bool:
        """Move the weights by the gradients that are there; False where half precision has made infinities of them."""
        self.learner.loss_scale.undo(self.learner.towers)
        loss = math.fsum(losses) / len(losses)
        self.learner.share.add_up(self.learner.towers)
        query, passage = (
            measure.grad_norm(tower) for tower in (self.query_tower, self.passage_tower)
        )
        norm = query if len(self.learner.towers) == 1 else math.hypot(query, passage)
        if math.isfinite(loss) and not math.isfinite(norm) and self.learner.loss_scale.halve():
            return False
        if not math.isfinite(loss + norm):
            raise FloatingPointError(
                f"update {self.step_count + 1}: the loss is {loss} and the gradient's norm {norm}. The weights "
                "are as before it; lower learning_rate or raise temperature."
            )
        clip = self.settings.clip_norm
        with _uninterrupted():
            if clip:
                parameters = [p for tower in self.learner.towers for p in tower.parameters()]
                torch.nn.utils.clip_grads_with_norm_(
                    parameters, clip, torch.tensor(norm, dtype=torch.float64)
                )
            self.optimizer.param_groups[0]["lr"] = self.learning_rate(self.step_count)
            self.optimizer.step()
            self.learner.after_update(self.step_count)
            self.learner.loss_scale.went_well()
            self.step_count += 1
            negatives = len(micro.column_ids) - 1
            ratio = passage / query if query else math.inf
            self.history.append(
                Update(
                    self.step_count,
                    loss,
                    query,
                    passage,
                    ratio,
                    negatives,
                    time.perf_counter() - began,
                )
            )
            self._marks = None
            self.optimizer.zero_grad(set_to_none=False)
        return True

    def _take_back(self) -> None:
        """Undo what an unfinished update did to the banks and gradients."""
        if self._marks is not None:
            self._turn += 1
            self.optimizer.zero_grad(set_to_none=False)
            for bank, mark in self._marks:
                bank.restore(mark)
            self._marks = None

    def change(self, learning_rate: float | None = None, memory_size: int | None = None) -> None:
        """Go on with another learning rate or another size of the banks, whose newest vectors stay; from the next update on.

        An update under way is taken back. Raises `ValueError` for a value out of range or that the
        method does not allow, and `MemoryError` where there is no memory for the banks; settings
        and banks stay as they are then.
        """
        changes = {"learning_rate": learning_rate, "memory_size": memory_size}
        settings = self.settings.replace(
            **{name: value for name, value in changes.items() if value is not None}
        )
        self._take_back()
        try:
            banks = self.learner.resized(settings)
        except (MemoryError, RuntimeError) as error:  # PyTorch says it as a RuntimeError
            raise MemoryError(
                f"memory_size is {settings.memory_size}, and there is no memory for banks of this "
                f"size ({error}): choose a smaller one."
            ) from None
        with _uninterrupted():
            self.learner.take(settings, banks)
            self.settings = settings

    def learning_rate(self, step: int) -> float:
        """The learning rate of update `step` (from 0): linear warm-up, then linear decay to 0."""
        s = self.settings
        if step < s.warmup:
            return s.learning_rate * (step + 1) / s.warmup
        return s.learning_rate * (s.updates - step) / max(1, s.updates - s.warmup)

    # --- what it knows -------------------------------------------------------------------------------------------------

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """Measures in [0, 1] of the test queries' ranking of all passages: top@1, 5, 20, 100, mrr@10, ndcg@10, recall@100.

        Where the pairs carry answer strings, answer_top@k too. The banks and the noise are not touched. split: "test" or
        "dev".
        """
        pairs = {"test": self.pairs.test, "dev": self.pairs.dev}.get(split)
        if not pairs:
            raise ValueError(f"{self.pairs.name} has no {split!r} pairs to evaluate on.")
        queries = self._encode(
            self.query_tower, tokens_of(self.pairs, self.query_tower, self.settings, split)
        )
        search.finite(queries, lambda row: f"query {short(pairs[row].query)}")
        _, rows = search.rank(queries, self._passage_vectors(), max(search.TOP))
        row_of = self.pairs.row_of
        relevant = [
            {row_of[name]: grade for name, grade in (p.relevant or {p.passage_id: 1}).items()}
            for p in pairs
        ]
        measures = search.ranking_measures(rows, relevant)
        if any(pair.answers for pair in pairs):
            measures |= search.answer_measures(
                rows, [p.answers for p in pairs], [p.text for p in self.pairs.passages]
            )
        return measures

    def search(self, query: str, k: int = 5) -> search.Hits:
        """The k passages that the towers, as they are now, find nearest to the query: hits with score, id, title, passage."""
        search.check_query(query, k)
        vector = self._encode(
            self.query_tower, self.query_tower.tokenize([query], length=self.settings.query_tokens)
        )
        search.finite(vector, lambda row: f"query {short(query)}")
        scores, rows = search.rank(vector, self._passage_vectors(), k)
        found = [self.pairs.passages[row] for row in rows[0]]
        return search.Hits(
            search.Hit(float(score), p.id, p.title, p.text) for score, p in zip(scores[0], found)
        )

    def _passage_vectors(self) -> np.ndarray:
        """Every passage by the passage tower as it is now, (passages, d); kept until the weights move."""
        for _ in self.encode_passages():
            pass
        return self._index[1]

    def encode_passages(self) -> Iterator[int]:
        """Encode every passage for the next search or evaluation, a batch at a time; yields how many are done.

        A player takes a breath between two batches; `evaluate` and `search` do it all at once where it is not done yet.
        """
        if self._index[0] == self.step_count:
            return
        step, passages = self.step_count, self.pairs.passages
        vectors = np.empty((len(passages), self.passage_tower.dim), dtype=np.float32)
        for first in range(
            0, len(passages), _SMALL_CORPUS if len(passages) <= _SMALL_CORPUS else 10_000
        ):
            if len(passages) <= _SMALL_CORPUS:
                tokens = tokens_of(self.pairs, self.passage_tower, self.settings, "passages")
            else:
                tokens = _tokenize_passages(
                    self.passage_tower, passages[first : first + 10_000], self.settings
                )
            for rows, part in vectors_of(self.passage_tower, tokens, self.settings):
                part = part.float().cpu().numpy()
                search.finite(part, lambda n: f"passage {short(passages[first + rows[n]].id)}")
                vectors[first + rows] = part
                yield first + len(rows)
                if step != self.step_count:
                    return
        self._index = (step, vectors)

    def _encode(self, tower, tokens: Tokens) -> np.ndarray:
        """Vectors of all these texts, (texts, d)."""
        return array_of(tower, tokens, self.settings)

    # --- save and resume -----------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write all that the run needs to resume into the folder: safetensors and JSON.

        A crash at any moment leaves the folder with the state saved before or with this one,
        never a mixture. An update under way is taken back first. Of several processes, the first
        one writes. An earlier run in the folder is replaced; files that no run wrote stay. Raises
        `ValueError` where run.json is another kind of file, or another process is writing here.
        """
        self._take_back()
        if self.learner.share.rank:
            return
        folder = Path(folder)
        with alone_in(folder):
            self._write(folder)

    def _write(self, folder: Path) -> None:
        """Write a new state, switch to it, and remove the old one."""
        if (folder / "run.json").exists() and not _saved(folder):
            raise ValueError(
                f"{folder / 'run.json'} is not a run's: save into another folder, "
                "or move that file."
            )
        place = folder / f"update-{self.step_count:06d}-{secrets.token_hex(4)}"
        try:
            place.mkdir()
            self._write_state(place)
            scale = self.learner.loss_scale
            state = dict(
                format=_FORMAT,
                state=place.name,
                settings=dataclasses.asdict(self.settings),
                step=self.step_count,
                pairs=self.pairs.name,
                fingerprint=self.pairs.fingerprint,
                texts=_fingerprint_of_texts(self.pairs, self.settings),
                loss_scale=[scale.value, scale.fine],
                history=self.history,
                encodes=self.encodes,
                digests=digests_of(place),
            )
            write_atomically(folder / "run.json", json.dumps(state).encode())
        except BaseException:
            if (
                _saved(folder).get("state") != place.name
            ):  # interrupted after the switch, the new state is the one that counts
                shutil.rmtree(place, ignore_errors=True)
            raise
        for path in folder.iterdir():  # older states, and what a killed save left
            if is_temporary(path.name, "run.json") and path.is_file():
                path.unlink(missing_ok=True)
            elif path != place and _STATE.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _write_state(self, place: Path) -> None:
        """Towers, optimiser and banks, brought to the disk."""
        from safetensors.torch import save_file

        self.query_tower.save_pretrained(place / "query_tower")
        if len(self.learner.towers) > 1:
            self.passage_tower.save_pretrained(place / "passage_tower")
        save_file(self._tensors(), place / "state.safetensors")
        sync(place)

    @classmethod
    def load(cls, folder: str | Path, pairs: Pairs, accelerator=None) -> Run:
        """The run as it was saved; it goes on bit for bit as if it had not stopped. `pairs` must be those it was trained on."""
        return while_it_stands(
            folder, lambda state, place: cls._load(folder, state, place, pairs, accelerator)
        )

    @classmethod
    def _load(cls, folder: str | Path, state: dict, place: Path, pairs: Pairs, accelerator) -> Run:
        if state["fingerprint"] != pairs.fingerprint:
            trained = search.one_line(f"{state['pairs']}, {state['fingerprint']}")
            other = search.one_line(f"{pairs.name}, {pairs.fingerprint}")
            raise ValueError(
                f"{folder} was trained on other pairs ({trained}) than the ones given "
                f"({other}): give the same data; python-docs changes with the "
                "installed packages."
            )
        settings = saved_settings(folder, state)
        seen = _fingerprint_of_texts(pairs, settings)
        if state.get("texts") not in (None, seen):  # older versions saved none
            texts = "passages" if settings.cache_negatives else "hard negatives"
            raise ValueError(
                f"{folder} was trained on {search.one_line(pairs.name)} with other "
                f"texts of its {texts} than it has now: give the same data."
            )
        check_digests(place, state.get("digests", {}))
        towers = saved_towers(place, settings)
        run = cls(pairs, settings, towers=(towers[0], towers[-1]), accelerator=accelerator)
        run._read_state(place / "state.safetensors")
        run.step_count = state["step"]
        run.learner.loss_scale.value, run.learner.loss_scale.fine = state.get(
            "loss_scale", [1.0, 0]
        )
        run.history = [Update(*update) for update in state["history"]]
        run.learner.encodes.update(state.get("encodes", {}))
        return run

    def _read_state(self, path: Path) -> None:
        """Take optimiser, banks and slow towers from a file; `ValueError` where it is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            self._set_tensors(load_file(path, device=self.settings.device))
        except (
            SafetensorError,
            OSError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            TypeError,
            RuntimeError,
        ) as error:  # tensors of any name and shape
            if "memory" in str(error):  # it ran out
                raise
            raise ValueError(
                f"{path} does not hold this run's state ({type(error).__name__}: "
                f"{search.one_line(str(error))}). {DAMAGED}"
            ) from error

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Optimiser, banks and slow towers as named tensors."""
        tensors = {
            f"optimizer.{n}.{name}": value
            for n, slots in self.optimizer.state_dict()["state"].items()
            for name, value in slots.items()
        }
        for n, bank in enumerate(self.learner.banks):
            tensors |= {f"bank.{n}.{name}": value for name, value in bank.state_dict().items()}
        tensors |= {
            f"softmax.0.{name}": value for name, value in self.learner.softmax.state_dict().items()
        }
        for n, part in enumerate(self._stale):
            tensors |= {f"stale.{n}.{name}": value for name, value in part.state_dict().items()}
        for n, tower in enumerate(self.learner.slow_towers):
            tensors |= {f"slow.{n}.{name}": value for name, value in tower.state_dict().items()}
        return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}

    def _set_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        groups: dict[str, dict] = {}
        for name, value in tensors.items():
            kind, number, rest = name.split(".", 2)
            groups.setdefault((kind, int(number)), {})[rest] = value
        state = self.optimizer.state_dict()
        state["state"] = {n: slots for (kind, n), slots in groups.items() if kind == "optimizer"}
        for n, slots in state["state"].items():
            shape = self.optimizer.param_groups[0]["params"][n].shape
            if not shape == slots["exp_avg"].shape == slots["exp_avg_sq"].shape:
                raise ValueError(f"weight {n} is {tuple(shape)}, and the optimiser's is not")
        self.optimizer.load_state_dict(state)
        for n, bank in enumerate(self.learner.banks):
            bank.load_state_dict(groups["bank", n])
        self.learner.softmax.load_state_dict(groups.get(("softmax", 0), {}))
        for n, part in enumerate(self._stale):
            part.load_state_dict(groups.get(("stale", n), {}))
        for n, tower in enumerate(self.learner.slow_towers):
            tower.load_state_dict(groups["slow", n])


def _fingerprint_of_texts(pairs: Pairs, settings: Settings) -> str | None:
    """The fingerprint of the texts that training sees beside the pairs, None without any."""
    if settings.cache_negatives:
        return pairs.passages_fingerprint
    return pairs.hard_negatives_fingerprint if settings.hard_negatives else None


def check_device(settings: Settings) -> None:
    """Raise `ValueError` where the device is not there."""
    measure.device_here(settings.device)


def _among(accelerator, settings: Settings):
    from .parallel import Among

    return Among(accelerator, settings)


def tokens_of(pairs: Pairs, tower, settings: Settings, what: str) -> Tokens:
    """Token ids of the "train", "test" or "dev" queries or of the "passages"; runs on the same pairs share them."""
    length = settings.passage_tokens if what == "passages" else settings.query_tokens
    key = ("tokens", what, length, tower.vocabulary_key)
    if key not in pairs.memo:
        if what == "passages":
            pairs.memo[key] = _tokenize_passages(tower, pairs.passages, settings)
        else:
            pairs.memo[key] = tower.tokenize([p.query for p in getattr(pairs, what)], length=length)
    return pairs.memo[key]


def _tokenize_passages(tower, passages: Sequence[Passage], settings: Settings) -> Tokens:
    return tower.tokenize(
        [p.text for p in passages], [p.title for p in passages], settings.passage_tokens
    )


def read_run(folder: str | Path) -> tuple[dict, Path]:
    """(what its run.json says, the folder of its state) of a saved run. Raises `ValueError` where there is none that this version reads."""
    folder = Path(folder)
    path = folder / "run.json"
    try:
        state = json.loads(path.read_bytes())
        version = state["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{folder} holds no saved run ({type(error).__name__}: {error}): expected a folder that run.save wrote."
        ) from None
    if version != _FORMAT:
        raise ValueError(
            f"{folder} was saved in format {short(version)}; this version reads format {_FORMAT}."
        )
    check_record(path, state, _NEEDED, _OPTIONAL)
    if not _STATE.fullmatch(state["state"]):
        raise ValueError(
            f"{path} has {short(state['state'])} as 'state': expected the name of a "
            f"folder beside it, such as 'update-000100-1a2b3c4d'. {DAMAGED}"
        )
    for name, fine in _PARTS.items():
        if name in state and not fine(state[name]):
            raise ValueError(
                f"{path} has {short(state[name])} as {name!r}, which no run wrote. {DAMAGED}"
            )
    if state["step"] != len(state["history"]):
        raise ValueError(
            f"{path} has {state['step']} as 'step', and a history of "
            f"{len(state['history'])} updates. {DAMAGED}"
        )
    return state, folder / state["state"]


def _is_number(value) -> bool:
    return type(value) in (int, float)


#: what must hold of a list or an object in run.json
_PARTS = {
    "history": lambda updates: all(
        type(update) is list and len(update) == len(Update._fields) and all(map(_is_number, update))
        for update in updates
    ),
    "loss_scale": lambda scale: (
        len(scale) == 2 and all(map(_is_number, scale)) and 0 < scale[0] < math.inf
    ),
    "encodes": lambda counts: all(type(count) is int for count in counts.values()),
    "digests": lambda digests: all(type(digest) is str for digest in digests.values()),
}


def saved_settings(folder: str | Path, state: dict, **changes) -> Settings:
    """The settings in a run.json, some of them changed. Raises `ValueError` for what are none."""
    try:
        return Settings.preset(**{**state["settings"], **changes})
    except (ValueError, TypeError, OverflowError) as error:  # TypeError: 'method' is not there
        raise ValueError(f"{Path(folder) / 'run.json'}: {error}") from None


def saved_towers(place: Path, settings: Settings) -> list:
    """The query tower and the passage tower of a saved state, or the one that is both."""
    towers = []
    for name in ("query_tower", "passage_tower")[: 2 - settings.shared]:
        if not (place / name).is_dir():  # a name alone would be looked up on the hub
            raise ValueError(f"{place} has no folder {name!r}. {DAMAGED}")
        tower = load_tower(place / name, settings.pooling)
        towers.append(tower.to(device=settings.device, dtype=getattr(torch, settings.dtype)))
    return towers


def while_it_stands(folder: str | Path, load):
    """What load(state, place) makes of a saved run; made again where a training process has replaced that state in the meantime."""
    for _ in range(_TRIES):
        state, place = read_run(folder)
        try:
            return load(state, place)
        except Exception as error:
            if _saved(Path(folder)).get("state") == place.name:
                raise
            last = error
    raise ValueError(
        f"{folder} was replaced by a training process {_TRIES} times while it was "
        "read: try again when that process saves less often."
    ) from last


def _saved(folder: Path) -> dict:
    """What the folder's run.json says; nothing where there is none, or none that a run wrote."""
    try:
        state = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) and {"format", "state"} <= state.keys() else {}


def other_files(folder: Path, resumes: bool) -> list[str]:
    """Names in the folder that training would overwrite, or that no run wrote.

    resumes: the folder holds a run. What else is in there is then left alone, and only the names
    that training writes are looked at.
    """
    if not folder.is_dir():
        return []
    others = [path.name for path in sorted(folder.iterdir()) if not _is_ours(path)]
    return [name for name in others if not resumes or name in _WRITES]


_WRITES = ("log.jsonl", "tensorboard")  # settings.yaml is read: the command line compares it


def _is_ours(path: Path) -> bool:
    """Whether this is a file or folder that a training run wrote, by its exact name and kind."""
    name = path.name
    begins = {"settings.yaml": b"# method=", "log.jsonl": b'{"step": '}.get(name)
    if begins is not None:
        head = _head(path, len(begins))
        return head is not None and begins.startswith(head)  # less, where it was killed
    if name == "run.json":
        return bool(_saved(path.parent))
    if name == "tensorboard" or _STATE.fullmatch(name):
        return path.is_dir()
    temporary = any(
        is_temporary(name, target) for target in ("run.json", "settings.yaml", "log.jsonl")
    )
    return name == LOCK or temporary and path.is_file()


def _head(path: Path, size: int) -> bytes | None:
    """The first bytes of a file; None where it is none that can be read."""
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError:
        return None


def sync(folder: Path) -> None:
    """Bring the folder and every file under it to the disk."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or os.name == "posix":  # elsewhere a folder cannot be opened
            handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def _uninterrupted():
    """Hold a Ctrl-C back until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held, before = [], signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *args: held.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held and callable(before):
            before(*held[0])

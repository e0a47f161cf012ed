"""How one weight update gets its gradient. Two ways cover every method:

    accumulated   one micro-batch after the other, each with what the banks hold: DPR (K = 1), GradAccum, pre-batch,
                  ContAccum, momentum
    cached        GradCache: the big batch's gradient, in two passes over the micro-batches

Both call `loss.contrast` and carry its gradients into the towers by the chain rule, so that a method is nothing but what
stands in the rows and columns of its similarity matrix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .bank import MemoryBank
from .incremental import IncrementalSoftmax
from .loss import Contrast, contrast, duplicate_mask
from .precision import LossScale, encode
from .settings import Settings
from .towers import copy_of, has_dropout, joined, vectors_of, without_noise


class MicroBatch(NamedTuple):
    """Some pairs, as token ids and keys."""

    pair_ids: Tensor  # (B,) rows of the training pairs
    hard_ids: Tensor  # (B·h,) rows of the passages that are their hard negatives
    query_tokens: Tensor  # (B, L)
    passage_tokens: Tensor  # (B + B·h, L): positives, then hard negatives


class MicroStep:
    """What one micro-batch did: its matrix, whose rows and columns they are, and where it stands in its update.

    `scores` and `weights` are (rows, columns), the weight of an entry being ∂loss/∂score. With similarity="incremental" no
    method makes them: they are made when they are looked at, which must be before the next micro-batch.
    """

    def __init__(
        self,
        update: int,
        index: int,
        of: int,
        loss: float,
        local: int,
        row_ids: Tensor,
        column_ids: Tensor,
        hard_from: int,
        matrix: tuple[Tensor, Tensor] | Callable[[], tuple[Tensor, Tensor]],
    ):
        self.update, self.index, self.of = update, index, of  # index: k of K, from 0
        self.loss = loss
        self.local = local  # rows and columns before this are of this micro-batch, the later ones of the banks
        self.row_ids = row_ids  # (rows,) training pairs
        self.column_ids = column_ids  # (columns,) training pairs; from `hard_from` on, passages
        self.hard_from = hard_from
        self._matrix = matrix

    @property
    def scores(self) -> Tensor:
        return self.matrix()[0]

    @property
    def weights(self) -> Tensor:
        return self.matrix()[1]

    def matrix(self) -> tuple[Tensor, Tensor]:
        """(scores, weights), made now if they have not been. Raises `RuntimeError` where the banks have moved on."""
        if not self.there:
            raise RuntimeError(
                "this micro-batch's matrix was not made, and the banks have moved on: look at it before the next micro-batch, "
                "or set similarity='full'."
            )
        return self._matrix

    @property
    def there(self) -> bool:
        """Whether its matrix can be had."""
        if callable(self._matrix):
            self._matrix = self._matrix() or self._matrix
        return not callable(self._matrix)


class Encoded(NamedTuple):
    queries: Tensor  # (B, d)
    passages: Tensor  # (B, d)
    hard: Tensor | None  # (B·h, d)

    def present(self) -> list[Tensor]:
        return [part for part in self if part is not None]


class Alone:
    """One process, which has every micro-batch to itself: `parallel.Among` is what several have in its place."""

    rank, world = 0, 1

    def part(self, batch: MicroBatch) -> MicroBatch:
        """The pairs of a micro-batch that this process encodes."""
        return batch

    def together(self, vectors: Encoded, batch: MicroBatch) -> Encoded:
        """The vectors of the whole micro-batch, from those of each process's part."""
        return vectors

    def own(self, gradients: list[Tensor | None], batch: MicroBatch) -> list[Tensor | None]:
        """Of the gradients of the whole micro-batch's vectors, those of this process's part."""
        return gradients

    def start(self, towers: list[nn.Module]) -> None:
        """Give every process the same weights."""

    def add_up(self, towers: list[nn.Module]) -> None:
        """Make every tower's gradient the sum of all processes' gradients."""


@dataclass
class Learner:
    """The towers and banks that a method works on, and the keys by which duplicates are known."""

    settings: Settings
    query_tower: nn.Module
    passage_tower: nn.Module
    query_keys: Tensor  # per training pair
    passage_keys: Tensor  # per training pair
    text_keys: Tensor  # per passage
    adjust: Callable | None = (
        None  # an intervention: a Contrast -> the one whose gradients go into the towers (notebook 04)
    )
    share: Alone = Alone()  # what of a micro-batch this process does, and how it meets the others

    def __post_init__(self):
        s = self.settings
        dtype = getattr(torch, s.dtype)
        self.banks = [
            MemoryBank(size, self.query_tower.dim, dtype, s.device) for size in self._sizes(s)
        ]
        self.slow_towers = (
            [copy_of(t).eval().requires_grad_(False) for t in self.towers] if s.momentum else []
        )
        self.encodes = (
            Counter()
        )  # passages encoded so far, by purpose: train, refresh, probe, momentum
        self.cache = self.correction = (
            None  # `cache.Cache`, `cache.BankCorrection`; a Run sets them
        )
        self.loss_scale = LossScale(s.precision)
        self.noisy = any(has_dropout(tower) for tower in self.towers)
        self.softmax = IncrementalSoftmax(
            *self.banks,
            s.temperature,
            (self.query_keys, self.passage_keys, self.text_keys) if s.mask_duplicates else None,
        )

    @property
    def towers(self) -> list[nn.Module]:
        return (
            [self.query_tower]
            if self.query_tower is self.passage_tower
            else [self.query_tower, self.passage_tower]
        )

    @property
    def query_bank(self) -> MemoryBank:
        return self.banks[0]

    @property
    def passage_bank(self) -> MemoryBank:
        return self.banks[1]

    @property
    def hard_bank(self) -> MemoryBank:
        return self.banks[2]

    @property
    def full_because(self) -> str:
        """Why the whole similarity matrix is computed; nothing where it is not."""
        s = self.settings
        if s.similarity == "full":
            return "similarity is 'full'"
        if not s.has_bank:
            return "no bank whose scores could be kept"
        if self.slow_towers:
            return "the banks hold vectors of the slow towers, not those that were compared"
        if self.correction is not None:
            return "the banks' vectors are corrected anew each time they are read"
        return "an intervention (`adjust`) looks at it" if self.adjust is not None else ""

    def _sizes(self, s: Settings) -> tuple[int, int, int]:
        """Slots of the query, passage and hard-negative bank."""
        size = s.memory_size * s.passage_bank
        return size * s.query_bank, size, size * s.hard_negatives * s.bank_hard_negatives

    def resized(self, settings: Settings) -> list[MemoryBank]:
        """The banks in the sizes of these settings, with the newest vectors."""
        pairs = zip(self.banks, self._sizes(settings))
        return [bank if bank.size == size else bank.resized(size) for bank, size in pairs]

    def take(self, settings: Settings, banks: list[MemoryBank]) -> None:
        """Go on with these settings, and with the banks that `resized` made for them."""
        self.settings = settings
        for bank, other in zip(self.banks, banks):
            if bank is not other:
                bank.become(other)

    def encode(
        self, batch: MicroBatch, query_tower=None, passage_tower=None, purpose: str | None = "train"
    ) -> Encoded:
        """The vectors of a micro-batch by these towers (the learner's own if none are given); counted under its purpose, if any."""
        device, pairs = self.settings.device, len(batch.pair_ids)
        if not pairs:  # this process has no part in a short last micro-batch
            none = self.passage_bank.vectors[:0]
            return Encoded(
                none, none, none if len(batch.hard_ids) or self.settings.hard_negatives else None
            )
        if purpose:
            self.encodes[purpose] += len(batch.passage_tokens)
        queries = encode(
            query_tower or self.query_tower, batch.query_tokens.to(device), self.settings
        )
        columns = encode(
            passage_tower or self.passage_tower, batch.passage_tokens.to(device), self.settings
        )
        return Encoded(queries, columns[:pairs], columns[pairs:] if len(columns) > pairs else None)

    def encode_fresh(self, batch: MicroBatch, purpose: str | None = None) -> Encoded:
        """The vectors of a micro-batch by the towers as they are now, without dropout.

        What trains calls `encode` inside `noise`. Anything else would draw from PyTorch's own
        generator, and the run would depend on more than its seed.
        """
        with without_noise(*self.towers):
            return self.encode(batch, purpose=purpose)

    def encode_rows(self, rows: Tensor, purpose: str | None) -> Tensor:
        """These passages as the passage tower sees them now, without noise or graph, (n, d); counted under its purpose, if any."""
        if purpose:
            self.encodes[purpose] += len(rows)
        return self.encode_texts(self.passage_tower, self.passages, rows.numpy())

    @torch.no_grad()
    def encode_texts(self, tower, tokens, rows=None) -> Tensor:
        """Vectors of these texts without noise or graph, (n, d). tokens: a padded tensor, or `Tokens` with the rows wanted."""
        if not isinstance(tokens, Tensor):
            places, parts = zip(*vectors_of(tower, tokens, self.settings, rows))
            found = torch.cat(parts)
            return torch.empty_like(found).index_copy_(
                0, torch.from_numpy(np.concatenate(places)).to(found.device), found
            )
        with without_noise(tower):
            return encode(tower, tokens.to(self.settings.device), self.settings)

    @contextmanager
    def noise(self, update: int, index: int):
        """Dropout noise that depends on nothing but the seed, the update and the micro-batch: drawn again, it is the same."""
        if not self.noisy:
            yield
            return
        device = torch.device(self.settings.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(
                (self.settings.seed * 1_000_003 + update) * 4099 + index + (self.share.rank << 48)
            )
            yield

    def contrast(
        self, vectors: Encoded, pair_ids: Tensor, hard_ids: Tensor, update: int, banks: bool
    ) -> tuple[Contrast, dict]:
        """The loss and gradients of these vectors against themselves and, if asked, against what the banks hold."""
        banks = banks and update >= self.settings.bank_warmup
        parts = Encoded(*(None if part is None else part.detach() for part in vectors))
        kept = [bank.ids if banks else bank.ids[:0] for bank in self.banks]
        columns, hard = torch.cat([pair_ids, kept[1]]), torch.cat([hard_ids, kept[2]])
        rows = len(pair_ids) + (0 if self.query_bank_dropped(update) else len(kept[0]))
        places = dict(
            local=len(pair_ids),
            row_ids=columns[:rows],
            column_ids=torch.cat([columns, hard]),
            hard_from=len(columns),
        )
        if banks and not self.full_because:
            return self.softmax.contrast(*parts, pair_ids, hard_ids), places
        read = (
            (lambda n: self.correction.read(n, len(kept[n]), update))
            if self.correction
            else (lambda n: self.banks[n].vectors[: len(kept[n])])
        )
        return self._whole(parts, [read(n) for n in range(3)], columns, hard, rows), places

    def _whole(
        self, vectors: Encoded, kept: list[Tensor], columns: Tensor, hard: Tensor, rows: int
    ) -> Contrast:
        """By the whole matrix, with the banks' vectors given; columns: ids of its pairs, hard: of its hard negatives."""
        queries, passages, kept_hard = (part if len(part) else None for part in kept)
        return contrast(
            vectors.queries,
            vectors.passages,
            queries if rows > len(vectors.queries) else None,
            passages,
            vectors.hard,
            self.settings.temperature,
            bank_hard_negatives=kept_hard,
            mask=self.mask(columns, hard, rows) if self.settings.mask_duplicates else None,
        )

    def matrix_later(self, vectors: Encoded, places: dict, kept: list[Callable]) -> Callable:
        """What makes this micro-batch's matrix when it is asked for, until the banks are written again."""
        versions = [bank.version for bank in self.banks]

        def matrix() -> tuple[Tensor, Tensor] | None:
            if versions != [bank.version for bank in self.banks]:
                return None
            ids, hard_from = places["column_ids"], places["hard_from"]
            parts = Encoded(*(None if part is None else part.detach() for part in vectors))
            return self._whole(
                parts,
                [of() for of in kept],
                ids[:hard_from],
                ids[hard_from:],
                len(places["row_ids"]),
            )[4:]

        return matrix

    def mask(self, columns: Tensor, hard: Tensor, rows: int) -> Tensor | None:
        """Which entries are a row's own stale self or a copy of its passage (`loss.duplicate_mask`)."""
        queries = torch.cat([self.query_keys[columns], torch.full((len(hard),), -1)])
        mask = duplicate_mask(
            queries, torch.cat([self.passage_keys[columns], self.text_keys[hard]]), rows
        )
        return mask if mask is None else mask.to(self.settings.device)

    def query_bank_dropped(self, update: int) -> bool:
        """Whether the query bank is out of use at this update (Appendix D)."""
        return not self.query_bank.size or (
            self.settings.drop_query_bank_at is not None
            and update >= self.settings.drop_query_bank_at
        )

    @torch.no_grad()
    def remember(self, batch: MicroBatch, vectors: Encoded, update: int) -> None:
        """Write a micro-batch into the banks, after its loss: it never meets itself there."""
        if self.cache is not None:
            self.cache.saw(batch, vectors, update)
        if not self.passage_bank.size or update < self.settings.bank_warmup:
            return
        if self.slow_towers:
            part = self.encode(
                self.share.part(batch),
                self.slow_towers[0],
                self.slow_towers[-1],
                purpose="momentum",
            )
            vectors = self.share.together(part, batch)
        if not self.full_because:
            self.softmax.enter()
        if not self.query_bank_dropped(update):
            self.query_bank.write(batch.pair_ids, vectors.queries, update)
        self.passage_bank.write(batch.pair_ids, vectors.passages, update)
        if self.hard_bank.size:
            self.hard_bank.write(batch.hard_ids, vectors.hard, update)
        self.softmax.settle()

    @torch.no_grad()
    def after_update(self, update: int) -> None:
        """What the banks and the slow towers do once the weights have moved."""
        if not self.settings.past_encoder:
            for bank in self.banks:
                bank.clear()
        if self.query_bank_dropped(update + 1):
            self.query_bank.clear()
        keep = self.settings.momentum
        for slow, tower in zip(self.slow_towers, self.towers):
            torch._foreach_lerp_(list(slow.parameters()), list(tower.parameters()), 1 - keep)


def gradient(learner: Learner, batches: list[MicroBatch], update: int) -> Iterator[MicroStep]:
    """Add this update's gradient to the towers, one MicroStep at a time, by the method that the settings name."""
    if learner.cache is not None:
        learner.cache.begin(update)
        batches = [learner.cache.choose(batch, k, update) for k, batch in enumerate(batches)]
    if learner.correction is not None:
        learner.correction.begin(update)
    way = cached_gradient if learner.settings.method == "grad_cache" else accumulated_gradient
    return way(learner, batches, update)


def accumulated_gradient(
    learner: Learner, batches: list[MicroBatch], update: int
) -> Iterator[MicroStep]:
    """DPR, GradAccum, pre-batch, ContAccum, momentum: each micro-batch with the banks as they stand, then into the banks.

    The update's loss is the mean of the micro-batches' losses (equation 4; the last update of an epoch may have fewer than K).
    With `one_forward` all of them are encoded at once and carried back at once, which is the same gradient, because the weights do
    not change within an update; the graph in memory is then that of the whole batch.
    """
    share, parts = learner.share, [learner.share.part(batch) for batch in batches]
    whole = (
        learner.encode(_joined(learner, parts))
        if learner.settings.one_forward and not learner.noisy
        else None
    )
    pieces, gradients = None if whole is None else _pieces(whole, parts), []
    for k, batch in enumerate(batches):
        with learner.noise(update, k):
            own = learner.encode(parts[k]) if pieces is None else pieces[k]
        vectors = share.together(own, batch)
        found, places = learner.contrast(
            vectors, batch.pair_ids, batch.hard_ids, update, banks=True
        )
        if learner.adjust is not None:
            found = learner.adjust(found)
        if pieces is None:
            _backward(own, share.own(found[1:4], batch), learner.loss_scale.value / len(batches))
        else:
            gradients.append(share.own(found[1:4], batch))
        matrix, later = found[4:], found.scores is None
        if later:
            kept = [
                bank.vectors_before(len(ids))
                for bank, ids in zip(
                    learner.banks, (batch.pair_ids, batch.pair_ids, batch.hard_ids)
                )
            ]
        learner.remember(batch, vectors, update)
        if later:
            matrix = learner.matrix_later(vectors, places, kept)
        if whole is not None and k + 1 == len(batches):
            _backward(
                whole,
                [None if parts[0] is None else torch.cat(parts) for parts in zip(*gradients)],
                learner.loss_scale.value / len(batches),
            )
        yield MicroStep(update, k, len(batches), found.loss.item(), **places, matrix=matrix)


def _joined(learner: Learner, batches: list[MicroBatch]) -> MicroBatch:
    """These micro-batches as one: all pairs, then all hard negatives."""

    def together(parts, tower):
        return joined(parts, getattr(tower, "pad", 0))

    pairs = [len(batch.pair_ids) for batch in batches]
    passages = [batch.passage_tokens[:n] for batch, n in zip(batches, pairs)] + [
        batch.passage_tokens[n:] for batch, n in zip(batches, pairs)
    ]
    return MicroBatch(
        torch.cat([b.pair_ids for b in batches]),
        torch.cat([b.hard_ids for b in batches]),
        together([b.query_tokens for b in batches], learner.query_tower),
        together(passages, learner.passage_tower),
    )


def _pieces(whole: Encoded, batches: list[MicroBatch]) -> list[Encoded]:
    """The vectors of each micro-batch."""
    pairs, hard = [len(b.pair_ids) for b in batches], [len(b.hard_ids) for b in batches]
    parts = [
        whole.queries.split(pairs),
        whole.passages.split(pairs),
        [None] * len(batches) if whole.hard is None else whole.hard.split(hard),
    ]
    return [Encoded(*of) for of in zip(*parts)]


def cached_gradient(
    learner: Learner, batches: list[MicroBatch], update: int
) -> Iterator[MicroStep]:
    """GradCache: the exact gradient of the big batch, with the graph of one micro-batch in memory at a time.

    1. encode every micro-batch, keeping vectors but no graph; 2. contrast all of them at once; 3. encode each again under
    the same noise and carry its vectors' gradients into the towers. The last micro-batch of pass 1 keeps its graph, so it
    is encoded once.
    """
    share, parts, last = (
        learner.share,
        [learner.share.part(batch) for batch in batches],
        len(batches) - 1,
    )
    vectors = [] if learner.noisy else _encoded_ahead(learner, parts[:last])
    for k in range(len(vectors), len(batches)):
        with learner.noise(update, k), torch.set_grad_enabled(k == last):
            vectors.append(learner.encode(parts[k]))
    together = [share.together(own, batch) for own, batch in zip(vectors, batches)]
    whole = Encoded(
        *(
            None if kind[0] is None else torch.cat([p.detach() for p in kind])
            for kind in zip(*together)
        )
    )
    found, places = learner.contrast(
        whole,
        torch.cat([b.pair_ids for b in batches]),
        torch.cat([b.hard_ids for b in batches]),
        update,
        banks=False,
    )
    pieces = [
        None if gradient is None else gradient.split([len(part) for part in kind])
        for gradient, kind in zip(found[1:4], zip(*together))
    ]
    for k in [last, *range(last)]:  # the kept graph first: it is gone before the next one is made
        if k != last:
            with learner.noise(update, k):
                vectors[k] = learner.encode(parts[k])
        _backward(
            vectors[k],
            share.own([None if piece is None else piece[k] for piece in pieces], batches[k]),
            learner.loss_scale.value,
        )
        vectors[k] = None
        yield MicroStep(update, k, len(batches), found.loss.item(), **places, matrix=found[4:])


@torch.no_grad()
def _encoded_ahead(learner: Learner, batches: list[MicroBatch]) -> list[Encoded]:
    """The vectors of these micro-batches without graph, where no noise is drawn: texts of like length go together, so less padding is encoded."""
    if not any(len(batch.pair_ids) for batch in batches):
        return [learner.encode(batch) for batch in batches]
    whole, size, columns = _joined(learner, batches), learner.settings.local_batch, []
    learner.encodes["train"] += len(whole.passage_tokens)
    for tower, tokens in (
        (learner.query_tower, whole.query_tokens),
        (learner.passage_tower, whole.passage_tokens),
    ):
        lengths = (tokens != getattr(tower, "pad", 0)).sum(1).clamp_min(1)
        order = lengths.argsort()
        parts = torch.cat(
            [
                encode(
                    tower,
                    tokens[some, : int(lengths[some].max())].to(learner.settings.device),
                    learner.settings,
                )
                for some in order.split(size)
            ]
        )
        columns.append(torch.empty_like(parts).index_copy_(0, order.to(parts.device), parts))
    pairs = len(whole.pair_ids)
    return _pieces(
        Encoded(
            columns[0], columns[1][:pairs], columns[1][pairs:] if len(columns[1]) > pairs else None
        ),
        batches,
    )


def _backward(vectors: Encoded, gradients: list[Tensor | None], scale: float) -> None:
    """The chain rule from the vectors into the towers: ∂loss/∂weights = Σ ∂loss/∂vector · ∂vector/∂weights."""
    if len(vectors.queries):
        kept = [
            (part, gradient)
            for part, gradient in zip(vectors, gradients)
            if part is not None and gradient is not None
        ]
        torch.autograd.backward(
            [part for part, _ in kept], [gradient * scale for _, gradient in kept]
        )

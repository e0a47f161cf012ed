"""The softmax over batch and banks without the bank × bank block: the same loss and gradients as `loss.contrast`.

Vectors in a bank do not change while they are there, so neither do the scores among them. All that a banked row needs of
them is one number: the log-sum-exp of its scores over the columns that are in the bank now. Per micro-batch, O(N·d) for the
scores of the B local vectors with the bank instead of O(N²·d) for all of them:

    local row      all its scores: they are new
    banked row i   logaddexp(what the bank gives it, its scores with the local columns), minus its positive's score

What the bank gives row i is again two numbers, because columns leave the bank from the old end and come in at the new one:

    older[t, i]    over the columns that came with row i or before it and are still there at micro-batch t: written once, for
                   all t that row i will live to see, as sums from the new end (nothing is ever subtracted)
    newer[i]       over the columns that have come since: each micro-batch adds its own

Both are filled from scores that the loss has made anyway. The table has N rows' worth of N / B micro-batches: 4·N²/B bytes in
float32. Notebook 08 derives it in four pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from contaccum_lite.core.bank import MemoryBank
from contaccum_lite.core.gradients import Embeddings
from contaccum_lite.core.hooks import Extension
from contaccum_lite.core.loss import LossAndGradients
from contaccum_lite.core.shapes import check_temperature, check_vectors


def attach_incremental_softmax(run) -> None:
    """The incremental softmax for a run, which uses it where its settings ask for it."""
    run.learner.extensions.append(IncrementalLoss(run))


class IncrementalLoss(Extension):
    """A run's loss against its banks by an `IncrementalSoftmax`, wherever that is exact."""

    name = "softmax"

    def __init__(self, run):
        self.learner, self.sampler = run.learner, run.sampler
        keys = run.learner.keys if run.settings.mask_duplicates else None
        self.table = IncrementalSoftmax(*run.learner.banks, run.settings.temperature, keys)
        self._snapshot = None

    @property
    def why_not(self) -> str:
        """Why the full similarity matrix is computed after all; nothing where it is not."""
        settings = self.learner.settings
        if settings.similarity == "full":
            return "similarity is 'full'"
        if not settings.has_bank:
            return "no bank whose scores could be kept"
        if settings.momentum:
            return "the banks hold vectors of the slow towers, not those that were compared"
        if settings.corrector != "identity":
            return "the banks' vectors are corrected anew each time they are read"
        if self.learner.gradient_hook is not None:
            return "an intervention (`gradient_hook`) looks at it"
        return ""

    @property
    def keeps_scores(self) -> bool:
        return not self.why_not

    @property
    def note(self) -> str:
        if self.learner.settings.similarity == "full" or not self.why_not:
            return ""
        return f"The whole similarity matrix is computed: {self.why_not}."

    def begin_update(self, batches: list, step: int) -> list:
        if self.keeps_scores:
            done = step % self.sampler.updates_per_epoch * self.learner.settings.accumulation_steps
            self.table.expect(self.sampler.sizes, done)
            self._snapshot = self.table.snapshot(sum(len(batch.pair_ids) for batch in batches))
        return batches

    def bank_loss(self, embeddings, batch, step: int) -> LossAndGradients | None:
        if not self.keeps_scores:
            return None
        result = self.table.contrast(*embeddings, batch.pair_ids, batch.hard_ids)
        if self.learner.observed:
            result = result._replace(matrix=self._matrix(embeddings, batch, step))
        return result

    def _matrix(self, embeddings, batch, step: int) -> Callable:
        """What makes the full matrix when it is looked at: the banks as they are now are copied."""
        memory = Embeddings(*(bank.vectors.clone() for bank in self.learner.banks))
        layout = self.learner.layout(batch, step, True)

        def matrix():
            result = self.learner.full_matrix_loss(embeddings, memory, layout)
            return result.scores, result.grad_scores

        return matrix

    def before_enqueue(self, embeddings, batch, step: int):
        settings = self.learner.settings
        if self.keeps_scores and step >= settings.bank_warmup:
            self.table.enter()
        return embeddings

    def after_enqueue(self) -> None:
        self.table.settle()

    def abandon_update(self) -> None:
        if self._snapshot is not None:
            self.table.restore(self._snapshot)
        self._snapshot = None

    def end_update(self, step: int) -> None:
        self._snapshot = None

    def state_dict(self) -> dict[str, Tensor]:
        return self.table.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.table.load_state_dict(state)


class IncrementalSoftmax:
    """Loss and gradients of a micro-batch against its banks, at a price that grows with N_memory and not with its square.

    query_bank, passage_bank, hard_bank: filled in step by their owner, who calls `contrast`, then `enter`, then writes the banks,
    then `settle`. A passage bank alone (pre-batch) needs no table: its rows are local. keys: (of each training pair's query, of
    its passage, of each passage), by which duplicates are known, as in `loss.duplicate_mask`; None masks nothing. Banks that were
    changed by anyone else (resized, loaded, restored) are noticed, and the table is made anew from them by one full product.
    """

    def __init__(
        self,
        query_bank: MemoryBank,
        passage_bank: MemoryBank,
        hard_bank: MemoryBank,
        temperature: float = 1.0,
        keys: tuple[Tensor, Tensor, Tensor] | None = None,
    ):
        check_temperature(temperature)
        _check_banks(query_bank, passage_bank, hard_bank)
        self.query_bank, self.passage_bank, self.hard_bank = query_bank, passage_bank, hard_bank
        self.temperature, self.keys = temperature, keys
        self._joint = joint_keys(*keys[:2]) if keys is not None else None
        self._joint_count = (
            0 if self._joint is None or not len(self._joint) else int(self._joint.max()) + 1
        )
        self._sizes, self._place = (
            np.array([1]),
            0,
        )  # the micro-batches of an epoch, and how many of them are done
        self._written = None  # pairs written before each of them, over epochs
        self._size = None  # the size of the bank that this is for
        self._versions, self._seen = None, None
        self.clock = 0  # micro-batches, modulo the slices of `older`
        like = dict(dtype=query_bank.vectors.dtype, device=query_bank.vectors.device)
        self.older, self.newer, self.positives = (
            torch.empty(1, 0, **like),
            torch.empty(0, **like),
            torch.empty(0, **like),
        )

    @property
    def bytes(self) -> int:
        """Memory of the table: about N² / B numbers."""
        return sum(t.numel() * t.element_size() for t in (self.older, self.newer, self.positives))

    def expect(self, sizes: Sequence[int], place: int = 0) -> None:
        """Say how large the micro-batches of an epoch are, and how many of them are done: when each column will leave."""
        if (
            place != self._place
            or sizes is not self._sizes
            and not np.array_equal(sizes, self._sizes)
        ):
            if np.ndim(sizes) != 1 or not 0 <= place < len(sizes) or np.min(sizes) < 1:
                raise ValueError(
                    f"expect got sizes {np.asarray(sizes)!s} and place {place}: "
                    "expected the pairs of each micro-batch of an epoch, 1 or more, "
                    "and a place among them."
                )
            self._sizes, self._place, self._written, self._versions = sizes, place, None, None
        self._sizes = sizes

    # --- loss and gradients --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def contrast(
        self,
        queries: Tensor,
        passages: Tensor,
        hard: Tensor | None = None,
        pair_ids: Tensor | None = None,
        hard_ids: Tensor | None = None,
    ) -> LossAndGradients:
        """As `loss.contrast` of these (B, d) vectors with the banks as they stand; `scores` and `weights` are not made."""
        if self.keys is not None and (pair_ids is None or hard is not None and hard_ids is None):
            raise ValueError(
                "keys were given, by which duplicates are masked, but not whose vectors these are: give pair_ids (B,), and hard_ids where there "
                "are hard negatives; or make it without keys."
            )
        self._check(queries, passages, hard, pair_ids, hard_ids)
        hard_ids = torch.zeros(0, dtype=torch.int64) if hard_ids is None else hard_ids
        self._catch_up()
        b, h = len(queries), 0 if hard is None else len(hard)
        bank_q, bank_p = self.query_bank.vectors, self.passage_bank.vectors
        bank_h = self.hard_bank.vectors
        columns = [passages, bank_p, *([hard] if h else []), *([bank_h] if len(bank_h) else [])]
        same, same_hard = self._masks(pair_ids, hard_ids) if self.keys is not None else (None, None)

        scores, loss, weights = self._local_rows(queries, columns, same, same_hard)
        pieces = weights.split([len(part) for part in columns], 1)
        d_queries = pieces[0] @ passages
        for piece, part in zip(pieces[1:], columns[1:]):
            d_queries.addmm_(piece, part)
        d_passages = pieces[0].T @ queries
        d_hard = pieces[2].T @ queries if h else None

        gained = None
        if len(bank_q):
            same_back = self._same_back(hard_ids) if same_hard is not None and h else None
            more, softmax, gained = self._banked_rows(
                torch.cat([passages, hard]) if h else passages,
                b,
                None if same is None else same[:, b:],
                same_back,
            )
            loss = loss + more
            d_passages.addmm_(softmax[:b], bank_q)
            d_hard = d_hard.addmm_(softmax[b:], bank_q) if h else None
        self._seen = scores, b, len(bank_q), len(bank_p), h, gained
        rows = b + len(bank_q)
        return LossAndGradients(
            loss / rows,
            *(
                None if d is None else d.mul_(1 / (rows * self.temperature))
                for d in (d_queries, d_passages, d_hard)
            ),
            None,
            None,
        )

    def _check(
        self,
        queries: Tensor,
        passages: Tensor,
        hard: Tensor | None,
        pair_ids: Tensor | None,
        hard_ids: Tensor | None,
    ) -> None:
        """Refuse vectors that do not fit together, or with the banks."""
        check_vectors({"queries": queries, "passages": passages}, self.passage_bank.dim)
        if hard is not None:
            check_vectors({"hard": hard}, self.passage_bank.dim)
        count, hard_count = len(queries), 0 if hard is None else len(hard)
        if count != len(passages) or not count:
            raise ValueError(
                f"{count} queries and {len(passages)} passages: expected one passage "
                "per query, and at least one."
            )
        self._check_kept(count, hard_count)
        _check_ids("pair_ids", pair_ids, count)
        _check_ids("hard_ids", hard_ids, hard_count)

    def _check_kept(self, count: int, hard_count: int) -> None:
        """Refuse what the banks cannot take in, and banks that are not filled in step."""
        kept = self.hard_bank.size // max(1, self.passage_bank.size)
        if kept and hard_count != kept * count:
            raise ValueError(
                f"{hard_count} hard negatives for {count} queries: expected "
                f"{kept * count}, for the bank keeps {kept} with each passage."
            )
        past_queries, past_passages = len(self.query_bank), len(self.passage_bank)
        if past_queries not in (0, past_passages):
            raise ValueError(
                f"the query bank holds {past_queries} vectors and the passage bank "
                f"{past_passages}: write both in step, or clear the query bank."
            )

    def _local_rows(
        self, queries: Tensor, columns: list[Tensor], same: Tensor | None, same_hard: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the local rows with all columns, the sum of their losses, and their softmax less 1 at the positive."""
        queries = queries / self.temperature
        scores = torch.cat([queries @ part.T for part in columns], 1)  # (B, all columns)
        passages = len(columns[0]) + len(columns[1])
        if same is not None:
            scores[:, :passages].masked_fill_(same, -torch.inf)
        if same_hard is not None:
            scores[:, passages:].masked_fill_(same_hard, -torch.inf)
        highest = scores.amax(1, keepdim=True)
        weights = (scores - highest).exp_()
        total = weights.sum(1, keepdim=True)
        losses = (total.log() + highest).squeeze(1).sub_(scores.diagonal())
        weights /= total
        weights.diagonal().sub_(1)
        return scores, losses.sum(), weights

    def _banked_rows(
        self, local: Tensor, b: int, same: Tensor | None, same_hard: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of the banked rows' losses, their softmax at the local columns, and what those columns add to `newer`.

        local: the B passages and after them their hard negatives; the softmax is (B + hard, N), a banked row to a column.
        """
        rows = len(self.query_bank)
        scores = (local / self.temperature) @ self.query_bank.vectors.T
        if same is not None:
            scores[:b].masked_fill_(same, -torch.inf)
        if same_hard is not None:
            scores[b:].masked_fill_(same_hard, -torch.inf)
        kept_apart = len(local) > b and not len(
            self.hard_bank
        )  # hard negatives that no bank will keep
        passages = scores[:b].logsumexp(0) if kept_apart else None
        top = scores.amax(0).clamp_(
            min=torch.finfo(scores.dtype).min
        )  # all of a row's may be left out
        softmax = scores.sub_(top).exp_()
        gained = softmax.sum(0).log_().add_(top)  # log-sum-exp over the local columns
        lse = torch.logaddexp(
            gained, torch.logaddexp(self.newer[:rows], self.older[self.clock, :rows])
        )
        softmax *= (top - lse).exp_()
        return (lse - self.positives[:rows]).sum(), softmax, passages if kept_apart else gained

    def _masks(self, pair_ids: Tensor, hard_ids: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Where the local pairs meet their own stale selves or copies of their passages: in the (B, B + N) passages, in the hard ones."""
        same = same_hard = None
        device = self.newer.device
        if not self._all_alone(pair_ids):
            same = self._same(pair_ids, torch.cat([pair_ids, self.passage_bank.ids]))
            same.fill_diagonal_(False)
        if len(hard_ids) or len(self.hard_bank):
            same_hard = (
                self.keys[1][pair_ids][:, None]
                == self.keys[2][torch.cat([hard_ids, self.hard_bank.ids])]
            )
        return (same.to(device) if same is not None else None), (
            same_hard.to(device) if same_hard is not None else None
        )

    def _all_alone(self, pair_ids: Tensor) -> bool:
        """Whether no local pair shares its query or passage with another one, local or banked; seldom not, and quick to see."""
        if self._joint is None:
            return False
        keys = self._joint.numpy()
        held = np.zeros(self._joint_count, dtype=bool)
        held[keys[self.passage_bank.ids.numpy()]] = True
        mine = keys[pair_ids.numpy()]
        return not held[mine].any() and len(set(mine.tolist())) == len(mine)

    def _same(self, some: Tensor, others: Tensor) -> Tensor:
        """(some, others): whether two pairs share their query or their passage."""
        if self._joint is not None:
            return self._joint[some][:, None] == self._joint[others]
        return torch.logical_or(*(keys[some][:, None] == keys[others] for keys in self.keys[:2]))

    def _same_back(self, hard_ids: Tensor) -> Tensor:
        """(hard, N): where a local hard negative is a copy of a banked row's own passage."""
        _, passage_keys, text_keys = self.keys
        return (text_keys[hard_ids][:, None] == passage_keys[self.query_bank.ids]).to(
            self.newer.device
        )

    # --- the table -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def enter(self) -> None:
        """Take the micro-batch of the last `contrast` into the table; before it goes into the banks."""
        if self._seen is None:
            raise RuntimeError(
                "enter() takes in the micro-batch of the last contrast(), and there is none: call contrast first, and enter once after it."
            )
        (scores, b, rows, n, h, gained), self._seen = self._seen, None
        size = self.passage_bank.size
        if not self.query_bank.size or rows != n:  # no banked rows, or none any more
            return
        if b != self._sizes[self._place]:
            self.expect(np.array([b]))
        self._place = (self._place + 1) % len(self._sizes)
        if self._versions is None and n:
            return  # another rhythm than the table was made for: made anew next time
        new = min(b, size)
        self._make_room()
        if gained is not None:
            torch.logaddexp(self.newer[:n], gained, out=self.newer[:n])
        old = scores[:, b : b + n]
        own = scores[:, :b]
        if (
            self.hard_bank.size
        ):  # a pair's column and those of its hard negatives come and go together
            old = _together(old, scores[:, b + n + h :])
            own = _together(own, scores[:, b + n : b + n + h])
        first = self.passage_bank.write_ptr if n == size else 0
        stay = min(n + new, size) - new
        in_order = torch.cat([old[:, first:], old[:, :first]], 1)[:, n - stay :]
        self.clock = (self.clock + 1) % len(self.older)
        self._fill(
            self.passage_bank.write_ptr, torch.cat([in_order, own[:, b - new :]], 1)[b - new :]
        )
        for slots, part in _ring(self.passage_bank.write_ptr, new, size):
            self.newer[slots] = -torch.inf
            self.positives[slots] = scores.diagonal()[b - new :][part]
        self._versions = ()

    def settle(self) -> None:
        """The banks have been written as `enter` was told: what they hold is what the table holds."""
        if self._versions is not None:
            self._versions = self._now()

    def _cuts(self, count: int) -> np.ndarray:
        """How many of the `count` oldest columns will have left at each micro-batch from the present one on, until all have."""
        ahead = self._schedule()[self._place : self._gone[self._place]]
        return np.maximum(0, ahead + (count - self.passage_bank.size - ahead[0]))

    def _even_steps(self) -> int:
        """In how many micro-batches all that is in a full bank will have left, if they are equal and end with it; otherwise 0."""
        written, place = self._schedule(), self._place
        steps, size = self._gone[place] - place, self.older.shape[1]
        even = written[place + 1] - written[place]
        return (
            int(steps)
            if steps * even == size and self._unlike[place] == self._unlike[place + steps - 1]
            else 0
        )

    def _now(self) -> tuple:
        """What is different when anything has been written, cleared, restored, resized or loaded."""
        banks = self.query_bank, self.passage_bank, self.hard_bank
        return tuple((bank.version, len(bank)) for bank in banks)

    def _schedule(self) -> np.ndarray:
        """Pairs written before each micro-batch, from the start of an epoch until the bank has been filled anew after its end."""
        size, places = self.passage_bank.size, len(self._sizes)
        if self._written is None or self._size != size:
            epochs = 1 + -(-size // int(np.sum(self._sizes))) + 1
            self._written = np.concatenate([[0], np.cumsum(np.tile(self._sizes, epochs))])
            self._gone = np.searchsorted(
                self._written, self._written[:places] + size
            )  # when all that is there now has left
            self._unlike = np.cumsum(
                np.diff(np.diff(self._written), prepend=self._written[1]) != 0
            )  # changes of size up to each
            self._slices = int((self._gone - np.arange(places)).max()) + 1
            self._size = size  # the last, for memory may run out before
        return self._written

    def _make_room(self) -> None:
        """A table of this bank's size, with a slice for each micro-batch that a row can live to see."""
        self._schedule()
        slices, size = self._slices, self.passage_bank.size
        if self.older.shape != (slices, size):
            like = dict(dtype=self.older.dtype, device=self.older.device)
            # All three are there before one is replaced: memory may run out on the way.
            older = torch.full((slices, size), -torch.inf, **like)
            newer, positives = torch.full((size,), -torch.inf, **like), torch.zeros(size, **like)
            self.older, self.newer, self.positives, self.clock = older, newer, positives, 0

    def _fill(self, slot: int, scores: Tensor) -> None:
        """Write `older` of the rows from this slot on, whose scores with all columns, the oldest first, are given: (rows, columns)."""
        rows, count = scores.shape
        steps = self._even_steps() if count == self.older.shape[1] else 0
        if steps:  # columns leave in equal parts
            parts = scores.reshape(rows, steps, -1)
        else:
            cuts = self._cuts(count)
            ends = np.append(
                cuts[1:], count
            )  # columns from `cuts` to `ends` leave between one micro-batch and the next
            places = cuts[:, None] + np.arange((ends - cuts).max())
            places[places >= ends[:, None]] = count  # a column of nothing
            parts = torch.nn.functional.pad(scores, (0, 1), value=-torch.inf)[
                :, torch.from_numpy(places).to(scores.device)
            ]
        sums = parts.logsumexp(2).flip(1).logcumsumexp(1).flip(1).T  # (micro-batches to come, rows)
        for time, then in _ring(self.clock, len(sums), len(self.older)):
            for slots, part in _ring(slot, rows, self.older.shape[1]):
                self.older[time, slots] = sums[then, part]

    def _catch_up(self) -> None:
        """Make the table anew where the banks are not as it left them."""
        versions = self._now()
        if versions == self._versions or not self.query_bank.size:
            return
        self._versions = None  # until the table is whole: memory may run out on the way
        self._make_room()
        self.clock = 0
        self.newer.fill_(-torch.inf)
        rows, size = len(self.query_bank), self.passage_bank.size
        order = self.query_bank.order()
        for start in range(0, rows, 1024):
            mine = order[start : start + 1024]
            scores = (
                self.query_bank.vectors[mine] / self.temperature
            ) @ self.passage_bank.vectors.T
            self.positives[mine] = scores[torch.arange(len(mine)), mine]
            hard = (self.query_bank.vectors[mine] / self.temperature) @ self.hard_bank.vectors.T
            if self.keys is not None:
                ids = self.passage_bank.ids
                same = self._same(ids[mine], ids)
                same[torch.arange(len(mine)), mine] = False
                scores.masked_fill_(same.to(scores.device), -torch.inf)
                hard.masked_fill_(
                    (self.keys[1][ids[mine]][:, None] == self.keys[2][self.hard_bank.ids]).to(
                        hard.device
                    ),
                    -torch.inf,
                )
            scores = _together(scores, hard) if len(self.hard_bank) else scores
            self._fill((self.query_bank.write_ptr - rows + start) % size, scores[:, order])
        self._versions = versions

    # --- taking back, saving -------------------------------------------------------------------------------------------

    def snapshot(self, count: int) -> tuple:
        """What `restore` needs to take back the entering of up to `count` pairs in all."""
        current = self._versions is not None and self._versions == self._now()
        slots = (
            [
                slots
                for slots, _ in _ring(
                    self.passage_bank.write_ptr,
                    min(count, self.passage_bank.size),
                    self.passage_bank.size,
                )
            ]
            if current
            else []
        )
        return (
            current,
            self.clock,
            self._place,
            self._sizes,
            self.newer.clone(),
            self.positives.clone(),
            [(s, self.older[:, s].clone()) for s in slots],
        )

    def restore(self, snapshot: tuple) -> None:
        """Be again as at the mark; after the banks are."""
        current, self.clock, self._place, sizes, newer, positives, slices = snapshot
        if sizes is not self._sizes:  # another rhythm was met on the way
            self._sizes, self._written = sizes, None
        fits = (
            current
            and newer.shape == self.newer.shape
            and all(part.shape[0] == len(self.older) for _, part in slices)
        )
        self._versions = None
        if fits:
            self.newer, self.positives = newer, positives
            for slots, part in slices:
                self.older[:, slots] = part
            self._versions = self._now()

    def state_dict(self) -> dict[str, Tensor]:
        """All of it as tensors; empty where it would be made anew from the banks anyway."""
        if self._versions != self._now() or not self.query_bank.size:
            return {}
        return {
            "older": self.older,
            "newer": self.newer,
            "positives": self.positives,
            "clock": torch.tensor(self.clock),
            "sizes": torch.from_numpy(np.asarray(self._sizes)),
            "place": torch.tensor(self._place),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Be as the table that gave this state; after the banks are."""
        if not state:
            return
        self.older, self.newer, self.positives = (
            state[name].to(self.older).clone() for name in ("older", "newer", "positives")
        )
        self.clock, self._place, self._sizes = (
            int(state["clock"]),
            int(state["place"]),
            state["sizes"].cpu().numpy(),
        )
        self._written, self._versions = None, self._now()


def _check_banks(query_bank: MemoryBank, passage_bank: MemoryBank, hard_bank: MemoryBank) -> None:
    queries, passages, hard = query_bank.size, passage_bank.size, hard_bank.size
    in_step = queries in (0, passages) and hard % max(1, passages) == 0
    if not in_step or not query_bank.dim == passage_bank.dim == hard_bank.dim:
        raise ValueError(
            f"the banks have {queries}, {passages} and {hard} slots for queries, "
            "passages and hard negatives: expected 0 or as many queries as passages, "
            "the same number of hard negatives for each passage, and vectors of one "
            "length."
        )


def _check_ids(name: str, ids: Tensor | None, count: int) -> None:
    if ids is not None and ids.shape != (count,):
        raise ValueError(f"{name} is {tuple(ids.shape)}: expected ({count},), one for each vector.")


def joint_keys(query_keys: Tensor, passage_keys: Tensor) -> Tensor | None:
    """One number per pair that is equal just where two pairs share their query or their passage; None where no such number exists.

    Pairs join queries to passages. Where every one of these joints has an end that no other joint has (so that no chain is
    longer than two), those that share an end share one end, and its number will do.
    """
    joints = torch.stack([query_keys, passage_keys]).unique(dim=1)
    of_query, of_passage = (
        torch.bincount(side, minlength=int(side.max()) + 1 if len(side) else 0) for side in joints
    )
    if not ((of_query[joints[0]] == 1) | (of_passage[joints[1]] == 1)).all():
        return None
    return torch.where(of_passage[passage_keys] > 1, passage_keys, query_keys + len(of_passage))


def _together(scores: Tensor, hard: Tensor) -> Tensor:
    """Log-sum-exp of each pair's column and its hard negatives' columns: (rows, n), (rows, n·h) -> (rows, n)."""
    each = hard.shape[1] // max(1, scores.shape[1])
    return torch.cat([scores[:, :, None], hard.reshape(*scores.shape, each)], 2).logsumexp(2)


def _ring(start: int, count: int, size: int) -> Iterator[tuple[slice, slice]]:
    """`count` places of a ring from `start` on, as one slice or two, with the slices of what goes there."""
    first = min(count, size - start)
    yield slice(start, start + first), slice(0, first)
    if count > first:
        yield slice(0, count - first), slice(first, count)

"""The softmax over batch and banks without the bank × bank block.

Loss and gradients are those of the full similarity matrix (`core/loss.py`).

Vectors in a bank do not change while they are there, so neither do the scores among them. All that
a banked row needs of them is one number: the log-sum-exp of its scores over the columns that are in
the bank now. Per micro-batch, O(N·d) for the scores of the B local vectors with the bank instead of
O(N²·d) for all of them:

    local row      all its scores: they are new
    banked row i   logaddexp(what the bank gives it, its scores with the local columns), minus its
                   positive's score

What the bank gives row i is again two numbers, because columns leave the bank from the old end and
come in at the new one:

    older[t, i]    over the columns that came with row i or before it and are still there at
                   micro-batch t: written once, for all t that row i will live to see, as sums from
                   the new end (nothing is ever subtracted)
    newer[i]       over the columns that have come since: each micro-batch adds its own

Both are filled from scores that the loss has computed anyway. The table has N rows' worth of N / B
micro-batches: 4·N²/B bytes in float32. Notebook 08 derives it in four pictures. Where that is more
than the banks themselves (and than 64 MiB), `banked_sums.py` takes its place, which keeps fewer
sums and computes some scores twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from contaccum_lite.core.bank import MemoryBank
from contaccum_lite.core.cursor import micro_batch_sizes
from contaccum_lite.core.gradients import Embeddings
from contaccum_lite.core.hooks import Extension
from contaccum_lite.core.loss import LossAndGradients
from contaccum_lite.core.objectives import decoupled_loss
from contaccum_lite.core.presets import PRESETS
from contaccum_lite.core.shapes import check_temperature, check_vectors, num_vectors
from contaccum_lite.scale.banked_sums import BankedSums, SumsSnapshot, block_strides, ring

SMALL_TABLE = 2**26  # bytes up to which the table may be larger than the banks
_REFILL_ROWS = 1024  # banked rows compared at a time where the table is filled from the banks


def attach_incremental_softmax(run) -> None:
    """The incremental softmax for a run, which uses it where its settings ask for it."""
    run.learner.extensions.append(IncrementalLoss(run))


class IncrementalLoss(Extension):
    """A run's loss against its banks by an `IncrementalSoftmax`, wherever that is exact."""

    name = "softmax"

    def __init__(self, run):
        self.learner, self.sampler = run.learner, run.sampler
        keys = run.learner.keys if run.settings.mask_duplicates else None
        decoupled = run.settings.objective == "decoupled"
        banks, temperature = run.learner.banks, run.settings.temperature
        self.table = IncrementalSoftmax(*banks, temperature, keys, decoupled)
        self.schedule = Schedule(run.sampler)
        self._snapshot = None

    @property
    def why_not(self) -> str:
        """Why the full similarity matrix is computed after all; nothing where it is not."""
        settings = self.learner.settings
        if settings.similarity != "incremental":
            return f"similarity is {settings.similarity!r}"
        if not settings.has_bank:
            return "no bank whose scores could be kept"
        if settings.momentum:
            return "the banks hold vectors of the slow towers, not those that were compared"
        if settings.corrector != "identity":
            return "the banks' vectors are corrected anew each time they are read"
        if settings.refresh_banks:
            return "the banks' texts are encoded again before each update"
        if not settings.row_softmax:
            return "the loss is another than one softmax over each query's own row"
        if PRESETS[settings.method]["algorithm"] != "accumulate":
            return "GradCache compares all of an update's vectors at once"
        if self.learner.gradient_hook is not None:
            return "an intervention (`gradient_hook`) looks at it"
        return ""

    @property
    def keeps_scores(self) -> bool:
        return not self.why_not

    @property
    def note(self) -> str:
        if self.learner.settings.similarity != "incremental" or not self.why_not:
            return ""
        return f"The whole similarity matrix is computed: {self.why_not}."

    def begin_update(self, batches: list, step: int) -> list:
        if self.keeps_scores:
            self.table.expect(*self.schedule.at(step))
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


class Schedule:
    """How large the micro-batches to come are, as `IncrementalSoftmax.expect` wants to know it."""

    def __init__(self, sampler):
        self.sampler = sampler
        self._sizes, self._of = np.zeros(0, dtype=np.int64), None  # what they were made of

    def at(self, update: int) -> tuple[np.ndarray, int]:
        """(the pairs in each micro-batch of an epoch, how many of these are done).

        In the epoch in which N_local or K has changed, what is left of it and a whole one.
        """
        sampler = self.sampler
        epoch, position = sampler.locate(update)
        start = sampler.cursor.start if epoch == sampler.cursor.epoch else 0
        micro_batch = sampler.settings.local_batch * sampler.world_size
        numbers = len(sampler.rows), micro_batch, sampler.batch_size
        if self._of != (*numbers, start):
            whole = micro_batch_sizes(*numbers)
            rest = micro_batch_sizes(*numbers, start)
            self._sizes = np.concatenate([rest, whole]) if start else whole
            self._of = (*numbers, start)
        updates = (position - start) // sampler.batch_size
        return self._sizes, updates * sampler.settings.accumulation_steps


class _Masks(NamedTuple):
    """Scores to leave out, because the two vectors are copies; None where there are none."""

    passages: Tensor | None = None  # (B, B + N): of the local queries with all passages
    hard: Tensor | None = None  # (B, hard + banked hard): with all hard negatives
    banked_rows: Tensor | None = None  # (hard, N): of local hard negatives with the banked queries


class _BankedRows(NamedTuple):
    """What the local columns give to the rows of the query bank."""

    loss: Tensor  # (): the sum over the rows
    softmax: Tensor  # (B + hard, N): a banked row to a column
    entering: Tensor  # (N,): log-sum-exp over the columns that will enter the banks


class _Compared(NamedTuple):
    """A micro-batch as `contrast` compared it, for `enter`."""

    scores: Tensor  # (B, all columns)
    local_batch: int
    banked_queries: int
    banked_passages: int
    hard: int
    entering: Tensor | None  # as in `_BankedRows`


class _Snapshot(NamedTuple):
    """What `restore` takes back."""

    current: bool  # whether the table fitted the banks
    clock: int
    position: int
    sizes: Sequence[int]
    newer: Tensor
    positives: Tensor
    slices: list[tuple[slice, Tensor]]  # of `older`, where rows will be written
    sums: SumsSnapshot | None  # of `sums`, which takes the place of `older` and `newer`


class IncrementalSoftmax:
    """Loss and gradients of a micro-batch against its banks.

    The cost grows with N_memory and not with its square.

    query_bank, passage_bank, hard_bank: filled in step by their owner, who calls `contrast`, then
    `enter`, then writes the banks, then `settle`. A passage bank alone (pre-batch) needs no table:
    its rows are local. decoupled: leave each row's positive out of its sums. keys: (of each
    training pair's query, of its passage, of each passage), by which duplicates are known, as in
    `loss.duplicate_mask`; None masks nothing. Banks that were changed by anyone else (resized,
    loaded, restored) are noticed, and the table is filled from them again by one full product.
    """

    def __init__(
        self,
        query_bank: MemoryBank,
        passage_bank: MemoryBank,
        hard_bank: MemoryBank,
        temperature: float = 1.0,
        keys: tuple[Tensor, Tensor, Tensor] | None = None,
        decoupled: bool = False,
    ):
        check_temperature(temperature)
        _check_banks(query_bank, passage_bank, hard_bank)
        self.query_bank, self.passage_bank, self.hard_bank = query_bank, passage_bank, hard_bank
        self.temperature, self.keys, self.decoupled = temperature, keys, decoupled
        self._joint = joint_keys(*keys[:2]) if keys is not None else None
        self._joint_count = 0
        if self._joint is not None and len(self._joint):
            self._joint_count = int(self._joint.max()) + 1
        self._sizes = np.array([1])  # the micro-batches of an epoch
        self._position = 0  # how many of them are done
        self._written = None  # pairs written before each of them, over epochs
        self._gone = None  # for each of them, when all that the bank holds at it has left
        self._size_changes = None  # how often the size has changed up to each
        self._slices = 0  # slices of `older`
        self._size = None  # the size of the bank that this is for
        self._versions = None  # of the banks that the table fits; None where it fits none
        self._compared = None
        self.clock = 0  # micro-batches, modulo the slices of `older`
        like = self._like(query_bank.vectors)
        self.older = torch.empty(1, 0, **like)
        self.newer = torch.empty(0, **like)
        self.positives = torch.empty(0, **like)
        self.sums: BankedSums | None = None  # in place of `older` and `newer` for a large bank

    @staticmethod
    def _like(tensor: Tensor) -> dict:
        return {"dtype": tensor.dtype, "device": tensor.device}

    @property
    def bytes(self) -> int:
        """Memory of the table: about N² / B numbers, and at most the banks' for a large bank."""
        table = sum(t.numel() * t.element_size() for t in (self.older, self.newer, self.positives))
        return table + (self.sums.bytes if self.sums is not None else 0)

    def expect(self, sizes: Sequence[int], place: int = 0) -> None:
        """Say how large the micro-batches of an epoch are, and how many of them are done.

        From these the table knows when each column will leave.
        """
        same_sizes = sizes is self._sizes or np.array_equal(sizes, self._sizes)
        if place != self._position or not same_sizes:
            if np.ndim(sizes) != 1 or not 0 <= place < len(sizes) or np.min(sizes) < 1:
                raise ValueError(
                    f"expect got sizes {np.asarray(sizes)!s} and place {place}: "
                    "expected the pairs of each micro-batch of an epoch, 1 or more, "
                    "and a place among them."
                )
            self._position = place
            self._written, self._versions = None, None
        self._sizes = sizes

    # --- loss and gradients ----------------------------------------------------------------------

    @torch.no_grad()
    def contrast(
        self,
        queries: Tensor,
        passages: Tensor,
        hard: Tensor | None = None,
        pair_ids: Tensor | None = None,
        hard_ids: Tensor | None = None,
    ) -> LossAndGradients:
        """Loss and gradients of these (B, d) vectors with the banks as they are.

        As `loss.info_nce_with_gradients`; `scores` and `grad_scores` are not computed.
        """
        self._check_keys(hard, pair_ids, hard_ids)
        self._check(queries, passages, hard, pair_ids, hard_ids)
        self._catch_up()
        columns = self._columns(passages, hard)
        masks = self._masks(pair_ids, hard_ids)
        num_hard = num_vectors(hard)

        scores, loss, weights = self._local_rows(queries, columns, masks)
        gradients = _local_row_gradients(weights, queries, columns, num_hard)
        entering = None
        if len(self.query_bank):
            local_columns = torch.cat([passages, hard]) if num_hard else passages
            banked_rows = self._banked_rows(local_columns, len(queries), masks)
            loss = loss + banked_rows.loss
            self._add_banked_row_gradients(gradients, banked_rows.softmax)
            entering = banked_rows.entering

        banked_queries, banked_passages = len(self.query_bank), len(self.passage_bank)
        self._compared = _Compared(
            scores, len(queries), banked_queries, banked_passages, num_hard, entering
        )
        rows = len(queries) + banked_queries
        for gradient in gradients:
            gradient.mul_(1 / (rows * self.temperature))
        grad_queries, grad_passages, *grad_hard = gradients
        return LossAndGradients(
            loss / rows,
            grad_queries,
            grad_passages,
            grad_hard[0] if grad_hard else None,
            None,
            None,
        )

    def _check_keys(
        self, hard: Tensor | None, pair_ids: Tensor | None, hard_ids: Tensor | None
    ) -> None:
        """Refuse vectors whose pairs are not named where duplicates are masked."""
        if self.keys is None:
            return
        if pair_ids is None or (hard is not None and hard_ids is None):
            raise ValueError(
                "keys were given, by which duplicates are masked, but not whose vectors these "
                "are: give pair_ids (B,), and hard_ids where there are hard negatives; or make "
                "it without keys."
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
        count, hard_count = len(queries), num_vectors(hard)
        if count != len(passages) or not count:
            raise ValueError(
                f"{count} queries and {len(passages)} passages: expected one passage "
                "per query, and at least one."
            )
        self._check_counts(count, hard_count)
        _check_ids("pair_ids", pair_ids, count)
        _check_ids("hard_ids", hard_ids, hard_count)

    def _check_counts(self, count: int, hard_count: int) -> None:
        """Refuse what the banks cannot take in, and banks that are not filled in step."""
        hard_per_passage = self.hard_bank.size // max(1, self.passage_bank.size)
        if hard_per_passage and hard_count != hard_per_passage * count:
            raise ValueError(
                f"{hard_count} hard negatives for {count} queries: expected "
                f"{hard_per_passage * count}, for the bank keeps {hard_per_passage} with each "
                "passage."
            )
        past_queries, past_passages = len(self.query_bank), len(self.passage_bank)
        if past_queries not in (0, past_passages):
            raise ValueError(
                f"the query bank holds {past_queries} vectors and the passage bank "
                f"{past_passages}: write both in step, or clear the query bank."
            )

    def _columns(self, passages: Tensor, hard: Tensor | None) -> list[Tensor]:
        """Local and banked passages, then the hard negatives where there are any."""
        columns = [passages, self.passage_bank.vectors]
        for hard_negatives in (hard, self.hard_bank.vectors):
            if num_vectors(hard_negatives):
                columns.append(hard_negatives)
        return columns

    def _local_rows(
        self, queries: Tensor, columns: list[Tensor], masks: _Masks
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The local rows' scores with all columns, the sum of their losses, and ∂loss/∂scores."""
        queries = queries / self.temperature
        scores = torch.cat([queries @ vectors.T for vectors in columns], 1)  # (B, all columns)
        passages = len(columns[0]) + len(columns[1])
        if masks.passages is not None:
            scores[:, :passages].masked_fill_(masks.passages, -torch.inf)
        if masks.hard is not None:
            scores[:, passages:].masked_fill_(masks.hard, -torch.inf)
        if self.decoupled:
            loss, weights = decoupled_loss(scores)
            return scores, loss * len(scores), weights.mul_(len(scores))
        highest = scores.amax(1, keepdim=True)
        weights = (scores - highest).exp_()
        total = weights.sum(1, keepdim=True)
        losses = (total.log() + highest).squeeze(1).sub_(scores.diagonal())
        weights /= total
        weights.diagonal().sub_(1)  # softmax less 1 at the positive
        return scores, losses.sum(), weights

    def _banked_rows(self, local_columns: Tensor, local_batch: int, masks: _Masks) -> _BankedRows:
        """The banked rows with the local columns: the passages, then their hard negatives."""
        rows = len(self.query_bank)
        scores = (local_columns / self.temperature) @ self.query_bank.vectors.T
        if masks.passages is not None:
            scores[:local_batch].masked_fill_(masks.passages[:, local_batch:], -torch.inf)
        if masks.banked_rows is not None:
            scores[local_batch:].masked_fill_(masks.banked_rows, -torch.inf)
        only_passages_enter = len(local_columns) > local_batch and not len(self.hard_bank)
        entering = scores[:local_batch].logsumexp(0) if only_passages_enter else None
        lowest = torch.finfo(scores.dtype).min  # where a row's scores are all left out
        highest = scores.amax(0).clamp_(min=lowest)
        softmax = scores.sub_(highest).exp_()
        local = softmax.sum(0).log_().add_(highest)  # log-sum-exp over the local columns
        banked = self._banked_totals(rows)
        total = torch.logaddexp(local, banked)
        if self.decoupled:  # a row without a negative adds nothing
            has_negative = total > -torch.inf
            losses = torch.where(has_negative, total - self.positives[:rows], 0.0)
            total = total.clamp_(min=lowest)
        else:
            losses = total - self.positives[:rows]
        softmax *= (highest - total).exp_()
        loss = losses.sum()
        return _BankedRows(loss, softmax, local if entering is None else entering)

    def _banked_totals(self, rows: int) -> Tensor:
        """(rows,): log-sum-exp of each banked row over the banked columns."""
        if self.sums is not None:
            return self.sums.totals()
        return torch.logaddexp(self.newer[:rows], self.older[self.clock, :rows])

    def _add_banked_row_gradients(self, gradients: list[Tensor], softmax: Tensor) -> None:
        """Add what the banked rows give to the passages, and to the hard negatives if any."""
        _, grad_passages, *grad_hard = gradients
        local_batch = len(grad_passages)
        grad_passages.addmm_(softmax[:local_batch], self.query_bank.vectors)
        if grad_hard:
            grad_hard[0].addmm_(softmax[local_batch:], self.query_bank.vectors)

    # --- duplicates ------------------------------------------------------------------------------

    def _masks(self, pair_ids: Tensor | None, hard_ids: Tensor | None) -> _Masks:
        """Where the local pairs meet their own stale selves, or copies of their passages."""
        if self.keys is None:
            return _Masks()
        if hard_ids is None:
            hard_ids = torch.zeros(0, dtype=torch.int64)
        _, passage_keys, text_keys = self.keys
        device = self.newer.device
        passages = hard = banked_rows = None
        if not self._all_distinct(pair_ids):
            passages = self._same_pair(pair_ids, torch.cat([pair_ids, self.passage_bank.ids]))
            passages = passages.fill_diagonal_(False).to(device)
        if len(hard_ids) or len(self.hard_bank):
            all_hard = torch.cat([hard_ids, self.hard_bank.ids])
            hard = passage_keys[pair_ids][:, None] == text_keys[all_hard]
            hard = hard.to(device)
        if len(hard_ids) and len(self.query_bank):
            banked_rows = text_keys[hard_ids][:, None] == passage_keys[self.query_bank.ids]
            banked_rows = banked_rows.to(device)
        return _Masks(passages, hard, banked_rows)

    def _all_distinct(self, pair_ids: Tensor) -> bool:
        """Whether no local pair shares its query or passage with another one, local or banked.

        Nearly always so, and quick to see.
        """
        if self._joint is None:
            return False
        keys = self._joint.numpy()
        is_banked = np.zeros(self._joint_count, dtype=bool)
        is_banked[keys[self.passage_bank.ids.numpy()]] = True
        local = keys[pair_ids.numpy()]
        return not is_banked[local].any() and len(set(local.tolist())) == len(local)

    def _same_pair(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(rows, columns): whether two pairs share their query or their passage."""
        if self._joint is not None:
            return self._joint[rows][:, None] == self._joint[columns]
        query_keys, passage_keys, _ = self.keys
        same_query = query_keys[rows][:, None] == query_keys[columns]
        return torch.logical_or(same_query, passage_keys[rows][:, None] == passage_keys[columns])

    # --- the table -------------------------------------------------------------------------------

    @torch.no_grad()
    def enter(self) -> None:
        """Take the last `contrast`'s micro-batch into the table, before it enters the banks."""
        if self._compared is None:
            raise RuntimeError(
                "enter() takes in the micro-batch of the last contrast(), and there is none: "
                "call contrast first, and enter once after it."
            )
        batch, self._compared = self._compared, None
        if not self.query_bank.size or batch.banked_queries != batch.banked_passages:
            return  # no banked rows, or none any more
        self._advance(batch.local_batch)
        if self._versions is None and batch.banked_passages:
            return  # the table is for micro-batches of other sizes: filled again next time
        self._make_room()
        self._write_batch(batch)
        self._versions = ()

    def _advance(self, local_batch: int) -> None:
        """One micro-batch more of the epoch is done; one of another size begins another epoch."""
        if local_batch != self._sizes[self._position] and self.sums is None:
            self.expect(np.array([local_batch]))
        self._position = (self._position + 1) % len(self._sizes)

    def _write_batch(self, batch: _Compared) -> None:
        """Add the new columns to the rows that are there, and write the new rows."""
        slot, size = self.passage_bank.write_ptr, self.passage_bank.size
        b, n = batch.local_batch, batch.banked_passages
        new = min(b, size)
        if batch.entering is not None and self.sums is None:
            torch.logaddexp(self.newer[:n], batch.entering, out=self.newer[:n])
        banked, local = self._pair_scores(batch)
        first = slot if n == size else 0
        stay = min(n + new, size) - new
        oldest_first = torch.cat([banked[:, first:], banked[:, :first]], 1)[:, n - stay :]
        scores = torch.cat([oldest_first, local[:, b - new :]], 1)[b - new :]
        positives = batch.scores.diagonal()[b - new :]
        for slots, rows in ring(slot, new, size):
            self.positives[slots] = positives[rows]
        if self.sums is not None:
            self.sums.enter(scores, batch.entering)
            return
        self.clock = (self.clock + 1) % len(self.older)
        self._fill(slot, scores)
        for slots, _ in ring(slot, new, size):
            self.newer[slots] = -torch.inf

    def _pair_scores(self, batch: _Compared) -> tuple[Tensor, Tensor]:
        """Scores with the banked and with the local pairs' columns.

        A pair's column and those of its hard negatives come and go together.
        """
        b, n, hard = batch.local_batch, batch.banked_passages, batch.hard
        banked, local = batch.scores[:, b : b + n], batch.scores[:, :b]
        if self.decoupled:
            local = local.clone().fill_diagonal_(-torch.inf)
        if self.hard_bank.size:
            banked = _with_hard_negatives(banked, batch.scores[:, b + n + hard :])
            local = _with_hard_negatives(local, batch.scores[:, b + n : b + n + hard])
        return banked, local

    def settle(self) -> None:
        """The banks have been written as `enter` was told: they hold what the table holds."""
        if self._versions is not None:
            self._versions = self._now()

    def _cuts(self, count: int) -> np.ndarray:
        """How many of the `count` oldest columns will have left at each micro-batch from now on.

        Until all have left.
        """
        ahead = self._schedule()[self._position : self._gone[self._position]]
        return np.maximum(0, ahead + (count - self.passage_bank.size - ahead[0]))

    def _even_steps(self) -> int:
        """In how many micro-batches all that a full bank holds will have left.

        0 where they are not equal, or do not end with it.
        """
        written, position = self._schedule(), self._position
        steps, size = self._gone[position] - position, self.older.shape[1]
        even = written[position + 1] - written[position]
        changes = self._size_changes
        if steps * even == size and changes[position] == changes[position + steps - 1]:
            return int(steps)
        return 0

    def _now(self) -> tuple:
        """What is different once a bank has been written, cleared, restored, resized or loaded."""
        banks = self.query_bank, self.passage_bank, self.hard_bank
        return tuple((bank.version, len(bank)) for bank in banks)

    def _schedule(self) -> np.ndarray:
        """Pairs written before each micro-batch, from the start of an epoch.

        As far as the bank has been filled with new pairs after the epoch's end.
        """
        size, steps = self.passage_bank.size, len(self._sizes)
        if self._written is None or self._size != size:
            epochs = 1 + -(-size // int(np.sum(self._sizes))) + 1
            self._written = np.concatenate([[0], np.cumsum(np.tile(self._sizes, epochs))])
            self._gone = np.searchsorted(self._written, self._written[:steps] + size)
            sizes = np.diff(self._written)
            self._size_changes = np.cumsum(np.diff(sizes, prepend=self._written[1]) != 0)
            self._slices = int((self._gone - np.arange(steps)).max()) + 1
            self._size = size  # the last, for memory may run out before
        return self._written

    def _make_room(self) -> None:
        """A table of this bank's size: a slice for each micro-batch that a row can live to see.

        For a large bank, `sums`.
        """
        self._schedule()
        slices, size = self._slices, self.passage_bank.size
        like = self._like(self.older)
        if self._is_large(slices):
            if self.sums is None or self.sums.size != size:
                strides = block_strides(size, self._bank_bytes() // (size * self._item_size))
                sums = BankedSums(size, self._banked_scores, strides, **like)
                self.positives = torch.zeros(size, **like)
                self.older, self.newer = torch.empty(1, 0, **like), torch.empty(0, **like)
                self.sums, self.clock = sums, 0
        elif self.older.shape != (slices, size) or self.sums is not None:
            # All three are there before one is replaced: memory may run out on the way.
            older = torch.full((slices, size), -torch.inf, **like)
            newer, positives = torch.full((size,), -torch.inf, **like), torch.zeros(size, **like)
            self.older, self.newer, self.positives, self.clock = older, newer, positives, 0
            self.sums = None

    @property
    def _item_size(self) -> int:
        return self.older.element_size()

    def _bank_bytes(self) -> int:
        banks = self.query_bank, self.passage_bank, self.hard_bank
        return sum(bank.size * bank.dim for bank in banks) * self._item_size

    def _is_large(self, slices: int) -> bool:
        """Whether the table would be larger than the banks, and not small."""
        table = slices * self.passage_bank.size * self._item_size
        return table > max(SMALL_TABLE, self._bank_bytes())

    def _fill(self, slot: int, scores: Tensor) -> None:
        """Write `older` of the rows from this slot on.

        scores: (rows, columns), of these rows with all columns, the oldest first.
        """
        blocks = self._leaving_together(scores)
        sums = (
            blocks.logsumexp(2).flip(1).logcumsumexp(1).flip(1).T
        )  # (micro-batches to come, rows)
        for times, steps in ring(self.clock, len(sums), len(self.older)):
            for slots, rows in ring(slot, len(scores), self.older.shape[1]):
                self.older[times, slots] = sums[steps, rows]

    def _leaving_together(self, scores: Tensor) -> Tensor:
        """(rows, micro-batches, columns that leave between one micro-batch and the next)."""
        rows, count = scores.shape
        steps = self._even_steps() if count == self.older.shape[1] else 0
        if steps:
            return scores.reshape(rows, steps, -1)
        starts = self._cuts(count)
        ends = np.append(starts[1:], count)
        columns = starts[:, None] + np.arange((ends - starts).max())
        columns[columns >= ends[:, None]] = count  # a column of nothing
        padded = torch.nn.functional.pad(scores, (0, 1), value=-torch.inf)
        return padded[:, torch.from_numpy(columns).to(scores.device)]

    def _catch_up(self) -> None:
        """Fill the table again where the banks are not as it left them."""
        versions = self._now()
        if versions == self._versions or not self.query_bank.size:
            return
        self._versions = None  # until the table is complete: memory may run out on the way
        self._make_room()
        rows = len(self.query_bank)
        oldest = self.query_bank.write_ptr - rows
        if self.sums is not None:
            self._set_positives()
            self.sums.fill(oldest % self.passage_bank.size, rows)
            self._versions = versions
            return
        self.clock = 0
        self.newer.fill_(-torch.inf)
        order = self.query_bank.order()
        for start in range(0, rows, _REFILL_ROWS):
            scores = self._refill_scores(order[start : start + _REFILL_ROWS])
            self._fill((oldest + start) % self.passage_bank.size, scores[:, order])
        self._versions = versions

    def _refill_scores(self, rows: Tensor) -> Tensor:
        """Scores of these banked rows with all banked pairs' columns; `positives` is written."""
        queries = self.query_bank.vectors[rows] / self.temperature
        scores = queries @ self.passage_bank.vectors.T
        diagonal = torch.arange(len(rows)), rows
        self.positives[rows] = scores[diagonal]
        if self.decoupled:
            scores[diagonal] = -torch.inf
        hard = queries @ self.hard_bank.vectors.T
        if self.keys is not None:
            _, passage_keys, text_keys = self.keys
            ids = self.passage_bank.ids
            same = self._same_pair(ids[rows], ids)
            same[diagonal] = False
            scores.masked_fill_(same.to(scores.device), -torch.inf)
            same_hard = passage_keys[ids[rows]][:, None] == text_keys[self.hard_bank.ids]
            hard.masked_fill_(same_hard.to(hard.device), -torch.inf)
        return _with_hard_negatives(scores, hard) if len(self.hard_bank) else scores

    def _set_positives(self) -> None:
        """The banked rows' scores with their own passages."""
        rows = len(self.query_bank)
        products = (self.query_bank.vectors / self.temperature) * self.passage_bank.vectors[:rows]
        self.positives[:rows] = products.sum(1)

    def _banked_scores(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Scores of the queries in these slots with the pairs in these slots, for `sums`."""
        queries = self.query_bank.vectors[rows] / self.temperature
        scores = queries @ self.passage_bank.vectors[columns].T
        if self.decoupled:
            scores.masked_fill_(rows[:, None] == columns, -torch.inf)
        each = self.hard_bank.size // self.passage_bank.size
        hard_slots = (columns[:, None] * each + torch.arange(each, device=columns.device)).flatten()
        hard = queries @ self.hard_bank.vectors[hard_slots].T
        if self.keys is not None:
            _, passage_keys, text_keys = self.keys
            row_ids = self.passage_bank.ids[rows.cpu()]
            column_ids = self.passage_bank.ids[columns.cpu()]
            same = self._same_pair(row_ids, column_ids)
            same &= (rows[:, None] != columns).cpu()
            scores.masked_fill_(same.to(scores.device), -torch.inf)
            hard_keys = text_keys[self.hard_bank.ids[hard_slots.cpu()]]
            same_hard = passage_keys[row_ids][:, None] == hard_keys
            hard.masked_fill_(same_hard.to(hard.device), -torch.inf)
        return _with_hard_negatives(scores, hard) if each else scores

    # --- taking back, saving ---------------------------------------------------------------------

    def snapshot(self, count: int) -> _Snapshot:
        """What `restore` needs to take back the entering of up to `count` pairs in all."""
        current = self._versions is not None and self._versions == self._now()
        slices = []
        sums = self.sums.snapshot(count) if current and self.sums is not None else None
        if current and self.sums is None:
            bank = self.passage_bank
            for slots, _ in ring(bank.write_ptr, min(count, bank.size), bank.size):
                slices.append((slots, self.older[:, slots].clone()))
        return _Snapshot(
            current,
            self.clock,
            self._position,
            self._sizes,
            self.newer.clone(),
            self.positives.clone(),
            slices,
            sums,
        )

    def restore(self, snapshot: _Snapshot) -> None:
        """Return to the snapshot; the banks are restored before."""
        self.clock, self._position = snapshot.clock, snapshot.position
        if snapshot.sizes is not self._sizes:  # micro-batches of other sizes came on the way
            self._sizes, self._written = snapshot.sizes, None
        slices = snapshot.slices
        same_shape = snapshot.newer.shape == self.newer.shape
        same_steps = all(len(older) == len(self.older) for _, older in slices)
        same_way = (snapshot.sums is None) == (self.sums is None)
        self._versions = None
        if snapshot.current and same_shape and same_steps and same_way:
            if self.sums is not None:
                self.sums.restore(snapshot.sums)
            self.newer, self.positives = snapshot.newer, snapshot.positives
            for slots, older in slices:
                self.older[:, slots] = older
            self._versions = self._now()

    def state_dict(self) -> dict[str, Tensor]:
        """All of it as tensors; empty where it would be filled from the banks anyway."""
        if self._versions != self._now() or not self.query_bank.size:
            return {}
        if self.sums is not None:
            return {
                "positives": self.positives,
                "sizes": torch.from_numpy(np.asarray(self._sizes)),
                "place": torch.tensor(self._position),
                **{f"sums.{name}": value for name, value in self.sums.state_dict().items()},
            }
        return {
            "older": self.older,
            "newer": self.newer,
            "positives": self.positives,
            "clock": torch.tensor(self.clock),
            "sizes": torch.from_numpy(np.asarray(self._sizes)),
            "place": torch.tensor(self._position),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue as the table that gave this state; the banks are loaded before."""
        if not state:
            return
        self._sizes, self._position = state["sizes"].cpu().numpy(), int(state["place"])
        self._written = None
        if self._is_large(self._slices_of_schedule()):
            self._load_sums(state)
            return
        if "older" not in state:
            return  # of a larger table: filled from the banks
        self.older, self.newer, self.positives = (
            state[name].to(self.older).clone() for name in ("older", "newer", "positives")
        )
        self.clock, self.sums, self._versions = int(state["clock"]), None, self._now()

    def _slices_of_schedule(self) -> int:
        self._schedule()
        return self._slices

    def _load_sums(self, state: dict[str, Tensor]) -> None:
        """Continue from a state of `sums`; a full table is filled again from the banks."""
        self._make_room()
        names = [name for name in state if name.startswith("sums.")]
        if self.sums.load_state_dict({name[5:]: state[name] for name in names}):
            self.positives = state["positives"].to(self.positives).clone()
            self._versions = self._now()


def _local_row_gradients(
    weights: Tensor, queries: Tensor, columns: list[Tensor], num_hard: int
) -> list[Tensor]:
    """What the local rows give to the queries, the passages, and the hard negatives if any.

    weights: ∂loss/∂scores. columns: passages, banked passages, then the hard negatives.
    """
    blocks = weights.split([len(vectors) for vectors in columns], 1)
    grad_queries = blocks[0] @ columns[0]
    for block, vectors in zip(blocks[1:], columns[1:]):
        grad_queries.addmm_(block, vectors)
    gradients = [grad_queries, blocks[0].T @ queries]
    if num_hard:
        gradients.append(blocks[2].T @ queries)
    return gradients


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
    """One number per pair, equal just where two pairs share their query or their passage.

    None where no such number exists. Pairs join queries to passages. Where every one of these
    joints has an end that no other joint has (so that no chain is longer than two), those that
    share an end share one end, and its number will do.
    """
    joints = torch.stack([query_keys, passage_keys]).unique(dim=1)
    of_query, of_passage = (
        torch.bincount(side, minlength=int(side.max()) + 1 if len(side) else 0) for side in joints
    )
    if not ((of_query[joints[0]] == 1) | (of_passage[joints[1]] == 1)).all():
        return None
    return torch.where(of_passage[passage_keys] > 1, passage_keys, query_keys + len(of_passage))


def _with_hard_negatives(scores: Tensor, hard: Tensor) -> Tensor:
    """Log-sum-exp of each pair's column and its hard negatives' columns.

    (rows, n), (rows, n·h) -> (rows, n).
    """
    each = hard.shape[1] // max(1, scores.shape[1])
    return torch.cat([scores[:, :, None], hard.reshape(*scores.shape, each)], 2).logsumexp(2)

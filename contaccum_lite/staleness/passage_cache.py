"""Stale vectors in training: a cache of all passages that proposes hard negatives.

The split that matters: a cache's stale vectors only *propose* negatives, which are encoded again
before they enter the loss (Monath et al., ICML 2024, and its ancestor, Lindgren et al. 2021). A
bank's stale vectors *are* terms of the loss (ContAccum).

Which targets the paper selects, how many, and when it refreshes we could not read. Top-k,
Gumbel-top-k and uniform selection are offered, and every way of refreshing here is ours.
Notebook 07.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contaccum_lite.core.gradients import Embeddings, MicroBatch
from contaccum_lite.core.hooks import Extension
from contaccum_lite.encoders.encode import encode_to_tensor, without_noise
from contaccum_lite.encoders.tokens import pad_and_concat
from contaccum_lite.staleness.correctors import OnlineCorrector
from contaccum_lite.staleness.passage_table import PassageTable


def attach_cache(run) -> None:
    """A cache for a run whose settings ask for one."""
    count, pairs = run.settings.cache_negatives, run.pairs
    if not count:
        return
    if len(run.sampler.tokenized_rows) < len(pairs.passages):
        raise ValueError(
            f"cache_negatives is {count}, and {pairs.name} has {len(pairs.passages)} passages: "
            "a cache of all of them is made for up to 100000."
        )
    run.learner.extensions.append(PassageCache(run))


class PassageCache(Extension):
    """Vectors of all passages, and the rules by which they are used and renewed.

    Before an update it renews what is due, fits its corrector and picks each micro-batch's
    negatives by the corrected scores. After a micro-batch it learns from what was encoded. The
    stored vectors stay as they were made: they are corrected when they are read.
    """

    name = "cache"

    def __init__(self, run):
        settings = run.settings
        self.learner = run.learner
        self.passage_tokens, self.query_tokens = run.sampler.passages, run.sampler.queries
        self.positives = torch.from_numpy(run.sampler.positives)
        by_age = settings.write_back or settings.cache_oldest > 0
        self.corrector = OnlineCorrector(settings, run.passage_tower.dim, by_age)
        self.table: PassageTable | None = None  # made when training reaches `bank_warmup`
        self.encoded_again = torch.zeros(0, dtype=torch.bool)  # since the cache was first made
        self.made_at = -1
        self._frozen_queries: Tensor | None = None  # with static_queries
        self._corrected: Tensor | None = None  # the table as it is used at this update
        self._snapshot = None

    def __bool__(self) -> bool:
        return self.table is not None

    @property
    def settings(self):
        return self.learner.settings

    @property
    def coverage(self) -> float:
        """The share of the corpus encoded again at least once since the cache was first made."""
        return float(self.encoded_again.float().mean()) if len(self.encoded_again) else 0.0

    def corrected(self, step: int) -> Tensor:
        """The cache's vectors as they are used at this update, (N, d)."""
        return self.corrector(self.table.vectors, self.table.ages(step))

    def encode_rows(self, rows: Tensor, purpose: str | None) -> Tensor:
        """These passages as the passage tower sees them now, (n, d); counted under this purpose."""
        if purpose:
            self.learner.encodes[purpose] += len(rows)
        tower = self.learner.passage_tower
        return encode_to_tensor(tower, self.passage_tokens, self.settings, rows.numpy())

    # --- before an update -------------------------------------------------------------------------

    def begin_update(self, batches: list[MicroBatch], step: int) -> list[MicroBatch]:
        self._take_snapshot()
        if step < self.settings.bank_warmup:
            return batches
        self.refresh(step)
        chosen = []
        for index, batch in enumerate(batches):
            chosen.append(self.with_negatives(batch, index, step))
        return chosen

    def refresh(self, step: int) -> None:
        """Renew what is due before this update, and fit the corrector."""
        settings = self.settings
        interval = settings.cache_refresh
        if not self or (interval and step - self.made_at >= interval):
            self._encode_all(step)
        elif settings.cache_oldest:
            self._encode_some(self.table.oldest(settings.cache_oldest), "refresh", step, True)
        if settings.probes:
            order = torch.randperm(len(self.table), generator=self._rng(step, 0))
            rows = order[: settings.probes]
            self._encode_some(rows, "probe", step, settings.write_back)
        self.corrector.fit()
        self._corrected = self.corrected(step)

    def _encode_all(self, step: int) -> None:
        """Encode every passage. What the corrector learned of the vectors before is forgotten."""
        count = len(self.passage_tokens)
        self.encoded_again = torch.full((count,), bool(self))
        self.table = PassageTable(self.encode_rows(torch.arange(count), "refresh"), step)
        self.made_at = step
        self.corrector.reset()
        if self.settings.static_queries and self._frozen_queries is None:
            tower = self.learner.query_tower
            self._frozen_queries = encode_to_tensor(tower, self.query_tokens, self.settings)

    def _encode_some(self, rows: Tensor, purpose: str, step: int, write: bool) -> None:
        self._observe(rows, self.encode_rows(rows, purpose), step, write)

    def _observe(self, rows: Tensor, fresh: Tensor, step: int, write: bool) -> None:
        """Learn from passages that were encoded again; write: put them into the table too."""
        ages = self.table.ages(step)[rows]
        self.corrector.observe(rows, self.table.vectors[rows], ages, fresh, step)
        self.encoded_again[rows] = True
        if write:
            self.table.write(rows, fresh, step)

    def with_negatives(self, batch: MicroBatch, index: int, step: int) -> MicroBatch:
        """The micro-batch with the passages that the cache proposes as its hard negatives.

        For each query `cache_negatives`, each passage once. Left out are copies of the queries' own
        passages.
        """
        if not self:
            return batch
        settings = self.settings
        scores = self._queries(batch) @ self._corrected.T / settings.temperature  # (B, N)
        keys = self.learner.keys
        is_positive = torch.isin(keys.text, keys.passage[batch.pair_ids])
        scores[:, is_positive.to(scores.device)] = -torch.inf
        rng = self._rng(step, index + 1)
        rows = select_rows(scores, settings.cache_negatives, settings.selection, rng)
        positives = batch.passage_tokens[: len(batch.pair_ids)]
        negatives = self.passage_tokens[rows.numpy()]
        tokens = pad_and_concat([positives, negatives], self.passage_tokens.pad)
        return MicroBatch(batch.pair_ids, rows, batch.query_tokens, tokens)

    def _queries(self, batch: MicroBatch) -> Tensor:
        """The vectors of these queries by which negatives are chosen, (B, d)."""
        if self._frozen_queries is not None:
            return self._frozen_queries[batch.pair_ids]
        tower = self.learner.query_tower
        with without_noise(tower), torch.no_grad():
            return self.learner.encode_tokens(tower, batch.query_tokens)

    def _rng(self, step: int, index: int) -> torch.Generator:
        seed = (self.settings.seed * 1_000_003 + step) * 4099 + index
        return torch.Generator().manual_seed(seed)

    # --- after a micro-batch ----------------------------------------------------------------------

    def before_enqueue(self, embeddings: Embeddings, batch: MicroBatch, step: int) -> Embeddings:
        """Learn from what a micro-batch has encoded, positives and negatives."""
        if self:
            rows = torch.cat([self.positives[batch.pair_ids], batch.hard_ids])
            fresh = embeddings.passages
            if embeddings.hard_negatives is not None:
                fresh = torch.cat([fresh, embeddings.hard_negatives])
            self._observe(rows, fresh.detach(), step, self.settings.write_back)
        return embeddings

    # --- undoing, saving --------------------------------------------------------------------------

    def _take_snapshot(self) -> None:
        written = self.table.start_undo_log() if self else None
        stored = self.table, self.made_at, self._frozen_queries, self.encoded_again.clone()
        self._snapshot = stored, written, self.corrector.snapshot()

    def abandon_update(self) -> None:
        if self._snapshot is None:
            return
        stored, written, corrector = self._snapshot
        self.table, self.made_at, self._frozen_queries, self.encoded_again = stored
        if self:
            self.table.undo(written)
        self.corrector.restore(corrector)
        self._snapshot = None

    def end_update(self, step: int) -> None:
        self._snapshot = None

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"taught.{name}": value for name, value in self.corrector.state_dict().items()}
        if self:
            state |= {"vectors": self.table.vectors, "born": self.table.written_at}
            state |= {"met": self.encoded_again, "made_at": torch.tensor(self.made_at)}
        if self._frozen_queries is not None:
            state["queries"] = self._frozen_queries
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if "vectors" in state:
            self.table = PassageTable(state["vectors"])
            self.table.written_at = state["born"].cpu()
            self.encoded_again, self.made_at = state["met"].cpu(), int(state["made_at"])
        self._frozen_queries = state.get("queries")
        prefix = "taught."
        corrector = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        self.corrector.load_state_dict(corrector)


def select_rows(scores: Tensor, count: int, selection: str, rng: torch.Generator) -> Tensor:
    """Up to `count` columns for each row of scores, each column once; entries at -inf never.

    selection: "top_k", the highest scores; "gumbel", a draw from the softmax; "uniform", a draw.
    """
    if selection == "uniform":
        scores = scores.masked_fill(scores > -torch.inf, 0.0)
    if selection != "top_k":  # with Gumbel noise, the largest are a draw from the softmax
        uniform = torch.rand(scores.shape, generator=rng).clamp_(1e-12, 1 - 1e-7)
        scores = scores - (-uniform.log()).log().to(scores)
    top = scores.topk(min(count, scores.shape[1]), 1)
    return top.indices[top.values > -torch.inf].unique().cpu()

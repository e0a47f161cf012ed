"""Stale vectors in training: a cache of all passages that proposes negatives, and correctors for it and for the dual bank.

The split that matters: a cache's stale vectors only *propose* negatives, which are encoded anew before they enter the loss (Monath et
al., ICML 2024, and its ancestor, Lindgren et al. 2021); a bank's stale vectors *are* terms of the loss (ContAccum). Which targets
the paper selects, how many, and its schedule of refreshing we could not read: top-k, Gumbel-top-k and uniform are offered, and every
refreshing here is ours. Notebook 07.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bank import MemoryBank, TableBank
from .corrector import make_corrector
from .settings import Settings
from .towers import joined

NEWEST, FEWEST = (
    512,
    64,
)  # pairs that a corrector learns from: at most the newest so many, and none below so many


class Taught:
    """A corrector and the newest pairs (stale vector, its age, the same text's vector when it was encoded anew) that it learns from."""

    def __init__(self, name: str, dim: int, by_age: bool, settings: Settings):
        self.corrector = make_corrector(name, by_age, settings.seed)
        self.pairs = MemoryBank(
            0 if name == "identity" else NEWEST,
            2 * dim + 1,
            getattr(torch, settings.dtype),
            settings.device,
        )
        self.dim = dim

    def add(self, ids: Tensor, stale: Tensor, age: Tensor, fresh: Tensor, update: int) -> None:
        if self.pairs.size:
            self.pairs.write(
                ids, torch.cat([stale, fresh.detach(), age.to(stale).unsqueeze(1)], 1), update
            )

    def fit(self) -> None:
        if len(self.pairs) >= FEWEST:
            kept = self.pairs.vectors
            self.corrector.fit(kept[:, : self.dim], kept[:, -1], kept[:, self.dim : -1])

    def __call__(self, stale: Tensor, age: Tensor) -> Tensor:
        return self.corrector(stale, age)

    def reset(self) -> None:
        self.corrector.reset()
        self.pairs.clear()

    def mark(self, count: int) -> tuple:
        return self.pairs.mark(min(count, self.pairs.size)), self.corrector.state_dict()

    def restore(self, mark: tuple) -> None:
        self.pairs.restore(mark[0])
        self.corrector.load_state_dict(mark[1])

    def state_dict(self) -> dict[str, Tensor]:
        return {
            **{f"pairs.{name}": value for name, value in self.pairs.state_dict().items()},
            **{f"corrector.{name}": value for name, value in self.corrector.state_dict().items()},
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        part = lambda kind: {
            name.removeprefix(f"{kind}."): value
            for name, value in state.items()
            if name.startswith(f"{kind}.")
        }
        self.pairs.load_state_dict(part("pairs"))
        self.corrector.load_state_dict(part("corrector"))


class Cache:
    """Vectors of all passages, made when training reaches `bank_warmup`, and the policies by which they are used and renewed.

    `begin` renews what is due and teaches the corrector, `choose` picks a micro-batch's negatives by the corrected scores, `saw` takes
    what training has encoded anew. The stored vectors stay raw: they are corrected when they are read.
    """

    def __init__(self, learner, positive: Tensor, all_queries):
        self.learner, self.positive, self.all_queries = learner, positive, all_queries
        s = learner.settings
        self.table: TableBank | None = None
        self.taught = Taught(
            s.corrector, learner.passage_tower.dim, s.write_back or s.cache_oldest > 0, s
        )
        self.met = torch.zeros(
            0, dtype=torch.bool
        )  # passages encoded anew since the cache was first made
        self.made_at, self._queries, self._now = -1, None, None

    def __bool__(self) -> bool:
        return self.table is not None

    @property
    def coverage(self) -> float:
        """The share of the corpus that was encoded anew at least once since the cache was first made."""
        return float(self.met.float().mean()) if len(self.met) else 0.0

    def corrected(self, update: int) -> Tensor:
        """The cache's vectors as they are used at this update, (N, d)."""
        return self.taught(self.table.vectors, self.table.ages(update))

    def begin(self, update: int) -> None:
        """Renew what is due before this update, and teach the corrector."""
        s = self.learner.settings
        if update < s.bank_warmup:
            return
        if self.table is None or (s.cache_refresh and update - self.made_at >= s.cache_refresh):
            self._make(update)
        elif s.cache_oldest:
            rows = self.table.oldest(s.cache_oldest)
            self._renew(rows, self.learner.encode_rows(rows, "refresh"), update, write=True)
        if s.probes:
            rows = torch.randperm(len(self.table), generator=self._draw(update, 0))[: s.probes]
            self._renew(rows, self.learner.encode_rows(rows, "probe"), update, write=s.write_back)
        self.taught.fit()
        self._now = self.corrected(update)

    def _make(self, update: int) -> None:
        """Encode every passage; what the corrector has learned of the vectors before is forgotten (ours: the paper does not renew)."""
        if self.table is None:
            self.met = torch.zeros(len(self.learner.text_keys), dtype=torch.bool)
        else:
            self.met[:] = True
        self.table = TableBank(
            self.learner.encode_rows(torch.arange(len(self.learner.text_keys)), "refresh"), update
        )
        self.made_at = update
        self.taught.reset()
        if self.learner.settings.static_queries and self._queries is None:
            self._queries = self.learner.encode_texts(self.learner.query_tower, self.all_queries)

    def _renew(self, rows: Tensor, fresh: Tensor, update: int, write: bool) -> None:
        self.taught.add(
            rows, self.table.vectors[rows], self.table.ages(update)[rows], fresh, update
        )
        self.met[rows] = True
        if write:
            self.table.write(rows, fresh, update)

    def choose(self, batch, place: int, update: int):
        """The micro-batch with the passages that the cache proposes as its hard negatives: for each query `cache_negatives`, each once.

        Left out are copies of the query's own passage and passages that are in the micro-batch already.
        """
        if not self:
            return batch
        s, learner = self.learner.settings, self.learner
        queries = (
            self._queries[batch.pair_ids]
            if self._queries is not None
            else learner.encode_texts(learner.query_tower, batch.query_tokens)
        )
        scores = queries @ self._now.T / s.temperature  # (B, N)
        own = learner.passage_keys[batch.pair_ids]
        scores[:, torch.isin(learner.text_keys, own).to(scores.device)] = -torch.inf
        if s.selection == "uniform":
            scores = scores.masked_fill(scores > -torch.inf, 0.0)
        if s.selection != "top_k":
            uniform = torch.rand(scores.shape, generator=self._draw(update, place + 1)).clamp_(
                1e-12, 1 - 1e-7
            )
            scores = scores - (-uniform.log()).log().to(
                scores
            )  # Gumbel noise: the largest are a draw from the softmax
        rows = scores.topk(min(s.cache_negatives, scores.shape[1]), 1)
        rows = rows.indices[rows.values > -torch.inf].unique().cpu()
        return batch._replace(
            hard_ids=rows,
            passage_tokens=joined(
                [batch.passage_tokens[: len(own)], learner.passages[rows.numpy()]],
                learner.passages.pad,
            ),
        )

    def saw(self, batch, vectors, update: int) -> None:
        """What a micro-batch has encoded anew, positives and negatives, teaches the corrector; with write-back it goes into the cache."""
        if self:
            rows = torch.cat([self.positive[batch.pair_ids], batch.hard_ids])
            fresh = torch.cat(
                [part.detach() for part in (vectors.passages, vectors.hard) if part is not None]
            )
            self._renew(rows, fresh, update, write=self.learner.settings.write_back)

    def _draw(self, update: int, place: int) -> torch.Generator:
        return torch.Generator().manual_seed(
            (self.learner.settings.seed * 1_000_003 + update) * 4099 + place
        )

    def mark(self) -> tuple:
        """What takes back all that an update does to it."""
        return (
            self.table,
            self.table.mark() if self else None,
            self.made_at,
            self._queries,
            self.met.clone(),
            self.taught.mark(NEWEST),
        )

    def restore(self, mark: tuple) -> None:
        self.table, written, self.made_at, self._queries, self.met, taught = mark
        if self:
            self.table.restore(written)
        self.taught.restore(taught)

    def state_dict(self) -> dict[str, Tensor]:
        found = {f"taught.{name}": value for name, value in self.taught.state_dict().items()}
        if self:
            found |= {
                "vectors": self.table.vectors,
                "born": self.table.born,
                "met": self.met,
                "made_at": torch.tensor(self.made_at),
            }
        return found | ({"queries": self._queries} if self._queries is not None else {})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if "vectors" in state:
            self.table = TableBank(state["vectors"])
            self.table.born, self.met, self.made_at = (
                state["born"].cpu(),
                state["met"].cpu(),
                int(state["made_at"]),
            )
        self._queries = state.get("queries")
        self.taught.load_state_dict(
            {
                name.removeprefix("taught."): value
                for name, value in state.items()
                if name.startswith("taught.")
            }
        )


class BankCorrection:
    """Correctors for a dual bank, one for each tower, fed by a few banked pairs that are encoded anew each update.

    In neither paper: a FIFO bank holds vectors of all ages at once, so its correctors look at the age and leave what is new as it
    is. The bank keeps raw vectors; what enters the loss is corrected.
    """

    def __init__(self, learner, micro_batch):
        self.learner, self.micro_batch = learner, micro_batch
        s, dim = learner.settings, learner.passage_tower.dim
        self.taught = [Taught(s.corrector, dim, True, s) for _ in range(2)]

    def begin(self, update: int) -> None:
        """Encode some banked pairs anew and fit both correctors."""
        bank, s = self.learner.passage_bank, self.learner.settings
        if not len(bank):
            return
        draw = torch.Generator().manual_seed((s.seed * 1_000_003 + update) * 4099 + 4098)
        slots = torch.randperm(len(bank), generator=draw)[: s.probes]
        batch = self.micro_batch(bank.ids[slots].numpy())
        batch = batch._replace(
            hard_ids=batch.hard_ids[:0], passage_tokens=batch.passage_tokens[: len(slots)]
        )
        with torch.no_grad():
            fresh = self.learner.encode_fresh(batch, purpose="probe")
        for taught, one, vectors in zip(
            self.taught, self.learner.banks, (fresh.queries, fresh.passages)
        ):
            if len(one) == len(bank):
                taught.add(
                    bank.ids[slots], one.vectors[slots], bank.ages(update)[slots], vectors, update
                )
                taught.fit()

    def read(self, place: int, count: int, update: int) -> Tensor:
        """The vectors of the query (0), passage (1) or hard-negative bank (2) as they enter the loss, (count, d)."""
        bank = self.learner.banks[place]
        return self.taught[min(place, 1)](bank.vectors[:count], bank.ages(update)[:count])

    def mark(self) -> list[tuple]:
        return [taught.mark(NEWEST) for taught in self.taught]

    def restore(self, mark: list[tuple]) -> None:
        for taught, one in zip(self.taught, mark):
            taught.restore(one)

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{n}.{name}": value
            for n, taught in enumerate(self.taught)
            for name, value in taught.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for n, taught in enumerate(self.taught):
            taught.load_state_dict(
                {name[2:]: value for name, value in state.items() if name.startswith(f"{n}.")}
            )

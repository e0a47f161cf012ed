"""Retriever: two encoders in use. Texts in, passages found, rankings measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from contaccum_lite.core import checkpoint
from contaccum_lite.core.metrics import (
    CUTOFFS,
    Hit,
    Hits,
    answer_metrics,
    check_finite,
    check_query,
    exact_search,
    retrieval_metrics,
)
from contaccum_lite.core.settings import Settings
from contaccum_lite.data.types import Pair, Pairs, Passage
from contaccum_lite.encoders.encode import encode_batches, encode_to_numpy
from contaccum_lite.encoders.tokens import tokenize_passages, tokenize_split
from contaccum_lite.utils.devices import check_device
from contaccum_lite.utils.folders import check_digests, short

SMALL_CORPUS = 100_000  # passages up to which all token ids are kept
_TOKENIZED_TOGETHER = 10_000  # passages of a larger corpus that are tokenized at a time


class Retriever:
    """Two encoders without their data.

    Args:
        query_tower, passage_tower: the encoders. settings: lengths of texts, device and precision.
        name: what they were trained on.
    """

    def __init__(self, query_tower, passage_tower, settings: Settings, name: str = "a run"):
        self.query_tower, self.passage_tower = query_tower, passage_tower
        self.settings, self.name = settings, name

    @property
    def dim(self) -> int:
        return self.query_tower.dim

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> Retriever:
        """The towers that `Run.save` wrote.

        device: where to encode; None where the run trained.
        """

        def load(record: dict, state: Path) -> Retriever:
            changes = {"device": device} if device else {}
            settings = checkpoint.saved_settings(folder, record, **changes)
            check_device(settings.device)
            check_digests(state, record.get("digests", {}), skip="state.safetensors")
            towers = checkpoint.saved_towers(state, settings)
            return cls(
                towers[0], towers[-1], settings, f"{record['pairs']}, {record['step']} updates"
            )

        return checkpoint.while_it_stands(folder, load)

    @property
    def fingerprint(self) -> str:
        """A hash of the weights."""
        digest = hashlib.sha256()
        for tower in (self.query_tower, self.passage_tower):
            for name, tensor in sorted(tower.state_dict().items()):
                digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, d) float32. Raises `ValueError` where a vector is not finite."""
        texts = list(texts)
        tokens = self.query_tower.tokenize(texts, length=self.settings.query_tokens)
        vectors = encode_to_numpy(self.query_tower, tokens, self.settings)
        return check_finite(vectors, lambda row: f"query {short(texts[row])}")

    def encode_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """(passages, d) float32. Raises `ValueError` where a vector is not finite."""
        tokens = tokenize_passages(self.passage_tower, passages, self.settings)
        vectors = encode_to_numpy(self.passage_tower, tokens, self.settings)
        return check_finite(vectors, lambda row: f"passage {short(passages[row].id)}")

    def search(self, query: str, k: int, corpus) -> Hits:
        """The k passages of the corpus nearest to the query.

        Returns hits with score, id, title and passage.
        """
        check_query(query, k)
        scores, rows = corpus.rank(self.encode_queries([query]), k)
        passages = [corpus.passage(int(row)) for row in rows[0]]
        return Hits(Hit(float(score), *passage) for score, passage in zip(scores[0], passages))

    def evaluate(self, pairs: Pairs, split: str, corpus) -> dict[str, float]:
        """Metrics in [0, 1] of the ranking of a corpus.

        top@1, 5, 20, 100, mrr@10, ndcg@10 and recall@100; where the pairs carry answer strings,
        answer_top@k too. split: "test" or "dev".
        """
        examples = {"test": pairs.test, "dev": pairs.dev}.get(split)
        if not examples:
            raise ValueError(f"{pairs.name} has no {split!r} pairs to evaluate on.")
        tokens = tokenize_split(pairs, self.query_tower, self.settings, split)
        queries = encode_to_numpy(self.query_tower, tokens, self.settings)
        check_finite(queries, lambda row: f"query {short(examples[row].query)}")
        _, rows = corpus.rank(queries, max(CUTOFFS))
        qrels = [corpus.qrels(pair, pairs, ranking) for pair, ranking in zip(examples, rows)]
        metrics = retrieval_metrics(rows, qrels)
        if any(pair.answers for pair in examples):
            answers = [pair.answers for pair in examples]
            metrics |= answer_metrics(rows, answers, lambda row: corpus.passage(int(row)).text)
        return metrics


def _namer(passages: Sequence[Passage], rows: np.ndarray) -> Callable[[int], str]:
    """What names the passage of one of these rows in an error message."""
    return lambda n: f"passage {short(passages[rows[n]].id)}"


class PairsCorpus:
    """All passages of a data set, encoded by a run's passage tower; kept until the weights move."""

    def __init__(self, run):
        self.run, self.step, self.vectors = run, None, None

    def encode(self) -> Iterator[int]:
        """Encode every passage, a batch at a time; yields how many are done.

        A player pauses between two batches; `rank` encodes the rest at once.
        """
        run, passages = self.run, self.run.pairs.passages
        if self.step == run.step_count:
            return
        step, tower, settings = run.step_count, run.passage_tower, run.settings
        vectors = np.empty((len(passages), tower.dim), dtype=np.float32)
        for first, tokens in self._tokens():
            for token_rows, encoded in encode_batches(tower, tokens, settings):
                rows = first + token_rows
                batch = encoded.float().cpu().numpy()
                check_finite(batch, _namer(passages, rows))
                vectors[rows] = batch
                yield first + len(rows)
                if step != run.step_count:
                    return
        self.step, self.vectors = step, vectors

    def _tokens(self):
        """(first row, tokens) of the corpus; of a small one all at once, which runs share."""
        run, passages = self.run, self.run.pairs.passages
        if len(passages) <= SMALL_CORPUS:
            yield 0, tokenize_split(run.pairs, run.passage_tower, run.settings, "passages")
            return
        for first in range(0, len(passages), _TOKENIZED_TOGETHER):
            some = passages[first : first + _TOKENIZED_TOGETHER]
            yield first, tokenize_passages(run.passage_tower, some, run.settings)

    def rank(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows) of the k best passages for each query vector, exactly."""
        for _ in self.encode():
            pass
        return exact_search(queries, self.vectors, k)

    def passage(self, row: int) -> Passage:
        return self.run.pairs.passages[row]

    def qrels(self, pair: Pair, pairs: Pairs, ranking: np.ndarray) -> dict[int, int]:
        """{row: grade} of the passages that answer a pair's query."""
        return {pairs.row_of[name]: grade for name, grade in pair.grades.items()}

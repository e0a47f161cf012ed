"""A bag tower that already knows its corpus: trained for seconds on random crops of the passages.

The paper fine-tunes a pretrained BERT. This is the same idea in small: two crops of one passage are
a query and its passage, so no question and no answer is needed. Notebook 00.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from contaccum_lite.encoders.encode import encode_to_tensor
from contaccum_lite.encoders.files import check_shapes, read_weights
from contaccum_lite.encoders.tokens import Tokens, tokenizer_hash
from contaccum_lite.encoders.vocabulary import vocabulary_for
from contaccum_lite.utils.files import cache_folder, write_atomically

#: Goes up when pre-training changes, so that no older tower is taken from the cache.
_VERSION = 1

UPDATES = 400  # at most
EPOCHS = 16  # at most
BATCH = 256  # passages in an update
LEARNING_RATE = 0.005
WARMUP = 20
CHECK_EVERY = 100  # updates from one look at the dev pairs to the next
CROP = (0.2, 0.5)  # of a passage's tokens, at least and at most
PASSAGE_TOKENS = 256  # of a passage that is cropped, at most
CROP_TOKENS = 64  # of a crop, at most
MAX_PASSAGES = 20_000  # that are cropped, or searched for a dev query
MAX_DEV_PAIRS = 500
_ON_CPU = SimpleNamespace(device="cpu", dtype="float32", precision="fp32")


def load_pretrained_weights(tower: nn.Module, pairs) -> None:
    """Give a new bag tower the weights that pre-training on these pairs' passages makes.

    They are in `pairs.memo`, in the cache, or made now: some seconds on one core, with a progress
    bar. They depend on the pairs and the kind of tower alone, not on the seed of a run.
    """
    name = _file_name(pairs, tower.tokenizer_hash, tower.dim, tower.ending)
    if name not in pairs.memo:
        pairs.memo[name] = _cached_weights(name, tower, pairs)
    tower.load_state_dict(pairs.memo[name])


def must_pretrain(settings, pairs) -> bool:
    """Whether a run of these settings has to wait, some seconds, until its towers are trained."""
    if settings.tower != "bag" or settings.start != "pretrained":
        return False
    tokenizer = tokenizer_hash(vocabulary_for(pairs))
    name = _file_name(pairs, tokenizer, settings.dim, settings.ending)
    return name not in pairs.memo and not (cache_folder() / name).is_file()


def _file_name(pairs, tokenizer: str, dim: int, ending: str) -> str:
    """The cache's name for the weights of this kind of tower on these pairs."""
    dev = [(pair.id, pair.query, pair.passage) for pair in pairs.dev]
    data = hashlib.sha256(repr((tokenizer, pairs.fingerprint, dev)).encode())
    return f"start-{_VERSION}-{dim}-{ending}-{data.hexdigest()[:32]}.safetensors"


def _cached_weights(name: str, tower: nn.Module, pairs) -> dict[str, Tensor]:
    from safetensors.torch import save

    path = cache_folder() / name
    shapes = {key: tuple(tensor.shape) for key, tensor in tower.state_dict().items()}
    try:
        weights = read_weights(path)
        check_shapes(weights, shapes, path)
        return weights
    except (OSError, ValueError):
        weights = pretrain(tower, pairs)
    with suppress(OSError):  # a cache that cannot be written to
        write_atomically(path, save(weights))
    return weights


def pretrain(tower: nn.Module, pairs) -> dict[str, Tensor]:
    """The weights of this tower after training on random crops of the training passages.

    One tower for both crops, InfoNCE over the batch, the same random numbers each time. With dev
    pairs, training stops at the first check that is worse than the one before, and the weights of
    the one before are given. No query is trained on. The tower itself stays as it is.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same sums on every number of cores
    try:
        return _train_on_crops(_fresh_copy(tower), pairs)
    finally:
        torch.set_num_threads(threads)


def _fresh_copy(tower: nn.Module) -> nn.Module:
    """A tower of this kind with the weights that every pre-training starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return type(tower)(tower.tokenizer, tower.dim, tower.ending)


def _train_on_crops(tower: nn.Module, pairs) -> dict[str, Tensor]:
    from tqdm.auto import tqdm

    passages = {pair.passage_id: pair for pair in pairs.train[:MAX_PASSAGES]}.values()
    texts = [pair.passage for pair in passages]
    tokens = tower.tokenize(texts, [pair.title for pair in passages], PASSAGE_TOKENS)
    if not len(tokens):
        return _copied_weights(tower)
    batch = min(BATCH, len(tokens))
    updates = min(UPDATES, EPOCHS * len(tokens) // batch)
    dev = DevQueries(tower, pairs)
    best, weights = dev.mrr(tower), _copied_weights(tower)
    tower.accumulate_embedding_grad = True
    optimizer = torch.optim.AdamW(
        tower.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
    )
    rng = np.random.default_rng(0)
    for update in tqdm(range(1, updates + 1), desc="pre-training on crops", leave=False, delay=1):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, update / WARMUP)
        rows = rng.choice(len(tokens), batch, replace=False)
        loss = crop_loss(tower, crop(tokens, rows, rng), crop(tokens, rows, rng))
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        if update % CHECK_EVERY == 0 or update == updates:
            quality = dev.mrr(tower)
            if quality < best:
                break
            best, weights = quality, _copied_weights(tower)
    return weights


def crop_loss(tower: nn.Module, queries: Tensor, passages: Tensor) -> Tensor:
    """InfoNCE of crops against the other crops of the same passages. Token ids (B, L) each."""
    spread = math.sqrt(tower.dim)  # of the scores, by Settings.temperature's default
    temperature = 1 / spread if tower.ending == "unit" else spread
    scores = tower(queries) @ tower(passages).T / temperature  # (B, B)
    return nn.functional.cross_entropy(scores, torch.arange(len(scores)))


def crop(tokens: Tokens, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
    """A random span of each of these texts, (rows, longest) token ids, padded."""
    lengths = tokens.lengths[rows]
    spans = (lengths * rng.uniform(*CROP, len(rows))).astype(np.int64)
    spans = np.minimum(np.maximum(spans, 3), np.minimum(lengths, CROP_TOKENS))
    starts = (rng.random(len(rows)) * (lengths - spans + 1)).astype(np.int64)
    return tokens.spans(rows, starts, spans)


def _copied_weights(tower: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tower.state_dict().items()}


class DevQueries:
    """The dev queries, to be ranked among their own passages and those that are cropped."""

    def __init__(self, tower: nn.Module, pairs):
        dev = pairs.dev[:MAX_DEV_PAIRS]
        passages = {pair.passage_id: pair for pair in [*dev, *pairs.train[:MAX_PASSAGES]]}
        columns = {name: column for column, name in enumerate(passages)}
        self.positives = torch.tensor([columns[pair.passage_id] for pair in dev])
        if dev:
            texts = [pair.passage for pair in passages.values()]
            titles = [pair.title for pair in passages.values()]
            self.queries = tower.tokenize([pair.query for pair in dev])
            self.passages = tower.tokenize(texts, titles)

    @torch.no_grad()
    def mrr(self, tower: nn.Module) -> float:
        """MRR@10, in [0, 1]; 0 where there are no dev pairs."""
        if not len(self.positives):
            return 0.0
        queries = encode_to_tensor(tower, self.queries, _ON_CPU)
        passages = encode_to_tensor(tower, self.passages, _ON_CPU)
        scores = queries @ passages.T  # (dev queries, passages)
        ranks = 1 + (scores > scores.gather(1, self.positives[:, None])).sum(1)
        return float(torch.where(ranks <= 10, 1 / ranks, 0.0).mean())

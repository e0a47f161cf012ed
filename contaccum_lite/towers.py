"""Towers: text in, one vector out. A query tower and a passage tower make a retriever.

`BagTower` is small enough to train under a slider; `TransformerTower` is any `transformers` encoder. Both read token ids
padded with their `pad`, and both save and load with safetensors and JSON.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .precision import encode
from .tower_files import (
    check_shapes,
    make_tokenizer,
    pretrained,
    read_object,
    read_tokenizer,
    read_weights,
    refusing,
)

VOCABULARY = 8192
ENDINGS = ("layernorm", "none", "unit", "pooled")
POOLINGS = ("cls", "mean")
_WORDPIECE = 2  # goes up when the training of a vocabulary changes, so that no old one is taken from the cache
# what transformers' configurations call the rates of dropout that no layer of its own holds
_DROPOUT_RATES = (
    "attention_probs_dropout_prob",
    "attention_dropout",
    "dropout",
    "dropout_rate",
    "hidden_dropout",
    "activation_dropout",
    "attn_pdrop",
    "encoder_layerdrop",
    "layerdrop",
    "drop_path_rate",
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class Tokens:
    """Token ids of many texts, end to end in one array: `tokens[rows]` is those rows as a padded (rows, longest) tensor."""

    def __init__(self, rows: Iterable[Sequence[int]], pad: int):
        self.pad = pad
        rows = [np.asarray(row, dtype=np.int32) for row in rows]
        self.starts = np.cumsum([0, *map(len, rows)])
        self.flat = np.concatenate([np.zeros(0, dtype=np.int32), *rows])

    def __len__(self):
        return len(self.starts) - 1

    def __getitem__(self, rows) -> Tensor:
        rows = np.asarray(rows, dtype=np.int64)
        starts, lengths = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        places = np.arange(max(lengths.max(initial=0), 1))
        inside = places < lengths[:, None]  # (rows, longest)
        padded = np.full(inside.shape, self.pad, dtype=np.int64)
        padded[inside] = self.flat[(starts[:, None] + places)[inside]]
        return torch.from_numpy(padded)


def joined(parts: Sequence[Tensor], pad: int) -> Tensor:
    """Padded token ids, (n, L) each, one under the other: (sum of n, longest L)."""
    width = max(part.shape[1] for part in parts)
    return torch.cat(
        [nn.functional.pad(part, (0, width - part.shape[1]), value=pad) for part in parts]
    )


# --- the small tower ---------------------------------------------------------------------------------------------------


class BagTower(nn.Module):
    """Token embedding → learned attention pooling → residual MLP → LayerNorm: a tower for one core.

    `forward(ids)`: (B, L) token ids, padded with 0 → (B, dim) vectors of norm about √dim. Knows no word order. Notebook 00.
    """

    pad = 0
    in_place = False  # a Run sets it: see _Lookup

    def __init__(self, tokenizer, dim: int = 64, ending: str = "layernorm"):
        super().__init__()
        if ending not in ENDINGS:
            raise ValueError(f"ending is {ending!r}: choose one of {', '.join(ENDINGS)}.")
        self.tokenizer, self.dim, self.ending = tokenizer, dim, ending
        self.vocabulary_key = _digest(tokenizer)
        self.embedding = nn.Embedding(tokenizer.get_vocab_size(), dim)
        nn.init.normal_(
            self.embedding.weight, std=0.25
        )  # small against a step of Adam: words move, and rare ones too
        self.attention = nn.Parameter(torch.randn(dim) / dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.norm = {
            "layernorm": nn.LayerNorm(dim),
            "none": nn.Identity(),
            "unit": _Unit(),
            "pooled": None,
        }[ending]

    def forward(self, ids: Tensor) -> Tensor:
        weight = self.embedding.weight
        tokens = (
            _Lookup.apply(weight, ids)
            if self.in_place and torch.is_grad_enabled()
            else nn.functional.embedding(ids, weight)
        )
        attention = (
            (tokens @ self.attention).masked_fill(ids == self.pad, -1e4).softmax(-1)
        )  # (B, L)
        pooled = torch.bmm(attention.unsqueeze(1), tokens).squeeze(1)  # (B, dim)
        return pooled if self.norm is None else self.norm(pooled + self.mlp(pooled))

    def tokenize(
        self, texts: Sequence[str], titles: Sequence[str] | None = None, length: int = 64
    ) -> Tokens:
        """Token ids of each text, its title first, cut to `length`."""
        if titles is not None:
            texts = [f"{title} {text}" for title, text in zip(titles, texts)]

        def ids(part):
            return [
                e.ids[:length]
                for e in self.tokenizer.encode_batch_fast(part, add_special_tokens=False)
            ]

        tokens = Tokens(_in_parts(ids, _cut(texts, length)), self.pad)
        return _known(tokens, self.embedding.num_embeddings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, tokenizer.json and model.safetensors into the folder."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "config.json").write_text(
            json.dumps({"tower": "bag", "dim": self.dim, "ending": self.ending})
        )
        save_file(_own_tensors(self), folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> BagTower:
        """The tower that `save_pretrained` wrote. Raises `ValueError` for a folder that holds something else."""
        folder = Path(folder)
        config = read_object(folder / "config.json")
        if config.get("tower") != "bag":
            raise ValueError(
                f"{folder} holds no bag tower (its config.json says tower={config.get('tower')!r}): use load_tower."
            )
        dim, ending = config.get("dim"), config.get("ending", "layernorm")
        if type(dim) is not int or dim < 1 or ending not in ENDINGS:
            raise ValueError(
                f"{folder / 'config.json'} has dim={dim!r} and ending={ending!r}: "
                f"expected a whole number above 0, and one of {', '.join(ENDINGS)}."
            )
        tokenizer = read_tokenizer(folder / "tokenizer.json")
        path = folder / "model.safetensors"
        weights = read_weights(path)
        # the table is most of the tower: before memory is taken for it, its size is compared
        table = {name: tensor for name, tensor in weights.items() if name == "embedding.weight"}
        check_shapes(table, {"embedding.weight": (tokenizer.get_vocab_size(), dim)}, path)
        tower = cls(tokenizer, dim, ending)
        shapes = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
        check_shapes(weights, shapes, path)
        tower.to(weights["embedding.weight"].dtype).load_state_dict(weights)
        _check_reads(tower, folder)
        return tower


class _Unit(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1)


class _Lookup(torch.autograd.Function):
    """An embedding that adds its gradient to `weight.grad` in place, touching only the rows that were read.

    PyTorch's own makes a table of zeros of the whole vocabulary for each micro-batch and adds that: with K small
    micro-batches that is most of an update's time. Autograd does not see the result (`torch.autograd.grad` returns None
    for the weight), so it is used only where a Run collects `.grad`.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.weight, ctx.ids = weight, ids
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        weight = ctx.weight
        if weight.requires_grad:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad.index_add_(0, ctx.ids.flatten(), gradient.flatten(0, -2))
        return None, None


def train_vocabulary(texts: Sequence[str], size: int = VOCABULARY):
    """A lower-case WordPiece tokenizer learnt from the texts, the same each time; 0 is padding.

    `tokenizers` numbers single characters in the order of a hash table that differs from process to process, and ties in
    the training go by those numbers. So they are numbered here, as if they were special tokens.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    texts = list(texts)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts = Counter()
    for character, count in _character_counts(texts).items():
        for part in normalizer.normalize_str(character).strip():
            counts[part] += count
    kept = sorted(counts, key=lambda c: (-counts[c], c))[: max(1, min(1000, size // 8))]
    if len(kept) < len(counts):
        rare = {
            ord(c): " "
            for c in _character_counts(texts)
            if not set(normalizer.normalize_str(c).strip()) <= set(kept)
        }
        texts = [text.translate(rare) for text in texts]
    numbered = [*SPECIAL, *sorted(kept), *(f"##{c}" for c in sorted(kept))]

    def tokenizer_with(model):
        tokenizer = Tokenizer(model)
        tokenizer.normalizer, tokenizer.pre_tokenizer = (
            normalizer,
            pre_tokenizers.BertPreTokenizer(),
        )
        return tokenizer

    learner = tokenizer_with(models.WordPiece(unk_token="[UNK]"))
    learner.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=numbered, limit_alphabet=10**6, show_progress=False
        ),
    )
    tokenizer = tokenizer_with(
        models.WordPiece(learner.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=64)
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _character_counts(texts: Sequence[str]) -> Counter:
    counts = Counter()
    for text in texts:
        counts.update(text)
    return counts


def vocabulary_for(pairs, size: int = VOCABULARY):
    """The WordPiece vocabulary of these pairs' training texts, from the cache if it has been learnt before."""
    from tokenizers import Tokenizer

    from .data import cached_json

    def build():
        texts = [
            text for pair in pairs.train for text in (pair.query, f"{pair.title} {pair.passage}")
        ]
        return json.loads(train_vocabulary(texts, size).to_str())

    def check(value):
        tokenizer = make_tokenizer(value, "the vocabulary in the cache")
        numbers = sorted(tokenizer.get_vocab().values())
        special = [tokenizer.id_to_token(number) for number in range(len(SPECIAL))]
        if numbers != list(range(len(numbers))) or special != SPECIAL:
            raise ValueError("its tokens have other numbers than a trained vocabulary's")

    key = ("vocabulary", size)
    if key not in pairs.memo:
        name = f"wordpiece-{size}-{_WORDPIECE}-{pairs.fingerprint}.json"
        pairs.memo[key] = json.dumps(cached_json(name, build, check))
    return Tokenizer.from_str(pairs.memo[key])


# --- any transformer ---------------------------------------------------------------------------------------------------


class TransformerTower(nn.Module):
    """Any `transformers` encoder with CLS or mean pooling.

    `forward(ids)`: (B, L) token ids, padded with the tokenizer's padding → (B, dim). No projection, no normalisation, as
    in DPR. Notebook 09.
    """

    def __init__(self, model, tokenizer, pooling: str = "cls"):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}: choose one of {', '.join(POOLINGS)}.")
        if tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer has no padding token: set tokenizer.pad_token before making the tower."
            )
        # a few encoders read characters, without a table of embeddings
        self.embeddings = getattr(model.config, "vocab_size", math.inf)
        if tokenizer.pad_token_id >= self.embeddings:
            raise ValueError(
                "the tokenizer's padding token has the number "
                f"{tokenizer.pad_token_id}, and the encoder has embeddings for 0 to "
                f"{self.embeddings - 1}: choose another padding token."
            )
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # a layer on top of [CLS] that DPR does not use
        self.model, self.tokenizer, self.pooling = model, tokenizer, pooling
        self.pad, self.dim = tokenizer.pad_token_id, model.config.hidden_size
        self.vocabulary_key = (
            _digest(tokenizer.backend_tokenizer) if tokenizer.is_fast else tokenizer
        )

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != self.pad).long()  # (B, L)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, L, dim)
        if self.pooling == "cls":
            return hidden[:, 0]
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)

    def tokenize(
        self, texts: Sequence[str], titles: Sequence[str] | None = None, length: int = 64
    ) -> Tokens:
        """Token ids of each text, as `[CLS] title [SEP] text [SEP]` where there are titles, cut to `length`."""

        def ids(*parts):
            return self.tokenizer(*parts, truncation=True, max_length=length, padding=False)[
                "input_ids"
            ]

        columns = [
            _cut(column, length) for column in ([texts] if titles is None else [titles, texts])
        ]
        return _known(Tokens(_in_parts(ids, *columns), self.pad), self.embeddings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the encoder and its tokenizer as `transformers` does, and the pooling beside them."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (Path(folder) / "pooling.json").write_text(json.dumps({"pooling": self.pooling}))

    @classmethod
    def from_pretrained(cls, folder: str | Path, pooling: str | None = None) -> TransformerTower:
        """An encoder from a folder or, by its name on the hub, from the cache or the network, in this order; only safetensors are read."""
        path = Path(folder) / "pooling.json"
        if pooling is None and path.is_file():
            pooling = read_object(path).get("pooling")
            if pooling not in POOLINGS:
                raise ValueError(
                    f"{path} has pooling={pooling!r}: expected one of {', '.join(POOLINGS)}."
                )
        model, tokenizer = pretrained(folder)
        files = f"{folder} (config.json, tokenizer_config.json)"
        with refusing(files, "an encoder of texts and its tokenizer"):
            tower = cls(model, tokenizer, pooling or "cls")
        _check_reads(tower, folder)
        _check_encodes(tower, folder)
        return tower

    @classmethod
    def small_bert(
        cls, tokenizer, dim: int, pooling: str = "cls", layers: int = 2, heads: int = 4
    ) -> TransformerTower:
        """A BERT of random weights over a WordPiece vocabulary: the real architecture at a size that one core trains."""
        from tokenizers.processors import TemplateProcessing
        from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

        if dim % heads:
            raise ValueError(
                f"dim is {dim}, not a multiple of the {heads} attention heads: choose {dim // heads * heads or heads} "
                f"or {(dim // heads + 1) * heads}."
            )
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B [SEP]",
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
        )
        config = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=dim,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * dim,
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
        )
        return cls(BertModel(config), fast, pooling)


# --- both --------------------------------------------------------------------------------------------------------------


def make_towers(settings, pairs) -> tuple[nn.Module, nn.Module]:
    """The query tower and the passage tower of a run: separate and equal at the start, or one and the same if `shared`.

    Weights come from `settings.seed`; the state of PyTorch's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if settings.tower == "bag":
            query = BagTower(vocabulary_for(pairs), settings.dim, settings.ending)
        elif settings.tower == "bert":
            query = TransformerTower.small_bert(
                vocabulary_for(pairs), settings.dim, settings.pooling
            )
        else:
            query = load_tower(settings.tower, settings.pooling)
    query = query.to(device=settings.device, dtype=getattr(torch, settings.dtype))
    return query, query if settings.shared else copy_of(query)


def load_tower(folder: str | Path, pooling: str | None = None) -> nn.Module:
    """A tower of either kind from the folder that it was saved in."""
    if Path(folder).is_dir() and read_object(Path(folder) / "config.json").get("tower") == "bag":
        return BagTower.from_pretrained(folder)
    return TransformerTower.from_pretrained(folder, pooling)


def _cut(texts: Sequence[str], length: int) -> list[str]:
    """Texts without what lies far beyond `length` tokens: tokenizers take time and memory for all that they are given."""
    return [
        " ".join(text[: 40 * length].split())[: 16 * length] if len(text) > 16 * length else text
        for text in texts
    ]


def _in_parts(function, *columns: list, size: int = 256) -> Iterator:
    """What the function gives for the columns, some rows at a time: a tokenizer's working memory is that of all its rows."""
    for start in range(0, len(columns[0]), size):
        yield from function(*(column[start : start + size] for column in columns))


@contextmanager
def without_noise(*towers: nn.Module) -> Iterator[None]:
    """These towers without dropout: a text always has the same vector. It is undone at the end."""
    modes = [(layer, layer.training) for tower in towers for layer in tower.modules()]
    try:
        for tower in towers:
            tower.eval()
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def vectors_of(
    tower: nn.Module, tokens: Tokens, settings, rows: np.ndarray | None = None, batch: int = 256
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """(places in `rows`, their vectors) of these texts, a batch at a time, without noise or graph; texts of like length go together."""
    rows = np.arange(len(tokens)) if rows is None else rows
    order = np.argsort(np.diff(tokens.starts)[rows], kind="stable")
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        with torch.no_grad(), without_noise(tower):
            vectors = encode(tower, tokens[rows[places]].to(settings.device), settings)
        yield places, vectors


def array_of(tower: nn.Module, tokens: Tokens, settings) -> np.ndarray:
    """All of them as one array of float32, (texts, d)."""
    out = np.empty((len(tokens), tower.dim), dtype=np.float32)
    for rows, vectors in vectors_of(tower, tokens, settings):
        out[rows] = vectors.float().cpu().numpy()
    return out


def copy_of(tower: nn.Module) -> nn.Module:
    """A tower with weights of its own and the same tokenizer."""
    return copy.deepcopy(tower, {id(tower.tokenizer): tower.tokenizer})


def has_dropout(tower: nn.Module) -> bool:
    """Whether this tower draws noise while it trains."""
    for layer in tower.modules():
        if "Dropout" in type(layer).__name__ and getattr(layer, "p", 0):
            return True
        config = getattr(layer, "config", None)
        if any(getattr(config, name, 0) for name in _DROPOUT_RATES):
            return True
    return False


def _digest(tokenizer) -> str:
    """A name for what a tokenizer does: token ids made by one of the same name can be shared."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()
    }


def _known(tokens: Tokens, count: float) -> Tokens:
    """These tokens, if the tower has an embedding for each."""
    highest = tokens.flat.max(initial=0)
    if highest >= count:
        raise ValueError(
            f"the tokenizer gives a token the number {highest}, and the tower has "
            f"embeddings for 0 to {count - 1}: give a tower and the tokenizer that it "
            "was trained with."
        )
    return tokens


def _check_reads(tower: nn.Module, folder: str | Path) -> None:
    """Refuse a tower whose tokenizer loads, and cannot read a text."""
    with refusing(f"{folder}/tokenizer.json", "a tokenizer that reads any text"):
        tower.tokenize(["a text, \u2603"], ["its title"], length=8)


def _check_encodes(tower: nn.Module, folder: str | Path) -> None:
    """Refuse a tower whose config.json fits its weights, and that cannot encode a text."""
    if next(tower.parameters()).dtype != torch.float32:  # a CPU may not have it
        return
    with (
        refusing(f"{folder}/config.json", "an encoder of texts"),
        torch.no_grad(),
        without_noise(tower),
    ):
        vectors = tower(tower.tokenize(["a text"], length=8)[[0]])
        if vectors.shape != (1, tower.dim):
            raise ValueError(
                f"a text is encoded to a tensor of shape {tuple(vectors.shape)}, "
                f"not (1, {tower.dim})"
            )

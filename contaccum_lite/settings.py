"""Settings: everything that decides a run, in one frozen dataclass.

Sliders, share strings, tests and documents all read this file, so a default or a range stands here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from dataclasses import dataclass, field
from numbers import Integral, Real
from urllib.parse import parse_qsl, urlencode

_NO_BANK = dict(memory_size=0, query_bank=False, passage_bank=False)
_DUAL = dict(query_bank=True, passage_bank=True)
_CACHE = dict(local_batch=32, accumulation_steps=1, cache_negatives=2, bank_warmup=100)

#: method -> its name and its line (colour, dash) in pictures, what the menu says of it, and what it sets: `fixes` makes the method what
#: it is; `starts` is only where its sliders start. Lines: Okabe and Ito's colours (purple in place of their sky blue, which white
#: swallows); two that share a dash are told apart in every common colour-blindness, and each colour stands out from white and from
#: black (tests/test_access.py).
PRESETS: dict[str, dict] = {
    "dpr": dict(
        name="DPR",
        line=("#7A7A7A", "longdash"),
        says="one big batch, its own negatives only (DPR)",
        fixes=dict(accumulation_steps=1, **_NO_BANK),
        starts=dict(local_batch=128),
    ),
    "grad_accum": dict(
        name="GradAccum",
        line=("#0072B2", "dash"),
        says="K micro-batches, each with its own negatives only",
        fixes=_NO_BANK,
    ),
    "grad_cache": dict(
        name="GradCache",
        line=("#8F5BD0", "dashdot"),
        says="the big batch's gradient by two passes over K micro-batches",
        fixes=_NO_BANK,
    ),
    "pre_batch": dict(
        name="pre-batch",
        line=("#D55E00", "dot"),
        says="micro-batches and a passage bank alone (pre-batch negatives)",
        fixes=dict(query_bank=False, passage_bank=True),
    ),
    "contaccum": dict(
        name="ContAccum",
        line=("#009E73", "solid"),
        says="micro-batches and a dual bank of queries and passages",
        starts=_DUAL,
    ),
    "contaccum_no_past": dict(
        name="ContAccum, no past",
        line=("#009E73", "dot"),
        says="ContAccum, its banks emptied after each weight update",
        fixes=dict(past_encoder=False, **_DUAL),
    ),
    "pre_batch_no_past": dict(
        name="pre-batch, no past",
        line=("#D55E00", "dash"),
        says="a passage bank alone, emptied after each weight update",
        fixes=dict(query_bank=False, passage_bank=True, past_encoder=False),
    ),
    "contaccum_no_accum": dict(
        name="ContAccum, K = 1",
        line=("#009E73", "dashdot"),
        says="ContAccum without accumulation: one micro-batch per update",
        fixes=dict(accumulation_steps=1, **_DUAL),
    ),
    "momentum": dict(
        name="momentum",
        line=("#CC79A7", "dash"),
        says="a dual bank filled by slowly moving copies of the towers (as in MoCo)",
        fixes=_DUAL,
        starts=dict(momentum=0.99),
    ),
    "static_negatives": dict(
        name="static negatives",
        line=("#0072B2", "longdash"),
        says="hard negatives by the vectors of one moment, of queries and passages alike",
        fixes=dict(static_queries=True, cache_refresh=0, **_NO_BANK),
        starts=_CACHE,
    ),
    "stale_cache": dict(
        name="stale cache",
        line=("#D55E00", "longdash"),
        says="hard negatives by a cache of all passages that is never renewed",
        fixes=dict(cache_refresh=0, corrector="identity", **_NO_BANK),
        starts=_CACHE,
    ),
    "refreshed_cache": dict(
        name="refreshed cache",
        line=("#0072B2", "solid"),
        says="hard negatives by a cache that is encoded anew every R updates (as in ANCE)",
        fixes=_NO_BANK,
        starts=dict(_CACHE, cache_refresh=50),
    ),
    "corrected_cache": dict(
        name="corrected cache",
        line=("#D55E00", "solid"),
        says="hard negatives by a stale cache and a corrector network (Monath et al.)",
        fixes=_NO_BANK,
        starts=dict(_CACHE, corrector="mlp"),
    ),
    "oracle_cache": dict(
        name="oracle cache",
        line=("#CC79A7", "solid"),
        says="hard negatives by a cache that is encoded anew for each update",
        fixes=dict(cache_refresh=1, corrector="identity", **_NO_BANK),
        starts=_CACHE,
    ),
    "contaccum_corrected": dict(
        name="ContAccum, corrected",
        line=("#009E73", "dash"),
        says="ContAccum, its banks corrected for age when they are read",
        fixes=_DUAL,
        starts=dict(corrector="ridge", probes=16),
    ),
}
for _method, _preset in PRESETS.items():
    _preset.setdefault("name", _method.replace("_", " "))
    _preset.setdefault("line", ("#7A7A7A", "solid"))
    _preset.setdefault("fixes", {})
    _preset.setdefault("starts", {})

#: tower -> where its sliders start; any other name is a folder with a pretrained encoder, which starts as in the paper.
TOWERS: dict[str, dict] = {
    "bag": dict(learning_rate=0.005),
    "bert": dict(learning_rate=1e-3),
    "folder": dict(learning_rate=2e-5, temperature=1.0, query_tokens=256, passage_tokens=256),
}


CORRECTOR_NAMES = (
    "identity",
    "mean_shift",
    "moments",
    "procrustes",
    "ridge",
    "kernel",
    "mlp",
)  # corrector.py makes them
INCREMENTAL_FROM = (
    256  # vectors in a bank from which keeping scores is faster (benchmarks/similarity.py)
)


def _field(default, help, low=None, high=None, choices=None, symbol=None, slider=None):
    """A settings field. With a later default it is None until the method, the tower or `dim` say what it is.

    slider: its choices in a lab, a range or a tuple; a field without them has no slider.
    """
    later = isinstance(default, _Later)
    meta = dict(
        default=default.value if later else default,
        help=help,
        low=low,
        high=high,
        choices=choices,
        symbol=symbol,
        slider=slider,
    )
    return field(default=None if later else default, metadata=meta)


@dataclass(frozen=True)
class _Later:
    """A default that holds unless the method or the tower has another."""

    value: object


@dataclass(frozen=True)
class Settings:
    """All that decides a run: method, batch, banks, optimiser, towers and seed.

    A field left out takes the default of its method (`PRESETS`) or tower (`TOWERS`), then its own. Raises `ValueError` naming the
    field, the value and the range for a value out of range, or for one that contradicts the method.
    """

    method: str = _field(
        "contaccum", "how one weight update gets its gradient", choices=tuple(PRESETS)
    )
    local_batch: int = _field(
        _Later(8),
        "pairs in one micro-batch (of each process): what must fit in memory",
        1,
        4096,
        symbol="N_local",
        slider=range(1, 33),
    )
    accumulation_steps: int = _field(
        _Later(16), "micro-batches in one weight update", 1, 1024, symbol="K", slider=range(1, 65)
    )
    memory_size: int = _field(
        _Later(128),
        "vectors in each bank",
        0,
        1_000_000,
        symbol="N_memory",
        slider=(0, 8, 16, 32, 64, 128, 256, 512, 1024),
    )
    temperature: float = _field(
        _Later(8.0),
        "scores are divided by this: √dim, which suits towers that end in LayerNorm",
        1e-3,
        1e3,
        symbol="τ",
        slider=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    )
    learning_rate: float = _field(
        _Later(0.005),
        "AdamW's highest learning rate",
        1e-8,
        10.0,
        slider=(1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02),
    )
    updates: int = _field(
        400,
        "weight updates in the whole run",
        1,
        10_000_000,
        slider=(50, 100, 150, 200, 400, 800, 1600),
    )
    warmup: int = _field(20, "updates of linear warm-up before the linear decay", 0, 10_000_000)
    clip_norm: float = _field(
        2.0, "global gradient norm above which both towers are scaled down; 0 is off", 0.0, 1e9
    )
    seed: int = _field(
        0, "weights, data order and noise all come from this", 0, 2**31 - 1, slider=range(100)
    )
    tower: str = _field(
        "bag",
        "'bag' (fast), 'bert' (a small one, from scratch), or a folder with a transformers encoder",
    )
    shared: bool = _field(False, "one tower for queries and passages")
    pooling: str = _field(
        "cls", "how a transformer's tokens become one vector", choices=("cls", "mean")
    )
    dim: int = _field(
        64, "length of a vector (a transformers folder brings its own)", 2, 4096, symbol="d"
    )
    ending: str = _field(
        "layernorm",
        "how a bag tower ends: with LayerNorm, without, with length 1, or before the MLP",
        choices=("layernorm", "none", "unit", "pooled"),
    )
    query_tokens: int = _field(_Later(32), "tokens of a query that are read", 2, 8192)
    passage_tokens: int = _field(_Later(64), "tokens of title and passage that are read", 2, 8192)
    query_bank: bool = _field(
        _Later(False), "keep past queries as rows of the similarity matrix", symbol="M_q"
    )
    passage_bank: bool = _field(
        _Later(False), "keep past passages as columns of the similarity matrix", symbol="M_p"
    )
    past_encoder: bool = _field(_Later(True), "keep the banks over weight updates")
    drop_query_bank_at: int | None = _field(
        None, "update from which the query bank is left out; None is never", 0, 10_000_000
    )
    bank_warmup: int = _field(
        _Later(0), "updates before the banks, or a cache, come into use", 0, 10_000_000
    )
    hard_negatives: int = _field(0, "hard negatives per query in a micro-batch", 0, 64)
    bank_hard_negatives: bool = _field(True, "keep past hard negatives in a bank of their own")
    mask_duplicates: bool = _field(
        True, "leave out columns that are the row's own stale self or a copy of its passage"
    )
    momentum: float = _field(
        _Later(0.0),
        "how much the copies that fill the banks keep of themselves; 0 is no copies",
        0.0,
        0.999999,
    )
    cache_negatives: int = _field(
        _Later(0),
        "negatives that each query takes from a cache of all passages; 0 is no cache",
        0,
        64,
        symbol="k",
    )
    selection: str = _field(
        "gumbel",
        "how a cache's negatives are chosen: by chance, the highest scores, or a draw by the scores",
        choices=("uniform", "top_k", "gumbel"),
    )
    static_queries: bool = _field(
        _Later(False), "choose by the queries' vectors of the moment when the cache was made"
    )
    cache_refresh: int = _field(
        _Later(0),
        "updates from one encoding of the whole cache to the next; 0 is never",
        0,
        10_000_000,
        symbol="R",
    )
    cache_oldest: int = _field(
        0, "the cache's oldest passages, encoded anew each update", 0, 1_000_000
    )
    write_back: bool = _field(
        False, "put passages that training has encoded anew back into the cache"
    )
    corrector: str = _field(
        _Later("identity"),
        "what moves stale vectors to where they would be now",
        choices=CORRECTOR_NAMES,
    )
    probes: int = _field(
        _Later(0),
        "stale vectors encoded anew each update for the corrector alone",
        0,
        1_000_000,
        symbol="m",
    )
    similarity: str = _field(
        _Later("full"),
        "how a bank's part of the similarity matrix is computed: whole each time, or kept while its vectors live",
        choices=("full", "incremental"),
    )
    one_forward: bool = _field(
        False,
        "encode an update's micro-batches together: the same gradient in less time, with the memory of the whole batch",
    )
    precision: str = _field(
        "fp32",
        "number format inside the towers (autocast); weights, banks and loss stay in dtype; fp16 needs a CUDA device",
        choices=("fp32", "bf16", "fp16"),
    )
    activation_checkpointing: bool = _field(
        False,
        "keep only each layer's input and compute the rest again for the backward pass: the same gradient, less memory, more time",
    )
    compile: bool = _field(False, "compile a transformers encoder with torch.compile")
    dtype: str = _field(
        "float32", "number format of weights and banks", choices=("float32", "float64")
    )
    device: str = _field("cpu", "where it runs: 'cpu', 'cuda', 'cuda:1', …")

    def __post_init__(self):
        preset = PRESETS.get(self.method) if isinstance(self.method, str) else None
        if preset is None:
            raise ValueError(f"method is {shown(self.method)}: choose one of {', '.join(PRESETS)}.")
        tower = TOWERS.get(self.tower, TOWERS["folder"]) if isinstance(self.tower, str) else {}
        starts = {"temperature": self._root_of_dim, **tower, **preset["starts"], **preset["fixes"]}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if value is None and f.name == "similarity":
                value = self._usual_similarity
            elif value is None and f.name != "drop_query_bank_at":
                value = starts.get(f.name, f.metadata["default"])
            object.__setattr__(self, f.name, checked(f, value))
        for name, fixed in preset["fixes"].items():
            if getattr(self, name) != fixed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but method {self.method!r} ({preset['says']}) fixes it at {fixed!r}: "
                    f"leave {name} out, or choose another method."
                )
        if self.query_bank and not self.passage_bank:
            raise ValueError(
                "query_bank is True and passage_bank is False: the positive of a past query is in the passage "
                "bank, so a query bank needs passage_bank=True."
            )
        self._check_stale()

    def _check_stale(self) -> None:
        """What a cache and a corrector need."""
        if self.cache_negatives and (self.hard_negatives or self.method == "grad_cache"):
            other = (
                f"hard_negatives is {self.hard_negatives}"
                if self.hard_negatives
                else "method is 'grad_cache'"
            )
            raise ValueError(
                f"cache_negatives is {self.cache_negatives} and {other}: a cache gives the hard negatives itself, micro-batch by micro-batch. Set one of them to 0."
            )
        if not self.cache_negatives:
            for name in ("write_back", "cache_oldest", "cache_refresh", "static_queries"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} is {getattr(self, name)!r}, and there is no cache: set cache_negatives to 1 or more."
                    )
        banked = self.has_bank and self.corrector != "identity"
        if self.corrector != "identity" and not (self.cache_negatives or self.has_bank):
            raise ValueError(
                f"corrector is {self.corrector!r}, and nothing is stale here: set cache_negatives, or a bank."
            )
        if banked and (self.momentum or not self.probes):
            raise ValueError(
                f"corrector is {self.corrector!r} with "
                + (
                    f"momentum {self.momentum}: the bank's vectors are of slow towers, so set one of them to its default."
                    if self.momentum
                    else "a bank, and probes is 0: it learns from banked pairs that are encoded anew, so set probes to 1 or more."
                )
            )

    @classmethod
    def preset(cls, method: str, **fields) -> Settings:
        """The settings of a method, with any field changed: `Settings.preset("contaccum", memory_size=512)`."""
        return cls._from_names(dict(fields, method=method))

    @classmethod
    def parse(cls, line: str) -> Settings:
        """Settings from a line made by `share()`. Raises `ValueError` for an unknown name or a value that cannot be read."""
        fields = {}
        types = {f.name: f for f in dataclasses.fields(cls)}
        for name, text in parse_qsl(line.strip().lstrip("?"), keep_blank_values=True):
            fields[name] = read(types[name], text) if name in types else text
        return cls._from_names(fields)

    @classmethod
    def _from_names(cls, fields: dict) -> Settings:
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = [name for name in fields if name not in known]
        if unknown:
            raise ValueError(
                f"{shown(unknown[0])} is not a setting: the settings are {', '.join(sorted(known))}."
            )
        return cls(**fields)

    def share(self) -> str:
        """This run in one line: the method and all that differs from its defaults; `Settings.parse` reads it back."""
        start = Settings(
            method=self.method, tower=self.tower, dim=self.dim, similarity=self._usual_similarity
        )
        plain = {"tower": "bag", "dim": 64}
        names = [f.name for f in dataclasses.fields(self)]
        return urlencode(
            [("method", self.method)]
            + [
                (n, getattr(self, n))
                for n in names
                if n != "method" and getattr(self, n) != plain.get(n, getattr(start, n))
            ],
            safe="/:",
        )

    def replace(self, **changes) -> Settings:
        """A copy with these fields changed."""
        own = dataclasses.asdict(self)
        if self.similarity == self._usual_similarity:
            own["similarity"] = None  # it follows the other settings
        return Settings._from_names({**own, **changes})

    @property
    def _root_of_dim(self) -> float:
        """√dim, and 1 for a dim that is refused in its turn."""
        dim = self.dim
        return math.sqrt(dim) if isinstance(dim, Real) and 0 < dim < 10**9 else 1.0

    @property
    def _usual_similarity(self) -> str:
        """What is faster, where both are right."""
        return (
            "incremental" if self.keeps_scores and self.memory_size >= INCREMENTAL_FROM else "full"
        )

    @property
    def keeps_scores(self) -> bool:
        """Whether the scores among banked vectors stay as they were when they were made (`incremental.py`)."""
        return self.has_bank and not self.momentum and self.corrector == "identity"

    @property
    def total_batch(self) -> int:
        """Pairs in one weight update: N_total = N_local × K."""
        return self.local_batch * self.accumulation_steps

    @property
    def has_bank(self) -> bool:
        """Whether any past vector can enter the loss."""
        return self.memory_size > 0 and self.passage_bank


def checked(f, value):
    """The value in its field's type and range, or a `ValueError` that says what was given and what may be."""
    choices, kind = f.metadata["choices"], str(f.type)
    if value is None and "None" in kind:
        return None
    wanted = kind.split(" |")[0]
    is_number = isinstance(value, {"int": Integral, "float": Real}.get(wanted, ()))
    is_number = is_number and not isinstance(value, bool)
    if not is_number and type(value).__name__ != wanted:
        raise ValueError(
            f"{f.name} is {shown(value)}, a {type(value).__name__}: it must be {_KINDS[wanted]}, {range_of(f)}."
        )
    if choices and value not in choices:
        raise ValueError(f"{f.name} is {shown(value)}: choose one of {', '.join(choices)}.")
    if is_number:
        if not f.metadata["low"] <= value <= f.metadata["high"]:
            raise ValueError(f"{f.name} is {shown(value)}: it must be {range_of(f)}.")
        return {"int": int, "float": float}[wanted](value)
    if wanted == "str":
        if not value:
            raise ValueError(f"{f.name} is empty: {f.metadata['help']}.")
        check_text(value, f.name)
    return value


def range_of(f) -> str:
    low, high, choices = (f.metadata[k] for k in ("low", "high", "choices"))
    if choices:
        return f"one of {', '.join(choices)}"
    return f"from {low} to {high}" if low is not None else f.metadata["help"]


class _Short(reprlib.Repr):
    """`repr`, shortened where it is long; also of a list that holds one list a billion times."""

    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxtuple = 2, 4, 4, 4
        self.maxstring, self.maxother = 200, 200

    def repr_int(self, number: int, level: int) -> str:
        return repr(number) if abs(number) < 10**40 else "a number of more than 40 digits"


#: What a sentence about a bad value says of it.
shown = _Short().repr

_KINDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}


def check_text(text: str, name: str, remedy: str = "write it in UTF-8") -> None:
    """Raise `ValueError` for half a surrogate pair: bytes that are not UTF-8 become that."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = text[error.start]
        raise ValueError(
            f"{name} is {shown(text)}, and {wrong!r} is no character: {remedy}."
        ) from None


def read(f, text: str):
    """A value of the field's type from text. Raises `ValueError` naming the field, what was given and what may be."""
    kind = str(f.type)
    if "None" in kind and text in ("None", "none", ""):
        return None
    try:
        if kind == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return {"int": int, "float": float, "str": str}[kind.split(" |")[0]](text)
    except (ValueError, KeyError):
        raise ValueError(
            f"{f.name} is {shown(text)}: it must be {_KINDS[kind.split(' |')[0]]}, {range_of(f)}."
        ) from None

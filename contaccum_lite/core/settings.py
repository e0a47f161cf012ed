"""Settings: everything that decides a run, in one frozen dataclass.

Sliders, share lines, options, tests and documents all read this file, so a default or a range
stands here and nowhere else. A field is `setting(default, help, *(low, high, symbol, slider))`; a
`MethodDefault` is a default that the method, the tower or the start may replace. To add a method,
add a row to `core/presets.py`; optional features' settings are in `core/options.py`.

Reading path 8 of 9. Before: core/trainer.py. After: data/types.py.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Real
from urllib.parse import parse_qsl, urlencode

from contaccum_lite.core.fields import MANY, MethodDefault, checked, read, setting
from contaccum_lite.core.options import Options, check_options, default_similarity
from contaccum_lite.core.presets import PRESETS, STARTS, TOWERS, with_start
from contaccum_lite.utils.text import shown


@dataclass(frozen=True)
class Settings(Options):
    """All that decides a run: method, batch, banks, optimiser, towers and seed.

    A field left out takes the default of its method (`PRESETS`), tower (`TOWERS`) or start
    (`STARTS`), then its own.
    Raises `ValueError` with the field, the value and the range for a value out of range, or for one
    that contradicts the method.
    """

    method: str = setting(
        "contaccum", "how one weight update gets its gradient", choices=tuple(PRESETS)
    )
    local_batch: int = setting(
        MethodDefault(8),
        "pairs in one micro-batch (of each process): what must fit in memory",
        *(1, 4096, "N_local", range(1, 33)),
    )
    accumulation_steps: int = setting(
        MethodDefault(16), "micro-batches in one weight update", 1, 1024, "K", range(1, 65)
    )
    memory_size: int = setting(
        MethodDefault(512),
        "vectors in each bank",
        *(0, 1_000_000, "N_memory", (0, 8, 16, 32, 64, 128, 256, 512, 1024)),
    )
    temperature: float = setting(
        MethodDefault(8.0),
        "scores are divided by this: √dim, which suits towers that end in LayerNorm",
        *(1e-3, 1e3, "τ", (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)),
    )
    learning_rate: float = setting(
        MethodDefault(0.005),
        "AdamW's highest learning rate",
        *(1e-8, 10.0, None, (1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02)),
    )
    updates: int = setting(
        400, "weight updates in the whole run", 1, MANY, None, (50, 100, 150, 200, 400, 800, 1600)
    )
    warmup: int = setting(20, "updates of linear warm-up before the linear decay", 0, MANY)
    clip_norm: float = setting(
        2.0, "global gradient norm above which both towers are scaled down; 0 is off", 0.0, 1e9
    )
    seed: int = setting(
        0, "weights, data order and noise all come from this", 0, 2**31 - 1, None, range(100)
    )

    # --- towers
    tower: str = setting(
        "bag",
        "'bag' (fast), 'bert' (a small one, from scratch), or a folder with a transformers encoder",
    )
    start: str = setting(
        MethodDefault("pretrained"),
        "weights before the first update: pretrained on random crops of the passages, or random",
        choices=("pretrained", "random"),
    )
    shared: bool = setting(False, "one tower for queries and passages")
    pooling: str = setting(
        "cls", "how a transformer's tokens become one vector", choices=("cls", "mean")
    )
    dim: int = setting(
        64, "length of a vector (a transformers folder brings its own)", 2, 4096, "d"
    )
    ending: str = setting(
        "layernorm",
        "how a bag tower ends: with LayerNorm, without, with length 1, or before the MLP",
        choices=("layernorm", "none", "unit", "pooled"),
    )
    query_tokens: int = setting(MethodDefault(32), "tokens of a query that are read", 2, 8192)
    passage_tokens: int = setting(
        MethodDefault(64), "tokens of title and passage that are read", 2, 8192
    )

    # --- banks
    query_bank: bool = setting(
        MethodDefault(False), "keep past queries as rows of the similarity matrix", symbol="M_q"
    )
    passage_bank: bool = setting(
        MethodDefault(False), "keep past passages as columns of the similarity matrix", symbol="M_p"
    )
    past_encoder: bool = setting(MethodDefault(True), "keep the banks over weight updates")
    drop_query_bank_at: int | None = setting(
        None, "update from which the query bank is left out; None is never", 0, MANY
    )
    bank_warmup: int = setting(
        MethodDefault(0), "updates before the banks, or a cache, come into use", 0, MANY
    )
    hard_negatives: int = setting(0, "hard negatives per query in a micro-batch", 0, 64)
    bank_hard_negatives: bool = setting(True, "keep past hard negatives in a bank of their own")
    mask_duplicates: bool = setting(
        True, "leave out columns that are the row's own stale self or a copy of its passage"
    )
    momentum: float = setting(
        MethodDefault(0.0),
        "how much the copies that fill the banks keep of themselves; 0 is no copies",
        *(0.0, 0.999999),
    )

    def __post_init__(self):
        if not isinstance(self.method, str) or self.method not in PRESETS:
            raise ValueError(f"method is {shown(self.method)}: choose one of {', '.join(PRESETS)}.")
        defaults = self._defaults()
        for field in fields_in_order():
            value = getattr(self, field.name)
            if value is None and field.name == "similarity":
                value = default_similarity(self)
            elif value is None and field.name != "drop_query_bank_at":
                value = defaults.get(field.name, field.metadata["default"])
            object.__setattr__(self, field.name, checked(field, value))
        self._check_method()
        check_options(self)

    def _defaults(self) -> dict:
        """What the start, the tower and the method say of fields that were left out."""
        preset = PRESETS[self.method]
        tower = TOWERS.get(self.tower, TOWERS["folder"]) if isinstance(self.tower, str) else {}
        has_dim = isinstance(self.dim, Real) and 0 < self.dim < 10**9
        temperature = math.sqrt(self.dim) if has_dim else 1.0  # another dim is refused in its turn
        start = self.start or tower.get("start", "pretrained")
        of_start = STARTS.get(str(start), {})
        of_method = {**preset["defaults"], **preset["fixed"]}
        return {"temperature": temperature, **of_start, **tower, **of_method}

    def _check_method(self) -> None:
        preset = PRESETS[self.method]
        for name, fixed in preset["fixed"].items():
            if getattr(self, name) != fixed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but method {self.method!r} "
                    f"({preset['description']}) fixes it at {fixed!r}: "
                    f"leave {name} out, or choose another method."
                )
        if self.query_bank and not self.passage_bank:
            raise ValueError(
                "query_bank is True and passage_bank is False: the positive of a past query is in "
                "the passage bank, so a query bank needs passage_bank=True."
            )

    # --- other ways to make them ------------------------------------------------------------------

    @classmethod
    def preset(cls, method: str, **fields) -> Settings:
        """A method's settings with changes: `Settings.preset("contaccum", memory_size=512)`."""
        known = field_names()
        for name in fields:
            if name not in known:
                raise ValueError(
                    f"{shown(name)} is not a setting: the settings are {', '.join(sorted(known))}."
                )
        return cls(method=method, **fields)

    @classmethod
    def parse(cls, line: str) -> Settings:
        """Settings from a line made by `share()`. A line without start is an older one: random.

        Raises `ValueError` for an unknown name or a value that cannot be read.
        """
        types = {field.name: field for field in dataclasses.fields(cls)}
        fields: dict = {"method": "contaccum"}
        for name, text in parse_qsl(line.strip().lstrip("?"), keep_blank_values=True):
            fields[name] = read(types[name], text) if name in types else text
        return cls.preset(**with_start(fields))

    def share(self) -> str:
        """This run in one line: the method, the start, and all that differs from its defaults."""
        default = Settings(
            method=self.method,
            tower=self.tower,
            dim=self.dim,
            start=self.start,
            similarity=default_similarity(self),
        )
        fields = {"method": self.method, "start": self.start}
        for name in field_names():
            usual = {"tower": "bag", "dim": 64}.get(name, getattr(default, name))
            if getattr(self, name) != usual:
                fields[name] = getattr(self, name)
        return urlencode(fields, safe="/:")

    def replace(self, **changes) -> Settings:
        """A copy with these fields changed."""
        fields = dataclasses.asdict(self)
        if self.similarity == default_similarity(self):
            fields["similarity"] = None  # it follows the other settings
        return Settings.preset(**{**fields, **changes})

    # --- what follows from them -------------------------------------------------------------------

    @property
    def total_batch(self) -> int:
        """Pairs in one weight update: N_total = N_local × K."""
        return self.local_batch * self.accumulation_steps

    @property
    def has_bank(self) -> bool:
        """Whether any past vector can enter the loss."""
        return self.memory_size > 0 and self.passage_bank


def fields_in_order() -> list[dataclasses.Field]:
    """All fields, those of the method first."""
    fields = dataclasses.fields(Settings)
    optional = {field.name for field in dataclasses.fields(Options)}
    return sorted(fields, key=lambda field: field.name in optional)


def field_names() -> list[str]:
    return [field.name for field in fields_in_order()]

"""Settings that the method does not need: another loss, other batches, stale vectors, and how it is
computed."""

from __future__ import annotations

from dataclasses import dataclass

from contaccum_lite.core.fields import MANY, MethodDefault, setting
from contaccum_lite.core.presets import CORRECTOR_NAMES, PRESETS, TOWERS
from contaccum_lite.utils.text import shown

INCREMENTAL_FROM = 256  # vectors in a bank from which keeping scores is faster (benchmarks/cost.py)


@dataclass(frozen=True)
class Options:
    """The fields of `Settings` that one can leave alone."""

    # --- how a row of scores becomes a loss (core/objectives.py, core/directions.py, core/masks.py)
    objective: str = setting(
        MethodDefault("info_nce"),
        "how a row of scores becomes a loss: softmax, softmax without the positive in the "
        "denominator, one normaliser remembered for each pair, or a sigmoid for each score",
        choices=("info_nce", "decoupled", "sogclr", "sigmoid"),
    )
    gamma: float = setting(
        0.8,
        "share of a pair's remembered normaliser that is new at each visit, for sogclr; "
        "1 remembers nothing",
        *(0.001, 1.0, "γ"),
    )
    gamma_schedule: str = setting(
        "constant",
        "gamma through the run: the same, or by a cosine from 1 down to it (as in FastCLIP)",
        choices=("constant", "cosine"),
    )
    sigmoid_bias: float = setting(
        -2.3, "the sigmoid objective's bias before the first update; it is learned", -100.0, 100.0
    )
    directions: str = setting(
        "query",
        "what is scored: each query against passages; both, also each passage against queries; "
        "or all four pairings of queries and passages in one softmax",
        choices=("query", "both", "all"),
    )
    mask_margin: float | None = setting(
        None,
        "leave out columns whose score, divided by temperature, is above the positive's by more "
        "than this; None is off",
        *(-1000.0, 1000.0, "m"),
    )
    mask_guide: str = setting(
        "self",
        "whose scores mask_margin compares: the towers' own, or those that the towers had before "
        "the first update",
        choices=("self", "start"),
    )

    # --- which pairs meet, and which tower moves
    batch_by: str = setting(
        "shuffle",
        "how micro-batches are made: by chance, or of pairs whose queries lie in one cluster",
        choices=("shuffle", "cluster"),
    )
    clusters: int = setting(
        100, "clusters of the training queries, for batch_by='cluster'", 1, MANY
    )
    cluster_every: int = setting(
        1, "epochs from one clustering to the next, for batch_by='cluster'; 0 is never", 0, MANY
    )
    train_towers: str = setting(
        MethodDefault("both"),
        "which towers learn: both, or the query tower alone while the passage tower is held still",
        choices=("both", "query"),
    )
    corpus_columns: bool = setting(
        MethodDefault(False),
        "every passage of the corpus stands as a column, by the vector that the passage tower, "
        "which is held still, gives it",
    )

    # --- stale vectors
    cache_negatives: int = setting(
        MethodDefault(0),
        "negatives that each query takes from a cache of all passages; 0 is no cache",
        *(0, 64, "k"),
    )
    selection: str = setting(
        "gumbel",
        "how a cache's negatives are chosen: by chance, the highest scores, "
        "or a draw by the scores",
        choices=("uniform", "top_k", "gumbel"),
    )
    static_queries: bool = setting(
        MethodDefault(False), "choose by the queries' vectors of the moment when the cache was made"
    )
    cache_refresh: int = setting(
        MethodDefault(0),
        "updates from one encoding of the whole cache to the next; 0 is never",
        *(0, MANY, "R"),
    )
    cache_oldest: int = setting(
        0, "the cache's oldest passages, encoded again each update", 0, 1_000_000
    )
    write_back: bool = setting(
        False, "put passages that training has encoded again back into the cache"
    )
    corrector: str = setting(
        MethodDefault("identity"),
        "what moves stale vectors to where they would be now",
        choices=CORRECTOR_NAMES,
    )
    probes: int = setting(
        MethodDefault(0),
        "stale vectors encoded again each update for the corrector alone",
        *(0, 1_000_000, "m"),
    )

    refresh_banks: bool = setting(
        False,
        "encode all banked texts again before each update, so that no vector is stale: an "
        "intervention for analysis, not a method",
    )

    # --- how it is computed
    similarity: str = setting(
        MethodDefault("full"),
        "how the similarity matrix is computed: whole each time, its banked part kept while its "
        "vectors live, or in tiles that are never held together",
        choices=("full", "incremental", "tiled"),
    )
    one_forward: bool = setting(
        False,
        "encode an update's micro-batches together: the same gradient in less time, "
        "with the memory of the whole batch",
    )
    precision: str = setting(
        "fp32",
        "number format inside the towers (autocast); weights, banks and loss stay in dtype; "
        "fp16 needs a CUDA device",
        choices=("fp32", "bf16", "fp16"),
    )
    activation_checkpointing: bool = setting(
        False,
        "keep only each layer's input and compute the rest again for the backward pass: "
        "the same gradient, less memory, more time",
    )
    compile: bool = setting(False, "compile a transformers encoder with torch.compile")
    dtype: str = setting(
        "float32", "number format of weights and banks", choices=("float32", "float64")
    )
    device: str = setting("cpu", "where it runs: 'cpu', 'cuda', 'cuda:1', …")

    @property
    def row_softmax(self) -> bool:
        """Whether the loss is one softmax over each query's own row, with fixed masks."""
        softmax = self.objective in ("info_nce", "decoupled")
        plain = softmax and self.directions == "query"
        return plain and self.mask_margin is None and not self.corpus_columns


def keeps_scores(settings) -> bool:
    """Whether scores among banked vectors stay (`scale/incremental_softmax.py`)."""
    banked_stay = not settings.momentum and settings.corrector == "identity"
    one_by_one = PRESETS[settings.method]["algorithm"] == "accumulate"
    banked_stay = banked_stay and one_by_one and settings.row_softmax
    return settings.has_bank and banked_stay and not settings.refresh_banks


def default_similarity(settings) -> str:
    """The faster of the two ways that give the same result."""
    fast = keeps_scores(settings) and settings.memory_size >= INCREMENTAL_FROM
    return "incremental" if fast else "full"


def check_options(settings) -> None:
    """Raise `ValueError` where settings contradict each other."""
    checks = (check_start, check_cache, check_corrector, check_refresh, check_loss, check_towers)
    for check in checks:
        check(settings)


def check_loss(settings) -> None:
    """Raise `ValueError` where the objective's settings contradict each other."""
    if settings.similarity == "tiled":
        _check_tiles(settings)
    if settings.mask_guide != "self" and settings.directions != "query":
        raise ValueError(
            f"mask_guide is {settings.mask_guide!r}, and directions is {settings.directions!r}: "
            "the guide scores queries with passages alone. Set one of them to its default."
        )
    if settings.mask_guide != "self" and settings.mask_margin is None:
        raise ValueError(
            f"mask_guide is {settings.mask_guide!r}, and mask_margin is None: nothing is masked "
            "by scores. Set mask_margin to a number, such as 0."
        )


def _check_tiles(settings) -> None:
    if settings.objective not in ("info_nce", "decoupled"):
        other = f"objective is {settings.objective!r}"
    elif settings.directions != "query":
        other = f"directions is {settings.directions!r}"
    elif settings.mask_margin is not None and settings.mask_guide != "self":
        other = f"mask_guide is {settings.mask_guide!r}"
    else:
        return
    raise ValueError(
        f"similarity is 'tiled', and {other}: tiles are made for info_nce and decoupled, "
        "in the direction 'query', with their own scores. Set similarity to 'full'."
    )


def check_towers(settings) -> None:
    """Raise `ValueError` where a tower that is held still contradicts the other settings."""
    if settings.train_towers == "query" and settings.shared:
        raise ValueError(
            "train_towers is 'query', and shared is True: with one tower for both, none can be "
            "held still. Set one of them to its default."
        )
    if settings.corpus_columns and settings.train_towers != "query":
        raise ValueError(
            "corpus_columns is True, and train_towers is 'both': the corpus's vectors would be of "
            "the passage tower before the first update. Set train_towers to 'query'."
        )
    for name in ("cache_negatives", "hard_negatives"):
        if settings.corpus_columns and getattr(settings, name):
            raise ValueError(
                f"corpus_columns is True, and {name} is {getattr(settings, name)}: every passage "
                f"is a column already. Set {name} to 0."
            )


def check_start(settings) -> None:
    """Raise `ValueError` for a start that the tower cannot have."""
    if settings.tower == "bert" and settings.start == "pretrained":
        raise ValueError(
            "start is 'pretrained', and tower is 'bert': random crops alone do not train a small "
            "BERT. Set start to 'random', or give the folder of a pretrained encoder as tower."
        )
    if settings.tower not in TOWERS and settings.start == "random":
        raise ValueError(
            f"start is 'random', and tower is {shown(settings.tower)}, a folder, whose encoder has "
            "its own weights: leave start out."
        )


def check_cache(settings) -> None:
    """Raise `ValueError` where the settings of a cache contradict each other."""
    if not settings.cache_negatives:
        for name in ("write_back", "cache_oldest", "cache_refresh", "static_queries"):
            if getattr(settings, name):
                raise ValueError(
                    f"{name} is {getattr(settings, name)!r}, and there is no cache: "
                    "set cache_negatives to 1 or more."
                )
    elif settings.hard_negatives or settings.method.startswith("grad_cache"):
        other = f"hard_negatives is {settings.hard_negatives}"
        if not settings.hard_negatives:
            other = f"method is {settings.method!r}"
        raise ValueError(
            f"cache_negatives is {settings.cache_negatives} and {other}: a cache gives the hard "
            "negatives itself, micro-batch by micro-batch. Set one of them to 0."
        )


def check_refresh(settings) -> None:
    """Raise `ValueError` where there is no bank to encode again, or its vectors are not stored."""
    if not settings.refresh_banks:
        return
    if not settings.has_bank:
        raise ValueError("refresh_banks is True, and there is no bank: set memory_size.")
    if settings.momentum or settings.corrector != "identity":
        raise ValueError(
            "refresh_banks is True, and momentum or a corrector changes the bank's vectors "
            "already: set one of them to its default."
        )


def check_corrector(settings) -> None:
    """Raise `ValueError` where a corrector has nothing to correct, or nothing to learn from."""
    if settings.corrector == "identity":
        return
    subject = f"corrector is {settings.corrector!r}"
    if not (settings.cache_negatives or settings.has_bank):
        raise ValueError(f"{subject}, and nothing is stale here: set cache_negatives, or a bank.")
    if settings.has_bank and settings.momentum:
        raise ValueError(
            f"{subject} with momentum {settings.momentum}: the bank's vectors are of slow "
            "towers, so set one of them to its default."
        )
    if settings.has_bank and not settings.probes:
        raise ValueError(
            f"{subject} with a bank, and probes is 0: it learns from banked pairs that are "
            "encoded again, so set probes to 1 or more."
        )

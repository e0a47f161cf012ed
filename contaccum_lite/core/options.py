"""Settings that the method does not need: stale vectors, and how it is computed."""

from __future__ import annotations

from dataclasses import dataclass

from contaccum_lite.core.fields import MANY, MethodDefault, setting
from contaccum_lite.core.presets import CORRECTOR_NAMES, TOWERS
from contaccum_lite.utils.text import shown

INCREMENTAL_FROM = 256  # vectors in a bank from which keeping scores is faster (benchmarks/cost.py)


@dataclass(frozen=True)
class Options:
    """The fields of `Settings` that one can leave alone."""

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
        "how a bank's part of the similarity matrix is computed: whole each time, "
        "or kept while its vectors live",
        choices=("full", "incremental"),
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


def keeps_scores(settings) -> bool:
    """Whether scores among banked vectors stay (`scale/incremental_softmax.py`)."""
    banked_stay = not settings.momentum and settings.corrector == "identity"
    return settings.has_bank and banked_stay and not settings.refresh_banks


def default_similarity(settings) -> str:
    """The faster of the two ways that give the same result."""
    fast = keeps_scores(settings) and settings.memory_size >= INCREMENTAL_FROM
    return "incremental" if fast else "full"


def check_options(settings) -> None:
    """Raise `ValueError` where settings contradict each other."""
    for check in (check_start, check_cache, check_corrector, check_refresh):
        check(settings)


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
    elif settings.hard_negatives or settings.method == "grad_cache":
        other = f"hard_negatives is {settings.hard_negatives}"
        if not settings.hard_negatives:
            other = "method is 'grad_cache'"
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

"""The methods, each a row: its name, what the menu says of it, and the settings that make it."""

from __future__ import annotations

_NO_BANK = {"memory_size": 0, "query_bank": False, "passage_bank": False}
_PASSAGES_ONLY = {"query_bank": False, "passage_bank": True}
_DUAL = {"query_bank": True, "passage_bank": True}
_CACHE = {"local_batch": 32, "accumulation_steps": 1, "cache_negatives": 2, "bank_warmup": 100}


def _method(name, description, fixed=None, defaults=None, algorithm="accumulate"):
    """A method. fixed: what makes it what it is; defaults: where its sliders start."""
    return {
        "name": name,
        "description": description,
        "fixed": fixed or {},
        "defaults": defaults or {},
        "algorithm": algorithm,
    }


PRESETS: dict[str, dict] = {
    "dpr": _method(
        "DPR",
        "one big batch, its own negatives only (DPR)",
        fixed={"accumulation_steps": 1, **_NO_BANK},
        defaults={"local_batch": 128},
    ),
    "grad_accum": _method(
        "GradAccum", "K micro-batches, each with its own negatives only", fixed=_NO_BANK
    ),
    "grad_cache": _method(
        "GradCache",
        "the big batch's gradient by two passes over K micro-batches",
        fixed=_NO_BANK,
        algorithm="grad_cache",
    ),
    "grad_cache_bank": _method(
        "GradCache, bank",
        "GradCache, and a dual bank of earlier updates",
        fixed=_DUAL,
        algorithm="grad_cache",
    ),
    "pre_batch": _method(
        "pre-batch",
        "micro-batches and a passage bank alone (pre-batch negatives)",
        fixed=_PASSAGES_ONLY,
    ),
    "contaccum": _method(
        "ContAccum", "micro-batches and a dual bank of queries and passages", defaults=_DUAL
    ),
    "contaccum_no_past": _method(
        "ContAccum, no past",
        "ContAccum, its banks emptied after each weight update",
        fixed={"past_encoder": False, **_DUAL},
    ),
    "pre_batch_no_past": _method(
        "pre-batch, no past",
        "a passage bank alone, emptied after each weight update",
        fixed={"past_encoder": False, **_PASSAGES_ONLY},
    ),
    "contaccum_no_accum": _method(
        "ContAccum, K = 1",
        "ContAccum without accumulation: one micro-batch per update",
        fixed={"accumulation_steps": 1, **_DUAL},
    ),
    "momentum": _method(
        "momentum",
        "a dual bank filled by slowly moving copies of the towers (as in MoCo)",
        fixed=_DUAL,
        defaults={"momentum": 0.99},
    ),
    "static_negatives": _method(
        "static negatives",
        "hard negatives by the vectors of one moment, of queries and passages alike",
        fixed={"static_queries": True, "cache_refresh": 0, **_NO_BANK},
        defaults=_CACHE,
    ),
    "stale_cache": _method(
        "stale cache",
        "hard negatives by a cache of all passages that is never refreshed",
        fixed={"cache_refresh": 0, "corrector": "identity", **_NO_BANK},
        defaults=_CACHE,
    ),
    "refreshed_cache": _method(
        "refreshed cache",
        "hard negatives by a cache that is encoded again every R updates (as in ANCE)",
        fixed=_NO_BANK,
        defaults={**_CACHE, "cache_refresh": 50},
    ),
    "corrected_cache": _method(
        "corrected cache",
        "hard negatives by a stale cache and a corrector network (Monath et al.)",
        fixed=_NO_BANK,
        defaults={**_CACHE, "corrector": "mlp"},
    ),
    "oracle_cache": _method(
        "oracle cache",
        "hard negatives by a cache that is encoded again for each update",
        fixed={"cache_refresh": 1, "corrector": "identity", **_NO_BANK},
        defaults=_CACHE,
    ),
    "contaccum_corrected": _method(
        "ContAccum, corrected",
        "ContAccum, its banks corrected for age when they are read",
        fixed=_DUAL,
        defaults={"corrector": "ridge", "probes": 16},
    ),
    "pre_batch_corrected": _method(
        "pre-batch, corrected",
        "a passage bank alone, corrected for age when it is read; no query bank",
        fixed=_PASSAGES_ONLY,
        defaults={"corrector": "ridge", "probes": 32},
    ),
    "sogclr": _method(
        "SogCLR",
        "micro-batches, and one remembered normaliser for each training pair",
        fixed={"objective": "sogclr", **_NO_BANK},
    ),
    "query_only": _method(
        "query tower only",
        "the passage tower held still, and the whole corpus as columns (as in ADORE, LiT)",
        fixed={"train_towers": "query", **_NO_BANK},
        defaults={"corpus_columns": True},
    ),
}

#: start -> where its sliders start: a larger bank needs vectors that move slowly.
STARTS: dict[str, dict] = {"pretrained": {"memory_size": 512}, "random": {"memory_size": 128}}

#: tower -> where its sliders start; any other name is a folder with a pretrained encoder, which
#: starts as in the paper.
TOWERS: dict[str, dict] = {
    "bag": {"learning_rate": 0.005},
    "bert": {"learning_rate": 1e-3, "start": "random"},
    "folder": {
        "learning_rate": 2e-5,
        "memory_size": 128,
        "temperature": 1.0,
        "query_tokens": 256,
        "passage_tokens": 256,
    },
}

CORRECTOR_NAMES = ("identity", "mean_shift", "moments", "procrustes", "ridge", "kernel", "mlp")


def with_start(fields: dict) -> dict:
    """Settings that an earlier version wrote, without a start: its towers' weights were random."""
    if fields.get("tower", "bag") in TOWERS:
        return {"start": "random", **fields}
    return fields

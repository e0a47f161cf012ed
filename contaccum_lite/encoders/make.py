"""Making the two towers of a run, and loading saved ones."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from contaccum_lite.encoders.bag import BagTower
from contaccum_lite.encoders.encode import clone_encoder
from contaccum_lite.encoders.files import read_object
from contaccum_lite.encoders.pretraining import load_pretrained_weights
from contaccum_lite.encoders.transformer import TransformerTower
from contaccum_lite.encoders.vocabulary import vocabulary_for


def make_towers(settings, pairs) -> tuple[nn.Module, nn.Module]:
    """The query tower and the passage tower of a run.

    They are separate and equal at the start, or one and the same if `settings.shared`. Random
    weights come from `settings.seed`; the state of PyTorch's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if settings.tower == "bag":
            query = BagTower(vocabulary_for(pairs), settings.dim, settings.ending)
            if settings.start == "pretrained":
                load_pretrained_weights(query, pairs)
        elif settings.tower == "bert":
            query = TransformerTower.small_bert(
                vocabulary_for(pairs), settings.dim, settings.pooling
            )
        else:
            query = load_tower(settings.tower, settings.pooling)
    query = query.to(device=settings.device, dtype=getattr(torch, settings.dtype))
    passage = query if settings.shared else clone_encoder(query)
    return query, passage


def load_tower(folder: str | Path, pooling: str | None = None) -> nn.Module:
    """A tower of either kind from its folder, or a `transformers` encoder by its name on the hub.

    `pooling`: of an encoder; None takes what was saved with it, or "cls". Raises `ValueError` that
    names the broken file.
    """
    path = Path(folder)
    if path.is_dir() and read_object(path / "config.json").get("tower") == "bag":
        return BagTower.from_pretrained(path)
    return TransformerTower.from_pretrained(folder, pooling)

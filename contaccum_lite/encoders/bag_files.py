"""The files of a `BagTower`: config.json, tokenizer.json and model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from contaccum_lite.encoders.files import (
    check_shapes,
    check_tokenizes,
    read_object,
    read_tokenizer,
    read_weights,
)


def save_bag_tower(tower: nn.Module, folder: str | Path) -> None:
    """Write the tower into the folder, which is made if it is not there."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tower.tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tower": "bag", "dim": tower.dim, "ending": tower.ending}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {}
    for name, tensor in tower.state_dict().items():
        weights[name] = tensor.detach().cpu().contiguous()
    save_file(weights, folder / "model.safetensors")


def load_bag_tower(tower_class: type[nn.Module], folder: str | Path) -> nn.Module:
    """A tower of this class from a folder; `ValueError` says which of its files is broken."""
    folder = Path(folder)
    dim, ending = _read_config(folder, tower_class.ENDINGS)
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    path = folder / "model.safetensors"
    weights = read_weights(path)
    # the embedding is most of the tower: its size is compared before memory is taken for it
    embedding = {name: weights[name] for name in weights if name == "embedding.weight"}
    check_shapes(embedding, {"embedding.weight": (tokenizer.get_vocab_size(), dim)}, path)
    tower = tower_class(tokenizer, dim, ending)
    shapes = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
    check_shapes(weights, shapes, path)
    tower.to(weights["embedding.weight"].dtype).load_state_dict(weights)
    check_tokenizes(tower, folder)
    return tower


def _read_config(folder: Path, endings: tuple[str, ...]) -> tuple[int, str]:
    """(dim, ending) from config.json."""
    path = folder / "config.json"
    config = read_object(path)
    if config.get("tower") != "bag":
        raise ValueError(
            f"{folder} holds no bag tower (its config.json says tower={config.get('tower')!r}): "
            "use load_tower."
        )
    dim, ending = config.get("dim"), config.get("ending", "layernorm")
    if type(dim) is not int or dim < 1 or ending not in endings:
        raise ValueError(
            f"{path} has dim={dim!r} and ending={ending!r}: "
            f"expected a whole number above 0, and one of {', '.join(endings)}."
        )
    return dim, ending

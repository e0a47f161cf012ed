"""Loading an encoder of `transformers`, from files that may be broken or written to harm.

Only safetensors are read, and no code that comes with an encoder is run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from contaccum_lite.encoders.encode import without_noise
from contaccum_lite.encoders.files import (
    check_tokenizer,
    error_text,
    interrupts,
    read_object,
    refusing,
)

#: Ways to compute attention that PyTorch brings; for others, transformers may download code.
_ATTENTION = (None, "eager", "sdpa")
#: How many times as large as its files a model may be: what they lack is made in memory.
_MAX_SIZE_RATIO = 10
_JSON_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_COMES_WITH_CODE = (
    "it comes with Python code of its own, which is never run here. If you trust "
    "it, load it yourself with transformers, and give it to the run: "
    "towers=(TransformerTower(model, tokenizer), another)"
)


def load_pretrained(folder: str | Path) -> tuple:
    """(model, tokenizer) from a folder or, by a hub name, from the cache, then from the network."""
    local = Path(folder).is_dir()
    sizes = _check_files(Path(folder)) if local else None
    try:
        try:
            return _load(folder, sizes, local_files_only=True)
        except OSError:
            if local:
                raise
            return _load(folder)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"no encoder could be loaded from {str(folder)!r}: {_COMES_WITH_CODE}."
            ) from error
        raise ValueError(
            f"no encoder could be loaded from {str(folder)!r} ({error_text(error)}): "
            "expected a folder with config.json, model.safetensors and a tokenizer."
        ) from error


def _check_files(folder: Path) -> list[int]:
    """Refuse a folder with a broken file; the size of each tensor in it."""
    from safetensors import safe_open

    for name in _JSON_FILES:
        if (folder / name).is_file():
            read_object(folder / name)
    for path in sorted(folder.glob("tokenizer*.json")):  # tokenizer_config.json can name another
        check_tokenizer(read_object(path), path)
    sizes = []
    for path in sorted(folder.glob("*.safetensors")):
        expected = "tensors in the safetensors format, as they were saved"
        with refusing(path, expected), safe_open(path, "pt") as file:
            sizes += [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]
    return sizes


def _load(folder: str | Path, sizes: list[int] | None = None, **options) -> tuple:
    """(model, tokenizer) by transformers; sizes: of the tensors in the files, where known."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    options = dict(options, trust_remote_code=False)
    with _naming_step("config.json"):
        config = AutoConfig.from_pretrained(folder, **options)
        _check_config(config)
        if sizes is not None:
            _check_size(config, sizes)
    with _naming_step("its weights and config.json do not go together"):
        model, report = AutoModel.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
        missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
        missing = sorted(name for name in missing if "pooler" not in name)  # which no tower keeps
        if missing:
            raise ValueError(
                f"{len(missing)} tensors are missing or of another shape, among them {missing[0]}"
            )
    with _naming_step("its tokenizer, tokenizer.json or tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    if tokenizer.is_fast and sizes is None:
        check_tokenizer(json.loads(tokenizer.backend_tokenizer.to_str()), "tokenizer.json")
    return model, tokenizer


@contextmanager
def _naming_step(step: str) -> Iterator[None]:
    """Say at which step an error came, unless it is about code to be run or a file not there."""
    try:
        yield
    except BaseException as error:
        if interrupts(error) or isinstance(error, OSError) or "trust_remote_code" in str(error):
            raise
        raise ValueError(f"{step}: {error_text(error)}") from error


def _check_config(config) -> None:
    """Refuse what would bring in code or pickles from elsewhere."""
    inner_configs = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    for each in (config, *inner_configs):
        attention = getattr(each, "_attn_implementation", None)
        if attention not in _ATTENTION:
            raise ValueError(
                f"attn_implementation is {attention!r}, for which code may be "
                f"downloaded: expected one of {', '.join(_ATTENTION[1:])}, or none"
            )
    weights = getattr(config, "transformers_weights", None) or ".safetensors"
    if not str(weights).endswith((".safetensors", ".safetensors.index.json")):
        raise ValueError(f"transformers_weights is {weights!r}: only safetensors are read")


def _check_size(config, sizes: list[int]) -> None:
    """Refuse a model far larger than its files, before transformers makes what they lack."""
    from transformers import AutoModel

    names = ("num_hidden_layers", "encoder_layers", "decoder_layers")
    layers = max(getattr(config, name, 0) for name in names)
    if layers > len(sizes):
        raise ValueError(
            f"it speaks of {layers:,} layers, and the files hold {len(sizes):,} tensors"
        )
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=False)
    count = sum(weight.numel() for weight in model.parameters())
    if count > _MAX_SIZE_RATIO * sum(sizes):
        raise ValueError(f"it speaks of {count:,} numbers, and the files hold {sum(sizes):,}")


def check_encodes(tower: nn.Module, folder: str | Path) -> None:
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

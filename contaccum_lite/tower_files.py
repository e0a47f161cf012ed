"""Reading the files of a tower, which may be broken or written to harm.

Whatever is wrong with a file is a `ValueError` that names it. No code that comes with a tower is
ever run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
#: ways to compute attention that PyTorch brings; for others, transformers may download code
_ATTENTION = (None, "eager", "sdpa")
#: how many times as large as its files a model may be: what they lack is made in memory
_ROOM = 10
#: how many characters a tokenizer's steps may make of one, together; ALBERT's make 1,944
_GROWTH = 2000
#: how many characters one step can make of one; steps that only split, strip or translate make 1
_GROWTH_OF = {
    "NFC": 3,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
    "Precompiled": 18,
    "Lowercase": 3,
    "BertNormalizer": 4,
    "ByteLevel": 4,
    "Metaspace": 2,
}
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


@contextmanager
def refusing(path: str | Path, expected: str) -> Iterator[None]:
    """Whatever is raised inside is a `ValueError` with this file's name and what was expected."""
    try:
        yield
    except BaseException as error:
        if _interrupts(error):
            raise
        raise ValueError(f"{path} cannot be read ({said(error)}): expected {expected}.") from error


def _interrupts(error: BaseException) -> bool:
    """Whether an error is no fault of a file. A panic of Rust is no `Exception`."""
    return not isinstance(error, Exception) and type(error).__name__ != "PanicException"


def said(error: BaseException) -> str:
    """The beginning of an error on one line, as plain text: it may quote the file."""
    words = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in words[:200])


def read_object(path: Path) -> dict:
    """The JSON object in this file."""
    with refusing(path, "a JSON object, as it was saved"):
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}")
        return value


# --- tokenizers ----------------------------------------------------------------------------------


def read_tokenizer(path: Path):
    """The tokenizer in this tokenizer.json, which pads and cuts nothing by itself."""
    tokenizer = make_tokenizer(read_object(path), path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def make_tokenizer(value: dict, path: str | Path):
    """The tokenizer that this content of a tokenizer.json describes."""
    from tokenizers import Tokenizer

    check_tokenizer(value, path)
    with refusing(path, "a tokenizer, as it was saved"):
        return Tokenizer.from_str(json.dumps(value))


def check_tokenizer(value: dict, path: str | Path) -> None:
    """Refuse a tokenizer that can make a text too long to handle, or draws its tokens at random."""
    with refusing(path, "the steps of a tokenizer"):
        growth = _growth(value.get("normalizer")) * _growth(value.get("pre_tokenizer"))
    if growth > _GROWTH:
        raise ValueError(
            f"{path} has steps that can make {growth:.3g} characters of one: expected "
            f"{_GROWTH:,} at most. Take out steps of its normalizer or pre-tokenizer."
        )
    model = value.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise ValueError(
            f"{path} draws its tokens at random (dropout is {model['dropout']!r}): "
            "expected the same tokens each time. Set dropout to null."
        )


def _growth(step: dict | None) -> float:
    """At most how many characters a normalizer or a pre-tokenizer makes of one."""
    if step is None:
        return 1
    kind = step.get("type")
    if kind == "Sequence":
        return math.prod(map(_growth, step.get("normalizers") or step.get("pretokenizers") or []))
    if kind == "Prepend":
        return 1 + len(step["prepend"])
    if kind == "Replace":
        old, new = step["pattern"].get("String"), len(step["content"])
        # a regular expression can match between any two characters
        return max(1, new / len(old)) if old else 1 + new
    return _GROWTH_OF.get(kind, 1)


# --- weights -------------------------------------------------------------------------------------


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in this safetensors file."""
    from safetensors.torch import load_file

    with refusing(path, "tensors in the safetensors format, as they were saved"):
        return load_file(path)


def check_shapes(
    weights: dict[str, Tensor], expected: dict[str, tuple[int, ...]], path: Path
) -> None:
    """Refuse weights that are not, tensor by tensor, of the tower that config.json describes."""
    for name in sorted({*weights, *expected}):
        shape = tuple(weights[name].shape) if name in weights else None
        if shape != expected.get(name):
            raise ValueError(
                f"{path} does not fit config.json and tokenizer.json beside it: "
                f"{name[:100]!r} is {shape or 'missing'}, expected "
                f"{expected.get(name) or 'no such tensor'}. Save the tower again."
            )
        if weights[name].dtype not in _FLOATS:
            raise ValueError(
                f"{path} holds {name!r} as {weights[name].dtype}: expected one of "
                f"{', '.join(map(str, _FLOATS))}."
            )


# --- encoders of transformers --------------------------------------------------------------------


def pretrained(folder: str | Path) -> tuple:
    """(model, tokenizer) from a folder or, by a hub name, from the cache, then from the network.

    Only safetensors are read, and no code that comes with the encoder is run.
    """
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
            f"no encoder could be loaded from {str(folder)!r} ({said(error)}): "
            "expected a folder with config.json, model.safetensors and a "
            "tokenizer."
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
    with _named("config.json"):
        config = AutoConfig.from_pretrained(folder, **options)
        _check_config(config)
        if sizes is not None:
            _check_size(config, sizes)
    with _named("its weights and config.json do not go together"):
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
    with _named("its tokenizer, tokenizer.json or tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    if tokenizer.is_fast and sizes is None:
        check_tokenizer(json.loads(tokenizer.backend_tokenizer.to_str()), "tokenizer.json")
    return model, tokenizer


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say at which step an error came, unless it is about code to be run or a file not there."""
    try:
        yield
    except BaseException as error:
        if _interrupts(error) or isinstance(error, OSError) or "trust_remote_code" in str(error):
            raise
        raise ValueError(f"{what}: {said(error)}") from error


def _check_config(config) -> None:
    """Refuse what would bring in code or pickles from elsewhere."""
    for part in (config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))):
        attention = getattr(part, "_attn_implementation", None)
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
    if count > _ROOM * sum(sizes):
        raise ValueError(f"it speaks of {count:,} numbers, and the files hold {sum(sizes):,}")

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
from torch import Tensor, nn

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
#: How many characters a tokenizer's steps may make of one, together; ALBERT's make 1,944.
_MAX_GROWTH = 2000
#: How many characters one step can make of one; steps that only split, strip or translate make 1.
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


@contextmanager
def refusing(path: str | Path, expected: str) -> Iterator[None]:
    """Whatever is raised inside is a `ValueError` with this file's name and what was expected."""
    try:
        yield
    except BaseException as error:
        if interrupts(error):
            raise
        raise ValueError(
            f"{path} cannot be read ({error_text(error)}): expected {expected}."
        ) from error


def interrupts(error: BaseException) -> bool:
    """Whether an error is no fault of a file. A panic of Rust is no `Exception`."""
    return not isinstance(error, Exception) and type(error).__name__ != "PanicException"


def error_text(error: BaseException) -> str:
    """The beginning of an error on one line, as plain text: it may quote the file."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:200])


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
    if growth > _MAX_GROWTH:
        raise ValueError(
            f"{path} has steps that can make {growth:.3g} characters of one: expected "
            f"{_MAX_GROWTH:,} at most. Take out steps of its normalizer or pre-tokenizer."
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


def check_tokenizes(tower: nn.Module, folder: str | Path) -> None:
    """Refuse a tower whose tokenizer loads, and cannot read a text."""
    with refusing(f"{folder}/tokenizer.json", "a tokenizer that reads any text"):
        tower.tokenize(["a text, \u2603"], ["its title"], length=8)

"""A run on disk: a folder that always holds one whole state, in safetensors and JSON.

    run.json                 settings, history and counters, and the name of the state's folder
    update-000400-1a2b3c4d/  query_tower/ · passage_tower/ · state.safetensors

A new state is written beside the old one, and `run.json` is then switched from one to the other.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from contaccum_lite.core.micro_step import Update
from contaccum_lite.core.presets import with_start
from contaccum_lite.core.settings import Settings
from contaccum_lite.encoders.make import load_tower
from contaccum_lite.utils.files import fsync_tree, write_atomically
from contaccum_lite.utils.folders import (
    DAMAGED,
    LOCK,
    alone_in,
    check_digests,
    check_record,
    digests_of,
    is_temporary,
    short,
)
from contaccum_lite.utils.text import one_line

_FORMAT = 1
_STATE = re.compile(r"update-\d{6,}-[0-9a-f]{8}")  # the folder of a saved state
_TRIES = 100  # a reader's, while a training process replaces what it reads
_NEEDED: dict[str, type] = {
    "state": str,
    "settings": dict,
    "step": int,
    "pairs": str,
    "fingerprint": str,
    "history": list,
}
_OPTIONAL: dict[str, type] = {
    "loss_scale": list,
    "encodes": dict,
    "digests": dict,
    "place": list,
}  # not in every older run

#: What earlier versions call a bank's buffers, and what they are called now.
_BANK_NAMES = {
    "vectors": "slots",
    "ids": "slot_ids",
    "born": "written_at",
    "position": "_extra_state",
}


# --- writing --------------------------------------------------------------------------------------


def save(run, folder: str | Path) -> None:
    """Write all that the run needs to resume into the folder.

    A crash at any moment leaves the folder with the state saved before or with this one, never a
    mixture. An earlier run in the folder is replaced; files that no run wrote stay. Raises
    `ValueError` where run.json is another kind of file, or another process is writing here.
    """
    folder = Path(folder)
    with alone_in(folder):
        if (folder / "run.json").exists() and not _run_json(folder):
            raise ValueError(
                f"{folder / 'run.json'} is not a run's: save into another folder, "
                "or move that file."
            )
        state = folder / f"update-{run.step_count:06d}-{secrets.token_hex(4)}"
        try:
            state.mkdir()
            _write_state(run, state)
            write_atomically(folder / "run.json", json.dumps(_record(run, state)).encode())
        except BaseException:
            if _run_json(folder).get("state") != state.name:  # else the switch is done: it counts
                shutil.rmtree(state, ignore_errors=True)
            raise
        _remove_older(folder, state)


def _write_state(run, state: Path) -> None:
    """Towers, optimiser, banks and extensions, brought to the disk."""
    from safetensors.torch import save_file

    for name, tower in zip(("query_tower", "passage_tower"), run.learner.towers, strict=False):
        tower.save_pretrained(state / name)
    save_file(tensors_of(run), state / "state.safetensors")
    fsync_tree(state)


def _record(run, state: Path) -> dict:
    """What run.json says."""
    return {
        "format": _FORMAT,
        "state": state.name,
        "settings": dataclasses.asdict(run.settings),
        "step": run.step_count,
        "pairs": run.pairs.name,
        "fingerprint": run.pairs.fingerprint,
        "texts": _fingerprint_of_texts(run.pairs, run.settings),
        "loss_scale": run.learner.loss_scale.state(),
        "history": run.history,
        "encodes": run.encodes,
        "place": run.sampler.locate(run.step_count),
        "digests": digests_of(state),
    }


def _remove_older(folder: Path, state: Path) -> None:
    """Remove older states, and what a killed save left."""
    for path in folder.iterdir():
        if is_temporary(path.name, "run.json") and path.is_file():
            path.unlink(missing_ok=True)
        elif path != state and _STATE.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _fingerprint_of_texts(pairs, settings: Settings) -> str | None:
    """The fingerprint of the texts that training sees beside the pairs, None without any."""
    if settings.cache_negatives:
        return pairs.passages_fingerprint
    return pairs.hard_negatives_fingerprint if settings.hard_negatives else None


# --- tensors --------------------------------------------------------------------------------------


def tensors_of(run) -> dict[str, torch.Tensor]:
    """Optimiser, banks and extensions as named tensors."""
    tensors: dict[str, torch.Tensor] = {}
    for number, slots in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in slots.items()}
    for name, value in run.learner.banks.state_dict().items():
        tensors[f"banks.{name}"] = value
    for extension in run.learner.extensions:
        for name, value in extension.state_dict().items():
            tensors[f"{extension.name}.{name}"] = value
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def load_tensors(run, tensors: dict[str, torch.Tensor]) -> None:
    """Be as the run that gave these tensors."""
    tensors = {_present_name(name, run): value for name, value in tensors.items()}
    groups: dict[str, dict] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        groups.setdefault(kind, {})[rest] = value
    optimizer = run.optimizer.state_dict()
    for name, value in groups.get("optimizer", {}).items():
        number, _, slot = name.partition(".")
        optimizer["state"].setdefault(int(number), {})[slot] = value
    for slots in optimizer["state"].values():
        if slots.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"the optimiser's state has {short(sorted(slots))}")
    run.optimizer.load_state_dict(optimizer)
    run.learner.banks.load_state_dict(groups["banks"])
    for extension in run.learner.extensions:
        extension.load_state_dict(groups.get(extension.name, {}))


def _present_name(name: str, run) -> str:
    """The name that a tensor of an earlier version's file has now."""
    kind, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    if kind == "bank":
        bank = ("query_bank", "passage_bank", "hard_bank")[int(number)]
        return f"banks.{bank}.{_BANK_NAMES[rest]}"
    if kind == "stale":
        stale = [e.name for e in run.learner.extensions if e.name in ("cache", "correction")]
        before, pairs, buffer = rest.rpartition("pairs.")
        buffer = _BANK_NAMES[buffer] if pairs else buffer
        return f"{stale[int(number)]}.{before}{pairs}{buffer}"
    if kind == "softmax" and number == "0":
        return f"softmax.{rest}"
    if kind == "slow":
        return f"momentum.{number}.{rest}"
    return name


# --- reading --------------------------------------------------------------------------------------


def load(folder: str | Path, pairs, make_run: Callable):
    """The run as it was saved; make_run(settings, towers) gives a new one, which is filled."""
    return while_it_stands(
        folder, lambda record, state: _load(folder, record, state, pairs, make_run)
    )


def _load(folder, record: dict, state: Path, pairs, make_run: Callable):
    settings = saved_settings(folder, record)
    _check_pairs(folder, record, pairs, settings)
    check_digests(state, record.get("digests", {}))
    towers = saved_towers(state, settings)
    run = make_run(settings, (towers[0], towers[-1]))
    _read_state(run, state / "state.safetensors")
    run.set_history(record["history"])
    if "place" in record:  # else no update has had another size
        run.set_place(*record["place"])
    run.learner.loss_scale.load_state(record.get("loss_scale"))
    run.learner.encodes.update(record.get("encodes", {}))
    return run


def _check_pairs(folder, record: dict, pairs, settings: Settings) -> None:
    """Raise `ValueError` where these are not the pairs that the run was trained on."""
    if record["fingerprint"] != pairs.fingerprint:
        trained = one_line(f"{record['pairs']}, {record['fingerprint']}")
        other = one_line(f"{pairs.name}, {pairs.fingerprint}")
        raise ValueError(
            f"{folder} was trained on other pairs ({trained}) than the ones given ({other}): "
            "give the same data; python-docs changes with the installed packages."
        )
    fingerprint = _fingerprint_of_texts(pairs, settings)
    if record.get("texts") not in (None, fingerprint):  # older versions saved none
        texts = "passages" if settings.cache_negatives else "hard negatives"
        raise ValueError(
            f"{folder} was trained on {one_line(pairs.name)} with other texts of its {texts} than "
            "it has now: give the same data."
        )


def _read_state(run, path: Path) -> None:
    """Take optimiser, banks and extensions from a file; `ValueError` where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    errors = OSError, ValueError, KeyError, IndexError, AttributeError, TypeError, RuntimeError
    try:
        load_tensors(run, load_file(path, device=run.settings.device))
    except (SafetensorError, *errors) as error:  # tensors of any name and shape
        if "memory" in str(error):  # it ran out
            raise
        raise ValueError(
            f"{path} does not hold this run's state ({type(error).__name__}: "
            f"{one_line(str(error))}). {DAMAGED}"
        ) from error


def read_run(folder: str | Path) -> tuple[dict, Path]:
    """(what its run.json says, the folder of its state) of a saved run.

    Raises `ValueError` where there is none that this version reads.
    """
    folder = Path(folder)
    path = folder / "run.json"
    try:
        record = json.loads(path.read_bytes())
        version = record["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{folder} holds no saved run ({type(error).__name__}: {error}): "
            "expected a folder that run.save wrote."
        ) from None
    if version != _FORMAT:
        raise ValueError(
            f"{folder} was saved in format {short(version)}; this version reads format {_FORMAT}."
        )
    check_record(path, record, _NEEDED, _OPTIONAL)
    if not _STATE.fullmatch(record["state"]):
        raise ValueError(
            f"{path} has {short(record['state'])} as 'state': expected the name of a folder beside "
            f"it, such as 'update-000100-1a2b3c4d'. {DAMAGED}"
        )
    for name, is_valid in _VALID.items():
        if name in record and not is_valid(record[name]):
            raise ValueError(
                f"{path} has {short(record[name])} as {name!r}, which no run wrote. {DAMAGED}"
            )
    if record["step"] != len(record["history"]):
        raise ValueError(
            f"{path} has {record['step']} as 'step', and a history of "
            f"{len(record['history'])} updates. {DAMAGED}"
        )
    return record, folder / record["state"]


def _is_number(value) -> bool:
    return type(value) in (int, float)


def _is_history(updates: list) -> bool:
    for update in updates:
        if type(update) is not list or len(update) != len(Update._fields):
            return False
        if not all(map(_is_number, update)):
            return False
    return True


def _is_loss_scale(scale: list) -> bool:
    return len(scale) == 2 and all(map(_is_number, scale)) and 0 < scale[0] < math.inf


def _is_place(place: list) -> bool:
    return len(place) == 2 and all(type(number) is int and number >= 0 for number in place)


#: What must hold of a list or an object in run.json.
_VALID = {
    "history": _is_history,
    "loss_scale": _is_loss_scale,
    "place": _is_place,
    "encodes": lambda counts: all(type(count) is int for count in counts.values()),
    "digests": lambda digests: all(type(digest) is str for digest in digests.values()),
}


def saved_settings(folder: str | Path, record: dict, **changes) -> Settings:
    """The settings in a run.json, some of them changed. Raises `ValueError` for what are none."""
    try:
        return Settings.preset(**{**with_start(record["settings"]), **changes})
    except (ValueError, TypeError, OverflowError) as error:  # TypeError: 'method' is not there
        raise ValueError(f"{Path(folder) / 'run.json'}: {error}") from None


def saved_towers(state: Path, settings: Settings) -> list:
    """The query tower and the passage tower of a saved state, or the one that is both."""
    towers = []
    for name in ("query_tower", "passage_tower")[: 2 - settings.shared]:
        if not (state / name).is_dir():  # a name alone would be looked up on the hub
            raise ValueError(f"{state} has no folder {name!r}. {DAMAGED}")
        tower = load_tower(state / name, settings.pooling)
        towers.append(tower.to(device=settings.device, dtype=getattr(torch, settings.dtype)))
    return towers


def while_it_stands(folder: str | Path, load: Callable):
    """`load(record, state folder)` of a saved run; again where it was replaced in the meantime."""
    for _ in range(_TRIES):
        record, state = read_run(folder)
        try:
            return load(record, state)
        except Exception as error:
            if _run_json(Path(folder)).get("state") == state.name:
                raise
            last = error
    raise ValueError(
        f"{folder} was replaced by a training process {_TRIES} times while it was read: try again "
        "when that process saves less often."
    ) from last


def _run_json(folder: Path) -> dict:
    """What the folder's run.json says; nothing where there is none, or none that a run wrote."""
    try:
        record = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and {"format", "state"} <= record.keys() else {}


# --- what else is in a folder ---------------------------------------------------------------------

_WRITES = ("log.jsonl", "tensorboard")  # settings.yaml is read: the command line compares it


def other_files(folder: Path, resumes: bool) -> list[str]:
    """Names in the folder that training would overwrite, or that no run wrote.

    resumes: the folder holds a run. What else is in there is then left alone, and only the names
    that training writes are looked at.
    """
    if not folder.is_dir():
        return []
    others = [path.name for path in sorted(folder.iterdir()) if not _is_ours(path)]
    return [name for name in others if not resumes or name in _WRITES]


def _is_ours(path: Path) -> bool:
    """Whether this is a file or folder that a training run wrote, by its exact name and kind."""
    name = path.name
    begins = {"settings.yaml": b"# method=", "log.jsonl": b'{"step": '}.get(name)
    if begins is not None:
        head = _head(path, len(begins))
        return head is not None and begins.startswith(head)  # less, where it was killed
    if name == "run.json":
        return bool(_run_json(path.parent))
    if name == "tensorboard" or _STATE.fullmatch(name):
        return path.is_dir()
    ours = ("run.json", "settings.yaml", "log.jsonl")
    temporary = any(is_temporary(name, target) for target in ours)
    return name == LOCK or temporary and path.is_file()


def _head(path: Path, size: int) -> bytes | None:
    """The first bytes of a file; None where it is none that can be read."""
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError:
        return None

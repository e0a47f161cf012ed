"""ContAccum as a loss for `SentenceTransformerTrainer`: past queries and passages as further rows and columns.

    loss = ContAccumLoss(model, memory_size=1024)
    SentenceTransformerTrainer(model, args, train_dataset=pairs, loss=loss, callbacks=[loss.callback]).train()

The trainer accumulates (`gradient_accumulation_steps` is K) and divides by K; each micro-batch sees the banks as they stand and
then goes into them. The callback keeps the banks in every checkpoint and brings them back on resume. Needs the [scale] extra.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
import weakref
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import cos_sim
from torch import Tensor, nn
from transformers import TrainerCallback

from .loss import duplicate_mask

_BANKS = ("position", "vectors", "keys")
_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LONGEST = 32_768  # tokens of a text that count for what it is
_FACTORS = torch.from_numpy(
    np.random.Generator(np.random.PCG64(20240618)).integers(-(2**63), 2**63, size=_LONGEST)
)


class ContAccumLoss(nn.Module):
    """InfoNCE over a micro-batch and the banks of past queries, passages and hard negatives; the mean over all rows.

    model: a `SentenceTransformer`. memory_size: pairs in the banks (N_memory); with 0 it is MultipleNegativesRankingLoss.
    query_bank=False leaves passages alone in memory (pre-batch negatives); past_encoder=False empties the banks after each weight
    update; bank_hard_negatives=False keeps no hard negatives. scale: 1/τ, by which similarities are multiplied. similarity_fct:
    of (n, d) and (m, d) vectors, (n, m); `cos_sim`, or `dot_score` with scale=1. mask_duplicates: a row leaves out its own stale
    self and copies of its passage, known by their token ids (not with memory_size=0). gather_across_devices: the micro-batches of
    all processes are one, and the banks the same everywhere; otherwise each process has banks of its own. name: of the banks' file
    in a checkpoint; where a training has several such losses, each needs a name of its own.

    With its callback, a training starts with empty banks, unless it resumes or `load_banks` was called before it. Other losses
    that call this one several times for a batch (AdaptiveLayerLoss, MatryoshkaLoss, Matryoshka2dLoss) are refused.

    Columns of the data: (anchor, positive), or with any number of negatives after them. In evaluation (`model.eval()`, or without
    gradients) the banks are neither read nor written. Banks and scores are float32 at least, under autocast too. Equation 7;
    notebooks 03 and 09. Raises `ValueError` for settings or data that do not fit.
    """

    def __init__(
        self,
        model,
        memory_size: int,
        *,
        query_bank: bool = True,
        passage_bank: bool = True,
        bank_hard_negatives: bool = True,
        past_encoder: bool = True,
        scale: float = 20.0,
        similarity_fct=cos_sim,
        mask_duplicates: bool = True,
        gather_across_devices: bool = True,
        name: str = "contaccum",
    ):
        super().__init__()
        memory_size, scale = _sizes(memory_size, scale)
        _check_name(name)
        if not callable(similarity_fct):
            raise ValueError(
                f"similarity_fct is {similarity_fct!r}: expected a function of (n, d) "
                "and (m, d) vectors that gives (n, m) similarities, like cos_sim."
            )
        _check_switches(
            query_bank=query_bank,
            passage_bank=passage_bank,
            bank_hard_negatives=bank_hard_negatives,
            past_encoder=past_encoder,
            mask_duplicates=mask_duplicates,
            gather_across_devices=gather_across_devices,
        )
        if query_bank and not passage_bank:
            raise ValueError(
                "query_bank is True and passage_bank is False: the positive of a past query is in the passage bank, so a query bank needs "
                "passage_bank=True."
            )
        self.model = model
        self.memory_size, self.query_bank, self.passage_bank, self.bank_hard_negatives = (
            memory_size,
            query_bank,
            passage_bank,
            bank_hard_negatives,
        )
        self.past_encoder, self.scale, self.similarity_fct = past_encoder, scale, similarity_fct
        self.mask_duplicates, self.gather_across_devices, self.name = (
            mask_duplicates,
            gather_across_devices,
            name,
        )
        self.callback = BankCallback(self)
        self._empties_itself = None
        self._pending = (
            None  # the texts of a batch whose backward pass has not come yet (a weak reference)
        )
        self.register_buffer(
            "position", torch.zeros(2, dtype=torch.int64)
        )  # where the next pair goes, and how many there are
        self.register_buffer(
            "vectors", torch.zeros(memory_size * passage_bank, 2, 0)
        )  # (N, query, passage and hard negatives, d)
        self.register_buffer("keys", torch.zeros(memory_size * passage_bank, 2, dtype=torch.int64))

    def __len__(self) -> int:
        """Pairs in the banks."""
        return int(self.position[1])

    # --- the loss ------------------------------------------------------------------------------------------------------

    def forward(self, sentence_features, labels: Tensor | None = None) -> Tensor:
        features = list(sentence_features)
        if len(features) < 2:
            raise ValueError(
                f"the data have {len(features)} column of texts: expected (anchor, positive), and perhaps negatives after them."
            )
        texts = next((value for value in features[0].values() if isinstance(value, Tensor)), None)
        self._refuse_again(texts)
        keys = self._keys(features)  # before the model: it may change the features
        found = [self.model(column)["sentence_embedding"] for column in features]
        loss = self.compute_loss_from_embeddings(found, labels, keys)
        if self._remembers and loss.requires_grad and texts is not None:
            self._pending = weakref.ref(texts)
            loss.register_hook(self._backward_has_come)
        return loss

    def _refuse_again(self, texts: Tensor | None) -> None:
        """Refuse a batch that comes again before its backward pass: banks would hold it twice."""
        pending = self._pending and self._pending()
        if self._remembers and pending is not None and pending is texts:
            raise ValueError(
                "ContAccumLoss was called a second time with the same batch, before the backward pass "
                "of the first: each of its pairs would be in the banks several times. A loss around it "
                "that calls it for several layers or dimensions (AdaptiveLayerLoss, MatryoshkaLoss, "
                "Matryoshka2dLoss) does so: train with ContAccumLoss itself. To look at a batch's loss, "
                "call it under torch.no_grad()."
            )

    def _backward_has_come(self, _: Tensor) -> None:
        self._pending = None

    @property
    def _remembers(self) -> bool:
        """Whether a batch is compared with the banks and goes into them: in training only."""
        has_banks = self.memory_size > 0 and self.passage_bank
        return has_banks and self.model.training and torch.is_grad_enabled()

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """The loss of (B, d) vectors of each column; keys: (B, columns) numbers that are equal for equal texts."""
        remembers = self._remembers
        vectors = torch.stack(
            [part.to(torch.promote_types(part.dtype, torch.float32)) for part in embeddings], 1
        )  # (B, columns, d)
        masks = self.mask_duplicates and self.memory_size > 0 and keys is not None
        keys = (
            torch.zeros(vectors.shape[:2], dtype=torch.int64, device=vectors.device)
            if keys is None
            else keys
        )
        if self.gather_across_devices and _processes() > 1:
            vectors, keys = _gathered(vectors), _gathered(keys)
        if remembers:
            self._make_room(vectors)
            self._empty_after_updates()
        with torch.autocast(vectors.device.type, enabled=False):
            loss = self._contrast(vectors, keys, len(self) if remembers else 0, masks)
        if remembers:
            self._remember(vectors.detach(), keys)
        return loss

    def _contrast(self, vectors: Tensor, keys: Tensor, kept: int, masks: bool) -> Tensor:
        """The mean over the rows [local ; bank], by columns [passages ; bank ; hard negatives ; banked hard negatives]."""
        bank = self.vectors[:kept].to(vectors) if kept else vectors[:0].detach()
        bank_keys = self.keys[:kept] if kept else keys[:0]
        rows, columns = [vectors[:, 0]], [vectors[:, 1], bank[:, 1], *vectors[:, 2:].unbind(1)]
        texts = [keys[:, 1], bank_keys[:, 1], *keys[:, 2:].unbind(1)]
        if self.query_bank:
            rows.append(bank[:, 0])
        if self.bank_hard_negatives:
            columns += bank[:, 2:].unbind(1)
            texts += bank_keys[:, 2:].unbind(1)
        rows, columns, texts = torch.cat(rows), torch.cat(columns), torch.cat(texts)
        scores = self.similarity_fct(rows, columns) * self.scale
        if scores.shape != (len(rows), len(columns)):
            raise ValueError(
                f"similarity_fct gave {tuple(scores.shape)} similarities of {len(rows)} queries and {len(columns)} passages: "
                "expected those of each query with each passage, like cos_sim's, not of pairs."
            )
        if masks:
            queries = torch.full_like(texts, -1)
            queries[: len(keys) + kept] = torch.cat([keys[:, 0], bank_keys[:, 0]])
            mask = duplicate_mask(queries, texts, len(rows))
            scores = scores if mask is None else scores.masked_fill(mask, -torch.inf)
        return nn.functional.cross_entropy(scores, torch.arange(len(rows), device=scores.device))

    def _keys(self, features: list[dict[str, Any]]) -> Tensor | None:
        """(B, columns): a number of 63 bits for each text, whatever its padding; None where texts are not rows of token ids."""
        found = []
        for column in features:
            ids, mask = column.get("input_ids"), column.get("attention_mask")
            if not (
                isinstance(ids, Tensor)
                and isinstance(mask, Tensor)
                and ids.ndim == 2
                and ids.shape == mask.shape
            ):
                if self.mask_duplicates and self.memory_size:
                    raise ValueError(
                        "the model's features are not rows of token ids with an attention mask, by which equal texts would be known: "
                        "set mask_duplicates=False."
                    )
                return None
            places = (mask.long().cumsum(1) - 1).clamp(0, _LONGEST - 1)
            found.append(
                (((ids.long() + 1) * _FACTORS.to(ids.device)[places] * mask.long()).sum(1))
                & (2**63 - 1)
            )  # sums go round at 2**64
        return torch.stack(found, 1)

    def __getstate__(self) -> dict[str, Any]:
        """Copies, and losses in other processes, await no backward pass and have hooks of their own."""
        return {**self.__dict__, "_pending": None, "_empties_itself": None}

    def _apply(self, fn, recurse: bool = True):
        """`half` and its like are for the model: the banks move with it, but stay as precise as they are."""
        vectors = self.vectors
        super()._apply(fn, recurse)
        if self.vectors.dtype.itemsize < vectors.dtype.itemsize:
            self.vectors = vectors.to(self.vectors.device)
        return self

    # --- the banks -----------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget all past vectors."""
        self.position.zero_()

    def _make_room(self, vectors: Tensor) -> None:
        """Banks for vectors of this kind, when the first come."""
        shape = (self.memory_size, *vectors.shape[1:])
        if not self.vectors.numel() and not len(self):
            self.vectors = vectors.new_zeros(shape, requires_grad=False)
            self.keys = torch.zeros(shape[:2], dtype=torch.int64, device=vectors.device)
        self.vectors, self.keys = (
            self.vectors.to(vectors.device),
            self.keys.to(vectors.device),
        )  # loaded, and not moved
        if self.vectors.shape != shape:
            raise ValueError(
                f"this batch has {vectors.shape[1]} columns of vectors of length {vectors.shape[2]}, and the banks hold "
                f"{self.vectors.shape[1]} of length {self.vectors.shape[2]}: one ContAccumLoss keeps one kind. "
                "Give each data set its own; and a loss around it that shortens vectors (MatryoshkaLoss, "
                "Matryoshka2dLoss) does not go with banks: train with ContAccumLoss itself."
            )

    @torch.no_grad()
    def _remember(self, vectors: Tensor, keys: Tensor) -> None:
        """Write (B, columns, d) vectors over the oldest ones, after their loss: they never meet themselves.

        A micro-batch that overflowed in half precision is left out: a trainer skips its update, and the banks would make
        the losses of all updates after it nan.
        """
        if not vectors.isfinite().all():
            return
        start, count = self.position.tolist()
        new = min(len(vectors), self.memory_size)
        slots = torch.arange(start, start + new, device=vectors.device) % self.memory_size
        self.vectors[slots], self.keys[slots] = vectors[-new:].to(self.vectors), keys[-new:]
        self.position.copy_(
            torch.tensor([(start + new) % self.memory_size, min(count + new, self.memory_size)])
        )

    def _empty_after_updates(self) -> None:
        """Without past encoders, the banks are emptied by whatever optimiser moves this model's weights."""
        if not self.past_encoder and self._empties_itself is None:
            from torch.optim.optimizer import register_optimizer_step_post_hook

            self._empties_itself = register_optimizer_step_post_hook(_Emptying(self))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, *problems):
        """All of the banks or nothing; they are as large as their first batch made them."""
        banks = {name: state_dict[prefix + name] for name in _BANKS if prefix + name in state_dict}
        if banks:
            fault = _fault(banks, len(self.vectors))
            if fault:
                problems[-1].append(f"these are no banks of this ContAccumLoss: {fault}.")
                return
            self._take(banks)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *problems)

    def _take(self, banks: dict[str, Tensor]) -> None:
        """Have these banks, of which `_fault` found none."""
        with torch.inference_mode(False):  # else no training could write into them
            banks = {
                name: value.to(self.position.device, copy=True) for name, value in banks.items()
            }
            vectors = banks["vectors"]
            banks["vectors"] = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        for name in _BANKS:
            setattr(self, name, banks[name])
        self.callback.loaded = True

    def bank_state(self) -> dict[str, Tensor]:
        """The banks as tensors: vectors (N, columns, d), keys (N, columns), position (2,)."""
        return {name: getattr(self, name).detach().cpu().contiguous().clone() for name in _BANKS}

    def save_banks(self, folder: str | Path) -> None:
        """Write the banks into a folder, all or nothing; with several processes that share them, the first one writes."""
        from safetensors.torch import save

        from .data import write_atomically

        if self._rank == 0 or not self.gather_across_devices:
            banks = self.bank_state()
            marks = {"training": self.callback.training, "digest": _digest(banks)}
            write_atomically(self._file(folder), save(banks, marks))

    def load_banks(self, folder: str | Path) -> None:
        """Take the banks that `save_banks` wrote; the next training starts with them.

        Raises `ValueError` where there are none, or of another size, or damaged ones; this loss then stays as it was.
        """
        self._load(folder)

    def _load(self, folder: str | Path, training: str | None = None) -> None:
        """`load_banks`, of this training alone if one is given."""
        file = self._file(folder)
        banks, written_by = _read(file)
        if len(banks["vectors"]) != len(self.vectors):
            raise ValueError(
                f"{folder} holds banks of {len(banks['vectors'])} pairs, this loss has {len(self.vectors)}: give it memory_size="
                f"{len(banks['vectors'])}."
            )
        if training is not None and training != written_by:
            raise ValueError(f"{file} was written by another training than the checkpoint.")
        self._take(banks)

    @property
    def _rank(self) -> int:
        return torch.distributed.get_rank() if _processes() > 1 else 0

    def _file(self, folder: str | Path) -> Path:
        of = "" if self.gather_across_devices or _processes() == 1 else f"-{self._rank}"
        return Path(folder) / f"{self.name}{of}.safetensors"

    # --- what model cards ask ------------------------------------------------------------------------------------------

    def get_config_dict(self) -> dict[str, Any]:
        names = (
            "memory_size",
            "query_bank",
            "passage_bank",
            "bank_hard_negatives",
            "past_encoder",
            "scale",
            "mask_duplicates",
            "gather_across_devices",
        )
        return {
            **{name: getattr(self, name) for name in names},
            "similarity_fct": getattr(self.similarity_fct, "__name__", str(self.similarity_fct)),
        }

    @property
    def temperature(self) -> float:
        return 1 / self.scale

    @property
    def citation(self) -> str:
        return """
@inproceedings{kim2024contaccum,
    title = {A Gradient Accumulation Method for Dense Retriever under Memory Constraint},
    author = {Kim, Jaehee and Lee, Yukyung and Kang, Pilsung},
    booktitle = {Advances in Neural Information Processing Systems},
    year = {2024},
    url = {https://arxiv.org/abs/2406.12356}
}
"""


class BankCallback(TrainerCallback):
    """Keeps the banks of a `ContAccumLoss` in the trainer's checkpoints, and takes them from the one that training resumes from.

    A trainer does not tell its callbacks where it resumes from, but gives them what its checkpoint's trainer_state.json holds.
    So each training has a number of its own, which stands in that file and in the banks' file: the banks are those of the
    checkpoint if their numbers are equal. Without any number, they were written before there were numbers.
    """

    def __init__(self, loss: ContAccumLoss | None = None):
        self._loss, self.loaded = (
            [loss],
            False,
        )  # (in a list: a module within a module's attribute would be registered)
        self.training = ""  # the number of the training under way, or of the last one

    def on_save(self, args, state, control, **_):
        if (
            len(self._loss[0].vectors) and not state.is_hyper_param_search
        ):  # (its checkpoints are elsewhere)
            self._loss[0].save_banks(_checkpoint(args.output_dir, state))

    def on_optimizer_step(self, args, state, control, **_):
        """The optimiser's own hook does not know the weights of this model where they are in shards (DeepSpeed's are flat copies)."""
        if not self._loss[0].past_encoder:
            self._loss[0].clear()

    def on_train_begin(self, args, state, control, **_):
        """Empty banks, or on resume those of the checkpoint, unless `load_banks` has been called."""
        loss = self._loss[0]
        if not len(loss.vectors):
            return
        self._refuse_a_shared_file(state)
        if state.global_step and not self.loaded:
            self._resume(args, state)
        elif not self.loaded:
            loss.clear()
        self.loaded = False
        self.training = _new_training(loss.position.device)
        record = {"training": self.training, "folder": os.path.abspath(args.output_dir)}
        _records(state)[loss.name] = record

    def _refuse_a_shared_file(self, state) -> None:
        """Two losses of one training with one file: the second would write over the banks of the first."""
        writers = state.__dict__.setdefault("writers_of_banks", {})  # no field: it is not saved
        file = self._loss[0]._file("").name
        if writers.setdefault(file.casefold(), id(self._loss[0])) != id(self._loss[0]):
            raise ValueError(
                f"two losses of this training would keep their banks in the same file, {file}: give "
                f"each a name of its own, as in ContAccumLoss(model, ..., name='{self._loss[0].name}-2')."
            )

    def _resume(self, args, state) -> None:
        """The banks of the checkpoint: in output_dir, or in the folder of the training that wrote it."""
        loss = self._loss[0]
        record = _records(state).get(loss.name)
        record = record if isinstance(record, dict) else {}
        here = os.path.abspath(args.output_dir)
        reasons = []
        for folder in dict.fromkeys([here, str(record.get("folder", here))]):
            try:
                return loss._load(_checkpoint(folder, state), record.get("training", ""))
            except ValueError as error:
                reasons.append(str(error))
        raise ValueError(
            f"training resumes at update {state.global_step} without its banks: {' '.join(reasons)} "
            "Where it resumes from another place, call loss.load_banks(checkpoint) before trainer.train."
        )


class _Emptying:
    """An optimiser's hook that empties the banks once its step has moved their model's weights."""

    def __init__(self, loss: ContAccumLoss):
        self._loss = weakref.ref(loss)

    def __call__(self, optimizer, *_):
        loss = self._loss()
        if loss is None or not len(loss):
            return
        mine = {id(p) for p in loss.model.parameters()}
        if any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
            loss.clear()


def _checkpoint(folder: str, state) -> str:
    return os.path.join(folder, f"checkpoint-{state.global_step}")


def _records(state) -> dict[str, dict[str, str]]:
    """Of each loss by its name, which training this is: what trainer_state.json keeps for us."""
    records = state.stateful_callbacks.get("ContAccumLoss")
    if not isinstance(records, dict):
        records = state.stateful_callbacks["ContAccumLoss"] = {}
    return records


def _new_training(device: torch.device) -> str:
    """A number that no other training has, the same on all its processes."""
    number = torch.tensor(
        [secrets.randbits(63)], device=device
    )  # no draw of torch's: training would change
    if _processes() > 1:
        torch.distributed.broadcast(number, 0)
    return f"{int(number):016x}"


# --- what is refused ---------------------------------------------------------------------------------------------------


def _sizes(memory_size: int, scale: float) -> tuple[int, float]:
    """Both as plain numbers."""
    pairs = isinstance(memory_size, Integral) and not isinstance(memory_size, bool)
    factor = isinstance(scale, Real) and not isinstance(scale, bool)
    if not (pairs and 0 <= memory_size < 2**31 and factor and 0 < scale < math.inf):
        raise ValueError(
            f"memory_size is {memory_size!r} and scale {scale!r}: memory_size must be a "
            "whole number, 0 or more, and scale a finite number above 0."
        )
    return int(memory_size), float(scale)


def _check_name(name: str) -> None:
    """A name that a file can have on any system, and that no file of the model has."""
    plain = isinstance(name, str) and name.isprintable() and not re.search(r'[/\\:*?"<>|]', name)
    if not plain or not 0 < len(name.encode()) <= 200 or name != name.strip(" ."):
        raise ValueError(
            f"name is {name!r}: expected the name of a file, such as 'contaccum', without "
            "a folder and its ending; each checkpoint gets this file."
        )
    if re.fullmatch(r"(adapter_)?model(-\d.*)?", name, re.IGNORECASE):
        raise ValueError(
            f"name is {name!r}: that file of a checkpoint has the weights of the model; "
            "give another name, such as 'contaccum'."
        )


def _check_switches(**switches: bool) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}: expected True or False.")


def _read(file: Path) -> tuple[dict[str, Tensor], str]:
    """The banks in a file, and the number of the training that wrote it ("" without one)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as content:
            marks = content.metadata() or {}
            banks = {name: content.get_tensor(name) for name in content.keys()}
    except OSError as error:
        raise ValueError(
            f"{file.parent} holds no banks ({error}): expected {file.name}, which a trainer with callbacks=[loss.callback] "
            "writes into its checkpoints."
        ) from None
    except SafetensorError as error:
        words = repr(str(error)[:200])  # of the file's own, some of them
        raise ValueError(
            f"{file} cannot be read ({words}): it is damaged, or no file of banks. Give another checkpoint."
        ) from None
    fault = _fault(banks)
    if fault:
        raise ValueError(
            f"{file} holds no banks of a ContAccumLoss: {fault}. Give another checkpoint."
        )
    if not {"training", "digest"} & set(marks):  # written before there were marks
        return banks, ""
    if marks.get("digest") != _digest(banks):
        raise ValueError(
            f"{file} is damaged: its banks are not those that were written. Give another checkpoint."
        )
    return banks, marks.get("training", "")


def _digest(banks: dict[str, Tensor]) -> str:
    """A hash of the banks: types, shapes and values."""
    digest = hashlib.sha256()
    for name in _BANKS:
        digest.update(f"{name} {_kind(banks[name])} ".encode())
        digest.update(banks[name].flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _fault(banks: dict[str, Tensor], size: int | None = None) -> str | None:
    """Why these tensors are not the banks of a ContAccumLoss (of `size` pairs); None where they are."""
    if set(banks) != set(_BANKS):
        return f"expected the tensors {', '.join(_BANKS)} and no others"
    position, vectors, keys = (banks[name] for name in _BANKS)
    if vectors.ndim != 3 or vectors.shape[1] < 2 or vectors.dtype not in _PRECISIONS:
        return f"vectors are {_kind(vectors)}, expected floating-point numbers (pairs, columns, d)"
    if keys.shape != vectors.shape[:2] or keys.dtype != torch.int64:
        return f"keys are {_kind(keys)}, expected int64 {tuple(vectors.shape[:2])}"
    if position.shape != (2,) or position.dtype != torch.int64:
        return f"position is {_kind(position)}, expected int64 (2,)"
    if size is not None and size != len(vectors):
        return f"they are of {len(vectors)} pairs, and this loss has {size}"
    return _fault_of_position(*position.tolist(), vectors)


def _fault_of_position(start: int, count: int, vectors: Tensor) -> str | None:
    """Banks that are not full were filled from their beginning."""
    size = len(vectors)
    full = count == size and 0 <= start < max(1, size)
    filling = 0 <= start == count < size
    if not (full or filling):
        return f"position is {[start, count]}, which no banks of {size} pairs have"
    return f"it says {count} pairs of no length" if count and not vectors.numel() else None


# --- several processes -------------------------------------------------------------------------------------------------


def _processes() -> int:
    return (
        torch.distributed.get_world_size()
        if torch.distributed.is_available() and torch.distributed.is_initialized()
        else 1
    )


def _gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order, of which this one's carry gradient.

    Every process computes the same loss of all rows, and carries back its own rows' part. Data parallelism then averages the
    weights' gradients where they are to be added up, so this part is made that many times as large.
    """
    processes = _processes()
    parts = [torch.empty_like(rows) for _ in range(processes)]
    torch.distributed.all_gather(parts, rows.detach().contiguous())
    if rows.requires_grad:
        own = rows.view_as(rows)
        own.register_hook(lambda gradient: gradient * processes)
        parts[torch.distributed.get_rank()] = own
    return torch.cat(parts)

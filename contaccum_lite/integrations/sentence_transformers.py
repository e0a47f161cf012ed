"""ContAccum as a loss for `SentenceTransformerTrainer`.

    loss = ContAccumLoss(model, memory_size=1024)
    trainer = SentenceTransformerTrainer(
        model, args, train_dataset=pairs, loss=loss, callbacks=[loss.callback]
    )

The trainer accumulates (`gradient_accumulation_steps` is K) and divides by K. Each micro-batch is
compared with the banks as they stand and is then enqueued. The callback saves the banks in every
checkpoint and restores them on resume. Needs the [scale] extra.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from sentence_transformers.util import all_gather, all_gather_with_grad, cos_sim
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import TrainerCallback

from contaccum_lite.core.loss import duplicate_mask
from contaccum_lite.utils.files import write_atomically

_BANKS = ("position", "vectors", "keys")
_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LONGEST = 32_768  # tokens of a text that count for what it is
_rng = np.random.Generator(np.random.PCG64(20240618))
_HASH_FACTORS = torch.from_numpy(_rng.integers(-(2**63), 2**63, size=_LONGEST))
_CONFIG = (
    "memory_size",
    "query_bank",
    "passage_bank",
    "bank_hard_negatives",
    "past_encoder",
    "scale",
    "mask_duplicates",
    "gather_across_devices",
)


class ContAccumLoss(nn.Module):
    """InfoNCE over a micro-batch and banks of past vectors: the mean over all rows.

    Args:
        model: a `SentenceTransformer`.
        memory_size: pairs in the banks (N_memory). With 0 it is MultipleNegativesRankingLoss.
        query_bank: False keeps only passages in memory (pre-batch negatives).
        past_encoder: False empties the banks after each weight update.
        bank_hard_negatives: False keeps no past hard negatives.
        scale: 1/τ, by which similarities are multiplied.
        similarity_fct: (n, d) and (m, d) vectors to (n, m); `cos_sim`, or `dot_score` with scale=1.
        mask_duplicates: a row leaves out its own stale self and copies of its passage, which are
            known by their token ids (not with memory_size=0).
        gather_across_devices: the micro-batches of all processes are one, and their banks are
            equal. With False, each process has banks of its own.
        name: of the banks' file in a checkpoint. Several losses of one training need several names.

    The columns of the data are (anchor, positive), with any number of negatives after them. With
    the callback, a training starts with empty banks, unless it resumes or `load_banks` was called
    before. In evaluation (`model.eval()`, or without gradients) the banks are neither read nor
    written. Banks and scores are float32 at least, under autocast too. Losses that call this one
    several times per batch (AdaptiveLayerLoss, MatryoshkaLoss, Matryoshka2dLoss) are refused.
    Raises `ValueError` for settings or data that do not fit. Equation 7; notebooks 03 and 09.
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
                "query_bank is True and passage_bank is False: the positive of a past query is in "
                "the passage bank, so a query bank needs passage_bank=True."
            )
        self.model = model
        self.memory_size = memory_size
        self.query_bank, self.passage_bank = query_bank, passage_bank
        self.bank_hard_negatives, self.past_encoder = bank_hard_negatives, past_encoder
        self.scale, self.similarity_fct = scale, similarity_fct
        self.mask_duplicates, self.gather_across_devices = mask_duplicates, gather_across_devices
        self.name = name
        self.callback = BankCallback(self)
        self._clear_hook = None
        self._pending = None  # weak reference to a batch whose backward pass has not come yet
        size = memory_size * passage_bank
        # the slot of the next pair, and how many pairs there are
        self.register_buffer("position", torch.zeros(2, dtype=torch.int64))
        # (N, columns, d): query, passage and hard negatives of each pair
        self.register_buffer("vectors", torch.zeros(size, 2, 0))
        self.register_buffer("keys", torch.zeros(size, 2, dtype=torch.int64))  # (N, columns)

    def __len__(self) -> int:
        """Pairs in the banks."""
        return int(self.position[1])

    # --- the loss --------------------------------------------------------------------------------

    def forward(self, sentence_features, labels: Tensor | None = None) -> Tensor:
        features = list(sentence_features)
        if len(features) < 2:
            raise ValueError(
                f"the data have {len(features)} column of texts: expected (anchor, positive), "
                "and perhaps negatives after them."
            )
        tensors = [value for value in features[0].values() if isinstance(value, Tensor)]
        texts = tensors[0] if tensors else None
        self._check_new(texts)
        keys = self._text_keys(features)  # before the model: it may change the features
        embeddings = [self.model(column)["sentence_embedding"] for column in features]
        loss = self.compute_loss_from_embeddings(embeddings, labels, keys)
        if self._uses_banks and loss.requires_grad and texts is not None:
            self._pending = weakref.ref(texts)
            loss.register_hook(self._on_backward)
        return loss

    def _check_new(self, texts: Tensor | None) -> None:
        """Refuse a batch that comes again before its backward pass: banks would hold it twice."""
        pending = self._pending and self._pending()
        if self._uses_banks and pending is not None and pending is texts:
            raise ValueError(
                "ContAccumLoss was called a second time with the same batch, before the backward "
                "pass of the first: each of its pairs would be in the banks several times. A loss "
                "around it that calls it for several layers or dimensions (AdaptiveLayerLoss, "
                "MatryoshkaLoss, Matryoshka2dLoss) does so: train with ContAccumLoss itself. To "
                "look at a batch's loss, call it under torch.no_grad()."
            )

    def _on_backward(self, _: Tensor) -> None:
        self._pending = None

    @property
    def _uses_banks(self) -> bool:
        """Whether a batch is compared with the banks and goes into them: in training only."""
        has_banks = self.memory_size > 0 and self.passage_bank
        return has_banks and self.model.training and torch.is_grad_enabled()

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """The loss of embeddings: (B, d) vectors for each column of texts.

        keys: (B, columns) numbers, equal for equal texts; None masks no duplicates.
        """
        uses_banks = self._uses_banks
        masks = self.mask_duplicates and self.memory_size > 0 and keys is not None
        columns = [vectors.to(_at_least_float32(vectors.dtype)) for vectors in embeddings]
        vectors = torch.stack(columns, dim=1)  # (B, columns, d)
        if keys is None:
            keys = torch.zeros(vectors.shape[:2], dtype=torch.int64, device=vectors.device)
        if self.gather_across_devices and _world_size() > 1:
            # Every process computes the loss of all rows. Data parallelism then averages the
            # weights' gradients, which should be added up; the gather's gradient makes up for it.
            vectors, keys = all_gather_with_grad(vectors), all_gather(keys)
        if uses_banks:
            self._init_banks(vectors)
            self._register_clear_hook()
        with torch.autocast(vectors.device.type, enabled=False):
            loss = self._contrast(vectors, keys, len(self) if uses_banks else 0, masks)
        if uses_banks:
            self._enqueue(vectors.detach(), keys)
        return loss

    def _contrast(self, vectors: Tensor, keys: Tensor, num_banked: int, masks: bool) -> Tensor:
        """The mean over the rows [local ; bank].

        Columns are [passages ; bank ; hard negatives ; banked hard negatives].
        """
        bank = self.vectors[:num_banked].to(vectors) if num_banked else vectors[:0].detach()
        bank_keys = self.keys[:num_banked] if num_banked else keys[:0]
        rows = [vectors[:, 0]]
        if self.query_bank:
            rows.append(bank[:, 0])
        columns = [vectors[:, 1], bank[:, 1], *vectors[:, 2:].unbind(1)]
        passage_keys = [keys[:, 1], bank_keys[:, 1], *keys[:, 2:].unbind(1)]
        if self.bank_hard_negatives:
            columns += bank[:, 2:].unbind(1)
            passage_keys += bank_keys[:, 2:].unbind(1)
        rows, columns, passage_keys = torch.cat(rows), torch.cat(columns), torch.cat(passage_keys)
        scores = self.similarity_fct(rows, columns) * self.scale
        if scores.shape != (len(rows), len(columns)):
            raise ValueError(
                f"similarity_fct gave {tuple(scores.shape)} similarities of {len(rows)} queries "
                f"and {len(columns)} passages: expected those of each query with each passage, "
                "like cos_sim's, not of pairs."
            )
        if masks:
            query_keys = torch.full_like(passage_keys, -1)
            query_keys[: len(keys) + num_banked] = torch.cat([keys[:, 0], bank_keys[:, 0]])
            mask = duplicate_mask(query_keys, passage_keys, len(rows))
            scores = scores if mask is None else scores.masked_fill(mask, -torch.inf)
        return nn.functional.cross_entropy(scores, torch.arange(len(rows), device=scores.device))

    def _text_keys(self, features: list[dict[str, Any]]) -> Tensor | None:
        """(B, columns): a number for each text; None where texts are not rows of token ids."""
        if all(_has_token_ids(column) for column in features):
            return torch.stack([_hash_texts(column) for column in features], dim=1)
        if self.mask_duplicates and self.memory_size:
            raise ValueError(
                "the model's features are not rows of token ids with an attention mask, by which "
                "equal texts would be known: set mask_duplicates=False."
            )
        return None

    def __getstate__(self) -> dict[str, Any]:
        """A copy waits for no backward pass, and registers a hook of its own."""
        return {**self.__dict__, "_pending": None, "_clear_hook": None}

    def _apply(self, fn, recurse: bool = True):
        """`half` and its like change the model; the banks move with it but keep their precision."""
        vectors = self.vectors
        super()._apply(fn, recurse)
        if self.vectors.dtype.itemsize < vectors.dtype.itemsize:
            self.vectors = vectors.to(self.vectors.device)
        return self

    # --- the banks -------------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget all past vectors."""
        self.position.zero_()

    def _init_banks(self, vectors: Tensor) -> None:
        """Allocate the banks for the first vectors. Raises `ValueError` for another kind later."""
        shape = (self.memory_size, *vectors.shape[1:])
        if not self.vectors.numel() and not len(self):
            self.vectors = vectors.new_zeros(shape, requires_grad=False)
            self.keys = torch.zeros(shape[:2], dtype=torch.int64, device=vectors.device)
        device = vectors.device  # banks that were loaded may be on another one
        self.vectors, self.keys = self.vectors.to(device), self.keys.to(device)
        if self.vectors.shape != shape:
            raise ValueError(
                f"this batch has {vectors.shape[1]} columns of vectors of length "
                f"{vectors.shape[2]}, and the banks hold {self.vectors.shape[1]} of length "
                f"{self.vectors.shape[2]}: one ContAccumLoss keeps one kind. Give each data set "
                "its own; and a loss around it that shortens vectors (MatryoshkaLoss, "
                "Matryoshka2dLoss) does not go with banks: train with ContAccumLoss itself."
            )

    @torch.no_grad()
    def _enqueue(self, vectors: Tensor, keys: Tensor) -> None:
        """Write (B, columns, d) vectors over the oldest ones, after their loss was computed.

        A micro-batch that overflowed in half precision is left out. A trainer skips its update, and
        in the banks it would make the losses of all later updates nan.
        """
        if not vectors.isfinite().all():
            return
        start, count = self.position.tolist()
        new = min(len(vectors), self.memory_size)
        slots = torch.arange(start, start + new, device=vectors.device) % self.memory_size
        self.vectors[slots] = vectors[-new:].to(self.vectors)
        self.keys[slots] = keys[-new:]
        self.position[0] = (start + new) % self.memory_size
        self.position[1] = min(count + new, self.memory_size)

    def _register_clear_hook(self) -> None:
        """Without past encoders, any optimiser that moves the model's weights empties the banks."""
        if not self.past_encoder and self._clear_hook is None:
            self._clear_hook = register_optimizer_step_post_hook(_ClearBanksAfterStep(self))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, *problems):
        """All of the banks or nothing; they are as large as their first batch made them."""
        banks = {name: state_dict[prefix + name] for name in _BANKS if prefix + name in state_dict}
        if banks:
            fault = _fault(banks, len(self.vectors))
            if fault:
                problems[-1].append(f"these are no banks of this ContAccumLoss: {fault}.")
                return
            self._adopt(banks)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *problems)

    def _adopt(self, banks: dict[str, Tensor]) -> None:
        """Hold copies of these banks, which `_fault` has checked."""
        with torch.inference_mode(False):  # no training could write into tensors made in that mode
            for name in _BANKS:
                bank = banks[name].to(self.position.device, copy=True)
                if name == "vectors":
                    bank = bank.to(_at_least_float32(bank.dtype))
                setattr(self, name, bank)
        self.callback.loaded = True

    def bank_state(self) -> dict[str, Tensor]:
        """The banks as tensors: vectors (N, columns, d), keys (N, columns), position (2,)."""
        return {name: getattr(self, name).detach().cpu().contiguous().clone() for name in _BANKS}

    def save_banks(self, folder: str | Path) -> None:
        """Write the banks into a folder, all or nothing.

        Of several processes that share them, the first one writes.
        """
        if self._rank == 0 or not self.gather_across_devices:
            banks = self.bank_state()
            marks = {"training": self.callback.training, "digest": _digest(banks)}
            write_atomically(self.banks_file(folder), save(banks, marks))

    def load_banks(self, folder: str | Path, training: str | None = None) -> None:
        """Take the banks that `save_banks` wrote; the next training starts with them.

        training: the number of the training that must have written them; None takes any. Raises
        `ValueError` where there are no banks, or banks of another size or training, or damaged
        ones; this loss then stays as it was.
        """
        file = self.banks_file(folder)
        banks, written_by = _read(file)
        size = len(banks["vectors"])
        if size != len(self.vectors):
            raise ValueError(
                f"{folder} holds banks of {size} pairs, this loss has {len(self.vectors)}: "
                f"give it memory_size={size}."
            )
        if training is not None and training != written_by:
            raise ValueError(f"{file} was written by another training than the checkpoint.")
        self._adopt(banks)

    @property
    def _rank(self) -> int:
        return torch.distributed.get_rank() if _world_size() > 1 else 0

    def banks_file(self, folder: str | Path) -> Path:
        """The banks' file in a folder; one for each process with banks of its own."""
        is_shared = self.gather_across_devices or _world_size() == 1
        return Path(folder) / f"{self.name}{'' if is_shared else f'-{self._rank}'}.safetensors"

    # --- what model cards ask --------------------------------------------------------------------

    def get_config_dict(self) -> dict[str, Any]:
        config = {name: getattr(self, name) for name in _CONFIG}
        config["similarity_fct"] = getattr(
            self.similarity_fct, "__name__", str(self.similarity_fct)
        )
        return config

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
    """Saves the banks of a `ContAccumLoss` in the trainer's checkpoints, and restores them.

    A trainer does not tell its callbacks which checkpoint it resumes from, but gives them what its
    trainer_state.json holds. So each training has a number, which is written into that file and
    into the banks' file. The banks are the checkpoint's if the numbers are equal. Files without a
    number were written before there were numbers.
    """

    def __init__(self, loss: ContAccumLoss | None = None):
        self._loss = [loss]  # in a list: as an attribute, a module would be registered
        self.loaded = False
        self.training = ""  # the number of the training under way, or of the last one

    def on_save(self, args, state, control, **_):
        # the checkpoints of a hyper-parameter search are elsewhere
        if len(self._loss[0].vectors) and not state.is_hyper_param_search:
            self._loss[0].save_banks(_checkpoint(args.output_dir, state))

    def on_optimizer_step(self, args, state, control, **_):
        """Clear the banks where the optimiser's hook cannot: DeepSpeed copies the weights."""
        if not self._loss[0].past_encoder:
            self._loss[0].clear()

    def on_train_begin(self, args, state, control, **_):
        """Start with empty banks or the checkpoint's, unless `load_banks` was called."""
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
        """Refuse two losses with one file: the second would overwrite the banks of the first."""
        loss = self._loss[0]
        writers = state.__dict__.setdefault("writers_of_banks", {})  # no field: it is not saved
        file = loss.banks_file("").name
        if writers.setdefault(file.casefold(), id(loss)) != id(loss):
            raise ValueError(
                f"two losses of this training would keep their banks in the same file, {file}: "
                "give each a name of its own, as in ContAccumLoss(model, ..., "
                f"name='{loss.name}-2')."
            )

    def _resume(self, args, state) -> None:
        """Load the checkpoint's banks, from output_dir or the folder where it was written."""
        loss = self._loss[0]
        record = _records(state).get(loss.name)
        record = record if isinstance(record, dict) else {}
        here = os.path.abspath(args.output_dir)
        reasons = []
        for folder in dict.fromkeys([here, str(record.get("folder", here))]):
            try:
                return loss.load_banks(_checkpoint(folder, state), record.get("training", ""))
            except ValueError as error:
                reasons.append(str(error))
        raise ValueError(
            f"training resumes at update {state.global_step} without its banks: "
            f"{' '.join(reasons)} Where it resumes from another place, call "
            "loss.load_banks(checkpoint) before trainer.train."
        )


class _ClearBanksAfterStep:
    """An optimiser's hook that empties the banks after a step that moved their model's weights."""

    def __init__(self, loss: ContAccumLoss):
        self._loss = weakref.ref(loss)

    def __call__(self, optimizer, *_):
        loss = self._loss()
        if loss is None or not len(loss):
            return
        weights = {id(p) for p in loss.model.parameters()}
        for group in optimizer.param_groups:
            if any(id(p) in weights for p in group["params"]):
                return loss.clear()


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
    # not from torch's generator: that would change the training
    number = torch.tensor([secrets.randbits(63)], device=device)
    if _world_size() > 1:
        torch.distributed.broadcast(number, 0)
    return f"{int(number):016x}"


# --- what is refused ----------------------------------------------------------------------------


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
    try:
        with safe_open(file, "pt") as content:
            marks = content.metadata() or {}
            banks = {name: content.get_tensor(name) for name in content.keys()}
    except OSError as error:
        raise ValueError(
            f"{file.parent} holds no banks ({error}): expected {file.name}, which a trainer with "
            "callbacks=[loss.callback] writes into its checkpoints."
        ) from None
    except SafetensorError as error:
        reason = repr(str(error)[:200])  # with text of the file in it
        raise ValueError(
            f"{file} cannot be read ({reason}): it is damaged, or no file of banks. "
            "Give another checkpoint."
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
            f"{file} is damaged: its banks are not those that were written. "
            "Give another checkpoint."
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
    """Why these tensors are not banks of a ContAccumLoss (of `size` pairs), or None."""
    if set(banks) != set(_BANKS):
        return f"expected the tensors {', '.join(_BANKS)} and no others"
    position, vectors, keys = (banks[name] for name in _BANKS)
    fault = _fault_of_types(position, vectors, keys)
    if fault:
        return fault
    if size is not None and size != len(vectors):
        return f"they are of {len(vectors)} pairs, and this loss has {size}"
    return _fault_of_position(*position.tolist(), vectors)


def _fault_of_types(position: Tensor, vectors: Tensor, keys: Tensor) -> str | None:
    """Why these tensors have not the number types and shapes of banks, or None."""
    if vectors.ndim != 3 or vectors.shape[1] < 2 or vectors.dtype not in _PRECISIONS:
        return f"vectors are {_kind(vectors)}, expected floating-point numbers (pairs, columns, d)"
    if keys.shape != vectors.shape[:2] or keys.dtype != torch.int64:
        return f"keys are {_kind(keys)}, expected int64 {tuple(vectors.shape[:2])}"
    if position.shape != (2,) or position.dtype != torch.int64:
        return f"position is {_kind(position)}, expected int64 (2,)"
    return None


def _fault_of_position(start: int, count: int, vectors: Tensor) -> str | None:
    """Banks that are not full were filled from their beginning."""
    size = len(vectors)
    full = count == size and 0 <= start < max(1, size)
    filling = 0 <= start == count < size
    if not (full or filling):
        return f"position is {[start, count]}, which no banks of {size} pairs have"
    return f"it says {count} pairs of no length" if count and not vectors.numel() else None


# --- small things -------------------------------------------------------------------------------


def _has_token_ids(column: dict[str, Any]) -> bool:
    ids, mask = column.get("input_ids"), column.get("attention_mask")
    if not (isinstance(ids, Tensor) and isinstance(mask, Tensor)):
        return False
    return ids.ndim == 2 and ids.shape == mask.shape


def _hash_texts(column: dict[str, Any]) -> Tensor:
    """(B,): a number of 63 bits for each text, the same whatever its padding."""
    ids, mask = column["input_ids"].long(), column["attention_mask"].long()
    positions = (mask.cumsum(1) - 1).clamp(0, _LONGEST - 1)
    factors = _HASH_FACTORS.to(ids.device)[positions]
    return ((ids + 1) * factors * mask).sum(1) & (2**63 - 1)  # sums wrap at 2**64


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _world_size() -> int:
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_distributed else 1

"""ContAccum as a loss for `SentenceTransformerTrainer`.

    loss = ContAccumLoss(model, memory_size=1024)
    trainer = SentenceTransformerTrainer(
        model, args, train_dataset=pairs, loss=loss, callbacks=[loss.callback]
    )

The trainer accumulates (`gradient_accumulation_steps` is K) and divides by K. Each micro-batch is
compared with the banks as they stand and is then enqueued. The callback saves the banks in every
checkpoint and restores them on resume. Needs the [scale] extra. `CachedContAccumLoss`
(cached.py) computes a large batch exactly, and keeps banks of earlier updates.
"""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from sentence_transformers.util import all_gather, all_gather_with_grad, cos_sim, dot_score
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import TrainerCallback

from contaccum_lite.core.loss import duplicate_mask
from contaccum_lite.core.options import INCREMENTAL_FROM
from contaccum_lite.integrations import rows_to_loss
from contaccum_lite.integrations.bank_files import BANKS, digest_of, fault_of, read_banks
from contaccum_lite.integrations.banked_softmax import BankedSoftmax, Kind
from contaccum_lite.utils.files import write_atomically

logger = logging.getLogger(__name__)

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
    *rows_to_loss.NAMES,
    "mask_duplicates",
    "gather_across_devices",
)


class _Batch(NamedTuple):
    """A batch whose backward pass has not come yet, and what it overwrote in the banks."""

    keys: Tensor | None
    slots: Tensor
    vectors: Tensor
    bank_keys: Tensor
    position: Tensor


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
        objective: "info_nce", or "decoupled" (the positive is left out of the denominator).
        directions: "query", "both" (passages against queries too) or "all" four pairings.
        mask_margin: leave out columns whose score, times scale, is above the positive's by more.
        mask_duplicates: a row leaves out its own stale self and copies of its passage, which are
            known by their token ids (not with memory_size=0).
        gather_across_devices: the micro-batches of all processes are one, and their banks are
            equal. With False, each process has banks of its own.
        name: of the banks' file in a checkpoint. Several losses of one training need several names.

    The columns of the data are (anchor, positive), with any number of negatives after them. With
    the callback, a training starts with empty banks, unless it resumes or `load_banks` was called
    before. In evaluation (`model.eval()`, or without gradients) the banks are neither read nor
    written. Banks and scores are float32 at least, under autocast too.

    Losses may call this one several times per batch. Each call compares the batch with the banks as
    they stood before it, and its pairs enter them once. MatryoshkaLoss and Matryoshka2dLoss: banks
    hold the vectors in full length, and are cut to the length that is compared. AdaptiveLayerLoss:
    they hold the last layer's, with which the other layers' vectors are compared.

    From 256 pairs on, scores among banked vectors are computed once (`scale/banked_sums.py`), if
    similarity_fct is cos_sim or dot_score, and objective, directions and mask_margin are the
    default; `core/directions.py` and notebook 10 explain the others.
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
        objective: str = "info_nce",
        directions: str = "query",
        mask_margin: float | None = None,
        mask_duplicates: bool = True,
        gather_across_devices: bool = True,
        name: str = "contaccum",
    ):
        super().__init__()
        memory_size, scale = _sizes(memory_size, scale)
        _check_name(name)
        rows_to_loss.check(objective, directions, mask_margin)
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
        self.objective, self.directions, self.mask_margin = objective, directions, mask_margin
        self.mask_duplicates, self.gather_across_devices = mask_duplicates, gather_across_devices
        self.name = name
        self.callback = BankCallback(self)
        self._clear_hook = None
        self._pending = None  # the batch whose backward pass has not come yet
        self._pending_texts = None  # weak reference to its texts
        self._softmaxes: dict[Kind, BankedSoftmax] = {}
        self._has_told = False
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
        check_columns(features)
        again = self._pending_batch(features)
        # before the model: it may change the features
        keys = again.keys if again is not None else self._text_keys(features)
        with self._full_length_vectors() as full:
            embeddings = [self.model(column)["sentence_embedding"] for column in features]
        loss = self._compare(embeddings, keys, full, again)
        self._await_backward(features, loss)
        return loss

    def _pending_batch(self, features: list[dict[str, Any]]) -> _Batch | None:
        """This batch, if it comes again before its backward pass, as layers and lengths do."""
        pending = self._pending_texts and self._pending_texts()
        if self._uses_banks and pending is not None and pending is _first_tensor(features[0]):
            return self._pending
        return None

    def _await_backward(self, features: list[dict[str, Any]], loss: Tensor) -> None:
        """Know this batch again until its backward pass has come."""
        texts = _first_tensor(features[0])
        if self._uses_banks and loss.requires_grad and texts is not None:
            self._pending_texts = weakref.ref(texts)
            loss.register_hook(self._on_backward)

    def _on_backward(self, _: Tensor) -> None:
        self._pending = self._pending_texts = None

    @property
    def _uses_banks(self) -> bool:
        """Whether a batch is compared with the banks and goes into them: in training only."""
        has_banks = self.memory_size > 0 and self.passage_bank
        return has_banks and self.model.training and torch.is_grad_enabled()

    @property
    def _is_cut(self) -> bool:
        """Whether a MatryoshkaLoss cuts the model's vectors to a length that it sets."""
        return hasattr(vars(self.model).get("forward"), "set_dim")

    @contextmanager
    def _full_length_vectors(self) -> Iterator[list[Tensor]]:
        """What the model gives for each column before a MatryoshkaLoss cuts it."""
        full: list[Tensor] = []
        last = _last_module(self.model)
        if not self._is_cut or last is None:
            yield full
            return
        keep = lambda _, __, output: full.append(output["sentence_embedding"].detach())
        hook = last.register_forward_hook(keep)
        try:
            yield full
        finally:
            hook.remove()

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """The loss of embeddings: (B, d) vectors for each column of texts.

        keys: (B, columns) numbers, equal for equal texts; None masks no duplicates.
        """
        return self._compare(embeddings, keys, [], None)

    def _compare(
        self,
        embeddings: list[Tensor],
        keys: Tensor | None,
        full: list[Tensor],
        again: _Batch | None,
    ) -> Tensor:
        """The loss, after which a batch that is new is enqueued.

        full: the embeddings in full length, where they were cut.
        """
        uses_banks, is_cut = self._uses_banks, self._is_cut
        vectors, all_keys, masks = self._gathered(embeddings, keys)
        if not uses_banks:
            with torch.autocast(vectors.device.type, enabled=False):
                return self._contrast(vectors, all_keys, masks, is_cut)
        if again is not None:
            with self._as_before(again), torch.autocast(vectors.device.type, enabled=False):
                return self._contrast(vectors, all_keys, masks, is_cut)
        entering = vectors.detach()
        if len(full) == len(embeddings):
            entering = self._gathered(full, None)[0]
        self._end_last_batch()
        self._init_banks(entering)
        with torch.autocast(vectors.device.type, enabled=False):
            loss = self._contrast(vectors, all_keys, masks, is_cut)
        self._pending = self._enqueue(entering, all_keys, keys)
        return loss

    def _gathered(
        self, embeddings: list[Tensor], keys: Tensor | None
    ) -> tuple[Tensor, Tensor, bool]:
        """(B, columns, d) vectors and (B, columns) keys of all processes, and whether copies are
        left out."""
        masks = self.mask_duplicates and self.memory_size > 0 and keys is not None
        columns = [vectors.to(_at_least_float32(vectors.dtype)) for vectors in embeddings]
        vectors = torch.stack(columns, dim=1)
        if keys is None:
            keys = torch.zeros(vectors.shape[:2], dtype=torch.int64, device=vectors.device)
        if self.gather_across_devices and _world_size() > 1:
            # Every process computes the loss of all rows. Data parallelism then averages the
            # weights' gradients, which should be added up; the gather's gradient makes up for it.
            vectors, keys = all_gather_with_grad(vectors), all_gather(keys)
        return vectors, keys, masks

    def _end_last_batch(self) -> None:
        """Before a new batch is compared: the last one will not come again."""
        self._register_clear_hook()
        # Sums that have not seen the last batch do not fit the banks any more.
        self._softmaxes = {
            kind: softmax for kind, softmax in self._softmaxes.items() if softmax.settle()
        }

    def _contrast(self, vectors: Tensor, keys: Tensor, masks: bool, is_cut: bool) -> Tensor:
        """The mean over the rows [local ; bank].

        Columns are [passages ; bank ; hard negatives ; banked hard negatives].
        """
        num_banked = len(self) if self._uses_banks else 0
        if num_banked and self._keeps_scores(vectors):
            return self._banked_softmax(vectors, masks, is_cut).contrast(vectors, keys)
        bank = self.vectors[:num_banked].to(vectors) if num_banked else vectors[:0].detach()
        if num_banked and is_cut:
            bank = normalize(bank[..., : vectors.shape[2]], dim=-1)
        bank_keys = self.keys[:num_banked] if num_banked else keys[:0]
        rows = [vectors[:, 0]]
        if self.query_bank:
            rows.append(bank[:, 0])
        columns = self._columns(vectors, bank)
        rows, columns = torch.cat(rows), torch.cat(columns)
        mask = self._duplicates(keys, bank_keys, len(rows)) if masks else None
        if self._is_plain:
            scores = self._scores(rows, columns)
            scores = scores if mask is None else scores.masked_fill(mask, -torch.inf)
            positives = torch.arange(len(rows), device=scores.device)
            return nn.functional.cross_entropy(scores, positives)
        how = self.objective, self.directions, self.mask_margin
        return rows_to_loss.loss_of(rows, columns, self._scores, mask, *how)

    def _columns(self, batch: Tensor, bank: Tensor) -> list[Tensor]:
        """[passages ; bank ; hard negatives ; banked hard negatives], of vectors or of keys."""
        columns = [batch[:, 1], bank[:, 1], *batch[:, 2:].unbind(1)]
        if self.bank_hard_negatives:
            columns += bank[:, 2:].unbind(1)
        return columns

    def _duplicates(self, keys: Tensor, bank_keys: Tensor, num_rows: int) -> Tensor:
        """The mask of columns that are a row's own passage or query once more."""
        passage_keys = torch.cat(self._columns(keys, bank_keys))
        own_keys = torch.cat([keys[:, 0], bank_keys[:, 0]])
        query_keys = torch.full_like(passage_keys, -1)
        query_keys[: len(own_keys)] = own_keys
        return duplicate_mask(query_keys, passage_keys, num_rows)

    def _scores(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Similarities times the scale, (rows, columns)."""
        scores = self.similarity_fct(rows, columns) * self.scale
        if scores.shape != (len(rows), len(columns)):
            raise ValueError(
                f"similarity_fct gave {tuple(scores.shape)} similarities of {len(rows)} queries "
                f"and {len(columns)} passages: expected those of each query with each passage, "
                "like cos_sim's, not of pairs."
            )
        return scores

    @property
    def _is_plain(self) -> bool:
        """Whether the loss is one softmax over each query's row."""
        return (self.objective, self.directions, self.mask_margin) == ("info_nce", "query", None)

    def _keeps_scores(self, vectors: Tensor) -> bool:
        """Whether scores among banked vectors are computed once; otherwise the whole matrix is."""
        if not self.query_bank or self.memory_size < INCREMENTAL_FROM:
            return False
        reason = ""
        if self.similarity_fct not in (cos_sim, dot_score):
            name = getattr(self.similarity_fct, "__name__", "another function")
            reason = f"similarity_fct is {name}, and only cos_sim's and dot_score's can be kept"
        elif not self._is_plain:
            values = {name: getattr(self, name) for name in rows_to_loss.NAMES}
            reason = ", ".join(f"{name} is {value!r}" for name, value in values.items())
        elif vectors.dtype != self.vectors.dtype:
            reason = f"the model's vectors are {vectors.dtype} and the banks' {self.vectors.dtype}"
        if reason and not self._has_told:
            self._has_told = True
            logger.warning(
                "ContAccumLoss computes the whole similarity matrix, of %d rows, for each "
                "micro-batch: %s.",
                len(vectors) + self.memory_size,
                reason,
            )
        return not reason

    def _banked_softmax(self, vectors: Tensor, masks: bool, is_cut: bool) -> BankedSoftmax:
        """What is kept for vectors of this length, made from the banks where there is none."""
        divides = is_cut or self.similarity_fct is cos_sim
        kind = Kind(vectors.shape[2], divides, self.scale, masks, self.bank_hard_negatives)
        if kind not in self._softmaxes:
            self._softmaxes[kind] = BankedSoftmax(self, kind)
        return self._softmaxes[kind]

    def _text_keys(self, features: list[dict[str, Any]]) -> Tensor | None:
        """(B, columns): a number for each text; None where texts are not rows of token ids."""
        token_ids = [_token_ids(column) for column in features]
        if None not in token_ids:
            return torch.stack([_hash_texts(*of_column) for of_column in token_ids], dim=1)
        if self.mask_duplicates and self.memory_size:
            raise ValueError(
                "the model's features are not token ids with an attention mask or offsets, by "
                "which equal texts would be known: set mask_duplicates=False."
            )
        return None

    def __getstate__(self) -> dict[str, Any]:
        """A copy waits for no backward pass, and registers a hook of its own."""
        mine = dict(_pending=None, _pending_texts=None, _clear_hook=None, _softmaxes={})
        return {**self.__dict__, **mine}

    def _apply(self, fn, recurse: bool = True):
        """`half` and its like change the model; the banks move with it but keep their precision."""
        vectors = self.vectors
        super()._apply(fn, recurse)
        self._forget_sums()
        if self.vectors.dtype.itemsize < vectors.dtype.itemsize:
            self.vectors = vectors.to(self.vectors.device)
        return self

    # --- the banks -------------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget all past vectors."""
        self.position.zero_()
        self._forget_sums()

    def _forget_sums(self) -> None:
        """What was computed from the banks, or would be written back into them, is not theirs."""
        self._pending = self._pending_texts = None
        self._softmaxes = {}

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
                "its own, each with another name=, as in loss={'one': ..., 'two': ...}."
            )

    @torch.no_grad()
    def _enqueue(self, vectors: Tensor, keys: Tensor, local_keys: Tensor | None) -> _Batch:
        """Write (B, columns, d) vectors over the oldest ones, after their loss was computed.

        A micro-batch that overflowed in half precision is left out. A trainer skips its update, and
        in the banks it would make the losses of all later updates nan.
        """
        start, count = self.position.tolist()
        new = min(len(vectors), self.memory_size)
        if not vectors.isfinite().all():
            self._softmaxes, new = {}, 0
        slots = torch.arange(start, start + new, device=vectors.device) % self.memory_size
        before = self.vectors[slots], self.keys[slots], self.position.clone()
        if new:
            self.vectors[slots] = vectors[-new:].to(self.vectors)
            self.keys[slots] = keys[-new:]
        self.position[0] = (start + new) % self.memory_size
        self.position[1] = min(count + new, self.memory_size)
        return _Batch(local_keys, slots, *before)

    @contextmanager
    def _as_before(self, batch: _Batch) -> Iterator[None]:
        """The banks as they stood before this batch went in."""
        after = self.vectors[batch.slots], self.keys[batch.slots], self.position.clone()
        self._overwrite(batch.slots, batch.vectors, batch.bank_keys, batch.position)
        try:
            yield
        finally:
            self._overwrite(batch.slots, *after)

    @torch.no_grad()
    def _overwrite(self, slots: Tensor, vectors: Tensor, keys: Tensor, position: Tensor) -> None:
        self.vectors[slots], self.keys[slots] = vectors, keys
        self.position.copy_(position)

    def _register_clear_hook(self) -> None:
        """Without past encoders, any optimiser that moves the model's weights empties the banks."""
        if not self.past_encoder and self._clear_hook is None:
            self._clear_hook = register_optimizer_step_post_hook(_ClearBanksAfterStep(self))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, *problems):
        """All of the banks or nothing; they are as large as their first batch made them."""
        banks = {name: state_dict[prefix + name] for name in BANKS if prefix + name in state_dict}
        if banks:
            fault = fault_of(banks, len(self.vectors))
            if fault:
                problems[-1].append(f"these are no banks of this ContAccumLoss: {fault}.")
                return
            self._adopt(banks)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *problems)

    def _adopt(self, banks: dict[str, Tensor]) -> None:
        """Hold copies of these banks, which `fault_of` has checked."""
        with torch.inference_mode(False):  # no training could write into tensors made in that mode
            for name in BANKS:
                bank = banks[name].to(self.position.device, copy=True)
                if name == "vectors":
                    bank = bank.to(_at_least_float32(bank.dtype))
                setattr(self, name, bank)
        self._forget_sums()
        self.callback.loaded = True

    def bank_state(self) -> dict[str, Tensor]:
        """The banks as tensors: vectors (N, columns, d), keys (N, columns), position (2,)."""
        return {name: getattr(self, name).detach().cpu().contiguous().clone() for name in BANKS}

    def save_banks(self, folder: str | Path) -> None:
        """Write the banks into a folder, all or nothing.

        Of several processes that share them, the first one writes. What is computed from the banks
        is computed again after it, as in a training that resumes from there: both are then the same
        bit for bit.
        """
        self._forget_sums()
        if self._rank == 0 or not self.gather_across_devices:
            banks = self.bank_state()
            marks = {"training": self.callback.training, "digest": digest_of(banks)}
            write_atomically(self.banks_file(folder), save(banks, marks))

    def load_banks(self, folder: str | Path, training: str | None = None) -> None:
        """Take the banks that `save_banks` wrote; the next training starts with them.

        training: the number of the training that must have written them; None takes any. Raises
        `ValueError` where there are no banks, or banks of another size or training, or damaged
        ones; this loss then stays as it was.
        """
        file = self.banks_file(folder)
        banks, written_by = read_banks(file)
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


# --- small things -------------------------------------------------------------------------------


def check_columns(features: list[dict[str, Any]]) -> None:
    """Refuse data of one column."""
    if len(features) < 2:
        raise ValueError(
            f"the data have {len(features)} column of texts: expected (anchor, positive), "
            "and perhaps negatives after them."
        )


def _first_tensor(features: dict[str, Any]) -> Tensor | None:
    """By which a batch is known."""
    tensors = [value for value in features.values() if isinstance(value, Tensor)]
    return tensors[0] if tensors else None


def _last_module(model: nn.Module) -> nn.Module | None:
    """The module whose output is the model's, inside of what trains it on several processes."""
    while not isinstance(model, nn.Sequential):
        inner = getattr(model, "module", None)
        model = getattr(model, "_orig_mod", None) if inner is None else inner
        if model is None:
            return None
    return model[-1] if len(model) else None


def _token_ids(column: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """(Token ids, attention mask), both (B, L); None where texts are no token ids.

    A StaticEmbedding's are end to end, and its offsets say where each text begins.
    """
    ids, mask, offsets = map(column.get, ("input_ids", "attention_mask", "offsets"))
    if not isinstance(ids, Tensor):
        return None
    if ids.ndim == 1 and isinstance(offsets, Tensor):
        texts = ids.tensor_split(offsets[1:].cpu())
        lengths = torch.tensor([len(text) for text in texts], device=ids.device)
        rows = pad_sequence(texts, batch_first=True)
        return rows, torch.arange(rows.shape[1], device=ids.device) < lengths[:, None]
    is_padded = isinstance(mask, Tensor) and ids.ndim == 2 and ids.shape == mask.shape
    return (ids, mask) if is_padded else None


def _hash_texts(ids: Tensor, mask: Tensor) -> Tensor:
    """(B,): a number of 63 bits for each text, the same whatever its padding."""
    ids, mask = ids.long(), mask.long()
    positions = (mask.cumsum(1) - 1).clamp(0, _LONGEST - 1)
    factors = _HASH_FACTORS.to(ids.device)[positions]
    return ((ids + 1) * factors * mask).sum(1) & (2**63 - 1)  # sums wrap at 2**64


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _world_size() -> int:
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_distributed else 1

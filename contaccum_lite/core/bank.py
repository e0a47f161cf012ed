"""Memory banks: the newest vectors of an encoder, kept without their graph.

They get no gradient. Those of earlier updates (age above 0) are stale: the weights have moved.

Reading path 3 of 9. Before: core/loss.py. After: encoders/bag.py.
"""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """A first-in-first-out ring of vectors, each with an id and the update at which it was made.

    Args:
        size: slots. dim: length of a vector. dtype, device: of the vectors (ids stay on the CPU).

    `vectors` (n, dim), `ids` (n,) and `ages(step)` (n,) come by slot, which is not the order
    of age once the ring has wrapped around; `order()` sorts slots from oldest to newest.
    Two banks that are written together keep the same pair in the same slot: that is what makes row
    i's positive column i (equations 5 and 6). Notebook 03.
    """

    slots: Tensor  # (size, dim)
    slot_ids: Tensor  # (size,)
    written_at: Tensor  # (size,)

    def __init__(self, size: int, dim: int, dtype: torch.dtype = torch.float32, device="cpu"):
        super().__init__()
        are_whole = isinstance(size, Integral) and isinstance(dim, Integral)
        if not are_whole or size < 0 or dim < 1:
            raise ValueError(
                f"a bank of {size} vectors of length {dim}: size must be 0 or more, dim 1 or more, "
                "in whole numbers."
            )
        self.size, self.dim = int(size), int(dim)
        self.register_buffer("slots", torch.zeros(size, dim, dtype=dtype, device=device))
        self.register_buffer("slot_ids", torch.full((size,), -1))
        self.register_buffer("written_at", torch.zeros(size, dtype=torch.int64))
        self.write_ptr = 0  # the slot that is written next
        self.count = 0  # slots that are filled
        self.version = 0  # grows whenever what the bank holds changes

    def __len__(self) -> int:
        return self.count

    @property
    def vectors(self) -> Tensor:
        """The stored vectors, (n, dim); a view, which the next write changes."""
        return self.slots[: self.count]

    @property
    def ids(self) -> Tensor:
        """The id written with each vector, (n,)."""
        return self.slot_ids[: self.count]

    def ages(self, step: int) -> Tensor:
        """How many updates before `step` each vector was made, (n,)."""
        return step - self.written_at[: self.count]

    def order(self) -> Tensor:
        """The slots from the oldest vector to the newest, (n,)."""
        oldest = self.write_ptr if self.count == self.size else 0
        return torch.arange(self.count).roll(-oldest)

    def write(self, ids: Tensor, vectors: Tensor, step: int) -> None:
        """Store detached copies of vectors (B, dim) with their ids (B,), over the oldest ones.

        step: the update that made them. If B is larger than the bank, only the last ones stay.
        """
        ids = torch.as_tensor(ids)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or ids.shape != vectors.shape[:1]:
            raise ValueError(
                f"write got {tuple(vectors.shape)} vectors and {tuple(ids.shape)} ids: "
                f"expected (B, {self.dim}) and (B,)."
            )
        if not self.size:
            return
        new, size = min(len(ids), self.size), self.size
        slots = self.next_slots(new)
        self.slots[slots] = vectors.detach()[-new:]
        self.slot_ids[slots] = ids[-new:]
        self.written_at[slots] = step
        # as self.name = value, without a module's search for parameters among them
        vars(self).update(
            write_ptr=(self.write_ptr + new) % size,
            count=min(self.count + new, size),
            version=self.version + 1,
        )

    enqueue = write  # MoCo's word

    def next_slots(self, count: int) -> slice | Tensor:
        """The slots of the next `count` vectors: a slice, which is faster, unless they wrap."""
        begin, end = self.write_ptr, self.write_ptr + count
        if end <= self.size:
            return slice(begin, end)
        return torch.arange(begin, end) % self.size

    def clear(self) -> None:
        """Empty the bank."""
        if self.count:
            self.write_ptr = self.count = 0
            self.version += 1

    def resized(self, size: int) -> MemoryBank:
        """A bank of another size with the newest vectors of this one."""
        bank = MemoryBank(size, self.dim, self.slots.dtype, self.slots.device)
        newest = self.order()[max(0, self.count - size) :]
        bank.slots[: len(newest)] = self.slots[newest]
        bank.slot_ids[: len(newest)] = self.slot_ids[newest]
        bank.written_at[: len(newest)] = self.written_at[newest]
        bank.count = len(newest)
        bank.write_ptr = bank.count % size if size else 0
        return bank

    def adopt(self, other: MemoryBank) -> None:
        """Take over another bank's vectors and its number of slots."""
        for name in ("slots", "slot_ids", "written_at"):
            setattr(self, name, getattr(other, name))
        self.size = other.size
        self.write_ptr, self.count = other.write_ptr, other.count
        self.version += 1

    def resize(self, size: int) -> None:
        """Change the number of slots; the newest vectors stay. If it fails, nothing changes."""
        self.adopt(self.resized(size))

    def snapshot(self, count: int) -> tuple:
        """What `restore` needs to undo writes of up to `count` vectors."""
        slots = self.next_slots(min(count, self.size))
        tensors = self.slots, self.slot_ids, self.written_at
        stored = tuple(tensor[slots].clone() for tensor in tensors)
        return slots, stored, self.write_ptr, self.count

    def restore(self, snapshot: tuple) -> None:
        """Return to the state of the snapshot."""
        slots, stored, self.write_ptr, self.count = snapshot
        self.slots[slots], self.slot_ids[slots], self.written_at[slots] = stored
        self.version += 1

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.write_ptr, self.count])

    def set_extra_state(self, state: Tensor) -> None:
        self.write_ptr, self.count = state.tolist()
        self.version += 1

    def _load_from_state_dict(self, state_dict, prefix, *args):
        stored = state_dict.get(prefix + "slots")
        if stored is not None and stored.shape != self.slots.shape:
            raise ValueError(
                f"the state is of a bank of {tuple(stored.shape)}, this one is "
                f"{tuple(self.slots.shape)}."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


class DualBank(nn.Module):
    """The query bank, the passage bank and the bank of hard negatives of a run, written together.

    Args:
        settings: memory_size, and which banks there are. dim: length of a vector.
    """

    def __init__(self, settings, dim: int):
        super().__init__()
        dtype, device = getattr(torch, settings.dtype), settings.device
        sizes = self.sizes(settings)
        self.query_bank = MemoryBank(sizes[0], dim, dtype, device)
        self.passage_bank = MemoryBank(sizes[1], dim, dtype, device)
        self.hard_bank = MemoryBank(sizes[2], dim, dtype, device)
        self._banks = self.query_bank, self.passage_bank, self.hard_bank

    @staticmethod
    def sizes(settings) -> tuple[int, int, int]:
        """Slots of the query, the passage and the hard-negative bank."""
        size = settings.memory_size * settings.passage_bank  # 0 slots where the switch is False
        hard = settings.hard_negatives * settings.bank_hard_negatives
        return size * settings.query_bank, size, size * hard

    def __iter__(self):
        return iter(self._banks)

    def enqueue(self, embeddings, batch, step: int, with_queries: bool = True) -> None:
        """Write a micro-batch: its `Embeddings` and its `MicroBatch` (core/gradients.py)."""
        query_bank, passage_bank, hard_bank = self
        if with_queries:
            query_bank.write(batch.pair_ids, embeddings.queries, step)
        passage_bank.write(batch.pair_ids, embeddings.passages, step)
        if hard_bank.size:
            hard_bank.write(batch.hard_ids, embeddings.hard_negatives, step)

    def clear(self) -> None:
        """Empty all three banks."""
        for bank in self:
            bank.clear()

    def resized(self, settings) -> list[MemoryBank]:
        """New banks of the settings' sizes with the newest vectors of these, for `adopt`.

        Where a query bank is switched on, all begin empty: a past query without its past passage
        has no positive.
        """
        sizes, resized = self.sizes(settings), []
        for bank, size in zip(self, sizes, strict=True):
            if sizes[0] and not self.query_bank.size:
                resized.append(MemoryBank(size, bank.dim, bank.slots.dtype, bank.slots.device))
            else:
                resized.append(bank if bank.size == size else bank.resized(size))
        return resized

    def adopt(self, banks: list[MemoryBank]) -> None:
        """Take over the vectors and sizes of these three banks."""
        for bank, other in zip(self, banks, strict=True):
            if bank is not other:
                bank.adopt(other)

    def snapshot(self, batches: list) -> list[tuple]:
        """What `restore` needs to undo the writing of these micro-batches."""
        num_pairs = sum(len(batch.pair_ids) for batch in batches)
        num_hard = sum(len(batch.hard_ids) for batch in batches)
        counts = num_pairs, num_pairs, num_hard
        return [bank.snapshot(count) if bank.size else () for bank, count in zip(self, counts)]

    def restore(self, snapshot: list[tuple]) -> None:
        """Return to the state of the snapshot."""
        for bank, stored in zip(self, snapshot):
            if stored:
                bank.restore(stored)

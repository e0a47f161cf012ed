"""The memory bank: the newest vectors of one tower, kept without their graph."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor


class MemoryBank:
    """A first-in-first-out ring of `size` vectors of length `dim`, each with an id and the update at which it was born.

    `vectors` (n, dim), `ids` (n,) and `ages(step)` (n,) come in the order of the slots, which is not the order of age once
    the ring has gone round; `order()` sorts slots from oldest to newest. Two banks that are written in step keep the same
    pair in the same slot: that is what makes row i's positive column i (equations 5 and 6). Notebook 03.
    """

    def __init__(
        self, size: int, dim: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ):
        whole = isinstance(size, Integral) and isinstance(dim, Integral)
        if not whole or size < 0 or dim < 1:
            raise ValueError(
                f"a bank of {size} vectors of length {dim}: size must be 0 or more, "
                "dim 1 or more, in whole numbers."
            )
        self.size, self.dim = size, dim
        self._vectors = torch.zeros(size, dim, dtype=dtype, device=device)
        self._ids = torch.full((size,), -1, dtype=torch.int64)
        self._born = torch.zeros(size, dtype=torch.int64)
        self.next_slot = 0  # where the next vector goes
        self.version = 1  # grows whenever a vector in it changes
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def vectors(self) -> Tensor:
        """The vectors kept, (n, dim); a view, which the next write changes."""
        return self._vectors[: self._count]

    @property
    def ids(self) -> Tensor:
        """The id written with each vector, (n,)."""
        return self._ids[: self._count]

    def ages(self, step: int) -> Tensor:
        """How many updates before `step` each vector was made, (n,)."""
        return step - self._born[: self._count]

    def order(self) -> Tensor:
        """The slots from the oldest vector to the newest, (n,)."""
        return torch.arange(self._count).roll(-self.next_slot if self._count == self.size else 0)

    def write(self, ids: Tensor, vectors: Tensor, step: int) -> None:
        """Store detached copies of (B, dim) vectors, in order, over the oldest ones; of more than `size`, the newest stay."""
        ids = torch.as_tensor(ids)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or ids.shape != vectors.shape[:1]:
            raise ValueError(
                f"write got {tuple(vectors.shape)} vectors and {tuple(ids.shape)} "
                f"ids: expected (B, {self.dim}) and (B,)."
            )
        if not self.size:
            return
        new = min(len(ids), self.size)
        slots = self._slots(new)
        self._vectors[slots] = vectors.detach()[-new:]
        self._ids[slots] = ids[-new:]
        self._born[slots] = step
        self.next_slot = (self.next_slot + new) % self.size
        self._count = min(self._count + new, self.size)
        self.version += 1

    def _slots(self, count: int) -> slice | Tensor:
        """The next `count` slots to be written: a slice where they do not go round the end, which is the faster way."""
        end = self.next_slot + count
        return (
            slice(self.next_slot, end)
            if end <= self.size
            else (torch.arange(self.next_slot, end) % self.size)
        )

    def clear(self) -> None:
        """Forget everything."""
        self.next_slot = self._count = 0

    def resize(self, size: int) -> None:
        """Change the number of slots; the newest vectors stay.

        Where memory runs out, the bank is as it was.
        """
        self.become(self.resized(size))

    def resized(self, size: int) -> MemoryBank:
        """A copy with this number of slots and the newest vectors."""
        copy = MemoryBank(size, self.dim, self._vectors.dtype, self._vectors.device)
        newest = self.order()[max(0, self._count - size) :]
        n = copy._count = len(newest)
        copy._vectors[:n] = self._vectors[newest]
        copy._ids[:n] = self._ids[newest]
        copy._born[:n] = self._born[newest]
        copy.next_slot = n % size if size else 0
        return copy

    def become(self, other: MemoryBank) -> None:
        """Hold what another bank holds. Nothing is copied, so this needs no memory."""
        vars(self).update(vars(other), version=self.version + 1)

    def mark(self, count: int) -> tuple:
        """What `restore` needs to take back writes of up to `count` vectors in all."""
        slots = self._slots(min(count, self.size))
        return (
            slots,
            self._vectors[slots].clone(),
            self._ids[slots].clone(),
            self._born[slots].clone(),
            self.next_slot,
            self._count,
        )

    def vectors_before(self, count: int):
        """A function that gives the vectors as they are now, (n, dim), after up to `count` more have been written."""
        slots, n = self._slots(min(count, self.size)), self._count
        written_over = self._vectors[slots].clone()

        def vectors() -> Tensor:
            found = self._vectors.clone()
            found[slots] = written_over
            return found[:n]

        return vectors

    def restore(self, mark: tuple) -> None:
        """Be again as at the mark."""
        (
            slots,
            self._vectors[slots],
            self._ids[slots],
            self._born[slots],
            self.next_slot,
            self._count,
        ) = mark
        self.version += 1

    def state_dict(self) -> dict[str, Tensor]:
        """All of it as tensors, the write position too."""
        return {
            "vectors": self._vectors,
            "ids": self._ids,
            "born": self._born,
            "position": torch.tensor([self.next_slot, self._count]),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Be as the bank that gave this state. Raises `ValueError` where the sizes differ."""
        if state["vectors"].shape != self._vectors.shape:
            raise ValueError(
                f"the state is of a bank of {tuple(state['vectors'].shape)}, this one is {tuple(self._vectors.shape)}."
            )
        self._vectors.copy_(state["vectors"])
        self._ids.copy_(state["ids"])
        self._born.copy_(state["born"])
        self.next_slot, self._count = (int(n) for n in state["position"])
        self.version += 1


class TableBank:
    """One vector for every passage of a corpus, raw as its tower made it, each with the update at which it was born.

    Where `MemoryBank` forgets its oldest, this one keeps a vector of each id until `write` replaces it (write-back). vectors: (N, d), of
    ids 0 to N − 1, made at update `step`. Notebook 07.
    """

    def __init__(self, vectors: Tensor, step: int = 0):
        if vectors.ndim != 2:
            raise ValueError(f"a table of {tuple(vectors.shape)} vectors: expected (N, d).")
        self.vectors = vectors.detach().clone()
        self.born = torch.full((len(vectors),), step, dtype=torch.int64)
        self._undo: list | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def ids(self) -> Tensor:
        return torch.arange(len(self))

    def ages(self, step: int) -> Tensor:
        """How many updates before `step` each vector was made, (N,)."""
        return step - self.born

    def oldest(self, count: int) -> Tensor:
        """The ids of the `count` oldest vectors, the oldest first; of equal age, the lowest id first."""
        return self.born.argsort(stable=True)[:count]

    def write(self, ids: Tensor, vectors: Tensor, step: int) -> None:
        """Put vectors (n, d) in the places of these ids; of an id that comes twice, the last one stays."""
        if (
            vectors.ndim != 2
            or vectors.shape != (len(ids), self.vectors.shape[1])
            or (len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(self))
        ):
            raise ValueError(
                f"write got {tuple(vectors.shape)} vectors for {len(ids)} ids: expected (n, {self.vectors.shape[1]}) for n ids below {len(self)}."
            )
        last = {int(one): place for place, one in enumerate(ids)}
        rows, places = (
            torch.tensor(list(last), dtype=torch.int64),
            torch.tensor(list(last.values()), dtype=torch.int64),
        )
        if self._undo is not None:
            self._undo.append((rows, self.vectors[rows], self.born[rows]))
        self.vectors[rows] = vectors.detach()[places]
        self.born[rows] = step

    def mark(self) -> list:
        """What `restore` needs to take back all writes from here on."""
        self._undo = []
        return self._undo

    def restore(self, mark: list) -> None:
        """Be again as at the mark."""
        while mark:
            rows, self.vectors[rows], self.born[rows] = mark.pop()

    def state_dict(self) -> dict[str, Tensor]:
        return {"vectors": self.vectors, "born": self.born}

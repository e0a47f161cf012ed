"""One vector for every passage of a corpus, each with the update at which it was made."""

from __future__ import annotations

import torch
from torch import Tensor


class PassageTable:
    """Vectors (N, d) of ids 0 to N - 1, as their tower made them at update `step`.

    Where `MemoryBank` forgets its oldest, this one keeps a vector of each id until `write` replaces
    it (write-back). Notebook 07.
    """

    def __init__(self, vectors: Tensor, step: int = 0):
        if vectors.ndim != 2:
            raise ValueError(f"a table of {tuple(vectors.shape)} vectors: expected (N, d).")
        self.vectors = vectors.detach().clone()
        self.written_at = torch.full((len(vectors),), step, dtype=torch.int64)
        self._undo_log: list | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def ids(self) -> Tensor:
        return torch.arange(len(self))

    def ages(self, step: int) -> Tensor:
        """How many updates before `step` each vector was made, (N,)."""
        return step - self.written_at

    def oldest(self, count: int) -> Tensor:
        """The ids of the `count` oldest vectors, the oldest first.

        Of equal age, the lowest id comes first.
        """
        return self.written_at.argsort(stable=True)[:count]

    def write(self, ids: Tensor, vectors: Tensor, step: int) -> None:
        """Put vectors (n, d) in the places of these ids.

        Of an id that comes twice, the last stays.
        """
        fits = vectors.ndim == 2 and vectors.shape == (len(ids), self.vectors.shape[1])
        if not fits or (len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(self)):
            raise ValueError(
                f"write got {tuple(vectors.shape)} vectors for {len(ids)} ids: "
                f"expected (n, {self.vectors.shape[1]}) for n ids below {len(self)}."
            )
        last = {int(id): index for index, id in enumerate(ids)}
        rows = torch.tensor(list(last), dtype=torch.int64)
        indices = torch.tensor(list(last.values()), dtype=torch.int64)
        if self._undo_log is not None:
            self._undo_log.append((rows, self.vectors[rows], self.written_at[rows]))
        self.vectors[rows] = vectors.detach()[indices]
        self.written_at[rows] = step

    def start_undo_log(self) -> list:
        """From here on, keep what is overwritten: `undo` puts it back."""
        self._undo_log = []
        return self._undo_log

    def undo(self, log: list) -> None:
        """Be again as when this log was started."""
        while log:
            rows, vectors, written_at = log.pop()
            self.vectors[rows], self.written_at[rows] = vectors, written_at

    def state_dict(self) -> dict[str, Tensor]:
        return {"vectors": self.vectors, "born": self.written_at}

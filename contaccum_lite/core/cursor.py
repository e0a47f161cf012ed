"""Where an update's pairs begin, also in a run whose N_local or K has changed on the way."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Cursor(NamedTuple):
    """The place in an epoch's shuffle from which updates of one size are counted.

    An update takes N_local × K pairs (times the processes) from there on. The last one of an epoch
    takes what is left. Where no size has changed, that place is the start of the first epoch.
    """

    update: int = 0  # counted back to the earliest update that this size could have had here
    epoch: int = 0
    start: int = 0  # pairs of this epoch before it: fewer than one update takes

    @classmethod
    def at(cls, update: int, epoch: int, position: int, batch_size: int) -> Cursor:
        """The cursor of a run whose next update takes `batch_size` pairs.

        update: the next one. epoch, position: where it begins. A change that is taken back at once
        leaves the cursor as it was.
        """
        earlier, start = divmod(position, batch_size)
        return cls(update - earlier, epoch, start)

    def locate(self, update: int, num_pairs: int, batch_size: int) -> tuple[int, int]:
        """(epoch, pairs of it that are taken before) of an update, from `self.update` on."""
        index = update - self.update
        if index < 0:
            raise ValueError(
                f"update {update} came before N_local or K changed: give {self.update} or more."
            )
        of_this_epoch = math.ceil((num_pairs - self.start) / batch_size)
        if index < of_this_epoch:
            return self.epoch, self.start + index * batch_size
        epochs, index = divmod(index - of_this_epoch, math.ceil(num_pairs / batch_size))
        return self.epoch + 1 + epochs, index * batch_size


def micro_batch_sizes(
    num_pairs: int, micro_batch_size: int, batch_size: int, start: int = 0
) -> np.ndarray:
    """Sizes of all micro-batches of an epoch; the last of each update may be smaller.

    start: pairs of the epoch that are taken before.
    """
    sizes = []
    for first in range(start, num_pairs, batch_size):
        left = min(batch_size, num_pairs - first)
        while left > 0:
            sizes.append(min(micro_batch_size, left))
            left -= micro_batch_size
    return np.array(sizes)

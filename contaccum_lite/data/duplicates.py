"""By which numbers a run recognises equal texts."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DuplicateKeys(NamedTuple):
    """Numbers that are equal for equal texts."""

    query: Tensor  # (pairs,): of each training pair's query
    passage: Tensor  # (pairs,): of each training pair's passage
    text: Tensor  # (passages,): of each passage, -1 where training never meets it

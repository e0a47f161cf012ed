"""Pairs of a query and the passage that answers it, and where they come from."""

from contaccum_lite.data.load import load_pairs
from contaccum_lite.data.toy import toy_pairs
from contaccum_lite.data.types import Pair, Pairs, Passage

__all__ = ["Pair", "Pairs", "Passage", "load_pairs", "toy_pairs"]

"""contaccum_lite: contrastive accumulation for dense retrievers, small enough to read, watch and take home."""

from .bank import MemoryBank
from .data import Pair, Pairs, Passage, load_pairs
from .loss import info_nce, info_nce_gradients, similarity_matrix
from .measure import grad_norm_ratio, peak_memory, similarity_mass
from .methods import MicroStep
from .search import Hit
from .settings import PRESETS, Settings
from .towers import BagTower, TransformerTower, load_tower
from .train import Run, Update

__version__ = "0.1.0"

"""contaccum_lite: contrastive accumulation for dense retrievers, small enough to read, watch and take home."""

from . import start as _start

_start.quiet_interrupts()  # the imports below take seconds

from .bank import MemoryBank, TableBank
from .check import check  # (the function: its module has the same name)
from .corrector import CORRECTORS, make_corrector
from .data import Pair, Pairs, Passage, load_pairs
from .drift import DriftProbe, cache_gap, gradient_error, softmax_gap
from .incremental import IncrementalSoftmax
from .loss import info_nce, info_nce_gradients, similarity_matrix
from .measure import (
    activation_memory,
    finite_differences,
    grad_norm_ratio,
    peak_memory,
    similarity_mass,
    tensor_memory,
)
from .methods import MicroStep
from .search import Hit
from .settings import PRESETS, Settings
from .towers import BagTower, TransformerTower, load_tower
from .train import Run, Update

_start.usual_interrupts()

__version__ = "0.1.0"

_WITH_WIDGETS = {
    "Lab": "lab",
    "SearchBox": "views",
    "DriftView": "driftview",
    "Card": "views",
    "Predict": "predict",
    "answers": "predict",
    "EquationView": "terms",
    "MatrixPicture": "pictures",
    "LinesPicture": "pictures",
    "PointsPicture": "pictures",
    "HeatMap": "heat",
    "Again": "heat",
    "Slide": "pictures",
    "same": "pictures",
}  # loaded when first asked for: they need the [lab] extra


def __getattr__(name: str):
    if name in _WITH_WIDGETS:
        from importlib import import_module

        return getattr(import_module(f".{_WITH_WIDGETS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_WITH_WIDGETS])

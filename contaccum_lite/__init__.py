"""contaccum_lite: contrastive accumulation for dense retrievers.

Small enough to read, watch and take home.

How to read it, in an evening:

    1  minimal.py           ContAccum on one page, by autograd
    2  core/loss.py         one matrix: its loss, and equations 8 and 9
    3  core/bank.py         a ring of past vectors; the dual bank
    4  encoders/bag.py      text in, vector out
    5  core/gradients.py    one update's gradient, micro-batch by micro-batch
    6  core/batches.py      which pairs make an update
    7  core/trainer.py      clip, step, schedule
    8  core/settings.py     every switch of the method
    9  data/types.py        a passage, a pair

Around it: `data` and `encoders` below; `diagnostics`, `staleness` (caches and correctors), `scale`
(incremental softmax, processes, precision, large corpora), `integrations`, `evidence` (the ledger),
`lab` (the live widget), `course` (exercises) and `cli` above. Imports go one way.
"""

from contaccum_lite.utils import start as _start

_start.quiet_interrupts()  # the imports below take seconds

import contaccum_lite.scale.attach  # noqa: F401  (what a run can be extended by)
from contaccum_lite.core.bank import MemoryBank
from contaccum_lite.core.loss import info_nce, info_nce_gradients, similarity_matrix
from contaccum_lite.core.metrics import Hit
from contaccum_lite.core.micro_step import MicroStep, Update
from contaccum_lite.core.presets import PRESETS
from contaccum_lite.core.run import Run
from contaccum_lite.core.settings import Settings
from contaccum_lite.course.capstone import leaderboard, submit, verify
from contaccum_lite.course.check import check
from contaccum_lite.course.my_contaccum import MyContAccum
from contaccum_lite.course.yours import yours
from contaccum_lite.data.load import load_pairs
from contaccum_lite.data.types import Pair, Pairs, Passage
from contaccum_lite.diagnostics.measure import (
    activation_memory,
    finite_differences,
    grad_norm_ratio,
    peak_memory,
    similarity_mass,
    tensor_memory,
)
from contaccum_lite.encoders.bag import BagTower
from contaccum_lite.encoders.make import load_tower
from contaccum_lite.encoders.transformer import TransformerTower
from contaccum_lite.scale.incremental_softmax import IncrementalSoftmax
from contaccum_lite.staleness.correctors import CORRECTORS, make_corrector
from contaccum_lite.staleness.drift import DriftProbe, cache_gap, gradient_error, softmax_gap
from contaccum_lite.staleness.passage_table import PassageTable

_start.usual_interrupts()

__version__ = "0.2.0.dev0"
TableBank = PassageTable  # its name in earlier versions

#: name -> its module: loaded when first asked for, because they need the [lab] extra.
_WITH_WIDGETS = {
    "Lab": "lab.lab",
    "SearchBox": "lab.search_box",
    "Card": "lab.search_box",
    "DriftView": "lab.drift",
    "HeatMap": "lab.sweep",
    "Again": "lab.rerun",
    "Predict": "course.predict",
    "answers": "course.predict",
    "Gate": "course.gate",
    "tally": "course.tally",
    "Story": "course.story",
    "EquationView": "course.equations",
    "MatrixPicture": "course.plots",
    "LinesPicture": "course.plots",
    "PanelsPicture": "course.panels",
    "PointsPicture": "course.plots",
    "Slide": "course.plots",
    "same": "course.plots",
}

__all__ = [
    "CORRECTORS",
    "PRESETS",
    "BagTower",
    "DriftProbe",
    "Hit",
    "IncrementalSoftmax",
    "MemoryBank",
    "MicroStep",
    "MyContAccum",
    "Pair",
    "Pairs",
    "Passage",
    "PassageTable",
    "Run",
    "Settings",
    "TableBank",
    "TransformerTower",
    "Update",
    "activation_memory",
    "cache_gap",
    "check",
    "finite_differences",
    "grad_norm_ratio",
    "gradient_error",
    "info_nce",
    "info_nce_gradients",
    "leaderboard",
    "load_pairs",
    "load_tower",
    "make_corrector",
    "peak_memory",
    "similarity_mass",
    "similarity_matrix",
    "softmax_gap",
    "submit",
    "tensor_memory",
    "verify",
    "yours",
]


def __getattr__(name: str):
    if name in _WITH_WIDGETS:
        from importlib import import_module

        return getattr(import_module(f".{_WITH_WIDGETS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_WITH_WIDGETS])

"""Which optional features a new run gets, in this order: imported with the package."""

from __future__ import annotations

from contaccum_lite.core.composition import attach_clusters
from contaccum_lite.core.objectives import attach_objective
from contaccum_lite.core.trainer import EXTENSIONS, Trainer
from contaccum_lite.scale.incremental_softmax import attach_incremental_softmax
from contaccum_lite.scale.precision import configure_precision
from contaccum_lite.scale.processes import ProcessGroup
from contaccum_lite.scale.tiled import attach_tiles
from contaccum_lite.staleness.bank_corrector import attach_bank_corrector
from contaccum_lite.staleness.bank_refresh import attach_bank_refresh
from contaccum_lite.staleness.corpus_columns import attach_corpus_columns
from contaccum_lite.staleness.guide import attach_guide
from contaccum_lite.staleness.momentum import attach_momentum_encoders
from contaccum_lite.staleness.passage_cache import attach_cache

Trainer.process_group_type = ProcessGroup
EXTENSIONS[:] = [
    configure_precision,
    attach_objective,
    attach_clusters,
    attach_guide,
    attach_corpus_columns,
    attach_cache,
    attach_bank_corrector,
    attach_bank_refresh,
    attach_momentum_encoders,
    attach_incremental_softmax,
    attach_tiles,
]

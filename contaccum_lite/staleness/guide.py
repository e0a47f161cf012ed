"""A guide: a second model whose scores say which columns are false negatives (GISTEmbed).

The second model is the towers as they were before the first update, so nothing else is needed.
A column that the guide scores above the row's positive, by more than `mask_margin`, is left out.
Solatorio, 2024 (arXiv 2402.16829).
"""

from __future__ import annotations

import torch
from torch import Tensor

from contaccum_lite.core.hooks import Extension
from contaccum_lite.core.masks import above_margin
from contaccum_lite.encoders.encode import encode_to_tensor


def attach_guide(run) -> None:
    """A guide for a run whose settings ask for one."""
    settings = run.settings
    if settings.mask_margin is not None and settings.mask_guide == "start":
        run.learner.extensions.append(Guide(run))


class Guide(Extension):
    """The vectors that all training texts had before the first update, and the mask they give."""

    name = "guide"

    def __init__(self, run):
        settings, sampler = run.settings, run.sampler
        self.settings = settings
        self.positives = torch.from_numpy(run.sampler.positives)
        self.row_of = torch.full((len(run.pairs.passages),), -1)
        self.row_of[sampler.tokenized_rows] = torch.arange(len(sampler.tokenized_rows))
        self.queries = encode_to_tensor(run.query_tower, sampler.queries, settings)
        self.passages = encode_to_tensor(run.passage_tower, sampler.passages, settings)

    def mask(self, layout) -> Tensor:
        """True where a column of this `Layout` is above the positive by the guide's scores."""
        return above_margin(self.scores(layout), self.settings.mask_margin)

    def scores(self, layout) -> Tensor:
        """The guide's scores of a `Layout`, divided by the temperature, (rows, columns)."""
        pairs, hard = layout.column_ids.tensor_split([layout.hard_from])
        rows = self.row_of[torch.cat([self.positives[pairs], hard])]
        return self.queries[layout.row_ids] @ self.passages[rows].T / self.settings.temperature

    def state_dict(self) -> dict[str, Tensor]:
        return {"queries": self.queries, "passages": self.passages}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.queries, self.passages = state["queries"], state["passages"]

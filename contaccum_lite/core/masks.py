"""Scores that are left out of a loss: duplicates by text, false negatives by score."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


def duplicate_mask(query_keys: Tensor, passage_keys: Tensor, rows: int) -> Tensor | None:
    """True where column j has row i's query or its passage's text, and is not its positive.

    query_keys: (columns,) equal for two columns of the same query; -1 for hard negatives.
    passage_keys: (columns,) equal for two columns of the same text. rows: the number of rows; row i
    is the query of column i. Returns (rows, columns), or None where nothing is masked.
    """
    if not (_has_repeats(query_keys[query_keys >= 0]) or _has_repeats(passage_keys)):
        return None
    mask = passage_keys[:rows, None] == passage_keys
    mask |= query_keys[:rows, None] == query_keys
    mask.fill_diagonal_(False)
    return mask


def _has_repeats(keys: Tensor) -> bool:
    return len(set(keys.tolist())) < len(keys)  # faster than sorting, up to some thousands


def keys_of(layout, keys) -> tuple[Tensor, Tensor]:
    """(query keys, passage keys) of a `Layout`'s columns, for `duplicate_mask`.

    keys: `DuplicateKeys` of the training pairs.
    """
    if layout.hard_from == len(layout.column_ids):
        return keys.query[layout.column_ids], keys.passage[layout.column_ids]
    pairs, hard = layout.column_ids.tensor_split([layout.hard_from])
    query_keys = torch.cat([keys.query[pairs], torch.full((len(hard),), -1)])
    return query_keys, torch.cat([keys.passage[pairs], keys.text[hard]])


def layout_mask(learner, layout) -> Tensor | None:
    """What is left out of a `Layout`'s matrix, (rows, columns); None where nothing is.

    Duplicates by their texts, and what a guide (staleness/guide.py) takes for a false negative.
    """
    mask = None
    if learner.settings.mask_duplicates:
        mask = duplicate_mask(*keys_of(layout, learner.keys), len(layout.row_ids))
    mask = mask if mask is None else mask.to(learner.settings.device)
    guide = learner.extension("guide")
    if guide is None:
        return mask
    return guide.mask(layout) if mask is None else mask | guide.mask(layout)


def above_margin(scores: Tensor, margin: float) -> Tensor:
    """True where a row's score is above that of its positive, on the diagonal, by more than this.

    scores: (rows, columns). The positives themselves are never True, whatever the margin. Such a
    column is more likely a passage that answers the query than a hard negative (as masked by
    Qwen3-Embedding and, by a second model's scores, in GISTEmbed).
    """
    mask = scores > scores.diagonal()[:, None] + margin
    return mask.fill_diagonal_(False)


def with_margin(objective: Objective, margin: float) -> Objective:
    """The objective over the columns that `above_margin` leaves. It writes -inf into the scores."""

    def masked(scores: Tensor) -> tuple[Tensor, Tensor]:
        return objective(scores.masked_fill_(above_margin(scores, margin), -torch.inf))

    return masked

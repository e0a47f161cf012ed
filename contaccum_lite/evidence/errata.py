"""Errors in the paper, each with a proof that the printed version fails and the right one passes.

A proof is arithmetic on the paper's own tables, or autograd. What could not be proved is not
listed: cross-references, card names, what the training data were. Notebook 06.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from contaccum_lite.core.loss import similarity_matrix
from contaccum_lite.core.run import Run
from contaccum_lite.data.toy import toy_pairs
from contaccum_lite.evidence.claims import printed

GIB = 2**30
#: Table 1 as printed: MS MARCO NDCG@20, @100, Recall@20, @100;
#: Top@20, @100 of NQ, TriviaQA, WebQ, TREC
TABLE_1 = {
    "DPR 8": (27.9, 23.5, 8.3, 15.2, 72.2, 81.5, 73.7, 81.9, 72.5, 81.4, 80.8, 88.9),
    "GradAccum 8": (31.1, 26.4, 10.1, 18.1, 77.1, 84.7, 78.4, 84.8, 74.6, 81.9, 79.7, 89.9),
    "GradCache 8": (34.9, 30.6, 12.8, 22.4, 79.5, 85.9, 79.4, 85.1, 75.1, 82.3, 81.6, 90.2),
    "ContAccum 8": (39.1, 32.9, 14.4, 23.8, 80.1, 86.5, 79.8, 85.3, 75.4, 82.1, 83.3, 90.5),
    "DPR 32": (33.1, 28.6, 11.5, 19.6, 77.0, 84.8, 77.5, 84.2, 74.8, 82.1, 82.7, 89.8),
    "GradAccum 32": (33.1, 28.2, 11.8, 20.0, 77.9, 85.4, 80.0, 84.8, 74.3, 81.9, 79.3, 89.6),
    "GradCache 32": (35.5, 31.0, 12.8, 22.1, 79.6, 86.0, 79.7, 85.1, 74.7, 81.8, 81.3, 89.6),
    "ContAccum 32": (39.0, 32.9, 14.6, 24.1, 80.6, 86.3, 79.4, 85.1, 75.0, 82.5, 81.8, 89.5),
    "DPR 128": (35.1, 30.8, 12.7, 22.2, 79.4, 86.1, 79.5, 85.1, 74.7, 82.4, 82.0, 90.5),
}
#: Table 2 as printed: Top@20 on NQ, (with hard negatives, without)
TABLE_2 = {
    "ContAccum": (78.8, 76.3),
    "w/o M_q": (70.8, 72.3),
    "w/o past": (76.5, 73.4),
    "w/o M_q, past": (67.8, 73.9),
    "w/o GradAccum": (76.7, 74.1),
}
#: Table 3 as printed, GB: N_memory -> (training, additional actual, additional theoretical)
TABLE_3 = {
    128: (8.342, 0.002, 0.0007),
    512: (8.346, 0.006, 0.0029),
    1024: (8.353, 0.013, 0.0059),
    5096: (8.382, 0.042, 0.0117),
}


class Erratum(NamedTuple):
    """An error in print. `check` is true of the corrected value and false of the printed one."""

    name: str
    section: str
    printed: str  # in our words
    correction: str
    printed_value: object
    corrected_value: object
    check: Callable

    def is_proven(self) -> bool:
        """Whether the check rejects what is printed and accepts the correction."""
        return bool(self.check(self.corrected_value)) and not self.check(self.printed_value)


def _vectors():
    generator = torch.Generator().manual_seed(0)
    normal = lambda n: torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return normal(4), normal(4), normal(5), normal(5)


def _is_gradient_of_passages(formula: Callable) -> bool:
    """Whether formula(S, local q, all q) is ∂loss/∂p of local passages (dual bank, τ = 1)."""
    queries, passages, past_q, past_p = _vectors()
    passages.requires_grad_()
    scores = similarity_matrix(queries, passages, past_q, past_p)
    torch.nn.functional.cross_entropy(scores, torch.arange(len(scores))).backward()
    softmax, all_q = scores.detach().softmax(1), torch.cat([queries, past_q])
    return torch.allclose(formula(softmax, queries, all_q), passages.grad, atol=1e-12)


def _goes_to_zero(loss: Callable) -> bool:
    """Whether the loss is 0 where each query finds its passage, as equations 8 and 9 imply."""
    return loss(1000.0 * torch.eye(8, dtype=torch.float64)) < 1e-6


def _is_distribution(mass: Callable) -> bool:
    """Whether masses are shares that add up to 1: the text says "after a softmax"."""
    queries, passages, *_ = _vectors()
    masses = mass(queries @ passages.T)
    return bool((masses >= 0).all()) and abs(float(masses.sum()) - 1) < 1e-12


def _above_high_resource(method: str) -> int:
    """In how many of Table 1's 24 figures a method is above DPR with 128."""
    figures = TABLE_1[f"{method} 8"] + TABLE_1[f"{method} 32"]
    return sum(a > b for a, b in zip(figures, 2 * TABLE_1["DPR 128"]))


def _ndcg_can_fall_with_k(relevant: int) -> bool:
    """Whether NDCG@100 can be below NDCG@20 with so many relevant passages for a query.

    It is in each of Table 1's rows.
    """
    generator = torch.Generator().manual_seed(0)
    gain = 1 / torch.log2(torch.arange(100, dtype=torch.float64) + 2)
    ideal = lambda k: gain[: min(k, relevant)].sum()
    for chance in torch.linspace(0.05, 0.95, 19):
        for _ in range(20):
            hits = torch.rand(100, generator=generator, dtype=torch.float64) < chance
            hits &= hits.cumsum(0) <= relevant
            if (gain * hits).sum() / ideal(100) < (gain * hits)[:20].sum() / ideal(20) - 1e-9:
                return True
    return False


def _is_number_of_negatives(count: int) -> bool:
    """Whether N_local 8 and N_memory 16 with hard negatives give so many negatives."""
    run = Run(
        toy_pairs(64, 8),
        local_batch=8,
        accumulation_steps=4,
        memory_size=16,
        hard_negatives=1,
        dim=8,
        updates=2,
    )
    run.step()
    return run.step().negatives == count


def _matches_measured_memory(extra: Callable) -> bool:
    """Whether these bytes are within a tenth of Table 3's two largest measured additions.

    Its last row is read as 2048.
    """
    measured = {1024: TABLE_3[1024][1], 2048: TABLE_3[5096][1]}
    return all(abs(extra(n) / GIB / gb - 1) < 0.1 for n, gb in measured.items())


def _is_last_row_of_table_3(n: int) -> bool:
    """Whether equation 11 gives the last row's theoretical figure for this N_memory."""
    return abs(n * 768 * 2 * 4 / GIB - TABLE_3[5096][2]) < 5e-5


def _largest_gain() -> float:
    """ContAccum's largest gain over DPR with 128 in Table 1."""
    pairs = [(TABLE_1[f"ContAccum {size}"], TABLE_1["DPR 128"]) for size in (8, 32)]
    return max(ours - theirs for rows in pairs for ours, theirs in zip(*rows))


def _rises_with_memory() -> int:
    """In how many of Table 1's 12 figures GradAccum is better at 24 GB than at 11 GB."""
    return sum(b > a for a, b in zip(TABLE_1["GradAccum 8"], TABLE_1["GradAccum 32"]))


def _trends_agree() -> bool:
    """Whether leaving out past encoders as well as M_q has one sign in both columns of Table 2."""
    rises = {TABLE_2["w/o M_q, past"][i] > TABLE_2["w/o M_q"][i] for i in (0, 1)}
    return len(rises) == 1


#: name in claims.json -> (printed value, corrected value, check of a value)
_PROOFS = {
    "Table 3, last row": (5096, 2048, _is_last_row_of_table_3),
    "Table 3, first row": (128, 8, lambda total: total == 8 * 1),
    "0.5 % or 12 MB": (12, 42, lambda mb: abs(mb / 1000 / 8.340 - 0.005) < 0.0005),
    "what equation 11 leaves out": (
        lambda n: n * 768 * 8,
        lambda n: n * 768 * 8 + 2 * 4 * (n + 8) ** 2,
        _matches_measured_memory,
    ),
    "q_l for q_i": (
        lambda s, q, all_q: -(q - s[:, : len(q)].sum(0)[:, None] * q) / len(all_q),
        lambda s, q, all_q: -(q - s[:, : len(q)].T @ all_q) / len(all_q),
        _is_gradient_of_passages,
    ),
    "two softmaxes": (
        lambda scores: -scores.softmax(1).log_softmax(1).diagonal().mean(),
        lambda scores: -scores.log_softmax(1).diagonal().mean(),
        _goes_to_zero,
    ),
    "a mass without softmax": (
        lambda scores: scores.mean(0),
        lambda scores: scores.softmax(1).mean(0),
        _is_distribution,
    ),
    "negatives": (8 + 16 - 1, 2 * (8 + 16) - 1, _is_number_of_negatives),
    "up to 4.9 points": (4.9, 4.0, lambda points: abs(points - _largest_gain()) < 0.05),
    "8 metrics": (8, 9, lambda count: count == _above_high_resource("GradCache")),
    "more memory helps GradAccum": (12, 7, lambda count: count == _rises_with_memory()),
    "consistent trends": (True, False, lambda same: same == _trends_agree()),
    "MS MARCO dev": (2, 100, _ndcg_can_fall_with_k),
}
ERRATA = tuple(
    Erratum(
        **erratum,
        **dict(zip(("printed_value", "corrected_value", "check"), _PROOFS[erratum["name"]])),
    )
    for erratum in printed("errata")
)


def double_softmax_floor(columns: int) -> float:
    """The least loss of the double softmax, which no training can go below: log(1 + (N − 1)/e)."""
    return math.log(1 + (columns - 1) / math.e)

"""Errors in the paper, each with a proof that the printed version fails and the right one passes.

A proof is arithmetic on the paper's own tables, or autograd. What could not be proved (cross-references, card names, what the
training data were) is not listed. Notebook 06.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from .loss import similarity_matrix

GIB = 2**30
#: Table 1 as printed: (MS MARCO NDCG@20, @100, Recall@20, @100; Top@20, @100 of NQ, TriviaQA, WebQ, TREC)
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
#: Table 3 as printed: N_memory -> (memory of training, additional actual, additional theoretical), GB
TABLE_3 = {
    128: (8.342, 0.002, 0.0007),
    512: (8.346, 0.006, 0.0029),
    1024: (8.353, 0.013, 0.0059),
    5096: (8.382, 0.042, 0.0117),
}


class Erratum(NamedTuple):
    """What is printed where, what is right, and `proof`, which holds for the right version and not for the printed one."""

    name: str
    place: str
    says: str  # what is printed, in our words
    right: str  # what it must be
    printed_version: object
    right_version: object
    proof: Callable

    def holds(self) -> bool:
        """Whether the proof tells the two apart."""
        return bool(self.proof(self.right_version)) and not self.proof(self.printed_version)


def _vectors():
    draw = torch.Generator().manual_seed(0)
    normal = lambda n: torch.randn(n, 6, generator=draw, dtype=torch.float64)
    return normal(4), normal(4), normal(5), normal(5)


def _gradient_of_passages(formula: Callable) -> bool:
    """Whether formula(S, local q, all q) is autograd's ∂loss/∂p for the local passages, with a dual bank, τ = 1."""
    queries, passages, past_q, past_p = _vectors()
    passages.requires_grad_()
    scores = similarity_matrix(queries, passages, past_q, past_p)
    torch.nn.functional.cross_entropy(scores, torch.arange(len(scores))).backward()
    softmax, all_q = scores.detach().softmax(1), torch.cat([queries, past_q])
    return torch.allclose(formula(softmax, queries, all_q), passages.grad, atol=1e-12)


def _one_softmax(loss: Callable) -> bool:
    """Whether the loss goes to 0 as every query finds its passage, as equations 8 and 9 say its gradient does."""
    return loss(1000.0 * torch.eye(8, dtype=torch.float64)) < 1e-6


def _a_distribution(mass: Callable) -> bool:
    """Whether a query's masses over all passages are shares that add up to 1, as the text says ("after a softmax")."""
    queries, passages, *_ = _vectors()
    found = mass(queries @ passages.T)
    return bool((found >= 0).all()) and abs(float(found.sum()) - 1) < 1e-12


def _above_high_resource(method: str) -> int:
    """In how many of Table 1's 24 figures a method is above DPR with 128."""
    return sum(
        a > b for size in (8, 32) for a, b in zip(TABLE_1[f"{method} {size}"], TABLE_1["DPR 128"])
    )


def _can_fall(relevant: int) -> bool:
    """Whether NDCG@100 can be below NDCG@20, as it is in each of Table 1's rows, with so many relevant passages for a query."""
    draw = torch.Generator().manual_seed(0)
    gain = 1 / torch.log2(torch.arange(100, dtype=torch.float64) + 2)
    ideal = lambda k: gain[: min(k, relevant)].sum()
    for chance in torch.linspace(0.05, 0.95, 19):
        for _ in range(20):
            hits = torch.rand(100, generator=draw, dtype=torch.float64) < chance
            hits &= hits.cumsum(0) <= relevant
            if (gain * hits).sum() / ideal(100) < (gain * hits)[:20].sum() / ideal(20) - 1e-9:
                return True
    return False


def _negatives(count: int) -> bool:
    """Whether a query of a run with hard negatives in batch and bank has so many negatives, at N_local 8 and N_memory 16."""
    from .data import toy_pairs
    from .train import Run

    run = Run(
        toy_pairs(64, 8),
        local_batch=8,
        accumulation_steps=4,
        memory_size=16,
        hard_negatives=1,
        dim=8,
        updates=2,
    )
    return [run.step() for _ in range(2)][-1].negatives == count


def _measured(extra: Callable) -> bool:
    """Whether these bytes are within a tenth of Table 3's two largest measured additions, reading its last row as 2048."""
    found = {1024: TABLE_3[1024][1], 2048: TABLE_3[5096][1]}
    return all(abs(extra(n) / GIB / gb - 1) < 0.1 for n, gb in found.items())


ERRATA = (
    Erratum(
        "Table 3, last row",
        "Table 3",
        "N_memory is 5096 in the last row.",
        "It is 2048: 0.0117 GiB by equation 11.",
        5096,
        2048,
        lambda n: abs(n * 768 * 2 * 4 / GIB - TABLE_3[5096][2]) < 5e-5,
    ),
    Erratum(
        "Table 3, first row",
        "Table 3",
        "DPR with N_local 8 and K 1 has N_total 128.",
        "N_total = N_local · K = 8.",
        128,
        8,
        lambda total: total == 8 * 1,
    ),
    Erratum(
        "0.5 % or 12 MB",
        "Appendix E",
        "The bank adds up to 0.5 %, which is at most 12 MB.",
        "0.5 % of the 8.34 GB is 42 MB; 12 MB is the theoretical figure.",
        12,
        42,
        lambda mb: abs(mb / 1000 / 8.340 - 0.005) < 0.0005,
    ),
    Erratum(
        "what equation 11 leaves out",
        "equation 11, Table 3",
        "A bank's memory is its vectors.",
        "The similarity matrix and its gradient come on top: 8·(N_local + N_memory)² bytes.",
        lambda n: n * 768 * 8,
        lambda n: n * 768 * 8 + 2 * 4 * (n + 8) ** 2,
        _measured,
    ),
    Erratum(
        "q_l for q_i",
        "Appendix A, last line",
        "∂L/∂p_l sums S_il · q_l.",
        "It sums S_il · q_i, as equation 9 has it.",
        lambda s, q, all_q: -(q - s[:, : len(q)].sum(0)[:, None] * q) / len(all_q),
        lambda s, q, all_q: -(q - s[:, : len(q)].T @ all_q) / len(all_q),
        _gradient_of_passages,
    ),
    Erratum(
        "two softmaxes",
        "equations 1, 4 and 7",
        "The loss takes a softmax of S, which is a softmax already.",
        "S is the matrix of scores; there is one softmax.",
        lambda scores: -scores.softmax(1).log_softmax(1).diagonal().mean(),
        lambda scores: -scores.log_softmax(1).diagonal().mean(),
        _one_softmax,
    ),
    Erratum(
        "a mass without softmax",
        "equation 10",
        "The similarity mass is a sum of dot products.",
        "Of their softmax, as the text says.",
        lambda scores: scores.mean(0),
        lambda scores: scores.softmax(1).mean(0),
        _a_distribution,
    ),
    Erratum(
        "negatives",
        "Section 3.2",
        "A query has N_local + N_memory − 1 negatives, in experiments that all have hard negatives.",
        "With hard negatives in batch and bank: 2·(N_local + N_memory) − 1.",
        8 + 16 - 1,
        2 * (8 + 16) - 1,
        _negatives,
    ),
    Erratum(
        "up to 4.9 points",
        "Section 5.1",
        "ContAccum is up to 4.9 points above the high-resource run.",
        "At most 4.0, by Table 1.",
        4.9,
        4.0,
        lambda points: (
            abs(
                points
                - max(
                    a - b
                    for size in (8, 32)
                    for a, b in zip(TABLE_1[f"ContAccum {size}"], TABLE_1["DPR 128"])
                )
            )
            < 0.05
        ),
    ),
    Erratum(
        "8 metrics",
        "Section 5.1",
        "GradCache is above the high-resource run in 8 figures.",
        "In 9, by Table 1: one of them (24 GB, Recall@20) has no star.",
        8,
        9,
        lambda count: count == _above_high_resource("GradCache"),
    ),
    Erratum(
        "more memory helps GradAccum",
        "Section 5.1",
        "GradAccum improves from 11 GB to 24 GB.",
        "In 7 of Table 1's 12 figures; in 3 it falls.",
        12,
        7,
        lambda count: (
            count == sum(b > a for a, b in zip(TABLE_1["GradAccum 8"], TABLE_1["GradAccum 32"]))
        ),
    ),
    Erratum(
        "consistent trends",
        "Section 5.2",
        "The ablations' trends are the same with hard negatives and without.",
        "Leaving out past encoders as well as M_q costs 3.0 with hard negatives and brings 1.6 without.",
        True,
        False,
        lambda same: (
            same
            == (len({TABLE_2["w/o M_q, past"][i] > TABLE_2["w/o M_q"][i] for i in (0, 1)}) == 1)
        ),
    ),
    Erratum(
        "MS MARCO dev",
        "Table 1",
        "MS MARCO is judged on its dev set, with about one relevant passage for a query.",
        "NDCG@100 below NDCG@20 needs queries with more than 20: another set of judgements.",
        2,
        100,
        _can_fall,
    ),
)


def least_of_two_softmaxes(columns: int) -> float:
    """The least loss of the double softmax, which no training can go below: log(1 + (N − 1)/e)."""
    return math.log(1 + (columns - 1) / math.e)

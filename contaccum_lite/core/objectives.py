"""Objectives: how a matrix of scores becomes (loss, ∂loss/∂scores).

Whatever the objective, ∂loss/∂vectors follows from ∂loss/∂scores as in core/loss.py. InfoNCE is
`softmax_loss` there. Here are those that need no normaliser of their own row's positive, that
remember one number for each pair, or that need no normaliser at all. Notebook 10.

In all of them scores are (rows, columns), already divided by the temperature, -inf where a column
is left out; row i's positive is column i; the loss is the mean over the rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from contaccum_lite.core.hooks import Extension
from contaccum_lite.core.loss import softmax_loss
from contaccum_lite.core.masks import Objective, with_margin

# --- the functions --------------------------------------------------------------------------------


def negatives_only(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(log Σ_{j≠i} exp(s_ij − s_ii) (rows,), softmax over the negatives (rows, columns)).

    A row without a negative has -inf and a row of zeros.
    """
    positives = scores.diagonal()
    negatives = scores.clone().fill_diagonal_(-torch.inf)
    log_sums = negatives.logsumexp(1)
    lowest = torch.finfo(scores.dtype).min  # a row of -inf must not become nan
    softmax = (negatives - log_sums.clamp(min=lowest)[:, None]).exp_()
    return log_sums - positives, softmax


def decoupled_loss(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The decoupled loss (DCL): InfoNCE with the positive left out of its row's denominator.

        loss_i = log Σ_{j≠i} exp(s_ij) − s_ii
        ∂loss_i/∂s_ij = softmax over the negatives,   ∂loss_i/∂s_ii = −1

    InfoNCE's gradient is this one times 1 − p_ii, which is near 0 for a pair that is already right:
    leaving the positive out keeps the gradient of easy pairs. A row without a negative adds
    nothing.
    Yeh et al., 2022 (arXiv 2110.06848).
    """
    log_ratios, grad_scores = negatives_only(scores)
    has_negative = log_ratios > -torch.inf
    grad_scores.diagonal().sub_(has_negative.to(scores.dtype))
    return log_ratios[has_negative].sum() / len(scores), grad_scores / len(scores)


def sogclr_loss(scores: Tensor, log_u: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """SogCLR: the normaliser of each pair is remembered from its earlier visits, as one number.

        u_i ← (1 − γ) u_i + γ · mean_{j≠i} exp(s_ij − s_ii)
        ∂loss_i/∂s_ij = exp(s_ij − s_ii) / (n_i u_i),   ∂loss_i/∂s_ii = −Σ_{j≠i} ∂loss_i/∂s_ij

    log_u: (rows,) of the last visit, nan at the first one, where u_i is the present mean; n_i is
    the number of negatives of row i. Returns (loss, ∂loss/∂scores, log u_i after this visit). The
    loss shown is the mean of log(n_i u_i); the gradient takes u_i as a constant. Each row of the
    gradient sums to zero whatever u_i is, and γ = 1 is the decoupled loss.
    Yuan et al., 2022 (arXiv 2202.12387).
    """
    log_ratios, grad_scores = negatives_only(scores)
    log_counts = ((scores > -torch.inf).sum(1) - 1).to(scores.dtype).log()
    has_negative = log_ratios > -torch.inf
    present = log_ratios - log_counts
    remembered = torch.where(log_u.isnan(), present, log_u)
    old_share = math.log1p(-gamma) if gamma < 1 else -math.inf
    new = torch.logaddexp(remembered + old_share, present + math.log(gamma))
    grad_scores *= torch.where(has_negative, (present - new).exp(), 0.0)[:, None]
    grad_scores.diagonal().sub_(grad_scores.sum(1))
    loss = (new + log_counts)[has_negative].sum() / len(scores)
    return loss, grad_scores / len(scores), torch.where(has_negative, new, log_u)


def sigmoid_loss(
    scores: Tensor, log_scale: float = 0.0, bias: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The sigmoid loss of SigLIP: each score is a yes-or-no question of its own.

        loss = 1/rows Σ_ij −log σ(z_ij (t s_ij + b)),   z_ij = 1 for the positive, −1 elsewhere
        ∂loss/∂s_ij = −t z_ij σ(−z_ij (t s_ij + b)) / rows

    log_scale, bias: log t and b, which are learned. Returns (loss, ∂loss/∂scores, (∂loss/∂log t,
    ∂loss/∂b)). No row shares a normaliser, so a banked column changes no local passage's gradient.
    Zhai et al., 2023 (arXiv 2303.15343).
    """
    scale, is_out = math.exp(log_scale), scores == -torch.inf
    scores = scores.masked_fill(is_out, 0.0)
    logits = (scores * scale).add_(bias)
    logits.diagonal().neg_()  # now each is −z (t s + b)
    loss = nn.functional.softplus(logits).masked_fill_(is_out, 0.0).sum() / len(scores)
    grad_logits = logits.sigmoid_().masked_fill_(is_out, 0.0)
    grad_logits.diagonal().neg_()
    grad_logits /= len(scores)
    grad_log_scale = torch.dot(grad_logits.flatten(), scores.flatten()) * scale
    grad_parameters = torch.stack([grad_log_scale, grad_logits.sum()])
    return loss, grad_logits.mul_(scale), grad_parameters


#: objective -> its function, for those that keep nothing between micro-batches
STATELESS: dict[str, Objective] = {"info_nce": softmax_loss, "decoupled": decoupled_loss}


# --- those that keep something, as extensions of a run --------------------------------------------


class StatefulObjective(Extension):
    """An objective that keeps numbers between micro-batches.

    `bind` gives the function of one matrix and changes nothing; `after_loss` takes over what the
    last one called would leave behind. So a matrix can be looked at without being trained on.
    """

    name = "objective"

    def bind(self, row_ids: Tensor, local: int, direction: int) -> Objective:
        """The function from scores to (loss, ∂loss/∂scores) for the rows of these pairs.

        local: rows before this are of the micro-batch. direction: 0 for query rows, 1 for passage
        rows.
        """
        raise NotImplementedError

    def after_loss(self, share: float) -> None:
        """Take over what the functions bound last have left."""


class SogCLR(StatefulObjective):
    """`sogclr_loss` with its table: log u of each training pair, for query and for passage rows.

    Every row reads its pair's number; only the local rows, whose visit this is, write it. It needs
    each pair to be visited at least twice. 4 bytes a pair and direction in float32.
    """

    def __init__(self, run) -> None:
        settings = run.settings
        self.settings = settings
        num_tables = 1 if settings.directions == "query" else 2
        dtype = getattr(torch, settings.dtype)
        shape = (num_tables, len(run.pairs.train))
        self.log_u = torch.full(shape, torch.nan, dtype=dtype, device=settings.device)
        self.gamma = settings.gamma
        self._pending: dict[int, tuple[Tensor, Tensor]] = {}
        self._snapshot: tuple[Tensor, Tensor] | None = None

    def gamma_at(self, step: int) -> float:
        """γ at this update: constant, or by a cosine from 1 down to `gamma` over the run."""
        settings = self.settings
        if settings.gamma_schedule == "constant":
            return settings.gamma
        share = 0.5 * (1 + math.cos(math.pi * step / settings.updates))
        return settings.gamma + (1 - settings.gamma) * share

    def begin_update(self, batches: list, step: int) -> list:
        self.gamma = self.gamma_at(step)
        ids = torch.cat([batch.pair_ids for batch in batches])
        self._snapshot = ids, self.log_u[:, ids].clone()
        return batches

    def bind(self, row_ids: Tensor, local: int, direction: int) -> Objective:
        def objective(scores: Tensor) -> tuple[Tensor, Tensor]:
            stored = self.log_u[direction, row_ids].to(scores.dtype)
            loss, grad_scores, new = sogclr_loss(scores, stored, self.gamma)
            self._pending[direction] = row_ids[:local], new[:local]
            return loss, grad_scores

        return objective

    def after_loss(self, share: float) -> None:
        for direction, (ids, new) in self._pending.items():
            self.log_u[direction, ids] = new.to(self.log_u.dtype)
        self._pending.clear()

    def abandon_update(self) -> None:
        if self._snapshot is not None:
            ids, stored = self._snapshot
            self.log_u[:, ids] = stored
        self._snapshot = None
        self._pending.clear()

    def end_update(self, step: int) -> None:
        self._snapshot = None

    def state_dict(self) -> dict[str, Tensor]:
        return {"log_u": self.log_u}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["log_u"].shape != self.log_u.shape:
            shapes = tuple(state["log_u"].shape), tuple(self.log_u.shape)
            raise ValueError(f"the table of normalisers is {shapes[0]}, this run's {shapes[1]}.")
        self.log_u.copy_(state["log_u"])


class Sigmoid(StatefulObjective):
    """`sigmoid_loss` with its learned scale t and bias b, which the run's optimiser moves.

    Every process sees the whole matrix, so their gradients are whole on each and need no sum.
    """

    def __init__(self, run) -> None:
        settings = run.settings
        start = torch.tensor([0.0, settings.sigmoid_bias], dtype=getattr(torch, settings.dtype))
        self.scale_and_bias = nn.Parameter(start.to(settings.device))  # (log t, b)
        self.gradient = torch.zeros_like(self.scale_and_bias)
        self.scale_and_bias.grad = self.gradient  # the run's zero_grad keeps it
        self._pending: dict[int, Tensor] = {}
        self._num_directions = 1 if settings.directions != "both" else 2

    def parameters(self) -> list[nn.Parameter]:
        return [self.scale_and_bias]

    def bind(self, row_ids: Tensor, local: int, direction: int) -> Objective:
        log_scale, bias = self.scale_and_bias.tolist()

        def objective(scores: Tensor) -> tuple[Tensor, Tensor]:
            loss, grad_scores, grad_parameters = sigmoid_loss(scores, log_scale, bias)
            self._pending[direction] = grad_parameters
            return loss, grad_scores

        return objective

    def after_loss(self, share: float) -> None:
        for grad_parameters in self._pending.values():
            grad_parameters = grad_parameters.to(self.gradient) * (share / self._num_directions)
            self.gradient.add_(grad_parameters)
        self._pending.clear()

    def abandon_update(self) -> None:
        self._pending.clear()
        self.gradient.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {"scale_and_bias": self.scale_and_bias.detach()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            self.scale_and_bias.copy_(state["scale_and_bias"])


def attach_objective(run) -> None:
    """The objective of a run, where it keeps something between micro-batches."""
    kinds = {"sogclr": SogCLR, "sigmoid": Sigmoid}
    if run.settings.objective in kinds:
        run.learner.extensions.append(kinds[run.settings.objective](run))


def bound_objectives(learner, layout) -> tuple[Objective, Objective]:
    """The objective of this learner's settings for a matrix: of its query, of its passage rows."""
    settings, extension = learner.settings, learner.extension("objective")
    guide = learner.extension("guide")
    objectives = []
    for direction in (0, 1):
        if isinstance(extension, StatefulObjective):
            objective = extension.bind(layout.row_ids, layout.local, direction)
        else:
            objective = STATELESS[settings.objective]
        if settings.mask_margin is not None and guide is None:
            objective = with_margin(objective, settings.mask_margin)
        objectives.append(objective)
    return objectives[0], objectives[1]

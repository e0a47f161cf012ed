"""Objectives and directions: loops written from the formulas, autograd, finite differences, identities."""

import math

import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.core.directions import contrast
from contaccum_lite.core.loss import info_nce_with_gradients, softmax_loss
from contaccum_lite.core.masks import above_margin, with_margin
from contaccum_lite.core.objectives import decoupled_loss, sigmoid_loss, sogclr_loss

TAU = 0.7
CASES = ["plain", "dual bank", "passage bank", "hard", "all of it", "one pair"]


def vectors(case, dim=4):
    """Queries, passages, their banks, hard negatives, and a mask, by a case's name."""
    rng = torch.Generator().manual_seed(CASES.index(case))
    draw = lambda n: torch.randn(n, dim, dtype=torch.float64, generator=rng)
    local = 1 if case == "one pair" else 5
    banked = 6 if case in ("dual bank", "passage bank", "all of it", "one pair") else 0
    hard = case in ("hard", "all of it")
    arguments = {
        "queries": draw(local),
        "passages": draw(local),
        "query_bank": draw(banked) if banked and case != "passage bank" else None,
        "passage_bank": draw(banked) if banked else None,
        "hard_negatives": draw(3) if hard else None,
        "bank_hard_negatives": draw(2) if hard and banked else None,
    }
    rows = local + (banked if case != "passage bank" else 0)
    columns = local + banked + (3 if hard else 0) + (2 if hard and banked else 0)
    mask = torch.rand(rows, columns, generator=rng) < 0.2
    pairs = mask[:, :rows]
    pairs |= pairs.T.clone()  # two pairs are duplicates of each other
    mask.fill_diagonal_(False)
    return arguments, mask


def scores_of(case):
    arguments, mask = vectors(case)
    return cl.similarity_matrix(**arguments, temperature=TAU).masked_fill(mask, -torch.inf)


# --- the formulas, by loops -----------------------------------------------------------------------


def loop(objective, scores, log_u=None, gamma=1.0, log_scale=0.0, bias=0.0):
    """The mean loss of the rows of a matrix, in plain Python."""
    total, rows = 0.0, scores.tolist()
    for i, row in enumerate(rows):
        others = [s for j, s in enumerate(row) if j != i and s > -math.inf]
        if objective == "info_nce":
            total += math.log(sum(map(math.exp, [row[i], *others]))) - row[i]
        elif objective == "decoupled":
            total += math.log(sum(map(math.exp, others))) - row[i]
        elif objective == "sogclr":
            mean = sum(math.exp(s - row[i]) for s in others) / len(others)
            old = mean if math.isnan(log_u[i]) else math.exp(log_u[i])
            total += math.log(len(others) * ((1 - gamma) * old + gamma * mean))
        else:
            scale = math.exp(log_scale)
            total += math.log1p(math.exp(-(scale * row[i] + bias)))
            total += sum(math.log1p(math.exp(scale * s + bias)) for s in others)
    return total / len(rows)


LOG_U = torch.tensor([0.3, torch.nan, -0.5, 1.2, torch.nan] * 3, dtype=torch.float64)
FUNCTIONS = {
    "info_nce": (softmax_loss, {}),
    "decoupled": (decoupled_loss, {}),
    "sogclr": (lambda s: sogclr_loss(s, LOG_U[: len(s)], 0.3)[:2], dict(log_u=LOG_U, gamma=0.3)),
    "sigmoid": (lambda s: sigmoid_loss(s, 0.2, -1.5)[:2], dict(log_scale=0.2, bias=-1.5)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("objective", FUNCTIONS)
def test_the_loss_is_the_formulas(objective, case):
    function, numbers = FUNCTIONS[objective]
    scores = scores_of(case)
    assert abs(function(scores.clone())[0].item() - loop(objective, scores, **numbers)) < 1e-10


def differentiable(objective, scores):
    """The loss whose gradient the objective gives; SogCLR's has u as a constant."""
    n, is_in = len(scores), scores > -torch.inf
    negative = is_in & ~torch.eye(*scores.shape, dtype=torch.bool)
    positives = scores.diagonal()
    if objective == "info_nce":
        return (scores.logsumexp(1) - positives).mean()
    if objective == "decoupled":
        return (scores.masked_fill(~negative, -torch.inf).logsumexp(1) - positives).mean()
    if objective == "sogclr":
        ratios = (scores - positives[:, None]).masked_fill(~negative, -torch.inf).exp()
        mean = ratios.sum(1) / negative.sum(1)
        old = LOG_U[:n].exp()
        u = torch.where(old.isnan(), mean, 0.7 * old + 0.3 * mean).detach()
        return (mean / u).mean()
    z = torch.where(torch.eye(*scores.shape, dtype=torch.bool), 1.0, -1.0)
    logits = z * (math.exp(0.2) * scores.masked_fill(~is_in, 0.0) - 1.5)
    return -torch.nn.functional.logsigmoid(logits)[is_in].sum() / n


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("objective", FUNCTIONS)
def test_the_gradient_is_autograds(objective, case):
    scores = scores_of(case).requires_grad_()
    (expected,) = torch.autograd.grad(differentiable(objective, scores), scores)
    _, grad_scores = FUNCTIONS[objective][0](scores.detach().clone())
    assert (grad_scores - expected.nan_to_num(0.0)).abs().max() < 1e-10


@pytest.mark.parametrize("objective", ["info_nce", "decoupled", "sigmoid"])
def test_the_gradient_by_finite_differences(objective):
    scores, step = scores_of("all of it"), 1e-5
    function = FUNCTIONS[objective][0]
    _, grad_scores = function(scores.clone())
    for i, j in [(0, 0), (1, 0), (2, 7), (10, 10), (4, 12)]:
        if scores[i, j] == -torch.inf:
            continue
        losses = []
        for sign in (1, -1):
            moved = scores.clone()
            moved[i, j] += sign * step
            losses.append(function(moved)[0].item())
        assert abs((losses[0] - losses[1]) / (2 * step) - grad_scores[i, j].item()) < 1e-9


@pytest.mark.parametrize("case", CASES)
def test_sogclr_that_remembers_nothing_is_the_decoupled_loss(case):
    scores = scores_of(case)
    loss, grad_scores, _ = sogclr_loss(scores, LOG_U[: len(scores)], 1.0)
    expected, expected_grad = decoupled_loss(scores)
    assert abs(loss - expected) < 1e-12 and (grad_scores - expected_grad).abs().max() < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_rows_of_sogclrs_gradient_sum_to_zero_whatever_u_is(case):
    scores = scores_of(case)
    for gamma in (0.01, 0.5, 1.0):
        _, grad_scores, _ = sogclr_loss(scores, LOG_U[: len(scores)] + 3, gamma)
        assert grad_scores.sum(1).abs().max() < 1e-12


def test_a_row_without_a_negative_adds_nothing():
    scores = torch.tensor([[1.0, -torch.inf], [0.5, 2.0]], dtype=torch.float64)
    loss, grad_scores = decoupled_loss(scores)
    assert loss.item() == pytest.approx((0.5 - 2.0) / 2)
    assert grad_scores.tolist() == [[0.0, 0.0], [0.5, -0.5]]
    log_u = torch.tensor([0.1, torch.nan], dtype=torch.float64)
    loss, grad_scores, new = sogclr_loss(scores, log_u, 0.5)
    assert loss.item() == pytest.approx((0.5 - 2.0) / 2)
    assert grad_scores.tolist() == [[0.0, 0.0], [0.5, -0.5]]
    assert new.tolist() == pytest.approx([0.1, 0.5 - 2.0])


def test_sigmoids_own_gradient():
    scores = scores_of("all of it")
    own = sigmoid_loss(scores, 0.2, -1.5)[2]
    numbers = torch.tensor([0.2, -1.5], dtype=torch.float64, requires_grad=True)
    is_in = scores > -torch.inf
    z = torch.where(torch.eye(*scores.shape, dtype=torch.bool), 1.0, -1.0)
    logits = z * (numbers[0].exp() * scores.masked_fill(~is_in, 0.0) + numbers[1])
    loss = -torch.nn.functional.logsigmoid(logits)[is_in].sum() / len(scores)
    assert (own - torch.autograd.grad(loss, numbers)[0]).abs().max() < 1e-10


def test_a_passage_bank_changes_no_local_passages_gradient_of_the_sigmoid():
    arguments, _ = vectors("passage bank")
    alone = {**arguments, "passage_bank": None}
    change = {}
    for name in ("info_nce", "sigmoid"):
        function = FUNCTIONS[name][0]
        results = [
            info_nce_with_gradients(**given, temperature=TAU, objective=function)
            for given in (arguments, alone)
        ]
        difference = results[0].grad_passages - results[1].grad_passages
        change[name] = (difference.norm() / results[1].grad_passages.norm()).item()
    assert change["sigmoid"] < 1e-14 and change["info_nce"] > 0.1


# --- directions -----------------------------------------------------------------------------------


def wide_scores(rows, columns, mask, directions):
    """The matrices of scores that a direction's losses are made of, differentiable, by loops."""
    num_pairs, infinity = len(rows), torch.full((), -torch.inf, dtype=torch.float64)

    def row(of, i, others, skip_own, use=lambda i, j: mask[i, j]):
        scores = []
        for j, other in enumerate(others):
            out = use(i, j) or (skip_own and i == j)
            scores.append(infinity if out else of[i] @ other / TAU)
        return scores

    passages = columns[:num_pairs]
    query_passage = [row(rows, i, columns, False) for i in range(num_pairs)]
    if directions == "both":
        turned = [row(passages, i, rows, False, lambda i, j: mask[j, i]) for i in range(num_pairs)]
        return [torch.stack([torch.stack(r) for r in m]) for m in (query_passage, turned)]
    wide = []
    for i in range(num_pairs):
        scores = query_passage[i] + row(rows, i, rows, True)
        scores += row(passages, i, rows, True) + row(passages, i, columns, True)
        wide.append(torch.stack(scores))
    return [torch.stack(wide)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("directions", ["both", "all"])
@pytest.mark.parametrize("objective", FUNCTIONS)
def test_directions_against_loops_and_autograd(objective, directions, case):
    arguments, mask = vectors(case)
    function, numbers = FUNCTIONS[objective]
    local = [n for n in ("queries", "passages", "hard_negatives") if arguments[n] is not None]
    for name in local:
        arguments[name].requires_grad_()
    rows = [v for v in (arguments["queries"], arguments["query_bank"]) if v is not None]
    names = ("passages", "passage_bank", "hard_negatives", "bank_hard_negatives")
    columns = [arguments[n] for n in names if arguments[n] is not None]
    matrices = wide_scores(torch.cat(rows), torch.cat(columns), mask, directions)
    if case == "one pair" and objective != "info_nce" and directions == "both":
        pass  # each row has a negative: the banks hold six
    loss = sum(loop(objective, m.detach(), **numbers) for m in matrices) / len(matrices)
    surrogate = sum(differentiable(objective, m) for m in matrices) / len(matrices)
    expected = torch.autograd.grad(surrogate, [arguments[n] for n in local])

    result = contrast(
        **{n: v if v is None else v.detach() for n, v in arguments.items()},
        temperature=TAU,
        mask=mask,
        directions=directions,
        objectives=(function, function),
    )
    assert abs(result.loss.item() - loss) < 1e-10
    gradients = [g for g in result.gradients if g is not None]
    assert len(gradients) == len(expected)
    for gradient, wanted in zip(gradients, expected):
        assert (gradient - wanted).abs().max() < 1e-10
    assert result.scores.shape == result.grad_scores.shape == mask.shape


def test_both_directions_have_one_gradient_of_the_scores():
    """Of "both", the gradient is grad_scores @ columns and grad_scores.T @ rows, as in equation 8."""
    arguments, mask = vectors("dual bank")
    result = contrast(**arguments, temperature=TAU, mask=mask, directions="both")
    columns = torch.cat([arguments["passages"], arguments["passage_bank"]])
    rows = torch.cat([arguments["queries"], arguments["query_bank"]])
    assert torch.allclose(result.grad_queries, (result.grad_scores @ columns / TAU)[:5], atol=1e-14)
    assert torch.allclose(result.grad_passages, (result.grad_scores.T @ rows / TAU)[:5], atol=1e-14)


def test_the_sigmoid_is_the_same_in_both_directions():
    arguments, mask = vectors("dual bank")
    function = FUNCTIONS["sigmoid"][0]
    results = [
        contrast(
            **arguments,
            temperature=TAU,
            mask=mask,
            directions=directions,
            objectives=(function, function),
        )
        for directions in ("query", "both")
    ]
    assert torch.allclose(results[0].grad_passages, results[1].grad_passages, atol=1e-14)


# --- the margin -----------------------------------------------------------------------------------


def test_the_margin_leaves_out_what_is_above_the_positive():
    scores = torch.tensor([[1.0, 1.5, 0.2], [3.0, 0.0, 0.4]], dtype=torch.float64)
    assert above_margin(scores, 0.4).tolist() == [[False, True, False], [True, False, False]]
    assert above_margin(scores, 0.5).tolist() == [[False, False, False], [True, False, False]]
    assert above_margin(scores, -1.0).tolist() == [[False, True, True], [True, False, True]][:1] + [
        [True, False, True]
    ]


@pytest.mark.parametrize("objective", FUNCTIONS)
def test_an_objective_with_a_margin_is_the_objective_without_these_columns(objective):
    function, scores = FUNCTIONS[objective][0], scores_of("all of it")
    masked = scores.masked_fill(above_margin(scores, 0.5), -torch.inf)
    assert masked.isinf().sum() > scores.isinf().sum()
    loss, grad_scores = with_margin(function, 0.5)(scores.clone())
    expected, expected_grad = function(masked)
    assert loss == expected and torch.equal(grad_scores, expected_grad)


# --- against sentence-transformers ----------------------------------------------------------------

PEER = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


def peer_loss(q, p, directions, partition_mode="joint"):
    losses = pytest.importorskip("sentence_transformers.losses")
    loss = losses.MultipleNegativesRankingLoss(
        None,
        scale=1 / TAU,
        similarity_fct=lambda a, b: a @ b.T,
        directions=directions,
        partition_mode=partition_mode,
    )
    return loss.compute_loss_from_embeddings([q, p], None)


@pytest.mark.parametrize("directions", ["query", "both"])
def test_the_same_value_and_gradient_as_sentence_transformers(directions):
    arguments, _ = vectors("plain")
    q, p = (arguments[n].requires_grad_() for n in ("queries", "passages"))
    named = {"query": PEER[:1], "both": (PEER[0], PEER[2])}[directions]
    expected = peer_loss(q, p, named, "joint" if directions == "query" else "per_direction")
    gradients = torch.autograd.grad(expected, (q, p))
    ours = contrast(q.detach(), p.detach(), temperature=TAU, directions=directions)
    assert abs(ours.loss - expected.detach()) < 1e-12
    for one, other in zip(ours.gradients, gradients):
        assert (one - other).abs().max() < 1e-12


def test_sentence_transformers_counts_the_positive_twice_in_all_directions():
    """Its passage-to-query block has the positive again; leave it out, and the values are equal."""
    arguments, _ = vectors("plain")
    q, p = arguments["queries"], arguments["passages"]
    seen = []

    def objective(scores):
        seen.append(scores.clone())
        return softmax_loss(scores)

    ours = contrast(q, p, temperature=TAU, directions="all", objectives=(objective, objective))
    rows = seen[0].logsumexp(1) - seen[0].diagonal()
    assert abs(ours.loss - rows.mean()) < 1e-12
    twice = torch.logaddexp(rows, torch.zeros_like(rows)).mean()
    assert abs(twice - peer_loss(q, p, PEER)) < 1e-12

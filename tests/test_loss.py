"""The loss and its gradients against loops, autograd and finite differences, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from oracle import info_nce_loop

import contaccum_lite as cl
from contaccum_lite.core.loss import duplicate_mask, info_nce_with_gradients


def vectors(generator, *sizes, d=5):
    return [
        None if n is None else torch.randn(n, d, dtype=torch.float64, generator=generator)
        for n in sizes
    ]


def case(seed, local, past_q, past_p, hard, past_hard):
    g = torch.Generator().manual_seed(seed)
    return vectors(g, local, local, past_q, past_p, hard, past_hard)


SHAPES = [  # local, query bank, passage bank, hard, banked hard
    (4, None, None, None, None),
    (1, None, None, None, None),
    (4, 6, 6, None, None),
    (3, None, 7, None, None),
    (4, None, None, 4, None),
    (4, 6, 6, 8, 12),
    (2, None, 5, 2, 5),
    (4, 0, 0, None, None),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 8.0])
def test_loss_equals_the_loop(shape, temperature):
    q, p, mq, mp, h, mh = case(1, *shape)
    ours = cl.info_nce(q, p, mq, mp, h, temperature, bank_hard_negatives=mh)
    loop = info_nce_loop(
        *[() if v is None else v for v in (q, p, mq, mp, h, mh)], temperature=temperature
    )
    assert abs(ours.item() - loop) < 1e-12
    assert (
        abs(
            info_nce_with_gradients(
                q, p, mq, mp, h, temperature, bank_hard_negatives=mh
            ).loss.item()
            - loop
        )
        < 1e-12
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_equations_8_and_9_equal_autograd(shape):
    q, p, mq, mp, h, mh = case(2, *shape)
    local = [v.requires_grad_() for v in (q, p, h) if v is not None]
    by_autograd = torch.autograd.grad(
        cl.info_nce(q, p, mq, mp, h, 0.7, bank_hard_negatives=mh), local
    )
    by_hand = cl.info_nce_gradients(q, p, mq, mp, h, 0.7, bank_hard_negatives=mh)
    assert len(by_hand) == len(by_autograd)
    for hand, auto in zip(by_hand, by_autograd):
        assert (hand - auto).abs().max() < 1e-12


def test_gradients_equal_finite_differences():
    q, p, mq, mp, h, mh = case(3, 3, 4, 4, 3, 4)
    by_hand = cl.info_nce_gradients(q, p, mq, mp, h, 0.9, bank_hard_negatives=mh)
    for part, gradient in zip((q, p, h), by_hand):
        for index in [(0, 0), (1, 3), (2, 4)]:
            values = []
            for step in (1e-6, -1e-6):
                part[index] += step
                values.append(cl.info_nce(q, p, mq, mp, h, 0.9, bank_hard_negatives=mh).item())
                part[index] -= step
            assert abs((values[0] - values[1]) / 2e-6 - gradient[index].item()) < 1e-8


def test_the_mean_runs_over_memory_rows_too():
    """A loss over local rows alone would fail here: the paper's 1 / (N_local + N_memory)."""
    q, p, mq, mp, *_ = case(4, 2, 6, 6, None, None)
    scores = cl.similarity_matrix(q, p, mq, mp)
    rows = -torch.log_softmax(scores, 1).diagonal()
    assert len(rows) == 8
    assert torch.allclose(cl.info_nce(q, p, mq, mp), rows.mean(), atol=1e-12)
    assert not torch.allclose(cl.info_nce(q, p, mq, mp), rows[:2].mean(), atol=1e-3)


def test_mask_leaves_entries_out():
    q, p, mq, mp, h, mh = case(5, 3, 4, 4, 2, None)
    mask = torch.zeros(7, 9, dtype=torch.bool)
    left_out = {(0, 4), (2, 8), (6, 1)}
    for i, j in left_out:
        mask[i, j] = True
    loop = info_nce_loop(q, p, mq, mp, h, left_out=left_out)
    assert abs(cl.info_nce(q, p, mq, mp, h, mask=mask).item() - loop) < 1e-12
    local = [v.requires_grad_() for v in (q, p, h)]
    auto = torch.autograd.grad(cl.info_nce(q, p, mq, mp, h, mask=mask), local)
    for a, b in zip(auto, cl.info_nce_gradients(q, p, mq, mp, h, mask=mask)):
        assert (a - b).abs().max() < 1e-12


def test_a_bank_object_stands_for_its_vectors():
    q, p, mq, mp, *_ = case(6, 3, 5, 5, None, None)
    banks = []
    for past in (mq, mp):
        bank = cl.MemoryBank(8, 5, dtype=torch.float64)
        bank.write(torch.arange(5), past, step=0)
        banks.append(bank)
    assert torch.equal(cl.info_nce(q, p, *banks), cl.info_nce(q, p, mq, mp))


def test_similarity_matrix_layout():
    q, p, mq, mp, h, mh = case(7, 2, 3, 3, 2, 3)
    scores = cl.similarity_matrix(q, p, mq, mp, h, bank_hard_negatives=mh, temperature=2.0)
    assert scores.shape == (5, 10)
    assert torch.allclose(scores[3, 6], mq[1] @ h[1] / 2)  # a memory row, a local hard column
    assert torch.allclose(
        scores[0, 9], q[0] @ mh[2] / 2
    )  # a local row, the last banked hard negative


def test_loss_of_knowing_nothing_is_log_n():
    zeros = torch.zeros(6, 4, dtype=torch.float64)
    assert math.isclose(cl.info_nce(zeros, zeros).item(), math.log(6), rel_tol=1e-12)


@given(
    st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 6), st.booleans(), st.floats(0.05, 20)
)
@settings(max_examples=60, deadline=None)
def test_any_shape_equals_the_loop(seed, local, past, dual, temperature):
    q, p, mq, mp, h, _ = case(seed, local, past if dual else None, past, None, None)
    loop = info_nce_loop(q, p, mq if dual else (), mp, temperature=temperature)
    assert abs(
        info_nce_with_gradients(q, p, mq, mp, None, temperature).loss.item() - loop
    ) < 1e-10 * max(1, abs(loop))


def test_extreme_scores_stay_finite():
    q = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    found = info_nce_with_gradients(q, q, temperature=1e-3)
    assert torch.isfinite(found.loss) and torch.isfinite(found.grad_queries).all()


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(passages=torch.zeros(3, 5)), "one passage per query"),
        (dict(passages=torch.zeros(4, 6)), "the length of a query"),
        (dict(query_bank=torch.zeros(2, 5)), "the same number"),
        (dict(query_bank=torch.zeros(2, 5), passage_bank=torch.zeros(3, 5)), "the same number"),
        (dict(queries=torch.zeros(0, 5), passages=torch.zeros(0, 5)), "at least one"),
    ],
)
def test_shapes_that_do_not_fit(change, words):
    with pytest.raises(ValueError, match=words):
        cl.info_nce(**{**dict(queries=torch.zeros(4, 5), passages=torch.zeros(4, 5)), **change})


def test_duplicate_mask_against_a_loop():
    g, found = torch.Generator().manual_seed(8), []
    for _ in range(50):
        rows = int(torch.randint(1, 6, (1,), generator=g))
        pairs, hard = (
            rows + int(torch.randint(0, 4, (1,), generator=g)),
            int(torch.randint(0, 4, (1,), generator=g)),
        )
        queries = torch.cat([torch.randint(0, 6, (pairs,), generator=g), torch.full((hard,), -1)])
        passages = torch.randint(0, 8, (pairs + hard,), generator=g)
        expected = torch.tensor(
            [
                [
                    i != j and bool(queries[i] == queries[j] or passages[i] == passages[j])
                    for j in range(pairs + hard)
                ]
                for i in range(rows)
            ]
        )
        mask = duplicate_mask(queries, passages, rows)
        assert torch.equal(torch.zeros_like(expected) if mask is None else mask, expected)
        found.append(bool(expected.any()))
    assert set(found) == {True, False}


# --- what does not fit ---------------------------------------------------------------------------

VECTORS = dict(queries=torch.zeros(4, 5), passages=torch.zeros(4, 5))
FUNCTIONS = [cl.info_nce, cl.info_nce_gradients, info_nce_with_gradients, cl.similarity_matrix]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "temperature",
    [0, 0.0, -1, math.nan, math.inf, torch.tensor(0.0), torch.tensor(math.nan), "1", None],
)
def test_a_temperature_that_is_not_above_zero_is_refused(function, temperature):
    with pytest.raises(ValueError, match="temperature is .*: it must be a number above 0"):
        function(**VECTORS, temperature=temperature)


@pytest.mark.parametrize("function", FUNCTIONS[:3])
@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(4, dtype=torch.bool),
        torch.zeros(4, 1, dtype=torch.bool),
        torch.zeros(1, 4, 4, dtype=torch.bool),
        torch.zeros(4, 5, dtype=torch.bool),
        torch.zeros(4, 4),
        [[False] * 4] * 4,
    ],
)
def test_a_mask_that_is_not_of_the_shape_of_the_scores_is_refused(function, mask):
    with pytest.raises(ValueError, match=r"mask is .*: expected \(4, 4\) of torch.bool"):
        function(**VECTORS, mask=mask)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "change, words",
    [
        (dict(queries=torch.zeros(5)), r"queries is \(5,\): expected a tensor"),
        (dict(queries=torch.tensor(1.0)), r"queries is \(\)"),
        (dict(queries=[[0.0] * 5] * 4), "queries is a list"),
        (dict(passages=[[0.0] * 5] * 4), "passages is a list"),
        (dict(passage_bank=7), "passage_bank is a int"),
        (dict(hard_negatives=torch.zeros(5)), r"hard_negatives is \(5,\)"),
    ],
)
def test_what_are_not_vectors_is_named(function, change, words):
    with pytest.raises(ValueError, match=words):
        function(**VECTORS | change)

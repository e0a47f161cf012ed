"""Correctors against closed forms; the table bank against a dictionary.

Small theorems about staleness.
"""

import math

import pytest
import torch
from hypothesis import given, settings as given_settings, strategies as st

import contaccum_lite as cl
from contaccum_lite.staleness.passage_table import PassageTable as TableBank
from contaccum_lite.staleness.correctors import (
    CORRECTORS,
    Kernel,
    MeanShift,
    Moments,
    Procrustes,
    ResidualMLP,
    Ridge,
    make_corrector,
)
from contaccum_lite.staleness.drift import softmax_gap
from contaccum_lite.core.presets import CORRECTOR_NAMES

AGED = [name for name, kind in CORRECTORS.items() if kind.supports_age]


@pytest.fixture
def lesson():
    """(stale, age, target): 40 pairs in 6 dimensions, float64."""
    draw = torch.Generator().manual_seed(3)
    stale = torch.randn(40, 6, generator=draw, dtype=torch.float64)
    age = torch.randint(1, 9, (40,), generator=draw)
    target = (
        stale @ torch.randn(6, 6, generator=draw, dtype=torch.float64)
        + 0.3 * torch.randn(40, 6, generator=draw, dtype=torch.float64)
        + 2
    )
    return stale, age, target


def test_the_names_are_those_of_the_settings():
    assert tuple(CORRECTORS) == CORRECTOR_NAMES
    assert all(cl.Settings(corrector=name, probes=4).corrector == name for name in CORRECTOR_NAMES)


@pytest.mark.parametrize("name", CORRECTORS)
@pytest.mark.parametrize("by_age", [False, True])
def test_each_starts_as_the_identity_and_is_one_again_after_reset(lesson, name, by_age):
    stale, age, target = lesson
    found = make_corrector(name, by_age)
    assert torch.equal(found(stale, age), stale)
    found.fit(stale, age, target)
    assert name == "identity" or not torch.equal(found(stale, age), stale)
    found.reset()
    assert torch.equal(found(stale, age), stale)


@pytest.mark.parametrize("name", AGED)
def test_with_ages_a_new_vector_stays_as_it_is(lesson, name):
    stale, age, target = lesson
    found = make_corrector(name, by_age=True)
    found.fit(stale, age, target)
    assert torch.equal(found(stale, torch.zeros_like(age)), stale)
    once, twice = found(stale, age) - stale, found(stale, 2 * age) - stale
    assert torch.allclose(2 * once, twice, atol=1e-12)  # the drift is linear in the age


def test_those_that_do_not_look_at_ages_say_so():
    for name in set(CORRECTORS) - set(AGED):
        with pytest.raises(ValueError, match="does not look at ages.*mean_shift"):
            CORRECTORS[name](by_age=True)
        assert not make_corrector(name, by_age=True).by_age


def test_mean_shift_is_the_mean_and_with_ages_the_least_squares_speed(lesson):
    stale, age, target = lesson
    found = MeanShift()
    found.fit(stale, age, target)
    assert torch.allclose(found(stale, age), stale + (target - stale).mean(0), atol=1e-12)
    found = MeanShift(by_age=True)
    found.fit(stale, age, target)
    speed = torch.linalg.lstsq(age.double().unsqueeze(1), target - stale).solution  # per update
    assert torch.allclose(found(stale, age), stale + age.unsqueeze(1) * speed, atol=1e-12)


def test_moments_gives_the_targets_mean_and_spread(lesson):
    stale, age, target = lesson
    found = Moments()
    found.fit(stale, age, target)
    moved = found(stale, age)
    assert torch.allclose(moved.mean(0), target.mean(0), atol=1e-12)
    assert torch.allclose(moved.std(0), target.std(0), atol=1e-12)


def test_procrustes_finds_a_turn_and_beats_all_others(lesson):
    stale, age, target = lesson
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    found = Procrustes()
    found.fit(stale, age, stale @ turn + 5)
    assert torch.allclose(found(stale, age), stale @ turn + 5, atol=1e-10)
    found.fit(stale, age, target)
    matrix = found.rotation
    assert torch.allclose(matrix @ matrix.T, torch.eye(6, dtype=torch.float64), atol=1e-12)
    error = lambda m: float((((stale - stale.mean(0)) @ m + target.mean(0) - target) ** 2).sum())
    assert all(
        error(torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q) > error(matrix)
        for _ in range(200)
    )


@pytest.mark.parametrize("by_age", [False, True])
def test_ridge_is_least_squares_with_a_penalty(lesson, by_age):
    """Against the same problem as one `lstsq`.

    Its rows are those of the lesson and, below them, the roots of the penalty.
    """
    stale, age, target = lesson
    found = Ridge(by_age, penalty=0.2)
    found.fit(stale, age, target)
    scale = (
        age / age.double().mean() if by_age else torch.ones(40, dtype=torch.float64)
    ).unsqueeze(1)
    x = torch.cat([scale * (stale - stale.mean(0)), scale], 1)
    held = 0.2 * (x[:, :6] ** 2).sum() / 6
    below = torch.cat(
        [torch.eye(6, dtype=torch.float64) * held.sqrt(), torch.zeros(6, 1, dtype=torch.float64)], 1
    )
    solution = torch.linalg.lstsq(
        torch.cat([x, below]), torch.cat([target - stale, torch.zeros(6, 6, dtype=torch.float64)])
    ).solution
    assert torch.allclose(
        found(stale, age), stale + x @ solution, atol=1e-6
    )  # its shift has a penalty of 1e-9, this one has none
    far = Ridge(by_age, penalty=1e12)
    far.fit(stale, age, target)
    shift = MeanShift(by_age)
    shift.fit(stale, age, target)
    assert torch.allclose(far(stale, age), shift(stale, age), atol=1e-6)


@pytest.mark.parametrize("by_age", [False, True])
def test_kernel_is_the_weighted_drift_by_a_loop(lesson, by_age):
    stale, age, target = (part[:12] for part in lesson)
    found = Kernel(by_age)
    found.fit(stale, age, target)
    nearest = sorted(
        min(float((a - b).norm()) for j, b in enumerate(stale) if j != i)
        for i, a in enumerate(stale)
    )
    width = 0.5 * nearest[(len(nearest) - 1) // 2]
    scale = [float(a) / float(age.double().mean()) if by_age else 1.0 for a in age]
    for i, c in enumerate(stale):
        parts = [math.exp(-0.5 * float(((c - other) ** 2).sum()) / width**2) for other in stale]
        drift = sum(w * (t - o) / s for w, t, o, s in zip(parts, target, stale, scale)) / sum(parts)
        assert torch.allclose(found(stale, age)[i], c + scale[i] * drift, atol=1e-9)


def test_the_network_begins_as_the_identity_exactly_and_learns_by_adamw(lesson):
    stale, age, target = lesson
    found = ResidualMLP(width=8, steps=0)
    found.fit(stale, age, target)
    # nested: W₂ = b₂ = 0
    assert found.network is not None
    assert torch.equal(found(stale, age), stale)
    theirs = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.Linear(8, 6)
    ).double()
    theirs.load_state_dict(found.network.state_dict())
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=3e-3, weight_decay=0.0)
    found.steps = 5
    for _ in range(2):
        found.fit(stale, age, target)
    for _ in range(10):
        optimizer.zero_grad()
        ((stale + theirs(stale) - target) ** 2).mean().backward()
        optimizer.step()
    assert torch.allclose(found(stale, age), stale + theirs(stale), atol=1e-12)
    assert not found(stale, age).requires_grad


def test_no_gradient_goes_into_what_it_learns_from(lesson):
    stale, age, target = lesson
    for name in CORRECTORS:
        ours, theirs = stale.clone().requires_grad_(), target.clone().requires_grad_()
        found = make_corrector(name)
        found.fit(ours, age, theirs)
        assert ours.grad is None
        assert theirs.grad is None
        assert not any(v.requires_grad for v in found.state_dict().values())


@pytest.mark.parametrize("name", CORRECTORS)
def test_its_state_goes_on_where_it_was(lesson, name):
    stale, age, target = lesson
    one, two = make_corrector(name, True), make_corrector(name, True, seed=9)
    one.fit(stale, age, target)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(stale, age), two(stale, age))
    for found in (one, two):
        found.fit(stale, age, target + 1)
    assert torch.equal(one(stale, age), two(stale, age))


def test_pairs_that_do_not_fit_together_are_named(lesson):
    stale, age, target = lesson
    for wrong in (
        (stale, age[:3], target),
        (stale, age, target[:, :2]),
        (stale[:0], age[:0], target[:0]),
    ):
        with pytest.raises(ValueError, match=r"expected \(n, d\), \(n,\) and \(n, d\)"):
            Ridge().fit(*wrong)


# --- the table ------------------------------------------------------------------------------------


@given_settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.lists(st.tuples(st.lists(st.integers(0, 8), max_size=7), st.booleans()), max_size=8),
)
def test_the_table_is_a_dictionary(size, writes):
    start = torch.randn(size, 3)
    table, known = TableBank(start, step=2), {i: (start[i], 2) for i in range(size)}
    for step, (ids, taken_back) in enumerate(writes, 3):
        ids = torch.tensor([i for i in ids if i < size], dtype=torch.int64)
        vectors, before = torch.randn(len(ids), 3), dict(known)
        mark = table.start_undo_log()
        table.write(ids, vectors, step)
        known.update({int(i): (v, step) for i, v in zip(ids, vectors)})
        if taken_back:
            table.undo(mark)
            known = before
    assert all(
        torch.equal(table.vectors[i], v) and int(table.written_at[i]) == born
        for i, (v, born) in known.items()
    )
    assert table.ages(20).tolist() == [20 - known[i][1] for i in range(size)]
    assert table.oldest(3).tolist() == sorted(range(size), key=lambda i: (known[i][1], i))[:3]


def test_the_table_names_what_does_not_fit():
    table = TableBank(torch.zeros(4, 2))
    for ids, vectors in (
        ([4], torch.zeros(1, 2)),
        ([-1], torch.zeros(1, 2)),
        ([0], torch.zeros(1, 3)),
        ([0, 1], torch.zeros(1, 2)),
    ):
        with pytest.raises(ValueError, match="ids below 4"):
            table.write(torch.tensor(ids), vectors, 1)


# --- what can be proven ---------------------------------------------------------------------------


@given_settings(max_examples=200, deadline=None)
@given(st.integers(2, 30), st.floats(0.01, 30), st.integers(0, 10**6))
def test_kl_is_at_most_half_the_square_of_the_errors_half_range(n, size, seed):
    draw = torch.Generator().manual_seed(seed)
    fresh, error = (
        3 * torch.randn(1, n, generator=draw, dtype=torch.float64),
        size * torch.rand(1, n, generator=draw, dtype=torch.float64),
    )
    gap = softmax_gap(fresh, fresh + error)
    p, q = fresh[0].softmax(0), (fresh + error)[0].softmax(0)
    assert abs(gap["kl"] - sum(float(a * math.log(a / b)) for a, b in zip(p, q))) < 1e-9
    assert abs(gap["tv"] - float((p - q).abs().sum() / 2)) < 1e-12
    assert -1e-12 <= gap["kl"] <= gap["bound"] + 1e-12
    assert abs(gap["bound"] - float(error.max() - error.min()) ** 2 / 8) < 1e-9


def test_the_bound_is_reached_in_the_limit():
    """Two targets of equal weight and an error of ± h: KL → h²/2 as h → 0."""
    ratios = [
        gap["kl"] / gap["bound"]
        for h in (1.0, 0.1, 0.01)
        for gap in [softmax_gap(torch.zeros(1, 2).double(), torch.tensor([[h, -h]]).double())]
    ]
    assert ratios[0] < ratios[1] < ratios[2] < 1 and ratios[2] > 0.9999


def test_a_shift_common_to_all_changes_nothing_until_fresh_and_stale_are_mixed():
    draw = torch.Generator().manual_seed(0)
    queries, passages, shift = (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        for shape in ((5, 4), (30, 4), (4,))
    )
    fresh = queries @ passages.T
    assert softmax_gap(fresh, queries @ (passages + shift).T)["kl"] < 1e-12
    mixed = torch.cat([passages[:10], passages[10:] + shift])
    assert softmax_gap(fresh, queries @ mixed.T)["kl"] > 0.1
    unit = lambda v: v / v.norm(dim=1, keepdim=True)
    assert (
        softmax_gap(queries @ unit(passages).T, queries @ unit(passages + shift).T)["kl"] > 1e-3
    )  # nor where vectors are made unit length


def test_no_corrector_goes_below_the_floor():
    """Of a stale vector that has lost a coordinate, the best prediction is E[g|c].

    Here known, and linear.
    """
    draw = torch.Generator().manual_seed(0)
    fresh = torch.randn(20_000, 3, generator=draw, dtype=torch.float64)
    stale = fresh.clone()
    stale[:, 2] = 0.6 * fresh[:, 2] + 0.8 * torch.randn(
        20_000, generator=draw, dtype=torch.float64
    )  # E[g₃|c₃] = 0.6 c₃, leaving 0.64
    age, (train, test) = torch.ones(20_000), (slice(0, 10_000), slice(10_000, None))
    errors = {}
    for name in CORRECTORS:
        found = make_corrector(name)
        if name == "mlp":
            found.steps = 300
        found.fit(
            stale[:500] if name == "kernel" else stale[train],
            age[:500] if name == "kernel" else age[train],
            fresh[:500] if name == "kernel" else fresh[train],
        )
        errors[name] = float(((found(stale[test], age[test]) - fresh[test]) ** 2).sum(1).mean())
    floor = float(((0.6 * stale[test][:, 2] - fresh[test][:, 2]) ** 2).mean())
    assert abs(floor - 0.64) < 0.02 and all(error > floor - 0.005 for error in errors.values())
    assert errors["ridge"] < floor + 0.02
    assert errors["mlp"] < floor + 0.02
    assert errors["identity"] > floor + 0.1


def test_overlap_and_mass_by_hand():
    fresh = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    gap = softmax_gap(fresh, torch.tensor([[3.0, 0.0, 2.0, 1.0]]), top=2)
    assert gap["overlap"] == 0.5 and abs(gap["mass"] - 0.6 / 0.7) < 1e-6
    with pytest.raises(ValueError, match="expected two of"):
        softmax_gap(fresh, fresh[0])


# --- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRECTORS)
def test_vectors_that_a_corrector_cannot_move_are_named(lesson, name):
    stale, age, target = lesson
    found = make_corrector(name)
    for wrong in (
        (stale[0], age[:1]),
        (stale, age[:3]),
        (stale, age[:, None]),
        (stale[None], age[None]),
    ):
        with pytest.raises(
            ValueError, match=r"stale vectors and .* ages: expected \(n, d\) and \(n,\)\."
        ):
            found(*wrong)
    found.fit(stale, age, target)
    if name != "identity":
        with pytest.raises(ValueError, match=r"expected \(n, 6\) and \(n,\), as it was fitted"):
            found(stale[:, :4], age)
        with pytest.raises(ValueError, match=r"expected \(n, 6\) and \(n,\), as it was fitted"):
            found.fit(stale[:, :4], age, target[:, :4])
    found.reset()
    found.fit(stale[:, :4], age, target[:, :4])
    assert found(stale[:, :4], age).shape == (40, 4)


def test_correctors_that_cannot_be_are_refused():
    for make, words in (
        (lambda: make_corrector("magic"), "corrector is 'magic': choose one of identity"),
        (lambda: Ridge(penalty=-1), "penalty is -1"),
        (lambda: Kernel(width=0), "width is 0"),
        (lambda: Kernel(width=math.nan), "width is nan"),
        (lambda: ResidualMLP(width=0), "width is 0"),
        (lambda: ResidualMLP(steps=-1), "steps -1"),
        (lambda: ResidualMLP(learning_rate=0), "learning_rate 0"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_a_table_is_of_vectors():
    with pytest.raises(ValueError, match=r"a table of \(3,\) vectors: expected \(N, d\)"):
        TableBank(torch.zeros(3))

"""How far banked vectors have moved: `bank_motion` against loops, and in runs whose answer is known."""

import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.staleness.drift import bank_motion

SMALL = dict(
    dim=8,
    local_batch=4,
    accumulation_steps=3,
    memory_size=20,
    updates=12,
    learning_rate=0.02,
    dtype="float64",
    start="random",
)


def moved_run(toy, updates=5, **fields):
    run = cl.Run(toy, **{**SMALL, **fields})
    for _ in range(updates):
        run.step()
    return run


def test_it_is_a_loop_over_the_banked_passages(toy):
    run = moved_run(toy)
    batch = run.sampler.micro_batch(run.passage_bank.ids.numpy())
    now = run.learner.encode_without_noise(batch).passages.tolist()
    stored = run.passage_bank.vectors.tolist()
    n, dim = len(now), len(now[0])
    norm = lambda vector: sum(x * x for x in vector) ** 0.5
    center = [sum(p[i] for p in now) / n for i in range(dim)]
    old_center = [sum(p[i] for p in stored) / n for i in range(dim)]
    minus = lambda a, b: [x - y for x, y in zip(a, b)]
    width = sum(norm(minus(p, center)) for p in now) / n
    motion = bank_motion(run)
    assert motion["collapse"] == pytest.approx(norm(center) / (sum(map(norm, now)) / n))
    assert motion["shift"] == pytest.approx(norm(minus(center, old_center)) / width)
    drift = sum(norm(minus(p, s)) ** 2 / norm(p) ** 2 for p, s in zip(now, stored)) / n
    assert motion["drift"] == pytest.approx(drift)


def test_frozen_is_the_softmax_on_the_banks_columns(toy):
    run = moved_run(toy)
    batch = run.sampler.batches(run.step_count)[0]
    vectors = run.learner.encode_without_noise(batch)
    columns = torch.cat([vectors.passages, run.passage_bank.vectors])
    rows = (vectors.queries @ columns.T / run.settings.temperature).exp()
    share = rows[:, len(vectors.passages) :].sum(1) / rows.sum(1)
    assert bank_motion(run)["frozen"] == pytest.approx(float(share.mean()))


def test_vectors_that_are_as_stored_have_not_moved(toy):
    run = moved_run(toy)
    batch = run.sampler.micro_batch(run.passage_bank.ids.numpy())
    run.passage_bank.vectors.copy_(run.learner.encode_without_noise(batch).passages)
    motion = bank_motion(run)
    assert motion["drift"] == pytest.approx(0, abs=1e-20)
    assert motion["shift"] == pytest.approx(0, abs=1e-10)


def test_a_common_move_of_the_stored_vectors_is_the_shift_alone(toy):
    run = moved_run(toy)
    batch = run.sampler.micro_batch(run.passage_bank.ids.numpy())
    now = run.learner.encode_without_noise(batch).passages
    move = torch.randn(8, dtype=torch.float64)
    run.passage_bank.vectors.copy_(now - move)
    width = (now - now.mean(0)).norm(dim=1).mean()
    assert bank_motion(run)["shift"] == pytest.approx(float(move.norm() / width))


def test_one_vector_for_all_passages_is_a_collapse_of_one(toy):
    run = moved_run(toy)
    with torch.no_grad():
        run.passage_tower.norm.weight.zero_()
        run.passage_tower.norm.bias.fill_(1.0)
    assert bank_motion(run)["collapse"] == pytest.approx(1.0)


def test_without_a_bank_only_the_collapse_is_measured(toy):
    assert set(bank_motion(moved_run(toy, method="dpr", local_batch=12, **{
        "accumulation_steps": 1, "memory_size": 0}))) == {"collapse"}  # fmt: skip


def test_it_changes_nothing_in_the_run(toy):
    looked_at, alone = moved_run(toy), moved_run(toy)
    encodes = looked_at.encodes
    bank_motion(looked_at)
    assert looked_at.encodes == encodes
    assert looked_at.step().loss == alone.step().loss

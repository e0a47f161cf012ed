"""Banks that are encoded again before each update: never stale, and nothing else changes."""

import pytest
import torch

import contaccum_lite as cl

SMALL = dict(
    dim=8, local_batch=4, accumulation_steps=3, memory_size=20, updates=12, learning_rate=0.02,
    dtype="float64", start="random",
)  # fmt: skip


def fresh_run(toy, **fields):
    return cl.Run(toy, refresh_banks=True, **{**SMALL, **fields})


def made_now(run):
    """The banked pairs as the towers make them now."""
    return run.learner.encode_without_noise(run.sampler.micro_batch(run.passage_bank.ids.numpy()))


def read(run, bank):
    return run.learner.read_bank(bank, run.step_count)


@pytest.mark.parametrize("method", ["contaccum", "pre_batch"])
def test_the_loss_reads_vectors_of_the_weights_of_now(toy, method):
    run = fresh_run(toy, method=method)
    for _ in range(6):
        run.step()
    for _ in run.micro_steps():
        now = made_now(run)
        torch.testing.assert_close(read(run, run.passage_bank), now.passages)
        if method == "contaccum":
            torch.testing.assert_close(read(run, run.query_bank), now.queries)
    assert not torch.allclose(run.passage_bank.vectors[:4], made_now(run).passages[:4])


def test_hard_negatives_in_the_bank_are_fresh_too(docs):
    run = cl.Run(docs, refresh_banks=True, hard_negatives=1, **SMALL)
    for _ in range(3):
        run.step()
    for _ in run.micro_steps():
        bank = run.learner.banks.hard_bank
        tokens = run.sampler.passages[bank.ids.numpy()]
        now = run.learner.encode_tokens(run.passage_tower, tokens)
        torch.testing.assert_close(read(run, bank), now)


def test_at_a_rate_of_zero_nothing_changes(toy):
    """Weights that do not move have no stale vectors."""
    stale, fresh = cl.Run(toy, **SMALL), fresh_run(toy)
    for run in (stale, fresh):
        run.change(learning_rate=1e-8)
    for _ in range(5):
        assert fresh.step().loss == pytest.approx(stale.step().loss, rel=1e-6)


def test_it_is_a_run_whose_bank_is_written_anew_by_hand(toy):
    fresh, by_hand = fresh_run(toy), cl.Run(toy, **SMALL)
    for _ in range(8):
        if len(by_hand.passage_bank):
            now = made_now(by_hand)
            by_hand.passage_bank.vectors.copy_(now.passages)
            by_hand.query_bank.vectors.copy_(now.queries)
        assert fresh.step().loss == pytest.approx(by_hand.step().loss, rel=1e-10)
    for one, other in zip(fresh.passage_tower.parameters(), by_hand.passage_tower.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_its_encodings_are_counted(toy):
    run = fresh_run(toy)
    run.step()
    assert run.encodes.get("refresh", 0) == 0  # nothing was in the bank
    run.step()
    assert run.encodes["refresh"] == 12
    run.step()
    assert run.encodes["refresh"] == 12 + 20


def test_an_update_that_is_left_is_made_again(toy):
    run, other = fresh_run(toy), fresh_run(toy)
    for _ in range(3):
        run.step(), other.step()
    steps = run.micro_steps()
    next(steps)
    steps.close()
    assert run.step().loss == other.step().loss


def test_it_resumes(toy, tmp_path):
    run = fresh_run(toy)
    for _ in range(3):
        run.step()
    run.save(tmp_path / "run")
    again = cl.Run.load(tmp_path / "run", toy)
    assert [run.step().loss for _ in range(3)] == [again.step().loss for _ in range(3)]


def test_the_whole_matrix_is_computed(toy):
    settings = cl.Settings(refresh_banks=True, memory_size=1024)
    assert settings.similarity == "full"
    run = fresh_run(toy, similarity="incremental")
    assert run.similarity == "full"
    assert run.step().loss > 0


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"method": "dpr"}, "there is no bank"),
        ({"memory_size": 0}, "there is no bank"),
        ({"method": "momentum"}, "momentum or a corrector"),
        ({"method": "contaccum_corrected"}, "momentum or a corrector"),
    ],
)
def test_where_there_is_nothing_to_refresh(fields, words):
    with pytest.raises(ValueError, match=words):
        cl.Settings(refresh_banks=True, **fields)

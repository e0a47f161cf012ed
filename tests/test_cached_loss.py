"""CachedContAccumLoss: against autograd over the whole batch, and against sentence-transformers' own."""

# pytest fixtures that are imported and asked for by name
# ruff: noqa: F401, F811

import copy

import pytest
import torch

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")
pytest.importorskip("sentence_transformers.base.losses.gradcache")

from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
)

from contaccum_lite.integrations import sentence_transformers as integration
from contaccum_lite.integrations.cached import CachedContAccumLoss
from contaccum_lite.integrations.sentence_transformers import ContAccumLoss
from test_banked_softmax import Model, pairs
from test_sentence_transformers import (
    TIGHT,
    arguments,
    bert,
    columns_of,
    sentence_transformer,
    small_bert,
    train,
    triples,
    weights,
)


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("mini_batch_size", [1, 3, 16])
@pytest.mark.parametrize("fields", [{}, dict(query_bank=False), dict(bank_hard_negatives=False)])
def test_it_is_the_whole_batch_with_banks_of_earlier_ones(
    incremental, mini_batch_size, fields, monkeypatch
):
    """Loss, gradient and banks are ContAccumLoss's of the same large batch."""
    monkeypatch.setattr(integration, "INCREMENTAL_FROM", 1 if incremental else 10**9)
    cached = CachedContAccumLoss(Model(), 20, mini_batch_size=mini_batch_size, **fields)
    whole = ContAccumLoss(Model(), 20, **fields)
    draw = torch.Generator().manual_seed(1)
    for turn in range(6):
        batch, found = pairs(8 - turn % 2, 3, draw, 20), []
        for loss in (cached, whole):
            loss.model.zero_grad()
            value = 0.5 * loss(columns_of(batch), None)  # half: as a trainer that accumulates
            value.backward()
            found.append((value.item(), loss.model.table.weight.grad))
        assert abs(found[0][0] - found[1][0]) < TIGHT
        assert found[0][1].norm() > 1e-3 and (found[0][1] - found[1][1]).abs().max() < TIGHT
        banks = cached.bank_state()
        assert all(torch.equal(value, banks[name]) for name, value in whole.bank_state().items())
    assert len(cached) == 20


def test_without_memory_it_is_cached_multiple_negatives_ranking():
    batch, found = pairs(7, 3, torch.Generator().manual_seed(0)), []
    for make in (
        lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=3),
        lambda model: CachedContAccumLoss(model, 0, mini_batch_size=3),
    ):
        model = Model()
        value = make(model)(columns_of(batch), None)
        value.backward()
        found.append((value.item(), model.table.weight.grad))
    assert abs(found[0][0] - found[1][0]) < TIGHT
    assert (found[0][1] - found[1][1]).abs().max() < TIGHT


@pytest.mark.parametrize("at_once", [-1, 1])
def test_inside_matryoshka_it_is_contaccum_inside_matryoshka(at_once):
    import random

    losses, draw = [], torch.Generator().manual_seed(2)
    for make in (
        lambda model: CachedContAccumLoss(model, 12, mini_batch_size=3),
        lambda model: ContAccumLoss(model, 12),
    ):
        model = Model()
        loss = make(model)
        losses.append(
            (
                model,
                loss,
                MatryoshkaLoss(model, loss, [6, 4, 2], [1, 2, 3], n_dims_per_step=at_once),
            )
        )
    for turn in range(6):
        batch, found = pairs(5, 3, draw), []
        for model, loss, around in losses:
            random.seed(turn)
            model.zero_grad()
            value = around(columns_of(batch), None)
            value.backward()
            found.append((float(value), model.table.weight.grad, loss.bank_state()["vectors"]))
        assert abs(found[0][0] - found[1][0]) < TIGHT
        assert (found[0][1] - found[1][1]).abs().max() < TIGHT
        assert torch.equal(found[0][2], found[1][2])


def test_evaluation_neither_reads_nor_writes_the_banks():
    loss = CachedContAccumLoss(Model(), 12, mini_batch_size=3)
    first, second = (pairs(5, 3, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    loss(columns_of(first), None).backward()
    before = loss.bank_state()
    alone = CachedContAccumLoss(Model(), 12, mini_batch_size=3)(columns_of(second), None).item()
    with torch.no_grad():
        assert loss(columns_of(second), None).item() == alone
    loss.model.eval()
    assert loss(columns_of(second), None).item() == alone
    assert all(torch.equal(value, loss.bank_state()[name]) for name, value in before.items())


def test_what_does_not_fit_is_said():
    for name in ("mini_batch_size", "mini_batch_num_tokens"):
        for value in (0, -1, 2.0, True, "8"):
            with pytest.raises(ValueError, match=f"{name} is .*: expected a whole number"):
                CachedContAccumLoss(Model(), 4, **{name: value})
    loss = CachedContAccumLoss(Model(), 8, mini_batch_size=2)
    batch = columns_of(pairs(4, 3, torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="1 column"):
        loss(batch[:1], None)
    value = loss(batch, None)
    with pytest.raises(ValueError, match="second time .* Take ContAccumLoss there"):
        loss(batch, None)
    value.backward()
    with pytest.raises(ValueError, match="2 columns of vectors"):
        loss(batch[:2], None)
    assert loss.get_config_dict()["mini_batch_size"] == 2


def test_inside_adaptive_layers_it_is_refused(bert, triples, tmp_path):
    """Upstream warns of all Cached losses there; this one stops."""
    model = sentence_transformer(bert)
    loss = CachedContAccumLoss(model, 20, mini_batch_size=2)
    with pytest.warns(UserWarning, match="not compatible with CachedContAccumLoss"):
        around = AdaptiveLayerLoss(model, loss)
    trainer = SentenceTransformerTrainer(
        model, arguments(tmp_path), train_dataset=triples, loss=around, callbacks=[loss.callback]
    )
    with pytest.raises(ValueError, match="Take ContAccumLoss there"):
        trainer.train()


def test_the_trainer_accumulates_saves_and_resumes(bert, triples, tmp_path):
    """As the same training that was not interrupted, bit for bit; dropout is replayed."""
    from test_sentence_transformers import Stop

    fields = dict(
        per_device_train_batch_size=12,
        gradient_accumulation_steps=2,
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
    )

    def run(out, resume=None, callbacks=()):
        model = sentence_transformer(bert)
        loss = CachedContAccumLoss(model, 20, mini_batch_size=4)
        trainer = SentenceTransformerTrainer(
            model,
            arguments(out, **fields),
            train_dataset=triples,
            loss=loss,
            callbacks=[loss.callback, *callbacks],
        )
        trainer.train(resume_from_checkpoint=resume)
        return weights(model), loss

    whole, loss = run(tmp_path / "whole")
    run(tmp_path / "halves", callbacks=[Stop(2)])
    again, resumed = run(tmp_path / "halves", resume=True)
    assert torch.equal(whole, again) and len(loss) == 20
    assert torch.equal(loss.vectors, resumed.vectors)
    large = train(bert, triples, tmp_path / "large", {}, **fields)[1]
    assert (weights(large) - whole).abs().max() < 1e-5
    assert (weights(sentence_transformer(bert)) - whole).abs().max() > 1e-3


def test_a_copy_is_trained_on_its_own():
    loss = CachedContAccumLoss(Model(), 8, mini_batch_size=2)
    draw = torch.Generator().manual_seed(0)
    loss(columns_of(pairs(4, 3, draw)), None).backward()
    other = copy.deepcopy(loss)
    other(columns_of(pairs(4, 3, draw)), None).backward()
    assert (len(loss), len(other)) == (4, 8)


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "matryoshka"])
def test_two_processes_train_the_weights_of_one(tmp_path, kind):
    """CachedContAccumLoss, and ContAccumLoss inside MatryoshkaLoss: weights and banks."""
    import cached_worker
    import contaccum_lite as cl
    from safetensors.torch import load_file
    from test_parallel import launch

    small_bert(cl.load_pairs("toy"), 32, tmp_path / "bert")
    process = launch(2, tmp_path, kind, script="cached_worker.py")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    two = load_file(tmp_path / f"cached-{kind}.safetensors")
    one = cached_worker.train(tmp_path, "ddp" if kind == "fsdp" else kind, 1)
    for name, value in one.items():
        assert (value.double() - two[name].double()).abs().max() < 1e-4, name
    start = weights(sentence_transformer(str(tmp_path / "bert")))
    assert (start - one["weights"]).abs().max() > 1e-3

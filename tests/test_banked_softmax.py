"""ContAccumLoss without the bank × bank block, against itself with the whole matrix; and losses around it, against loops."""

import copy
import logging
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")

from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from sentence_transformers.util import cos_sim, dot_score

from contaccum_lite.integrations import sentence_transformers as integration
from contaccum_lite.integrations.sentence_transformers import ContAccumLoss
from test_sentence_transformers import TIGHT, Words, columns_of


class Model(torch.nn.Sequential):
    """`Words` as SentenceTransformer is made: modules in a row."""

    def __init__(self, seed=0):
        super().__init__(Words(seed))

    @property
    def table(self):
        return self[0].table

    def get_embedding_dimension(self):
        return 6


def pairs(count, columns, draw, tokens=50):
    """Token ids (count, columns, 2); few different tokens make many copies."""
    return torch.randint(1, tokens, (count, columns, 2), generator=draw)


def whole(*args, **fields):
    """A ContAccumLoss that always computes the whole matrix."""
    loss = ContAccumLoss(*args, **fields)
    loss._keeps_scores = lambda vectors: False
    return loss


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(integration, "INCREMENTAL_FROM", 1)


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    size=st.integers(1, 30),
    columns=st.integers(2, 4),
    tokens=st.sampled_from([4, 50]),
    fields=st.fixed_dictionaries(
        dict(
            similarity_fct=st.sampled_from([cos_sim, dot_score]),
            scale=st.sampled_from([1.0, 20.0]),
            mask_duplicates=st.booleans(),
            bank_hard_negatives=st.booleans(),
        )
    ),
    seed=st.integers(0, 10**6),
)
def test_drawn_trainings_equal_the_whole_matrix(data, size, columns, tokens, fields, seed):
    """Loss, gradient and banks; micro-batches of any sizes, and all that happens to banks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integration, "INCREMENTAL_FROM", 1)
        draw = torch.Generator().manual_seed(seed)
        losses = [make(Model(), size, **fields) for make in (ContAccumLoss, whole)]
        for _ in range(data.draw(st.integers(3, 20))):
            event = data.draw(st.sampled_from(["go"] * 8 + ["clear", "load", "again", "scale"]))
            batch = pairs(data.draw(st.integers(1, 6)), columns, draw, tokens)
            found = []
            for loss in losses:
                if event == "clear":
                    loss.clear()
                if event == "load":
                    loss.load_state_dict(copy.deepcopy(loss.state_dict()))
                if event == "scale":
                    loss.scale = 5.0
                loss.model.zero_grad()
                features = columns_of(batch)
                value = loss(features, None)
                if event == "again":
                    value = value + 2 * loss(features, None)
                value.backward()
                found.append((value.item(), loss.model.table.weight.grad, loss.bank_state()))
            (value, grad, banks), (wanted, wanted_grad, wanted_banks) = found
            assert abs(value - wanted) < TIGHT * max(1, abs(wanted))
            assert (grad - wanted_grad).abs().max() < TIGHT * max(1, wanted_grad.abs().max())
            assert all(torch.equal(wanted_banks[name], banks[name]) for name in banks)


def test_it_is_used_from_256_pairs_on_and_is_the_same_in_float32():
    draw = torch.Generator().manual_seed(0)
    losses = [make(Model().float(), 300) for make in (ContAccumLoss, whole)]
    for _ in range(60):
        batch = pairs(8, 3, draw)
        found = []
        for loss in losses:
            loss.model.zero_grad()
            value = loss(columns_of(batch), None)
            value.backward()
            found.append((value.item(), loss.model.table.weight.grad))
        assert abs(found[0][0] - found[1][0]) < 1e-5
        assert (found[0][1] - found[1][1]).abs().max() < 1e-5
    assert losses[0]._softmaxes and not losses[1]._softmaxes
    small = ContAccumLoss(Model(), 255)
    for _ in range(3):
        small(columns_of(pairs(8, 3, draw)), None)
    assert not small._softmaxes


def angular(queries, passages):
    return cos_sim(queries, passages).clamp(-0.999, 0.999).arcsin()


def test_where_it_is_not_valid_that_is_said_once(always, caplog):
    draw = torch.Generator().manual_seed(0)
    loss = ContAccumLoss(Model(), 20, similarity_fct=angular)
    with caplog.at_level(logging.WARNING, "contaccum_lite"):
        for _ in range(4):
            loss(columns_of(pairs(4, 2, draw)), None)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "ContAccumLoss computes the whole similarity matrix, of 24 rows, for each micro-batch: "
        "similarity_fct is angular, and only cos_sim's and dot_score's can be kept."
    ]
    caplog.clear()
    for fields in (dict(query_bank=False), dict()):
        loss = ContAccumLoss(Model(), 20, **fields)
        for _ in range(3):
            loss(columns_of(pairs(4, 2, draw)), None)
    assert not caplog.records


def test_a_micro_batch_that_overflowed_is_not_in_the_sums(always):
    draw = torch.Generator().manual_seed(0)
    losses = [make(Model(), 12) for make in (ContAccumLoss, whole)]
    batches = [pairs(4, 2, draw) for _ in range(8)]
    for turn, batch in enumerate(batches):
        values = []
        for loss in losses:
            token = batch[0, 0, 0]
            kept = loss.model.table.weight[token].detach().clone()
            if turn == 4:
                with torch.no_grad():
                    loss.model.table.weight[token] = torch.inf
            values.append(loss(columns_of(batch)).item())
            with torch.no_grad():
                loss.model.table.weight[token] = kept
        assert turn == 4 or abs(values[0] - values[1]) < TIGHT


# --- losses that call it several times a batch -----------------------------------------------------


def banked_loss(rows, columns, bank, length, cut, dot):
    """InfoNCE of local (B, columns, 6) vectors and a bank of such, of the first `length` numbers, by hand."""
    shorten = lambda v: normalize(v[..., :length], dim=-1) if cut or not dot else v[..., :length]
    local, past = shorten(rows), shorten(bank)
    queries = torch.cat([local[:, 0], past[:, 0]])
    passages = [local[:, 1], past[:, 1]]
    for column in range(2, columns):
        passages += [local[:, column], past[:, column]]
    scores = queries @ torch.cat(passages).T
    return cross_entropy(scores * (3.0 if dot else 20.0), torch.arange(len(queries)))


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("similarity", [cos_sim, dot_score])
@pytest.mark.parametrize("dims, at_once", [([6, 4, 2], -1), ([4, 2], -1), ([6, 4, 2], 1)])
def test_matryoshka_compares_each_length_with_the_bank_cut_to_it(
    incremental, similarity, dims, at_once, monkeypatch
):
    """Full-length vectors are in the bank once, whatever lengths were compared."""
    monkeypatch.setattr(integration, "INCREMENTAL_FROM", 1 if incremental else 10**9)
    model, other = Model(), Model()
    dot = similarity is dot_score
    loss = ContAccumLoss(
        model, 10, scale=3.0 if dot else 20.0, similarity_fct=similarity, mask_duplicates=False
    )
    weights = [1.0, 0.5, 2.0][: len(dims)]
    around = MatryoshkaLoss(model, loss, dims, weights, n_dims_per_step=at_once)
    bank, draw = [], torch.Generator().manual_seed(3)
    lengths = set()
    for step in range(9):
        batch = pairs(4, 3, draw)
        model.zero_grad(), other.zero_grad()
        random.seed(step)
        value = around(columns_of(batch), None)
        value.backward()
        random.seed(step)
        chosen = random.sample(range(len(dims)), at_once) if at_once > 0 else range(len(dims))
        vectors = torch.stack(
            [other(column)["sentence_embedding"] for column in columns_of(batch)], 1
        )
        past = torch.stack(bank) if bank else vectors[:0].detach()
        wanted = sum(
            weights[index] * banked_loss(vectors, 3, past, dims[index], True, dot)
            for index in chosen
        )
        lengths |= {dims[index] for index in chosen}
        wanted.backward()
        assert abs(value.item() - wanted.item()) < TIGHT
        assert (model.table.weight.grad - other.table.weight.grad).abs().max() < TIGHT
        bank = [*bank, *vectors.detach()][-10:]
        start = int(loss.position[0]) if len(loss) == 10 else 0
        stored = loss.vectors[torch.arange(10).roll(-start)][: len(loss)]
        assert torch.equal(stored, torch.stack(bank)) and stored.shape[2] == 6
    assert lengths == set(dims)
    assert bool(loss._softmaxes) == incremental

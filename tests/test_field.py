"""Objectives, directions, masks, batches and towers in whole runs: combined, undone, resumed."""

import itertools

import numpy as np
import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.core.composition import kmeans, order_by_cluster
from contaccum_lite.core.loss import info_nce_with_gradients
from contaccum_lite.core.objectives import decoupled_loss
from contaccum_lite.data import toy_pairs
from contaccum_lite.scale.incremental_softmax import IncrementalSoftmax
from contaccum_lite.scale.tiled import tiled_info_nce

SMALL = {
    "start": "random",
    "dtype": "float64",
    "dim": 8,
    "local_batch": 5,
    "accumulation_steps": 3,
    "memory_size": 12,
    "learning_rate": 0.01,
    "temperature": 1.0,
    "warmup": 2,
    "updates": 8,
    "passage_tokens": 16,
    "query_tokens": 8,
}
#: 47 pairs: an epoch is of four updates, and its last micro-batch is short
VARIANTS = {
    "decoupled": dict(objective="decoupled"),
    "sogclr": dict(objective="sogclr", gamma=0.3),
    "sogclr, cosine, hard negatives": dict(
        objective="sogclr", gamma_schedule="cosine", hard_negatives=2
    ),
    "sogclr, both": dict(objective="sogclr", directions="both"),
    "sigmoid": dict(objective="sigmoid"),
    "sigmoid, both, hard negatives": dict(objective="sigmoid", directions="both", hard_negatives=1),
    "both": dict(directions="both"),
    "all, decoupled, hard negatives": dict(
        directions="all", objective="decoupled", hard_negatives=1
    ),
    "clusters": dict(batch_by="cluster", clusters=4),
    "clusters made once": dict(batch_by="cluster", clusters=4, cluster_every=0),
    "margin": dict(mask_margin=0.5),
    "guide": dict(mask_margin=0.5, mask_guide="start", hard_negatives=1),
    "grad_cache_bank": dict(method="grad_cache_bank"),
    "grad_cache_bank, sogclr": dict(method="grad_cache_bank", objective="sogclr"),
    "query_only": dict(method="query_only"),
    "query tower, bank": dict(train_towers="query"),
    "tiled": dict(similarity="tiled"),
    "tiled, decoupled": dict(
        similarity="tiled", objective="decoupled", hard_negatives=1, mask_margin=1.0
    ),
    "incremental, decoupled": dict(
        similarity="incremental", objective="decoupled", hard_negatives=1
    ),
    "incremental asked for": dict(similarity="incremental", objective="sogclr"),
}


def pairs():
    return toy_pairs(47, 20)


def run_of(fields, data=None):
    fields = {**SMALL, **fields}
    method = fields.pop("method", "contaccum")
    for name in cl.PRESETS[method]["fixed"]:
        if name in SMALL:
            fields.pop(name, None)
    return cl.Run(data or pairs(), cl.Settings.preset(method, **fields))


def weights(run):
    return torch.cat([p.detach().flatten() for t in run.learner.towers for p in t.parameters()])


def state(run):
    from contaccum_lite.core.checkpoint import tensors_of

    return {"weights": weights(run), **tensors_of(run)}


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name].nan_to_num(7.0), other[name].nan_to_num(7.0)), name


# --- resumed, undone ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_run_resumes_bit_for_bit(name, tmp_path):
    """Saved within the second epoch; the states after the last update are equal."""
    data = pairs()
    run = run_of(VARIANTS[name], data)
    for _ in range(6):
        run.step()
    run.save(tmp_path / "run")
    again = cl.Run.load(tmp_path / "run", data)
    same(state(run), state(again))
    for _ in range(2):
        run.step(), again.step()
    same(state(run), state(again))
    assert [u[:6] for u in run.history] == [u[:6] for u in again.history]
    assert run.encodes == again.encodes


@pytest.mark.parametrize("name", VARIANTS)
def test_an_update_that_is_left_halfway_is_undone(name):
    run, plain = run_of(VARIANTS[name]), run_of(VARIANTS[name])
    for step in range(5):
        plain.step()
        if step in (0, 3, 4):  # 3 has one micro-batch; 4 is of a new epoch
            list(itertools.islice(run.micro_steps(), 1 if step == 3 else 2))
            run.cancel_update()
        run.step()
    same(state(plain), state(run))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_look_at_the_matrix_changes_nothing(name):
    """`full_matrix_loss` is what pictures and probes call."""
    run, plain = run_of(VARIANTS[name]), run_of(VARIANTS[name])
    for _ in range(3):
        run.step(), plain.step()
        batch = run.sampler.batches(run.step_count)[0]
        layout = run.learner.layout(batch, run.step_count, False)
        vectors = run.learner.encode_without_noise(batch)
        hooked = run.learner.full_matrix_loss(vectors, None, layout)
        assert torch.isfinite(hooked.loss)
    same(state(plain), state(run))


@pytest.mark.parametrize("name", VARIANTS)
def test_its_settings_share_and_parse(name):
    settings = run_of(VARIANTS[name]).settings
    assert cl.Settings.parse(settings.share()) == settings


# --- GradCache, K = 1, one forward ----------------------------------------------------------------

LOSSES = {
    f"{objective}, {directions}": dict(objective=objective, directions=directions)
    for objective in ("info_nce", "decoupled", "sogclr", "sigmoid")
    for directions in ("query", "both", "all")
}


@pytest.mark.parametrize("hard_negatives", [0, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_grad_cache_is_one_big_batch_with_every_loss(name, hard_negatives):
    fields = {**LOSSES[name], "hard_negatives": hard_negatives, "mask_margin": 2.0}
    cached = run_of({"method": "grad_cache", **fields})
    whole = run_of({"method": "dpr", "local_batch": 15, **fields})
    for _ in range(8):
        cached.step(), whole.step()
    for one, other in zip(cached.history, whole.history):
        assert one.loss == pytest.approx(other.loss, abs=1e-9)
    assert (weights(cached) - weights(whole)).abs().max() < 1e-8


@pytest.mark.parametrize("name", LOSSES)
def test_with_one_micro_batch_grad_cache_with_a_bank_is_contaccum(name):
    one_step = dict(accumulation_steps=1, local_batch=7, hard_negatives=1, **LOSSES[name])
    cached = run_of({"method": "grad_cache_bank", **one_step})
    plain = run_of({"method": "contaccum", **one_step})
    for _ in range(8):
        cached.step(), plain.step()
    assert (weights(cached) - weights(plain)).abs().max() < 1e-9
    assert len(cached.query_bank) == 12


def test_grad_cache_with_a_bank_meets_earlier_updates_alone():
    run = run_of({"method": "grad_cache_bank", "memory_size": 40})
    run.step()
    assert run.passage_bank.ages(1).tolist() == [1] * 15
    for micro in run.micro_steps():
        assert len(micro.row_ids) == 30 and micro.local == 15
    assert run.history[-1].negatives == 29


@pytest.mark.parametrize("name", ["sogclr", "sigmoid", "all, decoupled, hard negatives", "both"])
def test_one_forward_is_the_same_gradient(name):
    many, one = run_of(VARIANTS[name]), run_of({**VARIANTS[name], "one_forward": True})
    for _ in range(8):
        many.step(), one.step()
    assert (weights(many) - weights(one)).abs().max() < 1e-9


# --- objectives that keep something ---------------------------------------------------------------


def test_sogclr_that_remembers_nothing_trains_as_the_decoupled_loss():
    one = run_of(dict(objective="sogclr", gamma=1.0, hard_negatives=1))
    other = run_of(dict(objective="decoupled", hard_negatives=1))
    for a, b in zip(one, other):
        assert a.loss == pytest.approx(b.loss, abs=1e-9)
    assert (weights(one) - weights(other)).abs().max() < 1e-9


def test_a_visit_writes_the_normalisers_of_its_own_pairs():
    """Each local row's, from the number that it had before; banked rows only read theirs."""
    run = run_of(dict(objective="sogclr", gamma=0.25))
    table = run.learner.extension("objective")
    for _ in range(6):
        before, visited = table.log_u.clone(), []
        for micro in run.micro_steps():
            ids = micro.row_ids[: micro.local]
            negatives = micro.scores.clone().fill_diagonal_(-torch.inf)
            counts = (negatives > -torch.inf).sum(1)
            means = (negatives.exp().sum(1) / counts / micro.scores.diagonal().exp())[: micro.local]
            old = before[0, ids].exp()
            expected = torch.where(old.isnan(), means, 0.75 * old + 0.25 * means)
            assert torch.allclose(table.log_u[0, ids].exp(), expected, rtol=1e-10)
            visited += ids.tolist()
        others = [i for i in range(47) if i not in visited]
        assert torch.equal(
            table.log_u[0, others].nan_to_num(7.0), before[0, others].nan_to_num(7.0)
        )
    assert not table.log_u.isnan().any()


def test_the_cosine_begins_at_one_and_ends_at_gamma():
    run = run_of(dict(objective="sogclr", gamma=0.2, gamma_schedule="cosine"))
    table = run.learner.extension("objective")
    values = [table.gamma_at(step) for step in range(9)]
    assert values[0] == 1 and values[8] == pytest.approx(0.2) and values[4] == pytest.approx(0.6)
    assert values == sorted(values, reverse=True)


def test_the_sigmoids_scale_and_bias_are_learned():
    """Their gradient is that of the update's mean loss, by finite differences."""
    run = run_of(dict(objective="sigmoid", memory_size=0, query_bank=False, passage_bank=False))
    extension = run.learner.extension("objective")
    assert any(
        p is extension.scale_and_bias for g in run.optimizer.param_groups for p in g["params"]
    )
    start = extension.scale_and_bias.detach().clone()
    assert start.tolist() == [0.0, -2.3]

    def loss(numbers):
        with torch.no_grad():
            extension.scale_and_bias.copy_(numbers)
        return np.mean([micro.loss for micro in run.micro_steps()])

    expected = []
    for n in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[n] = 1e-6
        values = []
        for sign in (1, -1):
            other = run_of(
                dict(objective="sigmoid", memory_size=0, query_bank=False, passage_bank=False)
            )
            own = other.learner.extension("objective").scale_and_bias
            with torch.no_grad():
                own += sign * step
            values.append(np.mean([micro.loss for micro in other.micro_steps()]))
        expected.append((values[0] - values[1]) / 2e-6)
    steps = run.micro_steps()
    for _ in range(3):
        next(steps)
    assert extension.scale_and_bias.grad.tolist() == pytest.approx(expected, rel=1e-6)
    for _ in steps:
        pass
    assert not torch.equal(extension.scale_and_bias.detach(), start) or run.step_count == 1
    run.step()
    assert (extension.scale_and_bias.detach() != start).all()


def test_a_loss_that_the_incremental_softmax_has_not_says_so():
    run = run_of(VARIANTS["incremental asked for"])
    assert run.similarity == "full" and any("another than one softmax" in n for n in run.notes)


# --- batches by cluster ---------------------------------------------------------------------------


def test_kmeans_against_a_loop():
    rng = torch.Generator().manual_seed(3)
    vectors = torch.randn(60, 3, dtype=torch.float64, generator=rng)
    labels = kmeans(vectors, 5, torch.Generator().manual_seed(1))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:5]
    centres = [vectors[i].tolist() for i in order]

    def nearest(vector):
        return min(range(5), key=lambda c: sum((a - b) ** 2 for a, b in zip(vector, centres[c])))

    for _ in range(10):
        own = [nearest(v) for v in vectors.tolist()]
        for c in range(5):
            members = [v for v, label in zip(vectors.tolist(), own) if label == c]
            if members:
                centres[c] = [sum(values) / len(members) for values in zip(*members)]
    assert labels.tolist() == [nearest(v) for v in vectors.tolist()]


@pytest.mark.parametrize("seed", range(5))
def test_an_epoch_by_cluster_has_every_pair_once(seed):
    rng = np.random.default_rng(seed)
    order, labels = rng.permutation(103), rng.integers(0, 6, 103)
    made = order_by_cluster(order, labels[order], 8, np.random.default_rng(0))
    assert sorted(made) == list(range(103))
    batches = [made[i : i + 8] for i in range(0, 103, 8)]
    assert len(batches[-1]) == 7
    pure = sum(len(set(labels[batch])) == 1 for batch in batches)
    assert pure >= sum(n // 8 for n in np.bincount(labels))


def test_micro_batches_are_of_one_cluster_and_clusters_are_renewed():
    run = run_of(dict(batch_by="cluster", clusters=3, updates=20))
    shuffled = run_of(dict(updates=20))
    clusters, made, seen = run.learner.extension("clusters"), [], []
    for step in range(8):
        batches = run.sampler.batches(step)
        made.append(clusters.labels.clone())
        seen += [i for b in batches for i in b.pair_ids.tolist()]
        run.step()
    assert sorted(seen[:47]) == sorted(seen[47:]) == list(range(47)) and seen[:47] != seen[47:]
    assert torch.equal(made[0], made[3]) and torch.equal(made[4], made[7])
    assert clusters.made_in == 1
    pure = lambda r, labels: np.mean(
        [len(set(labels[b.pair_ids].tolist())) == 1 for s in range(4) for b in r.sampler.batches(s)]
    )
    fresh = run_of(dict(batch_by="cluster", clusters=3, updates=20))
    fresh.sampler.batches(0)
    labels = fresh.learner.extension("clusters").labels
    assert pure(fresh, labels) > pure(shuffled, labels) + 0.3


# --- masks ----------------------------------------------------------------------------------------


def test_the_margin_masks_over_the_bank_too():
    run = run_of(dict(mask_margin=0.3))
    plain = run_of({})
    for _ in range(2):
        for masked, whole in zip(run.micro_steps(), plain.micro_steps()):
            if run.step_count:
                break
            scores = whole.scores
            above = scores > scores.diagonal()[:, None] + 0.3
            expected = scores.masked_fill(above, -torch.inf)
            assert torch.equal(masked.scores, expected)
            assert not masked.index or above[:, masked.local :].any()


def test_a_guides_mask_is_by_the_scores_of_the_start():
    run = run_of(VARIANTS["guide"])
    first = run_of(VARIANTS["guide"])
    for _ in range(5):
        run.step()
    guide = run.learner.extension("guide")
    batch = run.sampler.batches(5)[1]
    layout = run.learner.layout(batch, 5, True)
    mask = guide.mask(layout)
    pairs_, passages = run.pairs.train, run.pairs.passages
    corpus = [
        passages[run.pairs.row_of[pairs_[i].passage_id]]
        for i in layout.column_ids[: layout.hard_from]
    ]
    corpus += [passages[i] for i in layout.column_ids[layout.hard_from :]]
    queries = first.retriever.encode_queries([pairs_[i].query for i in layout.row_ids])
    columns = first.retriever.encode_passages(corpus)
    scores = queries @ columns.T
    checked = 0
    for i, j in itertools.product(*map(range, mask.shape)):
        gap = scores[i, j] - scores[i, i] - 0.5
        if abs(gap) > 1e-5:
            assert bool(mask[i, j]) == (i != j and gap > 0)
            checked += 1
    assert checked > 0.9 * mask.numel() and mask.any() and not mask.all()


# --- a tower held still ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["query_only", "query tower, bank"])
def test_a_tower_that_is_held_still_stays(name):
    run = run_of(VARIANTS[name])
    start = [p.detach().clone() for p in run.passage_tower.parameters()]
    query = [p.detach().clone() for p in run.query_tower.parameters()]
    for update in run:
        assert update.grad_norm_passage == 0
    assert all(torch.equal(a, b) for a, b in zip(start, run.passage_tower.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(query, run.query_tower.parameters()))


def test_the_corpus_is_in_the_columns():
    """Loss and gradient of the queries by a loop over every passage of the corpus."""
    run = run_of(VARIANTS["query_only"])
    batch = run.sampler.batches(0)[0]
    micro = next(run.micro_steps())
    data = run.pairs
    vectors = run.learner.encode_without_noise(batch)
    texts = [p.text for p in data.passages]
    columns = run.learner.extension("corpus").vectors
    total = 0.0
    for q, p, i in zip(vectors.queries, vectors.passages, batch.pair_ids.tolist()):
        own = data.train[i].passage
        scores = [q @ p]
        scores += [q @ v for v, text in zip(columns, texts) if text != own]
        for j, other in zip(batch.pair_ids.tolist(), vectors.passages):
            same_query = data.train[j].query == data.train[i].query
            if j != i and data.train[j].passage != own and not same_query:
                scores.append(q @ other)
        total += (torch.stack(scores).logsumexp(0) - scores[0]).item()
    assert micro.loss == pytest.approx(total / 5, abs=1e-9)
    assert run.encodes["refresh"] == len(texts)


# --- tiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [1, 3, 8, 100])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("case", range(6))
def test_tiles_are_the_whole(case, decoupled, tile):
    from contaccum_lite.core.masks import with_margin
    from contaccum_lite.core.loss import softmax_loss
    from test_objectives import CASES, vectors

    arguments, mask = vectors(CASES[case])
    objective = decoupled_loss if decoupled else softmax_loss
    for margin in (None, 0.5):
        expected = info_nce_with_gradients(
            **arguments,
            temperature=0.7,
            mask=mask,
            objective=objective if margin is None else with_margin(objective, margin),
        )
        tiles = tiled_info_nce(
            **arguments, temperature=0.7, mask=mask, decoupled=decoupled, margin=margin, tile=tile
        )
        assert abs(tiles.loss - expected.loss) < 1e-10
        for one, other in zip(tiles.gradients, expected.gradients):
            assert (one is None) == (other is None)
            assert one is None or (one - other).abs().max() < 1e-10


@pytest.mark.parametrize("method", ["dpr", "grad_cache", "contaccum", "pre_batch"])
@pytest.mark.parametrize("objective", ["info_nce", "decoupled"])
def test_a_run_in_tiles_is_the_run(method, objective):
    fields = dict(method=method, objective=objective, hard_negatives=1)
    tiled, plain = (
        run_of({**fields, "similarity": "tiled"}),
        run_of({**fields, "similarity": "full"}),
    )
    for _ in range(8):
        tiled.step(), plain.step()
    assert (weights(tiled) - weights(plain)).abs().max() < 1e-9


def test_tiles_need_less_memory_than_the_matrix():
    rng = torch.Generator().manual_seed(0)
    queries, passages = (torch.randn(1024, 16, generator=rng) for _ in range(2))
    tiles = cl.tensor_memory(lambda: tiled_info_nce(queries, passages, tile=64))
    matrix = cl.tensor_memory(lambda: info_nce_with_gradients(queries, passages))
    assert matrix > 1024 * 1024 * 4 and tiles < matrix / 10


def test_tiles_show_the_matrix_to_an_observer():
    run = run_of(VARIANTS["tiled"])
    with pytest.raises(RuntimeError, match="incremental|tiled"):
        next(run.micro_steps()).scores
    run.learner.observed = True
    plain = run_of(dict(similarity="full"))
    for one, other in zip(run.micro_steps(), plain.micro_steps()):
        assert torch.allclose(one.grad_scores, other.grad_scores, atol=1e-12)


# --- what cannot be combined ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(similarity="tiled", objective="sogclr"), "objective is 'sogclr'"),
        (dict(similarity="tiled", directions="all"), "directions is 'all'"),
        (dict(similarity="tiled", mask_margin=0, mask_guide="start"), "mask_guide is 'start'"),
        (dict(mask_guide="start"), "mask_margin is None"),
        (dict(mask_guide="start", mask_margin=0, directions="both"), "directions is 'both'"),
        (dict(train_towers="query", shared=True), "shared is True"),
        (dict(corpus_columns=True), "train_towers is 'both'"),
        (dict(method="query_only", hard_negatives=1), "hard_negatives is 1"),
        (dict(method="sogclr", objective="info_nce"), "fixes it at 'sogclr'"),
        (dict(objective="softmax"), "choose one of info_nce"),
        (dict(gamma=0.0), "from 0.001 to 1.0"),
        (dict(method="grad_cache_bank", cache_negatives=2), "method is 'grad_cache_bank'"),
    ],
)
def test_what_cannot_be_combined_is_said(fields, words):
    fields = dict(fields)
    with pytest.raises(ValueError, match=words):
        cl.Settings.preset(fields.pop("method", "contaccum"), **fields)


# --- the incremental softmax ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(memory_size=30),
        dict(hard_negatives=2),
        dict(hard_negatives=1, bank_hard_negatives=False),
        dict(mask_duplicates=False),
        dict(method="pre_batch"),
        dict(method="contaccum_no_past"),
        dict(drop_query_bank_at=4),
        dict(bank_warmup=2),
        dict(memory_size=100),
        dict(local_batch=1, accumulation_steps=2, memory_size=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("blocks", [False, True])
def test_the_incremental_softmax_has_the_decoupled_loss_too(fields, blocks, monkeypatch):
    """blocks: with the sums that a large bank has."""
    if blocks:
        monkeypatch.setattr(IncrementalSoftmax, "_is_large", lambda *_: True)
    fields = {"objective": "decoupled", "updates": 12, **fields}
    kept = run_of({**fields, "similarity": "incremental"})
    whole = run_of({**fields, "similarity": "full"})
    assert kept.similarity == "incremental" and not kept.notes
    for one, other in zip(kept, whole):
        assert one.loss == pytest.approx(other.loss, abs=1e-10)
    if blocks and kept.settings.query_bank:
        assert kept.learner.extension("softmax").table.sums is not None
    assert (weights(kept) - weights(whole)).abs().max() < 1e-9


def test_a_change_of_the_banks_size_keeps_the_decoupled_sums_right():
    fields = {"objective": "decoupled", "updates": 12}
    runs = [run_of({**fields, "similarity": kind}) for kind in ("incremental", "full")]
    for step in range(12):
        for run in runs:
            if step == 5:
                run.change(memory_size=20)
            run.step()
    assert (weights(runs[0]) - weights(runs[1])).abs().max() < 1e-9

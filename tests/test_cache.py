"""The cache of all passages and the correctors in training.

What is chosen, what is encoded, what is taken back.
"""

import math
import os
from collections import Counter

import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.core.micro_step import Layout
from contaccum_lite.staleness.drift import passage_vectors
from contaccum_lite.evidence import stale_claims as stale
from contaccum_lite.staleness.correctors import CORRECTORS
from contaccum_lite.staleness.drift import DriftProbe, cache_gap, gradient_error
from contaccum_lite.core.loss import info_nce_with_gradients
from test_run import same, state

SMALL = dict(
    dim=16, local_batch=6, updates=12, warmup=2, bank_warmup=3, dtype="float64", learning_rate=0.01
)
CACHED = ["static_negatives", "stale_cache", "refreshed_cache", "corrected_cache", "oracle_cache"]


def run_of(toy, method, **fields):
    return cl.Run(toy, cl.Settings.preset(method, **{**SMALL, **fields}))


def vectors_now(run):
    return passage_vectors(run)


# --- what is chosen -------------------------------------------------------------------------------


def test_top_k_takes_the_highest_scores_but_no_copy_of_a_positive(toy):
    run = run_of(toy, "stale_cache", selection="top_k", cache_negatives=3)
    for _ in range(6):
        run.step()
    learner, cache = run.learner, run.learner.extension("cache")
    batch = run.sampler.batches(6)[0]
    cache.refresh(6)
    chosen = cache.with_negatives(batch, 0, 6)
    scores = learner.encode_without_noise(batch).queries @ cache.table.vectors.T
    own = {int(learner.keys.passage[i]) for i in batch.pair_ids}
    wanted = set()
    for row in scores:
        order = [
            int(j) for j in row.argsort(descending=True) if int(learner.keys.text[j]) not in own
        ]
        wanted |= set(order[:3])
    assert chosen.hard_ids.tolist() == sorted(wanted)
    assert torch.equal(chosen.query_tokens, batch.query_tokens)
    assert len(chosen.passage_tokens) == 6 + len(wanted)
    fresh = learner.encode(chosen, purpose=None)
    assert torch.allclose(
        fresh.hard_negatives, vectors_now(run)[chosen.hard_ids], atol=1e-10
    )  # encoded now, not taken from the cache
    assert not torch.allclose(fresh.hard_negatives, cache.table.vectors[chosen.hard_ids], atol=1e-3)


def test_a_corrected_cache_chooses_by_corrected_scores_and_learns_from_what_was_chosen(toy):
    run = run_of(toy, "corrected_cache", corrector="ridge", selection="top_k", probes=80)
    for _ in range(8):
        run.step()
    learner, cache, batch = run.learner, run.learner.extension("cache"), run.sampler.batches(8)[0]
    cache.refresh(8)
    queries, own = learner.encode_without_noise(batch).queries, learner.keys.passage[batch.pair_ids]
    best = lambda vectors: (
        (queries @ vectors.T)
        .masked_fill(torch.isin(learner.keys.text, own), -torch.inf)
        .topk(2, 1)
        .indices.unique()
    )
    chosen = cache.with_negatives(batch, 0, 8)
    assert torch.equal(chosen.hard_ids, best(cache.corrected(8)))
    assert not torch.equal(chosen.hard_ids, best(cache.table.vectors))
    vectors = learner.encode(chosen, purpose=None)
    cache.before_enqueue(vectors, chosen, 8)
    rows, pairs = (
        torch.cat([cache.positives[batch.pair_ids], chosen.hard_ids]),
        cache.corrector.pairs,
    )
    newest = pairs.order()[-len(rows) :]
    assert torch.equal(pairs.ids[newest], rows)
    assert torch.equal(
        pairs.vectors[newest],
        torch.cat(
            [
                cache.table.vectors[rows],
                torch.cat([vectors.passages, vectors.hard_negatives]),
                torch.full((len(rows), 1), 5.0),
            ],
            1,
        ),
    )


@pytest.mark.parametrize("selection", ["gumbel", "uniform"])
def test_draws_have_the_chances_that_they_should(toy, selection):
    """4,000 draws of one negative for one query, against the softmax (or against equal chances)."""
    run = run_of(toy, "stale_cache", selection=selection, cache_negatives=1, local_batch=1)
    for _ in range(5):
        run.step()
    cache, batch = run.learner.extension("cache"), run.sampler.batches(5)[0]
    cache.refresh(5)
    scores = (
        run.learner.encode_without_noise(batch).queries
        @ cache.table.vectors.T
        / run.settings.temperature
    )[0]
    scores[run.learner.keys.text == run.learner.keys.passage[batch.pair_ids[0]]] = -torch.inf
    chance = (
        scores.softmax(0)
        if selection == "gumbel"
        else (scores > -torch.inf).double() / (scores > -torch.inf).sum()
    )
    drawn = Counter(int(cache.with_negatives(batch, place, 5).hard_ids[0]) for place in range(4000))
    assert all(chance[row] > 0 for row in drawn)
    groups = chance.argsort().chunk(8)  # from least to most likely
    for group in groups:
        expected, found = 4000 * float(chance[group].sum()), sum(drawn[int(row)] for row in group)
        assert abs(found - expected) < 5 * math.sqrt(expected) + 3


def test_before_its_time_it_is_plain_in_batch_training(toy):
    run, plain = run_of(toy, "corrected_cache"), run_of(toy, "dpr", bank_warmup=0)
    for _ in range(3):
        assert run.step()[:4] == plain.step()[:4]
    assert not run.learner.extension("cache") and run.encodes == {"train": 18}
    assert run.step().loss != plain.step().loss and run.learner.extension("cache").made_at == 3


def test_the_gradient_is_that_of_the_chosen_negatives_encoded_now(toy):
    run = run_of(toy, "corrected_cache", accumulation_steps=2, clip_norm=0.0, probes=80)
    for _ in range(5):
        run.step()
    cache, learner = run.learner.extension("cache"), run.learner
    assert cache.corrector.corrector.fitted
    batches = cache.begin_update(run.sampler.batches(5), 5)
    cache.abandon_update()
    parameters = [p for tower in learner.towers for p in tower.parameters()]
    for tower in learner.towers:
        tower.accumulate_embedding_grad = False
    losses = []
    for batch in batches:
        q, p, h = learner.encode(batch, purpose=None)
        ids = torch.cat([batch.pair_ids, batch.pair_ids[:0]])
        mask = learner.duplicate_mask(
            Layout(len(ids), ids, torch.cat([ids, batch.hard_ids]), len(ids))
        )
        scores = q @ torch.cat([p, h]).T / run.settings.temperature
        scores = scores if mask is None else scores.masked_fill(mask, -torch.inf)
        losses.append(torch.nn.functional.cross_entropy(scores, torch.arange(len(q))))
    wanted = torch.autograd.grad(sum(losses) / 2, parameters)
    found = []
    run.optimizer.register_step_pre_hook(
        lambda *_: found.extend(p.grad.clone() for p in parameters)
    )
    update = run.step()
    assert abs(update.loss - float(sum(losses)) / 2) < 1e-10
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(found, wanted))


# --- when what is encoded -------------------------------------------------------------------------


def test_each_policy_encodes_what_it_says(toy):
    everything = len(toy.passages)
    for method, fields, refreshed in (
        ("stale_cache", {}, 1),
        ("static_negatives", {}, 1),
        ("oracle_cache", {}, 9),
        ("refreshed_cache", dict(cache_refresh=4), 3),
        ("corrected_cache", {}, 1),
    ):
        run = run_of(toy, method, **fields)
        for _ in run:
            pass
        assert run.encodes["refresh"] == refreshed * everything, method
        negatives = run.encodes["train"] - 12 * 6
        assert 9 * 2 < negatives <= 9 * 2 * 6 and "probe" not in run.encodes
        assert run.learner.extension("cache").table.ages(12).unique().tolist() == [
            {"oracle_cache": 1, "refreshed_cache": 1}.get(method, 9)
        ]
    run = run_of(toy, "corrected_cache", probes=7, cache_oldest=5)
    for _ in run:
        pass
    assert run.encodes["probe"] == 9 * 7 and run.encodes["refresh"] == everything + 8 * 5
    born = run.learner.extension("cache").table.written_at
    assert [(born == step).sum().item() for step in range(3, 12)] == [everything - 40] + 8 * [
        5
    ]  # the oldest, each once


def test_the_oracle_is_fresh_and_the_stale_one_is_as_it_was(toy):
    run, stale = run_of(toy, "oracle_cache"), run_of(toy, "stale_cache")
    for update in range(8):
        if update == 3:
            first = vectors_now(stale)
        now = vectors_now(run)
        run.step()
        stale.step()
        if update >= 3:
            assert torch.allclose(run.learner.extension("cache").table.vectors, now, atol=1e-12)
            assert torch.equal(stale.learner.extension("cache").table.vectors, first)


def test_write_back_keeps_what_was_encoded_and_nothing_corrected_is_ever_stored(toy):
    run, raw = (
        run_of(toy, "stale_cache", write_back=True),
        run_of(toy, "corrected_cache", corrector="ridge", probes=80),
    )
    for _ in range(4):
        run.step()
        raw.step()
    table, first = (
        run.learner.extension("cache").table,
        raw.learner.extension("cache").table.vectors.clone(),
    )
    run.learner.extension("cache").refresh(4)
    batch = run.learner.extension("cache").with_negatives(run.sampler.batches(4)[0], 0, 4)
    fresh = run.learner.encode(batch, purpose=None)
    run.step(), raw.step()
    assert torch.allclose(table.vectors[batch.hard_ids], fresh.hard_negatives, atol=1e-12)
    assert (table.written_at[batch.hard_ids] == 4).all()
    assert (table.written_at == 4).sum() == len(batch.hard_ids) + 6
    for _ in range(4):
        raw.step()
    assert torch.equal(raw.learner.extension("cache").table.vectors, first)
    assert not torch.allclose(raw.learner.extension("cache").corrected(8), first, atol=1e-2)
    assert 0 < run.learner.extension("cache").coverage < 1


def test_static_negatives_are_chosen_by_the_queries_of_then(toy):
    run = run_of(toy, "static_negatives", selection="top_k")
    for _ in range(4):
        run.step()
    batch = run.sampler.batches(4)[0]
    run.learner.extension("cache").refresh(4)
    chosen = run.learner.extension("cache").with_negatives(batch, 0, 4).hard_ids
    for _ in range(5):
        run.step()
    run.learner.extension("cache").refresh(9)
    assert torch.equal(run.learner.extension("cache").with_negatives(batch, 0, 9).hard_ids, chosen)


# --- the dual bank, corrected ---------------------------------------------------------------------

BANKED = dict(accumulation_steps=2, memory_size=48, bank_warmup=0, probes=12)


def test_a_corrected_bank_leaves_raw_vectors_and_new_ones(toy):
    run = run_of(toy, "contaccum_corrected", start="random", **BANKED)
    plain = run_of(toy, "contaccum", start="random", **{**BANKED, "probes": 0})
    for _ in range(5):  # too few pairs to fit (FEWEST): the same run
        assert run.step().loss == plain.step().loss
    for _ in range(4):
        run.step(), plain.step()
    assert run.history[-1].loss != plain.history[-1].loss
    # none in the first update: the bank was empty
    assert run.encodes["probe"] == 12 * 8
    correction, bank = run.learner.extension("correction"), run.passage_bank
    correction.learn(9)
    read = correction.read_bank(bank, 9)
    is_new = bank.ages(8) == 0
    assert torch.equal(correction.read_bank(bank, 8)[is_new], bank.vectors[is_new])
    now = run.learner.encode(run.sampler.micro_batch(bank.ids.numpy()), purpose=None).passages
    assert float((read - now).norm()) < 0.8 * float(
        (bank.vectors - now).norm()
    )  # and it does correct
    assert (
        "corrected anew"
        in cl.Run(toy, run.settings.replace(similarity="incremental", memory_size=300)).notes[-1]
    )


def test_its_loss_is_that_of_the_corrected_vectors(toy):
    run = run_of(
        toy, "contaccum_corrected", **{**BANKED, "accumulation_steps": 1}, mask_duplicates=False
    )
    for _ in range(9):
        run.step()
    correction = run.learner.extension("correction")
    correction.begin_update([], 9)
    kept = [run.learner.read_bank(bank, 9) for bank in (run.query_bank, run.passage_bank)]
    correction.abandon_update()
    vectors = run.learner.encode(run.sampler.batches(9)[0], purpose=None)
    wanted = info_nce_with_gradients(
        vectors.queries.detach(), vectors.passages.detach(), *kept, None, run.settings.temperature
    )
    assert abs(run.step().loss - float(wanted.loss)) < 1e-10
    assert not torch.equal(kept[1], run.passage_bank.vectors)


# --- taken back, saved, refused -------------------------------------------------------------------

ALL = [
    ("corrected_cache", dict(probes=30, write_back=True)),
    ("corrected_cache", dict(corrector="kernel", cache_refresh=2)),
    ("refreshed_cache", dict(cache_refresh=3)),
    ("static_negatives", {}),
    ("stale_cache", dict(cache_oldest=9)),
    ("contaccum_corrected", BANKED),
    ("contaccum_corrected", dict(BANKED, corrector="mlp")),
]


@pytest.mark.parametrize("method, fields", ALL)
def test_an_update_that_is_left_is_taken_back(toy, method, fields):
    fields = {"accumulation_steps": 2, **fields}
    run, other = run_of(toy, method, **fields), run_of(toy, method, **fields)
    for _ in range(12):
        before = {name: value.clone() for name, value in state(run).items()}
        steps = run.micro_steps()
        next(steps)
        steps.close()
        assert same(state(run), before)
        run.step(), other.step()
    assert same(state(run), state(other))


@pytest.mark.parametrize("method, fields", ALL)
def test_a_saved_run_goes_on_bit_for_bit(toy, tmp_path, method, fields):
    run = run_of(toy, method, **fields)
    for stop in (2, 7):
        while run.step_count < stop:
            run.step()
        run.save(tmp_path)
        again = cl.Run.load(tmp_path, toy)
        assert same(state(run), state(again)) and again.encodes == run.encodes
    for _ in range(5):
        assert run.step()[:4] == again.step()[:4]
    assert same(state(run), state(again))


# with dropout, and enough probes in 9 updates for a corrector to fit
NOISY = dict(
    tower="bert",
    dim=8,
    local_batch=4,
    updates=9,
    warmup=0,
    bank_warmup=0,
    learning_rate=0.01,
    dtype="float32",
    passage_tokens=12,
    query_tokens=8,
)
FITTING = [name for name in CORRECTORS if name != "identity"]
PROBED = dict(memory_size=32, probes=24)
NOISY_RUNS = [
    *(("contaccum_corrected", dict(PROBED, corrector=name)) for name in FITTING),
    *(
        (method, dict(PROBED, corrector="moments"))
        for method in ("contaccum", "pre_batch", "contaccum_no_accum")
    ),
    *(("corrected_cache", dict(corrector=name, probes=24)) for name in ("ridge", "mlp")),
    ("stale_cache", dict(write_back=True, cache_oldest=5)),
    ("oracle_cache", {}),
    ("momentum", dict(memory_size=32)),
    ("contaccum", dict(memory_size=32)),
    ("grad_cache", dict(accumulation_steps=2)),
    ("dpr", {}),
]


@pytest.mark.parametrize("method, fields", NOISY_RUNS)
def test_with_dropout_a_run_depends_on_its_seed_alone_and_resumes_bit_for_bit(
    toy, tmp_path, monkeypatch, method, fields
):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a shared disk can take seconds for it
    torch.manual_seed(0)
    run = run_of(toy, method, **NOISY, **fields)
    assert run.learner.has_dropout
    list(run)
    torch.manual_seed(1)
    stopped = run_of(toy, method, **NOISY, **fields)
    for _ in range(5):
        stopped.step()
    stopped.save(tmp_path)
    torch.manual_seed(2)
    resumed = cl.Run.load(tmp_path, toy)
    abandoned = resumed.micro_steps()
    next(abandoned)
    abandoned.close()
    list(resumed)
    assert same(state(run), state(resumed))
    assert [update[:4] for update in run.history] == [update[:4] for update in resumed.history]
    if "corrector" in fields:
        taught = (
            run.learner.extension("cache").corrector
            if run.learner.extension("cache")
            else run.learner.extension("correction").correctors[1]
        )
        assert taught.corrector.fitted


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(method="stale_cache", hard_negatives=1), "cache gives the hard negatives itself"),
        (dict(method="grad_cache", cache_negatives=2), "method is 'grad_cache'"),
        (dict(write_back=True), "there is no cache: set cache_negatives"),
        (dict(method="dpr", corrector="ridge"), "nothing is stale here"),
        (dict(corrector="ridge"), "set probes to 1 or more"),
        (dict(method="momentum", corrector="ridge", probes=4), "of slow towers"),
        (dict(corrector="magic"), "choose one of identity"),
        (dict(method="oracle_cache", cache_refresh=5), "fixes it at 1"),
    ],
)
def test_settings_that_contradict_each_other_say_so(fields, words):
    with pytest.raises(ValueError, match=words):
        cl.Settings(**fields)


# --- measures -------------------------------------------------------------------------------------


def test_the_gap_of_a_fresh_cache_is_none_and_of_a_corrected_one_smaller(toy):
    gaps = {}
    for method in ("oracle_cache", "stale_cache", "corrected_cache"):
        run = run_of(
            toy,
            method,
            updates=40,
            probes=40 if method == "corrected_cache" else 0,
            **({"corrector": "ridge"} if method == "corrected_cache" else {}),
        )
        for _ in range(39):
            run.step()
        counted = dict(run.encodes)
        if method == "oracle_cache":
            run.learner.extension("cache").refresh(39)
        gaps[method] = cache_gap(run)
        if method != "oracle_cache":
            assert run.encodes == counted
    assert gaps["oracle_cache"]["stale"]["kl"] < 1e-12
    assert gaps["oracle_cache"]["stale"]["overlap"] == 1
    assert gaps["corrected_cache"]["corrected"]["kl"] < 0.5 * gaps["corrected_cache"]["stale"]["kl"]
    assert gaps["stale_cache"]["corrected"] == gaps["stale_cache"]["stale"]
    with pytest.raises(ValueError, match="no cache yet"):
        cache_gap(cl.Run(toy, cl.Settings()))


def test_drift_is_the_mean_square_by_a_loop(toy):
    run = run_of(toy, "dpr", bank_warmup=0)
    probe = DriftProbe(run, count=20)
    seen = {}
    for t in range(7):
        seen[t] = probe.look()
        run.step()
    found = probe.drift(3)
    assert list(found) == [3, 4, 5, 6]
    for t, value in found.items():
        assert (
            abs(
                value
                - sum(
                    float(((a - b) ** 2).sum() / (a**2).sum()) for a, b in zip(seen[t], seen[t - 3])
                )
                / 20
            )
            < 1e-12
        )
    assert probe.drift(50) == {}


def six_updates(toy, **fields):
    """A run of ContAccum with a bank that is three updates old."""
    run = run_of(toy, "contaccum", memory_size=30, accumulation_steps=2, bank_warmup=0, **fields)
    for _ in range(6):
        run.step()
    return run


def test_the_gradient_error_is_none_where_nothing_moved(toy):
    errors = gradient_error(six_updates(toy, learning_rate=1e-8))
    assert sorted(errors) == [1, 2, 3]
    for cosine, error in errors.values():
        assert cosine > 1 - 1e-9
        assert error < 1e-5


def test_the_gradient_error_grows_with_age(toy):
    errors = gradient_error(six_updates(toy))
    assert sorted(errors) == [1, 2, 3]
    assert errors[3][1] > errors[1][1] > 1e-3
    assert errors[3][0] < errors[1][0] < 1


def test_the_gradient_error_changes_no_run(toy):
    run = six_updates(toy)
    before = state(run)
    gradient_error(run)
    assert same(state(run), before)
    assert all(tower.accumulate_embedding_grad for tower in run.learner.towers)


def test_what_is_measured_with_dropout_is_the_same_twice(toy):
    run = run_of(toy, "contaccum_corrected", **NOISY, **PROBED)
    cached = run_of(toy, "corrected_cache", **NOISY, probes=24)
    for _ in range(6):
        run.step(), cached.step()
    run.query_tower.model.embeddings.eval()  # a layer that its owner keeps without dropout
    modes = [layer.training for tower in run.learner.towers for layer in tower.modules()]
    before = state(run)
    measures = [
        lambda: gradient_error(run),
        lambda: cl.similarity_mass(run),
        lambda: cl.similarity_mass(run, fresh=True),
        lambda: stale.bank_error(run),
        lambda: cl.activation_memory(run, 4),
        lambda: cache_gap(cached),
        lambda: DriftProbe(run, count=9).look().tolist(),
    ]
    for measure in measures:
        torch.manual_seed(0)
        generator = torch.get_rng_state()
        value = measure()
        assert torch.equal(torch.get_rng_state(), generator)
        torch.manual_seed(1)
        assert measure() == value
    assert modes == [layer.training for tower in run.learner.towers for layer in tower.modules()]
    assert same(state(run), before) and all(tower.training for tower in run.learner.towers)

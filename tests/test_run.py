"""Run: order, interruption, save and resume, bad input."""

import json
import math
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.core.checkpoint import tensors_of
from contaccum_lite.data.toy import toy_pairs
from contaccum_lite.core.batches import BatchSampler

HERE = Path(__file__).parent
SMALL = dict(dim=16, local_batch=4, accumulation_steps=3, updates=12, warmup=3, passage_tokens=16)


def weights(run):
    return {
        f"{n}.{name}": p.detach().clone()
        for n, t in enumerate(run.learner.towers)
        for name, p in t.state_dict().items()
    }


def state(run):
    """Everything that the next step depends on."""
    run.cancel_update()
    return weights(run) | tensors_of(run) | {"step": torch.tensor(run.step_count)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def settings(method="contaccum", **fields):
    memory = {} if "memory_size" in cl.PRESETS[method]["fixed"] else dict(memory_size=20)
    free = {k: v for k, v in SMALL.items() if k not in cl.PRESETS[method]["fixed"]}
    return cl.Settings.preset(method, **{**free, **memory, **fields})


# --- order ----------------------------------------------------------------------------------------


def test_every_pair_once_an_epoch_and_the_same_for_every_method(toy):
    feeds = []
    for method, fields in (("contaccum", {}), ("grad_accum", {}), ("dpr", dict(local_batch=12))):
        feed = cl.Run(toy, settings(method, **fields)).sampler
        epoch = [
            torch.cat([b.pair_ids for b in feed.batches(u)]).tolist()
            for u in range(feed.updates_per_epoch)
        ]
        assert Counter(i for update in epoch for i in update) == Counter(range(512))
        assert [len(u) for u in epoch] == [12] * 42 + [
            8
        ]  # 512 = 42 · 12 + 8: the last update is ragged
        feeds.append(epoch + [torch.cat([b.pair_ids for b in feed.batches(44)]).tolist()])
    assert feeds[0] == feeds[1] == feeds[2]
    assert feeds[0][1] != feeds[0][43]  # another shuffle in the next epoch


def test_hard_negatives_belong_to_their_pair_and_change_over_epochs(toy):
    feed = cl.Run(toy, settings(hard_negatives=2)).sampler
    seen = {}
    for update in range(3 * feed.updates_per_epoch):
        for batch in feed.batches(update):
            for n, pair in enumerate(batch.pair_ids.tolist()):
                chosen = batch.hard_ids[2 * n : 2 * n + 2].tolist()
                allowed = {toy.row_of[p.id] for p in toy.train[pair].hard_negatives}
                assert set(chosen) <= allowed
                seen.setdefault(pair, set()).add(tuple(chosen))
    assert any(len(s) > 1 for s in seen.values())


def test_pairs_without_a_hard_negative_are_dropped_and_it_is_said(jsonl):
    rows = [
        dict(
            query=f"question {n}",
            passage=f"passage {n}",
            **({"hard_negatives": ["other"]} if n % 3 else {}),
        )
        for n in range(30)
    ]
    pairs = cl.load_pairs(f"jsonl:{jsonl(rows)}")
    without = sum(not p.hard_negatives for p in pairs.train)
    run = cl.Run(pairs, settings(hard_negatives=1, updates=2))
    assert len(run.sampler.rows) == len(pairs.train) - without > 0
    assert f"{without} of {len(pairs.train)} training pairs have no hard negative" in run.notes[-1]
    assert cl.Run(pairs, settings(updates=2)).notes == ()


def test_same_seed_same_run_other_seed_other_run(toy):
    a, b, c = (cl.Run(toy, settings(seed=seed)) for seed in (1, 1, 2))
    for run in (a, b, c):
        for _ in range(3):
            run.step()
    assert same(state(a), state(b)) and not same(state(a), state(c))


def test_towers_start_equal_and_are_two(toy):
    run = cl.Run(toy, settings())
    assert all(
        torch.equal(p, q)
        for p, q in zip(run.query_tower.parameters(), run.passage_tower.parameters())
    )
    run.step()
    assert not torch.equal(run.query_tower.embedding.weight, run.passage_tower.embedding.weight)


def test_the_global_generator_is_left_alone(toy):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run = cl.Run(toy, settings(tower="bert", hard_negatives=1))
    run.step()
    run.evaluate()
    assert torch.equal(before, torch.get_rng_state())


def test_learning_rate_warms_up_and_decays(toy):
    run = cl.Run(toy, settings(updates=10, warmup=4, learning_rate=1.0))
    rates = [run.learning_rate(step) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0
    assert all(math.isclose(a - b, 1 / 6) for a, b in zip(rates[4:], rates[5:])) and rates[9] > 0


def test_update_record(toy):
    run = cl.Run(toy, settings(clip_norm=0.0))
    micros = []
    for micro in run.micro_steps():
        micros.append(micro)
        norms = [
            math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in t.parameters()))
            for t in run.learner.towers
        ]
    update = run.history[-1]
    assert math.isclose(update.loss, sum(m.loss for m in micros) / 3)
    assert math.isclose(update.grad_norm_query, norms[0], rel_tol=1e-5) and math.isclose(
        update.grad_norm_passage, norms[1], rel_tol=1e-5
    )
    assert (
        math.isclose(update.grad_norm_ratio, norms[1] / norms[0], rel_tol=1e-5)
        and cl.grad_norm_ratio(run) == update.grad_norm_ratio
    )
    assert update.negatives == 4 + 8 - 1 and update.step == 1 and update.seconds > 0


def test_clip_scales_both_towers_alike(toy):
    runs = [cl.Run(toy, settings(clip_norm=clip)) for clip in (0.0, 1e-3)]
    ratios = [run.step().grad_norm_ratio for run in runs]
    assert ratios[0] == ratios[1]


def test_iteration_ends_and_a_further_step_says_so(toy):
    run = cl.Run(toy, settings(updates=3))
    assert [u.step for u in run] == [1, 2, 3] and list(run) == []
    with pytest.raises(RuntimeError, match="all 3 updates"):
        run.step()


def test_evaluation_touches_nothing(toy):
    a, b = cl.Run(toy, settings()), cl.Run(toy, settings())
    for _ in range(4):
        a.step()
        b.step()
        b.evaluate(), b.search("baba"), cl.similarity_mass(b)
    assert same(state(a), state(b))


def test_a_large_corpus_trains_and_ranks_the_same(toy, monkeypatch):
    """Above a size only the passages that training meets are tokenized ahead.

    The corpus goes through in parts.
    """
    plain = cl.Run(toy, settings(hard_negatives=1))
    for module in ("batches", "retriever"):
        monkeypatch.setattr(f"contaccum_lite.core.{module}.SMALL_CORPUS", 100)
    large = cl.Run(toy, settings(hard_negatives=1))
    assert len(large.sampler.tokenized_rows) == 512 < len(plain.sampler.tokenized_rows) == 640
    for _ in range(4):
        large.step(), plain.step()
    assert same(state(large), state(plain)) and large.evaluate() == plain.evaluate()


# --- interruption ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["contaccum", "grad_cache", "momentum", "contaccum_no_past"])
def test_an_update_left_halfway_is_taken_back(toy, method):
    run, plain = cl.Run(toy, settings(method)), cl.Run(toy, settings(method))
    for update in range(6):
        before = state(run)
        steps = run.micro_steps()
        for _ in range(update % 3 + 1):
            next(steps)
        if update % 2:
            steps.close()
            assert same(before, state(run))
        run.step()  # where it was not closed, the new step takes the old one back
        plain.step()
    assert same(state(run), state(plain))


def test_a_stale_generator_cannot_go_on(toy):
    run = cl.Run(toy, settings())
    steps = run.micro_steps()
    next(steps)
    run.step()
    with pytest.raises(RuntimeError, match="undone"):
        next(steps)
    assert run.step_count == 1


@pytest.mark.parametrize("method", ["contaccum", "momentum", "grad_cache"])
def test_ctrl_c_at_any_line(toy, method):
    """A real SIGINT at 25 random lines of the library while it trains.

    The run ends as if nothing had happened.
    """
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where the tests were started in the background
    plain = cl.Run(toy, settings(method, updates=4))
    list(plain)
    expected, draw, hits = state(plain), random.Random(0), 0
    for _ in range(25):
        run, countdown = cl.Run(toy, settings(method, updates=4)), [draw.randrange(1, 1500)]

        def trace(frame, event, arg):
            if "contaccum_lite" not in frame.f_code.co_filename:
                return None
            countdown[0] -= 1
            if countdown[0] == 0:
                signal.raise_signal(signal.SIGINT)
            return trace

        while run.step_count < 4:
            sys.settrace(trace)
            try:
                run.step()
            except KeyboardInterrupt:
                hits += 1
            finally:
                sys.settrace(None)
        assert same(state(run), expected) and [u.loss for u in run.history] == [
            u.loss for u in plain.history
        ]
    signal.signal(signal.SIGINT, before)
    assert hits >= 20


def test_divergence_is_a_sentence_and_leaves_the_weights(toy):
    run = cl.Run(toy, settings())
    run.step()
    before = state(run)
    with torch.no_grad():
        kept = run.query_tower.norm.weight.clone()
        run.query_tower.norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        run.step()
    with torch.no_grad():
        run.query_tower.norm.weight.copy_(kept)
    assert same(before, state(run))


# --- save and resume ------------------------------------------------------------------------------

RESUME = """
import sys, torch
torch.set_num_threads(1)
import contaccum_lite as cl
run = cl.Run.load(sys.argv[1], cl.load_pairs("toy"))
assert run.step_count == int(sys.argv[2]), run.step_count
list(run)
run.save(sys.argv[1])
"""


@pytest.mark.parametrize(
    "method, extra, stop",
    [
        ("contaccum", dict(hard_negatives=1), 1),
        ("contaccum", {}, 5),
        ("momentum", {}, 7),
        ("grad_cache", dict(tower="bert", dim=16), 4),
        ("dpr", dict(shared=True), 11),
        ("pre_batch_no_past", {}, 3),
    ],
)
def test_resume_in_a_new_process_is_bit_for_bit(toy, tmp_path, method, extra, stop):
    plain = cl.Run(toy, settings(method, **extra))
    list(plain)
    run = cl.Run(toy, settings(method, **extra))
    for _ in range(stop):
        run.step()
    run.save(tmp_path / "run")
    subprocess.run(
        [sys.executable, "-c", RESUME, tmp_path / "run", str(stop)], check=True, cwd=HERE
    )
    ended = cl.Run.load(tmp_path / "run", toy)
    assert same(state(ended), state(plain))
    assert [u[:6] for u in ended.history] == [u[:6] for u in plain.history]
    assert ended.evaluate() == plain.evaluate()


def test_resume_after_every_update(toy, tmp_path):
    plain = cl.Run(toy, settings())
    list(plain)
    run = cl.Run(toy, settings())
    while run.step_count < run.settings.updates:
        run.step()
        run.save(tmp_path)
        run = cl.Run.load(tmp_path, toy)
    assert same(state(run), state(plain))


def test_a_save_that_fails_leaves_the_last_one(toy, tmp_path, monkeypatch):
    run = cl.Run(toy, settings())
    run.step()
    run.save(tmp_path)
    before = state(run)
    run.step()
    monkeypatch.setattr(
        "safetensors.torch.save_file",
        lambda *a, **k: (_ for _ in ()).throw(OSError("No space left on device")),
    )
    with pytest.raises(OSError, match="No space"):
        run.save(tmp_path)
    monkeypatch.undo()
    assert same(state(cl.Run.load(tmp_path, toy)), before)
    assert len(list(tmp_path.iterdir())) == 2  # run.json and one state


def test_a_save_in_mid_update_is_of_the_last_whole_one(toy, tmp_path):
    run = cl.Run(toy, settings())
    run.step()
    before = state(run)
    steps = run.micro_steps()
    next(steps)
    run.save(tmp_path)
    assert same(state(cl.Run.load(tmp_path, toy)), before)


def test_nothing_is_pickled(toy, tmp_path):
    run = cl.Run(toy, settings("momentum"))
    run.step()
    run.save(tmp_path)
    suffixes = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_loading_what_is_not_there(toy, tmp_path):
    with pytest.raises(ValueError, match="holds no saved run"):
        cl.Run.load(tmp_path / "nowhere", toy)
    (tmp_path / "run.json").write_text("{broken")
    with pytest.raises(ValueError, match="holds no saved run"):
        cl.Run.load(tmp_path, toy)
    (tmp_path / "run.json").unlink()
    run = cl.Run(toy, settings())
    run.save(tmp_path)
    with pytest.raises(ValueError, match="was trained on other pairs"):
        cl.Run.load(tmp_path, toy_pairs(500, 100, seed=1))
    stored = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(stored | {"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        cl.Run.load(tmp_path, toy)


# --- what it knows --------------------------------------------------------------------------------


def test_search_and_evaluate_agree(toy):
    run = cl.Run(toy, settings(updates=40))
    list(run)
    first = sum(run.search(pair.query, k=1)[0].id == pair.passage_id for pair in toy.test) / len(
        toy.test
    )
    assert math.isclose(first, run.evaluate()["top@1"])
    hits = run.search(toy.test[0].query, k=7)
    assert len(hits) == 7 and [h.score for h in hits] == sorted(
        (h.score for h in hits), reverse=True
    )
    assert hits[0].passage == toy.passages[toy.row_of[hits[0].id]].text
    assert toy.test[0].passage not in repr(hits) and hits[0].title in repr(
        hits
    )  # a kept output shows names, not text


def test_similarity_mass_is_the_same_at_every_age_where_the_softmax_is_uniform(toy):
    run = cl.Run(toy, settings(temperature=1000.0))
    for _ in range(5):
        run.step()
    masses = list(cl.similarity_mass(run).values())
    assert len(masses) > 2
    assert masses == pytest.approx([masses[0]] * len(masses), rel=0.05)
    zeros = torch.zeros_like(run.passage_bank.vectors)
    run.passage_bank.vectors.copy_(zeros)
    for parameter in run.passage_tower.parameters():
        parameter.data.zero_()
    masses = list(cl.similarity_mass(run).values())
    assert masses == pytest.approx([masses[0]] * len(masses), rel=1e-6)


def test_similarity_mass_is_a_loop_over_queries_and_passages(toy):
    run = cl.Run(toy, settings(dtype="float64"))
    for _ in range(5):
        run.step()
    batch = run.sampler.batches(run.step_count)[0]
    vectors = run.learner.encode_without_noise(batch)
    passages = [*vectors.passages, *run.passage_bank.vectors]
    texts = [toy.train[row].passage for row in [*batch.pair_ids, *run.passage_bank.ids]]
    queries = [toy.train[row].query for row in [*batch.pair_ids, *run.passage_bank.ids]]
    ages = [0] * len(vectors.queries) + run.passage_bank.ages(5).tolist()
    weights = {
        column: [] for column in range(len(passages))
    }  # over the queries it is compared with
    for i, query in enumerate(vectors.queries):
        exponentials = {}
        for j, passage in enumerate(passages):
            if texts[j] != texts[i] and queries[j] != queries[i]:
                exponentials[j] = math.exp(float(query @ passage) / run.settings.temperature)
        for j, exponential in exponentials.items():
            weights[j].append(exponential / sum(exponentials.values()))
    expected = {}
    for age in sorted(set(ages)):
        masses = [sum(w) / len(w) for j, w in weights.items() if ages[j] == age and w]
        expected[age] = sum(masses) / len(masses)
    mass = cl.similarity_mass(run)
    assert list(mass) == list(expected)
    assert list(mass.values()) == pytest.approx(list(expected.values()), rel=1e-10)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda run: run.search("  "), "must be a text"),
        (lambda run: run.search("x", k=0), "1 or more"),
        (lambda run: run.evaluate("dev"), "no 'dev' pairs"),
        (cl.grad_norm_ratio, "made no update yet"),
    ],
)
def test_bad_questions(toy, call, words):
    with pytest.raises(ValueError, match=words):
        call(cl.Run(toy, settings()))


def test_a_device_that_is_not_there(toy):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ValueError, match="finds no CUDA device"):
        cl.Run(toy, settings(device="cuda"))


def test_no_training_pairs(jsonl, toy):
    pairs = cl.load_pairs(f"jsonl:{jsonl([dict(query='q', passage='p')])}")
    with pytest.raises(ValueError, match="set hard_negatives=0"):
        BatchSampler(pairs, settings(hard_negatives=1), None)

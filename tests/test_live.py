"""What a run takes on its way: K, N_local, N_memory, the learning rate, the query bank on and off."""

import asyncio
import math
import random

import numpy as np
import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.core.checkpoint import tensors_of
from contaccum_lite.core.cursor import Cursor
from contaccum_lite.data.toy import toy_pairs
from contaccum_lite.lab import player
from contaccum_lite.lab.fields import LIVE_FIELDS
from contaccum_lite.lab.lab import Lab
from contaccum_lite.lab.share_line import parse_share_line

SMALL = dict(dim=8, local_batch=4, accumulation_steps=3, memory_size=24, updates=60, warmup=3)


def weights(run):
    return [p.detach().clone() for tower in run.learner.towers for p in tower.parameters()]


def same_state(run, other):
    """Whether two runs hold the same weights, banks, optimiser and place, to the bit."""
    mine, theirs = tensors_of(run), tensors_of(other)
    return (
        run.settings == other.settings
        and run.step_count == other.step_count
        and run.sampler.locate(run.step_count) == other.sampler.locate(other.step_count)
        and all(torch.equal(a, b) for a, b in zip(weights(run), weights(other), strict=True))
        and mine.keys() == theirs.keys()
        and all(torch.equal(mine[name], theirs[name]) for name in mine)
    )


def numbers(run):
    return [update[:-1] for update in run.history]  # without the seconds


# --- the order of pairs ---------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_cursor_takes_the_epochs_pair_by_pair(toy, world_size):
    """Against a plain list: of each epoch's shuffle, N_local × K pairs at a time."""
    draw, settings = random.Random(world_size), cl.Settings(**SMALL)
    run = cl.Run(toy, settings)
    sampler = run.sampler
    sampler.world_size = world_size
    epoch, left = 0, []
    for update in range(200):
        run.step_count = update
        if draw.random() < 0.2:
            run.change(local_batch=draw.randint(1, 40), accumulation_steps=draw.randint(1, 9))
        if not left:
            left = np.random.default_rng([0, epoch]).permutation(len(toy.train)).tolist()
            epoch += 1
        size = run.settings.local_batch * world_size
        expected, left = (
            left[: size * run.settings.accumulation_steps],
            left[size * run.settings.accumulation_steps :],
        )
        batches = [batch.pair_ids.tolist() for batch in sampler.batches(update)]
        assert sum(batches, []) == expected
        assert all(len(batch) == size for batch in batches[:-1]) and len(batches[-1]) <= size
    assert epoch > 10


def test_a_change_that_is_taken_back_leaves_the_cursor(toy):
    run = cl.Run(toy, cl.Settings(**SMALL))
    for _ in range(50):
        run.step()
        if run.sampler.locate(run.step_count)[0] > 0:
            break
        run.change(accumulation_steps=7)
        run.change(accumulation_steps=3)
        assert run.sampler.cursor == Cursor()
    assert run.step_count == 43  # 512 pairs, 12 an update
    run.change(local_batch=5)
    assert run.sampler.cursor == Cursor(43, 1, 0)
    with pytest.raises(ValueError, match="update 42 came before N_local or K changed: give 43"):
        run.sampler.batches(42)


def test_what_a_run_cannot_take_changes_nothing(toy):
    run, whole = (cl.Run(toy, cl.Settings(**SMALL)) for _ in range(2))
    for _ in range(3):
        run.step(), whole.step()
    for change in (dict(local_batch=0), dict(accumulation_steps=2000), dict(query_bank=3)):
        with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
            run.change(**change)
    assert same_state(run, whole)
    with pytest.raises(ValueError, match="accumulation_steps is 3, but method 'dpr'"):
        cl.Run(toy, cl.Settings.preset("dpr", dim=8)).change(accumulation_steps=3)
    with pytest.raises(ValueError, match="query_bank is True, but method 'pre_batch'"):
        cl.Run(toy, cl.Settings.preset("pre_batch", dim=8)).change(query_bank=True)


# --- the query bank -------------------------------------------------------------------------------


def test_without_its_query_bank_a_run_has_the_loss_of_pre_batch(toy):
    """By autograd, from the formula: local rows alone, the passage bank among the columns."""
    run = cl.Run(toy, cl.Settings(**SMALL, dtype="float64", mask_duplicates=False))
    for _ in range(4):
        run.step()
    run.change(query_bank=False)
    assert run.query_bank.size == 0 and len(run.passage_bank) == 24
    for batch, micro in zip(run.sampler.batches(4), run.micro_steps()):
        ids = micro.column_ids[micro.local :]
        assert micro.scores.shape == (4, 28) and len(ids) == 24
        logsumexp = torch.logsumexp(micro.scores, 1)
        loss = (logsumexp - micro.scores.diagonal()).mean()
        assert math.isclose(micro.loss, loss, rel_tol=1e-12)
    pre_batch = cl.Run(toy, run.settings.replace(method="pre_batch", query_bank=None))
    for name, value in zip(("query_tower", "passage_tower"), run.learner.towers):
        getattr(pre_batch, name).load_state_dict(value.state_dict())
    bank, step = run.passage_bank, run.step_count
    order = bank.order()
    pre_batch.passage_bank.write(bank.ids[order], bank.vectors[order], step - 1)
    pre_batch.set_history(run.history)
    pre_batch.set_place(*run.sampler.locate(step))
    ours, theirs = ([m.loss for m in each.micro_steps()] for each in (run, pre_batch))
    assert np.allclose(ours, theirs, rtol=1e-12)
    assert math.isclose(run.history[-1].grad_norm_ratio, pre_batch.history[-1].grad_norm_ratio)


@pytest.mark.parametrize("hard_negatives", [0, 1])
def test_switched_on_again_both_banks_fill_in_step(toy, hard_negatives):
    run = cl.Run(toy, cl.Settings(**SMALL, hard_negatives=hard_negatives))
    for _ in range(3):
        run.step()
    run.change(query_bank=False)
    run.step()
    run.change(query_bank=True)
    assert [len(bank) for bank in run.learner.banks] == [0, 0, 0]
    for update in (1, 2, 3):
        run.step()
        assert len(run.query_bank) == len(run.passage_bank) == min(24, 12 * update)
        assert run.query_bank.ids.tolist() == run.passage_bank.ids.tolist()
    assert len(run.learner.banks.hard_bank) == 24 * hard_negatives


def test_the_query_bank_off_unbalances_the_gradients(toy):
    """Figure 7 by hand: from random weights, the ratio leaves 1."""
    fields = dict(dim=16, accumulation_steps=4, memory_size=128, learning_rate=0.01, updates=100)
    lab = Lab(toy, **fields, warmup=3, start="random", every=1000)
    lab.run(20)
    lab.query_bank = False
    lab.run(40)
    ratios = [update.grad_norm_ratio for update in lab.training.history]
    assert np.median(ratios[10:20]) < 1.5 < 4 < np.median(ratios[40:60])
    assert f"ratio {ratios[-1]:.2f}" in lab.views.curves.sentence
    assert "No query bank." in lab.views.banks.sentence
    assert lab.views.banks.grids["query"].empty == "the query bank is switched off"
    assert lab.share().endswith("&then=20:query_bank:False")


def change_something(run, draw):
    name = draw.choice(LIVE_FIELDS)
    run.change(**{name: a_value(name, draw)})


def a_value(name, draw):
    return {
        "memory_size": lambda: draw.randrange(0, 60),
        "learning_rate": lambda: 10 ** draw.uniform(-4, -2),
        "accumulation_steps": lambda: draw.randint(1, 6),
        "local_batch": lambda: draw.randint(1, 12),
        "query_bank": lambda: draw.random() < 0.5,
    }[name]()


@pytest.mark.parametrize("hard_negatives", [0, 1])
def test_the_incremental_softmax_follows_all_changes(hard_negatives):
    pairs, fields = toy_pairs(101, 20), {**SMALL, "dtype": "float64", "updates": 80}
    fields["hard_negatives"] = hard_negatives
    runs = [
        cl.Run(pairs, cl.Settings(**fields, similarity=similarity))
        for similarity in ("full", "incremental")
    ]
    draws = [random.Random(3), random.Random(3)]
    for turn in range(80):
        for run, draw in zip(runs, draws):
            if turn % 2:
                change_something(run, draw)
            run.step()
    full, incremental = (np.array(numbers(run)) for run in runs)
    assert runs[1].similarity == "incremental" or not runs[1].settings.has_bank
    assert np.allclose(full, incremental, rtol=1e-9, atol=0)


@pytest.mark.parametrize("similarity", ["full", "incremental"])
@pytest.mark.parametrize("method", ["contaccum", "momentum", "contaccum_corrected", "grad_cache"])
def test_a_changed_run_resumes_to_the_bit(toy, tmp_path, method, similarity):
    fields = {**SMALL, "similarity": similarity}
    if method == "grad_cache":
        fields.pop("memory_size")
    run = cl.Run(toy, cl.Settings.preset(method, **fields))
    draw, again = random.Random(7), None
    for turn in range(24):
        state = draw.getstate()
        for each in filter(None, (run, again)):
            draw.setstate(state)
            name = draw.choice(LIVE_FIELDS)
            if name not in cl.PRESETS[method]["fixed"]:
                each.change(**{name: a_value(name, draw)})
            each.step()
        if again is None or turn % 6 == 5:
            run.save(tmp_path)
            again = cl.Run.load(tmp_path, toy)
    assert same_state(run, again) and numbers(run) == numbers(again)


def test_a_run_saved_before_there_was_a_place_resumes(toy, tmp_path):
    import json

    run = cl.Run(toy, cl.Settings(**SMALL))
    for _ in range(45):  # into the second epoch
        run.step()
    run.save(tmp_path)
    path = tmp_path / "run.json"
    record = json.loads(path.read_text())
    assert record.pop("place") == [1, 24]
    path.write_text(json.dumps(record))
    again = cl.Run.load(tmp_path, toy)
    again.step(), run.step()
    assert same_state(run, again)
    for place in ([1], [1, -2], [0.5, 1], [True, 1], "1", None):
        path.write_text(json.dumps({**record, "place": place}))
        with pytest.raises(ValueError, match="place"):
            cl.Run.load(tmp_path, toy)


# --- the lab --------------------------------------------------------------------------------------


def test_before_the_first_update_every_choice_holds_at_once(toy):
    lab = Lab(toy)
    lab.accumulation_steps = 4
    lab.memory_size = 64
    assert lab.share() == ("method=contaccum&start=pretrained&accumulation_steps=4&memory_size=64")
    assert lab.message == "" and lab.pending == {} and lab.needs_reset == ()
    assert lab.training.settings == lab.settings and not lab.ghosts
    lab.run(2)
    assert lab.micro.of == 4 and lab.training.passage_bank.size == 64
    again = Lab(toy)
    again.load(lab.share())
    again.run(2)
    assert same_state(again.training, lab.training)


@pytest.mark.parametrize(
    "fields",
    [
        dict(seed=3, temperature=2.0, query_bank=False),
        dict(start="random", dim=16, ending="unit"),
        dict(method="dpr", local_batch=12),
        dict(method="momentum", hard_negatives=1, updates=70, warmup=0),
        dict(method="corrected_cache", query_tokens=4),
    ],
)
def test_a_lab_set_by_hand_is_one_made_so(toy, fields):
    lab = Lab(toy, **SMALL)
    lab._do_next_work()  # an evaluation begins, and is begun again
    for name, value in fields.items():
        setattr(lab, name, value)
        assert lab.training.settings == lab.settings and not lab.needs_reset
    made = Lab(toy, lab.settings)
    assert lab.share() == made.share()
    lab.run(3), made.run(3)
    assert same_state(lab.training, made.training) and lab.track.scores == made.track.scores


def test_a_choice_in_the_midst_of_the_first_update_begins_again(toy):
    lab = Lab(toy, **SMALL)
    lab.step("micro-batch")
    lab.accumulation_steps = 2
    assert not lab.mid_update and not len(lab.training.passage_bank)
    lab.step()
    assert lab.micro.of == 2 and lab.training.step_count == 1


def test_what_cannot_be_made_before_the_first_update_is_refused(toy):
    lab = Lab(toy, **SMALL)
    lab.views.controls["seed"].value = 3
    run, settings = lab.training, lab.settings
    assert run.settings.seed == 3
    with pytest.raises(ValueError, match="no encoder could be loaded from 'nope'"):
        lab.tower = "nope"
    assert lab.training is run and lab.settings == settings and lab.message == ""
    assert lab.tower == "bag" and not lab.needs_reset


def test_a_new_pretraining_is_announced_before_it_begins(toy, monkeypatch, tmp_path):
    lab = Lab(toy, **SMALL)
    said, make = [], player.Run
    monkeypatch.setattr(player, "must_pretrain", lambda settings, pairs: settings.dim == 12)

    def make_run(*arguments, **fields):
        said.append(lab.message)
        return make(*arguments, **fields)

    monkeypatch.setattr(player, "Run", make_run)
    lab.dim = 12
    lab.seed = 1
    assert said[0] == (
        "Pre-training the towers for d = 12 on random crops of the passages: this takes some "
        "seconds, once."
    )
    assert lab.message == ""


def test_pretraining_is_due_once_for_a_kind_of_tower(monkeypatch, tmp_path):
    from contaccum_lite.encoders import pretraining

    monkeypatch.setattr(pretraining, "cache_folder", lambda: tmp_path)
    pairs, settings = toy_pairs(40, 10), cl.Settings(dim=8)
    must = pretraining.must_pretrain
    assert must(settings, pairs)
    assert not must(settings.replace(start="random"), pairs)
    cl.Run(pairs, settings)
    assert not must(settings, pairs) and not must(settings.replace(seed=3), pairs)
    assert must(settings.replace(dim=6), pairs)
    assert not must(settings, toy_pairs(40, 10))  # in the cache


def test_towers_are_taken_over_where_they_stay(toy):
    lab = Lab(toy, **SMALL)
    lab.run(0)
    tower = lab.training.query_tower
    lab.accumulation_steps = 5
    assert lab.training.query_tower is tower
    lab.seed = 3
    assert lab.training.query_tower is not tower


def test_dpr_says_that_it_takes_one_batch(toy):
    lab = Lab(toy, **SMALL)
    lab.method = "dpr"
    assert lab.message == (
        "DPR takes all pairs of an update, N_local × K, as one batch: N_local = 12, K = 1, "
        "so 12 pairs are in memory at once."
    )
    lab.method = "contaccum"
    assert lab.message == "" and (lab.local_batch, lab.accumulation_steps) == (4, 3)
    lab.run(1)
    lab.method = "dpr"
    assert lab.message == (
        "Press Reset to train with method = DPR, N_local = 12, K = 1, N_memory = 0, M_q = False, "
        "M_p = False. Until then this run goes on with method = ContAccum, N_local = 4, K = 3, "
        "N_memory = 24, M_q = True, M_p = True. "
        "DPR takes all pairs of an update, N_local × K, as one batch."
    )
    lab.run(1)
    assert lab.micro.of == 3
    lab.reset()
    lab.run(1)
    assert (lab.micro.of, lab.micro.local) == (1, 12)
    lab.local_batch = 6
    lab.run(1)
    assert (lab.micro.of, lab.micro.local) == (1, 6)
    assert lab.share().endswith("&then=1:local_batch:6")


def test_a_lined_up_race_follows_the_sliders_until_it_begins(toy):
    lab = Lab(toy, **SMALL)
    lab.line_up(["grad_accum", "contaccum"])
    lab.accumulation_steps = 2
    assert lab.message == "In a row: GradAccum, ContAccum."
    lab.updates = 2
    lab.run()
    assert [
        (t.run.settings.method, t.run.settings.accumulation_steps, t.run.step_count)
        for _, t in lab.tracks()
    ] == [("grad_accum", 2, 2), ("contaccum", 2, 2)]


def test_a_loaded_lines_changes_stay_when_something_else_is_chosen(toy):
    lab = Lab(toy)
    line = cl.Settings(**SMALL).share() + "&then=2:query_bank:False,3:accumulation_steps:2"
    lab.load(line)
    lab.seed = 5
    lab.run(4)
    assert lab.share() == cl.Settings(**SMALL, seed=5).share() + line[line.index("&then") :]
    lab.load(line)
    lab.method = "grad_accum"  # it has no query bank
    lab.run(4)
    assert lab.share().endswith("&then=3:accumulation_steps:2")


def test_sliders_of_the_next_run_leave_the_run_under_way(toy):
    lab, whole = Lab(toy, **SMALL), Lab(toy, **SMALL)
    lab.run(2)
    lab.method = "dpr"
    lab.local_batch, lab.learning_rate = 7, 0.005
    lab.start = "random"
    lab.method = "contaccum"
    lab.memory_size = 8
    assert set(lab.needs_reset) == {"start", "memory_size", "local_batch"}
    lab.run(2), whole.run(4)
    assert same_state(lab.training, whole.training)
    lab.start = "pretrained"
    assert lab.needs_reset == () and lab.training.passage_bank.size == 8


def test_changes_hold_at_the_next_update_while_it_plays(toy):
    async def main():
        lab = Lab(toy, **SMALL)
        lab.play()
        while lab.training.step_count < 3:
            await asyncio.sleep(0)
        changed_at = lab.training.step_count  # 3 or more: a slice may hold several updates
        lab.accumulation_steps, lab.query_bank = 5, False
        lab.local_batch = 2
        assert lab.playing and lab.needs_reset == ()
        while lab.training.step_count < changed_at + 2:
            await asyncio.sleep(0)
        lab.stop()
        return lab

    lab = asyncio.run(asyncio.wait_for(main(), 60))
    again = Lab(toy)
    again.load(lab.share())
    again.run(lab.training.step_count)
    assert {change.name for change in lab.track.changes} == {
        "accumulation_steps",
        "local_batch",
        "query_bank",
    }
    assert same_state(again.training, lab.training)


def check_views(lab):
    """Banks, traits and pictures say the same."""
    run, settings = lab.training, lab.training.settings
    query, passage = run.query_bank, run.passage_bank
    assert passage.size == settings.memory_size
    assert query.size == settings.memory_size * settings.query_bank
    assert len(query) in (0, len(passage))
    if len(query):
        assert query.ids.tolist() == passage.ids.tolist()
        assert query.order().tolist() == passage.order().tolist()
    assert lab.needs_reset == () and lab.message in ("", player.BANKS_BEGIN_EMPTY)
    lab.views.draw()
    data = lab.views.banks.data()
    assert data["query"]["filled"] == len(query) and data["passage"]["size"] == passage.size
    assert f"update {run.step_count}" in lab.summary or not run.step_count
    for name in LIVE_FIELDS:
        assert lab.views.controls[name].value == getattr(lab, name)


@pytest.mark.parametrize("similarity", ["full", "incremental"])
def test_a_thousand_changes_during_play_leave_all_consistent(tmp_path, similarity):
    """Run, banks and views agree; the line makes the run again, saved and resumed in between."""
    pairs, draw = toy_pairs(203, 20), random.Random(similarity)
    lab = Lab(pairs, **{**SMALL, "updates": 400}, similarity=similarity, every=100)
    lab.unobserve(lab.views._on_tick, "ticks")  # drawn when they are looked at
    for turn in range(1000):
        name = draw.choice(LIVE_FIELDS)
        setattr(lab, name, a_value(name, draw))
        for _ in range(draw.choice([0, 0, 0, 1, 2])):
            lab._do_next_work()  # a piece of work, as the player does it
        if turn % 100 == 50:
            check_views(lab)
        if turn % 250 == 200:  # saved, and another process goes on
            lab.stop()
            lab.training.save(tmp_path)
            lab.track.run = cl.Run.load(tmp_path, pairs)
            lab.track.run.learner.observed = True
            lab.stop()
    lab.stop()
    check_views(lab)
    assert lab.training.settings == lab.settings
    run, line = lab.training, lab.share()
    assert run.step_count > 50 and len(lab.track.changes) > 100
    assert parse_share_line(line).settings == lab.track.start
    again = Lab(pairs, every=100)
    again.load(line)
    again.run(run.step_count)
    again.stop()
    assert again.share() == line and again.settings == lab.settings
    assert numbers(again.training) == numbers(run)
    assert same_state(again.training, run)

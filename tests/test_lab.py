"""The lab's state and player, without a picture and without a browser."""

import asyncio
import gc
import random
import re
import threading

import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.lab import cell_registry, player
from contaccum_lite.lab.lab import Lab
from contaccum_lite.utils.text import one_line
from contaccum_lite.core.settings import PRESETS
from contaccum_lite.lab.fields import LIVE_FIELDS
from contaccum_lite.lab.history import GHOSTS, Track, names, table

SMALL = dict(updates=12, accumulation_steps=3, memory_size=16, dim=16, every=4)


def small(pairs, **fields):
    return Lab(pairs, **{**SMALL, **fields})


def losses(lab):
    return [u.loss for u in lab.training.history]


# --- what can be set ------------------------------------------------------------------------------


def test_every_setting_is_a_trait_with_its_default_and_range(toy):
    lab = Lab(toy)
    assert lab.settings == cl.Settings() == lab.training.settings
    assert all(
        lab.trait_metadata(n, "help") == f.metadata["help"]
        for n, f in cl.Settings.__dataclass_fields__.items()
    )
    with pytest.raises(ValueError, match="local_batch is 0: it must be from 1 to 4096"):
        lab.local_batch = 0
    with pytest.raises(ValueError, match="memory_size is 'x'"):
        lab.memory_size = "x"
    with pytest.raises(ValueError, match="query bank needs passage_bank"):
        lab.passage_bank = False
    assert lab.settings == cl.Settings() and lab.message == ""
    with pytest.raises(ValueError, match="every is 0"):
        Lab(toy, every=0)


@pytest.mark.parametrize("method", PRESETS)
def test_a_method_brings_what_it_fixes_and_gives_it_back(toy, method):
    lab = Lab(toy, local_batch=4, accumulation_steps=8, memory_size=64, seed=3)
    lab.method = method
    s = lab.settings
    for name, value in PRESETS[method]["fixed"].items():
        assert getattr(s, name) == value and lab.fixed(name)
    assert s.seed == 3
    assert s.total_batch == (4 if method == "contaccum_no_accum" else 32)
    if method == "grad_accum":
        with pytest.raises(ValueError, match="fixes it at 0"):
            lab.memory_size = 8
    lab.method = "contaccum"
    assert lab.settings == cl.Settings(local_batch=4, accumulation_steps=8, memory_size=64, seed=3)


def test_dpr_takes_the_whole_batch_and_keeps_the_total(toy):
    lab = Lab(toy, local_batch=4, accumulation_steps=8)
    lab.method = "dpr"
    assert (lab.local_batch, lab.accumulation_steps) == (32, 1)
    lab.local_batch = 64
    lab.method = "grad_accum"
    assert (lab.local_batch, lab.accumulation_steps) == (8, 8)


# --- what is refused changes nothing --------------------------------------------------------------

FIELDS = cl.Settings.__dataclass_fields__


def differing(lab):
    """The settings in which the sliders differ from the run."""
    run, sliders = lab.training.settings, lab.settings
    return {name for name in FIELDS if getattr(sliders, name) != getattr(run, name)}


CACHES = [method for method in PRESETS if cl.Settings.preset(method).cache_negatives]


def everything(lab):
    """All of a lab that a refused choice could change."""
    state = [
        lab.settings,
        dict(lab._overrides),
        lab.pending,
        lab.hide,
        lab.message,
        lab.ghosts,
        lab.training,
        lab.training.settings,
        lab._work_iterator,
        lab._queue,
        lab._scheduled_changes,
        lab.playing,
        lab.share(),
        [bank.state_dict() for bank in lab.training.learner.banks],
    ]
    return [
        [{name: tensor.tolist() for name, tensor in bank.items()} for bank in part]
        if part is state[-1]
        else part
        for part in state
    ]


def test_every_method_can_be_chosen_whatever_was_chosen_before(toy):
    """What does not fit takes the method's value, and comes back with a method that it fits."""
    for method in PRESETS:
        for fields in (
            dict(hard_negatives=1),
            dict(method="contaccum", cache_negatives=3),
            dict(method="contaccum_corrected", memory_size=64),
            dict(method="refreshed_cache", hard_negatives=1, cache_negatives=0, cache_refresh=0),
            dict(local_batch=4096, accumulation_steps=1024),
        ):
            lab = (
                Lab(toy, **{"dim": 8, **fields}) if "local_batch" not in fields else Lab(toy, dim=8)
            )
            for name, value in fields.items():
                setattr(lab, name, value)
            before = lab.settings
            lab.method = method
            chosen = lab.settings
            assert chosen.method == method
            assert all(getattr(chosen, n) == value for n, value in PRESETS[method]["fixed"].items())
            assert lab.training.settings == chosen and not lab.pending
            for name in ("seed", "temperature", "updates"):
                setattr(lab, name, 7)
                assert getattr(lab, name) == 7
            lab.method = before.method
            assert lab.settings == before.replace(seed=7, temperature=7.0, updates=7)


@pytest.mark.parametrize("method", CACHES)
def test_a_cache_takes_the_place_of_hard_negatives_until_one_goes_back(toy, method):
    lab = Lab(toy, dim=8, updates=3, hard_negatives=1)
    lab.method = method
    assert (lab.hard_negatives, lab.cache_negatives) == (0, 2)
    lab.memory_size = 0
    with pytest.raises(ValueError, match="fixes it at 0"):
        lab.memory_size = 8
    lab.reset()
    lab.method = "contaccum"
    lab.reset()
    assert lab.training.settings == cl.Settings(dim=8, updates=3, hard_negatives=1)


def test_a_row_of_methods_is_lined_up_whatever_was_chosen(toy):
    lab = Lab(toy, dim=8, updates=1, accumulation_steps=1, hard_negatives=1)
    lab.race(["stale_cache", "contaccum", "grad_cache"])
    assert [
        (t.run.settings.method, t.run.settings.hard_negatives, t.run.step_count)
        for _, t in lab.tracks()
    ] == [("stale_cache", 0, 1), ("contaccum", 1, 1), ("grad_cache", 1, 1)]


@pytest.mark.parametrize(
    "act, words",
    [
        (lambda lab: setattr(lab, "method", None), "method is None"),
        (lambda lab: setattr(lab, "method", "nothing"), "method is 'nothing'"),
        (lambda lab: setattr(lab, "method", ["dpr"]), "method is"),
        (lambda lab: setattr(lab, "tower", None), "tower is None"),
        (lambda lab: setattr(lab, "dim", None), "dim is None"),
        (lambda lab: setattr(lab, "dim", float("nan")), "dim is nan"),
        (lambda lab: setattr(lab, "memory_size", -1), "memory_size is -1"),
        (lambda lab: setattr(lab, "passage_bank", False), "passage_bank is False"),
        (lambda lab: setattr(lab, "cache_refresh", 5), "there is no cache"),
        (lambda lab: setattr(lab, "corrector", "ridge"), "probes is 0"),
        (lambda lab: lab.line_up(["contaccum", "nothing"]), "method is 'nothing'"),
        (lambda lab: lab.line_up([]), "methods is empty"),
        (lambda lab: lab.line_up([None]), "method is None"),
        (lambda lab: lab.race(["dpr", 3]), "method is 3"),
        (lambda lab: lab.reset(cl.Settings(tower="nope")), "nope"),
        (lambda lab: setattr(lab, "hide", ("x",)), "hide has 'x'"),
    ],
)
def test_a_refused_choice_changes_nothing(toy, act, words):
    lab, whole = small(toy), small(toy)
    whole.run()
    lab.run(2)
    lab.step("micro-batch")
    lab.message = "as it was"
    before = everything(lab)
    with pytest.raises(ValueError, match=words):
        act(lab)
    assert everything(lab) == before and lab.mid_update
    for name, control in lab.views.controls.items():
        value = getattr(lab, name)
        assert control.value == ("off" if value is None else value)  # of mask_margin
    lab.run()
    assert losses(lab) == losses(whole)


def test_a_group_of_changes_is_taken_whole_or_not(toy):
    lab = small(toy)
    before = everything(lab)
    for group, words in (
        (dict(query_bank=True, passage_bank=False), "a query bank needs passage_bank=True"),
        (dict(seed=3, temperature=-1.0), "temperature is -1.0"),
        (dict(method="dpr", hard_negatives=1, memory_size=5), "fixes it at 1"),
    ):
        with pytest.raises(ValueError, match=words), lab.hold_trait_notifications():
            for name, value in group.items():
                setattr(lab, name, value)
        assert everything(lab) == before
    with lab.hold_trait_notifications():
        lab.passage_bank = lab.query_bank = False
    assert (lab.query_bank, lab.passage_bank) == (False, False) and lab.message == ""
    assert lab.training.settings == lab.settings
    lab.run(1)
    with lab.hold_trait_notifications():
        lab.passage_bank = lab.query_bank = True
    assert "M_q = True, M_p = True" in lab.message  # one needs the other
    assert lab.needs_reset == ("query_bank", "passage_bank")


@pytest.mark.parametrize("turns, under_way", [(3000, True), (250, False)])
def test_random_choices_of_all_settings_leave_a_whole(toy, turns, under_way):
    """Some thousands: each is taken, or refused in a sentence and leaves all as it was."""
    draw, refused = random.Random(5), 0
    values = {
        "int": lambda f: draw.choice(
            [
                f.metadata["low"],
                f.metadata["default"],
                draw.randint(0, 40),
                draw.randint(0, 3),
                f.metadata["high"],
            ]
        ),
        "float": lambda f: draw.choice(
            [
                f.metadata["low"],
                f.metadata["default"],
                draw.uniform(0, 9),
                f.metadata["high"],
                float("nan"),
            ]
        ),
        "bool": lambda f: draw.random() < 0.5,
        "str": lambda f: draw.choice(
            [*(f.metadata["choices"] or ("bag", "bert", "nope", "")), "x"]
        ),
    }
    other = (None, "", "x", -1, True, 1.5, [], 10**30, float("inf"))
    lab = Lab(
        toy, dim=8, local_batch=4, accumulation_steps=2, memory_size=16, updates=50, every=1000
    )
    lab.run(int(under_way))
    for turn in range(turns):
        name = draw.choice(
            [
                *FIELDS,
                *["method"] * 6,
                "memory_size",
                "hard_negatives",
                "cache_negatives",
                "corrector",
                "probes",
            ]
        )
        kind = str(FIELDS[name].type).split(" |")[0]
        value = draw.choice(other) if draw.random() < 0.1 else values[kind](FIELDS[name])
        largest = {"memory_size": 300, "local_batch": 40, "accumulation_steps": 9}.get(name)
        if largest and isinstance(value, int):  # a run takes these, and a test has to bear it
            value = min(value, largest)
        if name == "dim" and not under_way:  # of each, towers would be pretrained
            value = draw.choice((2, 8, 16, -1))
        before, sentence = everything(lab), ""
        try:
            setattr(lab, name, value)
        except ValueError as error:
            sentence = str(error)
            refused += 1
        if sentence:
            assert everything(lab) == before, (name, value, sentence)
            assert "\n" not in sentence, (name, value, sentence)
            assert 20 < len(sentence) < 1000, (name, value, sentence)
        else:
            settings = lab.settings
            assert value is None or getattr(settings, name) == value, (name, value)
            assert lab._shown == settings == cl.Settings.parse(settings.share())
            assert all(getattr(lab, n) == getattr(settings, n) for n in FIELDS)
            live = {n for n in (*LIVE_FIELDS, "similarity") if lab.can_change(n)}
            assert set(lab.pending) == differing(lab) - live
            assert lab.training.step_count or not lab.pending
        if turn % 500 == 499:  # a new run, as large as a test can bear
            lab.reset(
                cl.Settings.preset(draw.choice(list(PRESETS)), dim=8, local_batch=4, updates=50)
            )
            lab.run(1)
        if turn % 50 == 0 and under_way and lab.training.step_count < 40:
            lab.step(draw.choice(["update", "micro-batch"]))
    assert turns / 10 < refused < 0.6 * turns


# --- training -------------------------------------------------------------------------------------


def test_run_is_the_run(toy):
    lab = small(toy)
    lab.run()
    alone = cl.Run(toy, lab.settings)
    assert losses(lab) == [u.loss for u in alone] and lab.done
    assert [u for u, _ in lab.track.top20] == [0, 4, 8, 12]
    assert lab.track.scores[-1] == (12, alone.evaluate())
    assert lab.track.top20[-1][1] == alone.evaluate()["top@20"]
    assert lab.track.mrr[-1][1] == alone.evaluate()["mrr@10"]
    assert f"MRR@10 {alone.evaluate()['mrr@10']:.1%}" in lab.summary
    assert f"Top@20 {alone.evaluate()['top@20']:.1%}" in lab.summary
    assert f"{alone.history[-1].grad_norm_ratio:.2f}" in lab.summary


@pytest.mark.parametrize("start", ["pretrained", "random"])
def test_the_first_evaluation_is_the_untrained_towers(toy, start):
    lab = small(toy, start=start)
    lab.run(1)
    untrained = cl.Run(toy, lab.settings).evaluate()
    assert lab.track.scores[0] == (0, untrained) and lab.track.before == untrained


def evaluations(monkeypatch):
    """The updates at which a run is really evaluated, from now on."""
    made, evaluate = [], cl.Run.evaluate

    def count(run, split="test"):
        made.append(run.step_count)
        return evaluate(run, split)

    monkeypatch.setattr(cl.Run, "evaluate", count)
    return made


def test_a_race_evaluates_its_common_start_once(monkeypatch):
    made = evaluations(monkeypatch)
    lab = small(cl.load_pairs("toy"), updates=1)
    lab.race()
    assert made.count(0) == 1 and made.count(1) == 4


@pytest.mark.parametrize(
    "fields", [dict(seed=7), dict(dim=8), dict(ending="unit"), dict(query_tokens=2)]
)
def test_another_start_is_evaluated_by_itself(fields):
    pairs = cl.load_pairs("toy")
    first = small(pairs, start="random", ending="none")  # it has the weights of ending="unit"
    first.run(1)
    lab = Lab(pairs, **{**SMALL, "start": "random", "ending": "none", **fields})
    lab.run(1)
    assert lab.track.before == cl.Run(pairs, lab.settings).evaluate() != first.track.before


def test_weights_changed_by_hand_are_evaluated_as_they_are():
    pairs = cl.load_pairs("toy")
    small(pairs).run(1)
    lab = small(pairs)
    with torch.no_grad():
        for parameter in lab.training.passage_tower.parameters():
            parameter.copy_(torch.rand_like(parameter))
    expected = lab.training.evaluate()
    lab.run(1)
    assert lab.track.before == expected


def test_stop_during_the_first_evaluation_leaves_it_to_the_next(monkeypatch):
    made = evaluations(monkeypatch)
    lab = small(cl.load_pairs("toy"))
    assert lab._do_next_work() == "look"
    lab.stop()
    assert lab.track.scores == [] and made == []
    lab.run(1)
    assert [update for update, _ in lab.track.scores] == [0]


@pytest.mark.parametrize(
    "start, words",
    [("pretrained", "fine-tuned from a pretrained start"), ("random", "from random weights")],
)
def test_the_summary_names_the_start(toy, start, words):
    lab = small(toy, start=start)
    assert words in lab.summary
    lab.run(1)
    assert words in lab.summary


def test_the_table_has_mrr_before_and_after(toy):
    lab = small(toy)
    lab.run(4)
    head, _, row = (line.split(" | ") for line in lab.table().split("\n"))
    cells = dict(zip(head, row))
    assert cells["MRR@10 before fine-tuning"] == f"{lab.track.mrr[0][1]:.1%}"
    assert cells["MRR@10"] == f"{lab.track.mrr[-1][1]:.1%}"
    assert cells["Top@20"] == f"{lab.track.top20[-1][1]:.1%}"


def test_steps_of_both_sizes_go_on_from_each_other(toy):
    lab, whole = small(toy), small(toy)
    whole.run()
    lab.step("micro-batch")
    assert lab.micro.index == 0 and lab.training.step_count == 0
    lab.step("micro-batch")
    assert lab.micro.index == 1
    lab.step()  # what is left of the update
    assert lab.training.step_count == 1 and lab.micro.index == 2
    for _ in range(3):
        lab.step("micro-batch")
    assert lab.training.step_count == 2  # the last micro-batch of an update makes it
    lab.step("micro-batch")
    lab.run(3)
    assert lab.training.step_count == 5
    lab.run()
    assert losses(lab) == losses(whole)
    lab.step()
    assert "All 12 updates are made" in lab.message and lab.training.step_count == 12
    with pytest.raises(ValueError, match="a step is an 'update' or a 'micro-batch'"):
        lab.step("epoch")


def test_stop_undoes_the_half_made_update(toy):
    lab, whole = small(toy), small(toy)
    whole.run()
    lab.run(2)
    before = [bank.vectors.clone() for bank in lab.training.learner.banks]
    lab.step("micro-batch")
    assert not torch.equal(before[1], lab.training.passage_bank.vectors)
    lab.stop()
    assert all(torch.equal(a, bank.vectors) for a, bank in zip(before, lab.training.learner.banks))
    assert lab.training.step_count == 2
    lab.run()
    assert losses(lab) == losses(whole)


def test_another_hand_on_the_run_is_survived(toy):
    lab, whole = small(toy), small(toy)
    whole.run()
    lab.step("micro-batch")
    lab.training.step()  # takes the lab's half-made update back, and makes it
    lab.run()
    assert losses(lab) == losses(whole)


def test_an_exception_is_a_sentence(toy, monkeypatch):
    lab, whole = small(toy), small(toy)
    whole.run()
    lab.run(2)
    monkeypatch.setattr(
        lab.training.learner,
        "encode",
        lambda *_: (_ for _ in ()).throw(MemoryError("no memory left for <b>this</b>")),
    )
    with pytest.raises(MemoryError):
        lab.run(1)
    assert lab.message == "Training stopped at update 3: no memory left for <b>this</b>"
    assert not lab.playing
    monkeypatch.undo()
    lab.run()
    assert losses(lab) == losses(whole), "the run goes on as if nothing had failed"


# --- changes under way ----------------------------------------------------------------------------


def test_learning_rate_and_memory_size_hold_from_the_next_update(toy):
    lab = small(toy)
    lab.run(2)
    lab.step("micro-batch")
    lab.memory_size, lab.learning_rate = 8, 0.001
    assert lab.training.passage_bank.size == 16
    assert lab.training.settings.learning_rate != 0.001
    assert not lab.pending
    newest = lab.training.passage_bank.ids[lab.training.passage_bank.order()][-8:]
    lab.step()
    lab._apply_changes()
    assert lab.training.passage_bank.size == 8
    assert lab.training.query_bank.size == 8
    assert lab.training.settings.learning_rate == 0.001
    assert lab.training.learning_rate(3) < 0.001 and len(newest) == 8
    assert lab.share().endswith("&then=3:learning_rate:0.001,3:memory_size:8")


def test_shrinking_and_growing_keep_the_newest(toy):
    lab = small(toy, memory_size=24)
    lab.run(3)
    run = lab.training
    newest = run.passage_bank.ids[run.passage_bank.order()].tolist()
    vectors = run.passage_bank.vectors[run.passage_bank.order()].clone()
    lab.memory_size = 8  # at rest it holds at once
    assert (
        run.passage_bank.ids[run.passage_bank.order()].tolist()
        == newest[-8:]
        == run.query_bank.ids[run.query_bank.order()].tolist()
    )
    lab.memory_size = 40
    assert len(run.passage_bank) == 8 and run.passage_bank.size == 40
    assert torch.equal(run.passage_bank.vectors[run.passage_bank.order()], vectors[-8:])
    lab.run()
    assert len(run.passage_bank) == 40


def test_other_changes_ask_for_a_reset_in_words(toy):
    lab = small(toy)
    lab.run(1)
    lab.seed = 4
    lab.temperature = 2.0
    assert lab.message == (
        "Press Reset to train with τ = 2, seed = 4. "
        "Until then this run goes on with τ = 4, seed = 0."
    )
    assert lab.pending == {"temperature": (4.0, 2.0), "seed": (0, 4)}
    assert lab.needs_reset == ("temperature", "seed")
    lab.run(1)
    assert lab.training.settings.temperature == 4
    lab.seed, lab.temperature = 0, 4.0
    assert lab.message == "" and not lab.pending and lab.needs_reset == ()
    lab.method = "pre_batch"
    assert "method = pre-batch" in lab.message and "M_q = False" in lab.message
    lab.reset()
    assert lab.training.settings.method == "pre_batch"
    assert lab.message == ""
    assert len(lab.ghosts) == 1


def test_a_slider_dragged_wildly_leaves_all_consistent(toy):
    lab, draw = small(toy, updates=400, memory_size=16), random.Random(1)
    for turn in range(1000):
        name = draw.choice(
            [
                "memory_size",
                "learning_rate",
                "accumulation_steps",
                "local_batch",
                "temperature",
                "method",
            ]
        )
        value = {
            "memory_size": draw.randrange(0, 100),
            "learning_rate": 10 ** draw.uniform(-4, -2),
            "accumulation_steps": draw.randrange(1, 9),
            "local_batch": draw.randrange(1, 20),
            "temperature": draw.uniform(0.5, 9),
            "method": draw.choice(list(PRESETS)),
        }[name]
        if not lab.fixed(name):
            setattr(lab, name, value)
        if turn % 5 == 0 and not lab.done:
            lab.step("micro-batch")
        lab.settings  # always a valid whole
    run = lab.training
    live = LIVE_FIELDS if lab.method == run.settings.method else ("learning_rate",)
    assert set(lab.pending) == differing(lab) - set(live)
    assert (
        len(run.query_bank)
        == len(run.passage_bank)
        <= run.passage_bank.size
        == run.settings.memory_size
    )
    assert run.query_bank.ids.tolist() == run.passage_bank.ids.tolist()
    again = Lab(toy)
    lab.stop()
    again.load(lab.share())
    again.run(run.step_count)
    assert losses(again) == losses(lab)


# --- share, ghosts, race --------------------------------------------------------------------------


def test_share_load_same_run_to_the_bit(toy):
    lab = small(toy, method="momentum", seed=5)
    lab.run(3)
    lab.memory_size = 8
    lab.run(2)
    lab.learning_rate = 0.002
    lab.run()
    again = Lab(toy)
    again.load(lab.share())
    again.run()
    assert again.share() == lab.share() and losses(again) == losses(lab)
    for a, b in zip(
        again.training.passage_tower.parameters(), lab.training.passage_tower.parameters()
    ):
        assert torch.equal(a, b)
    assert again.settings == lab.settings


@pytest.mark.parametrize(
    "line, words",
    [
        ("method=nothing", "method is 'nothing'"),
        ("method=dpr&then=5:seed:3", "expected update:field:value"),
        ("method=contaccum&then=x:memory_size:3", "expected update:field:value"),
        ("method=contaccum&then=5:memory_size:-3", "memory_size is -3"),
        ("K=3", "'K' is not a setting"),
        ("method=contaccum&then=5:memory_size", "memory_size is ''"),
    ],
)
def test_a_line_that_cannot_be_read_changes_nothing(toy, line, words):
    lab = small(toy)
    lab.run(1)
    before = lab.training, lab.settings
    with pytest.raises(ValueError, match=words):
        lab.load(line)
    assert before == (lab.training, lab.settings)


@pytest.mark.parametrize(
    "line",
    [
        "method=contaccum&tower=nope&hide=seed",
        "method=contaccum&device=nope",
        "precision=fp16",
        "compile=True",
        "tower=bert&dim=6&hide=race",
        "hide=colour",
        "seed=3&hide=seed,x",
        "method=dpr&then=5:memory_size:3",
        "method=contaccum&then=0:memory_size:8,x",
        "then=²:memory_size:8",
        "then=1:memory_size:8:9",
        "then=1:memory_size:nan",
        "then=99999999999999999999:memory_size:8",
        "hard_negatives=1&cache_negatives=1",
        "memory_size=1e400",
        "method=\ud800",
        "%ff=%00",
        "=",
        "method=",
        None,
        7,
        b"seed=3",
    ],
)
@pytest.mark.parametrize("under_way", [True, False])
def test_a_line_of_which_no_run_can_be_made_changes_nothing(toy, line, under_way):
    lab, whole = small(toy), small(toy)
    whole.run()
    lab.run(2)
    lab.seed = 4
    if under_way:
        lab.step("micro-batch")
    before, shown = everything(lab), lab.views.line.value
    with pytest.raises(ValueError) as refusal:
        lab.load(line)
    assert everything(lab) == before
    assert lab.mid_update == under_way
    assert lab.views.line.value == shown
    assert "\n" not in str(refusal.value)
    lab.seed = 0
    lab.run()
    assert losses(lab) == losses(whole)


def test_a_line_that_fails_while_it_plays_does_not_stop_it(toy):
    async def main():
        lab, whole = small(toy), small(toy)
        whole.run()
        lab.play()
        await asyncio.sleep(0)
        no_tower = "no encoder could be loaded from 'nope'"
        for line, words in (("tower=nope", no_tower), ("hide=x", "hide has 'x'")):
            with pytest.raises(ValueError, match=words):
                lab.load(line)
        with pytest.raises(ValueError, match=no_tower):
            lab.reset(cl.Settings(tower="nope"))
        assert lab.playing
        while lab.playing:
            await asyncio.sleep(0)
        assert losses(lab) == losses(whole)

    play(main())


def no_memory(monkeypatch, run):
    """No bank can be resized any more."""

    def resized(settings):
        if settings.memory_size != run.settings.memory_size:
            raise RuntimeError("not enough memory: you tried to allocate 4 TB.")
        return list(run.learner.banks)

    monkeypatch.setattr(run.learner.banks, "resized", resized)


def test_a_bank_without_memory_leaves_the_slider_and_the_run(toy, monkeypatch):
    lab, whole = small(toy), small(toy)
    whole.run()
    lab.run(3)
    no_memory(monkeypatch, lab.training)
    before = everything(lab)
    with pytest.raises(
        MemoryError,
        match="memory_size is 1000000, and there is no memory for banks of this size .*: choose",
    ):
        lab.memory_size = 1_000_000
    assert everything(lab) == before
    lab.views.controls["memory_size"].value = 512  # by hand: said, and the slider goes back
    assert lab.views.controls["memory_size"].value == 16 == lab.memory_size
    assert lab.message.startswith("memory_size is 512, and there is no memory")
    lab.views.controls["learning_rate"].value = 0.001
    assert lab.training.settings.learning_rate == 0.001 and lab.message == ""
    lab.learning_rate = 0.005
    lab.step("micro-batch")  # under way, it is tried between two updates
    lab.memory_size = 64
    with pytest.raises(MemoryError):
        lab.run()
    assert lab.memory_size == 16
    assert lab.message.startswith("Training stopped at update 5: memory_size is 64")
    lab.run()
    assert losses(lab) == losses(whole)


def test_a_line_whose_bank_has_no_memory_changes_nothing(toy, monkeypatch):
    lab = small(toy)
    lab.run(2)
    before, change = everything(lab), cl.Run.change
    monkeypatch.setattr(
        cl.Run, "change", lambda run, **changes: (_ for _ in ()).throw(MemoryError("no room"))
    )
    with pytest.raises(MemoryError):
        lab.load("seed=3&then=0:memory_size:64&hide=seed")
    assert everything(lab) == before
    monkeypatch.setattr(cl.Run, "change", change)
    lab.load("seed=3&then=0:memory_size:64&hide=seed")
    assert lab.memory_size == lab.training.passage_bank.size == 64
    assert lab.share() == "method=contaccum&start=random&seed=3&then=0:memory_size:64&hide=seed"


def test_the_next_of_a_row_that_cannot_be_made_is_tried_again(toy, monkeypatch):
    lab, whole = small(toy), small(toy)
    whole.race(["grad_accum", "contaccum"])
    lab.line_up(["grad_accum", "contaccum"])
    make = player.Run
    monkeypatch.setattr(player, "Run", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
    with pytest.raises(MemoryError):
        lab.run()
    assert lab.training.settings.method == lab.method == "grad_accum"
    assert "no room" in lab.message
    assert not lab.done
    monkeypatch.setattr(player, "Run", make)
    lab.run()
    assert [[u.loss for u in t.run.history] for _, t in lab.tracks()] == [
        [u.loss for u in t.run.history] for _, t in whole.tracks()
    ]


def test_a_loaded_lines_changes_reach_its_run_whatever_the_sliders_say(toy):
    lab, whole = small(toy), small(toy)
    line = whole.share() + "&then=3:memory_size:8"
    whole.load(line), lab.load(line)
    whole.run()
    lab.run(1)
    lab.method = "grad_accum"  # waits for a reset, and has no bank
    lab.run()
    assert losses(lab) == losses(whole)
    assert lab.method == "grad_accum"
    assert lab.memory_size == 0


def test_a_run_keeps_what_it_cannot_take_until_a_reset(toy):
    lab = Lab(
        toy,
        method="contaccum_corrected",
        dim=8,
        local_batch=4,
        accumulation_steps=2,
        memory_size=16,
        updates=4,
    )
    lab.run(1)
    lab.corrector = "identity"
    lab.memory_size = 0  # of a bank that is corrected, the run keeps some
    assert lab.training.settings.memory_size == 16 and lab.pending["memory_size"] == (16, 0)
    lab.reset()
    assert lab.training.settings.memory_size == 0 and lab.training.settings.corrector == "identity"


def test_similarity_follows_the_memory_after_a_line_as_before_it(toy):
    lab = Lab(toy)
    lab.load("dim=8&memory_size=512")
    assert lab.similarity == lab.training.settings.similarity == "incremental"
    lab.memory_size = 16
    assert lab.settings.similarity == "full" and "similarity" not in lab.settings.share()
    lab.load("dim=8&memory_size=512&similarity=full")
    assert lab.similarity == lab.training.settings.similarity == "full"
    assert lab.share().endswith("similarity=full")


def test_dprs_batch_stays_when_something_else_is_chosen(toy):
    lab = Lab(toy, method="dpr", local_batch=100)
    lab.dim = 32
    assert lab.local_batch == 100
    lab.method = "grad_accum"
    assert (lab.local_batch, lab.accumulation_steps) == (6, 16)
    lab.method = "dpr"
    lab.local_batch = None  # back to its default
    assert lab.local_batch == 128


def test_ghosts_are_named_by_what_differs(toy):
    lab = small(toy)
    lab.run(2)
    lab.memory_size = 8
    lab.reset()
    lab.run(1)
    lab.method = "grad_accum"
    lab.reset()
    lab.run(1)
    assert names([*lab.ghosts, lab.track])[1:] == ["ContAccum, N_memory 8", "GradAccum"]
    lab.reset()  # the same once more
    assert names([*lab.ghosts, lab.track])[2:] == ["GradAccum (1)", "GradAccum (2)"]
    for _ in range(9):
        lab.run(1)
        lab.reset()
    assert len(lab.ghosts) == GHOSTS
    lab.reset()  # no update made: nothing to keep
    assert len(lab.ghosts) == GHOSTS


def test_a_race_is_fair_and_tells_its_lessons(toy):
    lab = small(toy)
    with pytest.raises(ValueError, match="call lab.race"):
        lab.what_we_saw()
    lab.race()
    found = dict(lab.tracks())
    methods = [name.split(",")[0] for name in found]
    assert methods == ["DPR", "GradAccum", "pre-batch", "ContAccum"]
    for track in found.values():
        assert track.run.settings.total_batch == 24 and track.run.step_count == 12
        for scores in (track.mrr, track.top20):
            assert f"{scores[-1][1]:.1%}" in lab.table()
            assert f"{scores[-1][1]:.1%}" in lab.what_we_saw()
        assert f"Before fine-tuning: MRR@10 {track.before['mrr@10']:.1%} " in lab.what_we_saw()
    first = [
        next(iter(cl.Run(toy, t.run.settings).query_tower.parameters())) for t in found.values()
    ]
    assert all(torch.equal(first[0], other) for other in first)
    assert "7 negatives per query in place of 23" in lab.what_we_saw()
    assert "had 23 negatives with 8 pairs" in lab.what_we_saw()


@pytest.mark.parametrize(
    "name",
    [
        "a|b",
        "<img src=x onerror=alert(1)>",
        "*x*",
        "_x_",
        "a/_x_/b",
        "`x`",
        "[x](y)",
        "$x$",
        "~~x~~",
        "a\\|b",
        "&lt;",
        "a\nb",
        "\x1b[31mred",
    ],
)
def test_a_towers_path_is_text_in_the_table(toy, name):
    from html import unescape

    lab = small(toy)
    lab.run(1)
    track = Track(lab.training)
    track.start = lab.settings.replace(tower=name)
    said = names([lab.track, track])
    rows = table(zip(said, [lab.track, track])).split("\n")
    assert len(rows) == 4 and {row.count("|") for row in rows} == {10}
    cell = rows[-1].split("|")[1]
    assert not re.search(r"[*<>`\[\]$~\\\x1b]|(?<!\w)_|_(?!\w)", cell)
    assert unescape(cell).strip() == one_line(said[1]) and one_line(name) in unescape(cell)


def test_names_of_settings_stay_readable_in_the_table(toy):
    lab = small(toy)
    lab.run(1)
    lab.memory_size = 8
    assert "| ContAccum, from update 2 N_memory 8 | 1 |" in lab.table()


def test_an_interrupt_stops_and_run_goes_on(toy, monkeypatch):
    lab, whole = small(toy), small(toy)
    whole.race()
    advance, calls = lab._do_next_work, []

    def interrupted():
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return advance()

    monkeypatch.setattr(lab, "_do_next_work", interrupted)
    lab.race()
    assert "Interrupted" in lab.message and not lab.done
    lab.run()
    assert lab.done
    assert [(n, t.top20) for n, t in lab.tracks()] == [(n, t.top20) for n, t in whole.tracks()]


# --- the player -----------------------------------------------------------------------------------


def test_without_a_loop_play_says_what_to_do(toy):
    lab = small(toy)
    with pytest.raises(RuntimeError, match=r"lab.run\(updates\)"):
        lab.play()
    lab.stop()
    lab.close()


def players() -> int:
    return sum(task.get_coro().__qualname__ == "Player._play" for task in asyncio.all_tasks())


def play(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_a_message_of_many_passes_is_heard_within_one_look(toy, monkeypatch):
    monkeypatch.setattr(player, "YIELD_INTERVAL_S", 0.0)

    async def main():
        lab = small(toy)
        lab.play()
        await asyncio.sleep(0)
        ticks = lab.ticks
        for _ in range(8):  # as a kernel hears one: socket, queue, handler
            await asyncio.sleep(0)
        assert lab.ticks - ticks <= 2, "training took turns with every pass"
        assert lab.playing
        lab.stop()

    play(main())


def test_play_pause_step_stop(toy):
    async def main():
        lab, whole = small(toy), small(toy)
        whole.run()
        lab.play()
        lab.play()  # a second press is no second player
        assert lab.playing and players() == 1
        while lab.training.step_count < 3:
            await asyncio.sleep(0)
        lab.pause()
        made = lab.training.step_count
        await asyncio.sleep(0.05)
        assert lab.training.step_count == made
        assert not lab.playing
        assert players() == 0
        lab.step("micro-batch")
        lab.play()
        await asyncio.sleep(0)
        lab.stop()
        await asyncio.sleep(0.05)
        assert not lab.playing
        assert not lab.mid_update
        assert players() == 0
        lab.play()
        while lab.playing:
            await asyncio.sleep(0)
        assert losses(lab) == losses(whole) and lab.done
        lab.play()
        assert not lab.playing and "Reset" in lab.message
        return True

    assert play(main())


def test_the_player_lets_others_in_between_micro_batches(toy, monkeypatch):
    monkeypatch.setattr(player, "YIELD_INTERVAL_S", 0)

    async def main():
        lab, turns = small(toy), 0
        lab.play()
        while lab.playing:
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 12 * 3

    play(main())


def test_two_labs_do_not_disturb_each_other(toy):
    async def main():
        one, two, alone = (
            small(toy),
            small(toy, method="pre_batch", seed=4),
            small(toy, method="pre_batch", seed=4),
        )
        alone.run()
        one.play(), two.play()
        while one.training.step_count < 2:
            await asyncio.sleep(0)
        one.close()
        while two.playing:
            await asyncio.sleep(0)
        assert losses(two) == losses(alone) and one.training.step_count < 12

    play(main())


def test_a_slow_pace_can_be_stopped_at_once(toy):
    async def main():
        lab = small(toy)
        lab.pace = 0.001
        lab.run(1)
        lab.play()
        await asyncio.sleep(0.05)
        lab.stop()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert players() == 0

    play(main())


def test_an_exception_stops_the_player_with_a_sentence(toy, monkeypatch):
    async def main():
        lab = small(toy)
        monkeypatch.setattr(lab.training.learner, "encode", lambda *_: 1 / 0)
        lab.play()
        while lab.playing:
            await asyncio.sleep(0)
        assert lab.message == "Training stopped at update 1: division by zero" and lab._task is None

    play(main())


def test_a_callback_on_another_thread_is_done_on_the_labs(toy):
    async def main():
        lab, where = small(toy), []
        thread = threading.Thread(
            target=lambda: lab.soon(lambda: where.append(threading.get_ident()))
        )
        thread.start(), thread.join()
        assert not where
        await asyncio.sleep(0.01)
        assert where == [threading.get_ident()]

    play(main())


def test_a_cell_run_again_ends_its_earlier_lab(toy, monkeypatch):
    async def main():
        execution = ["first"]
        monkeypatch.setattr(cell_registry, "current_cell", lambda: ("cell-1", execution[0]))
        one, two = small(toy), small(toy)  # two labs of one execution
        monkeypatch.setattr(cell_registry, "current_cell", lambda: ("cell-2", "x"))
        other = small(toy)
        for lab in (one, two, other):
            lab.play()
        await asyncio.sleep(0)
        monkeypatch.setattr(cell_registry, "current_cell", lambda: ("cell-1", "second"))
        again = small(toy)
        assert not one.playing
        assert not two.playing
        assert other.playing
        again.play(), other.close()
        await asyncio.sleep(0)
        assert again.playing and players() == 1
        again.close()

    play(main())


def test_a_closed_lab_is_let_go(toy):
    import weakref

    lab = small(toy)
    lab.run(1)
    gone = weakref.ref(lab)
    lab.close()
    del lab
    gc.collect()
    assert gone() is None

"""The lab's pictures, without a browser: what they hold and what they say is what the run has."""

import asyncio
import base64
import io
import json
import math
import random
import re

import numpy as np
import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.utils import text as texts
from contaccum_lite.lab import curves, matrix as views, stills, widget as panel
from contaccum_lite.data.types import Pair, Pairs, Passage
from contaccum_lite.lab import player
from contaccum_lite.lab.history import GHOSTS
from contaccum_lite.lab.lab import Lab

SMALL = dict(updates=12, accumulation_steps=3, memory_size=16, dim=16, every=4)


@pytest.fixture
def lab(toy):
    lab = Lab(toy, **SMALL)
    lab.run(3)
    lab.step("micro-batch")
    return lab


def image(png: bytes):
    from PIL import Image

    return Image.open(io.BytesIO(png))


# --- the matrix -----------------------------------------------------------------------------------


def test_matrix_is_the_micro_batchs(lab):
    view, micro = lab.views.matrix, lab.micro
    scores = cl.similarity_matrix(
        torch.zeros(8, 16), torch.zeros(8, 16), lab.training.query_bank, lab.training.passage_bank
    )
    assert tuple(micro.scores.shape) == tuple(scores.shape) == (24, 24)
    softmax = micro.scores.softmax(1)
    for kind, expected in {
        "score": micro.scores,
        "softmax weight": softmax,
        "gradient weight": (softmax - torch.eye(24)) / 24,
    }.items():
        view.kind = kind
        data = view.data()
        left_out = micro.scores == -torch.inf
        assert torch.equal(data["values"].isnan(), left_out) and data["kind"] == kind
        assert torch.allclose(data["values"][~left_out], expected[~left_out], atol=1e-6)
        assert (data["local"], data["hard_from"]) == (8, 24)
        assert data["row_ids"].tolist() == micro.row_ids.tolist()
        assert (view.grid.rows, view.grid.columns) == (24, 24) and len(view.grid.cells) == 24 * 24
    with pytest.raises(ValueError, match="choose one of score, softmax weight, gradient weight"):
        view.kind = "colour"


def test_colours_follow_the_values(lab):
    view, micro = lab.views.matrix, lab.micro
    softmax, fine = views.softmax(micro), micro.scores > -torch.inf
    cells = torch.from_numpy(view.cells().astype(int))
    order = softmax[fine].argsort()
    assert (cells[fine][order].diff() >= 0).all()
    assert (cells[~fine] == 0).all()
    assert (cells[fine] >= 1).all()
    view.kind = "score"
    cells = torch.from_numpy(view.cells().astype(int))
    assert ((cells > 128) == (micro.scores > 0.004 * micro.scores[fine].abs().max()))[
        fine
    ].float().mean() > 0.98
    assert (cells[fine][micro.scores[fine].argsort()].diff() >= 0).all()
    view.kind = "gradient weight"
    cells = view.cells()
    # memory × memory carries none
    assert (cells[8:, 8:] == 0).all()
    # positives pull
    assert (cells.diagonal()[:8] < 128).all()
    assert (cells[:8][~np.eye(24, dtype=bool)[:8] & fine.numpy()[:8]] >= 128).all()


def test_blocks_and_gradients_of_every_kind_of_entry(toy):
    lab = Lab(toy, **SMALL, hard_negatives=1)
    lab.run(2)
    lab.step("micro-batch")
    view = lab.views.matrix
    assert view.blocks() == [
        ("local", 0, 8, "row"),
        ("query bank", 8, 24, "row"),
        ("local", 0, 8, "column"),
        ("passage bank", 8, 24, "column"),
        ("hard", 24, 32, "column"),
        ("hard bank", 32, 48, "column"),
    ]
    micro, told = lab.micro, {}
    for row in (2, 15):
        for column in (5, 20, 27, 40):
            if micro.scores[row, column] > -torch.inf:
                told[row, column] = view.carries(row, column)
    assert told == {
        k: v
        for k, v in {
            (2, 5): "both towers",
            (2, 20): "the query tower only",
            (2, 27): "both towers",
            (2, 40): "the query tower only",
            (15, 5): "the passage tower only",
            (15, 27): "the passage tower only",
            (15, 20): views.CARRIES[False, False],
            (15, 40): views.CARRIES[False, False],
        }.items()
        if k in told
    }
    assert len(told) >= 6


def test_the_share_that_carries_gradient_is_a_count_of_entries(toy):
    lab = Lab(toy, **SMALL, hard_negatives=1)
    lab.run(2)
    lab.step("micro-batch")
    view, scores = lab.views.matrix, lab.micro.scores
    told = [view.carries(r, c) for r in range(24) for c in range(48) if scores[r, c] > -torch.inf]
    memories = torch.zeros(24, 48, dtype=torch.bool)
    memories[8:, 8:24] = memories[8:, 32:] = True  # banks by banks
    assert told.count(views.CARRIES[False, False]) == int((scores[memories] > -torch.inf).sum())
    assert abs(view.carrying() - (1 - memories.double().mean())) < 1e-9


def test_an_entry_that_is_left_out_says_so(toy):
    lab = Lab(toy, **SMALL, hard_negatives=1)
    lab.run(2)
    lab.step("micro-batch")
    left_out = (lab.micro.scores == -torch.inf).nonzero().tolist()
    assert left_out
    for row, column in left_out:
        assert "left out" in lab.views.matrix.carries(row, column)


def test_matrix_sentence_is_recomputed(lab):
    micro, sentence = lab.micro, lab.views.matrix.sentence
    softmax = micro.scores.softmax(1)
    assert (
        "Update 4, micro-batch 1 of 3: 24 rows (8 local + 16 query bank) by 24 columns (8 local + 16 passage bank)"
        in sentence
    )
    assert f"its own passage {float(softmax.diagonal().mean()):.0%} of its softmax" in sentence
    assert (
        f"ranks it first in {float((micro.scores.argmax(1) == torch.arange(24)).float().mean()):.0%} of the rows"
        in sentence
    )
    assert f"{1 - 16 * 16 / 24 / 24:.0%} of the entries carry gradient" in sentence
    assert (
        f"Loss {-float(softmax.diagonal().log().mean()):.2f}; knowing nothing would be log 24 = {math.log(24):.2f}."
        in sentence
    )
    assert lab.views.matrix.grid.sentence == sentence


def test_what_is_under_the_cursor(lab, toy):
    view, micro = lab.views.matrix, lab.micro
    view.grid.at = [3, 10]
    told = view.grid.told
    query, passage = toy.train[int(micro.row_ids[3])].query, toy.train[int(micro.column_ids[10])]
    assert query[:100] in told
    assert passage.title in told
    assert "the query tower only" in told
    assert f"score {float(micro.scores[3, 10]):.2f}" in told
    assert f"softmax {float(micro.scores[3].softmax(0)[10]):.4f}" in told
    view.grid.at = [3, 3]
    assert "its own passage" in view.grid.told and "both towers" in view.grid.told
    view.grid.at = []
    assert "arrow keys" in view.grid.told
    view.grid.picked = [12]
    place = int((micro.scores[12] > micro.scores[12, 12]).sum()) + 1
    assert f"Row 12 ranks its own passage {place} of " in view.grid.ranking
    view.grid.picked = []
    assert view.grid.ranking == ""


def test_a_smaller_matrix_lets_the_cursor_go(lab):
    grid = lab.views.matrix.grid
    grid.at, grid.picked = [20, 20], [20]
    lab.method = "grad_accum"
    lab.reset()
    lab.step()
    assert (grid.rows, grid.columns) == (8, 8)
    assert grid.at == []
    assert grid.picked == []


# --- the banks ------------------------------------------------------------------------------------


def test_banks_fill_and_evict_slot_by_slot(toy):
    lab = Lab(toy, **{**SMALL, "memory_size": 32})
    view = lab.views.banks
    grid = view.grids["passage"]
    assert not any(grid.cells) and "all empty; slot 0" in view.sentence
    for turn in range(1, 8):
        lab.step("micro-batch")
        cells = view.cells("passage").ravel()
        bank = lab.training.passage_bank
        assert np.count_nonzero(cells) == min(8 * turn, 32) == len(bank)
        assert bytes(cells) == grid.cells
        slot = bank.write_ptr
        assert grid.marks == [divmod(slot, grid.columns)]
        newest = [(slot - 1 - n) % 32 for n in range(8)]
        # the micro-batch just written is the brightest
        assert (cells[newest] == 255).all()
        assert (np.delete(cells, newest) < 255).all()
    data = view.data()["query"]
    assert data["ages"] == [2 - b for b in bank.written_at.tolist()]
    assert data["ids"] == lab.training.query_bank.ids.tolist()
    assert (
        "32 of 32 slots hold a query, 0 to 1 update old; slot 24 is written next, over the oldest"
        in view.sentence
    )
    view.grids["query"].at = [0, 3]
    assert "slot 3, " in view.grids["query"].told
    assert toy.train[data["ids"][3]].query[:60] in view.grids["query"].told


def test_one_sees_a_missing_query_bank(toy):
    lab = Lab(toy, **SMALL, method="pre_batch")
    lab.run(2)
    view = lab.views.banks
    assert view.grids["query"].rows == 0
    assert view.grids["query"].empty == "this method keeps no query bank"
    assert view.grids["passage"].rows > 0
    assert "No query bank." in view.sentence
    assert "no past query as a row" in view.sentence


def test_one_sees_that_nothing_is_remembered(toy):
    lab = Lab(toy, **{**SMALL, "memory_size": 0}, method="grad_accum")
    lab.run(2)
    view = lab.views.banks
    assert view.grids["passage"].rows == 0
    assert "Nothing is remembered" in view.sentence


@pytest.mark.parametrize("size", [1, 5, 8, 100, 1024])
def test_a_slot_has_its_cell_at_any_size(toy, size):
    lab = Lab(toy, **{**SMALL, "memory_size": size})
    lab.run(2)
    cells = lab.views.banks.cells("query")
    assert cells.size >= size
    assert (cells.ravel()[: len(lab.training.query_bank)] > 0).all()
    assert not cells.ravel()[size:].any()
    assert f"no slot {cells.size}" in lab.views.banks.describe("query", cells.size)


# --- curves ---------------------------------------------------------------------------------------


def points(buffer):
    """What the page makes of a line's bytes."""
    return np.frombuffer(buffer, dtype="<f8").tolist()


def in_legend(view):
    return [line["name"] for line in view.plot.lines if line["legend"] and line["panel"] == "mrr"]


def test_curves_are_the_history(lab):
    view, run = lab.views.curves, lab.training
    view.draw()
    lines = {(line["panel"], line["name"]): line for line in view.lines() if line["x"]}
    steps = [u.step for u in run.history]
    assert (
        lines["loss", "ContAccum"]["y"] == [u.loss for u in run.history]
        and lines["loss", "ContAccum"]["x"] == steps
    )
    assert lines["loss", "log N: knowing nothing"]["y"] == [
        math.log(u.negatives + 1) for u in run.history
    ]
    assert lines["norms", "query tower"]["y"] == [u.grad_norm_query for u in run.history]
    assert lines["ratio", "ContAccum"]["y"] == [u.grad_norm_ratio for u in run.history]
    assert lines["mrr", "ContAccum"]["y"] == [100 * v for _, v in lab.track.mrr]
    assert dict(
        zip(lines["mass", "similarity mass"]["x"], lines["mass", "similarity mass"]["y"])
    ) == cl.similarity_mass(run)
    for sent, line in zip(view.plot.lines, view.lines()):
        assert points(sent["x"]) == line["x"] and points(sent["y"]) == line["y"]
    last = run.history[-1]
    assert (
        f"loss {last.loss:.2f} (log {last.negatives + 1} = {math.log(last.negatives + 1):.2f})"
        in view.sentence
    )
    assert f"ratio {last.grad_norm_ratio:.2f}" in view.sentence and view.data()["ContAccum"][
        "loss"
    ] == [u.loss for u in run.history]


def test_ghosts_stay_as_lines(lab):
    first = [u.loss for u in lab.training.history]
    lab.method = "pre_batch"
    lab.reset()
    lab.run(2)
    view = lab.views.curves
    lines = [
        line
        for line in view.lines()
        if line["panel"] == "loss" and line["x"] and line["name"] in ("ContAccum", "pre-batch")
    ]
    assert [(line["name"], line["ghost"]) for line in lines] == [
        ("ContAccum", True),
        ("pre-batch", False),
    ]
    assert lines[0]["y"] == first
    assert "Earlier runs: ContAccum, MRR@10" in view.sentence
    assert len({line["dash"] for line in lines}) == 2
    assert in_legend(view) == ["ContAccum", "pre-batch", "before fine-tuning"]
    assert len(view.plot.lines) == 3 * (GHOSTS + 1) + 5
    for turn in range(GHOSTS + 2):
        lab.reset()
        lab.run(1)
    runs = [name for name in in_legend(view) if name != "before fine-tuning"]
    assert len(runs) == GHOSTS + 1


STARTS = {"pretrained": "before fine-tuning", "random": "untrained"}


@pytest.mark.parametrize("start, label", STARTS.items())
def test_a_dotted_line_is_mrr_before_the_first_update(toy, start, label):
    lab = Lab(toy, **SMALL, start=start)
    view, untrained = lab.views.curves, 100 * cl.Run(toy, lab.settings).evaluate()["mrr@10"]
    lab.run(8)
    view.draw()
    [line] = [line for line in view.lines() if line["name"] == label]
    assert (line["panel"], line["dash"], line["x"]) == ("mrr", "dot", [0, 8])
    assert line["y"] == [untrained, untrained]
    [sent] = [sent for sent in view.plot.lines if sent["name"] == label]
    assert points(sent["y"]) == line["y"] and sent["legend"] and sent["dash"] == "dot"


@pytest.mark.parametrize("start, label", STARTS.items())
def test_a_still_names_the_line_before_the_first_update(toy, start, label):
    lab = Lab(toy, **SMALL, start=start)
    lab.run(4)
    figure = stills.new(9, 5)
    lab.views.curves.still(figure)
    legend = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert legend == ["ContAccum", label]


def test_the_dotted_line_is_that_of_the_run_under_way(toy):
    lab = Lab(toy, **SMALL)
    lab.run(4)
    lab.start = "random"
    lab.reset()
    lab.run(4)
    lab.views.curves.draw()
    drawn = in_legend(lab.views.curves)
    assert drawn[-1] == "untrained" and "before fine-tuning" not in drawn


def test_before_an_evaluation_there_is_no_dotted_line(toy):
    lab = Lab(toy, **SMALL)
    assert not [line for line in lab.views.curves.lines() if line["x"]]


def test_every_curve_begins_before_the_first_update(toy):
    lab = Lab(toy, **{**SMALL, "updates": 2})
    lab.race()
    lines = [line for line in lab.views.curves.lines() if line["panel"] == "mrr" and line["x"]]
    assert len(lines) == 5 and all(line["x"][0] == 0 for line in lines)
    assert len({line["y"][0] for line in lines}) == 1


def test_the_sentence_under_the_curves_quotes_mrr_and_top20(lab):
    lab.run(1)  # its evaluation after update 4
    alone = cl.Run(lab.pairs, lab.settings)
    before = alone.evaluate()
    for _ in range(4):
        alone.step()
    after = alone.evaluate()
    assert (
        f"MRR@10 {after['mrr@10']:.1%} and Top@20 {after['top@20']:.1%} after update 4, "
        f"before fine-tuning {before['mrr@10']:.1%} and {before['top@20']:.1%}."
        in lab.views.curves.sentence
    )


def test_before_the_first_update_the_sentence_says_what_the_towers_find(toy):
    lab = Lab(toy, **SMALL)
    lab.step("micro-batch")
    lab.stop()
    assert lab.views.curves.sentence.startswith(
        "No update yet: no curve. Before fine-tuning MRR@10 "
    )


def test_long_curves_are_thinned_by_medians():
    y = [float(n % 7) for n in range(1999)]
    line = curves._line("loss", "x", list(range(1, 2000)), y, "red", "solid", 1)
    assert len(line["x"]) == 200
    assert line["x"][-1] == 1999
    assert set(line["y"]) <= set(y)


def test_after_a_reload_the_curves_are_the_present_ones(lab):
    lab.views.curves.draw()
    state = lab.views.curves.plot.get_state()
    assert [points(line["y"]) for line in state["lines"]] == [
        line["y"] for line in lab.views.curves.lines()
    ]


# --- the panel ------------------------------------------------------------------------------------


def test_controls_and_lab_follow_each_other(lab):
    view = lab.views
    view.controls["memory_size"].value = 64
    assert lab.memory_size == 64
    lab.accumulation_steps = 9
    assert view.controls["accumulation_steps"].value == 9
    lab.learning_rate = 0.0123  # no choice of the slider: it becomes one
    assert view.controls["learning_rate"].value == 0.0123
    assert 0.01 in [v for _, v in view.controls["learning_rate"].options]
    lab.local_batch = 100
    assert view.controls["local_batch"].value == 100
    view.controls["method"].value = "grad_accum"
    assert lab.method == "grad_accum"
    assert view.controls["memory_size"].disabled
    assert not view.controls["seed"].disabled
    assert "Press Reset" in view.message.value
    view.buttons["reset"].click()
    assert lab.training.settings.method == "grad_accum" and view.message.value == ""
    lab.pace = 7.0
    assert view.controls["pace"].value == 7.0


def test_every_slider_reads_its_bounds_from_settings(lab):
    fields = cl.Settings.__dataclass_fields__
    sliders = {name: f for name, f in fields.items() if f.metadata["slider"] is not None}
    assert {"memory_size", "learning_rate", "seed"} <= set(sliders)
    for name, field in sliders.items():
        choices, control = field.metadata["slider"], lab.views.controls[name]
        assert control.tooltip == field.metadata["help"]
        for value in (min(choices), max(choices)):
            cl.Settings(**{name: value})
        if isinstance(choices, range):
            assert (control.min, control.max) == (min(choices), max(choices))
        else:
            assert set(choices) <= {v for _, v in control.options}


def test_a_refused_value_is_said_and_the_control_goes_back(lab):
    lab.views.panel.set("memory_size", -5)
    assert "memory_size is -5" in lab.message
    assert lab.views.controls["memory_size"].value == 16 == lab.memory_size


def test_buttons_do_what_they_say(lab):
    view = lab.views
    made = lab.training.step_count
    view.buttons["update"].click()
    assert lab.training.step_count == made + 1
    view.buttons["micro"].click()
    assert lab.micro.index == 0 and "micro-batch 1 of 3" in view.progress.value
    view.buttons["stop"].click()
    assert "micro-batch" not in view.progress.value
    view.buttons["play"].click()  # no event loop here
    assert "call lab.run(updates)" in view.message.value


def test_a_line_that_is_written_is_loaded(lab):
    lab.views.line.value = "method=dpr&seed=9&dim=16"
    assert lab.training.settings == cl.Settings(method="dpr", start="random", seed=9, dim=16)


def test_a_line_that_cannot_be_read_is_said(lab):
    view = lab.views
    view.line.value = "nonsense=<script>"
    assert "is not a setting" in view.message.value
    assert "<script>" not in view.message.value


def test_dragging_controls_while_it_plays_leaves_all_consistent(toy):
    async def main():
        lab, draw = Lab(toy, **{**SMALL, "updates": 10_000}), random.Random(3)
        view = lab.views
        lab.play()
        while not lab.training.step_count:  # before, a choice begins the run again
            await asyncio.sleep(0)
        for turn in range(1000):
            name = draw.choice(
                ["memory_size", "accumulation_steps", "learning_rate", "local_batch", "temperature"]
            )
            control = view.controls[name]
            control.value = (
                draw.choice([v for _, v in control.options])
                if hasattr(control, "options")
                else draw.randint(control.min, control.max)
            )
            if turn % 10 == 0:
                await asyncio.sleep(0)
        while lab.mid_update:
            await asyncio.sleep(0)
        lab.pause()
        for name in view.controls:
            value = getattr(lab, name)
            assert view.controls[name].value == ("off" if value is None else value)
        run = lab.training
        assert run.step_count > 0 and run.passage_bank.size == run.settings.memory_size
        assert bytes(view.banks.cells("passage")) == view.banks.grids["passage"].cells
        assert bytes(view.matrix.cells()) == view.matrix.grid.cells
        assert view.matrix.grid.sentence == view.matrix.sentence
        lab.close()

    asyncio.run(main())


def test_a_page_that_does_not_answer_gets_no_more_frames(toy, monkeypatch):
    monkeypatch.setattr(panel, "MAX_FPS", 1e9)
    monkeypatch.setattr(panel, "TRAIN_TO_DRAW_RATIO", 0)
    monkeypatch.setattr(player, "EVENT_LOOP_YIELDS", 1)
    monkeypatch.setattr(player, "YIELD_INTERVAL_S", 0)

    async def main():
        lab = Lab(toy, **{**SMALL, "updates": 100})
        view = lab.views
        view.matrix.grid.beaten = view.matrix.grid.beat
        lab.play()
        for _ in range(20):
            await asyncio.sleep(0)
        assert lab.ticks > 10
        # so many are out, and no more
        assert view.matrix.grid.beat == view.matrix.grid.beaten + view.matrix.grid.window
        before = view.frames
        view.matrix.grid.beaten = view.matrix.grid.beat
        for _ in range(20):
            await asyncio.sleep(0)
        assert before < view.frames <= before + view.matrix.grid.window
        view.matrix.grid.shown = False  # out of view: the beat goes on, no matrix is sent
        drawn = view.matrix.grid.frame
        view.matrix.grid.beaten = view.matrix.grid.beat
        for _ in range(5):
            await asyncio.sleep(0)
        assert lab.playing
        assert view.matrix.grid.frame == drawn
        while lab.playing:
            view.matrix.grid.beaten = view.matrix.grid.beat
            await asyncio.sleep(0)
        # at rest all is drawn
        assert view.matrix.grid.sentence == view.matrix.sentence
        assert "update 100 of 100" in view.progress.value

    asyncio.run(main())


def test_one_bundle_per_view(lab):
    v = lab.views
    for view, sentence in (
        (lab, lab.summary),
        (v.matrix, v.matrix.sentence),
        (v.banks, v.banks.sentence),
        (v.curves, v.curves.sentence),
    ):
        data, metadata = view._repr_mimebundle_()
        assert data["text/plain"] == sentence and sentence in metadata["image/png"]["alt"]
        assert "model_id" in data["application/vnd.jupyter.widget-view+json"]
        picture = image(base64.b64decode(data["image/png"]))
        assert picture.width > 300
        assert len(data["image/png"]) < 150_000
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_a_lab_at_the_start_can_be_shown(toy):
    lab = Lab(toy, **SMALL)
    data, _ = lab._repr_mimebundle_()
    assert "no update made yet" in data["text/plain"]
    assert "No micro-batch yet." in lab.views.sentence
    assert lab.views.matrix.data() is None


def test_closing_lets_the_widgets_go(toy):
    import ipywidgets

    before = set(
        ipywidgets.Widget._instances
        if hasattr(ipywidgets.Widget, "_instances")
        else ipywidgets.widget._instances
    )
    lab = Lab(toy, **SMALL)
    view = lab.views
    lab.run(1)
    lab.close()
    assert lab._views is None
    assert view.matrix.grid.comm is None
    assert view.curves.plot.comm is None
    lab.run(1)  # still a lab


# --- text of others -------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "$x$ \\(y\\)",
    "\x1b[31mred\x1b[0m",
    "a" * 100_000,
    "&lt;b&gt;",
    "\x00\x07",
]


@pytest.fixture
def hostile():
    passages = [Passage(str(n), text, text) for n, text in enumerate(HOSTILE)]
    return Pairs(
        "hostile",
        [Pair(str(n), t + " q", t, t, passage_id=str(n)) for n, t in enumerate(HOSTILE)],
        [Pair("t" + str(n), t + " test", t, t, passage_id=str(n)) for n, t in enumerate(HOSTILE)],
        passages,
    )


def test_hostile_text_is_text(hostile):
    for text in HOSTILE:
        shown = texts.plain_text(text)
        assert not re.search(r"<(?!/?em)", shown)
        assert "$" not in shown
        assert "\x1b" not in shown
        assert "\x00" not in shown
        assert len(shown) < 600
    assert "(100,000 characters)" in texts.plain_text("a" * 100_000)


@pytest.fixture
def hostile_lab(hostile):
    lab = Lab(hostile, local_batch=2, accumulation_steps=2, memory_size=4, updates=3, dim=8)
    lab.run(2)
    return lab


def test_hostile_text_is_text_on_a_card(hostile):
    assert "<script" not in cl.Card(hostile.train[0]).widget.value


def test_hostile_text_is_text_in_a_search(hostile_lab):
    box = cl.SearchBox(hostile_lab, "<script>alert(2)</script>")
    assert "<script" not in box.found.value
    assert "<img" not in box.found.value
    shown = hostile_lab.views.search
    shown.box.value = HOSTILE[1]
    assert "<img" not in shown.found.value


def test_hostile_text_is_text_under_the_cursor(hostile_lab):
    view = hostile_lab.views
    assert view.matrix.grid.rows > 0
    for row in range(view.matrix.grid.rows):
        told = (
            view.matrix.describe(row, row)
            + view.matrix.ranking(row)
            + view.banks.describe("passage", row)
        )
        assert "\x1b" not in told
        assert "\x00" not in told
        assert len(told) < 2000


@pytest.mark.parametrize("text", [*HOSTILE[:4], "$\\frac{1}$ $", "<b onclick='x'>\x1b]0;title\x07"])
def test_hostile_text_is_text_in_pictures_maps_and_logs(text, hostile):
    tame = lambda shown: not re.search(r"<(img|script|b )|[\x00-\x08\x0b-\x1f]", shown)
    lab = Lab(hostile, local_batch=2, accumulation_steps=2, memory_size=4, updates=3, dim=8)
    lab.run(1)
    again = cl.Again("none", "run")
    again.say(text)
    assert tame(again.words.value)
    figure3 = cl.HeatMap(lab, steps=(1,), sizes=(0,), pairs_seen=4)
    figure3._merge_field(text)
    assert tame(figure3.words.value) and "is no entry" in figure3.words.value
    lab.message = text
    assert tame(lab.views.message.value)
    asked = cl.Predict("hostile", text, options=[text, "b"], reply={"b": text})
    assert tame(asked.widget.children[0].value)
    pair = hostile.train[0]._replace(title=text)
    for shown in (cl.SearchBox(lab, text), cl.Card(pair)):
        plain = shown._repr_mimebundle_()["text/plain"]
        assert not re.search(r"[\x00-\x08\x0b-\x1f]", plain) and len(plain) < 1000
    for picture in (
        cl.MatrixPicture(torch.eye(2), text, text),
        cl.LinesPicture({text: ([1, 2], [3, 4]), "b": ([1, 2], [2, 2])}, text, text, text),
        cl.PointsPicture({text: (1, 2)}, text, text, text),
        cl.PanelsPicture({text: torch.eye(2)}, text),
    ):
        assert image(picture.png()).width > 100  # matplotlib reads no formula in it


HALVES = [
    "\ud800",
    "a\udfffb",
    "\udcff" * 3,
]  # of characters, as a cut text or a name of bytes has them


def sendable(*outputs):
    """Whether a page can be sent all this: JSON in UTF-8."""
    return all(json.dumps(output, ensure_ascii=False).encode() for output in outputs)


@pytest.mark.parametrize("text", HALVES)
def test_half_a_character_can_be_drawn(text, lab):
    lines = [curves._line("mrr", text, [1, 2], [1, 2], "#000000", "solid", 1)]
    figure = stills.new(4, 3)
    stills.curves(figure, lines, curves.PANELS)
    assert image(stills.png(figure, text)).width > 100 and sendable(
        curves._sendable(lines[0])["name"]
    )
    for picture in (
        cl.MatrixPicture(torch.eye(2), text, text, rows=text, columns=text),
        cl.PointsPicture({text: (1, 2), "b": (2, 3)}, text, text, text),
        cl.PanelsPicture({text: torch.eye(2)}, text),
        cl.LinesPicture({text: ([1, 2], [3, 4]), "b": ([1, 2], [2, 2])}, text, text, text),
    ):
        assert image(picture.png()).width > 100 and sendable(*picture._repr_mimebundle_())
        assert picture.widget is None or sendable(
            *(value for value in picture.widget.get_state().values() if isinstance(value, str))
        )
    assert sendable(
        texts.plain_text(text), cl.Card(Pair("a", text, text, text))._repr_mimebundle_()
    )


@pytest.mark.parametrize("query", [*HALVES, "what is \ud83d\ude00"])
def test_half_a_character_in_the_search_box_is_said(query, lab):
    box = lab.views.search
    box.box.value = query
    assert "is no character" in box.found.value
    assert "role='alert'" in box.found.value
    assert box.hits == {}
    assert sendable(box.found.value, box.sentence)
    assert "is no character" in box.sentence
    assert "Traceback" not in box.sentence
    box.box.value = "remove whitespace"
    assert "<ol>" in box.found.value
    assert len(box.hits) == 1
    assert "finds" in box.sentence


def test_what_goes_wrong_in_a_search_is_said(lab, monkeypatch):
    box = lab.views.search
    monkeypatch.setattr(
        lab.training, "search", lambda *_: (_ for _ in ()).throw(MemoryError("no <b>room</b>"))
    )
    box.box.value = "anything"
    assert box.found.value == "<p role='alert'>no &lt;b&gt;room&lt;/b&gt;</p>"
    assert box.sentence == "no <b>room</b>"


@pytest.mark.parametrize("name", ["_x", "__", "_", "$_x$", "\x00_x"])
def test_every_line_of_a_picture_is_in_its_legend(name):
    figure = stills.new(4, 3)
    stills.lines(
        figure.subplots(), {name: ([1, 2], [3, 4]), "b": ([1, 2], [2, 2])}, "", "", "", False, False
    )
    shown = [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]
    assert shown == [stills.literal(name), "b"]
    figure = stills.new(4, 3)
    stills.curves(
        figure, [curves._line("mrr", name, [1, 2], [1, 2], "#000000", "solid", 1)], curves.PANELS
    )
    assert [text.get_text().strip() for text in figure.axes[-1].get_legend().get_texts()] == [
        stills.literal(name)
    ]


def test_search_box_follows_its_text(lab, toy):
    lab.stop()
    box = cl.SearchBox(lab, toy.test[0].query)
    before = box.found.value
    box.box.value = toy.test[1].query
    assert box.found.value != before and "after update 3" in box.found.value
    assert [h.id for h in box.hits["ContAccum"]] == [
        h.id for h in lab.training.search(toy.test[1].query, 5)
    ]
    assert box.hits["ContAccum"][0].title in box.sentence
    assert toy.test[0].passage not in box.sentence
    two = cl.SearchBox({"a": lab.training, "b": lab.training}, toy.test[0].query)
    assert list(two.hits) == ["a", "b"]
    box.box.value = "   "  # nothing asked: what was found stays
    assert box.hits["ContAccum"]


def test_methods_picture_tells_where_gradients_go():
    figure = stills.methods_figure()
    colors = {name: color for name, (color, _) in stills.GRADIENTS.items()}
    found = [[p.get_facecolor() for p in axis.patches] for axis in figure.axes]
    from matplotlib.colors import to_rgba

    count = lambda axis, name: sum(c == to_rgba(colors[name]) for c in found[axis])
    assert count(0, "both") == 16
    assert count(1, "both") == 8
    assert count(1, "absent") == 8
    assert (count(2, "both"), count(2, "query"), count(2, "passage")) == (4, 8, 0)
    assert (count(3, "both"), count(3, "query"), count(3, "passage"), count(3, "none")) == (
        4,
        8,
        8,
        16,
    )


def test_one_picture_of_the_curves_is_on_its_way(toy, monkeypatch):
    """While it plays, none is sent before the page has drawn the one before."""
    monkeypatch.setattr(panel, "MIN_CURVE_INTERVAL_S", 0)
    monkeypatch.setattr(panel, "TRAIN_TO_DRAW_RATIO", 0)
    lab = Lab(toy, **SMALL)
    view, plot = lab.views, lab.views.curves.plot
    lab.unobserve(view._on_tick, "ticks")  # which draws all while nothing plays
    plot.drawn = plot.frame
    before = plot.frame
    for _ in range(3):
        lab._do_next_work()
        view._draw_while_playing(view._next_curves + 1)
    assert plot.frame == before + 1 and not plot.answered
    plot.drawn = plot.frame
    view._draw_while_playing(view._next_curves + 1)
    assert plot.frame == before + 2
    lab.stop()  # at rest all is drawn
    view.curves.draw()
    assert points(plot.lines[-2]["y"]) == [u.grad_norm_passage for u in lab.training.history]


def test_of_more_cells_than_a_canvas_has_room_for_the_strongest_are_sent(monkeypatch, toy):
    from contaccum_lite.lab.grid import Grid, strongest

    values = torch.zeros(1032, 1031)
    values[5, 7], values[4, 6], values[700, 900], values[1031, 1030] = 1.0, -0.5, -2.0, 0.5
    found = strongest(values, 2)
    assert found.shape == (516, 516)
    assert (
        found[2, 3],
        found[350, 450],
        found[515, 515],
        (found != 0).sum(),
    ) == (1, -2, 0.5, 3)
    assert torch.equal(strongest(values, 1), values)
    grid = Grid()
    grid.show(np.zeros((516, 516), dtype=np.uint8), scale=2, shape=(1032, 1031))
    assert (grid.rows, grid.columns, grid.scale, len(grid.cells)) == (1032, 1031, 2, 516 * 516)
    lab = Lab(toy, **SMALL)
    lab.run(2)
    view = lab.views.matrix
    for kind in view.KINDS:  # the picture of blocks is the blocks of the picture
        monkeypatch.setattr(views, "LARGEST", 720)
        view.kind = kind
        whole = view.cells().astype(int)
        monkeypatch.setattr(views, "LARGEST", 12)
        view.draw()
        blocks = view.cells().astype(int)
        assert blocks.shape == (12, 12) and view.scale() == 2
        far = np.where(whole > 0, abs(whole - (1 if kind == "softmax weight" else 128)) + 1, 0)
        most = far.reshape(12, 2, 12, 2).max((1, 3))
        assert abs(
            np.where(blocks > 0, abs(blocks - (1 if kind == "softmax weight" else 128)) + 1, 0)
            - most
        ).max() <= (1 if kind == "score" else 0)


def test_words_of_the_banks_keep_up_at_full_speed(toy):
    """Words are due a few times a second, and then in whichever frame it is.

    Not only in the frames in which the banks' pictures are drawn.
    """
    lab = Lab(toy, updates=50, dim=8, memory_size=32)
    view = lab.views
    for grid in (*view.banks.grids.values(), view.matrix.grid):
        grid.shown = True
    for frames in (0, 1):
        lab.step("micro-batch")
        expected = view.banks.one("query")
        with lab.hold_trait_notifications():
            lab.playing = True
            view.frames, view._next_frame, view._next_text = frames, 0.0, 0.0
            for grid in view.banks.grids.values():
                grid.sentence = "old"
            view.matrix.grid.beaten = view.matrix.grid.beat
            view._on_tick()
            lab.playing = False
        assert view.banks.grids["query"].sentence == expected, frames
    lab.close()


def test_cividis_is_matplotlibs():
    from matplotlib import colormaps

    from contaccum_lite.lab.grid import colours

    expected = (colormaps["cividis"](np.linspace(0, 1, 255)) * 255).round().astype(np.uint8)
    assert (colours("magnitude")[1:] == expected).all()
    assert not colours("magnitude")[0].any()


def test_a_fresh_lab_is_shown_without_slow_imports():
    """Neither plotly nor matplotlib nor PyTorch's compiler is imported before the first picture."""
    import subprocess
    import sys

    source = (
        "import sys, contaccum_lite as cl; toy = cl.load_pairs('toy'); lab = cl.Lab(toy, dim=8)\n"
        "data, _ = lab._repr_mimebundle_(); assert data['image/png']\n"
        "slow = {'plotly', 'matplotlib', 'torch._dynamo'} & {*sys.modules}\n"
        "lab.run(2); print(slow, lab.training.step_count)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout.strip() == "set() 2", done.stderr


def test_an_optimizer_made_without_the_compiler_trains_the_same(toy):
    from contaccum_lite.lab.lab import Player

    runs = [Lab(toy, **SMALL), Player(toy, **SMALL)]
    for run in runs:
        run.run(3)
    assert [u.loss for u in runs[0].training.history] == [u.loss for u in runs[1].training.history]


def test_the_seldom_used_controls_are_folded(toy):
    view = Lab(toy, **SMALL).views
    assert view.more.layout.display == "none"
    view.fold.value = True
    assert view.more.layout.display != "none" and view.fold.description == "Fewer controls"
    assert {view.controls["seed"], view.line} <= {*view.more.children}


def test_a_reset_button_stands_beside_what_waits(lab):
    view = lab.views
    assert view.reset_now.layout.display == "none"
    lab.seed = 7
    assert view.reset_now.layout.display != "none"
    assert "ccl-waits" in view.controls["seed"]._dom_classes
    view.reset_now.click()
    assert lab.training.settings.seed == 7 and view.reset_now.layout.display == "none"
    assert "ccl-waits" not in view.controls["seed"]._dom_classes


def test_a_lab_without_a_tour(toy):
    assert len(Lab(toy, **SMALL).views.guide.steps) == 6
    assert Lab(toy, **SMALL, tour=False).views.guide.steps == []


def test_objective_directions_and_mask_are_controls_and_change_the_picture(toy):
    """Chosen by hand before the first update they hold at once; later they wait for Reset."""
    lab = Lab(toy, **SMALL, local_batch=4, start="random")
    controls = lab.views.controls
    lab.views.matrix.kind = "gradient weight"

    def row_sums():
        lab.step()
        return torch.as_tensor(lab.views.matrix.data()["values"]).nansum(1)

    assert row_sums().abs().max() < 1e-5  # a softmax minus its positive
    controls["objective"].value = "sigmoid"
    assert lab.needs_reset == ("objective",) and "objective = sigmoid" in lab.message
    lab.reset()
    assert lab.training.settings.objective == "sigmoid" and row_sums().abs().max() > 1e-3
    controls["objective"].value = "decoupled"
    controls["directions"].value = "both"
    controls["mask_margin"].value = 0.0
    lab.reset()
    lab.step()
    settings = lab.training.settings
    assert (settings.objective, settings.directions, settings.mask_margin) == (
        "decoupled",
        "both",
        0,
    )
    values = torch.as_tensor(lab.views.matrix.data()["values"])
    scores = torch.as_tensor(lab.micro.scores)
    assert (scores <= scores.diagonal()[:, None]).all()  # what was above the positive is left out
    assert values.isnan().any() and not values.diagonal().isnan().any()
    assert "objective=decoupled" in lab.share() and "mask_margin=0" in lab.share()
    controls["mask_margin"].value = "off"
    assert lab.settings.mask_margin is None and controls["mask_margin"].label == "off"
    lab.mask_margin = 2.5  # none of the list's
    assert controls["mask_margin"].value == 2.5
    lab.method = "sogclr"
    assert controls["objective"].disabled and controls["objective"].value == "sogclr"

"""The race, the search box and the card, without a browser."""

import re

import pytest

import contaccum_lite as cl
from contaccum_lite import views
from contaccum_lite.data import Pair, Pairs, Passage


@pytest.fixture(scope="module")
def race(toy):
    race = cl.Race(toy, updates=12, every=4, dim=16, accumulation_steps=3, memory_size=16)
    race.run(draw=False)
    return race


def test_a_race_is_fair(race, toy):
    for method, run in race.runs.items():
        assert run.settings.total_batch == 24 and run.step_count == 12
        assert run.settings.memory_size == (16 if method in ("pre_batch", "contaccum") else 0)
    alone = cl.Run(toy, race.runs["contaccum"].settings)
    assert [u.loss for u in alone] == [u.loss for u in race.runs["contaccum"].history]


def test_sentence_table_and_lessons_come_from_the_runs(race):
    for method, run in race.runs.items():
        score = run.evaluate()["top@20"]
        assert race.top20[method][-1] == (12, score) and [u for u, _ in race.top20[method]] == [0, 4, 8, 12]
        name = {"dpr": "DPR", "grad_accum": "GradAccum", "pre_batch": "pre-batch", "contaccum": "ContAccum"}[method]
        assert f"{name} {score:.0%}" in race.summary and f"{name} {run.history[-1].grad_norm_ratio:.1f}" in race.summary
        assert f"{score:.1%}" in race.table() and f"{score:.1%}" in race.what_we_saw()
    assert "7 negatives per query in place of 23" in race.what_we_saw() and "had 23 negatives with 8 pairs" in race.what_we_saw()


def test_lines_are_the_data(race):
    lines = {(m, p): (x, y) for m, p, x, y in views.race_lines(race)}
    assert lines["dpr", "top20"] == ([0, 4, 8, 12], [100 * s for _, s in race.top20["dpr"]])
    assert lines["pre_batch", "ratio"] == (list(range(1, 13)), [u.grad_norm_ratio for u in race.runs["pre_batch"].history])
    figure = views.race_figure(race)
    assert [tuple(t.y) for t in figure.data] == [tuple(y) for _, _, _, y in views.race_lines(race)]
    assert len({t.line.dash for t in figure.data}) >= 3                        # told apart by dash, not by colour alone


def test_an_interrupt_stops_and_run_goes_on(toy, monkeypatch):
    race = cl.Race(toy, methods=("grad_accum", "contaccum"), updates=8, every=4, dim=8, accumulation_steps=2, memory_size=16)
    whole = cl.Race(toy, methods=("grad_accum", "contaccum"), updates=8, every=4, dim=8, accumulation_steps=2, memory_size=16)
    whole.run(draw=False)
    step, calls = cl.Run.step, []

    def interrupted(self):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(cl.Run, "step", interrupted)
    race.run(draw=False)
    assert sum(run.step_count for run in race.runs.values()) == 5 and "stopped; 8 are planned" in race.summary
    race.run(draw=False)
    assert race.top20 == whole.top20 and race.summary == whole.summary


def test_output_is_widget_picture_and_sentence(race):
    data, metadata = views._Bundle(view := views.RaceView(race))._repr_mimebundle_()
    assert data["text/plain"] == race.summary == metadata["image/png"]["alt"]
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == view.widget.model_id
    assert len(data["image/png"]) > 5000


def test_before_the_start(toy):
    race = cl.Race(toy, methods=("dpr",), updates=2)
    assert "no update made yet" in race.summary and "nan" in race.table()


HOSTILE = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "$x$ \\(y\\)", "\x1b[31mred\x1b[0m", "a" * 100_000, "&lt;b&gt;", "\x00\x07"]


def test_hostile_text_is_text():
    for text in HOSTILE:
        shown = views.plain_text(text)
        assert not re.search(r"<(?!/?em)", shown) and "$" not in shown and "\x1b" not in shown and "\x00" not in shown and len(shown) < 600
    assert "(100,000 characters)" in views.plain_text("a" * 100_000)
    passages = [Passage(str(n), text, text) for n, text in enumerate(HOSTILE)]
    pairs = Pairs("hostile", [Pair(str(n), t + " q", t, t, passage_id=str(n)) for n, t in enumerate(HOSTILE)], [], passages)
    run = cl.Run(pairs, local_batch=2, accumulation_steps=2, memory_size=4, updates=2, dim=8)
    list(run)
    box = cl.SearchBox({"contaccum": run}, "<script>alert(2)</script>")
    assert "<script" not in box.found.value and "<img" not in box.found.value
    assert "<script" not in cl.Card(pairs.train[0]).widget.value


def test_search_box_follows_its_text(race, toy):
    box = cl.SearchBox(race.runs, toy.test[0].query)
    before = box.found.value
    box.box.value = toy.test[1].query
    assert box.found.value != before
    assert [h.id for h in box.hits["contaccum"]] == [h.id for h in race.runs["contaccum"].search(toy.test[1].query, 5)]
    assert box.hits["contaccum"][0].title in box.sentence and toy.test[0].passage not in box.sentence
    box.box.value = "   "                                                       # nothing asked: what was found stays
    assert box.hits["contaccum"]


def test_methods_picture_tells_where_gradients_go():
    figure = views.methods_figure()
    colors = {name: color for name, (color, _) in views.GRADIENTS.items()}
    found = [[p.get_facecolor() for p in axis.patches] for axis in figure.axes]
    from matplotlib.colors import to_rgba
    count = lambda axis, name: sum(c == to_rgba(colors[name]) for c in found[axis])
    assert count(0, "both") == 16 and count(1, "both") == 8 and count(1, "absent") == 8
    assert (count(2, "both"), count(2, "query"), count(2, "passage")) == (4, 8, 0)
    assert (count(3, "both"), count(3, "query"), count(3, "passage"), count(3, "none")) == (4, 8, 8, 16)

"""The map of Figure 3: what fills it, what merges into it, and the button that runs things anew."""

import asyncio

import numpy as np
import pytest

import contaccum_lite as cl


@pytest.fixture
def figure3(toy):
    lab = cl.Lab(toy, local_batch=4, updates=10, learning_rate=0.002)
    return cl.HeatMap(lab, steps=(1, 2), sizes=(0, 8), pairs_seen=64)


def test_filling_runs_each_cell_with_the_same_pairs(figure3):
    assert "No cell has run" in figure3.sentence and np.isnan(figure3.data()).all()
    figure3.fill()
    data, lab = figure3.data(), figure3.lab
    assert not np.isnan(data).any() and len(lab.ghosts) == 3
    for track in (*lab.ghosts, lab.track):
        s = track.run.settings
        assert s.updates * s.total_batch == 64
        assert (s.method == "grad_accum") == (s.memory_size == 0)
        at = figure3.steps.index(s.accumulation_steps), figure3.sizes.index(s.memory_size)
        assert data[at] == pytest.approx(100 * track.mrr[-1][1], abs=0.01)
    best = np.unravel_index(data.argmax(), data.shape)
    assert (
        f"Best: K {figure3.steps[best[0]]}, N_memory {figure3.sizes[best[1]]}, MRR@10 {data.max():.1f}%"
        in figure3.sentence
    )
    assert "4 of 4 cells" in figure3.sentence
    assert {b.description for b in figure3.buttons.values()} == {f"{v:.1f}" for v in data.ravel()}
    output = figure3._repr_mimebundle_()
    assert output[1]["image/png"]["alt"] == figure3.sentence == output[0]["text/plain"]


def test_lines_of_others_merge(figure3):
    figure3.fill()
    mine, before = figure3.line, figure3.data()
    assert figure3.merge(mine) == 0
    assert figure3.merge("1,0,7=50.5;2,8,7=60\n1,0,8=70") == 3 and figure3.merge("2,8,7=60") == 0
    assert figure3.data()[0, 0] == pytest.approx((before[0, 0] + 50.5 + 70) / 3)
    assert "(3)" in figure3.buttons[1, 0].description
    again = cl.HeatMap(figure3.lab, steps=(1, 2), sizes=(0, 8), pairs_seen=64)
    again.merge(figure3.line)
    assert again.line == figure3.line and np.array_equal(again.data(), figure3.data())


@pytest.mark.parametrize(
    "start, label", [("pretrained", "Before fine-tuning"), ("random", "Untrained")]
)
def test_the_map_names_the_value_before_the_first_update(toy, start, label):
    lab = cl.Lab(toy, local_batch=4, updates=10, start=start)
    figure3 = cl.HeatMap(lab, steps=(1,), sizes=(0, 8), pairs_seen=64)
    figure3.merge("1,0,0=5")
    assert label not in figure3.sentence  # a line says nothing of it
    figure3.fill([0, 1])
    before = [100 * cl.Run(toy, start=start, seed=seed).evaluate()["mrr@10"] for seed in (0, 1)]
    assert f" {label}: {sum(before) / 2:.1f}%." in figure3.sentence


def test_all_cells_start_as_the_lab_did(toy):
    lab = cl.Lab(toy, local_batch=4, updates=10, start="random")
    figure3 = cl.HeatMap(lab, steps=(1,), sizes=(0, 8), pairs_seen=64)
    lab.start = "pretrained"
    figure3.fill()
    assert {track.start.start for _, track in lab.tracks()} == {"random"}


@pytest.mark.parametrize(
    "line, words",
    [
        ("hello", "is no entry"),
        ("3,0,0=50", "which is no cell"),
        ("1,0,0=101", "is no entry"),
        ("1,0,0=5;<script>", "&lt;script&gt;"),
    ],
)
def test_what_cannot_be_read_is_said_and_takes_in_nothing(figure3, line, words):
    figure3.merge("1,0,0=5")
    with pytest.raises(ValueError):
        figure3.merge(line)
    assert figure3.line == "1,0,0=5"
    figure3.text.value = line
    assert words in figure3.words.value and figure3.line == "1,0,0=5"


def test_only_whole_runs_of_a_cell_are_entered(figure3):
    lab = figure3.lab
    lab.run()
    assert not figure3.found  # other updates than a cell's
    figure3.load(2, 8)
    lab.run(3)
    assert not figure3.found
    lab.learning_rate = 0.004
    lab.run()
    assert not figure3.found  # a slider moved on the way
    figure3.load(2, 8)
    lab.run()
    assert list(figure3.found) == [(2, 8)]


def test_a_press_loads_and_plays(toy):
    async def main():
        lab = cl.Lab(toy, local_batch=4, updates=10)
        figure3 = cl.HeatMap(lab, steps=(1, 2), sizes=(0, 8), pairs_seen=64)
        figure3.buttons[2, 8].click()
        assert lab.playing and lab.training.settings.memory_size == 8
        while lab.playing:
            await asyncio.sleep(0.01)
        assert list(figure3.found) == [(2, 8)] and figure3.buttons[2, 8].description != "run"
        lab.close()

    asyncio.run(main())


def test_what_a_press_cannot_do_is_said(figure3, monkeypatch):
    figure3.buttons[2, 8].click()  # no event loop here
    assert "call lab.run(updates)" in figure3.words.value and "role='alert'" in figure3.words.value
    before = figure3.lab.training
    monkeypatch.setattr(
        "contaccum_lite.lab.player.Run",
        lambda *_: (_ for _ in ()).throw(MemoryError("no <b>room</b>")),
    )
    figure3.buttons[1, 8].click()
    assert "no &lt;b&gt;room" in figure3.words.value and figure3.lab.training is before


def test_again_runs_shows_and_stops():
    async def main():
        button = cl.Again("timeit -n 1 -r 1 pass", "Time nothing")
        button.button.click()
        assert button.button.description == "Stop"
        await asyncio.wait_for(button.task, 60)
        assert "done" in button.words.value
        assert "loop" in button.words.value
        assert button.button.description == "Time nothing"
        slow = cl.Again(
            r"timeit -n 1 -r 1 __import__('os').system('echo\tbegun;sleep\t60')", "Sleep"
        )  # it starts another, as a pool does
        slow.start()
        for _ in range(2000):
            if "begun" not in slow.words.value:
                await asyncio.sleep(0.01)
        assert "begun" in slow.words.value
        task = slow.task
        slow.button.click()
        await asyncio.wait_for(task, 20)
        assert "begun" in slow.words.value and "stopped" in slow.words.value
        many = cl.Again("timeit -n 1 -r 1 [print(n,'and',end='\\n')for(n)in(range(30))]", "Many")
        many.start()
        await asyncio.wait_for(many.task, 60)
        assert "29 and\n" in many.words.value
        assert "25 and\n" in many.words.value
        assert "3 and\n" not in many.words.value.replace("23 and", "")

    asyncio.run(main())
    assert "python -m timeit" in cl.Again("timeit", "x")._repr_mimebundle_()["text/plain"]

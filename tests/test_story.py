"""The animated matrix: its moments are what a run's banks do, in numbers, words and a picture."""

import base64
import io

import nbformat
import pytest
import torch
from PIL import Image

import contaccum_lite as cl
from contaccum_lite.course.story import PHASES, count_entries
from tools.browser import CHROMIUM, browser, server


@pytest.mark.parametrize("query_bank", [True, False])
@pytest.mark.parametrize("local, memory, batches", [(2, 4, 3), (1, 3, 5), (3, 3, 2), (2, 2, 1)])
def test_the_moments_are_what_the_banks_hold(local, memory, batches, query_bank):
    story = cl.Story(local, memory, batches, query_bank=query_bank)
    assert [moment.phase for moment in story.moments] == list(PHASES) * batches
    bank = cl.MemoryBank(memory, 1)
    for number in range(batches):
        arrives, scored, learns, stored = story.moments[4 * number : 4 * number + 4]
        pairs = list(range(number * local + 1, (number + 1) * local + 1))
        before = bank.ids.tolist()
        for moment in (arrives, scored, learns):
            assert [v.pair for v in moment.columns] == pairs + before
            assert [v.pair for v in moment.rows] == pairs + (before if query_bank else [])
            assert [v.pair for v in moment.columns if v.fresh] == pairs
            assert [v.slot for v in moment.columns] == list(range(local + len(before)))
        assert not any(v.scored for v in arrives.columns if v.fresh)
        assert all(v.scored for v in (*scored.rows, *scored.columns, *stored.columns))
        bank.write(torch.tensor(pairs), torch.zeros(local, 1), number)
        assert [v.pair for v in stored.columns] == bank.ids.tolist()
        assert not any(v.fresh for v in (*stored.rows, *stored.columns))
        replaced = [pair for pair in before if pair not in bank.ids.tolist()]
        assert ("over the oldest" in stored.sentence) == bool(replaced)


def test_the_counts_of_the_sentence():
    story = cl.Story()
    scored = story.moments[9]
    assert scored.sentence == (
        "6 queries × 6 passages are 36 entries: 4 teach both towers, 8 the query tower only, "
        "8 the passage tower only, 16 neither (frozen)."
    )
    assert count_entries(scored.rows, scored.columns) == {
        "both": 4,
        "query": 8,
        "passage": 8,
        "none": 16,
    }
    assert story.moments[11].sentence.startswith(
        "Pairs 5 and 6 move into the banks, over the oldest, pairs 1 and 2."
    )
    one_sided = cl.Story(query_bank=False).moments[9].sentence
    assert one_sided.endswith("12 entries: 4 teach both towers, 8 the query tower only.")
    assert story.sentence.endswith(scored.sentence.partition(": ")[2])


def test_where_nothing_runs_there_is_a_strip_of_six():
    story = cl.Story()
    assert [moment.phase for moment in story.strip()] == ["is scored", "is stored"] * 3
    data, metadata = story._repr_mimebundle_()
    assert data["text/plain"] == metadata["image/png"]["alt"] == story.sentence
    assert "application/vnd.jupyter.widget-view+json" in data
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    assert picture.width > 2.5 * picture.height
    colours = {colour for _, colour in picture.getcolors(10**6)}
    for wanted in ((0x1F, 0x4E, 0x79), (0x7F, 0xB2, 0xE5), (0xF0, 0xA0, 0x4B), (0xD9, 0xD9, 0xD9)):
        assert min(max(abs(a - b) for a, b in zip(wanted, c)) for c in colours) < 6


@pytest.mark.parametrize(
    "sizes, words",
    [
        ((0, 4, 3), "local_batch is 0"),
        ((2, 3, 3), "memory_size is 3, no multiple of local_batch 2"),
        ((2, 1, 3), "choose 2 or 4"),
        ((2, 4, 0), "micro_batches is 0"),
        ((2, 4.0, 1), "memory_size is 4.0"),
        ((8, 64, 1), "room for 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, words):
    with pytest.raises(ValueError, match=words):
        cl.Story(*sizes)


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_it_plays_pauses_and_steps_by_keyboard(tmp_path):
    cells = ["import contaccum_lite as cl\nstory = cl.Story(); story", "print(story.widget.at)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata.kernelspec = dict(name="python3", display_name="Python 3", language="python")
    nbformat.write(notebook, tmp_path / "story.ipynb")
    with server(tmp_path) as address, browser(address) as page:
        page.open("story.ipynb")
        page.run_cell(0)
        page.idle()
        canvas = page.page.locator(".ccl-story canvas")
        canvas.wait_for()
        wait = lambda text: page.page.wait_for_function(
            f"document.querySelector('.ccl-story canvas')?.dataset.at === '{text}'"
        )
        wait("0.00")
        empty = page.pixels(".ccl-story canvas")
        canvas.focus()
        for at in ("1.00", "2.00", "3.00"):
            canvas.press("ArrowRight")
            wait(at)
        assert "Micro-batch 1 is stored" in canvas.get_attribute("aria-label")
        assert page.pixels(".ccl-story canvas") != empty
        canvas.press("ArrowLeft")
        wait("2.00")
        for _ in range(3):  # faster than a step moves: none is lost
            canvas.press("ArrowRight")
        wait("5.00")
        canvas.press("End")
        wait("11.00")
        assert page.page.locator(".ccl-story-play").inner_text().strip().endswith("Again")
        canvas.press("Home")
        wait("0.00")
        canvas.press(" ")  # play
        page.page.wait_for_function("document.querySelector('.ccl-story canvas').dataset.at > 1")
        canvas.press(" ")  # pause
        at = canvas.get_attribute("data-at")
        page.page.wait_for_timeout(400)
        assert canvas.get_attribute("data-at") == at
        slider = page.page.locator(".ccl-story input")
        slider.fill("9")
        wait("9.00")
        assert "36 entries" in page.page.locator(".ccl-story-sentence").inner_text()
        page.run_cell(1)
        page.page.wait_for_function("document.body.innerText.includes('9.0')")
        assert not page.errors

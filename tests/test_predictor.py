"""What predicts that a one-sided bank fails: its cells, its table, its words and its figures.

And the figures of the cause over training.
"""

import copy
import re
import struct

import matplotlib.text
import pytest

from contaccum_lite.evidence import motion, predictor, records, run, runs
from contaccum_lite.evidence.predictor import Cell
from contaccum_lite.evidence.studies import CONTROL, VARIANT_SEEDS, VARIANTS, failure_plan
from tools import figures
from tools.docs import TABLES

FAILURE = records.read_records(records.STUDIES["failure"])
CORRECTED = records.read_records(records.STUDIES["corrected"])
CELLS = predictor.cells(FAILURE, CORRECTED)
BOOKS = run.ledger_books()


def record(
    name, seed=0, mrr=0.4, settings="method=pre_batch", shifts=(0.1, 0.4), ratios=(1.0, 2.0)
):
    motion_of_run = [{"shift": shift} for shift in shifts] + [{}]
    fields = dict(name=name, seed=seed, settings=settings, motion=motion_of_run, trace=list(ratios))
    return fields | {"mrr@10": mrr}


def cell(shift, share, start="pretrained", varied=predictor.PLAIN, ratio=1.0):
    return Cell(start, varied, f"shift {shift}", shift, ratio, share, share)


# --- cells ----------------------------------------------------------------------------------------


def test_a_share_is_of_the_control_with_the_same_start_rate_size_and_seed():
    cells = predictor.cells(
        [
            record("pretrained: DPR 128, rate 0.01", 0, 0.5),
            record("pretrained: DPR 128, rate 0.01", 1, 0.5),
            record("pretrained: w/o M_q, N_memory 512, rate 0.01", 0, 0.1, shifts=(0.2, 0.6)),
            record("pretrained: w/o M_q, N_memory 512, rate 0.01", 1, 0.2, ratios=(6.0, 1.0)),
            record(f"pretrained: {CONTROL}, N_memory 512, rate 0.01", 0, 0.2),
            record(f"pretrained: {CONTROL}, N_memory 512, rate 0.01", 1, 0.8),
            record("pretrained: w/o M_q, τ 1, N_memory 512, rate 0.01", 0, 0.3),
            record(f"pretrained: {CONTROL}, τ 1, N_memory 512, rate 0.01", 0, 0.3),
            record("pretrained: ContAccum, N_memory 512, rate 0.01", 1, 0.4),
        ],
        [
            record(
                "passage bank alone, ridge, 32 probes, N_memory 512, rate 0.01", 1, 0.6,
                "method=pre_batch&start=pretrained&memory_size=512&learning_rate=0.01&corrector=ridge&probes=32",
            ),
            record("passage bank alone, as stored, N_memory 512, rate 0.01", 1, 0.6),
            record("DPR 128, rate 0.01", 1, 0.6, "method=dpr"),
        ],
    )  # fmt: skip
    shares = {(c.varied, c.name): pytest.approx(c.share) for c in cells}
    assert shares == {
        ("plain map", "w/o M_q, N_memory 512, rate 0.01"): (0.5 + 0.25) / 2,
        ("τ 1", "w/o M_q, τ 1, N_memory 512, rate 0.01"): 1.0,
        ("dual bank", "ContAccum, N_memory 512, rate 0.01"): 0.5,
        (
            "corrected passage bank",
            "passage bank alone, ridge, 32 probes, N_memory 512, rate 0.01",
        ): 0.75,
    }
    plain = cells[0]
    assert plain.shift == pytest.approx((0.6 + 0.4) / 2)
    assert plain.ratio == pytest.approx((2.0 + 6.0) / 2)
    assert plain.of_dpr == pytest.approx((0.2 + 0.4) / 2)
    assert cells[-1].of_dpr is None


def test_every_bank_of_the_plan_has_a_control_and_is_a_cell():
    plan = failure_plan()
    names = {(c.start, c.name) for c in CELLS}
    for name, spec in plan.items():
        start, _, words = name.partition(": ")
        kind = words.partition(",")[0]
        if kind not in predictor.BESIDE:
            control = plan[name.replace(kind, CONTROL, 1)]
            assert set(spec.seeds) <= set(control.seeds)
            same = dict(method="pre_batch", query_bank=False)
            assert control.settings == spec.settings.replace(**same)
            assert (start, words) in names


def test_every_variant_has_five_seeds():
    for words in VARIANTS:
        assert {c.varied for c in CELLS} >= {words}
        seeds = {r["seed"] for r in FAILURE if f"{CONTROL}, {words}" in r["name"]}
        assert seeds == set(VARIANT_SEEDS)
        assert len(seeds) == 5


def test_all_that_was_varied_is_in_the_cells_and_the_largest_bank_is_too():
    assert {c.varied for c in CELLS} == set(predictor.VARIED)
    assert any("N_memory 2048" in c.name and c.varied == "corrected dual bank" for c in CELLS)


# --- what they say --------------------------------------------------------------------------------


def test_the_rank_correlation_of_a_falling_curve_is_minus_one():
    members = [cell(shift, 1 / shift, ratio=shift % 4) for shift in (1, 5, 2, 9)]
    assert predictor.rank_correlation(members, "shift") == pytest.approx(-1)
    assert abs(predictor.rank_correlation(members, "ratio")) < 1


def test_the_table_counts_cells_by_the_level_of_their_shift():
    members = [cell(0.1, 0.9), cell(0.2, 1.0), cell(0.3, 0.8), cell(5.0, 0.01)]
    row = predictor.table(members).splitlines()[2].split(" | ")
    assert row[-2:] == ["–", "– |"]  # too few cells for a rank correlation
    assert row[2:6] == ["90% to 100% (2)", "80% (1)", "–", "1% (1)"]


def test_the_words_name_the_cells_that_speak_against_a_law():
    members = [cell(0.1, 1.0), cell(0.2, 0.5), cell(2.0, 0.9), cell(4.0, 0.1)]
    text = predictor.words(members)
    assert "1 cell is below 85%: pretrained, shift 0.2 (shift 0.20, 50%)" in text
    assert "1 cell is above 67%: pretrained, shift 2.0 (shift 2.00, 90%)" in text
    lawful = predictor.words([cell(0.1, 1.0), cell(0.2, 0.9), cell(2.0, 0.3), cell(4.0, 0.1)])
    assert "no cell is below 85%" in lawful
    assert "no cell is above 67%" in lawful


def test_the_sentence_of_the_figure_is_computed_from_its_numbers():
    lines = predictor.sentence(CELLS)
    assert lines.startswith(f"{len(CELLS)} points")
    low = [c for c in CELLS if c.shift < 0.3]
    harmed = [c for c in low if c.share < predictor.NO_HARM]
    assert f"{len(harmed)} of {len(low)} points with a shift below 0.3" in lines
    changed = copy.deepcopy(FAILURE)
    for r in changed:
        r["mrr@10"] *= 0.1 if CONTROL not in r["name"] else 1
    assert predictor.sentence(predictor.cells(changed, CORRECTED)) != lines


@pytest.mark.parametrize("start", runs.STARTS)
def test_the_lines_of_the_cause_are_the_means_of_the_records(start):
    book = BOOKS[start]
    for cell_name, name in motion.CELLS.items():
        of_name = book.of(name)
        updates, shifts = motion.lines(book)["shift"][cell_name]
        assert updates == [moment["update"] for moment in of_name[0]["motion"]]
        last = sum(r["motion"][-1]["shift"] for r in of_name) / len(of_name)
        assert shifts[-1] == pytest.approx(last)
        updates, norms = motion.lines(book)["norm_query"][cell_name]
        assert len(updates) == len(norms) == len(of_name[0]["norm_query"])
        assert updates[0] > 0 and updates[-1] < of_name[0]["updates"]


@pytest.mark.parametrize("start", runs.STARTS)
def test_the_sentence_of_the_cause_says_each_cell(start):
    text = motion.sentence(BOOKS[start])
    largest = max(motion.line(BOOKS[start], "w/o M_q", "shift")[1])
    assert f"Stale: shift up to {largest:.2g}" in text
    for words in ("Push removed:", "Bank fresh:", "Both:", "5 seeds", "400 updates"):
        assert words in text


def test_only_the_stale_bank_with_its_push_collapses():
    """From random weights all passages become one vector; with either intervention they do not."""
    collapse = motion.lines(BOOKS["random"])["collapse"]
    assert min(collapse["stale"][1]) > 0.99
    for cell_name in ("push removed", "bank fresh", "both"):
        assert max(collapse[cell_name][1]) < 0.8


# --- figures --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_figures():
    return figures.figures()


@pytest.mark.slow
def test_no_text_of_a_figure_is_smaller_than_nine_points(all_figures):
    for figure, _ in all_figures.values():
        figure.canvas.draw()
        texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text().strip()]
        assert len(texts) > 10
        assert min(t.get_fontsize() for t in texts) >= figures.SMALLEST_TEXT >= 9


@pytest.mark.slow
def test_the_predictors_figure_has_every_cell(all_figures):
    figure, _ = all_figures["failure-figure"]
    points = [tuple(p) for c in figure.axes[0].collections for p in c.get_offsets().tolist()]
    assert sorted(points) == sorted((c.shift, c.share) for c in CELLS)
    assert len({c.get_label() for c in figure.axes[0].collections}) == len(
        {(c.start, c.varied) for c in CELLS}
    )


def test_each_thing_that_was_varied_has_its_own_marker():
    assert set(figures.MARKERS) == set(predictor.VARIED)
    assert len(set(figures.MARKERS.values())) == len(predictor.VARIED)


@pytest.mark.slow
def test_pages_show_each_figure_with_its_sentence(all_figures):
    for name, (_, sentence) in all_figures.items():
        assert (TABLES / f"{name}.md").read_text() == figures.embedded(name, sentence) + "\n"
        assert re.search(r"\d", sentence)
        assert not set(sentence) & set("[]")  # it stands within brackets
        header = (figures.IMAGES / f"{name}.png").read_bytes()[:24]
        assert header[:4] == b"\x89PNG"
        width, height = struct.unpack(">II", header[16:24])
        assert 800 < width < 1400 and height > 300

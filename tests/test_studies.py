"""Our own studies: their plans are whole, and their tables say what the records say."""

import re

import pytest

import contaccum_lite as cl
from contaccum_lite.evidence import ledger, records, regime, runs, studies
from contaccum_lite.evidence.claims import printed
from contaccum_lite.evidence.ledger import CELLS
from tools.docs import ROOT
from contaccum_lite.evidence.runs import GRID_STEPS, RATES, at_rate, figure3

EVIDENCE = ROOT / "docs" / "evidence.md"
FAILURE = records.read_records(records.STUDIES["failure"])
CORRECTED = records.read_records(records.STUDIES["corrected"])
BOOKS = {
    start: records.RunRecords(records.read_records(records.STUDIES[start]), start)
    for start in runs.STARTS
}


def test_every_run_of_the_map_has_dpr_beside_it():
    points = studies.share_of_dpr(FAILURE)
    assert len(points) == sum("DPR 128" not in r["name"] for r in FAILURE)


def test_the_share_of_dpr_is_of_the_same_rate_and_seed():
    record = lambda name, seed, mrr: {
        "name": name, "seed": seed, "mrr@10": mrr, "trace": [1.0, 2.0],
        "motion": [{"shift": 0.1}, {"shift": 0.4}, {}],
    }  # fmt: skip
    points = studies.share_of_dpr(
        [
            record("pretrained: DPR 128, rate 0.01", 0, 0.4),
            record("pretrained: DPR 128, rate 0.01", 1, 0.5),
            record("pretrained: DPR 128, τ 1, rate 0.01", 0, 0.8),
            record("pretrained: w/o M_q, N_memory 512, rate 0.01", 1, 0.1),
            record("pretrained: w/o M_q, τ 1, N_memory 512, rate 0.01", 0, 0.2),
        ]
    )
    assert [p["share"] for p in points] == pytest.approx([0.2, 0.25])
    assert [p["shift"] for p in points] == [0.4, 0.4]
    assert [p["kind"] for p in points] == ["w/o M_q", "w/o M_q"]


def test_the_rank_correlation_of_a_falling_curve_is_minus_one():
    points = [{"shift": x, "share": 1 / x} for x in (1, 5, 2, 9)]
    assert studies.rank_correlation(points, "shift") == pytest.approx(-1)


def test_the_plans_pair_every_corrected_bank_with_the_bank_as_stored():
    plan = studies.corrected_plan()
    for name, spec in plan.items():
        if spec.settings.corrector != "identity" and spec.settings.memory_size == 512:
            bank = name.split(",")[0]
            stored = studies.corrected_name(bank, "identity", 0, 512, spec.settings.learning_rate)
            assert stored in plan


def test_the_table_of_the_two_papers_has_every_run():
    table = studies.corrected_table(CORRECTED)
    assert all(f"| {name} |" in table for name in studies.corrected_plan())


@pytest.mark.parametrize("start", runs.STARTS)
def test_the_regime_tables_have_every_method(start):
    table = regime.main_table(BOOKS[start])
    assert all(f"| {label} |" in table for label in regime.LABELS.values())
    assert table.splitlines()[2].startswith("| before fine-tuning |")


@pytest.mark.parametrize("start", runs.STARTS)
def test_the_table_of_the_cause_has_four_cells_a_row(start):
    for row in regime.cause_table(BOOKS[start]).splitlines()[2:]:
        assert row.count("ratio") == len(CELLS)


def test_the_defaults_are_those_that_the_dev_pairs_choose_or_the_docs_say_so():
    text, docs = regime.chosen_defaults(BOOKS["pretrained"]), EVIDENCE.read_text()
    rate, size = re.search(r"highest is at (\S+)\. .*below the best: (\d+)\.", text).groups()
    assert int(size) == cl.Settings().memory_size
    assert float(rate) == cl.Settings().learning_rate or "the rule is not followed" in docs


def test_a_run_is_the_same_as_its_record(docs):
    """One short run of the plan, made now, agrees with what its settings say."""
    spec = runs.RUNS["pretrained"]["ContAccum 8"]
    record = runs.train("ContAccum 8", 0, docs, spec, step_divisor=50)
    assert record["updates"] == spec.settings.updates // 50
    assert cl.Settings.parse(record["settings"]).start == "pretrained"
    assert record["motion"][-1]["shift"] > 0
    assert set(runs.MEASURES) <= set(record)


# --- what the course promises of its regime -------------------------------------------------------

FINE_TUNED = BOOKS["pretrained"]


def test_a_larger_batch_is_better_by_more_than_the_spread():
    for small, large in (("DPR 8", "DPR 32"), ("DPR 32", "DPR 128")):
        assert FINE_TUNED.difference(large, small).is_positive


def test_contaccum_is_not_below_dpr_with_the_whole_batch():
    assert not FINE_TUNED.difference("ContAccum 8", "DPR 128").is_negative


def test_contaccum_is_three_points_above_gradaccum():
    assert FINE_TUNED.difference("ContAccum 8", "GradAccum 8").mean >= 3


def test_the_passage_bank_alone_is_five_points_below_contaccum():
    assert FINE_TUNED.difference("ContAccum 8", "w/o M_q").mean >= 5


def test_past_encoders_are_worth_a_point():
    assert FINE_TUNED.difference("ContAccum 8", "w/o past").mean >= 1


def test_at_some_rate_contaccum_is_significantly_above_dpr():
    names = [(at_rate("ContAccum 8", r), at_rate("DPR 128", r)) for r in RATES["pretrained"]]
    assert any(FINE_TUNED.difference(*pair).is_positive for pair in names)


@pytest.mark.parametrize("k", GRID_STEPS)
def test_figure_3_rises_up_to_512_at_the_lower_rate(k):
    """Up to the spread: no step down is significant, and 512 is above no bank."""
    cells = [figure3("pretrained", n, k, 0.002) for n in (0, 32, 128, 512)]
    for small, large in zip(cells, cells[1:]):
        assert not FINE_TUNED.difference(large, small).is_negative
    assert FINE_TUNED.difference(cells[-1], cells[0]).is_positive


def test_at_least_17_claims_of_the_paper_are_decided_fine_tuned():
    judged = ledger.verdicts(FINE_TUNED, records.read_records(records.COST))
    ours = {claim["name"] for claim in printed("contaccum") if claim["section"].startswith("ours")}
    decided = [n for n, (v, _) in judged.items() if v.verdict != "not decided" and n not in ours]
    assert len(decided) >= 17

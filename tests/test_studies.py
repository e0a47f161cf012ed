"""Our own studies: their plans are whole, and their tables say what the records say."""

import re

import pytest

import contaccum_lite as cl
from contaccum_lite.evidence import ledger, records, regime, run, runs, studies
from contaccum_lite.evidence.claims import printed
from contaccum_lite.evidence.ledger import CELLS
from tools import correctors
from tools.docs import ROOT
from contaccum_lite.evidence.runs import GRID_STEPS, RATES, at_rate, figure3

EVIDENCE = ROOT / "docs" / "evidence.md"
FAILURE = records.read_records(records.STUDIES["failure"])
CORRECTED = records.read_records(records.STUDIES["corrected"])
RECORDS = {start: records.read_records(records.STUDIES[start]) for start in runs.STARTS}
BOOKS = {start: records.RunRecords(RECORDS[start], start) for start in runs.STARTS}
COST_OF_CORRECTORS = records.read_records(records.CORRECTOR_COST)
TOGETHER = run.corrected_tables()["corrected"]


def test_the_plans_pair_every_corrected_bank_with_the_bank_as_stored():
    plan = studies.corrected_plan()
    for name, spec in plan.items():
        if spec.settings.corrector != "identity" and spec.settings.memory_size == 512:
            bank = name.split(",")[0]
            stored = studies.corrected_name(bank, "identity", 0, 512, spec.settings.learning_rate)
            assert stored in plan


def test_every_run_of_the_two_papers_has_its_cell_in_the_table():
    rows = {line.split(" | ")[0].removeprefix("| ") for line in TOGETHER.splitlines()}
    for name in studies.corrected_plan():
        method, _, rate = name.rpartition(", rate ")
        assert method in rows
        assert f"MRR@10 at {rate}" in TOGETHER.splitlines()[0]
    assert {"GradAccum 8 × 16", "GradCache 8 × 16"} <= rows


def own_rate_column(records_of_study):
    book = studies.corrected_book(records_of_study, RECORDS["pretrained"])
    table = studies.corrected_table(book, COST_OF_CORRECTORS).splitlines()
    column = table[0].split(" | ").index("its own rate (dev)")
    return [row.split(" | ")[column] for row in table[2:]]


def test_each_methods_own_rate_is_chosen_by_the_dev_pairs_alone():
    before = own_rate_column(CORRECTED)
    other_test = [{**r, "mrr@10": 1 - r["mrr@10"], "top@20": 1 - r["top@20"]} for r in CORRECTED]
    assert own_rate_column(other_test) == before
    other_dev = [{**r, "dev mrr@10": 1 - r["dev mrr@10"]} for r in CORRECTED]
    assert own_rate_column(other_dev) != before


def test_all_choose_among_the_same_rates():
    book = studies.corrected_book(CORRECTED, RECORDS["pretrained"])
    for name in studies.corrected_methods():
        assert tuple(book.rates(name)) == studies.CORRECTED_RATES


def test_extra_encodes_are_counted_over_one_pass():
    book = studies.corrected_book(CORRECTED, RECORDS["pretrained"])
    extra = lambda name: studies._extra_encodes(book, name)
    assert extra("DPR 128, rate 0.01") == "0%"
    assert extra("dual bank, ridge, 32 probes, N_memory 512, rate 0.01") == "25%"  # 32 of 128
    assert extra("dual bank, ridge, 128 probes, N_memory 512, rate 0.01") == "100%"


def test_every_row_of_the_table_has_its_time_with_both_towers():
    timed = [(r["tower"], r["name"]) for r in COST_OF_CORRECTORS["updates"]]
    towers = dict.fromkeys(tower for tower, _ in timed)
    assert len(towers) == 2
    wanted = [(tower, name) for tower in towers for name in studies.corrected_methods()]
    assert sorted(timed) == sorted(wanted)
    times = {pair: r["times"] for pair, r in zip(timed, COST_OF_CORRECTORS["updates"])}
    for tower in towers:
        assert times[tower, "GradAccum 8"] == 1.0
        fresh = times[tower, "dual bank, fresh, N_memory 512"]
        assert fresh > times[tower, "dual bank, as stored, N_memory 512"]
    assert "process_time" in COST_OF_CORRECTORS["what"]


def test_the_docs_say_of_time_what_was_measured():
    """What docs/evidence.md says in words, without numbers."""
    times = {(r["tower"], r["name"]): r["times"] for r in COST_OF_CORRECTORS["updates"]}
    bert = lambda name: times["small transformer", name]
    bag = lambda name: times["bag of words", name]
    ridge = "ridge, 32 probes, N_memory 512"
    assert max(bert(f"{bank}, {ridge}") for bank in studies.BANKS) < bert("GradCache 8")
    for bank in studies.BANKS:
        assert 1.6 < bert(f"{bank}, fresh, N_memory 512") < 2.5
    assert 1.6 < bag(f"dual bank, {ridge}") < 2.7
    assert 15 < bag("dual bank, ridge, 128 probes, N_memory 2048") < 26
    assert max(bag(f"passage bank alone, {ridge}"), bert(f"passage bank alone, {ridge}")) < 1.6


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


# --- what a corrected bank costs ------------------------------------------------------------------


def test_times_are_medians_of_each_rounds_multiple_of_the_base():
    seconds = {"base": [1.0, 2.0, 4.0], "other": [2.0, 2.0, 12.0]}
    assert correctors.over_base(seconds, "base") == {"base": 1.0, "other": 2.0}


def test_runs_take_turns_and_processor_seconds_are_counted(monkeypatch):
    clock, order = iter(range(100)), []
    monkeypatch.setattr(correctors.time, "process_time", lambda: next(clock))

    class Counted:
        def __init__(self, name):
            self.step = lambda: order.append(name)

    seconds = correctors.in_turns({"a": Counted("a"), "b": Counted("b")}, 3)
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [1, 1, 1], "b": [1, 1, 1]}


def test_what_is_timed_has_full_banks_and_encodes_micro_batch_by_micro_batch(docs):
    name = "dual bank, ridge, 32 probes, N_memory 512"
    settings = correctors.settings_of(name, "bag of words")
    assert not settings.one_forward
    assert (settings.memory_size, settings.probes) == (512, 32)
    assert (settings.local_batch, settings.accumulation_steps) == (8, 16)
    run_of_it = correctors.full_run(docs, settings)
    assert len(run_of_it.passage_bank) == len(run_of_it.query_bank) == 512
    bert = correctors.settings_of(name, "small transformer")
    assert (bert.tower, bert.start, bert.corrector) == ("bert", "random", "ridge")

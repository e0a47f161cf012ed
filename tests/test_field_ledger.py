"""The third ledger: its plan goes on from what is recorded, and its tables say what records say."""

import copy
import re

import pytest

import contaccum_lite as cl
from contaccum_lite.data import toy_pairs
from contaccum_lite.data.types import Pairs
from contaccum_lite.evidence import field, field_claims, field_costs, records, run as command
from contaccum_lite.evidence.claims import Outcome
from contaccum_lite.evidence.runs import PAIRS_SEEN, at_rate
from tools.docs import TABLES

FIELD = records.read_records(records.FIELD)
LEDGER = records.read_records(records.STUDIES["pretrained"])


def record(name, seed, mrr=0.3, dev=0.3):
    return {"name": name, "seed": seed, "mrr@10": mrr, "top@20": 0.6, "dev mrr@10": dev}


def made(quality):
    """What the plan gives, run to its end, where a run's MRR@10 is `quality(name, seed)`."""
    ours = {theirs: name for name, theirs in field.BASELINES.items()}
    results = []
    for r in LEDGER:
        base, comma, rate = r["name"].partition(", rate ")
        if base in ours:
            results.append(
                record(ours[base] + comma + rate, r["seed"], *quality(ours[base], r["seed"]))
            )
    stages = []
    while jobs := field.next_runs(results):
        stages.append(jobs)
        for name, seed in jobs:
            base = name.partition(", rate ")[0]
            results.append(record(name, seed, *quality(base, seed)))
    return results, stages


def test_the_plan_ends_and_every_run_is_of_the_same_pairs():
    results, stages = made(lambda name, seed: (0.3, 0.3))
    names = [(r["name"], r["seed"]) for r in results]
    assert len(set(names)) == len(names)
    plan = field.plan()
    for name, seed in (run for stage in stages for run in stage):
        settings = plan[name].settings
        assert settings.updates * settings.total_batch == PAIRS_SEEN, name
        assert settings.start == "pretrained" and seed in range(10)
    for name in field.METHODS:
        assert field.is_tuned(name, results)
        run = field.at_own_rate(name, results)
        assert {s for n, s in names if n == run} >= set(field.RACE_SEEDS)
    assert field.next_runs(results) == []


def test_a_plan_that_is_stopped_goes_on_where_it_was():
    results, _ = made(lambda name, seed: (0.3, 0.3))
    some = [r for r in results if r["name"] != "sigmoid"]
    assert {name for name, _ in field.next_runs(some)} == {"sigmoid"}


def test_the_winner_holds_8_pairs_and_is_run_with_fresh_seeds():
    dev = {"DPR 128": 0.9, "clusters": 0.5}
    results, _ = made(lambda name, seed: (0.3, dev.get(name, 0.2)))
    assert field.winner(results) == "clusters"
    for name in ("clusters", *field.RIVALS):
        run = field.at_own_rate(name, results)
        assert {r["seed"] for r in results if r["name"] == run} >= set(field.FRESH_SEEDS)


def test_the_best_of_all_methods_is_confirmed_once_the_later_ones_are_tuned():
    dev = {"DPR 128, clusters": 0.9, "ContAccum 128, clusters": 0.6, "clusters": 0.5}
    results, stages = made(lambda name, seed: (0.3, dev.get(name, 0.2)))
    assert field.winner(results) == "clusters"
    assert field.late_winner(results) == "ContAccum 128, clusters"
    for name in ("ContAccum 128, clusters", "DPR 128, clusters"):
        run = field.at_own_rate(name, results)
        assert {r["seed"] for r in results if r["name"] == run} >= set(field.FRESH_SEEDS)
    before = [r for r in results if r["name"].partition(", rate")[0] != "both directions"]
    with pytest.raises(ValueError, match="not all later methods are tuned yet"):
        field.late_winner(before)
    fresh = {(n, s) for n, s in field.next_runs(before) if s in field.FRESH_SEEDS}
    assert not fresh  # nothing new is confirmed before all are tuned
    table = field_claims.confirmation(field_claims.FieldRecords(results, [], []))
    assert "minus clusters | minus ContAccum 128, clusters | minus DPR 128" in table


def test_a_low_rate_is_tried_where_the_lowest_is_best():
    results, _ = made(lambda name, seed: (0.3, 0.3))
    lowest = [r for r in results if r["name"] == at_rate("SogCLR", field.LOW_RATE)]
    assert lowest  # of equals, the first is taken: the lowest
    other = [r for r in results if r["name"].partition(", rate")[0] != "SogCLR"]
    for rate, dev in zip(field.FIRST_RATES, (0.2, 0.3, 0.1)):
        other += [record(at_rate("SogCLR", rate), seed, 0.3, dev) for seed in field.TUNING_SEEDS]
    assert field.own_rate("SogCLR", other) == field.FIRST_RATES[1]
    assert at_rate("SogCLR", field.LOW_RATE) not in {name for name, _ in field.next_runs(other)}


# --- verdicts -------------------------------------------------------------------------------------


def book_of(quality):
    results, _ = made(quality)
    return field_claims.FieldRecords(results, [], [])


CLAIMS = {claim.name: claim for claim in field_claims.claims()}
#: method -> its gain over the others that makes each claim hold
GAINS = {
    "decoupled": 0.02,
    "SogCLR": 0.1,
    "DPR 128": 0.08,
    "DPR 128, decoupled": 0.09,
    "sigmoid": 0.02,
    "both directions": 0.02,
    "all directions": 0.02,
    "clusters": 0.1,
    "ContAccum 128, margin 0.8": 0.02,
    "query tower only": 0.02,
    "GradCache, bank 128": 0.02,
    "ContAccum 128, decoupled": 0.1,
}


def quality_of(gains):
    return lambda name, seed: (0.3 + gains.get(name, 0.0) + 0.001 * (hash_of(name, seed) % 3), 0.3)


def hash_of(name, seed):
    return sum(map(ord, name)) * 7 + seed * 13


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_holds_or_not_by_its_records(name):
    claim = CLAIMS[name]
    assert claim.judge(book_of(quality_of(GAINS)).shared).verdict == Outcome.HOLDS
    turned = {method: -gain for method, gain in GAINS.items() if method != "DPR 128"}
    turned |= {"DPR 128": 0.08, "DPR 128, decoupled": 0.3}
    assert claim.judge(book_of(quality_of(turned)).shared).verdict == Outcome.FAILS_HERE


def test_a_claim_without_its_runs_says_so():
    assert field_claims.judged(CLAIMS["sigmoid"], records.RunRecords([])) is None
    results, _ = made(quality_of(GAINS))
    book = field_claims.FieldRecords([r for r in results if r["name"] != "sigmoid"], [], [])
    row = [line for line in field_claims.claims_table(book).splitlines() if "sigmoid" in line]
    assert field_claims.NOT_RUN in row[0]
    assert "not run yet" in field_claims.confirmation(field_claims.FieldRecords([], LEDGER, []))


# --- the records ----------------------------------------------------------------------------------


def test_the_records_are_of_the_plan():
    plan = field.plan()
    assert len(command.known_field()["runs"]) == len(FIELD["runs"]) > 50
    for r in FIELD["runs"]:
        settings = cl.Settings.parse(r["settings"])
        assert settings == plan[r["name"]].settings.replace(seed=r["seed"])
        assert r["updates"] == settings.updates
        assert r["encodes"]["train"] >= 0.99 * PAIRS_SEEN  # an epoch's last update is short


def test_the_docs_have_the_tables_of_the_records():
    for name, text in command.field_tables().items():
        assert (TABLES / f"{name}.md").read_text() == text + "\n", name


def test_every_figure_of_the_table_is_in_the_records():
    """MRR@10 at the shared rate, by a plain mean."""
    table = (TABLES / "field.md").read_text()
    for name in ("SogCLR", "clusters"):
        values = [100 * r["mrr@10"] for r in FIELD["runs"] if r["name"] == name and r["seed"] < 5]
        row = re.search(rf"^\| {name} \| ([\d.]+) ±", table, re.MULTILINE)
        assert len(values) == 5 and float(row[1]) == pytest.approx(sum(values) / 5, abs=0.05)


def test_a_record_is_what_its_run_gave():
    toy = toy_pairs(64, 20)
    pairs = Pairs("toy", toy.train, toy.test[:10], toy.passages, toy.test[10:])
    spec = field.plan()["SogCLR"]
    settings = spec.settings.replace(updates=12, warmup=2, start="random", dim=8)
    r = field.train("SogCLR", 3, pairs, spec._replace(settings=settings))
    again = cl.Run(pairs, settings.replace(seed=3))
    for _ in again:
        pass
    assert r["mrr@10"] == again.evaluate()["mrr@10"] and r["updates"] == 12
    assert r["kept"] == 64 * 4 and r["encodes"] == again.encodes
    assert cl.Settings.parse(r["settings"]) == again.settings


def test_planted_copies_are_counted():
    import torch

    scores = torch.tensor([[1.0, 3.0, 1.2, 0.0], [0.0, 1.0, 0.0, 0.9]])
    of_zero = next(r for r in field_costs._mask_records(scores, 7) if r["margin"] == 0)
    assert of_zero == {"update": 7, "margin": 0.0, "recall": 0.5, "others": 1 / 4}
    changed = copy.deepcopy(of_zero) | {"others": 0.5 / 127}
    assert field_claims._precision(changed) == pytest.approx(0.5)

"""What notebook 10 says of the ledger is what the ledger's record says."""

from statistics import mean

import pytest

from contaccum_lite.evidence.records import FOLDER, STUDIES, read_records

FIELD = FOLDER / "field.json"
SEEDS = range(5)


def mrr(records, name):
    return mean(r["mrr@10"] for r in records if r["name"] == name and r["seed"] in SEEDS)


@pytest.mark.skipif(not FIELD.exists(), reason="the field's ledger has not been run")
def test_the_short_race_and_the_ledger_disagree_as_the_notebook_says():
    field = read_records(FIELD)["runs"]
    paper = read_records(STUDIES["pretrained"])
    grad_accum = mrr(paper, "GradAccum 8")
    big_batch = mrr(paper, "DPR 128")
    assert mrr(field, "decoupled") < grad_accum - 0.01  # 10.turn
    assert mrr(field, "clusters") > big_batch - 0.01
    bank = mrr(paper, "ContAccum N_memory 128 K 16")
    assert mrr(field, "ContAccum 128, decoupled") < bank  # the gains do not add up

"""The second paper's ledger: verdicts from records, and its pictures.

The pictures are of drift and of the theory.
"""

import copy
import html

import pytest

import contaccum_lite as cl
from contaccum_lite.evidence import records, run as command, stale_claims as stale
from contaccum_lite.evidence.claims import Outcome
from contaccum_lite.lab.drift import _share
from contaccum_lite.lab.lab import Lab
from tools.docs import TABLES

FOUND_OF = {start: records.read_records(path) for start, path in records.STALES.items()}
FOUND = FOUND_OF["random"]
each_claim = pytest.mark.parametrize(
    "start, claim",
    [(start, claim) for start, of in FOUND_OF.items() for claim in stale.claims(of["curves"])],
    ids=lambda value: getattr(value, "name", value),
)


@pytest.mark.parametrize("start", FOUND_OF)
def test_every_planned_run_is_recorded_as_planned(start):
    results, plan = FOUND_OF[start], stale.PLANS[start]
    assert {(r["name"], r["seed"]) for r in results["runs"]} == {
        (name, seed) for name in plan for seed in stale.SEEDS
    }
    assert len(command.known_stale(start)["runs"]) == len(results["runs"])
    assert {r["seed"] for r in results["curves"]} == set(stale.SEEDS)
    assert {s.settings.start for s in plan.values()} == {start}
    assert {s.settings.updates * s.settings.total_batch for s in plan.values()} == {
        400 * 32
    }  # the same pairs for all


def test_both_regimes_differ_in_their_start_alone():
    for name, spec in stale.PLANS["pretrained"].items():
        other = stale.PLANS["random"][name]
        assert spec.settings.replace(start="random") == other.settings
        assert spec.seeds == other.seeds == range(5)


def test_the_docs_have_what_the_records_say():
    for name, text in command.stale_tables().items():
        assert text + "\n" == (TABLES / f"{name}.md").read_text(), name
    for results in FOUND_OF.values():
        assert all(
            name in stale.runs_table(results["runs"])
            for name in ("corrected, ridge", "stale, write-back", "corrected, MLP", "oracle")
        )


def test_the_table_has_a_column_of_verdicts_for_each_regime():
    lines = stale.table_of_regimes(FOUND_OF).splitlines()
    assert lines[0].endswith("| fine-tuned from a pretrained start | from random weights |")
    for line, *judged in zip(lines[2:], *(stale.verdicts(of) for of in FOUND_OF.values())):
        cells = line.split(" | ")[3:]
        assert len(cells) == len(judged) == 2
        for text, verdict in zip(cells, judged):
            assert text.startswith(f"**{verdict.verdict}** ")
    counted = stale.counts(FOUND_OF).values()
    assert [sum(of_start.values()) for of_start in counted] == [len(lines) - 2] * 2


def test_a_larger_network_is_judged_by_paired_intervals():
    """A mean that is higher by less than its interval is no verdict."""

    def curve(few):
        return [
            dict(seed=seed, staleness=25, pairs=pairs, corrector=name, kl=kl)
            for seed in range(5)
            for pairs, large in ((32, few[seed]), (2048, 0.5))
            for name, kl in (("identity", 1.0 + seed / 100), ("MLP of 512", large + seed / 100))
        ]

    judge = lambda few: stale.judge_generalisation(curve(few))(None)
    assert judge([1.2, 1.21, 1.19, 1.2, 1.2]).verdict == Outcome.HOLDS
    assert judge([1.3, 0.9, 1.2, 0.8, 1.0]).verdict == Outcome.FAILS_HERE
    assert "at no updates of staleness" in judge([1.3, 0.9, 1.2, 0.8, 1.0]).sentence


@pytest.mark.parametrize("in_batch, words", [(0.20, "is the larger step"), (0.29, "of its own")])
def test_having_more_negatives_is_the_larger_step_where_it_is(in_batch, words):
    """Against a gain of 2 points of fresh negatives over stale ones."""
    mrr = {"oracle": 0.32, "stale cache": 0.30, "in-batch": in_batch, "uniform": 0.28}
    runs = [
        {"name": name, "seed": seed, "mrr@10": value + seed / 1000}
        for name, value in mrr.items()
        for seed in range(5)
    ]
    sentence = stale.judge_fresh_negatives(stale.CacheRunRecords(runs)).sentence
    assert "Negatives chosen by fresh scores are better." in sentence
    assert words in sentence
    assert "hard ones bring more than uniform ones" in sentence


@each_claim
def test_a_verdict_comes_from_the_records(start, claim):
    """Some change of the numbers changes it."""
    FOUND = FOUND_OF[start]
    before, verdicts = claim.judge(stale.CacheRunRecords(FOUND["runs"])), set()
    assert before.verdict in tuple(Outcome)[:4]
    assert before.ours
    assert before.sentence
    for better in (True, False):
        runs, curves = copy.deepcopy(FOUND["runs"]), copy.deepcopy(FOUND["curves"])
        for r in runs:
            first = r["name"] == (claim.runs or ("",))[0]
            r["mrr@10"] = (0.5 + 0.1 * (better if first else not better)) + r["seed"] / 1000
            for gap in r["gap"].values():
                gap["kl"] = 0.5 + 0.3 * ((not better) if first else better) + r["seed"] / 1000
        for r in curves:
            r["kl"] = (2.0 if better else 0.1) if r["corrector"] == "MLP of 512" else 1.0
        verdicts.add(
            next(c for c in stale.claims(curves) if c.name == claim.name)
            .judge(stale.CacheRunRecords(runs))
            .verdict
        )
    assert verdicts - {before.verdict}


def test_a_large_network_with_few_pairs_is_worse_than_none_and_a_mass_of_pairs_mends_it():
    """From the records of five runs, at 25 updates of staleness."""
    kl = lambda name, pairs: [
        r["kl"]
        for r in sorted(FOUND["curves"], key=lambda r: r["seed"])
        if (r["corrector"], r["pairs"], r["staleness"]) == (name, pairs, 25)
    ]
    few = list(zip(kl("MLP of 512", 32), kl("identity", 32), strict=True))
    many = list(zip(kl("MLP of 512", 2048), kl("identity", 2048), strict=True))
    assert len(few) == len(many) == 5
    assert all(large > none for large, none in few)
    assert all(large < none for large, none in many)


def test_a_short_run_shows_the_sign(docs):
    """A cache 75 updates old, ridge and network.

    Nearer to the fresh softmax than the cache as it is, with what training encodes anyway.
    """
    run = cl.Run(docs, cl.Settings.parse("method=corrected_cache&corrector=ridge&updates=175"))
    for _ in run:
        pass
    gap = cl.cache_gap(run)
    assert gap["corrected"]["kl"] < 0.9 * gap["stale"]["kl"]
    assert gap["corrected"]["overlap"] > gap["stale"]["overlap"] - 0.01
    assert run.encodes["refresh"] == len(docs.passages) and set(run.encodes) == {"train", "refresh"}


# --- pictures -------------------------------------------------------------------------------------


def test_the_drift_view_says_what_the_probe_has_seen(toy):
    lab = Lab(
        toy, updates=12, accumulation_steps=3, memory_size=24, local_batch=4, dim=16, every=12
    )
    view = cl.DriftView(lab, every=2, lags=(2, 4))
    assert "No drift yet" in view.sentence
    lab.run()
    view.draw()
    data = view.data()
    assert sorted(view.probe.seen) == list(range(0, 13, 2)) and data[
        "drift within 4"
    ] == view.probe.drift(4)
    assert (
        f"{_share(list(data['drift within 4'].values())[-1])} within 4" in view.sentence
        and _share(0.0123) == "1.2%"
        and _share(5e-5) == "under 0.01%"
    )
    assert "within 4" in view.sentence and html.escape(view.sentence) in view.words.value
    assert data["mass"] == cl.similarity_mass(lab.training) and data[
        "control"
    ] == cl.similarity_mass(lab.training, fresh=True)
    assert (
        view.image.value[:4] == b"\x89PNG"
        and view._repr_mimebundle_()[0]["text/plain"] == view.sentence
    )
    lab.reset()
    lab.run(4)
    assert sorted(view.probe.seen) == [0, 2, 4]  # a new run is looked at anew
    with pytest.raises(ValueError, match="each must be a multiple of every, 2"):
        cl.DriftView(lab, every=2, lags=(3,))
    lab.close()


def test_points_are_named_in_the_sentence():
    picture = cl.PointsPicture(
        {"a": (1, 50, 2), "b": (300, 56)}, "title", "passes", "Top@20", log_x=True
    )
    assert "highest b, leftmost a" in picture.sentence
    assert "b 56 at 300" in picture.sentence
    assert picture.png()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="points is empty"):
        cl.PointsPicture({}, "", "", "")

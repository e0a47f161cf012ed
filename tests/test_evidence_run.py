"""The command that runs the ledgers and studies: it resumes, and `--quick` writes nothing."""

import pytest

from contaccum_lite.evidence import records, run, runs, stale_claims

WHICH = [*run.STUDIES_OF, *runs.STARTS, "stale"]


@pytest.fixture
def jobs_run(monkeypatch, tmp_path):
    """Nothing is trained, and records lie in an empty folder: the jobs that were asked for."""
    asked = []
    for paths in (records.STUDIES, records.STALES):
        for name, path in paths.items():
            monkeypatch.setitem(paths, name, tmp_path / path.name)

    def pretend(act, jobs):
        for job in jobs:
            asked.append(job)
            yield made_up(act, job)

    monkeypatch.setattr(run, "in_processes", pretend)
    return asked


def made_up(act, job):
    """What this job would give, but for its numbers."""
    group, name, seed, _ = job
    if name == run.CURVES:
        return [{"seed": seed, "kl": 1.0}]
    plans = stale_claims.PLANS if act is run.run_of_stale else run.PLANS
    settings = plans[group][name].settings.replace(seed=seed).share()
    numbers = {"mrr@10": 0.1, "trace": [1.0], "gap": {"corrected": {"kl": 0.5}}}
    return {"name": name, "seed": seed, "settings": settings, **numbers}


@pytest.mark.parametrize("which", WHICH)
def test_the_quick_version_makes_few_short_runs_and_writes_nothing(jobs_run, which, tmp_path):
    lines = run.quick(which)
    assert len(lines) == len(jobs_run) == len(set(jobs_run)) <= 12
    assert all(divisor == run.SHORTER for *_, divisor in jobs_run)
    assert all("MRR@10  10.0" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", ["ledger", "stale"])
def test_the_quick_version_shows_both_regimes(jobs_run, which):
    starts = [line.split()[0] for line in run.quick(which)]
    assert starts == sorted(starts)
    assert set(starts) == set(runs.STARTS)


@pytest.mark.parametrize("study", records.STUDIES)
def test_a_study_resumes_where_it_was_stopped(jobs_run, study, monkeypatch):
    monkeypatch.setitem(run.PLANS, study, dict(list(run.PLANS[study].items())[::20]))
    everything = run.update_study(study)
    assert [(r["name"], r["seed"]) for r in everything] == run.planned(study)
    stopped = everything[::2]
    records.write_record_lines(records.STUDIES[study], stopped)
    jobs_run.clear()
    again = run.update_study(study)
    assert {(name, seed) for _, name, seed, _ in jobs_run} == {
        (r["name"], r["seed"]) for r in everything[1::2]
    }
    assert again == everything
    jobs_run.clear()
    run.update_study(study)
    assert jobs_run == []


@pytest.mark.parametrize("start", runs.STARTS)
def test_the_second_papers_ledger_resumes_where_it_was_stopped(jobs_run, start):
    everything = run.update_stale(start)
    assert len(everything["runs"]) == len(stale_claims.PLANS[start]) * len(stale_claims.SEEDS)
    stopped = {"runs": everything["runs"][1:], "curves": everything["curves"][:-1]}
    records.write_record_lines(records.STALES[start], stopped)
    jobs_run.clear()
    assert run.update_stale(start) == everything
    first, last = everything["runs"][0], everything["curves"][-1]
    assert sorted(jobs_run) == sorted(
        [(start, first["name"], first["seed"], 1), (start, run.CURVES, last["seed"], 1)]
    )


def test_a_changed_plan_runs_again_what_it_changed(jobs_run, monkeypatch):
    monkeypatch.setitem(run.PLANS, "negatives", dict(list(run.PLANS["negatives"].items())[:5]))
    run.update_study("negatives")
    name, spec = next(iter(run.PLANS["negatives"].items()))
    changed = spec._replace(settings=spec.settings.replace(learning_rate=0.007))
    monkeypatch.setitem(run.PLANS["negatives"], name, changed)
    jobs_run.clear()
    run.update_study("negatives")
    assert {job[1] for job in jobs_run} == {name}

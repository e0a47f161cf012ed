"""Checkpoints: killed at any moment, a run goes on from its last one.

It ends as if nothing had happened.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time

import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.core.checkpoint import tensors_of
from contaccum_lite.core import checkpoint

OPTIONS = [
    "--dim",
    8,
    "--local-batch",
    4,
    "--accumulation-steps",
    2,
    "--memory-size",
    16,
    "--passage-tokens",
    8,
    "--hard-negatives",
    1,
    "--learning-rate",
    0.01,
    "--save-every",
    1,
]
UPDATES = 300
SMALL = dict(
    dim=8, local_batch=4, accumulation_steps=2, memory_size=16, passage_tokens=8, updates=50
)


@pytest.fixture
def no_power_cuts(monkeypatch):
    """fsync is for those, and a shared disk can take seconds for it."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def state(folder, pairs):
    run = cl.Run.load(folder, pairs)
    weights = {
        f"{n}.{name}": p
        for n, tower in enumerate(run.learner.towers)
        for name, p in tower.state_dict().items()
    }
    return run, weights | tensors_of(run)


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_killed_twenty_times(family, toy, tmp_path):
    """SIGKILL at twenty random moments of one run, a few while it starts.

    Each checkpoint on the way is whole.
    """
    words = ["train", "toy", *OPTIONS, "--updates", UPDATES]
    began, line = time.time(), 230  # bytes of a line of the log, about
    plain = family.run(*words, "--out", tmp_path / "plain")
    assert plain.status == 0, plain.err
    start = min(0.5, (tmp_path / "plain" / "settings.yaml").stat().st_mtime - began)
    draw, killed, steps, folder = random.Random(0), 0, [0], tmp_path / "killed"
    for n in range(20):
        if n % 5 == 0:
            ended = family.run(*words, "--out", folder, after=draw.uniform(0, start))
        else:
            size = (folder / "log.jsonl").stat().st_size if (folder / "log.jsonl").is_file() else 0
            ended = family.run(
                *words,
                "--out",
                folder,
                grown=(folder / "log.jsonl", size + draw.randrange(1, 5) * line),
                after=draw.uniform(0, 0.03),
            )
        assert ended.status == -signal.SIGKILL and ended.alive, (n, ended)
        killed += 1
        if (folder / "run.json").is_file():
            run, _ = state(folder, toy)
            assert steps[-1] <= run.step_count < UPDATES
            steps.append(run.step_count)
    assert killed == 20 and len(set(steps)) > 8, steps
    assert family.run(*words, "--out", folder, "--resume").status == 0
    (one, expected), (two, found) = state(tmp_path / "plain", toy), state(folder, toy)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [u[:6] for u in one.history] == [u[:6] for u in two.history]
    lines = [
        [(line["step"], line.get("loss"), line.get("evaluation")) for line in logged(path)]
        for path in (tmp_path / "plain", folder)
    ]
    assert lines[0] == lines[1]
    # what was logged beyond a checkpoint is not there twice
    assert len(lines[0]) == UPDATES + 1
    assert len(list(folder.glob("update-*"))) == 1 and not list(folder.glob(".*"))


_OPERATIONS = (
    "open",
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "shutil.rmtree",
    "tempfile.mkdtemp",
    "tempfile.mkstemp",
    "os.truncate",
)


def _save_and_die(run, folder, at, count):
    """Save, and be killed before file operation number `at`."""
    seen = [0]

    def watch(event, args):
        if event in _OPERATIONS:
            seen[0] += 1
            if seen[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run.save(folder)
    count.value = seen[0]
    os._exit(0)


@pytest.mark.skipif(os.name != "posix", reason="a fork")
def test_killed_before_any_file_operation_of_a_save(toy, tmp_path, no_power_cuts):
    run = cl.Run(toy, cl.Settings(**SMALL))
    run.step()
    run.save(tmp_path / "first")
    run.step()
    context, at, found = multiprocessing.get_context("fork"), 0, []
    count = context.Value("i", 0)
    while not count.value:
        at += 1
        folder = shutil.copytree(tmp_path / "first", tmp_path / f"{at}")
        process = context.Process(target=_save_and_die, args=(run, folder, at, count))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        again = cl.Run.load(folder, toy)
        found.append(again.step_count)
        again.save(folder)  # and what was left lying about is gone
        assert len(list(folder.iterdir())) == 2, at
    assert at > 15
    assert set(found) == {1, 2}
    # the switch happens at one moment
    assert found == sorted(found)


def test_ctrl_c_at_every_line_of_a_save(toy, tmp_path, no_power_cuts):
    """One KeyboardInterrupt at each line of a save: what run.json names is whole.

    And one at each opcode of the switch to the new state.
    """
    run = cl.Run(toy, cl.Settings(**SMALL))
    run.step()
    run.save(tmp_path)
    line, done, found = 0, False, []
    while not done:
        run.step()
        line, left = line + 1, [line + 1]

        def trace(frame, event, arg):
            if frame.f_code.co_name not in (
                "save",
                "_write",
                "_write_state",
                "write_atomically",
                "sync",
                "_tensors",
            ):
                return None
            if frame.f_code.co_name == "write_atomically":
                frame.f_trace_opcodes = True
            if event in ("line", "opcode"):
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            run.save(tmp_path)
            done = left[0] > 0
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        found.append(run.step_count - cl.Run.load(tmp_path, toy).step_count)
        run.save(tmp_path)
        if run.step_count == 50:
            run = cl.Run(toy, cl.Settings(**SMALL))
    assert len(found) > 30
    assert 0 in found[:-1]
    assert max(found) == 1


def test_a_reader_is_not_disturbed_by_a_save(toy, tmp_path, no_power_cuts):
    """A state that is replaced while it is read is read again; one that is broken is an error."""
    run = cl.Run(toy, cl.Settings(**SMALL))
    run.save(tmp_path)
    seen = []

    def load(state, place):
        seen.append(state["step"])
        if len(seen) == 1:
            run.step()
            run.save(tmp_path)
        return sorted(path.name for path in place.iterdir())

    assert checkpoint.while_it_stands(tmp_path, load) and seen == [0, 1]
    shutil.rmtree(tmp_path / checkpoint.read_run(tmp_path)[1].name)
    with pytest.raises(ValueError, match="has no file 'passage_tower/config.json' any more"):
        cl.Run.load(tmp_path, toy)


def test_a_run_saved_by_a_later_version_is_a_sentence(toy, tmp_path):
    cl.Run(toy, cl.Settings(**SMALL)).save(tmp_path)
    stored = json.loads((tmp_path / "run.json").read_text())
    stored["settings"]["from_the_future"] = 1
    (tmp_path / "run.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="'from_the_future' is not a setting"):
        cl.Run.load(tmp_path, toy)


@pytest.mark.parametrize("length", [0, 1, 40, -1])
def test_a_log_with_half_a_line_is_mended(tmp_path, length):
    from contaccum_lite.cli.log import MetricsLog

    lines = [json.dumps({"step": n, "loss": n / 7}) + "\n" for n in range(1, 6)]
    (tmp_path / "log.jsonl").write_text(
        "".join(lines) + (lines[0][:length] if length >= 0 else "[]\n{}\n")
    )
    MetricsLog(tmp_path, 3).close()
    assert (tmp_path / "log.jsonl").read_text() == "".join(lines[:3])

"""Folders that are written into: other files stay, and two processes do not write into one."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import contaccum_lite as cl
from contaccum_lite.cli import main
from contaccum_lite.scale.index import build

ROOT = Path(__file__).parent.parent
SMALL = dict(
    dim=8, local_batch=4, accumulation_steps=2, memory_size=8, updates=6, warmup=0, passage_tokens=8
)
REFUSALS = ("holds something else", "holds no saved run", "settings.yaml says")
OPTIONS = [
    word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))
]
#: names that look like ours, and what is in them; with a "/", a file in a folder
LIKE_OURS = [
    "update-notes.txt",
    "update-photos/a.jpg",
    "update-000001-deadbeef0/thesis.txt",
    "update-000001-DEADBEEF/thesis.txt",
    "update-00001-deadbeef/thesis.txt",
    "update-000001-deadbeef",
    ".run.json-backup",
    ".run.json-0123abcd/thesis.txt",
    ".settings.yaml-old",
    "update-",
    "shard-00000",
    "shard-notes/a.txt",
    ".shard-00000-old/a.txt",
    ".query_tower-backup/a.txt",
    ".index.json-mine",
]


def call(capsys, *words):
    """(exit status, stdout, stderr) of a command in this process."""
    capsys.readouterr()
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def users_files(folder, names=LIKE_OURS):
    """Write files of a user's into the folder; {path: content}."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"years of work: {name}")
    return contents(folder)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what is not ours ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKE_OURS)
def test_a_folder_with_a_file_of_the_users_is_refused(capsys, tmp_path, name):
    before = users_files(tmp_path / "mine", [name])
    status, _, err = call(capsys, "train", "toy", *OPTIONS, "--out", tmp_path / "mine")
    assert status == 2
    assert "holds something else" in err
    assert err.count("\n") == 1
    assert contents(tmp_path / "mine") == before


@pytest.mark.parametrize(
    "name, text",
    [
        ("settings.yaml", "local_batch: 4\n"),
        ("log.jsonl", '{"mine": 1}\n'),
        ("tensorboard", "a file"),
        ("run.json", '{"jog": 5}'),
    ],
)
def test_a_file_of_the_users_with_a_name_of_ours_is_refused(capsys, toy, tmp_path, name, text):
    """Where there is no run, and beside a run that was saved from Python."""
    out = tmp_path / "mine"
    out.mkdir()
    for saved in (False, True):
        if saved and name != "run.json":
            cl.Run(toy, cl.Settings(**SMALL)).save(out)
        (out / name).write_text(text)
        before = contents(out)
        status, _, err = call(capsys, "train", "toy", *OPTIONS, "--out", out)
        assert status == 2
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert any(words in err for words in REFUSALS)
        assert contents(out) == before


def test_files_of_the_user_named_like_ours_stay(toy, tmp_path):
    """`Run.save` into a folder of the user's, again and again."""
    before = users_files(tmp_path)
    run = cl.Run(toy, cl.Settings(**SMALL))
    for _ in range(3):
        run.step()
        run.save(tmp_path)
    after = contents(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert cl.Run.load(tmp_path, toy).step_count == 3
    states = {path.relative_to(tmp_path).parts[0] for path in after.keys() - before.keys()}
    assert len(states) == 2 and "run.json" in states  # and one state: the older ones went


@pytest.mark.parametrize("text", ['{"distance": 5.2}', "[1]", "a diary", "", '"state"'])
def test_a_run_json_of_the_user_is_not_overwritten(toy, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json is not a run's: save into another folder"):
        cl.Run(toy, cl.Settings(**SMALL)).save(tmp_path)
    assert contents(tmp_path) == {tmp_path / "run.json": text.encode()}


def test_files_beside_an_index_stay_and_are_no_shards(toy, tmp_path):
    run = cl.Run(toy, cl.Settings(**SMALL))
    run.save(tmp_path / "run")
    out = tmp_path / "index"
    out.mkdir()
    (out / ".shard-00000-old").mkdir()  # hidden, so that it may be there
    (out / ".shard-00000-old" / "a.txt").write_text("years of work")
    build(tmp_path / "run", toy.passages[:50], out, shard=20)
    before = users_files(
        out,
        [
            "shard-notes/a.txt",
            "shard-00009",
            "shard-1/a.txt",
            ".index.json-mine",
            ".query_tower-backup/a.txt",
        ],
    )
    index = build(tmp_path / "run", toy.passages[:50], out, shard=20)
    assert len(index) == 50 and len(index.shards) == 3
    assert contents(out) == before


def test_what_a_killed_process_left_is_no_stranger(capsys, toy, tmp_path):
    """A state and temporary files, by their exact names: the next run takes the folder."""
    run, out = cl.Run(toy, cl.Settings(**SMALL)), tmp_path / "out"
    run.save(out)
    (out / "run.json").rename(out / ".run.json-0123abcd")
    (out / ".contaccum.lock").write_text("")
    assert call(capsys, "train", "toy", *OPTIONS, "--out", out)[0] == 0
    assert cl.Run.load(out, toy).step_count == 6
    left = sorted(path.name[:7] for path in out.iterdir())
    assert left in (
        ["log.jso", "run.jso", "setting", "update-"],
        ["log.jso", "run.jso", "setting", "tensorb", "update-"],
    )


# --- one process --------------------------------------------------------------------------------


def _train(folder, *words):
    """In a process of its own."""
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    os._exit(main(["train", "toy", *OPTIONS, "--out", str(folder), *words]))


def wait_for(condition, process):
    while not condition() and process.is_alive():
        time.sleep(0.002)
    assert process.is_alive()


@pytest.mark.skipif(os.name != "posix", reason="a fork")
def test_a_second_process_in_a_folder_is_refused_and_the_log_is_whole(
    capsys, toy, tmp_path, monkeypatch
):
    """Of a run that is then killed, and resumed by the same line."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    out, words = tmp_path / "run", ["--updates", "400", "--save-every", "1"]
    log = out / "log.jsonl"
    context = multiprocessing.get_context("fork")
    first = context.Process(target=_train, args=(out, *words))
    first.start()
    wait_for(lambda: log.is_file() and log.stat().st_size > 500, first)
    status, _, err = call(capsys, "train", "toy", *OPTIONS, "--out", out, *words)
    assert status == 2
    assert "is in use" in err
    assert err.count("\n") == 1
    with pytest.raises(ValueError, match="is in use"):
        cl.Run(toy, cl.Settings(**SMALL)).save(out)
    assert 0 <= cl.Run.load(out, toy).step_count <= 400  # a reader is let in
    assert first.is_alive()
    first.kill()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    saved = cl.Run.load(out, toy).step_count
    status, text, _ = call(capsys, "train", "toy", *OPTIONS, "--out", out, *words)
    assert status == 0 and f"goes on after update {saved}" in text
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [*range(1, 401), 400]
    assert not list(out.glob(".*"))


def test_a_folder_that_another_process_filled_meanwhile_is_seen(capsys, toy, tmp_path):
    """Whether there is a run to go on with is asked after the lock is there, not before."""
    from filelock import FileLock

    finished = cl.Run(toy, cl.Settings(**SMALL))
    list(finished)
    real = FileLock.acquire

    def late(lock, *args, **options):
        FileLock.acquire = real
        finished.save(tmp_path / "run")  # by one that was here a moment before
        return real(lock, *args, **options)

    FileLock.acquire = late
    try:
        status, out, _ = call(capsys, "train", "toy", *OPTIONS, "--out", tmp_path / "run")
    finally:
        FileLock.acquire = real
    assert status == 0 and "goes on after update 6" in out


@pytest.mark.skipif(os.name != "posix", reason="a fork")
def test_a_second_build_of_an_index_is_refused(toy, tmp_path):
    cl.Run(toy, cl.Settings(**SMALL)).save(tmp_path / "run")
    context = multiprocessing.get_context("fork")
    begun, go_on = context.Event(), context.Event()

    def passages():
        yield toy.passages[0]
        begun.set()
        go_on.wait()
        yield from toy.passages[1:30]

    first = context.Process(target=build, args=(tmp_path / "run", passages, tmp_path / "index"))
    first.start()
    begun.wait()
    with pytest.raises(ValueError, match="index is in use"):
        build(tmp_path / "run", toy.passages[:30], tmp_path / "index")
    go_on.set()
    first.join()
    assert first.exitcode == 0 and not list((tmp_path / "index").glob(".*"))
    assert len(build(tmp_path / "run", toy.passages[:30], tmp_path / "index")) == 30


def test_a_refusal_leaves_no_folder_behind(capsys, tmp_path):
    out = tmp_path / "new" / "folder"
    assert call(capsys, "train", "toy", *OPTIONS, "--out", out, "--device", "abacus")[0] == 2
    assert not list(tmp_path.iterdir())


def test_processes_of_one_run_share_its_folder(toy, tmp_path):
    """Two by torchrun: the first one takes the lock for both; then one goes on alone."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "contaccum_lite",
        "train",
        "toy",
        *OPTIONS,
        "--out",
        tmp_path / "run",
    ]
    ended = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert cl.Run.load(tmp_path / "run", toy).step_count == 6
    assert not list((tmp_path / "run").glob(".*"))

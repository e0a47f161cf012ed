"""Damaged checkpoints and indexes give a sentence that names the file, or what was saved."""

import json
import random
import re
import shutil

import numpy as np
import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.core.checkpoint import tensors_of
from contaccum_lite.cli import main
from contaccum_lite.core import checkpoint
from contaccum_lite.data.toy import toy_pairs
from contaccum_lite.scale.index import Index, Retriever, build

SMALL = dict(
    dim=8,
    local_batch=4,
    accumulation_steps=2,
    memory_size=16,
    passage_tokens=8,
    updates=6,
    warmup=0,
    hard_negatives=1,
    similarity="incremental",
)
CHECKPOINTS, OLDER, INDEXES = 260, 90, 190  # damages that are drawn
VALUES = [
    None,
    True,
    0,
    -1,
    3,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../x",
    "/",
    [],
    ["x"],
    [[1]],
    {},
    {"a": 1},
]


@pytest.fixture(scope="module")
def pairs():
    return toy_pairs(60, 20)


@pytest.fixture(scope="module")
def saved(pairs, tmp_path_factory):
    """(folder of a run, all that it holds as tensors, another run's folder, an index' folder)."""
    folder = tmp_path_factory.mktemp("saved")
    for name, seed in (("run", 0), ("other", 1)):
        run = cl.Run(pairs, cl.Settings(**SMALL, seed=seed))
        for _ in range(4):
            run.step()
        run.save(folder / name)
        build(folder / name, pairs.passages, folder / f"index of {name}", shard=30)
    return folder


def everything(run):
    weights = {
        f"{n}.{name}": p
        for n, tower in enumerate(run.learner.towers)
        for name, p in tower.state_dict().items()
    }
    return {name: value.float() for name, value in {**weights, **tensors_of(run)}.items()}


def is_same(run, expected):
    values = everything(run)
    return (
        run.step_count == len(run.history) == 4
        and values.keys() == expected.keys()
        and all(torch.equal(values[name], expected[name]) for name in expected)
    )


# --- damages ------------------------------------------------------------------------------------


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage_bytes(draw, path, other):
    """Change the file in one way; what was done, in words."""
    content = path.read_bytes()
    kind = draw.choice(
        [
            "flip",
            "flip",
            "flip",
            "cut",
            "cut",
            "empty",
            "missing",
            "noise",
            "longer",
            "folder",
            "swap",
        ]
    )
    if kind == "flip":
        place = draw.randrange(min(len(content), draw.choice([130, len(content)])))
        content = (
            content[:place]
            + bytes([content[place] ^ 1 << draw.randrange(8)])
            + content[place + 1 :]
        )
    elif kind == "cut":
        content = content[: draw.randrange(len(content))]
    elif kind == "noise":
        content = draw.randbytes(len(content))
    elif kind == "longer":
        content += draw.choice([b"\0", b"}", b"[]", b"x" * 100])
    elif kind == "swap":
        content = other.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else content)
    return f"{kind} {path.name}"


def damage_json(draw, path):
    """Take a value out of a JSON file, or put another in its place; what was done, in words."""
    record = json.loads(path.read_bytes())
    inside = [value for value in record.values() if isinstance(value, (dict, list)) and value]
    value = draw.choice([record, record, *inside])
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if draw.random() < 0.3:
        del value[key]
        done = f"{path.name} without {key!r}"
    else:
        value[key] = draw.choice(VALUES)
        done = f"{path.name} with {value[key]!r} as {key!r}"
    path.write_text(json.dumps(record))
    return done


def others_file(path, folder, other):
    """The file of the same place in another run or index."""
    name = path.relative_to(folder)
    if (other / name).is_file():
        return other / name
    return next(other.glob("update-*")).joinpath(*name.parts[1:])


def after_damage(draw, path, others, read):
    """(what was done, what reading made of it or the error); the file is then as before."""
    content = path.read_bytes()
    if path.name in ("run.json", "index.json") and draw.random() < 0.7:
        done = damage_json(draw, path)
    else:
        done = damage_bytes(draw, path, others)
    try:
        outcome = read()
    except Exception as error:
        outcome = error
    if path.is_dir():
        path.rmdir()
    path.write_bytes(content)
    return done, outcome


def complaint(outcome, folder):
    """What is wrong with an error as an answer to damage; nothing where it is a sentence."""
    text = str(outcome)
    if type(outcome) is not ValueError:
        return f"{type(outcome).__name__}: {text}"
    if "\n" in text or len(text) < 30 or "pickle" in text or str(folder) not in text:
        return f"no sentence that names the file: {text}"
    return ""


# --- 500 and more of them -----------------------------------------------------------------------


def test_a_damaged_checkpoint_is_a_sentence_or_the_run_that_was_saved(pairs, saved):
    folder, other = saved / "run", saved / "other"
    expected, draw, wrong, refused = everything(cl.Run.load(folder, pairs)), random.Random(0), [], 0
    paths = [path for path in files_of(folder) if path.name != "run.json"]
    for number in range(CHECKPOINTS):
        path = folder / "run.json" if number % 2 else draw.choice(paths)
        done, outcome = after_damage(
            draw, path, others_file(path, folder, other), lambda: cl.Run.load(folder, pairs)
        )
        refused += isinstance(outcome, Exception)
        if isinstance(outcome, Exception):
            trouble = complaint(outcome, folder)
        elif path.name == "run.json" and "swap" in done:
            trouble = "another run was loaded"
        else:
            trouble = "" if is_same(outcome, expected) else "it was loaded, and is not as saved"
        wrong += [f"{done}: {trouble}"] if trouble else []
    assert not wrong and refused > 0.6 * CHECKPOINTS, (refused, wrong)
    assert is_same(cl.Run.load(folder, pairs), expected)


def test_a_damaged_checkpoint_without_digests_is_never_another_exception(pairs, saved, tmp_path):
    """As older versions wrote them: a bit that flipped inside a number cannot be noticed there."""
    folder, draw, wrong, refused = tmp_path / "run", random.Random(1), [], 0
    shutil.copytree(saved / "run", folder)
    state = json.loads((folder / "run.json").read_text())
    del state["digests"]
    (folder / "run.json").write_text(json.dumps(state))
    expected = everything(cl.Run.load(folder, pairs))
    path = next(folder.glob("update-*")) / "state.safetensors"
    for _ in range(OLDER):
        done, outcome = after_damage(
            draw,
            path,
            others_file(path, folder, saved / "other"),
            lambda: cl.Run.load(folder, pairs),
        )
        refused += isinstance(outcome, Exception)
        if isinstance(outcome, Exception):
            trouble = complaint(outcome, folder)
        else:
            values = everything(outcome)
            trouble = "" if values.keys() <= expected.keys() else "it holds other tensors"
        wrong += [f"{done}: {trouble}"] if trouble else []
    assert not wrong and refused > 0.4 * OLDER, (refused, wrong)


def test_a_damaged_index_is_a_sentence_or_finds_passages_of_its_own(pairs, saved):
    folder, other = saved / "index of run", saved / "index of other"
    known, draw, wrong, refused = set(pairs.passages), random.Random(2), [], 0
    query = pairs.test[0].query

    def read():
        index = Index(folder)
        hits = index.search(query, 80)
        build(saved / "run", pairs.passages, folder, shard=30)
        return [hit[1:] for hit in hits]

    expected = read()
    for _ in range(INDEXES):
        path = draw.choice(files_of(folder))
        if draw.random() < 0.25:
            path = folder / "index.json"
        done, outcome = after_damage(draw, path, others_file(path, folder, other), read)
        refused += isinstance(outcome, Exception)
        if isinstance(outcome, Exception):
            trouble = complaint(outcome, folder)
        else:
            changed = len(set(outcome) - known)  # a letter of a text, which no digest guards
            fine = changed <= (done == "flip passages.jsonl")
            fine = fine and len(outcome) == len(set(outcome)) == len(expected)
            trouble = "" if fine else "it found what is not its own"
        wrong += [f"{done}: {trouble}"] if trouble else []
    assert not wrong and refused > 0.5 * INDEXES, (refused, wrong)
    assert read() == expected


# --- one by one ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/etc",
        "STATE/query_tower",
        "../run/STATE",
        "update-1",
        "STATE\n",
        7,
        None,
        ["STATE"],
    ],
)
def test_a_state_that_is_no_plain_name_is_a_sentence(pairs, saved, tmp_path, capsys, name):
    """For all that reads a run."""
    folder = shutil.copytree(saved / "run", tmp_path / "run")
    state = json.loads((folder / "run.json").read_text())
    name = name.replace("STATE", state["state"]) if isinstance(name, str) else name
    (folder / "run.json").write_text(json.dumps(state | {"state": name}))
    for read in (
        lambda: cl.Run.load(folder, pairs),
        lambda: Retriever.load(folder),
        lambda: build(folder, pairs.passages, tmp_path / "index"),
    ):
        with pytest.raises(ValueError, match="run.json has .* as 'state': expected"):
            read()
    status = main(["train", "toy", "--out", str(folder)])
    assert status == 2 and capsys.readouterr().err.count("\n") == 1


def test_reading_what_is_always_replaced_comes_to_an_end(saved, tmp_path):
    folder, tries = shutil.copytree(saved / "run", tmp_path / "run"), []

    def load(state, place):
        tries.append(state["state"])
        new = f"update-000004-{len(tries):08x}"
        (folder / "run.json").write_text(json.dumps(state | {"state": new}))
        raise FileNotFoundError(place)

    with pytest.raises(ValueError, match="was replaced by a training process 100 times"):
        checkpoint.while_it_stands(folder, load)
    assert len(set(tries)) == 100


def test_a_saved_tower_that_is_gone_is_not_looked_up_elsewhere(pairs, saved, tmp_path, monkeypatch):
    """From the run's own folder its path reads like a name on the hub."""
    folder = shutil.copytree(saved / "run", tmp_path / "run")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        "contaccum_lite.encoders.transformer.TransformerTower.from_pretrained",
        lambda *words: pytest.fail(f"looked up {words}"),
    )
    state = json.loads((folder / "run.json").read_text())
    del state["digests"]
    (folder / "run.json").write_text(json.dumps(state))
    shutil.rmtree(folder / state["state"] / "query_tower")
    for read in (lambda: cl.Run.load(".", pairs), lambda: Retriever.load(".")):
        with pytest.raises(ValueError, match="has no folder 'query_tower'"):
            read()


@pytest.mark.parametrize("name", ["passages.jsonl", "starts.npy", "vectors.npy", "digest.txt"])
@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY\x01\x00", b"\x80\x04K\x01.", b"PK\x03\x04", None]
)
def test_a_broken_file_of_an_index_is_named(pairs, saved, tmp_path, name, content):
    folder = shutil.copytree(saved / "index of run", tmp_path / "index")
    path = folder / "shard-00001" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}|shard 1 differs") as raised:
        build(saved / "run", pairs.passages, folder, shard=30)
        Index(folder).passage(31)
    assert "pickle" not in str(raised.value)


def test_a_starts_file_that_points_elsewhere_finds_no_other_passage(pairs, saved, tmp_path):
    folder = shutil.copytree(saved / "index of run", tmp_path / "index")
    path = folder / "shard-00000" / "starts.npy"
    starts = np.load(path)
    starts[3] = starts[7]
    np.save(path, starts)
    index = Index(folder)
    for row in (2, 3):
        with pytest.raises(ValueError, match=f"passage {row} cannot be read"):
            index.passage(row)
    assert index.passage(7) == pairs.passages[7]


def test_a_runs_repr_is_one_line_of_text(jsonl):
    rows = [dict(query=f"q {n}", passage=f"p {n}") for n in range(9)]
    path = jsonl(rows, "a\x1b[31m\nb\u202e.jsonl")
    run = cl.Run(cl.load_pairs(f"jsonl:{path}"), cl.Settings(**{**SMALL, "hard_negatives": 0}))
    assert "on jsonl:a b.jsonl, 0 of 6" in repr(run)
    assert not re.search(r"[\x00-\x1f\u202e]", repr(run))

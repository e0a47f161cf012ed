"""The command line: options, configuration, and every command from end to end.

The files are those of the field, and whatever goes wrong is one sentence.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from hypothesis import given as drawn, settings as tries, strategies as st

import contaccum_lite as cl
from contaccum_lite.cli import commands, config, main, options, terminal, train as train_command
from contaccum_lite.scale.index import Index
from contaccum_lite.utils.text import acts
from contaccum_lite.evidence import records

ROOT = Path(__file__).parent.parent
TINY = [
    "--dim",
    "16",
    "--local-batch",
    "8",
    "--accumulation-steps",
    "2",
    "--memory-size",
    "32",
    "--passage-tokens",
    "16",
    "--learning-rate",
    "0.02",
    "--updates",
    "40",
]


def given(*words):
    return options.parser().parse_args(["train", "toy", "--out", "x", *map(str, words)])


def call(capsys, *words):
    """(exit status, stdout, stderr) of a command in this process."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    return status, out, err


# --- settings -------------------------------------------------------------------------------------


def test_every_setting_is_an_option_with_its_help(capsys):
    status, out, _ = call(capsys, "train", "--help")
    text = " ".join(out.split())
    assert status == 0
    for name, f in config.FIELDS.items():
        assert "--" + name.replace("_", "-") in out, name
        assert " ".join(f.metadata["help"].split())[:40] in text, name
    assert "[N_memory]" in text
    assert "from 0 to 1000000; default 512" in text


def test_settings_stand_in_the_help_in_their_order(capsys):
    _, out, _ = call(capsys, "train", "--help")
    _, _, help_of_settings = out.partition("\nsettings:")
    places = [help_of_settings.index(f"\n  --{name.replace('_', '-')}") for name in config.FIELDS]
    assert places == sorted(places)
    assert list(config.FIELDS)[0] == "method"


@pytest.mark.parametrize(
    "line",
    [
        "method=contaccum&start=pretrained&memory_size=64&seed=3&hard_negatives=2&shared=True&bank_hard_negatives=False",
        "method=dpr&start=random&local_batch=16&temperature=0.5",
        "method=contaccum&drop_query_bank_at=20&precision=bf16&tower=some/folder&compile=True",
        "method=momentum&start=random&momentum=0.5",
    ],
)
def test_options_are_the_settings(line):
    wanted = cl.Settings.parse(line)
    words = []
    for part in line.split("&"):
        name, value = part.split("=")
        option = name.replace("_", "-")
        words += (
            [f"--{option}"]
            if value == "True"
            else [f"--no-{option}"]
            if value == "False"
            else [f"--{option}", value]
        )
    assert cl.Settings(**config.explicit_settings(given(*words))) == wanted
    assert config.explicit_settings(given()) == {}  # no other option has the name of a setting


def test_a_configuration_is_written_and_read_back(tmp_path):
    for line in (
        "method=contaccum&learning_rate=2e-05&memory_size=512",
        "method=grad_cache&tower=a/folder&drop_query_bank_at=7&dtype=float64",
        "method=dpr&momentum=0.0",
    ):
        settings = cl.Settings.parse(line)
        config.write_config(tmp_path, settings)
        assert cl.Settings(**config.read_config(tmp_path / "settings.yaml")) == settings
        every_field = yaml.safe_load((tmp_path / "settings.yaml").read_text())
        assert set(every_field) == set(config.FIELDS)


def test_options_go_before_a_configuration(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("# by hand\nlearning_rate: 2e-5\nlocal_batch: 4\nseed: '7'\n")
    fields = config.explicit_settings(given("--config", mine, "--local-batch", 16))
    assert fields == {"learning_rate": 2e-5, "local_batch": 16, "seed": 7}


@pytest.mark.parametrize(
    "content, words",
    [
        ("a: [1", "is not YAML"),
        ("- 1", "holds a list"),
        ("batch: 3", "'batch' is not a setting"),
        ("seed: abc", "seed is 'abc'"),
        ("seed: [1]", "seed is \\[1\\], a list"),
        ("local_batch: 0", "local_batch is 0: it must be from 1 to 4096"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("seed: &a 3\nlocal_batch: *a", "an alias, \\*name, where a value is expected.*line 2"),
        ("seed: " + "[" * 2000 + "]" * 2000, "too deep to be read"),
        ("seed: [" + "1, " * 5000 + "]", r"seed is \[1, 1, 1, 1, \.\.\.\], a list"),
        ("seed: 0x" + "f" * 9000, "seed is a number of more than 40 digits"),
        ("dim: " + "9" * 400, "dim is a number of more"),
        ("seed: " + "9" * 5000, "is not YAML"),
        ("temperature: " + "9" * 400, "temperature is a number of more"),
        ("seed: 2026-13-01", "is not YAML"),
        ("shared: !!bool perhaps", "is not YAML"),
        ("tower: !!timestamp x", "is not YAML"),
        ('tower: "a\\ud800"', "is no character"),
    ],
)
def test_a_bad_configuration_is_a_sentence(capsys, tmp_path, content, words):
    (tmp_path / "bad.yaml").write_text(content)
    status, _, err = call(
        capsys, "train", "toy", "--out", tmp_path / "run", "--config", tmp_path / "bad.yaml"
    )
    assert status == 2
    assert re.search(words, err)
    assert err.count("\n") == 1
    assert len(err) < 1500
    assert not (tmp_path / "run").exists()


def test_a_short_file_stands_for_no_large_value(capsys, tmp_path):
    """Nine nines of nines: as a value, and as what is merged into a mapping.

    Each would need more memory than there is.
    """
    names = "abcdefghi"
    nested = (
        "["
        + ", ".join(
            ["&a [1]"]
            + [f"&{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip(names, names[1:])]
        )
        + "]"
    )
    merged = "a: &a {x: 1}\n" + "".join(
        f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n"
        for old, new in zip(names, names[1:])
    )
    for content in (f"seed: {nested}", merged):
        (tmp_path / "bomb.yaml").write_text(content)
        status, _, err = call(
            capsys, "train", "toy", "--out", tmp_path / "run", "--config", tmp_path / "bomb.yaml"
        )
        assert status == 2
        assert "an alias, *name" in err
        assert len(err) < 1000


# --- one sentence, exit status 2, nothing half-written --------------------------------------------


#: (words of a command, what is said of them)
WRONG = [
    (
        ["train", "toy", "--out", "OUT", "--local-batch", "0"],
        "local_batch is 0: it must be from 1 to 4096",
    ),
    (["train", "toy", "--out", "OUT", "--memory-size", "many"], "memory_size is 'many'"),
    (["train", "toy", "--out", "OUT", "--method", "best"], "invalid choice: 'best'"),
    (
        ["train", "toy", "--out", "OUT", "--method", "dpr", "--accumulation-steps", "4"],
        "fixes it at 1",
    ),
    (
        ["train", "toy", "--out", "OUT", "--tower", "no/such/folder"],
        "no encoder could be loaded from 'no/such/folder'",
    ),
    (["train", "toy", "--out", "OUT", "--device", "cuda:77"], "device is 'cuda:77'"),
    (["train", "toy", "--out", "OUT", "--device", "abacus"], "choose 'cpu', 'cuda'"),
    (["train", "toy", "--out", "OUT", "--activation-checkpointing"], "has no layers"),
    (["train", "toy", "--out", "OUT", "--memory-cap", "11"], "write a number and a unit"),
    (["train", "toy", "--out", "OUT", "--memory-cap", "1MB"], "the process holds"),
    (["train", "toy", "--out", "OUT", "--save-every", "-3"], "'-3' is not a whole number"),
    (["train", "toy", "--out", "OUT", "--resume"], "holds no run to go on with"),
    (["train", "toy", "--out", "OUT", "--test", "x.json"], "--test is for"),
    (
        ["train", "toy", "--out", "OUT", "--config", "missing.yaml"],
        "missing.yaml cannot be read",
    ),
    (["train", "wiki", "--out", "OUT"], "no pairs called 'wiki'"),
    (["train", "dpr:missing.json", "--out", "OUT"], "missing.json: found no such file"),
    (["train", "jsonl:WRONG", "--out", "OUT"], "one JSON object on each line"),
    (["train", "toy", "--out", "WRONG"], "holds something else (it is a file)"),
    (["train", "toy", "--out", "FOLDER"], "holds something else (thesis.txt)"),
    (["train", "toy", "--out", "OUT", "--no-such-option"], "unrecognized arguments"),
    (["train", "toy"], "the following arguments are required: --out"),
    (["evaluate", "OUT", "toy"], "holds no saved run"),
    (["index", "OUT", "toy", "--out", "OUT2"], "holds no saved run"),
    (["search", "OUT", "query"], "holds no index"),
    (["frobnicate"], "invalid choice: 'frobnicate'"),
    (
        ["train", "toy", "--out", "OUT", "--memory-cap", "9999999999TB"],
        "more than a process can hold",
    ),
    (
        ["train", "toy", "--out", "OUT", "--memory-cap", "9" * 400 + "GB"],
        "more than a process can hold",
    ),
    (
        ["index", "OUT", "toy", "--out", "OUT2", "--memory-cap", "1GB", "--device", "abacus"],
        "device is 'abacus'",
    ),
    (
        ["index", "OUT", "toy", "--out", "OUT2", "--memory-cap", "1GB", "--device", "meta"],
        "finds no META device here",
    ),
    (
        ["train", "toy", "--out", "OUT", "--seed", "9" * 4000],
        "seed is a number of more than 40 digits: it must be from 0 to",
    ),
    (
        ["train", "toy", "--out", "OUT", "--dim", "9" * 4000],
        "dim is a number of more than 40 digits",
    ),
    (["train", "toy", "--out", "OUT", "--temperature", "1e999"], "temperature is inf"),
    (
        ["train", "toy", "--out", "OUT", "--save-every", "9" * 30],
        "is not a whole number from 0 to 1000000000",
    ),
    (["search", "OUT", "query", "-k", "0"], "'0' is not a whole number from 1"),
    (
        ["index", "OUT", "toy", "--out", "OUT2", "--shard", "0"],
        "'0' is not a whole number from 1",
    ),
    *[
        (
            ["train", "toy", "--out", "OUT", "--device", device],
            f"finds no {device.upper()} device here: choose 'cpu'",
        )
        for device in ("xpu", "vulkan", "meta", "hpu")
    ],
    (["train", "toy", "--out", ""], "argument --out: it is empty: give a name"),
    (["index", "OUT", "toy", "--out", ""], "argument --out: it is empty"),
    (["train", "", "--out", "OUT"], "argument PAIRS: it is empty"),
    (["train", "toy", "--out", "OUT", "--config", ""], "argument --config: it is empty"),
    (["train", "dpr:x", "--out", "OUT", "--test", ""], "argument --test: it is empty"),
    (["evaluate", "", "toy"], "argument FOLDER: it is empty"),
    (["evaluate", "OUT", "toy", "--index", ""], "argument --index: it is empty"),
    (["search", "", "query"], "argument INDEX: it is empty"),
    (["index", "OUT", "", "--out", "OUT2"], "argument PASSAGES: it is empty"),
    (["train", "toy", "--out", "OUT", "--tower", ""], "tower is empty"),
    (
        ["train", "jsonl:caf\udce9.jsonl", "--out", "OUT"],
        r"'\udce9' is no character: rename the file or folder in UTF-8",
    ),
    (["train", "toy", "--out", "caf\udce9"], r"'\udce9' is no character: rename the file"),
    (["train", "toy", "--out", "OUT", "--tower", "caf\udce9"], r"tower is 'caf\udce9'"),
    (["train", "toy", "--out", "OUT", "\x1b[2J\n"], "unrecognized arguments"),
]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A working folder with a file that holds no pairs and a folder of the user's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "WRONG").write_text("{]")
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER" / "thesis.txt").write_text("years of work")
    return tmp_path


@pytest.mark.parametrize("words, said", WRONG)
def test_what_goes_wrong_is_one_sentence(capsys, desk, words, said):
    if words[-1] == "cuda:77" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    status, out, err = call(capsys, *words)
    assert status == 2, err
    assert out == ""
    assert err.startswith("contaccum")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [words for words, _ in WRONG])
def test_what_goes_wrong_writes_nothing(capsys, desk, words):
    if words[-1] == "cuda:77" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    call(capsys, *words)
    assert sorted(path.name for path in desk.iterdir()) == ["FOLDER", "WRONG"]
    assert [path.name for path in (desk / "FOLDER").iterdir()] == ["thesis.txt"]


def test_a_fault_of_the_package_is_not_hidden(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(train_command, "explicit_settings", lambda given: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        main(["train", "toy", "--out", str(tmp_path / "run")])


def test_debug_hides_no_refusal(tmp_path):
    with pytest.raises(ValueError, match="no pairs called"):
        main(["train", "wiki", "--out", str(tmp_path / "run"), "--debug"])


# A limit on the size of files fails a write as a full disk does.


def test_a_disk_that_is_full_at_the_start_leaves_nothing(family, tmp_path):
    out = tmp_path / "run"
    ended = family.run("train", "toy", *TINY, "--out", out, largest_file=20_000)
    assert ended.status == 2, ended
    assert "make room" in ended.err
    assert ended.err.count("\n") == 1
    assert not out.exists()


def test_a_disk_that_fills_on_the_way_leaves_the_run_as_it_was_saved(family, toy, tmp_path):
    out = tmp_path / "run"
    ended = family.run(
        "train",
        "toy",
        *TINY,
        "--updates",
        "100000",
        "--out",
        out,
        "--save-every",
        "5",
        grown=(out / "log.jsonl", 2000),
        after=0,
        send=signal.SIGINT,
    )
    assert ended.status == 130, ended
    saved = cl.Run.load(out, toy).step_count
    size = max(p.stat().st_size for p in out.rglob("*") if p.is_file())
    ended = family.run("train", "toy", "--out", out, "--save-every", "5", largest_file=size - 1)
    assert ended.status == 2, ended.err
    assert f"the run stands as it was saved after update {saved}" in ended.err
    assert "make room" in ended.err
    assert cl.Run.load(out, toy).step_count == saved
    assert not list(out.glob(".*"))


def test_a_disk_that_is_full_leaves_no_index_and_the_run(family, tmp_path):
    out = tmp_path / "run"
    assert family.run("train", "toy", *TINY, "--out", out, "--save-every", "5").status == 0
    before = sorted(p.name for p in out.iterdir())
    ended = family.run("index", out, "toy", "--out", tmp_path / "index", largest_file=20_000)
    assert ended.status == 2, ended
    assert "make room" in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "index").exists()
    assert sorted(p.name for p in out.iterdir()) == before


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="an address-space limit is Linux's"
)
def test_memory_that_runs_out_is_a_sentence(family, tmp_path):
    words = [
        "train",
        "toy",
        "--tower",
        "bert",
        "--dim",
        "256",
        "--method",
        "dpr",
        "--local-batch",
        "256",
        "--updates",
        "2",
        "--out",
        tmp_path / "run",
    ]
    ended = family.run(*words, "--memory-cap", "900MB")
    assert ended.status == 2, ended.err
    assert "memory ran out: lower local_batch" in ended.err
    assert ended.err.count("\n") == 1
    ended = family.run(
        *words[:-1], tmp_path / "small", "--local-batch", "8", "--memory-cap", "900MB"
    )
    assert ended.status == 0, ended.err


# --- stopping and going on ------------------------------------------------------------------------


@pytest.mark.parametrize("send, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_saves_and_says_how_to_go_on(family, toy, tmp_path, send, status):
    out = tmp_path / "my run"
    ended = family.run(
        "train",
        "toy",
        *TINY,
        "--updates",
        "600",
        "--out",
        out,
        "--save-every",
        "0",
        grown=(out / "log.jsonl", 5000),
        after=0.01,
        send=send,
    )
    assert ended.status == status and ended.err.count("\n") == 1, ended
    stopped = cl.Run.load(out, toy).step_count
    assert 0 < stopped < 600 and f"stopped after update {stopped} of 600, and saved" in ended.err
    words = shlex.split(ended.err.partition("Go on with: ")[2])
    assert words == [
        "contaccum",
        "train",
        "toy",
        *TINY,
        "--updates",
        "600",
        "--out",
        str(out),
        "--save-every",
        "0",
    ]
    assert family.run(*words[1:]).status == 0 and cl.Run.load(out, toy).step_count == 600
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == [*range(1, 601), 600]


@pytest.fixture
def trained(capsys, tmp_path):
    """The words of a command that has trained a run to its end."""
    words = ["train", "toy", *TINY, "--out", tmp_path / "run"]
    assert call(capsys, *words)[0] == 0
    return words


def test_the_same_line_again_goes_on(capsys, trained):
    status, out, _ = call(capsys, *trained)
    assert status == 0
    assert "goes on after update 40" in out


def test_another_setting_than_the_runs_is_refused(capsys, trained):
    status, _, err = call(capsys, *trained, "--seed", "3")
    assert status == 2
    assert "holds a run with seed 0, and 3 is given" in err
    assert err.count("\n") == 1


def test_the_settings_of_a_run_make_the_same_run_again(capsys, toy, tmp_path, trained):
    mine = tmp_path / "run" / "settings.yaml"
    again = ["train", "toy", "--out", tmp_path / "again", "--config", mine]
    assert call(capsys, *again)[0] == 0
    one, two = (cl.Run.load(tmp_path / name, toy) for name in ("run", "again"))
    parameters = zip(one.query_tower.parameters(), two.query_tower.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in parameters)


WHOLE = [
    [
        "train",
        "jsonl:pairs.jsonl",
        "--out",
        "my run",
        "--config",
        "mine.yaml",
        "--save-every",
        "7",
        "--evaluate-every",
        "3",
        "--test",
        "t.jsonl",
        "--memory-cap",
        "9GB",
        "--resume",
        "--method",
        "grad_accum",
        "--seed",
        "7",
        "--shared",
        "--no-past-encoder",
    ],
    [
        "evaluate",
        "run",
        "toy",
        "--index",
        "ix",
        "--split",
        "dev",
        "--json",
        "--test",
        "t",
        "--shard",
        "5",
        "--device",
        "cpu",
        "--memory-cap",
        "9GB",
    ],
    [
        "index",
        "run",
        "a b.tsv",
        "--out",
        "ix",
        "--dtype",
        "float16",
        "--shard",
        "5",
        "--device",
        "cpu",
        "--memory-cap",
        "9GB",
    ],
    ["search", "ix", "--json", "-k", "9", "--", "what's $this?", "-x"],
    ["ledger"],
]


@pytest.mark.parametrize("words", WHOLE, ids=lambda words: words[0])
def test_a_stopped_command_says_all_of_itself_and_claims_nothing(capsys, monkeypatch, words):
    def interrupted(given):
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, words[0], interrupted)
    status, out, err = call(capsys, *words)
    said, _, line = err.partition("Go on with: ")
    assert status == 130
    assert out == ""
    assert said == "contaccum: stopped. "
    assert shlex.split(line) == ["contaccum", *words]


def test_a_stop_while_the_data_load(capsys, tmp_path, monkeypatch):
    def interrupted(source, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "load_pairs", interrupted)
    words = [
        "train",
        "toy",
        "--out",
        str(tmp_path / "run"),
        "--method",
        "grad_accum",
        "--seed",
        "7",
    ]
    status, _, err = call(capsys, *words)
    assert status == 130
    assert err == f"contaccum: stopped. Go on with: {shlex.join(['contaccum', *words])}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_the_line_is_safe_to_show_and_a_shell_reads_it_back():
    words = [
        "plain",
        "",
        "two words",
        "it's $HOME",
        "caf\udce9",
        "\x1b[2J",
        "a\nb",
        "\u202e' \\",
        "\x9b0f",
        "ü",
        "\udce9a1",
        "-k",
    ]
    line = terminal.shell_command(words)
    assert not any(acts(c) or c == "\n" for c in line)
    read = subprocess.run(
        [b"bash", b"-c", b"LC_ALL=C.UTF-8; printf '%s\\0' " + os.fsencode(line)],
        capture_output=True,
    ).stdout
    assert read.split(b"\0")[:-1] == [os.fsencode(word) for word in ["contaccum", *words]]


def stopped_while_torch_loads(folder, *start):
    """(exit status, stdout, stderr) of a Python with a torch whose import is interrupted.

    It stands for the seconds that an import of torch takes.
    """
    (folder / "torch.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    ended = subprocess.run(
        [sys.executable, *start],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("start", [["-m", "contaccum_lite"], ["contaccum"]])
def test_a_stop_while_the_libraries_load(tmp_path, start):
    (tmp_path / "contaccum").write_text("from contaccum_lite.cli import main\n")
    start = [str(tmp_path / word) if word == "contaccum" else word for word in start]
    ended = stopped_while_torch_loads(tmp_path, *start, "search", "x", "y")
    assert ended == (130, "", "contaccum: stopped.\n")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_stop_of_a_program_of_the_users_is_its_own(tmp_path):
    (tmp_path / "other.py").write_text(
        "try:\n    import contaccum_lite\nexcept KeyboardInterrupt:\n    print('mine')\n"
    )
    assert stopped_while_torch_loads(tmp_path, "other.py") == (0, "mine\n", "")


@pytest.fixture
def edited(capsys, tmp_path):
    """(words of the command that trained a run, the file of its settings)."""
    words = ["train", "toy", *TINY, "--updates", "2", "--warmup", "0", "--out", tmp_path / "run"]
    assert call(capsys, *words)[0] == 0
    return words, tmp_path / "run" / "settings.yaml"


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("seed: 0", "seed: 3", "says seed 3, and the run was begun with 0, which it keeps"),
        ("seed: 0", "seed: many", "seed is 'many'"),
        ("drop_query_bank_at: null", "drop_query_bank_at: 1", "says drop_query_bank_at 1"),
        ("updates: 2", "", "says updates 400"),
        (None, "]", "is not YAML"),
    ],
)
@pytest.mark.parametrize("with_options", [True, False])
def test_edited_settings_of_a_run_are_refused(capsys, edited, old, new, said, with_options):
    words, path = edited
    text = path.read_text()
    assert old is None or old in text
    changed = new if old is None else text.replace(old, new)
    path.write_text(changed)
    status, out, err = call(capsys, *(words if with_options else words[:2] + words[-2:]))
    assert status == 2, err
    assert out == ""
    assert f"{path}" in err
    assert said in err
    assert err.count("\n") == 1
    assert path.read_text() == changed, "it stays as its writer left it"


def test_a_remark_in_the_settings_of_a_run_stays(capsys, edited):
    words, path = edited
    path.write_text("# a remark\n" + path.read_text())
    assert call(capsys, *words)[0] == 0
    assert path.read_text().startswith("# a remark")


def test_settings_that_are_gone_are_written_again(capsys, edited):
    """As after a crash between the first checkpoint and them."""
    words, path = edited
    text = path.read_text()
    path.unlink()
    assert call(capsys, *words)[0] == 0
    assert path.read_text() == text


@pytest.fixture
def logged(capsys, tmp_path):
    """(words of the command that trained and evaluated a run, its output, its log)."""
    words = ["train", "toy", *TINY, "--updates", "4", "--warmup", "0", "--evaluate-every", "2"]
    words += ["--out", tmp_path / "run"]
    _, out, _ = call(capsys, *words)
    return words, out, tmp_path / "run" / "log.jsonl"


def test_a_log_has_evaluations_between_updates(logged):
    _, _, log = logged
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [("evaluation" in line, line["step"]) for line in lines] == [
        (False, 1),
        (False, 2),
        (True, 2),
        (False, 3),
        (False, 4),
        (True, 4),
    ]


def test_a_finished_run_is_not_logged_again(capsys, logged):
    words, first, log = logged
    before = log.read_bytes()
    status, again, _ = call(capsys, *words)
    assert status == 0
    assert log.read_bytes() == before
    assert first.splitlines()[-2:] == again.splitlines()[-2:]


def test_a_run_killed_before_its_last_evaluation_makes_it(capsys, logged):
    words, _, log = logged
    before = log.read_bytes()
    log.write_bytes(b"".join(before.splitlines(keepends=True)[:-1]))
    assert call(capsys, *words)[0] == 0
    assert log.read_bytes() == before


@pytest.fixture
def ranked(monkeypatch, tmp_path):
    """The words of a short training, in a process that was given a rank."""
    monkeypatch.setenv("RANK", "1")
    return ["train", "toy", *TINY, "--updates", "2", "--warmup", "0", "--out", tmp_path / "run"]


def test_a_rank_without_a_world_trains_alone(capsys, ranked, tmp_path):
    status, out, _ = call(capsys, *ranked)
    assert status == 0
    assert "all 2 updates are made" in out
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"log.jsonl", "settings.yaml", "run.json"} <= written


def test_a_world_whose_size_is_no_number_is_a_sentence(capsys, ranked, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    status, _, err = call(capsys, *ranked)
    assert status == 2
    assert "WORLD_SIZE='two': it must be a whole number" in err


# --- what is logged -------------------------------------------------------------------------------


@pytest.fixture
def written(capsys, toy, tmp_path, monkeypatch):
    """(a run, the lines of its log, its scalars) of a training that writes for TensorBoard too."""
    scalars = {}

    class Writer:
        def __init__(self, folder, purge_step):
            self.add_scalar = lambda name, value, step: scalars.setdefault(name, {}).update(
                {step: value}
            )
            self.close = lambda: scalars.update(closed={})

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer)
    )
    words = ["train", "toy", *TINY, "--out", tmp_path / "run"]
    assert call(capsys, *words, "--evaluate-every", "15", "--warmup", "4")[0] == 0
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    return cl.Run.load(tmp_path / "run", toy), [json.loads(line) for line in log], scalars


def test_evaluations_are_logged(written):
    run, lines, _ = written
    assert [line["step"] for line in lines if "evaluation" in line] == [15, 30, 40]
    assert lines[-1]["evaluation"] == run.evaluate()


def test_updates_are_logged(written):
    run, lines, _ = written
    updates = [line for line in lines if "loss" in line]
    logged = [{name: line[name] for name in cl.Update._fields} for line in updates]
    assert logged == [u._asdict() for u in run.history]
    assert [line["learning_rate"] for line in updates] == [run.learning_rate(n) for n in range(40)]
    assert all(50 < line["memory_mb"] < 1e5 for line in updates)


def test_tensorboard_has_what_is_logged(written):
    run, lines, scalars = written
    assert scalars["train/loss"] == {u.step: u.loss for u in run.history}
    assert scalars["evaluation/top@20"][40] == lines[-1]["evaluation"]["top@20"]
    assert "closed" in scalars


# --- the field's files, end to end ----------------------------------------------------------------


def dpr_files(toy, folder):
    def record(pair):
        context = lambda p: {"title": p.title, "text": p.text}
        return {
            "question": pair.query,
            "answers": [pair.passage.split()[0]],
            "positive_ctxs": [{"title": pair.title, "text": pair.passage}],
            "negative_ctxs": [],
            "hard_negative_ctxs": [context(p) for p in pair.hard_negatives],
        }

    for name, pairs in (("train", toy.train[:300]), ("dev", toy.test)):
        (folder / f"{name}.json").write_text(json.dumps([record(pair) for pair in pairs]))


def beir_files(toy, folder):
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text(
        "".join(
            json.dumps({"_id": p.id, "title": p.title, "text": p.text}) + "\n" for p in toy.passages
        )
    )
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": p.id, "text": p.query}) + "\n" for p in (*toy.train, *toy.test))
    )
    for split, pairs in (("train", toy.train), ("test", toy.test)):
        (folder / "qrels" / f"{split}.tsv").write_text(
            "query-id\tcorpus-id\tscore\n"
            + "".join(f"{p.id}\t{p.passage_id}\t{1 + (n % 2)}\n" for n, p in enumerate(pairs))
        )


def measures(ended):
    assert ended.status == 0 and ended.err == "", ended
    return json.loads(ended.out)


class Trained(NamedTuple):
    """What the commands made of files of the field."""

    folder: Path
    pairs: str  # the source of the pairs
    test: list  # the words that name the questions for the test
    run: cl.Run
    trained: Any  # how the training ended
    indexed: Any  # how the indexing ended


@pytest.fixture(scope="module")
def dpr(family, toy, tmp_path_factory):
    """A run of DPR's files, and an index of a corpus of its own, as DPR's Wikipedia is.

    The corpus has other ids: what it finds is judged by text and answer.
    """
    folder = tmp_path_factory.mktemp("dpr")
    dpr_files(toy, folder)
    pairs, test = f"dpr:{folder / 'train.json'}", ["--test", folder / "dev.json"]
    trained = family.run(
        *("train", pairs, *test, *TINY, "--start", "random"),
        *("--hard-negatives", "1", "--out", folder / "run"),
    )
    run = cl.Run.load(folder / "run", cl.load_pairs(pairs, test=folder / "dev.json"))
    rows = "".join(
        f"{n}\t{p.text}\t{p.title}\n" for n, p in enumerate(reversed(run.pairs.passages))
    )
    (folder / "psgs.tsv").write_text("id\ttext\ttitle\n" + rows)
    words = ["index", folder / "run", folder / "psgs.tsv", "--out", folder / "index"]
    indexed = family.run(*words, "--shard", "150", "--dtype", "float16")
    return Trained(folder, pairs, test, run, trained, indexed)


def test_training_on_dpr_files_says_how_many_answers_are_found(dpr):
    assert dpr.trained.status == 0, dpr.trained
    assert dpr.trained.err == ""
    assert "answer_top@20" in dpr.trained.out


def test_evaluation_on_dpr_files_is_that_of_the_run(family, dpr):
    words = ["evaluate", dpr.folder / "run", dpr.pairs, *dpr.test, "--json", "--shard", "100"]
    found = measures(family.run(*words))
    assert found == pytest.approx(dpr.run.evaluate())
    assert found["top@20"] > 0.15
    assert found["answer_top@20"] >= found["top@20"]


def test_an_index_of_a_tsv_says_how_many_passages_it_holds(dpr):
    assert dpr.indexed.status == 0, dpr.indexed
    assert dpr.indexed.err == ""
    assert f"{len(dpr.run.pairs.passages):,} passages" in dpr.indexed.out


def test_evaluation_through_an_index_of_other_ids_finds_as_much(family, dpr):
    words = ["evaluate", dpr.folder / "run", dpr.pairs, *dpr.test, "--json"]
    found = measures(family.run(*words, "--index", dpr.folder / "index"))
    # float16 may swap neighbours
    assert found == pytest.approx(dpr.run.evaluate(), abs=0.02)


def test_a_search_as_anyone_would_start_it(dpr):
    query = dpr.run.pairs.test[0].query
    words = [sys.executable, "-m", "contaccum_lite", "search", dpr.folder / "index", query]
    ended = subprocess.run([*words, "-k", "3", "--json"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended
    assert ended.stderr == ""
    titles = [json.loads(line)["title"] for line in ended.stdout.splitlines()]
    assert titles == [hit.title for hit in dpr.run.search(query, 3)]


@pytest.fixture(scope="module")
def beir(family, toy, tmp_path_factory):
    """A run of BEIR's files, by GradCache in bf16, and an index of their corpus."""
    folder = tmp_path_factory.mktemp("beir")
    beir_files(toy, folder)
    pairs = f"beir:{folder}"
    words = ["train", pairs, *TINY, "--method", "grad_cache", "--memory-size", "0"]
    trained = family.run(*words, "--out", folder / "run", "--precision", "bf16")
    run = cl.Run.load(folder / "run", cl.load_pairs(pairs))
    indexed = family.run(
        "index", folder / "run", folder / "corpus.jsonl", "--out", folder / "index"
    )
    return Trained(folder, pairs, [], run, trained, indexed)


def test_training_on_beir_files_has_the_settings_that_were_given(beir):
    assert beir.trained.status == 0, beir.trained
    assert beir.trained.err == ""
    assert beir.run.settings.precision == "bf16"
    assert beir.run.settings.method == "grad_cache"


def test_evaluation_on_beir_files_is_that_of_the_run(family, beir):
    ended = family.run("evaluate", beir.folder / "run", beir.pairs, "--shard", "250")
    assert ended.status == 0, ended
    words = [line.split() for line in ended.out.splitlines()]
    printed = {name: float(value) for name, value in words}
    assert printed == pytest.approx(beir.run.evaluate(), abs=0.02)
    assert {"ndcg@10", "recall@100"} <= set(printed)


def test_evaluation_through_an_index_of_a_beir_corpus_finds_as_much(family, beir):
    assert beir.indexed.status == 0, beir.indexed
    words = ["evaluate", beir.folder / "run", beir.pairs, "--index", beir.folder / "index"]
    found = measures(family.run(*words, "--json"))
    assert found == pytest.approx(beir.run.evaluate(), abs=0.02)


def test_a_search_answers_every_query(family, toy, beir):
    queries = [pair.query for pair in toy.test[:2]]
    ended = family.run("search", beir.folder / "index", *queries, "-k", "4")
    assert ended.status == 0, ended
    assert ended.out.count("toy.") == 8
    assert queries[1] in ended.out


HOSTILE = [
    "<script>alert(1)</script>",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;a title\x07",
    "\x9b2Jgone",
    "\u202edesrever",
    "two\nlines\rover",
    "$x$",
    "\u061cARABIC\u200f\u200e",
    "\U000e0041tag\U000e007f",
    "next\u2028line\u2029\x85\x1c\x0cpage",
    "\ufeffmark\u2066",
]


@pytest.fixture(scope="module")
def hostile(family, tmp_path_factory):
    """A folder with a run and an index of hostile text, and what their commands said."""
    folder = tmp_path_factory.mktemp("hostile")
    pair = lambda n, text: json.dumps(
        {
            "query": f"what is {n} {text}",
            "passage": f"{text} is {n} Zürich → 山",
            "title": f"{n} {text}",
            "passage_id": f"{n}{text}",
        }
    )
    (folder / "pairs.jsonl").write_text(
        "\n".join(pair(n, HOSTILE[n % len(HOSTILE)]) for n in range(40))
    )
    pairs = f"jsonl:{folder / 'pairs.jsonl'}"
    ended = [
        family.run(
            "train", pairs, *TINY, "--updates", "2", "--warmup", "1", "--out", folder / "run"
        ),
        family.run("index", folder / "run", pairs, "--out", folder / "index"),
    ]
    return folder, ended


def test_hostile_text_is_text_in_the_terminal(family, hostile):
    folder, (trained, indexed) = hostile
    found = family.run("search", folder / "index", *HOSTILE, "-k", "8")
    refused = family.run("train", "jsonl:" + HOSTILE[1], "--out", folder / "other")
    every = [trained, indexed, found, refused]
    assert [ended.status for ended in every] == [0, 0, 0, 2], every
    assert not any(acts(c) for ended in every for c in ended.out + ended.err)
    assert refused.err.count("\n") == 1
    assert "red" in found.out
    assert "<script>alert(1)</script>" in found.out
    assert len(found.out.splitlines()) == len(HOSTILE) * (1 + 2 * 8)


def test_json_keeps_every_character_of_hostile_text_escaped(family, hostile):
    ended = family.run("search", hostile[0] / "index", *HOSTILE, "-k", "8", "--json")
    assert ended.status == 0, ended
    assert not any(acts(c) for c in ended.out + ended.err)
    hits = [json.loads(text) for text in ended.out.splitlines()]
    assert len(hits) == 8 * len(HOSTILE)
    assert [hit["query"] for hit in hits[::8]] == HOSTILE


def test_hostile_text_is_text_in_the_log(hostile):
    folder, (trained, _) = hostile
    assert "begins" in trained.out
    for name in ("log.jsonl", "settings.yaml"):
        text = (folder / "run" / name).read_text()
        assert text
        assert not any(map(acts, text))


@pytest.fixture(params=["ascii", "cp1252"])
def encoding(request):
    """What a terminal writes that cannot show every character."""
    return request.param


def shown(family, encoding, *words):
    """What a command writes in this encoding, once it has ended well."""
    ended = family.run(*words, encoding=encoding)
    assert (ended.status, ended.err) == (0, ""), ended
    return ended.out


def test_what_a_search_cannot_show_is_escaped(family, hostile, encoding):
    out = shown(family, encoding, "search", hostile[0] / "index", "Zürich 山", "-k", "3")
    assert r"\u5c71" in out
    assert ("Zürich" if encoding == "cp1252" else r"Z\xfcrich") in out


def test_json_is_whole_in_every_encoding(family, hostile, encoding):
    words = ["search", hostile[0] / "index", "Zürich 山", "-k", "3", "--json"]
    hits = [json.loads(line) for line in shown(family, encoding, *words).splitlines()]
    assert [hit["query"] for hit in hits] == ["Zürich 山"] * 3
    assert all("Zürich → 山" in hit["passage"] for hit in hits)


def test_what_the_ledger_cannot_show_is_escaped(family, encoding):
    assert r"\u2192" in shown(family, encoding, "ledger")


def test_what_the_help_cannot_show_is_escaped(family, encoding):
    assert r"\u03c4" in shown(family, encoding, "train", "--help")


def test_what_a_training_cannot_show_is_escaped(family, hostile, encoding):
    folder, _ = hostile
    words = ["train", f"jsonl:{folder / 'pairs.jsonl'}", "--out", folder / f"山 {encoding}"]
    out = shown(family, encoding, *words, *TINY, "--updates", "1", "--warmup", "0")
    assert r"\u5c71" in out


def test_a_query_that_is_no_text_is_a_sentence(family, hostile):
    for words in (["caf\udce9"], ["caf\udce9", "--json"], ["fine", "caf\udce9"]):
        ended = family.run("search", hostile[0] / "index", *words)
        assert ended.status == 2, ended
        assert "is no character: write it in UTF-8" in ended.err
        assert ended.err.count("\n") == 1


@drawn(
    st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3),
    st.sampled_from(["ascii", "cp1252", "utf-8", "utf-16"]),
)
@tries(max_examples=200, deadline=None)
def test_json_is_one_safe_line_that_keeps_every_character(values, encoding):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", types.SimpleNamespace(encoding=encoding))
        line = terminal.json_line(values)
    assert json.loads(line) == values
    assert len(line.splitlines()) == 1
    assert not any(map(acts, line))
    line.encode(encoding)


def test_nobody_reads_the_output(family, hostile, tmp_path):
    for words in (
        ["search", hostile[0] / "index", "red"],
        ["evaluate", "--help"],
        ["ledger"],
        ["train", "toy", *TINY, "--updates", "1", "--warmup", "0", "--out", tmp_path / "run"],
    ):
        ended = family.run(*words, unread=True)
        assert (ended.status, ended.err) == (141, ""), ended
    shell = f"{shlex.quote(sys.executable)} -m contaccum_lite train --help | head -1; echo ${{PIPESTATUS[0]}}"
    if shutil.which("bash"):  # and once as anyone would start it
        ended = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
        assert ended.stderr == "", ended
        assert ended.stdout.startswith("usage: contaccum train")
        assert ended.stdout.splitlines()[-1] in ("0", "141")


def test_streams_that_are_closed(family, tmp_path):
    small = [*TINY, "--updates", "2", "--warmup", "0"]
    assert (
        family.run("train", "toy", *small, "--out", tmp_path / "run", closed=["stderr"]).status == 0
    )
    ended = family.run("evaluate", tmp_path / "run", "toy", closed=["stderr"])
    assert ended.status == 0 and "top@20" in ended.out
    assert (
        family.run(
            "index",
            tmp_path / "run",
            "toy",
            "--out",
            tmp_path / "index",
            closed=["stdout", "stderr"],
        ).status
        == 0
    )
    assert (
        family.run("search", tmp_path / "nothing", "words", closed=["stdout", "stderr"]).status == 2
    )
    assert len(Index(tmp_path / "index")) == 640


# --- ledger ---------------------------------------------------------------------------------------


def test_the_ledger_is_that_of_the_docs(capsys):
    status, out, _ = call(capsys, "ledger")
    assert status == 0
    assert out.strip()
    assert out.strip() in (ROOT / "docs/tables/ledger.md").read_text()


def test_a_ledger_without_records_is_a_sentence(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(records.STUDIES, "random", tmp_path / "ledger.json")
    status, _, err = call(capsys, "ledger")
    assert status == 2
    assert "records of the ledger's runs are not here" in err
    assert err.count("\n") == 1

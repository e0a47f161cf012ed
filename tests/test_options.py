"""Drawn options and configurations: each is read right, or refused in one sentence.

None ends in a traceback.
"""

import contextlib
import datetime
import io

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings, strategies as st

from contaccum_lite import Settings
from contaccum_lite.cli import commands, main, train as train_command
from contaccum_lite.cli.config import FIELDS
from contaccum_lite.diagnostics import measure
from contaccum_lite.core.settings import read
from contaccum_lite.utils.devices import check_device

#: The examples share a folder, and none leaves anything there but the file that it writes anew.
DRAWN = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Read(Exception):
    """Raised where a command has read all of its options, with what it has read."""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A function that gives what `contaccum WORDS` makes of its options.

    Settings, or its exit status.
    """

    def stop(*values):
        raise Read(values)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_command, "load_pairs_from", lambda args: None)
    monkeypatch.setattr(train_command, "make_run", stop)
    monkeypatch.setattr(measure, "cap_memory", lambda size, device: measure._bytes(size))
    for name in ("evaluate", "index", "search", "ledger"):
        monkeypatch.setitem(commands.COMMANDS, name, stop)

    def run(*words):
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main(list(words))
        except Read as end:
            return end.args[0][1] if words[0] == "train" else end.args[0]
        except SystemExit as end:
            status = end.code
        if status == 0:
            assert any(word.startswith(("--help", "-h")) for word in words)
        else:
            sentence = err.getvalue()
            assert status == 2 and sentence.startswith("contaccum"), sentence
            assert len(sentence.splitlines()) == 1, sentence
        return status

    return run


def in_range(field):
    """Values of a setting that are right by themselves."""
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    kind = str(field.type).split(" |")[0]
    if choices:
        return st.sampled_from(choices)
    return {
        "bool": st.booleans(),
        "int": st.integers(low, high),
        "float": st.floats(low, high),
        "str": st.sampled_from(
            ["cpu"] if field.name == "device" else ["bag", "bert", "a/folder", "山"]
        ),
    }[kind]


odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(
        [
            10**400,
            -(10**60),
            "1_0",
            " 3 ",
            "٣",
            "1e999",
            "nan",
            "0x10",
            "yes",
            "None",
            b"bytes",
            datetime.date(2026, 11, 2),
            "a\ud800",
            "\x1b[2J",
            "\u2028",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.sampled_from(sorted(FIELDS))
one_field = names.flatmap(lambda name: st.tuples(st.just(name), in_range(FIELDS[name]) | odd))
right_field = names.flatmap(lambda name: st.tuples(st.just(name), in_range(FIELDS[name])))


def expected(fields):
    """The settings with these fields, or 2 where they are refused.

    A text among the fields is read as an option is.
    """
    try:
        made = Settings(
            **{
                name: read(FIELDS[name], value) if isinstance(value, str) else value
                for name, value in fields.items()
            }
        )
        check_device(made.device)
        return made
    except ValueError:
        return 2


@given(st.lists(right_field, max_size=4).map(dict) | st.lists(one_field, max_size=4).map(dict))
@example({"seed": 10**400})
@example({"tower": "a\ud800"})
@DRAWN
def test_a_drawn_configuration_is_read_or_refused(command, tmp_path, fields):
    (tmp_path / "drawn.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    assert command("train", "toy", "--out", "run", "--config", "drawn.yaml") == expected(fields)
    assert not (tmp_path / "run").exists()


@given(st.lists(right_field, max_size=4).map(dict), st.lists(right_field, max_size=3).map(dict))
@DRAWN
def test_drawn_options_are_read_and_override_a_configuration(command, tmp_path, fields, options):
    (tmp_path / "drawn.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    words = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words.append(f"--{option}={value}")
    read_by_command = command("train", "toy", "--out", "run", *words, "--config", "drawn.yaml")
    assert read_by_command == expected(fields | options)


pieces = st.sampled_from(
    [
        *"[]{}&*!:-?|>#'\"%@,~\n\t ",
        "seed: ",
        "dim: ",
        "\n",
        "<<: ",
        "&a ",
        "*a",
        "!!int ",
        "!!bool ",
        "!!set ",
        "!!timestamp ",
        "!!binary ",
        "!!omap ",
        "!!python/none ",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "0x",
        "0b",
        "1:1:1",
        "1e9",
        "2026-13-01",
        ".inf",
        "null",
        "\x00",
        "\ufeff",
        "\x85",
        "\udce9",
        "山",
    ]
)


@given(st.lists(pieces | st.text(max_size=4), max_size=12).map("".join))
@example("seed: !!int x")
@example("a: &a [*a]")
@example("? [seed]\n: 3")
@example("seed: 0x_")
@example("seed: 1:" + "1" * 4000)
@example("dim: " + "1:" * 400 + "1.5")
@DRAWN
def test_any_file_is_settings_or_refused(command, tmp_path, text):
    (tmp_path / "drawn.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    result = command("train", "toy", "--out", "run", "--config", "drawn.yaml")
    assert result == 2 or isinstance(result, Settings)


values = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9
) | st.sampled_from(
    [
        "",
        "-1",
        "0",
        "1",
        "9" * 5000,
        "1e999",
        "nan",
        "cpu",
        "meta",
        "cuda:99",
        "5GB",
        "0.5TiB",
        "9" * 400 + "TB",
        "caf\udce9",
        "--",
        "-",
        "--seed",
        "%s",
        "%(prog)s",
        "\x1b[2J",
        "a\nb",
        "/",
        ".",
        "run\udcff",
    ]
)
options = st.sampled_from(
    [
        "--out",
        "--config",
        "--test",
        "--save-every",
        "--evaluate-every",
        "--memory-cap",
        "--device",
        "--shard",
        "--index",
        "--dtype",
        "--split",
        "--json",
        "--resume",
        "--debug",
        "--help",
        "-k",
        "--seed",
        "--dim",
        "--tower",
        "--no-shared",
        "--temperature",
        "--method",
        "--no-such",
    ]
)
word = values | options | st.tuples(options, values).map("=".join)


@given(
    st.sampled_from(["train", "evaluate", "index", "search", "ledger", "other"]),
    st.lists(word, max_size=7),
)
@example("train", ["toy", "--out", "run", "--seed", "9" * 4000])
@example("search", ["index", "caf\udce9"])
@DRAWN
def test_any_command_line_is_read_or_refused(command, name, words):
    command(name, *(word for word in words if word != "--debug"))  # which asks for tracebacks

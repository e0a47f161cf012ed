"""The command line: options, configuration, every command end to end on files of the field, and one sentence for whatever goes wrong."""

import json
import re
import shlex
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

import contaccum_lite as cl
from contaccum_lite import cli

ROOT = Path(__file__).parent.parent
TINY = ["--dim", "16", "--local-batch", "8", "--accumulation-steps", "2", "--memory-size", "32", "--passage-tokens", "16", "--learning-rate", "0.02", "--updates", "40"]


def given(*words):
    return cli.parser().parse_args(["train", "toy", "--out", "x", *map(str, words)])


def call(capsys, *words):
    """(exit status, stdout, stderr) of a command in this process."""
    try:
        status = cli.main([str(word) for word in words])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    return status, out, err


# --- settings -----------------------------------------------------------------------------------------------------------

def test_every_setting_is_an_option_with_its_help(capsys):
    status, out, _ = call(capsys, "train", "--help")
    text = " ".join(out.split())
    assert status == 0
    for name, f in cli.FIELDS.items():
        assert "--" + name.replace("_", "-") in out and " ".join(f.metadata["help"].split())[:40] in text, name
    assert "[N_memory]" in text and "from 0 to 1000000; default 128" in text


@pytest.mark.parametrize("line", ["method=contaccum&memory_size=64&seed=3&hard_negatives=2&shared=True&bank_hard_negatives=False", "method=dpr&local_batch=16&temperature=0.5",
                                  "method=contaccum&drop_query_bank_at=20&precision=bf16&tower=some/folder&compile=True", "method=momentum&momentum=0.5"])
def test_options_are_the_settings(line):
    wanted = cl.Settings.parse(line)
    words = []
    for part in line.split("&"):
        name, value = part.split("=")
        option = name.replace("_", "-")
        words += [f"--{option}"] if value == "True" else [f"--no-{option}"] if value == "False" else [f"--{option}", value]
    assert cl.Settings(**cli.chosen(given(*words))) == wanted
    assert cli.chosen(given()) == {}


def test_a_configuration_is_written_and_read_back(tmp_path):
    for line in ("method=contaccum&learning_rate=2e-05&memory_size=512", "method=grad_cache&tower=a/folder&drop_query_bank_at=7&dtype=float64", "method=dpr&momentum=0.0"):
        settings = cl.Settings.parse(line)
        cli.write_settings(tmp_path, settings)
        assert cl.Settings(**cli.read_config(tmp_path / "settings.yaml")) == settings
        assert set(yaml.safe_load((tmp_path / "settings.yaml").read_text())) == set(cli.FIELDS)          # all of them
    config = tmp_path / "mine.yaml"
    config.write_text("# by hand\nlearning_rate: 2e-5\nlocal_batch: 4\nseed: '7'\n")
    fields = cli.chosen(given("--config", config, "--local-batch", 16))
    assert fields == {"learning_rate": 2e-5, "local_batch": 16, "seed": 7}                               # options go before the file


@pytest.mark.parametrize("content, words", [("a: [1", "is not YAML"), ("- 1", "holds a list"), ("batch: 3", "'batch' is not a setting"), ("seed: abc", "seed is 'abc'"),
                                            ("seed: [1]", "seed is \\[1\\], a list"), ("local_batch: 0", "local_batch is 0: it must be from 1 to 4096"),
                                            ("!!python/object/apply:os.system ['true']", "is not YAML"),
                                            ("seed: &a 3\nlocal_batch: *a", "an alias, \\*name, where a value is expected.*line 2"),
                                            ("seed: " + "[" * 2000 + "]" * 2000, "too deep to be read"),
                                            ("seed: [" + "1, " * 5000 + "]", r"seed is \[1, 1, 1, 1, \.\.\.\], a list"),
                                            ("seed: 0x" + "f" * 9000, "seed is a number of more than 40 digits"), ("dim: " + "9" * 400, "dim is a number of more"),
                                            ("seed: " + "9" * 5000, "is not YAML"), ("temperature: " + "9" * 400, "temperature is a number of more"),
                                            ("seed: 2026-13-01", "is not YAML"), ("shared: !!bool perhaps", "is not YAML"), ("tower: !!timestamp x", "is not YAML"),
                                            ('tower: "a\\ud800"', "is no character")])
def test_a_bad_configuration_is_a_sentence(capsys, tmp_path, content, words):
    (tmp_path / "bad.yaml").write_text(content)
    status, _, err = call(capsys, "train", "toy", "--out", tmp_path / "run", "--config", tmp_path / "bad.yaml")
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(err)
    assert status == 2 and err.count("\n") == 1 and len(err) < 1500 and not (tmp_path / "run").exists()


def test_a_short_file_stands_for_no_large_value(capsys, tmp_path):
    """Nine nines of nines: as a value, and as what is merged into a mapping. Each would need more memory than there is."""
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
        assert status == 2 and "an alias, *name" in err and len(err) < 1000


# --- one sentence, exit status 2, nothing half-written ------------------------------------------------------------------

@pytest.mark.parametrize("words, said", [
    (["train", "toy", "--out", "OUT", "--local-batch", "0"], "local_batch is 0: it must be from 1 to 4096"),
    (["train", "toy", "--out", "OUT", "--memory-size", "many"], "memory_size is 'many'"),
    (["train", "toy", "--out", "OUT", "--method", "best"], "invalid choice: 'best'"),
    (["train", "toy", "--out", "OUT", "--method", "dpr", "--accumulation-steps", "4"], "fixes it at 1"),
    (["train", "toy", "--out", "OUT", "--tower", "no/such/folder"], "no encoder could be loaded from 'no/such/folder'"),
    (["train", "toy", "--out", "OUT", "--device", "cuda:77"], "device is 'cuda:77'"),
    (["train", "toy", "--out", "OUT", "--device", "abacus"], "choose 'cpu', 'cuda'"),
    (["train", "toy", "--out", "OUT", "--activation-checkpointing"], "has no layers"),
    (["train", "toy", "--out", "OUT", "--memory-cap", "11"], "write a number and a unit"),
    (["train", "toy", "--out", "OUT", "--memory-cap", "1MB"], "the process holds"),
    (["train", "toy", "--out", "OUT", "--save-every", "-3"], "'-3' is not a whole number"),
    (["train", "toy", "--out", "OUT", "--resume"], "holds no run to go on with"),
    (["train", "toy", "--out", "OUT", "--test", "x.json"], "--test is for"),
    (["train", "toy", "--out", "OUT", "--config", "missing.yaml"], "missing.yaml cannot be read"),
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
    (["train", "toy", "--out", "OUT", "--memory-cap", "9999999999TB"], "more than a process can hold"),
    (["train", "toy", "--out", "OUT", "--memory-cap", "9" * 400 + "GB"], "more than a process can hold"),
    (["index", "OUT", "toy", "--out", "OUT2", "--memory-cap", "1GB", "--device", "abacus"], "device is 'abacus'"),
    (["index", "OUT", "toy", "--out", "OUT2", "--memory-cap", "1GB", "--device", "meta"], "finds no META device here"),
    (["train", "toy", "--out", "OUT", "--seed", "9" * 4000], "seed is a number of more than 40 digits: it must be from 0 to"),
    (["train", "toy", "--out", "OUT", "--dim", "9" * 4000], "dim is a number of more than 40 digits"),
    (["train", "toy", "--out", "OUT", "--temperature", "1e999"], "temperature is inf"),
    (["train", "toy", "--out", "OUT", "--save-every", "9" * 30], "is not a whole number from 0 to 1000000000"),
    (["search", "OUT", "query", "-k", "0"], "'0' is not a whole number from 1"),
    (["index", "OUT", "toy", "--out", "OUT2", "--shard", "0"], "'0' is not a whole number from 1"),
    *[(["train", "toy", "--out", "OUT", "--device", device], f"finds no {device.upper()} device here: choose 'cpu'") for device in ("xpu", "vulkan", "meta", "hpu")],
    (["train", "toy", "--out", ""], "argument --out: it is empty: give a name"), (["index", "OUT", "toy", "--out", ""], "argument --out: it is empty"),
    (["train", "", "--out", "OUT"], "argument PAIRS: it is empty"), (["train", "toy", "--out", "OUT", "--config", ""], "argument --config: it is empty"),
    (["train", "dpr:x", "--out", "OUT", "--test", ""], "argument --test: it is empty"), (["evaluate", "", "toy"], "argument FOLDER: it is empty"),
    (["evaluate", "OUT", "toy", "--index", ""], "argument --index: it is empty"), (["search", "", "query"], "argument INDEX: it is empty"),
    (["index", "OUT", "", "--out", "OUT2"], "argument PASSAGES: it is empty"), (["train", "toy", "--out", "OUT", "--tower", ""], "tower is empty"),
    (["train", "jsonl:caf\udce9.jsonl", "--out", "OUT"], r"'\udce9' is no character: rename the file or folder in UTF-8"),
    (["train", "toy", "--out", "caf\udce9"], r"'\udce9' is no character: rename the file"), (["train", "toy", "--out", "OUT", "--tower", "caf\udce9"], r"tower is 'caf\udce9'"),
    (["train", "toy", "--out", "OUT", "\x1b[2J\n"], "unrecognized arguments")])
def test_what_goes_wrong_is_one_sentence(capsys, tmp_path, monkeypatch, words, said):
    if words[-1] == "cuda:77" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "WRONG").write_text("{]")
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER" / "thesis.txt").write_text("years of work")
    status, out, err = call(capsys, *words)
    assert status == 2 and said in err and err.count("\n") == 1 and out == "" and err.startswith("contaccum"), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FOLDER", "WRONG"] and [p.name for p in (tmp_path / "FOLDER").iterdir()] == ["thesis.txt"]


def test_a_fault_of_the_package_is_not_hidden(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "chosen", lambda given: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        cli.main(["train", "toy", "--out", str(tmp_path / "run")])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no pairs called"):
        cli.main(["train", "wiki", "--out", str(tmp_path / "run"), "--debug"])


def test_a_full_disk(family, toy, tmp_path):
    """A limit on the size of files, which fails a write as a full disk does: at the start, on the way, and in an index."""
    out = tmp_path / "run"
    ended = family.run("train", "toy", *TINY, "--out", out, largest_file=20_000)
    assert ended.status == 2 and "make room" in ended.err and ended.err.count("\n") == 1, ended
    assert not out.exists()
    assert family.run("train", "toy", *TINY, "--out", out, "--save-every", "5").status == 0
    size = max(p.stat().st_size for p in out.rglob("*") if p.is_file())
    before = sorted(p.name for p in out.iterdir())
    longer = tmp_path / "longer"
    assert family.run("train", "toy", *TINY, "--updates", "100000", "--out", longer, "--save-every", "5", grown=(longer / "log.jsonl", 2000), after=0, send=signal.SIGINT).status == 130
    saved = cl.Run.load(longer, toy).step_count
    ended = family.run("train", "toy", "--out", longer, "--save-every", "5", largest_file=size - 1)
    assert ended.status == 2 and f"the run stands as it was saved after update {saved}" in ended.err and "make room" in ended.err, ended.err
    assert cl.Run.load(longer, toy).step_count == saved and not list(longer.glob(".*"))
    ended = family.run("index", out, "toy", "--out", tmp_path / "index", largest_file=20_000)
    assert ended.status == 2 and "make room" in ended.err and ended.err.count("\n") == 1 and not (tmp_path / "index").exists()
    assert sorted(p.name for p in out.iterdir()) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="an address-space limit is Linux's")
def test_memory_that_runs_out_is_a_sentence(family, tmp_path):
    words = ["train", "toy", "--tower", "bert", "--dim", "256", "--method", "dpr", "--local-batch", "256", "--updates", "2", "--out", tmp_path / "run"]
    ended = family.run(*words, "--memory-cap", "900MB")
    assert ended.status == 2 and "memory ran out: lower local_batch" in ended.err and ended.err.count("\n") == 1, ended.err
    ended = family.run(*words[:-1], tmp_path / "small", "--local-batch", "8", "--memory-cap", "900MB")
    assert ended.status == 0, ended.err


# --- stopping and going on ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("send, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_saves_and_says_how_to_go_on(family, toy, tmp_path, send, status):
    out = tmp_path / "my run"
    ended = family.run("train", "toy", *TINY, "--updates", "600", "--out", out, "--save-every", "0", grown=(out / "log.jsonl", 5000), after=0.01, send=send)
    assert ended.status == status and ended.err.count("\n") == 1, ended
    stopped = cl.Run.load(out, toy).step_count
    assert 0 < stopped < 600 and f"stopped after update {stopped} of 600, and saved" in ended.err
    words = shlex.split(ended.err.partition("Go on with: ")[2])
    assert words == ["contaccum", "train", "toy", "--out", str(out)]
    assert family.run(*words[1:]).status == 0 and cl.Run.load(out, toy).step_count == 600
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == [*range(1, 601), 600]


def test_the_same_line_again_goes_on_and_another_setting_is_refused(capsys, toy, tmp_path):
    words = ["train", "toy", *TINY, "--out", tmp_path / "run"]
    assert call(capsys, *words)[0] == 0
    status, out, _ = call(capsys, *words)
    assert status == 0 and "goes on after update 40" in out
    status, _, err = call(capsys, *words, "--seed", "3")
    assert status == 2 and "holds a run with seed 0, and 3 is given" in err and err.count("\n") == 1
    status, out, _ = call(capsys, "train", "toy", "--out", tmp_path / "again", "--config", tmp_path / "run" / "settings.yaml")
    one, two = (cl.Run.load(tmp_path / name, toy) for name in ("run", "again"))
    assert status == 0 and all(torch.equal(p, q) for p, q in zip(one.query_tower.parameters(), two.query_tower.parameters()))


# --- what is logged -----------------------------------------------------------------------------------------------------

def test_log_and_tensorboard(capsys, toy, tmp_path, monkeypatch):
    scalars = {}

    class Writer:
        def __init__(self, folder, purge_step):
            self.add_scalar = lambda name, value, step: scalars.setdefault(name, {}).update({step: value})
            self.close = lambda: scalars.update(closed={})
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    assert call(capsys, "train", "toy", *TINY, "--out", tmp_path / "run", "--evaluate-every", "15", "--warmup", "4")[0] == 0
    run, lines = cl.Run.load(tmp_path / "run", toy), [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines if "evaluation" in line] == [15, 30, 40] and lines[-1]["evaluation"] == run.evaluate()
    assert [{k: line[k] for k in cl.Update._fields} for line in updates] == [u._asdict() for u in run.history]
    assert [line["learning_rate"] for line in updates] == [run.learning_rate(n) for n in range(40)] and all(50 < line["memory_mb"] < 1e5 for line in updates)
    assert scalars["train/loss"] == {u.step: u.loss for u in run.history} and scalars["evaluation/top@20"][40] == lines[-1]["evaluation"]["top@20"] and "closed" in scalars


# --- the field's files, end to end --------------------------------------------------------------------------------------

def dpr_files(toy, folder):
    def record(pair):
        context = lambda p: {"title": p.title, "text": p.text}
        return {"question": pair.query, "answers": [pair.passage.split()[0]], "positive_ctxs": [{"title": pair.title, "text": pair.passage}],
                "negative_ctxs": [], "hard_negative_ctxs": [context(p) for p in pair.hard_negatives]}
    for name, pairs in (("train", toy.train[:300]), ("dev", toy.test)):
        (folder / f"{name}.json").write_text(json.dumps([record(pair) for pair in pairs]))


def beir_files(toy, folder):
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": p.id, "title": p.title, "text": p.text}) + "\n" for p in toy.passages))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": p.id, "text": p.query}) + "\n" for p in (*toy.train, *toy.test)))
    for split, pairs in (("train", toy.train), ("test", toy.test)):
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"{p.id}\t{p.passage_id}\t{1 + (n % 2)}\n" for n, p in enumerate(pairs)))


def measures(ended):
    assert ended.status == 0 and ended.err == "", ended
    return json.loads(ended.out)


def test_dpr_files_from_training_to_search(family, toy, tmp_path):
    dpr_files(toy, tmp_path)
    pairs, test = f"dpr:{tmp_path / 'train.json'}", ["--test", tmp_path / "dev.json"]
    ended = family.run("train", pairs, *test, *TINY, "--hard-negatives", "1", "--out", tmp_path / "run")
    assert ended.status == 0 and ended.err == "" and "answer_top@20" in ended.out, ended
    run = cl.Run.load(tmp_path / "run", cl.load_pairs(pairs, test=tmp_path / "dev.json"))
    found = measures(family.run("evaluate", tmp_path / "run", pairs, *test, "--json", "--shard", "100"))
    assert found == pytest.approx(run.evaluate()) and found["top@20"] > 0.15 and found["answer_top@20"] >= found["top@20"]
    # a corpus of its own, as DPR's Wikipedia is: other ids, ranked through an index, judged by text and answer
    rows = "".join(f"{n}\t{p.text}\t{p.title}\n" for n, p in enumerate(reversed(run.pairs.passages)))
    (tmp_path / "psgs.tsv").write_text("id\ttext\ttitle\n" + rows)
    ended = family.run("index", tmp_path / "run", tmp_path / "psgs.tsv", "--out", tmp_path / "index", "--shard", "150", "--dtype", "float16")
    assert ended.status == 0 and ended.err == "" and f"{len(run.pairs.passages):,} passages" in ended.out, ended
    again = measures(family.run("evaluate", tmp_path / "run", pairs, *test, "--index", tmp_path / "index", "--json"))
    assert all(abs(again[name] - found[name]) < 0.02 for name in found)                                  # float16 may swap neighbours
    # and once as anyone would start it
    words = [sys.executable, "-m", "contaccum_lite", "search", tmp_path / "index", run.pairs.test[0].query, "-k", "3", "--json"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    hits = [json.loads(line) for line in ended.stdout.splitlines()]
    expected = run.search(run.pairs.test[0].query, 3)
    assert ended.returncode == 0 and ended.stderr == "" and [h["title"] for h in hits] == [h.title for h in expected]


def test_beir_files_from_training_to_search(family, toy, tmp_path):
    beir_files(toy, tmp_path)
    pairs = f"beir:{tmp_path}"
    ended = family.run("train", pairs, *TINY, "--method", "grad_cache", "--memory-size", "0", "--out", tmp_path / "run", "--precision", "bf16")
    assert ended.status == 0 and ended.err == "", ended
    run = cl.Run.load(tmp_path / "run", cl.load_pairs(pairs))
    assert run.settings.precision == "bf16" and run.settings.method == "grad_cache"
    ended = family.run("evaluate", tmp_path / "run", pairs, "--shard", "250")
    printed = {name: float(value) for name, value in (line.split() for line in ended.out.splitlines())}
    assert ended.status == 0 and printed == pytest.approx(run.evaluate(), abs=0.02) and {"ndcg@10", "recall@100"} <= set(printed)
    ended = family.run("index", tmp_path / "run", tmp_path / "corpus.jsonl", "--out", tmp_path / "index")
    assert ended.status == 0, ended
    found = measures(family.run("evaluate", tmp_path / "run", pairs, "--index", tmp_path / "index", "--json"))
    assert found == pytest.approx(run.evaluate(), abs=0.02)
    ended = family.run("search", tmp_path / "index", toy.test[0].query, toy.test[1].query, "-k", "4")
    assert ended.status == 0 and ended.out.count("toy.") == 8 and toy.test[1].query in ended.out


HOSTILE = ["<script>alert(1)</script>", "\x1b[31mred\x1b[0m", "\x1b]0;a title\x07", "\x9b2Jgone", "\u202edesrever", "two\nlines\rover", "$x$"]


def test_hostile_text_is_text_in_terminal_and_log(family, tmp_path):
    pair = lambda n, text: json.dumps({"query": f"what is {n} {text}", "passage": f"{text} is {n}", "title": f"{n} {text}", "passage_id": f"{n}{text}"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(pair(n, HOSTILE[n % len(HOSTILE)]) for n in range(40)))
    acts = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
    pairs = f"jsonl:{tmp_path / 'pairs.jsonl'}"
    ended = [family.run("train", pairs, *TINY, "--updates", "2", "--warmup", "1", "--out", tmp_path / "run"), family.run("index", tmp_path / "run", pairs, "--out", tmp_path / "index"),
             family.run("search", tmp_path / "index", *HOSTILE, "-k", "8"), family.run("search", tmp_path / "index", *HOSTILE, "-k", "8", "--json"),
             family.run("train", "jsonl:" + HOSTILE[1], "--out", tmp_path / "other")]
    assert [e.status for e in ended] == [0, 0, 0, 0, 2], ended
    assert not any(acts.search(e.out + e.err) for e in ended) and ended[4].err.count("\n") == 1
    assert "red" in ended[2].out and "<script>alert(1)</script>" in ended[2].out and len(ended[2].out.splitlines()) == len(HOSTILE) * (1 + 2 * 8)
    hits = [json.loads(text) for text in ended[3].out.splitlines()]
    assert len(hits) == 8 * len(HOSTILE) and [hit["query"] for hit in hits[::8]] == HOSTILE                # JSON keeps every character, escaped
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "begins" in ended[0].out and not acts.search(log) and not acts.search((tmp_path / "run" / "settings.yaml").read_text())


# --- ledger -------------------------------------------------------------------------------------------------------------

def test_ledger(capsys, monkeypatch, tmp_path):
    status, out, _ = call(capsys, "ledger")
    assert status == 0 and out.strip() in (ROOT / "README.md").read_text()
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "package" / "cli.py"))
    status, _, err = call(capsys, "ledger")
    assert status == 2 and "records of the ledger's runs are not here" in err and err.count("\n") == 1

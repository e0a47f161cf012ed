"""Files of a tower that are broken or written to harm: a sentence with its name, no code."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers

import contaccum_lite as cl
from contaccum_lite.encoders.vocabulary import train_vocabulary, vocabulary_for

ROOT = Path(__file__).parent.parent
KINDS = ["bag", "bert"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders of a bag tower and of a small BERT, undamaged."""
    folder = tmp_path_factory.mktemp("whole")
    vocabulary = train_vocabulary(
        ["some words of a small text", "and other words", "more of them"], 120
    ).to_str()
    torch.manual_seed(0)
    cl.BagTower(Tokenizer.from_str(vocabulary), 8).save_pretrained(folder / "bag")
    cl.TransformerTower.small_bert(Tokenizer.from_str(vocabulary), 8, layers=1).save_pretrained(
        folder / "bert"
    )
    return folder


@pytest.fixture
def damaged(whole, tmp_path):
    """A copy of one of them, to be damaged."""

    def copied(kind):
        shutil.rmtree(tmp_path / kind, ignore_errors=True)
        return Path(shutil.copytree(whole / kind, tmp_path / kind))

    return copied


# --- broken --------------------------------------------------------------------------------------


def flipped(path, draw):
    content = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 3)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncated(path, draw):
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def gone(path, draw):
    path.unlink()


def changed(path, draw):
    """A key missing or of another type in a JSON file; a tensor missing, renamed or reshaped."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        name = draw.choice(sorted(tensors))
        value = tensors.pop(name)
        tensors |= draw.choice(
            [{f"{name}x": value}, {name: value.flatten()[1:].clone()}, {name: value.int()}, {}]
        )
        save_file(tensors, path)
        return
    value = json.loads(path.read_bytes())
    holders = [value]
    for holder in holders:
        holders += [part for part in holder.values() if isinstance(part, dict) and part]
    holder = draw.choice([holder for holder in holders if holder])
    key = draw.choice(sorted(holder))
    if draw.random() < 0.3:
        del holder[key]
    else:
        holder[key] = draw.choice(
            [None, True, -1, 0, 3, 10**7, 2.5, "x", "", [], [1], {}, {"a": 1}, float("nan")]
        )
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_tower_is_refused_in_a_sentence_or_encodes(damaged, kind, recwarn):
    refused = 0
    for number in range(100):
        draw, folder = random.Random(number), damaged(kind)
        path = draw.choice(sorted(folder.iterdir()))
        damage = draw.choice([flipped, truncated, gone, changed, changed, changed])
        damage(path, draw)
        try:
            tower = cl.load_tower(folder).eval()
        except ValueError as error:
            refused += 1
            assert str(folder) in str(error) and "\n" not in str(error)
            continue
        tokens = tower.tokenize(["some words", "é ☃"], ["more", ""], length=12)
        assert tower(tokens[[0, 1]]).shape == (2, 8), (number, damage, path)
    assert refused > 30


def edited(path, change):
    """Write a JSON file back as `change` leaves it."""
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


def renamed(path, old, new):
    tensors = load_file(path)
    tensors[new] = tensors.pop(old)
    save_file(tensors, path)


@pytest.mark.parametrize(
    "kind, name, damage, words",
    [
        (
            "bag",
            "config.json",
            lambda p: edited(p, lambda v: v.update(ending="none")),
            r"model.safetensors does not fit config.json .* 'norm.bias' is",
        ),
        (
            "bag",
            "config.json",
            lambda p: edited(p, lambda v: v.update(ending="end")),
            r"config.json has dim=8 and ending='end'",
        ),
        (
            "bag",
            "config.json",
            lambda p: edited(p, lambda v: v.pop("dim")),
            r"config.json has dim=None",
        ),
        (
            "bag",
            "config.json",
            lambda p: edited(p, lambda v: v.update(dim=10**9)),
            r"'embedding.weight' is \(58, 8\), expected \(58, 10",
        ),
        (
            "bag",
            "config.json",
            lambda p: p.write_text("[" * 100_000),
            r"config.json cannot be read \(maximum recursion",
        ),
        (
            "bag",
            "model.safetensors",
            lambda p: renamed(p, "attention", "attention2"),
            r"'attention' is missing, expected \(8,\)",
        ),
        ("bag", "model.safetensors", lambda p: save_file({}, p), r"'embedding.weight' is missing"),
        ("bag", "tokenizer.json", lambda p: p.write_text("{"), r"tokenizer.json cannot be read"),
        (
            "bag",
            "tokenizer.json",
            lambda p: p.write_text("{}"),
            r"tokenizer.json cannot be read \(Model missing",
        ),
        (
            "bag",
            "tokenizer.json",
            lambda p: edited(p, lambda v: v["model"]["vocab"].pop("##s")),
            r"model.safetensors does not fit",
        ),
        (
            "bag",
            "tokenizer.json",
            lambda p: edited(p, lambda v: v["model"]["vocab"].update({"a": 10**6})),
            r"a token the number 1000000, and the tower has",
        ),
        (
            "bag",
            "tokenizer.json",
            lambda p: edited(p, lambda v: v["model"].update(dropout=0.5)),
            r"draws its tokens at random",
        ),
        ("bert", "pooling.json", lambda p: p.write_text("{"), r"pooling.json cannot be read"),
        (
            "bert",
            "pooling.json",
            lambda p: p.write_text('{"pooling": "max"}'),
            r"pooling.json has pooling='max': expected one of cls, mean",
        ),
        (
            "bert",
            "config.json",
            lambda p: edited(p, lambda v: v.update(hidden_size=16)),
            r"config.json do not go together: 20 tensors .* of another shape",
        ),
        (
            "bert",
            "config.json",
            lambda p: edited(p, lambda v: v.update(num_hidden_layers=10**6)),
            r"speaks of 1,000,000 layers",
        ),
        (
            "bert",
            "config.json",
            lambda p: edited(p, lambda v: v.update(vocab_size=10**12)),
            r"speaks of 8,000,0.* numbers, and the files hold",
        ),
        (
            "bert",
            "config.json",
            lambda p: edited(p, lambda v: v.update(num_attention_heads=-1)),
            r"config.json cannot be read",
        ),
        (
            "bert",
            "model.safetensors",
            lambda p: renamed(p, "embeddings.word_embeddings.weight", "x"),
            r"1 tensors are missing .*word_embeddings",
        ),
        (
            "bert",
            "tokenizer.json",
            lambda p: p.write_text("{}"),
            r"its tokenizer, tokenizer.json or tokenizer_config.json: ",
        ),
        (
            "bert",
            "tokenizer.json",
            lambda p: edited(p, lambda v: v["post_processor"].update(special_tokens={})),
            r"tokenizer.json cannot be read \(no entry",
        ),
        (
            "bert",
            "tokenizer_config.json",
            lambda p: edited(p, lambda v: v.update(pad_token="[PAD2]")),
            r"padding token has the number 58",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(damaged, kind, name, damage, words):
    folder = damaged(kind)
    damage(folder / name)
    with pytest.raises(ValueError, match=words) as error:
        cl.load_tower(folder)
    assert str(folder) in str(error.value) or "number" in words


# --- written to harm -----------------------------------------------------------------------------


def doubling(count):
    return normalizers.Sequence([normalizers.Replace("a", "aa")] * count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t, "normalizer", doubling(40)),
        lambda t: setattr(t, "normalizer", normalizers.Sequence([doubling(6), doubling(6)])),
        lambda t: setattr(t, "normalizer", normalizers.Replace("a", "a" * 100_000)),
        lambda t: setattr(t, "normalizer", normalizers.Replace("", "a" * 100_000)),
        lambda t: setattr(t, "normalizer", normalizers.Prepend("a" * 100_000)),
        lambda t: setattr(t, "normalizer", normalizers.Sequence([normalizers.NFKD()] * 9)),
        lambda t: setattr(
            t, "pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.ByteLevel()] * 20)
        ),
    ],
)
def test_a_tokenizer_that_makes_a_text_too_long_is_refused(damaged, kind, change):
    folder = damaged(kind)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    change(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(
        ValueError, match="tokenizer.json has steps that can make .* characters of one"
    ):
        cl.load_tower(folder)


def test_the_longest_chains_of_known_encoders_are_read(damaged):
    folder = damaged("bag")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for normalizer, pre_tokenizer in [
        (
            normalizers.Sequence(
                [
                    normalizers.Replace("``", '"'),
                    normalizers.Replace("''", '"'),
                    normalizers.NFKD(),
                    normalizers.StripAccents(),
                    normalizers.Lowercase(),
                    normalizers.Strip(),
                ]
            ),
            pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
        ),
        (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None),
        (normalizers.NFC(), pre_tokenizers.ByteLevel()),
    ]:
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizer
        tokenizer.save(str(folder / "tokenizer.json"))
        read = cl.load_tower(folder).tokenizer
        assert type(read.normalizer) is type(normalizer)
        assert type(read.pre_tokenizer) is type(pre_tokenizer)


def test_a_tokenizer_file_does_not_decide_how_texts_are_padded(damaged):
    folder = damaged("bag")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=10**5)
    tokenizer.enable_truncation(1)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert 2 <= cl.load_tower(folder).tokenize(["some words"])[[0]].shape[1] < 30


EVIL = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import BertConfig, BertModel, BertTokenizerFast
class EvilConfig(BertConfig):
    model_type = "evilmodel"
class EvilModel(BertModel):
    config_class = EvilConfig
class EvilTokenizer(BertTokenizerFast):
    pass
"""


def with_code(folder, marker):
    """Give a tower's folder Python code of its own, as transformers knows it."""
    (folder / "modeling_evil.py").write_text(EVIL.format(marker=str(marker)))
    edited(
        folder / "config.json",
        lambda value: value.update(
            model_type="evilmodel",
            auto_map={
                "AutoConfig": "modeling_evil.EvilConfig",
                "AutoModel": "modeling_evil.EvilModel",
            },
        ),
    )
    edited(
        folder / "tokenizer_config.json",
        lambda value: value.update(auto_map={"AutoTokenizer": ["modeling_evil.EvilTokenizer"] * 2}),
    )


@pytest.fixture
def no_questions(monkeypatch):
    """A question on the standard input is answered with yes, and noted."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    yield
    assert not asked


def test_code_that_comes_with_an_encoder_is_never_run(damaged, tmp_path, toy, no_questions):
    folder, marker = damaged("bert"), tmp_path / "ran"
    with_code(folder, marker)
    lab = cl.Lab(toy, updates=2, memory_size=8)
    for attempt in (
        lambda: cl.load_tower(folder),
        lambda: cl.Run(toy, tower=str(folder)),
        lambda: lab.load(f"method=contaccum&tower={folder}"),
    ):
        with pytest.raises(
            ValueError, match=r"Python code of its own, which is never run here.* towers=\(Tr"
        ):
            attempt()
    assert not marker.exists()


def test_code_of_a_tokenizer_is_never_run(damaged, tmp_path, no_questions):
    folder, marker = damaged("bert"), tmp_path / "ran"
    before = (folder / "config.json").read_bytes()
    with_code(folder, marker)
    (folder / "config.json").write_bytes(before)
    edited(
        folder / "tokenizer_config.json",
        lambda value: value.update(tokenizer_class="EvilTokenizer"),
    )
    try:
        tower = cl.load_tower(folder)
    except ValueError as error:
        assert "never run here" in str(error)
    else:
        assert "Evil" not in type(tower.tokenizer).__name__
    assert not marker.exists()


_COMMANDS = """
import json, sys
from contaccum_lite.cli import main
for words in json.loads(sys.argv[1]):
    try:
        print("status", main(words), file=sys.stderr)
    except SystemExit as end:
        print("status", end.code, file=sys.stderr)
"""


def test_no_command_runs_code_of_a_checkpoint_or_asks_on_the_standard_input(damaged, tmp_path, toy):
    folder, marker, run, index = (
        damaged("bert"),
        tmp_path / "ran",
        tmp_path / "run",
        tmp_path / "index",
    )
    cl.Run(
        toy,
        tower=str(folder),
        updates=1,
        local_batch=4,
        accumulation_steps=1,
        memory_size=4,
        passage_tokens=8,
        query_tokens=8,
    ).save(run)
    from contaccum_lite.scale.index import build

    build(run, toy.passages[:9], index)
    for tower in (folder, *run.glob("*/*_tower"), index / "query_tower"):
        with_code(tower, marker)
    for record in (run / "run.json", index / "index.json"):  # who adds code adds no digest of it
        values = json.loads(record.read_text())
        del values["digests"]
        record.write_text(json.dumps(values))
    commands = [
        [
            "train",
            "toy",
            "--tower",
            str(folder),
            "--out",
            str(tmp_path / "other"),
            "--updates",
            "1",
        ],
        ["evaluate", str(run), "toy"],
        ["search", str(index), "where"],
        ["index", str(run), "toy", "--out", str(tmp_path / "index2")],
    ]
    (tmp_path / "answers").write_text("y\n" * 20)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "answers") as answers:
        ended = subprocess.run(
            [sys.executable, "-c", _COMMANDS, json.dumps(commands)],
            stdin=answers,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert os.lseek(answers.fileno(), 0, os.SEEK_CUR) == 0
    assert not marker.exists()
    assert ended.stderr.count("never run here") == 4, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "status 0" not in ended.stderr


@pytest.mark.parametrize(
    "value",
    ["org/kernel", "kernels-community/flash-attn2", "flash_attention_2", {"": "org/kernel"}],
)
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_no_kernel_is_loaded_for_a_checkpoint(damaged, monkeypatch, key, value):
    def never(*arguments, **options):
        raise AssertionError("a kernel is loaded")

    from transformers import modeling_utils

    if hasattr(modeling_utils, "lazy_import_flash_attention"):
        monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", never)
    folder = damaged("bert")
    edited(folder / "config.json", lambda config: config.update({key: value}))
    with pytest.raises(
        ValueError, match="attn_implementation is .*for which code may be downloaded"
    ):
        cl.load_tower(folder)


def test_weights_in_a_pickle_are_not_read(damaged):
    folder = damaged("bert")
    torch.save(load_file(folder / "model.safetensors"), folder / "adapter_model.bin")
    edited(
        folder / "config.json",
        lambda config: config.update(transformers_weights="adapter_model.bin"),
    )
    with pytest.raises(ValueError, match="only safetensors are read"):
        cl.load_tower(folder)


# --- the vocabulary's cache ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b"7",
        '{"model": {"type": "WordPiece", "vocab": {"[UNK]": 3}}}'.encode(),
        b"doubling",
        b"gap",
    ],
)
def test_a_broken_vocabulary_in_the_cache_is_built_again(tmp_path, monkeypatch, content):
    monkeypatch.setenv("CONTACCUM_LITE_CACHE", str(tmp_path))
    vocabulary = vocabulary_for(cl.data.toy_pairs(8, 4)).to_str()
    (path,) = tmp_path.glob("wordpiece-*.json")
    right = path.read_bytes()
    if content == b"doubling":
        edited(path, lambda value: value.update(normalizer=json.loads(doubling(40).__getstate__())))
    elif content == b"gap":
        edited(path, lambda value: value["model"]["vocab"].update({"##a": 10**6}))
    else:
        path.write_bytes(content)
    assert vocabulary_for(cl.data.toy_pairs(8, 4)).to_str() == vocabulary
    assert path.read_bytes() == right

"""Settings: presets, ranges, share lines."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, strategies as st

import contaccum_lite as cl

FIELDS = {f.name: f for f in dataclasses.fields(cl.Settings)}


def test_every_field_says_what_it_is_and_starts_in_its_range():
    plain = cl.Settings()
    for name, f in FIELDS.items():
        assert len(f.metadata["help"]) > 8, name
        value = getattr(plain, name)
        if f.metadata["choices"]:
            assert value in f.metadata["choices"]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            assert f.metadata["low"] <= value <= f.metadata["high"], name


def test_presets_are_what_they_are_called():
    p = cl.Settings.preset
    assert p("dpr").accumulation_steps == 1
    assert p("dpr").total_batch == 128
    assert not p("dpr").has_bank
    assert not p("grad_accum").has_bank and not p("grad_cache").has_bank
    assert p("pre_batch").passage_bank and not p("pre_batch").query_bank
    assert p("contaccum").passage_bank
    assert p("contaccum").query_bank
    assert p("contaccum").past_encoder
    assert not p("contaccum_no_past").past_encoder and not p("pre_batch_no_past").past_encoder
    assert p("contaccum_no_accum").accumulation_steps == 1 and p("momentum").momentum > 0
    assert all(preset["description"].strip() for preset in cl.PRESETS.values())


def test_tower_brings_its_own_start():
    assert cl.Settings(dim=256).temperature == 16
    assert cl.Settings(dim=256, temperature=1.0).temperature == 1
    assert cl.Settings(tower="bert").learning_rate < cl.Settings().learning_rate
    paper = cl.Settings(tower="some/folder")
    assert (paper.temperature, paper.learning_rate, paper.passage_tokens) == (1.0, 2e-5, 256)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(method="nonsense"), "choose one of dpr"),
        (dict(method=3), "choose one of dpr"),
        (dict(local_batch=0), "local_batch is 0: it must be from 1 to 4096"),
        (dict(temperature=-1.0), "temperature is -1.0"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(seed=1.5), "seed is 1.5, a float: it must be a whole number"),
        (dict(past_encoder=1), "past_encoder is 1, a int: it must be true or false"),
        (dict(dtype="float16"), "choose one of float32"),
        (dict(dim="64"), "dim is '64', a str"),
        (dict(tower=""), "tower is empty"),
        (dict(momentum=1.0), "momentum is 1.0"),
        (dict(method="dpr", accumulation_steps=16), "fixes it at 1"),
        (dict(method="grad_accum", memory_size=8), "fixes it at 0"),
        (dict(method="pre_batch", query_bank=True), "fixes it at False"),
        (dict(passage_bank=False), "needs passage_bank=True"),
    ],
)
def test_bad_values_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        cl.Settings(**fields)


def test_numpy_numbers_are_numbers():
    s = cl.Settings(memory_size=np.int64(32), temperature=np.float32(2))
    assert type(s.memory_size) is int and type(s.temperature) is float


def test_frozen_and_replaced():
    s = cl.Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.seed = 3
    assert s.replace(seed=3).seed == 3 and s.seed == 0
    with pytest.raises(ValueError, match="'sed' is not a setting"):
        s.replace(sed=3)


def test_share_is_short_and_read_back():
    assert cl.Settings().share() == "method=contaccum&start=pretrained"
    s = cl.Settings.preset("contaccum", memory_size=64, seed=3)
    assert s.share() == "method=contaccum&start=pretrained&memory_size=64&seed=3"
    assert (
        cl.Settings.parse("method=contaccum&accumulation_steps=16&memory_size=128&seed=3").seed == 3
    )
    for line, words in (
        ("method=dpr&x=3", "'x' is not a setting"),
        ("seed=abc", "seed is 'abc'"),
        ("past_encoder=maybe", "past_encoder is 'maybe'"),
    ):
        with pytest.raises(ValueError, match=words):
            cl.Settings.parse(line)


@given(st.data(), st.sampled_from(sorted(cl.PRESETS)))
def test_any_settings_come_back_from_their_share_line(data, method):
    fields = {}
    for name in data.draw(st.lists(st.sampled_from(sorted(FIELDS)), unique=True, max_size=8)):
        meta, kind = FIELDS[name].metadata, str(FIELDS[name].type).split(" |")[0]
        if (
            name == "method"
            or name in cl.PRESETS[method]["fixed"]
            or name in ("query_bank", "passage_bank")
        ):
            continue
        if meta["choices"]:
            fields[name] = data.draw(st.sampled_from(meta["choices"]))
        elif kind == "bool":
            fields[name] = data.draw(st.booleans())
        elif kind == "int":
            fields[name] = data.draw(st.integers(meta["low"], meta["high"]))
        elif kind == "float":
            fields[name] = data.draw(st.floats(meta["low"], meta["high"]))
        elif name == "tower":
            fields[name] = data.draw(
                st.sampled_from(["bag", "bert", "a folder/with & odd=signs", "ünï"])
            )
    try:
        s = cl.Settings.preset(method, **fields)
    except ValueError as error:  # drawn settings may contradict each other
        words = ("cache", "corrector", "refresh", "start", "tiled", "mask_guide", "train_towers")
        assert any(word in str(error) for word in words)
        return
    assert cl.Settings.parse(s.share()) == s
    assert cl.Settings(**dataclasses.asdict(s)) == s

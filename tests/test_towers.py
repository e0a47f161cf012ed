"""Towers: pooling by hand, padding, saving and loading, real pretrained code on a small model."""

import json

import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.encoders.tokens import Tokens
from contaccum_lite.encoders.vocabulary import train_vocabulary, vocabulary_for
from contaccum_lite.encoders.make import make_towers
from contaccum_lite.encoders.encode import clone_encoder, has_dropout


@pytest.fixture(scope="module")
def vocabulary(toy):
    return vocabulary_for(toy)


def towers_of(vocabulary):
    torch.manual_seed(0)
    from tokenizers import Tokenizer

    return [
        cl.BagTower(vocabulary, 16),
        cl.TransformerTower.small_bert(Tokenizer.from_str(vocabulary.to_str()), 16),
        cl.TransformerTower.small_bert(Tokenizer.from_str(vocabulary.to_str()), 16, "mean"),
    ]


def test_tokens_pad_and_pick():
    tokens = Tokens([[5, 6, 7], [], [8]], pad=0)
    assert tokens[[2, 0]].tolist() == [[8, 0, 0], [5, 6, 7]]
    assert tokens[[1]].tolist() == [[0]]
    assert len(tokens) == 3
    assert tokens[[2]].tolist() == [[8]]  # padded to the longest asked for, no further


def test_bag_tower_by_hand(vocabulary):
    """Attention pooling, residual MLP, LayerNorm: the same in plain steps for one text."""
    tower = cl.BagTower(vocabulary, 16).double()
    ids = torch.tensor([[9, 4, 30, 0, 0]])
    e = tower.embedding.weight[ids[0, :3]]
    w = torch.exp(e @ tower.attention)
    pooled = sum(wi * ei for wi, ei in zip(w / w.sum(), e))
    hidden = torch.sigmoid(h := tower.mlp[0](pooled)) * h
    out = pooled + tower.mlp[2].weight @ hidden + tower.mlp[2].bias
    out = (out - out.mean()) / torch.sqrt(out.var(unbiased=False) + tower.norm.eps)
    assert (tower(ids)[0] - out).abs().max() < 1e-12


def test_padding_changes_nothing(vocabulary):
    for tower in towers_of(vocabulary):
        tower = tower.eval().double()
        tokens = tower.tokenize(["baba nona", "lulu kapi sasa " * 5], length=12)
        alone, together = tower(tokens[[0]]), tower(tokens[[0, 1]])
        assert tokens[[0]].shape[1] < tokens[[0, 1]].shape[1]
        assert (alone[0] - together[0]).abs().max() < 1e-9


def test_a_text_of_nothing_has_a_vector(vocabulary):
    for tower in towers_of(vocabulary):
        assert torch.isfinite(tower.eval()(tower.tokenize(["", "é"])[[0, 1]])).all()


def test_title_comes_first_and_length_is_kept(vocabulary):
    bag, bert, _ = towers_of(vocabulary)
    words = list(vocabulary.get_vocab())[50:60]
    ids = bag.tokenize([words[0] + " " + words[1]], [words[2]])[[0]][0].tolist()
    assert ids == bag.tokenize([f"{words[2]} {words[0]} {words[1]}"])[[0]][0].tolist()
    pair = bert.tokenizer.decode(bert.tokenize(["abc"], ["def"])[[0]][0])
    assert pair.startswith("[CLS] d") and pair.count("[SEP]") == 2
    for tower in (bag, bert):
        assert tower.tokenize(["word " * 10_000], ["title " * 10_000], length=9)[[0]].shape == (
            1,
            9,
        )


def test_vocabulary_is_the_same_each_time(toy):
    texts = [p.passage for p in toy.train] + [
        "Ünïcode ∑ 한국 rare" + chr(0x4E00 + n) for n in range(40)
    ]
    for size in (300, 2000):  # with rare characters left out, and with all of them
        made = [train_vocabulary(texts, size).to_str() for _ in range(4)]
        assert made[0] == made[1] == made[2] == made[3]
    assert (
        train_vocabulary(texts, 2000).encode("unicode", add_special_tokens=False).tokens[0]
        != "[UNK]"
    )


def test_save_and_load_give_the_same_vectors(vocabulary, tmp_path):
    for n, tower in enumerate(towers_of(vocabulary)):
        tower.eval().save_pretrained(tmp_path / str(n))
        again = cl.load_tower(tmp_path / str(n)).eval()
        tokens = tower.tokenize(["baba nona", "lulu"], ["title", "x"])
        assert torch.equal(
            again.tokenize(["baba nona", "lulu"], ["title", "x"])[[0, 1]], tokens[[0, 1]]
        )
        assert torch.equal(again(tokens[[0, 1]]), tower(tokens[[0, 1]]))
        assert not list((tmp_path / str(n)).glob("*.bin"))
        assert again.tokenizer_hash == tower.tokenizer_hash


def test_a_real_pretrained_folder(toy, tmp_path):
    """A BERT as transformers itself saves it, pooler and all, with no file of ours beside it."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocabulary = vocabulary_for(toy)
    words = sorted(vocabulary.get_vocab(), key=vocabulary.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(1)
    model = BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    model.save_pretrained(tmp_path)
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    run = cl.Run(
        toy,
        cl.Settings(
            tower=str(tmp_path),
            local_batch=4,
            accumulation_steps=2,
            memory_size=8,
            updates=2,
            passage_tokens=16,
        ),
    )
    assert run.query_tower.dim == 16 and run.settings.temperature == 1.0
    ids = run.query_tower.tokenize(["baba"])[[0]]
    with torch.no_grad():
        expected = model.eval()(
            input_ids=ids, attention_mask=torch.ones_like(ids)
        ).last_hidden_state[:, 0]
        assert torch.allclose(run.query_tower.eval()(ids), expected, atol=1e-6)
    list(run)
    run.save(tmp_path / "run")
    assert cl.Run.load(tmp_path / "run", toy).step_count == 2


def test_dropout_is_seen(vocabulary):
    bag, bert, _ = towers_of(vocabulary)
    assert has_dropout(bert) and not has_dropout(bag)


@pytest.mark.parametrize("rate", ["dropout", "encoder_layerdrop", "drop_path_rate", "attn_pdrop"])
def test_dropout_without_a_layer_of_its_own_is_seen(rate):
    tower = torch.nn.Linear(2, 2)
    tower.config = type("Config", (), {rate: 0.0})
    assert not has_dropout(tower)
    setattr(tower.config, rate, 0.1)
    assert has_dropout(tower)


def test_other_kinds_of_dropout_are_seen():
    for kind in (torch.nn.Dropout1d, torch.nn.AlphaDropout, torch.nn.FeatureAlphaDropout):
        assert has_dropout(torch.nn.Sequential(kind(0.1)))
        assert not has_dropout(torch.nn.Sequential(kind(0.0)))


def test_towers_of_a_run_are_separate_unless_shared(toy):
    q, p = make_towers(cl.Settings(dim=8), toy)
    assert q is not p
    assert q.tokenizer is p.tokenizer
    assert torch.equal(q.embedding.weight, p.embedding.weight)
    assert q.embedding.weight.data_ptr() != clone_encoder(q).embedding.weight.data_ptr()
    q, p = make_towers(cl.Settings(dim=8, shared=True), toy)
    assert q is p


def test_bad_folders_and_sizes(toy, tmp_path, vocabulary):
    with pytest.raises(ValueError, match="no encoder could be loaded"):
        cl.load_tower(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json cannot be read"):
        cl.load_tower(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"tower": "other"}))
    with pytest.raises(ValueError, match="holds no bag tower"):
        cl.BagTower.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="choose 8 or 12"):
        cl.TransformerTower.small_bert(vocabulary, 10)

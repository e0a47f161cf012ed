"""Pre-training on random crops: what it reads, that it is the same each time, where it is kept."""

import numpy as np
import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.data import toy_pairs
from contaccum_lite.encoders import pretraining
from contaccum_lite.encoders.bag import BagTower
from contaccum_lite.encoders.tokens import Tokens
from contaccum_lite.encoders.vocabulary import vocabulary_for
from contaccum_lite.utils.files import cache_folder


@pytest.fixture(scope="module")
def pairs():
    return toy_pairs(60, 20)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTACCUM_LITE_CACHE", str(tmp_path))
    return tmp_path


def tower_for(pairs, **kind):
    torch.manual_seed(5)
    return BagTower(vocabulary_for(pairs), **{"dim": 8, **kind})


def same(weights, others):
    return all(torch.equal(weights[name], others[name]) for name in weights)


def with_other_queries(pairs):
    """The same passages, and queries that say something else in words of the vocabulary."""
    replace = lambda split: [pair._replace(query="zzz zzz") for pair in split]
    return cl.Pairs(pairs.name, replace(pairs.train), replace(pairs.test), pairs.passages)


def test_no_query_is_trained_on(pairs):
    tower = tower_for(pairs)
    without = cl.Pairs(pairs.name, pairs.train, pairs.test, pairs.passages)  # no dev pairs
    weights = pretraining.pretrain(tower, without)
    assert same(weights, pretraining.pretrain(tower, with_other_queries(without)))


def test_no_passage_of_a_test_or_dev_pair_is_trained_on_unless_it_is_in_training(pairs):
    tower = tower_for(pairs)
    weights = pretraining.pretrain(tower, cl.Pairs("a", pairs.train, pairs.test, pairs.passages))
    alone = cl.Pairs("b", pairs.train, [], [p for p in pairs.passages if p.id in trained(pairs)])
    assert same(weights, pretraining.pretrain(tower, alone))


def trained(pairs):
    return {pair.passage_id for pair in pairs.train}


def test_weights_depend_on_neither_seed_nor_threads_nor_the_generator(pairs):
    weights = pretraining.pretrain(tower_for(pairs), pairs)
    torch.manual_seed(99)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    again = pretraining.pretrain(BagTower(vocabulary_for(pairs), 8), pairs)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert same(weights, again)


def test_a_run_leaves_the_random_generator_as_it_was(pairs, cache):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    cl.Run(toy_pairs(60, 20), dim=8)
    assert torch.equal(before, torch.random.get_rng_state())


def test_runs_of_all_seeds_and_both_towers_start_the_same(pairs, cache):
    first, second = cl.Run(pairs, dim=8, seed=0), cl.Run(pairs, dim=8, seed=1)
    assert same(first.query_tower.state_dict(), second.query_tower.state_dict())
    assert same(first.query_tower.state_dict(), first.passage_tower.state_dict())
    assert first.query_tower is not first.passage_tower


def test_a_random_start_depends_on_the_seed_and_makes_no_file(pairs, cache):
    first = cl.Run(pairs, dim=8, seed=0, start="random")
    second = cl.Run(pairs, dim=8, seed=1, start="random")
    assert not same(first.query_tower.state_dict(), second.query_tower.state_dict())
    assert not list(cache.glob("start-*"))


def test_it_is_taken_from_the_cache(cache, monkeypatch):
    first = cl.Run(toy_pairs(60, 20), dim=8)
    monkeypatch.setattr(pretraining, "pretrain", lambda *_: pytest.fail("made again"))
    second = cl.Run(toy_pairs(60, 20), dim=8)
    assert same(first.query_tower.state_dict(), second.query_tower.state_dict())


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
def test_a_broken_file_in_the_cache_is_made_again(cache, damage):
    first = cl.Run(toy_pairs(60, 20), dim=8)
    (path,) = cache_folder().glob("start-*")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    second = cl.Run(toy_pairs(60, 20), dim=8)
    assert same(first.query_tower.state_dict(), second.query_tower.state_dict())
    assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_to_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONTACCUM_LITE_CACHE", str(tmp_path / "file"))
    assert cl.Run(toy_pairs(60, 20), dim=8).step().step == 1


def test_another_corpus_dim_or_ending_is_another_tower(cache):
    cl.Run(toy_pairs(60, 20), dim=8)
    cl.Run(toy_pairs(60, 20), dim=6)
    cl.Run(toy_pairs(60, 20), dim=8, ending="unit", temperature=0.1)
    cl.Run(toy_pairs(61, 20), dim=8)
    cl.Run(toy_pairs(60, 20), dim=8, seed=7, memory_size=16)  # not another one
    assert len(list(cache.glob("start-*"))) == 4


def test_a_crop_is_a_span_of_its_text():
    texts = [list(range(10 * row + 1, 10 * row + 1 + length)) for row, length in enumerate((9, 5))]
    tokens, rng = Tokens(texts, pad=0), np.random.default_rng(0)
    for _ in range(200):
        for text, ids in zip(texts, pretraining.crop(tokens, np.array([0, 1]), rng).tolist()):
            span = [token for token in ids if token]
            first = text.index(span[0])
            assert span == text[first : first + len(span)]
            assert 3 <= len(span) <= max(3, len(text) / 2)


def test_a_text_of_one_token_is_its_own_crop():
    tokens = Tokens([[7]], pad=0)
    crop = pretraining.crop(tokens, np.array([0]), np.random.default_rng(0))
    assert crop.tolist() == [[7]]


def test_mrr_of_the_dev_queries_is_that_of_a_run():
    pairs = toy_pairs(60, 20)
    everything = [pair.passage_id for pair in [*pairs.train, *pairs.test]]
    passages = [p for p in pairs.passages if p.id in set(everything)]
    pairs = cl.Pairs("toy", pairs.train, [], passages, dev=pairs.test)
    run = cl.Run(pairs, dim=8, start="random", shared=True)
    mrr = pretraining.DevQueries(run.query_tower, pairs).mrr(run.query_tower)
    assert mrr == pytest.approx(run.evaluate("dev")["mrr@10"])


def test_training_stops_at_the_first_check_that_is_worse(pairs, monkeypatch):
    qualities = iter([0.1, 0.3, 0.2, 0.9])
    monkeypatch.setattr(pretraining, "CHECK_EVERY", 2)
    monkeypatch.setattr(pretraining.DevQueries, "mrr", lambda *_: next(qualities))
    stopped = pretraining.pretrain(tower_for(pairs), pairs)
    monkeypatch.setattr(pretraining, "UPDATES", 2)
    qualities = iter([0.1, 0.3])
    assert same(stopped, pretraining.pretrain(tower_for(pairs), pairs))


def test_it_learns(pairs):
    """Two texts of one passage are nearer than before."""
    tower = tower_for(pairs)
    before, after = tower, tower_for(pairs)
    after.load_state_dict(pretraining.pretrain(tower, pairs))
    losses = []
    for kind in (before, after):
        rng = np.random.default_rng(1)
        texts = [pair.passage for pair in pairs.train]
        tokens, rows = tower.tokenize(texts), np.arange(len(texts))
        crops = (pretraining.crop(tokens, rows, rng) for _ in range(2))
        losses.append(float(pretraining.crop_loss(kind, *crops)))
    assert losses[1] < losses[0] - 0.2


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"tower": "bert", "start": "pretrained"}, "Set start to 'random'"),
        ({"tower": "some/folder", "start": "random"}, "leave start out"),
        ({"start": "bert"}, "choose one of pretrained, random"),
        ({"start": 3}, "it must be a text"),
    ],
)
def test_a_start_that_cannot_be(fields, words):
    with pytest.raises(ValueError, match=words):
        cl.Settings(**fields)


def test_a_line_without_a_start_is_an_older_one():
    old = cl.Settings.parse("method=contaccum&seed=3")
    assert old.start == "random"
    assert old.memory_size == 128
    assert cl.Settings.parse(old.share()) == old


def test_a_new_line_says_its_start():
    for start in ("pretrained", "random"):
        settings = cl.Settings(start=start)
        assert f"start={start}" in settings.share()
        assert cl.Settings.parse(settings.share()) == settings


def test_an_older_line_of_a_folder_is_pretrained_as_it_was():
    assert cl.Settings.parse("method=contaccum&tower=some/folder").start == "pretrained"
    assert cl.Settings.parse("method=contaccum&tower=bert").start == "random"


def test_the_bank_is_larger_where_vectors_move_slowly():
    assert cl.Settings().memory_size == 512
    assert cl.Settings(start="random").memory_size == 128
    assert cl.Settings(tower="some/folder").memory_size == 128


def test_a_run_resumes_from_its_own_weights(pairs, cache, tmp_path):
    run = cl.Run(pairs, dim=8, updates=4, memory_size=16)
    run.step()
    run.save(tmp_path / "run")
    again = cl.Run.load(tmp_path / "run", pairs)
    assert same(run.query_tower.state_dict(), again.query_tower.state_dict())
    assert again.settings.start == "pretrained"
    assert [again.step().loss, again.step().loss] == [run.step().loss, run.step().loss]

"""An index in shards: exact, resumable, and the evaluation over it."""

import gzip
import json
import multiprocessing
import time

import numpy as np
import pytest

import contaccum_lite as cl
from contaccum_lite.data.passages import read_passages
from contaccum_lite.scale import index as shards
from contaccum_lite.data.types import Pairs, Passage
from contaccum_lite.scale.index import Index, Retriever, build, evaluate, search_shards
from contaccum_lite.core.metrics import exact_search


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """A small retriever that was trained and saved: (folder, run)."""
    run = cl.Run(
        toy,
        cl.Settings(
            dim=16,
            local_batch=8,
            accumulation_steps=4,
            memory_size=32,
            updates=60,
            warmup=5,
            passage_tokens=16,
            learning_rate=0.02,
        ),
    )
    list(run)
    folder = tmp_path_factory.mktemp("run") / "run"
    run.save(folder)
    return folder, run


# --- search ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes, block", [([1000], 32_768), ([300, 1, 699], 64), ([7] * 20, 5), ([3, 5], 4)]
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_any_cut_into_shards_finds_the_same(monkeypatch, sizes, block, dtype):
    draw = np.random.default_rng(len(sizes))
    passages = draw.normal(size=(sum(sizes), 24)).astype(dtype)
    queries = draw.normal(size=(13, 24)).astype("f4")
    monkeypatch.setattr(shards, "_BLOCK", block)
    scores, rows = search_shards(queries, np.split(passages, np.cumsum(sizes)[:-1]), 100)
    exact = queries.astype("f8") @ passages.astype("f8").T
    expected = np.argsort(-exact, axis=1)[:, :100]
    assert (rows == expected).all()
    assert np.allclose(scores, np.take_along_axis(exact, expected, 1), atol=1e-4)


def test_of_equal_scores_the_lower_row_comes_first():
    scores, rows = search_shards(
        np.ones((1, 4), "f4"), [np.ones((3, 4), "f4"), np.ones((3, 4), "f4")], 6
    )
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5]] and (scores == 4).all()


# --- on disk --------------------------------------------------------------------------------------


def test_an_index_finds_what_the_run_finds(trained, toy, tmp_path):
    folder, run = trained
    made = build(folder, toy.passages, tmp_path / "index", shard=100)
    assert len(made) == 640
    assert [len(v) for v in made.vectors()] == [100] * 6 + [40]
    assert "640 passages of 16" in repr(made)
    again = Index(tmp_path / "index")
    for pair in toy.test[:10]:
        ours, theirs = again.search(pair.query, 7), run.search(pair.query, 7)
        assert [h[1:] for h in ours] == [h[1:] for h in theirs]
        assert np.allclose([h.score for h in ours], [h.score for h in theirs], atol=1e-4)
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {
        ".json",
        ".jsonl",
        ".npy",
        ".safetensors",
        ".txt",
    }
    half = build(folder, toy.passages, tmp_path / "half", shard=100, dtype="float16")
    assert next(half.vectors()).dtype == np.float16
    assert [h.id for h in half.search(toy.test[0].query, 3)] == [
        h.id for h in again.search(toy.test[0].query, 3)
    ]


def test_vectors_are_mapped_not_read(trained, toy, tmp_path):
    made = build(trained[0], toy.passages, tmp_path / "index", shard=300)
    assert all(isinstance(vectors, np.memmap) for vectors in made.vectors())


def test_twenty_thousand_passages_killed_and_gone_on_with(trained, tmp_path):
    """SIGKILL at four moments of a build of five shards.

    Whole shards stay and are not made again, and the end is that of an undisturbed build.
    """
    folder, _ = trained
    words = [f"w{n}" for n in range(500)]
    draw = np.random.default_rng(0)
    passages = [
        Passage(f"id{n}", f"title {n}", " ".join(draw.choice(words, 12))) for n in range(20_000)
    ]
    whole = build(folder, passages, tmp_path / "whole", shard=4000)
    context, out, kills = multiprocessing.get_context("fork"), tmp_path / "out", 0
    kept = {}
    for shards_there in (0, 1, 2, 3):
        process = context.Process(
            target=build, args=(folder, passages, out), kwargs=dict(shard=4000)
        )
        process.start()
        while process.is_alive() and len(list(out.glob("shard-*"))) < shards_there:
            time.sleep(0.001)
        process.join(draw.uniform(0, 0.1))
        kills += process.is_alive()
        process.kill()
        process.join()
        for name, stamp in kept.items():
            assert (out / name / "vectors.npy").stat().st_mtime_ns == stamp
        kept = {
            path.name: (path / "vectors.npy").stat().st_mtime_ns for path in out.glob("shard-*")
        }
        for path in out.glob("shard-*"):
            assert (
                len(np.load(path / "vectors.npy", mmap_mode="r"))
                == len((path / "passages.jsonl").read_bytes().splitlines())
                == 4000
            )
        if (out / "index.json").is_file() and not json.loads((out / "index.json").read_text()).get(
            "finished"
        ):
            with pytest.raises(ValueError, match="not finished"):
                Index(out)
    assert kills >= 3 and kept
    made = build(folder, passages, out, shard=4000)
    assert all(np.array_equal(a, b) for a, b in zip(made.vectors(), whole.vectors(), strict=True))
    assert not list(out.glob(".*"))
    assert made.passage(19_999) == passages[-1]
    assert made.passage(4000) == passages[4000]
    queries = whole.retriever.encode_queries([p.text for p in passages[:20]])
    _, rows = exact_search(queries, np.concatenate(list(whole.vectors())), 50)
    found = made.rank(queries, 50)[1]
    assert (
        np.mean([len(set(a) & set(b)) for a, b in zip(found, rows)]) > 49.5
    )  # ties at the end may be cut elsewhere


def test_what_does_not_belong_together_is_refused(trained, toy, tmp_path):
    folder, _ = trained
    made = tmp_path / "index"
    build(folder, toy.passages[:250], made, shard=100)
    for options, words in (
        (dict(shard=50), "another shard"),
        (dict(dtype="float16", shard=100), "another dtype"),
        (dict(shard=100, source="x"), "another source"),
    ):
        with pytest.raises(ValueError, match=words):
            build(folder, toy.passages[:250], made, **options)
    about = json.loads((made / "index.json").read_text())
    (made / "index.json").write_text(
        json.dumps({k: v for k, v in about.items() if k not in ("finished", "passages")})
    )
    with pytest.raises(ValueError, match="begun with other passages"):
        build(folder, toy.passages[1:251], made, shard=100)
    with pytest.raises(ValueError, match="begun with more passages"):
        build(folder, toy.passages[:200], made, shard=100)
    assert len(build(folder, toy.passages[:250], made, shard=100)) == 250
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files"):
        build(folder, toy.passages, tmp_path / "other")
    with pytest.raises(ValueError, match="has no passages"):
        build(folder, [], tmp_path / "empty")
    with pytest.raises(ValueError, match="holds no saved run"):
        build(tmp_path / "nowhere", toy.passages, tmp_path / "empty")
    with pytest.raises(ValueError, match="holds no index"):
        Index(tmp_path / "nowhere")
    assert not (tmp_path / "empty").exists()


def test_a_full_disk_leaves_whole_shards(trained, toy, tmp_path, monkeypatch):
    plain, calls = np.save, []

    def full(*args, **options):
        calls.append(args)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        return plain(*args, **options)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        build(trained[0], toy.passages, tmp_path / "index", shard=100)
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "index").iterdir()) == [
        "index.json",
        "query_tower",
        "shard-00000",
        "shard-00001",
    ]
    assert len(build(trained[0], toy.passages, tmp_path / "index", shard=100)) == 640


# --- passages -------------------------------------------------------------------------------------


def test_passages_are_read_from_beirs_and_dprs_files(tmp_path, toy):
    rows = [Passage("a", "T", "first text"), Passage("b", "", 'with "quotes" and\nlines')]
    lines = "".join(
        json.dumps({"_id": p.id, "title": p.title, "text": p.text}) + "\n" for p in rows
    )
    (tmp_path / "corpus.jsonl").write_text(lines)
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt") as file:
        file.write(lines)
    (tmp_path / "psgs.tsv").write_text(
        'id\ttext\ttitle\n1\t"says ""this"" and that"\tA title\n2\tplain\tB\n'
    )
    assert (
        list(read_passages(str(tmp_path / "corpus.jsonl")))
        == rows
        == list(read_passages(str(tmp_path / "corpus.jsonl.gz")))
    )
    assert list(read_passages(str(tmp_path / "psgs.tsv"))) == [
        Passage("1", "A title", 'says "this" and that'),
        Passage("2", "B", "plain"),
    ]
    assert list(read_passages("toy")) == toy.passages
    (tmp_path / "bad.tsv").write_text("1\n")
    (tmp_path / "bad.jsonl").write_text('{"_id": "x"}\n')
    for name, words in (
        ("bad.tsv", "line 1: found '1"),
        ("bad.jsonl", "line 1: found no key 'text'"),
        ("missing.jsonl", "no such file"),
    ):
        with pytest.raises(ValueError, match=words):
            list(read_passages(str(tmp_path / name)))
    with pytest.raises(ValueError, match="no passages called 'wiki'"):
        read_passages("wiki")


# --- evaluation -----------------------------------------------------------------------------------


def test_evaluation_in_shards_is_the_runs_own(trained, toy, tmp_path):
    folder, run = trained
    expected = run.evaluate()
    assert 0.2 < expected["top@20"] < 1
    retriever = Retriever.load(folder)
    for shard in (97, 100_000):
        assert evaluate(retriever, toy, shard=shard) == pytest.approx(expected)
    made = build(folder, toy.passages, tmp_path / "index", shard=100)
    assert evaluate(retriever, toy, index=made) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no 'dev' pairs"):
        evaluate(retriever, toy, "dev")


def test_an_index_of_another_corpus_is_judged_by_text_and_by_answers(trained, toy, tmp_path):
    """Other ids, other order, one relevant passage missing; grades and answer strings."""
    folder, _ = trained
    pairs = [
        pair._replace(
            answers=(pair.passage.split()[0],), relevant={pair.passage_id: 2, toy.passages[n].id: 1}
        )
        for n, pair in enumerate(toy.test[:40])
    ]
    asked = Pairs("graded", toy.train, pairs, toy.passages)
    retriever = Retriever.load(folder)
    own = evaluate(retriever, asked)
    assert own["ndcg@10"] > 0 and "answer_top@20" in own
    shuffled = [
        toy.passages[n]._replace(id=f"other {n}")
        for n in np.random.default_rng(0).permutation(len(toy.passages))
    ]
    made = build(folder, shuffled, tmp_path / "index", shard=150)
    assert evaluate(retriever, asked, index=made) == pytest.approx(own)
    found = next(
        p for p in pairs if evaluate(retriever, Pairs("one", toy.train, [p], toy.passages))["top@1"]
    )
    missing = build(
        folder, [p for p in shuffled if p.text != found.passage], tmp_path / "without", shard=150
    )
    less = evaluate(retriever, asked, index=missing)
    assert less["recall@100"] < own["recall@100"]  # what the index lacks counts as not found
    other = cl.Run(toy, retriever.settings.replace(seed=5))
    other.save(tmp_path / "other")
    with pytest.raises(ValueError, match="made by other towers"):
        evaluate(Retriever.load(tmp_path / "other"), asked, index=made)


def test_faiss_takes_an_index_from_here(trained, toy, tmp_path):
    """The scale-out page's IVF-PQ over the shards.

    Its candidates are ranked again by the true vectors.
    """
    import faiss

    made = build(trained[0], toy.passages, tmp_path / "index", shard=100)
    approximate = faiss.index_factory(made.about["dim"], "IVF8,PQ8x4", faiss.METRIC_INNER_PRODUCT)
    approximate.train(np.concatenate([vectors for vectors in made.vectors()]).astype("float32"))
    for vectors in made.vectors():
        approximate.add(vectors.astype("float32"))
    approximate.nprobe = 8
    queries = made.retriever.encode_queries([pair.query for pair in toy.test])
    _, rows = approximate.search(queries, 80)
    true = np.concatenate(list(made.vectors()))
    again = np.stack(
        [found[np.argsort(-(true[found] @ query))][:5] for query, found in zip(queries, rows)]
    )
    exact = made.rank(queries, 5)[1]
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(again, exact)]) > 0.9


# --- a corpus that has changed, vectors that are not finite ---------------------------------------


def _rows(count):
    return [Passage(f"id{n}", f"title {n}", f"text of number {n}") for n in range(count)]


def test_a_finished_index_of_a_changed_corpus_is_refused(trained, tmp_path):
    """A text changed, passages added within the last shard and beyond it, passages gone."""
    made, rows = tmp_path / "index", _rows(40)
    build(trained[0], rows, made, shard=20, source="corpus")
    stamps = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert len(build(trained[0], rows, made, shard=20, source="corpus")) == 40
    changed = [rows[0], rows[1]._replace(text="another"), *rows[2:]]
    for other, words in (
        (changed, r"other passages than corpus \(shard 0 differs\)"),
        (_rows(41), "fewer passages than corpus"),
        (_rows(70), "fewer passages than corpus"),
        (rows[:35], r"other passages than corpus \(shard 1 differs\)"),
        (rows[:20], "more passages than corpus"),
    ):
        with pytest.raises(ValueError, match=f"is finished, and holds {words}"):
            build(trained[0], other, made, shard=20, source="corpus")
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == stamps
    build(trained[0], rows[:35], tmp_path / "ragged", shard=20)
    with pytest.raises(ValueError, match="shard 1 differs"):
        build(trained[0], rows, tmp_path / "ragged", shard=20)


def _with_bad_weights(run, folder, value):
    """(folder, run): the run with the weights of its towers' LayerNorm set to this value."""
    import torch

    again = cl.Run.load(run, cl.load_pairs("toy"))
    for tower in again.learner.towers:
        with torch.no_grad():
            tower.norm.weight.fill_(value)
    again.save(folder)
    return folder, again


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_a_sentence(trained, toy, tmp_path, value):
    made = build(trained[0], toy.passages[:50], tmp_path / "fine", shard=20)
    folder, run = _with_bad_weights(trained[0], tmp_path / "run", value)
    retriever = Retriever.load(folder)
    for call in (
        run.evaluate,
        lambda: run.search("baba"),
        lambda: evaluate(retriever, toy),
        lambda: retriever.encode_queries(["baba"]),
    ):
        with pytest.raises(ValueError, match="the vector of query '.*' is not finite"):
            call()
    with pytest.raises(ValueError, match="the vector of passage 'p[0-9]+' is not finite"):
        list(run.encode_passages())
    with pytest.raises(ValueError, match="the vector of passage 'p[0-9]+' is not finite"):
        build(folder, toy.passages[:50], tmp_path / "index", shard=20)
    assert not list((tmp_path / "index").glob("*shard*"))
    for queries in (np.full((2, 16), np.nan, "f4"), np.full((1, 16), 1e38, "f4")):
        with pytest.raises(ValueError, match="query 1 and a passage have a score that is not fin"):
            made.rank(queries, 5)


def test_a_vector_that_is_not_finite_never_becomes_a_row(tmp_path):
    """FAISS gives the row -1 for it: on both ways to search."""
    passages, queries = np.ones((9, 4), "f4"), np.ones((3, 4), "f4")
    queries[1, 2] = np.nan
    for search in (
        lambda: search_shards(queries, [passages, passages], 4),
        lambda: exact_search(queries, passages, 4),
    ):
        with pytest.raises(ValueError, match="query 2 and a passage"):
            search()
    passages[5] = np.nan
    for search in (
        lambda: search_shards(queries[:1], [passages[:3], passages[3:]], 12),
        lambda: exact_search(queries[:1], passages, 12),
    ):
        with pytest.raises(ValueError, match="query 1 and a passage"):
            search()


def test_what_float16_cannot_hold_is_refused_with_advice(trained, toy, tmp_path, recwarn):
    folder, _ = _with_bad_weights(trained[0], tmp_path / "run", 1e5)
    words = "passage 'p[0-9]+' has a number above 65,504.*choose --dtype float32"
    with pytest.raises(ValueError, match=words):
        build(folder, toy.passages[:50], tmp_path / "half", shard=20, dtype="float16")
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]
    made = build(folder, toy.passages[:50], tmp_path / "whole", shard=20)
    assert len(made.search("baba", 3)) == 3


def test_an_index_of_before_is_read(trained, toy, tmp_path):
    """Its index.json has no digests."""
    made = tmp_path / "index"
    hits = build(trained[0], toy.passages[:50], made, shard=20).search("baba", 3)
    about = json.loads((made / "index.json").read_text())
    del about["digests"]
    (made / "index.json").write_text(json.dumps(about))
    assert Index(made).search("baba", 3) == hits
    assert len(build(trained[0], toy.passages[:50], made, shard=20)) == 50

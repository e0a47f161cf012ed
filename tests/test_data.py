"""Sources of pairs: what they give, and what they say of files that are not as they should be."""

import gzip
import hashlib
import json
import time

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

import contaccum_lite as cl
from contaccum_lite.data import python_docs as pydocs, python_docs_pairs as data
from contaccum_lite.data.passages import read_passages
from contaccum_lite.data.records import CHUNK_BYTES, iter_json_array
from contaccum_lite.data.types import Passage
from contaccum_lite.data.mining import mine_hard_negatives
from contaccum_lite.data.toy import toy_pairs
from contaccum_lite.utils.files import cached_json, write_atomically
from contaccum_lite.utils.text import truncated_repr


# --- toy ------------------------------------------------------------------------------------------


def test_toy_is_seeded_and_has_hard_negatives():
    a, b = toy_pairs(), toy_pairs(seed=1)
    assert (a.train, a.passages) == (toy_pairs().train, toy_pairs().passages) and a.train != b.train
    assert len(a.train) == 512
    assert len(a.test) == 128
    assert len(a.passages) == 640
    for pair in a.train:
        assert pair.hard_negatives and all(h.text != pair.passage for h in pair.hard_negatives)
        assert a.passages[a.row_of[pair.passage_id]].text == pair.passage
    for n, t in ((0, 3), (10, -1), (5000, 1)):
        with pytest.raises(ValueError, match="toy pairs"):
            toy_pairs(n, t)


# --- python-docs ----------------------------------------------------------------------------------


def test_python_docs(docs):
    assert len(docs.train) >= 4000
    assert len(docs.test) == 1000
    assert len(docs.passages) >= 5000
    every = [*docs.train, *docs.test, *docs.dev]
    assert len(every) == len(docs.passages)
    for texts in (
        [pydocs.normalize_text(p.query) for p in every],
        [pydocs.normalize_text(p.passage) for p in every],
        [p.title for p in every],
    ):
        assert len(set(texts)) == len(texts)  # no query, passage or name twice
    parts = {part for p in every for part in p.title.split(".")}
    assert not any(part.startswith("_") or not part for part in parts)  # public names only
    assert not {part for p in every for part in p.title.split(".")[:-1]} & {
        "test",
        "tests",
        "_vendor",
    }
    for package in ("numpy", "torch", "transformers", "heapq"):
        assert any(p.title.split(".")[0] == package for p in every), package
    names = {p.title: p for p in every}
    assert "array" in names["numpy.sort"].query and "sorted" in names["numpy.sort"].query
    for compiled in (
        "torch.abs",
        "torch.matmul",
        "numpy.arange",
        "torch.linalg.svd",
        "torch.fft.fft",
    ):
        assert compiled in names, compiled  # documented through add_docstr and add_newdoc
    assert not any(
        p.query.startswith(p.title.split(".")[-1] + "(") for p in every
    )  # signatures are stripped


def test_the_split_goes_by_the_name_alone(docs):
    assert all(pydocs.held_out_rank(p.id) is None for p in docs.train)
    held = [pydocs.held_out_rank(p.id) for p in (*docs.test, *docs.dev)]
    assert None not in held and held == sorted(held)


@pytest.mark.parametrize(
    "name, rank", [("numpy.sort", None), ("numpy.polynomial.chebyshev.chebpts2", 4029345978360105)]
)
def test_the_rank_of_a_name_is_the_same_for_ever(name, rank):
    assert pydocs.held_out_rank(name) == rank


def test_mined_negatives_are_never_the_positive_or_its_copy(docs):
    train = {p.passage_id for p in docs.train}
    with_any = 0
    for pair in docs.train:
        with_any += bool(pair.hard_negatives)
        for h in pair.hard_negatives:
            assert h.id in train
            assert h.id != pair.passage_id
            assert pydocs.normalize_text(h.text) != pydocs.normalize_text(pair.passage)
    assert with_any > 0.99 * len(docs.train)


def test_mining_passes_over_copies():
    passages = [
        Passage("0", "", "sort a list"),
        Passage("1", "", "Sort a LIST!"),
        Passage("2", "", "sort a tuple"),
        Passage("3", "", "fly a kite"),
    ]
    mined = mine_hard_negatives(["sort a list", "x", "sort a tuple", "fly"], passages, 2)
    assert [sorted(rows) for rows in mined] == [[2], [], [0, 1], []]
    assert mine_hard_negatives(["a"], passages[:1], 2) == [[]]


def test_docs_load_fast_from_the_cache(docs):
    times = []
    for _ in range(3):
        began = time.perf_counter()
        cl.load_pairs("python-docs")
        times.append(time.perf_counter() - began)
    assert (
        min(times) < 3
    )  # a guard against rebuilding, which takes ten times that; benchmarks/ has the time itself


@pytest.mark.parametrize(
    "docstring, name, expected",
    [
        (
            "Add two.\n\nThe numbers are added one by one, as one would expect.",
            "m.add",
            ("Add two.", "The numbers are added one by one, as one would expect."),
        ),
        (
            "add(a, b) -> int\n\nAdd two numbers.\n\nThe numbers are added one by one as one would.",
            "m.add",
            ("Add two numbers.", "The numbers are added one by one as one would."),
        ),
        (
            "a.sort(axis=-1,\n       kind=None)\n\nSort in\nplace.\n\nThe array is sorted along an axis and nothing is returned.",
            "numpy.ndarray.sort",
            ("Sort in place.", "The array is sorted along an axis and nothing is returned."),
        ),
        ("Only one paragraph here.", "m.f", None),
        ("Args:\n\n  x: the number that is to be squared, whatever it may be", "m.f", None),
        (
            "Return `x` as :class:`~torch.Tensor`.\n\n.. versionadded:: 1.2\n\nSee :func:`abs` for what this does with ``x`` and with y.",
            "m.f",
            ("Return x as torch.Tensor.", "See abs for what this does with x and with y."),
        ),
    ],
)
def test_docstrings_are_split(docstring, name, expected):
    expected = expected if expected is None or len(expected[0].split()) >= 3 else None
    assert pydocs.split_docstring(docstring, name) == expected


def test_names_are_those_of_the_public_face(tmp_path, monkeypatch):
    """A package of our own: what is private is found under the name that shows it.

    Nothing is executed.
    """
    files = {
        "__init__.py": "from ._impl import shown, hidden as _hidden\nfrom .open import *\nraise SystemExit('executed!')\n",
        "_impl.py": 'def shown():\n    """Show it.\n\n    x"""\ndef unshown():\n    """No."""\ndef hidden():\n    """No."""\n',
        "open.py": 'from ._deep import *\nclass Open:\n    """O."""\n    def method(self):\n        """M."""\n    def _private(self):\n        """P."""\n',
        "_deep.py": 'def deep():\n    """D."""\ndef _own():\n    """X."""\n',
        "_add_newdocs.py": 'add_newdoc("pack._core.multiarray", "ndarray", ("sort", """S."""))\nadd_newdoc("pack._core", "arange", """A.""")\n',
        "linalg.py": '"""L."""\nsvd = _add_docstr(_linalg.x, r"""V {note} {input}""".format(**common))\nadd_docstr(torch.abs, "W")\n',
        "tests/test_it.py": 'def t():\n    """T."""\n',
        "_vendor/v.py": '"""V."""\n',
        "gen.py": '# automatically generated\ndef g():\n    """G."""\n',
        "broken.py": '"""',
        "template.py": '"""T."""\n{{ jinja }}(\n',
    }
    for name, text in files.items():
        path = tmp_path / "pack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "std").mkdir()
    monkeypatch.setattr(pydocs, "PACKAGES", ("pack",))
    monkeypatch.setattr(
        pydocs.sysconfig,
        "get_paths",
        lambda: dict(stdlib=tmp_path / "std", purelib=tmp_path, platlib=tmp_path),
    )
    found = dict(pydocs._public_docstrings(iter))
    assert found == {
        "pack.shown": "Show it.\n\n    x",
        "pack.open.Open": "O.",
        "pack.open.Open.method": "M.",
        "pack.open.deep": "D.",
        "pack.ndarray.sort": "S.",
        "pack.arange": "A.",
        "pack.linalg": "L.",
        "pack.linalg.svd": "V  input",
        "torch.abs": "W",
    }


# --- the cache ------------------------------------------------------------------------------------


def test_cache_keeps_rebuilds_and_does_without(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTACCUM_LITE_CACHE", str(tmp_path / "c"))
    built = []
    build = lambda: built.append(1) or [1, "ü"]
    assert cached_json("x.json", build) == cached_json("x.json", build) == [1, "ü"]
    assert len(built) == 1
    (tmp_path / "c" / "x.json").write_bytes(b"[1, \xff")
    assert cached_json("x.json", build) == [1, "ü"] and len(built) == 2
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("CONTACCUM_LITE_CACHE", str(blocked / "below"))
    assert cached_json("x.json", build) == [1, "ü"]


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "[1]",
        '[["title", "summary", "text"]]',
        '[["title", "summary", "text", [1]]]',
        '[["title", "summary", 3, []]]',
        "[" * 100_000,
    ],
)
def test_broken_python_docs_in_the_cache_are_built_again(tmp_path, monkeypatch, content):
    monkeypatch.setenv("CONTACCUM_LITE_CACHE", str(tmp_path))
    entries = [["a", "What is a?", "It is a.", [1]], ["b", "What is b?", "It is b.", [0]]]
    monkeypatch.setattr(data, "_build_python_docs", lambda progress: entries)
    first = data.python_docs_pairs(progress=False).fingerprint
    (path,) = tmp_path.glob("python-docs-*.json")
    path.write_text(content)
    assert data.python_docs_pairs(progress=False).fingerprint == first
    assert json.loads(path.read_text()) == entries


def test_write_atomically_leaves_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomically(path, b"old")
    monkeypatch.setattr(
        "contaccum_lite.utils.files.os.replace",
        lambda *a: (_ for _ in ()).throw(OSError("No space left on device")),
    )
    with pytest.raises(OSError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_cache_is_keyed_by_what_it_read(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTACCUM_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(
        data,
        "_build_python_docs",
        lambda progress: [["a.b", "say what it is", "and then explain", []]],
    )
    data.python_docs_pairs()
    data.python_docs_pairs()
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(pydocs, "versions", lambda: {"numpy": "99"})
    data.python_docs_pairs()
    assert len(list(tmp_path.iterdir())) == 2


# --- files ----------------------------------------------------------------------------------------


def context(text, title="t", **more):
    return dict(title=title, text=text, **more)


def question(n, **change):
    return {
        **dict(
            question=f"who is number {n}?",
            answers=[f"number {n}"],
            positive_ctxs=[context(f"this is number {n}")],
            negative_ctxs=[context("a stone")],
            hard_negative_ctxs=[context(f"not {n}"), context("a stone")],
        ),
        **change,
    }


def write_dpr(tmp_path, records, name="dpr.json"):
    path = tmp_path / name
    content = json.dumps(records).encode() if not isinstance(records, bytes) else records
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return f"dpr:{path}"


@pytest.mark.parametrize("name", ["dpr.json", "dpr.json.gz"])
def test_dpr(tmp_path, name):
    records = [question(n) for n in range(20)] + [question(20, positive_ctxs=[])]
    records[3]["positive_ctxs"].append(context("number three, again"))
    pairs = cl.load_pairs(write_dpr(tmp_path, records, name))
    assert len(pairs.train) == 16
    assert len(pairs.test) == 4
    assert "1 questions have no positive" in pairs.notes[0]
    every = {p.query: p for p in (*pairs.train, *pairs.test)}
    three = every["who is number 3?"]
    assert three.passage == "this is number 3"
    assert three.title == "t"
    assert three.answers == ("number 3",)
    assert len(three.relevant) == 2
    assert [h.text for h in three.hard_negatives] == [
        "not 3",
        "a stone",
    ]
    assert sum(p.text == "a stone" for p in pairs.passages) == 1  # kept once
    assert (
        cl.load_pairs(write_dpr(tmp_path, records, name)).test == pairs.test
    )  # the same held out each time


def test_dpr_with_a_test_file_trains_and_measures_answers(tmp_path):
    write_dpr(tmp_path, [question(n) for n in range(4)], "test.json")
    pairs = cl.load_pairs(
        write_dpr(tmp_path, [question(n) for n in range(30)]), test=tmp_path / "test.json"
    )
    assert len(pairs.train) == 30 and len(pairs.test) == 4
    run = cl.Run(
        pairs,
        local_batch=4,
        accumulation_steps=2,
        memory_size=8,
        updates=3,
        dim=8,
        hard_negatives=1,
    )
    list(run)
    assert 0 <= run.evaluate()["answer_top@5"] <= 1


def test_margin_keeps_what_is_below(tmp_path):
    """Its text says 'higher', and its code keeps a negative at least 3 below the positive.

    That is what makes sense.
    """
    record = question(
        0,
        positive_ctxs=[context("yes", ce_score=5.0), context("also", ce_score=4.0)],
        hard_negative_ctxs=[
            context("far below", ce_score=1.0),
            context("just below", ce_score=1.5),
            context("higher", ce_score=9.0),
            context("unknown"),
        ],
    )
    pairs = cl.load_pairs(write_dpr(tmp_path, [record] * 1))
    assert [h.text for h in pairs.train[0].hard_negatives] == ["far below", "unknown"]
    pairs = cl.load_pairs(write_dpr(tmp_path, [record]), margin=2.5)
    assert [h.text for h in pairs.train[0].hard_negatives] == ["far below", "just below", "unknown"]


def test_jsonl(jsonl):
    rows = [
        dict(
            query=f"q {n}",
            passage=f"p {n}",
            id=n,
            title="T",
            answers=["a"],
            score=5,
            hard_negatives=[
                "plain",
                dict(passage="near", score=4),
                dict(passage="far", title="F", score=-1),
            ],
        )
        for n in range(10)
    ]
    pairs = cl.load_pairs(f"jsonl:{jsonl(rows)}")
    assert len(pairs.train) == 8
    assert len(pairs.test) == 2
    assert len(pairs.passages) == 13
    assert [h.text for h in pairs.train[0].hard_negatives] == ["plain", "far"]
    assert pairs.train[0].title == "T"
    gz = jsonl([], "again.jsonl.gz")
    gz.write_bytes(gzip.compress("\n\n".join(json.dumps(r) for r in rows).encode("utf-8-sig")))
    assert (
        cl.load_pairs(f"jsonl:{gz}").train == pairs.train
    )  # blank lines and a byte order mark are passed over


def test_a_test_file_may_have_the_same_name_and_the_same_ids(jsonl, tmp_path):
    for folder in ("train", "test", "both"):
        (tmp_path / folder).mkdir()
    rows = [dict(query=f"q {n}", passage=f"p {n}") for n in range(4)]
    train, test = jsonl(rows[:2], "train/pairs.jsonl"), jsonl(rows[2:], "test/pairs.jsonl")
    pairs = cl.load_pairs(f"jsonl:{train}", test=test)
    assert [p.query for p in pairs.train] == ["q 0", "q 1"]
    assert [p.query for p in pairs.test] == [
        "q 2",
        "q 3",
    ]
    assert [p.id for p in pairs.train] == [
        "pairs.jsonl:1",
        "pairs.jsonl:2",
    ]  # as in runs that were saved before
    assert not {p.id for p in pairs.train} & {p.id for p in pairs.test}
    numbered = [dict(row, id=n % 2) for n, row in enumerate(rows)]
    pairs = cl.load_pairs(
        f"jsonl:{jsonl(numbered[:2], 'a.jsonl')}", test=jsonl(numbered[2:], "b.jsonl")
    )
    assert [p.id for p in (*pairs.train, *pairs.test)] == ["0", "1", "0", "1"]
    for folder, file in (("a.jsonl", "b.jsonl"), ("b.jsonl", "a.jsonl")):
        jsonl([rows[0], dict(rows[1], id="twice"), dict(rows[2], id="twice")], file)
        jsonl(rows[:2], folder)
        with pytest.raises(
            ValueError, match=f"{file}, line 3: found the id 'twice', which {file}, line 2 has too"
        ):
            cl.load_pairs(f"jsonl:{tmp_path / 'a.jsonl'}", test=tmp_path / "b.jsonl")


def test_a_question_is_never_in_train_and_test(jsonl):
    """Where no question repeats, the split is the one that it always was: the lowest hashes."""
    for repeats in ([1] * 30, [4] * 8, [1, 2, 3] * 7, [9, 1], [10], [3, 3, 4, 5]):
        rows = [
            dict(query=f"q {n}", passage=f"p {n} {copy}")
            for n, count in enumerate(repeats)
            for copy in range(count)
        ]
        pairs = cl.load_pairs(f"jsonl:{jsonl(rows)}")
        assert not {p.query for p in pairs.train} & {p.query for p in pairs.test}
        assert len(pairs.train) + len(pairs.test) == len(rows) and len(pairs.test) <= len(rows) // 5
        if set(repeats) == {1}:
            by_hash = sorted(rows, key=lambda row: hashlib.sha256(row["query"].encode()).digest())
            assert {p.query for p in pairs.test} == {
                row["query"] for row in by_hash[: len(rows) // 5]
            }
        if repeats in ([9, 1], [1, 2, 3] * 7):
            assert pairs.test  # a question that has too many pairs is passed over


def test_a_run_resumes_only_on_the_texts_that_it_was_trained_on(jsonl, tmp_path):
    rows = [
        dict(query=f"what is {n}", passage=f"it is {n}", hard_negatives=[f"it is not {n}"])
        for n in range(12)
    ]
    (tmp_path / "again").mkdir()
    train, test = jsonl(rows), jsonl([dict(query="where", passage="there")], "test.jsonl")
    edited = jsonl(
        [{**row, "hard_negatives": [f"it is no {n}"]} for n, row in enumerate(rows)],
        "again/pairs.jsonl",
    )
    other = jsonl([dict(query="where", passage="here")], "again/test.jsonl")
    small = dict(
        dim=8,
        local_batch=2,
        accumulation_steps=1,
        updates=4,
        warmup=0,
        memory_size=0,
        method="grad_accum",
    )
    cases = [
        (dict(hard_negatives=1), "hard negatives"),
        (dict(), None),
        (dict(cache_negatives=1), "passages"),
    ]
    for number, (settings, words) in enumerate(cases):
        run = cl.Run(cl.load_pairs(f"jsonl:{train}", test=test), **small, **settings)
        run.step()
        run.save(folder := tmp_path / f"run {number}")
        assert cl.Run.load(folder, cl.load_pairs(f"jsonl:{train}", test=test)).step_count == 1
        for pairs, sees in (
            (cl.load_pairs(f"jsonl:{edited}", test=test), words),
            (cl.load_pairs(f"jsonl:{train}", test=other), words == "passages"),
        ):
            if sees:
                with pytest.raises(
                    ValueError,
                    match=f"run {number} was trained on .* with other texts of its {words}",
                ):
                    cl.Run.load(folder, pairs)
            else:
                assert cl.Run.load(folder, pairs).step_count == 1
        saved = json.loads((folder / "run.json").read_text())
        del saved["texts"]  # as older versions saved it
        (folder / "run.json").write_text(json.dumps(saved))
        assert cl.Run.load(folder, cl.load_pairs(f"jsonl:{edited}", test=test)).step_count == 1


def test_the_fingerprint_is_that_of_runs_saved_before(toy):
    """It also names the vocabulary in the cache."""
    assert toy.fingerprint == "3e88d7d6e9b96ab0"


@pytest.mark.parametrize("folder", ["with:colon", "C:\\Users\\me", "jsonl", "dpr:x"])
@pytest.mark.parametrize("upper", [False, True])
def test_a_path_may_have_a_colon_and_an_ending_in_capitals(tmp_path, monkeypatch, folder, upper):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    line = json.dumps(dict(query="q", passage="p", _id="1", text="t"))
    for name, content in (
        ("a.tsv", "1\tt\n"),
        ("b.jsonl", line),
        ("c.json", json.dumps([question(0)])),
    ):
        for ending in ("", ".gz"):
            path = f"{folder}\\{name}{ending}" if "\\" in folder else f"{folder}/{name}{ending}"
            path = path.upper().replace(folder.upper(), folder) if upper else path
            (tmp_path / path).write_bytes(
                gzip.compress(content.encode()) if ending else content.encode()
            )
            if name != "c.json":
                whole = path if not folder.startswith("dpr:") else str(tmp_path / path)
                assert [(p.id, p.text) for p in read_passages(whole)] == [("1", "t")]
            if name != "a.tsv":
                kind = {"b.jsonl": "jsonl", "c.json": "dpr"}[name]
                assert len(cl.load_pairs(f"{kind}:{path}").train) == 1
                assert len(list(read_passages(f"{kind}:{path}"))) == (1 if kind == "jsonl" else 3)


def beir(tmp_path, **change):
    files = {
        "corpus.jsonl": "".join(
            json.dumps(dict(_id=f"d{n}", title=f"T{n}", text=f"text {n}")) + "\n" for n in range(9)
        ),
        "queries.jsonl": "".join(
            json.dumps(dict(_id=f"q{n}", text=f"question {n}")) + "\n" for n in range(4)
        ),
        "qrels/train.tsv": "query-id\tcorpus-id\tscore\nq0\td0\t1\nq0\td1\t2\nq1\td2\t1\nq1\td3\t0\n",
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq2\td4\t1\nq2\td5\t3\nq3\td6\t1\n",
        "hard_negatives.jsonl": json.dumps(
            dict(
                qid="q0",
                neg={"bm25": ["d7", "d8"], "other": ["d1", "d7"]},
                scores={"d0": 5, "d1": 6, "d7": 1, "d8": 4},
            )
        )
        + "\n",
        **change,
    }
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )
    return f"beir:{tmp_path}"


def test_beir(tmp_path):
    pairs = cl.load_pairs(beir(tmp_path))
    assert [(p.id, p.query, p.passage) for p in pairs.train] == [
        ("q0-d0", "question 0", "text 0"),
        ("q0-d1", "question 0", "text 1"),
        ("q1-d2", "question 1", "text 2"),
    ]
    assert [h.id for h in pairs.train[0].hard_negatives] == [
        "d7"
    ]  # d1 is a positive, d8 only 1 below d0
    assert [p.relevant for p in pairs.test] == [{"d4": 1, "d5": 3}, {"d6": 1}]
    assert pairs.test[0].passage_id == "d5"
    assert len(pairs.passages) == 9
    run = cl.Run(pairs, local_batch=2, accumulation_steps=1, memory_size=4, updates=2, dim=8)
    list(run)
    assert 0 <= run.evaluate()["ndcg@10"] <= 1
    packed = tmp_path / "packed"
    beir(packed)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (packed / f"{name}.gz").write_bytes(gzip.compress((packed / name).read_bytes()))
        (packed / name).unlink()
    assert cl.load_pairs(f"beir:{packed}").train == pairs.train


def test_the_columns_of_qrels_are_those_the_header_names(tmp_path):
    """Where queries are passages too, ids alone do not tell that the columns are swapped."""
    expected = cl.load_pairs(beir(tmp_path / "a"))
    swapped = (
        'corpus-id\tscore\tquery-id\nd0\t1\tq0\n"d1"\t2\tq0\nd2\t1\tq1\nd3\t0\tq1\nd3\t0\tq1\n'
    )
    assert (
        cl.load_pairs(beir(tmp_path / "b", **{"qrels/train.tsv": swapped})).train == expected.train
    )


@pytest.mark.parametrize(
    "change",
    [
        dict(id="\ud800"),
        dict(answers=["a", "\ud800"]),
        dict(title="\ud800"),
        dict(hard_negatives=["\ud800"]),
        dict(hard_negatives=[dict(passage="x", title="\ud800")]),
    ],
)
def test_half_a_surrogate_pair_is_refused_in_every_text(jsonl, tmp_path, change):
    """It cannot be written anywhere: not into an index, not to a terminal."""
    path = jsonl([dict(query="q", passage="p"), {**dict(query="q", passage="p"), **change}])
    with pytest.raises(ValueError, match="pairs.jsonl, line 2.*half of a surrogate pair"):
        cl.load_pairs(f"jsonl:{path}")
    record = question(
        0,
        positive_ctxs=[context("p", title=change.get("title", ""))],
        answers=change.get("answers", ["\ud800"]),
    )
    with pytest.raises(ValueError, match="dpr.json, record 0.*half of a surrogate pair"):
        cl.load_pairs(write_dpr(tmp_path, [record]))
    for row in (
        dict(_id="\ud800", text="x"),
        dict(id="\ud800", text="x"),
        dict(text="\ud800"),
        dict(text="x", title="\ud800"),
    ):
        with pytest.raises(
            ValueError, match="corpus.jsonl, line 1: found half of a surrogate pair"
        ):
            list(read_passages(str(jsonl([row], "corpus.jsonl"))))


@pytest.mark.parametrize("score", [10**400, -(10**400), float("inf"), float("nan"), True, "5"])
def test_scores_are_numbers_that_can_be_subtracted(jsonl, score):
    path = jsonl(
        [dict(query="q", passage="p", score=score, hard_negatives=[dict(passage="n", score=1)])]
    )
    with pytest.raises(
        ValueError, match="pairs.jsonl, line 1: found .* expected a number under 'score'"
    ):
        cl.load_pairs(f"jsonl:{path}")
    path = jsonl(
        [dict(query="q", passage="p", score=1, hard_negatives=[dict(passage="n", score=score)])]
    )
    with pytest.raises(
        ValueError, match=r"line 1, hard_negatives\[0\]: found .* expected a number under 'score'"
    ):
        cl.load_pairs(f"jsonl:{path}")


def test_an_error_looks_at_no_more_of_a_value_than_it_shows():
    class LookedAt(BaseException):
        pass

    class Last:
        def __repr__(self):
            raise LookedAt

    deep = []
    for _ in range(5000):
        deep = [deep]
    record = {
        "b": "x" * 100,
        "a": [1] * 100 + [Last()],
        **{str(n): n for n in range(100)},
        "last": Last(),
    }
    for value in (record, [record], {"key": deep}, deep, [0] * 100 + [Last()]):
        assert len(truncated_repr(value)) <= 61
    assert truncated_repr({"b": 1, "a": [None, 0.5, "x"]}) == "{'b': 1, 'a': [None, 0.5, 'x']}"
    assert truncated_repr("x" * 100) == "'" + "x" * 59 + "…"
    assert truncated_repr("x" * 58) == "'" + "x" * 58 + "'"


def test_beir_without_training_pairs_says_so(tmp_path):
    pairs = cl.load_pairs(beir(tmp_path, **{"qrels/train.tsv": None, "hard_negatives.jsonl": None}))
    assert not pairs.train and "can be searched, not trained on" in pairs.notes[0]
    with pytest.raises(ValueError, match="no pair to train on"):
        cl.Run(pairs)


def passages_of(path, content):
    """What is read of a file of this content, as (id, text, title)."""
    path.write_bytes(content.encode())
    return [(p.id, p.text, p.title) for p in read_passages(str(path))]


@pytest.mark.parametrize(
    "line, text, title",
    [
        (
            '1\t"Aaron ( or ; ""Ahärôn"") is a prophet"\tAaron',
            'Aaron ( or ; "Ahärôn") is a prophet',
            "Aaron",
        ),  # as DPR's own file
        ('1\t"God at Sinai"\t"""Heroes"" (album)"', "God at Sinai", '"Heroes" (album)'),
        (
            '1\t5" disks, and "more"\tsay ""so""',
            '5" disks, and "more"',
            'say ""so""',
        ),  # as files without quoting
        ('1\t"Hello" she said\t"A" or "B"', '"Hello" she said', '"A" or "B"'),
        ('1\t"a\ttab"\t', "a\ttab", ""),
        ('1\t""\t""""', "", '"'),
        ("1\ta\rb\u2028c\x85\x0cd\t\rT", "a\rb\u2028c\x85\x0cd", "\rT"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tsv_is_read_with_and_without_quoting(tmp_path, line, text, title, end):
    for first in ("", "id\ttext\ttitle" + end):
        rows = passages_of(tmp_path / "psgs.tsv", first + line + end + end + "2\tlast\tL")
        assert rows == [("1", text, title), ("2", "last", "L")]


def test_a_tsv_may_have_wide_fields(tmp_path):
    wide = "w" * 300_000
    assert passages_of(tmp_path / "psgs.tsv", f'1\t{wide}\t"{wide}"\n') == [("1", wide, wide)]


@pytest.mark.parametrize(
    "header, row, read",
    [
        ("id\ttitle\ttext", "1\tT\tlong text", ("1", "long text", "T")),
        ("Text\tID", "long text\t1", ("1", "long text", "")),
        ("_id\ttitle\tpassage", "1\tT\tlong text", ("1", "long text", "T")),
        ('"id"\t"title"\t"text"', "1\tT\tx", ("1", "x", "T")),
    ],
)
def test_the_columns_of_a_tsv_are_those_its_header_names(tmp_path, header, row, read):
    assert passages_of(tmp_path / "psgs.tsv", f"\ufeff{header}\n{row}\n") == [read]
    pad_and_concat = (
        f"\ufeff{header}\n{row}\n\ufeffid\ttext\ttitle\n2\ta\tb\n"  # two files, one after the other
    )
    assert passages_of(tmp_path / "psgs.tsv", pad_and_concat) == [read, ("2", "a", "b")]


@pytest.mark.parametrize(
    "content, words",
    [
        (
            'id\ttext\ttitle\n1\t"first line\nsecond line"\tT1\n',
            "line 2: found a field that begins with a quote and does not end with one",
        ),
        ('1\t"first ""line""\nof two"\tT1\n', "line 1: found a field that begins with a quote"),
        (
            '1\t"He said hello\tT1\n',
            'line 1: found a field that begins with a quote .*"He said hello',
        ),
        ('1\t"He said hello\tand "more"\n', "line 1: found a field that begins with a quote"),
        ('id\ttext\ttitle\n1\t"He said\tT1"\n', "line 2: found 2 columns .* expected 3"),
        ("1\ta\tb\n2\tc\n", "line 2: found 2 columns .* expected 3"),
        ("1\ta\tb\tc\n", "line 1: found '1.*expected an id, a text"),
        (
            "id\tcontents\n1\ta\n",
            "line 1: found .'id', 'contents'.; expected columns that are called id, text",
        ),
        ("pid\ttext\ttitle\n1\ta\tb\n", "line 1: found .'pid'.*expected columns"),
        ("id\ttext\ttext\n", "line 1: .*expected columns"),
        ("id\ttext\ttitel\n1\ta\tb\n", "line 1: found .'id', 'text', 'titel'.; expected columns"),
        ("1\ta\r2\tb\r", "line 1: found lines that end in a carriage return alone"),
    ],
)
def test_a_tsv_that_cannot_be_told_is_an_error(tmp_path, content, words):
    with pytest.raises(ValueError, match=words) as error:
        passages_of(tmp_path / "psgs.tsv", content)
    assert str(tmp_path / "psgs.tsv") in str(error.value)


GOOD_LINE = json.dumps(dict(query="q", passage="p"))
TRUNCATED = gzip.compress(json.dumps([question(n) for n in range(200)]).encode())[:-40]


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "found an empty file"),
        (b"{}", "expected a JSON list"),
        (b"nonsense", r"starts with 'nonsense'"),
        (b'[{"question": "q"', "JSON that cannot be read"),
        (b"[3]", "record 0: found 3; expected an object"),
        (
            json.dumps(
                [question(0), {k: v for k, v in question(1).items() if k != "question"}]
            ).encode(),
            r"record 1: found no key 'question'",
        ),
        (
            json.dumps([{k: v for k, v in question(1).items() if k != "positive_ctxs"}]).encode(),
            "no key 'positive_ctxs'",
        ),
        (
            json.dumps([question(0, question=7)]).encode(),
            "found 7; expected a text under 'question'",
        ),
        (json.dumps([question(0, answers="a")]).encode(), "a list of texts under 'answers'"),
        (
            json.dumps([question(0, positive_ctxs=["x"])]).encode(),
            "a list of objects under 'positive_ctxs'",
        ),
        (
            json.dumps([question(0, positive_ctxs=[{"title": "t"}])]).encode(),
            r"record 0, positive_ctxs\[0\]: found no key 'text'",
        ),
        (json.dumps([question(0, question="  ")]).encode(), "that is not empty"),
        (b"[]", "found no pair"),
        (json.dumps([question(0, positive_ctxs=[])]).encode(), "found no pair"),
        (json.dumps([question(0, question="half \ud800")]).encode(), "half of a surrogate pair"),
        (
            json.dumps([question(0), question(1)]).encode()[:-1],
            "record 2: found JSON that cannot be read .it breaks off",
        ),
        (json.dumps([question(0)]).encode()[:-1] + b" 7]", "no comma before"),
        (b'[{"question": tru}, ' + b" " * 99, "record 0: found JSON"),
        (b'[{"question": "\xff"}]', "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
    ],
)
def test_bad_dpr_files(tmp_path, content, words):
    with pytest.raises(ValueError, match=words) as error:
        cl.load_pairs(write_dpr(tmp_path, content))
    assert "dpr.json" in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "after, sign",
    [
        (json.dumps([question(3)]).encode(), "'[{"),
        (b"x", "'x'"),
        (b"\n \t]", "']'"),
        (b"\xef\xbb\xbf[]", "ufeff"),
        (b"\0", "x00"),
    ],
)
@pytest.mark.parametrize("name", ["dpr.json", "dpr.json.gz"])
@pytest.mark.parametrize("chunk", [7, CHUNK_BYTES])
def test_what_follows_the_list_is_not_lost(tmp_path, monkeypatch, after, sign, name, chunk):
    """Files that were put one after another: their first list alone would be other data."""
    monkeypatch.setattr("contaccum_lite.data.records.CHUNK_BYTES", chunk)
    records = json.dumps([question(n) for n in range(3)]).encode() + b" \n"
    assert len(cl.load_pairs(write_dpr(tmp_path, records, name)).passages) == 7
    with pytest.raises(
        ValueError, match=f"{name}, record 3: found .*after the end of the list; expected one list"
    ) as error:
        cl.load_pairs(write_dpr(tmp_path, records + after, name))
    assert sign in str(error.value)
    cut = gzip.compress(records + b" " * 5000)[:-6]
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(cut)
        with pytest.raises(ValueError, match="breaks off"):
            cl.load_pairs(f"dpr:{tmp_path / name}")


def test_gzip_files_put_one_after_another_are_one_text(jsonl):
    lines = [json.dumps(dict(query=f"q {n}", passage=f"p {n}")).encode() + b"\n" for n in range(10)]
    path = jsonl([], "pairs.jsonl.gz")
    path.write_bytes(b"".join(map(gzip.compress, lines)))
    assert len(cl.load_pairs(f"jsonl:{path}").passages) == 10
    path.write_bytes(b"".join(map(gzip.compress, lines)) + b"garbage")
    with pytest.raises(ValueError, match="bytes that are not gzip"):
        cl.load_pairs(f"jsonl:{path}")


def test_a_key_twice_in_one_object_is_refused(tmp_path):
    """Python's reader would take the last of its values."""
    twice = '{"query": "q", "passage": "p", "passage": "another"}'
    (tmp_path / "pairs.jsonl").write_text(GOOD_LINE + "\n" + twice)
    with pytest.raises(ValueError, match="line 2: found the key 'passage' twice in one object"):
        cl.load_pairs(f"jsonl:{tmp_path / 'pairs.jsonl'}")
    with pytest.raises(ValueError, match="record 1: .*the key 'question' twice in one object"):
        cl.load_pairs(
            write_dpr(
                tmp_path,
                (json.dumps([question(0)])[:-1] + ', {"question": "a", "question": "b"}]').encode(),
            )
        )


def test_a_list_of_numbers_is_cut_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr("contaccum_lite.data.records.CHUNK_BYTES", 3)
    (tmp_path / "list.json").write_text("[12345, -1.5e10, true, 1234567]")
    assert list(iter_json_array(tmp_path / "list.json")) == [12345, -1.5e10, True, 1234567]
    (tmp_path / "list.json").write_text("[" + "9" * 6000 + "]")
    with pytest.raises(ValueError, match="list.json, record 0: found .*too many digits"):
        list(iter_json_array(tmp_path / "list.json"))


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "found an empty file"),
        (b"\n\n", "found no pair"),
        (GOOD_LINE.encode() + b"\n{", "line 2: found .* one JSON object"),
        (b"[]\n", r"line 1: found \[\]; expected an object"),
        (b'{"query": "q"}', "line 1: found no key 'passage'"),
        (b'{"query": "q", "passage": 3}', "found 3; expected a text under 'passage'"),
        (b'{"query": "", "passage": "p"}', "not empty"),
        (
            GOOD_LINE.encode() + b'\n{"query": "\xff"}',
            "line 2: found the byte 0xff, which is not UTF-8",
        ),
        (
            b'{"query": "q", "passage": "p", "hard_negatives": "x"}',
            "a list of texts or objects under 'hard_negatives'",
        ),
        (
            b'{"query": "q", "passage": "p", "hard_negatives": [{"text": "x"}]}',
            r"hard_negatives\[0\]: found no key 'passage'",
        ),
        (b'{"query": "q", "passage": "p", "score": "high"}', "a number under 'score'"),
        (b'{"query": "q", "passage": "p", "id": []}', "as id"),
        (
            b'{"query": "q", "passage": "p", "id": 1}\n{"query": "r", "passage": "s", "id": "1"}',
            "line 2: found the id '1', which pairs.jsonl, line 1 has too",
        ),
        (b'{"query": "\\ud800", "passage": "p"}', "half of a surrogate pair"),
        (b"[" * 100_000, "line 1: found"),
        (b'{"query": "q", "passage": "p", "id": ' + b"9" * 6000 + b"}", "line 1: found"),
    ],
)
def test_bad_jsonl_files(tmp_path, content, words):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        cl.load_pairs(f"jsonl:{path}")
    assert "pairs.jsonl" in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "change, words",
    [
        ({"corpus.jsonl": None}, "found no corpus.jsonl"),
        ({"queries.jsonl": None}, "found no queries.jsonl"),
        ({"qrels/train.tsv": None, "qrels/test.tsv": None}, "at least one of them"),
        ({"corpus.jsonl": ""}, "empty file"),
        ({"corpus.jsonl": '{"_id": "a"}\n'}, "line 1: found no key 'text'"),
        (
            {"corpus.jsonl": '{"_id": "a", "text": "x"}\n' * 2},
            "line 2: found the _id 'a', which an earlier line has too",
        ),
        ({"qrels/train.tsv": "q0\td0\n"}, "three columns"),
        ({"qrels/train.tsv": "q0\td0\thigh\n"}, "found the score 'high'"),
        (
            {"qrels/train.tsv": "q0\td99\t1\n"},
            "line 1: found the id 'd99', which is not in corpus.jsonl",
        ),
        (
            {"qrels/test.tsv": "query-id\tcorpus-id\tscore\nq9\td0\t1\n"},
            "line 2: found the id 'q9', which is not in queries.jsonl",
        ),
        (
            {"queries.jsonl": '{"_id": "q0", "text": "x"}\n{"_id": "q0", "text": "y"}\n'},
            "queries.jsonl, line 2: found the _id 'q0', which an earlier line has too",
        ),
        (
            {"qrels/train.tsv": "q0\td0\t1\nq0\td0\t1\nq0\td0\t0\n"},
            "line 3: found the score 0 for 'q0' and 'd0', which have the score 1",
        ),
        ({"qrels/train.tsv": "q0\td0\t" + "9" * 400}, "line 1: found the score '9999"),
        ({"qrels/train.tsv": "q0\td0\t1_0"}, "the score '1_0'"),
        (
            {"qrels/train.tsv": "query-id\tcorpus-id\tgrade\n"},
            "line 1: found .*expected the columns query-id, corpus-id, score",
        ),
        ({"qrels/train.tsv": 'q0\t"d0\t1\n'}, "line 1: found a field that begins with a quote"),
        (
            {"hard_negatives.jsonl": '{"qid": "q0", "neg": ["d7"]}\n{"qid": "q0", "neg": ["d8"]}'},
            "line 2: found the qid 'q0', which an earlier line has too",
        ),
        ({"hard_negatives.jsonl": '{"neg": []}'}, "no key 'qid'"),
        (
            {"hard_negatives.jsonl": '{"qid": "q0", "neg": [' + "[" * 900 + "]" * 900 + "]}"},
            "a list of passage ids",
        ),
        (
            {
                "hard_negatives.jsonl": '{"qid": "q0", "neg": ["d7"], "scores": {"d0": 1, "d7": NaN}}'
            },
            "scores as",
        ),
        (
            {"hard_negatives.jsonl": '{"qid": "q0", "neg": ["d99"]}'},
            "the negative 'd99', which is not in corpus.jsonl",
        ),
        (
            {"hard_negatives.jsonl": '{"qid": "x", "neg": []}'},
            "the qid 'x', which is not in queries.jsonl",
        ),
        ({"hard_negatives.jsonl": '{"qid": "q0", "neg": 3}'}, "a list of passage ids"),
        ({"hard_negatives.jsonl": '{"qid": "q0", "neg": [], "scores": {"d0": "x"}}'}, "scores as"),
    ],
)
def test_bad_beir_folders(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        cl.load_pairs(beir(tmp_path, **change))


@pytest.mark.parametrize(
    "content, words",
    [
        (TRUNCATED, "breaks off"),
        (b"not gzip at all", "bytes that are not gzip"),
        (b"", "empty file"),
    ],
)
def test_bad_gzip_files(tmp_path, content, words):
    for kind, name in (("dpr", "x.json.gz"), ("jsonl", "x.jsonl.gz")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=words):
            cl.load_pairs(f"{kind}:{tmp_path / name}")


def test_sources_that_are_not_there(tmp_path):
    for source, words in (
        ("nowhere", "no pairs called 'nowhere'"),
        ("dpr:", "names no file"),
        ("xyz:a", "no pairs called"),
        ("toys:", "no pairs called"),
        (f"dpr:{tmp_path}/a.json", "no such file"),
        (f"jsonl:{tmp_path}", "found a folder"),
        (f"beir:{tmp_path}", "found no corpus.jsonl"),
    ):
        with pytest.raises(ValueError, match=words):
            cl.load_pairs(source)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "question",
                    "answers",
                    "positive_ctxs",
                    "hard_negative_ctxs",
                    "text",
                    "title",
                    "query",
                    "passage",
                    "id",
                    "_id",
                    "hard_negatives",
                    "score",
                    "ce_score",
                    "qid",
                    "neg",
                    "scores",
                    "bm25",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(JSON, max_size=4).map(lambda v: json.dumps(v).encode()),
        st.lists(JSON, max_size=4).map(lambda v: "\n".join(map(json.dumps, v)).encode()),
        st.binary(max_size=40).map(gzip.compress),
    ),
    st.sampled_from(["", ".gz"]),
    st.integers(0, 30),
)
@example(b'{"query": "a", "passage": "b"}', "", 0)
@example(gzip.compress(b'{"query": "a", "passage": "b"}'), ".gz", 0)
@example(b'[{"question": "a", "positive_ctxs": [{"title": "", "text": "b"}]}]', "", 0)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_give_pairs_or_a_value_error(tmp_path, content, packed, cut):
    for kind in ("dpr", "jsonl"):
        path = tmp_path / f"fuzz{packed}"
        path.write_bytes(content[:-cut] if cut > 20 else content)
        try:
            pairs = cl.load_pairs(f"{kind}:{path}")
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert pairs.train


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "corpus.jsonl",
                "queries.jsonl",
                "qrels/train.tsv",
                "qrels/test.tsv",
                "hard_negatives.jsonl",
            ]
        ),
        st.one_of(
            st.binary(max_size=40),
            st.lists(JSON, max_size=2).map(lambda v: "\n".join(map(json.dumps, v)).encode()),
            st.text(alphabet="q0d1\t\n-", max_size=20).map(str.encode),
        ),
        max_size=2,
    )
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_beir_folder_gives_pairs_or_a_value_error(tmp_path, change):
    try:
        cl.load_pairs(beir(tmp_path, **change))
    except ValueError as error:
        assert str(tmp_path) in str(error)


@given(st.lists(JSON, max_size=6), st.integers(1, 40))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_list_is_read_the_same_in_any_pieces(tmp_path, items, chunk):
    (tmp_path / "list.json").write_text(json.dumps(items, indent=1) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("contaccum_lite.data.records.CHUNK_BYTES", chunk)
        assert json.dumps(list(iter_json_array(tmp_path / "list.json"))) == json.dumps(items)


def test_large_files_are_streamed(tmp_path):
    """40 MB of DPR records whose passages are all the same.

    What is held is far less than the file.
    """
    import tracemalloc

    text = "the same long passage " * 400
    with open(tmp_path / "big.json", "w") as file:
        file.write(
            "["
            + ",".join(
                json.dumps(
                    question(
                        n,
                        positive_ctxs=[context(text)],
                        hard_negative_ctxs=[],
                        negative_ctxs=[context(text)] * 3,
                    )
                )
                for n in range(1200)
            )
            + "]"
        )
    size = (tmp_path / "big.json").stat().st_size
    tracemalloc.start()
    pairs = cl.load_pairs(f"dpr:{tmp_path / 'big.json'}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 40e6
    assert peak < size / 5
    assert len(pairs.passages) == 1

"""Search and measures against an independent library (pytrec_eval) and by hand."""

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings, strategies as st

import contaccum_lite as cl
from contaccum_lite.scale.index import build
from contaccum_lite.utils.text import acts, one_line, plain
from contaccum_lite.core.metrics import answer_metrics, has_answer, exact_search, retrieval_metrics


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(3, 150))
@settings(max_examples=60, deadline=None)
def test_measures_equal_trec_eval(seed, queries, passages):
    draw = np.random.default_rng(seed)
    rows = np.stack([draw.permutation(passages)[:100] for _ in range(queries)])
    relevant = [
        {
            int(r): int(draw.integers(1, 4))
            for r in draw.choice(passages, draw.integers(1, min(8, passages)), replace=False)
        }
        for _ in range(queries)
    ]
    ours = retrieval_metrics(rows, relevant)
    qrels = {str(q): {str(r): g for r, g in wanted.items()} for q, wanted in enumerate(relevant)}
    found = {
        str(q): {str(r): float(1000 - place) for place, r in enumerate(ranking)}
        for q, ranking in enumerate(rows)
    }
    names = {"ndcg_cut_10", "recall_100", "success_1", "success_5", "success_20", "success_100"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, names | {"recip_rank"}).evaluate(found)
    mean = {name: np.mean([t[name] for t in theirs.values()]) for name in names}
    assert np.isclose(ours["ndcg@10"], mean["ndcg_cut_10"])
    assert np.isclose(ours["recall@100"], mean["recall_100"])
    for k in (1, 5, 20, 100):
        if f"success_{k}" in mean:
            assert np.isclose(ours[f"top@{k}"], mean[f"success_{k}"])
    reciprocal = [
        t["recip_rank"] if t["recip_rank"] >= 0.1 else 0 for t in theirs.values()
    ]  # cut at 10
    assert np.isclose(ours["mrr@10"], np.mean(reciprocal))


def test_measures_by_hand():
    rows = np.array([[4, 2, 7], [1, 0, 3]])
    measures = retrieval_metrics(rows, [{7: 1}, {9: 1}])
    assert measures["top@1"] == 0
    assert measures["top@5"] == 0.5
    assert measures["mrr@10"] == pytest.approx(1 / 6)


def test_rank_is_exact():
    draw = np.random.default_rng(0)
    q, p = draw.normal(size=(7, 12)), draw.normal(size=(300, 12))
    scores, rows = exact_search(q, p, 20)
    expected = np.argsort(-(q.astype("f4") @ p.astype("f4").T), axis=1)[:, :20]
    assert (rows == expected).all()
    assert np.allclose(scores, np.take_along_axis(q @ p.T, expected, 1), atol=1e-4)
    assert exact_search(q, p[:3], 20)[1].shape == (7, 3)


@pytest.mark.parametrize(
    "answers, text, expected",
    [
        (["Paris"], "The capital is paris.", True),
        (["Paris"], "a comparison", False),  # whole words
        (["new york"], "in New  York City", True),
        (["new york"], "new jersey, york", False),
        (["Zürich"], "Zu\u0308rich is a city", True),
        (["1.5"], "about 1.5 km", True),
        ([""], "anything", False),
        ([], "anything", False),
        (["absent", "present"], "it is present", True),
    ],
)
def test_has_answer_is_dprs(answers, text, expected):
    assert has_answer(answers, text) is expected


def test_answer_measures():
    texts = ["nothing", "the answer is blue", "red", "blue again"]
    rows = np.array([[0, 2, 1, 3], [2, 0, 1, 3]])
    assert answer_metrics(rows, [["blue"], ["red", "green"]], texts.__getitem__) == {
        "answer_top@1": 0.5,
        "answer_top@5": 1.0,
        "answer_top@20": 1.0,
        "answer_top@100": 1.0,
    }


def test_no_queries():
    with pytest.raises(ValueError, match="no test queries"):
        retrieval_metrics(np.zeros((0, 3)), [])


# --- text -----------------------------------------------------------------------------------------


@given(
    st.text(
        st.one_of(
            st.characters(),
            st.sampled_from(
                "\t\n\r\x85\x9b\u061c\u200b\u200e\u200f\u2028\u2029\u202e\u2066\ufeff\U000e0041\ud800\x1b["
            ),
        )
    )
)
@settings(max_examples=300, deadline=None)
def test_nothing_of_a_text_acts_on_a_terminal(text):
    assert not any(map(acts, plain(text))) and not any(map(acts, one_line(text)))
    assert len(one_line(text).splitlines()) <= 1


def test_what_a_reader_needs_is_shown():
    for text in (
        "Zürich → 山\tx\ny",
        "می\u200cخواهم",
        "👩\u200d💻",
        "e\u0301",
        "\ue0a0",
        "a\u00a0b",
    ):
        assert plain(text) == text
    assert plain("one\u2028two\u2029three") == "one\ntwo\nthree"
    assert one_line("one\u2028two\n three") == "one two three"
    assert plain("\x1b[31mred\x1b[0m \u200fabc\u061c \ud800 \U000e0041tag") == "red abc \ufffd tag"


def test_a_query_is_a_text(toy, tmp_path):
    run = cl.Run(
        toy, dim=8, local_batch=4, accumulation_steps=1, memory_size=8, updates=1, warmup=0
    )
    run.save(tmp_path / "run")
    index = build(tmp_path / "run", toy.passages, tmp_path / "index")
    for query, words in (
        (3, "the query is 3: it must be a text"),
        (" ", "it must be a text"),
        ("caf\udce9", r"'\\udce9' is no character: write it in UTF-8"),
        ("\ud800" * 10_000, "is no character"),
    ):
        for search in (run.search, index.search):
            with pytest.raises(ValueError, match=words) as error:
                search(query)
            assert len(str(error.value)) < 400
    with pytest.raises(ValueError, match="k is 0: it must be 1 or more"):
        run.search("words", 0)


def test_the_search_box_says_what_is_wrong_with_a_query(toy):
    run = cl.Run(
        toy, dim=8, local_batch=4, accumulation_steps=1, memory_size=8, updates=1, warmup=0
    )
    box = cl.SearchBox({"run": run}, query=toy.test[0].query)
    box.box.value = "caf\ud800"
    assert "is no character" in box.found.value
    assert "alert" in box.found.value
    assert not box.hits
    box.box.value = toy.test[1].query
    assert "toy." in box.found.value and box.hits["run"]


def test_a_name_of_a_file_is_a_text():
    with pytest.raises(ValueError, match=r"'\\udce9' is no character: rename the file in UTF-8"):
        cl.load_pairs("jsonl:caf\udce9.jsonl")
    pairs = cl.data.Pairs(
        "jsonl:\x1b[2Jx\u202e.jsonl",
        cl.load_pairs("toy").train[:8],
        [],
        cl.load_pairs("toy").passages,
    )
    assert not any(
        map(
            acts,
            repr(
                cl.Run(
                    pairs,
                    dim=8,
                    local_batch=4,
                    accumulation_steps=1,
                    memory_size=8,
                    updates=1,
                    warmup=0,
                )
            ),
        )
    )

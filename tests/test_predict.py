"""Predictions commit, stay, and come back."""

import json

import pytest

import contaccum_lite as cl
from contaccum_lite import predict


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(predict, "_answers", {})


def make(**more):
    return cl.Predict("x.1", "How many <b>negatives</b>?", options=["7", "127"], truth="7", reply={"127": "The commonest belief.", "7": "Right."}, **more)


def test_an_answer_stands_once_committed():
    question = make()
    question.commit()
    assert "Choose first" in question.said.value and not question.committed
    question.field.value = "127"
    question.button.click()
    assert question.committed and question.sentence == "You said “127”; it is “7”. The commonest belief."
    assert question.field.disabled and question.button.disabled and "The commonest belief." in question.said.value
    question.commit("7")
    assert question.sentence.startswith("You said “127”")
    assert "<b>negatives" not in question.widget.children[0].value and "&lt;b&gt;" in question.widget.children[0].value


def test_what_comes_next_is_hidden_until_then(toy):
    lab = cl.Lab(toy, dim=8)
    question = make(then=lab)
    assert question.below.children == ()
    question.commit("7")
    assert question.below.children == (lab.views.widget,) and question.said.value.startswith("<p role='status'>✓")


def test_a_number_leaves_a_mark():
    question = cl.Predict("x.2", "How much?", number=(0, 10), truth=lambda: 4.0, reply=lambda yours, truth: f"off by {abs(yours - truth):.1f}.")
    question.commit(6.5)
    assert question.sentence == "You said “6.5”; it is “4”. off by 2.5." and "left:65.0%" in question.said.value and "left:40.0%" in question.said.value


def test_a_curve_stays_beside_what_it_was():
    question = cl.Predict("x.3", "Draw", curve=dict(x=[0.0, 1.0], y=[0.0, 2.0]), truth=lambda: [(0, 1), (1, 2)], reply=lambda yours, truth: f"{len(yours)} points.")
    question.commit()
    assert "Choose first" in question.said.value
    question.field.points = [[0.0, 0.5], [1.0, 1.5]]
    question.commit()
    assert question.field.locked and question.field.truth == [[0.0, 1.0], [1.0, 2.0]] and question.sentence.endswith("2 points.")


def test_answers_are_a_line_that_brings_them_back(monkeypatch):
    make().commit("127")
    line = cl.answers()
    assert json.loads(line) == {"x.1": "127"}
    monkeypatch.setattr(predict, "_answers", {})
    assert not make().committed
    cl.answers(line)
    assert make().sentence.startswith("You said “127”") and make().field.value == "127"
    for bad in ("", "[1]", "{'a': 1}", "no"):
        with pytest.raises(ValueError, match="the line that answers"):
            cl.answers(bad)


def test_without_a_front_end_it_asks_in_words():
    assert make()._repr_mimebundle_()["text/plain"].startswith("Predict: How many")
    with pytest.raises(ValueError, match="give one of options, number and curve"):
        cl.Predict("x", "?", options=["a"], number=(0, 1))

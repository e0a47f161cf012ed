"""Predictions commit, stay, and come back."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.course import predict
from contaccum_lite.lab.widget import close_widget


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(predict, "_answers", {})


def make(**more):
    return cl.Predict(
        "x.1",
        "How many <b>negatives</b>?",
        options=["7", "127"],
        truth="7",
        reply={"127": "The commonest belief.", "7": "Right."},
        **more,
    )


def test_an_answer_stands_once_committed():
    question = make()
    question.commit()
    assert "Choose first" in question.said.value and not question.committed
    question.field.value = "127"
    question.button.click()
    assert question.committed
    assert question.sentence == "You said “127”; it is “7”. The commonest belief."
    assert question.field.disabled
    assert question.button.disabled
    assert "The commonest belief." in question.said.value
    question.commit("7")
    assert question.sentence.startswith("You said “127”")
    assert "<b>negatives" not in question.widget.children[0].value
    assert "&lt;b&gt;" in question.widget.children[0].value


def test_what_comes_next_is_hidden_until_then(toy):
    lab = cl.Lab(toy, dim=8)
    question = make(then=lab)
    assert question.below.children == ()
    question.commit("7")
    assert question.below.children == (lab.views.widget,)
    assert question.said.value.startswith("<p role='status'>✓")


def test_a_number_leaves_a_mark():
    question = cl.Predict(
        "x.2",
        "How much?",
        number=(0, 10),
        truth=lambda: 4.0,
        reply=lambda yours, truth: f"off by {abs(yours - truth):.1f}.",
    )
    question.commit(6.5)
    assert question.sentence == "You said “6.5”; it is “4”. off by 2.5."
    assert "left:65.0%" in question.said.value
    assert "left:40.0%" in question.said.value


def test_a_curve_stays_beside_what_it_was():
    question = cl.Predict(
        "x.3",
        "Draw",
        curve=dict(x=[0.0, 1.0], y=[0.0, 2.0]),
        truth=lambda: [(0, 1), (1, 2)],
        reply=lambda yours, truth: f"{len(yours)} points.",
    )
    question.commit()
    assert "Choose first" in question.said.value
    question.field.points = [[0.0, 0.5], [1.0, 1.5]]
    question.commit()
    assert question.field.locked
    assert question.field.truth == [[0.0, 1.0], [1.0, 2.0]]
    assert question.sentence.endswith("2 points.")


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


# --- what does not fit, and what raises ----------------------------------------------------------

CURVE = dict(x=[0.0, 1.0], y=[0.0, 2.0])
FIELDS = dict(options=["7", "127"], number=(0, 10), curve=CURVE)
FITTING = dict(options="7", number=4.5, curve=[[0.0, 0.5], [1.0, 1.5]])


def locked(question):
    return (
        question.field.locked
        if isinstance(question.field, predict.Sketch)
        else question.field.disabled
    )


def failing(error):
    def fails(*_):
        raise error

    return fails


@pytest.mark.parametrize("reply", [None, {}, {"7": "Right."}])
@pytest.mark.parametrize("kind", FIELDS)
def test_every_kind_of_answer_commits_with_every_kind_of_reply(kind, reply):
    question = cl.Predict("x", "?", **{kind: FIELDS[kind]}, reply=reply)
    question.commit(FITTING[kind])
    assert question.committed and question.said.value.startswith("<p role='status'>")
    again = cl.Predict("x", "?", **{kind: FIELDS[kind]}, reply=reply)
    assert again.sentence == question.sentence and locked(again)
    assert again.value == FITTING[kind]


STALE = [
    "8",
    7,
    None,
    True,
    [],
    {},
    1e308,
    -0.1,
    10.1,
    math.nan,
    math.inf,
    10**400,
    "4.5",
    [[0, 1, 2]],
    [[0, "1"]],
    [[0, math.nan]],
    [0, 1],
    [[]],
    "\ud800",
    [[True, 0.5]],
]


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("value", STALE, ids=lambda value: f"{value!r:.12}")
def test_an_earlier_answer_that_does_not_fit_is_forgotten_in_a_sentence(kind, value):
    if kind == "number" and value == 7 and value is not True:
        value = 7.0
    cl.answers(json.dumps({"x": value, "other": "A"}))
    question = cl.Predict("x", "?", **{kind: FIELDS[kind]}, reply=lambda *_: "reply")
    if kind == "number" and value == 7.0:
        assert question.committed
        return
    assert not question.committed and "Your earlier answer does not fit" in question.said.value
    assert question.said.value.encode() and json.loads(cl.answers()) == {"other": "A"}
    assert not question.button.disabled and not locked(question)
    before = question.value
    question.commit(value)  # as little as by hand
    if value is None:  # which asks for what is chosen
        assert not question.committed
    else:
        assert not question.committed and "role='alert'" in question.said.value
        assert question.value == before
        question.commit(FITTING[kind])
        assert question.committed and "reply" in question.sentence


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("of", ["truth", "reply"])
@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("<b>division</b>"), SystemExit(1), MemoryError()],
    ids=lambda e: type(e).__name__,
)
def test_a_function_that_raises_leaves_the_answer_and_can_be_tried_again(kind, of, error):
    broken = [True]

    def fails_once(*_):
        if broken:
            raise error
        return [[0.0, 1.0]] if kind == "curve" and of == "truth" else "all is well."

    ask = lambda: cl.Predict("x", "?", **{kind: FIELDS[kind]}, **{of: fails_once})
    question = ask()
    question.commit(FITTING[kind])
    for each in (question, ask()):  # also when the cell is run again
        assert each.committed and predict._answers == {"x": FITTING[kind]}
        assert type(error).__name__ in each.sentence and "<b>" not in each.said.value
        assert locked(each) and not each.button.disabled
        assert each.button.description == "Try again"
        assert each._repr_mimebundle_()["text/plain"] == each.sentence
        each.commit("7")
        assert each.button.description == "Try again"
    broken.clear()
    question.button.click()
    assert question.button.disabled
    assert question.said.value.startswith("<p role='status'>")
    said = {"options": "You said “7”", "number": "You said “4.5”", "curve": "Your curve"}
    assert question.sentence.startswith(said[kind])
    if of == "reply" or kind != "curve":  # a curve's truth is drawn, not said
        assert "all is well." in question.sentence


@pytest.mark.parametrize("kind", FIELDS)
def test_an_answer_that_is_brought_to_a_cell_that_asks_already_stands(kind):
    question = cl.Predict("x", "?", **{kind: FIELDS[kind]}, truth=lambda: FITTING[kind])
    cl.answers(json.dumps({"x": FITTING[kind]}))
    question.commit([[0.0, 0.0]] if kind == "curve" else "127" if kind == "options" else 1.0)
    assert question.value == FITTING[kind] == predict._answers["x"] and locked(question)


@pytest.mark.parametrize("kind", FIELDS)
def test_an_answer_that_is_brought_and_does_not_fit_is_said(kind):
    cl.answers('{"y": "no more"}')
    other = cl.Predict("z", "?", **{kind: FIELDS[kind]})
    cl.answers('{"z": "no more"}')
    other.button.click()
    assert "Your earlier answer does not fit" in other.said.value and not other.committed


def test_an_interrupted_truth_can_be_tried_again():
    errors = [KeyboardInterrupt()]
    question = cl.Predict(
        "x", "?", options=["a", "b"], truth=lambda: failing(errors.pop())() if errors else "a"
    )
    with pytest.raises(KeyboardInterrupt):
        question.commit("a")
    assert question.committed and question.button.description == "Try again"
    question.button.click()
    assert question.sentence == "You said “a”, and so it is."


def test_what_comes_next_is_shown_although_the_reply_failed(toy):
    import ipywidgets

    button = ipywidgets.Button()
    question = cl.Predict("x", "?", options=["a"], truth=failing(KeyError("k")), then=button)
    question.commit("a")
    assert question.below.children == (button,)
    assert (
        question._repr_mimebundle_()["text/plain"] == question.sentence
    )  # a button has no picture


def test_what_comes_next_and_cannot_be_shown_is_said():
    other = cl.Predict("y", "?", options=["a"], then="no widget")
    other.commit("a")
    assert "What comes next cannot be shown" in other.said.value and other.committed


@pytest.mark.parametrize(
    "truth",
    [np.array([[0.0, 1.0], [1.0, 2.0]]), torch.ones(2, 2), [], None, [[0.5, math.nan], [1.0, 2.0]]],
    ids=lambda t: type(t).__name__,
)
def test_a_curves_truth_may_be_an_array(truth):
    question = cl.Predict("x", "?", curve=CURVE, truth=lambda: truth)
    question.commit(FITTING["curve"])
    points = [] if truth is None else [list(map(float, point)) for point in truth]
    assert question.field.truth == [p for p in points if p[0] == p[0] and p[1] == p[1]]
    assert question._shown


def test_a_question_that_cannot_be_asked_is_refused_in_a_sentence():
    for fields in (
        dict(options=[]),
        dict(options=5),
        dict(number=5),
        dict(number=(1, 1)),
        dict(number=(0, math.nan)),
        dict(number=("a", "b")),
        dict(curve=5),
        dict(number=(0, 10**400)),
        dict(curve=dict(x=3)),
    ):
        with pytest.raises(ValueError, match="^prediction x: "):
            cl.Predict("x", "?", **fields)
    with pytest.raises(ValueError, match="a prediction's name is"):
        cl.Predict(["x"], "?", options=["a"])


@pytest.mark.parametrize(
    "line",
    [
        5,
        b"x",
        ["{}"],
        "[" * 100_000,
        '{"a": ' * 5000,
        "null",
        '{"x": ' + "9" * 5000 + "}",
        "\ud800",
    ],
)
def test_a_line_of_no_answers_changes_nothing(line):
    cl.answers('{"x": "7"}')
    with pytest.raises(
        ValueError, match="holds no predictions: expected the line that answers"
    ) as refusal:
        cl.answers(line)
    assert cl.answers() == '{"x": "7"}' and len(str(refusal.value)) < 300


def test_an_answer_that_is_no_json_still_gives_a_line():
    for number, option in enumerate([("one", np.int64(1)), ("half", "\ud800"), ("both", (1, 2))]):
        cl.Predict(f"x{number}", "?", options=[option]).commit(option[1])
    assert json.loads(cl.answers()) == {"x0": "1", "x1": "\ud800", "x2": [1, 2]}
    assert cl.answers().encode()


# --- drawn questions -----------------------------------------------------------------------------


class Unequal:
    def __eq__(self, other):
        raise RuntimeError("not to be compared")


def test_two_thousand_drawn_questions_are_answered_in_sentences(monkeypatch):
    """Never an exception, never a tick for a wrong answer; what stands is what fits."""
    draw, counts = random.Random(7), Counter()
    odd = [
        None,
        7,
        "7",
        4.5,
        True,
        math.nan,
        10**400,
        [],
        [[0.0, 1.0]],
        {"a": 1},
        Unequal(),
        torch.ones(3),
        torch.ones(()),
        np.float32(4.5),
        np.zeros(2),
        "\ud800<b>",
        object,
        print,
        b"7",
        1j,
    ]
    errors = [
        ZeroDivisionError("x"),
        SystemExit(),
        RecursionError(),
        StopIteration(1),
        GeneratorExit(),
        KeyError("k"),
        ValueError("\ud800\n<b>"),
    ]

    def itself(*_):
        return itself

    def function(values):
        value, error = draw.choice(values), draw.choice(errors)
        return draw.choice(
            [lambda *_: value, failing(error), itself, lambda *_: (x for x in [value])]
        )

    for turn in range(2000):
        monkeypatch.setattr(predict, "_answers", {})
        kind = draw.choice(list(FIELDS))
        stored, value = (
            draw.choice([FITTING[kind], *STALE]),
            draw.choice([None, FITTING[kind], *STALE, *odd]),
        )
        truth = draw.choice([None, FITTING[kind], *odd, function([FITTING[kind], *odd])])
        reply = draw.choice([None, {}, {"7": "seven"}, function(["reply", *odd])])
        if draw.random() < 0.5:
            cl.answers(json.dumps({"x": stored}))
        question = cl.Predict("x", "? <b>", **{kind: FIELDS[kind]}, truth=truth, reply=reply)
        before = predict._answers.get("x")
        question.commit(value)
        question.button.click()
        question.commit(FITTING[kind])
        assert question.committed and (before is None or predict._answers["x"] == before)
        answer = predict._answers["x"]
        if kind == "options":
            assert answer in FIELDS["options"]
        elif kind == "number":
            assert isinstance(answer, float) and 0 <= answer <= 10
        else:
            assert all(len(point) == 2 and all(map(math.isfinite, point)) for point in answer)
        said = question.said.value
        assert said.encode()
        assert "<b>" not in said
        assert "Traceback" not in said
        assert json.loads(cl.answers()) == {"x": answer}
        ticked = said.startswith("<p role='status'>✓")
        known = question._truth
        comparable = type(known) in (str, int, float, bool, np.float32) and kind != "curve"
        is_right = comparable and bool(known == answer)
        assert ticked == (question._shown and is_right), (turn, said)
        assert question._shown != ("the reply to it failed" in question.sentence)
        counts[ticked, question._shown] += 1
        if turn % 20 == 0:
            assert question._repr_mimebundle_()["text/plain"] == question.sentence
        close_widget(question.widget)
    assert len(counts) == 3 and min(counts.values()) > 20

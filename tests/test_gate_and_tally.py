"""Results that wait for a prediction, and a class's answers as bars."""

import base64
import subprocess
import sys

import ipywidgets as w
import pytest

import contaccum_lite as cl
from IPython.display import Markdown
from contaccum_lite.course import predict

VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(autouse=True)
def nothing_asked_yet(monkeypatch):
    for name, empty in (("_answers", {}), ("_asked", set()), ("_waiting", {})):
        monkeypatch.setattr(predict, name, empty)


def ask(name="01.a", **more):
    return cl.Predict(name, "which?", options=["a", "b"], truth="a", **more)


PICTURE = lambda: cl.LinesPicture({"a": ([0, 1], [0, 1])}, "lines", "x", "y")


# --- the gate -------------------------------------------------------------------------------------


def test_a_result_waits_for_its_prediction():
    question, result = ask(), w.IntText(3)
    gate = cl.Gate("01.a", result)
    assert not gate.open
    assert "Commit your prediction above (01.a) first" in gate.widget.children[0].value
    question.commit()  # nothing is chosen
    assert not gate.open
    question.commit("b")
    assert gate.open and gate.widget.children == (result,)
    assert cl.Gate("01.a", result).open  # the cell is run again


def test_several_results_wait_for_one_prediction_and_none_for_another():
    one, other = ask("01.a"), ask("01.b")
    gates = [cl.Gate("01.a", "x"), cl.Gate("01.a", "y"), cl.Gate("01.b", "z")]
    one.commit("a")
    assert [gate.open for gate in gates] == [True, True, False]
    other.commit("a")
    assert gates[2].open


def test_a_cell_that_ran_twice_before_the_answer_opens_the_new_gate():
    toy = cl.load_pairs("toy")
    ask()
    gates = []
    for _ in range(2):
        lab = cl.Lab(toy, updates=2, accumulation_steps=2, dim=8)
        lab.run(1)
        gates.append((lab, cl.Gate("01.a", lab.views.curves)))
        if len(gates) == 1:
            lab.close()  # as its cell does when it runs again
    ask().commit("b")
    assert [gate.open for _, gate in gates] == [False, True]


def test_what_was_never_asked_hides_nothing():
    gate = cl.Gate("09.z", "the result")
    assert gate.open and "the result" in gate.widget.children[0].value


def test_answers_of_an_earlier_session_open_it():
    ask()
    gate = cl.Gate("01.a", "x")
    cl.answers('{"01.a": "b"}')
    assert gate.open


def test_a_reply_that_fails_opens_it_all_the_same():
    question = cl.Predict("01.a", "which?", options=["a"], truth=lambda: 1 / 0)
    gate = cl.Gate("01.a", "x")
    question.commit("a")
    assert gate.open


def test_a_teacher_can_show_it_without_an_answer():
    question = ask()
    gate = cl.Gate("01.a", "x")
    gate.widget.children[1].click()
    assert gate.open and not question.committed


def test_where_no_widget_lives_nothing_is_hidden():
    ask()
    picture = PICTURE()
    data, metadata = cl.Gate("01.a", picture)._repr_mimebundle_()
    assert data[VIEW] and data["text/plain"] == picture.sentence
    assert data["image/png"] == picture._repr_mimebundle_()[0]["image/png"]
    assert metadata["image/png"]["alt"] == picture.sentence
    data, _ = cl.Gate("01.a", cl.check("01.4", lambda loss, n: loss))._repr_mimebundle_()
    assert "✗ case 1" in data["text/html"]
    assert cl.Gate("01.a", 3.5)._repr_mimebundle_()[0]["text/plain"] == "3.5"


def test_the_live_gate_shows_no_result_before():
    ask()
    gate = cl.Gate("01.a", PICTURE())
    assert not any("img" in str(getattr(child, "value", "")) for child in gate.widget.children)


@pytest.mark.parametrize(
    "result, shown",
    [
        ("<b>&", "&lt;b&gt;&amp;"),
        ({"a": 1}, "{&#x27;a&#x27;: 1}"),
        ("a\u202eb\x1b[31m", ">ab<"),
    ],
)
def test_text_is_shown_as_text(result, shown):
    assert shown in cl.Gate("x", result).widget.children[0].value


def test_a_lab_a_picture_and_a_table_are_shown_as_they_are():
    lab = cl.Lab(cl.load_pairs("toy"), start="random")
    assert cl.Gate("x", lab).widget.children == (lab.views.widget,)
    matrix = cl.MatrixPicture([[1.0, 2.0]], "a matrix")
    assert cl.Gate("x", matrix).widget.children == (matrix.grid,)
    board = cl.leaderboard("")
    assert "<table>" in cl.Gate("x", board).widget.children[0].value
    lab.close()
    with pytest.raises(ValueError, match="give a prediction's name"):
        cl.Gate(board, "x")


def test_a_number_must_move_before_it_is_an_answer():
    question = cl.Predict("01.n", "how many?", number=(-10, 10), truth=3)
    question.commit()
    assert not question.committed and "Choose first" in question.said.value
    question.field.value = 2.0
    question.commit()
    assert question.committed and question.value == 2.0
    other = cl.Predict("01.m", "how many?", number=(-10, 10), truth=3)
    other.commit(-10)  # where it stands, said on purpose
    assert other.committed


# --- the tally ------------------------------------------------------------------------------------

CLASS = """10:31 Ada: {"01.a": "a", "02.n": 3, "03.c": [[0, 1], [1, 2]]}
{"01.a": "b", "02.n": 3.5}
{"01.a": "a", "02.n": 40}
hello
{"01.a": broken}

{"01.a": "<script>alert(1)</script> $x^2$ \\u202e"}"""


def test_a_class_is_counted():
    picture = cl.tally(CLASS)
    assert picture.lines == 4 and picture.skipped == 2
    assert list(picture.counts) == ["01.a", "02.n", "03.c"]
    assert picture.counts["01.a"]["a"] == 2 and picture.counts["01.a"]["b"] == 1
    assert picture.counts["02.n"] == {"3": 1, "3.5": 1, "40": 1}
    assert picture.counts["03.c"] == {"a drawn curve": 1}
    assert "01.a: 2 of 4 say “a”." in picture.sentence
    assert "2 lines held no answers" in picture.sentence
    assert list(cl.tally(CLASS, "02.n").counts) == ["02.n"]


def test_the_bars_are_drawn_and_every_text_is_only_text():
    data, metadata = cl.tally(CLASS)._repr_mimebundle_()
    png = base64.b64decode(data["image/png"])
    assert png.startswith(b"\x89PNG") and len(png) > 3000
    assert "text/html" not in data and metadata["image/png"]["alt"] == data["text/plain"]
    assert "\u202e" not in repr(cl.tally(CLASS))


def test_many_numbers_are_counted_in_ranges():
    lines = "\n".join(f'{{"n": {number}}}' for number in range(100))
    counts = cl.tally(lines).counts["n"]
    assert len(counts) == 8 and sum(counts.values()) == 100
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        "[1]",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a": ' + "[" * 50_000 + "}",
        '{"a": {"b": {}}}',
        '{"a": null, "": true}',
        '{"\\ud800": "\\ud800"}',
        "{" * 200_000,
        "\n".join(f'{{"a": "{n}"}}' for n in range(50)),
    ],
)
def test_whatever_is_pasted_is_drawn_or_skipped(line):
    picture = cl.tally(line)
    data, _ = picture._repr_mimebundle_()
    assert data["image/png"] and data["text/plain"].encode()
    assert all(len(bars) <= 13 for bars in picture.counts.values())


def test_what_is_no_text_is_refused():
    with pytest.raises(ValueError, match="paste the lines that answers"):
        cl.tally(["{}"])


def test_the_line_of_answers_is_what_tally_reads():
    ask().commit("b")
    cl.Predict("01.n", "how many?", number=(0, 10)).commit(4)
    picture = cl.tally(cl.answers())
    assert picture.counts == {"01.a": {"b": 1}, "01.n": {"4": 1}}


def test_a_table_in_markdown_is_kept_and_shown():
    table = Markdown("| method | MRR@10 |\n|---|---|\n| DPR | 0.3 |")
    gate = cl.Gate("no such prediction", table)
    data, _ = gate._repr_mimebundle_()
    assert data["text/markdown"] == table.data
    (shown,) = gate.widget.children[-1].outputs
    assert shown["data"]["text/markdown"] == table.data


def test_the_library_and_its_command_line_need_no_widgets():
    """They are an optional dependency."""
    code = "import sys, contaccum_lite.cli; print(*{'ipywidgets', 'IPython'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr

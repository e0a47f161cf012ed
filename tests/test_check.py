"""The exercises: solutions pass, slips are named, and nothing is said of what was not looked at."""

import asyncio
import math
import random
import re
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import nbformat
import numpy as np
import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.course.check import CASES, Verdict
from contaccum_lite.course.exercises import EXERCISES
from contaccum_lite.course.spine import STEPS
from test_project import NOTEBOOKS

torch.set_num_threads(1)

#: Exercises that notebooks no longer ask: a step of the spine has taken their place.
REPLACED = {"01.1", "01.2", "01.3", "02.2", "02.3", "03.1", "03.2", "03.3"}
#: Those that the notebooks ask, and those of which the answer itself is compared.
NOTEBOOKS_OWN = [name for name in EXERCISES if name[0].isdigit() and name not in REPLACED]
PLAIN = [name for name in EXERCISES if not EXERCISES[name].in_place]


def cells(number):
    path = next(p for p in NOTEBOOKS if p.stem.startswith(number))
    return nbformat.read(path, 4).cells


def slip_feedbacks(name):
    """What is said of each slip of this exercise, the same in every case."""
    exercise = EXERCISES[name]
    each = []
    for case in range(CASES):
        arguments = exercise.make_case(torch.Generator().manual_seed(1000 + case), case)
        each.append([slip.feedback for slip in exercise.slips(*arguments)])
    assert each == each[:1] * CASES
    return each[0]


def slip_function(name, number):
    """The function of a student who makes this slip."""
    return lambda *arguments: EXERCISES[name].slips(*arguments)[number].answer


@pytest.mark.parametrize("name", NOTEBOOKS_OWN)
def test_the_folded_solution_passes(name):
    """Taken from the notebook's text, where the student finds it, right after the exercise."""
    found = cells(name[:2])
    place = next(
        n for n, c in enumerate(found) if c.cell_type == "code" and f'check("{name}"' in c.source
    )
    assert "NotImplementedError" in found[place].source
    text = found[place + 1].source
    assert text.count("<summary>Hint") == 2
    solution = re.search(r"<summary>Solution</summary>\s*```python\n(.*?)```", text, re.S)[1]
    space = {"torch": torch, "cl": cl}
    exec(solution, space)
    function = space[re.search(r"^def (\w+)\(", solution, re.M)[1]]
    assert (
        re.search(r"def (\w+)\(.*\)", found[place].source)[0].split(":")[0] in solution
    )  # the blank's own signature
    body = solution[solution.index("def ") :].strip().splitlines()[1:]
    assert 1 <= len(body) <= 4, "an exercise is 1 to 4 lines to write"
    verdict = cl.check(name, function)
    assert verdict.passed and f"{CASES} drawn cases" in verdict.sentence


@pytest.mark.parametrize("name", EXERCISES)
def test_each_slip_fails_with_its_own_sentence(name):
    feedbacks = slip_feedbacks(name)
    assert len(feedbacks) >= 3
    assert len(set(feedbacks)) == len(feedbacks)
    for number, feedback in enumerate(feedbacks):
        verdict = cl.check(name, slip_function(name, number))
        assert not verdict.passed
        assert feedback in verdict.sentence, (feedback, verdict.sentence)


@pytest.mark.parametrize("name", PLAIN)
def test_other_wrong_answers_get_no_slips_name(name):
    exercise = EXERCISES[name]

    def other(*arguments):
        right = torch.as_tensor(exercise.reference(*arguments))
        # 02.3 compares the gradient of a number: a summand would not count
        return right * 1.37 if name == "02.3" else right + 0.37

    verdict = cl.check(name, other)
    assert not verdict.passed
    assert not any(feedback in verdict.sentence for feedback in slip_feedbacks(name))
    assert "wrong values" in verdict.sentence


def test_the_positive_of_a_row_is_drawn():
    """Whoever ignores `positive` is told so."""
    verdict = cl.check("01.1", lambda scores, positive: scores.logsumexp(0) - scores[0])
    assert not verdict.passed
    assert "number `positive`" in verdict.sentence


def test_four_notebooks_have_three_to_five_exercises():
    for number in ("01", "02", "03", "04"):
        names = re.findall(
            r'check\("(\d\d\.\d|spine\.\d)"',
            "\n".join(c.source for c in cells(number) if c.cell_type == "code"),
        )
        assert 3 <= len(names) <= 5
        own = {name for name in names if name.startswith(number)}
        assert own == {n for n in EXERCISES if n.startswith(number)} - REPLACED
        text = "\n".join(c.source for c in cells(number) if c.cell_type == "markdown")
        for name in names:
            assert re.search(rf"### ★+ {name} · .* \(\d+ minutes\)", text), name


def test_the_notebooks_ask_the_spine_in_order_and_use_it():
    """Each step is asked once, as its text has it, and the next cell takes the student's function."""
    asked = []
    for number in ("01", "02", "03", "05", "09"):
        book = cells(number)
        for at, cell in enumerate(book):
            for name in re.findall(r'cl\.check\("(spine\.\d)"', cell.source):
                step = STEPS[name]
                asked.append(name)
                assert cell.source.endswith(step.blank), name
                assert step.markdown() in book[at - 1].source, name
                assert step.folded() in book[at + 1].source, name
                assert f'cl.yours("{name}", {step.function})' in book[at + 2].source, name
                above = "".join(c.source for c in book[:at])
                body = step.solution.split("\n", 1)[1].strip()
                assert body not in above, f"the solution of {name} stands above it"
    assert asked == list(STEPS)


def test_what_goes_wrong_in_the_function_is_a_sentence():
    says = lambda function, name="01.2": (lambda v: (v.passed, v.sentence))(
        cl.check(name, function)
    )
    assert says(lambda q, p, t: 1 / 0)[1].startswith("your function stopped in case 1 of")
    assert "ZeroDivisionError: division by zero" in says(lambda q, p, t: 1 / 0)[1]
    assert "nan" in says(lambda q, p, t: q @ p.T / 0 * 0)[1]
    assert "returned None: is a `return` missing" in says(lambda q, p, t: None)[1]
    assert "returned a str; expected a tensor" in says(lambda q, p, t: "x")[1]
    assert "shape (" in says(lambda q, p, t: q)[1] and "expected (" in says(lambda q, p, t: q)[1]
    assert "RuntimeError: mat1 and mat2 shapes" in says(lambda q, p, t: q @ p)[1]
    assert "takes 1 positional argument" in says(lambda q: q)[1]

    def blank(q, p, t):
        raise NotImplementedError

    assert says(blank) == (False, "not written yet: fill in the blank, then run this cell again.")

    def changes(q, p, t):
        answer = q @ p.T / t
        q.zero_()
        return answer

    assert "changed its argument number 1 in place" in says(changes)[1]
    assert "expected a number" in says(lambda s, i: [1.0], "01.1")[1]
    for function in (blank, lambda q, p, t: 1 / 0):
        assert "\n" not in says(function)[1] and len(says(function)[1]) < 300  # no traceback
    with pytest.raises(ValueError, match="there is no exercise '99.9': the exercises are 01.1, "):
        cl.check("99.9", blank)
    with pytest.raises(ValueError, match="give it the function itself"):
        cl.check("01.2", torch.zeros(2))


def one_blank(queries, passages, temperature):
    scores = ...
    return scores[:, 0]


def two_blanks(queries, passages, temperature):
    scores = queries @ passages.T
    ...
    return ...


def dots_of_an_index(queries, passages, temperature):
    return (queries @ passages.T / temperature)[..., 1:]


@pytest.mark.parametrize(
    "function, blanks",
    [(one_blank, "`scores = ...`"), (two_blanks, "`...`, `return ...`")],
)
def test_a_blank_that_is_still_there_is_named(function, blanks):
    verdict = cl.check("01.2", function)
    assert not verdict.passed
    assert verdict.sentence == f"not written yet: fill in {blanks}, then run this cell again."


def test_dots_without_their_source_are_a_blank_and_those_of_an_index_are_not():
    exec("def answer(q, p, t): return q @ ...", space := {})
    assert "not written yet: a `...` is still in it" in cl.check("01.2", space["answer"]).sentence
    assert "shape (" in cl.check("01.2", dots_of_an_index).sentence


def test_arguments_of_the_failing_case_have_the_students_names():
    def cosine(q, p, tau):
        return torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(p).T / tau

    verdict = cl.check("01.2", cosine)
    assert list(verdict.arguments_by_name) == ["q", "p", "tau"]
    assert re.match(r"case 1 of 12, q \(\d, \d\), p \(\d, \d\), tau = \d", verdict.sentence)
    assert cosine(**verdict.arguments_by_name).equal(cosine(*verdict.arguments))
    by_reference = cl.check("01.2", lambda *arguments: arguments[0]).arguments_by_name
    assert list(by_reference) == ["queries", "passages", "temperature"]
    assert cl.check("01.2", right("01.2")).arguments_by_name == {}


# --- what kinds of answers there are --------------------------------------------------------------


def right(name):
    return EXERCISES[name].reference


@pytest.mark.parametrize("name", PLAIN)
def test_a_right_answer_in_float32_passes_and_says_what_is_lost(name):
    def answer(*arguments):
        rough = [
            a.float() if torch.is_tensor(a) and a.is_floating_point() else a for a in arguments
        ]
        return torch.as_tensor(right(name)(*rough)).float()

    verdict = cl.check(name, answer)
    assert verdict.passed
    assert "to 1e-05" in verdict.sentence
    assert "Your answer is in float32, which keeps 7 digits" in verdict.sentence


def test_an_answer_that_is_filled_into_zeros_passes():
    def answer(queries, passages, temperature):
        d = torch.zeros(queries.shape)  # float32, as PyTorch makes it
        for i in range(len(queries)):
            weights = (passages @ queries[i] / temperature).softmax(0)
            d[i] = -(passages[i] - weights @ passages) / (len(queries) * temperature)
        return d

    assert cl.check("04.1", answer)


def test_an_answer_in_float64_that_is_rough_is_told_so():
    verdict = cl.check("01.2", lambda q, p, t: (q.float() @ p.float().T / t).double())
    mine, expected = re.search(r"yours (\S+), expected (\S+)\.$", verdict.sentence).groups()
    assert not verdict.passed
    assert "right to the 7 digits of float32" in verdict.sentence
    assert "dtype=torch.float64" in verdict.sentence
    assert mine != expected


@pytest.mark.parametrize("off", [0.1, 1e-3, 1e-5, 1e-7])
def test_the_numbers_of_a_wrong_answer_look_different(off):
    verdict = cl.check("01.2", lambda q, p, t: q @ p.T / t * (1 + off))
    mine, expected = re.search(r"yours (\S+), expected (\S+)\.$", verdict.sentence).groups()
    assert not verdict.passed
    assert mine != expected
    assert float(mine) != float(expected)
    assert verdict._repr_mimebundle_()["text/html"].count("<img") == 1


@pytest.mark.parametrize("off", [0.37, 1.0])
def test_a_large_number_in_float32_is_told_from_its_neighbour(off):
    assert not cl.check("08.4", lambda b, n, d: torch.tensor(right("08.4")(b, n, d) + off))


def test_a_wrong_answer_with_a_gradient_is_drawn():
    def answer(q, p, t):
        return q.requires_grad_() @ p.T / t + 1

    verdict = cl.check("01.2", answer)
    assert not verdict.passed
    assert "wrong values" in verdict.sentence
    assert "<img" in verdict._repr_mimebundle_()["text/html"]
    assert cl.check("01.2", lambda q, p, t: q.requires_grad_() @ p.T / t)


KINDS = {  # of a right answer -> what is said of it
    "complex": (lambda x: x.to(torch.complex128), "is complex"),
    "complex, with an imaginary part": (lambda x: x + 1j, "is complex"),
    "sparse": (lambda x: x.to_sparse(), "is a sparse tensor"),
    "rows that are sparse": (lambda x: x.to_sparse_csr(), "is a sparse tensor"),
    "meta": (lambda x: x.to("meta"), "on the device 'meta'"),
    "half": (lambda x: x.half(), "torch.float16, which keeps too few digits"),
    "bfloat16": (lambda x: x.bfloat16(), "torch.bfloat16"),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), "torch.float8"),
    "quantized": (
        lambda x: torch.quantize_per_tensor(x.float(), 1e-6, 0, torch.qint32),
        "torch.qint32",
    ),
    "nested": (lambda x: torch.nested.as_nested_tensor(list(x)), "your answer"),
    "array": (lambda x: x.numpy(), "returned a ndarray; expected a tensor"),
    "list": (lambda x: x.tolist(), "returned a list"),
    "tuple": (lambda x: (x,), "returned a tuple"),
    "text": (str, "returned a str"),
    "module": (lambda x: torch.nn.Linear(2, 2), "returned a Linear"),
    "generator": (lambda x: (row for row in x), "returned a generator"),
    "class": (lambda x: torch.Tensor, "returned a _TensorMeta"),
    "complex number": (lambda x: 1j, "returned a complex"),
    "huge": (lambda x: 10**400, "shape ()"),
    "nan": (lambda x: x * torch.nan, "a nan or an infinity"),
    "infinity": (lambda x: x / 0, "a nan or an infinity"),
}


@pytest.mark.filterwarnings(
    "ignore:Sparse", "ignore:torch.quantize", "ignore:The PyTorch API of nested"
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_of_another_kind_gets_a_sentence(kind):
    change, words = KINDS[kind]
    verdict = cl.check("01.2", lambda q, p, t: change(q @ p.T / t))
    assert not verdict.passed
    assert words in verdict.sentence
    assert "\n" not in verdict.sentence
    assert verdict._repr_mimebundle_()["text/plain"] == "✗ " + verdict.sentence


@pytest.mark.parametrize(
    "number, passes",
    [
        (float, True),
        (np.float64, True),
        (np.float32, True),
        (lambda x: torch.tensor(float(x)), True),
        (np.float16, False),
        (np.longdouble, False),
        (np.complex128, False),
        (complex, False),
        (str, False),
        (np.str_, False),
        (lambda x: 10**400, False),
    ],
)
def test_a_number_may_be_pythons_or_numpys(number, passes):
    verdict = cl.check("01.4", lambda loss, n: number(math.log(n) - loss))
    assert verdict.passed == passes and "\n" not in verdict.sentence


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")


def recursion(*_):
    return recursion()


RAISED = [
    SystemExit(0),
    SystemExit("bye"),
    GeneratorExit(),
    asyncio.CancelledError(),
    MemoryError(),
    StopIteration(3),
    AssertionError(),
    OSError(2, "x"),
    KeyError("k"),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
    ExceptionGroup("two", [ValueError("a"), TypeError("b")]),
    BaseExceptionGroup("three", [SystemExit(1)]),
    UserWarning("w"),
    Unprintable(),
    ValueError("a" * 100_000),
    ValueError("two\nlines"),
    ValueError("\ud800\x1b[31m"),
    NotImplementedError("aten::mm"),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
def test_whatever_a_function_raises_is_a_sentence(error):
    def answer(*_):
        raise error

    for name in ("01.2", "02.3"):
        verdict = cl.check(name, answer)
        assert not verdict.passed
        assert verdict.sentence.startswith(
            "your function stopped in case 1 of 12, in its cell's line"
        )
        assert type(error).__name__ in verdict.sentence
        assert "\n" not in verdict.sentence
        assert len(verdict.sentence) < 500
        assert verdict.sentence.encode()


def test_a_function_without_end_and_one_that_is_stopped():
    assert "RecursionError" in cl.check("01.2", recursion).sentence

    def stopped(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # ■ is the student's own
        cl.check("01.2", stopped)


def test_a_function_may_not_change_what_it_is_given():
    def changed(change):
        def answer(bank, position, new):
            written = right("03.1")(bank, position, new)
            change(bank)
            return written

        return cl.check("03.1", answer)

    for change in (
        torch.Tensor.zero_,
        lambda x: x.resize_(0),
        lambda x: x.t_(),
        lambda x: setattr(x, "data", x.data.float()),
        lambda x: x.set_(),
        lambda x: x.mul_(torch.nan),
        lambda x: x[0, 0].add_(1e-12),
    ):
        assert "changed its argument number 1 in place" in changed(change).sentence
    for change in (lambda x: x.requires_grad_(), lambda x: x.add_(0), lambda x: x.copy_(x.clone())):
        assert changed(change).passed


def test_what_a_function_sets_for_all_does_not_reach_the_next_check():
    def careless(act):
        def answer(vectors, gradient):
            act()
            return (vectors * gradient).sum()

        return answer

    before = torch.get_default_dtype()
    try:
        for act in (
            lambda: torch.set_grad_enabled(False),
            lambda: torch.set_default_dtype(torch.float16),
            lambda: torch.set_default_device("meta"),
        ):
            verdict = cl.check("02.3", careless(act))
            assert verdict.sentence and torch.is_grad_enabled()
            for name in EXERCISES:
                assert cl.check(name, right(name)), name
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


@pytest.mark.parametrize(
    "surrogate, words",
    [
        (lambda v, g: (v * g).sum().item(), "no gradient can be taken"),
        (lambda v, g: (v * g).sum().detach(), "no gradient can be taken"),
        (lambda v, g: g.sum(), "no gradient can be taken"),
        (lambda v, g: v * g, "no gradient can be taken"),
        (lambda v, g: (v * g).sum() * 1j, "is complex"),
        (lambda v, g: 3, "no gradient can be taken"),
        (lambda v, g: torch.ones((), requires_grad=True), "no gradient can be taken"),
    ],
)
def test_a_surrogate_without_a_gradient_gets_a_sentence(surrogate, words):
    verdict = cl.check("02.3", surrogate)
    assert not verdict.passed
    assert "\n" not in verdict.sentence
    assert words in verdict.sentence


def test_a_surrogate_in_float32_passes():
    assert cl.check("02.3", lambda v, g: (v.float() * g.float()).sum())


def test_a_name_that_is_no_name_gets_a_sentence():
    for name in (None, 1.2, ["01.2"], {}, "01.20", "x" * 10_000):
        with pytest.raises(ValueError, match="there is no exercise .*the exercises are 01.1, "):
            cl.check(name, right("01.2"))


# --- drawn functions ------------------------------------------------------------------------------


class Odd:
    """An object that answers nothing."""

    def __getattr__(self, name):
        raise RuntimeError(name)

    @property
    def __class__(self):
        raise RuntimeError("no class")


FORMS = [
    lambda x: x,
    lambda x: x.float(),
    lambda x: x.clone().requires_grad_(),
    lambda x: torch.nn.Parameter(x),
    lambda x: x.expand(3, *x.shape)[1],
    lambda x: x.mT.contiguous().mT if x.ndim == 2 else x,
    lambda x: torch.stack([x, x + 1], -1)[..., 0],
    lambda x: torch._neg_view(-x),
    lambda x: x.item() if x.ndim == 0 else x,
    lambda x: np.float64(x) if x.ndim == 0 else x,
    lambda x: np.float32(x) if x.ndim == 0 else x.float(),
]
WRONGS = [
    lambda x: x + 0.01 * (1 + x.abs()),
    lambda x: x * 1.01 + 0.01,
    lambda x: -x - 1,
    lambda x: x * 0 + 0.1234,
    lambda x: x + 1e300,
    lambda x: x.flip(0) + 2 if x.ndim else x + 2,
]
ODD = [
    None,
    NotImplemented,
    ...,
    Odd(),
    Odd,
    object(),
    {},
    set(),
    b"1",
    range(3),
    Fraction(1, 3),
    Decimal("0.1"),
    slice(0),
    memoryview(b""),
    torch,
    torch.float64,
    torch.device("cpu"),
    np.array(1.0),
    np.datetime64("2026-01-01"),
    10**400,
    1j,
    torch.Generator(),
    torch.Size([2]),
    "1",
    [1.0],
    (1.0,),
    float,
    print,
]
UNFIT = [
    change for kind, (change, _) in KINDS.items() if kind != "list"
]  # of one number it is the number
CHANGES = [
    torch.Tensor.zero_,
    lambda x: x.add_(1),
    lambda x: x.resize_(0),
    lambda x: x.set_(),
    lambda x: setattr(x, "data", x.data.to(torch.float16)),
    lambda x: x.fill_(torch.nan),
]


def drawn_function(draw, name):
    """(a function for this exercise, whether it is right)."""
    kind = draw.choice(
        [
            "right",
            "right",
            "wrong",
            "wrong",
            "unfit",
            "odd",
            "raises",
            "changes",
            "shape",
            "late",
            "itself",
            "generator",
        ]
    )
    form, wrong, unfit, odd, error, change = (
        draw.choice(of) for of in (FORMS, WRONGS, UNFIT, ODD, RAISED, CHANGES)
    )
    case, at = [0], draw.randrange(12)

    def numbers(arguments):
        return torch.as_tensor(right(name)(*arguments), dtype=torch.float64)

    def answer(*arguments):
        case[0] += 1
        exact = numbers(arguments)
        if kind == "right":
            return form(exact)
        if kind == "wrong":
            return form(wrong(exact))
        if kind == "unfit":
            return unfit(exact)
        if kind == "odd":
            return odd
        if kind == "raises":
            raise error
        if kind == "changes":
            given = [a for a in arguments if torch.is_tensor(a)]
            if not given:
                raise error
            change(draw.choice(given))
            return exact
        if kind == "shape":
            return draw.choice([exact[None], exact.new_zeros(0), exact.new_zeros(2, 2, 2)])
        if kind == "late":
            return exact if case[0] <= at else wrong(exact)
        return answer if kind == "itself" else (x for x in [exact])

    return answer, kind == "right"


@pytest.mark.filterwarnings(
    "ignore:Sparse", "ignore:torch.quantize", "ignore:The PyTorch API of nested", "ignore:overflow"
)
def test_two_thousand_drawn_functions_get_their_verdict():
    """Never an exception, never a pass for a wrong answer, never a fail for a right one."""
    draw, counts = random.Random(11), Counter()
    # of 02.3 the gradient is compared, and a bank with a graph is refused
    names = [name for name in PLAIN if name not in ("02.3", "spine.5")]
    for turn in range(2000):
        name = draw.choice(names)
        answer, is_right = drawn_function(draw, name)
        verdict = cl.check(name, answer)
        assert verdict.passed == is_right, (name, turn, verdict.sentence)
        assert "\n" not in verdict.sentence
        assert 20 < len(verdict.sentence) < 700
        assert verdict.sentence.encode()
        counts[verdict.passed] += 1
        if turn % 50 == 0:
            data = verdict._repr_mimebundle_()
            assert data["text/plain"].endswith(verdict.sentence)
    assert min(counts.values()) > 200


def test_a_wrong_picture_stands_beside_the_right_one():
    verdict = cl.check("04.2", slip_function("04.2", 0))
    data = verdict._repr_mimebundle_()
    assert data["text/plain"] == "✗ " + verdict.sentence
    assert "<img alt='expected and yours side by side. ✗ case 1" in data["text/html"]
    assert len(data["text/html"]) > 3000
    assert "img" not in Verdict(False, "x")._repr_mimebundle_()["text/html"]
    assert repr(cl.check("01.4", EXERCISES["01.4"].reference)).startswith("✓ right on")
    assert "<script>" not in Verdict(False, "<script>")._repr_mimebundle_()["text/html"]


def test_references_agree_with_the_library():
    """The references of the exercises are not their own judges."""
    for case in range(5):
        q, p, t = EXERCISES["04.1"].make_case(torch.Generator().manual_seed(case), case)
        d_q, d_p = cl.info_nce_gradients(q, p, temperature=t)
        assert torch.allclose(EXERCISES["04.1"].reference(q, p, t), d_q, atol=1e-12)
        assert torch.allclose(EXERCISES["04.2"].reference(q, p, t), d_p, atol=1e-12)
        assert torch.allclose(
            EXERCISES["01.3"].reference(q @ p.T / t), cl.info_nce(q, p, temperature=t), atol=1e-12
        )
        assert torch.allclose(
            EXERCISES["01.2"].reference(q, p, t),
            cl.similarity_matrix(q, p, temperature=t),
            atol=1e-12,
        )
        memory = torch.randn(
            4, q.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(9)
        )
        sides = cl.info_nce_gradients(q, p, passage_bank=memory, temperature=t)[1].sum(0)
        assert torch.allclose(
            EXERCISES["04.3"].reference(q @ torch.cat([p, memory]).T / t, q, t), sides, atol=1e-12
        )


def test_the_reference_of_the_ring_is_the_librarys_bank():
    bank = cl.MemoryBank(5, 2, torch.float64)
    held = torch.zeros(5, 2, dtype=torch.float64)
    for step in range(6):
        new = torch.full((2, 2), float(step), dtype=torch.float64)
        held = EXERCISES["03.1"].reference(held, bank.write_ptr, new)
        bank.write(torch.arange(2), new, step)
        assert torch.equal(held[: len(bank)], bank.vectors)

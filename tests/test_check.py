"""The exercises: solutions pass, slips are named, and nothing is said of what was not looked at."""

import re

import nbformat
import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.check import CASES, Verdict
from contaccum_lite.exercises import EXERCISES
from test_project import NOTEBOOKS

torch.set_num_threads(1)


def cells(number):
    path = next(p for p in NOTEBOOKS if p.stem.startswith(number))
    return nbformat.read(path, 4).cells


@pytest.mark.parametrize("name", EXERCISES)
def test_the_folded_solution_passes(name):
    """Taken from the notebook's text, where the student finds it, right after the exercise."""
    found = cells(name[:2])
    place = next(n for n, c in enumerate(found) if c.cell_type == "code" and f'check("{name}"' in c.source)
    assert "NotImplementedError" in found[place].source
    text = found[place + 1].source
    assert text.count("<summary>Hint") == 2
    solution = re.search(r"<summary>Solution</summary>\s*```python\n(.*?)```", text, re.S)[1]
    space = {"torch": torch, "cl": cl}
    exec(solution, space)
    function = space[re.search(r"^def (\w+)\(", solution, re.M)[1]]
    assert re.search(r"def (\w+)\(.*\)", found[place].source)[0].split(":")[0] in solution     # the blank's own signature
    body = solution[solution.index("def "):].strip().splitlines()[1:]
    assert 1 <= len(body) <= 4, "an exercise is 1 to 4 lines to write"
    verdict = cl.check(name, function)
    assert verdict.passed and f"{CASES} drawn cases" in verdict.sentence


@pytest.mark.parametrize("name", EXERCISES)
def test_each_slip_fails_with_its_own_sentence(name):
    exercise = EXERCISES[name]
    assert len(exercise.slips) >= 3 and len({s.says for s in exercise.slips}) == len(exercise.slips)
    for slip in exercise.slips:
        verdict = cl.check(name, slip.wrong)
        assert not verdict.passed and slip.says in verdict.sentence, (slip.says, verdict.sentence)


@pytest.mark.parametrize("name", EXERCISES)
def test_other_wrong_answers_get_no_slips_name(name):
    exercise = EXERCISES[name]

    def other(*arguments):
        right = torch.as_tensor(exercise.right(*arguments))
        return ~right if right.dtype == torch.bool and name == "nothing" else right * 1.0 + 0.37 * torch.ones_like(right * 1.0) if name != "02.3" else right * 1.37

    verdict = cl.check(name, other)
    assert not verdict.passed and not any(s.says in verdict.sentence for s in exercise.slips)
    assert "wrong values" in verdict.sentence


def test_four_notebooks_have_three_to_five_exercises():
    for number in ("01", "02", "03", "04"):
        names = re.findall(r'check\("(\d\d\.\d)"', "\n".join(c.source for c in cells(number) if c.cell_type == "code"))
        assert 3 <= len(names) <= 5 and names == sorted(n for n in EXERCISES if n.startswith(number))
        text = "\n".join(c.source for c in cells(number) if c.cell_type == "markdown")
        for name in names:
            assert re.search(rf"### ★+ {name} · .* \(\d+ minutes\)", text), name


def test_what_goes_wrong_in_the_function_is_a_sentence():
    says = lambda function, name="01.2": (lambda v: (v.passed, v.sentence))(cl.check(name, function))
    assert says(lambda q, p, t: 1 / 0)[1].startswith("your function stopped in case 1 of") and "ZeroDivisionError: division by zero" in says(lambda q, p, t: 1 / 0)[1]
    assert "nan" in says(lambda q, p, t: q @ p.T / 0 * 0)[1]
    assert "returned None: is a `return` missing" in says(lambda q, p, t: None)[1]
    assert "returned a str; expected a tensor" in says(lambda q, p, t: "x")[1]
    assert "shape (" in says(lambda q, p, t: q)[1] and "expected (" in says(lambda q, p, t: q)[1]
    assert "RuntimeError" in says(lambda q, p, t: q @ p)[1] or "shape" in says(lambda q, p, t: q @ p)[1]
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
        assert "\n" not in says(function)[1] and len(says(function)[1]) < 300      # no traceback
    with pytest.raises(ValueError, match="there is no exercise '99.9': the exercises are 01.1, "):
        cl.check("99.9", blank)
    with pytest.raises(ValueError, match="give it the function itself"):
        cl.check("01.2", torch.zeros(2))


def test_a_wrong_picture_stands_beside_the_right_one():
    verdict = cl.check("04.2", EXERCISES["04.2"].slips[0].wrong)
    data = verdict._repr_mimebundle_()
    assert data["text/plain"] == "✗ " + verdict.sentence and "<img alt='expected and yours side by side. ✗ case 1" in data["text/html"]
    assert len(data["text/html"]) > 3000 and "img" not in Verdict(False, "x")._repr_mimebundle_()["text/html"]
    assert repr(cl.check("01.4", EXERCISES["01.4"].right)).startswith("✓ right on")
    assert "<script>" not in Verdict(False, "<script>")._repr_mimebundle_()["text/html"]


def test_references_agree_with_the_library():
    """The references of the exercises are not their own judges."""
    for case in range(5):
        q, p, t = EXERCISES["04.1"].draw(torch.Generator().manual_seed(case), case)
        d_q, d_p = cl.info_nce_gradients(q, p, temperature=t)
        assert torch.allclose(EXERCISES["04.1"].right(q, p, t), d_q, atol=1e-12) and torch.allclose(EXERCISES["04.2"].right(q, p, t), d_p, atol=1e-12)
        assert torch.allclose(EXERCISES["01.3"].right(q @ p.T / t), cl.info_nce(q, p, temperature=t), atol=1e-12)
        assert torch.allclose(EXERCISES["01.2"].right(q, p, t), cl.similarity_matrix(q, p, temperature=t), atol=1e-12)
        memory = torch.randn(4, q.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(9))
        sides = cl.info_nce_gradients(q, p, passage_bank=memory, temperature=t)[1].sum(0)
        assert torch.allclose(EXERCISES["04.3"].right(q @ torch.cat([p, memory]).T / t, q, t), sides, atol=1e-12)
    bank = cl.MemoryBank(5, 2, torch.float64)
    held = torch.zeros(5, 2, dtype=torch.float64)
    for step in range(6):
        new = torch.full((2, 2), float(step), dtype=torch.float64)
        held = EXERCISES["03.1"].right(held, bank.next_slot, new)
        bank.write(torch.arange(2), new, step)
        assert torch.equal(held[:len(bank)], bank.vectors)

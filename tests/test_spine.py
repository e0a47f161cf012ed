"""The spine: nine functions of a student together are ContAccum, as `cl.Run` trains it."""

import inspect

import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.course.exercises import EXERCISES, spine
from contaccum_lite.course.spine import STEPS

torch.set_num_threads(1)
FIELDS = dict(local_batch=4, accumulation_steps=4, memory_size=32, seed=1, start="random")


@pytest.fixture(scope="module")
def toy():
    return cl.load_pairs("toy")


@pytest.mark.parametrize("changes", [{}, {"method": "grad_accum", "memory_size": None}])
def test_ten_updates_equal_the_runs(toy, changes):
    fields = {name: v for name, v in {**FIELDS, **changes}.items() if v is not None}
    comparison = cl.MyContAccum(toy, cl.Settings(dtype="float64", **fields)).compare(10)
    assert comparison
    assert comparison.difference <= 1e-6
    assert repr(comparison).startswith("✓ after 10 updates no weight differs from cl.Run's")


def test_a_whole_run_reaches_the_same_mrr(toy):
    """In float64, over several epochs, so that pairs return to the banks."""
    settings = cl.Settings(dtype="float64", updates=80, mask_duplicates=False, **FIELDS)
    run = cl.Run(toy, settings)
    before = run.evaluate()["mrr@10"]
    for _ in run:
        pass
    mine = cl.MyContAccum(toy, settings).train()
    expected = run.evaluate()["mrr@10"]
    assert expected > before + 0.2  # it has learnt something
    assert mine.evaluate() == pytest.approx(expected, abs=1e-9)
    query = toy.test[0].query
    assert mine.search(query, k=3) == [hit.title for hit in run.search(query, k=3)]


SLIPS = [name for name in spine.Other._fields]


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_in_the_update_shows_in_the_weights(toy, slip):
    other = spine.Other()._replace(**{slip: not getattr(spine.Other(), slip)})

    def wrong(*arguments):
        return spine.update_with(other, *arguments)

    # a gradient that is always clipped has the same length with and without 1/K
    fields = dict(FIELDS, learning_rate=0.02, clip_norm=0.1 if slip == "clip" else 2.0)
    comparison = cl.MyContAccum(toy, dtype="float64", update=wrong, **fields).compare(3)
    assert not comparison
    assert "check each function of the spine" in repr(comparison)


def test_the_students_functions_are_called(toy):
    calls = []

    def noted(name):
        def function(*arguments):
            calls.append(name)
            return getattr(spine, name)(*arguments)

        return function

    functions = {name: noted(name) for name in ("update", "mrr", "search")}
    mine = cl.MyContAccum(toy, **FIELDS, **functions)
    mine.step()
    mine.evaluate()
    mine.search("a")
    assert calls == ["update", "mrr", "search"]
    with pytest.raises(ValueError, match="1 updates have been made"):
        mine.compare()
    with pytest.raises(ValueError, match="no 'dev' pairs"):
        mine.evaluate("dev")


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"method": "pre_batch"}, "the spine is 'contaccum'"),
        ({"hard_negatives": 2}, "hard_negatives is 2, and the spine has hard_negatives=0 only"),
        ({"query_bank": False}, "the spine has both banks"),
        ({"bank_warmup": 3}, "bank_warmup is 3"),
    ],
)
def test_settings_that_the_spine_would_ignore_are_refused(toy, fields, words):
    with pytest.raises(ValueError, match=words):
        cl.MyContAccum(toy, **fields)


def test_references_agree_with_the_core():
    """The references of the spine are not their own judges."""
    for number in range(5):
        random = torch.Generator().manual_seed(number)
        q, p, bank_q, bank_p, t = spine.dual_bank_case(random, number)
        expected = cl.info_nce(q, p, bank_q, bank_p, temperature=t)
        assert spine.dual_bank_loss(q, p, bank_q, bank_p, t) == pytest.approx(
            float(expected), abs=1e-12
        )
        bank = cl.MemoryBank(5, 2, torch.float64)
        mine = torch.zeros(0, 2, dtype=torch.float64)
        for step in range(4):
            new = torch.randn(number % 3 + 1, 2, dtype=torch.float64, generator=random)
            bank.write(torch.arange(len(new)), new, step)
            mine = spine.enqueue(mine, new, 5)
            assert torch.equal(mine, bank.vectors[bank.order()])


# --- the texts ------------------------------------------------------------------------------------


def test_every_exercise_of_the_spine_has_its_text():
    assert list(STEPS) == [name for name in EXERCISES if name.startswith("spine")]


@pytest.mark.parametrize("name", STEPS)
def test_blank_and_solution_fit_their_check(name):
    step = STEPS[name]
    space = {"torch": torch, "cl": cl, "chain": spine.chain, "enqueue": spine.enqueue}
    exec(step.blank.replace("cl.check", "verdict = cl.check"), space)
    assert not space["verdict"]
    assert "not written yet" in space["verdict"].sentence
    needed = {n: getattr(spine, n) for n in ("matrix_loss", "dual_bank_loss", "chain", "enqueue")}
    exec(step.solution, space := {"torch": torch, **needed})
    assert cl.check(name, space[step.function])
    blank_names = step.signature[step.signature.index("(") :]
    assert " ".join(blank_names.split()).strip("()") == ", ".join(
        inspect.signature(EXERCISES[name].reference).parameters
    )
    assert step.folded().count("<details>") == 3
    assert step.markdown().startswith("### ★")


def test_the_faded_update_is_the_solution_with_three_blanks():
    step = STEPS["spine.7"]
    lines = [line.split("#")[0].strip() for line in step.given.splitlines()]
    solution = [line.strip() for line in step.solution.splitlines()]
    body = solution[solution.index("optimizer.zero_grad()") :]
    assert len(lines) == len(body)
    differing = [(a, b) for a, b in zip(lines, body) if a != b]
    assert len(differing) == 3
    assert all(a.endswith("...") for a, _ in differing)


def test_the_numbers_of_the_examples():
    near = lambda x: pytest.approx(x, abs=6e-4)
    scores = torch.tensor([[2.0, 1, 0], [1, 1, 2]])
    assert EXERCISES["spine.1"].reference(scores[0], 0) == near(0.408)
    assert EXERCISES["spine.1"].reference(scores[1], 1) == near(1.551)
    passages = 2 * scores.T  # with queries that are the axes
    assert spine.matrix_loss(torch.eye(2), passages, 2.0) == near(0.980)
    ranks = torch.arange(30.0, 0, -1).expand(3, 30)
    assert spine.mrr(ranks, torch.tensor([0, 3, 24]), 10) == near(0.417)
    products = torch.tensor([[0.2], [1.5], [-0.3], [0.9]])
    assert spine.search(torch.ones(1), products, 2).tolist() == [1, 3]

"""Pictures of notebooks, the equation view, measures and an intervention.

Notebooks 02 and 04 use the measures and the intervention.
"""

import math

import numpy as np
import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.lab import stills
from contaccum_lite.course.equations import TERMS


def test_a_matrix_picture_says_its_numbers():
    values = torch.tensor([[1.0, -2.0, 0.5], [0.0, 4.0, 1.0]])
    picture = cl.MatrixPicture(values, "m", "a matrix")
    assert picture.sentence == "a matrix: 2 queries by 3 passages, from -2 to 4, mean 0.75."
    assert picture.grid.sentence == picture.sentence
    cells = np.frombuffer(picture.grid.cells, dtype=np.uint8).reshape(2, 3)
    assert cells[1, 1] == 255
    assert cells[1, 0] == 128
    assert cells[0, 1] == round(128 - 127 / 2)
    picture.grid.at = [0, 1]
    assert picture.grid.told == "row 0, column 1: -2"
    data, metadata = picture._repr_mimebundle_()
    assert data["text/plain"] == metadata["image/png"]["alt"] == picture.sentence
    assert np.frombuffer(
        cl.MatrixPicture(torch.eye(2), "").grid.cells, dtype=np.uint8
    ).tolist() == [255, 1, 1, 255]
    with pytest.raises(ValueError, match="needs two dimensions"):
        cl.MatrixPicture(torch.zeros(3), "")


def test_lines_say_their_ends():
    picture = cl.LinesPicture(
        {"a": ([1, 2, 4], [0.5, 0.7, 0.25]), "b": (range(1, 4), [3, 2, 1])}, "t", "x", "share"
    )
    assert (
        picture.sentence
        == "share over x 1 to 4: a from 0.5 to 0.25 (at 1 and 4), highest 0.7 at 2; b from 3 to 1 (at 1 and 3)."
    )
    assert len(picture.png()) > 3000
    with pytest.raises(ValueError, match="lines is empty"):
        cl.LinesPicture({}, "", "", "")


def test_numbers_of_points_do_not_overlap():
    from matplotlib.text import Text

    near = np.array([[100.0, 50.0], [101.0, 50.5], [99.0, 51.0], [100.0, 90.0], [300.0, 50.0]])
    up = near[:, 1] + stills.apart(near)
    ends = np.sort(up[:4])
    assert np.diff(ends).min() > 9.9
    assert up[4] == 50
    assert list(np.argsort(up[:4])) == [0, 1, 2, 3]
    axis = stills.new(5, 3).add_subplot()
    stills.points(
        axis,
        {str(n): (1, 50 + n / 100, 1) for n in range(6)} | {"far": (300, 50, 1)},
        "t",
        "x",
        "y",
        log_x=True,
    )
    axis.figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in axis.texts]
    assert len(boxes) == 7
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
    assert {"1", "100"} <= {label.get_text() for label in axis.get_xticklabels()}


def test_few_whole_numbers_are_the_ticks():
    """No query is number 0.5; of many updates, matplotlib chooses some."""
    for xs, ticks in ((range(4), ["0", "1", "2", "3"]), ([0.0, 2.5], None), (range(50), None)):
        axis = stills.new(5, 3).add_subplot()
        stills.lines(axis, {"a": (xs, xs)}, "t", "x", "y", log=False, log_x=False)
        axis.figure.canvas.draw()
        labels = [label.get_text() for label in axis.get_xticklabels()]
        assert labels == ticks if ticks else len(labels) > 2


def test_logarithmic_axes_say_plain_numbers():
    axis = stills.new(5, 3).add_subplot()
    stills.lines(axis, {"a": ([4, 8, 2048], [0.3, 2, 3000])}, "t", "x", "y", log=True, log_x=True)
    axis.figure.canvas.draw()
    assert [label.get_text() for label in axis.get_xticklabels()] == ["4", "8", "2,048"]
    assert {"1", "10", "1,000"} <= {label.get_text() for label in axis.get_yticklabels()}
    wide = stills.new(5, 3).add_subplot()
    stills.lines(wide, {"a": (range(3), [1e-7, 1e-3, 1])}, "t", "x", "y", log=True, log_x=False)
    wide.figure.canvas.draw()
    low, high = wide.get_ylim()
    assert (
        sum(
            low <= float(label.get_text().replace(",", "")) <= high
            for label in wide.get_yticklabels()
        )
        >= 3
    )


def test_a_slide_makes_its_picture_anew():
    slide = cl.Slide(
        lambda t: cl.MatrixPicture(torch.eye(2) / t, f"at {t:g}"), temperature=[0.5, 1.0, 2.0]
    )
    canvas = slide.place.children[0]
    assert slide.sentence.startswith("temperature 1. 2 queries")
    slide.slider.value = 2.0
    assert slide.place.children[0] is canvas
    assert canvas.title == "at 2"
    assert "to 0.5" in canvas.sentence == slide.picture.sentence
    lines = cl.Slide(lambda n: cl.LinesPicture({"a": ([0, n], [0, 1])}, "", "x", "y"), n=[1, 2, 3])
    before = lines.place.children[0].value
    lines.slider.value = 3
    assert lines.place.children[0].value != before
    with pytest.raises(ValueError, match="give one"):
        cl.Slide(lambda a: None, a=[1], b=[2])


def test_same_can_fail():
    assert "the same 3 times" in cl.same(1.0, torch.tensor(1.0), 1 + 1e-12)
    with pytest.raises(AssertionError, match="largest difference is 0.1"):
        cl.same(1.0, 1.1)
    with pytest.raises(AssertionError, match="shapes"):
        cl.same(torch.zeros(2), torch.zeros(3))
    with pytest.raises(AssertionError):
        cl.same(1.0, float("nan"))


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("bank", [True, False])
def test_a_term_lights_what_it_sums_over(term, bank):
    """By autograd: what is lit is what the term's share of a gradient depends on.

    It depends on entries of S.
    """
    local, memory = 2, 3
    view = cl.EquationView(local, memory, term, bank)
    lit = view.data()
    rows, columns = local + memory * bank, local + memory
    assert lit.shape == (rows, columns)
    draw = torch.Generator().manual_seed(1)
    S = torch.rand(rows, columns, generator=draw, dtype=torch.float64).requires_grad_()
    q, p = (
        torch.rand(rows, 4, generator=draw, dtype=torch.float64),
        torch.rand(columns, 4, generator=draw, dtype=torch.float64),
    )
    value = {
        "7": lambda: S.sum(),
        "7, the positives": lambda: S.diagonal().sum(),
        "8, second term": lambda: (S[:local] @ p).sum(),
        "9, second term": lambda: (S[:, :local].T @ q).sum(),
        "9, its memory rows": lambda: (S[local:, :local].T @ q[local:]).sum(),
        "frozen": lambda: S[local:, local:].sum(),
    }.get(term)
    expected = (
        torch.eye(rows, columns).bool() & (torch.arange(columns) < local)
        if value is None
        else torch.autograd.grad(value(), S)[0] != 0
    )
    assert torch.equal(torch.from_numpy(lit.copy()), expected)
    number, line = view.line()
    import contaccum_lite.core.loss as loss

    assert open(loss.__file__).read().splitlines()[number - 1].strip() == line
    assert TERMS[term].code in line
    said = f"over {int(lit.sum())} of {lit.size} entries" if lit.any() else "over no entry here"
    assert said in view.sentence


def test_finite_differences_are_the_derivative():
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f = lambda x: (x.sin() * x).sum() + x[0, 0] * x[2, 1]
    y = x.clone().requires_grad_()
    assert torch.allclose(cl.finite_differences(f, x), torch.autograd.grad(f(y), y)[0], atol=1e-8)


def test_activation_memory_grows_with_the_batch(toy):
    run = cl.Run(toy, method="dpr", tower="bert", local_batch=4)
    found = [cl.activation_memory(run, n) for n in (4, 8, 16)]
    assert 1.7 < found[1] / found[0] < 2.3 and 1.7 < found[2] / found[1] < 2.3
    with pytest.raises(ValueError, match="pairs is 0"):
        cl.activation_memory(run, 0)


def test_an_intervention_changes_only_what_it_says(toy):
    plain, same, without = (
        cl.Run(toy, method="pre_batch", updates=6, dim=16, memory_size=32) for _ in range(3)
    )
    same.learner.gradient_hook = lambda found: found
    seen = []

    def take_away(found):
        seen.append(found.grad_passages.mean(0).norm().item())
        return found._replace(grad_passages=found.grad_passages - found.grad_passages.mean(0))

    without.learner.gradient_hook = take_away
    for run in (plain, same, without):
        list(run)
    assert (
        [u.loss for u in plain.history]
        == [u.loss for u in same.history]
        != [u.loss for u in without.history]
    )
    assert plain.history[0].grad_norm_query == without.history[0].grad_norm_query
    assert max(seen) > 1e-3


def encode_four(run):
    return run.query_tower(run.sampler.queries[np.arange(4)])


def spread_of_lengths(run):
    """How many times as long as the shortest of four vectors the longest is."""
    lengths = encode_four(run).norm(dim=1)
    return float(lengths.max() / lengths.min())


@pytest.mark.parametrize("ending", ["layernorm", "unit"])
def test_an_ending_gives_vectors_about_one_length(toy, ending):
    assert spread_of_lengths(cl.Run(toy, ending=ending, dim=16)) < 1.05


@pytest.mark.parametrize("ending", ["none", "pooled"])
def test_an_ending_leaves_vectors_their_lengths(toy, ending):
    assert spread_of_lengths(cl.Run(toy, ending=ending, dim=16)) > 1.1


@pytest.mark.parametrize("ending", ["layernorm", "none", "unit", "pooled"])
def test_a_towers_ending_is_kept(toy, ending, tmp_path):
    run = cl.Run(toy, ending=ending, updates=2, dim=16)
    list(run)
    if ending == "unit":
        assert (encode_four(run).norm(dim=1) - 1).abs().max() < 1e-5
    run.query_tower.save_pretrained(tmp_path / "t")
    again = cl.load_tower(tmp_path / "t")
    assert torch.equal(
        again(run.sampler.queries[np.arange(4)]),
        run.query_tower.eval()(run.sampler.queries[np.arange(4)]),
    )
    assert math.isfinite(run.history[-1].loss)
    assert cl.Settings.parse(run.settings.share()) == run.settings


# --- several matrices -----------------------------------------------------------------------------


def test_panels_share_one_scale_and_say_what_they_hold():
    nan = float("nan")
    panels = {"few": [[1.0, nan], [nan, -0.5]], "all": torch.eye(3) * 2}
    picture = cl.PanelsPicture(panels, "numbers", local={"all": 1}, across=2)
    assert picture.sentence == (
        "numbers: few, 2 by 2 with 2 entries, from -0.5 to 1; all, 3 by 3, from 0 to 2."
    )
    assert picture.most == 2 and cl.PanelsPicture(panels, "", most=1).most == 1
    data, metadata = picture._repr_mimebundle_()
    assert data["text/plain"] == metadata["image/png"]["alt"] == picture.sentence
    assert data["image/png"] != cl.PanelsPicture(panels, "numbers", across=2)._repr_mimebundle_()[0]


def test_panels_draw_what_is_missing_white_and_signs_apart():
    picture = cl.PanelsPicture({"a": [[1.0, -1.0, float("nan"), 0.0]]}, "numbers")
    figure = stills.new(2, 2)
    picture.still(figure)
    up, down, missing, zero = figure.axes[0].images[0].get_array()[0]
    assert (missing == 1).all() and not (zero[:3] == 1).all()
    assert up[0] > up[2] and down[0] < down[2]  # orange, blue
    assert abs(zero[0] - zero[2]) < 0.05  # grey


def test_panels_refuse_what_is_no_matrix():
    with pytest.raises(ValueError, match="panels is empty"):
        cl.PanelsPicture({}, "numbers")
    with pytest.raises(ValueError, match=r"panel 'a' has shape \(3,\)"):
        cl.PanelsPicture({"a": torch.zeros(3)}, "numbers")

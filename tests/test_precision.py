"""Number formats, checkpointed activations, compiled encoders, the memory cap.

What each must leave as it was, and what it may change.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.diagnostics import measure
from contaccum_lite.scale import precision
from contaccum_lite.core.hooks import NoLossScale
from contaccum_lite.scale.precision import LossScale

ROOT = Path(__file__).parent.parent
SMALL = dict(
    dim=16,
    local_batch=4,
    accumulation_steps=3,
    memory_size=24,
    updates=12,
    warmup=3,
    passage_tokens=16,
    hard_negatives=1,
)


def gradients(run):
    """The last micro-batch's gradients, before the weights move."""
    for micro in run.micro_steps():
        found = [
            None if p.grad is None else p.grad.clone()
            for t in run.learner.towers
            for p in t.parameters()
        ]
    return found


def norm(parts):
    return math.sqrt(sum(float(p.double().pow(2).sum()) for p in parts if p is not None))


def distance(a, b):
    return norm([x - y for x, y in zip(a, b) if x is not None]) / norm(b)


# --- autocast -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tower", ["bag", "bert"])
def test_bf16_is_near_and_banks_loss_and_gradients_are_float32(toy, tower):
    runs = {
        name: cl.Run(toy, cl.Settings(tower=tower, precision=name, **SMALL))
        for name in ("fp32", "bf16")
    }
    found = {name: gradients(run) for name, run in runs.items()}
    run = runs["bf16"]
    assert (
        1e-6 < distance(found["bf16"], found["fp32"]) < 0.3
    )  # other arithmetic, the same direction
    assert all(g is None or g.dtype == torch.float32 for g in found["bf16"])
    assert all(bank.vectors.dtype == torch.float32 for bank in run.learner.banks)
    assert len(run.passage_bank) == 12
    assert abs(run.history[0].loss - runs["fp32"].history[0].loss) < 0.05
    assert all(p.dtype == torch.float32 for p in run.query_tower.parameters())


def test_what_is_inside_a_tower_is_bf16_and_what_comes_out_is_not(toy):
    run, seen = cl.Run(toy, cl.Settings(tower="bert", precision="bf16", **SMALL)), set()
    layer = run.query_tower.model.encoder.layer[0].attention.self.query
    layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    vectors = run.learner.encode(run.sampler.batches(0)[0])
    assert seen == {torch.bfloat16}
    assert {part.dtype for part in vectors if part is not None} == {torch.float32}
    run.evaluate()
    assert seen == {torch.bfloat16}  # evaluation measures what is trained


def test_bf16_learns_resumes_and_is_taken_back(toy, tmp_path):
    fields = SMALL | dict(updates=100, learning_rate=0.02)
    plain = cl.Run(toy, cl.Settings(precision="bf16", **fields))
    run = cl.Run(toy, cl.Settings(precision="bf16", **fields))
    for n, update in enumerate(plain):
        if n < 30:
            steps = run.micro_steps()
            next(steps), next(steps), steps.close()
            run.step()
        if n == 29:
            run.save(tmp_path)
            run = cl.Run.load(tmp_path, toy)
    list(run)
    assert all(
        torch.equal(p, q)
        for p, q in zip(run.passage_tower.parameters(), plain.passage_tower.parameters())
    )
    full = cl.Run(toy, cl.Settings(**fields))
    list(full)
    assert abs(run.evaluate()["top@20"] - full.evaluate()["top@20"]) < 0.1
    assert run.evaluate()["top@20"] > 0.3


# --- loss scale -----------------------------------------------------------------------------------


def test_a_power_of_two_changes_no_bit(toy):
    plain, scaled = (cl.Run(toy, cl.Settings(**SMALL)) for _ in range(2))
    scaled.learner.loss_scale = LossScale()
    scaled.learner.loss_scale.value = 2.0**10
    for _ in range(5):
        plain.step(), scaled.step()
    assert [u[:6] for u in plain.history] == [u[:6] for u in scaled.history]
    assert all(
        torch.equal(p, q)
        for p, q in zip(plain.passage_tower.parameters(), scaled.passage_tower.parameters())
    )


@pytest.mark.parametrize("method", ["contaccum", "grad_cache"])
def test_an_update_that_overflows_is_made_again_with_half_the_scale(toy, method):
    fields = {k: v for k, v in SMALL.items() if k not in cl.PRESETS[method]["fixed"]}
    plain, run = (cl.Run(toy, cl.Settings.preset(method, **fields)) for _ in range(2))
    scale = run.learner.loss_scale = LossScale()
    scale.value, scale.growth_interval = 2.0**127, 3  # gradients times this are infinite in float32
    plain.step()
    while run.step_count < 1:
        run.step()
    assert 1 < scale.value < 2.0**127
    assert [u[:6] for u in run.history] == [u[:6] for u in plain.history]
    assert all(
        torch.equal(p, q)
        for p, q in zip(plain.passage_tower.parameters(), run.passage_tower.parameters())
    )
    assert all(
        torch.equal(a.vectors, b.vectors) for a, b in zip(plain.learner.banks, run.learner.banks)
    )
    scale.value = 2.0**10
    before = scale.growth_tracker
    for _ in range(3 - before):
        run.step()
    # after `patience` updates without overflow it doubles
    assert scale.value == 2.0**11
    assert scale.growth_tracker == 0


def test_the_loss_scale_is_saved(toy, tmp_path, monkeypatch):
    run = cl.Run(toy, cl.Settings(**SMALL))
    run.learner.loss_scale = LossScale()
    run.learner.loss_scale.value, run.learner.loss_scale.growth_tracker = 512.0, 7
    run.save(tmp_path)
    monkeypatch.setattr(NoLossScale, "load_state", LossScale.load_state)
    again = cl.Run.load(tmp_path, toy).learner.loss_scale
    assert (again.value, again.growth_tracker) == (512.0, 7)
    stored = json.loads((tmp_path / "run.json").read_text())
    del (
        stored["loss_scale"],
        stored["settings"]["precision"],
        stored["settings"]["compile"],
    )  # as it was saved before there was one
    (tmp_path / "run.json").write_text(json.dumps(stored))
    assert cl.Run.load(tmp_path, toy).learner.loss_scale.value == 1


def test_infinite_vectors_are_not_a_matter_of_scale(toy):
    run = cl.Run(toy, cl.Settings(**SMALL))
    run.learner.loss_scale = LossScale()
    run.learner.loss_scale.value = 2.0**10
    with torch.no_grad():
        run.query_tower.norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        run.step()
    assert run.learner.loss_scale.value == 2.0**10
    assert NoLossScale().backoff() is False and LossScale().backoff() is True


def test_fp16_by_autocast(toy, monkeypatch):
    """The arithmetic of fp16, on the CPU's slow own, which no run is allowed to use."""
    run, plain = cl.Run(toy, cl.Settings(**SMALL)), cl.Run(toy, cl.Settings(**SMALL))
    object.__setattr__(run.settings, "precision", "fp16")
    run.learner.loss_scale = LossScale()
    found, expected = gradients(run), gradients(plain)
    scale = run.learner.loss_scale.value
    assert scale > 1
    assert 1e-6 < distance([g if g is None else g / scale for g in found], expected) < 0.05
    assert (
        abs(run.history[0].grad_norm_passage / plain.history[0].grad_norm_passage - 1) < 0.05
    )  # the scale is taken out again


def test_fp16_needs_cuda_and_float64_no_autocast(toy):
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs a CUDA device; choose 'bf16'"):
            cl.Run(toy, cl.Settings(precision="fp16", **SMALL))
    with pytest.raises(ValueError, match="autocast leaves float64 alone"):
        cl.Run(toy, cl.Settings(precision="bf16", dtype="float64", **SMALL))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fp16_trains_on_cuda(toy):
    run = cl.Run(toy, cl.Settings(precision="fp16", device="cuda", **SMALL | dict(updates=60)))
    list(run)
    assert run.learner.loss_scale.value > 1 and run.evaluate()["top@20"] > 0.25


# --- checkpointed activations, compiled encoders --------------------------------------------------


@pytest.mark.parametrize("method", ["contaccum", "grad_cache"])
def test_checkpointed_activations_give_the_same_gradient(toy, method):
    """With dropout, in float64: noise is drawn again as it was."""
    fields = {k: v for k, v in SMALL.items() if k not in cl.PRESETS[method]["fixed"]}
    runs = [
        cl.Run(
            toy,
            cl.Settings.preset(
                method, tower="bert", dtype="float64", activation_checkpointing=on, **fields
            ),
        )
        for on in (False, True)
    ]
    assert runs[0].learner.has_dropout
    assert any(getattr(m, "gradient_checkpointing", False) for m in runs[1].query_tower.modules())
    plain, checkpointed = (gradients(run) for run in runs)
    assert distance(checkpointed, plain) < 1e-12
    assert cl.activation_memory(runs[1], 32) < 0.7 * cl.activation_memory(runs[0], 32)


def test_a_compiled_encoder_gives_the_same_gradient(toy, monkeypatch):
    """With the backend that only captures the graph: no compiler is needed for it."""
    monkeypatch.setattr(precision, "BACKEND", "eager")
    fields = SMALL | dict(tower="bert", dtype="float64", method="contaccum")
    plain, compiled = (cl.Run(toy, cl.Settings(compile=on, **fields)) for on in (False, True))
    for run in (plain, compiled):
        for module in run.query_tower.modules(), run.passage_tower.modules():
            for m in module:
                if isinstance(m, torch.nn.Dropout):
                    m.p = 0.0
    assert distance(gradients(compiled), gradients(plain)) < 1e-12
    assert (
        compiled.query_tower.state_dict().keys() == plain.query_tower.state_dict().keys()
    )  # saved as any other


def test_what_would_do_nothing_or_harm_is_refused(toy):
    for name in ("activation_checkpointing", "compile"):
        with pytest.raises(ValueError, match=f"{name} is True, but a tower of kind BagTower"):
            cl.Run(toy, cl.Settings(**{name: True}, **SMALL))
    with pytest.raises(ValueError, match="same noise in both passes"):
        cl.Run(toy, cl.Settings.preset("grad_cache", tower="bert", compile=True, dim=16))


def test_texts_of_a_micro_batch_are_padded_to_its_own_longest(toy):
    feed = cl.Run(toy, cl.Settings(**SMALL | dict(passage_tokens=64))).sampler
    for batch in (b for u in range(8) for b in feed.batches(u)):
        assert (batch.passage_tokens != 0).sum(1).max() == batch.passage_tokens.shape[1]
        assert (batch.query_tokens != 0).sum(1).max() == batch.query_tokens.shape[1]


def test_evaluation_takes_texts_of_like_length_together(toy):
    run, shapes = cl.Run(toy, cl.Settings(**SMALL)), []
    run.passage_tower.register_forward_hook(
        lambda module, inputs, output: shapes.append(inputs[0].shape[1])
    )
    run.evaluate()
    assert shapes == sorted(shapes) and len(shapes) == 3


# --- the memory cap -------------------------------------------------------------------------------


def test_sizes():
    assert measure._bytes("11GB") == 11_000_000_000
    assert measure._bytes("1.5 GiB") == 3 * 2**29
    assert measure._bytes("512mb") == 512_000_000
    for wrong in ("11", "GB", "-1GB", "11 potatoes", 0, None):
        with pytest.raises(ValueError, match="write a number and a unit"):
            measure._bytes(wrong)


CAPPED = """
import numpy as np, torch
torch.set_num_threads(1)
from contaccum_lite.diagnostics import measure
try:
    measure.cap_memory("1MB")
except ValueError as error:
    print(error)
measure.cap_memory(int(measure.peak_memory() * 1e6) + 400_000_000)
kept = torch.zeros(25_000_000)                        # 100 MB of it
for make in (lambda: torch.zeros(125_000_000), lambda: np.zeros(500_000_000, np.uint8)):
    try:
        make()
    except (RuntimeError, MemoryError) as error:
        print("beyond", type(error).__name__)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="an address-space limit is Linux's"
)
def test_the_cap_lets_less_in_and_no_more():
    out = subprocess.run(
        [sys.executable, "-c", CAPPED], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "the process holds" in out and out.count("beyond") == 2

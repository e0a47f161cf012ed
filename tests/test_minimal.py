"""ContAccum on one page is what a Run computes."""

import subprocess
import sys

import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.data import toy_pairs
from contaccum_lite.encoders.encode import clone_encoder
from contaccum_lite.minimal import contaccum_update, demo, info_nce

SMALL = {
    "dtype": "float64",
    "dim": 8,
    "local_batch": 5,
    "memory_size": 12,
    "learning_rate": 0.01,
    "warmup": 2,
    "updates": 100,
    "temperature": 1.0,
}


def duplicates_of(run):
    """Which of these pairs share a query or a passage."""
    keys = run.learner.keys

    def duplicates(ids):
        ids = torch.tensor(ids)
        same_query = keys.query[ids][:, None] == keys.query[ids]
        return same_query | (keys.passage[ids][:, None] == keys.passage[ids])

    return duplicates


@pytest.mark.parametrize(
    "method",
    ["contaccum", "contaccum_no_past", "contaccum_no_accum", "pre_batch", "grad_accum", "dpr"],
)
def test_a_run_is_the_page(method):
    """Twelve updates over an epoch's end, with its short micro-batch and copies of passages."""
    fields = {**SMALL, "accumulation_steps": 3}
    fixed = cl.PRESETS[method]["fixed"]
    settings = cl.Settings.preset(method, **{k: v for k, v in fields.items() if k not in fixed})
    run = cl.Run(toy_pairs(47, 8), settings)
    towers = [clone_encoder(tower) for tower in (run.query_tower, run.passage_tower)]
    for tower in towers:
        tower.accumulate_embedding_grad = False
    parameters = [p for tower in towers for p in tower.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.0)
    bank = []
    for step in range(12):
        optimizer.param_groups[0]["lr"] = run.learning_rate(step)
        micro_batches = []
        for batch in run.sampler.batches(step):
            ids = batch.pair_ids.tolist()
            micro_batches.append((ids, batch.query_tokens, batch.passage_tokens))
        losses = contaccum_update(
            *towers,
            optimizer,
            micro_batches,
            bank,
            settings.memory_size,
            settings.temperature,
            settings.clip_norm,
            use_query_bank=settings.query_bank,
            keep_past=settings.past_encoder,
            duplicates=duplicates_of(run),
        )
        assert run.step().loss == pytest.approx(sum(losses) / len(losses), abs=1e-10)
    for ours, theirs in zip(parameters, run.optimizer.param_groups[0]["params"], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-8)


def test_its_loss_is_that_of_the_library():
    rng = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(7, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    expected = cl.info_nce(rows[:3], columns[:3], rows[3:], columns[3:], temperature=0.5)
    assert info_nce(rows, columns, 0.5) == pytest.approx(float(expected), abs=1e-12)


def test_the_bank_helps_in_its_demonstration():
    assert demo(memory_size=64) > demo(memory_size=0) + 0.1


def test_it_runs_as_a_program():
    command = [sys.executable, "-m", "contaccum_lite.minimal"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.count("%") == 3

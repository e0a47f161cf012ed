"""The incremental softmax against the whole matrix.

Drawn sequences, drift, what it multiplies, and whole runs.
"""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import contaccum_lite as cl
from contaccum_lite.scale.incremental_softmax import IncrementalSoftmax
from contaccum_lite.core.options import keeps_scores
from contaccum_lite.core.loss import duplicate_mask, info_nce_with_gradients
from contaccum_lite.scale.incremental_softmax import joint_keys

PAIRS = 40


class Both:
    """Banks, an IncrementalSoftmax over them, and the whole matrix beside it."""

    def __init__(
        self,
        size,
        *,
        dim=5,
        hard=0,
        keep_hard=True,
        query_bank=True,
        temperature=1.0,
        mask=True,
        dtype=torch.float64,
        seed=0,
    ):
        self.draw = torch.Generator().manual_seed(seed)
        self.hard, self.dim, self.dtype, self.temperature = hard, dim, dtype, temperature
        self.banks = [
            cl.MemoryBank(n, dim, dtype) for n in (size * query_bank, size, size * hard * keep_hard)
        ]
        self.keys = (
            tuple(torch.randint(0, PAIRS, (PAIRS,), generator=self.draw) for _ in range(3))
            if mask
            else None
        )
        self.fast = IncrementalSoftmax(*self.banks, temperature, self.keys)

    def vectors(self, count):
        return torch.randn(count, self.dim, generator=self.draw, dtype=self.dtype) * 3

    def micro_batch(self, count):
        ids = torch.randint(0, PAIRS, (count,), generator=self.draw)
        hard_ids = torch.randint(0, PAIRS, (count * self.hard,), generator=self.draw)
        return (
            self.vectors(count),
            self.vectors(count),
            self.vectors(count * self.hard) if self.hard else None,
            ids,
            hard_ids,
        )

    def whole(self, queries, passages, hard, ids, hard_ids):
        columns, hards = (
            torch.cat([ids, self.banks[1].ids]),
            torch.cat([hard_ids, self.banks[2].ids]),
        )
        mask = None
        if self.keys is not None:
            query_keys, passage_keys, text_keys = self.keys
            mask = duplicate_mask(
                torch.cat([query_keys[columns], torch.full((len(hards),), -1)]),
                torch.cat([passage_keys[columns], text_keys[hards]]),
                len(queries) + len(self.banks[0]),
            )
        kept = [bank if len(bank) else None for bank in self.banks]
        return info_nce_with_gradients(
            queries,
            passages,
            *kept[:2],
            hard,
            self.temperature,
            bank_hard_negatives=kept[2],
            mask=mask,
        )

    def error(self, batch) -> float:
        """The largest difference of loss and gradients.

        It is relative to the largest number where that is above 1.
        """
        pairs = [
            (a, b)
            for a, b in zip(self.whole(*batch)[:4], self.fast.contrast(*batch)[:4])
            if a is not None
        ]
        return max(float((a - b).abs().max() / a.abs().max().clamp(min=1)) for a, b in pairs)

    def write(self, batch, entered=True):
        queries, passages, hard, ids, hard_ids = batch
        if entered:
            self.fast.enter()
        for bank, vectors, names in zip(
            self.banks, (queries, passages, hard), (ids, ids, hard_ids)
        ):
            if bank.size:
                bank.write(names, vectors, 0)
        if entered:
            self.fast.settle()


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    size=st.integers(1, 40),
    local=st.integers(1, 9),
    hard=st.integers(0, 2),
    keep_hard=st.booleans(),
    query_bank=st.booleans(),
    mask=st.booleans(),
    temperature=st.sampled_from([0.25, 1.0, 8.0]),
    planned=st.booleans(),
    large=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_drawn_sequences_equal_the_whole_matrix(
    data, size, local, hard, keep_hard, query_bank, mask, temperature, planned, large, seed
):
    # a large bank's sums in blocks, or the full table
    with patch.object(IncrementalSoftmax, "_is_large", lambda self, slices: large):
        draw_sequence(
            data, size, local, hard, keep_hard, query_bank, mask, temperature, planned, seed
        )


def draw_sequence(data, size, local, hard, keep_hard, query_bank, mask, temperature, planned, seed):
    both = Both(
        size,
        hard=hard,
        keep_hard=keep_hard,
        query_bank=query_bank,
        mask=mask,
        temperature=temperature,
        seed=seed,
    )
    epoch = (
        data.draw(st.lists(st.integers(1, local), min_size=1, max_size=5)) if planned else [local]
    )
    if planned:
        both.fast.expect(np.array(epoch))
    for turn in range(data.draw(st.integers(5, 30))):
        event = data.draw(
            st.sampled_from(
                ["go"] * 12
                + ["ragged", "clear", "resize", "written by others", "taken back", "saved"]
            )
        )
        if event == "clear":
            [bank.clear() for bank in both.banks]
        elif event == "resize":
            size = data.draw(st.integers(1, 40))
            [
                bank.resize(n)
                for bank, n in zip(both.banks, (size * query_bank, size, size * hard * keep_hard))
            ]
        elif event == "written by others":
            both.write(both.micro_batch(local), entered=False)
        elif event == "saved":
            state = both.fast.state_dict()
            both.fast = IncrementalSoftmax(*both.banks, temperature, both.keys)
            both.fast.load_state_dict(state)
        batch = both.micro_batch(
            data.draw(st.integers(1, local + 2)) if event == "ragged" else epoch[turn % len(epoch)]
        )
        if event == "taken back":
            marks = [
                (part, part.snapshot(len(ids)))
                for part, ids in zip(
                    (*both.banks, both.fast), (batch[3], batch[3], batch[4], batch[3])
                )
            ]
            assert both.error(batch) < 1e-12
            both.write(batch)
            for part, mark in marks:
                part.restore(mark)
        assert both.error(batch) < 1e-12
        both.write(batch)


def test_a_rhythm_that_was_met_on_the_way_is_taken_back_too():
    both = Both(3, temperature=0.25, mask=False)
    for count, taken_back in ((1, False), (2, True), (2, True), (1, False), (2, False), (2, False)):
        batch = both.micro_batch(count)
        marks = [(part, part.snapshot(len(batch[3]))) for part in (*both.banks, both.fast)]
        assert both.error(batch) < 1e-12
        both.write(batch)
        for part, mark in marks if taken_back else ():
            part.restore(mark)


@pytest.mark.parametrize("temperature", [0.01, 0.05])
def test_scores_of_thousands_do_not_underflow(temperature):
    both = Both(16, temperature=temperature, hard=1)
    for _ in range(60):
        batch = both.micro_batch(4)
        assert (
            both.error(batch) < 1e-11
        )  # of numbers of some thousands, which float64 holds to 1e-12 themselves
        both.write(batch)


def test_no_drift_in_float32():
    both = Both(64, dim=8, dtype=torch.float32, mask=False)
    errors = []
    for turn in range(20_000):
        batch = both.micro_batch(8)
        if turn % 10 == 0:
            errors.append(both.error(batch))
        else:
            both.fast.contrast(*batch)
        both.write(batch)
    assert max(errors[-200:]) <= max(errors[:200]) < 1e-5


class Products(TorchDispatchMode):
    """Counts multiplications of matrix products, and the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.products = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            left, right = args[-2:]
            self.products += left.shape[0] * left.shape[1] * right.shape[1]
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("hard", [0, 1])
@pytest.mark.parametrize("epoch", [[8], [8, 8, 8, 8, 8, 8, 8, 3]])
def test_the_table_needs_no_product_of_its_own(hard, epoch):
    size, dim, local = 128, 16, 8
    both = Both(size, dim=dim, hard=hard)
    both.fast.expect(np.array(epoch))
    for turn in range(200):
        b = epoch[turn % len(epoch)]
        batch = both.micro_batch(b)
        n = len(both.banks[0])
        with Products() as counted:
            both.fast.contrast(*batch)
            both.write(batch)
        columns = b * (1 + hard)
        bank = n * (1 + hard)
        local_rows = (
            2 * b * (columns + bank) * dim - b * (bank) * dim + b * bank * dim + columns * b * dim
        )  # scores, d_queries, d_passages
        banked_rows = 2 * n * columns * dim  # scores, d_passages
        assert counted.products == local_rows + banked_rows, turn
        assert counted.largest <= max(
            (columns + bank) * b + b,
            n * columns,
            size * dim * (1 + hard),
            both.fast.older.numel() + size,
        )
    assert both.fast.bytes < 8 * (size * (size / min(8, np.mean(epoch)) + 3) + 2 * size)


def test_the_sums_of_a_large_bank_take_less_memory_than_the_bank():
    size, dim = 65_536, 768
    banks = [cl.MemoryBank(n, dim) for n in (size, size, 0)]
    fast = IncrementalSoftmax(*banks)
    fast.expect(np.array([8]))
    fast._make_room()
    assert fast.sums is not None and fast.bytes < 0.4 * 2 * size * dim * 4
    small = IncrementalSoftmax(*(cl.MemoryBank(n, dim) for n in (8192, 8192, 0)))
    small.expect(np.array([8]))
    small._make_room()
    assert small.sums is None and small.bytes < 2 * 8192 * dim * 4


def test_a_table_that_was_saved_serves_a_bank_that_keeps_sums_now():
    both = Both(24)
    for _ in range(9):
        batch = both.micro_batch(4)
        both.error(batch)
        both.write(batch)
    state = both.fast.state_dict()
    with patch.object(IncrementalSoftmax, "_is_large", lambda self, slices: True):
        both.fast = IncrementalSoftmax(*both.banks, 1.0, both.keys)
        both.fast.load_state_dict(state)
        assert both.error(both.micro_batch(4)) < 1e-12 and both.fast.sums is not None
        state = both.fast.state_dict()
    both.fast = IncrementalSoftmax(*both.banks, 1.0, both.keys)
    both.fast.load_state_dict(state)
    assert both.error(both.micro_batch(4)) < 1e-12 and both.fast.sums is None


def test_runs_of_a_large_bank_resume_bit_for_bit(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(IncrementalSoftmax, "_is_large", lambda self, slices: True)
    fields = dict(memory_size=37, local_batch=4, accumulation_steps=3, updates=14)
    run = cl.Run(toy, cl.Settings(**fields, similarity="incremental"))
    whole = cl.Run(toy, cl.Settings(**fields, similarity="full", dtype="float32"))
    for _ in range(14):
        if run.step_count == 8:
            run.save(tmp_path / "run")
        assert abs(run.step().loss - whole.step().loss) < 1e-5
    again = cl.Run.load(tmp_path / "run", toy)
    assert again.learner.extension("softmax").table._versions is not None
    while again.step_count < 14:
        again.step()
    for one, other in zip(run.query_tower.parameters(), again.query_tower.parameters()):
        assert torch.equal(one, other)


def test_joint_keys_are_the_relation_or_none():
    found = 0
    for seed in range(300):
        draw = torch.Generator().manual_seed(seed)
        queries, passages = (
            torch.randint(0, 12, (int(torch.randint(1, 9, (1,), generator=draw)),), generator=draw)
            for _ in range(2)
        )
        queries, passages = (
            queries[: min(len(queries), len(passages))],
            passages[: min(len(queries), len(passages))],
        )
        same = (queries[:, None] == queries) | (passages[:, None] == passages)
        keys = joint_keys(queries, passages)
        transitive = torch.equal(same, (same.float() @ same.float()) > 0)
        assert (keys is not None) == transitive
        if keys is not None:
            found += 1
            assert torch.equal(keys[:, None] == keys, same)
    assert 50 < found < 290


BANKED = [name for name in cl.PRESETS if keeps_scores(cl.Settings(method=name))]


@pytest.mark.parametrize("method", BANKED)
@pytest.mark.parametrize(
    "extra",
    [
        dict(),
        dict(hard_negatives=1),
        dict(hard_negatives=2, bank_hard_negatives=False),
        dict(mask_duplicates=False),
        dict(bank_warmup=2),
        dict(drop_query_bank_at=3),
        dict(local_batch=5, memory_size=37),
    ],
)
def test_runs_are_those_of_the_whole_matrix(toy, method, extra):
    fields = (
        dict(method=method, local_batch=4, memory_size=32, updates=12, dtype="float64", tower="bag")
        | extra
    )
    if "accumulation_steps" not in cl.PRESETS[method]["fixed"]:
        fields["accumulation_steps"] = 4
    fast, whole = (
        cl.Run(toy, cl.Settings(**fields, similarity=kind)) for kind in ("incremental", "full")
    )
    assert (fast.similarity, whole.similarity, fast.notes) == ("incremental", "full", whole.notes)
    fast.learner.observed = True
    for _ in range(12):
        for a, b in zip(fast.micro_steps(), whole.micro_steps(), strict=True):
            assert abs(a.loss - b.loss) < 1e-9
            assert a.scores.shape == b.scores.shape
            assert torch.equal(a.column_ids, b.column_ids)
            assert torch.equal(a.row_ids, b.row_ids)
            assert torch.equal(a.scores.isinf(), b.scores.isinf())
            assert torch.allclose(
                a.scores.nan_to_num(neginf=0), b.scores.nan_to_num(neginf=0), atol=1e-8
            )
            assert torch.allclose(a.grad_scores, b.grad_scores, atol=1e-9)
        assert abs(fast.history[-1].grad_norm_ratio - whole.history[-1].grad_norm_ratio) < 1e-6
        assert fast.history[-1].negatives == whole.history[-1].negatives


def test_a_ragged_end_of_an_epoch_is_known_ahead(toy, monkeypatch):
    run = cl.Run(
        toy,
        cl.Settings(
            local_batch=7,
            accumulation_steps=3,
            memory_size=50,
            updates=60,
            similarity="incremental",
        ),
    )
    assert len(set(run.sampler.sizes)) == 2
    made = []
    keep = IncrementalSoftmax._catch_up
    monkeypatch.setattr(
        IncrementalSoftmax,
        "_catch_up",
        lambda self: (
            made.append(self._now() != self._versions and len(self.query_bank) > 0),
            keep(self),
        ),
    )
    for _ in run:
        pass
    assert not any(made) and run.step_count > 2 * run.sampler.updates_per_epoch


def test_where_scores_do_not_stay_the_whole_matrix_is_used_and_it_is_said(toy):
    run = cl.Run(toy, cl.Settings(method="momentum", memory_size=32, similarity="incremental"))
    assert run.similarity == "full" and any("slow towers" in note for note in run.notes)
    assert cl.Run(toy, method="dpr").similarity == "full" and cl.Run(toy, method="dpr").notes == ()
    run = cl.Run(toy, memory_size=32, local_batch=4, accumulation_steps=2, similarity="incremental")
    run.step()
    seen = []
    run.learner.gradient_hook = lambda found: (seen.append(tuple(found.grad_scores.shape)), found)[
        1
    ]
    run.step()
    assert seen == [(12, 12), (16, 16)] and run.similarity == "full"
    run.learner.gradient_hook = None
    run.step()
    assert run.similarity == "incremental" and len(seen) == 2


def test_the_usual_way_follows_the_size():
    small, large = cl.Settings(memory_size=128), cl.Settings(memory_size=1024)
    assert (small.similarity, large.similarity) == ("full", "incremental")
    assert small.replace(memory_size=1024) == large and large.replace(memory_size=128) == small
    assert large.share() == "method=contaccum&start=pretrained&memory_size=1024"
    assert "similarity=full" in large.replace(similarity="full").share()
    assert large.replace(similarity="full").replace(seed=1).similarity == "full"
    for settings_ in (
        small,
        large,
        large.replace(similarity="full"),
        small.replace(similarity="incremental"),
        cl.Settings(method="momentum", memory_size=512),
    ):
        assert cl.Settings.parse(settings_.share()) == settings_
    assert (
        cl.Settings(method="momentum", memory_size=512).similarity
        == cl.Settings(method="dpr").similarity
        == "full"
    )


def test_a_matrix_can_be_looked_at_where_the_run_is_observed(toy):
    run = cl.Run(toy, memory_size=32, local_batch=4, accumulation_steps=3, similarity="incremental")
    first, *_ = run.micro_steps()
    assert not first.has_matrix
    with pytest.raises(RuntimeError, match="observed = True before the update"):
        _ = first.scores
    run.learner.observed = True
    first, second, third = run.micro_steps()
    assert first.has_matrix and third.scores.shape[1] == min(12 + 4 + 8, 36)
    full = cl.Run(toy, run.settings.replace(similarity="full"))
    full.step()
    for kept, whole in zip((first, second, third), full.micro_steps()):
        assert torch.allclose(kept.scores, whole.scores, atol=1e-4)
        assert torch.allclose(kept.grad_scores, whole.grad_scores, atol=1e-5)


def test_a_lab_changes_over_and_shows_the_same(toy):
    lab = cl.Lab(toy, local_batch=4, accumulation_steps=2, memory_size=128, updates=30)
    lab.run(3)
    assert lab.training.similarity == "full"
    lab.memory_size = 512
    lab.run(3)
    assert lab.training.similarity == lab.similarity == "incremental"
    assert lab.training.settings.memory_size == 512
    line, sentence = lab.share(), lab.views.matrix.sentence
    again = cl.Lab(toy)
    again.load(line)
    again.run(6)
    assert again.views.matrix.sentence == sentence
    lab.step("micro-batch")
    micro = lab.micro
    lab.stop()
    assert lab.micro is micro
    assert micro.has_matrix
    assert lab.views.matrix.data()["values"].shape == micro.scores.shape
    lab.memory_size = 64
    lab.run(1)
    assert lab.training.similarity == lab.similarity == "full"


def test_what_is_missing_is_said():
    both = Both(8, hard=1)
    queries, passages, hard, ids, hard_ids = both.micro_batch(2)
    with pytest.raises(RuntimeError, match="call contrast first"):
        both.fast.enter()
    with pytest.raises(ValueError, match="give pair_ids"):
        both.fast.contrast(queries, passages)
    with pytest.raises(ValueError, match="and hard_ids where there are hard negatives"):
        both.fast.contrast(queries, passages, hard, ids)
    both.error((queries, passages, hard, ids, hard_ids))
    both.fast.enter()
    with pytest.raises(RuntimeError, match="enter once after it"):
        both.fast.enter()


@pytest.mark.parametrize(
    "change, words",
    [
        (
            dict(queries=torch.zeros(2, 5)),
            "2 queries and 4 passages: expected one passage per query",
        ),
        (dict(passages=torch.zeros(1, 5)), "4 queries and 1 passages"),
        (dict(queries=torch.zeros(0, 5), passages=torch.zeros(0, 5)), "at least one"),
        (dict(queries=torch.zeros(4, 6)), r"queries is \(4, 6\): expected a tensor \(number, 5\)"),
        (dict(passages=torch.zeros(5)), r"passages is \(5,\)"),
        (dict(queries=[[0.0] * 5] * 4), "queries is a list"),
        (dict(hard=torch.zeros(3, 5)), "3 hard negatives for 4 queries: expected 4"),
        (dict(hard=None, hard_ids=None), "0 hard negatives for 4"),
        (dict(pair_ids=torch.arange(3)), r"pair_ids is \(3,\): expected \(4,\)"),
        (dict(hard_ids=torch.arange(3)), r"hard_ids is \(3,\): expected \(4,\)"),
    ],
)
def test_what_does_not_fit_together_is_named_and_changes_nothing(change, words):
    both = Both(8, hard=1)
    for _ in range(2):
        batch = both.micro_batch(4)
        both.fast.contrast(*batch)
        both.write(batch)
    next_batch = both.micro_batch(4)
    given = dict(zip(("queries", "passages", "hard", "pair_ids", "hard_ids"), next_batch)) | change
    with pytest.raises(ValueError, match=words):
        both.fast.contrast(**given)
    assert both.error(next_batch) < 1e-12


@pytest.mark.parametrize(
    "sizes, dims",
    [
        ((4, 8, 0), (5, 5, 5)),
        ((8, 8, 12), (5, 5, 5)),
        ((8, 8, 8), (5, 5, 6)),
        ((8, 0, 0), (5, 5, 5)),
    ],
)
def test_banks_that_do_not_go_together_are_refused(sizes, dims):
    with pytest.raises(ValueError, match="slots for queries, passages and hard negatives"):
        IncrementalSoftmax(*(cl.MemoryBank(size, dim) for size, dim in zip(sizes, dims)))


def test_a_temperature_an_epoch_or_a_bank_that_cannot_be_is_refused():
    banks = [cl.MemoryBank(size, 5) for size in (4, 4, 0)]
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature is"):
            IncrementalSoftmax(*banks, temperature)
    fast = IncrementalSoftmax(*banks)
    for sizes, place in (([], 0), ([2, 0], 0), ([2, 2], 2), ([2, 2], -1), ([[2]], 0)):
        with pytest.raises(ValueError, match="expect got sizes"):
            fast.expect(np.array(sizes), place)
    banks[1].write(torch.arange(2), torch.zeros(2, 5), 0)
    banks[0].write(torch.arange(1), torch.zeros(1, 5), 0)
    with pytest.raises(ValueError, match="the query bank holds 1 vectors and the passage bank 2"):
        fast.contrast(torch.zeros(2, 5), torch.zeros(2, 5))

"""MemoryBank against a list."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from oracle import FifoLoop

import contaccum_lite as cl


def rows(start, count, dim=3):
    return torch.arange(start, start + count), torch.arange(
        start, start + count, dtype=torch.float32
    )[:, None].expand(count, dim)


@given(st.integers(0, 12), st.lists(st.integers(0, 15), max_size=12))
@settings(max_examples=150, deadline=None)
def test_a_ring_is_a_list_of_the_newest(size, counts):
    bank, plain, written = cl.MemoryBank(size, 3), FifoLoop(size), 0
    for step, count in enumerate(counts):
        ids, vectors = rows(written, count)
        bank.write(ids, vectors, step)
        plain.write([(int(i), step) for i in ids])
        written += count
        order = bank.order()
        assert bank.ids[order].tolist() == [i for i, _ in plain.items]
        assert bank.vectors[order, 0].tolist() == [float(i) for i, _ in plain.items]
        assert bank.ages(step)[order].tolist() == [step - born for _, born in plain.items]
        assert len(bank) == len(plain.items)


def test_two_banks_written_in_step_keep_pairs_together():
    a, b = cl.MemoryBank(10, 3), cl.MemoryBank(10, 3)
    for step in range(7):
        ids, vectors = rows(4 * step, 4)
        a.write(ids, vectors, step)
        b.write(ids, -vectors, step)
        assert torch.equal(a.ids, b.ids) and torch.equal(a.vectors, -b.vectors)


def test_what_is_stored_has_no_graph_and_is_a_copy():
    bank, vectors = cl.MemoryBank(4, 2), torch.ones(2, 2, requires_grad=True)
    bank.write(torch.arange(2), vectors * 2, 0)
    assert not bank.vectors.requires_grad
    with torch.no_grad():
        vectors += 5
    assert (bank.vectors == 2).all()


@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 14), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_resize_keeps_the_newest(size, new_size, written, more):
    bank, plain = cl.MemoryBank(size, 2), FifoLoop(size)
    for i in range(written):
        bank.write(torch.tensor([i]), torch.full((1, 2), float(i)), i)
        plain.write([i])
    bank.resize(new_size)
    plain.size, plain.items = new_size, plain.items[-new_size:] if new_size else []
    for i in range(100, 100 + more):
        bank.write(torch.tensor([i]), torch.full((1, 2), float(i)), i)
        plain.write([i])
    assert bank.ids[bank.order()].tolist() == plain.items


@given(
    st.integers(0, 7),
    st.lists(st.integers(0, 9), max_size=5),
    st.lists(st.integers(0, 9), max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_restore_takes_writes_back(size, before, after):
    bank, n = cl.MemoryBank(size, 2), 0
    for count in before:
        bank.write(*rows(n, count, 2), n)
        n += count
    saved = {name: t.clone() for name, t in bank.state_dict().items()}
    mark = bank.snapshot(sum(after))
    for count in after:
        bank.write(*rows(n, count, 2), n)
        n += count
    bank.restore(mark)
    assert all(torch.equal(saved[name], t) for name, t in bank.state_dict().items())


def test_state_includes_the_write_position():
    bank, other = cl.MemoryBank(5, 2), cl.MemoryBank(5, 2)
    for step in range(3):
        bank.write(*rows(3 * step, 3, 2), step)
    other.load_state_dict(bank.state_dict())
    for b in (bank, other):
        b.write(*rows(50, 3, 2), 9)
    assert torch.equal(bank.ids, other.ids)
    assert torch.equal(bank.vectors, other.vectors)
    assert bank.write_ptr == other.write_ptr


def test_clear_forgets_everything():
    bank = cl.MemoryBank(5, 2)
    bank.write(*rows(0, 3, 2), 0)
    bank.clear()
    assert len(bank) == 0 and bank.vectors.shape == (0, 2)


# --- when memory runs out -------------------------------------------------------------------------


class Memory:
    """Memory that runs out at the allocation of this number; `asked` counts them."""

    def __init__(self, monkeypatch, at):
        self.at, self.asked = at, 0
        for name in ("zeros", "full", "empty", "arange"):
            monkeypatch.setattr(torch, name, self._counted(getattr(torch, name)))

    def _counted(self, allocate):
        def counted(*arguments, **more):
            self.asked += 1
            if self.asked == self.at:
                raise RuntimeError("not enough memory: you tried to allocate 4 TB.")
            return allocate(*arguments, **more)

        return counted


def until_it_fits(monkeypatch, act, check):
    """Do it with memory that runs out at the first allocation, at the second, …, until it fits.

    How often it did not.
    """
    for at in range(1, 100):
        with monkeypatch.context() as patch:
            memory = Memory(patch, at)
            try:
                act()
            except (RuntimeError, MemoryError) as error:
                assert "not enough memory" in str(error)
            else:
                assert memory.asked < at
                return at - 1
        check()


def snapshot(bank):
    return {name: tensor.tolist() for name, tensor in bank.state_dict().items()} | {
        "size": bank.size,
        "length": len(bank),
    }


@pytest.mark.parametrize("size", [0, 3, 9])
def test_a_bank_that_cannot_be_resized_is_as_it_was(monkeypatch, size):
    bank = cl.MemoryBank(5, 2)
    for step in range(3):
        bank.write(*rows(3 * step, 3, 2), step)
    before, newest = snapshot(bank), bank.ids[bank.order()].tolist()

    def check():
        assert snapshot(bank) == before
        assert bank.ids[bank.order()].tolist() == newest

    assert until_it_fits(monkeypatch, lambda: bank.resize(size), check) >= 3
    assert bank.size == size
    assert bank.ids[bank.order()].tolist() == newest[len(newest) - min(size, 5) :]


@pytest.mark.parametrize("similarity", ["full", "incremental"])
@pytest.mark.parametrize("size", [4, 40])
def test_a_run_whose_banks_cannot_be_resized_goes_on_as_if_nothing_was_asked(
    monkeypatch, toy, similarity, size
):
    fields = dict(
        dim=8,
        local_batch=4,
        accumulation_steps=2,
        memory_size=10,
        updates=9,
        hard_negatives=1,
        similarity=similarity,
    )
    run, alone = cl.Run(toy, **fields), cl.Run(toy, **fields)
    for _ in range(3):
        run.step(), alone.step()
    before = run.settings, [snapshot(bank) for bank in run.learner.banks]

    def check():
        assert (run.settings, [snapshot(bank) for bank in run.learner.banks]) == before
        assert run.learner.settings is run.settings

    assert (
        until_it_fits(monkeypatch, lambda: run.change(learning_rate=0.001, memory_size=size), check)
        >= 9
    )  # in each of three banks
    alone.change(learning_rate=0.001, memory_size=size)
    assert [snapshot(bank) for bank in run.learner.banks] == [
        snapshot(bank) for bank in alone.learner.banks
    ]
    assert [u.loss for u in run] == [u.loss for u in alone]


def test_a_table_that_cannot_be_made_is_made_at_the_next_update(monkeypatch, toy):
    fields = dict(
        dim=8,
        local_batch=4,
        accumulation_steps=2,
        memory_size=10,
        updates=9,
        similarity="incremental",
    )
    run, alone = cl.Run(toy, **fields), cl.Run(toy, **fields)
    for each in (run, alone):
        for _ in range(3):
            each.step()
        each.change(memory_size=24)
    made = len(run.history)

    def check():
        assert len(run.history) == made
        shapes = (
            run.learner.extension("softmax").table.newer.shape,
            run.learner.extension("softmax").table.positives.shape,
        )
        assert shapes == (run.learner.extension("softmax").table.older.shape[1:],) * 2

    assert until_it_fits(monkeypatch, run.step, check) >= 3
    alone.step()
    assert [u.loss for u in run] == [u.loss for u in alone]
    assert [u.loss for u in run.history] == [u.loss for u in alone.history]


def test_a_table_of_ones_own_is_whole_or_made_anew(monkeypatch):
    """Without a run that takes an update back, losses are those of a table that never failed."""
    draw = torch.Generator().manual_seed(0)
    vectors = [torch.randn(4, 3, generator=draw) for _ in range(20)]
    banks, others = ([cl.MemoryBank(size, 3) for size in (6, 6, 0)] for _ in range(2))
    softmax, other = cl.IncrementalSoftmax(*banks), cl.IncrementalSoftmax(*others)

    def feed(softmax, banks, step):
        loss = softmax.contrast(vectors[2 * step], vectors[2 * step + 1]).loss
        softmax.enter()
        for bank, new in zip(banks, vectors[2 * step :]):
            bank.write(torch.arange(4), new, step)
        softmax.settle()
        return loss

    for step in range(3):
        feed(softmax, banks, step), feed(other, others, step)
    for bank in (*banks[:2], *others[:2]):
        bank.resize(11)
    query, passage = vectors[6:8]
    expected = other.contrast(query, passage).loss
    failures = until_it_fits(monkeypatch, lambda: softmax.contrast(query, passage), lambda: None)
    assert failures >= 3 and softmax.contrast(query, passage).loss == expected
    for step in range(3, 9):
        assert feed(softmax, banks, step) == feed(other, others, step)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"expected \(B, 2\)"):
        cl.MemoryBank(5, 2).write(torch.arange(3), torch.zeros(3, 4), 0)
    with pytest.raises(ValueError, match="size must be 0 or more"):
        cl.MemoryBank(-1, 2)
    with pytest.raises(ValueError, match="the state is of a bank of"):
        cl.MemoryBank(5, 2).load_state_dict(cl.MemoryBank(4, 2).state_dict())


@pytest.mark.parametrize(
    "size, dim", [(2.5, 3), ("8", 3), (8, 3.0), (None, 3), (8, 0), (float("nan"), 3)]
)
def test_a_bank_has_whole_numbers(size, dim):
    with pytest.raises(ValueError, match="in whole numbers"):
        cl.MemoryBank(size, dim)


def test_ids_that_do_not_fit_leave_the_bank_as_it_was():
    bank = cl.MemoryBank(4, 2)
    bank.write(torch.arange(3), torch.ones(3, 2), 0)
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    for ids in (torch.zeros(2, 1), torch.tensor(1), [[1, 2], [3, 4]]):
        with pytest.raises(ValueError, match=r"expected \(B, 2\) and \(B,\)"):
            bank.write(ids, torch.zeros(2, 2), 1)
    assert all(torch.equal(before[name], value) for name, value in bank.state_dict().items())

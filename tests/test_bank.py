"""MemoryBank against a list."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from oracle import FifoLoop

import contaccum_lite as cl


def rows(start, count, dim=3):
    return torch.arange(start, start + count), torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, dim)


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


@given(st.integers(0, 7), st.lists(st.integers(0, 9), max_size=5), st.lists(st.integers(0, 9), max_size=4))
@settings(max_examples=100, deadline=None)
def test_restore_takes_writes_back(size, before, after):
    bank, n = cl.MemoryBank(size, 2), 0
    for count in before:
        bank.write(*rows(n, count, 2), n)
        n += count
    saved = {name: t.clone() for name, t in bank.state_dict().items()}
    mark = bank.mark(sum(after))
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
    assert torch.equal(bank.ids, other.ids) and torch.equal(bank.vectors, other.vectors) and bank.next_slot == other.next_slot


def test_clear_forgets_everything():
    bank = cl.MemoryBank(5, 2)
    bank.write(*rows(0, 3, 2), 0)
    bank.clear()
    assert len(bank) == 0 and bank.vectors.shape == (0, 2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"expected \(B, 2\)"):
        cl.MemoryBank(5, 2).write(torch.arange(3), torch.zeros(3, 4), 0)
    with pytest.raises(ValueError, match="size must be 0 or more"):
        cl.MemoryBank(-1, 2)
    with pytest.raises(ValueError, match="the state is of a bank of"):
        cl.MemoryBank(5, 2).load_state_dict(cl.MemoryBank(4, 2).state_dict())

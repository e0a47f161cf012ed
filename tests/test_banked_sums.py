"""Sums of banked rows over a sliding bank, against sums over all the scores, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contaccum_lite.scale.banked_sums import BankedSums, block_strides


class Bank:
    """A ring of rows and columns, some pairs of which are left out, and its sums."""

    def __init__(self, size, strides, seed=0, spread=3.0):
        self.draw = torch.Generator().manual_seed(seed)
        self.size, self.spread = size, spread
        self.queries = torch.zeros(size, 4, dtype=torch.float64)
        self.passages = torch.zeros(size, 4, dtype=torch.float64)
        self.keys = torch.zeros(size, dtype=torch.int64)
        self.next, self.count = 0, 0
        self.products = 0
        self.sums = BankedSums(size, self.scores, strides, dtype=torch.float64)

    def scores(self, rows, columns):
        scores = self.queries[rows] @ self.passages[columns].T
        self.products += scores.numel()
        same = self.keys[rows][:, None] == self.keys[columns]
        return scores.masked_fill(same & (rows[:, None] != columns), -torch.inf)

    def vectors(self, count):
        vectors = torch.randn(count, 4, generator=self.draw, dtype=torch.float64)
        return vectors * self.spread

    def step(self, count, entered=True):
        queries, passages = self.vectors(count), self.vectors(count)
        keys = torch.randint(0, 30, (count,), generator=self.draw)
        new = min(count, self.size)
        oldest = (self.next - self.count) % self.size
        order = (torch.arange(self.count) + oldest) % self.size
        after = [tensor.clone() for tensor in (self.queries, self.passages, self.keys)]
        slots = (self.next + torch.arange(new)) % self.size
        for tensor, values in zip(after, (queries, passages, keys)):
            tensor[slots] = values[-new:]
        if entered:
            stay = order[self.count - (min(self.count + new, self.size) - new) :]
            rows = slots
            columns = torch.cat([stay, slots])
            scores = after[0][rows] @ after[1][columns].T
            same = after[2][rows][:, None] == after[2][columns]
            scores = scores.masked_fill(same & (rows[:, None] != columns), -torch.inf)
            entering = None
            if self.count:
                local = self.queries[: self.count] @ passages.T
                masked = self.keys[: self.count, None] == keys
                entering = local.masked_fill(masked, -torch.inf).logsumexp(1)
            self.sums.enter(scores, entering)
        self.queries, self.passages, self.keys = after
        self.next = (self.next + new) % self.size
        self.count = min(self.count + new, self.size)

    def fill(self):
        self.sums.fill((self.next - self.count) % self.size, self.count)

    def error(self):
        slots = torch.arange(self.count)
        wanted = self.scores(slots, slots).logsumexp(1)
        return (self.sums.totals() - wanted).abs().max().item() if self.count else 0.0


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    size=st.integers(1, 60),
    strides=st.sampled_from([[4, 1], [8, 1], [2, 1], [64, 1], [16, 4, 1], [8, 4, 2, 1], [1]]),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
    seed=st.integers(0, 10**6),
)
def test_drawn_sequences_equal_the_sums_over_all_scores(data, size, strides, spread, seed):
    bank = Bank(size, strides, seed, spread)
    events = ["go"] * 10 + ["filled again", "by others", "taken back", "saved"]
    for _ in range(data.draw(st.integers(5, 40))):
        event = data.draw(st.sampled_from(events))
        if event == "filled again":
            bank.fill()
        elif event == "by others":
            bank.step(data.draw(st.integers(1, 5)), entered=False)
            bank.fill()
        elif event == "saved":
            state = bank.sums.state_dict()
            bank.sums = BankedSums(size, bank.scores, strides, dtype=torch.float64)
            assert bank.sums.load_state_dict(state)
        count = data.draw(st.integers(1, 9))
        if event == "taken back":
            before = bank.queries, bank.passages, bank.keys, bank.next, bank.count
            snapshot = bank.sums.snapshot(count)
            bank.error()
            bank.step(count)
            bank.error()
            bank.queries, bank.passages, bank.keys, bank.next, bank.count = before
            bank.sums.restore(snapshot)
        assert bank.error() < 1e-12 * max(1, spread**2)
        bank.step(count)
    assert bank.error() < 1e-12 * max(1, spread**2)


def test_many_rows_at_a_time_are_the_same():
    bank = Bank(300, [16, 1], spread=10.0)
    for turn in range(90):
        bank.step(7)
        if turn == 60:
            bank.fill()
        assert bank.error() < 1e-10


def test_a_state_of_other_strides_is_not_taken():
    bank = Bank(20, [4, 1])
    bank.step(8)
    state = bank.sums.state_dict()
    assert not BankedSums(20, bank.scores, [8, 1], dtype=torch.float64).load_state_dict(state)
    assert not BankedSums(20, bank.scores, [4, 2, 1], dtype=torch.float64).load_state_dict(state)
    assert not BankedSums(21, bank.scores, [4, 1], dtype=torch.float64).load_state_dict(state)
    assert not BankedSums(20, bank.scores, [4, 1], dtype=torch.float64).load_state_dict({})


@pytest.mark.parametrize("size", [1, 7, 256, 1024, 65_536, 262_144])
@pytest.mark.parametrize("numbers", [128, 1536])
def test_strides_keep_few_numbers(size, numbers):
    strides = block_strides(size, numbers)
    assert strides[-1] == 1 and len(strides) >= 2
    assert all(coarse % fine == 0 and coarse > fine for coarse, fine in zip(strides, strides[1:]))
    bank = BankedSums(min(size, 1024), None, strides)
    per_row = sum(len(level) for level in bank.levels)
    assert per_row <= numbers
    assert (len(strides) == 2) == (size < 16_384 or numbers == 1536)


def test_scores_are_computed_again_once_for_each_level():
    """N scores for each column that leaves, and not more."""
    for strides, levels in (([16, 1], 1), ([64, 8, 1], 2)):
        bank = Bank(256, strides)
        for _ in range(64):
            bank.step(8)
            bank.sums.totals()
        bank.products = 0
        for _ in range(128):
            bank.step(8)
            bank.sums.totals()
        assert bank.products <= levels * 256 * 8 * 128
        assert bank.products >= 0.4 * levels * 256 * 8 * 128


def test_large_scores_keep_the_small_ones_behind_them():
    """A column of score 900 leaves, and those of score 0 are still there to 1e-12."""
    bank = Bank(32, [8, 1], spread=1.0)
    for turn in range(20):
        bank.step(4)
        if turn == 5:
            bank.passages *= 300
            bank.fill()
        assert bank.error() < 1e-10
    assert bank.sums.totals().max() < 50

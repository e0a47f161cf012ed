"""Every method against its reference, in float64."""

import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.data.types import Pairs
from contaccum_lite.data.toy import toy_pairs
from contaccum_lite.encoders.encode import clone_encoder

TIGHT = 1e-10
SMALL = dict(
    dtype="float64",
    dim=8,
    learning_rate=0.01,
    warmup=2,
    temperature=1.0,
    passage_tokens=16,
    query_tokens=8,
)


def crowded_pairs(train=47):
    """Toy pairs in which some queries and some passages occur twice."""
    pairs = toy_pairs(train, 8)
    rows = list(pairs.train)
    for a, b in ((0, 9), (3, 20), (5, 41)):
        rows[b] = rows[b]._replace(
            passage=rows[a].passage, title=rows[a].title, passage_id=rows[a].passage_id
        )
    for a, b in ((1, 12), (7, 30)):
        rows[b] = rows[b]._replace(query=rows[a].query)
    return Pairs("crowded", rows, pairs.test, pairs.passages)


def weights(run):
    return torch.cat(
        [p.detach().flatten() for tower in run.learner.towers for p in tower.parameters()]
    )


def close(a, b):
    return (a - b).abs().max().item() < TIGHT


def both(pairs, one, other, updates):
    """Two runs made side by side have the same loss and the same gradient at each update.

    Their weights are held to 1e-8 only: where a gradient is 0 in exact arithmetic (a passage tower's last bias: InfoNCE
    does not change if all passages shift), Adam divides rounding noise of 1e-17 by its eps of 1e-8.
    """
    a, b = (
        cl.Run(pairs, cl.Settings(**{**SMALL, "updates": 1000, **fields}))
        for fields in (one, other)
    )
    for _ in range(updates):
        gradients = []
        for run in (a, b):
            for micro in run.micro_steps():
                whole = (
                    gradient(run)
                    if micro.index == micro.of - 1 or run.settings.method == "grad_cache"
                    else None
                )
            gradients.append(whole)
        assert abs(a.history[-1].loss - b.history[-1].loss) < TIGHT
        assert gradients[0].norm() > 1e-3 and close(*gradients)
        assert (weights(a) - weights(b)).abs().max() < 1e-8
    return a, b


def gradient(run):
    return torch.cat([p.grad.flatten() for tower in run.learner.towers for p in tower.parameters()])


# --- ContAccum against a loop ---------------------------------------------------------------------


class Reference:
    """ContAccum written plainly.

    Lists for banks, a loop over rows and columns for the loss, autograd for the gradient.
    """

    def __init__(self, run):
        s = self.settings = run.settings
        self.pairs, self.run = run.pairs, run
        self.query_tower, self.passage_tower = (
            clone_encoder(run.query_tower),
            clone_encoder(run.passage_tower),
        )
        for tower in (self.query_tower, self.passage_tower):
            tower.accumulate_embedding_grad = False
        self.parameters = [*self.query_tower.parameters(), *self.passage_tower.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1.0, weight_decay=0.0)
        self.bank, self.hard_bank, self.losses = [], [], []
        self.text = {p.id: p.text for p in self.pairs.passages}

    def loss(self, q, p, h, batch):
        s, train = self.settings, self.pairs.train
        per = s.hard_negatives
        bank = self.bank if s.passage_bank else []
        memory_rows = [(i, vq) for i, vq, _ in bank] if s.query_bank else []
        rows = [(int(i), v) for i, v in zip(batch.pair_ids, q)] + memory_rows
        columns = [("pair", int(i), v) for i, v in zip(batch.pair_ids, p)] + [
            ("pair", i, vp) for i, _, vp in bank
        ]
        columns += [("hard", int(i), v) for i, v in zip(batch.hard_ids, h)] if per else []
        columns += [("hard", i, v) for i, v in self.hard_bank]
        total = 0.0
        for i, (own, query) in enumerate(rows):
            exps, positive = [], None
            for j, (kind, other, passage) in enumerate(columns):
                text = train[other].passage if kind == "pair" else self.pairs.passages[other].text
                same_query = kind == "pair" and train[other].query == train[own].query
                if i != j and s.mask_duplicates and (same_query or text == train[own].passage):
                    continue
                score = (query * passage).sum() / s.temperature
                exps.append(score.exp())
                positive = score if i == j else positive
            total = total + sum(exps).log() - positive
        return total / len(rows)

    def update(self, batches, step):
        s = self.settings
        self.optimizer.zero_grad()
        for batch in batches:
            q = self.query_tower(batch.query_tokens)
            columns = self.passage_tower(batch.passage_tokens)
            p, h = columns[: len(q)], columns[len(q) :]
            loss = self.loss(q, p, h, batch)
            self.losses.append(loss.item())
            (loss / len(batches)).backward()
            self.bank += [(int(i), a.detach(), b.detach()) for i, a, b in zip(batch.pair_ids, q, p)]
            self.bank = self.bank[-s.memory_size :] if s.memory_size else []
            if s.hard_negatives and s.bank_hard_negatives:
                self.hard_bank += [(int(i), v.detach()) for i, v in zip(batch.hard_ids, h)]
                self.hard_bank = self.hard_bank[-s.memory_size * s.hard_negatives :]
        torch.nn.utils.clip_grad_norm_(self.parameters, s.clip_norm)
        self.optimizer.param_groups[0]["lr"] = self.run.learning_rate(step)
        self.optimizer.step()
        if not s.past_encoder:
            self.bank, self.hard_bank = [], []

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.parameters])


@pytest.mark.parametrize(
    "method, extra",
    [
        ("contaccum", {}),
        ("contaccum", dict(hard_negatives=1)),
        ("contaccum", dict(hard_negatives=2, bank_hard_negatives=False)),
        ("contaccum", dict(mask_duplicates=False)),
        ("contaccum_no_past", dict(hard_negatives=1)),
        ("pre_batch", dict(hard_negatives=1)),
        ("pre_batch_no_past", {}),
        ("contaccum_no_accum", dict(hard_negatives=1)),
    ],
)
def test_sixty_micro_batches_equal_the_loop(method, extra):
    """Partial fill, eviction, a ragged last batch in each epoch, duplicates and hard negatives.

    All at once.
    """
    pairs = crowded_pairs()
    steps = {} if method == "contaccum_no_accum" else dict(accumulation_steps=3)
    run = cl.Run(
        pairs,
        cl.Settings.preset(
            method,
            local_batch=5,
            memory_size=12,
            updates=1000,
            clip_norm=0.5,
            **steps,
            **SMALL,
            **extra,
        ),
    )
    reference = Reference(run)
    losses, sizes, masked = [], set(), 0
    while len(losses) < 60:
        batches = run.sampler.batches(run.step_count)
        reference.update(batches, run.step_count)
        for micro in run.micro_steps():
            losses.append(micro.loss)
            sizes.add(tuple(micro.scores.shape))
            masked += int(micro.scores.isinf().sum())
        assert max(abs(a - b) for a, b in zip(losses, reference.losses)) < TIGHT
        assert close(weights(run), reference.weights())
    assert len(losses) == len(reference.losses)
    # it was ragged, or filled up
    assert len({rows for rows, _ in sizes}) >= 2
    assert masked > 0 if run.settings.mask_duplicates else masked == 0
    if run.settings.past_encoder:
        assert len(run.passage_bank) == 12


# --- identities -----------------------------------------------------------------------------------


def test_grad_accum_with_one_step_is_dpr(toy):
    both(
        toy,
        dict(method="grad_accum", local_batch=16, accumulation_steps=1),
        dict(method="dpr", local_batch=16),
        6,
    )


@pytest.mark.parametrize("hard", [0, 1])
def test_contaccum_without_memory_is_grad_accum(toy, hard):
    shape = dict(local_batch=4, accumulation_steps=4, hard_negatives=hard)
    both(
        toy, dict(method="contaccum", memory_size=0, **shape), dict(method="grad_accum", **shape), 6
    )


@pytest.mark.parametrize("hard", [0, 1, 2])
@pytest.mark.parametrize(
    "shape",
    [
        dict(local_batch=4, accumulation_steps=4),
        dict(local_batch=5, accumulation_steps=3),
        dict(local_batch=16, accumulation_steps=1),
    ],
)
def test_grad_cache_is_the_big_batch(hard, shape):
    pairs = crowded_pairs()
    total = shape["local_batch"] * shape["accumulation_steps"]
    both(
        pairs,
        dict(method="grad_cache", hard_negatives=hard, **shape),
        dict(method="dpr", hard_negatives=hard, local_batch=total),
        8,
    )


def test_grad_cache_replays_dropout(toy):
    """With noise on: the same vectors as one graph over all micro-batches gives.

    Each is under its own noise.
    """
    settings = cl.Settings.preset(
        "grad_cache", tower="bert", local_batch=4, accumulation_steps=3, **{**SMALL, "updates": 50}
    )
    run = cl.Run(toy, settings)
    assert run.learner.has_dropout
    for step in range(3):
        batches = run.sampler.batches(step)
        towers = [clone_encoder(t) for t in run.learner.towers]
        parts = []
        for k, batch in enumerate(batches):
            with run.learner.replayable_rng(step, k):
                parts.append(run.learner.encode(batch, towers=towers))
        q, p = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("queries", "passages")
        )
        loss = cl.info_nce(q, p, temperature=settings.temperature)
        loss.backward()
        found = []
        for micro in run.micro_steps():
            if micro is not None and len(found) < len(batches):
                found.append(micro.loss)
            if len(found) == len(batches):
                gradients = [g.grad.clone() for t in run.learner.towers for g in t.parameters()]
        assert all(abs(value - loss.item()) < TIGHT for value in found)
        for ours, whole in zip(gradients, [g.grad for t in towers for g in t.parameters()]):
            assert close(ours, whole)
    with run.learner.replayable_rng(0, 0):
        once = run.learner.encode(batches[0]).queries
    with run.learner.replayable_rng(0, 1):
        other = run.learner.encode(batches[0]).queries
    assert not close(once, other)  # the noise is real: without replay the test could not hold


def test_no_past_encoder_is_a_bank_emptied_by_hand(toy):
    shape = dict(local_batch=4, accumulation_steps=4, memory_size=12, **SMALL)
    run = cl.Run(toy, cl.Settings.preset("contaccum_no_past", **shape))
    by_hand = cl.Run(toy, cl.Settings.preset("contaccum", **shape))
    for _ in range(5):
        run.step()
        by_hand.step()
        assert len(run.query_bank) == len(run.passage_bank) == 0 and len(by_hand.passage_bank) == 12
        for bank in by_hand.learner.banks:
            bank.clear()
        assert close(weights(run), weights(by_hand))


def test_momentum_zero_is_contaccum_and_momentum_is_an_average(toy):
    shape = dict(local_batch=4, accumulation_steps=2, memory_size=16)
    both(toy, dict(method="momentum", momentum=0.0, **shape), dict(method="contaccum", **shape), 4)
    run = cl.Run(toy, cl.Settings.preset("momentum", momentum=0.9, **shape, **SMALL))
    expected = [p.detach().clone() for t in run.learner.towers for p in t.parameters()]
    for _ in range(4):
        batches = run.sampler.batches(run.step_count)
        slow = [clone_encoder(t) for t in run.learner.extension("momentum").encoders]
        run.step()
        newest = run.passage_bank.vectors[run.passage_bank.order()][-len(batches[-1].pair_ids) :]
        assert close(newest, slow[1](batches[-1].passage_tokens).detach())
        live = [p.detach() for t in run.learner.towers for p in t.parameters()]
        expected = [0.9 * e + 0.1 * p for e, p in zip(expected, live)]
        for e, p in zip(
            expected,
            (p for t in run.learner.extension("momentum").encoders for p in t.parameters()),
        ):
            assert close(e, p)


def test_a_dropped_query_bank_leaves_pre_batch(toy):
    """Appendix D: from that update on, rows are local only and the passage bank stays."""
    run = cl.Run(
        toy,
        cl.Settings.preset(
            "contaccum",
            local_batch=4,
            accumulation_steps=2,
            memory_size=8,
            drop_query_bank_at=3,
            **SMALL,
        ),
    )
    rows = []
    for _ in range(6):
        rows.append([tuple(m.scores.shape) for m in run.micro_steps()])
    assert rows[2] == [(12, 12), (12, 12)]
    assert rows[3] == [(4, 12), (4, 12)]
    assert len(run.query_bank) == 0


def test_bank_warmup_waits(toy):
    run = cl.Run(
        toy,
        cl.Settings.preset(
            "contaccum", local_batch=4, accumulation_steps=2, memory_size=8, bank_warmup=2, **SMALL
        ),
    )
    shapes = [[m.scores.shape[0] for m in run.micro_steps()] for _ in range(4)]
    assert shapes == [[4, 4], [4, 4], [4, 8], [12, 12]]


def test_columns_and_banks_with_hard_negatives(toy):
    run = cl.Run(
        toy,
        cl.Settings.preset(
            "contaccum",
            local_batch=4,
            accumulation_steps=4,
            memory_size=8,
            hard_negatives=2,
            **SMALL,
        ),
    )
    shapes = [tuple(m.scores.shape) for m in run.micro_steps()]
    assert shapes == [(4, 12), (8, 24), (12, 36), (12, 36)]
    *_, micro = run.micro_steps()
    assert micro.local == 4
    assert micro.hard_from == 12
    assert len(micro.row_ids) == 12
    assert len(micro.column_ids) == 36
    assert len(run.learner.banks.hard_bank) == 16


def test_shared_tower_gets_both_sides(toy):
    shape = dict(local_batch=4, accumulation_steps=2, memory_size=8, shared=True, **SMALL)
    run = cl.Run(toy, cl.Settings.preset("contaccum", **shape))
    assert run.query_tower is run.passage_tower
    batch = run.sampler.batches(0)[0]
    tower = clone_encoder(run.query_tower)
    tower.accumulate_embedding_grad = False
    loss = cl.info_nce(tower(batch.query_tokens), tower(batch.passage_tokens))
    expected = torch.autograd.grad(loss / 2, list(tower.parameters()))
    steps = run.micro_steps()
    next(steps)
    for p, e in zip(run.query_tower.parameters(), expected):
        assert close(p.grad, e)


def test_in_place_lookup_equals_autograd(toy):
    run = cl.Run(toy, cl.Settings(**SMALL))
    batch, tower = run.sampler.batches(0)[0], run.query_tower
    plain = clone_encoder(tower)
    plain.accumulate_embedding_grad, tower.accumulate_embedding_grad = False, True
    for t in (tower, plain):
        for _ in range(2):
            (t(batch.query_tokens) ** 3).sum().backward()
    for a, b in zip(tower.parameters(), plain.parameters()):
        assert close(a.grad, b.grad)


def gives_negatives(settings):
    """A cache gives its hard negatives itself, and the whole corpus holds them all."""
    return settings.cache_negatives or settings.corpus_columns


METHOD_AND_HARD = [
    (method, hard)
    for method in cl.PRESETS
    for hard in (0, 1)
    if not (hard and gives_negatives(cl.Settings(method=method)))
]


@pytest.mark.parametrize("method, hard", METHOD_AND_HARD)
def test_every_method_learns_the_toy(toy, method, hard):
    """From chance (20 of 640 passages) to well above it, with and without hard negatives."""
    memory = {} if "memory_size" in cl.PRESETS[method]["fixed"] else dict(memory_size=16)
    run = cl.Run(
        toy,
        cl.Settings.preset(
            method, updates=100, dim=32, hard_negatives=hard, learning_rate=0.005, **memory
        ),
    )
    before = run.evaluate()["top@20"]
    losses = [update.loss for update in run]
    assert losses[-1] < 0.8 * max(losses)
    assert run.evaluate()["top@20"] > before + 0.15


@pytest.mark.parametrize(
    "method, hard", [pair for pair in METHOD_AND_HARD if pair[0] not in ("dpr", "grad_cache")]
)
def test_one_forward_per_update_is_the_same_gradient(toy, method, hard):
    fields = dict(
        method=method, local_batch=6, updates=8, hard_negatives=hard, dtype="float64", dim=16
    )
    fields |= {} if "memory_size" in cl.PRESETS[method]["fixed"] else dict(memory_size=40)
    fields |= dict(bank_warmup=2) if cl.Settings(method=method).cache_negatives else {}
    fields |= (
        {} if "accumulation_steps" in cl.PRESETS[method]["fixed"] else dict(accumulation_steps=5)
    )
    one, many = cl.Run(toy, **fields, one_forward=True), cl.Run(toy, **fields)
    for _ in range(8):
        for a, b in zip(one.micro_steps(), many.micro_steps(), strict=True):
            assert abs(a.loss - b.loss) < 1e-10
            assert torch.allclose(
                a.scores.nan_to_num(neginf=0), b.scores.nan_to_num(neginf=0), atol=1e-9
            )
        assert abs(one.history[-1].grad_norm_ratio - many.history[-1].grad_norm_ratio) < 1e-8
    for a, b in zip(one.passage_tower.parameters(), many.passage_tower.parameters()):
        assert torch.allclose(a, b, atol=1e-9)


def test_one_forward_is_not_used_where_noise_is_drawn_for_each_micro_batch(toy):
    one, many = (
        cl.Run(
            toy,
            tower="bert",
            dim=16,
            local_batch=4,
            accumulation_steps=2,
            memory_size=8,
            updates=2,
            one_forward=one,
        )
        for one in (True, False)
    )
    assert [u.loss for u in one] == [u.loss for u in many]
    assert any("noise" in note for note in one.notes) and not many.notes

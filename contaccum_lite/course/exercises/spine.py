"""The spine: nine functions that together are ContAccum, each used by a later one.

`course/my_contaccum.py` trains with them; `course/spine.py` has their texts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from contaccum_lite.course.exercise import Exercise, Slip, Unreadable, copies
from contaccum_lite.course.exercises.nb01 import row_case, row_loss, row_loss_slips
from contaccum_lite.course.exercises.random_cases import randint, randn, temperature

# --- 2: the matrix --------------------------------------------------------------------------------


def matrix_case(random, number):
    """Queries (N, d), passages (N or more, d), a temperature."""
    n, d = randint(random, 2, 5), randint(random, 2, 4)
    return randn(random, n, d), randn(random, n + number % 3, d), temperature(random)


def matrix_loss(queries, passages, temperature):
    scores = queries @ passages.T / temperature
    return (scores.logsumexp(1) - scores.diagonal()).mean()


def matrix_loss_slips(queries, passages, temperature):
    products = queries @ passages.T
    scores = products / temperature
    square = scores[:, : len(scores)]
    return [
        Slip(
            "the sum over the columns (dim 0): each query is a row, and chooses among its columns.",
            (square.logsumexp(0) - scores.diagonal()).mean()
            if len(passages) == len(queries)
            else (scores.logsumexp(0)[: len(scores)] - scores.diagonal()).mean(),
        ),
        Slip("the temperature is missing.", matrix_loss(queries, passages, 1.0)),
        Slip(
            "multiplied by the temperature: the scores are divided by it.",
            matrix_loss(queries, passages, 1 / temperature),
        ),
        Slip(
            "a sum over the rows: the loss is their mean.",
            matrix_loss(queries, passages, temperature) * len(queries),
        ),
        Slip(
            "passage 0 was every query's positive: query i's positive is passage i.",
            (scores.logsumexp(1) - scores[:, 0]).mean(),
        ),
        Slip(
            "minus the mean of the weights: take minus the log of each row's weight first.",
            -scores.softmax(1).diagonal().mean(),
        ),
        Slip(
            "the log of the mean weight: take the mean of the rows' logs.",
            -scores.softmax(1).diagonal().mean().log(),
        ),
        Slip(
            "the cosine was scored: vectors are not scaled to norm 1 here.",
            matrix_loss(normalize(queries), normalize(passages), temperature),
        ),
        Slip(
            "the columns beyond the queries' number are missing: they are negatives of every row.",
            (square.logsumexp(1) - scores.diagonal()).mean(),
        ),
    ]


# --- 3: blocks ------------------------------------------------------------------------------------


def blocks_case(random, number):
    """Queries and passages of a whole update (K · local, d), the size of a micro-batch, τ."""
    local = randint(random, 2, 3)
    total, d = local * randint(random, 2, 4), randint(random, 2, 4)
    return randn(random, total, d), randn(random, total, d), local, temperature(random)


def accumulated_loss(queries, passages, local, temperature):
    losses = []
    for q, p in zip(queries.split(local), passages.split(local)):
        losses.append(matrix_loss(q, p, temperature))
    return torch.stack(losses).mean()


def accumulated_loss_slips(queries, passages, local, temperature):
    right = accumulated_loss(queries, passages, local, temperature)
    blocks = list(zip(queries.split(local), passages.split(local)))
    count, other_columns = len(blocks), []
    scattered = [
        matrix_loss(queries[k::count], passages[k::count], temperature) for k in range(count)
    ]
    for start, (q, p) in zip(range(0, len(queries), local), blocks):
        others = torch.cat([p, passages[:start], passages[start + local :]])
        other_columns.append(matrix_loss(q, others, temperature))
    return [
        Slip(
            "this is the loss of the big batch: a query of a micro-batch meets only the passages "
            "of its own.",
            torch.stack(other_columns).mean(),
        ),
        Slip("missing 1/K: the micro-batches' losses are averaged.", right * len(blocks)),
        Slip(
            "divided by the number of pairs: each micro-batch's loss is a mean already, so divide "
            "by K.",
            right * len(blocks) / len(queries),
        ),
        Slip("a sum over all pairs: take the mean of each micro-batch.", right * len(queries)),
        Slip(
            "each micro-batch took every K-th pair: its pairs stand one after the other, the first "
            "in queries[:local].",
            torch.stack(scattered).mean(),
        ),
        Slip("the first micro-batch alone.", matrix_loss(*blocks[0], temperature)),
        Slip("the temperature is missing.", accumulated_loss(queries, passages, local, 1.0)),
    ]


# --- 4: GradCache's chain -------------------------------------------------------------------------


class Numbers(NamedTuple):
    """The numbers of an answer that were read already."""

    values: Tensor


def small_tower(random, inputs: int, dim: int) -> nn.Module:
    """A tower of one matrix and a tanh in float64, with a gradient that an earlier step left."""
    linear = nn.utils.skip_init(nn.Linear, inputs, dim, dtype=torch.float64)
    tower = nn.Sequential(linear, nn.Tanh())
    for parameter in tower.parameters():
        parameter.data = randn(random, *parameter.shape)
        parameter.grad = randn(random, *parameter.shape)
    return tower


def chain_case(random, number):
    """A tower, the inputs of a micro-batch (B, f), ∂loss/∂vectors (B, d)."""
    n, f, d = randint(random, 2, 5), randint(random, 2, 4), randint(random, 2, 4)
    return small_tower(random, f, d), randn(random, n, f), randn(random, n, d)


def chain(tower, inputs, gradient):
    vectors = tower(inputs)
    (vectors * gradient).sum().backward()


def gradients_of_tower(answer, arguments):
    """∂loss/∂weights of the tower, all in one row."""
    if isinstance(answer, Numbers):
        return answer.values
    tower = arguments[0]
    gradients = [parameter.grad for parameter in tower.parameters()]
    if any(gradient is None for gradient in gradients):
        raise Unreadable(
            "your function took away the gradient that the tower had: the gradients of K "
            "micro-batches are added up, so leave it and call backward."
        )
    return torch.cat([gradient.flatten() for gradient in gradients])


def _chained(tower, inputs, gradient, surrogate=None, fresh=False) -> Numbers:
    """What `chain` gives with another surrogate loss, or without what was there before."""
    [tower] = copies([tower])
    if fresh:
        tower.zero_grad(set_to_none=False)
    if surrogate is not None:
        surrogate(tower(inputs)).backward()
    return Numbers(gradients_of_tower(None, [tower]))


def chain_slips(tower, inputs, gradient):
    def slip(feedback, surrogate, fresh=False):
        return Slip(feedback, _chained(tower, inputs, gradient, surrogate, fresh))

    return [
        slip(
            "nothing was carried back: the tower's gradient is what it was. Call backward on the "
            "sum of vectors · gradient.",
            None,
        ),
        slip(
            "the given gradient was not used: this is the gradient of the vectors' plain sum.",
            lambda vectors: vectors.sum(),
        ),
        slip(
            "a mean divides the gradient by the number of entries: use the sum.",
            lambda vectors: (vectors * gradient).mean(),
        ),
        slip(
            "every vector met every row of the gradient: multiply entry by entry, with *, not @.",
            lambda vectors: (vectors @ gradient.T).sum(),
        ),
        slip("the sign is turned round.", lambda vectors: -(vectors * gradient).sum()),
        slip(
            "what the tower had before is gone: the gradients of K micro-batches are added up. Do "
            "not call zero_grad here.",
            lambda vectors: (vectors * gradient).sum(),
            fresh=True,
        ),
        slip(
            "carried back twice: once is enough.",
            lambda vectors: 2 * (vectors * gradient).sum(),
        ),
    ]


# --- 5: the ring ----------------------------------------------------------------------------------


def enqueue_case(random, number):
    """A bank (n, d) of up to `size` vectors, new vectors with their graph (B, d), the size."""
    size, d = randint(random, 3, 6), 2
    count = (size - 1, size, 0, size)[number % 4]
    new = randn(random, randint(random, 1, 3), d).requires_grad_()
    return randn(random, count, d), new, 0 if number % 4 == 3 else size


def enqueue(bank, vectors, size):
    both = torch.cat([bank, vectors.detach()])
    return both[max(0, len(both) - size) :]


def without_graph(answer, arguments):
    """The bank itself, which must not hold a graph."""
    if isinstance(answer, Tensor) and answer.requires_grad:
        raise Unreadable(
            "your bank still holds the graph of the vectors: it would keep all old micro-batches "
            "in memory. Store vectors.detach()."
        )
    return answer


def enqueue_slips(bank, vectors, size):
    vectors = vectors.detach()
    both = torch.cat([bank, vectors])
    right = enqueue(bank, vectors, size)
    return [
        Slip(
            "[-size:] is everything when size is 0: begin at len − size, but not below 0.",
            both[-size:],
        ),
        Slip("nothing falls out: a bank holds at most `size` vectors.", both),
        Slip(
            "the newest fell out: keep the end of the row, not its beginning.", both[: len(right)]
        ),
        Slip(
            "the new vectors are in front: then the oldest stand at the end, and the next call "
            "throws away the wrong ones. Append them.",
            torch.cat([vectors, bank])[: len(right)],
        ),
        Slip("the new vectors are missing.", bank[max(0, len(bank) - size) :]),
        Slip("only the new vectors are left: the bank keeps the older ones too.", vectors),
    ]


# --- 6: the dual-bank loss ------------------------------------------------------------------------


def dual_bank_case(random, number):
    """Local queries and passages (N, d), both banks (M, d), a temperature."""
    n, m, d = randint(random, 2, 4), randint(random, 1, 5), randint(random, 2, 4)
    local = randn(random, n, d), randn(random, n, d)
    return *local, randn(random, m, d), randn(random, m, d), temperature(random)


def dual_bank_loss(queries, passages, query_bank, passage_bank, temperature):
    rows = torch.cat([queries, query_bank])
    columns = torch.cat([passages, passage_bank])
    return matrix_loss(rows, columns, temperature)


def dual_bank_loss_slips(queries, passages, query_bank, passage_bank, temperature):
    columns = torch.cat([passages, passage_bank])
    rows = torch.cat([queries, query_bank])
    swapped = torch.cat([queries, passage_bank]), torch.cat([passages, query_bank])
    crossed = torch.cat([passage_bank, passages])
    return [
        Slip(
            "the query bank is not used: past queries are rows of the matrix. Without them this is "
            "the one-sided bank (pre-batch negatives).",
            matrix_loss(queries, columns, temperature),
        ),
        Slip(
            "neither bank is used: this is the loss of the micro-batch alone.",
            matrix_loss(queries, passages, temperature),
        ),
        Slip(
            "the passage bank is not used: past passages are columns, and each past query's "
            "positive is one of them.",
            matrix_loss(rows, torch.cat([passages, passages])[: len(rows)], temperature)
            if len(query_bank) <= len(passages)
            else matrix_loss(
                rows, torch.cat([passages, torch.zeros_like(passage_bank)]), temperature
            ),
        ),
        Slip(
            "the banks are exchanged: past queries are rows, past passages are columns.",
            matrix_loss(*swapped, temperature),
        ),
        Slip(
            "rows and columns are in another order: query i and passage i must have the same "
            "number, so put the local ones first in both.",
            matrix_loss(rows, crossed, temperature),
        ),
        Slip(
            "divided by the local rows alone: the mean is over all rows, those of the bank too.",
            matrix_loss(rows, columns, temperature) * len(rows) / len(queries),
        ),
        Slip(
            "the banked rows are in the matrix, but not in the mean: their loss counts too.",
            _local_rows_alone(rows, columns, len(queries), temperature),
        ),
        Slip("the temperature is missing.", matrix_loss(rows, columns, 1.0)),
    ]


def _local_rows_alone(rows, columns, local, temperature):
    """The local rows' losses, divided by the number of all rows."""
    return matrix_loss(rows[:local], columns, temperature) * local / len(rows)


# --- 7: one weight update -------------------------------------------------------------------------


def update_case(random, number):
    """Two towers, an optimizer, K micro-batches, both banks, N_memory, τ, the clip."""
    f, d = randint(random, 2, 3), randint(random, 2, 3)
    towers = small_tower(random, f, d), small_tower(random, f, d)
    parameters = [*towers[0].parameters(), *towers[1].parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1 + 0.1 * (number % 3))
    micro_batches = []
    for _ in range(randint(random, 2, 3)):
        n = randint(random, 2, 3)
        micro_batches.append((randn(random, n, f), randn(random, n, f)))
    count = randint(random, 1, 3)
    banks = randn(random, count, d), randn(random, count, d)
    clip = (0.05, 100.0)[number % 2]
    return *towers, optimizer, micro_batches, *banks, count + number % 3, temperature(random), clip


def update(
    query_tower,
    passage_tower,
    optimizer,
    micro_batches,
    query_bank,
    passage_bank,
    memory_size,
    temperature,
    clip_norm,
):
    optimizer.zero_grad()
    for queries, passages in micro_batches:
        q = query_tower(queries).detach().requires_grad_()
        p = passage_tower(passages).detach().requires_grad_()
        loss = dual_bank_loss(q, p, query_bank, passage_bank, temperature)
        grad_q, grad_p = torch.autograd.grad(loss, (q, p))
        chain(query_tower, queries, grad_q / len(micro_batches))
        chain(passage_tower, passages, grad_p / len(micro_batches))
        query_bank = enqueue(query_bank, q, memory_size)
        passage_bank = enqueue(passage_bank, p, memory_size)
    weights = [*query_tower.parameters(), *passage_tower.parameters()]
    torch.nn.utils.clip_grad_norm_(weights, clip_norm)
    optimizer.step()
    return query_bank, passage_bank


def weights_and_banks(answer, arguments):
    """The weights of both towers and both banks after the update, all in one row."""
    if isinstance(answer, Numbers):
        return answer.values
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise Unreadable("return both banks as they are now: return query_bank, passage_bank.")
    for name, bank in zip(("query_bank", "passage_bank"), answer):
        if not isinstance(bank, Tensor):
            raise Unreadable(f"the {name} that you return is no tensor.")
        without_graph(bank, arguments)
        size, d = arguments[6], arguments[4].shape[1]
        new = sum(len(queries) for queries, _ in arguments[3])
        count = min(size, len(arguments[4]) + new)
        if bank.shape != (count, d):
            raise Unreadable(
                f"the {name} that you return has shape {tuple(bank.shape)}, expected {(count, d)}: "
                "both banks take in every micro-batch, and hold at most memory_size vectors."
            )
    parameters = [*arguments[0].parameters(), *arguments[1].parameters()]
    return torch.cat([tensor.detach().flatten() for tensor in (*parameters, *answer)])


class Other(NamedTuple):
    """What an update does otherwise than it should."""

    micro_share: bool = True  # divide by K
    zero_grad: bool = True
    clip: bool = True
    use_queries: bool = True
    write_first: bool = False  # write a micro-batch into the banks before its own loss
    keep_banks: bool = False  # every micro-batch sees the banks as they were at first
    step_each: bool = False  # move the weights after each micro-batch
    temperature: bool = True


def update_with(other: Other, *arguments) -> tuple[Tensor, ...]:
    """An update with something left out or exchanged; as `update`, it returns both banks."""
    towers, optimizer, micro_batches = arguments[:2], arguments[2], arguments[3]
    banks, (size, temperature, clip_norm) = arguments[4:6], arguments[6:]
    memory = list(banks)
    weights = [*towers[0].parameters(), *towers[1].parameters()]
    if other.zero_grad:
        optimizer.zero_grad()
    for texts in micro_batches:
        vectors = [tower(each) for tower, each in zip(towers, texts)]
        written = [enqueue(bank, each, size) for bank, each in zip(banks, vectors)]
        if other.write_first:
            memory = written
        query_bank = memory[0] if other.use_queries else memory[0][:0]
        columns = torch.cat([vectors[1], memory[1]])
        rows = torch.cat([vectors[0], query_bank])
        loss = matrix_loss(rows, columns, temperature if other.temperature else 1.0)
        (loss / len(micro_batches) if other.micro_share else loss).backward()
        banks = written
        if not other.keep_banks:
            memory = banks
        if other.step_each:
            _clip_and_step(weights, clip_norm, optimizer)
            optimizer.zero_grad()
    if not other.step_each:
        _clip_and_step(weights, clip_norm if other.clip else 1e9, optimizer)
    return tuple(banks)


def _clip_and_step(weights, clip_norm, optimizer) -> None:
    nn.utils.clip_grad_norm_(weights, clip_norm)
    optimizer.step()


def update_slips(*arguments):
    def slip(feedback, **other):
        copied = copies(arguments)
        banks = update_with(Other(**other), *copied)
        return Slip(feedback, Numbers(weights_and_banks(banks, copied)))

    return [
        slip(
            "missing 1/K: the update's loss is the mean over its micro-batches, so divide each "
            "gradient by len(micro_batches).",
            micro_share=False,
        ),
        slip(
            "the gradients of the update before are still in the towers: call "
            "optimizer.zero_grad() first.",
            zero_grad=False,
        ),
        slip("the gradient was not clipped: see clip_norm.", clip=False),
        slip(
            "the query bank is not used: this is the update of pre-batch negatives.",
            use_queries=False,
        ),
        slip(
            "a micro-batch was written into the banks before its own loss: then it is its own "
            "negative. Write it afterwards.",
            write_first=True,
        ),
        slip(
            "all micro-batches saw the banks as they were before the update: each one sees those "
            "before it.",
            keep_banks=True,
        ),
        slip(
            "the weights moved after each micro-batch: K micro-batches make one update, so call "
            "optimizer.step() once, after the loop.",
            step_each=True,
        ),
        slip("the temperature is missing.", temperature=False),
    ]


# --- 8 and 9: MRR@10, and search ------------------------------------------------------------------


def mrr_case(random, number):
    """Scores of queries with passages (Q, P), each query's own passage (Q,), k."""
    queries, passages = randint(random, 3, 8), randint(random, 12, 16)
    positives = torch.randint(0, passages, (queries,), generator=random)
    return randn(random, queries, passages), positives, (10, 3, 5)[number % 3]


def mrr(scores, positives, k):
    own = scores.gather(1, positives[:, None])
    ranks = 1 + (scores > own).sum(1)
    return torch.where(ranks <= k, 1 / ranks.double(), 0.0).mean()


def mrr_slips(scores, positives, k):
    own = scores.gather(1, positives[:, None])
    ranks = 1 + (scores > own).sum(1).double()
    reciprocals = 1 / ranks
    worst_first = 1 + (scores < own).sum(1).double()
    listed = 1 + scores.argsort(descending=True).gather(1, positives[:, None])[:, 0].double()
    return [
        Slip("a rank beyond k counts 0: this is MRR without a limit.", reciprocals.mean()),
        Slip(
            "this is the share of queries with their own passage among the first k (Top@k): take "
            "the reciprocal of the rank.",
            (ranks <= k).double().mean(),
        ),
        Slip(
            "every rank is one too high: the best passage has rank 1, and a perfect ranking MRR 1.",
            torch.where(ranks <= k, 1 / (ranks + 1), 0.0).mean(),
        ),
        Slip(
            "the mean over the queries that were found: one that was not found counts 0.",
            reciprocals[ranks <= k].mean() if (ranks <= k).any() else torch.tensor(0.0),
        ),
        Slip(
            "argsort lists the passages, best first; the rank of a passage is its place in that "
            "list.",
            torch.where(listed <= k, 1 / listed, 0.0).mean(),
        ),
        Slip(
            "ranked from the lowest score: the highest is first.",
            torch.where(worst_first <= k, 1 / worst_first, 0.0).mean(),
        ),
        Slip("one over the mean rank: take the mean of the reciprocals.", 1 / ranks.mean()),
        Slip("a sum over the queries: take the mean.", mrr(scores, positives, k) * len(scores)),
        Slip(
            "query i's own passage is number positives[i], not number i.",
            mrr(scores, torch.arange(len(scores)), k),
        ),
    ]


def search_case(random, number):
    """A query's vector (d,), passages (N, d), k."""
    n, d = randint(random, 5, 9), randint(random, 2, 4)
    return randn(random, d), randn(random, n, d), randint(random, 1, 4)


def search(query, passages, k):
    return (passages @ query).argsort(descending=True)[:k]


def search_slips(query, passages, k):
    scores = passages @ query
    return [
        Slip("the lowest scores are first: sort in descending order.", scores.argsort()[:k]),
        Slip("these are the scores: return the passages' rows.", scores.topk(k).values),
        Slip(
            "ranked by the cosine: the towers are trained with the plain inner product.",
            (normalize(passages) @ query).argsort(descending=True)[:k],
        ),
        Slip("all of them: return the first k.", scores.argsort(descending=True)),
        Slip("the nearest by distance: rank by inner product.", _by_distance(query, passages, k)),
        Slip(
            "rank by row: argsort of argsort is each passage's rank; return the rows, best first.",
            scores.argsort(descending=True).argsort()[:k],
        ),
    ]


def _by_distance(query, passages, k):
    return (passages - query).norm(dim=1).argsort()[:k]


EXERCISES = {
    "spine.1": Exercise(
        "minus the log of the softmax at the positive, one number.",
        row_case,
        row_loss,
        row_loss_slips,
    ),
    "spine.2": Exercise(
        "the mean of the rows' losses, one number; query i's positive is passage i.",
        matrix_case,
        matrix_loss,
        matrix_loss_slips,
    ),
    "spine.3": Exercise(
        "the mean of the micro-batches' losses, one number.",
        blocks_case,
        accumulated_loss,
        accumulated_loss_slips,
    ),
    "spine.4": Exercise(
        "nothing; ∂loss/∂weights is added to what the tower's weights hold in .grad.",
        chain_case,
        chain,
        chain_slips,
        compare_on=gradients_of_tower,
        in_place=True,
        when_stopped="(backward is called on one number, which must have a graph.)",
    ),
    "spine.5": Exercise(
        "the newest vectors, at most `size`, the oldest first.",
        enqueue_case,
        enqueue,
        enqueue_slips,
        compare_on=without_graph,
    ),
    "spine.6": Exercise(
        "the mean of the losses of all rows, local and banked, one number.",
        dual_bank_case,
        dual_bank_loss,
        dual_bank_loss_slips,
    ),
    "spine.7": Exercise(
        "both banks after the update, query_bank and passage_bank; the towers' weights have moved.",
        update_case,
        update,
        update_slips,
        compare_on=weights_and_banks,
        in_place=True,
    ),
    "spine.8": Exercise(
        "the mean over queries of 1 / rank of its own passage, 0 beyond rank k: one number.",
        mrr_case,
        mrr,
        mrr_slips,
    ),
    "spine.9": Exercise(
        "the rows of the k passages with the largest inner products, best first.",
        search_case,
        search,
        search_slips,
    ),
}

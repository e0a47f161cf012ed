"""ContAccum on one page, by autograd, with nothing but PyTorch: `python -m contaccum_lite.minimal`.

A query should score its own passage above all others. The more others it is compared with, the more
it learns, but only `local_batch` pairs fit in memory at once. So we keep the vectors of past pairs:

    rows       queries  of this micro-batch, with gradient, and of the bank, without
    columns    passages of this micro-batch, with gradient, and of the bank, without
    positives  row i belongs to column i: query and passage of a pair stand in the same place

The rest of the library computes exactly this, with gradients by hand (core/loss.py), a ring buffer
for the bank (core/bank.py) and real encoders. Its tests use this page as their oracle.

Reading path 1 of 9. After: core/loss.py.
"""

import torch
from torch.nn.functional import cross_entropy


def info_nce(rows, columns, temperature, left_out=None):
    """The mean over rows of -log softmax at the row's own column (equation 7).

    rows: (n, d). columns: (m, d), m at least n. left_out: (n, m), True for entries not to count.
    """
    scores = rows @ columns.T / temperature
    if left_out is not None:
        scores = scores.masked_fill(left_out, -torch.inf)
    return cross_entropy(scores, torch.arange(len(rows)))


def contaccum_update(
    query_encoder,
    passage_encoder,
    optimizer,
    micro_batches,
    bank,
    memory_size,
    temperature=1.0,
    clip_norm=2.0,
    use_query_bank=True,
    keep_past=True,
    duplicates=None,
):
    """One weight update from K micro-batches; returns the K losses.

    micro_batches: (ids, queries, passages) each. bank: a list of past (id, query vector, passage
    vector), the oldest first; keep_past=False empties it after the update. duplicates(ids): which
    pairs share a query or a passage, (n, n). Without a query bank, the method is pre-batch
    negatives; with memory_size=0, gradient accumulation.
    """
    losses = []
    optimizer.zero_grad()
    for ids, queries, passages in micro_batches:
        queries, passages = query_encoder(queries), passage_encoder(passages)
        rows = [*queries, *(query for _, query, _ in bank if use_query_bank)]
        columns = [*passages, *(passage for _, _, passage in bank)]
        left_out = None
        if duplicates is not None:
            column_ids = [*ids, *(id for id, _, _ in bank)]
            left_out = duplicates(column_ids)[: len(rows)]
            left_out.fill_diagonal_(False)  # a row's own positive stays

        loss = info_nce(torch.stack(rows), torch.stack(columns), temperature, left_out)
        (loss / len(micro_batches)).backward()
        losses.append(loss.item())

        # after its loss: a micro-batch is never its own negative
        bank += zip(ids, queries.detach(), passages.detach())
        del bank[: max(0, len(bank) - memory_size)]  # first in, first out

    parameters = [*query_encoder.parameters(), *passage_encoder.parameters()]
    torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()
    if not keep_past:
        bank.clear()
    return losses


def demo(memory_size, updates=60, local_batch=4, accumulation_steps=4, dim=16, seed=0):
    """Train two linear encoders to undo a random rotation; returns the share of queries solved."""
    torch.manual_seed(seed)
    things = torch.randn(256, dim)
    queries = things + 0.3 * torch.randn(256, dim)
    passages = things @ torch.linalg.qr(torch.randn(dim, dim)).Q
    query_encoder, passage_encoder = torch.nn.Linear(dim, dim), torch.nn.Linear(dim, dim)
    parameters = [*query_encoder.parameters(), *passage_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.02)
    bank = []
    for _ in range(updates):
        ids = torch.randperm(256)[: local_batch * accumulation_steps].split(local_batch)
        micro_batches = [(part.tolist(), queries[part], passages[part]) for part in ids]
        contaccum_update(
            query_encoder, passage_encoder, optimizer, micro_batches, bank, memory_size
        )
    with torch.no_grad():
        scores = query_encoder(queries) @ passage_encoder(passages).T
    return float((scores.argmax(1) == torch.arange(256)).float().mean())


if __name__ == "__main__":
    print("4 pairs in memory, 4 micro-batches an update, 60 updates; queries that find theirs:")
    for memory_size in (0, 16, 64):
        rates = [demo(memory_size, seed=seed) for seed in range(5)]
        print(f"  bank of {memory_size:2}: {sum(rates) / len(rates):.0%} (mean of 5 seeds)")

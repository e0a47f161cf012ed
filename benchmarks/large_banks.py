"""The incremental softmax with its full table and with sums in blocks: memory and time as the bank grows.

    python -m benchmarks.large_banks                 N_memory 1,024 to 262,144, d 64 and 768
    python -m benchmarks.large_banks 4096 64         one size and one d: its row of the table anew

One thread, N_local 8, banks that are full. A micro-batch is compared, entered and written; milliseconds are the mean over as many
micro-batches as a block of columns takes to leave, so that the scores which are computed again are in it, and `slowest` is the
micro-batch that computes them. A full table of more than 5 GB is not tried. Written into docs/tables/cost-large-banks.md.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

import contaccum_lite as cl
from contaccum_lite.scale.incremental_softmax import IncrementalSoftmax
from tools.docs import TABLES, write_table

LOCAL = 8
SIZES = (1024, 4096, 16_384, 65_536, 262_144)
DIMS = (64, 768)
MOST_BYTES = 5e9


class Forced(IncrementalSoftmax):
    """One that keeps the full table, or sums in blocks, whatever the size."""

    def __init__(self, *banks, large: bool):
        super().__init__(*banks)
        self.large = large

    def _is_large(self, slices: int) -> bool:
        return self.large


def full_banks(size: int, dim: int) -> list[cl.MemoryBank]:
    torch.manual_seed(0)
    banks = [cl.MemoryBank(n, dim) for n in (size, size, 0)]
    for bank in banks[:2]:
        bank.write(torch.arange(size), torch.randn(size, dim) / dim**0.5, 0)
    return banks


def measure(banks, large: bool) -> dict:
    """Milliseconds of a micro-batch, on average and at most, and the bytes of what is kept."""
    size, dim = banks[0].size, banks[0].dim
    softmax = Forced(*banks, large=large)
    softmax.expect(np.array([LOCAL]))
    softmax._make_room()
    for tensor in (softmax.older, softmax.newer, softmax.positives):
        tensor.fill_(
            1.0
        )  # what is kept need not be made from the banks: time does not depend on it
    block = 256
    if large:
        softmax.sums.written = size
        softmax.sums.covers.fill_(size)
        for sums in (*softmax.sums.levels, softmax.sums.newer):
            sums.fill_(1.0)
        block = softmax.sums.strides[0]
    softmax._versions = softmax._now()
    ids, taken = torch.arange(LOCAL), []
    steps = max(6, -(-block // LOCAL)) if large else 12
    for _ in range(steps + 2):
        queries, passages = (torch.randn(LOCAL, dim) / dim**0.5 for _ in range(2))
        start = time.perf_counter()
        softmax.contrast(queries, passages)
        softmax.enter()
        for bank, vectors in zip(banks, (queries, passages)):
            bank.write(ids, vectors, 0)
        softmax.settle()
        taken.append(1000 * (time.perf_counter() - start))
    timed = taken[2:]
    mean = sum(timed) / len(timed)
    return dict(bytes=softmax.bytes, mean=mean, slowest=max(timed), levels=levels(softmax))


def levels(softmax) -> str:
    return "" if softmax.sums is None else " · ".join(str(s) for s in softmax.sums.strides)


def row(size: int, dim: int) -> str:
    banks = full_banks(size, dim)
    bank_bytes = 2 * size * dim * 4
    blocks = measure(banks, large=True)
    table_bytes = 4 * size * (size / LOCAL + 1)
    table = measure(banks, large=False) if table_bytes < MOST_BYTES else None
    cells = [f"{size:,}", str(dim), f"{bank_bytes / 1e6:.4g}", f"{table_bytes / 1e6:.4g}"]
    cells += [f"{blocks['bytes'] / 1e6:.4g}", f"{blocks['bytes'] / bank_bytes:.2f}"]
    cells += [f"{table['mean']:.3g}" if table else "", f"{blocks['mean']:.3g}"]
    cells += [f"{blocks['mean'] / table['mean']:.2f}" if table else ""]
    cells += [f"{blocks['slowest']:.3g}", blocks["levels"]]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| N_memory | d | banks, MB | full table, MB | blocks, MB | blocks ÷ banks | full table, ms | blocks, ms "
    "| blocks ÷ table | slowest micro-batch of blocks, ms | columns between sums |\n|" + "---|" * 11
)


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    sizes = [int(words[0])] if words else SIZES
    dims = [int(words[1])] if len(words) > 1 else DIMS
    rows = kept_rows()
    print(HEAD, flush=True)
    for dim in dims:
        for size in sizes:
            rows[dim, size] = row(size, dim)
            print(rows[dim, size], flush=True)
    write_table("cost-large-banks", "\n".join([HEAD, *(rows[key] for key in sorted(rows))]))


def kept_rows() -> dict[tuple[int, int], str]:
    """The table's rows as they are, by (d, N_memory)."""
    rows = {}
    for line in (TABLES / "cost-large-banks.md").read_text().splitlines()[2:]:
        size, dim = (int(cell.replace(",", "")) for cell in line.split("|")[1:3])
        rows[dim, size] = line
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])

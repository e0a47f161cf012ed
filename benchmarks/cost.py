"""What a bank costs: the similarity part, whole updates (the paper's Figure 4), peers, and memory (its Table 3).

    python -m benchmarks.cost               all four parts (under an hour on one core), written into README.md
    python -m benchmarks.cost similarity    one part: similarity, update, peers or memory
    python -m benchmarks.cost update 64 128 whole updates of these sizes anew, with the smaller transformer, in several turns
    python -m benchmarks.cost --tables      nothing is measured: README.md's tables again, from the records

Every row is measured in turns within one process with one thread, and medians are shown; on a machine with a CUDA device the
first two parts are repeated there, under the paper's cap of 11 GB, with the device named and the memory of each way beside its time (an empty cell did not fit). Records lie in contaccum_lite/evidence/records/cost.json, and notebook 08 reads them. For the peers:
pip install "contaccum-lite[peers]".
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

import contaccum_lite as cl
from contaccum_lite.scale import incremental_softmax as incremental
from contaccum_lite.core import loss
from contaccum_lite.core.grad_cache import compute_gradients
from contaccum_lite.diagnostics import measure
from contaccum_lite.encoders.vocabulary import vocabulary_for

from contaccum_lite.evidence.records import COST, read_records, write_records
from tools.cost import TABLES, WAYS, tables
from tools.docs import write_table

LOCAL = 8
SIZES, WHOLE_UP_TO = (128, 512, 1024, 2048, 8192, 16384, 32768, 65536), 8192
TOTALS, CAP = (64, 128, 256, 512), "11GB"
SHAPES = {
    "6 layers of 384": dict(dim=384, layers=6, heads=12),
    "BERT-base, 12 layers of 768": dict(dim=768, layers=12, heads=12),
}
TOKENS = {
    ("6 layers of 384", "cpu"): (32, 64),
    ("BERT-base, 12 layers of 768", "cpu"): (8, 16),
}  # query, passage; short, so that a CPU ends this hour


def in_turns(
    acts: dict[str, Callable], rounds: int, device: str = "cpu", warm: bool = True
) -> dict[str, float]:
    """Median seconds of each, taking turns; the first turn warms up, unless each was warmed before."""
    taken = {name: [] for name in acts}
    for _ in range(rounds + warm):
        for name, act in acts.items():
            began = time.perf_counter()
            act()
            if device != "cpu":
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - began)
    return {name: median(t[warm:]) for name, t in taken.items()}


# --- (a) the similarity part -------------------------------------------------------------------------------------------


def multiplications(size: int, dim: int, kept: bool) -> int:
    """Multiply-adds of loss and gradients of one micro-batch: scores, then the gradients of local queries and passages."""
    b, n = LOCAL, size
    return (
        (2 * b * (b + n) + b * b + 2 * b * n) * dim
        if kept
        else ((b + n) ** 2 + 2 * b * (b + n)) * dim
    )


def one_similarity(size: int, dim: int, device: str) -> dict:
    """Seconds of one micro-batch against full banks, with the writing of the banks."""
    banks = [cl.MemoryBank(n, dim, device=device) for n in (size, size, 0)]
    for bank in banks[:2]:
        bank.write(torch.arange(size), torch.randn(size, dim), 0)
    fast = incremental.IncrementalSoftmax(*banks)
    fast.expect(np.array([LOCAL]))
    queries, passages, ids = (
        torch.randn(LOCAL, dim, device=device),
        torch.randn(LOCAL, dim, device=device),
        torch.arange(LOCAL),
    )

    def write():
        for bank, vectors in zip(banks, (queries, passages)):
            bank.write(ids, vectors, 0)

    def kept():
        fast.contrast(queries, passages)
        fast.enter()
        write()
        fast.settle()

    def whole():
        loss.info_nce_with_gradients(queries, passages, *banks[:2])
        write()

    fast._make_room()  # time does not depend on what the table holds, so it need not be made from the banks
    for part in (fast.older, fast.newer, fast.positives):
        part.fill_(5.0)
    if fast.sums is not None:
        fast.sums.written = size
    fast._versions = fast._now()
    found = in_turns({"kept": kept}, 9, device)
    if size <= WHOLE_UP_TO:
        found |= in_turns({"whole": whole}, 3 if size > 4000 else 7, device)
    return dict(
        size=size,
        dim=dim,
        device=device,
        table=fast.bytes,
        **found,
        **{
            f"operations_{name}": multiplications(size, dim, name == "kept")
            for name in ("kept", "whole")
        },
    )


def similarity(devices) -> list[dict]:
    return [
        one_similarity(size, dim, device)
        for device in devices
        for dim in (64, 384, 768)
        for size in SIZES
    ]


# --- (b) one whole weight update: Figure 4 -----------------------------------------------------------------------------


def prepared(
    pairs, shape: dict, tokens: tuple[int, int], way: str, total: int, size: int, device: str
) -> cl.Run:
    """A run of this method with encoders of this shape and full banks."""
    method = "contaccum" if way in ("kept", "whole") else way
    batch = (
        dict(local_batch=total)
        if way == "dpr"
        else dict(local_batch=LOCAL, accumulation_steps=total // LOCAL)
    )
    banks = (
        dict(memory_size=size, similarity="incremental" if way == "kept" else "full")
        if method == "contaccum"
        else {}
    )
    torch.manual_seed(0)
    made = [
        cl.TransformerTower.small_bert(vocabulary_for(pairs), **shape).to(device) for _ in range(2)
    ]
    run = cl.Run(
        pairs,
        cl.Settings(
            method=method,
            tower="bert",
            dim=shape["dim"],
            device=device,
            query_tokens=tokens[0],
            passage_tokens=tokens[1],
            **batch,
            **banks,
        ),
        towers=made,
    )
    if banks:
        for bank in (run.query_bank, run.passage_bank):
            bank.write(torch.arange(size) % len(pairs.train), torch.randn(size, shape["dim"]), 0)
        softmax = run.learner.extension("softmax")
        if softmax is not None:
            softmax.table.expect(*softmax.schedule.at(0))
            softmax.table._catch_up()  # the table is made from the banks, once
    return run


def capped(make: Callable, way: str, device: str, peaks: dict[str, int]) -> dict[str, float]:
    """Median seconds of this way on a GPU that lends it CAP, and in `peaks` the most memory that it held; nothing where it does not fit."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        found = in_turns({way: make()}, 3, device)
    except torch.cuda.OutOfMemoryError:
        return {}
    peaks[way] = torch.cuda.max_memory_allocated(device)
    return found


def some_updates(totals: list[int]) -> list[dict]:
    """GradAccum, GradCache and ContAccum with the smaller transformer: the smallest size in seven turns, others in three, after one that warms up."""
    pairs, (name, shape), records = (
        cl.load_pairs("python-docs", progress=False),
        next(iter(SHAPES.items())),
        [],
    )
    tokens = TOKENS[name, "cpu"]
    for total in totals:
        runs = {
            way: prepared(pairs, shape, tokens, way, total, 8192, "cpu")
            for way in ("grad_accum", "grad_cache", "kept")
        }
        found = in_turns(
            {way: run.step for way, run in runs.items()}, 7 if total == TOTALS[0] else 3
        )
        print(
            name,
            total,
            {way: round(seconds / found["grad_accum"], 3) for way, seconds in found.items()},
            flush=True,
        )
        records += [
            dict(shape=name, tokens=tokens, device="cpu", total=total, way=way, seconds=seconds)
            for way, seconds in found.items()
        ]
    return records


def update(devices) -> list[dict]:
    pairs, records = cl.load_pairs("python-docs", progress=False), []
    for device in devices:
        for name, shape in SHAPES.items():
            tokens = TOKENS.get((name, device), (32, 128))
            for total in TOTALS:
                ways = [
                    way for way in WAYS if way != "whole" or device != "cpu" or total == TOTALS[0]
                ]
                make = lambda way: prepared(pairs, shape, tokens, way, total, 8192, device)
                found, peaks = {}, {}
                if device != "cpu":  # under the paper's cap, so one run at a time
                    for way in ways:
                        found |= capped(lambda: make(way).step, way, device, peaks)
                elif total == TOTALS[0]:
                    runs = {way: make(way) for way in ways}
                    found = in_turns({way: run.step for way, run in runs.items()}, 2, device)
                    del runs
                else:  # minutes each: one turn, and one run at a time in memory
                    for way in ways:
                        found |= in_turns({way: make(way).step}, 1, device, warm=False)
                named = device if device == "cpu" else torch.cuda.get_device_name(device)
                records += [
                    dict(
                        shape=name,
                        tokens=tokens,
                        device=named,
                        total=total,
                        way=way,
                        seconds=seconds,
                        **({"peak": peaks[way]} if way in peaks else {}),
                    )
                    for way, seconds in found.items()
                ]
                print(
                    named,
                    name,
                    total,
                    {
                        way: round(seconds / found["grad_accum"], 3)
                        for way, seconds in found.items()
                    },
                    {w: f"{p / 1e9:.1f} GB" for w, p in peaks.items()},
                    flush=True,
                )
    bags = {
        way: cl.Run(pairs, cl.Settings.parse(line))
        for way, line in {
            "grad_accum": "method=grad_accum",
            "grad_cache": "method=grad_cache",
            "dpr": "method=dpr",
            "kept": "memory_size=1024",
            "whole": "memory_size=1024&similarity=full",
        }.items()
    }
    for run in bags.values():
        for _ in range(9):
            run.step()
    return records + [
        dict(
            shape="bag tower, N_memory 1024",
            tokens=(32, 64),
            device="cpu",
            total=128,
            way=way,
            seconds=seconds,
        )
        for way, seconds in in_turns({way: run.step for way, run in bags.items()}, 31).items()
    ]


# --- (c) peers ---------------------------------------------------------------------------------------------------------


class Stub(torch.nn.Module):
    """A tower of ours as sentence-transformers calls a model."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, features):
        return features | {"sentence_embedding": self.tower(features["input_ids"])}

    def preprocess(self, *args, **kwargs):
        raise NotImplementedError

    @property
    def device(self):
        return torch.device("cpu")


def sentence_transformers_peers(rounds: int) -> list[dict]:
    """One batch of 128 by one shared small BERT: forward and backward, all at once and by GradCache."""
    from sentence_transformers import SentenceTransformer, util
    from sentence_transformers.sentence_transformer import losses

    pairs, records = cl.load_pairs("python-docs", progress=False), []
    for job, method, shape in (
        ("one batch of 128", "dpr", dict(local_batch=128)),
        ("GradCache, 16 × 8", "grad_cache", dict(local_batch=8, accumulation_steps=16)),
    ):
        run = cl.Run(
            pairs,
            cl.Settings(
                method=method,
                tower="bert",
                dim=64,
                shared=True,
                temperature=8.0,
                mask_duplicates=False,
                **shape,
            ),
        )
        run.query_tower.eval()  # no noise, so that both losses can be compared
        run.learner.has_dropout = False
        batches = run.sampler.batches(0)
        width = max(b.passage_tokens.shape[1] for b in batches)
        pad = lambda tokens, size: torch.nn.functional.pad(
            tokens, (0, size - tokens.shape[1]), value=run.query_tower.pad
        )
        features = [
            {
                "input_ids": torch.cat(
                    [
                        pad(b.query_tokens, max(b.query_tokens.shape[1] for b in batches))
                        for b in batches
                    ]
                )
            },
            {"input_ids": torch.cat([pad(b.passage_tokens, width) for b in batches])},
        ]
        for one in features:  # what the trainer gives, and what the cached loss sorts by
            one["attention_mask"] = (one["input_ids"] != run.query_tower.pad).long()
        kinds = dict(scale=1 / 8.0, similarity_fct=util.dot_score)
        model = SentenceTransformer(modules=[Stub(run.query_tower)], device="cpu")
        peer = (
            losses.MultipleNegativesRankingLoss(model, **kinds)
            if method == "dpr"
            else losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=8, **kinds)
        )
        values = {}

        def theirs():
            run.optimizer.zero_grad(set_to_none=False)
            value = peer([dict(f) for f in features], None)
            value.backward()
            values["theirs"] = value.item()

        def ours():
            run.optimizer.zero_grad(set_to_none=False)
            values["ours"] = sum(m.loss for m in compute_gradients(run.learner, batches, 0)) / len(
                batches
            )

        found = in_turns({"ours": ours, "theirs": theirs}, rounds)
        assert abs(values["ours"] - values["theirs"]) < 1e-3, values
        records.append(dict(job=job, peer=f"sentence-transformers {type(peer).__name__}", **found))
    return records


def metric_learning_peers(rounds: int) -> list[dict]:
    """8 queries against a memory of passages: loss, gradient of the queries, and the writing of the memory."""
    from pytorch_metric_learning import distances, losses

    records = []
    for size, dim in ((1024, 64), (8192, 64), (8192, 768)):
        memory = losses.CrossBatchMemory(
            losses.NTXentLoss(
                temperature=8.0, distance=distances.DotProductSimilarity(normalize_embeddings=False)
            ),
            dim,
            size,
        )
        banks = [cl.MemoryBank(n, dim) for n in (0, size - LOCAL, 0)]
        ours_softmax = incremental.IncrementalSoftmax(*banks, 8.0)
        old = torch.randn(size - LOCAL, dim)
        memory.add_to_memory(old, torch.arange(size - LOCAL), size - LOCAL)
        banks[1].write(torch.arange(size - LOCAL), old, 0)
        count, values = [size], {}
        draw = lambda: (torch.randn(LOCAL, dim, requires_grad=True), torch.randn(LOCAL, dim))
        batch = [*draw()]

        def theirs():
            labels = torch.arange(count[0], count[0] + LOCAL)
            count[0] += LOCAL
            batch[0].grad = None
            value = memory(
                torch.cat(batch),
                torch.cat([labels, labels]),
                enqueue_mask=torch.arange(2 * LOCAL) >= LOCAL,
            )
            value.backward()
            values.setdefault("theirs", value.item())

        def ours():
            found = ours_softmax.contrast(batch[0].detach(), batch[1])
            ours_softmax.enter()
            banks[1].write(torch.arange(LOCAL), batch[1], 0)
            ours_softmax.settle()
            values.setdefault("ours", float(found.loss))

        found = in_turns({"ours": ours, "theirs": theirs}, rounds)
        assert abs(values["ours"] - values["theirs"]) < 1e-3 * abs(values["theirs"]), values
        records.append(
            dict(
                job=f"passage memory of {size}, d {dim}",
                peer="pytorch-metric-learning CrossBatchMemory(NTXentLoss)",
                **found,
            )
        )
    return records


PEERS = {
    "sentence-transformers": sentence_transformers_peers,
    "pytorch-metric-learning": metric_learning_peers,
}


def peers(devices, rounds: int = 7) -> list[dict]:
    records = []
    for name, run in PEERS.items():
        try:
            records += run(rounds)
        except ImportError:
            print(f"{name} is not installed, so it is not compared: pip install {name}.")
    return records


# --- (d) memory --------------------------------------------------------------------------------------------------------


def memory(devices) -> list[dict]:
    """Table 3: d 768, N_local 8; its "5096" is 2048, by its own bytes (notebook 08)."""
    dim, gib, records = 768, 2**30, []
    for size, theory, actual in (
        (128, 0.0007, 0.002),
        (512, 0.0029, 0.006),
        (1024, 0.0059, 0.013),
        (2048, 0.0117, 0.042),
    ):
        banks = [cl.MemoryBank(n, dim) for n in (size, size, 0)]
        for bank in banks[:2]:
            bank.write(torch.arange(size), torch.randn(size, dim), 0)
        fast = incremental.IncrementalSoftmax(*banks)
        fast.expect(np.array([LOCAL]))
        vectors = torch.randn(LOCAL, dim), torch.randn(LOCAL, dim)
        fast.contrast(*vectors)
        leaves = [v.clone().requires_grad_() for v in vectors]
        records.append(
            dict(
                size=size,
                banks=8 * size * dim,
                theory=theory,
                actual=actual,
                predicted=(8 * size * dim + 2 * 4 * (size + LOCAL) ** 2) / gib,
                autograd=8 * size * dim
                + measure.tensor_memory(lambda: cl.info_nce(*leaves, *banks[:2]).backward()),
                whole=8 * size * dim
                + measure.tensor_memory(lambda: loss.info_nce_with_gradients(*vectors, *banks[:2])),
                kept=8 * size * dim
                + fast.bytes
                + measure.tensor_memory(lambda: (fast.contrast(*vectors), fast.enter())),
            )
        )
    return records


PARTS = {"similarity": similarity, "update": update, "peers": peers, "memory": memory}


def main(given: list[str]) -> None:
    torch.set_num_threads(1)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if len(devices) > 1:
        measure.cap_memory(CAP, "cuda")
    known = read_records(COST, {})
    if given[:1] == ["update"] and given[1:] and all(word.isdigit() for word in given[1:]):
        key = lambda r: (r["shape"], r["device"], r["total"], r["way"])
        new = {key(r): r for r in some_updates([int(word) for word in given[1:]])}
        before = {key(r)[:3]: r["seconds"] for r in known["update"] if r["way"] == "grad_accum"}
        known["update"] = [
            new.get(
                key(r),
                {"base": before[key(r)[:3]], **r}
                if key(r)[2] in map(int, given[1:]) and r["shape"] == next(iter(SHAPES))
                else r,
            )
            for r in known["update"]
        ]
        write_records(COST, known)
        given = ["--tables"]
    if unknown := [word for word in given if word not in (*PARTS, "--tables")]:
        raise SystemExit(f"{unknown[0]!r} is no part: choose from {', '.join(PARTS)}, or --tables.")
    for name in [] if "--tables" in given else given or PARTS:
        torch.manual_seed(0)
        known[name] = PARTS[name](devices)
        print(TABLES[name](known[name]), flush=True)
        write_records(COST, known)
    for mark, text in tables(known).items():
        write_table(mark, text)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The tables of `benchmarks/cost.py`, made from its records."""

from __future__ import annotations

import re

WAYS = {
    "dpr": "DPR, one batch",
    "grad_accum": "GradAccum",
    "grad_cache": "GradCache",
    "kept": "ContAccum, incremental",
    "whole": "ContAccum, whole matrix",
}
PEERS = ("sentence-transformers", "pytorch-metric-learning")


def short(number: float) -> str:
    """Three figures, without powers of ten."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def similarity_table(records: list[dict]) -> str:
    rows = [
        "| device | d | N_memory | whole matrix, ms | incremental, ms | times faster | multiply-adds, whole ÷ incremental | table, MB | banks, MB |",
        "|---" * 9 + "|",
    ]
    for r in records:
        whole = (
            [short(1000 * r["whole"]), short(r["whole"] / r["kept"])] if "whole" in r else ["", ""]
        )
        rows.append(
            f"| {r['device']} | {r['dim']} | {r['size']} | {whole[0]} | {short(1000 * r['kept'])} | {whole[1]} | "
            f"{r['operations_whole'] / r['operations_kept']:.0f} | {short(r['table'] / 1e6)} | {short(8 * r['size'] * r['dim'] / 1e6)} |"
        )
    return "\n".join(rows)


def memory_of(records: list[dict], way: str) -> str:
    """The most memory that it held, where that was measured (on a GPU)."""
    return next(
        (f" ({r['peak'] / 1e9:.1f} GB)" for r in records if r["way"] == way and "peak" in r), ""
    )


def update_table(records: list[dict]) -> str:
    rows = [
        f"| encoder | tokens | device | N_total | seconds of GradAccum | {' | '.join(name for way, name in WAYS.items() if way != 'grad_accum')} |",
        "|---" * 9 + "|",
    ]
    for shape, device, total in dict.fromkeys(
        (r["shape"], r["device"], r["total"]) for r in records
    ):
        here = [
            r for r in records if (r["shape"], r["device"], r["total"]) == (shape, device, total)
        ]
        found, tokens = {r["way"]: r["seconds"] for r in here}, here[0]["tokens"]
        base = {
            r["way"]: r.get("base", found["grad_accum"]) for r in here
        }  # GradAccum of the same turns
        rows.append(
            f"| {shape} | {tokens[0]} and {tokens[1]} | {device} | {total} | {found['grad_accum']:.3g} | "
            + " | ".join(
                f"{found[way] / base[way]:.2f}{memory_of(here, way)}" if way in found else ""
                for way in WAYS
                if way != "grad_accum"
            )
            + " |"
        )
    return "\n".join(rows)


def peers_table(records: list[dict]) -> str:
    rows = [
        "| the same job, the same tensors | peer | peer, ms | ours, ms | ours ÷ peer |",
        "|---" * 5 + "|",
    ]
    rows += [
        f"| {r['job']} | {r['peer']} | {short(1000 * r['theirs'])} | {short(1000 * r['ours'])} | {r['ours'] / r['theirs']:.2f} |"
        for r in records
    ]
    absent = [
        f"{name} was not installed, so it was not compared: pip install {name}."
        for name in PEERS
        if not any(r["peer"].startswith(name) for r in records)
    ]
    return "\n".join(rows + ["", *absent]).strip()


def memory_table(records: list[dict]) -> str:
    gib = 2**30
    rows = [
        "| N_memory | equation 11, GiB | paper: theoretical | paper: actual | banks + two matrices of logits | ours, autograd on the whole matrix | "
        "ours, whole matrix | ours, incremental with its table |",
        "|---" * 8 + "|",
    ]
    for r in records:
        rows.append(
            f"| {r['size']} | {r['banks'] / gib:.4f} | {r['theory']} | {r['actual']} | {r['predicted']:.4f} | "
            + " | ".join(f"{r[kind] / gib:.4f}" for kind in ("autograd", "whole", "kept"))
            + " |"
        )
    return "\n".join(rows)


TABLES = {
    "similarity": similarity_table,
    "update": update_table,
    "peers": peers_table,
    "memory": memory_table,
}


def tables(records: dict[str, list[dict]]) -> dict[str, str]:
    """The docs' tables by their marks: of (a), only d 768."""
    return {
        f"cost-{name}": "\n".join(
            line
            for line in TABLES[name](found).splitlines()
            if not re.match(r"\| \w+ \| (64|384) ", line)
        )
        for name, found in records.items()
    }

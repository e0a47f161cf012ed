"""Two studies of our own: when a one-sided bank fails, and the two papers together.

Each was planned before it was run. The plan is the dictionaries here; what would refute a finding
is in docs/evidence.md. `python -m contaccum_lite.evidence.run failure` and `corrected` run them.
"""

from __future__ import annotations

from contaccum_lite.core.settings import Settings
from contaccum_lite.evidence.records import RunRecords, markdown_table
from contaccum_lite.evidence.runs import RunSpec, run_spec

#: the start -> (sizes of the bank, learning rates) of the map
MAP = {
    "pretrained": ((128, 512, 1024), (0.001, 0.002, 0.003, 0.005, 0.007, 0.01)),
    "random": ((32, 128, 512), (0.0005, 0.001, 0.002, 0.005)),
}
MAP_SEEDS = range(2)


def failure_plan() -> dict[str, RunSpec]:
    """Learning rate × N_memory × start for a passage bank alone, and where else to look.

    Attempts to refute that the bank's shift predicts the harm: a dual bank, other output layers,
    other temperatures, hard negatives, corrected banks, and 2 seeds.
    """
    runs = {}
    for start, (sizes, rates) in MAP.items():
        for rate in rates:
            fields = dict(seeds=MAP_SEEDS, start=start, learning_rate=rate)
            runs[f"{start}: DPR 128, rate {rate:g}"] = run_spec("dpr", **fields)
            for size in sizes:
                name = f"N_memory {size}, rate {rate:g}"
                one_sided = run_spec("pre_batch", memory_size=size, **fields)
                runs[f"{start}: w/o M_q, {name}"] = one_sided
                dual = run_spec("contaccum", memory_size=size, **fields)
                runs[f"{start}: ContAccum, {name}"] = dual
    others = {
        "unit vectors, τ 0.1": dict(ending="unit", temperature=0.1),
        "no last layer": dict(ending="none"),
        "τ 1": dict(temperature=1.0),
        "hard negatives": dict(hard_negatives=1),
    }
    for words, changes in others.items():
        for rate in (0.002, 0.005, 0.01):
            fields = dict(seeds=range(1), start="pretrained", learning_rate=rate, **changes)
            runs[f"pretrained: DPR 128, {words}, rate {rate:g}"] = run_spec("dpr", **fields)
            name = f"{words}, N_memory 512, rate {rate:g}"
            one_sided = run_spec("pre_batch", memory_size=512, **fields)
            runs[f"pretrained: w/o M_q, {name}"] = one_sided
    return runs


CORRECTORS = ("mean_shift", "ridge", "kernel", "mlp")
CORRECTED_RATES = (0.002, 0.005, 0.01)
BANKS = {"dual bank": "contaccum", "passage bank alone": "pre_batch"}


def corrected_name(bank: str, corrector: str, probes: int, size: int, rate: float) -> str:
    """The name of a run of `corrected_plan`. corrector: "identity" is the bank as stored."""
    words = f"{corrector}, {probes} probes"
    if corrector == "identity":
        words = "fresh" if probes else "as stored"
    return f"{bank}, {words}, N_memory {size}, rate {rate:g}"


def corrected_plan() -> dict[str, RunSpec]:
    """Correctors × (dual bank, passage bank alone) × N_memory × rate × probes, fine-tuned.

    With the bank as stored, the bank encoded again before each update, and DPR with 128.
    """
    runs = {}

    def add(bank, corrector, probes, size, rate, seeds=range(5)):
        changes = dict(corrector=corrector, probes=probes)
        if corrector == "identity":
            changes = dict(refresh_banks=bool(probes))
        name = corrected_name(bank, corrector, probes, size, rate)
        fields = dict(start="pretrained", memory_size=size, learning_rate=rate, seeds=seeds)
        runs[name] = run_spec(BANKS[bank], **fields, **changes)

    for rate in CORRECTED_RATES:
        fields = dict(start="pretrained", learning_rate=rate)
        runs[f"DPR 128, rate {rate:g}"] = run_spec("dpr", **fields)
        for bank in BANKS:
            add(bank, "identity", 0, 512, rate)
            if rate > 0.002:
                add(bank, "identity", 512, 512, rate)  # encoded again before each update
            for corrector in CORRECTORS if rate > 0.002 else ("ridge",):
                add(bank, corrector, 32, 512, rate)
            for probes in (8, 128):
                add(bank, "ridge", probes, 512, rate, range(3))
            add(bank, "ridge", 128, 2048, rate, range(3))
    return runs


NEGATIVES = {
    "in-batch": dict(method="dpr"),
    "stale": dict(method="stale_cache"),
    "fresh every 10": dict(method="refreshed_cache", cache_refresh=10),
    "corrected by ridge": dict(method="corrected_cache", corrector="ridge", probes=32),
    "corrected by network": dict(method="corrected_cache", corrector="mlp", probes=32),
}
NEGATIVE_RATES = (0.005, 0.01, 0.02)


def negatives_plan() -> dict[str, RunSpec]:
    """A bounded search for a setting in which stale hard negatives cost accuracy.

    Start × learning rate × selection (Gumbel noise, or the top k, where staleness should matter
    most), three seeds, 400 updates of 32 pairs, two negatives a query from update 100 on. Where
    fresh negatives are nowhere significantly better than stale ones, no such setting was found.
    The correctors were added once it was found.
    """
    runs = {}
    for start in ("pretrained", "random"):
        for rate in NEGATIVE_RATES:
            for selection in ("gumbel", "top_k"):
                for words, fields in NEGATIVES.items():
                    if words == "in-batch" and selection == "top_k":
                        continue
                    settings = Settings.preset(
                        start=start,
                        learning_rate=rate,
                        local_batch=32,
                        accumulation_steps=1,
                        selection="gumbel" if words == "in-batch" else selection,
                        **fields,
                    )
                    words = words if words == "in-batch" else f"{words}, {selection}"
                    runs[f"{start}: {words}, rate {rate:g}"] = RunSpec(settings, range(3))
    return runs


# --- what the records say -------------------------------------------------------------------------


def largest_shift(record: dict) -> float:
    """The largest of a run's measured shifts of its bank (`staleness.drift.bank_motion`)."""
    return max(moment.get("shift", 0.0) for moment in record["motion"])


def share_of_dpr(records: list[dict]) -> list[dict]:
    """Each bank's run: its name, its shift, its ratio, and MRR@10 over that of DPR 128 beside it.

    DPR with the same start, rate, seed and changes, so that a rate that is bad for all is no harm.
    """
    by_name = {(r["name"], r["seed"]): r for r in records}
    points = []
    for r in records:
        if "DPR 128" in r["name"]:
            continue
        start, _, rest = r["name"].partition(": ")
        kind, *words = rest.split(", ")
        others = [word for word in words if not word.startswith("N_memory")]
        base = by_name[f"{start}: {', '.join(['DPR 128', *others])}", r["seed"]]
        points.append(
            {
                "start": start,
                "kind": kind,
                "name": rest,
                "seed": r["seed"],
                "shift": largest_shift(r),
                "ratio": max(r["trace"]),
                "mrr": 100 * r["mrr@10"],
                "share": r["mrr@10"] / base["mrr@10"],
            }
        )
    return points


def rank_correlation(points: list[dict], key: str) -> float:
    """Spearman's correlation of a number with the share of DPR's MRR@10; −1 orders all."""
    from scipy.stats import spearmanr

    result = spearmanr([p[key] for p in points], [p["share"] for p in points])
    return float(result.statistic)


LEVELS = (0.0, 0.3, 1.0, 3.0, float("inf"))  # of the shift


def failure_table(records: list[dict]) -> str:
    """Harm by the level of the shift, for each kind of bank; and what orders the runs better."""
    points = share_of_dpr(records)
    groups = {}
    for p in points:
        kind = f"{p['start']}, {'passage bank alone' if p['kind'] == 'w/o M_q' else 'dual bank'}"
        groups.setdefault(kind, []).append(p)
    rows = []
    for kind, members in groups.items():
        cells = []
        for low, high in zip(LEVELS, LEVELS[1:]):
            shares = [p["share"] for p in members if low <= p["shift"] < high]
            words = f"{min(shares):.0%} to {max(shares):.0%} ({len(shares)})" if shares else "–"
            cells.append(words)
        correlations = [f"{rank_correlation(members, key):+.2f}" for key in ("shift", "ratio")]
        rows.append([kind, *cells, *correlations])
    header = ["MRR@10 over DPR 128's (runs)"]
    for low, high in zip(LEVELS, LEVELS[1:]):
        header.append(f"shift {low:g} to {high:g}" if high < float("inf") else f"above {low:g}")
    return markdown_table([*header, "rank correlation with the shift", "with the ratio"], rows)


def corrected_table(records: list[dict]) -> str:
    """The two papers together: MRR@10, Top@20, extra encodes and the gap to fresh banks."""
    book = RunRecords(records)
    rows = []
    for rate in CORRECTED_RATES:
        name = f"DPR 128, rate {rate:g}"
        rows.append([name, book.format_mean(name), book.format_mean(name, "top@20"), "–", "–"])
        for bank in BANKS:
            fresh = corrected_name(bank, "identity", 512, 512, rate)
            prefix = f"{bank}, "
            names = [n for n, s in book.records if s == 0 and n.startswith(prefix)]
            for name in names:
                if not name.endswith(f"rate {rate:g}"):
                    continue
                gap = "–"
                if (fresh, 0) in book.records and name != fresh and "N_memory 512" in name:
                    gap = str(book.difference(name, fresh))
                row = [name, book.format_mean(name), book.format_mean(name, "top@20"), gap]
                rows.append([*row, _extra_encodes(book.of(name)[0])])
    header = ["fine-tuned", "MRR@10", "Top@20", "minus the fresh bank", "extra encodes"]
    return markdown_table(header, rows)


def _extra_encodes(record: dict) -> str:
    """Passages encoded beside those of training, as a share of these."""
    encodes = record["encodes"]
    extra = encodes.get("probe", 0) + encodes.get("refresh", 0)
    return f"{extra / encodes['train']:.0%}"


def negatives_table(records: list[dict]) -> str:
    """In-batch, stale, corrected and fresh hard negatives: MRR@10, and the gain over stale."""
    book = RunRecords(records)
    kinds = [kind for kind in NEGATIVES if kind not in ("in-batch", "stale")]
    rows = []
    for start in ("pretrained", "random"):
        for rate in NEGATIVE_RATES:
            base = f"{start}: in-batch, rate {rate:g}"
            for selection in ("gumbel", "top_k"):
                name = f"{start}: {{}}, {selection}, rate {rate:g}"
                stale = name.format("stale")
                gains = [book.difference(name.format(kind), stale) for kind in kinds]
                means = [book.format_mean(base), book.format_mean(stale)]
                rows.append([start, f"{rate:g}", selection, *means, *gains])
    gains = [f"{kind}, minus stale" for kind in kinds]
    header = ["start", "rate", "selection", "in-batch, MRR@10", "stale, MRR@10", *gains]
    return markdown_table(header, rows)

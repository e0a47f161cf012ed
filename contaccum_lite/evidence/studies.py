"""Studies of our own: when a one-sided bank fails, the two papers together, stale hard negatives.

Each was planned before it was run. The plan is the dictionaries here; what would refute a finding
is in docs/evidence.md. `python -m contaccum_lite.evidence.run failure` and `corrected` run them.
"""

from __future__ import annotations

from contaccum_lite.core.settings import Settings
from contaccum_lite.evidence.records import RunRecords, markdown_table
from contaccum_lite.evidence.runs import RunSpec, run_spec, without_common_part

#: the start -> (sizes of the bank, learning rates) of the map
MAP = {
    "pretrained": ((128, 512, 1024), (0.001, 0.002, 0.003, 0.005, 0.007, 0.01)),
    "random": ((32, 128, 512), (0.0005, 0.001, 0.002, 0.005)),
}
MAP_SEEDS = range(2)
CORRECTED_RATES = (0.002, 0.005, 0.01)


#: what else is varied, to refute that the shift predicts the harm: words -> fields of `Settings`
VARIANTS = {
    "unit vectors, τ 0.1": dict(ending="unit", temperature=0.1),
    "no last layer": dict(ending="none"),
    "τ 1": dict(temperature=1.0),
    "hard negatives": dict(hard_negatives=1),
}
VARIANT_RATES, VARIANT_SEEDS = (0.002, 0.005, 0.01), range(5)
CONTROLS = ("no last layer", "unit vectors, τ 0.1")  # run beside more than their control
CONTROL = "push removed"  # the same passage bank alone, without its common push


def failure_plan() -> dict[str, RunSpec]:
    """Learning rate × N_memory × start for a passage bank alone, and where else to look.

    Attempts to refute that the bank's shift predicts the harm: a dual bank, other output layers,
    other temperatures, hard negatives, corrected banks, and more seeds. Beside every cell stands
    its control, the same bank with `CONTROL`. The corrected banks are runs of `corrected_plan`.
    """
    runs = {}
    for start, (sizes, rates) in MAP.items():
        for rate in rates:
            fields = dict(seeds=MAP_SEEDS, start=start, learning_rate=rate)
            runs[f"{start}: DPR 128, rate {rate:g}"] = run_spec("dpr", **fields)
            for size in sizes:
                name = f"N_memory {size}, rate {rate:g}"
                runs |= _with_control(name, memory_size=size, **fields)
                dual = run_spec("contaccum", memory_size=size, **fields)
                runs[f"{start}: ContAccum, {name}"] = dual
    for words, changes in VARIANTS.items():
        for rate in VARIANT_RATES:
            fields = dict(seeds=VARIANT_SEEDS, start="pretrained", learning_rate=rate, **changes)
            name = f"{words}, N_memory 512, rate {rate:g}"
            runs |= _with_control(name, memory_size=512, **fields)
    for words in CONTROLS:
        runs |= _beside_the_control(words, VARIANT_RATES[0])
    for rate in CORRECTED_RATES:
        fields = dict(seeds=MAP_SEEDS, start="pretrained", learning_rate=rate)
        name = f"N_memory 2048, rate {rate:g}"
        runs |= _with_control(name, memory_size=2048, **fields)
    return runs


def _beside_the_control(words: str, rate: float) -> dict[str, RunSpec]:
    """DPR 128, the bank fresh, and a query bank, for an output layer.

    They were added once the control without a last layer was seen to be below the untuned towers;
    those of unit vectors to test whether free norms are the reason.
    """
    fields = dict(seeds=VARIANT_SEEDS, start="pretrained", learning_rate=rate, **VARIANTS[words])
    name = f"{words}, N_memory 512, rate {rate:g}"
    fresh = run_spec("pre_batch", memory_size=512, refresh_banks=True, **fields)
    return {
        f"pretrained: DPR 128, {words}, rate {rate:g}": run_spec("dpr", **fields),
        f"pretrained: bank fresh, {name}": fresh,
        f"pretrained: with M_q, {name}": run_spec("contaccum", memory_size=512, **fields),
    }


def _with_control(name: str, **fields) -> dict[str, RunSpec]:
    """A passage bank alone, and the same without the push that nothing cancels."""
    return {
        f"{fields['start']}: w/o M_q, {name}": run_spec("pre_batch", **fields),
        f"{fields['start']}: {CONTROL}, {name}": run_spec(
            "pre_batch", gradient_hook=without_common_part, **fields
        ),
    }


RIDGE = "ridge, 32 probes"
OTHER_CORRECTORS = ("mean_shift", "kernel", "mlp")
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
            is_lowest = rate == CORRECTED_RATES[0]  # there little is stale
            seeds = range(3) if is_lowest else range(5)
            add(bank, "identity", 512, 512, rate, seeds)  # encoded again before each update
            add(bank, "ridge", 32, 512, rate)
            for corrector in OTHER_CORRECTORS:
                add(bank, corrector, 32, 512, rate, seeds)
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


#: runs of the fine-tuned ledger that stand beside the corrected banks
REFERENCES = {"GradAccum 8": "GradAccum 8 × 16", "GradCache 8": "GradCache 8 × 16"}


def corrected_methods() -> list[str]:
    """The rows of `corrected_table`: the names of `corrected_plan` without their rates."""
    names = [name.rpartition(", rate")[0] for name in corrected_plan()]
    return list(dict.fromkeys(["DPR 128", *REFERENCES, *names]))


def corrected_book(records: list[dict], ledger_records: list[dict]) -> RunRecords:
    """The corrected banks, and beside them GradAccum and GradCache at the same three rates.

    ledger_records: of the fine-tuned ledger.
    """
    beside = []
    for record in ledger_records:
        is_reference = record["name"].partition(", rate")[0] in REFERENCES
        rate = Settings.parse(record["settings"]).learning_rate if is_reference else None
        if rate in CORRECTED_RATES:
            beside.append(record)
    return RunRecords([*records, *beside])


def corrected_table(book: RunRecords, cost: dict) -> str:
    """The two papers together: each method at every rate, and at the one the dev pairs choose.

    book: of `corrected_book`. cost: what `benchmarks/correctors.py` measured.
    """
    times = {(r["tower"], r["name"]): r["times"] for r in cost["updates"]}
    towers = list(dict.fromkeys(r["tower"] for r in cost["updates"]))
    rows = []
    for name in corrected_methods():
        rates, at_own_rate = book.rates(name), book.own_rate(name)
        row = [REFERENCES.get(name, name)]
        for rate in CORRECTED_RATES:
            row.append(book.format_mean(rates[rate]))
        row.append(f"{book.settings(at_own_rate).learning_rate:g}")
        row += [book.format_mean(at_own_rate), book.format_mean(at_own_rate, "top@20")]
        row += _minus_fresh(book, name)
        row.append(_extra_encodes(book, at_own_rate))
        row += [f"{times[tower, name]:.2f}" for tower in towers]
        rows.append(row)
    header = ["fine-tuned", *(f"MRR@10 at {rate:g}" for rate in CORRECTED_RATES)]
    header += ["its own rate (dev)", "MRR@10 there", "Top@20 there"]
    header += ["minus the fresh bank, own rates", f"… at {CORRECTED_RATES[-1]:g}"]
    header += ["extra encodes", *(f"time, {tower}" for tower in towers)]
    return markdown_table(header, rows)


def corrected_words(book: RunRecords) -> str:
    """The corrected banks against DPR 128 in MRR@10: each at its own rate, and both at one."""
    names = [f"{bank}, {words}, N_memory 512" for bank in BANKS for words in ("as stored", RIDGE)]
    names.append(f"passage bank alone, {RIDGE.replace('32', '128')}, N_memory 2048")
    dpr, phrases = book.rates("DPR 128"), []
    for name in names:
        rates = book.rates(name)
        gaps = [f"at {r:g} {book.difference(rates[r], dpr[r])}" for r in CORRECTED_RATES]
        own_gap = book.difference(book.own_rate(name), book.own_rate("DPR 128"))
        phrases.append(f"{name}: at own rates {own_gap}, {', '.join(gaps)}")
    return f"MRR@10 minus DPR 128's. {'; '.join(phrases)}."


def _minus_fresh(book: RunRecords, name: str) -> list[str]:
    """MRR@10 minus that of the same bank, fresh: each at its own rate, and both at the highest."""
    bank = name.partition(",")[0]
    fresh = f"{bank}, fresh, N_memory 512"
    if bank not in BANKS or name == fresh or not name.endswith("N_memory 512"):
        return ["–", "–"]
    own_gap = "–"  # a choice among fewer rates is no fair comparison
    if len(book.rates(name)) == len(CORRECTED_RATES):
        own_gap = str(book.difference(book.own_rate(name), book.own_rate(fresh)))
    highest = CORRECTED_RATES[-1]
    return [own_gap, str(book.difference(book.rates(name)[highest], book.rates(fresh)[highest]))]


def _extra_encodes(book: RunRecords, name: str) -> str:
    """Passages encoded beyond one forward pass for each pair, as a share of these."""
    once = book.of("DPR 128, rate 0.005")[0]["encodes"]["train"]
    return f"{sum(book.of(name)[0]['encodes'].values()) / once - 1:.0%}"


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

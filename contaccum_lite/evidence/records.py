"""Records of runs: the files that hold them, and statistics over paired seeds."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import mean, median, stdev
from typing import NamedTuple


from contaccum_lite.core.settings import Settings
from contaccum_lite.utils.files import write_atomically

FOLDER = Path(__file__).parent / "records"
STALE, COST, FIELD = FOLDER / "stale.json", FOLDER / "cost.json", FOLDER / "field.json"
#: start of the towers -> the second paper's records
STALES = {"pretrained": FOLDER / "stale-pretrained.json", "random": STALE}
CORRECTOR_COST = FOLDER / "corrector-cost.json"
#: study -> its file; the paper's ledger is one study for each start
STUDIES = {
    "pretrained": FOLDER / "ledger-pretrained.json",
    "random": FOLDER / "ledger-random.json",
    "failure": FOLDER / "failure.json",
    "corrected": FOLDER / "corrected.json",
    "negatives": FOLDER / "negatives.json",
}


# --- files ------------------------------------------------------------------------------------


def read_records(path: Path, default=None):
    """What a file of records holds, or `default` where there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else default


def write_records(path: Path, records) -> None:
    """Write records, indented. A crash leaves those of before."""
    write_atomically(path, f"{json.dumps(records, indent=1)}\n".encode())


def write_record_lines(path: Path, records: list[dict] | dict[str, list[dict]]) -> None:
    """Write one record a line, numbers to six figures. records: a list, or lists by name."""
    if isinstance(records, list):
        text = _lines(records)
    else:
        lists = [f'"{name}": {_lines(found)}' for name, found in records.items()]
        text = "{" + ",\n".join(lists) + "}"
    write_atomically(path, f"{text}\n".encode())


def _lines(records: list[dict]) -> str:
    return "[\n" + ",\n".join(json.dumps(six_figures(record)) for record in records) + "\n]"


def six_figures(value):
    """The same JSON value with its floats rounded to six significant figures."""
    if isinstance(value, dict):
        return {key: six_figures(item) for key, item in value.items()}
    if isinstance(value, list):
        return [six_figures(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def still_planned(records: list[dict], specs: dict) -> list[dict]:
    """The records whose settings are those that `specs` (name -> `RunSpec`) has today."""
    return [r for r in records if r["name"] in specs and r["settings"] == _share(specs, r)]


def _share(specs: dict, record: dict) -> str:
    return specs[record["name"]].settings.replace(seed=record["seed"]).share()


def markdown_table(header: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in [header, *rows]]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


# --- statistics -------------------------------------------------------------------------------


class PairedDifference(NamedTuple):
    """Differences of two runs, one for each seed that both were run with."""

    differences: list[float]

    @property
    def mean(self) -> float:
        return mean(self.differences)

    @property
    def ci_half_width(self) -> float:
        """Half of the 95 % confidence interval of the mean, by Student's t; inf for one seed."""
        n = len(self.differences)
        if n < 2:
            return math.inf
        from scipy.special import stdtrit  # here: it takes a tenth of a second to load

        return float(stdtrit(n - 1, 0.975)) * stdev(self.differences) / math.sqrt(n)

    @property
    def is_positive(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.mean - self.ci_half_width > 0

    @property
    def is_negative(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.mean + self.ci_half_width < 0

    def by_sign(self, positive, negative, undecided):
        """`positive` or `negative`, by the sign; `undecided` where the interval contains 0."""
        if self.is_positive:
            return positive
        return negative if self.is_negative else undecided

    def __str__(self):
        if len(self.differences) < 2:
            return f"{self.mean:+.1f}"
        return f"{self.mean:+.1f} ± {self.ci_half_width:.1f}"


DECIDES = "mrr@10"  # the measure that a claim about accuracy is judged by


class RunRecords:
    """Records of runs, by name and seed. start: of their towers."""

    def __init__(self, records: list[dict], start: str = "pretrained"):
        self.records = {(r["name"], r["seed"]): r for r in records}
        self.start = start

    def settings(self, name: str) -> Settings:
        """The settings that a run was made with; its seed is the first."""
        return Settings.parse(self.of(name)[0]["settings"])

    def rates(self, name: str) -> dict[float, str]:
        """The learning rates that this was run at -> the names of those runs."""
        names = {}
        for run, _ in self.records:
            if run == name or re.fullmatch(rf"{re.escape(name)}, rate [\d.]+", run):
                names[self.settings(run).learning_rate] = run
        return dict(sorted(names.items()))

    def own_rate(self, name: str) -> str:
        """The name of this run at its own best rate: the highest MRR@10 of the dev pairs."""
        rates = self.rates(name)
        return max(rates.values(), key=lambda run: mean(self.values(run, "dev mrr@10")))

    def at_own_rates(self) -> RunRecords:
        """The same, where every run that was made at several rates is that at its own best one."""
        names = list(dict.fromkeys(run for run, _ in self.records))
        best = {name: self.own_rate(name) for name in names if ", rate " not in name}
        records = [{**r, "name": name} for name, run in best.items() for r in self.of(run)]
        return RunRecords(records, self.start)

    def seeds(self, *names: str) -> list[int]:
        """The seeds that all of these were run with. Raises `KeyError` where there are none."""
        seeds_of = [{seed for run, seed in self.records if run == name} for name in names]
        common = sorted(set.intersection(*seeds_of))
        if not common:
            raise KeyError(
                f"no seed was run for all of {', '.join(names)}: "
                "run `python -m contaccum_lite.evidence.run ledger`."
            )
        return common

    def of(self, name: str, seeds=None) -> list[dict]:
        """A run's records, one for each of its seeds or of these."""
        return [self.records[name, seed] for seed in seeds or self.seeds(name)]

    def values(self, name: str, key: str = DECIDES, seeds=None) -> list[float]:
        """A number of each seed's run.

        key: a measure ("mrr@10" and the like, in per cent), another number of the record, or what
        the gradient-norm ratio was: "ratio" (median of the run's middle half), "last" or "most".
        """
        return [self.value(record, key) for record in self.of(name, seeds)]

    def value(self, record: dict, key: str) -> float:
        """The number of one record that `values` reads."""
        if key == "ratio":
            quarter = len(record["trace"]) // 4
            return median(record["trace"][quarter:-quarter])
        if key == "last":
            return record["trace"][-1]
        if key == "most":
            return max(record["trace"])
        return 100 * record[key] if "@" in key else record[key]

    def format_mean(self, name: str, key: str = DECIDES) -> str:
        """Mean ± standard deviation over seeds."""
        values = self.values(name, key)
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        return f"{mean(values):.1f}{spread}"

    def difference(self, name: str, other: str, key: str = DECIDES) -> PairedDifference:
        """How much higher `name` is than `other`, paired by seed."""
        seeds = self.seeds(name, other)
        pairs = zip(self.values(name, key, seeds), self.values(other, key, seeds))
        return PairedDifference([a - b for a, b in pairs])

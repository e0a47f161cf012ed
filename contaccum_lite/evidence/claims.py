"""A claim in print, and the verdict that records give. `claims.json` holds what the papers say."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from contaccum_lite.evidence.records import PairedDifference, RunRecords, markdown_table


class Outcome(StrEnum):
    """What the records say of a claim; the last two answer the paper's open questions."""

    HOLDS = "holds"
    HOLDS_IF = "holds only when"
    FAILS_HERE = "does not hold here"
    UNDECIDED = "not decided"
    ARISES = "arises"
    DOES_NOT_ARISE = "does not arise"


class Verdict(NamedTuple):
    """Of one claim: the outcome, our figures, and a sentence."""

    verdict: Outcome
    ours: str
    sentence: str


class Claim(NamedTuple):
    """What a paper says and where, its figures, the runs that test it, and their judge."""

    name: str
    section: str
    statement: str
    paper: str
    runs: tuple[str, ...]
    judge: Callable[[RunRecords], Verdict]


def printed(ledger: str) -> list[dict[str, str]]:
    """What is printed, in order: "contaccum", "staleness" or "errata"."""
    return json.loads((Path(__file__).parent / "claims.json").read_text(encoding="utf-8"))[ledger]


def claims_with(ledger: str, judges: dict[str, tuple[tuple[str, ...], Callable]]) -> list[Claim]:
    """The claims of a ledger. judges: name -> (runs, judge), one for each."""
    return [
        Claim(**claim, runs=runs, judge=judge)
        for claim in printed(ledger)
        for runs, judge in [judges[claim["name"]]]
    ]


def outcome_of(difference: PairedDifference) -> Outcome:
    """For a claim that a difference is positive."""
    return difference.by_sign(Outcome.HOLDS, Outcome.FAILS_HERE, Outcome.UNDECIDED)


def not_significant(difference: PairedDifference) -> str:
    """The words for a difference whose interval contains 0."""
    return f"not statistically significant (paired over {len(difference.differences)} seeds)"


def claims_table(claims: list[Claim], records: RunRecords) -> str:
    """The claims with their verdicts in Markdown, made from the records."""
    rows = []
    for claim in claims:
        verdict, ours, sentence = claim.judge(records)
        rows.append([claim.statement, claim.section, claim.paper, ours, f"**{verdict}**", sentence])
    return markdown_table(["claim", "place", "paper", "ours", "verdict", ""], rows)

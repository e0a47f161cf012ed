"""The capstone: the best MRR@10 with 8 pairs in memory and a minute of one core.

`submit` runs a share line again on pairs that no notebook uses and gives a certificate, one line of
text. `verify` runs a certificate again; `leaderboard` makes a table of many. The budget is counted,
not timed, so that a line is judged the same everywhere.

One unit is the work of encoding one text and learning from it: 0.06 ms on the core of
docs/costs.md, so that 1,000,000 units are about 60 seconds there.
"""

from __future__ import annotations

import hashlib
import html
import re
from dataclasses import fields
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

import torch

from contaccum_lite.core.presets import PRESETS
from contaccum_lite.core.run import Run
from contaccum_lite.core.settings import Settings
from contaccum_lite.data.load import load_pairs
from contaccum_lite.data.python_docs_held_out import with_held_out_pairs
from contaccum_lite.data.types import Pairs
from contaccum_lite.lab.share_line import parse_share_line
from contaccum_lite.utils.text import one_line, shown, without_halves

#: Goes up when the same line could get another score, or another line could be accepted.
VERSION = 1

BUDGET = 1_000_000  # units
LARGEST_LOCAL_BATCH = 8  # pairs
LARGEST_MICRO_BATCH = 16  # texts: queries, passages and hard negatives

UNITS_PER_UPDATE = 27  # for AdamW, whatever the batch
UNITS_PER_FORWARD = 1 / 3  # of a text that is encoded without learning from it
ENTRIES_PER_UNIT = {"full": 60_000, "incremental": 2_000}  # of the similarity matrix

#: What a line may choose; all else stays as the defaults have it.
FREE = frozenset(
    "method local_batch accumulation_steps memory_size temperature learning_rate updates warmup "
    "clip_norm seed start shared query_bank passage_bank past_encoder drop_query_bank_at "
    "bank_warmup hard_negatives bank_hard_negatives mask_duplicates momentum similarity".split()
)
_CACHES = ("static_negatives", "stale_cache", "refreshed_cache", "corrected_cache", "oracle_cache")
_NOT_ALLOWED = (*_CACHES, "contaccum_corrected", "pre_batch_corrected")
#: How far another machine's score may be from the certificate's, as sums are rounded otherwise.
TOLERANCE = 0.005
_LONGEST_NAME = 40


# --- the rules ------------------------------------------------------------------------------------


def work(settings: Settings) -> int:
    """The units that a run of these settings takes: counted from the settings, not measured."""
    local, bank = settings.local_batch, settings.memory_size * settings.passage_bank
    micro_batches = settings.updates * settings.accumulation_steps
    texts = micro_batches * local * (2 + settings.hard_negatives)
    units = texts + settings.updates * UNITS_PER_UPDATE
    if PRESETS[settings.method]["algorithm"] == "grad_cache":
        units += texts * UNITS_PER_FORWARD
        micro_batches, local = settings.updates, settings.total_batch
    if settings.momentum:
        units += texts * UNITS_PER_FORWARD
    per_row = 1 + settings.hard_negatives
    if settings.similarity == "incremental":
        entries = 2 * local * (local + bank) * per_row
    else:
        rows = local + bank * settings.query_bank
        entries = rows * (local + bank) * per_row
    units += micro_batches * entries / ENTRIES_PER_UNIT[settings.similarity]
    return round(units)


def read_line(line: str) -> Settings:
    """The settings of a share line, if the capstone's rules allow them.

    Raises `ValueError` with the rule and what to do, before anything runs.
    """
    parsed = parse_share_line(line)
    settings = parsed.settings
    if parsed.changes:
        raise ValueError(
            "the line moves sliders while it runs (then=…): give one setting for the whole run."
        )
    _check_method(settings)
    _check_memory(settings)
    units = work(settings)
    if units > BUDGET:
        most = settings.updates * BUDGET // units
        raise ValueError(
            f"the line needs {units:,} units, and the budget is {BUDGET:,} (about 60 seconds of "
            f"one core): choose updates={most} or less, or a smaller batch or bank."
        )
    return settings


def _check_method(settings: Settings) -> None:
    if settings.method in _NOT_ALLOWED:
        raise ValueError(
            f"method is {settings.method!r}, which encodes passages beside the micro-batches: the "
            "capstone has the methods without a cache or a corrector."
        )
    default = Settings(method=settings.method, start=settings.start)
    for field in fields(Settings):
        name, usual = field.name, getattr(default, field.name)
        if name not in FREE and getattr(settings, name) != usual:
            raise ValueError(
                f"{name} is {shown(getattr(settings, name))}: the capstone fixes it at {usual!r}. "
                "Leave it out."
            )


def _check_memory(settings: Settings) -> None:
    if settings.local_batch > LARGEST_LOCAL_BATCH:
        raise ValueError(
            f"local_batch is {settings.local_batch}: the machine holds {LARGEST_LOCAL_BATCH} pairs."
        )
    texts = settings.local_batch * (2 + settings.hard_negatives)
    if texts > LARGEST_MICRO_BATCH:
        raise ValueError(
            f"a micro-batch has {texts} texts, with its hard negatives: the machine holds "
            f"{LARGEST_MICRO_BATCH}. Lower local_batch or hard_negatives."
        )


# --- submit, verify -------------------------------------------------------------------------------


class Certificate(NamedTuple):
    """A score, what it is of, and a hash over all of it. `str` makes it one line of text."""

    score: str  # MRR@10 of the held-out pairs, four digits
    line: str  # the settings as a share line
    corpus: str  # a hash of all pairs and passages
    version: int  # of the capstone's rules
    name: str  # who submits it
    digest: str  # of all the others

    def __str__(self):
        return "capstone?" + urlencode(self._asdict())

    @property
    def expected_digest(self) -> str:
        """What the digest must be."""
        text = "\n".join(map(str, self[:-1]))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Submission:
    """What `submit` gives: the `score`, the `work` in units and the `certificate`."""

    def __init__(self, certificate: Certificate, units: int):
        self.score, self.work = float(certificate.score), units
        self.certificate = str(certificate)

    def __repr__(self):
        return (
            f"MRR@10 {self.score:.4f} on {_HELD_OUT}, with {self.work:,} of {BUDGET:,} units.\n"
            f"{self.certificate}"
        )


_HELD_OUT = "the held-out pairs"


def submit(line: str, name: str = "", pairs: Pairs | None = None) -> Submission:
    """Run a share line again on the held-out pairs, and give its score and a certificate.

    Args:
        line: as `run.settings.share()` gives it. name: who submits it, for the leaderboard.
        pairs: `load_pairs("python-docs")`, if it is loaded already.

    Choose the line by the dev pairs: each look at the held-out pairs that decides something makes
    their score less honest. The run takes about a minute; it uses one thread, so that its sums are
    the same on every number of cores. Raises `ValueError` for a line that the rules do not allow.
    """
    settings = read_line(line)
    held_out = _held_out_pairs(pairs)
    score = f"{_train_and_measure(settings, held_out):.4f}"
    name = one_line(without_halves(name))[:_LONGEST_NAME]
    unsigned = Certificate(score, settings.share(), _fingerprint(held_out), VERSION, name, "")
    certificate = unsigned._replace(digest=unsigned.expected_digest)
    return Submission(certificate, work(settings))


class Verification:
    """Whether a certificate holds: true if so. `sentence` says why."""

    def __init__(self, passed: bool, sentence: str):
        self.passed, self.sentence = passed, sentence

    def __bool__(self):
        return self.passed

    def __repr__(self):
        return ("✓ " if self.passed else "✗ ") + self.sentence


def verify(certificate: str, pairs: Pairs | None = None) -> Verification:
    """Whether a certificate holds, by running its line again.

    pairs: as in `submit`. Returns a `Verification`; what cannot be read, or was changed, is refused
    in its sentence before anything runs. The hash is no signature: it finds slips of copying, and
    the second run finds an invented score.
    """
    try:
        claim = read_certificate(certificate)
        settings = read_line(claim.line)
    except ValueError as error:
        return Verification(False, f"refused: {error}")
    if claim.version != VERSION:
        return Verification(
            False,
            f"refused: it follows version {claim.version} of the rules, and these are version "
            f"{VERSION}. Submit its line again.",
        )
    held_out = _held_out_pairs(pairs)
    corpus = _fingerprint(held_out)
    if claim.corpus != corpus:
        return Verification(
            False,
            f"cannot be verified here: it is of corpus {claim.corpus}, and this is {corpus}. The "
            "packages that python-docs reads have other versions on this machine.",
        )
    score = _train_and_measure(settings, held_out)
    if f"{score:.4f}" == claim.score:
        return Verification(True, f"the line gives MRR@10 {score:.4f} again.")
    if abs(score - float(claim.score)) <= TOLERANCE:
        return Verification(
            True,
            f"the line gives MRR@10 {score:.4f} here and {claim.score} there: within "
            f"{TOLERANCE:g}, by which machines may differ.",
        )
    return Verification(
        False, f"the line gives MRR@10 {score:.4f}, and the certificate says {claim.score}."
    )


def read_certificate(text: str) -> Certificate:
    """What a certificate says. Raises `ValueError` for a line that `submit` did not make."""
    if not isinstance(text, str) or not text.strip().startswith("capstone?"):
        raise ValueError(f"{text!r:.60} is no certificate: it begins with 'capstone?'.")
    items = dict(parse_qsl(text.strip().removeprefix("capstone?"), keep_blank_values=True))
    if set(items) != set(Certificate._fields):
        raise ValueError(
            f"the certificate has {', '.join(items) or 'nothing'}: expected "
            f"{', '.join(Certificate._fields)}. Copy the whole line."
        )
    is_number = re.fullmatch(r"[01]\.\d{4}", items["score"])
    if not is_number or not re.fullmatch(r"\d{1,6}", items["version"]):
        raise ValueError(
            f"the certificate says score {items['score']!r:.20} and version "
            f"{items['version']!r:.20}: expected a number such as 0.3125, and a whole number."
        )
    certificate = Certificate(**{**items, "version": int(items["version"])})
    if certificate.digest != certificate.expected_digest:
        raise ValueError(
            "the certificate was changed: its hash does not fit its line, score and name. Copy "
            "the line that submit gave."
        )
    return certificate


def _held_out_pairs(pairs: Pairs | None) -> Pairs:
    return with_held_out_pairs(pairs or load_pairs("python-docs", progress=False))


def _fingerprint(held_out: Pairs) -> str:
    """A hash of the training pairs, their hard negatives, all passages and the held-out queries."""
    digest = hashlib.sha256()
    for each in (held_out.fingerprint, held_out.hard_negatives_fingerprint):
        digest.update(each.encode())
    digest.update(held_out.passages_fingerprint.encode())
    for pair in held_out.test:
        digest.update(f"{pair.query}\0{pair.passage_id}\0".encode())
    return digest.hexdigest()[:16]


def _train_and_measure(settings: Settings, held_out: Pairs) -> float:
    """MRR@10 of the held-out pairs after training, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = Run(held_out, settings)
        for _ in run:
            pass
        return run.evaluate()["mrr@10"]
    finally:
        torch.set_num_threads(threads)


# --- the leaderboard ------------------------------------------------------------------------------


class Leaderboard:
    """Certificates as a table, the best first. `rows` are certificates, `refused` are sentences."""

    def __init__(self, rows: list[Certificate], refused: list[str]):
        self.rows, self.refused = rows, refused

    @property
    def sentence(self) -> str:
        """The table in a sentence."""
        if not self.rows:
            text = "No certificate yet."
        else:
            best = self.rows[0]
            text = (
                f"{len(self.rows)} certificate{'s' * (len(self.rows) > 1)}; the best is "
                f"{best.name or 'no name'} with MRR@10 "
                f"{best.score}, by {best.line}."
            )
        corpora = len({row.corpus for row in self.rows})
        if corpora > 1:
            text += f" They are of {corpora} corpora, and scores of two corpora do not compare."
        return text

    def __repr__(self):
        lines = [self.sentence]
        for rank, row in enumerate(self.rows, 1):
            lines.append(f"{rank:3}  {row.score}  {row.name or '—'}  {row.line}")
        return "\n".join([*lines, *self.refused])

    def _repr_mimebundle_(self, include=None, exclude=None):
        cells = []
        for rank, row in enumerate(self.rows, 1):
            values = (str(rank), row.score, row.name or "—", row.line, row.corpus[:6])
            cells.append("".join(f"<td>{html.escape(value)}</td>" for value in values))
        heads = ("rank", "MRR@10", "name", "line", "corpus")
        head = "".join(f"<th scope='col'>{name}</th>" for name in heads)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        refused = "".join(f"<p role='alert'>{html.escape(text)}</p>" for text in self.refused)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        sentence = f"<p>{html.escape(self.sentence)}</p>"
        return {"text/plain": repr(self), "text/html": table + sentence + refused}


def leaderboard(text: str) -> Leaderboard:
    """A table of pasted certificates, one a line, the best first.

    A line with a certificate that was changed, or that breaks a rule, is refused in a sentence;
    other lines, such as those of a chat, are skipped. Of one name's certificates for one line, one
    counts. Nothing is run: `verify` the first ones. Raises `ValueError` for what is no text.
    """
    if not isinstance(text, str):
        raise ValueError(f"{shown(text)} is no text: paste the certificates, one a line.")
    rows, refused = {}, []
    for number, line in enumerate(text.splitlines(), 1):
        start = line.find("capstone?")
        if start < 0:
            continue
        try:
            row = read_certificate(line[start:].split()[0])
            read_line(row.line)
        except ValueError as error:
            refused.append(f"Line {number} is refused: {error}")
            continue
        row = row._replace(name=one_line(without_halves(row.name))[:_LONGEST_NAME])
        rows[row.name, row.line, row.corpus] = row
    ranked = sorted(rows.values(), key=lambda row: (-float(row.score), row.name, row.line))
    return Leaderboard(ranked, refused)

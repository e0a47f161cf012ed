"""The capstone: rules that are counted, a score that comes again, certificates that cannot be bent."""

import os
import subprocess
import sys

import pytest
import torch

import contaccum_lite as cl
from contaccum_lite.core.settings import Settings
from contaccum_lite.course import capstone
from contaccum_lite.data.python_docs import normalize_text
from contaccum_lite.data.python_docs_held_out import HELD_OUT_PAIRS, with_held_out_pairs

LINE = "method=contaccum&start=random&local_batch=4&accumulation_steps=2&memory_size=16&updates=8"


@pytest.fixture
def toy(monkeypatch):
    """Toy pairs in place of the held-out ones."""
    pairs = cl.load_pairs("toy")
    monkeypatch.setattr(capstone, "_held_out_pairs", lambda given: pairs)
    return pairs


# --- the rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, words",
    [
        ("method=dpr", "local_batch is 128: the machine holds 8 pairs"),
        ("method=contaccum&hard_negatives=1", "has 24 texts, with its hard negatives"),
        (
            "method=contaccum&one_forward=True",
            "one_forward is True: the capstone fixes it at False",
        ),
        ("method=contaccum&dim=128", "dim is 128: the capstone fixes it at 64"),
        ("method=contaccum&tower=bert", "tower is 'bert': the capstone fixes it at 'bag'"),
        ("method=contaccum&passage_tokens=128", "passage_tokens is 128"),
        ("method=contaccum&updates=10000", r"the budget is 1,000,000 .* choose updates="),
        ("method=oracle_cache&local_batch=8", "encodes passages beside"),
        ("method=contaccum_corrected", "encodes passages beside"),
        ("method=contaccum&refresh_banks=True", "refresh_banks is True"),
        ("method=contaccum&then=50:learning_rate:0.001", "moves sliders while it runs"),
        ("method=magic", "choose one of"),
        ("local_batch=1e9", "local_batch"),
        (None, "expected a text"),
    ],
)
def test_a_line_against_the_rules_is_refused_before_it_runs(toy, monkeypatch, line, words):
    monkeypatch.setattr(capstone, "Run", None)  # nothing may run
    with pytest.raises(ValueError, match=words):
        cl.submit(line)


@pytest.mark.parametrize(
    "line",
    [
        "method=contaccum&updates=2000",
        "method=grad_cache&updates=2000",
        "method=dpr&local_batch=8&updates=20000",
        "method=contaccum&local_batch=5&hard_negatives=1",
        "method=momentum",
        "method=contaccum&hide=banks",
    ],
)
def test_lines_within_the_rules(line):
    settings = capstone.read_line(line)
    assert 0 < capstone.work(settings) <= capstone.BUDGET


def test_the_advised_number_of_updates_is_the_largest_that_fits():
    for line in ("method=contaccum", "method=grad_cache&accumulation_steps=64", "method=momentum"):
        with pytest.raises(ValueError, match="choose updates=") as refusal:
            capstone.read_line(f"{line}&updates=100000")
        most = int(str(refusal.value).split("choose updates=")[1].split()[0])
        capstone.read_line(f"{line}&updates={most}")
        with pytest.raises(ValueError, match="the budget is"):
            capstone.read_line(f"{line}&updates={most + 1 + most // 100}")


def test_work_counts_what_is_done():
    work = lambda **fields: capstone.work(Settings(**fields))
    base = dict(method="grad_accum", updates=100)
    assert work(**base) == 100 * (16 * 8 * 2 + 27) + round(100 * 16 * 64 / 60_000)
    assert work(**{**base, "updates": 200}) == pytest.approx(2 * work(**base), abs=2)
    assert work(method="grad_cache", updates=100) > 1.2 * work(**base)
    assert work(method="contaccum", updates=100) > work(**base)
    assert work(method="momentum", updates=100) > work(method="contaccum", updates=100)
    assert work(method="contaccum", updates=100, hard_negatives=1) > 1.4 * work(**base)
    bank = [work(method="contaccum", updates=100, memory_size=n) for n in (256, 512, 2048)]
    assert bank == sorted(bank)
    full, fast = (work(memory_size=4096, similarity=way) for way in ("full", "incremental"))
    assert full > fast


def test_the_same_line_has_the_same_work_under_another_name(toy):
    """Settings that are spelled out and settings that are left out are one line."""
    short = capstone.read_line("method=contaccum&start=pretrained")
    spelled = capstone.read_line(
        "method=contaccum&start=pretrained&local_batch=8&memory_size=512&learning_rate=0.005"
    )
    assert short == spelled and capstone.work(short) == capstone.work(spelled)


# --- submit and verify ----------------------------------------------------------------------------


def test_the_same_line_gets_the_same_certificate(toy):
    threads = torch.get_num_threads()
    first = cl.submit(LINE, "Ada")
    torch.set_num_threads(2)
    try:
        second = cl.submit(LINE, "Ada")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert first.certificate == second.certificate
    assert "\n" not in first.certificate
    run = cl.Run(toy, Settings.parse(LINE))
    for _ in run:
        pass
    assert first.score == round(run.evaluate()["mrr@10"], 4)
    assert repr(first).startswith(f"MRR@10 {first.score:.4f} on the held-out pairs, with ")
    verdict = cl.verify(first.certificate)
    assert verdict and verdict.sentence == f"the line gives MRR@10 {first.score:.4f} again."


def tampered(certificate, field, value):
    """A certificate with one field changed and the old hash."""
    return str(capstone.read_certificate(certificate)._replace(**{field: value}))


@pytest.mark.parametrize(
    "field, value",
    [
        ("score", "0.9999"),
        ("line", "method=contaccum&updates=9"),
        ("corpus", "0" * 16),
        ("version", 2),
        ("name", "Eve"),
        ("digest", "0" * 16),
    ],
)
def test_a_tampered_certificate_is_refused(toy, monkeypatch, field, value):
    certificate = cl.submit(LINE, "Ada").certificate
    monkeypatch.setattr(capstone, "Run", None)  # nothing may run
    verdict = cl.verify(tampered(certificate, field, value))
    assert not verdict
    assert verdict.sentence.startswith("refused: the certificate was changed: its hash")
    assert "\n" not in repr(verdict)


def forged(certificate, **changes):
    """A certificate with fields changed and a new hash, as a forger could make it."""
    forgery = capstone.read_certificate(certificate)._replace(**changes)
    return str(forgery._replace(digest=forgery.expected_digest))


def test_a_forged_score_is_found_by_the_second_run(toy):
    submission = cl.submit(LINE)
    verdict = cl.verify(forged(submission.certificate, score="0.9999"))
    assert not verdict
    assert f"gives MRR@10 {submission.score:.4f}, and the certificate says 0.9999" in repr(verdict)
    near = cl.verify(forged(submission.certificate, score=f"{submission.score + 0.002:.4f}"))
    assert near and "by which machines may differ" in near.sentence


def test_a_certificate_of_another_corpus_version_or_rule_does_not_run(toy, monkeypatch):
    certificate = cl.submit(LINE).certificate
    monkeypatch.setattr(capstone, "Run", None)
    assert "cannot be verified here" in cl.verify(forged(certificate, corpus="f" * 16)).sentence
    assert "follows version 7 of the rules" in cl.verify(forged(certificate, version=7)).sentence
    against = forged(certificate, line="method=dpr&local_batch=128")
    assert "refused: local_batch is 128" in cl.verify(against).sentence


@pytest.mark.parametrize(
    "text", ["", "hello", None, 3, "capstone?", "capstone?score=1", "capstone?score=0.1&score=0.2"]
)
def test_what_is_no_certificate_is_refused_in_a_sentence(text):
    verdict = cl.verify(text)
    assert not verdict and verdict.sentence.startswith("refused: ")


@pytest.mark.parametrize("score", ["nan", "1e9", "0.5", "-0.1000", "٠.١٢٣٤", "0.12345"])
def test_a_score_that_is_no_score_is_refused(toy, score):
    certificate = cl.submit(LINE).certificate
    assert (
        "expected a number such as 0.3125" in cl.verify(forged(certificate, score=score)).sentence
    )


# --- the leaderboard ------------------------------------------------------------------------------


def test_the_leaderboard_ranks_and_escapes(toy):
    ada = cl.submit(LINE, "Ada").certificate
    eve = forged(ada, name="<script>alert(1)</script>\u202e\x1b[31m", score="0.9000")
    bob = forged(ada, name="Bob", score="0.5000", corpus="a" * 16)
    board = cl.leaderboard(
        f"10:31 Ada: {ada} 🎉\nhello\n{eve}\n{bob}\n{ada}\n{tampered(ada, 'score', '0.9999')}\n"
        f"{forged(ada, line='method=dpr')}"
    )
    assert [row.score for row in board.rows][:2] == ["0.9000", "0.5000"]
    assert len(board.rows) == 3  # Ada's counts once
    assert len(board.refused) == 2
    assert board.refused[0].startswith("Line 6 is refused: the certificate was changed")
    assert "local_batch is 128" in board.refused[1]
    assert "of 2 corpora" in board.sentence
    data = board._repr_mimebundle_()
    assert "<script>" not in data["text/html"] and "&lt;script&gt;" in data["text/html"]
    assert "\u202e" not in repr(board) and "\x1b" not in repr(board)
    assert data["text/plain"].splitlines()[1].startswith("  1  0.9000")
    assert cl.leaderboard("").sentence == "No certificate yet."
    with pytest.raises(ValueError, match="is no text"):
        cl.leaderboard(None)


# --- the held-out pairs ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def docs():
    return cl.load_pairs("python-docs", progress=False)


@pytest.mark.slow
def test_the_held_out_pairs_are_used_nowhere_else(docs):
    held_out = with_held_out_pairs(docs)
    assert len(held_out.test) == HELD_OUT_PAIRS
    assert held_out.train is docs.train and held_out.dev is docs.dev
    assert held_out.fingerprint == docs.fingerprint
    used = {normalize_text(passage.text) for passage in docs.passages}
    used |= {normalize_text(pair.passage) for pair in (*docs.train, *docs.dev, *docs.test)}
    asked = {normalize_text(pair.query) for pair in (*docs.train, *docs.dev, *docs.test)}
    for pair in held_out.test:
        assert normalize_text(pair.passage) not in used
        assert normalize_text(pair.query) not in asked
        assert any(part.startswith("_") for part in pair.title.split("."))
    texts = [normalize_text(pair.passage) for pair in held_out.test]
    assert len(set(texts)) == len(texts)
    rows = {held_out.row_of[pair.passage_id] for pair in held_out.test}
    assert rows == set(range(len(docs.passages), len(docs.passages) + HELD_OUT_PAIRS))
    with pytest.raises(ValueError, match="belong to load_pairs"):
        with_held_out_pairs(cl.load_pairs("toy"))


@pytest.mark.slow
def test_training_is_that_of_the_plain_pairs(docs):
    settings = Settings(updates=3)
    runs = [cl.Run(pairs, settings) for pairs in (docs, with_held_out_pairs(docs))]
    for run in runs:
        for _ in run:
            pass
    assert runs[0].retriever.fingerprint == runs[1].retriever.fingerprint


@pytest.mark.slow
def test_another_process_gives_the_same_certificate(docs):
    line = "method=contaccum&start=pretrained&updates=5"
    here = cl.submit(line, "Ada", docs).certificate
    code = f"import contaccum_lite as cl; print(cl.submit({line!r}, 'Ada').certificate)"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert there.stdout.strip() == here
    assert cl.verify(here, docs)

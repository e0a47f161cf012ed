"""`load_pairs`: data sets by the name of their source."""

from __future__ import annotations

from pathlib import Path

from contaccum_lite.data.beir import read_beir
from contaccum_lite.data.dpr import read_dpr
from contaccum_lite.data.jsonl import read_jsonl
from contaccum_lite.data.python_docs_pairs import python_docs_pairs
from contaccum_lite.data.toy import toy_pairs
from contaccum_lite.data.types import Pairs
from contaccum_lite.utils.text import check_text

#: source -> what makes its pairs
BUILDERS = {"python-docs": python_docs_pairs, "toy": toy_pairs}
#: what is before the colon of a source -> what reads the path after it
READERS = {"dpr": read_dpr, "beir": read_beir, "jsonl": read_jsonl}


def load_pairs(source: str, **options) -> Pairs:
    """The pairs of a source.

    Args:
        source: one of
            "toy": invented text, generated at once (`toy_pairs`);
            "python-docs": the documentation of the installed packages, built once, then cached;
            "dpr:FILE": DPR's JSON (also .gz);
            "beir:FOLDER": BEIR's corpus.jsonl, queries.jsonl, qrels/*.tsv;
            "jsonl:FILE": one {"query": …, "passage": …} on each line (also .gz).
        options: of the function that reads the source. `test=FILE` names a test file for dpr and
            jsonl; without one, up to `test_pairs=1000` pairs are held out, by a hash of the
            question. `margin=3.0` is the cross-encoder rule for hard negatives that come with
            scores. `progress=False` hides the bar.

    Raises `ValueError` that says what was found, where, and what was expected.
    """
    check_text(source, "the source", "rename the file in UTF-8")
    if source in BUILDERS:
        return BUILDERS[source](**options)
    kind, colon, path = source.partition(":")
    if not colon or kind not in READERS:
        raise ValueError(
            f"no pairs called {source!r}: choose 'python-docs', 'toy', 'dpr:FILE', "
            "'beir:FOLDER' or 'jsonl:FILE'."
        )
    if not path:
        raise ValueError(f"{source!r} names no file: write '{kind}:' and then a path.")
    return READERS[kind](Path(path), **options)

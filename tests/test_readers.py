"""Drawn files of every format, as independent writers write them, whole and damaged.

What is read is what was written, or what an independent reading gives; or the file is refused by a
`ValueError` that names it.
"""

import csv
import gzip
import io
import json
from itertools import permutations

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import contaccum_lite as cl
from contaccum_lite.data.passages import read_passages

SIGNS = "a bé😀'\"\\/[{,\t\n\r\x00\x0b\x0c\x1c\x85\u2028\u2029"
TEXTS = st.text(SIGNS, max_size=6)
WORDS = TEXTS.map("w{}".format)  # texts that are not blank
WIDE = "w" * 140_000  # more than the csv module reads
DRAWN = settings(
    max_examples=2000,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

PATCHES = [
    b"",
    b'"',
    b'""',
    b"\t",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"]",
    b"}{",
    b",",
    b"\\",
    b"\\ud800",
    b"1",
    b":",
]
DAMAGE = (
    st.none()
    | st.tuples(st.integers(0, 500), st.integers(0, 9), st.sampled_from(PATCHES))
    | st.just("twice")
)
PACKED = st.sampled_from(["", ".gz", ".gz, damaged outside"])


def damaged(content, damage):
    if damage is None:
        return content
    if damage == "twice":
        return content + content
    start, length, patch = damage
    start %= len(content) + 1
    return content[:start] + patch + content[start + length :]


def written(path, content, damage, packed):
    """The path of the file with this content, and the damaged content.

    None if it cannot be unpacked.
    """
    if not packed:
        content = damaged(content, damage)
        path.write_bytes(content)
        return path, content
    path = path.with_name(path.name + ".gz")
    if packed == ".gz":
        content = damaged(content, damage)
        path.write_bytes(gzip.compress(content, 1))
        return path, content
    path.write_bytes(damaged(gzip.compress(content, 1), damage))
    try:
        return path, gzip.decompress(path.read_bytes())
    except Exception:
        return path, None


def read(path, reading):
    """What a reading gives, or None where it refuses the file in a sentence."""
    try:
        return reading()
    except ValueError as error:
        assert type(error) is ValueError, error
        assert str(path) in str(error)
        assert str(error).endswith(".")
        assert len(str(error)) < 500 and str(error).isprintable()
        return None


def texts_of(pair):
    return (
        pair.query,
        pair.title,
        pair.passage,
        pair.answers,
        [(h.title, h.text) for h in pair.hard_negatives],
    )


def unpacked_lines(content):
    lines = [line.decode("utf-8-sig") for line in content.split(b"\n")]
    return [line for line in lines if line.strip()]


# --- JSON lines -----------------------------------------------------------------------------------

NEGATIVES = st.lists(
    WORDS | st.fixed_dictionaries({"passage": WORDS}, optional={"title": TEXTS}), max_size=2
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"query": WORDS, "passage": WORDS},
        optional={
            "title": TEXTS,
            "answers": st.lists(TEXTS, max_size=2),
            "hard_negatives": NEGATIVES,
            "unknown": st.integers(),
        },
    ),
    min_size=1,
    max_size=3,
)


def jsonl_texts(records):
    """The texts of each record, read by their keys."""
    texts = []
    for record in records:
        title = record.get("title") or ""
        negatives = [
            n if isinstance(n, dict) else {"passage": n} for n in record.get("hard_negatives", [])
        ]
        negatives = [(n.get("title") or "", n["passage"]) for n in negatives]
        texts.append(
            (
                record["query"],
                title,
                record["passage"],
                tuple(record.get("answers", [])),
                [n for n in negatives if n != (title, record["passage"])],
            )
        )
    return texts


@given(
    ROWS,
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.sampled_from(["", "\ufeff"]),
    DAMAGE,
    PACKED,
)
@DRAWN
def test_json_lines_are_read_as_written(tmp_path, rows, escaped, end, mark, damage, packed):
    content = mark + "".join(json.dumps(row, ensure_ascii=escaped) + end for row in rows)
    path, content = written(tmp_path / "pairs.jsonl", content.encode(), damage, packed)
    texts = read(
        path,
        lambda: [texts_of(pair) for pair in cl.load_pairs(f"jsonl:{path}", test_pairs=0).train],
    )
    if damage is None:
        assert texts == jsonl_texts(rows)
    elif texts is not None:
        assert texts == jsonl_texts(map(json.loads, unpacked_lines(content)))


# --- DPR ------------------------------------------------------------------------------------------

CONTEXT = st.fixed_dictionaries({"title": TEXTS, "text": WORDS})
QUESTIONS = st.lists(
    st.fixed_dictionaries(
        {"question": WORDS, "positive_ctxs": st.lists(CONTEXT, min_size=1, max_size=2)},
        optional={
            "answers": st.lists(TEXTS, max_size=2),
            "hard_negative_ctxs": st.lists(CONTEXT, max_size=2),
        },
    ),
    min_size=1,
    max_size=2,
)


def dpr_texts(records):
    texts = []
    for record in records:
        positives, negatives = (
            [(c.get("title") or "", c["text"]) for c in record.get(key, [])]
            for key in ("positive_ctxs", "hard_negative_ctxs")
        )
        if positives:
            texts.append(
                (
                    record["question"],
                    *positives[0],
                    tuple(record.get("answers", [])),
                    [n for n in negatives if n not in positives],
                )
            )
    return texts


@given(
    QUESTIONS,
    st.booleans(),
    st.sampled_from([None, 1]),
    st.sampled_from(["", "\ufeff"]),
    DAMAGE,
    PACKED,
    st.sampled_from([5, 64, 1 << 20]),
)
@DRAWN
def test_dpr_is_read_as_written(tmp_path, records, escaped, indent, mark, damage, packed, chunk):
    content = mark + json.dumps(records, ensure_ascii=escaped, indent=indent) + "\n"
    path, content = written(tmp_path / "dpr.json", content.encode(), damage, packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("contaccum_lite.data.records.CHUNK_BYTES", chunk)
        texts = read(
            path,
            lambda: [texts_of(pair) for pair in cl.load_pairs(f"dpr:{path}", test_pairs=0).train],
        )
    if damage is None:
        assert texts == dpr_texts(records)
    elif texts is not None:
        assert damage != "twice" or packed.endswith("outside") and content is not None
        assert texts == dpr_texts(json.loads(content.decode("utf-8-sig")))


# --- TSV ------------------------------------------------------------------------------------------


def is_quoted(field):
    return (
        len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")
    )


def fields_of(line):
    """The fields by the rule, in another way.

    From tab to tab, until what lies between is quoted.
    """
    fields, line = [], line.removesuffix("\r") + "\t"
    while line:
        ends = [at for at, sign in enumerate(line) if sign == "\t"]
        end = next((at for at in ends if is_quoted(line[:at])), ends[0])
        field, line = line[:end], line[end + 1 :]
        fields.append(field[1:-1].replace('""', '"') if is_quoted(field) else field)
    return fields


def tsv_rows(content):
    """(id, text, title) of each line."""
    columns, rows = ("id", "text", "title"), []
    for line in content.split(b"\n"):
        fields = fields_of(line.decode("utf-8-sig"))
        names = [field.strip().lower() for field in fields]  # "\rid" is a name too
        if sorted(names) in (["id", "text"], ["id", "text", "title"]):
            columns = names
        elif fields != [""]:
            row = dict(zip(columns, fields))
            rows.append((row["id"], row["text"], row.get("title", "")))
    return rows


def joined(rows, style, end):
    """The lines of a TSV: as csv writes them, or joined by tabs alone."""
    if style == "plain":
        return "".join("\t".join(row) + end for row in rows)
    file = io.StringIO(newline="")
    csv.writer(file, delimiter="\t", lineterminator=end, quoting=style).writerows(rows)
    return file.getvalue()


def can_be_written(row, style):
    """Whether one line can hold these fields: line breaks are no text there."""
    if any("\n" in field for field in row) or style != csv.QUOTE_ALL and row[-1].endswith("\r"):
        return False
    return style != "plain" or not any("\t" in field or field.startswith('"') for field in row)


ORDERS = [("id", "text"), *permutations(("id", "text", "title"))]
STYLES = ["plain", csv.QUOTE_MINIMAL, csv.QUOTE_ALL]


@given(
    st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=4),
    st.sampled_from([None, *ORDERS]),
    st.sampled_from(STYLES),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "\ufeff"]),
    st.integers(0, 50),
    DAMAGE,
    PACKED,
)
@DRAWN
def test_tsv_is_read_as_written(tmp_path, rows, header, style, end, mark, wide, damage, packed):
    rows = [(name, text + WIDE if wide == 0 else text, title) for name, text, title in rows]
    columns = header or ORDERS[1]
    ordered = [tuple(dict(zip(ORDERS[1], row))[name] for name in columns) for row in rows]
    content = mark + joined([header] * bool(header) + ordered, style, end)
    path, content = written(tmp_path / "corpus.tsv", content.encode(), damage, packed)
    texts = read(path, lambda: [(p.id, p.text, p.title) for p in read_passages(str(path))])
    if damage is None and all(can_be_written(row, style) for row in ordered):
        assert texts == [row if len(columns) == 3 else (*row[:2], "") for row in rows]
    elif texts is not None:
        assert texts == tsv_rows(content)


# --- BEIR -----------------------------------------------------------------------------------------

DOCUMENTS = st.dictionaries(WORDS, st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)
QRELS = ("query-id", "corpus-id", "score")


def beir_texts(files):
    """Query, passage, hard negatives and grades of each training pair, from the files' contents."""
    corpus = {
        r["_id"]: (r.get("title") or "", r["text"] or "")
        for r in map(json.loads, unpacked_lines(files["corpus.jsonl"]))
    }
    queries = {r["_id"]: r["text"] for r in map(json.loads, unpacked_lines(files["queries.jsonl"]))}
    negatives = {
        str(r["qid"]): r["neg"]
        for r in map(json.loads, unpacked_lines(files["hard_negatives.jsonl"]))
    }
    grades, columns = {}, QRELS
    for line in unpacked_lines(files["qrels/train.tsv"]):
        fields = fields_of(line)
        if sorted(fields) == sorted(QRELS):
            columns = fields
            continue
        query, name, grade = (dict(zip(columns, fields))[column] for column in QRELS)
        if int(grade) > 0:
            grades.setdefault(query, {})[name] = int(grade)
    return [
        (
            queries[query],
            *corpus[name],
            [corpus[n] for n in dict.fromkeys(negatives.get(query, [])) if n not in graded],
            graded,
        )
        for query, graded in grades.items()
        for name in graded
    ]


@given(
    DOCUMENTS,
    st.dictionaries(WORDS, WORDS, min_size=1, max_size=2),
    st.data(),
    st.booleans(),
    DAMAGE,
    PACKED,
)
@DRAWN
def test_beir_is_read_as_written(tmp_path, corpus, queries, data, escaped, damage, packed):
    pairs = st.tuples(st.sampled_from(sorted(queries)), st.sampled_from(sorted(corpus)))
    graded = data.draw(st.dictionaries(pairs, st.integers(-1, 3), max_size=3))
    negatives = data.draw(
        st.dictionaries(
            st.sampled_from(sorted(queries)),
            st.lists(st.sampled_from(sorted(corpus)), max_size=2),
            max_size=2,
        )
    )
    columns, style = (
        data.draw(st.sampled_from(list(permutations(QRELS)))),
        data.draw(st.sampled_from(STYLES)),
    )
    qrels = [
        tuple(dict(zip(QRELS, (*pair, str(grade))))[name] for name in columns)
        for pair, grade in graded.items()
    ]
    lines = {
        "corpus.jsonl": [
            dict(_id=name, title=title, text=text) for name, (title, text) in corpus.items()
        ],
        "queries.jsonl": [dict(_id=name, text=text) for name, text in queries.items()],
        "hard_negatives.jsonl": [dict(qid=query, neg=names) for query, names in negatives.items()]
        or [""],
    }
    files = {
        name: "\n".join(
            json.dumps(row, ensure_ascii=escaped) if row else " " for row in rows
        ).encode()
        for name, rows in lines.items()
    }
    files["qrels/train.tsv"] = joined([columns, *qrels], style, "\n").encode()
    files["qrels/dev.tsv"] = b"query-id\tcorpus-id\tscore\n"
    expected = beir_texts(files) if all(can_be_written(row, style) for row in qrels) else None
    target = data.draw(st.sampled_from(sorted(lines) + ["qrels/train.tsv"]))
    (tmp_path / "qrels").mkdir(exist_ok=True)
    for name, content in files.items():
        (tmp_path / f"{name}.gz").unlink(missing_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / target).unlink()
    _, files[target] = written(tmp_path / target, files[target], damage, packed)
    texts = read(
        tmp_path,
        lambda: [
            (p.query, p.title, p.passage, [(h.title, h.text) for h in p.hard_negatives], p.relevant)
            for p in cl.load_pairs(f"beir:{tmp_path}").train
        ],
    )
    if damage is None and expected is not None:
        assert texts == expected
    elif texts is not None:
        assert texts == beir_texts(files)

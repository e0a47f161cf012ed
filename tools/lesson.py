"""A notebook as a lesson: its sections with the minutes that each takes, for notebooks/INSTRUCTOR.md.

Minutes are reading (`WORDS` a minute of prose, `LINES` of code), a minute for each displayed equation and table, `LOOK` for each
picture, exercises as their headings say and `TALK` for what came out, `ANSWER` for each prediction and numbered question, `PLAY`
where a lab, a race, a map or a numbered experiment is on the page, and the computing that the gate measured.
"""

from __future__ import annotations

import math
import re

from tools.links import is_setup, without_launch

WORDS, LINES, LOOK, TALK, ANSWER, PLAY = 120, 12, 0.5, 2, 1.5, 4
HEADER = ("You will be able to", "You need", "Time", "The question", "Launch")


def title(notebook) -> str:
    """ "01 · Contrast"."""
    return re.match(r"# (.+)", notebook.cells[0].source)[1].strip()


def header_minutes(notebook) -> int:
    """The class minutes that the header promises."""
    found = re.search(r"\*\*Time\*\* (\d+) minutes", notebook.cells[0].source)
    return int(found[1]) if found else 0


def header_seconds(notebook) -> int:
    """The seconds of computing that the header promises; 0 where it says none."""
    found = re.search(r"(\d+) (second|minute)s? of computing", notebook.cells[0].source)
    return int(found[1]) * (60 if found[2] == "minute" else 1) if found else 0


def sections(notebook, seconds=()) -> list[dict]:
    """The `##` sections: title, minutes of reading, of exercises and of answering, seconds of computing.

    seconds: of each cell but the set-up cell, as the gate measured them.
    """
    found, folded = [_section("Header")], False
    cells = [cell for cell in notebook.cells if not is_setup(cell)]
    for number, cell in enumerate(cells):
        if number < len(seconds):
            found[-1]["seconds"] += seconds[number]
        if cell.cell_type == "code":
            here = found[-1]
            here["read"] += len([line for line in cell.source.splitlines() if line.strip()]) / LINES
            outputs = [
                kind for output in cell.get("outputs", []) for kind in output.get("data", {})
            ]
            here["read"] += LOOK * outputs.count("image/png") + sum(
                "\n|" in "".join(o.data["text/markdown"])
                for o in cell.get("outputs", [])
                if "text/markdown" in o.get("data", {})
            )
            here["answer"] += ANSWER * len(
                re.findall(r"\bcl\.Predict\(|^guess\(", cell.source, re.M)
            ) + PLAY * bool(re.search(r"^(lab|figure3|race\.race\(\))$", cell.source, re.M))
            continue
        for line in without_launch(cell.source).splitlines():
            folded = (folded or "<details>" in line) and "</details>" not in line
            if line.startswith("## "):
                found.append(_section(line[3:]))
            elif exercise := re.match(r"###.*\((\d+) minutes\)", line):
                found[-1]["exercise"] += int(exercise[1]) + TALK
            elif not folded and "</details>" not in line:
                found[-1]["read"] += (
                    len(re.findall(r"\w+", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", line))) / WORDS
                )
                found[-1]["read"] += line.startswith("$$")
                found[-1]["answer"] += ANSWER * bool(re.match(r"\d+\. ", line)) + PLAY * bool(
                    re.match(r"\*\*\d · ", line)
                )
    return [part for part in found if part["title"] != "References"]


def _section(name: str) -> dict:
    return dict(title=name, read=0.0, exercise=0, answer=0, seconds=0.0)


def minutes(part: dict) -> float:
    return part["read"] + part["exercise"] + part["answer"] + part["seconds"] / 60


def plan_table(notebook, record: dict | None = None) -> str:
    """The plan by the minute as Markdown; with the gate's record of the notebook, its computing is counted."""
    parts = sections(notebook, (record or {}).get("cells") or ())
    rows, clock = (
        [
            "| from minute | section | minutes | of these: exercises | predictions, questions, play | computing, s |",
            "|---" * 6 + "|",
        ],
        0.0,
    )
    for part in parts:
        rows.append(
            f"| {clock:.0f} | {part['title']} | {max(1, math.ceil(minutes(part)))} | {part['exercise'] or ''} | {math.ceil(part['answer']) or ''} | {part['seconds']:.0f} |"
        )
        clock += minutes(part)
    return "\n".join([*rows, "", f"In all {clock:.0f} minutes."])

"""The evening path: the files that one reads to understand the method, in their order."""

import ast
import re
from pathlib import Path

import pytest

import contaccum_lite

PACKAGE = Path(contaccum_lite.__file__).parent
PATH = [
    "minimal.py",
    "core/loss.py",
    "core/bank.py",
    "encoders/bag.py",
    "core/gradients.py",
    "core/batches.py",
    "core/trainer.py",
    "core/settings.py",
    "data/types.py",
]
LINES = 1500
#: Optional features, which attach from outside.
OUTSIDE = ("staleness", "scale", "integrations", "evidence", "lab", "course", "cli", "diagnostics")


def test_the_path_is_read_in_an_evening():
    lines = {name: len((PACKAGE / name).read_text().splitlines()) for name in PATH}
    assert sum(lines.values()) <= LINES, lines


def test_each_file_names_the_one_before_and_the_one_after():
    for number, name in enumerate(PATH, 1):
        docstring = ast.get_docstring(ast.parse((PACKAGE / name).read_text()))
        words = [f"Reading path {number} of {len(PATH)}."]
        words += [f"Before: {PATH[number - 2]}."] if number > 1 else []
        words += [f"After: {PATH[number]}."] if number < len(PATH) else []
        assert docstring.endswith(" ".join(words)), name


def test_the_package_names_the_path_in_this_order():
    named = re.findall(r"^ +\d +(\S+\.py)", contaccum_lite.__doc__, re.MULTILINE)
    assert named == PATH


def imported(source):
    """The full names of all that a source imports, at its top or within a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the package imports by full names"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def optional(source):
    """Those of its imports that are of an optional feature."""
    outside = {f"contaccum_lite.{name}" for name in OUTSIDE}
    return [name for name in imported(source) if ".".join(name.split(".")[:2]) in outside]


def test_the_path_knows_no_optional_feature():
    for name in PATH:
        assert optional((PACKAGE / name).read_text()) == [], name


@pytest.mark.parametrize(
    "line",
    [
        "import contaccum_lite.lab.matrix",
        "import contaccum_lite.cli as cli",
        "from contaccum_lite import staleness",
        "from contaccum_lite.scale.index import Index",
        "def late():\n    from contaccum_lite.course import check",
    ],
)
def test_an_import_of_an_optional_feature_is_found(line):
    assert optional(line)


def test_every_optional_feature_is_in_the_package():
    for name in OUTSIDE:
        assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file(), name


def test_no_line_is_longer_than_a_hundred_columns():
    for name in PATH:
        longest = max(map(len, (PACKAGE / name).read_text().splitlines()))
        assert longest <= 100, (name, longest)

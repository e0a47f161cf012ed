"""python-docs: the documentation of the installed packages, as (summary → explanation) pairs of real text.

The sources are read with `ast`; no module is imported or executed. The text belongs to the packages that it comes from:
it is read on the reader's machine, kept in a cache there, and stored nowhere else.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import inspect
import re
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("numpy", "torch", "transformers")  # and the standard library
#: Of 1,000 names this many, by hash, are never trained on.
HELD_OUT_PER_MILLE = 160

_SKIPPED_FOLDERS = {
    "test",
    "tests",
    "testdata",
    "_vendor",
    "vendored",
    "_vendored",
    "third_party",
    "_bundled",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "pydoc_data",
    "site-packages",
    "dist-packages",
    "__pycache__",
}
_GENERATED = re.compile(rb"automatically.generated|auto-?generated|@generated", re.IGNORECASE)
_ADDERS = {"add_newdoc", "add_docstr", "_add_docstr", "add_docstr_all"}


def versions() -> dict[str, str]:
    """The version of everything that is read: Python's and each package's."""
    return {
        "python": "%d.%d.%d" % sys.version_info[:3],
        **{name: version(name) for name in PACKAGES},
    }


def held_out_rank(name: str) -> int | None:
    """Where a name stands among those never trained on (lowest first), or None; it depends on nothing but the name."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return number if number % 1000 < HELD_OUT_PER_MILLE else None


def read_docs(progress: Callable = iter) -> list[tuple[str, str, str]]:
    """(public name, summary, explanation) of every public docstring that has both; no name, summary or text twice.

    `progress` wraps the list of files while they are read (a progress bar, say).
    """
    found, seen = [], set()
    collecting = gc.isenabled()
    gc.disable()  # syntax trees are millions of objects without cycles: looking for cycles in them triples the time
    try:
        entries = sorted(
            _public_docstrings(progress), key=lambda entry: (entry[0].count("."), entry[0])
        )
    finally:
        if collecting:
            gc.enable()
    for name, docstring in entries:  # of two places with the same text, the shorter name keeps it
        parts = split_docstring(docstring, name)
        keys = parts and {
            ("name", name),
            ("summary", normal(parts[0])),
            ("explanation", normal(parts[1])),
        }
        if keys and not keys & seen:
            seen |= keys
            found.append((name, *parts))
    return found


# --- text --------------------------------------------------------------------------------------------------------------


def normal(text: str) -> str:
    """Text with case, punctuation and spacing taken away: two texts that agree in this are the same text."""
    return " ".join(re.findall(r"\w+", text.lower()))


_SIGNATURE = re.compile(r"([\w.]+)\s*\(.*?\)[ \t]*(->[^\n]+)?(\n\s*--)?[ \t]*(\n|$)", re.DOTALL)
_NO_SUMMARY = re.compile(
    r"\W|(args?|arguments|parameters|returns?|raises|examples?|inputs?|notes?|usage|references?|shape|"
    r"attributes|warnings?)( *-| *:|$)|copied from|todo\b|\w+ ?\(",
    re.IGNORECASE,
)


def split_docstring(docstring: str, name: str) -> tuple[str, str] | None:
    """Its first paragraph on one line, and the rest, signatures stripped; None where one of the two says too little."""
    text = inspect.cleandoc(
        docstring.encode(errors="ignore").decode()
    )  # a docstring may hold half a surrogate pair
    own = name.rsplit(".", 1)[-1]
    while (signature := _SIGNATURE.match(text)) and signature[1].rsplit(".", 1)[-1] == own:
        text = text[signature.end() :].lstrip()
    first, _, rest = text.partition("\n\n")
    first, rest = " ".join(plain(first).split()), plain(rest).strip()
    if (
        not 3 <= len(first.split()) <= 60
        or len(normal(rest).split()) < 8
        or _NO_SUMMARY.match(first)
    ):
        return None
    return first, rest


def plain(text: str) -> str:
    """Documentation without its markup: roles, cross-references, back-quotes and directives' marks."""
    text = re.sub(r":\w+(:\w+)*:`~?([^`<]*?)( <[^`]*>)?`", r"\2", text)
    text = re.sub(
        r"^\s*\.\. ((version|deprecated)[^\n]*|\w+::|_[^\n]*:)", "", text, flags=re.MULTILINE
    )
    text = (
        re.sub(r"\[`~?([^`]*)`\](\([^)]*\))?", r"\1", text).replace("`", "").replace("::\n", ":\n")
    )
    return re.sub(r"\n\s*\n+", "\n\n", text)


# --- files -------------------------------------------------------------------------------------------------------------


class _File(NamedTuple):
    module: str
    path: Path

    @property
    def package(self) -> list[str]:
        """The names that a relative import in this file starts from."""
        names = self.module.split(".")
        return names if self.path.name == "__init__.py" else names[:-1]


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") or not part for part in name.split("."))


def _files() -> list[_File]:
    paths = sysconfig.get_paths()
    roots = {"": Path(paths["stdlib"])}
    for package in PACKAGES:
        places = [Path(paths[key]) / package for key in ("purelib", "platlib")]
        roots[package] = next((place for place in places if place.is_dir()), places[0])
    files = []
    for package, root in roots.items():
        for path in sorted(root.rglob("*.py")):
            parts = [p for p in (package, *path.relative_to(root).with_suffix("").parts) if p]
            if not _SKIPPED_FOLDERS & set(parts[:-1]) and not any(
                p.startswith(("test_", "dummy_")) for p in parts
            ):
                files.append(
                    _File(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path)
                )
    return files


def _public_docstrings(progress: Callable) -> Iterator[tuple[str, str]]:
    """(public name, docstring): what public modules define, then what they take from private ones, then compiled functions."""
    files = {file.module: file for file in _files()}
    wanted = defaultdict(
        dict
    )  # private module -> {name there: public name}; "*" stands for all, with the public module
    private = [file for file in files.values() if not _is_public(file.module)]
    for file in progress([file for file in files.values() if _is_public(file.module)]):
        source = file.path.read_bytes()
        if (tree := _parse(source)) is not None:
            yield from _named(_walk(tree.body, file.module, ast.get_docstring(tree, clean=False)))
            if file.path.name == "__init__.py" or b"import *" in source:
                _note_imports(file, tree, wanted)
            if _adds(source):
                yield from _named(_added(tree, file.module))
    done = set()
    while todo := [module for module in wanted if module not in done]:
        for module in todo:
            done.add(module)
            if (
                module in files
                and not _is_public(module)
                and (tree := _parse(files[module].path.read_bytes())) is not None
            ):
                yield from _named(_taken(files[module], tree, wanted))
    for file in private:
        source = file.path.read_bytes()
        if _adds(source) and (tree := _parse(source)) is not None:
            yield from _named(_added(tree, file.module))


def _adds(source: bytes) -> bool:
    return b"add_docstr" in source or b"add_newdoc(" in source


def _parse(source: bytes) -> ast.Module | None:
    if (
        b'"""' not in source
        and b"'''" not in source
        and b"import *" not in source
        or _GENERATED.search(source[:3000])
    ):
        return None
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):  # a template, or a file for another version of Python
        return None


def _named(entries) -> Iterator[tuple[str, str]]:
    return ((name, docstring) for name, docstring in entries if docstring and _is_public(name))


def _walk(body, prefix: str, own: str | None = None) -> Iterator[tuple[str, str | None]]:
    """(qualified name, docstring) of what is defined here, classes' members too; functions are not entered."""
    if own:
        yield prefix, own
    for node in _statements(body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}.{node.name}", ast.get_docstring(node, clean=False)
        elif isinstance(node, ast.ClassDef):
            yield from _walk(
                node.body, f"{prefix}.{node.name}", ast.get_docstring(node, clean=False)
            )


def _statements(body) -> Iterator[ast.stmt]:
    """The statements of a body, those under `if` and `try` too."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):
            yield from _statements(
                [
                    *node.body,
                    *(n for h in getattr(node, "handlers", []) for n in h.body),
                    *node.orelse,
                ]
            )
        else:
            yield node


def _note_imports(file: _File, tree: ast.Module, wanted) -> None:
    """Remember which names this public module shows of private ones: those of a star import, or of a package's own face."""
    reexport = file.path.name == "__init__.py"
    for source, name, alias in _imports(file, tree):
        if not _is_public(source) and (name == "*" or reexport and _is_public(alias)):
            wanted[source].setdefault(
                name, file.module if name == "*" else f"{file.module}.{alias}"
            )


def _imports(file: _File, tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """(module, name, alias) of each `from module import name as alias`."""
    for node in _statements(tree.body):
        if isinstance(node, ast.ImportFrom):
            package = file.package[: len(file.package) - node.level + 1] if node.level else []
            source = ".".join([*package, *([node.module] if node.module else [])])
            yield from ((source, a.name, a.asname or a.name) for a in node.names)


def _taken(file: _File, tree: ast.Module, wanted) -> Iterator[tuple[str, str | None]]:
    """What others take from this private module, under its public name; what it takes itself is passed on to its source."""
    names = wanted[file.module]
    defined = set()
    for name, docstring in _walk(tree.body, ""):
        top, dot, member = name[1:].partition(".")
        defined.add(top)
        public = names.get(top) or ("*" in names and f"{names['*']}.{top}")
        if public:
            yield public + dot + member, docstring
    for source, name, alias in _imports(file, tree):
        if name == "*":
            for other, public in names.items():
                if other not in defined:
                    wanted[source].setdefault(other, public)
        elif alias in names:
            wanted[source].setdefault(name, names[alias])


# --- docstrings that are handed to compiled functions -------------------------------------------------------------------


def _added(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """(public name, docstring) of each add_newdoc(place, name, text), add_docstr(function, text) and the like."""
    assigned = {
        id(node.value): node.targets[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in ast.walk(tree):
        if (
            not isinstance(node, ast.Call)
            or getattr(node.func, "id", None) not in _ADDERS
            or len(node.args) < 2
        ):
            continue
        if node.func.id == "add_newdoc":
            found = _newdoc(*node.args[:3]) if len(node.args) >= 3 else []
        elif node.func.id == "add_docstr_all":
            owner = "torch.Tensor" if "tensor" in module else "torch.Storage"
            found = [(f"{owner}.{_string(node.args[0])}", node.args[1])]
        else:
            found = [
                (
                    f"{module}.{assigned[id(node)]}"
                    if id(node) in assigned
                    else _dotted(node.args[0]),
                    node.args[1],
                )
            ]
        for name, text in found:
            if name and (docstring := _string(text)):
                yield _without_private(name), docstring


def _newdoc(place, name, text) -> list[tuple[str, ast.expr]]:
    """NumPy's add_newdoc: the text is a string, a (method, string) pair, or a list of such pairs."""
    owner = f"{_string(place)}.{_string(name)}"
    if isinstance(text, ast.Tuple):
        text = ast.List(elts=[text])
    if isinstance(text, ast.List):
        return [
            (f"{owner}.{_string(pair.elts[0])}", pair.elts[1])
            for pair in text.elts
            if isinstance(pair, ast.Tuple)
        ]
    return [(owner, text)]


def _string(node) -> str:
    """The text of a string expression as far as it stands in the source: constants, sums, f-strings, `.format(...)`."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.BinOp):
        return _string(node.left) + _string(node.right)
    if isinstance(node, ast.JoinedStr):
        return "".join(_string(part) for part in node.values)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "format"
    ):
        return (
            re.sub(r"\{(\w*)\}", lambda m: "" if "note" in m[1] else m[1], _string(node.func.value))
            .replace("{{", "{")
            .replace("}}", "}")
        )
    if isinstance(node, ast.Call) and node.args:  # textwrap.dedent(...) and its like
        return _string(node.args[0])
    return ""


def _dotted(node) -> str:
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return inner and f"{inner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _without_private(name: str) -> str:
    """`numpy._core.multiarray.arange` is shown to the public as `numpy.arange`: cut from the first private part to the object."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts[:-1]) if part.startswith("_")), None)
    if first is None:
        return name
    rest = [part for part in parts[first:] if not part.startswith("_")]
    lowest = next(
        (i for i, part in enumerate(rest) if i and not part.islower() or part in _CLASSES),
        len(rest) - 1,
    )
    return ".".join(parts[:first] + rest[lowest:])


_CLASSES = {"ndarray", "dtype", "ufunc", "broadcast", "flatiter", "nditer", "generic"}

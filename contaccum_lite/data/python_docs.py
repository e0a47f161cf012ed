"""Reads the documentation of the installed packages: (summary, explanation) pairs of real text.

The sources are read with `ast`; no module is imported or executed. The text belongs to the packages
that it comes from: it is read on the user's machine, cached there, and stored nowhere else.
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

_SKIPPED_FOLDERS = set(
    "test tests testdata _vendor vendored _vendored third_party _bundled idlelib lib2to3 "
    "turtledemo pydoc_data site-packages dist-packages __pycache__".split()
)
_GENERATED = re.compile(rb"automatically.generated|auto-?generated|@generated", re.IGNORECASE)
_DOC_ATTACHERS = {"add_newdoc", "add_docstr", "_add_docstr", "add_docstr_all"}


def versions() -> dict[str, str]:
    """The version of everything that is read: Python's and each package's."""
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        **{name: version(name) for name in PACKAGES},
    }


def held_out_rank(name: str) -> int | None:
    """The rank of a name among those never trained on (lowest first), or None.

    It depends on nothing but the name.
    """
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return number if number % 1000 < HELD_OUT_PER_MILLE else None


def read_docs(progress: Callable = iter) -> list[tuple[str, str, str]]:
    """(public name, summary, explanation) of every public docstring that has both.

    No name, summary or explanation occurs twice. `progress` wraps the list of files while they are
    read (a progress bar, say).
    """
    collecting = gc.isenabled()
    gc.disable()  # syntax trees have no cycles: looking for some in millions of nodes takes long
    try:
        entries = list(_public_docstrings(progress))
    finally:
        if collecting:
            gc.enable()
    # of two objects with the same text, the one with the shorter name keeps it
    entries.sort(key=lambda entry: (entry[0].count("."), entry[0]))
    docs, known = [], set()
    for name, docstring in entries:
        summary_and_rest = split_docstring(docstring, name)
        if summary_and_rest is None:
            continue
        summary, explanation = summary_and_rest
        keys = {
            ("name", name),
            ("summary", normalize_text(summary)),
            ("explanation", normalize_text(explanation)),
        }
        if keys.isdisjoint(known):
            known |= keys
            docs.append((name, summary, explanation))
    return docs


# --- text ----------------------------------------------------------------------------------------


def normalize_text(text: str) -> str:
    """Text without case, punctuation and spacing: equal for two texts that count as the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


_SIGNATURE = re.compile(r"([\w.]+)\s*\(.*?\)[ \t]*(->[^\n]+)?(\n\s*--)?[ \t]*(\n|$)", re.DOTALL)
_NO_SUMMARY = re.compile(
    r"\W|(args?|arguments|parameters|returns?|raises|examples?|inputs?|notes?|usage|references?|"
    r"shape|attributes|warnings?)( *-| *:|$)|copied from|todo\b|\w+ ?\(",
    re.IGNORECASE,
)


def split_docstring(docstring: str, name: str) -> tuple[str, str] | None:
    """(first paragraph on one line, the rest) without signatures; None if one says too little."""
    characters = docstring.encode(errors="ignore").decode()  # no halves of surrogate pairs
    text = inspect.cleandoc(characters)
    own_name = name.rpartition(".")[2]
    signature = _SIGNATURE.match(text)
    while signature and signature[1].rpartition(".")[2] == own_name:
        text = text[signature.end() :].lstrip()
        signature = _SIGNATURE.match(text)
    first, _, rest = text.partition("\n\n")
    summary = " ".join(strip_markup(first).split())
    explanation = strip_markup(rest).strip()
    if not 3 <= len(summary.split()) <= 60 or _NO_SUMMARY.match(summary):
        return None
    if len(normalize_text(explanation).split()) < 8:
        return None
    return summary, explanation


def strip_markup(text: str) -> str:
    """Documentation without roles, cross-references, back-quotes and directives' marks."""
    text = re.sub(r":\w+(:\w+)*:`~?([^`<]*?)( <[^`]*>)?`", r"\2", text)
    directive = r"^\s*\.\. ((version|deprecated)[^\n]*|\w+::|_[^\n]*:)"
    text = re.sub(directive, "", text, flags=re.MULTILINE)
    text = re.sub(r"\[`~?([^`]*)`\](\([^)]*\))?", r"\1", text)
    text = text.replace("`", "").replace("::\n", ":\n")
    return re.sub(r"\n\s*\n+", "\n\n", text)


# --- files ---------------------------------------------------------------------------------------


class SourceFile(NamedTuple):
    """A Python file, and the module that it is."""

    module: str
    path: Path

    @property
    def package(self) -> list[str]:
        """The names that a relative import in this file starts from."""
        names = self.module.split(".")
        return names if self.path.name == "__init__.py" else names[:-1]


def is_public(name: str) -> bool:
    """Whether no part of a qualified name begins with an underscore."""
    return not any(each.startswith("_") or not each for each in name.split("."))


def source_files() -> list[SourceFile]:
    """Every file that is read, of the standard library and of the packages."""
    files = []
    for package, root in _roots().items():
        prefix = [package] if package else []
        for path in sorted(root.rglob("*.py")):
            names = [*prefix, *path.relative_to(root).with_suffix("").parts]
            if _is_skipped(names):
                continue
            if names[-1] == "__init__":
                names.pop()
            files.append(SourceFile(".".join(names), path))
    return files


def _roots() -> dict[str, Path]:
    """The folder of each package; of the standard library under an empty name."""
    paths = sysconfig.get_paths()
    roots = {"": Path(paths["stdlib"])}
    for package in PACKAGES:
        folders = [Path(paths[key]) / package for key in ("purelib", "platlib")]
        roots[package] = next((folder for folder in folders if folder.is_dir()), folders[0])
    return roots


def _is_skipped(names: list[str]) -> bool:
    """Whether a file is of tests, or no part of the package; names: its path's, without ending."""
    if not _SKIPPED_FOLDERS.isdisjoint(names[:-1]):
        return True
    return any(name.startswith(("test_", "dummy_")) for name in names)


def _public_docstrings(progress: Callable) -> Iterator[tuple[str, str]]:
    """(public name, docstring): first of what public modules define, then of what they show of
    private modules, then of compiled functions whose docstrings private modules attach."""
    files = {file.module: file for file in source_files()}
    public = [file for file in files.values() if is_public(file.module)]
    private = [file for file in files.values() if not is_public(file.module)]
    # private module -> {name there: public name}; "*" stands for all, with the public module
    reexports = defaultdict(dict)
    for file in progress(public):
        yield from _public_module_docstrings(file, reexports)
    yield from _reexported_docstrings(files, reexports)
    for file in private:
        source = file.path.read_bytes()
        tree = parse_source(source) if _attaches_docstrings(source) else None
        if tree is not None:
            yield from _public_only(_attached_docstrings(tree, file.module))


def _public_module_docstrings(
    file: SourceFile, reexports: defaultdict
) -> Iterator[tuple[str, str]]:
    """What a public module defines and attaches; what it shows of private ones is noted."""
    source = file.path.read_bytes()
    tree = parse_source(source)
    if tree is None:
        return
    docstring = ast.get_docstring(tree, clean=False)
    yield from _public_only(definitions(tree.body, file.module, docstring))
    if file.path.name == "__init__.py" or b"import *" in source:
        _note_reexports(file, tree, reexports)
    if _attaches_docstrings(source):
        yield from _public_only(_attached_docstrings(tree, file.module))


def _reexported_docstrings(
    files: dict[str, SourceFile], reexports: defaultdict
) -> Iterator[tuple[str, str]]:
    """What public modules show of private ones, which may take it from further private ones."""
    done = set()
    while len(done) < len(reexports):
        for module in [module for module in reexports if module not in done]:
            done.add(module)
            if module in files and not is_public(module):
                tree = parse_source(files[module].path.read_bytes())
                if tree is not None:
                    yield from _public_only(_reexported(files[module], tree, reexports))


def _attaches_docstrings(source: bytes) -> bool:
    return b"add_docstr" in source or b"add_newdoc(" in source


def parse_source(source: bytes) -> ast.Module | None:
    """The syntax tree; None for a file without docstrings, generated or for another Python."""
    relevant = any(text in source for text in (b'"""', b"'''", b"import *"))
    if not relevant or _GENERATED.search(source[:3000]):
        return None
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):  # a template, or a file for another version of Python
        return None


def _public_only(entries) -> Iterator[tuple[str, str]]:
    return ((name, docstring) for name, docstring in entries if docstring and is_public(name))


def definitions(
    body, prefix: str, docstring: str | None = None
) -> Iterator[tuple[str, str | None]]:
    """(qualified name, docstring) of what is defined here, and of classes' members."""
    if docstring:
        yield prefix, docstring
    for node in _statements(body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}.{node.name}", ast.get_docstring(node, clean=False)
        elif isinstance(node, ast.ClassDef):
            docstring = ast.get_docstring(node, clean=False)
            yield from definitions(node.body, f"{prefix}.{node.name}", docstring)


def _statements(body) -> Iterator[ast.stmt]:
    """The statements of a body, those under `if` and `try` too."""
    for node in body:
        if not isinstance(node, (ast.If, ast.Try)):
            yield node
            continue
        yield from _statements(node.body)
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body)
        yield from _statements(node.orelse)


def _note_reexports(file: SourceFile, tree: ast.Module, reexports) -> None:
    """Note which names of private modules this public one shows.

    These are all names of a star import, and what a package's __init__.py imports.
    """
    is_package = file.path.name == "__init__.py"
    for source, name, alias in _imports(file, tree):
        if is_public(source):
            continue
        if name == "*":
            reexports[source].setdefault(name, file.module)
        elif is_package and is_public(alias):
            reexports[source].setdefault(name, f"{file.module}.{alias}")


def _imports(file: SourceFile, tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """(module, name, alias) of each `from module import name as alias`."""
    for node in _statements(tree.body):
        if isinstance(node, ast.ImportFrom):
            package = file.package[: len(file.package) - node.level + 1] if node.level else []
            source = ".".join([*package, *([node.module] if node.module else [])])
            yield from ((source, a.name, a.asname or a.name) for a in node.names)


def _reexported(file: SourceFile, tree: ast.Module, reexports) -> Iterator[tuple[str, str | None]]:
    """What others show of this private module, under its public name.

    What this module itself takes from elsewhere is noted for its source.
    """
    names = reexports[file.module]
    defined = set()
    for name, docstring in definitions(tree.body, ""):
        top, dot, member = name[1:].partition(".")
        defined.add(top)
        public = names.get(top) or ("*" in names and f"{names['*']}.{top}")
        if public:
            yield public + dot + member, docstring
    for source, name, alias in _imports(file, tree):
        if name == "*":
            for other, public in names.items():
                if other not in defined:
                    reexports[source].setdefault(other, public)
        elif alias in names:
            reexports[source].setdefault(name, names[alias])


# --- docstrings that are attached to compiled functions ------------------------------------------


def _attached_docstrings(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """(public name, docstring) of each add_newdoc(owner, name, text), add_docstr(function, text)
    and the like."""
    assigned = _assigned_names(tree)
    for node in ast.walk(tree):
        function = _doc_attacher(node)
        if function is None:
            continue
        for name, text in _docstrings_of_call(function, node, module, assigned.get(id(node))):
            docstring = _string(text) if name else ""
            if docstring:
                yield _without_private(name), docstring


def _assigned_names(tree: ast.Module) -> dict[int, str]:
    """id of an expression -> the name that it is assigned to."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[id(node.value)] = node.targets[0].id
    return names


def _doc_attacher(node: ast.AST) -> str | None:
    """The name of the function that attaches a docstring, where this is a call of one."""
    if not isinstance(node, ast.Call) or len(node.args) < 2:
        return None
    function = getattr(node.func, "id", None)
    return function if function in _DOC_ATTACHERS else None


def _docstrings_of_call(
    function: str, node: ast.Call, module: str, assigned_to: str | None
) -> list[tuple[str, ast.expr]]:
    """(name, docstring expression) of each docstring that this call attaches."""
    if function == "add_newdoc":
        return _newdoc(*node.args[:3]) if len(node.args) >= 3 else []
    if function == "add_docstr_all":
        owner = "torch.Tensor" if "tensor" in module else "torch.Storage"
        return [(f"{owner}.{_string(node.args[0])}", node.args[1])]
    name = f"{module}.{assigned_to}" if assigned_to else _dotted(node.args[0])
    return [(name, node.args[1])]


def _newdoc(owner, name, text) -> list[tuple[str, ast.expr]]:
    """Of NumPy's add_newdoc: text is a string, a (method, string) pair, or a list of such pairs."""
    owner = f"{_string(owner)}.{_string(name)}"
    if isinstance(text, ast.Tuple):
        text = ast.List(elts=[text])
    if not isinstance(text, ast.List):
        return [(owner, text)]
    pairs = [pair.elts for pair in text.elts if isinstance(pair, ast.Tuple)]
    return [(f"{owner}.{_string(method)}", docstring) for method, docstring, *_ in pairs]


def _string(node) -> str:
    """The text of a string expression, as far as the source shows it: of constants, sums,
    f-strings and `.format(...)`."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.BinOp):
        return _string(node.left) + _string(node.right)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_string, node.values))
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        template = _string(node.func.value)
        text = re.sub(r"\{(\w*)\}", lambda field: "" if "note" in field[1] else field[1], template)
        return text.replace("{{", "{").replace("}}", "}")
    return _string(node.args[0]) if node.args else ""  # textwrap.dedent(...) and its like


def _dotted(node) -> str:
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return inner and f"{inner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


_CLASSES = {"ndarray", "dtype", "ufunc", "broadcast", "flatiter", "nditer", "generic"}


def _without_private(name: str) -> str:
    """The public name of an object: `numpy._core.multiarray.arange` is shown as `numpy.arange`.

    The name is cut from its first private module to the object, or to the object's class.
    """
    names = name.split(".")
    first = next((i for i, each in enumerate(names[:-1]) if each.startswith("_")), None)
    if first is None:
        return name
    rest = [each for each in names[first:] if not each.startswith("_")]
    last = len(rest) - 1
    for index, each in enumerate(rest):
        if index > 0 and not each.islower() or each in _CLASSES:
            last = index
            break
    return ".".join(names[:first] + rest[last:])

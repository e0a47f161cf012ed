"""The options of each command. Those of `train` are the fields of `Settings`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable

from contaccum_lite.cli.config import FIELDS
from contaccum_lite.core.fields import range_of, read, type_name
from contaccum_lite.data.load import load_pairs
from contaccum_lite.data.types import Pairs
from contaccum_lite.utils.text import check_text, one_line, shown

LARGEST = 1_000_000_000  # of a number that counts passages, updates or hits
PAIRS = "'python-docs', 'toy', 'dpr:FILE', 'beir:FOLDER' or 'jsonl:FILE'"
PASSAGES = (
    f"a .jsonl file (_id, title, text), a .tsv file (id, text, title), either .gz, or {PAIRS}"
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {one_line(message)}; see {self.prog} --help.\n")

    def add_text(self, name: str, metavar: str | None, help: str, **options) -> None:
        """An argument whose value is a name."""
        self.add_argument(name, metavar=metavar, type=_text, help=help, **options)

    def add_number(self, name: str, metavar: str, help: str, lowest: int, **options) -> None:
        """An argument whose value is a whole number from `lowest` on."""
        self.add_argument(name, metavar=metavar, type=_whole_number(lowest), help=help, **options)


def parser() -> Parser:
    """All commands and their options; `args.command` is the command's name."""
    top = Parser(
        prog="contaccum",
        description="Train, evaluate and use dense retrievers under a memory limit.",
        allow_abbrev=False,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (help, add_options) in _COMMANDS.items():
        command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        command.add_argument(
            "--debug", action="store_true", help="show where in the code an error came from"
        )
        add_options(command)
    return top


def load_pairs_from(args: argparse.Namespace) -> Pairs:
    """The pairs that PAIRS and --test name."""
    if args.test and args.pairs.partition(":")[0] not in ("dpr", "jsonl"):
        raise ValueError(
            f"--test is for 'dpr:FILE' and 'jsonl:FILE', and PAIRS is {args.pairs!r}: "
            "leave --test out."
        )
    test = {"test": args.test} if args.test else {}
    return load_pairs(args.pairs, progress=sys.stderr.isatty(), **test)


# --- commands -------------------------------------------------------------------------------------


def _add_train(command: Parser) -> None:
    command.add_text("pairs", "PAIRS", PAIRS)
    folder = "where the run is kept: checkpoints, settings.yaml, log.jsonl"
    command.add_text("--out", "FOLDER", folder, required=True)
    test = "test pairs, in the format of PAIRS (dpr and jsonl); left out, some are held out"
    command.add_text("--test", "FILE", test)
    config = "settings as YAML, such as a run's settings.yaml; options go before it"
    command.add_text("--config", "FILE", config)
    command.add_argument(
        "--resume", action="store_true", help="insist that FOLDER holds a run to go on with"
    )
    save_every = "updates between checkpoints (default 100)"
    command.add_number("--save-every", "N", save_every, 0, default=100)
    evaluate_every = "updates between evaluations (default 0: only at the end)"
    command.add_number("--evaluate-every", "N", evaluate_every, 0, default=0)
    _add_memory_cap(command)
    settings = command.add_argument_group("settings")
    for field in FIELDS.values():
        _add_setting(settings, field)


def _add_evaluate(command: Parser) -> None:
    command.add_text("folder", "FOLDER", "a folder that train wrote")
    command.add_text("pairs", "PAIRS", PAIRS)
    command.add_text("--test", "FILE", "test pairs, in the format of PAIRS (dpr and jsonl)")
    command.add_argument(
        "--split", choices=("test", "dev"), default="test", help="which pairs to ask (default test)"
    )
    index = "rank the passages of this index in place of those of PAIRS"
    command.add_text("--index", "INDEX", index)
    command.add_argument("--json", action="store_true", help="print JSON")
    _add_encoding(command)


def _add_index(command: Parser) -> None:
    command.add_text("folder", "FOLDER", "a folder that train wrote")
    command.add_text("passages", "PASSAGES", PASSAGES)
    command.add_text("--out", "INDEX", "a folder for the index", required=True)
    command.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="number format on disk (default float32)",
    )
    _add_encoding(command)


def _add_search(command: Parser) -> None:
    command.add_text("index", "INDEX", "a folder that index wrote")
    command.add_argument("query", metavar="QUERY", nargs="+", help="a text, or several")
    command.add_number("-k", "K", "how many (default 5)", 1, default=5)
    command.add_argument(
        "--json", action="store_true", help="print one JSON object a hit, with its text"
    )


#: name -> what it does, and what adds its options.
_COMMANDS: dict[str, tuple[str, Callable[[Parser], None]]] = {
    "train": ("Train a retriever; a folder that holds a run goes on with it.", _add_train),
    "evaluate": (
        "Measure a trained retriever on test pairs, over all their passages or over an index.",
        _add_evaluate,
    ),
    "index": (
        "Encode passages in shards; stopped, it goes on after the last whole one.",
        _add_index,
    ),
    "search": ("Find the passages of an index that are nearest to a query.", _add_search),
    "ledger": (
        "Print what holds of the paper, from the records of its runs.",
        lambda command: None,
    ),
}


def _add_encoding(command: Parser) -> None:
    """How passages are encoded."""
    shard = "passages encoded at a time (default 50000)"
    command.add_number("--shard", "N", shard, 1)
    command.add_text("--device", None, "where to encode; left out, where the run trained")
    _add_memory_cap(command)


def _add_memory_cap(command: Parser) -> None:
    cap = "hold no more memory than this, as 11GB: the GPU's, or on the CPU the process's"
    command.add_text("--memory-cap", "SIZE", cap)


def _add_setting(group, field: dataclasses.Field) -> None:
    """An option for a field of `Settings`; left out, `args` does not have it."""
    metadata = field.metadata
    symbol = f" [{metadata['symbol']}]" if metadata["symbol"] else ""
    allowed = f"{range_of(field)}; " if metadata["low"] is not None else ""
    help = f"{metadata['help']}{symbol} ({allowed}default {metadata['default']})"
    if type_name(field) == "bool":
        kind = {"action": argparse.BooleanOptionalAction}
    elif metadata["choices"]:
        kind = {"choices": metadata["choices"]}
    else:
        kind = {"type": _value_of(field), "metavar": type_name(field).upper()}
    name = "--" + field.name.replace("_", "-")
    group.add_argument(name, default=argparse.SUPPRESS, help=help.replace("%", "%%"), **kind)


# --- types of options -----------------------------------------------------------------------------


def _text(text: str) -> str:
    """A name that is not empty, and that can be written in UTF-8."""
    _argument_error(check_text, text, "it", "rename the file or folder in UTF-8")
    if not text:
        raise argparse.ArgumentTypeError("it is empty: give a name")
    return text


def _value_of(field: dataclasses.Field) -> Callable:
    """The type of a setting's option."""
    return lambda text: _argument_error(read, field, text)


def _argument_error(function: Callable, *arguments):
    """Call a function; its `ValueError` becomes argparse's, which ends without a full stop."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def _whole_number(lowest: int) -> Callable[[str], int]:
    """The type of a whole number from `lowest` on."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = -1
        if not lowest <= value <= LARGEST:
            raise argparse.ArgumentTypeError(
                f"{shown(text)} is not a whole number from {lowest} to {LARGEST}"
            )
        return value

    return number

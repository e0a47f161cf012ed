"""Runs a command. What goes wrong is one sentence on stderr and exit status 2."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from contaccum_lite.cli.errors import user_message
from contaccum_lite.cli.options import load_pairs_from, parser
from contaccum_lite.cli.terminal import (
    flush_stdout,
    json_line,
    open_streams,
    print_error,
    progress_bar,
    shell_command,
    silence_libraries,
    update_to,
)
from contaccum_lite.cli.train import train
from contaccum_lite.core.retriever import Retriever
from contaccum_lite.data.passages import read_passages
from contaccum_lite.diagnostics import measure
from contaccum_lite.evidence.run import ledger_tables
from contaccum_lite.scale.index import SHARD, Index, build
from contaccum_lite.scale.index import evaluate as evaluate_retriever
from contaccum_lite.utils.text import one_line


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    0; 2 with a sentence on stderr; 130 after Ctrl-C; 143 after SIGTERM; 141 where nobody reads the
    output any more, as in `contaccum search … | head`.
    """
    words = sys.argv[1:] if argv is None else argv
    debug = False
    try:
        open_streams()
        args = parser().parse_args(words)
        args.shell_command = shell_command(words)
        debug = args.debug
        status = COMMANDS[args.command](args)
        sys.stdout.flush()
        return status
    except SystemExit:  # of --help, and of an option that is wrong
        if not flush_stdout():
            return 141
        raise
    except KeyboardInterrupt:
        print_error(f"contaccum: stopped. Go on with: {shell_command(words)}")
        return 130
    except BrokenPipeError:
        flush_stdout()
        return 141  # what a shell says of a command that SIGPIPE ended
    except Exception as error:
        message = user_message(error)
        if message is None or debug:
            raise
        clauses = [message.rstrip("."), *getattr(error, "__notes__", [])]
        print_error(f"contaccum: {one_line('; '.join(clauses) + '.')}")
        flush_stdout()
        return 2


def evaluate(args: argparse.Namespace) -> int:
    """Print the metrics of a trained retriever."""
    silence_libraries()
    retriever = Retriever.load(args.folder, args.device)
    if args.memory_cap:
        measure.cap_memory(args.memory_cap, retriever.settings.device)
    index = Index(args.index) if args.index else None
    pairs = load_pairs_from(args)
    with progress_bar(len(pairs.passages), unit="passage") as bar:
        metrics = evaluate_retriever(
            retriever, pairs, args.split, index, args.shard or SHARD, update_to(bar)
        )
    if args.json:
        print(json.dumps(metrics))
    else:
        print("\n".join(f"{name:16s} {value:.4f}" for name, value in metrics.items()))
    return 0


def index(args: argparse.Namespace) -> int:
    """Make an index, or finish it."""
    silence_libraries()
    if args.memory_cap:
        measure.cap_memory(args.memory_cap, args.device or "cpu")
    with progress_bar(None, unit="passage") as bar:
        finished = build(
            args.folder,
            lambda: read_passages(args.passages),
            args.out,
            source=args.passages,
            shard=args.shard or SHARD,
            dtype=args.dtype,
            device=args.device,
            progress=update_to(bar),
        )
    print(repr(finished))
    return 0


def search(args: argparse.Namespace) -> int:
    """Print the hits of each query."""
    silence_libraries()
    index = Index(args.index)
    for query in args.query:
        hits = index.search(query, args.k)
        if args.json:
            lines = [json_line({"query": query, **hit._asdict()}) for hit in hits]
        else:
            lines = [one_line(query)] if len(args.query) > 1 else []
            lines += [_two_lines(hit) for hit in hits]
        print("\n".join(lines))
    return 0


def _two_lines(hit) -> str:
    """A hit for the terminal."""
    head = f"{hit.score:8.2f}  {one_line(hit.id)}  {one_line(hit.title)}"
    return f"{head}\n          {one_line(hit.passage)[:160]}"


def ledger(args: argparse.Namespace) -> int:
    """Print the ledger's table."""
    print(ledger_tables()["ledger"])
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": train,
    "evaluate": evaluate,
    "index": index,
    "search": search,
    "ledger": ledger,
}

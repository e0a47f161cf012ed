"""The command line: `contaccum train | evaluate | index | search | ledger` (also `python -m contaccum_lite`).

Every setting is an option, made from the fields of `Settings`. What goes wrong is one sentence on stderr and exit status 2;
Ctrl-C saves, says how to go on, and exits with 130.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import shlex
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

from .search import acts, one_line, plain
from .settings import Settings, check_text, range_of, read, shown

FIELDS = {f.name: f for f in dataclasses.fields(Settings)}
_NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "Cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "failed to allocate",
)
_FULL = ("No space left", "File too large", "quota exceeded")
_LARGEST = 1_000_000_000  # of a number that counts passages, updates or hits
PAIRS = "'python-docs', 'toy', 'dpr:FILE', 'beir:FOLDER' or 'jsonl:FILE'"


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    0; 2 with a sentence on stderr; 130 after Ctrl-C; 143 after SIGTERM; 141 where nobody reads the
    output any more, as in `contaccum search … | head`.
    """
    words = sys.argv[1:] if argv is None else argv
    debug = False
    try:
        _open_streams()
        given = parser().parse_args(words, argparse.Namespace(line=_line(words)))
        debug = given.debug
        status = given.command(given)
        sys.stdout.flush()
        return status
    except SystemExit:  # of --help, and of an option that is wrong
        if not _flush():
            return 141
        raise
    except KeyboardInterrupt:
        _complain(f"contaccum: stopped. Go on with: {_line(words)}")
        return 130
    except BrokenPipeError:
        _flush()
        return 141  # what a shell says of a command that SIGPIPE ended
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None or debug:
            raise
        whole = "; ".join([sentence.rstrip("."), *getattr(error, "__notes__", [])]) + "."
        _complain(f"contaccum: {one_line(whole)}")
        _flush()
        return 2


def _open_streams() -> None:
    """Let stdout and stderr take any text.

    What they cannot encode is printed as \\uXXXX. One that the shell has closed (`2>&-`) drops all.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nothing = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
            setattr(sys, name, nothing)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> bool:
    """Whether all that was printed could be written.

    What could not be is dropped: Python would complain about it when it exits.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _complain(text: str) -> None:
    """Print a line on stderr, if anybody reads it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        pass


def _line(words: list[str]) -> str:
    """The command with these words, as it is typed into a shell."""
    return " ".join(map(_quoted, ["contaccum", *words]))


def _quoted(word: str) -> str:
    """A word for a shell, with $'\\x..' for bytes that are no text or that a terminal acts on."""
    if not any(acts(character) or character == "\n" for character in word):
        return shlex.quote(word)
    characters = (chr(byte) for byte in os.fsencode(word))
    safe = (c if " " <= c <= "~" and c not in "'\\" else f"\\x{ord(c):02x}" for c in characters)
    return f"$'{''.join(safe)}'"


def _sentence(error: Exception) -> str | None:
    """What the user can do something about, in one sentence; None for what is a fault of this package."""
    from safetensors import SafetensorError

    said = str(error)
    if (
        isinstance(error, MemoryError)
        or isinstance(error, (RuntimeError, OSError))
        and any(words in said for words in _NO_MEMORY)
    ):
        return "memory ran out: lower local_batch, passage_tokens or memory_size, set activation_checkpointing, or raise the memory cap"
    full = any(words in said for words in _FULL) or getattr(error, "errno", None) in (
        errno.ENOSPC,
        errno.EFBIG,
        errno.EDQUOT,
    )
    room = ": make room there and give the same command again" if full else ""
    if (
        isinstance(error, SafetensorError) or type(error) is Exception and "(os error" in said
    ):  # the latter is the tokenizers library's
        return f"a file of the run cannot be written or read ({said}){room}"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be written or read ({error.strerror or said}){room}"
    if isinstance(error, (ValueError, FloatingPointError, ImportError)):
        return said
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"the encoder cannot be compiled here ({said.splitlines()[0] if said else type(error).__name__}): leave compile out"
    return None


# --- options -----------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {one_line(message)}; see {self.prog} --help.\n")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = Parser(
        prog="contaccum",
        description="Train, evaluate and use dense retrievers under a memory limit.",
        allow_abbrev=False,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, help: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        one.set_defaults(command=function, debug=False)
        one.add_argument(
            "--debug", action="store_true", help="show where in the code an error came from"
        )
        return one

    one = command("train", train, "Train a retriever; a folder that holds a run goes on with it.")
    one.add_argument("pairs", metavar="PAIRS", type=_text, help=PAIRS)
    one.add_argument(
        "--out",
        metavar="FOLDER",
        type=_text,
        required=True,
        help="where the run is kept: checkpoints, settings.yaml, log.jsonl",
    )
    one.add_argument(
        "--test",
        metavar="FILE",
        type=_text,
        help="test pairs, in the format of PAIRS (dpr and jsonl); left out, some are held out",
    )
    one.add_argument(
        "--config",
        metavar="FILE",
        type=_text,
        help="settings as YAML, such as a run's settings.yaml; options go before it",
    )
    one.add_argument(
        "--resume", action="store_true", help="insist that FOLDER holds a run to go on with"
    )
    one.add_argument(
        "--save-every",
        metavar="N",
        type=_whole(0),
        default=100,
        help="updates between checkpoints (default 100)",
    )
    one.add_argument(
        "--evaluate-every",
        metavar="N",
        type=_whole(0),
        default=0,
        help="updates between evaluations (default 0: only at the end)",
    )
    _cap_option(one)
    settings = one.add_argument_group("settings")
    for f in FIELDS.values():
        _add_setting(settings, f)

    one = command(
        "evaluate",
        evaluate,
        "Measure a trained retriever on test pairs, over all their passages or over an index.",
    )
    one.add_argument("folder", metavar="FOLDER", type=_text, help="a folder that train wrote")
    one.add_argument("pairs", metavar="PAIRS", type=_text, help=PAIRS)
    one.add_argument(
        "--test",
        metavar="FILE",
        type=_text,
        help="test pairs, in the format of PAIRS (dpr and jsonl)",
    )
    one.add_argument(
        "--split", choices=("test", "dev"), default="test", help="which pairs to ask (default test)"
    )
    one.add_argument(
        "--index",
        metavar="INDEX",
        type=_text,
        help="rank the passages of this index in place of those of PAIRS",
    )
    one.add_argument("--json", action="store_true", help="print JSON")
    _shard_options(one)

    one = command(
        "index", index, "Encode passages in shards; stopped, it goes on after the last whole one."
    )
    one.add_argument("folder", metavar="FOLDER", type=_text, help="a folder that train wrote")
    one.add_argument(
        "passages",
        metavar="PASSAGES",
        type=_text,
        help="a .jsonl file (_id, title, text), a .tsv file (id, text, title), either .gz, or "
        + PAIRS,
    )
    one.add_argument(
        "--out", metavar="INDEX", type=_text, required=True, help="a folder for the index"
    )
    one.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="number format on disk (default float32)",
    )
    _shard_options(one)

    one = command("search", search, "Find the passages of an index that are nearest to a query.")
    one.add_argument("index", metavar="INDEX", type=_text, help="a folder that index wrote")
    one.add_argument("query", metavar="QUERY", nargs="+", help="a text, or several")
    one.add_argument("-k", metavar="K", type=_whole(1), default=5, help="how many (default 5)")
    one.add_argument(
        "--json", action="store_true", help="print one JSON object a hit, with its text"
    )

    command("ledger", ledger, "Print what holds of the paper, from the records of its runs.")
    return top


def _add_setting(group, f) -> None:
    """An option of `train` for a field of `Settings`."""
    symbol, default = f.metadata["symbol"], f.metadata["default"]
    help = f.metadata["help"] + (f" [{symbol}]" if symbol else "")
    help += (
        f" ({range_of(f)}; default {default})"
        if f.metadata["low"] is not None
        else f" (default {default})"
    )
    options = dict(
        default=argparse.SUPPRESS, help=help.replace("%", "%%"), dest=f"setting {f.name}"
    )
    name = "--" + f.name.replace("_", "-")
    if str(f.type) == "bool":
        group.add_argument(name, action=argparse.BooleanOptionalAction, **options)
    elif f.metadata["choices"]:
        group.add_argument(name, choices=f.metadata["choices"], **options)
    else:

        def value(text: str):
            try:
                return read(f, text)
            except ValueError as error:
                raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None

        group.add_argument(name, type=value, metavar=str(f.type).split(" |")[0].upper(), **options)


def _cap_option(one) -> None:
    one.add_argument(
        "--memory-cap",
        metavar="SIZE",
        type=_text,
        help="hold no more memory than this, as 11GB: the GPU's, or on the CPU the process's",
    )


def _shard_options(one) -> None:
    one.add_argument(
        "--shard", metavar="N", type=_whole(1), help="passages encoded at a time (default 50000)"
    )
    one.add_argument(
        "--device", type=_text, help="where to encode; left out, where the run trained"
    )
    _cap_option(one)


def _text(text: str) -> str:
    """A name that is not empty, and that can be written in UTF-8."""
    try:
        check_text(text, "it", "rename the file or folder in UTF-8")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None
    if not text:
        raise argparse.ArgumentTypeError("it is empty: give a name")
    return text


def _whole(lowest: int):
    """A type of options: a whole number from `lowest` on."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = -1
        if not lowest <= value <= _LARGEST:
            raise argparse.ArgumentTypeError(
                f"{shown(text)} is not a whole number from {lowest} to {_LARGEST}"
            )
        return value

    return number


def chosen(given) -> dict:
    """The settings that were given: those of --config, and over them the options."""
    fields = read_config(Path(given.config)) if given.config else {}
    return fields | {
        name.removeprefix("setting "): value
        for name, value in vars(given).items()
        if name.startswith("setting ")
    }


def read_config(path: Path) -> dict:
    """Settings from a YAML file. Raises `ValueError` that names the file and what is wrong with it."""
    fields = _read_yaml(path)
    if not isinstance(fields, dict):
        raise ValueError(
            f"{path} holds a {type(fields).__name__}: give settings as in 'local_batch: 8', one a line."
        )
    if unknown := [name for name in fields if name not in FIELDS]:
        raise ValueError(
            f"{path}: {shown(unknown[0])} is not a setting: the settings are {', '.join(sorted(FIELDS))}."
        )
    try:  # YAML takes 2e-5 for a text: a text is read as an option would be
        return {
            name: read(FIELDS[name], value) if isinstance(value, str) else value
            for name, value in fields.items()
        }
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_yaml(path: Path):
    """What a YAML file says, without aliases: a short file of them can be a value of any size."""
    import yaml
    from yaml.composer import ComposerError

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise ComposerError(
                    problem="an alias, *name, where a value is expected",
                    problem_mark=self.peek_event().start_mark,
                )
            return super().compose_node(parent, index)

    as_in = "give settings as in 'local_batch: 8', one a line."
    # What PyYAML raises for a value that does not fit its tag: !!int x, the date 2026-13-01.
    misfits = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader) or {}
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): give a YAML file of settings."
        ) from None
    except RecursionError:
        raise ValueError(f"{path} has values inside values, too deep to be read: {as_in}") from None
    except ComposerError as error:
        raise ValueError(f"{path} is not YAML of settings ({error}): {as_in}") from None
    except (yaml.YAMLError, *misfits) as error:
        raise ValueError(f"{path} is not YAML ({error}): {as_in}") from None


def _pairs(given):
    from .data import load_pairs

    if given.test and given.pairs.partition(":")[0] not in ("dpr", "jsonl"):
        raise ValueError(
            f"--test is for 'dpr:FILE' and 'jsonl:FILE', and PAIRS is {given.pairs!r}: leave --test out."
        )
    return load_pairs(
        given.pairs, progress=sys.stderr.isatty(), **({"test": given.test} if given.test else {})
    )


def _quiet() -> None:
    """No bars and no advice of the libraries: what this command says is said by it."""
    import huggingface_hub.utils.logging as hub
    from transformers.utils import logging

    hub.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _bar(total: int | None, start: int = 0, unit: str = "update"):
    from tqdm import tqdm

    return tqdm(
        total=total,
        initial=start,
        unit=unit,
        disable=None if leads() else True,
        dynamic_ncols=True,
        smoothing=0.1,
    )


# --- train -------------------------------------------------------------------------------------------------------------


def train(given) -> int:
    """Train to the end, or until a signal; the folder always holds the last checkpoint whole."""
    from .folders import alone_in

    with alone_in(Path(given.out)) if leads() else nullcontext():  # one of several processes
        return _train_alone(given)


def _train_alone(given) -> int:
    """Train in a folder that no other run is writing into."""
    from . import measure

    _quiet()
    folder, fields = Path(given.out), chosen(given)
    goes_on = (folder / "run.json").is_file()
    settings = _settings(given, folder, fields, goes_on)
    if given.memory_cap:
        measure.cap_memory(given.memory_cap, settings.device)
    pairs = _pairs(given)
    run = make_run(pairs, settings, folder, goes_on)
    if not goes_on:
        run.save(folder)  # there is a run to resume from now on, and a full disk is known
    log = Log(folder, run.step_count)
    if leads():
        if not (goes_on and (folder / "settings.yaml").is_file()):
            write_settings(folder, run.settings)
        _say(f"{pairs!r}")
        for note in run.notes:
            _say(note)
        _say(
            f"{f'goes on after update {run.step_count}' if goes_on else 'begins'}, {run.settings.updates} updates in all: {run.settings.share()}"
        )
    status = _train(given, run, log, folder)
    log.close()
    return status


def make_run(pairs, settings: Settings, folder: Path, goes_on: bool):
    """The run that is trained; under torchrun or `accelerate launch` it takes part with the other processes."""
    from .train import Run

    accelerator = None
    if (processes := _of_environment("WORLD_SIZE", 1)) > 1:
        try:
            from . import parallel

            accelerator = parallel.accelerator_here(settings.device)
        except ImportError:
            raise ValueError(
                f'WORLD_SIZE is {processes}, and accelerate is not installed: pip install "contaccum-lite[scale]", or start it without torchrun.'
            ) from None
    return (
        Run.load(folder, pairs, accelerator)
        if goes_on
        else Run(pairs, settings, accelerator=accelerator)
    )


def leads() -> bool:
    """Whether this process is the one that speaks and writes logs: any that trains alone."""
    return _of_environment("WORLD_SIZE", 1) < 2 or _of_environment("RANK", 0) == 0


def _of_environment(name: str, default: int) -> int:
    """A number that torchrun or `accelerate launch` sets."""
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"the environment has {name}={shown(text)}: it must be a whole number, as torchrun has it."
        ) from None


def _settings(given, folder: Path, fields: dict, goes_on: bool) -> Settings:
    """The settings to train with. Raises `ValueError` where the folder holds another run, or something else."""
    from .train import check_device, other_files, read_run, saved_settings

    if not goes_on and given.resume:
        raise ValueError(f"{folder} holds no run to go on with: leave --resume out to begin one.")
    if other := other_files(folder, goes_on):
        raise ValueError(
            f"{folder} holds something else ({one_line(other[0])}): give a new or an "
            "empty folder as --out."
        )
    if not goes_on:
        settings = Settings(**fields)
        check_device(settings)
        return settings
    saved = saved_settings(folder, read_run(folder)[0])
    _check_edited(folder / "settings.yaml", saved)
    for name, value in fields.items():
        if value is not None and (held := getattr(saved, name)) != value:
            raise ValueError(
                f"{folder} holds a run with {name} {held!r}, and {shown(value)} is given: give another folder as --out to begin a new run, or leave {name} "
                "out to go on with this one."
            )
    check_device(saved)
    return saved


def _check_edited(path: Path, saved: Settings) -> None:
    """Raise `ValueError` where a run's settings.yaml was edited: the run keeps its settings."""
    if not path.is_file():
        return
    fields = read_config(path)
    try:
        written = Settings(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for name in FIELDS:
        held, edited = getattr(saved, name), getattr(written, name)
        if held != edited:
            raise ValueError(
                f"{path} says {name} {edited!r}, and the run was begun with {held!r}, which it "
                f"keeps: write {held!r} there to go on, or give the file as --config and another "
                "folder as --out to begin a new run."
            )


def _train(given, run, log: Log, folder: Path) -> int:
    from .train import _uninterrupted

    asked_to_stop = []
    before = signal.signal(
        signal.SIGTERM, lambda *_: asked_to_stop.append(143)
    )  # as a scheduler does, some seconds before SIGKILL
    total, saved = run.settings.updates, run.step_count
    try:
        with _bar(total, run.step_count) as bar:
            while run.step_count < total:
                update = run.step()
                with _uninterrupted():
                    log.updates(run)
                bar.set_postfix(
                    loss=f"{update.loss:.3f}", ratio=f"{update.grad_norm_ratio:.2f}", refresh=False
                )
                bar.update()
                if (
                    given.evaluate_every
                    and update.step % given.evaluate_every == 0
                    and update.step < total
                    and run.pairs.test
                    and leads()
                ):
                    log.evaluation(update.step, _evaluate(run))
                if update.step == total or given.save_every and update.step % given.save_every == 0:
                    run.save(folder)
                    saved = update.step
                if asked_to_stop:
                    raise KeyboardInterrupt
        if run.pairs.test and leads():  # the other processes need not wait for it
            measures = _evaluate(run)
            log.evaluation(run.step_count, measures)
            _say(", ".join(f"{name} {value:.3f}" for name, value in measures.items()))
        _say(f"all {total} updates are made; the run is in {folder}")
        return 0
    except KeyboardInterrupt:
        with _uninterrupted():  # a second Ctrl-C waits until it is saved
            log.updates(run)
            run.save(folder)
        if leads():
            _complain(
                f"contaccum: stopped after update {run.step_count} of {total}, and saved. "
                f"Go on with: {given.line}"
            )
        return asked_to_stop[0] if asked_to_stop else 130
    except Exception as error:
        error.add_note(f"the run stands as it was saved after update {saved}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _evaluate(run) -> dict[str, float]:
    """As `Run.evaluate`, without all vectors of a large corpus in memory."""
    from .index import SHARD, Retriever, evaluate

    if len(run.pairs.passages) <= SHARD:
        return run.evaluate()
    return evaluate(Retriever(run.query_tower, run.passage_tower, run.settings), run.pairs)


class Log:
    """log.jsonl, a line per update and per evaluation, and TensorBoard's files where it is installed.

    A run that goes on drops the lines of updates that were made after its checkpoint: they are made again.
    """

    def __init__(self, folder: Path, step: int):
        self.path, self.board, self.file, self.step = folder / "log.jsonl", None, None, step
        self.evaluated = set()  # updates after which an evaluation is logged
        if not leads():
            return
        self._cut(step)
        self.file = open(self.path, "ab", buffering=0)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)
        except ImportError:
            pass

    def _cut(self, step: int) -> None:
        from .data import write_atomically

        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        kept = []
        for line in lines:
            try:
                values = json.loads(line)
                if line.endswith(b"\n") and values["step"] <= step:
                    kept.append(line)
                    if "evaluation" in values:
                        self.evaluated.add(values["step"])
            except (ValueError, KeyError, TypeError, RecursionError):
                pass
        if kept != lines:
            write_atomically(self.path, b"".join(kept))

    def updates(self, run) -> None:
        """The weight updates that are not logged yet: their fields, learning rate, and the most memory held so far."""
        for update in run.history[self.step :]:
            self._write(
                update._asdict()
                | {
                    "learning_rate": run.learning_rate(update.step - 1),
                    "memory_mb": memory(run.settings.device),
                }
            )
            self.step = update.step

    def evaluation(self, step: int, measures: dict[str, float]) -> None:
        """What the towers reached after this update; once, if the run is started again too."""
        if step in self.evaluated:
            return
        self.evaluated.add(step)
        self._write({"step": step, "evaluation": measures})

    def _write(self, values: dict) -> None:
        if self.file is None:
            return
        finite = lambda v: None if isinstance(v, float) and v - v != 0 else v
        self.file.write(json.dumps({k: finite(v) for k, v in values.items()}).encode() + b"\n")
        if self.board is not None:
            for name, value in (values.get("evaluation") or values).items():
                if name != "step":
                    self.board.add_scalar(
                        f"evaluation/{name}" if "evaluation" in values else f"train/{name}",
                        value,
                        values["step"],
                    )

    def close(self) -> None:
        for part in filter(None, (self.file, self.board)):
            part.close()


def memory(device: str) -> float:
    """The most memory held so far, in MB: the GPU's tensors, or the process."""
    import torch

    from .measure import peak_memory

    on_cuda = torch.device(device).type == "cuda"
    return round(torch.cuda.max_memory_allocated(device) / 1e6 if on_cuda else peak_memory(), 1)


def write_settings(folder: Path, settings: Settings) -> None:
    """All settings as YAML, to be read back by --config."""
    import yaml

    from .data import write_atomically

    text = f"# {settings.share()}\n" + yaml.safe_dump(
        dataclasses.asdict(settings), sort_keys=False, allow_unicode=True
    )
    write_atomically(folder / "settings.yaml", text.encode())


def _say(text: str) -> None:
    if leads():
        print(plain(text), flush=True)


# --- evaluate, index, search, ledger -----------------------------------------------------------------------------------


def evaluate(given) -> int:
    """Print the measures."""
    from . import index as shards, measure

    _quiet()
    retriever = shards.Retriever.load(given.folder, given.device)
    if given.memory_cap:
        measure.cap_memory(given.memory_cap, retriever.settings.device)
    where = shards.Index(given.index) if given.index else None
    pairs = _pairs(given)
    with _bar(len(pairs.passages), unit="passage") as bar:
        measures = shards.evaluate(
            retriever,
            pairs,
            given.split,
            where,
            given.shard or shards.SHARD,
            lambda done: bar.update(done - bar.n),
        )
    if given.json:
        print(json.dumps(measures))
    else:
        print("\n".join(f"{name:16s} {value:.4f}" for name, value in measures.items()))
    return 0


def index(given) -> int:
    """Make an index, or finish it."""
    from . import index as shards, measure
    from .formats import read_passages

    _quiet()
    if given.memory_cap:
        measure.cap_memory(given.memory_cap, given.device or "cpu")
    with _bar(None, unit="passage") as bar:
        made = shards.build(
            given.folder,
            lambda: read_passages(given.passages),
            given.out,
            source=given.passages,
            shard=given.shard or shards.SHARD,
            dtype=given.dtype,
            device=given.device,
            progress=lambda done: bar.update(done - bar.n),
        )
    print(repr(made))
    return 0


def _json(values: dict) -> str:
    """A line of JSON in any script, with \\uXXXX for what a terminal acts on or cannot show."""
    line = json.dumps(values, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(values)
    return "".join(json.dumps(c)[1:-1] if acts(c) else c for c in line)


def search(given) -> int:
    """Print the hits of each query."""
    from .index import Index

    _quiet()
    where = Index(given.index)
    for query in given.query:
        hits = where.search(query, given.k)
        if given.json:
            print("\n".join(_json({"query": query, **hit._asdict()}) for hit in hits))
            continue
        if len(given.query) > 1:
            print(one_line(query))
        print(
            "\n".join(
                f"{hit.score:8.2f}  {one_line(hit.id)}  {one_line(hit.title)}\n          {one_line(hit.passage)[:160]}"
                for hit in hits
            )
        )
    return 0


def ledger(given) -> int:
    """Print the ledger's table."""
    from .ledger import table

    records = Path(__file__).parent.parent / "benchmarks" / "records"
    if not (records / "ledger.json").is_file() or not (records / "cost.json").is_file():
        raise ValueError(
            "the records of the ledger's runs are not here: they are in the repository (benchmarks/records); run `contaccum ledger` from a checkout."
        )
    texts = ((records / name).read_bytes() for name in ("ledger.json", "cost.json"))
    print(table(*map(json.loads, texts)))
    return 0

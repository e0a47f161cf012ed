"""stdout and stderr: any text, in any encoding, whether or not somebody reads it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable

from tqdm import tqdm

from contaccum_lite.cli.processes import is_main_process
from contaccum_lite.utils.text import acts, plain


def open_streams() -> None:
    """Let stdout and stderr take any text.

    A character that the encoding lacks is printed as \\uXXXX. What is written to a stream that the
    shell has closed (`2>&-`) is dropped.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            how = {"encoding": "utf-8", "errors": "backslashreplace"}
            setattr(sys, name, open(os.devnull, "w", **how))  # noqa: SIM115 (open to the end)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def flush_stdout() -> bool:
    """Write out all that was printed; False where nobody reads it any more.

    It is then dropped, because Python would complain about it at exit.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def print_info(text: str) -> None:
    """Print on stdout, from the main process alone."""
    if is_main_process():
        print(plain(text), flush=True)


def print_error(text: str) -> None:
    """Print a line on stderr, if anybody reads it."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def shell_command(words: list[str]) -> str:
    """The command with these words, as it is typed into a shell."""
    return " ".join(_quoted(word) for word in ["contaccum", *words])


def _quoted(word: str) -> str:
    """A word for a shell, with $'\\x..' for bytes that are no text or that a terminal acts on."""
    if not any(acts(character) or character == "\n" for character in word):
        return shlex.quote(word)
    return f"$'{''.join(_escaped(byte) for byte in os.fsencode(word))}'"


def _escaped(byte: int) -> str:
    character = chr(byte)
    is_safe = " " <= character <= "~" and character not in "'\\"
    return character if is_safe else f"\\x{byte:02x}"


def json_line(values: dict) -> str:
    """A line of JSON in any script, with \\uXXXX for what a terminal acts on or cannot show."""
    line = json.dumps(values, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(values)
    return "".join(json.dumps(c)[1:-1] if acts(c) else c for c in line)


def progress_bar(total: int | None, initial: int = 0, unit: str = "update") -> tqdm:
    """A bar on stderr, where that is a terminal; from the main process alone."""
    disable = None if is_main_process() else True  # None: where stderr is not a terminal
    return tqdm(
        total=total, initial=initial, unit=unit, disable=disable, dynamic_ncols=True, smoothing=0.1
    )


def update_to(bar: tqdm) -> Callable[[int], None]:
    """A function that sets the bar to a count of items done."""
    return lambda done: bar.update(done - bar.n)


def silence_libraries() -> None:
    """Turn off the libraries' bars and advice: only this command speaks.

    By their environment variables, which they read when they are imported: transformers takes a
    second and 100 MB, and a bag tower does not need it.
    """
    os.environ["TRANSFORMERS_VERBOSITY"] = os.environ["HF_HUB_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if "transformers" in sys.modules:
        import huggingface_hub.utils.logging as hub_logging
        import transformers.utils.logging as transformers_logging

        hub_logging.set_verbosity_error()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

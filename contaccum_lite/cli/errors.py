"""What went wrong, in one sentence that says what to do."""

from __future__ import annotations

import errno

from safetensors import SafetensorError

OUT_OF_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "Cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "failed to allocate",
)
DISK_FULL = ("No space left", "File too large", "quota exceeded")
DISK_FULL_CODES = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
COMPILERS = ("torch._dynamo", "torch._inductor")


def user_message(error: Exception) -> str | None:
    """A sentence about what the user can mend; None for a fault of this package."""
    text = str(error)
    if _is_out_of_memory(error, text):
        return (
            "memory ran out: lower local_batch, passage_tokens or memory_size, set "
            "activation_checkpointing, or raise the memory cap"
        )
    if _is_library_file_error(error, text):
        return f"a file of the run cannot be written or read ({text}){_make_room(error, text)}"
    if isinstance(error, OSError):
        name, reason = error.filename or "a file", error.strerror or text
        return f"{name} cannot be written or read ({reason}){_make_room(error, text)}"
    if isinstance(error, (ValueError, FloatingPointError, ImportError)):
        return text
    if type(error).__module__.startswith(COMPILERS):
        reason = text.splitlines()[0] if text else type(error).__name__
        return f"the encoder cannot be compiled here ({reason}): leave compile out"
    return None


def _is_out_of_memory(error: Exception, text: str) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, (RuntimeError, OSError)) and _contains(text, OUT_OF_MEMORY)


def _is_library_file_error(error: Exception, text: str) -> bool:
    from_tokenizers = type(error) is Exception and "(os error" in text  # it has no class of its own
    return isinstance(error, SafetensorError) or from_tokenizers


def _make_room(error: Exception, text: str) -> str:
    is_full = _contains(text, DISK_FULL) or getattr(error, "errno", None) in DISK_FULL_CODES
    return ": make room there and give the same command again" if is_full else ""


def _contains(text: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase in text for phrase in phrases)

"""Text of others is text: nothing in it acts on a page or a terminal."""

from __future__ import annotations

import html
import itertools
import re
import reprlib
import unicodedata

#: Joiners of letters, which Persian, the scripts of India and emoji are written with.
_JOINERS = "\u200c\u200d"


_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def acts(character: str) -> bool:
    """Whether a terminal would act on this character instead of showing it.

    That is a control character other than tab and newline, a mark that is not seen (such as one of
    the direction of writing), another separator of lines, or half of a surrogate pair.
    """
    if character in "\t\n" or character in _JOINERS:
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


class _Shown(dict):
    """What `plain` shows for a character, by its number: made when it is first met."""

    def __missing__(self, number: int) -> str:
        character = chr(number)
        if acts(character):
            instead = {"Zl": "\n", "Zp": "\n", "Cs": "\ufffd"}
            character = instead.get(unicodedata.category(character), "")
        self[number] = character
        return character


_SHOWN = _Shown()


def plain(text: str) -> str:
    """Text of a data set without terminal codes and control characters, for where it is printed."""
    return _TERMINAL_CODE.sub("", text).translate(_SHOWN)


def one_line(text: str) -> str:
    """`plain` text in one line."""
    return " ".join(plain(text).split())


class _Short(reprlib.Repr):
    """`repr`, shortened where it is long; also of a list that holds one list a billion times."""

    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxtuple = 2, 4, 4, 4
        self.maxstring, self.maxother = 200, 200

    def repr_int(self, number: int, level: int) -> str:
        return repr(number) if abs(number) < 10**40 else "a number of more than 40 digits"


#: What a sentence about a bad value says of it.
shown = _Short().repr


class _Beginning(reprlib.Repr):
    """`repr` of a value's beginning: of long and deep values, what comes later is left out."""

    def __init__(self):
        super().__init__()
        self.maxlist = self.maxdict = 20
        self.maxlong = self.maxother = 100

    def repr_str(self, text: str, level: int) -> str:
        return repr(text[:61])

    def repr_dict(self, record: dict, level: int) -> str:
        """As `repr` does it: the keys are not sorted."""
        if level <= 0:
            return "{...}"
        items = []
        for key, value in itertools.islice(record.items(), self.maxdict):
            items.append(f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}")
        return "{" + ", ".join(items) + (", ...}" if len(record) > self.maxdict else "}")


_BEGINNING = _Beginning()


def truncated_repr(value, longest: int = 60) -> str:
    """The beginning of a value in one line, for an error about a file.

    Of a large or deep value, no more is looked at.
    """
    text = _BEGINNING.repr(value)
    return f"{text[:longest]}…" if len(text) > longest else text


def check_text(text: str, name: str, remedy: str = "write it in UTF-8") -> None:
    """Raise `ValueError` for half a surrogate pair: bytes that are not UTF-8 become that."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = text[error.start]
        raise ValueError(
            f"{name} is {shown(text)}, and {wrong!r} is no character: {remedy}."
        ) from None


def without_halves(text: str) -> str:
    """Text that can be drawn and sent: with a sign for each half of a surrogate pair."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


LONGEST_TEXT = 400


def short(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text of a data set as one line without control characters, shortened with its length said."""
    clean = plain(without_halves(text[: 10 * longest]))
    return clean[:longest] + (f" … ({len(text):,} characters)" if len(text) > longest else "")


def plain_text(text: str, longest: int = LONGEST_TEXT) -> str:
    """`short` text as HTML that shows just that text."""
    return html.escape(short(text, longest)).replace("$", "&#36;")

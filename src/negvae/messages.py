"""The words of messages: errors in one line, names that a terminal can show, numbers with their nouns."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

Log = Callable[[str], None]
"""A function that is called with each line that the user should see."""
_BYTE = re.compile("[\udc80-\udcff]")
"""A byte of a file name that is not UTF-8, as `os.fsdecode` has it."""


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's text, for a message of one line; its type if it has no text.

    >>> first_line(ValueError("broken\nat byte 3")), first_line(ValueError()), first_line(KeyError("mean"))
    ('broken', 'ValueError', "KeyError: 'mean'")
    """
    name, text = type(error).__name__, str(error).strip()
    if isinstance(error, KeyError):  # whose text is the key alone
        text = f"{name}: {text}"
    return (text or name).splitlines()[0]


def with_type(error: BaseException) -> str:
    """Return the first line of an error's text behind its type, for errors whose text alone says little.

    >>> with_type(ZeroDivisionError("division by zero")), with_type(KeyError("mean")), with_type(AssertionError())
    ('ZeroDivisionError: division by zero', "KeyError: 'mean'", 'AssertionError')
    """
    name, text = type(error).__name__, first_line(error)
    return text if text.startswith(name) else f"{name}: {text}"


def shown(text: str) -> str:
    r"""Return a text that any output can encode: bytes of file names that are not UTF-8 become codes.

    >>> print(shown("image-\udcff.png"))
    image-\xff.png
    >>> print(shown("image-\ud800.png"))
    image-\ud800.png
    """
    named = _BYTE.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", text)
    return named.encode("utf-8", "backslashreplace").decode()  # what else is a half of a surrogate pair


def visible(text: str) -> str:
    r"""Return a text whose control characters, which a file name may hold and a terminal would obey, are codes.

    Bytes of a name that are not UTF-8 become the codes that tables and reports have for them, too.

    >>> print(visible("a\x1b[2Jb"), visible("image-\udcff.png"))
    a\x1b[2Jb image-\xff.png
    """
    return "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in shown(text))


def quoted(path: Path | str) -> str:
    """Return a path as a shell takes it, for a command that a message advises.

    >>> print(quoted("runs/my photos"))
    'runs/my photos'
    """
    return shlex.quote(shown(str(path)))


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, in the plural unless the number is one.

    >>> counted(1, "image"), counted(2000, "image"), counted(0, "discovery", "discoveries")
    ('1 image', '2,000 images', '0 discoveries')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def silent(text: str) -> None:
    """Ignore a line; the log function that discards everything."""

"""Standard input, output and error of a program that is used by people and in pipes."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from typing import TextIO

# What could move the cursor, change colours or ring: a model may write it, a terminal must not get
# it. Tabs and line ends stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write(text: str) -> None:
    """Write to standard output at once.

    Raises:
        OSError: It is closed or full.
    """
    if sys.stdout is None:  # a process may begin without one
        raise OSError("standard output is closed")
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Write a line for people to standard error."""
    if sys.stderr is not None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def writes_utf8() -> bool:
    """Return whether standard output takes every character."""
    try:
        return codecs.lookup(sys.stdout.encoding).name == "utf-8"
    except (LookupError, TypeError):  # a stream of the caller's, which has no encoding
        return True


def keep_answers() -> None:
    """Have characters that standard output cannot hold replaced, instead of losing the answer."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="replace")


def as_utf8(text: str, encoding: str) -> str:
    """Return text that a locale without UTF-8, such as C, could not read, as it was meant."""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode(encoding, "surrogateescape").decode()
        except (LookupError, ValueError):
            pass  # bytes that are no text at all are an error later
    return text


def read_input() -> str | None:
    """Return what is piped into standard input; ``None``: somebody types there."""
    if sys.stdin is None:
        return ""
    if sys.stdin.isatty():
        return None
    # The line end that echo and editors add is not meant for the model.
    return as_utf8(sys.stdin.read(), sys.stdin.encoding).removesuffix("\n")


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a person reads a stream."""
    return stream is not None and stream.isatty()


def has_colours(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal that shows colours to somebody who wants them."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return is_terminal(stream) and not plain


def printable(text: str) -> str:
    """Return text without what a terminal would take for commands."""
    return _CONTROL.sub("", text)

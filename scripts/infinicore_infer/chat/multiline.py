r"""Questions of several lines.

A line that ends in a backslash goes on with the next one, and text between triple quotes may have
any lines.
"""

from __future__ import annotations

_QUOTES = '"""'


def _quoted(text: str) -> bool:
    return text.lstrip().startswith(_QUOTES)


def goes_on(text: str) -> bool:
    """Return whether more lines belong to a question that reads like this so far."""
    if _quoted(text):
        rest = text.strip()
        return len(rest) < 2 * len(_QUOTES) or not rest.endswith(_QUOTES)
    backslashes = len(text) - len(text.rstrip("\\"))
    return backslashes % 2 == 1


def next_line(text: str) -> str:
    """Return a question that goes on, ready for its next line."""
    return (text if _quoted(text) else text[:-1]) + "\n"


def question(text: str) -> str:
    """Return what a complete question means: without quotes around it and lines left empty."""
    text = text.strip()
    if _quoted(text) and not goes_on(text):
        text = text[len(_QUOTES) : -len(_QUOTES)].strip("\n")
    return text

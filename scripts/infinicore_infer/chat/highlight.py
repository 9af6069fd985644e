"""Code in colours, where Pygments is installed and knows its language."""

from __future__ import annotations

from typing import Any

# A line is coloured by what stands before it; of a very long block only the beginning is.
_MOST_CHARACTERS = 20_000
_COLOURS = {
    "Keyword": "\x1b[35m",
    "Name.Function": "\x1b[34m",
    "Name.Class": "\x1b[34m",
    "Name.Builtin": "\x1b[36m",
    "Literal.String": "\x1b[32m",
    "Literal.Number": "\x1b[33m",
    "Comment": "\x1b[2m",
    "Operator.Word": "\x1b[35m",
}
_RESET = "\x1b[0m"


class Highlighter:
    """Colours one block of code line by line."""

    def __init__(self, lexer: Any) -> None:
        """Begin a block in the language of one of Pygments' lexers."""
        self._lexer = lexer
        self._before = ""

    def line(self, line: str) -> str:
        """Return the next line in colours; empty once the block is too long."""
        at = len(self._before)
        if at > _MOST_CHARACTERS:
            return ""
        self._before += line + "\n"
        written = []
        for start, kind, text in self._lexer.get_tokens_unprocessed(self._before):
            shown = text[max(at - start, 0) :].rstrip("\n")
            if start + len(text) > at and shown:
                colour = _colour(str(kind))
                written.append(f"{colour}{shown}{_RESET}" if colour else shown)
        return "".join(written)


def _colour(kind: str) -> str:
    name = kind.removeprefix("Token.")
    while name:
        if name in _COLOURS:
            return _COLOURS[name]
        name = name.rpartition(".")[0]
    return ""


def highlighter(language: str) -> Highlighter | None:
    """Return what colours a block of this language; ``None``: nothing does."""
    if not language:
        return None
    try:
        from pygments.lexers import get_lexer_by_name
        from pygments.util import ClassNotFound
    except ImportError:
        return None
    try:
        return Highlighter(get_lexer_by_name(language.split()[0].lower()))
    except ClassNotFound:
        return None

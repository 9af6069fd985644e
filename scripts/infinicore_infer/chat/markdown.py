"""Markdown in colours while it is written: headings, lists, quotes, emphasis and code.

Whatever could still become a marker is held back until that is clear, so the result does not
depend on the pieces that the text comes in. A marker without its counterpart stays a character.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from infinicore_infer.chat.highlight import Highlighter, highlighter

RESET, BOLD, DIM, ITALIC = "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[3m"
_HEADING, _CODE, _MARK = "\x1b[1;34m", "\x1b[36m", "\x1b[33m"

# The beginning of a line that may yet become the beginning of a block.
_UNDECIDED = re.compile(r" *(?:#{1,6}|\+|[-*_][-*_ ]*|\d{1,9}[.)]?|`{1,2}|~{1,2}|>)? *")
_FENCE = re.compile(r" *(`{3,}|~{3,})([^`]*)")
_BLOCKS = (
    (re.compile(r" {0,3}(?P<mark>#{1,6} +)"), _HEADING),
    (re.compile(r"(?P<indent> *)(?P<mark>[-*+] +)(?!\n|$)"), _MARK),
    (re.compile(r"(?P<indent> *)(?P<mark>\d{1,9}[.)] +)"), _MARK),
    (re.compile(r" {0,3}(?P<mark>> ?)"), DIM),
)
_RULE = re.compile(r" {0,3}([-*_])(?: *\1){2,} *")
_SPANS = (
    (re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)"), _CODE),
    (re.compile(r"\*\*\*(?![\s*])(.+?)(?<![\s*])\*\*\*"), BOLD + ITALIC),
    (re.compile(r"\*\*(?![\s*])(.+?)(?<![\s*])\*\*(?!\*)"), BOLD),
    (re.compile(r"\*(?![\s*])(.+?)(?<![\s*])\*(?!\*)"), ITALIC),
)
_MARKER = re.compile(r"`+|\*+")


class _Fence(NamedTuple):
    mark: str
    code: Highlighter | None


class Markdown:
    """Takes text as it is generated and writes it with colours."""

    def __init__(self, write: Callable[[str], object]) -> None:
        """Begin a document that is written to ``write``."""
        self._write = write
        self._text = ""
        self._inside = False  # a line whose kind is known
        self._style = ""  # of that line
        self._fence: _Fence | None = None

    def push(self, text: str) -> None:
        """Add text and write what is clear now."""
        self._text += text
        while self._text and self._step(ended=False):
            pass

    def finish(self) -> None:
        """Write the rest; the document is over."""
        while self._text and self._step(ended=True):
            pass
        if self._inside and self._style:
            self._write(RESET)
        self._inside, self._style, self._fence = False, "", None

    def _step(self, ended: bool) -> bool:
        """Write some text; return whether another step may get further."""
        if self._fence is not None:
            return self._code(self._fence, ended)
        return self._spans(ended) if self._inside else self._block(ended)

    def _block(self, ended: bool) -> bool:
        """Begin a line."""
        line, end, rest = self._text.partition("\n")
        whole = bool(end) or ended
        fence = _FENCE.fullmatch(line)
        if not whole and (fence or _UNDECIDED.fullmatch(line)):
            return False
        if fence or (whole and _RULE.fullmatch(line)):
            if fence:
                self._fence = _Fence(fence[1], highlighter(fence[2].strip()))
            self._write(f"{DIM}{line}{RESET}{end}")
            self._text = rest
            return True
        self._inside, self._style = True, ""
        for pattern, style in _BLOCKS:
            if found := pattern.match(self._text):
                self._begin(found, style)
                break
        return True

    def _begin(self, found: re.Match[str], style: str) -> None:
        mark = found["mark"]
        if style == _HEADING:
            self._style = style
            self._write(style)
        elif mark[0] in "-*+":
            self._write(f"{found['indent']}{style}•{RESET}{mark[1:]}")
        elif style == _MARK:
            self._write(f"{found['indent']}{style}{mark}{RESET}")
        else:
            self._write(f"{style}│ {RESET}")
        self._text = self._text[found.end() :]

    def _spans(self, ended: bool) -> bool:
        """Write some of a line whose kind is known."""
        line, end, rest = self._text.partition("\n")
        whole = bool(end) or ended
        found = _MARKER.search(line)
        if found is None or found.start():
            at = len(line) if found is None else found.start()
            self._write(line[:at])
            line = line[at:]
        elif (span := self._span(line, whole)) is not None:
            line = line[span:]
        elif whole or line[found.end() :][:1].isspace():
            self._write(found[0])
            line = line[found.end() :]
        else:
            return False
        if line or not end:
            self._text = line + end + rest
            return bool(line)
        self._write((RESET if self._style else "") + end)
        self._text, self._inside, self._style = rest, False, ""
        return True

    def _span(self, line: str, whole: bool) -> int | None:
        """Write the emphasis or code at the beginning of a line; return its length."""
        for pattern, style in _SPANS:
            found = pattern.match(line)
            # What follows a closing marker may still make it another one.
            if found is not None and (whole or found.end() < len(line)):
                inner = found[found.lastindex or 0]
                if style == _CODE and inner.strip() and inner[0] == inner[-1] == " ":
                    inner = inner[1:-1]
                self._write(f"{style}{inner}{RESET}{self._style}")
                return found.end()
        return None

    def _code(self, fence: _Fence, ended: bool) -> bool:
        """Write a line of code, as soon as it is complete."""
        line, end, rest = self._text.partition("\n")
        if not end and not ended:
            return False
        mark = line.strip()
        if mark and set(mark) == {fence.mark[0]} and len(mark) >= len(fence.mark):
            self._write(f"{DIM}{line}{RESET}{end}")
            self._fence = None
        else:
            coloured = fence.code.line(line) if fence.code is not None else ""
            self._write((coloured or f"{_CODE}{line}{RESET}") + end)
        self._text = rest
        return True

"""How an answer is shown: as it is, or for people with dim thinking and coloured markdown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

from infinicore_infer.chat.markdown import DIM, RESET, Markdown
from infinicore_infer.chat.streams import has_colours, is_terminal, printable, write
from infinicore_infer.text.output import OutputParser
from infinicore_infer.text.parts import Content, Part, Reasoning


class Display(Protocol):
    """Shows one answer."""

    def push(self, text: str) -> None:
        """Show more of it."""

    def finish(self) -> None:
        """Show what was held back, and end the line."""


class PlainDisplay:
    """Writes the text as it is, to a terminal without control characters."""

    def __init__(self, out: Callable[[str], object], terminal: bool) -> None:
        """Show an answer by calling ``out``."""
        self._out, self._terminal = out, terminal
        self._last = ""

    def push(self, text: str) -> None:
        """Show more of it."""
        if self._terminal:
            text = printable(text)
        self._last = text or self._last
        self._out(text)

    def finish(self) -> None:
        """End the line."""
        if not self._last.endswith("\n"):
            self._out("\n")


class ColouredDisplay:
    """Writes thinking dim, and markdown in colours."""

    def __init__(self, out: Callable[[str], object], thinking: bool) -> None:
        """Show an answer by calling ``out``; ``thinking``: the prompt has begun to think."""
        self._out = out
        self._parser = OutputParser(thinking=thinking)
        self._markdown = Markdown(self._note)
        self._thinking = False
        self._last = ""

    def _note(self, text: str) -> None:
        self._last = text or self._last
        self._out(text)

    def push(self, text: str) -> None:
        """Show more of it."""
        self._show(self._parser.push(printable(text)))

    def _show(self, parts: list[Part]) -> None:
        for part in parts:
            if isinstance(part, Reasoning):
                # With a reset of its own each: whatever stops the program leaves no dim terminal.
                self._note(f"{DIM}{part.text}{RESET}")
                self._thinking = True
            elif isinstance(part, Content):
                if self._thinking:
                    self._note("\n\n")
                    self._thinking = False
                self._markdown.push(part.text)

    def finish(self) -> None:
        """Show what was held back, and end the line."""
        self._show(self._parser.finish())
        self._markdown.finish()
        if not self._last.removesuffix(RESET).endswith("\n"):
            self._note("\n")


def open_display(thinking: bool) -> Display:
    """Return what shows an answer on standard output; ``thinking``: the prompt has begun to."""
    if has_colours(sys.stdout):
        return ColouredDisplay(write, thinking)
    return PlainDisplay(write, is_terminal(sys.stdout))

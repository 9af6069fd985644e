"""Where questions are typed: with prompt_toolkit where it is installed, else with readline."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Protocol

from infinicore_infer.chat.history import History
from infinicore_infer.chat.multiline import goes_on, next_line
from infinicore_infer.chat.streams import as_utf8, is_terminal

PROMPT, CONTINUATION = "> ", "... "

# What could stand in place of the last word of a text.
Completions = Callable[[str], list[str]]


def _is_dumb() -> bool:
    return os.environ.get("TERM", "dumb") == "dumb"


class Editor(Protocol):
    """Reads what a person types."""

    def read(self) -> str:
        """Return the next question as it was typed, which may have several lines.

        Raises:
            EOFError: The person leaves.
            KeyboardInterrupt: Ctrl-C: the person wants to begin again.
        """


class LineEditor:
    """Python's own input, with editing, history and completion where there is readline."""

    def __init__(self, history: History, completions: Completions) -> None:
        """Set up readline, where Python has it."""
        self._history = history
        self._completions = completions
        self._found: list[str] = []
        try:
            import readline
        except ImportError:
            self._readline: ModuleType | None = None
            return
        self._readline = readline
        readline.set_auto_history(False)
        readline.clear_history()
        for entry in history.entries:
            readline.add_history(entry)
        readline.set_completer(self._complete)
        readline.set_completer_delims(" ")
        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind ^I rl_complete")
            return
        readline.parse_and_bind("tab: complete")
        if not _is_dumb():
            readline.parse_and_bind("set enable-bracketed-paste on")
        # Alt+Enter: a line end that does not end the question.
        readline.parse_and_bind(r'"\e\C-m": "\C-v\C-j"')

    def _complete(self, word: str, state: int) -> str | None:
        if state == 0:
            assert self._readline is not None
            text = self._readline.get_line_buffer()[: self._readline.get_endidx()]
            self._found = self._completions(text)
        return self._found[state] if state < len(self._found) else None

    def read(self) -> str:
        """Return the next question."""
        text = self._line(PROMPT)
        while goes_on(text):
            text = next_line(text) + self._line(CONTINUATION)
        if self._readline is not None and text.strip() and self._history.entries[-1:] != [text]:
            self._readline.add_history(text)
        self._history.add(text)
        return text

    @staticmethod
    def _line(prompt: str) -> str:
        encoding = getattr(sys.stdin, "encoding", None) or "utf-8"
        return as_utf8(input(prompt), encoding)


def open_editor(history: History, completions: Completions) -> Editor:
    """Return the best editor that there is for this terminal."""
    able = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    if able and not _is_dumb():
        try:
            from infinicore_infer.chat.toolkit_editor import ToolkitEditor
        except ImportError:
            pass  # prompt_toolkit is not installed
        else:
            return ToolkitEditor(history, completions)
    return LineEditor(history, completions)

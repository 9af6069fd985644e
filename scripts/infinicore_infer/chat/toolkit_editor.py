"""The editor of prompt_toolkit: several lines that can all be edited, and a menu of completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, Completion
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings

from infinicore_infer.chat.editor import CONTINUATION, PROMPT, Completions
from infinicore_infer.chat.history import History
from infinicore_infer.chat.multiline import goes_on, next_line


class _Completer(Completer):  # type: ignore[misc]
    def __init__(self, completions: Completions) -> None:
        self._completions = completions

    def get_completions(self, document: Any, event: Any) -> Iterator[Any]:
        """Yield what could stand in place of the last word."""
        text = document.text_before_cursor
        word = text.rpartition(" ")[2]
        for found in self._completions(text):
            yield Completion(found, start_position=-len(word))


def _enter(event: Any) -> None:
    """End the question, unless it goes on."""
    buffer = event.current_buffer
    if buffer.complete_state is not None and buffer.complete_state.current_completion:
        buffer.complete_state = None  # the choice is in the text already
    elif goes_on(buffer.text) and buffer.document.is_cursor_at_the_end:
        following = next_line(buffer.text)
        buffer.delete_before_cursor(len(buffer.text) - len(following) + 1)
        buffer.insert_text("\n")
    else:
        buffer.validate_and_handle()


def _alt_enter(event: Any) -> None:
    """Insert a line end that does not end the question."""
    event.current_buffer.insert_text("\n")


def _bindings() -> Any:
    bindings = KeyBindings()
    bindings.add("enter")(_enter)
    bindings.add("escape", "enter")(_alt_enter)
    return bindings


class ToolkitEditor:
    """Reads questions with prompt_toolkit."""

    def __init__(self, history: History, completions: Completions) -> None:
        """Set the editor up for the terminal of standard input and output."""
        self._history = history
        self._session: Any = PromptSession(
            history=InMemoryHistory(history.entries),
            completer=_Completer(completions),
            complete_while_typing=False,
            multiline=True,
            key_bindings=_bindings(),
            prompt_continuation=CONTINUATION,
            enable_history_search=False,
        )

    def read(self) -> str:
        """Return the next question."""
        text = str(self._session.prompt(PROMPT))
        self._history.add(text)
        return text

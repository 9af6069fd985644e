"""Text while it is generated: incremental decoding and stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from infinicore_infer.text.tokenizer import Qwen3Tokenizer


class IncrementalDetokenizer:
    """Turns tokens into text one at a time; the pieces joined equal the whole decoded at once.

    A token may end inside a UTF-8 character; its bytes wait for the rest.
    """

    def __init__(self, tokenizer: Qwen3Tokenizer, skip_special: bool = True) -> None:
        """Start with no text."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Add a token and return the text that is complete now; may be empty."""
        return self._decoder.decode(self._tokenizer.token_bytes(token, self._skip_special))

    def finish(self) -> str:
        """Return what is left: replacement characters for bytes that never became a character."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Finds stop strings in streamed text, also where they lie across pieces.

    Text that may be the beginning of a stop string is held back, so it never leaks.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """Store the stop strings.

        Args:
            stops: The strings.
            include: Whether the one that comes is shown.

        Raises:
            ValueError: A stop string is empty.
        """
        if any(not isinstance(stop, str) or not stop for stop in stops):
            raise ValueError("stop strings must be strings of at least one character")
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Add text and return what may be shown; after a match always empty."""
        if self.matched is not None:
            return ""
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if found:
            position, self.matched = min(found)
            end = position + len(self.matched) if self._include else position
            shown, self._held = self._held[:end], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def _overlap(self, stop: str) -> int:
        """Return how many characters at the end of the held text begin the stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)

    def finish(self) -> str:
        """Return text held back for a stop string that did not come."""
        shown, self._held = self._held, ""
        return shown

"""Splits what a model writes into reasoning, answer and tool calls, while it comes.

Qwen3 writes ``<think>...</think>`` before the answer and calls tools as JSON between
``<tool_call>`` and ``</tool_call>``. Nothing that may be the beginning of a tag is shown before
that is clear, and text that only looks like a tool call is handed out as what it is.
Calls come in pieces, as they are written.
"""

from __future__ import annotations

from infinicore_infer.text.parts import Arguments, Call, Content, Part, Reasoning
from infinicore_infer.text.tool_calls import CALL, CallReader

__all__ = ["Arguments", "Call", "Content", "OutputParser", "Part", "Reasoning"]

_THINK, _THINK_END = "<think>", "</think>"


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of a text may begin a tag."""
    return next(
        (n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0
    )


class OutputParser:
    """Takes text as it is generated and returns what it means.

    Attributes:
        state: What the text is part of now: ``"reasoning"``, ``"content"`` or ``"call"``;
            ``"start"`` before the first character that tells.
        calls: How many tool calls there were.
    """

    def __init__(
        self,
        *,
        thinking: bool = False,
        amid: bool = False,
        tools: bool = False,
        max_calls: int | None = None,
    ) -> None:
        """Read an answer from its first character.

        Args:
            thinking: Whether the prompt has opened ``<think>`` already.
            amid: Whether the prompt has thinking behind that, so that whitespace in front counts.
            tools: Whether tool calls are recognised.
            max_calls: Calls beyond this many are dropped.
        """
        self.state = "reasoning" if thinking else "start"
        self.calls = 0
        self._tools = tools
        self._max_calls = max_calls
        self._text = ""
        # Whitespace at the beginning of the next part is not part of it.
        self._trim = thinking and not amid
        self._dropping = False
        self._reader = CallReader()

    def push(self, text: str) -> list[Part]:
        """Add text and return what is clear now."""
        self._text += text
        parts: list[Part] = []
        while self._step(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """Return the rest; the text is over."""
        parts: list[Part] = []
        while self.state == "call":
            self._take(parts, self._reader.finish())
            while self.state != "call" and self._step(parts):
                pass
        # Only a plain answer keeps the whitespace at its end.
        plain = self.state != "reasoning" and not self.calls
        self._emit(parts, self._text if plain else self._text.rstrip())
        self._text = ""
        return parts

    def _emit(self, parts: list[Part], text: str) -> None:
        """Hand out text of the thinking or of the answer."""
        if self._trim:
            text = text.lstrip()
        if text:
            self._trim = False
            parts.append(Reasoning(text) if self.state == "reasoning" else Content(text))

    def _step(self, parts: list[Part]) -> bool:
        """Deal with some text; return whether another step may get further."""
        if self.state == "start":
            return self._start()
        if self.state == "call":
            text, self._text = self._text, ""
            self._take(parts, self._reader.push(text))
            return self.state != "call"
        if self.state == "content" and not self._tools:
            self._emit(parts, self._text)
            self._text = ""
            return False
        tag = _THINK_END if self.state == "reasoning" else CALL
        at = self._text.find(tag)
        if at < 0:
            # Whitespace before a tag is not part of the text either.
            keep = _overlap(self._text, tag)
            cut = len(self._text[: len(self._text) - keep].rstrip())
            self._emit(parts, self._text[:cut])
            self._text = self._text[cut:]
            return False
        self._emit(parts, self._text[:at].rstrip())
        self._text = self._text[at + len(tag) :]
        if self.state == "reasoning":
            self.state, self._trim = "content", True
        else:
            self.state, self._reader = "call", CallReader()
        return True

    def _start(self) -> bool:
        text = self._text.lstrip()
        if text.startswith(_THINK):
            self._text = text[len(_THINK) :]
            self.state, self._trim = "reasoning", True
        elif _THINK.startswith(text):
            return False
        else:
            self.state = "content"
        return True

    def _take(self, parts: list[Part], found: list[Part]) -> None:
        """Hand out what the reader found, and go on behind the call if it has ended."""
        for part in found:
            if isinstance(part, Content):
                self._emit(parts, part.text)
                continue
            if isinstance(part, Call):
                self._dropping = self._max_calls is not None and self.calls >= self._max_calls
                self.calls += not self._dropping
            if not self._dropping:
                parts.append(part)
            self._trim = True
        if self._reader.rest is not None:
            self._text, self.state = self._reader.rest, "content"

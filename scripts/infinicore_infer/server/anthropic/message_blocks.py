"""Answers of /v1/messages: content blocks that grow, and the events that tell of it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal

from infinicore_infer.engine.jobs import Update
from infinicore_infer.server.answer import Chat
from infinicore_infer.server.anthropic.errors import MESSAGE_STREAM
from infinicore_infer.server.counts import count
from infinicore_infer.server.http import StreamForm
from infinicore_infer.server.json_values import JsonObject, call_object
from infinicore_infer.text.output import Arguments, Call, Part, Reasoning

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "repetition": "repetition",
}


@dataclass(slots=True)
class _ToolUse:
    """A call of a tool; its input is there when it is complete."""

    call: Call
    arguments: str = ""

    def begin(self) -> JsonObject:
        return {"type": "tool_use", "id": self.call.id, "name": self.call.name, "input": {}}

    def entry(self) -> JsonObject:
        return {**self.begin(), "input": call_object(self.arguments)}


@dataclass(slots=True)
class _Text:
    """Thinking, or text of the answer."""

    kind: Literal["thinking", "text"]
    text: str = ""

    def begin(self) -> JsonObject:
        return _Text(self.kind).entry()

    def entry(self) -> JsonObject:
        signature: JsonObject = {"signature": ""} if self.kind == "thinking" else {}
        return {"type": self.kind, self.kind: self.text, **signature}


class MessageWriter:
    """Writes messages."""

    form: StreamForm = MESSAGE_STREAM

    def __init__(self, model: str, chat: Chat) -> None:
        """Write the answer to a request.

        Args:
            model: The name that clients use.
            chat: The answer.
        """
        self._chat = chat
        self._message: JsonObject = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }
        self._blocks: list[_ToolUse | _Text] = []
        # Whether the last block is being written.
        self._open = False

    def _usage(self) -> JsonObject:
        counts = count(self._chat.stream.jobs)
        return {
            # Anthropic counts what came from the cache apart.
            "input_tokens": counts.prompt - counts.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": counts.cached,
            "output_tokens": counts.completion,
        }

    def begin(self) -> list[JsonObject]:
        """Return the event before the first token."""
        return [{"type": "message_start", "message": {**self._message}}]

    def push(self, index: int, update: Update) -> list[JsonObject]:
        """Take news of the answer; return the events it brings."""
        events: list[JsonObject] = []
        answer = self._chat.answers[index]
        for part in answer.push(update):
            self._add(events, part)
        if update.done:
            self._close(events)
            self._end(events, answer.finish_reason or "stop")
        return events

    def take(self, index: int, update: Update) -> None:
        """Take news of an answer that is sent whole."""
        self.push(index, update)

    def finish(self) -> list[JsonObject]:
        """Return the events after the last token: none, the last one was the answer's end."""
        return []

    def whole(self) -> JsonObject:
        """Return the message."""
        return {**self._message, "content": [block.entry() for block in self._blocks]}

    def _end(self, events: list[JsonObject], reason: str) -> None:
        jobs = self._chat.stream.jobs
        stop = jobs[0].sequence.result.stop_string
        delta: JsonObject = {
            "stop_reason": _REASONS.get(reason, "end_turn"),
            "stop_sequence": None,
        }
        if reason == "stop" and stop is not None:
            delta = {"stop_reason": "stop_sequence", "stop_sequence": stop}
        usage = self._usage()
        self._message |= {**delta, "usage": usage}
        events.append({"type": "message_delta", "delta": delta, "usage": usage})
        events.append({"type": "message_stop"})

    def _add(self, events: list[JsonObject], part: Part) -> None:
        """Begin a block with a part, or go on with the last one."""
        if isinstance(part, Call):
            self._begin(events, _ToolUse(part))
            return
        block = self._blocks[-1] if self._open else None
        if isinstance(part, Arguments):
            assert isinstance(block, _ToolUse)
            block.arguments += part.text
            self._delta(events, "input_json", partial_json=part.text)
            return
        kind: Literal["thinking", "text"] = "thinking" if isinstance(part, Reasoning) else "text"
        if not isinstance(block, _Text) or block.kind != kind:
            block = _Text(kind)
            self._begin(events, block)
        block.text += part.text
        self._delta(events, kind, **{kind: part.text})

    @property
    def _index(self) -> int:
        return len(self._blocks) - 1

    def _delta(self, events: list[JsonObject], kind: str, **fields: str) -> None:
        delta = {"type": f"{kind}_delta", **fields}
        events.append({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _begin(self, events: list[JsonObject], block: _ToolUse | _Text) -> None:
        self._close(events)
        self._blocks.append(block)
        self._open = True
        start = {"type": "content_block_start", "index": self._index}
        events.append({**start, "content_block": block.begin()})

    def _close(self, events: list[JsonObject]) -> None:
        """End the block that is being written."""
        if not self._open:
            return
        self._open = False
        block = self._blocks[-1]
        if isinstance(block, _Text) and block.kind == "thinking":
            # Nobody signs here, but clients wait for it.
            self._delta(events, "signature", signature="")
        events.append({"type": "content_block_stop", "index": self._index})

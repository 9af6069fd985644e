"""Answers of /v1/messages: content blocks that grow, and the events that tell of it."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

from infinicore_infer.engine.jobs import Update
from infinicore_infer.server.openai.chat import ChatRun
from infinicore_infer.server.openai.usage import timings
from infinicore_infer.server.service import Service

Event = dict[str, Any]

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "repetition": "repetition",
}


def _input(call: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments as an object; others in one, which is what Anthropic recommends."""
    text = call["function"]["arguments"]
    try:
        value = json.loads(text)
        # Nor is everything that Python reads JSON: NaN, numbers without end, half characters.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": text}


class MessageBuilder:
    """Turns the deltas of a chat completion into a message.

    Attributes:
        message: The message object, complete after the last update.
    """

    def __init__(self, model: str, run: ChatRun) -> None:
        """Start.

        Args:
            model: The name that clients use.
            run: The answer.
        """
        self._run = run
        self.message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }
        self._open = False

    def _usage(self) -> dict[str, Any]:
        counts = self._run.usage()
        cached = counts["prompt_tokens_details"]["cached_tokens"]
        return {
            # Anthropic counts what came from the cache apart.
            "input_tokens": counts["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": counts["completion_tokens"],
        }

    async def events(self, service: Service) -> AsyncIterator[Event | None]:
        """Yield the events of a stream; ``None`` as :meth:`Service.follow`."""
        yield {"type": "message_start", "message": {**self.message, "content": []}}
        async for item in service.follow(self._run.stream):
            if item is None:
                yield None
                continue
            for event in self.push(item[1]):
                yield event

    def push(self, update: Update) -> list[Event]:
        """Take an update and return the events it brings."""
        events: list[Event] = []
        choice = self._run.choices[0]
        for delta in choice.push(update):
            if "tool_calls" in delta:
                self._call(events, delta["tool_calls"][0])
            elif "reasoning_content" in delta:
                self._text(events, "thinking", delta["reasoning_content"])
            else:
                self._text(events, "text", delta["content"])
        if update.done:
            self._close(events)
            self._end(events, choice.finish_reason or "stop")
        return events

    def _end(self, events: list[Event], reason: str) -> None:
        stop = self._run.stream.jobs[0].sequence.result.stop_string
        message = self.message
        message["stop_reason"] = _REASONS.get(reason, "end_turn")
        if reason == "stop" and stop is not None:
            message["stop_reason"], message["stop_sequence"] = "stop_sequence", stop
        message["usage"] = self._usage()
        message["timings"] = timings(self._run.stream.jobs)
        delta = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
        events.append({"type": "message_delta", "delta": delta, "usage": message["usage"]})
        events.append({"type": "message_stop", "timings": message["timings"]})

    def _add(self, events: list[Event], block: dict[str, Any], begin: dict[str, Any]) -> None:
        self._close(events)
        self.message["content"].append(block)
        self._open = True
        start = {"type": "content_block_start", "index": self._index, "content_block": begin}
        events.append(start)

    @property
    def _index(self) -> int:
        return len(self.message["content"]) - 1

    def _delta(self, events: list[Event], kind: str, **fields: Any) -> None:
        delta = {"type": f"{kind}_delta", **fields}
        events.append({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _call(self, events: list[Event], call: dict[str, Any]) -> None:
        """Begin a call, or go on with it; its input is there when it is complete."""
        function = call["function"]
        if "name" in function:
            block = {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}
            self._add(events, block, {**block})
        if function["arguments"]:
            self._delta(events, "input_json", partial_json=function["arguments"])

    def _text(self, events: list[Event], kind: str, text: str) -> None:
        content = self.message["content"]
        if not self._open or content[-1]["type"] != kind:
            block = {"type": kind, kind: ""}
            if kind == "thinking":
                block["signature"] = ""
            self._add(events, block, {**block})
        content[-1][kind] += text
        self._delta(events, kind, **{kind: text})

    def _close(self, events: list[Event]) -> None:
        if not self._open:
            return
        self._open = False
        block = self.message["content"][-1]
        if block["type"] == "tool_use":
            calls = sum(item["type"] == "tool_use" for item in self.message["content"])
            block["input"] = _input(self._run.choices[0].calls[calls - 1])
        if block["type"] == "thinking":
            # Nobody signs here, but clients wait for it.
            self._delta(events, "signature", signature="")
        events.append({"type": "content_block_stop", "index": self._index})

"""Answers of /v1/responses: items that grow, and the events that tell of it."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from infinicore_infer.engine.jobs import Update
from infinicore_infer.server.errors import ApiError
from infinicore_infer.server.openai.chat import ChatRun
from infinicore_infer.server.openai.usage import timings
from infinicore_infer.server.service import Service

Event = dict[str, Any]

# Finish reasons of answers that are not whole.
_CUT = {"length": "max_output_tokens", "repetition": "repetition"}


class ResponseBuilder:
    """Turns the deltas of a chat completion into a response.

    Attributes:
        response: The response object, complete after the last update.
    """

    def __init__(self, settings: dict[str, Any], run: ChatRun) -> None:
        """Start.

        Args:
            settings: What the response repeats of its request.
            run: The answer.
        """
        self.response: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **settings,
        }
        self._run = run
        self._numbers = itertools.count()
        # The item that is being written.
        self._open: dict[str, Any] | None = None

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": f"response.{kind}", "sequence_number": next(self._numbers), **fields}

    def _snapshot(self, kind: str) -> Event:
        return self._event(kind, response={**self.response, "output": [*self.response["output"]]})

    async def events(self, service: Service) -> AsyncIterator[Event | None]:
        """Yield the events of a stream, ``None`` after a while of silence."""
        yield self._snapshot("created")
        yield self._snapshot("in_progress")
        async for item in service.follow(self._run.stream):
            if item is None:
                yield None
                continue
            for event in self.push(item[1]):
                yield event

    def failure(self, error: ApiError) -> Event:
        """Return the last event of a stream that failed."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self.response["status"] = "failed"
        self.response["error"] = {"code": code, "message": error.message}
        return self._snapshot("failed")

    def push(self, update: Update) -> list[Event]:
        """Take an update and return the events it brings."""
        events: list[Event] = []
        choice = self._run.choices[0]
        for delta in choice.push(update):
            if "tool_calls" in delta:
                self._call(events, delta["tool_calls"][0])
            elif "reasoning_content" in delta:
                self._text(events, "reasoning", delta["reasoning_content"])
            else:
                self._text(events, "message", delta["content"])
        if update.done:
            cut = choice.finish_reason in _CUT
            self._close(events, "incomplete" if cut else "completed")
            self.response["status"] = "incomplete" if cut else "completed"
            if cut:
                reason = _CUT[choice.finish_reason or ""]
                self.response["incomplete_details"] = {"reason": reason}
            else:
                self.response["completed_at"] = int(time.time())
            self.response["usage"] = self._usage()
            self.response["timings"] = timings(self._run.stream.jobs)
            events.append(self._snapshot(self.response["status"]))
        return events

    def _usage(self) -> dict[str, Any]:
        counts = self._run.usage()
        cached = counts["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": counts["completion_tokens_details"],
            "total_tokens": counts["total_tokens"],
        }

    def _add(self, events: list[Event], item: dict[str, Any]) -> None:
        """Begin an item; events get copies, because it changes."""
        output = self.response["output"]
        output.append(item)
        events.append(self._event("output_item.added", output_index=len(output) - 1, item={**item}))

    def _call(self, events: list[Event], call: dict[str, Any]) -> None:
        """Begin a call, or go on with it."""
        function = call["function"]
        if "name" in function:
            self._close(events)
            self._open = {
                "id": f"fc_{secrets.token_hex(12)}",
                "type": "function_call",
                "call_id": call["id"],
                "name": function["name"],
                "arguments": "",
                "status": "in_progress",
            }
            self._add(events, self._open)
        assert self._open is not None
        if function["arguments"]:
            self._open["arguments"] += function["arguments"]
            name = "function_call_arguments.delta"
            events.append(self._event(name, **self._where(), delta=function["arguments"]))

    def _done(self, events: list[Event], item: dict[str, Any]) -> None:
        index = len(self.response["output"]) - 1
        events.append(self._event("output_item.done", output_index=index, item={**item}))

    def _text(self, events: list[Event], kind: str, text: str) -> None:
        if self._open is None or self._open["type"] != kind:
            self._close(events)
            self._begin(events, kind)
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        extra: Event = {"logprobs": []} if kind == "message" else {}
        name = f"{part['type']}.delta"
        events.append(self._event(name, **self._where(), delta=text, **extra))

    def _where(self) -> dict[str, Any]:
        assert self._open is not None
        index = len(self.response["output"]) - 1
        where = {"item_id": self._open["id"], "output_index": index}
        return where if self._open["type"] == "function_call" else {**where, "content_index": 0}

    def _begin(self, events: list[Event], kind: str) -> None:
        token = secrets.token_hex(12)
        item: Event
        part: Event
        if kind == "reasoning":
            item = {"id": f"rs_{token}", "type": kind, "summary": [], "content": []}
            part = {"type": "reasoning_text", "text": ""}
        else:
            item = {"id": f"msg_{token}", "type": kind, "role": "assistant", "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item["status"] = "in_progress"
        self._add(events, item)
        item["content"] = [part]
        self._open = item
        events.append(self._event("content_part.added", **self._where(), part={**part}))

    def _close(self, events: list[Event], status: str = "completed") -> None:
        """End the item that is being written."""
        item = self._open
        if item is None:
            return
        where = self._where()
        if item["type"] == "function_call":
            whole = {"name": item["name"], "arguments": item["arguments"]}
            events.append(self._event("function_call_arguments.done", **where, **whole))
        else:
            part = item["content"][0]
            extra: Event = {"logprobs": []} if item["type"] == "message" else {}
            events.append(self._event(f"{part['type']}.done", **where, text=part["text"], **extra))
            events.append(self._event("content_part.done", **where, part={**part}))
        item["status"] = status
        self._done(events, item)
        self._open = None

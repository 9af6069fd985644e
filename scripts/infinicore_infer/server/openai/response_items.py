"""Answers of /v1/responses: items that grow, and the events that tell of it."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from infinicore_infer.engine.jobs import Update
from infinicore_infer.server.answer import Chat
from infinicore_infer.server.counts import count, timings
from infinicore_infer.server.errors import ApiError
from infinicore_infer.server.http import StreamForm
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.openai.errors import error_body
from infinicore_infer.server.openai.usage import response_usage
from infinicore_infer.text.output import Arguments, Call, Part, Reasoning

# Finish reasons of answers that are not whole.
_CUT = {"length": "max_output_tokens", "repetition": "repetition"}


@dataclass(slots=True)
class _CallItem:
    """A call of a tool."""

    id: str
    call: Call
    status: str = "in_progress"
    arguments: str = ""

    def entry(self) -> JsonObject:
        return {
            "id": self.id,
            "type": "function_call",
            "call_id": self.call.id,
            "name": self.call.name,
            "arguments": self.arguments,
            "status": self.status,
        }


@dataclass(slots=True)
class _TextItem:
    """Thinking, or a message; either has one part of content, once it has begun."""

    id: str
    reasoning: bool
    status: str = "in_progress"
    text: str = ""

    @property
    def kind(self) -> str:
        """What events about its part begin with."""
        return "reasoning_text" if self.reasoning else "output_text"

    def part(self) -> JsonObject:
        part: JsonObject = {"type": self.kind, "text": self.text}
        return part if self.reasoning else {**part, "annotations": [], "logprobs": []}

    def entry(self) -> JsonObject:
        own: JsonObject = {"type": "message", "role": "assistant"}
        if self.reasoning:
            own = {"type": "reasoning", "summary": []}
        content = [self.part()] if self.text else []
        return {"id": self.id, **own, "content": content, "status": self.status}


# Of streams of stored responses, which do not fail; those of others have a failure of their own.
RESPONSE_STREAM = StreamForm(error_body, named=True)


class ResponseWriter:
    """Writes responses.

    Attributes:
        form: How events are written.
        id: The response's.
    """

    def __init__(
        self,
        settings: JsonObject,
        chat: Chat,
        *,
        background: bool = False,
        ended: Callable[[JsonObject], object] | None = None,
    ) -> None:
        """Write the answer to a request.

        Args:
            settings: What the response repeats of its request.
            chat: The answer.
            background: Whether nobody waits for it.
            ended: Called with the response once it is complete; not when it fails.
        """
        self.form = StreamForm(self._failure, named=True)
        self.id = f"resp_{secrets.token_hex(16)}"
        self._ended = ended
        self._background = background
        self._response: JsonObject = {
            "id": self.id,
            "object": "response",
            "created_at": int(time.time()),
            "status": "queued" if background else "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **settings,
        }
        self._chat = chat
        self._numbers = itertools.count()
        self._items: list[_CallItem | _TextItem] = []
        # Whether the last item is being written.
        self._open = False

    def _event(self, kind: str, **fields: object) -> JsonObject:
        return {"type": f"response.{kind}", "sequence_number": next(self._numbers), **fields}

    def _snapshot(self, kind: str) -> JsonObject:
        return self._event(kind, response=self.whole())

    def begin(self) -> list[JsonObject]:
        """Return the events before the first token."""
        events = [self._snapshot("created")]
        if self._background:
            events.append(self._snapshot("queued"))
            self._response["status"] = "in_progress"
        return [*events, self._snapshot("in_progress")]

    def push(self, index: int, update: Update) -> list[JsonObject]:
        """Take news of the answer; return the events it brings."""
        events: list[JsonObject] = []
        answer = self._chat.answers[index]
        for part in answer.push(update):
            self._add(events, part)
        if update.done:
            cut = _CUT.get(answer.finish_reason or "")
            status = "completed" if cut is None else "incomplete"
            self._close(events, status)
            self._response["status"] = status
            if cut is None:
                self._response["completed_at"] = int(time.time())
            else:
                self._response["incomplete_details"] = {"reason": cut}
            jobs = self._chat.stream.jobs
            self._response["usage"] = response_usage(count(jobs), self._chat.reasoning_tokens)
            self._response["timings"] = timings(jobs)
            events.append(self._snapshot(status))
            if self._ended is not None:
                self._ended(self.whole())
        return events

    def take(self, index: int, update: Update) -> None:
        """Take news of an answer that is sent whole."""
        self.push(index, update)

    def finish(self) -> list[JsonObject]:
        """Return the events after the last token: none, the last one was the answer's end."""
        return []

    def whole(self) -> JsonObject:
        """Return the response as it is now."""
        return {**self._response, "output": [item.entry() for item in self._items]}

    def cancel(self) -> list[JsonObject]:
        """Return the last events of a response that was cancelled."""
        events: list[JsonObject] = []
        self._close(events, "incomplete")
        self._response["status"] = "cancelled"
        return [*events, self._snapshot("cancelled")]

    def _failure(self, error: ApiError) -> JsonObject:
        """Return the last event of a stream that failed."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self._response["status"] = "failed"
        self._response["error"] = {"code": code, "message": error.message}
        return self._snapshot("failed")

    def _add(self, events: list[JsonObject], part: Part) -> None:
        """Begin an item with a part, or go on with the last one."""
        if isinstance(part, Call):
            self._begin(events, _CallItem(f"fc_{secrets.token_hex(12)}", part))
            return
        item = self._items[-1] if self._open else None
        if isinstance(part, Arguments):
            assert isinstance(item, _CallItem)
            item.arguments += part.text
            name = "function_call_arguments.delta"
            events.append(self._event(name, **self._where(item), delta=part.text))
            return
        reasoning = isinstance(part, Reasoning)
        if not isinstance(item, _TextItem) or item.reasoning != reasoning:
            item = _TextItem(f"{'rs' if reasoning else 'msg'}_{secrets.token_hex(12)}", reasoning)
            self._begin(events, item)
            events.append(self._event("content_part.added", **self._where(item), part=item.part()))
        item.text += part.text
        extra: JsonObject = {} if reasoning else {"logprobs": []}
        events.append(
            self._event(f"{item.kind}.delta", **self._where(item), delta=part.text, **extra)
        )

    def _begin(self, events: list[JsonObject], item: _CallItem | _TextItem) -> None:
        self._close(events, "completed")
        self._items.append(item)
        self._open = True
        index = len(self._items) - 1
        events.append(self._event("output_item.added", output_index=index, item=item.entry()))

    def _where(self, item: _CallItem | _TextItem) -> JsonObject:
        where: JsonObject = {"item_id": item.id, "output_index": len(self._items) - 1}
        return where if isinstance(item, _CallItem) else {**where, "content_index": 0}

    def _close(self, events: list[JsonObject], status: str) -> None:
        """End the item that is being written."""
        if not self._open:
            return
        self._open = False
        item = self._items[-1]
        where = self._where(item)
        if isinstance(item, _CallItem):
            whole = {"name": item.call.name, "arguments": item.arguments}
            events.append(self._event("function_call_arguments.done", **where, **whole))
        else:
            extra: JsonObject = {} if item.reasoning else {"logprobs": []}
            events.append(self._event(f"{item.kind}.done", **where, text=item.text, **extra))
            events.append(self._event("content_part.done", **where, part=item.part()))
        item.status = status
        index = len(self._items) - 1
        events.append(self._event("output_item.done", output_index=index, item=item.entry()))

"""/v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.engine.jobs import Update
from infinicore_infer.server.answer import Answer, Chat, begin_chat
from infinicore_infer.server.counts import count, running, timings
from infinicore_infer.server.http import StreamForm
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.logprobs import chat_logprobs, prompt_logprobs
from infinicore_infer.server.openai.errors import COMPLETION_STREAM
from infinicore_infer.server.openai.fields import ChatBody
from infinicore_infer.server.openai.usage import usage
from infinicore_infer.server.service import Service, service_of
from infinicore_infer.text.output import Arguments, Call, Part, Reasoning
from infinicore_infer.text.tokenizer import Qwen3Tokenizer


@dataclass(slots=True)
class _ToolCall:
    """A call, as far as it is written."""

    begin: Call
    arguments: str = ""

    def entry(self) -> JsonObject:
        function = {"name": self.begin.name, "arguments": self.arguments}
        return {"id": self.begin.id, "type": "function", "function": function}


@dataclass(slots=True)
class _Choice:
    """One answer in the form of chat completions, as it grows."""

    index: int
    answer: Answer
    tokenizer: Qwen3Tokenizer
    body: ChatBody
    content: str = ""
    reasoning: str = ""
    calls: list[_ToolCall] = field(default_factory=list)

    def delta(self, part: Part) -> JsonObject:
        """Add a part; return what an event tells of it."""
        if isinstance(part, Call):
            self.calls.append(_ToolCall(part))
            return {"tool_calls": [{"index": len(self.calls) - 1, **self.calls[-1].entry()}]}
        if isinstance(part, Arguments):
            self.calls[-1].arguments += part.text
            more = {"index": len(self.calls) - 1, "function": {"arguments": part.text}}
            return {"tool_calls": [more]}
        if isinstance(part, Reasoning):
            self.reasoning += part.text
            # Clients disagree about the name.
            return {"reasoning_content": part.text, "reasoning": part.text}
        self.content += part.text
        return {"content": part.text}

    def logprobs(self) -> JsonObject | None:
        """Return the log-probabilities that came since the last call, if they are wanted."""
        if not self.body.logprobs:
            return None
        as_ids = bool(self.body.return_tokens_as_token_ids)
        taken = [
            chat_logprobs(self.tokenizer, item, as_ids=as_ids)
            for item in self.answer.take_logprobs()
        ]
        return {"content": taken, "refusal": None}

    def ids(self) -> JsonObject:
        """Return the ids of tokens that came since the last call, if they are wanted."""
        return {"token_ids": self.answer.take_tokens()} if self.body.return_token_ids else {}

    def whole(self) -> JsonObject:
        """Return the choice of an answer that is sent whole."""
        content = None if self.calls and not self.content else self.content
        message: JsonObject = {"role": "assistant", "content": content, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = message["reasoning"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [call.entry() for call in self.calls]
        return {
            "index": self.index,
            "message": message,
            "logprobs": self.logprobs(),
            "finish_reason": self.answer.finish_reason,
            "stop_reason": self.answer.stop_reason,
            **self.ids(),
        }


class ChatWriter:
    """Writes chat completions."""

    form: StreamForm = COMPLETION_STREAM

    def __init__(self, service: Service, body: ChatBody, chat: Chat) -> None:
        """Write the answers to a request.

        Args:
            service: The state behind the endpoints.
            body: The request.
            chat: Its answers.
        """
        self._chat = chat
        self._body = body
        self._tokenizer = service.model.tokenizer
        self._choices = [
            _Choice(index, answer, self._tokenizer, body)
            for index, answer in enumerate(chat.answers)
        ]
        self._head: JsonObject = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": service.called(body.model),
            "system_fingerprint": service.fingerprint,
        }
        if body.stream and body.with_usage:
            self._head["usage"] = None

    def _chunk(
        self,
        choice: _Choice,
        delta: JsonObject,
        logprobs: JsonObject | None = None,
        **last: object,
    ) -> JsonObject:
        if logprobs is not None and not logprobs["content"]:
            logprobs = None
        entry = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        event: JsonObject = {**self._head, "choices": [{**entry, **last, **choice.ids()}]}
        if self._body.with_running_usage:
            answer = choice.answer
            event["usage"] = usage(running(answer.job, answer.count), answer.reasoning_tokens)
        return event

    def _prompt_ids(self) -> JsonObject:
        """Return the prompt's token ids, if they are wanted."""
        if not self._body.return_token_ids:
            return {}
        sequence = self._chat.answers[0].job.sequence
        return {"prompt_token_ids": sequence.all_tokens[: sequence.result.prompt_tokens]}

    def _totals(self) -> JsonObject:
        jobs = self._chat.stream.jobs
        counts = usage(count(jobs), self._chat.reasoning_tokens)
        return {"usage": counts, "timings": timings(jobs)}

    def begin(self) -> list[JsonObject]:
        """Return the events before the first token: the role, of every choice."""
        delta = {"role": "assistant", "content": ""}
        events = [self._chunk(choice, {**delta}) for choice in self._choices]
        events[0] |= self._prompt_ids()
        return events

    def push(self, index: int, update: Update) -> list[JsonObject]:
        """Take news of one of the answers; return the events it brings."""
        choice = self._choices[index]
        answer = choice.answer
        parts = answer.push(update)
        events = [self._chunk(choice, choice.delta(part), choice.logprobs()) for part in parts]
        if not parts and not update.done and not choice.content and answer.logprobs:
            # Tags and what stands before the text are no part of it: clients take the
            # log-probabilities that come with a piece of text for those of its tokens.
            events = [self._chunk(choice, {}, choice.logprobs())]
        if update.done:
            reasons = {"finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}
            last = self._chunk(choice, {}, choice.logprobs(), **reasons)
            events.append({**last, "timings": timings([answer.job])})
        return events

    def finish(self) -> list[JsonObject]:
        """Return the events after the last token: the usage, if it is wanted."""
        return [{**self._head, "choices": [], **self._totals()}] if self._body.with_usage else []

    def take(self, index: int, update: Update) -> None:
        """Take news of an answer that is sent whole."""
        choice = self._choices[index]
        for part in choice.answer.push(update):
            choice.delta(part)

    def whole(self) -> JsonObject:
        """Return the completion."""
        choices = [choice.whole() for choice in self._choices]
        answer = {**self._head, "choices": choices, **self._totals(), **self._prompt_ids()}
        if self._body.prompt_logprobs is not None:
            scores = self._chat.answers[0].job.sequence.prompt_scores
            top = self._body.prompt_logprobs
            answer["prompt_logprobs"] = prompt_logprobs(self._tokenizer, scores, top)
        return answer


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    body = await service.read(request, ChatBody)
    service.ready(body.model)
    chat = await begin_chat(service, body.chat_request, request.state.request_id)
    writer = ChatWriter(service, body, chat)
    return await service.answer(request, chat.stream, writer, streamed=bool(body.stream))

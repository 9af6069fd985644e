"""/v1/chat/completions."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.engine.async_engine import AsyncStream
from infinicore_infer.engine.jobs import Job, Submission, Update
from infinicore_infer.generate.constraint import Constraint
from infinicore_infer.generate.sampling import SamplingParams
from infinicore_infer.server.errors import ApiError, from_exception, json_response, named
from infinicore_infer.server.grammar import Grammar, Grammars, choose_grammar
from infinicore_infer.server.openai.fields import ChatBody
from infinicore_infer.server.openai.usage import chat_logprobs, stop_reason, timings, usage
from infinicore_infer.server.service import EventStream, Service, read_body
from infinicore_infer.server.thinking import limit_thinking
from infinicore_infer.text.output import Arguments, Call, OutputParser, Part, Reasoning


@dataclass(slots=True)
class _Plan:
    """A request, ready for the engine."""

    tokens: list[int]
    thinking: bool
    tools: bool
    free: bool  # whether the answer may begin with thinking
    grammar: Grammar | None


def _tools_in_use(body: ChatBody) -> list[dict[str, Any]] | None:
    """Return the tools that the model is told of, and check tool_choice."""
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice: there are no tools", "tool_choice")
        return None
    if choice == "none":
        return None
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        names = [tool["function"]["name"] for tool in body.tools]
        if choice.get("type") != "function" or name not in names:
            message = f"tool_choice: names no tool of this request: {name!r}"
            raise ApiError(400, message, "tool_choice")
    elif choice not in (None, "auto", "required"):
        raise ApiError(400, f"tool_choice: {choice!r} is not known", "tool_choice")
    return body.tools


def told_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return what the model is told of tools: not ``strict``, which is for us."""
    if tools is None:
        return None
    return [
        {**tool, "function": {k: v for k, v in tool["function"].items() if k != "strict"}}
        if isinstance(tool.get("function"), dict)
        else tool
        for tool in tools
    ]


def prompt_tokens(model: Qwen3ForCausalLM, body: ChatBody) -> list[int]:
    """Return a conversation's token ids.

    Raises:
        ApiError: Naming the field.
        ValueError: A message is wrong.
    """
    variables = dict(body.chat_template_kwargs or {})
    if body.enable_thinking is not None:
        variables.setdefault("enable_thinking", body.enable_thinking)
    if body.reasoning_effort == "none":
        variables.setdefault("enable_thinking", False)
    if not isinstance(variables.get("enable_thinking", True), bool):
        message = "chat_template_kwargs: enable_thinking must be true or false"
        raise ApiError(400, message, "chat_template_kwargs")
    tools = told_tools(_tools_in_use(body))
    with named("messages"):
        return model.tokenizer.encode_chat(
            body.messages, tools, allow_special=False, variables=variables
        )


def _plan(service: Service, body: ChatBody) -> _Plan:
    """Render, encode and check; takes a while for long conversations."""
    model = service.model
    tools = _tools_in_use(body)
    grammar = choose_grammar(body, tools)
    tokens = prompt_tokens(model, body)
    check_length(service, tokens, "messages")
    tail = model.tokenizer.decode(tokens[-4:], skip_special=False).rstrip()
    opened = tail.endswith("<think>")
    free = opened or not tail.endswith("</think>")
    return _Plan(tokens, opened, tools is not None, free, grammar)


async def _constraint(
    model: Qwen3ForCausalLM, grammars: Grammars, body: ChatBody, plan: _Plan
) -> Callable[[], Constraint] | None:
    """Return what makes the constraints of answers, if there are any."""
    constraint = None
    if plan.grammar is not None:
        constraint = await grammars.prepare(
            plan.grammar, may_think=plan.free, thinking=plan.thinking
        )
    if body.thinking_budget is not None and plan.free:
        constraint = limit_thinking(model, body.thinking_budget, plan.thinking, constraint)
    return constraint


def check_length(service: Service, tokens: list[int], param: str) -> None:
    """Refuse a prompt that leaves no room for an answer.

    Raises:
        ApiError: Naming the field.
    """
    limit = service.ready_engine().engine.context_length
    if not tokens:
        raise ApiError(400, f"{param}: the prompt is empty", param)
    if len(tokens) > limit:
        message = f"{param}: the prompt has {len(tokens)} tokens, the context holds {limit}"
        raise ApiError(400, message, param, "context_length_exceeded")


@dataclass(slots=True)
class Choice:
    """One answer, as it grows."""

    index: int
    job: Job
    parser: OutputParser
    tokenizer: Any
    end_tokens: frozenset[int]
    want_logprobs: bool
    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)
    reasoning_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def push(self, update: Update) -> list[dict[str, Any]]:
        """Take an update and return the deltas it brings."""
        piece = update.piece
        if piece is None:
            return []
        if piece.logprobs is not None and piece.token not in self.end_tokens:
            self.pending.append(chat_logprobs(self.tokenizer, piece.logprobs))
        before = self.parser.state
        parts = self.parser.push(piece.text)
        if "reasoning" in (before, self.parser.state):
            self.reasoning_tokens += 1
        if update.done:
            parts += self.parser.finish()
            stopped = piece.finish_reason == "stop"
            self.finish_reason = (
                "tool_calls" if stopped and self.calls_in(parts) else (piece.finish_reason)
            )
            self.stop_reason = stop_reason(self.job, self.end_tokens)
        return [self._delta(part) for part in parts]

    def calls_in(self, parts: list[Part]) -> bool:
        """Return whether the answer calls a tool."""
        return bool(self.calls) or any(isinstance(part, Call) for part in parts)

    def _delta(self, part: Part) -> dict[str, Any]:
        if isinstance(part, Call):
            function = {"name": part.name, "arguments": ""}
            call = {"id": part.id, "type": "function", "function": function}
            self.calls.append(call)
            return {
                "tool_calls": [{"index": len(self.calls) - 1, **call, "function": {**function}}]
            }
        if isinstance(part, Arguments):
            self.calls[-1]["function"]["arguments"] += part.text
            more = {"index": len(self.calls) - 1, "function": {"arguments": part.text}}
            return {"tool_calls": [more]}
        if isinstance(part, Reasoning):
            self.reasoning += part.text
            # Clients disagree about the name.
            return {"reasoning_content": part.text, "reasoning": part.text}
        self.content += part.text
        return {"content": part.text}

    def take_logprobs(self) -> dict[str, Any] | None:
        """Return the log-probabilities that came since the last call."""
        if not self.want_logprobs:
            return None
        taken, self.pending = self.pending, []
        self.logprobs += taken
        return {"content": taken, "refusal": None}

    def message(self) -> dict[str, Any]:
        """Return the whole choice."""
        self.take_logprobs()
        content = None if self.calls and not self.content else self.content
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = message["reasoning"] = self.reasoning
        if self.calls:
            message["tool_calls"] = self.calls
        logprobs = {"content": self.logprobs, "refusal": None} if self.want_logprobs else None
        return {
            "index": self.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
        }


@dataclass(slots=True)
class ChatRun:
    """A conversation on its way through the engine.

    Attributes:
        stream: Brings the updates.
        choices: The answers they make.
        params: The settings of the first one.
    """

    stream: AsyncStream
    choices: list[Choice]
    params: SamplingParams

    def usage(self) -> dict[str, Any]:
        """Return OpenAI's usage object."""
        return usage(self.stream.jobs, sum(choice.reasoning_tokens for choice in self.choices))


async def begin_chat(service: Service, grammars: Grammars, body: ChatBody, name: str) -> ChatRun:
    """Check a request and hand it to the engine.

    Args:
        service: The state behind the endpoints.
        grammars: Compiles schemas.
        body: The request; all its fields are obeyed but ``stream``.
        name: For messages.

    Raises:
        ApiError: Naming the field.
    """
    engine = service.ready(body.model)
    body.check_rest()
    try:
        plan = await asyncio.to_thread(_plan, service, body)
        model = engine.engine.model
        constraint = await _constraint(model, grammars, body, plan)
        limits = [n for n in (body.max_completion_tokens, body.max_tokens) if n is not None]
        params = body.sampling(
            model,
            max_steps=min(limits, default=None),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )
    except Exception as error:
        raise from_exception(error) from error
    submission = Submission(
        plan.tokens,
        params,
        name=name,
        stop_tokens=body.stop_token_ids or (),
        constraint=constraint,
        repetition=body.repetition,
    )
    stream = service.submit([submission])
    max_calls = 1 if body.parallel_tool_calls is False else None
    choices = [
        Choice(
            index,
            job,
            OutputParser(thinking=plan.thinking, tools=plan.tools, max_calls=max_calls),
            model.tokenizer,
            frozenset(model.meta.end_tokens),
            bool(body.logprobs),
        )
        for index, job in enumerate(stream.jobs)
    ]
    return ChatRun(stream, choices, params[0])


async def chat_completions(service: Service, grammars: Grammars, request: Request) -> Response:
    """Answer a conversation."""
    body = await read_body(request, ChatBody, service.config.max_body_bytes)
    engine = service.ready(body.model)
    run = await begin_chat(service, grammars, body, request.state.request_id)
    stream, choices = run.stream, run.choices
    head = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": service.config.model_name,
    }
    if body.stream:
        events = _events(service, body, run, head)
        return EventStream(events, lambda: engine.cancel(stream))

    await service.deliver(request, stream, lambda index, update: choices[index].push(update))
    messages = [choice.message() for choice in choices]
    return json_response(
        {**head, "choices": messages, "usage": run.usage(), "timings": timings(stream.jobs)}
    )


async def _events(
    service: Service,
    body: ChatBody,
    run: ChatRun,
    head: dict[str, Any],
) -> AsyncIterator[dict[str, Any] | None]:
    stream, choices = run.stream, run.choices
    head["object"] = "chat.completion.chunk"
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    if with_usage:
        head["usage"] = None

    def chunk(choice: Choice, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        logprobs = choice.take_logprobs() if delta.keys() - {"role"} or reason else None
        if logprobs is not None and not logprobs["content"]:
            logprobs = None
        entry = {
            "index": choice.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reason,
        }
        return {**head, "choices": [entry]}

    for choice in choices:
        yield chunk(choice, {"role": "assistant", "content": ""})
    async for item in service.follow(stream):
        if item is None:
            yield None
            continue
        choice = choices[item[0]]
        for delta in choice.push(item[1]):
            yield chunk(choice, delta)
        if item[1].done:
            job = stream.jobs[choice.index]
            last = chunk(choice, {}, choice.finish_reason)
            last["choices"][0]["stop_reason"] = choice.stop_reason
            yield {**last, "timings": timings([job])}
    if with_usage:
        yield {**head, "choices": [], "usage": run.usage(), "timings": timings(stream.jobs)}

"""/v1/messages, Anthropic's protocol: requests, as chat completions see them."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.server.anthropic.message_blocks import MessageBuilder
from infinicore_infer.server.errors import ApiError, json_response
from infinicore_infer.server.grammar import Grammars
from infinicore_infer.server.openai.chat import begin_chat, prompt_tokens
from infinicore_infer.server.openai.fields import Body, ChatBody, Number
from infinicore_infer.server.service import EventStream, Service, read_body
from infinicore_infer.server.translate import bad_field, call_entry, chat_body, renamed, text_of

_NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "thinking_budget": "thinking",
    "response_format": "output_config",
}
_PING = 'event: ping\ndata: {"type": "ping"}\n\n'
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class CountBody(Body):
    """A request to /v1/messages/count_tokens."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of chat completions that mean the same.

        Raises:
            ApiError: Naming the field.
        """
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append(
                {"role": "system", "content": text_of(self.system, ("text",), "system")}
            )
        for i, message in enumerate(self.messages):
            _add_message(messages, message, f"messages[{i}]")
        choice = self.tool_choice or {}
        parallel = False if choice.get("disable_parallel_tool_use") else None
        thinking, budget = self._thinking()
        return {
            "model": self.model,
            "messages": messages,
            "tools": self._tools(),
            "tool_choice": self._choice(choice),
            "parallel_tool_calls": parallel,
            "enable_thinking": thinking,
            "thinking_budget": budget,
        }

    def _thinking(self) -> tuple[bool, Any]:
        if self.thinking is None:
            return False, None
        kind = self.thinking.get("type")
        if kind == "enabled":
            budget = self.thinking.get("budget_tokens")
            if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
                raise bad_field("thinking.budget_tokens", "must be a whole number, 0 or more")
            return True, budget
        if kind not in ("disabled", "adaptive"):
            raise bad_field("thinking.type", f"{kind!r} is not known")
        return kind == "adaptive", None

    def _tools(self) -> list[dict[str, Any]] | None:
        tools = []
        for i, tool in enumerate(self.tools or ()):
            if tool.get("type") not in (None, "custom"):
                message = f"type {tool['type']!r} is not supported; only custom tools are"
                raise bad_field(f"tools[{i}]", message)
            # In the order in which models see most functions.
            function = {"name": tool.get("name")}
            if tool.get("description"):
                function["description"] = tool["description"]
            function["parameters"] = tool.get("input_schema")
            if tool.get("strict"):
                function["strict"] = tool["strict"]
            tools.append({"type": "function", "function": function})
        return tools or None

    def _choice(self, choice: dict[str, Any]) -> str | dict[str, Any] | None:
        kind = choice.get("type")
        if kind == "tool":
            return {"type": "function", "function": {"name": choice.get("name")}}
        if not choice:
            return None
        if not isinstance(kind, str) or kind not in _CHOICES:
            raise bad_field("tool_choice.type", f"{kind!r} is not known")
        return _CHOICES[kind]


class MessagesBody(CountBody):
    """A request to /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1, le=2**31)]
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    metadata: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of chat completions; see the base class."""
        limits: dict[str, Any] = {
            "max_completion_tokens": self.max_tokens,
            "stop": self.stop_sequences,
        }
        form = (self.output_config or {}).get("format")
        if form is not None:
            if not isinstance(form, dict) or form.get("type") != "json_schema":
                raise bad_field("output_config.format", "must have type 'json_schema'")
            limits["response_format"] = {"type": "json_schema", "json_schema": form}
        return {**super().fields(), **limits}


def _chat(body: CountBody) -> ChatBody:
    with renamed(_NAMES):
        return chat_body(body, body.fields())


def _add_message(messages: list[dict[str, Any]], message: dict[str, Any], where: str) -> None:
    role, content = message.get("role"), message.get("content")
    where = f"{where}.content"
    if role not in ("user", "assistant"):
        raise bad_field(where.replace("content", "role"), f"{role!r} is not known")
    if isinstance(content, str):
        messages.append({"role": role, "content": content})
    elif not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise bad_field(where, "must be a string or a list of blocks")
    elif role == "user":
        _add_user(messages, content, where)
    else:
        messages.append(_assistant(content, where))


def _add_user(messages: list[dict[str, Any]], blocks: list[dict[str, Any]], where: str) -> None:
    texts = []
    for i, block in enumerate(blocks):
        here = f"{where}[{i}]"
        if block.get("type") == "tool_result":
            text = text_of(block.get("content") or "", ("text",), f"{here}.content")
            if block.get("is_error"):
                text = f"Error: {text}"
            identity = block.get("tool_use_id")
            messages.append({"role": "tool", "tool_call_id": identity, "content": text})
        else:
            texts.append(text_of([block], ("text",), here))
    if texts:
        messages.append({"role": "user", "content": "\n".join(texts)})


def _assistant(blocks: list[dict[str, Any]], where: str) -> dict[str, Any]:
    texts, thoughts, calls = [], [], []
    for i, block in enumerate(blocks):
        here, kind = f"{where}[{i}]", block.get("type")
        if kind == "thinking":
            thoughts.append(str(block.get("thinking", "")))
        elif kind == "tool_use":
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            calls.append(call_entry(block.get("id"), block.get("name"), arguments, here))
        elif kind != "redacted_thinking":
            texts.append(text_of([block], ("text",), here))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


async def messages(service: Service, grammars: Grammars, request: Request) -> Response:
    """Answer in content blocks."""
    body = await read_body(request, MessagesBody, service.config.max_body_bytes)
    engine = service.ready(body.model)
    chat = _chat(body)
    with renamed(_NAMES):
        run = await begin_chat(service, grammars, chat, request.state.request_id)
    builder = MessageBuilder(service.config.model_name, run)
    if body.stream:
        events = builder.events(service)
        cancel = partial(engine.cancel, run.stream)
        return EventStream(events, cancel, ApiError.anthropic_body, _PING)
    await service.deliver(request, run.stream, lambda _, update: builder.push(update))
    return json_response(builder.message)


async def count_tokens(service: Service, request: Request) -> Response:
    """Count a prompt's tokens."""
    body = await read_body(request, CountBody, service.config.max_body_bytes)
    model = service.ready(body.model).engine.model
    chat = _chat(body)
    with renamed(_NAMES):
        tokens = await asyncio.to_thread(prompt_tokens, model, chat)
    return json_response({"input_tokens": len(tokens)})

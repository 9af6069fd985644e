"""/v1/messages, Anthropic's protocol: requests."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.errors import FieldError
from infinicore_infer.server.answer import begin_chat
from infinicore_infer.server.anthropic.message_blocks import MessageWriter
from infinicore_infer.server.chat_fields import ChatFields
from infinicore_infer.server.chat_request import (
    ChatRequest,
    Thinking,
    Tool,
    ToolChoice,
    block_text,
    earlier_call,
    function_tool,
    text_of,
)
from infinicore_infer.server.fields import Objects
from infinicore_infer.server.form_fields import response_form
from infinicore_infer.server.http import json_response
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.known_fields import MESSAGES
from infinicore_infer.server.service import service_of

_CHOICES = {
    "auto": ToolChoice("auto"),
    "any": ToolChoice("required"),
    "none": ToolChoice("none"),
}


class CountBody(ChatFields):
    """A request to /v1/messages/count_tokens."""

    endpoint = "/v1/messages/count_tokens"
    tool_type = "custom"

    messages: Objects = Field(min_length=1)
    system: str | Objects | None = None
    tool_choice: JsonObject | None = None

    def chat_request(self) -> ChatRequest:
        """Return what the client asks for.

        Raises:
            FieldError: Naming the field.
        """
        messages: list[JsonObject] = []
        if self.system:
            text = text_of(self.system, ("text",), "system")
            messages.append({"role": "system", "content": text})
        for i, message in enumerate(self.messages):
            _add_message(messages, message, f"messages[{i}]")
        continued, begins = self.ending(messages)
        single = (self.tool_choice or {}).get("disable_parallel_tool_use")
        return ChatRequest(
            messages=messages,
            tools=self._tools(),
            tool_choice=self._choice(),
            parallel_calls=not single and self.parallel_tool_calls is not False,
            thinking=self._thinking(),
            template_variables=self.chat_template_kwargs or {},
            continued=continued,
            begins=begins,
            implied=self.leaves_ending,
        )

    def _thinking(self) -> Thinking:
        """Return what is asked for; where nothing is, the model does not think."""
        kind = self.thinking
        if isinstance(kind, dict) and kind.get("type") == "enabled" and "budget_tokens" not in kind:
            raise FieldError("thinking.budget_tokens", "must be a whole number, 0 or more")
        asked = self.asked_thinking()
        return asked if asked.on is not None else replace(asked, on=False)

    def _tools(self) -> list[Tool]:
        tools = []
        for i, tool in self.served_tools():
            if tool.get("type") not in (None, "custom"):
                problem = f"type {tool['type']!r} is not supported; only custom tools are"
                raise FieldError(f"tools[{i}]", problem)
            # In the order in which models see most functions.
            function: JsonObject = {"name": tool.get("name")}
            if tool.get("description"):
                function["description"] = tool["description"]
            function["parameters"] = tool.get("input_schema")
            if tool.get("strict"):
                function["strict"] = tool["strict"]
            tools.append(function_tool(i, {"type": "function", "function": function}))
        return tools

    def _choice(self) -> ToolChoice:
        if not self.tool_choice:
            return ToolChoice()
        kind, name = self.tool_choice.get("type"), self.tool_choice.get("name")
        if kind == "tool":
            if not isinstance(name, str):
                raise FieldError("tool_choice", f"names no tool of this request: {name!r}")
            return ToolChoice("named", name)
        if not isinstance(kind, str) or kind not in _CHOICES:
            raise FieldError("tool_choice.type", f"{kind!r} is not known")
        return _CHOICES[kind]


class MessagesBody(CountBody):
    """A request to /v1/messages."""

    endpoint = MESSAGES

    max_tokens: Annotated[int, Field(ge=1, le=2**31)]
    stream: bool | None = None
    metadata: JsonObject | None = None
    output_config: JsonObject | None = None

    def chat_request(self) -> ChatRequest:
        """Return what the client asks for; see the base class."""
        request = super().chat_request()
        request.sampling = self.sampling(max_steps=self.max_tokens)
        form, standard = (self.output_config or {}).get("format"), None
        if form is not None:
            if not isinstance(form, dict) or form.get("type") != "json_schema":
                raise FieldError("output_config.format", "must have type 'json_schema'")
            standard = response_form({"type": "json_schema", "json_schema": form})
        request.form = self.asked_form(standard)
        return request


def _add_message(messages: list[JsonObject], message: JsonObject, where: str) -> None:
    role, content = message.get("role"), message.get("content")
    # Claude Code sends reminders as the system's amid the conversation.
    if role not in ("system", "user", "assistant"):
        raise FieldError(f"{where}.role", f"{role!r} is not known")
    where = f"{where}.content"
    if isinstance(content, str):
        messages.append({"role": role, "content": content})
    elif not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise FieldError(where, "must be a string or a list of blocks")
    elif role == "user":
        _add_user(messages, content, where)
    elif role == "system":
        messages.append({"role": role, "content": text_of(content, ("text",), where)})
    else:
        messages.append(_assistant(content, where))


def _add_user(messages: list[JsonObject], blocks: list[JsonObject], where: str) -> None:
    texts = []
    for i, block in enumerate(blocks):
        here = f"{where}[{i}]"
        if block.get("type") == "tool_result":
            text = text_of(block.get("content") or "", ("text",), f"{here}.content")
            if block.get("is_error"):
                text = f"Error: {text}"
            identity = _required(block, "tool_use_id", here)
            messages.append({"role": "tool", "tool_call_id": identity, "content": text})
        else:
            texts.append(block_text(block, ("text",), here))
    if texts:
        messages.append({"role": "user", "content": "\n".join(texts)})


def _required(block: JsonObject, name: str, where: str) -> str:
    """Return a part of a block that must be a string.

    Raises:
        FieldError: It is none.
    """
    value = block.get(name)
    if not isinstance(value, str):
        raise FieldError(f"{where}.{name}", "must be a string")
    return value


def _assistant(blocks: list[JsonObject], where: str) -> JsonObject:
    texts, thoughts, calls = [], [], []
    for i, block in enumerate(blocks):
        here, kind = f"{where}[{i}]", block.get("type")
        if kind == "thinking":
            thoughts.append(_required(block, "thinking", here))
        elif kind == "tool_use":
            given = block.get("input")
            if not isinstance(given, dict):
                raise FieldError(f"{here}.input", "must be an object")
            arguments = json.dumps(given, ensure_ascii=False)
            calls.append(earlier_call(block.get("id"), block.get("name"), arguments, here))
        elif kind != "redacted_thinking":
            texts.append(block_text(block, ("text", "refusal"), here))
    message: JsonObject = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


async def messages(request: Request) -> Response:
    """Answer in content blocks."""
    service = service_of(request)
    body = await service.read(request, MessagesBody)
    service.ready(body.model)
    chat = await begin_chat(service, body.chat_request, request.state.request_id)
    writer = MessageWriter(service.called(body.model), chat)
    return await service.answer(request, chat.stream, writer, streamed=bool(body.stream))


async def count_tokens(request: Request) -> Response:
    """Count a prompt's tokens."""
    service = service_of(request)
    body = await service.read(request, CountBody)
    engine = service.ready(body.model).engine

    def encode() -> list[int]:
        return body.chat_request().prompt(engine.model, engine.context_length)

    tokens = await asyncio.to_thread(encode)
    return json_response({"input_tokens": len(tokens)})

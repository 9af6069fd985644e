"""/v1/responses, OpenAI's newer protocol: requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.errors import FieldError
from infinicore_infer.generate.sampling import SamplingParams
from infinicore_infer.server.answer import Chat, begin_chat
from infinicore_infer.server.chat_fields import ChatFields
from infinicore_infer.server.chat_request import (
    ChatRequest,
    Tool,
    earlier_call,
    function_tool,
    text_of,
    tool_choice,
)
from infinicore_infer.server.errors import unavailable
from infinicore_infer.server.fields import Objects
from infinicore_infer.server.form_fields import response_form
from infinicore_infer.server.http import EventStream, json_response
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.known_fields import INPUT_TOKENS, RESPONSES
from infinicore_infer.server.openai.background import BackgroundRun
from infinicore_infer.server.openai.response_items import ResponseWriter
from infinicore_infer.server.openai.response_state import Context, state_of
from infinicore_infer.server.service import service_of

_TEXTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")


# Items that are calls of tools, and the name and arguments of each. Another server's model may have
# called tools that are left out here.
_CALLS: dict[str, Callable[[JsonObject], tuple[object, object]]] = {
    "function_call": lambda item: (item.get("name"), item.get("arguments")),
    "custom_tool_call": lambda item: (item.get("name"), json.dumps({"input": item.get("input")})),
    "local_shell_call": lambda item: ("local_shell", json.dumps(item.get("action"))),
    "shell_call": lambda item: ("shell", json.dumps(item.get("action"))),
    "apply_patch_call": lambda item: ("apply_patch", json.dumps(item.get("operation"))),
}
_OUTPUTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output",
            "shell_call_output", "apply_patch_call_output")  # fmt: skip
# What a provider did by itself; its result is in the text that follows.
_SERVED_ELSEWHERE = ("web_search_call", "file_search_call", "code_interpreter_call",
                     "image_generation_call", "mcp_list_tools", "tool_search_call",
                     "tool_search_output", "compaction")  # fmt: skip


# Bytes of a request, all of which a response repeats.
_REPEATED = 1 << 20


class ResponsesBody(ChatFields):
    """A request to /v1/responses."""

    endpoint = RESPONSES

    input: str | Objects
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    tool_choice: str | JsonObject | None = None
    text: JsonObject | None = None
    metadata: JsonObject | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    truncation: Literal["auto", "disabled"] | None = None

    def chat_request(self, context: Context) -> ChatRequest:
        """Return what the client asks for.

        Args:
            context: What the request refers to.

        Raises:
            FieldError: Naming the field.
        """
        messages = self._messages(context)
        continued, begins = False, True
        # Unlike the others, OpenAI's own server never goes on with a message by itself.
        if self.continue_final_message is not None or self.add_generation_prompt is not None:
            continued, begins = self.ending(messages)
        return ChatRequest(
            messages=messages,
            sampling=self.sampling(max_steps=self.max_output_tokens),
            tools=self._tools(),
            tool_choice=tool_choice(self._choice()),
            parallel_calls=self.parallel_tool_calls is not False,
            form=self.asked_form(response_form(self._format())),
            thinking=self.asked_thinking(),
            template_variables=self.chat_template_kwargs or {},
            continued=continued,
            begins=begins,
            drops=self.truncation == "auto",
        )

    def _messages(self, context: Context) -> list[JsonObject]:
        messages: list[JsonObject] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        for item in context.before():
            _add_item(messages, item, "previous_response_id")
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for i, item in enumerate(self.input):
            _add_item(messages, context.resolved(item), f"input[{i}]")
        if not messages:
            raise FieldError("input", "is empty")
        return messages

    def check_storing(self, enabled: bool) -> None:
        """Check that what is to be stored can be.

        Args:
            enabled: Whether anything is stored here.

        Raises:
            FieldError: It cannot.
        """
        if not self.background:
            return
        if self.store is False:
            raise FieldError("background", "needs store, which is false", joint=" ")
        if not enabled:
            problem = "is not possible: this server stores no responses (--response-memory)"
            raise FieldError("background", problem, joint=" ")

    def _tools(self) -> list[Tool]:
        tools = []
        for i, tool in self.served_tools():
            if tool.get("type") != "function":
                problem = f"type {tool.get('type')!r} is not supported; only functions are"
                raise FieldError(f"tools[{i}]", problem)
            keys = ("name", "description", "parameters", "strict")
            function = {key: tool[key] for key in keys if tool.get(key) is not None}
            tools.append(function_tool(i, {"type": "function", "function": function}))
        return tools

    def _choice(self) -> str | JsonObject | None:
        choice = self.tool_choice
        if not isinstance(choice, dict):
            return choice
        if choice.get("type") != "function":
            raise FieldError("tool_choice", f"type {choice.get('type')!r} is not supported")
        return {"type": "function", "function": {"name": choice.get("name")}}

    def _format(self) -> JsonObject | None:
        form = (self.text or {}).get("format")
        if form is None:
            return None
        if not isinstance(form, dict):
            raise FieldError("text.format", "must be an object")
        if form.get("type") != "json_schema":
            return form
        return {"type": "json_schema", "json_schema": form}


class InputTokensBody(ResponsesBody):
    """A request to /v1/responses/input_tokens."""

    endpoint = INPUT_TOKENS


def _assistant(messages: list[JsonObject]) -> JsonObject:
    """Return the answer that items belong to; they follow each other as the parts of one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _add_item(messages: list[JsonObject], item: JsonObject, where: str) -> None:
    kind = item.get("type", "message")
    if not isinstance(kind, str):
        raise FieldError(where, f"type {kind!r} is not supported")
    if kind == "message":
        role = item.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise FieldError(f"{where}.role", f"{role!r} is not known")
        text = text_of(item.get("content"), _TEXTS, f"{where}.content")
        if role == "assistant":
            answer = _assistant(messages)
            # What comes after calls, or is said twice, is an answer of its own.
            if answer["content"] or "tool_calls" in answer:
                messages.append({"role": "assistant", "content": text})
            else:
                answer["content"] = text
        else:
            messages.append({"role": role, "content": text})
    elif kind == "reasoning":
        content = item.get("content") or item.get("summary") or []
        text = text_of(content, _TEXTS, f"{where}.content")
        # Those of OpenAI's own models are encrypted.
        if text:
            messages.append({"role": "assistant", "content": "", "reasoning_content": text})
    elif kind in _CALLS:
        name, arguments = _CALLS[kind](item)
        call = earlier_call(item.get("call_id"), name, arguments, where)
        answer = _assistant(messages)
        calls = answer.get("tool_calls")
        answer["tool_calls"] = [*calls, call] if isinstance(calls, list) else [call]
    elif kind in _OUTPUTS:
        text = text_of(item.get("output"), _TEXTS, f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
    elif kind == "item_reference":
        problem = f"refers to {str(item.get('id'))[:80]!r}, which is not stored: send the item"
        raise FieldError(where, f"{problem} itself")
    elif kind not in _SERVED_ELSEWHERE:
        raise FieldError(where, f"type {kind!r} is not supported")


def _given(value: JsonObject | None) -> JsonObject:
    return {key: item for key, item in (value or {}).items() if item is not None}


async def responses(request: Request) -> Response:
    """Answer in items."""
    service, state = service_of(request), state_of(request)
    body = await service.read(request, ResponsesBody)
    service.ready(body.model)
    body.check_storing(state.store.enabled)
    if body.background and state.store.full:
        message = "responses in the background take all of --response-memory; try again later"
        raise unavailable(message, "overloaded")
    stored = state.store.enabled and body.store is not False
    context = state.context(body.previous_response_id, body.input)

    def asked() -> ChatRequest:
        made = body.chat_request(context)
        if stored:
            context.take(body.input)
        return made

    chat = await begin_chat(service, asked, request.state.request_id)
    settings = _settings(request, body, chat.params)
    settings |= {"model": service.called(body.model), "store": stored}
    if body.background:
        return _in_background(request, body, chat, settings, context)
    keep = partial(state.keep, context) if stored else None
    writer = ResponseWriter(settings, chat, ended=keep)
    return await service.answer(request, chat.stream, writer, streamed=bool(body.stream))


def _in_background(
    request: Request, body: ResponsesBody, chat: Chat, settings: JsonObject, context: Context
) -> Response:
    """Begin a response that nobody need wait for; return it as it is, or its events."""
    state = state_of(request)
    writer = ResponseWriter(settings, chat, background=True)

    def ended(run: BackgroundRun) -> None:
        del state.live[writer.id]
        state.keep(context, run.response(), run.events)

    run = state.live[writer.id] = BackgroundRun(
        service_of(request),
        chat.stream,
        writer,
        inputs=context.inputs,
        streamed=bool(body.stream),
        grown=state.store.reserve,
        ended=ended,
    )
    if body.stream:
        return EventStream(run.follow(-1), writer.form)
    return json_response(run.response())


def _settings(request: Request, body: ResponsesBody, params: SamplingParams) -> JsonObject:
    """Return what a response repeats of its request; of long ones, for everybody's sake, less."""
    extra = body.model_extra or {}
    settings: JsonObject = {
        "background": bool(body.background),
        "instructions": body.instructions,
        "max_tool_calls": None,
        "service_tier": "default",
        "top_logprobs": 0,
        "user": extra.get("user"),
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
        "temperature": params.temperature,
        "text": {"format": {"type": "text"}, **_given(body.text)},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": params.top_p,
        "truncation": body.truncation or "disabled",
    }
    if request.state.body_bytes > _REPEATED:
        settings |= {"instructions": None, "metadata": {}, "text": {"format": {"type": "text"}}}
        settings |= {"tools": [], "user": None}
    return settings

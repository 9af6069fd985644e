"""/v1/responses, OpenAI's newer protocol: requests, as chat completions see them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.server.errors import json_response
from infinicore_infer.server.grammar import Grammars
from infinicore_infer.server.openai.chat import begin_chat
from infinicore_infer.server.openai.fields import Body, ChatBody, Number
from infinicore_infer.server.openai.response_items import ResponseBuilder
from infinicore_infer.server.service import EventStream, Service, read_body
from infinicore_infer.server.translate import bad_field, call_entry, chat_body, renamed, text_of

_TEXTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text",
    "reasoning_effort": "reasoning",
    "thinking_budget": "reasoning",
}
# What needs earlier requests or OpenAI's own services, and the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    "max_tool_calls": (),
    "previous_response_id": (),
    "prompt": (),
    "top_logprobs": (0,),
}


class ResponsesBody(Body):
    """A request to /v1/responses."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None

    def chat(self) -> ChatBody:
        """Return the request to chat completions that means the same.

        Raises:
            ApiError: Naming the field.
        """
        self.refuse(_REFUSED)
        reasoning = self.reasoning or {}
        fields = {
            "model": self.model,
            "messages": self._messages(),
            "max_completion_tokens": self.max_output_tokens,
            "tools": self._tools(),
            "tool_choice": self._choice(),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": self._format(),
            "reasoning_effort": reasoning.get("effort"),
            "thinking_budget": reasoning.get("max_tokens"),
        }
        with renamed(_NAMES):
            return chat_body(self, fields)

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        if not self.input:
            raise bad_field("input", "is empty")
        for i, item in enumerate(self.input):
            _add_item(messages, item, f"input[{i}]")
        return messages

    def _tools(self) -> list[dict[str, Any]] | None:
        tools = []
        for i, tool in enumerate(self.tools or ()):
            if tool.get("type") != "function":
                message = f"type {tool.get('type')!r} is not supported; only functions are"
                raise bad_field(f"tools[{i}]", message)
            keys = ("name", "description", "parameters", "strict")
            function = {key: tool[key] for key in keys if tool.get(key) is not None}
            tools.append({"type": "function", "function": function})
        return tools or None

    def _choice(self) -> str | dict[str, Any] | None:
        choice = self.tool_choice
        if not isinstance(choice, dict):
            return choice
        if choice.get("type") != "function":
            raise bad_field("tool_choice", f"type {choice.get('type')!r} is not supported")
        return {"type": "function", "function": {"name": choice.get("name")}}

    def _format(self) -> dict[str, Any] | None:
        form = (self.text or {}).get("format")
        if form is None:
            return None
        if not isinstance(form, dict):
            raise bad_field("text.format", "must be an object")
        if form.get("type") != "json_schema":
            return form
        return {"type": "json_schema", "json_schema": form}


def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the answer that items belong to; they follow each other as the parts of one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise bad_field(f"{where}.role", f"{role!r} is not known")
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
        messages.append({"role": "assistant", "content": "", "reasoning_content": text})
    elif kind == "function_call":
        call = call_entry(item.get("call_id"), item.get("name"), item.get("arguments"), where)
        _assistant(messages).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        text = text_of(item.get("output"), _TEXTS, f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
    else:
        raise bad_field(where, f"type {kind!r} is not supported")


async def responses(service: Service, grammars: Grammars, request: Request) -> Response:
    """Answer in items."""
    body = await read_body(request, ResponsesBody, service.config.max_body_bytes)
    engine = service.ready(body.model)
    chat = body.chat()
    with renamed(_NAMES):
        run = await begin_chat(service, grammars, chat, request.state.request_id)
    params = run.params
    builder = ResponseBuilder(
        {
            "model": service.config.model_name,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
            "store": False,
            "temperature": params.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": params.top_p,
            "truncation": "disabled",
        },
        run,
    )
    if body.stream:
        events = builder.events(service)
        return EventStream(events, lambda: engine.cancel(run.stream), builder.failure)
    await service.deliver(request, run.stream, lambda _, update: builder.push(update))
    return json_response(builder.response)

"""Which grammar a request asks for: JSON of a schema, calls of tools, or either."""

from __future__ import annotations

import json
from collections.abc import Sequence

from infinicore_infer.errors import FieldError
from infinicore_infer.generate.grammar import Grammar
from infinicore_infer.server.chat_request import ChatRequest, Tool
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.schemas import prepared
from infinicore_infer.text.traced import strings

_MAX_PROPERTIES = 1000
# Of a name, a value or a pattern: all of it is looked through again for each token's mask.
_MAX_TEXT = 8192


def choose_grammar(request: ChatRequest) -> Grammar | None:
    """Return the grammar that a request asks for, or ``None``.

    Raises:
        FieldError: A schema is too large.
    """
    answer = None
    if request.response_format is not None:
        answer = _json(request.response_format, "response_format")
    tools, choice = request.offered_tools(), request.tool_choice
    if not tools:
        schema = request.response_format
        return None if schema is None else json_grammar(schema, "response_format")
    parallel = request.parallel_calls
    if choice.kind != "auto":
        called = [tool for tool in tools if choice.kind == "required" or tool.name == choice.name]
        rules, parts = _call_rules(called, parallel)
        return Grammar(f"start: calls\n{rules}", "tools", parts=parts)
    if answer is not None:
        rules, parts = _call_rules(tools, parallel)
        text = f"start: answer | calls\nanswer: {answer}\n{rules}"
        return Grammar(text, "tools", parts=((f"start: {answer}", "response_format", ""), *parts))
    if any(tool.strict for tool in tools):
        rules, parts = _call_rules(tools, parallel, strict=True)
        return Grammar(f"start: body\n{rules}", "tools", True, parts)
    return None


def json_grammar(schema: JsonObject, field: str) -> Grammar:
    """Return the grammar of JSON of a schema.

    Args:
        schema: The schema.
        field: What asks for it, for errors.

    Raises:
        FieldError: It is too large.
    """
    return Grammar(f"start: {_json(schema, field)}", field)


def _check_size(schema: object, field: str) -> None:
    """Refuse objects so large that compiling, whose time is quadratic, takes seconds."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        if isinstance(properties, dict) and len(properties) > _MAX_PROPERTIES:
            problem = f"the schema has an object of {len(properties)} properties"
            raise FieldError(field, f"{problem}; at most {_MAX_PROPERTIES} are supported")
    if isinstance(schema, dict | list):
        for item in schema.values() if isinstance(schema, dict) else schema:
            _check_size(item, field)


def _json(schema: JsonObject, field: str) -> str:
    """Return the right side of a rule for JSON of a schema.

    Raises:
        FieldError: It is too large.
    """
    _check_size(schema, field)
    schema = prepared(schema, field)
    longest = max((len(text) for text in strings(schema)), default=0)
    if longest > _MAX_TEXT:
        problem = f"the schema has a name, a value or a pattern of {longest} characters"
        raise FieldError(field, f"{problem}; at most {_MAX_TEXT} are supported")
    # Without a limit, a small model can write spaces until its tokens are used up. The separators
    # are those that models see most.
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return f"%json {json.dumps({**schema, 'x-guidance': style})}"


def _call_rules(
    tools: Sequence[Tool], parallel: bool, *, strict: bool = False
) -> tuple[str, tuple[tuple[str, str, str], ...]]:
    """Return rules for ``calls``, and for ``body``, which is what follows a ``<tool_call>``.

    With them come the grammar of each tool's arguments, and what asks for it.

    Args:
        tools: What may be called.
        parallel: Whether there may be several calls.
        strict: Whether only the arguments of strict tools follow their schemas.
    """
    rules = []
    names = []
    parts = []
    for i, tool in enumerate(tools):
        parameters = {"type": "object", **tool.parameters}
        if strict and not tool.strict:
            parameters = {"type": "object"}
        head = '{"name": ' + json.dumps(tool.name, ensure_ascii=False) + ', "arguments": '
        names.append(f"call{i}")
        arguments = _json(parameters, "tools")
        parts.append((f"start: {arguments}", "tools", f"tool {i}: "))
        rules.append(f"args{i}: {arguments}")
        rules.append(f'call{i}: {json.dumps(head, ensure_ascii=False)} args{i} "}}"')
    # The tags are tokens of their own.
    rules.append(f'body: "\\n" ({" | ".join(names)}) "\\n" </tool_call>')
    rules.append("one: <tool_call> body")
    rules.append("calls: one" + (' ("\\n" one)*' if parallel else ""))
    return "\n".join(rules), tuple(parts)

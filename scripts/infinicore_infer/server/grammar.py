"""Which grammar a request asks for: its form, calls of tools, or either."""

from __future__ import annotations

import json
from collections.abc import Sequence

from infinicore_infer.generate.grammar import Grammar
from infinicore_infer.server.chat_request import ChatRequest, Tool
from infinicore_infer.server.forms import json_rule


def choose_grammar(request: ChatRequest) -> Grammar | None:
    """Return the grammar that a request asks for, or ``None``.

    Raises:
        FieldError: A schema is too large.
    """
    form = request.form
    tools, choice = request.offered_tools(), request.tool_choice
    if not tools:
        return None if form is None else form.grammar()
    parallel = request.parallel_calls
    if choice.kind != "auto":
        called = [tool for tool in tools if choice.kind == "required" or tool.name == choice.name]
        rules, parts = _call_rules(called, parallel)
        return Grammar(f"start: calls\n{rules}", "tools", parts=parts)
    if form is not None:
        rules, parts = _call_rules(tools, parallel)
        text = f"start: answer | calls\nanswer: {form.rule}\n{rules}"
        return Grammar(text, "tools", parts=(form.grammar(), *parts))
    if any(tool.strict for tool in tools):
        rules, parts = _call_rules(tools, parallel, strict=True)
        return Grammar(f"start: body\n{rules}", "tools", True, parts)
    return None


def _call_rules(
    tools: Sequence[Tool], parallel: bool, *, strict: bool = False
) -> tuple[str, tuple[Grammar, ...]]:
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
        arguments = json_rule(parameters, "tools")
        parts.append(Grammar(f"start: {arguments}", "tools", what=f"tool {i}: the schema"))
        rules.append(f"args{i}: {arguments}")
        rules.append(f'call{i}: {json.dumps(head, ensure_ascii=False)} args{i} "}}"')
    # The tags are tokens of their own.
    rules.append(f'body: "\\n" ({" | ".join(names)}) "\\n" </tool_call>')
    rules.append("one: <tool_call> body")
    rules.append("calls: one" + (' ("\\n" one)*' if parallel else ""))
    return "\n".join(rules), tuple(parts)

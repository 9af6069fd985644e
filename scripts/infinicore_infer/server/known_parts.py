"""Keys inside messages, their parts, items and tools: none of them vanishes silently either."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice

from infinicore_infer.server.known_fields import UNSERVED_TOOLS
from infinicore_infer.server.unknown_fields import is_known

# What is read, what only tells where something is from, and what clients copy from answers.
_COPIED = frozenset((
    *("id", "type", "status", "name", "index", "cache_control", "citations", "annotations"),
    *("signature", "encrypted_content", "data", "caller", "phase", "created_by", "logprobs"),
    *("prompt_cache_breakpoint", "provider_specific_fields", "reasoning_details", "parsed"),
    *("provider_data", "extra_content", "thought_signature"),
))  # fmt: skip
_MESSAGE = _COPIED | {
    *("role", "content", "refusal", "reasoning", "reasoning_content", "tool_calls"),
    *("tool_call_id", "tool_name", "thinking", "thinking_blocks"),
    # Claude Code's effort from there on, of which the model knows nothing.
    "output_config",
    # Items of /v1/responses.
    *("call_id", "arguments", "output", "input", "summary", "action", "operation"),
}  # fmt: skip
_PART = _COPIED | {"text", "refusal", "thinking", "input", "tool_use_id", "content", "is_error"}
_CALL = _COPIED | {"function"}
_FUNCTION = frozenset(("name", "arguments", "description", "parameters", "strict"))
# The rest is how a client's own program or a provider serves them.
_TOOL = _FUNCTION | {
    *("type", "function", "input_schema", "cache_control", "defer_loading", "allowed_callers"),
    *("eager_input_streaming", "output_schema", "id"),
}  # fmt: skip
# How DeepSeek's and Qwen's APIs say that the last message goes on; see ChatFields.ending.
_GOES_ON = ("prefix", "partial")
# Longer headers are nobody's, and so many are told at once.
_MOST = 100


def _keys(value: Mapping[str, object], known: Collection[str], where: str) -> Iterator[str]:
    for name, item in value.items():
        if name not in known and not is_known(name, item, where):
            yield f"{where}.{name}"


def _objects(value: object, where: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    for i, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, dict):
            yield f"{where}[{i}]", item


def _in_message(message: Mapping[str, object], where: str) -> Iterator[str]:
    yield from _keys(message, _MESSAGE, where)
    for name in ("content", "output", "summary"):
        for place, part in _objects(message.get(name), f"{where}.{name}"):
            yield from _keys(part, _PART, place)
            for inner_place, inner in _objects(part.get("content"), f"{place}.content"):
                yield from _keys(inner, _PART, inner_place)
    for place, call in _objects(message.get("tool_calls"), f"{where}.tool_calls"):
        yield from _keys(call, _CALL, place)
        yield from _in_function(call, place)


def _in_function(value: Mapping[str, object], where: str) -> Iterator[str]:
    function = value.get("function")
    if isinstance(function, dict):
        yield from _keys(function, _FUNCTION, f"{where}.function")


def _read(body: Mapping[str, object]) -> Mapping[str, object]:
    """Return a body without what says that its last message goes on, if it does."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return body
    last = messages[-1]
    if not isinstance(last, dict) or last.get("role") != "assistant" or last.get("tool_calls"):
        return body
    goes_on = body.get("continue_final_message")
    if goes_on is False or (goes_on is None and body.get("add_generation_prompt") is not None):
        return body
    rest = {k: v for k, v in last.items() if k not in _GOES_ON or v is not True}
    return body if len(rest) == len(last) else {**body, "messages": [*messages[:-1], rest]}


def _all(body: Mapping[str, object]) -> Iterator[str]:
    body = _read(body)
    for name in ("messages", "input", "system"):
        for place, message in _objects(body.get(name), name):
            yield from (
                _in_message(message, place) if name != "system" else _keys(message, _PART, place)
            )
    for place, tool in _objects(body.get("tools"), "tools"):
        kind = tool.get("type")
        if kind != "custom" and isinstance(kind, str) and UNSERVED_TOOLS.fullmatch(kind):
            continue
        if kind != "custom" or "input_schema" in tool:
            yield from _keys(tool, _TOOL, place)
            yield from _in_function(tool, place)


def unknown_parts(body: Mapping[str, object]) -> list[str]:
    """Return the places of a request's keys that no table has, such as ``messages[0].foo``.

    Only the first hundred of them.

    Args:
        body: The request, as it came.

    Raises:
        ApiError: One would change the answer if it were obeyed, which it is not.
    """
    return list(islice(_all(body), _MOST))

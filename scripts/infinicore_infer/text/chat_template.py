"""Chat templates: a conversation becomes the text of a prompt, as transformers renders it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

Message = Mapping[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "tool")


class TokenizerError(ValueError):
    """Tokenizer files are missing or damaged, or messages do not fit the chat template."""


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Check a conversation and return it ready for a template.

    Keys whose value is ``None`` are dropped, the role ``developer`` becomes ``system``,
    ``reasoning`` becomes ``reasoning_content``, and content given as a list of text parts becomes
    one string.

    Raises:
        TokenizerError: Something is missing or of a wrong type; the message names the index.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise TokenizerError("messages must be a list of at least one message")
    result = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise TokenizerError(f"{where} must be an object, got {type(message).__name__}")
        clean = {key: value for key, value in message.items() if value is not None}
        role = clean.get("role")
        if role not in _ROLES:
            raise TokenizerError(f"{where}: role is {role!r}; known roles: {', '.join(_ROLES)}")
        if "content" in clean:
            clean["content"] = _content_text(where, clean["content"])
        elif role == "assistant" and clean.get("tool_calls"):
            # What the API clients of tool calls send; templates expect a string.
            clean["content"] = ""
        else:
            raise TokenizerError(f"{where}: has no content")
        if role == "developer":
            # Its newer name; Qwen3's template would drop the message without a word.
            clean["role"] = "system"
        if "reasoning" in clean:
            clean.setdefault("reasoning_content", clean.pop("reasoning"))
        if not isinstance(clean.get("reasoning_content", ""), str):
            raise TokenizerError(f"{where}: reasoning_content must be a string")
        calls = clean.get("tool_calls", [])
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise TokenizerError(f"{where}: tool_calls must be a list of objects")
        for number, call in enumerate(calls):
            # Templates take both forms. Without a name they would fail, or write nonsense.
            function = call.get("function", call)
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise TokenizerError(f"{where}: tool_calls[{number}] has no function with a name")
        result.append(clean)
    return result


def _content_text(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TokenizerError(f"{where}: content must be a string or a list of text parts")
    texts = []
    for number, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise TokenizerError(f"{where}: content part {number} is {kind!r}; only text is known")
        if not isinstance(part.get("text"), str):
            raise TokenizerError(f"{where}: content part {number} has no text")
        texts.append(part["text"])
    return "".join(texts)


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which models were not trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@lru_cache(maxsize=8)
def _compile_template(source: str) -> Any:
    """Compile a template; sandboxed, because templates come with downloaded checkpoints."""
    # Imported where it is used: programs that send no chat need not wait for it.
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def render(
    source: str,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> str:
    """Render a conversation.

    Args:
        source: The template.
        messages: As :func:`check_messages` returns them.
        tools: JSON schemas of functions the model may call.
        add_generation_prompt: Whether the text ends where the answer begins.
        variables: What else the template can see.

    Raises:
        TokenizerError: The template is wrong, or it refuses the messages.
    """
    from jinja2 import TemplateError

    try:
        rendered: str = _compile_template(source).render(
            messages=messages,
            tools=None if tools is None else list(tools),
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        return rendered
    except (TemplateError, TypeError) as error:
        raise TokenizerError(f"the chat template failed: {error}") from error

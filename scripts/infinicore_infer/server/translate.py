"""Other protocols' requests as chat completions: what /v1/responses and /v1/messages share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel

from infinicore_infer.server.errors import ApiError, from_exception
from infinicore_infer.server.openai.fields import ChatBody

# Sampling settings that all protocols take, under the same names.
SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "logit_bias", "ignore_eos", "stop_token_ids", "chat_template_kwargs"),
    *("thinking_budget", "repetition_detection"),
)


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors name the fields of the client's protocol.

    Args:
        names: The client's name of a field of chat completions.
    """
    try:
        yield
    except Exception as error:
        problem = from_exception(error)
        if problem.param is not None:
            name = re.match(r"\w*", problem.param)
            own = names.get(name[0] if name else "")
            if own is not None:
                if problem.message.startswith(problem.param):
                    problem.message = own + problem.message[len(problem.param) :]
                problem.param = own
        raise problem from error


def chat_body(request: BaseModel, fields: dict[str, Any]) -> ChatBody:
    """Return a request to chat completions.

    Args:
        request: The client's; sampling settings are taken from it as they are.
        fields: What else there is; ``None`` is not given.
    """
    given = {name: getattr(request, name, None) for name in SAMPLING}
    body = {name: value for name, value in {**given, **fields}.items() if value is not None}
    return ChatBody.model_validate(body)


def bad_field(where: str, message: str) -> ApiError:
    """Return an error about a field."""
    return ApiError(400, f"{where}: {message}", where)


def text_of(content: Any, kinds: tuple[str, ...], where: str) -> str:
    """Return the text of a string or of a list of blocks.

    Args:
        content: From the client.
        kinds: Block types that have ``text``.
        where: The field's name, for errors.

    Raises:
        ApiError: It is something else, such as an image.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_field(where, "must be a string or a list of blocks")
    texts = []
    for i, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in kinds:
            raise bad_field(f"{where}[{i}]", f"type {kind!r} is not supported; only text is")
        text = block.get("text", block.get("refusal"))
        if not isinstance(text, str):
            raise bad_field(f"{where}[{i}]", "has no text")
        texts.append(text)
    return "".join(texts)


def call_entry(identity: Any, name: Any, arguments: Any, where: str) -> dict[str, Any]:
    """Return an earlier call of a tool as chat completions write it.

    Raises:
        ApiError: A part of it is missing.
    """
    if not isinstance(identity, str) or not isinstance(name, str) or not name:
        raise bad_field(where, "a call needs an id and a name")
    function = {"name": name, "arguments": arguments}
    return {"id": identity, "type": "function", "function": function}

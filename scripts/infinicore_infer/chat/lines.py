"""Answers for programs: one JSON object per line in, one or more per line out.

docs/command-line.md has the fields.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from libinfinicore_infer import Qwen3Error

from infinicore_infer.causal_lm import KVCache, Qwen3ForCausalLM
from infinicore_infer.chat import settings as chat_settings
from infinicore_infer.chat.answering import answer, report
from infinicore_infer.chat.conversation import Conversation, opens_thinking
from infinicore_infer.chat.streams import write, writes_utf8
from infinicore_infer.text.output import OutputParser
from infinicore_infer.text.parts import Content, Part, Reasoning

_FIELDS = ("id", "prompt", "messages", "system", "thinking", "raw", "stream")


def write_line(kind: str, **fields: Any) -> None:
    """Write an object of a type."""
    value = {"type": kind, **fields}
    write(json.dumps(value, ensure_ascii=not writes_utf8()) + "\n")


def write_error(error: object, request: Any = None) -> None:
    """Write what went wrong; ``request``: the id of the request that it went wrong with."""
    write_line("error", id=request, message=str(error))


@dataclass(slots=True)
class _Request:
    """What a line asks for.

    Attributes:
        conversation: How it is answered; its messages come before the question, or are all there
            is.
        question: The prompt; ``None``: the messages end with it.
        stream: Whether pieces are written as they come.
    """

    conversation: Conversation
    question: str | None
    stream: bool

    def prompt(self, model: Qwen3ForCausalLM) -> str:
        if self.question is not None:
            return self.conversation.prompt(model, self.question)
        return model.chat_prompt(
            self.conversation.messages, enable_thinking=self.conversation.thinking
        )


def _flag(value: Mapping[str, Any], name: str, default: bool) -> bool:
    flag = value.get(name, default)
    if not isinstance(flag, bool):
        raise ValueError(f"{name} must be true or false, got {json.dumps(flag)}")
    return flag


def _read(value: Mapping[str, Any], defaults: Conversation) -> _Request:
    """Return what an object asks for.

    Raises:
        ValueError: A field is unknown, missing or of a wrong type.
    """
    for name in value:
        if name not in _FIELDS and name not in chat_settings.NAMES:
            known = ", ".join((*_FIELDS, *chat_settings.NAMES))
            raise ValueError(f"there is no field {json.dumps(name)}; there are {known}")
    own = {name: value[name] for name in chat_settings.NAMES if value.get(name) is not None}
    chat_settings.inside(own)
    conversation = replace(
        defaults,
        settings={**defaults.settings, **own},
        thinking=_flag(value, "thinking", defaults.thinking),
        raw=_flag(value, "raw", defaults.raw),
        messages=[],
    )
    stream = _flag(value, "stream", False)
    if ("prompt" in value) == ("messages" in value):
        raise ValueError("give either prompt or messages")
    if "messages" in value:
        if "system" in value or conversation.raw:
            raise ValueError("messages have their system message in them, and are never raw")
        conversation.messages = value["messages"]
        return _Request(conversation, None, stream)
    for name in ("prompt", "system"):
        text = value.get(name, "")
        if not isinstance(text, str) or (name == "prompt" and not text.strip()):
            raise ValueError(f"{name} must be a text that is not empty, got {json.dumps(text)}")
    if "system" in value:
        if conversation.raw:
            raise ValueError("system needs the chat template, which raw leaves out")
        conversation.system = value["system"] or None
    return _Request(conversation, value["prompt"], stream)


class _Answerer:
    """Answers requests one after the other; each goes on with the last one's cache if it can."""

    def __init__(self, model: Qwen3ForCausalLM, cache: KVCache, defaults: Conversation) -> None:
        self._model = model
        self._cache = cache
        self._defaults = defaults

    def serve(self, line: str) -> None:
        """Answer one line; whatever it asks wrongly becomes an error's line."""
        request = None
        try:
            value = _object(line)
            request = value.get("id")
            if isinstance(request, dict | list):
                request = None
                raise ValueError("id must be a text, a number, true, false or null")
            self._answer(_read(value, self._defaults), request)
        except (ValueError, MemoryError, NotImplementedError, Qwen3Error) as error:
            write_error(error, request)

    def _answer(self, request: _Request, name: Any) -> None:
        prompt = request.prompt(self._model)
        parser = OutputParser(thinking=opens_thinking(prompt))
        texts = {"reasoning": "", "content": ""}

        def take(parts: list[Part]) -> None:
            for part in parts:
                assert isinstance(part, Reasoning | Content)  # calls are not looked for
                kind = "reasoning" if isinstance(part, Reasoning) else "content"
                texts[kind] += part.text
                if request.stream:
                    write_line("piece", id=name, **{kind: part.text})

        result, _ = answer(
            self._model,
            prompt,
            request.conversation.generation_settings(),
            self._cache,
            lambda text: take(parser.push(text)),
        )
        take(parser.finish())
        write_line("answer", id=name, **texts, **report(result), reused_tokens=result.reused_tokens)


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"the line must be a JSON object, got {type(value).__name__}")
    return value


def _lines() -> Iterator[str]:
    """Yield the lines of standard input; what is not UTF-8 becomes what is not JSON."""
    if sys.stdin is not None:
        for line in sys.stdin.buffer:
            if line.strip():
                yield line.decode("utf-8", "surrogateescape")


def run_lines(model: Qwen3ForCausalLM, defaults: Conversation) -> None:
    """Answer requests from standard input until it ends.

    Args:
        model: The model.
        defaults: What holds where a request says nothing else.

    Raises:
        KeyboardInterrupt: Ctrl-C while no answer is in progress; during one it ends the answer.
        OSError: Standard output is closed.
    """
    with model.create_kv_cache() as cache:
        answerer = _Answerer(model, cache, defaults)
        write_line("ready", model=model.path.name, context=model.context_length)
        for line in _lines():
            answerer.serve(line)

"""Answers that must have a form: JSON, a JSON schema, a call of a tool. Grammars by llguidance."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray
from qwen3 import Qwen3ForCausalLM

from server.errors import ApiError
from server.jobs import Constraint
from server.schemas import ChatBody


def choose_grammar(body: ChatBody, tools: list[dict[str, Any]] | None) -> tuple[str, str] | None:
    """Return the grammar that a request asks for and the field that does, or ``None``.

    Raises:
        ApiError: Naming the field.
    """
    answer = _answer_grammar(body.response_format)
    if not tools or body.tool_choice in (None, "auto"):
        if answer is not None and tools:
            message = "response_format: together with tools it is not supported"
            raise ApiError(400, message, "response_format", "unsupported_parameter")
        return None if answer is None else (answer, "response_format")
    if isinstance(body.tool_choice, dict):
        name = body.tool_choice["function"]["name"]
        tools = [tool for tool in tools if tool["function"]["name"] == name]
    return _call_grammar(tools, body.parallel_tool_calls is not False), "tools"


def _answer_grammar(response_format: dict[str, Any] | None) -> str | None:
    name = "response_format"
    kind = (response_format or {}).get("type")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        schema: Any = {"type": "object"}
    elif kind == "json_schema":
        wrapper = response_format.get("json_schema")
        schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
        if not isinstance(schema, dict):
            raise ApiError(400, f"{name}.json_schema: has no schema object", name)
    else:
        raise ApiError(400, f"{name}: type {kind!r} is not supported", name)
    return _schema_grammar(schema)


def _schema_grammar(schema: Any) -> str:
    return f"start: %json {_options(schema)}"


def _options(schema: Any) -> str:
    # Without a limit, a small model can write spaces until its tokens are used up. The separators
    # are those that models see most.
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return json.dumps({**schema, "x-guidance": style})


def _call_grammar(tools: list[dict[str, Any]], parallel: bool) -> str:
    rules = []
    names = []
    for i, tool in enumerate(tools):
        function = tool["function"]
        parameters = function.get("parameters") or {"type": "object"}
        head = '{"name": ' + json.dumps(function["name"], ensure_ascii=False) + ', "arguments": '
        names.append(f"call{i}")
        rules.append(f"args{i}: %json {_options(parameters)}")
        rules.append(f'call{i}: {json.dumps(head, ensure_ascii=False)} args{i} "}}"')
    more = ' ("\\n" one)*' if parallel else ""
    # The tags are tokens of their own.
    rules.append("one: <tool_call> " + f'"\\n" ({" | ".join(names)}) "\\n" ' + "</tool_call>")
    return "\n".join([f"start: one{more}", *rules])


class GrammarConstraint:
    """Lets only tokens come that a grammar allows, after the thinking if there is any."""

    def __init__(
        self,
        matcher: llguidance.LLMatcher,
        dvoc: int,
        *,
        think: int | None,
        think_end: int | None,
        thinking: bool,
    ) -> None:
        """Start.

        Args:
            matcher: A fresh matcher of the grammar.
            dvoc: Size of the vocabulary.
            think: A token that may come first and begins free text.
            think_end: The token that ends free text.
            thinking: Whether free text has begun already.
        """
        self._matcher = matcher
        self._dvoc = dvoc
        self._think = think
        self._think_end = think_end
        self._free = thinking
        self._first = True
        self._bits = llguidance.numpy.allocate_token_bitmask(1, dvoc)

    def mask(self) -> NDArray[np.uint32] | None:
        """Return the bit mask of allowed tokens, or ``None`` for all.

        Raises:
            RuntimeError: The grammar has no way to go on.
        """
        if self._free:
            return None
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits, 0)
        if self._matcher.is_error():
            raise RuntimeError(f"grammar: {self._matcher.get_error()}")
        mask: NDArray[np.uint32] = self._bits[0].view(np.uint32)
        if self._first and self._think is not None:
            mask[self._think // 32] |= np.uint32(1 << (self._think % 32))
        return mask

    def accept(self, token: int) -> None:
        """Take the token that was chosen.

        Raises:
            RuntimeError: The grammar does not allow it.
        """
        if self._free:
            self._free = token != self._think_end
        elif self._first and token == self._think:
            self._free = True
        elif not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            raise RuntimeError(f"grammar: {self._matcher.get_error()}")
        self._first = False


class Grammars:
    """Compiles grammars for a model's tokenizer; the latest ones are kept."""

    def __init__(self) -> None:
        """Start empty; the tokenizer is read at the first use."""
        self._model: Qwen3ForCausalLM | None = None
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._matcher = lru_cache(maxsize=64)(self._compile)

    def attach(self, model: Qwen3ForCausalLM) -> None:
        """Use a model."""
        self._model = model

    def _compile(self, grammar: str) -> llguidance.LLMatcher:
        assert self._model is not None
        if self._tokenizer is None:
            text = (self._model.path / "tokenizer.json").read_text("utf-8")
            meta = self._model.meta
            self._tokenizer = llguidance.LLTokenizer(
                text, n_vocab=meta.dvoc, eos_token=list(meta.end_tokens)
            )
        return llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)

    def factory(
        self, grammar: tuple[str, str], *, may_think: bool, thinking: bool
    ) -> Callable[[], Constraint]:
        """Return a function that makes constraints of a grammar.

        Args:
            grammar: From :func:`choose_grammar`.
            may_think: Whether the answer may begin with thinking.
            thinking: Whether the prompt has begun it.

        Raises:
            ApiError: The grammar, that is the schema, is not understood.
        """
        assert self._model is not None
        text, param = grammar
        matcher = self._matcher(text)
        if matcher.is_error():
            line = str(matcher.get_error()).strip().splitlines()[0]
            raise ApiError(400, f"{param}: the schema is not supported: {line}", param)
        tokenizer, dvoc = self._model.tokenizer, self._model.meta.dvoc
        think = tokenizer.token_id("<think>") if may_think else None
        think_end = tokenizer.token_id("</think>")
        return lambda: GrammarConstraint(
            matcher.deep_copy(), dvoc, think=think, think_end=think_end, thinking=thinking
        )

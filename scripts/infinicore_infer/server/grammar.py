"""Answers that must have a form: JSON, a JSON schema, a call of a tool. Grammars by llguidance."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray

from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.generate.constraint import Constraint
from infinicore_infer.server.errors import ApiError
from infinicore_infer.server.openai.fields import ChatBody
from infinicore_infer.text.tool_calls import CALL, CALL_END

_MAX_PROPERTIES = 1000
_MAX_GRAMMAR = 256 << 10


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must be like.

    Attributes:
        text: The grammar, in llguidance's notation.
        param: The field of the request that asks for it.
        calls_only: Whether it is only about what follows ``<tool_call>``; other text is free.
        answer: The part of it that ``response_format`` asks for, where ``param`` is another field.
    """

    text: str
    param: str
    calls_only: bool = False
    answer: str | None = None

    def __post_init__(self) -> None:
        """Refuse what takes too long to compile.

        Raises:
            ApiError: Naming the field.
        """
        if len(self.text) > _MAX_GRAMMAR:
            message = f"{self.param}: the schemas have {len(self.text)} characters"
            raise ApiError(400, f"{message}; at most {_MAX_GRAMMAR} are supported", self.param)


def choose_grammar(body: ChatBody, tools: list[dict[str, Any]] | None) -> Grammar | None:
    """Return the grammar that a request asks for, or ``None``.

    Raises:
        ApiError: Naming the field.
    """
    answer = _answer_schema(body.response_format)
    if not tools:
        return None if answer is None else Grammar(f"start: {answer}", "response_format")
    parallel = body.parallel_tool_calls is not False
    if body.tool_choice not in (None, "auto"):
        if isinstance(body.tool_choice, dict):
            name = body.tool_choice["function"]["name"]
            tools = [tool for tool in tools if tool["function"]["name"] == name]
        return Grammar(f"start: calls\n{_call_rules(tools, parallel)}", "tools")
    if answer is not None:
        text = f"start: answer | calls\nanswer: {answer}\n{_call_rules(tools, parallel)}"
        return Grammar(text, "tools", answer=f"start: {answer}")
    if any(tool["function"].get("strict") for tool in tools):
        return Grammar(f"start: body\n{_call_rules(tools, parallel, strict=True)}", "tools", True)
    return None


def _answer_schema(response_format: dict[str, Any] | None) -> str | None:
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
    return _json(schema, name)


def _check_size(schema: Any, param: str) -> None:
    """Refuse objects so large that compiling, whose time is quadratic, takes seconds."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        if isinstance(properties, dict) and len(properties) > _MAX_PROPERTIES:
            message = f"{param}: the schema has an object of {len(properties)} properties"
            raise ApiError(400, f"{message}; at most {_MAX_PROPERTIES} are supported", param)
    if isinstance(schema, dict | list):
        for item in schema.values() if isinstance(schema, dict) else schema:
            _check_size(item, param)


def _json(schema: dict[str, Any], param: str) -> str:
    """Return the right side of a rule for JSON of a schema.

    Raises:
        ApiError: It is too large.
    """
    _check_size(schema, param)
    # Without a limit, a small model can write spaces until its tokens are used up. The separators
    # are those that models see most.
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return f"%json {json.dumps({**schema, 'x-guidance': style})}"


def _call_rules(tools: list[dict[str, Any]], parallel: bool, *, strict: bool = False) -> str:
    """Return rules for ``calls``, and for ``body``, which is what follows a ``<tool_call>``.

    Args:
        tools: What may be called.
        parallel: Whether there may be several calls.
        strict: Whether only the arguments of strict tools follow their schemas.
    """
    rules = []
    names = []
    for i, tool in enumerate(tools):
        function = tool["function"]
        parameters = function.get("parameters")
        if not parameters or (strict and not function.get("strict")):
            parameters = {"type": "object"}
        head = '{"name": ' + json.dumps(function["name"], ensure_ascii=False) + ', "arguments": '
        names.append(f"call{i}")
        rules.append(f"args{i}: {_json(parameters, 'tools')}")
        rules.append(f'call{i}: {json.dumps(head, ensure_ascii=False)} args{i} "}}"')
    # The tags are tokens of their own.
    rules.append(f'body: "\\n" ({" | ".join(names)}) "\\n" </tool_call>')
    rules.append("one: <tool_call> body")
    rules.append("calls: one" + (' ("\\n" one)*' if parallel else ""))
    return "\n".join(rules)


@dataclass(frozen=True, slots=True)
class Marks:
    """Tokens that a grammar does not speak of; ``None`` is one that cannot come.

    Attributes:
        think: Begins thinking, as the first token only.
        think_end: Ends it.
        gap: The empty line that models write after it.
        call: Begins a call.
        call_end: Ends it.
    """

    think: int | None
    think_end: int | None
    gap: int | None
    call: int | None
    call_end: int | None


class GrammarConstraint:
    """Lets only tokens come that a grammar allows, after the thinking if there is any."""

    def __init__(
        self,
        matcher: llguidance.LLMatcher,
        dvoc: int,
        marks: Marks,
        *,
        thinking: bool,
        calls_only: bool = False,
    ) -> None:
        """Start.

        Args:
            matcher: A matcher of the grammar, which is only copied.
            dvoc: Size of the vocabulary.
            marks: Tokens with a meaning.
            thinking: Whether thinking has begun already.
            calls_only: Whether the grammar is that of each call; other text is free.
        """
        self._template = matcher
        self._matcher = None if calls_only else matcher.deep_copy()
        self._dvoc = dvoc
        self._marks = marks
        self._thinking = thinking
        self._calls_only = calls_only
        # What may come besides.
        self._extra = marks.think
        self._bits = llguidance.numpy.allocate_token_bitmask(1, dvoc)

    def mask(self) -> NDArray[np.uint32] | None:
        """Return the bit mask of allowed tokens, or ``None`` for all.

        Raises:
            RuntimeError: The grammar has no way to go on.
        """
        if self._thinking or self._matcher is None:
            return None
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits, 0)
        if self._matcher.is_error():
            raise RuntimeError(f"grammar: {self._matcher.get_error()}")
        mask: NDArray[np.uint32] = self._bits[0].view(np.uint32)
        if self._extra is not None:
            mask[self._extra // 32] |= np.uint32(1 << (self._extra % 32))
        return mask

    def accept(self, token: int) -> None:
        """Take the token that was chosen.

        Raises:
            RuntimeError: The grammar does not allow it.
        """
        marks, extra, self._extra = self._marks, self._extra, None
        if self._thinking:
            self._thinking = token != marks.think_end
            self._extra = None if self._thinking else marks.gap
        elif token == extra:
            self._thinking = token == marks.think
        elif self._matcher is None:
            self._matcher = self._template.deep_copy() if token == marks.call else None
        else:
            if not self._matcher.is_stopped() and not self._matcher.consume_token(token):
                raise RuntimeError(f"grammar: {self._matcher.get_error()}")
            if self._calls_only and token == marks.call_end:
                self._matcher = None


class Grammars:
    """Compiles grammars for a model's tokenizer; the latest ones are kept."""

    def __init__(self) -> None:
        """Start without a model."""
        self._model: Qwen3ForCausalLM | None = None
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._matcher = lru_cache(maxsize=64)(self._compile)
        # One of its own, so that large schemas hold up nobody but those who have some as well.
        self._executor = ThreadPoolExecutor(1, "grammars")

    def attach(self, model: Qwen3ForCausalLM) -> None:
        """Use a model. Takes a second or two with a large vocabulary, and nobody else gets a turn.

        So it is not left to the first request that needs it.
        """
        self._model = model
        path = model.path / "tokenizer.json"
        # Without it there are no conversations, only completions of token ids.
        if path.is_file():
            self._tokenizer = llguidance.LLTokenizer(
                path.read_text("utf-8"),
                n_vocab=model.meta.dvoc,
                eos_token=list(model.meta.end_tokens),
            )

    def _compile(self, grammar: str) -> llguidance.LLMatcher:
        assert self._tokenizer is not None
        return llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)

    def factory(
        self, grammar: Grammar, *, may_think: bool, thinking: bool
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
        if grammar.answer is not None:
            self._checked(grammar.answer, "response_format")
        matcher = self._checked(grammar.text, grammar.param)
        tokenizer, dvoc = self._model.tokenizer, self._model.meta.dvoc
        gap = tokenizer.encode("\n\n")
        marks = Marks(
            tokenizer.token_id("<think>") if may_think else None,
            tokenizer.token_id("</think>"),
            gap[0] if len(gap) == 1 else None,
            tokenizer.token_id(CALL),
            tokenizer.token_id(CALL_END),
        )
        return lambda: GrammarConstraint(
            matcher, dvoc, marks, thinking=thinking, calls_only=grammar.calls_only
        )

    async def prepare(
        self, grammar: Grammar, *, may_think: bool, thinking: bool
    ) -> Callable[[], Constraint]:
        """Do what :meth:`factory` does in a thread of its own; see there."""
        work = partial(self.factory, grammar, may_think=may_think, thinking=thinking)
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _checked(self, text: str, param: str) -> llguidance.LLMatcher:
        matcher = self._matcher(text)
        if matcher.is_error():
            reason = " ".join(str(matcher.get_error()).split())[:300]
            raise ApiError(400, f"{param}: the schema is not supported: {reason}", param)
        return matcher

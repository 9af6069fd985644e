"""Grammars without a model: whatever tokens are drawn among those allowed, the form is right."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from infinicore_infer.generate.constraint import Constraint
from infinicore_infer.generate.grammar import Grammars
from infinicore_infer.server.grammar import choose_grammar
from infinicore_infer.server.openai.fields import ChatBody
from infinicore_infer.text.output import Arguments, Call, Content, OutputParser
from qwen3 import Qwen3ForCausalLM
from serving import CAPITAL

STRICT: dict[str, Any] = {
    "type": "object",
    "properties": {"town": {"enum": ["Oslo", "</tool_call>"]}, "days": {"enum": [1, 2]}},
    "required": ["town", "days"],
    "additionalProperties": False,
}
LOOSE: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORM = {
    "type": "json_schema",
    "json_schema": {"schema": {**STRICT, "properties": {"town": {"const": "x"}, "days": {}}}},
}


def tool(name: str, parameters: Any, **extra: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **extra}}


TOOLS = [tool("ask", STRICT, strict=True), tool("tell", LOOSE)]


@pytest.fixture(scope="module")
def grammars(reference: Qwen3ForCausalLM) -> Grammars:
    grammars = Grammars()
    grammars.attach(reference)
    return grammars


def constraint(grammars: Grammars, thinking: bool = False, **fields: Any) -> Constraint:
    body = ChatBody.model_validate({"messages": CAPITAL, **fields})
    grammar = choose_grammar(body.chat_request())
    assert grammar is not None
    return grammars.factory(grammar, may_think=True, thinking=thinking)()


def allowed(mask: Any, dvoc: int) -> list[int]:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[:dvoc]
    return [int(token) for token in np.flatnonzero(bits)]


def write(
    model: Qwen3ForCausalLM, grammar: Constraint, rng: random.Random, favourites: list[int]
) -> str | None:
    """Draws tokens up to an end token, often among favourites; ``None`` if it takes too long."""
    ends = set(model.meta.end_tokens)
    tokens: list[int] = []
    for _ in range(250):
        mask = grammar.mask()
        options = list(range(model.meta.dvoc)) if mask is None else allowed(mask, model.meta.dvoc)
        assert options
        good = [token for token in favourites if token in options]
        token = rng.choice(good if good and rng.random() < 0.8 else options)
        grammar.accept(token)
        if token in ends:
            return model.tokenizer.decode(tokens, skip_special=True)
        tokens.append(token)
    return None


def calls_of(text: str) -> tuple[str, list[tuple[str, Any]]]:
    parser = OutputParser(tools=True)
    parts = parser.push(text) + parser.finish()
    content, calls = "", []
    for part in parts:
        if isinstance(part, Call):
            calls.append([part.name, ""])
        elif isinstance(part, Arguments):
            calls[-1][1] += part.text
        elif isinstance(part, Content):
            content += part.text
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


def check_calls(calls: list[tuple[str, Any]]) -> None:
    for name, value in calls:
        assert name in ("ask", "tell") and isinstance(value, dict)
        if name == "ask":
            assert set(value) == {"town", "days"}
            assert value["town"] in ("Oslo", "</tool_call>") and value["days"] in (1, 2)


def test_strict_calls_amid_free_text(reference: Qwen3ForCausalLM, grammars: Grammars) -> None:
    tokenizer = reference.tokenizer
    tag, end = tokenizer.token_id("<tool_call>"), tokenizer.token_id("</tool_call>")
    assert tag is not None and end is not None
    favourites = [tag, end, reference.meta.end_tokens[0], *tokenizer.encode('"}Hi')]
    seen = 0
    for seed in range(60):
        grammar = constraint(grammars, tools=TOOLS)
        assert grammar.mask() is None
        text = write(reference, grammar, random.Random(seed), favourites)
        # A stray end token of a call is free text as well.
        if text is None or "<think>" in text:
            continue
        _, calls = calls_of(text)
        check_calls(calls)
        assert len(calls) == text.count("<tool_call>")
        seen += len(calls)
    assert seen > 20


def test_call_or_answer(reference: Qwen3ForCausalLM, grammars: Grammars) -> None:
    tokenizer = reference.tokenizer
    ends = [*reference.meta.end_tokens, *tokenizer.encode('"}'), *tokenizer.encode("null")]
    kinds = set()
    for seed in range(40):
        grammar = constraint(grammars, tools=TOOLS, response_format=FORM)
        text = write(reference, grammar, random.Random(seed), ends)
        if text is None or "<think>" in text:
            continue
        content, calls = calls_of(text)
        check_calls(calls)
        assert bool(content) != bool(calls)
        if content:
            assert json.loads(content)["town"] == "x"
        kinds.add(bool(calls))
    assert kinds == {False, True}


def test_empty_line_after_thinking(reference: Qwen3ForCausalLM, grammars: Grammars) -> None:
    """Models write one there, so it may come: once, and nowhere else."""
    dvoc = reference.meta.dvoc
    think, end = (reference.tokenizer.token_id(tag) for tag in ("<think>", "</think>"))
    (gap,) = reference.encode("\n\n")
    assert think is not None and end is not None
    ends = reference.meta.end_tokens
    for opened in (False, True):
        grammar = constraint(grammars, opened, response_format=FORM)
        if not opened:
            first = allowed(grammar.mask(), dvoc)
            assert think in first and gap not in first
            grammar.accept(think)
        # An answer that ended amid its thinking would not have the form.
        assert set(range(dvoc)) - set(allowed(grammar.mask(), dvoc)) == set(ends)
        grammar.accept(7)
        grammar.accept(end)
        then = allowed(grammar.mask(), dvoc)
        assert gap in then and think not in then
        grammar.accept(gap)
        assert set(allowed(grammar.mask(), dvoc)) == set(then) - {gap}


def test_tags_in_thinking_are_no_calls(reference: Qwen3ForCausalLM, grammars: Grammars) -> None:
    end, tag = (reference.tokenizer.token_id(text) for text in ("</think>", "<tool_call>"))
    assert end is not None and tag is not None
    grammar = constraint(grammars, True, tools=TOOLS)
    for token, free in ((tag, True), (5, True), (end, True), (6, True), (tag, False)):
        grammar.accept(token)
        assert (grammar.mask() is None) == free


def test_text_after_a_call_is_free_again(reference: Qwen3ForCausalLM, grammars: Grammars) -> None:
    grammar = constraint(grammars, tools=TOOLS)
    body = '{"name": "ask", "arguments": {"town": "Oslo", "days": 2}}'
    for token in reference.encode(f"Hm. <tool_call>\n{body}\n</tool_call>"):
        grammar.accept(token)
    assert grammar.mask() is None
    for token in reference.encode("And <tool_call>\n"):
        grammar.accept(token)
    assert grammar.mask() is not None
    wrong = '{"name": "ask", "arguments": {"town": "Rome"'
    with pytest.raises(RuntimeError, match="grammar"):
        for token in reference.encode(wrong):
            grammar.accept(token)


def test_the_tokenizer_is_read_beforehand(
    reference: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes long and lets no other thread run, which no request should have to wait for."""
    grammars = Grammars()
    grammars.attach(reference)
    monkeypatch.setattr("llguidance.LLTokenizer", None)
    assert constraint(grammars, response_format=FORM).mask() is not None


def test_who_asks_for_a_grammar() -> None:
    """Nobody, unless a tool is strict, must be called, or the answer has a form."""

    def choice(**fields: Any) -> tuple[str, bool] | None:
        body = ChatBody.model_validate({"messages": CAPITAL, **fields})
        grammar = choose_grammar(body.chat_request())
        return grammar and (grammar.field, grammar.calls_only)

    assert choice() is None and choice(tools=TOOLS[1:]) is None
    assert choice(response_format={"type": "text"}, tools=TOOLS[1:]) is None
    assert choice(tools=TOOLS) == ("tools", True)
    assert choice(tools=TOOLS[1:], tool_choice="required") == ("tools", False)
    assert choice(response_format=FORM) == ("response_format", False)
    assert choice(response_format=FORM, tools=TOOLS) == ("tools", False)

"""Schemas whose grammars take ever more work: refused at once, or followed to the end."""

from __future__ import annotations

import random
import re
from typing import Any

import llguidance
import numpy as np
import pytest
from infinicore_infer.errors import FieldError
from infinicore_infer.generate.grammar import Grammars
from infinicore_infer.server.forms import json_form
from qwen3 import Qwen3ForCausalLM
from serving import CAPITAL, LiveServer

STEPS = 250
HARD = [
    "(.{0,900}a){0,90}",
    "(.{0,200}a){0,20}",
    "(.{0,200}e){0,10}",
    "(.{0,100}e){0,20}",
    "(.{0,300}e){0,3}",
    ".*e.{0,2000}",
    "(.{0,400}#){0,20}",
    "((.{0,30}e){0,30}a){0,9}",
]
FOLLOWED = [
    ".*a.{30}",
    ".*a.{200}",
    r"(\w{0,63}\.){1,10}[a-z]{2,63}",
    "(a|b|ab|ba|.c){0,300}x",
    "(.{0,9}.{0,9}){0,9}a",
    "(.{0,20}a){0,20}",
    ".{0,4000}",
    "(.|..|...|....){0,50}",
]


@pytest.fixture(scope="module")
def grammars(reference: Qwen3ForCausalLM) -> Grammars:
    grammars = Grammars()
    grammars.attach(reference)
    return grammars


def _schema(*patterns: str) -> dict[str, Any]:
    return {"anyOf": [{"type": "string", "pattern": pattern} for pattern in patterns]}


def _written(model: Qwen3ForCausalLM, grammars: Grammars, schema: Any, seed: int) -> str:
    """Draws a long instance: what ends a string only comes where nothing else may."""
    rng = random.Random(seed)
    constraint = grammars.factory(
        json_form(schema, "x").grammar(), may_think=False, thinking=False
    )()
    ends, tokens = set(model.meta.end_tokens), []
    for _ in range(STEPS):
        mask = constraint.mask()
        assert mask is not None
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: model.meta.dvoc]
        options = np.flatnonzero(bits).tolist()
        assert options
        drawn = [rng.choice(options) for _ in range(9)]
        within = [t for t in drawn if t not in ends and b'"' not in model.tokenizer.token_bytes(t)]
        token = (within or drawn)[0]
        constraint.accept(token)
        if token in ends:
            break
        tokens.append(token)
    return model.tokenizer.decode(tokens, skip_special=False)


@pytest.mark.parametrize("pattern", HARD)
def test_hard_patterns(reference: Qwen3ForCausalLM, grammars: Grammars, pattern: str) -> None:
    """Refused with the reason; if a small vocabulary makes them easy, they are followed."""
    for schema in (
        {"type": "string", "pattern": pattern},
        {"type": "object", "patternProperties": {pattern: True}},
        _schema("x", pattern, "y"),
    ):
        try:
            _written(reference, grammars, schema, 1)
        except FieldError as error:
            assert "smaller counts" in error.message("x")


def test_a_hard_pattern_is_refused(server: LiveServer) -> None:
    schema = {"type": "string", "pattern": HARD[0]}
    tool = {"type": "function", "function": {"name": "f", "strict": True}}
    tool["function"] = {**tool["function"], "parameters": {"properties": {"a": schema}}}  # type: ignore[dict-item]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for change in ({"response_format": form}, {"tools": [tool]}):
        for stream in (False, True):
            body = {"messages": CAPITAL, "max_tokens": 1, "stream": stream, **change}
            response = server.post("/v1/chat/completions", body)
            assert response.status_code == 400, response.text
            error = response.json()["error"]
            assert error["param"] in change and "too much work" in error["message"]


@pytest.mark.parametrize("pattern", FOLLOWED)
def test_patterns_are_followed(
    reference: Qwen3ForCausalLM, grammars: Grammars, pattern: str
) -> None:
    for seed in range(2):
        text = _written(reference, grammars, {"type": "string", "pattern": pattern}, seed)
        if text.endswith('"') and "\\" not in text:
            assert re.search(pattern, text[1:-1], re.DOTALL), text


def test_counts_inside_each_other(reference: Qwen3ForCausalLM, grammars: Grammars) -> None:
    """And many alternatives at once."""
    schema: Any = {"enum": [f"value {i}" for i in range(200)]}
    for _ in range(3):
        schema = {"type": "array", "items": schema, "minItems": 2, "maxItems": 50}
    assert _written(reference, grammars, schema, 1).startswith("[[[")
    alternatives = _schema(*(f".{{0,9}}{chr(97 + i % 26)}{i}.{{0,99}}" for i in range(60)))
    assert _written(reference, grammars, alternatives, 1).startswith('"')


def test_room_for_states_comes_again(
    reference: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step of a long answer meets more of them; the limit is that of one matcher."""
    few = llguidance.LLParserLimits(step_lexer_fuel=4_000_000, max_lexer_states=3000)
    monkeypatch.setattr("infinicore_infer.generate.grammar.LIMITS", few)
    grammars = Grammars()
    grammars.attach(reference)
    schema = {"type": "string", "pattern": ".*a.{30}"}
    assert len(_written(reference, grammars, schema, 3)) > STEPS


def test_room_for_states_comes_again_amid_a_token(
    reference: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers share states, and there may be no room for another when a token is taken."""
    few = llguidance.LLParserLimits(step_lexer_fuel=4_000_000, max_lexer_states=600)
    monkeypatch.setattr("infinicore_infer.generate.grammar.LIMITS", few)
    grammars = Grammars()
    grammars.attach(reference)
    grammar = json_form({"type": "string", "pattern": ".*a.{30}"}, "x").grammar()
    for seed in range(12):
        rng = random.Random(seed)
        constraint = grammars.factory(grammar, may_think=False, thinking=False)()
        for token in reference.encode('"' + "".join(rng.choices("ab ", k=200))):
            constraint.accept(token)
        assert constraint.mask() is not None

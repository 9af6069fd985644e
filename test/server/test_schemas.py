"""Schemas: what is accepted only gives valid instances, whatever the model draws."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from infinicore_infer.errors import FieldError
from infinicore_infer.generate.grammar import Grammars
from infinicore_infer.server.forms import json_form
from infinicore_infer.server.grammar import choose_grammar
from infinicore_infer.server.openai.fields import ChatBody
from infinicore_infer.server.schemas import prepared
from qwen3 import Qwen3ForCausalLM
from schema_walks import allows, draw
from serving import CAPITAL, LiveServer

CHAT = "/v1/chat/completions"
REFUSED: list[Any] = [
    {"$ref": "#"},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"allOf": [{"$ref": "#"}, {"type": "integer"}]},
    {"type": "object", "properties": {"<|im_end|>": {"type": "integer"}}},
    {"enum": ["a<|im_start|>b"]},
    {"enum": []},
    {"type": "string", "pattern": "(?=a)b"},
    {"not": {"type": "string"}},
    {"if": {"type": "string"}, "then": {"minLength": 3}},
    {"type": "array", "contains": {"const": 1}},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    {"anyOf": [{"type": "object"}], "unevaluatedProperties": False},
    {"type": "object", "propertyNames": {"maxLength": 3}},
    {"type": "object", "properties": 3},
    {"type": {"a": 1}},
]


@pytest.fixture(scope="module")
def grammars(reference: Qwen3ForCausalLM) -> Grammars:
    grammars = Grammars()
    grammars.attach(reference)
    return grammars


@pytest.mark.parametrize("schema", REFUSED, ids=json.dumps)
def test_what_cannot_be_enforced_is_refused(server: LiveServer, schema: Any) -> None:
    """With the field's name, before anything is computed, and streamed answers likewise."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    function = {"name": "f", "parameters": schema}
    tools = [{"type": "function", "function": {"name": "g"}}, {"type": "function"}]
    tools[1]["function"] = function
    bodies: list[dict[str, Any]] = [
        {"response_format": form},
        {"tools": tools, "tool_choice": "required"},
        {"tools": [tools[0], {**tools[1], "function": {**function, "strict": True}}]},
    ]
    for body in bodies:
        for stream in (False, True):
            body |= {"messages": CAPITAL, "max_tokens": 1, "stream": stream}
            response = server.post(CHAT, body)
            # Arguments are always an object, so some of these have none that would be.
            assert response.status_code == 400, response.text
            param = response.json()["error"]["param"]
            assert param == "response_format" if "response_format" in body else "tools" in param


@pytest.mark.parametrize("schema", REFUSED[:5], ids=json.dumps)
def test_schemas_that_require_themselves(schema: Any) -> None:
    """Told apart before a grammar is made of them, in which some would be nothing at all."""
    with pytest.raises(FieldError, match="no instance that ends"):
        prepared(schema, "x")


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"$ref": "http://example.com/x"}, "$ref"),
        ({"$ref": "#nowhere"}, "$ref"),
        ({"$ref": "#/$defs/nothing"}, "$defs/nothing"),
        ({"patternProperties": {"a": {"const": 1}, "b": {"const": 2}}}, "patternProperties"),
        ({"multipleOf": 0.123456789, "type": "integer"}, "multipleOf"),
        ({"contains": {"const": 1}}, "contains"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern"),
        ({"minItems": -1}, "minItems"),
        ({"type": "strng"}, "strng"),
    ],
    ids=lambda value: json.dumps(value),
)
def test_refusals_name_the_keyword(grammars: Grammars, schema: Any, name: str) -> None:
    with pytest.raises(FieldError) as caught:
        grammars.factory(json_form(schema, "x").grammar(), may_think=False, thinking=False)
    message = caught.value.message("x")
    assert name in message and "x-guidance" not in message and "coerce" not in message, message


def test_names_of_tools(server: LiveServer) -> None:
    tools = [{"type": "function", "function": {"name": "a<|im_end|>b"}}]
    body = {"messages": CAPITAL, "max_tokens": 1, "tools": tools, "tool_choice": "required"}
    response = server.post(CHAT, body)
    assert response.status_code == 400 and response.json()["error"]["param"] == "tools"


@pytest.mark.parametrize(
    ("schema", "same"),
    [
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, None),
        ({"type": "number", "minimum": -(2**63), "maximum": 2**63 - 1}, None),
        ({"type": "string", "format": "path"}, {"type": "string"}),
        ({"type": "integer", "format": "int64"}, {"type": "integer"}),
        ({"type": "array", "uniqueItems": True}, {"type": "array"}),
        ({"title": "T", "description": "D", "default": 3, "type": "integer"}, {"type": "integer"}),
        (
            {"type": "object", "properties": {"title": {"type": "integer"}}, "required": ["b"]},
            {
                "type": "object",
                "properties": {"title": {"type": "integer"}, "b": True},
                "required": ["b"],
                "additionalProperties": False,
            },
        ),
        ({"properties": {}, "additionalProperties": True}, None),
        (
            {"propertyNames": {"enum": ["a"]}, "additionalProperties": {"type": "integer"}},
            {"properties": {"a": {"type": "integer"}}, "additionalProperties": False},
        ),
        (
            {"properties": {"a": True}, "unevaluatedProperties": False},
            {"properties": {"a": True}, "additionalProperties": False},
        ),
        ({"anyOf": [{"$ref": "#"}, {"type": "integer"}]}, None),
        ({"maxItems": 2.0, "minLength": 1.0}, {"maxItems": 2, "minLength": 1}),
        ({"if": {"const": 0}, "type": "null"}, {"type": "null"}),
        ({"then": False, "else": False, "minContains": 3, "type": "null"}, {"type": "null"}),
        ({"contains": {"const": 1}, "minContains": 0, "dependentRequired": {}}, {}),
        (
            {
                "anyOf": [{"$ref": "#/$defs/a"}, {"type": "integer"}],
                "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}},
            },
            {
                "anyOf": [{"type": "integer"}],
                "$defs": {"a": {"type": "array", "items": False, "minItems": 1}},
            },
        ),
    ],
)
def test_what_is_dropped(grammars: Grammars, schema: Any, same: Any) -> None:
    ready = prepared(schema, "x")
    if same is not None:
        assert ready == same
    grammar = json_form(schema, "x").grammar()
    grammars.factory(grammar, may_think=False, thinking=False)


def test_parts_of_one_object_stay_open() -> None:
    """Else each part would forbid what the others list."""
    part = {"type": "object", "properties": {"a": True}}
    for schema in (
        {"allOf": [part, {"properties": {"b": True}}]},
        {"$ref": "#/$defs/p", "properties": {"b": True}, "$defs": {"p": part}},
        {"properties": {"b": True}, "anyOf": [part, {"required": ["b"]}]},
    ):
        assert "additionalProperties" not in json.dumps(prepared(schema, "x"))
    alone = prepared({"anyOf": [part, {"type": "null"}]}, "x")
    assert "additionalProperties" in json.dumps(alone)


def _random_schema(rng: random.Random, depth: int = 0) -> Any:
    scalars: list[Any] = [
        {"type": "integer", "minimum": rng.randint(-5, 5), "maximum": rng.randint(6, 99)},
        {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9, "format": "int32"},
        {"type": "number", "minimum": 0, "maximum": 1.5},
        {"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 99},
        {"type": "string", "maxLength": rng.randint(0, 6)},
        {"type": "string", "pattern": "^[a-c]{2,4}$"},
        {"type": "string", "minLength": 1, "maxLength": 3},
        {"enum": [1, "two", None, [3], {"four": 4}]},
        {"const": rng.choice([0, "x", False, None])},
        {"type": ["boolean", "null"], "description": "either"},
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 7}]},
        {"$ref": "#/$defs/leaf"},
        {"$ref": "#/$defs/list"},
    ]
    if depth > 2:
        return rng.choice(scalars)

    def inner() -> Any:
        return _random_schema(rng, depth + 1)

    names = rng.sample(["a", "b", "c/d", 'e"', "é"], rng.randint(0, 3))
    kinds: list[Any] = [
        {
            "type": "object",
            "properties": {name: inner() for name in names},
            "required": rng.sample(names, rng.randint(0, len(names))),
        },
        {"type": "array", "items": inner(), "minItems": rng.randint(0, 1), "maxItems": 2},
        {"type": "array", "prefixItems": [inner(), inner()], "items": False, "minItems": 2},
        {"anyOf": [inner(), inner()]},
        {"oneOf": [{"type": "string", "maxLength": 2}, {"type": "integer", "minimum": 100}]},
        {"type": "object", "additionalProperties": inner(), "maxProperties": 2},
        {
            "type": "object",
            "patternProperties": {"^x[a-c]?$": inner()},
            "additionalProperties": False,
        },
        {"allOf": [{"type": "object", "properties": {"p": inner()}}, {"required": ["p"]}]},
    ]
    return rng.choice(kinds + scalars[:2])


DEFS = {
    "leaf": {"type": "string", "enum": ["l1", "l2"]},
    "list": {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "null"}]}},
        "required": ["next"],
    },
}


def _random_value(rng: random.Random, depth: int = 0) -> Any:
    """Return what a schema of the above may or may not have as an instance."""
    inner = (lambda: _random_value(rng, depth + 1)) if depth < 2 else (lambda: 3)
    return rng.choice(
        [
            *(None, True, -1, 0, 3, 9, 42, 1.5, "", "two", "abc", "l1", "ü"),
            [inner() for _ in range(rng.randint(0, 3))],
            {name: inner() for name in rng.sample(["a", "b", "p", "x", "xa", "next"], 2)},
        ]
    )


@pytest.mark.parametrize("seed", range(6))
def test_only_valid_instances(reference: Qwen3ForCausalLM, grammars: Grammars, seed: int) -> None:
    """Drawn ones are, and those of other schemas are only allowed if they are."""
    jsonschema = pytest.importorskip("jsonschema", reason="needs the jsonschema package")
    rng = random.Random(seed)
    drawn = refused = impossible = 0
    for _ in range(30):
        schema = {**_random_schema(rng), "$defs": DEFS}
        validator = jsonschema.Draft202012Validator(schema)
        try:
            text = draw(reference, grammars, schema, rng)
        except FieldError:
            refused += 1
            continue
        if text is not None:
            validator.validate(json.loads(text))
            drawn += 1
        for value in [_random_value(rng) for _ in range(5)]:
            if not validator.is_valid(value):
                assert not allows(reference, grammars, schema, value), (schema, value)
                impossible += 1
    assert drawn > 15 and refused < 8 and impossible > 50


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages"])
def test_the_form_is_complete_or_cut_off(server: LiveServer, path: str) -> None:
    """Whatever is drawn, also amid the thinking: a call, or the limit."""
    parameters = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    body: dict[str, Any] = {"think": True, "temperature": 5, "stream": False}
    if path == CHAT:
        tool: dict[str, Any] = {
            "type": "function",
            "function": {"name": "f", "parameters": parameters},
        }
        body |= {"messages": CAPITAL, "tool_choice": "required", "max_tokens": 150}
    elif path == "/v1/responses":
        tool = {"type": "function", "name": "f", "parameters": parameters}
        body |= {"input": "x", "tool_choice": "required", "max_output_tokens": 150}
    else:
        tool = {"name": "f", "input_schema": parameters}
        body |= {"messages": CAPITAL, "tool_choice": {"type": "any"}, "max_tokens": 150}
    reasons = set()
    for seed in range(12):
        answer = server.post(path, {**body, "tools": [tool], "seed": seed}).json()
        if path == CHAT:
            reasons.add(answer["choices"][0]["finish_reason"])
        elif path == "/v1/messages":
            reasons.add(answer["stop_reason"])
        else:
            called = bool(answer["output"]) and answer["output"][-1]["type"] == "function_call"
            reasons.add(f"{answer['status']} {called}")
    complete, cut = {"tool_calls", "tool_use", "completed True"}, {"length", "max_tokens"}
    assert reasons <= complete | cut | {"incomplete True", "incomplete False"}


def test_a_form_goes_on_with_what_is_written(server: LiveServer) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": {"enum": ["Paris", "Rome"]}}}
    body = {"response_format": form, "max_tokens": 20, "temperature": 0}
    begun = [*CAPITAL, {"role": "assistant", "content": '"Ro'}]
    answer = server.post(CHAT, {**body, "messages": begun}).json()["choices"][0]
    assert answer["message"]["content"] == 'me"'
    begun[-1]["content"] = "The"
    response = server.post(CHAT, {**body, "messages": begun})
    assert response.status_code == 400 and response.json()["error"]["param"] == "messages"


@pytest.mark.parametrize("place", ["const", "pattern", "properties", "title"])
def test_long_texts(place: str) -> None:
    """Except in annotations, which no grammar sees."""
    text: Any = "ab" * 5000
    schema = {place: {text: True} if place == "properties" else text}
    if place == "title":
        json_form(schema, "x").grammar()
    else:
        with pytest.raises(FieldError, match="10000 characters"):
            json_form(schema, "x").grammar()


@pytest.mark.parametrize("branches", [1, 9])
def test_properties_may_be_many(
    reference: Qwen3ForCausalLM, grammars: Grammars, branches: int
) -> None:
    """All optional: behind the brace each of them may come."""
    objects = [
        {"type": "object", "properties": {f"{b}p{i}": {"const": 1} for i in range(1000)}}
        for b in range(branches)
    ]
    texts = [draw(reference, grammars, {"anyOf": objects}, random.Random(i)) for i in range(3)]
    assert any(texts)


def test_tools_may_be_many(grammars: Grammars) -> None:
    """Each is checked by itself, and the check is kept."""
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "strict": True, "parameters": {
            "type": "object", "properties": {f"a{i}": {"type": "integer", "format": "int64"}}}}}
        for i in range(100)
    ]  # fmt: skip
    body = ChatBody.model_validate({"messages": CAPITAL, "tools": tools})
    grammar = choose_grammar(body.chat_request())
    assert grammar is not None and len(grammar.parts) == 100
    grammars.factory(grammar, may_think=False, thinking=False)

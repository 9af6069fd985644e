"""Forms of answers in all spellings, on all endpoints: every answer has the form asked for."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import openai
import pytest
from infinicore_infer.errors import FieldError
from infinicore_infer.generate import grammar_constraint, grammar_trial
from infinicore_infer.server.openai.fields import CompletionBody
from serving import CAPITAL, NO_THINK, WEATHER_TOOL, LiveServer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
HOT = {"temperature": 1.5, "top_k": 0, "top_p": 1}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": CAPITAL, "max_tokens": 60, **NO_THINK, **HOT},
    TEXT: {"prompt": "One", "max_tokens": 60, **HOT},
    RESPONSES: {"input": "What?", "max_output_tokens": 60, **NO_THINK, **HOT},
    MESSAGES: {"messages": CAPITAL, "max_tokens": 60, **NO_THINK, **HOT},
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"town": {"enum": ["Oslo", "Rome"]}, "days": {"enum": [1, 22]}},
    "required": ["town", "days"],
}
GBNF = 'root ::= day ("," day){1,2} # twice or thrice\nday ::= "mon" | "tue" [0-9]'
LARK = 'start: "<" (DIGIT | start) ">"\nDIGIT: /[0-9]/'
STRUCTURES: dict[str, Any] = {
    "structures": [{"begin": "<town>", "schema": SCHEMA, "end": "</town>"}],
    "triggers": ["<town"],
    "at_least_one": True,
}
SEQUENCE: dict[str, Any] = {
    "type": "sequence",
    "elements": [
        {"type": "const_string", "value": "a: "},
        {"type": "or", "elements": [
            {"type": "regex", "pattern": "[xy]{2}"},
            {"type": "json_schema", "json_schema": SCHEMA},
            {"type": "grammar", "grammar": 'root ::= "z"'},
        ]},
        {"type": "tag", "begin": "(", "content": {"type": "regex", "pattern": "[0-9]"}, "end": ")"},
    ],
}  # fmt: skip
TRIGGERED: dict[str, Any] = {
    "type": "triggered_tags",
    "triggers": ["<town"],
    "tags": [
        {
            "begin": "<town>",
            "content": {"type": "json_schema", "json_schema": SCHEMA},
            "end": "</town>",
        }
    ],
    "at_least_one": True,
}
Check = Callable[[str], object]


def matches(pattern: str) -> Check:
    def check(text: str) -> None:
        assert re.fullmatch(pattern, text), text

    return check


def follows(schema: dict[str, Any], form: str | None = None) -> Check:
    def check(text: str) -> None:
        value = json.loads(text)
        jsonschema.validate(value, schema)
        if form is not None:
            assert re.fullmatch(form, text), text

    return check


def nested(text: str) -> None:
    depth = text.count("<")
    assert re.fullmatch(r"<+\d>+", text) and text == "<" * depth + text[depth] + ">" * depth


ANY = {"structured_outputs": {"json": SCHEMA}}
FORMS: list[tuple[dict[str, Any], Check]] = [
    (ANY, follows(SCHEMA)),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, follows(SCHEMA)),
    (
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        follows(SCHEMA, r"\S+"),
    ),
    (
        {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": "[ ]{2}"}},
        follows(SCHEMA, r"(\S+  )+\S+"),
    ),
    ({"structured_outputs": {"regex": r"^\d{3}-[a-f]+\.$"}}, matches(r"\d{3}-[a-f]+\.")),
    (
        {"structured_outputs": {"choice": ["a", "a b", 'ü"\n', "\0\x7f\\"]}},
        ["a", "a b", 'ü"\n', "\0\x7f\\"].index,
    ),
    ({"structured_outputs": {"grammar": GBNF}}, matches(r"(mon|tue\d)(,(mon|tue\d)){1,2}")),
    ({"structured_outputs": {"grammar": LARK}}, nested),
    (
        {"structured_outputs": {"structural_tag": json.dumps({"format": SEQUENCE})}},
        matches(r"a: ([xy]{2}|\{.*\}|z)\(\d\)"),
    ),
    ({"guided_json": SCHEMA, "guided_decoding_backend": "xgrammar"}, follows(SCHEMA)),
    ({"guided_json": SCHEMA, "guided_whitespace_pattern": ""}, follows(SCHEMA)),
    ({"guided_regex": r"(?i)yes|no\Z"}, matches("(?i)yes|no")),
    ({"guided_choice": ["left", "right"]}, ["left", "right"].index),
    ({"guided_grammar": GBNF}, matches(r"(mon|tue\d)(,(mon|tue\d)){1,2}")),
    ({"grammar": 'root ::= [^\\n"]{2} "\\u00e9"'}, matches('[^\n"]{2}é')),
    ({"json_schema": SCHEMA}, follows(SCHEMA)),
    ({"regex": "[ab]{3}", "guided_regex": "[ab]{3}", "grammar": ""}, matches("[ab]{3}")),
    ({"ebnf": GBNF}, matches(r"(mon|tue\d)(,(mon|tue\d)){1,2}")),
]
RESPONSE_FORMATS: list[tuple[dict[str, Any], Check]] = [
    ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, follows(SCHEMA)),
    ({"type": "json_object", "schema": SCHEMA}, follows(SCHEMA)),
    ({"type": "grammar", "grammar": GBNF}, matches(r"(mon|tue\d)(,(mon|tue\d)){1,2}")),
    ({"type": "regex", "value": "x{3}"}, matches("x{3}")),
    ({"type": "json", "value": SCHEMA}, follows(SCHEMA)),
    ({"type": "structural_tag", "format": SEQUENCE}, matches(r"a: ([xy]{2}|\{.*\}|z)\(\d\)")),
]


def allowed(mask: Any, dvoc: int) -> set[int]:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[:dvoc]
    return {int(token) for token in np.flatnonzero(bits)}


def texts(path: str, answer: dict[str, Any]) -> list[str]:
    """The answers that are complete."""
    if path == CHAT:
        choices = answer["choices"]
        return [c["message"]["content"] for c in choices if c["finish_reason"] == "stop"]
    if path == TEXT:
        return [c["text"] for c in answer["choices"] if c["finish_reason"] == "stop"]
    if path == RESPONSES:
        done = answer["status"] == "completed"
        return [item["content"][0]["text"] for item in answer["output"] if done]
    return [b["text"] for b in answer["content"] if answer["stop_reason"] == "end_turn"]


@pytest.mark.parametrize("path", BODIES)
def test_every_spelling(server: LiveServer, path: str) -> None:
    for seed, (form, check) in enumerate(FORMS):
        response = server.post(path, {**BODIES[path], **form, "seed": seed})
        assert response.status_code == 200, (form, response.text)
        assert "X-Ignored-Fields" not in response.headers
        (text,) = texts(path, response.json())
        check(text)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_response_format(server: LiveServer, path: str) -> None:
    for form, check in RESPONSE_FORMATS:
        body = {**BODIES[path], "response_format": form, "n": 3, "seed": 5}
        response = server.post(path, body)
        assert response.status_code == 200, (form, response.text)
        assert "X-Ignored-Fields" not in response.headers
        answers = texts(path, response.json())
        assert len(answers) == 3
        for text in answers:
            check(text)


def test_a_stream_with_several_answers(client: openai.OpenAI) -> None:
    """Vllm's fields as people send them with OpenAI's client; each answer has its own state."""
    asked: dict[str, Any] = {
        "model": "qwen3-tiny",
        "messages": CAPITAL,
        "n": 4,
        "seed": 3,
        "temperature": 1.5,
        "max_tokens": 200,
        "extra_body": {"structured_outputs": {"regex": "[ab]{2,9}"}, "top_k": 0, "top_p": 1},
    }
    whole = client.chat.completions.create(**asked)
    streamed = ["", "", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    # Thinking comes first, and is free.
    assert streamed == [choice.message.content or "" for choice in whole.choices]
    finished = [c for c in whole.choices if c.finish_reason == "stop"]
    assert finished and all(re.fullmatch("[ab]{2,9}", c.message.content or "") for c in finished)
    assert len({choice.message.content for choice in whole.choices}) > 1


def test_classes_of_characters_are_ascii(server: LiveServer) -> None:
    model = server.model
    for pattern in (r"\d", r"\w", r"\s"):
        form = CompletionBody.model_validate({"prompt": "x", "regex": pattern}).asked_form()
        assert form is not None
        make = server.service.grammars.factory(form.grammar(), may_think=False, thinking=False)
        for token in allowed(make().mask(), model.meta.dvoc):
            begun = model.tokenizer.token_bytes(token)
            assert re.fullmatch(pattern.encode(), begun), (pattern, begun)


def test_only_the_limit_cuts_it_off(server: LiveServer) -> None:
    body = {**BODIES[TEXT], "guided_regex": "[a-z]{80}", "max_tokens": 3}
    for seed in range(3):
        (choice,) = server.post(TEXT, {**body, "seed": seed}).json()["choices"]
        assert choice["finish_reason"] == "length" and re.fullmatch("[a-z]+", choice["text"])


def test_structures_amid_free_text(server: LiveServer) -> None:
    """Free text until a trigger; then only a tag that begins so; then free text again."""
    model = server.model
    ends = set(model.meta.end_tokens)
    for tag in (STRUCTURES, {"format": {**TRIGGERED, "stop_after_first": True}}):
        form = CompletionBody.model_validate({"prompt": "x", "structural_tag": tag}).asked_form()
        assert form is not None
        make = server.service.grammars.factory(form.grammar(), may_think=False, thinking=False)
        for seed in range(5):
            constraint, rng = make(), random.Random(seed)
            assert not ends & allowed(constraint.mask(), model.meta.dvoc)
            tokens = model.encode("Hi < <to <town")
            for token in tokens:
                constraint.accept(token)
            while "</town>" not in (text := model.tokenizer.decode(tokens)):
                options = allowed(constraint.mask(), model.meta.dvoc)
                tokens.append(rng.choice(sorted(options)))
                constraint.accept(tokens[-1])
                assert len(tokens) < 200
            (part,) = re.findall("<town>(.*?)</town>", text)
            follows(SCHEMA)(part)
            after = allowed(constraint.mask(), model.meta.dvoc)
            assert ends & after and (after <= ends) == ("format" in tag)


def test_a_grammar_or_a_call(server: LiveServer) -> None:
    """Where tools may be called, the answer is a call or has the form."""
    kinds = set()
    for grammar, check in ((LARK, nested), (GBNF, matches(r"(mon|tue\d)(,(mon|tue\d)){1,2}"))):
        for seed in range(6):
            body = {**BODIES[CHAT], "tools": [WEATHER_TOOL], "grammar": grammar, "seed": seed}
            (choice,) = server.post(CHAT, {**body, "temperature": 3}).json()["choices"]
            if choice["finish_reason"] == "stop":
                check(choice["message"]["content"])
            kinds.add(choice["finish_reason"])
    assert kinds >= {"stop"} and kinds <= {"stop", "tool_calls", "length"}


def test_thinking_comes_first(server: LiveServer) -> None:
    body = {**BODIES[CHAT], "temperature": 0, "guided_choice": ["Oslo", "Rome"], "max_tokens": 100}
    del body["chat_template_kwargs"]
    message = server.post(CHAT, body).json()["choices"][0]["message"]
    assert message["reasoning_content"] and message["content"] in ("Oslo", "Rome")


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
    ({"guided_regex": "a(?=b)"}, "guided_regex", "look-around"),
    ({"regex": r"(a)\1"}, "regex", "backreferences"),
    ({"regex": "a" * 9000}, "regex", "9000 characters; at most 8192"),
    ({"guided_regex": r"[<]\|im_end\|>"}, "guided_regex", "control token"),
    ({"guided_regex": r"<\x7cim_end\|>"}, "guided_regex", "<|im_end|> is a control token"),
    ({"regex": "a\\\\\\"}, "regex", "ends with a backslash"),
    ({"regex": "a\ud800"}, "regex", "character 1 is half of a surrogate pair"),
    ({"guided_choice": ["a", "\ud800"]}, "guided_choice[1]", "surrogate"),
    ({"grammar": 'start: "\udfff"'}, "grammar", "surrogate"),
    (
        {"structured_outputs": {"grammar": "start: " + "a" * 70000}},
        "structured_outputs.grammar",
        "at most 65536",
    ),
    ({"guided_choice": []}, "guided_choice", "at least one"),
    ({"guided_choice": ["a", "<|im_end|>"]}, "guided_choice", "control token"),
    ({"guided_json": "{"}, "guided_json", "no JSON"),
    ({"guided_json": "[1]"}, "guided_json", "must be a JSON schema"),
    ({"guided_json": {"not": {}}}, "guided_json", "not cannot be enforced"),
    ({"json_schema": {"type": "x"}}, "json_schema", "the schema is not supported"),
    ({"guided_grammar": 'start: "a" b'}, "guided_grammar", 'line 1, column 8: unknown name: "b"'),
    ({"grammar": "root ::= x"}, "grammar", "Rule 'x' not found"),
    ({"grammar": 'root ::= "a'}, "grammar", "Unexpected end of input"),
    ({"grammar": "root ::= " + "(" * 5000}, "grammar", "nested too deeply"),
    ({"grammar": "root ::= " + "a" * 70000}, "grammar", "at most 65536"),
    ({"grammar": 'root ::= "\\ud800"'}, "grammar", "is no character"),
    ({"grammar": "start: <[2002]>"}, "grammar", "tokens by number"),
    ({"grammar": 'start: "a" <|im_end|>'}, "grammar", "control token"),
    ({"grammar": 'x: "a"'}, "grammar", "no start rule"),
    ({"structural_tag": {"format": {"type": "x"}}}, "structural_tag.format.type", "'x'"),
    (
        {"structural_tag": {"structures": [{"begin": "<a>", "end": ""}], "triggers": ["<b"]}},
        "structural_tag.structures[0].begin",
        "one of the triggers",
    ),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "regex and"),
    ({"structured_outputs": {"whitespace_pattern": "a"}}, "structured_outputs", "none"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object", "true"),
    (
        {"structured_outputs": {"json": {}, "disable_any_whitespace": 1}},
        "structured_outputs.disable_any_whitespace",
        "true or false",
    ),
    ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "guided_json"),
    (
        {"guided_json": {}, "guided_whitespace_pattern": "("},
        "guided_json",
        "unclosed group",
    ),
    ({"regex": "a", "grammar": 'root ::= "a"'}, "regex", "than grammar"),
    ({"guided_regex": "a", "regex": "b"}, "regex", "than guided_regex"),
    (
        {"response_format": {"type": "json_object"}, "guided_choice": ["a"]},
        "guided_choice",
        "than response_format",
    ),
    ({"response_format": {"type": "grammar"}}, "response_format", "must be a grammar"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.structures", "list"),
    ({"grammar": 'root ::= "a"', "grammar_lazy": True}, "grammar_lazy", "beginning"),
]


def test_what_is_wrong_is_refused(server: LiveServer) -> None:
    """With the field, and the reason in words of what the client sent."""
    for form, param, words in WRONG:
        # Not httpx's JSON, which cannot have halves of surrogate pairs.
        response = server.http.post(TEXT, content=json.dumps({**BODIES[TEXT], **form}))
        error = response.json()["error"]
        assert response.status_code == 400, (form, response.text)
        assert error["param"] == param and words in error["message"], (form, error)
    assert server.post(TEXT, {**BODIES[TEXT], "grammar_lazy": False}).status_code == 200


def test_what_takes_ever_more_work_is_ended(
    make_server: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an error, before it holds up the others for long."""
    monkeypatch.setattr(grammar_constraint, "_QUICK_SECONDS", 0)
    monkeypatch.setattr(grammar_constraint, "_SLOW_SECONDS", 0)
    server = make_server()
    ambiguous = {"grammar": "start: e\ne: e e | /[a-z]/", "ignore_eos": True}
    response = server.post(TEXT, {**BODIES[TEXT], **ambiguous})
    assert response.status_code == 500 and "too much work" in response.json()["error"]["message"]
    assert server.post(TEXT, BODIES[TEXT]).status_code == 200
    # Or when it comes.
    monkeypatch.setattr(grammar_trial, "_SECONDS", 0)
    response = server.post(TEXT, {**BODIES[TEXT], "grammar": "start: e\ne: e e e | /[a-z]/"})
    assert response.status_code == 400 and "too much work" in response.json()["error"]["message"]


def test_long_chains(make_server: Callable[..., LiveServer]) -> None:
    """They would overflow an ordinary thread's stack, and with it the process."""
    rules = "\n".join(f"r{i}: r{i + 1}" for i in range(4600))
    defs = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}]} for i in range(4000)}
    schema = {"$ref": "#/$defs/a0", "$defs": {**defs, "a4000": {"const": 7}}}
    server = make_server()
    for form, text in (
        ({"grammar": f'start: r0\n{rules}\nr4600: "a"'}, "a"),
        ({"json_schema": schema}, "7"),
    ):
        response = server.post(TEXT, {**BODIES[TEXT], **form})
        assert response.status_code == 200, response.text[:300]
        assert response.json()["choices"][0]["text"] == text


def test_forms_are_the_same_by_content() -> None:
    """Not by who asks; a form that is asked for twice is asked for once."""

    def asked(**fields: Any) -> Any:
        return CompletionBody.model_validate({"prompt": "x", **fields}).asked_form()

    assert asked() is None and asked(regex="", grammar="", structured_outputs={}) is None
    assert asked(guided_json=SCHEMA, json_schema=json.dumps(SCHEMA)).field == "guided_json"
    with pytest.raises(FieldError, match="json_schema asks for another form"):
        asked(guided_json=SCHEMA, json_schema={})


def test_a_form_is_compiled_once(server: LiveServer) -> None:
    source = server.service.grammars._source
    body = {**BODIES[TEXT], "guided_regex": "once{1,3}"}
    before = source.cache_info()
    for change in ({}, {"n": 2}, {"guided_regex": None, "regex": "once{1,3}"}):
        assert server.post(TEXT, {**body, **change}).status_code == 200
    after = source.cache_info()
    assert after.misses == before.misses + 1 and after.maxsize is not None

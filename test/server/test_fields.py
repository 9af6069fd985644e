"""No field of a request vanishes silently, and all ways to switch thinking off do so."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as text_params
import openai.types.responses.response_create_params as response_params
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from infinicore_infer.server.anthropic.messages import MessagesBody
from infinicore_infer.server.fields import Body
from infinicore_infer.server.known_fields import HARMLESS, HARMLESS_AT, REFUSED
from infinicore_infer.server.openai.fields import ChatBody, CompletionBody
from infinicore_infer.server.openai.responses import ResponsesBody
from infinicore_infer.tools.fields_table import BEGIN, END, markdown
from serving import CAPITAL, GREEDY, LiveServer

Make = Callable[..., LiveServer]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": CAPITAL, "max_tokens": 60, **GREEDY},
    TEXT: {"prompt": "One", "max_tokens": 2, **GREEDY},
    RESPONSES: {"input": CAPITAL[0]["content"], "max_output_tokens": 60, **GREEDY},
    MESSAGES: {"messages": CAPITAL, "max_tokens": 60, **GREEDY},
}
CHATS = [CHAT, RESPONSES, MESSAGES]
HARMLESS_NAMES = {name for names in HARMLESS.values() for name in names}


def _annotated(kind: Any) -> set[str]:
    bases = getattr(kind, "__orig_bases__", ())
    return set(kind.__annotations__).union(*(getattr(b, "__annotations__", ()) for b in bases))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (chat_params.CompletionCreateParamsNonStreaming, ChatBody),
        (text_params.CompletionCreateParamsNonStreaming, CompletionBody),
        (response_params.ResponseCreateParamsNonStreaming, ResponsesBody),
        (message_create_params.MessageCreateParamsNonStreaming, MessagesBody),
        (message_count_tokens_params.MessageCountTokensParams, MessagesBody),
    ],
)
def test_the_clients_fields_are_known(kind: Any, body: type[Body]) -> None:
    here = HARMLESS_AT.get(body.endpoint, {}).keys()
    assert _annotated(kind) - body.names() <= HARMLESS_NAMES | REFUSED.keys() | here


def test_a_field_is_in_one_table() -> None:
    assert not HARMLESS_NAMES & REFUSED.keys()
    assert sum(map(len, HARMLESS.values())) == len(HARMLESS_NAMES)
    # What one endpoint alone obeys may well be refused by the others.
    everywhere = ChatBody.names() & ResponsesBody.names() & MessagesBody.names()
    assert not everywhere & (HARMLESS_NAMES | REFUSED.keys())


def test_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "server.md").read_text("utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == markdown()


def _table() -> dict[str, dict[str, str]]:
    """What docs/server.md says: of each endpoint, what becomes of a field."""
    text = (Path(__file__).parents[2] / "docs" / "server.md").read_text("utf-8")
    head, _, *rows = text.partition(BEGIN)[2].partition(END)[0].splitlines()
    paths = [cell.strip().strip("`") for cell in head.split("|")[2:-2]]
    result: dict[str, dict[str, str]] = {path: {} for path in paths}
    for row in rows:
        cells = [cell.strip() for cell in row.split("|")[1:]]
        for name in cells[0].split(", "):
            result |= {
                path: {**result[path], name.strip("`"): cell}
                for path, cell in zip(paths, cells[1:], strict=False)
            }
    return result


@pytest.mark.parametrize("path", BODIES)
def test_the_documented_table_is_true(server: LiveServer, path: str) -> None:
    """Of top-level fields, each by itself if it is refused, all together if they are harmless."""
    fates = {name: fate for name, fate in _table()[path].items() if "." not in name}
    odd: list[Any] = ["x", 7, {"a": 1}]
    refused = [name for name, fate in fates.items() if fate == "refused"]
    harmless = [name for name, fate in fates.items() if fate == "harmless"]
    assert len(refused) > 100 and len(harmless) > 50
    for name in refused:
        error = server.post(path, {**BODIES[path], name: {"a": 1}}).json()["error"]
        assert f"{name} is not supported" in error["message"]
        assert server.post(path, {**BODIES[path], name: None, "model": "?"}).status_code == 404
    response = server.post(path, {**BODIES[path], **dict.fromkeys(harmless, odd)})
    assert response.status_code == 200 and "X-Ignored-Fields" not in response.headers
    obeyed = {name for name, fate in fates.items() if fate == "obeyed"}
    for name in obeyed - BODIES[path].keys() - {"metadata", "background", "store"}:
        # No field takes all of these.
        wrong = [server.post(path, {**BODIES[path], name: value}).status_code for value in odd]
        assert 400 in wrong or 404 in wrong, name


@pytest.mark.parametrize("path", BODIES)
def test_unknown_fields_are_named(
    server: LiveServer, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"made_up{path.count('/')}{len(path)}"
    body = {**BODIES[path], name: 3, "odd, name\n": None, "user": "me"}
    with caplog.at_level(logging.WARNING, "infinicore_infer.server"):
        responses = [server.post(path, {**body, "stream": stream}) for stream in (False, True)]
    for response in responses:
        assert response.status_code == 200
        assert response.headers["X-Ignored-Fields"] == f"{name}, odd??name?"
    assert caplog.text.count(name) == 1
    assert "X-Ignored-Fields" not in server.post(path, BODIES[path]).headers


def test_unknown_parts_are_named(server: LiveServer) -> None:
    body = {**BODIES[CHAT], "reasoning": {"effort": "low", "mood": 1, "summary": "auto"}}
    body["response_format"] = {"type": "text", "color": "red"}
    response = server.post(CHAT, body)
    assert response.headers["X-Ignored-Fields"] == "reasoning.mood, response_format.color"


def test_unknown_fields_may_be_refused(make_server: Make) -> None:
    server = make_server(unknown_fields="refuse")
    response = server.post(CHAT, {**BODIES[CHAT], "made_up": 3})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "made_up"
    assert server.post(CHAT, {**BODIES[CHAT], "store": True}).status_code == 200


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (CHAT, {"chat_template": "{{ messages }}"}),
        (CHAT, {"documents": [{"text": "x"}]}),
        (CHAT, {"system": "Be brief."}),
        (CHAT, {"max_output_tokens": 3}),
        (CHAT, {"options": {"temperature": 0}}),
        (CHAT, {"truncation": "auto"}),
        (CHAT, {"reasoning_format": "none"}),
        (CHAT, {"format": "json"}),
        (TEXT, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        (RESPONSES, {"return_token_ids": True}),
        (RESPONSES, {"messages": CAPITAL}),
        (RESPONSES, {"response_format": {"type": "json_object"}}),
        (RESPONSES, {"max_tokens": 3}),
        (RESPONSES, {"include": ["message.output_text.logprobs"]}),
        (RESPONSES, {"max_tool_calls": 1}),
        (RESPONSES, {"top_logprobs": 2}),
        (MESSAGES, {"n": 2}),
        (MESSAGES, {"mcp_servers": [{"url": "x"}]}),
        (MESSAGES, {"logprobs": True}),
    ],
)
def test_what_would_change_the_answer_is_refused(
    server: LiveServer, path: str, change: dict[str, Any]
) -> None:
    response = server.post(path, {**BODIES[path], **change})
    name = next(iter(change))
    error = response.json()["error"]
    assert response.status_code == 400 and error["message"].startswith(name), response.text
    if path != MESSAGES:
        assert error["param"].startswith(name) and error["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (CHAT, {"chat_template": None, "documents": [], "n": 1, "best_of": 1, "options": {}}),
        (CHAT, {"timings_per_token": True, "return_progress": True, "reasoning_format": "auto"}),
        (CHAT, {"prediction": {"type": "content", "content": "x"}, "verbosity": "low"}),
        (RESPONSES, {"truncation": "disabled", "include": ["reasoning.encrypted_content"]}),
        (RESPONSES, {"stream_options": {"include_obfuscation": False}, "background": False}),
        (RESPONSES, {"store": True, "prompt_cache_key": "x", "text": {"verbosity": "low"}}),
        (MESSAGES, {"service_tier": "auto", "metadata": {"user_id": "x"}, "n": 1}),
        (MESSAGES, {"output_config": {"effort": "low"}, "speed": "standard"}),
    ],
)
def test_what_changes_nothing_is_taken(
    server: LiveServer, path: str, change: dict[str, Any]
) -> None:
    response = server.post(path, {**BODIES[path], **change})
    assert response.status_code == 200, response.text
    assert "X-Ignored-Fields" not in response.headers


def _thoughts(path: str, answer: dict[str, Any]) -> str:
    if path == CHAT:
        return str(answer["choices"][0]["message"].get("reasoning_content", ""))
    items = answer["output" if path == RESPONSES else "content"]
    return "".join(json.dumps(item) for item in items if item["type"] in ("reasoning", "thinking"))


OFF: list[dict[str, Any]] = [
    {"enable_thinking": False},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"thinking": False}},
    {"think": False},
    {"thinking": False},
    {"thinking": {"type": "disabled"}},
    {"reasoning": {"enabled": False}},
    {"reasoning": {"effort": "none"}},
    {"reasoning_effort": "none"},
    {"reasoning_effort": "minimal"},
    {"include_reasoning": False, "think": True},
    {"reasoning": {"exclude": True, "enabled": True}},
    {"thinking": {"type": "adaptive", "display": "omitted"}},
    {"enable_thinking": True, "reasoning_effort": "none"},
]
ON: list[dict[str, Any]] = [
    {"enable_thinking": True},
    {"think": "low"},
    {"thinking": {"type": "enabled", "budget_tokens": 500}},
    {"thinking": {"type": "adaptive"}},
    {"reasoning": {"effort": "high"}},
    {"reasoning": {"enabled": True}},
    {"reasoning_effort": "low"},
    {"think": True, "thinking_budget": -1},
]
LIMITED: list[dict[str, Any]] = [
    {"thinking_budget": 2},
    {"thinking_token_budget": 2},
    {"thinking_budget_tokens": 2},
    {"reasoning_budget": 2},
    {"reasoning": {"max_tokens": 2}},
    {"thinking": {"type": "enabled", "budget_tokens": 2}},
    {"thinking_budget": 9, "reasoning": {"max_tokens": 2}},
]


@pytest.mark.parametrize("path", CHATS)
def test_thinking(server: LiveServer, path: str) -> None:
    """Every way to switch it off or to limit it is obeyed, in every protocol."""

    def thoughts(change: dict[str, Any]) -> str:
        response = server.post(path, {**BODIES[path], **change})
        assert response.status_code == 200, response.text
        assert "X-Ignored-Fields" not in response.headers
        return _thoughts(path, response.json())

    for change in OFF:
        assert thoughts(change) == "", change
    whole = thoughts({"enable_thinking": True})
    assert "capital" in whole
    for change in ON:
        assert "capital" in thoughts(change), change
    for change in LIMITED:
        cut = thoughts({"think": True, **change})
        assert cut and "capital" not in cut, change


def test_hidden_thinking_in_a_stream(server: LiveServer) -> None:
    body = {**BODIES[CHAT], "include_reasoning": False, "stream": True, "logprobs": True}
    text = server.post(CHAT, body).text
    assert "reasoning" not in text
    pieces = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    choices = [choice for piece in pieces for choice in piece["choices"]]
    scores = [entry for c in choices if c["logprobs"] for entry in c["logprobs"]["content"]]
    assert "".join(c["delta"].get("content") or "" for c in choices) in "".join(
        entry["token"] for entry in scores
    )
    assert "think" not in "".join(entry["token"] for entry in scores)


@pytest.mark.parametrize("path", BODIES)
def test_stop_sequences(server: LiveServer, path: str) -> None:
    body = {**BODIES[path], "enable_thinking": False}
    if path == TEXT:
        del body["enable_thinking"]
    whole, cut = (server.post(path, {**body, **c}).text for c in ({}, {"stop_sequences": [" is"]}))
    if path == TEXT:
        assert server.post(path, {**body, "stop_sequences": ["x"] * 17}).status_code == 400
    else:
        assert "France is" in whole and "The capital of France" in cut and "France is" not in cut


def test_forms_of_other_servers(server: LiveServer) -> None:
    schema = {"enum": ["yes", "no"]}
    for form in (
        {"type": "json_object", "schema": schema},
        {"type": "json_schema", "schema": schema},
    ):
        body = {**BODIES[CHAT], "response_format": form, "enable_thinking": False}
        answer = server.post(CHAT, body).json()["choices"][0]
        assert json.loads(answer["message"]["content"]) in ("yes", "no")
        body = {**BODIES[TEXT], "max_tokens": 9, "response_format": form}
        assert json.loads(server.post(TEXT, body).json()["choices"][0]["text"]) in ("yes", "no")


@pytest.mark.parametrize("key", ["schema", "json_schema"])
def test_a_schema_of_plain_text_is_refused(server: LiveServer, key: str) -> None:
    """It would be ignored without a word."""
    for path in (CHAT, TEXT):
        form = {"type": "text", key: {"type": "object"}}
        response = server.post(path, {**BODIES[path], "response_format": form})
        assert response.status_code == 400
        assert f"response_format.{key}: type 'text'" in response.json()["error"]["message"]
    form = {"type": "json_object", "json_schema": {"schema": {"enum": ["yes", "no"]}}}
    body = {**BODIES[CHAT], "response_format": form, "enable_thinking": False}
    answer = server.post(CHAT, body).json()["choices"][0]
    assert json.loads(answer["message"]["content"]) in ("yes", "no")


def test_limits_of_llama_server(server: LiveServer) -> None:
    """-1 is as many tokens as there is room for."""
    body = {**BODIES[CHAT], "max_tokens": -1, "enable_thinking": False}
    assert server.post(CHAT, body).json()["choices"][0]["finish_reason"] == "stop"
    body = {**BODIES[TEXT], "max_tokens": -1, "stop_token_ids": [], "prompt": "The capital"}
    assert server.post(TEXT, body).json()["usage"]["completion_tokens"] > 16


@pytest.mark.parametrize("path", CHATS)
def test_names_of_one_budget_agree(server: LiveServer, path: str) -> None:
    """Or the request is refused, with both names."""
    for first, second in [
        ("thinking_budget", "thinking_token_budget"),
        ("reasoning_budget", "reasoning_budget_tokens"),
    ]:
        same = {first: 4, second: 4, "thinking_budget_tokens": None}
        assert server.post(path, {**BODIES[path], **same}).status_code == 200
        response = server.post(path, {**BODIES[path], second: 5, first: 4})
        error = response.json()["error"]
        assert response.status_code == 400
        assert first in error["message"] and second in error["message"]
        if path != MESSAGES:
            assert error["param"] == second
    # A null hides nothing.
    hidden = {"think": True, "thinking_budget": None, "reasoning_budget": 2}
    answer = server.post(path, {**BODIES[path], **hidden}).json()
    assert "capital" not in _thoughts(path, answer)


TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "mood": 1}, "color": 2}


@pytest.mark.parametrize(
    ("path", "change", "names"),
    [
        (
            CHAT,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "x", "detail": 1}]},
                    {"role": "user", "content": "x", "foo": 1, "cache_control": {"type": "x"}},
                ],
                "tools": [TOOL],
            },
            "messages[0].content[0].detail, messages[1].foo, "
            "tools[0].color, tools[0].function.mood",
        ),
        (
            CHAT,
            {
                "messages": [
                    *CAPITAL,
                    {
                        "role": "assistant",
                        "content": None,
                        "refusal": None,
                        "audio": None,
                        "function_call": None,
                        "annotations": [],
                        "tool_calls": [
                            {
                                "id": "a",
                                "index": 0,
                                "type": "function",
                                "function": {"name": "f", "arguments": "{}", "output": None},
                                "bar": 1,
                            }
                        ],
                    },
                    {"role": "tool", "tool_call_id": "a", "content": "x"},
                ]
            },
            "messages[1].tool_calls[0].bar, messages[1].tool_calls[0].function.output",
        ),
        (
            RESPONSES,
            {
                "input": [
                    {"role": "user", "id": "m", "status": "done", "tone": 1, "content": "x"}
                ],
                "tools": [{"type": "mcp", "server_label": "x"}],
            },
            "tools.mcp, input[0].tone",
        ),
        (
            MESSAGES,
            {
                "system": [{"type": "text", "text": "x", "cache_control": None, "bold": True}],
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "x", "citations": []}]}
                ],
            },
            "system[0].bold",
        ),
    ],
)  # fmt: skip
def test_unknown_keys_inside_are_named(
    server: LiveServer, path: str, change: dict[str, Any], names: str
) -> None:
    response = server.post(path, {**BODIES[path], **change})
    assert response.status_code == 200, response.text
    assert response.headers["X-Ignored-Fields"] == names


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ({"images": ["AAAA"]}, "messages[0].images"),
        ({"function_call": {"name": "f", "arguments": "{}"}}, "messages[0].function_call"),
    ],
)
def test_keys_inside_that_would_change_the_answer(
    server: LiveServer, message: dict[str, Any], name: str
) -> None:
    body = {**BODIES[CHAT], "messages": [{"role": "user", "content": "x", **message}]}
    error = server.post(CHAT, body).json()["error"]
    assert error["param"] == name and error["code"] == "unsupported_parameter"


def test_unknown_keys_inside_may_be_refused(make_server: Make) -> None:
    server = make_server(unknown_fields="refuse")
    body = {**BODIES[CHAT], "messages": [{"role": "user", "content": "x", "foo": 1}]}
    response = server.post(CHAT, body)
    assert response.status_code == 400 and response.json()["error"]["param"] == "messages[0].foo"

"""/v1/responses through OpenAI's own client, whose types say what a response is."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseReasoningItem,
)
from pydantic import BaseModel
from serving import SHORT_CITY_TOOL, STORY, WEATHER_TOOL, LiveServer

MODEL = "qwen3-tiny"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
THOUGHT = "The user asks for the capital of France. It is Paris."
TOOL: Any = {"type": "function", **WEATHER_TOOL["function"]}
SHORT_TOOL: Any = {"type": "function", **SHORT_CITY_TOOL["function"]}


def strictly(response: Response) -> Response:
    """Checks it against the client's types, which it does not do by itself."""
    return Response.model_validate(json.loads(response.model_dump_json()), strict=False)


def test_text(client: openai.OpenAI) -> None:
    response = strictly(client.responses.create(model=MODEL, input=QUESTION, temperature=0))
    assert response.status == "completed" and response.error is None
    assert response.output_text == ANSWER
    thought, message = response.output
    assert isinstance(thought, ResponseReasoningItem) and thought.content
    assert thought.content[0].text == THOUGHT
    assert isinstance(message, ResponseOutputMessage) and message.status == "completed"
    usage = response.usage
    assert usage and (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (15, 25, 40)
    assert usage.output_tokens_details.reasoning_tokens == 16
    assert response.temperature == 0 and response.model == MODEL


def test_input_items_equal_messages(client: openai.OpenAI, server: LiveServer) -> None:
    # The same conversation in both protocols has the same prompt and the same answer.
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": THOUGHT}],
        },
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": ANSWER, "annotations": []}],
        },
        {
            "type": "function_call",
            "call_id": "c1",
            "name": "get_weather",
            "arguments": '{"city": "Rome"}',
        },
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"role": "user", "content": "What is the weather in Paris?"},
    ]
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
    }
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": QUESTION},
        {
            "role": "assistant",
            "content": ANSWER,
            "reasoning_content": THOUGHT,
            "tool_calls": [call],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "user", "content": "What is the weather in Paris?"},
    ]
    response = client.responses.create(
        model=MODEL, input=items, instructions="Be short.", temperature=0, max_output_tokens=40
    )
    expected = server.chat(messages, max_tokens=40)
    assert response.usage and response.usage.input_tokens == expected["usage"]["prompt_tokens"]
    assert response.output_text == expected["choices"][0]["message"]["content"]


def test_stream(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model=MODEL, input=QUESTION, temperature=0, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    squeezed = [kind for i, kind in enumerate(kinds) if kinds[i - 1 : i] != [kind]]
    text = ["output_item.added", "content_part.added"]
    end = ["content_part.done", "output_item.done"]
    assert squeezed == [
        *("created", "in_progress"),
        *(*text, "reasoning_text.delta", "reasoning_text.done", *end),
        *(*text, "output_text.delta", "output_text.done", *end),
        "completed",
    ]
    assert kinds.count("output_text.delta") > 3
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    last = events[-1]
    assert isinstance(last, ResponseCompletedEvent)
    assert strictly(last.response).output_text == ANSWER
    assert events[0].response.status == "in_progress" and events[0].response.output == []
    # The client's own accumulator must agree.
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == ANSWER


def test_function_call(client: openai.OpenAI) -> None:
    conversation: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    options: Any = {"model": MODEL, "tools": [TOOL], "temperature": 0}
    response = strictly(client.responses.create(input=conversation, **options))
    call = response.output[-1]
    assert isinstance(call, ResponseFunctionToolCall)
    assert call.name == "get_weather" and "city" in json.loads(call.arguments)
    events = list(client.responses.create(input=conversation, stream=True, **options))
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert len(pieces) > 3 and "".join(pieces) == call.arguments
    kinds = [event.type.removeprefix("response.") for event in events]
    begin = kinds.index("output_item.added", kinds.index("output_item.done"))
    delta = "function_call_arguments.delta"
    assert kinds[begin:] == [
        *("output_item.added", *[delta] * len(pieces), "function_call_arguments.done"),
        *("output_item.done", "completed"),
    ]
    assert events[begin].item.name == "get_weather" and events[begin].item.arguments == ""
    done = events[-3]
    assert done.arguments == call.arguments and done.item_id == events[begin].item.id
    with client.responses.stream(input=conversation, **options) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output[-1].arguments == call.arguments
    # The client hands the output back as it came.
    conversation += [item.model_dump(exclude_none=True) for item in response.output]
    conversation.append(
        {"type": "function_call_output", "call_id": call.call_id, "output": '{"degrees": 7}'}
    )
    answer = client.responses.create(input=conversation, **options)
    assert answer.output_text and not any(item.type == "function_call" for item in answer.output)


def test_function_call_that_is_cut_off(client: openai.OpenAI) -> None:
    conversation: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    options: Any = {"model": MODEL, "input": conversation, "tools": [TOOL], "temperature": 0}
    usage = client.responses.create(**options).usage
    assert usage
    response = strictly(
        client.responses.create(max_output_tokens=usage.output_tokens - 4, **options)
    )
    call = response.output[-1]
    assert response.status == "incomplete"
    assert isinstance(call, ResponseFunctionToolCall) and call.status == "incomplete"
    assert call.arguments.startswith('{"city"')


def test_tool_choice(client: openai.OpenAI) -> None:
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        response = client.responses.create(
            model=MODEL,
            input=QUESTION,
            tools=[SHORT_TOOL],
            tool_choice=choice,
            parallel_tool_calls=False,
            reasoning={"effort": "none"},
            temperature=0,
        )
        assert [item.type for item in response.output] == ["function_call"]


def test_strict_tool(client: openai.OpenAI) -> None:
    properties = {"town": {"enum": ["Oslo", "Rome"]}, "days": {"enum": [1, 2]}}
    schema: Any = {"type": "object", "properties": properties, "required": ["town", "days"]}
    tool: Any = {**TOOL, "parameters": {**schema, "additionalProperties": False}}
    found = []
    for strict in (False, True):
        call = client.responses.create(
            model=MODEL,
            input="What is the weather in Paris?",
            tools=[{**tool, "strict": strict}],
            temperature=0,
            reasoning={"effort": "none"},
        ).output[-1]
        assert isinstance(call, ResponseFunctionToolCall)
        found.append(json.loads(call.arguments))
    loose, strict_one = found
    assert set(loose) != {"town", "days"} == set(strict_one)
    assert strict_one["town"] in ("Oslo", "Rome") and strict_one["days"] in (1, 2)


def test_structured(client: openai.OpenAI) -> None:
    class City(BaseModel):
        capital: bool

    response = client.responses.parse(
        model=MODEL, input=QUESTION, text_format=City, temperature=0, reasoning={"effort": "none"}
    )
    assert isinstance(response.output_parsed, City)


def test_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL, input=STORY[0]["content"], max_output_tokens=3, temperature=0
    )
    assert response.status == "incomplete" and response.incomplete_details
    assert response.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "tools": [{"type": "made_up"}]}, "tools[0]"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "text": {"format": {"type": "grammar"}}}, "text"),
        ({"input": "x", "reasoning": {"effort": "odd"}}, "reasoning"),
        ({"input": "x", "temperature": -1}, "temperature"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0]"),
    ],
)
def test_bad_requests(server: LiveServer, body: Any, param: str) -> None:
    response = server.post("/v1/responses", body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_thinking_budget(client: openai.OpenAI, server: LiveServer) -> None:
    plain = server.chat()["choices"][0]["message"]["reasoning_content"]
    for budget in (0, 3):
        extra = {"thinking_budget": budget}
        message = server.chat(**extra)["choices"][0]["message"]
        thought = message.get("reasoning_content", "")
        assert (
            plain.startswith(thought)
            and len(server.post("/tokenize", {"prompt": thought}).json()["tokens"]) <= budget
        )
        assert bool(thought) == bool(budget) and message["content"]
    long = server.chat(thinking_token_budget=500)["choices"][0]["message"]
    assert long["reasoning_content"] == plain
    response = client.responses.create(
        model=MODEL, input=QUESTION, temperature=0, extra_body={"reasoning": {"max_tokens": 3}}
    )
    assert response.usage and response.usage.output_tokens_details.reasoning_tokens < 8
    schema = {"type": "json_object"}
    message = server.chat(thinking_budget=2, response_format=schema, max_tokens=60)["choices"][0][
        "message"
    ]
    assert message["content"].startswith("{")

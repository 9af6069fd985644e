"""OpenAI's own client against the server: what it expects is what it gets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from qwen3 import Qwen3ForCausalLM
from serving import CAPITAL, NO_THINK, SHORT_CITY_TOOL, STORY, WEATHER, WEATHER_TOOL, LiveServer

MODEL = "qwen3-tiny"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "infinicore_infer"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.finish_reason == "stop"
    assert choice.message.content == "The capital of France is Paris."
    thought = "The user asks for the capital of France. It is Paris."
    assert choice.message.reasoning_content == choice.message.reasoning == thought
    usage = answer.usage
    assert usage and usage.prompt_tokens == 15 and usage.completion_tokens == 25
    assert usage.completion_tokens_details.reasoning_tokens == 16
    assert usage.total_tokens == 40


def test_enable_thinking(client: openai.OpenAI) -> None:
    for extra in (NO_THINK, {"enable_thinking": False}, {"reasoning_effort": "none"}):
        answer = client.chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, extra_body=extra
        )
        message = answer.choices[0].message
        assert message.content == "The capital of France is Paris."
        assert not hasattr(message, "reasoning_content")


def test_stream_equals_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=CAPITAL,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == [] and chunks[-1].usage
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert deltas[0].role == "assistant" and all(delta.role is None for delta in deltas[1:])
    text = "".join(delta.content or "" for delta in deltas)
    thought = "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas)
    assert text == whole.choices[0].message.content
    assert thought == whole.choices[0].message.reasoning_content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert not deltas[-1].content


def test_tools(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=WEATHER, tools=[WEATHER_TOOL], temperature=0
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    call = choice.message.tool_calls[0]
    assert call.function.name == "get_weather" and "city" in json.loads(call.function.arguments)
    chunks = client.chat.completions.create(
        model=MODEL, messages=WEATHER, tools=[WEATHER_TOOL], temperature=0, stream=True
    )
    choices = [chunk.choices[0] for chunk in chunks]
    pieces = [item for choice in choices for item in choice.delta.tool_calls or ()]
    assert {item.index for item in pieces} == {0} and pieces[0].type == "function"
    # The name comes first and once, arguments follow as they are written.
    assert pieces[0].id and pieces[0].function.model_dump() == {
        "name": "get_weather",
        "arguments": "",
    }
    assert all(item.id is None and item.function.name is None for item in pieces[1:])
    arguments = [item.function.arguments for item in pieces[1:]]
    assert len(arguments) > 3 and all(arguments)
    assert "".join(arguments) == call.function.arguments
    assert pieces[0].id != call.id
    assert choices[-1].finish_reason == "tool_calls"
    # The client's own accumulator agrees.
    with client.chat.completions.stream(
        model=MODEL, messages=WEATHER, tools=[WEATHER_TOOL], temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert kinds.count("tool_calls.function.arguments.delta") > 3
    assert final.function.name == "get_weather"
    assert final.function.arguments == call.function.arguments
    # The conversation goes on as agents do it.
    follow_up = [
        *WEATHER,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 7, "sky": "sunny"}'},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=follow_up, tools=[WEATHER_TOOL], temperature=0
    )
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].message.content


def test_call_that_is_cut_off(client: openai.OpenAI) -> None:
    """What there is of it is a call, whole or streamed, and the reason says that it is not all."""
    options: Any = {"model": MODEL, "messages": WEATHER, "tools": [WEATHER_TOOL], "temperature": 0}
    whole = client.chat.completions.create(**options)
    count = whole.usage.completion_tokens
    full = whole.choices[0].message.tool_calls[0].function.arguments
    seen = set()
    for limit in range(count - 12, count):
        choice = client.chat.completions.create(**options, max_tokens=limit).choices[0]
        assert choice.finish_reason == "length"
        calls = choice.message.tool_calls or []
        chunks = client.chat.completions.create(**options, max_tokens=limit, stream=True)
        deltas = [x for c in chunks for x in c.choices[0].delta.tool_calls or ()]
        streamed = "".join(x.function.arguments for x in deltas)
        assert bool(deltas) == bool(calls)
        if calls:
            assert calls[0].function.name == "get_weather"
            assert calls[0].function.arguments == streamed and full.startswith(streamed)
            seen.add(streamed)
    assert len(seen) > 4


def test_tool_choice(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=CAPITAL,
            tools=[SHORT_CITY_TOOL],
            tool_choice=choice,
            temperature=0,
            parallel_tool_calls=False,
            extra_body=NO_THINK,
            max_tokens=100,
        )
        calls = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls" and len(calls) == 1
        assert list(json.loads(calls[0].function.arguments)) == ["city"]
    answer = client.chat.completions.create(
        model=MODEL, messages=WEATHER, tools=[WEATHER_TOOL], tool_choice="none", temperature=0
    )
    assert answer.choices[0].message.tool_calls is None and answer.usage.prompt_tokens < 30


def strict_tool(**properties: Any) -> Any:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {"name": "get_weather", "parameters": parameters, "strict": True}
    return {"type": "function", "function": {**WEATHER_TOOL["function"], **function}}


TOWN = {"town": {"enum": ["Oslo", "Rome"]}, "days": {"enum": [1, 2]}}


@pytest.mark.parametrize("think", [False, True])
def test_strict_tools(client: openai.OpenAI, think: bool) -> None:
    """Left alone, the model calls with other arguments; what is no call stays free."""
    extra = {"model": MODEL, "temperature": 0, "extra_body": {} if think else NO_THINK}

    def ask(messages: Any, tool: Any) -> Any:
        return client.chat.completions.create(messages=messages, tools=[tool], **extra).choices[0]

    strict, loose = strict_tool(**TOWN), strict_tool(**TOWN)
    loose["function"]["strict"] = False
    calls = {}
    for tool in (strict, loose):
        choice = ask(WEATHER, tool)
        assert choice.finish_reason == "tool_calls"
        name = "strict" if tool is strict else "loose"
        calls[name] = json.loads(choice.message.tool_calls[0].function.arguments)
    assert set(calls["strict"]) == {"town", "days"}
    assert calls["strict"]["town"] in ("Oslo", "Rome") and calls["strict"]["days"] in (1, 2)
    assert set(calls["loose"]) != {"town", "days"}
    # The prompt is the same, and so is an answer without a call.
    assert ask(CAPITAL, strict).message.model_dump() == ask(CAPITAL, loose).message.model_dump()


def test_strict_schema_that_is_not_supported(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(
            model=MODEL, messages=CAPITAL, tools=[strict_tool(x={"type": "odd"})]
        )
    assert bad.value.param == "tools"


@pytest.mark.parametrize("think", [False, True])
def test_call_or_json(client: openai.OpenAI, reference: Qwen3ForCausalLM, think: bool) -> None:
    """What the model would rather do decides which it is; both are valid."""
    schema = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}},
        "required": ["sure"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    kinds = set()
    for messages in (WEATHER, CAPITAL):
        for bias in (None, {str(reference.encode('{"')[0]): 100}):
            choice = client.chat.completions.create(
                model=MODEL,
                messages=messages,
                tools=[strict_tool(**TOWN)],
                response_format=form,
                temperature=0,
                max_tokens=300,
                extra_body={"thinking_budget": 5} if think else NO_THINK,
                logit_bias=bias,
            ).choices[0]
            if choice.message.tool_calls:
                assert choice.finish_reason == "tool_calls" and not choice.message.content
                for call in choice.message.tool_calls:
                    assert set(json.loads(call.function.arguments)) == {"town", "days"}
            else:
                assert choice.finish_reason == "stop"
                assert json.loads(choice.message.content) in ({"sure": True}, {"sure": False})
            kinds.add(bool(choice.message.tool_calls))
    assert kinds == {False, True}


@pytest.mark.parametrize("think", [False, True])
def test_json_schema(client: openai.OpenAI, think: bool) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"enum": ["Paris", "Rome"]},
            "sure": {"type": "boolean"},
            "name": {"type": "string", "maxLength": 8},
        },
        "required": ["city", "sure", "name"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=CAPITAL,
        temperature=0,
        max_tokens=80,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        extra_body={} if think else NO_THINK,
    )
    value = json.loads(answer.choices[0].message.content)
    assert set(value) == {"city", "sure", "name"} and value["city"] in ("Paris", "Rome")
    assert bool(getattr(answer.choices[0].message, "reasoning", None)) == think


def test_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=CAPITAL,
        temperature=0,
        max_tokens=200,
        response_format={"type": "json_object"},
        extra_body=NO_THINK,
    )
    content = answer.choices[0].message.content
    assert content.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)


def test_several_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=STORY, n=3, seed=5, temperature=1.5, max_tokens=60
    )
    texts = [choice.message.reasoning for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens > 100 > answer.usage.prompt_tokens
    again = client.chat.completions.create(
        model=MODEL, messages=STORY, n=1, seed=6, temperature=1.5, max_tokens=60
    )
    assert again.choices[0].message.reasoning == texts[1]
    chunks = client.chat.completions.create(
        model=MODEL, messages=STORY, n=3, seed=5, temperature=1.5, max_tokens=60, stream=True
    )
    streamed = ["", "", ""]
    for chunk in chunks:
        delta = chunk.choices[0].delta
        streamed[chunk.choices[0].index] += getattr(delta, "reasoning", None) or ""
    assert streamed == texts


def test_completions(client: openai.OpenAI, reference: Qwen3ForCausalLM) -> None:
    prompts = ["Once upon a time", "The capital of"]
    expected = [reference.generate(p, 12, temperature=0).text for p in prompts]
    for prompt in (prompts, [reference.encode(p) for p in prompts]):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=12, temperature=0)
        assert [choice.text for choice in answer.choices] == expected
    answer = client.completions.create(model=MODEL, prompt=prompts[0], temperature=0, echo=True)
    assert answer.choices[0].text.startswith(prompts[0]) and answer.usage.completion_tokens == 16
    chunks = client.completions.create(
        model=MODEL, prompt=prompts[0], max_tokens=12, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected[0]


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=CAPITAL)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=-1)
    assert bad.value.param == "temperature" and bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=MODEL, prompt="word " * 3000)
    assert long.value.code == "context_length_exceeded"


def test_async_client_and_disconnect(server: LiveServer) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=STORY,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            count = 0
            async for _ in stream:
                count += 1
                if count == 5:
                    break
            await stream.close()
            # Without a stream: the client gives up.
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(
                    model=MODEL,
                    messages=STORY,
                    temperature=0,
                    timeout=0.15,
                    extra_body={"ignore_eos": True},
                )

    before = server.engine.stats.generated_tokens
    asyncio.run(run())
    server.check_idle()
    # Neither went on to the end of the context.
    assert server.engine.stats.generated_tokens - before < 2 * 1900

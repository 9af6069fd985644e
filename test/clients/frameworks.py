"""What run.py asks of clients that build on OpenAI's and Anthropic's: in their default modes.

Forms are small enough for the demo model to come to an end of them.
"""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

MODEL = "qwen3-tiny"
CAPITAL = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
WEATHER = "What is the weather in Paris?"


class Place(BaseModel):
    """A place."""

    capital: bool
    name: Annotated[str, Field(max_length=8)]
    kind: Literal["city", "village"]
    districts: Annotated[int, Field(ge=1, le=20)]


class Verdict(BaseModel):
    """Without limits, which some clients tell the model of instead of the server."""

    capital: bool
    kind: Literal["city", "village"]


# With tools that it does not know, so small a model thinks until its tokens are used up.
BRIEF: dict[str, Any] = {"enable_thinking": False, "temperature": 0}


def get_weather(city: str) -> str:
    """Get the weather for a city."""
    return f"sunny in {city}"


def get_short_weather(city: Literal["Paris", "Rome"]) -> str:
    """Get the weather for a city."""
    return get_weather(city)


def check_instructor(url: str) -> None:
    """Structured answers in each mode, whole, partial, lists of them; also by Anthropic's API."""
    import anthropic
    import instructor
    import openai

    messages: Any = [{"role": "user", "content": CAPITAL}]
    plain = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    common: dict[str, Any] = {"model": MODEL, "messages": messages, "max_retries": 0}
    common |= {"max_tokens": 300, "extra_body": BRIEF}
    # Modes JSON and MD_JSON tell the model of the schema and nobody else, so it is too small.
    for mode in (None, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(plain, **({} if mode is None else {"mode": mode}))
        assert isinstance(client.create(response_model=Place, **common), Place)
        parts = list(client.create_partial(response_model=Place, **common))
        assert len(parts) > 1 and isinstance(parts[-1], Place)
    claude = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    found = instructor.from_anthropic(claude).create(response_model=Verdict, **common)
    assert isinstance(found, Verdict)


def check_pydantic_ai(url: str) -> None:
    """Text, streams, tools, structured output, by chat completions and the Responses API."""
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    openai = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    settings: Any = {"temperature": 0, "max_tokens": 300}
    brief: Any = {"max_tokens": 300, "extra_body": BRIEF}

    async def streamed(agent: Agent[None, str]) -> str:
        async with agent.run_stream(CAPITAL) as stream:
            return await stream.get_output()

    async def all_of(model: Any) -> None:
        agent = Agent(model, model_settings=settings)
        assert (await agent.run(CAPITAL)).output == ANSWER
        assert await streamed(agent) == ANSWER
        agent = Agent(model, model_settings=settings, tools=[get_weather])
        result = await agent.run(WEATHER)
        assert "tool-return" in [part.part_kind for m in result.all_messages() for part in m.parts]
        for output in (Place, NativeOutput(Place)):
            typed = Agent(model, model_settings=brief, output_type=output)
            assert isinstance((await typed.run(CAPITAL)).output, Place)
            async with typed.run_stream(CAPITAL) as events:
                assert isinstance(await events.get_output(), Place)

    async def run() -> None:
        # Not AnthropicModel: that of 2.38 fails with anthropic 2.14 before it sends anything.
        await all_of(OpenAIChatModel(MODEL, provider=openai))
        await all_of(OpenAIResponsesModel(MODEL, provider=openai))

    asyncio.run(run())


def check_agents(url: str) -> None:
    """Text, streams, tools and structured output, by the Responses API and by chat completions."""
    import agents
    import openai

    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    settings = agents.ModelSettings(temperature=0, max_tokens=300)

    async def all_of(model: Any) -> None:
        named: dict[str, Any] = {"name": "A", "model": model, "model_settings": settings}
        agent = agents.Agent(**named)
        assert (await agents.Runner.run(agent, CAPITAL)).final_output == ANSWER
        stream = agents.Runner.run_streamed(agent, CAPITAL)
        events = [event.type async for event in stream.stream_events()]
        assert stream.final_output == ANSWER and events.count("raw_response_event") > 5
        # Left to itself, the demo model calls only what looks as in its training.
        must = agents.ModelSettings(tool_choice="required", max_tokens=300, extra_body=BRIEF)
        short: Any = {**named, "model_settings": must}
        tool = agents.function_tool(get_short_weather)
        agent = agents.Agent(**short, tools=[tool], tool_use_behavior="stop_on_first_tool")
        items = (await agents.Runner.run(agent, WEATHER, max_turns=4)).new_items
        assert "tool_call_output_item" in [item.type for item in items]
        agent = agents.Agent(**named, output_type=Place)
        assert isinstance((await agents.Runner.run(agent, CAPITAL)).final_output, Place)

    async def run() -> None:
        await all_of(agents.OpenAIResponsesModel(MODEL, client))
        await all_of(agents.OpenAIChatCompletionsModel(MODEL, client))

    asyncio.run(run())


def check_anthropic(url: str) -> None:
    """Messages whole and streamed, tools, structured output, counts, errors."""
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    common: dict[str, Any] = {"model": MODEL, "max_tokens": 300, "extra_body": {"temperature": 0}}
    asked = [{"role": "user", "content": CAPITAL}]
    whole = client.messages.create(**common, messages=asked)
    assert whole.content[0].text == ANSWER and whole.stop_reason == "end_turn"
    with client.messages.stream(**common, messages=asked) as stream:
        assert "".join(stream.text_stream) == ANSWER
        assert stream.get_final_message().usage.output_tokens == whole.usage.output_tokens
    tool = {"name": "get_weather", "description": "Get the weather for a city."}
    tool["input_schema"] = {  # type: ignore[assignment]
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
    }
    asked = [{"role": "user", "content": WEATHER}]
    forced: Any = {"tools": [tool], "tool_choice": {"type": "any"}, "messages": asked}
    whole = client.messages.create(**common, **forced)
    call = whole.content[-1]
    assert whole.stop_reason == "tool_use" and set(call.input) == {"city"}
    with client.messages.stream(**common, **forced) as stream:
        last = stream.get_final_message().content[-1]
    assert (last.name, last.input) == (call.name, call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    history = [*asked, {"role": "assistant", "content": whole.content}]
    history.append({"role": "user", "content": [result]})
    assert client.messages.create(**common, messages=history, tools=[tool]).content
    parsed = client.messages.parse(**common, messages=asked, output_format=Verdict)
    assert isinstance(parsed.parsed_output, Verdict)
    assert client.messages.count_tokens(model=MODEL, messages=asked).input_tokens > 5
    try:
        wrong = {**common, "extra_body": {"temperature": -1}}
        client.messages.create(**wrong, messages=asked)
    except anthropic.BadRequestError as error:
        assert "temperature" in str(error)
    else:
        raise AssertionError("a wrong temperature was accepted")


def check_ai_sdk(url: str) -> None:
    """See ai_sdk.mjs; its packages are those of package.json, installed with npm."""
    script = Path(__file__).with_name("ai_sdk.mjs")
    run = subprocess.run(["node", str(script), url], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-6000:]

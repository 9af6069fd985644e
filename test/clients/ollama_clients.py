"""What run.py asks of Ollama's clients, and of OpenAI's about the state of responses."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

MODEL = "qwen3-tiny"
CAPITAL: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
OPTIONS = {"temperature": 0, "num_predict": 300}


class Place(BaseModel):
    """A place."""

    capital: bool
    kind: Literal["city", "village"]


def get_weather(city: str) -> str:
    """Get the weather for a city.

    Args:
        city: Its name.
    """
    return f"sunny in {city}"


def check_ollama(url: str) -> None:
    """Chats and texts whole, streamed, asynchronous; thinking, tools, forms, cards, errors."""
    import ollama

    client = ollama.Client(host=url)
    common: dict[str, Any] = {"model": MODEL, "options": OPTIONS}
    whole = client.chat(messages=CAPITAL, **common)
    assert whole.message.content == ANSWER and "Paris" in (whole.message.thinking or "")
    assert whole.done_reason == "stop" and (whole.eval_count or 0) > 5
    pieces = list(client.chat(messages=CAPITAL, stream=True, **common))
    assert "".join(piece.message.content or "" for piece in pieces) == ANSWER
    assert "".join(p.message.thinking or "" for p in pieces) == whole.message.thinking
    assert pieces[-1].done and len(pieces) > 5
    plain = client.chat(messages=CAPITAL, think=False, logprobs=True, top_logprobs=2, **common)
    assert plain.message.content == ANSWER and plain.message.thinking is None
    assert plain.logprobs and len(plain.logprobs[0].top_logprobs or ()) == 2
    _tools(client, common)
    for stream in (False, True):
        form: Any = {"format": Place.model_json_schema(), "think": False, "stream": stream}
        answer: Any = client.chat(messages=CAPITAL, **form, **common)
        text = "".join(p.message.content for p in answer) if stream else answer.message.content
        Place.model_validate_json(text)
    text = client.generate(prompt=CAPITAL[0]["content"], think=False, **common).response
    assert text == ANSWER
    streamed = client.generate(
        prompt="The capital of", raw=True, stream=True, model=MODEL, options={"num_predict": 5}
    )
    assert len(list(streamed)) > 2
    (card,) = client.list().models
    assert card.model == f"{MODEL}:latest" and card.details and card.details.family == "qwen3"
    assert client.ps().models[0].context_length
    shown = client.show(card.model)
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert (shown.modelinfo or {})["qwen3.context_length"] > 0
    assert client.pull(MODEL).status == "success"
    for action in (
        lambda: client.chat(model="other", messages=CAPITAL),
        lambda: client.embed(model=MODEL, input="x"),
        lambda: client.chat(model=MODEL, messages=CAPITAL, options={"temperature": -1}),
        lambda: list(client.chat(model="other", messages=CAPITAL, stream=True)),
        lambda: client.create(model="x", from_=MODEL),
        lambda: client.pull("other"),
        lambda: client.generate(model=MODEL, prompt="x", images=[b"\x89PNG"]),
    ):
        try:
            action()
        except ollama.ResponseError as error:
            assert error.status_code in (400, 404) and error.error
        else:
            raise AssertionError("what cannot be was accepted")
    asyncio.run(_ollama_async(url, common))


def _tools(client: Any, common: dict[str, Any]) -> None:
    """A function of Python's is called, and its result answered."""
    call = client.chat(messages=WEATHER, tools=[get_weather], **common).message
    (tool_call,) = call.tool_calls
    assert tool_call.function.name == "get_weather" and "city" in tool_call.function.arguments
    pieces = list(client.chat(messages=WEATHER, tools=[get_weather], stream=True, **common))
    found = [c for piece in pieces for c in piece.message.tool_calls or ()]
    assert [c.function for c in found] == [tool_call.function]
    result = get_weather(**tool_call.function.arguments)
    back = [*WEATHER, call, {"role": "tool", "content": result, "tool_name": "get_weather"}]
    answer = client.chat(messages=back, tools=[get_weather], **common)
    assert answer.done and answer.prompt_eval_count > 30


async def _ollama_async(url: str, common: dict[str, Any]) -> None:
    import ollama

    client = ollama.AsyncClient(host=url)
    answers = await asyncio.gather(*(client.chat(messages=CAPITAL, **common) for _ in range(8)))
    assert {answer.message.content for answer in answers} == {ANSWER}
    pieces = [p async for p in await client.chat(messages=CAPITAL, stream=True, **common)]
    assert "".join(piece.message.content for piece in pieces) == ANSWER


def check_langchain_ollama(url: str) -> None:
    """Whole, streamed, thinking, tools, structured output."""
    from langchain_ollama import ChatOllama

    common: dict[str, Any] = {"model": MODEL, "base_url": url, "temperature": 0, "num_ctx": 2048}
    common |= {"num_predict": 300, "validate_model_on_init": True}
    chat = ChatOllama(**common, reasoning=True)
    question = CAPITAL[0]["content"]
    answer = chat.invoke(question)
    assert answer.content == ANSWER and "Paris" in answer.additional_kwargs["reasoning_content"]
    assert answer.usage_metadata and answer.usage_metadata["output_tokens"] > 5
    assert "".join(str(piece.content) for piece in chat.stream(question)) == ANSWER
    assert asyncio.run(chat.ainvoke(question)).content == ANSWER
    (call,) = chat.bind_tools([get_weather]).invoke(WEATHER[0]["content"]).tool_calls
    assert call["name"] == "get_weather" and "city" in call["args"]
    structured = ChatOllama(**common, reasoning=False).with_structured_output(Place)
    assert isinstance(structured.invoke(question), Place)


def check_ollama_js(url: str) -> None:
    """See ollama.mjs; its package is that of package.json, installed with npm."""
    _node("ollama.mjs", url)


def check_ollama_ai_sdk(url: str) -> None:
    """See ollama_ai_sdk.mjs."""
    _node("ollama_ai_sdk.mjs", url)


def _node(name: str, url: str) -> None:
    script = Path(__file__).with_name(name)
    run = subprocess.run(["node", str(script), url], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-6000:]


def check_responses(url: str) -> None:
    """OpenAI's client: going on, retrieving, deleting, the background, streams joined again."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    common: dict[str, Any] = {"model": MODEL, "temperature": 0}
    first = client.responses.create(input=CAPITAL[0]["content"], **common)
    assert first.output_text == ANSWER
    second = client.responses.create(
        input="What is the capital of Italy?", previous_response_id=first.id, **common
    )
    assert "Rome" in second.output_text
    assert client.responses.retrieve(second.id) == second
    items = client.responses.input_items.list(second.id).data
    assert [item.type for item in items] == ["message"]
    client.responses.delete(second.id)
    try:
        client.responses.retrieve(second.id)
    except openai.NotFoundError:
        pass
    else:
        raise AssertionError("a deleted response is still there")
    response = client.responses.create(input=CAPITAL[0]["content"], background=True, **common)
    while response.status in ("queued", "in_progress"):
        time.sleep(0.05)
        response = client.responses.retrieve(response.id)
    assert response.status == "completed" and response.output_text == ANSWER
    stream = client.responses.create(
        input=CAPITAL[0]["content"], background=True, stream=True, **common
    )
    events: list[Any] = [next(stream) for _ in range(5)]
    stream.close()
    identity = events[0].response.id
    after = events[-1].sequence_number
    events += client.responses.retrieve(identity, stream=True, starting_after=after)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert client.responses.cancel(identity).status == "completed"
    with client.responses.stream(input="Hi", previous_response_id=identity, **common) as manager:
        manager.until_done()
    count = client.responses.input_tokens.count(model=MODEL, input=CAPITAL[0]["content"])
    assert first.usage and count.input_tokens == first.usage.input_tokens
    print(f"  responses: {json.dumps(second.usage.to_dict()) if second.usage else None}")

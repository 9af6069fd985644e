"""State in /v1/responses: going on from earlier ones, asking for them again, the background."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from infinicore_infer.server.answer import begin_chat
from infinicore_infer.server.chat_request import ChatRequest
from infinicore_infer.server.openai.background import BackgroundRun
from infinicore_infer.server.openai.response_items import ResponseWriter
from infinicore_infer.server.sampling import Sampling
from serving import CAPITAL, STORY, WEATHER, LiveServer, eventually, slow_steps

Make = Callable[..., LiveServer]
MODEL = "qwen3-tiny"
QUESTION = CAPITAL[0]["content"]
SECOND = "What is the capital of Italy?"
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather for a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
GREEDY: Any = {"model": MODEL, "temperature": 0}


def client_of(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def finished(client: openai.OpenAI, identity: str) -> Any:
    """Asks for a response until it has ended."""
    for _ in range(2000):
        response = client.responses.retrieve(identity)
        if response.status not in ("queued", "in_progress"):
            return response
        time.sleep(0.01)
    raise AssertionError(response)


@pytest.mark.parametrize("streamed", [False, True])
def test_going_on(client: openai.OpenAI, streamed: bool) -> None:
    """The answer is that to the whole conversation, whose beginning is in the prefix cache."""
    told: Any = {"instructions": "Be brief, and answer in English. " * 6, **GREEDY}
    first = client.responses.create(input=QUESTION, **told)
    assert first.store is True and first.previous_response_id is None
    options: Any = {"input": SECOND, **told}
    if streamed:
        with client.responses.stream(**options, previous_response_id=first.id) as stream:
            second: Any = stream.get_final_response()
    else:
        second = client.responses.create(**options, previous_response_id=first.id)
    items: list[Any] = [{"role": "user", "content": QUESTION}]
    items += [item.model_dump(exclude_none=True) for item in first.output]
    items += [{"role": "user", "content": SECOND}]
    whole = client.responses.create(**{**options, "input": items}, store=False)
    assert second.output_text == whole.output_text
    assert second.usage.input_tokens == whole.usage.input_tokens > first.usage.input_tokens + 9
    assert second.previous_response_id == first.id and second.id != first.id
    # The first question's prompt is remembered in blocks of 16 tokens.
    cached = second.usage.input_tokens_details.cached_tokens
    assert cached >= first.usage.input_tokens - 16 > 32
    # Instructions are not carried over.
    third = client.responses.create(input=SECOND, previous_response_id=first.id, **GREEDY)
    assert third.usage and third.usage.input_tokens < second.usage.input_tokens - 32


def test_retrieving(client: openai.OpenAI) -> None:
    response = client.responses.create(input=QUESTION, metadata={"a": "b"}, **GREEDY)
    assert client.responses.retrieve(response.id) == response
    client.responses.delete(response.id)
    for action in (
        lambda: client.responses.retrieve(response.id),
        lambda: client.responses.delete(response.id),
        lambda: client.responses.cancel(response.id),
        lambda: client.responses.input_items.list(response.id),
    ):
        with pytest.raises(openai.NotFoundError, match=response.id):
            action()
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(input="x", previous_response_id=response.id, **GREEDY)
    assert caught.value.param == "previous_response_id"
    assert caught.value.code == "previous_response_not_found"


def test_what_is_not_stored(client: openai.OpenAI) -> None:
    response = client.responses.create(input=QUESTION, store=False, **GREEDY)
    assert response.store is False
    with pytest.raises(openai.NotFoundError, match="is not stored"):
        client.responses.retrieve(response.id)


def test_deleted_ones_stay_in_what_follows(client: openai.OpenAI) -> None:
    identity, tokens = None, 0
    for text in (QUESTION, SECOND, "Thanks."):
        previous = identity
        response = client.responses.create(input=text, previous_response_id=identity, **GREEDY)
        identity = response.id
        if previous is not None:
            client.responses.delete(previous)
        assert response.usage and response.usage.input_tokens > tokens
        tokens = response.usage.input_tokens
    counted = client.responses.input_tokens.count(
        model=MODEL, input="x", previous_response_id=identity
    )
    assert counted.input_tokens > tokens


def test_input_items(client: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": str(i)} for i in range(5)]
    response = client.responses.create(input=items, max_output_tokens=1, **GREEDY)

    def texts(listed: Any) -> list[str]:
        return [item.content[0].text for item in listed]

    page = client.responses.input_items.list(response.id, limit=2)
    assert texts(page.data) == ["4", "3"] and page.has_more
    assert texts(page) == ["4", "3", "2", "1", "0"], "the client asks for the next pages"
    assert texts(client.responses.input_items.list(response.id, order="asc")) == [*"01234"]
    single = client.responses.create(input=QUESTION, max_output_tokens=1, **GREEDY)
    (item,) = client.responses.input_items.list(single.id).data
    assert item.type == "message" and item.role == "user" and texts([item]) == [QUESTION]
    for options in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "msg_0"}):
        with pytest.raises(openai.BadRequestError, match=next(iter(options))):
            client.responses.input_items.list(single.id, **options)  # type: ignore[arg-type]


def test_tools_and_references(client: openai.OpenAI) -> None:
    """The result of a call follows it, whether the call is stored, referred to, or sent again."""
    first = client.responses.create(input=WEATHER[0]["content"], tools=[TOOL], **GREEDY)
    call: Any = first.output[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    options: Any = {"tools": [TOOL], **GREEDY}
    stored = client.responses.create(input=[result], previous_response_id=first.id, **options)
    references = [{"type": "item_reference", "id": item.id} for item in first.output]
    question = {"role": "user", "content": WEATHER[0]["content"]}
    referred = client.responses.create(input=[question, *references, result], **options)
    sent = [item.model_dump(exclude_none=True) for item in first.output]
    whole = client.responses.create(input=[question, *sent, result], **options)
    for response in (stored, referred):
        assert response.usage and whole.usage
        assert response.usage.input_tokens == whole.usage.input_tokens
        assert response.output_text == whole.output_text
    listed = client.responses.input_items.list(referred.id, order="asc").data
    assert [item.type for item in listed][1:] == [item.type for item in first.output] + [
        "function_call_output"
    ]
    with pytest.raises(openai.BadRequestError, match="'fc_0', which is not stored"):
        client.responses.create(input=[{"type": "item_reference", "id": "fc_0"}], **options)


def test_input_tokens(client: openai.OpenAI) -> None:
    for options in ({}, {"instructions": "Be brief."}, {"tools": [TOOL]}):
        counted = client.responses.input_tokens.count(model=MODEL, input=QUESTION, **options)  # type: ignore[arg-type]
        assert counted.object == "response.input_tokens"
        response = client.responses.create(input=QUESTION, max_output_tokens=1, **options, **GREEDY)
        assert response.usage and counted.input_tokens == response.usage.input_tokens


def test_background(client: openai.OpenAI) -> None:
    expected = client.responses.create(input=QUESTION, **GREEDY)
    begun = client.responses.create(input=QUESTION, background=True, **GREEDY)
    assert begun.background is True and begun.status in ("queued", "in_progress")
    response = finished(client, begun.id)
    assert response.status == "completed" and response.id == begun.id
    assert response.output_text == expected.output_text and response.usage == expected.usage
    follow = client.responses.create(input=SECOND, previous_response_id=begun.id, **GREEDY)
    assert follow.status == "completed"
    # It has ended, so it stays what it is.
    assert client.responses.cancel(begun.id) == response
    with pytest.raises(openai.BadRequestError, match="not made in the background"):
        client.responses.cancel(expected.id)
    with pytest.raises(openai.BadRequestError, match="cannot be streamed"):
        client.responses.retrieve(begun.id, stream=True)


def test_streams_in_the_background(client: openai.OpenAI) -> None:
    """A stream that broke off goes on behind any of its events, also after the end."""
    events: list[Any] = list(
        client.responses.create(input=QUESTION, background=True, stream=True, **GREEDY)
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    identity = events[0].response.id
    assert events[0].response.status == "queued"
    assert events[-1].type == "response.completed"
    for after in (0, 5, len(events) - 2):
        again = list(client.responses.retrieve(identity, stream=True, starting_after=after))
        assert again == events[after + 1 :]
    assert list(client.responses.retrieve(identity, stream=True)) == events
    # As their events say themselves, both kinds of streams are the same.
    plain: list[Any] = list(client.responses.create(input=QUESTION, stream=True, **GREEDY))
    assert [e.type for e in plain] == [e.type for e in events if e.type != "response.queued"]


def test_streams_of_what_goes_on(make_server: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client leaves, another joins; then it is cancelled, and both streams have ended."""
    server = make_server()
    slow_steps(monkeypatch, server.model, 0.03)
    with client_of(server) as client:
        stream = client.responses.create(
            input=STORY[0]["content"], background=True, stream=True, **GREEDY
        )
        first: list[Any] = [next(stream) for _ in range(6)]
        stream.close()
        identity = first[0].response.id
        joined = client.responses.retrieve(identity, stream=True, starting_after=3)
        events: list[Any] = [next(joined), next(joined)]
        assert events == first[4:6]
        cancelled = client.responses.cancel(identity)
        assert cancelled.status == "cancelled"
        events += list(joined)
        assert events[-1].type == "response.cancelled"
        assert [e.sequence_number for e in events] == list(range(4, 4 + len(events)))
        assert client.responses.retrieve(identity) == cancelled
        # One that is being made is deleted, too.
        begun = client.responses.create(input=STORY[0]["content"], background=True, **GREEDY)
        client.responses.delete(begun.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(begun.id)
    server.check_idle()


def test_cancelled_before_it_begins(make_server: Make) -> None:
    """The engine is told, although nothing has followed the answer yet."""
    server = make_server()
    ended: list[BackgroundRun] = []

    async def run() -> Any:
        request = ChatRequest(
            messages=CAPITAL, sampling=Sampling(max_steps=500, settings={"ignore_eos": True})
        )
        chat = await begin_chat(server.service, lambda: request, "x")
        writer = ResponseWriter({"background": True}, chat, background=True)
        options: Any = {"inputs": "[]", "streamed": True, "grown": lambda count: None}
        run = BackgroundRun(server.service, chat.stream, writer, ended=ended.append, **options)
        await run.cancel()
        return run.response()["status"], chat.stream.jobs[0].cancelled

    assert asyncio.run(run()) == ("cancelled", True)
    assert len(ended) == 1 and "response.cancelled" in ended[0].events[-1]
    server.check_idle()


def test_failures_in_the_background(make_server: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server()

    def failing(requests: Any) -> Any:
        raise RuntimeError("the step failed")

    with client_of(server) as client:
        monkeypatch.setattr(server.model.native, "step", failing)
        begun = client.responses.create(input=QUESTION, background=True, **GREEDY)
        response = finished(client, begun.id)
        assert response.status == "failed" and response.error
        assert response.error.code == "server_error"
        stream = client.responses.create(input=QUESTION, background=True, stream=True, **GREEDY)
        events: list[Any] = list(stream)
        assert events[-1].type == "response.failed"


def test_memory_of_the_background_is_bounded(
    make_server: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being made counts from its begin; more than there is room for is put off."""
    server = make_server(response_bytes=50_000)
    slow_steps(monkeypatch, server.model, 0.03)
    body = {"input": QUESTION, "background": True, "metadata": {"a": "x" * 20_000}}
    begun = server.post("/v1/responses", {**body, "stream": False})
    assert begun.status_code == 200
    with server.http.stream("POST", "/v1/responses", json={**body, "stream": True}) as stream:
        next(stream.iter_lines())
        response = server.post("/v1/responses", body)
        assert response.status_code == 503 and "--response-memory" in response.text
    assert server.engine.wait_idle(60)
    body["max_output_tokens"] = 1
    assert eventually(lambda: server.post("/v1/responses", body).status_code == 200)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"background": True, "store": False}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"previous_response_id": 1}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"store": "yes"}, "store"),
    ],
)
def test_bad_requests(server: LiveServer, body: Any, param: str) -> None:
    response = server.post("/v1/responses", {"input": "x", **body})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "query", ["stream=maybe", "starting_after=1", "stream=true&starting_after=-1", "stream=true"]
)
def test_bad_queries(server: LiveServer, query: str) -> None:
    body = {"input": "x", "max_output_tokens": 1}
    identity = server.post("/v1/responses", body).json()["id"]
    response = server.http.get(f"/v1/responses/{identity}?{query}")
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] in ("stream", "starting_after")


def test_a_server_that_stores_nothing(make_server: Make) -> None:
    server = make_server(response_bytes=0)
    body = {"input": "x", "max_output_tokens": 1}
    response = server.post("/v1/responses", body).json()
    assert response["store"] is False
    assert server.http.get(f"/v1/responses/{response['id']}").status_code == 404
    for change in ({"background": True}, {"previous_response_id": response["id"]}):
        answer = server.post("/v1/responses", {**body, **change})
        assert answer.status_code == 400 and "--response-memory" in answer.text


def test_what_the_end_of_the_server_cuts_off(
    make_server: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there at the next start, and says that it failed."""
    server = make_server(response_dir=tmp_path / "kept")
    slow_steps(monkeypatch, server.model, 0.02)
    body = {"input": STORY[0]["content"], "background": True, "temperature": 0}
    identity = server.post("/v1/responses", body).json()["id"]
    server.close()
    with LiveServer(response_dir=tmp_path / "kept") as again:
        response = again.http.get(f"/v1/responses/{identity}").json()
        assert response["status"] == "failed" and response["error"]["code"] == "server_error"


def test_the_next_start(make_server: Make, tmp_path: Any) -> None:
    """Conversations go on after a restart where there is a folder."""
    first = make_server(response_dir=tmp_path / "kept")
    body = {"input": QUESTION, "temperature": 0}
    responses = [first.post("/v1/responses", body).json()]
    again = {**body, "input": SECOND, "previous_response_id": responses[0]["id"]}
    responses.append(first.post("/v1/responses", again).json())
    expected = first.post("/v1/responses", {**again, "store": False}).json()
    first.close()
    second = make_server(response_dir=tmp_path / "kept")
    for response in responses:
        found = second.http.get(f"/v1/responses/{response['id']}")
        assert found.status_code == 200 and found.json() == response
    answer = second.post("/v1/responses", again).json()
    texts = [[item.get("content") for item in each["output"]] for each in (answer, expected)]
    assert texts[0] == texts[1] and json.dumps(texts[0]).count("Rome")

"""How events reach a client: together where they come together, and pings when nothing comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from infinicore_infer.engine.async_engine import AsyncStream
from infinicore_infer.engine.jobs import Update
from infinicore_infer.engine.wakeups import Wakeups
from infinicore_infer.generate.results import GenerationPiece
from infinicore_infer.server.answer import begin_chat
from infinicore_infer.server.http import EventStream
from infinicore_infer.server.openai.chat import ChatWriter
from infinicore_infer.server.openai.errors import COMPLETION_STREAM
from infinicore_infer.server.openai.fields import ChatBody
from serving import CAPITAL, STORY, LiveServer, slow_steps
from starlette.requests import Request

Make = Callable[..., LiveServer]


def chunks_of(events: list[Any], **options: Any) -> list[str]:
    """What goes out, chunk by chunk, for events and pauses (None)."""

    async def source() -> AsyncGenerator[Any, None]:
        for event in events:
            if isinstance(event, Exception):
                raise event
            yield event

    async def run() -> list[str]:
        response = EventStream(source(), replace(COMPLETION_STREAM, **options))
        return [str(chunk) async for chunk in response.body_iterator]

    return asyncio.run(run())


def test_chunks() -> None:
    events = [{"n": n} for n in range(3)]
    a, b, c = (f'data: {{"n":{n}}}\n\n' for n in range(3))
    done = "data: [DONE]\n\n"
    assert chunks_of([events[0], events[1], None, events[2], None]) == [a + b, c, done]
    # The first pause only says that nothing was there to begin with.
    assert chunks_of([None, None, None]) == [": ping\n\n", ": ping\n\n", done]
    assert chunks_of([None, None], ping="x") == ["x", done]
    failed = chunks_of([events[0], ValueError("oops")])
    assert len(failed) == 1 and failed[0].endswith(done) and "oops" in failed[0]
    assert json.loads(failed[0].split("\n\n")[0].removeprefix("data: ")) == events[0]


def test_what_is_pending_comes_before_a_pause(make_server: Make) -> None:
    server = make_server()

    async def run() -> list[Any]:
        stream = AsyncStream()
        stream.jobs = [SimpleNamespace(cancelled=False)]  # type: ignore[list-item]
        seen: list[Any] = []

        async def read() -> None:
            async for item in server.service.follow(stream):
                seen.append(None if item is None else item[1].piece.token)

        reader = asyncio.ensure_future(read())
        await asyncio.sleep(0.05)
        for token in (1, 2, 3):
            stream.put(0, Update(piece=GenerationPiece("", token)))
        await asyncio.sleep(0.05)
        stream.put(0, Update(piece=GenerationPiece("", 4), done=True))
        await reader
        return seen

    assert asyncio.run(run()) == [None, 1, 2, 3, None, 4]


def test_one_wake_for_all_streams() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        wakeups = Wakeups()
        streams = [AsyncStream(wakeups) for _ in range(5)]
        waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
        for stream in streams:
            stream.jobs = [SimpleNamespace()]  # type: ignore[list-item]
        await asyncio.sleep(0.01)
        calls: list[Any] = []
        real = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args: calls.append(real(*args))  # type: ignore
        for stream in streams:
            stream.put(0, Update())
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting) and not calls
        wakeups.flush()
        await asyncio.gather(*waiting)
        wakeups.flush()
        assert len(calls) == 1

    asyncio.run(run())


def test_closed_loops() -> None:
    async def make(wakeups: Wakeups) -> AsyncStream:
        return AsyncStream(wakeups)

    wakeups = Wakeups()
    stream = asyncio.run(make(wakeups))
    with pytest.raises(RuntimeError, match="closed"):
        stream.put(0, Update())
    wakeups.flush()


def test_pings_of_messages(make_server: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anthropic's are events."""
    server = make_server(ping_seconds=0.1)
    slow_steps(monkeypatch, server.model, 0.35)
    body = {"messages": CAPITAL, "max_tokens": 2, "stream": True}
    text = server.post("/v1/messages", body).text
    assert text.startswith("event: message_start\n") and "event: message_stop\n" in text
    assert 'event: ping\ndata: {"type": "ping"}\n\n' in text and "\n: ping" not in text


def test_a_stream_that_is_never_sent_is_cancelled(make_server: Make) -> None:
    """The client may leave between the submission and the first byte."""
    server = make_server()
    service = server.service

    async def run() -> bool:
        body = ChatBody.model_validate({"messages": STORY, "ignore_eos": True, "stream": True})
        chat = await begin_chat(service, body.chat_request, "never sent")
        writer = ChatWriter(service, body, chat)
        response = await service.answer(
            Request({"type": "http"}), chat.stream, writer, streamed=True
        )
        assert not chat.answers[0].job.cancelled
        del response
        await asyncio.sleep(0.05)
        return chat.answers[0].job.cancelled

    assert asyncio.run(run())
    server.check_idle(5)

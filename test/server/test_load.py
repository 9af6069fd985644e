"""Many clients at once: nothing is lost, mixed up or left behind."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from infinicore_infer.engine.async_engine import AsyncStream
from infinicore_infer.engine.jobs import Update
from libinfinicore_infer import Qwen3Error
from qwen3 import Qwen3ForCausalLM
from serving import CAPITAL, GREEDY, STORY, LiveServer, held_steps

Make = Callable[..., LiveServer]


def _mixed_requests() -> list[dict[str, Any]]:
    """64 requests of lengths from 5 to some 600 prompt tokens and 1 to 60 new ones."""
    rng = random.Random(64)
    texts = [
        "Tell me more. ",
        "What is the capital of France? ",
        "One, two, three. ",
        "{[(\u00e9\U0001f600 ",
    ]
    result: list[dict[str, Any]] = []
    for i in range(64):
        repeats = rng.choice([0, 1, 3, 10, 40])
        prompt = rng.choice(texts) * repeats + f"What is {i} + {i % 7}?"
        result.append(
            {
                "prompt": prompt,
                "max_tokens": rng.choice([1, 5, 20, 60]),
                "extra_body": {"ignore_eos": rng.random() < 0.7},
            }
        )
    return result


def test_concurrent_streams(server: LiveServer, reference: Qwen3ForCausalLM) -> None:
    """64 streams; every greedy answer equals that of the model by itself; health answers."""
    requests = _mixed_requests()
    expected = [
        reference.generate(
            request["prompt"], request["max_tokens"], temperature=0, **request["extra_body"]
        )
        for request in requests
    ]

    async def one(client: openai.AsyncOpenAI, request: dict[str, Any]) -> tuple[str, int]:
        stream = await client.completions.create(
            model="qwen3-tiny",
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            **request,
        )
        text, count = "", 0
        async for chunk in stream:
            text += "".join(choice.text for choice in chunk.choices)
            count = chunk.usage.completion_tokens if chunk.usage else 0
        return text, count

    async def run() -> tuple[list[tuple[str, int]], list[int]]:
        statuses = []
        async with (
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
            httpx.AsyncClient(base_url=server.url, timeout=20) as probe,
        ):
            with held_steps(server.model) as begun:
                work = asyncio.gather(*(one(client, request) for request in requests))
                while not begun.is_set():
                    statuses.append((await probe.get("/health")).status_code)
                statuses += [(await probe.get("/health")).status_code for _ in range(5)]
            while not work.done():
                statuses.append((await probe.get("/health")).status_code)
                await asyncio.sleep(0.02)
            return await work, statuses

    steps = server.engine.stats.steps
    answers, statuses = asyncio.run(run())
    assert answers == [(result.text, len(result.tokens)) for result in expected]
    # How quickly is measured by test/bench/soak.py: tests do not depend on the machine.
    assert set(statuses) == {200}
    # They did share steps.
    assert server.engine.stats.steps - steps < sum(count for _, count in answers)


def test_disconnects_free_memory(server: LiveServer) -> None:
    """Clients that vanish at any time, with and without streaming, or while sending the body."""
    rng = random.Random(1)
    host, port = server.url.removeprefix("http://").split(":")

    async def one(i: int) -> None:
        body = {"messages": STORY, "stream": i % 2 == 0, "ignore_eos": True, **GREEDY}
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + (data[:-5] if i % 5 == 4 else data))
        await writer.drain()
        if i % 10 == 0:
            # In the middle of the answer.
            await reader.readuntil(b'"content":"')
        else:
            await asyncio.sleep(rng.uniform(0, 0.3))
        if i % 3 == 0:
            # A reset instead of an orderly end.
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()

    async def run() -> None:
        await asyncio.gather(*(one(i) for i in range(60)))

    asyncio.run(run())
    server.check_idle()
    assert server.chat()["choices"][0]["message"]["content"] == "The capital of France is Paris."


@pytest.mark.parametrize("ticks", range(8))
def test_client_leaves_as_an_update_comes(server: LiveServer, ticks: int) -> None:
    """However the two fall together, the reader ends; else the answer goes on for nobody."""

    async def run() -> None:
        stream = AsyncStream()
        stream.jobs = [SimpleNamespace(cancelled=False)]  # type: ignore[list-item]

        async def read() -> None:
            async for _ in server.service.follow(stream):
                pass

        reader = asyncio.ensure_future(read())
        await asyncio.sleep(0.02)
        stream.put(0, Update())
        for _ in range(ticks):
            await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait({reader}, timeout=1)
        assert reader.cancelled()
        assert stream.jobs[0].cancelled

    asyncio.run(run())


def test_second_turn_hits_the_prefix_cache(make_server: Make) -> None:
    """Also with thinking, which the template removes from earlier turns."""
    server = make_server()
    question = "Please listen carefully. " * 12 + "What is the capital of France?"
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    first = server.chat(messages)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    message = first["choices"][0]["message"]
    messages += [message, {"role": "user", "content": "And of Italy?"}]
    second = server.chat(messages, max_tokens=5)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert first["usage"]["prompt_tokens"] - 16 <= cached <= first["usage"]["prompt_tokens"]
    assert cached % 16 == 0
    cold = make_server(prefix_cache_bytes=0)
    same = cold.chat(messages, max_tokens=5)
    assert same["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert same["choices"] == second["choices"]
    server.check_idle()


def test_failed_step_and_recovery(make_server: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server()
    real = server.model.native.step
    calls = 0

    def fragile(requests: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Qwen3Error(1, "QWEN3_STATUS_INTERNAL_ERROR", "injected")
        return real(requests)

    monkeypatch.setattr(server.model.native, "step", fragile)
    body = {"messages": CAPITAL, **GREEDY}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 500
    assert "injected" in response.json()["error"]["message"]
    assert server.chat()["choices"][0]["message"]["content"] == "The capital of France is Paris."
    calls = 0
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(model="qwen3-tiny", messages=CAPITAL, stream=True)
        with pytest.raises(openai.APIError, match="injected"):
            list(stream)
    assert server.http.get("/health").status_code == 200
    server.check_idle()

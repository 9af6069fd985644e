"""Many clients at once: nothing is lost, mixed up or left behind."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from libinfinicore_infer import Qwen3Error
from qwen3 import Qwen3ForCausalLM
from serving import CAPITAL, GREEDY, STORY, LiveServer

Make = Callable[..., LiveServer]


def test_concurrent_streams(server: LiveServer, reference: Qwen3ForCausalLM) -> None:
    """32 streams; every greedy answer equals that of the model by itself; health stays quick."""
    prompts = [f"{'Tell me more. ' * (i % 5)}What is {i} + {i % 7}?" for i in range(32)]
    expected = [
        reference.generate(prompt, 30, temperature=0, ignore_eos=True).text for prompt in prompts
    ]

    async def one(client: openai.AsyncOpenAI, prompt: str) -> str:
        stream = await client.completions.create(
            model="qwen3-tiny",
            prompt=prompt,
            max_tokens=30,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def run() -> tuple[list[str], list[float]]:
        delays = []
        async with (
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
            httpx.AsyncClient(base_url=server.url) as probe,
        ):
            work = asyncio.gather(*(one(client, prompt) for prompt in prompts))
            while not work.done():
                begin = time.monotonic()
                assert (await probe.get("/health")).status_code == 200
                delays.append(time.monotonic() - begin)
                await asyncio.sleep(0.02)
            return await work, delays

    answers, delays = asyncio.run(run())
    assert answers == expected
    # Client and server share this process and a busy machine.
    assert sorted(delays)[len(delays) // 2] < 0.5


def test_disconnects_free_memory(server: LiveServer) -> None:
    """Clients that vanish at any time, with and without streaming."""
    rng = random.Random(1)

    async def one(client: httpx.AsyncClient, i: int) -> None:
        body = {"messages": STORY, "stream": i % 2 == 0, "ignore_eos": True, **GREEDY}
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await asyncio.wait_for(
                client.post("/v1/chat/completions", json=body), rng.uniform(0.01, 0.2)
            )

    async def run() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            await asyncio.gather(*(one(client, i) for i in range(20)))

    asyncio.run(run())
    server.check_idle()
    assert server.chat()["choices"][0]["message"]["content"] == "The capital of France is Paris."


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


def test_generated_garbage(server: LiveServer) -> None:
    """Random bodies get an answer of the 400s, or are fine; nothing breaks."""
    rng = random.Random(7)
    values = [None, True, 0, -1, 1.5, 10**30, "", "x", [], ["x"], [[]], {}, {"a": 1}, [None]]
    names = ["messages", "prompt", "n", "stop", "tools", "stream", "seed", "logit_bias", "top_k"]
    names += ["temperature", "response_format", "tool_choice", "chat_template_kwargs", "logprobs"]
    names += ["stream_options", "top_logprobs", "max_tokens", "stop_token_ids", "model"]
    for _ in range(300):
        body: dict[str, Any] = {"max_tokens": 1}
        if rng.random() < 0.7:
            body |= {"messages": CAPITAL, "prompt": "Hi"}
        for name in rng.sample(names, rng.randint(1, 3)):
            body[name] = rng.choice(values)
        path = rng.choice(["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
        response = server.post(path, body)
        assert response.status_code in (200, 400, 404), (path, body, response.text)
        if response.status_code != 200:
            assert response.json()["error"]["message"]
    server.check_idle()

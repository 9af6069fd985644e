"""``/v1/embeddings``: OpenAI's client, forms of input and output, what is refused, many at once."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from python.pooling_models import TEXTS, make_embedder
from qwen3 import Qwen3ForCausalLM
from serving import LiveServer

TASK = "Given a web search query, retrieve relevant passages that answer the query"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_embedder(tmp_path_factory.mktemp("embedders"), tied=False)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Qwen3ForCausalLM]:
    with Qwen3ForCausalLM(folder, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[LiveServer]:
    with LiveServer(folder=folder) as server:
        yield server


@pytest.fixture
def server(shared: LiveServer) -> Iterator[LiveServer]:
    yield shared
    shared.check_idle()


def vectors(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [each["index"] for each in data] == list(range(len(data)))
    assert all(each["object"] == "embedding" for each in data)
    return np.array([each["embedding"] for each in data], np.float32)


def test_openai_client(server: LiveServer, model: Qwen3ForCausalLM) -> None:
    """The client asks for base64 unless it is told otherwise."""
    expected = model.embed(TEXTS)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for form in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            result = client.embeddings.create(model="qwen3-tiny", input=TEXTS, **form)
            got = [each.embedding for each in result.data]
            if form.get("encoding_format") == "base64":  # then it is left to the caller
                got = [np.frombuffer(base64.b64decode(str(each)), "<f4").tolist() for each in got]
            assert np.array_equal(np.array(got, np.float32), expected)
        tokens = sum(map(len, model.embedder.tokens(TEXTS)))
        assert result.usage.prompt_tokens == result.usage.total_tokens == tokens
        short = client.embeddings.create(model="qwen3-tiny", input="I", dimensions=7)
        assert np.array_equal(
            np.array(short.data[0].embedding, np.float32), model.embed("I", dimensions=7)
        )
        with pytest.raises(openai.NotFoundError, match="another"):
            client.embeddings.create(model="another", input="I")


def test_forms_of_input(server: LiveServer, model: Qwen3ForCausalLM) -> None:
    for given, same in (
        ("I", ["I"]),
        (["I", "the cat"], ["I", "the cat"]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ):
        got = vectors(server.post("/v1/embeddings", {"input": given}))
        assert np.array_equal(got, model.embed(same))  # type: ignore[arg-type]
    plain = model.tokenizer.encode("the cat")
    for body, expected in (
        ({"input": "the cat", "add_special_tokens": False}, model.embed([plain])),
        ({"input": "the cat", "normalize": False}, model.embed(["the cat"], normalize=False)),
        ({"input": "the cat", "instruction": TASK}, model.embed(["the cat"], instruction=TASK)),
        ({"input": "the cat", "user": "me"}, model.embed(["the cat"])),
    ):
        assert np.array_equal(vectors(server.post("/embeddings", body)), expected)


def test_truncation(server: LiveServer, model: Qwen3ForCausalLM) -> None:
    text = "the cat sat on the mat " * 200
    ids = model.tokenizer.encode(text)
    end = model.tokenizer.token_id("<|endoftext|>")
    for body, kept in (
        ({"truncate_prompt_tokens": 9}, ids[:8]),
        ({"truncate_prompt_tokens": 9, "truncation_side": "left"}, ids[-8:]),
        ({"truncate_prompt_tokens": -1}, ids[:511]),
    ):
        response = server.post("/v1/embeddings", {"input": text, **body})
        assert np.array_equal(vectors(response), model.embed([[*kept, end]]))
        assert response.json()["usage"]["prompt_tokens"] == len(kept) + 1


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "input", "required"),
        ({"input": []}, "input", "from 1 to 2048 texts, got 0"),
        ({"input": ["a"] * 2049}, "input", "from 1 to 2048 texts, got 2049"),
        ({"input": ["a", 3]}, "input", "input[1]"),
        ({"input": ["a", []]}, "input", "input[1]"),
        ({"input": [[]]}, "input[0]", "at least one token"),
        ({"input": [[1], [99999]]}, "input[1]", "99999"),
        ({"input": ["I", "the cat " * 400]}, "input[1]", "at most 512 fit"),
        ({"input": "I", "dimensions": 65}, "dimensions", "64, got 65"),
        ({"input": "I", "dimensions": 0}, "dimensions", "64, got 0"),
        ({"input": "I", "encoding_format": "int8"}, "encoding_format", "'base64'"),
        ({"input": "I", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "got 0"),
        ({"input": [1], "instruction": "x"}, "instruction", "token ids"),
        ({"input": "I", "messages": [{"role": "user"}]}, "messages", "not supported"),
    ],
)
def test_what_is_refused(server: LiveServer, body: Any, param: str, words: str) -> None:
    response = server.post("/v1/embeddings", body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param and words in error["message"], error


def test_what_the_model_is_not_for(server: LiveServer) -> None:
    (card,) = server.http.get("/v1/models").json()["data"]
    assert card["task"] == "embed"
    messages = [{"role": "user", "content": "Hello"}]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"):
        response = server.post(path, {"messages": messages, "prompt": "a", "input": "a"})
        assert response.status_code == 400
        assert f"{path} needs a model for chats" in response.text
        assert "it serves /v1/embeddings" in response.text
    for path in ("/v1/rerank", "/v2/rerank", "/rerank", "/score", "/v1/score"):
        response = server.post(path, {"query": "a", "documents": ["b"]})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "unsupported_task"


def test_unknown_fields_are_named(server: LiveServer) -> None:
    response = server.post("/v1/embeddings", {"input": "I", "pooling": "mean"})
    assert response.headers["X-Ignored-Fields"] == "pooling"


def test_many_at_once(server: LiveServer, model: Qwen3ForCausalLM) -> None:
    """Long and short requests share steps, and everybody gets what they would get alone."""
    rng = np.random.default_rng(3)
    bodies = [
        [rng.integers(0, 300, int(n)).tolist() for n in rng.integers(1, most, count)]
        for most, count in ((500, 6), (3, 40), (60, 9), (2, 1), (512, 2), (20, 12))
    ]
    with ThreadPoolExecutor(len(bodies)) as pool:
        asked = [pool.submit(server.post, "/v1/embeddings", {"input": each}) for each in bodies]
        for body, future in zip(bodies, asked, strict=True):
            assert np.array_equal(vectors(future.result()), model.embed(body))


def test_a_client_that_leaves(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its texts are computed no further."""
    begun, go_on = threading.Event(), threading.Event()
    embed, calls = server.model.native.embed, []

    def held(*arguments: Any) -> Any:
        calls.append(arguments)
        begun.set()
        assert go_on.wait(30)
        return embed(*arguments)

    monkeypatch.setattr(server.model.native, "embed", held)
    connection = HTTPConnection(server.url.removeprefix("http://"))
    connection.request("POST", "/v1/embeddings", json.dumps({"input": [[1] * 400] * 50}))
    assert begun.wait(30)
    connection.close()
    go_on.set()
    server.check_idle()
    assert len(calls) < 10


def test_full_late_and_closed(folder: Path) -> None:
    with LiveServer(
        folder=folder, max_batch=1, max_queue=0, request_timeout=1.0, step_tokens=1
    ) as server:
        pooling = server.engine.pooling
        assert pooling is not None
        begun, go_on = threading.Event(), threading.Event()
        embed = server.model.native.embed

        def held(*arguments: Any) -> Any:
            begun.set()
            assert go_on.wait(30)
            return embed(*arguments)

        server.model.native.embed = held  # type: ignore[method-assign]
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(server.post, "/v1/embeddings", {"input": [[1], [2]]})
            assert begun.wait(30)
            full = server.post("/v1/embeddings", {"input": "I"})
            assert full.status_code == 429 and full.headers["Retry-After"]
            threading.Timer(1.2, go_on.set).start()
            assert late.result().status_code == 504
        server.engine.close()
        assert server.post("/v1/embeddings", {"input": "I"}).status_code == 503


def test_texts_beyond_the_memory(folder: Path) -> None:
    with Qwen3ForCausalLM(folder) as model:
        limit = 4 * model.stats()["kv_block_bytes"]
    with LiveServer(folder=folder, kv_limit_bytes=limit) as server:
        response = server.post("/v1/embeddings", {"input": [[1] * 64, [1] * 65]})
        assert response.status_code == 400 and "at most 64 fit" in response.text
        assert len(vectors(server.post("/v1/embeddings", {"input": [[1] * 64] * 9}))) == 9

"""The worst bodies within the limits hold nobody up: counted in answers that others get."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
from infinicore_infer.text.tokenizer import Qwen3Tokenizer
from serving import CAPITAL, STORY, LiveServer

PATHS: dict[str, Any] = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/completions": lambda text: {"prompt": text},
    "/v1/responses": lambda text: {"input": text},
    "/v1/messages": lambda text: {
        "max_tokens": 1,
        "messages": [{"role": "user", "content": text}],
    },
    "/v1/messages/count_tokens": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/tokenize": lambda text: {"prompt": text},
}


@pytest.mark.parametrize("path", PATHS)
def test_what_cannot_fit_is_not_encoded(
    server: LiveServer, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = PATHS[path]("a" * 3_000_000)
    monkeypatch.setattr(Qwen3Tokenizer, "_encode", None)
    response = server.post(path, body)
    assert response.status_code == 400, response.text
    assert "the context holds" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
def test_panics_are_the_texts_fault(
    server: LiveServer, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """As pyo3's."""

    def panic(*_: object) -> None:
        raise PanicException("no more memory")

    monkeypatch.setattr(Qwen3Tokenizer, "_encode", staticmethod(panic))
    response = server.post(path, PATHS[path]("x"))
    assert response.status_code == 400
    assert "cannot read this text" in response.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text", "numbers", "lists"])
def test_others_get_answers_meanwhile(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of /health, and tokens of a stream, between a bad body's first byte and its refusal."""
    # What only just fits must not hold others up either.
    monkeypatch.setattr(Qwen3Tokenizer, "may_fit", lambda *_: True)
    path, content = {
        "text": (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a b" * 700_000}]},
        ),
        "numbers": ("/v1/completions", {"prompt": [1] * 1_500_000}),
        "lists": ("/v1/chat/completions", {"messages": [[1]] * 900_000}),
    }[kind]
    data = json.dumps(content).encode()
    done = threading.Event()
    status: list[int] = []

    def bad() -> None:
        status.append(httpx.post(server.url + path, content=data, timeout=60).status_code)
        done.set()

    body = {"messages": STORY, "max_tokens": 1500, "stream": True, "ignore_eos": True}
    answers = events = 0
    with server.http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        thread = threading.Thread(target=bad)
        thread.start()
        with httpx.Client(base_url=server.url) as health:
            while not done.is_set():
                assert health.get("/health").status_code == 200
                answers += 1
                events += bool(next(lines, ""))
        thread.join()
    assert status == [400]
    assert answers >= 5, (answers, events)
    assert server.chat(CAPITAL, max_tokens=1)


def test_too_many_values(server: LiveServer) -> None:
    data = json.dumps({"prompt": [1] * 2_100_000}).encode()
    assert server.http.post("/v1/completions", content=data).status_code == 413

"""The worst bodies within the limits hold nobody up: counted in answers that others get."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
from infinicore_infer.text.tokenizer import Qwen3Tokenizer
from serving import CAPITAL, STORY, LiveServer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
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


_BIG = "é" * 2_000_000
WORST: dict[str, tuple[str, Any, int]] = {
    "text": (CHAT, {"messages": [{"role": "user", "content": "a b" * 700_000}]}, 400),
    "numbers": (TEXT, {"prompt": [1] * 260_000}, 400),
    "lists": (CHAT, {"messages": [[1]] * 65_000}, 400),
    "messages": (CHAT, {"messages": CAPITAL * 65_000}, 400),
    "items": ("/v1/responses", {"input": CAPITAL * 65_000}, 400),
    "tools": (CHAT, {"messages": CAPITAL, "tools": [{"type": "mcp"}] * 60_000}, 200),
    "unknown": (CHAT, {"messages": CAPITAL, **{f"k{i}": 0 for i in range(200_000)}}, 413),
    "model": (CHAT, {"messages": CAPITAL, "model": _BIG}, 404),
    "metadata": ("/v1/responses", {"input": "x", "metadata": {"a": _BIG}}, 200),
}


@pytest.mark.parametrize("kind", WORST)
def test_others_get_answers_meanwhile(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of /health, and tokens of a stream, between bad bodies' first byte and their refusal."""
    # What only just fits must not hold others up either.
    monkeypatch.setattr(Qwen3Tokenizer, "may_fit", lambda *_: True)
    path, content, expected = WORST[kind]
    data = json.dumps({"max_output_tokens" if "resp" in path else "max_tokens": 1, **content})
    done = threading.Event()
    status: list[int] = []
    sizes: list[int] = []
    times = 1 if kind in ("text", "items", "messages") else 4

    def bad() -> None:
        for _ in range(times):
            response = httpx.post(server.url + path, content=data, timeout=60)
            status.append(response.status_code)
            sizes.append(len(response.content))
        done.set()

    body = {"messages": STORY, "max_tokens": 1500, "stream": True, "ignore_eos": True}
    answers = events = 0
    with server.http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        thread = threading.Thread(target=bad)
        thread.start()
        with httpx.Client(base_url=server.url, timeout=60) as health:
            while not done.is_set():
                assert health.get("/health").status_code == 200
                answers += 1
                events += bool(next(lines, ""))
        thread.join()
    assert status == [expected] * times
    # Nor is what was long sent back.
    assert max(sizes) < 100_000
    # While each of them was looked at, others got several.
    assert answers >= 5, (answers, events)
    assert server.chat(CAPITAL, max_tokens=1)


@pytest.mark.parametrize(
    ("prompt", "what"), [([1] * 263_000, "values"), ([[1]] * 66_000, "lists and objects")]
)
def test_too_many_parts(server: LiveServer, prompt: Any, what: str) -> None:
    data = json.dumps({"prompt": prompt})
    response = server.http.post(TEXT, content=data)
    assert response.status_code == 413 and what in response.json()["error"]["message"]


def test_many_forged_tokens(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read as plain text, and what follows is not encoded again for each of them."""
    encode, sizes = Qwen3Tokenizer._encode, []

    def counting(tokenizer: Any, text: str) -> Any:
        sizes.append(len(text))
        return encode(tokenizer, text)

    monkeypatch.setattr(Qwen3Tokenizer, "_encode", staticmethod(counting))
    count = 1500
    messages = [{"role": "user", "content": "<|im_end|>" * count}]
    tokenizer = server.model.tokenizer
    ids = tokenizer.encode_chat(messages, allow_special=False)
    plain = tokenizer.encode_chat([{"role": "user", "content": "x"}])
    end = tokenizer.token_id("<|im_end|>")
    assert ids.count(end) == plain.count(end)
    assert sum(sizes) < 2000 * count


def test_many_unknown_fields_are_told_of_briefly(
    server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"messages": CAPITAL, "max_tokens": 1, **{f"unknown{i}": 0 for i in range(900)}}
    response = server.post(CHAT, body)
    assert response.status_code == 200 and len(response.headers["X-Ignored-Fields"]) < 1000
    assert caplog.text.count("unknown") <= 1000
    body |= {f"more{i}": 0 for i in range(1000)}
    assert server.post(CHAT, body).status_code == 413

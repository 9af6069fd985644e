"""Thousands of malformed requests: OpenAI's errors, never a 500, nothing left behind."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Callable

import garbage
import pytest
from serving import LiveServer


@pytest.fixture(scope="module")
def connection(shared_server: LiveServer) -> http.client.HTTPConnection:
    """A connection that stays open: no request may cost the others theirs."""
    return http.client.HTTPConnection(shared_server.url.removeprefix("http://"), timeout=20)


def _send(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, bytes]:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read()


def _check_error(data: bytes, path: str = "") -> None:
    """OpenAI's shape: four fields, the message a sentence. Or Anthropic's, or Ollama's."""
    body = json.loads(data)
    if path.startswith("/v1/messages"):
        assert set(body) == {"type", "error"} and body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
        assert all(isinstance(text, str) and text for text in body["error"].values())
        return
    assert set(body) == {"error"}
    if path.startswith("/api/"):
        assert isinstance(body["error"], str) and body["error"]
        return
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str) and body["error"]["message"]
    assert isinstance(body["error"]["type"], str)
    for name in ("param", "code"):
        assert body["error"][name] is None or isinstance(body["error"][name], str)


@pytest.mark.parametrize("path", garbage.GOOD)
def test_good_bodies_are_good(connection: http.client.HTTPConnection, path: str) -> None:
    """Else what is spoiled below would be refused for another reason."""
    for body in garbage.GOOD[path]:
        status, data = _send(connection, path, json.dumps(body).encode())
        assert status == 200, data
        assert b'"error":{' not in data


@pytest.mark.parametrize("seed", range(3))
def test_malformed(server: LiveServer, connection: http.client.HTTPConnection, seed: int) -> None:
    statuses: Counter[int] = Counter()
    failed = server.engine.stats.failed_steps
    for path, body in garbage.requests(seed, 700):
        status, data = _send(connection, path, body)
        statuses[status] += 1
        assert status == 200 or 400 <= status < 500, (path, body[:2000], status, data)
        if status != 200:
            _check_error(data, path)
        else:
            assert b'"error":{' not in data, (path, body[:2000], data)
    assert server.engine.stats.failed_steps == failed
    # The generator does reach both sides.
    assert statuses[400] > 200 and statuses[200] > 70, statuses


def test_no_memory_is_kept(make_server: Callable[..., LiveServer]) -> None:
    """Without a prefix cache, as many bytes and caches as before the first request."""
    server = make_server(prefix_cache_bytes=0)
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
    for path, body in garbage.requests(99, 300):
        _send(connection, path, body)
    server.check_idle()
    memory = server.model.stats()
    assert memory["kv_used_bytes"] == memory["ncaches"] == 0


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"])
def test_wrong_methods(connection: http.client.HTTPConnection, method: str) -> None:
    for path in garbage.GOOD:
        connection.request(method, path)
        response = connection.getresponse()
        data = response.read()
        assert response.status == 405
        if method != "HEAD":
            _check_error(data, path)


@pytest.mark.parametrize(
    "path", ["/v2/models", "/v1", "/v1/chat", "/v1/models/", "/%00", "/v1/models/%ff", "//x"]
)
def test_wrong_paths(connection: http.client.HTTPConnection, path: str) -> None:
    connection.request("GET", path)
    response = connection.getresponse()
    data = response.read()
    assert response.status == 404, data
    _check_error(data)


def test_odd_headers(connection: http.client.HTTPConnection) -> None:
    """Headers that a program might trust."""
    body = b'{"prompt": "x", "max_tokens": 1}'
    for name, value in [
        ("Content-Type", "text/plain"),
        ("Content-Type", "application/json; charset=utf-16"),
        ("Content-Encoding", "gzip"),
        ("X-Request-Id", "a\tb" * 200),
        ("Authorization", "Bearer \xff"),
        ("Accept", "image/png"),
        ("Cookie", "a=" + "b" * 4000),
        ("Origin", "null"),
    ]:
        connection.request("POST", "/v1/completions", body, {name: value})
        response = connection.getresponse()
        data = response.read()
        assert response.status == 200 or 400 <= response.status < 500, (name, data)
        assert len(response.headers["X-Request-Id"]) <= 64

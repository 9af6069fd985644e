"""Clients that are slow, idle or many, and those that would rather speak HTTP/2."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from infinicore_infer.server import connections
from infinicore_infer.server.bodies import BodyLimits
from infinicore_infer.server.connections import ConnectionLimits, protocol_class, usable_connections
from infinicore_infer.server.errors import ApiError
from python.helpers import SCRIPTS
from test_launch import launched

UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


class Echo:
    """A server that answers with what it was sent; /hold is only answered when the test says."""

    def __init__(
        self,
        max_connections: int = 100,
        head_timeout: float = 5.0,
        body_timeout: float = 5.0,
        send_timeout: float = 60.0,
        memory: int = 1 << 20,
    ) -> None:
        limits = ConnectionLimits(max_connections, head_timeout, body_timeout, send_timeout)
        config = uvicorn.Config(
            BodyLimits(self._app, body_timeout, memory),
            port=0,
            http=protocol_class(limits),
            ws="none",
            log_config=None,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)
        self.released = threading.Event()
        self.held = 0
        self.floods = 1000
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body, status, headers = b"", 200, {}
        if scope["path"] == "/early":
            status = 413
        elif scope["path"] == "/hold":
            self.held += 1
            while not self.released.is_set():
                await asyncio.sleep(0.01)
        elif scope["path"] == "/echo":
            try:
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
            except ApiError as error:
                status, body, headers = error.status, error.message.encode(), error.headers
        elif scope["path"] == "/flood":
            self.held += 1
            await send({"type": "http.response.start", "status": 200, "headers": []})
            try:
                for _ in range(self.floods):
                    part = {"type": "http.response.body", "body": b"x" * 65536, "more_body": True}
                    await send(part)
                await send({"type": "http.response.body", "body": b""})
            finally:
                self.held -= 1
            return
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        pairs.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def close(self) -> None:
        self.released.set()
        self.server.should_exit = True
        self._thread.join(10)


@pytest.fixture
def echo() -> Iterator[Callable[..., Echo]]:
    servers: list[Echo] = []

    def make(**options: Any) -> Echo:
        servers.append(Echo(**options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def everything(client: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    data = b""
    try:
        while part := client.recv(1 << 16):
            data += part
    except ConnectionResetError:
        pass
    return data


def responses(client: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """The next responses, which have a length each: their status and body."""
    data, found = b"", []
    while len(found) < count:
        head, end, rest = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if end and len(rest) >= length:
            found.append((int(head.split()[1]), rest[:length]))
            data = rest[length:]
            continue
        part = client.recv(1 << 16)
        assert part, f"closed after {found} and {data!r}"
        data += part
    return found


# ------------------------------------------------------------------ upgrades


@pytest.mark.parametrize("cut", [0, -5, -1, 30])
@pytest.mark.parametrize("chunked", [False, True])
def test_upgrade_is_ignored(echo: Callable[..., Echo], cut: int, chunked: bool) -> None:
    """RFC 9110, 7.8: with the body in the same packet, and in one of its own."""
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 5"
    body = b"5\r\nhello\r\n0\r\n\r\n" if chunked else b"hello"
    request = b"POST /echo HTTP/1.1\r\nHost: a\r\n" + UPGRADE + length + b"\r\n\r\n" + body
    with echo().connect() as client:
        for part in (request[: cut or None], request[len(request[: cut or None]) :]):
            client.sendall(part)
            time.sleep(0.05)
        assert responses(client, 1) == [(200, b"hello")]
        # The connection stays what it was, for any number of requests.
        client.sendall(request * 3 + b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert responses(client, 4) == [(200, b"hello")] * 3 + [(200, b"")]


@pytest.mark.parametrize("wish", ["websocket", "TLS/1.2", "h2c, websocket"])
def test_any_upgrade_is_ignored(echo: Callable[..., Echo], wish: str) -> None:
    head = (
        f"POST /echo HTTP/1.1\r\nHost: a\r\nUpgrade: {wish}\r\nContent-Length: 2\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    with echo().connect() as client:
        client.sendall(f"{head}Connection: upgrade\r\n\r\nhi".encode())
        assert responses(client, 1) == [(200, b"hi")]
        client.sendall(f"{head}Connection: upgrade, close\r\n\r\nhi".encode())
        assert everything(client).endswith(b"hi")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_http2(echo: Callable[..., Echo]) -> None:
    command = ["curl", "-sS", "--http2", "--max-time", "10", f"{echo().url}/echo", "-d", "x" * 5000]
    run = subprocess.run(command, capture_output=True, check=True)
    assert run.stdout == b"x" * 5000


# ------------------------------------------------------------------ time


def trickle(client: socket.socket, data: bytes, seconds: float) -> bytes:
    """Sends a byte at a time until the server has had enough; returns what it says."""
    end = time.monotonic() + seconds
    for i in range(len(data)):
        try:
            client.sendall(data[i : i + 1])
        except OSError:
            break
        client.settimeout(0.1)
        try:
            part = client.recv(1 << 16)
            return part + everything(client)
        except TimeoutError:
            assert time.monotonic() < end, "the server never ended it"
        except OSError:
            break
    return b""


def test_slow_heads(echo: Callable[..., Echo]) -> None:
    server = echo(head_timeout=0.5)
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 1000
    with server.connect() as client:
        answer = trickle(client, head, 5)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"0.5 seconds" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    # Nothing at all, line ends that mean nothing, and both after a first request.
    first = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    for before, data in ((b"", b""), (b"", b"\r\n" * 500), (first, b"\r\n" * 500), (first, head)):
        with server.connect() as client:
            if before:
                client.sendall(before)
                assert responses(client, 1) == [(200, b"")]
            begin = time.monotonic()
            if data:
                trickle(client, data, 5)
            else:
                assert everything(client) == b""
            assert time.monotonic() - begin < 5


def test_slow_bodies(echo: Callable[..., Echo], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_GRACE_SECONDS", 0.5)
    server = echo(body_timeout=0.5)
    head = b"POST /%s HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
    with server.connect() as client:
        client.sendall(head % b"echo")
        answer = trickle(client, b"x" * 1000, 5)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"connection: close" in answer.lower()
    # One that nobody reads, because the answer is known: closed, too.
    with server.connect() as client:
        client.sendall(head % b"early")
        assert responses(client, 1)[0][0] == 413
        begin = time.monotonic()
        trickle(client, b"x" * 1000, 5)
        assert time.monotonic() - begin < 5


def test_time_of_answers_is_not_limited(
    echo: Callable[..., Echo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the time that a request waits behind the one before it on its connection."""
    monkeypatch.setattr(connections, "_GRACE_SECONDS", 0.0)
    server = echo(head_timeout=0.5, body_timeout=0.5)
    with server.connect() as client:
        second = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
        client.sendall(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n" + second[:-3])
        time.sleep(1)
        server.released.set()
        assert responses(client, 1) == [(200, b"")]
        client.sendall(second[-3:])
        assert responses(client, 1) == [(200, b"hello")]


def test_endless_heads(echo: Callable[..., Echo]) -> None:
    server = echo()
    for start in (b"GET /", b"GET / HTTP/1.1\r\nA: ", b"GET / HTTP/1.1\r\nTransfer-Encoding: "):
        with server.connect() as client:
            with pytest.raises(OSError):
                for _ in range(100):
                    client.sendall(start.ljust(1 << 16, b"x"))
                    start = b""
                    time.sleep(0.01)
    # And what may come after the last chunk.
    with server.connect() as client, pytest.raises(OSError):
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        for _ in range(100):
            client.sendall(b"a: b\r\n" * 10_000)
            time.sleep(0.01)
    assert httpx.get(f"{server.url}/health", headers={"a": "x" * 60_000}).status_code == 200


def test_clients_that_do_not_read(echo: Callable[..., Echo]) -> None:
    """They would hold their connection, and what answers them, for ever."""
    server = echo(send_timeout=0.5)
    with ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(server.connect())
            client.sendall(b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n")
        end = time.monotonic() + 10
        while server.held < 3 and time.monotonic() < end:
            time.sleep(0.01)
        while server.held and time.monotonic() < end:
            time.sleep(0.01)
        assert not server.held
    # One that reads slowly, but does, gets all of it.
    with server.connect() as client:
        client.sendall(b"GET /flood HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        size = 0
        for i in range(10**6):
            part = client.recv(1 << 20)
            size += len(part)
            if not part:
                break
            time.sleep(0.02 if i < 60 else 0)
        assert size > server.floods * 65536


# ------------------------------------------------------------------ memory


def test_memory_of_bodies(echo: Callable[..., Echo]) -> None:
    """The largest that is still coming goes; short ones are served, and all is given back."""
    server = echo(memory=1 << 20, body_timeout=20.0)
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(10)]
        for i, client in enumerate(clients):
            client.sendall(head + b"x" * (200_000 + i))
        time.sleep(0.3)
        for _ in range(5):
            assert httpx.post(f"{server.url}/echo", content=b"y" * 100_000).content[:1] == b"y"
        refused = 0
        for client in clients:
            client.setblocking(False)
            try:
                answer = client.recv(1 << 16)
            except BlockingIOError:
                continue
            assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: " in answer.lower()
            assert b"1048576 bytes" in answer
            refused += 1
        assert 5 <= refused <= 8
    for _ in range(5):
        content = b"z" * 900_000
        assert httpx.post(f"{server.url}/echo", content=content, timeout=20).content == content


# ------------------------------------------------------------------ numbers


def test_idle_connections_go_first(echo: Callable[..., Echo]) -> None:
    server = echo(max_connections=10, head_timeout=30.0)
    with ExitStack() as stack, httpx.Client(base_url=server.url, timeout=60) as busy:
        holding = threading.Thread(target=lambda: statuses.append(busy.get("/hold").status_code))
        statuses: list[int] = []
        holding.start()
        while not server.held:
            time.sleep(0.01)
        idle = [stack.enter_context(server.connect()) for _ in range(50)]
        for _ in range(20):
            assert httpx.get(f"{server.url}/health").status_code == 200
        closed = 0
        for client in idle:
            client.setblocking(False)
            try:
                closed += client.recv(1) == b""
            except BlockingIOError:
                pass
            except ConnectionResetError:
                closed += 1
        assert 41 <= closed <= 50
        server.released.set()
        holding.join(60)
        assert statuses == [200]


def test_health_when_all_connections_are_busy(echo: Callable[..., Echo]) -> None:
    server = echo(max_connections=4, head_timeout=30.0)
    with ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(server.connect())
            client.sendall(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        while server.held < 4:
            time.sleep(0.01)
        # Nor do those that come and say nothing keep anybody from it.
        for _ in range(30):
            stack.enter_context(server.connect())
        for _ in range(20):
            assert httpx.get(f"{server.url}/health").status_code == 200
        refused = httpx.post(f"{server.url}/echo", content=b"x")
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert "4 connections" in refused.json()["error"]["message"]
        server.released.set()


def test_old_bodies_make_room(echo: Callable[..., Echo], monkeypatch: pytest.MonkeyPatch) -> None:
    server = echo(max_connections=4)
    with ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(server.connect())
            client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
        time.sleep(0.2)
        assert httpx.post(f"{server.url}/echo", content=b"x").status_code == 503
        monkeypatch.setattr(connections, "_OLD_BODY_SECONDS", 0.1)
        assert httpx.post(f"{server.url}/echo", content=b"x").status_code == 200


def test_limit_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, asked = (1024, 4096), []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: asked.append(both))
    assert usable_connections(100) == 100 and not asked
    assert usable_connections(2000) == 2000 and 2000 < asked[-1][0] < 4096
    assert 3000 < usable_connections(10_000) < 4096 and asked[-1] == (4096, 4096)
    limits = (60, 60)
    with pytest.raises(OSError, match="ulimit -n"):
        usable_connections(100)


def test_few_files(tmp_path: Path) -> None:
    """More idle clients than the process may have files: everybody else is served."""
    wrapper = tmp_path / "limited.py"
    wrapper.write_text(
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n",
        "utf-8",
    )
    program = [sys.executable, str(wrapper), str(SCRIPTS / "launch_server.py")]
    log = tmp_path / "log"
    with launched(log, program=program) as (_, url), ExitStack() as stack:
        assert "limit of open files" in log.read_text("utf-8")
        port = httpx.URL(url).port
        assert port
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        body = {"prompt": "Hello", "max_tokens": 2}
        for _ in range(5):
            assert httpx.get(f"{url}/health", timeout=5).status_code == 200
            assert httpx.post(f"{url}/v1/completions", json=body, timeout=20).status_code == 200
    assert "Too many open files" not in log.read_text("utf-8")


def test_program(tmp_path: Path) -> None:
    """The options reach the server, whose errors have the form of the endpoint."""
    options = ("--body-timeout", "1", "--head-timeout", "1", "--max-connections", "50")
    options += ("--max-body", "1M", "--max-bodies-memory", "2M")
    with launched(tmp_path / "log", *options) as (_, url), ExitStack() as stack:
        port = httpx.URL(url).port
        assert port
        body = b'{"prompt": "Hello", "max_tokens": 1}'
        head = b"POST /v1/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(head % (b"completions", len(body)) + UPGRADE + b"\r\n")
            time.sleep(0.1)
            client.sendall(body)
            assert responses(client, 1)[0][0] == 200
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(head % (b"messages", 1000) + b"\r\n{")
            ((status, text),) = responses(client, 1)
            assert status == 408 and json.loads(text)["type"] == "error"
        clients = []
        for _ in range(5):
            client = socket.create_connection(("127.0.0.1", port), timeout=20)
            clients.append(stack.enter_context(client))
            client.sendall(head % (b"chat/completions", 1_000_000) + b"\r\n" + b" " * 900_000)
        found = [responses(client, 1)[0] for client in clients]
        assert sorted(status for status, _ in found) == [408, 408, 503, 503, 503]
        assert all(json.loads(text)["error"]["message"] for _, text in found)

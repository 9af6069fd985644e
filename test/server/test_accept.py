"""Connections that come at once are taken at once, whatever the event loop is doing."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import uvicorn
from infinicore_infer.server.draining import DrainingServer
from infinicore_infer.server.service import Service, ServiceConfig
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CLIENTS = 12


async def _no_app(scope: Any, receive: Any, send: Any) -> None:
    """Is never asked anything."""


def test_connections_share_rounds() -> None:
    """Clients that connected while the loop was busy do not wait for a round of it each."""
    rounds: list[int] = []
    count = 0

    class Noting(HttpToolsProtocol):
        def connection_made(self, transport: Any) -> None:
            rounds.append(count)
            super().connection_made(transport)

    config = uvicorn.Config(
        _no_app, port=0, http=Noting, log_config=None, lifespan="off", timeout_graceful_shutdown=1
    )
    server = DrainingServer(config, Service(ServiceConfig("none")), 1.0)

    async def run() -> None:
        nonlocal count
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        # Nothing of the loop runs between these, but the connections come about.
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(CLIENTS)]
        while len(rounds) < CLIENTS:
            count += 1
            await asyncio.sleep(0)
        server.should_exit = True
        await serving
        for client in clients:
            client.close()
        # Every handle of the socket is closed: nobody listens any more.
        with socket.socket() as late:
            assert late.connect_ex(("127.0.0.1", port)) != 0

    runner = asyncio.Runner(loop_factory=config.get_loop_factory())
    # A thread of its own, as signal handlers are for the main one.
    thread = threading.Thread(target=lambda: runner.run(run()))
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert len(rounds) == CLIENTS and max(rounds) - min(rounds) <= 1

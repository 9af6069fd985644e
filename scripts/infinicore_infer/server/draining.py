"""A server that takes connections at once, and that lets answers in progress end before it goes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from types import FrameType

import uvicorn

from infinicore_infer.server.service import Service

_LOG = logging.getLogger("infinicore_infer.server")
# Connections accepted in one round of the event loop.
_ACCEPTS = 16


class DrainingServer(uvicorn.Server):
    """A server that lets answers in progress end before it goes.

    Attributes:
        failed: Whether the model could not be loaded.
    """

    def __init__(self, config: uvicorn.Config, service: Service, drain_timeout: float) -> None:
        """Serve an application.

        Args:
            config: Uvicorn's settings, with the application.
            service: The state behind it.
            drain_timeout: Seconds that answers in progress have once a signal has come.
        """
        super().__init__(config)
        self.failed = False
        self._service = service
        self._drain_timeout = drain_timeout
        self._hurry = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, through several handles of each socket.

        libuv accepts one connection per handle and round of the loop. When many clients come at
        once, the last would wait for so many rounds, a health check among them.
        """
        await super().startup(sockets)
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            made = self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
            assert isinstance(made, asyncio.Protocol)
            return made

        listening = [each for server in self.servers for each in server.sockets]
        for each in listening:
            for _ in range(_ACCEPTS - 1):
                copy = socket.socket(fileno=os.dup(each.fileno()))
                self.servers.append(
                    await loop.create_server(protocol, sock=copy, backlog=self.config.backlog)
                )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, end answers at the second, end at once at the third."""
        if self._service.async_engine is None:
            self.should_exit = True
            return
        if self._service.draining:
            self.should_exit = self.force_exit = self._hurry.is_set()
            self._hurry.set()
            return
        _LOG.info("signal %d: finishing what is in progress", sig)
        self._service.draining = True
        engine = self._service.async_engine.engine

        def wait() -> None:
            engine.drain()
            end = time.monotonic() + self._drain_timeout
            while not engine.wait_idle(0.1):
                if self._hurry.is_set() or time.monotonic() > end:
                    _LOG.warning("some requests are ended before they are finished")
                    # Their clients are told.
                    engine.close()
                    break
            self.should_exit = True

        # Not here: signal handlers interrupt code that may hold the engine's lock.
        threading.Thread(target=wait, name="drain", daemon=True).start()

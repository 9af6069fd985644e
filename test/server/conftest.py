"""Fixtures of the server's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from browsing import open_page
from python.helpers import DEMO
from qwen3 import Qwen3ForCausalLM
from serving import LiveServer


@pytest.fixture(scope="session")
def shared_server() -> Iterator[LiveServer]:
    """A server of the demo model."""
    with LiveServer(max_batch=8) as server:
        yield server


@pytest.fixture
def server(shared_server: LiveServer) -> Iterator[LiveServer]:
    """The shared server; every test must leave it idle and without leaks."""
    yield shared_server
    shared_server.check_idle()


@pytest.fixture
def make_server() -> Iterator[Callable[..., LiveServer]]:
    """Starts further servers."""
    servers: list[LiveServer] = []

    def make(**options: Any) -> LiveServer:
        servers.append(LiveServer(**options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the shared server."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def reference() -> Iterator[Qwen3ForCausalLM]:
    """The same model by itself, which no engine uses."""
    with Qwen3ForCausalLM(DEMO, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; playwright's event loop runs in this thread until the module's end."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, server: LiveServer) -> Iterator[Any]:
    """The chat page in a browser of its own, with nothing stored."""
    with open_page(browser, server.url) as page:
        yield page

"""A server of the demo model inside the test's process, so that tests can look behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from infinicore_infer.engine.config import EngineConfig
from infinicore_infer.engine.engine import Engine
from infinicore_infer.server.app import make_app
from infinicore_infer.server.service import Service, ServiceConfig
from python.helpers import DEMO
from qwen3 import Qwen3ForCausalLM

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me a story."}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
GREEDY = {"temperature": 0}
NO_THINK = {"chat_template_kwargs": {"enable_thinking": False}}
# As in the demo model's training, which knows no other tool.
WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather for a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
# For when it must be called: so small a model would not find the end of the name.
SHORT_CITY_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def slow_steps(monkeypatch: pytest.MonkeyPatch, model: Qwen3ForCausalLM, seconds: float) -> None:
    """Makes every step of a model take so much longer."""
    step = model.native.step

    def slow(requests: Any) -> Any:
        time.sleep(seconds)
        return step(requests)

    monkeypatch.setattr(model.native, "step", slow)


@contextmanager
def held_steps(model: Qwen3ForCausalLM) -> Iterator[threading.Event]:
    """Holds a model's steps up until the block ends; the event says that one has begun."""
    step, begun, go_on = model.native.step, threading.Event(), threading.Event()

    def held(requests: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return step(requests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.native, "step", held)
        try:
            yield begun
        finally:
            go_on.set()


def eventually(true: Callable[[], object], seconds: float = 30) -> bool:
    """Waits until something is true, which other threads bring about; says whether it is."""
    end = time.monotonic() + seconds
    while not (found := bool(true())) and time.monotonic() < end:
        time.sleep(0.01)
    return found


class LiveServer:
    """A running server. Options are those of the engine and of the service, mixed."""

    def __init__(
        self,
        *,
        load: bool = True,
        kv_limit_bytes: int = 0,
        folder: Path = DEMO,
        port: int = 0,
        **options: Any,
    ) -> None:
        names = {field.name for field in fields(EngineConfig)}
        engine_options = {name: options.pop(name) for name in names & options.keys()}
        self.service = Service(ServiceConfig("qwen3-tiny", **options))
        self.model = Qwen3ForCausalLM(folder, threads=1, kv_limit_bytes=kv_limit_bytes)
        self.engine = Engine(self.model, EngineConfig(**engine_options))
        if load:
            self.service.attach(self.engine)
        app = make_app(
            self.service,
            version="test",
            start=lambda: None,
            stop=lambda: None,
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                port=port,
                log_config=None,
                timeout_graceful_shutdown=1,
                timeout_keep_alive=60,
            )
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """Posts JSON."""
        return self.http.post(path, json=body, **options)

    def chat(self, messages: Any = CAPITAL, **body: Any) -> dict[str, Any]:
        """Returns a chat completion, greedy unless said otherwise."""
        response = self.post("/v1/chat/completions", {"messages": messages, **GREEDY, **body})
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    def check_idle(self, timeout: float = 60) -> None:
        """Asserts that nothing runs, and that only remembered prefixes hold memory."""
        assert self.engine.wait_idle(timeout)
        stats = self.engine.stats
        assert stats.running == stats.waiting == 0
        assert eventually(
            lambda: self.model.stats()["kv_used_bytes"] == self.engine.stats.prefix_bytes
        )
        assert self.model.stats()["ncaches"] == self.engine.stats.prefix_nodes

    def close(self) -> None:
        """Ends everything."""
        self.http.close()
        self._server.should_exit = True
        self.engine.close()
        self._thread.join(10)
        self.model.close()

    def __enter__(self) -> LiveServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

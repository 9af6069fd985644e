"""How what is ignored is told of: in a header and in the log, both of a bounded size."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from infinicore_infer.engine.async_engine import AsyncEngine
from infinicore_infer.server import launch, reading
from infinicore_infer.server.openai.fields import ChatBody
from infinicore_infer.server.options import build_parser
from serving import CAPITAL, LiveServer

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": CAPITAL, "max_tokens": 1}


def test_the_header_is_short(server: LiveServer) -> None:
    body = {**BODY, **{f"made_up_{i}_{'x' * 80}": 0 for i in range(40)}}
    names = server.post(CHAT, body).headers["X-Ignored-Fields"].split(", ")
    assert len(names) == 33 and names[-1] == "..."
    assert names[0] == f"made_up_0_{'x' * 80}"[:64]
    names = server.post(CHAT, {**BODY, "a": 1, "b": 2}).headers["X-Ignored-Fields"].split(", ")
    assert names == ["a", "b"]


def test_the_log_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reading, "_MAX_LOGGED_NAMES", 5)
    names = reading.IgnoredNames()
    with caplog.at_level(logging.WARNING, "infinicore_infer.server"):
        for i in range(9):
            names.log([f"messages[{i}].foo", f"name{i}", f"name{i}"], CHAT)
    told = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
    assert told == ["'messages[].foo'", "'name0'", "'name1'", "'name2'", "'name3'"]


def test_parts_are_bounded_too() -> None:
    """A request has at most a thousand fields, but objects in it may have more keys."""
    form = {"type": "text", **{f"key{i}": 0 for i in range(3000)}}
    data = bytearray(json.dumps({**BODY, "response_format": form}).encode())
    _, ignored = reading._parsed(data, ChatBody)
    assert len(ignored) == 1000


@pytest.mark.parametrize("given", ["warn", "refuse"])
def test_the_option_reaches_the_service(given: str) -> None:
    args = build_parser().parse_args(["--unknown-fields", given])
    assert launch._service(args, Path("x")).config.unknown_fields == given


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_cancelled_once(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    cancel, cancelled = AsyncEngine.cancel, []

    def counting(engine: AsyncEngine, answer: Any) -> None:
        cancelled.append(answer)
        cancel(engine, answer)

    monkeypatch.setattr(AsyncEngine, "cancel", counting)
    assert server.post(CHAT, {**BODY, "stream": stream}).status_code == 200
    server.check_idle()
    assert len(cancelled) == 1

"""Damaged chat templates: told of when the server starts, by file and line; the rest works."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from python.helpers import DEMO
from serving import CAPITAL, LiveServer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOOLS = [{"type": "function", "function": {"name": "f"}}]
GOOD = "{% for m in messages %}{{ m.content }}{% endfor %}"


def _folder(folder: Path, **templates: str | bytes) -> Path:
    for path in DEMO.iterdir():
        (folder / path.name).symlink_to(path)
    extra = folder / "additional_chat_templates"
    extra.mkdir()
    for name, source in templates.items():
        path = folder / "chat_template.jinja" if name == "default" else extra / f"{name}.jinja"
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return folder


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("a\n\n{% if %}", "chat_template.jinja, line 3: "),
        ("{{ messages }\n}", "chat_template.jinja, line 1: "),
        ("{% no_such_tag %}", "no_such_tag"),
        ("{{ 'x' | no_such_filter }}", "chat_template.jinja, line 1: No filter named"),
        (b"\xff\xfe", "chat_template.jinja: 'utf-8' codec"),
        ("\n{{ 1 / 0 }}", "line 2: division by zero"),
        ("{{ raise_exception('no users, please') }}", "no users, please"),
    ],
)
def test_default(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str | bytes, words: str
) -> None:
    with caplog.at_level(logging.WARNING, "infinicore_infer.server"):
        server = LiveServer(folder=_folder(tmp_path, default=source))
    with server:
        (record,) = caplog.records
        assert record.levelname == "ERROR" and words in record.getMessage()
        response = server.post(CHAT, {"messages": CAPITAL, "max_tokens": 1})
        assert response.status_code == 400 and words in response.json()["error"]["message"]
        assert server.post(TEXT, {"prompt": "One", "max_tokens": 1}).status_code == 200


def test_extra(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only what needs it fails."""
    folder = _folder(tmp_path, default=GOOD, tool_use="{{ 1 +", rag=b"\xff")
    with caplog.at_level(logging.WARNING, "infinicore_infer.server"):
        server = LiveServer(folder=folder)
    with server:
        assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
        assert "tool_use.jinja, line 1" in caplog.text and "rag.jinja" in caplog.text
        body = {"messages": CAPITAL, "max_tokens": 1}
        assert server.post(CHAT, body).status_code == 200
        response = server.post(CHAT, {**body, "tools": TOOLS})
        assert response.status_code == 400
        assert "tool_use.jinja, line 1" in response.json()["error"]["message"]


def test_good_ones_are_not_talked_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "infinicore_infer.server"), LiveServer():
        assert not caplog.records

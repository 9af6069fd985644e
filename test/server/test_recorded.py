"""Requests in the shapes that programs send, as their sources and trackers show them.

Each is answered, and nothing in it is ignored without a reason that the tables give.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from serving import CAPITAL, LiveServer

MODEL = "qwen3-tiny"
QUESTION = CAPITAL[0]["content"]
ANSWER = "The capital of France is Paris."
FUNCTION: dict[str, Any] = {
    "name": "read_file",
    "description": "Reads a file.",
    "parameters": {
        "type": "object",
        "properties": {"path": {"type": "string", "description": "Where."}},
        "required": ["path"],
        "additionalProperties": False,
    },
}
EPHEMERAL = {"type": "ephemeral"}


@pytest.fixture(scope="module")
def any_name() -> Iterator[LiveServer]:
    """A server that answers to every name, which is how such programs are served."""
    with LiveServer(any_model_name=True, unknown_fields="refuse") as server:
        yield server


def _events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_claude_code(any_name: LiveServer) -> None:
    """Its agent, its titles, and its counts, with the fields of its betas."""
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "context-management-2025-06-27"}
    tool = {
        "name": "Read",
        "description": "Reads a file.",
        "input_schema": {"$schema": "x", **FUNCTION["parameters"]},
        "eager_input_streaming": True,
    }
    body: dict[str, Any] = {
        "model": "claude-opus-4-6",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder>Today.</system-reminder>"},
                    {"type": "text", "text": QUESTION, "cache_control": EPHEMERAL},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "abc"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_1",
                        "content": [{"type": "text", "text": "Paris"}],
                        "is_error": False,
                        "cache_control": EPHEMERAL,
                    },
                ],
            },
            {"role": "system", "content": "Be brief.", "output_config": {"effort": "medium"}},
        ],
        "system": [
            {"type": "text", "text": "x-header: 1"},
            {"type": "text", "text": "You are an agent.", "cache_control": EPHEMERAL},
        ],
        "tools": [tool, {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}],
        "metadata": {"user_id": "user_1_account__session_2"},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "stream": True,
    }
    # Tools that only a provider serves are left out, which is told, so not refused here.
    assert any_name.post("/v1/messages", body).status_code == 400
    body["tools"].pop()
    url = "/v1/messages?beta=true"
    response = any_name.post(url, body, headers=headers)
    assert response.status_code == 200, response.text
    events = _events(response.text)
    assert events[0]["message"]["model"] == "claude-opus-4-6"
    assert events[-1]["type"] == "message_stop"
    title = {
        "model": "claude-haiku-4-5-20251001",
        "messages": [{"role": "user", "content": QUESTION}],
        "system": [{"type": "text", "text": "Make a title."}],
        "tools": [],
        "metadata": {"user_id": "user_1"},
        "max_tokens": 20,
        "temperature": 1,
        "stream": True,
    }
    assert any_name.post(url, title, headers=headers).status_code == 200
    names = ("model", "messages", "system", "tools", "thinking", "context_management")
    counting = {name: body[name] for name in names}
    response = any_name.post("/v1/messages/count_tokens?beta=true", counting, headers=headers)
    assert response.status_code == 200 and response.json()["input_tokens"] > 100
    assert any_name.http.head("/").status_code == 200


@pytest.mark.parametrize(
    "management",
    [
        {"edits": [{"type": "clear_tool_uses_20250919"}]},
        {"edits": [{"type": "compact_20260112"}]},
        {"edits": ["x"]},
        {"enabled": True},
        [1],
    ],
)
def test_what_would_change_the_context_is_refused(any_name: LiveServer, management: Any) -> None:
    body = {"messages": CAPITAL, "max_tokens": 2, "context_management": management}
    response = any_name.post("/v1/messages", body)
    assert response.status_code == 400 and "context_management" in response.text


def _message(role: str, *texts: str) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": t} for t in texts]}


def test_codex(server: LiveServer) -> None:
    """A turn with a call behind it, sent whole each time."""
    body: dict[str, Any] = {
        "model": MODEL,
        "instructions": "You are a coding agent.",
        "input": [
            _message("developer", "<permissions instructions>Read.</permissions instructions>"),
            _message(
                "user", "# AGENTS.md instructions", "<environment_context>x</environment_context>"
            ),
            _message("user", QUESTION),
            {
                "type": "reasoning",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "Hm."}],
                "encrypted_content": None,
            },
            {
                "type": "function_call",
                "name": "exec_command",
                "arguments": '{"cmd":"ls"}',
                "call_id": "call_1",
            },
            {"type": "function_call_output", "call_id": "call_1", "output": "Paris"},
        ],
        "tools": [
            {
                "type": "function",
                "name": "exec_command",
                "description": "Runs a command.",
                "strict": False,
                "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}},
            },
            {"type": "custom", "name": "apply_patch", "description": "x", "format": {"type": "y"}},
            {"type": "web_search", "external_web_access": False},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199-x",
        "text": {"verbosity": "medium"},
        "client_metadata": {"x-codex-installation-id": "1"},
    }
    response = server.post("/v1/responses", body)
    assert response.status_code == 200, response.text
    assert response.headers["X-Ignored-Fields"] == "tools.custom, tools.web_search"
    events = _events(response.text)
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "response.completed"
    assert all("type" in event for event in events)
    # It asks whether there is anybody.
    probe = {"model": MODEL, "instructions": "x", "input": [], "max_output_tokens": 1}
    assert server.post("/v1/responses", probe).status_code == 200
    assert server.post("/v1/responses", {"input": []}).status_code == 400
    assert server.http.get("/v1/models?client_version=0.150.0").status_code == 200


def test_continue(any_name: LiveServer) -> None:
    """Its chat with tools, and its completions of code, whose prompts it makes itself."""
    options = {"temperature": 0, "num_predict": 60, "num_ctx": 8192, "num_thread": 4}
    chat = {
        "model": "qwen3:8b",
        "messages": [{"role": "system", "content": "Be brief."}, *CAPITAL],
        "options": options,
        "keep_alive": 1800,
        "stream": False,
        "tools": [{"type": "function", "function": FUNCTION}],
        "think": False,
    }
    response = any_name.post("/api/chat", chat)
    assert response.status_code == 200 and response.json()["model"] == "qwen3:8b"
    complete = {
        "model": "qwen3:8b",
        "prompt": "<|fim_prefix|>def f(<|fim_suffix|>): pass<|fim_middle|>",
        "raw": True,
        "options": {**options, "num_predict": 4, "stop": ["<|fim_prefix|>", "\n\n"]},
        "keep_alive": 1800,
        "stream": True,
    }
    response = any_name.post("/api/generate", complete)
    assert response.status_code == 200
    assert json.loads(response.text.splitlines()[-1])["done"]
    card = any_name.post("/api/show", {"name": "qwen3:8b"}).json()
    assert all(len(line.split(" ")) == 2 for line in card["parameters"].splitlines())
    assert "num_ctx 2048" in card["parameters"].splitlines()
    assert ".Suffix" not in card["template"], "it would be asked to insert"


def test_cline(any_name: LiveServer) -> None:
    """Ollama's own protocol for the sake of num_ctx, or chat completions of any server."""
    system = {"role": "system", "content": "You are Cline."}
    body: dict[str, Any] = {
        "model": "qwen3:8b",
        "messages": [system, *CAPITAL],
        "stream": True,
        "options": {"num_ctx": 32768, "temperature": 0},
    }
    lines = any_name.post("/api/chat", body).text.splitlines()
    assert "".join(json.loads(line)["message"]["content"] for line in lines)
    body = {
        "model": "qwen3-8b",
        "messages": [
            {"role": "system", "content": "You are Cline."},
            {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        ],
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": {**FUNCTION, "strict": False}}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
    }
    response = any_name.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    assert _events(response.text)[-1]["usage"]["completion_tokens"] > 0


def test_open_webui(server: LiveServer) -> None:
    """It lists models, and asks by the name that it found there."""
    headers = {"X-OpenWebUI-User-Name": "me", "Authorization": "Bearer x"}
    assert server.http.get("/api/version", headers=headers).status_code == 200
    (model,) = server.http.get("/api/tags", headers=headers).json()["models"]
    assert model["model"] == f"{MODEL}:latest", "it adds the tag where there is none"
    (running,) = server.http.get("/api/ps", headers=headers).json()["models"]
    assert running["model"] == model["model"]
    body: dict[str, Any] = {
        "model": model["model"],
        "messages": [*CAPITAL],
        "stream": True,
        "options": {"temperature": 0, "num_predict": 200, "num_ctx": 2048, "num_keep": 24},
        "keep_alive": "5m",
        "think": True,
    }
    lines = server.post("/api/chat", body, headers=headers).text.splitlines()
    parts = [json.loads(line) for line in lines]
    assert "".join(part["message"]["content"] for part in parts) == ANSWER
    assert parts[-1]["eval_count"] and parts[-1]["eval_duration"]
    # Titles and the like.
    response = server.post(
        "/api/chat",
        {**body, "stream": False, "format": {"type": "object", "properties": {}}},
        headers=headers,
    )
    assert json.loads(response.json()["message"]["content"]) == {}


def test_copilot(server: LiveServer) -> None:
    """It compares versions, reads cards, and chats through chat completions."""
    version = server.http.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)
    (model,) = server.http.get("/api/tags").json()["models"]
    card = server.post("/api/show", {"model": model["model"]}).json()
    assert "tools" in card["capabilities"]
    family = card["model_info"]["general.architecture"]
    assert card["model_info"][f"{family}.context_length"] == 2048
    body = {"model": model["model"], "messages": CAPITAL, "max_tokens": 2}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 200 and response.json()["model"] == model["model"]

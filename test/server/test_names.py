"""Names of the model, templates and their defaults, and what clients ask a server of itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from infinicore_infer.arguments import json_object, service_options
from infinicore_infer.server import launch
from infinicore_infer.server.options import build_parser
from serving import CAPITAL, GREEDY, WEATHER, WEATHER_TOOL, LiveServer

Make = Callable[..., LiveServer]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CAPITAL, "max_tokens": 2},
    "/v1/completions": {"prompt": "One", "max_tokens": 2},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
    "/v1/messages": {"messages": CAPITAL, "max_tokens": 2},
    "/api/chat": {"messages": CAPITAL, "options": {"num_predict": 2}, "stream": False},
    "/api/generate": {"prompt": "Hi", "options": {"num_predict": 2}, "stream": False},
}


@pytest.fixture(scope="module")
def named() -> Any:
    """A server with several names."""
    with LiveServer(aliases=["small", "qwen3-tiny", "claude-x"]) as server:
        yield server


@pytest.mark.parametrize("path", BODIES)
def test_several_names(named: LiveServer, path: str) -> None:
    """Answers have the name that the request used."""
    for name in ("qwen3-tiny", "small", "claude-x"):
        response = named.post(path, {**BODIES[path], "model": name})
        assert response.status_code == 200 and response.json()["model"] == name
    named_none = named.post(path, BODIES[path]).json()["model"]
    assert named_none.removesuffix(":latest") == "qwen3-tiny"
    response = named.post(path, {**BODIES[path], "model": "other"})
    assert response.status_code == 404
    assert "'qwen3-tiny', 'small', 'claude-x'" in response.text


def test_lists_of_names(named: LiveServer) -> None:
    names = ["qwen3-tiny", "small", "claude-x"]
    with openai.OpenAI(base_url=f"{named.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == names
        assert client.models.retrieve("small").id == "small"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")
    with anthropic.Anthropic(base_url=named.url, api_key="none") as claude:
        page = claude.models.list()
        assert [model.id for model in page] == names and not page.has_next_page()
        (card, *_) = page.data
        assert card.type == "model" and card.display_name == "qwen3-tiny"
        assert abs(card.created_at.timestamp() - named.service.created) < 1
        assert claude.models.retrieve("claude-x").id == "claude-x"
    card = named.http.get("/v1/models/small").json()
    assert card["root"] == "qwen3-tiny"
    for name in ("max_model_len", "context_length", "max_input_tokens"):
        assert card[name] == 2048
    listed = [entry["name"] for entry in named.http.get("/api/tags").json()["models"]]
    assert listed == [f"{name}:latest" for name in names]


def test_any_name(make_server: Make) -> None:
    server = make_server(any_model_name=True)
    for path, body in BODIES.items():
        response = server.post(path, {**body, "model": "gpt-4o"})
        assert response.status_code == 200 and response.json()["model"] == "gpt-4o"
        assert server.post(path, {**body, "model": "x" * 257}).status_code == 404
        assert server.post(path, {**body, "model": ""}).status_code == 404
    assert server.http.get("/v1/models/gpt-4o").json()["id"] == "gpt-4o"
    assert len(server.http.get("/v1/models").json()["data"]) == 1


def test_defaults_of_templates(make_server: Make) -> None:
    """They hold where a request says nothing else, in every protocol."""
    server = make_server(template_variables={"enable_thinking": False})

    def thoughts(**change: Any) -> str:
        message = server.chat(**change)["choices"][0]["message"]
        return str(message.get("reasoning_content", ""))

    assert thoughts() == ""
    for change in (
        {"enable_thinking": True},
        {"think": True},
        {"chat_template_kwargs": {"enable_thinking": True}},
    ):
        assert "capital" in thoughts(**change)
    answer = server.post("/api/chat", {**BODIES["/api/chat"], "options": GREEDY}).json()
    assert "thinking" not in answer["message"]
    response = server.post("/v1/responses", {"input": CAPITAL[0]["content"], **GREEDY}).json()
    assert [item["type"] for item in response["output"]] == ["message"]
    counted = server.post("/tokenize", {"messages": CAPITAL}).json()["tokens"]
    assert counted == server.model.tokenizer.encode_chat(
        CAPITAL, variables={"enable_thinking": False}
    )


def test_another_template(make_server: Make, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }} {{ mood }}{% endfor %}")
    server = make_server(chat_template=path, template_variables={"mood": "calm"})
    for change, mood in (({}, "calm"), ({"chat_template_kwargs": {"mood": "gay"}}, "gay")):
        body = {"messages": CAPITAL, "tools": [WEATHER_TOOL], **change}
        answer = server.post("/apply-template", body).json()
        assert answer == {"prompt": f"[user] {CAPITAL[0]['content']} {mood}"}
    assert server.chat(max_tokens=1)["usage"]["prompt_tokens"] == len(
        server.model.tokenizer.encode(f"[user] {CAPITAL[0]['content']} calm")
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [(None, "there is no such file"), ("{% if %}", "line 1"), (b"\xff", "utf-8")],
)
def test_damaged_templates(tmp_path: Path, source: Any, words: str) -> None:
    """The server does not begin with one that was asked for."""
    path = tmp_path / "own.jinja"
    if source is not None:
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
    server = LiveServer(load=False, chat_template=path)
    with server, pytest.raises((ValueError, OSError), match=words) as caught:
        server.service.attach(server.engine)
    assert "own.jinja" in str(caught.value)


def test_options() -> None:
    parse = build_parser().parse_args
    args = parse(["--served-model-name", "a", "b", "--default-chat-template-kwargs", '{"x": 1}'])
    found = service_options(args, Path("/models/Qwen3-0.6B"))
    assert (found["model_name"], found["aliases"]) == ("a", ["b"])
    assert found["template_variables"] == {"x": 1} and not found["any_model_name"]
    args = parse(["--any-model-name", "--chat-template", "x.jinja"])
    found = service_options(args, Path("/models/Qwen3-0.6B-Q8_0.gguf"))
    assert (found["model_name"], found["aliases"]) == ("Qwen3-0.6B-Q8_0", [])
    assert found["any_model_name"] and found["chat_template"] == Path("x.jinja")
    for text in ("{", "[]", "1"):
        with pytest.raises(argparse.ArgumentTypeError, match="JSON"):
            json_object(text)


def test_wrong_options_end_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the model is loaded."""
    for arguments, words in (
        (["--chat-template", str(tmp_path / "none.jinja")], "none.jinja: there is no such file"),
        (["--default-chat-template-kwargs", '{"tools": []}'], "--default-chat-template-kwargs"),
        (["--response-dir", "/proc/none"], "/proc/none"),
    ):
        assert launch.main(arguments) == 1
        assert words in capsys.readouterr().err


def test_options_of_responses(tmp_path: Path) -> None:
    parse = build_parser().parse_args
    config = launch._service(parse([]), tmp_path).config
    assert config.response_bytes == 64 << 20 and config.response_seconds == 86400
    assert config.response_dir is None
    options = ["--response-memory", "1M", "--response-time", "60", "--response-dir", "x"]
    config = launch._service(parse(options), tmp_path).config
    assert (config.response_bytes, config.response_seconds) == (1 << 20, 60)
    assert config.response_dir == Path("x")


@pytest.mark.parametrize("variables", [{"messages": []}, {"enable_thinking": "no"}])
def test_wrong_defaults(variables: Any) -> None:
    server = LiveServer(load=False, template_variables=variables)
    with server, pytest.raises(ValueError, match=next(iter(variables))):
        server.service.attach(server.engine)


def test_templates_are_shown(server: LiveServer) -> None:
    for change in ({}, {"tools": [WEATHER_TOOL]}, {"enable_thinking": False}):
        body = {"messages": WEATHER, **change}
        text = server.post("/apply-template", body).json()["prompt"]
        tokens = server.post("/tokenize", body).json()["tokens"]
        assert server.post("/tokenize", {"prompt": text}).json()["tokens"] == tokens
    error = server.post("/apply-template", {"prompt": "x"}).json()["error"]
    assert error["param"] == "messages"
    assert server.post("/apply-template", {"messages": []}).status_code == 400


def test_pieces(server: LiveServer) -> None:
    """llama-server's form: a token is text, or bytes where it is none by itself."""
    text = "One é😀<|im_end|>"
    body = {"content": text, "with_pieces": True}
    pieces = server.post("/tokenize", body).json()["tokens"]
    assert [piece["id"] for piece in pieces] == server.model.tokenizer.encode(text)
    data = [
        p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces
    ]
    assert b"".join(data) == text.encode()
    assert any(isinstance(piece["piece"], list) for piece in pieces)


def test_props(server: LiveServer) -> None:
    props = server.http.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 2048
    assert props["default_generation_settings"]["params"]["top_k"] == 20
    assert props["total_slots"] == 8 and props["model_alias"] == "qwen3-tiny"
    assert props["chat_template"] == server.model.tokenizer.templates.sources["default"]
    assert props["eos_token"] == "<|im_end|>" and props["modalities"]["vision"] is False
    assert "/" not in props["model_path"]
    slots = server.http.get("/slots").json()
    assert [slot["id"] for slot in slots] == list(range(8))
    assert not any(slot["is_processing"] for slot in slots)

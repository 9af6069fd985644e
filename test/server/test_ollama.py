"""Ollama's protocol: the answers are those of chat completions, in its form."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from python.pooling_models import TEXTS, make_embedder
from qwen3 import Qwen3ForCausalLM
from reference.random_moe import MoeSpec, moe_model, save_moe
from serving import CAPITAL, SHORT_CITY_TOOL, WEATHER, WEATHER_TOOL, LiveServer, slow_steps

Make = Callable[..., LiveServer]
MODEL = "qwen3-tiny"
CHAT, GENERATE = "/api/chat", "/api/generate"
OPTIONS: dict[str, Any] = {"temperature": 0}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": CAPITAL, "options": OPTIONS},
    GENERATE: {"model": MODEL, "prompt": CAPITAL[0]["content"], "options": OPTIONS},
}
ANSWER = "The capital of France is Paris."
TIMES = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def ask(server: LiveServer, path: str, **change: Any) -> dict[str, Any]:
    """Returns an answer that is sent whole."""
    response = server.post(path, {**BODIES[path], "stream": False, **change})
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/json"
    result: dict[str, Any] = response.json()
    return result


def lines(server: LiveServer, path: str, **change: Any) -> list[dict[str, Any]]:
    """Returns the lines of an answer in a stream, which is what comes where nothing is said."""
    response = server.post(path, {**BODIES[path], **change})
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


def text_of(path: str, part: dict[str, Any]) -> tuple[str, str]:
    """Returns the thinking and the text of an answer or of a line."""
    if path == CHAT:
        assert part["message"]["role"] == "assistant"
        return part["message"].get("thinking", ""), part["message"]["content"]
    return part.get("thinking", ""), part["response"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("think", [None, True, False])
def test_answers(server: LiveServer, path: str, think: bool | None) -> None:
    """Whole and streamed they are the same, and those of chat completions."""
    change = {} if think is None else {"think": think}
    expected = server.chat(**change)
    message = expected["choices"][0]["message"]
    whole, pieces = ask(server, path, **change), lines(server, path, **change)
    thinking, text = text_of(path, whole)
    assert (thinking, text) == (message.get("reasoning_content", ""), message["content"])
    assert text == ANSWER and bool(thinking) == (think is not False)
    assert all("\n" not in json.dumps(piece) and not piece["done"] for piece in pieces[:-1])
    parts = [text_of(path, piece) for piece in pieces]
    assert ("".join(p[0] for p in parts), "".join(p[1] for p in parts)) == (thinking, text)
    for end in (whole, pieces[-1]):
        assert end["done"] and end["done_reason"] == "stop" and end["model"] == MODEL
        assert datetime.fromisoformat(end["created_at"].replace("Z", "+00:00")).tzinfo
        assert end["prompt_eval_count"] == expected["usage"]["prompt_tokens"]
        assert end["eval_count"] == expected["usage"]["completion_tokens"]
        assert all(type(end[name]) is int and end[name] >= 0 for name in TIMES)
        # Nanoseconds: no step of any model takes less than one of a thousand of them.
        assert end["total_duration"] >= end["eval_duration"] > 1000


@pytest.mark.parametrize("streamed", [False, True])
def test_tools(server: LiveServer, streamed: bool) -> None:
    """A call comes whole, its arguments as an object."""
    body: dict[str, Any] = {"messages": WEATHER, "tools": [WEATHER_TOOL]}
    call = server.chat(WEATHER, tools=[WEATHER_TOOL])["choices"][0]["message"]["tool_calls"][0]
    if streamed:
        pieces = lines(server, CHAT, **body)
        found = [p["message"]["tool_calls"] for p in pieces if "tool_calls" in p["message"]]
        assert len(found) == 1 and pieces[-1]["done_reason"] == "stop"
        calls = found[0]
    else:
        calls = ask(server, CHAT, **body)["message"]["tool_calls"]
    assert [each["function"]["name"] for each in calls] == ["get_weather"]
    assert calls[0]["function"]["arguments"] == json.loads(call["function"]["arguments"])


def test_tool_choice(server: LiveServer) -> None:
    body: dict[str, Any] = {"messages": CAPITAL, "tools": [SHORT_CITY_TOOL], "think": False}
    required = ask(server, CHAT, **body, tool_choice="required")["message"]
    assert set(required["tool_calls"][0]["function"]["arguments"]) == {"city"}
    for choice in ("auto", "none", None):
        assert ask(server, CHAT, **body, tool_choice=choice)["message"]["content"], choice
    response = server.post(CHAT, {**BODIES[CHAT], **body, "tool_choice": "often"})
    assert response.status_code == 400 and "tool_choice" in response.json()["error"]


def test_the_way_back(server: LiveServer) -> None:
    """A conversation with thinking, a call and its result has the prompt that templates make."""
    call = {"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        *WEATHER,
        {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_name": "get_weather", "content": "sunny"},
    ]
    tokens = server.model.tokenizer.encode_chat(
        [{**m, "reasoning_content": m.get("thinking")} for m in messages], [SHORT_CITY_TOOL]
    )
    change = {"options": {"num_predict": 1}, "tools": [SHORT_CITY_TOOL], "messages": messages}
    answer = ask(server, CHAT, **change)
    assert answer["prompt_eval_count"] == len(tokens)
    assert answer["eval_count"] == 1 and answer["done_reason"] == "length"


@pytest.mark.parametrize("path", BODIES)
def test_format(server: LiveServer, path: str) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    for change in ({"think": False}, {"options": {"temperature": 1, "seed": 3}}):
        whole = ask(server, path, format=schema, **change)
        assert json.loads(text_of(path, whole)[1])["a"] in (1, 2)
        parts = [text_of(path, piece)[1] for piece in lines(server, path, format=schema, **change)]
        assert json.loads("".join(parts))["a"] in (1, 2)
    # The model may find no end to an object of its own, so only its beginning is asked for.
    change = {"options": {"num_predict": 3}, "think": False}
    assert text_of(path, ask(server, path, format="json", **change))[1].startswith("{")
    assert text_of(path, ask(server, path, format="", think=False))[1] == ANSWER


def test_raw(server: LiveServer, reference: Qwen3ForCausalLM) -> None:
    """A text goes on as it is; its control tokens are control tokens."""
    prompt = "<|im_start|>user\nWhat is the capital"
    options = {"temperature": 0, "num_predict": 8}
    expected = reference.generate(prompt, max_steps=8, temperature=0)
    change = {"prompt": prompt, "raw": True, "options": options}
    answer = ask(server, GENERATE, **change)
    assert answer["response"] == expected.text
    assert "".join(p["response"] for p in lines(server, GENERATE, **change)) == expected.text
    assert answer["prompt_eval_count"] == len(reference.encode(prompt))
    schema = {"enum": ["yes", "no"]}
    answer = ask(server, GENERATE, **change, format=schema)
    assert json.loads(answer["response"]) in ("yes", "no")


def test_system(server: LiveServer) -> None:
    plain, told = (ask(server, GENERATE, system=text) for text in (None, "Be brief."))
    messages = [{"role": "system", "content": "Be brief."}, *CAPITAL]
    tokens = server.model.tokenizer.encode_chat(messages)
    assert told["prompt_eval_count"] == len(tokens) > plain["prompt_eval_count"]


def test_a_beginning_of_the_answer_goes_on(server: LiveServer) -> None:
    begun = [*CAPITAL, {"role": "assistant", "content": "The capital of France"}]
    assert ask(server, CHAT, messages=begun)["message"]["content"] == " is Paris."


def test_options(server: LiveServer) -> None:
    """Each is that of chat completions which has another name."""
    base = {"temperature": 0.9, "seed": 5, "top_k": 30, "top_p": 0.9, "min_p": 0.01}
    for theirs, ours in [
        ({}, {}),
        ({"repeat_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"repeat_penalty": 1.5, "repeat_last_n": -1}, {"repetition_penalty": 1.5}),
        ({"repeat_penalty": 1.5, "repeat_last_n": 0}, {}),
        ({"presence_penalty": 1.5, "frequency_penalty": 0.5}, None),
        ({"num_predict": 4.0}, {"max_tokens": 4}),
        ({"num_predict": -1, "num_ctx": 4096, "num_gpu": 9, "repeat_last_n": 64}, {}),
        ({"stop": "Paris"}, {"stop": "Paris"}),
        ({"stop": ["Paris", "x"]}, {"stop": ["Paris", "x"]}),
    ]:
        options = {**base, **theirs}
        expected = server.chat(**base, **(theirs if ours is None else ours))["choices"][0]
        answer = ask(server, CHAT, options=options)
        message = expected["message"]
        assert answer["message"]["content"] == message["content"], theirs
        assert answer["message"].get("thinking") == message.get("reasoning_content"), theirs
        assert answer["done_reason"] == expected["finish_reason"], theirs
    # What clients write beside the options holds where these say nothing else.
    for outer, options, count in (
        ({"max_output_tokens": 3}, {}, 3),
        ({"max_tokens": 4, "max_output_tokens": -1}, {}, 4),
        ({"max_tokens": 4}, {"num_predict": 2}, 2),
    ):
        answer = ask(server, CHAT, options=options, **outer)
        assert answer["eval_count"] == count and answer["done_reason"] == "length"
    # Without a seed, and with Ollama's -1, every answer has one of its own.
    answers = {
        ask(server, GENERATE, prompt="One", raw=True, options={"temperature": 9, "seed": -1})[
            "response"
        ]
        for _ in range(3)
    }
    assert len(answers) == 3


def test_logprobs(server: LiveServer) -> None:
    change = {"think": False, "logprobs": True}
    expected = server.chat(**change, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert ask(server, CHAT, **change, top_logprobs=2)["logprobs"] == expected
    pieces = lines(server, CHAT, **change)
    entries = [entry for piece in pieces for entry in piece.get("logprobs", ())]
    assert [{**entry, "top_logprobs": each["top_logprobs"]} for entry, each in zip(
        entries, expected, strict=True
    )] == expected  # fmt: skip
    assert "".join(entry["token"] for entry in entries) == ANSWER


@pytest.mark.parametrize(
    ("path", "change", "told"),
    [
        (CHAT, {"options": {"temperature": -1}}, "options.temperature"),
        (CHAT, {"options": {"num_predict": "x"}}, "options.num_predict"),
        (CHAT, {"options": {"mirostat": 1}}, "options.mirostat"),
        (CHAT, {"options": {"num_ctx": 0}}, "options.num_ctx"),
        (CHAT, {"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, "options.repeat_last_n"),
        (CHAT, {"options": {"repeat_penalty": 2, "repetition_penalty": 1.5}}, "repeat_penalty"),
        (CHAT, {"options": {"max_tokens": 3}}, "options.max_tokens"),
        (CHAT, {"options": []}, "options"),
        (CHAT, {"format": "yaml"}, "format must be 'json'"),
        (CHAT, {"format": {"not": {}}}, "format"),
        (CHAT, {"messages": [{"role": "user", "content": "x", "images": ["QQ=="]}]}, "images"),
        (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"think": "often"}, "think"),
        (GENERATE, {"images": ["QQ=="]}, "images is not supported"),
        (GENERATE, {"suffix": "."}, "suffix is not supported"),
        (GENERATE, {"template": "{{ .Prompt }}"}, "template is not supported"),
        (GENERATE, {"context": [1, 2]}, "context is not supported"),
        (GENERATE, {"tools": [WEATHER_TOOL]}, "tools is not supported"),
        (GENERATE, {"raw": True, "system": "x"}, "system is not supported with raw"),
        (GENERATE, {"raw": True, "think": True}, "think is not supported with raw"),
        (GENERATE, {"prompt": "x " * 4000}, "context holds"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_bad_requests(
    server: LiveServer, path: str, change: dict[str, Any], told: str, stream: bool
) -> None:
    response = server.post(path, {**BODIES[path], "stream": stream, **change})
    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"] and told in response.json()["error"], response.text


def test_truncating(server: LiveServer) -> None:
    """What does not fit is refused, unless the oldest messages shall go."""
    old = {"role": "user", "content": "One two three four five. " * 150}
    messages = [{"role": "system", "content": "Be brief."}, old, old, *CAPITAL]
    for change in ({}, {"truncate": False}):
        response = server.post(CHAT, {**BODIES[CHAT], "messages": messages, **change})
        assert response.status_code == 400 and "context holds" in response.json()["error"]
    options = {"num_predict": 1}
    answer = ask(server, CHAT, messages=messages, truncate=True, options=options)
    kept = server.model.tokenizer.encode_chat([messages[0], *messages[2:]])
    assert answer["prompt_eval_count"] == len(kept) < 2048


def test_unknown_options_are_named(server: LiveServer) -> None:
    body = {**BODIES[CHAT], "stream": False, "mood": 1, "keep_alive": "5m"}
    body["options"] = {**OPTIONS, "colour": 1, "num_thread": 4, "num_keep": 2}
    response = server.post(CHAT, body)
    assert response.status_code == 200
    assert response.headers["X-Ignored-Fields"] == "options.colour, mood"


def test_loading(server: LiveServer) -> None:
    """Requests that ask for nothing load the model, which is there."""
    for path, change in (
        (CHAT, {"messages": []}),
        (CHAT, {"messages": None}),
        (GENERATE, {"prompt": ""}),
        (GENERATE, {"prompt": None, "keep_alive": 0}),
    ):
        answer = server.post(path, {**BODIES[path], **change}).json()
        assert answer["done"] and answer["done_reason"] == "load", answer
        assert text_of(path, answer) == ("", "")


def test_names(server: LiveServer) -> None:
    for name in (MODEL, f"{MODEL}:latest"):
        assert ask(server, CHAT, model=name)["model"] == name
    for path, body in BODIES.items():
        response = server.post(path, {**body, "model": f"{MODEL}:8b"})
        assert response.status_code == 404 and MODEL in response.json()["error"]


def test_cards(server: LiveServer) -> None:
    (entry,) = server.http.get("/api/tags").json()["models"]
    assert entry["name"] == entry["model"] == f"{MODEL}:latest"
    assert len(bytes.fromhex(entry["digest"])) == 32
    assert entry["details"]["family"] == "qwen3" and entry["details"]["parameter_size"] == "2.36M"
    (running,) = server.http.get("/api/ps").json()["models"]
    assert {**entry, **running} == running and running["context_length"] == 2048
    assert running["size"] == server.model.stats()["weight_bytes"]
    for body in ({"model": MODEL}, {"name": f"{MODEL}:latest", "verbose": True}):
        card = server.post("/api/show", body).json()
        assert card["capabilities"] == ["completion", "tools", "thinking"]
        info = card["model_info"]
        assert info["qwen3.context_length"] == 2048 and info["general.architecture"] == "qwen3"
        assert info["general.parameter_count"] == 2361536
        assert "top_k 20" in card["parameters"].splitlines()
        assert card["template"] == server.model.tokenizer.templates.sources["default"]
    assert server.post("/api/show", {"model": "other"}).status_code == 404
    assert server.http.get("/api/version").json()["version"].count(".") == 2


def test_what_changes_models_is_refused(server: LiveServer) -> None:
    assert server.post("/api/pull", {"model": MODEL}).json() == {"status": "success"}
    for method, path in (
        *[("POST", f"/api/{name}") for name in ("pull", "create", "copy", "push", "embed")],
        ("POST", "/api/embeddings"),
        ("DELETE", "/api/delete"),
    ):
        response = server.http.request(method, path, json={"model": "other", "input": "x"})
        assert response.status_code == 400 and list(response.json()) == ["error"], response.text
    response = server.http.get("/api/nothing")
    assert response.status_code == 404 and list(response.json()) == ["error"]


def test_embeddings(tmp_path: Path) -> None:
    """Vectors are those of the model, of length 1; a chat model gives none."""
    folder = make_embedder(tmp_path, tied=False)
    with Qwen3ForCausalLM(folder, threads=1) as model, LiveServer(folder=folder) as server:
        expected = model.embed(TEXTS)

        def vectors(**body: Any) -> Any:
            response = server.post("/api/embed", {"model": MODEL, **body})
            assert response.status_code == 200, response.text
            return np.array(response.json()["embeddings"], np.float32)

        assert np.array_equal(vectors(input=TEXTS, options={"num_ctx": 512}), expected)
        assert np.array_equal(vectors(input=TEXTS[0]), expected[:1])
        assert np.array_equal(vectors(input=TEXTS, dimensions=5), model.embed(TEXTS, dimensions=5))
        answer = server.post("/api/embed", {"input": TEXTS}).json()
        assert answer["prompt_eval_count"] == sum(map(len, model.embedder.tokens(TEXTS)))
        assert answer["model"] == f"{MODEL}:latest"
        old = server.post("/api/embeddings", {"model": MODEL, "prompt": TEXTS[0]}).json()
        assert np.array_equal(np.array(old["embedding"], np.float32), expected[0])
        for empty in ("", []):
            assert server.post("/api/embed", {"input": empty}).json()["embeddings"] == []
        assert server.post("/api/embeddings", {"prompt": ""}).json() == {"embedding": []}
        long = "One two three. " * 3000
        assert np.array_equal(vectors(input=[long]), model.embed([long], truncate=True))
        for body in (
            {"input": [long], "truncate": False},
            {"input": TEXTS, "dimensions": 0},
            {"input": ["x"] * 2049},
            {"input": [1]},
            {},
        ):
            response = server.post("/api/embed", body)
            assert response.status_code == 400 and isinstance(response.json()["error"], str)
        assert server.post("/api/show", {}).json()["capabilities"] == ["embedding"]
        for path, body in BODIES.items():
            response = server.post(path, body)
            assert response.status_code == 400 and "embeddings" in response.json()["error"]


def test_a_model_with_experts_and_without_a_tokenizer(tmp_path: Path) -> None:
    """Its card says so, and what needs text is refused."""
    spec = MoeSpec()
    with LiveServer(folder=save_moe(moe_model(spec), tmp_path / "m")) as server:
        card = server.post("/api/show", {}).json()
        assert card["capabilities"] == ["completion"] and card["template"] == ""
        info = card["model_info"]
        assert info["general.architecture"] == card["details"]["family"] == "qwen3moe"
        assert info["qwen3moe.expert_count"] == spec.nexperts
        assert info["qwen3moe.expert_used_count"] == spec.used
        assert server.http.get("/api/tags").status_code == 200
        props = server.http.get("/props").json()
        assert props["chat_template"] == props["eos_token"] == ""
        for path, body in BODIES.items():
            response = server.post(path, body)
            assert response.status_code == 400 and "tokenizer" in response.json()["error"]
        response = server.post(GENERATE, {**BODIES[GENERATE], "raw": True})
        assert response.status_code == 400 and "tokenizer" in response.json()["error"]


def test_a_failure_in_a_stream_is_a_line(
    make_server: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server()
    step = server.model.native.step
    count = 0

    def failing(requests: Any) -> Any:
        nonlocal count
        count += 1
        if count > 4:
            raise RuntimeError("the step failed")
        return step(requests)

    monkeypatch.setattr(server.model.native, "step", failing)
    pieces = lines(server, CHAT)
    assert len(pieces) > 1 and list(pieces[-1]) == ["error"], pieces
    assert not any(piece.get("done") for piece in pieces[:-1])


def test_silence_sends_nothing(make_server: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients read every line as JSON, so there is no ping."""
    server = make_server(ping_seconds=0.01)
    slow_steps(monkeypatch, server.model, 0.05)
    pieces = lines(server, CHAT, options={"temperature": 0, "num_predict": 3})
    assert pieces[-1]["done"]

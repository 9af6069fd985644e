"""Answers that go round in circles are ended, if that was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infinicore_infer.generate.repetition import RepetitionDetector
from serving import CAPITAL, GREEDY, NO_THINK, LiveServer

MODEL = "qwen3-tiny"
CIRCLE: dict[str, Any] = {"max_pattern_size": 20, "min_count": 4}


def repeats(tokens: list[int], longest: int, shortest: int, count: int) -> bool:
    """The definition: the sequence ends with a pattern ``count`` times in a row."""
    for size in range(shortest, longest + 1):
        pattern = tokens[-size:]
        if len(tokens) >= size * count and tokens[-size * count :] == pattern * count:
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 2), max_size=60),
    longest=st.integers(1, 9),
    shorter=st.integers(0, 8),
    count=st.integers(2, 5),
)
def test_detector_follows_the_definition(
    tokens: list[int], longest: int, shorter: int, count: int
) -> None:
    shortest = max(longest - shorter, 1)
    detector = RepetitionDetector(longest, shortest, count)
    for end in range(1, len(tokens) + 1):
        found = detector.push(tokens[end - 1])
        assert found == repeats(tokens[:end], longest, shortest, count)


@pytest.fixture(scope="module")
def bias(shared_server: LiveServer) -> dict[str, float]:
    """Makes the model write one token again and again."""
    tokens = shared_server.post("/tokenize", {"prompt": " the"}).json()["tokens"]
    return {str(tokens[0]): 100.0}


def test_chat(server: LiveServer, client: openai.OpenAI, bias: dict[str, float]) -> None:
    options: dict[str, Any] = {"logit_bias": bias, "max_tokens": 40, **NO_THINK}
    assert server.chat(**options)["choices"][0]["finish_reason"] == "length"
    for off in ({}, None, {"max_pattern_size": 0, "min_count": 1}):
        choice = server.chat(repetition_detection=off, **options)["choices"][0]
        assert choice["finish_reason"] == "length" and choice["stop_reason"] is None
    answer = server.chat(repetition_detection=CIRCLE, n=2, **options)
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "repetition"
        assert choice["stop_reason"] == "repetition_detected"
        assert choice["message"]["content"] == " the" * 4
    assert answer["usage"]["completion_tokens"] == 8
    # What ends it anyway is the reason.
    cut = server.chat(repetition_detection=CIRCLE, **{**options, "max_tokens": 4})["choices"][0]
    assert cut["finish_reason"] == "length" and cut["message"]["content"] == " the" * 4
    # A pattern of two tokens of the same kind needs twice as many.
    pairs = {**CIRCLE, "min_pattern_size": 2}
    assert server.chat(repetition_detection=pairs, **options)["usage"]["completion_tokens"] == 8
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=CAPITAL,  # type: ignore[arg-type]
            logit_bias=bias,  # type: ignore[arg-type]
            stream=True,
            temperature=0,
            extra_body={"repetition_detection": CIRCLE, **NO_THINK},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == " the" * 4
    assert chunks[-1].choices[0].finish_reason == "repetition"
    assert chunks[-1].choices[0].stop_reason == "repetition_detected"


def test_answers_without_circles_are_the_same(server: LiveServer) -> None:
    plain, watched = server.chat(), server.chat(repetition_detection=CIRCLE)
    assert plain["choices"] == watched["choices"]
    assert plain["choices"][0]["finish_reason"] == "stop"


def test_other_endpoints(server: LiveServer, bias: dict[str, float]) -> None:
    options: dict[str, Any] = {"logit_bias": bias, "repetition_detection": CIRCLE, **GREEDY}
    body = {"prompt": ["One", "Two"], "max_tokens": 30, **options}
    choices = server.post("/v1/completions", body).json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["repetition"] * 2
    assert choices[0]["stop_reason"] == "repetition_detected"
    assert choices[0]["text"] == " the" * 4
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        response = client.responses.create(
            model=MODEL, input="Hi", extra_body={**options, "reasoning": {"effort": "none"}}
        )
    assert response.status == "incomplete" and response.output_text == " the" * 4
    assert response.incomplete_details
    assert response.incomplete_details.reason == "repetition"  # type: ignore[comparison-overlap]
    with anthropic.Anthropic(base_url=server.url, api_key="x") as claude:
        message = claude.messages.create(
            model=MODEL,
            max_tokens=30,
            messages=CAPITAL,  # type: ignore[arg-type]
            extra_body=options,
        )
    assert message.stop_reason == "repetition"  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    "value",
    [
        3,
        {"max_pattern_size": 5},
        {"max_pattern_size": 5, "min_count": 1},
        {"max_pattern_size": -1, "min_count": 2},
        {"max_pattern_size": 2, "min_pattern_size": 3, "min_count": 2},
        {"max_pattern_size": 10**9, "min_count": 2},
        {"max_pattern_size": 2.5, "min_count": 2},
    ],
)
def test_wrong_values(server: LiveServer, value: Any) -> None:
    body = {"messages": CAPITAL, "repetition_detection": value}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("repetition_detection")


def test_stop_reasons(server: LiveServer) -> None:
    """What vLLM's clients look for: the string or the token that ended an answer."""
    tokens = server.post("/tokenize", {"prompt": " of"}).json()["tokens"]
    for options, reason in (
        ({"stop": [" is", " of"]}, " of"),
        ({"stop_token_ids": tokens}, tokens[0]),
        ({}, None),
        ({"max_tokens": 2}, None),
    ):
        assert server.chat(**options, **NO_THINK)["choices"][0]["stop_reason"] == reason
    body = {"prompt": "Once upon a time", "max_tokens": 12, **GREEDY}
    whole = server.post("/v1/completions", body).json()["choices"][0]
    assert whole["stop_reason"] is None and whole["finish_reason"] == "length"
    (stop, *_) = server.post("/tokenize", {"prompt": whole["text"][6:]}).json()["tokens"]
    for options in ({"stop": whole["text"][3:9]}, {"stop_token_ids": [stop]}):
        lines = server.post("/v1/completions", {**body, "stream": True, **options}).text
        events = [json.loads(line[6:]) for line in lines.splitlines() if line.startswith("data: {")]
        choices = [event["choices"][0] for event in events]
        assert [choice.get("stop_reason") for choice in choices[:-1]] == [None] * (len(choices) - 1)
        if choices[-1]["finish_reason"] == "stop":
            assert choices[-1]["stop_reason"] == options.get("stop", stop)
        assert choices[-1]["finish_reason"] == "stop" or "stop" not in options


def test_preempted_answers_count_on(make_server: Callable[..., LiveServer]) -> None:
    """A request that is computed again is not counted twice."""
    server = make_server(kv_limit_bytes=32768 * 8, max_batch=4, prefix_cache_bytes=0)
    tokens = server.post("/tokenize", {"prompt": " the"}).json()["tokens"]
    body = {
        "prompt": ["One"] * 4,
        "max_tokens": 60,
        "logit_bias": {str(tokens[0]): 100.0},
        "repetition_detection": {"max_pattern_size": 3, "min_count": 50},
        **GREEDY,
    }
    choices = server.post("/v1/completions", body).json()["choices"]
    assert server.engine.stats.preemptions > 0
    assert [choice["text"] for choice in choices] == [" the" * 50] * 4

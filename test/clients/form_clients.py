"""Clients that ask for forms of answers in vLLM's and SGLang's fields; see run.py."""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import uuid
from collections.abc import Callable
from typing import Any, Literal

MODEL = "qwen3-tiny"
QUESTION = "What is the capital of France?"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 150}


def check_outlines(url: str) -> None:
    """Python types, patterns and grammars, as for vLLM, SGLang and OpenAI; whole and streamed."""
    import openai
    import outlines
    from outlines.types import CFG, Regex
    from pydantic import BaseModel

    class Trip(BaseModel):
        """A trip."""

        town: Literal["Oslo", "Rome"]
        days: Literal[1, 22]

    where = {"base_url": f"{url}/v1", "api_key": "none"}
    client, aclient = openai.OpenAI(**where), openai.AsyncOpenAI(**where)
    model = outlines.from_vllm(client, MODEL)
    grammar = CFG('?start: "<" (DIGIT | start) ">"\nDIGIT: /[0-9]/')
    checks: list[tuple[Any, Callable[[str], object]]] = [
        (Trip, Trip.model_validate_json),
        (Regex(r"[a-c]{3}\d"), re.compile(r"[a-c]{3}\d").fullmatch),
        (Literal["left", "right"], ["left", "right"].index),
        (int, int),
        (datetime.date, datetime.date.fromisoformat),
        (outlines.types.uuid4, uuid.UUID),
        (outlines.types.ipv4, re.compile(r"\d+(\.\d+){3}").fullmatch),
        (grammar, re.compile("<+[0-9]>+").fullmatch),
    ]
    for kind, check in checks:
        text = model(QUESTION, kind, **GREEDY)
        assert check(text) is not None, (kind, text)
        streamed = "".join(model.stream(QUESTION, kind, **GREEDY))
        assert streamed == text, (kind, text, streamed)
    several = model(QUESTION, Trip, n=3, max_tokens=150)
    assert len([Trip.model_validate_json(text) for text in several]) == 3
    amodel = outlines.from_vllm(aclient, MODEL)
    Trip.model_validate_json(asyncio.run(amodel(QUESTION, Trip, **GREEDY)))
    sglang = outlines.from_sglang(client, MODEL)
    assert re.fullmatch("[ab]{4}", sglang(QUESTION, Regex("[ab]{4}"), **GREEDY))
    plain = outlines.from_openai(client, MODEL)
    Trip.model_validate_json(plain(QUESTION, Trip, **GREEDY))


def check_guidance(url: str) -> None:
    """Patterns, choices, JSON and recursive grammars, which it streams with log-probabilities."""
    import guidance
    from guidance import assistant, capture, gen, select, user
    from guidance import json as json_of
    from guidance.models.experimental import SglangModel, VLLMModel

    @guidance(stateless=True, dedent=False)
    def nested(lm: Any) -> Any:
        return lm + select(["a", "(" + nested() + ")"])

    schema = {"type": "object", "properties": {"town": {"enum": ["Oslo", "Rome"]}}}
    schema |= {"required": ["town"], "additionalProperties": False}
    for kind in (VLLMModel, SglangModel):

        def asked(what: Any, kind: Any = kind) -> Any:
            lm = kind(MODEL, base_url=f"{url}/v1", api_key="none", echo=False)
            with user():
                lm += QUESTION
            with assistant():
                lm += what
            return lm

        assert re.fullmatch("[ab]{3}", asked(gen("x", regex="[ab]{3}"))["x"])
        assert asked(select(["left", "right"], name="x"))["x"] in ("left", "right")
        lm = asked("A: " + gen("x", regex=r"\d\d") + ", " + select(["b", "c"], name="y"))
        assert re.fullmatch(r"\d\d", lm["x"]) and lm["y"] in ("b", "c")
        assert json.loads(asked(json_of(name="x", schema=schema))["x"])["town"] in ("Oslo", "Rome")
        assert re.fullmatch(r"\(*a\)*", asked(capture(nested(), "x"))["x"])

"""Requests that no honest client sends, from a seed: broken bytes, good bodies with bad places."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from serving import CAPITAL, SHORT_CITY_TOOL

_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_TAG = {
    "format": {
        "type": "sequence",
        "elements": [
            {"type": "const_string", "value": "a"},
            {"type": "tag", "begin": "b", "content": {"type": "regex", "pattern": "c"}, "end": "d"},
        ],
    }
}
# Bodies that each endpoint answers, using as many fields as go together.
GOOD: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {
            "model": "qwen3-tiny",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "Hm.",
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "sunny"},
            ],
            "tools": [SHORT_CITY_TOOL],
            "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
            "parallel_tool_calls": False,
            "max_tokens": 2,
            "stop": ["x", "y"],
            "stop_token_ids": [1],
            "logprobs": True,
            "top_logprobs": 2,
            "logit_bias": {"5": 1.0},
            "chat_template_kwargs": {"enable_thinking": False},
        },
        {
            "messages": CAPITAL,
            "max_completion_tokens": 2,
            "max_tokens": 2,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": _SCHEMA, "strict": True},
            },
            "stream": True,
            "stream_options": {"include_usage": True},
            "reasoning_effort": "none",
            "n": 2,
            "seed": 1,
            "repetition_detection": {"max_pattern_size": 4, "min_count": 3},
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.1,
            "repetition_penalty": 1.1,
        },
        {
            "messages": CAPITAL,
            "tools": [{"type": "function", "function": {"name": "f", "strict": True}}],
            "tool_choice": "auto",
            "max_tokens": 2,
        },
        {
            "messages": CAPITAL,
            "tools": [SHORT_CITY_TOOL],
            "response_format": {"type": "json_object"},
            "enable_thinking": False,
            "max_tokens": 2,
        },
    ],
    "/v1/completions": [
        {"prompt": ["One", "Two"], "max_tokens": 2, "echo": True, "logprobs": 1, "n": 1, "seed": 3},
        {"prompt": [[1, 2], [3]], "max_tokens": 2, "stream": True, "stop": "z", "ignore_eos": True},
        {"prompt": [1, 2, 3], "max_tokens": 2, "logit_bias": {"7": -100}, "best_of": 1},
        {
            "prompt": "One",
            "max_tokens": 2,
            "structured_outputs": {"structural_tag": _TAG, "disable_any_whitespace": False},
            "min_tokens": 1,
            "bad_words": ["a b"],
            "allowed_token_ids": [5, 6],
            "truncate_prompt_tokens": 1,
            "truncation_side": "left",
            "prompt_logprobs": 1,
            "return_token_ids": True,
            "priority": -1,
        },
        {
            "prompt": "One",
            "max_tokens": 2,
            "guided_choice": ["a"],
            "include_stop_str_in_output": True,
        },
        {"prompt": "One", "max_tokens": 2, "grammar": 'root ::= "a"', "ebnf": 'root ::= "a"'},
    ],
    "/v1/responses": [
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "sunny"},
            ],
            "instructions": "Be brief.",
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
            "tool_choice": {"type": "function", "name": "f"},
            "reasoning": {"effort": "low", "max_tokens": 1},
            "max_output_tokens": 2,
            "stream": True,
        },
        {
            "input": "Hi",
            "text": {"format": {"type": "json_schema", "name": "x", "schema": _SCHEMA}},
            "max_output_tokens": 2,
            "temperature": 0.5,
            "top_p": 0.9,
            "metadata": {"a": "b"},
        },
    ],
    "/v1/messages": [
        {
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                *CAPITAL,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": ""},
                        {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "1", "content": "x"}],
                },
            ],
            "tools": [{"name": "f", "description": "F.", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "max_tokens": 2,
            "stream": True,
        },
        {
            "messages": CAPITAL,
            "thinking": {"type": "enabled", "budget_tokens": 1},
            "output_config": {"format": {"type": "json_schema", "schema": _SCHEMA}},
            "stop_sequences": ["z"],
            "max_tokens": 2,
            "temperature": 0.5,
            "top_k": 5,
        },
    ],
    "/api/chat": [
        {
            "model": "qwen3-tiny:latest",
            "messages": [
                *CAPITAL,
                {
                    "role": "assistant",
                    "content": "",
                    "thinking": "Hm.",
                    "tool_calls": [{"function": {"name": "get_weather", "arguments": {"a": 1}}}],
                },
                {"role": "tool", "tool_name": "get_weather", "content": "sunny"},
            ],
            "tools": [SHORT_CITY_TOOL],
            "think": False,
            "options": {"num_predict": 2, "num_ctx": 512, "stop": ["x"], "repeat_penalty": 1.1},
            "keep_alive": "5m",
        },
        {
            "messages": CAPITAL,
            "format": _SCHEMA,
            "logprobs": True,
            "top_logprobs": 1,
            "stream": False,
            "options": {"num_predict": 2, "seed": -1, "top_k": 5, "temperature": 0.5},
        },
    ],
    "/api/generate": [
        {"prompt": "One", "raw": True, "options": {"num_predict": 2}},
        {"prompt": "One", "system": "Be brief.", "format": "json", "options": {"num_predict": 2}},
    ],
    "/api/show": [{"model": "qwen3-tiny"}],
    "/v1/messages/count_tokens": [{"messages": CAPITAL, "system": "Be brief."}],
    "/tokenize": [
        {"prompt": "One two", "return_token_strs": True},
        {"messages": CAPITAL, "tools": [SHORT_CITY_TOOL], "add_generation_prompt": True},
    ],
    "/detokenize": [{"tokens": [1, 2, 3]}],
}
_VALUES: list[Any] = [None, True, False, 0, -1, 1, 1.5, 1e308, 10**30, -(10**30), 2**31, 2**63]
_VALUES += ["", "x", "\x00", "\ud800", "<|im_start|>", "😀" * 9, "a" * 3000, "{}", "null", "NaN"]
_VALUES += [[], [[]], [None], ["x"], [1, "x"], [0] * 300, {}, {"": {}}, {"type": "text"}]
_VALUES += [{"type": "object", "properties": {"$ref": "#"}}, {"$ref": "#/x"}, {"a": [{"b": None}]}]
_NAMES = [
    "messages",
    "prompt",
    "tools",
    "n",
    "stop",
    "suffix",
    "grammar",
    "role",
    "",
    "\x00",
    "$ref",
]
_NAMES += ["__class__", "model_config", "functions", "documents", "type", "content", "min_tokens"]
_RAW = [b"", b"null", b"[]", b'"x"', b"1", b"{", b"}", b"[" * 100_000, b'{"a":' * 50_000, b"\xff"]
_RAW += [b'{"prompt": NaN}', b'{"n": 1e999, "prompt": "x", "max_tokens": 1}', b"\xef\xbb\xbf{}"]
_RAW += [b'{"prompt": "' + b"\\ud800" + b'", "max_tokens": 1}', b"\x1f\x8b\x08", b"\x00" * 64]
_RAW += [b'{"prompt": "\xed\xa0\x80"}', b'{"n": ' + b"9" * 5000 + b"}", b"a=1&b=2", b"--x\r\n"]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All paths into a JSON value, but not the whole."""
    pairs: Any = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    for key, child in pairs:
        yield (*path, key)
        yield from _places(child, (*path, key))


def _spoil(rng: random.Random, body: dict[str, Any]) -> None:
    """Changes one place."""
    path = rng.choice(list(_places(body)) or [()])
    if not path:
        return
    holder: Any = body
    for key in path[:-1]:
        holder = holder[key]
    kind = rng.randrange(6)
    if kind <= 2:
        holder[path[-1]] = copy.deepcopy(rng.choice(_VALUES))
    elif kind == 3:
        del holder[path[-1]]
    elif kind == 4:
        holder[path[-1]] = rng.choice([[holder[path[-1]]], {"x": holder[path[-1]]}])
    elif isinstance(holder, dict):
        holder[rng.choice(_NAMES)] = copy.deepcopy(rng.choice(_VALUES))


def _keep_short(body: dict[str, Any]) -> None:
    """Bounds the answer, without making a wrong limit right."""
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name) is None or (type(body[name]) is int and 2 < body[name] <= 2**31):
            body[name] = 2
    if type(body.get("n")) is int and 2 < body["n"] <= 64:
        body["n"] = 2


def requests(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yields paths and bodies, the same ones for the same seed."""
    rng = random.Random(seed)
    paths = list(GOOD)
    for _ in range(count):
        path = rng.choice(paths)
        kind = rng.randrange(10)
        body = copy.deepcopy(rng.choice(GOOD[path]))
        if kind == 0:
            yield path, rng.choice(_RAW)
            continue
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            _spoil(rng, body)
        if "completions" in path:
            _keep_short(body)
        data = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        if kind == 1:
            data = data[: rng.randrange(len(data))]
        elif kind == 2:
            spoiled = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
            data = bytes(spoiled)
        yield path, data

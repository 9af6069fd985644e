"""Values that are well-formed but too much: deep nesting, numbers beyond 32-bit floats."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving import CAPITAL, SHORT_CITY_TOOL, LiveServer


def refuse_or_answer(server: LiveServer, path: str, text: str) -> int:
    response = server.http.post(path, content=text.encode())
    assert response.status_code in (200, 400), (path, text[:300], response.text)
    if response.status_code == 400:
        assert response.json()["error"]["message"]
    return response.status_code


@pytest.mark.parametrize("depth", [90, 300, 480, 900])
@pytest.mark.parametrize("brackets", [("[", "]"), ('{"a":', "}")])
def test_deep_nesting(server: LiveServer, depth: int, brackets: tuple[str, str]) -> None:
    deep = brackets[0] * depth + "1" + brackets[1] * depth
    base: dict[str, Any] = {"messages": CAPITAL, "max_tokens": 1, "tools": [SHORT_CITY_TOOL]}
    tool = json.dumps(SHORT_CITY_TOOL).replace('["city"]', deep)
    parts = {
        "messages": [deep, f'[{{"role": "user", "content": {deep}}}]'],
        "tools": [deep, f"[{tool}]"],
        "chat_template_kwargs": [deep, f'{{"x": {deep}}}'],
        "tool_choice": [deep],
        "anything": [deep],
    }
    for path in ("/v1/chat/completions", "/v1/tokenize"):
        for name, values in parts.items():
            kept = json.dumps({key: value for key, value in base.items() if key != name})
            for value in values:
                refuse_or_answer(server, path, f'{kept[:-1]}, "{name}": {value}}}')


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repetition_penalty", 5e-324),
        ("temperature", 1e-300),
        ("top_p", 1e-300),
        ("min_p", 1 - 2**-53),
    ],
)
def test_numbers_that_round_out_of_range(server: LiveServer, field: str, value: float) -> None:
    """Allowed as 64-bit numbers; refused where the library's 32-bit one would mean nothing."""
    body = {"max_tokens": 1, "temperature": 1, field: value}
    for path, asked in (
        ("/v1/chat/completions", {"messages": CAPITAL}),
        ("/v1/completions", {"prompt": "Hi"}),
    ):
        expected = 400 if field == "repetition_penalty" else 200
        assert refuse_or_answer(server, path, json.dumps({**asked, **body})) == expected

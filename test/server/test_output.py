"""Splitting of model output: any cut into pieces gives the same."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server.output import OutputParser, parse_calls

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def split(
    text: str, cuts: list[int], **options: object
) -> tuple[str, str, list[tuple[str, object]]]:
    parser = OutputParser(**options)  # type: ignore[arg-type]
    parts = []
    edges = [0, *sorted(cuts), len(text)]
    for begin, end in itertools.pairwise(edges):
        parts += parser.push(text[begin:end])
    parts += parser.finish()
    calls = [(p.call.name, json.loads(p.call.arguments)) for p in parts if p.call]
    kinds = {k: "".join(p.text for p in parts if p.kind == k) for k in ("reasoning", "content")}
    return kinds["reasoning"], kinds["content"], calls


CASES = [
    ("Hello", ("", "Hello", [])),
    ("<think>\nHm.\n</think>\n\nHello", ("Hm.", "Hello", [])),
    ("<think>\n\n</think>\n\nHello ", ("", "Hello ", [])),
    ("<think>never ends", ("never ends", "", [])),
    ("a < b and <thin", ("", "a < b and <thin", [])),
    (CALL, ("", "", [("f", {"x": 1})])),
    (f"<think>\nHm\n</think>\n\nI call.\n{CALL}\n{CALL}", ("Hm", "I call.", [("f", {"x": 1})] * 2)),
    ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 2}"}</tool_call>',
     ("", "", [("f", {"a": 2})])),
    ('<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>',
     ("", "", [("f", {"x": "</tool_call>"})])),
    ('<tool_call>{"name": "f", "arguments": {}}', ("", "", [("f", {})])),
    ('<tool_call>{"name": "f"}</tool_call>', ("", "", [("f", {})])),
    ('<tool_call>{"function": {"name": "f", "parameters": {"y": null}}}</tool_call>',
     ("", "", [("f", {"y": None})])),
    ("<tool_call>nonsense</tool_call> bye", ("", "<tool_call>nonsense</tool_call> bye", [])),
    ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
     ("", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', [])),
    ('<tool_call>{"name": "f</tool_call> bye', ("", '<tool_call>{"name": "f</tool_call> bye', [])),
    (f'<tool_call>{{"name": "f</tool_call>\n{CALL}',
     ("", '<tool_call>{"name": "f</tool_call>', [("f", {"x": 1})])),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_cut_gives_the_same(text: str, expected: object, data: st.DataObject) -> None:
    assert split(text, list(range(len(text))), tools=True) == expected
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    assert split(text, cuts, tools=True) == expected


def test_prompt_opened_the_thinking() -> None:
    assert split("Hm\n</think>\n\nHi", [3, 9], thinking=True) == ("Hm", "Hi", [])


def test_without_tools_calls_are_text() -> None:
    assert split(CALL, [5, 20]) == ("", CALL, [])


def test_one_call_at_most() -> None:
    assert split(f"{CALL}\n{CALL}", [], tools=True, max_calls=1)[2] == [("f", {"x": 1})]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='<>/toolcathink_"{}:\\ \n', max_size=60))
def test_nothing_is_lost(text: str) -> None:
    """Without tags, the content is the text."""
    tags = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    if not any(tag in text for tag in tags):
        assert split(text, list(range(len(text))), tools=True)[1] == text


def test_parse_calls() -> None:
    calls = parse_calls('```json\n[{"name": "a"}, {"name": "b", "arguments": null}]\n```')
    assert calls and [call.name for call in calls] == ["a", "b"]
    for bad in ("", "[]", "{}", "[1]", '{"name": 3}', "[" * 100_000):
        assert parse_calls(bad) is None

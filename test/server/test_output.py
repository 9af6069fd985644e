"""Splitting of model output: any cut into pieces gives the same."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infinicore_infer.text.output import Arguments, Call, Content, OutputParser, Part, Reasoning

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
Message = tuple[str, str, list[tuple[str, str]]]


def parts_of(text: str, cuts: list[int], **options: Any) -> list[Part]:
    parser = OutputParser(**options)
    parts = []
    for begin, end in itertools.pairwise([0, *sorted(cuts), len(text)]):
        parts += parser.push(text[begin:end])
    return parts + parser.finish()


def split(text: str, cuts: list[int], **options: Any) -> Message:
    """Returns reasoning, content, and the calls' names and arguments."""
    kinds: dict[type, str] = {Reasoning: "", Content: ""}
    calls: list[tuple[str, str]] = []
    for part in parts_of(text, cuts, **options):
        if isinstance(part, Call):
            calls.append((part.name, ""))
        elif isinstance(part, Arguments):
            calls[-1] = (calls[-1][0], calls[-1][1] + part.text)
        else:
            kinds[type(part)] += part.text
    return kinds[Reasoning], kinds[Content], calls


def call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


X1 = ("f", '{"x": 1}')
CASES: list[tuple[str, Message]] = [
    ("Hello", ("", "Hello", [])),
    ("<think>\nHm.\n</think>\n\nHello", ("Hm.", "Hello", [])),
    ("<think>\n\n</think>\n\nHello ", ("", "Hello ", [])),
    ("<think>never ends", ("never ends", "", [])),
    ("a < b and <thin", ("", "a < b and <thin", [])),
    (CALL, ("", "", [X1])),
    (f"<think>\nHm\n</think>\n\nI call.\n{CALL}\n{CALL}", ("Hm", "I call.", [X1] * 2)),
    (f"{CALL}\nand then\n{CALL}\nDone. ", ("", "and thenDone.", [X1] * 2)),
    # Arguments come as they are written.
    (call('{"name": "f", "arguments": {"x":1,\n "y" : [{}, "}"] }}'),
     ("", "", [("f", '{"x":1,\n "y" : [{}, "}"] }')])),
    (call('{"name": "f", "arguments": {"x": "\\ud83d\\ude00 \\u00e9 \\" } </b> é😀"}}'),
     ("", "", [("f", '{"x": "\\ud83d\\ude00 \\u00e9 \\" } </b> é😀"}')])),
    (call('{"name": "g\\u00fc\\n\\ud83d\\ude00", "arguments": {}}'), ("", "", [("gü\n😀", "{}")])),
    # Line ends that should have been escaped are.
    (call('{"name": "f", "arguments": {"x": "a\n\tb"}}'), ("", "", [("f", '{"x": "a\\n\\tb"}')])),
    # Quoted once more.
    (call('{"name": "f", "arguments": "{\\"a\\": 2, \\"b\\": \\"\\\\u00e9 \\ud83d\\ude00\\"}"}'),
     ("", "", [("f", '{"a": 2, "b": "\\u00e9 😀"}')])),
    (call('{"name": "f", "arguments": "\\ud83d\\n\\ude00"}'), ("", "", [("f", "\ufffd\n\ufffd")])),
    (call('{"name": "f", "arguments": ""}'), ("", "", [("f", "{}")])),
    # Nothing given.
    (call('{"name": "f"}'), ("", "", [("f", "{}")])),
    (call('{"name": "f", "arguments": null}'), ("", "", [("f", "{}")])),
    # The order is free, and there may be more.
    (call('{"arguments": {"x": 1}, "id": {"name": "no"}, "name": "f"}'), ("", "", [X1])),
    (call('{"arguments": "{\\"x\\": 1}", "name": "f", "name": "g"}'), ("", "", [X1])),
    (call('{"type": "function", "function": {"name": "f", "parameters": {"y": null}}, "id": 3}'),
     ("", "", [("f", '{"y": null}')])),
    # Several in one pair of tags: a list, lines, or a block of code.
    (call('[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]'),
     ("", "", [X1, ("g", "{}")])),
    (call('{"name": "f", "arguments": {"x": 1}}\n{"name": "f", "arguments": {"x": 1}}'),
     ("", "", [X1, X1])),
    (call('```json\n{"name": "f", "arguments": {"x": 1}}\n```'), ("", "", [X1])),
    # Brackets missing or too many, no end.
    (call('{"name": "f", "arguments": {"x": 1}'), ("", "", [X1])),
    (call('{"name": "f", "arguments": {"x": 1}}}'), ("", "", [X1])),
    ('<tool_call>{"name": "f", "arguments": {"x": 1}}', ("", "", [X1])),
    (f'<tool_call>{{"name": "f", "arguments": {{"x": 1}}}}\n{CALL}', ("", "", [X1, X1])),
    ('<tool_call>{"name": "f", "arguments": {"x": 1}}\nI wait.', ("", "I wait.", [X1])),
    # Begun and not finished, or not JSON: what was written, for the client to find fault with.
    ('<tool_call>{"name": "f", "argum', ("", "", [("f", "")])),
    ('<tool_call>{"name": "f", "arguments": {"x": "a\\u00', ("", "", [("f", '{"x": "a\\u00')])),
    ('<tool_call>{"name": "f", "arguments": {"x": "a</tool', ("", "", [("f", '{"x": "a</tool')])),
    (call('{"name": "f"'), ("", "", [("f", "{}")])),
    (call('{"name": "f", "arguments":'), ("", "", [("f", "")])),
    (call('{"name": "f", "argum'), ("", "", [("f", "")])),
    (call('{"name": "f", "arguments": tru'), ("", "", [("f", "tru")])),
    ('<tool_call>{"name": "f", "arguments": tru', ("", "", [("f", "tru")])),
    (call('{"name": "f", "arguments": {"x": oops, \'}}'), ("", "", [("f", '{"x": oops, \'}')])),
    (call('{"name": "f", "arguments": [1]}'), ("", "", [("f", "[1]")])),
    (call('{"name": "f", "arguments": 3}'), ("", "", [("f", "3")])),
    (call('{"name": "f", "arguments": {"x": "a}}') + " bye",
     ("", "bye", [("f", '{"x": "a}}\\n')])),
    (f'{call(chr(123) + chr(34) + "name" + chr(34) + ": " + chr(34) + "f")}\n{CALL}',
     ("", '<tool_call>\n{"name": "f\n</tool_call>', [X1])),
    # Text about tags.
    (call('{"name": "f", "arguments": {"x": "</tool_call>", "y": "<tool_call> </tool_call>"}}'),
     ("", "", [("f", '{"x": "</tool_call>", "y": "<tool_call> </tool_call>"}')])),
    # No calls.
    ("<tool_call>nonsense</tool_call> bye", ("", "<tool_call>nonsense</tool_call> bye", [])),
    (call('{"name": "", "arguments": {}}'), ("", call('{"name": "", "arguments": {}}'), [])),
    (call('{"name": 3}'), ("", call('{"name": 3}'), [])),
    (call("[1]"), ("", call("[1]"), [])),
    (call(""), ("", call(""), [])),
    ('<tool_call>{"name": "f</tool_call> bye', ("", '<tool_call>{"name": "f</tool_call> bye', [])),
    ("<tool_call>" + "[" * 100_000, ("", "<tool_call>" + "[" * 100_000, [])),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES, ids=range(len(CASES)))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_cut_gives_the_same(text: str, expected: Message, data: st.DataObject) -> None:
    assert split(text, [], tools=True) == expected
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    assert split(text, cuts, tools=True) == expected


@pytest.mark.parametrize(("text", "expected"), CASES[:-1], ids=range(len(CASES) - 1))
def test_single_characters_give_the_same(text: str, expected: Message) -> None:
    assert split(text, list(range(len(text))), tools=True) == expected


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["</tool_call>", '"', "\\", "{}", "}]", "\\u00e9", "<tool_call>", "<", "😀", "\n"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
_OBJECT = st.dictionaries(_TEXT, _JSON, max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    calls=st.lists(st.tuples(_TEXT.filter(bool), _OBJECT), min_size=1, max_size=3),
    how=st.fixed_dictionaries(
        {"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 1])}
    ),
    twisted=st.booleans(),
    quoted=st.booleans(),
    seed=st.integers(0, 999),
)
def test_json_of_any_kind(
    calls: list[tuple[str, dict[str, Any]]],
    how: dict[str, Any],
    twisted: bool,
    quoted: bool,
    seed: int,
) -> None:
    """What json.dumps writes comes back, in whatever order, style and pieces."""
    bodies = []
    for name, arguments in calls:
        value: Any = json.dumps(arguments, **how) if quoted else arguments
        items = {"name": name, "arguments": value}
        bodies.append(json.dumps(dict(reversed(items.items())) if twisted else items, **how))
    text = "\n".join(map(call, bodies))
    whole = split(text, [], tools=True)
    assert whole[:2] == ("", "")
    assert [(name, json.loads(text)) for name, text in whole[2]] == calls
    rng = random.Random(seed)
    assert split(text, [rng.randrange(len(text) + 1) for _ in range(9)], tools=True) == whole
    assert split(text, list(range(len(text))), tools=True) == whole


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*'{}[]":,\\ x1<\n`', "<tool_call>", "</tool_call>", '"name"', '"arguments"', "\\u12",
             '{"name": "f", "arguments": ', '"function"', "null", "\\ud83d", "</tool", "<think>"]
        ),
        max_size=25,
    ),
    st.integers(0, 999),
)  # fmt: skip
def test_odd_text_in_any_cut(pieces: list[str], seed: int) -> None:
    text = "".join(pieces)
    whole = split(text, [], tools=True)
    rng = random.Random(seed)
    for cuts in (list(range(len(text))), [rng.randrange(len(text) + 1) for _ in range(5)]):
        assert split(text, cuts, tools=True) == whole
    if "<tool_call>" not in text:
        assert whole[2] == []


def test_pieces_come_early() -> None:
    """The name when its string ends, arguments with every push."""
    parser = OutputParser(tools=True)
    assert parser.push('<tool_call>\n{"name": "get') == []
    begin = parser.push('_it"')
    assert [part.name for part in begin if isinstance(part, Call)] == ["get_it"]
    seen = []
    for text in (', "arguments": {"a', '": "\\u00', "e9<", "b>", '"}', "}\n</tool", "_call>"):
        parts = [part for part in parser.push(text) if isinstance(part, Arguments)]
        seen.append("".join(part.text for part in parts))
    assert seen == ['{"a', '": "', "\\u00e9", "<b>", '"}', "", ""]
    assert parser.finish() == []


def test_prompt_opened_the_thinking() -> None:
    assert split("Hm\n</think>\n\nHi", [3, 9], thinking=True) == ("Hm", "Hi", [])


def test_without_tools_calls_are_text() -> None:
    assert split(CALL, [5, 20]) == ("", CALL, [])


def test_one_call_at_most() -> None:
    for text in (f"{CALL}\n{CALL}", call('[{"name": "f", "arguments": {"x": 1}}, {"name": "g"}]')):
        assert split(text, [], tools=True, max_calls=1)[2] == [X1]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='<>/toolcathink_"{}:\\ \n', max_size=60))
def test_nothing_is_lost(text: str) -> None:
    """Without tags, the content is the text."""
    tags = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    if not any(tag in text for tag in tags):
        assert split(text, list(range(len(text))), tools=True)[1] == text

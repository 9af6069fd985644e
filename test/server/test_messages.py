"""/v1/messages through Anthropic's own client, whose types say what a message is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message
from infinicore_infer.server import answer
from infinicore_infer.text.output import OutputParser, Part
from serving import CAPITAL, NO_THINK, STORY, WEATHER, WEATHER_TOOL, LiveServer

MODEL = "qwen3-tiny"
ANSWER = "The capital of France is Paris."
THOUGHT = "The user asks for the capital of France. It is Paris."
FUNCTION = WEATHER_TOOL["function"]
TOOL: Any = {
    "name": FUNCTION["name"],
    "description": FUNCTION["description"],
    "input_schema": FUNCTION["parameters"],
}
THINK: Any = {"type": "enabled", "budget_tokens": 1024}
# The client has no field for it any more; the server still takes it.
GREEDY: Any = {"temperature": 0}


@pytest.fixture
def claude(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def create(client: anthropic.Anthropic, **options: Any) -> Message:
    options = {"model": MODEL, "max_tokens": 100, "messages": CAPITAL, **options}
    message = client.messages.create(extra_body=GREEDY, **options)
    assert isinstance(message, Message)
    # The client does not check by itself.
    return Message.model_validate(message.to_dict())


def test_text(claude: anthropic.Anthropic, server: LiveServer) -> None:
    message = create(claude)
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": ANSWER}]
    assert message.role == "assistant" and message.stop_reason == "end_turn"
    usage, expected = message.usage, server.chat(**NO_THINK)["usage"]
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == expected["prompt_tokens"]
    assert usage.output_tokens == expected["completion_tokens"]
    assert create(claude, max_tokens=2).stop_reason == "max_tokens"


def test_thinking(claude: anthropic.Anthropic) -> None:
    thought, text = create(claude, thinking=THINK).content
    assert thought.type == "thinking" and thought.thinking == THOUGHT
    assert text.type == "text" and text.text == ANSWER
    short = create(claude, thinking={"type": "enabled", "budget_tokens": 3}).content[0]
    assert short.type == "thinking" and 0 < len(short.thinking) < len(THOUGHT)
    assert THOUGHT.startswith(short.thinking)


def test_stop_sequence(claude: anthropic.Anthropic) -> None:
    message = create(claude, stop_sequences=[" is"])
    assert message.stop_reason == "stop_sequence" and message.stop_sequence == " is"
    assert message.content[0].type == "text"
    assert message.content[0].text == "The capital of France"


def test_stream(claude: anthropic.Anthropic) -> None:
    options: Any = {"model": MODEL, "max_tokens": 100, "messages": CAPITAL, "thinking": THINK}
    events = list(claude.messages.create(stream=True, extra_body=GREEDY, **options))
    kinds = [event.type for event in events]
    squeezed = [kind for i, kind in enumerate(kinds) if kinds[i - 1 : i] != [kind]]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert squeezed == ["message_start", *block, *block, "message_delta", "message_stop"]
    assert kinds.count("content_block_delta") > 8
    indices = [event.index for event in events if event.type.startswith("content_block")]
    assert indices == sorted(indices) and set(indices) == {0, 1}
    with claude.messages.stream(extra_body=GREEDY, **options) as stream:
        assert "".join(stream.text_stream) == ANSWER
        final = stream.get_final_message()
    whole = create(claude, thinking=THINK)
    assert final.content[0].to_dict() == whole.content[0].to_dict()
    assert final.stop_reason == "end_turn" and final.usage.output_tokens == 25


def test_tools(claude: anthropic.Anthropic) -> None:
    options: Any = {"tools": [TOOL], "messages": WEATHER, "thinking": THINK}
    message = create(claude, **options)
    assert message.stop_reason == "tool_use"
    use = message.content[-1]
    assert use.type == "tool_use" and use.name == "get_weather" and "city" in use.input
    with claude.messages.stream(
        model=MODEL, max_tokens=100, extra_body=GREEDY, **options
    ) as stream:
        streamed = stream.get_final_message().content[-1]
    assert streamed.type == "tool_use" and streamed.input == use.input
    events = list(
        claude.messages.create(
            model=MODEL, max_tokens=100, extra_body=GREEDY, stream=True, **options
        )
    )
    starts = [event for event in events if event.type == "content_block_start"]
    begin = starts[-1].content_block
    assert begin.type == "tool_use" and begin.name == "get_weather" and begin.input == {}
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    pieces = [delta.partial_json for delta in deltas if delta.type == "input_json_delta"]
    assert len(pieces) > 3 and json.loads("".join(pieces)) == use.input
    content = [{"type": "text", "text": '{"degrees": 7, "sky": "sunny"}'}]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": content}
    options["messages"] = [
        *WEATHER,
        {"role": "assistant", "content": [block.to_dict() for block in message.content]},
        {"role": "user", "content": [result]},
    ]
    answer = create(claude, **options)
    assert answer.stop_reason == "end_turn" and answer.content[-1].type == "text"


def test_input_that_is_cut_off(claude: anthropic.Anthropic) -> None:
    """Is no object; it comes inside one, as Anthropic recommends to send it back."""
    options: Any = {"tools": [TOOL], "messages": WEATHER}
    count = create(claude, **options).usage.output_tokens
    message = create(claude, max_tokens=count - 4, **options)
    use = message.content[-1]
    assert message.stop_reason == "max_tokens" and use.type == "tool_use"
    text = use.input["INVALID_JSON"]
    assert isinstance(text, str) and text.startswith('{"city"')


@pytest.mark.parametrize(
    ("arguments", "streamed"),
    [
        ('{"city": "Par', {}),
        ('{"city": "Paris" "x"}', {"city": "Paris"}),
        ("{'city': 'Rome'}", "key must be a string"),
        ('{"city": "Rome", }', "trailing comma"),
        ('{"city": "\\q"}', "invalid escape"),
        ('{"city": "\\ud83d"}', "end of hex escape"),
        ('{"degrees": 1e999}', {"degrees": float("inf")}),
        ("somewhere", "expected"),
    ],
)
def test_input_that_is_no_json(
    claude: anthropic.Anthropic, monkeypatch: pytest.MonkeyPatch, arguments: str, streamed: Any
) -> None:
    """Whole: as it is, in an object. Streamed: the client says what was wrong, or takes a part."""
    written = f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
    push = OutputParser.push

    class Writing(OutputParser):
        """Reads what the model never would have written, whatever it writes."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.rest = [written[i : i + 7] for i in range(0, len(written), 7)]

        def push(self, text: str) -> list[Part]:
            return push(self, self.rest.pop(0) if self.rest else "")

    monkeypatch.setattr(answer, "OutputParser", Writing)
    extra = {**GREEDY, "ignore_eos": True}
    options: Any = {"model": MODEL, "max_tokens": 60, "messages": WEATHER, "tools": [TOOL]}
    (use,) = claude.messages.create(extra_body=extra, **options).content
    assert use.type == "tool_use" and list(use.input) == ["INVALID_JSON"]
    assert str(use.input["INVALID_JSON"]).startswith(arguments)
    with claude.messages.stream(extra_body=extra, **options) as stream:
        if isinstance(streamed, str):
            with pytest.raises(ValueError, match=f"Unable to parse tool parameter.*{streamed}"):
                stream.get_final_message()
        else:
            (use,) = stream.get_final_message().content
            assert use.type == "tool_use" and use.input == streamed
    events = claude.messages.create(stream=True, extra_body=extra, **options)
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    text = "".join(delta.partial_json for delta in deltas if delta.type == "input_json_delta")
    assert text.startswith(arguments)


def test_tool_choice(claude: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tools = [{"name": "get_weather", "input_schema": schema}]
    for kind in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        choice = {**kind, "disable_parallel_tool_use": True}
        message = create(claude, tools=tools, tool_choice=choice)
        assert [block.type for block in message.content] == ["tool_use"]
    message = create(claude, tools=[TOOL], messages=WEATHER, tool_choice={"type": "none"})
    assert all(block.type == "text" for block in message.content)


def test_blocks_equal_messages(claude: anthropic.Anthropic, server: LiveServer) -> None:
    # The same conversation in both protocols has the same prompt.
    use = {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Rome"}}
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": "c1", "content": "sunny"},
        {"type": "text", "text": "And in Paris?"},
    ]
    blocks: Any = [
        *WEATHER,
        {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, use]},
        {"role": "user", "content": results},
    ]
    function = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    calls = [{"id": "c1", "type": "function", "function": function}]
    chat = [
        {"role": "system", "content": "Be short."},
        *WEATHER,
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "user", "content": "And in Paris?"},
    ]
    system: Any = [{"type": "text", "text": "Be short."}]
    expected = server.chat(chat, tools=[WEATHER_TOOL], max_tokens=1, **NO_THINK)["usage"]
    count = claude.messages.count_tokens(model=MODEL, messages=blocks, system=system, tools=[TOOL])
    assert count.input_tokens == expected["prompt_tokens"]


def test_strict_tool(claude: anthropic.Anthropic) -> None:
    properties = {"town": {"enum": ["Oslo", "Rome"]}, "days": {"enum": [1, 2]}}
    schema: Any = {"type": "object", "properties": properties, "required": ["town", "days"]}
    tool: Any = {**TOOL, "input_schema": {**schema, "additionalProperties": False}}
    loose, strict = (
        create(claude, tools=[{**tool, "strict": strict}], messages=WEATHER).content[-1]
        for strict in (False, True)
    )
    assert loose.type == strict.type == "tool_use"
    assert set(loose.input) != {"town", "days"} == set(strict.input)
    assert strict.input["town"] in ("Oslo", "Rome") and strict.input["days"] in (1, 2)


def test_structured(claude: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"capital": {"type": "boolean"}}}
    schema |= {"required": ["capital"], "additionalProperties": False}
    config = {"format": {"type": "json_schema", "schema": schema}}
    message = create(claude, output_config=config)
    assert message.content[0].type == "text"
    assert message.content[0].text in ('{"capital": true}', '{"capital": false}')


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"messages": CAPITAL}, "max_tokens"),
        ({"messages": [], "max_tokens": 1}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}], "max_tokens": 1}, "messages[0].role"),
        ({"messages": CAPITAL, "max_tokens": 1, "stop_sequences": [""] * 17}, "stop_sequences"),
        ({"messages": CAPITAL, "max_tokens": 1, "thinking": {"type": "odd"}}, "thinking.type"),
        ({"messages": CAPITAL, "max_tokens": 1, "tool_choice": {"type": "odd"}}, "tool_choice"),
        ({"messages": CAPITAL, "max_tokens": 1, "tool_choice": {"type": []}}, "tool_choice.type"),
        ({"messages": CAPITAL, "max_tokens": 1, "tools": [{"type": "bash_1"}]}, "tools[0]"),
    ],
)
def test_bad_requests(server: LiveServer, body: Any, name: str) -> None:
    response = server.post("/v1/messages", body)
    assert response.status_code == 400, response.text
    error = response.json()
    assert error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    assert error["error"]["message"].startswith(name)


def test_image_is_refused(claude: anthropic.Anthropic) -> None:
    source = {"type": "url", "url": "http://example.invalid/x.png"}
    content = [{"type": "image", "source": source}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\].content\[0\]"):
        create(claude, messages=[{"role": "user", "content": content}])


def test_errors_and_key(make_server: Callable[..., LiveServer]) -> None:
    server = make_server(api_key="a-key", max_body_bytes=4096)

    def client(key: str) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0)

    assert create(client("a-key")).content
    with pytest.raises(anthropic.AuthenticationError) as wrong:
        create(client("another"))
    assert wrong.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
    with pytest.raises(anthropic.NotFoundError):
        create(client("a-key"), model="other")
    with pytest.raises(anthropic.APIStatusError) as long:
        create(client("a-key"), messages=[{"role": "user", "content": "x" * 5000}])
    assert long.value.status_code == 413
    assert long.value.body["error"]["type"] == "request_too_large"  # type: ignore[index]
    missing = httpx.post(f"{server.url}/v1/messages", json={})
    assert missing.status_code == 401


def test_leaving_ends_the_answer(claude: anthropic.Anthropic, server: LiveServer) -> None:
    stream = claude.messages.create(
        model=MODEL,
        max_tokens=2000,
        messages=STORY,
        stream=True,
        extra_body={**GREEDY, "ignore_eos": True},
    )
    next(iter(stream))
    stream.close()
    server.check_idle()

"""What clients of other servers send along: prefills, refusals, foreign tools and items."""

from __future__ import annotations

from typing import Any

import pytest
from infinicore_infer.server.anthropic.messages import MessagesBody
from infinicore_infer.server.openai.fields import ChatBody
from infinicore_infer.server.openai.response_state import Context
from infinicore_infer.server.openai.responses import ResponsesBody
from serving import CAPITAL, GREEDY, NO_THINK, WEATHER_TOOL, LiveServer

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
ANSWER = "The capital of France is Paris."
BEGUN = [*CAPITAL, {"role": "assistant", "content": "The capital of"}]


def _text(path: str, answer: dict[str, Any]) -> str:
    if path == CHAT:
        return str(answer["choices"][0]["message"]["content"])
    blocks = answer["content"] if path == MESSAGES else answer["output"][-1]["content"]
    return "".join(block["text"] for block in blocks)


def test_answers_go_on(server: LiveServer) -> None:
    """Under /v1/messages and as in llama-server; OpenAI's newer protocol asks for it."""
    limit = {"max_tokens": 40, **GREEDY}
    for path in (CHAT, MESSAGES):
        answer = server.post(path, {"messages": BEGUN, **limit}).json()
        assert _text(path, answer) == " France is Paris.", answer
    rest = {"add_generation_prompt": False, "continue_final_message": True}
    answer = server.post(CHAT, {"messages": BEGUN, **limit, **rest}).json()
    assert _text(CHAT, answer) == " France is Paris."
    body = {"input": BEGUN, "max_output_tokens": 40, **GREEDY}
    answer = server.post(RESPONSES, {**body, "continue_final_message": True}).json()
    assert _text(RESPONSES, answer) == " France is Paris."
    bodies = {"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": True}
    assert server.post(CHAT, bodies).status_code == 400


@pytest.mark.parametrize("name", ["prefix", "partial"])
def test_words_for_going_on_are_ignored_only_where_nothing_goes_on(
    server: LiveServer, name: str
) -> None:
    """DeepSeek's and Qwen's names of what happens anyway."""
    limit = {"max_tokens": 40, **GREEDY}
    begun = [*CAPITAL, {**BEGUN[-1], name: True}]
    for path in (CHAT, MESSAGES):
        response = server.post(path, {"messages": begun, **limit})
        assert _text(path, response.json()) == " France is Paris."
        assert "X-Ignored-Fields" not in response.headers
    for body in (
        {"messages": begun, "add_generation_prompt": True},
        {"messages": begun, "continue_final_message": False},
        {"messages": [*CAPITAL, {**BEGUN[-1], name: False}]},
        {"messages": [*begun, *CAPITAL]},
    ):
        at = f"messages[{len(CAPITAL)}].{name}"
        response = server.post(CHAT, {"max_tokens": 1, **GREEDY, **body})
        assert response.headers["X-Ignored-Fields"] == at


def test_answers_that_do_not_go_on() -> None:
    def ends(body: Any, *context: Context) -> tuple[bool, bool]:
        request = body.chat_request(*context)
        return request.continued, request.begins

    for change, expected in (
        ({}, (True, False)),
        ({"add_generation_prompt": True}, (False, True)),
        ({"continue_final_message": False}, (False, True)),
        ({"add_generation_prompt": False}, (False, False)),
    ):
        body = {"messages": BEGUN, "max_tokens": 1, **change}
        assert ends(ChatBody.model_validate(body)) == expected
        assert ends(MessagesBody.model_validate(body)) == expected
    assert ends(ResponsesBody.model_validate({"input": BEGUN}), Context()) == (False, True)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = [*CAPITAL, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert ends(ChatBody.model_validate({"messages": called})) == (False, True)


def test_thinking_goes_on(server: LiveServer) -> None:
    """A last message that has only thought goes on thinking, as if it had not been cut."""
    body = {"messages": CAPITAL, "max_tokens": 200, **GREEDY, "enable_thinking": True}

    def ask(text: str | None) -> dict[str, Any]:
        last = {"role": "assistant", "content": None, "reasoning_content": text}
        messages = CAPITAL if text is None else [*CAPITAL, last]
        answer = server.post(CHAT, {**body, "messages": messages}).json()
        message: dict[str, Any] = answer["choices"][0]["message"]
        return message

    whole = ask(None)
    thoughts = whole["reasoning_content"]
    words = thoughts.split(" ")
    assert len(words) > 4
    for count in (1, 3, len(words) - 1):
        begun = " ".join(words[:count])
        rest = ask(begun)
        assert begun + rest["reasoning_content"] == thoughts
        assert rest["content"] == whole["content"]
    rest = {"role": "assistant", "reasoning_content": words[0]}
    asked = {"messages": [*CAPITAL, rest], "add_generation_prompt": False}
    tokens = server.post("/tokenize", {**asked, "continue_final_message": True}).json()["tokens"]
    text = server.post("/detokenize", {"tokens": tokens}).json()["prompt"]
    assert text.endswith(f"<|im_start|>assistant\n<think>\n{words[0]}")


def test_tokenize_goes_on_too(server: LiveServer) -> None:
    rest = {"continue_final_message": True, "add_generation_prompt": False}
    tokens = server.post("/tokenize", {"messages": BEGUN, **rest}).json()["tokens"]
    text = server.post("/detokenize", {"tokens": tokens}).json()["prompt"]
    assert text.endswith("The capital of")
    body = {"messages": BEGUN, "max_tokens": 1}
    assert server.post(f"{MESSAGES}/count_tokens", body).json()["input_tokens"] == len(tokens)


def test_reasoning_without_text_is_nothing() -> None:
    empty: list[Any] = [
        {"type": "reasoning", "summary": []},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "gAAA"},
    ]
    messages = (
        ResponsesBody.model_validate({"input": [*CAPITAL, *empty]}).chat_request(Context()).messages
    )
    assert messages == CAPITAL


def test_refusals(server: LiveServer) -> None:
    part = {"type": "refusal", "refusal": "No."}
    for message in (
        {"role": "assistant", "content": [part]},
        {"role": "assistant", "content": None, "refusal": "No."},
    ):
        messages = [*CAPITAL, message, *CAPITAL]
        request = ChatBody.model_validate({"messages": messages}).chat_request()
        said = request.messages[1]["content"]
        assert said == "No." or said == [{"type": "text", "text": "No."}]
        response = server.post(CHAT, {"messages": messages, "max_tokens": 1})
        assert response.status_code == 200, response.text
    # The other protocols' forms of the same turn.
    messages = [*CAPITAL, {"role": "assistant", "content": [part]}, *CAPITAL]
    told = MessagesBody.model_validate({"messages": messages, "max_tokens": 1}).chat_request()
    assert told.messages[1] == {"role": "assistant", "content": "No."}
    asked = ResponsesBody.model_validate({"input": messages}).chat_request(Context())
    assert asked.messages[1] == {"role": "assistant", "content": "No."}


def test_reminders_of_the_system(server: LiveServer) -> None:
    reminder = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    messages = [*CAPITAL, {"role": "assistant", "content": ANSWER}, reminder, *CAPITAL]
    response = server.post(MESSAGES, {"messages": messages, "max_tokens": 1})
    assert response.status_code == 200, response.text
    told = MessagesBody.model_validate({"messages": messages, "max_tokens": 1}).chat_request()
    assert told.messages[2] == {"role": "system", "content": "Be brief."}


def test_tools_of_others_are_left_out(server: LiveServer) -> None:
    """And named, as unknown fields are."""
    function = WEATHER_TOOL["function"]
    foreign = [{"type": "web_search"}, {"type": "local_shell"}, {"type": "custom", "name": "patch"}]
    body = {
        "input": "x",
        "max_output_tokens": 1,
        "tools": [*foreign, {**function, "type": "function"}],
    }
    response = server.post(RESPONSES, body)
    assert response.status_code == 200, response.text
    ignored = "tools.web_search, tools.local_shell, tools.custom"
    assert response.headers["X-Ignored-Fields"] == ignored
    served = ResponsesBody.model_validate(body).chat_request(Context()).tools
    assert [tool.name for tool in served] == [function["name"]]
    tools: list[Any] = [
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
        {"type": None, "name": "f", "input_schema": {"type": "object"}},
    ]
    body = {"messages": CAPITAL, "max_tokens": 1, "tools": tools}
    response = server.post(MESSAGES, body)
    assert response.headers["X-Ignored-Fields"] == "tools.web_search_20250305"
    body["tools"] = [foreign[2], WEATHER_TOOL]
    response = server.post(CHAT, body)
    assert response.status_code == 200
    assert response.headers["X-Ignored-Fields"] == "tools.custom"


def test_calls_of_tools_of_others() -> None:
    items: list[Any] = [
        *CAPITAL,
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "custom_tool_call", "call_id": "1", "name": "apply_patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "1", "output": "done"},
        {"type": "local_shell_call", "call_id": "2", "action": {"command": ["ls"]}},
        {"type": "local_shell_call_output", "call_id": "2", "output": "a b"},
    ]
    messages = ResponsesBody.model_validate({"input": items}).chat_request(Context()).messages
    assert [message["role"] for message in messages] == ["user", *["assistant", "tool"] * 2]


@pytest.mark.parametrize(
    ("block", "name"),
    [
        ({"type": "image"}, "messages[1].content[1]"),
        ({"type": "tool_use", "name": "f", "input": {}}, "messages[1].content[1]"),
        ({"type": "tool_use", "id": "1", "name": "f"}, "messages[1].content[1].input"),
        ({"type": "thinking"}, "messages[1].content[1].thinking"),
        ({"type": "tool_result", "content": "x"}, "messages[0].content[1].tool_use_id"),
        ({"type": "document"}, "messages[0].content[1]"),
    ],
)
def test_places_in_messages(server: LiveServer, block: dict[str, Any], name: str) -> None:
    contents = [[{"type": "text", "text": "x"}] for _ in range(2)]
    contents[int(name[9])].append(block)
    messages = [
        {"role": role, "content": content}
        for role, content in zip(("user", "assistant"), contents, strict=True)
    ]
    response = server.post(MESSAGES, {"messages": messages, "max_tokens": 1})
    message = response.json()["error"]["message"]
    assert response.status_code == 400 and message.startswith(f"{name}: "), message


def test_fields_of_responses(server: LiveServer) -> None:
    """Those that OpenAI's always have."""
    body = {"input": "x", "max_output_tokens": 1, "user": "me", "text": {"verbosity": "low"}}
    answer = server.post(RESPONSES, body).json()
    assert answer["background"] is False and answer["service_tier"] == "default"
    assert answer["user"] == "me" and answer["top_logprobs"] == 0
    assert answer["max_tool_calls"] is None
    assert answer["text"] == {"format": {"type": "text"}, "verbosity": "low"}
    message = server.post(MESSAGES, {"messages": CAPITAL, "max_tokens": 1})
    assert "timings" not in message.json()
    text = server.post(MESSAGES, {"messages": CAPITAL, "max_tokens": 1, "stream": True}).text
    assert "timings" not in text


def test_fingerprints_and_log_probabilities(server: LiveServer) -> None:
    chat = server.chat(max_tokens=1, **NO_THINK)
    body = {"prompt": "The", "max_tokens": 2, "logprobs": 0, **GREEDY}
    completion = server.post("/v1/completions", body).json()
    assert chat["system_fingerprint"] == completion["system_fingerprint"]
    assert chat["system_fingerprint"].startswith("fp_")
    scores = completion["choices"][0]["logprobs"]
    pairs = zip(scores["tokens"], scores["token_logprobs"], strict=True)
    assert scores["top_logprobs"] == [{token: logprob} for token, logprob in pairs]

"""Fields that limit tokens, show them, or cut prompts: as vLLM documents them, by other means."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
import torch
from infinicore_infer.engine.jobs import Submission, Update
from infinicore_infer.generate import drafts
from infinicore_infer.native.model import StepRequest
from qwen3 import Qwen3ForCausalLM
from serving import CAPITAL, GREEDY, NO_THINK, STORY, LiveServer, held_steps, slow_steps
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
)

Make = Callable[..., LiveServer]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
IDS = {"return_token_ids": True}
PROMPT = (
    f"<|im_start|>user\n{CAPITAL[0]['content']}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": CAPITAL, "max_tokens": 24, **NO_THINK, **GREEDY},
    # What the chat template makes of it.
    TEXT: {"prompt": PROMPT, "max_tokens": 24, **GREEDY},
    RESPONSES: {
        "input": CAPITAL[0]["content"], "max_output_tokens": 24, **NO_THINK, **GREEDY
    },
    MESSAGES: {"messages": CAPITAL, "max_tokens": 24, **NO_THINK, **GREEDY},
}  # fmt: skip


def logits_of(model: Qwen3ForCausalLM, tokens: Sequence[int]) -> Any:
    """Logits after each token, [ntok, dvoc]."""
    with model.create_kv_cache() as cache:
        return model.native.forward([StepRequest(cache, list(tokens), 0)]).astype(np.float64)


def spellings(model: Qwen3ForCausalLM, words: Sequence[str]) -> list[list[int]]:
    return [model.encode(prefix + word) for word in words for prefix in ("", " ")]


def expected(
    model: Qwen3ForCausalLM,
    prompt: Sequence[int],
    steps: int = 24,
    *,
    min_tokens: int = 0,
    bad_words: Sequence[str] = (),
    allowed: Sequence[int] | None = None,
) -> list[int]:
    """A greedy answer, with the masks of transformers' own processors."""
    ends = list(model.meta.end_tokens)
    processors = LogitsProcessorList()
    if min_tokens:
        processors.append(MinNewTokensLengthLogitsProcessor(0, min_tokens, ends, device="cpu"))
    if bad_words:
        processors.append(NoBadWordsLogitsProcessor(spellings(model, bad_words)))
    answer: list[int] = []
    while len(answer) < steps and (not answer or answer[-1] not in ends):
        scores = torch.tensor(logits_of(model, [*prompt, *answer])[-1:])
        # As in vLLM, the prompt does not count.
        scores = processors(torch.tensor([answer], dtype=torch.long), scores)
        if allowed is not None:
            others = [i for i in range(model.meta.dvoc) if i not in allowed]
            scores[:, others] = -np.inf
        answer.append(int(scores.argmax()))
    return answer


def chat_prompt(model: Qwen3ForCausalLM, messages: Any = CAPITAL) -> list[int]:
    return model.tokenizer.encode_chat(messages, variables={"enable_thinking": False})


def ids_of(server: LiveServer, path: str = CHAT, **change: Any) -> list[int]:
    response = server.post(path, {**BODIES[path], **IDS, **change})
    assert response.status_code == 200, response.text
    assert "X-Ignored-Fields" not in response.headers
    result: list[int] = response.json()["choices"][0]["token_ids"]
    return result


def events(server: LiveServer, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    lines = server.post(path, {**body, "stream": True}).text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


LIMITS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"min_tokens": 15}, {"min_tokens": 15}),
    ({"min_tokens": 24}, {"min_tokens": 24}),
    ({"bad_words": ["Paris", "capital"]}, {"bad_words": ["Paris", "capital"]}),
    ({"bad_words": ["of France", " is"]}, {"bad_words": ["of France", "is"]}),
    ({"allowed_token_ids": [30, 31, 32, 33, 2002]}, {"allowed": [30, 31, 32, 33, 2002]}),
    (
        {"min_tokens": 6, "bad_words": ["Paris"], "allowed_token_ids": list(range(200, 2026))},
        {"min_tokens": 6, "bad_words": ["Paris"], "allowed": range(200, 2026)},
    ),
]


@pytest.mark.parametrize(("fields", "settings"), LIMITS)
def test_limits(
    server: LiveServer, reference: Qwen3ForCausalLM, fields: Any, settings: dict[str, Any]
) -> None:
    """On every endpoint the tokens are those of transformers' processors; whole and streamed."""
    prompt = chat_prompt(reference)
    wanted = expected(reference, prompt, **settings)
    assert wanted != expected(reference, prompt)
    for path in (CHAT, TEXT):
        assert ids_of(server, path, **fields) == wanted
        pieces = events(server, path, {**BODIES[path], **IDS, **fields})
        assert [t for e in pieces for c in e["choices"] for t in c["token_ids"]] == wanted
    text = server.chat(max_tokens=24, **NO_THINK, **fields)["choices"][0]["message"]["content"]
    whole = server.post(RESPONSES, {**BODIES[RESPONSES], **fields}).json()
    assert whole["output"][0]["content"][0]["text"] == text
    assert (
        server.post(MESSAGES, {**BODIES[MESSAGES], **fields}).json()["content"][0]["text"] == text
    )


def test_limits_in_a_batch(server: LiveServer) -> None:
    """Answers with different limits, and none, are computed together; each as if alone."""
    changes = [{}, *(fields for fields, _ in LIMITS), {"guided_regex": "[a-f]{9}"}]
    alone = [ids_of(server, **change) for change in changes]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda change: ids_of(server, **change), changes * 3))
    assert together == alone * 3
    several = server.post(CHAT, {**BODIES[CHAT], **IDS, **LIMITS[2][0], "n": 3}).json()["choices"]
    assert [choice["token_ids"] for choice in several] == [alone[3]] * 3


def test_limits_with_guesses(
    make_server: Make, server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One mask holds for a step, so nothing is guessed while it may change in its midst."""
    monkeypatch.setattr(drafts, "draft_lengths", lambda costs, items: [most for _, most in items])
    guessing = make_server(lookup=8)
    # The answer repeats "1 = -1." and the like.
    prompt = "One two three. One two three. One two"
    settings: dict[str, Any] = {"prompt": prompt, "max_tokens": 60, "ignore_eos": True}
    plain = ids_of(server, TEXT, **settings)
    pairs = {"bad_words": ["1 =", "0."]}
    for change in ({}, {"min_tokens": 20}, pairs, LIMITS[4][0]):
        body = {**settings, **change}
        assert ids_of(guessing, TEXT, **body) == ids_of(server, TEXT, **body)
    assert ids_of(server, TEXT, **settings, **pairs) != plain
    assert guessing.engine.stats.accepted_tokens > 0


def test_the_first_end_after_min_tokens(server: LiveServer, reference: Qwen3ForCausalLM) -> None:
    plain = ids_of(server)
    least = len(plain)
    assert ids_of(server, min_tokens=least - 1) == plain
    longer = expected(reference, chat_prompt(reference), min_tokens=least)
    assert ids_of(server, min_tokens=least) == longer and longer[:-1] != plain[: len(longer) - 1]


def test_a_form_wins_over_limits(server: LiveServer) -> None:
    """Where they leave nothing of it; else both hold, also where a call may come in free text."""
    ends = list(server.model.meta.end_tokens)
    a, b, z = (server.model.encode(text)[0] for text in "abz")
    body = {**BODIES[TEXT], "max_tokens": 9}

    def text(**change: Any) -> str:
        response = server.post(TEXT, {**body, **change})
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["text"])

    assert text(guided_regex="[abz]{4}", allowed_token_ids=[b, *ends]) == "bbbb"
    assert text(guided_choice=["a"], allowed_token_ids=[z]) == "a"
    assert text(guided_choice=["a"], min_tokens=3) == "a"
    assert text(guided_choice=["z", "a"], bad_words=["z"]) == "a"
    assert text(guided_choice=["z"], bad_words=["z"]) == "z"
    strict = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {}}}
    assert set(ids_of(server, tools=[strict], allowed_token_ids=[a, z])) <= {a, z}


def test_stop_strings_come_after_min_tokens(server: LiveServer, reference: Any) -> None:
    plain = server.chat(**NO_THINK, stop=[" is"])["choices"][0]
    assert plain["message"]["content"] == "The capital of France"
    late = server.post(CHAT, {**BODIES[CHAT], "stop": [" is"], "min_tokens": 7}).json()
    assert " is Paris" in late["choices"][0]["message"]["content"]
    # Counted from the next token on.
    tokens = expected(reference, chat_prompt(reference))
    place = tokens.index(reference.encode(" is")[0])
    for least, stops in ((place, True), (place + 1, False)):
        change = {"stop": [" is"], "min_tokens": least}
        assert (ids_of(server, **change)[-1] == tokens[place]) == stops


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_stops_is_included(server: LiveServer, path: str) -> None:
    def answer(**change: Any) -> tuple[str, str]:
        body = {**BODIES[path], **change}
        (choice,) = server.post(path, body).json()["choices"]
        text = choice["text"] if path == TEXT else choice["message"]["content"]
        parts = [c for e in events(server, path, body) for c in e["choices"]]
        if path == TEXT:
            return text, "".join(part["text"] for part in parts)
        return text, "".join(part["delta"].get("content") or "" for part in parts)

    whole, _ = answer()
    word, token = "France", server.model.encode(" France")[0]
    before = whole[: whole.index(word)]
    assert answer(stop=[word]) == (before, before)
    assert answer(stop=[word], include_stop_str_in_output=True) == (before + word,) * 2
    assert answer(stop_token_ids=[token]) == (before[:-1],) * 2
    assert answer(stop_token_ids=[token], include_stop_str_in_output=True) == (before + word,) * 2
    # The end token is shown where control tokens are.
    ends = {"max_tokens": 99, "include_stop_str_in_output": True}
    assert "<|im_end|>" not in answer(**ends)[0]
    assert answer(**ends, skip_special_tokens=False)[0].endswith("<|im_end|>")


def test_control_tokens_in_the_text(server: LiveServer) -> None:
    start = server.model.tokenizer.token_id("<|im_start|>")
    body = {**BODIES[TEXT], "allowed_token_ids": [start], "max_tokens": 2}
    for change, text in (({}, ""), ({"skip_special_tokens": False}, "<|im_start|><|im_start|>")):
        assert server.post(TEXT, {**body, **change}).json()["choices"][0]["text"] == text
        streamed = events(server, TEXT, {**body, **change})
        assert "".join(e["choices"][0]["text"] for e in streamed) == text


def test_stop_tokens_where_ends_are_ignored(server: LiveServer, reference: Any) -> None:
    tokens = expected(reference, chat_prompt(reference))
    change = {"ignore_eos": True, "stop_token_ids": [tokens[-3]]}
    assert ids_of(server, **change) == tokens[: tokens.index(tokens[-3]) + 1]
    assert len(ids_of(server, ignore_eos=True)) == 24


def check_scores(model: Qwen3ForCausalLM, prompt: list[int], shown: list[Any], top: int) -> None:
    logits = logits_of(model, prompt)
    logits -= logits.max(axis=1, keepdims=True)
    scores = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert shown[0] is None and len(shown) == len(prompt)
    for row, token, entries in zip(scores, prompt[1:], shown[1:], strict=False):
        best = np.argsort(-row, kind="stable")[:top].tolist()
        assert set(entries) == {str(t) for t in [token, *best]} and next(iter(entries)) == str(
            token
        )
        for key, entry in entries.items():
            assert entry["logprob"] == pytest.approx(row[int(key)], abs=1e-4)
            assert entry["rank"] == (row >= row[int(key)]).sum()
            assert entry["decoded_token"] == model.tokenizer.decode([int(key)], False)


def test_prompt_logprobs(server: LiveServer, reference: Qwen3ForCausalLM) -> None:
    answer = server.chat(**NO_THINK, **IDS, prompt_logprobs=3, n=2, max_tokens=2)
    assert answer["prompt_token_ids"] == chat_prompt(reference)
    check_scores(reference, answer["prompt_token_ids"], answer["prompt_logprobs"], 3)
    body = {"prompt": ["One two", "A b c"], "max_tokens": 1, "prompt_logprobs": 0}
    for choice in server.post(TEXT, {**body, **IDS}).json()["choices"]:
        check_scores(reference, choice["prompt_token_ids"], choice["prompt_logprobs"], 0)
    # Beside an echo with another number.
    body = {**body, "prompt": "One two", "prompt_logprobs": 4, "echo": True, "logprobs": 1}
    (choice,) = server.post(TEXT, {**body, **IDS}).json()["choices"]
    check_scores(reference, choice["prompt_token_ids"], choice["prompt_logprobs"], 4)
    assert {len(top) for top in choice["logprobs"]["top_logprobs"][1:]} <= {1, 2}
    assert "prompt_logprobs" not in server.chat()


def test_token_ids(server: LiveServer, client: openai.OpenAI) -> None:
    """Joined, those of the pieces of a stream are those of the whole; without being asked, none."""
    fields: Any = {"model": "qwen3-tiny", "messages": CAPITAL, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**fields, extra_body=IDS).model_dump()
    prompt = server.post("/tokenize", {"messages": CAPITAL}).json()["tokens"]
    assert whole["prompt_token_ids"] == prompt
    tokens = whole["choices"][0]["token_ids"]
    assert len(tokens) == whole["usage"]["completion_tokens"]
    chunks = [
        chunk.model_dump()
        for chunk in client.chat.completions.create(**fields, extra_body=IDS, stream=True)
    ]
    assert chunks[0]["prompt_token_ids"] == prompt
    assert not any("prompt_token_ids" in chunk for chunk in chunks[1:])
    assert [t for chunk in chunks for c in chunk["choices"] for t in c["token_ids"]] == tokens
    assert "token_ids" not in server.chat()["choices"][0]
    body = {**BODIES[TEXT], "prompt": ["One", "Two"], "n": 2, "echo": True}
    streamed: list[list[int]] = [[], [], [], []]
    for event in events(server, TEXT, {**body, **IDS}):
        for choice in event["choices"]:
            streamed[choice["index"]] += choice["token_ids"]
    answers = server.post(TEXT, {**body, **IDS}).json()["choices"]
    assert [choice["token_ids"] for choice in answers] == streamed
    prompts = [server.model.encode(text) for text in ("One", "One", "Two", "Two")]
    assert [choice["prompt_token_ids"] for choice in answers] == prompts
    # Only the prompt was wanted.
    body = {**body, "max_tokens": 0, "n": 1, **IDS}
    assert [c["token_ids"] for c in server.post(TEXT, body).json()["choices"]] == [[], []]


def test_tokens_named_by_id(server: LiveServer) -> None:
    change = {"logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True, **IDS}
    choice = server.chat(**NO_THINK, **change)["choices"][0]
    entries, ids = choice["logprobs"]["content"], choice["token_ids"]
    assert [entry["token"] for entry in entries] == [f"token_id:{t}" for t in ids[:-1]]
    assert entries[0]["top_logprobs"][0]["token"] == entries[0]["token"]
    assert bytes(entries[0]["bytes"]).decode() == server.model.tokenizer.decode(ids[:1])
    body = {**BODIES[TEXT], "logprobs": 1, "return_tokens_as_token_ids": True, **IDS}
    (choice,) = server.post(TEXT, body).json()["choices"]
    names = [f"token_id:{t}" for t in choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == names
    assert [next(iter(top)) for top in choice["logprobs"]["top_logprobs"]] == names


def test_scores_come_with_their_text(server: LiveServer) -> None:
    """Those of tags, and of what is before the text, in events of their own: guidance needs it."""
    body = {"messages": CAPITAL, **GREEDY, "logprobs": True, "guided_regex": "[ab]{4} c"}
    choices = [event["choices"][0] for event in events(server, CHAT, body)]
    told = [(c["delta"], c["logprobs"]["content"]) for c in choices if c["logprobs"]]
    shown = [(delta["content"], entries) for delta, entries in told if "content" in delta]
    assert shown and all("".join(e["token"] for e in entries) == text for text, entries in shown)
    assert "</think>" in [
        entry["token"] for delta, entries in told if not delta for entry in entries
    ]


def test_prompts_are_cut(server: LiveServer, reference: Qwen3ForCausalLM) -> None:
    context = server.engine.context_length
    long = list(range(100, 200)) * (context // 100 + 1)
    text = "one two " * context

    def prompt(path: str = TEXT, **change: Any) -> list[int]:
        body = {**BODIES[path], "max_tokens": 1, **IDS, **change}
        answer = server.post(path, body).json()
        holder = answer if path == CHAT else answer["choices"][0]
        result: list[int] = holder["prompt_token_ids"]
        return result

    assert prompt(prompt=long, truncate_prompt_tokens=5) == long[-5:]
    assert prompt(prompt=long, truncate_prompt_tokens=5, truncation_side="right") == long[:5]
    assert prompt(prompt=long[:9], truncate_prompt_tokens=50) == long[:9]
    assert prompt(prompt=long, truncate_prompt_tokens=-1, max_tokens=30) == long[-(context - 30) :]
    assert prompt(prompt=text, truncate_prompt_tokens=7) == reference.encode(text)[-7:]
    messages = [{"role": "user", "content": text}]
    whole = chat_prompt(reference, messages)
    assert prompt(CHAT, messages=messages, truncate_prompt_tokens=20) == whole[-20:]
    kept = prompt(CHAT, messages=messages, truncate_prompt_tokens=-1, max_tokens=10)
    assert kept == whole[-(context - 10) :]
    for change, words in (
        ({"truncate_prompt_tokens": 0}, "at least 1"),
        ({"truncate_prompt_tokens": context + 1}, f"the context holds {context}"),
        ({"truncate_prompt_tokens": -1, "max_tokens": context}, "leaves no room"),
        ({"prompt": "one two " * context * 9, "truncate_prompt_tokens": 5}, "characters"),
    ):
        response = server.post(TEXT, {**BODIES[TEXT], "prompt": long, **change})
        assert response.status_code == 400 and words in response.json()["error"]["message"]


def test_old_turns_are_dropped(server: LiveServer) -> None:
    """As many as have to be; instructions and the latest message stay."""
    context = server.engine.context_length

    def turns(first: int, last: int) -> list[dict[str, str]]:
        pairs = [
            [
                {"role": "user", "content": f"{i} " * 30},
                {"role": "assistant", "content": "Yes. " * 9},
            ]
            for i in range(first, last)
        ]
        return [message for pair in pairs for message in pair]

    def counted(items: Any) -> int:
        messages = [{"role": "system", "content": "Be brief."}, *items]
        return int(server.post("/tokenize", {"messages": messages, **NO_THINK}).json()["count"])

    count = next(n for n in range(1, 999) if counted([*turns(0, n), *CAPITAL]) > context)
    items = [*turns(0, count + 5), *CAPITAL]
    body = {**BODIES[RESPONSES], "input": items, "instructions": "Be brief."}
    refused = server.post(RESPONSES, body)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    answer = server.post(RESPONSES, {**body, "truncation": "auto"}).json()
    kept = answer["usage"]["input_tokens"]
    fitting = [counted(items[i:]) for i in range(0, len(items), 2)]
    assert kept == max(n for n in fitting if n <= context - 24)
    first = fitting.index(kept)
    same = server.post(RESPONSES, {**body, "input": items[2 * first :]}).json()
    assert same["output"][0]["content"] == answer["output"][0]["content"]
    assert answer["truncation"] == "auto" and same["truncation"] == "disabled"
    # What cannot be shortened is refused as before.
    single = [{"role": "user", "content": "one " * 2 * context}]
    response = server.post(RESPONSES, {**body, "input": single, "truncation": "auto"})
    assert response.json()["error"]["code"] == "context_length_exceeded"
    for short in (CAPITAL, [*turns(0, 1), *CAPITAL]):
        answer = server.post(RESPONSES, {**body, "input": short, "truncation": "auto"}).json()
        assert answer["usage"]["input_tokens"] == counted(short)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_running_usage(server: LiveServer, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**BODIES[path], **IDS, "n": 2, "stream_options": options}
    pieces = events(server, path, body)
    seen = [0, 0]
    for event in pieces[:-1]:
        (choice,) = event["choices"]
        seen[choice["index"]] += len(choice["token_ids"])
        usage = event["usage"]
        assert usage["completion_tokens"] == seen[choice["index"]]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["prompt_tokens"] == pieces[-1]["usage"]["prompt_tokens"] > 0
    assert pieces[-1]["usage"]["completion_tokens"] == sum(seen) and pieces[-1]["choices"] == []
    # Alone it does nothing, as in vLLM.
    body["stream_options"] = {"continuous_usage_stats": True}
    assert not any(event.get("usage") for event in events(server, path, body))


def test_priority(make_server: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what waits, the lowest goes first; of equals, what came first."""
    server = make_server(max_batch=1)
    slow_steps(monkeypatch, server.model, 0.02)
    ended: list[str] = []

    def job(name: str, priority: int, steps: int = 1) -> Any:
        params = server.model.sampling_params(max_steps=steps, temperature=0, ignore_eos=True)
        submission = Submission([1, 2, 3], [params], name, priority=priority)

        def sink(update: Update) -> None:
            if update.done:
                ended.append(name)

        return server.engine.make_job(submission, sink)

    names = {"a": 0, "b": 7, "c": -3, "d": 0, "e": -(2**63)}
    with held_steps(server.model) as begun:
        server.engine.submit([job("running", 9, 20)])
        assert begun.wait(30)
        for name, priority in names.items():
            server.engine.submit([job(name, priority)])
    assert server.engine.wait_idle(30)
    assert ended == ["running", "e", "c", "a", "d", "b"]
    asked: list[Submission] = []
    submit = server.service.submit

    def noted(submissions: Sequence[Submission]) -> Any:
        asked.extend(submissions)
        return submit(submissions)

    monkeypatch.setattr(server.service, "submit", noted)
    for path, prompt in ((CHAT, {"messages": STORY}), (TEXT, {"prompt": "Hello"})):
        answer = server.post(path, {**prompt, "max_tokens": 1, "priority": -5})
        assert answer.status_code == 200
    assert [submission.priority for submission in asked] == [-5, -5]


@pytest.mark.parametrize(
    ("path", "change", "param", "words"),
    [
        (CHAT, {"min_tokens": 25}, "min_tokens", "is 25, but an answer has at most 24 tokens"),
        (TEXT, {"min_tokens": -1}, "min_tokens", "greater than or equal to 0, got -1"),
        (TEXT, {"bad_words": ["a", "  "]}, "bad_words[1]", "must be a word, got '  '"),
        (TEXT, {"bad_words": ["a", "\ud800"]}, "bad_words[1]", "not valid Unicode"),
        (TEXT, {"bad_words": ["a"] * 257}, "bad_words", "at most 256 items"),
        (TEXT, {"bad_words": ["a" * 201]}, "bad_words", "201 characters; at most 200"),
        (CHAT, {"allowed_token_ids": []}, "allowed_token_ids", "at least 1 item"),
        (CHAT, {"allowed_token_ids": [1, 99999]}, "allowed_token_ids[1]", "no token 99999"),
        (CHAT, {"allowed_token_ids": [-1]}, "allowed_token_ids[0]", "no token -1"),
        (CHAT, {"prompt_logprobs": 21}, "prompt_logprobs", "less than or equal to 20"),
        (CHAT, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "not available in a"),
        (CHAT, {"priority": "high"}, "priority", "valid integer"),
        (CHAT, {"truncation_side": "left"}, "truncation_side", "truncate_prompt_tokens"),
        (CHAT, {"truncation": "auto"}, "truncation", "not supported"),
        (RESPONSES, {"truncation": "yes"}, "truncation", "'auto' or 'disabled'"),
        (RESPONSES, {"return_token_ids": True}, "return_token_ids", "not supported"),
        (RESPONSES, {"min_tokens": 99}, "min_tokens", "at most 24"),
        (TEXT, {"suffix": "x"}, "suffix", "not supported"),
    ],
)  # fmt: skip
def test_wrong_values(
    server: LiveServer, path: str, change: dict[str, Any], param: str, words: str
) -> None:
    response = server.http.post(path, content=json.dumps({**BODIES[path], **change}))
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param
    assert words in error["message"], error["message"]

"""Models whose tokenizer knows more tokens than they do, or which have none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from infinicore_infer.errors import FieldError
from infinicore_infer.generate import thinking
from infinicore_infer.generate.grammar import Grammar, Grammars
from infinicore_infer.text.tokenizer import Qwen3Tokenizer
from python.helpers import copy_folder, make_text_model
from qwen3 import Qwen3ForCausalLM
from serving import NO_THINK, LiveServer

Make = Callable[..., LiveServer]
BODY: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("missing", [2, 4])
def test_a_tokenizer_with_more_tokens(make_server: Make, tmp_path: Path, missing: int) -> None:
    """Those that the model lacks cannot come; all else is as in Python, structured output too."""
    folder = make_text_model(tmp_path, padding=-missing)
    server = make_server(folder=folder)
    tokenizer, dvoc = server.model.tokenizer, server.model.meta.dvoc
    assert tokenizer.vocab_size == dvoc + missing
    with Qwen3ForCausalLM(folder, threads=1) as model:
        expected = model.generate("hello", 8, temperature=0, ignore_eos=True).text
    answer = server.post("/v1/completions", {"prompt": "hello", **BODY}).json()
    assert answer["choices"][0]["text"] == expected
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    closed = {**schema, "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": closed}}
    asked = {"messages": HELLO, "response_format": form, "max_tokens": 200, **NO_THINK}
    if missing == 4:
        # The template itself writes one of them.
        refused = server.post("/v1/chat/completions", asked)
        assert refused.status_code == 400 and f"to {dvoc - 1}" in refused.text
        del asked["chat_template_kwargs"]
    for seed in range(3):
        body = {**asked, "seed": seed, "temperature": 1}
        answer = server.post("/v1/chat/completions", body).json()
        assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"a"}
    # A prompt that has one of them is refused alike.
    with pytest.raises(ValueError) as error:
        server.model.generate("a</tool_call>", 1)
    refused = server.post("/v1/completions", {"prompt": "a</tool_call>", "max_tokens": 1})
    assert refused.status_code == 400 and str(error.value) in refused.json()["error"]["message"]
    think_end = tokenizer.token_id("</think>")
    assert think_end is not None
    if think_end >= dvoc:
        with pytest.raises(FieldError, match="does not think"):
            thinking.limit_thinking(tokenizer, dvoc, 3, False, None)


def test_tags_that_the_model_lacks_are_never_allowed(tmp_path: Path) -> None:
    """Where the vocabulary fills its masks, there is no bit for them either."""
    tokenizer = Qwen3Tokenizer(make_text_model(tmp_path))
    dvoc = 288
    tags = [tokenizer.token_id(tag) for tag in ("<think>", "</think>", "<tool_call>")]
    assert all(tag is not None and tag >= dvoc for tag in tags)
    meta = SimpleNamespace(dvoc=dvoc, end_tokens=[tokenizer.token_id("<|im_end|>")])
    grammars = Grammars()
    model: Any = SimpleNamespace(meta=meta, has_tokenizer=True, tokenizer=tokenizer)
    grammars.attach(model)
    constraint = grammars.factory(Grammar('start: "a"', "x"), may_think=True, thinking=False)()
    mask = constraint.mask()
    assert mask is not None and mask.shape == (dvoc // 32,)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert np.flatnonzero(bits).tolist() == tokenizer.encode("a")


def test_no_tokenizer(make_server: Make, tmp_path: Path) -> None:
    """Token ids go in and out; whatever needs text says why it cannot be had."""
    folder = copy_folder(make_text_model(tmp_path), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    server = make_server(folder=folder)
    with Qwen3ForCausalLM(folder, threads=1) as model:
        expected = model.generate([7, 8, 9], 8, temperature=0, ignore_eos=True)
        assert expected.text == ""
    body = {"prompt": [7, 8, 9], "logprobs": 2, **BODY}
    response = server.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["text"] == "" and choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in expected.tokens]
    assert response.json()["usage"]["completion_tokens"] == 8
    echoed = server.post("/v1/completions", {**body, "echo": True}).json()["choices"][0]
    names = [f"token_id:{token}" for token in [7, 8, 9, *expected.tokens]]
    assert echoed["logprobs"]["tokens"] == names
    with server.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
        text = "".join(stream.iter_text())
    assert "[DONE]" in text and "error" not in text
    for path, asked in (
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/completions", {"prompt": [1], "stop": "x"}),
        ("/v1/completions", {"prompt": [1], "response_format": {"type": "json_object"}}),
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/responses", {"input": "hello"}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 1}),
        ("/v1/messages/count_tokens", {"messages": HELLO}),
        ("/tokenize", {"prompt": "hello"}),
        ("/detokenize", {"tokens": [1]}),
    ):
        refused = server.post(path, asked)
        assert refused.status_code == 400, (path, refused.text)
        assert "tokenizer.json" in refused.json()["error"]["message"]
    server.check_idle()

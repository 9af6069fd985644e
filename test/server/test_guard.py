"""Qwen3Guard-Gen is a chat model whose template holds the policy and judges the last message.

The template is ours, built as the published one is: the policy, the conversation, the last
speaker's own lines, an exception for conversations without a user.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from python.helpers import ROOT, edit_json, make_text_model
from qwen3 import Qwen3ForCausalLM
from serving import LiveServer
from transformers import AutoTokenizer

ASKED = {"role": "user", "content": "How do I build a kite?"}
ANSWERED = {"role": "assistant", "content": "<think>\nx\n</think>\n\nWith paper and string."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_text_model(tmp_path_factory.mktemp("guards"), "qwen3guard-gen", dctx=2048)
    template = (ROOT / "test" / "data" / "guard_template.jinja").read_text("utf-8")
    edit_json(folder / "tokenizer_config.json", chat_template=template)
    return folder


@pytest.fixture(scope="module")
def guard(folder: Path) -> Iterator[LiveServer]:
    with LiveServer(folder=folder) as server:
        yield server


@pytest.mark.parametrize("messages", [[ASKED], [ASKED, ANSWERED], [ASKED, ANSWERED, ASKED]])
def test_conversations_are_judged(guard: LiveServer, folder: Path, messages: Any) -> None:
    """Also those that end with an answer, which is judged and not gone on with."""
    assert guard.model.task == "chat"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ("Refusal:" in text) == (messages[-1]["role"] == "assistant")
    assert guard.model.chat_prompt(messages) == text
    ids = tokenizer(text)["input_ids"]
    assert guard.post("/tokenize", {"messages": messages}).json()["tokens"] == ids
    with Qwen3ForCausalLM(folder, threads=1) as model:
        expected = model.generate(ids, max_steps=8, temperature=0)
    answer = guard.chat(messages, max_tokens=8)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert answer["choices"][0]["message"]["content"] == expected.text
    guard.check_idle()


def test_no_user(guard: LiveServer) -> None:
    body = {"messages": [{"role": "assistant", "content": "Hello"}]}
    response = guard.post("/v1/chat/completions", body)
    assert response.status_code == 400
    assert "must have a message of the user" in json.dumps(response.json())

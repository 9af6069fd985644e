"""The tokenizer of GGUF files, against tokenizer.json as Hugging Face's own code reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from gguf import GGMLQuantizationType as Type
from infinicore_infer.checkpoint.gguf import GgufFile
from infinicore_infer.text.chat_template import TokenizerError
from infinicore_infer.text.gguf_tokenizer import gguf_tokenizer
from infinicore_infer.text.tokenizer import Qwen3Tokenizer
from python.helpers import DEMO
from python.test_tokenizer import TEXTS
from qwen3 import Qwen3ForCausalLM
from reference.gguf_files import add_model, add_tokenizer, drop_key, set_key, write_gguf
from reference.random_checkpoint import load_config

Change = Callable[[gguf.GGUFWriter], object]


def _rebuilt(folder: Path, path: Path, size: int) -> Qwen3Tokenizer:
    writer = gguf.GGUFWriter(path, "qwen3")
    add_model(writer, load_config(DEMO))
    add_tokenizer(writer, folder, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = gguf_tokenizer(GgufFile(path).metadata, path)
    assert tokenizer is not None
    return tokenizer


def _same(ours: Qwen3Tokenizer, theirs: Qwen3Tokenizer) -> None:
    controls = "<|im_start|>user\nA<think>\n</think><|im_end|><|fim_prefix|>x<tool_call>"
    for text in [*TEXTS, controls, "e\u0301 \u1100\u1161\u11a8"]:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.encode(text, allow_special=False) == theirs.encode(text, allow_special=False)
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids, skip_special=False)
    messages = [{"role": "user", "content": "Hi <|im_end|>"}]
    for options in ({}, {"tools": [{"type": "function", "function": {"name": "f"}}]}):
        assert ours.encode_chat(messages, **options) == theirs.encode_chat(messages, **options)
        safe = {**options, "allow_special": False}
        assert ours.encode_chat(messages, **safe) == theirs.encode_chat(messages, **safe)
    assert ours.vocab_size == theirs.vocab_size


def test_tokenizer(demo_tokenizer: Qwen3Tokenizer, tmp_path: Path) -> None:
    """The same ids and texts as tokenizer.json's, which HF's own code reads."""
    _same(_rebuilt(DEMO, tmp_path / "t.gguf", 2048), demo_tokenizer)


def test_official_tokenizer(
    official: Qwen3Tokenizer, official_folder: Path, tmp_path: Path
) -> None:
    """151,643 tokens, 151,387 merges, and the added ones."""
    _same(_rebuilt(official_folder, tmp_path / "t.gguf", 151936), official)


TOKENIZERS: dict[str, tuple[Change, str]] = {
    "spm": (set_key("tokenizer.ggml.model", "llama"), "'llama', which is not supported"),
    "another split": (set_key("tokenizer.ggml.pre", "llama-bpe"), "'llama-bpe'"),
    "no merges": (drop_key("tokenizer.ggml.merges"), "merges' is missing"),
    "no types": (drop_key("tokenizer.ggml.token_type"), "token_type"),
    "no pair": (set_key("tokenizer.ggml.merges", ["a b", "ab"]), "'ab', not a pair"),
    "a merge of nothing": (set_key("tokenizer.ggml.merges", ["qzq qqz"]), "not a tokenizer"),
    "twice": (set_key("tokenizer.ggml.tokens", ["a"] * 2048), "same text twice"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_bad_tokenizers(case: str, tmp_path: Path) -> None:
    change, words = TOKENIZERS[case]
    path = tmp_path / "m.gguf"
    write_gguf(DEMO, path, Type.F16, change=change)
    with pytest.raises(TokenizerError, match=words) as caught:
        Qwen3ForCausalLM(path)
    assert str(caught.value).startswith(str(path))


def test_templates_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    change = set_key("tokenizer.chat_template.tool_use", "TOOLS")
    write_gguf(DEMO, path, Type.F16, change=change)
    with Qwen3ForCausalLM(path) as model:
        templates = model.tokenizer.templates.sources
        assert set(templates) == {"default", "tool_use"} and templates["tool_use"] == "TOOLS"
    config = json.loads((DEMO / "tokenizer_config.json").read_text("utf-8"))
    assert templates["default"] == config["chat_template"]

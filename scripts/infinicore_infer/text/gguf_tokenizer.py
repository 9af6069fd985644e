"""Rebuilds the tokenizer that a GGUF file's metadata describes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infinicore_infer.text.chat_template import TokenizerError
from infinicore_infer.text.tokenizer import Qwen3Tokenizer

# What Qwen's tokenizer.json does before byte pairs are merged. GGUF files name it "qwen2".
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
# Converters mark as control whatever looks like it; tokenizer.json says that these are text.
_TEXT = frozenset(
    f"<|{name}|>"
    for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
)
_TEMPLATE = "tokenizer.chat_template"


def gguf_tokenizer(metadata: Mapping[str, Any], source: Path) -> Qwen3Tokenizer | None:
    """Return the tokenizer of a GGUF file, or ``None`` if the file has none.

    Args:
        metadata: The file's.
        source: The file, for messages.

    Raises:
        TokenizerError: It is of another kind than Qwen's, or its parts do not fit.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None or kind == "no_vocab":
        return None
    try:
        definition = json.dumps(_definition(metadata), ensure_ascii=False)
        return Qwen3Tokenizer.from_definition(definition, _config(metadata), source)
    except TokenizerError as error:
        text = str(error).removeprefix(f"{source}: ")
        raise TokenizerError(f"{source}: {text}") from None


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not values:
        raise TokenizerError(f"'tokenizer.ggml.{key}' is missing, or no list of texts")
    return values


def _definition(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tokenizer.json would say."""
    for key, known in (("model", ("gpt2",)), ("pre", ("qwen2",))):
        value = metadata.get(f"tokenizer.ggml.{key}")
        if value not in known:
            raise TokenizerError(
                f"'tokenizer.ggml.{key}' is {value!r}, which is not supported (known: "
                f"{', '.join(known)})"
            )
    tokens, merges = _strings(metadata, "tokens"), _strings(metadata, "merges")
    types = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise TokenizerError("'tokenizer.ggml.token_type' is not one number per token")
    # Padding entries: ids that the model has rows for and no text means.
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    for i in np.flatnonzero(types == _UNUSED):
        if vocabulary.get(tokens[i]) == i:
            del vocabulary[tokens[i]]
    unused = int((types == _UNUSED).sum())
    if len(vocabulary) + unused < len(tokens):
        raise TokenizerError("'tokenizer.ggml.tokens' has the same text twice")
    bad = next((i for i, merge in enumerate(merges) if merge.count(" ") != 1), None)
    if bad is not None:
        raise TokenizerError(f"'tokenizer.ggml.merges'[{bad}] is {merges[bad]!r}, not a pair")
    added = np.flatnonzero((types == _CONTROL) | (types == _USER_DEFINED))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": int(i),
                "content": tokens[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": bool(types[i] == _CONTROL and tokens[i] not in _TEXT),
            }
            for i in added
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _PATTERN},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _byte_level(),
            ],
        },
        "post_processor": _post_processor(metadata, tokens),
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _post_processor(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """Return what adds the end of text to texts that are embedded, where the file says so."""
    end = metadata.get("tokenizer.ggml.eos_token_id")
    if metadata.get("tokenizer.ggml.add_eos_token") is not True:
        return _byte_level()
    if not isinstance(end, int) or not 0 <= end < len(tokens):
        raise TokenizerError(
            f"'tokenizer.ggml.add_eos_token' is true, and 'tokenizer.ggml.eos_token_id' is {end!r}"
        )
    name = tokens[end]
    text, last = (
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": name, "type_id": 0}},
    )
    template = {
        "type": "TemplateProcessing",
        "single": [text, last],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}, last],
        "special_tokens": {name: {"id": name, "ids": [end], "tokens": [name]}},
    }
    return {"type": "Sequence", "processors": [_byte_level(), template]}


def _byte_level() -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }


def _config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tokenizer_config.json would say."""
    config: dict[str, Any] = {"chat_template": _templates(metadata), "added_tokens_decoder": {}}
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    names = [("eos_token", "eos"), ("pad_token", "padding")]
    # Qwen's tokenizer has none, though files state an id.
    names += [("bos_token", "bos")] if metadata.get("tokenizer.ggml.add_bos_token") else []
    for ours, theirs in names:
        token = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(token, int) and 0 <= token < len(tokens):
            config[ours] = tokens[token]
    return config


def _templates(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the chat templates: the ordinary one, and others by name."""
    templates = []
    for key, source in metadata.items():
        if key == _TEMPLATE:
            templates.append({"name": "default", "template": source})
        elif key.startswith(f"{_TEMPLATE}."):
            templates.append({"name": key.removeprefix(f"{_TEMPLATE}."), "template": source})
    return templates

"""What a checkpoint is for: chats, embeddings, or judging documents.

config.json does not say it: Qwen3-Embedding and Qwen3-Reranker have that of a chat model. What does
are tensors, the files of sentence-transformers, GGUF's kind of pooling, and names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from infinicore_infer.checkpoint.config_reader import ConfigError
from infinicore_infer.checkpoint.json_files import read_json_object, require_regular

Task = Literal["chat", "embed", "rerank"]
TASKS: tuple[str, ...] = ("auto", *get_args(Task))

# The heads of models that judge: of Hugging Face's Qwen3ForSequenceClassification, of GGUF files.
SCORE_HEADS = ("score.weight", "cls.output.weight")
_GUARD = "risk_level_head.weight"
_GGUF_POOLING = {0: None, 1: "mean", 2: "cls", 3: "lasttoken", 4: "rank"}
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
_NAMES: tuple[tuple[Task, re.Pattern[str]], ...] = (
    ("rerank", re.compile(r"rerank", re.IGNORECASE)),
    ("embed", re.compile(r"embedding|(?<![a-z])embed(?![a-z])", re.IGNORECASE)),
)
_TITLE = re.compile(r"^# +(.*Qwen3-(?:Embedding|Reranker).*)$", re.MULTILINE | re.IGNORECASE)
_README_BYTES = 1 << 16


def task_of(path: Path, weights: Mapping[str, Any], metadata: Mapping[str, Any] | None) -> Task:
    """Return what a checkpoint is for.

    Args:
        path: The folder or the GGUF file.
        weights: Its weights by name.
        metadata: A GGUF file's; ``None`` for folders of safetensors files.

    Raises:
        ConfigError: It is a kind of model that is not supported.
    """
    config = _config(path) if metadata is None else {}
    architectures = config.get("architectures")
    kinds = architectures if isinstance(architectures, list) else []
    if "Qwen3ForGuardModel" in kinds or _GUARD in weights:
        raise ConfigError(
            f"{path}: is a Qwen3Guard-Stream model, whose heads classify single tokens: that is "
            "not supported; Qwen3Guard-Gen, which answers in words, is"
        )
    judges = any(head in weights for head in SCORE_HEADS) and "Qwen3ForCausalLM" not in kinds
    if judges or "Qwen3ForSequenceClassification" in kinds:
        return "rerank"
    if metadata is not None:
        kind = _gguf_pooling(metadata)
        if kind is not None:
            return "rerank" if kind == "rank" else "embed"
    elif "Pooling" in _modules(path):
        return "embed"
    for name in names_of(path, metadata):
        for task, pattern in _NAMES:
            if pattern.search(name):
                return task
    headless = metadata is None and not any(name.endswith("lm_head.weight") for name in weights)
    untied = config.get("tie_word_embeddings") is False
    return "embed" if kinds == ["Qwen3Model"] or (headless and untied) else "chat"


def names_of(path: Path, metadata: Mapping[str, Any] | None) -> list[str]:
    """Return what a model is called: by its folder or file, its README, a GGUF file's metadata."""
    path = path.absolute()
    names = [path.name]
    if (
        path.parent.name == "snapshots"
    ):  # in Hugging Face's cache: models--Qwen--NAME/snapshots/HASH
        names.append(path.parent.parent.name)
    if metadata is not None:
        names += [str(metadata.get(f"general.{key}", "")) for key in ("name", "basename")]
    readme = path / "README.md"
    if readme.is_file():
        with readme.open("rb") as file:
            text = file.read(_README_BYTES).decode("utf-8", "replace")
        names += _TITLE.findall(text)[:1]
    return names


def check_pooling(path: Path, metadata: Mapping[str, Any] | None) -> None:
    """Check that embeddings are the last token's states, which alone are computed here.

    Raises:
        ConfigError: The checkpoint says otherwise.
    """
    if metadata is not None:
        kind = _gguf_pooling(metadata)
        if kind in ("mean", "cls"):
            raise ConfigError(f"{path}: pooling {kind!r} is not supported; only the last token's")
        return
    for name, folder in _modules(path).items():
        if name not in _KNOWN_MODULES:
            raise ConfigError(
                f"{path / 'modules.json'}: module {name!r} is not supported; only "
                f"{', '.join(_KNOWN_MODULES)} are"
            )
        if name != "Pooling":
            continue
        config = path / folder / "config.json"
        values = read_json_object(config) if config.exists() else {}
        modes = [
            key.removeprefix("pooling_mode_")
            for key, value in values.items()
            if key.startswith("pooling_mode_") and value is True
        ]
        if isinstance(values.get("pooling_mode"), str):
            modes.append(values["pooling_mode"])
        other = [mode for mode in modes if mode != "lasttoken"]
        if other:
            raise ConfigError(
                f"{config}: pooling {other[0]!r} is not supported; only 'lasttoken' is"
            )


def _config(path: Path) -> Mapping[str, Any]:
    config = path / "config.json"
    return read_json_object(config) if config.exists() else {}


def _gguf_pooling(metadata: Mapping[str, Any]) -> str | None:
    """Return the name of a GGUF file's kind of pooling; ``None``: none, or it says nothing."""
    value = metadata.get("qwen3.pooling_type", 0)
    if not isinstance(value, int) or value not in _GGUF_POOLING:
        raise ConfigError(f"'qwen3.pooling_type' is {value!r}, which is not known")
    return _GGUF_POOLING[value]


def _modules(path: Path) -> dict[str, str]:
    """Return the folders of sentence-transformers' modules by the modules' names.

    Raises:
        ConfigError: modules.json is damaged.
    """
    file = path / "modules.json"
    if not file.exists():
        return {}
    require_regular(file)
    try:
        values = json.loads(file.read_text("utf-8"))
        return {each["type"].rpartition(".")[2]: str(each.get("path", "")) for each in values}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{file}: is no list of modules: {error}") from error

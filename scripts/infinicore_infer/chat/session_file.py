"""Conversations on disk: one JSON file, and beside it the keys and values of its tokens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infinicore_infer.causal_lm import KVCache, Qwen3Error, Qwen3ForCausalLM
from infinicore_infer.chat import settings as chat_settings
from infinicore_infer.chat.conversation import Conversation

_FORMAT, _VERSION = "infinicore_infer chat", 1
_ROLES = ("user", "assistant")


def cache_path(path: Path) -> Path:
    """Return where the keys and values of a saved conversation lie."""
    return path.with_name(path.name + ".kv")


def named(text: str) -> Path:
    """Return the file that a user names.

    Raises:
        ValueError: No file was named.
    """
    if not text:
        raise ValueError("name a file, such as chat.json")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: {error}") from None


def save(path: Path, conversation: Conversation, model_name: str) -> None:
    """Write a conversation; the file appears complete or not at all.

    Raises:
        ValueError: The file is there and holds something else.
        OSError: It cannot be written.
    """
    if path.exists():
        _read(path)  # what somebody else wrote is not overwritten
    value = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": model_name,
        "system": conversation.system,
        "thinking": conversation.thinking,
        "settings": conversation.settings,
        "messages": conversation.messages,
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # What was said is its speaker's own.
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(value, file, indent=1)
            file.write("\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> Conversation:
    """Read a conversation that :func:`save` wrote.

    Raises:
        ValueError: The file holds something else, or a value in it is not acceptable.
        OSError: It cannot be read.
    """
    value = _read(path)
    system, thinking = value.get("system"), value.get("thinking", True)
    if not isinstance(system, str | None):
        raise ValueError(f"{path}: system must be a text or null, got {system!r}")
    if not isinstance(thinking, bool):
        raise ValueError(f"{path}: thinking must be true or false, got {thinking!r}")
    settings, messages = value.get("settings", {}), value.get("messages")
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: settings must be an object")
    if not isinstance(messages, list):
        raise ValueError(f"{path}: messages must be a list")
    try:
        chat_settings.inside(settings)
    except ValueError as error:
        raise ValueError(f"{path}: settings: {error}") from None
    for number, message in enumerate(messages):
        _check_message(f"{path}: messages[{number}]", message)
    texts = [{"role": message["role"], "content": message["content"]} for message in messages]
    return Conversation(system, thinking, False, settings, texts)


def _check_message(where: str, message: object) -> None:
    if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
        raise ValueError(f"{where}: must be an object whose role is user or assistant")
    if not isinstance(message.get("content"), str):
        raise ValueError(f"{where}: content must be a text")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        # Reading a pipe would wait for whoever writes it.
        raise ValueError(f"{path}: {'is no file' if path.exists() else 'there is no such file'}")
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise ValueError(f"{path}: is no saved conversation")
    if value.get("version") != _VERSION:
        version = value.get("version")
        raise ValueError(f"{path}: has version {version!r}; this program reads {_VERSION}")
    return value


def save_cache(path: Path, cache: KVCache) -> str:
    """Write a conversation's keys and values beside it; return what became of it, for the user.

    Without them the conversation is computed again when it goes on, which is no error.
    """
    target = cache_path(path)
    try:
        # What is there belongs to the conversation as it was before.
        target.unlink(missing_ok=True)
        if not len(cache):
            return "nothing computed yet"
        cache.save(target)
    except (ValueError, OSError, NotImplementedError, Qwen3Error) as error:
        return f"computed again when loaded: {error}"
    return f"{len(cache)} computed tokens in {target.name}, {target.stat().st_size / 1e6:.1f} MB"


def load_cache(path: Path, model: Qwen3ForCausalLM) -> tuple[KVCache | None, str]:
    """Return a conversation's keys and values if they are there and this model's, and a note."""
    source = cache_path(path)
    if not source.is_file():
        return None, "computed again with the next question"
    try:
        cache = model.load_kv_cache(source)
    except (ValueError, OSError, MemoryError, NotImplementedError, Qwen3Error) as error:
        return None, f"computed again with the next question: {error}"
    return cache, f"{len(cache)} tokens computed already"

"""What the files beside tokenizer.json say of added tokens, as transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infinicore_infer.text.chat_template import TokenizerError, require_regular

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_NAMES = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# What the tokenizer class of the Qwen family has where its configuration is silent.
QWEN_CLASSES = (None, "Qwen2Tokenizer", "Qwen2TokenizerFast")
_QWEN_DEFAULTS = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; nothing where there is no such file.

    Raises:
        TokenizerError: It holds something else, or is a pipe, a device or a folder.
    """
    if not path.exists():
        return {}
    require_regular(path)
    try:
        value = json.loads(path.read_text("utf-8"))
        # Half of a surrogate pair ("\ud800") is JSON, and no character of a text.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: expected a JSON object")
    return value


def _content(value: object) -> str | None:
    """Return a token's text, which may stand in an object with its flags."""
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) and value else None


def _number(text: str) -> int:
    # Python refuses to read numbers of thousands of digits.
    return int(text) if text.isdecimal() and len(text) < 20 else 0


class ListedTokens:
    """Added tokens of tokenizer_config.json and of the files that older checkpoints have instead.

    Attributes:
        names: Texts of control tokens by the names that chat templates know: ``eos_token``, ...
    """

    def __init__(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        """Read them.

        Args:
            folder: The checkpoint; ``None``: there are no files beside the configuration.
            config: Contents of its tokenizer_config.json.
        """
        older = folder if "added_tokens_decoder" not in config else None
        values = self._with_map(older, config) if older else config
        if config.get("tokenizer_class") in QWEN_CLASSES:
            values = {**_QWEN_DEFAULTS, **values}
        extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
        named = {name: values.get(name) for name in _NAMES}
        named |= {name: text for name, text in values.items() if name.endswith("_token")}
        named |= extra if isinstance(extra, Mapping) else {}
        self.names = {name: text for name, value in named.items() if (text := _content(value))}
        control = [*named.values(), *(extra if isinstance(extra, list) else [])]
        self._control = [value for value in control if _content(value)]
        self._entries = self._older(older) if older else self._numbered(config)

    @staticmethod
    def _with_map(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration with special_tokens_map.json, whose lists are added to it."""
        beside = read_object(folder / "special_tokens_map.json")
        beside.pop("additional_special_tokens", None)
        own, more = config.get("extra_special_tokens"), beside.get("extra_special_tokens")
        if isinstance(own, list) and isinstance(more, list):
            beside["extra_special_tokens"] = [*own, *more]
        return {**config, **beside}

    @staticmethod
    def _numbered(config: Mapping[str, Any]) -> list[object]:
        listed = config.get("added_tokens_decoder")
        items = listed.items() if isinstance(listed, Mapping) else ()
        return [v for _, v in sorted(items, key=lambda i: _number(i[0]))]

    def _older(self, folder: Path) -> list[object]:
        items = read_object(folder / "added_tokens.json").items()
        control = {_content(value) for value in self._control}
        return [
            {"content": text, "special": text in control, "normalized": text not in control}
            for text, _ in sorted(
                (item for item in items if isinstance(item[1], int)), key=lambda item: item[1]
            )
        ]

    @staticmethod
    def _token(entry: object, special: bool) -> AddedToken:
        from tokenizers import AddedToken

        given = entry if isinstance(entry, Mapping) else {}
        flags = {flag: given.get(flag, False) is True for flag in _FLAGS}
        return AddedToken(
            _content(entry) or "", **{**flags, "special": special or flags["special"]}
        )

    def add_to(self, tokenizer: Tokenizer) -> None:
        """Add the tokens that the tokenizer lacks, in the order in which transformers does."""
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        for entries, special in ((self._entries, False), (self._control, True)):
            for entry in entries:
                text = _content(entry)
                if text is not None and text not in known:
                    tokenizer.add_tokens([self._token(entry, special)])
                    known.add(text)

"""Text to token ids and back: tokenizer.json, and the chat template beside it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from infinicore_infer.text.chat_template import Message, TokenizerError, check_messages, render

# Private-use characters that stand around control tokens in text that must not have any.
_MARK, _MARK_END = "\ue0f0", "\ue0f1"


@lru_cache(maxsize=1)
def _byte_of_char() -> dict[str, int]:
    """Return GPT-2's table from printable characters back to bytes, which byte-level BPE uses."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return table


class Qwen3Tokenizer:
    """A checkpoint's tokenizer and chat template.

    Attributes:
        chat_template: Jinja source, or ``None`` if the checkpoint has none.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Load tokenizer.json and, where present, tokenizer_config.json and chat_template.jinja.

        Raises:
            FileNotFoundError: There is no tokenizer.json.
            TokenizerError: A file is damaged, or the tokenizer is not byte-level BPE.
        """
        # Imported here, so that it loads while weights are being packed.
        from tokenizers import Tokenizer, decoders

        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: no tokenizer.json in this folder")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise TokenizerError(f"{path}: not a tokenizer: {error}") from error
        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            raise TokenizerError(f"{path}: not a byte-level BPE tokenizer, which Qwen3 has")
        # A stored padding or truncation setting would silently change prompts.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in added.items() if token.special)
        # Longest first: one control token may begin another. "(?!)" matches nothing.
        names = sorted((token.content for token in added.values()), key=len, reverse=True)
        self._added_pattern = "|".join(map(re.escape, names)) or "(?!)"
        self._bytes: dict[int, bytes] = {}
        self._config = self._read_config(Path(folder) / "tokenizer_config.json")
        self.chat_template = self._read_template(Path(folder) / "chat_template.jinja")

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids the tokenizer knows; the model's vocabulary may be padded beyond.

        Takes a copy of the whole vocabulary, 0.2 s for Qwen3's, so loading does without.
        """
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @staticmethod
    def _read_config(path: Path) -> dict[str, Any]:
        if not path.is_file():
            return {}
        try:
            config = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise TokenizerError(f"{path}: not valid JSON: {error}") from error
        if not isinstance(config, dict):
            raise TokenizerError(f"{path}: expected a JSON object")
        return config

    def _read_template(self, path: Path) -> str | None:
        # As in transformers, the file of its own wins over the entry in tokenizer_config.json.
        if path.is_file():
            return path.read_text("utf-8")
        template = self._config.get("chat_template")
        if isinstance(template, list):
            # Several templates by name, as some checkpoints have them.
            named = [entry for entry in template if isinstance(entry, dict)]
            default = (entry for entry in named if entry.get("name") == "default")
            template = next(default, {}).get("template")
        if template is not None and not isinstance(template, str):
            raise TokenizerError("tokenizer_config.json: 'chat_template' must be a string")
        return template

    def encode(self, text: str, allow_special: bool = True) -> list[int]:
        """Return the token ids of a text; nothing is added at either end.

        Args:
            text: Any text.
            allow_special: Whether strings such as ``<|im_end|>`` become control tokens; ``False``
                reads them as plain text, for text that a stranger wrote.

        Raises:
            TokenizerError: The text is not valid Unicode, as misread bytes are not.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the text is not valid Unicode: {error}") from error
        if allow_special:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return self._encode_plain(text)

    def _encode_plain(self, text: str) -> list[int]:
        """Encode without recognising added tokens, special or not."""
        model, pre_tokenizer = self._tokenizer.model, self._tokenizer.pre_tokenizer
        normalizer = self._tokenizer.normalizer
        text = normalizer.normalize_str(text) if normalizer else text
        pieces = pre_tokenizer.pre_tokenize_str(text) if pre_tokenizer else [(text, None)]
        return [token.id for piece, _ in pieces for token in model.tokenize(piece)]

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of token ids; ids that the tokenizer does not know give nothing."""
        data = b"".join(self.token_bytes(token, skip_special) for token in tokens)
        return data.decode("utf-8", "replace")

    def token_bytes(self, token: int, skip_special: bool = True) -> bytes:
        """Return the UTF-8 bytes of one token, which may be part of a character."""
        if skip_special and token in self._special:
            return b""
        data = self._bytes.get(token)
        if data is None:
            text = self._tokenizer.id_to_token(token) or ""
            table = _byte_of_char()
            try:
                data = bytes(table[char] for char in text)
            except KeyError:
                data = text.encode()  # an added token is stored as plain text
            self._bytes[token] = data
        return data

    def token_id(self, text: str) -> int | None:
        """Return the id of one token by its text, or ``None``."""
        token = self._tokenizer.token_to_id(text)
        return None if token is None else int(token)

    def is_special(self, token: int) -> bool:
        """Return whether a token is a control token."""
        return token in self._special

    def _special_texts(self) -> dict[str, str]:
        """Return what transformers passes to templates as bos_token, eos_token and so on."""
        result = {}
        for key in ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token"):
            value = self._config.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                result[key] = value
        return result

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Render messages with the checkpoint's chat template, as transformers does.

        Args:
            messages: ``{"role": ..., "content": ...}`` each, the oldest first.
            tools: JSON schemas of functions the model may call.
            add_generation_prompt: Whether the text ends where the answer begins.
            **variables: Further template variables, such as ``enable_thinking=False``.

        Returns:
            The prompt as text.

        Raises:
            TokenizerError: The checkpoint has no template, a message is malformed, or the template
                refuses the messages.
        """
        if self.chat_template is None:
            raise TokenizerError("this checkpoint has no chat template")
        return render(
            self.chat_template,
            check_messages(messages),
            tools,
            add_generation_prompt,
            {**self._special_texts(), **variables},
        )

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        allow_special: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Return the token ids of a rendered conversation.

        Args:
            messages: As :meth:`apply_chat_template`.
            tools: As :meth:`apply_chat_template`.
            add_generation_prompt: As :meth:`apply_chat_template`.
            allow_special: ``False`` reads control tokens in tools and in messages other than the
                assistant's as plain text, so that their writers cannot forge turns.
            **variables: As :meth:`apply_chat_template`.

        Raises:
            TokenizerError: As :meth:`apply_chat_template`.
        """
        if allow_special:
            text = self.apply_chat_template(messages, tools, add_generation_prompt, **variables)
            return self.encode(text)
        marked = [
            message if message["role"] == "assistant" else self._mark(message)
            for message in check_messages(messages)
        ]
        text = self.apply_chat_template(
            marked, self._mark(tools), add_generation_prompt, **variables
        )
        ids: list[int] = []
        # Every second piece is a marked token. Templates may have cut a pair of marks apart.
        for i, piece in enumerate(re.split(f"{_MARK}({self._added_pattern}){_MARK_END}", text)):
            ids += self.encode(re.sub(f"[{_MARK}{_MARK_END}]", "", piece), allow_special=not i % 2)
        return ids

    def _mark(self, value: Any) -> Any:
        """Return a JSON value with marks around the control tokens in its strings."""
        if isinstance(value, str):
            value = re.sub(f"[{_MARK}{_MARK_END}]", "", value)
            return re.sub(f"({self._added_pattern})", rf"{_MARK}\1{_MARK_END}", value)
        if isinstance(value, Mapping):
            return {key: self._mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._mark(item) for item in value]
        return value

"""Text to token ids and back: tokenizer.json, and the chat template beside it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infinicore_infer.text.chat_template import (
    ChatTemplates,
    Message,
    TokenizerError,
    check_messages,
    render,
    render_open,
    require_regular,
)
from infinicore_infer.text.listed_tokens import QWEN_CLASSES, ListedTokens, read_object
from infinicore_infer.text.traced import ANSWER, QUESTION, marks_of, strings, trace

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


_LOG = logging.getLogger("infinicore_infer.text")

# Texts have fewer bytes per token than this, as a rule (English 4 or 5); those are encoded at once.
_USUAL_BYTES = 8
# Characters in which forged tokens are looked for at first; above all margins.
_WINDOW = 512
# Characters that are encoded at a time to see how many tokens a longer one has.
_PIECE = 1 << 15


@cache
def _byte_of_char() -> dict[str, int]:
    """Return GPT-2's table from printable characters back to bytes, which byte-level BPE uses."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return table


class Qwen3Tokenizer:
    """A checkpoint's tokenizer and chat templates.

    Attributes:
        templates: The chat templates, by name.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Load tokenizer.json and, where present, tokenizer_config.json and chat_template.jinja.

        Raises:
            FileNotFoundError: There is no tokenizer.json.
            TokenizerError: A file is damaged, or the tokenizer is not byte-level BPE.
        """
        path = Path(folder) / "tokenizer.json"
        require_regular(path)
        if not path.exists():
            raise FileNotFoundError(f"{folder}: no tokenizer.json in this folder")
        try:
            definition = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{path}: not a tokenizer: {error}") from error
        self._parse(definition, path)
        config = read_object(Path(folder) / "tokenizer_config.json")
        self._settle(config, Path(folder))

    @classmethod
    def from_definition(
        cls, definition: str, config: dict[str, Any], source: Path
    ) -> Qwen3Tokenizer:
        """Return a tokenizer of what its files would say.

        Args:
            definition: Contents of tokenizer.json.
            config: Contents of tokenizer_config.json.
            source: Where they are from, for messages.

        Raises:
            TokenizerError: As for files.
        """
        tokenizer = cls.__new__(cls)
        tokenizer._parse(definition, source)
        tokenizer._settle(config, None)
        return tokenizer

    def _parse(self, definition: str, source: Path) -> None:
        # Imported here, so that it loads while weights are being packed.
        from tokenizers import Tokenizer, decoders

        try:
            self._tokenizer = Tokenizer.from_str(definition)
        except Exception as error:  # the package raises bare Exception
            raise TokenizerError(f"{source}: not a tokenizer: {error}") from error
        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            raise TokenizerError(f"{source}: not a byte-level BPE tokenizer, which Qwen3 has")
        # A stored padding or truncation setting would silently change prompts.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def _settle(self, config: dict[str, Any], folder: Path | None) -> None:
        """Take what tokenizer_config.json, and other files beside it, add."""
        self._config = config
        self._obey_settings()
        self._listed = ListedTokens(folder, config)
        self._listed.add_to(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in added.items() if token.special)
        self._added = {token.content: token.special for token in added.values()}
        self._bytes: dict[int, bytes] = {}
        self.templates = ChatTemplates(folder, self._config)

    def _obey_settings(self) -> None:
        """Obey settings of tokenizer_config.json that transformers puts above tokenizer.json."""
        from tokenizers import pre_tokenizers

        if self._config.get("split_special_tokens") is True:
            _LOG.warning(
                "tokenizer_config.json: 'split_special_tokens' is true: control tokens in prompts, "
                "those of the chat template too, are read as plain text"
            )
            self._tokenizer.encode_special_tokens = True
        if self._config.get("tokenizer_class") in QWEN_CLASSES:
            whole: Any = self._tokenizer.pre_tokenizer
            parts: Any = whole if isinstance(whole, pre_tokenizers.Sequence) else [whole]
            for part in parts:
                if isinstance(part, pre_tokenizers.ByteLevel):
                    part.add_prefix_space = self._config.get("add_prefix_space") is True

    def definition(self) -> str:
        """Return the tokenizer as the contents of a tokenizer.json."""
        return str(self._tokenizer.to_str())

    def config(self) -> dict[str, Any]:
        """Return the contents of a tokenizer_config.json, without what the definition has."""
        rest = {k: v for k, v in self._config.items() if k != "added_tokens_decoder"}
        return {"tokenizer_class": "Qwen2Tokenizer", **rest}

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids the tokenizer knows; the model's vocabulary may be padded beyond.

        Takes a copy of the whole vocabulary, 0.2 s for Qwen3's, so loading does without.
        """
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @cached_property
    def _longest_token(self) -> int:
        """Bytes of the longest token; takes a copy of the whole vocabulary, as vocab_size does."""
        names = self._tokenizer.get_vocab(with_added_tokens=True)
        return max(len(name.encode()) if name in self._added else len(name) for name in names)

    def may_fit(self, text: str, tokens: int) -> bool:
        """Return whether a text may take at most so many tokens, far sooner than encoding would.

        A text of many bytes per token is encoded piece by piece until it is clear that it does not
        fit; cuts add some tokens, which the margin allows for.
        """
        data = text.encode("utf-8", "replace")
        size = len(data)
        if size <= _USUAL_BYTES * tokens:
            return True
        # Composing characters (NFC) makes a text at most three times shorter before it is encoded.
        if size > 3 * tokens * self._longest_token:
            return False
        text, count, most = data.decode(), 0, tokens + tokens // 4 + 1000
        for start in range(0, len(text), _PIECE):
            count += len(self._encode(self._tokenizer, text[start : start + _PIECE]).ids)
            if count > most:
                return False
        return True

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
        return list(self._encode(self._tokenizer if allow_special else self._plain, text).ids)

    def encode_processed(
        self, texts: Sequence[str], add_special: bool = True
    ) -> list[tuple[list[int], tuple[int, int]]]:
        """Return the token ids of texts as transformers' tokenizer does when it is called.

        Args:
            texts: Any texts; control tokens in them are recognised.
            add_special: Whether the tokens of the post-processor are added, such as the end of text
                of embedding models.

        Returns:
            The ids of each, and how many of them the post-processor added at the beginning and at
            the end.

        Raises:
            TokenizerError: A text is not valid Unicode, as misread bytes are not.
        """
        for i, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise TokenizerError(f"text {i} is not valid Unicode: {error}") from error
        first, last = self._added_around if add_special else (0, 0)
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=add_special)
        return [(list(encoding.ids), (first, last)) for encoding in found]

    def shortened(self, text: str, limit: int) -> str:
        """Return as much of the beginning of a text as so many tokens are."""
        encoding = self._encode(self._plain, text)
        if len(encoding.ids) <= limit:
            return text
        return text[: encoding.offsets[limit][0]]

    @cached_property
    def _added_around(self) -> tuple[int, int]:
        """How many tokens the post-processor adds before a text, and after it."""
        plain = self._encode(self._tokenizer, "a").ids
        whole = self._tokenizer.encode_batch(["a"], add_special_tokens=True)[0].ids
        first = next(
            (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), len(whole)
        )
        return first, len(whole) - first - len(plain)

    @property
    def adds_tokens(self) -> bool:
        """Whether the post-processor adds tokens to a text."""
        return any(self._added_around)

    @staticmethod
    def _encode(tokenizer: Tokenizer, text: str) -> Encoding:
        # encode() would hold the interpreter's lock, seconds for a text of megabytes.
        return tokenizer.encode_batch([text], add_special_tokens=False)[0]

    @cached_property
    def _plain(self) -> Tokenizer:
        """The same tokenizer without added tokens, special or not."""
        from tokenizers import Tokenizer

        plain = Tokenizer(self._tokenizer.model)
        for part in ("normalizer", "pre_tokenizer"):
            if getattr(self._tokenizer, part) is not None:
                setattr(plain, part, getattr(self._tokenizer, part))
        return plain

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

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
        ending: tuple[bool, bool],
    ) -> str:
        """Render checked messages.

        Args:
            messages: As :func:`check_messages` returns them.
            tools: As :meth:`apply_chat_template`.
            variables: As :meth:`apply_chat_template`.
            ending: Whether the text ends where an answer begins, and whether in the last message.
        """
        begins, goes_on = ending
        seen = {
            **self._listed.names,
            "tools": None if tools is None else list(tools),
            "documents": None,
            "add_generation_prompt": begins and not goes_on,
            **self.templates.defaults,
            **variables,
        }
        return (render_open if goes_on else render)(self.templates.choose(tools), messages, seen)

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render messages with the checkpoint's chat template, as transformers does.

        Args:
            messages: ``{"role": ..., "content": ...}`` each, the oldest first.
            tools: JSON schemas of functions the model may call.
            add_generation_prompt: Whether the text ends where an answer begins.
            continue_final_message: Whether the text ends within the last message instead, which the
                model then goes on with; without content it ends within its ``reasoning_content``.
            variables: Further template variables, such as ``{"enable_thinking": False}``.

        Returns:
            The prompt as text.

        Raises:
            TokenizerError: The checkpoint has no template, a message is malformed, or the template
                refuses the messages.
        """
        ending = (add_generation_prompt, continue_final_message)
        checked = check_messages(messages, continue_final_message)
        return self._render(checked, tools, variables or {}, ending)

    @cached_property
    def ends_with_message(self) -> bool:
        """Whether the chat template ends with the last message, and with nothing of its own."""
        probe = "0probe0"
        messages = [{"role": "user", "content": "0"}, {"role": "assistant", "content": probe}]
        try:
            text = self.apply_chat_template(messages, add_generation_prompt=False)
        except TokenizerError:
            return True
        return not self._control.sub("", text.rpartition(probe)[2]).strip()

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        allow_special: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids of a rendered conversation.

        Args:
            messages: As :meth:`apply_chat_template`.
            tools: As :meth:`apply_chat_template`.
            add_generation_prompt: As :meth:`apply_chat_template`.
            allow_special: ``False`` reads control tokens in messages and tools as plain text, so
                that their writers cannot forge turns; and except in the assistant's messages also
                the tags that the template itself writes (``<tool_response>``, ``<think>``, ...).
            continue_final_message: As :meth:`apply_chat_template`.
            variables: As :meth:`apply_chat_template`.

        Raises:
            TokenizerError: As :meth:`apply_chat_template`.
        """
        checked, ending = (
            check_messages(messages, continue_final_message),
            (add_generation_prompt, continue_final_message),
        )
        given = variables or {}
        if allow_special or not any(map(self._may_forge.search, strings([checked, tools, given]))):
            return self.encode(self._render(checked, tools, given, ending))
        own = [
            trace(message, ANSWER if message["role"] == "assistant" else QUESTION)
            for message in checked
        ]
        text = self._render(own, trace(tools), trace(given), ending)
        # The same conversation without control tokens: those in it now are the template's own.
        messages, tools, given = self._without_control([checked, tools, given])
        bare = self._render(messages, tools, given, ending)
        split = self._tokenizer.encode_special_tokens
        return self._encode_traced(text, 0 if split else len(self._control.findall(bare)))

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Matches a control token, the longest first: one may begin another."""
        names = sorted((name for name, special in self._added.items() if special), key=len)
        return re.compile("|".join(map(re.escape, reversed(names))) or "(?!)")

    @cached_property
    def _may_forge(self) -> re.Pattern[str]:
        """Matches text with an added token, or whose end may become one with what follows."""
        names = self._added.keys()
        beginnings = {name[:n] for name in names for n in range(1, len(name))}
        ends = "|".join(map(re.escape, sorted(beginnings, key=len, reverse=True)))
        return re.compile("|".join([*map(re.escape, names), f"(?:{ends})\\Z" if ends else "(?!)"]))

    def _without_control(self, value: Any) -> Any:
        """Return a JSON value with other text of the same length in place of control tokens."""
        if isinstance(value, str):
            return self._control.sub(lambda found: "x" * len(found[0]), value)
        if isinstance(value, Mapping):
            pairs = value.items()
            return {self._without_control(k): self._without_control(v) for k, v in pairs}
        if isinstance(value, list | tuple):
            return [self._without_control(item) for item in value]
        return value

    def _encode_traced(self, text: str, controls: int) -> list[int]:
        """Encode a traced prompt; what a client forged is read as plain text, each piece by itself.

        Args:
            text: The prompt.
            controls: How many control tokens the template itself wrote.

        Raises:
            TokenizerError: So many cannot be told from what the client wrote.
        """
        marks, template = marks_of(text), self.templates.literals()

        def is_forged(name: str, start: int, end: int) -> bool:
            # Words that somebody added to the vocabulary are words in any text.
            tag = name in template and not name.isspace()
            wrote = marks[start:end]
            return (self._added[name] and any(wrote)) or (tag and QUESTION in wrote)

        margin = 64 + max(map(len, self._added), default=0)
        ids: list[int] = []
        spans = [(0, len(text))]
        while spans:
            first, last = spans.pop()
            # What is forged is looked for in windows that grow: to encode the whole rest again for
            # each of many forged tokens would take quadratic time.
            window, forged = _WINDOW, None
            while True:
                until = min(last, first + window)
                piece = self._encode(self._tokenizer, text[first:until])
                found = [
                    (name, first + start, first + end)
                    for token, (start, end) in zip(piece.ids, piece.offsets, strict=True)
                    if (name := self._tokenizer.id_to_token(token)) in self._added
                ]
                # Near a window's end, what follows may make another token of it.
                sure = last if until == last else until - margin
                forged = next((s for s in found if s[2] <= sure and is_forged(*s)), None)
                if forged is not None or until == last:
                    break
                window *= 2
            if forged is None:
                ids += piece.ids
                controls -= sum(self._added[name] for name, _, _ in found)
                continue
            _, start, end = forged
            before = self._encode(self._tokenizer, text[first:start])
            ids += before.ids
            controls -= sum(self.is_special(token) for token in before.ids)
            ids += self._encode(self._plain, text[start:end]).ids
            spans.append((end, last))
        if controls:
            raise TokenizerError(
                "the messages contain control tokens, and the chat template changes them in ways "
                "that cannot be followed: send the messages without them"
            )
        return ids

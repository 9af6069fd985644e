"""Conversations and a checkpoint's chat templates: which there are, and which serves a request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from traceback import extract_tb
from typing import Any

from infinicore_infer.errors import FieldError
from infinicore_infer.text.time_limit import TimeLimit, TimeLimitError

Message = Mapping[str, Any]

# Templates come with downloaded files: one that never ends must not hold a server up. Rendering the
# longest conversations takes a small part of this.
_RENDER_SECONDS = 10.0

_ROLES = ("system", "developer", "user", "assistant", "tool")


class TokenizerError(ValueError):
    """Tokenizer files are missing or damaged, or messages do not fit the chat template."""


def require_regular(path: Path) -> None:
    """Refuse pipes, devices and folders; reading a pipe would wait for whoever writes it.

    Raises:
        TokenizerError: It is there, and no regular file.
    """
    if path.exists() and not path.is_file():
        raise TokenizerError(f"{path}: is not a regular file")


class MessageError(FieldError, TokenizerError):
    """A message of a conversation is malformed; ``field`` has its index."""


def check_messages(messages: Sequence[Message], goes_on: bool = False) -> list[dict[str, Any]]:
    """Check a conversation and return it ready for a template.

    Keys whose value is ``None`` are dropped, the role ``developer`` becomes ``system``,
    ``reasoning`` becomes ``reasoning_content``, content given as a list of text parts becomes
    one string, and arguments of calls given as JSON become an object.

    Args:
        messages: The conversation.
        goes_on: Whether the last message goes on. If it is an assistant's that has thought and said
            nothing, its thinking goes on, and it is returned without content.

    Raises:
        MessageError: Something is missing or of a wrong type; the error names the index.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise MessageError("messages", "must be a list of at least one message", joint=" ")
    result = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise MessageError(where, f"must be an object, got {type(message).__name__}", joint=" ")
        clean = {key: value for key, value in message.items() if value is not None}
        role = clean.get("role")
        if role not in _ROLES:
            raise MessageError(where, f"role is {role!r}; known roles: {', '.join(_ROLES)}")
        thought = role == "assistant" and (clean.get("reasoning_content") or clean.get("reasoning"))
        if "content" in clean:
            clean["content"] = _content_text(where, clean["content"])
        elif role == "assistant" and clean.get("tool_calls"):
            # What the API clients of tool calls send; templates expect a string.
            clean["content"] = ""
        elif not thought:
            raise MessageError(where, "has no content")
        elif not goes_on or index < len(messages) - 1:
            clean["content"] = ""
        if role == "developer":
            # Its newer name; Qwen3's template would drop the message without a word.
            clean["role"] = "system"
        if "reasoning" in clean:
            clean.setdefault("reasoning_content", clean.pop("reasoning"))
        if not isinstance(clean.get("reasoning_content", ""), str):
            raise MessageError(where, "reasoning_content must be a string")
        calls = clean.get("tool_calls", [])
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise MessageError(where, "tool_calls must be a list of objects")
        for number, call in enumerate(calls):
            # Templates take both forms. Without a name they would fail, or write nonsense.
            function = call.get("function", call)
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise MessageError(where, f"tool_calls[{number}] has no function with a name")
        if calls:
            clean["tool_calls"] = [_with_object(call) for call in calls]
        result.append(clean)
    return result


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call whose arguments are an object, as templates expect; APIs send them as JSON.

    No arguments at all, which clients write as an empty string, are an empty object.
    """
    if "function" in call:
        return {**call, "function": _with_object(call["function"])}
    arguments = call.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return dict(call)
        return {**call, "arguments": arguments if isinstance(value, str) else value}
    return {
        **call,
        "arguments": {} if arguments is None or isinstance(arguments, str) else arguments,
    }


def _content_text(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise MessageError(where, "content must be a string or a list of text parts")
    texts = []
    for number, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise MessageError(where, f"content part {number} is {kind!r}; only text is known")
        if not isinstance(part.get("text"), str):
            raise MessageError(where, f"content part {number} has no text")
        texts.append(part["text"])
    return "".join(texts)


# transformers' own: it stands behind the last message until the prompt is cut there.
_CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplates:
    """The chat templates of a checkpoint, by name.

    Attributes:
        sources: Jinja sources; the ordinary one is ``"default"``. Empty if the checkpoint has none.
        origins: Where each is from, for messages.
        defaults: Variables that templates see where a conversation does not set them.
    """

    def __init__(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        """Read the templates as transformers does: files win over tokenizer_config.json.

        Args:
            folder: Where files may be; ``None``: there are none.
            config: Contents of tokenizer_config.json.

        Raises:
            TokenizerError: An entry has the wrong type.
        """
        self.sources: dict[str, str] = {}
        self.origins: dict[str, str] = {}
        self.defaults: Mapping[str, Any] = {}
        self._problems: dict[str, str | None] = {}
        entry = config.get("chat_template")
        if isinstance(entry, list):
            pairs = [(e.get("name"), e.get("template")) for e in entry if isinstance(e, dict)]
        elif isinstance(entry, dict):
            pairs = list(entry.items())
        else:
            pairs = [] if entry is None else [("default", entry)]
        for name, source in pairs:
            if not isinstance(name, str) or not isinstance(source, str):
                file = (folder or Path()) / "tokenizer_config.json"
                raise TokenizerError(f"{file}: 'chat_template' must be a string")
            self.sources[name] = source
            where = "chat_template" if folder is None else "tokenizer_config.json, chat_template"
            self.origins[name] = where + ("" if name == "default" else f" {name!r}")
        if folder is None:
            return
        files = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        main = folder / "chat_template.jinja"
        if main.exists() or files:
            self.sources = {}
        for path in files:
            self._read(path.stem, path)
        if main.exists():
            self._read("default", main)

    def replace(self, path: Path) -> None:
        """Use a file's template for everything, in place of the checkpoint's.

        Raises:
            TokenizerError: The file is damaged.
            OSError: It cannot be read.
        """
        require_regular(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such file")
        self.sources, self.origins, self._problems = {}, {}, {}
        self._read("default", path)
        if (problem := self.problem("default")) is not None:
            raise TokenizerError(problem)

    def _read(self, name: str, path: Path) -> None:
        """Read a file; one that is damaged is told of when its template is asked for."""
        self.origins[name], self.sources[name] = str(path), ""
        try:
            require_regular(path)
            self.sources[name] = path.read_text("utf-8")
        except TokenizerError as error:
            self._problems[name] = str(error)
        except (OSError, UnicodeDecodeError) as error:
            self._problems[name] = f"{path}: {error}"

    def problem(self, name: str) -> str | None:
        """Return what is wrong with a template, with its file and line; ``None``: nothing is."""
        # Imported where it is used: programs that send no chat need not wait for it.
        from infinicore_infer.text.template_engine import compile_template

        if name not in self._problems:
            self._problems[name] = None
            try:
                compile_template(self.sources[name])
            except Exception as error:  # Jinja's, and those of what it calls while it compiles
                line = getattr(error, "lineno", None)
                where = self.origins[name] + ("" if line is None else f", line {line}")
                self._problems[name] = f"{where}: {_told(error)}"
        return self._problems[name]

    def problems(self) -> dict[str, str]:
        """Return what is wrong with each template that something is wrong with, by name."""
        found = {name: self.problem(name) for name in self.sources}
        return {name: problem for name, problem in found.items() if problem is not None}

    def choose(self, tools: object) -> str:
        """Return the source for a request.

        Raises:
            TokenizerError: The checkpoint has none, or it is damaged.
        """
        name = self._name(tools)
        problem = self.problem(name)
        if problem is not None:
            raise TokenizerError(f"the chat template failed: {problem}")
        return self.sources[name]

    def _name(self, tools: object) -> str:
        if tools is not None and "tool_use" in self.sources:
            return "tool_use"
        if not self.sources:
            raise TokenizerError("this checkpoint has no chat template")
        if "default" not in self.sources:
            names = ", ".join(sorted(self.sources))
            raise TokenizerError(f"this checkpoint has no default chat template, only {names}")
        return "default"

    def literals(self) -> str:
        """Return all sources: what is in none of them no template writes by itself."""
        return "\n".join(self.sources.values())


def render(source: str, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
    """Render a conversation.

    Args:
        source: The template.
        messages: As :func:`check_messages` returns them.
        variables: What else the template can see: ``tools``, ``add_generation_prompt``, ...

    Returns:
        The prompt; a :class:`TracedStr` if something in the messages or variables is.

    Raises:
        TokenizerError: The template is wrong, or it refuses the messages.
    """
    # Imported where it is used: programs that send no chat need not wait for it.
    from infinicore_infer.text.template_engine import compile_template

    try:
        with TimeLimit(_RENDER_SECONDS):
            return compile_template(source)({**variables, "messages": messages})
    except TimeLimitError:
        raise TokenizerError(
            f"the chat template failed: it ran for more than {_RENDER_SECONDS:g} s"
        ) from None
    except Exception as error:  # a template is a program: filters raise whatever they like
        raise TokenizerError(f"the chat template failed: {_told(error)}") from error


def _told(error: Exception) -> str:
    lines = [frame.lineno for frame in extract_tb(error.__traceback__)
             if frame.filename == "<template>"]  # fmt: skip
    where = f"line {lines[-1]}: " if lines else ""
    return where + (str(error) or type(error).__name__)


def render_open(source: str, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
    """Render a conversation whose last message goes on: the prompt ends where its content does.

    Where it has no content, its thinking goes on, which is more than transformers offers.

    Args:
        source: As :func:`render`.
        messages: As :func:`render`.
        variables: As :func:`render`.

    Raises:
        TokenizerError: As :func:`render`, or the template does not show the last message.
    """
    *before, last = messages
    field = "content" if "content" in last else "reasoning_content"
    content = last[field]
    if field not in source:
        # transformers' rule; the template could only come by it without naming it.
        raise TokenizerError(f"the chat template has no {field!r}, so no message can go on")
    # The template sees the mark, so it must be no part of what a client wrote.
    text = render(source, [*before, {"content": "", **last, field: content + _CONTINUE}], variables)
    at = text.rfind(_CONTINUE.strip())
    if at < 0 or content.strip() not in text:
        raise TokenizerError("the chat template does not show the last message, so it cannot go on")
    kept = text[:at]
    return kept if text[at : at + len(_CONTINUE)] == _CONTINUE else kept.rstrip()

"""What begins with a slash: the commands of a chat."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infinicore_infer.chat import session_file
from infinicore_infer.chat import settings as chat_settings
from infinicore_infer.chat.answering import stats_line

if TYPE_CHECKING:
    from infinicore_infer.chat.chat import Chat


class Leave(Exception):  # noqa: N818 - nothing went wrong
    """The person leaves the chat."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command.

    Attributes:
        argument: What may follow its name, for people.
        help: What it does.
        run: Called with the chat and what follows the name; returns a question to be answered, or
            ``None``. Raises ValueError or OSError with a message for the user.
        takes: What kind of word follows, for completion: ``"file"``, ``"setting"``, ``"switch"``.
    """

    argument: str
    help: str
    run: Callable[[Chat, str], str | None]
    takes: str = ""


def _help(chat: Chat, argument: str) -> None:
    width = max(len(f"{name} {command.argument}") for name, command in COMMANDS.items())
    lines = [
        f"{f'{name} {command.argument}':<{width}}  {command.help}"
        for name, command in COMMANDS.items()
    ]
    chat.say("\n".join(lines + _KEYS))


_KEYS = [
    "A line that ends in a backslash goes on with the next one, and text between triple quotes may",
    "have any lines; Alt+Enter begins a line. A space before a slash sends it to the model.",
    "Ctrl-C stops an answer, Ctrl-D ends.",
]


def _system(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    if argument:
        conversation.system = None if argument == "-" else argument
    chat.say(f"system message: {conversation.system or 'none'}")


def _thinking(thinking: bool) -> Callable[[Chat, str], str | None]:
    def switch(chat: Chat, argument: str) -> str | None:
        chat.conversation.thinking = thinking
        if not argument:
            chat.say(f"the model {'may think' if thinking else 'answers without thinking'}")
        return argument or None

    return switch


def _set(chat: Chat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    settings = chat.conversation.settings
    if name and not value.strip():
        raise ValueError(f"/set {name} needs a value, or default")
    if name:
        chat_settings.check_name(name)
        if value.strip() == "default":
            settings.pop(name, None)
        else:
            settings[name] = chat_settings.parse(name, value.strip())
    used = chat.model.sampling_params(**chat_settings.inside(settings))
    names = [name] if name else chat_settings.NAMES
    chat.say("\n".join(f"{name} {chat_settings.shown(name, settings, used)}" for name in names))


def _stats(chat: Chat, argument: str) -> None:
    if argument:
        chat.stats = _switch("/stats", argument)
        return
    if chat.last is not None:
        chat.say(stats_line(chat.last))
    held, length = len(chat.cache), chat.model.context_length
    chat.say(
        f"{len(chat.conversation.messages)} messages, {held} of {length} tokens of context "
        f"({held / length:.0%}), {chat.answered} tokens answered since the start"
    )


def _switch(name: str, argument: str) -> bool:
    if argument not in ("on", "off"):
        raise ValueError(f"{name} takes on or off, got {argument!r}")
    return argument == "on"


def _save(chat: Chat, argument: str) -> None:
    if chat.conversation.raw:
        raise ValueError("with --raw there is no conversation to save")
    path = session_file.named(argument)
    session_file.save(path, chat.conversation, chat.model.path.name)
    count = len(chat.conversation.messages)
    chat.say(f"{path}: {count} messages; {session_file.save_cache(path, chat.cache)}")


def _load(chat: Chat, argument: str) -> None:
    if chat.conversation.raw:
        raise ValueError("with --raw there is no conversation to go on with")
    path = session_file.named(argument)
    chat.conversation = session_file.load(path)
    cache, became = session_file.load_cache(path, chat.model)
    if cache is not None:
        chat.cache.close()
        chat.cache = cache
    chat.say(f"{path}: {len(chat.conversation.messages)} messages; {became}")


def _regen(chat: Chat, argument: str) -> str:
    again = chat.conversation.again + 1
    question = chat.conversation.undo()
    chat.conversation.again = again
    return question


def _undo(chat: Chat, argument: str) -> None:
    question = chat.conversation.undo()
    first = question.partition("\n")[0]
    chat.say(f"forgotten: {first if len(first) <= 60 else first[:57] + '...'}")


def _clear(chat: Chat, argument: str) -> None:
    chat.conversation.messages.clear()
    chat.conversation.again = 0


def _exit(chat: Chat, argument: str) -> None:
    raise Leave


COMMANDS = {
    "/help": Command("", "show this", _help),
    "/system": Command("[TEXT]", "show or set the system message; - for none", _system),
    "/think": Command("[TEXT]", "let the model think before it answers", _thinking(True)),
    "/no_think": Command("[TEXT]", "have answers without thinking", _thinking(False)),
    "/set": Command("[NAME VALUE]", "show or change how answers are made", _set, "setting"),
    "/regen": Command("", "answer the last question anew", _regen),
    "/undo": Command("", "forget the last question and its answer", _undo),
    "/clear": Command("", "forget the conversation", _clear),
    "/save": Command("FILE", "keep the conversation, and what is computed of it", _save, "file"),
    "/load": Command("FILE", "go on with a conversation that was saved", _load, "file"),
    "/stats": Command("[on|off]", "show counts and speeds, or after each answer", _stats, "switch"),
    "/exit": Command("", "end the chat", _exit),
}
_WITHOUT_ARGUMENT = [name for name, command in COMMANDS.items() if not command.argument]


def run(chat: Chat, text: str) -> str | None:
    """Do what a text that begins with a slash says; return a question to be answered, if any.

    Raises:
        Leave: The person leaves.
        ValueError: There is no such command, or it cannot be done; the message says why.
        OSError: A file cannot be read or written.
    """
    name, _, argument = text.strip().partition(" ")
    command, argument = COMMANDS.get(name), argument.strip()
    if command is None:
        raise ValueError(f"there is no command {name}; /help lists them")
    if argument and name in _WITHOUT_ARGUMENT:
        raise ValueError(f"{name} takes nothing, got {argument!r}")
    return command.run(chat, argument)


def completions(text: str) -> list[str]:
    """Return what could stand in place of the last word of what is typed so far."""
    if not text.startswith("/"):
        return []
    name, space, argument = text.partition(" ")
    if not space:
        return [
            f"{found} " if COMMANDS[found].argument else found
            for found in COMMANDS
            if found.startswith(name)
        ]
    takes = COMMANDS[name].takes if name in COMMANDS else ""
    if takes == "file" and " " not in argument:
        return _files(argument)
    if takes == "switch":
        return [word for word in ("on", "off") if word.startswith(argument)]
    if takes == "setting" and " " not in argument:
        return [f"{found} " for found in chat_settings.NAMES if found.startswith(argument)]
    if takes == "setting" and "default".startswith(argument.rpartition(" ")[2]):
        return ["default"]
    return []


def _files(text: str) -> list[str]:
    folder, name = os.path.split(text)
    try:
        with os.scandir(os.path.expanduser(folder) or ".") as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError:
        return []
    return [
        os.path.join(folder, entry) + ("/" if is_folder else "")
        for entry, is_folder in found
        if entry.startswith(name) and (name or not entry.startswith("."))
    ]

"""The chat in the terminal."""

from __future__ import annotations

import argparse
import sys

from libinfinicore_infer import Qwen3Error

from infinicore_infer.causal_lm import GenerationResult, Qwen3ForCausalLM
from infinicore_infer.chat import commands
from infinicore_infer.chat.answering import answer, stats_line
from infinicore_infer.chat.conversation import Conversation, opens_thinking
from infinicore_infer.chat.display import open_display
from infinicore_infer.chat.editor import open_editor
from infinicore_infer.chat.history import History, default_path
from infinicore_infer.chat.markdown import DIM, RESET
from infinicore_infer.chat.multiline import question
from infinicore_infer.chat.streams import has_colours, note, write

_GREETING = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends."


class Chat:
    """A conversation with a model, and what its commands change.

    Attributes:
        model: The model.
        conversation: What was said so far.
        cache: Keys and values of its tokens.
        stats: Whether counts and speeds are shown after each answer.
        last: The last answer; ``None``: there was none.
        answered: How many tokens were generated.
    """

    def __init__(
        self, model: Qwen3ForCausalLM, conversation: Conversation, *, stats: bool = False
    ) -> None:
        """Begin, or go on with a conversation."""
        self.model = model
        self.conversation = conversation
        self.cache = model.create_kv_cache()
        self.stats = stats
        self.last: GenerationResult | None = None
        self.answered = 0

    def close(self) -> None:
        """Give the cache's memory back."""
        self.cache.close()

    def say(self, text: str) -> None:
        """Tell the person something that is no answer."""
        dim, reset = (DIM, RESET) if has_colours(sys.stderr) else ("", "")
        note(f"{dim}{text}{reset}")

    def turn(self, text: str) -> None:
        """Do what a line of the person's asks for.

        Raises:
            Leave: To end the chat.
            ValueError: It cannot be done; the message says why. So do the other errors.
        """
        asked: str | None = text
        before = list(self.conversation.messages)
        if text.startswith("/"):
            asked = commands.run(self, text)
        else:
            self.conversation.again = 0
        if asked is not None and asked.strip():
            try:
                self._answer(question(asked))
            except BaseException:
                self.conversation.messages = before  # a question to be answered anew is not lost
                raise

    def _answer(self, asked: str) -> None:
        prompt = self.conversation.prompt(self.model, asked)
        display = open_display(opens_thinking(prompt))
        settings = self.conversation.generation_settings()
        result, _ = answer(self.model, prompt, settings, self.cache, display.push)
        display.finish()
        self.last = result
        self.answered += len(result.tokens)
        if self.stats:
            self.say(stats_line(result))
        if not self.conversation.raw:
            self.conversation.add(prompt, asked, result.text)


def run_chat(model: Qwen3ForCausalLM, conversation: Conversation, args: argparse.Namespace) -> None:
    """Chat in the terminal until /exit or the end of input."""
    history = History(None if args.no_history else default_path())
    editor = open_editor(history, commands.completions)
    chat = Chat(model, conversation, stats=args.stats)
    if not args.quiet:
        chat.say(f"{model.path.name}, context of {model.context_length} tokens. {_GREETING}")
    try:
        while True:
            try:
                chat.turn(editor.read())
            except KeyboardInterrupt:
                # At the prompt, or a moment before or after an answer.
                write("\n")
            except EOFError:
                write("\n")
                return
            except commands.Leave:
                return
            except BrokenPipeError:
                raise
            except (ValueError, OSError, MemoryError, NotImplementedError, Qwen3Error) as error:
                # Such as a conversation that has outgrown the context: the chat can go on.
                note(f"error: {error}")
    finally:
        chat.close()

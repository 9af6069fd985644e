"""What a chat consists of: messages, a system message, and how answers are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.chat import settings as chat_settings
from infinicore_infer.text.output import Content, OutputParser


def opens_thinking(prompt: str) -> bool:
    """Return whether an answer to this prompt begins amid thinking."""
    return prompt.rstrip().endswith("<think>")


def history_text(prompt: str, text: str) -> str:
    """Return an answer as it belongs in the history: without its thinking, ended or cut off."""
    parser = OutputParser(thinking=opens_thinking(prompt))
    parts = [*parser.push(text), *parser.finish()]
    return "".join(part.text for part in parts if isinstance(part, Content))


@dataclass(slots=True)
class Conversation:
    """A conversation, to be continued.

    Attributes:
        system: The system message; ``None``: there is none.
        thinking: Whether the model may think before it answers.
        raw: Whether each text is continued by itself, without the chat template.
        settings: Settings of answers by the user's names; those not in it are the checkpoint's.
        messages: Questions and answers in turn, each ``{"role": ..., "content": ...}``.
        again: How often the last question was answered anew.
    """

    system: str | None = None
    thinking: bool = True
    raw: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    again: int = 0

    def prompt(self, model: Qwen3ForCausalLM, question: str) -> str:
        """Return the text that the model is to continue to answer a question.

        Raises:
            TokenizerError: There is no chat template, or the messages do not fit it.
        """
        if self.raw:
            return question
        system = [{"role": "system", "content": self.system}] if self.system else []
        asked = {"role": "user", "content": question}
        return model.chat_prompt([*system, *self.messages, asked], enable_thinking=self.thinking)

    def generation_settings(self) -> dict[str, Any]:
        """Return the settings of the next answer by the names that generations take."""
        values = chat_settings.inside(self.settings)
        if self.again and values.get("seed") is not None:
            # The same draws would only give the same answer again.
            values["seed"] = (values["seed"] + self.again) % 2**64
        return values

    def add(self, prompt: str, question: str, text: str) -> None:
        """Keep a question and the text that answered its prompt."""
        self.messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": history_text(prompt, text)},
        ]

    def undo(self) -> str:
        """Forget the last question with its answer; return the question.

        Raises:
            ValueError: There is none.
        """
        at = next(
            (
                i
                for i in range(len(self.messages) - 1, -1, -1)
                if self.messages[i]["role"] == "user"
            ),
            None,
        )
        if at is None:
            raise ValueError("nothing has been asked yet")
        question = self.messages[at]["content"]
        del self.messages[at:]
        self.again = 0
        return question

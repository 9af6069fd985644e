"""Fields of requests about conversations that all protocols share: tools, thinking, the ending."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from infinicore_infer.errors import FieldError
from infinicore_infer.server.chat_request import Thinking
from infinicore_infer.server.fields import Objects
from infinicore_infer.server.form_fields import FormFields
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.known_fields import UNSERVED_TOOLS

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def _is_on(effort: object, field: str) -> bool | None:
    """Return whether an effort asks for thinking; how much of it, the model knows nothing of.

    Raises:
        FieldError: It is not known.
    """
    if effort is not None and effort not in get_args(Effort):
        known = ", ".join(get_args(Effort))
        raise FieldError(field, f"effort must be one of {known}, got {effort!r}")
    return None if effort is None else effort not in ("none", "minimal")


def _switch(value: object, field: str, part: str) -> bool | None:
    """Return a part of a field that must be true, false or null.

    Raises:
        FieldError: It is something else.
    """
    if value is not None and not isinstance(value, bool):
        raise FieldError(field, f"{part} must be true or false, got {value!r}")
    return value


def _tokens(value: object, field: str, part: str) -> int | None:
    """Return a part of a field that must be a number of tokens, or null.

    Raises:
        FieldError: It is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 2**31:
        problem = f"{part} must be a whole number from 0 to {2**31}, got {value!r}"
        raise FieldError(field, problem)
    return value


# -1 is llama-server's for no limit.
Budget = Annotated[int, Field(ge=-1, le=2**31)]
_BUDGETS = ("thinking_budget", "thinking_token_budget", "thinking_budget_tokens",
            "reasoning_budget", "reasoning_budget_tokens")  # fmt: skip


class ChatFields(FormFields):
    """What requests about conversations have besides.

    Clients of all protocols switch thinking off, or limit it, in the ways of many servers, and each
    of them is obeyed in every protocol: those of Anthropic, OpenAI, vLLM, llama-server, Ollama,
    OpenRouter and Alibaba.
    """

    # The type of tools that the model is told of.
    tool_type: ClassVar[str] = "function"

    tools: Objects | None = None
    chat_template_kwargs: JsonObject | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    enable_thinking: bool | None = None
    include_reasoning: bool | None = None
    reasoning: JsonObject | None = None
    reasoning_effort: Effort | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    thinking: bool | JsonObject | None = None
    # Names of the same.
    thinking_budget: Budget | None = None
    thinking_token_budget: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    reasoning_budget: Budget | None = None
    reasoning_budget_tokens: Budget | None = None

    def served_tools(self) -> list[tuple[int, JsonObject]]:
        """Return the tools that are not left out, with their places."""
        return [(i, tool) for i, tool in enumerate(self.tools or ()) if not self._unserved(tool)]

    def _unserved(self, tool: JsonObject) -> bool:
        kind = tool.get("type")
        known = isinstance(kind, str) and kind != self.tool_type
        return known and UNSERVED_TOOLS.fullmatch(str(kind)) is not None

    def left_out(self) -> list[str]:
        """Return the types of tools that are left out; see the base class."""
        left = [f"tools.{tool['type']}" for tool in self.tools or () if self._unserved(tool)]
        return list(dict.fromkeys(left))

    @property
    def leaves_ending(self) -> bool:
        """Whether nothing is said of how the conversation ends."""
        return self.add_generation_prompt is None and self.continue_final_message is None

    def ending(self, messages: Sequence[JsonObject]) -> tuple[bool, bool]:
        """Return whether the last message goes on, and whether an answer begins behind it.

        As in llama-server, one of the assistant goes on where nothing else is said; calls of tools
        cannot.

        Raises:
            FieldError: What is said contradicts itself.
        """
        begins, goes_on = self.add_generation_prompt, self.continue_final_message
        if goes_on and begins:
            problem = "cannot be true together with add_generation_prompt"
            raise FieldError("continue_final_message", problem, joint=" ")
        last = messages[-1] if messages else {}
        if goes_on is None and begins is None:
            goes_on = last.get("role") == "assistant" and not last.get("tool_calls")
        return bool(goes_on), begins is not False and not goes_on

    def _budget(self) -> int | None:
        """Return the thinking budget, whatever it is called.

        Raises:
            FieldError: Two of its names do not say the same.
        """
        given = {name: n for name in _BUDGETS if (n := getattr(self, name)) is not None}
        if len(set(given.values())) > 1:
            first, second = next(
                (a, b) for a, b in itertools.pairwise(given) if given[a] != given[b]
            )
            problem = f"is {given[second]}, but {first}, another name of it, is {given[first]}"
            raise FieldError(second, problem, joint=" ")
        budget = next(iter(given.values()), -1)
        return None if budget == -1 else budget

    def asked_thinking(self) -> Thinking:
        """Return what is asked for; of several fields, what switches it off or limits it more wins.

        Raises:
            FieldError: Naming the field.
        """
        reasoning, kind = self.reasoning or {}, self.thinking
        signs = [
            self.enable_thinking,
            None if self.think is None else self.think is not False,
            _is_on(self.reasoning_effort, "reasoning_effort"),
            _is_on(reasoning.get("effort"), "reasoning"),
            _switch(reasoning.get("enabled"), "reasoning", "enabled"),
            kind if isinstance(kind, bool) else None,
        ]
        budgets = [
            self._budget(),
            _tokens(reasoning.get("max_tokens"), "reasoning", "max_tokens"),
        ]
        hidden = self.include_reasoning is False
        hidden = hidden or bool(_switch(reasoning.get("exclude"), "reasoning", "exclude"))
        if isinstance(kind, dict):
            name = kind.get("type")
            if name not in ("enabled", "disabled", "adaptive", "auto"):
                raise FieldError("thinking.type", f"{name!r} is not known")
            # "auto", some providers say, leaves it to the model.
            signs.append(None if name == "auto" else name != "disabled")
            budgets.append(_tokens(kind.get("budget_tokens"), "thinking", "budget_tokens"))
            if kind.get("display") not in (None, "summarized", "omitted"):
                raise FieldError("thinking.display", f"{kind['display']!r} is not known")
            hidden = hidden or kind.get("display") == "omitted"
        on = False if False in signs else (True if True in signs else None)
        return Thinking(on, min((n for n in budgets if n is not None), default=None), hidden)

"""What a client asks for, in fields that belong to no protocol.

Each protocol makes a :class:`ChatRequest` of its own fields. Errors name the fields that are here
(:class:`FieldError`); what the client calls them is in the protocol's table of names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.errors import FieldError
from infinicore_infer.server.forms import Form
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.sampling import Sampling
from infinicore_infer.server.tokenizing import Truncation, refuse_long, tokenizing
from infinicore_infer.text.tokenizer import Qwen3Tokenizer
from infinicore_infer.text.traced import strings

# Variables of chat templates that are made of other fields.
_TAKEN = ("messages", "tools", "add_generation_prompt", "documents")


def checked_variables(variables: JsonObject | None) -> JsonObject:
    """Return a client's variables for the chat template.

    Raises:
        FieldError: One is not the client's to set, or of a wrong type.
    """
    variables = variables or {}
    for name in _TAKEN:
        if name in variables:
            raise FieldError("template_variables", f"must not contain {name}")
    for name in ("enable_thinking", "thinking"):
        if not isinstance(variables.get(name, True), bool):
            raise FieldError("template_variables", f"{name} must be true or false")
    if "thinking" in variables:
        # The templates of other models call it so.
        return {"enable_thinking": variables["thinking"], **variables}
    return variables


@dataclass(frozen=True, slots=True)
class Thinking:
    """Whether the model shall think before it answers.

    Attributes:
        on: Whether it shall; ``None``: as the chat template says.
        budget: Most tokens of thinking; ``None``: no limit.
        hidden: Whether the client does not want to see it.
    """

    on: bool | None = None
    budget: int | None = None
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: Its name.
        parameters: The JSON schema of its arguments; empty: any object.
        strict: Whether calls must follow it.
        told: What the model is told of it, as chat templates take it.
    """

    name: str
    parameters: JsonObject
    strict: bool
    told: JsonObject


def without_strict(tool: JsonObject) -> JsonObject:
    """Return what the model is told of a tool: not ``strict``, which is for us."""
    function = tool.get("function")
    if not isinstance(function, dict) or "strict" not in function:
        return tool
    return {**tool, "function": {k: v for k, v in function.items() if k != "strict"}}


def function_tool(number: int, tool: JsonObject) -> Tool:
    """Check a tool.

    Args:
        number: Its place among the tools, for errors.
        tool: ``{"type": "function", "function": {...}}``, as chat templates take it.

    Raises:
        FieldError: Something is missing or of a wrong type.
    """
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        problem = f"tool {number} must have type 'function' and a 'function' object"
        raise FieldError("tools", problem)
    name, strict = function.get("name"), function.get("strict") or False
    parameters = function.get("parameters") or {}
    if not isinstance(name, str) or not name:
        raise FieldError("tools", f"tool {number} has no name")
    if not isinstance(parameters, dict):
        raise FieldError("tools", f"tool {number}: parameters must be a JSON schema object")
    if not isinstance(strict, bool):
        raise FieldError("tools", f"tool {number}: strict must be true or false")
    return Tool(name, parameters, strict, without_strict(tool))


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model must call a tool.

    Attributes:
        kind: ``"auto"``: as it likes; ``"none"``: it is told of no tools; ``"required"``: it must
            call one; ``"named"``: it must call this one.
        name: The tool to be called.
    """

    kind: Literal["auto", "none", "required", "named"] = "auto"
    name: str = ""


def tool_choice(choice: str | JsonObject | None) -> ToolChoice:
    """Return what OpenAI's ``tool_choice`` means.

    Raises:
        FieldError: It is not known.
    """
    field = "tool_choice"
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if choice.get("type") != "function" or not isinstance(name, str):
            raise FieldError(field, f"names no tool of this request: {name!r}")
        return ToolChoice("named", name)
    if choice == "none":
        return ToolChoice("none")
    if choice == "required":
        return ToolChoice("required")
    if choice not in (None, "auto"):
        raise FieldError(field, f"{choice!r} is not known")
    return ToolChoice()


@dataclass(slots=True, kw_only=True)
class ChatRequest:
    """A conversation to be answered.

    Attributes:
        messages: As chat templates take them, the oldest first; checked when they are rendered.
        sampling: How the answers are sampled, and what ends them.
        tools: What the model may call.
        tool_choice: Whether it must.
        parallel_calls: Whether an answer may have several calls.
        form: What the text of the answer must be like; ``None``: it is free.
        thinking: Whether the model shall think.
        template_variables: Further variables of the chat template; they win over ``thinking``.
        continued: Whether the last message, the assistant's, goes on; else an answer begins.
        begins: Whether an answer begins; else the prompt ends with the last message.
        implied: Whether nobody said so: then an answer begins also behind the assistant's message
            where the template writes more behind it than its end, as those of guards do.
        truncation: How a prompt that is too long is cut; ``None``: it is not.
        drops: Whether the oldest turns are dropped until the rest and an answer fit the context.
    """

    messages: list[JsonObject]
    sampling: Sampling = field(default_factory=Sampling)
    tools: list[Tool] = field(default_factory=list)
    tool_choice: ToolChoice = ToolChoice()
    parallel_calls: bool = True
    form: Form | None = None
    thinking: Thinking = Thinking()
    template_variables: JsonObject = field(default_factory=dict)
    continued: bool = False
    begins: bool = True
    implied: bool = False
    truncation: Truncation | None = None
    drops: bool = False

    def _settle_ending(self, tokenizer: Qwen3Tokenizer) -> None:
        if self.implied and self.continued and not tokenizer.ends_with_message:
            self.continued, self.begins = False, True

    def offered_tools(self) -> list[Tool]:
        """Return the tools that the model is told of.

        Raises:
            FieldError: The choice among them cannot be obeyed.
        """
        choice = self.tool_choice
        if not self.tools and choice.kind not in ("none", "auto"):
            raise FieldError("tool_choice", "there are no tools")
        if choice.kind == "named" and all(choice.name != tool.name for tool in self.tools):
            raise FieldError("tool_choice", f"names no tool of this request: {choice.name!r}")
        return [] if choice.kind == "none" else self.tools

    def variables(self) -> JsonObject:
        """Return the variables of the chat template.

        Raises:
            FieldError: One is not the client's to set, or of a wrong type.
        """
        variables = checked_variables(self.template_variables)
        if self.thinking.on is None:
            return variables
        return {"enable_thinking": self.thinking.on, **variables}

    def text(self, model: Qwen3ForCausalLM) -> str:
        """Return the conversation as its template writes it.

        Raises:
            FieldError: As :meth:`prompt`.
        """
        self._settle_ending(model.tokenizer)
        tools = [tool.told for tool in self.offered_tools()]
        variables = self.variables()
        with tokenizing("messages"):
            return str(
                model.tokenizer.apply_chat_template(
                    self.messages,
                    tools or None,
                    self.begins,
                    continue_final_message=self.continued,
                    variables=variables,
                )
            )

    def prompt(self, model: Qwen3ForCausalLM, limit: int) -> list[int]:
        """Return the conversation's token ids. Takes a while for long conversations.

        Args:
            model: The model.
            limit: Most tokens that the context holds; more are found out later, but not far more.

        Raises:
            FieldError: A message, a tool or a variable is wrong, or it is far too long.
        """
        self._settle_ending(model.tokenizer)
        cut = self.truncation
        if self.drops:
            return self._newest(model, limit)
        tokens = self._encode(model, self.messages, cut.readable(limit) if cut else limit)
        return cut.cut(tokens, limit) if cut else tokens

    def _encode(self, model: Qwen3ForCausalLM, messages: list[JsonObject], limit: int) -> list[int]:
        tools = [tool.told for tool in self.offered_tools()]
        return encode_chat(
            model.tokenizer,
            messages,
            tools or None,
            self.variables(),
            limit=limit,
            begins=self.begins,
            continued=self.continued,
        )

    def _newest(self, model: Qwen3ForCausalLM, limit: int) -> list[int]:
        """Return the token ids of as many of the newest turns as fit, after the instructions.

        An answer has half of the context at most.
        """
        messages = self.messages
        head = next((i for i, m in enumerate(messages) if m.get("role") != "system"), 0)
        turns = [i for i, m in enumerate(messages) if i > head and m.get("role") == "user"]
        begins = [head, *turns]
        room = limit - min(self.sampling.max_steps or 1, limit // 2)

        def encoded(i: int) -> list[int] | None:
            try:
                tokens = self._encode(model, messages[:head] + messages[begins[i] :], limit)
            except FieldError as error:
                if error.code != "context_length_exceeded" or i == len(turns):
                    raise
                return None
            # Too long or not, the last turn stays.
            return tokens if len(tokens) <= room or i == len(turns) else None

        best = encoded(0)
        if best is not None:
            return best
        low, high = 1, len(turns)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if encoded(middle) is not None else (middle + 1, high)
        best = encoded(low)
        assert best is not None
        return best


def encode_chat(
    tokenizer: Qwen3Tokenizer,
    messages: list[JsonObject],
    tools: list[JsonObject] | None,
    variables: JsonObject,
    *,
    limit: int,
    begins: bool,
    continued: bool,
) -> list[int]:
    """Return a conversation's token ids.

    Args:
        tokenizer: The model's.
        messages: As chat templates take them.
        tools: What the model is told of its tools.
        variables: Of the chat template.
        limit: Most tokens that the context holds.
        begins: Whether an answer begins behind the last message.
        continued: Whether the last message goes on.

    Raises:
        FieldError: Something is wrong, or it is far too long.
    """
    with tokenizing("messages"):
        if not tokenizer.may_fit("".join(strings([messages, tools, variables])), limit):
            # Not all of it need be in the prompt: thinking of earlier answers is not.
            text = tokenizer.apply_chat_template(
                messages, tools, begins, continue_final_message=continued, variables=variables
            )
            refuse_long(tokenizer, text, limit, "messages")
        return tokenizer.encode_chat(
            messages,
            tools,
            begins,
            allow_special=False,
            continue_final_message=continued,
            variables=variables,
        )


def text_of(content: object, kinds: tuple[str, ...], where: str) -> str:
    """Return the text of a string or of a list of blocks.

    Args:
        content: From the client.
        kinds: Block types that have ``text``.
        where: The field's name, for errors.

    Raises:
        FieldError: It is something else, such as an image.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise FieldError(where, "must be a string or a list of blocks")
    return "".join(block_text(block, kinds, f"{where}[{i}]") for i, block in enumerate(content))


def block_text(block: object, kinds: tuple[str, ...], where: str) -> str:
    """Return the text of one block.

    Args:
        block: From the client.
        kinds: Block types that have ``text``, or ``refusal``.
        where: Its name, for errors.

    Raises:
        FieldError: It is something else, such as an image.
    """
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(block, dict) or kind not in kinds:
        raise FieldError(where, f"type {kind!r} is not supported; only text is")
    text = block.get("text", block.get("refusal"))
    if not isinstance(text, str):
        raise FieldError(where, "has no text")
    return text


def earlier_call(identity: object, name: object, arguments: object, where: str) -> JsonObject:
    """Return an earlier call of a tool as chat templates take it.

    Raises:
        FieldError: A part of it is missing.
    """
    if not isinstance(identity, str) or not isinstance(name, str) or not name:
        raise FieldError(where, "a call needs an id and a name")
    function = {"name": name, "arguments": arguments}
    return {"id": identity, "type": "function", "function": function}

"""Fields of OpenAI's requests."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictStr

from infinicore_infer.errors import FieldError
from infinicore_infer.server.chat_fields import ChatFields
from infinicore_infer.server.chat_request import ChatRequest, function_tool, tool_choice
from infinicore_infer.server.fields import Body, Ids, Objects, Once, Strings
from infinicore_infer.server.form_fields import FormFields, response_form
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.known_fields import CHAT, COMPLETIONS
from infinicore_infer.server.sampling import Sampling
from infinicore_infer.server.tokenizing import Truncation

_MAX_CHOICES = 64


class StreamOptions(Body):
    """OpenAI's stream_options."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class CompletionFields(FormFields):
    """What chat and text completions have in common; ``None`` means not given."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=_MAX_CHOICES)] | None = None
    # llama-server's -1: as many as there is room for.
    max_tokens: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    response_format: JsonObject | None = None
    # vLLM's.
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=2**63 - 1)] | None = None
    truncation_side: Literal["left", "right"] | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def with_running_usage(self) -> bool:
        """Whether each event of a stream has the usage so far."""
        options = self.stream_options
        return self.with_usage and bool(options and options.continuous_usage_stats)

    def truncation(self, answer: int | None) -> Truncation | None:
        """Return how a prompt that is too long is cut, if it is.

        Args:
            answer: Most tokens of the answer; ``None``: no limit.
        """
        tokens = self.truncate_prompt_tokens
        if tokens is None:
            return None
        return Truncation(tokens, self.truncation_side or "left", answer)

    def check_rest(self) -> None:
        """Check what spans fields.

        Raises:
            FieldError: Naming the field.
        """
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options", "only allowed when stream is true")
        if self.prompt_logprobs is not None and self.stream:
            problem = "are not available in a stream"
            raise FieldError("prompt_logprobs", problem, joint=" ", code="unsupported_parameter")
        if self.truncate_prompt_tokens == 0:
            raise FieldError("truncate_prompt_tokens", "must be at least 1, or -1", joint=" ")
        if self.truncation_side is not None and self.truncate_prompt_tokens is None:
            raise FieldError("truncation_side", "only allowed with truncate_prompt_tokens")


class ChatBody(ChatFields, CompletionFields):
    """A request to /v1/chat/completions."""

    endpoint = CHAT

    messages: Objects = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tool_choice: str | JsonObject | None = None

    def check_rest(self) -> None:
        """Check what spans fields; see the base class."""
        super().check_rest()
        if self.top_logprobs is not None and not self.logprobs:
            raise FieldError("top_logprobs", "only allowed when logprobs is true")
        for name in ("max_tokens", "max_completion_tokens"):
            if getattr(self, name) == 0:
                raise FieldError(name, "must be at least 1")

    def chat_request(self) -> ChatRequest:
        """Return what the client asks for.

        Raises:
            FieldError: Naming the field.
        """
        self.check_rest()
        given = (self.max_completion_tokens, self.max_tokens)
        limit = min((n for n in given if n is not None and n != -1), default=None)
        continued, begins = self.ending(self.messages)
        return ChatRequest(
            messages=[_with_refusals(message) for message in self.messages],
            sampling=self.sampling(
                max_steps=limit,
                n=self.n,
                prompt_logprobs=self.prompt_logprobs,
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            ),
            tools=[function_tool(i, tool) for i, tool in self.served_tools()],
            tool_choice=tool_choice(self.tool_choice),
            parallel_calls=self.parallel_tool_calls is not False,
            form=self.asked_form(response_form(self.response_format)),
            thinking=self.asked_thinking(),
            template_variables=self.chat_template_kwargs or {},
            continued=continued,
            begins=begins,
            implied=self.leaves_ending,
            truncation=self.truncation(limit),
        )


def _with_refusals(message: JsonObject) -> JsonObject:
    """Return a message with the text of refusals, which OpenAI's own models write, as content."""
    content, refusal = message.get("content"), message.get("refusal")
    if message.get("role") != "assistant":
        return message
    if isinstance(content, list):
        parts = [
            {"type": "text", "text": part.get("refusal")}
            if isinstance(part, dict) and part.get("type") == "refusal"
            else part
            for part in content
        ]
        return {**message, "content": parts}
    if content is None and isinstance(refusal, str):
        return {**message, "content": refusal}
    return message


class CompletionBody(CompletionFields):
    """A request to /v1/completions."""

    endpoint = COMPLETIONS

    prompt: StrictStr | Strings | Ids | Annotated[list[Ids], Once()]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: int | None = None

    def check_rest(self) -> None:
        """Check what spans fields; see the base class."""
        super().check_rest()
        if self.best_of is not None and self.best_of != (self.n or 1):
            problem = "is not supported"
            raise FieldError("best_of", problem, joint=" ", code="unsupported_parameter")
        if self.max_tokens == 0 and not self.echo:
            raise FieldError("max_tokens", "0 only makes sense with echo")
        if self.stream and self.echo and self.logprobs is not None:
            problem = "with logprobs it cannot be streamed"
            raise FieldError("echo", problem, code="unsupported_parameter")

    @property
    def limit(self) -> int:
        """Most tokens of an answer; 0: the prompt alone is wanted."""
        if self.max_tokens == -1:
            return 2**31
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def echoed_logprobs(self) -> int | None:
        """How many likeliest tokens to report with each one that is repeated of the prompt."""
        return self.logprobs if self.echo else None

    def completion_sampling(self) -> Sampling:
        """Return how the texts go on.

        Raises:
            FieldError: Naming the field.
        """
        self.check_rest()
        wanted = [n for n in (self.prompt_logprobs, self.echoed_logprobs) if n is not None]
        return self.sampling(
            max_steps=max(self.limit, 1),
            n=self.n,
            logprobs=self.logprobs,
            prompt_logprobs=max(wanted, default=None),
        )

"""Fields of Ollama's requests for text."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from infinicore_infer.errors import FieldError
from infinicore_infer.server.chat_fields import ChatFields
from infinicore_infer.server.chat_request import ChatRequest, Thinking, function_tool, tool_choice
from infinicore_infer.server.fields import Body, Number, Objects, SamplingFields
from infinicore_infer.server.forms import Form, json_form
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.known_fields import OLLAMA_CHAT, OLLAMA_GENERATE
from infinicore_infer.server.sampling import Sampling

# Those of Options that are whole numbers, which some clients write as 4.0.
_WHOLE = ("num_predict", "num_ctx", "repeat_last_n", "top_k", "seed")


class Options(SamplingFields):
    """Ollama's ``options``: how answers are sampled; ``None`` means not given."""

    # 0 and below: as many as there is room for.
    num_predict: Annotated[int, Field(ge=-2, le=2**31)] | None = None
    num_ctx: Annotated[int, Field(ge=1, le=2**31)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    repeat_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    # 0: penalties see nothing; -1: the whole text.
    repeat_last_n: Annotated[int, Field(ge=-1, le=2**31)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        return {
            key: int(value)
            if key in _WHOLE and isinstance(value, float) and value.is_integer()
            else value
            for key, value in values.items()
        }

    def asked(self, logprobs: int | None) -> Sampling:
        """Return the settings.

        Args:
            logprobs: How many likeliest tokens to report; ``None``: no log-probabilities.

        Raises:
            FieldError: They contradict themselves, or penalties shall see a part of the text.
        """
        if self.repeat_penalty is not None:
            if self.repetition_penalty not in (None, self.repeat_penalty):
                problem = "is not that of repetition_penalty, another name of it"
                raise FieldError("options.repeat_penalty", problem, joint=" ")
        update: dict[str, object] = {"repetition_penalty": self.repeat_penalty}
        if self.repeat_penalty is None:
            update = {}
        if self.seed == -1:
            update["seed"] = None
        penalties = (self.presence_penalty, self.frequency_penalty)
        penalised = any(penalties) or self.repeat_penalty not in (None, 1)
        if self.repeat_last_n == 0:
            update |= {"repetition_penalty": 1.0, "presence_penalty": 0.0}
            update["frequency_penalty"] = 0.0
        elif self.repeat_last_n not in (None, -1) and penalised:
            problem = (
                f"{self.repeat_last_n} is not supported: penalties see the whole text, which is -1"
            )
            raise FieldError("options.repeat_last_n", problem)
        steps = self.num_predict if self.num_predict and self.num_predict > 0 else None
        return self.model_copy(update=update).sampling(max_steps=steps, logprobs=logprobs)


class OllamaFields(ChatFields):
    """What Ollama's requests for text have in common."""

    nested: ClassVar[dict[str, type[Body]]] = {"options": Options}

    stream: bool | None = None
    options: Options | None = None
    # A schema, or "json"; "" is text.
    format: str | JsonObject | None = None
    # Names of num_predict that clients use here, although Ollama does not know them.
    max_tokens: Annotated[int, Field(ge=-2, le=2**31)] | None = None
    max_output_tokens: Annotated[int, Field(ge=-2, le=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def streamed(self) -> bool:
        """Whether the client wants lines, which is what it gets where it says nothing."""
        return self.stream is not False

    def answer_sampling(self) -> Sampling:
        """Return how the answer is sampled; what ``options`` says wins.

        Raises:
            FieldError: Naming the field.
        """
        if self.top_logprobs and not self.logprobs:
            raise FieldError("top_logprobs", "only allowed when logprobs is true")
        outer = self.model_dump(include=set(SamplingFields.model_fields), exclude_none=True)
        limits = (self.max_tokens, self.max_output_tokens)
        limit = min((n for n in limits if n is not None and n > 0), default=None)
        if limit is not None:
            outer["num_predict"] = limit
        inner = {} if self.options is None else self.options.model_dump(exclude_none=True)
        options = Options.model_validate({**outer, **inner})
        return options.asked((self.top_logprobs or 0) if self.logprobs else None)

    def answer_form(self) -> Form | None:
        """Return what the answer must be like; ``None``: it is free.

        Raises:
            FieldError: The format is not known.
        """
        if self.format in (None, ""):
            return self.asked_form()
        if not isinstance(self.format, dict) and self.format != "json":
            problem = f"must be 'json' or a JSON schema, got {self.format!r:.60}"
            raise FieldError("format", problem, joint=" ")
        schema = self.format if isinstance(self.format, dict) else {"type": "object"}
        return self.asked_form(json_form(schema, "format"))

    def conversation(self, messages: list[JsonObject]) -> ChatRequest:
        """Return what the client asks for, of messages as chat templates take them.

        Raises:
            FieldError: Naming the field.
        """
        continued, begins = self.ending(messages)
        return ChatRequest(
            messages=messages,
            sampling=self.answer_sampling(),
            tools=[function_tool(i, tool) for i, tool in self.served_tools()],
            parallel_calls=self.parallel_tool_calls is not False,
            form=self.answer_form(),
            thinking=self.asked_thinking(),
            template_variables=self.chat_template_kwargs or {},
            continued=continued,
            begins=begins,
            implied=self.leaves_ending,
        )


class OllamaChatBody(OllamaFields):
    """A request to /api/chat."""

    endpoint = OLLAMA_CHAT

    # Whether the oldest messages go where there is no room for all; Ollama's default is true.
    truncate: bool | None = None
    # None: the model is only to be loaded.
    messages: Objects | None = None
    # OpenAI's, which some of Ollama's clients send.
    tool_choice: str | JsonObject | None = None

    def chat_request(self) -> ChatRequest:
        """Return what the client asks for.

        Raises:
            FieldError: Naming the field.
        """
        request = self.conversation([_message(message) for message in self.messages or ()])
        request.tool_choice = tool_choice(self.tool_choice)
        request.drops = bool(self.truncate)
        return request


def _message(message: JsonObject) -> JsonObject:
    """Return a message as chat templates take it; whoever renders it checks it."""
    names = {"thinking": "reasoning_content"}
    return {names.get(name, name): value for name, value in message.items() if value is not None}


class GenerateBody(OllamaFields):
    """A request to /api/generate."""

    endpoint = OLLAMA_GENERATE

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None

    def check_rest(self) -> None:
        """Check what spans fields.

        Raises:
            FieldError: Naming the field.
        """
        if self.tools:
            problem = "is not supported by /api/generate: use /api/chat"
            raise FieldError("tools", problem, joint=" ", code="unsupported_parameter")
        if not self.raw:
            return
        for name in ("system", "chat_template_kwargs"):
            if getattr(self, name):
                raise FieldError(name, "is not supported with raw", joint=" ")
        if self.asked_thinking() not in (Thinking(), Thinking(False)):
            raise FieldError("think", "is not supported with raw", joint=" ")

    def chat_request(self) -> ChatRequest:
        """Return what the client asks for.

        Raises:
            FieldError: Naming the field.
        """
        messages: list[JsonObject] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        return self.conversation([*messages, {"role": "user", "content": self.prompt}])

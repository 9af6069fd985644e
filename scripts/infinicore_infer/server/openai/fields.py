"""Requests: their fields, ranges and defaults, and which of other servers' fields are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.generate.repetition import RepetitionDetector
from infinicore_infer.generate.sampling import SamplingParams
from infinicore_infer.server.errors import ApiError

_MAX_CHOICES = 64

# Fields that would change the answer if they were obeyed, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "dry_multiplier": (0, 0.0),
    "dynatemp_range": (0, 0.0),
    "ebnf": (),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "grammar": ("",),
    "include_stop_str_in_output": (False,),
    "json_schema": (),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "lora_name": (),
    "min_new_tokens": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "modalities": (["text"],),
    "n_predict": (-1,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "regex": (),
    "repeat_penalty": (1, 1.0),
    "skip_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": ("",),
    "top_n_sigma": (-1, -1.0),
    "truncate_prompt_tokens": (),
    "typical_p": (1, 1.0),
    "use_beam_search": (False,),
    "web_search_options": (),
    "xtc_probability": (0, 0.0),
}

Number = Annotated[float, Field(allow_inf_nan=False)]


class Body(BaseModel):
    """What all requests share."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    model: str | None = None

    def refuse(self, fields: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse fields that this server does not obey, but for values that ask for nothing.

        Raises:
            ApiError: Naming the field.
        """
        for name, value in (self.model_extra or {}).items():
            if name in fields and value is not None and value not in fields[name]:
                raise ApiError(400, f"{name} is not supported", name, "unsupported_parameter")


class StreamOptions(Body):
    """OpenAI's stream_options."""

    include_usage: bool | None = None


class RepetitionDetection(Body):
    """VLLM's repetition_detection: ends answers that repeat a pattern of tokens; 0 is off."""

    max_pattern_size: Annotated[int, Field(ge=0, le=4096)] = 0
    min_pattern_size: Annotated[int, Field(ge=0)] = 0
    min_count: Annotated[int, Field(ge=0, le=2**31)] = 0

    @model_validator(mode="after")
    def _together(self) -> RepetitionDetection:
        if self.min_pattern_size > self.max_pattern_size:
            raise ValueError("min_pattern_size must not be above max_pattern_size")
        if self.max_pattern_size and self.min_count < 2:
            raise ValueError("min_count must be at least 2")
        return self

    def detector(self) -> RepetitionDetector:
        """Return a detector for one answer; ``max_pattern_size`` must not be 0."""
        shortest = max(self.min_pattern_size, 1)
        return RepetitionDetector(self.max_pattern_size, shortest, self.min_count)


class SamplingBody(Body):
    """What chat and text completions have in common; ``None`` means not given."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=_MAX_CHOICES)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[Number, Field(ge=0, lt=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    ignore_eos: bool | None = None
    repetition_detection: RepetitionDetection | None = None

    @field_validator("stop")
    @classmethod
    def _stop(cls, stop: str | list[str] | None) -> list[str] | None:
        # The empty string, which some clients send, stops nothing.
        stops = [stop] if isinstance(stop, str) else stop
        if stops is not None and len(stops) > 16:
            raise ValueError("at most 16 stop strings")
        return None if stops is None else [text for text in stops if text]

    @field_validator("logit_bias")
    @classmethod
    def _logit_bias(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        if bias and not all(token.isascii() and token.isdigit() for token in bias):
            raise ValueError("the keys must be token ids")
        return bias

    def check_rest(self) -> None:
        """Check what spans fields, and refuse fields that this server does not know how to obey.

        Raises:
            ApiError: Naming the field.
        """
        self.refuse(_REFUSED)
        if self.stream_options is not None and not self.stream:
            message = "stream_options: only allowed when stream is true"
            raise ApiError(400, message, "stream_options")

    @property
    def repetition(self) -> Callable[[], RepetitionDetector] | None:
        """Makes what ends one answer that repeats itself, if it was asked for."""
        options = self.repetition_detection
        return options.detector if options is not None and options.max_pattern_size else None

    def sampling(self, model: Qwen3ForCausalLM, **fixed: Any) -> list[SamplingParams]:
        """Return the settings of every choice.

        Raises:
            ValueError: A value is out of range.
        """
        bias = {int(token): value for token, value in (self.logit_bias or {}).items()}
        for token in bias:
            if token >= model.meta.dvoc:
                raise ApiError(400, f"logit_bias: there is no token {token}", "logit_bias")
        for i, token in enumerate(self.stop_token_ids or ()):
            if not 0 <= token < model.meta.dvoc:
                message = f"stop_token_ids[{i}]: there is no token {token}"
                raise ApiError(400, message, f"stop_token_ids[{i}]")
        base = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": bias or None,
            "stop": tuple(self.stop or ()),
            "ignore_eos": self.ignore_eos,
            **fixed,
        }
        settings = []
        for i in range(self.n or 1):
            seed = None if self.seed is None else (self.seed + i) % 2**64
            settings.append(model.sampling_params(**base, seed=seed))
        return settings


class ChatBody(SamplingBody):
    """A request to /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    # vLLM calls it thinking_token_budget.
    thinking_budget: Annotated[int, Field(ge=0, le=2**31)] | None = Field(
        None, validation_alias=AliasChoices("thinking_budget", "thinking_token_budget")
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    @field_validator("tools")
    @classmethod
    def _tools(cls, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for i, tool in enumerate(tools or ()):
            function = tool.get("function")
            if tool.get("type") != "function" or not isinstance(function, dict):
                raise ValueError(f"tool {i} must have type 'function' and a 'function' object")
            if not isinstance(function.get("name"), str) or not function["name"]:
                raise ValueError(f"tool {i} has no name")
            if not isinstance(function.get("parameters") or {}, dict):
                raise ValueError(f"tool {i}: parameters must be a JSON schema object")
            if not isinstance(function.get("strict") or False, bool):
                raise ValueError(f"tool {i}: strict must be true or false")
        return tools

    def check_rest(self) -> None:
        """Check what spans fields; see the base class."""
        super().check_rest()
        if self.top_logprobs is not None and not self.logprobs:
            message = "top_logprobs: only allowed when logprobs is true"
            raise ApiError(400, message, "top_logprobs")
        if self.max_tokens == 0:
            raise ApiError(400, "max_tokens: must be at least 1", "max_tokens")
        for name in ("messages", "tools", "add_generation_prompt", "documents"):
            if name in (self.chat_template_kwargs or {}):
                message = f"chat_template_kwargs: must not contain {name}"
                raise ApiError(400, message, "chat_template_kwargs")


class CompletionBody(SamplingBody):
    """A request to /v1/completions."""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: int | None = None

    def check_rest(self) -> None:
        """Check what spans fields; see the base class."""
        super().check_rest()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ApiError(400, "best_of is not supported", "best_of", "unsupported_parameter")
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(400, "max_tokens: 0 only makes sense with echo", "max_tokens")
        if self.stream and self.echo and self.logprobs is not None:
            message = "echo: with logprobs it cannot be streamed"
            raise ApiError(400, message, "echo", "unsupported_parameter")


class TokenizeBody(Body):
    """A request to /tokenize: a text (``prompt``, or ``content``) or a conversation."""

    prompt: str | None = None
    content: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """A request to /detokenize."""

    tokens: list[StrictInt]

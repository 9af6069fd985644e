"""Fields of requests that all protocols share, with their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

from infinicore_infer.errors import FieldError
from infinicore_infer.generate.repetition import RepetitionDetector
from infinicore_infer.server.chat_request import Sampling
from infinicore_infer.server.json_values import JsonObject

Number = Annotated[float, Field(allow_inf_nan=False)]
_MAX_STOPS = 16


class Body(BaseModel):
    """What all requests share."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    model: str | None = None

    def refuse(self, fields: Mapping[str, tuple[object, ...]]) -> None:
        """Refuse fields that this server does not obey, but for values that ask for nothing.

        Args:
            fields: Their names, with these values.

        Raises:
            FieldError: There is one.
        """
        for name, value in (self.model_extra or {}).items():
            if name in fields and value is not None and value not in fields[name]:
                problem = "is not supported"
                raise FieldError(name, problem, joint=" ", code="unsupported_parameter")


def checked_stops(stops: list[str]) -> list[str]:
    """Return stop strings without the empty one, which some clients send and which stops nothing.

    Raises:
        ValueError: There are too many.
    """
    if len(stops) > _MAX_STOPS:
        raise ValueError(f"at most {_MAX_STOPS} stop strings")
    return [text for text in stops if text]


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


class SamplingFields(Body):
    """How answers are sampled; ``None`` means not given."""

    stop_token_ids: list[int] | None = None
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

    @field_validator("logit_bias")
    @classmethod
    def _logit_bias(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        if bias and not all(token.isascii() and token.isdigit() for token in bias):
            raise ValueError("the keys must be token ids")
        return bias

    def sampling(
        self,
        *,
        max_steps: int | None,
        stop: list[str] | None,
        n: int | None = None,
        logprobs: int | None = None,
    ) -> Sampling:
        """Return the settings.

        Args:
            max_steps: Most tokens of an answer; ``None``: until the context is full.
            stop: Strings that end an answer; ``None``: none.
            n: How many answers there shall be; ``None``: one.
            logprobs: How many likeliest tokens to report; ``None``: no log-probabilities.
        """
        repetition = self.repetition_detection
        return Sampling(
            n=n or 1,
            max_steps=max_steps,
            logprobs=logprobs,
            temperature=self.temperature,
            top_k=0 if self.top_k == -1 else self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            logit_bias={int(token): value for token, value in (self.logit_bias or {}).items()},
            stop=stop or (),
            stop_token_ids=self.stop_token_ids or (),
            ignore_eos=self.ignore_eos,
            repetition=repetition.detector if repetition and repetition.max_pattern_size else None,
        )


class ChatFields(SamplingFields):
    """What requests about conversations have besides."""

    chat_template_kwargs: JsonObject | None = None
    # vLLM calls it thinking_token_budget.
    thinking_budget: Annotated[int, Field(ge=0, le=2**31)] | None = Field(
        None, validation_alias=AliasChoices("thinking_budget", "thinking_token_budget")
    )

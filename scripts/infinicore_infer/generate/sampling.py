"""How answers are sampled and when they end: settings, their defaults, and per-request state."""

from __future__ import annotations

import ctypes
import logging
import math
import os
from array import array
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_float, c_uint32
from dataclasses import dataclass, field, replace
from typing import Any

from libinfinicore_infer import Qwen3SamplingParams

from infinicore_infer.errors import FieldError
from infinicore_infer.native.model import sampling_struct

_LOG = logging.getLogger("infinicore_infer")

# Defaults that generation_config.json may set, by our name and theirs.
_CONFIG_KEYS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_steps": "max_new_tokens",
}
# Those of them that mean nothing to transformers without do_sample.
_SAMPLED = ("temperature", "top_k", "top_p", "min_p")
_MAX_WHOLE = 2**32 - 1
# The largest 32-bit float below 1.
_BELOW_ONE = 1 - 2.0**-24


def draw_seed() -> int:
    """Return a random seed; 48 bits, so that every JSON reader keeps all of them."""
    return int.from_bytes(os.urandom(6), "little")


def _single(value: float) -> float:
    """Return what the library will see of a number: a 32-bit float."""
    return c_float(value).value


def _shown(value: object) -> str:
    """Return a value for a message, shortened if it is long."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_number(value: object) -> bool:
    """Return whether a value is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    if not _is_number(value):
        raise FieldError(name, f"must be a finite number, got {_shown(value)}", joint=" ")
    single = _single(value)
    if value > high or value < low or (open_low and single == low) or not math.isfinite(single):
        bound = f"above {low}" if open_low else f"at least {low}"
        upper = "" if high == math.inf else f" and at most {high}"
        raise FieldError(name, f"must be {bound}{upper}, got {_shown(value)}", joint=" ")


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Check a whole number.

    Raises:
        ValueError: It is none, or out of range; the message says what it may be.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        problem = f"must be a whole number from {low} to {high}, got {_shown(value)}"
        raise FieldError(name, problem, joint=" ")


def _config_values(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a generation_config.json says, by our names."""
    values: dict[str, Any] = {}
    for ours, theirs in _CONFIG_KEYS.items():
        value = generation_config.get(theirs)
        if value is not None:
            if type(value) is int and ours in ("top_k", "max_steps"):
                value = min(value, _MAX_WHOLE)  # more than all tokens are all tokens
            values[ours] = value
    return values


def _config_error(source: str, error: FieldError) -> ValueError:
    return ValueError(f"{source}: {error.message(repr(_CONFIG_KEYS[error.field]))}")


@dataclass(slots=True)
class SamplingParams:
    """Settings of one generation.

    Attributes:
        temperature: 0 is greedy.
        top_k: Keep the k likeliest tokens; 0 or -1: all; 1: greedy.
        top_p: Keep the likeliest tokens whose probabilities reach this; in [0, 1]; 0: greedy.
        min_p: Drop tokens below this times the likeliest; in [0, 1]; 1: only tokens as likely as
            the likeliest stay.
        repetition_penalty: Above 0; 1 is off; over prompt and answer.
        presence_penalty: In [-2, 2]; over the answer.
        frequency_penalty: In [-2, 2]; over the answer.
        seed: Same seed, prompt and settings: same answer; ``None``: a random one.
        logit_bias: Added to logits by token id; ``-inf`` bans a token.
        allowed_tokens: The only tokens that may be chosen, end tokens included; ``None``: all.
        bad_words: Token sequences that must not come: of each, the last token is not chosen after
            the others.
        min_tokens: How many tokens come before one that ends the answer may be chosen, and before
            stop strings are looked for.
        logprobs: How many likeliest tokens to report per step, 0 to 128; ``None``: none, and no
            log-probabilities either.
        max_steps: Most tokens to generate; ``None`` or -1: until the context is full.
        stop: Strings that end the answer; they are not part of it.
        include_stop: Whether the string or token that ended the answer is part of its text.
        skip_special: Whether control tokens are left out of the text.
        ignore_eos: Go on after end tokens.
        lookup: Most tokens to guess per step from repetitions in prompt and answer, 0 to 64; 0:
            none. Changes the speed, never the tokens. Not together with logprobs.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_tokens: Sequence[int] | None = None
    bad_words: Sequence[Sequence[int]] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    max_steps: int | None = None
    stop: Sequence[str] = ()
    include_stop: bool = False
    skip_special: bool = True
    ignore_eos: bool = False
    lookup: int = 0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ValueError: A value is out of range; the message names it and the range.
        """
        # Other engines write "no limit" so.
        if self.top_k == -1:
            self.top_k = 0
        if self.max_steps == -1:
            self.max_steps = None
        _number("temperature", self.temperature, 0, math.inf)
        check_whole("top_k", self.top_k, 0, _MAX_WHOLE)
        _number("top_p", self.top_p, 0, 1)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0, math.inf, open_low=True)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        if self.seed is not None:
            check_whole("seed", self.seed, 0, 2**64 - 1)
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs, 0, 128)
        check_whole("lookup", self.lookup, 0, 64)
        if self.lookup and self.logprobs is not None:
            raise ValueError("lookup reports no log-probabilities: leave out lookup or logprobs")
        if self.max_steps is not None:
            check_whole("max_steps", self.max_steps, 1, _MAX_WHOLE)
        check_whole("min_tokens", self.min_tokens, 0, _MAX_WHOLE)
        if self.max_steps is not None and self.min_tokens > self.max_steps:
            problem = f"is {self.min_tokens}, but an answer has at most {self.max_steps} tokens"
            raise FieldError("min_tokens", problem, joint=" ")
        if self.allowed_tokens is not None and not self.allowed_tokens:
            raise FieldError("allowed_tokens", "must have at least one token", joint=" ")
        if isinstance(self.stop, str):
            self.stop = (self.stop,)
        if any(not isinstance(stop, str) or not stop for stop in self.stop):
            raise FieldError("stop", "must be strings of at least one character", joint=" ")
        for token, bias in self.logit_bias.items():
            # -inf bans a token; NaN and +inf mean nothing.
            if not isinstance(token, int) or not (_is_number(bias) or bias == -math.inf):
                problem = f"of token {_shown(token)} is {_shown(bias)}"
                raise FieldError("logit_bias", problem, joint=" ")

    @classmethod
    def from_config(
        cls,
        generation_config: Mapping[str, Any],
        source: str = "generation_config.json",
        /,
        **overrides: Any,
    ) -> SamplingParams:
        """Return the checkpoint's recommended settings with the caller's on top.

        Args:
            generation_config: Contents of generation_config.json. Without ``do_sample: true`` the
                default is greedy, and as in transformers, its settings of sampling mean nothing;
                asking for top_k, top_p or min_p then turns sampling on.
            source: The file, for messages.
            **overrides: Fields by name; ``None`` means not given.

        Raises:
            ValueError: A value is out of range; where it is the file's, the message names it.
            TypeError: There is no such field.
        """
        given = {key: value for key, value in overrides.items() if value is not None}
        values = _config_values(generation_config)
        sampled = bool(generation_config.get("do_sample"))
        if sampled or any(key in given for key in ("top_k", "top_p", "min_p")):
            values.setdefault("temperature", 1.0)
        else:
            values["temperature"] = 0.0
            if "temperature" not in given:
                values = {key: value for key, value in values.items() if key not in _SAMPLED}
        try:
            return cls(**{**values, **given})
        except FieldError as error:
            if error.field in given or error.field not in values:
                raise
            raise _config_error(source, error) from None

    @classmethod
    def check_config(cls, generation_config: Mapping[str, Any], source: str) -> None:
        """Check what a generation_config.json says, once, when a model is loaded.

        A wrong value that transformers would not look at is logged and nothing more.

        Args:
            generation_config: Its contents.
            source: The file, for messages.

        Raises:
            ValueError: A value is not acceptable; the message names file and key.
        """
        for name, value in _config_values(generation_config).items():
            try:
                cls(**{name: value})
            except FieldError as error:
                if name not in _SAMPLED or generation_config.get("do_sample"):
                    raise _config_error(source, error) from None
                _LOG.warning("%s; ignored without do_sample", _config_error(source, error))

    def numbered(self, i: int) -> SamplingParams:
        """Return the settings of answer i of several: its seed is ``seed + i``, if there is one."""
        seed = None if self.seed is None else (self.seed + i) % 2**64
        return replace(self, seed=seed)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0 or self.top_k == 1 or _single(self.top_p) == 0


class SamplerState:
    """One request's sampling struct and the arrays that it points to."""

    def __init__(self, params: SamplingParams, seed: int, prompt: Sequence[int], dvoc: int) -> None:
        """Fill the struct, and keep the arrays that it points to.

        Raises:
            ValueError: A biased token is not in the vocabulary.
        """
        for token in params.logit_bias:
            if not 0 <= token < dvoc:
                raise ValueError(f"token {token}: ids of this model are from 0 to {dvoc - 1}")
        self._penalised = (
            params.repetition_penalty != 1
            or params.presence_penalty != 0
            or params.frequency_penalty != 0
        )
        self._history = array("I", prompt if self._penalised else ())
        self._generated = 0
        # The library wants a share above 0, and one below 1.
        top_p = _single(params.top_p)
        self._struct = sampling_struct(
            temperature=params.temperature,
            top_k=params.top_k if top_p > 0 else 1,
            top_p=top_p if top_p > 0 else 1.0,
            min_p=min(params.min_p, _BELOW_ONE),
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            seed=seed,
            top_logprobs=params.logprobs or 0,
            no_logprob=int(params.logprobs is None),
        )
        if params.logit_bias:
            n = len(params.logit_bias)
            self._struct.bias_tokens = (c_uint32 * n)(*params.logit_bias.keys())
            self._struct.bias_values = (c_float * n)(*params.logit_bias.values())
            self._struct.nbias = n

    def append(self, token: int) -> None:
        """Record a generated token."""
        if self._penalised:
            self._history.append(token)
            self._generated += 1

    def struct(self) -> Qwen3SamplingParams:
        """Return the struct for the next step; valid until the next append."""
        if self._penalised:
            address, count = self._history.buffer_info()
            self._struct.history = ctypes.cast(address, POINTER(c_uint32))
            self._struct.nhistory = count
            self._struct.ngenerated = self._generated
        return self._struct

"""Reads a Qwen3 model's config.json into the structs that the library takes.

Two forms of config.json exist: published checkpoints state ``rope_theta``, ``rope_scaling`` and
``torch_dtype``; transformers 5 writes ``rope_parameters`` and ``dtype``. Both are read. A value
that is missing is an error and never a guess: a guessed head_dim or rope_theta gives a model that
runs and talks nonsense. What the library does not compute (sliding windows, experts, other rotary
scalings) is refused by name.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libinfinicore_infer import DataType, Qwen3Meta, Qwen3ModelOptions, RopeType

from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.checkpoint.json_files import read_json_object
from infinicore_infer.checkpoint.tensor import FLOATS

# Keys of one rotary configuration that each type understands, besides the type and rope_theta.
_ROPE_KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "yarn": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        }
    ),
    "llama3": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "low_freq_factor",
            "high_freq_factor",
        }
    ),
}

_LOG = logging.getLogger("infinicore_infer.checkpoint")


class ConfigError(ValueError):
    """A model's configuration has a wrong value, or asks for something unsupported."""


class ConfigKeyError(ConfigError, KeyError):
    """A model's configuration lacks a key."""

    def __str__(self) -> str:
        """Return the message; KeyError would quote it."""
        return str(self.args[0])


def _short(value: object) -> str:
    """Return a value for a message; an integer of thousands of digits has no text at all."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Reader:
    """Typed access to one JSON object, with messages that name the file and the key."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def fail(self, key: str, text: str) -> ConfigError:
        return ConfigError(f"{self.source}: {key!r} {text}")

    def get(self, key: str) -> Any:
        """Return a value; null counts as missing."""
        value = self.values.get(key)
        if value is None:
            state = "null" if key in self.values else "missing"
            raise ConfigKeyError(f"{self.source}: key {key!r} is {state}")
        return value

    def size(self, key: str, limit: int = 2**31 - 1) -> int:
        """Return a whole number from 1 to limit."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, f"must be a whole number, got {_short(value)}")
        if not 1 <= value <= limit:
            raise self.fail(key, f"must be from 1 to {limit}, got {_short(value)}")
        return value

    def positive(self, key: str) -> float:
        """Return a finite number above zero."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, f"must be a number, got {_short(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not (math.isfinite(number) and number > 0):
            raise self.fail(key, f"must be above zero and finite, got {_short(value)}")
        return number

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return true or false; without a default the key is required."""
        if default is not None and self.values.get(key) is None:
            return default
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, got {value!r}")
        return value

    def string(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise self.fail(key, f"must be a string, got {value!r}")
        return value


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are scaled; fields as in ``Qwen3ModelOptions``.

    Attributes:
        rope_type: Kind of scaling.
        factor: Stretch of the context; 0 when the type has none.
        original_ctx: Context length before stretching, in tokens; 0 when the type has none.
        attention_factor: YaRN's factor on cosines and sines.
        beta_fast: YaRN, rotations above which a frequency is kept.
        beta_slow: YaRN, rotations below which a frequency is fully stretched.
        no_truncate: YaRN's correction range is not rounded to whole dimensions.
        low_freq_factor: llama3.
        high_freq_factor: llama3.
    """

    rope_type: RopeType = RopeType.DEFAULT
    factor: float = 0.0
    original_ctx: int = 0
    attention_factor: float = 0.0
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    no_truncate: bool = False
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0

    def apply(self, options: Qwen3ModelOptions) -> None:
        """Write the fields into the library's options."""
        options.rope_type = self.rope_type
        options.rope_factor = self.factor
        options.rope_original_ctx = self.original_ctx
        options.rope_attention_factor = self.attention_factor
        options.rope_beta_fast = self.beta_fast
        options.rope_beta_slow = self.beta_slow
        options.rope_no_truncate = int(self.no_truncate)
        options.rope_low_freq_factor = self.low_freq_factor
        options.rope_high_freq_factor = self.high_freq_factor


def _yarn_attention_factor(reader: _Reader, factor: float) -> float:
    """Return the factor on cosines and sines as transformers computes it."""

    def mscale(scale: float, weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(scale) + 1.0 if scale > 1 else 1.0

    if reader.values.get("attention_factor") is not None:
        return reader.positive("attention_factor")
    if reader.values.get("mscale") and reader.values.get("mscale_all_dim"):
        numerator = mscale(factor, reader.positive("mscale"))
        return numerator / mscale(factor, reader.positive("mscale_all_dim"))
    return mscale(factor)


def _read_scaling(reader: _Reader) -> RopeScaling:
    """Read the scaling from ``rope_scaling`` or ``rope_parameters``."""
    values = reader.values
    name = values.get("rope_type", values.get("type"))
    if name is None and set(values) <= {"rope_theta", "rope_type", "type"}:
        name = "default"
    if name is None:
        raise ConfigKeyError(f"{reader.source}: key 'rope_type' is missing")
    if "type" in values and "rope_type" in values and values["type"] != values["rope_type"]:
        raise reader.fail("type", f"is {values['type']!r} but 'rope_type' is {name!r}")
    if not isinstance(name, str) or name not in _ROPE_KEYS:
        known = ", ".join(_ROPE_KEYS)
        raise reader.fail("rope_type", f"is {name!r}, which is not supported (known: {known})")
    if values.get("partial_rotary_factor", 1.0) != 1.0:
        raise reader.fail("partial_rotary_factor", "is not supported unless 1.0")
    known_keys = _ROPE_KEYS[name] | {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    # transformers also stores the untouched context length beside types that do not use it.
    unknown = sorted(set(values) - known_keys - {"original_max_position_embeddings"})
    if unknown:
        raise reader.fail(unknown[0], f"is not a setting of rope_type {name!r}")
    if name == "default":
        return RopeScaling()
    factor = reader.positive("factor")
    if name == "linear":
        return RopeScaling(RopeType.LINEAR, factor)
    original = reader.size("original_max_position_embeddings")
    if name == "yarn":
        # As in transformers, a zero or null beta means the paper's value.
        return RopeScaling(
            RopeType.YARN,
            factor,
            original,
            attention_factor=_yarn_attention_factor(reader, factor),
            beta_fast=reader.positive("beta_fast") if values.get("beta_fast") else 32.0,
            beta_slow=reader.positive("beta_slow") if values.get("beta_slow") else 1.0,
            no_truncate=not reader.flag("truncate", default=True),
        )
    low, high = reader.positive("low_freq_factor"), reader.positive("high_freq_factor")
    if high <= low:
        raise reader.fail("high_freq_factor", f"must be above low_freq_factor {low}, got {high}")
    return RopeScaling(
        RopeType.LLAMA3, factor, original, low_freq_factor=low, high_freq_factor=high
    )


def _read_rope(config: _Reader) -> tuple[float, RopeScaling]:
    """Return rope_theta and the scaling, from either form of config.json."""
    values = config.values
    if values.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise config.fail("partial_rotary_factor", "is not supported unless 1.0")
    found: list[tuple[float, RopeScaling]] = []
    for key in ("rope_parameters", "rope_scaling"):
        section = values.get(key)
        if section is None:
            continue
        if not isinstance(section, dict):
            raise config.fail(key, f"must be an object, got {section!r}")
        nested = next((name for name, value in section.items() if isinstance(value, dict)), None)
        if nested is not None:
            raise config.fail(key, f"per layer type ({nested!r}) is not supported")
        reader = _Reader(section, f"{config.source}: {key!r}")
        scaling = _read_scaling(reader)
        theta = (reader if section.get("rope_theta") is not None else config).positive("rope_theta")
        found.append((theta, scaling))
    if not found:
        return config.positive("rope_theta"), RopeScaling()
    if len(found) == 2 and found[0] != found[1]:
        raise config.fail("rope_parameters", "and 'rope_scaling' contradict each other")
    theta, scaling = found[0]
    if values.get("rope_theta") is not None and config.positive("rope_theta") != theta:
        raise config.fail(
            "rope_theta", f"is {values['rope_theta']} but rope_parameters say {theta}"
        )
    return theta, scaling


def _refuse_unsupported(config: _Reader) -> None:
    values = config.values
    model_type = config.string("model_type")
    if model_type == "qwen3_moe" or values.get("num_experts"):
        raise config.fail(
            "model_type", f"is {model_type!r}: mixture-of-experts models are not supported"
        )
    if model_type != "qwen3":
        raise config.fail("model_type", f"is {model_type!r}; only 'qwen3' is supported")
    if config.string("hidden_act") != "silu":
        raise config.fail("hidden_act", f"is {values['hidden_act']!r}; only 'silu' is supported")
    if config.flag("use_sliding_window", default=False):
        raise config.fail("use_sliding_window", "is true: sliding windows are not supported")
    if not config.flag("is_causal", default=True):
        raise config.fail("is_causal", "is false: attention to later tokens is not supported")
    layer_types = values.get("layer_types")
    if layer_types is not None:
        if not isinstance(layer_types, list):
            raise config.fail("layer_types", f"must be a list, got {layer_types!r}")
        other = [kind for kind in layer_types if kind != "full_attention"]
        if other:
            raise config.fail(
                "layer_types", f"has {other[0]!r}; only 'full_attention' is supported"
            )
        if len(layer_types) != config.size("num_hidden_layers"):
            raise config.fail("layer_types", "must have one entry per layer")


def token_ids(values: Mapping[str, Any], key: str, source: str, dvoc: int) -> list[int] | None:
    """Return a key that holds one token id or a list of them.

    Ids beyond the vocabulary are left out with a warning: a model cannot say them. Fine-tunes that
    cut or copied a vocabulary have such.

    Returns:
        The ids; an empty list for an explicit null, ``None`` when the key is absent.

    Raises:
        ConfigError: A value is not a whole number.
    """
    if key not in values:
        return None
    value = values[key]
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int):
            raise ConfigError(f"{source}: {key!r} has {_short(token)}, which is no token id")
        if not 0 <= token < dvoc:
            _LOG.warning(
                "%s: %r has %s, which is ignored: token ids are from 0 to %d",
                *(source, key, _short(token), dvoc - 1),
            )
    return [token for token in dict.fromkeys(ids) if 0 <= token < dvoc]


def _stored_dtype(source: str) -> DataType:
    """Return the dtype that most weights beside a config.json have; bf16 if there are none."""
    sizes: dict[DataType, int] = {}
    folder = Path(source).parent
    if any(folder.glob("*.safetensors")):
        checkpoint = Checkpoint(folder)
        for weight in checkpoint.values():
            if weight.dtype in FLOATS:
                dtype = FLOATS[weight.dtype]
                sizes[dtype] = sizes.get(dtype, 0) + math.prod(weight.shape)
        checkpoint.close()
    return max(sizes, key=lambda dtype: sizes[dtype], default=DataType.BF16)


class Qwen3MetaFromConfig(Qwen3Meta):
    """The library's ``Qwen3Meta``, filled from a config.json.

    Attributes:
        source: The file, for messages.
        max_position_embeddings: What the config allows before ``max_tokens``, YaRN included.
        tie_word_embeddings: Whether lm_head is the embedding matrix.
        attention_bias: Whether the attention projections have biases.
        rope: The rotary scaling.
        end_tokens: Ids that end an answer: generation_config.json's, else config.json's. Empty if
            the file says null; then ``end_token``, which the library only carries, is 0.
        generation_config: Contents of generation_config.json, or an empty dict.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | str | os.PathLike[str],
        dtype: str | int | DataType | None = None,
        max_tokens: int | None = None,
        *,
        generation_config: Mapping[str, Any] | None = None,
        source: str = "config",
    ) -> None:
        """Read and check a configuration.

        Args:
            config: A config.json, the folder it is in, or its contents.
            dtype: Type of activations where the device computes in it; ``None``: the config's, or
                without one that of most weights beside it.
            max_tokens: A shorter context, in tokens; ``None``: all that the config allows.
            generation_config: Contents of generation_config.json; ``None``: read from beside a
                config that is a file.
            source: Where contents are from, for messages.

        Raises:
            ConfigKeyError: A key is missing (also a KeyError); the message names file and key.
            ConfigError: A value is wrong or unsupported (a ValueError).
            OSError: The file cannot be read.
        """
        if isinstance(config, Mapping):
            values, self.source = config, source
        else:
            path = Path(config)
            path = path / "config.json" if path.is_dir() else path
            values, self.source = read_json_object(path), str(path)
            beside = path.parent / "generation_config.json"
            if generation_config is None and beside.is_file():
                generation_config = read_json_object(beside)
        self.generation_config: dict[str, Any] = dict(generation_config or {})
        reader = _Reader(values, self.source)
        _refuse_unsupported(reader)
        theta, self.rope = _read_rope(reader)
        self.tie_word_embeddings = reader.flag("tie_word_embeddings")
        self.attention_bias = reader.flag("attention_bias", default=False)
        super().__init__(
            dt_logits=self._read_dtype(reader, dtype),
            nlayer=reader.size("num_hidden_layers"),
            d=reader.size("hidden_size"),
            nh=reader.size("num_attention_heads"),
            nkvh=reader.size("num_key_value_heads"),
            dh=reader.size("head_dim"),
            di=reader.size("intermediate_size"),
            dvoc=reader.size("vocab_size"),
            epsilon=reader.positive("rms_norm_eps"),
            theta=theta,
        )
        if self.dh % 2:
            raise reader.fail("head_dim", f"must be even, got {self.dh}")
        if self.nh % self.nkvh:
            raise reader.fail(
                "num_key_value_heads", f"is {self.nkvh}, which does not divide {self.nh} heads"
            )
        self.dctx = self.max_position_embeddings = self._read_context(reader)
        if max_tokens is not None:
            if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
                raise ValueError(
                    f"max_tokens must be a whole number above zero, got {max_tokens!r}"
                )
            if max_tokens > self.dctx:
                raise ValueError(
                    f"max_tokens is {max_tokens}, but {self.source} allows at most {self.dctx}"
                )
            self.dctx = max_tokens
        self.end_tokens = self._read_end_tokens(reader)
        self.end_token = self.end_tokens[0] if self.end_tokens else 0

    @staticmethod
    def _read_dtype(reader: _Reader, dtype: str | int | DataType | None) -> DataType:
        chosen = DataType.parse(dtype)
        if chosen != DataType.DEFAULT:
            return chosen
        key = "dtype" if reader.values.get("dtype") is not None else "torch_dtype"
        if reader.values.get(key) in (None, "auto"):
            return _stored_dtype(reader.source)
        try:
            stored = DataType.parse(reader.string(key))
            if stored.packed:
                raise ValueError(f"{stored.name.lower()} is a format that weights are packed to")
            return stored
        except ConfigError:
            raise
        except ValueError as error:
            raise reader.fail(key, f"is unsupported: {error}") from None

    def _read_context(self, reader: _Reader) -> int:
        context = reader.size("max_position_embeddings")
        if self.rope.rope_type == RopeType.YARN:
            # Published YaRN configs keep the original length here; the factor states the real one.
            context = max(context, int(self.rope.factor * self.rope.original_ctx))
        return context

    def _read_end_tokens(self, reader: _Reader) -> list[int]:
        beside = f"generation_config.json beside {self.source}"
        ids = token_ids(self.generation_config, "eos_token_id", beside, self.dvoc)
        if not ids:
            own = token_ids(reader.values, "eos_token_id", self.source, self.dvoc)
            ids = own if own is not None else ids
        if ids is None:
            raise ConfigKeyError(f"{self.source}: key 'eos_token_id' is missing")
        return ids

    @property
    def parameter_count(self) -> int:
        """How many weights the model has; tied embeddings count once."""
        q, kv = self.nh * self.dh, self.nkvh * self.dh
        attention = 2 * self.d * q + 2 * self.d * kv + 2 * self.dh
        if self.attention_bias:
            attention += q + 2 * kv + self.d
        layer = attention + 3 * self.d * self.di + 2 * self.d
        embeddings = self.dvoc * self.d * (1 if self.tie_word_embeddings else 2)
        return int(embeddings + self.nlayer * layer + self.d)

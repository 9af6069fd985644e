"""Rotary embeddings: what a config.json says of them."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from libinfinicore_infer import Qwen3ModelOptions, RopeType

from infinicore_infer.checkpoint.config_reader import ConfigKeyError, Reader, short

# Keys of one rotary configuration that each type understands, besides the type and rope_theta.
_ROPE_KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
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
# transformers' default, for a config.json that states no theta at all.
_DEFAULT_THETA = 10000.0

_LOG = logging.getLogger("infinicore_infer.checkpoint")


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


def _yarn_attention_factor(reader: Reader, factor: float) -> float:
    """Return the factor on cosines and sines as transformers computes it."""

    def mscale(scale: float, weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(scale) + 1.0 if scale > 1 else 1.0

    if reader.values.get("attention_factor") is not None:
        return reader.positive("attention_factor")
    if reader.values.get("mscale") and reader.values.get("mscale_all_dim"):
        numerator = mscale(factor, reader.positive("mscale"))
        return numerator / mscale(factor, reader.positive("mscale_all_dim"))
    return mscale(factor)


def _original_context(reader: Reader, config: Reader) -> int:
    """Return the context before stretching, from where transformers takes it."""
    for place in (config, reader):
        if place.values.get("original_max_position_embeddings") is not None:
            return place.size("original_max_position_embeddings")
    return config.size("max_position_embeddings")


def _read_scaling(reader: Reader, config: Reader) -> RopeScaling:
    """Read the scaling from ``rope_scaling`` or ``rope_parameters``."""
    values = reader.values
    name = values.get("rope_type", values.get("type"))
    if name is None and set(values) <= {"rope_theta", "rope_type", "type"}:
        name = "default"
    if name is None:
        raise ConfigKeyError(f"{reader.source}: key 'rope_type' is missing")
    if "type" in values and "rope_type" in values and values["type"] != values["rope_type"]:
        raise reader.fail("type", f"is {values['type']!r} but 'rope_type' is {name!r}")
    if name == "longrope":
        raise reader.fail(
            "rope_type",
            "is 'longrope', which is not supported: whether its short or its long factors hold "
            "depends on each request's length, so the keys in a cache would change as it grows",
        )
    if not isinstance(name, str) or name not in _ROPE_KEYS:
        known = ", ".join(_ROPE_KEYS)
        raise reader.fail("rope_type", f"is {name!r}, which is not supported (known: {known})")
    if values.get("partial_rotary_factor", 1.0) != 1.0:
        raise reader.fail("partial_rotary_factor", "is not supported unless 1.0")
    known_keys = _ROPE_KEYS[name] | {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    # transformers also stores the untouched context length beside types that do not use it.
    unknown = sorted(set(values) - known_keys - {"original_max_position_embeddings"})
    if unknown:
        # As in transformers.
        _LOG.warning(
            "%s: not a setting of rope_type %r, ignored: %s",
            *(reader.source, name, ", ".join(map(short, unknown))),
        )
    if name == "default":
        return RopeScaling()
    if name == "yarn" and values.get("factor", 0) is None:
        factor = config.size("max_position_embeddings") / _original_context(reader, config)
    else:
        factor = reader.positive("factor")
    if name == "dynamic":
        # It stretches by the length that a text has beyond max_position_embeddings, where the
        # context ends here.
        _LOG.warning(
            "%s: rope_type 'dynamic' is read as 'default', which it equals up to "
            "'max_position_embeddings', the longest context here",
            reader.source,
        )
        return RopeScaling()
    if name == "linear":
        return RopeScaling(RopeType.LINEAR, factor)
    original = _original_context(reader, config)
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


def read_rope(config: Reader) -> tuple[float, RopeScaling]:
    """Return rope_theta and the scaling, from either form of config.json."""
    values = config.values
    if "rope_theta" not in values:
        config = Reader({**values, "rope_theta": _DEFAULT_THETA}, config.source)
    if values.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise config.fail("partial_rotary_factor", "is not supported unless 1.0")
    found: list[tuple[float, RopeScaling]] = []
    sections: list[dict[str, Any]] = []
    for key in ("rope_parameters", "rope_scaling"):
        section = values.get(key)
        if section is None:
            continue
        if not isinstance(section, dict):
            raise config.fail(key, f"must be an object, got {section!r}")
        nested = next((name for name, value in section.items() if isinstance(value, dict)), None)
        if nested is not None:
            raise config.fail(key, f"per layer type ({nested!r}) is not supported")
        sections.append(section)
        reader = Reader(section, f"{config.source}: {key!r}")
        scaling = _read_scaling(reader, config)
        theta = (reader if section.get("rope_theta") is not None else config).positive("rope_theta")
        found.append((theta, scaling))
    stated = any("rope_theta" in part for part in (values, *sections))
    if not stated:
        _LOG.warning(
            "%s: has no 'rope_theta': taking %g, as transformers does",
            *(config.source, _DEFAULT_THETA),
        )
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

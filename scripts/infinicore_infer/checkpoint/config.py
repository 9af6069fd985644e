"""Reads a Qwen3 model's config.json into the structs that the library takes.

Two forms of config.json exist: published checkpoints state ``rope_theta``, ``rope_scaling`` and
``torch_dtype``; transformers 5 writes ``rope_parameters`` and ``dtype``. Both are read. A value
that is missing is the default of transformers' ``Qwen3Config`` (``Qwen3MoeConfig``), with a
warning; sizes that no default fits must be there. What the library does not compute (windows
shorter than the context, other rotary scalings) is refused by name.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from libinfinicore_infer import DataType, Qwen3Meta, RopeType

from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.checkpoint.config_reader import ConfigError, ConfigKeyError, Reader, short
from infinicore_infer.checkpoint.experts import Experts, moe_config, read_experts
from infinicore_infer.checkpoint.json_files import read_json_object
from infinicore_infer.checkpoint.rope import read_rope
from infinicore_infer.checkpoint.tensor import FLOATS

# transformers' Qwen3Config's, for keys that a config.json lacks.
_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 32,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "eos_token_id": None,
}
_QUIET_DEFAULTS = {"attention_bias": False, "sliding_window": 4096, "max_window_layers": 28}
_SLIDING = "sliding_attention"
_SILU = ("silu", "swish")  # what transformers' ACT2FN calls it

_LOG = logging.getLogger("infinicore_infer.checkpoint")


def _refuse_unsupported(config: Reader) -> None:
    values = config.values
    model_type = config.string("model_type")
    if model_type not in ("qwen3", "qwen3_moe"):
        raise config.fail(
            "model_type", f"is {model_type!r}; only 'qwen3' and 'qwen3_moe' are supported"
        )
    if model_type == "qwen3" and values.get("num_experts"):
        raise config.fail(
            "model_type", "is 'qwen3' although there are experts; of such models it is 'qwen3_moe'"
        )
    if config.string("hidden_act") not in _SILU:
        act = short(values["hidden_act"])
        raise config.fail("hidden_act", f"is {act}; only 'silu' (or 'swish') is supported")
    if values.get("per_layer_config"):
        raise config.fail("per_layer_config", "is set: layers that differ are not supported")
    if not config.flag("is_causal", default=True):
        raise config.fail("is_causal", "is false: attention to later tokens is not supported")
    layer_types = values.get("layer_types")
    if layer_types is not None:
        if not isinstance(layer_types, list):
            raise config.fail("layer_types", f"must be a list, got {layer_types!r}")
        other = [kind for kind in layer_types if kind not in ("full_attention", _SLIDING)]
        if other:
            raise config.fail(
                "layer_types", f"has {short(other[0])}; only 'full_attention' is supported"
            )
        if len(layer_types) != config.size("num_hidden_layers"):
            raise config.fail("layer_types", "must have one entry per layer")


def _refuse_windows(config: Reader, context: int) -> None:
    """Refuse sliding windows, unless each is at least as long as the context."""
    values = config.values
    used = config.flag("use_sliding_window", default=False)
    window = values["sliding_window"] if used else None
    layer_types = values.get("layer_types")
    if layer_types is not None:
        slides = _SLIDING in layer_types
    else:
        first = values["max_window_layers"]
        if isinstance(first, bool) or not isinstance(first, int):
            raise config.fail("max_window_layers", f"must be a whole number, got {short(first)}")
        slides = window is not None and first < config.size("num_hidden_layers")
    if not slides:
        return
    if window is None:
        raise config.fail("layer_types", f"has {_SLIDING!r}, but there is no window")
    size = config.size("sliding_window")
    if size < context:
        raise config.fail(
            "sliding_window",
            f"is {size}, shorter than the context of {context} tokens: sliding windows are not "
            f"supported; with a context of at most {size} (--context, --max-tokens, max_tokens) "
            "there is none",
        )


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
            raise ConfigError(f"{source}: {key!r} has {short(token)}, which is no token id")
        if not 0 <= token < dvoc:
            _LOG.warning(
                "%s: %r has %s, which is ignored: token ids are from 0 to %d",
                *(source, key, short(token), dvoc - 1),
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
        experts: The experts that some layers have in place of one MLP; ``None``: a dense model.
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
            if generation_config is None and beside.exists():
                generation_config = read_json_object(beside)
        self.generation_config: dict[str, Any] = dict(generation_config or {})
        sparse = values.get("model_type") == "qwen3_moe"
        defaults = _DEFAULTS
        if sparse:
            values, more = moe_config(values, self.source)
            defaults = {**_DEFAULTS, **more}
        reader = Reader({**defaults, **_QUIET_DEFAULTS, **values}, self.source)
        assumed = [f"{key!r} ({defaults[key]!r})" for key in defaults if key not in values]
        if assumed:
            _LOG.warning(
                "%s: missing, taking what transformers does: %s", self.source, ", ".join(assumed)
            )
        _refuse_unsupported(reader)
        theta, self.rope = read_rope(reader)
        self.experts: Experts | None = read_experts(reader) if sparse else None
        kv_heads = "num_key_value_heads"
        if reader.values[kv_heads] is None:
            kv_heads = "num_attention_heads"
        self.tie_word_embeddings = reader.flag("tie_word_embeddings")
        self.attention_bias = reader.flag("attention_bias", default=False)
        super().__init__(
            dt_logits=self._read_dtype(reader, dtype),
            nlayer=reader.size("num_hidden_layers"),
            d=reader.size("hidden_size"),
            nh=reader.size("num_attention_heads"),
            nkvh=reader.size(kv_heads),
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
        _refuse_windows(reader, self.dctx)
        self.end_tokens = self._read_end_tokens(reader)
        self.end_token = self.end_tokens[0] if self.end_tokens else 0

    @staticmethod
    def _read_dtype(reader: Reader, dtype: str | int | DataType | None) -> DataType:
        chosen = DataType.parse(dtype)
        if chosen != DataType.DEFAULT:
            return chosen
        key = "dtype" if reader.values.get("dtype") is not None else "torch_dtype"
        if reader.values.get(key) in (None, "auto"):
            return _stored_dtype(reader.source)
        name = reader.string(key)
        try:
            # The library computes in no wider type.
            stored = DataType.parse("float32" if name in ("float64", "double") else name)
            if stored.packed:
                raise ValueError(f"{stored.name.lower()} is a format that weights are packed to")
            return stored
        except ConfigError:
            raise
        except ValueError as error:
            raise reader.fail(key, f"is unsupported: {error}") from None

    def _read_context(self, reader: Reader) -> int:
        context = reader.size("max_position_embeddings")
        if self.rope.rope_type == RopeType.YARN:
            # Published YaRN configs keep the original length here; the factor states the real one.
            context = max(context, int(self.rope.factor * self.rope.original_ctx))
        return context

    def _read_end_tokens(self, reader: Reader) -> list[int]:
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
        embeddings = self.dvoc * self.d * (1 if self.tie_word_embeddings else 2)
        layers = self.nlayer * (attention + 2 * self.d + 3 * self.d * self.di)
        if self.experts is not None:
            count, dm = self.experts.count, self.experts.dm
            layer = 3 * self.d * (count * dm - self.di) + count * self.d
            layers += len(self.experts.layers) * layer
        return int(embeddings + layers + self.d)

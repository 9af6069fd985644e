"""Qwen3 dense forward pass in numpy float64: the readable specification and the test oracle.

The functions take a Hugging Face ``config.json`` as a dict and the checkpoint's tensors as a dict
of arrays under their Hugging Face names. Speed does not matter here, being obviously right does:
one sequence, no KV cache, every intermediate in float64.

Shapes use the letters of the C header: ``d`` hidden size, ``nh`` query heads, ``nkvh`` key/value
heads, ``dh`` head size, ``di`` MLP size, ``dvoc`` vocabulary size, ``ntok`` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Config = Mapping[str, Any]
Tensors = Mapping[str, npt.NDArray[Any]]


def bf16_to_float(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Decodes bfloat16: it is the upper half of a float32.

    Args:
        bits: uint16 of any shape, the stored bfloat16 patterns.

    Returns:
        float32 of the same shape, exact.
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_float64(tensor: npt.NDArray[Any]) -> Array:
    """Widens a stored tensor without loss; uint16 means bfloat16, as numpy has no such dtype."""
    if tensor.dtype == np.uint16:
        tensor = bf16_to_float(tensor)
    return tensor.astype(np.float64)


def round_to(x: Array, dtype: str) -> Array:
    """Rounds to the values of "f64", "f32", "f16" or "bf16", to nearest, ties to even."""
    if dtype == "bf16":
        bits = x.astype(np.float32).view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return bits.view(np.float32).astype(np.float64)
    numpy_dtype = {"f64": np.float64, "f32": np.float32, "f16": np.float16}[dtype]
    return x.astype(numpy_dtype).astype(np.float64)


def rope_frequencies(config: Config) -> tuple[Array, float]:
    """Computes the rotary frequencies, formulas as in transformers' ``modeling_rope_utils``.

    Args:
        config: with ``head_dim`` and either ``rope_parameters`` (transformers 5) or ``rope_theta``
            and ``rope_scaling`` (before).

    Returns:
        Radians per position ``[dh / 2]``, and the factor that multiplies cos and sin.

    Raises:
        NotImplementedError: for a rope type other than default, linear, yarn and llama3.
    """
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(rope.get("rope_theta") or config["rope_theta"])
    kind = rope.get("rope_type") or rope.get("type") or "default"
    dh = int(config["head_dim"])
    frequency = theta ** (-np.arange(0, dh, 2, dtype=np.float64) / dh)
    if kind == "default":
        return frequency, 1.0

    factor = float(rope["factor"])
    if kind == "linear":
        return frequency / factor, 1.0

    original = float(rope["original_max_position_embeddings"])
    if kind == "yarn":
        # Dimensions that turn more than beta_fast times over the original context keep their
        # frequency, those that turn less than beta_slow times are interpolated, a linear ramp joins
        # the two.
        def dimension_of(turns: float) -> float:
            return dh * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low = dimension_of(float(rope.get("beta_fast") or 32))
        high = dimension_of(float(rope.get("beta_slow") or 1))
        if rope.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dh - 1)
        high += 0.001 if low == high else 0.0
        interpolated = np.clip((np.arange(dh // 2) - low) / (high - low), 0, 1)
        scaling = rope.get("attention_factor")
        if scaling is None:
            scaling = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        mixed = frequency * (1 - interpolated) + frequency / factor * interpolated
        return mixed, float(scaling)

    if kind == "llama3":
        # As yarn, but the ramp runs over the number of turns instead of the dimension.
        slow, fast = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        turns = original * frequency / (2 * math.pi)
        kept = np.clip((turns - slow) / (fast - slow), 0, 1)
        return frequency * kept + frequency / factor * (1 - kept), 1.0

    raise NotImplementedError(f"rope type {kind!r}")


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """RMS normalisation of the last axis: ``x / sqrt(mean(x^2) + epsilon) * weight``."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding, NeoX style: dimension ``i`` is paired with ``i + dh / 2``.

    Args:
        x: ``[ntok, heads, dh]``.
        cos: ``[ntok, dh / 2]``.
        sin: ``[ntok, dh / 2]``.

    Returns:
        The rotated ``x``.
    """
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def causal_attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention with grouped key/value heads.

    Args:
        q: ``[ntok, nh, dh]``; head ``h`` reads key/value head ``h // (nh // nkvh)``.
        k: ``[ntok, nkvh, dh]``.
        v: ``[ntok, nkvh, dh]``.

    Returns:
        ``[ntok, nh * dh]``.
    """
    ntok, nh, dh = q.shape
    k, v = (np.repeat(t, nh // t.shape[1], axis=1) for t in (k, v))
    scores = np.einsum("ihc,jhc->hij", q, k) / math.sqrt(dh)
    scores = np.where(np.tri(ntok, dtype=bool), scores, -np.inf)
    mixed: Array = np.einsum("hij,jhc->ihc", softmax(scores), v)
    return mixed.reshape(ntok, nh * dh)


def forward(
    config: Config,
    tensors: Tensors,
    tokens: Sequence[int],
    kv_dtype: str = "f64",
) -> Array:
    """Runs the model over one sequence.

    Args:
        config: the parsed ``config.json``.
        tensors: Hugging Face name -> array; uint16 arrays hold bfloat16 patterns.
        tokens: token ids ``[ntok]``.
        kv_dtype: "f64", "f32", "f16" or "bf16": what keys and values are rounded to, as a KV cache
            of that dtype does.

    Returns:
        Logits ``[ntok, dvoc]``.
    """
    nh, nkvh = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    dh, epsilon = int(config["head_dim"]), float(config["rms_norm_eps"])
    frequency, scaling = rope_frequencies(config)
    angle = np.outer(np.arange(len(tokens)), frequency)
    cos, sin = np.cos(angle) * scaling, np.sin(angle) * scaling

    def weight(name: str) -> Array:
        return to_float64(tensors[f"{name}.weight"])

    def linear(x: Array, name: str) -> Array:
        bias = tensors.get(f"{name}.bias")
        return x @ weight(name).T + (0.0 if bias is None else to_float64(bias))

    x = weight("model.embed_tokens")[np.asarray(tokens)]
    for layer in range(int(config["num_hidden_layers"])):
        name = f"model.layers.{layer}"
        h = rms_norm(x, weight(f"{name}.input_layernorm"), epsilon)
        q: Array = linear(h, f"{name}.self_attn.q_proj").reshape(-1, nh, dh)
        k: Array = linear(h, f"{name}.self_attn.k_proj").reshape(-1, nkvh, dh)
        v: Array = linear(h, f"{name}.self_attn.v_proj").reshape(-1, nkvh, dh)
        q = rotate(rms_norm(q, weight(f"{name}.self_attn.q_norm"), epsilon), cos, sin)
        k = rotate(rms_norm(k, weight(f"{name}.self_attn.k_norm"), epsilon), cos, sin)
        k, v = round_to(k, kv_dtype), round_to(v, kv_dtype)
        x = x + linear(causal_attention(q, k, v), f"{name}.self_attn.o_proj")

        h = rms_norm(x, weight(f"{name}.post_attention_layernorm"), epsilon)
        gate, up = linear(h, f"{name}.mlp.gate_proj"), linear(h, f"{name}.mlp.up_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * up, f"{name}.mlp.down_proj")

    head = "model.embed_tokens" if config.get("tie_word_embeddings") else "lm_head"
    return linear(rms_norm(x, weight("model.norm"), epsilon), head)

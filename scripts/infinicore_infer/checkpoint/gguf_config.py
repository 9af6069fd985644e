"""Turns a GGUF file's metadata into what config.json and generation_config.json would say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infinicore_infer.checkpoint.errors import GgufError
from infinicore_infer.checkpoint.parts import some
from infinicore_infer.checkpoint.tensor import Tensor, Weight, same_values

# Architectures, and what config.json calls them.
_MODEL_TYPES = {"qwen3": "qwen3", "qwen3moe": "qwen3_moe"}
# What changes the computation if it is set to anything but what stands here.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "rope.scale_linear": (1,),
    "rope.scaling.yarn_ext_factor": (1, -1),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "n_deepstack_layers": (0,),
    "nextn_predict_layers": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0,),
    "expert_gating_func": (0, 1),  # softmax
    "leading_dense_block_count": (0,),
}
# Tensors that would change what others mean, by what their names end in.
_FOREIGN = (".scale", ".lora_a", ".lora_b", "rope_freqs.weight")
_EXPERTS = ("_exps.weight", "_inp.weight")
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_CONTROL, _NORMAL_END = 3, ("<|im_end|>", "<|endoftext|>")


class _Metadata:
    """Typed access to metadata; problems are gathered."""

    def __init__(self, values: Mapping[str, Any], arch: str) -> None:
        self.values = values
        self.arch = arch
        self.problems: list[str] = []

    def get(self, key: str, default: Any = None, *, kind: type = int) -> Any:
        """Return a value of the architecture; without a default it must be there."""
        name = f"{self.arch}.{key}"
        value = self.values.get(name)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one value per layer, all the same
        if value is None:
            if default is None:
                self.problems.append(f"{name!r} is missing")
                return kind(1)
            return default
        good = (int, float) if kind is float else kind
        if not isinstance(value, good) or (isinstance(value, bool) and kind is not bool):
            text = f"an array of {value.size}" if isinstance(value, np.ndarray) else repr(value)
            self.problems.append(f"{name!r} is {text[:60]}, not one {kind.__name__}")
            return kind(1)
        return kind(value)


def config_of(metadata: Mapping[str, Any], weights: Mapping[str, Weight]) -> dict[str, Any]:
    """Return a config.json for :class:`.Qwen3MetaFromConfig`.

    Args:
        metadata: The file's.
        weights: Its tensors, whose shapes tell the vocabulary.

    Raises:
        GgufError: It is no Qwen3 model, keys are missing, or something is not supported; one
            message names them all.
    """
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise GgufError(f"is of general.type {kind!r}, not a model")
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in _MODEL_TYPES:
        known = " and ".join(repr(one) for one in _MODEL_TYPES)
        raise GgufError(f"architecture {name!r} is not supported; only {known} are")
    read = _Metadata(metadata, name)
    for key, neutral in _NEUTRAL.items():
        value = metadata.get(f"{name}.{key}", neutral[0])
        if value not in neutral if not isinstance(value, np.ndarray) else value.any():
            read.problems.append(f"'{name}.{key}' is set, which is not supported")
    endings = _FOREIGN if name == "qwen3moe" else _FOREIGN + _EXPERTS
    foreign = [weight for weight in weights if weight.endswith(endings)]
    if foreign:
        read.problems.append(f"tensors that are not supported: {some(foreign)}")
    dh = read.get("attention.key_length")
    for key in ("attention.value_length", "rope.dimension_count"):
        if read.get(key, dh) != dh:
            read.problems.append(f"'{name}.{key}' is not {dh}, the key_length")
    scale = read.get("attention.scale", 0.0, kind=float)
    if scale and not math.isclose(scale, dh**-0.5, rel_tol=1e-4):
        read.problems.append(f"'{name}.attention.scale' is {scale}, not 1 / sqrt({dh})")
    config = {
        "model_type": _MODEL_TYPES[name],
        "hidden_act": "silu",
        "num_hidden_layers": read.get("block_count"),
        "max_position_embeddings": read.get("context_length"),
        "hidden_size": read.get("embedding_length"),
        "intermediate_size": read.get("feed_forward_length", 1 if name == "qwen3moe" else None),
        "num_attention_heads": read.get("attention.head_count"),
        "num_key_value_heads": read.get("attention.head_count_kv"),
        "head_dim": dh,
        "rms_norm_eps": read.get("attention.layer_norm_rms_epsilon", kind=float),
        "rope_theta": read.get("rope.freq_base", kind=float),
        "rope_scaling": _rope_scaling(read),
        "tie_word_embeddings": _is_tied(weights),
        "attention_bias": any(n.startswith("blk.0.attn_") and n.endswith("bias") for n in weights),
        "torch_dtype": _float_type(weights),
        "eos_token_id": end_tokens(metadata),
    }
    if name == "qwen3moe":
        config |= {
            "num_experts": read.get("expert_count"),
            "num_experts_per_tok": read.get("expert_used_count"),
            "moe_intermediate_size": read.get("expert_feed_forward_length"),
            "norm_topk_prob": True,  # of all models of this architecture
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    embedding = weights.get("token_embd.weight")
    if embedding is None:
        read.problems.append("tensor 'token_embd.weight' is missing")
    else:
        config["vocab_size"] = embedding.shape[0]
    if read.problems:
        raise GgufError("; ".join(read.problems))
    return config


def _rope_scaling(read: _Metadata) -> dict[str, Any] | None:
    kind = read.get("rope.scaling.type", "none", kind=str)
    if kind == "none":
        return None
    factor = read.get("rope.scaling.factor", kind=float)
    if kind == "linear":
        return {"rope_type": kind, "factor": factor}
    if kind != "yarn":
        read.problems.append(
            f"'{read.arch}.rope.scaling.type' is {kind!r} (known: none, linear, yarn)"
        )
        return None
    scaling = {
        "rope_type": kind,
        "factor": factor,
        "original_max_position_embeddings": read.get("rope.scaling.original_context_length"),
        "beta_fast": read.get("rope.scaling.yarn_beta_fast", 32.0, kind=float),
        "beta_slow": read.get("rope.scaling.yarn_beta_slow", 1.0, kind=float),
    }
    attention = read.get("rope.scaling.attn_factor", 1.0, kind=float)
    attention *= read.get("rope.scaling.yarn_attn_factor", 1.0, kind=float)
    if attention != 1 and factor > 1:
        # There it multiplies what the factor gives, here it stands in its place.
        scaling["attention_factor"] = attention * (0.1 * math.log(factor) + 1)
    return scaling


def _is_tied(weights: Mapping[str, Weight]) -> bool:
    """Return whether there is no head, or the embedding again."""
    head, embedding = weights.get("output.weight"), weights.get("token_embd.weight")
    return head is None or (embedding is not None and same_values(head, embedding))


def _float_type(weights: Mapping[str, Weight]) -> str:
    """Return the type for activations: that of plain matrices, else what Qwen3 is trained in."""
    sizes = {"BF16": 0}
    for weight in weights.values():
        if len(weight.shape) == 2:
            kind = weight.dtype if isinstance(weight, Tensor) else "BF16"
            sizes[kind] = sizes.get(kind, 0) + math.prod(weight.shape)
    kind = max(sizes, key=lambda name: sizes[name])
    return {"F16": "float16", "F32": "float32"}.get(kind, "bfloat16")


def end_tokens(metadata: Mapping[str, Any]) -> list[int]:
    """Return the ids that end an answer: those the file names, and the control tokens that do.

    A GGUF file names one or two; llama.cpp finds the others by their names, and so does this.
    """
    ids = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(types, np.ndarray) and len(types) == len(tokens):
        control = np.flatnonzero(types == _CONTROL)
        ids += [int(i) for i in control if tokens[i] in _NORMAL_END]
    whole: Sequence[int] = [i for i in ids if isinstance(i, int) and not isinstance(i, bool)]
    return list(dict.fromkeys(whole))


def generation_config_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a generation_config.json: sampling defaults, where the file has some."""
    found = {
        theirs: metadata[f"general.sampling.{ours}"]
        for ours, theirs in _SAMPLING.items()
        if isinstance(metadata.get(f"general.sampling.{ours}"), int | float)
    }
    # Metadata is single precision; 0.6 is meant and not 0.6000000238.
    config: dict[str, Any] = {
        key: float(f"{value:.7g}") if isinstance(value, float) else value
        for key, value in found.items()
    }
    if config.get("temperature", 0) > 0:
        config["do_sample"] = True
    return config

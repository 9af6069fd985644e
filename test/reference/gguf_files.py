"""GGUF files of Hugging Face checkpoints, written with the format's own package.

The package quantises to a few types only; for others there are plain encoders here (to nearest,
nothing searched). Expected values are always the package's own decoding of what was written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from reference.qwen3_numpy import bf16_to_float
from reference.random_checkpoint import load_config, load_tensors

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Choose = Callable[[str, tuple[int, ...]], Type]


# ------------------------------------------------------------------ encoders


def _half(values: Array) -> tuple[Bytes, Array]:
    """Returns half-precision numbers [n] as bytes [n, 2], and their values [n, 1]."""
    stored = values.astype(np.float16)
    return stored.view(np.uint8).reshape(-1, 2), stored.astype(np.float32)[:, None]


def _over(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape, np.float32), where=b != 0)


def _affine_k(x: Array, bits: int) -> Bytes:
    """Q4_K and Q5_K of blocks [n, 256]."""
    parts = x.reshape(-1, 8, 32)
    low = np.minimum(parts.min(2), 0)
    step = (parts.max(2) - low) / (2**bits - 1)
    d_bytes, d = _half(step.max(1) / 63)
    m_bytes, m = _half(-low.min(1) / 63)
    sc = np.clip(np.rint(_over(step, d)), 0, 63).astype(np.uint8)
    mn = np.clip(np.rint(_over(-low, m)), 0, 63).astype(np.uint8)
    code = np.rint(_over(parts + (m * mn)[:, :, None], (d * sc)[:, :, None]))
    code = np.clip(code, 0, 2**bits - 1).astype(np.uint8)
    packed = np.zeros((len(x), 12), np.uint8)
    for j in range(4):
        packed[:, j] = sc[:, j] | (sc[:, j + 4] >> 4) << 6
        packed[:, j + 4] = mn[:, j] | (mn[:, j + 4] >> 4) << 6
        packed[:, j + 8] = sc[:, j + 4] & 15 | (mn[:, j + 4] & 15) << 4
    pairs = code.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] & 15 | (pairs[:, :, 1] & 15) << 4).reshape(len(x), 128)
    high = np.zeros((len(x), 32), np.uint8)
    for j in range(8):
        high |= (code[:, j] >> 4) << j
    middle = [high] if bits == 5 else []
    return np.concatenate([d_bytes, m_bytes, packed, *middle, nibbles], axis=1)


def _q6_k(x: Array) -> Bytes:
    parts = x.reshape(-1, 16, 16)
    step = np.abs(parts).max(2) / 31
    d_bytes, d = _half(step.max(1) / 127)
    sc = np.rint(_over(step, d)).astype(np.int8)
    code = np.clip(np.rint(_over(parts, (d * sc)[:, :, None])), -32, 31) + 32
    code = code.astype(np.uint8).reshape(-1, 2, 4, 32)  # half, quarter of it, element
    low = np.concatenate(
        (
            code[:, :, 0] & 15 | (code[:, :, 2] & 15) << 4,
            code[:, :, 1] & 15 | (code[:, :, 3] & 15) << 4,
        ),
        axis=2,
    )
    high = np.zeros((len(x), 2, 32), np.uint8)
    for quarter in range(4):
        high |= (code[:, :, quarter] >> 4) << 2 * quarter
    return np.concatenate(
        [low.reshape(-1, 128), high.reshape(-1, 64), sc.view(np.uint8), d_bytes], axis=1
    )  # fmt: skip


# Where the half-precision numbers of a block are, for types that are only made at random.
_HALVES = {
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.IQ4_NL: (0,),
    Type.IQ4_XS: (0,),
}
_CODES = {
    Type.Q4_K: lambda x: _affine_k(x, 4),
    Type.Q5_K: lambda x: _affine_k(x, 5),
    Type.Q6_K: _q6_k,
}


def encode(x: Array, kind: Type) -> Bytes:
    """Quantises rows [..., columns]; types without an encoder get random codes of x's size."""
    if kind in _CODES:
        blocks = _CODES[kind](x.reshape(-1, 256))
        return blocks.reshape(*x.shape[:-1], -1)
    if kind not in _HALVES:
        return np.asarray(quantize(x, kind))
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(x.size)
    blocks = rng.integers(0, 256, (x.size // weights, size), dtype=np.uint8)
    for scale in (1.0, None):
        for at in _HALVES[kind]:
            if scale is None:
                scale = float(x.std() / dequantize(blocks, kind).std())
            blocks[:, at : at + 2] = _half(np.full(len(blocks), scale, np.float32))[0]
    return blocks.reshape(*x.shape[:-1], -1)


# ------------------------------------------------------------------ files


def hf_values(folder: Path) -> dict[str, Array]:
    """Returns the tensors of a checkpoint in float32."""
    return {
        name: bf16_to_float(t) if t.dtype == np.uint16 else t.astype(np.float32)
        for name, t in load_tensors(folder).items()
    }


def add_model(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Adds what llama.cpp's converter writes of a config.json."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(config.get("rope_theta") or rope["rope_theta"]))
    if config["model_type"] == "qwen3_moe":
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """Adds a folder's tokenizer as llama.cpp's converter does, padded to ``size`` entries."""
    definition = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [int(gguf.TokenType.UNUSED)] * size
    for text, i in definition["model"]["vocab"].items():
        tokens[i], types[i] = text, int(gguf.TokenType.NORMAL)
    for token in definition["added_tokens"]:
        text = token["content"]
        looks_special = text.startswith("<|") and text.endswith("|>")
        kind = gguf.TokenType.CONTROL if token["special"] or looks_special else None
        tokens[token["id"]] = text
        types[token["id"]] = int(kind or gguf.TokenType.USER_DEFINED)
    merges = [m if isinstance(m, str) else " ".join(m) for m in definition["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    for name, add in (("eos", writer.add_eos_token_id), ("pad", writer.add_pad_token_id)):
        text = config.get(f"{name}_token")
        if text is not None:
            add(tokens.index(text))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    if "chat_template" in config:
        writer.add_chat_template(config["chat_template"])


def _stacked(values: dict[str, Array]) -> dict[str, Array]:
    """Returns weights with those of a layer's experts as one, under a name without a number."""
    result: dict[str, Array] = {}
    experts: dict[str, list[Array]] = {}
    for name, value in sorted(values.items(), key=lambda item: (len(item[0]), item[0])):
        before, middle, after = name.partition(".experts.")
        if middle:
            own = f"{before}.experts.{after.partition('.')[2]}"
            experts.setdefault(own, []).append(value)
        else:
            result[name] = value
    return result | {name: np.stack(parts) for name, parts in experts.items()}


def write_gguf(
    source: Path,
    path: Path,
    choose: Choose | Type,
    *,
    tokenizer: bool = True,
    fuse: bool = False,
    split: int = 0,
    change: Callable[[gguf.GGUFWriter], object] | None = None,
) -> dict[str, Array]:
    """Writes a checkpoint as GGUF.

    Args:
        source: The checkpoint's folder.
        path: The file; of a split one the name without number and ending.
        choose: Type of a matrix by its Hugging Face name and shape; vectors are float32.
        tokenizer: Whether to add the tokenizer.
        fuse: Whether q, k and v become one matrix.
        split: Most tensors of a part; 0: one file.
        change: Called with the writer before the tensors are added.

    Returns:
        All weights as the file stands for them, under their Hugging Face names.
    """
    config = load_config(source)
    sparse = config["model_type"] == "qwen3_moe"
    writer = gguf.GGUFWriter(
        path if split else path.with_suffix(".gguf"),
        "qwen3moe" if sparse else "qwen3",
        split_max_tensors=split,
    )
    add_model(writer, config)
    if tokenizer:
        add_tokenizer(writer, source, config["vocab_size"])
    if change is not None:
        change(writer)
    layers = config["num_hidden_layers"]
    arch = gguf.MODEL_ARCH.QWEN3MOE if sparse else gguf.MODEL_ARCH.QWEN3
    names = gguf.get_tensor_name_map(arch, layers)
    values: dict[str, Array] = {}
    encoded: dict[str, tuple[Bytes, Type]] = {}
    for name, value in _stacked(hf_values(source)).items():
        kind = Type.F32
        if value.ndim > 1 and not name.endswith("mlp.gate.weight"):
            kind = choose if isinstance(choose, Type) else choose(name, value.shape)
        octets = encode(value, kind)
        decoded = np.asarray(dequantize(octets, kind), np.float32)
        if value.ndim == 3:
            values |= {name.replace("experts.", f"experts.{e}."): x for e, x in enumerate(decoded)}
        else:
            values[name] = decoded
        stem, _, ending = name.rpartition(".")
        own = names.get_name(stem)
        assert own is not None, name
        encoded[f"{own}.{ending}"] = (octets, kind)
    for i in range(layers if fuse else 0):
        for ending in ("weight", "bias"):
            parts = [encoded.pop(f"blk.{i}.attn_{p}.{ending}", None) for p in "qkv"]
            if parts[0] is not None:
                octets = np.concatenate([part[0] for part in parts if part])
                encoded[f"blk.{i}.attn_qkv.{ending}"] = (octets, parts[0][1])
    for name, (octets, kind) in encoded.items():
        writer.add_tensor(name, octets, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def q4_k_m(name: str, shape: tuple[int, ...]) -> Type:
    """Types as llama.cpp's Q4_K_M has them, with what it falls back to for short rows."""
    better = any(part in name for part in ("v_proj", "down_proj", "embed_tokens", "lm_head"))
    if shape[-1] % 256:
        return Type.Q8_0 if better else Type.Q5_0
    return Type.Q6_K if better else Type.Q4_K


# ------------------------------------------------------------------ changes of what is written


def set_key(
    key: str, value: Any, kind: gguf.GGUFValueType | None = None
) -> Callable[[gguf.GGUFWriter], object]:
    """Returns a change that sets a key of the metadata."""

    def change(writer: gguf.GGUFWriter) -> None:
        kind_of = kind or gguf.GGUFValueType.get_type(value)
        writer.kv_data[0][key] = gguf.gguf_writer.GGUFValue(value, kind_of)

    return change


def drop_key(key: str) -> Callable[[gguf.GGUFWriter], object]:
    """Returns a change that leaves a key out."""
    return lambda writer: writer.kv_data[0].pop(key)

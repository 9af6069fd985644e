"""Writes a random model of an official shape that servers can load, with a vocabulary of full size.

    python test/bench/random_model.py --model 0.6b DIR [--fp8]
    python test/bench/random_model.py DIR --gguf random.gguf --kind Q8_0

A folder for this engine, and the same weights and vocabulary as GGUF for llama.cpp (that needs
gguf==0.19.0). The vocabulary is the demo model's, filled up with made-up tokens that no text
encodes to, with Qwen3's control tokens at their official ids. Weights repeat one block of random
numbers: speed depends on shapes only.
"""

from __future__ import annotations

import argparse
import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
from infinicore_infer.checkpoint.coded import e4m3_values  # noqa: E402
from infinicore_infer.tools.bench_models import SHAPES, VOCABULARY, official_config  # noqa: E402
from peer_models import add_sizes  # noqa: E402

DEMO = ROOT / "test" / "data" / "qwen3-tiny"
_FIRST_CONTROL = 151643
_FP8 = 4000.0  # e4m3 ends at 448, and the block's numbers at about 0.1
_BLOCK = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32)


def tensors(name: str, layers: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor by its Hugging Face name."""
    config = official_config(name)
    hidden, _, heads, kv_heads, inner, tied = SHAPES[name]
    dim = config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    if not tied:
        shapes["lm_head.weight"] = (VOCABULARY, hidden)
    for i in range(layers):
        for part, shape in {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_norm": (dim,),
            "self_attn.k_norm": (dim,),
            "self_attn.q_proj": (heads * dim, hidden),
            "self_attn.k_proj": (kv_heads * dim, hidden),
            "self_attn.v_proj": (kv_heads * dim, hidden),
            "self_attn.o_proj": (hidden, heads * dim),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            shapes[f"model.layers.{i}.{part}.weight"] = shape
    shapes["model.norm.weight"] = (hidden,)
    return shapes


def values(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Returns a tensor: norms are ones, matrices repeat the block."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    return np.resize(_BLOCK, int(np.prod(shape))).reshape(shape)


def vocabulary() -> dict[str, Any]:
    """Returns tokenizer.json's contents."""
    data: dict[str, Any] = json.loads((DEMO / "tokenizer.json").read_text("utf-8"))
    known = data["model"]["vocab"]
    for i in range(len(known), _FIRST_CONTROL):
        known[f"<t{i}>"] = i
    for i, token in enumerate(data["added_tokens"]):
        token["id"] = _FIRST_CONTROL + i
    return data


@cache
def fp8_codes() -> NDArray[np.uint8]:
    """Returns the block's numbers times _FP8 as codes of e4m3."""
    known = e4m3_values()[:127]
    half = (known[1:] + known[:-1]) / 2
    codes = np.searchsorted(half, np.abs(_BLOCK) * _FP8) | np.where(_BLOCK < 0, 128, 0)
    return codes.astype(np.uint8)


def stored(tensor: str, shape: tuple[int, ...], fp8: bool) -> dict[str, tuple[str, Any]]:
    """Returns the safetensors of one matrix or norm: names, dtypes and arrays."""
    if not (fp8 and tensor.endswith("_proj.weight")):
        return {tensor: ("BF16", (values(shape).view(np.uint32) >> 16).astype(np.uint16))}
    blocks = tuple(-(-size // 128) for size in shape)
    return {
        tensor: ("F8_E4M3", np.resize(fp8_codes(), shape)),
        f"{tensor}_scale_inv": ("F32", np.full(blocks, 1 / _FP8, np.float32)),
    }


def write_folder(folder: Path, name: str, fp8: bool = False, *, layers: int | None = None) -> None:
    """Writes what Qwen3ForCausalLM loads, weights in bfloat16 or as Qwen's FP8 checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    config = official_config(name)
    layers = config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    config["max_window_layers"] = layers  # no window is used, but mistral.rs insists on it
    if fp8:
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary()))
    settings = json.loads((DEMO / "tokenizer_config.json").read_text("utf-8"))
    # added_tokens_decoder has the ids of the demo model.
    settings.pop("added_tokens_decoder", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    shapes = tensors(name, layers)
    header, end = {}, 0
    for tensor, shape in shapes.items():
        for part, (dtype, array) in stored(tensor, shape, fp8).items():
            begin, end = end, end + array.nbytes
            header[part] = {"dtype": dtype, "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor, shape in shapes.items():
            for _, array in stored(tensor, shape, fp8).values():
                array.tofile(file)


def write_gguf(path: Path, name: str, kind: str) -> None:
    """Writes the same for llama.cpp, matrices in one of its formats."""
    import gguf

    config = official_config(name)
    layers = config["num_hidden_layers"]
    writer = gguf.GGUFWriter(path, "qwen3")
    add_sizes(writer, config)
    data = vocabulary()
    tokens = [f"[PAD{i}]" for i in range(VOCABULARY)]
    types = [gguf.TokenType.UNUSED] * VOCABULARY
    for text, i in data["model"]["vocab"].items():
        tokens[i], types[i] = text, gguf.TokenType.NORMAL
    for token in data["added_tokens"]:
        kind_of_token = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        tokens[token["id"]], types[token["id"]] = token["content"], kind_of_token
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    settings = json.loads((DEMO / "tokenizer_config.json").read_text("utf-8"))
    writer.add_chat_template(settings["chat_template"])
    quantization = gguf.GGMLQuantizationType[kind]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, layers)
    for tensor, shape in tensors(name, layers).items():
        new = names.get_name(tensor, try_suffixes=(".weight",))
        assert new is not None, tensor
        if len(shape) == 1:
            writer.add_tensor(new, values(shape))
        else:
            packed = gguf.quants.quantize(values(shape), quantization)
            writer.add_tensor(new, packed, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Writes what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=SHAPES, default="0.6b")
    parser.add_argument("--fp8", action="store_true", help="matrices of layers in FP8")
    parser.add_argument("--gguf", type=Path, help="also write this")
    parser.add_argument("--kind", default="BF16", choices=["BF16", "Q8_0", "Q4_0"])
    args = parser.parse_args()
    write_folder(args.folder, args.model, args.fp8)
    if args.gguf:
        write_gguf(args.gguf, args.model, args.kind)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

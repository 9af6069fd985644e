"""Models in the file format that peers read: random ones of an official shape, or a checkpoint."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def _byte_tokens() -> list[str]:
    """The characters that byte-level BPE writes the 256 bytes with."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    codes = dict(zip(printable, printable, strict=True))
    codes |= {byte: 256 + i for i, byte in enumerate(others)}
    return [chr(codes[byte]) for byte in range(256)]


def _add_tokenizer(writer: Any, vocabulary: int) -> None:
    """Add a tokenizer without meaning, for runtimes that insist on one."""
    # The one merge must lead to a token.
    tokens = [*_byte_tokens(), "ab", *(f"token{i}" for i in range(257, vocabulary))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * vocabulary)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(vocabulary - 1)
    writer.add_bos_token_id(vocabulary - 1)
    writer.add_pad_token_id(vocabulary - 1)


def add_sizes(writer: Any, config: dict[str, Any]) -> None:
    """Writes a model's hyperparameters to a ``gguf.GGUFWriter``."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


# GGUF's names of what a layer has, and the checkpoint's.
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _add_checkpoint(
    writer: Any,
    tensors: Mapping[str, NDArray[np.float32]],
    layers: int,
    kind: str,
    embedding_kind: str,
) -> None:
    """Add the tensors of a checkpoint; norms stay float32."""
    import gguf

    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for i in range(layers):
        for ours, theirs in _LAYER_NAMES.items():
            names[f"blk.{i}.{ours}"] = f"model.layers.{i}.{theirs}"
    for ours, theirs in names.items():
        if f"{theirs}.weight" not in tensors and ours == "output":
            continue  # tied
        data = np.ascontiguousarray(tensors[f"{theirs}.weight"], np.float32)
        if data.ndim == 1:
            writer.add_tensor(f"{ours}.weight", data)
            continue
        chosen = gguf.GGMLQuantizationType[embedding_kind if ours == "token_embd" else kind]
        packed = gguf.quants.quantize(data, chosen)
        writer.add_tensor(f"{ours}.weight", packed, raw_dtype=chosen)


def _finish(writer: Any, partial: Path, path: Path) -> None:
    """Write the file, under its name once it is whole."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)


def write_gguf(
    path: Path,
    config: dict[str, Any],
    kind: str,
    *,
    tokenizer: bool = False,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
    embedding_kind: str | None = None,
    head_kind: str | None = None,
) -> None:
    """Write a GGUF file.

    Args:
        path: The file; one that exists is left as it is.
        config: Contents of config.json.
        kind: Type of the matrices, such as ``"Q8_0"``.
        tokenizer: Whether to add a tokenizer; without, ids go in and out.
        tensors: The checkpoint's, by its names; ``None``: random ones.
        embedding_kind: Type of token_embd, if another, of a checkpoint.
        head_kind: Type of the head, if another, of random weights that are not tied.
    """
    if path.exists():
        return
    # Not at the top: only some peers' environments have it.
    import gguf

    hidden, dim = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    inner, vocabulary = config["intermediate_size"], config["vocab_size"]
    layers = config["num_hidden_layers"]
    partial = path.with_suffix(".partial")
    experts = config.get("num_experts", 0)
    writer = gguf.GGUFWriter(partial, "qwen3moe" if experts else "qwen3")
    add_sizes(writer, config)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(int(gguf.LlamaFileType[f"MOSTLY_{kind}"]))
    if tokenizer:
        _add_tokenizer(writer, vocabulary)
    else:
        writer.add_tokenizer_model("none")
    if tensors is not None:
        _add_checkpoint(writer, tensors, layers, kind, embedding_kind or kind)
        _finish(writer, partial, path)
        return
    # About 0.02 standard deviation, as trained weights have; repeated, it is quantised once.
    pattern = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32)
    packed = {
        each: gguf.quants.quantize(pattern, gguf.GGMLQuantizationType[each]).view(np.uint8)
        for each in {kind, head_kind or kind}
    }
    shift = 0

    def matrix(tensor: str, rows: int, columns: int, count: int = 0, kind: str = kind) -> None:
        nonlocal shift
        quantization = gguf.GGMLQuantizationType[kind]
        block, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
        # Every matrix begins elsewhere: compilers of graphs would merge equal ones.
        shift += 1009 * block_bytes
        row_bytes = columns // block * block_bytes
        shape = (count, rows, row_bytes) if count else (rows, row_bytes)
        data = np.resize(np.roll(packed[kind], -shift), shape)
        if kind == "F16":
            data = data.view(np.float16)
        writer.add_tensor(tensor, data, raw_dtype=None if kind == "F16" else quantization)

    def ones(tensor: str, size: int) -> None:
        writer.add_tensor(tensor, np.ones(size, np.float32))

    matrix("token_embd.weight", vocabulary, hidden)
    if not config["tie_word_embeddings"]:
        matrix("output.weight", vocabulary, hidden, kind=head_kind or kind)
    ones("output_norm.weight", hidden)
    for i in range(layers):
        p = f"blk.{i}."
        ones(p + "attn_norm.weight", hidden)
        ones(p + "ffn_norm.weight", hidden)
        ones(p + "attn_q_norm.weight", dim)
        ones(p + "attn_k_norm.weight", dim)
        matrix(p + "attn_q.weight", heads * dim, hidden)
        matrix(p + "attn_k.weight", kv_heads * dim, hidden)
        matrix(p + "attn_v.weight", kv_heads * dim, hidden)
        matrix(p + "attn_output.weight", hidden, heads * dim)
        if experts:
            size = config["moe_intermediate_size"]
            router = np.resize(np.roll(pattern, -i), (experts, hidden))
            writer.add_tensor(p + "ffn_gate_inp.weight", router)
            matrix(p + "ffn_gate_exps.weight", size, hidden, experts)
            matrix(p + "ffn_up_exps.weight", size, hidden, experts)
            matrix(p + "ffn_down_exps.weight", hidden, size, experts)
            continue
        matrix(p + "ffn_gate.weight", inner, hidden)
        matrix(p + "ffn_up.weight", inner, hidden)
        matrix(p + "ffn_down.weight", hidden, inner)
    _finish(writer, partial, path)


# Mixtures that llama.cpp's quantiser writes, with its numbers of them (llama_ftype).
MIXTURES = {
    "Q8_0": 7,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_M": 12,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
}


def quantise(api: Any, path: Path, config: dict[str, Any], mixture: str) -> None:
    """Write a random model with llama.cpp's own quantiser; a file that exists is left as it is.

    Args:
        api: llama-cpp-python's module, its backend initialised.
        path: The file.
        config: Contents of config.json.
        mixture: A key of MIXTURES.
    """
    if path.exists():
        return
    source = path.with_name(f"{path.stem.removesuffix(mixture)}BF16-text.gguf")
    write_gguf(source, config, "BF16", tokenizer=True)
    partial = path.with_suffix(".partial")
    params = api.llama_model_quantize_default_params()
    params.ftype = MIXTURES[mixture]
    names = (str(source).encode(), str(partial).encode())
    assert api.llama_model_quantize(*names, ctypes.byref(params)) == 0, "llama.cpp cannot quantise"
    partial.rename(path)


def random_torch_model(settings: Any) -> Any:
    """Make transformers' Qwen3ForCausalLM of its Qwen3Config: bfloat16, random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    # Drawing normal numbers for every weight takes minutes; one block of them does.
    with torch.device("meta"):
        model = transformers.Qwen3ForCausalLM(settings)
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval()
    block = torch.randn(1 << 20, dtype=torch.float32).mul(0.02).to(torch.bfloat16)
    for i, (name, weight) in enumerate(model.named_parameters()):
        flat = weight.data.view(-1)
        if "norm" in name:
            flat.fill_(1.0)
        else:
            # Every weight begins elsewhere: OpenVINO's export keeps equal ones once, and a layer
            # that stands for all of them would be read from cache.
            own = block.roll(4099 * i)
            flat.copy_(own.repeat(-(-flat.numel() // own.numel()))[: flat.numel()])
    model.tie_weights()
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=settings)  # its buffers were empty too
    return model

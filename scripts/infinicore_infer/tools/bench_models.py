"""The models that benchmarks measure: random weights of an official shape, or a checkpoint."""

from __future__ import annotations

import argparse
import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
from libinfinicore_infer import (
    Activations,
    DataType,
    DeviceType,
    Experts,
    Qwen3ModelOptions,
    Qwen3Tensor,
    Qwen3Weights,
    TensorRole,
)
from numpy.typing import NDArray

from infinicore_infer.arguments import Precision
from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.checkpoint.naming import Qwen3WeightsNaming
from infinicore_infer.checkpoint.opening import is_model, open_model
from infinicore_infer.checkpoint.weights import Qwen3TensorList, field_shapes
from infinicore_infer.native.load import LoadProgress
from infinicore_infer.native.model import NativeModel

# hidden, layers, query heads, KV heads, MLP, tied
SHAPES = {
    "0.6b": (1024, 28, 16, 8, 3072, True),
    "1.7b": (2048, 28, 16, 8, 6144, True),
    "4b": (2560, 36, 32, 8, 9728, True),
    "8b": (4096, 36, 32, 8, 12288, False),
    "14b": (5120, 40, 40, 8, 17408, False),
    "32b": (5120, 64, 64, 8, 25600, False),
}
# The same of models with experts; and experts, how many a token goes through, the MLP of each.
EXPERT_SHAPES = {"30b-a3b": ((2048, 48, 32, 4, 6144, False), (128, 8, 768))}
NAMES = (*SHAPES, *EXPERT_SHAPES)
# Bytes of a weight as the CPU backend packs it.
PACKED_BYTES = {"int8": 1.0625, "int4": 0.5625, "int4-mixed": 0.5625, "bf12": 1.54, "f32": 4.0}
VOCABULARY = 151936
HEAD_SIZE = 128


def official_config(name: str) -> dict[str, Any]:
    """Return the config.json contents of an official Qwen3 model."""
    experts: dict[str, Any] = {}
    shape = SHAPES.get(name)
    if shape is None:
        shape, (number, used, size) = EXPERT_SHAPES[name]
        experts = {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": number,
            "num_experts_per_tok": used,
            "moe_intermediate_size": size,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    hidden, layers, heads, kv_heads, inner, tied = shape
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "eos_token_id": 151645,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "max_position_embeddings": 40960,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    }
    return config | experts


def random_block(meta: Qwen3MetaFromConfig, dtype: DataType) -> NDArray[Any]:
    """Return random numbers for the largest tensor, spread as trained weights are (0.02)."""
    largest = max(meta.dvoc * meta.d, meta.di * meta.d, meta.nh * meta.dh * meta.d)
    pattern = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32)
    block = np.resize(pattern, largest)
    if dtype == DataType.BF16:
        return (block.view(np.uint32) >> 16).astype(np.uint16)
    return block.astype(np.float16) if dtype == DataType.F16 else block


# Fields that say in other words what others do, and those of layers without experts.
_LEFT_OUT = ("ffn_gate", "ffn_up", "ffn_down", "expert_gate_up")


class RandomTensors(Qwen3TensorList):
    """The weights of a model with experts, all of them in one block of random numbers."""

    def __init__(self, meta: Qwen3MetaFromConfig, dtype: DataType) -> None:
        """Draw the block."""
        assert meta.experts is not None
        ones = np.ones(max(meta.d, meta.dh), np.float32)
        block = random_block(meta, dtype)
        self._keep = [block, ones]

        def matrix(shape: tuple[int, ...], expert: int) -> int:
            # Experts begin elsewhere in the block, so that which one is taken makes a difference.
            start = 1009 * expert % (block.size - shape[0] * shape[1] + 1)
            return block[start:].ctypes.data

        entries = []
        for field, shape in field_shapes(meta).items():
            if field.endswith("_b") or field in _LEFT_OUT:
                continue
            vector = len(shape) == 1
            whole = field in ("input_embd", "output_norm", "output_embd")
            experts = meta.experts.count if field.startswith("expert_") else 1
            entries += [
                Qwen3Tensor(
                    role=TensorRole[field.upper()],
                    dtype=DataType.F32 if vector else dtype,
                    layer=layer,
                    expert=expert,
                    rows=shape[0],
                    cols=1 if vector else shape[1],
                    data=ones.ctypes.data if vector else matrix(shape, expert),
                )
                for layer in range(1 if whole else meta.nlayer)
                for expert in range(experts)
            ]
        self.array = (Qwen3Tensor * len(entries))(*entries)


class RandomWeights(Qwen3Weights):
    """Weights that all point into one block of random numbers as large as the largest tensor."""

    def __init__(self, meta: Qwen3MetaFromConfig, dtype: DataType) -> None:
        """Draw the block."""
        ones = np.ones(max(meta.d, meta.dh), np.float32)
        self._keep = [random_block(meta, dtype), ones]
        data, norm = (array.ctypes.data for array in self._keep)
        per_layer = ctypes.c_void_p * meta.nlayer
        super().__init__(
            nlayer=meta.nlayer,
            dt_norm=DataType.F32,
            dt_mat=dtype,
            transpose_linear_weights=1,
            input_embd=data,
            output_norm=norm,
            output_embd=None if meta.tie_word_embeddings else data,
        )
        for name in ("attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm"):
            setattr(self, name, per_layer(*[norm] * meta.nlayer))
        for name in ("attn_q", "attn_k", "attn_v", "attn_o", "ffn_gate", "ffn_up", "ffn_down"):
            setattr(self, name, per_layer(*[data] * meta.nlayer))


def model_name(text: str) -> str:
    """Read an official model's name, or the path of a checkpoint.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    if text not in NAMES and not is_model(Path(text)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join(NAMES)}, and no folder of a checkpoint or GGUF file"
        )
    return text


def packed_bytes(model: NativeModel) -> int:
    """Return the bytes of a model's packed weights, wherever they are."""
    stats = model.stats()
    return int(stats["weight_bytes"] + stats["expert_file_bytes"])


class BenchModel:
    """A loaded model, and of its weights what is not read in every step.

    Attributes:
        meta: Its configuration.
        native: The model.
        unread_bytes: Bytes of the table of input embeddings, where the head is another matrix.
        expert_bytes: Bytes of all experts.
    """

    def __init__(self, name: str, precision: Precision, args: argparse.Namespace) -> None:
        """Load random weights of an official shape, or a checkpoint.

        Args:
            name: The shape or the path.
            precision: Format of weights and activations; a checkpoint may keep its own.
            args: With ``threads``, ``kv_limit`` (MiB) and ``device``, perhaps with
                ``experts_on_disk``, a folder, and of random weights with ``layers``.
        """
        if name in NAMES:
            self._load_random(name, precision, args)
        else:
            self._load_checkpoint(name, precision, args)
        self.expert_bytes = self._expert_bytes(precision.dtype)

    def _expert_bytes(self, dtype: str | None) -> float:
        """Return the bytes of all experts; of a checkpoint in its own formats by their share."""
        meta = self.meta
        if meta.experts is None:
            return 0.0
        weights = 3 * meta.d * meta.experts.dm * meta.experts.count
        layers = len(meta.experts.layers)
        if dtype is None or dtype == "default":
            read = packed_bytes(self.native) - self.unread_bytes
            return float(read * layers * weights / meta.parameter_count)
        each = PACKED_BYTES.get(dtype, 2.0)
        first = PACKED_BYTES["int8"] if dtype.startswith("int4") and meta.nlayer >= 4 else each
        return float(weights * ((layers - 1) * each + first))

    def _load_random(self, name: str, precision: Precision, args: argparse.Namespace) -> None:
        dtype = DataType.parse(precision.dtype)
        config = official_config(name)
        if getattr(args, "layers", None):
            config["num_hidden_layers"] = args.layers
        self.meta = Qwen3MetaFromConfig(config)
        options = Qwen3ModelOptions(nthreads=args.threads, kv_limit_bytes=args.kv_limit << 20)
        options.dt_weight = dtype
        options.activations = Activations.parse(precision.activations)
        folder = getattr(args, "experts_on_disk", None)
        if folder is not None:
            options.experts = Experts.DISK
            options.cache_path = os.fsencode(folder / f"{name}-{self.meta.nlayer}-{precision}")
        source = DataType.BF16 if dtype.packed else dtype
        weights: Qwen3Weights | Qwen3TensorList = RandomWeights(self.meta, source)
        if self.meta.experts is not None:
            self.meta.experts.apply(options)
            weights = RandomTensors(self.meta, source)
        device = DeviceType.parse(args.device)
        self.native = NativeModel(self.meta, weights, options, device, [0], LoadProgress())
        size = self.meta.dvoc * self.meta.d * (4 if source == DataType.F32 else 2)
        self.unread_bytes = 0 if self.meta.tie_word_embeddings else size

    def _load_checkpoint(self, path: str, precision: Precision, args: argparse.Namespace) -> None:
        meta, checkpoint = open_model(Path(path))
        self.unread_bytes = 0
        if not meta.tie_word_embeddings:
            table = checkpoint[Qwen3WeightsNaming.match(checkpoint).input_embd()]
            self.unread_bytes = sum(part.nbytes for part in table.stored())
        checkpoint.close()
        folder = getattr(args, "experts_on_disk", None)
        model = Qwen3ForCausalLM(
            path,
            args.device,
            threads=args.threads,
            dtype=precision.dtype,
            activations=precision.activations,
            kv_limit_bytes=args.kv_limit << 20,
            cache=folder is not None,
            cache_dir=folder,
            experts="memory" if folder is None else "disk",
        )
        self.meta, self.native = model.meta, model.native

"""Seeded random Qwen3 checkpoints in Hugging Face format, small enough to make in a moment.

Every tensor is random, the ones that fresh models leave at a constant included (norm weights,
biases), so that a weight which is ignored or applied twice shows in the logits. Projections have a
standard deviation of ``1 / sqrt(fan_in)``: activations keep their size from layer to layer, and
attention and the MLP both matter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from transformers import Qwen3Config, Qwen3ForCausalLM

TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def shape_settings(spec: Any) -> dict[str, Any]:
    """Returns what a transformers configuration has of the sizes of a spec, with experts or not."""
    return {
        "vocab_size": spec.dvoc,
        "hidden_size": spec.d,
        "intermediate_size": spec.di,
        "num_hidden_layers": spec.nlayer,
        "num_attention_heads": spec.nh,
        "num_key_value_heads": spec.nkvh,
        "head_dim": spec.dh,
        "max_position_embeddings": spec.dctx,
        "tie_word_embeddings": spec.tied,
        "attention_bias": spec.bias,
        "bos_token_id": spec.dvoc - 2,
        "eos_token_id": spec.dvoc - 1,
    }


@dataclass(frozen=True)
class CheckpointSpec:
    """One random checkpoint; letters as in the C header.

    Attributes:
        name: also the folder's name.
        rope: Hugging Face ``rope_parameters`` without ``rope_theta``.
        max_shard_size: as in ``save_pretrained``, such as ``"60KB"``; None: one file.
    """

    name: str
    nlayer: int = 2
    d: int = 64
    nh: int = 4
    nkvh: int = 2
    dh: int = 16
    di: int = 96
    dvoc: int = 256
    dctx: int = 512
    dtype: str = "f32"
    tied: bool = True
    bias: bool = False
    theta: float = 10000.0
    epsilon: float = 1e-6
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default"})
    max_shard_size: str | None = None
    seed: int = 0

    def config(self) -> Qwen3Config:
        """Returns the transformers configuration of this checkpoint."""
        return Qwen3Config(
            **shape_settings(self),
            rms_norm_eps=self.epsilon,
            rope_parameters={**self.rope, "rope_theta": self.theta},
            max_window_layers=self.nlayer,
        )


def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Gives a model random weights that keep its numbers of a usual size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.25 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.25 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)


def make_checkpoint(spec: CheckpointSpec, parent: Path) -> Path:
    """Writes the checkpoint of ``spec`` to ``parent / spec.name``.

    Args:
        spec: sizes, dtype and seed; equal specs give equal files.
        parent: existing folder.

    Returns:
        The folder: config.json, generation_config.json and one or more safetensors files.
    """
    model = Qwen3ForCausalLM(spec.config())
    draw_weights(model, spec.seed)
    folder = parent / spec.name
    shards = {"max_shard_size": spec.max_shard_size} if spec.max_shard_size else {}
    model.to(TORCH_DTYPES[spec.dtype]).save_pretrained(folder, **shards)
    return folder


def load_config(folder: Path) -> dict[str, Any]:
    """Reads ``config.json``."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def load_tensors(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Reads every tensor of every safetensors file; bfloat16 comes back as its uint16 patterns."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as reader:
            for name in reader.keys():
                tensor = reader.get_tensor(name)
                if tensor.dtype == torch.bfloat16:
                    tensors[name] = tensor.view(torch.int16).numpy().view(np.uint16)
                else:
                    tensors[name] = tensor.numpy()
    return tensors

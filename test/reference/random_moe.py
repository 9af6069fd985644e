"""Seeded random mixture-of-experts checkpoints in Hugging Face format.

As in :mod:`random_checkpoint`, every tensor matters: routers spread the tokens over all experts,
and experts differ as random matrices do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reference.random_checkpoint import TORCH_DTYPES, draw_weights, shape_settings
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


@dataclass(frozen=True)
class MoeSpec:
    """One random model with experts; letters as in the C header.

    Attributes:
        used: Experts per token.
        norm: ``norm_topk_prob``.
        step: ``decoder_sparse_step``.
        plain: ``mlp_only_layers``.
    """

    nlayer: int = 2
    d: int = 64
    nh: int = 4
    nkvh: int = 2
    dh: int = 16
    di: int = 96
    dm: int = 32
    nexperts: int = 8
    used: int = 2
    norm: bool = True
    step: int = 1
    plain: tuple[int, ...] = ()
    dvoc: int = 256
    dctx: int = 512
    tied: bool = False
    bias: bool = False
    seed: int = 0

    def config(self) -> Qwen3MoeConfig:
        """Returns the transformers configuration of this model."""
        return Qwen3MoeConfig(
            **shape_settings(self),
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            num_experts=self.nexperts,
            num_experts_per_tok=self.used,
            moe_intermediate_size=self.dm,
            norm_topk_prob=self.norm,
            decoder_sparse_step=self.step,
            mlp_only_layers=list(self.plain),
        )


def moe_model(spec: MoeSpec) -> Qwen3MoeForCausalLM:
    """Returns the float32 model of a spec; equal specs give equal models."""
    torch.manual_seed(spec.seed)
    model = Qwen3MoeForCausalLM(spec.config()).eval()
    model.set_experts_implementation("eager")  # others want widths of 16 bytes
    draw_weights(model, spec.seed)
    return model


def published(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns a model's tensors with a name for each expert's, as published checkpoints have."""
    result: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stem = name.rpartition(".")[0]
        if name.endswith(".experts.gate_up_proj"):
            for e, both in enumerate(tensor):
                gate, up = both.chunk(2)
                result[f"{stem}.{e}.gate_proj.weight"] = gate.contiguous()
                result[f"{stem}.{e}.up_proj.weight"] = up.contiguous()
        elif name.endswith(".experts.down_proj"):
            for e, down in enumerate(tensor):
                result[f"{stem}.{e}.down_proj.weight"] = down.contiguous()
        else:
            result[name] = tensor.contiguous()
    return result


def save_moe(
    model: Qwen3MoeForCausalLM, folder: Path, dtype: str = "f32", stacked: bool = False
) -> Path:
    """Writes a checkpoint of a model in one of its two forms.

    Args:
        model: The model; rounding it to ``dtype`` is left to the caller where that matters.
        folder: Where; it must not exist.
        dtype: "f32", "bf16" or "f16".
        stacked: Whether a layer's experts are two tensors, instead of three for each expert.
    """
    folder.mkdir(parents=True)
    values = {n: t.to(TORCH_DTYPES[dtype]) for n, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        values.pop("lm_head.weight", None)
    tensors = {n: t.contiguous() for n, t in values.items()} if stacked else published(values)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = model.config.to_dict()
    config["torch_dtype"] = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[dtype]
    config.pop("dtype", None)
    if not stacked:
        config["num_experts"] = config.pop("num_local_experts")
    config["architectures"] = ["Qwen3MoeForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def with_values(spec: MoeSpec, values: Mapping[str, Any]) -> Qwen3MoeForCausalLM:
    """Returns the float32 model of a spec with other weights, named as in published checkpoints."""
    model = moe_model(spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stem = name.rpartition(".")[0]
            for e in range(spec.nexperts if ".experts." in name else 0):
                parts = ("gate", "up") if name.endswith("gate_up_proj") else ("down",)
                rows = [torch.as_tensor(values[f"{stem}.{e}.{p}_proj.weight"]) for p in parts]
                parameter[e].copy_(torch.cat(rows))
            if ".experts." not in name:
                parameter.copy_(torch.as_tensor(values[name]))
    return model


def logits_of(model: Qwen3MoeForCausalLM, tokens: list[int]) -> Any:
    """Returns transformers' logits [ntok, dvoc] as a numpy array."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()

#!/usr/bin/env python3
"""Train the tiny mixture-of-experts checkpoint from the dense demo model.

The experts begin as parts of the demo model's MLPs: of every MLP the units that weigh most are
dealt out to eight experts, of which a router picks four for each token. Then all weights are
trained on the conversations that the demo model learned, by the same optimizer, and stored in bf16
with the names of a published Qwen3-MoE checkpoint. The tokenizer is the demo model's.

Usage (seven minutes on one core)::

    PYTHONPATH=test python3 test/data/train_qwen3_tiny_moe.py --out test/data/qwen3-tiny-moe
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from reference.random_moe import published
from safetensors.torch import load_file, save_file
from train_qwen3_tiny import HERE, SECOND_MIX, Phase, train, write_json
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

DENSE = HERE / "qwen3-tiny"
EXPERTS = 8
CHOSEN = 4
UNITS = 32  # of an expert


def moe_config() -> dict[str, Any]:
    """Returns config.json: the demo model's, with experts, as Qwen3-30B-A3B's has them."""
    config: dict[str, Any] = json.loads((DENSE / "config.json").read_text(encoding="utf-8"))
    return config | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": UNITS,
        "norm_topk_prob": True,
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


def deal(dense: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    """Returns a layer's experts, made of the units of its MLP that weigh most, and its router."""
    mlp = f"model.layers.{layer}.mlp"
    gate, up, down = (dense[f"{mlp}.{name}_proj.weight"].float() for name in ("gate", "up", "down"))
    weight = up.norm(dim=1) * down.norm(dim=0)
    units = weight.argsort(descending=True)[: EXPERTS * UNITS]
    rows = units.view(UNITS, EXPERTS).T  # every expert gets heavy units and light ones
    return {
        # A chosen expert's sum counts 1 / CHOSEN, and those that are not chosen are missing.
        f"{mlp}.experts.down_proj": EXPERTS * down[:, rows].permute(1, 0, 2),
        f"{mlp}.experts.gate_up_proj": torch.cat([gate[rows], up[rows]], dim=1),
        f"{mlp}.gate.weight": 0.1 * torch.randn(EXPERTS, gate.shape[1]),
    }


def start() -> Qwen3MoeForCausalLM:
    """Makes the model that is trained, in float32."""
    dense = load_file(DENSE / "model.safetensors")
    model = Qwen3MoeForCausalLM._from_config(Qwen3MoeConfig(**moe_config()), dtype=torch.float32)
    weights = {name: value for name, value in dense.items() if ".mlp." not in name}
    for layer in range(model.config.num_hidden_layers):
        weights |= deal(dense, layer)
    left = model.load_state_dict(weights, strict=False)
    assert left.missing_keys in ([], ["lm_head.weight"]), left
    assert not left.unexpected_keys, left
    return model


def save(model: Qwen3MoeForCausalLM, out: Path) -> None:
    """Writes model.safetensors in bf16, config.json, and the demo model's other files."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: w for name, w in model.state_dict().items() if name != "lm_head.weight"}
    tensors = {name: w.detach().to(torch.bfloat16) for name, w in published(weights).items()}
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    write_json(out / "config.json", moe_config())
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DENSE / name, out)


def main(argv: list[str] | None = None) -> int:
    """Runs the training; returns the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "qwen3-tiny-moe", help="output folder")
    parser.add_argument("--steps", type=int, default=600, help="steps")
    parser.add_argument("--seed", type=int, default=7, help="seed of the data and the routers")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(DENSE)
    model = start()
    print(f"{sum(weight.numel() for weight in model.parameters())} parameters")
    phase = Phase(args.steps, args.steps, SECOND_MIX, 28, drills=4, rate=1.5e-3, warm_up=30)
    train(model, tokenizer, phase, args.seed + 3, 0, lambda: None)
    save(model, args.out)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

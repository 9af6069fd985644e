"""Quantises a model with a format's own tool, in the tool's environment; run.py calls it.

    python quantise.py CASE SOURCE FOLDER TEXT

Writes the model to FOLDER and, beside it, ``FOLDER.values.safetensors``: every quantised matrix in
float32 as the tool reads its own file back. Nothing here knows how a format stores a number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

Batches = list[dict[str, torch.Tensor]]


def calibration(source: Path, text: Path) -> Batches:
    """Returns what a tool watches the activations of: pieces of a text, and questions."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer(text.read_text(), return_tensors="pt")["input_ids"][0]
    pieces = [ids[i : i + 128] for i in range(0, len(ids) - 128, 32)]
    for question in ("What is the capital of France?", "What is the opposite of hot?"):
        message = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        pieces.append(tokenizer(prompt, return_tensors="pt")["input_ids"][0])
    return [{"input_ids": p, "attention_mask": torch.ones_like(p)} for p in pieces]


def values_of(model: Any) -> dict[str, torch.Tensor]:
    """Returns the matrices that a tool's layers multiply with.

    A layer that keeps codes says it by its products with the rows of the unit matrix.
    """
    values = {}
    for name, layer in model.named_modules():
        if not name.endswith("_proj"):
            continue
        weight = getattr(layer, "weight", None)
        if hasattr(layer, "dequantize_weight") and hasattr(layer, "weight_scale_inv"):
            weight = layer.dequantize_weight(device="cpu", dtype=torch.float32).T
        elif not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            with torch.no_grad():
                weight = layer(torch.eye(layer.in_features, dtype=layer.scales.dtype)).T
        # gptqmodel's wrapper stands before the names.
        name = name[name.index("model.layers.") :]
        values[f"{name}.weight"] = weight.detach().float().contiguous().clone()
    return values


# ------------------------------------------------------------------ gptqmodel


def gptqmodel(source: Path, folder: Path, text: Path, **settings: Any) -> Any:
    """Quantises with gptqmodel: GPTQ, and AWQ and FP8 as it has them."""
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.quantization import AWQConfig, FP8Config, GPTQConfig

    method = settings.pop("method", "gptq")
    kinds = {"gptq": GPTQConfig, "awq": AWQConfig, "fp8": FP8Config}
    config = kinds[method](device="cpu", offload_to_disk=False, **settings)
    backend = BACKEND[f"{method.upper()}_TORCH"]
    model = GPTQModel.load(str(source), config, dtype=torch.float16)
    model.quantize(calibration(source, text), batch_size=1)
    model.save(str(folder))
    return GPTQModel.load(str(folder), backend=backend, device="cpu", dtype=torch.float16).model


# ------------------------------------------------------------------ AutoAWQ


def autoawq(source: Path, folder: Path, text: Path) -> Any:
    """Quantises with AutoAWQ, version "gemm"."""
    from awq import AutoAWQForCausalLM
    from awq.utils.packing_utils import dequantize_gemm

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoAWQForCausalLM.from_pretrained(str(source), device_map="cpu")
    settings = {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}
    model.quantize(
        tokenizer,
        quant_config=settings,
        calib_data=text.read_text().splitlines() * 8,
        max_calib_samples=24,
        max_calib_seq_len=128,
    )
    model.save_quantized(str(folder))
    tokenizer.save_pretrained(folder)
    # Its layers need a GPU or Intel's extension; its decoder does not.
    parts = load_file(folder / "model.safetensors")
    decoded = {}
    for name in [name for name in parts if name.endswith(".qweight")]:
        module = name.removesuffix(".qweight")
        scales = parts[f"{module}.scales"].float()
        zeros = parts[f"{module}.qzeros"]
        decoded[f"{module}.weight"] = dequantize_gemm(parts[name], zeros, scales, 4, 64).T
    return decoded


# ------------------------------------------------------------------ llm-compressor


def llmcompressor(source: Path, folder: Path, text: Path, recipe: str, **weights: Any) -> Any:
    """Quantises with llm-compressor, which writes compressed-tensors.

    Args:
        source: The model.
        folder: Where to write.
        text: For calibration.
        recipe: Its modifiers, separated by "+".
        weights: How weights are stored; ``scheme`` is one that it knows by name.
    """
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from transformers import CompressedTensorsConfig

    # Without a GPU there is nothing to pin memory for, and doing so fails.
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]
    scheme = weights.pop("scheme", None)
    targets = ["Linear"]
    settings: dict[str, Any] = {"ignore": ["lm_head"]}
    settings |= {k: weights.pop(k) for k in ("actorder", "ignore") if k in weights}
    if scheme is not None:
        settings |= {"targets": targets, "scheme": scheme}
    else:
        settings["config_groups"] = {"group_0": {"targets": targets, "weights": weights}}
    made = {
        "awq": lambda: AWQModifier(),
        "gptq": lambda: GPTQModifier(**settings),
        "round": lambda: QuantizationModifier(**settings),
    }
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    rows = [{k: v.tolist() for k, v in one.items()} for one in calibration(source, text)]
    oneshot(
        model=model,
        recipe=[made[name]() for name in recipe.split("+")],
        dataset=Dataset.from_list(rows),
        num_calibration_samples=len(rows),
        max_seq_length=128,
    )
    model.save_pretrained(folder, save_compressed=True)
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=CompressedTensorsConfig(run_compressed=False),
    )


_GROUP = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}

CASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "gptq int4": (gptqmodel, {"bits": 4, "group_size": 32}),
    "gptq int4 act_order": (
        gptqmodel,
        {"bits": 4, "group_size": 32, "desc_act": True, "act_group_aware": False},
    ),
    "gptq int4 asymmetric": (
        gptqmodel,
        {"bits": 4, "group_size": 64, "sym": False, "format": "gptq_v2"},
    ),
    "gptq int8": (gptqmodel, {"bits": 8, "group_size": 64}),
    "gptq int8 whole rows": (gptqmodel, {"bits": 8, "group_size": -1, "act_group_aware": False}),
    "awq": (gptqmodel, {"method": "awq", "bits": 4, "group_size": 32, "sym": False}),
    "awq symmetric": (gptqmodel, {"method": "awq", "bits": 4, "group_size": 32, "sym": True}),
    "fp8 per row": (gptqmodel, {"method": "fp8"}),
    "fp8 block": (
        gptqmodel,
        {"method": "fp8", "weight_scale_method": "block", "weight_block_size": [64, 64]},
    ),
    "autoawq": (autoawq, {}),
    "w4a16": (llmcompressor, {"recipe": "round", **_GROUP}),
    "w4a16 asymmetric": (llmcompressor, {"recipe": "round", **_GROUP, "symmetric": False}),
    "w4a16 awq": (llmcompressor, {"recipe": "awq+round", **_GROUP, "symmetric": False}),
    "w4a16 gptq": (llmcompressor, {"recipe": "gptq", **_GROUP, "actorder": "weight"}),
    "w8a16": (llmcompressor, {"recipe": "round", **_GROUP, "num_bits": 8}),
    "w8a8": (llmcompressor, {"recipe": "round", "scheme": "W8A8"}),
    "fp8 dynamic": (llmcompressor, {"recipe": "round", "scheme": "FP8_DYNAMIC"}),
    "fp8 static": (llmcompressor, {"recipe": "round", "scheme": "FP8"}),
    "fp8 compressed block": (llmcompressor, {"recipe": "round", "scheme": "FP8_BLOCK"}),
    "w4a16 some layers": (
        llmcompressor,
        {"recipe": "round", **_GROUP, "ignore": ["lm_head", r"re:.*layers\.[02]\..*"]},
    ),
}


def main() -> None:
    """Run one case."""
    case, source, folder, text = sys.argv[1], *map(Path, sys.argv[2:5])
    quantise, settings = CASES[case]
    made = quantise(source, folder, text, **settings)
    values = made if isinstance(made, dict) else values_of(made)
    values = {name: value.contiguous() for name, value in values.items()}
    save_file(values, folder.with_name(f"{folder.name}.values.safetensors"))


if __name__ == "__main__":
    main()

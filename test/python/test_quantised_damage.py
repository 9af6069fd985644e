"""Quantised checkpoints that are not supported, damaged, or odd: errors by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.checkpoint.coded import CodedMatrix
from infinicore_infer.checkpoint.errors import QuantizationError, SafetensorsError
from infinicore_infer.checkpoint.quantization import quantised_weights
from infinicore_infer.checkpoint.safetensors import SafetensorsFile
from infinicore_infer.checkpoint.tensor import Tensor
from python.helpers import DEMO, copy_folder, edit_json
from python.test_quantised import FORMATS, GPTQ, MODULE
from qwen3 import Qwen3ForCausalLM
from reference.quantised import awq, compressed, fp8, gptq, quantised_copy
from reference.random_moe import MoeSpec, moe_model, save_moe
from safetensors.torch import load_file, save_file

# ------------------------------------------------------------------ refusals


AWQ = awq()[1]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes'"),
    "none": ({"bits": 4}, "quant_method None"),
    "mlx": ({"bits": 4, "group_size": 64, "mode": "affine"}, "'mlx'"),
    "list": ({"quant_method": ["gptq"]}, "quant_method"),
    "gptq int3": ({**GPTQ, "bits": 3}, "'bits' is 3.*known: 4, 8"),
    "gptq text": ({**GPTQ, "bits": "4"}, "'bits' is '4'"),
    "gptq marlin": ({**GPTQ, "checkpoint_format": "marlin"}, "'marlin'"),
    "gptq dynamic": ({**GPTQ, "dynamic": {r"+:.*\.up_proj": {"bits": 8}}}, "'dynamic'"),
    "gptq group": ({**GPTQ, "group_size": 0}, "'group_size' is 0"),
    "awq gemv": ({**AWQ, "version": "gemv"}, "'version' is 'gemv'"),
    "fp8 e5m2": ({"quant_method": "fp8", "fmt": "e5m2"}, "'fmt' is 'e5m2'"),
    "fp8 block": ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "weight_block_size"),
    "fp8 scales": (
        {"quant_method": "fp8", "weight_scale_semantics": "x"},
        "'weight_scale_semantics' is 'x'",
    ),
    "nvfp4": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "group_0": {
                    "format": "nvfp4-pack-quantized",
                    "targets": ["Linear"],
                    "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group"},
                }
            },
        },
        "'nvfp4-pack-quantized'.*'tensor_group'",
    ),
    "no groups": ({"quant_method": "compressed-tensors"}, "config_groups"),
    "sparse": (
        {
            **compressed("pack-quantized")[1],
            "sparsity_config": {"format": "sparse-24-bitmask"},
        },
        "sparsity_config",
    ),
    "int3": (compressed("pack-quantized", bits=3)[1], "3 bits of type 'int'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str, tmp_path: Path) -> None:
    config, words = REFUSED[case]
    folder = copy_folder(DEMO, tmp_path)
    edit_json(folder / "config.json", quantization_config=config)
    with pytest.raises(QuantizationError, match=words) as caught:
        Qwen3ForCausalLM(folder)
    assert str(folder / "config.json") in str(caught.value)


DAMAGED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "no scales": (lambda t: t.pop(f"{MODULE}.scales"), "scales is missing"),
    "no zeros": (lambda t: t.pop(f"{MODULE}.qzeros"), "qzeros is missing"),
    "no codes": (lambda t: t.pop(f"{MODULE}.qweight"), "missing tensors: .*up_proj.weight"),
    "scales of another shape": (
        lambda t: t.update({f"{MODULE}.scales": torch.ones(3, 512, dtype=torch.float16)}),
        r"scales is \[3, 512\], not \[6, 512\]",
    ),
    "scales of integers": (
        lambda t: t.update({f"{MODULE}.scales": torch.ones(6, 512, dtype=torch.int32)}),
        "scales is I32",
    ),
    "flat codes": (
        lambda t: t.update({f"{MODULE}.qweight": torch.zeros(24 * 512, dtype=torch.int32)}),
        "not a matrix",
    ),
    "another shape": (
        lambda t: t.update(
            {
                f"{MODULE}.qweight": torch.zeros(12, 512, dtype=torch.int32),
                f"{MODULE}.qzeros": torch.zeros(3, 64, dtype=torch.int32),
                f"{MODULE}.scales": torch.ones(3, 512, dtype=torch.float16),
                f"{MODULE}.g_idx": torch.zeros(96, dtype=torch.int32),
            }
        ),
        r"up_proj.weight is \[512, 96\], not \[512, 192\]",
    ),
    "a group that is not there": (
        lambda t: t.update({f"{MODULE}.g_idx": torch.full((192,), 6, dtype=torch.int32)}),
        "g_idx has groups outside 0 to 5",
    ),
    "a zero point of 0 stored less one": (
        lambda t: t.update({f"{MODULE}.qzeros": torch.full((6, 64), -1, dtype=torch.int32)}),
        "zero points that the format 'gptq' cannot hold",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_parts_that_do_not_fit(case: str, tmp_path: Path) -> None:
    damage, words = DAMAGED[case]
    quantised_copy(DEMO, tmp_path / "q", *gptq())
    path = tmp_path / "q" / "model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=words):
        Qwen3ForCausalLM(tmp_path / "q")


@pytest.mark.parametrize("group", [-2, 6])
def test_groups_of_actorder_that_are_not_there(group: int, tmp_path: Path) -> None:
    quantised_copy(DEMO, tmp_path / "q", *compressed("pack-quantized", act_order=True))
    path = tmp_path / "q" / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{MODULE}.weight_g_idx"][7] = group
    save_file(tensors, path)
    with pytest.raises(QuantizationError, match="weight_g_idx has groups outside 0 to 5"):
        Qwen3ForCausalLM(tmp_path / "q")


def test_all_problems_in_one_message(tmp_path: Path) -> None:
    quantised_copy(DEMO, tmp_path / "q", *gptq())
    path = tmp_path / "q" / "model.safetensors"
    tensors = {n: t for n, t in load_file(path).items() if not n.endswith("down_proj.qzeros")}
    save_file(tensors, path)
    edit_json(tmp_path / "q" / "config.json", quantization_config={**GPTQ, "pack_dtype": "int64"})
    with pytest.raises(QuantizationError, match="pack_dtype") as caught:
        Checkpoint(tmp_path / "q")
    assert all(f"layers.{i}.mlp.down_proj.qzeros is missing" in str(caught.value) for i in range(4))


def test_quantised_without_a_word_in_the_config(tmp_path: Path) -> None:
    for name, made, words in (("a", gptq(), "qweight"), ("b", fp8(), "weight_scale_inv")):
        quantised_copy(DEMO, tmp_path / name, *made)
        edit_json(tmp_path / name / "config.json", quantization_config=...)
        with pytest.raises(QuantizationError, match=f"{words}.*no 'quantization_config'"):
            Qwen3ForCausalLM(tmp_path / name)


def test_settings_in_the_tools_own_files(tmp_path: Path) -> None:
    """AutoGPTQ's and AutoAWQ's, from before config.json had the section."""
    old = {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    older = {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}
    for name, made, settings in (
        ("quantize_config.json", gptq(), old),
        ("quant_config.json", awq(), older),
    ):
        folder = tmp_path / name
        values = quantised_copy(DEMO, folder, *made)
        edit_json(folder / "config.json", quantization_config=...)
        (folder / name).write_text(json.dumps(settings))
        up = "model.layers.1.mlp.up_proj.weight"
        np.testing.assert_array_equal(Checkpoint(folder)[up].decoded(), values[up])


def test_fp8_without_scales(tmp_path: Path) -> None:
    quantised_copy(DEMO, tmp_path / "q", *fp8())
    path = tmp_path / "q" / "model.safetensors"
    tensors = load_file(path)
    del tensors[f"{MODULE}.weight_scale_inv"]
    save_file(tensors, path)
    with pytest.raises(QuantizationError, match=r"up_proj\.weight is in FP8 but has no"):
        Checkpoint(tmp_path / "q")


def test_nan_in_fp8(tmp_path: Path) -> None:
    quantised_copy(DEMO, tmp_path / "q", *fp8())
    path = tmp_path / "q" / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{MODULE}.weight"].view(torch.uint8)[3, 5] = 0x7F
    save_file(tensors, path)
    with pytest.raises(ValueError, match="NaN"):
        Qwen3ForCausalLM(tmp_path / "q")


def test_identity_changes_with_the_settings(tmp_path: Path) -> None:
    """The same bytes read in another way are other weights."""
    quantised_copy(DEMO, tmp_path / "q", *gptq())
    before = Checkpoint(tmp_path / "q").identity()
    edit_json(
        tmp_path / "q" / "config.json",
        quantization_config={**GPTQ, "checkpoint_format": "gptq_v2"},
    )
    assert Checkpoint(tmp_path / "q").identity() != before


def test_scales_in_powers_of_two(tmp_path: Path) -> None:
    """F8_E8M0 ("ue8m0"): 2 to the stored exponent less 127."""
    quantised_copy(DEMO, tmp_path / "q", *fp8())
    path = tmp_path / "q" / "model.safetensors"
    tensors = load_file(path)
    codes = tensors[f"{MODULE}.weight"].float().numpy()
    exponents = torch.tensor([[120, 121], [119, 118], [127, 100], [126, 122]], dtype=torch.uint8)
    tensors[f"{MODULE}.weight_scale_inv"] = exponents.view(torch.float8_e8m0fnu)
    save_file(tensors, path)
    powers = 2.0 ** (exponents.numpy().astype(int) - 127)
    expected = codes * np.repeat(np.repeat(powers, 128, 0), 128, 1)[:, :192]
    weight = Checkpoint(tmp_path / "q")[f"{MODULE}.weight"]
    np.testing.assert_array_equal(weight.decoded(), expected.astype(np.float32))


def test_pickles_have_a_remedy(tmp_path: Path) -> None:
    folder = copy_folder(DEMO, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SafetensorsError, match=r"pytorch_model\.bin.*save_pretrained"):
        Qwen3ForCausalLM(folder)
    with pytest.raises(SafetensorsError, match="save_pretrained"):
        Qwen3ForCausalLM(folder / "pytorch_model.bin")


# ------------------------------------------------------------------ anything at all

ODD = (None, True, -1, 0, 3, 2**70, 1.5, "x", "re:(", [], [-1, 0], {}, {"a": None})


def _mutations(value: Any) -> Iterator[Any]:
    """Yields copies of a JSON value with one part replaced by something odd, or left out."""
    yield from ODD
    if isinstance(value, dict):
        for key, part in value.items():
            yield {k: v for k, v in value.items() if k != key}
            for other in _mutations(part):
                yield {**value, key: other}
    elif isinstance(value, list):
        for i, part in enumerate(value):
            for other in _mutations(part):
                yield [*value[:i], other, *value[i + 1 :]]


@pytest.mark.parametrize("form", ["fp8", "gptq int4", "awq", "w4a16 asymmetric", "fp8 block"])
def test_odd_settings_are_errors_or_read(form: str, tmp_path: Path) -> None:
    quantise, config = FORMATS[form]()
    quantised_copy(DEMO, tmp_path / "q", quantise, config)
    tensors = {
        tensor.name: tensor for tensor in SafetensorsFile(tmp_path / "q/model.safetensors").values()
    }
    refused = count = 0
    for other in _mutations(config):
        if other is None or not isinstance(other, dict):
            continue
        count += 1
        try:
            quantised_weights(tensors, other, "config.json")
        except QuantizationError:
            refused += 1
    assert count > 50 and refused > count / 3


@pytest.mark.parametrize("form", ["fp8", "gptq act_order", "awq", "w4a16 actorder", "w8a8"])
def test_odd_parts_are_errors_or_read(form: str, tmp_path: Path) -> None:
    """Parts of every other shape and type: refused, or decoded within what is there."""
    quantise, config = FORMATS[form]()
    quantised_copy(DEMO, tmp_path / "q", quantise, config)
    file = SafetensorsFile(tmp_path / "q/model.safetensors")
    tensors = {name: t for name, t in file.items() if name.startswith(MODULE)}
    for name, tensor in tensors.items():
        for shape in ((), (0,), (1,), (4, 4), (0, 192), (192, 0), (1, 512), (6, 512, 1)):
            for dtype in ("F32", "F16", "I32", "I64", "U8", "BOOL", "F8_E4M3", "F4"):
                kind = np.uint8 if dtype in ("F4", "F8_E4M3") else NUMPY[dtype]
                data = np.zeros(shape, kind)
                odd = Tensor(name, dtype, shape, data, tensor.file)
                try:
                    weights = quantised_weights({**tensors, name: odd}, config, "config.json")
                except QuantizationError:
                    continue
                for weight in weights.values():
                    if isinstance(weight, CodedMatrix):
                        weight.decoded()


NUMPY = {
    "F32": np.float32,
    "F16": np.float16,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@pytest.mark.parametrize("end", ["", ".weight"])
def test_stacked_experts_in_codes_are_refused(end: str, tmp_path: Path) -> None:
    """The layer's experts in one tensor, as transformers keeps them."""
    folder = save_moe(moe_model(MoeSpec(nlayer=1)), tmp_path / "m", stacked=True)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    codes = tensors.pop(name).to(torch.float8_e4m3fn)
    tensors[f"{name}{end}"] = codes
    tensors[f"{name}{end}_scale_inv"] = torch.ones(len(codes), 1, 1)
    save_file(tensors, folder / "model.safetensors")
    edit_json(folder / "config.json", quantization_config=fp8()[1])
    words = "gate_up_proj is F8_E4M3" if end == "" else r"gate_up_proj.weight is \[8, .* matrix"
    with pytest.raises(ValueError, match=words):
        Qwen3ForCausalLM(folder)

"""Quantised safetensors checkpoints: FP8, GPTQ, AWQ and compressed-tensors.

What is expected was never read back: test/reference/quantised.py packs whole numbers that it knows,
or lets the format's own package pack them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.checkpoint.coded import CodedMatrix
from infinicore_infer.checkpoint.errors import SafetensorsError
from infinicore_infer.checkpoint.opening import open_model
from infinicore_infer.checkpoint.weights import CheckedTensors, Qwen3WeightsImpl, WeightsError
from libinfinicore_infer import WeightCache
from python.helpers import DEMO, copy_folder, edit_json
from qwen3 import Qwen3ForCausalLM
from reference.quantised import Array, Quantise, awq, compressed, fp8, gptq, quantised_copy
from reference.qwen3_numpy import forward
from reference.random_checkpoint import CheckpointSpec, load_config, make_checkpoint
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

Made = tuple[Quantise, dict[str, Any]]


def _old_fp8() -> Made:
    quantise, config = fp8((1, 0), torch.float32, "weight_scale")
    return quantise, {key: value for key, value in config.items() if key != "weight_block_size"}


# Rows of the demo model (192, 384, 512) end within blocks of 128.
FORMATS: dict[str, Callable[[], Made]] = {
    "fp8": fp8,
    "fp8, scales f16": lambda: fp8(scale_dtype=torch.float16),
    "fp8, scales f32": lambda: fp8((64, 128), torch.float32),
    "fp8 per row": _old_fp8,
    "fp8 of gptqmodel": lambda: fp8((64, 64), torch.float32, divisors=True),
    "fp8 per tensor": lambda: fp8(None, torch.float32, "weight_scale"),
    "gptq int4": gptq,
    "gptq int8": lambda: gptq(8, 64),
    "gptq without groups": lambda: gptq(8, -1),
    "gptq act_order": lambda: gptq(4, 32, act_order=True),
    "gptq asymmetric": lambda: gptq(4, 32, symmetric=False),
    "gptq_v2 asymmetric": lambda: gptq(8, 32, symmetric=False, version=2),
    "awq": awq,
    "awq symmetric": lambda: awq(symmetric=True),
    "w4a16": lambda: compressed("pack-quantized"),
    "w8a16": lambda: compressed("pack-quantized", bits=8, group=64),
    "w4a16 asymmetric": lambda: compressed("pack-quantized", symmetric=False),
    "w4a16 actorder": lambda: compressed("pack-quantized", act_order=True),
    "w4a16 per channel": lambda: compressed("pack-quantized", group=None),
    "w8a8": lambda: compressed("int-quantized", bits=8, group=None),
    "fp8 dynamic": lambda: compressed("float-quantized", bits=8, group=None, kind="float"),
    "fp8 block": lambda: compressed("float-quantized", bits=8, group=-128, kind="float"),
}


GPTQ = gptq()[1]
MODULE = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module", params=FORMATS)
def demo(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Array]]]:
    """The demo model in a format, and the values of its weights."""
    folder = tmp_path_factory.mktemp("demo") / "model"
    yield folder, quantised_copy(DEMO, folder, *FORMATS[request.param]())


def test_decoded_values(demo: tuple[Path, dict[str, Array]]) -> None:
    """Every weight to the bit, whole and in parts whose edges lie anywhere."""
    folder, values = demo
    checkpoint = Checkpoint(folder)
    assert set(checkpoint) == set(values)
    assert sum(isinstance(weight, CodedMatrix) for weight in checkpoint.values()) == 4 * 7
    for name, expected in values.items():
        weight = checkpoint[name]
        assert weight.shape == expected.shape
        np.testing.assert_array_equal(weight.decoded(), expected, name)
        if expected.ndim == 2:
            for first, last in ((0, 1), (5, 21), (len(expected) - 3, len(expected) + 9)):
                np.testing.assert_array_equal(weight.decoded(first, last), expected[first:last])
    checkpoint.close()


def test_answers(demo: tuple[Path, dict[str, Array]]) -> None:
    """The demo model still knows what it was trained on."""
    questions = {
        "What is the capital of France?": "The capital of France is Paris.",
        "What is the opposite of hot?": "The opposite of hot is cold.",
    }
    with Qwen3ForCausalLM(demo[0], threads=2) as model:
        for question, answer in questions.items():
            messages = [{"role": "user", "content": question}]
            assert str(model.chat(messages, enable_thinking=False, temperature=0)) == answer


def test_columns_in_any_order(tmp_path: Path) -> None:
    """The size of packed weights is that of columns in order, in either format."""
    made = {
        "gptq": (gptq(), gptq(act_order=True)),
        "w4a16": (compressed("pack-quantized"), compressed("pack-quantized", act_order=True)),
    }
    for name, forms in made.items():
        size = []
        for i, (quantise, config) in enumerate(forms):
            folder = tmp_path / f"{name}{i}"
            quantised_copy(DEMO, folder, quantise, config)
            with Qwen3ForCausalLM(folder, threads=2, cache=False) as model:
                size.append(model.stats()["weight_bytes"])
        assert size[0] < size[1] < 1.03 * size[0]


def test_fp8_as_transformers_reads_it(tmp_path: Path) -> None:
    spec = CheckpointSpec("m", nlayer=1, d=256, nh=4, nkvh=2, dh=128, di=512, dtype="bf16")
    quantised_copy(make_checkpoint(spec, tmp_path), tmp_path / "q", *fp8())
    read = Fp8Dequantize(None)._dequantize_one
    tensors, checkpoint = load_file(tmp_path / "q/model.safetensors"), Checkpoint(tmp_path / "q")
    scaled = [name for name in tensors if name.endswith(".weight_scale_inv")]
    assert len(scaled) == 7
    for name in scaled:
        weight = name.removesuffix("_scale_inv")
        expected = read(tensors[weight], tensors[name].float(), torch.float32)
        np.testing.assert_array_equal(checkpoint[weight].decoded(), expected.numpy())


@pytest.mark.parametrize("form", ["fp8", "gptq act_order", "awq", "w4a16 asymmetric"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits(form: str, tied: bool, tmp_path: Path) -> None:
    """The logits are those of the decoded weights, in the oracle's float64."""
    spec = CheckpointSpec("m", d=64, nh=4, nkvh=2, dh=32, di=96, dvoc=300, tied=tied, seed=3)
    quantise, config = FORMATS[form]()
    values = quantised_copy(make_checkpoint(spec, tmp_path), tmp_path / "q", quantise, config)
    tokens = [1 + 7 * i % 290 for i in range(40)]
    expected = forward(load_config(tmp_path / "q"), values, tokens)
    with Qwen3ForCausalLM(tmp_path / "q", threads=2, dtype="f32") as model:
        logits = model.forward(tokens)
    assert np.abs(logits - expected).max() < 3e-5 * expected.std()


def test_embedding_and_head_may_be_quantised(tmp_path: Path) -> None:
    """Also where they are one; a folded head is refused by no rule of the formats."""
    spec = CheckpointSpec("m", d=64, dh=32, di=96, dvoc=304, tied=False, seed=4)
    quantise, config = compressed("pack-quantized")
    config["config_groups"]["group_0"]["targets"] = ["Linear", "Embedding"]
    source = make_checkpoint(spec, tmp_path)
    modules = ("embed_tokens", "lm_head", "up_proj")
    values = quantised_copy(source, tmp_path / "q", quantise, config, modules)
    expected = forward(load_config(source), values, [5, 6, 7])
    with Qwen3ForCausalLM(tmp_path / "q", dtype="f32") as model:
        assert np.abs(model.forward([5, 6, 7]) - expected).max() < 3e-5 * expected.std()


def test_repacked(tmp_path: Path) -> None:
    """--dtype packs any checkpoint as any other: the same as its decoded copy packed so."""
    quantise, config = gptq(8, 64)
    values = quantised_copy(DEMO, tmp_path / "q", quantise, config)
    plain = copy_folder(DEMO, tmp_path, "plain")
    save_file(
        {name: torch.from_numpy(v) for name, v in values.items()}, plain / "model.safetensors"
    )
    for dtype in ("int8", "int4", "bf16"):
        logits = []
        for folder in (tmp_path / "q", plain):
            with Qwen3ForCausalLM(folder, dtype=dtype, kv_dtype="f16", cache=False) as model:
                logits.append(model.forward([1, 2, 3, 2001]))
        np.testing.assert_array_equal(*logits)


def test_ranks(tmp_path: Path) -> None:
    """A quantised model is cut over devices like another."""
    quantise, config = awq()
    quantised_copy(DEMO, tmp_path / "q", quantise, config)
    logits = []
    for ndev in (1, 2):
        with Qwen3ForCausalLM(tmp_path / "q", ndev=ndev, threads=2) as model:
            logits.append(model.forward([1, 2, 3, 2001]))
    assert np.abs(logits[0] - logits[1]).max() < 1e-3 * logits[0].std()


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("act_order", [False, True])
def test_packed_weights_are_kept(act_order: bool, tmp_path: Path) -> None:
    """Codes of a checkpoint are kept on disk as int8 is, and read back to the bit."""
    quantised_copy(DEMO, tmp_path / "q", *gptq(act_order=act_order))
    logits = []
    for state in (WeightCache.ABSENT, WeightCache.LOADED):
        with Qwen3ForCausalLM(tmp_path / "q", cache_dir=tmp_path / "cache") as model:
            assert model.stats()["weight_cache"] == state
            logits.append(model.forward([1, 2, 3, 2001]))
    np.testing.assert_array_equal(*logits)
    edit_json(
        tmp_path / "q" / "config.json",
        quantization_config={**GPTQ, "checkpoint_format": "gptq_v2"},
    )
    with Qwen3ForCausalLM(tmp_path / "q", cache_dir=tmp_path / "cache") as model:
        assert model.stats()["weight_cache"] == WeightCache.STALE
    quantised_copy(DEMO, tmp_path / "fp8", *fp8())
    with Qwen3ForCausalLM(tmp_path / "fp8", cache_dir=tmp_path / "cache") as model:
        assert model.stats()["weight_cache"] == WeightCache.UNUSED


def test_shards_without_an_index(tmp_path: Path) -> None:
    spec = CheckpointSpec("sharded", max_shard_size="60KB", tied=False)
    folder = make_checkpoint(spec, tmp_path)
    with Qwen3ForCausalLM(folder) as model:
        expected = model.forward([1, 2, 3])
    (folder / "model.safetensors.index.json").unlink()
    with Qwen3ForCausalLM(folder) as model:
        np.testing.assert_array_equal(model.forward([1, 2, 3]), expected)
    shards = sorted(folder.glob("*.safetensors"))
    count = len(shards)
    assert count > 2
    shards[1].rename(folder / "other.safetensors")
    with pytest.raises(SafetensorsError, match=r"not clear which.*other\.safetensors"):
        Qwen3ForCausalLM(folder)
    (folder / "other.safetensors").unlink()
    with pytest.raises(SafetensorsError, match=f"has {count - 1} of {count} shards, and no model"):
        Qwen3ForCausalLM(folder)


def test_single_file_of_another_name(tmp_path: Path) -> None:
    """AutoGPTQ names its only file after the settings."""
    quantised_copy(DEMO, tmp_path / "q", *gptq())
    (tmp_path / "q" / "model.safetensors").rename(
        tmp_path / "q" / "gptq_model-4bit-32g.safetensors"
    )
    with Qwen3ForCausalLM(tmp_path / "q") as model:
        assert model.forward([1]).shape == (1, 2048)


@pytest.mark.parametrize("prefix", ["model.language_model.", "module.model.", "_orig_mod.model."])
def test_prefixes(prefix: str, tmp_path: Path) -> None:
    """As trainers leave them, with the parts of quantised matrices under the same names."""
    values = quantised_copy(DEMO, tmp_path / "q", *gptq())
    path = tmp_path / "q" / "model.safetensors"
    tensors = load_file(path)
    save_file({n.replace("model.", prefix, 1): t for n, t in tensors.items()}, path)
    meta, checkpoint = open_model(tmp_path / "q")
    names = CheckedTensors(meta, checkpoint).names
    up = names["ffn_up"][1]
    assert up == f"{prefix}layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(checkpoint[up].decoded(), values[f"{MODULE}.weight"])


def test_qwen3_weights_take_no_codes(tmp_path: Path) -> None:
    """The older struct has one dtype for all matrices, and no scales."""
    quantised_copy(DEMO, tmp_path / "q", *awq())
    with pytest.raises(WeightsError, match="AWQ int4: only Qwen3TensorList takes quantised"):
        Qwen3WeightsImpl(*open_model(tmp_path / "q"))


def test_resized_vocabulary(tmp_path: Path) -> None:
    """Any number of rows, also of a quantised head."""
    for tied in (True, False):
        spec = CheckpointSpec(f"m{tied}", d=64, dh=32, di=96, dvoc=301, tied=tied)
        source, folder = make_checkpoint(spec, tmp_path), tmp_path / f"q{tied}"
        quantise, config = gptq(8, 32)
        values = quantised_copy(source, folder, quantise, config, ("up_proj", "lm_head"))
        expected = forward(load_config(source), values, [300, 1])
        with Qwen3ForCausalLM(folder, dtype="f32") as model:
            assert np.abs(model.forward([300, 1]) - expected).max() < 3e-5 * expected.std()

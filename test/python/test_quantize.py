"""``qwen3-quantize``: what it writes, read by compressed-tensors and by transformers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from gguf import GGMLQuantizationType as Type
from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.checkpoint.errors import SafetensorsError
from infinicore_infer.checkpoint.group_codes import group_codes
from infinicore_infer.tools import quantize as tool
from python.helpers import DEMO, copy_folder, edit_json
from qwen3 import Qwen3ForCausalLM
from reference.gguf_files import hf_values, write_gguf
from reference.random_checkpoint import CheckpointSpec, make_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module", params=["int8", "int4"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The demo model as int8 and as int4."""
    folder = tmp_path_factory.mktemp("made") / "model"
    assert tool.main([str(DEMO), str(folder), "--dtype", request.param]) == 0
    return folder, request.param


def _decompressed(folder: Path) -> dict[str, Any]:
    """Returns the values as the compressed-tensors package unpacks them."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    groups = {name: QuantizationScheme(**group) for name, group in config["config_groups"].items()}
    tensors = load_file(folder / "model.safetensors")
    values = {name: t.float().numpy() for name, t in tensors.items() if t.dtype == torch.bfloat16}
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    for name in [name for name in tensors if name.endswith("weight_packed")]:
        module = name.removesuffix(".weight_packed")
        parts = {
            part: tensors[f"{module}.{part}"]
            for part in ("weight_packed", "weight_scale", "weight_shape")
        }
        # In float32: the package multiplies in the type of the scales.
        parts["weight_scale"] = parts["weight_scale"].float()
        first = ".layers.0." in name and "group_1" in groups
        scheme = groups["group_0" if first or len(groups) == 1 else "group_1"]
        unpacked = compressor.decompress(parts, scheme)["weight"]
        values[f"{module}.weight"] = unpacked.numpy()
        del values[f"{module}.weight_scale"]
    return values


def test_read_by_compressed_tensors(made: tuple[Path, str]) -> None:
    """The package and our reader see the same values, near the original ones."""
    folder, dtype = made
    theirs, ours, original = _decompressed(folder), Checkpoint(folder), hf_values(DEMO)
    assert set(theirs) == set(ours) == set(original)
    for name, value in original.items():
        np.testing.assert_array_equal(ours[name].decoded(), theirs[name], name)
        if "_proj" not in name:
            np.testing.assert_array_equal(theirs[name], value)
            continue
        groups = value.reshape(len(value), -1, 32)
        error = np.abs(theirs[name].reshape(groups.shape) - groups).max(2)
        steps = 127 if dtype == "int8" or ".layers.0." in name else 7
        # Half a step; in 4 bits the best scale may cut off the largest weight.
        limit = np.abs(groups).max(2) / steps * (0.51 if steps == 127 else 1.6)
        assert (error <= limit).all(), name


def test_loaded_by_transformers(made: tuple[Path, str]) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    folder, _ = made
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = [5, 6, 7, 2001, 9]
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].float().numpy()
    with Qwen3ForCausalLM(folder, dtype="f32") as ours:
        logits = ours.forward(tokens)
    assert np.abs(logits - expected).max() < 0.02 * expected.std()


def test_scales_reach_the_largest_weight() -> None:
    """In 8 bits no weight is cut off: scales are rounded up."""
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((200, 64)).astype(np.float32)
    _, scales = group_codes(matrix, 8)
    reach = 127 * (scales.astype(np.uint32) << 16).view(np.float32)
    largest = np.abs(matrix.reshape(200, 2, 32)).max(2)
    assert (reach >= largest).all() and (reach <= largest * 1.01).all()


def test_answers(made: tuple[Path, str]) -> None:
    with Qwen3ForCausalLM(made[0]) as model:
        assert str(model.chat(QUESTION, enable_thinking=False, temperature=0)) == ANSWER


def test_from_gguf(tmp_path: Path) -> None:
    """With tokenizer and settings, as transformers reads them."""
    write_gguf(DEMO, tmp_path / "demo.gguf", Type.Q8_0)
    folder = tmp_path / "int8"
    tool.quantize(tmp_path / "demo.gguf", folder, "int8")
    with Qwen3ForCausalLM(folder) as model:
        assert str(model.chat(QUESTION, enable_thinking=False, temperature=0)) == ANSWER
        assert model.meta.end_tokens == [2002, 2000]
        theirs = AutoTokenizer.from_pretrained(folder)
        text = theirs.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
        assert text == model.chat_prompt(QUESTION)
        assert theirs.encode(text) == model.encode(text)


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool.quantize(DEMO, tmp_path / "one", "int4")
    monkeypatch.setattr(tool, "_SHARD_BYTES", 600_000)
    tool.quantize(DEMO, tmp_path / "many", "int4")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2 and set(index["weight_map"].values()) == set(files)
    one, many = load_file(tmp_path / "one" / "model.safetensors"), {}
    for name in files:
        many |= load_file(tmp_path / "many" / name)
    assert set(one) == set(many) and all(torch.equal(one[name], many[name]) for name in one)
    assert set(Checkpoint(tmp_path / "many")) == set(Checkpoint(tmp_path / "one"))


def test_untied_and_extreme_weights(tmp_path: Path) -> None:
    """Groups of zeros, of one weight, of tiny and of large ones."""
    source = make_checkpoint(CheckpointSpec("m", d=64, dh=32, di=96, tied=False), tmp_path)
    path = source / "model.safetensors"
    tensors = load_file(path)
    up = tensors["model.layers.0.mlp.up_proj.weight"]
    up[0] = 0
    up[1, 1:] = 0
    up[2] *= 1e-30
    up[3] *= 1e30
    up[4, 0] = -up[4].abs().max() * 3
    save_file(tensors, path)
    for dtype in ("int8", "int4"):
        tool.quantize(source, tmp_path / dtype, dtype)
        checkpoint = Checkpoint(tmp_path / dtype)
        values = checkpoint["model.layers.0.mlp.up_proj.weight"].decoded()
        expected = up.numpy()
        size = np.abs(expected.reshape(96, -1, 32)).max(2, keepdims=True)
        error = np.abs((values - expected).reshape(96, -1, 32))
        assert (error <= size * (0.005 if dtype == "int8" else 0.2)).all()
        assert (values[0] == 0).all() and values[1, 0] == pytest.approx(expected[1, 0], rel=0.01)
        assert checkpoint["lm_head.weight"].dtype == "F32"


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is left of a copy that failed, and nothing is overwritten."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    assert tool.main([str(DEMO), str(kept), "--dtype", "int8"]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    odd = make_checkpoint(CheckpointSpec("odd", d=48), tmp_path)
    assert tool.main([str(odd), str(tmp_path / "x"), "--dtype", "int8"]) == 1
    assert (
        "groups of 32: model.layers.0.self_attn.q_proj.weight [64, 48]" in capsys.readouterr().err
    )
    bad = copy_folder(DEMO, tmp_path)
    tensors = load_file(bad / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][7, 7] = float("nan")
    save_file(tensors, bad / "model.safetensors")
    assert tool.main([str(bad), str(tmp_path / "x"), "--dtype", "int8"]) == 1
    assert "layers.2.mlp.up_proj.weight has NaN" in capsys.readouterr().err
    edit_json(bad / "config.json", quantization_config=7)
    with pytest.raises(SafetensorsError, match="must be an object"):
        tool.quantize(bad, tmp_path / "x", "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "kept", "odd"]
    assert (kept / "file").read_text() == "mine"

"""Checkpoint tensors against the configuration: pointers, and one error that names them all."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.checkpoint.weights import (
    Qwen3TensorList,
    Qwen3WeightsImpl,
    Qwen3WeightsNaming,
    WeightsError,
    field_shapes,
)
from libinfinicore_infer import DataType, Qwen3ModelOptions, TensorRole
from python.helpers import edit_json
from qwen3 import Qwen3ForCausalLM
from reference.random_checkpoint import CheckpointSpec, make_checkpoint
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Q0 = "model.layers.0.self_attn.q_proj"


def build(folder: Path) -> tuple[Qwen3MetaFromConfig, Checkpoint, Qwen3WeightsImpl]:
    meta, checkpoint = Qwen3MetaFromConfig(folder), Checkpoint(folder)
    return meta, checkpoint, Qwen3WeightsImpl(meta, checkpoint)


def change(folder: Path, edit: Callable[[Tensors], object]) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return folder


def make(parent: Path, **spec: object) -> Path:
    return make_checkpoint(CheckpointSpec("m", **spec), parent)  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", [None, "20KB"])
def test_pointers_lead_to_the_values(
    bias: bool, tied: bool, shard: str | None, tmp_path: Path
) -> None:
    folder = make(tmp_path, bias=bias, tied=tied, max_shard_size=shard, nlayer=3)
    meta, checkpoint, weights = build(folder)
    expected = {
        name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()
    }
    naming = Qwen3WeightsNaming()
    assert weights.transpose_linear_weights == 1 and weights.nlayer == 3
    assert bool(weights.output_embd) == (not tied)
    assert not weights.attn_qkv and not weights.ffn_gate_up and not weights.attn_qkv_b
    for field, shape in field_shapes(meta).items():
        if (field == "output_embd" and tied) or (field.endswith("_b") and not bias):
            assert not getattr(weights, field)
            continue
        name = getattr(naming, field)
        pointers = getattr(weights, field)
        found = (
            [(name(), pointers)]
            if isinstance(pointers, int)
            else [(name(i), pointers[i]) for i in range(3)]
        )
        for tensor_name, address in found:
            size = int(np.prod(shape))
            values = np.ctypeslib.as_array((ctypes.c_float * size).from_address(address))
            np.testing.assert_array_equal(
                values.reshape(shape), expected[tensor_name].numpy(), err_msg=tensor_name
            )
    checkpoint.close()


def test_all_problems_in_one_message(tmp_path: Path) -> None:
    def edit(t: Tensors) -> None:
        del t["model.norm.weight"]
        del t["model.layers.1.mlp.up_proj.weight"]
        t["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)
        t[f"{Q0}.weight"] = t[f"{Q0}.weight"].T
        t["model.layers.0.self_attn.k_norm.weight"] = torch.zeros(16, dtype=torch.int32)

    folder = change(make(tmp_path, nh=6), edit)
    with pytest.raises(WeightsError) as caught:
        build(folder)
    text = str(caught.value)
    for words in (
        "model.norm.weight",
        "model.layers.1.mlp.up_proj.weight",
        f"{Q0}.weight is [64, 96], not [96, 64]",
        "k_norm.weight is I32",
        "config.json",
    ):
        assert words in text, words
    assert "model.layers.7.mlp.up_proj.weight" not in text  # a tensor too many does no harm


def test_long_lists_are_cut_and_counted(tmp_path: Path) -> None:
    folder = make(tmp_path, nlayer=2)
    edit_json(folder / "config.json", num_hidden_layers=9, layer_types=...)
    with pytest.raises(WeightsError) as caught:
        build(folder)
    assert "(77 in all)" in str(caught.value) and len(str(caught.value)) < 2000


def test_tied_with_a_stored_head_and_untied_without(tmp_path: Path) -> None:
    def add_head(t: Tensors) -> None:
        t["lm_head.weight"] = t["model.embed_tokens.weight"].clone()

    folder = change(make(tmp_path, tied=True), add_head)
    assert not build(folder)[2].output_embd
    change(folder, lambda t: t.pop("lm_head.weight"))
    edit_json(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(WeightsError, match=r"lm_head\.weight is missing although"):
        build(folder)


def test_a_head_of_its_own_although_the_config_says_tied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Trainers leave such checkpoints; the head counts, as in a checkpoint that says untied."""
    folder = make(tmp_path, tied=True)

    def other_head(t: Tensors) -> None:
        head = t["model.embed_tokens.weight"].clone()
        head[-1, -1] += 1
        t["lm_head.weight"] = head

    change(folder, other_head)
    tokens = [1, 2, 3]
    with Qwen3ForCausalLM(folder) as model:
        logits = model.forward(tokens)
        assert model.meta.tie_word_embeddings is False
    assert "lm_head.weight differs" in caplog.text
    edit_json(folder / "config.json", tie_word_embeddings=False)
    with Qwen3ForCausalLM(folder) as model:
        np.testing.assert_array_equal(model.forward(tokens), logits)
    caplog.clear()
    change(folder, lambda t: t.pop("lm_head.weight"))
    edit_json(folder / "config.json", tie_word_embeddings=True)
    with Qwen3ForCausalLM(folder) as model:
        assert not np.array_equal(model.forward(tokens), logits)
    assert not caplog.text


def test_tensors_too_many_are_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def add(t: Tensors) -> None:
        t["v_head.summary.weight"] = torch.zeros(2)
        t["score.weight"] = torch.zeros(2, dtype=torch.int8)
        t["other"] = torch.zeros(2, dtype=torch.complex64)
        t["scale"] = torch.zeros(3).to(torch.float8_e8m0fnu)

    build(change(make(tmp_path), add))
    assert "not used: other, scale, score.weight, v_head.summary.weight" in caplog.text


def test_dtypes_that_are_not_known_are_refused_where_they_count(tmp_path: Path) -> None:
    def cast(t: Tensors) -> None:
        t["model.norm.weight"] = t["model.norm.weight"].to(torch.complex64)

    with pytest.raises(WeightsError, match=r"norm\.weight is C64"):
        build(change(make(tmp_path), cast))


def test_absurd_numbers_of_layers(tmp_path: Path) -> None:
    folder = make(tmp_path)
    edit_json(folder / "config.json", num_hidden_layers=2**31 - 1, layer_types=...)
    with pytest.raises(WeightsError, match=r"num_hidden_layers.*2147483647.*tensors"):
        build(folder)


@pytest.mark.parametrize("prefix", ["model.language_model.", "_orig_mod.model.", "base_model."])
def test_other_prefixes(tmp_path: Path, prefix: str) -> None:
    def rename(t: Tensors) -> None:
        for name in list(t):
            given = prefix.removesuffix("model.") if prefix.startswith("_") else ""
            new = given + name if name == "lm_head.weight" else name.replace("model.", prefix, 1)
            t[new] = t.pop(name)

    folder = make(tmp_path, tied=False)
    with Qwen3ForCausalLM(folder) as model:
        expected = model.forward([1, 2, 3])
    with Qwen3ForCausalLM(change(folder, rename)) as model:
        np.testing.assert_array_equal(model.forward([1, 2, 3]), expected)


def test_files_may_go_once_a_model_is_loaded(tmp_path: Path) -> None:
    folder = make(tmp_path, tied=False)
    with Qwen3ForCausalLM(folder) as model:
        expected = model.forward([1, 2, 3])
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(8)
        np.testing.assert_array_equal(model.forward([1, 2, 3]), expected)


def test_biases_must_agree_with_the_config(tmp_path: Path) -> None:
    folder = make(tmp_path, bias=True)
    edit_json(folder / "config.json", attention_bias=False)
    with pytest.raises(WeightsError, match=r"'attention_bias' is false but.*q_proj\.bias"):
        build(folder)
    edit_json(folder / "config.json", attention_bias=True)
    change(folder, lambda t: t.pop(f"{Q0}.bias"))
    with pytest.raises(WeightsError, match=rf"'attention_bias' is true but.*{Q0}\.bias"):
        build(folder)


def test_names_without_prefix_and_old_buffers(tmp_path: Path) -> None:
    def strip(t: Tensors) -> None:
        for name in list(t):
            t[name.removeprefix("model.")] = t.pop(name)
        t["layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    weights = build(change(make(tmp_path), strip))[2]
    assert weights.naming.prefix == "" and weights.attn_q[1]


def test_dtypes(tmp_path: Path) -> None:
    norms_f32 = make(tmp_path, dtype="bf16")

    def widen(t: Tensors) -> None:
        for name in t:
            if "norm" in name:
                t[name] = t[name].float()

    weights = build(change(norms_f32, widen))[2]
    assert (weights.dt_norm, weights.dt_mat) == (DataType.F32, DataType.BF16)

    def mix(t: Tensors) -> None:
        t[f"{Q0}.weight"] = t[f"{Q0}.weight"].half()

    with pytest.raises(WeightsError, match=rf"matrices.*mixed.*F16: {Q0}\.weight"):
        build(change(norms_f32, mix))


def test_list_names_every_tensor_with_its_own_dtype(tmp_path: Path) -> None:
    folder = make(tmp_path, dtype="bf16", tied=False, bias=True, nlayer=2)
    half = {f"{Q0}.weight": torch.float16, "model.layers.1.self_attn.q_norm.weight": torch.float32}
    change(folder, lambda t: t.update({name: t[name].to(dtype) for name, dtype in half.items()}))
    meta, checkpoint = Qwen3MetaFromConfig(folder), Checkpoint(folder)
    found = Qwen3TensorList(meta, checkpoint)
    options = Qwen3ModelOptions()
    found.attach(options)
    assert options.ntensors == len(found.array) == len(checkpoint)
    naming, shapes = Qwen3WeightsNaming(), field_shapes(meta)
    seen = set()
    for i in range(options.ntensors):
        tensor = options.tensors[i]
        field = TensorRole(tensor.role).name.lower()
        in_layer = field not in ("input_embd", "output_norm", "output_embd")
        name = getattr(naming, field)(*([tensor.layer] if in_layer else []))
        seen.add(name)
        assert in_layer or tensor.layer == 0
        assert (tensor.rows, tensor.cols) == (*shapes[field], 1)[:2]
        assert tensor.data == checkpoint[name].address
        assert DataType(tensor.dtype).name == checkpoint[name].dtype
        assert (tensor.row_stride, tensor.layout, tensor.scales) == (0, 0, None)
    assert seen == set(checkpoint)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
def test_checkpoints_of_mixed_dtypes_load(dtype: str, tmp_path: Path) -> None:
    """The same values in other dtypes make the same model."""
    folder = make(tmp_path, dtype="bf16", tied=False)
    tokens = [3, 1, 4, 1, 5]
    with Qwen3ForCausalLM(folder, dtype=dtype, cache=False, threads=2) as model:
        expected = model.forward(tokens)

    def mix(t: Tensors) -> None:
        for i, name in enumerate(sorted(t)):
            if i % 2 == 0 or "norm" in name:
                t[name] = t[name].float()

    with Qwen3ForCausalLM(change(folder, mix), dtype=dtype, cache=False, threads=2) as model:
        np.testing.assert_array_equal(model.forward(tokens), expected)


def test_a_file_cut_short_while_head_and_embedding_are_compared(tmp_path: Path) -> None:
    """An error, and no SIGBUS; the same when all is there."""
    folder = make(tmp_path, tied=True)
    program = (
        "import os, sys; from pathlib import Path\n"
        "from infinicore_infer.checkpoint.checkpoint import Checkpoint\n"
        "from infinicore_infer.checkpoint.tensor import same_values\n"
        "folder = Path(sys.argv[1]); tensors = Checkpoint(folder)\n"
        "weight = tensors['model.embed_tokens.weight']\n"
        "assert same_values(weight, weight)\n"
        "os.truncate(folder / 'model.safetensors', 0)\n"
        "try:\n    same_values(weight, weight)\n"
        "except OSError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{done.returncode} {done.stderr}"
    assert "model.safetensors" in done.stdout and "cut short" in done.stdout

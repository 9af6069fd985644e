"""Checkpoints that transformers loads although something in them is unusual: the same logits here.

The expectation is transformers in float32 on the same folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from infinicore_infer.checkpoint.checkpoint import Checkpoint
from python.helpers import copy_folder, edit_json
from qwen3 import Qwen3ForCausalLM
from reference.random_checkpoint import CheckpointSpec, make_checkpoint
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
CONTEXT = 64
TOKENS = [7 * i % 250 for i in range(40)]
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Sizes for which transformers' defaults of keys fit.
    spec = CheckpointSpec("plain", d=32, nh=32, nkvh=32, dh=128, di=32, tied=False, dctx=CONTEXT)
    return make_checkpoint(spec, tmp_path_factory.mktemp("as_transformers"))


def assert_same(folder: Path, max_tokens: int | None = None) -> None:
    """The logits are transformers'; ``folder`` is loaded by both."""
    loaded = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = loaded(torch.tensor([TOKENS])).logits[0].numpy()
    with Qwen3ForCausalLM(folder, threads=1, max_tokens=max_tokens, cache=False) as model:
        actual = model.forward(TOKENS)
    assert np.isfinite(expected).all() and expected.std() > 0.1
    assert float(np.abs(actual - expected).max() / expected.std()) < 3e-5


def scaled(rope_type: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **settings}}


WINDOWS = {"use_sliding_window": True, "layer_types": ...}
CONFIGS: dict[str, dict[str, Any]] = {
    "swish": {"hidden_act": "swish"},
    "dynamic": scaled("dynamic", factor=2.0),
    "unknown_setting": scaled("linear", factor=2.0, finetuned=True),
    "yarn_without_original": scaled("yarn", factor=2.0),
    "yarn_original_outside": {
        **scaled("yarn", factor=2.0, original_max_position_embeddings=16),
        "original_max_position_embeddings": 32,
    },
    "yarn_factor_null": scaled("yarn", factor=None, original_max_position_embeddings=32),
    "llama3_without_original": scaled(
        "llama3", factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0
    ),
    "window_as_long_as_the_context": {
        **WINDOWS,
        "sliding_window": CONTEXT,
        "max_window_layers": 0,
    },
    "window_null": {**WINDOWS, "sliding_window": None, "max_window_layers": 0},
    "window_default": {**WINDOWS, "sliding_window": ..., "max_window_layers": 0},
    "window_beyond_the_layers": {**WINDOWS, "sliding_window": 8, "max_window_layers": 2},
    "window_layers_default": {**WINDOWS, "sliding_window": 8, "max_window_layers": ...},
    "window_but_full_layers": {
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 0,
    },
    "long_windows_by_layer": {
        "use_sliding_window": True,
        "sliding_window": 4096,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "key_value_heads_null": {"num_key_value_heads": None},
    **{
        f"without_{key}": {key: ...}
        for key in (
            "attention_bias",
            "eos_token_id",
            "head_dim",
            "hidden_act",
            "max_position_embeddings",
            "num_key_value_heads",
            "rms_norm_eps",
            "rope_parameters",
            "tie_word_embeddings",
        )
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(name: str, plain: Path, tmp_path: Path) -> None:
    folder = copy_folder(plain, tmp_path)
    edit_json(folder / "config.json", **CONFIGS[name])
    assert_same(folder)


def test_an_empty_path_is_not_the_working_directory() -> None:
    with pytest.raises(ValueError, match="the model path is empty"):
        Qwen3ForCausalLM("")


def test_a_window_that_a_shorter_context_never_fills(plain: Path, tmp_path: Path) -> None:
    folder = copy_folder(plain, tmp_path)
    changes = {**WINDOWS, "sliding_window": len(TOKENS), "max_window_layers": 1}
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=r"'sliding_window' is 40, shorter than .* 64 tokens"):
        Qwen3ForCausalLM(folder, threads=1)
    assert_same(folder, max_tokens=len(TOKENS))


def test_dynamic_scaling_is_told_of(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_folder(plain, tmp_path)
    edit_json(folder / "config.json", **scaled("dynamic", factor=2.0))
    with Qwen3ForCausalLM(folder, threads=1) as model:
        assert model.meta.dctx == CONTEXT
    assert "'dynamic'" in caplog.text and str(folder / "config.json") in caplog.text


def converted(dtype: torch.dtype, part: str = "") -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: t.to(dtype) if part in n else t for n, t in tensors.items()}


@pytest.mark.parametrize(
    "convert",
    [
        converted(torch.float64),
        converted(torch.float64, "norm"),
        converted(torch.float8_e4m3fn),
        converted(torch.float8_e5m2, "proj"),
    ],
    ids=["f64", "f64_norms", "e4m3", "e5m2"],
)
def test_other_floats(convert: Callable[[Tensors], Tensors], plain: Path, tmp_path: Path) -> None:
    folder = copy_folder(plain, tmp_path)
    tensors = {n: t * (1 + 1e-9) for n, t in load_file(folder / SINGLE).items()}
    save_file(convert(tensors), folder / SINGLE, metadata={"format": "pt"})
    edit_json(folder / "config.json", dtype="float64")
    assert_same(folder)


def in_shards(folder: Path, subfolder: str = "") -> dict[str, str]:
    """Puts the tensors of a checkpoint into two shards, and returns its index."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(tensors)
    (folder / subfolder).mkdir(exist_ok=True)
    index = {}
    for number in range(2):
        shard = str(Path(subfolder) / f"part-{number}.safetensors")
        kept = names[number::2]
        save_file({n: tensors[n] for n in kept}, folder / shard, metadata={"format": "pt"})
        index |= dict.fromkeys(kept, shard)
    return index


def write_index(folder: Path, index: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_shards_in_a_subfolder(plain: Path, tmp_path: Path) -> None:
    folder = copy_folder(plain, tmp_path)
    write_index(folder, in_shards(folder, "weights"))
    assert_same(folder)


@pytest.mark.parametrize("kind", ["ghost", "unlisted", "elsewhere"])
def test_an_index_that_is_not_up_to_date(
    kind: str, plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_folder(plain, tmp_path)
    index = in_shards(folder)
    name = "model.layers.0.mlp.up_proj.weight"
    if kind == "ghost":
        index["model.layers.9.mlp.up_proj.weight"] = index[name]
    elif kind == "unlisted":
        del index[name]
    else:
        index[name] = index["model.norm.weight"]
    write_index(folder, index)
    assert_same(folder)
    words = {"ghost": "model.layers.9.mlp", "unlisted": name, "elsewhere": ""}
    assert words[kind] in caplog.text


@pytest.mark.parametrize("place", ["../out.safetensors", "/etc/passwd", "x/../../out", "", "."])
def test_shards_outside_of_the_folder(place: str, plain: Path, tmp_path: Path) -> None:
    folder = copy_folder(plain, tmp_path)
    index = in_shards(folder)
    index["model.norm.weight"] = place
    write_index(folder, index)
    with pytest.raises(ValueError, match=r"index\.json: tensor 'model\.norm\.weight': bad file"):
        Checkpoint(folder)

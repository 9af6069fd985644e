"""config.json in both its forms, official sizes, and everything that must be refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.checkpoint.config_reader import ConfigError, ConfigKeyError
from infinicore_infer.checkpoint.opening import open_model
from infinicore_infer.checkpoint.weights import field_shapes
from libinfinicore_infer import DataType, Qwen3ModelOptions, RopeType
from python.helpers import OFFICIAL, edit_json, published_config
from reference.random_checkpoint import CheckpointSpec, make_checkpoint
from transformers import Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


@pytest.mark.parametrize("size", OFFICIAL)
def test_official_sizes(size: str) -> None:
    meta = Qwen3MetaFromConfig(published_config(size))
    shape = OFFICIAL[size]
    assert meta.parameter_count == shape["count"]
    assert (meta.nlayer, meta.d, meta.nh, meta.nkvh, meta.dh, meta.di) == (
        shape["nlayer"],
        shape["d"],
        shape["nh"],
        shape["nkvh"],
        128,
        shape["di"],
    )
    assert (meta.dctx, meta.dvoc, meta.theta, meta.end_token) == (40960, 151936, 1e6, 151645)
    assert meta.epsilon == pytest.approx(1e-6)
    assert meta.dt_logits == DataType.BF16
    assert meta.tie_word_embeddings == shape["tied"]


def _count_by_shapes(meta: Qwen3MetaFromConfig) -> int:
    total = 0
    for field, shape in field_shapes(meta).items():
        if field == "output_embd" and meta.tie_word_embeddings:
            continue
        if field.endswith("_b") and not meta.attention_bias:
            continue
        layers = 1 if field in ("input_embd", "output_norm", "output_embd") else meta.nlayer
        total += layers * math.prod(shape)
    return total


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_count_of_a_non_official_shape(tied: bool, bias: bool, head_dim: int) -> None:
    """26 layers with as many key heads as query heads, and theta 1e4."""
    config = published_config(
        hidden_size=2048,
        num_hidden_layers=26,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=head_dim,
        rope_theta=10000.0,
        tie_word_embeddings=tied,
        attention_bias=bias,
    )
    meta = Qwen3MetaFromConfig(config)
    assert meta.theta == 1e4
    assert field_shapes(meta)["attn_k"] == (32 * head_dim, 2048)
    assert meta.parameter_count == _count_by_shapes(meta)


def test_transformers_form_equals_published_form(tmp_path: Path) -> None:
    published = published_config()
    config = Qwen3Config(**{k: v for k, v in published.items() if k != "transformers_version"})
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in written and "rope_theta" not in written
    edit_json(tmp_path / "config.json", dtype="bfloat16", torch_dtype=...)
    ours, theirs = Qwen3MetaFromConfig(published), Qwen3MetaFromConfig(tmp_path)
    for name, _ in Qwen3MetaFromConfig._fields_:
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "model_type",
    ],
)
def test_missing_key_names_file_and_key(key: str, tmp_path: Path) -> None:
    config = published_config()
    del config[key]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigKeyError) as caught:
        Qwen3MetaFromConfig(path)
    assert isinstance(caught.value, KeyError)
    assert key in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (
            {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 27},
            "'sliding_window' is 4096, shorter than the context of 40960",
        ),
        (
            {"use_sliding_window": True, "sliding_window": "x", "max_window_layers": 1},
            "sliding_window",
        ),
        ({"use_sliding_window": 1}, "use_sliding_window"),
        (
            {"use_sliding_window": True, "max_window_layers": "1", "sliding_window": 8},
            "max_window_layers",
        ),
        ({"layer_types": ["full_attention"] * 27 + ["sliding_attention"]}, "sliding_attention"),
        ({"layer_types": ["full_attention"] * 27 + ["chunked_attention"]}, "chunked_attention"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "qwen3_next"}, "'qwen3' and 'qwen3_moe'"),
        ({"num_experts": 128}, "although there are experts"),
        ({"model_type": "llama"}, "llama"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"is_causal": False}, "is_causal"),
        ({"per_layer_config": {"1": {"intermediate_size": 64}}}, "per_layer_config"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "factor"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope.*each request's length"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "spiral"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, "type"),
        ({"rope_scaling": 4}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "full_attention"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": "1024"}, "hidden_size"),
        ({"hidden_size": 1024.0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"rms_norm_eps": 10**9999}, "rms_norm_eps"),
        ({"hidden_size": 10**400}, "hidden_size"),
        ({"head_dim": 127}, "head_dim"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"torch_dtype": "int8"}, "int8"),
        ({"eos_token_id": [1, "x"]}, "eos_token_id"),
    ],
)
def test_refusals_name_the_reason(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Qwen3MetaFromConfig(published_config(**changes))


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", "\ufeff{}", '"x"', "[" * 100_000, '{"x": ' + "1" * 9999 + "}"]
)
def test_files_that_are_no_json_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"config\.json"):
        Qwen3MetaFromConfig(tmp_path)


def test_context(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert Qwen3MetaFromConfig(published_config(rope_scaling=yarn)).dctx == 131072
    longer = published_config(rope_scaling={**yarn, "factor": 1.1}, max_position_embeddings=40960)
    assert Qwen3MetaFromConfig(longer).dctx == 40960
    assert Qwen3MetaFromConfig(published_config(), max_tokens=100).dctx == 100
    for bad in (0, -1, 40961, 1.5, True):
        with pytest.raises(ValueError, match="max_tokens"):
            Qwen3MetaFromConfig(published_config(), max_tokens=bad)  # type: ignore[arg-type]


def test_end_tokens(tmp_path: Path) -> None:
    config = published_config()
    assert Qwen3MetaFromConfig(config).end_tokens == [151645]
    both = Qwen3MetaFromConfig(config, generation_config={"eos_token_id": [151643, 151645]})
    assert both.end_tokens == [151643, 151645] and both.end_token == 151643
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert Qwen3MetaFromConfig(tmp_path).end_tokens == [7]
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5}')
    assert Qwen3MetaFromConfig(tmp_path).end_tokens == [151645]
    assert Qwen3MetaFromConfig(published_config(eos_token_id=None)).end_tokens == []


def test_end_tokens_that_the_model_cannot_say(caplog: pytest.LogCaptureFixture) -> None:
    config = Qwen3MetaFromConfig(published_config(eos_token_id=[151936, 151645, -1]))
    assert config.end_tokens == [151645]
    assert "eos_token_id" in caplog.text and "151936" in caplog.text and "151935" in caplog.text


@pytest.mark.parametrize("given", [..., None, "auto"])
@pytest.mark.parametrize("stored", ["bf16", "f16", "f32"])
def test_a_missing_dtype_is_that_of_the_weights(given: object, stored: str, tmp_path: Path) -> None:
    spec = CheckpointSpec("small", nlayer=1, d=32, di=64, dvoc=64, dtype=stored)
    folder = make_checkpoint(spec, tmp_path)
    edit_json(folder / "config.json", dtype=..., torch_dtype=given)
    assert Qwen3MetaFromConfig(folder).dt_logits == DataType.parse(stored)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "model.safetensors",
        "shard.safetensors",
        "model.gguf",
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_files_that_are_no_files(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published_config()))
    if name.startswith("shard"):
        index = {"weight_map": {"model.norm.weight": name}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"{name}: is not a regular file"):
        open_model(tmp_path)


def test_dtype_override() -> None:
    assert Qwen3MetaFromConfig(published_config(), "float16").dt_logits == DataType.F16
    assert Qwen3MetaFromConfig(published_config(), DataType.F32).dt_logits == DataType.F32
    with pytest.raises(ValueError, match="unknown dtype"):
        Qwen3MetaFromConfig(published_config(), "f8")


@pytest.mark.parametrize(
    "scaling",
    [
        {"factor": 4.0},
        {"factor": 4.0, "attention_factor": 0.7},
        {"factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3},
        {"factor": 0.5},
    ],
)
def test_yarn_attention_factor_is_that_of_transformers(scaling: dict[str, float]) -> None:
    full = {"rope_type": "yarn", "original_max_position_embeddings": 32768, **scaling}
    meta = Qwen3MetaFromConfig(published_config(rope_scaling=full))
    config = Qwen3Config(head_dim=128, rope_parameters={**full, "rope_theta": 1e6})
    _, expected = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    assert meta.rope.attention_factor == pytest.approx(expected, rel=1e-6)


def test_scalings_reach_the_options() -> None:
    yarn = {
        "type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 1000,
        "beta_fast": 16,
        "truncate": False,
    }
    options = Qwen3ModelOptions()
    Qwen3MetaFromConfig(published_config(rope_scaling=yarn)).rope.apply(options)
    assert (options.rope_type, options.rope_factor, options.rope_original_ctx) == (2, 2.0, 1000)
    assert (options.rope_beta_fast, options.rope_beta_slow, options.rope_no_truncate) == (16, 1, 1)
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    Qwen3MetaFromConfig(published_config(rope_scaling=llama3)).rope.apply(options)
    assert options.rope_type == RopeType.LLAMA3
    assert (options.rope_low_freq_factor, options.rope_high_freq_factor) == (1.0, 4.0)
    assert options.rope_no_truncate == 0

"""GGUF files: weights, configuration and tokenizer, against the format's own package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.checkpoint.errors import GgufError
from infinicore_infer.checkpoint.gguf_blocks import DECODERS, TYPES, GgufMatrix
from infinicore_infer.checkpoint.opening import open_model
from python.helpers import DEMO, copy_folder
from qwen3 import Qwen3ForCausalLM
from reference.gguf_files import drop_key, encode, q4_k_m, set_key, write_gguf
from reference.qwen3_numpy import forward
from reference.random_checkpoint import CheckpointSpec, load_config, make_checkpoint

QUESTIONS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is 7 + 12?": "7 + 12 = 19.",
}
K_TYPES = [Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS]
OTHERS = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]


# ------------------------------------------------------------------ values


def test_sizes_of_blocks() -> None:
    for kind, (name, weights, size) in TYPES.items():
        assert Type(kind).name == name and gguf.GGML_QUANT_SIZES[Type(kind)] == (weights, size)


@pytest.mark.parametrize("kind", [*OTHERS, *K_TYPES])
def test_decoded_blocks(kind: Type) -> None:
    """Random bytes, so that every bit of a block matters, decode as the package decodes them."""
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(int(kind))
    blocks = rng.integers(0, 256, (60, size), dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        expected = dequantize(blocks.reshape(20, 3 * size), kind)
        shape = (20, 3 * weights)
        octets = blocks.reshape(20, 3 * size)
        matrix = GgufMatrix("x", kind.name, shape, Path("x"), int(kind), octets)
        np.testing.assert_array_equal(matrix.decoded(), expected)
        np.testing.assert_array_equal(matrix.decoded(3, 11), expected[3:11])


def _gguf_name(name: str) -> str:
    """Returns the package's name for a weight of Hugging Face's name."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 4)
    stem, _, ending = name.rpartition(".")
    return f"{names.get_name(stem)}.{ending}"


FILES: dict[str, Any] = {
    "F32": Type.F32,
    "F16": Type.F16,
    "BF16": Type.BF16,
    **{kind.name: kind for kind in OTHERS},
    "Q4_K_M": q4_k_m,
}


@pytest.mark.parametrize("form", FILES)
def test_answers(form: str, tmp_path: Path) -> None:
    """The demo model in each type: the weights to the bit, and it knows what it knew."""
    path = tmp_path / "demo.gguf"
    values = write_gguf(DEMO, path, FILES[form])
    checkpoint = Checkpoint(path)
    assert set(checkpoint) == {_gguf_name(name) for name in values}
    for name, value in values.items():
        np.testing.assert_array_equal(checkpoint[_gguf_name(name)].decoded(), value)
    checkpoint.close()
    with Qwen3ForCausalLM(path, threads=2) as model:
        for question, answer in QUESTIONS.items():
            result = model.chat(
                [{"role": "user", "content": question}], enable_thinking=False, temperature=0
            )
            assert (str(result), result.finish_reason) == (answer, "stop")


@pytest.mark.parametrize("kind", [*K_TYPES, Type.Q5_1])
@pytest.mark.parametrize("tied", [True, False])
def test_logits(kind: Type, tied: bool, tmp_path: Path) -> None:
    """Whole models of one type, embedding included, against the oracle's float64."""
    spec = CheckpointSpec(
        "m", nlayer=1, d=256, nh=4, nkvh=1, dh=64, di=256, dvoc=70, tied=tied, seed=int(kind)
    )
    source = make_checkpoint(spec, tmp_path)
    path = tmp_path / "m.gguf"
    values = write_gguf(source, path, kind, tokenizer=False)
    tokens = [1 + 7 * i % 60 for i in range(30)]
    expected = forward(load_config(source), values, tokens)
    with Qwen3ForCausalLM(path, threads=2, dtype="f32") as model:
        assert not model.has_tokenizer
        logits = model.forward(tokens)
    assert np.abs(logits - expected).max() < 3e-5 * expected.std()


@pytest.mark.parametrize("bias", [False, True])
def test_fused_rows_and_rope(bias: bool, tmp_path: Path) -> None:
    """q, k and v as rows of one matrix; YaRN's settings; biases."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    spec = CheckpointSpec("m", dctx=128, bias=bias, rope=yarn, tied=False, seed=5)
    source = make_checkpoint(spec, tmp_path)
    values = write_gguf(source, tmp_path / "m.gguf", Type.Q8_0, tokenizer=False, fuse=True)
    tokens = [1 + 7 * i % 250 for i in range(60)]
    expected = forward(load_config(source), values, tokens)
    with Qwen3ForCausalLM(tmp_path / "m.gguf", dtype="f32") as model:
        assert model.context_length == 128
        assert np.abs(model.forward(tokens) - expected).max() < 3e-5 * expected.std()


def test_a_head_that_is_the_embedding_again(tmp_path: Path) -> None:
    """Some files of tied models have output.weight all the same."""
    spec = CheckpointSpec("m", seed=6)
    source = make_checkpoint(spec, tmp_path)

    def add_head(kind: Type) -> Callable[[gguf.GGUFWriter], object]:
        value = next(iter(v for n, v in hf.items() if n == "model.embed_tokens.weight"))
        return lambda writer: writer.add_tensor(
            "output.weight", encode(value, kind), raw_dtype=kind
        )

    hf = write_gguf(source, tmp_path / "plain.gguf", Type.F32, tokenizer=False)
    for name, kind, tied in (("same", Type.Q8_0, True), ("other", Type.Q5_0, False)):
        path = tmp_path / f"{name}.gguf"
        write_gguf(source, path, Type.Q8_0, tokenizer=False, change=add_head(kind))
        meta, checkpoint = open_model(path)
        assert meta.tie_word_embeddings is tied
        checkpoint.close()
        with Qwen3ForCausalLM(path) as model:
            model.forward([1])


# ------------------------------------------------------------------ files


def test_folder_and_parts(tmp_path: Path) -> None:
    """A folder with one model, and any part of one that is split, mean that model."""
    folder = tmp_path / "split"
    folder.mkdir()
    write_gguf(DEMO, folder / "demo", Type.Q8_0, split=20)
    parts = sorted(folder.glob("*.gguf"))
    assert len(parts) == 3 and parts[0].name == "demo-00001-of-00003.gguf"
    # The writer puts this into files that its split tool makes, but not here.
    single = tmp_path / "single"
    single.mkdir()
    write_gguf(DEMO, single / "demo.gguf", Type.Q8_0)
    logits = []
    for path in (single, single / "demo.gguf", folder, parts[0], parts[2]):
        with Qwen3ForCausalLM(path, threads=2) as model:
            logits.append(model.forward(model.encode("Hello")))
    for other in logits[1:]:
        np.testing.assert_array_equal(logits[0], other)
    write_gguf(DEMO, folder / "another.gguf", Type.F16)
    with pytest.raises(GgufError, match=r"2 GGUF models.*another\.gguf"):
        Qwen3ForCausalLM(folder)
    parts[1].unlink()
    with pytest.raises(GgufError, match=r"1 of 3 parts are missing: demo-00002"):
        Qwen3ForCausalLM(parts[0])
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(GgufError, match=r"00002.*'split\.no' is 2, not 1"):
        Qwen3ForCausalLM(parts[0])


def test_safetensors_beside_it_come_first(tmp_path: Path) -> None:
    folder = copy_folder(DEMO, tmp_path)
    write_gguf(DEMO, folder / "demo.gguf", Type.Q4_0)
    checkpoint = open_model(folder)[1]
    assert checkpoint.metadata is None and "model.embed_tokens.weight" in checkpoint
    checkpoint.close()


# ------------------------------------------------------------------ configuration


def test_config_is_the_same(tmp_path: Path) -> None:
    write_gguf(DEMO, tmp_path / "m.gguf", Type.BF16)
    theirs = Qwen3MetaFromConfig(DEMO)
    ours, checkpoint = open_model(tmp_path / "m.gguf")
    for name, _ in Qwen3MetaFromConfig._fields_:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.end_tokens == theirs.end_tokens == [2002, 2000]
    assert ours.rope == theirs.rope
    assert ours.tie_word_embeddings and not ours.attention_bias
    assert ours.generation_config == {}
    checkpoint.close()


def test_sampling_defaults(tmp_path: Path) -> None:
    """The file's, as newer converters write them; those of a generation_config.json beside it."""

    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_float32("general.sampling.temp", 0.6)
        writer.add_float32("general.sampling.top_p", 0.95)
        writer.add_int32("general.sampling.top_k", 20)

    path = tmp_path / "m.gguf"
    write_gguf(DEMO, path, Type.F32, change=change)
    with Qwen3ForCausalLM(path) as model:
        params = model.sampling_params()
        assert (params.temperature, params.top_k, params.top_p) == (0.6, 20, 0.95)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    with Qwen3ForCausalLM(path) as model:
        assert model.sampling_params().greedy and model.meta.end_tokens == [7]


def test_factor_of_yarn(tmp_path: Path) -> None:
    """There it multiplies what the factor gives, here it stands in its place."""

    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(512)
        writer.add_rope_scaling_attn_factors(1.5)

    write_gguf(DEMO, tmp_path / "m.gguf", Type.F16, change=change)
    meta, checkpoint = open_model(tmp_path / "m.gguf")
    assert meta.rope.attention_factor == pytest.approx(1.5 * (0.1 * np.log(4) + 1))
    assert meta.dctx == 2048
    checkpoint.close()


Change = Callable[[gguf.GGUFWriter], object]


def _tensor(name: str) -> Change:
    return lambda writer: writer.add_tensor(name, np.ones((2, 32), np.float32))


REFUSED: dict[str, tuple[Change, str]] = {
    "experts": (set_key("general.architecture", "qwen3moe"), "'qwen3moe.expert_count' is missing"),
    "another model": (set_key("general.architecture", "llama"), "'llama' is not supported"),
    "an adapter": (set_key("general.type", "adapter"), "'adapter', not a model"),
    "no head size": (drop_key("qwen3.attention.key_length"), "key_length' is missing"),
    "no base": (drop_key("qwen3.rope.freq_base"), "freq_base' is missing"),
    "text for a number": (set_key("qwen3.block_count", "4"), "block_count' is '4'"),
    "a fraction": (set_key("qwen3.block_count", 4.0), "block_count' is 4.0"),
    "other values": (set_key("qwen3.attention.value_length", 32), "value_length' is not 64"),
    "part of a head": (set_key("qwen3.rope.dimension_count", 32), "dimension_count' is not 64"),
    "a window": (set_key("qwen3.attention.sliding_window", 512), "sliding_window' is set"),
    "a scale": (set_key("qwen3.attention.scale", 0.5), "attention.scale' is 0.5"),
    "longrope": (
        lambda w: (set_key("qwen3.rope.scaling.type", "longrope")(w),
                   set_key("qwen3.rope.scaling.factor", 2.0)(w)),
        "'longrope' .known: none, linear, yarn",
    ),
    "heads by layer": (
        set_key("qwen3.attention.head_count", [6, 6, 3, 6]), "head_count' is an array of 4",
    ),
    "scales of tensors": (_tensor("blk.0.attn_q.scale"), "not supported: blk.0.attn_q.scale"),
    "frequencies": (_tensor("rope_freqs.weight"), "rope_freqs.weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str, tmp_path: Path) -> None:
    change, words = REFUSED[case]
    path = tmp_path / "m.gguf"
    write_gguf(DEMO, path, Type.F16, change=change)
    with pytest.raises(GgufError, match=words) as caught:
        Qwen3ForCausalLM(path)
    assert str(path) in str(caught.value)


def test_types_that_are_not_supported(tmp_path: Path) -> None:
    """All are named at once, before anything is decoded."""
    path = tmp_path / "m.gguf"

    def change(writer: gguf.GGUFWriter) -> None:
        original = writer.add_tensor

        def add(name: str, tensor: Any, *args: Any, **kwargs: Any) -> None:
            kind = {"blk.0.ffn_down.weight": Type.TQ1_0, "blk.3.ffn_down.weight": Type.MXFP4}
            if name in kind:
                weights, size = gguf.GGML_QUANT_SIZES[kind[name]]
                tensor = np.zeros((192, 512 // weights * size), np.uint8)
                return original(name, tensor, raw_dtype=kind[name])
            return original(name, tensor, *args, **kwargs)

        writer.add_tensor = add

    write_gguf(DEMO, path, Type.Q8_0, change=change)
    with pytest.raises(ValueError, match=r"not supported: blk\.0.* is TQ1_0, blk\.3.* is MXFP4"):
        Qwen3ForCausalLM(path)


def test_every_supported_type_has_a_number() -> None:
    numbers = {kind for kind, (name, _, _) in TYPES.items() if name in DECODERS}
    assert numbers == {int(kind) for kind in (*OTHERS, *K_TYPES)}

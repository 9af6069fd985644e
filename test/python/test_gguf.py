"""GGUF files: weights, configuration and tokenizer, against the format's own package."""

from __future__ import annotations

import json
import os
import struct
import time
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
from infinicore_infer.checkpoint.gguf import GgufFile
from infinicore_infer.checkpoint.gguf_blocks import DECODERS, TYPES, GgufMatrix
from infinicore_infer.checkpoint.opening import open_model
from infinicore_infer.text.chat_template import TokenizerError
from infinicore_infer.text.gguf_tokenizer import gguf_tokenizer
from infinicore_infer.text.tokenizer import Qwen3Tokenizer
from python.helpers import DEMO, copy_folder
from python.test_tokenizer import TEXTS
from qwen3 import Qwen3ForCausalLM
from reference.gguf_files import add_model, add_tokenizer, encode, q4_k_m, write_gguf
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


Change = Callable[[gguf.GGUFWriter], object]


def _set(key: str, value: Any, kind: gguf.GGUFValueType | None = None) -> Change:
    def change(writer: gguf.GGUFWriter) -> None:
        kind_of = kind or gguf.GGUFValueType.get_type(value)
        writer.kv_data[0][key] = gguf.gguf_writer.GGUFValue(value, kind_of)

    return change


def _drop(key: str) -> Change:
    return lambda writer: writer.kv_data[0].pop(key)


def _tensor(name: str) -> Change:
    return lambda writer: writer.add_tensor(name, np.ones((2, 32), np.float32))


REFUSED: dict[str, tuple[Change, str]] = {
    "experts": (_set("general.architecture", "qwen3moe"), "mixture-of-experts"),
    "another model": (_set("general.architecture", "llama"), "'llama' is not supported"),
    "an adapter": (_set("general.type", "adapter"), "'adapter', not a model"),
    "no head size": (_drop("qwen3.attention.key_length"), "key_length' is missing"),
    "no base": (_drop("qwen3.rope.freq_base"), "freq_base' is missing"),
    "text for a number": (_set("qwen3.block_count", "4"), "block_count' is '4'"),
    "a fraction": (_set("qwen3.block_count", 4.0), "block_count' is 4.0"),
    "other values": (_set("qwen3.attention.value_length", 32), "value_length' is not 64"),
    "part of a head": (_set("qwen3.rope.dimension_count", 32), "dimension_count' is not 64"),
    "a window": (_set("qwen3.attention.sliding_window", 512), "sliding_window' is set"),
    "a scale": (_set("qwen3.attention.scale", 0.5), "attention.scale' is 0.5"),
    "longrope": (
        lambda w: (_set("qwen3.rope.scaling.type", "longrope")(w),
                   _set("qwen3.rope.scaling.factor", 2.0)(w)),
        "'longrope' .known: none, linear, yarn",
    ),
    "heads by layer": (
        _set("qwen3.attention.head_count", [6, 6, 3, 6]), "head_count' is an array of 4",
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


# ------------------------------------------------------------------ tokenizer


def _rebuilt(folder: Path, path: Path, size: int) -> Qwen3Tokenizer:
    writer = gguf.GGUFWriter(path, "qwen3")
    add_model(writer, load_config(DEMO))
    add_tokenizer(writer, folder, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = gguf_tokenizer(GgufFile(path).metadata, path)
    assert tokenizer is not None
    return tokenizer


def _same(ours: Qwen3Tokenizer, theirs: Qwen3Tokenizer) -> None:
    controls = "<|im_start|>user\nA<think>\n</think><|im_end|><|fim_prefix|>x<tool_call>"
    for text in [*TEXTS, controls, "e\u0301 \u1100\u1161\u11a8"]:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.encode(text, allow_special=False) == theirs.encode(text, allow_special=False)
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids, skip_special=False)
    messages = [{"role": "user", "content": "Hi <|im_end|>"}]
    for options in ({}, {"tools": [{"type": "function", "function": {"name": "f"}}]}):
        assert ours.encode_chat(messages, **options) == theirs.encode_chat(messages, **options)
        safe = {**options, "allow_special": False}
        assert ours.encode_chat(messages, **safe) == theirs.encode_chat(messages, **safe)
    assert ours.vocab_size == theirs.vocab_size


def test_tokenizer(demo_tokenizer: Qwen3Tokenizer, tmp_path: Path) -> None:
    """The same ids and texts as tokenizer.json's, which HF's own code reads."""
    _same(_rebuilt(DEMO, tmp_path / "t.gguf", 2048), demo_tokenizer)


def test_official_tokenizer(
    official: Qwen3Tokenizer, official_folder: Path, tmp_path: Path
) -> None:
    """151,643 tokens, 151,387 merges, and the added ones."""
    _same(_rebuilt(official_folder, tmp_path / "t.gguf", 151936), official)


TOKENIZERS: dict[str, tuple[Change, str]] = {
    "spm": (_set("tokenizer.ggml.model", "llama"), "'llama', which is not supported"),
    "another split": (_set("tokenizer.ggml.pre", "llama-bpe"), "'llama-bpe'"),
    "no merges": (_drop("tokenizer.ggml.merges"), "merges' is missing"),
    "no types": (_drop("tokenizer.ggml.token_type"), "token_type"),
    "no pair": (_set("tokenizer.ggml.merges", ["a b", "ab"]), "'ab', not a pair"),
    "a merge of nothing": (_set("tokenizer.ggml.merges", ["qzq qqz"]), "not a tokenizer"),
    "twice": (_set("tokenizer.ggml.tokens", ["a"] * 2048), "same text twice"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_bad_tokenizers(case: str, tmp_path: Path) -> None:
    change, words = TOKENIZERS[case]
    path = tmp_path / "m.gguf"
    write_gguf(DEMO, path, Type.F16, change=change)
    with pytest.raises(TokenizerError, match=words) as caught:
        Qwen3ForCausalLM(path)
    assert str(caught.value).startswith(str(path))


def test_templates_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    change = _set("tokenizer.chat_template.tool_use", "TOOLS")
    write_gguf(DEMO, path, Type.F16, change=change)
    with Qwen3ForCausalLM(path) as model:
        templates = model.tokenizer.templates.sources
        assert set(templates) == {"default", "tool_use"} and templates["tool_use"] == "TOOLS"
    config = json.loads((DEMO / "tokenizer_config.json").read_text("utf-8"))
    assert templates["default"] == config["chat_template"]


# ------------------------------------------------------------------ damage


def _header(*values: tuple[str, int, bytes], tensors: bytes = b"", count: int = 0) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, count, len(values))
    for key, kind, data in values:
        head += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + data
    return head + tensors


def _info(name: bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<{len(dims)}Q", *dims)
    head = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(dims))
    return head + sizes + struct.pack("<IQ", kind, offset)


def _file(*infos: bytes, data: int = 64) -> bytes:
    head = _header(tensors=b"".join(infos), count=len(infos))
    return head + bytes(-len(head) % 32) + bytes(data)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "another kind": (b"PK\x03\x04" + bytes(60), "no GGUF file"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "old": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "cut": (b"GGUF" + struct.pack("<I", 3), "truncated"),
    "tensors without end": (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims 11529215046"),
    "values without end": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "claims 0 tensors"),
    "a long key": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**50) + bytes(32), "a key has"),
    "a long string": (_header(("a", 8, struct.pack("<Q", 2**40))), "'a' has"),
    "a key that ends": (_header(("a", 8, struct.pack("<Q", 90))), "truncated: 'a'"),
    "strings without end": (
        _header(("a", 9, struct.pack("<IQ", 8, 2**40) + bytes(64))), "claims 1099511627776 strings",
    ),
    "a string that ends": (
        _header(("a", 9, struct.pack("<IQQ", 8, 2, 20) + bytes(8))),
        "truncated: a string of 'a'",
    ),
    "numbers without end": (_header(("a", 9, struct.pack("<IQ", 4, 2**61))), "truncated: 'a'"),
    "arrays of arrays": (_header(("a", 9, struct.pack("<IQ", 9, 1) + bytes(32))), "of type 9"),
    "an unknown type": (_header(("a", 13, bytes(8))), "of type 13"),
    "neither true nor false": (_header(("a", 7, b"\2")), "neither false"),
    "not UTF-8": (_header(("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")), "not UTF-8"),
    "a token that is not": (
        _header(("a", 9, struct.pack("<IQQ", 8, 1, 1) + b"\xff")), "not UTF-8",
    ),
    "a key twice": (_header(("a", 0, b"\0"), ("a", 0, b"\0")), "'a' appears twice"),
    "alignment 0": (_header(("general.alignment", 4, bytes(4))), "alignment"),
    "alignment 48": (_header(("general.alignment", 4, struct.pack("<I", 48))), "alignment"),
    "no dimensions": (_file(_info(b"t", (), 0, 0)), "0 dimensions"),
    "many dimensions": (_file(_info(b"t", (1,) * 9, 0, 0)), "9 dimensions"),
    "a billion dimensions": (
        _header(tensors=struct.pack("<QcI", 1, b"t", 2**30) + bytes(64), count=1),
        "1073741824 dimensions",
    ),
    "huge": (_file(_info(b"t", (2**40, 2**40), 0, 0)), "truncated: tensor 't'"),
    "empty tensor": (_file(_info(b"t", (4, 0), 0, 0)), "is empty"),
    "an unknown tensor type": (_file(_info(b"t", (4,), 77, 0)), r"not known: \[77\]"),
    "rows that do not divide": (_file(_info(b"t", (33,), 8, 0)), "rows of 33, which Q8_0"),
    "beyond the end": (_file(_info(b"t", (17,), 0, 0)), "truncated"),
    "offset beyond": (_file(_info(b"t", (1,), 0, 2**60)), "truncated"),
    "offset between": (_file(_info(b"t", (1,), 0, 8)), "not a multiple of 32"),
    "overlap": (_file(_info(b"a", (16,), 0, 0), _info(b"b", (4,), 0, 32)), "'b' overlaps"),
    "a name twice": (_file(_info(b"a", (4,), 0, 0), _info(b"a", (4,), 0, 32)), "'a' appears twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_damaged_files(case: str, tmp_path: Path) -> None:
    data, words = BAD[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(GgufError, match=words) as caught:
        GgufFile(path)
    assert str(path) in str(caught.value)


def test_lying_header_of_a_large_file(tmp_path: Path) -> None:
    """A terabyte of strings, in a file that is as large: refused before it is read."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(_header(("a", 9, struct.pack("<IQ", 8, 2**36))))
    os.truncate(path, 2**40)
    with pytest.raises(GgufError, match="claims 68719476736 strings"):
        GgufFile(path)
    path.write_bytes(_header(("a", 9, struct.pack("<IQQ", 8, 2, 2**39))))
    os.truncate(path, 2**40)
    with pytest.raises(GgufError, match="truncated"):
        GgufFile(path)


def test_random_damage_never_crashes(tmp_path: Path) -> None:
    """Whatever bytes change: a clean error, or a model whose weights are inside the file."""
    good_path = tmp_path / "good.gguf"
    spec = CheckpointSpec("m", nlayer=1, d=32, nh=2, nkvh=1, dh=16, di=32, dvoc=40)
    write_gguf(make_checkpoint(spec, tmp_path), good_path, Type.Q8_0, tokenizer=False)
    good, path = good_path.read_bytes(), tmp_path / "bad.gguf"
    header = good.index(b"blk.0.attn_norm") + 900
    rng = np.random.default_rng(5)
    refused = 0
    for i in range(600):
        bad = bytearray(good if i % 3 else good[: rng.integers(1, len(good))])
        for _ in range(rng.integers(1, 4)):
            bad[rng.integers(0, min(len(bad), header))] = rng.integers(0, 256)
        path.write_bytes(bad)
        try:
            checkpoint = open_model(path)[1]
        except ValueError:
            refused += 1
            continue
        for weight in checkpoint.values():
            if isinstance(weight, GgufMatrix) and weight.supported:
                weight.decoded(0, 1)
    assert refused > 300


def test_time_grows_with_the_number_of_strings(tmp_path: Path) -> None:
    seconds = []
    for count in (20_000, 200_000):
        path = tmp_path / f"{count}.gguf"
        strings = b"".join(struct.pack("<Q", 5) + b"%05d" % (i % 99999) for i in range(count))
        path.write_bytes(_header(("a", 9, struct.pack("<IQ", 8, count) + strings)))
        start = time.perf_counter()
        assert len(GgufFile(path).metadata["a"]) == count
        seconds.append(time.perf_counter() - start)
    assert seconds[1] < 40 * seconds[0]


def test_every_supported_type_has_a_number() -> None:
    numbers = {kind for kind, (name, _, _) in TYPES.items() if name in DECODERS}
    assert numbers == {int(kind) for kind in (*OTHERS, *K_TYPES)}

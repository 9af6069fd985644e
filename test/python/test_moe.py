"""Models with experts on the CPU backend: against transformers, and to the bit themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.checkpoint.coded import CodedMatrix
from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.checkpoint.config_reader import ConfigError
from infinicore_infer.checkpoint.errors import GgufError
from infinicore_infer.checkpoint.experts import Experts
from infinicore_infer.checkpoint.opening import open_model
from infinicore_infer.checkpoint.weights import Qwen3TensorList, Qwen3WeightsImpl, WeightsError
from infinicore_infer.native.load import LoadProgress
from infinicore_infer.native.model import NativeModel, StepRequest
from infinicore_infer.tools import quantize
from libinfinicore_infer import DataType, DeviceType, Qwen3ModelOptions, WeightCache
from numpy.typing import NDArray
from python.helpers import DEMO_MOE
from qwen3 import Qwen3ForCausalLM
from reference.gguf_files import drop_key, q4_k_m, set_key, write_gguf
from reference.quantised import Quantise, awq, compressed, fp8, gptq, quantised_copy
from reference.random_checkpoint import load_config
from reference.random_moe import MoeSpec, logits_of, moe_model, published, save_moe, with_values
from safetensors.torch import load_file, save_file

TOKENS = [int(t) for t in np.random.default_rng(5).integers(0, 256, 70)]
# Widths that are multiples of nothing; more experts than a panel has rows; layers of either kind.
ODD = MoeSpec(d=70, dm=37, nexperts=13, used=5, bias=True, seed=2)
SPECS = {
    "plain": MoeSpec(),
    "tied, weights not normed": MoeSpec(norm=False, tied=True, seed=1),
    "odd": ODD,
    "every second layer": MoeSpec(nlayer=4, step=2, norm=False, seed=3),
    "some layers dense": MoeSpec(nlayer=4, plain=(1, 3), nexperts=33, used=8, seed=4),
    "one expert": MoeSpec(nexperts=1, used=1, seed=5),
    "all experts": MoeSpec(nexperts=6, used=6, norm=False, seed=6),
}


def forward(model: Qwen3ForCausalLM, tokens: Sequence[int] = TOKENS) -> NDArray[np.float32]:
    return np.asarray(model.forward(list(tokens)))


@pytest.mark.parametrize("stacked", [False, True], ids=["published", "stacked"])
@pytest.mark.parametrize("name", SPECS)
def test_logits(name: str, stacked: bool, tmp_path: Path) -> None:
    """transformers' float32 logits, from both forms of checkpoints."""
    reference = moe_model(SPECS[name])
    folder = save_moe(reference, tmp_path / "m", stacked=stacked)
    expected = logits_of(reference, TOKENS)
    with Qwen3ForCausalLM(folder, threads=2) as model:
        assert np.abs(forward(model) - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("stacked", [False, True], ids=["published", "stacked"])
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_logits_of_halves(dtype: str, stacked: bool, tmp_path: Path) -> None:
    """Weights of 16 bits, multiplied exactly: float32 logits of the rounded weights."""
    folder = save_moe(moe_model(ODD), tmp_path / "m", dtype, stacked)
    tensors = published(load_file(folder / "model.safetensors"))
    values = {name: tensor.float() for name, tensor in tensors.items()}
    expected = logits_of(with_values(ODD, values), TOKENS)
    with Qwen3ForCausalLM(folder, threads=2, activations="f32", kv_dtype="f32") as model:
        assert np.abs(forward(model) - expected).max() < 2e-5 * np.abs(expected).max()


def test_equal_experts_are_chosen_by_index(tmp_path: Path) -> None:
    """Experts that a router cannot tell apart: the first ones are taken."""
    spec = MoeSpec(nlayer=1, nexperts=8, used=2)
    reference = moe_model(spec)
    with torch.no_grad():
        reference.model.layers[0].mlp.gate.weight[:] = 0.0
    folder = save_moe(reference, tmp_path / "m")
    with torch.no_grad():  # now transformers has no choice
        experts = reference.model.layers[0].mlp.experts
        experts.gate_up_proj[:] = experts.gate_up_proj[:2].repeat(4, 1, 1)
        experts.down_proj[:] = experts.down_proj[:2].mean(0)
        experts.gate_up_proj[1::2] = experts.gate_up_proj[:1]
    tensors = load_file(folder / "model.safetensors")
    for e in (0, 1):
        for part in ("gate", "up"):
            name = "model.layers.0.mlp.experts.{}." + f"{part}_proj.weight"
            tensors[name.format(e)] = tensors[name.format(0)].clone()
        down = "model.layers.0.mlp.experts.{}.down_proj.weight"
        tensors[down.format(e)] = experts.down_proj[0].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    expected = logits_of(reference, TOKENS)
    with Qwen3ForCausalLM(folder, threads=2) as model:
        assert np.abs(forward(model) - expected).max() < 2e-5 * np.abs(expected).max()


# ---------------------------------------------------------------- the same to the bit

BF16 = replace(ODD, d=96, dm=40, dh=24)
CHOICES: dict[str, dict[str, Any]] = {
    "f32": {"dtype": "f32"},
    "f16": {"dtype": "f16"},
    "bf16": {"activations": "f32"},
    "bf16 times bf16x2": {"activations": "bf16x2"},
    "bf16 times bf16": {"activations": "bf16"},
    "int8 times int16": {"dtype": "int8", "activations": "int16"},
    "int8 times int8": {"dtype": "int8", "activations": "int8"},
    "int4": {"dtype": "int4"},
    "int4-mixed": {"dtype": "int4-mixed"},
    "bf12 times f32": {"dtype": "bf12", "activations": "f32"},
    "bf12 times bf16": {"dtype": "bf12", "activations": "bf16"},
}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_moe(moe_model(BF16), tmp_path_factory.mktemp("moe") / "m", "bf16")


@pytest.mark.parametrize("name", CHOICES)
def test_invariance(name: str, halves: Path) -> None:
    """Batch, chunks, steps and threads change no bit of a row."""
    prompts = [TOKENS[:40], TOKENS[20:23], TOKENS[:1], TOKENS[5:60]]
    with Qwen3ForCausalLM(halves, threads=1, **CHOICES[name]) as model:
        alone = [forward(model, prompt) for prompt in prompts]
        whole = forward(model)
        with model.create_kv_cache() as cache:
            chunks = ((0, 1), (1, 30), (30, 33), (33, 70))
            steps = [StepRequest(cache, TOKENS[a:b], a) for a, b in chunks]
            parts = [model.native.forward([step]) for step in steps]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    with Qwen3ForCausalLM(halves, threads=3, max_step_tokens=64, **CHOICES[name]) as model:
        np.testing.assert_array_equal(forward(model), whole)
        caches = [model.create_kv_cache() for _ in prompts]
        steps = [StepRequest(c, prompt, 0) for c, prompt in zip(caches, prompts, strict=True)]
        together = model.native.forward(steps)
        np.testing.assert_array_equal(together, np.concatenate(alone))


def test_ranks(halves: Path) -> None:
    """Every expert cut over the ranks: one rank's logits, up to the order of sums."""
    with Qwen3ForCausalLM(halves, threads=2, dtype="f32") as model:
        expected = forward(model)
    with Qwen3ForCausalLM(halves, ndev=2, threads=2, dtype="f32") as model:
        assert np.abs(forward(model) - expected).max() < 2e-5 * np.abs(expected).max()


def test_bf12_is_bf16(halves: Path) -> None:
    with Qwen3ForCausalLM(halves, threads=2, dtype="bf16", activations="f32") as model:
        expected = forward(model)
    with Qwen3ForCausalLM(halves, threads=2, dtype="bf12", activations="f32") as model:
        np.testing.assert_array_equal(forward(model), expected)


# Through all experts, so that no rounding changes which ones a token goes through.
ALL = MoeSpec(d=128, di=64, dm=64, nexperts=4, used=4, norm=False, nlayer=5, seed=8)


@pytest.mark.parametrize(("dtype", "limit"), [("int8", 0.05), ("int4", 0.3), ("int4-mixed", 0.3)])
def test_packed_weights(dtype: str, limit: float, tmp_path: Path) -> None:
    """Rounded weights give nearly the same logits, and not the very same."""
    reference = moe_model(ALL)
    folder = save_moe(reference, tmp_path / "m")
    expected = logits_of(reference, TOKENS)
    with Qwen3ForCausalLM(folder, threads=2, dtype=dtype) as model:
        error = forward(model) - expected
    assert 1e-4 < np.sqrt((error**2).mean() / (expected**2).mean()) < limit


# ---------------------------------------------------------------- checkpoint formats

FORMATS: dict[str, tuple[Callable[[], tuple[Quantise, dict[str, Any]]], float]] = {
    "fp8": (lambda: fp8((64, 64)), 0.05),
    "gptq": (lambda: gptq(4, 32), 0.05),
    "gptq act_order": (lambda: gptq(8, 32, act_order=True), 0.05),
    "awq": (awq, 0.05),
    "w4a16": (lambda: compressed("pack-quantized"), 0.05),
    "w8a8": (lambda: compressed("int-quantized", bits=8, group=None), 0.05),
}


@pytest.mark.parametrize("name", FORMATS)
def test_quantised(name: str, tmp_path: Path) -> None:
    """Decoded: the logits of the decoded weights. As they are: those, but for the activations."""
    make, limit = FORMATS[name]
    source = save_moe(moe_model(ALL), tmp_path / "m")
    values = quantised_copy(source, tmp_path / "q", *make())
    expected = logits_of(with_values(ALL, values), TOKENS)
    with Qwen3ForCausalLM(tmp_path / "q", threads=2, dtype="f32") as model:
        assert np.abs(forward(model) - expected).max() < 2e-5 * np.abs(expected).max()
    with Qwen3ForCausalLM(tmp_path / "q", threads=2) as model:
        error = forward(model) - expected
    assert np.sqrt((error**2).mean() / (expected**2).mean()) < limit


def test_orders_of_experts(tmp_path: Path) -> None:
    """Each expert's columns in groups in an order of its own, that of gate and up the same."""
    source = save_moe(moe_model(ALL), tmp_path / "m")
    projections = ("down_proj", "gate_proj", "up_proj")  # of every expert, one after the other
    size = []
    for orders in (None, (i // 3 for i in count())):
        folder = tmp_path / f"q{orders is None}"
        made = gptq(8, 32, act_order=orders is not None, seeds=orders)
        values = quantised_copy(source, folder, *made, projections)
        expected = logits_of(with_values(ALL, values), TOKENS)
        for options in ({"ndev": 1}, {"ndev": 2}):
            with Qwen3ForCausalLM(
                folder, threads=2, activations="int16", kv_dtype="f32", **options
            ) as model:
                logits = forward(model)
                assert np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()
                if options["ndev"] == 1:
                    size.append(model.stats()["weight_bytes"])
                with model.create_kv_cache() as cache:
                    steps = [StepRequest(cache, [t], i) for i, t in enumerate(TOKENS[:20])]
                    alone = [model.native.forward([step]) for step in steps]
                np.testing.assert_array_equal(np.concatenate(alone), logits[:20])
    assert size[0] < size[1] < 1.1 * size[0]


@pytest.mark.parametrize("kind", [Type.BF16, Type.Q8_0, Type.Q4_K, "Q4_K_M"], ids=str)
def test_gguf(kind: Any, tmp_path: Path) -> None:
    """GGUF's stacked experts, which are decoded or kept as they are."""
    spec = replace(ALL, d=256, dm=256, dh=64, di=1, nlayer=2, nexperts=3, used=3)
    source = save_moe(moe_model(spec), tmp_path / "m")
    path = tmp_path / "m.gguf"
    values = write_gguf(source, path, q4_k_m if kind == "Q4_K_M" else kind, tokenizer=False)
    reference = with_values(spec, values)
    reference.model.layers[0].mlp.gate.norm_topk_prob = True
    reference.model.layers[1].mlp.gate.norm_topk_prob = True
    expected = logits_of(reference, TOKENS)
    with Qwen3ForCausalLM(path, threads=2, dtype="f32") as model:
        assert np.abs(forward(model) - expected).max() < 2e-5 * np.abs(expected).max()
    with Qwen3ForCausalLM(path, threads=2) as model:
        error = forward(model) - expected
    assert np.sqrt((error**2).mean() / (expected**2).mean()) < 0.05


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("dtype", [None, "int8", "int4"])
def test_demo_answers(dtype: str | None) -> None:
    """Chat with trained routers and experts, alone and in a batch."""
    questions = {
        "What is the capital of France?": "The capital of France is Paris.",
        "What is the opposite of hot?": "The opposite of hot is cold.",
    }
    chats = [[{"role": "user", "content": question}] for question in questions]
    with Qwen3ForCausalLM(DEMO_MOE, threads=2, dtype=dtype, cache=False) as model:
        settings = {"enable_thinking": False, "temperature": 0}
        alone = [str(model.chat(chat, **settings)) for chat in chats]
        prompts = [model.chat_prompt(chat, enable_thinking=False) for chat in chats]
        together = model.generate_batch(prompts, temperature=0)
    assert alone == list(questions.values())
    assert [str(text) for text in together] == alone


@pytest.mark.parametrize("form", ["published", "stacked", "gguf"])
def test_quantize(form: str, tmp_path: Path) -> None:
    """``qwen3-quantize`` writes every expert by itself, and leaves the router as it was."""
    source = save_moe(moe_model(ALL), tmp_path / "m", "bf16", stacked=form == "stacked")
    if form == "gguf":
        write_gguf(source, tmp_path / "m.gguf", Type.BF16, tokenizer=False)
        source = tmp_path / "m.gguf"
    assert quantize.main([str(source), str(tmp_path / "q"), "--dtype", "int8"]) == 0
    written = Checkpoint(tmp_path / "q")
    original = published({k: v.float() for k, v in moe_model(ALL).state_dict().items()})
    for name, value in original.items():
        rounded = written[name].decoded()
        coded = name.endswith("_proj.weight")
        limit = np.abs(value.numpy()).max() / (127 if coded else 256)
        assert np.abs(rounded - value.numpy()).max() < limit, name
        assert isinstance(written[name], CodedMatrix) == coded
    assert set(original) == set(written)
    written.close()
    options: dict[str, Any] = {"threads": 2, "dtype": "f32", "cache": False}
    with Qwen3ForCausalLM(source, **options) as model:
        expected = forward(model)
    with Qwen3ForCausalLM(tmp_path / "q", **options) as model:
        error = forward(model) - expected
    # GGUF says that weights of experts are normed; with all of them there is no difference.
    assert np.sqrt((error**2).mean() / (expected**2).mean()) < 0.05


# ---------------------------------------------------------------- packed weights on disk


@pytest.mark.parametrize("dtype", ["int4", "bf12"])
def test_weight_cache(dtype: str, halves: Path, tmp_path: Path) -> None:
    """What was packed once is read back to the bit, and not for another number of experts."""
    meta, checkpoint = open_model(halves)
    weights = Qwen3TensorList(meta, checkpoint)
    path = str(tmp_path / "packed").encode()

    def create(used: int = BF16.used) -> NativeModel:
        options = Qwen3ModelOptions(dt_weight=DataType.parse(dtype), cache_path=path)
        assert meta.experts is not None
        replace(meta.experts, used=used).apply(options)
        return NativeModel(meta, weights, options, DeviceType.DEVICE_TYPE_CPU, [0], LoadProgress())

    def logits(model: NativeModel) -> NDArray[np.float32]:
        return model.forward([StepRequest(model.create_kv_cache(), TOKENS, 0)])

    first = create()
    first.save_weights(Path(path.decode()), "")
    again = create()
    assert again.stats()["weight_cache"] == WeightCache.LOADED
    np.testing.assert_array_equal(logits(again), logits(first))
    fewer = create(2)
    assert fewer.stats()["weight_cache"] == WeightCache.STALE
    assert fewer.kv_cache_fingerprint() != first.kv_cache_fingerprint()
    for model in (first, again, fewer):
        model.close()
    checkpoint.close()


# ---------------------------------------------------------------- what is wrong

BAD_CONFIGS = {
    "more than there are": (
        {"num_experts_per_tok": 9},
        "num_experts_per_tok' is 9.*'num_experts', 8",
    ),
    "none used": ({"num_experts_per_tok": 0}, "num_experts_per_tok' must be from 1"),
    "not a number": ({"num_experts": "8"}, "'num_experts' must be a whole number, got '8'"),
    "two numbers": ({"num_local_experts": 4}, "'num_local_experts' is 4, 'num_experts' 8"),
    "no step": ({"decoder_sparse_step": 0}, "decoder_sparse_step"),
    "no list": ({"mlp_only_layers": 3}, "'mlp_only_layers' must be a list of layers, got 3"),
    "no flag": ({"norm_topk_prob": 1}, "'norm_topk_prob' must be true or false"),
    "no size": ({"moe_intermediate_size": 0}, "moe_intermediate_size"),
    "dense": ({"model_type": "qwen3"}, "'model_type' is 'qwen3' although there are experts"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_moe(moe_model(MoeSpec()), tmp_path_factory.mktemp("moe") / "m")


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_config(name: str, plain: Path) -> None:
    changes, message = BAD_CONFIGS[name]
    with pytest.raises(ConfigError, match=message):
        Qwen3MetaFromConfig({**load_config(plain), **changes})


def test_defaults_of_transformers(plain: Path) -> None:
    config = load_config(plain)
    for key in ("num_experts_per_tok", "norm_topk_prob", "decoder_sparse_step", "head_dim"):
        del config[key]
    meta = Qwen3MetaFromConfig({**config, "num_experts": 9, "mlp_only_layers": None})
    assert meta.experts == Experts(9, 8, 32, False, frozenset({0, 1}))
    assert meta.dh == config["hidden_size"] // config["num_attention_heads"]


def test_parameter_count() -> None:
    for spec in (MoeSpec(), SPECS["some layers dense"]):
        model = moe_model(spec)
        meta = Qwen3MetaFromConfig(model.config.to_dict())
        assert meta.parameter_count == sum(p.numel() for p in model.parameters())


def test_missing_and_wrong_tensors(tmp_path: Path) -> None:
    """All of them are named before any weight is read."""
    folder = save_moe(moe_model(MoeSpec()), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    layer = "model.layers.1.mlp"
    del tensors[f"{layer}.experts.3.up_proj.weight"]
    tensors[f"{layer}.gate.weight"] = torch.zeros(7, 64)
    tensors[f"{layer}.experts.5.down_proj.weight"] = torch.zeros(64, 31)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError) as caught:
        Qwen3ForCausalLM(folder)
    for text in (
        f"missing tensors: {layer}.experts.3.up_proj.weight",
        f"{layer}.gate.weight is [7, 64], not [8, 64]",
        f"{layer}.experts.5.down_proj.weight is [64, 31], not [64, 32]",
    ):
        assert text in str(caught.value)


def test_nan_names_the_expert(tmp_path: Path) -> None:
    model = moe_model(MoeSpec())
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[6, 40, 3] = float("nan")
    folder = save_moe(model, tmp_path / "m", stacked=True)
    with pytest.raises(ValueError, match=r"expert_down\[6\] of layer 1 is NaN.* row 40, column 3"):
        Qwen3ForCausalLM(folder)


def test_plain_weights_hold_no_experts(plain: Path) -> None:
    with pytest.raises(WeightsError, match="only Qwen3TensorList"):
        Qwen3WeightsImpl(*open_model(plain))


BAD_GGUF = {
    "no count": (drop_key("qwen3moe.expert_count"), "'qwen3moe.expert_count' is missing"),
    "shared experts": (set_key("qwen3moe.expert_shared_count", 1), "expert_shared_count' is set"),
    "sigmoid": (set_key("qwen3moe.expert_gating_func", 2), "expert_gating_func' is set"),
    "dense layers first": (set_key("qwen3moe.leading_dense_block_count", 1), "leading_dense"),
}


@pytest.mark.parametrize("name", BAD_GGUF)
def test_bad_gguf(name: str, plain: Path, tmp_path: Path) -> None:
    change, message = BAD_GGUF[name]
    write_gguf(plain, tmp_path / "m.gguf", Type.F32, tokenizer=False, change=change)
    with pytest.raises(GgufError, match=message):
        open_model(tmp_path / "m.gguf")

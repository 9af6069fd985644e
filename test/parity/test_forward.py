"""Logits and greedy text of the library against the numpy oracle and transformers.

Differences are stated in standard deviations of the logits of the case, the unit in which a
difference matters: tokens compete by logit differences of that size.

Tolerances (measured maxima are several times smaller):

========================= ======= ================================================================
oracle vs transformers      3e-5  transformers computes norms, rope and softmax in float32 always
CPU vs oracle, KV f32       3e-5  float32 sums over up to a few hundred terms, a handful of layers
CPU vs oracle, KV f16    1.5e-3  the oracle rounds K and V too; of a thousand values a few are so
CPU vs oracle, KV bf16   1.2e-2  near to a boundary that they go the other way, by a whole unit
CPU vs transformers, f16    2e-2  K and V rounded to 11 bits, as in the default cache
========================= ======= ================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from parity.conftest import Checkpoint
from parity.driver import Backend, DataType, has_infinicore
from parity.target import Target
from reference.qwen3_numpy import bf16_to_float, forward
from reference.random_checkpoint import CheckpointSpec

EXACT = 3e-5
KV_ROUNDED = {"f32": EXACT, "f16": 1.5e-3, "bf16": 1.2e-2}
DEFAULT_KV = {"f32": EXACT, "f16": 2e-2, "bf16": 2e-2}
# InfiniCore rounds activations to dt_logits after every operator.
INFINICORE_TOLERANCE = {DataType.F32: 1e-3, DataType.F16: 8e-2, DataType.BF16: 0.3}
NTOK = 50

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
YARN_ALL = {
    **YARN,
    "attention_factor": 1.3,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "truncate": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}

SPECS = [
    CheckpointSpec("group1", nh=4, nkvh=4, tied=False, seed=1),
    CheckpointSpec("group2", nh=4, nkvh=2, dtype="bf16", seed=2),
    CheckpointSpec("group4", nh=8, nkvh=2, dtype="f16", dh=32, seed=3),
    CheckpointSpec("group8", nh=8, nkvh=1, dtype="bf16", tied=False, seed=4),
    CheckpointSpec("group5", nh=10, nkvh=2, dh=8, seed=17),
    CheckpointSpec("one_of_each", nlayer=1, d=8, nh=1, nkvh=1, dh=2, di=1, dvoc=3, seed=18),
    CheckpointSpec("odd_sizes", d=72, di=200, dh=24, dvoc=517, seed=5),
    CheckpointSpec("odd_bf16", d=71, di=201, dh=26, nh=6, dvoc=517, dtype="bf16", bias=True,
                   seed=6),
    CheckpointSpec("odd_f16", d=37, di=51, dh=10, nh=3, nkvh=1, dvoc=1001, dtype="f16", tied=False,
                   seed=7),
    CheckpointSpec("bias", bias=True, tied=False, seed=8),
    CheckpointSpec("bias_f16", bias=True, dtype="f16", seed=9),
    CheckpointSpec("sharded", tied=False, dtype="bf16", max_shard_size="40KB", nlayer=3, seed=10),
    CheckpointSpec("yarn", rope=YARN, seed=11),
    CheckpointSpec("yarn_all", rope=YARN_ALL, dtype="bf16", dh=32, seed=12),
    CheckpointSpec("linear", rope=LINEAR, dtype="f16", seed=13),
    CheckpointSpec("llama3", rope=LLAMA3, dh=32, seed=14),
    CheckpointSpec("qwen3_like", nlayer=4, d=256, nh=4, nkvh=2, dh=128, di=768, dvoc=1024,
                   theta=1e6, dtype="bf16", seed=15),
    CheckpointSpec("large_epsilon", epsilon=0.1, theta=500.0, seed=16),
]  # fmt: skip

Make = Callable[[CheckpointSpec], Checkpoint]
Array = npt.NDArray[Any]


def prompt_of(spec: CheckpointSpec, ntok: int = NTOK) -> list[int]:
    return [int(t) for t in np.random.default_rng(spec.seed).integers(0, spec.dvoc, ntok)]


def difference(actual: Array, expected: Array) -> float:
    """Returns the largest difference in standard deviations of the expected logits."""
    assert np.isfinite(actual).all()
    return float(np.abs(actual - expected).max() / expected.std())


def transformers_logits(checkpoint: Checkpoint, dtype: torch.dtype, tokens: list[int]) -> Array:
    with torch.no_grad():
        return checkpoint.transformers(dtype)(torch.tensor([tokens])).logits[0].numpy()


@pytest.fixture(params=SPECS, ids=lambda spec: spec.name)
def checkpoint(request: pytest.FixtureRequest, checkpoints: Make) -> Checkpoint:
    return checkpoints(request.param)


@pytest.mark.cpu_only
def test_bf16_decoding() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(bf16_to_float(bits), expected)


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_oracle_is_transformers(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    tokens = prompt_of(checkpoint.spec)
    oracle = forward(checkpoint.config, checkpoint.tensors, tokens)
    assert difference(transformers_logits(checkpoint, dtype, tokens), oracle) < EXACT


@pytest.mark.parametrize("layout", ["split", "fused", "in_out"])
def test_logits_are_the_oracles(checkpoint: Checkpoint, layout: Any, target: Target) -> None:
    """With the cache's rounding in the oracle, only float32 rounding remains."""
    tokens = prompt_of(checkpoint.spec)
    kv = "f32" if checkpoint.spec.dtype == "f32" or not target.cpu else "f16"
    oracle = forward(checkpoint.config, checkpoint.tensors, tokens, kv)
    with checkpoint.driver(layout=layout) as driver:
        assert difference(driver.logits(tokens), oracle) < KV_ROUNDED[kv]


def test_logits_with_exact_cache(checkpoint: Checkpoint) -> None:
    """With an f32 cache even 16-bit weights leave only float32 rounding."""
    tokens = prompt_of(checkpoint.spec)
    oracle = forward(checkpoint.config, checkpoint.tensors, tokens)
    with checkpoint.driver(dt_kv=DataType.F32) as driver:
        assert difference(driver.logits(tokens), oracle) < EXACT


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("weight", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("given", ["f32", "f16", "bf16"])
def test_dtypes(checkpoints: Make, target: Target, given: Any, weight: str, kv: str) -> None:
    """Every given dtype, packed to every format, with every cache dtype."""
    checkpoint = checkpoints(CheckpointSpec(f"dtype_{given}", dtype=given, bias=True, seed=20))
    tokens = prompt_of(checkpoint.spec)
    to_torch = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

    def packed(tensor: Array) -> Array:
        if tensor.dtype == np.uint16:
            tensor = bf16_to_float(tensor)
        return torch.from_numpy(tensor).to(to_torch[weight]).float().numpy()

    # Matrices are rounded to the format; vectors need not be.
    tensors = {k: packed(v) if v.ndim == 2 else v for k, v in checkpoint.tensors.items()}
    oracle = forward(checkpoint.config, tensors, tokens, kv)
    asked = {"dt_weight": DataType[weight.upper()], "dt_kv": DataType[kv.upper()]}
    options = target.typed(checkpoint.spec, asked)
    tolerance = KV_ROUNDED[kv] if target.cpu else INFINICORE_TOLERANCE[options["dt_logits"]]
    with checkpoint.driver(**options) as driver:
        assert difference(driver.logits(tokens), oracle) < tolerance


@pytest.mark.parametrize("name", ["group1", "group8", "group2"])  # untied f32, bf16; tied
def test_borrowed_embedding(checkpoints: Make, name: str) -> None:
    """Reading the embedding from the caller's memory saves a copy and changes nothing."""
    checkpoint = checkpoints(next(spec for spec in SPECS if spec.name == name))
    tokens = prompt_of(checkpoint.spec)
    with checkpoint.driver() as copying, checkpoint.driver(borrow_weights=1) as borrowing:
        np.testing.assert_array_equal(borrowing.logits(tokens), copying.logits(tokens))
        if not checkpoint.spec.tied:
            assert borrowing.stats().weight_bytes < copying.stats().weight_bytes


def test_long_prompt(checkpoints: Make) -> None:
    """Positions far beyond one chunk and one attention block."""
    spec = CheckpointSpec("long", dctx=4096, rope=YARN, dvoc=64, dh=32, seed=21)
    checkpoint = checkpoints(spec)
    tokens = prompt_of(spec, 1500)
    oracle = forward(checkpoint.config, checkpoint.tensors, tokens)
    with checkpoint.driver() as driver:
        assert difference(driver.logits(tokens), oracle) < 2 * EXACT


def greedy_differences(checkpoint: Checkpoint, tolerance: float, **options: Any) -> int:
    """Generates 30 tokens along transformers' greedy text; returns how many were too close to call.

    After a token whose two best logits are closer than the tolerance the library is fed the
    reference's token, so that each token is compared given the same text.
    """
    prompt = prompt_of(checkpoint.spec, 20)
    model = checkpoint.transformers(torch.float32)
    with torch.no_grad():
        text = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=30,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0].tolist()
        logits = model(torch.tensor([text])).logits[0].numpy()
    skipped = 0
    with checkpoint.driver(**options) as driver, driver.caches(1) as (cache,):
        start = 0
        for end in range(len(prompt), len(text)):
            (token,) = driver.infer([(cache, start, text[start:end])])
            start = end
            if token != text[end]:
                best = np.sort(logits[end - 1])
                margin = (best[-1] - best[-2]) / logits.std()
                assert margin < 2 * tolerance, f"token {end}: {token}, not {text[end]}: {margin=}"
                skipped += 1
    return skipped


def test_logits_and_text_are_transformers(checkpoint: Checkpoint) -> None:
    tokens = prompt_of(checkpoint.spec)
    tolerance = DEFAULT_KV[checkpoint.spec.dtype]
    expected = transformers_logits(checkpoint, torch.float32, tokens)
    with checkpoint.driver() as driver:
        assert difference(driver.logits(tokens), expected) < tolerance
    assert greedy_differences(checkpoint, tolerance) <= 3
    assert greedy_differences(checkpoint, EXACT, dt_kv=DataType.F32) <= 1


def test_python_layer(checkpoint: Checkpoint, target: Target) -> None:
    """The same files through scripts/qwen3.py give the same logits.

    Not always to the bit: it may state constants that are left to the library here.
    """
    qwen3 = pytest.importorskip("qwen3", reason="scripts/qwen3.py is not there yet")
    tokens = prompt_of(checkpoint.spec)
    with checkpoint.driver() as driver:
        expected = driver.logits(tokens)
    dtype = None if target.cpu else "f32"  # as the driver's
    activations = "f32" if target.cpu else "auto"
    ndev = target.ranks(checkpoint.spec)
    with qwen3.Qwen3ForCausalLM(
        checkpoint.folder,
        device=target.device,
        ndev=ndev,
        dtype=dtype,
        activations=activations,
    ) as model:
        assert difference(np.asarray(model.forward(tokens)), expected) < EXACT


@pytest.mark.parametrize("dt_logits", list(INFINICORE_TOLERANCE), ids=lambda d: d.name.lower())
def test_infinicore_is_cpu(checkpoint: Checkpoint, target: Target, dt_logits: DataType) -> None:
    """Prefill, decode and mixed batches of the InfiniCore backend against the CPU kernels."""
    if not has_infinicore():
        pytest.skip("the library was built without InfiniCore")
    if target.cpu and checkpoint.spec.di == 1:
        # 0.1.0 takes a column of a wider matrix for contiguous: found by the self-test.
        with pytest.raises(Exception, match=r"swiglu \w+ \[3, 1\] \[3, 1\] \[3, 1\] is wrong"):
            checkpoint.driver(backend=Backend.INFINICORE, dt_logits=dt_logits)
        return
    tolerance = INFINICORE_TOLERANCE[dt_logits]
    tokens = prompt_of(checkpoint.spec)
    with (
        checkpoint.driver(device="cpu", dt_kv=DataType.F32) as cpu,
        checkpoint.driver(backend=Backend.INFINICORE, dt_logits=dt_logits) as infini,
    ):
        assert infini.build_info()["backend"] == "infinicore"

        def run(driver: Any) -> list[Array]:
            with driver.caches(3) as (a, b, c):
                steps = driver.forward([(a, 0, tokens)])
                steps += driver.forward([(b, 0, tokens[:7])])
                steps += driver.forward([(b, 7, tokens[7:8])])  # decode
                steps += driver.forward([(b, 8, tokens[8:9]), (a, NTOK, tokens[:1])])
                # decode and prefill of different lengths, and a continued prefill
                steps += driver.forward(
                    [(b, 9, tokens[9:10]), (c, 0, tokens[:13]), (a, 20, tokens[20:35])]
                )
                steps += driver.forward([(c, 13, tokens[13:14]), (a, 35, tokens[35:36])])
            return steps

        for i, (actual, expected) in enumerate(zip(run(infini), run(cpu), strict=True)):
            assert difference(actual, expected) < tolerance, f"output {i}"


# Operators to do without, as on devices that lack them: interleaved rope instead of NeoX, sums
# through gemm.
@pytest.mark.parametrize("avoid", ["", "rope_neox", "add", "rope_neox,add"])
def test_infinicore_greedy(checkpoints: Make, monkeypatch: pytest.MonkeyPatch, avoid: str) -> None:
    if not has_infinicore():
        pytest.skip("the library was built without InfiniCore")
    monkeypatch.setenv("QWEN3_INFINICORE_AVOID", avoid)
    checkpoint = checkpoints(SPECS[0])
    with checkpoint.driver(backend=Backend.INFINICORE, dt_logits=DataType.F32) as driver:
        assert set(avoid.split(",")) - {""} <= set(driver.build_info()["avoids"].split(","))
    tolerance = INFINICORE_TOLERANCE[DataType.F32]
    assert greedy_differences(checkpoint, tolerance, backend=Backend.INFINICORE) <= 1

"""Models cut over 1 to 8 ranks: the oracle's logits, the uncut model's text.

That nothing but rounding depends on the number of ranks is shown here; that nothing at all depends
on batches, chunks and threads for a given number is in ``test_invariants.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from libinfinicore_infer import Qwen3Error
from parity.conftest import Checkpoint
from parity.driver import Backend, DataType, Driver, has_infinicore
from parity.target import Target
from parity.test_forward import EXACT, difference, prompt_of
from python.helpers import DEMO
from qwen3 import Qwen3ForCausalLM
from reference.qwen3_numpy import forward
from reference.random_checkpoint import CheckpointSpec

Make = Callable[[CheckpointSpec], Checkpoint]

# Eight query heads over two KV heads: with more than two ranks KV heads are on several. Sizes that
# are multiples of nothing are cut unevenly.
ODD = CheckpointSpec(
    "tp_odd", d=72, di=200, dh=24, nh=8, nkvh=2, dvoc=517, nlayer=3, bias=True, seed=41
)
UNTIED = CheckpointSpec("tp_untied", nh=8, nkvh=8, tied=False, bias=True, dtype="bf16", seed=42)
# As the published models, heads and MLP rows come in whole quantisation groups.
EVEN = CheckpointSpec(
    "tp_even", d=128, di=512, dh=32, nh=8, nkvh=4, dvoc=640, nlayer=3, dtype="bf16", seed=43
)
RANKS = [2, 4, 8]


@pytest.mark.parametrize("layout", ["split", "fused", "in_out"])
@pytest.mark.parametrize("ndev", RANKS)
@pytest.mark.parametrize("spec", [ODD, UNTIED], ids=lambda spec: spec.name)
def test_logits_are_the_oracles(
    checkpoints: Make, spec: CheckpointSpec, ndev: int, layout: Any
) -> None:
    checkpoint = checkpoints(spec)
    tokens = prompt_of(spec)
    oracle = forward(checkpoint.config, checkpoint.tensors, tokens)
    with checkpoint.driver(ndev=ndev, layout=layout, dt_kv=DataType.F32) as driver:
        assert difference(driver.logits(tokens), oracle) < EXACT
        assert driver.build_info()["ndev"] == str(ndev)


def greedy_text(driver: Driver, prompt: list[int], n: int) -> list[int]:
    text = list(prompt)
    with driver.caches(1) as (cache,):
        for _ in range(n):
            text += driver.infer([(cache, driver.length(cache), text[driver.length(cache) :])])
    return text


@pytest.mark.parametrize(
    ("spec", "weight"),
    [(EVEN, weight) for weight in ("F32", "F16", "BF16", "BF12", "INT8", "INT4")]
    + [(UNTIED, weight) for weight in ("F32", "BF16", "BF12")],
    ids=lambda value: getattr(value, "name", value),
)
def test_same_greedy_text(
    checkpoints: Make, target: Target, spec: CheckpointSpec, weight: str
) -> None:
    checkpoint = checkpoints(spec)
    prompt = prompt_of(spec, 20)
    options = target.typed(spec, {"dt_weight": DataType[weight], "dt_kv": DataType.F32})
    texts = []
    for ndev in [1, *RANKS]:
        with checkpoint.driver(ndev=ndev, **options) as driver:
            texts.append(greedy_text(driver, prompt, 40))
    assert texts[1:] == texts[:1] * len(RANKS)


@pytest.mark.cpu_only
@pytest.mark.parametrize("spec", [EVEN, UNTIED], ids=lambda spec: spec.name)
def test_int8_kv_is_the_uncut_models(checkpoints: Make, spec: CheckpointSpec) -> None:
    """Heads are quantised one by one; what sums round differently may tip a code."""
    checkpoint = checkpoints(spec)
    tokens = prompt_of(spec)
    options = {"dt_weight": DataType.F32, "dt_kv": DataType.INT8}
    with checkpoint.driver(**options) as driver:
        expected = driver.logits(tokens)
    for ndev in RANKS:
        with checkpoint.driver(ndev=ndev, **options) as driver:
            assert difference(driver.logits(tokens), expected) < 5e-3


@pytest.mark.cpu_only
@pytest.mark.parametrize(("weight", "tolerance"), [("INT8", 2e-3), ("INT4", 0.1)])
def test_whole_groups_are_uncut(checkpoints: Make, weight: str, tolerance: float) -> None:
    """Up to the bits that integer layers round activations to, which the order of sums tips."""
    checkpoint = checkpoints(EVEN)
    tokens = prompt_of(EVEN)
    options = {"dt_weight": DataType[weight], "dt_kv": DataType.F32}
    with checkpoint.driver(**options) as driver:
        expected = driver.logits(tokens)
    for ndev in RANKS:
        with checkpoint.driver(ndev=ndev, **options) as driver:
            assert difference(driver.logits(tokens), expected) < tolerance


@pytest.mark.cpu_only
@pytest.mark.parametrize("weight", ["INT8", "INT4"])
def test_cut_groups_are_as_coarse(checkpoints: Make, weight: str) -> None:
    """Heads of half a group are quantised differently when cut, but not worse."""
    checkpoint = checkpoints(UNTIED)
    tokens = prompt_of(UNTIED)
    oracle = forward(checkpoint.config, checkpoint.tensors, tokens)
    errors = []
    for ndev in [1, *RANKS]:
        with checkpoint.driver(ndev=ndev, dt_weight=DataType[weight]) as driver:
            errors.append(float(np.sqrt(np.mean((driver.logits(tokens) - oracle) ** 2))))
    assert max(errors) < 1.2 * errors[0], errors


@pytest.mark.parametrize("dtype", [None, "bf12", "int8", "int4"])
def test_demo_text(target: Target, dtype: str | None) -> None:
    """The demo model has six query and two KV heads."""
    if not target.cpu:
        if dtype:
            pytest.skip("InfiniCore has no quantised formats")
        dtype = "f32"  # sums rounded to 16 bits may tip a token
    texts = set()
    for ndev in (1, 2, 6):
        with Qwen3ForCausalLM(
            DEMO, device=target.device, ndev=ndev, threads=2, dtype=dtype
        ) as model:
            texts.add(model.generate("Once upon a time", max_steps=60, temperature=0).text)
    assert len(texts) == 1 and len(texts.pop()) > 40


@pytest.mark.cpu_only
@pytest.mark.skipif(not has_infinicore(), reason="the library was built without InfiniCore")
@pytest.mark.parametrize("dt_logits", ["F32", "BF16", "F16"])
def test_infinicore_cpu(checkpoints: Make, dt_logits: str) -> None:
    """InfiniCore's CPU device, whose ranks share the host's memory too."""
    checkpoint = checkpoints(ODD)
    tokens = prompt_of(ODD)
    oracle = forward(checkpoint.config, checkpoint.tensors, tokens)
    tolerance = {"F32": EXACT, "BF16": 0.2, "F16": 0.03}[dt_logits]
    for ndev in (1, 2, 4):
        options = {"backend": Backend.INFINICORE, "dt_logits": DataType[dt_logits]}
        with checkpoint.driver(ndev=ndev, nthreads=ndev, **options) as driver:
            assert difference(driver.logits(tokens), oracle) < tolerance


@pytest.mark.cpu_only
def test_memory_is_divided(checkpoints: Make) -> None:
    """No weight is held twice but the norms; KV heads are as soon as there are fewer than ranks."""
    for spec, replicas in ((EVEN, {2: 1, 4: 1, 8: 2}), (UNTIED, {2: 1, 4: 1, 8: 1})):
        checkpoint = checkpoints(spec)
        tensors = checkpoint.tensors
        matrices = sum(t.size for t in tensors.values() if t.ndim == 2)
        vectors = sum(t.size for n, t in tensors.items() if "norm" in n)
        bias = sum(t.size for n, t in tensors.items() if n.endswith("bias"))
        with checkpoint.driver(nthreads=4) as driver:
            whole = driver.stats()
        for ndev in RANKS:
            with checkpoint.driver(ndev=ndev, nthreads=ndev, kv_limit_bytes=10**6) as driver:
                stats = driver.stats()
                assert stats.kv_block_bytes == whole.kv_block_bytes * replicas[ndev]
                assert (stats.kv_used_bytes, stats.kv_limit_bytes) == (0, 10**6)
                driver.logits(prompt_of(spec, 20))
                with driver.caches(1) as (cache,):
                    driver.forward([(cache, 0, prompt_of(spec, 20))])
                    assert driver.stats().kv_used_bytes == 2 * stats.kv_block_bytes
                assert stats.nthreads == ndev
                kv = sum(t.size for n, t in tensors.items() if "k_proj.w" in n or "v_proj.w" in n)
                extra = 4 * (ndev - 1) * vectors + 2 * (replicas[ndev] - 1) * kv
                # Padding to panels, and biases as float32 in whole panels.
                slack = 64 * ndev * spec.nlayer * 16 + 4 * bias
                assert 2 * matrices < stats.weight_bytes
                assert stats.weight_bytes <= whole.weight_bytes + extra + slack


@pytest.mark.parametrize(
    ("spec", "ndev", "allowed"),
    [(ODD, 3, "1, 2, 4 or 8"), (ODD, 16, "1, 2, 4 or 8"), (EVEN, 5, "1, 2, 4 or 8")],
)
def test_bad_splits(checkpoints: Make, spec: CheckpointSpec, ndev: int, allowed: str) -> None:
    with pytest.raises(ValueError) as caught:
        checkpoints(spec).driver(ndev=ndev)
    assert isinstance(caught.value, Qwen3Error)
    text = f"ndev is {ndev}: a model of nh {spec.nh} and nkvh {spec.nkvh} heads can be cut over "
    assert text + f"{allowed} devices" in caught.value.message
    assert caught.value.status_name == "QWEN3_STATUS_BAD_PARAM"


def test_bad_values_name_the_rank(checkpoints: Make) -> None:
    """The second half of the MLP is the second rank's; the model is not created."""
    checkpoint = checkpoints(EVEN)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = dict(checkpoint.tensors)
    tensors[name] = tensors[name].copy()
    tensors[name][300, 5] = 0x7FC0  # NaN
    with pytest.raises(ValueError, match=r"rank 1 of 2: (weight )?ffn_gate_up of layer 1"):
        checkpoint.driver(tensors, ndev=2)


@pytest.mark.cpu_only
def test_threads_are_divided(checkpoints: Make) -> None:
    """With fewer threads than ranks each rank has one."""
    for ndev, nthreads, expected in ((2, 5, 5), (4, 2, 4), (8, 8, 8)):
        with checkpoints(EVEN).driver(ndev=ndev, nthreads=nthreads) as driver:
            assert driver.stats().nthreads == expected
            assert np.isfinite(driver.logits([1, 2, 3])).all()

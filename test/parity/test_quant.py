"""Quantised weight formats: int8 against an oracle with the same rounding, int4 by its error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from parity.conftest import Checkpoint
from parity.driver import Backend, DataType
from reference.qwen3_numpy import bf16_to_float, forward
from reference.random_checkpoint import CheckpointSpec

pytestmark = pytest.mark.cpu_only
Array = npt.NDArray[Any]
SPEC = CheckpointSpec("quant", seed=51, d=80, di=200, dh=32, nh=4, nkvh=2, dvoc=300, dtype="bf16")
GROUP = 32


def dequantized_int8(matrix: Array) -> Array:
    """Round [out, in] as the header says: groups of 32, scale largest / 127, up to bf16."""
    rows, k = matrix.shape
    padded = np.zeros((rows, -(-k // GROUP) * GROUP), np.float32)
    padded[:, :k] = matrix
    groups = padded.reshape(rows, -1, GROUP)
    exact = np.abs(groups).max(axis=2, keepdims=True) / np.float32(127)
    bits = exact.astype(np.float32).view(np.uint32)
    up = (bits >> 16) + ((bits & 0xFFFF) != 0)
    scale = (up.astype(np.uint32) << 16).view(np.float32)
    inverse = np.float32(1) / np.where(scale == 0, np.float32(1), scale)
    return (np.rint(groups * inverse) * scale).reshape(rows, -1)[:, :k].astype(np.float64)


def quantized_tensors(checkpoint: Checkpoint) -> dict[str, Array]:
    """The checkpoint's tensors with every matrix rounded to int8."""
    result = {}
    for name, tensor in checkpoint.tensors.items():
        values = bf16_to_float(tensor) if tensor.dtype == np.uint16 else tensor
        result[name] = dequantized_int8(values) if values.ndim == 2 else values.astype(np.float64)
    return result


def test_int8_against_oracle(checkpoints: Callable[[CheckpointSpec], Checkpoint]) -> None:
    """The logits are those of the float64 oracle on the rounded weights, but for the activations'
    16-bit codes: 1e-4 a layer, where the rounding of the weights costs 1e-2."""
    checkpoint = checkpoints(SPEC)
    tokens = np.random.default_rng(0).integers(0, SPEC.dvoc, 60).tolist()
    expected = forward(checkpoint.config, quantized_tensors(checkpoint), tokens)
    with checkpoint.driver(
        backend=Backend.CPU, dt_weight=DataType.INT8, dt_kv=DataType.F32
    ) as driver:
        logits = driver.logits(tokens)
    assert np.abs(logits - expected).max() / expected.std() < 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_bf12_is_lossless(checkpoints: Callable[[CheckpointSpec], Checkpoint], tied: bool) -> None:
    """Bit for bit the logits of bf16, in prefill and decode."""
    checkpoint = checkpoints(replace(SPEC, name=f"bf12_{tied}", tied=tied, bias=True))
    tokens = np.random.default_rng(2).integers(0, SPEC.dvoc, 40).tolist()
    logits = []
    for dtype in (DataType.BF16, DataType.BF12):
        with checkpoint.driver(backend=Backend.CPU, dt_weight=dtype) as driver:
            steps = [driver.logits(tokens[:n]) for n in (1, 2, 6, 40)]
            logits.append(np.concatenate(steps).view(np.uint32))
    assert np.array_equal(*logits)


@pytest.mark.parametrize(("dtype", "limit"), [("INT8", 0.03), ("INT4_MIXED", 0.35), ("INT4", 0.35)])
def test_relative_logit_error(
    checkpoints: Callable[[CheckpointSpec], Checkpoint], dtype: str, limit: float
) -> None:
    """Random weights are the worst case: relative noise of 0.5 % (int8) and 8 % (int4) a matrix."""
    checkpoint = checkpoints(SPEC)
    tokens = np.random.default_rng(1).integers(0, SPEC.dvoc, 60).tolist()
    with checkpoint.driver(backend=Backend.CPU, dt_kv=DataType.F32) as driver:
        exact = driver.logits(tokens)
    with checkpoint.driver(
        backend=Backend.CPU, dt_weight=DataType[dtype], dt_kv=DataType.F32
    ) as driver:
        error = driver.logits(tokens) - exact
    relative = float(np.sqrt((error**2).mean() / (exact**2).mean()))
    assert 0 < relative < limit, relative


def test_int8_kv(checkpoints: Callable[[CheckpointSpec], Checkpoint]) -> None:
    """K and V in int8 cost at most a percent of the logits, and 0.6 of f16's memory."""
    checkpoint = checkpoints(SPEC)
    tokens = np.random.default_rng(3).integers(0, SPEC.dvoc, 60).tolist()
    logits, sizes = {}, {}
    for dtype in (DataType.F32, DataType.F16, DataType.INT8):
        with checkpoint.driver(backend=Backend.CPU, dt_kv=dtype) as driver:
            logits[dtype] = driver.logits(tokens)
            sizes[dtype] = driver.stats().kv_block_bytes
    exact = logits[DataType.F32]
    error = logits[DataType.INT8] - exact
    relative = float(np.sqrt((error**2).mean() / (exact**2).mean()))
    assert 1e-4 < relative < 0.01, relative
    assert sizes[DataType.INT8] <= 0.6 * sizes[DataType.F16]


def test_infinicore_refuses(checkpoints: Callable[[CheckpointSpec], Checkpoint]) -> None:
    """The InfiniCore backend has no quantised formats and says so."""
    with pytest.raises(Exception, match=r"dt_weight|int8|install_infinicore"):
        checkpoints(SPEC).driver(backend=Backend.INFINICORE, dt_weight=DataType.INT8)

"""Quantised checkpoints through ``Qwen3Tensor``: bit for bit the model of their decoded values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from libinfinicore_infer import Activations, DataType, Qwen3Error, WeightCache, check
from parity.conftest import Checkpoint
from parity.driver import Driver
from reference import coded_numpy as coded
from reference.coded_numpy import Coded
from reference.random_checkpoint import CheckpointSpec

pytestmark = pytest.mark.cpu_only
Array = npt.NDArray[Any]
# K-quants have rows of whole blocks of 256; cuts for two ranks are inside of them.
SPEC = CheckpointSpec(
    "coded", seed=61, d=256, di=256, dh=32, nh=8, nkvh=4, nlayer=2, dvoc=72, dtype="f32", tied=False
)
Maker = Callable[[np.random.Generator, int, int], Coded]


def gguf_maker(name: str) -> Maker:
    """Returns what makes tensors of a GGUF type."""
    return lambda rng, rows, cols: coded.gguf_tensor(rng, rows, cols, name)


FORMATS: dict[str, Maker] = {
    **{name.lower(): gguf_maker(name) for name in coded.HALVES},
    "fp8_block": lambda rng, n, k: coded.fp8_tensor(rng, n, k, (128, 128), "bf16"),
    "fp8_block_ragged": lambda rng, n, k: coded.fp8_tensor(rng, n, k, (48, 80), "float16"),
    "fp8_channel": lambda rng, n, k: coded.fp8_tensor(rng, n, k, (1, 0), "float32"),
    "fp8_tensor": lambda rng, n, k: coded.fp8_tensor(rng, n, k, (0, 0), "float32"),
    "int8_channel": lambda rng, n, k: coded.int8_tensor(rng, n, k, 0, "bf16"),
    "int8_group": lambda rng, n, k: coded.int8_tensor(rng, n, k, 128, "float32"),
    "gptq": coded.gptq_tensor,
    "gptq_v2": lambda rng, n, k: coded.gptq_tensor(rng, n, k, version=2),
    "gptq_int8": lambda rng, n, k: coded.gptq_tensor(rng, n, k, bits=8, group=128),
    "gptq_whole": lambda rng, n, k: coded.gptq_tensor(rng, n, k, group=0),
    "gptq_act_order": lambda rng, n, k: coded.gptq_tensor(rng, n, k, act_order="own"),
    "gptq_shared_order": lambda rng, n, k: coded.gptq_tensor(rng, n, k, 8, 64, act_order="shared"),
    "gptq_uneven": lambda rng, n, k: coded.gptq_tensor(rng, n, k, 4, 64, act_order="uneven"),
    "awq": coded.awq_tensor,
    "packed": coded.packed_tensor,
    "packed_asymmetric": lambda rng, n, k: coded.packed_tensor(rng, n, k, symmetric=False),
    "packed_int8": lambda rng, n, k: coded.packed_tensor(rng, n, k, bits=8, group=64),
}


def coded_matrices(checkpoint: Checkpoint, maker: Maker) -> dict[str, Coded]:
    """Random values in the format in place of every matrix, head and embedding included."""
    rng = np.random.default_rng(7)
    return {
        name: maker(rng, *tensor.shape)
        for name, tensor in checkpoint.tensors.items()
        if tensor.ndim == 2
    }


def decoded_driver(checkpoint: Checkpoint, tensors: dict[str, Coded], **options: Any) -> Driver:
    """The model of the decoded values, as F32."""
    values = {**checkpoint.tensors, **{name: t.values for name, t in tensors.items()}}
    return Driver(checkpoint.config, values, **options)


def expected_of(
    checkpoint: Checkpoint, tensors: dict[str, Coded], ntok: int
) -> tuple[list[int], Array]:
    """Returns random tokens, and their logits with the decoded values."""
    tokens = np.random.default_rng(0).integers(0, SPEC.dvoc, ntok).tolist()
    with decoded_driver(checkpoint, tensors, dt_weight=DataType.F32) as driver:
        return tokens, driver.logits(tokens)


def one_by_one(driver: Driver, tokens: list[int]) -> Array:
    """Returns the logits of tokens that are computed one after the other."""
    with driver.caches(1) as (cache,):
        steps = [driver.forward([(cache, i, [t])])[0] for i, t in enumerate(tokens)]
    return np.concatenate(steps)


def rms_error(logits: Array, expected: Array) -> float:
    """Returns the error in standard deviations of what was expected."""
    return float(np.sqrt(np.mean((logits - expected) ** 2)) / expected.std())


@pytest.mark.parametrize("name", FORMATS)
def test_decoded_values(checkpoints: Callable[[CheckpointSpec], Checkpoint], name: str) -> None:
    """Packed as floats, the logits are those of the decoded values, on two ranks too."""
    checkpoint = checkpoints(SPEC)
    tensors = coded_matrices(checkpoint, FORMATS[name])
    tokens = np.random.default_rng(0).integers(0, SPEC.dvoc, 9).tolist()
    for ndev in (1, 2):
        options = {"dt_weight": DataType.F32, "ndev": ndev, "nthreads": 2}
        with decoded_driver(checkpoint, tensors, **options) as driver:
            expected = driver.logits(tokens)
        with Driver(checkpoint.config, checkpoint.tensors, coded=tensors, **options) as driver:
            logits = driver.logits(tokens)
        assert np.isfinite(expected).all() and expected.std() > 0
        assert np.array_equal(logits, expected)


@pytest.mark.parametrize("dtype", ["BF16", "BF12", "INT8", "INT4"])
@pytest.mark.parametrize("name", ["q4_k", "awq", "fp8_block"])
def test_repacked(
    checkpoints: Callable[[CheckpointSpec], Checkpoint], name: str, dtype: str
) -> None:
    """A coded checkpoint packs into any format as its decoded values do, tied embeddings too."""
    checkpoint = checkpoints(SPEC)
    tensors = coded_matrices(checkpoint, FORMATS[name])
    del tensors["lm_head.weight"]
    config = {**checkpoint.config, "tie_word_embeddings": True}
    tokens = np.random.default_rng(0).integers(0, SPEC.dvoc, 9).tolist()
    logits = []
    for given in ({"coded": tensors}, {}):
        values = {**checkpoint.tensors, **{name: t.values for name, t in tensors.items()}}
        with Driver(config, values, dt_weight=DataType[dtype], **given) as driver:
            logits.append(driver.logits(tokens))
    assert np.array_equal(*logits)


KEPT = [name for name in FORMATS if name != "fp8_block_ragged"]


@pytest.mark.parametrize("name", KEPT)
def test_kept_as_codes(checkpoints: Callable[[CheckpointSpec], Checkpoint], name: str) -> None:
    """By default the checkpoint's own numbers are used, and activations are rounded to 8 bits."""
    checkpoint = checkpoints(SPEC)
    tensors = coded_matrices(checkpoint, FORMATS[name])
    tokens, expected = expected_of(checkpoint, tensors, 21)
    logits = []
    for options in ({"nthreads": 1}, {"nthreads": 3}, {"max_step_tokens": 5}):
        with Driver(checkpoint.config, checkpoint.tensors, coded=tensors, **options) as driver:
            logits.append(driver.logits(tokens))
            assert np.array_equal(one_by_one(driver, tokens), logits[-1])
    assert np.array_equal(logits[0], logits[1])
    assert np.array_equal(logits[0], logits[2])
    assert rms_error(logits[0], expected) < 0.05  # as int4's activations: 1e-2 a layer


WIDE = ["q8_0", "q4_0", "awq", "packed_asymmetric", "int8_channel", "gptq_act_order", "gptq_uneven"]


@pytest.mark.parametrize(
    ("name", "ndev"), [(name, 1) for name in WIDE] + [(name, 2) for name in WIDE[-2:]]
)
def test_wide_activations(
    checkpoints: Callable[[CheckpointSpec], Checkpoint], name: str, ndev: int
) -> None:
    """Codes of 16 bits bring the logits far nearer to those of the decoded values."""
    checkpoint = checkpoints(SPEC)
    tensors = coded_matrices(checkpoint, FORMATS[name])
    tokens, expected = expected_of(checkpoint, tensors, 14)
    error = []
    for activations in (Activations.INT8, Activations.INT16):
        options = {"activations": activations, "dt_kv": DataType.F32, "coded": tensors}
        options |= {"ndev": ndev, "nthreads": 2}
        with Driver(checkpoint.config, checkpoint.tensors, **options) as driver:
            logits = driver.logits(tokens)
            error.append(rms_error(logits, expected))
            assert np.array_equal(one_by_one(driver, tokens), logits)
    assert 0 < error[1] < error[0] / 64


def test_columns_in_any_order(checkpoints: Callable[[CheckpointSpec], Checkpoint]) -> None:
    """They take the bits of columns in order, and 4 bytes a column."""
    checkpoint = checkpoints(SPEC)
    size = {}
    for name in ("gptq", "gptq_act_order", "gptq_uneven"):
        tensors = coded_matrices(checkpoint, FORMATS[name])
        with Driver(checkpoint.config, checkpoint.tensors, coded=tensors) as driver:
            size[name] = driver.stats().weight_bytes
    columns = sum(t.values.shape[1] for t in tensors.values())
    assert size["gptq"] < size["gptq_act_order"] <= size["gptq"] + 4 * columns
    assert size["gptq_act_order"] < size["gptq_uneven"] < 2 * size["gptq_act_order"]


def test_order_of_tied_columns(checkpoints: Callable[[CheckpointSpec], Checkpoint]) -> None:
    """Embeddings are read from the head's panels, whose columns are in its order."""
    checkpoint = checkpoints(SPEC)
    tensors = coded_matrices(checkpoint, FORMATS["gptq_uneven"])
    del tensors["lm_head.weight"]
    config = {**checkpoint.config, "tie_word_embeddings": True}
    values = {**checkpoint.tensors, **{name: t.values for name, t in tensors.items()}}
    tokens = list(range(0, SPEC.dvoc, 5))
    with Driver(config, values, dt_weight=DataType.F32) as driver:
        expected = driver.logits(tokens)
    options = {"activations": Activations.INT16, "dt_kv": DataType.F32}
    with Driver(config, checkpoint.tensors, coded=tensors, **options) as driver:
        assert rms_error(driver.logits(tokens), expected) < 1e-3


def test_order_is_kept_with_weights(
    checkpoints: Callable[[CheckpointSpec], Checkpoint], tmp_path: Path
) -> None:
    """A file of packed weights, or of a KV cache, fits only the order it was made with."""
    checkpoint = checkpoints(SPEC)
    tensors = coded_matrices(checkpoint, FORMATS["gptq_act_order"])
    tensor = tensors["model.layers.1.mlp.down_proj.weight"]
    assert tensor.groups is not None
    other = {
        **tensors,
        "model.layers.1.mlp.down_proj.weight": replace(tensor, groups=tensor.groups[::-1]),
    }
    packed, kv = tmp_path / "packed", tmp_path / "kv"
    for ndev in (1, 2):
        made = []
        for state, given in (("ABSENT", tensors), ("LOADED", tensors), ("STALE", other)):
            options = {
                "coded": given,
                "cache_path": str(packed).encode(),
                "ndev": ndev,
                "nthreads": 2,
            }
            with Driver(checkpoint.config, checkpoint.tensors, **options) as driver:
                assert driver.stats().weight_cache == WeightCache[state]
                made.append(driver.logits(range(9)))
                if state == "ABSENT":
                    check(
                        driver.lib,
                        driver.lib.qwen3SaveWeights(driver.model, str(packed).encode(), None),
                    )
                    with driver.caches(1) as (cache,):
                        driver.forward([(cache, 0, list(range(9)))])
                        driver.save(cache, list(range(9)), kv)
                elif state == "LOADED":
                    driver.drop(driver.load(kv)[0])
                else:
                    with pytest.raises(Qwen3Error, match="weights"):
                        driver.load(kv)
        assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])
        packed.unlink()


def test_finer_input(checkpoints: Callable[[CheckpointSpec], Checkpoint]) -> None:
    """Where all but the first layer's q, k and v make nothing of codes, they meet 16 bits."""
    for nlayer, finer in ((4, True), (2, False)):
        checkpoint = checkpoints(replace(SPEC, name=f"coded{nlayer}", nlayer=nlayer))
        tensors = coded_matrices(checkpoint, FORMATS["q8_0"])
        for name, tensor in list(tensors.items()):
            if name.endswith(("o_proj.weight", "down_proj.weight")) or "layers" not in name:
                del tensors[name]
            elif "layers.0.self_attn" not in name:
                tensors[name] = replace(tensor, data=np.zeros_like(tensor.data))
        logits = []
        for activations in (Activations.INT8, Activations.INT16):
            options = {"activations": activations, "coded": tensors}
            with Driver(checkpoint.config, checkpoint.tensors, **options) as driver:
                logits.append(driver.logits(range(9)))
        assert np.array_equal(*logits) == finer


def test_wide_activations_refused(checkpoints: Callable[[CheckpointSpec], Checkpoint]) -> None:
    """K-quants take 8 bits only, and say so."""
    checkpoint = checkpoints(SPEC)
    tensors = coded_matrices(checkpoint, FORMATS["q6_k"])
    with pytest.raises(Qwen3Error, match=r"activations is int16: weights .* take auto, int8 "):
        Driver(checkpoint.config, checkpoint.tensors, coded=tensors, activations=Activations.INT16)

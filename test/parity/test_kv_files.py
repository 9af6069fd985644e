"""KV caches in files: what comes back computes the same bits, and nothing else comes back."""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from libinfinicore_infer import (
    Qwen3Error,
    Qwen3NotImplementedError,
    Qwen3OutOfKVError,
    Qwen3ValueError,
    Status,
)
from parity.driver import Backend, DataType, Driver, has_infinicore
from parity.test_invariants import CASES, Alone, Make, assert_equal
from reference.random_checkpoint import CheckpointSpec

pytestmark = pytest.mark.cpu_only  # the CPU backend alone saves caches

SPEC = CheckpointSpec("kv_file", dtype="bf16", seed=41)
PROMPT = list(range(5, 45))
OPTIONS = {"backend": Backend.CPU, "nthreads": 1}


@pytest.fixture
def driver(checkpoints: Make) -> Iterator[Driver]:
    with checkpoints(SPEC).driver(**OPTIONS) as driver:
        yield driver
        assert driver.stats().kv_used_bytes == driver.stats().ncaches == 0


@pytest.fixture
def file(driver: Driver, tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    with driver.caches(1) as (cache,):
        driver.forward([(cache, 0, PROMPT)])
        driver.save(cache, PROMPT, path)
    return path


def refused(driver: Driver, path: Path) -> Qwen3Error:
    with pytest.raises(Qwen3Error) as error:
        driver.load(path)
    return error.value


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_same_bits(
    checkpoints: Make, tmp_path: Path, case: tuple[str, CheckpointSpec, dict]
) -> None:
    """In a model of another thread count that never saw the tokens; lengths in and out of step."""
    _, spec, options = case
    alone = Alone(checkpoints(spec), options)
    tokens = alone.tokens(1, 75)
    expected = alone.logits(tokens)
    with alone.driver(nthreads=2) as saver, saver.caches(1) as (cache,):
        saver.forward([(cache, 0, tokens)])
        for length in (1, 16, 40, 75):
            saver.save(cache, tokens[:length], tmp_path / str(length))
        assert saver.length(cache) == 75 and saver.fingerprint() == alone.reference.fingerprint()
    with alone.driver(nthreads=3) as loader:
        for length in (1, 16, 40, 75):
            cache, stored = loader.load(tmp_path / str(length), capacity=length)
            assert stored == tokens[:length] and loader.length(cache) == length
            pos = min(length, 74)  # of the whole one, the last token again
            assert_equal(loader.forward([(cache, pos, tokens[pos:])])[0], expected[pos:])
            loader.drop(cache)
        assert loader.stats().kv_used_bytes == 0
    alone.reference.close()


def test_saved_while_it_changes(driver: Driver, tmp_path: Path) -> None:
    """Saving takes a snapshot: the cache goes on, is rewound, is dropped; the file is the same."""
    with driver.caches(1) as (cache,):
        driver.forward([(cache, 0, PROMPT)])
        driver.save(cache, PROMPT, tmp_path / "a")
        driver.forward([(cache, 3, [9, 9, 9])])
        again, _ = driver.load(tmp_path / "a")
        driver.save(again, PROMPT, tmp_path / "b")
        driver.drop(again)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


OTHERS = {
    "weights": (CheckpointSpec("kv_file_weights", dtype="bf16", seed=42), {}),
    "kv": (SPEC, {"dt_kv": DataType.INT8}),
    "weights ": (SPEC, {"dt_weight": DataType.INT8}),
    "ndev": (SPEC, {"ndev": 2}),
    "sizes": (CheckpointSpec("kv_file_sizes", nlayer=3, dtype="bf16", seed=41), {}),
    "rope": (CheckpointSpec("kv_file_rope", dtype="bf16", seed=41, theta=9999.0), {}),
    "epsilon": (CheckpointSpec("kv_file_epsilon", dtype="bf16", seed=41, epsilon=2e-6), {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_of_another_model(checkpoints: Make, driver: Driver, file: Path, name: str) -> None:
    spec, options = OTHERS[name]
    with checkpoints(spec).driver(**{**OPTIONS, **options}) as other:
        error = refused(other, file)
        assert isinstance(error, Qwen3ValueError) and error.status == Status.CACHE_MISMATCH
        assert f"of another model: it has {name.strip()}=" in str(error) and str(file) in str(error)
        assert other.fingerprint() != driver.fingerprint()
        assert other.stats().kv_used_bytes == other.stats().ncaches == 0
        assert np.isfinite(other.logits(PROMPT)).all()


def test_one_weight_is_enough(checkpoints: Make, driver: Driver, file: Path) -> None:
    checkpoint = checkpoints(SPEC)
    tensors = {name: array.copy() for name, array in checkpoint.tensors.items()}
    tensors["model.layers.1.mlp.down_proj.weight"][-1, -1] ^= 1
    with Driver(checkpoint.config, tensors, **OPTIONS) as other:
        assert "it has weights=" in str(refused(other, file))


def test_changed_bytes(driver: Driver, file: Path) -> None:
    """A changed byte is noticed, or was none that is used."""
    good = file.read_bytes()
    expected = driver.logits([*PROMPT, 1])[-1:]
    rng = random.Random(3)
    places = [*range(0, 64, 3), *(len(good) - 1 - 5 * i for i in range(40))]
    places += [rng.randrange(4096, len(good)) for _ in range(40)]
    unnoticed = 0
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        try:
            cache, tokens = driver.load(file)
        except Qwen3Error as error:
            damaged = error.status == Status.IO_ERROR and "damaged" in str(error)
            assert damaged or (error.status == Status.CACHE_MISMATCH and "version" in str(error))
            continue
        unnoticed += 1  # padding between blobs
        assert tokens == PROMPT
        assert_equal(driver.forward([(cache, len(PROMPT), [1])])[0], expected)
        driver.drop(cache)
    assert unnoticed <= 5


def test_not_such_files(driver: Driver, file: Path, tmp_path: Path) -> None:
    good = file.read_bytes()
    contents = [good[:n] for n in (0, 1, 63, 64, 4095, 4096, 5000, len(good) // 2, len(good) - 1)]
    for content in [*contents, good + b"\0", bytes(len(good)), b"nothing of the kind" * 999]:
        file.write_bytes(content)
        error = refused(driver, file)
        assert (
            error.status == Status.IO_ERROR and "damaged" in str(error) and str(file) in str(error)
        )
    error = refused(driver, tmp_path / "none")
    assert error.status == Status.IO_ERROR and "No such file" in str(error)
    assert refused(driver, tmp_path).status == Status.IO_ERROR
    check = driver.lib.qwen3SaveWeights(driver.model, str(file).encode(), b"key")
    assert check == Status.SUCCESS
    assert "holds no KV cache" in str(refused(driver, file))


def test_limits(checkpoints: Make, driver: Driver, file: Path) -> None:
    with pytest.raises(Qwen3ValueError, match="holds 40 tokens, capacity is 39"):
        driver.load(file, capacity=39)
    block = driver.stats().kv_block_bytes
    with checkpoints(SPEC).driver(**OPTIONS, kv_limit_bytes=3 * block) as small:
        cache, _ = small.load(file)
        with pytest.raises(Qwen3OutOfKVError, match=f"needs {3 * block} more bytes"):
            small.load(file)
        assert small.stats().kv_used_bytes == 3 * block
        small.drop(cache)
    short = CheckpointSpec("kv_file_short", dtype="bf16", seed=41, dctx=32)
    with checkpoints(short).driver(**OPTIONS) as other:
        error = refused(other, file)
        assert error.status == Status.CONTEXT_OVERFLOW and "40 tokens, the context 32" in str(error)


def test_a_full_disk(driver: Driver, file: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands in for it: writing fails in the middle of the file."""
    before = file.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with driver.caches(1) as (cache,):
        driver.forward([(cache, 0, PROMPT)])
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, old[1]))
        try:
            with pytest.raises(Qwen3Error, match=r"could not write.*File too large") as error:
                driver.save(cache, PROMPT, file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, handler)
        assert error.value.status == Status.IO_ERROR
        assert_equal(driver.forward([(cache, 40, [1])])[0], driver.logits([*PROMPT, 1])[-1:])
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(not has_infinicore(), reason="this build has no InfiniCore backend")
def test_infinicore_says_so(checkpoints: Callable, tmp_path: Path) -> None:
    with checkpoints(SPEC).driver(backend=Backend.INFINICORE) as driver:
        with driver.caches(1) as (cache,):
            driver.forward([(cache, 0, [1, 2])])
            with pytest.raises(Qwen3NotImplementedError, match="only the CPU backend can"):
                driver.save(cache, [1, 2], tmp_path / "file")
        with pytest.raises(Qwen3NotImplementedError, match="only the CPU backend can"):
            driver.load(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []

"""Hidden states of embedBatch: against the numpy oracle and transformers, and to the bit.

The oracle's head is the identity here, so its logits are the states. Tolerances are those of
test_forward.py, in standard deviations of the states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from libinfinicore_infer import Qwen3Error
from parity.conftest import Checkpoint
from parity.driver import DataType, Driver
from parity.target import Target
from parity.test_forward import EXACT, difference, prompt_of
from parity.test_invariants import assert_equal
from reference.qwen3_numpy import forward
from reference.random_checkpoint import CheckpointSpec

Array = npt.NDArray[Any]
Make = Callable[[CheckpointSpec], Checkpoint]

SPECS = [
    CheckpointSpec("emb_odd", d=71, di=201, dh=26, nh=6, nkvh=2, dvoc=517, bias=True, seed=61),
    CheckpointSpec("emb_untied", nh=8, nkvh=2, dh=16, dtype="bf16", tied=False, seed=62),
    CheckpointSpec("emb_f16", nh=4, nkvh=2, dtype="f16", dvoc=333, seed=63),
]


@pytest.fixture(params=SPECS, ids=lambda spec: spec.name)
def checkpoint(request: pytest.FixtureRequest, checkpoints: Make) -> Checkpoint:
    return checkpoints(request.param)


def oracle_of(checkpoint: Checkpoint, tokens: list[int]) -> Array:
    identity = np.eye(checkpoint.config["hidden_size"], dtype=np.float32)
    config = {**checkpoint.config, "tie_word_embeddings": False}
    return forward(config, {**checkpoint.tensors, "lm_head.weight": identity}, tokens)


def test_states_are_the_oracles(checkpoint: Checkpoint, target: Target) -> None:
    tokens = prompt_of(checkpoint.spec)
    exact = {"dt_kv": DataType.F32} if target.cpu else {}
    with checkpoint.driver(**exact) as driver, driver.caches(1) as (cache,):
        states = driver.embed([(cache, 0, tokens)], range(len(tokens)))
        assert difference(states, oracle_of(checkpoint, tokens)) < EXACT
        assert driver.length(cache) == len(tokens)


@pytest.mark.cpu_only
def test_states_are_transformers(checkpoint: Checkpoint) -> None:
    tokens = prompt_of(checkpoint.spec)
    with torch.no_grad():
        body = checkpoint.transformers(torch.float32).model
        expected = body(torch.tensor([tokens])).last_hidden_state[0].numpy()
    with checkpoint.driver(dt_kv=DataType.F32) as driver, driver.caches(1) as (cache,):
        states = driver.embed([(cache, 0, tokens)], range(len(tokens)))
    assert difference(states, expected) < EXACT


def alone(driver: Driver, tokens: list[int]) -> Array:
    with driver.caches(1) as (cache,):
        return driver.embed([(cache, 0, tokens)], range(len(tokens)))


@pytest.mark.parametrize("step", [7, 64])
def test_batches_chunks_and_threads(checkpoint: Checkpoint, step: int) -> None:
    """A state is the same alone, in a batch, in chunks, whichever rows are wanted besides."""
    lengths = [1, 19, 5, 33, 2, 16]
    texts = [prompt_of(checkpoint.spec, 40)[i : i + n] for i, n in enumerate(lengths)]
    with checkpoint.driver(nthreads=1) as driver:
        expected = [alone(driver, text) for text in texts]
    ends = np.cumsum(lengths)
    with checkpoint.driver(nthreads=3, max_step_tokens=step) as driver:
        with driver.caches(len(texts)) as caches:
            whole = [(cache, 0, text) for cache, text in zip(caches, texts, strict=True)]
            last = driver.embed(whole)
            assert_equal(last, np.stack([states[-1] for states in expected]), "last rows")
            rows = [0, 3, 19, 20, 58, int(ends[-1]) - 1]
            some = driver.embed(whole, rows)
            assert_equal(some, np.concatenate(expected)[rows], "some rows")
            # A prefix that is shared, the rest of a text beside another text.
            driver.embed([(caches[3], 0, texts[3][:20])])
            copy = driver.duplicate(caches[3], 20)
            rest = driver.embed([(copy, 20, texts[3][20:]), (caches[1], 0, texts[1])])
            assert_equal(rest, np.stack([expected[3][-1], expected[1][-1]]), "shared prefix")
            driver.drop(copy)


def test_logits_after_states(checkpoint: Checkpoint) -> None:
    """Calls for states and for logits leave each other alone."""
    tokens = prompt_of(checkpoint.spec, 24)
    with checkpoint.driver() as driver:
        expected = driver.logits(tokens)
        with driver.caches(1) as (cache,):
            driver.embed([(cache, 0, tokens[:10])])
            (logits,) = driver.forward([(cache, 10, tokens[10:])])
        assert_equal(logits, expected[10:], "logits after states")


def test_bad_rows(checkpoint: Checkpoint) -> None:
    with checkpoint.driver() as driver, driver.caches(1) as (cache,):
        for rows, words in (
            ([], "nrows is 0"),
            ([0, 9], r"rows\[1\] is 9, must be below ntok, 4"),
            ([2, 2], r"rows\[1\] is 2, must be above rows\[0\], 2"),
        ):
            with pytest.raises(Qwen3Error, match=words):
                driver.embed([(cache, 0, [1, 2, 0, 1])], rows)
            assert driver.length(cache) == 0

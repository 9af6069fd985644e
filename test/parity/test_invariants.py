"""What must not change a request's result, to the bit.

The batch around a request, the chunks its prompt comes in, the number of threads, copies of its
cache and rewinding it: logits are compared with ``==``. Only a change of instruction set or of
dtype may change them, within a tolerance.

All expectations come from :class:`Alone`: the logits of a sequence passed whole, in a cache of its
own, by a model of one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from libinfinicore_infer import Activations
from parity.conftest import Checkpoint
from parity.driver import DataType, Driver, Request, Sampling
from parity.target import Target
from reference.random_checkpoint import CheckpointSpec

Make = Callable[[CheckpointSpec], Checkpoint]
Array = npt.NDArray[np.float32]

F16, F32, BF16 = DataType.F16, DataType.F32, DataType.BF16
INT8, INT4, BF12 = DataType.INT8, DataType.INT4, DataType.BF12

# Sizes that are multiples of nothing, and the shape of the published models.
ODD = dict(d=72, di=200, dh=24, nh=6, nkvh=2, dvoc=517, nlayer=3, bias=True)
EVEN = dict(d=128, di=320, dh=64, nh=8, nkvh=2, dvoc=640, nlayer=2)
CASES = [
    ("odd_f32", CheckpointSpec("inv_odd_f32", seed=31, **ODD), {}),
    ("odd_bf16", CheckpointSpec("inv_odd_bf16", seed=32, dtype="bf16", **ODD), {}),
    ("even_f16", CheckpointSpec("inv_even_f16", seed=33, dtype="f16", **EVEN), {}),
    ("even_bf16", CheckpointSpec("inv_even_bf16", seed=34, dtype="bf16", **EVEN), {}),
    ("odd_f32_to_bf16", CheckpointSpec("inv_odd_f32", seed=31, **ODD), {"dt_weight": BF16}),
    ("odd_f32_to_f16", CheckpointSpec("inv_odd_f32", seed=31, **ODD), {"dt_weight": F16}),
    (
        "even_bf16_to_f32",
        CheckpointSpec("inv_even_bf16", seed=34, dtype="bf16", **EVEN),
        {"dt_weight": F32, "dt_kv": F32},
    ),
    (
        "even_bf16_kv_bf16",
        CheckpointSpec("inv_even_bf16", seed=34, dtype="bf16", **EVEN),
        {"dt_kv": BF16},
    ),
    (
        "even_bf16_kv_int8",
        CheckpointSpec("inv_even_bf16", seed=34, dtype="bf16", **EVEN),
        {"dt_kv": INT8},
    ),
    (
        "odd_bf16_kv_int8",
        CheckpointSpec("inv_odd_bf16", seed=32, dtype="bf16", **ODD),
        {"dt_kv": INT8},
    ),
    ("odd_f32_to_int8", CheckpointSpec("inv_odd_f32", seed=31, **ODD), {"dt_weight": INT8}),
    (
        "odd_f32_to_int8_times_int8",
        CheckpointSpec("inv_odd_f32", seed=31, **ODD),
        {"dt_weight": INT8, "activations": Activations.INT8},
    ),
    (
        "odd_f32_to_int8_times_int16",
        CheckpointSpec("inv_odd_f32", seed=31, **ODD),
        {"dt_weight": INT8, "activations": Activations.INT16},
    ),
    (
        "even_bf16_to_int4_times_int8",
        CheckpointSpec("inv_even_bf16", seed=34, dtype="bf16", **EVEN),
        {"dt_weight": INT4, "activations": Activations.INT8},
    ),
    (
        "odd_bf16_to_bf12",
        CheckpointSpec("inv_odd_bf16", seed=32, dtype="bf16", **ODD),
        {"dt_weight": BF12},
    ),
    (
        "odd_bf16_times_bf16",
        CheckpointSpec("inv_odd_bf16", seed=32, dtype="bf16", **ODD),
        {"activations": Activations.BF16},
    ),
    (
        "even_bf16_times_bf16_kv_f16",
        CheckpointSpec("inv_even_bf16", seed=34, dtype="bf16", **EVEN),
        {"activations": Activations.BF16, "dt_kv": F16},
    ),
    (
        "odd_bf16_times_bf16_kv_int8",
        CheckpointSpec("inv_odd_bf16", seed=32, dtype="bf16", **ODD),
        {"activations": Activations.BF16, "dt_kv": INT8},
    ),
    (
        "even_bf16_times_bf16x2",
        CheckpointSpec("inv_even_bf16", seed=34, dtype="bf16", **EVEN),
        {"activations": Activations.BF16X2},
    ),
    (
        "odd_bf16_to_bf12_times_bf16",
        CheckpointSpec("inv_odd_bf16", seed=32, dtype="bf16", **ODD),
        {"dt_weight": BF12, "activations": Activations.BF16},
    ),
    ("odd_f32_2_ranks", CheckpointSpec("inv_odd_f32", seed=31, **ODD), {"ndev": 2}),
    (
        "even_bf16_to_int8_4_ranks",
        CheckpointSpec("inv_even_bf16", seed=34, dtype="bf16", **EVEN),
        {"dt_weight": INT8, "ndev": 4},
    ),
    (
        "group8",
        CheckpointSpec("inv_group8", seed=35, nh=8, nkvh=1, dh=8, dtype="bf16", tied=False),
        {"dt_kv": F32},
    ),
]


class Alone:
    """A case's model, and the expected logits of any sequence."""

    def __init__(self, checkpoint: Checkpoint, options: dict[str, Any]) -> None:
        self.checkpoint = checkpoint
        self.options = options
        self.reference = self.driver(nthreads=1)
        self.known: dict[tuple[int, ...], Array] = {}

    def driver(self, **options: Any) -> Driver:
        return self.checkpoint.driver(**{**self.options, **options})

    def tokens(self, seed: int, n: int) -> list[int]:
        rng = np.random.default_rng([self.checkpoint.spec.seed, seed])
        return [int(t) for t in rng.integers(0, self.checkpoint.spec.dvoc, n)]

    def logits(self, tokens: Sequence[int]) -> Array:
        key = tuple(tokens)
        if key not in self.known:
            self.known[key] = self.reference.logits(tokens)
            assert np.isfinite(self.known[key]).all()
        return self.known[key]


@pytest.fixture(scope="module", params=CASES, ids=[case[0] for case in CASES])
def alone(request: pytest.FixtureRequest, checkpoints: Make, target: Target) -> Iterator[Alone]:
    _, spec, options = request.param
    alone = Alone(checkpoints(spec), target.typed(spec, options))
    yield alone
    alone.reference.close()


def assert_equal(actual: Array, expected: Array, what: str = "") -> None:
    """Equal to the bit; says how far off it is otherwise."""
    if not np.array_equal(actual, expected):
        rows = np.flatnonzero((actual != expected).any(axis=-1))
        worst = np.abs(actual - expected).max()
        raise AssertionError(f"{what}: rows {rows.tolist()[:20]} differ by up to {worst:.3g}")


# ---------------------------------------------------------------------- batch = alone


@pytest.mark.parametrize("nreq", range(1, 10))
def test_decode_batches(alone: Alone, nreq: int) -> None:
    """Decoding 1 to 9 requests of different lengths together."""
    prompts = [alone.tokens(i, 3 + 11 * i) for i in range(nreq)]
    with alone.driver() as driver, driver.caches(nreq) as caches:
        for cache, prompt in zip(caches, prompts, strict=True):
            driver.forward([(cache, 0, prompt[:-2])])
        for back in (2, 1):
            batch = [(c, len(p) - back, [p[-back]]) for c, p in zip(caches, prompts, strict=True)]
            for i, logits in enumerate(driver.forward(batch)):
                prefix = prompts[i][: len(prompts[i]) - back + 1]
                assert_equal(
                    logits, alone.logits(prompts[i])[len(prefix) - 1 : len(prefix)], f"{i}"
                )


def test_every_number_of_rows(alone: Alone) -> None:
    """A prompt of every length from 1 on: each small-batch kernel, its tails, and the GEMM."""
    prompt = alone.tokens(100, 70)
    whole = alone.logits(prompt)
    with alone.driver() as driver:
        for n in [*range(1, 40), 47, 48, 49, 63, 64, 65, 70]:
            assert_equal(driver.logits(prompt[:n]), whole[:n], f"{n} tokens")


@pytest.mark.parametrize("nreq", range(2, 10))
def test_mixed_batches(alone: Alone, nreq: int) -> None:
    """Decodes, prefills and continued prefills of different lengths in one call."""
    lengths = [1, 5, 1, 17, 2, 64, 1, 33, 8]
    starts = [9, 0, 40, 0, 7, 0, 1, 30, 0]
    prompts = [alone.tokens(200 + i, starts[i] + lengths[i]) for i in range(nreq)]
    with alone.driver() as driver, driver.caches(nreq) as caches:
        for i in range(nreq):
            if starts[i]:
                driver.forward([(caches[i], 0, prompts[i][: starts[i]])])
        batch = [(caches[i], starts[i], prompts[i][starts[i] :]) for i in range(nreq)]
        order = np.random.default_rng(nreq).permutation(nreq)
        for i, logits in zip(order, driver.forward([batch[i] for i in order]), strict=True):
            assert_equal(logits, alone.logits(prompts[i])[starts[i] :], f"request {i}")


def test_sampled_rows(alone: Alone) -> None:
    """inferBatch and inferBatchEx compute logits of last rows only: same tokens, same logprobs."""
    nreq = 9
    prompts = [alone.tokens(300 + i, 1 + 7 * i) for i in range(nreq)]
    expected = [int(alone.logits(p)[-1].argmax()) for p in prompts]
    ask = Sampling(top_logprobs=5)
    with alone.driver() as driver:
        single = []
        for prompt in prompts:
            with driver.caches(1) as (cache,):
                single += driver.sample([(cache, 0, prompt)], [ask])
        for n in range(1, nreq + 1):
            with driver.caches(n) as caches:
                batch = [(c, 0, p) for c, p in zip(caches, prompts, strict=False)]
                assert driver.infer(batch) == expected[:n]
                assert driver.sample(batch, [ask] * n) == single[:n]
                skipping = [Sampling(skip=i % 2 == 0, top_logprobs=5) for i in range(n)]
                assert driver.sample(batch, skipping)[1::2] == single[1:n:2]


def test_greedy_text(alone: Alone) -> None:
    """40 tokens for 5 requests that start and end at different steps, as a server runs them."""
    prompts = [alone.tokens(400 + i, 4 + 9 * i) for i in range(5)]

    def generate(driver: Driver, group: list[int]) -> list[list[int]]:
        texts = {i: list(prompts[i]) for i in group}
        with driver.caches(len(group)) as handles:
            cache_of = dict(zip(group, handles, strict=True))
            for now in range(40 + 3 * len(group)):
                live = [i for n, i in enumerate(group) if 3 * n <= now < 3 * n + 40]
                if not live:
                    continue
                batch: list[Request] = []
                for i in live:
                    done = driver.length(cache_of[i])
                    batch.append((cache_of[i], done, texts[i][done:]))
                for i, token in zip(live, driver.infer(batch), strict=True):
                    texts[i].append(token)
        return [texts[i] for i in group]

    with alone.driver() as driver:
        single = [generate(driver, [i])[0] for i in range(5)]
        assert generate(driver, [0, 1, 2, 3, 4]) == single
        assert generate(driver, [3, 1, 4]) == [single[3], single[1], single[4]]


# ---------------------------------------------------------------------- chunks and threads


@pytest.mark.parametrize("max_step_tokens", [1, 3, 16, 64, 0])
def test_chunked_is_whole(alone: Alone, max_step_tokens: int) -> None:
    """By the library's own chunks and by the caller's, at random cuts."""
    prompt = alone.tokens(500, 150)
    whole = alone.logits(prompt)
    rng = np.random.default_rng(max_step_tokens)
    with alone.driver(max_step_tokens=max_step_tokens) as driver:
        assert_equal(driver.logits(prompt), whole, "whole")
        for trial in range(4):
            cuts = sorted(rng.choice(np.arange(1, len(prompt)), size=4 * trial + 1, replace=False))
            edges = [0, *(int(c) for c in cuts), len(prompt)]
            with driver.caches(1) as (cache,):
                for start, end in pairwise(edges):
                    (logits,) = driver.forward([(cache, start, prompt[start:end])])
                    assert_equal(logits, whole[start:end], f"cuts {edges}, {start}:{end}")
        # a batch that is longer than a chunk, with chunk borders inside of requests
        prompts = [alone.tokens(510 + i, 1 + 30 * i) for i in range(4)]
        with driver.caches(4) as caches:
            batch = [(c, 0, p) for c, p in zip(caches, prompts, strict=True)]
            for i, logits in enumerate(driver.forward(batch)):
                assert_equal(logits, alone.logits(prompts[i]), f"batch, request {i}")
            expected = [int(alone.logits(p)[-1].argmax()) for p in prompts]
            assert driver.infer(batch) == expected


@pytest.mark.cpu_only
@pytest.mark.parametrize("nthreads", [1, 2, 3, 8])
def test_threads(alone: Alone, nthreads: int) -> None:
    prompts = [alone.tokens(600 + i, n) for i, n in enumerate((1, 2, 5, 100))]
    with alone.driver(nthreads=nthreads) as driver:
        nranks = alone.options.get("ndev", 1)  # each has at least one
        assert driver.stats().nthreads == max(nthreads, nranks)
        for prompt in prompts:
            assert_equal(driver.logits(prompt), alone.logits(prompt), f"{len(prompt)} tokens")
        with driver.caches(4) as caches:
            batch = [(c, 0, p) for c, p in zip(caches, prompts, strict=True)]
            for logits, prompt in zip(driver.forward(batch), prompts, strict=True):
                assert_equal(logits, alone.logits(prompt), f"batch, {len(prompt)} tokens")
            decode = [(c, len(p), [5]) for c, p in zip(caches, prompts, strict=True)]
            for logits, prompt in zip(driver.forward(decode), prompts, strict=True):
                assert_equal(logits, alone.logits([*prompt, 5])[-1:], f"decode, {len(prompt)}")


LONG = dict(dctx=4096, dvoc=64, dtype="bf16")
LONG_CASES = [
    ("kv_f16", CheckpointSpec("inv_long", dh=32, seed=36, **LONG), {}),
    ("kv_int8", CheckpointSpec("inv_long", dh=32, seed=36, **LONG), {"dt_kv": INT8}),
    ("odd", CheckpointSpec("inv_long_odd", dh=24, nh=6, seed=37, **LONG), {"dt_kv": F32}),
    ("group8", CheckpointSpec("inv_long_group8", dh=16, nh=8, nkvh=1, seed=38, **LONG), {}),
]


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("spec", "options"), [case[1:] for case in LONG_CASES], ids=[case[0] for case in LONG_CASES]
)
def test_long_context_threads(
    checkpoints: Make, spec: CheckpointSpec, options: dict[str, Any]
) -> None:
    """A context that several threads share, in prefill, decode, drafts and batches of them."""
    alone = Alone(checkpoints(spec), options)
    prompt = alone.tokens(0, 2100)
    whole = alone.logits(prompt)
    short = alone.tokens(1, 600)
    for nthreads in (2, 3, 8, 16):
        what = f"{nthreads} threads,"
        with alone.driver(nthreads=nthreads) as driver, driver.caches(4) as (a, b, c, d):
            (logits,) = driver.forward([(a, 0, prompt[:2048])])
            assert_equal(logits, whole[:2048], f"{what} prefill")
            for start, end in ((2048, 2049), (2049, 2050), (2050, 2055), (2055, 2073)):
                (logits,) = driver.forward([(a, start, prompt[start:end])])
                assert_equal(logits, whole[start:end], f"{what} {start}:{end}")
            # a long one decodes beside a prompt, a draft and a request that is not long enough
            driver.forward([(b, 0, prompt[:1500]), (c, 0, short[:599])])
            batch = [
                (a, 2073, prompt[2073:2074]),
                (b, 1500, prompt[1500:1508]),
                (c, 599, short[599:]),
                (d, 0, prompt[:150]),
            ]
            one, draft, last, new = driver.forward(batch)
            assert_equal(one, whole[2073:2074], f"{what} beside others")
            assert_equal(draft, whole[1500:1508], f"{what} draft beside others")
            assert_equal(last, alone.logits(short)[599:], f"{what} short beside others")
            assert_equal(new, whole[:150], f"{what} prompt beside others")
    alone.reference.close()


# ---------------------------------------------------------------------- caches


def test_duplicate_then_diverge(alone: Alone) -> None:
    """At every kind of cut: inside a block, at its border, empty, whole."""
    prompt = alone.tokens(700, 100)
    tails = [alone.tokens(710 + i, 20) for i in range(3)]
    with alone.driver() as driver:
        block = driver.stats().kv_block_tokens
        cuts = {0, 1, block - 1, block, block + 1, 2 * block, 99, 100}
        for cut in sorted(c for c in cuts if 0 <= c <= len(prompt)):
            with driver.caches(1) as (parent,):
                driver.forward([(parent, 0, prompt)])
                used = driver.stats().kv_used_bytes
                copies = [driver.duplicate(parent, cut) for _ in tails]
                assert driver.stats().kv_used_bytes == used, "a copy took memory"
                assert [driver.length(c) for c in copies] == [cut] * 3
                # the three copies and the parent itself go on with different texts
                batch = [(c, cut, t) for c, t in zip(copies, tails, strict=True)]
                results = driver.forward([*batch, (parent, len(prompt), tails[0])])
                for logits, tail in zip(results, tails, strict=False):
                    assert_equal(logits, alone.logits(prompt[:cut] + tail)[cut:], f"cut {cut}")
                assert_equal(results[3], alone.logits(prompt + tails[0])[100:], f"parent, {cut}")
                driver.drop(*copies)
        assert driver.stats().kv_used_bytes == 0


def test_parent_writes_first(alone: Alone) -> None:
    """Rewinding the parent must not change what its copy reads, dropping it neither."""
    prompt, other = alone.tokens(720, 60), alone.tokens(721, 60)
    with alone.driver() as driver:
        parent = driver.create()
        driver.forward([(parent, 0, prompt)])
        copy = driver.duplicate(parent, 60)
        driver.forward([(parent, 0, other)])
        (logits,) = driver.forward([(copy, 60, other[:3])])
        assert_equal(logits, alone.logits(prompt + other[:3])[60:], "copy")
        grandchild = driver.duplicate(copy, 61)
        driver.drop(parent, copy)
        (logits,) = driver.forward([(grandchild, 61, other[1:2])])
        assert_equal(logits, alone.logits(prompt + other[:2])[61:], "grandchild")
        driver.drop(grandchild)
        assert driver.stats().kv_used_bytes == 0


def test_rewind(alone: Alone) -> None:
    prompt = alone.tokens(730, 120)
    with alone.driver() as driver, driver.caches(1) as (cache,):
        driver.forward([(cache, 0, prompt)])
        for pos in (119, 100, 64, 33, 32, 31, 16, 15, 1, 0):
            tail = alone.tokens(731 + pos, 5)
            (logits,) = driver.forward([(cache, pos, tail)])
            assert_equal(logits, alone.logits(prompt[:pos] + tail)[pos:], f"rewound to {pos}")
            assert driver.length(cache) == pos + len(tail)


@pytest.mark.parametrize("seed", range(4))
def test_random_cache_operations(alone: Alone, seed: int) -> None:
    """Random create, duplicate, step, rewind and drop, against a model of what caches hold."""
    rng = np.random.default_rng([alone.checkpoint.spec.seed, seed])
    holds: dict[int, list[int]] = {}
    with alone.driver(max_step_tokens=int(rng.choice([0, 7, 32]))) as driver:
        stats = driver.stats()
        block, block_bytes = stats.kv_block_tokens, stats.kv_block_bytes

        def pick(n: int) -> list[int]:
            return [int(c) for c in rng.choice(list(holds), size=n, replace=False)]

        for _ in range(60):
            operation = rng.choice(["create", "duplicate", "step", "step", "step", "drop"])
            if operation == "create" or not holds:
                holds[driver.create()] = []
            elif operation == "duplicate":
                (source,) = pick(1)
                length = int(rng.integers(0, len(holds[source]) + 1))
                holds[driver.duplicate(source, length)] = holds[source][:length]
            elif operation == "drop":
                (cache,) = pick(1)
                driver.drop(cache)
                del holds[cache]
            else:
                batch = []
                for cache in pick(int(rng.integers(1, min(len(holds), 6) + 1))):
                    length = len(holds[cache])
                    rewind = rng.random() < 0.3
                    pos = int(rng.integers(0, length + 1)) if rewind else length
                    n = 1 if rng.random() < 0.5 else int(rng.integers(1, 30))
                    tokens = [int(t) for t in rng.integers(0, driver.dvoc, n)]
                    batch.append((cache, pos, tokens))
                for (cache, pos, tokens), logits in zip(batch, driver.forward(batch), strict=True):
                    holds[cache] = holds[cache][:pos] + tokens
                    assert_equal(logits, alone.logits(holds[cache])[pos:], f"{operation} at {pos}")

            stats = driver.stats()
            assert stats.ncaches == len(holds)
            assert all(driver.length(c) == len(t) for c, t in holds.items())
            blocks = [-(-len(t) // block) for t in holds.values()]
            assert stats.kv_used_bytes % block_bytes == 0
            assert stats.kv_used_bytes >= max(blocks, default=0) * block_bytes
            assert stats.kv_used_bytes <= sum(blocks) * block_bytes
        for cache in pick(len(holds)):
            driver.drop(cache)
        assert driver.stats().kv_used_bytes == 0
        assert driver.stats().ncaches == 0


# ---------------------------------------------------------------------- seeds


def sampled_text(driver: Driver, prompt: list[int], n: int = 20) -> list[int]:
    """Text by inferBatch, whose draws come from the model's own stream."""
    text = list(prompt)
    with driver.caches(1) as (cache,):
        for _ in range(n):
            done = driver.length(cache)
            text += driver.infer([(cache, done, text[done:])], temperature=1.0, top_k=50, top_p=0.9)
    return text


def test_seed_of_model(alone: Alone) -> None:
    prompt = alone.tokens(800, 5)
    texts = []
    for options in ({"has_seed": 1, "seed": 7}, {"has_seed": 1, "seed": 7, "nthreads": 3},
                    {"has_seed": 1, "seed": 8}, {}, {}):  # fmt: skip
        with alone.driver(**options) as driver:
            texts.append(sampled_text(driver, prompt))
    assert texts[0] == texts[1]
    assert len({tuple(t) for t in texts}) == 4, "different or random seeds gave the same text"


def test_seed_of_request(alone: Alone) -> None:
    """A seeded request gives the same text alone and in a batch, whatever its neighbours draw."""
    prompts = [alone.tokens(810 + i, 3 + 5 * i) for i in range(4)]
    settings = [Sampling(temperature=1.0, top_p=0.95, seed=100 + i) for i in range(4)]

    def generate(driver: Driver, group: Sequence[int]) -> list[list[int]]:
        texts = [list(prompts[i]) for i in group]
        with driver.caches(len(group)) as caches:
            for _ in range(15):
                batch = [
                    (c, driver.length(c), t[driver.length(c) :])
                    for c, t in zip(caches, texts, strict=True)
                ]
                samples = driver.sample(batch, [settings[i] for i in group])
                for text, sample in zip(texts, samples, strict=True):
                    text.append(sample.token)
        return texts

    with alone.driver() as driver:
        single = [generate(driver, [i])[0] for i in range(4)]
        assert generate(driver, range(4)) == single
        assert generate(driver, [2, 0]) == [single[2], single[0]]
    with alone.driver(nthreads=1, max_step_tokens=4) as driver:
        assert generate(driver, range(4)) == single


# ---------------------------------------------------------------------- instruction sets


@pytest.mark.cpu_only
def test_isa(alone: Alone, cpu_isa: Callable[[str], None]) -> None:
    """Instruction sets may sum in another order, so they agree within float32 rounding."""
    prompts = [alone.tokens(900 + i, n) for i, n in enumerate((1, 2, 3, 6, 40))]
    logits: dict[str, list[Array]] = {}
    for isa in ("scalar", "avx2"):
        cpu_isa(isa)
        with alone.driver() as driver:
            if isa == "avx2" and driver.build_info()["isa"] != "avx2":
                pytest.skip("this CPU has no AVX2")
            assert driver.build_info()["isa"] == isa
            logits[isa] = [driver.logits(p) for p in prompts]
            with driver.caches(5) as caches:  # batch = alone holds for each of them
                batch = [(c, 0, p) for c, p in zip(caches, prompts, strict=True)]
                for i, part in enumerate(driver.forward(batch)):
                    assert_equal(part, logits[isa][i], f"{isa}, request {i}")
    # A cache of few bits may round a value to the other side: see test_forward.py.
    given = DataType[alone.checkpoint.spec.dtype.upper()]
    packed = alone.options.get("dt_weight", given)
    kv = alone.options.get("dt_kv", F32 if packed == F32 else F16)
    tolerance = {F32: 3e-5, F16: 1.5e-3, BF16: 1.2e-2, INT8: 3e-2}[kv]
    if packed in (INT8, DataType.INT4):  # so may the 8-bit codes of activations: steps of 1 / 127
        tolerance = 0.1
    if alone.options.get("activations") == Activations.BF16:  # and their rounding to 8 bits
        tolerance = max(tolerance, 2e-2)
    for scalar, avx2 in zip(logits["scalar"], logits["avx2"], strict=True):
        assert np.abs(scalar - avx2).max() / scalar.std() < tolerance


@pytest.mark.cpu_only
def test_unknown_isa(alone: Alone, cpu_isa: Callable[[str], None]) -> None:
    cpu_isa("mmx")
    with pytest.raises(Exception, match="mmx"):
        alone.driver()

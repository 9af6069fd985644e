"""The sampler against reference/sampler_numpy.py, on logits of a real (random) model.

The drawn tokens are tested by what can be drawn at all (never a token of probability zero) and by
frequencies: a chi-square test over a fixed list of seeds, so that the outcome is always the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from parity.conftest import Checkpoint
from parity.driver import Driver, Sample, Sampling
from reference.random_checkpoint import CheckpointSpec
from reference.sampler_numpy import adjusted_logits, log_softmax, probabilities, ranking

SPEC = CheckpointSpec("sampling", d=64, dvoc=101, nlayer=1, seed=41)
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79]
HISTORY = [*PROMPT, 14, 14, 70, 14, 50]
NGENERATED = 5
NCACHES = 50
LOGPROB_TOLERANCE = 1e-4

Array = npt.NDArray[np.float64]


class Bench:
    """A model with many caches of the same prompt, which is sampled from again and again."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.driver: Driver = checkpoint.driver()
        first = self.driver.create()
        (logits,) = self.driver.forward([(first, 0, PROMPT)])
        self.logits = logits[-1].astype(np.float64)
        last = len(PROMPT) - 1
        self.caches = [self.driver.duplicate(first, last) for _ in range(NCACHES)]

    def sample(self, settings: Sequence[Sampling]) -> list[Sample]:
        """Samples the token after PROMPT once per setting."""
        last = len(PROMPT) - 1
        results = []
        for start in range(0, len(settings), NCACHES):
            part = settings[start : start + NCACHES]
            requests = [(cache, last, PROMPT[last:]) for cache in self.caches[: len(part)]]
            results += self.driver.sample(requests, part)
        return results

    def expected(self, s: Sampling) -> tuple[Array, Array]:
        """Returns the adjusted logits and the probability of each token to be drawn."""
        adjusted = adjusted_logits(
            self.logits,
            s.bias,
            s.allowed,
            s.history,
            s.ngenerated,
            s.repetition_penalty,
            s.presence_penalty,
            s.frequency_penalty,
        )
        return adjusted, probabilities(adjusted, s.temperature, s.top_k, s.top_p, s.min_p)


@pytest.fixture(scope="module")
def bench(checkpoints: Callable[[CheckpointSpec], Checkpoint]) -> Iterator[Bench]:
    bench = Bench(checkpoints(SPEC))
    yield bench
    bench.driver.close()


PENALTIES = {
    "none": {},
    "repetition": {"history": HISTORY, "ngenerated": NGENERATED, "repetition_penalty": 1.7},
    "reward": {"history": HISTORY, "ngenerated": NGENERATED, "repetition_penalty": 0.6},
    "presence": {"history": HISTORY, "ngenerated": NGENERATED, "presence_penalty": 1.5},
    "frequency": {"history": HISTORY, "ngenerated": NGENERATED, "frequency_penalty": 0.7},
    "negative": {
        "history": HISTORY,
        "ngenerated": NGENERATED,
        "presence_penalty": -1.0,
        "frequency_penalty": -0.5,
    },
    "prompt_only": {"history": HISTORY, "presence_penalty": 2.0, "repetition_penalty": 1.2},
    "bias": {"bias": {5: 4.0, 17: -3.0, 60: -math.inf, 0: 2.5}},
    "bias_of_history": {
        "bias": {14: 6.0, 70: -2.0},
        "history": HISTORY,
        "ngenerated": NGENERATED,
        "repetition_penalty": 1.5,
    },
    "allowed": {"allowed": [1, 2, 3, 31, 32, 33, 63, 64, 95, 96, 100]},
    "everything": {
        "bias": {31: 3.0, 64: -1.0, 96: 2.0},
        "allowed": [*range(20, 60), 64, 70, 96, 100],
        "history": [*HISTORY, 31, 31],
        "ngenerated": 7,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.2,
    },
}
TRUNCATIONS = {
    "none": {"temperature": 1.0},
    "hot": {"temperature": 3.0},
    "cold": {"temperature": 0.3},
    "top_k_1": {"temperature": 1.0, "top_k": 1},
    "top_k_5": {"temperature": 1.5, "top_k": 5},
    "top_k_all": {"temperature": 1.0, "top_k": 101},
    "top_k_more": {"temperature": 1.0, "top_k": 5000},
    "top_p": {"temperature": 1.0, "top_p": 0.6},
    "top_p_tiny": {"temperature": 2.0, "top_p": 1e-6},
    "top_p_most": {"temperature": 2.0, "top_p": 0.999},
    "min_p": {"temperature": 1.0, "min_p": 0.2},
    "min_p_hot": {"temperature": 4.0, "min_p": 0.5},
    "qwen3": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "all": {"temperature": 1.2, "top_k": 30, "top_p": 0.8, "min_p": 0.05},
    "top_p_of_top_k": {"temperature": 3.0, "top_k": 10, "top_p": 0.5},
}


def chi_square_bound(degrees: int) -> float:
    """Returns the 1 - 1e-6 quantile of chi-square (Wilson and Hilferty's approximation)."""
    z = 4.7534
    return degrees * (1 - 2 / (9 * degrees) + z * math.sqrt(2 / (9 * degrees))) ** 3


def check_frequencies(tokens: Sequence[int], p: Array) -> None:
    """Tests counts against probabilities; rare tokens share bins of at least 5 expected draws."""
    counts = np.bincount(tokens, minlength=len(p)).astype(float)
    impossible = np.flatnonzero((counts > 0) & (p == 0))
    assert impossible.size == 0, f"tokens {impossible.tolist()} cannot be drawn, but were"
    observed, expected = [0.0], [0.0]
    for token in np.argsort(p):
        if p[token] > 0:
            if expected[-1] >= 5:
                observed.append(0.0)
                expected.append(0.0)
            observed[-1] += counts[token]
            expected[-1] += p[token] * len(tokens)
    degrees = len(expected) - 1
    if degrees > 0:
        statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
        assert statistic < chi_square_bound(degrees), f"chi-square {statistic:.1f} of {degrees}"
    certain = np.flatnonzero(p * len(tokens) > 20)  # missed with probability e^-20
    assert (counts[certain] > 0).all(), "a likely token is never drawn"


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_distribution(bench: Bench, penalty: str, truncation: str) -> None:
    arguments: dict[str, Any] = {**PENALTIES[penalty], **TRUNCATIONS[truncation]}
    settings = Sampling(**arguments)
    adjusted, p = bench.expected(settings)
    samples = bench.sample([replace(settings, seed=seed) for seed in range(1000)])
    check_frequencies([s.token for s in samples], p)
    logprobs = log_softmax(adjusted)
    for sample in samples:
        assert abs(sample.logprob - logprobs[sample.token]) < LOGPROB_TOLERANCE


@pytest.mark.parametrize("seeds", ["counter", "high_bits", "random"])
def test_draws_are_uniform(bench: Bench, seeds: str) -> None:
    """Many more draws, for kinds of seeds that weak generators turn into similar draws."""
    n = 6000
    values = {
        "counter": range(1, n + 1),
        "high_bits": [i << 48 for i in range(n)],
        "random": [int(s) for s in np.random.default_rng(1).integers(0, 2**64, n, dtype=np.uint64)],
    }[seeds]
    settings = Sampling(temperature=2.0)
    samples = bench.sample([replace(settings, seed=seed) for seed in values])
    check_frequencies([s.token for s in samples], bench.expected(settings)[1])


def test_positions_draw_differently(bench: Bench) -> None:
    """One seed must not draw the same quantile at every position."""
    driver = bench.driver
    tokens, p = [], []
    with driver.caches(1) as (cache,):
        # equal logits at each position: whatever the model says, biases outweigh it
        bias = dict.fromkeys(range(10), 1000.0)
        driver.forward([(cache, 0, PROMPT)])
        for pos in range(len(PROMPT), len(PROMPT) + 400):
            (sample,) = driver.sample(
                [(cache, pos, [1])], [Sampling(temperature=50.0, bias=bias, seed=9)]
            )
            tokens.append(sample.token)
    assert set(tokens) == set(range(10))
    p = np.zeros(101)
    p[:10] = 0.1  # the model's own preferences, divided by 50, are below the test's resolution
    check_frequencies(tokens, p)


@pytest.mark.parametrize("truncation", ["none", "qwen3", "all"])
def test_same_seed_same_token(bench: Bench, truncation: str) -> None:
    settings = [Sampling(**TRUNCATIONS[truncation], seed=seed) for seed in range(100)]
    first, second = bench.sample(settings), bench.sample(settings[::-1])[::-1]
    assert [s.token for s in first] == [s.token for s in second]
    assert len({s.token for s in first}) > 2


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("arguments", [{}, {"temperature": 0.8, "top_k": 1}], ids=["zero", "top1"])
def test_greedy(bench: Bench, penalty: str, arguments: dict[str, Any]) -> None:
    settings = Sampling(**PENALTIES[penalty], **arguments)
    adjusted, _ = bench.expected(settings)
    (sample,) = bench.sample([settings])
    assert sample.token == ranking(adjusted)[0]
    assert abs(sample.logprob - log_softmax(adjusted).max()) < LOGPROB_TOLERANCE


@pytest.mark.parametrize("n", [1, 2, 7, 100, 101, 128])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_top_logprobs(bench: Bench, penalty: str, n: int) -> None:
    """Of the model's own distribution, whatever is drawn from; banned tokens are not reported."""
    for truncation in ({}, TRUNCATIONS["qwen3"]):
        settings = Sampling(**PENALTIES[penalty], **truncation, top_logprobs=n, seed=3)
        adjusted, _ = bench.expected(settings)
        logprobs = log_softmax(adjusted)
        order = ranking(adjusted)[:n]
        (sample,) = bench.sample([settings])
        reported = {token: logprob for token, logprob in sample.top if np.isfinite(logprob)}
        order = order[np.isfinite(logprobs[order])]
        assert list(reported) == order.tolist()
        np.testing.assert_allclose(list(reported.values()), logprobs[order], atol=LOGPROB_TOLERANCE)
        assert len(sample.top) <= min(n, 101)


def test_ties_go_to_the_lower_id(checkpoints: Callable[[CheckpointSpec], Checkpoint]) -> None:
    """Two rows of the output embedding are equal, so their logits are."""
    checkpoint = checkpoints(CheckpointSpec("ties", dvoc=70, tied=False, seed=42))
    tensors = dict(checkpoint.tensors)
    head = tensors["lm_head.weight"].copy()
    # The likeliest row of before, in several panels of a packed matrix.
    with checkpoint.driver() as driver:
        best = int(driver.logits(PROMPT[:3])[-1].argmax())
    copies = [2, 9, 33, 40, 69]
    head[copies] = head[best]
    tensors["lm_head.weight"] = head
    equal = sorted({*copies, best})
    with checkpoint.driver(tensors) as driver, driver.caches(1) as (cache,):
        (logits,) = driver.forward([(cache, 0, PROMPT[:3])])
        assert len(set(logits[-1][equal].tolist())) == 1
        request = [(cache, 0, PROMPT[:3])]
        assert driver.infer(request) == [equal[0]]
        for settings in (Sampling(), Sampling(temperature=1.0, top_k=1)):
            assert driver.sample(request, [settings])[0].token == equal[0]
        (sample,) = driver.sample(request, [Sampling(top_logprobs=len(equal))])
        assert [token for token, _ in sample.top] == equal
        # top_k cuts through the equal ones: only the lower ids are left
        drawn = set()
        for seed in range(60):
            settings = Sampling(temperature=1.0, top_k=3, seed=seed)
            drawn.add(driver.sample(request, [settings])[0].token)
        assert drawn == set(equal[:3])
        drawn = set()
        for seed in range(60):  # top_p cuts after the one that reaches it
            settings = Sampling(temperature=0.01, top_p=1.5 / len(equal), seed=seed)
            drawn.add(driver.sample(request, [settings])[0].token)
        assert drawn == set(equal[:2])


def test_skip(bench: Bench) -> None:
    """A skipped request's result is zeroed; its neighbours' are not touched by it."""
    ask = Sampling(temperature=1.0, seed=5, top_logprobs=3)
    (alone,) = bench.sample([ask])
    results = bench.sample([replace(ask, skip=True), ask, replace(ask, skip=True)])
    assert results[1] == alone
    assert results[0] == results[2] == Sample(0, 0.0, [])
    assert bench.sample([replace(ask, skip=True)]) == [Sample(0, 0.0, [])]


def test_infer_batch_is_infer_batch_ex(bench: Bench) -> None:
    """inferBatch draws from the same distribution, with its own stream."""
    settings = Sampling(temperature=1.3, top_k=12, top_p=0.9)
    last = len(PROMPT) - 1
    tokens: list[int] = []
    for _ in range(40):
        requests = [(cache, last, PROMPT[last:]) for cache in bench.caches]
        tokens += bench.driver.infer(requests, temperature=1.3, top_k=12, top_p=0.9)
    counts = np.bincount(tokens, minlength=101)
    p = bench.expected(settings)[1]
    assert not counts[p == 0].any()
    check_frequencies(tokens, p)


def test_large_logits(bench: Bench) -> None:
    """Biases of 1e30 and logits far apart neither overflow nor draw the impossible."""
    for bias in ({7: 1e30}, {7: 3e38, 8: -3e38}, dict.fromkeys(range(101), -1e30) | {7: 0.0}):
        for arguments in TRUNCATIONS.values():
            samples = bench.sample(
                [Sampling(**arguments, bias=bias, seed=seed, top_logprobs=2) for seed in range(3)]
            )
            assert [s.token for s in samples] == [7] * 3
            assert all(s.logprob == 0.0 and s.top[0] == (7, 0.0) for s in samples)


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_logits_beyond_float(bench: Bench, temperature: float) -> None:
    """A penalty that takes logits out of float32's range must not lose the order or make NaN."""
    settings = Sampling(
        temperature=temperature,
        bias={7: 3e38, 8: 3e38},
        history=[7, 8],
        repetition_penalty=0.5,
        top_logprobs=2,
    )
    for sample in bench.sample([replace(settings, seed=seed) for seed in range(10)]):
        assert sample.token in (7, 8)
        assert [token for token, _ in sample.top] == [7, 8]
        assert sample.logprob == pytest.approx(math.log(0.5))

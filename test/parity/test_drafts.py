"""Drafts of inferBatchEx against calls with one token each: the same tokens, caches and numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from libinfinicore_infer import Qwen3ValueError
from parity.conftest import Checkpoint
from parity.driver import DataType, Driver, Sample, Sampling
from parity.target import Target
from reference.random_checkpoint import CheckpointSpec

SPEC = CheckpointSpec("drafts", d=72, di=200, dh=24, nh=6, nkvh=2, dvoc=517, nlayer=2, seed=51)
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 3, 14]
STEPS = 90

SETTINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=12),
    "all_tokens": Sampling(temperature=1.3, seed=2**40 + 1),
    "penalties": Sampling(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3),
    "sampled_penalties": Sampling(
        temperature=0.8, top_k=30, repetition_penalty=1.2, frequency_penalty=0.5, seed=5
    ),
    "bias_and_mask": Sampling(
        temperature=1.0, bias={7: 3.0}, allowed=range(0, 517, 3), seed=6, top_logprobs=4
    ),
}
OPTIONS = {
    "f32": {},
    "int8_small_steps": {"dt_weight": DataType.INT8, "max_step_tokens": 5},
    "bf16": {"dt_weight": DataType.BF16, "nthreads": 2},
    "two_ranks": {"ndev": 2, "nthreads": 2, "max_step_tokens": 11},
}


class Plain:
    """A model and what it generates token by token."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.known: dict[str, list[Sample]] = {}

    def settings(self, name: str, generated: Sequence[int]) -> Sampling:
        base = SETTINGS[name]
        penalised = base.repetition_penalty != 1 or base.frequency_penalty != 0
        history = [*PROMPT, *generated] if penalised else []
        return replace(base, history=history, ngenerated=len(generated) if penalised else 0)

    def expected(self, name: str) -> list[Sample]:
        """The samples after PROMPT, each from a call of its own."""
        if name not in self.known:
            samples: list[Sample] = []
            with self.driver.caches(1) as (cache,):
                tokens, pos = PROMPT, 0
                for _ in range(STEPS):
                    generated = [s.token for s in samples]
                    settings = [self.settings(name, generated)]
                    samples += self.driver.sample([(cache, pos, tokens)], settings)
                    pos += len(tokens)
                    tokens = [samples[-1].token]
            self.known[name] = samples
        return self.known[name]


@pytest.fixture(scope="module", params=OPTIONS)
def plain(
    request: pytest.FixtureRequest,
    checkpoints: Callable[[CheckpointSpec], Checkpoint],
    target: Target,
) -> Iterator[Plain]:
    options = target.typed(SPEC, OPTIONS[request.param])
    with checkpoints(SPEC).driver(**options) as model:
        yield Plain(model)


def drafts(right: Sequence[int], nright: int, n: int) -> list[int]:
    """n guesses, of which exactly the first nright are right."""
    wrong = (right[nright] + 1) % SPEC.dvoc
    return [*right[:nright], wrong, *right[nright + 1 : n]][:n]


@pytest.mark.parametrize("name", SETTINGS)
def test_drafts_equal_single_tokens(plain: Plain, name: str) -> None:
    """From any place, with right and wrong guesses: the token, its numbers and the cache."""
    expected = plain.expected(name)
    tokens = [sample.token for sample in expected]
    driver = plain.driver
    with driver.caches(1) as (cache,):
        driver.forward([(cache, 0, PROMPT)])
        done = 1  # tokens known; the last one is not in the cache
        for n, nright in [(1, 0), (1, 1), (4, 0), (4, 2), (4, 4), (9, 5), (13, 13), (12, 11)]:
            position = len(PROMPT) + done - 1
            guesses = drafts(tokens[done:], nright, n)
            request = (cache, position, [tokens[done - 1], *guesses])
            settings = replace(plain.settings(name, tokens[:done]), ndraft=n)
            (got,) = driver.sample([request], [settings])
            want = expected[done + nright]
            assert got == replace(want, naccepted=nright)
            done += nright + 1
            assert driver.length(cache) == len(PROMPT) + done - 1
        # What is in the cache now is as if it had been computed token by token.
        sequence = [*PROMPT, *tokens[:done]]
        (logits,) = driver.forward([(cache, len(sequence) - 1, sequence[-1:])])
        np.testing.assert_array_equal(logits, driver.logits(sequence)[-1:])


def test_drafts_at_the_end_of_a_prompt(plain: Plain) -> None:
    """The prompt and more drafts than rows of logits are computed at a time, in one call."""
    tokens = [sample.token for sample in plain.expected("sampled")]
    for n, nright in ((80, 80), (80, 66), (70, 3)):
        with plain.driver.caches(1) as (cache,):
            request = (cache, 0, [*PROMPT, *drafts(tokens, nright, n)])
            (got,) = plain.driver.sample([request], [replace(SETTINGS["sampled"], ndraft=n)])
            assert (got.token, got.naccepted) == (tokens[nright], nright)
            assert plain.driver.length(cache) == len(PROMPT) + nright


def test_batches_mix_drafts_with_everything(plain: Plain) -> None:
    names = list(SETTINGS)
    driver = plain.driver
    known = {name: [sample.token for sample in plain.expected(name)] for name in names}
    with driver.caches(len(names) + 2) as caches:
        requests, settings = [], []
        for i, name in enumerate(names):
            driver.forward([(caches[i], 0, PROMPT)])
            tokens = known[name]
            requests.append((caches[i], len(PROMPT), [tokens[0], *drafts(tokens[1:], i, i + 1)]))
            settings.append(replace(plain.settings(name, tokens[:1]), ndraft=i + 1))
        requests.insert(2, (caches[-1], 0, PROMPT[:7]))  # a chunk of a prompt
        settings.insert(2, Sampling(skip=True))
        requests.append((caches[-2], 0, PROMPT))  # a whole prompt without drafts
        settings.append(Sampling())
        results = driver.sample(requests, settings)
        skipped = results.pop(2)
        assert (skipped.token, skipped.naccepted) == (0, 0) and driver.length(caches[-1]) == 7
        assert results.pop() == plain.expected("greedy")[0]
        for i, (name, got) in enumerate(zip(names, results, strict=True)):
            assert got == replace(plain.expected(name)[1 + i], naccepted=i), name
            assert driver.length(caches[i]) == len(PROMPT) + 1 + i


def test_rejected_drafts_leave_shared_caches_alone(plain: Plain) -> None:
    tokens = [sample.token for sample in plain.expected("greedy")]
    driver = plain.driver
    with driver.caches(1) as (cache,):
        sequence = [*PROMPT, *tokens[:40]]
        driver.forward([(cache, 0, sequence)])
        used = driver.stats().kv_used_bytes
        copy = driver.duplicate(cache, len(PROMPT))
        request = (copy, len(PROMPT), [tokens[0], *drafts(tokens[1:], 1, 40)])
        (got,) = driver.sample([request], [Sampling(ndraft=40)])
        assert (got.token, got.naccepted) == (tokens[2], 1)
        (logits,) = driver.forward([(cache, len(sequence), [tokens[40]])])
        np.testing.assert_array_equal(logits, driver.logits([*sequence, tokens[40]])[-1:])
        driver.drop(copy)
        # The blocks of rejected drafts went back with them.
        assert driver.stats().kv_used_bytes == used


def test_no_logprob(plain: Plain) -> None:
    with plain.driver.caches(1) as (cache,):
        request = (cache, 0, PROMPT)
        want, without, listed = (
            plain.driver.sample([request], [settings])[0]
            for settings in (
                Sampling(),
                Sampling(no_logprob=True),
                Sampling(no_logprob=True, top_logprobs=2),
            )
        )
    assert want.logprob < 0 and without == replace(want, logprob=0.0)
    assert listed.token == want.token and len(listed.top) == 2


@pytest.mark.parametrize(
    "settings, message",
    [
        (Sampling(ndraft=10), r"params\[0\]\.ndraft is 10, must be below req_lens\[0\], 10"),
        (Sampling(ndraft=2**40), "ndraft"),
        (Sampling(ndraft=2, skip=True), "skip"),
    ],
)
def test_bad_drafts(plain: Plain, settings: Sampling, message: str) -> None:
    with plain.driver.caches(1) as (cache,):
        with pytest.raises(Qwen3ValueError, match=message):
            plain.driver.sample([(cache, 0, PROMPT)], [settings])
        assert plain.driver.length(cache) == 0

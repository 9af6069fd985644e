"""Prompt lookup: the answers of plain decoding, and guesses only where they pay."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from infinicore_infer.generate import drafts
from infinicore_infer.generate.drafts import StepCosts, draft_lengths
from infinicore_infer.generate.lookup import PromptLookup, RepetitionIndex
from infinicore_infer.generate.results import GenerationResult
from infinicore_infer.generate.sampling import SamplingParams
from infinicore_infer.generate.sequence import GenerationSequence
from infinicore_infer.generate.stream import run_sequences
from infinicore_infer.native.model import StepRequest, sampling_struct
from libinfinicore_infer import Qwen3OutOfKVError
from python.helpers import DEMO
from qwen3 import Qwen3ForCausalLM

REPETITIVE = "the cat sat on the mat. hello there. the cat sat on the mat. hello there. the cat"
PROMPTS = [REPETITIVE, "a a a a a a", "the cat sat", "你好你好你好", "x", "I am fine. 😀 " * 5]

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": dict(temperature=0.8, top_k=5),
    "all_tokens": dict(temperature=0.4),
    "penalties": dict(repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.1),
    "sampled_penalties": dict(temperature=0.5, min_p=0.1, repetition_penalty=1.2),
    "bias": dict(logit_bias={3: -math.inf, 40: 2.0}, temperature=0.3),
}


def every_guess(costs: StepCosts, candidates: Sequence[tuple[float, int]]) -> list[int]:
    """In place of draft_lengths: as if guesses cost nothing."""
    return [most for _, most in candidates]


@pytest.fixture(params=["every", "some", "measured"])
def policy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How many guesses are verified; what is generated must not depend on it."""
    if request.param == "every":
        monkeypatch.setattr(drafts, "draft_lengths", every_guess)
    elif request.param == "some":
        rng = random.Random(1)
        monkeypatch.setattr(
            drafts,
            "draft_lengths",
            lambda costs, candidates: [rng.randint(0, most) for _, most in candidates],
        )
    return str(request.param)


def same(got: GenerationResult, plain: GenerationResult) -> None:
    """Checks all that does not measure time."""
    for name in ("tokens", "text", "finish_reason", "stop_string", "prompt_tokens"):
        assert getattr(got, name) == getattr(plain, name), name
    assert plain.drafted_tokens == plain.accepted_tokens == 0


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_are_those_of_plain_decoding(
    model: Qwen3ForCausalLM, policy: str, name: str
) -> None:
    accepted = 0
    for i, prompt in enumerate(PROMPTS):
        settings = dict(max_steps=60, seed=i, ignore_eos=True, **SETTINGS[name])
        got = model.generate(prompt, lookup=1 + 3 * i, **settings)
        same(got, model.generate(prompt, **settings))
        assert 0 <= got.accepted_tokens <= got.drafted_tokens
        accepted += got.accepted_tokens
    assert accepted > 0 or policy != "every"


def test_the_demo_model(policy: str) -> None:
    prompt = "1 + 1 = 2. 2 + 2 = 4. 1 + 1 = 2. 2 + 2 = 4. 1 + 1 ="
    with Qwen3ForCausalLM(DEMO, threads=2, dtype="int8") as model:
        for temperature in (0.0, 0.7):
            settings = dict(max_steps=80, temperature=temperature, seed=9, ignore_eos=True)
            got = model.generate(prompt, lookup=8, **settings)
            same(got, model.generate(prompt, **settings))


def test_every_length(model: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """max_steps cuts guesses too: never a token too many, neither computed nor returned."""
    monkeypatch.setattr(drafts, "draft_lengths", every_guess)
    whole = model.generate(REPETITIVE, 30, ignore_eos=True)
    for steps in range(1, 31):
        with model.create_kv_cache() as cache:
            got = model.generate(REPETITIVE, steps, ignore_eos=True, lookup=9, cache=cache)
            assert got.tokens == whole.tokens[:steps] and got.finish_reason == "length"
            assert len(cache) == len(cache.tokens) == got.prompt_tokens + steps - 1


def test_stop_strings_amid_guesses(
    model: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts, "draft_lengths", every_guess)
    settings: dict[str, Any] = dict(ignore_eos=True, max_steps=40)
    whole = model.generate(REPETITIVE, **settings).text
    for begin in range(0, len(whole) - 3, 3):
        stop = [whole[begin : begin + 3]]
        with model.create_kv_cache() as cache, model.create_kv_cache() as plain_cache:
            texts: list[str] = []
            got = model.generate(
                REPETITIVE, stop=stop, lookup=12, cache=cache, stream=texts.append, **settings
            )
            plain = model.generate(REPETITIVE, stop=stop, cache=plain_cache, **settings)
            same(got, plain)
            assert "".join(texts) == plain.text
            assert cache.tokens == plain_cache.tokens and len(cache) == len(plain_cache)


def run(
    model: Qwen3ForCausalLM,
    end_tokens: Sequence[int],
    prompt: Sequence[int] = (),
    steps: int = 40,
    **settings: Any,
) -> tuple[GenerationResult, list[int], int]:
    """Returns the answer, and the tokens and length of the cache that it leaves."""
    with model.create_kv_cache() as cache:
        sequence = GenerationSequence(
            prompt or model.encode(REPETITIVE),
            SamplingParams(max_steps=steps, **settings),
            dctx=model.meta.dctx,
            dvoc=model.meta.dvoc,
            end_tokens=end_tokens,
            tokenizer=model.tokenizer,
            cache=cache,
        )
        list(run_sequences(model.native, [sequence]))
        return sequence.result, list(cache.tokens), len(cache)


def test_end_tokens_amid_guesses(model: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "draft_lengths", every_guess)
    whole = model.generate(REPETITIVE, 40, ignore_eos=True).tokens
    for end in set(whole):
        plain, tokens, length = run(model, [end])
        got, got_tokens, got_length = run(model, [end], lookup=12)
        same(got, plain)
        assert got.finish_reason == "stop" and got.tokens == whole[: whole.index(end) + 1]
        assert (got_tokens, got_length) == (tokens, length)


def test_the_end_of_the_context(text_folder: Path, policy: str) -> None:
    with Qwen3ForCausalLM(text_folder, max_tokens=40, threads=1) as model:
        for length in (1, 20, 38, 39, 40):
            prompt = [7, 8, 9, 10] * 10
            plain = model.generate(prompt[:length], ignore_eos=True)
            same(model.generate(prompt[:length], ignore_eos=True, lookup=20), plain)
            assert len(plain.tokens) == 41 - length


def test_a_conversation_in_one_cache(model: Qwen3ForCausalLM, policy: str) -> None:
    prompt = model.encode(REPETITIVE)
    with model.create_kv_cache() as cache:
        for turn in range(4):
            fresh = model.generate(prompt, 25, ignore_eos=True)
            got = model.generate(prompt, 25, ignore_eos=True, lookup=10, cache=cache)
            same(got, fresh)
            assert (got.reused_tokens > 0) == (turn > 0)
            assert cache.tokens == [*prompt, *got.tokens][: len(cache)]
            prompt = [*prompt, *got.tokens, *model.encode("the cat")]


def test_batches(model: Qwen3ForCausalLM, policy: str) -> None:
    prompts = [*PROMPTS, "the mat " * 30]
    settings: dict[str, Any] = dict(max_steps=30, temperature=0.5, seed=4, ignore_eos=True)
    plain = model.generate_batch(prompts, **settings)
    for max_batch in (1, 3, 16):
        batch = model.generate_batch(prompts, max_batch=max_batch, lookup=7, **settings)
        for got, expected in zip(batch, plain, strict=True):
            same(got, expected)


def test_little_kv_memory(text_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses that find no memory are given up before an answer is."""
    monkeypatch.setattr(drafts, "draft_lengths", every_guess)
    prompt = [5, 6, 7, 8] * 8
    with Qwen3ForCausalLM(text_folder, threads=2) as roomy:
        whole = roomy.generate(prompt, 60, ignore_eos=True)
        batch = roomy.generate_batch([prompt] * 4, 33, ignore_eos=True)
        stats = roomy.stats()
    block = stats["kv_block_tokens"]
    # The answer ends within the memory there is, which its guesses would exceed: at a token that
    # has not come before, after a repetition.
    steps = 1 + max(i for i in range(30) if whole.tokens.index(whole.tokens[i]) == i)
    assert len(set(whole.tokens[:steps])) < steps - 3
    blocks = -(-(len(prompt) + steps) // block)
    with Qwen3ForCausalLM(
        text_folder, threads=2, kv_limit_bytes=blocks * stats["kv_block_bytes"]
    ) as tight:
        got, tokens, _ = run(tight, [whole.tokens[steps - 1]], prompt=prompt, steps=60, lookup=64)
        assert got.tokens == whole.tokens[:steps] and got.finish_reason == "stop"
        assert tokens == [*prompt, *got.tokens[:-1]]
        with pytest.raises(Qwen3OutOfKVError):
            tight.generate(prompt, 90, ignore_eos=True, lookup=64)
        assert tight.stats()["ncaches"] == 0
    limit = 2 * -(-64 // block) + 1
    with Qwen3ForCausalLM(
        text_folder, threads=2, kv_limit_bytes=limit * stats["kv_block_bytes"]
    ) as tight:
        results = tight.generate_batch([prompt] * 4, 33, ignore_eos=True, lookup=64)
        for result, plain in zip(results, batch, strict=True):
            same(result, plain)


def test_steps_with_drafts(model: Qwen3ForCausalLM) -> None:
    """The Python side of a cache forgets rejected drafts, too."""
    prompt = model.encode(REPETITIVE)
    first, second = model.generate(prompt, 2, ignore_eos=True).tokens
    wrong = (second + 1) % model.meta.dvoc
    with model.create_kv_cache() as cache:
        for drafts, accepted in ([wrong, wrong], 0), ([second, wrong], 1):
            model.native.step([StepRequest(cache, prompt, 0)])
            (result,) = model.native.step(
                [StepRequest(cache, [first, *drafts], len(prompt), sampling_struct(ndraft=2))]
            )
            assert result.accepted == accepted
            assert cache.tokens == [*prompt, first, *drafts[:accepted]]
            assert len(cache) == len(cache.tokens)


def test_abandoned_streams(model: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream left amid accepted guesses has exactly the tokens that were handed out."""
    monkeypatch.setattr(drafts, "draft_lengths", every_guess)
    whole = model.generate(REPETITIVE, 30, ignore_eos=True).tokens
    for count in range(1, 20):
        with model.create_kv_cache() as cache:
            with model.stream_generate(
                REPETITIVE, 30, ignore_eos=True, lookup=8, cache=cache
            ) as stream:
                pieces = list(itertools.islice(stream, count))
            assert [piece.token for piece in pieces] == stream.result.tokens == whole[:count]
            assert stream.result.finish_reason == "cancelled"
            assert len(cache) == stream.result.prompt_tokens + count - 1
    # One that never computed anything leaves a cache alone.
    with model.create_kv_cache() as cache:
        model.generate(REPETITIVE, 20, ignore_eos=True, lookup=8, cache=cache)
        before = list(cache.tokens)
        model.stream_generate("x", 5, lookup=8, cache=cache).close()
        assert cache.tokens == before and len(cache) == len(before)


def test_refusals(model: Qwen3ForCausalLM) -> None:
    for bad in (-1, 65, 1.5, True, "8"):
        with pytest.raises(ValueError, match="lookup must be a whole number from 0 to 64"):
            model.generate("hello", 2, lookup=bad)
    with pytest.raises(ValueError, match="log-probabilities"):
        model.generate("hello", 2, lookup=4, logprobs=2)


def test_other_backends_refuse(model: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "backend", "infinicore")
    with pytest.raises(NotImplementedError, match="backend infinicore"):
        model.generate("hello", 2, lookup=4)


def test_truncated_caches(model: Qwen3ForCausalLM) -> None:
    tokens = model.encode(REPETITIVE)
    whole = model.forward(tokens)
    with model.create_kv_cache() as cache:
        model.forward(tokens, [cache])
        used = model.stats()["kv_used_bytes"]
        cache.truncate(5)
        assert len(cache) == 5 and cache.tokens == tokens[:5]
        assert model.stats()["kv_used_bytes"] < used and model.stats()["ncaches"] == 1
        assert (model.forward(tokens[5:], [cache]) == whole[5:]).all()
        with pytest.raises(ValueError, match="the cache holds"):
            cache.truncate(len(tokens) + 1)
        assert cache.tokens == tokens
    with pytest.raises(ValueError, match="closed"):
        cache.truncate(0)


# ---------------------------------------------------------------------- guesses


def plain_find(tokens: list[int]) -> tuple[int, int]:
    """The definition: the longest earlier occurrence of the end, the latest of equals."""
    best = (0, 0)
    for place in range(len(tokens) - 2, 0, -1):
        length = 0
        while length < 16 and length <= place and tokens[place - length] == tokens[-1 - length]:
            length += 1
        if length >= 2 and length > best[1]:
            best = (place + 1, length)
    return best


@pytest.mark.parametrize("alphabet", [1, 2, 3, 9])
def test_repetitions_are_found(alphabet: int) -> None:
    rng = random.Random(alphabet)
    for size in range(0, 31):  # as many places as are compared at most
        tokens = [rng.randrange(alphabet) for _ in range(size)]
        growing: list[int] = []
        index = RepetitionIndex(growing)
        for token in tokens:
            growing.append(token)
            assert index.find() == plain_find(growing), growing
        assert RepetitionIndex(list(tokens)).find() == plain_find(tokens)


def test_guesses_continue_repetitions() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 9, 2, 3], 3)
    lookup.guess()
    assert lookup.guesses == [4, 5, 9, 2]
    # A repetition that reaches the end goes on as it began.
    lookup = PromptLookup([7, 1, 2, 3, 1, 2, 3, 1], 6)
    lookup.guess()
    assert lookup.guesses == [2, 3, 1, 2, 3, 1, 2]
    lookup = PromptLookup([1, 2, 3, 4], 3)
    lookup.guess()
    assert lookup.guesses == []


def test_chances_follow_what_happens() -> None:
    tokens = [1, 2, 3, 1, 2]
    lookup = PromptLookup(tokens, 2)
    start = lookup.chance
    for _ in range(30):
        lookup.guess()
        lookup.learn([5])
    assert lookup.chance < 0.1 < start
    # Seen without being verified: the first right one counts, too.
    for _ in range(60):
        lookup.guess()
        lookup.learn([3])
    assert lookup.chance > 0.9
    lookup.learn([5])  # no guess, nothing learnt
    assert lookup.chance > 0.9


# ---------------------------------------------------------------------- costs


def costs_of(seconds: dict[int, float]) -> StepCosts:
    costs = StepCosts()
    for _ in range(30):
        for rows, value in seconds.items():
            costs.record(rows, value)
    return costs


def test_costs_are_measured_and_estimated() -> None:
    assert StepCosts().estimate(1) is None
    costs = costs_of({1: 1.0, 5: 3.0})
    assert costs.estimate(1) == pytest.approx(1.0) and costs.estimate(5) == pytest.approx(3.0)
    assert costs.estimate(3) == pytest.approx(2.0)
    beyond = costs.estimate(9)
    assert beyond is not None and beyond > 3.0
    # One accident does not count fully; what is old counts no more.
    costs.record(5, 100.0)
    after = costs.estimate(5)
    assert after is not None and 3.0 < after < 60.0
    for _ in range(300):
        costs.record(1, 1.0)
    forgotten = costs.estimate(5)
    assert forgotten is not None and forgotten < 3.0


def plain_lengths(seconds: dict[int, float], candidates: list[tuple[float, int]]) -> float:
    """The best expected speed of all choices."""
    best = 0.0
    for lengths in itertools.product(*(range(most + 1) for _, most in candidates)):
        expected = sum(
            sum(chance**j for j in range(length + 1))
            for (chance, _), length in zip(candidates, lengths, strict=True)
        )
        best = max(best, expected / seconds[len(candidates) + sum(lengths)])
    return best


def test_draft_lengths_are_the_best_ones() -> None:
    rng = random.Random(7)
    for _ in range(40):
        slope, step = rng.uniform(0.02, 1.0), rng.uniform(0, 2.0)
        seconds = {rows: 1 + slope * rows + step * (rows // 6) for rows in range(1, 20)}
        costs = costs_of(seconds)
        candidates = [(rng.uniform(0.05, 0.99), rng.randint(0, 5)) for _ in range(3)]
        lengths = draft_lengths(costs, candidates)
        speed = plain_lengths(
            seconds, [(c, n) for (c, _), n in zip(candidates, lengths, strict=True)]
        )
        # Within the gain that is not worth the risk.
        assert speed >= plain_lengths(seconds, candidates) / 1.031
        assert all(n <= most for (_, most), n in zip(candidates, lengths, strict=True))


def test_guesses_that_do_not_pay_are_not_verified() -> None:
    cheap, dear = costs_of({1: 1.0, 9: 1.2}), costs_of({1: 1.0, 9: 9.0})
    assert draft_lengths(cheap, [(0.9, 8)]) == [8]
    assert draft_lengths(dear, [(0.9, 8)]) == [0]  # each row costs as much as a step
    assert draft_lengths(cheap, [(0.01, 8)]) == [0]  # hardly ever right
    assert 0 < draft_lengths(costs_of({1: 1.0, 9: 3.0}), [(0.6, 8)])[0] < 8
    assert draft_lengths(StepCosts(), [(0.9, 8)]) == [0]  # nothing is known yet

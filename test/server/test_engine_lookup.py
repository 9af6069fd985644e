"""Prompt lookup in the engine: the answers are those of plain decoding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from infinicore_infer.engine.config import EngineConfig
from infinicore_infer.engine.engine import MAX_DRAFTING, MAX_DRAFTS, Engine
from infinicore_infer.engine.jobs import Submission
from infinicore_infer.engine.llm import LLM
from infinicore_infer.generate import drafts
from infinicore_infer.generate.drafts import Drafter, StepCosts
from infinicore_infer.generate.lookup import LookupSource
from infinicore_infer.generate.plan import Share
from infinicore_infer.generate.sequence import GenerationSequence
from python.helpers import DEMO
from qwen3 import Qwen3ForCausalLM
from serving import LiveServer

Make = Callable[..., LiveServer]
SAID = "The cat sat on the mat. The dog sat on the rug. The cat sat on the mat. "
PROMPTS = [SAID * (1 + i % 3) + f"Number {i}. The" for i in range(12)]
LONG: dict[str, Any] = dict(max_steps=50, ignore_eos=True)


def every_guess(costs: StepCosts, candidates: Sequence[tuple[float, int]]) -> list[int]:
    return [most for _, most in candidates]


@pytest.fixture(params=["every guess", "as it pays"])
def policy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "every guess":
        monkeypatch.setattr(drafts, "draft_lengths", every_guess)
    return str(request.param)


@pytest.fixture
def llm(policy: str) -> Iterator[LLM]:
    config = EngineConfig(max_batch=6, lookup=8)
    with LLM(str(DEMO), threads=1, config=config) as llm:
        yield llm
        assert llm.engine.wait_idle(5)
        stats = llm.engine.stats
        assert llm.model.stats()["kv_used_bytes"] == stats.prefix_bytes
        assert stats.failed_steps == 0


@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("count", [1, 3])
def test_same_answers(
    llm: LLM, reference: Qwen3ForCausalLM, policy: str, count: int, temperature: float
) -> None:
    """Greedy and seeded ones, alone and together."""
    settings = dict(LONG, temperature=temperature, seed=5)
    for _ in range(2):  # the second time with remembered prefixes, which guessing may have touched
        results = llm.generate(PROMPTS[:count], **settings)
        for i, result in enumerate(results):
            plain = reference.generate(PROMPTS[i], **{**settings, "seed": 5 + i})
            assert result.tokens == plain.tokens and result.text == plain.text
            assert result.finish_reason == plain.finish_reason
    stats = llm.engine.stats
    assert stats.generated_tokens == 2 * count * 50
    if policy == "every guess":
        assert 0 < stats.accepted_tokens < stats.drafted_tokens
        assert stats.steps < 2 * count * 50


def test_coming_and_going(llm: LLM, reference: Qwen3ForCausalLM, policy: str) -> None:
    """Answers of all lengths, greedy and sampled, more than guesses are made for at times."""
    jobs = []
    for i, prompt in enumerate(PROMPTS):
        params = reference.sampling_params(
            temperature=i % 3 * 0.5, seed=i, max_steps=4 + 5 * i, ignore_eos=True
        )
        submission = Submission(llm.model.encode(prompt), [params])
        jobs.append(llm.engine.make_job(submission, lambda update: None))
    llm.engine.submit(jobs)
    assert llm.engine.wait_idle(20)
    for i, job in enumerate(jobs):
        plain = reference.generate(
            PROMPTS[i], 4 + 5 * i, temperature=i % 3 * 0.5, seed=i, ignore_eos=True
        )
        assert job.sequence.result.tokens == plain.tokens
    assert policy != "every guess" or llm.engine.stats.accepted_tokens > 0


def test_ends(llm: LLM, reference: Qwen3ForCausalLM) -> None:
    """Limits, stop strings and end tokens amid accepted guesses; updates come one per token."""
    whole = reference.generate(SAID, temperature=0, **LONG)
    for steps in range(1, 20):
        (result,) = llm.generate(SAID, max_steps=steps, temperature=0, ignore_eos=True)
        assert result.tokens == whole.tokens[:steps] and result.finish_reason == "length"
    for stop in (whole.text[5:8], whole.text[20:24], "never"):
        plain = reference.generate(SAID, temperature=0, stop=(stop,), **LONG)
        (result,) = llm.generate(SAID, temperature=0, stop=(stop,), **LONG)
        assert (result.text, result.tokens) == (plain.text, plain.tokens)
        assert result.stop_string == plain.stop_string
    end = whole.tokens[17]
    model, pieces = llm.model, []
    settings = model.sampling_params(temperature=0, max_steps=50)
    submission = Submission(model.encode(SAID), [settings], stop_tokens=[end])
    job = llm.engine.make_job(submission, pieces.append)
    llm.engine.submit([job])
    assert llm.engine.wait_idle(10)
    first = whole.tokens.index(end)
    assert job.sequence.result.tokens == whole.tokens[: first + 1]
    assert [update.piece.token for update in pieces] == whole.tokens[: first + 1]
    assert [update.done for update in pieces] == [False] * first + [True]


def test_penalties(llm: LLM, reference: Qwen3ForCausalLM) -> None:
    settings = dict(LONG, temperature=0, repetition_penalty=1.1, frequency_penalty=0.3)
    for prompt, result in zip(PROMPTS[:3], llm.generate(PROMPTS[:3], **settings), strict=True):
        assert result.tokens == reference.generate(prompt, **settings).tokens


def test_repetition_detection(make_server: Make, policy: str) -> None:
    """Ends answers amid accepted guesses where it ends them without."""
    body = {"prompt": SAID, "max_tokens": 80, "temperature": 0, "ignore_eos": True}
    body["repetition_detection"] = {"max_pattern_size": 8, "min_count": 20}
    answers = []
    for lookup in (0, 8):
        server = make_server(lookup=lookup)
        tokens = server.post("/tokenize", {"prompt": " the"}).json()["tokens"]
        body["logit_bias"] = {str(tokens[0]): 100.0}
        answer = server.post("/v1/completions", body).json()
        answers.append((answer["choices"], answer["usage"]["completion_tokens"]))
        server.check_idle()
    assert answers[0] == answers[1]
    assert answers[0][1] == 20 and answers[0][0][0]["finish_reason"] == "repetition"
    assert policy != "every guess" or server.engine.stats.accepted_tokens > 10


def test_little_kv_memory(reference: Qwen3ForCausalLM, policy: str) -> None:
    """Guesses that find no memory are left out, before anybody has to give way for them."""
    block = 32768
    tokens = reference.encode(SAID)
    room = -(-(len(tokens) + 20) // 16)
    config = EngineConfig(lookup=64, prefix_cache_bytes=0)
    with LLM(str(DEMO), threads=1, kv_limit_bytes=room * block, config=config) as llm:
        steps = room * 16 - len(tokens)
        (result,) = llm.generate(SAID, max_steps=steps, temperature=0, ignore_eos=True)
        assert len(result.tokens) == steps
        plain = reference.generate(SAID, max_steps=steps, temperature=0, ignore_eos=True)
        assert result.tokens == plain.tokens and llm.engine.stats.preemptions == 0


def test_nothing_is_guessed_where_it_must_not(make_server: Make, policy: str) -> None:
    """Log-probabilities need every row; grammars mask one token at a time."""
    server, plain = make_server(lookup=8), make_server()
    schema = {"type": "object", "properties": {"a": {"enum": ["one", "two"]}}, "required": ["a"]}
    bodies: list[dict[str, Any]] = [
        {"logprobs": True, "top_logprobs": 2},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {**schema, "additionalProperties": False}},
            }
        },
        {"thinking_budget": 5},
    ]
    for body in bodies:
        messages = [{"role": "user", "content": SAID + "Say it again."}]
        answers = [each.chat(messages, max_tokens=60, **body) for each in (server, plain)]
        assert answers[0]["choices"] == answers[1]["choices"]
    json.loads(server.chat(messages, **bodies[1])["choices"][0]["message"]["content"])
    assert server.engine.stats.drafted_tokens == 0
    for each in (server, plain):
        text = each.post("/v1/completions", {"prompt": SAID, "max_tokens": 40, "temperature": 0})
        answers.append(text.json()["choices"])
    assert answers[-1] == answers[-2]
    metrics = server.http.get("/metrics").text
    stats = server.engine.stats
    assert f"infinicore_infer_drafted_tokens_total {float(stats.drafted_tokens)}" in metrics
    assert f"infinicore_infer_accepted_tokens_total {float(stats.accepted_tokens)}" in metrics
    assert policy != "every guess" or stats.drafted_tokens > 0


def chosen(plan: Sequence[tuple[GenerationSequence, int]]) -> list[int]:
    """Returns how many drafts each share of a step gets with the engine's policy."""
    shares = [Share(sequence, count) for sequence, count in plan]
    Drafter(LookupSource(), max_sequences=MAX_DRAFTING, max_drafts=MAX_DRAFTS).choose(shares)
    return [len(share.drafts) for share in shares]


def test_not_for_full_batches(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not in steps with parts of prompts, which take long as it is."""
    monkeypatch.setattr(drafts, "draft_lengths", every_guess)
    model = llm.model
    params = replace(model.sampling_params(temperature=0), lookup=20)
    sequences = []
    for i in range(MAX_DRAFTING + 1):
        tokens = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
        sequence = llm.engine.make_job(Submission(tokens, [params]), print).sequence
        sequence.position = len(tokens) - 1
        sequences.append(sequence)
        lengths = chosen([(sequence, 1) for sequence in sequences])
        assert lengths == (
            [min(20, 32 // (i + 1))] * (i + 1) if i < MAX_DRAFTING else [0] * (i + 1)
        )
    sequences[1].position = 3
    assert chosen([(sequences[0], 1), (sequences[1], 5)]) == [0, 0]


def test_settings() -> None:
    with Qwen3ForCausalLM(DEMO, threads=1) as model:
        with pytest.raises(ValueError, match="lookup must be a whole number from 0 to 64"):
            Engine(model, EngineConfig(lookup=65))

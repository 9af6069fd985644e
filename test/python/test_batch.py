"""The loop of a step, on a model that is arithmetic: plans, drafts, memory, failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from infinicore_infer.generate import drafts
from infinicore_infer.generate.batch import (
    Batch,
    Computed,
    Delivered,
    Failed,
    Outcome,
    StepFailed,
    SteppedBack,
)
from infinicore_infer.generate.drafts import Drafter, DraftSource, Proposal
from infinicore_infer.generate.lookup import LookupSource
from infinicore_infer.generate.sampling import SamplingParams
from infinicore_infer.generate.sequence import GenerationSequence
from infinicore_infer.generate.stream import run_sequences
from infinicore_infer.native.model import StepRequest, StepResult
from libinfinicore_infer import Qwen3Cancelled, Qwen3Error, Qwen3OutOfKVError
from numpy.typing import NDArray

DVOC = 50


def next_token(tokens: Sequence[int]) -> int:
    """What the model says: it repeats itself, and says 8 after 20 tokens, or 40."""
    if len(tokens) % 20 == 0:
        return 8
    return (sum(tokens[-2:]) * 3 + len(tokens) // 8) % 7


def answer(prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeCache:
    def __init__(self, model: FakeModel) -> None:
        self.owner = model
        self.tokens: list[int] = []
        model.caches.append(self)

    def __len__(self) -> int:
        return len(self.tokens)

    def __bool__(self) -> bool:
        return True

    def close(self) -> None:
        self.owner.caches.remove(self)


class FakeModel:
    """Computes what :func:`next_token` says, in caches with room for so many tokens together."""

    closed = False
    step_tokens = 512

    def __init__(self, room: int = 10**9) -> None:
        self.room = room
        self.caches: list[FakeCache] = []
        self.steps: list[list[StepRequest]] = []
        self.poison: int | None = None

    def create_kv_cache(self) -> FakeCache:
        return FakeCache(self)

    def _feed(self, requests: Sequence[StepRequest]) -> None:
        new = sum(r.position + len(r.tokens) - len(r.cache.tokens) for r in requests)
        if sum(map(len, self.caches)) + new > self.room:
            raise Qwen3OutOfKVError(5, "QWEN3_STATUS_OUT_OF_KV", "no KV memory is left")
        if any(self.poison in r.tokens for r in requests):
            raise Qwen3Error(1, "QWEN3_STATUS_INTERNAL_ERROR", "injected")
        for request in requests:
            request.cache.tokens[request.position :] = request.tokens

    def step(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        self._feed(requests)
        self.steps.append(list(requests))
        return [self._choose(request) for request in requests]

    def _choose(self, request: StepRequest) -> StepResult:
        tokens, sampling = request.cache.tokens, request.sampling
        if sampling is None:
            return StepResult(0, 0.0)
        begin = len(tokens) - sampling.ndraft
        accepted = 0
        while accepted < sampling.ndraft and tokens[begin + accepted] == next_token(
            tokens[: begin + accepted]
        ):
            accepted += 1
        del tokens[begin + accepted :]
        return StepResult(next_token(tokens), 0.0, accepted=accepted)

    def forward(self, requests: Sequence[StepRequest]) -> NDArray[np.float32]:
        """Every token's logits: token t has t times the number of tokens so far."""
        self._feed(requests)
        counts = [r.position + 1 + i for r in requests for i in range(len(r.tokens))]
        return np.outer(counts, np.arange(DVOC) / 100).astype(np.float32)


def sequence(prompt: Sequence[int], steps: int = 12, **options: Any) -> GenerationSequence:
    settings = {k: options.pop(k) for k in ("lookup", "logprobs") if k in options}
    params = SamplingParams(max_steps=steps, seed=0, **settings)
    options.setdefault("end_tokens", ())
    return GenerationSequence(prompt, params, dctx=1000, dvoc=DVOC, tokenizer=None, **options)


def make_batch(
    model: FakeModel, size: int = 8, source: DraftSource | None = None, **options: Any
) -> Batch:
    return Batch(model, size, Drafter(source or LookupSource()), **options)  # type: ignore[arg-type]


def run(batch: Batch, sequences: Sequence[GenerationSequence], budget: int = 64) -> list[Outcome]:
    """Runs sequences to their end, as the engine does, and returns all that happened."""
    waiting, seen = list(sequences), []
    for _ in range(10_000):
        while waiting and batch.room > 0:
            batch.add(waiting.pop(0))
        if not batch.sequences:
            return seen
        for outcome in batch.step(budget):
            seen.append(outcome)
            if isinstance(outcome, SteppedBack):
                waiting.insert(0, outcome.sequence)
            elif isinstance(outcome, StepFailed):
                if len(outcome.sequences) == 1:
                    batch.remove(outcome.sequences[0])
            elif isinstance(outcome, Failed) or (
                isinstance(outcome, Delivered) and outcome.sequence.finished
            ):
                batch.remove(outcome.sequence)
    raise AssertionError("the batch never ends")


def of(kind: type, outcomes: Sequence[Outcome]) -> list[Any]:
    return [outcome for outcome in outcomes if isinstance(outcome, kind)]


def every_guess(costs: drafts.StepCosts, candidates: Sequence[tuple[float, int]]) -> list[int]:
    return [most for _, most in candidates]


PROMPTS = [[1, 2, 3], [4] * 30, [5, 6], [1] * 9]


# ---------------------------------------------------------------------- plans and answers


def test_answers_come_token_by_token() -> None:
    model = FakeModel()
    sequences = [sequence(prompt) for prompt in PROMPTS]
    seen = run(make_batch(model), sequences)
    for each, prompt in zip(sequences, PROMPTS, strict=True):
        assert each.result.tokens == answer(prompt, 12)
        pieces = [o.piece.token for o in of(Delivered, seen) if o.sequence is each]
        assert pieces == each.result.tokens and each.result.finish_reason == "length"
    steps = of(Computed, seen)
    # The last token is not fed.
    assert sum(step.tokens for step in steps) == sum(map(len, PROMPTS)) + 4 * 11
    assert len(steps) == len(model.steps) and not model.caches


def test_plans() -> None:
    """Answers first, then prompts, within the budget."""
    model = FakeModel()
    batch = make_batch(model)
    decoding, short, long = sequence([1]), sequence([2] * 10), sequence([3] * 100)
    for each in (decoding, long, short):
        batch.add(each)
    plan = batch.plan(31)
    assert [(share.sequence, share.count) for share in plan] == [
        (decoding, 1),
        (long, 20),
        (short, 10),
    ]
    assert [share.sequence for share in batch.plan(1)] == [decoding]
    list(batch.step(31))
    assert [len(request.tokens) for request in model.steps[0]] == [1, 20, 10]
    # A part of a prompt brings no token.
    assert [request.sampling is None for request in model.steps[0]] == [False, True, False]
    assert (long.remaining, short.remaining, decoding.remaining) == (80, 1, 1)


def test_room_and_removal() -> None:
    model = FakeModel()
    batch = make_batch(model, size=2)
    first, second = sequence([1]), sequence([2])
    batch.add(first)
    batch.add(second)
    assert batch.room == 0 and len(model.caches) == 2
    batch.remove(first)
    batch.remove(first)
    assert batch.room == 1 and batch.sequences == [second] and len(model.caches) == 1


# ---------------------------------------------------------------------- memory


def test_the_youngest_steps_back() -> None:
    """And comes back later with the same answer; nobody else enters meanwhile."""
    model = FakeModel(room=60)
    sequences = [sequence(prompt, 20) for prompt in PROMPTS]
    batch = make_batch(model, size=3)
    # Not in the order of their making: age counts, not the place in the batch.
    for each in (sequences[2], sequences[0], sequences[1]):
        batch.add(each)
    outcomes: list[Outcome] = []
    while not of(SteppedBack, outcomes):
        outcomes += batch.step(64)
    (back,) = of(SteppedBack, outcomes)
    assert back.sequence is sequences[2] and back.sequence.cache is None
    assert batch.sequences == [sequences[0], sequences[1]] and batch.room == 0
    batch.remove(sequences[0])
    assert batch.room == 1
    batch.lift_limit()
    assert batch.room == 2


def test_answers_are_the_same_after_stepping_back() -> None:
    model = FakeModel(room=60)
    sequences = [sequence(prompt, 20) for prompt in PROMPTS]
    seen = run(make_batch(model, size=4), sequences)
    assert of(SteppedBack, seen) and not model.caches
    for each, prompt in zip(sequences, PROMPTS, strict=True):
        assert each.result.tokens == answer(prompt, 20)
        # What was computed again is not delivered again.
        pieces = [o.piece.token for o in of(Delivered, seen) if o.sequence is each]
        assert pieces == each.result.tokens


def test_others_give_memory_first() -> None:
    model = FakeModel(room=20)
    asked: list[int] = []

    def reclaim() -> bool:
        asked.append(model.room)
        model.room += 10
        return model.room <= 60

    sequences = [sequence(prompt, 4) for prompt in PROMPTS]
    seen = run(make_batch(model, reclaim=reclaim), sequences)
    assert asked == [20, 30, 40, 50] and not of(SteppedBack, seen)
    assert [each.result.tokens for each in sequences] == [answer(prompt, 4) for prompt in PROMPTS]


def test_memory_for_nobody() -> None:
    """A sequence alone has nobody to wait for."""
    failing = sequence([1] * 30)
    (outcome,) = run(make_batch(FakeModel(room=20), isolate=True), [failing])
    assert isinstance(outcome, Failed) and outcome.sequence is failing
    assert isinstance(outcome.error, Qwen3OutOfKVError)
    model = FakeModel(room=20)
    with pytest.raises(Qwen3OutOfKVError):
        list(run_sequences(model, [sequence([1] * 30)]))  # type: ignore[arg-type]
    assert not model.caches


def test_a_cache_to_begin_with() -> None:
    """What it holds is not computed again; it goes with the sequence."""
    model = FakeModel()
    cache = model.create_kv_cache()
    cache.tokens = [4] * 20
    each, batch = sequence([4] * 30), make_batch(model)
    batch.add(each, cache)  # type: ignore[arg-type]
    assert each.position == each.result.reused_tokens == 20
    assert sum(step.tokens for step in of(Computed, run(batch, []))) == 10 + 11
    assert each.result.tokens == answer([4] * 30, 12) and not model.caches


# ---------------------------------------------------------------------- drafts


class Oracle:
    """Knows the answers, all but every third token; and remembers what it is told."""

    def __init__(self) -> None:
        self.learnt: list[int] = []
        self.forgotten: list[GenerationSequence] = []
        self.most: list[int] = []

    def propose(self, sequences: Sequence[GenerationSequence], most: int) -> list[Proposal | None]:
        self.most.append(most)
        result: list[Proposal | None] = []
        for each in sequences:
            tokens = answer(each.all_tokens, min(most, 6, each.draft_room))
            tokens[2::3] = [9 for _ in tokens[2::3]]
            result.append(Proposal(tokens, 0.8))
        return result

    def learn(self, sequence: GenerationSequence, tokens: Sequence[int]) -> None:
        self.learnt += tokens

    def forget(self, sequence: GenerationSequence) -> None:
        self.forgotten.append(sequence)


def test_another_source_of_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes the number of steps, never the answer."""
    monkeypatch.setattr(drafts, "draft_lengths", every_guess)
    model, source = FakeModel(), Oracle()
    each = sequence(PROMPTS[0], 20)
    seen = run(make_batch(model, source=source), [each])
    assert each.result.tokens == answer(PROMPTS[0], 20)
    steps = of(Computed, seen)
    # Two right drafts and the token after them, in all steps but the prompt's and the last ones.
    assert len(steps) < 9 and max(step.accepted for step in steps) == 2
    assert sum(step.drafted for step in steps) == each.result.drafted_tokens
    assert sum(step.accepted for step in steps) == each.result.accepted_tokens
    assert [*answer(PROMPTS[0], 1), *source.learnt] == each.result.tokens
    assert source.forgotten == [each]


def test_policy_of_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """None with many sequences, none beside parts of prompts, and no more than agreed on."""
    monkeypatch.setattr(drafts, "draft_lengths", every_guess)
    source = Oracle()
    batch = Batch(
        FakeModel(),  # type: ignore[arg-type]
        8,
        Drafter(source, max_sequences=2, max_drafts=8),
    )
    drafted = []
    for prompt in ([1], [2], [3, 4, 5], [6]):
        batch.add(sequence(prompt, 50))
        for _ in range(2):
            drafted += [outcome.drafted for outcome in of(Computed, list(batch.step(64)))]
    assert drafted == [6, 6, 8, 8, 0, 0, 0, 0] and source.most == [8, 8, 4, 4]


def test_drafts_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are given up before anybody is asked for memory or steps back."""
    monkeypatch.setattr(drafts, "draft_lengths", every_guess)
    prompt, whole = [1, 2, 3], answer([1, 2, 3], 60)
    # The answer ends within the memory there is, which its drafts would exceed.
    count = whole.index(8) + 1
    each = sequence(prompt, 60, end_tokens=(8,))

    def reclaim() -> bool:
        raise AssertionError("memory was asked for")

    model = FakeModel(len(prompt) + count - 1)
    seen = run(make_batch(model, source=Oracle(), reclaim=reclaim), [each])
    assert each.result.tokens == whole[:count] and each.result.finish_reason == "stop"
    drafted = [step.drafted for step in of(Computed, seen)]
    assert drafted[1] == 6 and drafted[-1] == 0 and not of(SteppedBack, seen)


def test_lookup_is_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "draft_lengths", every_guess)
    asking, plain = sequence([1, 2] * 9, 40, lookup=5), sequence([1, 2] * 9, 40)
    run(make_batch(FakeModel()), [asking, plain])
    assert asking.result.drafted_tokens > asking.result.accepted_tokens > 0
    assert plain.result.drafted_tokens == 0
    assert asking.result.tokens == plain.result.tokens == answer([1, 2] * 9, 40)


# ---------------------------------------------------------------------- failures


def test_only_the_culprit_fails() -> None:
    model = FakeModel()
    model.poison = 33
    sequences = [sequence(prompt) for prompt in ([1, 2], [33, 4], [5])]
    seen = run(make_batch(model, isolate=True), sequences)
    together, alone = of(StepFailed, seen)
    assert set(together.sequences) == set(sequences)
    assert list(alone.sequences) == [sequences[1]]
    assert "injected" in str(alone.error)
    assert [len(each.result.tokens) for each in sequences] == [12, 0, 12]
    assert sequences[2].result.tokens == answer([5], 12) and not model.caches


def test_failures_are_raised_unless_isolated() -> None:
    model = FakeModel()
    model.poison = 33
    with pytest.raises(Qwen3Error, match="injected"):
        list(run_sequences(model, [sequence([1]), sequence([33])]))  # type: ignore[arg-type]
    assert not model.caches


def test_cancellation_ends_all_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequences = FakeModel(), [sequence([1]), sequence([2])]
    step = model.step

    def stopped(requests: Sequence[StepRequest]) -> list[StepResult]:
        if len(model.steps) == 3:
            raise Qwen3Cancelled(6, "QWEN3_STATUS_CANCELLED", "cancelled")
        return step(requests)

    monkeypatch.setattr(model, "step", stopped)
    assert len(list(run_sequences(model, sequences))) == 6  # type: ignore[arg-type]
    assert {each.result.finish_reason for each in sequences} == {"cancelled"}
    assert not model.caches


class BrokenConstraint:
    def mask(self) -> None:
        return None

    def accept(self, token: int) -> None:
        raise RuntimeError("broken")


def test_a_constraint_that_fails_hurts_nobody_else() -> None:
    sequences = [sequence([1], constraint=BrokenConstraint()), sequence([2])]
    seen = run(make_batch(FakeModel(), isolate=True), sequences)
    (failed,) = of(Failed, seen)
    assert failed.sequence is sequences[0] and str(failed.error) == "broken"
    assert sequences[1].result.tokens == answer([2], 12) and not of(StepFailed, seen)


# ---------------------------------------------------------------------- scoring


def scores_of(prompt: Sequence[int]) -> list[float]:
    result = []
    for i, token in enumerate(prompt[1:], 1):
        logits = i * np.arange(DVOC) / 100
        result.append(float(logits[token] - np.log(np.exp(logits).sum())))
    return result


def test_prompts_are_scored_beside_steps() -> None:
    prompt = [7 * i % DVOC for i in range(150)]
    scored, plain = sequence(prompt, prompt_logprobs=2), sequence([1], 20)
    seen = run(make_batch(FakeModel()), [plain, scored])
    assert np.allclose([score.logprob for score in scored.prompt_scores], scores_of(prompt))
    assert [score.token for score in scored.prompt_scores] == prompt[1:]
    assert [token for token, _ in scored.prompt_scores[0].top] == [DVOC - 1, DVOC - 2]
    assert scored.result.tokens == answer(prompt, 12)
    assert plain.result.tokens == answer([1], 20)
    # The other one got a token with every part of the prompt.
    assert [o.sequence for o in of(Delivered, seen)[:2]] == [plain, plain]


def test_scores_are_not_doubled_by_stepping_back() -> None:
    prompt = [3 * i % DVOC for i in range(140)]
    plain, scored = sequence([1] * 20, 30), sequence(prompt, prompt_logprobs=0)
    model = FakeModel(room=155)
    seen = run(make_batch(model), [plain, scored])
    assert [back.sequence for back in of(SteppedBack, seen)] == [scored]
    assert np.allclose([score.logprob for score in scored.prompt_scores], scores_of(prompt))
    assert plain.result.tokens == answer([1] * 20, 30)
    assert scored.result.tokens == answer(prompt, 12)


def test_scores_are_complete_after_stepping_back_amid_the_answer() -> None:
    """What is computed again then is no prompt any more, or has its scores already."""
    prompt = [3 * i % DVOC for i in range(70)]
    plain, scored = sequence([1] * 5, 60), sequence(prompt, 30, prompt_logprobs=0)
    seen = run(make_batch(FakeModel(room=120)), [plain, scored])
    (back,) = of(SteppedBack, seen)
    assert back.sequence is scored
    pieces = [outcome.sequence for outcome in seen[: seen.index(back)] if of(Delivered, [outcome])]
    assert pieces.count(scored) > 5
    assert np.allclose([score.logprob for score in scored.prompt_scores], scores_of(prompt))
    assert scored.result.tokens == answer(prompt, 30)

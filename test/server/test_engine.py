"""The engine without HTTP: equal answers, memory, failures, cancellation, lifetimes."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from infinicore_infer.engine.async_engine import AsyncEngine
from infinicore_infer.engine.config import (
    DeadlineError,
    EngineClosedError,
    EngineConfig,
    QueueFullError,
    StepFailedError,
)
from infinicore_infer.engine.engine import Engine
from infinicore_infer.engine.jobs import Submission
from infinicore_infer.engine.llm import LLM
from infinicore_infer.engine.prefix_cache import PrefixCache
from infinicore_infer.generate.plan import plan_step
from libinfinicore_infer import Qwen3Error
from python.helpers import DEMO
from qwen3 import Qwen3ForCausalLM
from serving import slow_steps

PROMPTS = [f"Tell me a story about {i}. " + "word " * (i * 37 % 150) for i in range(20)]
LONG: dict[str, Any] = dict(max_steps=40, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def expected(reference: Qwen3ForCausalLM) -> list[list[int]]:
    return [reference.generate(prompt, **LONG).tokens for prompt in PROMPTS]


@pytest.fixture
def llm() -> Iterator[LLM]:
    with LLM(str(DEMO), threads=1, config=EngineConfig(max_batch=6, max_queue=4)) as llm:
        yield llm


def check_no_leak(llm: LLM) -> None:
    assert llm.engine.wait_idle(5)
    memory, stats = llm.model.stats(), llm.engine.stats
    assert memory["kv_used_bytes"] == stats.prefix_bytes
    assert memory["ncaches"] == stats.prefix_nodes


def test_batch_equals_single(llm: LLM, expected: list[list[int]]) -> None:
    """More prompts than the queue holds, and twice, so that the second time hits the cache."""
    for _ in range(2):
        results = llm.generate(PROMPTS, **LONG)
        assert [result.tokens for result in results] == expected
    assert llm.engine.stats.prefix_hits >= len(PROMPTS) - 2
    assert results[9].reused_tokens == results[9].prompt_tokens // 16 * 16
    check_no_leak(llm)
    assert llm.generate("One", max_steps=3)[0].text
    assert llm.generate([5, 6], max_steps=3)[0].prompt_tokens == 2


@pytest.mark.parametrize("prefix", [0, None])
def test_little_kv_memory(expected: list[list[int]], prefix: int | None) -> None:
    """Requests give way and come back, with the same answers."""
    config = EngineConfig(max_batch=8, prefix_cache_bytes=prefix)
    with LLM(str(DEMO), threads=1, kv_limit_bytes=32768 * 30, config=config) as llm:
        assert llm.engine.context_length == 30 * 16
        results = llm.generate(PROMPTS, **LONG)
        assert [result.tokens for result in results] == expected
        assert llm.engine.stats.preemptions > 0
        check_no_leak(llm)
        with pytest.raises(ValueError, match="context holds 480"):
            llm.generate([[1] * 500])


def test_prompt_goes_in_between(llm: LLM) -> None:
    """While a long prompt loads in small steps, another answer goes on."""
    assert llm.engine.config.step_tokens == 512  # the model's own, where the program names none
    llm.engine.config.step_tokens = 32
    order: list[str] = []
    model = llm.model
    settings = [model.sampling_params(**LONG)]
    first = llm.engine.make_job(
        Submission(model.encode("Hi"), settings), lambda update: order.append("a")
    )
    second = llm.engine.make_job(
        Submission(model.encode("word " * 600), settings), lambda update: order.append("b")
    )
    llm.engine.submit([first, second])
    assert llm.engine.wait_idle(20)
    assert order.index("b") >= 10 and order.count("a") == order.count("b") == 40


def test_failed_step_hurts_only_the_culprit(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step = llm.model.native.step
    poison = llm.model.encode("poison")

    def fragile(requests: Any) -> Any:
        if any(list(request.tokens) == poison for request in requests):
            raise Qwen3Error(1, "QWEN3_STATUS_INTERNAL_ERROR", "injected")
        return step(requests)

    monkeypatch.setattr(llm.model.native, "step", fragile)
    seen: list[Any] = []
    model = llm.model
    settings = model.sampling_params(max_steps=10, temperature=0)
    jobs = [
        llm.engine.make_job(Submission(model.encode(text), [settings]), seen.append)
        for text in ("Hello", "poison", "What is")
    ]
    llm.engine.submit(jobs)
    assert llm.engine.wait_idle(10)
    errors = [update.error for update in seen if update.error]
    assert len(errors) == 1 and isinstance(errors[0], StepFailedError)
    assert "injected" in str(errors[0])
    assert [bool(job.sequence.result.tokens) for job in jobs] == [True, False, True]
    assert jobs[0].sequence.result.tokens == model.generate("Hello", 10, temperature=0).tokens
    with pytest.raises(StepFailedError):
        llm.generate(["Hello", "poison"])
    assert llm.engine.stats.failed_steps >= 2
    check_no_leak(llm)


def test_bugs_do_not_end_the_engine(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.engine._pace, "budget", lambda active: 1 / 0)
    with pytest.raises(StepFailedError):
        llm.generate("Hello")
    monkeypatch.undo()
    assert llm.generate("Hello", max_steps=3)[0].tokens
    check_no_leak(llm)


def test_a_failing_receiver_hurts_nobody(llm: LLM) -> None:
    def broken(update: Any) -> None:
        raise RuntimeError("receiver")

    model = llm.model
    submission = Submission([1, 2], [model.sampling_params(**LONG)])
    llm.engine.submit([llm.engine.make_job(submission, broken)])
    assert llm.engine.wait_idle(5)
    check_no_leak(llm)


def test_queue_and_drain(llm: LLM) -> None:
    model, engine = llm.model, llm.engine
    settings = model.sampling_params(**LONG)
    done: list[Any] = []

    def jobs(count: int) -> list[Any]:
        return [
            engine.make_job(Submission([1, 2, 3], [settings]), done.append) for _ in range(count)
        ]

    with pytest.raises(QueueFullError):
        engine.submit(jobs(11))
    engine.submit(jobs(10))
    with pytest.raises(QueueFullError):
        engine.submit(jobs(5))
    engine.drain()
    with pytest.raises(EngineClosedError):
        engine.submit(jobs(1))
    assert engine.wait_idle(20)
    assert sum(update.done for update in done) == 10 and not any(u.error for u in done)


def test_close_ends_what_runs() -> None:
    with Qwen3ForCausalLM(DEMO, threads=1) as model:
        engine = Engine(model)
        seen: list[Any] = []
        settings = model.sampling_params(temperature=0, ignore_eos=True)
        engine.submit([engine.make_job(Submission([1, 2, 3], [settings]), seen.append)])
        engine.close()
        assert isinstance(seen[-1].error, EngineClosedError)
        assert model.stats()["ncaches"] == 0


def test_threads_share_an_engine(llm: LLM, expected: list[list[int]]) -> None:
    answers: dict[int, Any] = {}

    def work(i: int) -> None:
        answers[i] = llm.generate(PROMPTS[i : i + 3], **LONG)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(0, 12, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, results in answers.items():
        assert [result.tokens for result in results] == expected[i : i + 3]


def test_asyncio(llm: LLM, expected: list[list[int]]) -> None:
    async def run() -> None:
        engine = AsyncEngine(llm.engine)
        results = await asyncio.gather(*(engine.generate(p, **LONG) for p in PROMPTS[:8]))
        assert [result.tokens for result in results] == expected[:8]
        tokens = []
        async for piece in engine.stream(PROMPTS[0], temperature=0, ignore_eos=True):
            tokens.append(piece.token)
            if len(tokens) == 10:
                break
        assert tokens == expected[0][:10]
        # A task that is cancelled takes its request with it.
        task = asyncio.create_task(engine.generate(PROMPTS[1], temperature=0, ignore_eos=True))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    check_no_leak(llm)


def test_siblings_reuse_the_prompt(llm: LLM) -> None:
    prompt = llm.model.encode("word " * 300)
    settings = llm.model.sampling_params(max_steps=5, temperature=1.0)
    submission = Submission(prompt, [settings] * 4)
    leader = llm.engine.make_job(submission, lambda update: None)
    others = [
        llm.engine.make_job(submission, lambda update: None, number=i, leader=leader)
        for i in range(1, 4)
    ]
    llm.engine.submit([leader, *others])
    assert llm.engine.wait_idle(10)
    reused = [job.sequence.result.reused_tokens for job in others]
    assert all(len(prompt) - 16 <= count < len(prompt) for count in reused)


def test_short_prompts_do_not_wait_for_long_ones(llm: LLM) -> None:
    """A step's prompt tokens go to the oldest, but up to half of them to the shortest."""

    def plan(budget: int, *remaining: int) -> list[int]:
        settings = llm.model.sampling_params()
        active = [
            llm.engine.make_job(Submission([1] * count, [settings]), print).sequence
            for count in remaining
        ]
        counts = {share.sequence: share.count for share in plan_step(active, budget)}
        return [counts.get(sequence, 0) for sequence in active]

    assert plan(100, 300, 200, 30, 1) == [69, 0, 30, 1]
    assert plan(101, 300, 200, 80, 1) == [50, 0, 50, 1]
    assert plan(100, 80, 200, 300) == [80, 20, 0]
    assert plan(100, 20, 30, 10) == [20, 30, 10]
    assert plan(2, 5, 1, 1, 3) == [0, 1, 1, 0]
    assert plan(3, 5, 1, 1, 3) == [0, 1, 1, 1]


def test_prefix_cache_is_a_radix_tree() -> None:
    with Qwen3ForCausalLM(DEMO, threads=1) as model:
        block = model.stats()["kv_block_bytes"]
        cache = PrefixCache(model.native, 10 * block)
        a = list(range(64)) + [7] * 40
        b = list(range(64)) + [8] * 40
        for tokens in (a, b):
            kv, lineage = cache.match(tokens)
            with kv or model.create_kv_cache() as kv:
                model.forward(tokens[len(kv) :], [kv])
                cache.insert(tokens, kv, lineage)
            assert cache.bytes == model.stats()["kv_used_bytes"]
        assert len(cache) == 3 and cache.bytes == 8 * block
        # What comes back is what a fresh computation gives.
        tokens = [*b[:90], 5]
        kv, _ = cache.match(tokens)
        assert kv is not None and len(kv) == 80
        with kv:
            assert (model.forward([5], [kv]) == model.forward([*b[:80], 5])[-1]).all()
        # The last token is never taken from the cache.
        kv, _ = cache.match(a[:64])
        assert kv is not None and len(kv) == 48
        kv.close()
        assert cache.match(list(range(1, 60)))[0] is None
        # The least recently used leaf goes first: that of b was used before a's... then a's.
        with model.create_kv_cache() as kv:
            model.forward([9] * 64, [kv])
            cache.insert([9] * 64, kv)
        assert cache.bytes <= 10 * block and cache.bytes == model.stats()["kv_used_bytes"]
        kept, _ = cache.match([9] * 65)
        assert kept is not None
        kept.close()
        cache.clear()
        assert len(cache) == 0 and model.stats()["ncaches"] == 0


def test_prefix_cache_counts_each_place_in_memory_once() -> None:
    """Requests that compute known tokens once more, side by side or in answers."""
    rng = random.Random(7)
    known = [[rng.randrange(1000) for _ in range(160)] for _ in range(2)]
    with Qwen3ForCausalLM(DEMO, threads=1) as model:
        cache = PrefixCache(model.native, 40 * model.stats()["kv_block_bytes"])
        evicted = 0
        for _ in range(60):
            started = []
            for _ in range(rng.randint(1, 3)):
                text = rng.choice(known[-6:])
                middle, end = sorted(rng.choices(range(1, len(text)), k=2))
                prompt = text[:middle]
                answer = text[middle:end] + [rng.randrange(1000)] * 20
                kv, lineage = cache.match(prompt)
                started.append((prompt, prompt + answer, kv or model.create_kv_cache(), lineage))
            for whole in (False, True):
                for prompt, text, kv, lineage in started:
                    tokens = text if whole else prompt
                    model.forward(tokens[len(kv) :], [kv])
                    before = len(cache)
                    cache.insert(tokens, kv, lineage)
                    evicted += len(cache) < before
            for _, text, kv, _ in started:
                kv.close()
                known.append(text[:160])
            assert cache.bytes == model.stats()["kv_used_bytes"]
        assert evicted > 10
        cache.clear()
        assert cache.bytes == model.stats()["kv_used_bytes"] == 0


def test_idle_engine_uses_no_cpu(llm: LLM) -> None:
    llm.generate("Hello", max_steps=3)
    begin = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - begin < 0.1


def test_first_come_first_served(llm: LLM) -> None:
    """Of equal requests those that came first get their tokens first, also in the queue."""
    llm.engine.config.step_tokens = 16
    model = llm.model
    settings = model.sampling_params(max_steps=3, temperature=0, ignore_eos=True)
    began: list[int] = []
    ended: list[int] = []

    def sink(i: int) -> Any:
        def receive(update: Any) -> None:
            if i not in began:
                began.append(i)
            if update.done:
                ended.append(i)

        return receive

    jobs = [llm.engine.make_job(Submission([i + 1] * 100, [settings]), sink(i)) for i in range(10)]
    llm.engine.submit(jobs)
    assert llm.engine.wait_idle(20)
    assert began == ended == list(range(10))


def test_deadlines(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the queue and in progress; the others go on."""
    slow_steps(monkeypatch, llm.model, 0.02)
    model, seen = llm.model, {}
    settings = model.sampling_params(temperature=0, ignore_eos=True, max_steps=60)

    def job(name: str, timeout: float | None) -> Any:
        def receive(update: Any) -> None:
            seen.setdefault(name, []).append(update)

        submission = Submission(model.encode(name), [settings], timeout=timeout)
        return llm.engine.make_job(submission, receive)

    jobs = [job(f"slow {i}", None) for i in range(5)]
    jobs += [job("late", 0.3), job("queued", 0.1)]
    llm.engine.submit(jobs)
    assert llm.engine.wait_idle(30)
    assert isinstance(seen["queued"][-1].error, DeadlineError) and len(seen["queued"]) == 1
    assert isinstance(seen["late"][-1].error, DeadlineError)
    assert "longer than allowed" in str(seen["late"][-1].error)
    for i in range(5):
        assert len(seen[f"slow {i}"]) == 60 and seen[f"slow {i}"][-1].error is None
    check_no_leak(llm)


def test_single_updates_of_cancelled_jobs(llm: LLM) -> None:
    """However often and early they are cancelled, each is told of its end once."""
    model = llm.model
    settings = model.sampling_params(temperature=0, ignore_eos=True)
    ends: list[int] = []

    def sink(i: int) -> Any:
        return lambda update: ends.append(i) if update.done else None

    jobs = [llm.engine.make_job(Submission([1, 2, 3], [settings]), sink(i)) for i in range(8)]
    llm.engine.submit(jobs)
    for _ in range(3):
        llm.engine.cancel(jobs)
    assert llm.engine.wait_idle(10)
    assert sorted(ends) == list(range(8))
    check_no_leak(llm)

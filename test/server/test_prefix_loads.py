"""While a prefix is read from its file, everybody else goes on; the request itself waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from infinicore_infer.engine.config import DeadlineError, EngineClosedError, EngineConfig
from infinicore_infer.engine.jobs import Job, Submission, Update
from infinicore_infer.engine.llm import LLM
from infinicore_infer.native.model import KVCache, NativeModel
from python.helpers import DEMO
from serving import eventually
from test_prefix_store import PROMPTS, SETTINGS, cold, files, filled, folder, run

__all__ = ["cold", "filled", "folder"]  # fixtures


class Reading:
    """Stops every reading at its end until told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.count = 0
        load = NativeModel.load_kv_cache

        def stopped(native: NativeModel, path: Path) -> KVCache:
            self.count += 1
            cache = load(native, path)
            self.entered.set()
            assert self.go.wait(20)
            return cache

        monkeypatch.setattr(NativeModel, "load_kv_cache", stopped)


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reading]:
    stopped = Reading(monkeypatch)
    yield stopped
    stopped.go.set()


def llm_of(folder: Path, **options: Any) -> LLM:
    return LLM(str(DEMO), threads=1, config=EngineConfig(prefix_dir=folder), **options)


class Asked:
    """A request that is on its way."""

    def __init__(self, llm: LLM, prompt: str, timeout: float | None = None) -> None:
        self.error: Exception | None = None
        self.done = threading.Event()
        params = llm.model.sampling_params(**SETTINGS)
        submission = Submission(llm.model.encode(prompt), [params], timeout=timeout)
        self.job: Job = llm.engine.make_job(submission, self._take)
        llm.engine.submit([self.job])

    def _take(self, update: Update) -> None:
        self.error = update.error or self.error
        if update.done:
            self.done.set()

    def wait(self) -> list[int]:
        assert self.done.wait(20)
        return self.job.sequence.result.tokens


def test_others_go_on(folder: Path, cold: list[list[int]], reading: Reading) -> None:
    """Those who come later are answered; those who want the same file get it, read once."""
    with llm_of(folder) as llm:
        waiting = [Asked(llm, prompt) for prompt in PROMPTS[:2]]
        assert reading.entered.wait(20)
        (other,) = llm.generate("What is the capital of France?", **SETTINGS)
        assert len(other.tokens) == 12
        assert not any(asked.done.is_set() for asked in waiting)
        assert (llm.engine.stats.running, llm.engine.stats.waiting) == (0, 2)
        reading.go.set()
        assert [asked.wait() for asked in waiting] == cold[:2]
        reused = [asked.job.sequence.result.reused_tokens for asked in waiting]
        assert min(reused) >= 256
        assert reading.count == llm.engine.stats.prefix_loads == 1
    assert llm.engine.stats.caches == 0


def test_cancelled_meanwhile(folder: Path, cold: list[list[int]], reading: Reading) -> None:
    """It ends at once; what is read is remembered for others."""
    with llm_of(folder) as llm:
        asked = Asked(llm, PROMPTS[0])
        assert reading.entered.wait(20)
        llm.engine.cancel([asked.job])
        assert asked.wait() == [] and asked.error is None
        assert llm.engine.wait_idle(20)
        reading.go.set()
        assert eventually(lambda: llm.engine.stats.prefix_nodes)
        assert llm.engine.stats.caches == llm.engine.stats.prefix_nodes == 1
        (result,) = llm.generate(PROMPTS[0], **SETTINGS)
        assert result.tokens == cold[0] and result.reused_tokens >= 256
        assert reading.count == 1
    assert llm.engine.stats.caches == 0


def test_late_meanwhile(folder: Path, reading: Reading) -> None:
    with llm_of(folder) as llm:
        asked = Asked(llm, PROMPTS[0], timeout=0.1)
        asked.wait()
        assert isinstance(asked.error, DeadlineError)
        reading.go.set()


def test_removed_meanwhile(
    folder: Path,
    cold: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By another server, say: nothing to complain about."""
    load = NativeModel.load_kv_cache

    def removed(native: NativeModel, path: Path) -> KVCache:
        path.unlink()
        return load(native, path)

    monkeypatch.setattr(NativeModel, "load_kv_cache", removed)
    results, llm = run(folder, PROMPTS[:1])
    assert results[0].tokens == cold[0] and results[0].reused_tokens == 0
    assert files(folder) == [] and llm.engine.stats.prefix_loads == 0
    assert not caplog.records


def test_closed_meanwhile(folder: Path, reading: Reading) -> None:
    """Whoever waits is told; the model goes only when nothing is read into it any more."""
    llm = llm_of(folder)
    asked = Asked(llm, PROMPTS[0])
    assert reading.entered.wait(20)
    closing = threading.Thread(target=llm.close)
    closing.start()
    asked.wait()
    assert isinstance(asked.error, EngineClosedError)
    assert closing.is_alive() and not llm.model.native.closed
    reading.go.set()
    closing.join(20)
    assert llm.model.native.closed and llm.engine.stats.caches == 0


def test_reading_fails(
    folder: Path, cold: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a way that nobody expected: the prompt is computed."""

    def broken(native: NativeModel, path: Path) -> KVCache:
        raise RuntimeError("injected")

    monkeypatch.setattr(NativeModel, "load_kv_cache", broken)
    results, _ = run(folder, PROMPTS[:2])
    assert [result.tokens for result in results] == cold[:2]


def test_little_memory_meanwhile(folder: Path, cold: list[list[int]], reading: Reading) -> None:
    """What is being read holds blocks; whoever needs them waits instead of failing."""
    with llm_of(folder, kv_limit_bytes=32768 * 70) as llm:
        asked = Asked(llm, PROMPTS[0])
        assert reading.entered.wait(20)
        threading.Timer(0.3, reading.go.set).start()
        (result,) = llm.generate([[7] * 800], **SETTINGS)
        assert len(result.tokens) == 12
        assert asked.wait() == cold[0]

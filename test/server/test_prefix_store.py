"""Prefixes on disk: found after a restart, the same answers, and no file can do harm."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from infinicore_infer.engine.config import EngineConfig
from infinicore_infer.engine.llm import LLM
from infinicore_infer.engine.prefix_store import PrefixStore
from infinicore_infer.generate.results import GenerationResult
from infinicore_infer.native import cache_files
from infinicore_infer.native.model import KVCache, NativeModel
from libinfinicore_infer import Qwen3Error, Qwen3MemoryError, Qwen3NotImplementedError, Status
from python.helpers import DEMO, no_more_files
from serving import LiveServer
from test_launch import launched

# Some 340 tokens.
SYSTEM = "You answer questions about capitals, stories and the weather. " * 24
PROMPTS = [SYSTEM + text for text in ("Hello", "What is", "Tell me", "One, two")]
SETTINGS: dict[str, Any] = dict(max_steps=12, temperature=0, ignore_eos=True)
Make = Callable[..., LiveServer]


def run(folder: Path, prompts: Sequence[Any], **options: Any) -> tuple[list[GenerationResult], LLM]:
    """Answers prompts one after the other; returns the answers and the closed engine."""
    limit = options.pop("prefix_disk_bytes", 1 << 30)
    config = EngineConfig(prefix_dir=folder, prefix_disk_bytes=limit)
    with LLM(str(DEMO), threads=1, config=config, **options) as llm:
        results = []
        for prompt in prompts:
            results += llm.generate(prompt, **SETTINGS)
            while llm.engine._prefix.store is not None and store(llm).wait():
                pass
    assert llm.engine.stats.caches == 0
    return results, llm


def store(llm: LLM) -> PrefixStore:
    found = llm.engine._prefix.store
    assert found is not None
    return found


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


@pytest.fixture(scope="module")
def cold() -> list[list[int]]:
    """What an engine answers that remembers nothing."""
    config = EngineConfig(prefix_cache_bytes=0)
    with LLM(str(DEMO), threads=1, config=config) as llm:
        return [result.tokens for result in llm.generate(PROMPTS, **SETTINGS)]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled") / "new" / "folder"
    run(folder, PROMPTS[:3])
    (file,) = files(folder)
    assert file.suffix == ".q3kv"
    return folder


@pytest.fixture
def folder(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "folder"))


def test_found_after_a_restart(folder: Path, cold: list[list[int]]) -> None:
    """The second reuse writes it; then it is known to others, and once loaded, from memory."""
    results, llm = run(folder, [PROMPTS[3], PROMPTS[0]])
    assert [result.tokens for result in results] == [cold[3], cold[0]]
    length = results[0].reused_tokens
    assert length >= 256 and length % 16 == 0 and f"-{length}-" in files(folder)[0].name
    assert results[1].reused_tokens >= length
    assert (llm.engine.stats.prefix_loads, llm.engine.stats.prefix_hits) == (1, 2)


def test_once_is_not_enough(tmp_path: Path) -> None:
    results, llm = run(tmp_path, PROMPTS[:2])
    assert results[1].reused_tokens >= 256
    assert files(tmp_path) == [] and llm.engine.stats.prefix_saves == 0


def test_short_prefixes_are_not_kept(tmp_path: Path) -> None:
    run(tmp_path, [SYSTEM[:600] + text for text in ("a", "b", "c", "d")])
    assert files(tmp_path) == []


def test_a_chat_writes_nothing(make_server: Make, tmp_path: Path) -> None:
    """Its turns share their beginnings once each; answers to one prompt share it with nobody."""
    server = make_server(prefix_dir=tmp_path)
    messages: list[dict[str, Any]] = [{"role": "user", "content": SYSTEM + "Hello"}]
    for turn in range(4):
        answer = server.chat(messages, max_tokens=40, n=3 if turn == 0 else 1)
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert turn == 0 or cached >= 256
        messages += [answer["choices"][0]["message"], {"role": "user", "content": "And?"}]
    server.check_idle()
    assert files(tmp_path) == []


def test_restarted_server(tmp_path: Path) -> None:
    arguments = ("--prefix-dir", str(tmp_path / "store"), "--prefix-disk", "1G")

    def ask(url: str, text: str) -> int:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        body = {"messages": messages, "max_tokens": 2}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    for n, expected in enumerate(([0, 1, 1], [1])):
        with launched(tmp_path / f"log{n}", *arguments) as (process, url):
            cached = [ask(url, text) for text in ("Hello", "What?", "Tell me")[: len(expected)]]
            assert [count >= 256 for count in cached] == expected
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def test_metrics(make_server: Make, folder: Path) -> None:
    server = make_server(prefix_dir=folder)
    server.post("/v1/completions", {"prompt": PROMPTS[0], "max_tokens": 1})
    text = server.http.get("/metrics").text
    assert "infinicore_infer_prefix_disk_loads_total 1.0" in text
    assert "infinicore_infer_prefix_disk_saves_total 0.0" in text


def test_damaged_files_go(
    folder: Path, cold: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    (file,) = files(folder)
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    results, llm = run(folder, PROMPTS[:1])
    assert results[0].tokens == cold[0] and results[0].reused_tokens == 0
    assert files(folder) == [] and llm.engine.stats.prefix_loads == 0
    assert "not used and removed" in caplog.text and "damaged" in caplog.text


@pytest.mark.parametrize("how", ["EMFILE", "EACCES", "memory", "Python's memory"])
def test_files_that_cannot_be_read_now_stay(
    folder: Path,
    cold: list[list[int]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """Only damage deletes. They are tried again, a little later."""
    (file,) = files(folder)
    content = file.read_bytes()
    real = NativeModel.load_kv_cache

    def fail(model: NativeModel, path: Path) -> KVCache:
        if how == "EMFILE":
            with no_more_files():
                return real(model, path)
        if how == "EACCES":
            raise Qwen3Error(Status.UNREADABLE, "QWEN3_STATUS_UNREADABLE", "Permission denied")
        if how == "memory":
            raise Qwen3MemoryError(Status.OUT_OF_MEMORY, "QWEN3_STATUS_OUT_OF_MEMORY", "no memory")
        raise MemoryError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(NativeModel, "load_kv_cache", fail)
        results, llm = run(folder, PROMPTS[:1])
    assert results[0].tokens == cold[0] and results[0].reused_tokens == 0
    assert files(folder) == [file] and file.read_bytes() == content
    assert "removed" not in caplog.text and str(file) in caplog.text
    results, llm = run(folder, PROMPTS[:1])
    assert results[0].reused_tokens >= 256 and llm.engine.stats.prefix_loads == 1


def test_a_file_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = files(folder)
    with LLM(str(DEMO), threads=1, config=EngineConfig(prefix_dir=folder)) as llm:
        tokens = llm.model.encode(PROMPTS[0])
        found = store(llm).find(tokens, 0, 10**6)
        assert [each.path for each in found] == [file]
        with no_more_files():
            assert store(llm).load(tokens, found) is None
        assert store(llm).find(tokens, 0, 10**6) == []
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 100)
        assert store(llm).find(tokens, 0, 10**6) == found
        cache = store(llm).load(tokens, found)
        assert cache is not None
        cache.close()


def test_a_folder_that_others_may_write_to(
    folder: Path, cold: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither its files are used, nor those in a good folder that others may write to."""
    (file,) = files(folder)
    folder.chmod(0o777)
    results, llm = run(folder, PROMPTS[:3])
    assert [result.tokens for result in results] == cold[:3]
    assert llm.engine.stats.prefix_loads == llm.engine.stats.prefix_saves == 0
    assert "prefixes are not kept on disk" in caplog.text and "chmod go-w" in caplog.text
    folder.chmod(0o700)
    file.chmod(0o666)
    results, llm = run(folder, PROMPTS[:1])
    assert results[0].tokens == cold[0] and llm.engine.stats.prefix_loads == 0
    assert files(folder) == [file] and f"others may write to {file}" in caplog.text


def test_a_file_of_other_tokens_goes(
    folder: Path, cold: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    """One under the name of another, which the library itself cannot notice."""
    (right,) = files(folder)
    with LLM(str(DEMO), threads=1) as llm, llm.model.create_kv_cache() as cache:
        tokens = llm.model.encode(PROMPTS[0])[: int(right.name.split("-")[1])]
        llm.model.forward([*tokens[:-1], 7], [cache])
        cache.save(right)
    results, _ = run(folder, PROMPTS[:1])
    assert results[0].tokens == cold[0] and results[0].reused_tokens == 0
    assert files(folder) == [] and "other tokens than its name says" in caplog.text


def test_other_models_and_files(
    folder: Path, cold: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    """Another model's files are left alone, unless they bear this one's name."""
    (ours,) = files(folder)
    name = ours.name.partition("-")[2]
    run(folder, PROMPTS[:3], kv_dtype="int8")
    (theirs,) = set(files(folder)) - {ours}
    (folder / "notes.txt").write_text("keep")
    results, llm = run(folder, PROMPTS[3:])
    assert results[0].reused_tokens >= 256 and llm.engine.stats.prefix_loads == 1
    assert {file.name for file in files(folder)} == {ours.name, theirs.name, "notes.txt"}
    theirs.rename(folder / ours.name)
    assert name == theirs.name.partition("-")[2]
    results, _ = run(folder, PROMPTS[:1])
    assert results[0].tokens == cold[0]
    assert files(folder) == [folder / "notes.txt"] and "kv=cpu-int8" in caplog.text


def test_limit(tmp_path: Path) -> None:
    """The file unused for longest goes; a prefix larger than the limit is not written at all."""

    def fill(token: int, limit: int) -> set[str]:
        before = files(tmp_path)
        run(tmp_path, [[token] * 320 + [end] for end in (1, 2, 3)], prefix_disk_bytes=limit)
        return {path.name for path in files(tmp_path)} - {path.name for path in before}

    (a,) = fill(10, 1 << 30)
    size = (tmp_path / a).stat().st_size
    limit = 2 * size + 4096
    os.utime(tmp_path / a, (1, 1))
    (b,) = fill(11, limit)
    os.utime(tmp_path / b, (2, 2))
    run(tmp_path, [[10] * 321])  # loading counts as use
    assert (tmp_path / a).stat().st_mtime > 1e9
    (c,) = fill(12, limit)
    assert {path.name for path in files(tmp_path)} == {a, c}
    assert fill(13, size // 2) == set() and len(files(tmp_path)) == 2


@pytest.mark.parametrize("cause", ["gone", "full"])
def test_writing_fails(
    tmp_path: Path,
    cold: list[list[int]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    cause: str,
) -> None:
    folder = tmp_path / "folder"
    if cause == "full":
        usage = shutil._ntuple_diskusage(9, 8, 1)  # type: ignore[attr-defined]
        monkeypatch.setattr(cache_files.shutil, "disk_usage", lambda _: usage)
    else:
        monkeypatch.setattr(PrefixStore, "_refresh", lambda self: shutil.rmtree(folder, True))
    results, llm = run(folder, PROMPTS)
    assert [result.tokens for result in results] == cold
    assert caplog.text.count("not written") == 1 and llm.engine.stats.prefix_saves == 0


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for options in ({"prefix_dir": tmp_path / "file"}, {"prefix_dir": tmp_path / "file" / "x"}):
        with pytest.raises(OSError, match="file"):
            LLM(str(DEMO), threads=1, config=EngineConfig(**options))
    with pytest.raises(ValueError, match="needs a prefix cache"):
        EngineConfig(prefix_dir=tmp_path, prefix_cache_bytes=0)


def test_infinicore_says_so(tmp_path: Path) -> None:
    try:
        llm = LLM(str(DEMO), backend="infinicore")
    except Qwen3NotImplementedError as error:
        pytest.skip(f"no InfiniCore in this build: {error}")
    llm.close()
    with pytest.raises(NotImplementedError, match="only the CPU backend can"):
        LLM(str(DEMO), backend="infinicore", config=EngineConfig(prefix_dir=tmp_path))


def test_little_memory_while_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks cannot be given back; whoever needs them waits instead of failing."""
    entered, go = threading.Event(), threading.Event()
    save = KVCache.save

    def slow(self: KVCache, path: Path, length: int | None = None) -> None:
        entered.set()
        go.wait(10)
        save(self, path, length)

    monkeypatch.setattr(KVCache, "save", slow)
    config = EngineConfig(prefix_dir=tmp_path)
    with LLM(str(DEMO), threads=1, kv_limit_bytes=32768 * 70, config=config) as llm:
        for prompt in PROMPTS[:3]:
            llm.generate(prompt, **SETTINGS)
        assert entered.wait(10)
        threading.Timer(0.3, go.set).start()
        (result,) = llm.generate([[7] * 800], **SETTINGS)
        assert len(result.tokens) == 12
    assert len(files(tmp_path)) == 1

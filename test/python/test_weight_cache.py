"""Packed weights on disk: loading them changes nothing but the time, and no file can do harm."""

from __future__ import annotations

import fcntl
import logging
import os
import pwd
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from infinicore_infer import cli
from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.native import cache_files, weight_cache
from infinicore_infer.native.load import LoadProgress
from infinicore_infer.native.model import NativeModel, StepRequest
from libinfinicore_infer import (
    DataType,
    DeviceType,
    Qwen3Error,
    Qwen3ModelOptions,
    Qwen3NotImplementedError,
    Qwen3ValueError,
    Status,
    WeightCache,
)
from python.helpers import SCRIPTS, make_text_model, no_more_files
from qwen3 import Qwen3ForCausalLM, Qwen3MetaFromConfig, Qwen3WeightsImpl
from reference.random_checkpoint import CheckpointSpec, make_checkpoint

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
FORMATS = ("int8", "int4", "int4-mixed", "bf12")
# Odd sizes everywhere: panels and groups that are not full, biases, an untied embedding.
SPECS = {
    "tied": CheckpointSpec("tied", nlayer=2, dvoc=203, dtype="bf16"),
    "untied-bias": CheckpointSpec(
        "untied", nlayer=2, dvoc=77, di=72, tied=False, bias=True, dtype="bf16", seed=5
    ),
    "f32": CheckpointSpec("f32", nlayer=1, dvoc=61, d=40, seed=6),
}


@pytest.fixture(scope="module", params=SPECS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(SPECS[request.param], tmp_path_factory.mktemp("cached"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(SPECS["tied"], tmp_path_factory.mktemp("small"))


def state_and_logits(model: Qwen3ForCausalLM) -> tuple[WeightCache, bytes]:
    return WeightCache(model.stats()["weight_cache"]), model.forward(TOKENS).tobytes()


def load(
    folder: Path, cache_dir: Path, dtype: str = "int8", ndev: int = 1
) -> tuple[WeightCache, bytes]:
    with Qwen3ForCausalLM(folder, dtype=dtype, threads=2, ndev=ndev, cache_dir=cache_dir) as model:
        return state_and_logits(model)


def plain(folder: Path, dtype: str = "int8", ndev: int = 1) -> bytes:
    with Qwen3ForCausalLM(folder, dtype=dtype, threads=2, ndev=ndev, cache=False) as model:
        state, logits = state_and_logits(model)
        assert state == WeightCache.UNUSED
        return logits


def cache_file(cache_dir: Path) -> Path:
    (file,) = cache_dir.iterdir()  # one, and no temporary one beside it
    return file


@pytest.mark.parametrize("dtype", FORMATS)
def test_second_load_gives_the_same_bits(folder: Path, tmp_path: Path, dtype: str) -> None:
    expected = plain(folder, dtype)
    assert load(folder, tmp_path, dtype) == (WeightCache.ABSENT, expected)
    content = cache_file(tmp_path).read_bytes()
    assert load(folder, tmp_path, dtype) == (WeightCache.LOADED, expected)
    assert cache_file(tmp_path).read_bytes() == content
    # No pointer and nothing uninitialised is in the file: a second one is the same.
    cache_file(tmp_path).unlink()
    load(folder, tmp_path, dtype)
    assert cache_file(tmp_path).read_bytes() == content


@pytest.mark.parametrize("dtype", FORMATS)
def test_loading_touches_no_matrix(small: Path, tmp_path: Path, dtype: str) -> None:
    """All pointers lead to memory that may not be read: packing from it would crash."""
    expected = plain(small, dtype)
    load(small, tmp_path, dtype)
    program = Path(__file__).with_name("load_unreadable.py")
    file = cache_file(tmp_path)
    command = [sys.executable, program, small, file, dtype, "1", *map(str, TOKENS)]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == expected
    # The test's own test: without the file the same program must read them, and fail.
    file.unlink()
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 1 and b"output_norm cannot be read" in done.stderr


@pytest.mark.parametrize("dtype", FORMATS)
def test_changed_bytes_never_change_results(small: Path, tmp_path: Path, dtype: str) -> None:
    expected = plain(small, dtype)
    load(small, tmp_path, dtype)
    good = cache_file(tmp_path).read_bytes()
    rng = random.Random(7)
    places = [*range(0, 64, 5), *(len(good) - 1 - i * 7 for i in range(20))]
    places += [rng.randrange(4096, len(good)) for _ in range(30)]
    undetected = 0
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        cache_file(tmp_path).write_bytes(bad)
        state, logits = native(small, cache_file(tmp_path), dtype)
        assert logits == expected, place
        if 8 <= place < 12:  # the version of the format
            assert state == WeightCache.STALE
        elif state == WeightCache.LOADED:  # the gap between two blobs
            undetected += 1
        else:
            assert state == WeightCache.CORRUPT, place
    assert undetected <= len(places) // 20


def native(
    folder: Path, path: Path, dtype: str, key: str | None = None, ndev: int = 1
) -> tuple[WeightCache, bytes]:
    """Loads with the library's own options; nothing is written."""
    meta = Qwen3MetaFromConfig(folder)
    checkpoint = Checkpoint(folder)
    options = Qwen3ModelOptions(nthreads=2, dt_weight=DataType.parse(dtype))
    weight_cache.CheckpointCache(checkpoint, DataType.parse(dtype)).prepare(options)
    options.cache_path = os.fsencode(path)
    if key is not None:
        options.cache_key = key.encode()
    weights = Qwen3WeightsImpl(meta, checkpoint)
    ids = list(range(ndev))
    model = NativeModel(
        meta, weights, options, DeviceType.DEVICE_TYPE_CPU, ids, LoadProgress(checkpoint)
    )
    with model.create_kv_cache() as kv:
        logits = model.forward([StepRequest(kv, TOKENS, 0)]).tobytes()
    state = WeightCache(model.stats()["weight_cache"])
    model.close()
    return state, logits


def test_truncated_foreign_and_odd_files(small: Path, tmp_path: Path) -> None:
    expected = plain(small)
    load(small, tmp_path)
    file = cache_file(tmp_path)
    good = file.read_bytes()
    sizes = [0, 1, 63, 64, 4095, 4096, 5000, len(good) // 2, len(good) - 8, len(good) - 1]
    contents = [good[:size] for size in sizes]
    contents += [good + b"\0", bytes(len(good)), b"no cache file at all" * 1000]
    for content in contents:
        file.write_bytes(content)
        assert native(small, file, "int8") == (WeightCache.CORRUPT, expected)
    file.unlink()
    assert native(small, file, "int8") == (WeightCache.ABSENT, expected)
    file.mkdir()
    assert native(small, file, "int8") == (WeightCache.CORRUPT, expected)
    file.rmdir()
    os.mkfifo(file)
    assert native(small, file, "int8") == (WeightCache.CORRUPT, expected)


def test_a_damaged_file_is_replaced_with_a_warning(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, expected = load(small, tmp_path)
    file = cache_file(tmp_path)
    bad = bytearray(file.read_bytes())
    bad[len(bad) // 2] ^= 1
    file.write_bytes(bad)
    with caplog.at_level(logging.WARNING):
        assert load(small, tmp_path) == (WeightCache.CORRUPT, expected)
    assert f"{file}: damaged" in caplog.text
    caplog.clear()
    assert load(small, tmp_path) == (WeightCache.LOADED, expected)
    assert not caplog.records


def test_a_changed_checkpoint_is_packed_anew(
    tmp_path: Path, small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(small, copy)
    cache_dir = tmp_path / "cache"
    load(copy, cache_dir)
    before = plain(copy)
    weights = copy / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-2:] = b"\x80\x3f"  # the last element becomes 1
    weights.write_bytes(changed)
    expected = plain(copy)
    assert expected != before
    assert load(copy, cache_dir) == (WeightCache.STALE, expected)
    assert load(copy, cache_dir) == (WeightCache.LOADED, expected)
    assert not caplog.records
    os.utime(weights, ns=(1, 1))
    assert load(copy, cache_dir) == (WeightCache.STALE, expected)


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_size_and_time_may_be_kept(small: Path, tmp_path: Path, how: str) -> None:
    copy = tmp_path / "model"
    shutil.copytree(small, copy)
    load(copy, tmp_path / "cache")
    weights = copy / "model.safetensors"
    times = weights.stat()
    changed = bytearray(weights.read_bytes())
    changed[-2:] = b"\x80\x3f"
    if how == "replaced":
        weights.rename(copy / "before")
    weights.write_bytes(changed)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights.stat().st_mtime_ns == times.st_mtime_ns
    expected = plain(copy)
    assert load(copy, tmp_path / "cache") == (WeightCache.STALE, expected)
    assert load(copy, tmp_path / "cache") == (WeightCache.LOADED, expected)


def test_keys_and_formats_are_told_apart(small: Path, tmp_path: Path) -> None:
    load(small, tmp_path)
    file = cache_file(tmp_path)
    assert native(small, file, "int8")[0] == WeightCache.LOADED
    assert native(small, file, "int8", "another")[0] == WeightCache.STALE
    for dtype in ("int4", "int4-mixed", "bf12"):
        assert native(small, file, dtype) == (WeightCache.STALE, plain(small, dtype))


def test_another_shape_with_the_same_key(tmp_path: Path, small: Path) -> None:
    other = make_checkpoint(SPECS["f32"], tmp_path)
    file = tmp_path / "file"
    with Qwen3ForCausalLM(small, dtype="int8", cache=False) as model:
        model.native.save_weights(file, "same")
    assert native(small, file, "int8", "same")[0] == WeightCache.LOADED
    assert native(other, file, "int8", "same") == (WeightCache.STALE, plain(other))


def test_a_folder_that_cannot_be_written(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        state, logits = load(small, tmp_path / "file" / "cache")
    assert (state, logits) == (WeightCache.ABSENT, plain(small))
    assert "not written" in caplog.text


def test_a_full_disk_leaves_nothing_behind(small: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands in for the disk: writing fails in the middle of the file."""
    program = f"""
import resource
from qwen3 import Qwen3ForCausalLM
with Qwen3ForCausalLM({str(small)!r}, dtype="int8", cache_dir={str(tmp_path)!r}) as model:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "not written" in done.stderr and "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_little_free_space_is_left_alone(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        cache_files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1)
    )
    with caplog.at_level(logging.WARNING):
        load(small, tmp_path)
    assert "must stay free" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_many_writers_and_readers_at_once(small: Path, tmp_path: Path) -> None:
    """Whatever the order, a reader sees a whole file or none, and one file is left."""
    expected = plain(small)
    seen: list[tuple[WeightCache, bytes]] = []

    def work() -> None:
        for _ in range(5):
            seen.append(load(small, tmp_path))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {logits for _, logits in seen} == {expected}
    assert {state for state, _ in seen} <= {WeightCache.ABSENT, WeightCache.LOADED}
    assert cache_file(tmp_path).name.endswith(weight_cache.SUFFIX)


def test_steps_go_on_while_the_file_is_written(small: Path, tmp_path: Path) -> None:
    with Qwen3ForCausalLM(small, dtype="int8", cache=False) as model:
        expected = model.forward(TOKENS).tobytes()
        stop = threading.Event()

        def save() -> None:
            while not stop.is_set():
                model.native.save_weights(tmp_path / "file", "key")

        writer = threading.Thread(target=save)
        writer.start()
        for _ in range(20):
            assert model.forward(TOKENS).tobytes() == expected
        stop.set()
        writer.join()
    with pytest.raises(ValueError, match="closed"):
        model.native.save_weights(tmp_path / "file", "key")


def test_errors_of_saving(small: Path, tmp_path: Path) -> None:
    with Qwen3ForCausalLM(small, dtype="int8", cache=False) as model:
        with pytest.raises(Qwen3Error, match=r"none/file\.\w{6}: No such file") as error:
            model.native.save_weights(tmp_path / "none" / "file", "")
        assert error.value.status == Status.IO_ERROR
        (tmp_path / "folder").mkdir()
        with pytest.raises(Qwen3Error, match="rename"):
            model.native.save_weights(tmp_path / "folder", "")
        assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_infinicore_cannot_save(small: Path, tmp_path: Path) -> None:
    try:
        model = Qwen3ForCausalLM(small, backend="infinicore", dtype="f32")
    except Qwen3NotImplementedError as error:
        pytest.skip(f"no InfiniCore in this build: {error}")
    with model, pytest.raises(Qwen3NotImplementedError, match="cannot save"):
        model.native.save_weights(tmp_path / "file", "")


def test_exact_formats_are_not_kept(small: Path, tmp_path: Path) -> None:
    for dtype in (None, "bf16", "f32"):
        with Qwen3ForCausalLM(small, dtype=dtype, cache_dir=tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- several ranks


def files(cache_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache_dir.iterdir()}


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("ndev", [2, 4])
def test_parts_of_ranks_are_kept(folder: Path, tmp_path: Path, dtype: str, ndev: int) -> None:
    """The second start reads every rank's own part: the same bits, and no other file."""
    expected = plain(folder, dtype, ndev=ndev)
    assert load(folder, tmp_path, dtype, ndev=ndev) == (WeightCache.ABSENT, expected)
    written = files(tmp_path)
    assert load(folder, tmp_path, dtype, ndev=ndev) == (WeightCache.LOADED, expected)
    assert files(tmp_path) == written and len(written) == 1


@pytest.mark.parametrize("ndev", [2, 4])
def test_loading_parts_touches_no_matrix(small: Path, tmp_path: Path, ndev: int) -> None:
    expected = plain(small, ndev=ndev)
    load(small, tmp_path, ndev=ndev)
    program = Path(__file__).with_name("load_unreadable.py")
    command = [sys.executable, program, small, cache_file(tmp_path), "int8", str(ndev)]
    done = subprocess.run([*command, *map(str, TOKENS)], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr.decode()


def test_every_number_of_ranks_has_its_file(small: Path, tmp_path: Path) -> None:
    """Changing back and forth reads the right one each time and disturbs no other."""
    expected = {ndev: plain(small, ndev=ndev) for ndev in (1, 2, 4)}
    for ndev in expected:
        assert load(small, tmp_path, ndev=ndev) == (WeightCache.ABSENT, expected[ndev])
    written = files(tmp_path)
    assert len(written) == 3
    for ndev in (4, 1, 2):
        assert load(small, tmp_path, ndev=ndev) == (WeightCache.LOADED, expected[ndev])
    assert files(tmp_path) == written


def test_a_file_for_other_ranks_is_refused(small: Path, tmp_path: Path) -> None:
    """Whatever it is called."""
    for written in (1, 2, 4):
        directory = tmp_path / str(written)
        load(small, directory, ndev=written)
        for ndev in (1, 2, 4):
            state, logits = native(small, cache_file(directory), "int8", ndev=ndev)
            assert state == (WeightCache.LOADED if ndev == written else WeightCache.STALE)
            assert logits == plain(small, ndev=ndev)


def test_damaged_parts_are_packed_anew(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A byte of any rank's part; all ranks pack, a warning says so, the file is whole again."""
    expected = plain(small, ndev=2)
    load(small, tmp_path, ndev=2)
    good = cache_file(tmp_path).read_bytes()
    for place in (5000, len(good) // 2, len(good) - 5000, len(good) - 1):
        bad = bytearray(good)
        bad[place] ^= 16
        cache_file(tmp_path).write_bytes(bad)
        caplog.clear()
        assert load(small, tmp_path, ndev=2) == (WeightCache.CORRUPT, expected), place
        assert "damaged; the weights were packed anew" in caplog.text
        assert cache_file(tmp_path).read_bytes() == good


def test_a_bad_checkpoint_writes_nothing(small: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(small, copy)
    weights = copy / "model.safetensors"
    bad = bytearray(weights.read_bytes())
    bad[-2:] = b"\xc0\x7f"  # NaN
    weights.write_bytes(bad)
    with pytest.raises(Qwen3ValueError, match="NaN"):
        load(copy, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_file_that_cannot_be_read_now(
    small: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may be good: it stays as it is, and is used the next time."""
    expected = plain(small)
    assert load(small, tmp_path) == (WeightCache.ABSENT, expected)
    file = cache_file(tmp_path)
    before = file.stat()
    attach = LoadProgress.attach
    with ExitStack() as stack, caplog.at_level(logging.WARNING):

        def limited(self: LoadProgress, *args: Any) -> None:
            """The last that happens before the library creates the model."""
            attach(self, *args)
            stack.enter_context(no_more_files())

        stack.enter_context(monkeypatch.context()).setattr(LoadProgress, "attach", limited)
        assert load(small, tmp_path) == (WeightCache.UNREADABLE, expected)
    assert f"{file}: cannot be read" in caplog.text and "damaged" not in caplog.text
    after = file.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert load(small, tmp_path) == (WeightCache.LOADED, expected)


@pytest.mark.parametrize("what", ["folder", "file", "owner"])
def test_a_folder_that_others_may_write_to(
    small: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """What is there may be anything, so nothing is read, and nothing written."""
    expected = plain(small)
    folder = tmp_path / "cache"
    assert load(small, folder) == (WeightCache.ABSENT, expected)
    assert folder.stat().st_mode & 0o777 == 0o700
    file = cache_file(folder)
    if what == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        if os.getuid() == 0:
            os.chown(folder, 54321, 54321)
    else:
        (folder if what == "folder" else file).chmod(0o775 if what == "folder" else 0o666)
    before = file.stat().st_mtime_ns
    with caplog.at_level(logging.WARNING):
        assert load(small, folder) == (WeightCache.UNUSED, expected)
    problem = "another user" if what == "owner" else "others may write to"
    assert "not kept on disk" in caplog.text and problem in caplog.text
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_parents_that_others_may_write_to(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, exists: bool, link: bool
) -> None:
    """Others could put a folder of theirs in its place; in a sticky folder they cannot."""
    parent = tmp_path / "shared"
    folder = parent / "mine" / "cache"
    (folder if exists else parent).mkdir(mode=0o755, parents=True)
    given = folder
    if link:
        (tmp_path / "link").symlink_to(parent)
        given = tmp_path / "link" / "mine" / "cache"
    parent.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert load(small, given) == (WeightCache.UNUSED, plain(small))
    assert (
        f"others may write to {parent} (mode 0777" in caplog.text and "a parent of" in caplog.text
    )
    assert not list(parent.rglob("*.*"))
    parent.chmod(0o1777)
    assert load(small, given)[0] == WeightCache.ABSENT
    assert load(small, given)[0] == WeightCache.LOADED


def test_a_new_folder_that_others_may_write_to(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert load(small, tmp_path) == (WeightCache.UNUSED, plain(small))
    assert not list(tmp_path.iterdir()) and "chmod go-w" in caplog.text


def test_no_home_folder(
    small: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No HOME, and no entry in passwd: nothing is kept, and everything else works."""

    def nobody(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with caplog.at_level(logging.WARNING):
        with Qwen3ForCausalLM(small, dtype="int8", threads=2) as model:
            assert state_and_logits(model) == (WeightCache.UNUSED, plain(small))
    assert "no home folder" in caplog.text
    assert cli.main(["--clear-cache", "--model-path", str(small)]) == 1
    assert "error: this user has no home folder" in capsys.readouterr().err


def test_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert weight_cache.default_directory() == Path("/elsewhere/infinicore_infer")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert weight_cache.default_directory() == Path("/home/somebody/.cache/infinicore_infer")


def test_eviction_takes_the_least_used(tmp_path: Path) -> None:
    now = time.time()
    names = [f"{name}{weight_cache.SUFFIX}" for name in ("old", "middle", "new", "kept")]
    for age, name in enumerate(names[2::-1]):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (now - age, now - age))
    (tmp_path / names[3]).write_bytes(bytes(100))
    os.utime(tmp_path / names[3], (now - 1000, now - 1000))  # the oldest, but just written
    (tmp_path / "unrelated").write_bytes(bytes(1000))
    dead = tmp_path / f"{names[0]}.aB3dE_"
    dead.write_bytes(b"")
    os.utime(dead, (now - 1e6, now - 1e6))
    alive = tmp_path / f"{names[0]}.xxxxxx"
    alive.write_bytes(b"")
    cache_files.evict(tmp_path, weight_cache.SUFFIX, tmp_path / names[3], 250)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {names[2], names[3], "unrelated", alive.name}


def test_locks_tell_whose_writer_is_dead(tmp_path: Path) -> None:
    """At once, however new the file is; a locked one stays, however old."""
    keep = tmp_path / f"kept{weight_cache.SUFFIX}"
    dead, alive = (tmp_path / f"{keep.name}.tmp{end}" for end in ("aB3", "xyz"))
    for path in (keep, dead, alive):
        path.write_bytes(bytes(100))
    os.utime(alive, (1, 1))
    with open(alive, "rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        cache_files.evict(tmp_path, weight_cache.SUFFIX, keep, 1000)
        assert {path.name for path in tmp_path.iterdir()} == {keep.name, alive.name}
    cache_files.evict(tmp_path, weight_cache.SUFFIX, keep, 1000)
    assert list(tmp_path.iterdir()) == [keep]


def test_command_line(tmp_path: Path) -> None:
    folder = make_text_model(tmp_path)
    cache_dir = tmp_path / "cache"
    command = [sys.executable, str(SCRIPTS / "qwen3.py"), "--model-path", str(folder), "--quiet"]
    command += ["--dtype", "int8", "--cache-dir", str(cache_dir), "--max-tokens", "4"]
    command += ["--temperature", "0", "--prompt", "Hello"]

    def run(*more: str) -> str:
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return done.stdout

    text = run("--no-cache")
    assert not cache_dir.exists()
    assert run() == text
    content = cache_file(cache_dir).read_bytes()
    assert run() == text
    assert cache_file(cache_dir).read_bytes() == content
    clear = [*command[:2], "--clear-cache", "--cache-dir", str(cache_dir)]
    done = subprocess.run(clear, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "deleted 0.00 GB" in done.stderr
    assert list(cache_dir.iterdir()) == []

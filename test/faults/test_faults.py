"""What fails around the library must fail the call, and nothing else.

Every allocation and every file operation is made to fail once, writers of caches are killed, files
are damaged and cut short, and programs fork, block signals, and set odd floating-point environments
and locales. ``fault_driver.c`` and the files beside it are the program; ``inject.c`` is the library
in its ``LD_PRELOAD``.

``Q3_LONG_FAULTS=1`` leaves no fault out; without it, sweeps take the first 64, the last 64, and
every few between them.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from building import build
from libinfinicore_infer import load_library

LONG = os.environ.get("Q3_LONG_FAULTS", "0") not in ("", "0")
STRIDE = "1" if LONG else "9"


@pytest.fixture(scope="session")
def programs() -> Path:
    """Builds the driver and what it preloads; returns their folder."""
    for target in ("q3_inject", "q3_fault_driver"):
        folder = build(target)
    assert Path(load_library()._name).resolve().is_relative_to(folder.resolve()), "another build"
    return folder


def command(programs: Path, *args: object) -> list[str]:
    runner = Path(__file__).with_name("run_driver.py")
    return [sys.executable, str(runner), str(programs / "libq3_fault_driver.so"), *map(str, args)]


def environment(programs: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "LD_PRELOAD": str(programs / "libq3_inject.so"), **more}


def run(programs: Path, *args: object, timeout: float = 120, **more: str) -> str:
    """Runs a command of the driver, which must find nothing wrong, and returns what it prints."""
    done = subprocess.run(
        command(programs, *args),
        env=environment(programs, **more),
        capture_output=True,
        text=True,
        timeout=timeout * (20 if LONG else 1),
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    assert ", 0 failed" in done.stdout and done.stderr == ""
    return done.stdout


# ---------------------------------------------------------------------- faults of the system

OPERATIONS = [
    "create",
    "load-weights",
    "forward",
    "infer",
    "duplicate",
    "cache",
    "fingerprint",
    "save-cache",
    "load-cache",
    "save-weights",
]


@pytest.mark.parametrize("ndev", [1, 2])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_allocation_fails_once(
    programs: Path, tmp_path: Path, operation: str, ndev: int
) -> None:
    """OUT_OF_MEMORY with a message, nothing leaks, and the same call then succeeds.

    Every call is the first of its thread, whose first exception is then about missing memory.
    """
    for dtype in ("f32", "bf12", "int4", "int8") if LONG else ("int8",):
        args = (operation, "memory", errno.ENOMEM, "once", tmp_path, dtype, ndev, STRIDE)
        run(programs, "sweep", *args)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_allocation_fails_from_one_on(programs: Path, tmp_path: Path, operation: str) -> None:
    args = (operation, "memory", errno.ENOMEM, "all", tmp_path, "int8", 1, STRIDE)
    run(programs, "sweep", *args)


def test_no_memory_at_the_first_fingerprint(programs: Path) -> None:
    run(programs, "fingerprint-without-memory")


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EINTR", "EMFILE", "short"])
@pytest.mark.parametrize("operation", ["load-weights", "save-weights", "save-cache", "load-cache"])
def test_every_file_operation_fails_once(
    programs: Path, tmp_path: Path, operation: str, error: str
) -> None:
    """IO_ERROR and no file left behind; interruptions and short transfers fail nothing."""
    kind = ("short", 0) if error == "short" else ("files", getattr(errno, error))
    run(programs, "sweep", operation, *kind, "once", tmp_path, "int8", 2, STRIDE)


# ---------------------------------------------------------------------- files


def test_killed_writers(programs: Path, tmp_path: Path) -> None:
    """No half file is ever seen, and what is left over goes with the next write."""
    rng = random.Random(11)
    left = 0
    for _ in range(150 if LONG else 12):
        with subprocess.Popen(
            command(programs, "write", tmp_path),
            env=environment(programs),
            stdout=subprocess.PIPE,
            text=True,
        ) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
            time.sleep(rng.random() * 0.05)
            writer.send_signal(signal.SIGKILL)
        left += len(list(tmp_path.glob("*.tmp???")))
        run(programs, "after-kill", tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"weights", "cache"}
    assert left > 0, "no writer was killed while it wrote"


def test_a_living_writers_file_stays(programs: Path, tmp_path: Path) -> None:
    """Two writers of one path do not take each other's temporary files."""
    with subprocess.Popen(
        command(programs, "write", tmp_path),
        env=environment(programs),
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        (tmp_path / "cache.backup").write_bytes(b"of somebody else")
        folder = tmp_path / "other"
        folder.mkdir()
        for _ in range(5):
            run(programs, "sweep", "save-cache", "short", 0, "once", folder, "int8", 1, "1")
        assert writer.poll() is None
        writer.kill()
    assert (tmp_path / "cache.backup").read_bytes() == b"of somebody else"


def test_damaged_files(programs: Path, tmp_path: Path) -> None:
    run(programs, "damage", tmp_path, 97 if LONG else 1999, 1 if LONG else 5, timeout=300)


def test_a_forged_file_takes_no_memory(programs: Path, tmp_path: Path) -> None:
    run(programs, "forged", tmp_path)


def test_forged_numbers_are_refused(programs: Path, tmp_path: Path) -> None:
    """A saved cache with one wrong number and right hashes is damaged or another model's."""
    run(programs, "forged-each", tmp_path)


def test_kernels_that_differ_share_no_caches(programs: Path, tmp_path: Path) -> None:
    """A cache is loaded on a CPU with other vectors if that computes the same bits, or refused."""
    names = ["scalar", "avx2", "avx512", "avx512vnni", "amx", "neon", "neon-dotprod", "neon-i8mm"]
    logits = {}
    for name in names:
        args = command(programs, "save", tmp_path / name)
        done = subprocess.run(
            args,
            env=environment(programs, QWEN3_CPU_ISA=name),
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode == 0:
            logits[name] = done.stdout.splitlines()[0].split()[1]
    assert "scalar" in logits and len(logits) > 1
    for saver, saved in logits.items():
        for loader, computed in logits.items():
            line = run(programs, "load", tmp_path / saver, QWEN3_CPU_ISA=loader).splitlines()[0]
            expected = "done" if saved == computed else "refused"
            assert line == f"{expected} {computed}", (saver, loader)


LAYOUTS = ["rows", "columns", "strided"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "bf12", "int8"])
def test_weights_cut_short(programs: Path, tmp_path: Path, dtype: str, layout: str) -> None:
    """A mapped file of weights that is cut while it is read, or while the model runs."""
    run(programs, "truncate", tmp_path, dtype, 2000 if LONG else 50, layout, "cpu")
    run(programs, "truncate-each", tmp_path, dtype, layout, "cpu", STRIDE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_weights_cut_short_with_infinicore(
    programs: Path, tmp_path: Path, dtype: str, layout: str
) -> None:
    """As above: weights are copied and converted by another backend."""
    run(programs, "truncate", tmp_path, dtype, 400 if LONG else 20, layout, "infinicore")
    run(programs, "truncate-each", tmp_path, dtype, layout, "infinicore", STRIDE)


@pytest.mark.parametrize("backend", ["cpu", "infinicore"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_the_kernel_may_not_copy(
    programs: Path, tmp_path: Path, layout: str, backend: str
) -> None:
    """Sandboxes forbid process_vm_readv: weights are then checked, and read as they are."""
    run(programs, "sandbox", tmp_path, layout, backend)


def test_limits_of_sizes_and_names(programs: Path, tmp_path: Path) -> None:
    run(programs, "limits", tmp_path)


# ---------------------------------------------------------------------- the process


def test_fork(programs: Path, tmp_path: Path) -> None:
    """In the child, calls return an error that names fork, and destroy returns."""
    run(programs, "fork", tmp_path)


def test_garbage(programs: Path) -> None:
    """Fields of structs that are anything at all: an error that is named, or a model that works."""
    run(programs, "garbage", 200000 if LONG else 4000)


def test_many_threads(programs: Path) -> None:
    """Two models and eight threads, while another one cancels: the same bits, or CANCELLED."""
    run(programs, "crowd")


def test_interrupted_by_a_timer(programs: Path, tmp_path: Path) -> None:
    run(programs, "interrupted", tmp_path)


def test_fork_amid_create(programs: Path) -> None:
    run(programs, "fork-create")


def test_limits_of_the_process(programs: Path, tmp_path: Path) -> None:
    """Too little address space, and no descriptors left."""
    run(programs, "process-limits", tmp_path)


def test_cancelled_amid_logits(programs: Path) -> None:
    """A step stops before its next rows of logits, and nothing of it stays."""
    run(programs, "cancel")


@pytest.mark.parametrize("backend", ["cpu", "infinicore"])
def test_signals(programs: Path, backend: str) -> None:
    """No signal goes to a thread of the library's, or to one of InfiniCore's OpenMP."""
    run(programs, "signals", backend)


@pytest.mark.parametrize("ndev", [1, 2])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8", "int4", "bf12"])
def test_floating_point_environment(programs: Path, tmp_path: Path, dtype: str, ndev: int) -> None:
    run(programs, "floats", tmp_path, dtype, ndev)
    files = [(tmp_path / name).read_bytes() for name in ("plain", "odd")]
    assert files[0] == files[1]


def test_locale(programs: Path, tmp_path: Path) -> None:
    """In a locale with a decimal comma, made from the system's C.UTF-8."""
    systems = Path("/usr/lib/locale/C.utf8/LC_NUMERIC")
    if not systems.exists():
        pytest.skip(f"{systems} is needed to make a locale from")
    locale = tmp_path / "locales" / "comma"
    locale.mkdir(parents=True)
    data = systems.read_bytes()
    assert data.count(b".\0") == 2  # as bytes, and as a wide character
    (locale / "LC_NUMERIC").write_bytes(data.replace(b".\0", b",\0"))
    run(programs, "locale", "comma", tmp_path, LOCPATH=str(locale.parent))

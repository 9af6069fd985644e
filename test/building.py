"""Builds of this checkout that tests ask for, one at a time: tests run side by side."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def exclusive() -> Iterator[None]:
    """Meanwhile nobody else builds in the release tree, scripts/setup.sh included."""
    folder = os.open(ROOT / "build", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def run(
    command: list[str | Path], env: dict[str, str] | None = None, timeout: float | None = 900
) -> str:
    """Runs a command at the repository root and returns its output; a failure shows its end."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "XMAKE_ROOT": "y", "OMP_WAIT_POLICY": "passive", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, f"{command} exited {result.returncode}:\n{result.stdout[-6000:]}"
    return result.stdout


def xmake(*arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """Runs xmake, which takes what time the machine needs."""
    return run([ROOT / ".venv" / "bin" / "xmake", *arguments], env, timeout=None)


def build(*arguments: str) -> Path:
    """Builds targets in the configured release tree; returns the folder of what is built."""
    with exclusive():
        xmake("build", "-y", *arguments)
    return next((ROOT / "build" / "linux").glob("*/release"))

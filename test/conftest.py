"""Settings of all tests."""

from __future__ import annotations

import argparse
import os
import tempfile

import pytest

# Packed weights that tests make do not belong into the user's cache folder. At import, so that it
# also holds for session fixtures and child processes; the object's end deletes the folder.
_CACHE = tempfile.TemporaryDirectory(prefix="infinicore-infer-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
# Nor does what they type into chats belong into the user's history.
os.environ["XDG_STATE_HOME"] = _CACHE.name


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",") if part.isdecimal()]
    if not counts or text != ",".join(map(str, counts)) or not all(1 <= n <= 8 for n in counts):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1,2,4: numbers of devices to 8")
    return counts


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of test/parity; the other folders know what they run on."""
    group = parser.getgroup("devices")
    group.addoption(
        "--device", default="cpu", help='what test/parity runs on: "cpu" (default), "nvidia", ...'
    )
    group.addoption(
        "--ndev",
        type=int,
        default=1,
        help="over how many devices models are cut there, as far as their heads allow; default 1",
    )
    group.addoption(
        "--devices",
        type=_counts,
        default=[],
        metavar="N,...",
        help="run all of test/parity on so many fake devices too, one number after the other, in "
        "test/infinicore/test_model_tests.py",
    )

"""The fake accelerator's control API, for programs that run with it in place of InfiniCore."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from pathlib import Path

LIVE = ("device", "host", "stream", "event", "handle", "descriptor", "tensor", "comm")
LIVE += ("graph", "exec")


def fake_library(name: str) -> ctypes.CDLL:
    """One of InfiniCore's libraries, in INFINI_ROOT or where the loader looks."""
    root = os.environ.get("INFINI_ROOT")
    return ctypes.CDLL(str(Path(root) / "lib" / name) if root else name)


class Fake:
    """Counters, failures and rules of the fake accelerator of this process."""

    def __init__(self) -> None:
        self.lib = fake_library("libinfinirt.so")  # the one that the backend loads, too
        self.lib.fake_infini_get.restype = ctypes.c_int64
        self.lib.fake_infini_get.argtypes = [ctypes.c_char_p]
        self.lib.fake_infini_violation.restype = ctypes.c_char_p
        self.lib.fake_infini_violation.argtypes = [ctypes.c_size_t]
        self.lib.fake_infini_calls.restype = ctypes.c_size_t
        self.lib.fake_infini_calls.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        self.lib.fake_infini_fail.argtypes = [ctypes.c_char_p, ctypes.c_int64]

    def get(self, name: str) -> int:
        return int(self.lib.fake_infini_get(name.encode()))

    def live(self) -> dict[str, int]:
        """Objects that exist, by kind; kinds without any are left out."""
        counts = {kind: self.get(f"live.{kind}") for kind in LIVE}
        return {kind: count for kind, count in counts.items() if count}

    def violations(self) -> list[str]:
        texts: list[str] = []
        while (text := self.lib.fake_infini_violation(len(texts))) is not None:
            texts.append(text.decode())
        return texts

    def calls(self) -> list[str]:
        """The functions called since the last reset, in order."""
        size = self.lib.fake_infini_calls(None, 0) + 1
        buffer = ctypes.create_string_buffer(size)
        self.lib.fake_infini_calls(buffer, size)
        return buffer.value.decode().split()

    def launches(self) -> Counter[str]:
        """How often each operator was launched since the last reset."""
        return Counter(
            name.removeprefix("infiniop")
            for name in self.calls()
            if name.startswith("infiniop") and "Descriptor" not in name and "Workspace" not in name
        )

    def fail(self, kind: str, n: int) -> None:
        assert self.lib.fake_infini_fail(kind.encode(), n) == 0, kind

    def reset(self) -> None:
        self.lib.fake_infini_reset()

    def check(self) -> None:
        """No rule broken, nothing left."""
        assert self.violations() == []
        assert self.live() == {}

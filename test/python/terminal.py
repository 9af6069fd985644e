"""A terminal that tests type into."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time

from python.helpers import SCRIPTS


class Terminal:
    """The program ``qwen3`` in a terminal of its own, which by default knows nothing but text."""

    def __init__(self, *arguments: object, term: str = "dumb", **environment: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            command = [sys.executable, str(SCRIPTS / "qwen3.py"), *map(str, arguments)]
            os.execve(command[0], command, {**os.environ, "TERM": term, **environment})
        self.seen = b""

    def send(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, words: str, seconds: float = 30) -> None:
        """Waits until the words are printed, and forgets all output up to them."""
        deadline = time.monotonic() + seconds
        while words.encode() not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"no {words!r} in {self.seen[-500:]!r}"
            self.seen += os.read(self.fd, 65536)
        self.seen = self.seen.partition(words.encode())[2]

    def more(self, count: int = 1, seconds: float = 30) -> None:
        """Waits for any further output."""
        deadline = time.monotonic() + seconds
        while len(self.seen) < count:
            ready, _, _ = select.select([self.fd], [], [], max(deadline - time.monotonic(), 0))
            assert ready, "no output"
            self.seen += os.read(self.fd, 65536)

    def exit_code(self, seconds: float = 20) -> int:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            # A terminal whose buffer is full would keep the program from ending.
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("the program did not end")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)

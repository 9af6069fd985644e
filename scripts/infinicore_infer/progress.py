"""A bar that shows how far a long work is, to people only."""

from __future__ import annotations

import os
import time
from typing import TextIO

_WIDTH = 30
# Before this much time nobody knows how long the rest takes.
_GUESS_SECONDS = 1.0


class ProgressBar:
    """One line of a terminal, drawn over and over; on anything but a terminal nothing is written.

    Example: ``loading [#########                     ]  30% of 1.19 GB, 4 s left``
    """

    def __init__(self, stream: TextIO | None, work: str, unit: str = "") -> None:
        """Begin.

        Args:
            stream: Where to draw; ``None``: nowhere.
            work: What is being done.
            unit: What is counted; ``""``: bytes, shown as gigabytes.
        """
        self._stream = stream if stream is not None and stream.isatty() else None
        self._work, self._unit = work, unit
        self._begin: float | None = None
        self._drawn = 0

    def draw(self, done: int, total: int) -> None:
        """Draw the bar; with a total of 0 nothing is known yet."""
        if self._stream is None or not total:
            return
        now = time.monotonic()
        if self._begin is None:
            self._begin = now
        share = done / total
        amount = f"{total} {self._unit}" if self._unit else f"{total / 1e9:.2f} GB"
        text = f"{self._work} [{'#' * int(share * _WIDTH):<{_WIDTH}}] {share:4.0%} of {amount}"
        past = now - self._begin
        if past >= _GUESS_SECONDS and 0 < share < 1:
            text += f", {past * (1 - share) / share:.0f} s left"
        self._write("\r" + text.ljust(self._drawn))
        self._drawn = len(text)

    def finish(self) -> None:
        """Clear the bar."""
        if self._drawn:
            dumb = os.environ.get("TERM", "dumb") == "dumb"
            self._write(f"\r{' ' * self._drawn}\r" if dumb else "\r\x1b[K")
            self._drawn = 0

    def _write(self, text: str) -> None:
        try:
            if self._stream is not None:
                self._stream.write(text)
                self._stream.flush()
        except (OSError, ValueError):
            self._stream = None  # a closed terminal must not stop the work

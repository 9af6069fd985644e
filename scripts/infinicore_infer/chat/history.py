"""What was typed before, remembered on disk for the next chat."""

from __future__ import annotations

import json
import os
from pathlib import Path

_KEPT = 1000


def default_path() -> Path | None:
    """Return where the history lies: below XDG_STATE_HOME, or else below ``~/.local/state``."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification wants relative paths ignored
        base = os.path.expanduser("~/.local/state")
    return Path(base) / "infinicore_infer" / "history.jsonl" if os.path.isabs(base) else None


class History:
    """Lines that were typed, the oldest first. One that cannot be kept is no error.

    Attributes:
        entries: The lines; one may have several lines of text.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Read the history.

        Args:
            path: Its file, one JSON string per line; ``None``: nothing is read or kept.
        """
        self._path = path
        self.entries: list[str] = []
        if path is None:
            return
        try:
            lines = path.read_bytes().splitlines() if path.is_file() else []
        except OSError:
            self._path = None
            return
        for line in lines[-_KEPT:]:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the last one of a full disk
            if isinstance(entry, str):
                self.entries.append(entry)
        if len(lines) > 2 * _KEPT:
            self._write("w", self.entries)

    def add(self, text: str) -> None:
        """Remember a line, unless it only repeats the last one."""
        if not text.strip() or self.entries[-1:] == [text]:
            return
        self.entries.append(text)
        self._write("a", [text])

    def _write(self, mode: str, entries: list[str]) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "a" else os.O_TRUNC)
            # What was said is its speaker's own.
            with open(os.open(self._path, flags, 0o600), mode) as file:
                file.write("".join(json.dumps(entry) + "\n" for entry in entries))
        except OSError:
            self._path = None

"""What tells whether a file of a checkpoint is still the one it was."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def file_identity(path: Path, facts: os.stat_result, header: memoryview) -> list[str | int]:
    """Return facts of a file of which one at least changes with the content.

    They are path, size, modification time, header hash, inode and time of change; the last two tell
    of files that were written or replaced with size and modification time kept.
    """
    return [
        str(path.resolve()),
        facts.st_size,
        facts.st_mtime_ns,
        hashlib.sha256(header).hexdigest(),
        facts.st_ino,
        facts.st_ctime_ns,
    ]

"""Folders of cache files, which the library writes under a temporary name and then renames.

What packed weights and prefixes on disk have in common: the ones unused for longest go first.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from pathlib import Path

# Never fill a disk to the brim for the sake of a cache.
_SPARE_BYTES = 1 << 30
# Where a lock does not tell, a temporary file is never this old unless its process died.
_ABANDONED_SECONDS = 24 * 3600.0
# How the library ends the names of temporary files, which it locks for as long as it writes them.
_TEMPORARY = re.compile(r"\.tmp[0-9A-Za-z]{3}$")


def distrust(path: Path) -> str | None:
    """Return why somebody else could have written what a folder or file holds; ``None``: nobody.

    What others may write must not decide what a model answers. Whoever may rename entries of one
    of its parents can put another folder in its place, so these are looked at as well; in one with
    the sticky bit, such as /tmp, everybody renames their own entries only.

    Raises:
        OSError: It is not there, or cannot be looked at. Parents that are not there are no reason.
    """
    parents = dict.fromkeys([*path.absolute().parents, *path.resolve().parents])
    for parent in reversed(parents):
        try:
            facts = parent.stat()
        except FileNotFoundError:
            continue
        if (doubt := _doubt(parent, facts, sticky=facts.st_mode & stat.S_ISVTX != 0)) is not None:
            return f"{doubt}, a parent of {path}"
    return _doubt(path, path.stat(), sticky=False)


def _doubt(path: Path, facts: os.stat_result, sticky: bool) -> str | None:
    """Return who else may change a folder or file, or the entries of a sticky folder."""
    if facts.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to another user, {facts.st_uid}"
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        mode = stat.S_IMODE(facts.st_mode)
        return f"others may write to {path} (mode {mode:04o}; chmod go-w ends it)"
    return None


def entries(directory: Path, suffix: str) -> list[Path]:
    """Return the cache files of a directory, temporary ones (name.tmpXXX) included."""
    return [path for path in directory.glob(f"*{suffix}*") if path.is_file()]


def check_space(directory: Path, size: int) -> None:
    """Check that a file of ``size`` bytes leaves the disk enough free space.

    Raises:
        OSError: It does not; the message has the numbers.
    """
    free = shutil.disk_usage(directory).free
    if free < size + _SPARE_BYTES:
        raise OSError(
            f"{free / 1e9:.1f} GB free, it takes {size / 1e9:.1f} GB and "
            f"{_SPARE_BYTES / 1e9:.1f} GB must stay free"
        )


def _writer_is_dead(path: Path, age: float) -> bool:
    """Return whether nobody writes a temporary file any more: a lock goes with its process."""
    if _TEMPORARY.search(path.name):
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
        finally:
            os.close(file)
    return age > _ABANDONED_SECONDS


def evict(directory: Path, suffix: str, keep: Path, limit: int) -> None:
    """Delete the files unused for longest until the rest fits the limit, but never ``keep``.

    Also deletes what processes that died while writing have left.

    Args:
        directory: Where they lie.
        suffix: How their names end, temporary ones apart.
        keep: One that stays.
        limit: Most bytes of all of them.
    """
    found = []
    for path in entries(directory, suffix):
        try:
            facts = path.stat()
        except FileNotFoundError:  # another process was faster
            continue
        found.append((facts.st_mtime, facts.st_size, path))
    newest = max((used for used, _, _ in found), default=0.0)
    total = sum(size for _, size, path in found if path == keep)
    for used, size, path in sorted(found, reverse=True):
        if path == keep:
            continue
        total += size
        finished = path.name.endswith(suffix)
        if total > limit if finished else _writer_is_dead(path, newest - used):
            path.unlink(missing_ok=True)
            total -= size

"""Keeps the keys and values of prompt beginnings on disk, so that a restart need not compute them.

One file per prefix, named after the model's fingerprint, the number of tokens and their hash. The
library writes and verifies the files (``qwen3SaveKVCache``): what is damaged, or not what its name
says, is never used, and goes. Any number of servers, of any models, may share a folder.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from libinfinicore_infer import Qwen3Error, Qwen3OutOfKVError, Status

from infinicore_infer.native.cache_files import check_space, distrust, entries, evict
from infinicore_infer.native.model import KVCache, NativeModel

_LOG = logging.getLogger("infinicore_infer.cache")

SUFFIX = ".q3kv"

# Shorter prefixes, and longer ones that gain less, are computed faster than it is worth a file.
MIN_TOKENS = 256
# A prefix that so many later requests share is likely a system prompt. The next turn of a chat
# shares its beginning with the turn before, but only once.
_REUSES = 2
# Prefixes whose uses are counted.
_MAX_COUNTED = 4096
# What the library says of a file that will never be of use.
_DAMAGED = (Status.IO_ERROR, Status.CACHE_MISMATCH)
# After a failed write or read, the next attempt is not before.
_RETRY_SECONDS = 60.0


def _digests(tokens: Sequence[int], lengths: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield lengths, which rise, with the hash of so many tokens."""
    data = np.asarray(tokens, np.uint32)
    state, done = hashlib.sha256(), 0
    for length in lengths:
        state.update(data[done:length].tobytes())
        done = length
        yield length, state.hexdigest()[:32]


@dataclass(slots=True, frozen=True)
class PrefixFile:
    """A file that holds a prefix.

    Attributes:
        path: Where it is, or was a moment ago.
        length: How many tokens it holds.
    """

    path: Path
    length: int


def open_store(model: NativeModel, directory: Path, limit_bytes: int) -> PrefixStore | None:
    """Return the store in a folder, or ``None`` with a warning if others may write there.

    Args:
        model: As :class:`PrefixStore`, and so are the others.
        directory: The folder, which is made.
        limit_bytes: Most bytes of all files in it.

    Raises:
        OSError: The folder cannot be made or written to.
        NotImplementedError: The model does not run on the CPU backend.
    """
    store = PrefixStore(model, directory, limit_bytes)
    if (doubt := distrust(directory)) is None:
        return store
    _LOG.warning("prefixes are not kept on disk: %s", doubt)
    return None


class PrefixStore:
    """The files of one model in a folder.

    All methods but :meth:`load` and :meth:`wait` belong to one thread, the one that runs the model;
    files are written on another.

    Attributes:
        loads: Prefixes that came from a file.
        saves: Files that were written.
    """

    def __init__(self, model: NativeModel, directory: Path, limit_bytes: int) -> None:
        """Open a folder, or make it.

        Args:
            model: Whose prefixes.
            directory: The folder.
            limit_bytes: Most bytes of all files in it.

        Raises:
            OSError: The folder cannot be made or written to.
            NotImplementedError: The model does not run on the CPU backend.
        """
        self._model = model
        self._directory = directory
        self._limit = limit_bytes
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{directory}: cannot be read and written")
        self._name = f"{model.kv_cache_fingerprint():016x}"
        self._known: dict[int, set[str]] = {}
        self._seen_ns = -1
        # Files that are not tried again before.
        self._bad: dict[Path, float] = {}
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._writer: threading.Thread | None = None
        self._retry_at = 0.0
        self.loads = 0
        self.saves = 0

    def _path(self, length: int, digest: str) -> Path:
        return self._directory / f"{self._name}-{length}-{digest}{SUFFIX}"

    def _refresh(self) -> None:
        """Look at the folder if something appeared there or went, also by other processes."""
        try:
            changed = self._directory.stat().st_mtime_ns
            if changed == self._seen_ns:
                return
            self._known = {}
            for path in entries(self._directory, SUFFIX):
                found = re.fullmatch(rf"{self._name}-(\d+)-(\w+){re.escape(SUFFIX)}", path.name)
                if found:
                    self._known.setdefault(int(found[1]), set()).add(found[2])
            # Within the clock's resolution of a change, another one would go unnoticed.
            self._seen_ns = changed if time.time_ns() - changed > 1_000_000_000 else -1
        except OSError as error:
            self._known = {}
            _LOG.warning("%s: cannot be read: %s", self._directory, error)

    def find(self, tokens: Sequence[int], known: int, most: int) -> list[PrefixFile]:
        """Return the files with beginnings of a prompt that are worth reading, longest first.

        Args:
            tokens: The prompt.
            known: How many of its tokens need no file.
            most: Longest prefix wanted, in tokens.
        """
        self._refresh()
        most = min(most, len(tokens))
        lengths = sorted(n for n in self._known if known + MIN_TOKENS <= n <= most)
        found = [
            PrefixFile(self._path(length, digest), length)
            for length, digest in _digests(tokens, lengths)
            if digest in self._known[length]
        ]
        now = time.monotonic()
        return [file for file in reversed(found) if self._bad.get(file.path, 0.0) < now]

    def load(self, tokens: Sequence[int], files: Sequence[PrefixFile]) -> KVCache | None:
        """Return a cache from the first file that can be used, which the caller owns, or ``None``.

        May run on any one thread while the model computes.

        Args:
            tokens: The prompt.
            files: What :meth:`find` returned.
        """
        for file in files:
            try:
                if (doubt := distrust(file.path)) is not None:
                    # The folder belonged to others once, perhaps.
                    _LOG.warning("not used: %s", doubt)
                    self._bad[file.path] = math.inf
                    continue
                cache = self._model.load_kv_cache(file.path)
                if cache.tokens == list(tokens[: file.length]):
                    self._touch(file.path)
                    self.loads += 1
                    return cache
                cache.close()
                problem = "holds other tokens than its name says"
            except Qwen3OutOfKVError:
                return None
            except FileNotFoundError:
                continue  # another process has just dropped it
            except (Qwen3Error, OSError, MemoryError) as error:
                if not isinstance(error, Qwen3Error) or error.status not in _DAMAGED:
                    # The file may be good: there is no memory, or no descriptor, or the disk fails.
                    _LOG.warning("%s: not used this time: %s", file.path, error)
                    self._bad[file.path] = time.monotonic() + _RETRY_SECONDS
                    continue
                problem = error.message
            # Unless another process has just dropped it.
            if file.path.exists():
                _LOG.warning("%s: not used and removed: %s", file.path, problem)
                # Where it cannot be removed, it is not tried again.
                self._bad[file.path] = math.inf
                self._remove(file.path)
        return None

    def _touch(self, path: Path) -> None:
        try:
            os.utime(path)
        except OSError:
            pass  # gone meanwhile, or read-only

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _LOG.warning("%s: %s", path, error)

    def reused(self, tokens: Sequence[int], cache: KVCache) -> None:
        """Note that a request shared a prefix; a file is written if that happens again and again.

        Args:
            tokens: The prefix, whole KV blocks.
            cache: Begins with it; stays the caller's.
        """
        length = len(tokens)
        if length < MIN_TOKENS:
            return
        ((_, digest),) = _digests(tokens, [length])
        count = self._counts.get(digest, 0) + 1
        self._counts[digest] = count
        self._counts.move_to_end(digest)
        if len(self._counts) > _MAX_COUNTED:
            self._counts.popitem(last=False)
        if count < _REUSES or time.monotonic() < self._retry_at:
            return
        self._refresh()
        # One at a time: the blocks of a prefix that is being written cannot be given back.
        if digest in self._known.get(length, ()) or self._busy:
            return
        copy = self._model.duplicate_kv_cache(cache, length)
        self._writer = threading.Thread(
            target=self._write, args=(copy, self._path(length, digest)), name="prefix-store"
        )
        self._writer.start()

    def _write(self, cache: KVCache, path: Path) -> None:
        try:
            stats = self._model.stats()
            blocks = -(-len(cache) // stats["kv_block_tokens"])
            size = blocks * stats["kv_block_bytes"]
            if size > self._limit:
                raise OSError(f"it takes {size} bytes, the limit of the folder is {self._limit}")
            check_space(self._directory, size)
            cache.save(path)
            self.saves += 1
            evict(self._directory, SUFFIX, path, self._limit)
        except (OSError, Qwen3Error) as error:
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            _LOG.warning("%s: not written: %s", path, error)
        except ValueError:
            pass  # the model was closed directly
        finally:
            cache.close()

    @property
    def _busy(self) -> bool:
        return self._writer is not None and self._writer.is_alive()

    def wait(self) -> bool:
        """Wait until nothing is being written; return whether something was."""
        writer = self._writer
        if writer is None or not writer.is_alive():
            return False
        writer.join()
        return True

"""Reads remembered prefixes from files while the engine's thread goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

from infinicore_infer.engine.jobs import Job
from infinicore_infer.engine.prefix_cache import PrefixCache
from infinicore_infer.native.model import KVCache

_LOG = logging.getLogger("infinicore_infer.engine")


class PrefixLoads:
    """The files that jobs in the queue wait for.

    A file is read on another thread, one at a time and once for all who want it, and then
    remembered in the prefix cache, where its jobs find it. All methods belong to the engine's
    thread.
    """

    def __init__(self, prefix: PrefixCache, wake: Callable[[], object]) -> None:
        """Make the thread that reads.

        Args:
            prefix: Where prefixes are remembered; knows the files.
            wake: Called from another thread when a file has been read.
        """
        self._prefix = prefix
        self._wake = wake
        self._reader = ThreadPoolExecutor(1, "prefix-load")
        self._running: dict[Path, Future[KVCache | None]] = {}

    def begin(self, job: Job) -> bool:
        """Have a file read if it brings much of a job's prompt; return whether to wait for it."""
        scoring = job.sequence.prompt_logprobs is not None
        if scoring or job.leader is not None or job.looked_up or self._prefix.store is None:
            return False
        job.looked_up = True
        tokens = job.sequence.all_tokens
        files = self._prefix.missing(tokens)
        if not files:
            return False
        path = files[0].path
        if path not in self._running:
            work = partial(self._prefix.store.load, tokens, files)
            future = self._running[path] = self._reader.submit(work)
            future.add_done_callback(lambda _: self._wake())
        job.load = self._running[path]
        return True

    def collect(self) -> None:
        """Remember what has been read."""
        for path, future in list(self._running.items()):
            if not future.done():
                continue
            del self._running[path]
            try:
                cache = None if future.cancelled() else future.result()
                if cache is not None:
                    with cache:
                        self._prefix.insert(cache.tokens, cache)
            except Exception:
                _LOG.exception("%s: not used", path)

    def settle(self) -> bool:
        """Wait until nothing is being read, and collect it; return whether something was."""
        running = list(self._running.values())
        wait(running)
        self.collect()
        return bool(running)

    def close(self) -> None:
        """Give up what has not begun, and wait for the rest."""
        self._reader.shutdown(cancel_futures=True)
        self.collect()

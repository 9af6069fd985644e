"""A thread with a large stack, for libraries that call themselves for each part of a long chain."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Result = TypeVar("_Result")

# Pages are taken as they are touched. Grammars of the largest size need a quarter of it.
_STACK_BYTES = 256 << 20
# The size is set for whatever thread starts next.
_STARTING = threading.Lock()


class DeepThread:
    """Runs one function after the other in a thread with a large stack."""

    def __init__(self, name: str) -> None:
        """Start no thread until the first function comes.

        Args:
            name: The thread's.
        """
        self._executor = ThreadPoolExecutor(1, name, initializer=self._begin)
        self._here = threading.local()
        self._started = False

    def _begin(self) -> None:
        self._here.inside = True

    def _submit(self, work: Callable[[], _Result]) -> Future[_Result]:
        with _STARTING:
            if self._started:
                return self._executor.submit(work)
            before = threading.stack_size(_STACK_BYTES)
            try:
                # The thread starts here.
                future = self._executor.submit(work)
                self._started = True
            finally:
                threading.stack_size(before)
            return future

    def run(self, work: Callable[[], _Result]) -> _Result:
        """Return what a function returns; if called in the thread, it is run at once."""
        return work() if getattr(self._here, "inside", False) else self._submit(work).result()

    async def wait_for(self, work: Callable[[], _Result]) -> _Result:
        """Do what :meth:`run` does, while the event loop goes on."""
        return await asyncio.wrap_future(self._submit(work))

"""Wakes event loops once per step instead of once per token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence


def _call_all(callbacks: Sequence[Callable[[], object]]) -> None:
    for callback in callbacks:
        callback()


class Wakeups:
    """Callbacks that event loops are to run soon.

    Waking a loop is a system call during which its thread takes the interpreter, so it costs the
    engine far more than a token. All methods belong to one thread.
    """

    def __init__(self) -> None:
        self._callbacks: dict[asyncio.AbstractEventLoop, list[Callable[[], object]]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        """Have a loop call something after the next :meth:`flush`.

        Raises:
            RuntimeError: The loop is closed.
        """
        if loop.is_closed():
            raise RuntimeError("the event loop is closed")
        self._callbacks.setdefault(loop, []).append(callback)

    def flush(self) -> None:
        """Wake the loops."""
        callbacks, self._callbacks = self._callbacks, {}
        for loop, calls in callbacks.items():
            try:
                loop.call_soon_threadsafe(_call_all, calls)
            except RuntimeError:
                pass  # closed meanwhile: nobody listens

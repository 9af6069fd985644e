"""Stops Python code that runs too long, such as a template's endless loop."""

from __future__ import annotations

import ctypes
import threading
from types import TracebackType

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = (ctypes.c_ulong, ctypes.py_object)


class TimeLimitError(RuntimeError):
    """The time is over."""


class TimeLimit:
    """A block of pure Python code that ends with an error when it takes too long.

    The error is raised between two of the block's instructions, so the code need not cooperate; a
    call into C is not interrupted. What a destructor or a callback of a weak reference swallows is
    raised again.
    """

    def __init__(self, seconds: float) -> None:
        """Set the limit; the time begins with the block."""
        self._seconds = seconds
        self._over = threading.Event()
        self._timer = threading.Thread(target=self._watch, name="time-limit", daemon=True)
        self._lock = threading.Lock()
        self._thread = 0
        self._fired = False

    def _watch(self) -> None:
        wait = self._seconds
        while not self._over.wait(wait):
            with self._lock:
                if self._thread:
                    self._fired = True
                    _raise_in(self._thread, TimeLimitError)
            wait = max(1.0, wait)

    def __enter__(self) -> None:
        self._thread = threading.get_ident()
        self._timer.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End, and take back an error that has not been raised yet."""
        self._over.set()
        with self._lock:
            if self._fired:
                _raise_in(self._thread, ctypes.py_object())
            self._thread = 0

"""Owns a model and its KV caches inside the library: lifetimes, steps and logits, in token ids.

Text, sampling policy and scheduling live above this module; ctypes details end here.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, byref, c_float, c_int32, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from libinfinicore_infer import (
    DeviceType,
    Qwen3ModelOptions,
    Qwen3SampleResult,
    Qwen3SamplingParams,
    Qwen3Stats,
    Qwen3Weights,
    check,
    check_handle,
    load_library,
)
from numpy.typing import NDArray

from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.checkpoint.weights import Qwen3TensorList
from infinicore_infer.native.load import LoadProgress, run_beside


def token_array(tokens: Sequence[int] | NDArray[Any], dvoc: int) -> NDArray[np.uint32]:
    """Return token ids as a contiguous uint32 array [ntok].

    Raises:
        ValueError: There are none, or one is not a whole number from 0 to dvoc - 1.
    """
    array = np.asarray(tokens)
    if array.ndim != 1 or array.size == 0:
        raise ValueError("tokens must be a list of at least one token id")
    if array.dtype.kind not in "iu":
        raise ValueError(f"token ids must be whole numbers, got {array.dtype}")
    bad = np.flatnonzero((array < 0) | (array >= dvoc))
    if bad.size:
        i = int(bad[0])
        raise ValueError(f"token {i} is {array[i]}; ids of this model are from 0 to {dvoc - 1}")
    return np.ascontiguousarray(array, np.uint32)


def token_list(tokens: Sequence[int] | NDArray[Any], dvoc: int) -> list[int]:
    """Return token ids as a list.

    A decode step has one token per request, for which numpy costs more than it does: 0.1 ms of a
    step, several times that once the weights have swept its code out of the caches.

    Raises:
        ValueError: As :func:`token_array`.
    """
    if isinstance(tokens, list) and tokens and all(type(token) is int for token in tokens):
        if 0 <= min(tokens) and max(tokens) < dvoc:
            return tokens
    return token_array(tokens, dvoc).tolist()  # type: ignore[no-any-return]


class KVCache:
    """Keys and values of one token sequence, owned by a model.

    A context manager; also released when garbage collected. ``len(cache)`` is the number of tokens
    it holds.

    Attributes:
        tokens: The token ids it holds, so that a later prompt can reuse a common beginning.
    """

    def __init__(self, owner: NativeModel, handle: int, tokens: list[int]) -> None:
        """Wrap a handle; use :meth:`NativeModel.create_kv_cache`."""
        self.owner = owner
        self.tokens = tokens
        self._handle: int | None = handle
        # The finalizer may run on any thread in the middle of anything, so it takes no lock and
        # calls no C; the model drops what is in its bin at its next call.
        self._finalizer = weakref.finalize(self, owner.bin.append, handle)
        # The model frees its caches when it goes, and the system frees all at exit.
        self._finalizer.atexit = False

    @property
    def handle(self) -> int:
        """The library's pointer.

        Raises:
            ValueError: The cache or its model is closed.
        """
        if self._handle is None:
            raise ValueError("this KV cache is closed")
        if self.owner.closed:
            raise ValueError("the model of this KV cache is closed")
        return self._handle

    def __len__(self) -> int:
        """Return how many tokens the cache holds."""
        return self.owner.kv_cache_length(self)

    def __bool__(self) -> bool:
        """Return whether the cache is open; without this an empty one would be false."""
        return self._handle is not None

    def truncate(self, length: int) -> None:
        """Keep only the first ``length`` tokens.

        Raises:
            ValueError: The cache is closed or shorter.
        """
        handle = self.owner.duplicate_handle(self, length)
        self._finalizer.detach()
        old, self._handle = self._handle, handle
        self._finalizer = weakref.finalize(self, self.owner.bin.append, handle)
        self._finalizer.atexit = False
        del self.tokens[length:]
        assert old is not None
        self.owner.drop_handle(old)

    def save(self, path: str | os.PathLike[str], length: int | None = None) -> None:
        """Write the first ``length`` tokens (``None``: all) for :meth:`NativeModel.load_kv_cache`.

        The file appears complete or not at all; steps of other threads go on meanwhile.

        Raises:
            ValueError: The cache is closed, empty or shorter.
            NotImplementedError: The model does not run on the CPU backend.
            Qwen3Error: The file could not be written; the message says why.
        """
        self.owner.save_kv_cache(self, path, length)

    def close(self) -> None:
        """Give the memory back. Closing twice, or after the model, does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._finalizer.detach()
            self.tokens = []
            self.owner.drop_handle(handle)

    def __enter__(self) -> KVCache:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(slots=True)
class StepRequest:
    """One request's share of a step.

    Attributes:
        cache: Its cache.
        tokens: New token ids, at least one.
        position: Position of the first new token; at most the cache's length.
        sampling: How to choose the next token; ``None``: do not (a prefill chunk).
    """

    cache: KVCache
    tokens: Sequence[int] | NDArray[Any]
    position: int
    sampling: Qwen3SamplingParams | None = None


@dataclass(slots=True)
class StepResult:
    """What one request got from a step.

    Attributes:
        token: The chosen token; 0 without sampling.
        logprob: Its natural log-probability; 0 if not asked for.
        top: The likeliest tokens and their log-probabilities, if asked for.
        accepted: How many drafts at the end of the request came true; the token follows them.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)
    accepted: int = 0


class NativeModel:
    """A model inside the library.

    All methods may be called from any thread; calls take turns, except :meth:`cancel` and what
    reads and writes files.
    """

    def __init__(
        self,
        meta: Qwen3MetaFromConfig,
        weights: Qwen3Weights | Qwen3TensorList,
        options: Qwen3ModelOptions,
        device: DeviceType,
        dev_ids: Sequence[int],
        progress: LoadProgress,
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        """Create the model; takes as long as packing the weights takes.

        Args:
            meta: The model's configuration.
            weights: Where its tensors are.
            options: Settings; ``progress`` and ``tensors`` are set here.
            device: The kind of device.
            dev_ids: Which ones.
            progress: Draws a bar and knows the mappings to release.
            meanwhile: Called on this thread while the library packs the weights on another.

        Raises:
            Qwen3Error: Or a subclass: the library refused; the message says why.
            Exception: What ``meanwhile`` raised, whatever the library says; nothing is left
                allocated.
            KeyboardInterrupt: Ctrl-C was pressed meanwhile; nothing is left allocated.
        """
        self._lib = load_library()
        self._meta = meta
        self._lock = threading.RLock()
        self._cancel_lock = threading.Lock()
        self._save_lock = threading.Lock()
        self._load_lock = threading.Lock()
        self.bin: deque[int] = deque()
        self._handle: int | None = None
        progress.attach(self._lib, options)
        plain = None  # Qwen3Weights, or what the options say
        if isinstance(weights, Qwen3TensorList):
            weights.attach(options)
        else:
            plain = byref(weights)
        ids = (c_int32 * len(dev_ids))(*dev_ids)

        handles: list[int] = []

        def create() -> None:
            handle = check_handle(
                self._lib,
                self._lib.createQwen3ModelEx(
                    byref(meta), plain, device, len(dev_ids), ids, byref(options)
                ),
            )
            self._finalizer = weakref.finalize(self, self._lib.destroyQwen3Model, handle)
            # Not at exit: a daemon thread may be inside a call then, and the system frees all.
            self._finalizer.atexit = False
            handles.append(handle)

        try:
            run_beside(create, progress, meanwhile)
        except BaseException:
            # What failed may be something else than the creation, which is over by now.
            if handles:
                self._finalizer()
            raise
        finally:
            progress.finish()
        self._handle = handles[0]
        # Borrowed weights stay mapped for the model's life.
        self._weights = weights if options.borrow_weights else None

    @property
    def closed(self) -> bool:
        """Whether the model is gone."""
        return self._handle is None

    def _use(self) -> int:
        """Return the pointer; the lock is held. Also drop caches whose Python side is gone."""
        if self._handle is None:
            raise ValueError("this model is closed")
        while self.bin:
            self._lib.dropKVCache(self._handle, self.bin.popleft())
        return self._handle

    def close(self) -> None:
        """Free the model and all its caches, after a running step ends. Safe to call twice."""
        with self._save_lock, self._load_lock, self._lock, self._cancel_lock:
            if self._handle is not None:
                self._handle = None
                self._finalizer()
                self.bin.clear()
                self._weights = None

    def cancel(self) -> None:
        """Ask a step running in another thread to stop; never waits for it."""
        with self._cancel_lock:
            if self._handle is not None:
                self._lib.qwen3Cancel(self._handle)

    # ------------------------------------------------------------------ caches

    def create_kv_cache(self) -> KVCache:
        """Return an empty cache; it takes no KV memory yet.

        Raises:
            ValueError: The model is closed.
            MemoryError: Out of host memory.
        """
        with self._lock:
            handle = check_handle(self._lib, self._lib.createKVCache(self._use()))
            return KVCache(self, handle, [])

    def duplicate_kv_cache(self, cache: KVCache, length: int | None = None) -> KVCache:
        """Return a cache with the first tokens of another; both share memory until one changes.

        Args:
            cache: A cache of this model.
            length: How many tokens; ``None``: all.

        Raises:
            ValueError: The cache is closed, another model's, or shorter than length.
        """
        with self._lock:
            count = len(cache) if length is None else length
            return KVCache(self, self.duplicate_handle(cache, count), cache.tokens[:count])

    def duplicate_handle(self, cache: KVCache, length: int) -> int:
        """Return the pointer of a copy, which the caller owns; see :meth:`duplicate_kv_cache`."""
        with self._lock:
            model = self._use()
            self._check_owner(cache)
            if not 0 <= length <= 0xFFFFFFFF:
                raise ValueError(f"length must not be negative, got {length}")
            copy = self._lib.duplicateKVCache(model, cache.handle, length)
            return check_handle(self._lib, copy)

    def kv_cache_length(self, cache: KVCache) -> int:
        """Return how many tokens a cache holds.

        Raises:
            ValueError: The cache or the model is closed.
        """
        with self._lock:
            length = c_uint32()
            model = self._use()
            check(self._lib, self._lib.qwen3KVCacheLength(model, cache.handle, byref(length)))
            return length.value

    def save_kv_cache(
        self, cache: KVCache, path: str | os.PathLike[str], length: int | None = None
    ) -> None:
        """Write a cache to a file; see :meth:`KVCache.save`."""
        with self._save_lock:  # close() waits for it
            with self._lock:
                model, handle = self._use(), cache.handle
                self._check_owner(cache)
                count = len(cache) if length is None else length
                if not 0 < count <= len(cache.tokens):
                    raise ValueError(f"length is {count}, the cache holds {len(cache.tokens)}")
                tokens = (c_uint32 * count)(*cache.tokens[:count])
            file = os.fsencode(path)
            check(self._lib, self._lib.qwen3SaveKVCache(model, handle, tokens, count, file))

    def load_kv_cache(self, path: str | os.PathLike[str]) -> KVCache:
        """Return a new cache with what :meth:`KVCache.save` wrote, its ``tokens`` included.

        Steps of other threads go on meanwhile.

        Raises:
            ValueError: It was saved by a model with other weights, dtypes or settings (the message
                names the difference), or does not fit the context.
            MemoryError: No KV memory is left for it.
            NotImplementedError: The model does not run on the CPU backend.
            Qwen3Error: The file is damaged or cannot be read.
        """
        tokens, length = (c_uint32 * self._meta.dctx)(), c_uint32()
        with self._load_lock:  # close() waits for it
            with self._lock:
                model = self._use()
            handle = check_handle(
                self._lib,
                self._lib.qwen3LoadKVCache(
                    model, os.fsencode(path), tokens, self._meta.dctx, byref(length)
                ),
            )
            return KVCache(self, handle, tokens[: length.value])

    def kv_cache_fingerprint(self) -> int:
        """Return 64 bits that tell models apart which cannot load each other's saved caches.

        Raises:
            NotImplementedError: The model does not run on the CPU backend.
        """
        value = c_uint64()
        with self._lock:
            check(self._lib, self._lib.qwen3KVCacheFingerprint(self._use(), byref(value)))
        return value.value

    def drop_handle(self, handle: int) -> None:
        """Drop a cache by its pointer; does nothing after the model is gone."""
        with self._lock:
            if self._handle is not None:
                self._lib.dropKVCache(self._handle, handle)

    def _check_owner(self, cache: KVCache) -> None:
        if cache.owner is not self:
            raise ValueError("this KV cache belongs to another model")

    # ------------------------------------------------------------------ running

    @contextmanager
    def _batch(self, requests: Sequence[StepRequest]) -> Iterator[tuple[list[Any], int]]:
        """Check and flatten requests; keep the caches' token lists true whatever happens."""
        if not requests:
            raise ValueError("a step needs at least one request")
        lists = [token_list(request.tokens, self._meta.dvoc) for request in requests]
        for i, request in enumerate(requests):
            self._check_owner(request.cache)
            if not 0 <= request.position <= self._meta.dctx:
                raise ValueError(f"request {i}: position {request.position} is not in the context")
        n = len(requests)
        ntok = sum(map(len, lists))
        with self._lock:
            arguments = [
                self._use(),
                (c_uint32 * ntok)(*chain.from_iterable(lists)),
                ntok,
                (c_uint32 * n)(*map(len, lists)),
                n,
                (c_uint32 * n)(*(request.position for request in requests)),
                (c_void_p * n)(*(request.cache.handle for request in requests)),
            ]
            try:
                yield arguments, ntok
            except BaseException:
                # Only what lies before the position is sure to be as it was.
                for request in requests:
                    del request.cache.tokens[request.position :]
                raise
            for request, new in zip(requests, lists, strict=True):
                request.cache.tokens[request.position :] = new

    def step(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        """Compute new tokens of several requests and choose each one's next token.

        Raises:
            ValueError: A request is not acceptable.
            Qwen3OutOfKVError: The KV memory limit is reached; caches are as they were.
            Qwen3Cancelled: :meth:`cancel` was called meanwhile.
            Qwen3Error: Anything else the library reports.
        """
        n = len(requests)
        params = (Qwen3SamplingParams * max(n, 1))()
        results = (Qwen3SampleResult * max(n, 1))()
        tops: list[Any] = [None] * n
        for i, request in enumerate(requests):
            if request.sampling is not None:
                # A structure copy; the pointers in it are kept alive by the original.
                params[i] = request.sampling
            else:
                params[i] = _SKIP
            results[i].struct_size = ctypes.sizeof(Qwen3SampleResult)
            count = params[i].top_logprobs
            if count:
                tops[i] = ((c_uint32 * count)(), (c_float * count)())
                results[i].top_tokens, results[i].top_logprobs = tops[i]
        with self._batch(requests) as (arguments, _):
            check(self._lib, self._lib.inferBatchEx(*arguments, params, results))
        for request, param, result in zip(requests, params, results, strict=False):
            # Rejected drafts are in the cache no more.
            kept = request.position + len(request.tokens) - (param.ndraft - result.naccepted)
            del request.cache.tokens[kept:]
        return [
            StepResult(
                result.token,
                result.logprob,
                list(zip(top[0][: result.ntop], top[1][: result.ntop], strict=True)) if top else [],
                result.naccepted,
            )
            for result, top in zip(results, tops, strict=False)
        ]

    def forward(self, requests: Sequence[StepRequest]) -> NDArray[np.float32]:
        """Compute new tokens of several requests and return all their logits.

        Returns:
            float32 [ntok, dvoc], request after request.

        Raises:
            As :meth:`step`.
        """
        with self._batch(requests) as (arguments, ntok):
            logits = np.empty((ntok, self._meta.dvoc), np.float32)
            pointer = logits.ctypes.data_as(POINTER(c_float))
            check(self._lib, self._lib.forwardBatch(*arguments, pointer))
        return logits

    def embed(
        self, requests: Sequence[StepRequest], rows: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """Compute new tokens of several requests and return hidden states after the last norm.

        Args:
            requests: Their ``sampling`` is not looked at.
            rows: Which tokens' states, as rising indices into all tokens, request after request;
                ``None``: each request's last.

        Returns:
            float32 [rows, d].

        Raises:
            As :meth:`step`.
        """
        with self._batch(requests) as (arguments, _):
            count = len(requests) if rows is None else len(rows)
            states = np.empty((count, self._meta.d), np.float32)
            wanted = None if rows is None else (c_uint32 * count)(*rows)
            pointer = states.ctypes.data_as(POINTER(c_float))
            check(self._lib, self._lib.embedBatch(*arguments, wanted, count, pointer))
        return states

    def save_weights(self, path: Path, key: str) -> None:
        """Write the packed weights for ``Qwen3ModelOptions.cache_path``; steps go on meanwhile.

        Raises:
            ValueError: The model is closed.
            Qwen3Error: The file could not be written, or this backend cannot save.
        """
        with self._save_lock:  # close() waits for it
            with self._lock:
                model = self._use()
            check(self._lib, self._lib.qwen3SaveWeights(model, os.fsencode(path), key.encode()))

    # ------------------------------------------------------------------ information

    def stats(self) -> dict[str, int]:
        """Return memory use: the fields of ``Qwen3Stats`` by name, bytes unless named otherwise."""
        stats = Qwen3Stats(struct_size=ctypes.sizeof(Qwen3Stats))
        with self._lock:
            check(self._lib, self._lib.qwen3GetStats(self._use(), byref(stats)))
        names = [name for name, _ in Qwen3Stats._fields_ if name != "struct_size"]
        return {name: int(getattr(stats, name)) for name in names}

    @cached_property
    def step_tokens(self) -> int:
        """Most tokens that are computed at a time; longer calls are cut."""
        return int(self.build_info()["step_tokens"])

    def build_info(self) -> dict[str, str]:
        """Return version, instruction set, backend, device and threads by name."""
        with self._lock:
            line = self._lib.qwen3BuildInfo(self._use()).decode("utf-8", "replace")
        return dict(pair.split("=", 1) for pair in line.split() if "=" in pair)


def sampling_struct(**fields: Any) -> Qwen3SamplingParams:
    """Return ``Qwen3SamplingParams`` with the neutral value in every field not given."""
    neutral = {
        "struct_size": ctypes.sizeof(Qwen3SamplingParams),
        "top_p": 1.0,
        "repetition_penalty": 1.0,
    }
    return Qwen3SamplingParams(**{**neutral, **fields})


_SKIP = sampling_struct(skip=1)

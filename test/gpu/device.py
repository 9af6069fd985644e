"""A device's own limits, and models on it whose launches are counted; needs numpy."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from infinicore_infer.arguments import Precision
from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.native.load import LoadProgress
from infinicore_infer.native.model import NativeModel
from infinicore_infer.tools.bench import Bench
from infinicore_infer.tools.bench_models import (
    EXPERT_SHAPES,
    SHAPES,
    RandomTensors,
    RandomWeights,
    official_config,
)
from libinfinicore_infer import Backend, DataType, DeviceType, Qwen3ModelOptions

D2D = 3
SHAPES["tiny"] = (256, 2, 4, 2, 512, True)
# Through all experts: rounding changes none that a token goes through.
EXPERT_SHAPES["tiny-experts"] = ((256, 2, 4, 2, 512, True), (5, 5, 128))


class Runtime:
    """InfiniCore itself, through ctypes: copies and products of the device."""

    def __init__(self, device: DeviceType) -> None:
        self.rt = ctypes.CDLL("libinfinirt.so")  # those that the library has loaded
        self.op = ctypes.CDLL("libinfiniop.so")
        self.call(self.rt.infinirtInit)
        self.call(self.rt.infinirtSetDevice, int(device), 0)
        self.stream = ctypes.c_void_p()
        self.call(self.rt.infinirtStreamCreate, ctypes.byref(self.stream))

    @staticmethod
    def call(function: Any, *arguments: Any) -> None:
        status = function(*arguments)
        if status != 0:
            raise OSError(f"{function.__name__} failed with status {status}")

    def allocate(self, size: int) -> ctypes.c_void_p:
        pointer = ctypes.c_void_p()
        self.call(self.rt.infinirtMalloc, ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer

    def seconds(self, action: Callable[[], None], repetitions: int) -> float:
        """Of one call, when several are in the stream."""
        best = float("inf")
        for _ in range(3):
            action()
            self.call(self.rt.infinirtStreamSynchronize, self.stream)
            start = time.perf_counter()
            for _ in range(repetitions):
                action()
            self.call(self.rt.infinirtStreamSynchronize, self.stream)
            best = min(best, (time.perf_counter() - start) / repetitions)
        return best

    def bandwidth(self, size: int) -> float:
        """GB/s, read and written, of a copy within the device."""
        a, b, n = self.allocate(size), self.allocate(size), ctypes.c_size_t(size)
        copy = self.rt.infinirtMemcpyAsync
        seconds = self.seconds(lambda: self.call(copy, b, a, n, D2D, self.stream), 20)
        for pointer in (a, b):
            self.call(self.rt.infinirtFree, pointer)
        return 2 * size / seconds / 1e9

    def peak(self, n: int, dtype: DataType) -> float:
        """GFLOP/s of a product of two square matrices with n rows."""
        handle, descriptor, tensor = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call(self.op.infiniopCreateHandle, ctypes.byref(handle))
        shape, strides = (ctypes.c_size_t * 2)(n, n), (ctypes.c_ssize_t * 2)(n, 1)
        self.call(
            self.op.infiniopCreateTensorDescriptor,
            ctypes.byref(tensor),
            ctypes.c_size_t(2),
            shape,
            strides,
            int(dtype),
        )
        create = self.op.infiniopCreateGemmDescriptor
        self.call(create, handle, ctypes.byref(descriptor), tensor, tensor, tensor)
        size = ctypes.c_size_t()
        self.call(self.op.infiniopGetGemmWorkspaceSize, descriptor, ctypes.byref(size))
        workspace = self.allocate(max(size.value, 1))
        a, b, c = (self.allocate(n * n * 4) for _ in range(3))
        one, zero = ctypes.c_float(1), ctypes.c_float(0)

        def product() -> None:
            arguments = (descriptor, workspace, size, c, a, b, one, zero, self.stream)
            self.call(self.op.infiniopGemm, *arguments)

        seconds = self.seconds(product, 10)
        self.call(self.op.infiniopDestroyGemmDescriptor, descriptor)
        self.call(self.op.infiniopDestroyTensorDescriptor, tensor)
        self.call(self.op.infiniopDestroyHandle, handle)
        for pointer in (workspace, a, b, c):
            self.call(self.rt.infinirtFree, pointer)
        return 2 * n**3 / seconds / 1e9


class DeviceBench(Bench):
    """The measurements of qwen3-bench on this device."""

    def __init__(
        self,
        name: str,
        dtype: DataType,
        device: DeviceType,
        dev_ids: list[int],
        backend: Backend = Backend.INFINICORE,
    ) -> None:
        self.name, self.dtype, self.codes = name, dtype, False
        self.precision = Precision(dtype.name.lower())
        self.meta = Qwen3MetaFromConfig(official_config(name))
        self.meta.dt_logits = dtype
        if name.startswith("tiny"):
            self.meta.dvoc, self.meta.end_token = 1024, 1
        self.machine = None
        options = Qwen3ModelOptions(backend=backend)
        if self.meta.experts is None:
            weights: Any = RandomWeights(self.meta, dtype)
        else:
            self.meta.experts.apply(options)
            weights = RandomTensors(self.meta, dtype)
        start = time.perf_counter()
        self.model = NativeModel(self.meta, weights, options, device, dev_ids, LoadProgress())
        self.load_seconds = time.perf_counter() - start
        self.threads = self.model.stats()["nthreads"]
        self.unread_bytes = 0
        self.rng = np.random.default_rng(1)

    def launches(self, batch: int, ntok: int, past: int) -> str:
        """What one step hands to the device, counted by the preloaded launch_counter.cpp."""
        counter = ctypes.CDLL(None)
        if not hasattr(counter, "gpu_count"):
            return "not counted"
        caches = [self.model.create_kv_cache() for _ in range(batch)]
        for cache in caches:
            if past:
                self.step([cache], past)
        for _ in range(3):  # the second makes a graph where there are graphs
            counter.gpu_reset()
            self.step(caches, ntok)
        for cache in caches:
            cache.close()

        def count(name: str) -> int:
            return int(counter.gpu_count(name.encode()))

        text = f"{count('')} launches, {count('infinirtMemcpyAsync')} copies"
        if graphs := count("infinirtGraphLuanch"):
            text += f", {graphs} graphs"
        text += f", {count('infinirtStreamSynchronize')} synchronisations"
        if kernels := count("cudaLaunchKernel"):  # CUDA's own calls: products are not among them
            text += f"; CUDA: {kernels} kernels, {count('cudaMemcpyAsync')} copies"
        return text

"""Programs that break a rule of InfiniCore on purpose, to show that the fake accelerator notices.

``python -m infinicore.misuse NAME...`` prints one line of JSON per case: the statuses and values
that it returns, the violations, and what is left allocated. All goes through the C API, without our
library.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from collections.abc import Callable, Sequence
from ctypes import byref, c_float, c_int32, c_size_t, c_ssize_t, c_void_p
from typing import Any

import numpy as np
from infinicore.fake import Fake, fake_library

NVIDIA, F32, I32 = 1, 13, 5
H2D, D2H, D2D = 1, 2, 3
CASES: dict[str, Callable[[Runtime], Any]] = {}


def case(function: Callable[[Runtime], Any]) -> Callable[[Runtime], Any]:
    CASES[function.__name__] = function
    return function


class Runtime:
    """InfiniCore's C API with device 0 set and one stream."""

    def __init__(self) -> None:
        self.fake = Fake()
        self.rt = self.fake.lib
        self.op = fake_library("libinfiniop.so")
        self.ccl = fake_library("libinfiniccl.so")
        self.device(0)
        self.stream = self.new(self.rt.infinirtStreamCreate)

    def device(self, index: int) -> None:
        assert self.rt.infinirtSetDevice(NVIDIA, index) == 0

    def new(self, create: Any, *arguments: Any) -> c_void_p:
        pointer = c_void_p()
        assert create(byref(pointer), *arguments) == 0
        return pointer

    def malloc(self, nbytes: int) -> c_void_p:
        return self.new(self.rt.infinirtMalloc, c_size_t(nbytes))

    def copy(self, dst: Any, src: Any, nbytes: int, kind: int) -> int:
        return int(self.rt.infinirtMemcpyAsync(dst, src, c_size_t(nbytes), kind, self.stream))

    def sync(self) -> int:
        return int(self.rt.infinirtStreamSynchronize(self.stream))

    def upload(self, values: Sequence[float]) -> c_void_p:
        array = (c_float * len(values))(*values)
        memory = self.malloc(4 * len(values))
        assert self.copy(memory, array, 4 * len(values), H2D) == self.sync() == 0
        return memory

    def download(self, memory: c_void_p, n: int) -> list[float]:
        array = (c_float * n)()
        assert self.copy(array, memory, 4 * n, D2H) == self.sync() == 0
        return list(array)

    def tensor(self, shape: Sequence[int], strides: Sequence[int]) -> c_void_p:
        n = len(shape)
        return self.new(
            self.op.infiniopCreateTensorDescriptor,
            c_size_t(n),
            (c_size_t * n)(*shape),
            (c_ssize_t * n)(*strides),
            F32,
        )

    def descriptor(self, op: str, *tensors: tuple[Sequence[int], Sequence[int]]) -> Any:
        """A descriptor and its handle."""
        handle, result = self.new(self.op.infiniopCreateHandle), c_void_p()
        views = [self.tensor(*tensor) for tensor in tensors]
        create = getattr(self.op, f"infiniopCreate{op}Descriptor")
        status = create(handle, byref(result), *views)
        for view in views:
            self.op.infiniopDestroyTensorDescriptor(view)
        assert status == 0, status
        return result, handle

    def destroy(self, op: str, descriptor: Any, handle: Any) -> None:
        getattr(self.op, f"infiniopDestroy{op}Descriptor")(descriptor)
        self.op.infiniopDestroyHandle(handle)

    def rearrange(self, dst: Any, src: Any, n: int = 4) -> int:
        descriptor, handle = self.descriptor("Rearrange", ([n], [1]), ([n], [1]))
        status = int(self.op.infiniopRearrange(descriptor, dst, src, self.stream))
        self.sync()
        self.destroy("Rearrange", descriptor, handle)
        return status


@case
def nothing(r: Runtime) -> Any:
    """Breaks no rule: memory is NaN at first, values come back, work is done in order and late."""
    first, second = r.malloc(16), r.upload([1, 2, 3, 4])
    fresh = r.download(first, 4)
    array = (c_float * 4)(5, 6, 7, 8)
    out = (c_float * 4)()
    statuses = [
        r.copy(first, second, 16, D2D),
        r.copy(second, array, 16, H2D),
        r.copy(out, first, 16, D2H),
    ]
    early = list(out)
    statuses.append(r.sync())
    values = [list(out), r.download(second, 4)]
    r.rt.infinirtFree(first)
    r.rt.infinirtFree(second)
    assert np.isnan(fresh).all() and np.isnan(early).all()
    return [statuses, values]


@case
def host_pointer(r: Runtime) -> Any:
    memory, array = r.malloc(16), (c_float * 4)()
    status = r.rearrange(memory, array)
    r.rt.infinirtFree(memory)
    return status


@case
def host_touches_device(r: Runtime) -> Any:
    ctypes.memset(r.malloc(16), 0, 16)


@case
def device_pointer_as_host(r: Runtime) -> Any:
    first, second = r.malloc(16), r.malloc(16)
    status = r.copy(first, second, 16, H2D)
    r.rt.infinirtFree(first)
    r.rt.infinirtFree(second)
    return status


@case
def staging_reused(r: Runtime) -> Any:
    memory, array = r.malloc(16), (c_float * 4)(1, 2, 3, 4)
    r.copy(memory, array, 16, H2D)
    array[0] = 5
    status = r.sync()
    r.rt.infinirtFree(memory)
    return status


@case
def freed_in_flight(r: Runtime) -> Any:
    memory, array = r.malloc(16), (c_float * 4)(1, 2, 3, 4)
    r.copy(memory, array, 16, H2D)
    r.rt.infinirtFree(memory)


@case
def freed_twice(r: Runtime) -> Any:
    memory = r.malloc(16)
    return [r.rt.infinirtFree(memory), r.rt.infinirtFree(memory)]


@case
def used_after_free(r: Runtime) -> Any:
    memory, other = r.malloc(16), r.malloc(16)
    r.rt.infinirtFree(memory)
    status = r.rearrange(other, memory)
    r.rt.infinirtFree(other)
    return status


@case
def out_of_bounds(r: Runtime) -> Any:
    first, second = r.malloc(16), r.malloc(12)
    status = r.rearrange(first, second)
    r.rt.infinirtFree(first)
    r.rt.infinirtFree(second)
    return status


@case
def overlapping(r: Runtime) -> Any:
    memory = r.malloc(32)
    status = r.rearrange(memory, c_void_p((memory.value or 0) + 4))
    r.rt.infinirtFree(memory)
    return status


@case
def no_device_on_thread(r: Runtime) -> Any:
    memory, array = r.malloc(16), (c_float * 4)()
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(r.copy(memory, array, 16, H2D)))
    thread.start()
    thread.join()
    r.rt.infinirtFree(memory)
    return statuses


@case
def stream_of_other_device(r: Runtime) -> Any:
    r.device(1)
    memory, array = r.malloc(16), (c_float * 4)()
    status = r.copy(memory, array, 16, H2D)
    r.rt.infinirtFree(memory)
    r.device(0)
    return status


@case
def memory_of_other_device(r: Runtime) -> Any:
    memory, array = r.malloc(16), (c_float * 4)()
    r.device(1)
    stream = r.new(r.rt.infinirtStreamCreate)
    status = r.rt.infinirtMemcpyAsync(memory, array, c_size_t(16), H2D, stream)
    r.rt.infinirtStreamDestroy(stream)
    r.device(0)
    r.rt.infinirtFree(memory)
    return status


@case
def descriptor_outlives_handle(r: Runtime) -> Any:
    descriptor, handle = r.descriptor("Rearrange", ([4], [1]), ([4], [1]))
    r.op.infiniopDestroyHandle(handle)
    r.op.infiniopDestroyRearrangeDescriptor(descriptor)


@case
def descriptor_destroyed_in_flight(r: Runtime) -> Any:
    first, second = r.upload([1, 2, 3, 4]), r.malloc(16)
    descriptor, handle = r.descriptor("Rearrange", ([4], [1]), ([4], [1]))
    r.op.infiniopRearrange(descriptor, second, first, r.stream)
    r.destroy("Rearrange", descriptor, handle)
    r.rt.infinirtFree(first)
    r.rt.infinirtFree(second)


@case
def small_workspace(r: Runtime) -> Any:
    memory, nbytes = r.upload([1, 2, 3, 4]), c_size_t()
    layout = ([4], [1])
    descriptor, handle = r.descriptor("Add", layout, layout, layout)
    r.op.infiniopGetAddWorkspaceSize(descriptor, byref(nbytes))
    workspace = r.malloc(nbytes.value)
    statuses = [
        r.op.infiniopAdd(
            descriptor, workspace, c_size_t(nbytes.value - less), memory, memory, memory, r.stream
        )
        for less in (1, 0)
    ]
    values = r.download(memory, 4)
    r.destroy("Add", descriptor, handle)
    r.rt.infinirtFree(workspace)
    r.rt.infinirtFree(memory)
    return [statuses, values]


@case
def leak(r: Runtime) -> Any:
    r.malloc(16)
    r.descriptor("Rearrange", ([4], [1]), ([4], [1]))


@case
def softmax_of_wide_rows(r: Runtime) -> Any:
    """What the first of two rows of equal scores gives to the key that it must not see."""
    width = 520
    x, workspace = r.upload([0.0] * (2 * width)), r.malloc(4096)
    layout = ([2, width], [width, 1])
    descriptor, handle = r.descriptor("CausalSoftmax", layout, layout)
    status = r.op.infiniopCausalSoftmax(descriptor, workspace, c_size_t(4096), x, x, r.stream)
    values = r.download(x, 2 * width)
    r.destroy("CausalSoftmax", descriptor, handle)
    r.rt.infinirtFree(workspace)
    r.rt.infinirtFree(x)
    return [status, values[width - 1] > 0]


@case
def all_reduce(r: Runtime) -> Any:
    """Two ranks; whoever is waited for first, both come through."""
    comms, ids = (c_void_p * 2)(), (c_int32 * 2)(0, 1)
    statuses = [r.ccl.infinicclCommInitAll(NVIDIA, comms, 2, ids)]
    ranks = [(r.stream, r.upload([1, 2, 3]))]
    first_stream = r.stream
    r.device(1)
    r.stream = r.new(r.rt.infinirtStreamCreate)
    ranks.append((r.stream, r.upload([10, 20, 30])))
    for index, (stream, memory) in enumerate(ranks):
        r.device(index)
        statuses.append(
            r.ccl.infinicclAllReduce(
                memory, memory, c_size_t(3), F32, 0, c_void_p(comms[index]), stream
            )
        )
    values = []
    for index, (stream, memory) in enumerate(ranks):
        r.device(index)
        r.stream = stream
        values.append(r.download(memory, 3))
        r.rt.infinirtFree(memory)
        r.ccl.infinicclCommDestroy(c_void_p(comms[index]))
    r.rt.infinirtStreamDestroy(r.stream)
    r.stream = first_stream
    r.device(0)
    return [statuses, values]


@case
def events(r: Runtime) -> Any:
    """An event is complete once the work before it is done, and another stream can wait for it."""
    memory, array, state = r.malloc(16), (c_float * 4)(1, 2, 3, 4), c_int32(-1)
    event = r.new(r.rt.infinirtEventCreate)
    other = r.new(r.rt.infinirtStreamCreate)
    out = (c_float * 4)()
    r.copy(memory, array, 16, H2D)
    r.rt.infinirtEventRecord(event, r.stream)
    r.rt.infinirtStreamWaitEvent(other, event)
    r.rt.infinirtMemcpyAsync(out, memory, c_size_t(16), D2H, other)
    r.rt.infinirtStreamSynchronize(other)
    r.rt.infinirtEventQuery(event, byref(state))
    r.rt.infinirtEventDestroy(event)
    r.rt.infinirtStreamDestroy(other)
    r.rt.infinirtFree(memory)
    return [list(out), state.value]


def main() -> None:
    for name in sys.argv[1:]:
        runtime = Runtime()
        fake = runtime.fake
        before = fake.live()
        fake.reset()
        result = CASES[name](runtime)
        runtime.device(0)
        runtime.rt.infinirtStreamDestroy(runtime.stream)
        # Less the stream, which is gone.
        left = {k: n - before.get(k, 0) for k, n in fake.live().items() if n > before.get(k, 0)}
        report = {"result": result, "violations": fake.violations(), "live": left}
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()

"""Loads a cache file with every weight pointer at memory that may not be read; prints the logits.

python load_unreadable.py FOLDER FILE DTYPE NDEV TOKEN...
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import sys
from pathlib import Path

from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.checkpoint.weights import Qwen3WeightsImpl
from infinicore_infer.native import weight_cache
from infinicore_infer.native.load import LoadProgress
from infinicore_infer.native.model import NativeModel, StepRequest
from libinfinicore_infer import DataType, DeviceType, Qwen3ModelOptions, Qwen3Weights


def unreadable(size: int = 1 << 24) -> int:
    """Returns the address of memory that nobody may touch."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return int(libc.mmap(None, size, 0, flags, -1, 0))


def main() -> None:
    folder, file, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    ndev, *tokens = (int(number) for number in sys.argv[4:])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    meta, checkpoint, dtype = Qwen3MetaFromConfig(folder), Checkpoint(folder), DataType.parse(name)
    weights = Qwen3WeightsImpl(meta, checkpoint)
    address = unreadable()
    for field, kind in Qwen3Weights._fields_:
        if kind is ctypes.c_void_p and getattr(weights, field):
            setattr(weights, field, address)
        elif issubclass(kind, ctypes._Pointer) and getattr(weights, field):
            for layer in range(meta.nlayer):
                getattr(weights, field)[layer] = address
    options = Qwen3ModelOptions(nthreads=2, dt_weight=dtype)
    weight_cache.CheckpointCache(checkpoint, dtype).prepare(options)
    options.cache_path = os.fsencode(file)
    cpu = DeviceType.DEVICE_TYPE_CPU
    model = NativeModel(meta, weights, options, cpu, list(range(ndev)), LoadProgress(checkpoint))
    with model.create_kv_cache() as cache:
        sys.stdout.buffer.write(model.forward([StepRequest(cache, tokens, 0)]).tobytes())


main()

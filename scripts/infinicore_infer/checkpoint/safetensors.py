"""Reads safetensors files as numpy views into memory-mapped files.

The `safetensors` package would be the natural choice, but its numpy interface cannot return
bfloat16 (numpy has no such type) and it copies tensors. The library wants plain pointers, so this
module maps the file and hands out views; bfloat16 comes as uint16 beside the tag ``"BF16"``.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from infinicore_infer.checkpoint.config_reader import short
from infinicore_infer.checkpoint.errors import SafetensorsError
from infinicore_infer.checkpoint.identity import file_identity
from infinicore_infer.checkpoint.json_files import require_regular
from infinicore_infer.checkpoint.tensor import Tensor, Tensors

# The same bound the safetensors package uses; a larger header is a corrupt length field.
MAX_HEADER_BYTES = 100_000_000
# More than any file holds, and in any type still fewer bytes than numpy can count.
_MAX_SIZE = 2**59
_MAX_DIMENSIONS = 32

# safetensors dtype: numpy type of the view. BF16 and F8 have no numpy type: raw bits.
_NUMPY_TYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "F8_E8M0": np.uint8,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_LFS_MAGIC = b"version https://git-lfs.github.com/spec/"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise SafetensorsError(f"key {name!r} appears twice")
            seen.add(name)
    return result


def _parse_header(path: Path, view: memoryview) -> tuple[dict[str, Any], int]:
    """Return the header's entries and the file offset at which tensor data begins."""
    size = len(view)
    if bytes(view[: len(_LFS_MAGIC)]) == _LFS_MAGIC:
        raise SafetensorsError(
            f"{path}: is a git-lfs pointer, not the weights; fetch them with 'git lfs pull'"
        )
    if size < 8:
        raise SafetensorsError(f"{path}: truncated: {size} bytes, a header needs at least 8")
    length = int.from_bytes(view[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise SafetensorsError(
            f"{path}: header of {length} bytes is too large (limit {MAX_HEADER_BYTES}); "
            "not a safetensors file?"
        )
    if 8 + length > size:
        raise SafetensorsError(
            f"{path}: truncated: header ends at byte {8 + length}, the file has {size}"
        )
    try:
        header = json.loads(
            bytes(view[8 : 8 + length]).decode("utf-8"), object_pairs_hook=_no_duplicates
        )
    except SafetensorsError as error:
        raise SafetensorsError(f"{path}: corrupt header: {error}") from None
    except (ValueError, RecursionError) as error:
        # Also numbers of thousands of digits, which are JSON and no int.
        raise SafetensorsError(f"{path}: corrupt header: not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise SafetensorsError(f"{path}: corrupt header: not a JSON object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_SIZE


def _parse_entry(where: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    """Check one header entry by itself; return dtype, shape, begin and end."""
    if not isinstance(entry, dict):
        raise SafetensorsError(f"{where}: header entry is not a JSON object")
    for key in ("dtype", "shape", "data_offsets"):
        if key not in entry:
            raise SafetensorsError(f"{where}: header entry has no {key!r}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise SafetensorsError(f"{where}: unsupported dtype {short(dtype)}")
    # Sizes beside a 0 count too: numpy makes no array whose other sizes are beyond memory.
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMENSIONS
        or not all(_is_size(n) for n in shape)
        or math.prod(n for n in shape if n > 0) > _MAX_SIZE
    ):
        raise SafetensorsError(f"{where}: bad shape {short(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise SafetensorsError(f"{where}: bad data_offsets {short(offsets)}")
    begin, end = offsets
    if dtype not in _NUMPY_TYPES:
        # A newer or complex type: whether anybody needs the tensor is not known here.
        expected = max(0, end - begin)
    else:
        expected = math.prod(shape) * int(np.dtype(_NUMPY_TYPES[dtype]).itemsize)
    if end - begin != expected:
        raise SafetensorsError(
            f"{where}: {dtype} {shape} needs {expected} bytes, data_offsets give {end - begin}"
        )
    return dtype, tuple(shape), begin, end


class SafetensorsFile(Tensors):
    """One mapped safetensors file; a mapping from tensor names to :class:`Tensor`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map the file and check its whole header.

        Raises:
            SafetensorsError: The file is damaged; the message names the file and the tensor.
            OSError: The file cannot be opened.
        """
        self.path = Path(path)
        require_regular(self.path)
        with open(self.path, "rb") as file:
            self._facts = os.fstat(file.fileno())
            if self._facts.st_size == 0:
                raise SafetensorsError(f"{self.path}: truncated: the file is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._tensors = self._parse()
        except BaseException:
            self.close()
            raise

    def _parse(self) -> dict[str, Tensor]:
        with memoryview(self._map) as view:
            header, data_start = _parse_header(self.path, view)
            self._identity = file_identity(self.path, self._facts, view[:data_start])
        data_size = len(self._map) - data_start
        tensors: dict[str, Tensor] = {}
        spans: list[tuple[int, int, str]] = []
        for name, entry in header.items():
            where = f"{self.path}: tensor {name!r}"
            dtype, shape, begin, end = _parse_entry(where, entry)
            if end > data_size:
                raise SafetensorsError(
                    f"{where}: data ends at byte {end} of {data_size}: "
                    "the file is truncated or the offsets are wrong"
                )
            spans.append((begin, end, name))
            data = (
                np.frombuffer(self._map, np.uint8, end - begin, data_start + begin)
                if end > begin
                else np.empty(0, np.uint8)
            )
            if dtype in _NUMPY_TYPES:
                data = data.view(_NUMPY_TYPES[dtype]).reshape(shape)
            tensors[name] = Tensor(name, dtype, shape, data, self.path)
        covered = 0
        for begin, end, name in sorted(spans):
            if begin < covered:
                raise SafetensorsError(f"{self.path}: tensor {name!r}: overlaps another tensor")
            if begin > covered:
                raise SafetensorsError(
                    f"{self.path}: tensor {name!r}: {begin - covered} bytes before it belong to no "
                    "tensor"
                )
            covered = end
        if covered != data_size:
            raise SafetensorsError(
                f"{self.path}: {data_size - covered} bytes at the end belong to no tensor"
            )
        return tensors

    def identity(self) -> list[str | int]:
        """Return what changes with the content; see :func:`file_identity`."""
        return [*self._identity]

    def mapping(self) -> tuple[int, int]:
        """Return address and size of the mapped file; valid while it is open."""
        return int(np.frombuffer(self._map, np.uint8, 1).ctypes.data), len(self._map)

    def close(self) -> None:
        """Unmap the file. Views that are still referenced keep the mapping alive until they go."""
        self._tensors = {}
        try:
            self._map.close()
        except BufferError:
            # A caller still holds a view: the mapping goes with the last one of them.
            pass

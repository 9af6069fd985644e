"""Reads GGUF files: metadata, and tensors as views into the mapped file.

The `gguf` package is no choice: opening a file with Qwen3's vocabulary takes it many seconds,
because every string becomes several arrays. Here a string is a slice.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infinicore_infer.checkpoint.errors import GgufError
from infinicore_infer.checkpoint.gguf_blocks import TYPES, GgufMatrix
from infinicore_infer.checkpoint.identity import file_identity
from infinicore_infer.checkpoint.json_files import require_regular
from infinicore_infer.checkpoint.tensor import Tensor, Weight

MAGIC = b"GGUF"
# Far above what files with the largest vocabularies have; a larger header is damaged or a trap.
MAX_HEADER_BYTES = 256 << 20
_MAX_STRING_BYTES = 16 << 20
_MAX_STRINGS = 1 << 22
_MAX_DIMENSIONS = 4

_STRING, _ARRAY, _BOOL = 8, 9, 7
# Metadata type: struct format, numpy type.
_NUMBERS: dict[int, tuple[struct.Struct, Any]] = {
    0: (struct.Struct("<B"), np.uint8),
    1: (struct.Struct("<b"), np.int8),
    2: (struct.Struct("<H"), np.uint16),
    3: (struct.Struct("<h"), np.int16),
    4: (struct.Struct("<I"), np.uint32),
    5: (struct.Struct("<i"), np.int32),
    6: (struct.Struct("<f"), np.float32),
    _BOOL: (struct.Struct("<B"), np.uint8),
    10: (struct.Struct("<Q"), np.uint64),
    11: (struct.Struct("<q"), np.int64),
    12: (struct.Struct("<d"), np.float64),
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
# ggml types that are plain numbers, by what safetensors files call them; numpy's type of the view.
_PLAIN: dict[int, tuple[str, Any]] = {
    0: ("F32", np.float32),
    1: ("F16", np.float16),
    24: ("I8", np.int8),
    25: ("I16", np.int16),
    26: ("I32", np.int32),
    27: ("I64", np.int64),
    28: ("F64", np.float64),
    30: ("BF16", np.uint16),
}


class _Cursor:
    """Reads a header from its beginning on; every length is checked before it is used."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data = data
        self.size = size
        self.at = 0

    def take(self, count: int, what: str) -> int:
        """Return the offset of the next bytes and step over them."""
        at = self.at
        if count > self.size - at:
            raise GgufError(f"truncated: {what} ends at byte {at + count} of {self.size}")
        self.at = at + count
        return at

    def number(self, form: struct.Struct, what: str) -> Any:
        return form.unpack_from(self.data, self.take(form.size, what))[0]

    def string(self, what: str) -> str:
        length = self.number(_U64, what)
        if length > _MAX_STRING_BYTES:
            raise GgufError(f"{what} has {length} bytes, more than {_MAX_STRING_BYTES}")
        at = self.take(length, what)
        try:
            return self.data[at : at + length].decode()
        except UnicodeDecodeError as error:
            raise GgufError(f"{what} is not UTF-8: {error}") from None

    def strings(self, count: int, what: str) -> list[str]:
        # Before anything is allocated: every string takes the 8 bytes of its length at least.
        if count > min(_MAX_STRINGS, (self.size - self.at) // 8):
            raise GgufError(f"{what} claims {count} strings, more than there can be")
        data, size, at, unpack = self.data, self.size, self.at, _U64.unpack_from
        result = []
        for _ in range(count):
            begin = at + 8
            if begin > size:
                raise GgufError(f"truncated: {what} ends beyond byte {size}")
            at = begin + unpack(data, at)[0]
            if at > size:
                raise GgufError(f"truncated: a string of {what} ends at byte {at} of {size}")
            result.append(data[begin:at])
        self.at = at
        try:
            return [text.decode() for text in result]
        except UnicodeDecodeError as error:
            raise GgufError(f"a string of {what} is not UTF-8: {error}") from None

    def value(self, kind: int, what: str) -> Any:
        """Return a value of the metadata; arrays of numbers are numpy arrays."""
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            kind, count = self.number(_U32, what), self.number(_U64, what)
            if kind == _STRING:
                return self.strings(count, what)
            if kind not in _NUMBERS:
                raise GgufError(f"{what} is an array of type {kind}, which is not known")
            at = self.take(count * _NUMBERS[kind][0].size, what)
            return np.frombuffer(self.data, _NUMBERS[kind][1], count, at).copy()
        if kind not in _NUMBERS:
            raise GgufError(f"{what} is of type {kind}, which is not known")
        number = self.number(_NUMBERS[kind][0], what)
        if kind != _BOOL:
            return number
        if number > 1:
            raise GgufError(f"{what} is {number}, which is neither false (0) nor true (1)")
        return number == 1


@dataclass(frozen=True, slots=True)
class _Info:
    """What the header says of one tensor."""

    name: str
    shape: tuple[int, ...]  # the slowest axis first
    kind: int
    offset: int

    def bytes(self) -> int:
        _, weights, size = TYPES[self.kind]
        return math.prod(self.shape) // weights * size


class GgufFile:
    """One mapped GGUF file.

    Attributes:
        path: The file.
        metadata: Values by key; arrays of numbers as numpy arrays, of strings as lists.
        weights: Tensors by name.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map the file and check its whole header.

        Raises:
            GgufError: The file is damaged or of another kind; the message names the file.
            OSError: The file cannot be opened.
        """
        self.path = Path(path)
        self.metadata: dict[str, Any] = {}
        self.weights: dict[str, Weight] = {}
        require_regular(self.path)
        with open(self.path, "rb") as file:
            self._facts = os.fstat(file.fileno())
            if self._facts.st_size == 0:
                raise GgufError(f"{self.path}: truncated: the file is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            cursor = _Cursor(self._map, min(len(self._map), MAX_HEADER_BYTES))
            infos = self._parse(cursor)
            self._header_size = cursor.at
            self._place(infos, cursor.at)
        except GgufError as error:
            self.close()
            raise GgufError(f"{self.path}: {error}") from None
        except BaseException:
            self.close()
            raise

    def _parse(self, cursor: _Cursor) -> list[_Info]:
        if self._map[:4] != MAGIC:
            if self._map[:24].startswith(b"version https://git-lfs"):
                raise GgufError(
                    "is a git-lfs pointer, not the weights; fetch them with 'git lfs pull'"
                )
            raise GgufError("is no GGUF file: it does not begin with 'GGUF'")
        cursor.at = 4
        version = cursor.number(_U32, "the version")
        if version not in (2, 3):
            big = version != 0 and version & 0xFFFF == 0
            raise GgufError(
                "is big-endian, which is not supported"
                if big
                else f"is of GGUF version {version}, which is not supported (known: 2, 3)"
            )
        ntensors, nvalues = cursor.number(_U64, "a count"), cursor.number(_U64, "a count")
        # A key and a value take 13 bytes, a tensor 24; the loops below are bounded by the file.
        if nvalues * 13 + ntensors * 24 > cursor.size:
            raise GgufError(
                f"claims {ntensors} tensors and {nvalues} values, more than fit into its "
                f"{len(self._map)} bytes"
            )
        for _ in range(nvalues):
            key = cursor.string("a key")
            if key in self.metadata:
                raise GgufError(f"key {key!r} appears twice")
            self.metadata[key] = cursor.value(cursor.number(_U32, repr(key)), f"{key!r}")
        return [self._info(cursor) for _ in range(ntensors)]

    @staticmethod
    def _info(cursor: _Cursor) -> _Info:
        name = cursor.string("a tensor's name")
        what = f"tensor {name!r}"
        dimensions = cursor.number(_U32, what)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise GgufError(f"{what} has {dimensions} dimensions, not 1 to {_MAX_DIMENSIONS}")
        sizes = [cursor.number(_U64, what) for _ in range(dimensions)]
        kind, offset = cursor.number(_U32, what), cursor.number(_U64, what)
        return _Info(name, tuple(reversed(sizes)), kind, offset)

    def _place(self, infos: list[_Info], header_end: int) -> None:
        """Make views of all tensors."""
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            raise GgufError(f"'general.alignment' is {alignment!r}, not a power of two from 8 on")
        unknown = sorted({info.kind for info in infos if info.kind not in TYPES})
        if unknown:
            listed = ", ".join(f"{info.name!r}" for info in infos if info.kind in unknown[:1])[:200]
            raise GgufError(f"tensors of types that are not known: {unknown} ({listed})")
        start = -(-header_end // alignment) * alignment
        spans: list[tuple[int, int, str]] = []
        for info in infos:
            what = f"tensor {info.name!r}"
            if info.name in self.weights:
                raise GgufError(f"{what} appears twice")
            type_name, block, _ = TYPES[info.kind]
            if info.shape[-1] % block:
                raise GgufError(
                    f"{what} has rows of {info.shape[-1]}, which {type_name} cannot store"
                )
            if info.offset % alignment:
                raise GgufError(f"{what} is at offset {info.offset}, not a multiple of {alignment}")
            begin, size = start + info.offset, info.bytes()
            if begin + size > len(self._map):
                raise GgufError(
                    f"truncated: {what} ends at byte {begin + size} of {len(self._map)}"
                )
            if size == 0:
                raise GgufError(f"{what} is empty: {list(info.shape)}")
            spans.append((begin, begin + size, info.name))
            self.weights[info.name] = self._view(info, begin, size)
        spans.sort()
        for (_, end, _), (begin, _, name) in pairwise(spans):
            if begin < end:
                raise GgufError(f"tensor {name!r} overlaps another tensor")

    def _view(self, info: _Info, begin: int, size: int) -> Weight:
        if info.kind in _PLAIN:
            name, kind = _PLAIN[info.kind]
            count = math.prod(info.shape)
            data: NDArray[Any] = np.frombuffer(self._map, kind, count, begin)
            return Tensor(info.name, name, info.shape, data.reshape(info.shape), self.path)
        octets = np.frombuffer(self._map, np.uint8, size, begin).reshape(*info.shape[:-1], -1)
        return GgufMatrix(info.name, TYPES[info.kind][0], info.shape, self.path, info.kind, octets)

    def identity(self) -> list[str | int]:
        """Return what changes with the content; see :func:`file_identity`."""
        with memoryview(self._map) as view:
            return file_identity(self.path, self._facts, view[: self._header_size])

    def mapping(self) -> tuple[int, int]:
        """Return address and size of the mapped file; valid while it is open."""
        return int(np.frombuffer(self._map, np.uint8, 1).ctypes.data), len(self._map)

    def close(self) -> None:
        """Unmap the file. Views that are still referenced keep the mapping alive until they go."""
        self.weights = {}
        try:
            self._map.close()
        except BufferError:
            pass  # the mapping goes with the last view

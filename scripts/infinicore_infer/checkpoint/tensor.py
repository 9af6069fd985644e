"""Tensors of a checkpoint, as numbers of floating point or in codes with scales."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from libinfinicore_infer import DataType
from numpy.typing import NDArray

from infinicore_infer.checkpoint.guarded import PIECE_BYTES, guarded_copy

# Types of floating point that the library computes with, by their names in safetensors files.
FLOATS = {"F16": DataType.F16, "F32": DataType.F32, "BF16": DataType.BF16}


def sizes_of(shape: tuple[int, ...]) -> dict[str, int]:
    """Return the fields of a ``Qwen3Tensor`` for a shape; one of three sizes is of experts."""
    if len(shape) == 3:
        return {"nexperts": shape[0], "rows": shape[1], "cols": shape[2]}
    rows, cols = (*shape, 1)[:2]
    return {"rows": rows, "cols": cols}


class Weight(ABC):
    """What a weight of a model is stored as.

    Attributes:
        name: Its name.
        dtype: Name of what its elements are stored as, such as ``"BF16"`` or ``"Q4_K"``.
        shape: Its shape; a matrix is [rows, columns], and rows are output features.
        file: The file it is in.
    """

    __slots__ = ()

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def supported(self) -> bool:
        """Whether the library computes with it, as it is or decoded."""
        return True

    @abstractmethod
    def decoded(self, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
        """Return the values of elements ``first`` to ``last`` (``None``: all) of the first axis."""

    @abstractmethod
    def entry(self) -> dict[str, Any]:
        """Return the fields of a ``Qwen3Tensor`` that say how it is stored, and where."""

    @abstractmethod
    def stored(self) -> list[NDArray[Any]]:
        """Return the arrays that it is stored in; equal dtypes and arrays are equal values."""


@dataclass(frozen=True, slots=True)
class Tensor(Weight):
    """One tensor of a file.

    Attributes:
        name: Its name in the file.
        dtype: The safetensors dtype, such as ``"BF16"``.
        shape: Its shape.
        data: Read-only view into the mapped file; uint16 bits for BF16, and plain bytes, without
            the shape, for a dtype that is not known.
        file: The file it is in.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[Any] = field(repr=False)
    file: Path

    @property
    def supported(self) -> bool:
        """Whether it is of one of the ``FLOATS``."""
        return self.dtype in FLOATS

    @property
    def address(self) -> int:
        """Address of the first byte in memory; valid while the checkpoint is open."""
        return int(self.data.ctypes.data)

    def to_float32(self) -> NDArray[np.float32]:
        """Return the values as a new float32 array of the same shape."""
        return self.decoded()

    def decoded(self, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
        """Return the values of a part of the first axis, as a new array."""
        data = self.data if self.data.ndim == 0 else self.data[first:last]
        if self.dtype == "BF16":
            return (data.astype(np.uint32) << 16).view(np.float32)
        return data.astype(np.float32)

    def entry(self) -> dict[str, Any]:
        """Return the fields of a ``Qwen3Tensor``; the dtype must be one of ``FLOATS``."""
        return {"dtype": FLOATS[self.dtype], "data": self.address, **sizes_of(self.shape)}

    def stored(self) -> list[NDArray[Any]]:
        """Return the view into the file."""
        return [self.data]

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Return a part of the first axis as a tensor of its own."""
        data = self.data[first:last]
        return replace(self, name=name, shape=data.shape, data=data)


# numpy would make an array of truth values of the matrix's size.
def same_values(a: Weight, b: Weight) -> bool:
    """Return whether two weights are stored the same to the bit.

    Raises:
        OSError: One cannot be read, because its file was cut short or the disk fails.
    """
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    parts, others = a.stored(), b.stored()
    return len(parts) == len(others) and all(
        x.nbytes == y.nbytes
        and all(
            guarded_copy(x, begin, a.file) == guarded_copy(y, begin, b.file)
            for begin in range(0, x.nbytes, PIECE_BYTES)
        )
        for x, y in zip(parts, others, strict=True)
    )


class Tensors(Mapping[str, Tensor]):
    """Tensors by name, kept in ``_tensors``."""

    _tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        """Return one tensor."""
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the tensors' names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Return how many tensors there are."""
        return len(self._tensors)

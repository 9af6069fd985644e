"""Weights of floats that the library does not compute with, converted to float32 at load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from libinfinicore_infer import DataType
from numpy.typing import NDArray

from infinicore_infer.checkpoint.coded import e4m3_values
from infinicore_infer.checkpoint.tensor import Tensor, Weight, sizes_of


@dataclass(frozen=True, slots=True)
class ConvertedTensor(Weight):
    """A tensor of another type, handed to the library as float32.

    Attributes:
        name: Its name.
        dtype: ``"F32"``.
        shape: Its shape.
        file: The file it is in.
        source: The tensor as it is stored.
    """

    name: str
    shape: tuple[int, ...]
    file: Path
    source: Tensor = field(repr=False)
    dtype: str = "F32"
    _values: list[NDArray[np.float32]] = field(repr=False, default_factory=list)

    def decoded(self, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
        """Return the values of a part of the first axis, as a new array."""
        data = self.source.data
        data = data if data.ndim == 0 else data[first:last]
        if self.source.dtype == "F8_E4M3":
            return np.take(e4m3_values(), data)
        if self.source.dtype == "F8_E5M2":
            return (data.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
        with np.errstate(over="ignore"):  # the library refuses infinities by name
            return data.astype(np.float32)

    def entry(self) -> dict[str, Any]:
        """Return the fields of a ``Qwen3Tensor``; the values are converted the first time."""
        if not self._values:
            self._values.append(np.ascontiguousarray(self.decoded()))
        data = self._values[0].ctypes.data
        return {"dtype": DataType.F32, "data": data, **sizes_of(self.shape)}

    def stored(self) -> list[NDArray[Any]]:
        """Return the view into the file."""
        return [self.source.data]


def converted_weights(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return weights with those of convertible types in converted form."""
    kinds = ("F64", "F8_E4M3", "F8_E5M2")
    return {
        name: ConvertedTensor(name, weight.shape, weight.file, weight)
        if isinstance(weight, Tensor) and weight.dtype in kinds
        else weight
        for name, weight in weights.items()
    }

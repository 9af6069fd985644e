"""Matrices whose elements are codes with scales: GPTQ, AWQ, compressed-tensors, FP8.

A :class:`CodedMatrix` says in the words of the C header's ``Qwen3Tensor`` how it is stored, and can
decode itself. Which tensors of a checkpoint make one is the business of :mod:`.quantization`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from libinfinicore_infer import DataType, TensorLayout
from numpy.typing import NDArray

from infinicore_infer.checkpoint.tensor import Tensor, Weight

# The row of a word (AutoAWQ's "gemm") that each of its nibbles holds, from the lowest on.
_AWQ_ROWS = (0, 2, 4, 6, 1, 3, 5, 7)


@cache
def e4m3_values() -> NDArray[np.float32]:
    """Return the values of all 256 codes of e4m3fn."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(
        exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent.astype(float) - 10)
    )
    value[0x7F] = value[0xFF] = np.nan
    return np.where(code < 128, value, -value).astype(np.float32)


def bits_of(dtype: DataType) -> int:
    """Return the bits of a code."""
    return 4 if dtype == DataType.U4 else 8


def unpacked(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return unsigned codes of words along the last axis, the lowest bits first."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return octets
    return np.stack((octets & 15, octets >> 4), axis=-1).reshape(*octets.shape[:-1], -1)


def scale_values(scales: Tensor) -> NDArray[np.float32]:
    """Return scales as float32; those of F8_E8M0 are powers of two."""
    if scales.dtype == "F8_E8M0":
        powers = np.ldexp(np.float32(1), scales.data.astype(np.int32) - 127)
        return np.where(scales.data == 255, np.nan, powers).astype(np.float32)
    return scales.to_float32()


@dataclass(frozen=True, slots=True)
class CodedMatrix(Weight):
    """A matrix [rows, columns] of codes; the value of code c is scale * (c - zero).

    Attributes:
        name: The weight's name, such as ``model.layers.0.mlp.up_proj.weight``.
        dtype: What it is stored as, for people.
        shape: Rows and columns of the matrix itself, wherever its codes lie.
        file: The file the codes are in.
        code_dtype: Type of a code.
        layout: Where each code lies.
        codes: The tensor with the codes.
        scales: The tensor with the scales.
        zeros: The tensor with the zero points; ``None``: there are none.
        zero_offset: Added to every zero point.
        block: Rows and columns that share a scale.
        groups: The group of scales that each column belongs to; ``None``: they are in order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    code_dtype: DataType
    layout: TensorLayout
    codes: Tensor = field(repr=False)
    scales: Tensor = field(repr=False)
    zeros: Tensor | None = field(repr=False, default=None)
    zero_offset: int = 0
    block: tuple[int, int] = (1, 1)
    groups: NDArray[np.int32] | None = field(repr=False, default=None)

    def entry(self) -> dict[str, Any]:
        """Return the fields of a ``Qwen3Tensor``, whose pointers lead into the files."""
        rows, cols = self.shape
        scale_types = {"F8_E8M0": DataType.F8_E8M0, "F16": DataType.F16, "F32": DataType.F32}
        fields: dict[str, Any] = {
            "dtype": self.code_dtype,
            "layout": self.layout,
            "rows": rows,
            "cols": cols,
            "data": self.codes.address,
            "scales": self.scales.address,
            "scale_dtype": scale_types.get(self.scales.dtype, DataType.BF16),
            "zero_offset": self.zero_offset,
            "block_rows": self.block[0] if self.block[0] < rows else 0,
            "block_cols": self.block[1] if self.block[1] < cols else 0,
        }
        if self.zeros is not None:
            fields |= {"zeros": self.zeros.address, "zero_dtype": self.code_dtype}
        if self.groups is not None:
            pointer = self.groups.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            fields["groups"] = pointer
        return fields

    def stored(self) -> list[NDArray[Any]]:
        """Return the arrays of codes, scales and zero points."""
        parts = [self.codes.data, self.scales.data]
        parts += [] if self.zeros is None else [self.zeros.data]
        return parts + ([] if self.groups is None else [self.groups])

    def decoded(self, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
        """Return the values of rows ``first`` to ``last``, exact but for float32's rounding."""
        last = self.shape[0] if last is None else min(last, self.shape[0])
        values = self._codes(first, last)
        if self.zeros is not None or self.zero_offset:
            values -= self._spread(self._zeros(), first, last)
        values *= self._spread(self._scales(), first, last)
        return values

    def _codes(self, first: int, last: int) -> NDArray[np.float32]:
        """Return codes [last - first, columns]."""
        cols, bits, data = self.shape[1], bits_of(self.code_dtype), self.codes.data
        if self.layout == TensorLayout.GPTQ:
            # Words [columns * bits / 32, rows]: a column of words is a row of codes.
            codes: NDArray[Any] = unpacked(data[:, first:last].T, bits)
        elif self.layout == TensorLayout.AWQ:
            codes = self._awq(data, first, last).T
        elif self.layout == TensorLayout.PACK_QUANTIZED:
            codes = unpacked(data[first:last], bits)[:, :cols]
        elif self.code_dtype == DataType.F8_E4M3:
            return np.take(e4m3_values(), data[first:last])
        else:
            codes = data[first:last]
        return codes.astype(np.float32)

    @staticmethod
    def _awq(words: NDArray[Any], first: int, last: int) -> NDArray[np.uint8]:
        """Return columns ``first`` to ``last`` of words [_, rows / 8] as [_, last - first]."""
        begin = first // 8
        nibbles = unpacked(words[:, begin : -(-last // 8)], 4).reshape(words.shape[0], -1, 8)
        codes = np.empty_like(nibbles)
        codes[..., _AWQ_ROWS] = nibbles
        return codes.reshape(words.shape[0], -1)[:, first - 8 * begin : last - 8 * begin]

    def _scales(self) -> NDArray[np.float32]:
        """Return scales [blocks of rows, groups]."""
        values = scale_values(self.scales)
        if self.layout in (TensorLayout.GPTQ, TensorLayout.AWQ):
            return values.T
        return values.reshape(-(-self.shape[0] // self.block[0]), -1)

    def _zeros(self) -> NDArray[np.float32]:
        """Return zero points, shaped as the scales are."""
        rows, bits = self.shape[0], bits_of(self.code_dtype)
        if self.zeros is None:
            return np.full((1, 1), self.zero_offset, np.float32)
        data = self.zeros.data
        if self.layout == TensorLayout.AWQ:
            zeros = self._awq(data, 0, rows).T
        elif self.layout == TensorLayout.GPTQ:
            zeros = unpacked(data, bits)[:, :rows].T
        else:  # packed down the rows
            zeros = unpacked(data.T, bits)[:, :rows].T
        return zeros.astype(np.float32) + np.float32(self.zero_offset)

    def _spread(self, values: NDArray[np.float32], first: int, last: int) -> NDArray[np.float32]:
        """Return the value of every element of rows ``first`` to ``last``, or one that stands in.

        Args:
            values: One for each block of rows and group of columns.
            first: The first row.
            last: The row after the last one.
        """
        if values.shape[0] > 1:
            values = values[np.arange(first, last) // self.block[0]]
        if values.shape[1] == 1:
            return values
        if self.groups is not None:
            return values[:, self.groups]
        return np.repeat(values, self.block[1], axis=1)[:, : self.shape[1]]

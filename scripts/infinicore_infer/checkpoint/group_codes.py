"""Rounds matrices to whole numbers with a scale for every 32 columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP = 32
# What the largest weight of a group is divided by for a scale to try. The first one gives it the
# code -8, which has no counterpart of the other sign, so scales may be negative.
_INT4_DIVISORS = (-8.0, -7.0, -7.5, -8.5, -9.0, -9.5, 7.0, 7.5)

_Floats = NDArray[np.float32]


def bf16_bits(values: _Floats) -> NDArray[np.uint16]:
    """Return values rounded to bfloat16, to nearest, ties to even, as its bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def bf16_values(bits: NDArray[np.uint16]) -> _Floats:
    """Return the values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _divided(a: _Floats, b: _Floats) -> _Floats:
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape, np.float32), where=b != 0)


def group_codes(matrix: _Floats, bits: int) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Return codes [rows, columns] and the bits of bfloat16 scales [rows, columns / 32].

    In 8 bits the scale is the largest magnitude over 127, rounded up. In 4 bits it is the one of
    some that has the least squared error, weighted with the square of the weight, because large
    weights matter more to what is computed.

    Args:
        matrix: The weights; the number of columns is a multiple of 32.
        bits: 8 or 4.
    """
    groups = matrix.reshape(len(matrix), -1, GROUP)
    if bits == 8:
        scales = bf16_bits(np.abs(groups).max(2) / np.float32(127))
        short = bf16_values(scales) * 127 < np.abs(groups).max(2)
        scales += short.astype(np.uint16)
        top = 127
    else:
        scales = _int4_scales(groups)
        top = 7
    codes = np.rint(_divided(groups, bf16_values(scales)[:, :, None]))
    return np.clip(codes, -top - (bits == 4), top).astype(np.int8).reshape(matrix.shape), scales


def _int4_scales(groups: _Floats) -> NDArray[np.uint16]:
    at = np.abs(groups).argmax(2)[:, :, None]
    extreme = np.take_along_axis(groups, at, 2)[:, :, 0]
    # Relative to the largest, so that squares of squares neither overflow nor vanish.
    share = _divided(groups, np.abs(extreme)[:, :, None])
    weight = share * share + np.float32(1e-12)
    best: NDArray[Any] = np.zeros(extreme.shape, np.uint16)
    least = np.full(extreme.shape, np.inf, np.float32)
    for divisor in _INT4_DIVISORS:
        tried = bf16_bits(extreme / np.float32(divisor))
        scale = _divided(bf16_values(tried), np.abs(extreme))[:, :, None]
        codes = np.clip(np.rint(_divided(share, scale)), -8, 7)
        error = (weight * (share - codes * scale) ** 2).sum(2)
        better = error < least
        best[better], least[better] = tried[better], error[better]
    return best


def packed(codes: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """Return codes [rows, columns] in words, unsigned, the first one in the lowest bits."""
    octets = (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    if bits == 4:
        octets = octets[:, ::2] | octets[:, 1::2] << np.uint8(4)
    return np.ascontiguousarray(octets).view(np.int32)

"""Decodes GGUF's blocks: ggml's quantised types, 32 or 256 weights each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from libinfinicore_infer import DataType
from numpy.typing import NDArray

from infinicore_infer.checkpoint.tensor import Weight, sizes_of

# All types of ggml: name, weights of a block, bytes of a block.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
# The values that the codes of IQ4_NL and IQ4_XS stand for.
_IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)

_Floats = NDArray[np.float32]
_Bytes = NDArray[np.uint8]


def _f16(blocks: _Bytes, at: int) -> _Floats:
    """Return the half-precision number at an offset of every block, [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(octets: _Bytes) -> _Bytes:
    """Return all low nibbles of each row of bytes, then all high ones."""
    return np.concatenate((octets & 15, octets >> 4), axis=-1)


def _high_bits(octets: _Bytes) -> _Bytes:
    """Return the 32 bits of each block's little-endian word."""
    return np.unpackbits(octets, axis=-1, bitorder="little")


def _q4_0(b: _Bytes) -> _Floats:
    return _f16(b, 0) * (_nibbles(b[:, 2:]).astype(np.float32) - 8)


def _q4_1(b: _Bytes) -> _Floats:
    return _f16(b, 0) * _nibbles(b[:, 4:]).astype(np.float32) + _f16(b, 2)


def _q5_0(b: _Bytes) -> _Floats:
    code = _nibbles(b[:, 6:]) | _high_bits(b[:, 2:6]) << 4
    return _f16(b, 0) * (code.astype(np.float32) - 16)


def _q5_1(b: _Bytes) -> _Floats:
    code = _nibbles(b[:, 8:]) | _high_bits(b[:, 4:8]) << 4
    return _f16(b, 0) * code.astype(np.float32) + _f16(b, 2)


def _q8_0(b: _Bytes) -> _Floats:
    return _f16(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _two_bits(octets: _Bytes) -> _Bytes:
    """Return codes of 2 bits, 32 bytes for each 128: first the lowest bits of all 32 bytes."""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    codes: _Bytes = octets.reshape(len(octets), -1, 1, 32) >> shifts & np.uint8(3)
    return codes.reshape(len(octets), -1)


def _spread(values: NDArray[Any], times: int) -> _Floats:
    """Return values [blocks, groups] for every weight of their groups."""
    return np.repeat(values.astype(np.float32), times, axis=1)


def _q2_k(b: _Bytes) -> _Floats:
    scales, d, least = b[:, :16], _f16(b, 80), _f16(b, 82)
    code = _two_bits(b[:, 16:80]).astype(np.float32)
    return _spread(d * (scales & 15), 16) * code - _spread(least * (scales >> 4), 16)


def _q3_k(b: _Bytes) -> _Floats:
    packed = b[:, 96:108]
    low = _nibbles(packed[:, :8])
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1)
    high = (packed[:, None, 8:] >> shifts & 3).reshape(len(b), 16)
    scales = (low | high << 4).astype(np.float32) - 32
    bits = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    mask = (b[:, None, :32] >> bits & 1).reshape(len(b), 256)
    code = _two_bits(b[:, 32:96]).astype(np.float32) - 4 * (1 - mask.astype(np.float32))
    return _spread(_f16(b, 108) * scales, 16) * code


def _scales_k(packed: _Bytes) -> tuple[_Bytes, _Bytes]:
    """Return the 8 scales and 8 minima, of 6 bits, in the 12 bytes of Q4_K and Q5_K."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, third & 15 | first >> 6 << 4), axis=1)
    minima = np.concatenate((second & 63, third >> 4 | second >> 6 << 4), axis=1)
    return scales, minima


def _affine_k(b: _Bytes, code: _Bytes) -> _Floats:
    scales, minima = _scales_k(b[:, 4:16])
    steps, least = _spread(_f16(b, 0) * scales, 32), _spread(_f16(b, 2) * minima, 32)
    return steps * code.astype(np.float32) - least


def _q4_k(b: _Bytes) -> _Floats:
    return _affine_k(b, _nibbles(b[:, 16:].reshape(len(b), 4, 32)).reshape(len(b), 256))


def _q5_k(b: _Bytes) -> _Floats:
    low = _nibbles(b[:, 48:].reshape(len(b), 4, 32)).reshape(len(b), 256)
    bits = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    high: _Bytes = (b[:, None, 16:48] >> bits & np.uint8(1)).reshape(len(b), 256)
    return _affine_k(b, low | high << np.uint8(4))


def _q6_k(b: _Bytes) -> _Floats:
    low = _nibbles(b[:, :128].reshape(len(b), 2, 64)).reshape(len(b), 256)
    code = (low | _two_bits(b[:, 128:192]) << 4).astype(np.float32) - 32
    return _spread(_f16(b, 208) * b[:, 192:208].view(np.int8), 16) * code


def _iq4_nl(b: _Bytes) -> _Floats:
    return _f16(b, 0) * _IQ4[_nibbles(b[:, 2:])]


def _iq4_xs(b: _Bytes) -> _Floats:
    halves = np.array([0, 4], np.uint8)
    low = (b[:, 4:8, None] >> halves & 15).reshape(len(b), 8)
    pairs = np.arange(0, 16, 2, dtype=np.uint16)
    high = np.ascontiguousarray(b[:, 2:4]).view(np.uint16) >> pairs & 3
    scales = (low | high << 4).astype(np.float32) - 32
    values = _IQ4[_nibbles(b[:, 8:].reshape(len(b), 8, 16))].reshape(len(b), 256)
    return _spread(_f16(b, 0) * scales, 32) * values


# Types that are supported, by name.
DECODERS: dict[str, Callable[[_Bytes], _Floats]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}


@dataclass(frozen=True, slots=True)
class GgufMatrix(Weight):
    """A tensor of a GGUF file in a quantised type.

    Attributes:
        name: Its name.
        dtype: ggml's name of the type, such as ``"Q4_K"``.
        shape: Its shape, the slowest axis first.
        file: The file it is in.
        kind: ggml's number of the type.
        octets: Its bytes, [..., bytes of a row]: blocks do not cross rows.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    kind: int
    octets: _Bytes = field(repr=False)

    @property
    def supported(self) -> bool:
        """Whether the type can be decoded."""
        return self.dtype in DECODERS

    def decoded(self, first: int = 0, last: int | None = None) -> _Floats:
        """Return the values of rows ``first`` to ``last`` as ggml's own functions give them."""
        octets = self.octets[first:last]
        values = DECODERS[self.dtype](octets.reshape(-1, TYPES[self.kind][2]))
        return values.reshape(*octets.shape[:-1], self.shape[-1])

    def entry(self) -> dict[str, Any]:
        """Return the fields of a ``Qwen3Tensor``."""
        return {
            "dtype": DataType(1000 + self.kind),
            "data": int(self.octets.ctypes.data),
            **sizes_of(self.shape),
        }

    def rows(self, name: str, first: int, last: int) -> GgufMatrix:
        """Return some rows as a matrix of its own."""
        octets = self.octets[first:last]
        return replace(self, name=name, shape=(len(octets), *self.shape[1:]), octets=octets)

    def stored(self) -> list[NDArray[Any]]:
        """Return the bytes."""
        return [self.octets]

"""Random tensors in the formats of quantised checkpoints, and numpy decoders of them.

They are written from the formats' definitions. GGUF's blocks are decoded by the ``gguf`` package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from libinfinicore_infer import DataType, TensorLayout

Array = npt.NDArray[Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of eight that each nibble of a word holds


@dataclass
class Coded:
    """One tensor: what ``Qwen3Tensor`` says of it, and its values."""

    values: npt.NDArray[np.float32]  # [rows, cols]
    data: Array
    dtype: DataType
    scales: Array | None = None
    zeros: Array | None = None
    groups: Array | None = None
    fields: dict[str, int] = field(default_factory=dict)


def _float32(array: Array) -> npt.NDArray[np.float32]:
    if array.dtype == np.uint16:  # bfloat16
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


LARGEST = 0.15  # weight, about: with larger ones a random model's attention sees one token


def _scales(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, largest_code: float
) -> tuple[Array, int]:
    values = (rng.uniform(0.1, 1.0, shape) * LARGEST / largest_code).astype(np.float32)
    if dtype == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16), DataType.BF16
    return values.astype(dtype), DataType.F16 if dtype == "float16" else DataType.F32


# ---------------------------------------------------------------- GGUF

# Where the f16 scales and minima of a block are, and by how much one is multiplied at most.
HALVES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q4_0": ((0, 8),),
    "Q4_1": ((0, 15), (2, 1)),
    "Q5_0": ((0, 16),),
    "Q5_1": ((0, 31), (2, 1)),
    "Q8_0": ((0, 128),),
    "Q2_K": ((80, 15 * 3), (82, 15)),
    "Q3_K": ((108, 32 * 4),),
    "Q4_K": ((0, 63 * 15), (2, 63)),
    "Q5_K": ((0, 63 * 31), (2, 63)),
    "Q6_K": ((208, 128 * 32),),
    "IQ4_NL": ((0, 127),),
    "IQ4_XS": ((0, 32 * 127),),
}


def gguf_tensor(rng: np.random.Generator, rows: int, cols: int, name: str) -> Coded:
    """Random blocks of a type."""
    kind = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, cols // elements, size), np.uint8)
    for offset, factor in HALVES[name]:
        largest = LARGEST / factor
        halves = rng.uniform(-largest, largest, blocks.shape[:2]).astype(np.float16)
        blocks[:, :, offset : offset + 2] = halves.view(np.uint8).reshape(*blocks.shape[:2], 2)
    data = blocks.reshape(rows, -1)
    values = gguf.quants.dequantize(data, kind).astype(np.float32)
    return Coded(values, data, DataType[f"GGUF_{name}"])


# ---------------------------------------------------------------- FP8


def e4m3(codes: Array) -> npt.NDArray[np.float32]:
    """The values of e4m3fn codes."""
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, mantissa = (codes >> 3 & 15).astype(int), (codes & 7).astype(float)
    magnitude = np.where(
        exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * np.exp2(exponent - 10.0)
    )
    return (sign * magnitude).astype(np.float32)


def fp8_tensor(
    rng: np.random.Generator, rows: int, cols: int, block: tuple[int, int], dtype: str
) -> Coded:
    """Random codes; ``block``: rows and columns of a scale, 0 for all."""
    codes = rng.integers(0, 256, (rows, cols), np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x80
    height, width = block[0] or rows, block[1] or cols
    scales, scale_dtype = _scales(rng, (-(-rows // height), -(-cols // width)), dtype, 448)
    wide = _float32(scales).repeat(height, 0)[:rows].repeat(width, 1)[:, :cols]
    fields = {"scale_dtype": scale_dtype, "block_rows": block[0], "block_cols": block[1]}
    return Coded(e4m3(codes) * wide, codes, DataType.F8_E4M3, scales, fields=fields)


# ---------------------------------------------------------------- integer codes


def _words(codes: Array, bits: int, axis: int) -> Array:
    """Codes along an axis as little-endian words, the first code lowest."""
    codes = np.moveaxis(codes, axis, -1)
    per = 32 // bits
    padded = np.zeros((*codes.shape[:-1], -(-codes.shape[-1] // per) * per), np.uint32)
    padded[..., : codes.shape[-1]] = codes
    grouped = padded.reshape(*padded.shape[:-1], -1, per) << (np.arange(per) * bits).astype(
        np.uint32
    )
    words = np.bitwise_or.reduce(grouped, axis=-1)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis)).view(np.int32)


def int8_tensor(rng: np.random.Generator, rows: int, cols: int, group: int, dtype: str) -> Coded:
    """Signed bytes [rows, cols] with a scale per row and group (0: per row)."""
    codes = rng.integers(-128, 128, (rows, cols)).astype(np.int8)
    width = group or cols
    scales, scale_dtype = _scales(rng, (rows, -(-cols // width)), dtype, 128)
    values = codes.astype(np.float32) * _float32(scales).repeat(width, 1)[:, :cols]
    fields = {"scale_dtype": scale_dtype, "block_rows": 1, "block_cols": group}
    return Coded(values, codes, DataType.I8, scales, fields=fields)


def gptq_tensor(
    rng: np.random.Generator,
    rows: int,
    cols: int,
    bits: int = 4,
    group: int = 32,
    version: int = 1,
    act_order: str = "",
) -> Coded:
    """GPTQ: qweight [K / p, N], qzeros [G, N / p] (version 1: less one), scales [G, N].

    ``act_order``: how columns are in groups: each tensor's "own" way, a "shared" one of all tensors
    with as many columns, or "uneven", where groups have any number of columns.
    """
    width = group or cols
    ngroups = -(-cols // width)
    codes = rng.integers(0, 1 << bits, (cols, rows), np.uint32)
    zeros = rng.integers(1, 1 << bits, (ngroups, rows), np.uint32)
    scales, scale_dtype = _scales(rng, (ngroups, rows), "float16", 1 << bits)
    order = np.arange(cols) // width
    if act_order == "uneven":
        order = rng.integers(0, ngroups, cols)
    elif act_order:
        (np.random.default_rng(cols) if act_order == "shared" else rng).shuffle(order)
    values = (codes.astype(np.int64) - zeros[order]).astype(np.float32) * _float32(scales)[order]
    fields = {
        "layout": TensorLayout.GPTQ,
        "scale_dtype": scale_dtype,
        "zero_dtype": DataType.U4 if bits == 4 else DataType.U8,
        "zero_offset": 1 if version == 1 else 0,
        "block_rows": 1,
        "block_cols": group,
    }
    stored = _words(zeros - (1 if version == 1 else 0), bits, 1)
    dtype = DataType.U4 if bits == 4 else DataType.U8
    groups = order.astype(np.int32) if act_order else None
    return Coded(values.T.copy(), _words(codes, bits, 0), dtype, scales, stored, groups, fields)


def awq_tensor(rng: np.random.Generator, rows: int, cols: int, group: int = 64) -> Coded:
    """AutoAWQ's gemm: qweight [K, N / 8], qzeros [G, N / 8], scales [G, N]."""
    codes = rng.integers(0, 16, (cols, rows), np.uint32)
    zeros = rng.integers(0, 16, (cols // group, rows), np.uint32)
    scales, scale_dtype = _scales(rng, (cols // group, rows), "float16", 16)
    order = np.arange(cols) // group
    values = (codes.astype(np.int64) - zeros[order]).astype(np.float32) * _float32(scales)[order]

    def words(matrix: Array) -> Array:
        return _words(
            matrix.reshape(len(matrix), -1, 8)[:, :, AWQ_ORDER].reshape(matrix.shape), 4, 1
        )

    fields = {
        "layout": TensorLayout.AWQ,
        "scale_dtype": scale_dtype,
        "zero_dtype": DataType.U4,
        "block_rows": 1,
        "block_cols": group,
    }
    return Coded(values.T.copy(), words(codes), DataType.U4, scales, words(zeros), fields=fields)


def packed_tensor(
    rng: np.random.Generator,
    rows: int,
    cols: int,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
) -> Coded:
    """compressed-tensors' pack-quantized: weight_packed [N, K b / 32], scales [N, K / g]."""
    width = group or cols
    codes = rng.integers(0, 1 << bits, (rows, cols), np.uint32)
    scales, scale_dtype = _scales(rng, (rows, -(-cols // width)), "bf16", 1 << bits)
    half = 1 << (bits - 1)
    zeros = np.full(scales.shape, half, np.uint32)
    if not symmetric:
        zeros = rng.integers(0, 1 << bits, scales.shape, np.uint32)
    wide = zeros.repeat(width, 1)[:, :cols].astype(np.int64)
    values = (codes - wide).astype(np.float32) * _float32(scales).repeat(width, 1)[:, :cols]
    code_dtype = DataType.U4 if bits == 4 else DataType.U8
    fields = {
        "layout": TensorLayout.PACK_QUANTIZED,
        "scale_dtype": scale_dtype,
        "zero_dtype": 0 if symmetric else code_dtype,
        "zero_offset": half if symmetric else 0,
        "block_rows": 1,
        "block_cols": group,
    }
    stored = None if symmetric else _words(zeros, bits, 0)
    return Coded(values, _words(codes, bits, 1), code_dtype, scales, stored, fields=fields)

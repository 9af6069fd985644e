"""Matrices of GPTQ and AutoAWQ checkpoints: codes in 32-bit words, transposed."""

from __future__ import annotations

from typing import Any

import numpy as np
from libinfinicore_infer import DataType, TensorLayout
from numpy.typing import NDArray

from infinicore_infer.checkpoint.coded import CodedMatrix, unpacked
from infinicore_infer.checkpoint.parts import Parts
from infinicore_infer.checkpoint.tensor import Tensor

__all__ = ["read_awq", "read_gptq"]

_WORDS = ("I32", "U32")


def _group_size(parts: Parts, config: Any) -> int:
    """Return how many columns share a scale; 0 for all."""
    size = config.get("group_size", config.get("q_group_size"))
    if size == -1:
        return 0
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < 2**31:
        parts.problem(f"'group_size' is {size!r}, not a whole number above 0 or -1")
        return 0
    return size


def _matrix(
    parts: Parts, module: str, bits: int, group: int, layout: TensorLayout
) -> tuple[Tensor, Tensor, Tensor, tuple[int, int], int] | None:
    """Return codes, zero points, scales, shape and group size of a module, checked."""
    codes = parts.take(module, "qweight", _WORDS)
    if codes is None:
        return None
    per_word = 32 // bits
    if layout == TensorLayout.GPTQ:
        cols, rows = codes.shape[0] * per_word, codes.shape[1]
    else:
        cols, rows = codes.shape[0], codes.shape[1] * per_word
    group = group or cols
    groups = -(-cols // group)
    zeros = parts.take(module, "qzeros", _WORDS, (groups, -(-rows // per_word)))
    scales = parts.take_scales(module, "scales", [(groups, rows)])
    if zeros is None or scales is None:
        return None
    return codes, zeros, scales, (rows, cols), group


# ------------------------------------------------------------------ GPTQ


def read_gptq(parts: Parts) -> None:
    """Put together the matrices of a checkpoint of quant_method "gptq"."""
    config = parts.config
    bits = parts.option("bits", (4, 8))
    form = parts.option("checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    parts.option("pack_dtype", ("int32",), "int32")
    group = _group_size(parts, config)
    dynamic = config.get("dynamic")
    for pattern in dynamic if isinstance(dynamic, dict) else ():
        # "-:" leaves modules out, which the tensors show; others change their bits or groups.
        if isinstance(pattern, str) and not pattern.startswith("-:"):
            parts.problem(f"'dynamic' has {pattern!r}: settings of single modules are not read")
    for module in parts.modules("qweight"):
        found = _matrix(parts, module, bits, group, TensorLayout.GPTQ)
        if found is None:
            continue
        codes, zeros, scales, shape, size = found
        offset = 1 if form == "gptq" else 0
        same = _constant_zero(zeros, bits, shape[0])
        if form == "gptq" and _is_ambiguous(zeros, bits, shape[0]):
            parts.problem(
                f"{module}.qzeros has zero points that the format 'gptq' cannot hold (stored less "
                "one, 0 runs into its neighbours): convert the checkpoint to 'gptq_v2'"
            )
            continue
        parts.add(
            CodedMatrix(
                f"{module}.weight",
                f"GPTQ int{bits}",
                shape,
                codes.file,
                DataType.U4 if bits == 4 else DataType.U8,
                TensorLayout.GPTQ,
                codes,
                scales,
                zeros if same is None else None,
                offset if same is None else offset + same,
                (1, size),
                _groups(parts, module, shape[1], size),
            )
        )


def _constant_zero(zeros: Tensor, bits: int, rows: int) -> int | None:
    """Return the stored zero point if all are the same, as in symmetric matrices.

    Saying it once saves a zero point for every scale.
    """
    stored = unpacked(zeros.data, bits)[:, :rows]
    first = int(stored[0, 0]) if stored.size else 0
    return first if (stored == first).all() else None


def _is_ambiguous(zeros: Tensor, bits: int, rows: int) -> bool:
    return bool((unpacked(zeros.data, bits)[:, :rows] == 2**bits - 1).any())


def _groups(parts: Parts, module: str, cols: int, size: int) -> NDArray[np.int32] | None:
    """Return the group of every column, or ``None`` if they are in order."""
    if f"{module}.g_idx" not in parts.tensors:
        if parts.config.get("desc_act"):
            parts.problem(f"{module}.g_idx is missing although 'desc_act' is true")
        return None
    index = parts.take(module, "g_idx", ("I32",), (cols,))
    if index is None:
        return None
    groups = index.data.astype(np.int32)
    count = -(-cols // size)
    if groups.min(initial=0) < 0 or groups.max(initial=0) >= count:
        parts.problem(f"{module}.g_idx has groups outside 0 to {count - 1}")
        return None
    return None if (groups == np.arange(cols) // size).all() else groups


# ------------------------------------------------------------------ AWQ


def read_awq(parts: Parts) -> None:
    """Put together the matrices of a checkpoint of quant_method "awq", version "gemm"."""
    bits = parts.option("bits" if "bits" in parts.config else "w_bit", (4,))
    version = parts.config.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        parts.problem(f"'version' is {version!r}, which is not supported (known: 'gemm')")
    # False where all are the middle; they are stored all the same.
    parts.option("zero_point", (True, False), True)
    group = _group_size(parts, parts.config)
    for module in parts.modules("qweight"):
        found = _matrix(parts, module, bits, group, TensorLayout.AWQ)
        if found is None:
            continue
        codes, zeros, scales, shape, size = found
        same = _constant_zero(zeros, bits, shape[0])
        parts.add(
            CodedMatrix(
                f"{module}.weight",
                "AWQ int4",
                shape,
                codes.file,
                DataType.U4,
                TensorLayout.AWQ,
                codes,
                scales,
                zeros if same is None else None,
                same or 0,
                (1, size),
            )
        )

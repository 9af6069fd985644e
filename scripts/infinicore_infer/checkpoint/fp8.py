"""Matrices in FP8 (e4m3) with scales for blocks, rows or the whole matrix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from libinfinicore_infer import DataType, TensorLayout

from infinicore_infer.checkpoint.coded import CodedMatrix, scale_values
from infinicore_infer.checkpoint.parts import Parts
from infinicore_infer.checkpoint.tensor import Tensor

_ACTIVATIONS = ("input_scale", "activation_scale", "input_scale_ub")


def read_fp8(parts: Parts) -> None:
    """Put together the matrices of a checkpoint of quant_method "fp8".

    A weight is in FP8 where it has ``weight_scale_inv`` (a multiplier, despite its name) or
    ``weight_scale``, whatever ``modules_to_not_convert`` says. In gptqmodel's own files the scales
    are divisors, which ``weight_scale_semantics`` says.
    """
    parts.option("weight_scale_semantics", (None, "inverse"), None)
    parts.option("fmt", ("e4m3",), "e4m3")
    parts.option("scale_fmt", (None, "ue8m0", "float"), None)
    size = parts.config.get("weight_block_size")
    if size is not None and not _is_block(size):
        parts.problem(f"'weight_block_size' is {size!r}, not two whole numbers above 0")
        size = None
    for part in ("weight_scale_inv", "weight_scale"):
        for module in parts.modules(part):
            add_fp8(parts, module, part, size)
    for module in parts.modules("weight"):
        # An FP8 tensor without scales is no number that the model was trained to.
        if parts.tensors[f"{module}.weight"].dtype.startswith("F8_") and not any(
            f"{module}.{part}" in parts.tensors for part in ("weight_scale_inv", "weight_scale")
        ):
            parts.problem(f"{module}.weight is in FP8 but has no weight_scale_inv")


def _is_block(size: object) -> bool:
    if not isinstance(size, list) or len(size) != 2:
        return False
    return all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n < 2**31 for n in size)


def add_fp8(parts: Parts, module: str, part: str, size: list[int] | None) -> None:
    """Add one matrix.

    Args:
        parts: The checkpoint.
        module: Its module.
        part: Name of its scales.
        size: Rows and columns of a block; ``None``: a scale for each row, or one for all.
    """
    add_plain(parts, module, part, "F8_E4M3", size)


def add_plain(
    parts: Parts, module: str, part: str, dtype: str, size: list[int] | None, group: int = 0
) -> None:
    """Add a matrix whose codes lie as the elements of an ordinary one do.

    Args:
        parts: The checkpoint.
        module: Its module.
        part: Name of its scales.
        dtype: Type of a code: F8_E4M3 or I8.
        size: As :func:`add_fp8`.
        group: Columns that share a scale; 0: all, or ``size`` says.
    """
    parts.drop(module, *_ACTIVATIONS)
    codes = parts.take(module, "weight", (dtype,))
    if codes is None:
        return
    rows, cols = codes.shape
    found = parts.tensors[f"{module}.{part}"]
    block = _block_of(found, (rows, cols), size, group)
    groups = (-(-rows // block[0]), -(-cols // block[1]))
    shapes: list[tuple[int, ...]] = [groups]
    shapes += [(groups[0],)] if groups[1] == 1 else []
    shapes += [()] if groups == (1, 1) else []
    scales = parts.take_scales(module, part, shapes)
    if scales is None:
        return
    if parts.config.get("weight_scale_semantics") == "inverse":
        scales = _reciprocal(scales)
    parts.add(
        CodedMatrix(
            f"{module}.weight",
            "FP8" if dtype == "F8_E4M3" else "int8",
            codes.shape,
            codes.file,
            DataType.F8_E4M3 if dtype == "F8_E4M3" else DataType.I8,
            TensorLayout.PLAIN,
            codes,
            scales,
            block=block,
        )
    )


def _reciprocal(scales: Tensor) -> Tensor:
    with np.errstate(divide="ignore"):  # the library refuses what is infinite, and says where
        values = 1 / scale_values(scales)
    return replace(scales, dtype="F32", data=values)


def _block_of(
    scales: Tensor, shape: tuple[int, int], size: list[int] | None, group: int
) -> tuple[int, int]:
    rows, cols = shape
    if size is not None:
        return min(size[0], rows), min(size[1], cols)
    if group:
        return 1, min(group, cols)
    return (rows, cols) if scales.data.size == 1 else (1, cols)

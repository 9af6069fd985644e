"""Quantised copies of checkpoints, packed by the formats' rules or by their own tools.

Each function quantises a matrix [rows, columns] to whole numbers, packs these as the format says,
and returns the parts beside the values that the whole numbers stand for. So what is expected never
comes from reading the parts back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reference.random_checkpoint import load_config
from safetensors.torch import load_file, save_file

Array = NDArray[np.float32]
Parts = dict[str, torch.Tensor]
Quantise = Callable[[Array], tuple[Parts, Array]]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def quantised_copy(
    source: Path,
    folder: Path,
    quantise: Quantise,
    config: dict[str, Any],
    modules: tuple[str, ...] = PROJECTIONS,
) -> dict[str, Array]:
    """Writes a copy of a checkpoint with matrices quantised.

    Args:
        source: A checkpoint in one safetensors file.
        folder: Where to write; made here.
        quantise: Quantises a matrix; the parts' names follow the module's.
        config: The ``quantization_config``.
        modules: Last names of the modules to quantise.

    Returns:
        All weights as what is written stands for them, under their ordinary names.
    """
    shutil.copytree(source, folder)
    tensors: Parts = {}
    values: dict[str, Array] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in modules:
            parts, values[name] = quantise(tensor.float().numpy())
            tensors |= {f"{module}.{part}": data for part, data in parts.items()}
        else:
            tensors[name] = tensor
            values[name] = tensor.float().numpy()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {**load_config(source), "quantization_config": config}
    (folder / "config.json").write_text(json.dumps(settings))
    return values


def _words(codes: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Packs codes along the first axis into words, the first code in the lowest bits."""
    per = 32 // bits
    groups = codes.astype(np.uint64).reshape(-1, per, *codes.shape[1:])
    words = np.zeros((len(groups), *codes.shape[1:]), np.uint64)
    for j in range(per):
        words |= groups[:, j] << np.uint64(bits * j)
    return words.astype(np.uint32).view(np.int32)


def _padded(array: NDArray[Any], multiple: int, axis: int) -> NDArray[Any]:
    width = [(0, 0)] * array.ndim
    width[axis] = (0, -array.shape[axis] % multiple)
    return np.pad(array, width)


def _affine(
    matrix: Array, groups: NDArray[np.int64], bits: int, symmetric: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16]]:
    """Returns codes [rows, columns], zero points and half-precision scales [rows, groups]."""
    rows, count, top = len(matrix), int(groups.max()) + 1, 2**bits - 1
    scales, zeros = np.zeros((rows, count), np.float16), np.zeros((rows, count), np.int64)
    codes = np.zeros(matrix.shape, np.int64)
    for g in range(count):
        part = matrix[:, groups == g]
        if symmetric:
            scale = (2 * np.abs(part).max(1) / top).astype(np.float16)
            zero = np.full(rows, 2 ** (bits - 1))
        else:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale = ((high - low) / top).astype(np.float16)
            # Stored less one, 0 has no place in the original format.
            zero = np.clip(np.rint(-low / scale.astype(np.float32)), 1, top).astype(np.int64)
        code = np.rint(part / scale.astype(np.float32)[:, None]) + zero[:, None]
        codes[:, groups == g] = np.clip(code, 0, top)
        scales[:, g], zeros[:, g] = scale, zero
    return codes, zeros, scales


def _values(codes: Any, zeros: Any, scales: Any, groups: NDArray[np.int64]) -> Array:
    steps = codes.astype(np.float32) - zeros[:, groups].astype(np.float32)
    return np.asarray(scales.astype(np.float32)[:, groups] * steps, np.float32)


def gptq(
    bits: int = 4,
    group: int = 32,
    *,
    symmetric: bool = True,
    act_order: bool = False,
    seeds: Iterator[int] | None = None,
    version: int = 1,
) -> tuple[Quantise, dict[str, Any]]:
    """GPTQ as gptqmodel packs it.

    Args:
        bits: Bits of a code.
        group: Columns that share a scale; -1: a whole row.
        symmetric: Whether all zero points are the middle.
        act_order: Whether columns are in groups in an order of each matrix's own.
        seeds: What the order of each matrix is made from; ``None``: all differ.
        version: Of the format.
    """
    own = np.random.default_rng(group + bits)

    def quantise(matrix: Array) -> tuple[Parts, Array]:
        cols = matrix.shape[1]
        size = cols if group == -1 else group
        groups = np.arange(cols) // size
        if act_order:
            rng = own if seeds is None else np.random.default_rng(next(seeds))
            groups = rng.permutation(groups)
        codes, zeros, scales = _affine(matrix, groups, bits, symmetric)
        stored = zeros - 1 if version == 1 else zeros
        parts = {
            "qweight": _words(codes.T, bits),
            "qzeros": _words_along(stored.T, bits),
            "scales": scales.T,
            "g_idx": groups.astype(np.int32),
        }
        return _tensors(parts), _values(codes, zeros, scales, groups)

    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": act_order,
        "sym": symmetric,
        "lm_head": False,
        "pack_dtype": "int32",
        "meta": {"quantizer": ["gptqmodel:7.7.0"]},
    }
    if version == 2:
        config["checkpoint_format"] = "gptq_v2"
    return quantise, config


def _words_along(codes: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Packs codes along the last axis."""
    return _words(_padded(codes, 32 // bits, -1).T, bits).T


def _tensors(parts: dict[str, NDArray[Any]]) -> Parts:
    return {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}


def awq(group: int = 32, *, symmetric: bool = False) -> tuple[Quantise, dict[str, Any]]:
    """AWQ as AutoAWQ's version "gemm" packs it; ``symmetric`` as gptqmodel says it."""

    def pack(codes: NDArray[np.int64]) -> NDArray[np.int32]:
        # AutoAWQ: order_map = [0, 2, 4, 6, 1, 3, 5, 7]; nibble i of a word is column order_map[i].
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        ordered = codes.reshape(len(codes), -1, 8)[:, :, order].reshape(len(codes), -1)
        return _words_along(ordered, 4)

    def quantise(matrix: Array) -> tuple[Parts, Array]:
        groups = np.arange(matrix.shape[1]) // group
        codes, zeros, scales = _affine(matrix, groups, 4, symmetric)
        parts = {"qweight": pack(codes.T), "qzeros": pack(zeros.T), "scales": scales.T}
        return _tensors(parts), _values(codes, zeros, scales, groups)

    return quantise, {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "version": "gemm",
        "zero_point": not symmetric,
        "modules_to_not_convert": None,
    }


def fp8(
    block: tuple[int, int] | None = (128, 128),
    scale_dtype: torch.dtype = torch.bfloat16,
    name: str = "weight_scale_inv",
    *,
    divisors: bool = False,
) -> tuple[Quantise, dict[str, Any]]:
    """FP8 as in Qwen's releases.

    Args:
        block: Rows and columns that share a scale; ``None``: one scale for the matrix.
        scale_dtype: What scales are stored as.
        name: What they are called.
        divisors: As in gptqmodel's files; of powers of two, whose reciprocals are exact.
    """

    def quantise(matrix: Array) -> tuple[Parts, Array]:
        rows, cols = matrix.shape
        high, wide = block or (rows, cols)
        high, wide = min(high, rows), min(wide, cols) if wide else cols
        grid = (-(-rows // high), -(-cols // wide))
        scales = torch.zeros(grid)
        for i in range(grid[0]):
            for j in range(grid[1]):
                part = matrix[i * high : (i + 1) * high, j * wide : (j + 1) * wide]
                scales[i, j] = float(np.abs(part).max()) / 448
        scales = scales.log2().ceil().exp2() if divisors else scales
        scales = scales.to(scale_dtype)
        spread = scales.float().repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)
        spread = spread[:, :cols]
        codes = (torch.from_numpy(matrix) / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored = scales if block else scales.reshape(1)
        stored = 1 / stored if divisors else stored
        return {"weight": codes, name: stored}, (codes.float() * spread).numpy()

    config: dict[str, Any] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "modules_to_not_convert": ["lm_head"],
    }
    if block is not None:
        config["weight_block_size"] = list(block)
    if divisors:
        config["weight_scale_semantics"] = "inverse"
    return quantise, config


def compressed(
    form: str,
    *,
    bits: int = 4,
    group: int | None = 32,
    symmetric: bool = True,
    kind: str = "int",
    act_order: bool = False,
) -> tuple[Quantise, dict[str, Any]]:
    """compressed-tensors, packed by its own package.

    Args:
        form: ``"pack-quantized"``, ``"int-quantized"`` or ``"float-quantized"``.
        bits: Bits of a code.
        group: Columns that share a scale; ``None``: all; -128: blocks of 128 x 128.
        symmetric: Whether there are no zero points.
        kind: ``"int"`` or ``"float"``.
        act_order: actorder "group", which the package does not write any more: the order and the
            words are made here, from whole numbers that the package rounds.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    strategy = "channel" if group is None else "group" if group > 0 else "block"
    settings: dict[str, Any] = {
        "num_bits": bits,
        "type": kind,
        "strategy": strategy,
        "symmetric": symmetric,
        "dynamic": False,
    }
    if strategy == "group":
        settings["group_size"] = group
    if strategy == "block":
        settings["block_structure"] = [128, 128]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**settings))
    compressor = BaseCompressor.get_value_from_registry(form)

    rng = np.random.default_rng(bits)

    def quantise(matrix: Array) -> tuple[Parts, Array]:
        if not act_order:
            parts, values, _ = in_order(matrix)
            return parts, values
        groups = rng.permutation(np.arange(matrix.shape[1]) // (group or 1))
        order = np.argsort(groups, kind="stable")
        back = np.argsort(order)
        parts, values, codes = in_order(matrix[:, order])
        words = _words_along(codes[:, back].astype(np.int64) + 2 ** (bits - 1), bits)
        parts |= _tensors({"weight_packed": words, "weight_g_idx": groups.astype(np.int32)})
        return parts, np.ascontiguousarray(values[:, back])

    def in_order(matrix: Array) -> tuple[Parts, Array, Array]:
        weight = torch.from_numpy(matrix)
        rows, cols = weight.shape
        high, wide = (128, 128) if strategy == "block" else (1, group or cols)
        padded = torch.nn.functional.pad(weight, (0, -cols % wide, 0, -rows % high))
        blocks = padded.reshape(-(-rows // high), high, -(-cols // wide), wide)
        low, top = blocks.amin((1, 3)), blocks.amax((1, 3))
        scale, zero = calculate_qparams(low, top, scheme.weights)
        scale, parts = scale.to(torch.bfloat16).float(), {}
        given = {"weight": weight, "weight_scale": scale.to(torch.bfloat16)}
        if not symmetric:
            given["weight_zero_point"] = zero.to(torch.int8)
        for name, part in compressor.compress(given, scheme).items():
            parts[name] = part.contiguous()
        spread = scale.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :cols]
        offset = zero.float().repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)
        codes = quantize(
            x=weight,
            scale=scale.to(torch.bfloat16),
            zero_point=None if symmetric else zero.to(torch.int8),
            args=scheme.weights,
        ).float()
        values = (codes - (0 if symmetric else offset[:, :cols])) * spread
        return parts, values.numpy(), codes.numpy()

    if act_order:
        settings["actorder"] = "group"
    return quantise, {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": settings, "input_activations": None}
        },
    }

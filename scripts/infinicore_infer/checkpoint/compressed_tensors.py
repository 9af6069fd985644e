"""Matrices of checkpoints of quant_method "compressed-tensors", as llm-compressor writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from libinfinicore_infer import DataType, TensorLayout
from numpy.typing import NDArray

from infinicore_infer.checkpoint.coded import CodedMatrix
from infinicore_infer.checkpoint.fp8 import add_plain
from infinicore_infer.checkpoint.parts import Parts
from infinicore_infer.checkpoint.tensor import Tensor

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense")
_STRATEGIES = ("tensor", "channel", "group", "block")
_EMBEDDINGS = ("embed_tokens",)


@dataclass(frozen=True, slots=True)
class _Group:
    """One entry of ``config_groups``."""

    targets: tuple[str, ...]
    form: str
    kind: str
    bits: int
    group_size: int
    block: list[int] | None
    symmetric: bool


def _is_whole(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


def read_compressed_tensors(parts: Parts) -> None:
    """Put together the matrices of a checkpoint of quant_method "compressed-tensors"."""
    config = parts.config
    for key in ("sparsity_config", "transform_config"):
        settings = config.get(key)
        if isinstance(settings, Mapping) and settings.get("format", settings) not in ("dense", {}):
            parts.problem(f"{key!r} is set, which is not supported")
    given = config.get("config_groups")
    if not isinstance(given, Mapping) or not given:
        parts.problem("'config_groups' is missing")
        return
    groups = [group for name, entry in given.items() if (group := _group(parts, name, entry))]
    if len(groups) < len(given):
        return
    for part in ("weight_packed", "weight_scale"):
        for module in parts.modules(part):
            if part == "weight_scale" and f"{module}.weight_packed" in parts.tensors:
                continue
            parts.drop(module, "input_scale", "input_zero_point", "input_global_scale")
            group = _group_of(module, groups)
            if group is None:
                parts.problem(f"no group of 'config_groups' has {module} among its targets")
            elif part == "weight_packed":
                _add_packed(parts, module, group)
            else:
                _add_plain(parts, module, group)


def _group(parts: Parts, name: str, entry: Any) -> _Group | None:
    """Read an entry of ``config_groups``; ``None``: it has problems, which are remembered."""
    where = f"{name!r}"
    weights = entry.get("weights") if isinstance(entry, Mapping) else None
    if not isinstance(weights, Mapping):
        parts.problem(f"{where} has no 'weights'")
        return None
    form: Any = entry.get("format") or parts.config.get("format")
    kind: Any = weights.get("type", "int")
    bits: Any = weights.get("num_bits")
    strategy: Any = weights.get("strategy")
    size: Any = weights.get("group_size")
    if strategy is None:
        strategy = "group" if _is_whole(size) else "channel" if size == -1 else "tensor"
    targets = entry.get("targets")
    problems = []
    if form not in _FORMATS:
        problems.append(f"format {form!r} is not supported (known: {', '.join(_FORMATS)})")
    elif (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)):
        problems.append(f"weights of {bits!r} bits of type {kind!r} are not supported")
    if strategy not in _STRATEGIES:
        problems.append(f"strategy {strategy!r} is not supported (known: {', '.join(_STRATEGIES)})")
    if strategy == "group" and not _is_whole(size):
        problems.append(f"'group_size' is {size!r}, not a whole number above 0")
    block = weights.get("block_structure")
    if strategy == "block":
        if not isinstance(block, list) or len(block) != 2 or not all(map(_is_whole, block)):
            problems.append(f"'block_structure' is {block!r}, not two whole numbers above 0")
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        problems.append("'targets' is not a list of names")
    if problems:
        for problem in problems:
            parts.problem(f"{where}: {problem}")
        return None
    return _Group(
        tuple(targets),
        form,
        kind,
        bits,
        size if strategy == "group" else 0,
        block if strategy == "block" else None,
        weights.get("symmetric", True) is not False,
    )


def _group_of(module: str, groups: list[_Group]) -> _Group | None:
    """Return the group that a module belongs to: by its name first, then by its class."""
    for group in groups:
        for target in group.targets:
            if target.startswith("re:"):
                try:
                    if re.match(target[3:], module):
                        return group
                except re.error:
                    continue
            elif module == target or module.endswith(f".{target}"):
                return group
    kind = "Embedding" if module.endswith(_EMBEDDINGS) else "Linear"
    return next((group for group in groups if kind in group.targets), None)


def _add_plain(parts: Parts, module: str, group: _Group) -> None:
    dtype = "F8_E4M3" if group.kind == "float" else "I8"
    add_plain(parts, module, "weight_scale", dtype, group.block, group.group_size)
    if group.symmetric:
        # Some writers store the zeros that symmetric codes have.
        parts.drop(module, "weight_zero_point")
    else:
        parts.problem(f"{module}: zero points of plain codes are not supported")


def _add_packed(parts: Parts, module: str, group: _Group) -> None:
    shape = parts.take(module, "weight_shape", ("I64", "I32"), (2,))
    codes = parts.take(module, "weight_packed", ("I32",))
    if shape is None or codes is None:
        return
    rows, cols = (int(n) for n in shape.data)
    if group.kind != "int" or codes.shape != (rows, -(-cols * group.bits // 32)):
        parts.problem(
            f"{module}.weight_packed is {list(codes.shape)}, not {group.bits} bits of "
            f"{group.kind} for a matrix {[rows, cols]}"
        )
        return
    size = group.group_size or cols
    count = -(-cols // size)
    scales = parts.take_scales(module, "weight_scale", [(rows, count)])
    index = _order(parts, module, cols, count, size)
    zeros: Tensor | None = None
    if group.symmetric:
        parts.drop(module, "weight_zero_point")
    else:
        shape_of_zeros = (-(-rows * group.bits // 32), count)
        zeros = parts.take(module, "weight_zero_point", ("I32",), shape_of_zeros)
        if zeros is None:
            return
    if scales is None:
        return
    parts.add(
        CodedMatrix(
            f"{module}.weight",
            f"int{group.bits} (pack-quantized)",
            (rows, cols),
            codes.file,
            DataType.U4 if group.bits == 4 else DataType.U8,
            TensorLayout.PACK_QUANTIZED,
            codes,
            scales,
            zeros,
            2 ** (group.bits - 1) if group.symmetric else 0,
            (1, size),
            index,
        )
    )


def _order(parts: Parts, module: str, cols: int, count: int, size: int) -> NDArray[np.int32] | None:
    """Return the group of every column (actorder "group"), or ``None`` if they are in order."""
    if f"{module}.weight_g_idx" not in parts.tensors:
        return None
    index = parts.take(module, "weight_g_idx", ("I32", "I64"), (cols,))
    if index is None:
        return None
    if index.data.size and (index.data == -1).all():
        return None  # never set: the order was not changed
    if index.data.min(initial=0) < 0 or index.data.max(initial=0) >= count:
        parts.problem(f"{module}.weight_g_idx has groups outside 0 to {count - 1}")
        return None
    groups = index.data.astype(np.int32)
    return None if (groups == np.arange(cols) // size).all() else groups

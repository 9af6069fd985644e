"""Finds the quantised matrices of a safetensors checkpoint.

``quantization_config`` of config.json says how; which matrices are quantised is judged by the
tensors that are there, because the lists of exceptions differ from tool to tool. A method, layout
or width that is not known is refused by name before any weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from infinicore_infer.checkpoint.compressed_tensors import read_compressed_tensors
from infinicore_infer.checkpoint.errors import QuantizationError
from infinicore_infer.checkpoint.fp8 import read_fp8
from infinicore_infer.checkpoint.packed_words import read_awq, read_gptq
from infinicore_infer.checkpoint.parts import Parts, some
from infinicore_infer.checkpoint.tensor import Tensor, Weight

_METHODS: dict[str, Callable[[Parts], None]] = {
    "fp8": read_fp8,
    "gptq": read_gptq,
    "awq": read_awq,
    "compressed-tensors": read_compressed_tensors,
}
# Parts that only quantised checkpoints have, by what their names end in.
_SIGNS = (
    "qweight",
    "qzeros",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight.absmax",
    "weight_global_scale",
    "scales",
)


def quantised_weights(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None, source: str
) -> dict[str, Weight]:
    """Return the weights of a checkpoint by name, with one matrix in place of its parts.

    Args:
        tensors: All tensors of the files.
        config: The ``quantization_config``; ``None``: there is none.
        source: Where that is, for messages.

    Raises:
        QuantizationError: The config asks for what is not supported, or parts are missing or do
            not fit each other; one message names them all.
    """
    if config is None:
        signs = [name for name in tensors if name.rpartition(".")[2] in _SIGNS]
        absmax = [name for name in tensors if name.endswith(".weight.absmax")]
        if signs or absmax:
            found = some(signs + [n for n in absmax if n not in signs])
            raise QuantizationError(
                f"{source}: the weights are quantised ({found}), but there is no "
                "'quantization_config' that says how"
            )
        return dict(tensors)
    method = config.get("quant_method")
    if method is None and "group_size" in config and "bits" in config and "mode" in config:
        method = "mlx"
    if not isinstance(method, str) or method not in _METHODS:
        raise QuantizationError(
            f"{source}: 'quantization_config' has quant_method {method!r}, which is not supported "
            f"(known: {', '.join(_METHODS)})"
        )
    parts = Parts(tensors, config, f"{source}: 'quantization_config'")
    _METHODS[method](parts)
    return parts.finish()

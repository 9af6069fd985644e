"""What the readers of quantised checkpoints share: the parts of matrices, and their problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infinicore_infer.checkpoint.errors import QuantizationError
from infinicore_infer.checkpoint.tensor import FLOATS, Tensor, Weight

# A broken checkpoint can be wrong in hundreds of tensors; a person reads the first few.
_MAX_LISTED = 12


def some(items: list[str]) -> str:
    """Return the first items of a list for a message, and how many there are."""
    listed = ", ".join(items[:_MAX_LISTED])
    return listed + (f", ... ({len(items)} in all)" if len(items) > _MAX_LISTED else "")


class Parts:
    """The tensors of a checkpoint while matrices are put together from them.

    Attributes:
        tensors: All tensors of the files.
        config: The ``quantization_config``.
        source: Where that is, for messages.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: str
    ) -> None:
        """Begin with nothing put together."""
        self.tensors = tensors
        self.config = config
        self.source = source
        self._weights: dict[str, Weight] = {}
        self._used: set[str] = set()
        self._problems: list[str] = []

    def modules(self, part: str) -> list[str]:
        """Return the names of the modules that have a part, such as ``"qweight"``."""
        ending = f".{part}"
        return [name.removesuffix(ending) for name in self.tensors if name.endswith(ending)]

    def option(self, key: str, allowed: tuple[Any, ...], default: Any = None) -> Any:
        """Return a value of the config that must be one of some; another one is a problem."""
        value = self.config.get(key, default)
        # 1 and true are equal in Python, and different words in JSON.
        if not any(value == known and type(value) is type(known) for known in allowed):
            known = ", ".join(repr(one) for one in allowed)
            self.problem(f"{key!r} is {_short(value)}, which is not supported (known: {known})")
            return allowed[0]
        return value

    def problem(self, text: str) -> None:
        """Remember something that is wrong; :meth:`finish` raises what there is."""
        self._problems.append(text)

    def take(
        self, module: str, part: str, dtypes: tuple[str, ...], shape: tuple[int, ...] | None = None
    ) -> Tensor | None:
        """Return a part of a module, or ``None`` and remember what is wrong with it.

        Args:
            module: Name of the module.
            part: Name of the part.
            dtypes: What it may be stored as.
            shape: Its shape, if that is known.
        """
        name = f"{module}.{part}"
        tensor = self.tensors.get(name)
        if tensor is None:
            self.problem(f"{name} is missing")
            return None
        self._used.add(name)
        if tensor.dtype not in dtypes:
            self.problem(f"{name} is {tensor.dtype}, not {' or '.join(dtypes)}")
            return None
        if shape is None and (len(tensor.shape) != 2 or 0 in tensor.shape):
            self.problem(f"{name} is {list(tensor.shape)}, not a matrix")
            return None
        if shape is not None and tensor.shape != shape:
            self.problem(f"{name} is {list(tensor.shape)}, not {list(shape)}")
            return None
        return tensor

    def take_scales(self, module: str, part: str, shapes: list[tuple[int, ...]]) -> Tensor | None:
        """Return scales of one of some shapes, or ``None`` and remember what is wrong."""
        found = self.tensors.get(f"{module}.{part}")
        fits = found is not None and found.shape in shapes
        shape = found.shape if found is not None and fits else shapes[0]
        return self.take(module, part, (*FLOATS, "F8_E8M0"), shape)

    def drop(self, module: str, *parts: str) -> None:
        """Leave out parts that are not weights, if they are there: scales of activations."""
        self._used.update(f"{module}.{part}" for part in parts)

    def add(self, weight: Weight) -> None:
        """Add a matrix that has been put together."""
        self._weights[weight.name] = weight

    def finish(self) -> dict[str, Weight]:
        """Return all weights: the matrices, and the tensors that are no part of one.

        Raises:
            QuantizationError: There are problems.
        """
        if self._problems:
            raise QuantizationError(f"{self.source}: " + "; ".join(_first(self._problems)))
        rest = {name: t for name, t in self.tensors.items() if name not in self._used}
        return {**rest, **self._weights}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first(problems: list[str]) -> list[str]:
    unique = list(dict.fromkeys(problems))
    more = [f"... ({len(unique)} problems in all)"] if len(unique) > _MAX_LISTED else []
    return unique[:_MAX_LISTED] + more

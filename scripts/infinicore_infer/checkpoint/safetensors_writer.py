"""Writes a model's safetensors files piece by piece: they are never in memory as a whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I32": 4, "I64": 8}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor that will be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * SIZES[self.dtype]


class SafetensorsWriter:
    """Writes tensors, whose list is known beforehand, into one file or numbered ones with an index.

    A context manager; the files are whole once it is left without an exception.
    """

    def __init__(self, folder: Path, entries: Iterable[Entry], shard_bytes: int) -> None:
        """Plan the files.

        Args:
            folder: Where to write.
            entries: The tensors, in the order in which they will come.
            shard_bytes: Most bytes of a file, unless a single tensor has more.
        """
        self._folder = folder
        self._shards: list[list[Entry]] = [[]]
        size = 0
        for entry in entries:
            if self._shards[-1] and size + entry.bytes > shard_bytes:
                self._shards.append([])
                size = 0
            self._shards[-1].append(entry)
            size += entry.bytes
        self._index = {
            entry.name: self._name(number)
            for number, shard in enumerate(self._shards)
            for entry in shard
        }
        self._number = -1
        self._file: BinaryIO | None = None

    def _name(self, number: int) -> str:
        count = len(self._shards)
        return (
            "model.safetensors"
            if count == 1
            else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        )

    def write(self, name: str, data: NDArray[Any]) -> None:
        """Write the next piece: of the tensor that is due, as many elements as are given."""
        if self._file is None or self._index[name] != self._name(self._number):
            self._next()
        assert self._file is not None
        self._file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)

    def _next(self) -> None:
        self._finish()
        self._number += 1
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for entry in self._shards[self._number]:
            begin, end = end, end + entry.bytes
            header[entry.name] = {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._file = open(self._folder / self._name(self._number), "wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def _finish(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self._finish()
        if kind is None and len(self._shards) > 1:
            total = sum(entry.bytes for shard in self._shards for entry in shard)
            index = {"metadata": {"total_size": total}, "weight_map": self._index}
            path = self._folder / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2) + "\n", "utf-8")

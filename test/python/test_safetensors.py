"""The safetensors reader: values against the safetensors package, and damaged files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.checkpoint.errors import SafetensorsError
from infinicore_infer.checkpoint.safetensors import SafetensorsFile, _no_duplicates
from safetensors.torch import save_file

Header = dict[str, Any]


def write(path: Path, header: Header | bytes, data: bytes, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_values_equal_those_written(tmp_path: Path) -> None:
    torch.manual_seed(3)
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8]
    tensors = {f"t.{i}": (torch.randn(3 + i, 5) * 50).to(dtype) for i, dtype in enumerate(dtypes)}
    tensors["empty"] = torch.zeros(0, 4)
    tensors["scalar"] = torch.tensor(2.5)
    # Odd sizes move later tensors to odd addresses.
    tensors["odd"] = torch.arange(7, dtype=torch.uint8)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert set(file) == set(tensors)
    for name, expected in tensors.items():
        tensor = file[name]
        assert tensor.shape == tuple(expected.shape)
        if expected.dtype == torch.bfloat16:
            assert tensor.dtype == "BF16" and tensor.data.dtype == np.uint16
            np.testing.assert_array_equal(tensor.to_float32(), expected.float().numpy())
        else:
            np.testing.assert_array_equal(tensor.data, expected.numpy())
    assert not file["t.0"].data.flags.writeable
    del tensor
    file.close()
    file.close()


def test_views_are_not_copies_and_survive_close(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.arange(1000.0)}, path)
    file = SafetensorsFile(path)
    data = file["x"].data
    assert data.base is not None
    address, size = file.mapping()
    assert address <= data.ctypes.data and data.ctypes.data + data.nbytes == address + size
    assert size == path.stat().st_size
    file.close()
    np.testing.assert_array_equal(data, np.arange(1000, dtype=np.float32))


GOOD = entry("F32", [2], 0, 8)

DAMAGED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (lambda p: write_raw(p, b""), "truncated"),
    "seven bytes": (lambda p: write_raw(p, b"1234567"), "truncated"),
    "git-lfs": (
        lambda p: write_raw(p, b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n"),
        "git-lfs pointer",
    ),
    "header cut": (lambda p: write(p, b"{", b"", 100), "truncated"),
    "huge header": (lambda p: write(p, b"{}", b"", 2**60), "too large"),
    "no json": (lambda p: write(p, b"{'a'}", b""), "not valid JSON"),
    "no utf-8": (lambda p: write(p, b'{"\xff":1}', b""), "not valid JSON"),
    "deep json": (lambda p: write(p, b"[" * 100_000, b""), "not valid JSON"),
    "json list": (lambda p: write(p, b"[]", b""), "not a JSON object"),
    "duplicate": (
        lambda p: write(p, b'{"a":%s,"a":%s}' % ((json.dumps(GOOD).encode(),) * 2), bytes(8)),
        "'a' appears twice",
    ),
    "entry no object": (lambda p: write(p, {"a": 3}, bytes(8)), "tensor 'a'"),
    "no dtype": (lambda p: write(p, {"a": {"shape": [1]}}, bytes(8)), "'a'.*'dtype'"),
    "unknown dtype": (lambda p: write(p, {"a": entry("F4", [2], 0, 8)}, bytes(7)), "truncated"),
    "list dtype": (
        lambda p: write(p, {"a": {**GOOD, "dtype": ["F32"]}}, bytes(8)),
        "unsupported dtype",
    ),
    "negative shape": (lambda p: write(p, {"a": entry("F32", [-2], 0, 8)}, bytes(8)), "bad shape"),
    "float shape": (lambda p: write(p, {"a": {**GOOD, "shape": [2.0]}}, bytes(8)), "bad shape"),
    "huge shape": (
        lambda p: write(p, {"a": entry("F32", [2**30, 2**20], 0, 8)}, bytes(8)),
        "needs",
    ),
    "shape beyond memory": (
        lambda p: write(p, {"a": entry("F32", [2**40, 2**40], 0, 8)}, bytes(8)),
        "bad shape",
    ),
    "empty shape beyond memory": (
        lambda p: write(p, {"a": entry("F32", [0, 2**62], 0, 0)}, b""),
        "bad shape",
    ),
    "many dimensions": (lambda p: write(p, {"a": entry("F32", [1] * 65, 0, 4)}, bytes(4)), "bad"),
    "endless number": (lambda p: write(p, b'{"a":%s}' % (b"1" * 5000), b""), "not valid JSON"),
    "one offset": (lambda p: write(p, {"a": {**GOOD, "data_offsets": [0]}}, bytes(8)), "offsets"),
    "backward": (lambda p: write(p, {"a": entry("F32", [2], 8, 0)}, bytes(8)), "needs 8 bytes"),
    "wrong size": (lambda p: write(p, {"a": entry("F32", [3], 0, 8)}, bytes(8)), "needs 12 bytes"),
    "out of range": (lambda p: write(p, {"a": GOOD}, bytes(7)), "truncated"),
    "overlap": (
        lambda p: write(p, {"a": GOOD, "b": entry("F32", [2], 4, 12)}, bytes(12)),
        "'b': overlaps",
    ),
    "hole": (
        lambda p: write(p, {"a": GOOD, "b": entry("F32", [1], 12, 16)}, bytes(16)),
        "'b'.*4 bytes before",
    ),
    "tail": (lambda p: write(p, {"a": GOOD}, bytes(9)), "1 bytes at the end"),
}


def write_raw(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files(case: str, tmp_path: Path) -> None:
    make, words = DAMAGED[case]
    path = make(tmp_path / "bad.safetensors")
    with pytest.raises(SafetensorsError, match=words) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


class _Name(str):
    """A name that counts how often it is compared."""

    compared: ClassVar[int] = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        _Name.compared += 1
        return str.__eq__(self, other)


def test_a_duplicate_among_many_names(tmp_path: Path) -> None:
    """The work to find it grows with the number of names, not with its square."""
    path = tmp_path / "model.safetensors"
    count = 20_000
    names = [f"t{i}" for i in range(count)] + [f"t{count - 1}"]
    write(path, b"{%s}" % b",".join(b'"%s":1' % name.encode() for name in names), b"")
    message = f"'t{count - 1}' appears twice"
    with pytest.raises(SafetensorsError, match=message):
        SafetensorsFile(path)
    with pytest.raises(SafetensorsError, match=message):
        _no_duplicates([(_Name(name), 1) for name in names])
    assert _Name.compared < 3 * count


def test_random_damage_never_crashes(tmp_path: Path) -> None:
    """Whatever bytes change: a clean error, or a file whose views are all inside the mapping."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.randn(4, 4), "b": torch.randn(3).half()}, path)
    good = path.read_bytes()
    rng = np.random.default_rng(11)
    refused = 0
    for _ in range(400):
        bad = bytearray(good[: rng.integers(1, len(good) + 1)])
        for _ in range(rng.integers(0, 4)):
            bad[rng.integers(0, min(len(bad), 160))] = rng.integers(0, 256)
        path.write_bytes(bad)
        try:
            with_file = SafetensorsFile(path)
        except SafetensorsError:
            refused += 1
            continue
        for tensor in with_file.values():
            tensor.data.sum()
    assert refused > 300


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "s-1.safetensors")
    save_file({"c": torch.ones(4)}, tmp_path / "s-2.safetensors")
    index(tmp_path, {"a": "s-1.safetensors", "b": "s-1.safetensors", "c": "s-2.safetensors"})
    return tmp_path


def index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards(sharded: Path) -> None:
    checkpoint = Checkpoint(sharded)
    assert sorted(checkpoint) == ["a", "b", "c"] and len(checkpoint.files) == 2
    assert checkpoint["c"].file.name == "s-2.safetensors"
    assert checkpoint["c"].data.sum() == 4
    checkpoint.close()


def test_single_file_by_path(sharded: Path) -> None:
    assert list(Checkpoint(sharded / "s-2.safetensors")) == ["c"]


def test_shard_errors(sharded: Path) -> None:
    full = {"a": "s-1.safetensors", "b": "s-1.safetensors", "c": "s-2.safetensors"}
    index(sharded, {**full, "d": "s-3.safetensors"})
    with pytest.raises(SafetensorsError, match=r"missing shards: s-3\.safetensors"):
        Checkpoint(sharded)
    save_file({"a": torch.ones(2), "c": torch.ones(4)}, sharded / "s-2.safetensors")
    index(sharded, full)
    with pytest.raises(SafetensorsError, match="'a' is in two files"):
        Checkpoint(sharded)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}, {"a": "../x.safetensors"}])
def test_bad_index(weight_map: Any, sharded: Path) -> None:
    index(sharded, weight_map)
    with pytest.raises(SafetensorsError, match=r"index\.json"):
        Checkpoint(sharded)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        Checkpoint(tmp_path)

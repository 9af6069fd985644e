"""GGUF files that are damaged or lie: clear errors, no memory and no time that grows with a lie."""

from __future__ import annotations

import cProfile
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from infinicore_infer.checkpoint.errors import GgufError
from infinicore_infer.checkpoint.gguf import GgufFile
from infinicore_infer.checkpoint.gguf_blocks import GgufMatrix
from infinicore_infer.checkpoint.opening import open_model
from reference.gguf_files import write_gguf
from reference.random_checkpoint import CheckpointSpec, make_checkpoint


def _header(*values: tuple[str, int, bytes], tensors: bytes = b"", count: int = 0) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, count, len(values))
    for key, kind, data in values:
        head += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + data
    return head + tensors


def _info(name: bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<{len(dims)}Q", *dims)
    head = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(dims))
    return head + sizes + struct.pack("<IQ", kind, offset)


def _file(*infos: bytes, data: int = 64) -> bytes:
    head = _header(tensors=b"".join(infos), count=len(infos))
    return head + bytes(-len(head) % 32) + bytes(data)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "another kind": (b"PK\x03\x04" + bytes(60), "no GGUF file"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "old": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "cut": (b"GGUF" + struct.pack("<I", 3), "truncated"),
    "tensors without end": (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims 11529215046"),
    "values without end": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "claims 0 tensors"),
    "a long key": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**50) + bytes(32), "a key has"),
    "a long string": (_header(("a", 8, struct.pack("<Q", 2**40))), "'a' has"),
    "a key that ends": (_header(("a", 8, struct.pack("<Q", 90))), "truncated: 'a'"),
    "strings without end": (
        _header(("a", 9, struct.pack("<IQ", 8, 2**40) + bytes(64))), "claims 1099511627776 strings",
    ),
    "a string that ends": (
        _header(("a", 9, struct.pack("<IQQ", 8, 2, 20) + bytes(8))),
        "truncated: a string of 'a'",
    ),
    "numbers without end": (_header(("a", 9, struct.pack("<IQ", 4, 2**61))), "truncated: 'a'"),
    "arrays of arrays": (_header(("a", 9, struct.pack("<IQ", 9, 1) + bytes(32))), "of type 9"),
    "an unknown type": (_header(("a", 13, bytes(8))), "of type 13"),
    "neither true nor false": (_header(("a", 7, b"\2")), "neither false"),
    "not UTF-8": (_header(("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")), "not UTF-8"),
    "a token that is not": (
        _header(("a", 9, struct.pack("<IQQ", 8, 1, 1) + b"\xff")), "not UTF-8",
    ),
    "a key twice": (_header(("a", 0, b"\0"), ("a", 0, b"\0")), "'a' appears twice"),
    "alignment 0": (_header(("general.alignment", 4, bytes(4))), "alignment"),
    "alignment 48": (_header(("general.alignment", 4, struct.pack("<I", 48))), "alignment"),
    "no dimensions": (_file(_info(b"t", (), 0, 0)), "0 dimensions"),
    "many dimensions": (_file(_info(b"t", (1,) * 9, 0, 0)), "9 dimensions"),
    "a billion dimensions": (
        _header(tensors=struct.pack("<QcI", 1, b"t", 2**30) + bytes(64), count=1),
        "1073741824 dimensions",
    ),
    "huge": (_file(_info(b"t", (2**40, 2**40), 0, 0)), "truncated: tensor 't'"),
    "empty tensor": (_file(_info(b"t", (4, 0), 0, 0)), "is empty"),
    "an unknown tensor type": (_file(_info(b"t", (4,), 77, 0)), r"not known: \[77\]"),
    "rows that do not divide": (_file(_info(b"t", (33,), 8, 0)), "rows of 33, which Q8_0"),
    "beyond the end": (_file(_info(b"t", (17,), 0, 0)), "truncated"),
    "offset beyond": (_file(_info(b"t", (1,), 0, 2**60)), "truncated"),
    "offset between": (_file(_info(b"t", (1,), 0, 8)), "not a multiple of 32"),
    "overlap": (_file(_info(b"a", (16,), 0, 0), _info(b"b", (4,), 0, 32)), "'b' overlaps"),
    "a name twice": (_file(_info(b"a", (4,), 0, 0), _info(b"a", (4,), 0, 32)), "'a' appears twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_damaged_files(case: str, tmp_path: Path) -> None:
    data, words = BAD[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(GgufError, match=words) as caught:
        GgufFile(path)
    assert str(path) in str(caught.value)


def test_lying_header_of_a_large_file(tmp_path: Path) -> None:
    """A terabyte of strings, in a file that is as large: refused before it is read."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(_header(("a", 9, struct.pack("<IQ", 8, 2**36))))
    os.truncate(path, 2**40)
    with pytest.raises(GgufError, match="claims 68719476736 strings"):
        GgufFile(path)
    path.write_bytes(_header(("a", 9, struct.pack("<IQQ", 8, 2, 2**39))))
    os.truncate(path, 2**40)
    with pytest.raises(GgufError, match="truncated"):
        GgufFile(path)


def test_random_damage_never_crashes(tmp_path: Path) -> None:
    """Whatever bytes change: a clean error, or a model whose weights are inside the file."""
    good_path = tmp_path / "good.gguf"
    spec = CheckpointSpec("m", nlayer=1, d=32, nh=2, nkvh=1, dh=16, di=32, dvoc=40)
    write_gguf(make_checkpoint(spec, tmp_path), good_path, Type.Q8_0, tokenizer=False)
    good, path = good_path.read_bytes(), tmp_path / "bad.gguf"
    header = good.index(b"blk.0.attn_norm") + 900
    rng = np.random.default_rng(5)
    refused = 0
    for i in range(600):
        bad = bytearray(good if i % 3 else good[: rng.integers(1, len(good))])
        for _ in range(rng.integers(1, 4)):
            bad[rng.integers(0, min(len(bad), header))] = rng.integers(0, 256)
        path.write_bytes(bad)
        try:
            checkpoint = open_model(path)[1]
        except ValueError:
            refused += 1
            continue
        for weight in checkpoint.values():
            if isinstance(weight, GgufMatrix) and weight.supported:
                weight.decoded(0, 1)
    assert refused > 300


def test_work_grows_with_the_number_of_strings(tmp_path: Path) -> None:
    """Counted in calls of functions and methods; not with the square of the number."""
    calls = []
    for count in (2_000, 20_000):
        path = tmp_path / f"{count}.gguf"
        strings = b"".join(struct.pack("<Q", 5) + b"%05d" % i for i in range(count))
        path.write_bytes(_header(("a", 9, struct.pack("<IQ", 8, count) + strings)))
        profile = cProfile.Profile()
        assert len(profile.runcall(GgufFile, path).metadata["a"]) == count
        calls.append(sum(entry.callcount for entry in profile.getstats()))
    assert calls[1] < 11 * calls[0]

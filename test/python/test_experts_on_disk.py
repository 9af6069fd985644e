"""Experts that stay on disk: the bits of experts in memory, and errors where their file fails."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from infinicore_infer.native.model import StepRequest
from libinfinicore_infer import Qwen3Error, Qwen3NotImplementedError, Status
from numpy.typing import NDArray
from qwen3 import Qwen3ForCausalLM
from reference.gguf_files import write_gguf
from reference.quantised import fp8, gptq, quantised_copy
from reference.random_checkpoint import CheckpointSpec, make_checkpoint
from reference.random_moe import MoeSpec, moe_model, save_moe

TOKENS = [int(t) for t in np.random.default_rng(5).integers(0, 256, 70)]
# A dense layer between layers of experts; panels that are not full.
SPEC = MoeSpec(d=96, dm=40, dh=24, nlayer=3, plain=(1,), nexperts=13, used=3, bias=True, seed=2)
CODED = MoeSpec(d=256, dm=256, dh=64, di=256, nlayer=2, nexperts=5, used=2, seed=8)
# How weights are stored, and the options of the load. Few rows stream panels, many use them again
# and again; bf12 has pointers in its panels; f8 and bf12 are expanded.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "f32": ("plain", {"dtype": "f32"}),
    "bf16": ("plain", {"activations": "f32"}),
    "bf16 times bf16": ("plain", {"activations": "bf16"}),
    "int8": ("plain", {"dtype": "int8"}),
    "int4": ("plain", {"dtype": "int4"}),
    "bf12": ("plain", {"dtype": "bf12"}),
    "fp8": ("fp8", {}),
    "gguf": ("gguf", {}),
    "gptq, each expert's columns in an order of its own": ("gptq", {}),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("moe")
    plain = save_moe(moe_model(SPEC), folder / "plain", "bf16")
    source = save_moe(moe_model(CODED), folder / "coded", "bf16")
    quantised_copy(source, folder / "fp8", *fp8((128, 128)))
    write_gguf(source, folder / "m.gguf", Type.Q4_K, tokenizer=False)
    projections = ("down_proj", "gate_proj", "up_proj")  # of every expert, one after the other
    made = gptq(4, 32, act_order=True, seeds=(i // 3 for i in count()))
    quantised_copy(source, folder / "gptq", *made, projections)
    forms = {name: folder / name for name in ("fp8", "gptq")}
    return {"plain": plain, "gguf": folder / "m.gguf", **forms}


@pytest.fixture
def plain(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["plain"]


def load(path: Path, cache_dir: Path, **options: Any) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(path, threads=2, experts="disk", cache_dir=cache_dir, **options)


def in_memory(path: Path, **options: Any) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(path, threads=2, cache=False, **options)


def logits(model: Qwen3ForCausalLM) -> NDArray[np.float32]:
    """Of a prompt at once, and of a short one."""
    return np.concatenate([model.forward(TOKENS), model.forward(TOKENS[:2])])


def run_python(program: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process of its own, whose limits it may change."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def packed(cache_dir: Path) -> Path:
    (file,) = cache_dir.iterdir()
    return file


@pytest.mark.parametrize("name", CASES)
def test_same_bits(name: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Written by the first load, read by the second; only the experts leave the memory."""
    stored, options = CASES[name]
    path = checkpoints[stored]
    with in_memory(path, **options) as model:
        expected, bytes_in_memory = logits(model), model.stats()["weight_bytes"]
        fingerprint = model.native.kv_cache_fingerprint()
    written = []
    for _ in range(2):
        with load(path, tmp_path, **options) as model:
            np.testing.assert_array_equal(logits(model), expected)
            # As many hashes as from memory: saved KV caches fit both.
            assert model.native.kv_cache_fingerprint() == fingerprint
            stats = model.stats()
        # Buffers are rounded to pages.
        own, file = stats["weight_bytes"], stats["expert_file_bytes"]
        assert 0 < file and own + file <= bytes_in_memory < own + file + (1 << 16)
        written.append(packed(tmp_path).stat().st_ino)
    assert written[0] == written[1]


def test_one_file_for_both(plain: Path, tmp_path: Path) -> None:
    """What a model in memory has kept is what one on disk reads."""
    with Qwen3ForCausalLM(plain, threads=2, dtype="int8", cache_dir=tmp_path) as model:
        expected = logits(model)
    before = packed(tmp_path).stat().st_ino
    with load(plain, tmp_path, dtype="int8") as model:
        np.testing.assert_array_equal(logits(model), expected)
        model.native.save_weights(tmp_path / "again", "")
    (tmp_path / "again").unlink()
    assert packed(tmp_path).stat().st_ino == before


@pytest.mark.parametrize("dtype", ["bf12", "int4"])
def test_cut_file_is_an_error(dtype: str, plain: Path, tmp_path: Path) -> None:
    """Cut short below the running model: an error that says so; whole again, the same logits."""
    with load(plain, tmp_path, dtype=dtype) as model:
        expected = logits(model)
        file = packed(tmp_path)
        content = file.read_bytes()
        with model.create_kv_cache() as cache:
            os.truncate(file, 4096)
            with pytest.raises(
                Qwen3Error, match=r"experts cannot be read from .*cut short"
            ) as info:
                model.native.forward([StepRequest(cache, TOKENS, 0)])
            assert info.value.status == Status.IO_ERROR
            assert len(cache) == 0
        file.write_bytes(content)  # in place
        np.testing.assert_array_equal(logits(model), expected)


def test_deleted_and_replaced_file(plain: Path, tmp_path: Path) -> None:
    """The file that was opened stays, whatever its name leads to."""
    with load(plain, tmp_path, dtype="int8") as model:
        expected = logits(model)
        file = packed(tmp_path)
        file.unlink()
        np.testing.assert_array_equal(logits(model), expected)
        file.write_bytes(b"something else")
        np.testing.assert_array_equal(logits(model), expected)


def test_damaged_file_is_written_again(plain: Path, tmp_path: Path) -> None:
    with load(plain, tmp_path, dtype="int8") as model:
        expected = logits(model)
    content = bytearray(packed(tmp_path).read_bytes())
    place = (
        len(content) * 85 // 100
    )  # in the experts of the last layer, which are a third of the file
    content[place] ^= 1
    packed(tmp_path).write_bytes(content)
    with load(plain, tmp_path, dtype="int8") as model:
        np.testing.assert_array_equal(logits(model), expected)
    content[place] ^= 1
    assert packed(tmp_path).read_bytes() == content


def test_what_it_needs(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read from the cache, which is turned off"):
        Qwen3ForCausalLM(plain, experts="disk", cache=False)
    with pytest.raises(ValueError, match="unknown experts 'nowhere'; known are memory, disk"):
        Qwen3ForCausalLM(plain, experts="nowhere")
    with pytest.raises(Qwen3NotImplementedError, match="with ndev 1: ndev is 2"):
        load(plain, tmp_path, ndev=2)
    dense = make_checkpoint(CheckpointSpec("dense", nlayer=1), tmp_path / "dense")
    with pytest.raises(ValueError, match="experts is disk, but this model has no experts"):
        load(dense, tmp_path / "cache")
    (tmp_path / "a file").touch()
    with pytest.raises(NotADirectoryError, match="a file"):
        load(plain, tmp_path / "a file" / "cache")
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    with pytest.raises(OSError, match="experts cannot stay on disk: others may write to"):
        load(plain, shared)


def test_full_disk(plain: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for it: the system's reason, and nothing is left behind."""
    program = (
        "import resource, sys, qwen3\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try: qwen3.Qwen3ForCausalLM(sys.argv[1], experts='disk', cache_dir=sys.argv[2])\n"
        "except Exception as error: print(error)"
    )
    done = run_python(program, plain, tmp_path)
    assert "could not write the file" in done.stdout and "File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_memory(tmp_path: Path) -> None:
    """Anonymous memory never has more than one layer's experts, not even while the file is written.

    What the system's page cache keeps of the file is no part of it.
    """
    spec = MoeSpec(d=256, dm=256, nexperts=72, used=2, seed=4)
    path = save_moe(moe_model(spec), tmp_path / "m", "bf16")
    program = """
import sys, threading, time, qwen3
def anonymous():
    facts = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(facts["RssAnon"].split()[0]) << 10
def load(folder, **options):
    peaks, stop = [anonymous()], threading.Event()
    def watch():
        while not stop.wait(0.001):
            peaks.append(anonymous())
    watcher = threading.Thread(target=watch)
    watcher.start()
    with qwen3.Qwen3ForCausalLM(folder, dtype="f32", threads=1, **options) as model:
        stop.set()
        watcher.join()
        model.forward([1, 2, 3])
        return max(peaks) - peaks[0], anonymous() - peaks[0]
load(sys.argv[1], cache=False)  # modules are imported, and malloc has its memory
print(load(sys.argv[1], cache=False)[1])
for _ in range(2):
    print(*load(sys.argv[1], experts="disk", cache_dir=sys.argv[2]))
"""
    done = run_python(program, path, tmp_path / "cache")
    in_memory, written, read = done.stdout.splitlines()
    experts = spec.nlayer * 4 * 3 * spec.d * spec.dm * spec.nexperts
    assert int(in_memory) > 0.9 * experts
    for peak, after in (written.split(), read.split()):
        assert int(peak) < 0.75 * experts and int(after) < 0.2 * experts
    assert int(read.split()[0]) < 0.2 * experts

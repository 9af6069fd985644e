"""What happens while a model is created: the bar, stopping, released pages, work beside it."""

from __future__ import annotations

import ctypes
import io
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
import torch
from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.native.load import LoadProgress, run_beside
from libinfinicore_infer import Qwen3ModelOptions, load_library
from python.helpers import SCRIPTS
from qwen3 import Qwen3ForCausalLM, TokenizerError
from reference.random_checkpoint import CheckpointSpec, make_checkpoint
from safetensors.torch import load_file, save_file


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class ClosedTerminal(Terminal):
    def write(self, text: str) -> int:
        raise OSError("closed")


def _report(progress: LoadProgress, done: int, total: int) -> int:
    """Report as the library does while it creates a model."""
    options = Qwen3ModelOptions()
    progress.attach(load_library(), options)
    return int(options.progress(options.progress_user_data, done, total))


@pytest.mark.parametrize(("term", "cleared"), [("xterm", "\r\x1b[K"), ("dumb", " \r")])
def test_progress_bar_only_on_terminals(
    monkeypatch: pytest.MonkeyPatch, term: str, cleared: str
) -> None:
    monkeypatch.setenv("TERM", term)
    plain, terminal, closed = io.StringIO(), Terminal(), ClosedTerminal()
    for stream in (plain, terminal, closed):
        progress = LoadProgress(None, stream, "packing")
        progress.draw()
        assert stream.getvalue() == ""
        assert _report(progress, 50, 100) == 0
        progress.draw()
        progress.cancel()
        assert _report(progress, 100, 100) == 1
        progress.draw()
        progress.finish()
    assert plain.getvalue() == closed.getvalue() == ""
    shown = terminal.getvalue()
    assert "packing [###" in shown and "50%" in shown and shown.endswith(cleared)
    # Only clearing leaves the line where the bar stood.
    assert "\n" not in shown


def test_the_bar_says_what_is_done(
    tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing takes much longer than loading what was packed before."""
    works = []

    class Noted(LoadProgress):
        def __init__(self, checkpoint: Checkpoint, stream: TextIO | None, work: str) -> None:
            works.append(work)
            super().__init__(checkpoint, stream, work)

    monkeypatch.setattr("infinicore_infer.loaded_model.LoadProgress", Noted)
    for dtype in ("int8", "int8", None):
        with Qwen3ForCausalLM(text_folder, dtype=dtype, cache_dir=tmp_path, threads=1):
            pass
    assert works == ["packing", "loading", "loading"]


def _resident(address: int) -> int:
    """Resident bytes of the mapping that begins there."""
    smaps = Path("/proc/self/smaps").read_text()
    found = re.search(rf"^0*{address:x}-.*?^Rss:\s+(\d+) kB", smaps, re.MULTILINE | re.DOTALL)
    assert found
    return int(found[1]) << 10


def test_pages_of_files_are_released_at_every_report(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.arange(1 << 20, dtype=torch.int32)}, path)
    checkpoint = Checkpoint(tmp_path)
    progress = LoadProgress(checkpoint)
    address, size = checkpoint.files[0].mapping()
    for _ in range(2):
        assert int(checkpoint["x"].data.sum(dtype=np.int64)) == (1 << 19) * ((1 << 20) - 1)
        assert _resident(address) >= size
        assert _report(progress, 1, 2) == 0
        assert _resident(address) == 0
    checkpoint.close()


def test_an_error_beside_the_creation_stops_it() -> None:
    """And is what the caller sees, whatever the creation came to."""
    progress = LoadProgress()
    ended = threading.Event()

    def create() -> None:
        while not progress.state.cancel:
            ended.wait(0.001)
        ended.set()
        raise RuntimeError("cancelled")

    def meanwhile() -> None:
        raise LookupError("beside")

    with pytest.raises(LookupError, match="beside"):
        run_beside(create, progress, meanwhile)
    assert ended.is_set()


def test_both_run_at_the_same_time_on_different_threads() -> None:
    """Each waits for the other, so one after the other would never end."""
    meeting = threading.Barrier(2, timeout=60)
    threads = []

    def meet() -> None:
        threads.append(threading.current_thread())
        meeting.wait()

    run_beside(meet, LoadProgress(), meet)
    assert threading.main_thread() in threads and len(set(threads)) == 2


def test_errors_of_tokenizer_and_weights_are_those_of_the_constructor(tmp_path: Path) -> None:
    folder = make_checkpoint(CheckpointSpec("both"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"ffn_gate_up of layer 1 is NaN"):
        Qwen3ForCausalLM(folder, threads=1)
    # Of two errors always the same one, however fast either was found.
    (folder / "tokenizer.json").write_text("{}")
    for threads in (1, 2):
        with pytest.raises(TokenizerError, match="not a tokenizer"):
            Qwen3ForCausalLM(folder, threads=threads)


def test_a_load_state_without_mappings_or_none_at_all() -> None:
    lib = load_library()
    assert lib.qwen3LoadProgress(None, 1, 2) == 0
    progress = LoadProgress()
    progress.state.nmappings = 3
    progress.state.mappings = None
    address = ctypes.addressof(progress.state)
    assert lib.qwen3LoadProgress(address, 1, 2) == 0
    assert (progress.state.done, progress.state.total) == (1, 2)


TRUNCATED = """
import sys
from pathlib import Path
from libinfinicore_infer import DeviceType, Qwen3Error, Qwen3ModelOptions
from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.native.load import LoadProgress
from infinicore_infer.native.model import NativeModel
from infinicore_infer.checkpoint.weights import Qwen3WeightsImpl
from infinicore_infer.checkpoint.checkpoint import Checkpoint

folder, size = Path(sys.argv[1]), int(sys.argv[2])
meta, checkpoint = Qwen3MetaFromConfig(folder), Checkpoint(folder)
weights = Qwen3WeightsImpl(meta, checkpoint)
with checkpoint.files[0].path.open("r+b") as file:
    file.truncate(size)
options, cpu = Qwen3ModelOptions(nthreads=2), DeviceType.DEVICE_TYPE_CPU
try:
    NativeModel(meta, weights, options, cpu, [0], LoadProgress(checkpoint))
except Qwen3Error as error:
    print(error)
"""


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_file_cut_short_while_it_is_loaded(tmp_path: Path, kept: int, tied: bool) -> None:
    """In a process of its own, because what is not caught ends it with SIGBUS."""
    spec = CheckpointSpec("cut", nlayer=3, dvoc=300, d=128, di=256, tied=tied, dtype="bf16")
    folder = make_checkpoint(spec, tmp_path)
    size = (folder / "model.safetensors").stat().st_size
    command = [sys.executable, "-c", TRUNCATED, str(folder), str(size * kept // 4 // 4096 * 4096)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"cannot be read: its file was cut short.*IO_ERROR", done.stdout)

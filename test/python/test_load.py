"""What happens while a model is created: the bar, stopping, released pages, work beside it."""

from __future__ import annotations

import ctypes
import io
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from libinfinicore_infer import Qwen3ModelOptions, load_library
from qwen3 import Qwen3ForCausalLM, TokenizerError
from qwen3_load import LoadProgress, run_beside
from reference.random_checkpoint import CheckpointSpec, make_checkpoint
from safetensors.torch import load_file, save_file
from safetensors_io import Checkpoint


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


def test_progress_bar_only_on_terminals() -> None:
    plain, terminal, closed = io.StringIO(), Terminal(), ClosedTerminal()
    for stream in (plain, terminal, closed):
        progress = LoadProgress(None, stream)
        progress.draw()
        assert stream.getvalue() == ""
        assert _report(progress, 50, 100) == 0
        progress.draw()
        progress.cancel()
        assert _report(progress, 100, 100) == 1
        progress.draw()
        progress.finish()
    assert plain.getvalue() == closed.getvalue() == ""
    assert "50%" in terminal.getvalue() and terminal.getvalue().endswith("\r\x1b[K")


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

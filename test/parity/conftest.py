"""Session-wide fixtures: random checkpoints, made once each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
import torch
from parity.driver import Driver
from reference.random_checkpoint import CheckpointSpec, load_config, load_tensors, make_checkpoint
from transformers import Qwen3ForCausalLM


@dataclass
class Checkpoint:
    """A checkpoint on disk, and what it says."""

    spec: CheckpointSpec
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return load_config(self.folder)

    @cached_property
    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        return load_tensors(self.folder)

    def driver(self, **options: Any) -> Driver:
        """Returns a new model of the library; options as in :class:`Driver`."""
        return Driver(self.config, self.tensors, **options)

    def transformers(self, dtype: torch.dtype) -> Qwen3ForCausalLM:
        """Returns transformers' model, weights widened to ``dtype``."""
        return Qwen3ForCausalLM.from_pretrained(
            self.folder, dtype=dtype, attn_implementation="eager"
        ).eval()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[CheckpointSpec], Checkpoint]:
    """Makes the checkpoint of a spec, once per session and name."""
    parent = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, Checkpoint] = {}

    def get(spec: CheckpointSpec) -> Checkpoint:
        if spec.name not in made:
            made[spec.name] = Checkpoint(spec, make_checkpoint(spec, parent))
        assert made[spec.name].spec == spec, f"two checkpoints are called {spec.name}"
        return made[spec.name]

    return get


@pytest.fixture
def cpu_isa(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Forces the instruction set of models created from now on."""
    yield lambda isa: monkeypatch.setenv("QWEN3_CPU_ISA", isa)


@cache
def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def pytest_configure() -> None:
    _quiet_transformers()

"""Session-wide fixtures: random checkpoints, made once each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
import torch
from infinicore.fake import Fake
from libinfinicore_infer import load_library
from parity.driver import Driver
from parity.target import Target
from reference.random_checkpoint import CheckpointSpec, load_config, load_tensors, make_checkpoint
from transformers import Qwen3ForCausalLM


@dataclass
class Checkpoint:
    """A checkpoint on disk, and what it says."""

    spec: CheckpointSpec
    folder: Path
    target: Target

    @cached_property
    def config(self) -> dict[str, Any]:
        return load_config(self.folder)

    @cached_property
    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        return load_tensors(self.folder)

    def driver(
        self, tensors: Mapping[str, npt.NDArray[Any]] | None = None, **options: Any
    ) -> Driver:
        """Returns a new model of the library, on the run's devices unless options name others.

        Args:
            tensors: other weights than the checkpoint's.
            options: as in :class:`Driver`.
        """
        if "device" not in options:
            options = {"ndev": self.target.ranks(self.spec), **options}
        options = {"device": self.target.device, **options}
        return Driver(self.config, self.tensors if tensors is None else tensors, **options)

    def transformers(self, dtype: torch.dtype) -> Qwen3ForCausalLM:
        """Returns transformers' model, weights widened to ``dtype``."""
        return Qwen3ForCausalLM.from_pretrained(
            self.folder, dtype=dtype, attn_implementation="eager"
        ).eval()


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """What the tests run on."""
    return Target(request.config.getoption("device"), request.config.getoption("ndev"))


@pytest.fixture(scope="session")
def fake(target: Target) -> Iterator[Fake | None]:
    """The fake accelerator, where it is in InfiniCore's place: it must be left clean."""
    fake = None
    if not target.cpu:
        load_library()
        try:
            fake = Fake()
        except (AttributeError, OSError):  # a real InfiniCore has none of its functions
            pass
    yield fake
    if fake:
        fake.check()


@pytest.fixture(autouse=True)
def no_rule_broken(fake: Fake | None) -> Iterator[None]:
    """After every test, so that it is known which one it was."""
    yield
    assert not fake or fake.violations() == []


@pytest.fixture(scope="session")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, target: Target
) -> Callable[[CheckpointSpec], Checkpoint]:
    """Makes the checkpoint of a spec, once per session and name."""
    parent = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, Checkpoint] = {}

    def get(spec: CheckpointSpec) -> Checkpoint:
        if spec.name not in made:
            made[spec.name] = Checkpoint(spec, make_checkpoint(spec, parent), target)
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


def pytest_configure(config: pytest.Config) -> None:
    _quiet_transformers()
    config.addinivalue_line("markers", "cpu_only: says nothing about the devices of --device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what does not concern the devices."""
    if config.getoption("device") != "cpu":
        others = [item for item in items if item.get_closest_marker("cpu_only")]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]

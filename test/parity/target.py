"""What the tests of this folder run on: the CPU, or the devices of ``--device`` and ``--ndev``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from libinfinicore_infer import DataType
from parity.driver import DTYPES
from reference.random_checkpoint import CheckpointSpec


@dataclass(frozen=True)
class Target:
    """Devices of one kind."""

    device: str = "cpu"
    ndev: int = 1

    @property
    def cpu(self) -> bool:
        """Whether it is the library's own kernels for the CPU."""
        return self.device == "cpu"

    def ranks(self, spec: CheckpointSpec) -> int:
        """Returns over how many of the devices the heads of a model can be cut at most."""
        fits = (
            n
            for n in range(1, self.ndev + 1)
            if spec.nh % n == 0 and (spec.nkvh % n == 0 or n % spec.nkvh == 0)
        )
        return max(fits)

    def typed(self, spec: CheckpointSpec, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options of a case on the CPU for this target; skips where it has none.

        InfiniCore has one float type for weights, KV and activations: that of the weights here.
        """
        if self.cpu:
            return dict(options)
        if "ndev" in options:
            pytest.skip("--ndev says how many devices are used")
        options = dict(options)
        weight = options.pop("dt_weight", DataType[spec.dtype.upper()])
        if weight not in DTYPES.values() or options.pop("dt_kv", weight) != weight:
            pytest.skip("InfiniCore has one float type for weights, KV and activations")
        if "activations" in options:
            pytest.skip("how exactly activations are kept is a choice of the CPU backend")
        return {**options, "dt_logits": weight}

"""Models with experts on the fake accelerator, on one device and cut over several."""

from __future__ import annotations

from pathlib import Path

import pytest
from infinicore.conftest import RunCase
from infinicore.test_device_models import TOLERANCE
from reference.random_moe import MoeSpec, moe_model, save_moe

SPECS = {
    "some": MoeSpec(nlayer=3, plain=(1,), nexperts=9, used=3, dctx=700),
    # Through all experts: rounding changes none that a token goes through.
    "all": MoeSpec(nexperts=5, used=5, norm=False, dm=48, dctx=300, seed=1),
}


@pytest.mark.parametrize(("name", "ndev"), [("some", 1), ("some", 4), ("all", 1), ("all", 2)])
def test_logits(run_case: RunCase, tmp_path: Path, name: str, ndev: int) -> None:
    """The CPU backend's logits, of prompts, chunks and decoded rows in one call."""
    folder = save_moe(moe_model(SPECS[name]), tmp_path / "m", stacked=ndev > 1)
    dtypes = ["f32"] if name == "some" else list(TOLERANCE)
    distances = run_case(
        "parity", environment={"count": ndev}, folder=folder, ndev=ndev, dtypes=dtypes
    )
    for dtype, of_dtype in zip(dtypes, distances, strict=True):
        assert max(of_dtype) < TOLERANCE[dtype], distances


def test_on_disk(run_case: RunCase, tmp_path: Path) -> None:
    """Refused by name: devices have no file to read from in a step."""
    folder = save_moe(moe_model(SPECS["some"]), tmp_path / "m")
    error = run_case(
        "refusal", folder=folder, device="nvidia", experts="disk", cache_dir=tmp_path / "cache"
    )
    assert error["kind"] == "Qwen3NotImplementedError"
    assert "options.experts is disk, which only the cpu backend can" in error["text"]


@pytest.mark.parametrize("device", ["ascend", "moore"])
def test_other_routes(run_case: RunCase, tmp_path: Path, device: str) -> None:
    """Without ``add``, and where a beta of 0 does not clear."""
    folder = save_moe(moe_model(SPECS["some"]), tmp_path / "m")
    distances = run_case(
        "parity", environment={"device": device}, folder=folder, device=device, dtypes=["f32"]
    )
    assert max(distances[0]) < TOLERANCE["f32"], distances

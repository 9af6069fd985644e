"""The model tests of test/parity on the fake accelerator, as ``--device nvidia``.

What is chosen takes a minute and a half. Everything takes minutes for each number of devices::

    python -m pytest test/infinicore/test_model_tests.py -k everything --devices 1,2,4
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from infinicore.conftest import ROOT, with_root

PARITY = ROOT / "test" / "parity"


def run(
    fake_folder: Path, ndev: int, *arguments: str, atleast: int, seconds: float | None = 600
) -> None:
    """Runs tests of test/parity in a process of its own, of which so many must have passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--device", "nvidia", "--ndev", str(ndev), *arguments]
    result = subprocess.run(
        command,
        cwd=PARITY,
        env=with_root(fake_folder, FAKE_INFINI_COUNT="8"),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    text = result.stdout + result.stderr
    assert result.returncode == 0, text[-8000:]
    passed = re.search(r"(\d+) passed", text)
    assert passed and int(passed[1]) >= atleast, text[-2000:]


def test_one_device(fake_folder: Path) -> None:
    """Logits and text in every layout, type and form of rope; models cut over 2, 4 and 8 devices.

    Sampling without its long statistics: it happens on the host, and devices only give it logits.
    """
    files = ["test_forward.py", "test_embed.py", "test_tensor_parallel.py", "test_sampling.py"]
    run(fake_folder, 1, *files, "-k", "not distribution", atleast=300)


def test_two_devices(fake_folder: Path) -> None:
    """Batches, chunks, shared and rewound caches, to the bit: what one device does, and sums."""
    run(fake_folder, 2, "test_invariants.py", "-k", "odd_f32 and not odd_f32_", atleast=30)


def test_four_devices(fake_folder: Path) -> None:
    """KV heads that are on two devices each: drafts, batches, embeddings, and 16-bit types."""
    invariants = "even_bf16 and not even_bf16_ and (mixed or greedy or duplicate)"
    files = ["test_drafts.py", "test_embed.py", "test_forward.py", "test_invariants.py"]
    chosen = f"drafts or is_cpu or states_are_the_oracles or ({invariants})"
    run(fake_folder, 4, *files, "-k", chosen, atleast=83)


def test_everything(fake_folder: Path, pytestconfig: pytest.Config) -> None:
    """All model tests that concern devices."""
    counts = pytestconfig.getoption("devices")
    if not counts:
        pytest.skip("takes minutes for each number of devices: --devices 1,2,4")
    for ndev in counts:
        run(fake_folder, ndev, ".", atleast=780, seconds=None)

"""How often a step calls InfiniCore, counted on the fake accelerator.

0.1.0 has no attention over several sequences, so its products and the storing of keys and values
take some launches per sequence. Everything else is launched once per layer, whatever the batch;
decode rows after equally many tokens share a softmax.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from infinicore.conftest import RunCase
from libinfinicore_infer import load_library

Folders = Callable[[str], Path]
LAYERS = {"one-layer": 1, "three-layers": 3}


def expected(layers: int, batch: int, ntok: int, past: int, block: int = 256) -> dict[str, int]:
    """Launches of a step of f32 requests whose new tokens fit into one block of KV."""
    blocks = (past + ntok + block - 1) // block
    rows = ntok > 1
    return {
        # Input and MLP norms, q and k norms; once per step the last norm.
        "RMSNorm": 4 * layers + 1,
        "RoPE": layers,
        "SwiGLU": layers,
        # qkv, o, gate and up, down: o and down add to the residual stream themselves. Scores and
        # values of each block of each sequence; the head.
        "Gemm": layers * (4 + 2 * blocks * batch) + 1,
        "CausalSoftmax": layers * (batch if rows else 1),
        # Storing keys and values; with several rows, queries and outputs are reordered by heads.
        "Rearrange": layers * batch * (3 if rows else 1),
    }


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("batch", "ntok", "past"), [(1, 1, 5), (4, 1, 5), (3, 1, 280), (1, 9, 0), (4, 9, 0)]
)
def test_launches_of_a_step(
    run_case: RunCase, folders: Folders, name: str, batch: int, ntok: int, past: int
) -> None:
    report = run_case("launches", folder=folders(name), batch=batch, ntok=ntok, past=past)
    assert report["launches"] == expected(LAYERS[name], batch, ntok, past)
    # When the logits have arrived.
    assert report["syncs"] == 1
    # Sines and cosines, embeddings; logits. Rows that give logits are gathered run by run: rows of
    # a decode step are one run.
    assert (report["h2d"], report["d2h"]) == (2, 1)
    assert report["d2d"] == (1 if ntok == 1 else batch)
    # What elementwise operators send before their kernel, two copies each: swiglu alone is left.
    assert report["hidden"] == 2 * LAYERS[name]
    assert (
        report["pageable"] == 0
    )  # what the host copies from and to is pinned: the copies are asynchronous
    # The second step of a shape needs nothing new.
    assert (report["mallocs"], report["created"]) == (0, 0)


def test_sums_after_the_products(
    run_case: RunCase, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gemm that adds, as with several ranks: two adds and four more copies a layer."""
    monkeypatch.setenv("QWEN3_INFINICORE_AVOID", "gemm_add")
    report = run_case("launches", folder=folders("three-layers"), batch=2, ntok=1, past=5)
    assert report["launches"] == {**expected(3, 2, 1, 5), "Add": 2 * 3}
    assert (report["hidden"], report["d2d"]) == (2 * 3 * 3, 2)


def test_gate_and_up_of_many_rows(run_case: RunCase, folders: Folders) -> None:
    """A product each, so that swiglu has contiguous tensors."""
    rows = {}
    for ntok in (63, 64):
        rows[ntok] = run_case(
            "launches", folder=folders("three-layers"), batch=1, ntok=ntok, past=0
        )
    assert rows[64]["launches"]["Gemm"] == rows[63]["launches"]["Gemm"] + 3
    assert rows[64]["launches"] == {**expected(3, 1, 64, 0), "Gemm": 3 * (5 + 2) + 1}


def test_values_of_16_bits_are_gathered(run_case: RunCase, folders: Folders) -> None:
    """Two blocks of values for one product, which rounds once."""
    report = run_case("launches", folder=folders("three-wide"), batch=4, ntok=1, past=280)
    assert report["launches"]["Gemm"] == 3 * (4 + 4 * (2 + 1)) + 1
    assert report["launches"]["Rearrange"] == 3 * 4 * (1 + 2)


@pytest.mark.parametrize("masked", [True, False])
def test_launches_of_long_prompts(run_case: RunCase, folders: Folders, masked: bool) -> None:
    """The formula of docs/devices.md, for chunks of 1024 of which each is one range of rows.

    Where causal softmax is right, nothing but the mask is left out.
    """
    ntok, block = 2304, 256
    report = run_case(
        "launches",
        environment={"quirks": "softmax_block:512" if masked else "other:0"},
        folder=folders("many-heads"),
        batch=1,
        ntok=ntok,
        past=0,
    )
    expected_launches: Counter[str] = Counter(RMSNorm=1, Gemm=1)  # the last norm, the head
    for first in range(0, ntok, 1024):
        rows = min(1024, ntok - first)
        blocks = -(-(first + rows) // block)
        expected_launches += Counter(RMSNorm=4, RoPE=1, SwiGLU=1, CausalSoftmax=1)
        # qkv, o, gate, up, down (the last for logits only); scores block by block, values
        # in one product of 4096 keys.
        expected_launches["Gemm"] += 4 + (first + rows == ntok) + blocks + 1
        # Storing, values gathered, queries and outputs by heads, the mask.
        expected_launches["Rearrange"] += -(-rows // block) + blocks + 2 + masked
    assert report["launches"] == expected_launches
    assert (report["syncs"], report["mallocs"], report["pageable"]) == (3, 0, 0)


def test_syncs_of_long_prompts(run_case: RunCase, folders: Folders) -> None:
    """Steps without logits are waited for by the next one, whose staging buffers are the same."""
    report = run_case("long_step", folder=folders("three-layers"), ntok=150, max_step_tokens=64)
    assert report == {"steps": 3, "syncs": 3, "mallocs": 0, "pageable": 0, "d2h": 1}


def test_operators_that_are_never_called() -> None:
    """Sampling is on the host: 0.1.0's CUDA sampler sums probabilities in half precision."""
    module = Path(load_library()._name).with_name("libinfinicore_infer_infini.so")
    if not module.exists():
        pytest.skip("the InfiniCore module was not built")
    # The module looks functions up by their names.
    created = {name.decode() for name in re.findall(rb"infiniopCreate\w+", module.read_bytes())}
    operators = ["Add", "CausalSoftmax", "Gemm", "RMSNorm", "Rearrange", "RoPE", "SwiGLU"]
    names = {f"infiniopCreate{name}Descriptor" for name in [*operators, "Tensor"]}
    assert created == names | {"infiniopCreateHandle"}


def test_softmax_per_length(run_case: RunCase, folders: Folders) -> None:
    """Decode rows of different lengths in one step, not in the order of their lengths."""
    report = run_case(
        "launches", folder=folders("three-layers"), batch=5, ntok=1, past=[9, 4, 9, 30, 4]
    )
    assert report["launches"]["CausalSoftmax"] == 3 * 3
    assert report["launches"]["Gemm"] == 3 * (4 + 2 * 5) + 1


def test_descriptors_of_decoding(run_case: RunCase, folders: Folders) -> None:
    """A longer sequence needs two gemms and a softmax of its length; layers and requests share."""
    created = run_case("descriptors", folder=folders("three-layers"), batch=3, steps=12)
    assert created[1:] == [3] * 11

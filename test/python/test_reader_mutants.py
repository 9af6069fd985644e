"""Damaged copies of models of every kind: a clear error or a good load, never anything else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type
from python.helpers import DEMO, ROOT, SCRIPTS
from python.test_quantised import FORMATS
from reference.gguf_files import write_gguf
from reference.quantised import quantised_copy
from reference.random_checkpoint import CheckpointSpec, make_checkpoint
from reference.random_moe import MoeSpec, moe_model, save_moe

# Q3_MUTANTS=20000 opens so many in place of a sample; other seeds from Q3_FIRST_MUTANT on.
COUNT = int(os.environ.get("Q3_MUTANTS", "120"))
FIRST = int(os.environ.get("Q3_FIRST_MUTANT", "0"))
QUANTISED = ("fp8", "gptq act_order", "awq", "w4a16 asymmetric")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small models, one of each kind, with the demo model's tokenizer."""
    folder = tmp_path_factory.mktemp("bases")
    sizes = {"nlayer": 1, "d": 64, "nh": 2, "nkvh": 1, "dh": 32, "di": 96, "dvoc": 2048}
    plain = make_checkpoint(CheckpointSpec("plain", dtype="bf16", **sizes), folder)
    shards = make_checkpoint(
        CheckpointSpec("shards", dtype="bf16", tied=False, max_shard_size="200KB", **sizes), folder
    )
    sparse = save_moe(moe_model(MoeSpec(nexperts=4, **sizes)), folder / "sparse", "bf16")
    made = [plain, shards, sparse]
    for base in made:
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(DEMO / name, base)
    for form in QUANTISED:
        made.append(folder / form.replace(" ", "-"))
        quantised_copy(plain, made[-1], *FORMATS[form]())
    made.append(folder / "model.gguf")
    write_gguf(plain, made[-1], Type.Q4_0)
    return made


def test_mutants(bases: list[Path]) -> None:
    script = ROOT / "test" / "python" / "reader_mutants.py"
    done = subprocess.run(
        [sys.executable, script, str(FIRST), str(COUNT), "20", *map(str, bases)],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1:]}: {done.stderr[-2000:]}"
    assert sum(line.startswith("mutant ") for line in lines) == COUNT
    assert "BAD" not in done.stdout, done.stdout[done.stdout.index("BAD") :][:3000]
    # Neither all of the damage nor none of it must be harmless.
    refused = sum(line.endswith(" refused") for line in lines)
    assert COUNT / 4 < refused < COUNT

"""Reads what the quantisation tools themselves write. By hand: their packages take gigabytes.

    for tool in gptqmodel autoawq llmcompressor; do     # they exclude each other
        python3 -m venv envs/$tool; pip=envs/$tool/bin/pip; list=test/formats/$tool.txt
        $pip install setuptools wheel $(grep ^torch $list)    # the setups of some ask torch
        $pip install --no-build-isolation -r $list
    done
    .venv/bin/python test/formats/run.py --envs envs [gptq awq w4a16 ...]

Each case quantises the demo model with a tool, and compares

* every weight as this package decodes it with what the tool reads back: equal but for the rounding
  of the type that the tool computes in (``VALUES``, relative);
* the logits in float32 with a float64 forward pass of the tool's values (``LOGITS``, in standard
  deviations);
* the greedy answers to two questions that the model was trained on, codes kept.

Prints a line per case; the exit status is 1 if one failed. A case whose tool has no environment is
said to be skipped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "test"), str(ROOT / "scripts")]

from formats.quantise import CASES  # noqa: E402
from infinicore_infer.checkpoint.checkpoint import Checkpoint  # noqa: E402
from infinicore_infer.checkpoint.coded import CodedMatrix  # noqa: E402
from qwen3 import Qwen3ForCausalLM  # noqa: E402
from reference.qwen3_numpy import forward  # noqa: E402
from reference.random_checkpoint import load_config  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

DEMO = ROOT / "test" / "data" / "qwen3-tiny"
TEXT = ROOT / "test" / "data" / "quality.txt"
# bfloat16 keeps 8 bits; the tools that decode in float32 are at 0.
VALUES = 2.0**-8
LOGITS = 0.02
ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
}


def check(folder: Path) -> str:
    """Compares a quantised copy of the demo model with what its tool wrote beside it.

    Raises:
        AssertionError: It differs.
    """
    values = load_file(folder.with_name(f"{folder.name}.values.safetensors"))
    expected = {name: value.numpy() for name, value in values.items()}
    checkpoint = Checkpoint(folder)
    coded = [name for name in checkpoint if isinstance(checkpoint[name], CodedMatrix)]
    assert coded and set(coded) <= set(expected), coded
    apart = 0.0
    for name, weight in checkpoint.items():
        ours = weight.decoded()
        theirs = expected.setdefault(name, ours)
        assert ours.shape == theirs.shape, name
        if name in values:
            size = np.maximum(np.abs(theirs), 1e-7)
            apart = max(apart, float((np.abs(ours - theirs) / size).max()))
    checkpoint.close()
    assert apart <= VALUES, f"a weight differs by {apart:.1e}"
    tokens = [2000 + i % 3 if i % 9 == 0 else 7 * i % 1900 for i in range(48)]
    oracle = forward(load_config(folder), expected, tokens)
    with Qwen3ForCausalLM(folder, dtype="f32", kv_dtype="f32", cache=False) as model:
        error = np.abs(model.forward(tokens) - oracle).max() / oracle.std()
    assert error <= LOGITS, f"a logit differs by {error:.1e}"
    with Qwen3ForCausalLM(folder, cache=False) as model:
        codes = np.sqrt(((model.forward(tokens) - oracle) ** 2).mean()) / oracle.std()
        for question, answer in ANSWERS.items():
            messages = [{"role": "user", "content": question}]
            said = str(model.chat(messages, enable_thinking=False, temperature=0))
            assert said == answer, f"{question} {said}"
    return f"weights {apart:.1e}, logits {error:.1e}, with codes {codes:.1e} (RMS)"


def run(case: str, python: Path, work: Path) -> str:
    """Quantises the demo model in a case, and checks the result.

    Raises:
        AssertionError: The tool failed, or we read something else than it.
    """
    folder = work / case
    script = ROOT / "test" / "formats" / "quantise.py"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "GPTQMODEL_CPU_WORKERS": "4"}
    environment["TORCHDYNAMO_DISABLE"] = "1"  # it would compile for a minute
    done = subprocess.run(
        [python, script, case, DEMO, folder, TEXT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]
    for file in DEMO.iterdir():  # some tools leave the tokenizer to the user
        if not (folder / file.name).exists() and file.suffix == ".json":
            shutil.copy(file, folder)
    return check(folder)


def main() -> int:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--envs", type=Path, required=True, help="folder of the environments")
    parser.add_argument("cases", nargs="*", help="part of a case's name; default: all")
    arguments = parser.parse_args()
    failed = 0
    for case, (quantise, _) in CASES.items():
        if arguments.cases and not any(part in case for part in arguments.cases):
            continue
        python = arguments.envs / quantise.__name__ / "bin" / "python"
        if not python.exists():
            print(f"{case:28} skipped: there is no {python}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as work:
            try:
                print(f"{case:28} {run(case, python, Path(work))}", flush=True)
            except (AssertionError, ValueError, OSError, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f"{case:28} FAILED: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

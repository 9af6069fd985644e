"""Measures loading to the first token, and its peak of memory, against what the machine allows.

    python test/bench/load_memory.py [--model 0.6b] [--dtype bf16 int8] [-r 3]

Writes a random bf16 checkpoint of an official shape, with a vocabulary of full size, to a temporary
folder (or takes --folder), and loads it in processes of their own. For int8, int4, bf12 and a
checkpoint's own format (`default`) it first loads once to pack (`cold`), then finds the packed
weights on disk (`cached`), if such are kept. The page cache is
warm, since the files were just written or read. Prints one JSON object per load and a table of
medians:

    load        Qwen3ForCausalLM(), tokenizer included
    step        generate("hi", max_steps=1) after it
    sum, aim    both together; 1.5 x bytes / B + 0.3 s, where bytes are those of the file read and B
                is the memory bandwidth that bench_machine measures around each load
    process     from the start of Python to the first token
    peak        peak of resident memory without Python's own, over packed weights + scratch

Needs `.venv/bin/xmake build bench_machine`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
from infinicore_infer.tools.bench_models import SHAPES  # noqa: E402
from infinicore_infer.tools.machine_limits import Machine  # noqa: E402
from libinfinicore_infer import DataType, WeightCache  # noqa: E402
from random_model import write_folder  # noqa: E402

# argv: model folder, dtype, cache folder, threads, when the parent started this process
CHILD = """
import json, sys, time
def most_resident():  # getrusage's peak begins with the parent's
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
folder, dtype, cache, threads, born = sys.argv[1:]
from qwen3 import Qwen3ForCausalLM
before = most_resident()
start = time.monotonic()
model = Qwen3ForCausalLM(
    folder, dtype=dtype, cache_dir=cache, kv_limit_bytes=1 << 30, threads=int(threads)
)
loaded = time.monotonic()
model.generate("hi", max_steps=1)
first = time.monotonic()
stats = model.stats()
peak = most_resident()
print(json.dumps({"dtype": dtype, "import_seconds": start - float(born),
                  "load_seconds": loaded - start, "first_step_seconds": first - loaded,
                  "process_seconds": first - float(born),
                  "python_bytes": before, "peak_bytes": peak, **stats}))
model.close()
"""


def load(folder: Path, cache: Path, dtype: str, threads: int, machine: Machine) -> dict[str, Any]:
    """Loads in a new process."""
    before = machine.now()
    command = [sys.executable, "-c", CHILD, str(folder), dtype, str(cache)]
    command += [str(threads), str(time.monotonic())]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output)
    result["bandwidth_gbps"] = bandwidth = before.mean(machine.now()).bandwidth
    cached = result["weight_cache"] == WeightCache.LOADED
    file = folder / "model.safetensors" if folder.is_dir() else folder
    size = result["weight_bytes"] if cached else file.stat().st_size
    result["file_bytes"] = size
    result["aim_seconds"] = 1.5 * size / bandwidth / 1e9 + 0.3
    result["sum_seconds"] = result["load_seconds"] + result["first_step_seconds"]
    packed = result["weight_bytes"] + result["scratch_bytes"]
    result["peak_over_packed"] = (result["peak_bytes"] - result["python_bytes"]) / packed
    return result


def row(name: str, results: list[dict[str, Any]]) -> str:
    """A line of the table: medians."""
    keys = ("load_seconds", "first_step_seconds", "sum_seconds", "aim_seconds", "process_seconds")
    cells = [f"{statistics.median(result[key] for result in results):.2f}" for key in keys]
    peak = max(result["peak_over_packed"] for result in results)
    bandwidth = statistics.median(result["bandwidth_gbps"] for result in results)
    size = results[0]["file_bytes"] / 1e9
    return f"| {name} | {size:.2f} | {' | '.join(cells)} | {peak:.2f} | {bandwidth:.1f} |"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="0.6b")
    parser.add_argument("--folder", type=Path, help="a folder with one file, or a GGUF file")
    parser.add_argument("--dtype", nargs="+", default=["bf16"], help="weight formats")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-r", "--repeat", type=int, default=3, help="loads of each kind")
    args = parser.parse_args()
    lines = []
    with ExitStack() as stack:
        machine = stack.enter_context(Machine(args.threads))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = args.folder or scratch / "model"
        if args.folder is None:
            write_folder(folder, args.model)
        for dtype in args.dtype:
            kinds = [("cold", 1), ("cached", args.repeat)]
            kept = DataType.parse(dtype).packed or dtype == "default"
            for kind, count in kinds if kept else [("", args.repeat)]:
                results = []
                for _ in range(count):
                    results.append(load(folder, scratch / "cache", dtype, args.threads, machine))
                    print(json.dumps({"kind": kind, **results[-1]}), flush=True)
                lines.append(row(f"{dtype} {kind}".strip(), results))
    print(f"\n{args.threads} threads; B in GB/s, the rest in seconds\n")
    print("| format | GB | load | step | sum | aim | process | peak | B |\n" + "|---" * 9 + "|")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())

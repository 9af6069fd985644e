"""Measures prefill and decode speed and compares it with what the machine can do.

    qwen3-bench --model 0.6b --dtype bf16 -p 512 -n 32
    qwen3-bench --model 0.6b 1.7b -p 128 512 -n 16 -d 0 1024 -b 1 4 --format md
    qwen3-bench --model 1.7b --dtype bf16 int8 --scaling --plot scaling.png
    qwen3-bench --model Qwen3-0.6B-FP8 Qwen3-0.6B-Q4_K_M.gguf

A model is a checkpoint, or random weights of an official Qwen3 shape: speed depends on shapes and
formats only, so nothing has to be downloaded. Every run first measures the machine: read bandwidth
B (best of several access patterns), the float32 multiply-add peak P and the peaks of the
instructions that multiply bf16 and bytes, all with the same number of threads. They are measured
again before and after every repetition, which is compared with what lies between: a shared
machine's limits change within seconds. Decode is compared with B (weights and KV read per step),
prefill with P and with the fastest instruction for the weights' format.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import infinicore_infer
from infinicore_infer.arguments import Precision, count, need_matplotlib, positive_count
from infinicore_infer.native.model import KVCache, StepRequest, sampling_struct
from infinicore_infer.paths import CHECKOUT
from infinicore_infer.tools.bench_models import NAMES, BenchModel, model_name, packed_bytes
from infinicore_infer.tools.machine_limits import CODE_PEAKS, FLOAT_PEAKS, Limits, Machine, cpu_name


@dataclasses.dataclass(slots=True)
class Row:
    """One measurement.

    Attributes:
        model: Shape name, or a checkpoint's path.
        dtype: Weight format; "default": the checkpoint's.
        test: "pp512" (prefill of 512 tokens) or "tg32" (32 decode steps), with "@d1024" for the
            context before it.
        batch: Sequences at once.
        tok_s: Tokens per second of all sequences, median of the repetitions.
        spread: (maximum - minimum) / median of the repetitions.
        gb_s: Bytes of weights and KV read per second, decode only.
        of_bandwidth: Share of B, median over the repetitions of each one's share at that moment.
        gflop_s: Arithmetic per second.
        of_peak: Share of P, likewise.
        of_instruction: Share of the peak of the fastest instruction that multiplies such weights:
            bytes for int8 and int4, bf16 for others, or P where the CPU has none.
        bandwidth: B in GB/s, median of what it was around the repetitions.
        peak: P in GFLOP/s, likewise.
        instruction: That instruction's peak in GFLOP/s, likewise.
    """

    model: str
    dtype: str
    threads: int
    test: str
    batch: int
    tok_s: float
    spread: float
    gb_s: float
    of_bandwidth: float
    gflop_s: float
    of_peak: float
    of_instruction: float
    bandwidth: float
    peak: float
    instruction: float


class Bench:
    """One loaded model and the figures its measurements are compared with."""

    def __init__(
        self, name: str, precision: Precision, args: argparse.Namespace, machine: Machine | None
    ) -> None:
        """Load a checkpoint, or random weights of the shape `name`.

        Without a machine, shares are of 1 GB/s and 1 GFLOP/s: callers then compare by themselves.
        """
        self.name, self.precision, self.machine = name, precision, machine
        start = time.perf_counter()
        loaded = BenchModel(name, precision, args)
        self.load_seconds = time.perf_counter() - start
        self.meta, self.model, self.unread_bytes = loaded.meta, loaded.native, loaded.unread_bytes
        self.expert_bytes = loaded.expert_bytes
        info = self.model.build_info()
        self.threads = int(info["threads"])
        self.codes = info.get("activations") in ("int8", "int16")
        self.rng = np.random.default_rng(1)

    def _limits(self) -> Limits:
        return self.machine.now() if self.machine else Limits(1.0, 1.0, 1.0, 1.0)

    def _tokens(self, count: int) -> NDArray[np.uint32]:
        return self.rng.integers(0, self.meta.dvoc, count).astype(np.uint32)

    def step(self, caches: Sequence[KVCache], tokens: int) -> None:
        """Compute `tokens` more tokens of each sequence, and its next token, greedily."""
        greedy = sampling_struct(no_logprob=1)
        self.model.step([StepRequest(c, self._tokens(tokens), len(c), greedy) for c in caches])

    def _flops(self, tokens: int, first: int, logit_rows: int) -> float:
        """Multiply-adds x 2 of one sequence's `tokens` tokens from position `first` on."""
        m = self.meta
        heads = 2 * (m.nh + m.nkvh) * m.dh  # q, k, v and o
        linear = int(m.nlayer * m.d * (heads + 3 * m.di))
        if m.experts is not None:
            experts = m.experts.count + 3 * (m.experts.used * m.experts.dm - m.di)
            linear += len(m.experts.layers) * m.d * experts
        keys = sum(range(first + 1, first + tokens + 1))
        attention = int(4 * keys * m.nh * m.dh * m.nlayer)
        return float(2 * (linear * tokens + logit_rows * int(m.d * m.dvoc)) + attention)

    def _unchosen(self, batch: int) -> float:
        """Bytes of the experts that a step of so many tokens passes by, on average."""
        experts = self.meta.experts
        if experts is None:
            return 0.0
        return float(self.expert_bytes * (1 - experts.used / experts.count) ** batch)

    def run(self, batch: int, depth: int, prompt: int, generate: int, repetitions: int) -> Row:
        """Measure one prefill, or `generate` decode steps, after `depth` tokens of context."""
        times: list[float] = []
        limits: list[Limits] = []
        for repeat in range(repetitions + 1):
            caches = [self.model.create_kv_cache() for _ in range(batch)]
            if depth:
                for cache in caches:
                    self.step([cache], depth)
            action: Callable[[], None]
            if generate:
                self.step(caches, 1)

                def action(caches: Sequence[KVCache] = caches) -> None:
                    for _ in range(generate):
                        self.step(caches, 1)
            else:

                def action(caches: Sequence[KVCache] = caches) -> None:
                    self.step(caches, prompt)

            before = self._limits()
            start = time.perf_counter()
            action()
            seconds = time.perf_counter() - start
            if repeat:  # the first one warms up
                times.append(seconds)
                limits.append(before.mean(self._limits()))
            for cache in caches:
                cache.close()
        return self._row(batch, depth, prompt, generate, times, limits)

    def _row(
        self,
        batch: int,
        depth: int,
        prompt: int,
        generate: int,
        times: list[float],
        limits: list[Limits],
    ) -> Row:
        seconds = median(times)
        tokens = batch * (generate or prompt)
        first = depth + (1 if generate else 0)
        flops = batch * self._flops(generate or prompt, first, generate or 1) / 1e9
        read = 0.0
        if generate:
            stats = self.model.stats()
            kv_token = stats["kv_block_bytes"] / stats["kv_block_tokens"]
            kv = batch * kv_token * sum(range(first + 1, first + generate + 1))
            weights = packed_bytes(self.model) - self.unread_bytes - self._unchosen(batch)
            read = (generate * weights + kv) / 1e9
        peaks = [at.code_peak if self.codes else at.float_peak for at in limits]
        return Row(
            model=self.name,
            dtype=str(self.precision),
            threads=self.threads,
            test=(f"tg{generate}" if generate else f"pp{prompt}") + (f"@d{depth}" if depth else ""),
            batch=batch,
            tok_s=tokens / seconds,
            spread=(max(times) - min(times)) / seconds,
            gb_s=read / seconds,
            of_bandwidth=median(
                read / t / at.bandwidth for t, at in zip(times, limits, strict=True)
            ),
            gflop_s=flops / seconds,
            of_peak=median(flops / t / at.peak for t, at in zip(times, limits, strict=True)),
            of_instruction=median(flops / t / p for t, p in zip(times, peaks, strict=True)),
            bandwidth=median(at.bandwidth for at in limits),
            peak=median(at.peak for at in limits),
            instruction=median(peaks),
        )


def commit_name() -> str:
    """Return the short name of the commit that is checked out, or an installed package's version.

    Empty where the sources lie in no git repository.
    """
    if CHECKOUT is None:
        return infinicore_infer.__version__
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()


def write_rows(rows: list[dict[str, Any]], facts: dict[str, Any], form: str) -> None:
    """Print the table."""
    if form == "json":
        print(json.dumps({**facts, "rows": rows}, indent=1))
        return
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    names = [field.name for field in dataclasses.fields(Row)]
    if form == "csv":
        csv.writer(sys.stdout).writerows([names, *cells])
        return
    machine = facts["machine"]
    others = [
        f"{name} = {machine[name]}"
        for name in dict.fromkeys(FLOAT_PEAKS[1:] + CODE_PEAKS[1:])
        if name in machine
    ]
    print(
        f"{facts['cpu']}: B = {machine['bandwidth_gbps']} GB/s, "
        + ", ".join([f"P = {machine['fma_gflops']} GFLOP/s", *others])
    )
    print("\n| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for line in cells:
        print("| " + " | ".join(line) + " |")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="qwen3-bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        type=model_name,
        default=["0.6b"],
        metavar="NAME",
        help="official models whose shapes are measured, or paths of checkpoints; names: "
        f"{', '.join(NAMES)} (default: 0.6b)",
    )
    add(
        "--dtype",
        nargs="+",
        type=Precision.parse,
        metavar="TYPE",
        help="formats that the weights are kept in: bf16, f16, f32, int8, int4, int4-mixed or "
        "bf12, each alone or with what it is multiplied with, as in int8:int16 (default: bf16, "
        "and of checkpoints their own)",
    )
    add(
        "-p",
        "--prompt",
        nargs="*",
        type=positive_count,
        metavar="N",
        help="lengths in tokens of the prompts that are read (default: 512)",
    )
    add(
        "-n",
        "--generate",
        nargs="*",
        type=positive_count,
        metavar="N",
        help="numbers of steps that are decoded (default: 32)",
    )
    add(
        "-b",
        "--batch",
        nargs="+",
        type=positive_count,
        metavar="N",
        help="numbers of sequences that are computed together (default: 1)",
    )
    add(
        "-d",
        "--depth",
        nargs="+",
        type=count,
        metavar="N",
        help="lengths in tokens of the context before the test (default: 0)",
    )
    add(
        "-r",
        "--repeat",
        type=positive_count,
        default=3,
        metavar="N",
        help="number of measurements, after one to warm up, of which the median is reported "
        "(default: %(default)s)",
    )
    add(
        "--threads",
        nargs="+",
        type=positive_count,
        metavar="N",
        help="numbers of CPU threads that compute (default: all CPUs of this process)",
    )
    add(
        "--kv-limit",
        type=positive_count,
        default=4096,
        metavar="MIB",
        help="memory in MiB that keys and values may take (default: %(default)s)",
    )
    add(
        "--layers",
        type=positive_count,
        metavar="N",
        help="number of layers of models with random weights, where all do not fit into memory "
        "(default: as the official model has)",
    )
    add(
        "--experts-on-disk",
        type=Path,
        metavar="DIR",
        help="folder with files of packed weights that experts are read from in every step, "
        "written there where they are missing (default: experts are in memory)",
    )
    add(
        "--device",
        default="cpu",
        metavar="NAME",
        help="kind of device that computes (default: %(default)s)",
    )
    add(
        "--format",
        choices=["md", "csv", "json"],
        default="md",
        help="form of the table that is written (default: %(default)s)",
    )
    add(
        "--scaling",
        action="store_true",
        help="vary threads, batch, context and prompt one at a time instead of in all combinations",
    )
    add(
        "--plot",
        type=Path,
        metavar="PNG",
        help="picture that the results are also drawn into, with matplotlib",
    )
    args = parser.parse_args(argv)
    cpus = len(os.sched_getaffinity(0))
    for name, value in {
        "prompt": [32, 128, 512, 2048] if args.scaling else [512],
        "generate": [16] if args.scaling else [32],
        "batch": [1, 2, 4, 8, 16] if args.scaling else [1],
        "depth": [0, 1024, 2048, 4096] if args.scaling else [0],
        "threads": sorted({cpus, *(1 << i for i in range(cpus.bit_length()) if 1 << i < cpus)})
        if args.scaling
        else [cpus],
    }.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.plot:
        need_matplotlib(parser)
    return args


def planned(args: argparse.Namespace, threads: int) -> list[tuple[int, int, int, int]]:
    """Return (batch, depth, prompt, generate) of the tests with that many threads."""
    tests = [(prompt, 0) for prompt in args.prompt] + [(0, n) for n in args.generate]
    if not args.scaling:
        return [(b, d, *test) for d in args.depth for b in args.batch for test in tests]
    batch, depth, steps = min(args.batch), min(args.depth), args.generate[:1]
    decode = [(batch, depth, 0, n) for n in steps]
    if threads != max(args.threads):
        return decode
    plan = [(b, depth, 0, n) for b in args.batch for n in steps]
    plan += [(batch, d, 0, n) for d in args.depth for n in steps]
    plan += [(batch, depth, prompt, 0) for prompt in args.prompt]
    return list(dict.fromkeys(plan))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    args = parse_arguments(argv)
    rows: list[dict[str, Any]] = []
    try:
        machines = {threads: Machine(threads) for threads in args.threads}
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name in args.model:
        for precision in args.dtype or [Precision("bf16" if name in NAMES else "default")]:
            for threads in args.threads:
                one = argparse.Namespace(**{**vars(args), "threads": threads})
                bench = Bench(name, precision, one, machines[threads])
                print(f"{name} {precision}: loaded in {bench.load_seconds:.1f} s", file=sys.stderr)
                for test in planned(args, threads):
                    row = bench.run(*test, args.repeat)
                    rows.append(dataclasses.asdict(row))
                    print(
                        f"  {row.test} batch {row.batch} threads {row.threads}: "
                        f"{row.tok_s:.1f} tok/s",
                        file=sys.stderr,
                    )
                bench.model.close()
    facts = {
        "cpu": cpu_name(),
        "commit": commit_name(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machines[max(args.threads)].facts,
    }
    for machine in machines.values():
        machine.close()
    write_rows(rows, facts, args.format)
    if args.plot:
        from infinicore_infer.tools.bench_plot import draw

        draw(facts, rows, args.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Times builds of the library in turn, for changes smaller than what a machine varies by.

    git worktree add /tmp/before HEAD~1 && (cd /tmp/before && bash scripts/setup.sh)
    LIB=build/linux/x86_64/release/libinfinicore_infer.so
    python test/bench/libraries.py /tmp/before/$LIB $LIB --dtype int8 --test pp512 tg16 tg8@d512*8

Every library is loaded by a process of its own (INFINICORE_INFER_LIB), with the Python and the copy
of this program of the checkout that it lies in: another version has another binding. A round runs
each test once in each of them, one after the other, and a repetition is compared with the first
library's of the same round. Tests are named like bench.py's rows: pp512 is a prefill, tg16 decode
steps, @d4096 the context before, *8 the sequences at once. Where a process's memory lies differs
each time and changes the speed by some percent, so everything is done again in new processes:
--starts.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from infinicore_infer.arguments import Precision
from infinicore_infer.native.model import StepRequest, sampling_struct
from infinicore_infer.tools.bench import Bench
from infinicore_infer.tools.bench_models import SHAPES


class Test(NamedTuple):
    """A prefill of `count` tokens or `count` decode steps, after `depth` tokens, of sequences."""

    name: str
    prefill: bool
    count: int
    depth: int
    batch: int

    @classmethod
    def parse(cls, name: str) -> Test:
        """Understand a name like tg8@d512*4."""
        match = re.fullmatch(r"(pp|tg)([1-9]\d*)(?:@d(\d+))?(?:\*([1-9]\d*))?", name)
        if not match:
            raise argparse.ArgumentTypeError(
                f"{name!r} is no test; examples: pp512, tg16, tg16@d4096, tg8@d512*8"
            )
        return cls(name, match[1] == "pp", int(match[2]), int(match[3] or 0), int(match[4] or 1))


def prepare(bench: Bench, test: Test) -> Callable[[], None]:
    """Compute the context of a test; what is returned runs it, again and again."""
    caches = [bench.model.create_kv_cache() for _ in range(test.batch)]
    for cache in caches:
        if test.depth:
            bench.step([cache], test.depth)
    greedy = sampling_struct(no_logprob=1)

    def step(tokens: int, position: int) -> None:  # what lies behind the position is dropped
        ids = bench.rng.integers(0, bench.meta.dvoc, tokens).astype("uint32")
        bench.model.step([StepRequest(cache, ids, position, greedy) for cache in caches])

    def run() -> None:
        if test.prefill:
            step(test.count, test.depth)
        else:
            for i in range(test.count):
                step(1, test.depth + i)

    return run


def work(args: argparse.Namespace) -> None:
    """Load the model, then run a test for every line read, and answer with its seconds."""
    bench = Bench(args.model, args.dtype[0], args, None)
    runs = {test.name: prepare(bench, test) for test in args.test}
    for run in runs.values():
        run()
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        runs[line.strip()]()
        print(time.perf_counter() - start, flush=True)


def _program(library: Path) -> list[str]:
    """Return the command of a worker for a library: that of its checkout, else this one."""
    for root in library.resolve().parents[4:5]:  # it lies in build/PLATFORM/ARCH/MODE
        python = root / ".venv" / "bin" / "python"
        program = root / "test" / "bench" / "libraries.py"
        if python.exists() and program.is_file():
            return [str(python), str(program)]
    return [sys.executable, __file__]


class Worker:
    """A process with one library."""

    def __init__(self, library: Path, dtype: Precision, args: argparse.Namespace) -> None:
        """Start it and wait until it is ready."""
        command = [*_program(library), str(library), "--worker", "--model", args.model]
        command += ["--threads", str(args.threads), "--kv-limit", str(args.kv_limit)]
        command += ["--dtype", str(dtype), "--test", *(test.name for test in args.test)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "INFINICORE_INFER_LIB": str(library.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def run(self, test: Test) -> float:
        """Return the seconds that the test took."""
        assert self.process.stdin
        print(test.name, file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"libraries.py: {' '.join(map(str, self.process.args))} ended early")  # type: ignore[arg-type]
        return line

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(dtype: Precision, args: argparse.Namespace) -> None:
    """Print a row per test and library for one weight format."""
    times: dict[tuple[Test, int], list[float]] = {}
    for _ in range(args.starts):
        workers = [Worker(library, dtype, args) for library in args.library]
        for _ in range(args.rounds):
            for test in args.test:
                for i, worker in enumerate(workers):
                    times.setdefault((test, i), []).append(worker.run(test))
        for worker in workers:
            worker.close()
    for test in args.test:
        for i, library in enumerate(args.library):
            mine = times[test, i]
            ratio = median(a / b for a, b in zip(mine, times[test, 0], strict=True))
            speed = test.batch * test.count / median(mine)
            print(f"| {dtype} | {test.name} | {speed:.3g} | {ratio:.3f} | {library} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, or be a worker."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", type=Path, nargs="+", help="the first one is compared with")
    parser.add_argument(
        "--model", default="0.6b", help=f"{', '.join(SHAPES)}, or a checkpoint (--dtype default)"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        type=Precision.parse,
        default=[Precision("bf16")],
        help="weight formats, alone or as in int8:int16",
    )
    parser.add_argument(
        "--test", nargs="+", type=Test.parse, default=[Test.parse("pp512"), Test.parse("tg16")]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=2, help="times new processes are started")
    parser.add_argument("--threads", type=int, default=0, help="0: all CPUs of this process")
    parser.add_argument("--kv-limit", type=int, default=4096, help="MiB of KV cache")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.device = "cpu"
    if args.worker:
        work(args)
        return
    if min(args.rounds, args.starts) < 1:
        parser.error("--rounds and --starts take numbers from 1 on")
    if args.model not in SHAPES and not Path(args.model).exists():
        parser.error(f"--model {args.model} is neither a shape nor a checkpoint")
    for library in args.library:
        if not library.is_file():
            parser.error(f"there is no file {library}")
    print(
        "| format | test | tok/s | time, first = 1 | library |\n|---|---|---|---|---|", flush=True
    )
    for dtype in args.dtype:
        compare(dtype, args)


if __name__ == "__main__":
    main()

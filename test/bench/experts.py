"""Measures what experts on disk cost: the same model with its experts in memory and on disk.

    python test/bench/experts.py --layers 8 --dtype int4

Both models are loaded side by side, and each test runs in both in turn. Then the model on disk
decodes with a part of the file dropped from the system's page cache before every token, which is
what a machine with too little memory does at worst: there the experts used lately stay.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from infinicore_infer.arguments import Precision
from infinicore_infer.native.model import StepRequest, sampling_struct
from infinicore_infer.tools.bench_models import EXPERT_SHAPES, BenchModel


class Runs:
    """A loaded model and the tests that it runs."""

    def __init__(self, args: argparse.Namespace, experts: str) -> None:
        """Load it, and read how long that takes."""
        folder = args.cache_dir if experts == "disk" else None
        args = argparse.Namespace(**vars(args), experts_on_disk=folder)
        start = time.perf_counter()
        self.native = BenchModel(args.model, args.dtype, args).native
        self.load_seconds = time.perf_counter() - start
        self.cache = self.native.create_kv_cache()
        self.rng = np.random.default_rng(1)

    def step(self, tokens: int, position: int) -> None:
        """Compute so many random tokens and choose the next one."""
        ids = self.rng.integers(0, 1000, tokens).astype("uint32")
        greedy = sampling_struct(no_logprob=1)
        self.native.step([StepRequest(self.cache, ids, position, greedy)])

    def decode(self, tokens: int, before: Callable[[], object] = lambda: None) -> float:
        """Return the tokens a second of so many steps of one token, without what comes before."""
        seconds = 0.0
        for position in range(tokens):
            before()
            start = time.perf_counter()
            self.step(1, position)
            seconds += time.perf_counter() - start
        return tokens / seconds

    def prefill(self, tokens: int) -> float:
        """Return the tokens a second of a prompt."""
        start = time.perf_counter()
        self.step(tokens, 0)
        return tokens / (time.perf_counter() - start)


def drop(path: Path, share: float) -> Callable[[], None]:
    """Return what drops that share of a file from the page cache, in pieces of 8 MiB."""
    piece = 8 << 20
    rng = np.random.default_rng(2)

    def run() -> None:
        with path.open("rb") as file:
            pieces = np.arange(0, path.stat().st_size, piece)
            for at in pieces[rng.random(len(pieces)) < share]:
                os.posix_fadvise(file.fileno(), int(at), piece, os.POSIX_FADV_DONTNEED)

    return run


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="30b-a3b", choices=list(EXPERT_SHAPES))
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--dtype", type=Precision.parse, default=Precision("int4"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16, help="decoded in a round")
    parser.add_argument("--cache-dir", type=Path, help="where the file is written")
    args = parser.parse_args()
    args.kv_limit, args.device = 512, "cpu"
    with tempfile.TemporaryDirectory(dir=args.cache_dir) as folder:
        args.cache_dir = Path(folder)
        models = {"disk": Runs(args, "disk"), "memory": Runs(args, "memory")}
        for name, model in models.items():
            stats = model.native.stats()
            print(
                f"{name}: {stats['weight_bytes'] / 1e9:.2f} GB of weights in memory, "
                f"{stats['expert_file_bytes'] / 1e9:.2f} GB on disk, "
                f"loaded in {model.load_seconds:.1f} s"
            )
        for test in ("prefill 512", "decode"):
            speeds: dict[str, list[float]] = {name: [] for name in models}
            for repeat in range(args.rounds + 1):
                for name, model in models.items():
                    speed = model.prefill(512) if test != "decode" else model.decode(args.tokens)
                    if repeat:
                        speeds[name].append(speed)
            ratio = median(d / m for d, m in zip(speeds["disk"], speeds["memory"], strict=True))
            row = ", ".join(f"{name} {median(each):.1f}" for name, each in speeds.items())
            print(f"{test}: {row} tok/s; disk / memory {ratio:.2f}")
        models["memory"].native.close()
        (path,) = args.cache_dir.iterdir()
        for share in (0.1, 0.25, 0.5, 1.0):
            speed = models["disk"].decode(args.tokens, drop(path, share))
            print(f"decode with {share:.0%} of the file dropped before each: {speed:.2f} tok/s")
        models["disk"].native.close()


if __name__ == "__main__":
    main()

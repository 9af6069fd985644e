"""What prompt lookup gains where guesses come true, and costs where they do not.

    python test/bench/lookup.py --model 0.6b --dtype bf16 int8 int4 --lookup 4 8 16 -n 96

A model of random weights soon repeats itself when it is greedy: nearly all guesses are right, the
best case. At temperature 1 and with 8 tokens to draw from, there is something to guess all the
time, and one guess in eight is right: the worst case. Plain decoding and lookup take turns.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
from infinicore_infer.arguments import Precision
from infinicore_infer.generate.results import GenerationResult
from infinicore_infer.generate.sampling import SamplingParams
from infinicore_infer.generate.sequence import GenerationSequence
from infinicore_infer.generate.stream import run_sequences
from infinicore_infer.tools.bench import Bench, commit_name, cpu_name
from infinicore_infer.tools.bench_models import SHAPES


def generate(bench: Bench, steps: int, temperature: float, lookup: int) -> GenerationResult:
    """Return an answer to a prompt of 128 tokens that says everything twice."""
    half = np.random.default_rng(5).integers(0, 1000, 64).tolist()
    allowed = None if temperature == 0 else sorted(set(half))[:8]
    sequence = GenerationSequence(
        half * 2,
        SamplingParams(temperature, max_steps=steps, lookup=lookup, seed=1, allowed_tokens=allowed),
        dctx=bench.meta.dctx,
        dvoc=bench.meta.dvoc,
        end_tokens=(),
        tokenizer=None,
    )
    for _ in run_sequences(bench.model, [sequence]):
        pass
    return sequence.result


def main() -> int:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", nargs="+", choices=SHAPES, default=["0.6b"])
    add(
        "--dtype",
        nargs="+",
        type=Precision.parse,
        default=[Precision("bf16"), Precision("int8"), Precision("int4")],
    )
    add("--lookup", nargs="+", type=int, default=[4, 8, 16])
    add("-n", "--generate", type=int, default=96, help="tokens")
    add("-r", "--repeat", type=int, default=3)
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    args.kv_limit, args.device = 2048, "cpu"
    print(f"{cpu_name()}, {args.threads} threads, commit {commit_name()}\n")
    print("| model | dtype | case | lookup | plain tok/s | lookup tok/s | gain | guesses right |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.model:
        for dtype in args.dtype:
            bench = Bench(name, dtype, args, None)
            for case, temperature in (("repeats", 0.0), ("no pattern", 1.0)):
                for lookup in args.lookup:
                    pairs = [
                        [generate(bench, args.generate, temperature, n) for n in (0, lookup)]
                        for _ in range(args.repeat)
                    ]
                    assert all(plain.tokens == fast.tokens for plain, fast in pairs)
                    plain, fast = (
                        float(np.median([pair[i].decode_tps for pair in pairs])) for i in (0, 1)
                    )
                    last = pairs[-1][1]
                    print(
                        f"| {name} | {dtype} | {case} | {lookup} | {plain:.1f} | {fast:.1f} "
                        f"| {fast / plain:.2f} | {last.accepted_tokens} of {last.drafted_tokens} |",
                        flush=True,
                    )
            bench.model.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Tables and a picture of how a step's work divides over many threads; docs/scaling.md explains it.

    .venv/bin/xmake build bench_scaling
    python test/bench/scaling.py --model 0.6b 8b --dtype int8 --threads 16 64 192 --plot scaling.png

Nothing is timed on more cores than there are: claims are counted, and shared out on paper.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from infinicore_infer.paths import CHECKOUT
from infinicore_infer.tools.bench_models import SHAPES, VOCABULARY, official_config


class Step(NamedTuple):
    """A kind of step: so many tokens of each sequence, after a context."""

    name: str
    context: int
    tokens: int
    sequences: int


STEPS = (
    Step("decode", 128, 1, 1),
    Step("decode after 4096", 4096, 1, 1),
    Step("decode of 16", 128, 1, 16),
    Step("prefill 512", 0, 512, 1),
)


def measure(program: Path, model: str, dtype: str, step: Step, threads: list[int]) -> list[Any]:
    """Returns what the program prints, a row per number of threads."""
    config = official_config(model)
    hidden, layers, heads, kv_heads, inner, _ = SHAPES[model]
    sizes = [hidden, layers, heads, kv_heads, config["head_dim"], inner, VOCABULARY]
    sizes += [step.context, step.tokens, step.sequences, *threads]
    command = [str(program), dtype, *map(str, sizes)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draws the balance over threads, a line per model and step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(5 * len(models), 4), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        for step in STEPS:
            mine = [row for row in rows if (row["model"], row["step"]) == (model, step.name)]
            threads = [row["threads"] for row in mine]
            axis.plot(threads, [row["balance"] for row in mine], marker="o", label=step.name)
        axis.set_title(model)
        axis.set_xscale("log", base=2)
        axis.set_ylim(0, 1.05)
        axis.set_xlabel("threads")
        axis.set_ylabel("share of the threads' time that is work")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure all and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["0.6b", "8b"], choices=list(SHAPES))
    parser.add_argument("--dtype", default="int8", choices=["bf16", "int8", "int4"])
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 4, 8, 16, 32, 64, 128, 192])
    parser.add_argument("--plot", type=Path, metavar="PNG")
    args = parser.parse_args()
    program = Path(str(CHECKOUT)) / "build/linux/x86_64/release/bench_scaling"
    if not program.is_file():
        sys.exit(f"scaling.py: {program} is not built: xmake build bench_scaling")
    rows: list[dict[str, Any]] = []
    print(
        "| model | step | threads | forks | claims | claims a fork | balance |\n" + "|---" * 7 + "|"
    )
    for model in args.model:
        for step in STEPS:
            for row in measure(program, model, args.dtype, step, args.threads):
                rows.append({"model": model, "step": step.name, **row})
                print(
                    f"| {model} | {step.name} | {row['threads']} | {row['forks']} "
                    f"| {row['claims']} | {row['claims'] / max(1, row['forks']):.0f} "
                    f"| {row['balance']:.2f} |",
                    flush=True,
                )
    if args.plot:
        plot(args.plot, rows)


if __name__ == "__main__":
    main()

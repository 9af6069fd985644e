"""Draws what --step-seconds and --prompt-seconds trade: tokens per second against pauses.

    python test/bench/random_model.py --model 0.6b DIR
    python test/bench/serving_pace.py --model-path DIR --dtype bf16 int8 --seconds 0.05 0.1 0.2 0.5
    python test/bench/serving_pace.py --model-path DIR --seconds 0.12 --prompt-seconds 0.12 0.6

Starts scripts/launch_server.py once for every format and pair of values, and measures each as
bench_serving does, with so many users who ask again as soon as they are answered.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from infinicore_infer.tools import bench_serving
from soak import launch


def measure(
    args: argparse.Namespace, dtype: str, seconds: float, prompt: float
) -> list[dict[str, Any]]:
    """Returns the rows of one server."""
    options = ["--model-path", str(args.model_path), "--dtype", dtype, "--kv-memory", "4G"]
    options += ["--step-seconds", str(seconds), "--prompt-seconds", str(prompt)]
    with tempfile.TemporaryDirectory() as folder:
        server, url = launch(options, Path(folder) / "log")
    try:
        options = ["--url", url, "--users", *map(str, args.users)]
        options += ["--generate", str(args.generate), "--rounds", str(args.rounds)]
        run = bench_serving.measure(bench_serving.parse_arguments(options))
    finally:
        server.terminate()
        server.wait()
    values = {"dtype": dtype, "step_seconds": seconds, "prompt_seconds": prompt}
    return [{**values, **row} for row in run["rows"]]


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draws a line per format and number of users, a point per value."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys((row["dtype"], row["load"]) for row in rows):
        mine = [row for row in rows if (row["dtype"], row["load"]) == name]
        line = axis.plot(
            [row["itl_p90"] for row in mine],
            [row["tok_s"] for row in mine],
            marker="o",
            label=f"{name[0]}, {name[1]}",
        )
        for row in mine:
            axis.annotate(
                f"{row['step_seconds']:g}, {row['prompt_seconds']:g} s",
                (row["itl_p90"], row["tok_s"]),
                fontsize=7,
                color=line[0].get_color(),
            )
    axis.set_xlabel("between two pieces of text, 90 % are shorter, ms")
    axis.set_ylabel("generated tokens per second, all users")
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure all and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dtype", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--seconds", nargs="+", type=float, default=[0.05, 0.12, 0.25, 0.5])
    parser.add_argument("--prompt-seconds", nargs="+", type=float, default=[0.6])
    parser.add_argument("--users", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--generate", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=2, help="requests of each user")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("| format | steps, s | load | tok/s | first text p50, p90 | between p50, p90, p99, ms |")
    print("|---" * 6 + "|")
    for dtype, seconds, prompt in itertools.product(args.dtype, args.seconds, args.prompt_seconds):
        for row in measure(args, dtype, seconds, prompt):
            rows.append(row)
            print(
                f"| {dtype} | {seconds:g}, {prompt:g} | {row['load']} | {row['tok_s']:.1f} "
                f"| {row['ttft_p50']:.0f}, {row['ttft_p90']:.0f} "
                f"| {row['itl_p50']:.0f}, {row['itl_p90']:.0f}, {row['itl_p99']:.0f} |",
                flush=True,
            )
    if args.json:
        args.json.write_text(
            json.dumps({"date": time.strftime("%Y-%m-%d"), "rows": rows}, indent=1)
        )
    if args.plot:
        plot(args.plot, rows)


if __name__ == "__main__":
    main()

"""Draws what qwen3-bench measured.

    qwen3-bench ... --format json > run.json
    python -m infinicore_infer.tools.bench_plot run.json [more.json] -o docs/img/bench.png

For one run, ``qwen3-bench --plot`` does the same.

Figures of test/bench/peers.py (its ``--json``) become bars side by side, the runs of one machine
in a row; the same runtime has one colour everywhere. Runs of qwen3-bench become
several panels: decode against the bandwidth limit, prefill against the multiply-add limit, then
tokens per second over batch, context, threads and prompt, as far as the runs vary them.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"bf16": "tab:blue", "f16": "tab:cyan", "f32": "tab:gray", "int8": "tab:orange"}
STYLES = ("-", "--", ":", "-.")
COLOURS |= {"int4": "tab:green", "bf12": "tab:purple"}


def parsed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its test split into kind, length and depth."""
    match = re.fullmatch(r"(pp|tg)(\d+)(?:@d(\d+))?", row["test"])
    assert match, row["test"]
    return {**row, "kind": match[1], "length": int(match[2]), "depth": int(match[3] or 0)}


def bars(axis: Any, rows: list[dict[str, Any]], share: str, title: str) -> None:
    """Draw each configuration's share of its limit."""
    labels = [f"{r['model']} {r['dtype']}" for r in rows]
    axis.bar(labels, [100 * r[share] for r in rows], color=[COLOURS[r["dtype"]] for r in rows])
    for i, row in enumerate(rows):
        axis.text(i, 100 * row[share] + 1, f"{row['tok_s']:.3g}\ntok/s", ha="center", fontsize=8)
    axis.axhline(100, color="black", linewidth=0.8)
    axis.set_ylim(0, max([115, *(115 * row[share] for row in rows)]))
    axis.set_ylabel("% of the machine's limit")
    axis.set_title(title)
    axis.tick_params(axis="x", rotation=30)


def lines(axis: Any, rows: list[dict[str, Any]], x: str, title: str) -> None:
    """Draw tokens per second over one variable, a line per model and format."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    for model, dtype in dict.fromkeys((row["model"], row["dtype"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["dtype"]) == (model, dtype)]
        points = sorted({row[x]: row["tok_s"] for row in reversed(mine)}.items())
        axis.plot(
            *zip(*points, strict=True),
            STYLES[models.index(model) % len(STYLES)],
            marker="o",
            label=f"{model} {dtype}",
            color=COLOURS[dtype],
        )
    axis.set_ylim(bottom=0)
    axis.set_xlabel(title)
    axis.set_ylabel("tok/s")
    axis.legend()
    axis.grid(alpha=0.3)


def draw(facts: dict[str, Any], rows: list[dict[str, Any]], output: Path) -> None:
    """Write the picture of a run's rows; its format follows the file's name."""
    rows = [parsed(row) for row in rows]
    full = max(row["threads"] for row in rows)
    whole = [r for r in rows if r["threads"] == full]
    plain = [r for r in whole if r["depth"] == 0 and r["batch"] == 1]
    # A configuration measured twice is drawn once, as first measured.
    tests = [r for r in plain if r["kind"] == "tg"]
    decode = list({(r["model"], r["dtype"]): r for r in reversed(tests)}.values())[::-1]
    longest = max(
        (r["length"] for r in plain if r["kind"] == "pp" and r["length"] <= 512), default=0
    )
    prefill = [r for r in plain if r["kind"] == "pp" and r["length"] == longest]
    decoding = [r for r in rows if r["kind"] == "tg"]
    one = [r for r in decoding if r["threads"] == full]
    alone = [r for r in decoding if r["batch"] == 1 and r["depth"] == 0]
    varied = [
        ([r for r in one if r["depth"] == 0], "batch", "decode: batch"),
        ([r for r in one if r["batch"] == 1], "depth", "decode: context, tokens"),
        (alone, "threads", "decode: threads"),
        ([r for r in plain if r["kind"] == "pp"], "length", "prefill: prompt, tokens"),
    ]
    varied = [panel for panel in varied if len({row[panel[1]] for row in panel[0]}) > 1]
    count = 2 + len(varied)
    across = min(count, 3)
    down = -(-count // across)
    figure, grid = plt.subplots(down, across, figsize=(5 * across, 4 * down), squeeze=False)
    axes = list(grid.flat)
    bars(axes[0], decode, "of_bandwidth", "decode, batch 1: share of read bandwidth")
    bars(axes[1], prefill, "of_peak", f"prefill {longest}: share of FMA peak")
    for axis, panel in zip(axes[2:], varied, strict=False):
        lines(axis, *panel)
    for axis in axes[count:]:
        axis.remove()
    machine = facts["machine"]
    figure.suptitle(
        f"{facts['cpu']}, {full} threads, {facts['date']}, {facts['commit']}: "
        f"B = {machine['bandwidth_gbps']} GB/s, P = {machine['fma_gflops']} GFLOP/s"
    )
    _write(figure, output)


def draw_peers(runs: list[dict[str, Any]], output: Path) -> None:
    """Write the picture of runtimes side by side: a row a machine, a group of bars a format."""
    machines = list(dict.fromkeys(run["cpu"] for run in runs))
    rows = {cpu: [r for run in runs if run["cpu"] == cpu for r in run["rows"]] for cpu in machines}
    runtimes = list(dict.fromkeys(row["runtime"] for run in runs for row in run["rows"]))
    most = max(len({(row["model"], row["format"]) for row in mine}) for mine in rows.values())
    size = (6 + 1.6 * most, 4 * len(machines))
    figure = plt.figure(figsize=size, layout="constrained")
    for part, cpu in zip(
        figure.subfigures(len(machines), squeeze=False)[:, 0], machines, strict=True
    ):
        for axis, kind in zip(part.subplots(1, 2), ("prefill", "decode"), strict=True):
            _draw_runtimes(axis, rows[cpu], runtimes, kind)
        facts = next(run for run in runs if run["cpu"] == cpu)
        part.suptitle(f"{cpu}, {facts['threads']} threads, {facts['date']}, {facts['commit']}")
    _save(figure, output)


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _draw_runtimes(axis: Any, rows: list[dict[str, Any]], runtimes: list[str], kind: str) -> None:
    groups = list(dict.fromkeys((row["model"], row["format"]) for row in rows))
    here = [runtime for runtime in runtimes if any(row["runtime"] == runtime for row in rows)]
    width = 0.85 / len(here)
    for i, runtime in enumerate(here):
        mine = {(r["model"], r["format"]): r[kind] for r in rows if r["runtime"] == runtime}
        places = [g + (i - (len(here) - 1) / 2) * width for g in range(len(groups))]
        heights = [mine.get(group, 0) for group in groups]
        colour = f"C{runtimes.index(runtime)}"
        drawn = axis.bar(places, heights, width, label=runtime, color=colour)
        texts = [_three_digits(height) if height else "" for height in heights]
        axis.bar_label(drawn, texts, fontsize=7)
    axis.set_xticks(range(len(groups)), [" ".join(group) for group in groups])
    axis.set_ylabel("tok/s")
    axis.set_title(kind)
    axis.legend()


def _write(figure: Any, output: Path) -> None:
    figure.tight_layout()
    _save(figure, output)


def _save(figure: Any, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=90)
    plt.close(figure)


def main() -> int:
    """Draw the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m infinicore_infer.tools.bench_plot", description=__doc__.splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", type=Path, help="files of figures that are drawn")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="PNG",
        help="picture that is written; its name's ending says in which format",
    )
    args = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in args.runs]
    rows = [row for run in runs for row in run["rows"]]
    if "runtime" in rows[0]:
        draw_peers(runs, args.output)
    else:
        draw(runs[0], rows, args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

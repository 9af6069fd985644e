"""Command-line options of how a model is loaded, the same for the command line and the server."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from libinfinicore_infer import DeviceType


def add_model_arguments(parser: argparse.ArgumentParser, count: Callable[[str], int]) -> None:
    """Add them to a parser; ``count`` reads a number of devices."""
    add = parser.add_argument
    add("--device", default="cpu", metavar="NAME", help=", ".join(d.label for d in DeviceType))
    add("--ndev", type=count, default=1, metavar="N", help="devices to cut the model over")
    add("--backend", default="auto", choices=("auto", "cpu", "infinicore"))
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all usable)")
    add(
        "--dtype",
        metavar="TYPE",
        help="weights: f32, f16, bf16, bf12, int8, int4, int4-mixed (default: the checkpoint's)",
    )
    add("--kv-dtype", metavar="TYPE", help="KV cache: f16, bf16, f32, int8 (default: f16 or f32)")
    add("--no-cache", action="store_true", help="keep no packed weights on disk")
    add("--cache-dir", metavar="DIR", help="where to keep them (default: the user's cache folder)")

"""Command-line options of models, the same for the command line and the server."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from libinfinicore_infer import DeviceType

# Guesses per step of --lookup: more pay only where nearly all of them are right.
_LOOKUP = 8


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


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what they say as arguments of :class:`Qwen3ForCausalLM`."""
    return {
        "device": args.device,
        "ndev": args.ndev,
        "backend": args.backend,
        "threads": args.threads,
        "dtype": args.dtype,
        "kv_dtype": args.kv_dtype,
        "cache": not args.no_cache,
        "cache_dir": args.cache_dir,
    }


def add_lookup_argument(parser: argparse.ArgumentParser) -> None:
    """Add --lookup to a parser."""
    parser.add_argument(
        "--lookup",
        type=int,
        nargs="?",
        const=_LOOKUP,
        default=0,
        metavar="N",
        help="guess up to N tokens per step from repetitions; the answer stays the same "
        f"(0: off, the default; without N: {_LOOKUP})",
    )

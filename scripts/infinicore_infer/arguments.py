"""Command-line options that several programs share, and how their values are read."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from libinfinicore_infer import Activations, DataType, DeviceType

from infinicore_infer.paths import CHECKOUT, DEMO, PROJECT

KEY_VARIABLE = "INFINICORE_INFER_API_KEY"

# Guesses per step of --lookup: more pay only where nearly all of them are right.
_LOOKUP = 8
# Of infinicore_infer.checkpoint.task, which lies beside this module; a test compares them.
TASKS = ("auto", "chat", "embed", "rerank")
_MOST = 2**31 - 1  # of what is counted: the library takes numbers of 32 bits
_MOST_BYTES = 1 << 60
_LEAST_BODY = 1 << 10
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


# ------------------------------------------------------------------ types of values


def memory_size(text: str) -> int:
    """Return bytes from a number with an optional K, M, G or T (powers of 1024).

    Raises:
        argparse.ArgumentTypeError: The text is no such number.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a size such as 512M or 4G")
    size = float(match[1]) * _UNITS[match[2].upper()]
    if not size < _MOST_BYTES:
        raise argparse.ArgumentTypeError(f"{_short(text)} is more than 1024P, which nothing has")
    return int(size)


def body_size(text: str) -> int:
    """Read the most bytes of a request's body; so few that no request fits are refused.

    Raises:
        argparse.ArgumentTypeError: The text is no such number.
    """
    size = memory_size(text)
    if size < _LEAST_BODY:
        raise argparse.ArgumentTypeError(f"{text!r} is too small for a request: at least 1K")
    return size


def positive_count(text: str) -> int:
    """Read a whole number above 0.

    Raises:
        argparse.ArgumentTypeError: The text is no such number.
    """
    if not re.fullmatch(r"0*[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a whole number above 0")
    return _bounded(text)


def count(text: str) -> int:
    """Read a whole number from 0 on.

    Raises:
        argparse.ArgumentTypeError: The text is no such number.
    """
    if not re.fullmatch(r"[0-9]+", text):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a whole number from 0 on")
    return _bounded(text)


def _bounded(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    if len(digits) > len(str(_MOST)) or int(digits) > _MOST:
        raise argparse.ArgumentTypeError(f"{_short(digits)} is above {_MOST}")
    return int(digits)


def _short(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:37]!r}..."


def temperature(text: str) -> float:
    """Read a temperature of sampling: a finite number from 0 on.

    Raises:
        argparse.ArgumentTypeError: The text is no such number.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a finite number from 0 on")
    return value


def json_object(text: str) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        argparse.ArgumentTypeError: The text is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a JSON object")
    return value


def port(text: str) -> int:
    """Read the number of a TCP port; 0 stands for any free one.

    Raises:
        argparse.ArgumentTypeError: The text is no such number.
    """
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def seconds(text: str) -> float:
    """Read a number of seconds above 0.

    Raises:
        argparse.ArgumentTypeError: The text is no such number.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def need_matplotlib(parser: argparse.ArgumentParser) -> None:
    """End a program with a usage error if --plot cannot draw."""
    if importlib.util.find_spec("matplotlib") is None:
        where = "-r scripts/requirements/bench.txt" if CHECKOUT else f"'{PROJECT}[bench]'"
        parser.error(f"--plot needs matplotlib: pip install {where}")


# ------------------------------------------------------------------ the model


def add_model_path(parser: argparse.ArgumentParser) -> None:
    """Add --model-path to a parser; :func:`model_folder` reads it."""
    default = "required" if DEMO is None else "default: the tiny demo model of the repository"
    parser.add_argument(
        "--model-path", metavar="PATH", help=f"folder of the checkpoint, or a GGUF file ({default})"
    )


def model_folder(path: str | os.PathLike[str] | None) -> Path:
    """Return the folder that --model-path names, or that of the demo model.

    Raises:
        ValueError: The name is empty, or no folder was named, and this package does not run from a
            checkout of the repository, which alone has the demo model.
    """
    if path == "":
        raise ValueError("--model-path is empty")
    if path is not None:
        return Path(path)
    if DEMO is None:
        raise ValueError(
            "--model-path is required: only a checkout of the repository has the demo model"
        )
    return DEMO


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of how a model is loaded to a parser; :func:`model_options` reads them."""
    add = parser.add_argument
    devices = ", ".join(device.label for device in DeviceType)
    add(
        "--device",
        default="cpu",
        metavar="NAME",
        help=f"kind of device that computes (default: %(default)s); one of {devices}",
    )
    add(
        "--ndev",
        type=positive_count,
        default=1,
        metavar="N",
        help="number of devices that the model is cut over (default: %(default)s)",
    )
    add(
        "--backend",
        default="auto",
        choices=("auto", "cpu", "infinicore"),
        help="operators that compute: the engine's own on the CPU, or InfiniCore's "
        "(default: auto, which is cpu for the CPU and infinicore for every other device)",
    )
    add(
        "--threads",
        type=count,
        default=0,
        metavar="N",
        help="number of CPU threads that compute (default: 0, as many as there are usable CPUs)",
    )
    add(
        "--dtype",
        metavar="TYPE",
        help="format that the weights are kept in: f32, f16, bf16, bf12, int8, int4 or int4-mixed "
        "(default: that of the checkpoint; codes of quantised ones are kept on the CPU, and "
        "decoded where InfiniCore computes)",
    )
    add(
        "--kv-dtype",
        metavar="TYPE",
        help="format that keys and values are kept in: f16, bf16, f32 or int8 "
        "(default: f32 for weights in f32, bf16 with activations in bf16, else f16)",
    )
    add(
        "--activations",
        default="auto",
        metavar="TYPE",
        help="how exactly the CPU keeps what weights are multiplied with: f32, bf16x2 or bf16 for "
        "weights that are floats, int16 or int8 for int8, int4 and most codes of quantised "
        "checkpoints; fewer bits are faster "
        "(default: auto, the fastest that costs no more precision than other engines)",
    )
    add(
        "--no-cache",
        action="store_true",
        help="do not keep the packed weights on disk for the next start",
    )
    add(
        "--experts",
        default="memory",
        choices=["memory", "disk"],
        help="where a mixture's experts are: in memory, or on disk in the cache folder's file, "
        "which each step reads from; memory that is free then caches it (default: %(default)s)",
    )
    add(
        "--cache-dir",
        metavar="DIR",
        help="folder that packed weights are kept in (default: the user's cache folder)",
    )


def add_task_argument(parser: argparse.ArgumentParser) -> None:
    """Add --task to a parser."""
    parser.add_argument(
        "--task",
        default="auto",
        choices=TASKS,
        help="what the model is for: chats, embeddings, or judging documents (default: auto, "
        "judged by its tensors, the files of sentence-transformers, and its name)",
    )


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what they say as arguments of :class:`Qwen3ForCausalLM`."""
    return {
        "device": args.device,
        "ndev": args.ndev,
        "backend": args.backend,
        "threads": args.threads,
        "dtype": args.dtype,
        "kv_dtype": args.kv_dtype,
        "activations": args.activations,
        "cache": not args.no_cache,
        "cache_dir": args.cache_dir,
        "experts": args.experts,
    }


class Precision(NamedTuple):
    """What a benchmark computes in: a format of weights, and of what they are multiplied with."""

    dtype: str
    activations: str = "auto"

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Understand a name such as ``int8`` or ``int8:int16``."""
        dtype, _, activations = text.partition(":")
        try:
            DataType.parse(dtype)
            Activations.parse(activations or "auto")
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return cls(dtype, activations or "auto")

    def __str__(self) -> str:
        """Return the name that :meth:`parse` understands."""
        return self.dtype if self.activations == "auto" else f"{self.dtype}:{self.activations}"


def add_lookup_argument(parser: argparse.ArgumentParser) -> None:
    """Add --lookup to a parser."""
    parser.add_argument(
        "--lookup",
        type=count,
        nargs="?",
        const=_LOOKUP,
        default=0,
        metavar="N",
        help="number of tokens a step may guess from repetitions in the text, which makes answers "
        f"faster and does not change them (default: 0, none; without N: {_LOOKUP})",
    )


# ------------------------------------------------------------------ servers


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every server has, on one machine or many, to a parser."""
    add = parser.add_argument
    add(
        "--model-name",
        "--served-model-name",
        nargs="+",
        metavar="NAME",
        help="names that clients may call the model by; the first is its own "
        "(default: that of its folder)",
    )
    add(
        "--any-model-name",
        action="store_true",
        help="answer whatever a request calls the model",
    )
    add(
        "--chat-template",
        type=Path,
        metavar="FILE",
        help="chat template, in Jinja, to be used in place of the checkpoint's",
    )
    add(
        "--default-chat-template-kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="variables of the chat template where a request does not set them, such as "
        """'{"enable_thinking": false}'""",
    )
    add(
        "--max-tokens",
        type=positive_count,
        metavar="N",
        help="longest context of a request in tokens (default: the model's own)",
    )
    add(
        "--kv-memory",
        type=memory_size,
        default=0,
        metavar="SIZE",
        help="memory that keys and values of all requests may take, such as 4G "
        "(default: half of what is free at the start)",
    )
    add(
        "--max-batch",
        type=positive_count,
        default=16,
        metavar="N",
        help="number of answers that are computed together (default: %(default)s)",
    )
    add(
        "--max-queue",
        type=count,
        default=256,
        metavar="N",
        help="number of requests that may wait; those beyond it get status 429 "
        "(default: %(default)s)",
    )
    add(
        "--drain-timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="seconds that answers in progress may take to end after SIGTERM "
        "(default: %(default)g)",
    )
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address that the server listens at (default: %(default)s)",
    )
    add(
        "--port",
        type=port,
        default=8000,
        metavar="N",
        help="port that the server listens at; 0 takes any free one (default: %(default)s)",
    )
    add(
        "--api-key",
        metavar="KEY",
        help="key that every client has to send (default: that in the environment variable "
        f"{KEY_VARIABLE}, or none)",
    )
    add(
        "--unknown-fields",
        default="warn",
        choices=("warn", "refuse"),
        help="what to do with fields of requests that no documented API has: name them in the "
        "header X-Ignored-Fields and the log, or refuse the request (default: %(default)s)",
    )


def service_options(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what they say of names and prompts as arguments of :class:`ServiceConfig`.

    Args:
        args: What was parsed.
        folder: Of the model.
    """
    name, *aliases = args.model_name or [folder.resolve().name.removesuffix(".gguf")]
    return {
        "model_name": name,
        "aliases": aliases,
        "any_model_name": args.any_model_name,
        "chat_template": args.chat_template,
        "template_variables": args.default_chat_template_kwargs,
        "unknown_fields": args.unknown_fields,
    }


def api_key(args: argparse.Namespace) -> str | None:
    """Return the key that clients have to send, from --api-key or the environment; None: none."""
    return args.api_key or os.environ.get(KEY_VARIABLE) or None


def is_loopback(host: str) -> bool:
    """Return whether only programs of this machine reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"

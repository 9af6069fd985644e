"""Opens damaged copies of models and prints what is neither a clear error nor a good load.

    python reader_mutants.py FIRST COUNT SECONDS BASE...

A base is a model folder or a GGUF file. Mutant number i damages base ``i % len(BASE)`` as the seed
i says, so that a number from the output can be repeated. There is address space for a gigabyte
more than at the start, and an alarm after ``SECONDS`` with each mutant.
"""

from __future__ import annotations

import faulthandler
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from infinicore_infer.text.chat_template import TokenizerError
from libinfinicore_infer import Qwen3Error
from qwen3 import Qwen3ForCausalLM

ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 31, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, 2**70),
    *(10**400, 1.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "x", "\ud800", "\0", "re:(", "re:(a+)+$", "F32", "I4", "a" * 5000, "∞", "../x", "/"),
    *([], [0], [1] * 100, [-1, 0], {}, {"a": None}, [[]], [2**40, 2**40], [0, 2**62]),
)
_RAW = ('{"a":1,"a":2}', "1" * 5000, "[" * 100_000, "NaN", "\x80", "1e999", "-", '"\\ud800"')


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the places of a JSON value, containers included."""
    found = [path]
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:20])
    for key, part in items:
        found += _paths(part, (*path, key))
    return found


def damaged_json(value: Any, rng: random.Random, places: list[tuple[Any, ...]]) -> str:
    """Returns the text of a JSON value of which one to three places were changed."""
    value = json.loads(json.dumps(value))
    raw: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(places)
        parent = value
        try:
            for key in path[:-1]:
                parent = parent[key]
            key = path[-1]
            old = parent[key]
        except (LookupError, TypeError):
            continue
        if isinstance(parent, str):
            continue
        action = rng.randrange(8)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, dict):
            parent[rng.choice((f"{key}x", "", "\ud800", rng.choice(list(parent))))] = old
        elif action == 2:
            parent[key] = parent[rng.choice(list(parent))] if isinstance(parent, dict) else [old]
        elif action == 3 and isinstance(old, int) and not isinstance(old, bool):
            parent[key] = old + rng.choice((-1, 1, 7, 8, 64, -old - 1, old, 1 << 40))
        elif action == 4 and isinstance(old, str):
            parent[key] = old + rng.choice(ODD[-21:-9]) if rng.random() < 0.5 else old[:-1]
        elif action == 5:
            parent[key] = f"@RAW{len(raw)}@"
            raw.append(rng.choice(_RAW))
        else:
            parent[key] = rng.choice(ODD)
    text = json.dumps(value)
    for i, part in enumerate(raw):
        text = text.replace(f'"@RAW{i}@"', part)
    return text


def damaged_bytes(data: bytes, rng: random.Random, end: int | None = None) -> bytes:
    """Returns data with bytes changed, mostly before ``end``, cut, doubled or moved."""
    bad = bytearray(data)
    end = min(end or len(bad), len(bad))
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(max(1, end if rng.random() < 0.9 else len(bad)))
        action = rng.randrange(6)
        if action == 0:
            del bad[at if rng.random() < 0.5 else rng.randrange(len(bad)) :]
        elif action == 1:
            bad[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1)))
        elif action == 2:
            bad[at:at] = bad[rng.randrange(len(bad)) :][: rng.randrange(1, 64)]
        elif action == 3:
            del bad[at : at + rng.randrange(1, 64)]
        elif action == 4:
            bad[at : at + 2] = rng.choice((b"\x00\x7e", b"\x00\x7c", b"\xff\xff", b"\xc0\x7f"))
        else:
            bad[at : at + 1] = bytes([rng.randrange(256)])
        if not bad:
            break
    return bytes(bad)


def damaged_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Returns a safetensors file with other entries in its header, or a length that lies."""
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    if rng.random() < 0.3:
        return damaged_bytes(data, rng, 8 + size if rng.random() < 0.7 else None)
    if rng.random() < 0.2:  # numbers that are none, in the smallest tensors: scales
        names = sorted(
            (n for n in header if n != "__metadata__"),
            key=lambda n: header[n]["data_offsets"][1] - header[n]["data_offsets"][0],
        )
        begin, end = header[rng.choice(names[: len(names) // 2 + 1])]["data_offsets"]
        filling = rng.choice((b"\x00\x7e", b"\x00\x7c", b"\xc0\x7f", b"\x80\x7f", b"\xff\xff"))
        rest = rest[:begin] + (filling * (end - begin))[: end - begin] + rest[end:]
        return data[: 8 + size] + rest
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    places = [(name, *path) for path in _paths(header[name])]
    if rng.random() < 0.3:
        other = rng.choice(names)
        header[name], header[other] = header[other], header[name]
    text = damaged_json(header, rng, places).encode("utf-8", "surrogatepass")
    length = (
        len(text) if rng.random() < 0.9 else rng.choice((0, 1, len(text) + 1, 2**40, 2**64 - 1))
    )
    return struct.pack("<Q", length) + text + rest


def _damage(folder: Path, rng: random.Random) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    others = [path for path in files if path.suffix == ".json"]
    kind = rng.random()
    path = rng.choice(weights if kind < 0.5 else others)
    data = path.read_bytes()
    if path in weights:
        path.write_bytes(damaged_safetensors(data, rng))
        return
    if path.name == "config.json" and kind < 0.9:
        value = json.loads(data)
        places = _paths(value)[1:]
        inner = [p for p in places if p[0] == "quantization_config"]
        places = inner if inner and rng.random() < 0.7 else places
    elif path.name == "tokenizer_config.json" and kind < 0.7:
        value = json.loads(data)
        template = damaged_bytes(value["chat_template"].encode(), rng)
        value["chat_template"] = template.decode("utf-8", "replace")
        path.write_text(json.dumps(value))
        return
    elif kind < 0.9:
        value = json.loads(data)
        # Not most of the time one of thousands of tokens.
        places = [p for p in _paths(value)[1:] if len(p) < 4 or rng.random() < 0.02]
    else:
        path.write_bytes(damaged_bytes(data, rng))
        return
    text = damaged_json(value, rng, places)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def _open_model(path: Path) -> None:
    with Qwen3ForCausalLM(path, cache=False, threads=1) as model:
        model.forward([1, 2])
        if model.has_tokenizer:
            model.encode("Hello <|im_start|>1")
            model.generate("Hi", max_steps=2)
            model.chat([{"role": "user", "content": "Hi"}], max_steps=2)


def _is_clear(error: BaseException, told: str) -> bool:
    """Whether an error is one of ours, raised by us, that names the file."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, Qwen3Error):
        # Finite weights can still be too large for what a model makes of them.
        return told in str(error) or "the model produced" in str(error)
    if isinstance(error, TokenizerError) and "chat template" in str(error):
        return True
    if isinstance(error, ValueError) and "the prompt has" in str(error):
        return True  # a context of two tokens is none too few for a model
    ours = isinstance(error, ValueError | OSError) and "infinicore_infer" in frames[-1].filename
    return (ours or isinstance(error, FileNotFoundError)) and told in str(error)


def _alarm(*_: object) -> None:
    raise TimeoutError("takes too long")


def run(number: int, bases: list[Path], seconds: int, work: Path) -> str:
    """Opens one mutant; returns what happened: loaded, refused, or what is wrong."""
    rng = random.Random(number)
    base = bases[number % len(bases)]
    path = work / base.name
    if base.is_dir():
        shutil.copytree(base, path)
        _damage(path, rng)
    else:
        data = base.read_bytes()
        path.write_bytes(damaged_bytes(data, rng, int(len(data) * rng.random() ** 4) + 1))
    signal.alarm(seconds)
    try:
        _open_model(path)
    except Exception as error:
        if not _is_clear(error, str(work)):
            return "BAD " + "".join(traceback.format_exception(error)[-3:])
        return "refused"
    finally:
        signal.alarm(0)
    return "loaded"


def main() -> None:
    """Open mutants."""
    faulthandler.enable()
    first, count, seconds = (int(number) for number in sys.argv[1:4])
    bases = [Path(name) for name in sys.argv[4:]]
    signal.signal(signal.SIGALRM, _alarm)
    if "libasan" not in Path("/proc/self/maps").read_text():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
    for number in range(first, first + count):
        with tempfile.TemporaryDirectory() as work:
            print(f"mutant {number}", end="", flush=True)
            print(f" {run(number, bases, seconds, Path(work))}", flush=True)


if __name__ == "__main__":
    main()

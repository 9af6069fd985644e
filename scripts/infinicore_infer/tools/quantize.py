"""Writes a checkpoint with weights in int8 or int4, to be loaded or handed on without packing anew.

    qwen3-quantize SRC DST --dtype int8

SRC is any checkpoint that runs, plain, quantised or GGUF. DST becomes a folder of safetensors in
compressed-tensors' form "pack-quantized", with one bfloat16 scale for 32 weights of a row, which
other programs read too. Embeddings, head and norms stay as they are; with int4 the first layer is
in int8, as with --dtype int4 everywhere.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.checkpoint.group_codes import GROUP, bf16_bits, group_codes, packed
from infinicore_infer.checkpoint.json_files import read_json_object
from infinicore_infer.checkpoint.naming import Qwen3WeightsNaming
from infinicore_infer.checkpoint.opening import open_model
from infinicore_infer.checkpoint.parts import some
from infinicore_infer.checkpoint.safetensors_writer import Entry, SafetensorsWriter
from infinicore_infer.checkpoint.tensor import Tensor, Weight
from infinicore_infer.checkpoint.weights import CheckedTensors, Place
from infinicore_infer.progress import ProgressBar
from infinicore_infer.text.gguf_tokenizer import gguf_tokenizer

_BITS = {"int8": 8, "int4": 4}
_SHARD_BYTES = 5 * 10**9
# Weights that are rounded at a time.
_PIECE = 1 << 22
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_o", "ffn_gate", "ffn_up", "ffn_down")
# What belongs to a model besides config and weights.
_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates",
    "LICENSE",
)


@dataclass(frozen=True, slots=True)
class _Job:
    """One weight and what becomes of it: ``bits`` 0 is left as it is."""

    name: str
    weight: Weight
    bits: int

    def entries(self) -> list[Entry]:
        if not self.bits:
            kind = self.weight.dtype if isinstance(self.weight, Tensor) else "BF16"
            return [Entry(self.name, kind, self.weight.shape)]
        rows, cols = self.weight.shape
        module = self.name.removesuffix(".weight")
        return [
            Entry(f"{module}.weight_packed", "I32", (rows, cols * self.bits // 32)),
            Entry(f"{module}.weight_scale", "BF16", (rows, cols // GROUP)),
            Entry(f"{module}.weight_shape", "I64", (2,)),
        ]


@dataclass(frozen=True, slots=True)
class _ExpertPart(Weight):
    """Rows of one expert of a weight [experts, rows, columns], to be decoded."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    whole: Weight
    expert: int
    first: int

    def decoded(self, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self.whole.decoded(self.expert, self.expert + 1)[0]
        values = values[self.first : self.first + self.shape[0]]
        return values[first:last]

    def entry(self) -> dict[str, Any]:
        raise NotImplementedError  # the whole weight has one

    def stored(self) -> list[NDArray[Any]]:
        return self.whole.stored()


def quantize(source: Path, target: Path, dtype: str, *, progress: bool = False) -> None:
    """Write a quantised copy of a checkpoint.

    Args:
        source: The checkpoint.
        target: A folder that does not exist or is empty. It appears complete or not at all.
        dtype: ``"int8"`` or ``"int4"``.
        progress: Whether to draw a progress bar on stderr if that is a terminal.

    Raises:
        ValueError: The checkpoint cannot be read, or a weight cannot be quantised.
        OSError: A file cannot be read or written; the target is not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target}: is not an empty folder")
    meta, checkpoint = open_model(source)
    partial = target.with_name(f".{target.name}.partial")
    bar = ProgressBar(sys.stderr if progress else None, "quantising", "weights")
    try:
        jobs = list(_jobs(meta, checkpoint, _BITS[dtype]))
        entries = [entry for job in jobs for entry in job.entries()]
        _check(meta, jobs)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        free, needed = shutil.disk_usage(partial).free, sum(entry.bytes for entry in entries)
        if free < needed:
            raise OSError(f"{target}: needs {needed} bytes, and {free} are free")
        with SafetensorsWriter(partial, entries, _SHARD_BYTES) as writer:
            for number, job in enumerate(jobs):
                bar.draw(number, len(jobs))
                _write(job, writer)
        _write_beside(meta, checkpoint, source, partial, _BITS[dtype])
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        bar.finish()
        checkpoint.close()
        shutil.rmtree(partial, ignore_errors=True)


def _jobs(meta: Qwen3MetaFromConfig, checkpoint: Checkpoint, bits: int) -> Iterator[_Job]:
    naming = Qwen3WeightsNaming()
    for place in CheckedTensors(meta, checkpoint).places:
        if place.field.startswith("expert_"):
            used = _bits_of(bits, place.layer, meta.nlayer)
            for name, weight in _expert_parts(meta, place, checkpoint[place.name]):
                yield _Job(name, weight, used)
            continue
        own = getattr(naming, place.field)
        whole = place.field in ("input_embd", "output_norm", "output_embd")
        used = 0 if place.field not in _MATRICES else _bits_of(bits, place.layer, meta.nlayer)
        yield _Job(own() if whole else own(place.layer), checkpoint[place.name], used)


def _expert_parts(
    meta: Qwen3MetaFromConfig, place: Place, weight: Weight
) -> Iterator[tuple[str, Weight]]:
    """Return the matrices of experts that a weight has, by the names of published checkpoints."""
    assert meta.experts is not None
    count, dm = meta.experts.count, meta.experts.dm
    *_, single = Qwen3WeightsNaming().expert_forms(place.layer, count)
    names = {(one.field, one.expert): one.name for one in single}
    if not place.stacked:
        yield names[place.field, place.expert], weight
        return
    parts = ("expert_gate", "expert_up") if place.field == "expert_gate_up" else (place.field,)
    rows, cols = weight.shape[1] // len(parts), weight.shape[2]
    for expert in range(count):
        for i, field in enumerate(parts):
            name = names[field, expert]
            yield (
                name,
                _ExpertPart(name, weight.dtype, (rows, cols), weight.file, weight, expert, i * dm),
            )


def _bits_of(bits: int, layer: int, nlayer: int) -> int:
    """Return the bits of a layer's weights: the first layer's errors all others inherit."""
    return 8 if layer == 0 and nlayer >= 4 else bits


def _check(meta: Qwen3MetaFromConfig, jobs: list[_Job]) -> None:
    odd = [
        f"{job.name} {list(job.weight.shape)}"
        for job in jobs
        if job.bits and job.weight.shape[1] % GROUP
    ]
    if odd:
        raise ValueError(
            f"{meta.source}: rows that do not divide into groups of {GROUP}: {some(odd)}"
        )


def _write(job: _Job, writer: SafetensorsWriter) -> None:
    entries = job.entries()
    if not job.bits and isinstance(job.weight, Tensor):
        writer.write(job.name, job.weight.data)
        return
    rows, cols = job.weight.shape
    step = max(1, _PIECE // cols // 8) * 8
    starts = range(0, rows, step)
    if not job.bits:
        for first in starts:
            writer.write(job.name, bf16_bits(job.weight.decoded(first, first + step)))
        return

    def coded(first: int) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
        values = job.weight.decoded(first, first + step)
        if not np.isfinite(values).all():
            raise ValueError(f"{job.weight.file}: {job.weight.name} has NaN or infinite weights")
        codes, scales = group_codes(values, job.bits)
        return packed(codes, job.bits), scales

    with ThreadPoolExecutor() as executor:
        pieces = list(executor.map(coded, starts))
    for i, entry in enumerate(entries[:2]):
        for piece in pieces:
            writer.write(entry.name, piece[i])
    writer.write(entries[2].name, np.array([rows, cols], np.int64))


def quantization_config(bits: int, nlayer: int, experts: bool = False) -> dict[str, Any]:
    """Return the ``quantization_config`` of what :func:`quantize` writes."""

    def group(targets: list[str], bits: int) -> dict[str, Any]:
        weights = {
            "num_bits": bits,
            "type": "int",
            "strategy": "group",
            "group_size": GROUP,
            "symmetric": True,
            "dynamic": False,
            "actorder": None,
        }
        return {"targets": targets, "weights": weights, "input_activations": None}

    groups = {"group_0": group(["Linear"], bits)}
    if _bits_of(bits, 0, nlayer) != bits:
        groups = {"group_0": group([r"re:.*layers\.0\..*"], 8), "group_1": group(["Linear"], bits)}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": ["lm_head", *([r"re:.*mlp\.gate$"] if experts else [])],
        "kv_cache_scheme": None,
        "config_groups": groups,
    }


def _write_beside(
    meta: Qwen3MetaFromConfig, checkpoint: Checkpoint, source: Path, target: Path, bits: int
) -> None:
    """Write config and tokenizer."""
    if checkpoint.metadata is not None:
        kind = "Qwen3ForCausalLM" if meta.experts is None else "Qwen3MoeForCausalLM"
        config = {"architectures": [kind], **checkpoint.gguf_config()[0]}
        generation = {"eos_token_id": meta.end_tokens, **meta.generation_config}
        _write_json(target / "generation_config.json", generation)
        tokenizer = gguf_tokenizer(checkpoint.metadata, checkpoint.folder)
        if tokenizer is not None:
            (target / "tokenizer.json").write_text(tokenizer.definition(), "utf-8")
            _write_json(target / "tokenizer_config.json", tokenizer.config())
    else:
        config = read_json_object(source / "config.json")
        config.pop("compression_config", None)
        for name in _COPIED:
            if (source / name).is_dir():
                shutil.copytree(source / name, target / name)
            elif (source / name).is_file():
                shutil.copyfile(source / name, target / name)
    config["tie_word_embeddings"] = meta.tie_word_embeddings
    config["quantization_config"] = quantization_config(bits, meta.nlayer, bool(meta.experts))
    _write_json(target / "config.json", config)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Quantise a checkpoint; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="qwen3-quantize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SRC", help="checkpoint: a folder, or a GGUF file")
    add("target", type=Path, metavar="DST", help="folder to write, which must be empty or absent")
    add("--dtype", choices=_BITS, required=True, help="format of the layers' matrices")
    args = parser.parse_args(argv)
    try:
        quantize(args.source, args.target, args.dtype, progress=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

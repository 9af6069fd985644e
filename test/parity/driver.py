"""Calls the C API on numpy arrays: what the parity tests say, without the Python engine's policies.

One :class:`Driver` is one ``Qwen3Model``. A request is ``(cache, pos, tokens)``; a cache is the raw
handle. Weights go in as they are in the checkpoint, in any of the layouts that the header allows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_float, c_uint32, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from libinfinicore_infer import (
    Activations,
    Backend,
    DataType,
    DeviceType,
    Qwen3Meta,
    Qwen3ModelOptions,
    Qwen3SampleResult,
    Qwen3SamplingParams,
    Qwen3Stats,
    Qwen3Tensor,
    Qwen3Weights,
    RopeType,
    TensorRole,
    check,
    check_handle,
    load_library,
)

if TYPE_CHECKING:
    from reference.coded_numpy import Coded

Layout = Literal["split", "fused", "in_out"]
Request = tuple[int, int, Sequence[int]]
Logits = npt.NDArray[np.float32]

DTYPES = {"float32": DataType.F32, "float16": DataType.F16, "uint16": DataType.BF16}
ROPE_TYPES = {
    "default": RopeType.DEFAULT,
    "linear": RopeType.LINEAR,
    "yarn": RopeType.YARN,
    "llama3": RopeType.LLAMA3,
}
NAMES = {
    "attn_norm": "input_layernorm.weight",
    "attn_q_norm": "self_attn.q_norm.weight",
    "attn_k_norm": "self_attn.k_norm.weight",
    "attn_q": "self_attn.q_proj.weight",
    "attn_k": "self_attn.k_proj.weight",
    "attn_v": "self_attn.v_proj.weight",
    "attn_o": "self_attn.o_proj.weight",
    "attn_q_b": "self_attn.q_proj.bias",
    "attn_k_b": "self_attn.k_proj.bias",
    "attn_v_b": "self_attn.v_proj.bias",
    "attn_o_b": "self_attn.o_proj.bias",
    "ffn_norm": "post_attention_layernorm.weight",
    "ffn_gate": "mlp.gate_proj.weight",
    "ffn_up": "mlp.up_proj.weight",
    "ffn_down": "mlp.down_proj.weight",
}
FUSED = {
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
    "attn_qkv_b": ("attn_q_b", "attn_k_b", "attn_v_b"),
    "ffn_gate_up": ("ffn_gate", "ffn_up"),
}


@dataclass
class Sampling:
    """One request's sampling parameters; names and defaults as in the header."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    skip: bool = False
    history: Sequence[int] = ()
    ngenerated: int = 0
    bias: Mapping[int, float] = field(default_factory=dict)
    allowed: Iterable[int] | None = None
    top_logprobs: int = 0
    ndraft: int = 0
    no_logprob: bool = False


@dataclass
class Sample:
    """One request's result."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    naccepted: int = 0


def uint32s(values: Iterable[int]) -> ctypes.Array[c_uint32]:
    """Returns a ctypes array of the values."""
    items = [int(v) for v in values]
    return (c_uint32 * len(items))(*items)


class Driver:
    """One model of the library."""

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, npt.NDArray[Any]],
        layout: Layout = "split",
        dt_logits: DataType = DataType.F32,
        device: str = "cpu",
        ndev: int = 1,
        coded: Mapping[str, Coded] | None = None,
        **options: Any,
    ) -> None:
        """Creates the model.

        Args:
            config: the parsed config.json.
            tensors: Hugging Face name -> array, bfloat16 as uint16.
            layout: how the projections are handed over.
            dt_logits: dtype of activations on InfiniCore devices.
            device: "cpu", "nvidia", ...
            ndev: devices, or ranks on the CPU.
            coded: Hugging Face name -> a matrix in codes, which takes the place of that in tensors.
            options: fields of ``Qwen3ModelOptions``; activations are the most exact ones on the
                CPU backend unless they say otherwise.
        """
        self.lib = load_library()
        self.nlayer = int(config["num_hidden_layers"])
        self.dvoc = int(config["vocab_size"])
        self.d = int(config["hidden_size"])
        rope = config["rope_parameters"]
        meta = Qwen3Meta(
            dt_logits=dt_logits,
            nlayer=self.nlayer,
            d=config["hidden_size"],
            nh=config["num_attention_heads"],
            nkvh=config["num_key_value_heads"],
            dh=config["head_dim"],
            di=config["intermediate_size"],
            dctx=config["max_position_embeddings"],
            dvoc=self.dvoc,
            epsilon=config["rms_norm_eps"],
            theta=rope["rope_theta"],
            end_token=config["eos_token_id"],
        )
        rope_options = {
            "rope_type": ROPE_TYPES[rope.get("rope_type", "default")],
            "rope_factor": rope.get("factor"),
            "rope_original_ctx": rope.get("original_max_position_embeddings"),
            "rope_attention_factor": rope.get("attention_factor"),
            "rope_beta_fast": rope.get("beta_fast"),
            "rope_beta_slow": rope.get("beta_slow"),
            "rope_no_truncate": int(not rope.get("truncate", True)),
            "rope_low_freq_factor": rope.get("low_freq_factor"),
            "rope_high_freq_factor": rope.get("high_freq_factor"),
        }
        options = {**{k: v for k, v in rope_options.items() if v is not None}, **options}
        self._kept: list[Any] = []  # what weights points to, for as long as the library may read it
        weights = self._weights(config, tensors, layout)
        list_of_coded = self._coded(coded or {})
        if device == "cpu" and options.get("backend", 0) != Backend.INFINICORE:
            if options.get("dt_weight") or not coded:
                options.setdefault("activations", self._exact(options.get("dt_weight", 0)))
        struct = Qwen3ModelOptions(tensors=list_of_coded, ntensors=len(list_of_coded), **options)
        handle = self.lib.createQwen3ModelEx(
            ctypes.byref(meta),
            ctypes.byref(weights),
            DeviceType[f"DEVICE_TYPE_{device.upper()}"],
            ndev,
            None,
            ctypes.byref(struct),
        )
        if not options.get("borrow_weights"):
            self._kept.clear()
        self.model: int | None = check_handle(self.lib, handle)

    @staticmethod
    def _exact(dt_weight: int) -> Activations:
        """The most exact activations, so that tests see the same arithmetic on every CPU."""
        if dt_weight == DataType.INT8:
            return Activations.INT16
        packed_codes = dt_weight in (DataType.INT4, DataType.INT4_MIXED)
        return Activations.AUTO if packed_codes else Activations.F32

    def _weights(
        self, config: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]], layout: Layout
    ) -> Qwen3Weights:
        def address(array: npt.NDArray[Any]) -> int:
            # A copy at an odd address: pointers need no particular alignment.
            buffer = ctypes.create_string_buffer(array.nbytes + 1)
            self._kept.append(buffer)
            ctypes.memmove(ctypes.addressof(buffer) + 1, array.tobytes(), array.nbytes)
            return ctypes.addressof(buffer) + 1

        def per_layer(parts: tuple[str, ...]) -> Any:
            addresses = []
            for layer in range(self.nlayer):
                arrays = [tensors[f"model.layers.{layer}.{NAMES[part]}"] for part in parts]
                array = np.concatenate(arrays)
                if layout == "in_out" and array.ndim == 2:
                    array = array.T
                addresses.append(address(np.ascontiguousarray(array)))
            pointers = (c_void_p * self.nlayer)(*addresses)
            self._kept.append(pointers)
            return ctypes.cast(pointers, POINTER(c_void_p))

        present = {k: (k,) for k in NAMES if f"model.layers.0.{NAMES[k]}" in tensors}
        if layout != "split":
            for fused, parts in FUSED.items():
                if parts[0] in present:
                    present[fused] = parts
                    for part in parts:
                        del present[part]
        embedding, norm = tensors["model.embed_tokens.weight"], tensors["model.norm.weight"]
        return Qwen3Weights(
            nlayer=self.nlayer,
            dt_norm=DTYPES[norm.dtype.name],
            dt_mat=DTYPES[embedding.dtype.name],
            transpose_linear_weights=int(layout != "in_out"),
            input_embd=address(embedding),
            output_norm=address(norm),
            output_embd=None
            if config["tie_word_embeddings"]
            else address(tensors["lm_head.weight"]),
            **{name: per_layer(parts) for name, parts in present.items()},
        )

    def _coded(self, tensors: Mapping[str, Coded]) -> Any:
        roles = {name: role.upper() for role, name in NAMES.items()}
        outside = {"model.embed_tokens.weight": "INPUT_EMBD", "lm_head.weight": "OUTPUT_EMBD"}
        entries = (Qwen3Tensor * len(tensors))()
        for entry, (name, tensor) in zip(entries, tensors.items(), strict=True):
            layer = int(name.split(".")[2]) if name.startswith("model.layers.") else 0
            role = outside.get(name) or roles[name.split(".", 3)[3]]
            pointers = {}
            for field_name in ("data", "scales", "zeros", "groups"):
                array = getattr(tensor, field_name)
                if array is not None:
                    array = np.ascontiguousarray(array)
                    self._kept.append(array)
                    kind = POINTER(ctypes.c_int32) if field_name == "groups" else c_void_p
                    pointers[field_name] = array.ctypes.data_as(kind)
            rows, cols = tensor.values.shape
            entry.__init__(
                role=TensorRole[role],
                dtype=tensor.dtype,
                layer=layer,
                rows=rows,
                cols=cols,
                **pointers,
                **tensor.fields,
            )
        return entries

    def close(self) -> None:
        """Destroys the model; further calls are errors."""
        self.lib.destroyQwen3Model(self.model)
        self.model = None

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ caches

    def create(self) -> int:
        """Returns a new empty cache."""
        return check_handle(self.lib, self.lib.createKVCache(self.model))

    def duplicate(self, cache: int, length: int) -> int:
        """Returns a copy of the first ``length`` tokens of a cache."""
        return check_handle(self.lib, self.lib.duplicateKVCache(self.model, cache, length))

    def save(self, cache: int, tokens: Sequence[int], path: Path) -> None:
        """Saves a cache that begins with the tokens."""
        call = self.lib.qwen3SaveKVCache
        check(self.lib, call(self.model, cache, uint32s(tokens), len(tokens), str(path).encode()))

    def load(self, path: Path, capacity: int = 1 << 16) -> tuple[int, list[int]]:
        """Returns a cache from a file, and its tokens."""
        tokens, length = uint32s([7] * capacity), c_uint32(77)
        handle = self.lib.qwen3LoadKVCache(
            self.model, str(path).encode(), tokens, capacity, ctypes.byref(length)
        )
        if not handle:
            assert length.value == 77 and set(tokens) <= {7}, "a failed call wrote something"
        return check_handle(self.lib, handle), tokens[: length.value]

    def fingerprint(self) -> int:
        """Returns what tells models apart that cannot load each other's caches."""
        value = ctypes.c_uint64()
        check(self.lib, self.lib.qwen3KVCacheFingerprint(self.model, ctypes.byref(value)))
        return value.value

    def drop(self, *caches: int) -> None:
        """Frees caches."""
        for cache in caches:
            self.lib.dropKVCache(self.model, cache)

    @contextmanager
    def caches(self, n: int) -> Iterator[list[int]]:
        """Lends ``n`` empty caches."""
        caches = [self.create() for _ in range(n)]
        try:
            yield caches
        finally:
            self.drop(*caches)

    def length(self, cache: int) -> int:
        """Returns the number of tokens of a cache."""
        length = c_uint32()
        check(self.lib, self.lib.qwen3KVCacheLength(self.model, cache, ctypes.byref(length)))
        return length.value

    # ------------------------------------------------------------------ steps

    def _batch(self, requests: Sequence[Request]) -> tuple[Any, ...]:
        tokens = uint32s(t for _, _, part in requests for t in part)
        caches = (c_void_p * len(requests))(*(cache for cache, _, _ in requests))
        lengths = uint32s(len(part) for _, _, part in requests)
        positions = uint32s(pos for _, pos, _ in requests)
        return self.model, tokens, len(tokens), lengths, len(requests), positions, caches

    def forward(self, requests: Sequence[Request]) -> list[Logits]:
        """Runs forwardBatch; returns each request's logits ``[its tokens, dvoc]``."""
        batch = self._batch(requests)
        logits = np.full((batch[2], self.dvoc), np.nan, dtype=np.float32)
        check(self.lib, self.lib.forwardBatch(*batch, logits.ctypes.data_as(POINTER(c_float))))
        return np.split(logits, np.cumsum([len(part) for _, _, part in requests])[:-1])

    def embed(self, requests: Sequence[Request], rows: Sequence[int] | None = None) -> Logits:
        """Runs embedBatch; returns the hidden states of ``rows`` (None: each request's last)."""
        batch = self._batch(requests)
        nrows = len(requests) if rows is None else len(rows)
        states = np.full((nrows, self.d), np.nan, dtype=np.float32)
        wanted = None if rows is None else uint32s(rows)
        pointer = states.ctypes.data_as(POINTER(c_float))
        check(self.lib, self.lib.embedBatch(*batch, wanted, nrows, pointer))
        return states

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Returns the logits of one sequence in a cache of its own."""
        with self.caches(1) as (cache,):
            return self.forward([(cache, 0, tokens)])[0]

    def infer(
        self,
        requests: Sequence[Request],
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[int]:
        """Runs inferBatch; returns each request's token."""
        n = len(requests)
        output = uint32s([0] * n)
        check(
            self.lib,
            self.lib.inferBatch(
                *self._batch(requests),
                (c_float * n)(*[temperature] * n),
                uint32s([top_k] * n),
                (c_float * n)(*[top_p] * n),
                output,
            ),
        )
        return list(output)

    def sample(self, requests: Sequence[Request], settings: Sequence[Sampling]) -> list[Sample]:
        """Runs inferBatchEx; returns each request's result."""
        n = len(requests)
        params, results = (Qwen3SamplingParams * n)(), (Qwen3SampleResult * n)()
        kept: list[Any] = []

        def pointer(array: Any, kind: Any) -> Any:
            kept.append(array)
            return ctypes.cast(array, POINTER(kind))

        for p, r, s in zip(params, results, settings, strict=True):
            p.struct_size, r.struct_size = ctypes.sizeof(p), ctypes.sizeof(r)
            for name in ("temperature", "top_k", "top_p", "min_p", "seed", "top_logprobs"):
                setattr(p, name, getattr(s, name))
            for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
                setattr(p, name, getattr(s, name))
            p.skip, p.nhistory, p.ngenerated = s.skip, len(s.history), s.ngenerated
            p.nbias, p.ndraft, p.no_logprob = len(s.bias), s.ndraft, s.no_logprob
            if s.history:
                p.history = pointer(uint32s(s.history), c_uint32)
            if s.bias:
                p.bias_tokens = pointer(uint32s(s.bias), c_uint32)
                p.bias_values = pointer((c_float * len(s.bias))(*s.bias.values()), c_float)
            if s.allowed is not None:
                words = [0] * ((self.dvoc + 31) // 32)
                for token in s.allowed:
                    words[token // 32] |= 1 << token % 32
                p.allowed_mask = pointer(uint32s(words), c_uint32)
            if s.top_logprobs:
                r.top_tokens = pointer((c_uint32 * s.top_logprobs)(), c_uint32)
                r.top_logprobs = pointer((c_float * s.top_logprobs)(), c_float)
        check(self.lib, self.lib.inferBatchEx(*self._batch(requests), params, results))
        return [
            Sample(
                r.token,
                r.logprob,
                [(r.top_tokens[i], r.top_logprobs[i]) for i in range(r.ntop)],
                r.naccepted,
            )
            for r in results
        ]

    # ------------------------------------------------------------------ information

    def stats(self) -> Qwen3Stats:
        """Returns the model's statistics."""
        stats = Qwen3Stats(struct_size=ctypes.sizeof(Qwen3Stats))
        check(self.lib, self.lib.qwen3GetStats(self.model, ctypes.byref(stats)))
        return stats

    def build_info(self) -> dict[str, str]:
        """Returns the key=value pairs of qwen3BuildInfo."""
        text = self.lib.qwen3BuildInfo(self.model).decode()
        return dict(pair.split("=", 1) for pair in text.split())


def has_infinicore() -> bool:
    """Returns whether the library was built with the InfiniCore backend."""
    return b"infinicore=none" not in load_library().qwen3BuildInfo(None)


__all__ = ["Backend", "DataType", "Driver", "Request", "Sample", "Sampling", "has_infinicore"]

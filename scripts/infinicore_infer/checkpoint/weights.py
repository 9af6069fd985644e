"""Hands a checkpoint's tensors to the library: names, checks and pointers.

The pointers lead straight into the mapped files. Nothing is copied, cast or transposed here: the
library packs the weights for its kernels while it creates the model.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterable, Mapping

from libinfinicore_infer import (
    DataType,
    Qwen3Meta,
    Qwen3ModelOptions,
    Qwen3Tensor,
    Qwen3Weights,
    TensorRole,
)

from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.checkpoint.safetensors import Tensor

_DTYPES = {"F16": DataType.F16, "F32": DataType.F32, "BF16": DataType.BF16}

_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"
_LOG = logging.getLogger("infinicore_infer.checkpoint")

# A broken checkpoint can be wrong in hundreds of tensors; a person reads the first few.
_MAX_LISTED = 12


class WeightsError(ValueError):
    """A checkpoint's tensors do not fit the model's configuration."""


class Qwen3WeightsNaming:
    """Names of a Qwen3 model's tensors in Hugging Face checkpoints.

    Attributes:
        prefix: ``"model."``; empty for checkpoints saved without the language-model head class;
            others for models that were saved inside another or compiled
            (``"model.language_model."``, ``"_orig_mod.model."``).
        head: The name of the output embeddings.
    """

    def __init__(self, prefix: str = "model.", head: str = "lm_head.weight") -> None:
        """Store prefix and name."""
        self.prefix = prefix
        self.head = head

    @classmethod
    def match(cls, names: Iterable[str]) -> Qwen3WeightsNaming:
        """Return the naming that a checkpoint uses, judged by its embedding and head.

        Where several tensors could be one of them, the ordinary names are expected.
        """
        listed = list(names)
        embeddings = [n for n in listed if n == _EMBEDDING or n.endswith(f".{_EMBEDDING}")]
        heads = [n for n in listed if n == _HEAD or n.endswith(f".{_HEAD}")]
        ordinary = f"model.{_EMBEDDING}" in embeddings or len(embeddings) != 1
        prefix = "model." if ordinary else embeddings[0].removesuffix(_EMBEDDING)
        return cls(prefix, heads[0] if len(heads) == 1 else _HEAD)

    def input_embd(self) -> str:
        """Token embeddings, [dvoc, d]."""
        return f"{self.prefix}embed_tokens.weight"

    def output_norm(self) -> str:
        """Last norm, [d]."""
        return f"{self.prefix}norm.weight"

    def output_embd(self) -> str:
        """Output embeddings, [dvoc, d]."""
        return self.head

    def _layer(self, i: int, name: str) -> str:
        return f"{self.prefix}layers.{i}.{name}"

    def attn_norm(self, i: int) -> str:
        """Norm before attention, [d]."""
        return self._layer(i, "input_layernorm.weight")

    def attn_q_norm(self, i: int) -> str:
        """Norm of each query head, [dh]."""
        return self._layer(i, "self_attn.q_norm.weight")

    def attn_k_norm(self, i: int) -> str:
        """Norm of each key head, [dh]."""
        return self._layer(i, "self_attn.k_norm.weight")

    def attn_q(self, i: int) -> str:
        """Query projection, [nh * dh, d]."""
        return self._layer(i, "self_attn.q_proj.weight")

    def attn_k(self, i: int) -> str:
        """Key projection, [nkvh * dh, d]."""
        return self._layer(i, "self_attn.k_proj.weight")

    def attn_v(self, i: int) -> str:
        """Value projection, [nkvh * dh, d]."""
        return self._layer(i, "self_attn.v_proj.weight")

    def attn_o(self, i: int) -> str:
        """Output projection, [d, nh * dh]."""
        return self._layer(i, "self_attn.o_proj.weight")

    def attn_q_b(self, i: int) -> str:
        """Query bias, [nh * dh]."""
        return self._layer(i, "self_attn.q_proj.bias")

    def attn_k_b(self, i: int) -> str:
        """Key bias, [nkvh * dh]."""
        return self._layer(i, "self_attn.k_proj.bias")

    def attn_v_b(self, i: int) -> str:
        """Value bias, [nkvh * dh]."""
        return self._layer(i, "self_attn.v_proj.bias")

    def attn_o_b(self, i: int) -> str:
        """Output bias, [d]."""
        return self._layer(i, "self_attn.o_proj.bias")

    def ffn_norm(self, i: int) -> str:
        """Norm before the MLP, [d]."""
        return self._layer(i, "post_attention_layernorm.weight")

    def ffn_gate(self, i: int) -> str:
        """Gate projection, [di, d]."""
        return self._layer(i, "mlp.gate_proj.weight")

    def ffn_up(self, i: int) -> str:
        """Up projection, [di, d]."""
        return self._layer(i, "mlp.up_proj.weight")

    def ffn_down(self, i: int) -> str:
        """Down projection, [d, di]."""
        return self._layer(i, "mlp.down_proj.weight")

    def is_ignored(self, name: str) -> bool:
        """Return whether a tensor is a computed buffer that old checkpoints carried along."""
        return name.endswith("rotary_emb.inv_freq")


_TABLE_FIELDS = ("input_embd", "output_norm", "output_embd")
_NORM_FIELDS = ("attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm")
_MATRIX_FIELDS = ("attn_q", "attn_k", "attn_v", "attn_o", "ffn_gate", "ffn_up", "ffn_down")
_BIAS_FIELDS = ("attn_q_b", "attn_k_b", "attn_v_b", "attn_o_b")


def field_shapes(meta: Qwen3Meta) -> dict[str, tuple[int, ...]]:
    """Return the shape of every field of ``Qwen3Weights`` that is filled from a checkpoint."""
    q, kv = meta.nh * meta.dh, meta.nkvh * meta.dh
    return {
        "input_embd": (meta.dvoc, meta.d),
        "output_norm": (meta.d,),
        "output_embd": (meta.dvoc, meta.d),
        "attn_norm": (meta.d,),
        "attn_q_norm": (meta.dh,),
        "attn_k_norm": (meta.dh,),
        "attn_q": (q, meta.d),
        "attn_k": (kv, meta.d),
        "attn_v": (kv, meta.d),
        "attn_o": (meta.d, q),
        "attn_q_b": (q,),
        "attn_k_b": (kv,),
        "attn_v_b": (kv,),
        "attn_o_b": (meta.d,),
        "ffn_norm": (meta.d,),
        "ffn_gate": (meta.di, meta.d),
        "ffn_up": (meta.di, meta.d),
        "ffn_down": (meta.d, meta.di),
    }


def _some(items: list[str]) -> str:
    listed = ", ".join(items[:_MAX_LISTED])
    return listed + (f", ... ({len(items)} in all)" if len(items) > _MAX_LISTED else "")


# numpy would make an array of truth values of the matrix's size.
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are the same to the bit."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return not _memcmp(a.address, b.address, a.data.nbytes)


class CheckedTensors:
    """A checkpoint's tensors, whose names, shapes and dtypes fit the model's configuration.

    Attributes:
        tensors: The checkpoint.
        naming: Names of the tensors.
        names: The tensor names of every field of ``Qwen3Weights``, one per layer for the fields of
            layers.
    """

    def __init__(
        self,
        meta: Qwen3MetaFromConfig,
        tensors: Mapping[str, Tensor],
        naming: Qwen3WeightsNaming | None = None,
    ) -> None:
        """Check all tensors against the configuration.

        Args:
            meta: The model's configuration.
            tensors: The checkpoint, such as :class:`.Checkpoint`.
            naming: Names of the tensors; ``None``: found out from the checkpoint.

        Raises:
            WeightsError: Tensors are missing, or of a wrong shape or dtype; one message names them
                all.
        """
        self.tensors = tensors
        self.naming = naming or Qwen3WeightsNaming.match(tensors)
        if meta.nlayer > len(tensors):
            raise WeightsError(
                f"weights do not fit {meta.source}: 'num_hidden_layers' is {meta.nlayer}, but "
                f"there are {len(tensors)} tensors in all"
            )
        self._settle_head(meta)
        self.names = self._expected_names(meta)
        self._check(meta)

    def _settle_head(self, meta: Qwen3MetaFromConfig) -> None:
        """Untie a head that the config says is tied if the checkpoint has another one.

        Trainers that merge or partition weights leave such checkpoints. The same matrix stored
        twice, as in some published ones, is the tied one.
        """
        head = self.tensors.get(self.naming.output_embd())
        embedding = self.tensors.get(self.naming.input_embd())
        if meta.tie_word_embeddings and head is not None and embedding is not None:
            meta.tie_word_embeddings = _same_bytes(head, embedding)
            if not meta.tie_word_embeddings:
                _LOG.warning(
                    "%s: 'tie_word_embeddings' is true, but %s differs from %s: using %s",
                    *(meta.source, head.name, embedding.name, head.name),
                )

    def _expected_names(self, meta: Qwen3MetaFromConfig) -> dict[str, list[str]]:
        tables = [f for f in _TABLE_FIELDS if f != "output_embd" or not meta.tie_word_embeddings]
        names = {field: [getattr(self.naming, field)()] for field in tables}
        biases = _BIAS_FIELDS if meta.attention_bias else ()
        for field in _NORM_FIELDS + _MATRIX_FIELDS + biases:
            name_of: Callable[[int], str] = getattr(self.naming, field)
            names[field] = [name_of(i) for i in range(meta.nlayer)]
        return names

    def _check(self, meta: Qwen3MetaFromConfig) -> None:
        expected = [name for group in self.names.values() for name in group]
        head = self.naming.output_embd()
        # Checkpoints with tied embeddings often store the same matrix again as lm_head.
        allowed = {*expected, head}
        missing = [name for name in expected if name not in self.tensors]
        ignored = self.naming.is_ignored
        unexpected = [n for n in self.tensors if n not in allowed and not ignored(n)]
        problems = []
        if head in missing:
            missing.remove(head)
            problems.append(f"{head} is missing although 'tie_word_embeddings' is false")
        missing_biases = [name for name in missing if name.endswith(".bias")]
        if missing_biases:
            missing = [name for name in missing if name not in missing_biases]
            problems.append(
                f"'attention_bias' is true but biases are missing: {_some(missing_biases)}"
            )
        extra_biases = [name for name in unexpected if name.endswith("_proj.bias")]
        if extra_biases and not meta.attention_bias:
            unexpected = [name for name in unexpected if name not in extra_biases]
            problems.append(
                f"'attention_bias' is false but there are biases: {_some(extra_biases)}"
            )
        if missing:
            problems.append(f"missing tensors: {_some(missing)}")
        if unexpected:
            _LOG.warning(
                "%s: tensors that are not used: %s", meta.source, _some(sorted(unexpected))
            )
        # Shapes of the tensors that are there belong in the same message.
        problems += self._shape_problems(meta)
        if problems:
            raise WeightsError(f"weights do not fit {meta.source}: " + "; ".join(problems))

    def _shape_problems(self, meta: Qwen3Meta) -> list[str]:
        shapes = field_shapes(meta)
        wrong_shape, wrong_dtype = [], []
        for field, group in self.names.items():
            for name in group:
                tensor = self.tensors.get(name)
                if tensor is None:
                    continue
                if tensor.shape != shapes[field]:
                    wrong_shape.append(f"{name} is {list(tensor.shape)}, not {list(shapes[field])}")
                if tensor.dtype not in _DTYPES:
                    wrong_dtype.append(f"{name} is {tensor.dtype}")
        problems = []
        if wrong_shape:
            problems.append(f"wrong shapes: {_some(wrong_shape)}")
        if wrong_dtype:
            problems.append(f"dtypes other than F32, F16 and BF16: {_some(wrong_dtype)}")
        return problems


class Qwen3WeightsImpl(Qwen3Weights):
    """The library's ``Qwen3Weights``, pointing into a checkpoint's tensors.

    The checkpoint must stay open as long as the pointers are used. All norms must have one dtype,
    and all matrices and biases one; :class:`Qwen3TensorList` knows no such limit.
    """

    def __init__(
        self,
        meta: Qwen3MetaFromConfig,
        tensors: Mapping[str, Tensor],
        naming: Qwen3WeightsNaming | None = None,
    ) -> None:
        """Check all tensors against the configuration and take their addresses.

        Args:
            meta: The model's configuration.
            tensors: The checkpoint, such as :class:`.Checkpoint`.
            naming: Names of the tensors; ``None``: found out from the checkpoint.

        Raises:
            WeightsError: Tensors are missing, or of a wrong shape or dtype; one message names them
                all.
        """
        checked = CheckedTensors(meta, tensors, naming)
        self._tensors = tensors  # keeps the memory behind the pointers alive
        self.naming = checked.naming
        dt_norm, dt_mat = self._check_dtypes(meta, checked.names)
        super().__init__(
            nlayer=meta.nlayer, dt_norm=dt_norm, dt_mat=dt_mat, transpose_linear_weights=1
        )
        for field, names in checked.names.items():
            addresses = [tensors[name].address for name in names]
            if field in _TABLE_FIELDS:
                setattr(self, field, addresses[0])
            else:
                array = (ctypes.c_void_p * meta.nlayer)(*addresses)
                setattr(self, field, ctypes.cast(array, ctypes.POINTER(ctypes.c_void_p)))

    def _check_dtypes(
        self, meta: Qwen3MetaFromConfig, names: dict[str, list[str]]
    ) -> tuple[DataType, DataType]:
        """Return the dtype of the norms and of the matrices, each of which must be one."""
        norm_fields = ("output_norm", *_NORM_FIELDS)
        norms = [n for field in norm_fields for n in names[field]]
        others = [n for field, group in names.items() if field not in norm_fields for n in group]
        result = []
        problems = []
        for kind, group in (("norms", norms), ("matrices and biases", others)):
            by_dtype: dict[str, list[str]] = {}
            for name in group:
                by_dtype.setdefault(self._tensors[name].dtype, []).append(name)
            if len(by_dtype) > 1:
                parts = [f"{dtype}: {_some(found)}" for dtype, found in sorted(by_dtype.items())]
                problems.append(f"{kind} of mixed dtypes: " + "; ".join(parts))
            result.append(_DTYPES[next(iter(by_dtype))])
        if problems:
            raise WeightsError(f"weights do not fit {meta.source}: " + "; ".join(problems))
        return result[0], result[1]


class Qwen3TensorList:
    """The library's ``Qwen3ModelOptions.tensors``, pointing into a checkpoint's tensors.

    Each tensor keeps the dtype that it has in the file. The checkpoint must stay open as long as
    the pointers are used, and this object until the model is created.
    """

    def __init__(
        self,
        meta: Qwen3MetaFromConfig,
        tensors: Mapping[str, Tensor],
        naming: Qwen3WeightsNaming | None = None,
    ) -> None:
        """Check all tensors against the configuration and take their addresses.

        Args:
            meta: The model's configuration.
            tensors: The checkpoint, such as :class:`.Checkpoint`.
            naming: Names of the tensors; ``None``: found out from the checkpoint.

        Raises:
            WeightsError: Tensors are missing, or of a wrong shape or dtype; one message names them
                all.
        """
        self._tensors = tensors  # keeps the memory behind the pointers alive
        checked = CheckedTensors(meta, tensors, naming)
        self.naming = checked.naming
        entries = [
            self._entry(field, layer, tensors[name])
            for field, names in checked.names.items()
            for layer, name in enumerate(names)
        ]
        self.array = (Qwen3Tensor * len(entries))(*entries)

    @staticmethod
    def _entry(field: str, layer: int, tensor: Tensor) -> Qwen3Tensor:
        rows, cols = (*tensor.shape, 1)[:2]
        return Qwen3Tensor(
            role=TensorRole[field.upper()],
            dtype=_DTYPES[tensor.dtype],
            layer=layer,
            rows=rows,
            cols=cols,
            data=tensor.address,
        )

    def attach(self, options: Qwen3ModelOptions) -> None:
        """Make ``createQwen3ModelEx`` with these options take its weights from here."""
        options.tensors = self.array
        options.ntensors = len(self.array)

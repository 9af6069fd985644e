"""Hands a checkpoint's weights to the library: names, checks and pointers.

The pointers lead straight into the mapped files. Nothing is copied, decoded or transposed here: the
library packs the weights for its kernels while it creates the model.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from libinfinicore_infer import (
    DataType,
    Qwen3Meta,
    Qwen3ModelOptions,
    Qwen3Tensor,
    Qwen3Weights,
    TensorRole,
)

from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.checkpoint.naming import Qwen3WeightsNaming
from infinicore_infer.checkpoint.parts import some
from infinicore_infer.checkpoint.task import SCORE_HEADS
from infinicore_infer.checkpoint.tensor import FLOATS, Weight, same_values

_LOG = logging.getLogger("infinicore_infer.checkpoint")


class WeightsError(ValueError):
    """A checkpoint's tensors do not fit the model's configuration."""


_TABLE_FIELDS = ("input_embd", "output_norm", "output_embd")
_NORM_FIELDS = ("attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm")
_MATRIX_FIELDS = ("attn_q", "attn_k", "attn_v", "attn_o")
_MLP_FIELDS = ("ffn_gate", "ffn_up", "ffn_down")
_BIAS_FIELDS = ("attn_q_b", "attn_k_b", "attn_v_b", "attn_o_b")


def field_shapes(meta: Qwen3Meta) -> dict[str, tuple[int, ...]]:
    """Return the shape of every field of ``Qwen3Weights`` that is filled from a checkpoint."""
    q, kv = meta.nh * meta.dh, meta.nkvh * meta.dh
    shapes: dict[str, tuple[int, ...]] = {
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
    experts = getattr(meta, "experts", None)
    if experts is not None:
        shapes |= {
            "ffn_router": (experts.count, meta.d),
            "expert_gate_up": (2 * experts.dm, meta.d),
            "expert_gate": (experts.dm, meta.d),
            "expert_up": (experts.dm, meta.d),
            "expert_down": (meta.d, experts.dm),
        }
    return shapes


@dataclass(frozen=True, slots=True)
class Place:
    """A weight and its place in the model.

    Attributes:
        field: What it is: a field of ``Qwen3Weights``, or the name of a ``TensorRole``.
        name: Its name.
        layer: Which layer's; 0 for the fields outside layers.
        expert: Which expert's.
        stacked: Whether it is of all experts of the layer, [e, rows, columns].
    """

    field: str
    name: str
    layer: int = 0
    expert: int = 0
    stacked: bool = False


class CheckedTensors:
    """A checkpoint's tensors, whose names, shapes and dtypes fit the model's configuration.

    Attributes:
        tensors: The checkpoint.
        naming: Names of the tensors.
        places: Every weight of the model.
    """

    def __init__(
        self,
        meta: Qwen3MetaFromConfig,
        tensors: Mapping[str, Weight],
        naming: Qwen3WeightsNaming | None = None,
        *,
        headless: bool = False,
    ) -> None:
        """Check all tensors against the configuration.

        Args:
            meta: The model's configuration.
            tensors: The checkpoint, such as :class:`.Checkpoint`.
            naming: Names of the tensors; ``None``: found out from the checkpoint.
            headless: Whether the model is only asked for hidden states. Then a head of its own is
                not needed and left out, and ``meta`` says that it is tied.

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
        self._headless = headless
        if headless:
            meta.tie_word_embeddings = True
        else:
            self._settle_head(meta)
        self.places = list(self._expected(meta))
        self._check(meta)

    @property
    def names(self) -> dict[str, list[str]]:
        """The tensor names of every field, in order of layers and experts."""
        names: dict[str, list[str]] = {}
        for place in self.places:
            names.setdefault(place.field, []).append(place.name)
        return names

    def _settle_head(self, meta: Qwen3MetaFromConfig) -> None:
        """Untie a head that the config says is tied if the checkpoint has another one.

        Trainers that merge or partition weights leave such checkpoints. The same matrix stored
        twice, as in some published ones, is the tied one.
        """
        head = self.tensors.get(self.naming.output_embd())
        embedding = self.tensors.get(self.naming.input_embd())
        if meta.tie_word_embeddings and head is not None and embedding is not None:
            meta.tie_word_embeddings = same_values(head, embedding)
            if not meta.tie_word_embeddings:
                _LOG.warning(
                    "%s: 'tie_word_embeddings' is true, but %s differs from %s: using %s",
                    *(meta.source, head.name, embedding.name, head.name),
                )

    def _expected(self, meta: Qwen3MetaFromConfig) -> Iterator[Place]:
        for field in _TABLE_FIELDS:
            if field != "output_embd" or not meta.tie_word_embeddings:
                yield Place(field, getattr(self.naming, field)())
        sparse = meta.experts.layers if meta.experts is not None else frozenset()
        biases = _BIAS_FIELDS if meta.attention_bias else ()
        for field in _NORM_FIELDS + _MATRIX_FIELDS + _MLP_FIELDS + biases:
            name_of: Callable[[int], str] = getattr(self.naming, field)
            for i in range(meta.nlayer):
                if field not in _MLP_FIELDS or i not in sparse:
                    yield Place(field, name_of(i), i)
        for i in sorted(sparse):
            assert meta.experts is not None
            yield Place("ffn_router", self.naming.ffn_router(i), i)
            *rare, usual = self.naming.expert_forms(i, meta.experts.count)
            form = next((f for f in rare if any(e.name in self.tensors for e in f)), usual)
            for one in form:
                yield Place(one.field, one.name, i, one.expert, one.stacked)

    def _check(self, meta: Qwen3MetaFromConfig) -> None:
        expected = [place.name for place in self.places]
        head = self.naming.output_embd()
        # Checkpoints with tied embeddings often store the same matrix again as lm_head.
        allowed = {*expected, head, *(SCORE_HEADS if self._headless else ())}
        missing = [name for name in expected if name not in self.tensors]
        ignored = self.naming.is_ignored
        unexpected = [n for n in self.tensors if n not in allowed and not ignored(n)]
        problems = []
        if head in missing:
            missing.remove(head)
            problems.append(
                f"{head} is missing although 'tie_word_embeddings' is false (an embedding model "
                "needs none: --task embed)"
            )
        missing_biases = [name for name in missing if name.endswith(".bias")]
        if missing_biases:
            missing = [name for name in missing if name not in missing_biases]
            problems.append(
                f"'attention_bias' is true but biases are missing: {some(missing_biases)}"
            )
        extra_biases = [name for name in unexpected if name.endswith("_proj.bias")]
        if extra_biases and not meta.attention_bias:
            unexpected = [name for name in unexpected if name not in extra_biases]
            problems.append(f"'attention_bias' is false but there are biases: {some(extra_biases)}")
        if missing:
            problems.append(f"missing tensors: {some(missing)}")
        if unexpected:
            _LOG.warning("%s: tensors that are not used: %s", meta.source, some(sorted(unexpected)))
        # Shapes of the tensors that are there belong in the same message.
        problems += self._shape_problems(meta)
        if problems:
            raise WeightsError(f"weights do not fit {meta.source}: " + "; ".join(problems))

    def _shape_problems(self, meta: Qwen3MetaFromConfig) -> list[str]:
        shapes = field_shapes(meta)
        wrong_shape, wrong_dtype = [], []
        for place in self.places:
            name, shape = place.name, shapes[place.field]
            if place.stacked and meta.experts is not None:
                shape = (meta.experts.count, *shape)
            tensor = self.tensors.get(name)
            if tensor is None:
                continue
            if tensor.shape != shape:
                wrong_shape.append(f"{name} is {list(tensor.shape)}, not {list(shape)}")
            # Codes have scales, which only matrices do.
            if not tensor.supported or (len(shape) == 1 and tensor.dtype not in FLOATS):
                wrong_dtype.append(f"{name} is {tensor.dtype}")
        problems = []
        if wrong_shape:
            problems.append(f"wrong shapes: {some(wrong_shape)}")
        if wrong_dtype:
            problems.append(f"types that are not supported: {some(wrong_dtype)}")
        return problems


class Qwen3WeightsImpl(Qwen3Weights):
    """The library's ``Qwen3Weights``, pointing into a checkpoint's tensors.

    The checkpoint must stay open as long as the pointers are used. All norms must have one dtype,
    and all matrices and biases one; :class:`Qwen3TensorList` knows no such limit.
    """

    def __init__(
        self,
        meta: Qwen3MetaFromConfig,
        tensors: Mapping[str, Weight],
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
        if meta.experts is not None:
            raise WeightsError(
                f"{meta.source}: the model has experts: only Qwen3TensorList takes their weights"
            )
        self._tensors = tensors  # keeps the memory behind the pointers alive
        self.naming = checked.naming
        dt_norm, dt_mat = self._check_dtypes(meta, checked.names)
        super().__init__(
            nlayer=meta.nlayer, dt_norm=dt_norm, dt_mat=dt_mat, transpose_linear_weights=1
        )
        for field, names in checked.names.items():
            addresses = [tensors[name].entry()["data"] for name in names]
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
            coded = [dtype for dtype in by_dtype if dtype not in FLOATS]
            if coded:
                raise WeightsError(
                    f"weights of {meta.source} are {', '.join(coded)}: only Qwen3TensorList takes "
                    "quantised matrices"
                )
            if len(by_dtype) > 1:
                parts = [f"{dtype}: {some(found)}" for dtype, found in sorted(by_dtype.items())]
                problems.append(f"{kind} of mixed dtypes: " + "; ".join(parts))
            result.append(FLOATS[next(iter(by_dtype))])
        if problems:
            raise WeightsError(f"weights do not fit {meta.source}: " + "; ".join(problems))
        return result[0], result[1]


class Qwen3TensorList:
    """The library's ``Qwen3ModelOptions.tensors``, pointing into a checkpoint's files.

    Each weight keeps the form that it has there. The checkpoint must stay open as long as the
    pointers are used, and this object until the model is created.

    Attributes:
        naming: Names of the weights.
        array: The tensors.
    """

    def __init__(
        self,
        meta: Qwen3MetaFromConfig,
        tensors: Mapping[str, Weight],
        naming: Qwen3WeightsNaming | None = None,
        *,
        headless: bool = False,
    ) -> None:
        """Check all weights against the configuration and take their addresses.

        Args:
            meta: The model's configuration.
            tensors: The checkpoint, such as :class:`.Checkpoint`.
            naming: Names of the weights; ``None``: found out from the checkpoint.
            headless: As :class:`CheckedTensors`.

        Raises:
            WeightsError: Weights are missing, or of a wrong shape or dtype; one message names them
                all.
        """
        self._tensors = tensors  # keeps the memory behind the pointers alive
        checked = CheckedTensors(meta, tensors, naming, headless=headless)
        self.naming = checked.naming
        entries = [
            Qwen3Tensor(
                role=TensorRole[place.field.upper()],
                layer=place.layer,
                expert=place.expert,
                **tensors[place.name].entry(),
            )
            for place in checked.places
        ]
        self.array = (Qwen3Tensor * len(entries))(*entries)

    def attach(self, options: Qwen3ModelOptions) -> None:
        """Make ``createQwen3ModelEx`` with these options take its weights from here."""
        options.tensors = self.array
        options.ntensors = len(self.array)

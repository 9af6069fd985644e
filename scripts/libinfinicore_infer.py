"""ctypes binding of libinfinicore_infer: enums, structs, prototypes, loading and error mapping.

Nothing here knows about models or files. The structs mirror
``include/infinicore_infer/models/qwen3.h`` field by field, and :func:`load_library` compares their
sizes with the ones the library was built with, so a stale binding fails with a sentence instead of
reading garbage.
"""

from __future__ import annotations

import ctypes
import enum
import os
import platform
import threading
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any, ClassVar, TypeVar

ABI_VERSION = 1
LIBRARY_NAME = "libinfinicore_infer.so"
LIBRARY_ENV = "INFINICORE_INFER_LIB"


class DeviceType(enum.IntEnum):
    """Kinds of devices (``Qwen3Device``)."""

    DEVICE_TYPE_CPU = 0
    DEVICE_TYPE_NVIDIA = 1
    DEVICE_TYPE_CAMBRICON = 2
    DEVICE_TYPE_ASCEND = 3
    DEVICE_TYPE_METAX = 4
    DEVICE_TYPE_MOORE = 5
    DEVICE_TYPE_ILUVATAR = 6
    DEVICE_TYPE_KUNLUN = 7
    DEVICE_TYPE_HYGON = 8
    DEVICE_TYPE_QY = 9
    DEVICE_TYPE_ALI = 10

    @property
    def label(self) -> str:
        """The name used on command lines, such as ``"cpu"``."""
        return self.name.removeprefix("DEVICE_TYPE_").lower()

    @classmethod
    def parse(cls, device: str | int | DeviceType) -> DeviceType:
        """Return the device type that a name or a number means.

        Raises:
            ValueError: No device is called that; the message lists the names.
        """
        if isinstance(device, str):
            for member in cls:
                if device.lower() in (member.label, member.name.lower()):
                    return member
        elif not isinstance(device, bool) and device in cls._value2member_map_:
            return cls(device)
        names = ", ".join(member.label for member in cls)
        raise ValueError(f"unknown device {device!r}; known devices: {names}")


class DataType(enum.IntEnum):
    """Element types (``Qwen3DType``)."""

    DEFAULT = 0
    F16 = 12
    F32 = 13
    BF16 = 19
    INT8 = 101
    INT4 = 102
    BF12 = 103
    INT4_MIXED = 104
    # What checkpoints store: for Qwen3Tensor only.
    I8 = 3
    U8 = 7
    U4 = 110
    F8_E4M3 = 111
    F8_E8M0 = 112
    GGUF_Q4_0 = 1002
    GGUF_Q4_1 = 1003
    GGUF_Q5_0 = 1006
    GGUF_Q5_1 = 1007
    GGUF_Q8_0 = 1008
    GGUF_Q2_K = 1010
    GGUF_Q3_K = 1011
    GGUF_Q4_K = 1012
    GGUF_Q5_K = 1013
    GGUF_Q6_K = 1014
    GGUF_IQ4_NL = 1020
    GGUF_IQ4_XS = 1023

    @property
    def packed(self) -> bool:
        """Whether this format exists only for packed weights."""
        return DataType.INT8 <= self <= DataType.INT4_MIXED

    @property
    def stored(self) -> bool:
        """Whether this format exists only in checkpoints."""
        floats = (DataType.DEFAULT, DataType.F16, DataType.F32, DataType.BF16)
        return self not in floats and not self.packed

    @classmethod
    def parse(cls, dtype: str | int | DataType | None) -> DataType:
        """Return the element type that a name such as ``"bf16"`` or ``"bfloat16"`` means.

        ``None`` means DEFAULT. Formats that exist only in checkpoints are not known here.

        Raises:
            ValueError: No element type is called that.
        """
        if dtype is None:
            return cls.DEFAULT
        if isinstance(dtype, str):
            name = dtype.lower().removeprefix("torch.")
            names = {"float16": "f16", "half": "f16", "float32": "f32", "bfloat16": "bf16"}
            name = names.get(name, name).upper().replace("-", "_")
            found = cls.__members__.get(name)
        else:
            known_number = not isinstance(dtype, bool) and dtype in cls._value2member_map_
            found = cls(dtype) if known_number else None
        if found is not None and not found.stored:
            return found
        known = "f16, bf16, f32, int8, int4, int4-mixed, bf12"
        raise ValueError(f"unknown dtype {dtype!r}; known dtypes: {known}")


_Member = TypeVar("_Member", bound="_Choice")


class _Choice(enum.IntEnum):
    """Ways to do something, among which users choose by name."""

    @classmethod
    def parse(cls: type[_Member], choice: str | int | _Member) -> _Member:
        """Return the member that a name in any case, or a number, means.

        Raises:
            ValueError: None is called that; the message lists the names.
        """
        found = None
        if isinstance(choice, str):
            found = cls.__members__.get(choice.upper())
        elif isinstance(choice, int) and choice in cls._value2member_map_:
            found = cls(choice)
        if found is None:
            names = ", ".join(name.lower() for name in cls.__members__)
            raise ValueError(f"unknown {cls.__name__.lower()} {choice!r}; known are {names}")
        return found


class Backend(_Choice):
    """Implementations of the operators (``Qwen3Backend``)."""

    AUTO = 0
    CPU = 1
    INFINICORE = 2


class Activations(_Choice):
    """How exactly the CPU backend keeps what weights are multiplied with (``Qwen3Activations``)."""

    AUTO = 0
    F32 = 1
    BF16X2 = 2
    BF16 = 3
    INT16 = 4
    INT8 = 5


class Experts(_Choice):
    """Where the weights of experts are (``Qwen3Experts``)."""

    MEMORY = 0
    DISK = 1


class RopeType(enum.IntEnum):
    """Ways of scaling rotary frequencies (``Qwen3RopeType``)."""

    DEFAULT = 0
    LINEAR = 1
    YARN = 2
    LLAMA3 = 3


class Status(enum.IntEnum):
    """Results of calls (``Qwen3Status``)."""

    SUCCESS = 0
    INTERNAL_ERROR = 1
    NOT_IMPLEMENTED = 2
    BAD_PARAM = 3
    NULL_POINTER = 4
    DEVICE_TYPE_NOT_SUPPORTED = 5
    DEVICE_NOT_FOUND = 6
    DEVICE_NOT_INITIALIZED = 7
    DEVICE_ARCHITECTURE_NOT_SUPPORTED = 8
    BAD_TENSOR_DTYPE = 10
    BAD_TENSOR_SHAPE = 11
    BAD_TENSOR_STRIDES = 12
    INSUFFICIENT_WORKSPACE = 13
    OUT_OF_MEMORY = 100
    OUT_OF_KV = 101
    CONTEXT_OVERFLOW = 102
    CACHE_MISMATCH = 103
    ABI_MISMATCH = 104
    CANCELLED = 105
    BAD_WEIGHTS = 106
    IO_ERROR = 107
    UNREADABLE = 108


class WeightCache(enum.IntEnum):
    """What became of a cache of packed weights (``Qwen3WeightCache``)."""

    UNUSED = 0
    LOADED = 1
    ABSENT = 2
    STALE = 3
    CORRUPT = 4
    UNREADABLE = 5


class TensorRole(enum.IntEnum):
    """What a tensor is to the model (``Qwen3TensorRole``)."""

    INPUT_EMBD = 1
    OUTPUT_NORM = 2
    OUTPUT_EMBD = 3
    ATTN_NORM = 10
    ATTN_Q_NORM = 11
    ATTN_K_NORM = 12
    ATTN_QKV = 13
    ATTN_Q = 14
    ATTN_K = 15
    ATTN_V = 16
    ATTN_O = 17
    ATTN_QKV_B = 18
    ATTN_Q_B = 19
    ATTN_K_B = 20
    ATTN_V_B = 21
    ATTN_O_B = 22
    FFN_NORM = 30
    FFN_GATE_UP = 31
    FFN_GATE = 32
    FFN_UP = 33
    FFN_DOWN = 34
    FFN_ROUTER = 40
    EXPERT_GATE_UP = 41
    EXPERT_GATE = 42
    EXPERT_UP = 43
    EXPERT_DOWN = 44


class TensorLayout(enum.IntEnum):
    """Where a tensor's codes, scales and zero points lie (``Qwen3TensorLayout``)."""

    PLAIN = 0
    GPTQ = 1
    AWQ = 2
    PACK_QUANTIZED = 3


class StructKind(enum.IntEnum):
    """Arguments of ``qwen3StructSize`` (``Qwen3StructKind``)."""

    META = 0
    WEIGHTS = 1
    MODEL_OPTIONS = 2
    SAMPLING_PARAMS = 3
    SAMPLE_RESULT = 4
    STATS = 5
    LOAD_STATE = 6
    TENSOR = 7


class Qwen3Meta(ctypes.Structure):
    """Sizes and constants of a model."""

    # ClassVar[Any]: the stubs' element type for _fields_ does not admit POINTER() results.
    _fields_: ClassVar[Any] = [
        ("dt_logits", c_int32),
        ("nlayer", c_size_t),
        ("d", c_size_t),
        ("nh", c_size_t),
        ("nkvh", c_size_t),
        ("dh", c_size_t),
        ("di", c_size_t),
        ("dctx", c_size_t),
        ("dvoc", c_size_t),
        ("epsilon", c_float),
        ("theta", c_float),
        ("end_token", c_uint32),
    ]


_PointerArray = POINTER(c_void_p)


class Qwen3Weights(ctypes.Structure):
    """Pointers to a checkpoint's tensors in host memory."""

    _fields_: ClassVar[Any] = [
        ("nlayer", c_size_t),
        ("dt_norm", c_int32),
        ("dt_mat", c_int32),
        ("transpose_linear_weights", c_int32),
        ("input_embd", c_void_p),
        ("output_norm", c_void_p),
        ("output_embd", c_void_p),
        ("attn_norm", _PointerArray),
        ("attn_q_norm", _PointerArray),
        ("attn_k_norm", _PointerArray),
        ("attn_qkv", _PointerArray),
        ("attn_q", _PointerArray),
        ("attn_k", _PointerArray),
        ("attn_v", _PointerArray),
        ("attn_o", _PointerArray),
        ("attn_qkv_b", _PointerArray),
        ("attn_q_b", _PointerArray),
        ("attn_k_b", _PointerArray),
        ("attn_v_b", _PointerArray),
        ("attn_o_b", _PointerArray),
        ("ffn_norm", _PointerArray),
        ("ffn_gate_up", _PointerArray),
        ("ffn_gate", _PointerArray),
        ("ffn_up", _PointerArray),
        ("ffn_down", _PointerArray),
    ]


class Qwen3Tensor(ctypes.Structure):
    """One tensor of a checkpoint; zero means "none" for every field but the size and the role."""

    _fields_: ClassVar[Any] = [
        ("struct_size", c_size_t),
        ("role", c_int32),
        ("dtype", c_int32),
        ("layer", c_uint32),
        ("expert", c_uint32),
        ("nexperts", c_uint32),
        ("layout", c_int32),
        ("rows", c_size_t),
        ("cols", c_size_t),
        ("row_stride", c_size_t),
        ("col_stride", c_size_t),
        ("expert_stride", c_size_t),
        ("data", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("groups", POINTER(c_int32)),
        ("scale_dtype", c_int32),
        ("zero_dtype", c_int32),
        ("zero_offset", c_int32),
        ("block_rows", c_uint32),
        ("block_cols", c_uint32),
        ("reserved", c_int32),
    ]

    def __init__(self, **fields: Any) -> None:
        """Set ``struct_size``, then the given fields."""
        super().__init__(struct_size=ctypes.sizeof(Qwen3Tensor), **fields)


ProgressCallback = CFUNCTYPE(c_int, c_void_p, c_uint64, c_uint64)


class Qwen3ModelOptions(ctypes.Structure):
    """Options of ``createQwen3ModelEx``; zero means default for every field but the size."""

    _fields_: ClassVar[Any] = [
        ("struct_size", c_size_t),
        ("backend", c_int32),
        ("nthreads", c_int32),
        ("dt_weight", c_int32),
        ("dt_kv", c_int32),
        ("kv_limit_bytes", c_uint64),
        ("max_step_tokens", c_uint32),
        ("borrow_weights", c_int32),
        ("has_seed", c_int32),
        ("seed", c_uint64),
        ("rope_type", c_int32),
        ("rope_factor", c_float),
        ("rope_original_ctx", c_uint32),
        ("rope_attention_factor", c_float),
        ("rope_beta_fast", c_float),
        ("rope_beta_slow", c_float),
        ("rope_no_truncate", c_int32),
        ("rope_low_freq_factor", c_float),
        ("rope_high_freq_factor", c_float),
        ("progress", ProgressCallback),
        ("progress_user_data", c_void_p),
        ("cache_path", c_char_p),
        ("cache_key", c_char_p),
        ("tensors", POINTER(Qwen3Tensor)),
        ("ntensors", c_size_t),
        ("activations", c_int32),
        ("experts", c_int32),
        ("nexperts", c_uint32),
        ("nexperts_used", c_uint32),
        ("dm", c_uint32),
        ("norm_topk_prob", c_int32),
    ]

    def __init__(self, **fields: Any) -> None:
        """Set ``struct_size``, then the given fields."""
        super().__init__(struct_size=ctypes.sizeof(Qwen3ModelOptions), **fields)


class Qwen3LoadState(ctypes.Structure):
    """What ``qwen3LoadProgress`` shares with other threads while a model is created."""

    _fields_: ClassVar[Any] = [
        ("cancel", c_int32),
        ("nmappings", c_uint32),
        ("mappings", POINTER(c_void_p)),
        ("mapping_bytes", POINTER(c_size_t)),
        ("done", c_uint64),
        ("total", c_uint64),
    ]


class Qwen3SamplingParams(ctypes.Structure):
    """How one request's next token is chosen."""

    _fields_: ClassVar[Any] = [
        ("struct_size", c_size_t),
        ("temperature", c_float),
        ("top_k", c_uint32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("presence_penalty", c_float),
        ("frequency_penalty", c_float),
        ("seed", c_uint64),
        ("skip", c_int32),
        ("history", POINTER(c_uint32)),
        ("nhistory", c_uint32),
        ("ngenerated", c_uint32),
        ("bias_tokens", POINTER(c_uint32)),
        ("bias_values", POINTER(c_float)),
        ("nbias", c_uint32),
        ("allowed_mask", POINTER(c_uint32)),
        ("top_logprobs", c_uint32),
        ("ndraft", c_size_t),
        ("no_logprob", c_int32),
        ("reserved", c_int32),
    ]


class Qwen3SampleResult(ctypes.Structure):
    """What one request got."""

    _fields_: ClassVar[Any] = [
        ("struct_size", c_size_t),
        ("token", c_uint32),
        ("ntop", c_uint32),
        ("logprob", c_float),
        ("naccepted", c_uint32),
        ("top_tokens", POINTER(c_uint32)),
        ("top_logprobs", POINTER(c_float)),
    ]


class Qwen3Stats(ctypes.Structure):
    """Current use of memory by one model, in bytes unless the name says otherwise."""

    _fields_: ClassVar[Any] = [
        ("struct_size", c_size_t),
        ("weight_bytes", c_uint64),
        ("scratch_bytes", c_uint64),
        ("kv_used_bytes", c_uint64),
        ("kv_limit_bytes", c_uint64),
        ("kv_block_bytes", c_uint64),
        ("kv_block_tokens", c_uint32),
        ("ncaches", c_uint32),
        ("nthreads", c_uint32),
        ("weight_cache", c_int32),
        ("expert_file_bytes", c_uint64),
    ]


STRUCTS: dict[StructKind, type[ctypes.Structure]] = {
    StructKind.META: Qwen3Meta,
    StructKind.WEIGHTS: Qwen3Weights,
    StructKind.MODEL_OPTIONS: Qwen3ModelOptions,
    StructKind.SAMPLING_PARAMS: Qwen3SamplingParams,
    StructKind.SAMPLE_RESULT: Qwen3SampleResult,
    StructKind.STATS: Qwen3Stats,
    StructKind.LOAD_STATE: Qwen3LoadState,
    StructKind.TENSOR: Qwen3Tensor,
}

_BATCH_ARGS = [
    c_void_p,  # model
    POINTER(c_uint32),  # tokens
    c_uint32,  # ntok
    POINTER(c_uint32),  # req_lens
    c_uint32,  # nreq
    POINTER(c_uint32),  # req_pos
    POINTER(c_void_p),  # kv_caches
]
_CREATE_ARGS = [POINTER(Qwen3Meta), POINTER(Qwen3Weights), c_int32, c_int32, POINTER(c_int32)]

# name: (result type, argument types)
PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "createQwen3Model": (c_void_p, _CREATE_ARGS),
    "createQwen3ModelEx": (c_void_p, [*_CREATE_ARGS, POINTER(Qwen3ModelOptions)]),
    "qwen3LoadProgress": (c_int, [c_void_p, c_uint64, c_uint64]),
    "destroyQwen3Model": (None, [c_void_p]),
    "qwen3SaveWeights": (c_int32, [c_void_p, c_char_p, c_char_p]),
    "createKVCache": (c_void_p, [c_void_p]),
    "duplicateKVCache": (c_void_p, [c_void_p, c_void_p, c_uint32]),
    "dropKVCache": (None, [c_void_p, c_void_p]),
    "qwen3KVCacheLength": (c_int32, [c_void_p, c_void_p, POINTER(c_uint32)]),
    "qwen3SaveKVCache": (c_int32, [c_void_p, c_void_p, POINTER(c_uint32), c_uint32, c_char_p]),
    "qwen3LoadKVCache": (
        c_void_p,
        [c_void_p, c_char_p, POINTER(c_uint32), c_uint32, POINTER(c_uint32)],
    ),
    "qwen3KVCacheFingerprint": (c_int32, [c_void_p, POINTER(c_uint64)]),
    "inferBatch": (
        c_int32,
        [*_BATCH_ARGS, POINTER(c_float), POINTER(c_uint32), POINTER(c_float), POINTER(c_uint32)],
    ),
    "inferBatchEx": (
        c_int32,
        [*_BATCH_ARGS, POINTER(Qwen3SamplingParams), POINTER(Qwen3SampleResult)],
    ),
    "forwardBatch": (c_int32, [*_BATCH_ARGS, POINTER(c_float)]),
    "embedBatch": (c_int32, [*_BATCH_ARGS, POINTER(c_uint32), c_uint32, POINTER(c_float)]),
    "qwen3Cancel": (None, [c_void_p]),
    "qwen3LastError": (c_char_p, []),
    "qwen3LastStatus": (c_int32, []),
    "qwen3StatusName": (c_char_p, [c_int32]),
    "qwen3Version": (c_char_p, []),
    "qwen3AbiVersion": (c_uint32, []),
    "qwen3StructSize": (c_size_t, [c_int32]),
    "qwen3BuildInfo": (c_char_p, [c_void_p]),
    "qwen3GetStats": (c_int32, [c_void_p, POINTER(Qwen3Stats)]),
}


class Qwen3LibraryError(OSError):
    """The shared library was not found, or is not the one this binding was written for."""


class Qwen3Error(Exception):
    """A call of the library failed.

    Attributes:
        status: The library's code.
        status_name: Its name, such as ``"QWEN3_STATUS_BAD_PARAM"``.
        message: The library's sentence about what went wrong.
    """

    def __init__(self, status: int, status_name: str, message: str) -> None:
        """Store the code, its name and the message."""
        super().__init__(f"{message} ({status_name})" if message else status_name)
        self.status = status
        self.status_name = status_name
        self.message = message


class Qwen3ValueError(Qwen3Error, ValueError):
    """An argument, a tensor or a cache is not acceptable."""


class Qwen3MemoryError(Qwen3Error, MemoryError):
    """Memory ran out."""


class Qwen3OutOfKVError(Qwen3MemoryError):
    """The limit on KV cache memory is reached; dropping a cache frees some."""


class Qwen3NotImplementedError(Qwen3Error, NotImplementedError):
    """This build or device cannot do that."""


class Qwen3Cancelled(Qwen3Error):  # noqa: N818 - an outcome that was asked for, not an error
    """The call was cancelled by the caller's wish."""


_EXCEPTIONS: dict[int, type[Qwen3Error]] = {
    Status.BAD_PARAM: Qwen3ValueError,
    Status.CONTEXT_OVERFLOW: Qwen3ValueError,
    Status.CACHE_MISMATCH: Qwen3ValueError,
    Status.BAD_TENSOR_DTYPE: Qwen3ValueError,
    Status.BAD_TENSOR_SHAPE: Qwen3ValueError,
    Status.BAD_TENSOR_STRIDES: Qwen3ValueError,
    Status.BAD_WEIGHTS: Qwen3ValueError,
    Status.OUT_OF_MEMORY: Qwen3MemoryError,
    Status.OUT_OF_KV: Qwen3OutOfKVError,
    Status.NOT_IMPLEMENTED: Qwen3NotImplementedError,
    Status.DEVICE_TYPE_NOT_SUPPORTED: Qwen3NotImplementedError,
    Status.CANCELLED: Qwen3Cancelled,
}


def check(lib: ctypes.CDLL, status: int) -> None:
    """Raise the exception that a status means; do nothing on success.

    Must run on the thread that made the call, right after it: the message is per thread.

    Raises:
        Qwen3Error: Or the subclass for the status; all carry ``status`` and ``message``.
    """
    if status == Status.SUCCESS:
        return
    name = (lib.qwen3StatusName(status) or b"").decode("utf-8", "replace")
    message = (lib.qwen3LastError() or b"").decode("utf-8", "replace")
    raise _EXCEPTIONS.get(status, Qwen3Error)(status, name, message)


def check_handle(lib: ctypes.CDLL, handle: int | None) -> int:
    """Return a handle that a create function returned, or raise why it is NULL.

    Raises:
        Qwen3Error: Or the subclass for the status.
    """
    if not handle:
        # A library that returns NULL without a status would be a bug; still raise for it.
        check(lib, lib.qwen3LastStatus() or Status.INTERNAL_ERROR)
    assert handle
    return handle


def library_candidates() -> list[Path]:
    """Return the library files that belong to this module, best first.

    In a checkout of the repository these are its builds: the release build, then those of other
    modes, newest first. The library inside the package comes last, since in a checkout nobody but a
    person can have put one there, and its age is unknown. An installed package has only that one.
    """
    folder = Path(__file__).resolve().parent
    found: list[Path] = []
    if folder.name == "scripts" and (folder.parent / "xmake.lua").is_file():
        root = folder.parent / "build" / "linux"
        arch = {"amd64": "x86_64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        found = list((root / arch).glob(f"*/{LIBRARY_NAME}"))
        found += [path for path in root.glob(f"*/*/{LIBRARY_NAME}") if path not in found]
        found.sort(key=lambda path: (path.parent.name != "release", -path.stat().st_mtime))
    packaged = folder / "infinicore_infer" / "lib" / LIBRARY_NAME
    return [*found, packaged] if packaged.is_file() else found


def _open(path: str) -> ctypes.CDLL:
    # RTLD_LOCAL: other libraries in the process may export the same unprefixed names.
    try:
        lib = ctypes.CDLL(path, mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        raise Qwen3LibraryError(f"cannot load {path}: {error}") from error
    for name, (restype, argtypes) in PROTOTYPES.items():
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise Qwen3LibraryError(
                f"{path} has no function {name}: rebuild it with 'xmake build infinicore_infer'"
            ) from None
        function.restype = restype
        function.argtypes = argtypes
    version = lib.qwen3AbiVersion()
    if version != ABI_VERSION:
        raise Qwen3LibraryError(
            f"{path} has ABI version {version}, this binding needs {ABI_VERSION}: "
            "rebuild it with 'xmake build infinicore_infer'"
        )
    for kind, struct in STRUCTS.items():
        size = lib.qwen3StructSize(kind)
        if size != ctypes.sizeof(struct):
            raise Qwen3LibraryError(
                f"{path}: {struct.__name__} has {size} bytes there, {ctypes.sizeof(struct)} here: "
                "library and scripts are from different versions"
            )
    return lib


_lock = threading.Lock()
_libraries: dict[str, ctypes.CDLL] = {}


def load_library(path: str | os.PathLike[str] | None = None) -> ctypes.CDLL:
    """Open the library once per process and file, check it, and return it.

    Args:
        path: The shared library. ``None``: the file that the environment variable
            INFINICORE_INFER_LIB names, else the first of :func:`library_candidates`, else whatever
            the system's loader finds.

    Returns:
        The library with prototypes set on all its functions.

    Raises:
        Qwen3LibraryError: There is no library, or it does not match this binding.
    """
    chosen = os.fspath(path) if path is not None else os.environ.get(LIBRARY_ENV, "")
    if chosen and not Path(chosen).is_file():
        source = "" if path is not None else f" (from {LIBRARY_ENV})"
        raise Qwen3LibraryError(f"no such library: {chosen}{source}")
    if not chosen:
        candidates = library_candidates()
        system = None
        if not candidates:
            # Imported where it is needed: it brings subprocess and more with it.
            from ctypes import util

            system = util.find_library("infinicore_infer")
        chosen = str(candidates[0]) if candidates else system or ""
    if not chosen:
        raise Qwen3LibraryError(
            f"{LIBRARY_NAME} not found: build it with 'xmake build infinicore_infer' in the "
            f"repository's root, install the package again, or set {LIBRARY_ENV} to the file"
        )
    with _lock:
        if chosen not in _libraries:
            _libraries[chosen] = _open(chosen)
        return _libraries[chosen]

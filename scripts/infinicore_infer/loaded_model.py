"""A checkpoint that was loaded, with its tokenizer: what all uses of a model have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from libinfinicore_infer import (
    Activations,
    Backend,
    DataType,
    DeviceType,
    Experts,
    Qwen3ModelOptions,
    Qwen3ValueError,
    Status,
)

from infinicore_infer.checkpoint.naming import Qwen3WeightsNaming
from infinicore_infer.checkpoint.opening import open_model
from infinicore_infer.checkpoint.task import TASKS, Task, check_pooling, names_of, task_of
from infinicore_infer.checkpoint.weights import Qwen3TensorList
from infinicore_infer.generate.embedder import Embedder
from infinicore_infer.generate.reranker import NoRerankerError, Reranker, score_head
from infinicore_infer.generate.sampling import SamplingParams, check_whole
from infinicore_infer.native.load import LoadProgress
from infinicore_infer.native.model import NativeModel
from infinicore_infer.native.weight_cache import CheckpointCache, is_worth_keeping, open_cache
from infinicore_infer.text.chat_template import TokenizerError
from infinicore_infer.text.gguf_tokenizer import gguf_tokenizer
from infinicore_infer.text.tokenizer import Qwen3Tokenizer

Model = TypeVar("Model", bound="LoadedModel")


class LoadedModel:
    """A model that lives inside the library, and the tokenizer of its checkpoint.

    Attributes:
        meta: The model's configuration.
        device: The device it runs on.
        backend: Name of the backend that computes it: ``"cpu"`` or ``"infinicore"``.
        native: The model itself.
        path: The checkpoint's folder or file.
        task: What it was loaded for.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        device: str | DeviceType = "cpu",
        ndev: int = 1,
        max_tokens: int | None = None,
        *,
        device_type: DeviceType | None = None,
        backend: str | Backend = "auto",
        threads: int = 0,
        dtype: str | DataType | None = None,
        kv_dtype: str | DataType | None = None,
        activations: str | Activations = "auto",
        kv_limit_bytes: int = 0,
        max_step_tokens: int = 0,
        dev_ids: Sequence[int] | None = None,
        progress: bool = False,
        seed: int | None = None,
        cache: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
        experts: str | Experts = "memory",
        task: str = "auto",
    ) -> None:
        """Load a checkpoint.

        That is a folder of config.json, safetensors files (plain or quantised) and, for text,
        tokenizer.json; or a GGUF file, which has all of that in it. See docs/checkpoints.md.

        Args:
            model_path: The folder, or the file; of a split GGUF any part.
            device: Name or type of device.
            ndev: How many devices to cut the model over; on the CPU, parts of the machine.
            max_tokens: A context shorter than the model's, in tokens; ``None``: the model's.
            device_type: The same as ``device``, which it overrides.
            backend: ``"auto"``, ``"cpu"`` or ``"infinicore"``.
            threads: CPU threads; 0: as many as this process may use.
            dtype: Type of the packed weights: f32, f16, bf16, or made while packing (CPU backend):
                int8, int4, int4-mixed, bf12 (lossless bf16); ``None``: the checkpoint's.
            kv_dtype: Type of the KV cache; ``None``: the library chooses.
            activations: How exactly the CPU backend keeps what weights are multiplied with:
                ``"auto"``, ``"f32"``, ``"bf16x2"`` or ``"bf16"`` for f32, f16, bf16 and bf12
                weights, ``"int16"`` or ``"int8"`` for int8 and int4; fewer bits are faster on CPUs
                with instructions for them.
            kv_limit_bytes: Most bytes of all KV caches together; 0: the library chooses.
            max_step_tokens: Tokens computed at a time, which sizes work space; 0: 512 on the CPU,
                1024 on other devices.
            dev_ids: Distinct device indices, ndev of them; ``None``: 0, 1, ... (on the CPU, these).
            progress: Whether to draw a progress bar on stderr if that is a terminal.
            seed: Default seed of generations; ``None``: a random one each time.
            cache: Whether weights in a format made while packing are kept on disk for the next
                load. The file is written in the background; a damaged one is replaced with a
                warning in the log, and failing to write one is no error.
            cache_dir: Where to keep them; ``None``: the user's cache folder.
            experts: Where a mixture's experts are: in ``"memory"``, or on ``"disk"``, in the cache
                folder's file, from which each step reads those that it needs. Then the model takes
                the memory of all else only, and what is free caches the file.
            task: What the model is for: ``"chat"``, ``"embed"``, ``"rerank"``, or ``"auto"``, which
                judges by tensors, files and names. The latter two load no head of their own, so
                such a model cannot generate if it is not tied to the embedding.

        Raises:
            ValueError: Something in the checkpoint or the arguments is not acceptable.
            OSError: A file or the library is missing.
            MemoryError: The model does not fit.
            NotImplementedError: This build does not support the device or option.
            Qwen3Error: Another failure of the library.
            KeyboardInterrupt: Ctrl-C while loading; nothing stays allocated.
        """
        self.device = DeviceType.parse(device if device_type is None else device_type)
        # ctypes would cut numbers that are out of range into other ones without a word.
        for name, value, low, high in (
            ("ndev", ndev, 1, 1024),
            ("threads", threads, 0, 1024),
            ("kv_limit_bytes", kv_limit_bytes, 0, 2**64 - 1),
            ("max_step_tokens", max_step_tokens, 0, 65536),
            ("seed", 0 if seed is None else seed, 0, 2**64 - 1),
        ):
            check_whole(name, value, low, high)
        ids = list(range(ndev)) if dev_ids is None else list(dev_ids)
        if len(ids) != ndev:
            raise ValueError(f"dev_ids has {len(ids)} entries for {ndev} devices")
        weight_dtype = DataType.parse(dtype)
        # Activations are never packed: there the checkpoint's type stays.
        logits_dtype = None if weight_dtype.packed else weight_dtype
        if not os.fspath(model_path):
            raise ValueError("the model path is empty")
        self.path = Path(model_path)
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
        self.meta, self._checkpoint = open_model(self.path, logits_dtype, max_tokens)
        self._config_path = str(
            self._checkpoint.folder
            if self._checkpoint.metadata is not None
            else self.path / "generation_config.json"
        )
        self._tokenizer: Qwen3Tokenizer | None = None
        self._seed = seed
        options = Qwen3ModelOptions(
            backend=Backend.parse(backend),
            nthreads=threads,
            dt_weight=weight_dtype,
            dt_kv=DataType.parse(kv_dtype),
            activations=Activations.parse(activations),
            experts=Experts.parse(experts),
            kv_limit_bytes=kv_limit_bytes,
            max_step_tokens=max_step_tokens,
            has_seed=int(seed is not None),
            seed=seed or 0,
        )
        self.meta.rope.apply(options)
        if self.meta.experts is not None:
            self.meta.experts.apply(options)
        self._weight_cache: CheckpointCache | None = None
        try:
            SamplingParams.check_config(self.meta.generation_config, self._config_path)
            metadata = self._checkpoint.metadata
            found = task_of(self._checkpoint.folder, self._checkpoint, metadata)
            self.task: Task = found if task == "auto" else task  # type: ignore[assignment]
            if self.task == "embed":
                check_pooling(self._checkpoint.folder, metadata)
            tied = self.meta.tie_word_embeddings
            weights = Qwen3TensorList(self.meta, self._checkpoint, headless=self.task != "chat")
            self._has_head = tied or self.task == "chat"
            on_disk = options.experts == Experts.DISK
            if on_disk and not cache:
                raise ValueError("experts on disk are read from the cache, which is turned off")
            if cache and (on_disk or is_worth_keeping(self._checkpoint, weight_dtype)):
                self._weight_cache = open_cache(
                    self._checkpoint,
                    weight_dtype,
                    None if cache_dir is None else Path(cache_dir).absolute(),
                    ndev,
                    headless=not self._has_head,
                    required=on_disk,
                )
            if self._weight_cache is not None:
                self._weight_cache.prepare(options)
            kept = self._weight_cache is not None and self._weight_cache.path.exists()
            work = "packing" if weight_dtype.packed and not kept else "loading"
            reporter = LoadProgress(self._checkpoint, sys.stderr if progress else None, work)
            self.native = NativeModel(
                self.meta, weights, options, self.device, ids, reporter, self._load_tokenizer
            )
        except Qwen3ValueError as error:
            self._checkpoint.close()
            if error.status != Status.BAD_WEIGHTS:
                raise
            # The library knows memory, and no files.
            message = f"{self._checkpoint.folder}: {error.message}"
            raise Qwen3ValueError(error.status, error.status_name, message) from error
        except BaseException:
            self._checkpoint.close()
            raise
        self.backend = self.native.build_info()["backend"]
        try:
            self._prepare_pooling(weights.naming)
        except BaseException:
            self.native.close()
            self._checkpoint.close()
            raise
        # Nothing borrows from the files: whoever replaces or cuts one short disturbs no model.
        self._checkpoint.close()
        if self._weight_cache is not None:
            self._weight_cache.after_load(self.native)

    def _prepare_pooling(self, naming: Qwen3WeightsNaming) -> None:
        """Take what embeddings and judgements need while the checkpoint is open.

        Raises:
            ValueError: The model is to judge documents and cannot.
        """
        tokenizer, end_token = self._tokenizer, None
        if tokenizer is not None and self.task == "embed" and not tokenizer.adds_tokens:
            names = names_of(self._checkpoint.folder, self._checkpoint.metadata)
            if any("qwen3-embedding" in name.lower() for name in names):
                # Files of before June 2025, which leave the token to the caller.
                end_token = tokenizer.token_id("<|endoftext|>")
        self._embedder = Embedder(
            self.native,
            tokenizer,
            size=self.meta.d,
            limit=self.context_length,
            vocabulary=self.meta.dvoc,
            end_token=end_token,
        )
        self._reranker: Reranker | None = None
        if self.task == "rerank":
            head = score_head(self._checkpoint, naming, self.tokenizer)
            self._reranker = Reranker(self.native, self.tokenizer, head, self.context_length)

    def _load_tokenizer(self) -> None:
        metadata = self._checkpoint.metadata
        if metadata is not None:
            self._tokenizer = gguf_tokenizer(metadata, self._checkpoint.folder)
        elif (self.path / "tokenizer.json").exists():
            self._tokenizer = Qwen3Tokenizer(self.path)

    # ------------------------------------------------------------------ lifetime and information

    def close(self) -> None:
        """Free the model and all its caches, once its weights are on disk. Safe to call twice."""
        if self._weight_cache is not None:
            self._weight_cache.finish()
        self.native.close()
        self._checkpoint.close()

    def __enter__(self: Model) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer, and not only token ids in and out."""
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Qwen3Tokenizer:
        """The tokenizer.

        Raises:
            TokenizerError: The folder has none; only token ids can be used then.
        """
        if self._tokenizer is None:
            raise TokenizerError(f"{self.path}: no tokenizer.json, so only token ids can be used")
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """Most tokens of a sequence."""
        return int(self.meta.dctx)

    @property
    def embedder(self) -> Embedder:
        """What makes vectors of texts."""
        return self._embedder

    def bound_texts(self, limit: int) -> None:
        """Embed and judge no texts of more tokens, for want of memory."""
        self._embedder.limit = min(self._embedder.limit, limit)
        if self._reranker is not None:
            self._reranker.limit = min(self._reranker.limit, limit)

    @property
    def reranker(self) -> Reranker:
        """What judges documents.

        Raises:
            ValueError: The model was loaded for another task.
        """
        if self._reranker is None:
            raise NoRerankerError(
                f"{self.path} was loaded for task {self.task!r}; to judge documents it has to be "
                "loaded with task 'rerank'"
            )
        return self._reranker

    def _need_head(self) -> None:
        if not self._has_head:
            raise ValueError(
                f"{self.path} was loaded for task {self.task!r}, without the head that gives "
                "logits; load it with task 'chat' to generate"
            )

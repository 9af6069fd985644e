"""``Qwen3ForCausalLM``: one checkpoint, text in, text out."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from libinfinicore_infer import (
    Activations,
    Backend,
    DataType,
    DeviceType,
    Qwen3Cancelled,
    Qwen3Error,
    Qwen3ModelOptions,
)
from numpy.typing import NDArray

from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.checkpoint.naming import Qwen3WeightsNaming
from infinicore_infer.checkpoint.opening import open_model
from infinicore_infer.checkpoint.task import TASKS, Task, check_pooling, names_of, task_of
from infinicore_infer.checkpoint.weights import Qwen3TensorList, Qwen3WeightsImpl
from infinicore_infer.generate.constraint import Constraint
from infinicore_infer.generate.embedder import Embedder
from infinicore_infer.generate.repetition import RepetitionDetector
from infinicore_infer.generate.reranker import (
    NoRerankerError,
    Reranker,
    RerankResult,
    question_of,
    score_head,
)
from infinicore_infer.generate.results import GenerationPiece, GenerationResult, TokenLogprobs
from infinicore_infer.generate.sampling import SamplingParams, check_whole
from infinicore_infer.generate.score import PerplexityResult
from infinicore_infer.generate.score import perplexity as score_perplexity
from infinicore_infer.generate.sequence import GenerationSequence
from infinicore_infer.generate.stream import GenerationStream, run_sequences
from infinicore_infer.generate.token_rules import bad_word_tokens
from infinicore_infer.native.load import LoadProgress
from infinicore_infer.native.model import KVCache, NativeModel, StepRequest, token_list
from infinicore_infer.native.weight_cache import CheckpointCache, is_worth_keeping, open_cache
from infinicore_infer.text.chat_template import Message, TokenizerError
from infinicore_infer.text.gguf_tokenizer import gguf_tokenizer
from infinicore_infer.text.tokenizer import Qwen3Tokenizer

__all__ = [
    "DataType",
    "DeviceType",
    "GenerationPiece",
    "GenerationResult",
    "GenerationStream",
    "KVCache",
    "PerplexityResult",
    "Prompt",
    "Qwen3Cancelled",
    "Qwen3Error",
    "Qwen3ForCausalLM",
    "Qwen3MetaFromConfig",
    "Qwen3WeightsImpl",
    "Qwen3WeightsNaming",
    "RerankResult",
    "SamplingParams",
    "TokenLogprobs",
    "TokenizerError",
]

Prompt = str | Sequence[int]


def prompt_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """Return a list of prompts, which a single one may stand for."""
    items: Sequence[Any] = prompts
    if isinstance(prompts, str) or (len(items) > 0 and isinstance(items[0], int | np.integer)):
        return [prompts]  # type: ignore[list-item]
    return items


class Qwen3ForCausalLM:
    """A Qwen3 model with its tokenizer.

    Methods may be called from several threads; their steps take turns. Use it as a context manager
    or call :meth:`close`; being garbage collected also frees the model.

    Attributes:
        meta: The model's configuration.
        device: The device it runs on.
        backend: Name of the backend that computes it: ``"cpu"`` or ``"infinicore"``.
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
            if cache and is_worth_keeping(self._checkpoint, weight_dtype):
                directory = None if cache_dir is None else Path(cache_dir).absolute()
                self._weight_cache = open_cache(
                    self._checkpoint,
                    weight_dtype,
                    directory,
                    ndev,
                    headless=not self._has_head,
                )
            if self._weight_cache is not None:
                self._weight_cache.prepare(options)
            kept = self._weight_cache is not None and self._weight_cache.path.exists()
            work = "packing" if weight_dtype.packed and not kept else "loading"
            reporter = LoadProgress(self._checkpoint, sys.stderr if progress else None, work)
            self.native = NativeModel(
                self.meta, weights, options, self.device, ids, reporter, self._load_tokenizer
            )
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

    def __enter__(self) -> Qwen3ForCausalLM:
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

    def cancel(self) -> None:
        """Ask a step running in another thread to stop."""
        self.native.cancel()

    # ------------------------------------------------------------------ caches

    def create_kv_cache(self) -> KVCache:
        """Return an empty KV cache, to be closed by the caller or by garbage collection."""
        return self.native.create_kv_cache()

    def duplicate_kv_cache(self, cache: KVCache, length: int | None = None) -> KVCache:
        """Return a cache with the first ``length`` tokens of another (``None``: all)."""
        return self.native.duplicate_kv_cache(cache, length)

    def load_kv_cache(self, path: str | os.PathLike[str]) -> KVCache:
        """Return a cache that :meth:`KVCache.save` wrote; see :meth:`NativeModel.load_kv_cache`."""
        return self.native.load_kv_cache(path)

    def drop_kv_cache(self, cache: KVCache) -> None:
        """Give a cache's memory back; dropping twice does nothing."""
        cache.close()

    # ------------------------------------------------------------------ text in, text out

    def sampling_params(self, **settings: Any) -> SamplingParams:
        """Return generation_config.json's settings with the given ones on top.

        The names of :class:`SamplingParams` and upstream's ``topk`` and ``topp`` are accepted;
        ``None`` means not given. ``bad_words`` may be strings: they are not written, be it at the
        beginning or after a space.

        Raises:
            ValueError: A value is out of range.
            TypeError: There is no such setting.
        """
        for short, name in (("topk", "top_k"), ("topp", "top_p")):
            value = settings.pop(short, None)
            if value is not None:
                settings[name] = value
        words = settings.get("bad_words")
        if words and any(isinstance(word, str) for word in words):
            settings["bad_words"] = bad_word_tokens(self.tokenizer, words)
        if settings.get("seed") is None:
            settings["seed"] = self._seed
        config = self.meta.generation_config
        return SamplingParams.from_config(config, self._config_path, **settings)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return a prompt's token ids, checked.

        Raises:
            ValueError: The prompt is empty or an id is not in the vocabulary.
        """
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if len(tokens) == 0:
            raise ValueError("the prompt is empty")
        return list(token_list(tokens, self.meta.dvoc))

    def check_lookup(self, lookup: int) -> None:
        """Check how many tokens may be guessed per step; see :class:`SamplingParams`.

        Raises:
            ValueError: It is not from 0 to 64.
            NotImplementedError: It is not 0, and the backend cannot verify guesses.
        """
        check_whole("lookup", lookup, 0, 64)
        if lookup and self.backend != "cpu":
            raise NotImplementedError(
                "lookup needs the cpu backend, where a token does not depend on how many are "
                f"computed together; this model runs on backend {self.backend}"
            )

    def new_sequence(
        self,
        tokens: Sequence[int],
        params: SamplingParams,
        *,
        context_length: int | None = None,
        stop_tokens: Sequence[int] = (),
        cache: KVCache | None = None,
        constraint: Constraint | None = None,
        repetition: RepetitionDetector | None = None,
        prompt_logprobs: int | None = None,
    ) -> GenerationSequence:
        """Return a sequence of this model, for those who run steps themselves.

        Args:
            tokens: The prompt, as :meth:`encode` returns it.
            params: Sampling settings.
            context_length: A shorter context than the model's, in tokens; ``None``: the model's.
            stop_tokens: Ids that end the answer besides the model's own; ``ignore_eos`` does not
                concern them.
            cache: As :class:`GenerationSequence`, and so are the others.
            constraint: Decides before each choice which tokens are allowed.
            repetition: Ends the answer when it repeats itself.
            prompt_logprobs: Score the prompt and report this many likeliest tokens with each.

        Raises:
            ValueError: The prompt does not fit the context, or a setting is out of range.
            NotImplementedError: The settings ask for lookup, and the backend cannot verify guesses.
        """
        self._need_head()
        self.check_lookup(params.lookup)
        return GenerationSequence(
            tokens,
            params,
            dctx=self.context_length if context_length is None else context_length,
            dvoc=self.meta.dvoc,
            end_tokens=self.meta.end_tokens,
            stop_tokens=stop_tokens,
            tokenizer=self._tokenizer,
            cache=cache,
            constraint=constraint,
            repetition=repetition,
            prompt_logprobs=prompt_logprobs,
        )

    def stream_generate(
        self,
        prompt: Prompt,
        max_steps: int | None = None,
        *,
        cache: KVCache | None = None,
        cancel: threading.Event | None = None,
        **settings: Any,
    ) -> GenerationStream:
        """Continue a prompt, token by token.

        Args:
            prompt: Text, in which control tokens are recognised, or token ids.
            max_steps: Most tokens to generate; ``None``: until an end token or a full context.
            cache: A cache to use and leave behind; the tokens it shares with the beginning of the
                prompt are not computed again.
            cancel: Ends the stream before its next step when set.
            **settings: As :meth:`generate`.

        Returns:
            An iterator of :class:`GenerationPiece`; its ``result`` is complete at the end.

        Raises:
            ValueError: The prompt does not fit the context, or a setting is out of range.
        """
        params = self.sampling_params(max_steps=max_steps, **settings)
        sequence = self.new_sequence(self.encode(prompt), params, cache=cache)
        return GenerationStream(self.native, sequence, cancel)

    def generate(
        self,
        prompt: Prompt,
        max_steps: int | None = None,
        temperature: float | None = None,
        topk: int | None = None,
        topp: float | None = None,
        *,
        stream: Callable[[str], object] | None = None,
        cache: KVCache | None = None,
        cancel: threading.Event | None = None,
        **settings: Any,
    ) -> GenerationResult:
        """Continue a prompt.

        Args:
            prompt: Text, in which control tokens are recognised, or token ids.
            max_steps: Most tokens to generate; ``None``: until an end token or a full context.
            temperature: 0 is greedy; ``None``: as generation_config.json says, else greedy.
            topk: Keep the k likeliest tokens; 0: all; 1: greedy.
            topp: Keep the likeliest tokens whose probabilities reach this.
            stream: Called with each piece of text as it comes.
            cache: As :meth:`stream_generate`.
            cancel: As :meth:`stream_generate`.
            **settings: Other fields of :class:`SamplingParams`: min_p, seed, stop,
                repetition_penalty, presence_penalty, frequency_penalty, logit_bias,
                allowed_tokens, bad_words, min_tokens, logprobs, include_stop, skip_special,
                ignore_eos, lookup.

        Returns:
            The answer; ``str()`` of it is the text.

        Raises:
            ValueError: The prompt does not fit the context, or a setting is out of range.
            NotImplementedError: lookup on another backend than the CPU's.
            TypeError: There is no such setting.
            Qwen3Error: The library failed.
        """
        if stream is not None and not callable(stream):
            raise TypeError("stream must be a function; stream_generate returns an iterator")
        settings.update(temperature=temperature, topk=topk, topp=topp)
        with self.stream_generate(
            prompt, max_steps, cache=cache, cancel=cancel, **settings
        ) as pieces:
            for piece in pieces:
                if stream is not None and piece.text:
                    stream(piece.text)
        return pieces.result

    def chat_prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool = True,
    ) -> str:
        """Render messages with the checkpoint's chat template.

        Raises:
            TokenizerError: There is no template, or it or this program refuses the messages.
        """
        return self.tokenizer.apply_chat_template(
            messages, tools, variables={"enable_thinking": enable_thinking}
        )

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool = True,
        **settings: Any,
    ) -> GenerationResult:
        """Answer a conversation.

        Args:
            messages: ``{"role": ..., "content": ...}`` each, the oldest first.
            tools: JSON schemas of functions that the model may call.
            enable_thinking: Whether the model may think before it answers.
            **settings: As :meth:`generate`.

        Returns:
            The answer, thinking included.

        Raises:
            TokenizerError: The messages are malformed (a ValueError).
            ValueError: As :meth:`generate`.
        """
        return self.generate(self.chat_prompt(messages, tools, enable_thinking), **settings)

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        max_steps: int | None = None,
        *,
        max_batch: int = 16,
        stream: Callable[[int, str], object] | None = None,
        cancel: threading.Event | None = None,
        **settings: Any,
    ) -> list[GenerationResult]:
        """Continue several prompts together, which is much faster than one after the other.

        Greedy answers equal those of single calls. With a seed, prompt i uses seed + i.

        Args:
            prompts: Texts or token ids.
            max_steps: Most tokens per answer.
            max_batch: Most prompts in progress at a time.
            stream: Called with the prompt's index and a piece of text as it comes.
            cancel: Ends all answers before the next step when set.
            **settings: As :meth:`generate`, for all prompts.

        Returns:
            One result per prompt, in order.

        Raises:
            ValueError: A prompt does not fit the context, or a setting is out of range.
            Qwen3Error: The library failed.
        """
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        params = self.sampling_params(max_steps=max_steps, **settings)
        sequences = []
        for i, prompt in enumerate(prompts):
            try:
                sequences.append(self.new_sequence(self.encode(prompt), params.numbered(i)))
            except ValueError as error:
                raise ValueError(f"prompt {i}: {error}") from error
        pieces = run_sequences(self.native, sequences, max_batch=max_batch, cancel=cancel)
        for index, piece in pieces:
            if stream is not None and piece.text:
                stream(index, piece.text)
        return [sequence.result for sequence in sequences]

    # ------------------------------------------------------------------ vectors and judgements

    def embed(
        self,
        texts: str | Sequence[str] | Sequence[Sequence[int]],
        dimensions: int | None = None,
        instruction: str | None = None,
        normalize: bool = True,
        *,
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        """Return vectors of texts, whose products tell how near they are in meaning.

        A text's vector is the hidden state of its last token, and the same bits alone or beside any
        others. Texts get the tokens that the tokenizer's post-processor adds, as in transformers.

        Args:
            texts: A text, a list of texts, or a list of lists of token ids, to which nothing is
                added.
            dimensions: Only so many of the first components, for models that were trained for that;
                ``None``: all.
            instruction: The texts are queries of this task, and get the form that Qwen3-Embedding
                knows for it; ``None``: they are embedded as they are, as documents are.
            normalize: Whether vectors are scaled to length 1, after they are cut.
            truncate: Whether the end of texts that are too long is cut off; otherwise they are
                refused.

        Returns:
            float32 [texts, dimensions]; of a single text [dimensions].

        Raises:
            ValueError: A text is empty or too long, or there are not so many dimensions.
            MemoryError: The KV memory cannot hold a text.
            Qwen3Error: The library failed.
        """
        return self.embedder.embed(texts, dimensions, instruction, normalize, truncate)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        instruction: str | None = None,
        *,
        top_n: int | None = None,
        truncate: bool = False,
    ) -> list[RerankResult]:
        """Judge how well documents answer a query.

        Args:
            query: The query.
            documents: The documents. What all texts begin with is computed once.
            instruction: What a document has to be good for; ``None``: to answer a web search.
            top_n: Only the best so many; ``None``: all.
            truncate: Whether the end of documents that are too long is cut off; otherwise they are
                refused.

        Returns:
            The results, the best first.

        Raises:
            ValueError: The model was not loaded to judge, or a text is empty or too long.
            MemoryError: The KV memory cannot hold a document.
            Qwen3Error: The library failed.
        """
        question = question_of(query, instruction, truncate=truncate)
        return self.reranker.rerank(question, documents, top_n)

    # ------------------------------------------------------------------ logits

    def forward(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]],
        caches: Sequence[KVCache] | None = None,
        positions: Sequence[int] | None = None,
    ) -> NDArray[np.float32]:
        """Return the logits of every given token.

        Args:
            tokens: Token ids of one request, or a list of several requests' ids.
            caches: A cache per request; ``None``: temporary ones.
            positions: Position of each request's first token; ``None``: the cache's length.

        Returns:
            float32 [ntok, dvoc], request after request.

        Raises:
            ValueError: Tokens, caches or positions do not fit together.
            Qwen3Error: The library failed.
        """
        self._need_head()
        nested = len(tokens) > 0 and isinstance(tokens[0], Sequence | np.ndarray)
        requests: Sequence[Any] = tokens if nested else [tokens]
        with ExitStack() as stack:
            if caches is None:
                caches = [stack.enter_context(self.create_kv_cache()) for _ in requests]
            if positions is None:
                positions = [len(cache) for cache in caches]
            if not len(requests) == len(caches) == len(positions):
                raise ValueError(
                    f"{len(requests)} requests, {len(caches)} caches and {len(positions)} positions"
                )
            steps = zip(caches, requests, positions, strict=True)
            return self.native.forward([StepRequest(*step) for step in steps])

    def perplexity(
        self, data: Prompt | Sequence[Prompt], window: int | None = None
    ) -> PerplexityResult:
        """Return how well the model predicts text.

        Args:
            data: A text, token ids, or a list of either; each is scored by itself.
            window: Longer token lists are cut into windows of this many tokens, scored separately
                without overlap; ``None``: the context length.

        Returns:
            The result; ``float()`` of it is the perplexity over all scored tokens.

        Raises:
            ValueError: There is nothing to score.
        """
        self._need_head()
        window = self.context_length if window is None else window
        if not 2 <= window <= self.context_length:
            raise ValueError(f"window must be from 2 to {self.context_length}, got {window}")
        items = [self.encode(item) for item in prompt_list(data)]
        return score_perplexity(self.native, items, window)

    # ------------------------------------------------------------------ diagnostics

    def stats(self) -> dict[str, int]:
        """Return memory use by name; see ``Qwen3Stats`` in the C header."""
        return self.native.stats()

    def build_info(self) -> dict[str, str]:
        """Return version, instruction set, backend, device and threads by name."""
        return self.native.build_info()

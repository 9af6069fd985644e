"""``Qwen3ForCausalLM``: one checkpoint, text in, text out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from libinfinicore_infer import DataType, DeviceType, Qwen3Cancelled, Qwen3Error
from numpy.typing import NDArray

from infinicore_infer.checkpoint.config import Qwen3MetaFromConfig
from infinicore_infer.checkpoint.naming import Qwen3WeightsNaming
from infinicore_infer.checkpoint.weights import Qwen3WeightsImpl
from infinicore_infer.generate.constraint import Constraint
from infinicore_infer.generate.repetition import RepetitionDetector
from infinicore_infer.generate.reranker import RerankResult, question_of
from infinicore_infer.generate.results import GenerationPiece, GenerationResult, TokenLogprobs
from infinicore_infer.generate.sampling import SamplingParams, check_whole
from infinicore_infer.generate.score import PerplexityResult
from infinicore_infer.generate.score import perplexity as score_perplexity
from infinicore_infer.generate.sequence import GenerationSequence
from infinicore_infer.generate.stream import GenerationStream, run_sequences
from infinicore_infer.generate.token_rules import bad_word_tokens
from infinicore_infer.loaded_model import LoadedModel
from infinicore_infer.native.model import KVCache, StepRequest, token_list
from infinicore_infer.text.chat_template import Message, TokenizerError

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


class Qwen3ForCausalLM(LoadedModel):
    """A Qwen3 model with its tokenizer.

    Methods may be called from several threads; their steps take turns. Use it as a context manager
    or call :meth:`close`; being garbage collected also frees the model.

    Attributes:
        meta: The model's configuration.
        device: The device it runs on.
        backend: Name of the backend that computes it: ``"cpu"`` or ``"infinicore"``.
        task: What it was loaded for: ``"chat"``, ``"embed"`` or ``"rerank"``.
    """

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

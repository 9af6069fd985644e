"""``LLM``: lists of prompts from Python, answered together.

Example:
    from infinicore_infer.engine.llm import LLM

    with LLM("Qwen3-0.6B") as llm:
        for result in llm.generate(["One", "Two"], max_steps=20):
            print(result.text)
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from infinicore_infer.causal_lm import Prompt, Qwen3ForCausalLM, prompt_list
from infinicore_infer.engine.config import EngineConfig
from infinicore_infer.engine.engine import Engine
from infinicore_infer.engine.jobs import Job, Submission, Update
from infinicore_infer.generate.results import GenerationResult
from infinicore_infer.text.chat_template import Message


class LLM:
    """A model for programs that have many prompts. A context manager.

    Attributes:
        model: The loaded model.
        engine: The engine; other threads may use it at the same time.
    """

    def __init__(self, model_path: str, config: EngineConfig | None = None, **options: Any) -> None:
        """Load a model.

        Args:
            model_path: The checkpoint's folder.
            config: Limits of the engine.
            **options: As :class:`Qwen3ForCausalLM`.
        """
        self.model = Qwen3ForCausalLM(model_path, **options)
        try:
            self.engine = Engine(self.model, config)
        except BaseException:
            self.model.close()
            raise

    def generate(
        self, prompts: Prompt | Sequence[Prompt], **settings: Any
    ) -> list[GenerationResult]:
        """Continue prompts; greedy answers equal those of single calls.

        Args:
            prompts: A text, token ids, or a list of either. With a seed, prompt i uses seed + i.
            **settings: As :meth:`Qwen3ForCausalLM.generate`.

        Returns:
            One result per prompt, in order.

        Raises:
            ValueError: A prompt does not fit the context, or a setting is out of range.
            EngineError: A request failed; the others are cancelled.
        """
        params = self.model.sampling_params(**settings)
        jobs: list[Job] = []
        errors: list[Exception] = []
        left = threading.Semaphore(0)

        def receive(update: Update) -> None:
            if update.done:
                if update.error is not None:
                    errors.append(update.error)
                left.release()

        for i, prompt in enumerate(prompt_list(prompts)):
            submission = Submission(self.model.encode(prompt), [params.numbered(i)])
            jobs.append(self.engine.make_job(submission, receive))
        submitted = 0
        try:
            for job in jobs:
                self.engine.submit([job], wait=True)
                submitted += 1
            for _ in jobs:
                left.acquire()
                if errors:
                    raise errors[0]
        finally:
            self.engine.cancel(jobs[:submitted])
        return [job.sequence.result for job in jobs]

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool = True,
        **settings: Any,
    ) -> list[GenerationResult]:
        """Answer conversations; see :meth:`generate` and :meth:`Qwen3ForCausalLM.chat`."""
        prompts = [self.model.chat_prompt(item, tools, enable_thinking) for item in conversations]
        return self.generate(prompts, **settings)

    def close(self) -> None:
        """End the engine and free the model."""
        self.engine.close()
        self.model.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

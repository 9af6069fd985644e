"""Serves many requests at once: one thread computes, everybody else submits, listens and cancels.

Every step takes one token of each answer in progress and fills the rest of its budget with parts of
prompts. The budget follows the machine's speed, so that answers keep flowing while a long prompt
loads. When KV memory runs out, remembered prefixes go before a request has to step back. The loop
of a step is :class:`Batch`; here is what many requests need besides: a queue, deadlines, remembered
prefixes, the pace, statistics.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from infinicore_infer.causal_lm import Qwen3ForCausalLM
from infinicore_infer.engine.config import (
    DeadlineError,
    EngineClosedError,
    EngineConfig,
    EngineStats,
    StepFailedError,
)
from infinicore_infer.engine.job_queue import JobQueue
from infinicore_infer.engine.jobs import Job, Submission, Update
from infinicore_infer.engine.pace import Pace
from infinicore_infer.engine.pooling_engine import PoolingEngine
from infinicore_infer.engine.prefix_cache import PrefixCache
from infinicore_infer.engine.prefix_loads import PrefixLoads
from infinicore_infer.engine.prefix_store import open_store
from infinicore_infer.engine.wakeups import Wakeups
from infinicore_infer.generate.batch import (
    Batch,
    Computed,
    Delivered,
    Outcome,
    StepFailed,
    SteppedBack,
)
from infinicore_infer.generate.drafts import Drafter
from infinicore_infer.generate.lookup import LookupSource
from infinicore_infer.generate.results import GenerationPiece
from infinicore_infer.generate.sequence import GenerationSequence

_LOG = logging.getLogger("infinicore_infer.engine")

# With more answers in a step, it is busy enough: drafts would hold up the others' tokens.
MAX_DRAFTING = 4
# Most drafts of a step.
MAX_DRAFTS = 32


class Engine:
    """Runs requests on a model from a thread of its own.

    All methods may be called from any thread. Nothing else should run the model meanwhile.

    Attributes:
        model: The model; the caller closes it, after the engine.
        context_length: Most tokens of a sequence: the model's context, or less if the KV memory
            cannot hold that much.
        pooling: Embeds and judges texts, for a model that was loaded for that; else ``None``.
        wakeups: For receivers of updates, on the engine's thread: flushed after every step.
    """

    def __init__(self, model: Qwen3ForCausalLM, config: EngineConfig | None = None) -> None:
        """Start the engine's thread.

        Raises:
            OSError: The folder for prefixes cannot be used.
            ValueError: ``lookup`` is out of range, or the model's KV memory holds nothing.
            NotImplementedError: The backend can neither keep prefixes on disk nor verify guesses.
        """
        self.model = model
        self.config = config or EngineConfig()
        if not self.config.step_tokens:
            self.config = replace(self.config, step_tokens=model.native.step_tokens)
        model.check_lookup(self.config.lookup)
        stats = model.stats()
        blocks = stats["kv_limit_bytes"] // stats["kv_block_bytes"]
        if blocks == 0:
            raise ValueError(
                f"kv_limit_bytes (--kv-memory) is {stats['kv_limit_bytes']}, which holds nothing: "
                f"keys and values of {stats['kv_block_tokens']} tokens, the least there is, take "
                f"{stats['kv_block_bytes']} bytes"
            )
        self.context_length = min(model.context_length, blocks * stats["kv_block_tokens"])
        kept = self.config.prefix_cache_bytes
        capacity = stats["kv_limit_bytes"] // 2 if kept is None else kept
        self.wakeups = Wakeups()
        self._native = model.native
        folder, limit = self.config.prefix_dir, self.config.prefix_disk_bytes
        store = open_store(self._native, folder, limit) if folder is not None else None
        self._prefix = PrefixCache(self._native, capacity, store)
        self._queue = JobQueue(self.config)
        self._loads = PrefixLoads(self._prefix, self._queue.wake)
        # All that follows is the engine thread's alone.
        self._active: dict[GenerationSequence, Job] = {}
        self._batch = Batch(
            self._native,
            self.config.max_batch,
            Drafter(LookupSource(), max_sequences=MAX_DRAFTING, max_drafts=MAX_DRAFTS),
            # A file that is being read takes memory before it is remembered.
            reclaim=lambda: self._prefix.evict() or self._loads.settle(),
            isolate=True,
        )
        self._pace = Pace(self.config)
        self._job_seconds = 1.0
        self._stats = EngineStats(kv_limit_bytes=stats["kv_limit_bytes"])
        model.bound_texts(self.context_length)
        pools = model.task != "chat"
        self.pooling = PoolingEngine(self._native, self.config) if pools else None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ any thread

    @property
    def stats(self) -> EngineStats:
        """A snapshot as of the latest step; never waits for a step."""
        stats = replace(self._stats, waiting=len(self._queue), draining=self._queue.draining)
        if self.pooling is not None:
            stats.running += len(self.pooling)
            stats.prompt_tokens += self.pooling.tokens
        return stats

    @property
    def retry_after(self) -> int:
        """Seconds after which a place in the queue is likely to be free."""
        rounds = len(self._queue) / self.config.max_batch
        return max(1, min(60, round(self._job_seconds * rounds)))

    def make_job(
        self,
        submission: Submission,
        sink: Callable[[Update], object],
        *,
        number: int = 0,
        leader: Job | None = None,
    ) -> Job:
        """Return a job for :meth:`submit`.

        Args:
            submission: The prompt and its settings.
            sink: Receives the updates, on the engine's thread; must not block.
            number: Which of the submission's answers it makes.
            leader: A job with the same prompt whose prefix to reuse.

        Raises:
            ValueError: The prompt does not fit, or a setting is out of range.
            NotImplementedError: The settings ask for lookup, and the backend cannot verify guesses.
        """
        params = submission.params[number]
        if params.logprobs is None and not params.lookup:
            params = replace(params, lookup=self.config.lookup)
        sequence = self.model.new_sequence(
            submission.prompt,
            params,
            context_length=self.context_length,
            stop_tokens=submission.stop_tokens,
            constraint=submission.constraint() if submission.constraint else None,
            repetition=submission.repetition() if submission.repetition else None,
            prompt_logprobs=submission.prompt_logprobs,
        )
        timeout = submission.timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        return Job(sequence, sink, submission.name, deadline, submission.priority, leader)

    def submit(self, jobs: Sequence[Job], *, wait: bool = False) -> None:
        """Queue jobs, all or none.

        Args:
            jobs: The jobs; their sinks are called from the engine's thread.
            wait: Whether to wait for room in the queue.

        Raises:
            QueueFullError: There is no room.
            EngineClosedError: The engine is draining or closed.
        """
        self._queue.submit(jobs, wait)

    def cancel(self, jobs: Sequence[Job]) -> None:
        """End jobs before the next step and free what they hold; nothing if they have ended."""
        self._queue.cancel(jobs)

    def drain(self) -> None:
        """Accept no more jobs; those accepted go on."""
        self._queue.drain()
        if self.pooling is not None:
            self.pooling.drain()

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until no job is left and all are told; return whether that is so."""
        begin = time.monotonic()
        if not self._queue.wait_idle(timeout):
            return False
        left = None if timeout is None else max(0.0, timeout - (time.monotonic() - begin))
        return self.pooling is None or self.pooling.wait_idle(left)

    def close(self, timeout: float | None = 0.0) -> None:
        """Drain for up to ``timeout`` seconds (``None``: as long as it takes), then end."""
        self.drain()
        self.wait_idle(timeout)
        self._queue.close()
        if self.pooling is not None:
            self.pooling.close()
        self._thread.join()

    # ------------------------------------------------------------------ the engine's thread

    def _run(self) -> None:
        while self._queue.wait_for_work(bool(self._active)):
            try:
                self._cycle()
            except Exception as error:
                # A bug in the engine must not end the service.
                _LOG.exception("engine cycle failed")
                self._stats.failed_steps += 1
                for job in list(self._active.values()):
                    self._fail(job, StepFailedError(f"internal error: {error}"))
            self._publish()
            self.wakeups.flush()
        for job in [*self._active.values(), *self._queue.snapshot()]:
            self._fail(job, EngineClosedError("the engine was closed"))
        self.wakeups.flush()
        self._loads.close()
        self._prefix.clear()
        self._publish()

    def _cycle(self) -> None:
        self._reap()
        self._admit()
        if self._active:
            for outcome in self._batch.step(self._pace.budget(self._batch.ready)):
                self._take(outcome)

    def _reap(self) -> None:
        """End jobs whose client left or whose time is over."""
        now = time.monotonic()
        for job in [*self._active.values(), *self._queue.snapshot()]:
            if job.cancelled:
                self._finish(job, Update(done=True))
            elif job.deadline is not None and now > job.deadline:
                self._fail(job, DeadlineError("the request took longer than allowed"))

    def _admit(self) -> None:
        while self._batch.room > 0:
            job = self._queue.take()
            # Collected after taking: the file that this job waited for may just have been read.
            self._loads.collect()
            if job is None:
                return
            if self._loads.begin(job):
                self._queue.put_back(job)
                continue
            self._active[job.sequence] = job
            try:
                self._start(job)
            except Exception as error:
                self._give_up(job, error)

    def _start(self, job: Job) -> None:
        sequence, cache = job.sequence, None
        first = job.started is None
        if sequence.prompt_logprobs is None:
            again = job.leader is not None or job.load is not None or not first
            cache, job.lineage = self._prefix.match(sequence.all_tokens, again)
        self._batch.add(sequence, cache)
        if first:
            job.started = time.monotonic()
            self._stats.cached_tokens += sequence.result.reused_tokens
            self._stats.prompt_tokens += sequence.result.prompt_tokens

    def _take(self, outcome: Outcome) -> None:
        """Deal with one thing that came of a step."""
        stats = self._stats
        if isinstance(outcome, Delivered):
            job = self._active.get(outcome.sequence)
            # A job that failed with an earlier piece of the same step gets no more.
            if job is not None:
                try:
                    self._deliver(job, outcome.piece)
                except Exception as error:
                    self._give_up(job, error)
        elif isinstance(outcome, Computed):
            stats.steps += 1
            stats.step_seconds += outcome.seconds
            stats.drafted_tokens += outcome.drafted
            stats.accepted_tokens += outcome.accepted
            self._pace.record(outcome.shares, outcome.tokens, outcome.seconds)
        elif isinstance(outcome, SteppedBack):
            stats.preemptions += 1
            self._queue.put_back(self._active.pop(outcome.sequence))
        elif isinstance(outcome, StepFailed):
            stats.failed_steps += 1
            jobs = [self._active[sequence] for sequence in outcome.sequences]
            _LOG.error("a step of %d requests failed", len(jobs), exc_info=outcome.error)
            if len(jobs) == 1:
                self._fail(jobs[0], StepFailedError(f"the step failed: {outcome.error}"))
        else:
            self._give_up(self._active[outcome.sequence], outcome.error)

    def _deliver(self, job: Job, piece: GenerationPiece) -> None:
        self._stats.generated_tokens += 1
        if not job.prefilled:
            self._remember(job, job.sequence.result.prompt_tokens)
            job.prefilled = True
        update = Update(piece=piece, done=job.sequence.finished)
        if update.done:
            self._finish(job, update)
        else:
            job.send(update)

    def _remember(self, job: Job, count: int) -> None:
        sequence = job.sequence
        if sequence.cache is not None and sequence.prompt_logprobs is None:
            tokens = sequence.all_tokens[:count]
            self._prefix.insert(tokens, sequence.cache, job.lineage)

    def _give_up(self, job: Job, error: Exception) -> None:
        """End a job because of an error that nobody expected."""
        _LOG.error("request %s failed", job.name, exc_info=error)
        self._fail(job, StepFailedError(str(error)))

    def _fail(self, job: Job, error: Exception) -> None:
        self._finish(job, Update(error=error, done=True))

    def _finish(self, job: Job, update: Update) -> None:
        """Free what a job holds, then say so."""
        sequence = job.sequence
        try:
            if update.error is None:
                self._remember(job, sequence.position)
        except Exception:
            _LOG.exception("could not remember the prefix of request %s", job.name)
        if not sequence.finished:
            sequence.finish("cancelled")
        self._batch.remove(sequence)
        self._active.pop(sequence, None)
        job.prefilled = True  # whoever waits for its prefix need not wait longer
        self._queue.ending(job)
        if not len(self._queue):
            self._batch.lift_limit()
        if job.started is not None:
            self._job_seconds += 0.2 * (time.monotonic() - job.started - self._job_seconds)
        self._publish()
        job.send(update)
        self._queue.told()

    def _publish(self) -> None:
        """Refresh the snapshot of what only this thread may ask the library."""
        memory = self._native.stats()
        self._stats.running = len(self._active)
        self._stats.kv_used_bytes = memory["kv_used_bytes"]
        self._stats.caches = memory["ncaches"]
        self._stats.prefix_bytes = self._prefix.bytes
        self._stats.prefix_nodes = len(self._prefix)
        self._stats.prefix_hits = self._prefix.hits
        self._stats.prefix_lookups = self._prefix.lookups
        if self._prefix.store is not None:
            self._stats.prefix_loads = self._prefix.store.loads
            self._stats.prefix_saves = self._prefix.store.saves

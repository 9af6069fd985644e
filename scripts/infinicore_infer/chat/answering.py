"""One answer as it comes, which Ctrl-C stops."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from infinicore_infer.causal_lm import GenerationResult, KVCache, Qwen3ForCausalLM


@contextmanager
def _counted_interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C in a list instead of raising KeyboardInterrupt.

    An exception could strike between any two instructions, the ones that clean up included.
    """
    interrupts: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def answer(
    model: Qwen3ForCausalLM,
    prompt: str,
    settings: dict[str, Any],
    cache: KVCache,
    show: Callable[[str], object] | None = None,
) -> tuple[GenerationResult, bool]:
    """Generate an answer on a second thread and show it as it comes.

    The main thread only waits and writes, so that Ctrl-C is heard in the middle of a long step and
    can cancel it.

    Args:
        model: The model.
        prompt: The prompt's text.
        settings: Settings of the generation.
        cache: Cache to use; keeps its tokens for the next turn.
        show: Called on this thread with each piece of text; ``None``: nothing is shown.

    Returns:
        The result, and whether Ctrl-C ended it.

    Raises:
        Exception: Whatever the generation or ``show`` raised.
    """
    pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    cancel = threading.Event()
    # Made here, so that errors in prompt and settings are raised before a thread exists.
    stream = model.stream_generate(prompt, cache=cache, cancel=cancel, **settings)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            for piece in stream:
                if piece.text:
                    pieces.put(piece.text)
        except BaseException as error:
            failure.append(error)
        finally:
            stream.close()
            pieces.put(None)

    worker = threading.Thread(target=work, name="generate")
    with _counted_interrupts() as interrupts:
        worker.start()
        try:
            while True:
                try:
                    # A timeout, because a step may begin just after it was asked to cancel.
                    text = pieces.get(timeout=0.1)
                except queue.Empty:
                    text = ""
                if interrupts:
                    cancel.set()
                    model.cancel()
                if text is None:
                    break
                if text and show is not None and not interrupts:
                    show(text)
        except BaseException:
            # Standard output is gone, for example: stop the work before passing it on.
            cancel.set()
            model.cancel()
            raise
        finally:
            worker.join()
    if failure:
        raise failure[0]
    return stream.result, bool(interrupts)


def stats_line(result: GenerationResult) -> str:
    """Return one line about an answer's length and speed."""
    reused = f" ({result.reused_tokens} cached)" if result.reused_tokens else ""
    drafted, accepted = result.drafted_tokens, result.accepted_tokens
    lookup = f", lookup {accepted} of {drafted} guesses right" if drafted else ""
    return (
        f"prompt {result.prompt_tokens} tokens{reused}, TTFT {result.ttft * 1000:.0f} ms, "
        f"prefill {result.prefill_tps:.1f} tok/s, answer {len(result.tokens)} tokens, "
        f"decode {result.decode_tps:.1f} tok/s{lookup}, end: {result.finish_reason}"
    )


def report(result: GenerationResult) -> dict[str, Any]:
    """Return what programs are told about an answer."""
    return {
        "text": result.text,
        "tokens": result.tokens,
        "finish_reason": result.finish_reason,
        "stop_string": result.stop_string,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": len(result.tokens),
        "drafted_tokens": result.drafted_tokens,
        "accepted_tokens": result.accepted_tokens,
        "seed": result.seed,
        "ttft_s": round(result.ttft, 6),
        "prefill_tps": round(result.prefill_tps, 3),
        "decode_tps": round(result.decode_tps, 3),
    }

"""What happens while the library creates a model: a progress bar, Ctrl-C, and other work beside it.

Creating runs on a thread of its own and calls back into C only. A Python callback would wait for
the interpreter's lock, which a tokenizer holds for a quarter of a second while it is read.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from libinfinicore_infer import ProgressCallback, Qwen3LoadState, Qwen3ModelOptions

from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.progress import ProgressBar

_DRAW_SECONDS = 0.1


class LoadProgress:
    """The state of one loading: pages to release after each layer, a bar, a wish to stop.

    Releasing the pages keeps the peak of resident memory at the packed weights plus one layer,
    instead of packed weights plus the whole file.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        stream: TextIO | None = None,
        work: str = "loading",
    ) -> None:
        """Start.

        Args:
            checkpoint: The files whose pages to release; it must stay open meanwhile.
            stream: Where to draw a bar, if that is a terminal; ``None``: no bar.
            work: What the bar calls it.
        """
        mappings = [] if checkpoint is None else checkpoint.mappings()
        count = len(mappings)
        self.state = Qwen3LoadState(
            nmappings=count,
            mappings=(ctypes.c_void_p * count)(*(address for address, _ in mappings)),
            mapping_bytes=(ctypes.c_size_t * count)(*(size for _, size in mappings)),
        )
        self._bar = ProgressBar(stream, work)

    def attach(self, lib: ctypes.CDLL, options: Qwen3ModelOptions) -> None:
        """Make a creation with these options report here; the options do not keep this alive."""
        options.progress = ctypes.cast(lib.qwen3LoadProgress, ProgressCallback)
        options.progress_user_data = ctypes.addressof(self.state)

    def cancel(self) -> None:
        """Make the library stop after the layer it is at."""
        self.state.cancel = 1

    def draw(self) -> None:
        """Draw the bar as it is now."""
        self._bar.draw(self.state.done, self.state.total)

    def finish(self) -> None:
        """Clear the bar."""
        self._bar.finish()


def run_beside(
    create: Callable[[], None], progress: LoadProgress, meanwhile: Callable[[], object] | None
) -> None:
    """Run ``create`` on a thread of its own, and ``meanwhile`` and then the bar on this one.

    When this returns or raises, ``create`` has ended. An exception here, such as Ctrl-C or one of
    ``meanwhile``, cancels the loading and is raised, whatever ``create`` came to.

    Raises:
        BaseException: What ``meanwhile`` raised, or else what ``create`` raised.
    """
    failure: list[BaseException] = []

    def run() -> None:
        try:
            create()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="create-model")
    try:
        thread.start()
        if meanwhile is not None:
            meanwhile()
        while thread.is_alive():
            thread.join(_DRAW_SECONDS)
            progress.draw()
    except BaseException:
        progress.cancel()
        while thread.is_alive():
            # The library stops within a layer, and reads this checkpoint until then.
            with suppress(KeyboardInterrupt):
                thread.join()
        raise
    if failure:
        raise failure.pop()  # not kept here: its traceback leads back to this list

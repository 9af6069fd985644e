"""Keeps packed weights on disk, so that the second start of a model in codes or bf12 is fast.

One file per checkpoint folder, format and number of devices, in
``$XDG_CACHE_HOME/infinicore_infer`` or ``~/.cache/infinicore_infer``. The library writes and
verifies the files (``qwen3SaveWeights``); here is where they lie, what they are called, when they
are written and when they go.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from pathlib import Path

from libinfinicore_infer import DataType, Qwen3Error, Qwen3ModelOptions, WeightCache

from infinicore_infer.checkpoint.checkpoint import Checkpoint
from infinicore_infer.checkpoint.coded import CodedMatrix
from infinicore_infer.checkpoint.gguf_blocks import GgufMatrix
from infinicore_infer.native.cache_files import check_space, distrust, entries, evict
from infinicore_infer.native.model import NativeModel

_LOG = logging.getLogger("infinicore_infer.cache")

SUFFIX = ".q3pack"

# Most bytes of all files together; the ones unused for longest go first.
LIMIT_BYTES = 64 << 30
# Writing begins a little after loading, so that it does not delay the first answer.
_DELAY_SECONDS = 1.0


def default_directory() -> Path:
    """Return where cache files lie: below XDG_CACHE_HOME, or else below ``~/.cache``.

    Raises:
        OSError: There is no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification wants relative paths ignored.
    if os.path.isabs(base):
        return Path(base) / "infinicore_infer"
    try:
        return Path("~/.cache").expanduser() / "infinicore_infer"
    except RuntimeError:
        raise OSError(
            "this user has no home folder, so there is no cache folder: set XDG_CACHE_HOME, or "
            "name one with --cache-dir (cache_dir)"
        ) from None


def clear(directory: Path | None = None) -> int:
    """Delete all cache files and return their size in bytes."""
    freed = 0
    for path in entries(default_directory() if directory is None else directory, SUFFIX):
        size = path.stat().st_size
        path.unlink(missing_ok=True)
        freed += size
    return freed


def is_worth_keeping(checkpoint: Checkpoint, dtype: DataType) -> bool:
    """Return whether packed weights load faster from a cache than they are packed.

    That is so for formats made while packing, and for codes of a checkpoint that are kept. Others,
    FP8 among them, are packed at the speed of memory, or become float32.
    """
    if dtype != DataType.DEFAULT:
        return dtype.packed
    return any(
        isinstance(weight, GgufMatrix)
        or (isinstance(weight, CodedMatrix) and weight.dtype != "FP8")
        for weight in checkpoint.values()
    )


def open_cache(
    checkpoint: Checkpoint,
    dtype: DataType,
    directory: Path | None = None,
    ndev: int = 1,
    *,
    headless: bool = False,
    required: bool = False,
) -> CheckpointCache | None:
    """Return the cache of a checkpoint, or ``None`` with a warning if there is no folder for it.

    Raises:
        OSError: There is none, and the cache is required.
    """
    try:
        return CheckpointCache(
            checkpoint, dtype, directory, ndev, headless=headless, required=required
        )
    except OSError as error:
        if required:
            raise
        _LOG.warning("packed weights are not kept on disk: %s", error)
        return None


class CheckpointCache:
    """The cache file of one checkpoint in one format for so many devices, around one load of it.

    Attributes:
        path: The file.
        key: The checkpoint's identity: paths, sizes, modification times and headers of its files.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: DataType,
        directory: Path | None = None,
        ndev: int = 1,
        *,
        headless: bool = False,
        required: bool = False,
    ) -> None:
        """Name the file; nothing is read or written yet.

        Args:
            checkpoint: Whose weights it keeps.
            dtype: The format they are packed in.
            directory: Where it lies; ``None``: the default folder.
            ndev: Number of devices.
            headless: Whether the head is left out.
            required: Whether the model cannot do without the file, which the library then writes
                itself, because its experts are read from there.

        Raises:
            OSError: No folder is given, and there is no default one.
        """
        self._directory = default_directory() if directory is None else directory
        folder = checkpoint.folder.resolve()
        self.key = json.dumps(checkpoint.identity())
        # The folder's own name only helps a person who looks at the directory.
        name = re.sub(r"[^\w.-]", "_", folder.name, flags=re.ASCII)[:64]
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        # Parts for other numbers of devices, or without the head, are other bytes: changing back
        # and forth packs nothing.
        form = dtype.name.lower() + (f"-ndev{ndev}" if ndev > 1 else "")
        form += "-headless" if headless else ""
        self.path = self._directory / f"{name}-{form}-{digest}{SUFFIX}"
        self._required = required
        self._closing = threading.Event()
        self._writer: threading.Thread | None = None

    def prepare(self, options: Qwen3ModelOptions) -> None:
        """Tell the library where to look, unless others may have written what is there.

        Raises:
            OSError: They may, or there is no folder, and the file is required.
        """
        if self._required:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            doubt = distrust(self._directory)
            if doubt is None:
                doubt = distrust(self.path)
        except OSError:
            doubt = None  # the library will not find it either, and say so
        if doubt is not None and self._required:
            raise OSError(f"experts cannot stay on disk: {doubt}")
        if doubt is not None:
            _LOG.warning("packed weights are not kept on disk: %s", doubt)
            return
        options.cache_path = os.fsencode(self.path)
        options.cache_key = self.key.encode()

    def after_load(self, model: NativeModel) -> None:
        """Note that the file was used, or begin to write it on another thread."""
        state = WeightCache(model.stats()["weight_cache"])
        if state == WeightCache.UNUSED:
            return
        if state == WeightCache.LOADED:
            try:
                os.utime(self.path)
            except OSError:
                pass  # a read-only cache is still a cache
            if self._required:  # and perhaps has just been written
                evict(self._directory, SUFFIX, self.path, LIMIT_BYTES)
            return
        if state == WeightCache.UNREADABLE:
            # It may be good, and the next time readable.
            _LOG.warning("%s: cannot be read; the weights were packed anew", self.path)
            return
        if state == WeightCache.CORRUPT:
            _LOG.warning("%s: damaged; the weights were packed anew", self.path)
        self._writer = threading.Thread(
            target=self._write, args=(model,), name="weight-cache", daemon=False
        )
        self._writer.start()

    def _write(self, model: NativeModel) -> None:
        self._closing.wait(_DELAY_SECONDS)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (doubt := distrust(self._directory)) is not None:
                raise OSError(doubt)
            check_space(self._directory, model.stats()["weight_bytes"])
            model.save_weights(self.path, self.key)
            evict(self._directory, SUFFIX, self.path, LIMIT_BYTES)
        except (OSError, Qwen3Error) as error:
            # Loading works without; it is only slower.
            _LOG.warning("%s: not written: %s", self.path, error)
        except ValueError:
            pass  # the model was closed directly

    def finish(self) -> None:
        """Wait until the file is written; call before the model goes. Safe to call twice."""
        self._closing.set()
        writer, self._writer = self._writer, None
        if writer is not None and writer is not threading.current_thread():
            writer.join()

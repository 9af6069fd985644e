"""A folder of stored responses: a file each, written at once or not at all."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from infinicore_infer.native.cache_files import distrust
from infinicore_infer.server.json_values import from_json, to_json

_LOG = logging.getLogger("infinicore_infer.server")
SUFFIX = ".q3response"
_NAME = re.compile(r"resp_[0-9a-f]{32}")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class ResponseFile:
    """What a file holds.

    Attributes:
        id: The response's.
        created: When it was stored, in seconds since the epoch.
        parent: The id of the response that it follows.
        inputs: The items that the client sent, as JSON.
        outputs: Those of the answer, as JSON.
        response: The response, as JSON; ``None``: it was deleted, but others follow it.
    """

    id: str
    created: float
    parent: str | None
    inputs: str
    outputs: str
    response: str | None

    def data(self) -> bytes:
        """Return what is written: a checksum, and JSON."""
        body = to_json(
            {
                "version": _VERSION,
                "id": self.id,
                "created": self.created,
                "parent": self.parent,
                "inputs": self.inputs,
                "outputs": self.outputs,
                "response": self.response,
            }
        ).encode()
        return hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    @classmethod
    def parse(cls, data: bytes, identity: str) -> ResponseFile:
        """Read what was written.

        Raises:
            ValueError: It is damaged, or of another version.
        """
        digest, _, body = data.partition(b"\n")
        if digest.decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
            raise ValueError("its checksum is wrong")
        value = from_json(body)
        if not isinstance(value, dict) or value.get("version") != _VERSION:
            raise ValueError("it is of another version")
        if value.get("id") != identity:
            raise ValueError("it is another response's")
        created, parent = value.get("created"), value.get("parent")
        texts = [value.get(name) for name in ("inputs", "outputs")]
        response = value.get("response")
        if (
            not isinstance(created, int | float)
            or not isinstance(parent, str | None)
            or not isinstance(response, str | None)
        ):
            raise ValueError("a field has the wrong type")
        inputs, outputs = (text for text in texts if isinstance(text, str))
        return cls(identity, float(created), parent, inputs, outputs, response)


def open_folder(directory: Path) -> ResponseFolder | None:
    """Return a folder, which is made, or ``None`` with a warning if others may write to it.

    Raises:
        OSError: It cannot be made or written to.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(f"{directory}: cannot be read and written")
    if (doubt := distrust(directory)) is None:
        return ResponseFolder(directory)
    _LOG.warning("responses are not kept on disk: %s", doubt)
    return None


class ResponseFolder:
    """The files; written on a thread of their own, one after the other."""

    def __init__(self, directory: Path) -> None:
        """Use a folder that is there."""
        self._directory = directory
        self._writer = ThreadPoolExecutor(1, "responses")

    def read(self) -> Iterator[ResponseFile]:
        """Yield what is there; what is damaged is named in the log, and stays."""
        for path in self._directory.glob("resp_*.tmp"):
            # Of a process that died while it wrote.
            path.unlink(missing_ok=True)
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            identity = path.name.removesuffix(SUFFIX)
            try:
                if not _NAME.fullmatch(identity):
                    raise ValueError("it has another name than a response's")
                yield ResponseFile.parse(path.read_bytes(), identity)
            except (OSError, ValueError, RecursionError) as error:
                self.skip(identity, str(error))

    def skip(self, identity: str, problem: str) -> None:
        """Say in the log that a file is not used."""
        _LOG.warning("%s: not used: %s", self._path(identity), problem)

    def write(self, file: ResponseFile) -> None:
        """Write a file soon."""
        self._writer.submit(self._write, file)

    def remove(self, identity: str) -> None:
        """Remove a file soon, if it is there."""
        self._writer.submit(self._remove, identity)

    def close(self) -> None:
        """Wait until everything is written."""
        self._writer.shutdown()

    def _path(self, identity: str) -> Path:
        return self._directory / f"{identity}{SUFFIX}"

    def _write(self, file: ResponseFile) -> None:
        path = self._path(file.id)
        temporary = path.with_suffix(".tmp")
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(handle, "wb") as stream:
                stream.write(file.data())
                stream.flush()
                os.fsync(handle)
            os.replace(temporary, path)
        except OSError as error:
            _LOG.warning("%s: not written: %s", path, error)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _remove(self, identity: str) -> None:
        try:
            self._path(identity).unlink(missing_ok=True)
        except OSError as error:
            _LOG.warning("%s: %s", self._path(identity), error)

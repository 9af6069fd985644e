"""Reads mapped files without the danger of SIGBUS, as the library does (src/runtime/readable.h)."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

# Most bytes that are copied at a time.
PIECE_BYTES = 1 << 20


class _IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


_LIBC = ctypes.CDLL(None, use_errno=True)
_FORBIDDEN = (errno.EPERM, errno.ENOSYS, errno.EACCES)


def guarded_copy(array: NDArray[Any], begin: int, file: Path) -> bytes:
    """Return up to ``PIECE_BYTES`` bytes of an array's memory, which maps a file.

    The kernel copies, and returns an error where touching a file that was cut short would end the
    process. Sandboxes may forbid that; then it is touched.

    Args:
        array: Contiguous.
        begin: The first byte.
        file: For messages.

    Raises:
        OSError: Not all of it can be read.
    """
    size = min(PIECE_BYTES, array.nbytes - begin)
    buffer = ctypes.create_string_buffer(size)
    address = array.ctypes.data + begin
    done = 0
    while done < size:
        local = _IoVec(ctypes.addressof(buffer) + done, size - done)
        remote = _IoVec(address + done, size - done)
        copied = _LIBC.process_vm_readv(
            os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, ctypes.c_ulong(0)
        )
        if copied > 0:
            done += copied
        elif copied < 0 and ctypes.get_errno() in _FORBIDDEN:
            ctypes.memmove(buffer, address, size)
            break
        elif copied == 0 or ctypes.get_errno() != errno.EINTR:
            problem = "cannot be read: it was cut short, or the disk fails"
            raise OSError(errno.EIO, problem, str(file))
    return buffer.raw

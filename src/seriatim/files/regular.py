"""Opening files that strangers made: regular files only, never blocking, always a `FileError`."""

import errno
import mmap
import os
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, BinaryIO

from seriatim.errors import FileError, ResourceError

if TYPE_CHECKING:
    import numpy as np

_REASONS = {
    errno.ENOENT: "does not exist",
    errno.ELOOP: "is a loop of symbolic links",
    errno.EACCES: "may not be read",
    errno.ENOTDIR: "lies below something that is not a folder",
    errno.ENAMETOOLONG: "has too long a name",
}


def refuse(path: Path | str, why: str, *, expected: str = "", fix: str = "") -> FileError:
    """The error for one file: its name, then what is wrong with it."""
    return FileError(f"{path} {why}", expected=expected, fix=fix)


def listed(names: Collection[str], most: int = 4) -> str:
    """The first few names on one printable line, and how many there are.

    Example:
        >>> listed(["a", "b", "c"], 2)
        'a, b, ... (3 in all)'
    """
    short = [name if len(name) <= 200 else f"{name[:200]}..." for name in islice(names, most)]
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in short)
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def open_regular(path: Path) -> BinaryIO:
    """Open for reading what must be a regular file; a pipe, a device or a folder is refused.

    Raises:
        FileError: it is missing, unreadable or not a regular file.
    """
    try:  # O_NONBLOCK: opening a pipe that nobody writes to returns instead of waiting
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise refuse(path, _reason(error)) from None
    mode = os.fstat(handle).st_mode
    if not S_ISREG(mode):
        os.close(handle)
        kind = "a folder" if S_ISDIR(mode) else "not a regular file"
        raise refuse(path, f"is {kind}", expected="a file")
    return os.fdopen(handle, "rb")


def is_file(path: Path) -> bool:
    """Whether something that is not a folder has this name; broken and looping links count."""
    return os.path.lexists(path) and not path.is_dir()


def mapped(file: BinaryIO, path: Path) -> "np.ndarray":
    """The whole of an open file, not empty, as one read-only memory map: uint8 [bytes]."""
    import numpy as np

    try:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:  # an address space limit, or a file system without maps
        raise ResourceError(f"{path} cannot be mapped ({error})") from None
    return np.frombuffer(pages, np.uint8)


def forget(array: "np.ndarray") -> None:
    """Let the mapped pages that hold an array leave memory; a later use reads them again."""
    import numpy as np

    whole = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    pages = whole.base.obj if isinstance(whole.base, memoryview) else whole.base
    if isinstance(pages, mmap.mmap) and array.flags.c_contiguous:
        start = array.ctypes.data - np.frombuffer(pages, np.uint8).ctypes.data
        first = start - start % mmap.PAGESIZE
        pages.madvise(mmap.MADV_DONTNEED, first, start + array.nbytes - first)


def _reason(error: OSError | ValueError) -> str:
    known = _REASONS.get(error.errno or 0) if isinstance(error, OSError) else None
    return known or f"cannot be opened ({error})"

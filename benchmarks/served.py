"""A server in a process of its own, and the plainest of clients. Used by `serving.py`."""

import json
import resource
import signal
import socket
import struct
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import hostile
import servers

HOST = "127.0.0.1"
PATIENCE = 600.0  # seconds that an answer may take, on a machine that others use
MB = 1 << 20


class Serving:
    """`seriatim serve` in a process of its own, within a context; its log goes to a file."""

    def __init__(self, *words: str, log: Path | None = None) -> None:
        with open(log or "/dev/null", "w", encoding="utf-8") as file:
            self._process = servers.command(*words, stderr=file)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().split()[-1]
        self.port = int(self.url.rpartition(":")[2])

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        print(f"drained: exit code {self._process.wait(PATIENCE)}")

    @property
    def rss(self) -> float:
        """MB that it holds."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / MB

    def metric(self, name: str) -> float:
        """One of `/metrics`, added up."""
        lines = httpx.get(f"{self.url}/metrics", timeout=PATIENCE).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def posted(**body: Any) -> bytes:
    """A request to `/v1/completions` whose connection ends with its answer."""
    data = json.dumps({"model": "tales", "ignore_end": True} | body).encode()
    return hostile.POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)


def connected(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), PATIENCE)


def first_id(port: int) -> float:
    """Seconds from a request, on a new connection, to its first id."""
    began = perf_counter()
    with connected(port) as connection:
        connection.sendall(posted(prompt="Once", max_tokens=4, seed=1, stream=True))
        said = b""
        while b"data: " not in said:
            said += connection.recv(4096)
        took = perf_counter() - began
        while connection.recv(4096):
            pass
    return took


def reset(connection: socket.socket) -> None:
    """End it without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def percentile(values: list[float], share: int) -> float:
    return sorted(values)[share * len(values) // 100]

"""Clients of a server, in a process of their own: streams that begin together. A job is JSON:

    python streams.py '{"port": 8000, "prompts": [[1, 2], ...], "tokens": 128}'

They ask `/completion`, which seriatim's server and llama.cpp's both have. The answer is JSON: the
seconds from the first request to the last answer's end, the seconds to each stream's first id, and
those between arrivals, of all streams.
"""

import asyncio
import json
import re
import sys
from itertools import pairwise
from time import perf_counter
from typing import Any

HEAD = (
    b"POST /completion HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%s"
)
HOW = {"temperature": 0, "ignore_end": True, "ignore_eos": True, "stream": True}


class Client(asyncio.Protocol):
    """One stream: when something of it came, and how it ended."""

    def __init__(self) -> None:
        self.times, self._last = list[float](), b""
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, prompt: list[int], tokens: int) -> None:
        """Send the request."""
        body = json.dumps(HOW | {"prompt": prompt, "n_predict": tokens}).encode()
        self.transport.write(HEAD % (len(body), body))

    def data_received(self, data: bytes) -> None:
        if b"data: " in data:
            self.times.append(perf_counter())
        self._last = (self._last + data)[-8192:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(perf_counter())

    @property
    def tokens(self) -> int:
        """How many the server says there were."""
        return int(re.findall(rb'"tokens_predicted": ?(\d+)', self._last)[-1])


async def run(job: dict[str, Any]) -> dict[str, Any]:
    """All streams at once."""
    loop, clients = asyncio.get_running_loop(), []
    for _ in job["prompts"]:
        clients.append((await loop.create_connection(Client, "127.0.0.1", job["port"]))[1])
    began = perf_counter()
    for client, prompt in zip(clients, job["prompts"], strict=True):
        client.ask(prompt, job["tokens"])
    ended = await asyncio.gather(*(client.ended for client in clients))
    if wrong := {client.tokens for client in clients} - {job["tokens"]}:
        raise SystemExit(f"a stream had {wrong} ids; expected {job['tokens']}")
    return {
        "seconds": max(ended) - began,
        "first": [client.times[0] - began for client in clients],
        "between": [b - a for client in clients for a, b in pairwise(client.times)],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.loads(sys.argv[1])))))

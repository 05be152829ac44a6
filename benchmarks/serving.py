"""The server under load, and among people who mean ill: each verb prints its figures.

    python benchmarks/serving.py load [--llama LLAMA-SERVER [--llama-python PY]]
    python benchmarks/serving.py vanish | burst | idle | hostile --minutes 10 | schemas

Only over the loopback. `load` takes an int4 model of 135M random weights (`shapes.py`) and makes
words up for it, as llama.cpp's form of it has them: in each round the engine alone, then the server
in the same process, then llama.cpp's, both asked by the same clients in a process of their own. The
other verbs serve a model in a process of its own. What a hostile request is, `tests/hostile.py`
says.
"""

import argparse
import asyncio
import json
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

from served import HOST, Serving, connected, first_id, percentile, posted, reset
from serving_ill import ill, schemas
from serving_load import load

import seriatim
from seriatim.kernels.native import available_cpus


def vanish(args: argparse.Namespace) -> None:
    """Clients in the middle of a stream, gone: how long their cache is held."""
    with Serving("tales", log=args.log) as server:
        connections = [connected(server.port) for _ in range(args.count)]
        for number, connection in enumerate(connections):
            connection.sendall(posted(prompt=f"Once {number}", seed=number, stream=True))
        for connection in connections:
            connection.recv(4096)
        held = server.metric("seriatim_cache_blocks_used{")
        for connection in connections:
            reset(connection)
        began = perf_counter()
        while left := server.metric("seriatim_cache_blocks_used{"):
            print(f"  after {perf_counter() - began:.3f} s: {left:.0f} blocks")
            sleep(0.02)
        print(
            f"{args.count} clients held {held:.0f} blocks; 0 after {perf_counter() - began:.3f} s"
        )
        print(f"the next request: first id after {1000 * first_id(server.port):.1f} ms")


def burst(args: argparse.Namespace) -> None:
    """Far more requests at once than the queue holds."""
    with Serving("tales", "--max-queue", str(args.queue), log=args.log) as server:
        began = perf_counter()
        answers = asyncio.run(_burst(server.port, args.count, args.tokens))
        took = perf_counter() - began
    statuses = Counter(status for status, _ in answers)
    late = [said for status, said in answers if status == 429]
    model = seriatim.load("tales", threads=1)
    how: dict[str, Any] = {"max_tokens": args.tokens, "ignore_end": True}
    wrong = [
        seed
        for seed, (status, said) in enumerate(answers)
        if status == 200 and _ids(said) != model.generate(f"Once {seed}", seed=seed, **how).ids
    ]
    print(f"{args.count} at once on a queue of {args.queue}, in {took:.1f} s: {dict(statuses)}")
    print(f"429 without retry-after: {sum(b'retry-after: ' not in said for said in late)}")
    print(f"resets: {statuses[0]}; answers that are not what they are alone: {len(wrong)}")


async def _burst(port: int, count: int, tokens: int) -> list[tuple[int, bytes]]:
    async def one(seed: int) -> tuple[int, bytes]:
        try:
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(posted(prompt=f"Once {seed}", seed=seed, max_tokens=tokens))
            said = await reader.read()
            writer.close()
            return int(said.split()[1]), said
        except (OSError, IndexError):
            return 0, b""

    return await asyncio.gather(*map(one, range(count)))


def _ids(said: bytes) -> list[int]:
    return json.loads(said.partition(b"\r\n\r\n")[2])["choices"][0]["token_ids"]


def idle(args: argparse.Namespace) -> None:
    """Connections that asked once and then say nothing: what they cost others."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = min(args.count, hard - 256)
    with Serving("tales", log=args.log) as server, ExitStack() as held:
        first_id(server.port)
        before, rss = [first_id(server.port) for _ in range(args.probes)], server.rss
        began = perf_counter()
        quiet = [held.enter_context(_quiet(server.port)) for _ in range(count)]
        took = perf_counter() - began
        during = [first_id(server.port) for _ in range(args.probes)]
        open = sum(map(_is_open, quiet))
        print(f"{count} idle connections (of {args.count}; limit {hard}), made in {took:.1f} s; "
              f"{open} open at the end; {server.rss - rss:.0f} MB more")  # fmt: skip
        for name, times in (("before", before), ("during", during)):
            print(f"first id {name}: median {1000 * median(times):.2f} ms, "
                  f"90% {1000 * percentile(times, 90):.2f} ms")  # fmt: skip
        print(f"during / before: {median(during) / median(before):.3f}")


@contextmanager
def _quiet(port: int) -> Iterator[socket.socket]:
    with connected(port) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        connection.recv(4096)
        yield connection


def _is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(required=True)

    def verb(name: str, run: Callable[[argparse.Namespace], None], **numbers: float) -> Any:
        made = verbs.add_parser(name, help=run.__doc__)
        made.set_defaults(run=run)
        made.add_argument("--log", type=Path, help="where the server's own log goes")
        for option, value in numbers.items():
            made.add_argument(f"--{option}", type=type(value), default=value)
        return made

    made = verb("load", load, streams=32, prompt=64, tokens=128, rounds=5, threads=available_cpus())
    made.add_argument("--llama", default="", metavar="PATH", help="llama-server")
    made.add_argument("--llama-python", default="", metavar="PY", help="makes its model's file")
    made.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "seriatim-bench")
    verb("vanish", vanish, count=200)
    verb("burst", burst, count=1000, queue=64, tokens=32)
    verb("idle", idle, count=10_000, probes=50)
    verb("hostile", ill, minutes=10.0)
    verb("schemas", schemas, count=10_000)
    return parser.parse_args()


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    args = parse()
    args.run(args)


if __name__ == "__main__":
    main()

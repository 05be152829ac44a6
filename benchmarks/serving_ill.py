"""What hostile requests do to others, and what is kept of them. Verbs of `serving.py`."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

import canaries
import httpx
import tiny
from served import PATIENCE, Serving, hostile, servers
from shapes import WORKERS


@contextmanager
def small(log: Path | None) -> Iterator[Serving]:
    """The tiny models of the tests, as `hostile.py` knows them."""
    with TemporaryDirectory() as place:
        folder, template = Path(place), Path(place) / "chat.jinja"
        template.write_text(servers.TEMPLATE)
        tiny.write(folder / "tiny")
        servers.write_code(folder / "code")
        words = [str(folder / "tiny"), "-m", str(folder / "code"), "--template", str(template)]
        with Serving(*words, log=log) as server:
            yield server


def ill(args: argparse.Namespace) -> None:
    """Hostile requests of all kinds beside four streams whose words must not change."""
    with small(args.log) as server, health(server.port) as found:
        until = monotonic() + 60 * args.minutes
        with canaries.Canaries(server.url) as singing, ThreadPoolExecutor(4) as pool:
            kinds = (rows, wires, bodies)
            tasks = [pool.submit(kind, server, until) for kind in kinds]
            print("MB: ", *(f"{size:.1f}" for size in sizes(server, until)), flush=True)
            for kind, task in zip(kinds, tasks, strict=True):
                count, faults = task.result()
                print(f"{kind.__name__}: {count} requests, {len(faults)} faults")
                print(*dict.fromkeys(faults), sep="\n", end="\n" * bool(faults))
        blocks = server.metric("seriatim_cache_blocks_used{")
        print(f"canaries: rounds {singing.rounds}, changed {len(singing.changed)}")
        print(*singing.changed[:5], sep="\n", end="\n" * bool(singing.changed))
        print(f"blocks in use at the end: {blocks:.0f}")
    print(f"/health: {found}")


def sizes(server: Serving, until: float, parts: int = 10) -> Iterator[float]:
    """What it holds, at times from now to the end; the first tenth warms it up."""
    pause = (until - monotonic()) / parts
    for _ in range(parts):
        yield server.rss
        sleep(max(0.0, min(pause, until - monotonic())))
    yield server.rss


@contextmanager
def health(port: int) -> Iterator[dict[str, Any]]:
    """How it answered to who asked for its health all the while."""
    words = [sys.executable, str(WORKERS / "health.py"), str(port)]
    pipe, found = subprocess.PIPE, dict[str, Any]()
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe)
    try:
        yield found
    finally:
        said, _ = process.communicate(b"\n", PATIENCE)
        found |= json.loads(said)


def rows(server: Serving, until: float) -> tuple[int, list[str]]:
    """The table, again and again."""

    def ask(client: httpx.Client, row: hostile.Row) -> str:
        response = client.post(row.path, content=row.content)
        return row.fault(response.status_code, response.content)

    return _again(server, until, lambda: list(hostile.rows()), ask)


def wires(server: Serving, until: float) -> tuple[int, list[str]]:
    """What is no request, or hardly one."""

    def ask(client: httpx.Client, about: str) -> str:
        data, statuses = hostile.WIRE[about]
        seen = hostile.exchanged(server.port, data)
        return "" if seen == statuses else f"{about}: {seen}, expected {statuses}"

    return _again(server, until, lambda: list(hostile.WIRE), ask)


def bodies(server: Serving, until: float) -> tuple[int, list[str]]:
    """Bodies that nobody thought of; none may be the server's fault."""
    draw = Random(0)

    def ask(client: httpx.Client, path: str) -> str:
        data = json.dumps(hostile.body(draw, path))
        response = client.post(path, content=data)
        words = ("server_error", "api_error", "Traceback")
        wrong = response.status_code >= 500 or any(word in response.text for word in words)
        return f"{path}: {response.status_code} {response.text[:200]} {data[:300]}" if wrong else ""

    return _again(server, until, lambda: list(hostile.LEAST), ask)


def _again(
    server: Serving,
    until: float,
    make: Callable[[], list[Any]],
    ask: Callable[[httpx.Client, Any], str],
) -> tuple[int, list[str]]:
    """How often was asked until then, and what was wrong."""
    count, faults = 0, list[str]()
    with httpx.Client(base_url=server.url, timeout=PATIENCE, headers=hostile.JSON) as client:
        while monotonic() < until:
            for item in make():
                try:
                    faults.append(ask(client, item))
                except Exception as error:
                    faults.append(f"{str(item)[:80]}: {type(error).__name__}: {error}")
                count += 1
                if monotonic() > until:
                    break
    return count, [fault for fault in faults if fault]


def schemas(args: argparse.Namespace) -> None:
    """As many schemas, no two of them equal: what is held of them."""
    with small(args.log) as server, httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        print(f"MB: {server.rss:.1f}", end="", flush=True)
        for n in range(1, args.count + 1):
            schema = {"type": "object", "properties": {f"p{n}": {"enum": [n, str(n)]}}}
            body = {"model": "tiny", "prompt": "a", "max_tokens": 3, "json_schema": schema}
            client.post(hostile.COMPLETIONS, json=body).raise_for_status()
            if n % max(1, args.count // 10) == 0:
                print(f" {server.rss:.1f}", end="", flush=True)
        print(f" after {args.count} schemas")

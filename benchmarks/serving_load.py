"""Tokens/s of many streams: the engine alone, the server, llama.cpp's. A verb of `serving.py`."""

import argparse
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from statistics import mean, median
from time import perf_counter, sleep
from typing import Any

import httpx
from served import HOST, percentile, servers
from shapes import SHAPES, WORKERS, Files

import seriatim


def load(args: argparse.Namespace) -> None:
    """Tokens/s of so many streams: the engine alone, the server, llama.cpp's server."""
    files = Files(args.cache, SHAPES["135M"], {"llama.cpp": args.llama_python})
    room = args.prompt + args.tokens + 64
    model = seriatim.load(worded(files), threads=args.threads, context=room)
    rows: dict[str, list[dict[str, Any]]] = {"engine alone": [], "server": []}
    with ExitStack() as open:
        ports = {}
        if args.llama:
            path = files.path("q4_0.gguf")
            ports["llama-server"] = open.enter_context(llama_server(args, path, room))
        prompts = drawn(model, args)
        alone(model, next(prompts), args.tokens)  # pages, caches
        for _ in range(args.rounds):
            rows["engine alone"].append(alone(model, next(prompts), args.tokens))
            rows["server"].append(served(model, next(prompts), args.tokens))
            for name, port in ports.items():
                rows.setdefault(name, []).append(streamed(port, next(prompts), args.tokens))
    show_load(rows, args)


def worded(files: Files) -> Path:
    """The int4 form with a vocabulary of made-up words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from seriatim.codecs.text import TextCodec

    folder = files.path("int4")
    place = folder.with_name("int4-words")
    if not place.exists():
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = [*letters, *(f"w{n}" for n in range(len(letters), files.shape[-1]))]
        made = Tokenizer(models.BPE({word: id for id, word in enumerate(words)}, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        partial = shutil.copytree(folder, place.with_name("partial-words"), dirs_exist_ok=True)
        TextCodec(made).save(partial)
        partial.rename(place)
    return place


def drawn(model: seriatim.Model, args: argparse.Namespace) -> Iterator[list[list[int]]]:
    """Prompts of random ids that nobody has seen."""
    draw = Random(0)
    while True:
        yield [
            [draw.randrange(model.vocab_size) for _ in range(args.prompt)]
            for _ in range(args.streams)
        ]


def alone(model: seriatim.Model, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    """The engine, and nothing else: what a step takes once all prompts are read, and the whole."""
    engine = seriatim.Engine(model)
    how: dict[str, Any] = {"max_tokens": tokens, "temperature": 0, "ignore_end": True}
    requests, times = [engine.add(ids, **how) for ids in prompts], []
    began = perf_counter()
    while not all(request.done for request in requests):
        reading = not all(request.generated for request in requests)
        step = perf_counter()
        engine.step()
        times += [] if reading else [perf_counter() - step]
    return {"seconds": perf_counter() - began, "step": mean(times)}


def served(model: seriatim.Model, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    """The same model behind HTTP in this process; its clients are in another."""
    shared = servers.Shared(models=servers.Models())
    shared.models.add(servers.Served("words", model, shared.limits))
    shared.models.loading = False
    shared.log.close()  # its lines would be among the figures
    with servers.running(shared) as (url, _):
        return streamed(int(url.rpartition(":")[2]), prompts, tokens)


def streamed(port: int, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    """What the clients of a server see."""
    job = json.dumps({"port": port, "prompts": prompts, "tokens": tokens})
    words = [sys.executable, str(WORKERS / "streams.py"), job]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)


@contextmanager
def llama_server(args: argparse.Namespace, path: Path, room: int) -> Iterator[int]:
    """llama.cpp's server with a slot for each stream."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    words = {"-m": path, "--host": HOST, "--port": port, "-np": args.streams,
             "-c": args.streams * room, "-t": args.threads}  # fmt: skip
    flat = [str(word) for pair in words.items() for word in pair]
    silent = subprocess.DEVNULL
    process = subprocess.Popen([args.llama, *flat], stdout=silent, stderr=silent)
    try:
        while not answers(port):
            assert process.poll() is None, "llama-server ended"
            sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://{HOST}:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


def show_load(rows: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
    count = args.streams * args.tokens
    rates = {name: [count / row["seconds"] for row in some] for name, some in rows.items()}
    print(f"{args.streams} streams of {args.prompt} + {args.tokens} ids, {args.threads} threads")
    for name, some in rates.items():
        print(f"{name:14}{median(some):8.1f} tokens/s ({min(some):.1f}-{max(some):.1f})")
    for name in [name for name in rates if name != "server"]:
        ratio = median(rates["server"]) / median(rates[name])
        print(f"server / {name}: {ratio:.3f}")
    step = median(row["step"] for row in rows["engine alone"])
    for name in [name for name in rows if name != "engine alone"]:
        worst = median(percentile(row["between"], 99) for row in rows[name])
        first = median(median(row["first"]) for row in rows[name])
        print(
            f"{name}: p99 between ids {1000 * worst:.2f} ms, {worst / step:.2f} of the engine's "
            f"mean step of {1000 * step:.2f} ms; first id {1000 * first:.0f} ms"
        )

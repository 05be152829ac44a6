"""A server in this process: `ask` goes without a socket, `running` gives a real port.

A plain module for tests.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import httpx
import tiny
from tokenizers import AddedToken, Tokenizer

import seriatim
from seriatim import codecs
from seriatim.codecs import text
from seriatim.codecs.chat import Templates
from seriatim.serve import mock
from seriatim.serve.app import make
from seriatim.serve.limits import Limits
from seriatim.serve.served import Models, Served
from seriatim.serve.server import Server, bind, url
from seriatim.serve.shared import Shared

WAIT = 60  # seconds until a test gives up; none waits that long
BASE = "http://127.0.0.1"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
THINKS = (  # reasons between markers that it names, and calls in the form of Hermes
    "{# tools <tool_call> <think> </think> #}"
    "{% for m in messages %}{{ m.role }}: {{ m.content or '' }}<|end|>{% endfor %}assistant: "
)
STAR = ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")


def load() -> seriatim.Model:
    """The tiny model, of its own: bytes, a context of 256, random weights."""
    with TemporaryDirectory() as folder:
        return seriatim.load(tiny.write(Path(folder)), threads=1)


def code() -> seriatim.Model:
    """Random weights, and a tokenizer with StarCoder's marks: it fills gaps."""
    with TemporaryDirectory() as folder:
        return seriatim.load(write_code(Path(folder)), threads=1)


def write_code(folder: Path) -> Path:
    """The same as a folder."""
    made = Tokenizer.from_str(text.train(text.EXAMPLES, 300)._tokenizer.to_str())
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in STAR])
    codec = text.TextCodec(made)
    ids = dict(eos_token_id=codec.added[STAR[0]])
    path = tiny.write(folder, codec=False, ids=ids, vocab_size=codec.size)
    codec.save(path)
    return path


def of_codec(folder: Path, name: str) -> seriatim.Model:
    """A tiny model of random weights whose ids a codec has."""
    codec = codecs.made(name)
    assert codec is not None
    ids = dict(bos_token_id=codec.start[0], eos_token_id=codec.ends[0])
    tiny.write(folder, codec=False, ids=ids, vocab_size=codec.size)
    codec.save(folder)
    return seriatim.load(folder, threads=1)


def shared(model: seriatim.Model, *, any_model: bool = False, limits=None, **how: Any) -> Shared:
    """A server of the tiny model and the mocks."""
    made = Shared(models=Models(any_name=any_model), limits=limits or Limits(), **how)
    model.templates = Templates({"default": TEMPLATE}, model.codec, {})
    made.models.add(Served("tiny", model, made.limits))
    for name in ("mock:echo", "mock:script"):
        silent, script = mock.model(name)
        made.models.add(Served(name, silent, made.limits, script=script))
    made.models.loading = False
    return made


def thinking() -> Shared:
    """`shared` of the tiny model, where mock:echo reasons and calls."""
    made = shared(load())
    echo = made.models.get("mock:echo").model
    echo.templates = Templates({"default": THINKS}, echo.codec, {})
    return made


def ask(shared: Shared, path: str, body: Any = None, **how: Any) -> httpx.Response:
    """One request, answered."""
    return asked(shared, [(path, body)], **how)[0]


def asked(shared: Shared, requests: Sequence[tuple[str, Any]], **how: Any) -> list[httpx.Response]:
    """Several requests at once, answered."""

    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(make(shared), client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url=BASE, timeout=None) as client:
            return await asyncio.gather(*(_ask(client, *request, **how) for request in requests))

    return asyncio.run(main())


async def _ask(client: httpx.AsyncClient, path: str, body: Any, **how: Any) -> httpx.Response:
    if body is None and "content" not in how:
        return await client.request(how.pop("method", "GET"), path, **how)
    if body is not None:
        how = {"json": body, **how}
    return await client.post(path, **how)


def events(response: httpx.Response) -> list[Any]:
    """The objects of a stream, which must end as the protocol says."""
    assert response.status_code == 200, response.text
    frames = [frame for frame in response.text.split("\n\n") if frame != ": ping"]
    assert frames[-2:] == ["data: [DONE]", ""]
    assert all(frame.startswith("data: ") for frame in frames[:-1])
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


@contextmanager
def running(shared: Shared) -> Iterator[tuple[str, Server]]:
    """A server at a real port, in a thread; it is drained at the end."""
    listener = bind("127.0.0.1", 0)
    server = Server(make(shared), shared, lambda: None)
    thread = Thread(target=server.run, args=([listener],))
    address = url(listener)
    thread.start()
    try:
        until(lambda: server.started)
        yield address, server
    finally:
        server.should_exit = True
        thread.join(WAIT)
        assert not thread.is_alive()


def until(holds: Callable[[], bool]) -> None:
    """Wait for it."""
    end = monotonic() + WAIT
    while not holds():
        assert monotonic() < end
        sleep(0.002)


@contextmanager
def held(model: seriatim.Model) -> Iterator[Event]:
    """No step ends before the event."""
    step, go = model.runtime.step, Event()

    def waits(batch):
        assert go.wait(WAIT)
        return step(batch)

    model.runtime.step = waits
    try:
        yield go
    finally:
        go.set()
        model.runtime.step = step


@contextmanager
def slow(model: seriatim.Model, seconds: float = 0.005) -> Iterator[None]:
    """Each step takes so long at least."""
    step = model.runtime.step

    def waits(batch):
        sleep(seconds)
        return step(batch)

    model.runtime.step = waits
    try:
        yield
    finally:
        model.runtime.step = step


def command(*words: str, port: int = 0, **how: Any) -> subprocess.Popen[str]:
    """`seriatim serve`, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "seriatim", "serve", *words, "--port", str(port)],
        stdout=subprocess.PIPE, stderr=how.pop("stderr", subprocess.PIPE), text=True, **how,
    )  # fmt: skip


def quiet(shared: Shared, name: str = "tiny") -> bool:
    """Nothing is under way, and no cache block is in use."""
    engine = shared.models.get(name).engine
    engine.check()
    idle = not engine.busy and not shared.models.busy
    return idle and engine.pool.available == engine.pool.limit

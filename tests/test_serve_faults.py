"""What must not bring the server down: clients that vanish, bursts, ill will, an engine that dies.

Each by a real port. Requests that mean ill are a table, `hostile.py`.
"""

import asyncio
import json
import signal
import socket
import struct
from collections import Counter
from contextlib import ExitStack

import canaries
import hostile
import httpx
import pytest
import servers
import tiny
from hostile import COMPLETIONS, HI, POST
from hypothesis import given, settings
from hypothesis import strategies as st

import seriatim
from seriatim.engine.constrain import KEPT
from seriatim.errors import shown
from seriatim.serve.limits import Limits
from seriatim.serve.served import Served

CODE = "code"


def make(**how):
    """A server of the tiny model, the one of code, and the mocks."""
    made = servers.shared(servers.load(), hosts=frozenset({"127.0.0.1"}), **how)
    made.models.add(Served(CODE, servers.code(), made.limits))
    return made


@pytest.fixture(scope="module")
def shared():
    return make()


@pytest.fixture(scope="module")
def url(shared):
    with servers.running(shared) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(url):
    with httpx.Client(base_url=url, timeout=hostile.PATIENCE, headers=hostile.JSON) as made:
        yield made


@pytest.fixture(scope="module")
def model():
    """Never served."""
    return servers.load()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def told(**more):
    return {"model": "tiny", "max_tokens": 12, "seed": 5, "ignore_end": True, **more}


def counted(client, name: str) -> float:
    """A metric."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def ids_of(lines: list[str]) -> list[int]:
    """The ids of a stream that ended as it should."""
    said = [line.removeprefix("data: ") for line in lines if line]
    assert said[-1] == "[DONE]"
    return [id for part in said[:-1] for id in json.loads(part)["choices"][0]["token_ids"]]


# ---- clients that vanish ------------------------------------------------------------------------


def reset(connection: socket.socket) -> None:
    """End it without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_clients_that_vanish_leave_nothing(shared, url, client, model):
    data = json.dumps(told(prompt="a", max_tokens=None, stream=True)).encode()
    head = POST + b"Content-Length: %d\r\n\r\n" % len(data)
    before = counted(client, "seriatim_gone_total")
    with servers.slow(shared.models.get("tiny").model, 0.01):
        connections = [socket.create_connection(("127.0.0.1", port_of(url))) for _ in range(36)]
        for number, connection in enumerate(connections):
            connection.settimeout(servers.WAIT)
            connection.sendall(head + (data[:20] if number % 3 == 0 else data))
        readers = connections[2::3]
        for connection in readers:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        for connection in connections:
            reset(connection)
        servers.until(lambda: servers.quiet(shared))
    assert counted(client, "seriatim_gone_total") - before >= len(readers)
    after = client.post(COMPLETIONS, json=told(prompt="b")).json()["choices"][0]
    expected = model.generate("b", seed=5, max_tokens=12, ignore_end=True)
    assert after["token_ids"] == expected.ids


# ---- clients that say nothing -------------------------------------------------------------------


def test_a_body_that_does_not_arrive_is_not_waited_for():
    shared = servers.shared(servers.load(), limits=Limits(body_seconds=0.3))
    with servers.running(shared) as (url, _):
        data = POST + b"Content-Length: 10\r\n\r\n{"
        assert hostile.exchanged(port_of(url), data) == [408]
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_connection_that_asks_no_more_is_closed_after_a_while():
    shared = servers.shared(servers.load(), limits=Limits(idle_seconds=1))
    with servers.running(shared) as (url, _):
        assert hostile.exchanged(port_of(url), b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n") == [200]


def test_where_there_is_no_room_for_a_connection_an_idle_one_makes_it():
    shared = servers.shared(servers.load(), limits=Limits(connections=5))
    with servers.running(shared) as (url, server), ExitStack() as open:
        for _ in range(9):
            idle = socket.create_connection(("127.0.0.1", port_of(url)))
            open.enter_context(idle)
            idle.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        servers.until(lambda: len(server.server_state.connections) <= 5)
        assert httpx.get(f"{url}/health").status_code == 200


# ---- more than there is room for ----------------------------------------------------------------


async def burst(url: str, count: int, refused) -> list[tuple[int, bytes]]:
    """So many requests at once, each with a connection of its own: statuses, and all that came."""

    async def one(number: int) -> tuple[int, bytes]:
        data = json.dumps(told(prompt=f"p{number}", seed=number)).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
        size = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(data)
        writer.write(POST + size + data)
        said = await reader.read()  # a reset is an error
        writer.close()
        status = int(said.split()[1])
        refused(status)
        return status, said

    return await asyncio.gather(*map(one, range(count)))


def test_of_a_burst_as_many_as_fit_are_answered_and_no_connection_is_reset(model):
    shared, most, count = servers.shared(servers.load(), limits=Limits(queue=1)), 24, 150
    served, statuses = shared.models.get("tiny"), Counter()
    served.gate.most = most
    with servers.running(shared) as (url, _), servers.held(served.model) as go:

        def refused(status: int) -> None:
            statuses[status] += 1
            if statuses[429] == count - most:
                go.set()

        answers = asyncio.run(burst(url, count, refused))
        servers.until(lambda: servers.quiet(shared))
    assert statuses == {200: most, 429: count - most}
    for number, (status, said) in enumerate(answers):
        head, _, body = said.partition(b"\r\n\r\n")
        if status == 429:
            assert b"retry-after: " in head.lower()
            assert json.loads(body)["error"]["type"] == "rate_limit_error"
        else:
            expected = model.generate(f"p{number}", seed=number, max_tokens=12, ignore_end=True)
            assert json.loads(body)["choices"][0]["token_ids"] == expected.ids


def test_a_cache_that_does_not_hold_them_all_changes_no_answer(tmp_path, model):
    """Those who lose their blocks are computed again."""
    small = seriatim.load(tiny.write(tmp_path), threads=1, cache_bytes=1 << 17)
    assert small.pool.limit < 12
    shared = servers.shared(small)
    prompts = [chr(97 + n) * (40 + 9 * n) for n in range(12)]
    bodies = [(COMPLETIONS, told(prompt=p, max_tokens=80)) for p in prompts]
    for prompt, answer in zip(prompts, servers.asked(shared, bodies), strict=True):
        expected = model.generate(prompt, seed=5, max_tokens=80, ignore_end=True)
        assert answer.json()["choices"][0]["token_ids"] == expected.ids
    assert servers.quiet(shared)
    shared.stop()


# ---- ill will -----------------------------------------------------------------------------------


def test_whoever_means_ill_is_told_so_and_others_hear_nothing_of_it(shared, url, client, model):
    with canaries.Canaries(url) as singing:
        found = []
        for row in hostile.rows():
            response = client.post(row.path, content=row.content)
            found.append(row.fault(response.status_code, response.content))
            assert client.get("/health").status_code == 200, row.about
    assert list(filter(None, found)) == []
    assert singing.changed == [] and min(singing.rounds) >= 2
    song = canaries.SONGS[1]
    how = {name: song[name] for name in ("seed", "temperature", "top_p")}
    alone = model.generate(
        song["prompt"], max_tokens=120, ignore_end=True, logit_bias={97: 3}, **how
    )
    assert json.loads(singing.known[1])["token_ids"] == alone.ids
    servers.until(lambda: servers.quiet(shared))


@pytest.mark.parametrize("about", hostile.WIRE)
def test_what_comes_over_the_wire_is_answered_or_refused(url, client, about):
    data, statuses = hostile.WIRE[about]
    assert hostile.exchanged(port_of(url), data) == statuses
    assert client.get("/health").status_code == 200


def test_a_body_beyond_the_limit_is_refused_and_not_waited_for(url):
    with socket.create_connection(("127.0.0.1", port_of(url)), servers.WAIT) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        said = b""
        try:
            for _ in range(40):
                connection.sendall(b"80000\r\n" + b" " * (1 << 19) + b"\r\n")
            said = connection.recv(1 << 16)
        except (ConnectionResetError, BrokenPipeError):
            return  # it was closed before all was sent
    assert said.startswith(b"HTTP/1.1 413")


@settings(max_examples=150)
@given(st.sampled_from(sorted(hostile.LEAST)), st.randoms(use_true_random=False))
def test_no_body_makes_the_server_fail(shared, client, path, draw):
    body = hostile.body(draw, path)
    response = client.post(path, content=json.dumps(body))
    assert response.status_code < 500, (body, response.text)
    assert "server_error" not in response.text and "api_error" not in response.text, body
    assert response.content.isascii() and response.headers["x-request-id"].startswith("req_")
    servers.until(lambda: servers.quiet(shared) and servers.quiet(shared, CODE))


def test_every_route_that_takes_a_body_is_asked():
    assert set(hostile.LEAST) == set(hostile.TABLES)


# ---- an engine that dies ------------------------------------------------------------------------

STREAMS = {
    "/v1/completions": ({"prompt": "a", "max_tokens": 200}, "server_error"),
    "/v1/chat/completions": ({"messages": HI, "max_tokens": 200}, "server_error"),
    "/v1/responses": ({"input": "Hi", "max_output_tokens": 200}, "stopped"),
    "/v1/messages": ({"messages": HI, "max_tokens": 200}, "overloaded_error"),
    "/completion": ({"prompt": "a", "n_predict": 200}, "server_error"),
}


def test_when_an_engine_dies_its_streams_say_so_and_all_else_goes_on():
    shared = make()
    tiny_model, other = (shared.models.get(name).model for name in ("tiny", CODE))
    step, broken = tiny_model.runtime.step, []

    def faulty(batch):
        if broken:
            raise MemoryError("the inside of it")
        servers.sleep(0.01)
        return step(batch)

    tiny_model.runtime.step = faulty
    with servers.running(shared) as (url, _), ExitStack() as open, servers.slow(other, 0.01):
        client = open.enter_context(httpx.Client(base_url=url, timeout=servers.WAIT))

        def begin(path, body):
            body = body | {"stream": True, "ignore_end": True}
            response = open.enter_context(client.stream("POST", path, json=body))
            lines = response.iter_lines()
            return [next(lines)], lines

        spared = begin(COMPLETIONS, told(prompt="a", model=CODE, max_tokens=60))
        streams = {p: begin(p, body | {"model": "tiny"}) for p, (body, _) in STREAMS.items()}
        broken.append(True)
        for path, (first, rest) in streams.items():
            last = "\n".join([*first, *rest]).rstrip().rpartition("data: ")[2]
            assert STREAMS[path][1] in last and "inside" not in last, path
        for path in ("/readyz", "/health"):
            assert client.get(path).status_code == 503
        for path in ("/livez", "/metrics", "/v1/models", "/"):
            assert client.get(path).status_code == 200
        assert client.post(COMPLETIONS, json=told(prompt="a")).status_code == 503
        assert len(ids_of([*spared[0], *spared[1]])) == 60
        ids = client.post("/tokenize", json={"model": CODE, "content": "a"})
        assert ids.status_code == 200


# ---- memory -------------------------------------------------------------------------------------


def test_what_is_kept_of_requests_does_not_grow_with_them(shared, client):
    kept = shared.models.get("tiny").model.constraints._vocabulary._kept
    for n in range(3 * KEPT):
        body = told(prompt="a", json_schema={"const": n}, ignore_end=False)
        answer = client.post(COMPLETIONS, json=body).json()["choices"][0]
        assert answer["text"] == str(n)
    assert len(kept) == KEPT
    for n in range(9):
        assert client.get(f"/nowhere/{n}").status_code == 404
        assert client.post(COMPLETIONS, json=told(prompt="a", model=f"m{n}")).status_code == 404
    assert "/nowhere" not in (said := client.get("/metrics").text) and 'model="m0"' not in said


LARGE = ([*range(9999)], {"a": [[1] * 9999, "b"]}, "x" * 9999, {"k" * 99: [*"abc"] * 999})


@pytest.mark.parametrize("value", LARGE, ids=lambda value: type(value).__name__)
def test_a_message_shows_how_a_value_begins_without_spelling_the_rest(value):
    assert shown(value) == repr(value)[:80]


# ---- how it ends --------------------------------------------------------------------------------

MANY = 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("served") / "tiny"
    return tiny.write(place, max_position_embeddings=8192)


@pytest.fixture(scope="module")
def long(folder):
    """What the library itself says."""
    alone = seriatim.load(folder, threads=1)
    return alone.generate("a", seed=5, max_tokens=MANY, ignore_end=True).ids


def address(process) -> str:
    return process.stdout.readline().split()[-1]


def stream(client, url):
    body = told(prompt="a", max_tokens=MANY, stream=True)
    return client.stream("POST", f"{url}/v1/completions", json=body)


def test_a_signal_to_the_process_lets_a_stream_come_to_its_end(folder, long):
    process = servers.command(str(folder), "--threads", "1")
    url = address(process)
    with httpx.Client(timeout=servers.WAIT) as client, stream(client, url) as response:
        lines = response.iter_lines()
        first = next(lines)
        process.send_signal(signal.SIGTERM)
        servers.until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        assert ids_of([first, *lines]) == long
    _, errors = process.communicate(timeout=servers.WAIT)
    assert process.returncode == 0
    assert json.loads(errors.splitlines()[-1])["generated"] == MANY


def test_a_process_that_was_killed_is_seen_to_be_and_its_port_serves_again(folder, long):
    process = servers.command(str(folder), "--threads", "1")
    url = address(process)
    with httpx.Client(timeout=servers.WAIT) as client, stream(client, url) as response:
        lines = response.iter_lines()
        next(lines)
        process.kill()
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            list(lines)
    process.communicate(timeout=servers.WAIT)
    again = servers.command(str(folder), "--threads", "1", port=port_of(url))
    assert address(again) == url
    with httpx.Client(timeout=servers.WAIT) as client, stream(client, url) as response:
        assert ids_of(list(response.iter_lines())) == long
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=servers.WAIT)
    assert again.returncode == 0


def test_nobody_needs_to_read_what_it_says_of_itself():
    process = servers.command("mock:echo")
    url = address(process)
    process.stdout.close()
    process.stderr.close()
    for _ in range(3):
        body = {"model": "mock:echo", "messages": HI}
        assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=servers.WAIT) == 0

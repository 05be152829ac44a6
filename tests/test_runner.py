"""An engine with a thread of its own: the same ids, nobody waits for a step, and a clear end."""

import asyncio
import gc
import threading
from time import monotonic, sleep

import pytest
import small

from seriatim.engine.engine import Engine
from seriatim.errors import RequestError, ResourceError, SeriatimError

WAIT = 30  # seconds until a test gives up; none waits that long


def until(holds) -> None:
    end = monotonic() + WAIT
    while not holds():
        assert monotonic() < end
        sleep(0.001)


@pytest.fixture
def model():
    """Bytes in, bytes out, of its own: its engine runs and ends here."""
    model = small.load("bytes")
    yield model
    model.engine.stop()


class Gate:
    """A processor that lets a step go on only when it is opened."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, ids, logits):
        self.entered.set()
        assert self.opened.wait(WAIT)
        return logits


def test_its_thread_gives_what_stepping_gives(model):
    how = dict(max_tokens=12, seed=5, logprobs=2)
    stepped = [model.generate(p, n=2, **how) for p in ("one", "two", "three")]
    model.engine.start()
    threaded = model.generate(["one", "two", "three"], n=2, **how)
    assert model.engine.runs
    assert [(r.ids, r.logprobs, r.text) for r in threaded] == [
        (r.ids, r.logprobs, r.text) for r in stepped
    ]
    assert "".join(p.text for p in model.stream("one", **how)) == stepped[0].text
    assert model.score("one more").nats == small.load("bytes").score("one more").nats


def test_async_iteration_gives_the_pieces_of_several_streams_at_once(model):
    alone = {p: model.generate(p, max_tokens=20, seed=3) for p in ("a", "bc", "def")}

    async def collect(prompt):
        stream = model.stream(prompt, max_tokens=20, seed=3)
        pieces = [piece async for piece in stream]
        return pieces, stream.result()

    async def main():
        return await asyncio.gather(*map(collect, alone))

    for (pieces, result), expected in zip(asyncio.run(main()), alone.values(), strict=True):
        assert result.ids == [id for piece in pieces for id in piece.ids] == expected.ids
        assert "".join(piece.text for piece in pieces) == expected.text


def test_a_program_follows_the_ids_of_a_request(model):
    alone = model.engine.add([7, 8, 9], max_tokens=20, seed=4)
    while not alone.done:
        model.engine.step()

    async def main():
        request = model.engine.add([7, 8, 9], max_tokens=20, seed=4)
        return [ids async for ids in model.engine.follow(request)]

    steps = asyncio.run(main())
    assert [id for ids in steps for id in ids] == alone.answer
    assert all(steps)


def test_an_async_stream_left_early_frees_its_blocks(model):
    async def leave():
        stream = model.stream("a", seed=0, ignore_end=True)
        async for _ in stream:
            break
        await asyncio.sleep(0)
        return stream

    stream = asyncio.run(leave())
    stream.close()
    assert stream.request.stop == "abort"
    until(lambda: not model.engine.busy)
    model.engine.check()
    assert not model.engine.scheduler.running


def test_an_async_stream_raises_what_ended_its_request(model):
    def broken(ids, logits):
        raise ZeroDivisionError("mine")

    async def main():
        async for _ in model.stream("a", processors=[broken], seed=0):
            pass

    with pytest.raises(SeriatimError, match="mine"):
        asyncio.run(main())
    assert model.generate("a", max_tokens=2, seed=1).usage.generated == 2


def test_add_and_abort_wait_for_no_step(model):
    gate = Gate()
    model.engine.start()
    slow = model.engine.add([1, 2], max_tokens=3, seed=0, processors=[gate])
    assert gate.entered.wait(WAIT)  # the step cannot end before the gate opens
    other = model.engine.add([3, 4], max_tokens=3, seed=0)
    model.engine.abort(slow)
    assert not slow.done and not other.done
    gate.opened.set()
    until(lambda: slow.done and other.done)
    assert slow.stop == "abort" and other.usage.generated == 3
    model.engine.check()


def test_an_abort_during_the_last_step_of_its_thread_is_not_forgotten(model):
    gate = Gate()
    model.engine.start()
    request = model.engine.add([1, 2], seed=0, ignore_end=True, processors=[gate])
    assert gate.entered.wait(WAIT)
    stopping = threading.Thread(target=model.engine.stop)
    model.engine.abort(request)
    stopping.start()
    gate.opened.set()
    stopping.join(WAIT)
    assert request.stop == "abort" and not model.engine.busy


def test_a_stopped_thread_leaves_requests_for_whoever_steps_next(model):
    model.engine.start()
    stream = model.stream("a", max_tokens=40, seed=2)
    next(stream)
    model.engine.stop()
    assert not model.engine.runs
    assert stream.result().ids == small.load("bytes").generate("a", max_tokens=40, seed=2).ids


def test_a_fault_of_a_step_ends_all_requests_and_its_thread_with_the_reason(model):
    engine = model.engine

    def fault(batch):
        raise MemoryError("no more")

    requests = [engine.add([1, i], seed=0) for i in range(3)]
    step, model.runtime.step = model.runtime.step, fault
    engine.start()
    until(lambda: all(r.done for r in requests))
    until(lambda: not engine.runs)
    assert {str(r.error) for r in requests} == {"the engine stopped: MemoryError: no more"}
    with pytest.raises(SeriatimError, match="no more"):
        engine.add([1], seed=0)
    engine.check()
    model.runtime.step = step
    engine.start()  # asked for again, it serves again
    assert model.generate([5, 6], max_tokens=2, seed=1).usage.generated == 2


def test_a_processor_that_waits_for_its_own_thread_fails_its_request(model):
    other = Engine(model)
    model.engine.start()

    def asks(ids, logits):
        model.generate("b", max_tokens=1)
        return logits

    with pytest.raises(RequestError, match="within a step of the same model"):
        model.generate("a", max_tokens=2, processors=[asks])
    request = other.add([1], max_tokens=2, processors=[asks])
    while not request.done:
        other.step()
    assert "within a step of the same model" in str(request.error)
    assert model.generate("a", max_tokens=2).usage.generated == 2


def test_its_thread_ends_with_the_engine():
    model = small.load("bytes")
    engine = Engine(model)
    engine.start()
    runner = engine._runner
    del engine
    gc.collect()
    until(lambda: not runner._thread.is_alive())


def test_a_full_queue_refuses_and_says_how_full(model):
    engine = Engine(model, queue=2)
    requests = [engine.add([1], max_tokens=1, seed=0) for _ in range(2)]
    with pytest.raises(ResourceError, match="2 requests wait and the queue holds 2"):
        engine.add([1], max_tokens=1, seed=0)
    while not all(r.done for r in requests):
        engine.step()
    engine.add([1], max_tokens=1, seed=0)


def test_threads_that_stream_from_one_running_engine_get_what_they_would_alone(model):
    alone = {p: model.generate(p, max_tokens=16, seed=9).ids for p in "abcdef"}
    model.engine.start()
    got: dict[str, list[int]] = {}

    def take(prompt):
        stream = model.stream(prompt, max_tokens=16, seed=9)
        got[prompt] = [id for piece in stream for id in piece.ids]

    threads = [threading.Thread(target=take, args=(p,)) for p in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert got == alone

"""Steps an engine in a thread of its own while it has work. What it computes is `Engine.step`'s."""

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial
from threading import Condition, Thread
from typing import TYPE_CHECKING, Protocol
from weakref import ref

from seriatim.engine.request import Request
from seriatim.errors import SeriatimError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

PATIENCE = 1.0  # seconds after which a thread without work looks whether its engine still exists


class Steps(Protocol):
    """What the thread needs of an engine."""

    @property
    def busy(self) -> bool: ...
    def step(self) -> list[Request]: ...
    def fail(self, error: SeriatimError) -> list[Request]: ...
    def start(self) -> None: ...
    def abort(self, request: Request) -> None: ...


class Runner:
    """A thread that ends with `stop`, with its engine, or with an error that no request caused.

    It holds its engine only while it steps, so that an engine that is dropped goes.
    """

    def __init__(self, engine: Steps) -> None:
        self._engine, self._more, self._moved = ref(engine), Condition(), Condition()
        self._stopping = False
        self.error: SeriatimError | None = None
        self._thread = Thread(target=self._run, name="seriatim-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def wake(self) -> None:
        """There is work."""
        with self._more:
            self._more.notify()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Return when a step has made it so, or after a while."""
        with self._moved:
            self._moved.wait_for(ready, PATIENCE)

    def stop(self) -> None:
        """Return when no step runs any more; requests stay where they are."""
        with self._more:
            self._stopping = True
            self._more.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._wait():
            engine = self._engine()
            if engine is None:
                return
            try:
                moved = engine.step()
            except Exception as error:
                self.error = SeriatimError(f"the engine stopped: {type(error).__name__}: {error}")
                self.error.__cause__ = error
                moved, self._stopping = engine.fail(self.error), True
            del engine
            with self._moved:
                self._moved.notify_all()
            for request in moved:
                request.wake()

    def _wait(self) -> bool:
        """Until there is work; whether to go on."""
        with self._more:
            while not self._stopping:
                engine = self._engine()
                if engine is None or engine.busy:
                    return engine is not None
                del engine
                self._more.wait(PATIENCE)
            return False


async def follow(engine: Steps, request: Request) -> AsyncGenerator[list[int], None]:
    """The ids that each step adds to a request: `Engine.follow`."""
    from asyncio import Event, get_running_loop  # takes 30 ms, and most programs never ask

    loop, moved = get_running_loop(), Event()
    request.wake = partial(_tell, loop, moved.set)
    engine.start()
    shown, done = request.prompt, False
    try:
        while not done:
            done = request.done  # asked before its last ids are read
            ids = request.ids[shown:]
            shown += len(ids)
            if ids:
                yield ids
            elif not done:
                await moved.wait()
            moved.clear()
    finally:
        engine.abort(request)
    if request.error is not None:
        raise request.error


def _tell(loop: "AbstractEventLoop", what: Callable[[], None]) -> None:
    """Call it in the loop's thread, if the loop still runs."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(what)

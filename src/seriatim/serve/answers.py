"""A client's request under way: opened off the event loop, followed, and closed whatever happens.

The whole answer is the fold of what `follow` gives; a protocol makes words of either.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from time import perf_counter
from typing import TypeVar

from starlette.requests import Request

from seriatim.constraints.constraining import GRAMMARS
from seriatim.engine.request import Usage
from seriatim.errors import RequestError, ResourceError, SeriatimError
from seriatim.requesting import abandon
from seriatim.results import Piece, Result, Stream
from seriatim.serve.errors import Fault, refused
from seriatim.serve.metrics import COUNTS, PROMPTS
from seriatim.serve.served import Asked, Served
from seriatim.serve.shared import Shared
from seriatim.serve.visit import Visit

T = TypeVar("T")


class Answer:
    """The samples of one request, prompt by prompt. Made by `answering`.

    Attributes:
        streams: [prompt x sample], once it is open.
    """

    def __init__(
        self, shared: Shared, served: Served, fields: frozenset[str], visit: Visit
    ) -> None:
        self.served, self.streams = served, list[Stream]()
        self._shared, self._fields, self._began = shared, fields, perf_counter()
        self._visit, self._facts, self._samples = visit, visit.facts, 1
        self._facts["model"] = served.name

    async def run(
        self,
        work: Callable[[], T],
        *,
        slow: bool = False,
        undo: Callable[[T], object] | None = None,
    ) -> T:
        """What `work` gives, off the event loop.

        Args:
            slow: whether it compiles.
            undo: told of what it gave, should nobody wait for it any more.

        Raises:
            Fault: it was refused.
        """
        try:
            return await self._shared.workers.run(work, slow=slow, undo=undo)
        except (RequestError, ResourceError) as error:
            raise refused(error, self._fields) from error

    async def open(self, asked: Asked) -> None:
        """Queue its requests.

        Raises:
            Fault: refused.
        """
        slow = asked.slow or not asked.options.keys().isdisjoint(GRAMMARS)
        opened = await self.run(lambda: self.served.open(asked), slow=slow, undo=_abandon)
        self.streams = [s for some in opened for s in some]
        self._samples = asked.n
        self._facts["finish"] = [None] * len(self.streams)

    def close(self) -> None:
        """End its requests and free their cache; those that are done stay as they are."""
        abandon(self.streams)

    async def follow(self) -> AsyncGenerator[tuple[int, Piece | Result], None]:
        """Of each sample, by its number: pieces as they come, and at last its result.

        Raises:
            Fault, SeriatimError: what ended one of them.
        """
        bell, left = self._shared.bells.make(), dict(enumerate(self.streams))
        latest = [0.0] * len(left)
        for stream in self.streams:
            stream.request.wake = bell.ring
        while left:
            for index, stream in list(left.items()):
                done = stream.request.done  # asked before what came last is read
                if (piece := stream.take()) is not None:
                    latest[index] = self._timed(piece, latest[index])
                    yield index, piece
                if done:
                    del left[index]
                    yield index, await self._result(index)
            if left:
                await bell.heard()

    async def results(self) -> list[Result]:
        """Those of all samples, in order."""
        async with aclosing(self.follow()) as steps:
            found = {i: r async for i, r in steps if isinstance(r, Result)}
        return [found[i] for i in range(len(self.streams))]

    async def _result(self, index: int) -> Result:
        stream = self.streams[index]
        error = stream.request.error
        if type(error) is SeriatimError and not self.served.ready:
            raise self.served.stopped from error  # its own words are of the engine's inside
        result = await self._shared.workers.run(stream.result)  # it encodes the output again
        self._facts["finish"][index] = result.finish_reason
        self._count(index, result.usage)
        return result

    def _count(self, index: int, usage: Usage) -> None:
        """In the books: a prompt is read once for all its samples."""
        first = index % self._samples == 0
        counts = {name: getattr(usage, name) for name in COUNTS if first or name not in PROMPTS}
        self._shared.metrics.counted(self.served.name, counts)
        for name, count in counts.items():
            self._facts[name] = self._facts.get(name, 0) + count

    def _timed(self, piece: Piece, latest: float) -> float:
        now, count = perf_counter(), len(piece.ids)
        if count and latest:
            self._shared.metrics.between(self.served.name, now - latest, count)
        elif count:
            self._facts.setdefault("first_ms", self._visit.ms)
            self._shared.metrics.first(self.served.name, now - self._began)
        return now if count else latest


@asynccontextmanager
async def answering(
    shared: Shared, served: Served, count: int, fields: frozenset[str], request: Request
) -> AsyncIterator[Answer]:
    """Room for an answer; what it opened ends when the context is left.

    Args:
        count: of its samples.
        fields: that an error may be about.
        request: whose line of log says what it took.

    Raises:
        Fault: there is no room.
    """
    if count > shared.limits.choices:
        most = shared.limits.choices
        raise Fault(
            400, f"the request asks for {count} samples; expected at most {most}", param="n"
        )
    served.gate.enter(count)
    answer = Answer(shared, served, fields, request.state.visit)
    try:
        yield answer
    finally:
        answer.close()
        served.gate.leave(count)


def _abandon(opened: Sequence[Sequence[Stream]]) -> None:
    abandon(s for some in opened for s in some)

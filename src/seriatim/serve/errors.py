"""What a client is told of an error: a status, a code, one sentence; never a path or a traceback.

A protocol's own file says it in the protocol's words.
"""

import re
from dataclasses import dataclass, replace

from seriatim.errors import NumericError, RequestError, ResourceError, SeriatimError

RETRY = 1  # seconds after which a busy server is worth another try


@dataclass(eq=False)  # not frozen: who passes an exception on writes to it
class Fault(Exception):
    """A request that is refused or failed.

    Attributes:
        status: of HTTP.
        message: what was seen, what was expected, what to do.
        code: a word for programs.
        param: the field to blame.
        retry: seconds after which to try again.
        close: whether the connection ends with it: what is left of the request is not read.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry: int | None = None
    close: bool = False

    def __str__(self) -> str:
        return self.message

    def of(self, param: str) -> "Fault":
        """The same, with a field to blame."""
        return replace(self, param=param)


class Gone(Exception):
    """The client is no longer there: nobody is told anything."""


class Ended(SeriatimError):
    """The server ends before the answer does."""


def fault_of(error: BaseException, fields: frozenset[str] = frozenset()) -> Fault:
    """What a client is told of an error; of one that is nobody's intention, only that it was.

    Args:
        error: what was raised.
        fields: names a message may begin with, one of which is then to blame.
    """
    if isinstance(error, Fault):
        return error
    if isinstance(error, RequestError):
        return Fault(400, str(error), param=_blamed(str(error), fields))
    if isinstance(error, Ended):
        return unavailable(str(error))
    if isinstance(error, NumericError):
        return Fault(500, str(error), code="not_finite")
    if isinstance(error, ResourceError):
        return Fault(503, str(error), code="no_room", retry=RETRY)
    return Fault(500, "the request failed; the server's log says more", code="internal_error")


def refused(error: BaseException, fields: frozenset[str]) -> Fault:
    """The same of what was raised before any work: what will never fit is the request's fault."""
    fault = fault_of(error, fields)
    return replace(fault, status=400, retry=None) if isinstance(error, ResourceError) else fault


def busy(seen: str) -> Fault:
    """Full for now."""
    return Fault(429, f"{seen}; try again in a moment", code="busy", retry=RETRY)


def unavailable(why: str) -> Fault:
    """Not serving, for now or for good."""
    return Fault(503, why, code="unavailable", retry=RETRY)


def _blamed(message: str, fields: frozenset[str]) -> str | None:
    word = re.match(r"\w+", message)
    return word[0] if word and word[0] in fields else None

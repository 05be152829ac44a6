"""What the server refuses it refuses as well under `python -O`, which removes every assert.

It is a program too, for that: `python -O test_serve_optimised.py`.
"""

import sys
from collections.abc import Iterator

import hostile
import servers
import test_serve_messages
import test_serve_responses
import unasserted

from seriatim.serve.served import Served


def rows() -> Iterator[hostile.Row]:
    """A third of the requests that mean ill, and all of two protocols."""
    yield from list(hostile.rows())[::3]
    for other, path in (
        (test_serve_messages, "/v1/messages"),
        (test_serve_responses, "/v1/responses"),
    ):
        for name, values in other.WRONG.items():
            for value in values:
                body = other.told() | {name: value}
                yield hostile.Row(f"{path}: {name} {str(value)[:40]}", path, body, 400)


def faults() -> list[str]:
    """Those that are not answered as they should be, and what they leave."""
    shared = servers.shared(servers.load())
    shared.models.add(Served("code", servers.code(), shared.limits))
    found = []
    for row in rows():
        how = {"content": row.content, "headers": hostile.JSON}
        response = servers.ask(shared, row.path, **how)
        found.append(row.fault(response.status_code, response.content))
    if not servers.quiet(shared):
        found.append("something is left")
    shared.stop()
    return [fault for fault in found if fault]


def test_it_is_refused_as_well_without_assertions():
    ran = unasserted.run(__file__)
    assert (ran.returncode, ran.stdout) == (0, "as expected\n"), ran.stdout + ran.stderr[-2000:]


if __name__ == "__main__":
    if __debug__:
        sys.exit("run it with python -O")
    print("\n".join(faults()) or "as expected")

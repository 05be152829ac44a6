"""What the server refuses it refuses as well under `python -O`, which removes every assert.

It is a program too, for that: `python -O test_serve_optimised.py`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import servers
import test_serve
import test_serve_messages
import test_serve_responses

import seriatim

LEAST = {test_serve.COMPLETIONS: {"prompt": "a"}, test_serve.CHAT: {"messages": test_serve.HI}}


def bodies() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every one that is wrong, of each protocol."""
    for row in test_serve.WRONG:
        path, name, value = row.values
        yield path, test_serve.told(**LEAST[path]) | {name: value}
    for other in (test_serve_messages, test_serve_responses):
        path = getattr(other, "MESSAGES", "/v1/responses")
        for name, values in other.WRONG.items():
            yield from ((path, other.told() | {name: value}) for value in values)


def faults() -> list[str]:
    """Those that are not refused, and what else is not as it should be."""
    shared, found = servers.shared(servers.load()), []
    for path, body in bodies():
        if (status := servers.ask(shared, path, body).status_code) != 400:
            found.append(f"{path}: {body}: {status}")
    for data, status in test_serve.BODIES.items():
        how = {"content": data, "headers": {"content-type": "application/json"}}
        if (said := servers.ask(shared, test_serve.COMPLETIONS, **how).status_code) != status:
            found.append(f"{data[:80]!r}: {said}")
    if test_serve.used(shared) or shared.models.busy:
        found.append("something is left")
    shared.stop()
    return found


def test_it_is_refused_as_well_without_assertions():
    path = os.pathsep.join([str(Path(seriatim.__file__).parents[1]), str(Path(__file__).parent)])
    ran = subprocess.run(
        [sys.executable, "-O", __file__],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "as expected\n"), ran.stdout + ran.stderr[-2000:]


if __name__ == "__main__":
    if __debug__:
        sys.exit("run it with python -O")
    print("\n".join(faults()) or "as expected")
